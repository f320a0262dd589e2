//! A Docker daemon in a world of its own: network, mounts, data, addresses and control group.
//!
//! Daemons that share a network namespace take each other's firewall rules away when they start. So this one has its
//! own, joined to the host by one pair of interfaces: containers are reached from the host at their own addresses, and
//! nothing of the host's rules is touched. Its mounts are seen by nobody else, and are gone with its last process.

use std::{
    fs::{self, File},
    io::Write as _,
    net::Ipv4Addr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use rustix::process::{Pid, Signal, geteuid, kill_process};

use crate::{
    StartError,
    folder::{Folder, kill_whoever_names, program},
    process::{Server, run},
};

const PACKAGE: &str = "docker.io";
const FOLDERS: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/// So many daemons of tests at once.
const WORLDS: u8 = 128;
/// Where this is set, a test that needs Docker and cannot have it fails.
const REQUIRED: &str = "LANDFAST_TEST_DOCKER";

/// Where Podman keeps what runs, in the mounts of its daemon alone.
const RUN_ROOT: &str = "/mnt";

/// Where Podman's server of names keeps what it serves, wherever the rest is.
const NAMES: &str = "/run/containers/networks";

/// Podman lets every container have more processes than the kernel has, which needs a right that not every root has. This
/// leaves the limit as it is, and goes on as the runtime that is meant.
const RUNTIME: &str = r#"#!/bin/sh
next=""
for word in "$@"; do
    file=""
    case "$next" in
        --bundle) file="$word/config.json" ;;
        --process) file="$word" ;;
    esac
    if [ -n "$file" ]; then
        sed -i -E 's/,?\{"type":"RLIMIT_NPROC"[^}]*\}//; s/"rlimits":\[,/"rlimits":[/' "$file"
    fi
    next="$word"
done
exec runc "$@"
"#;

/// Which daemon tests take where they name none: `podman`, or Docker's own.
const ENGINE: &str = "LANDFAST_TEST_ENGINE";

/// A kind of daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    Docker,
    /// Podman's service, which speaks Docker's API.
    Podman,
}

impl Engine {
    fn named() -> Self {
        match std::env::var_os(ENGINE).is_some_and(|name| name == "podman") {
            true => Self::Podman,
            false => Self::Docker,
        }
    }

    fn program(self) -> (&'static str, &'static str) {
        match self {
            Self::Docker => ("dockerd", PACKAGE),
            Self::Podman => ("podman", "podman"),
        }
    }
}

/// What a daemon is started with.
#[derive(Debug, Clone)]
pub struct DockerdOptions {
    pub engine: Engine,
    /// Whether containers go on while the daemon is away.
    pub live_restore: bool,
    /// Keeps images and containers in memory of this size, to fill it.
    pub disk_bytes: Option<u64>,
    /// Whether it has a network for whoever names none, as the steps of its own builds.
    pub bridge: bool,
}

impl Default for DockerdOptions {
    fn default() -> Self {
        Self {
            engine: Engine::named(),
            live_restore: true,
            disk_bytes: None,
            bridge: false,
        }
    }
}

/// A Docker daemon. Dropping it ends it with all it runs.
pub struct Dockerd {
    server: Option<Server>,
    /// Holds the namespaces while the daemon is away.
    holder: Server,
    folder: Folder,
    options: DockerdOptions,
    world: World,
}

/// Addresses and names nobody else has.
struct World {
    number: u8,
    /// Locked as long as the daemon lives.
    _lock: File,
}

impl World {
    fn take() -> Result<Self, StartError> {
        let io = |source| StartError::Io {
            what: "find addresses for a Docker daemon".into(),
            source,
        };
        for number in 0..WORLDS {
            let path = std::env::temp_dir().join(format!("landfast-testbed-docker-{number}"));
            let file = File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .open(path)
                .map_err(io)?;
            if file.try_lock().is_ok() {
                return Ok(Self {
                    number,
                    _lock: file,
                });
            }
        }
        Err(io(std::io::ErrorKind::AddrInUse.into()))
    }

    fn here(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 250, self.number, 1)
    }

    fn there(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 250, self.number, 2)
    }

    /// The addresses of its networks: a /22, in sixteen parts.
    fn pool(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 251 + self.number / 64, self.number % 64 * 4, 0)
    }

    fn outside(&self) -> String {
        format!("lftb{}h", self.number)
    }

    fn inside(&self) -> String {
        format!("lftb{}d", self.number)
    }

    fn control_group(&self) -> String {
        format!("landfast-testbed-{}", self.number)
    }
}

