//! Landfast itself as containers: the image of `docker/Dockerfile`, built here on bases made here, run by docker-compose as
//! `docker/compose.yaml` says, and what a person does with it.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stderr,
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
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use landfast_judge::{Judge, JudgeHandle, Settings, Verdict};
use landfast_testbed::{Dockerd, DockerdOptions};
use tempfile::TempDir;

const HOST: &str = "shop.example";
const IMAGE: &str = "landfast:test";
/// Debian's client brings its own BuildKit; others need a plugin.
const DOCKER: &str = "/usr/bin/docker";
/// Three minutes at least, for a loaded machine.
const LOOKS: usize = 3_600;
const STEP: Duration = Duration::from_millis(50);

const MANIFEST: &str = r#"
app = "shop"

[services.api]
image = "shop/app:1"
pull = "never"
port = 8080
replicas = 2
health = { ready = "http:/ready", interval = "200ms" }
drain = "5s"
grace = "3s"
volumes = { data = { from = "managed", at = "/data" } }

[routes.public]
host = "shop.example"
service = "api"

[deploy]
strategy = "rolling"
min_ready = "300ms"
standby = "1s"
healthy_deadline = "60s"
progress_deadline = "120s"
"#;

const PROCESS: &str = r#"
app = "plain"

[services.api]
artifact = "build"
command = ["./app"]
"#;

/// A daemon, and what `docker-compose up` made of Landfast on it.
struct World {
    docker: Dockerd,
    folder: TempDir,
}

