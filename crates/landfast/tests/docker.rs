//! Containers, from the manifest to what Docker runs: the real command line, server and proxy, a real daemon, and the loss
//! judge's load on an app from images that are made here.

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
    process::Command,
    time::Duration,
};

use landfast_judge::{Judge, JudgeHandle, Settings, Verdict};
use landfast_testbed::{Dockerd, DockerdOptions, Registry};
use serde_json::Value;
use support::host::Host;

const HOST: &str = "shop.example";
const SOURCE: &str = include_str!("docker/app.rs");

/// A daemon, a server that uses it, and an app whose image is built at each deploy.
struct World {
    docker: Dockerd,
    host: Host,
    app: PathBuf,
}

impl World {
    /// `None` where no daemon can be started here, which is said.
    fn start(manifest: &str) -> Option<Self> {
        Self::on(DockerdOptions::default(), Host::stopped(), manifest)
    }

    fn on(options: DockerdOptions, mut host: Host, manifest: &str) -> Option<Self> {
        let docker = Dockerd::start_or_skip(options)?;
        host.arguments = vec!["--docker".into(), docker.address()];
        host.start_server();
        let app = host.path("shop");
        fs::create_dir_all(&app).unwrap();
        fs::write(app.join("landfast.toml"), manifest).unwrap();
        let world = Self { docker, host, app };
        world.release("1");
        Some(world)
    }

    /// Puts another release where its image is built from.
    fn release(&self, version: &str) {
        compile(&self.app.join("image"), version);
    }

    fn expect(&self, arguments: &[&str], code: i32) -> String {
        let output = self.run(arguments);
        let err = String::from_utf8_lossy(&output.stderr);
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        let server = fs::read_to_string(self.host.path("server.log")).unwrap_or_default();
        assert_eq!(
            output.status.code(),
            Some(code),
            "landfast {arguments:?}\n--- stdout\n{out}\n--- stderr\n{err}\n--- server\n{server}"
        );
        out + &err
    }

    fn run(&self, arguments: &[&str]) -> std::process::Output {
        support::landfast(&self.app)
            .env("LANDFAST_SOCKET", self.host.path("run/landfast.sock"))
            .env("DOCKER_HOST", self.docker.address())
            // Where there is none, it is the client's own.
            .env("DOCKER_CONFIG", self.host.path("client"))
            // The distribution's client, whatever else is installed.
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .args(arguments)
            .timeout(Duration::from_secs(240))
            .output()
            .unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        self.host.json(&self.app, arguments)
    }

