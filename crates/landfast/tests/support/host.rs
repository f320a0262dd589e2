//! A real server with its proxy, and a small real application in Python.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use landfast_testbed::free_port;
use rustix::process::{Pid, Signal};
use serde_json::Value;
use tempfile::TempDir;

use super::landfast;

/// Long enough for a loaded machine; only a failure waits for it.
const PATIENCE: Duration = Duration::from_secs(60);
/// What everything that a test starts carries in its environment, so that it is found again.
const MARK: &str = "LANDFAST_TEST_FOLDER";
const STEP: Duration = Duration::from_millis(50);
const LOOKS: usize = 100;

/// The application: `serve` answers with its version and shows a variable, `smoke` asks the preview, `fail` exits 3.
const APP: &str = r#"#!/usr/bin/env python3
import http.server, os, signal, socketserver, sys, threading, urllib.request
VERSION = "@VERSION@"
FAULT = "@FAULT@"
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        status, text = 200, VERSION
        if self.path.startswith("/env/"):
            text = os.environ.get(self.path[5:], "-")
        elif self.path.startswith("/file/"):
            path = os.environ.get(self.path[6:] + "_FILE")
            text = open(path).read() if path else "-"
        elif self.path == "/ready" and FAULT == "never-ready":
            status, text = 503, "not yet"
        body = text.encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *words):
        pass
class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
def serve():
    server = Server(("127.0.0.1", int(os.environ["PORT"])), Handler)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    print("serving", VERSION, flush=True)
    server.serve_forever()
if sys.argv[1] == "serve":
    serve()
elif sys.argv[1] == "fail":
    print("failing on purpose", flush=True)
    sys.exit(3)
"#;

/// A terminal: runs a command on a pty, types a line when it shows a `:`, copies what it shows, ends as it ends.
const TERMINAL: &str = r#"
import fcntl, os, pty, struct, sys, termios
typed, command = sys.argv[1], sys.argv[2:]
pid, terminal = pty.fork()
if pid == 0:
    fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    os.execv(command[0], command)
while True:
    try:
        shown = os.read(terminal, 65536)
    except OSError:
        break
    if not shown:
        break
    sys.stdout.buffer.write(shown)
    if typed and b":" in shown:
        os.write(terminal, typed.encode() + b"\n")
        typed = ""
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"#;

/// A program in a world of mounts of its own, in which these folders are empty. It has the process id of what is started.
#[expect(clippy::disallowed_methods, reason = "a process that goes on running")]
fn without(hidden: &[PathBuf], program: &Path) -> Command {
    const HIDE: &str = "while [ \"$1\" != -- ]; do mount -t tmpfs hidden \"$1\" || exit 70; shift; done; shift; exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", HIDE, "sh"]);
    command.args(hidden).arg("--").arg(program);
    command
}

/// A folder with a state, a run folder and an app; everything that was started ends with it.
pub struct Host {
    pub folder: TempDir,
    pub http: u16,
    pub https: u16,
    /// Further arguments of the server.
    pub arguments: Vec<String>,
    /// `PATH` of the server, where it is another one.
    pub search: Option<String>,
    /// What server, proxy and shims run from.
    pub binary: PathBuf,
    /// The server is told its folders relative to where it is started.
    pub is_relative: bool,
    /// Folders that the server sees empty.
    pub hidden: Vec<PathBuf>,
    /// Further variables of the server.
    pub env: Vec<(&'static str, String)>,
    server: Option<Child>,
}

impl Host {
    pub fn start() -> Self {
        let mut host = Self::stopped();
        host.start_server();
        host
    }

    /// One that runs from a copy of the binary, which can be replaced.
    pub fn start_from_copy() -> Self {
        let mut host = Self::stopped();
        host.binary = host.copy_binary("bin/landfast");
        host.start_server();
        host
    }

