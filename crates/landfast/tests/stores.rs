//! Managed stores with the real servers of this host: made, tuned, injected, restarted, recovered, deleted.

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
    path::Path,
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
};

use rustix::process::{Pid, Signal};
use serde_json::Value;
use support::{disk::Disk, host::Host};

const HOST: &str = "shop.example";

/// One after another: each makes whole databases, and their times are those of a host that does little else.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes into or reads from every store, by the clients their packages bring.
const DATABASE: &str = r#"#!/usr/bin/env python3
import os, subprocess, sys, urllib.parse
def ask(argv, **env):
    done = subprocess.run(argv, env={**os.environ, **env}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    if "SELECT x" in argv[-1] + argv[-2] or "GET" in argv:
        print(done.stdout.strip())
def sql(statement):
    ask(["psql", os.environ["DATABASE_URL"], "-qAtc", statement])
def my(statement):
    url = urllib.parse.urlparse(os.environ["REPORTS_URL"])
    ask(["mariadb", "--no-defaults", "-h", url.hostname, "-P", str(url.port), "-u", url.username, "-N", "-e", statement,
         url.path[1:]], MYSQL_PWD=url.password)
def redis(*words):
    url = urllib.parse.urlparse(os.environ["REDIS_URL"])
    ask(["redis-cli", "-h", url.hostname, "-p", str(url.port), "--user", url.username, *words], REDISCLI_AUTH=url.password)
if sys.argv[1] == "write":
    sql("CREATE TABLE t (x int); INSERT INTO t VALUES (7)")
    my("CREATE TABLE t (x int); INSERT INTO t VALUES (8)")
    redis("SET", "k", "9")
sql("SELECT x, (SELECT tableowner FROM pg_tables WHERE tablename = 't'), session_user, current_user FROM t")
my("SELECT x FROM t")
redis("GET", "k")
"#;

fn manifest(stores: &str, uses: &str) -> String {
    format!(
        r#"
app = "shop"

[services.api]
artifact = "build"
command = ["./app.py", "serve"]
port = 3000
uses = [{uses}]
health = {{ ready = "http:/ready", interval = "200ms" }}
drain = "1s"
grace = "2s"

[jobs.write]
artifact = "build"
command = ["./database.py", "write"]
uses = [{uses}]

[jobs.read]
artifact = "build"
command = ["./database.py", "read"]
uses = [{uses}]

[routes.public]
host = "shop.example"
service = "api"

[deploy]
strategy = "rolling"
min_ready = "200ms"
standby = "1s"
healthy_deadline = "30s"

{stores}
"#
    )
}

const ALL: &str = r#"
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
const USES: &str = r#""main", "reports", "cache""#;

fn app(host: &Host, name: &str, manifest: &str) -> std::path::PathBuf {
    let app = host.app(name, manifest);
    let script = app.join("build/database.py");
    fs::write(&script, DATABASE).unwrap();
    fs::set_permissions(script, fs::Permissions::from_mode(0o755)).unwrap();
    app
}

fn store(host: &Host, app: &Path, name: &str) -> Option<Value> {
    let list = host.json(app, &["store", "list"]);
    let stores = list["stores"].as_array().unwrap();
    stores.iter().find(|store| store["name"] == name).cloned()
}

fn state(host: &Host, app: &Path, name: &str) -> String {
    store(host, app, name).map_or_else(String::new, |store| {
        store["state"].as_str().unwrap().to_owned()
    })
}

/// The server of a store: its working folder is its data.
fn server_of(host: &Host, name: &str) -> Option<Pid> {
    let data = host.path(&format!("state/stores/shop/production/{name}/data"));
    let numbers = fs::read_dir("/proc").unwrap().flatten();
    let mut pids = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    // The oldest of them: its helpers came later.
    let is_it = |pid: &i32| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == data);
    let is_parent = |pid: &i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        status.starts_with("postgres\0")
            || status.starts_with("mariadbd\0")
            || status.starts_with("redis-server")
    };
    pids.find(|pid| is_it(pid) && is_parent(pid))
        .and_then(Pid::from_raw)
}

const READ: &str = "7|shop_owner|release_1|shop_owner\n8\n9\n";

