//! A real proxy (holder and worker processes), real upstreams, and a plain client that trusts neither.

#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(unreachable_pub, reason = "shared by several test files")]
#![allow(
    clippy::disallowed_methods,
    reason = "tests drive real processes, clocks and tasks"
)]

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{body::Frame, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use landfast_proxy::{HolderSettings, WorkerSettings, control::ControlClient};
use landfast_routing::{
    admission::Admission,
    snapshot::{
        Backend, BackendState, EjectionPolicy, Group, Mode, Protocol, ProxyStatus, RetryPolicy,
        Route, RouteAnswers, RouteLimits, RouteTimeouts, Service, Snapshot,
    },
};
use landfast_types::{Fence, Generation, ReleaseId, ServiceKey};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

pub const WAIT: Duration = Duration::from_secs(20);

/// Waits for a condition, as long as a hanging test may take.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let began = Instant::now();
    while !condition().await {
        assert!(began.elapsed() < WAIT, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A proxy of its own, stopped when dropped.
pub struct Proxy {
    pub folder: tempfile::TempDir,
    pub control: ControlClient,
    pub settings: HolderSettings,
    /// A copy of the test binary, so that it can be replaced.
    pub binary: PathBuf,
    holder: Child,
}

impl Proxy {
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub async fn start_with(adjust: impl FnOnce(&mut HolderSettings)) -> Self {
        Self::start_limited(adjust, None).await
    }

    /// `descriptors`: how many each process may have open.
    pub async fn start_limited(
        adjust: impl FnOnce(&mut HolderSettings),
        descriptors: Option<u32>,
    ) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let any: SocketAddr = "127.0.0.1:0".parse().expect("an address");
        let mut worker = WorkerSettings::new(folder.path().join("state/routes.json"));
        worker.access_log = Some(folder.path().join("state/access.log"));
        worker.threads = 2;
        let mut settings = HolderSettings {
            http: vec![any],
            https: vec![any],
            preview: Some(any),
            control: folder.path().join("run/proxy.sock"),
            worker,
        };
        adjust(&mut settings);
        let file = folder.path().join("settings.json");
        std::fs::write(&file, serde_json::to_vec(&settings).expect("json")).expect("written");
        let binary = folder.path().join("landfast-proxy-test");
        place_binary(&binary);
        let limit = descriptors.map_or_else(String::new, |limit| format!("ulimit -n {limit}; "));
        let holder = Command::new("sh")
            .args(["-c", &format!("{limit}exec \"$0\" holder \"$1\"")])
            .arg(&binary)
            .arg(&file)
            .stdin(Stdio::null())
            .spawn()
            .expect("the test binary starts");
        let control = ControlClient::new(&settings.control);
        let proxy = Self {
            folder,
            control,
            settings,
            binary,
            holder,
        };
        eventually("the proxy answers", || async {
            proxy.control.status().await.is_ok()
        })
        .await;
        proxy
    }

    pub fn holder_pid(&self) -> u32 {
        self.holder.id()
    }

    pub async fn status(&self) -> ProxyStatus {
        self.control.status().await.expect("the proxy answers")
    }

    pub async fn http(&self) -> SocketAddr {
        self.status().await.http[0]
    }

    pub fn access_log(&self) -> PathBuf {
        self.folder.path().join("state/access.log")
    }

    pub async fn put(&self, snapshot: &Snapshot) -> ProxyStatus {
        self.control
            .put_snapshot(snapshot)
            .await
            .expect("the snapshot is taken")
    }

    /// kill -9 of the holder alone.
    pub fn kill_holder(&mut self) {
        self.holder.kill().expect("it runs");
        self.holder.wait().expect("it ended");
    }

    /// Waits for the holder that was started here to go by itself; answers whether it ended well.
    pub fn wait_for_holder(&mut self) -> bool {
        self.holder.wait().is_ok_and(|status| status.success())
    }

    /// SIGHUP to the holder, once another worker serves; gives the status of the one before and of the new one.
    pub async fn hand_over(&self) -> (ProxyStatus, ProxyStatus) {
        let before = self.status().await;
        kill("-HUP", before.holder_pid.expect("it said so"));
        eventually("another worker answers", || async {
            let status = self.control.status().await;
            status.is_ok_and(|status| status.boot != before.boot)
        })
        .await;
        (before, self.status().await)
    }

    /// SIGTERM to the holder; answers whether it ended well.
    pub fn stop(&mut self) -> bool {
        kill("-TERM", self.holder.id());
        self.holder.wait().is_ok_and(|status| status.success())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if self.holder.try_wait().is_ok_and(|status| status.is_none()) {
            kill("-TERM", self.holder.id());
            // A test that failed may leave requests in flight: do not wait for them long.
            for _ in 0..100 {
                if self.holder.try_wait().is_ok_and(|status| status.is_some()) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            drop(self.holder.kill());
            drop(self.holder.wait());
        }
        // After a hand-over others have taken its place; all of them run this copy of the binary.
        for pid in self.processes() {
            kill("-KILL", pid);
        }
    }
}

impl Proxy {
    /// Every process that runs this proxy's copy of the binary, or one that was at its place.
    pub fn processes(&self) -> Vec<u32> {
        let name = self.binary.display().to_string();
        let entries = std::fs::read_dir("/proc").expect("the processes");
        let pids = entries.flatten().filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let exe = std::fs::read_link(entry.path().join("exe")).ok()?;
            let exe = exe.to_string_lossy().into_owned();
            (exe.trim_end_matches(" (deleted)") == name && is_alive(pid)).then_some(pid)
        });
        pids.collect()
    }
}

/// Puts a copy of the test binary somewhere, in the place of what is there.
pub fn place_binary(path: &std::path::Path) {
    let beside = path.with_extension("new");
    // By another process: a file that this one has open for writing while another test forks cannot be started.
    let copied = Command::new("cp")
        .arg(env!("CARGO_BIN_EXE_landfast-proxy-test"))
        .arg(&beside)
        .status();
    assert!(copied.expect("cp runs").success());
    std::fs::rename(&beside, path).expect("placed");
}

/// Whether a process runs.
pub fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(')').next().map(str::trim_start);
    state.is_some_and(|state| !state.is_empty() && !state.starts_with(['Z', 'X']))
}

