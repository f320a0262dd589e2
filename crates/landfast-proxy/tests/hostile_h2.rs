//! Floods of HTTP/2 against a real proxy, as raw frames (RFC 9113): bounded, ended, and others are served meanwhile.
//! And WebSockets, hostile or not: every byte passes as it is.

#![expect(
    clippy::disallowed_methods,
    reason = "tests drive real processes, clocks and tasks"
)]

mod support;

use std::{net::SocketAddr, time::Duration};

use support::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// More than a socket's buffers hold: who writes so much is read, or blocked, or cut off.
const FLOOD_BYTES: usize = 64 << 20;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short frame");
    let mut bytes = length.to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// GET / of host `a`, in HPACK without a table.
fn plain_get() -> Vec<u8> {
    vec![0x82, 0x86, 0x84, 0x01, 1, b'a']
}

async fn open(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.expect("connected");
    let hello = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
    stream.write_all(&hello).await.expect("sent");
    stream
}

async fn start() -> (Proxy, Upstream, SocketAddr) {
    let proxy = Proxy::start().await;
    let upstream = Upstream::start("one").await;
    let wanted = service(vec![group(1, 1, vec![upstream.backend()])]);
    proxy.put(&snapshot(1, wanted)).await;
    let address = proxy.http().await;
    (proxy, upstream, address)
}

async fn others_are_served(address: SocketAddr) {
    for _ in 0..5 {
        assert_eq!(get(address, "/").await.expect("an answer").status, 200);
    }
}

/// Writes until all is sent, the connection is cut, or nobody reads any more. Answers how much went out.
async fn flood(stream: &mut TcpStream, piece: &[u8], bytes_max: usize) -> usize {
    let mut sent = 0;
    while sent < bytes_max {
        let write = tokio::time::timeout(Duration::from_secs(2), stream.write(piece));
        match write.await {
            Ok(Ok(count)) => sent += count,
            Ok(Err(_)) | Err(_) => break,
        }
    }
    sent
}

/// Reads to the end of the connection; tells whether a GOAWAY with an error was among the frames.
async fn is_sent_away(mut stream: TcpStream) -> bool {
    let mut bytes = Vec::new();
    let mut buffer = [0; 16 << 10];
    loop {
        let read = tokio::time::timeout(WAIT, stream.read(&mut buffer));
        match read.await.expect("the connection ends") {
            Ok(0) | Err(_) => break,
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
        }
    }
    let mut left = &bytes[..];
    while let Some((head, rest)) = left.split_at_checked(9) {
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        if head[3] == GOAWAY {
            return rest.get(4..8).is_some_and(|code| code != [0; 4]);
        }
        left = rest.get(length..).unwrap_or_default();
    }
    false
}

#[tokio::test]
async fn rapid_resets_end_the_connection_and_reach_few_backends() {
    let (_proxy, upstream, address) = start().await;
    let mut stream = open(address).await;
    let mut bytes = Vec::new();
    for number in 0..5_000_u32 {
        let id = number * 2 + 1;
        let flags = END_STREAM | END_HEADERS;
        bytes.extend(frame(HEADERS, flags, id, &plain_get()));
        bytes.extend(frame(RST_STREAM, 0, id, &8_u32.to_be_bytes()));
    }
    // It may be cut off before it has sent all.
    let _cut = stream.write_all(&bytes).await;
    assert!(Box::pin(is_sent_away(stream)).await);
    assert!(upstream.count() < 1_000, "{}", upstream.count());
    others_are_served(address).await;
}

#[tokio::test]
async fn continuations_without_end_are_cut_off() {
    let (_proxy, upstream, address) = start().await;
    let mut stream = open(address).await;
    let begin = frame(HEADERS, END_STREAM, 1, &plain_get());
    stream.write_all(&begin).await.expect("sent");
    let field = [&[0, 1, b'x', 100][..], &[b'y'; 100]].concat();
    let piece = frame(CONTINUATION, 0, 1, &field);
    let sent = flood(&mut stream, &piece, FLOOD_BYTES).await;
    assert!(sent < FLOOD_BYTES, "all of it was taken");
    assert_eq!(upstream.count(), 0);
    others_are_served(address).await;
}

#[tokio::test]
async fn a_header_bomb_reaches_no_backend() {
    let (_proxy, upstream, address) = start().await;
    let mut stream = open(address).await;
    // One entry of 3,000 bytes into the dynamic table, then named 10,000 times by one byte each.
    let mut block = plain_get();
    block.extend([0x40, 1, b'x', 0x7f, 0xb9, 0x16]);
    block.extend(vec![b'y'; 3_000]);
    block.extend(vec![0xbe; 10_000]);
    let bytes = frame(HEADERS, END_STREAM | END_HEADERS, 1, &block);
    stream.write_all(&bytes).await.expect("sent");
    let mut buffer = vec![0; 64 << 10];
    let read = tokio::time::timeout(WAIT, stream.read(&mut buffer));
    assert!(read.await.is_ok());
    others_are_served(address).await;
    let seen = upstream.seen.lock().expect("no panic");
    assert!(seen.iter().all(|seen| !seen.headers.contains_key("x")));
}

