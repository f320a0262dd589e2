//! Clients that are slow on purpose, and those that only look like it.

#![expect(
    clippy::disallowed_methods,
    reason = "tests drive real processes, clocks and tasks"
)]

mod support;

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use support::*;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::{sleep, timeout},
};

/// What a client's patience is here; a connection between requests may idle as long.
const PATIENCE_MS: u64 = 1_000;
const TICK: Duration = Duration::from_millis(100);

async fn started() -> (Proxy, Upstream, SocketAddr) {
    let proxy = Proxy::start_with(|settings| settings.worker.keep_alive_ms = PATIENCE_MS).await;
    let upstream = Upstream::start("one").await;
    let mut wanted = snapshot(1, service(vec![group(1, 1, vec![upstream.backend()])]));
    wanted.routes[0].timeouts.body_idle_ms = PATIENCE_MS;
    proxy.put(&wanted).await;
    let address = proxy.http().await;
    (proxy, upstream, address)
}

/// Sends a body in pieces, one each tick; gives the answer's status, and after how long it came.
async fn upload(address: SocketAddr, length: usize, piece: usize) -> (u16, Duration) {
    let wire = Wire::connect(address).await.expect("connected");
    let (mut read, mut write) = wire.stream.into_split();
    let begun = Instant::now();
    let sending = tokio::spawn(async move {
        let head = format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n");
        let mut left = length;
        let mut sent = write.write_all(head.as_bytes()).await;
        while left > 0 && sent.is_ok() {
            let count = piece.min(left);
            sent = write.write_all(&vec![b'b'; count]).await;
            left -= count;
            sleep(TICK).await;
        }
        // The other half stays open until the answer was read.
        sleep(WAIT).await;
        drop(write);
    });
    let mut answer = [0; 12];
    let got = timeout(WAIT, read.read_exact(&mut answer)).await;
    sending.abort();
    got.expect("neither cut nor answered").expect("an answer");
    let status = String::from_utf8_lossy(&answer[9..]).parse();
    (status.expect("a status"), begun.elapsed())
}

#[tokio::test]
async fn a_body_that_never_pauses_long_and_never_ends_is_cut() {
    let (_proxy, upstream, address) = started().await;
    // One that is kept before it is sent on, and one that is streamed.
    for length in [10_000, 200_000] {
        let (status, _) = upload(address, length, 2).await;
        assert_eq!(status, 408, "{length}");
    }
    let whole = |body: &bytes::Bytes| body.len() >= 10_000;
    let seen = upstream.seen.lock().expect("no panic");
    assert!(!seen.iter().any(|seen| whole(&seen.body)));
}

#[tokio::test]
async fn a_slow_but_steady_upload_arrives() {
    let (_proxy, upstream, address) = started().await;
    for length in [30_000, 90_000] {
        let (status, time) = upload(address, length, length / 30).await;
        assert_eq!(status, 200, "{length}");
        assert!(time > Duration::from_secs(2), "{time:?}");
        assert_eq!(upstream.last().body.len(), length);
    }
}

#[tokio::test]
async fn a_reader_that_takes_almost_nothing_is_cut_and_a_slow_one_is_not() {
    const SIZE: usize = 12 << 20;
    let (_proxy, _upstream, address) = started().await;
    let ask = format!("GET /big/{SIZE} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    let read_all = |piece: usize, ticks: usize| {
        let ask = ask.clone();
        async move {
            let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
            socket
                .set_recv_buffer_size(32 << 10)
                .expect("a small window");
            let mut stream = socket.connect(address).await.expect("connected");
            stream.write_all(ask.as_bytes()).await.expect("sent");
            let mut buffer = vec![0; piece];
            let mut total = 0;
            for _ in 0..ticks {
                total += stream.read(&mut buffer).await.unwrap_or(0);
                sleep(TICK).await;
            }
            // What is left, as fast as it comes.
            let mut buffer = vec![0; 256 << 10];
            while let Ok(Ok(count @ 1..)) = timeout(WAIT, stream.read(&mut buffer)).await {
                total += count;
            }
            total
        }
    };
    let total = read_all(10, 35).await;
    assert!(
        total < SIZE,
        "all of it was kept for a client that took 350 bytes in 3.5 s"
    );
    // 200 kB a second.
    let total = read_all(20_000, 50).await;
    assert!(total >= SIZE, "cut after {total}");
}

#[tokio::test]
async fn streams_with_little_to_say_are_nobodys_slowness() {
    let (_proxy, _upstream, address) = started().await;
    let mut wire = Wire::connect(address).await.expect("connected");
    wire.send("GET /sse/100 HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .expect("sent");
    wire.head().await;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(4 * PATIENCE_MS) {
        assert!(wire.chunk().await.is_some_and(|chunk| !chunk.is_empty()));
    }
}