impl Dockerd {
    /// Starts a daemon whose containers outlive it.
    ///
    /// # Errors
    /// [`StartError::Unavailable`] where none can be started, with the reason.
    pub fn start() -> Result<Self, StartError> {
        Self::start_with(DockerdOptions::default())
    }

    /// Starts a daemon.
    ///
    /// # Errors
    /// [`StartError::Unavailable`] where none can be started, with the reason.
    pub fn start_with(options: DockerdOptions) -> Result<Self, StartError> {
        Self::available_as(options.engine)?;
        let folder = Folder::new("docker", None)?;
        let world = World::take()?;
        // Whoever had the number is dead: the lock says so.
        end_group(&world.control_group());
        drop(ip(&["link", "del", &world.outside()]));
        let mut holder = Command::new(program("unshare", "util-linux", &FOLDERS)?);
        holder.args([
            "--mount",
            "--net",
            "--propagation",
            "slave",
            "sleep",
            "infinity",
        ]);
        let mut holder = Server::start(holder, None, &folder.path().join("holder.log"))?;
        folder.note_server(holder.pid());
        let own = fs::read_link("/proc/self/ns/net").ok();
        let pid = holder.pid();
        let theirs = move || fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        let is_sleeping =
            move || fs::read(format!("/proc/{pid}/comm")).is_ok_and(|name| name == b"sleep\n");
        holder.wait_ready(|| theirs() != own && is_sleeping())?;
        let mut this = Self {
            server: None,
            holder,
            folder,
            options,
            world,
        };
        this.connect()?;
        this.make_disk()?;
        this.boot()?;
        Ok(this)
    }

