use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Uri, header::CONTENT_LENGTH};
use landfast_routing::{
    headers::{Arrival, Forwarding},
    snapshot::RouteTimeouts,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::{descriptors::Descriptors, forward::Source};

fn asking(method: Method, body: &Bytes) -> Outgoing {
    let mut headers = HeaderMap::new();
    headers.insert("host", HeaderValue::from_static("app.test"));
    headers.insert("x-one", HeaderValue::from_static("1"));
    if !body.is_empty() {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    }
    Outgoing {
        method,
        target: Uri::from_static("/a?b=c"),
        headers,
        forwarding: std::rc::Rc::new(Forwarding::new(Arrival {
            client: [192, 0, 2, 7].into(),
            is_https: true,
            authority: "app.test",
        })),
        source: Source::Kept(body.clone()),
        body_bytes_max: u64::MAX,
        timeouts: RouteTimeouts {
            connect_ms: 5_000,
            first_byte_ms: 5_000,
            body_idle_ms: 5_000,
        },
        progress: None,
        is_upgrade: false,
    }
}

/// What a reader of one answer makes of these bytes when they come in pieces of `step`.
fn read(answer: &[u8], step: usize, method: &Method) -> Result<Read, WireError> {
    let mut buffer = BytesMut::new();
    let mut pieces = answer.chunks(step);
    let mut head = loop {
        if let Some(head) = head::read(&mut buffer, method)? {
            break head;
        }
        buffer.extend_from_slice(pieces.next().ok_or(WireError::Closed)?);
    };
    let mut got = Read {
        status: head.status.as_u16(),
        headers: head.headers,
        is_kept: head.is_kept,
        ..Read::default()
    };
    loop {
        match head.framing.take(&mut buffer)? {
            Piece::Data(bytes) => got.body.extend_from_slice(&bytes),
            Piece::Trailers(trailers) => got.trailers = trailers,
            Piece::End => break,
            Piece::More => match pieces.next() {
                Some(piece) => buffer.extend_from_slice(piece),
                None if head.framing == Framing::Close => break,
                None => return Err(WireError::Closed),
            },
        }
    }
    got.rest = buffer.to_vec();
    got.rest.extend(pieces.flatten());
    Ok(got)
}

#[derive(Debug, Default, PartialEq)]
struct Read {
    status: u16,
    headers: HeaderMap,
    body: Vec<u8>,
    trailers: HeaderMap,
    rest: Vec<u8>,
    is_kept: bool,
}

/// The same however it is cut, or broken however it is cut.
fn in_any_pieces(answer: &str, method: &Method) -> Option<Read> {
    let whole = read(answer.as_bytes(), usize::MAX, method).ok();
    for step in 1..answer.len() {
        let cut = read(answer.as_bytes(), step, method).ok();
        assert_eq!(cut, whole, "{answer:?} in pieces of {step}");
    }
    whole
}

#[test]
fn a_body_ends_where_its_head_says() {
    let cases: &[(&str, Method, &str, &str, bool)] = &[
        // RFC 9112, 6.3: by length, by chunks, with the connection.
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabcd",
            Method::GET,
            "abc",
            "d",
            true,
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 3, 3\r\ncontent-length: 3\r\n\r\nabc",
            Method::GET,
            "abc",
            "",
            true,
        ),
        ("HTTP/1.1 200 OK\r\n\r\nabc", Method::GET, "abc", "", false),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nx",
            Method::GET,
            "abc",
            "x",
            true,
        ),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\nA;q=\"\r\"\r\n",
            Method::GET,
            "",
            "",
            false,
        ),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3  \r\nabc\r\n0 ; last\r\n\r\n",
            Method::GET,
            "abc",
            "",
            true,
        ),
        // A size that is filled up.
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0000000000000000000003\r\nabc\r\n0\r\n\r\n",
            Method::GET,
            "abc",
            "",
            true,
        ),
        // Chunks beside a length: the chunks are true.
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 9\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
            Method::GET,
            "a",
            "",
            true,
        ),
        // No body, whatever the head says.
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n",
            Method::HEAD,
            "",
            "",
            true,
        ),
        (
            "HTTP/1.1 304 Not Modified\r\ncontent-length: 3\r\n\r\n",
            Method::GET,
            "",
            "",
            true,
        ),
        (
            "HTTP/1.1 204 No Content\r\n\r\n",
            Method::DELETE,
            "",
            "",
            true,
        ),
        // Interim answers are skipped.
        (
            "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n",
            Method::PUT,
            "",
            "",
            true,
        ),
        // RFC 9112, 9.3: who keeps a connection.
        (
            "HTTP/1.1 200 OK\r\nconnection: x, Close\r\ncontent-length: 0\r\n\r\n",
            Method::GET,
            "",
            "",
            false,
        ),
        (
            "HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\na",
            Method::GET,
            "a",
            "",
            false,
        ),
        (
            "HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 1\r\n\r\na",
            Method::GET,
            "a",
            "",
            true,
        ),
    ];
    for (answer, method, body, rest, is_kept) in cases {
        let Some(read) = in_any_pieces(answer, method) else {
            assert!(answer.contains("q=\"\r"), "{answer:?} was refused");
            continue;
        };
        assert_eq!(String::from_utf8_lossy(&read.body), *body, "{answer:?}");
        assert_eq!(String::from_utf8_lossy(&read.rest), *rest, "{answer:?}");
        assert_eq!(read.is_kept, *is_kept, "{answer:?}");
        if let Some(length) = read.headers.get(CONTENT_LENGTH) {
            let is_plain = length.as_bytes().iter().all(u8::is_ascii_digit);
            let count = read.headers.get_all(CONTENT_LENGTH).iter().count();
            assert!(is_plain && count == 1, "{answer:?}");
        }
        let has_both = read.headers.contains_key("transfer-encoding")
            && read.headers.contains_key(CONTENT_LENGTH);
        assert!(!has_both, "{answer:?}");
    }
}

