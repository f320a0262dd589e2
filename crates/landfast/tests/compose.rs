//! A manifest is exported and really run by docker-compose, on a daemon of the test's own, and asked over HTTP through nginx; and
//! the Dockerfiles that are written build and run. Images are made here, for there is no registry.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::wildcard_enum_match_arm,
    unreachable_pub,
    dead_code,
    reason = "a test fails where it unwraps, and helpers are shared by several tests"
)]

mod support;

use std::{
    collections::BTreeSet,
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use landfast_testbed::{Dockerd, DockerdOptions};
use support::{images, landfast};

/// Of 100 ms each: three minutes, long enough for a loaded machine; only a failure waits for them.
const TRIES: u32 = 1_800;

/// Answers with its name, its variable and its container's, and ends at SIGTERM.
const APP: &str = r#"
use std::{env, fs, io::{Read, Write}, net::TcpListener};
fn main() {
    let port = env::var("PORT").unwrap_or_else(|_| "3000".into());
    let who = env::args().nth(1).unwrap_or_default();
    let listener = TcpListener::bind(format!("0.0.0.0:{port}")).unwrap();
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        let mut bytes = [0; 4096];
        let read = stream.read(&mut bytes).unwrap_or(0);
        let head = String::from_utf8_lossy(&bytes[..read]).into_owned();
        let line = head.lines().next().unwrap_or_default();
        let forwarded = head.lines().find(|line| line.to_lowercase().starts_with("x-forwarded-for")).unwrap_or_default().to_owned();
        let host = fs::read_to_string("/etc/hostname").unwrap_or_default();
        let secret = env::var("KEY_FILE").ok().and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
        let volume = env::var("VOLUME_DATA").unwrap_or_default();
        let written = fs::write(format!("{volume}/seen"), "x").is_ok();
        let root = fs::write("/outside", "x").is_ok();
        let body = format!("who={who} greeting={} line={line} host={} secret={} volume={written} root={root} {forwarded}\n",
            env::var("GREETING").unwrap_or_default(), host.trim(), secret.trim());
        let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
    }
}
"#;

const MANIFEST: &str = r#"
app = "shop"

[services.web]
image     = "shop/app:1"
pull      = "never"
command   = ["/app", "web"]
port      = 3000
replicas  = 2
env       = { GREETING = "h€llo $HOME", KEY = { required = true } }
volumes   = { data = { from = "managed", at = "/data" } }
resources = { memory = "64MiB", cpu = "500m" }
health    = { ready = "tcp" }
sandbox   = { root = true }
grace     = "1s"

[services.api]
artifact  = "app"
command   = ["./app", "api"]
port      = 4000
env       = { GREETING = "api" }
grace     = "1s"

# Its first statement must find both stores, without another try.
[services.asker]
image   = "shop/client:1"
pull    = "never"
command = ["sh", "-c", """
set -e
ask() { psql "$(cat $DATABASE_URL_FILE)" -v ON_ERROR_STOP=1 -qAt "$@"; }
[ "$(cat $DATABASE_URL_FILE)" = "$DATABASE_URL" ]
ask -c 'CREATE TABLE IF NOT EXISTS seen (n int)' -c 'INSERT INTO seen VALUES (1)'
echo "rows: $(ask -c 'SELECT count(*) FROM seen') work_mem: $(ask -c 'SHOW work_mem')"
echo "cache: $(redis-cli -u "$(cat $REDIS_URL_FILE)" --no-auth-warning INCR started)"
exec cat /hold
"""]
health  = { ready = "none" }
uses    = ["main", "cache"]
grace   = "1s"

[stores.main]
engine   = "postgres"
version  = "15"
memory   = "256MiB"
settings = { work_mem = "7MB" }

[stores.cache]
engine  = "redis"
version = "7"
memory  = "64MiB"

[routes.public]
host    = "shop.test"
service = "web"

[routes.api]
host           = "shop.test"
path           = "/api"
service        = "api"
limits         = { body = "1KiB" }
response_headers = { set = { X-Served-By = "a $dollar" } }

[routes.closed]
host    = "closed.test"
service = "web"
allow   = ["192.0.2.0/24"]
"#;

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("landfast-compose-{}-{name}", std::process::id()));
        drop(fs::remove_dir_all(&path));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

