//! Backups of a volume, and of a PostgreSQL that is somebody else's, through the real server.

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
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use landfast_testbed::Postgres;
use rusqlite::Connection;
use serde_json::Value;
use support::host::Host;

const APP: &str = r#"
app = "shop"

[services.api]
artifact = "build"
command = ["./app.py", "serve"]
port = 3000
health = { ready = "http:/ready", interval = "200ms" }
drain = "1s"
grace = "2s"
@MORE@

[routes.public]
host = "shop.example"
service = "api"

[deploy]
strategy = "rolling"
min_ready = "200ms"
standby = "1s"
healthy_deadline = "30s"
"#;

/// A day.
const BETWEEN_MS: u64 = 24 * 60 * 60 * 1_000;

struct World {
    host: Host,
    app: PathBuf,
    to: PathBuf,
}

/// Once a day, and not while a test runs: twelve hours from now.
#[expect(
    clippy::disallowed_methods,
    reason = "the server under test goes by the real clock"
)]
fn daily() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let hour = now.as_secs() / 3_600 + 12;
    format!("0 {} * * *", hour % 24)
}

impl World {
    fn new(more: &str) -> Self {
        let host = Host::start();
        let to = host.path("backups");
        let more = more
            .replace("@TO@", &to.display().to_string())
            .replace("@DAILY@", &daily());
        let app = host.app("shop", &APP.replace("@MORE@", &more));
        Self { host, app, to }
    }

    #[track_caller]
    fn ok(&self, arguments: &[&str]) -> String {
        self.host.expect(&self.app, arguments, 0)
    }

    #[track_caller]
    fn refused(&self, arguments: &[&str], code: i32) -> String {
        let output = self.host.run(&self.app, arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        said
    }

    fn shown(&self, name: &str) -> Value {
        self.host.json(&self.app, &["backup", "show", name])
    }

    fn until_proven(&self, name: &str) {
        self.host.until("the first backup is proven", || {
            let shown = self.shown(name);
            !shown["drill"]["passed_at"].is_null() && shown["running"].is_null()
        });
    }

    fn edit(&self, line: &str, with: &str) {
        let path = self.app.join("landfast.toml");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(line), "`{line}` is not in {text}");
        fs::write(path, text.replace(line, with)).unwrap();
    }

    /// The largest pack of the repository, and its name there.
    fn pack(&self) -> (PathBuf, String) {
        let packs = files(&self.to).into_iter();
        let packs = packs.filter(|path| path.to_string_lossy().contains("/packs/"));
        let pack = packs.max_by_key(|path| fs::metadata(path).unwrap().len());
        let pack = pack.unwrap();
        let name = pack.strip_prefix(&self.to).unwrap().display().to_string();
        (pack, name)
    }

    fn flip(&self) -> String {
        let (pack, name) = self.pack();
        let mut bytes = fs::read(&pack).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&pack, bytes).unwrap();
        name
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}

