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
    sync::{Arc, Mutex, PoisonError, Weak},
};

use landfast_testbed::{Dockerd, DockerdOptions};
use serde_json::Value;
use support::{
    host::Host,
    images::{self, POSTGRES},
    shop::NOTHING_DUE,
};
use tempfile::TempDir;

const SOURCE: &str = include_str!("docker/app.rs");

/// What an image of the databases holds, as long as a test has it.
static CONTENT: Mutex<Weak<TempDir>> = Mutex::new(Weak::new());

fn content() -> Arc<TempDir> {
    let mut known = CONTENT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(content) = known.upgrade() {
        return content;
    }
    let content = Arc::new(tempfile::tempdir().unwrap());
    databases(content.path());
    *known = Arc::downgrade(&content);
    content
}

struct World {
    docker: Dockerd,
    host: Host,
    app: PathBuf,
    content: Arc<TempDir>,
}

impl World {
    /// `None` where no daemon can be started here, which is said.
    fn start(manifest: &str) -> Option<Self> {
        Self::on(Host::stopped(), |_| manifest.to_owned())
    }

    fn on(mut host: Host, manifest: impl FnOnce(&Host) -> String) -> Option<Self> {
        let docker = Dockerd::start_or_skip(DockerdOptions::default())?;
        let content = content();
        let path = format!("ENV PATH={POSTGRES}/bin:/usr/bin:/bin");
        let image = docker.import("app:1", content.path(), &[&path]).unwrap();
        for name in ["postgres:15", "redis:7.0", "mariadb:10.11"] {
            docker.docker(&["tag", &image, name]).unwrap();
        }
        let manifest = manifest(&host);
        host.arguments = vec!["--docker".into(), docker.address()];
        host.start_server();
        let app = host.app("shop", &manifest);
        ask(&app);
        migration(&app, "0001_first.sql", "CREATE TABLE t (x int);");
        Some(Self {
            docker,
            host,
            app,
            content,
        })
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
    let names = ["main", "cache", "books"]
        .into_iter()
        .filter(|name| has(name));
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

[jobs.books]
image = "app:1"
pull = "never"
command = ["sh", "-c", "url=$(cat $DATABASE_URL_FILE); rest=${{url#*://}}; login=${{rest%%:*}}; rest=${{rest#*:}}; password=${{rest%%@*}}; rest=${{rest#*@}}; port=${{rest#*:}}; MYSQL_PWD=$password mariadb --no-defaults -h ${{rest%%:*}} -P ${{port%%/*}} -u $login -N ${{rest#*/}} -e 'INSERT INTO t VALUES (5); SELECT x, substring_index(user(), \"@\", 1) FROM t'"]
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
    let path = format!("ENV PATH={POSTGRES}/bin:/usr/bin:/bin");
    let lines = [path.as_str(), "LABEL patched=1"];
    let second = world
        .docker
        .import("postgres:15", world.content.path(), &lines)
        .unwrap();
    assert_ne!(first, second);
    world.expect(&["deploy"], 0);
    world.host.until("it waits for a restart", || {
        world.store("main")["waits_for_restart"] == serde_json::json!(["image"])
    });
    assert_eq!(image(&world), first);
    let shown = world.host.json(&world.app, &["store", "show", "main"]);
    assert_eq!(shown["image"]["reference"], "postgres:15");
    assert_eq!(shown["image"]["id"], first);
    assert_eq!(shown["next_image"]["id"], second);
    let told = world.expect(&["store", "show", "main"], 0);
    assert!(
        told.contains(&format!("image postgres:15 ({first})")),
        "{told}"
    );
    assert!(
        told.contains(&format!("after a restart image postgres:15 ({second})")),
        "{told}"
    );
    world.expect(&["store", "restart", "main"], 0);
    world.until_another("main", &instance);
    assert_eq!(image(&world), second);
    let shown = world.host.json(&world.app, &["store", "show", "main"]);
    assert_eq!(shown["image"]["id"], second);
    assert!(shown["next_image"].is_null(), "{shown}");
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

/// The containers that are neither a service nor the server of a store: each is for one program, with a number that no start has.
fn tools(world: &World) -> Vec<String> {
    let listed = world.docker(&["ps", "--no-trunc", "--format", "{{.Names}} {{.Command}}"]);
    let is_tool = |line: &&str| {
        let name = line.split(' ').next().unwrap_or_default();
        let number = name.rsplit('.').next().unwrap_or_default();
        number.parse::<u64>().is_ok_and(|number| number >= 1 << 40)
    };
    listed.lines().filter(is_tool).map(str::to_owned).collect()
}

/// Nothing is wrong with its backups.
fn is_well(shown: &Value) -> bool {
    shown["troubles"].as_array().is_some_and(Vec::is_empty)
}

#[test]
fn a_store_is_backed_up_proven_and_restored_by_the_programs_of_its_image() {
    let mut host = Host::stopped();
    // Where a distribution has them, this host has none.
    host.hidden = vec!["/usr/lib/postgresql".into()];
    let world = World::on(host, |host| {
        let to = host.path("backups");
        let backup = format!(
            "[stores.main.backup]\nto = \"{}\"\nship = \"1s\"\n{NOTHING_DUE}\
             [stores.main.backup.drill.checks.rows]\nsql = \"SELECT count(*) >= 0 FROM t\"\nexpect = \"t\"\n",
            to.display()
        );
        manifest("shop", &format!("{POSTGRES_STORE}{backup}"))
    });
    let Some(mut world) = world else { return };
    let shown = |world: &World| world.host.json(&world.app, &["backup", "show", "main"]);
    let psql = |world: &World, store: &str, statement: &str| {
        let said = world.expect(&["store", "psql", store, "--", "-Atc", statement], 0);
        said.trim().to_owned()
    };
    let until_ready = |world: &World, name: &str| {
        world.host.until("the store is ready", || {
            world.store(name)["state"] == "ready"
        });
    };
    // Which programs the server is without.
    let server = format!("/proc/{}/root{POSTGRES}", world.host.server_pid());
    assert!(!Path::new(&server).exists() && Path::new(POSTGRES).exists());

    world.expect(&["deploy", "--wait", "seal"], 0);
    world.host.until("the first backup is proven", || {
        let shown = shown(&world);
        !shown["drill"]["passed_at"].is_null() && shown["running"].is_null()
    });
    psql(
        &world,
        "main",
        "INSERT INTO t SELECT generate_series(1, 20000)",
    );
    world.expect(&["backup", "now", "main", "--full"], 0);
    world
        .host
        .until("nothing is wrong with it", || is_well(&shown(&world)));
    // A migration leaves a place to go back to, and is rehearsed in a drill before.
    migration(
        &world.app,
        "0002_more.sql",
        "ALTER TABLE t ADD COLUMN y int;",
    );
    world.host.build(&world.app, "2", "-");
    world.expect(&["deploy", "--wait", "seal"], 0);
    psql(&world, "main", "DELETE FROM t WHERE x > 10");
    let drill = world.expect(&["drill", "main", "--full"], 0);
    for check in ["proven", "pg_amcheck", "pg_checksums", "rows"] {
        assert!(drill.contains(check), "{check}: {drill}");
    }

    // What received has a socket of Landfast's, and ends with it; its own server does not.
    world
        .host
        .until("it receives", || match tools(&world).as_slice() {
            [tool] => tool.contains("pg_receivewal"),
            _ => false,
        });
    for container in world.docker(&["ps", "--quiet"]).lines() {
        let body = world.docker(&["inspect", container]);
        assert!(
            !body.contains("PGPASSWORD") && !body.contains("postgres://"),
            "{body}"
        );
    }
    world.host.kill_server();
    world
        .host
        .until("nobody receives", || tools(&world).is_empty());
    world.host.start_server();
    until_ready(&world, "main");
    psql(&world, "main", "INSERT INTO t (x) VALUES (77777)");
    let now =
        "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS')";
    let written = psql(&world, "main", now);
    world.host.until("it is archived again", || {
        let shown = shown(&world);
        let to = shown["restorable_to"].as_str().unwrap_or_default();
        is_well(&shown) && to.trim_end_matches('Z') > written.as_str()
    });

    // To the newest moment, as another store, which is a container too and takes the place of the first.
    let said = world.expect(&["restore", "run", "main", "--as", "newest"], 0);
    assert!(said.contains("restored from backup"), "{said}");
    until_ready(&world, "newest");
    let counted = "SELECT count(*), max(x) FROM t";
    assert_eq!(psql(&world, "newest", counted), "11|77777");
    // And to the place before the migration.
    let point = ["--point", "before-rollout-2"];
    let restore = ["restore", "run", "main", "--as", "before"];
    world.expect(&[&restore[..], &point].concat(), 0);
    until_ready(&world, "before");
    assert_eq!(psql(&world, "before", counted), "20000|20000");
    let columns = "SELECT count(*) FROM information_schema.columns WHERE table_name = 't'";
    assert_eq!(psql(&world, "before", columns), "1");
    let owner = |name: &str| {
        let data = world.host.path("state/stores/shop/production").join(name);
        fs::metadata(data.join("data")).unwrap().uid()
    };
    assert_ne!(owner("before"), owner("main"));
    let into = world.host.path("exported").display().to_string();
    world.expect(&["restore", "export", "main", "--into", &into], 0);
    assert!(Path::new(&into).join("PG_VERSION").is_file());
    let switch = ["restore", "switch", "main", "--to", "newest", "--yes"];
    world.expect(&switch, 0);
    assert_eq!(world.expect(&["run", "write"], 0), "");
    assert_eq!(psql(&world, "main", counted), "12|77777");
    world.host.until("only who receives is left", || {
        tools(&world)
            .iter()
            .all(|tool| tool.contains("pg_receivewal"))
    });
}

#[test]
fn a_mariadb_is_a_container_like_any_other() {
    let stores = "[stores.books]\nengine = \"mariadb\"\nimage = \"mariadb:10.11\"\npull = \"never\"\nmemory = \"256MiB\"\nmigrations = \"sql\"\nrehearsal = {}\n";
    let Some(world) = World::start(&manifest("shop", stores)) else {
        return;
    };
    world.expect(&["deploy"], 0);
    assert_eq!(world.expect(&["run", "books"], 0), "5\trelease_1\n");
    let container = world.container("books.r0");
    let facts = "{{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}}";
    assert_eq!(world.inspect(&container, facts), "true [ALL]");
    assert_ne!(world.inspect(&container, "{{.Config.User}}"), "");
    let body = world.docker(&["inspect", &container]);
    assert!(
        !body.contains("mysql://") && !body.contains("\"HostPort\""),
        "{body}"
    );

    // Nobody is let in without a password: from its own container by the socket, over its network, from the host.
    let listens = world.store("books")["address"].as_str().unwrap().to_owned();
    let (_, port) = listens.split_once(':').unwrap();
    let address = world.address(&container);
    let api = world.container("shop.production.api.");
    let sockets = fs::read_dir(world.host.path("run/s")).unwrap();
    let sockets = sockets
        .flatten()
        .flat_map(|folder| fs::read_dir(folder.path()).unwrap());
    let socket = sockets
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|end| end == "sock"))
        .unwrap();
    let socket = format!("--socket={}", socket.display());
    let network = [format!("--host={address}"), format!("--port={port}")];
    for user in ["root", "mysql", "landfast", ""] {
        let user = format!("--user={user}");
        let ask = ["--no-defaults", "-e", "SELECT 1", &user];
        let inside = ["exec", &container, "mariadb"];
        let refused = |arguments: &[&str], why: &str| {
            let told = world.docker.docker(arguments);
            let said = told.unwrap_err().to_string();
            assert!(said.contains(why), "{user}: {said}");
        };
        refused(&[&inside[..], &ask, &[&socket]].concat(), "Access denied");
        // Root without capabilities does not even come to the socket.
        let inside = ["exec", "--user", "0", &container, "mariadb"];
        refused(&[&inside[..], &ask, &[&socket]].concat(), "(13)");
        let inside = ["exec", &api, "mariadb"];
        let over: Vec<&str> = network.iter().map(String::as_str).collect();
        refused(&[&inside[..], &ask, &over].concat(), "Access denied");
    }