#[test]
#[expect(clippy::disallowed_methods, reason = "a stranger with a client")]
fn stores_are_made_injected_recovered_and_outlive_the_server() {
    let _alone = alone();
    let mut host = Host::start();
    let app = app(&host, "shop", &manifest(ALL, USES));
    let plan = host.expect(&app, &["plan"], 0);
    assert!(
        plan.contains("store main: new, PostgreSQL 15 with 128MiB"),
        "{plan}"
    );
    host.expect(&app, &["deploy"], 0);
    let url = host.get(HOST, "/env/DATABASE_URL").1;
    assert!(url.starts_with("postgres://release_1:"), "{url}");
    assert_eq!(url, host.get(HOST, "/env/MAIN_URL").1);
    assert!(
        host.get(HOST, "/env/REDIS_URL")
            .1
            .starts_with("redis://release_1:")
    );
    assert_eq!(host.expect(&app, &["run", "write"], 0), READ);

    // MariaDB is made with administrators who have no password.
    let url = host.get(HOST, "/env/REPORTS_URL").1;
    let port = url.rsplit(':').next().unwrap().split('/').next().unwrap();
    let mut root = Command::new("mariadb");
    root.args(["--no-defaults", "-h", "127.0.0.1", "-P", port, "-u", "root"]);
    let came_in = root.args(["-e", "SELECT 1"]).output().unwrap();
    let said = String::from_utf8_lossy(&came_in.stderr);
    assert!(said.contains("Access denied"), "{came_in:?}");

    // A login of a release may not touch the server itself, and nobody comes in without one.
    let said = host.run(
        &app,
        &[
            "store",
            "psql",
            "main",
            "--",
            "-Atc",
            "ALTER SYSTEM SET fsync = off",
        ],
    );
    assert!(!said.status.success(), "{said:?}");
    let said = host.expect(
        &app,
        &["store", "psql", "main", "--", "-Atc", "SHOW data_checksums"],
        0,
    );
    assert_eq!(said, "on\n");

    // The password is nowhere but in the environment of those who need it.
    let password = url.split(':').nth(2).unwrap().split('@').next().unwrap();
    for file in [
        "server.log",
        "state/journal.sqlite",
        "state/journal.sqlite-wal",
    ] {
        let bytes = fs::read(host.path(file)).unwrap_or_default();
        assert!(
            !bytes
                .windows(password.len())
                .any(|part| part == password.as_bytes()),
            "{file}"
        );
    }
    assert!(
        !host
            .expect(&app, &["store", "show", "main"], 0)
            .contains(password)
    );

    // Each is killed under its instances, and is there again with all that was written.
    for name in ["main", "reports", "cache"] {
        let before = store(&host, &app, name).unwrap()["instance"].clone();
        let pid = server_of(&host, name).unwrap_or_else(|| panic!("{name} runs"));
        rustix::process::kill_process(pid, Signal::KILL).unwrap();
        host.until("it is another server", || {
            let store = store(&host, &app, name).unwrap();
            store["state"] == "ready" && store["instance"] != before
        });
    }
    assert_eq!(host.expect(&app, &["run", "read"], 0), READ);

    // The server of Landfast dies: stores go on, and the next one adopts them.
    let instances = |host: &Host| {
        ["main", "reports", "cache"]
            .map(|name| store(host, &app, name).unwrap()["instance"].clone())
    };
    let before = instances(&host);
    host.kill_server();
    host.start_server();
    host.until("they are ready", || {
        ["main", "reports", "cache"]
            .iter()
            .all(|name| state(&host, &app, name) == "ready")
    });
    assert_eq!(instances(&host), before);
    assert_eq!(host.expect(&app, &["run", "read"], 0), READ);
    let metrics = host.metrics();
    assert!(
        metrics.contains("landfast_store_ready{app=\"shop\",environment=\"production\",store=\"main\",engine=\"postgres\"} 1"),
        "{metrics}"
    );
    host.until("it is measured", || {
        let store = store(&host, &app, "main").unwrap();
        store["measures"]["connections_max"]
            .as_u64()
            .is_some_and(|most| most > 0)
            && store["measures"]["size_bytes"]
                .as_u64()
                .is_some_and(|size| size > 1_000_000)
    });
    let slow = host.expect(
        &app,
        &[
            "store",
            "psql",
            "main",
            "--",
            "-Atc",
            "SELECT count(*) FROM pg_stat_statements",
        ],
        1,
    );
    assert_eq!(slow, "", "the app sees no statements of others");
}