#[test]
fn trailers_are_read() {
    let answer = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nx-sum: 7\r\nx-sum: 8\r\n\r\n";
    let read = in_any_pieces(answer, &Method::GET).expect("an answer");
    let sums: Vec<_> = read.trailers.get_all("x-sum").iter().collect();
    assert_eq!(sums, ["7", "8"]);
}

#[test]
fn what_breaks_the_grammar_is_no_answer() {
    for answer in [
        "HTTP/2 200 OK\r\n\r\n",
        "HTTP/1.1 20 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
        "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: +1\r\n\r\na",
        "HTTP/1.1 200 OK\r\ncontent-length:\r\n\r\n",
        "HTTP/1.1 200 OK\r\nbad name: x\r\n\r\n",
        "HTTP/1.1 200 OK\r\nx: a\0b\r\n\r\n",
        "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\ng\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3 5\r\nabc\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nabc\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1111111111111111\r\na",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\na\n0\n\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nab",
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n",
    ] {
        assert_eq!(in_any_pieces(answer, &Method::GET), None, "{answer:?}");
    }
    let long = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "a".repeat(32 << 10));
    assert!(read(long.as_bytes(), 4096, &Method::GET).is_err());
}

#[test]
fn a_request_says_how_long_it_is_once_and_in_our_words() {
    let body = Bytes::from_static(b"hello");
    let mut wrong = asking(Method::POST, &body);
    wrong.headers.insert(CONTENT_LENGTH, HeaderValue::from(999));
    wrong
        .headers
        .insert(TE_NAME, HeaderValue::from_static("trailers"));
    let mut text = Vec::new();
    head::write(&wrong, body.len(), &mut text);
    let text = String::from_utf8(text).expect("text");
    assert_eq!(
        text,
        "POST /a?b=c HTTP/1.1\r\nhost: app.test\r\nx-one: 1\r\nte: trailers\r\nx-forwarded-for: 192.0.2.7\r\nx-forwarded-host: app.test\r\nx-forwarded-proto: https\r\nforwarded: for=192.0.2.7;host=\"app.test\";proto=https\r\nconnection: te\r\ncontent-length: 5\r\n\r\n"
    );
    let mut text = Vec::new();
    head::write(&asking(Method::GET, &Bytes::new()), 0, &mut text);
    assert!(
        !String::from_utf8(text)
            .expect("text")
            .contains("content-length")
    );
    let mut text = Vec::new();
    head::write(&asking(Method::POST, &Bytes::new()), 0, &mut text);
    assert!(
        String::from_utf8(text)
            .expect("text")
            .contains("content-length: 0\r\n")
    );
}

const TE_NAME: http::HeaderName = http::header::TE;

