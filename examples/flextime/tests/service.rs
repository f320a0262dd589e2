//! The real binary: served from a temporary folder, spoken to over real sockets, asked to leave by signals.

#![expect(
    clippy::unwrap_used,
    reason = "in a test a failed unwrap is the failure"
)]

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::{Value, json};

/// One running service; killed when a test fails before it stopped it.
struct Service {
    child: Child,
    address: SocketAddr,
    lines: BufReader<std::process::ChildStdout>,
}

struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&self.body)))
    }
}

impl Service {
    fn start(data: &Path, instance: &str, more: &[(&str, &str)]) -> Self {
        let mut child = command(&["serve"])
            .envs([("PORT", "0"), ("LANDFAST_INSTANCE", instance)])
            .envs(more.iter().copied())
            .env("VOLUME_DATA", data)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        let serving: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(serving["message"], "serving", "{line}");
        Self {
            child,
            address: serving["address"].as_str().unwrap().parse().unwrap(),
            lines,
        }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        stream
    }

    fn ask(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Answer {
        let mut stream = self.connect();
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let end = answer
            .windows(4)
            .position(|four| four == b"\r\n\r\n")
            .expect("a head")
            + 4;
        let head = String::from_utf8(answer[..end].to_vec()).unwrap();
        let status = head[9..12].parse().unwrap();
        assert!(head.contains("x-release: "), "{head}");
        Answer {
            status,
            head,
            body: answer.split_off(end),
        }
    }

    fn json(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let answer = self.ask(method, path, "", body.as_bytes());
        let value = if answer.body.is_empty() {
            Value::Null
        } else {
            answer.json()
        };
        (answer.status, value)
    }

    fn signal(&self, name: &str) {
        assert!(run(
            "kill",
            &[&format!("-{name}"), &self.child.id().to_string()]
        ));
    }

    /// Asks it to leave; says the exit status and what it logged last.
    fn stop(mut self) -> (Option<i32>, String) {
        self.signal("TERM");
        let mut rest = String::new();
        self.lines.read_to_string(&mut rest).unwrap();
        (self.child.wait().unwrap().code(), rest)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[expect(clippy::disallowed_methods, reason = "the test's subject is a process")]
fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flextime"));
    command.args(arguments).env_clear();
    command
}

#[expect(
    clippy::disallowed_methods,
    reason = "signals are sent with the system's own tool"
)]
fn run(program: &str, arguments: &[&str]) -> bool {
    Command::new(program)
        .args(arguments)
        .status()
        .unwrap()
        .success()
}

fn rest_days(id: &str) -> Value {
    json!({"id": id, "type": "rest-days", "sport": "hockey", "name": "rest", "configuration": {"min_days": 1}})
}

fn schedule() -> Value {
    let game = |id: &str, start: &str| {
        json!({"id": id, "home": "a", "away": "b", "start": start,
               "venue": {"id": "rink", "latitude": 46.2, "longitude": 6.1}})
    };
    json!({"id": "s1", "sport": "hockey", "games": [game("1", "2026-01-01T18:00:00Z"), game("2", "2026-01-02T18:00:00Z")]})
}