    fn get(&self, path: &str) -> String {
        let (status, body) = self.host.get(HOST, path);
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    /// Load, as the loss judge means it: half of it on new connections, some of it slow.
    fn judge(&self) -> JudgeHandle {
        let target = ([127, 0, 0, 1], self.host.http).into();
        let settings = Settings {
            rate: 150,
            post_percent: 0,
            wait_percent: 5,
            wait: Duration::from_millis(500),
            // A busy machine is late, and that is not what is asked here.
            late_after: Duration::from_secs(10),
            judge_late_after: Duration::from_secs(10),
            paths: vec!["/".into(), "/env/LANDFAST_INSTANCE".into()],
            websockets: 0,
            event_streams: 0,
            ..Settings::new(target, HOST)
        };
        Judge::start(settings).unwrap()
    }

    /// Waits until the status is as wanted; shows it where it never is.
    #[track_caller]
    fn until_status(&self, what: &str, holds: impl Fn(&Value) -> bool) {
        for _ in 0..1_200 {
            if holds(&self.json(&["status"])) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let status = self.run(&["status"]);
        let history = self.run(&["history"]);
        let shown =
            |output: &std::process::Output| String::from_utf8_lossy(&output.stdout).into_owned();
        let containers = self.docker(&["ps", "--all"]);
        let server = fs::read_to_string(self.host.path("server.log")).unwrap_or_default();
        panic!(
            "{what}: never came true\n{}\n{}\n{containers}\n--- server\n{server}",
            shown(&status),
            shown(&history)
        );
    }

    /// What the daemon says, by its own client.
    fn docker(&self, arguments: &[&str]) -> String {
        self.docker.docker(arguments).unwrap()
    }

    /// The containers of the app that run, by name.
    fn containers(&self) -> Vec<String> {
        let names = self.docker(&["ps", "--format", "{{.Names}}"]);
        names.lines().map(str::to_owned).collect()
    }

    /// The instances of the service that are ready.
    fn ready(&self) -> Vec<String> {
        let status = self.json(&["status"]);
        let groups = status["services"][0]["groups"].as_array().cloned();
        let instances = groups
            .unwrap_or_default()
            .into_iter()
            .flat_map(|group| group["instances"].as_array().cloned().unwrap_or_default());
        instances
            .filter(|instance| instance["state"] == "ready")
            .map(|instance| instance["id"].as_str().unwrap_or_default().to_owned())
            .collect()
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

/// A folder an image is built from: one static program.
#[expect(
    clippy::disallowed_methods,
    reason = "the app is compiled as one would"
)]
fn compile(folder: &Path, version: &str) {
    fs::create_dir_all(folder).unwrap();
    let source = folder.join("app.rs");
    fs::write(&source, SOURCE).unwrap();
    let compiler = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let output = Command::new(compiler)
        .args(["--edition", "2024", "-C", "target-feature=+crt-static"])
        .args(["-C", "strip=symbols", "-o"])
        .arg(folder.join("app"))
        .arg(&source)
        .env("VERSION", version)
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let dockerfile = "FROM scratch\nCOPY app /app\nHEALTHCHECK --interval=1s CMD [\"/app\", \"check\"]\nENTRYPOINT [\"/app\"]\n";
    fs::write(folder.join("Dockerfile"), dockerfile).unwrap();
    fs::write(folder.join(".dockerignore"), "app.rs\n").unwrap();
}

fn manifest(service: &str, deploy: &str) -> String {
    format!(
        r#"
app = "shop"

[services.api]
build = "image"
port = 8080
replicas = 2
health = {{ ready = "http:/ready", interval = "200ms" }}
drain = "5s"
grace = "3s"
resources = {{ memory = "64MiB", cpu = "200m" }}
reserve = {{ memory = "16MiB" }}
volumes = {{ data = {{ from = "managed", at = "/data" }} }}
{service}

[jobs.fail]
build = "image"
command = ["fail"]

[jobs.smoke]
build = "image"
command = ["smoke"]
when = "gate:smoke"

[routes.public]
host = "{HOST}"
service = "api"

[deploy]
min_ready = "300ms"
standby = "1s"
hold = "2s"
healthy_deadline = "60s"
progress_deadline = "120s"
{deploy}
"#
    )
}

fn is_clean(verdict: &Verdict) {
    assert_eq!(
        (verdict.lost_total, verdict.streams_cut),
        (0, 0),
        "{:#?}",
        verdict.lost
    );
    assert!(verdict.requests > 100, "{}", verdict.requests);
}

#[test]
fn every_strategy_moves_containers_without_losing_a_request() {
    let gates = "gates = [\"preflight\", \"smoke\"]";
    let Some(world) = World::start(&manifest("", gates)) else {
        return;
    };
    let said = world.expect(&["deploy", "--wait", "promotion"], 0);
    assert!(said.contains("built landfast/shop/"), "{said}");
    assert_eq!(world.get("/"), "1");
    let again = world.expect(&["deploy"], 0);
    assert!(again.contains("nothing differs from release 1"), "{again}");
    let judge = world.judge();
    let strategies = [("2", "rolling"), ("3", "blue-green"), ("4", "canary")];
    for (version, strategy) in strategies {
        world.release(version);
        world.expect(&["deploy", "--strategy", strategy, "--wait", "seal"], 0);
        assert_eq!(world.get("/"), version, "{strategy}");
    }
    // Back to the image of release 2, while nothing is built.
    world.expect(&["rollback", "--to", "2", "--wait", "promotion"], 0);
    assert_eq!(world.get("/"), "2");
    // One that never becomes ready is taken back, and the old one serves on.
    world.release("never-ready");
    let quick = fs::read_to_string(world.app.join("landfast.toml")).unwrap();
    let quick = quick.replace("healthy_deadline = \"60s\"", "healthy_deadline = \"3s\"");
    fs::write(world.app.join("landfast.toml"), quick).unwrap();
    world.expect(&["deploy", "--strategy", "rolling", "--wait", "seal"], 5);
    assert_eq!(world.get("/"), "2");
    is_clean(&judge.finish());

    let history = world.json(&["history"]);
    let images = &history["releases"][0]["images"]["build:image"];
    assert!(
        images["id"].as_str().unwrap().starts_with("sha256:"),
        "{history}"
    );
    // What is said of the app goes to containers, too.
    let logs = world.expect(&["logs", "api"], 0);
    assert!(logs.contains("serving 2"), "{logs}");
    let said = world.expect(&["exec", "api", "--", "/app", "fail"], 3);
    assert!(said.contains("failing on purpose"), "{said}");
    world.expect(&["run", "fail"], 3);
    world.expect(&["scale", "api", "3"], 0);
    world.host.until("three ready", || world.ready().len() == 3);
    let before = world.ready();
    world.expect(&["restart"], 0);
    let after = world.ready();
    assert!(
        before.iter().all(|id| !after.contains(id)),
        "{before:?} {after:?}"
    );
}

#[test]
fn secrets_are_files_and_the_rest_is_closed() {
    let service = "env = { SHOWN = { required = true }, LEVEL = \"info\" }";
    let Some(world) = World::start(&manifest(service, "")) else {
        return;
    };
    for (name, value) in [("HIDDEN", "hidden-4711"), ("SHOWN", "shown-4711")] {
        let output = support::landfast(&world.app)
            .env("LANDFAST_SOCKET", world.host.path("run/landfast.sock"))
            .args(["secret", "set", name])
            .write_stdin(value)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let said = world.expect(&["deploy", "--wait", "promotion"], 0);
    assert!(
        said.contains("LF044") && said.contains("docker inspect"),
        "{said}"
    );
    assert_eq!(world.get("/file/HIDDEN"), "hidden-4711");
    assert_eq!(world.get("/env/HIDDEN"), "-");
    assert_eq!(world.get("/env/SHOWN"), "shown-4711");
    assert_eq!(world.get("/env/LEVEL"), "info");
    assert_eq!(world.get("/env/PORT"), "8080");
    let containers = world.containers();
    assert_eq!(containers.len(), 2, "{containers:?}");
    for name in &containers {
        let all = world.docker(&["inspect", name]);
        assert!(!all.contains("hidden-4711"), "{all}");
        assert!(all.contains("shown-4711"), "as it was asked for");
        let shown: Value = serde_json::from_str(&all).unwrap();
        let host = &shown[0]["HostConfig"];
        assert_eq!(host["ReadonlyRootfs"], true);
        assert_eq!(host["Memory"], 64 << 20);
        assert_eq!(host["MemoryReservation"], 16 << 20);
        assert_eq!(host["NanoCpus"], 200_000_000);
        assert_eq!(host["Init"], true);
        let published = shown[0]["NetworkSettings"]["Ports"].as_object();
        let bound = published.into_iter().flatten().any(|(_, to)| to.is_array());
        assert!(!bound, "{}", shown[0]["NetworkSettings"]["Ports"]);
    }
    // Its own files are closed, its volume is open and lasts.
    assert!(
        world.get("/write/etc/x").contains("os error"),
        "the root is read-only"
    );
    assert_eq!(world.get("/write/tmp/x"), "written");
    assert_eq!(world.get("/write/data/x"), "written");
    let status = world.get("/read/proc/self/status");
    let line = |name: &str| {
        let found = status.lines().find_map(|line| line.strip_prefix(name));
        found.unwrap_or_default().trim().to_owned()
    };
    assert_ne!(
        line("Uid:").split_whitespace().next(),
        Some("0"),
        "{status}"
    );
    assert_eq!(line("CapEff:"), "0000000000000000");
    assert_eq!(line("NoNewPrivs:"), "1");
    world.expect(&["restart"], 0);
    assert_eq!(world.get("/read/data/x"), "1");
    let kept = world.host.path("state/volumes/shop/production/data/x");
    assert_eq!(fs::read_to_string(kept).unwrap(), "1");
}

#[test]
fn the_check_of_the_image_is_asked() {
    let asks = manifest("", "").replace(
        "health = { ready = \"http:/ready\", interval = \"200ms\" }",
        "health = { ready = \"image\", interval = \"200ms\" }",
    );
    let Some(world) = World::start(&asks) else {
        return;
    };
    world.expect(&["deploy", "--wait", "promotion"], 0);
    assert_eq!(world.get("/"), "1");
    let quick = asks.replace("healthy_deadline = \"60s\"", "healthy_deadline = \"6s\"");
    fs::write(world.app.join("landfast.toml"), quick).unwrap();
    world.release("never-ready");
    let said = world.expect(&["deploy", "--wait", "seal"], 5);
    assert!(said.contains("check of the image"), "{said}");
    assert_eq!(world.get("/"), "1");
}

#[test]
fn a_container_that_dies_is_replaced() {
    let Some(world) = World::start(&manifest("", "")) else {
        return;
    };
    world.expect(&["deploy", "--wait", "promotion"], 0);
    let before = world.ready();
    let containers = world.containers();
    world.docker(&["kill", &containers[0]]);
    world.host.until("another takes its place", || {
        let now = world.ready();
        now.len() == 2 && now != before
    });
    assert_eq!(world.get("/"), "1");
    // Removed by hand, with its image.
    let containers = world.containers();
    let before = world.ready();
    world.docker(&["rm", "--force", &containers[0]]);
    world.host.until("another takes its place", || {
        let now = world.ready();
        now.len() == 2 && now != before
    });
}

#[test]
fn the_daemon_is_killed_in_a_rollout() {
    let Some(mut world) = World::start(&manifest("", "")) else {
        return;
    };
    world.expect(&["deploy", "--wait", "promotion"], 0);
    let judge = world.judge();
    world.release("2");
    world.expect(&["deploy", "--wait", "start"], 0);
    world.host.until("an instance of release 2", || {
        world.containers().iter().any(|name| name.contains(".r2."))
    });
    world.docker.kill();
    world.host.until("the status says so", || {
        let status = world.json(&["status"]);
        let problems = status["problems"].as_array().cloned().unwrap_or_default();
        problems.iter().any(|one| {
            let text = one["text"].as_str().unwrap_or_default();
            text.contains("has not answered since")
        })
    });
    // Traffic goes on without it.
    assert!(["1", "2"].contains(&world.get("/").as_str()));
    world.docker.boot().unwrap();
    world.until_status("the rollout ends", |status| {
        status["rollout"].is_null() && status["release"] == 2 && status["state"] == "serving"
    });
    assert_eq!(world.get("/"), "2");
    is_clean(&judge.finish());
    let problems = world.json(&["status"])["problems"].to_string();
    assert!(!problems.contains("has not answered"), "{problems}");
}

/// A shell and what it is linked to, to build on.
fn base(folder: &Path) {
    let programs = ["/bin/sh", "/bin/sleep"];
    #[expect(
        clippy::disallowed_methods,
        reason = "the linker's own tool says what it needs"
    )]
    let told = Command::new("ldd").args(programs).output().unwrap();
    let told = String::from_utf8(told.stdout).unwrap();
    let libraries = told.split_whitespace();
    let libraries = libraries.filter(|word| word.starts_with('/') && !word.ends_with(':'));
    for path in libraries.chain(programs) {
        let place = folder.join(path.trim_start_matches('/'));
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        fs::copy(path, place).unwrap();
    }
    for name in ["tmp", "proc", "sys", "dev", "etc", "run"] {
        fs::create_dir_all(folder.join(name)).unwrap();
    }
}

/// Whether a process that this one has started, or one of those, has a text among its arguments.
fn is_argument(text: &str) -> bool {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let has = |pid: &u32| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&words).contains(text)
    };
    let mut pids = pids.filter(has);
    pids.any(is_ours)
}

