//! The way through ssh, with a real `sshd` on loopback. Debian: `apt-get install openssh-server`.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    unreachable_pub,
    dead_code,
    reason = "a test fails where it unwraps, and helpers are shared by several tests"
)]

mod support;

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use landfast_testbed::free_port;
use support::{landfast, server::Server};
use tempfile::TempDir;

/// Long enough for a loaded machine; only a failure waits for it.
const PATIENCE: Duration = Duration::from_secs(60);

#[expect(
    clippy::disallowed_methods,
    reason = "a real sshd, keys and their owner's name"
)]
fn command(program: &str) -> Command {
    Command::new(program)
}

/// An `sshd` of its own, with keys of its own, and a `ssh` in PATH that knows both.
struct Sshd {
    child: Child,
    port: u16,
    user: String,
    folder: TempDir,
}

impl Sshd {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        for name in ["host", "user"] {
            let made = command("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(path.join(name))
                .status();
            assert!(made.expect("ssh-keygen is installed").success());
        }
        fs::copy(path.join("user.pub"), path.join("authorized")).unwrap();
        fs::create_dir_all("/run/sshd").expect("sshd wants its folder, and tests run as root");
        let user = command("id").arg("-un").output().unwrap().stdout;
        let user = String::from_utf8(user).unwrap().trim().to_owned();
        let port = free_port().unwrap();
        let at = path.display();
        let config = format!(
            "ListenAddress 127.0.0.1\nPort {port}\nHostKey {at}/host\nAuthorizedKeysFile {at}/authorized\n\
             StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\nPidFile none\n"
        );
        fs::write(path.join("sshd_config"), config).unwrap();
        let host_key = fs::read_to_string(path.join("host.pub")).unwrap();
        fs::write(path.join("known"), format!("[127.0.0.1]:{port} {host_key}")).unwrap();
        let config =
            format!("IdentityFile {at}/user\nUserKnownHostsFile {at}/known\nBatchMode yes\n");
        fs::write(path.join("ssh_config"), config).unwrap();
        fs::create_dir(path.join("bin")).unwrap();
        fs::create_dir(path.join("tmp")).unwrap();
        let wrapper = path.join("bin/ssh");
        fs::write(
            &wrapper,
            format!("#!/bin/sh\nexec /usr/bin/ssh -F {at}/ssh_config \"$@\"\n"),
        )
        .unwrap();
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
        let child = command("/usr/sbin/sshd")
            .args(["-D", "-e", "-f"])
            .arg(path.join("sshd_config"))
            .stderr(Stdio::null())
            .spawn()
            .expect("sshd is installed");
        for _attempt in 0..200 {
            if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Self {
            child,
            port,
            user,
            folder,
        }
    }

    fn url(&self, socket: &Path) -> String {
        format!(
            "ssh://{}@127.0.0.1:{}?socket={}",
            self.user,
            self.port,
            socket.display()
        )
    }

    fn path(&self) -> String {
        format!(
            "{}:{}",
            self.folder.path().join("bin").display(),
            std::env::var("PATH").unwrap()
        )
    }

    /// Where the command's temporary folders go.
    fn tmp(&self) -> std::path::PathBuf {
        self.folder.path().join("tmp")
    }

    /// Ends every connection, as a network that goes away would.
    fn cut(&self) {
        let children = format!("/proc/{0}/task/{0}/children", self.child.id());
        let children = fs::read_to_string(children).unwrap();
        assert!(!children.trim().is_empty(), "nobody was connected");
        for child in children.split_whitespace() {
            let child = child
                .parse()
                .ok()
                .and_then(rustix::process::Pid::from_raw)
                .unwrap();
            // One that has just ended by itself is as good.
            let _gone = rustix::process::kill_process(child, rustix::process::Signal::KILL);
        }
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn deploys_through_ssh_and_leaves_nothing_behind() {
    let (sshd, server) = (Sshd::start(), Server::start());
    let folder = server.folder();
    let manifest =
        "app = \"shop\"\n[services.api]\nartifact = \"serve\"\ncommand = [\"./serve\"]\n";
    fs::write(folder.join("landfast.toml"), manifest).unwrap();
    fs::write(folder.join("serve"), "x").unwrap();
    let mut command = landfast(folder);
    command.env("PATH", sshd.path()).env("TMPDIR", sshd.tmp());
    let output = command
        .args(["deploy", "--host", &sshd.url(&server.socket())])
        .output()
        .unwrap();
    let text = support::written(&["deploy"], &output);
    assert!(
        text.contains("exit 0\n") && text.contains("release 5 serves all of"),
        "{text}"
    );
    assert_eq!(
        fs::read_dir(sshd.tmp()).unwrap().count(),
        0,
        "the forwarded socket is still there"
    );
}

#[test]
fn connects_again_when_the_way_is_cut() {
    let (sshd, server) = (Sshd::start(), Server::start());
    let mut command = command(env!("CARGO_BIN_EXE_landfast"));
    command.env("PATH", sshd.path()).env("TMPDIR", sshd.tmp());
    command.args(["events", "--app", "shop", "--after", "0", "-v", "--host"]);
    let mut child = command
        .arg(sshd.url(&server.socket()))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (sender, lines) = mpsc::channel();
    let stderr = BufReader::new(child.stderr.take().unwrap());
    let reader = std::thread::spawn(move || {
        for line in stderr.lines().map_while(Result::ok) {
            drop(sender.send(line));
        }
    });
    let mut seen = Vec::new();
    let mut until = |word: &str| loop {
        let line = lines
            .recv_timeout(PATIENCE)
            .unwrap_or_else(|_| panic!("no {word} in {seen:?}"));
        let found = line.contains(word);
        seen.push(line);
        if found {
            break;
        }
    };
    until("connected");
    sshd.cut();
    until("was lost");
    until("connected");
    let id = i32::try_from(child.id())
        .ok()
        .and_then(rustix::process::Pid::from_raw)
        .unwrap();
    rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143));
    reader.join().unwrap();
    assert_eq!(
        fs::read_dir(sshd.tmp()).unwrap().count(),
        0,
        "ssh was left behind"
    );
}

#[test]
fn says_what_ssh_said_when_it_fails() {
    let server = Server::start();
    let closed = free_port().unwrap();
    let mut command = landfast(server.folder());
    command.args([
        "status",
        "--app",
        "shop",
        "--host",
        &format!("ssh://nobody@127.0.0.1:{closed}"),
    ]);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(7));
    let mut text = String::new();
    output.stderr.as_slice().read_to_string(&mut text).unwrap();
    assert!(
        text.contains("failed to reach ssh://nobody@127.0.0.1"),
        "{text}"
    );
    assert!(text.contains("Connection refused"), "{text}");
}

#[test]
fn says_at_once_that_no_server_is_there() {
    let sshd = Sshd::start();
    let server = Server::start();
    let nobody = sshd.folder.path().join("nobody.sock");
    let mut command = landfast(server.folder());
    let output = command
        .args(["status", "--app", "shop", "--host", &sshd.url(&nobody)])
        .env("PATH", sshd.path())
        .env("TMPDIR", sshd.tmp())
        .timeout(PATIENCE)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(7), "{text}");
    assert!(text.contains("no server answers at"), "{text}");
    assert!(text.contains("hint: start it there"), "{text}");
}