#[test]
fn keeps_evaluates_measures_and_forgets_constraints() {
    let data = tempfile::tempdir().unwrap();
    let service = Service::start(data.path(), "one", &[]);
    assert_eq!(service.json("GET", "/ready", &Value::Null).0, 200);
    let (status, health) = service.json("GET", "/health", &Value::Null);
    assert_eq!((status, &health["status"]), (200, &json!("healthy")));
    assert!(health["timestamp"].is_string() && health["version"].is_string());

    assert_eq!(
        service
            .json("POST", "/v2/constraints", &rest_days("rest"))
            .0,
        201
    );
    assert_eq!(
        service
            .json("POST", "/v2/constraints", &rest_days("rest"))
            .0,
        409
    );
    let (status, problem) = service.json(
        "POST",
        "/v2/constraints",
        &json!({"type": "luck", "sport": "", "name": "x"}),
    );
    assert_eq!(
        (status, problem["errors"].as_array().unwrap().len()),
        (422, 2)
    );
    assert_eq!(
        service
            .json("POST", "/v2/constraints", &json!({"typo": 1}))
            .0,
        400
    );

    let request = json!({"schedule": schedule()});
    for cached in [false, true] {
        let (status, answer) = service.json("POST", "/v2/evaluate", &request);
        assert_eq!(status, 200, "{answer}");
        assert_eq!(answer["results"][0]["finding"]["violation_count"], 2);
        assert_eq!(
            (&answer["results"][0]["cached"], &answer["score"]),
            (&json!(cached), &json!(0.0))
        );
    }
    let mut relaxed = rest_days("rest");
    relaxed["configuration"]["min_days"] = json!(0);
    assert_eq!(service.json("PUT", "/v2/constraints/rest", &relaxed).0, 200);
    let (_, answer) = service.json("POST", "/v2/evaluate", &request);
    assert_eq!(
        (&answer["satisfied"], &answer["score"]),
        (&json!(true), &json!(100.0))
    );

    let (_, performance) = service.json("GET", "/v2/constraints/performance", &Value::Null);
    assert_eq!(performance["evaluations"]["total"], 3);
    assert_eq!(performance["cache"]["hits"], 1);
    let metrics = service.ask("GET", "/metrics", "", b"");
    let metrics = String::from_utf8(metrics.body).unwrap();
    for line in [
        r#"constraint_evaluations_total{constraint_id="rest",result="violated"} 2"#,
        r#"constraint_evaluations_total{constraint_id="rest",result="satisfied"} 1"#,
        r#"http_requests_total{method="POST",route="/v2/evaluate",status="200"} 3"#,
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }

    assert_eq!(
        service
            .json("DELETE", "/v2/constraints/rest", &Value::Null)
            .0,
        204
    );
    assert_eq!(
        service.json("GET", "/v2/constraints/rest", &Value::Null).0,
        404
    );
    assert_eq!(service.json("GET", "/nowhere", &Value::Null).0, 404);
    assert_eq!(service.json("PUT", "/v2/evaluate", &Value::Null).0, 405);
    let (code, log) = service.stop();
    assert_eq!(code, Some(0), "{log}");
}

