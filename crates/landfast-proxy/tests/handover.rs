//! A worker that is replaced keeps what it had begun, for as long as it may; holder and worker both move to the new binary.

#![expect(
    clippy::disallowed_methods,
    reason = "tests drive real processes, clocks and tasks"
)]

mod support;

use std::{net::SocketAddr, time::Duration};

use support::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinSet,
};

/// A backend that agrees to every WebSocket and then says nothing.
struct Quiet {
    address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Quiet {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Quiet {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let task = tokio::spawn(async move {
            let mut all = JoinSet::new();
            loop {
                let (mut stream, _) = listener.accept().await.expect("accepted");
                all.spawn(async move {
                    let (mut head, mut byte) = (Vec::new(), [0]);
                    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).await.unwrap_or(0) > 0 {
                        head.push(byte[0]);
                    }
                    let answer = "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
                    drop(stream.write_all(answer.as_bytes()).await);
                    while stream.read(&mut [0; 64]).await.unwrap_or(0) > 0 {}
                });
            }
        });
        Self { address, task }
    }
}

async fn websocket(address: SocketAddr) -> Wire {
    let mut wire = Wire::connect(address).await.expect("connected");
    let handshake = "GET /ws HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    wire.send(handshake).await.expect("sent");
    assert!(wire.head().await.starts_with("HTTP/1.1 101"));
    wire
}

/// The older workers, by process id.
async fn elders(proxy: &Proxy) -> Vec<u32> {
    let status = proxy.status().await;
    status.elders.iter().map(|elder| elder.pid).collect()
}

/// Reads until Close, and gives its code.
async fn close_code(mut wire: Wire) -> Option<u16> {
    let head = wire.bytes(2).await?;
    assert_eq!(head[0], 0x88, "a Close and nothing else");
    let payload = wire.bytes(usize::from(head[1])).await?;
    Some(u16::from_be_bytes([payload[0], payload[1]]))
}

#[tokio::test]
async fn drains_count_what_older_workers_hold_and_wait_for_nothing_else() {
    let proxy = Proxy::start().await;
    let (one, two) = (Quiet::start().await, Upstream::start("two").await);
    let table = |revision, first, second| {
        snapshot(
            revision,
            service(vec![group(1, 1, vec![first]), group(2, 0, vec![second])]),
        )
    };
    let serving_one = || serving("one", one.address);
    proxy.put(&table(1, serving_one(), two.backend())).await;
    let address = proxy.http().await;
    let held = websocket(address).await;
    let (first, _) = proxy.hand_over().await;
    let (second, _) = proxy.hand_over().await;
    assert_ne!(first.pid, second.pid);
    eventually("the one in the middle has nothing to keep", || async {
        !is_alive(second.pid) && elders(&proxy).await == [first.pid]
    })
    .await;
    let status = proxy.status().await;
    assert_eq!(status.backends["one"].streams_open, 1);

    // Another backend drains at once, whatever the oldest worker holds.
    let out = draining("two", two.address, 1_000, 1_000);
    proxy.put(&table(2, serving_one(), out.clone())).await;
    eventually("the oldest worker goes by the same table", || async {
        let status = proxy.status().await;
        !status.finishing && status.backends["two"].is_drained()
    })
    .await;
    // Its own is closed for by the worker that holds it, and only then drained.
    let status = proxy
        .put(&table(3, draining("one", one.address, 1_000, 1_000), out))
        .await;
    assert!(!status.backends["one"].is_drained());
    assert_eq!(close_code(held).await, Some(1012));
    eventually("drained, and the oldest worker is gone", || async {
        let status = proxy.status().await;
        status.backends["one"].is_drained() && status.elders.is_empty() && !is_alive(first.pid)
    })
    .await;
}

