//! Answers as they are written (RFC 9112, 4 to 7): the head, what it says of the body's length, and chunks. No sockets here.

use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{CONNECTION, CONTENT_LENGTH, DATE, TRANSFER_ENCODING, UPGRADE},
    response::Parts,
};
use hyper::ext::ReasonPhrase;

/// What must be known of a request when its answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) is_head: bool,
    /// HTTP/1.0 otherwise.
    pub(super) is_http_11: bool,
    /// The client would send another request on this connection.
    pub(super) is_kept: bool,
    pub(super) takes_trailers: bool,
}

/// How the end of an answer's body is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// There is none, whatever the head says of its length.
    Nothing,
    /// After so many more bytes.
    Length(u64),
    Chunked,
    /// With the connection.
    Close,
}

/// What the head of an answer has said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) framing: Framing,
    /// No other request is answered on this connection.
    pub(super) is_last: bool,
}

/// Writes the head of an answer. `length`: of its body, where that is known. `date`: in the form of RFC 9110, 5.6.7.
pub(super) fn head(
    asked: Asked,
    parts: &Parts,
    length: Option<u64>,
    date: &[u8],
    into: &mut Vec<u8>,
) -> Said {
    let fields = &parts.headers;
    let switches = parts.status == StatusCode::SWITCHING_PROTOCOLS;
    let framing = framing(asked, parts.status, fields, length);
    let is_last = switches
        || !asked.is_kept
        || framing == Framing::Close
        || fields
            .get(CONNECTION)
            .is_some_and(|value| value.as_bytes() == b"close");
    status_line(asked, parts, into);
    for (name, value) in fields {
        let is_ours = match *name {
            CONNECTION | TRANSFER_ENCODING => true,
            // RFC 9110, 8.6: none where nothing can come.
            CONTENT_LENGTH => switches || parts.status == StatusCode::NO_CONTENT,
            UPGRADE => !switches,
            _ => false,
        };
        if !is_ours {
            field(name.as_str().as_bytes(), value.as_bytes(), into);
        }
    }
    if !fields.contains_key(CONTENT_LENGTH) {
        match (framing, length) {
            (Framing::Length(length), _) => number(b"content-length", length, into),
            // A HEAD learns the length of what it did not ask for.
            (Framing::Nothing, Some(length @ 1..)) if asked.is_head && has_body(parts.status) => {
                number(b"content-length", length, into);
            }
            (Framing::Nothing | Framing::Chunked | Framing::Close, _) => {}
        }
    }
    if framing == Framing::Chunked {
        field(b"transfer-encoding", b"chunked", into);
    }
    if switches {
        field(b"connection", b"upgrade", into);
    } else if is_last {
        field(b"connection", b"close", into);
    } else if !asked.is_http_11 {
        // HTTP/1.0 closes unless it is told otherwise.
        field(b"connection", b"keep-alive", into);
    }
    if !fields.contains_key(DATE) {
        field(b"date", date, into);
    }
    into.extend_from_slice(b"\r\n");
    Said { framing, is_last }
}

fn status_line(asked: Asked, parts: &Parts, into: &mut Vec<u8>) {
    // A client that knows HTTP/1.0 alone may read nothing else.
    into.extend_from_slice(if asked.is_http_11 {
        b"HTTP/1.1 "
    } else {
        b"HTTP/1.0 "
    });
    into.extend_from_slice(parts.status.as_str().as_bytes());
    into.push(b' ');
    match parts.extensions.get::<ReasonPhrase>() {
        Some(reason) => into.extend_from_slice(reason.as_bytes()),
        None => into.extend_from_slice(parts.status.canonical_reason().unwrap_or("").as_bytes()),
    }
    into.extend_from_slice(b"\r\n");
}

fn field(name: &[u8], value: &[u8], into: &mut Vec<u8>) {
    into.extend_from_slice(name);
    into.extend_from_slice(b": ");
    into.extend_from_slice(value);
    into.extend_from_slice(b"\r\n");
}

