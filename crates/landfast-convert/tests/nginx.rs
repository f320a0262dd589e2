//! The configuration of nginx is read and run by nginx itself, whatever paths and names a manifest has.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stderr,
    clippy::let_underscore_must_use,
    reason = "a test fails where it unwraps, and says that it was skipped"
)]

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use landfast_convert::{ExportOptions, Expressed, equivalence, export_compose};
use landfast_types::EnvironmentName;

const NGINX: &str = "/usr/sbin/nginx";

const HOSTILE: &str = r##"
app = "shop"

[services.web]
image = "example/web:1"
port  = 3002

[routes.sharp]
host    = "shop.test"
path    = "/a;}{\"\\$x'%"
service = "web"
auth    = { users = ["a:$2y$10$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01234"], realm = "o;ff\"}" }
limits  = { rate = "10/s", by = "header:x!y" }

[routes.sharp.request_headers]
set    = { "#x" = "1;\"}", "'y$z" = "2" }
append = { "x`a|" = "3", X-Good = "4" }
remove = ["*", "'q"]

[routes.sharp.response_headers]
set    = { "#a'$" = "${b}\\" }
append = { "'b" = "c" }
remove = ["*", "#d"]

[routes.off]
host    = "shop.test"
path    = "/off"
service = "web"
auth    = { users = ["a:$2y$10$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01234"], realm = "off" }
limits  = { rate = "10/s", by = "cookie:a-b" }
"##;

fn configuration(text: &str) -> String {
    let environment = EnvironmentName::new("production").unwrap();
    let parsed = landfast_spec::parse("landfast.toml", text, &environment);
    let spec = parsed
        .spec
        .unwrap_or_else(|| panic!("{:#?}", parsed.diagnostics));
    let options = ExportOptions {
        project: "..".to_owned(),
        folder: "out".to_owned(),
    };
    let files = export_compose(&spec, &options);
    let file = files.iter().find(|file| file.path == "nginx/nginx.conf");
    file.unwrap().text.clone()
}

