//! Managed stores whose servers are containers: the real command line and server, a real Docker, and images made of the
//! databases that this host has.

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
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use landfast_testbed::{Dockerd, DockerdOptions};
use serde_json::Value;
use support::{
    host::Host,
    images::{self, POSTGRES},
};

const SOURCE: &str = include_str!("docker/app.rs");

struct World {
    docker: Dockerd,
    host: Host,
    app: PathBuf,
}

impl World {
    /// `None` where no daemon can be started here, which is said.
    fn start(manifest: &str) -> Option<Self> {
        let docker = Dockerd::start_or_skip(DockerdOptions::default())?;
        let mut host = Host::stopped();
        let content = host.path("content");
        databases(&content);
        let path = format!("ENV PATH={POSTGRES}/bin:/usr/bin:/bin");
        docker.import("postgres:15", &content, &[&path]).unwrap();
        // Its programs are where a distribution puts them, and its PATH does not lead there.
        docker.import("redis:7.0", &content, &[]).unwrap();
        docker.import("app:1", &content, &[&path]).unwrap();
        host.arguments = vec!["--docker".into(), docker.address()];
        host.start_server();
        let app = host.app("shop", manifest);
        ask(&app);
        migration(&app, "0001_first.sql", "CREATE TABLE t (x int);");
        Some(Self { docker, host, app })
    }

    #[track_caller]
    fn expect(&self, arguments: &[&str], code: i32) -> String {
        self.host.expect(&self.app, arguments, code)
    }

    fn docker(&self, arguments: &[&str]) -> String {
        self.docker.docker(arguments).unwrap()
    }

    /// The containers that run and have a word in their names.
    fn containers(&self, word: &str) -> Vec<String> {
        let names = self.docker(&["ps", "--format", "{{.Names}}"]);
        let names = names.lines().filter(|name| name.contains(word));
        names.map(str::to_owned).collect()
    }

    fn container(&self, word: &str) -> String {
        let names = self.containers(word);
        assert_eq!(names.len(), 1, "{word}: {names:?}");
        names[0].clone()
    }

    fn inspect(&self, container: &str, what: &str) -> String {
        self.docker(&["inspect", "--format", what, container])
    }

    fn address(&self, container: &str) -> String {
        self.inspect(
            container,
            "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}",
        )
    }

    /// Whether a PostgreSQL answers, asked from inside of a container.
    fn answers(&self, container: &str, host: &str, port: &str) -> bool {
        let ask = ["pg_isready", "-t", "2", "-U", "x", "-h", host, "-p", port];
        self.docker
            .docker(&[&["exec", container][..], &ask].concat())
            .is_ok()
    }

    fn store(&self, name: &str) -> Value {
        let list = self.host.json(&self.app, &["store", "list"]);
        let stores = list["stores"].as_array().unwrap();
        let found = stores.iter().find(|store| store["name"] == name);
        found.cloned().unwrap_or_default()
    }

    fn until_another(&self, name: &str, before: &Value) {
        self.host.until("it is another server", || {
            let store = self.store(name);
            store["state"] == "ready" && store["instance"] != *before
        });
    }

    fn write(&self, manifest: &str) {
        fs::write(self.app.join("landfast.toml"), manifest).unwrap();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // The server first, or it would replace what is taken from it.
        if !std::thread::panicking() {
            self.host.kill_server();
        }
    }
}

/// The app's process asks by the database's own client.
fn ask(app: &Path) {
    let script = app.join("build/ask.sh");
    let text = "#!/bin/sh\nexport PGCONNECT_TIMEOUT=5\nexec psql \"$DATABASE_URL\" -qAtc \"SELECT x FROM t\"\n";
    fs::write(&script, text).unwrap();
    fs::set_permissions(script, fs::Permissions::from_mode(0o755)).unwrap();
}

fn migration(app: &Path, name: &str, text: &str) {
    fs::create_dir_all(app.join("sql")).unwrap();
    fs::write(app.join("sql").join(name), text).unwrap();
}

/// The same with a small app.
fn databases(content: &Path) {
    images::databases(content);
    let source = content.join("app.rs");
    fs::write(&source, SOURCE).unwrap();
    let compiler = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let (from, to) = (source.to_string_lossy(), content.join("app"));
    let flags = [
        "--edition",
        "2024",
        "-C",
        "target-feature=+crt-static",
        "-o",
    ];
    compile(
        &compiler,
        &[&flags[..], &[&to.to_string_lossy(), &from]].concat(),
    );
    fs::remove_file(&source).unwrap();
}

#[expect(
    clippy::disallowed_methods,
    reason = "the app is compiled as one would"
)]
fn compile(compiler: &str, arguments: &[&str]) {
    let output = Command::new(compiler)
        .args(arguments)
        .env("VERSION", "1")
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
}

const POSTGRES_STORE: &str = "[stores.main]\nengine = \"postgres\"\nimage = \"postgres:15\"\nmemory = \"128MiB\"\nmigrations = \"sql\"\n";

