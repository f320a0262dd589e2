//! The real binary on real stores: what it refuses, who gets the room, and how it starts where stores are missing.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "in a test a failed unwrap is the failure, and the service is a process"
)]

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use landfast_migration::{Engine, MigrationSet, SourceFile};
use landfast_migrator::{Options, Session, Stage};
use landfast_testbed::{Mariadb, Redis, S3};
use landfast_types::Secret;
use serde_json::{Value, json};

const NIGHTS: &str = "/api/rooms/free?arrives=2027-05-01&departs=2027-05-03";

/// One running service; killed when a test fails before it stopped it.
struct Service {
    child: Child,
    address: SocketAddr,
}

impl Service {
    fn start(mariadb: &Mariadb, redis: &Redis, s3: &S3) -> Self {
        let (key, secret) = S3::KEYS;
        let mut child = Command::new(env!("CARGO_BIN_EXE_pms"))
            .arg("serve")
            .envs([
                ("PORT", "0"),
                ("S3_BUCKET", "pms"),
                ("S3_REGION", "us-east-1"),
            ])
            .envs([("S3_ACCESS_KEY_ID", key), ("S3_SECRET_ACCESS_KEY", secret)])
            .env("S3_ENDPOINT", s3.endpoint())
            .env("DATABASE_URL", mariadb.url("app"))
            .env("REDIS_URL", redis.url())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        let serving: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(serving["message"], "serving", "{line}");
        let address = serving["address"].as_str().unwrap().parse().unwrap();
        Self { child, address }
    }

    fn ask(&self, method: &str, path: &str, body: &[u8]) -> (u16, String, Vec<u8>) {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
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
        (head[9..12].parse().unwrap(), head, answer.split_off(end))
    }

    fn json(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let (status, head, body) = self.ask(method, path, body.to_string().as_bytes());
        let value = serde_json::from_slice(&body);
        (
            status,
            value.unwrap_or_else(|_| panic!("{head}{}", String::from_utf8_lossy(&body))),
        )
    }

    fn until(&self, path: &str, is: impl Fn(u16, &Value) -> bool) -> Value {
        for _ in 0..300 {
            let (status, body) = self.json("GET", path, &Value::Null);
            if is(status, &body) {
                return body;
            }
            thread::sleep(Duration::from_millis(50));
        }
        panic!(
            "{path} never said so: {:?}",
            self.json("GET", path, &Value::Null)
        );
    }

    fn stop(mut self) -> Option<i32> {
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-TERM", &pid])
                .status()
                .unwrap()
                .success()
        );
        self.child.wait().unwrap().code()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn migrate(mariadb: &Mariadb) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
    let mut files: Vec<SourceFile> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| SourceFile {
            name: entry.file_name().into_string().unwrap(),
            bytes: fs::read(entry.path()).unwrap(),
        })
        .collect();
    files.sort_by(|one, other| one.name.cmp(&other.name));
    let set = MigrationSet::parse(&files, Engine::Mariadb).unwrap();
    let url = Secret::new(mariadb.url("app"));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut session = Session::connect(Engine::Mariadb, &url).await.unwrap();
        let report = session
            .up(&set, Stage::All, &Options::default(), &mut |_| {})
            .await;
        assert_eq!(report.unwrap().applied.len(), 3);
    });
}

fn draft(arrives: &str, departs: &str) -> Value {
    json!({"room": "101", "guest": "A. Guest", "arrives": arrives, "departs": departs})
}