    /// Starts a daemon, or says why not and gives none: a test that needs one is over then. Where
    /// `LANDFAST_TEST_DOCKER` is set, it has failed.
    ///
    /// # Panics
    /// When a daemon that could be started was not.
    #[expect(
        clippy::print_stderr,
        reason = "a test that was not run says so where tests do"
    )]
    pub fn start_or_skip(options: DockerdOptions) -> Option<Self> {
        match Self::start_with(options) {
            Ok(dockerd) => Some(dockerd),
            Err(StartError::Unavailable { reason }) if std::env::var_os(REQUIRED).is_none() => {
                eprintln!("skipped: there is no Docker daemon to test with: {reason}");
                None
            }
            Err(error) => panic!("a Docker daemon for the test: {error}"),
        }
    }

    /// Whether a daemon can be started here at all.
    ///
    /// # Errors
    /// [`StartError::Unavailable`], with the reason.
    pub fn available() -> Result<(), StartError> {
        Self::available_as(Engine::named())
    }

    fn available_as(engine: Engine) -> Result<(), StartError> {
        let unavailable = |reason: String| StartError::Unavailable { reason };
        if !geteuid().is_root() {
            return Err(unavailable("only root may start one".into()));
        }
        for (name, package) in [
            engine.program(),
            ("docker", PACKAGE),
            ("ip", "iproute2"),
            ("iptables", "iptables"),
            ("nsenter", "util-linux"),
        ] {
            program(name, package, &FOLDERS).map_err(|error| unavailable(error.to_string()))?;
        }
        // One that may not make namespaces cannot make containers either.
        let mut unshare = Command::new(program("unshare", "util-linux", &FOLDERS)?);
        unshare.args(["--mount", "--net", "true"]);
        run(unshare, None, "make namespaces").map_err(|error| unavailable(error.to_string()))?;
        Ok(())
    }

    /// Joins the daemon's network to the host's.
    fn connect(&self) -> Result<(), StartError> {
        let world = &self.world;
        let (outside, inside) = (world.outside(), world.inside());
        let holder = self.holder.pid().to_string();
        ip(&[
            "link", "add", &outside, "type", "veth", "peer", "name", &inside, "netns", &holder,
        ])?;
        ip(&[
            "addr",
            "add",
            &format!("{}/30", world.here()),
            "dev",
            &outside,
        ])?;
        ip(&["link", "set", &outside, "up"])?;
        ip(&[
            "route",
            "replace",
            &format!("{}/22", world.pool()),
            "via",
            &world.there().to_string(),
        ])?;
        self.within(
            "ip",
            &[
                "addr",
                "add",
                &format!("{}/30", world.there()),
                "dev",
                &inside,
            ],
        )?;
        self.within("ip", &["link", "set", &inside, "up"])?;
        self.within("ip", &["link", "set", "lo", "up"])?;
        self.within(
            "ip",
            &["route", "add", "default", "via", &world.here().to_string()],
        )?;
        Ok(())
    }

    fn make_disk(&self) -> Result<(), StartError> {
        let root = self.root();
        fs::create_dir_all(&root).map_err(|source| StartError::Io {
            what: "make the folder of a daemon".into(),
            source,
        })?;
        if let Some(bytes) = self.options.disk_bytes {
            let size = format!("size={bytes}");
            self.within(
                "mount",
                &["-t", "tmpfs", "-o", &size, "tmpfs", &root.to_string_lossy()],
            )?;
        }
        Ok(())
    }

    /// Runs a program among what the daemon sees.
    fn within(&self, name: &'static str, arguments: &[&str]) -> Result<String, StartError> {
        let mut command = self.enter()?;
        command
            .arg(program(name, PACKAGE, &FOLDERS)?)
            .args(arguments);
        run(command, None, &format!("{name} {}", arguments.join(" ")))
    }

    fn enter(&self) -> Result<Command, StartError> {
        let mut command = Command::new(program("nsenter", "util-linux", &FOLDERS)?);
        command
            .arg(format!("--target={}", self.holder.pid()))
            .args(["--mount", "--net"]);
        Ok(command)
    }

    /// Starts the daemon again after [`Dockerd::stop`] or [`Dockerd::kill`].
    ///
    /// # Errors
    /// When it does not come up.
    pub fn boot(&mut self) -> Result<(), StartError> {
        let folder = self.folder.path();
        // What a killed one left would be believed.
        for left in [folder.join("pid"), self.socket()] {
            drop(fs::remove_file(left));
        }
        forget_containerd(&folder.join("exec/containerd/containerd.pid"));
        let command = match self.options.engine {
            Engine::Docker => self.dockerd()?,
            Engine::Podman => self.podman()?,
        };
        let mut server = Server::start(command, None, &folder.join("log"))?;
        server.wait_ready(|| {
            self.docker(&["version", "--format", "{{.Server.Version}}"])
                .is_ok()
        })?;
        self.server = Some(server);
        if self.options.engine == Engine::Podman {
            return self.masquerade();
        }
        let (inside, here) = (self.world.inside(), self.world.here().to_string());
        // What comes from the host is let through, and seen as from the daemon's own host: a store's network knows no
        // other.
        for rule in [
            &[
                "filter",
                "DOCKER-USER",
                "--in-interface",
                &inside,
                "--jump",
                "ACCEPT",
            ][..],
            &[
                "filter",
                "DOCKER-USER",
                "--out-interface",
                &inside,
                "--match",
                "conntrack",
                "--ctstate",
                "RELATED,ESTABLISHED",
                "--jump",
                "ACCEPT",
            ],
            // A daemon that starts again puts its own before it.
            &["filter", "FORWARD", "--jump", "DOCKER-USER"],
            &[
                "nat",
                "POSTROUTING",
                "--source",
                &here,
                "--jump",
                "MASQUERADE",
            ],
        ] {
            let asked = |order: &str| {
                let words = ["--wait", "--table", rule[0], order];
                self.within("iptables", &[&words, &rule[1..]].concat())
            };
            drop(asked("--delete"));
            asked("--insert")?;
        }
        Ok(())
    }

    fn dockerd(&self) -> Result<Command, StartError> {
        let folder = self.folder.path();
        let mut command = self.enter()?;
        command
            .arg(program("dockerd", PACKAGE, &FOLDERS)?)
            .args(["--insecure-registry", "10.250.0.0/16"])
            .args(["--config-file", &folder.join("none.json").to_string_lossy()])
            // Nobody answers there, and says so at once: names that are not the daemon's own are unknown without a wait.
            .args(["--dns", &self.world.here().to_string()])
            .args(["--cgroup-parent", &self.world.control_group()])
            .args([
                "--default-address-pool",
                &format!("base={}/22,size=26", self.world.pool()),
            ])
            .arg(format!("--data-root={}", self.root().display()))
            .arg(format!("--exec-root={}", folder.join("exec").display()))
            .arg(format!("--pidfile={}", folder.join("pid").display()))
            .arg(format!("--host={}", self.address()));
        if self.options.live_restore {
            command.arg("--live-restore");
        }
        if !self.options.bridge {
            command.args(["--bridge", "none"]);
        }
        fs::write(folder.join("none.json"), "{}").map_err(|source| StartError::Io {
            what: "write the configuration of a daemon".into(),
            source,
        })?;
        Ok(command)
    }

    fn podman(&self) -> Result<Command, StartError> {
        let folder = self.folder.path();
        let configuration = format!(
            "[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n[network]\nnetwork_backend = \"netavark\"\nnetwork_config_dir = \"{}\"\ndefault_subnet_pools = [{{ base = \"{}/22\", size = 26 }}]\n",
            folder.join("networks").display(),
            self.world.pool()
        );
        let file = folder.join("containers.conf");
        fs::write(&file, configuration).map_err(|source| StartError::Io {
            what: "write the configuration of a daemon".into(),
            source,
        })?;
        // Podman takes no longer path than 50 characters for its own; nobody else sees this one.
        let exec = folder.join("exec");
        fs::create_dir_all(&exec).map_err(|source| StartError::Io {
            what: "make the folder of a daemon".into(),
            source,
        })?;
        self.within("mount", &["--bind", &exec.to_string_lossy(), RUN_ROOT])?;
        // Its server of names is one for each of these.
        let names = folder.join("names");
        for path in [names.as_path(), Path::new(NAMES)] {
            fs::create_dir_all(path).map_err(|source| StartError::Io {
                what: "make the folder of a server of names".into(),
                source,
            })?;
        }
        self.within("mount", &["--bind", &names.to_string_lossy(), NAMES])?;
        let runtime = folder.join("runtime");
        fs::write(&runtime, RUNTIME)
            .and_then(|()| fs::set_permissions(&runtime, fs::Permissions::from_mode(0o755)))
            .map_err(|source| StartError::Io {
                what: "write the runtime of a daemon".into(),
                source,
            })?;
        let mut command = self.enter()?;
        // A server of tests has none of our environment.
        command
            .arg(program("env", "coreutils", &FOLDERS)?)
            .arg(format!("CONTAINERS_CONF={}", file.display()))
            .arg(program("podman", "podman", &FOLDERS)?)
            .arg("--runtime")
            .arg(runtime)
            .args(["--storage-driver", "overlay"])
            .arg(format!("--root={}", self.root().display()))
            .arg(format!("--runroot={RUN_ROOT}"))
            .arg(format!("--tmpdir={}", folder.join("tmp").display()))
            .args(["system", "service", "--time", "0"])
            .arg(self.address());
        Ok(command)
    }

    /// Whoever comes from the host is seen as from the daemon's own.
    fn masquerade(&self) -> Result<(), StartError> {
        // It lets others through only once a network leads outside.
        self.within("sysctl", &["--write", "net.ipv4.ip_forward=1"])?;
        let here = self.world.here().to_string();
        let rule = ["POSTROUTING", "--source", &here, "--jump", "MASQUERADE"];
        let asked = |order: &str| {
            let words = ["--wait", "--table", "nat", order];
            self.within("iptables", &[&words[..], &rule[..]].concat())
        };
        drop(asked("--delete"));
        asked("--insert").map(drop)
    }

    /// Runs Docker's own client against the daemon.
    ///
    /// # Errors
    /// With what it said, when it failed.
    pub fn docker(&self, arguments: &[&str]) -> Result<String, StartError> {
        let mut command = self.client()?;
        command.args(arguments);
        let said = run(command, None, &format!("docker {}", arguments.join(" ")))?;
        Ok(said.trim().to_owned())
    }

    /// Docker's own client, which still lacks its arguments.
    ///
    /// # Errors
    /// When it is not installed.
    pub fn client(&self) -> Result<Command, StartError> {
        let mut command = Command::new(program("docker", PACKAGE, &FOLDERS)?);
        command
            .arg("--config")
            .arg(self.folder.path().join("client"));
        command.arg("--host").arg(self.address());
        Ok(command)
    }

    /// Makes an image of a folder, with lines as a Dockerfile has them (`CMD`, `ENV`, `EXPOSE`, `HEALTHCHECK`, `USER`,
    /// `WORKDIR`, …). Gives its id.
    ///
    /// # Errors
    /// With what the daemon said.
    pub fn import(&self, name: &str, content: &Path, lines: &[&str]) -> Result<String, StartError> {
        if self.options.engine == Engine::Podman {
            return self.build(name, content, lines);
        }
        let archive = self.folder.path().join("import.tar");
        let mut tar = Command::new(program("tar", "tar", &FOLDERS)?);
        tar.arg("--create")
            .arg("--file")
            .arg(&archive)
            .arg("--directory")
            .arg(content)
            .arg(".");
        run(tar, None, "pack an image")?;
        let archive = archive.to_string_lossy().into_owned();
        let changes: Vec<_> = lines.iter().flat_map(|line| ["--change", line]).collect();
        let said = self.docker(&[&["import"], &changes[..], &[&archive, name]].concat())?;
        Ok(said)
    }

    /// The same for Podman, whose `import` knows no `HEALTHCHECK`.
    fn build(&self, name: &str, content: &Path, lines: &[&str]) -> Result<String, StartError> {
        let file = self.folder.path().join("import.dockerfile");
        let text = format!("FROM scratch\nCOPY . /\n{}\n", lines.join("\n"));
        fs::write(&file, text).map_err(|source| StartError::Io {
            what: "write a Dockerfile".into(),
            source,
        })?;
        let (file, content) = (file.to_string_lossy(), content.to_string_lossy());
        let mut client = self.client()?;
        client.env("DOCKER_BUILDKIT", "0");
        client.args(["build", "--quiet", "--file", &file, "--tag", name, &content]);
        let said = run(client, None, "docker build")?;
        // Podman leaves the kind of digest out.
        let id = said.trim().trim_start_matches("sha256:");
        Ok(format!("sha256:{id}"))
    }

    /// Ends the daemon in an orderly way.
    pub fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            self.signal(Signal::CONT);
            server.end(Signal::TERM);
        }
    }

    /// Kills the daemon as a crash would.
    pub fn kill(&mut self) {
        self.server = None;
    }

    /// Lets the daemon hang.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// `nsenter` becomes the daemon.
    fn signal(&self, signal: Signal) {
        let pid = self
            .server
            .as_ref()
            .and_then(|server| Pid::from_raw(server.pid() as i32));
        if let Some(pid) = pid {
            kill_process(pid, signal).ok();
        }
    }

    /// Whether it is Podman's service.
    pub fn is_podman(&self) -> bool {
        self.options.engine == Engine::Podman
    }

    /// Whether it runs the checks of images: Podman leaves that to systemd.
    pub fn runs_checks(&self) -> bool {
        !self.is_podman() || Path::new("/run/systemd/system").is_dir()
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("docker.sock")
    }

    /// The same, as clients take it.
    pub fn address(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// The process.
    pub fn pid(&self) -> Option<u32> {
        self.server.as_ref().map(Server::pid)
    }

    /// The host, as the daemon and its containers reach it.
    pub fn gateway(&self) -> Ipv4Addr {
        self.world.here()
    }

    /// The daemon's own host, as whoever is outside of it reaches it: where containers of the host's network listen, and
    /// ports that others publish.
    pub fn host(&self) -> Ipv4Addr {
        self.world.there()
    }

    /// Whether an address is one of its networks'.
    pub fn gives(&self, address: std::net::IpAddr) -> bool {
        match address {
            std::net::IpAddr::V4(address) => {
                address.to_bits() >> 10 == self.world.pool().to_bits() >> 10
            }
            std::net::IpAddr::V6(_) => false,
        }
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        self.resume();
        // Nobody but Podman itself knows what it runs.
        if self.options.engine == Engine::Podman
            && let Ok(all) = self.docker(&["ps", "--all", "--quiet"])
        {
            for container in all.lines() {
                drop(self.docker(&["rm", "--force", container]));
            }
        }
        // The daemon first, so that it does not take note of what is ended.
        self.server = None;
        let names = self.folder.path().join("names/aardvark-dns/aardvark.pid");
        let pid = fs::read_to_string(names).ok();
        if let Some(pid) = pid.and_then(|pid| pid.trim().parse().ok()) {
            // It ends by itself with the last container, and its number may be another's.
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            if let Some(pid) = Pid::from_raw(pid).filter(|_| name.starts_with("aardvark")) {
                kill_process(pid, Signal::KILL).ok();
            }
        }
        end_group(&self.world.control_group());
        kill_whoever_names(self.folder.path());
        self.holder.end(Signal::KILL);
        drop(ip(&["link", "del", &self.world.outside()]));
    }
}

