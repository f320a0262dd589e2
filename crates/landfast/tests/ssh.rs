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
    process::{Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use landfast_testbed::free_port;
use support::{landfast, server::Server, sshd::Sshd};

/// Long enough for a loaded machine; only a failure waits for it.
const PATIENCE: Duration = Duration::from_secs(60);

#[expect(clippy::disallowed_methods, reason = "a process that goes on running")]
fn command(program: &str) -> Command {
    Command::new(program)
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
    let nobody = sshd.path_of("nobody.sock");
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