#[tokio::test]
async fn an_idle_connection_is_answered_once_more_however_late_it_asks() {
    let proxy = Proxy::start().await;
    let upstream = Upstream::start("one").await;
    proxy
        .put(&snapshot(
            1,
            service(vec![group(1, 1, vec![upstream.backend()])]),
        ))
        .await;
    let address = proxy.http().await;
    let mut idle = Wire::connect(address).await.expect("connected");
    idle.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .expect("sent");
    idle.answer().await.expect("an answer");
    let mut silent = Wire::connect(address).await.expect("connected");
    let (_, status) = proxy.hand_over().await;
    // Longer than an end by SIGTERM would listen.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    for wire in [&mut idle, &mut silent] {
        // Pipelined: the second is one too many, and must not take the answer to the first away.
        let two = "GET / HTTP/1.1\r\nhost: a\r\n\r\nGET /late HTTP/1.1\r\nhost: a\r\n\r\n";
        wire.send(two).await.expect("still open");
        let got = wire.answer().await.expect("an answer");
        assert_eq!(
            (got.status, got.header("connection").as_deref()),
            (200, Some("close"))
        );
        assert_eq!(wire.rest().await, b"", "the connection ends in order");
    }
    let mut fresh = Wire::connect(address).await.expect("connected");
    fresh
        .send("GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .expect("sent");
    assert_eq!(
        fresh
            .answer()
            .await
            .expect("an answer")
            .header("connection"),
        None
    );
    eventually("nothing is left of the old worker", || async {
        proxy.status().await.elders.is_empty()
    })
    .await;
    assert_eq!(proxy.status().await.boot, status.boot);
}

/// One frame of HTTP/2: type, flags, stream, payload.
fn h2_frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

async fn h2_read(wire: &mut Wire) -> Option<(u8, u8, u32, Vec<u8>)> {
    let head = wire.bytes(9).await?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let payload = wire.bytes(usize::try_from(length).expect("fits")).await?;
    let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
    Some((head[3], head[4], stream, payload))
}

#[tokio::test]
async fn http2_clients_get_goaway_twice_and_what_crosses_the_first_is_answered() {
    const HEADERS: u8 = 1;
    const SETTINGS: u8 = 4;
    const PING: u8 = 6;
    const GOAWAY: u8 = 7;
    let proxy = Proxy::start().await;
    let upstream = Upstream::start("one").await;
    proxy
        .put(&snapshot(
            1,
            service(vec![group(1, 1, vec![upstream.backend()])]),
        ))
        .await;
    let address = proxy.http().await;
    let mut wire = Wire::connect(address).await.expect("connected");
    let mut hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    hello.extend(h2_frame(SETTINGS, 0, 0, b""));
    wire.stream.write_all(&hello).await.expect("sent");
    // GET, http, /, and the authority `a`; end of headers and of the stream.
    let get = |stream| h2_frame(HEADERS, 0x5, stream, &[0x82, 0x86, 0x84, 0x41, 1, b'a']);
    wire.stream.write_all(&get(1)).await.expect("sent");
    let mut answered = Vec::new();
    while answered.is_empty() {
        let (kind, _, stream, _) = h2_read(&mut wire).await.expect("a frame");
        answered.extend((kind == HEADERS).then_some(stream));
    }
    proxy.hand_over().await;
    let (mut goaways, mut pinged) = (Vec::new(), None);
    while pinged.is_none() || goaways.is_empty() {
        let (kind, flags, _, payload) = h2_read(&mut wire).await.expect("a frame");
        if kind == GOAWAY {
            goaways.push(u32::from_be_bytes([
                payload[0], payload[1], payload[2], payload[3],
            ]));
        }
        if kind == PING && flags & 1 == 0 {
            pinged = Some(payload);
        }
    }
    assert_eq!(goaways, [0x7fff_ffff], "the first refuses no stream");
    // This request was on its way when the first was sent.
    wire.stream.write_all(&get(3)).await.expect("sent");
    let echo = h2_frame(PING, 1, 0, &pinged.expect("seen above"));
    wire.stream.write_all(&echo).await.expect("sent");
    // So was this one: some clients answer a PING before they send what they have queued.
    tokio::time::sleep(Duration::from_millis(50)).await;
    wire.stream.write_all(&get(5)).await.expect("sent");
    while let Some((kind, _, stream, payload)) = h2_read(&mut wire).await {
        answered.extend((kind == HEADERS).then_some(stream));
        if kind == GOAWAY {
            goaways.push(u32::from_be_bytes([
                payload[0], payload[1], payload[2], payload[3],
            ]));
            let no_error = [0; 4];
            assert_eq!(payload[4..8], no_error);
        }
    }
    assert_eq!(answered, [1, 3, 5]);
    assert_eq!(
        goaways,
        [0x7fff_ffff, 5],
        "the second names the last one that came"
    );
}