#[test]
fn a_volume_is_backed_up_proven_damaged_and_restored_beside() {
    let mut world = World::new(
        "volumes = { uploads = \"managed\" }\n\n[volumes.uploads.backup]\nto = \"@TO@\"\nwhen = \"@DAILY@\"\n\
         full = \"@DAILY@\"\n\n[volumes.uploads.backup.drill]\nlight = \"@DAILY@\"\nfull = \"@DAILY@\"\n",
    );
    world.ok(&["deploy", "--wait", "seal"]);
    let volumes = world.host.path("state/volumes/shop/production");
    let volume = volumes.join("uploads");
    fs::create_dir(volume.join("a")).unwrap();
    let noise: Vec<u8> = (0..400_000_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    fs::write(volume.join("a/photo"), &noise).unwrap();
    let database = Connection::open(volume.join("app.db")).unwrap();
    database
        .execute_batch(
            "PRAGMA journal_mode = WAL; CREATE TABLE t (n); INSERT INTO t VALUES (1), (2)",
        )
        .unwrap();
    world.until_proven("uploads");
    let said = world.ok(&["backup", "now", "uploads"]);
    assert!(said.contains("what changed since"), "{said}");
    let said = world.ok(&["drill", "uploads", "--full"]);
    assert!(
        said.contains("proven") && said.contains("integrity of app.db"),
        "{said}"
    );
    let shown = world.shown("uploads");
    assert_eq!(shown["source"], "volume");
    assert_eq!(shown["interval_ms"], BETWEEN_MS);
    assert_eq!(shown["troubles"].to_string(), "[]", "{shown}");
    assert!(!shown["restorable_to"].is_null() && !shown["rpo_ms"].is_null());
    let said = world.ok(&["backup", "show", "uploads"]);
    assert!(
        said.contains("at the most, the time between two snapshots"),
        "{said}"
    );
    world.ok(&["backup", "list"]);

    // What was written before the server of Landfast was killed is there after it.
    world.host.kill_server();
    world.host.start_server();
    world.host.until("it is looked at again", || {
        !world.shown("uploads")["restorable_to"].is_null()
    });
    database.execute_batch("INSERT INTO t VALUES (3)").unwrap();
    fs::remove_file(volume.join("a/photo")).unwrap();
    let said = world.ok(&["restore", "run", "uploads", "--as", "uploads-before"]);
    assert!(said.contains("restored from backup"), "{said}");
    let beside = volumes.join("uploads-before");
    assert_eq!(fs::read(beside.join("a/photo")).unwrap(), noise);
    let copy = Connection::open(beside.join("app.db")).unwrap();
    let count = |from: &Connection| -> i64 {
        from.query_row("SELECT count(*) FROM t", [], |row| row.get(0))
            .unwrap()
    };
    assert_eq!((count(&copy), count(&database)), (2, 3));
    // The volume itself is not touched, and nothing is overwritten.
    assert!(!volume.join("a/photo").exists());
    world.refused(&["restore", "run", "uploads", "--as", "uploads-before"], 1);
    world.refused(
        &[
            "restore",
            "export",
            "uploads",
            "--into",
            &volume.display().to_string(),
        ],
        1,
    );
    let said = world.refused(
        &["restore", "run", "uploads", "--as", "x", "--lsn", "0/1"],
        1,
    );
    assert!(said.contains("there is no log"), "{said}");
    let long_ago = ["--time", "2001-01-01T00:00:00Z"];
    world.refused(
        &[&["restore", "run", "uploads", "--as", "x"], &long_ago[..]].concat(),
        1,
    );

    let metrics = world.host.metrics();
    let label = "{app=\"shop\",environment=\"production\",store=\"uploads\"}";
    for line in [
        format!("landfast_backup_up{label} 1"),
        format!(
            "landfast_backup_interval_seconds{label} {}",
            BETWEEN_MS / 1_000
        ),
    ] {
        assert!(metrics.contains(&line), "{line}: {metrics}");
    }
    let said = world.ok(&["backup", "prune", "uploads", "--dry-run"]);
    assert!(said.contains("the newest good one"), "{said}");

    let name = world.flip();
    for command in [&["backup", "verify", "uploads"][..], &["drill", "uploads"]] {
        let said = world.refused(command, 1);
        assert!(said.contains(&name), "{said}");
    }
    assert!(world.ok(&["status"]).contains(&name));
    world.edit(
        "[deploy]\n",
        "[deploy]\ngates = [\"preflight\", \"backup\"]\n",
    );
    world.host.build(&world.app, "2", "-");
    let said = world.refused(&["deploy", "--wait", "seal"], 8);
    assert!(said.contains("volume `uploads`"), "{said}");
    world.ok(&["backup", "now", "uploads", "--full"]);
    world.ok(&["drill", "uploads"]);
    // Another disk, or an empty folder as where none is mounted, is not taken for what was there.
    fs::rename(&volume, volumes.join("away")).unwrap();
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("other"), "of another disk").unwrap();
    let said = world.refused(&["backup", "now", "uploads"], 1);
    assert!(said.contains("has nothing of what was there"), "{said}");
    fs::remove_file(volume.join("other")).unwrap();
    let said = world.refused(&["backup", "now", "uploads"], 1);
    assert!(
        said.contains("is empty") && said.contains("--full"),
        "{said}"
    );
    world.ok(&["backup", "now", "uploads", "--full"]);
}