/// Signals a process this test started.
pub fn kill(signal: &str, pid: u32) {
    let status = Command::new("kill")
        .arg(signal)
        .arg(pid.to_string())
        .status();
    assert!(status.expect("kill runs").success());
}

pub fn key() -> ServiceKey {
    "shop/production/api".parse().expect("a key")
}

pub fn fence(revision: u64) -> Fence {
    Fence {
        generation: Generation(1),
        revision,
    }
}

pub fn serving(id: &str, address: SocketAddr) -> Backend {
    Backend {
        id: id.into(),
        address,
        state: BackendState::Serving,
    }
}

pub fn draining(id: &str, address: SocketAddr, requests_ms: u64, streams_ms: u64) -> Backend {
    Backend {
        id: id.into(),
        address,
        state: BackendState::Draining {
            requests_ms,
            streams_ms,
        },
    }
}

pub fn group(release: u64, weight: u32, backends: Vec<Backend>) -> Group {
    Group {
        release: ReleaseId(release),
        weight,
        backends,
    }
}

pub fn service(groups: Vec<Group>) -> Service {
    Service {
        mode: Mode::Serve,
        groups,
        preview: None,
        health: None,
        retry: RetryPolicy {
            attempts_max: 1,
            budget_percent: 20,
        },
        ejection: EjectionPolicy {
            failures: 5,
            first_ms: 10_000,
            max_ms: 300_000,
        },
        slow_start_ms: 0,
        sticky: false,
        protocol: Protocol::Http1,
    }
}

pub fn route(host: &str, path: &str) -> Route {
    Route {
        name: format!("shop/production/{host}{path}"),
        host: host.into(),
        path: path.into(),
        service: key(),
        websocket: true,
        https_only: false,
        limits: RouteLimits {
            body_bytes_max: 1 << 20,
        },
        timeouts: RouteTimeouts {
            connect_ms: 1_000,
            first_byte_ms: 10_000,
            body_idle_ms: 10_000,
        },
        admission: Admission::default(),
        answers: RouteAnswers::default(),
    }
}

/// A snapshot with one service behind any host.
pub fn snapshot(revision: u64, service: Service) -> Snapshot {
    Snapshot {
        version: 1,
        fence: fence(revision),
        routes: vec![route("*", "/")],
        services: BTreeMap::from([(key(), service)]),
        certificates: vec![],
        store: String::new(),
        challenges: vec![],
    }
}

/// What an upstream saw.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    pub target: String,
    pub headers: http::HeaderMap,
    pub body: Bytes,
}