#[tokio::test]
async fn streams_that_outlive_the_time_after_a_handover_end_with_a_close() {
    let proxy = Proxy::start_with(|settings| settings.worker.handover_ms = 2_000).await;
    let one = Quiet::start().await;
    proxy
        .put(&snapshot(
            1,
            service(vec![group(1, 1, vec![serving("one", one.address)])]),
        ))
        .await;
    let held = websocket(proxy.http().await).await;
    let (before, _) = proxy.hand_over().await;
    assert_eq!(close_code(held).await, Some(1012));
    eventually("the old worker is gone", || async { !is_alive(before.pid) }).await;
    assert_eq!(proxy.status().await.backends["one"].streams_open, 0);
}

#[tokio::test]
async fn the_holder_moves_to_a_new_binary_and_does_its_work_there() {
    let mut proxy = Proxy::start().await;
    let one = Quiet::start().await;
    proxy
        .put(&snapshot(
            1,
            service(vec![group(1, 1, vec![serving("one", one.address)])]),
        ))
        .await;
    let held = websocket(proxy.http().await).await;
    let (before, same) = proxy.hand_over().await;
    assert_eq!(
        same.holder_pid, before.holder_pid,
        "the same binary has no need of another holder"
    );
    place_binary(&proxy.binary);
    let (_, after) = proxy.hand_over().await;
    eventually("another holder is in charge", || async {
        proxy.status().await.holder_pid != before.holder_pid
    })
    .await;
    assert!(proxy.wait_for_holder(), "the old one goes well");
    let holder = proxy.status().await.holder_pid.expect("it said so");
    let runs = std::fs::read_link(format!("/proc/{holder}/exe")).expect("it runs");
    assert_eq!(runs, proxy.binary, "the binary that is there now");

    // It restarts a worker that dies, which knows of the oldest, that no holder of its own has started.
    kill("-KILL", after.pid);
    eventually("the new holder started another worker", || async {
        let status = proxy.control.status().await;
        status.is_ok_and(|status| status.boot != after.boot)
    })
    .await;
    eventually("only the oldest has something to keep", || async {
        elders(&proxy).await == [before.pid]
    })
    .await;
    let status = proxy.status().await;
    assert_eq!(status.holder_pid, Some(holder));
    assert_eq!(status.backends["one"].streams_open, 1);

    // Its end is the end of all, the oldest worker included.
    kill("-TERM", holder);
    assert_eq!(close_code(held).await, Some(1012));
    eventually("all are gone", || async { proxy.processes().is_empty() }).await;
    TcpListener::bind(after.http[0])
        .await
        .expect("the port is free");
    let left = std::fs::read_dir(proxy.folder.path().join("run")).expect("the folder");
    assert_eq!(left.count(), 0, "no socket is left behind");
}

#[tokio::test]
async fn a_binary_that_does_not_come_up_changes_nothing() {
    let proxy = Proxy::start().await;
    let upstream = Upstream::start("one").await;
    proxy
        .put(&snapshot(
            1,
            service(vec![group(1, 1, vec![upstream.backend()])]),
        ))
        .await;
    let before = proxy.status().await;
    let bad = proxy.folder.path().join("bad");
    std::fs::copy("/bin/false", &bad).expect("copied");
    std::fs::rename(&bad, &proxy.binary).expect("placed");
    kill("-HUP", before.holder_pid.expect("it said so"));
    tokio::time::sleep(Duration::from_millis(500)).await;
    // The old worker takes orders again, and the old holder is in charge.
    proxy
        .put(&snapshot(
            2,
            service(vec![group(1, 1, vec![upstream.backend()])]),
        ))
        .await;
    let after = proxy.status().await;
    assert_eq!(
        (after.pid, after.holder_pid),
        (before.pid, before.holder_pid)
    );
    assert_eq!(
        get(before.http[0], "/").await.expect("an answer").status,
        200
    );
}