fn number(name: &[u8], value: u64, into: &mut Vec<u8>) {
    let mut digits = [0; 20];
    let mut begin = digits.len();
    let mut left = value;
    loop {
        begin -= 1;
        digits[begin] = b'0' + u8::try_from(left % 10).unwrap_or(0);
        left /= 10;
        if left == 0 {
            break;
        }
    }
    field(name, &digits[begin..], into);
}

fn has_body(status: StatusCode) -> bool {
    !status.is_informational()
        && !matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

fn framing(asked: Asked, status: StatusCode, fields: &HeaderMap, length: Option<u64>) -> Framing {
    if asked.is_head || !has_body(status) {
        return Framing::Nothing;
    }
    let said = fields.get(CONTENT_LENGTH).and_then(digits);
    match said.or(length) {
        Some(length) => Framing::Length(length),
        None if asked.is_http_11 => Framing::Chunked,
        None => Framing::Close,
    }
}

fn digits(value: &HeaderValue) -> Option<u64> {
    value.to_str().ok()?.parse().ok()
}

/// Writes what stands before the data of a chunk; the end of its line comes behind the data.
pub(super) fn chunk_size(length: usize, into: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut shift = (usize::BITS - length.leading_zeros()).div_ceil(4).max(1) * 4;
    while shift > 0 {
        shift -= 4;
        into.push(DIGITS[length >> shift & 15]);
    }
    into.extend_from_slice(b"\r\n");
}

/// Writes the end of a body of chunks.
pub(super) fn last_chunk(trailers: Option<&HeaderMap>, into: &mut Vec<u8>) {
    into.extend_from_slice(b"0\r\n");
    for (name, value) in trailers.into_iter().flatten() {
        field(name.as_str().as_bytes(), value.as_bytes(), into);
    }
    into.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use http::Response;

    use super::*;

    const GET: Asked = Asked {
        is_head: false,
        is_http_11: true,
        is_kept: true,
        takes_trailers: false,
    };
    const DAY: &[u8] = b"today";

    type Fields<'a> = &'a [(&'static str, &'a str)];

    fn check(
        asked: Asked,
        status: u16,
        fields: Fields<'_>,
        length: Option<u64>,
        text: &str,
        framing: Framing,
        is_last: bool,
    ) {
        let mut response = Response::builder().status(status);
        for (name, value) in fields {
            response = response.header(*name, *value);
        }
        let (parts, ()) = response.body(()).expect("an answer").into_parts();
        let mut into = Vec::new();
        let said = head(asked, &parts, length, DAY, &mut into);
        let got = String::from_utf8(into).expect("text");
        let expected = format!("{}\r\n\r\n", text.replace('|', "\r\n"));
        assert_eq!(got, expected);
        assert_eq!(said, Said { framing, is_last }, "{text}");
    }

    #[test]
    fn a_head_says_how_the_body_ends_and_nothing_else_about_it() {
        let length = Framing::Length;
        let ok = "HTTP/1.1 200 OK";
        let text = format!("{ok}|content-length: 3|date: today");
        check(GET, 200, &[], Some(3), &text, length(3), false);
        let text = format!("{ok}|content-length: 0|date: today");
        check(GET, 200, &[], Some(0), &text, length(0), false);
        let fields: Fields<'_> = &[("content-length", "12"), ("date", "then")];
        let text = format!("{ok}|content-length: 12|date: then");
        check(GET, 200, fields, None, &text, length(12), false);
        let text = format!("{ok}|transfer-encoding: chunked|date: today");
        check(GET, 200, &[], None, &text, Framing::Chunked, false);
        // What a backend said of its own connection and framing is not ours to repeat.
        let fields: Fields<'_> = &[("transfer-encoding", "gzip"), ("upgrade", "h2c")];
        check(GET, 200, fields, None, &text, Framing::Chunked, false);
    }

    #[test]
    fn where_nothing_can_come_nothing_is_announced() {
        let nothing = Framing::Nothing;
        let text = "HTTP/1.1 204 No Content|date: today";
        check(
            GET,
            204,
            &[("content-length", "0")],
            Some(0),
            text,
            nothing,
            false,
        );
        check(GET, 204, &[], None, text, nothing, false);
        let text = "HTTP/1.1 304 Not Modified|content-length: 9|date: today";
        check(
            GET,
            304,
            &[("content-length", "9")],
            Some(0),
            text,
            nothing,
            false,
        );
        let head = Asked {
            is_head: true,
            ..GET
        };
        let text = "HTTP/1.1 200 OK|content-length: 9|date: today";
        check(
            head,
            200,
            &[("content-length", "9")],
            Some(0),
            text,
            nothing,
            false,
        );
        check(head, 200, &[], Some(9), text, nothing, false);
        let text = "HTTP/1.1 200 OK|date: today";
        check(head, 200, &[], None, text, nothing, false);
        check(head, 200, &[], Some(0), text, nothing, false);
    }

    #[test]
    fn the_last_answer_says_so_and_an_older_client_is_answered_in_its_own_version() {
        let length = Framing::Length(1);
        let last = Asked {
            is_kept: false,
            ..GET
        };
        let text = "HTTP/1.1 200 OK|content-length: 1|connection: close|date: today";
        check(last, 200, &[], Some(1), text, length, true);
        check(
            GET,
            200,
            &[("connection", "close")],
            Some(1),
            text,
            length,
            true,
        );
        let old = Asked {
            is_http_11: false,
            ..GET
        };
        let text = "HTTP/1.0 200 OK|content-length: 1|connection: keep-alive|date: today";
        check(old, 200, &[], Some(1), text, length, false);
        let text = "HTTP/1.0 200 OK|connection: close|date: today";
        check(old, 200, &[], None, text, Framing::Close, true);
        let text = "HTTP/1.1 101 Switching Protocols|upgrade: websocket|x: y|connection: upgrade|date: today";
        let fields: Fields<'_> = &[
            ("upgrade", "websocket"),
            ("connection", "upgrade"),
            ("x", "y"),
        ];
        check(GET, 101, fields, Some(0), text, Framing::Nothing, true);
    }

    #[test]
    fn a_reason_is_passed_on_and_an_unknown_status_has_none() {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::from_u16(299).expect("a status");
        let mut into = Vec::new();
        let (mut parts, ()) = response.into_parts();
        head(GET, &parts, Some(0), DAY, &mut into);
        assert!(into.starts_with(b"HTTP/1.1 299 \r\n"));
        let reason = ReasonPhrase::try_from("Fine".as_bytes()).expect("a reason");
        parts.extensions.insert(reason);
        into.clear();
        head(GET, &parts, Some(0), DAY, &mut into);
        assert!(into.starts_with(b"HTTP/1.1 299 Fine\r\n"));
    }

    #[test]
    fn chunks_have_their_size_in_hexadecimal_digits() {
        for length in [1, 9, 10, 15, 16, 255, 256, 0x1234, 0xf_ffff, usize::MAX] {
            let mut into = Vec::new();
            chunk_size(length, &mut into);
            assert_eq!(into, format!("{length:x}\r\n").into_bytes());
        }
        let mut into = Vec::new();
        last_chunk(None, &mut into);
        assert_eq!(into, b"0\r\n\r\n");
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", HeaderValue::from_static("7"));
        into.clear();
        last_chunk(Some(&trailers), &mut into);
        assert_eq!(into, b"0\r\nx-sum: 7\r\n\r\n");
    }

    #[test]
    fn every_number_is_written_as_it_is() {
        for value in [0, 7, 10, 99, 12_345, u64::MAX] {
            let mut into = Vec::new();
            number(b"n", value, &mut into);
            assert_eq!(into, format!("n: {value}\r\n").into_bytes());
        }
    }
}