fn manifest(app: &str, stores: &str) -> String {
    let has = |name: &str| stores.contains(&format!("[stores.{name}]"));
    let names = ["main", "cache"].into_iter().filter(|name| has(name));
    let uses: Vec<_> = names.map(|name| format!("\"{name}\"")).collect();
    let uses = uses.join(", ");
    let first = uses.split(',').next().unwrap_or_default();
    let ask = "psql \\\"$(cat $DATABASE_URL_FILE)\\\" -v ON_ERROR_STOP=1 -qAt";
    format!(
        r#"
app = "{app}"

[services.api]
image = "app:1"
pull = "never"
command = ["/app"]
port = 8080
health = {{ ready = "http:/ready", interval = "200ms" }}
uses = [{uses}]
drain = "1s"
grace = "2s"

[services.other]
image = "app:1"
pull = "never"
command = ["/app"]
port = 8080
health = {{ ready = "http:/ready", interval = "200ms" }}
drain = "1s"
grace = "2s"

[jobs.write]
image = "app:1"
pull = "never"
command = ["sh", "-c", "{ask} -c 'INSERT INTO t VALUES (7)'"]
uses = [{uses}]

[jobs.read]
image = "app:1"
pull = "never"
command = ["sh", "-c", "{ask} -c 'SELECT x, session_user FROM t'"]
uses = [{uses}]

[jobs.cache]
image = "app:1"
pull = "never"
command = ["sh", "-c", "redis-cli -u $(cat $REDIS_URL_FILE) SET k 9 && redis-cli -u $(cat $REDIS_URL_FILE) GET k"]
uses = [{uses}]

[jobs.process]
artifact = "build"
command = ["./ask.sh"]
uses = [{first}]

[deploy]
strategy = "rolling"
min_ready = "200ms"
standby = "1s"
healthy_deadline = "60s"

{stores}
"#
    )
}

#[test]
fn a_store_is_a_container_that_only_those_reach_who_use_it() {
    let stores = format!(
        "{POSTGRES_STORE}rehearsal = {{}}\n[stores.cache]\nengine = \"redis\"\nimage = \"redis:7.0\"\npull = \"never\"\nmemory = \"64MiB\"\n"
    );
    let Some(mut world) = World::start(&manifest("shop", &stores)) else {
        return;
    };
    world.expect(&["deploy"], 0);
    assert_eq!(world.expect(&["run", "write"], 0), "");
    assert_eq!(world.expect(&["run", "read"], 0), "7|release_1\n");
    assert_eq!(world.expect(&["run", "cache"], 0), "OK\n9\n");
    // A process of the host reaches it too, and so does the operator.
    assert_eq!(world.expect(&["run", "process"], 0), "7\n");
    let psql = |world: &World, statement: &str| {
        world.expect(&["store", "psql", "main", "--", "-Atc", statement], 0)
    };
    assert_eq!(psql(&world, "SHOW data_checksums"), "on\n");

    // It may as little as it can, and nothing that Docker shows opens it.
    let main = world.container("main.r0");
    let body = world.docker(&["inspect", &main]);
    assert!(!body.contains("\"HostPort\""), "{body}");
    let facts = "{{.HostConfig.ReadonlyRootfs}} {{.HostConfig.Privileged}} {{.HostConfig.CapDrop}}";
    assert_eq!(world.inspect(&main, facts), "true false [ALL]");
    let data = world.host.path("state/stores/shop/production/main/data");
    let owner = fs::metadata(&data).unwrap();
    let user = world.inspect(&main, "{{.Config.User}}");
    assert_eq!(user, format!("{0}:{0}", owner.uid()));
    assert_ne!(owner.uid(), 0);
    let url = world.expect(&["store", "psql", "main", "--", "-Atc", "SELECT 1"], 0);
    assert_eq!(url, "1\n");
    for container in world.docker(&["ps", "-aq"]).lines() {
        let body = world.docker(&["inspect", container]);
        assert!(!body.contains("postgres://"), "{body}");
        assert!(!body.contains("PGPASSWORD"), "{body}");
    }

    // Who uses it reaches it by its name; another service, and another app, do not reach it at all.
    let listens = world.store("main")["address"].as_str().unwrap().to_owned();
    let (name, port) = listens.split_once(':').unwrap();
    assert_eq!(name, "main");
    let address = world.address(&main);
    let api = world.container("shop.production.api.");
    assert!(world.answers(&api, "main", port));
    assert!(world.answers(&api, &address, port));
    let foreign = world.host.app("foreign", &manifest("foreign", ""));
    ask(&foreign);
    world.host.expect(&foreign, &["deploy"], 0);
    for stranger in ["shop.production.other.", "foreign.production.api."] {
        let stranger = world.container(stranger);
        assert!(!world.answers(&stranger, "main", port), "{stranger}");
        assert!(!world.answers(&stranger, &address, port), "{stranger}");
    }

    // A migration is tried on a copy, made by the programs of the image.
    migration(
        &world.app,
        "0002_more.sql",
        "ALTER TABLE t ADD COLUMN y int;",
    );
    let told = world.expect(&["deploy"], 0);
    assert_eq!(psql(&world, "SELECT count(y) FROM t"), "0\n", "{told}");
    // Passwords change while it is used.
    world.expect(&["store", "rotate", "main"], 0);
    assert_eq!(world.expect(&["run", "read"], 0), "7|release_2_b\n");

    // The daemon dies and comes back, and so does Landfast: its containers went on.
    let instance = world.store("main")["instance"].clone();
    world.docker.kill();
    world.docker.boot().unwrap();
    world.host.kill_server();
    world.host.start_server();
    world
        .host
        .until("it is ready", || world.store("main")["state"] == "ready");
    assert_eq!(world.store("main")["instance"], instance);
    assert_eq!(world.expect(&["run", "read"], 0), "7|release_2_b\n");

    // A restart keeps data and address: instances that run know it by that.
    world.expect(&["store", "restart", "main"], 0);
    world.until_another("main", &instance);
    let restarted = world.container("main.r0");
    assert_eq!(world.address(&restarted), address);
    assert_eq!(world.expect(&["run", "process"], 0), "7\n");
    // One that is killed is started again.
    let instance = world.store("main")["instance"].clone();
    world.docker(&["kill", &restarted]);
    world.until_another("main", &instance);
    assert_eq!(world.expect(&["run", "read"], 0), "7|release_2_b\n");
}

