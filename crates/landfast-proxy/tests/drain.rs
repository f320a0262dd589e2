//! Drains: what is confirmed, and how streams end.

#![expect(
    clippy::disallowed_methods,
    reason = "tests drive real processes, clocks and tasks"
)]

mod support;

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use landfast_routing::websocket::{Frames, close_frame};
use support::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_arrives_at_a_backend_after_its_drain_was_confirmed_and_finished() {
    let proxy = Proxy::start().await;
    let (one, two) = (Upstream::start("one").await, Upstream::start("two").await);
    let both = || vec![one.backend(), two.backend()];
    proxy
        .put(&snapshot(1, service(vec![group(1, 1, both())])))
        .await;
    let address = proxy.http().await;
    let stop = Arc::new(AtomicBool::new(false));
    let (sent, wrong) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut load = JoinSet::new();
    for client in 0..16 {
        let (stop, sent, wrong) = (Arc::clone(&stop), Arc::clone(&sent), Arc::clone(&wrong));
        load.spawn(async move {
            let mut wire = Wire::connect(address).await.expect("connected");
            while !stop.load(Ordering::Relaxed) {
                // Half of them keep their connection.
                if client % 2 == 0 {
                    wire = Wire::connect(address).await.expect("connected");
                }
                let request = match client % 4 {
                    0 => "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi",
                    1 => "GET /slow/3 HTTP/1.1\r\nhost: a\r\n\r\n",
                    _ => "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
                };
                wire.send(request)
                    .await
                    .expect("the client's connection is never closed");
                let got = wire.answer().await.expect("every request is answered");
                sent.fetch_add(1, Ordering::Relaxed);
                if got.status != 200 || !got.is_whole {
                    wrong.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
    }
    for round in 0..60_u64 {
        let drained = if round % 2 == 0 { &one } else { &two };
        let serving = if round % 2 == 0 { &two } else { &one };
        let out = draining(&drained.id, drained.address, 5_000, 5_000);
        // Now and then it leaves the table at once instead of draining in it.
        let backends = if round % 5 == 4 {
            vec![serving.backend()]
        } else {
            vec![out, serving.backend()]
        };
        let wanted = snapshot(2 + round * 2, service(vec![group(1, 1, backends)]));
        let mut status = proxy.put(&wanted).await;
        while !status
            .backends
            .get(&drained.id)
            .is_none_or(|status| status.is_drained())
        {
            status = proxy.status().await;
        }
        let before = drained.count();
        tokio::time::sleep(Duration::from_millis(15)).await;
        assert_eq!(
            drained.count(),
            before,
            "a request reached `{}` after its drain",
            drained.id
        );
        proxy
            .put(&snapshot(3 + round * 2, service(vec![group(1, 1, both())])))
            .await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(client) = load.join_next().await {
        client.expect("no client saw its connection end");
    }
    assert_eq!(wrong.load(Ordering::Relaxed), 0);
    assert!(sent.load(Ordering::Relaxed) > 2_000, "{sent:?}");
    assert_eq!(
        u64::try_from(one.count() + two.count()).expect("fits"),
        sent.load(Ordering::Relaxed)
    );
}

#[tokio::test]
async fn requests_in_flight_finish_within_their_time_and_are_cut_after_it() {
    let proxy = Proxy::start().await;
    let upstream = Upstream::start("one").await;
    proxy
        .put(&snapshot(
            1,
            service(vec![group(1, 1, vec![upstream.backend()])]),
        ))
        .await;
    let address = proxy.http().await;
    let short = tokio::spawn(async move { get(address, "/drip/5/100").await });
    let long = tokio::spawn(async move { get(address, "/slow/60000").await });
    let dripping = tokio::spawn(async move { get(address, "/drip/1000/50").await });
    eventually("all arrived", || async { upstream.count() == 3 }).await;
    let out = draining("one", upstream.address, 1_500, 1_500);
    let status = proxy
        .put(&snapshot(2, service(vec![group(1, 1, vec![out])])))
        .await;
    assert_eq!(status.backends["one"].requests_in_flight, 3);
    assert_eq!(get(address, "/").await.expect("an answer").status, 503);
    let got = short.await.expect("no panic").expect("an answer");
    assert!(got.is_whole && got.text().ends_with("piece 4\n"));
    assert_eq!(
        long.await.expect("no panic").expect("an answer").status,
        504
    );
    assert!(!dripping.await.expect("no panic").expect("a head").is_whole);
    eventually("drained", || async {
        proxy.status().await.backends["one"].is_drained()
    })
    .await;
}

#[tokio::test]
async fn event_streams_end_between_two_events() {
    let proxy = Proxy::start().await;
    let upstream = Upstream::start("one").await;
    proxy
        .put(&snapshot(
            1,
            service(vec![group(1, 1, vec![upstream.backend()])]),
        ))
        .await;
    let address = proxy.http().await;
    let mut streams = JoinSet::new();
    for _ in 0..20 {
        streams.spawn(async move {
            let mut wire = Wire::connect(address).await.expect("connected");
            wire.send("GET /sse/7 HTTP/1.1\r\nhost: a\r\n\r\n")
                .await
                .expect("sent");
            let got = wire.answer().await.expect("an answer");
            // The connection stays good for the next request.
            wire.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n")
                .await
                .expect("still open");
            (got, wire.answer().await.expect("an answer").status)
        });
    }
    eventually("all open", || async {
        proxy.status().await.backends["one"].streams_open == 20
    })
    .await;
    let out = draining("one", upstream.address, 1_000, 1_500);
    proxy
        .put(&snapshot(2, service(vec![group(1, 1, vec![out])])))
        .await;
    while let Some(stream) = streams.join_next().await {
        let (got, status) = stream.expect("no panic");
        assert!(got.is_whole, "the stream ends in order");
        assert!(
            got.text().ends_with("data: something\n\n"),
            "cut inside an event: {:?}",
            got.text()
        );
        assert_eq!(status, 503);
    }
    let stats = proxy.control.stats().await.expect("the proxy answers");
    let counted = &stats.backends["one"];
    assert_eq!(
        (
            counted.streams_opened,
            counted.streams_drained,
            counted.streams_cut
        ),
        (20, 20, 0)
    );
}

fn frame(first: u8, payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    let length = u8::try_from(payload.len()).expect("short");
    assert!(length < 126);
    let mut bytes = vec![first, length | if mask.is_some() { 0x80 } else { 0 }];
    bytes.extend(mask.into_iter().flatten());
    let key = mask.unwrap_or_default();
    bytes.extend(
        payload
            .iter()
            .zip(key.iter().cycle())
            .map(|(byte, key)| byte ^ key),
    );
    bytes
}

const HANDSHAKE: &str = "GET /ws HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
     sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// A backend that sends numbered messages in three fragments with a ping between, split into single bytes and
/// pauses. It records what the client's side sent and how it ended.
struct Chatty {
    address: SocketAddr,
    ended: Arc<std::sync::Mutex<Vec<Vec<u8>>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Chatty {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let ended: Arc<std::sync::Mutex<Vec<Vec<u8>>>> = Arc::default();
        let log = Arc::clone(&ended);
        let task = tokio::spawn(async move {
            let mut all = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.expect("accepted");
                all.spawn(Self::talk(stream, Arc::clone(&log)));
            }
        });
        Self {
            address,
            ended,
            task,
        }
    }

    async fn talk(mut stream: TcpStream, log: Arc<std::sync::Mutex<Vec<Vec<u8>>>>) {
        stream.set_nodelay(true).expect("a socket");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            if stream.read(&mut byte).await.unwrap_or(0) == 0 {
                return;
            }
            head.push(byte[0]);
        }
        let answer = "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
        stream.write_all(answer.as_bytes()).await.expect("sent");
        let (mut read, mut write) = stream.into_split();
        let closed = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&closed);
        let reader = tokio::spawn(async move {
            let (mut all, mut frames, mut buffer) = (Vec::new(), Frames::default(), [0; 1024]);
            loop {
                let count = read.read(&mut buffer).await.unwrap_or(0);
                if count == 0 {
                    break;
                }
                frames.feed(&buffer[..count]);
                all.extend_from_slice(&buffer[..count]);
                if frames.has_closed() {
                    seen.store(true, Ordering::SeqCst);
                }
            }
            log.lock().expect("no panic").push(all);
        });
        'talking: for number in 0_u32.. {
            let text = format!("message {number}");
            let (a, b) = text.as_bytes().split_at(4);
            let parts = [
                frame(0x01, a, None),
                frame(0x89, b"ping", None),
                frame(0x00, b"", None),
                frame(0x80, b, None),
            ];
            for part in parts {
                for piece in part.chunks(3) {
                    if closed.load(Ordering::SeqCst) {
                        drop(write.write_all(&close_frame(1000, "", None)).await);
                        break 'talking;
                    }
                    if write.write_all(piece).await.is_err() {
                        break 'talking;
                    }
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        }
        drop(write);
        reader.await.expect("no panic");
    }
}

impl Drop for Chatty {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Reads messages until a Close; answers them and the Close code. Panics on a Close inside a message.
async fn listen(wire: &mut Wire) -> (Vec<String>, u16) {
    let (mut messages, mut open) = (Vec::new(), None::<Vec<u8>>);
    loop {
        let head = wire
            .bytes(2)
            .await
            .expect("a frame, or a Close before the end");
        assert_eq!(head[1] & 0x80, 0, "a server does not mask");
        let payload = wire
            .bytes(usize::from(head[1] & 0x7f))
            .await
            .expect("a whole frame");
        match (head[0] & 0x0f, head[0] & 0x80 != 0) {
            (8, _) => {
                assert!(open.is_none(), "a Close inside a fragmented message");
                return (messages, u16::from_be_bytes([payload[0], payload[1]]));
            }
            (9, _) => {}
            (opcode, is_final) => {
                assert_eq!(opcode == 0, open.is_some(), "fragments in order");
                let mut text = open.take().unwrap_or_default();
                text.extend(payload);
                if is_final {
                    messages.push(String::from_utf8(text).expect("text"));
                } else {
                    open = Some(text);
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn websockets_close_with_1012_between_messages_and_the_backend_is_told() {
    let proxy = Proxy::start().await;
    let chatty = Chatty::start().await;
    let backend = serving("chatty", chatty.address);
    proxy
        .put(&snapshot(1, service(vec![group(1, 1, vec![backend])])))
        .await;
    let address = proxy.http().await;
    let mut clients = JoinSet::new();
    for number in 0..30_u32 {
        clients.spawn(async move {
            let mut wire = Wire::connect(address).await.expect("connected");
            wire.send(HANDSHAKE).await.expect("sent");
            let head = wire.head().await;
            assert!(head.starts_with("HTTP/1.1 101"), "{head}");
            assert!(
                head.to_lowercase().contains("sec-websocket-accept"),
                "{head}"
            );
            let hello = frame(
                0x81,
                format!("hello {number}").as_bytes(),
                Some([1, 2, 3, 4]),
            );
            wire.stream.write_all(&hello).await.expect("sent");
            let (messages, code) = listen(&mut wire).await;
            for (index, message) in messages.iter().enumerate() {
                assert_eq!(
                    *message,
                    format!("message {index}"),
                    "messages come whole and in order"
                );
            }
            // What a client says before its Close still arrives; some never answer the Close.
            let bye = frame(0x81, b"bye", Some([5, 6, 7, 8]));
            wire.stream.write_all(&bye).await.expect("sent");
            if number % 5 != 0 {
                let echo = close_frame(code, "", Some([9, 9, 9, 9]));
                wire.stream.write_all(&echo).await.expect("sent");
            }
            assert!(wire.rest().await.is_empty(), "nothing follows a Close");
            (code, messages.len())
        });
    }
    eventually("all open", || async {
        proxy.status().await.backends["chatty"].streams_open == 30
    })
    .await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let out = draining("chatty", chatty.address, 1_000, 2_000);
    proxy
        .put(&snapshot(2, service(vec![group(1, 1, vec![out])])))
        .await;
    let mut counts = BTreeSet::new();
    while let Some(client) = clients.join_next().await {
        let (code, messages) = client.expect("no client saw a broken message");
        assert_eq!(code, 1012);
        counts.insert(messages);
    }
    assert!(counts.len() > 3, "all closed at one instant: {counts:?}");
    eventually("drained", || async {
        proxy.status().await.backends["chatty"].is_drained()
    })
    .await;
    let counted = proxy.control.stats().await.expect("answers").backends["chatty"].clone();
    assert_eq!(
        (counted.streams_drained, counted.streams_cut),
        (30, 0),
        "{counted:?}"
    );
    eventually("the backend saw all ends", || async {
        chatty.ended.lock().expect("no panic").len() == 30
    })
    .await;
    for heard in chatty.ended.lock().expect("no panic").iter() {
        let mut frames = Frames::default();
        frames.feed(heard);
        assert!(frames.has_closed(), "the backend got no Close: {heard:?}");
        assert!(
            heard
                .windows(3)
                .any(|w| w == [b'b' ^ 5, b'y' ^ 6, b'e' ^ 7]),
            "what the client said is lost"
        );
    }
}

#[tokio::test]
async fn a_backend_that_dies_takes_its_websockets_with_a_word() {
    let proxy = Proxy::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let backend = serving("mortal", listener.local_addr().expect("an address"));
    proxy
        .put(&snapshot(1, service(vec![group(1, 1, vec![backend])])))
        .await;
    let mut wire = Wire::connect(proxy.http().await).await.expect("connected");
    wire.send(HANDSHAKE).await.expect("sent");
    let (mut stream, _) = listener.accept().await.expect("accepted");
    let mut buffer = [0; 4096];
    assert!(stream.read(&mut buffer).await.expect("readable") > 0);
    stream
        .write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
        .await
        .expect("sent");
    stream
        .write_all(&frame(0x81, b"last words", None))
        .await
        .expect("sent");
    assert!(wire.head().await.starts_with("HTTP/1.1 101"));
    drop(stream);
    let (messages, code) = listen(&mut wire).await;
    assert_eq!((messages, code), (vec!["last words".to_owned()], 1012));
    // A client in the middle of something may finish it and answer the Close; it is not reset meanwhile.
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let more = frame(0x81, b"more", Some([1, 2, 3, 4]));
        let sent = wire.stream.write_all(&more).await;
        sent.expect("the proxy still listens");
    }
    let echo = close_frame(code, "", Some([9, 9, 9, 9]));
    wire.stream.write_all(&echo).await.expect("sent");
    assert!(wire.rest().await.is_empty());
    eventually("it is counted", || async {
        proxy.control.stats().await.expect("answers").backends["mortal"].streams_cut == 1
    })
    .await;
}

#[tokio::test]
async fn a_route_without_websockets_refuses_them() {
    let proxy = Proxy::start().await;
    let chatty = Chatty::start().await;
    let mut wanted = snapshot(
        1,
        service(vec![group(1, 1, vec![serving("x", chatty.address)])]),
    );
    wanted.routes[0].websocket = false;
    proxy.put(&wanted).await;
    let mut wire = Wire::connect(proxy.http().await).await.expect("connected");
    wire.send(HANDSHAKE).await.expect("sent");
    assert_eq!(wire.answer().await.expect("an answer").status, 403);
}

#[tokio::test]
async fn an_idle_connection_to_a_draining_backend_is_closed_at_once() {
    let proxy = Proxy::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let backend = serving("kept", address);
    proxy
        .put(&snapshot(1, service(vec![group(1, 1, vec![backend])])))
        .await;
    let front = proxy.http().await;
    let answered = tokio::spawn(async move { get(front, "/").await });
    let (mut stream, _) = listener.accept().await.expect("accepted");
    let mut buffer = [0; 4096];
    assert!(stream.read(&mut buffer).await.expect("readable") > 0);
    stream
        .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        .await
        .expect("sent");
    let got = answered.await.expect("no panic").expect("an answer");
    assert_eq!(got.text(), "ok");
    let short = Duration::from_millis(200);
    let early = tokio::time::timeout(short, stream.read(&mut buffer)).await;
    assert!(early.is_err(), "kept while it serves");
    let out = draining("kept", address, 30_000, 30_000);
    proxy
        .put(&snapshot(2, service(vec![group(1, 1, vec![out])])))
        .await;
    let end = tokio::time::timeout(Duration::from_secs(20), stream.read(&mut buffer)).await;
    assert_eq!(
        end.expect("closed long before the drain ends")
            .expect("in order"),
        0
    );
}

#[tokio::test]
async fn open_streams_are_load() {
    let proxy = Proxy::start().await;
    let (one, two) = (Upstream::start("one").await, Upstream::start("two").await);
    let with = |revision, backends| snapshot(revision, service(vec![group(1, 1, backends)]));
    proxy.put(&with(1, vec![one.backend()])).await;
    let address = proxy.http().await;
    let mut streams = JoinSet::new();
    for _ in 0..4 {
        streams.spawn(async move { get(address, "/sse/20").await });
    }
    eventually("all open", || async {
        proxy.status().await.backends["one"].streams_open == 4
    })
    .await;
    proxy
        .put(&with(2, vec![one.backend(), two.backend()]))
        .await;
    for _ in 0..6 {
        assert_eq!(get(address, "/").await.expect("an answer").text(), "two");
    }
    streams.abort_all();
}