#[tokio::test]
async fn pings_and_settings_that_nobody_reads_the_answers_of_are_not_kept() {
    let (_proxy, _upstream, address) = start().await;
    for piece in [
        frame(PING, 0, 0, &[7; 8]).repeat(1_000),
        frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0xff, 0xff]).repeat(1_000),
    ] {
        let mut stream = open(address).await;
        // The answers are never read: once the way back is full nothing more is taken.
        let sent = flood(&mut stream, &piece, FLOOD_BYTES).await;
        assert!(sent < FLOOD_BYTES, "all of it was taken");
        others_are_served(address).await;
    }
}

#[tokio::test]
async fn what_the_scanner_refuses_is_refused_by_http2_as_well() {
    let (_proxy, upstream, address) = start().await;
    for path in ["/x/../probe", "/x/%2e%2e/probe", "/probe%00", "/a\\b"] {
        let mut stream = open(address).await;
        let mut block = vec![0x82, 0x86, 0x01, 1, b'a', 0x04];
        block.push(u8::try_from(path.len()).expect("a short path"));
        block.extend(path.as_bytes());
        let bytes = frame(HEADERS, END_STREAM | END_HEADERS, 1, &block);
        stream.write_all(&bytes).await.expect("sent");
        // Of stream 1, and `:status: 400`: entry 12 of the static table.
        let mut seen = Vec::new();
        let mut buffer = [0; 4096];
        while !seen.windows(5).any(|window| window == [0, 0, 0, 1, 0x8c]) {
            let read = tokio::time::timeout(WAIT, stream.read(&mut buffer));
            let count = read.await.expect("an answer").expect("readable");
            assert!(count > 0, "{path}");
            seen.extend_from_slice(&buffer[..count]);
        }
    }
    assert_eq!(upstream.count(), 0);
}

/// A backend that takes any upgrade and then sends back what it gets.
async fn echo() -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let address = listener.local_addr().expect("an address");
    let task = tokio::spawn(async move {
        let mut tasks = tokio::task::JoinSet::new();
        loop {
            let (mut stream, _) = listener.accept().await.expect("accepted");
            tasks.spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = stream.read_u8().await else { return };
                    head.push(byte);
                }
                let accept = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
                if stream.write_all(accept).await.is_err() {
                    return;
                }
                let (mut read, mut write) = stream.split();
                let _ended = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    (address, task)
}

#[tokio::test]
async fn a_websocket_passes_every_byte_as_it_is() {
    let proxy = Proxy::start().await;
    let (backend, task) = echo().await;
    let wanted = service(vec![group(1, 1, vec![serving("echo", backend)])]);
    proxy.put(&snapshot(1, wanted)).await;
    let address = proxy.http().await;
    let ask = "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    let mask = [1, 2, 3, 4];
    let frame = |first: u8, payload: &[u8]| {
        let length = u8::try_from(payload.len()).expect("a short frame");
        let masked = payload.iter().zip(mask.iter().cycle());
        let mut bytes = vec![first, 0x80 | length];
        bytes.extend(mask);
        bytes.extend(masked.map(|(byte, mask)| byte ^ mask));
        bytes
    };
    let close = |code: u16| frame(0x88, &code.to_be_bytes());
    let cases: Vec<Vec<u8>> = vec![
        frame(0x81, b"hello"),
        // Fragments with a ping between them.
        [frame(0x01, b"hel"), frame(0x89, b"p"), frame(0x80, b"lo")].concat(),
        // Text that is no UTF-8, cut within a character, reserved opcodes and bits: the endpoints judge, not we.
        frame(0x81, &[0xff, 0xfe]),
        [frame(0x01, &[0xe2, 0x82]), frame(0x80, &[0xac])].concat(),
        frame(0x83, b"x"),
        frame(0xf1, b"x"),
        frame(0x8f, b""),
        [frame(0x80, b"no beginning"), frame(0x81, b"")].concat(),
        b"GET /hidden HTTP/1.1\r\nhost: a\r\n\r\n".to_vec(),
        close(1000),
        close(1001),
        close(4999),
        close(1),
        frame(0x88, &[3]),
    ];
    for bytes in cases {
        // In one piece with the request, and after the answer.
        for is_early in [true, false] {
            let mut wire = Wire::connect(address).await.expect("connected");
            wire.stream.write_all(ask.as_bytes()).await.expect("sent");
            if is_early {
                wire.stream.write_all(&bytes).await.expect("sent");
            }
            assert!(wire.head().await.starts_with("HTTP/1.1 101"));
            if !is_early {
                for piece in bytes.chunks(3) {
                    wire.stream.write_all(piece).await.expect("sent");
                }
            }
            assert_eq!(wire.bytes(bytes.len()).await.as_deref(), Some(&bytes[..]));
        }
    }
    task.abort();
}