#[test]
fn an_exported_app_runs_without_landfast_and_answers_through_nginx() {
    if !has("docker-compose", &["version"]) || !has("/usr/sbin/nginx", &["-v"]) {
        eprintln!("skipped: docker-compose or nginx is not installed (make setup)");
        return;
    }
    let Some(docker) = Dockerd::start_or_skip(DockerdOptions::default()) else {
        return;
    };
    let folder = Folder::new("run");
    let app = folder.path("image");
    fs::create_dir_all(app.join("etc")).unwrap();
    compile(&folder.path("app.rs"), &app.join("app"));
    docker
        .import("shop/app:1", &app, &["CMD [\"/app\"]"])
        .unwrap();
    // A plain process of the manifest lies in an image of Debian, of which this program needs nothing.
    let base = folder.path("base");
    fs::create_dir_all(base.join("tmp")).unwrap();
    docker.import("debian:bookworm-slim", &base, &[]).unwrap();
    nginx_image(&docker, &folder.path("nginx"), "nginx:stable");
    store_images(&docker, &folder.path("stores"));
    let project = folder.path("project");
    fs::create_dir_all(&project).unwrap();
    fs::copy(app.join("app"), project.join("app")).unwrap();
    fs::write(project.join("landfast.toml"), MANIFEST).unwrap();
    let output = landfast(&project)
        .args(["export", "compose"])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let out = project.join("compose");
    let report = fs::read_to_string(out.join("EQUIVALENCE.md")).unwrap();
    assert!(report.contains("`services.web.replicas`"), "{report}");
    let dotenv = fs::read_to_string(out.join(".env.example")).unwrap();
    assert!(dotenv.contains("KEY="), "{dotenv}");
    let given = [
        ("KEY", "s3cret"),
        ("MAIN_PASSWORD", "ofTheDatabase1"),
        ("CACHE_PASSWORD", "ofTheCache2"),
    ];
    let filled = given.iter().fold(dotenv.clone(), |text, (name, value)| {
        assert!(text.contains(&format!("\n{name}=\n")), "{name}: {text}");
        text.replace(&format!("\n{name}=\n"), &format!("\n{name}={value}\n"))
    });
    fs::write(out.join(".env"), filled).unwrap();
    write_secrets(&out, &dotenv, &given);

    let compose = |arguments: &[&str]| {
        let output = Command::new("docker-compose")
            .args(["--project-name", "lfexport"])
            .args(arguments)
            .current_dir(&out)
            .env("DOCKER_HOST", docker.address())
            .env("DOCKER_BUILDKIT", "0")
            .output()
            .unwrap();
        let said = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(
            output.status.success(),
            "docker-compose {arguments:?}: {said}"
        );
        said
    };
    compose(&["config", "--quiet"]);
    compose(&["up", "--detach"]);
    let id = compose(&["ps", "--quiet", "nginx"]);
    let id = id.lines().next().unwrap().trim().to_owned();
    let address = docker
        .docker(&[
            "inspect",
            "--format",
            "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}",
            &id,
        ])
        .unwrap();
    let address = address.split_whitespace().next().unwrap().to_owned();
    wait_for(&address, "shop.test", "/", 200);

    // The name's two instances answer in turn, with their variables, secrets and volumes.
    let mut hosts = BTreeSet::new();
    for _ in 0..40 {
        let (status, body) = ask(&address, "shop.test", "/x?y=1", "");
        assert_eq!(status, 200, "{body}");
        assert!(
            body.contains("who=web") && body.contains("greeting=h€llo $HOME"),
            "{body}"
        );
        assert!(
            body.contains("secret=s3cret")
                && body.contains("volume=true")
                && body.contains("root=false"),
            "{body}"
        );
        assert!(body.to_lowercase().contains("x-forwarded-for"), "{body}");
        let host = body
            .split("host=")
            .nth(1)
            .unwrap()
            .split(' ')
            .next()
            .unwrap()
            .to_owned();
        hosts.insert(host);
    }
    assert_eq!(hosts.len(), 2, "{hosts:?}");
    wait_for(&address, "shop.test", "/api/things", 200);
    let (status, body) = ask(&address, "shop.test", "/api", "");
    assert!(status == 200 && body.contains("who=api"), "{body}");
    assert!(
        body.to_lowercase().contains("x-served-by: a $dollar"),
        "{body}"
    );
    let (status, body) = ask(&address, "shop.test", "/apix", "");
    assert!(status == 200 && body.contains("who=web"), "{body}");
    assert_eq!(
        ask(&address, "shop.test", "/api", &"x".repeat(2_000)).0,
        413
    );
    assert_eq!(ask(&address, "closed.test", "/", "").0, 403);
    assert_eq!(ask(&address, "unknown.test", "/", "").0, 404);
    let memory = docker
        .docker(&[
            "inspect",
            "--format",
            "{{.HostConfig.Memory}} {{.HostConfig.NanoCpus}} {{.HostConfig.CapDrop}}",
            "lfexport_web_1",
        ])
        .unwrap();
    assert_eq!(memory, "67108864 500000000 [ALL]");
    stores_are_there(&docker, &compose, &given);
    compose(&["down", "--volumes", "--timeout", "1"]);
}