fn is_ours(pid: u32) -> bool {
    let own = std::process::id();
    let parent = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name of a program may hold anything, a bracket too.
        let (_, fields) = stat.rsplit_once(')')?;
        fields.split_whitespace().nth(1)?.parse().ok()
    };
    std::iter::successors(Some(pid), parent).any(|pid| pid == own)
}

/// Raised when it goes, by a panic too.
struct Raised<'a>(&'a std::sync::atomic::AtomicBool);

impl Drop for Raised<'_> {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

#[test]
fn a_secret_of_a_build_is_used_and_stays_nowhere() {
    const SECRET: &str = "s3cr3t-of-the-build";
    let options = DockerdOptions {
        bridge: true,
        ..DockerdOptions::default()
    };
    let with = "build = { context = \"image\", secrets = [\"SHOP_BUILD_TOKEN\"] }";
    let manifest = manifest("", "").replace("build = \"image\"", with);
    let Some(world) = World::on(options, Host::stopped(), &manifest) else {
        return;
    };
    base(&world.host.path("base"));
    world
        .docker
        .import("base:1", &world.host.path("base"), &[])
        .unwrap();
    // The step fails without it, and leaves a trace of having had it.
    let dockerfile = "FROM base:1\nCOPY app /app\n\
        RUN --mount=type=secret,id=SHOP_BUILD_TOKEN read -r token < /run/secrets/SHOP_BUILD_TOKEN; sleep 1; \
        [ ${#token} -gt 0 ] && echo ${#token} > /length\n\
        RUN [ ! -e /run/secrets/SHOP_BUILD_TOKEN ]\n\
        HEALTHCHECK NONE\nENTRYPOINT [\"/app\"]\n";
    fs::write(world.app.join("image/Dockerfile"), dockerfile).unwrap();
    let set = world.host.run_with(
        &world.app,
        &["secret", "set", "SHOP_BUILD_TOKEN"],
        &format!("{SECRET}\n"),
    );
    assert!(
        set.status.success(),
        "{}",
        String::from_utf8_lossy(&set.stderr)
    );
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let seen = std::thread::scope(|scope| {
        let looks = scope.spawn(|| {
            let over = || is_over.load(std::sync::atomic::Ordering::Relaxed);
            let mut seen = (false, false);
            while !over() {
                seen.0 |= is_argument(SECRET);
                seen.1 |= is_argument("id=SHOP_BUILD_TOKEN,env=");
                std::thread::sleep(Duration::from_millis(20));
            }
            seen
        });
        let ends = Raised(&is_over);
        let said = world.run(&["deploy", "--wait", "promotion", "--verbose"]);
        drop(ends);
        let text = [said.stdout, said.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        assert!(said.status.success(), "{text}");
        assert!(!text.contains(SECRET), "{text}");
        looks.join().unwrap()
    });
    // The client was seen, and the value was not.
    assert_eq!(seen, (false, true));
    let images = world.docker(&[
        "images",
        "--quiet",
        "--no-trunc",
        "--filter",
        "reference=landfast/shop/*",
    ]);
    let image = images.lines().next().unwrap();
    let length = world.docker(&[
        "run",
        "--rm",
        "--network",
        "none",
        "--entrypoint",
        "/bin/sh",
        image,
        "-c",
        "read -r length < /length; echo $length",
    ]);
    assert_eq!(length, SECRET.len().to_string());
    for told in [
        world.docker(&["history", "--no-trunc", image]),
        world.docker(&["inspect", image]),
    ] {
        assert!(!told.contains(SECRET), "{told}");
    }
    let saved = world.host.path("saved.tar");
    world.docker(&["save", "--output", &saved.to_string_lossy(), image]);
    let saved = fs::read(saved).unwrap();
    let holds = |text: &str| {
        saved
            .windows(text.len())
            .any(|found| found == text.as_bytes())
    };
    assert!(holds("ENTRYPOINT") && !holds(SECRET));
}

/// A helper as Docker's client and Landfast ask it: the word `get` as its argument, the registry on its input.
const HELPER: &str = r#"#!/usr/bin/env python3
import json, os, sys
server = sys.stdin.readline().strip()
folder = os.path.dirname(os.path.abspath(sys.argv[0]))
with open(os.path.join(folder, "asked"), "a") as asked:
    print(sys.argv[1], server, file=asked)
logins = json.load(open(os.path.join(folder, "logins")))
if sys.argv[1] != "get":
    sys.exit(3)
if server not in logins:
    print("credentials not found in native keychain")
    sys.exit(1)
if logins[server] is None:
    print("the keychain is locked, and this may be secret")
    sys.exit(2)
json.dump({"ServerURL": server, "Username": logins[server][0], "Secret": logins[server][1]}, sys.stdout)
"#;

#[expect(clippy::disallowed_methods, reason = "the docker client pushes")]
fn push_as(world: &World, name: &str, (path, config): (&str, &Path)) -> std::process::Output {
    let mut command = Command::new("docker");
    command.args(["--host", &world.docker.address(), "push", name]);
    command.env("PATH", path).env("DOCKER_CONFIG", config);
    command.output().unwrap()
}

#[test]
fn a_registry_is_asked_with_what_a_credential_helper_knows() {
    let mut host = Host::stopped();
    let (helpers, client) = (host.path("helpers"), host.path("client"));
    fs::create_dir_all(&helpers).unwrap();
    fs::create_dir_all(&client).unwrap();
    let helper = helpers.join("docker-credential-testbed");
    fs::write(&helper, HELPER).unwrap();
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", helpers.display());
    host.env = vec![
        ("PATH", path.clone()),
        ("DOCKER_CONFIG", client.display().to_string()),
    ];
    let Some(world) = World::on(DockerdOptions::default(), host, "") else {
        return;
    };
    // One that no other test has among its arguments, and what `htpasswd -B` makes of it.
    let (user, password) = ("testbed", "docker-helper-4711-secret");
    let hashed = "$2y$05$abcdefghijklmnopqrstuuiYxIxtT6o6LoZ3P1zcso8PWAttmRjrW";
    let registry = Registry::start_for(&world.docker, Some((user, hashed))).unwrap();
    let address = registry.address();
    let logins = |known: &Value| fs::write(helpers.join("logins"), known.to_string()).unwrap();
    logins(&serde_json::json!({ address: [user, password] }));
    let config = serde_json::json!({ "credHelpers": { address: "testbed" } });
    fs::write(client.join("config.json"), config.to_string()).unwrap();

    // Docker's own client is the judge of the helper: it pushes with what that knows, and not without.
    let name = format!("{address}/shop:1");
    let entrypoint = ["ENTRYPOINT [\"/app\"]"];
    let image = world.app.join("image");
    world.docker.import(&name, &image, &entrypoint).unwrap();
    let pushed = push_as(&world, &name, (&path, &client));
    let said = String::from_utf8_lossy(&pushed.stderr);
    assert!(pushed.status.success(), "{said}");
    world.docker(&["rmi", "--force", &name]);
    let asked = || fs::read_to_string(helpers.join("asked")).unwrap();

    let with = format!("image = \"{name}\"");
    let text = manifest("", "").replace("build = \"image\"", &with);
    fs::write(world.app.join("landfast.toml"), &text).unwrap();
    // One that knows nothing of it, one that does not tell, and one that is wrong.
    for (known, said) in [
        (serde_json::json!({}), name.as_str()),
        (
            serde_json::json!({ address: null }),
            "docker-credential-testbed",
        ),
        (
            serde_json::json!({ address: [user, "wr0ng-passw0rd"] }),
            address,
        ),
    ] {
        logins(&known);
        let refused = world.run(&["deploy"]);
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success(), "{text}");
        assert!(text.contains(said), "{text}");
        assert!(
            !text.contains("keychain") && !text.contains("wr0ng"),
            "{text}"
        );
    }
    assert!(
        asked().lines().all(|line| line == format!("get {address}")),
        "{}",
        asked()
    );
    logins(&serde_json::json!({ address: [user, password] }));
    world.expect(&["deploy", "--wait", "promotion"], 0);
    assert_eq!(world.get("/"), "1");

    // The same through the helper for all registries.
    let all = serde_json::json!({ "credsStore": "testbed" });
    fs::write(client.join("config.json"), all.to_string()).unwrap();
    let second = format!("{address}/shop:2");
    let lines = ["ENTRYPOINT [\"/app\"]", "LABEL release=2"];
    world.docker.import(&name, &image, &lines).unwrap();
    world.docker(&["tag", &name, &second]);
    world.docker(&["rmi", "--force", &name]);
    let pushed = push_as(&world, &second, (&path, &client));
    assert!(pushed.status.success());
    world.docker(&["rmi", "--force", &second]);
    fs::write(
        world.app.join("landfast.toml"),
        text.replace(&name, &second),
    )
    .unwrap();
    world.expect(&["deploy", "--wait", "promotion"], 0);
    let log = fs::read_to_string(world.host.path("server.log")).unwrap();
    assert!(!log.contains(password) && !log.contains("wr0ng"), "{log}");
    assert!(!is_argument(password));
}