#[test]
fn a_release_has_a_login_of_its_own_and_settings_change_as_they_can() {
    let _alone = alone();
    let host = Host::start();
    let main = |settings: &str| {
        format!("[stores.main]\nengine = \"postgres\"\nmemory = \"128MiB\"\n{settings}")
    };
    let app = app(&host, "shop", &manifest(&main(""), "\"main\""));
    host.expect(&app, &["deploy"], 0);
    let write = |text: &str| fs::write(app.join("landfast.toml"), text).unwrap();
    let psql = |statement: &str| {
        let out = host.expect(&app, &["store", "psql", "main", "--", "-Atc", statement], 0);
        out.trim().to_owned()
    };
    let instance = store(&host, &app, "main").unwrap()["instance"].clone();

    // One that can change while the server runs does.
    write(&manifest(
        &main("settings = { work_mem = \"9MB\" }"),
        "\"main\"",
    ));
    let plan = host.expect(&app, &["plan"], 0);
    assert!(
        plan.contains("store main: changes work_mem while it runs"),
        "{plan}"
    );
    host.expect(&app, &["deploy"], 0);
    assert!(
        host.get(HOST, "/env/DATABASE_URL")
            .1
            .starts_with("postgres://release_2:")
    );
    host.until("it has changed", || psql("SHOW work_mem") == "9MB");
    assert_eq!(store(&host, &app, "main").unwrap()["instance"], instance);

    // One that cannot waits until somebody says when.
    write(&manifest(
        &main("settings = { work_mem = \"9MB\", max_connections = 33 }"),
        "\"main\"",
    ));
    host.expect(&app, &["deploy"], 0);
    host.until("it waits for a restart", || {
        store(&host, &app, "main").unwrap()["waits_for_restart"]
            == serde_json::json!(["max_connections"])
    });
    assert_ne!(psql("SHOW max_connections"), "33");
    host.expect(&app, &["store", "restart", "main"], 0);
    host.until("it is another server", || {
        let store = store(&host, &app, "main").unwrap();
        store["state"] == "ready" && store["instance"] != instance
    });
    assert_eq!(psql("SHOW max_connections"), "33");

    // More memory, too: the server is tuned from it anew.
    let before = psql("SHOW shared_buffers");
    let instance = store(&host, &app, "main").unwrap()["instance"].clone();
    write(&manifest(
        &main("settings = { work_mem = \"9MB\", max_connections = 33 }")
            .replace("128MiB", "256MiB"),
        "\"main\"",
    ));
    host.expect(&app, &["deploy"], 0);
    host.until("it waits for a restart", || {
        let waiting = store(&host, &app, "main").unwrap()["waits_for_restart"].clone();
        waiting
            .as_array()
            .is_some_and(|names| names.contains(&"memory".into()))
    });
    assert_eq!(psql("SHOW shared_buffers"), before);
    host.expect(&app, &["store", "restart", "main"], 0);
    host.until("it is another server", || {
        let store = store(&host, &app, "main").unwrap();
        store["state"] == "ready" && store["instance"] != instance
    });
    assert_ne!(psql("SHOW shared_buffers"), before);

    // What cannot be done in place is refused before anything moves.
    write(&manifest(
        "[stores.main]\nengine = \"mariadb\"\n",
        "\"main\"",
    ));
    let plan = host.run(&app, &["plan"]);
    let said = String::from_utf8_lossy(&plan.stderr).into_owned();
    assert_eq!(plan.status.code(), Some(8), "{plan:?}");
    assert!(
        said.contains("cannot become mariadb") && said.contains("restore"),
        "{said}"
    );
    host.expect(&app, &["deploy"], 8);
    write(&manifest(&main("").replace("128MiB", "100MiB"), "\"main\""));
    host.expect(&app, &["deploy"], 8);

    // The logins of releases that are kept are there, and no other.
    let logins = psql(
        "SELECT string_agg(rolname, ' ' ORDER BY rolname) FROM pg_roles WHERE rolname LIKE 'release%'",
    );
    assert_eq!(logins, "release_1 release_2 release_3 release_4");
}