/// As `.env.example` says what each file holds: the value of its variable, or an address that has it within.
fn write_secrets(out: &Path, dotenv: &str, given: &[(&str, &str)]) {
    fs::create_dir_all(out.join("secrets")).unwrap();
    let mut written = 0;
    for line in dotenv.lines() {
        let Some(line) = line.strip_prefix("#   secrets/") else {
            continue;
        };
        let (name, address) = line.split_once(" (").unwrap_or((line, line));
        let text = given.iter().fold(
            address.trim_end_matches(')').to_owned(),
            |text, (name, value)| text.replace(name, value),
        );
        fs::write(out.join("secrets").join(name), text).unwrap();
        written += 1;
    }
    assert_eq!(written, 3, "{dotenv}");
}

/// They have answered before whoever uses them began, with the settings of the manifest, and keep their data.
fn stores_are_there(docker: &Dockerd, compose: &dyn Fn(&[&str]) -> String, given: &[(&str, &str)]) {
    let inspect = |container: &str, what: &str| {
        let container = format!("lfexport_{container}_1");
        docker
            .docker(&["inspect", "--format", what, &container])
            .unwrap()
    };
    let networks = |container: &str| {
        let what = "{{range $name, $_ := .NetworkSettings.Networks}}{{$name}} {{end}}";
        inspect(container, what)
    };
    assert_eq!(networks("web"), "lfexport_app");
    assert_eq!(
        networks("asker"),
        "lfexport_app lfexport_store-cache lfexport_store-main"
    );
    assert_eq!(networks("main"), "lfexport_store-main");
    let started = |count: u32| {
        for _ in 0..TRIES {
            let logs = compose(&["logs", "--no-color", "asker"]);
            if logs.contains(&format!("rows: {count} work_mem: 7MB"))
                && logs.contains(&format!("cache: {count}"))
            {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("{}", compose(&["logs", "--no-color"]));
    };
    started(1);
    for store in ["main", "cache"] {
        assert_eq!(inspect(store, "{{.State.Health.Status}}"), "healthy");
    }
    assert_eq!(inspect("asker", "{{.RestartCount}}"), "0");
    // Values are in no command line, for whoever looks at processes.
    let (_, password) = given[2];
    let arguments = inspect("cache", "{{.Config.Cmd}} {{.Config.Healthcheck.Test}}");
    assert!(
        arguments.contains("redis-server - ") && !arguments.contains(password),
        "{arguments}"
    );
    let arguments = docker
        .docker(&["exec", "lfexport_cache_1", "cat", "/proc/1/cmdline"])
        .unwrap();
    assert!(
        arguments.contains("redis-server") && !arguments.contains(password),
        "{arguments}"
    );
    // Who has another password is not let in.
    let other = ["exec", "lfexport_cache_1", "redis-cli", "PING"];
    assert!(docker.docker(&other).unwrap().contains("NOAUTH"));
    let other = [
        "exec",
        "--env",
        "PGPASSWORD=another",
        "lfexport_asker_1",
        "psql",
        "--host=main",
        "--username=app",
        "--dbname=app",
        "--command=SELECT 1",
    ];
    let refused = docker.docker(&other).unwrap_err().to_string();
    assert!(
        refused.contains("password authentication failed"),
        "{refused}"
    );
    // Other containers, the same volumes.
    compose(&["down", "--timeout", "20"]);
    compose(&["up", "--detach"]);
    started(2);
}

/// Images that do at their start what those of the databases are known to do: variables make a user and a database in an empty folder.
fn store_images(docker: &Dockerd, folder: &Path) {
    const START: &str = r#"#!/bin/sh
set -e
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    printf '%s' "${POSTGRES_PASSWORD:?}" > /tmp/first
    initdb --pgdata="$PGDATA" --username="$POSTGRES_USER" --pwfile=/tmp/first --auth-local=trust --auth-host=scram-sha-256 --locale=C.UTF-8
    rm /tmp/first
    printf 'host all all all scram-sha-256\n' >> "$PGDATA/pg_hba.conf"
    printf "listen_addresses = '*'\n" >> "$PGDATA/postgresql.conf"
    printf 'CREATE DATABASE "%s"\n' "$POSTGRES_DB" | postgres --single -D "$PGDATA" postgres
fi
exec "$@"
"#;
    images::databases(folder);
    let mut files = BTreeSet::new();
    for program in ["/bin/rm", "/bin/grep"] {
        copy(Path::new(program), folder, &mut files);
    }
    open_to_all(&folder.join("tmp"));
    let users = "root:x:0:0::/:/bin/sh\npostgres:x:999:999::/:/bin/sh\n";
    fs::write(folder.join("etc/passwd"), users).unwrap();
    let start = folder.join("usr/bin/docker-entrypoint.sh");
    fs::write(&start, START).unwrap();
    mark_executable(&start);
    // A reader of it waits for ever, as a service does.
    let hold = Command::new("mkfifo").arg(folder.join("hold")).status();
    assert!(hold.unwrap().success());
    for place in ["var/lib/postgresql/data", "var/run/postgresql"] {
        let place = folder.join(place);
        fs::create_dir_all(&place).unwrap();
        std::os::unix::fs::chown(place, Some(999), Some(999)).unwrap();
    }
    fs::create_dir_all(folder.join("data")).unwrap();
    let path = format!("ENV PATH={}/bin:/usr/bin:/bin", images::POSTGRES);
    let of_postgres = [
        path.as_str(),
        "ENV PGDATA=/var/lib/postgresql/data",
        "USER 999:999",
        "ENTRYPOINT [\"docker-entrypoint.sh\"]",
    ];
    docker.import("postgres:15", folder, &of_postgres).unwrap();
    docker
        .import("redis:7", folder, &[&path, "WORKDIR /data"])
        .unwrap();
    docker.import("shop/client:1", folder, &[&path]).unwrap();
}

#[test]
fn dockerfiles_for_node_and_static_sites_build_and_run() {
    if !has("node", &["--version"])
        || !has("/usr/sbin/nginx", &["-v"])
        || !has("/usr/bin/tini", &["--version"])
    {
        eprintln!("skipped: node, nginx or tini is not installed (make setup)");
        return;
    }
    let Some(docker) = Dockerd::start_or_skip(DockerdOptions::default()) else {
        return;
    };
    let folder = Folder::new("dockerfile");
    system_image(&docker, &folder.path("debian"), "debian:bookworm-slim", &[]);
    nginx_image(&docker, &folder.path("nginx"), "nginx:stable-bookworm");
    let node = fs::canonicalize(which("node")).unwrap();
    system_image(
        &docker,
        &folder.path("node"),
        "node:22-bookworm-slim",
        &[node.to_str().unwrap(), "/usr/bin/tini"],
    );

    let site = folder.path("site");
    fs::create_dir_all(site.join("public/about")).unwrap();
    fs::write(site.join("public/index.html"), "<h1>home</h1>").unwrap();
    fs::write(site.join("public/about/index.html"), "<h1>about</h1>").unwrap();
    fs::write(site.join("public/.env"), "SECRET=1").unwrap();
    build(&docker, &site, "site:1");
    let (id, address) = start(&docker, "site:1");
    wait_up(&docker, &id, &address, 8080);
    assert!(
        ask_at(&address, 8080, "site.test", "/about/", "")
            .1
            .contains("about")
    );
    assert_eq!(ask_at(&address, 8080, "site.test", "/.env", "").0, 404);
    judge(&docker, &id);

    let app = folder.path("app");
    fs::create_dir_all(&app).unwrap();
    fs::write(
        app.join("package.json"),
        r#"{"name":"shop","scripts":{"start":"node server.js"}}"#,
    )
    .unwrap();
    fs::write(
        app.join("server.js"),
        "const http=require('http');const s=http.createServer((q,r)=>r.end('node '+process.getuid()));s.listen(process.env.PORT,'0.0.0.0');process.on('SIGTERM',()=>s.close(()=>process.exit(0)));",
    )
    .unwrap();
    fs::write(app.join(".env"), "SECRET=1").unwrap();
    build(&docker, &app, "app:1");
    let (id, address) = start(&docker, "app:1");
    wait_up(&docker, &id, &address, 3000);
    assert!(
        ask_at(&address, 3000, "app.test", "/", "")
            .1
            .contains("node 1000")
    );
    let listed = docker.docker(&["exec", &id, "ls", "-a", "/app"]).unwrap();
    assert!(
        !listed.contains(".env") && listed.contains("server.js"),
        "{listed}"
    );
    judge(&docker, &id);
}

#[test]
fn the_runtime_stage_of_a_dockerfile_for_rust_builds_and_runs() {
    let Some(docker) = Dockerd::start_or_skip(DockerdOptions::default()) else {
        return;
    };
    let folder = Folder::new("rust");
    system_image(&docker, &folder.path("debian"), "debian:bookworm-slim", &[]);
    let project = folder.path("project");
    fs::create_dir_all(project.join("src")).unwrap();
    fs::write(
        project.join("Cargo.toml"),
        "[package]\nname = \"shop\"\nversion = \"0.1.0\"\nedition = \"2021\"\n",
    )
    .unwrap();
    fs::write(project.join("src/main.rs"), APP).unwrap();
    // The image of the toolchain is a program that was built, and a cargo that puts it where the real one would.
    let toolchain = folder.path("toolchain");
    fs::create_dir_all(&toolchain).unwrap();
    compile(&folder.path("app.rs"), &toolchain.join("shop"));
    system_folder(&toolchain, &[]);
    let cargo = "#!/bin/sh\nset -e\n[ \"$1 $2\" = 'build --release' ]\ntest -f src/main.rs\nmkdir -p target/release\ncp /shop target/release/shop\n";
    fs::write(toolchain.join("usr/bin/cargo"), cargo).unwrap();
    mark_executable(&toolchain.join("usr/bin/cargo"));
    docker
        .import(
            "rust:1-bookworm",
            &toolchain,
            &["ENV PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
        )
        .unwrap();
    build(&docker, &project, "rust:1");
    let (id, address) = start(&docker, "rust:1");
    wait_up(&docker, &id, &address, 3000);
    judge(&docker, &id);
}

/// Nothing is played: the toolchain of this host compiles, with a dependency of the project's own.
#[test]
#[ignore = "its image is large: make proof-dockerfile"]
fn a_dockerfile_for_rust_compiles_by_a_real_toolchain_and_runs() {
    let docker = Dockerd::start().unwrap();
    let folder = Folder::new("toolchain");
    // Debian's library of C depends on that of the compiler, which every program of Rust is linked to.
    let debian = folder.path("debian");
    fs::create_dir_all(&debian).unwrap();
    system_folder(&debian, &[]);
    link_to(
        &std::env::current_exe().unwrap(),
        &debian,
        &mut BTreeSet::new(),
    );
    let path = "ENV PATH=/usr/sbin:/usr/bin:/sbin:/bin";
    docker
        .import("debian:bookworm-slim", &debian, &[path])
        .unwrap();
    toolchain_image(&docker, &folder.path("rust"), "rust:1-bookworm");
    let project = folder.path("project");
    for part in ["src", "words/src", "target/release"] {
        fs::create_dir_all(project.join(part)).unwrap();
    }
    let main = APP.replace("fn main() {", "fn main() {\n    words::greet();");
    for (name, text) in [
        (
            "Cargo.toml",
            "[package]\nname = \"shop\"\nversion = \"0.1.0\"\nedition = \"2021\"\n\n[dependencies]\nwords = { path = \"words\" }\n",
        ),
        (
            "Cargo.lock",
            "version = 4\n\n[[package]]\nname = \"shop\"\nversion = \"0.1.0\"\ndependencies = [\n \"words\",\n]\n\n[[package]]\nname = \"words\"\nversion = \"0.1.0\"\n",
        ),
        ("src/main.rs", main.as_str()),
        (
            "words/Cargo.toml",
            "[package]\nname = \"words\"\nversion = \"0.1.0\"\nedition = \"2021\"\n",
        ),
        (
            "words/src/lib.rs",
            "pub fn greet() { println!(\"compiled in the image\"); }\n",
        ),
        // Neither is sent to the daemon.
        ("target/release/shop", "not this one"),
        (".env", "SECRET=1"),
        (
            "landfast.toml",
            "app = \"shop\"\n\n[services.web]\nartifact = \"target/release/shop\"\ncommand = [\"./shop\", \"web\"]\nport = 3456\nhealth = { ready = \"http:/ready\" }\n",
        ),
    ] {
        fs::write(project.join(name), text).unwrap();
    }
    build(&docker, &project, "rust:built");
    let (id, address) = start(&docker, "rust:built");
    wait_up(&docker, &id, &address, 3456);
    let (_, body) = ask_at(&address, 3456, "x.test", "/", "");
    // The program cannot write beside itself.
    assert!(
        body.contains("who=web") && body.contains("root=false"),
        "{body}"
    );
    let logs = docker.docker(&["logs", &id]).unwrap();
    assert!(logs.contains("compiled in the image"), "{logs}");
    let user = docker
        .docker(&["exec", &id, "bash", "-c", "echo $UID"])
        .unwrap();
    assert_eq!(user, "10001");
    let listed = docker.docker(&["exec", &id, "ls", "-a", "/app"]).unwrap();
    assert_eq!(listed, ".\n..\nshop");
    judge(&docker, &id);
}

/// This host's own compiler and linker, as the image of the toolchain has them.
fn toolchain_image(docker: &Dockerd, folder: &Path, tag: &str) {
    let said =
        |program: &str, arguments: &[&str]| images::said(program, arguments).trim().to_owned();
    let sysroot = PathBuf::from(said("rustc", &["--print", "sysroot"]));
    let host = said("rustc", &["--print", "host-tuple"]);
    fs::create_dir_all(folder).unwrap();
    // The linker is called by its names on the path; what is behind them is linked to libraries.
    system_folder(folder, &["/usr/bin/cc", "/usr/bin/ld", "/usr/bin/as"]);
    let mut files = BTreeSet::new();
    for name in ["collect2", "lto-wrapper"] {
        let program = said("cc", &[&format!("-print-prog-name={name}")]);
        // Which of them there are is a matter of the version.
        if program.starts_with('/') {
            copy(Path::new(&program), folder, &mut files);
        }
    }
    for name in [
        "crt1.o",
        "Scrt1.o",
        "rcrt1.o",
        "crti.o",
        "crtn.o",
        "crtbegin.o",
        "crtbeginS.o",
        "crtbeginT.o",
        "crtend.o",
        "crtendS.o",
        "libgcc.a",
        "libgcc_eh.a",
        "libgcc_s.so",
        "libgcc_s.so.1",
        "liblto_plugin.so",
        "libc.so",
        "libc.so.6",
        "libc_nonshared.a",
        "libm.so",
        "libm.so.6",
        "libmvec.so.1",
        "libdl.a",
        "libpthread.a",
        "librt.a",
        "libutil.a",
        "ld-linux-x86-64.so.2",
    ] {
        let file = said("cc", &[&format!("-print-file-name={name}")]);
        let file = Path::new(&file);
        if file.is_absolute() && file.exists() {
            let parent = fs::canonicalize(file.parent().unwrap()).unwrap();
            let to = folder.join(parent.strip_prefix("/").unwrap());
            fs::create_dir_all(&to).unwrap();
            fs::copy(file, to.join(name)).unwrap();
        }
    }
    let own = folder.join("usr/local");
    for part in ["bin", "lib/rustlib"] {
        fs::create_dir_all(own.join(part)).unwrap();
    }
    for program in ["cargo", "rustc"] {
        let program = format!("bin/{program}");
        fs::copy(sysroot.join(&program), own.join(&program)).unwrap();
    }
    for entry in fs::read_dir(sysroot.join("lib")).unwrap().flatten() {
        if entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), own.join("lib").join(entry.file_name())).unwrap();
        }
    }
    let library = sysroot.join("lib/rustlib").join(host);
    let to = own.join("lib/rustlib");
    said(
        "cp",
        &["-a", &library.to_string_lossy(), &to.to_string_lossy()],
    );
    for program in ["bin/cargo", "bin/rustc"] {
        link_to(&sysroot.join(program), folder, &mut files);
    }
    let lines = [
        "ENV PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "ENV CARGO_HOME=/usr/local/cargo",
    ];
    docker.import(tag, folder, &lines).unwrap();
    // The daemon has it now.
    fs::remove_dir_all(folder).unwrap();
}