    // A migration is tried on a copy that the image's own programs make.
    migration(
        &world.app,
        "0002_more.sql",
        "ALTER TABLE t ADD COLUMN y int DEFAULT 1;",
    );
    world.expect(&["deploy"], 0);
    let sql =
        |statement: &str| world.expect(&["store", "psql", "books", "--", "-Ne", statement], 0);
    assert_eq!(sql("SELECT sum(y) FROM t"), "1\n");
    let databases = sql(
        "SELECT group_concat(schema_name) FROM information_schema.schemata WHERE schema_name LIKE '%rehearsal%'",
    );
    assert_eq!(databases, "NULL\n");

    // A restart, and a death.
    let instance = world.store("books")["instance"].clone();
    world.expect(&["store", "restart", "books"], 0);
    world.until_another("books", &instance);
    let restarted = world.container("books.r0");
    assert_eq!(world.address(&restarted), address);
    let instance = world.store("books")["instance"].clone();
    world.docker(&["kill", &restarted]);
    world.until_another("books", &instance);
    assert_eq!(sql("SELECT x FROM t"), "5\n");

    // Deleted by name, with a delay.
    world.write(&manifest("shop", ""));
    world.expect(&["deploy", "--wait", "seal"], 0);
    let data = world.host.path("state/stores/shop/production/books/data");
    let delete = [
        "store",
        "delete",
        "books",
        "--confirm",
        "shop/production/books",
    ];
    world.expect(&delete, 0);
    world.host.until("it is deleted", || {
        world.store("books")["state"] == "deleted"
    });
    assert!(data.join("ibdata1").exists());
    assert_eq!(world.containers("books.r0"), Vec::<String>::new());
    world.expect(&["store", "undelete", "books"], 0);
    world
        .host
        .until("it is back", || world.store("books")["state"] == "ready");
    assert_eq!(sql("SELECT x FROM t"), "5\n");
}