#[test]
fn a_store_leaves_the_manifest_and_is_deleted_only_by_name_and_after_a_delay() {
    let _alone = alone();
    let host = Host::start();
    let old = "[stores.old]\nengine = \"redis\"\nmemory = \"64MiB\"\n";
    let app = app(&host, "shop", &manifest(old, "\"old\""));
    host.expect(&app, &["deploy"], 0);
    let refused = host.run(
        &app,
        &["store", "delete", "old", "--confirm", "shop/production/old"],
    );
    assert_eq!(
        refused.status.code(),
        Some(11),
        "the manifest names it: {refused:?}"
    );
    fs::write(app.join("landfast.toml"), manifest("", "")).unwrap();
    let plan = host.expect(&app, &["plan"], 0);
    assert!(
        plan.contains("store old: not in the file any more; kept, and runs on"),
        "{plan}"
    );
    host.expect(&app, &["deploy"], 0);
    host.until("it is detached", || {
        store(&host, &app, "old").unwrap()["named"] == false
    });
    assert_eq!(state(&host, &app, "old"), "ready");
    let status = host.expect(&app, &["status"], 0);
    assert!(status.contains("in no manifest any more"), "{status}");

    let data = host.path("state/stores/shop/production/old/data");
    assert_eq!(
        host.run(&app, &["store", "delete", "old", "--confirm", "old"])
            .status
            .code(),
        Some(1)
    );
    host.expect(
        &app,
        &["store", "delete", "old", "--confirm", "shop/production/old"],
        0,
    );
    host.until("it is deleted", || state(&host, &app, "old") == "deleted");
    assert!(data.exists() && server_of(&host, "old").is_none());
    host.expect(&app, &["store", "undelete", "old"], 0);
    host.until("it is back", || state(&host, &app, "old") == "ready");
    host.expect(
        &app,
        &[
            "store",
            "delete",
            "old",
            "--confirm",
            "shop/production/old",
            "--delay",
            "0s",
        ],
        0,
    );
    host.until("nothing is left", || {
        store(&host, &app, "old").is_none() && !data.exists()
    });
    host.expect(&app, &["store", "show", "old"], 9);
}

/// Killed at any moment of the making of a database, the next server makes it whole.
#[test]
fn a_making_that_was_killed_is_begun_anew() {
    let stores = "[stores.main]\nengine = \"postgres\"\nmemory = \"128MiB\"\n[stores.reports]\nengine = \"mariadb\"\nmemory = \"256MiB\"\n";
    let _alone = alone();
    let mut host = Host::start();
    let app = app(&host, "shop", &manifest(stores, "\"main\", \"reports\""));
    host.expect(&app, &["deploy", "--wait", "start"], 0);
    for round in 0..6 {
        let folder = host.path("state/stores/shop/production");
        let is_making = || {
            let stores = fs::read_dir(&folder).into_iter().flatten().flatten();
            let inside =
                stores.flat_map(|store| fs::read_dir(store.path()).into_iter().flatten().flatten());
            inside
                .into_iter()
                .any(|entry| entry.file_name().to_string_lossy().starts_with("making."))
        };
        let is_made = || folder.join("main/data").exists() && folder.join("reports/data").exists();
        host.until("something is being made, or all is", || {
            is_making() || is_made()
        });
        std::thread::sleep(std::time::Duration::from_millis(60 * round));
        host.kill_server();
        host.start_server();
    }
    host.until("both are ready", || {
        ["main", "reports"]
            .iter()
            .all(|name| state(&host, &app, name) == "ready")
    });
    host.until("the release serves", || host.get(HOST, "/").0 == 200);
    let left = fs::read_dir(host.path("state/stores/shop/production/main"))
        .unwrap()
        .flatten();
    let names: Vec<_> = left
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    assert!(names.iter().any(|name| name == "data"), "{names:?}");
}

/// Both begin at the port that the name of the store leads to, in one moment.
#[test]
fn two_servers_of_landfast_on_one_host_give_their_stores_ports_of_their_own() {
    let _alone = alone();
    let manifest = manifest(
        "[stores.meet]\nengine = \"redis\"\nmemory = \"64MiB\"\n",
        "\"meet\"",
    );
    let hosts = [Host::start(), Host::start()];
    let apps = hosts.each_ref().map(|host| app(host, "shop", &manifest));
    std::thread::scope(|scope| {
        for (host, app) in hosts.iter().zip(&apps) {
            scope.spawn(|| host.expect(app, &["deploy"], 0));
        }
    });
    let addresses: Vec<_> = hosts
        .iter()
        .zip(&apps)
        .map(|(host, app)| {
            host.until("it is ready", || state(host, app, "meet") == "ready");
            let address = store(host, app, "meet").unwrap()["address"].clone();
            let url = host.get(HOST, "/env/REDIS_URL").1;
            assert!(url.contains(address.as_str().unwrap()), "{url} {address}");
            address
        })
        .collect();
    assert_ne!(addresses[0], addresses[1]);
}