#[test]
fn is_ready_with_its_tables_books_once_and_leaves_in_order() {
    let (mariadb, redis, s3) = (
        Mariadb::start().unwrap(),
        Redis::start().unwrap(),
        S3::start().unwrap(),
    );
    s3.make_bucket("pms").unwrap();
    let service = Service::start(&mariadb, &redis, &s3);
    // The database answers, but has nothing this release could work with.
    assert_eq!(service.json("GET", "/ready", &Value::Null).0, 503);
    assert_eq!(service.json("GET", "/live", &Value::Null).0, 200);
    migrate(&mariadb);
    service.until("/ready", |status, _| status == 200);
    service.until("/api/health", |_, body| body["status"] == "healthy");

    let room = json!({"kind": "double", "price_cents": 9900});
    assert_eq!(service.json("PUT", "/api/rooms/101", &room).0, 200);
    assert_eq!(service.json("PUT", "/api/rooms/101", &room).0, 200);
    let (_, rooms) = service.json("GET", "/api/rooms", &Value::Null);
    assert_eq!(rooms["rooms"].as_array().unwrap().len(), 1);

    // Twenty want the same nights.
    let booked: Vec<u16> = thread::scope(|scope| {
        let service = &service;
        let all: Vec<_> = (0..20)
            .map(|number| {
                scope.spawn(move || {
                    let mut draft = draft("2027-05-01", "2027-05-03");
                    draft["guest"] = json!(format!("Guest {number}"));
                    service.json("POST", "/api/reservations", &draft).0
                })
            })
            .collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    let count = |status: u16| booked.iter().filter(|one| **one == status).count();
    assert_eq!((count(201), count(409)), (1, 19), "{booked:?}");
    // The night of departure is free again, and the cache knows what was booked.
    assert_eq!(
        service
            .json(
                "POST",
                "/api/reservations",
                &draft("2027-05-03", "2027-05-04")
            )
            .0,
        201
    );
    let (_, free) = service.json("GET", NIGHTS, &Value::Null);
    assert_eq!(free["rooms"], json!([]));

    for (body, status) in [
        (draft("2027-05-04", "2027-05-04"), 422),
        (draft("2027-02-30", "2027-03-01"), 400),
        (
            json!({"room": "999", "guest": "x", "arrives": "2027-05-01", "departs": "2027-05-02"}),
            404,
        ),
        (json!({"room": "101"}), 400),
    ] {
        let (said, problem) = service.json("POST", "/api/reservations", &body);
        assert_eq!(
            (said, &problem["status"]),
            (status, &json!(status)),
            "{body}"
        );
    }
    assert_eq!(
        service.json("GET", "/api/reservations/x", &Value::Null).0,
        404
    );
    assert_eq!(
        service
            .ask(
                "PUT",
                "/api/reservations/1/document",
                &vec![0; (10 << 20) + 1]
            )
            .0,
        413
    );
    let (_, metrics, body) = service.ask("GET", "/metrics", b"");
    let text = String::from_utf8(body).unwrap();
    assert!(
        text.contains("pms_store_up{store=\"storage\"} 1"),
        "{metrics}{text}"
    );
    assert_eq!(service.stop(), Some(0));
}

#[test]
fn starts_without_a_cache_and_what_was_kept_before_is_not_believed() {
    let (mariadb, mut redis, s3) = (
        Mariadb::start().unwrap(),
        Redis::start().unwrap(),
        S3::start().unwrap(),
    );
    migrate(&mariadb);
    let first = Service::start(&mariadb, &redis, &s3);
    first.until("/api/health", |_, body| {
        body["checks"]["redis"]["status"] == "healthy"
    });
    assert_eq!(
        first
            .json(
                "PUT",
                "/api/rooms/101",
                &json!({"kind": "single", "price_cents": 1})
            )
            .0,
        200
    );
    let free = |service: &Service| {
        let (status, head, body) = service.ask("GET", NIGHTS, b"");
        assert_eq!(status, 200);
        let rooms: Value = serde_json::from_slice(&body).unwrap();
        (
            head.contains("x-cache: bypass"),
            rooms["rooms"].as_array().unwrap().len(),
        )
    };
    assert_eq!(free(&first), (false, 1));
    // The bucket is not there, the cache goes: it is degraded, and starts so as well.
    redis.stop();
    let second = Service::start(&mariadb, &redis, &s3);
    let body = second.until("/api/health", |_, body| body["status"] == "degraded");
    assert_eq!(body["checks"]["storage"]["status"], "unhealthy");
    assert_eq!(second.json("GET", "/ready", &Value::Null).0, 200);
    assert_eq!(
        second
            .json(
                "POST",
                "/api/reservations",
                &draft("2027-05-02", "2027-05-04")
            )
            .0,
        201
    );
    assert_eq!(free(&second), (true, 0));
    // It comes back with what it had kept from before the reservation.
    redis.boot().unwrap();
    second.until("/api/health", |_, body| {
        body["checks"]["redis"]["status"] == "healthy"
    });
    assert_eq!(free(&second), (false, 0));
    assert_eq!(second.stop(), Some(0));
    assert_eq!(first.stop(), Some(0));
}
