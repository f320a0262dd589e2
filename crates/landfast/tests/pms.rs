//! `examples/pms` deployed with managed MariaDB and Redis and a bucket, and what is left of it when one of them goes.

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
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use landfast_testbed::S3;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use support::host::Host;

const HOST: &str = "pms.example";
const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/pms");
const ROOM: &str = "/api/rooms/101";
const NIGHTS: &str = "/api/rooms/free?arrives=2027-05-01&departs=2027-05-03";

/// The binary of the example, beside our own. Built here where it is missing or older than its source.
#[expect(
    clippy::disallowed_methods,
    reason = "the build tool is what a user would run"
)]
fn binary() -> PathBuf {
    let binary = assert_cmd::cargo::cargo_bin("landfast").with_file_name("pms");
    let modified = |path: &Path| fs::metadata(path).and_then(|file| file.modified());
    let sources = fs::read_dir(Path::new(EXAMPLE).join("src")).unwrap();
    let newest = sources.map(|entry| modified(&entry.unwrap().path()).unwrap());
    let newest = newest.max().unwrap_or(SystemTime::UNIX_EPOCH);
    if modified(&binary).is_ok_and(|built| built >= newest) {
        return binary;
    }
    let built = Command::new(env!("CARGO"))
        .args(["build", "--locked", "--quiet", "-p", "pms"])
        .current_dir(EXAMPLE)
        .status();
    assert!(built.unwrap().success(), "pms is built");
    binary
}

/// The example in a folder of its own: its manifest with the times of a test and the bucket's address.
fn app(host: &Host, s3: &S3) -> PathBuf {
    let app = host.path("pms");
    fs::create_dir_all(app.join("bin")).unwrap();
    fs::create_dir_all(app.join("migrations")).unwrap();
    for entry in fs::read_dir(Path::new(EXAMPLE).join("migrations")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), app.join("migrations").join(entry.file_name())).unwrap();
    }
    let copy = app.join("bin/pms");
    fs::copy(binary(), &copy).unwrap();
    fs::set_permissions(copy, fs::Permissions::from_mode(0o755)).unwrap();
    let manifest = fs::read_to_string(Path::new(EXAMPLE).join("landfast.toml")).unwrap();
    let manifest = manifest
        .replace("https://s3.pms.example", &s3.endpoint())
        .replace("\"512MiB\"", "\"256MiB\"")
        .replace("replicas  = 3", "replicas  = 2")
        .replace("interval = \"2s\"", "interval = \"200ms\"")
        .replace(
            "strategy = \"blue-green\"",
            "strategy = \"blue-green\"\nmin_ready = \"200ms\"\nstandby = \"1s\"",
        );
    fs::write(app.join("landfast.toml"), manifest).unwrap();
    app
}

/// Asks the proxy; status, head and body.
fn ask(host: &Host, method: &str, path: &str, body: &[u8]) -> (u16, String, Vec<u8>) {
    let mut stream = TcpStream::connect(("127.0.0.1", host.http)).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
    )
    .unwrap();
    stream.write_all(body).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .expect("a whole answer")
        + 4;
    let head = String::from_utf8(answer[..end].to_vec()).unwrap();
    (head[9..12].parse().unwrap(), head, answer.split_off(end))
}

fn ask_json(host: &Host, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let (status, head, body) = ask(host, method, path, body.to_string().as_bytes());
    let said = String::from_utf8_lossy(&body).into_owned();
    let value = serde_json::from_slice(&body).unwrap_or_else(|_| panic!("{head}{said}"));
    (status, value)
}

fn health(host: &Host) -> (u16, Value) {
    ask_json(host, "GET", "/api/health", &json!({}))
}

/// Waits until every instance says that these stores are away, and no other. Each asks the stores for itself, so one may
/// know what another does not yet; twelve answers in a row have asked both.
#[track_caller]
fn until_away(host: &Host, away: &[&str]) -> Value {
    let mut last = Value::Null;
    host.until(&format!("{away:?} are away"), || {
        (0..12).all(|_| {
            last = health(host).1;
            ["database", "redis", "storage"].iter().all(|store| {
                let is_away = last["checks"][store]["status"] == "unhealthy";
                last["checks"].is_object() && is_away == away.contains(store)
            })
        })
    });
    last
}

