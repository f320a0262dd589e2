//! Hostile HTTP/1.1 through a real proxy, before a backend that records every byte it gets: the probe table (the
//! strictest of nginx, HAProxy, Caddy, Pingora and hyper in each row), and what is like it.

#![expect(
    clippy::disallowed_methods,
    reason = "tests drive real processes, clocks and tasks"
)]

mod support;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A backend that answers each request head with 200 and keeps all bytes that came, from all connections.
struct Recorder {
    address: SocketAddr,
    bytes: Arc<Mutex<Vec<u8>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Recorder {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let address = listener.local_addr().expect("an address");
        let bytes: Arc<Mutex<Vec<u8>>> = Arc::default();
        let log = Arc::clone(&bytes);
        let task = tokio::spawn(async move {
            let mut tasks = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.expect("accepted");
                let log = Arc::clone(&log);
                tasks.spawn(record(stream, log));
            }
        });
        Self {
            address,
            bytes,
            task,
        }
    }

    /// Everything that came since the last look.
    fn take(&self) -> String {
        let bytes = std::mem::take(&mut *self.bytes.lock().expect("no panic"));
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

async fn record(mut stream: tokio::net::TcpStream, log: Arc<Mutex<Vec<u8>>>) {
    let mut seen = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        log.lock().expect("no panic").extend(&buffer[..count]);
        seen.extend_from_slice(&buffer[..count]);
        // Answers when the request looks whole: it has no body, or the end of one.
        while let Some(end) = seen.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&seen[..end]).to_ascii_lowercase();
            let length = head.lines().find_map(|line| {
                let value = line.strip_prefix("content-length:")?;
                value.trim().parse::<usize>().ok()
            });
            let is_whole = if head.contains("transfer-encoding: chunked") {
                seen[end + 4..].ends_with(b"0\r\n\r\n")
            } else {
                seen.len() >= end + 4 + length.unwrap_or(0)
            };
            if !is_whole {
                break;
            }
            seen.clear();
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
            if stream.write_all(answer).await.is_err() {
                return;
            }
        }
    }
}

async fn start() -> (Proxy, Recorder, SocketAddr) {
    let proxy = Proxy::start().await;
    let recorder = Recorder::start().await;
    let backend = serving("recorder", recorder.address);
    proxy
        .put(&snapshot(1, service(vec![group(1, 1, vec![backend])])))
        .await;
    let address = proxy.http().await;
    (proxy, recorder, address)
}

/// Sends bytes in pieces of this size and reads to the end of the connection.
async fn exchange(address: SocketAddr, bytes: &[u8], piece: usize) -> Vec<Got> {
    let mut wire = Wire::connect(address).await.expect("connected");
    for piece in bytes.chunks(piece) {
        // The refusal may come before the last piece.
        if wire.stream.write_all(piece).await.is_err() {
            break;
        }
        if piece.len() < bytes.len() {
            tokio::task::yield_now().await;
        }
    }
    let mut answers = Vec::new();
    while let Ok(got) = wire.answer().await {
        answers.push(got);
    }
    answers
}

/// A request that marks itself, for what must never be seen.
const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nhost: a\r\n\r\n";
const FIRST: &str = "GET /first HTTP/1.1\r\nhost: a\r\n\r\n";

fn get(fields: &str) -> String {
    format!("GET /probe HTTP/1.1\r\n{fields}\r\n\r\n")
}

fn post(fields: &str, body: &str) -> String {
    format!("POST /probe HTTP/1.1\r\nhost: a\r\n{fields}\r\n\r\n{body}")
}

/// A row of `probes.json`, which `cargo xtask proof probes` sends to nginx and HAProxy as well.
#[derive(serde::Deserialize)]
struct Probe {
    name: String,
    send: String,
    /// 200 where it is sound.
    status: u16,
    /// What comes behind it is not answered, though it is itself.
    #[serde(default)]
    last: bool,
    /// What `{}` stands for, and how often.
    repeat: Option<(String, usize)>,
}