#[test]
fn lists_by_filter_and_page() {
    let data = tempfile::tempdir().unwrap();
    let service = Service::start(data.path(), "one", &[]);
    for number in 0..7 {
        let mut constraint = rest_days(&format!("c{number}"));
        constraint["active"] = json!(number % 2 == 0);
        assert_eq!(service.json("POST", "/v2/constraints", &constraint).0, 201);
    }
    let (mut ids, mut cursor) = (Vec::new(), String::new());
    loop {
        let path =
            format!("/v2/constraints?type=rest-days&sport=hockey&active=true&limit=3{cursor}");
        let (status, page) = service.json("GET", &path, &Value::Null);
        assert_eq!(status, 200, "{page}");
        ids.extend(
            page["items"]
                .as_array()
                .unwrap()
                .iter()
                .map(|item| item["id"].as_str().unwrap().to_owned()),
        );
        let Some(next) = page["next_cursor"].as_str() else {
            break;
        };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(ids, ["c0", "c2", "c4", "c6"]);
    assert_eq!(
        service
            .json("GET", "/v2/constraints?limit=0", &Value::Null)
            .0,
        400
    );
    assert_eq!(
        service
            .json("GET", "/v2/constraints?colour=red", &Value::Null)
            .0,
        400
    );
}

#[test]
fn two_processes_share_one_folder_and_each_keeps_its_own_receipts() {
    let data = tempfile::tempdir().unwrap();
    let (one, two) = (
        Service::start(data.path(), "one", &[]),
        Service::start(data.path(), "two", &[]),
    );
    assert_eq!(
        one.json("POST", "/v2/constraints", &rest_days("shared")).0,
        201
    );
    assert_eq!(
        two.json("GET", "/v2/constraints/shared", &Value::Null).0,
        200
    );
    let body = vec![b'x'; 64 << 10];
    for (service, id) in [(&one, "r-1"), (&two, "r-2"), (&one, "r-3")] {
        let answer = service.ask(
            "POST",
            "/v2/rehearsal/receipts",
            &format!("x-receipt-id: {id}\r\n"),
            &body,
        );
        assert_eq!((answer.status, &answer.json()["id"]), (200, &json!(id)));
        assert_eq!(answer.json()["bytes"], 64 << 10);
        assert!(answer.head.contains("x-app-time: "));
    }
    assert_eq!(
        one.ask("POST", "/v2/rehearsal/receipts", "", &body).status,
        400
    );
    assert_eq!(one.stop().0, Some(0));
    assert_eq!(two.stop().0, Some(0));
    assert_eq!(
        fs::read_to_string(data.path().join("receipts-one.log")).unwrap(),
        "r-1\nr-3\n"
    );
    assert_eq!(
        fs::read_to_string(data.path().join("receipts-two.log")).unwrap(),
        "r-2\n"
    );
}

#[test]
fn a_cut_body_leaves_no_receipt() {
    let data = tempfile::tempdir().unwrap();
    let service = Service::start(data.path(), "one", &[]);
    let mut stream = service.connect();
    let head = "POST /v2/rehearsal/receipts HTTP/1.1\r\nhost: test\r\nx-receipt-id: cut\r\ncontent-length: 100\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(b"only this").unwrap();
    drop(stream);
    assert_eq!(service.stop().0, Some(0));
    assert_eq!(
        fs::read_to_string(data.path().join("receipts-one.log")).unwrap(),
        ""
    );
}

#[test]
fn the_key_guards_what_is_not_about_the_process() {
    let data = tempfile::tempdir().unwrap();
    let service = Service::start(data.path(), "one", &[("API_KEY", "swordfish")]);
    assert_eq!(service.json("GET", "/v2/constraints", &Value::Null).0, 401);
    assert_eq!(
        service
            .ask(
                "GET",
                "/v2/constraints",
                "authorization: Bearer swordfish\r\n",
                b""
            )
            .status,
        200
    );
    assert_eq!(service.json("GET", "/health", &Value::Null).0, 200);
    let (_, log) = service.stop();
    assert!(!log.contains("swordfish"));
}

#[test]
fn finishes_what_was_begun_before_it_leaves() {
    let data = tempfile::tempdir().unwrap();
    let service = Service::start(data.path(), "one", &[]);
    let mut waiting = service.connect();
    waiting
        .write_all(b"GET /v2/rehearsal/wait?ms=1500 HTTP/1.1\r\nhost: test\r\n\r\n")
        .unwrap();
    let mut socket = service.connect();
    socket
        .write_all(
            b"GET /v2/stream?rehearsal=numbers&every=20 HTTP/1.1\r\nhost: test\r\nconnection: keep-alive, Upgrade\r\n\
              upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        )
        .unwrap();
    let mut events = service.connect();
    events
        .write_all(b"GET /v2/events?rehearsal=numbers&every=20 HTTP/1.1\r\nhost: test\r\n\r\n")
        .unwrap();
    // Once each stream has sent something, all three requests have begun.
    let mut first = [0; 512];
    assert!(socket.read(&mut first).unwrap() > 0);
    assert!(events.read(&mut first).unwrap() > 0);
    std::thread::sleep(Duration::from_millis(300));
    service.signal("TERM");

    let mut answer = String::new();
    waiting.read_to_string(&mut answer).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.ends_with(r#"{"waited_milliseconds":1500}"#),
        "{answer}"
    );
    let mut streamed = Vec::new();
    events.read_to_end(&mut streamed).unwrap();
    assert!(
        streamed.ends_with(b"\n\n\r\n0\r\n\r\n"),
        "{}",
        String::from_utf8_lossy(&streamed)
    );
    let mut frames = Vec::new();
    socket.read_to_end(&mut frames).unwrap();
    assert!(
        frames.ends_with(b"\x88\x09\x03\xF4leaving"),
        "{:?}",
        frames.iter().rev().take(20).collect::<Vec<_>>()
    );
    assert_eq!(service.stop_after_signal(), Some(0));
}

impl Service {
    fn stop_after_signal(mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

#[test]
fn the_smoke_test_passes_on_a_sound_service_and_names_what_is_wrong_elsewhere() {
    let data = tempfile::tempdir().unwrap();
    let service = Service::start(data.path(), "one", &[]);
    let smoke = |url: String| {
        command(&["smoke"])
            .envs([
                ("LANDFAST_PREVIEW_URL", url.as_str()),
                ("LANDFAST_PREVIEW_HOST", "api.flextime.example"),
            ])
            .output()
            .unwrap()
    };
    let passed = smoke(format!("http://{}", service.address));
    assert!(passed.status.success(), "{passed:?}");
    assert_eq!(
        service.json("GET", "/v2/constraints", &Value::Null).1["items"],
        json!([])
    );
    assert_eq!(service.stop().0, Some(0));
    let failed = smoke("http://127.0.0.1:1".to_owned());
    assert_eq!(failed.status.code(), Some(1));
    let said = String::from_utf8(failed.stderr).unwrap();
    assert!(
        said.contains("GET /ready failed: failed to connect to 127.0.0.1:1"),
        "{said}"
    );
}

#[test]
fn wrong_settings_are_all_named() {
    let output = command(&["serve"])
        .envs([("PORT", "high"), ("CACHE_TTL", "long")])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("PORT is `high`") && said.contains("CACHE_TTL is `long`"),
        "{said}"
    );
    assert_eq!(command(&["dance"]).output().unwrap().status.code(), Some(2));
}