/// An HTTP/1.1 server of the test's own. Paths: `/slow/MS` answers late, `/drip/N/MS` sends N pieces,
/// `/sse/MS` sends events of two lines in pieces for ever, `/status/N`, `/big/N`, `/json/N`, `/cut` breaks off the answer.
pub struct Upstream {
    pub id: String,
    pub address: SocketAddr,
    pub seen: Arc<Mutex<Vec<Seen>>>,
    pub connections: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Upstream {
    pub async fn start(id: &str) -> Self {
        Self::start_with(id, true).await
    }

    /// `keep_alive`: whether connections may be used again.
    pub async fn start_with(id: &str, keep_alive: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let connections = Arc::new(AtomicU64::new(0));
        let (name, log, count) = (id.to_owned(), Arc::clone(&seen), Arc::clone(&connections));
        let task = tokio::spawn(async move {
            // Ends with the task: its connections are cut, as those of a killed process are.
            let mut tasks = JoinSet::new();
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    continue;
                };
                stream.set_nodelay(true).expect("a socket");
                count.fetch_add(1, Ordering::SeqCst);
                let (name, log) = (name.clone(), Arc::clone(&log));
                tasks.spawn(async move {
                    let service =
                        service_fn(move |request| answer(name.clone(), Arc::clone(&log), request));
                    let mut builder = http1::Builder::new();
                    builder.keep_alive(keep_alive);
                    drop(
                        builder
                            .serve_connection(TokioIo::new(stream), service)
                            .await,
                    );
                });
            }
        });
        Self {
            id: id.into(),
            address,
            seen,
            connections,
            task,
        }
    }

    pub fn count(&self) -> usize {
        self.seen.lock().expect("no panic").len()
    }

    pub fn last(&self) -> Seen {
        self.seen
            .lock()
            .expect("no panic")
            .last()
            .expect("a request came")
            .clone()
    }

    pub fn backend(&self) -> Backend {
        serving(&self.id, self.address)
    }

    /// Cuts every connection and stops listening, as a kill -9 does.
    pub async fn kill(self) {
        self.task.abort();
        eventually("the port is closed", || async {
            TcpStream::connect(self.address).await.is_err()
        })
        .await;
    }
}

type Body = BoxBody<Bytes, std::io::Error>;

fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into())
        .map_err(|never| match never {})
        .boxed()
}

fn pieces<S>(stream: S) -> Body
where
    S: futures_util::Stream<Item = Result<Frame<Bytes>, std::io::Error>> + Send + Sync + 'static,
{
    BodyExt::boxed(StreamBody::new(stream))
}

async fn answer(
    id: String,
    log: Arc<Mutex<Vec<Seen>>>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let (parts, body) = request.into_parts();
    let target = parts.uri.to_string();
    let seen = Seen {
        method: parts.method.to_string(),
        target: target.clone(),
        headers: parts.headers,
        body: Bytes::new(),
    };
    let index = {
        let mut log = log.lock().expect("no panic");
        log.push(seen);
        log.len() - 1
    };
    if let Ok(body) = body.collect().await {
        log.lock().expect("no panic")[index].body = body.to_bytes();
    }
    let path = parts.uri.path().to_owned();
    let words: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let number = |index: usize| {
        words
            .get(index)
            .and_then(|w| w.parse::<u64>().ok())
            .unwrap_or(0)
    };
    let mut response = Response::builder().header("x-upstream", &id);
    let body = match words[0] {
        "slow" => {
            tokio::time::sleep(Duration::from_millis(number(1))).await;
            full(id)
        }
        "status" => {
            let status = u16::try_from(number(1)).expect("a status");
            response = response.status(StatusCode::from_u16(status).expect("a status"));
            full(id)
        }
        "json" => {
            response = response
                .header("content-type", "application/json")
                .header("etag", "\"v1\"");
            full(vec![b'7'; usize::try_from(number(1)).expect("a size")])
        }
        "big" => full(vec![b'x'; usize::try_from(number(1)).expect("a size")]),
        "drip" => {
            let (count, pause) = (number(1), number(2));
            response = response.header("content-type", "text/plain");
            pieces(futures_util::stream::unfold(0, move |n| async move {
                if n == count {
                    return None;
                }
                tokio::time::sleep(Duration::from_millis(pause)).await;
                Some((Ok(Frame::data(Bytes::from(format!("piece {n}\n")))), n + 1))
            }))
        }
        "cut" => pieces(futures_util::stream::unfold(0, |n| async move {
            let piece = if n == 0 {
                Ok(Frame::data(Bytes::from_static(b"half")))
            } else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                Err(std::io::Error::other("cut"))
            };
            Some((piece, n + 1))
        })),
        "sse" => {
            let pause = number(1);
            response = response.header("content-type", "text/event-stream");
            pieces(futures_util::stream::unfold(0_u64, move |n| async move {
                tokio::time::sleep(Duration::from_millis(pause)).await;
                // Every event comes in three pieces.
                let text = match n % 3 {
                    0 => format!("id: {}\n", n / 3),
                    1 => "data: some".to_owned(),
                    _ => "thing\n\n".to_owned(),
                };
                Some((Ok(Frame::data(Bytes::from(text))), n + 1))
            }))
        }
        _ => full(id),
    };
    Ok(response.body(body).expect("a response"))
}