fn probes() -> Vec<Probe> {
    let mut probes: Vec<Probe> =
        serde_json::from_str(include_str!("probes.json")).expect("the table reads");
    for probe in &mut probes {
        if let Some((text, count)) = &probe.repeat {
            probe.send = probe.send.replace("{}", &text.repeat(*count));
        }
    }
    probes
}

fn refused() -> impl Iterator<Item = (String, String, u16)> {
    let all = probes().into_iter().filter(|probe| probe.status != 200);
    all.map(|probe| (probe.name, probe.send, probe.status))
}

#[tokio::test]
async fn a_refused_probe_gets_one_answer_and_no_byte_of_it_goes_on() {
    let (_proxy, recorder, address) = start().await;
    for (name, probe, status) in refused() {
        let bytes = format!("{probe}{HIDDEN}");
        let answers = exchange(address, bytes.as_bytes(), bytes.len()).await;
        let statuses: Vec<u16> = answers.iter().map(|got| got.status).collect();
        assert_eq!(statuses, [status], "{name}");
        let got = &answers[0];
        assert!(got.is_whole, "{name}");
        assert_eq!(got.header("connection").as_deref(), Some("close"), "{name}");
        assert_eq!(recorder.take(), "", "{name}");
    }
}

#[tokio::test]
async fn what_came_before_a_refused_request_is_answered_first() {
    let (_proxy, recorder, address) = start().await;
    for (name, probe, status) in refused() {
        let bytes = format!("{FIRST}{FIRST}{probe}{HIDDEN}");
        let answers = exchange(address, bytes.as_bytes(), bytes.len()).await;
        let statuses: Vec<u16> = answers.iter().map(|got| got.status).collect();
        assert_eq!(statuses, [200, 200, status], "{name}");
        let seen = recorder.take();
        assert_eq!(seen.matches("GET /first").count(), 2, "{name}");
        assert!(
            !seen.contains("probe") && !seen.contains("hello"),
            "{name}: {seen}"
        );
        assert!(!seen.contains("hidden"), "{name}: {seen}");
    }
}

#[tokio::test]
async fn a_probe_in_pieces_is_refused_like_a_whole_one() {
    let (_proxy, recorder, address) = start().await;
    for (name, probe, status) in refused() {
        let bytes = format!("{probe}{HIDDEN}");
        let piece = if bytes.len() > 1_000 { 777 } else { 1 };
        let answers = exchange(address, bytes.as_bytes(), piece).await;
        let statuses: Vec<u16> = answers.iter().map(|got| got.status).collect();
        assert_eq!(statuses, [status], "{name}");
        let seen = recorder.take();
        assert!(!seen.contains("hidden"), "{name}: {seen}");
        // The sound beginning of a body that breaks later may be on its way; it never becomes a whole request.
        assert!(!seen.contains("\r\n0\r\n"), "{name}: {seen}");
    }
}

#[tokio::test]
async fn a_body_that_breaks_on_the_way_is_never_whole_upstream() {
    let (proxy, recorder, address) = start().await;
    let mut wire = Wire::connect(address).await.expect("connected");
    wire.send(
        "POST /probe HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
    )
    .await
    .expect("sent");
    eventually("the first chunk is upstream", || async {
        String::from_utf8_lossy(&recorder.bytes.lock().expect("no panic")).contains("hello")
    })
    .await;
    wire.send(&format!("5;a\nworld\r\n0\r\n\r\n{HIDDEN}"))
        .await
        .expect("sent");
    let got = wire.answer().await.expect("an answer");
    assert_eq!(got.status, 400);
    assert_eq!(got.header("connection").as_deref(), Some("close"));
    assert!(wire.rest().await.is_empty());
    let seen = recorder.take();
    assert!(!seen.contains("world") && !seen.contains("0\r\n\r\n") && !seen.contains("hidden"));
    let log = eventually_log(&proxy).await;
    assert!(log.contains("refused: a line ends in a line feed"), "{log}");
    let metrics = proxy.control.metrics().await.expect("the proxy answers");
    assert!(
        metrics.contains("landfast_proxy_framing_refused_total 1"),
        "{metrics}"
    );
}

async fn eventually_log(proxy: &Proxy) -> String {
    let path = proxy.access_log();
    let read = || std::fs::read_to_string(&path).unwrap_or_default();
    eventually("a line of the access log", || async { !read().is_empty() }).await;
    read()
}