#[test]
fn a_database_of_somebody_else_is_dumped_proven_and_exported() {
    let theirs = Postgres::start().unwrap();
    let sql = |database: &str, text: &str| theirs.sql(database, text).unwrap();
    sql(
        "postgres",
        "CREATE ROLE app LOGIN PASSWORD 'pass-of-theirs'",
    );
    sql("postgres", "CREATE DATABASE shop OWNER app");
    let table = "CREATE TABLE items (n int PRIMARY KEY); ALTER TABLE items OWNER TO app; \
        INSERT INTO items SELECT generate_series(1, 1000)";
    sql("shop", table);
    let world = World::new(
        "uses = [\"main\"]\n\n[stores.main]\nengine = \"postgres\"\nexternal = { url_secret = \"MAIN_ADDRESS\" }\n\n\
         [stores.main.backup]\nto = \"@TO@\"\nfull = \"@DAILY@\"\n\n\
         [stores.main.backup.drill]\nlight = \"@DAILY@\"\nfull = \"@DAILY@\"\n\n\
         [stores.main.backup.drill.checks.items]\nsql = \"SELECT count(*) > 0 FROM items\"\nexpect = \"t\"\n",
    );
    let url = format!(
        "postgres://app:pass-of-theirs@127.0.0.1:{}/shop",
        theirs.port()
    );
    let set = world
        .host
        .run_with(&world.app, &["secret", "set", "MAIN_ADDRESS"], &url);
    assert!(set.status.success(), "{set:?}");
    world.ok(&["deploy", "--wait", "seal"]);
    world.until_proven("main");
    let shown = world.shown("main");
    assert_eq!(shown["source"], "dumps");
    assert_eq!(shown["interval_ms"], BETWEEN_MS);
    assert_eq!(shown["troubles"].to_string(), "[]", "{shown}");
    let checks = shown["drill"]["checks"].to_string();
    for name in ["1000 rows in", "schema", "items"] {
        assert!(checks.contains(name), "{checks}");
    }
    let said = world.ok(&["backup", "list"]);
    assert!(
        said.contains("at the most, the time between two dumps"),
        "{said}"
    );

    let said = world.ok(&["status"]);
    assert!(said.contains("backups of main: would be lost"), "{said}");

    // Migrations of the folder, tried on the dump: of a server of somebody else there is no other copy.
    let manifest = world.app.join("landfast.toml");
    let before = fs::read_to_string(&manifest).unwrap();
    world.edit(
        "engine = \"postgres\"\n",
        "engine = \"postgres\"\nmigrations = \"migrations\"\n",
    );
    fs::create_dir(world.app.join("migrations")).unwrap();
    let wide =
        "-- landfast: allow=PG030 a rehearsal\nALTER TABLE items ALTER COLUMN n TYPE bigint;";
    fs::write(world.app.join("migrations/0001_wide.sql"), wide).unwrap();
    let said = world.ok(&["migrate", "rehearse", "--from", "backup"]);
    assert!(
        said.contains("0001_wide") && said.contains("items everybody"),
        "{said}"
    );
    let kind = "SELECT data_type FROM information_schema.columns WHERE table_name = 'items'";
    assert_eq!(theirs.sql("shop", kind).unwrap().trim(), "integer");
    fs::write(manifest, before).unwrap();

    sql("shop", "INSERT INTO items VALUES (5000)");
    world.ok(&["backup", "now", "main"]);
    let into = world.host.path("exported").display().to_string();
    world.ok(&["restore", "export", "main", "--into", &into]);
    let dump = fs::read(Path::new(&into).join("dump")).unwrap();
    assert!(dump.starts_with(b"PGDMP"), "{:?}", &dump[..8]);
    let said = world.refused(&["restore", "run", "main", "--as", "copy"], 1);
    assert!(said.contains("pg_restore"), "{said}");

    // A check that is not met, and a server that is away, are told.
    sql("shop", "DELETE FROM items");
    world.ok(&["backup", "now", "main"]);
    let said = world.refused(&["drill", "main"], 1);
    assert!(
        said.contains("items: it gave another answer than `t`") && said.contains("items gave `f`"),
        "{said}"
    );
    // What stands in the database is for whoever asks, and for nobody who is only told.
    let status = world.ok(&["status"]);
    assert!(
        status.contains("another answer than") && !status.contains("`f`"),
        "{status}"
    );
    sql("postgres", "ALTER ROLE app PASSWORD 'another'");
    let said = world.refused(&["backup", "now", "main"], 1);
    assert!(said.contains("password authentication failed"), "{said}");
    assert!(!said.contains("pass-of-theirs"), "{said}");
    let status = world.ok(&["status"]);
    assert!(
        status.contains("password authentication failed"),
        "{status}"
    );
    assert!(!status.contains("pass-of-theirs"), "{status}");

    // Another database of the same name's address is not the one that was dumped; a person may say that it is to be.
    sql("postgres", "CREATE DATABASE other OWNER app");
    let url = format!("postgres://app:another@127.0.0.1:{}/other", theirs.port());
    let set = world
        .host
        .run_with(&world.app, &["secret", "set", "MAIN_ADDRESS"], &url);
    assert!(set.status.success(), "{set:?}");
    world.host.build(&world.app, "2", "-");
    world.ok(&["deploy", "--wait", "seal"]);
    world.host.until("another one is told apart", || {
        let output = world.host.run(&world.app, &["backup", "now", "main"]);
        assert!(!output.status.success());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        said.contains("is not the database `shop` that was dumped before")
    });
    world.ok(&["backup", "now", "main", "--full"]);
    world.ok(&["backup", "now", "main"]);
}
