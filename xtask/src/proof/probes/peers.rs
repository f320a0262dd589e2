//! Us, nginx and HAProxy, each in a temporary folder on loopback before a recording backend of its own.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use serde_json::json;

use crate::live::{Build, command, free_port, scratch, spawn, wait_until};

const START_MAX: Duration = Duration::from_secs(20);

/// A proxy under test. It is ended, and its folder removed, with this value.
pub(super) struct Peer {
    pub(super) name: &'static str,
    pub(super) address: SocketAddr,
    pub(super) backend: Backend,
    folder: PathBuf,
    child: Child,
}

impl Drop for Peer {
    fn drop(&mut self) {
        let pid = self.child.id().to_string();
        // Gently: a killed proxy would leave its worker behind.
        drop(command("kill").args(["-TERM", &pid]).status());
        drop(self.child.wait());
        drop(fs::remove_dir_all(&self.folder));
    }
}

/// Starts the three, ourselves first.
pub(super) fn start() -> anyhow::Result<Vec<Peer>> {
    Ok(vec![
        start_peer("landfast", |folder, port, backend| {
            start_landfast(folder, port, backend, "probes", 5_000)
        })?,
        start_peer("nginx", nginx)?,
        start_peer("haproxy", haproxy)?,
    ])
}

type Start = fn(&Path, u16, SocketAddr) -> anyhow::Result<Child>;

fn start_peer(name: &'static str, start: Start) -> anyhow::Result<Peer> {
    let folder = scratch(&format!("probes-{name}"))?;
    let backend = Backend::start()?;
    let port = free_port()?;
    let child = start(&folder, port, backend.address)
        .with_context(|| format!("failed to start {name}; `make setup` installs it"))?;
    let peer = Peer {
        name,
        address: SocketAddr::from(([127, 0, 0, 1], port)),
        backend,
        folder,
        child,
    };
    wait_until(&format!("{name} passes a request on"), START_MAX, || {
        answers(peer.address)
    })?;
    Ok(peer)
}

fn answers(address: SocketAddr) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    ask().is_ok_and(|text| text.starts_with("HTTP/1.1 200"))
}

/// Our proxy alone, with one route to one backend. `idle_ms`: the longest silence in a body.
pub(in crate::proof) fn start_landfast(
    folder: &Path,
    port: u16,
    backend: SocketAddr,
    name: &str,
    idle_ms: u64,
) -> anyhow::Result<Child> {
    let control = folder.join("proxy.sock");
    let mut proxy = command(Build::landfast_alone()?);
    proxy
        .arg("proxy")
        .args(["--http", &format!("127.0.0.1:{port}")])
        .arg("--control")
        .arg(&control)
        .arg("--routes")
        .arg(folder.join("routes.json"))
        .env("LANDFAST_LOG", "error");
    let child = spawn(&mut proxy)?;
    let key = format!("{name}/production/api");
    let route = format!("{name}/production/all");
    let snapshot = json!({
        "version": 1,
        "fence": { "generation": 1, "revision": 1 },
        "routes": [{
            "name": route, "host": "*", "path": "/", "service": &key,
            "websocket": true, "https_only": false,
            "limits": { "body_bytes_max": 1 << 20 },
            "timeouts": { "connect_ms": 1000, "first_byte_ms": 5000, "body_idle_ms": idle_ms },
        }],
        "services": { &key: {
            "mode": { "kind": "serve" },
            "groups": [{ "release": 1, "weight": 1, "backends": [
                { "id": "one", "address": backend, "state": { "kind": "serving" } },
            ]}],
            "retry": { "attempts_max": 1, "budget_percent": 20 },
            "ejection": { "failures": 1_000_000, "first_ms": 1, "max_ms": 1 },
        }},
    });
    wait_until("the proxy takes its routes", START_MAX, || {
        put(&control, &snapshot.to_string()).is_ok()
    })?;
    Ok(child)
}