fn wait_up(docker: &Dockerd, id: &str, address: &str, port: u16) {
    for _ in 0..300 {
        if ask_at(address, port, "x.test", "/", "").0 == 200 {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let logs = Command::new("docker")
        .args(["logs", id])
        .env("DOCKER_HOST", docker.address())
        .output()
        .unwrap();
    let logs = String::from_utf8_lossy(&logs.stderr).into_owned();
    let state = docker.docker(&["inspect", "--format", "{{json .State}}", id]);
    panic!("{address}:{port} does not answer: {logs:?} {state:?}");
}

/// Not root, healthy by its own check, and ended by its signal without being killed.
fn judge(docker: &Dockerd, id: &str) {
    let inspect = |format: &str| docker.docker(&["inspect", "--format", format, id]).unwrap();
    assert!(!inspect("{{.Config.User}}").is_empty());
    for _ in 0..300 {
        if inspect("{{.State.Health.Status}}") == "healthy" {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(
        inspect("{{.State.Health.Status}}"),
        "healthy",
        "{}",
        inspect("{{json .State.Health}}")
    );
    docker.docker(&["stop", "--time", "30", id]).unwrap();
    let code = inspect("{{.State.ExitCode}}");
    assert!(code == "0" || code == "143", "{code}");
    docker.docker(&["rm", "--force", id]).unwrap();
}

fn build(docker: &Dockerd, project: &Path, tag: &str) {
    let output = landfast(project)
        .args(["export", "dockerfile"])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let said = Command::new("docker")
        .args(["build", "--tag", tag, "."])
        .current_dir(project)
        .env("DOCKER_HOST", docker.address())
        .env("DOCKER_BUILDKIT", "0")
        .output()
        .unwrap();
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&said.stdout),
        String::from_utf8_lossy(&said.stderr)
    );
    assert!(
        said.status.success(),
        "{text}\n{}",
        fs::read_to_string(project.join("Dockerfile")).unwrap()
    );
}

/// Read-only and with an init, as Landfast runs it.
fn start(docker: &Dockerd, image: &str) -> (String, String) {
    drop(docker.docker(&["network", "create", "builds"]));
    let id = docker
        .docker(&[
            "run",
            "--detach",
            "--init",
            "--read-only",
            "--tmpfs",
            "/tmp",
            "--cap-drop",
            "ALL",
            "--network",
            "builds",
            image,
        ])
        .unwrap();
    let address = docker
        .docker(&[
            "inspect",
            "--format",
            "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}",
            &id,
        ])
        .unwrap();
    (id, address)
}

fn has(program: &str, arguments: &[&str]) -> bool {
    Command::new(program)
        .args(arguments)
        .output()
        .is_ok_and(|output| output.status.success())
}

fn which(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap();
    std::env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|file| file.exists())
        .unwrap()
}

/// A program that needs no library.
fn compile(source: &Path, to: &Path) {
    fs::write(source, APP).unwrap();
    let output = Command::new("rustc")
        .args([
            "--edition",
            "2021",
            "-C",
            "target-feature=+crt-static",
            "-C",
            "panic=abort",
            "-o",
        ])
        .arg(to)
        .arg(source)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// An image with nginx and what it needs of this machine.
fn nginx_image(docker: &Dockerd, folder: &Path, tag: &str) {
    fs::create_dir_all(folder).unwrap();
    system_folder(folder, &["/usr/sbin/nginx"]);
    fs::create_dir_all(folder.join("etc/nginx")).unwrap();
    fs::copy("/etc/nginx/mime.types", folder.join("etc/nginx/mime.types")).unwrap();
    for name in ["var/log/nginx", "var/lib/nginx", "run", "tmp"] {
        fs::create_dir_all(folder.join(name)).unwrap();
    }
    docker
        .import(
            tag,
            folder,
            &[
                "CMD [\"nginx\", \"-g\", \"daemon off;\"]",
                "ENV PATH=/usr/sbin:/usr/bin:/sbin:/bin",
            ],
        )
        .unwrap();
}

fn system_image(docker: &Dockerd, folder: &Path, tag: &str, programs: &[&str]) {
    fs::create_dir_all(folder).unwrap();
    system_folder(folder, programs);
    docker
        .import(
            tag,
            folder,
            &["CMD [\"bash\"]", "ENV PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
        )
        .unwrap();
}

/// The few programs of a Debian image that steps of builds use, and others, with their libraries.
fn system_folder(folder: &Path, programs: &[&str]) {
    const BASE: &[&str] = &[
        "/bin/bash",
        "/bin/sh",
        "/bin/ls",
        "/bin/cat",
        "/bin/cp",
        "/bin/mkdir",
        "/bin/rm",
        "/bin/chmod",
        "/usr/bin/find",
        "/usr/bin/printf",
        "/usr/bin/test",
        "/usr/sbin/groupadd",
        "/usr/sbin/useradd",
    ];
    for part in [
        "usr/bin",
        "usr/sbin",
        "usr/lib",
        "usr/lib64",
        "etc",
        "tmp",
        "var/log",
        "run",
        "proc",
        "sys",
        "dev",
        "var/mail",
        "home",
    ] {
        fs::create_dir_all(folder.join(part)).unwrap();
    }
    open_to_all(&folder.join("tmp"));
    for link in ["bin", "sbin", "lib", "lib64"] {
        drop(std::os::unix::fs::symlink(
            format!("usr/{link}"),
            folder.join(link),
        ));
    }
    fs::write(folder.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\nnode:x:1000:1000::/home/node:/bin/sh\n").unwrap();
    fs::write(
        folder.join("etc/group"),
        "root:x:0:\nnogroup:x:65534:\nnode:x:1000:\n",
    )
    .unwrap();
    fs::write(
        folder.join("etc/nsswitch.conf"),
        "passwd: files\ngroup: files\nhosts: files dns\n",
    )
    .unwrap();
    for name in [
        "/etc/login.defs",
        "/etc/pam.d/useradd",
        "/etc/pam.d/groupadd",
        "/etc/pam.d/common-account",
        "/etc/pam.d/common-session",
    ] {
        let to = folder.join(name.trim_start_matches('/'));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        drop(fs::copy(name, to));
    }
    let mut files = BTreeSet::new();
    for program in BASE.iter().chain(programs) {
        copy(Path::new(program), folder, &mut files);
    }
    // Node is looked up by its name.
    for program in programs {
        let name = Path::new(program).file_name().unwrap();
        let to = folder.join("usr/bin").join(name);
        if !to.exists() {
            drop(fs::copy(program, to));
        }
    }
}

fn copy(program: &Path, folder: &Path, files: &mut BTreeSet<PathBuf>) {
    let to = folder.join(program.strip_prefix("/").unwrap());
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    fs::copy(program, &to).unwrap();
    link_to(program, folder, files);
}

/// What a program is linked to.
fn link_to(program: &Path, folder: &Path, files: &mut BTreeSet<PathBuf>) {
    let output = Command::new("ldd").arg(program).output().unwrap();
    for word in String::from_utf8_lossy(&output.stdout).split_whitespace() {
        let library = Path::new(word);
        // A toolchain brings its own beside it.
        let is_system = word.starts_with("/lib") || word.starts_with("/usr");
        if is_system && files.insert(library.to_owned()) {
            let to = folder.join(word.trim_start_matches('/'));
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(library, to).unwrap();
        }
    }
}

/// As every image has its `/tmp`.
fn open_to_all(folder: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o1777)).unwrap();
}

fn mark_executable(file: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(file, fs::Permissions::from_mode(0o755)).unwrap();
}

fn ask(address: &str, host: &str, path: &str, body: &str) -> (u16, String) {
    ask_at(address, 80, host, path, body)
}

fn ask_at(address: &str, port: u16, host: &str, path: &str, body: &str) -> (u16, String) {
    let text = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect((address, port))?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let method = if body.is_empty() { "GET" } else { "POST" };
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )?;
        let mut bytes = Vec::new();
        // Who is refused early may see a reset after the answer.
        drop(stream.read_to_end(&mut bytes));
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = text().unwrap_or_default();
    let status = text
        .split(' ')
        .nth(1)
        .and_then(|word| word.parse().ok())
        .unwrap_or(0);
    (status, text)
}

fn wait_for(address: &str, host: &str, path: &str, status: u16) {
    wait_at(address, 80, host, path, status);
}

fn wait_at(address: &str, port: u16, host: &str, path: &str, status: u16) {
    let mut last = String::new();
    for _ in 0..TRIES {
        let (seen, text) = ask_at(address, port, host, path, "");
        if seen == status {
            return;
        }
        last = text;
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("{host}{path} at {address}:{port} does not answer {status}: {last}");
}

#[test]
fn an_import_says_what_it_left_out_and_overwrites_nothing() {
    let folder = Folder::new("import");
    let compose = "services:\n  web:\n    image: example/web:1\n    ports: ['8080:80']\n    privileged: true\n    environment:\n      API_TOKEN: hunter2hunter2\n";
    fs::write(folder.path("compose.yaml"), compose).unwrap();
    let run = |arguments: &[&str]| {
        let output = landfast(&folder.0).args(arguments).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (
            output.status.code(),
            text(&output.stdout),
            text(&output.stderr),
        )
    };
    let (code, _, said) = run(&["import", "compose"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("services.web.privileged compose.yaml:5"),
        "{said}"
    );
    assert!(said.contains("landfast secret set API_TOKEN"), "{said}");
    let manifest = fs::read_to_string(folder.path("landfast.toml")).unwrap();
    assert!(
        manifest.contains("image   = \"example/web:1\"") && !manifest.contains("hunter2"),
        "{manifest}"
    );
    assert_eq!(run(&["check"]).0, Some(0));

    let (code, _, said) = run(&["import", "compose"]);
    assert!(
        code == Some(1)
            && said.contains("`landfast.toml` is there already")
            && said.contains("--force"),
        "{said}"
    );
    let (code, out, _) = run(&["import", "compose", "--out", "-", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(code, Some(0));
    assert_eq!(report["manifest"], manifest.as_str());
    let keys = report["keys"].as_array().unwrap();
    let privileged = keys
        .iter()
        .find(|key| key["path"] == "services.web.privileged")
        .unwrap();
    assert_eq!(
        (&privileged["fate"], &privileged["line"]),
        (&"not_carried".into(), &5.into())
    );

    fs::write(folder.path("bad.yaml"), "services:\n  web:\n   image: [x\n").unwrap();
    let (code, _, said) = run(&["import", "compose", "bad.yaml", "--out", "other.toml"]);
    assert!(
        code == Some(1) && said.contains("bad.yaml:") && said.contains("hint:"),
        "{said}"
    );
    assert!(!folder.path("other.toml").exists());

    let kamal = "service: shop\nimage: acme/shop\nservers:\n  web: [10.0.0.1]\n  job:\n    hosts: [10.0.0.1]\n    cmd: bin/jobs\nproxy:\n  host: shop.example.com\n  app_port: 3000\nenv:\n  clear: {A: b, DB_HOST: shop-db}\n  secret: [RAILS_MASTER_KEY]\naccessories:\n  db:\n    image: postgres:15\n    host: 10.0.0.1\nregistry: {server: ghcr.io, username: a}\nunknown_key: 1\n";
    fs::create_dir_all(folder.path("config")).unwrap();
    fs::write(folder.path("config/deploy.yml"), kamal).unwrap();
    let (code, _, said) = run(&["import", "kamal", "--out", "kamal.toml"]);
    assert_eq!(code, Some(0), "{said}");
    for named in [
        "unknown_key",
        "env.clear.DB_HOST",
        "registry.username",
        "landfast secret set RAILS_MASTER_KEY",
    ] {
        assert!(said.contains(named), "{named}: {said}");
    }
    let (code, _, said) = run(&["check", "--file", "kamal.toml"]);
    assert_eq!(
        code,
        Some(0),
        "{said}\n{}",
        fs::read_to_string(folder.path("kamal.toml")).unwrap()
    );

    fs::write(
        folder.path("Procfile"),
        "web: ./server\nworker: ./work\nnonsense\n",
    )
    .unwrap();
    let (code, _, said) = run(&["import", "procfile", "--out", "procfile.toml"]);
    assert!(code == Some(0) && said.contains("Procfile:3"), "{said}");
    assert_eq!(run(&["check", "--file", "procfile.toml"]).0, Some(0));

    let (code, _, said) = run(&["export", "compose"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("Compose cannot express"), "{said}");
    assert_eq!(run(&["export", "compose"]).0, Some(1));
    let (_, out, _) = run(&["export", "compose", "--force", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert!(
        report["equivalence"]
            .as_array()
            .unwrap()
            .iter()
            .any(|gap| gap["key"] == "services.web.image"),
        "{out}"
    );
    let (code, _, said) = run(&["export", "dockerfile"]);
    assert!(code == Some(2) && said.contains("hint:"), "{said}");
}