#[tokio::test]
async fn a_sound_row_of_the_table_is_answered_and_so_is_what_follows() {
    let (_proxy, recorder, address) = start().await;
    for probe in probes().into_iter().filter(|probe| probe.status == 200) {
        let last = HIDDEN.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n");
        let bytes = format!("{}{last}", probe.send);
        for piece in [1, bytes.len()] {
            let answers = exchange(address, bytes.as_bytes(), piece).await;
            let statuses: Vec<u16> = answers.iter().map(|got| got.status).collect();
            let seen = recorder.take();
            assert!(seen.contains("probe"), "{}", probe.name);
            assert_eq!(seen.contains("hidden"), !probe.last, "{}", probe.name);
            let expected: &[u16] = if probe.last { &[200] } else { &[200, 200] };
            assert_eq!(statuses, expected, "{}", probe.name);
        }
    }
}

#[tokio::test]
async fn behind_a_refused_upgrade_comes_one_answer_and_the_end() {
    let (_proxy, recorder, address) = start().await;
    let upgrade = |name: &str| {
        format!("GET /first HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: {name}\r\n\r\n")
    };
    for name in ["websocket", "h2c", "x"] {
        for piece in [1, 10_000] {
            let bytes = format!("{}{HIDDEN}", upgrade(name));
            let answers = exchange(address, bytes.as_bytes(), piece).await;
            // The backend knows no upgrade: it answers 200.
            let statuses: Vec<u16> = answers.iter().map(|got| got.status).collect();
            assert_eq!(statuses, [200], "{name}");
            assert_eq!(answers[0].header("connection").as_deref(), Some("close"));
            let seen = recorder.take();
            assert!(seen.contains("first") && !seen.contains("hidden"), "{seen}");
        }
    }
    // HTTP/1.0 has no upgrade: a plain request, whose connection ends as it does.
    let bytes = upgrade("websocket").replace("HTTP/1.1", "HTTP/1.0");
    let answers = exchange(address, bytes.as_bytes(), 10_000).await;
    assert_eq!(answers.len(), 1);
    assert!(!recorder.take().to_ascii_lowercase().contains("upgrade"));
}

#[tokio::test]
async fn sound_requests_pass_in_any_pieces() {
    let (_proxy, recorder, address) = start().await;
    let sound = [
        FIRST.to_owned(),
        post("content-length: 5", "hello"),
        post(
            "transfer-encoding: chunked",
            "5;a=\"b\"\r\nhello\r\n0\r\nx-sum: 1\r\n\r\n",
        ),
        post("content-length: 38", HIDDEN).replace("38", &HIDDEN.len().to_string()),
        format!("\r\n{FIRST}"),
        get("host: a").replace("/probe", "http://A/probe?q=../%zz"),
    ];
    let last = "GET /last HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let bytes = format!("{}{last}", sound.concat());
    for piece in [1, 2, 3, 7, 50, 10_000] {
        let answers = exchange(address, bytes.as_bytes(), piece).await;
        let statuses: Vec<u16> = answers.iter().map(|got| got.status).collect();
        assert_eq!(statuses, [200; 7], "pieces of {piece}");
        let seen = recorder.take();
        assert_eq!(seen.matches("HTTP/1.1\r\n").count(), 8, "{seen}");
        assert!(seen.contains("GET /probe?q=../%zz HTTP/1.1"), "{seen}");
    }
}

#[tokio::test]
async fn a_refusal_is_not_lost_to_a_reset_while_the_client_still_sends() {
    let (_proxy, recorder, address) = start().await;
    let mut wire = Wire::connect(address).await.expect("connected");
    let head =
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 400000\r\ncontent-length: 400000\r\n\r\n";
    wire.send(head).await.expect("sent");
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let sent = wire.send(&"b".repeat(100_000)).await;
        sent.expect("the proxy still listens");
    }
    assert_eq!(wire.answer().await.expect("an answer").status, 400);
    assert!(wire.rest().await.is_empty());
    assert_eq!(recorder.take(), "");
}