    /// Folders and ports, and nothing that runs yet.
    pub fn stopped() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // As a state folder is: instances run as users of their own.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o711)).unwrap();
        Self {
            folder,
            http: free_port().unwrap(),
            https: free_port().unwrap(),
            arguments: Vec::new(),
            search: None,
            binary: assert_cmd::cargo::cargo_bin("landfast"),
            is_relative: false,
            hidden: Vec::new(),
            env: Vec::new(),
            server: None,
        }
    }

    /// Another file with the same binary.
    pub fn copy_binary(&self, name: &str) -> PathBuf {
        let copy = self.path(name);
        fs::create_dir_all(copy.parent().unwrap()).unwrap();
        fs::copy(assert_cmd::cargo::cargo_bin("landfast"), &copy).unwrap();
        copy
    }

    pub fn server_pid(&self) -> u32 {
        self.server.as_ref().expect("it runs").id()
    }

    pub fn start_server(&mut self) {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.path("server.log"))
            .unwrap();
        let mut server = self
            .server_command()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the binary is built with its tests");
        // It listens before it is ready, and answers what came meanwhile; or ends, and then says why.
        self.until("the server answers", || {
            let ended = server.try_wait().unwrap();
            if let Some(status) = ended {
                let log = fs::read_to_string(self.path("server.log")).unwrap_or_default();
                panic!("the server ended with {status}\n{log}");
            }
            self.ask_for_metrics()
                .is_ok_and(|answer| !answer.is_empty())
        });
        self.server = Some(server);
    }

    /// `landfast server` as the test starts it.
    #[expect(clippy::disallowed_methods, reason = "a process that goes on running")]
    pub fn server_command(&self) -> Command {
        let mut command = match self.hidden.as_slice() {
            [] => Command::new(&self.binary),
            hidden => without(hidden, &self.binary),
        };
        command
            .env(MARK, self.folder.path())
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .arg("server")
            // Never the machine's own daemon, unless a test names one.
            .env("LANDFAST_DOCKER", "off")
            .args(["--http", &format!("127.0.0.1:{}", self.http)])
            .args(["--https", &format!("127.0.0.1:{}", self.https)])
            .args(&self.arguments)
            .args(["--preview", &format!("127.0.0.1:{}", free_port().unwrap())])
            .current_dir(self.folder.path());
        command.envs(self.search.iter().map(|search| ("PATH", search)));
        let base = if self.is_relative {
            Path::new("")
        } else {
            self.folder.path()
        };
        command.arg("--state").arg(base.join("state"));
        command.arg("--run").arg(base.join("run"));
        command
    }

    pub fn kill_server(&mut self) {
        let mut server = self.server.take().expect("it runs");
        server.kill().unwrap();
        server.wait().unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn socket(&self) -> PathBuf {
        self.path("run/landfast.sock")
    }

    /// Writes an app into a folder of its own.
    pub fn app(&self, name: &str, manifest: &str) -> PathBuf {
        let folder = self.path(name);
        fs::create_dir_all(folder.join("build")).unwrap();
        fs::write(folder.join("landfast.toml"), manifest).unwrap();
        self.build(&folder, "1", "");
        folder
    }

    /// Puts another version of the app where the manifest names it.
    pub fn build(&self, app: &Path, version: &str, fault: &str) {
        use std::os::unix::fs::PermissionsExt as _;
        let text = APP.replace("@VERSION@", version).replace("@FAULT@", fault);
        let file = app.join("build/app.py");
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Runs the command line in an app's folder.
    pub fn run(&self, app: &Path, arguments: &[&str]) -> Output {
        self.run_with(app, arguments, "")
    }

    pub fn run_with(&self, app: &Path, arguments: &[&str], stdin: &str) -> Output {
        landfast(app)
            .env("LANDFAST_SOCKET", self.socket())
            .args(arguments)
            .write_stdin(stdin)
            .timeout(PATIENCE * 2)
            .output()
            .expect("it runs")
    }

    /// Runs it on a terminal of 100 columns, types what is given once it asks, and gives what the terminal showed.
    #[expect(clippy::disallowed_methods, reason = "somebody has to be the terminal")]
    pub fn on_terminal(&self, app: &Path, arguments: &[&str], typed: &str) -> (i32, String) {
        let output = Command::new("python3")
            .args(["-c", TERMINAL, typed])
            .arg(assert_cmd::cargo::cargo_bin("landfast"))
            .args(arguments)
            .current_dir(app)
            .env("LANDFAST_SOCKET", self.socket())
            .env("TERM", "xterm")
            .output()
            .expect("python3 is installed");
        let shown = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr);
        (
            output.status.code().unwrap_or_else(|| panic!("{error}")),
            shown,
        )
    }

    /// Runs it and demands an exit code; gives stdout.
    #[track_caller]
    pub fn expect(&self, app: &Path, arguments: &[&str], code: i32) -> String {
        let output = self.run(app, arguments);
        let err = String::from_utf8_lossy(&output.stderr);
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        let server = fs::read_to_string(self.path("server.log")).unwrap_or_default();
        assert_eq!(
            output.status.code(),
            Some(code),
            "landfast {arguments:?}\n--- stdout\n{out}\n--- stderr\n{err}\n--- server\n{server}"
        );
        out
    }

    #[track_caller]
    pub fn json(&self, app: &Path, arguments: &[&str]) -> Value {
        let arguments: Vec<_> = arguments.iter().copied().chain(["--json"]).collect();
        let out = self.expect(app, &arguments, 0);
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{arguments:?}: {error}\n{out}"))
    }

    /// Asks the proxy: status and body.
    pub fn get(&self, host: &str, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.http)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").expect("a whole answer");
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, body.to_owned())
    }

    /// The metrics of the server, over its socket.
    pub fn metrics(&self) -> String {
        self.ask_for_metrics().unwrap()
    }

    fn ask_for_metrics(&self) -> std::io::Result<String> {
        let mut stream = std::os::unix::net::UnixStream::connect(self.socket())?;
        let request = "GET /v1/metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    #[track_caller]
    pub fn until(&self, what: &str, holds: impl FnMut() -> bool) {
        self.until_within(PATIENCE, what, holds);
    }

    /// For what takes its time on an idle machine, too.
    pub fn until_within(&self, patience: Duration, what: &str, mut holds: impl FnMut() -> bool) {
        for _ in 0..(patience.as_millis() / STEP.as_millis()) {
            if holds() {
                return;
            }
            std::thread::sleep(STEP);
        }
        let server = fs::read_to_string(self.path("server.log")).unwrap_or_default();
        panic!("{what}: never came true\n--- server\n{server}");
    }

    /// Processes of this host that are not the server: found by the folder they were started with, or run in.
    fn others(&self) -> Vec<Pid> {
        let mark = self.folder.path().as_os_str().as_encoded_bytes().to_owned();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            else {
                continue;
            };
            let read = |name: &str| fs::read(entry.path().join(name)).unwrap_or_default();
            let cwd = fs::read_link(entry.path().join("cwd")).unwrap_or_default();
            let holds = |bytes: &[u8]| bytes.windows(mark.len()).any(|part| part == mark);
            if holds(&read("environ"))
                || holds(&read("cmdline"))
                || cwd.starts_with(self.folder.path())
            {
                found.extend(Pid::from_raw(pid));
            }
        }
        found
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            drop(server.kill());
            drop(server.wait());
        }
        // The proxy's holder and its worker each start the other anew, so it takes more than one look.
        for _ in 0..LOOKS {
            let others = self.others();
            for pid in &others {
                // One that ended by itself is as good.
                let _gone = rustix::process::kill_process(*pid, Signal::KILL);
            }
            if others.is_empty() {
                return;
            }
            std::thread::sleep(STEP);
        }
    }
}