#[test]
fn another_image_waits_for_a_restart_and_a_deleted_store_for_its_delay() {
    let Some(world) = World::start(&manifest("shop", POSTGRES_STORE)) else {
        return;
    };
    world.expect(&["deploy"], 0);
    assert_eq!(world.expect(&["run", "write"], 0), "");
    let image = |world: &World| {
        let container = world.container("main.r0");
        world.inspect(&container, "{{.Image}}")
    };
    let (first, instance) = (image(&world), world.store("main")["instance"].clone());

    // The name means another image now: the store goes on with its own until somebody says when.
    let content = world.host.path("content");
    let path = format!("ENV PATH={POSTGRES}/bin:/usr/bin:/bin");
    let lines = [path.as_str(), "LABEL patched=1"];
    let second = world
        .docker
        .import("postgres:15", &content, &lines)
        .unwrap();
    assert_ne!(first, second);
    world.expect(&["deploy"], 0);
    world.host.until("it waits for a restart", || {
        world.store("main")["waits_for_restart"] == serde_json::json!(["image"])
    });
    assert_eq!(image(&world), first);
    world.expect(&["store", "restart", "main"], 0);
    world.until_another("main", &instance);
    assert_eq!(image(&world), second);
    assert!(world.expect(&["run", "read"], 0).starts_with("7|"));

    // What does not go in place is refused before anything moved.
    for (stores, said) in [
        (
            POSTGRES_STORE.replace("postgres:15", "postgres:16"),
            "does not open in place",
        ),
        (
            POSTGRES_STORE.replace("image = \"postgres:15\"\n", ""),
            "does not become a process of the host in place",
        ),
    ] {
        world.docker(&["tag", "postgres:15", "postgres:16"]);
        world.write(&manifest("shop", &stores));
        let refused = world.host.run(&world.app, &["deploy"]);
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && text.contains(said), "{text}");
    }

    // Deleted by name, with a delay: the container is gone, its data is not.
    world.write(&manifest("shop", ""));
    world.expect(&["deploy", "--wait", "seal"], 0);
    let data = world.host.path("state/stores/shop/production/main/data");
    world.expect(
        &[
            "store",
            "delete",
            "main",
            "--confirm",
            "shop/production/main",
        ],
        0,
    );
    world.host.until("it is deleted", || {
        world.store("main")["state"] == "deleted"
    });
    assert!(data.join("PG_VERSION").exists());
    assert_eq!(world.containers("main.r0"), Vec::<String>::new());
    world.expect(&["store", "undelete", "main"], 0);
    world
        .host
        .until("it is back", || world.store("main")["state"] == "ready");
    let psql = ["store", "psql", "main", "--", "-Atc", "SELECT x FROM t"];
    assert_eq!(world.expect(&psql, 0), "7\n");
}

#[test]
fn an_image_of_another_version_and_a_container_without_one_are_told() {
    let wrong = POSTGRES_STORE.replace("postgres:15", "postgres:14");
    let Some(world) = World::start(&manifest("shop", &wrong)) else {
        return;
    };
    world.docker(&["tag", "postgres:15", "postgres:14"]);
    let doctor = world.host.run(&world.app, &["doctor"]);
    let doctor = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(
        doctor.contains("its image `postgres:14` is on the host"),
        "{doctor}"
    );
    let failed = world.host.run(&world.app, &["deploy"]);
    let text = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(!failed.status.success(), "{text}");
    assert!(
        text.contains("image `postgres:14` brings PostgreSQL 15") && text.contains("name an image"),
        "{text}"
    );
    // What is a container does not reach a process.
    let process = POSTGRES_STORE
        .replace("image = \"postgres:15\"\n", "")
        .replace("main", "cache");
    let manifest = manifest("shop", &process);
    world.write(&manifest);
    let refused = world.host.run(&world.app, &["deploy"]);
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success(), "{text}");
    assert!(text.contains("[stores.cache] image ="), "{text}");
}