impl World {
    /// `None` where it cannot be tried here, which is said.
    fn start() -> Option<Self> {
        for program in ["docker-compose", "setcap", "strip", DOCKER] {
            if !is_there(program) {
                eprintln!("skipped: `{program}` is not installed (make setup)");
                return None;
            }
        }
        let docker = Dockerd::start_or_skip(DockerdOptions::default())?;
        let folder = tempfile::tempdir().unwrap();
        let world = Self { docker, folder };
        // A daemon that starts again makes its socket anew: its folder is mounted, not the socket of today.
        let sockets = world.docker.socket();
        let sockets = sockets.parent().unwrap();
        fs::set_permissions(sockets, fs::Permissions::from_mode(0o711)).unwrap();
        let more = format!(
            "services:\n  server:\n    volumes:\n      - {}:/daemon\n",
            sockets.display()
        );
        fs::write(world.path("more.yaml"), more).unwrap();
        if !world.build() {
            return None;
        }
        world.release("1");
        world.compose(&["up", "--detach"]);
        world.until("the server is healthy", || {
            let state = world.inspect("{{.State.Health.Status}}", "server");
            state == "healthy"
        });
        Some(world)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The image, from the binary of this build, on two bases of this machine's own programs; `false` where this client
    /// builds nothing, which is said.
    fn build(&self) -> bool {
        let context = self.path("context");
        fs::create_dir_all(&context).unwrap();
        fs::copy(
            assert_cmd::cargo::cargo_bin("landfast"),
            context.join("landfast"),
        )
        .unwrap();
        let stripped = Command::new("strip").arg(context.join("landfast")).status();
        assert!(stripped.unwrap().success());
        let tools = self.path("tools");
        let programs = ["sh", "mkdir", "chmod", "cp", "setcap"];
        system_folder(&tools, &programs.map(which));
        self.docker.import("base/tools:1", &tools, &[PATH]).unwrap();
        let runtime = self.path("runtime");
        system_folder(&runtime, &[]);
        libraries(&context.join("landfast"), &runtime);
        self.docker
            .import("base/runtime:1", &runtime, &[PATH])
            .unwrap();
        let dockerfile = repository().join("docker/Dockerfile");
        let built = Command::new(DOCKER)
            .args([
                "--host",
                &self.docker.address(),
                "build",
                "--network",
                "none",
            ])
            .args(["--build-arg", "BUILD_IMAGE=base/tools:1"])
            .args(["--build-arg", "RUNTIME_IMAGE=base/runtime:1"])
            .args(["--build-arg", "BINARY=given", "--tag", IMAGE, "--file"])
            .arg(dockerfile)
            .arg(&context)
            .env("DOCKER_BUILDKIT", "1")
            .env("DOCKER_CONFIG", self.path("client"))
            .output()
            .unwrap();
        for left in [&context, &tools, &runtime] {
            fs::remove_dir_all(left).unwrap();
        }
        let said = text(&built);
        if !built.status.success() && said.contains("buildx component is missing") {
            eprintln!("skipped: `{DOCKER}` has no plugin `buildx` to build with: {said}");
            return false;
        }
        succeeded("docker build", &built);
        true
    }

    /// The app of the tests, as its image's next tag, and the manifest that says so.
    fn release(&self, version: &str) {
        support::image::app(&self.docker, "shop/app", version, &self.path("work"));
        let app = self.path("shop");
        fs::create_dir_all(&app).unwrap();
        let manifest = MANIFEST.replace("shop/app:1", &format!("shop/app:{version}"));
        fs::write(app.join("landfast.toml"), manifest).unwrap();
    }

    #[track_caller]
    fn compose(&self, arguments: &[&str]) -> String {
        let group = fs::metadata(self.docker.socket()).unwrap().gid();
        let output = Command::new("docker-compose")
            .args(["--project-name", "landfast", "--project-directory"])
            .arg(self.folder.path())
            .arg("--file")
            .arg(repository().join("docker/compose.yaml"))
            .arg("--file")
            .arg(self.path("more.yaml"))
            .args(arguments)
            .env("DOCKER_HOST", self.docker.address())
            .env("DOCKER_GROUP", group.to_string())
            .env("LANDFAST_USER", user())
            .env("LANDFAST_IMAGE", IMAGE)
            .env("LANDFAST_DOCKER", "unix:///daemon/docker.sock")
            .output()
            .unwrap();
        let said = text(&output);
        assert!(
            output.status.success(),
            "docker-compose {arguments:?}: {said}\n{}",
            self.logs()
        );
        said
    }

    /// The command line as a container of its own, in an app's folder, as docs/docker.md shows it.
    fn run(&self, app: &str, arguments: &[&str], stdin: &str) -> Output {
        let mut child = Command::new(DOCKER)
            .args([
                "--host",
                &self.docker.address(),
                "run",
                "--rm",
                "--interactive",
            ])
            .args([
                "--network",
                "none",
                "--volume",
                "landfast_run:/run/landfast",
            ])
            .args(["--volume", &format!("{}:/app:ro", self.path(app).display())])
            .args(["--workdir", "/app", "--user", &user(), IMAGE])
            .args(arguments)
            .env("DOCKER_CONFIG", self.path("client"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // One that ends without reading is judged by its exit.
        drop(child.stdin.take().unwrap().write_all(stdin.as_bytes()));
        child.wait_with_output().unwrap()
    }

    #[track_caller]
    fn expect(&self, app: &str, arguments: &[&str], code: i32) -> String {
        let output = self.run(app, arguments, "");
        let said = text(&output);
        assert_eq!(
            output.status.code(),
            Some(code),
            "landfast {arguments:?}: {said}\n{}",
            self.logs()
        );
        said
    }

    /// The container of one of Compose's services, whatever its release calls it.
    fn container(&self, service: &str) -> String {
        let label = format!("label=com.docker.compose.service={service}");
        let list = ["ps", "--all", "--quiet", "--filter", &label];
        let told = self.docker.docker(&list).unwrap_or_default();
        told.lines().next().unwrap_or("none").to_owned()
    }

    fn inspect(&self, format: &str, service: &str) -> String {
        let container = self.container(service);
        let told = self
            .docker
            .docker(&["inspect", "--format", format, &container]);
        told.unwrap_or_else(|error| format!("{error}"))
    }

    fn logs(&self) -> String {
        let of = |service: &str| {
            let output = Command::new(DOCKER)
                .args(["--host", &self.docker.address(), "logs"])
                .arg(self.container(service))
                .output();
            output.map_or_else(|error| error.to_string(), |output| text(&output))
        };
        format!("--- server\n{}\n--- proxy\n{}", of("server"), of("proxy"))
    }

    /// The containers of the app that run.
    fn instances(&self) -> BTreeSet<String> {
        let names = self
            .docker
            .docker(&["ps", "--format", "{{.Names}}"])
            .unwrap();
        let ours = names.lines().filter(|name| name.contains("shop"));
        ours.map(str::to_owned).collect()
    }

    /// What the proxy answers on port 80 of the daemon's host; nothing where nobody listens.
    fn ask(&self, path: &str) -> (u16, String) {
        let asked = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect((self.docker.host(), 80))?;
            stream.set_read_timeout(Some(Duration::from_secs(20)))?;
            let request =
                format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        let answer = asked().unwrap_or_default();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
        (status.unwrap_or(0), body.to_owned())
    }

    #[track_caller]
    fn get(&self, path: &str) -> String {
        let (status, body) = self.ask(path);
        assert_eq!(status, 200, "{path}: {body}\n{}", self.logs());
        body
    }

    fn judge(&self) -> JudgeHandle {
        let target = (self.docker.host(), 80).into();
        let settings = Settings {
            rate: 100,
            post_percent: 0,
            wait_percent: 5,
            wait: Duration::from_millis(500),
            // A busy machine is late, and that is not what is asked here.
            late_after: Duration::from_secs(20),
            judge_late_after: Duration::from_secs(20),
            paths: vec!["/".into()],
            websockets: 0,
            event_streams: 0,
            ..Settings::new(target, HOST)
        };
        Judge::start(settings).unwrap()
    }

    #[track_caller]
    fn until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        for _ in 0..LOOKS {
            if holds() {
                return;
            }
            std::thread::sleep(STEP);
        }
        let all = self.docker.docker(&["ps", "--all"]).unwrap_or_default();
        panic!("{what}: never came true\n{all}\n{}", self.logs());
    }

    /// What the kernel says of the process that a container's init started.
    fn status(&self, service: &str) -> String {
        let pid = self.inspect("{{.State.Pid}}", service);
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let children = children.unwrap();
        let child = children.split_whitespace().next().unwrap();
        fs::read_to_string(format!("/proc/{child}/status")).unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // The server first, or it would replace what is taken from it.
        drop(self.docker.docker(&["kill", &self.container("server")]));
    }
}

const PATH: &str = "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Whom server and proxy run as: `LANDFAST_USER=0:0` tries it with root.
fn user() -> String {
    std::env::var("LANDFAST_USER").unwrap_or_else(|_| "10001:10001".to_owned())
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn text(output: &Output) -> String {
    let part = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    part(&output.stdout) + &part(&output.stderr)
}

#[track_caller]
fn succeeded(what: &str, output: &Output) {
    assert!(output.status.success(), "{what}: {}", text(output));
}

fn is_there(program: &str) -> bool {
    Path::new(program).is_file() || find(program).is_some()
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin:/usr/bin:/bin";
    let mut folders = std::env::split_paths(&path).map(|folder| folder.join(program));
    folders.find(|file| file.is_file())
}

fn which(program: &str) -> PathBuf {
    find(program).unwrap_or_else(|| panic!("`{program}` is not installed"))
}

/// A folder as an image of Debian has it, with these programs and nothing else.
fn system_folder(folder: &Path, programs: &[PathBuf]) {
    for part in [
        "usr/bin",
        "usr/sbin",
        "usr/lib",
        "usr/lib64",
        "etc/ssl/certs",
        "tmp",
        "run",
    ] {
        fs::create_dir_all(folder.join(part)).unwrap();
    }
    for link in ["bin", "sbin", "lib", "lib64"] {
        std::os::unix::fs::symlink(format!("usr/{link}"), folder.join(link)).unwrap();
    }
    for program in programs {
        let name = program.file_name().unwrap();
        fs::copy(program, folder.join("usr/bin").join(name)).unwrap();
        libraries(program, folder);
    }
}

/// Copies what a program is linked with to the same places below a folder.
fn libraries(program: &Path, folder: &Path) {
    let output = Command::new("ldd").arg(program).output().unwrap();
    for word in String::from_utf8_lossy(&output.stdout).split_whitespace() {
        let library = Path::new(word);
        if let Ok(below) = library.strip_prefix("/") {
            let to = folder.join(below);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(library, to).unwrap();
        }
    }
}

fn is_clean(verdict: &Verdict) {
    assert_eq!(
        (verdict.lost_total, verdict.streams_cut),
        (0, 0),
        "{:#?}",
        verdict.lost
    );
    assert!(verdict.requests > 50, "{}", verdict.requests);
}

#[test]
fn landfast_in_docker_deploys_and_serves_while_its_containers_come_and_go() {
    let Some(mut world) = World::start() else {
        return;
    };
    // Neither is root, and no more than binding low ports is left to them; or, by hand, both are, with what compose.yaml gives.
    // CAP_NET_BIND_SERVICE is number 10, CHOWN 0, DAC_OVERRIDE 1 and FOWNER 3, capabilities(7).
    let root = [
        ("server", "000000000000040b"),
        ("proxy", "0000000000000402"),
    ];
    let other = ["server", "proxy"].map(|service| (service, "0000000000000400"));
    let user = user();
    let user = user.split(':').next().unwrap();
    for (service, capabilities) in if user == "0" { root } else { other } {
        let status = world.status(service);
        let field = |name: &str| {
            let found = status.lines().find_map(|line| line.strip_prefix(name));
            found
                .unwrap_or_default()
                .split_whitespace()
                .collect::<Vec<_>>()
        };
        assert_eq!(field("Uid:"), [user; 4], "{service}: {status}");
        assert_eq!(field("CapEff:"), [capabilities], "{service}: {status}");
    }
    let mounts = world.inspect("{{range .Mounts}}{{.Destination}} {{end}}", "proxy");
    assert!(
        !mounts.contains("docker.sock") && !mounts.contains("daemon"),
        "{mounts}"
    );

    // An app that is a process is refused before anything is made of it.
    fs::create_dir_all(world.path("plain/build")).unwrap();
    fs::write(world.path("plain/landfast.toml"), PROCESS).unwrap();
    fs::write(world.path("plain/build/app"), "x").unwrap();
    fs::set_permissions(
        world.path("plain/build/app"),
        fs::Permissions::from_mode(0o755),
    )
    .unwrap();
    let said = world.expect("plain", &["deploy"], 8);
    assert!(said.contains("service `api` is a process"), "{said}");
    assert!(said.contains("`image` or a `build`"), "{said}");

    // One that is an image runs beside the server, with a secret and a volume that the daemon finds.
    let set = world.run("shop", &["secret", "set", "HIDDEN"], "hidden-4711");
    succeeded("landfast secret set", &set);
    world.expect("shop", &["deploy", "--wait", "promotion"], 0);
    assert_eq!(world.get("/"), "1");
    assert_eq!(world.get("/file/HIDDEN"), "hidden-4711");
    assert_eq!(world.get("/write/data/x"), "written");
    assert_eq!(world.get("/read/data/x"), "1");
    let all = world
        .docker
        .docker(&["volume", "inspect", "landfast_state"])
        .unwrap();
    assert!(all.contains("landfast_state"), "{all}");

    // The server's container ends and comes back in a rollout, then the daemon does.
    let judge = world.judge();
    world.release("2");
    world.expect("shop", &["deploy", "--wait", "start"], 0);
    world.compose(&["restart", "server"]);
    world.until("the rollout ends", || {
        let instances = world.instances();
        instances.len() == 2 && instances.iter().all(|name| name.contains(".r2."))
    });
    assert_eq!(world.get("/"), "2");
    let before = world.instances();
    world.docker.kill();
    assert_eq!(world.get("/"), "2");
    world.docker.boot().unwrap();
    world.until("the server sees the daemon again", || {
        let told = world.run("shop", &["status"], "");
        told.status.success() && !text(&told).contains("has not answered")
    });
    assert_eq!(world.instances(), before, "nothing was replaced");
    is_clean(&judge.finish());

    // Another image of both: the server's is not noticed, the proxy's is a gap.
    world.compose(&["up", "--detach", "--force-recreate"]);
    world.until("the proxy serves again", || {
        world.ask("/") == (200, "2".to_owned())
    });
    assert_eq!(world.instances(), before, "the app was not touched");
    world.until("the new server leads", || {
        world.run("shop", &["status"], "").status.success()
    });
    world.release("3");
    world.expect("shop", &["deploy", "--wait", "seal"], 0);
    assert_eq!(world.get("/"), "3");

    // Without both the app lives on, and is taken up again with all that was its own.
    let before = world.instances();
    world.compose(&["down"]);
    assert_eq!(world.ask("/").0, 0, "nobody listens");
    assert_eq!(world.instances(), before);
    world.compose(&["up", "--detach"]);
    world.until("it serves again", || {
        world.ask("/") == (200, "3".to_owned())
    });
    assert_eq!(world.get("/read/data/x"), "1");
    assert_eq!(world.instances(), before);
}
