//! Passwords of managed stores changed while instances use them, with the real servers of this host.

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
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use serde_json::Value;
use support::host::Host;

const HOST: &str = "shop.example";

/// Stores of one name begin at one port: two servers of Landfast that begin them in one moment would meet there.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps a session of each store open, and asks it for each request but those for its own variables.
const APP: &str = r#"#!/usr/bin/env python3
import http.server, os, signal, socketserver, subprocess, sys, threading, time, urllib.parse
LOCK = threading.Lock()
def start():
    return subprocess.Popen(["psql", os.environ["DATABASE_URL"], "-qAt"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True, bufsize=1)
SESSION = start()
def ask():
    with LOCK:
        SESSION.stdin.write("SELECT 'asked';\n")
        SESSION.stdin.flush()
        return SESSION.stdout.readline().strip()
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        if self.path.startswith("/env/"):
            status, text = 200, os.environ.get(self.path[5:], "-")
        else:
            text = ask()
            status = 200 if text == "asked" else 500
            if os.path.exists(os.environ.get("FLAG", "-")) and "_b:" in os.environ["DATABASE_URL"]:
                status = 503
        body = text.encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *words):
        pass
class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
if sys.argv[1] == "wait":
    print("waits", flush=True)
    time.sleep(float(sys.argv[2]))
    print(ask(), flush=True)
    sys.exit(0)
server = Server(("127.0.0.1", int(os.environ["PORT"])), Handler)
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
server.serve_forever()
"#;

const MANIFEST: &str = r#"
app = "shop"

[services.api]
artifact = "build"
command = ["./app.py", "serve"]
port = 3000
replicas = 2
uses = ["main", "reports", "cache"]
health = { ready = "http:/ready", interval = "200ms" }
drain = "1s"
grace = "2s"

[jobs.long]
artifact = "build"
command = ["./app.py", "wait", "6"]
uses = ["main"]

[routes.public]
host = "shop.example"
service = "api"

[deploy]
strategy = "rolling"
min_ready = "200ms"
standby = "1s"
healthy_deadline = "10s"

[stores.main]
engine = "postgres"
memory = "128MiB"

[stores.reports]
engine = "mariadb"
memory = "256MiB"

[stores.cache]
engine = "redis"
memory = "64MiB"
"#;

