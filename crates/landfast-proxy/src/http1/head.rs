//! A scanned head as a request that can be handled. What it may be was decided by the scanner; nothing is judged here.

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version,
    header::{CONNECTION, TE},
};
use landfast_framing::{Body, Field, Head};
use landfast_routing::headers;

use super::encode::Asked;

/// Room for the fields that are added on the way.
const ADDED: usize = 2;

/// A request without its body, and what to remember of it.
pub(super) struct Received {
    pub(super) request: Request<()>,
    pub(super) asked: Asked,
    pub(super) body: Body,
    pub(super) expects: bool,
    pub(super) is_upgrade: bool,
}

/// Reads a head. Its fields share its memory. `None`: something of it is no part of a request as `http` knows one.
pub(super) fn read(bytes: &Bytes, head: &Head, fields: &[Field]) -> Option<Received> {
    let mut request = Request::new(());
    *request.method_mut() = Method::from_bytes(&bytes[head.method.clone()]).ok()?;
    *request.uri_mut() = Uri::from_maybe_shared(bytes.slice(head.target.clone())).ok()?;
    *request.version_mut() = if head.is_http_11 {
        Version::HTTP_11
    } else {
        Version::HTTP_10
    };
    let mut has_te = false;
    let mut has_connection = false;
    let mut map = HeaderMap::with_capacity(fields.len() + ADDED);
    for field in fields {
        let name = HeaderName::from_bytes(&bytes[field.name.clone()]).ok()?;
        let value = if field.value.is_empty() {
            HeaderValue::from_static("")
        } else {
            HeaderValue::from_maybe_shared(bytes.slice(field.value.clone())).ok()?
        };
        has_te |= name == TE;
        has_connection |= name == CONNECTION;
        map.try_append(name, value).ok()?;
    }
    let says = |word: &str| has_connection && says(&map, word);
    let asked = Asked {
        is_head: *request.method() == Method::HEAD,
        is_http_11: head.is_http_11,
        // RFC 9112, 9.3.
        is_kept: !says("close") && (head.is_http_11 || says("keep-alive")),
        takes_trailers: has_te && headers::takes_trailers(&map),
    };
    *request.headers_mut() = map;
    Some(Received {
        request,
        asked,
        body: head.body,
        expects: head.expects,
        is_upgrade: head.is_upgrade,
    })
}

fn says(fields: &HeaderMap, word: &str) -> bool {
    let values = fields.get_all(CONNECTION).iter();
    values
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .any(|token| token.trim_ascii().eq_ignore_ascii_case(word.as_bytes()))
}

/// Reads the fields behind a body. `bytes` begins with the first of them.
pub(super) fn trailers(bytes: &[u8], fields: &[Field]) -> Option<HeaderMap> {
    let mut map = HeaderMap::with_capacity(fields.len());
    for field in fields {
        let name = HeaderName::from_bytes(&bytes[field.name.clone()]).ok()?;
        let value = HeaderValue::from_bytes(&bytes[field.value.clone()]).ok()?;
        map.try_append(name, value).ok()?;
    }
    Some(map)
}

/// What stands in for a request whose head was refused, for its answer and the access log.
pub(super) fn unread() -> (Request<()>, Asked) {
    let mut request = Request::new(());
    *request.method_mut() = Method::from_bytes(b"-").unwrap_or_default();
    let asked = Asked {
        is_head: false,
        is_http_11: true,
        is_kept: false,
        takes_trailers: false,
    };
    (request, asked)
}

#[cfg(test)]
mod tests {
    use landfast_framing::{Limits, Scanner, Step};

    use super::*;

    fn received(text: &str) -> Received {
        let mut scanner = Scanner::new(Limits {
            head_bytes_max: 1 << 10,
            fields_max: 10,
        });
        let Ok(Step::Head(head)) = scanner.step(text.as_bytes()) else {
            panic!("no head: {text}");
        };
        let bytes = Bytes::copy_from_slice(&text.as_bytes()[..head.length]);
        read(&bytes, &head, scanner.fields()).expect("a request")
    }

    #[test]
    fn a_head_is_read_as_it_is_written() {
        let received = received(
            "\r\nPOST /a?b=c HTTP/1.1\r\nHost: a.example \r\nX:\r\nx: 1\r\nX: \t2 \r\n\
             content-length: 2\r\nExpect: 100-continue\r\n\r\nhi",
        );
        let request = received.request;
        assert_eq!(*request.method(), Method::POST);
        assert_eq!(*request.uri(), "/a?b=c");
        assert_eq!(request.version(), Version::HTTP_11);
        assert_eq!(request.headers()["host"], "a.example");
        let values: Vec<_> = request.headers().get_all("x").iter().collect();
        assert_eq!(values, ["", "1", "2"]);
        assert_eq!(received.body, Body::Length(2));
        assert!(received.expects && !received.is_upgrade);
        let absolute = self::received("GET http://a/x HTTP/1.1\r\nhost: a\r\n\r\n");
        assert_eq!(*absolute.request.uri(), "http://a/x");
    }

    #[test]
    fn a_connection_is_kept_as_its_version_and_its_client_say() {
        for (version, field, expected) in [
            ("1.1", "", true),
            ("1.1", "connection: Close\r\n", false),
            ("1.1", "connection: x, close\r\n", false),
            ("1.1", "connection: x\r\nconnection: close\r\n", false),
            ("1.1", "connection: closed\r\n", true),
            ("1.0", "", false),
            ("1.0", "connection: Keep-Alive\r\n", true),
            ("1.0", "connection: keep-alive, close\r\n", false),
        ] {
            let text = format!("HEAD / HTTP/{version}\r\nhost: a\r\n{field}\r\n");
            let asked = received(&text).asked;
            assert_eq!(asked.is_kept, expected, "{text}");
            assert!(asked.is_head);
        }
    }

    #[test]
    fn trailers_are_for_those_that_take_them() {
        for (field, expected) in [
            ("", false),
            ("te: gzip\r\n", false),
            ("te: x, trailers\r\n", true),
        ] {
            let text = format!("GET / HTTP/1.1\r\nhost: a\r\n{field}\r\n");
            assert_eq!(received(&text).asked.takes_trailers, expected, "{text}");
        }
    }
}