async fn pair() -> (Wire, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let place = Descriptors::new(None, 1, 1, 0).take().expect("no limit");
    let wire = Wire::connect(address, Duration::from_secs(5), place).await;
    let (backend, _) = listener.accept().await.expect("a connection");
    (wire.expect("connected"), backend)
}

async fn read_until(backend: &mut TcpStream, end: &[u8]) -> Vec<u8> {
    let mut got = Vec::new();
    while !got.ends_with(end) {
        assert!(backend.read_buf(&mut got).await.expect("read") > 0);
    }
    got
}

async fn whole(mut body: WireBody) -> (Vec<u8>, After) {
    use http_body_util::BodyExt as _;
    let mut got = Vec::new();
    while let Some(frame) = body.frame().await {
        got.extend(frame.expect("a frame").into_data().expect("data"));
    }
    (got, body.into_wire())
}

#[tokio::test]
async fn a_connection_carries_one_request_after_another() {
    let (mut wire, mut backend) = pair().await;
    let large = Bytes::from(vec![b'x'; 60 << 10]);
    for (method, body) in [
        (Method::GET, Bytes::new()),
        (Method::PUT, Bytes::from_static(b"small")),
        (Method::PUT, large),
    ] {
        let outgoing = asking(method, &body);
        let answered = async {
            read_until(
                &mut backend,
                b"\r\n\r\n"
                    .as_slice()
                    .get(..4)
                    .filter(|_| body.is_empty())
                    .unwrap_or(&body),
            )
            .await;
            let answer = b"HTTP/1.1 200 Fine\r\ncontent-length: 4\r\n\r\n";
            backend.write_all(answer).await.expect("written");
            backend.write_all(b"yes!").await.expect("written");
        };
        let (response, ()) = tokio::join!(wire.send(&outgoing, &body), answered);
        let response = response.expect("an answer");
        let reason = response.extensions().get::<hyper::ext::ReasonPhrase>();
        assert_eq!(
            reason.map(hyper::ext::ReasonPhrase::as_bytes),
            Some(&b"Fine"[..])
        );
        let (got, kept) = whole(response.into_body()).await;
        assert_eq!(got, b"yes!");
        let After::Kept(next) = kept else {
            panic!("not kept");
        };
        wire = next;
        assert!(wire.is_open());
    }
    drop(backend);
    // The news has to reach us first.
    wire.stream.readable().await.expect("readable");
    assert!(!wire.is_open());
}

#[tokio::test]
async fn an_answer_that_comes_before_the_request_is_taken_is_passed_on_and_the_rest_is_still_sent()
{
    let (wire, mut backend) = pair().await;
    // More than the sockets hold while nobody reads.
    let body = Bytes::from(vec![b'x'; 16 << 20]);
    let outgoing = asking(Method::PUT, &body);
    let backend_side = async {
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\no";
        backend.write_all(answer).await.expect("written");
        let mut taken = 0;
        let mut scratch = vec![0; 64 << 10];
        while taken < body.len() {
            taken += backend.read(&mut scratch).await.expect("read");
        }
        backend.write_all(b"k").await.expect("written");
    };
    let client_side = async {
        let response = wire.send(&outgoing, &body).await.expect("an answer");
        whole(response.into_body()).await
    };
    let ((got, kept), ()) = tokio::join!(client_side, backend_side);
    assert_eq!(got, b"ok");
    assert!(matches!(kept, After::Kept(_)), "{kept:?}");
}

#[tokio::test]
async fn how_far_a_request_got_is_told() {
    // Closed after it was read: it may have been seen.
    let (wire, mut backend) = pair().await;
    let body = Bytes::new();
    let outgoing = asking(Method::GET, &body);
    let closing = async {
        read_until(&mut backend, b"\r\n\r\n").await;
        drop(backend);
    };
    let (answered, ()) = tokio::join!(wire.send(&outgoing, &body), closing);
    let (sent, error) = answered.expect_err("no answer");
    assert_eq!(sent, Sent::Something, "{error}");
    // An answer that was not asked for is one all the same: it is not sent again.
    let (wire, mut backend) = pair().await;
    let switching = async {
        read_until(&mut backend, b"\r\n\r\n").await;
        let answer = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n";
        backend.write_all(answer).await.expect("written");
    };
    let (answered, ()) = tokio::join!(wire.send(&outgoing, &body), switching);
    let (sent, _) = answered.expect_err("no answer");
    assert_eq!(sent, Sent::Answered);
}

