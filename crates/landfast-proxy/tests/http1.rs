//! HTTP/1.1 and 1.0 as clients of every age speak it: versions, connections that are kept and that are not, requests in a row,
//! bodies that are waited for, and clients that leave.

#![allow(
    clippy::disallowed_methods,
    reason = "tests drive real processes, clocks and tasks"
)]

mod support;

use std::{net::SocketAddr, time::Duration};

use support::{Proxy, Upstream, Wire, eventually, group, key, service, serving, snapshot};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

async fn start() -> (Proxy, Upstream, SocketAddr) {
    let proxy = Proxy::start().await;
    let upstream = Upstream::start("one").await;
    let groups = vec![group(1, 1, vec![upstream.backend()])];
    proxy.put(&snapshot(1, service(groups))).await;
    let address = proxy.http().await;
    (proxy, upstream, address)
}

#[tokio::test]
async fn an_older_client_is_answered_in_its_version_and_kept_where_it_asks() {
    let (_proxy, upstream, address) = start().await;
    let mut wire = Wire::connect(address).await.expect("connected");
    for _ in 0..2 {
        let request = "GET / HTTP/1.0\r\nhost: a\r\nconnection: Keep-Alive\r\n\r\n";
        wire.send(request).await.expect("sent");
        let got = wire.answer().await.expect("an answer");
        assert!(got.headers.starts_with("HTTP/1.0 200 OK\r\n"));
        assert_eq!(got.header("connection").as_deref(), Some("keep-alive"));
        assert_eq!(got.text(), "one");
    }
    wire.send("GET / HTTP/1.0\r\nhost: a\r\n\r\n")
        .await
        .expect("sent");
    let got = wire.answer().await.expect("an answer");
    assert_eq!(got.header("connection").as_deref(), Some("close"));
    assert!(wire.rest().await.is_empty());
    // It knows no chunks: what has no length ends with the connection, whatever was asked for.
    let mut wire = Wire::connect(address).await.expect("connected");
    let request = "GET /drip/3/1 HTTP/1.0\r\nhost: a\r\nconnection: keep-alive\r\n\r\n";
    wire.send(request).await.expect("sent");
    let head = wire.head().await.to_ascii_lowercase();
    assert!(
        !head.contains("transfer-encoding") && head.contains("connection: close"),
        "{head}"
    );
    assert_eq!(wire.rest().await, b"piece 0\npiece 1\npiece 2\n");
    assert_eq!(upstream.count(), 4);
}