fn put(control: &Path, body: &str) -> anyhow::Result<()> {
    let mut stream = UnixStream::connect(control)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let length = body.len();
    let head = format!(
        "PUT /snapshot HTTP/1.1\r\nhost: proxy\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "refused: {answer}");
    Ok(())
}

fn nginx(folder: &Path, port: u16, backend: SocketAddr) -> anyhow::Result<Child> {
    let place = folder.display();
    let text = format!(
        "daemon off;\nmaster_process off;\npid {place}/pid;\nerror_log {place}/error.log;\nevents {{}}\n\
         http {{\n  access_log off;\n  client_body_temp_path {place}/body;\n  proxy_temp_path {place}/proxy;\n\
         \x20 fastcgi_temp_path {place}/f;\n  uwsgi_temp_path {place}/u;\n  scgi_temp_path {place}/s;\n\
         \x20 server {{\n    listen 127.0.0.1:{port};\n    location / {{\n      proxy_pass http://{backend};\n\
         \x20     proxy_http_version 1.1;\n      proxy_set_header Host $host;\n      proxy_set_header Connection \"\";\n    }}\n  }}\n}}\n"
    );
    let file = folder.join("nginx.conf");
    fs::write(&file, text)?;
    let mut nginx = command(found("nginx")?);
    // Before it has read its configuration, nginx writes to a log of the system.
    nginx
        .arg("-e")
        .arg(folder.join("error.log"))
        .arg("-c")
        .arg(&file)
        .arg("-p")
        .arg(folder);
    spawn(&mut nginx)
}

fn haproxy(folder: &Path, port: u16, backend: SocketAddr) -> anyhow::Result<Child> {
    let text = format!(
        "defaults\n  mode http\n  timeout connect 1s\n  timeout client 5s\n  timeout server 5s\n\
         frontend front\n  bind 127.0.0.1:{port}\n  default_backend back\nbackend back\n  server one {backend}\n"
    );
    let file = folder.join("haproxy.cfg");
    fs::write(&file, text)?;
    let mut haproxy = command(found("haproxy")?);
    haproxy
        .arg("-db")
        .arg("-f")
        .arg(&file)
        .stderr(Stdio::null());
    spawn(&mut haproxy)
}

/// Debian keeps servers in a folder that is not on every user's path.
fn found(name: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders =
        std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    let Some(file) = folders
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
    else {
        bail!("there is no `{name}` on this machine");
    };
    Ok(file)
}

/// Answers 200 to what looks like a whole request, and keeps every byte that came.
pub(super) struct Backend {
    address: SocketAddr,
    bytes: Arc<Mutex<Vec<u8>>>,
}

impl Backend {
    /// Its thread ends with this process.
    fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let bytes: Arc<Mutex<Vec<u8>>> = Arc::default();
        let log = Arc::clone(&bytes);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let log = Arc::clone(&log);
                std::thread::spawn(move || record(stream, &log));
            }
        });
        Ok(Self { address, bytes })
    }

    /// What came since the last look.
    pub(super) fn take(&self) -> Vec<u8> {
        std::mem::take(&mut *self.bytes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn record(mut stream: TcpStream, log: &Mutex<Vec<u8>>) {
    let mut seen = Vec::new();
    let mut buffer = [0; 16 << 10];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        let piece = &buffer[..count];
        log.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend_from_slice(piece);
        seen.extend_from_slice(piece);
        if is_whole(&seen) {
            seen.clear();
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
            if stream.write_all(answer).is_err() {
                return;
            }
        }
    }
}

fn is_whole(seen: &[u8]) -> bool {
    let Some(end) = seen.windows(4).position(|window| window == b"\r\n\r\n") else {
        return false;
    };
    let head = String::from_utf8_lossy(&seen[..end]).to_ascii_lowercase();
    let body = &seen[end + 4..];
    if head.contains("transfer-encoding:") {
        return body.ends_with(b"\r\n\r\n")
            && (body.starts_with(b"0") || body.windows(3).any(|w| w == b"\n0\r"));
    }
    let length = head.lines().find_map(|line| {
        let value = line.strip_prefix("content-length:")?;
        value.trim().parse::<usize>().ok()
    });
    body.len() >= length.unwrap_or(0)
}