#[tokio::test]
async fn a_connection_in_doubt_is_not_used_again() {
    for answer in [
        // Something follows that nobody asked for.
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok",
        "HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
    ] {
        let (wire, mut backend) = pair().await;
        let body = Bytes::new();
        let outgoing = asking(Method::GET, &body);
        let answering = async {
            read_until(&mut backend, b"\r\n\r\n").await;
            backend.write_all(answer.as_bytes()).await.expect("written");
        };
        let (answered, ()) = tokio::join!(wire.send(&outgoing, &body), answering);
        let (got, kept) = whole(answered.expect("an answer").into_body()).await;
        assert_eq!(got, b"ok");
        assert!(matches!(kept, After::Closed), "{answer:?}");
    }
    // Something came while it was idle.
    let (wire, mut backend) = pair().await;
    assert!(wire.is_open());
    backend
        .write_all(b"HTTP/1.1 408 Timeout\r\n\r\n")
        .await
        .expect("written");
    wire.stream.readable().await.expect("readable");
    assert!(!wire.is_open());
}

#[tokio::test]
async fn who_closes_in_the_middle_of_a_request_may_have_seen_it() {
    let (wire, mut backend) = pair().await;
    let body = Bytes::from(vec![b'x'; 16 << 20]);
    let outgoing = asking(Method::POST, &body);
    let closing = async {
        let mut first = [0; 64];
        backend.read_exact(&mut first).await.expect("the head");
        drop(backend);
    };
    let (answered, ()) = tokio::join!(wire.send(&outgoing, &body), closing);
    let (sent, error) = answered.expect_err("no answer");
    assert_eq!(sent, Sent::Something, "{error}");
}

#[tokio::test]
async fn who_answers_early_still_gets_the_request_whole_and_nothing_of_it_is_kept() {
    let (wire, mut backend) = pair().await;
    let body = Bytes::from(vec![b'x'; 16 << 20]);
    let mut outgoing = asking(Method::PUT, &body);
    outgoing.source = Source::Empty;
    let answer = b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n";
    backend.write_all(answer).await.expect("written");
    let response = wire.send(&outgoing, &body).await.expect("an answer");
    let (_, after) = whole(response.into_body()).await;
    let After::Sending(wire) = after else {
        panic!("{after:?}");
    };
    let reading = async {
        let mut got = Vec::new();
        backend.read_to_end(&mut got).await.expect("read");
        got
    };
    let ((), got) = tokio::join!(wire.send_rest(), reading);
    assert!(got.ends_with(&body), "{} bytes", got.len());
    assert!(body.is_unique());
}

#[tokio::test]
async fn a_large_body_is_not_held_once_it_was_sent() {
    let (wire, mut backend) = pair().await;
    let body = Bytes::from(vec![b'x'; 60 << 10]);
    let mut outgoing = asking(Method::PUT, &body);
    outgoing.source = Source::Empty;
    let answering = async {
        read_until(&mut backend, &body).await;
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\no";
        backend.write_all(answer).await.expect("written");
    };
    let (answered, ()) = tokio::join!(wire.send(&outgoing, &body), answering);
    let _waiting = answered.expect("an answer");
    assert!(body.is_unique());
}

#[tokio::test]
async fn an_answer_nobody_can_read_is_an_answer_all_the_same() {
    let (wire, mut backend) = pair().await;
    let body = Bytes::new();
    let outgoing = asking(Method::GET, &body);
    let answering = async {
        read_until(&mut backend, b"\r\n\r\n").await;
        backend.write_all(b"what?\r\n\r\n").await.expect("written");
    };
    let (answered, ()) = tokio::join!(wire.send(&outgoing, &body), answering);
    let (sent, _) = answered.expect_err("no answer");
    assert_eq!(sent, Sent::Answered);
}

#[test]
fn many_fields_are_no_fault_and_too_many_are() {
    let answer = |fields: usize| {
        let fields: String = (0..fields).map(|n| format!("x-{n}: {n}\r\n")).collect();
        format!("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n{fields}\r\n")
    };
    let read = |fields| read(answer(fields).as_bytes(), usize::MAX, &Method::GET);
    assert_eq!(read(199).expect("an answer").headers["x-198"], "198");
    assert!(read(200).is_err());
}