/// All that needs the database alone.
#[track_caller]
fn books_and_cancels(host: &Host, arrives: &str, departs: &str) {
    let draft = json!({"room": "101", "guest": "A. Guest", "arrives": arrives, "departs": departs});
    let (status, booked) = ask_json(host, "POST", "/api/reservations", &draft);
    assert_eq!(status, 201, "{booked}");
    // Whoever asks again, as a 503 tells him to, has it; nobody else gets it.
    let (status, again) = ask_json(host, "POST", "/api/reservations", &draft);
    assert_eq!((status, &again), (200, &booked));
    let other = json!({"room": "101", "guest": "B. Guest", "arrives": arrives, "departs": departs});
    let (status, refused) = ask_json(host, "POST", "/api/reservations", &other);
    assert_eq!(status, 409, "{refused}");
    let path = format!("/api/reservations/{}", booked["id"]);
    let (status, _, body) = ask(host, "DELETE", &path, b"");
    assert_eq!(status, 204, "{}", String::from_utf8_lossy(&body));
}

/// The server of a store: its working folder is its data.
fn server_of(host: &Host, name: &str, program: &str) -> Option<Pid> {
    let data = host.path(&format!("state/stores/pms/production/{name}/data"));
    let numbers = fs::read_dir("/proc").unwrap().flatten();
    let mut pids = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_it = |pid: &i32| {
        let cwd = fs::read_link(format!("/proc/{pid}/cwd"));
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        cwd.is_ok_and(|cwd| cwd == data) && line.contains(program)
    };
    pids.find(is_it).and_then(Pid::from_raw)
}

/// Stops a server without ending it.
fn hang(host: &Host, name: &str, program: &str) {
    let mut stopped = false;
    host.until(&format!("{name} is stopped"), || {
        let pid = server_of(host, name, program);
        stopped = stopped || pid.is_some_and(|pid| kill_process(pid, Signal::STOP).is_ok());
        stopped
    });
}

/// Lets it go on, unless Landfast has ended it for hanging and begun another.
fn go_on(host: &Host, name: &str, program: &str) {
    if let Some(pid) = server_of(host, name, program) {
        let _gone = kill_process(pid, Signal::CONT);
    }
}

/// Which processes serve.
fn instances(host: &Host, app: &Path) -> Vec<String> {
    let status = host.json(app, &["status"]);
    let mut found = Vec::new();
    collect(&status, &mut found);
    found.sort();
    found
}

fn collect(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match (name.as_str(), value) {
                    ("id", Value::String(id)) if id.starts_with("app.r") => found.push(id.clone()),
                    _ => collect(value, found),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| collect(value, found)),
        _ => {}
    }
}