fn only_postgres() -> String {
    let end = MANIFEST.find("[stores.reports]").unwrap();
    MANIFEST[..end].replace(r#""main", "reports", "cache""#, r#""main""#)
}

fn app(host: &Host, manifest: &str) -> PathBuf {
    let app = host.app("shop", manifest);
    let script = app.join("build/app.py");
    fs::write(&script, APP).unwrap();
    fs::set_permissions(script, fs::Permissions::from_mode(0o755)).unwrap();
    app
}

fn store(host: &Host, app: &Path, name: &str) -> Value {
    host.json(app, &["store", "show", name])
}

fn phase(host: &Host, app: &Path, name: &str) -> String {
    let store = store(host, app, name);
    store["rotation"]["phase"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

/// Login, password and port of an address.
fn parts(url: &str) -> (String, String, String) {
    let (_, rest) = url.split_once("://").unwrap();
    let (who, place) = rest.split_once('@').unwrap();
    let (login, password) = who.split_once(':').unwrap();
    let port = place.split(['/', ':']).nth(1).unwrap();
    (login.to_owned(), password.to_owned(), port.to_owned())
}

/// Whether somebody gets in with an address, by the engine's own client; never with a password among its arguments.
#[expect(clippy::disallowed_methods, reason = "clients of databases, argv only")]
fn gets_in(url: &str) -> bool {
    let (login, password, port) = parts(url);
    let mut command = match url.split(':').next().unwrap() {
        "postgres" => {
            let mut psql = Command::new("psql");
            psql.args([
                "-h",
                "127.0.0.1",
                "-p",
                &port,
                "-U",
                &login,
                "-d",
                "shop",
                "-Atc",
                "SELECT 1",
            ]);
            psql
        }
        "mysql" => {
            let mut mariadb = Command::new("mariadb");
            mariadb.args([
                "--no-defaults",
                "-h",
                "127.0.0.1",
                "-P",
                &port,
                "-u",
                &login,
                "-Ne",
                "SELECT 1",
                "shop",
            ]);
            mariadb
        }
        _ => {
            let mut redis = Command::new("redis-cli");
            redis.args([
                "-e",
                "-h",
                "127.0.0.1",
                "-p",
                &port,
                "--user",
                &login,
                "GET",
                "k",
            ]);
            redis
        }
    };
    let passwords = ["PGPASSWORD", "MYSQL_PWD", "REDISCLI_AUTH"];
    command.envs(passwords.map(|name| (name, password.as_str())));
    let output = command.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    output.status.success() && !said.contains("WRONGPASS") && !said.contains("NOAUTH")
}

/// Asks again and again, and counts what was no good answer.
struct Client {
    ends: Arc<AtomicBool>,
    asked: Arc<AtomicU64>,
    lost: Arc<Mutex<Vec<String>>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Client {
    fn start(port: u16) -> Self {
        use std::io::{Read as _, Write as _};
        let (ends, asked, lost) = (
            Arc::<AtomicBool>::default(),
            Arc::<AtomicU64>::default(),
            Arc::<Mutex<Vec<String>>>::default(),
        );
        let (end, count, losses) = (Arc::clone(&ends), Arc::clone(&asked), Arc::clone(&lost));
        let thread = std::thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                let ask = || -> std::io::Result<String> {
                    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
                    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
                    write!(
                        stream,
                        "GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n"
                    )?;
                    let mut answer = String::new();
                    stream.read_to_string(&mut answer)?;
                    Ok(answer)
                };
                let answer = ask().unwrap_or_else(|error| error.to_string());
                count.fetch_add(1, Ordering::Relaxed);
                if !answer.starts_with("HTTP/1.1 200") || !answer.ends_with("asked") {
                    losses.lock().unwrap().push(answer);
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Self {
            ends,
            asked,
            lost,
            thread: Some(thread),
        }
    }

    #[track_caller]
    fn lost_nothing(mut self) {
        self.ends.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
        let lost = self.lost.lock().unwrap();
        let asked = self.asked.load(Ordering::Relaxed);
        assert!(lost.is_empty() && asked > 50, "of {asked}: {lost:?}");
    }
}

/// What migrations and people are given.
fn operators(host: &Host, app: &Path) -> Vec<String> {
    let stores = ["main", "reports", "cache"];
    let of = |name| host.expect(app, &["store", "connect", name, "--reveal"], 0);
    stores.map(|name| of(name).trim().to_owned()).into()
}

fn urls(host: &Host) -> Vec<String> {
    let names = ["DATABASE_URL", "REPORTS_URL", "REDIS_URL"];
    names
        .map(|name| host.get(HOST, &format!("/env/{name}")).1)
        .into()
}

#[test]
fn every_engine_gets_a_new_password_and_the_old_one_opens_nothing() {
    let _alone = alone();
    let host = Host::start();
    let app = app(&host, MANIFEST);
    host.expect(&app, &["deploy"], 0);
    // A second release, so that an older one has a login that nobody holds.
    let first = urls(&host);
    fs::write(app.join("build/more"), "x").unwrap();
    host.expect(&app, &["deploy", "--wait", "seal"], 0);
    let client = Client::start(host.http);
    let mut dead = first;
    for round in 0..2 {
        let mut before = urls(&host);
        before.extend(operators(&host, &app));
        assert!(before.iter().all(|url| gets_in(url)), "round {round}");
        dead.extend(before.clone());
        for store in ["main", "reports", "cache"] {
            let said = host.expect(&app, &["store", "rotate", store], 0);
            assert!(said.contains("has one password"), "{said}");
        }
        let mut after = urls(&host);
        after.extend(operators(&host, &app));
        for (before, after) in before.iter().zip(&after) {
            assert_ne!(parts(before).1, parts(after).1);
            assert_ne!(parts(before).0, parts(after).0);
        }
        assert!(after.iter().all(|url| gets_in(url)));
        for url in &dead {
            assert!(!gets_in(url), "round {round}: {} opens still", parts(url).0);
        }
    }
    client.lost_nothing();
    let history = host.expect(&app, &["history"], 0);
    assert!(
        history.contains("tester (new password of store main)"),
        "{history}"
    );
    let shown = host.expect(&app, &["store", "show", "main"], 0);
    assert!(shown.contains("password changed at"), "{shown}");
    // No password is in what the server keeps or says.
    for file in [
        "server.log",
        "state/journal.sqlite",
        "state/journal.sqlite-wal",
    ] {
        let bytes = fs::read(host.path(file)).unwrap_or_default();
        for url in &dead {
            let password = parts(url).1;
            let mut windows = bytes.windows(password.len());
            assert!(!windows.any(|part| part == password.as_bytes()), "{file}");
        }
    }
    // A release that is gone back to gets a login of its own again.
    host.expect(&app, &["rollback"], 0);
    assert!(gets_in(&urls(&host)[0]));
}

/// Killed at any moment, the next server goes on with it; nothing is lost, and one password is left.
#[test]
fn a_server_that_is_killed_at_any_step_leaves_nothing_half_done() {
    let _alone = alone();
    let mut host = Host::start();
    let app = app(&host, &only_postgres());
    host.expect(&app, &["deploy", "--wait", "seal"], 0);
    let client = Client::start(host.http);
    let mut dead = Vec::new();
    let mut killed_in = std::collections::BTreeMap::<String, u32>::new();
    for round in 0..4_u64 {
        let before = host.get(HOST, "/env/DATABASE_URL").1;
        host.expect(&app, &["store", "rotate", "main", "--no-wait"], 0);
        for kill in 0..6_u64 {
            std::thread::sleep(Duration::from_millis(40 * round + 170 * kill));
            let phase = phase(&host, &app, "main");
            host.kill_server();
            *killed_in.entry(phase).or_default() += 1;
            host.start_server();
        }
        host.until("one password is left", || {
            phase(&host, &app, "main") == "settled"
        });
        let after = host.get(HOST, "/env/DATABASE_URL").1;
        assert_ne!(parts(&before).1, parts(&after).1);
        assert!(gets_in(&after));
        dead.push(before);
        for url in &dead {
            assert!(!gets_in(url), "round {round}: {} opens still", parts(url).0);
        }
    }
    client.lost_nothing();
    let in_between = killed_in.keys().filter(|phase| *phase != "settled").count();
    assert!(in_between >= 1, "{killed_in:?}");
}

#[test]
fn an_instance_that_does_not_come_up_leaves_the_old_password_valid() {
    let _alone = alone();
    let host = Host::start();
    let folder = host.path("flags");
    fs::create_dir_all(&folder).unwrap();
    let refuses = folder.join("refuses");
    let service = format!(
        "[services.api]\nsandbox = {{ read_only = [{folder:?}] }}\nenv = {{ FLAG = {refuses:?} }}\n"
    );
    let manifest = only_postgres()
        .replace("healthy_deadline = \"10s\"", "healthy_deadline = \"3s\"")
        .replace("[services.api]\n", &service);
    let app = app(&host, &manifest);
    host.expect(&app, &["deploy", "--wait", "seal"], 0);
    let old = host.get(HOST, "/env/DATABASE_URL").1;
    fs::write(&refuses, "").unwrap();
    let said = host.run(&app, &["store", "rotate", "main"]);
    let said_now = String::from_utf8_lossy(&said.stderr).into_owned();
    fs::remove_file(refuses).unwrap();
    assert_eq!(said.status.code(), Some(5), "{said_now}");
    assert!(
        said_now.contains("still has the old password"),
        "{said_now}"
    );
    assert!(
        said_now.contains("landfast store rotate main"),
        "{said_now}"
    );
    assert_eq!(host.get(HOST, "/env/DATABASE_URL").1, old);
    assert_eq!(host.get(HOST, "/").0, 200);
    let status = host.expect(&app, &["status"], 0);
    assert!(status.contains("the old one is valid still"), "{status}");
    // What was wrong is mended: asked again, it goes on.
    host.expect(&app, &["store", "rotate", "main"], 0);
    let new = host.get(HOST, "/env/DATABASE_URL").1;
    assert_ne!(new, old);
    let status = host.expect(&app, &["status"], 0);
    assert!(!status.contains("password of store"), "{status}");
}

#[test]
fn a_job_that_runs_keeps_the_old_password_until_its_end() {
    let _alone = alone();
    let host = Host::start();
    let app = app(&host, &only_postgres());
    host.expect(&app, &["deploy", "--wait", "seal"], 0);
    let old = host.get(HOST, "/env/DATABASE_URL").1;
    std::thread::scope(|scope| {
        let run = scope.spawn(|| host.expect(&app, &["run", "long"], 0));
        host.until("the job runs", || {
            let instances = host.expect(&app, &["logs", "--tail", "50"], 0);
            instances.contains("waits")
        });
        host.expect(&app, &["store", "rotate", "main", "--no-wait"], 0);
        host.until("the instances are replaced", || {
            host.get(HOST, "/env/DATABASE_URL").1 != old
        });
        let said = run.join().unwrap();
        assert!(said.contains("asked"), "{said}");
    });
    host.until("one password is left", || {
        phase(&host, &app, "main") == "settled"
    });
    assert_ne!(host.get(HOST, "/env/DATABASE_URL").1, old);
}

#[test]
fn what_cannot_be_rotated_is_told_with_what_can() {
    let _alone = alone();
    let host = Host::start();
    let manifest = only_postgres()
        + "\n[stores.old]\nengine = \"mysql\"\nexternal = { url_secret = \"OLD_URL\" }\n";
    let app = app(&host, &manifest);
    let set = host.run_with(
        &app,
        &["secret", "set", "OLD_URL"],
        "mysql://a:b@127.0.0.1:1/d",
    );
    assert!(set.status.success(), "{set:?}");
    host.expect(&app, &["deploy", "--wait", "seal"], 0);
    let said = host.run(&app, &["store", "rotate", "old"]);
    let text = String::from_utf8_lossy(&said.stderr).into_owned();
    assert_eq!(said.status.code(), Some(11), "{text}");
    assert!(text.contains("secret rotate OLD_URL"), "{text}");
    host.expect(&app, &["store", "rotate", "nope"], 9);
    host.build(&app, "2", "never-ready");
    host.expect(&app, &["deploy", "--wait", "start"], 0);
    host.expect(&app, &["store", "rotate", "main"], 4);
}

#[test]
fn a_rotation_leaves_the_standby_of_a_rollout_to_its_end() {
    let _alone = alone();
    let host = Host::start();
    let manifest = only_postgres().replace("standby = \"1s\"", "standby = \"10m\"");
    let app = app(&host, &manifest);
    let set = host.run_with(&app, &["secret", "set", "TOKEN"], "first");
    assert!(set.status.success(), "{set:?}");
    host.expect(&app, &["deploy", "--wait", "seal"], 0);
    let old = host.get(HOST, "/env/DATABASE_URL").1;
    let changed = manifest.replace(
        "[services.api]\n",
        "[services.api]\nenv = { LEVEL = \"2\" }\n",
    );
    fs::write(app.join("landfast.toml"), changed).unwrap();
    host.expect(&app, &["deploy", "--wait", "promotion"], 0);
    host.expect(&app, &["store", "rotate", "main", "--no-wait"], 0);
    let rotation = || store(&host, &app, "main")["rotation"].clone();
    host.until("it waits for the seal", || {
        let waits_for = rotation()["waits_for"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        waits_for.contains("is sealed") && waits_for.contains("landfast seal")
    });
    // Longer than it takes to look again.
    std::thread::sleep(Duration::from_secs(7));
    let rollout = host.json(&app, &["status"])["rollout"].clone();
    assert_eq!(rollout["kind"], "deploy", "{rollout}");
    assert!(rotation()["rollout"].is_null());
    // Nor does a new version of a secret end it.
    let said = host.run(&app, &["secret", "rotate", "TOKEN"]);
    let text = String::from_utf8_lossy(&said.stderr).into_owned();
    assert_eq!(said.status.code(), Some(11), "{text}");
    assert!(text.contains("landfast seal"), "{text}");
    let history = host.json(&app, &["secret", "history", "TOKEN"]);
    assert_eq!(history["versions"].as_array().map(Vec::len), Some(1));

    host.expect(&app, &["seal"], 0);
    host.until("the restart is ordered", || {
        !rotation()["rollout"].is_null() || phase(&host, &app, "main") == "settled"
    });
    // That one stands by, too; the new login has come to everybody by then.
    host.run(&app, &["seal"]);
    host.until("one password is left", || {
        host.run(&app, &["seal"]);
        phase(&host, &app, "main") == "settled"
    });
    assert_ne!(host.get(HOST, "/env/DATABASE_URL").1, old);
    assert!(!gets_in(&old));
}

/// A minute is the shortest that a cron line can say: the password of a store, and a secret.
#[test]
fn the_clock_changes_a_password_and_a_secret() {
    // Beside the others: it waits, most of the time.
    let host = Host::start();
    let manifest = only_postgres()
        .replace(
            "uses = [\"main\"]\nhealth",
            "uses = [\"main\"]\nenv = { TOKEN = { required = true } }\nhealth",
        )
        .replace(
            "memory = \"128MiB\"",
            "memory = \"128MiB\"\nrotate = \"* * * * * UTC\"\n\n[secrets.TOKEN]\nrotate = \"* * * * * UTC\"\nlength = 64\nalphabet = \"hex\"",
        );
    let app = app(&host, &manifest);
    let first = "the first of its kind";
    let set = host.run_with(&app, &["secret", "set", "TOKEN"], first);
    assert!(set.status.success(), "{set:?}");
    host.expect(&app, &["deploy", "--wait", "seal"], 0);
    let before = host.get(HOST, "/env/DATABASE_URL").1;
    assert_eq!(host.get(HOST, "/env/TOKEN").1, first);
    let client = Client::start(host.http);

    // It comes due within a minute, and is looked for every 15 s; each of the two is a rolling restart.
    let waited_for = |what: &str, holds: &dyn Fn() -> bool| {
        for _ in 0..200 {
            if holds() {
                return;
            }
            std::thread::sleep(Duration::from_secs(1));
        }
        let log = fs::read_to_string(host.path("server.log")).unwrap();
        panic!("{what}\n{log}");
    };
    waited_for("no other password", &|| {
        parts(&host.get(HOST, "/env/DATABASE_URL").1).1 != parts(&before).1
    });
    waited_for("the old password still opens", &|| !gets_in(&before));
    waited_for("no other secret", &|| {
        let token = host.get(HOST, "/env/TOKEN").1;
        token.len() == 64 && token.bytes().all(|byte| byte.is_ascii_hexdigit())
    });
    client.lost_nothing();
    assert!(gets_in(&host.get(HOST, "/env/DATABASE_URL").1));
    let history = host.expect(&app, &["secret", "history", "TOKEN"], 0);
    assert!(history.contains("schedule"), "{history}");
    // The restart for the one may have brought the other along: the password needs no rollout of its own then.
    let history = host.expect(&app, &["history"], 0);
    let said = "secret TOKEN rotated by the clock";
    assert!(history.contains(said), "{history}");
}