/// A file system of its own for the data, so small that a table fills it.
#[test]
fn a_full_disk_is_told_of_and_the_store_goes_on_when_there_is_room() {
    let _alone = alone();
    let host = Host::start();
    let disk = Disk::mount(&host.path("state/stores"), "200m");
    let main = "[stores.main]\nengine = \"postgres\"\nmemory = \"128MiB\"\nsettings = { max_wal_size = \"64MB\", min_wal_size = \"32MB\" }\n";
    let app = app(&host, "shop", &manifest(main, "\"main\""));
    host.expect(&app, &["deploy"], 0);
    let psql =
        |statement: &str| host.run(&app, &["store", "psql", "main", "--", "-qAtc", statement]);
    assert!(
        psql("CREATE TABLE kept (n int); INSERT INTO kept VALUES (7)")
            .status
            .success()
    );

    let ballast = disk.fill(8 << 20);
    let refused = psql(
        "CREATE TABLE filled AS SELECT repeat(md5(n::text), 30) AS t FROM generate_series(1, 200000) n",
    );
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success(), "{refused:?}");
    assert!(
        said.contains("No space left on device") || said.contains("connection"),
        "{said}"
    );
    let status = host.expect(&app, &["status"], 0);
    assert!(
        status.contains("store `main` has") && status.contains("left on its disk"),
        "{status}"
    );
    let doctor = host.run(&app, &["doctor"]);
    let doctor = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(doctor.contains("are free where its data lies"), "{doctor}");

    fs::remove_file(ballast).unwrap();
    host.until("it takes changes again", || {
        state(&host, &app, "main") == "ready"
            && psql("INSERT INTO kept VALUES (8)").status.success()
    });
    let kept = psql("SELECT n FROM kept ORDER BY n");
    assert_eq!(String::from_utf8_lossy(&kept.stdout), "7\n8\n");
    let status = host.expect(&app, &["status"], 0);
    assert!(!status.contains("left on its disk"), "{status}");
}

/// Forty connections, ten of them kept back: fifteen for each release.
#[test]
fn a_pool_shares_out_what_the_server_takes_and_more_is_refused() {
    let _alone = alone();
    let host = Host::start();
    let main = |pool: &str| {
        let store = format!("[stores.main]\nengine = \"postgres\"\nmemory = \"128MiB\"\n{pool}\n");
        manifest(&store, "\"main\"")
    };
    let app = app(
        &host,
        "shop",
        &main("pool = { min = 2, timeout = \"1500ms\" }"),
    );
    host.expect(&app, &["deploy", "--wait", "seal"], 0);
    let told = |name: &str| host.get(HOST, &format!("/env/{name}")).1;
    // One replica and two jobs.
    for (name, value) in [
        ("DATABASE_POOL_MAX", "5"),
        ("MAIN_POOL_MAX", "5"),
        ("MAIN_POOL_MIN", "2"),
        ("MAIN_POOL_TIMEOUT_MS", "1500"),
        ("MAIN_POOL_IDLE_MS", "600000"),
    ] {
        assert_eq!(told(name), value, "{name}");
    }
    let takes = [
        "store",
        "psql",
        "main",
        "--",
        "-Atc",
        "SHOW max_connections",
    ];
    assert_eq!(host.expect(&app, &takes, 0).trim(), "40");

    fs::write(app.join("landfast.toml"), main("pool = { max = 6 }")).unwrap();
    for command in ["plan", "deploy"] {
        let refused = host.run(&app, &[command]);
        let said = format!(
            "{}{}",
            String::from_utf8_lossy(&refused.stdout),
            String::from_utf8_lossy(&refused.stderr)
        );
        assert_eq!(refused.status.code(), Some(8), "{command}: {said}");
        for part in [
            "store `main`: its 3 processes with 6 connections each may ask for 18",
            "it takes 40, 10 of them are kept back",
            "a smaller `[stores.main.pool] max`",
        ] {
            assert!(said.contains(part), "{command}: {part} in {said}");
        }
    }
    assert_eq!(told("MAIN_POOL_MAX"), "5", "nothing has moved");

    // Nor may a person ask for more: of fifteen, three processes have five each.
    let refused = host.run(&app, &["scale", "api", "2"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(8), "{said}");
    let sum = "store `main`: its 4 processes with 5 connections each may ask for 20";
    assert!(said.contains(sum), "{said}");
    let status = host.json(&app, &["status"]);
    assert!(!status.to_string().contains("scaled"), "{status}");
    // With fewer each there is room, also for a deploy of what was scaled.
    fs::write(app.join("landfast.toml"), main("pool = { max = 3 }")).unwrap();
    host.expect(&app, &["deploy", "--wait", "seal"], 0);
    host.expect(&app, &["scale", "api", "3"], 0);
    assert_eq!(told("MAIN_POOL_MAX"), "3");
    host.expect(&app, &["scale", "api", "4"], 8);
    fs::write(app.join("landfast.toml"), main("pool = { max = 4 }")).unwrap();
    let refused = host.run(&app, &["deploy"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    let sum = "its 5 processes with 4 connections each may ask for 20";
    assert!(said.contains(sum), "{said}");
    host.expect(&app, &["scale", "api", "1"], 0);
    host.expect(&app, &["deploy", "--wait", "seal"], 0);
}
