//! A real nginx with the configuration that is exported for a manifest, in front of an instance that shows what it was asked.

#![allow(
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "a real nginx is started, and said to be missing"
)]

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use landfast_convert::{ExportOptions, ExportedFile, export_compose};
use landfast_spec::AppSpec;

use super::environment;

const NGINX: &str = "/usr/sbin/nginx";
/// Long enough for a loaded machine; only a failure waits for it.
const PATIENCE: Duration = Duration::from_secs(60);

pub fn spec(text: &str) -> AppSpec {
    let parsed = landfast_spec::parse("landfast.toml", text, &environment());
    parsed
        .spec
        .unwrap_or_else(|| panic!("{text}\n{:#?}", parsed.diagnostics))
}

pub fn exported(spec: &AppSpec) -> Vec<ExportedFile> {
    let options = ExportOptions {
        project: "..".to_owned(),
        folder: "out".to_owned(),
    };
    export_compose(spec, &options)
}

pub fn configuration(files: &[ExportedFile]) -> &str {
    let file = files.iter().find(|file| file.path == "nginx/nginx.conf");
    &file.expect("it has routes").text
}

/// Whether there is one; says so where there is none.
pub fn is_here() -> bool {
    let here = Path::new(NGINX).exists() && Path::new("/etc/nginx/mime.types").exists();
    if !here {
        eprintln!("skipped: nginx is not installed (make setup)");
    }
    here
}

/// A folder of one nginx, with all that its configuration names.
pub struct Place(pub PathBuf);