/// `containerd` dies with its daemon. The next daemon takes one that nobody has reaped yet for alive, and waits for it.
fn forget_containerd(pid_file: &Path) {
    let Ok(text) = fs::read_to_string(pid_file) else {
        return;
    };
    for _ in 0..100 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", text.trim())).unwrap_or_default();
        let state = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        if state.is_empty() || state.starts_with(['Z', 'X']) {
            drop(fs::remove_file(pid_file));
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

fn ip(arguments: &[&str]) -> Result<String, StartError> {
    let mut command = Command::new(program("ip", "iproute2", &FOLDERS)?);
    command.args(arguments);
    run(command, None, &format!("ip {}", arguments.join(" ")))
}

/// Ends every process of a control group, wherever the kernel keeps it, and removes it.
fn end_group(name: &str) {
    for _ in 0..100 {
        let mut folders = vec![PathBuf::from("/sys/fs/cgroup").join(name)];
        let hierarchies = fs::read_dir("/sys/fs/cgroup")
            .into_iter()
            .flatten()
            .flatten();
        folders.extend(hierarchies.map(|entry| entry.path().join(name)));
        folders.retain(|folder| folder.is_dir());
        if folders.is_empty() {
            return;
        }
        for folder in &folders {
            end_below(folder);
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

fn end_below(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            end_below(&entry.path());
        }
    }
    let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    for pid in text
        .lines()
        .filter_map(|line| line.parse().ok())
        .filter_map(Pid::from_raw)
    {
        // One that has ended meanwhile is what was wanted.
        kill_process(pid, Signal::KILL).ok();
    }
    drop(fs::remove_dir(folder));
}

/// A registry of images (`docker-registry`), in a folder.
pub struct Registry {
    server: Option<Server>,
    folder: Folder,
    address: String,
}

impl Registry {
    /// The login of a registry that asks for one.
    pub const LOGIN: (&'static str, &'static str) = ("testbed", "testbed-secret");
    const HASHED: &'static str = "$2y$05$abcdefghijklmnopqrstuuDq4KtA7TGJh8S75XZDgczy6kBsP.1ii";

    /// Starts an empty registry where a daemon of [`Dockerd`] reaches it, one that lets everybody in or one that asks
    /// for [`Registry::LOGIN`].
    ///
    /// # Errors
    /// When it does not come up, or is not installed.
    pub fn start(dockerd: &Dockerd, asks_login: bool) -> Result<Self, StartError> {
        let login = (Self::LOGIN.0, Self::HASHED);
        Self::start_for(dockerd, asks_login.then_some(login))
    }

    /// The same for a login of one's own: a user, and what `htpasswd -B` makes of the password.
    ///
    /// # Errors
    /// When it does not come up, or is not installed.
    pub fn start_for(dockerd: &Dockerd, login: Option<(&str, &str)>) -> Result<Self, StartError> {
        let folder = Folder::new("registry", None)?;
        let port = crate::free_port()?;
        let mut this = Self {
            server: None,
            address: format!("{}:{port}", dockerd.gateway()),
            folder,
        };
        this.configure(login).map_err(|source| StartError::Io {
            what: "write the configuration of a registry".into(),
            source,
        })?;
        this.boot()?;
        Ok(this)
    }

    fn configure(&self, login: Option<(&str, &str)>) -> std::io::Result<()> {
        let folder = self.folder.path();
        let mut file = File::create(folder.join("config.yml"))?;
        writeln!(
            file,
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\n  delete:\n    enabled: true\nhttp:\n  addr: {}",
            folder.join("data").display(),
            self.address
        )?;
        if let Some((user, hashed)) = login {
            let logins = folder.join("logins");
            fs::write(&logins, format!("{user}:{hashed}\n"))?;
            writeln!(
                file,
                "auth:\n  htpasswd:\n    realm: testbed\n    path: {}",
                logins.display()
            )?;
        }
        Ok(())
    }

    /// Starts it again after [`Registry::kill`].
    ///
    /// # Errors
    /// When it does not come up.
    pub fn boot(&mut self) -> Result<(), StartError> {
        let mut command = Command::new(program("docker-registry", "docker-registry", &FOLDERS)?);
        command
            .arg("serve")
            .arg(self.folder.path().join("config.yml"));
        let mut server = Server::start(command, None, &self.folder.path().join("log"))?;
        self.folder.note_server(server.pid());
        server.wait_ready(|| std::net::TcpStream::connect(&self.address).is_ok())?;
        self.server = Some(server);
        Ok(())
    }

    /// Kills it as a crash would; what it holds stays.
    pub fn kill(&mut self) {
        self.server = None;
    }

    /// `address:port`, the first part of the names of its images.
    pub fn address(&self) -> &str {
        &self.address
    }
}