/// An answer as read from the wire.
#[derive(Debug, Clone)]
pub struct Got {
    pub status: u16,
    pub headers: String,
    pub body: Vec<u8>,
    /// The body had the length it promised.
    pub is_whole: bool,
}

impl Got {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn header(&self, name: &str) -> Option<String> {
        self.headers.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found
                .eq_ignore_ascii_case(name)
                .then(|| value.trim().to_owned())
        })
    }
}

/// A plain HTTP/1.1 connection.
pub struct Wire {
    pub stream: TcpStream,
    buffer: Vec<u8>,
}

impl Wire {
    pub async fn connect(address: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            buffer: Vec::new(),
        })
    }

    pub async fn send(&mut self, text: &str) -> std::io::Result<()> {
        self.stream.write_all(text.as_bytes()).await
    }

    async fn more(&mut self) -> std::io::Result<bool> {
        self.buffer.reserve(16 << 10);
        let read = tokio::time::timeout(WAIT, self.stream.read_buf(&mut self.buffer));
        Ok(read.await.map_err(std::io::Error::other)?? > 0)
    }

    /// Reads one answer; an error when there is none. One to a HEAD is read by [`Wire::head`].
    pub async fn answer(&mut self) -> std::io::Result<Got> {
        let end = loop {
            if let Some(end) = self.buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                break end + 4;
            }
            if !self.more().await? {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        };
        let head: Vec<u8> = self.buffer.drain(..end).collect();
        let headers = String::from_utf8_lossy(&head).into_owned();
        let status = headers[9..12].parse().map_err(std::io::Error::other)?;
        let mut got = Got {
            status,
            headers,
            body: Vec::new(),
            is_whole: true,
        };
        if got.status == 304 {
            return Ok(got);
        }
        if let Some(length) = got.header("content-length") {
            let length: usize = length.parse().map_err(std::io::Error::other)?;
            while self.buffer.len() < length {
                if !self.more().await.unwrap_or(false) {
                    got.is_whole = false;
                    break;
                }
            }
            let have = self.buffer.len().min(length);
            got.body = self.buffer.drain(..have).collect();
        } else if got.header("transfer-encoding").is_some() {
            while let Some(piece) = self.chunk().await {
                if piece.is_empty() {
                    return Ok(got);
                }
                got.body.extend(piece);
            }
            got.is_whole = false;
        }
        Ok(got)
    }

    /// Reads one chunk; an empty one is the end, nothing is a broken connection.
    pub async fn chunk(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|w| w == b"\r\n") {
                let size = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
                let size = usize::from_str_radix(size.trim(), 16).ok()?;
                if self.buffer.len() >= end + 2 + size + 2 {
                    let mut chunk: Vec<u8> = self.buffer.drain(..end + 2 + size + 2).collect();
                    chunk.truncate(end + 2 + size);
                    return Some(chunk.split_off(end + 2));
                }
            }
            if !self.more().await.unwrap_or(false) {
                return None;
            }
        }
    }

    /// Reads a head only.
    pub async fn head(&mut self) -> String {
        loop {
            if let Some(end) = self.buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                let head: Vec<u8> = self.buffer.drain(..end + 4).collect();
                return String::from_utf8_lossy(&head).into_owned();
            }
            assert!(self.more().await.expect("readable"), "no head");
        }
    }

    /// Everything up to the end of the connection.
    pub async fn rest(&mut self) -> Vec<u8> {
        while self.more().await.unwrap_or(false) {}
        std::mem::take(&mut self.buffer)
    }

    /// At least `count` bytes.
    pub async fn bytes(&mut self, count: usize) -> Option<Vec<u8>> {
        while self.buffer.len() < count {
            if !self.more().await.ok()? {
                return None;
            }
        }
        Some(self.buffer.drain(..count).collect())
    }
}

/// One request on a connection of its own, with further fields as lines; only the head where there is no body.
pub async fn ask(address: SocketAddr, method: &str, path: &str, fields: &str) -> Got {
    let mut wire = Wire::connect(address).await.expect("connected");
    wire.send(&format!(
        "{method} {path} HTTP/1.1\r\nhost: shop.example\r\n{fields}\r\n"
    ))
    .await
    .expect("sent");
    if method != "HEAD" {
        return wire.answer().await.expect("an answer");
    }
    let headers = wire.head().await;
    Got {
        status: headers[9..12].parse().expect("a status"),
        headers,
        body: Vec::new(),
        is_whole: true,
    }
}

/// One GET on a connection of its own.
pub async fn get(address: SocketAddr, path: &str) -> std::io::Result<Got> {
    let mut wire = Wire::connect(address).await?;
    wire.send(&format!(
        "GET {path} HTTP/1.1\r\nhost: shop.example\r\n\r\n"
    ))
    .await?;
    wire.answer().await
}