/// A folder of this test's own, and the configuration in it, made to use nothing outside of it.
fn folder(name: &str, text: &str) -> PathBuf {
    let folder =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("nginx-{name}-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let place = folder.to_str().unwrap();
    let text = text
        .replace("/tmp/", &format!("{place}/"))
        .replace("listen 80", &format!("listen unix:{place}/socket"))
        .replace("/etc/nginx/auth/", &format!("{place}/"))
        .replace("worker_processes auto", "daemon off;\nworker_processes 1");
    fs::write(folder.join("nginx.conf"), text).unwrap();
    folder
}

fn nginx(folder: &Path, flags: &[&str]) -> Command {
    let mut command = Command::new(NGINX);
    command
        .arg("-p")
        .arg(folder)
        .arg("-c")
        .arg(folder.join("nginx.conf"));
    command.args(flags).stdin(Stdio::null());
    command
}

fn is_here() -> bool {
    let here = Path::new(NGINX).exists() && Path::new("/etc/nginx/mime.types").exists();
    if !here {
        eprintln!("skipped: nginx is not installed (make setup)");
    }
    here
}

#[test]
fn hostile_paths_and_names_stay_words() {
    if !is_here() {
        return;
    }
    let text = configuration(HOSTILE);
    let folder = folder("hostile", &text);
    let output = nginx(&folder, &["-t"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{text}");
    fs::remove_dir_all(&folder).unwrap();
    assert!(
        !text.contains("header *") && !text.contains("header \"*\""),
        "{text}"
    );
    assert!(!text.contains("auth_basic \"off\""), "{text}");
    assert!(
        !text.contains("$cookie_a-b") && !text.contains("$http_x!"),
        "{text}"
    );
}

#[test]
fn what_nginx_has_no_word_for_is_named() {
    let gaps = equivalence(HOSTILE);
    for key in [
        "routes.sharp.request_headers.remove",
        "routes.sharp.request_headers.append",
        "routes.sharp.response_headers.remove",
        "routes.sharp.limits.by",
        "routes.off.limits.by",
    ] {
        let gap = gaps.iter().find(|gap| gap.key == key);
        let gap = gap.unwrap_or_else(|| panic!("{key}"));
        assert!(matches!(gap.expressed, Expressed::Partly { .. }), "{gap:?}");
    }
    let alone = HOSTILE.replace("[\"*\", \"#d\"]", "[\"*\"]");
    let gaps = equivalence(&alone);
    let gap = gaps
        .iter()
        .find(|gap| gap.key == "routes.sharp.response_headers.remove");
    assert!(
        matches!(gap.unwrap().expressed, Expressed::Not { .. }),
        "{gap:?}"
    );
    let plain = equivalence(
        "[routes.a]\nlimits = { by = \"header:X-Key\" }\n[routes.a.request_headers]\nremove = [\"Cookie\"]\n",
    );
    for gap in plain {
        assert!(matches!(gap.expressed, Expressed::As { .. }), "{gap:?}");
    }
}

/// Ended with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // The master ends its worker at SIGTERM; SIGKILL would leave it.
        let ended = Command::new("kill").arg(self.0.id().to_string()).status();
        if !ended.is_ok_and(|status| status.success()) {
            let _ = self.0.kill();
        }
        let _ = self.0.wait();
    }
}

#[test]
fn logins_stay_with_nginx_and_odd_paths_reach_the_instance() {
    if !is_here() {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // It answers with what it was asked.
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut asked = Vec::new();
            let mut buffer = [0; 4_096];
            while !asked.ends_with(b"\r\n\r\n") {
                let count = stream.read(&mut buffer).unwrap();
                if count == 0 {
                    break;
                }
                asked.extend_from_slice(&buffer[..count]);
            }
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                asked.len()
            );
            stream.write_all(head.as_bytes()).unwrap();
            stream.write_all(&asked).unwrap();
        }
    });
    let manifest = r##"
app = "shop"

[services.web]
image = "example/web:1"
port  = 3002

[routes.open]
host    = "shop.test"
path    = "/a;}{\"x"
service = "web"

[routes.closed]
host    = "shop.test"
path    = "/closed"
service = "web"
auth    = { users = ["a:$2y$10$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01234"] }

[routes.own]
host    = "shop.test"
path    = "/own"
service = "web"
auth    = { users = ["a:$2y$10$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01234"] }

[routes.own.request_headers]
set = { Authorization = "Bearer inner" }
"##;
    let text = configuration(manifest);
    let folder = folder("runs", &text.replace("web:3002", &address.to_string()));
    for name in ["closed", "own"] {
        // Of the password `pass`, in a form that any nginx can check.
        fs::write(folder.join(name), "a:{PLAIN}pass\n").unwrap();
    }
    let mut running = Running(
        nginx(&folder, &[])
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let socket = folder.join("socket");
    while UnixStream::connect(&socket).is_err() {
        assert!(
            running.0.try_wait().unwrap().is_none(),
            "nginx ended\n{text}"
        );
        thread::sleep(Duration::from_millis(20));
    }
    let ask = |path: &str, login: &str| {
        let mut stream = UnixStream::connect(&socket).unwrap();
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\n{login}\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let login = "Authorization: Basic YTpwYXNz\r\n";
    let answer = ask("/a;%7D%7B%22x/y", login);
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.contains("Basic YTpwYXNz"),
        "{answer}"
    );
    let answer = ask("/closed", "");
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    let answer = ask("/closed", login);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(!answer.to_lowercase().contains("authorization"), "{answer}");
    let answer = ask("/own", login);
    assert!(
        answer.contains("Bearer inner") && !answer.contains("Basic"),
        "{answer}"
    );
    drop(running);
    fs::remove_dir_all(&folder).unwrap();
}