#[tokio::test]
async fn answers_without_a_body_are_followed_by_the_next() {
    let (_proxy, _upstream, address) = start().await;
    let mut wire = Wire::connect(address).await.expect("connected");
    wire.send("HEAD /big/5000 HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .expect("sent");
    let head = wire.head().await.to_ascii_lowercase();
    assert!(head.contains("content-length: 5000\r\n"), "{head}");
    wire.send("GET /status/204 HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .expect("sent");
    let head = wire.head().await.to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 204 "), "{head}");
    assert!(
        !head.contains("content-length") && !head.contains("transfer-encoding"),
        "{head}"
    );
    wire.send("GET /status/304 HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .expect("sent");
    assert!(wire.head().await.starts_with("HTTP/1.1 304 "));
    wire.send("HEAD /drip/1/1 HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .expect("sent");
    assert!(wire.head().await.starts_with("HTTP/1.1 200 "));
    wire.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .expect("sent");
    let got = wire.answer().await.expect("an answer");
    assert_eq!(got.text(), "one");
    let date = got.header("date").expect("a date");
    httpdate::parse_http_date(&date).expect("a date as HTTP writes it");
}

#[tokio::test]
async fn requests_in_a_row_are_answered_in_order_up_to_the_last() {
    let (_proxy, upstream, address) = start().await;
    let mut wire = Wire::connect(address).await.expect("connected");
    let body = "b".repeat(70_000);
    let requests = [
        "GET /slow/100 HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(),
        format!("POST /status/201 HTTP/1.1\r\nhost: a\r\ncontent-length: 70000\r\n\r\n{body}"),
        "POST /status/202 HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n".to_owned(),
        "GET /status/203 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n".to_owned(),
        "GET /never HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(),
    ];
    wire.send(&requests.concat()).await.expect("sent");
    for status in [200, 201, 202, 203] {
        let got = wire.answer().await.expect("an answer");
        assert_eq!(got.status, status);
        let is_last = got.header("connection").as_deref() == Some("close");
        assert_eq!(is_last, status == 203);
    }
    assert!(wire.rest().await.is_empty());
    let seen = upstream.seen.lock().expect("no panic");
    let targets: Vec<_> = seen.iter().map(|seen| seen.target.as_str()).collect();
    assert_eq!(
        targets,
        ["/slow/100", "/status/201", "/status/202", "/status/203"]
    );
    assert_eq!(seen[1].body.len(), 70_000);
    assert_eq!(&seen[2].body[..], b"abc");
}

#[tokio::test]
async fn a_client_that_waits_is_told_to_go_on_once_its_body_is_wanted() {
    let (proxy, upstream, address) = start().await;
    let mut limited = snapshot(2, service(vec![group(1, 1, vec![upstream.backend()])]));
    limited.routes[0].limits.body_bytes_max = 200_000;
    proxy.put(&limited).await;
    let mut wire = Wire::connect(address).await.expect("connected");
    // One that is kept before it is sent, one that is passed on as it comes, and one of unknown length.
    for (framing, body) in [
        ("content-length: 5", "first".to_owned()),
        ("content-length: 100000", "b".repeat(100_000)),
        (
            "transfer-encoding: chunked",
            "4\r\nlast\r\n0\r\n\r\n".to_owned(),
        ),
    ] {
        let head =
            format!("POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\n{framing}\r\n\r\n");
        wire.send(&head).await.expect("sent");
        assert_eq!(wire.head().await, "HTTP/1.1 100 Continue\r\n\r\n");
        wire.send(&body).await.expect("sent");
        let got = wire.answer().await.expect("an answer");
        assert_eq!(
            (got.status, got.text()),
            (200, "one".to_owned()),
            "{framing}"
        );
        assert!(!upstream.last().headers.contains_key("expect"));
    }
    // Whoever does not wait is told nothing.
    let head = "POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\nhi";
    wire.send(head).await.expect("sent");
    assert_eq!(wire.answer().await.expect("an answer").status, 200);
    // A body that is not wanted is not asked for.
    let head =
        "POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 300000\r\n\r\n";
    wire.send(head).await.expect("sent");
    let got = wire.answer().await.expect("an answer");
    assert_eq!(got.status, 413);
    assert_eq!(got.header("connection").as_deref(), Some("close"));
    assert!(wire.rest().await.is_empty());
}

#[tokio::test]
async fn a_client_that_leaves_is_noticed_while_its_backend_thinks_and_while_it_sends() {
    let (proxy, upstream, address) = start().await;
    let gone = || async {
        let stats = proxy.control.stats().await.expect("counts");
        let backend = &stats.backends["one"];
        (stats.services[&key()].client_gone, backend.in_flight)
    };
    let mut wire = Wire::connect(address).await.expect("connected");
    wire.send("GET /slow/60000 HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .expect("sent");
    eventually("the request is there", || async { upstream.count() == 1 }).await;
    drop(wire);
    eventually("the first is gone", || async { gone().await == (1, 0) }).await;
    let mut wire = Wire::connect(address).await.expect("connected");
    wire.send("GET /drip/1000/50 HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .expect("sent");
    wire.head().await;
    wire.chunk().await.expect("a piece");
    drop(wire);
    eventually("the second is gone", || async { gone().await == (2, 0) }).await;
    // In the middle of a body that is kept, and of one that is passed on.
    for (length, count) in [(1_000, 3), (100_000, 4)] {
        let mut wire = Wire::connect(address).await.expect("connected");
        let head = format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\nabc");
        wire.send(&head).await.expect("sent");
        tokio::time::sleep(Duration::from_millis(50)).await;
        drop(wire);
        eventually("it is gone", || async {
            let log = std::fs::read_to_string(proxy.access_log()).unwrap_or_default();
            gone().await.1 == 0 && log.lines().count() == count
        })
        .await;
    }
    assert!(upstream.count() <= 3, "a body that was to be kept was sent");
}

#[tokio::test]
async fn a_head_that_began_behind_another_request_has_no_more_time_than_any() {
    let proxy = Proxy::start_with(|settings| settings.worker.header_read_ms = 300).await;
    let upstream = Upstream::start("one").await;
    let groups = vec![group(1, 1, vec![upstream.backend()])];
    proxy.put(&snapshot(1, service(groups))).await;
    let mut wire = Wire::connect(proxy.http().await).await.expect("connected");
    wire.send("GET / HTTP/1.1\r\nhost: a\r\n\r\nGET /half HTT")
        .await
        .expect("sent");
    assert_eq!(wire.answer().await.expect("an answer").status, 200);
    assert!(wire.rest().await.is_empty(), "no answer to half a head");
    assert_eq!(upstream.count(), 1);
}

#[tokio::test]
async fn what_a_client_says_before_its_upgrade_is_answered_reaches_the_backend() {
    let proxy = Proxy::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let backend = serving("raw", listener.local_addr().expect("an address"));
    proxy
        .put(&snapshot(1, service(vec![group(1, 1, vec![backend])])))
        .await;
    // A text message of two letters, masked with zeros.
    let frame = b"\x81\x82\0\0\0\0hi";
    let upstream = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut seen = Vec::new();
        while !seen.ends_with(b"\r\n\r\n") {
            assert!(stream.read_buf(&mut seen).await.expect("readable") > 0);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        let answer = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
        stream.write_all(answer).await.expect("written");
        let mut got = vec![0; frame.len()];
        stream.read_exact(&mut got).await.expect("readable");
        stream.write_all(b"\x81\x02yo").await.expect("written");
        got
    });
    let mut wire = Wire::connect(proxy.http().await).await.expect("connected");
    let mut request =
        b"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n".to_vec();
    request.extend_from_slice(frame);
    wire.stream.write_all(&request).await.expect("sent");
    assert!(
        wire.head()
            .await
            .starts_with("HTTP/1.1 101 Switching Protocols\r\n")
    );
    assert_eq!(wire.bytes(4).await.expect("a frame"), b"\x81\x02yo");
    assert_eq!(upstream.await.expect("no panic"), frame);
}