impl Place {
    /// What the export puts into the container lies in a folder of the test's own.
    pub fn new(name: &str, spec: &AppSpec) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("nginx-{name}-{}-{count}", std::process::id()));
        drop(fs::remove_dir_all(&folder));
        for part in ["auth", "tls", "files", "errors"] {
            fs::create_dir_all(folder.join(part)).unwrap();
        }
        let this = Self(folder);
        for file in exported(spec) {
            if let Some(route) = file.path.strip_prefix("nginx/auth-") {
                fs::write(this.0.join("auth").join(route), &file.text).unwrap();
            }
        }
        for (route, of) in &spec.routes {
            if of.tls.is_some() {
                this.certificate(route.as_str(), &of.host);
            }
            for part in ["files", "errors"] {
                let inside = format!("{part}/{route}{}", of.path.trim_end_matches('/'));
                fs::create_dir_all(this.0.join(inside)).unwrap();
            }
        }
        this
    }

    fn certificate(&self, route: &str, host: &str) {
        let file = |ending: &str| self.0.join(format!("tls/{route}.{ending}"));
        let output = Command::new("openssl")
            .args(["req", "-x509", "-nodes", "-days", "2", "-newkey", "ec"])
            .args(["-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj"])
            .arg(format!("/CN={host}"))
            .arg("-addext")
            .arg(format!("subjectAltName=DNS:{host}"))
            .arg("-keyout")
            .arg(file("key"))
            .arg("-out")
            .arg(file("pem"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    /// Writes the configuration, made to use nothing outside of the folder.
    pub fn configure(&self, text: &str, (http, https): (u16, u16)) {
        let place = self.0.to_str().unwrap();
        let text = text
            .replace("/tmp/", &format!("{place}/"))
            .replace("listen 80", &format!("listen 127.0.0.1:{http}"))
            .replace("listen 443", &format!("listen 127.0.0.1:{https}"))
            .replace("/etc/nginx/auth/", &format!("{place}/auth/"))
            .replace("/etc/nginx/tls/", &format!("{place}/tls/"))
            .replace("/srv/files/", &format!("{place}/files/"))
            .replace("/srv/errors/", &format!("{place}/errors/"))
            .replace("/dev/stdout", &format!("{place}/access.log"))
            .replace("worker_processes auto", "daemon off;\nworker_processes 1");
        fs::write(self.0.join("nginx.conf"), text).unwrap();
    }

    pub fn nginx(&self, flags: &[&str]) -> Command {
        let mut command = Command::new(NGINX);
        command
            .arg("-p")
            .arg(&self.0)
            .arg("-c")
            .arg(self.0.join("nginx.conf"))
            .args(flags)
            .stdin(Stdio::null());
        command
    }

    /// Has nginx read the configuration; what it says of one that it does not take.
    pub fn refused(&self, text: &str) -> Option<String> {
        self.configure(text, (8_080, 8_443));
        let output = self.nginx(&["-t"]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        // A warning is as good as an error: nobody would read it.
        (!output.status.success() || said.contains("[warn]")).then_some(said)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

/// Ended with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // The master ends its worker at SIGTERM; SIGKILL would leave it.
        let ended = Command::new("kill").arg(self.0.id().to_string()).status();
        if !ended.is_ok_and(|status| status.success()) {
            drop(self.0.kill());
        }
        drop(self.0.wait());
    }
}

pub struct World {
    pub http: u16,
    pub https: u16,
    // Ended before its folder goes.
    _running: Running,
    pub place: Place,
}

impl World {
    pub fn start(name: &str, manifest: &str) -> Self {
        Self::prepared(name, manifest, |_| {})
    }

    /// The service `web` is an instance that shows what it was asked, `dead` one that is not there.
    pub fn prepared(name: &str, manifest: &str, prepare: impl FnOnce(&Path)) -> Self {
        let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = upstream.local_addr().unwrap().to_string();
        thread::spawn(move || {
            for stream in upstream.incoming() {
                let stream = stream.unwrap();
                // Whoever goes away early is no failure of the instance.
                thread::spawn(move || drop(answer(stream)));
            }
        });
        Self::before(name, manifest, &address, prepare)
    }

    /// The same before an instance of the test's own.
    pub fn before(name: &str, manifest: &str, address: &str, prepare: impl FnOnce(&Path)) -> Self {
        let spec = spec(manifest);
        let place = Place::new(name, &spec);
        prepare(&place.0);
        let files = exported(&spec);
        let text = configuration(&files)
            .replace("web:3002", address)
            .replace("dead:3003", "127.0.0.1:1");
        // A port that was free a moment ago may be somebody else's.
        for _ in 0..20 {
            let (http, https) = (free_port(), free_port());
            place.configure(&text, (http, https));
            let child = place
                .nginx(&[])
                .stdout(Stdio::null())
                .stderr(fs::File::create(place.0.join("said")).unwrap())
                .spawn()
                .unwrap();
            let mut running = Running(child);
            while running.0.try_wait().unwrap().is_none() {
                // Only its own process makes the file, after it has the ports.
                if place.0.join("nginx.pid").exists()
                    && TcpStream::connect(("127.0.0.1", http)).is_ok()
                {
                    return Self {
                        http,
                        https,
                        _running: running,
                        place,
                    };
                }
                thread::sleep(Duration::from_millis(20));
            }
            let said = fs::read_to_string(place.0.join("said")).unwrap();
            assert!(said.contains("in use"), "nginx ended: {said}\n{text}");
        }
        panic!("no port stays free");
    }

    /// Asks with further lines of a head.
    pub fn get(&self, host: &str, path: &str, lines: &[&str]) -> Answer {
        self.ask("GET", host, path, lines, "")
    }

    pub fn ask(&self, method: &str, host: &str, path: &str, lines: &[&str], body: &str) -> Answer {
        let mut stream = self.connect();
        let request = request(method, host, path, lines, body);
        stream.write_all(request.as_bytes()).unwrap();
        let mut bytes = Vec::new();
        // Who is refused before his body was read sees a reset behind the answer.
        drop(stream.read_to_end(&mut bytes));
        Answer::of(bytes)
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.http)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Over TLS; the certificate must be the route's own.
    pub fn get_tls(&self, host: &str, path: &str, route: &str) -> Answer {
        let (answer, said) = self.tls(host, path, route);
        assert!(!answer.is_empty(), "{said}");
        Answer::of(answer)
    }

    /// What is answered over TLS, and what is said of the connection.
    pub fn tls(&self, host: &str, path: &str, route: &str) -> (Vec<u8>, String) {
        let mut child = Command::new("openssl")
            .args(["s_client", "-quiet", "-verify_return_error", "-connect"])
            .arg(format!("127.0.0.1:{}", self.https))
            .args(["-servername", host, "-verify_hostname", host, "-CAfile"])
            .arg(self.place.0.join(format!("tls/{route}.pem")))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // Who was refused before sees nobody there.
        drop(stdin.write_all(request("GET", host, path, &[], "").as_bytes()));
        let output = child.wait_with_output().unwrap();
        drop(stdin);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.stdout, said)
    }
}

pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn request(method: &str, host: &str, path: &str, lines: &[&str], body: &str) -> String {
    let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
    let length = match body {
        "" => String::new(),
        body => format!("Content-Length: {}\r\n", body.len()),
    };
    let close = match lines.to_lowercase().contains("connection:") {
        true => "",
        false => "Connection: close\r\n",
    };
    format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n{close}{lines}{length}\r\n{body}")
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    head: String,
    pub body: Vec<u8>,
}

impl Answer {
    fn of(bytes: Vec<u8>) -> Self {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
        let end = end.unwrap_or_else(|| panic!("no answer: {}", String::from_utf8_lossy(&bytes)));
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
        Self {
            status: status.unwrap_or_else(|| panic!("{head}")),
            head,
            body: bytes[end + 4..].to_vec(),
        }
    }

    /// The values of a header.
    pub fn header(&self, name: &str) -> Vec<&str> {
        let fields = self.head.lines().skip(1);
        let fields = fields.filter_map(|line| line.split_once(':'));
        fields
            .filter(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
            .collect()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The values of a header as the instance was sent it.
    pub fn asked(&self, name: &str) -> Vec<String> {
        let text = self.text();
        let fields = text.lines().filter_map(|line| line.split_once(':'));
        fields
            .filter(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim().to_owned())
            .collect()
    }
}

/// Shows what it was asked. `X-Send: A: b|C: d` are headers to answer with, `X-Size` so many bytes of text; `X-Wait` is never answered. A
/// WebSocket is opened, and what comes is sent back in capitals.
fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let mut asked = Vec::new();
    let mut buffer = [0; 4_096];
    let end = loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        asked.extend_from_slice(&buffer[..count]);
        if let Some(end) = asked.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
    };
    let head = String::from_utf8_lossy(&asked[..end]).into_owned();
    let field = |name: &str| {
        let mut fields = head.lines().filter_map(|line| line.split_once(':'));
        let found = fields.find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.trim().to_owned())
    };
    if field("upgrade").is_some_and(|to| to.eq_ignore_ascii_case("websocket")) {
        stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")?;
        loop {
            let count = stream.read(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            stream.write_all(&buffer[..count].to_ascii_uppercase())?;
        }
    }
    let length = field("content-length").and_then(|text| text.parse().ok());
    while asked.len() < end + length.unwrap_or(0) {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        asked.extend_from_slice(&buffer[..count]);
    }
    if field("x-wait").is_some() {
        // Until the other end goes.
        while stream.read(&mut buffer)? > 0 {}
        return Ok(());
    }
    let body = match field("x-size").and_then(|text| text.parse().ok()) {
        Some(size) => vec![b'a'; size],
        None => asked,
    };
    let send = field("x-send").unwrap_or_default();
    let mut answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n",
        body.len()
    );
    if !send.to_lowercase().contains("content-type") {
        answer.push_str("Content-Type: text/plain\r\n");
    }
    for line in send.split('|').filter(|line| !line.is_empty()) {
        answer.push_str(line.trim());
        answer.push_str("\r\n");
    }
    answer.push_str("\r\n");
    stream.write_all(answer.as_bytes())?;
    stream.write_all(&body)
}