#[test]
fn the_pms_serves_without_its_cache_and_says_what_it_lacks() {
    let mut s3 = S3::start().unwrap();
    s3.make_bucket("pms").unwrap();
    let host = Host::start();
    let app = app(&host, &s3);
    for (name, value) in [("S3_KEY_ID", S3::KEYS.0), ("S3_KEY", S3::KEYS.1)] {
        let set = host.run_with(&app, &["secret", "set", name], value);
        assert!(set.status.success(), "{set:?}");
    }
    let lint = host.run(&app, &["migrate", "lint"]);
    assert!(lint.status.success(), "{lint:?}");
    host.expect(&app, &["deploy"], 0);

    let well = until_away(&host, &[]);
    assert_eq!(well["version"], "1");
    for store in ["database", "redis", "storage"] {
        let latency = well["checks"][store]["latency_ms"].as_f64();
        assert!(
            latency.is_some_and(|latency| latency > 0.0),
            "{store}: {well}"
        );
    }
    let before = instances(&host, &app);
    assert_eq!(before.len(), 2, "{before:?}");

    // The whole of it: a room, what is free, a reservation, its document, its history.
    let room = json!({"kind": "double", "price_cents": 9900});
    assert_eq!(ask_json(&host, "PUT", ROOM, &room).0, 200);
    let (_, head, body) = ask(&host, "GET", NIGHTS, b"");
    assert!(head.contains("x-cache: miss"), "{head}");
    let (_, head, again) = ask(&host, "GET", NIGHTS, b"");
    assert!(head.contains("x-cache: hit"), "{head}");
    assert_eq!(body, again);
    let draft = json!({"room": "101", "guest": "A. Guest", "arrives": "2027-05-02", "departs": "2027-05-04"});
    let (status, booked) = ask_json(&host, "POST", "/api/reservations", &draft);
    assert_eq!(
        (status, &booked["state"]),
        (201, &json!("booked")),
        "{booked}"
    );
    let (_, free) = ask_json(&host, "GET", NIGHTS, &json!({}));
    assert_eq!(
        free["rooms"],
        json!([]),
        "the cache knows of the reservation"
    );
    let reservation = format!("/api/reservations/{}", booked["id"]);
    let document = format!("{reservation}/document");
    let form = vec![7; 300_000];
    assert_eq!(ask(&host, "PUT", &document, &form).0, 201);
    let (status, _, kept) = ask(&host, "GET", &document, b"");
    assert!(status == 200 && kept == form, "{status}");
    let (_, history) = ask_json(&host, "GET", &format!("{reservation}/history"), &json!({}));
    let actions = history["changes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|change| &change["action"]);
    assert_eq!(actions.collect::<Vec<_>>(), ["booked", "signed"]);

    // Redis is killed until it is seen to be away. It comes back by itself.
    let mut degraded = Value::Null;
    host.until("it is degraded", || {
        if let Some(pid) = server_of(&host, "cache", "redis-server") {
            // It may have ended just now.
            let _gone = kill_process(pid, Signal::KILL);
        }
        degraded = health(&host).1;
        degraded["status"] == "degraded"
    });
    assert_eq!(
        degraded["checks"]["redis"]["status"], "unhealthy",
        "{degraded}"
    );
    assert_eq!(
        degraded["checks"]["database"]["status"], "healthy",
        "{degraded}"
    );
    until_away(&host, &[]);

    // One that hangs is away as well: nobody waits for it, and nobody is told to leave.
    hang(&host, "cache", "redis-server");
    let degraded = until_away(&host, &["redis"]);
    assert_eq!(degraded["status"], "degraded");
    assert_eq!(health(&host).0, 200);
    for night in 1..=20 {
        books_and_cancels(&host, &format!("2027-06-{night:02}"), "2027-06-30");
        let (status, head, _) = ask(&host, "GET", NIGHTS, b"");
        assert!(status == 200 && head.contains("x-cache: bypass"), "{head}");
    }
    go_on(&host, "cache", "redis-server");
    until_away(&host, &[]);

    // Without the bucket there are no documents, and everything else.
    s3.kill();
    let degraded = until_away(&host, &["storage"]);
    assert_eq!(degraded["status"], "degraded");
    let (status, problem) = ask_json(&host, "GET", &document, &json!({}));
    assert_eq!(
        (status, &problem["type"]),
        (503, &json!("https://pms.example/problems/store-away"))
    );
    books_and_cancels(&host, "2027-07-01", "2027-07-02");
    s3.boot().unwrap();
    s3.make_bucket("pms").unwrap();
    until_away(&host, &[]);

    // Without the database it is down, says so itself, and is the same process when the database is back.
    hang(&host, "main", "mariadbd");
    let down = until_away(&host, &["database"]);
    assert_eq!(down["status"], "unhealthy");
    assert_eq!(health(&host).0, 503);
    assert_eq!(ask_json(&host, "GET", "/api/rooms", &json!({})).0, 503);
    go_on(&host, "main", "mariadbd");
    until_away(&host, &[]);
    assert_eq!(
        ask_json(&host, "GET", &reservation, &json!({})).1["state"],
        "booked"
    );
    books_and_cancels(&host, "2027-08-01", "2027-08-02");
    assert_eq!(instances(&host, &app), before, "nobody was restarted");
}
