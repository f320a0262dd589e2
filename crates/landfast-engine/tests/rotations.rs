//! Crash everywhere, for rotations: the server dies at each record of a rotation and at each password it writes down, before or after
//! it acts on it. The databases are real ones and outlive it, as instances do. The next server always comes to the same end: one
//! password for each login, which opens, and none of the old ones does.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]
#![expect(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "the proof prints its figure; servers and clients of databases are started here, by argv"
)]

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    os::unix::{
        fs::{PermissionsExt as _, chown},
        process::CommandExt as _,
    },
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use async_trait::async_trait;
use landfast_engine::{Platform, stores};
use landfast_journal::Journal as _;
use landfast_secrets::{Context, Sealed, Vault};
use landfast_target::{
    ExecOutput, Exit, InstanceRef, InstanceSpec, Observed, ObservedState, ProgramEnd, ProgramRun,
    ProgramSpec, StartError, Target, TargetError, fake::FakeTarget,
};
use landfast_types::{Fence, Secret, StoreName, Timestamp};
use tokio::runtime::{Handle, Runtime};

use crate::common::{Counts, Mortal, World, scope};

const COUNTS: Counts = Counts {
    kind: stores::ROTATION_KIND,
    collection: stores::CREDENTIALS,
};
/// A busy machine takes long to start three databases.
const PATIENCE: Duration = Duration::from_secs(120);
/// Servers of databases refuse to run as root.
const NOBODY: u32 = 65_534;

fn manifest(engine: &str, memory: &str) -> String {
    format!(
        r#"
app = "shop"
[services.api]
artifact = "program"
command = ["/bin/true", "serve"]
port = 80
replicas = 2
uses = ["main"]
health = {{ ready = "tcp", interval = "100ms" }}
[deploy]
strategy = "rolling"
standby = "100ms"
min_ready = "50ms"
gates = []
[stores.main]
engine = "{engine}"
memory = "{memory}"
"#
    )
}

/// A host with simulated instances and real servers of databases.
struct Host {
    runtime: Handle,
    fake: FakeTarget,
    servers: Mutex<BTreeMap<InstanceRef, Child>>,
    /// What each instance was given.
    given: Mutex<BTreeMap<InstanceRef, BTreeMap<String, Secret<String>>>>,
}

impl Drop for Host {
    fn drop(&mut self) {
        for server in self.servers.get_mut().unwrap().values_mut() {
            server.kill().unwrap();
            server.wait().unwrap();
        }
    }
}

impl Host {
    fn command(
        program: &Path,
        arguments: &[String],
        env: &BTreeMap<String, Secret<String>>,
    ) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).env_clear();
        command.envs(env.iter().map(|(name, value)| (name, value.reveal())));
        if rustix::process::geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    }

    fn own(folder: &Path) {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        chown(folder, Some(NOBODY), Some(NOBODY)).unwrap();
        if folder.is_dir() {
            for entry in fs::read_dir(folder).unwrap() {
                Self::own(&entry.unwrap().path());
            }
        }
    }

    fn server(&self, id: &InstanceRef) -> Option<Observed> {
        let mut servers = self.servers.lock().unwrap();
        let server = servers.get_mut(id)?;
        let at = Timestamp::EPOCH;
        let state = match server.try_wait().unwrap() {
            None => ObservedState::Running,
            Some(_) => ObservedState::Exited {
                exit: Exit::Unknown,
                at,
            },
        };
        Some(Observed {
            id: id.clone(),
            state,
            address: None,
            pid: None,
            started_at: at,
            is_job: false,
            protections: Vec::new(),
            health: None,
        })
    }
}

#[async_trait]
impl Target for Host {
    /// A simulated instance lives as long as the host, not as long as who started it.
    async fn start(&self, order: Fence, spec: &InstanceSpec) -> Result<Observed, StartError> {
        let (fake, owned) = (self.fake.clone(), spec.clone());
        let started = self
            .runtime
            .spawn(async move { fake.start(order, &owned).await });
        let started = started.await.unwrap();
        let mut given = self.given.lock().unwrap();
        given
            .entry(spec.id.clone())
            .or_insert_with(|| spec.env.clone());
        started
    }
    async fn start_program(&self, _: Fence, spec: &ProgramSpec) -> Result<Observed, StartError> {
        if let Some(known) = self.server(&spec.id) {
            return Ok(known);
        }
        fs::create_dir_all(&spec.log_folder).unwrap();
        let log = File::create(spec.log_folder.join("log")).unwrap();
        let child = Self::command(&spec.program, &spec.arguments, &spec.env)
            .current_dir(&spec.folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.servers.lock().unwrap().insert(spec.id.clone(), child);
        Ok(self.server(&spec.id).unwrap())
    }
    async fn own_folder(&self, _: &str, folder: &Path) -> Result<(), StartError> {
        fs::create_dir_all(folder).unwrap();
        Self::own(folder);
        fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).unwrap();
        Ok(())
    }
    async fn run_program(&self, run: &ProgramRun) -> Result<ProgramEnd, StartError> {
        let mut input = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut input, run.stdin.reveal()).unwrap();
        Self::own(input.path());
        let mut command = Self::command(&run.program, &run.arguments, &run.env);
        command
            .current_dir(&run.folder)
            .stdin(input.reopen().unwrap());
        let output = tokio::task::spawn_blocking(move || command.output().unwrap());
        let output = output.await.unwrap();
        let said = [output.stdout, output.stderr].concat();
        Ok(ProgramEnd {
            exit: output
                .status
                .code()
                .map_or(Exit::Unknown, |code| Exit::Code { code }),
            output: String::from_utf8_lossy(&said).into_owned(),
        })
    }
    async fn stop(
        &self,
        order: Fence,
        id: &InstanceRef,
        grace: Duration,
    ) -> Result<Exit, TargetError> {
        assert!(self.server(id).is_none(), "nobody ends a server here");
        self.fake.stop(order, id, grace).await
    }
    async fn forget(&self, id: &InstanceRef) -> Result<(), TargetError> {
        self.fake.forget(id).await
    }
    async fn list(&self) -> Result<Vec<Observed>, TargetError> {
        self.fake.list().await
    }
    async fn observe(&self, id: &InstanceRef) -> Result<Option<Observed>, TargetError> {
        match self.server(id) {
            Some(known) => Ok(Some(known)),
            None => self.fake.observe(id).await,
        }
    }
    async fn wait(&self, id: &InstanceRef) -> Result<Exit, TargetError> {
        if self.server(id).is_none() {
            return self.fake.wait(id).await;
        }
        loop {
            if let Some(ObservedState::Exited { exit, .. }) = self.server(id).map(|it| it.state) {
                return Ok(exit);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    async fn exec(
        &self,
        id: &InstanceRef,
        command: Vec<String>,
        stdin: Vec<u8>,
    ) -> Result<tokio::sync::mpsc::Receiver<ExecOutput>, TargetError> {
        self.fake.exec(id, command, stdin).await
    }
}

/// A life of the server, which ends with all it was doing.
struct Server {
    runtime: Runtime,
    platform: Arc<Platform>,
    journal: Arc<Mortal>,
}

impl Server {
    fn start(world: &World, writes: u64, at_once: bool) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = { runtime }.worker_threads(2).enable_all().build().unwrap();
        let started = world.server_that_counts(writes, at_once, Some(COUNTS));
        let (platform, journal) = runtime.block_on(started);
        Self {
            runtime,
            platform,
            journal,
        }
    }

    /// Whoever wrote last has no answer yet, and gets none.
    fn die(self) {
        self.journal.life.end();
        self.runtime.shutdown_timeout(Duration::from_secs(10));
    }

    #[track_caller]
    fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let mut waited = Duration::ZERO;
        while !holds() {
            assert!(waited < PATIENCE, "{what}: {:?}", self.rotation());
            let step = Duration::from_millis(10);
            std::thread::sleep(step);
            waited += step;
        }
    }

    fn rotation(&self) -> Option<stores::RotationView> {
        let stores = &self.platform.shared().stores;
        Some(stores.rotation(&scope(), &main())?.as_ref().clone())
    }

    fn has_begun(&self, after: u64) -> bool {
        self.rotation().is_some_and(|view| view.sequence > after)
    }

    fn is_settled(&self) -> bool {
        self.rotation()
            .is_some_and(|view| view.rotation.is_settled())
    }

    fn rests(&self) -> bool {
        let view = self.platform.environment(&scope());
        view.is_some_and(|view| {
            let state = &view.state;
            let serving = state.instances.values().filter(|it| it.is_serving());
            state.rollout.is_none() && state.instances.len() == 2 && serving.count() == 2
        })
    }

    fn is_ready(&self) -> bool {
        let stores = self.platform.shared().stores.of(&scope());
        stores.iter().any(|view| view.store.word() == "ready")
    }
}

fn main() -> StoreName {
    "main".parse().unwrap()
}

/// Who opens the store with what: instances, the operator, Landfast itself.
fn addresses(world: &World, host: &Host, server: &Server, engine: &str) -> BTreeSet<String> {
    let shared = server.platform.shared();
    let view = server.platform.environment(&scope()).unwrap();
    let given = host.given.lock().unwrap();
    let instances = view.state.instances.keys().map(|instance| {
        let id = InstanceRef {
            scope: scope(),
            instance: instance.clone(),
        };
        given[&id]["MAIN_URL"].reveal().clone()
    });
    let (scope, name) = (scope(), main());
    let operator = stores::operator_url(shared, &scope, &name);
    let operator = server.runtime.block_on(operator).unwrap();
    let operator = operator.reveal().clone();
    let own = server
        .journal
        .inner
        .get(stores::CREDENTIALS, "shop/production/main/landfast");
    let own: serde_json::Value = serde_json::from_slice(&own.unwrap().unwrap().body).unwrap();
    let sealed: Sealed = serde_json::from_value(own["sealed"].clone()).unwrap();
    let vault = Vault::open_or_create_key(&world.folder.path().join("key")).unwrap();
    let context = Context {
        scope: &scope,
        name: "store/main/landfast",
        version: 1,
    };
    let password = vault.unseal(&context, &sealed).unwrap();
    let port = shared.stores.of(&scope)[0].store.port;
    let own = format!(
        "{engine}://landfast:{}@127.0.0.1:{port}/shop",
        password.reveal()
    );
    instances.chain([operator, own]).collect()
}

/// Whether an address opens its store, by the engine's own client; no password is among its arguments.
fn opens(url: &str) -> bool {
    let (engine, rest) = url.split_once("://").unwrap();
    let (who, place) = rest.split_once('@').unwrap();
    let (login, password) = who.split_once(':').unwrap();
    let port = place.split(['/', ':']).nth(1).unwrap();
    let words: &[&str] = match engine {
        "postgres" => &[
            "psql",
            "-h127.0.0.1",
            "-p",
            port,
            "-U",
            login,
            "-dshop",
            "-Atc",
            "SELECT 1",
        ],
        "mysql" | "mariadb" => &[
            "mariadb",
            "--no-defaults",
            "-h127.0.0.1",
            "-P",
            port,
            "-u",
            login,
            "-Ne",
            "SELECT 1",
            "shop",
        ],
        _ => &[
            "redis-cli",
            "-e",
            "-h",
            "127.0.0.1",
            "-p",
            port,
            "--user",
            login,
            "GET",
            "k",
        ],
    };
    let mut command = Command::new(words[0]);
    let passwords = ["PGPASSWORD", "MYSQL_PWD", "REDISCLI_AUTH"];
    command
        .args(&words[1..])
        .envs(passwords.map(|name| (name, password)));
    let output = command.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    output.status.success() && !said.contains("WRONGPASS") && !said.contains("NOAUTH")
}

fn logins(server: &Server) -> BTreeSet<String> {
    let after = "shop/production/main/";
    let listed = server
        .journal
        .inner
        .list(stores::CREDENTIALS, Some(after), 100)
        .unwrap();
    let names = listed.iter().filter_map(|one| one.key.strip_prefix(after));
    names.map(str::to_owned).collect()
}

/// Whoever asks may get no answer.
fn begin(server: &Server) {
    let platform = Arc::clone(&server.platform);
    server.runtime.spawn(async move {
        let (scope, name) = (scope(), main());
        let begun = platform.rotate_store(&scope, &name, "test".into()).await;
        begun.map(drop)
    });
}

fn dies_everywhere(engine: &str, memory: &str) {
    let host_runtime = Runtime::new().unwrap();
    let mut world = host_runtime.block_on(World::new());
    fs::set_permissions(world.folder.path(), fs::Permissions::from_mode(0o711)).unwrap();
    let host = Arc::new(Host {
        runtime: host_runtime.handle().clone(),
        fake: world.target.clone(),
        servers: Mutex::default(),
        given: Mutex::default(),
    });
    world.hands = Arc::clone(&host) as _;
    let server = Server::start(&world, u64::MAX, false);
    let order = world.order(1, &manifest(engine, memory));
    server
        .runtime
        .block_on(server.platform.deploy(order))
        .unwrap();
    server.until("the first release serves", || {
        server.rests() && server.is_ready()
    });
    // What is written on the way of a rotation that nobody disturbs.
    let mut valid = addresses(&world, &host, &server, engine);
    let mut dead = BTreeSet::new();
    let before = server.journal.written.load(Ordering::SeqCst);
    begin(&server);
    server.until("one password is left", || {
        server.has_begun(0) && server.is_settled() && server.rests()
    });
    let writes = server.journal.written.load(Ordering::SeqCst) - before;
    let check = |server: &Server,
                 valid: &mut BTreeSet<String>,
                 dead: &mut BTreeSet<String>,
                 when: &str| {
        let now = addresses(&world, &host, server, engine);
        assert!(now.is_disjoint(valid), "{when}: an old one is given still");
        dead.append(valid);
        for address in &now {
            assert!(opens(address), "{when}: {address} does not open");
        }
        for address in &*dead {
            assert!(!opens(address), "{when}: {address} opens still");
        }
        let turn = server.rotation().unwrap().rotation.given();
        let wanted = match turn {
            landfast_secrets::rotation::Turn::First => ["landfast", "operator", "release_1"],
            landfast_secrets::rotation::Turn::Second => ["landfast", "operator_b", "release_1_b"],
        };
        assert_eq!(logins(server), wanted.map(str::to_owned).into(), "{when}");
        *valid = now;
    };
    check(&server, &mut valid, &mut dead, "undisturbed");
    server.die();
    assert!(writes > 12, "{writes}");

    let mut deaths = 0;
    let stride = std::env::var("LANDFAST_CRASH_STRIDE").ok();
    let everywhere = stride.and_then(|text| text.parse().ok()) == Some(1_u64);
    for death in 1..=writes {
        // In everyday tests one of the two, by turns.
        for at_once in [true, false] {
            if !everywhere && at_once != (death % 2 == 0) {
                continue;
            }
            let when = format!("{engine}, died at write {death} of {writes} (at once: {at_once})");
            let server = Server::start(&world, death, at_once);
            server.until("it is read back", || server.rests() && server.is_ready());
            let known = server.rotation().unwrap().sequence;
            begin(&server);
            server.until(&when, || {
                let ends = || server.is_settled() && server.rests();
                server.journal.full.load(Ordering::SeqCst) || server.has_begun(known) && ends()
            });
            if !at_once {
                // What is owed for the last record may still be done before the server is gone.
                std::thread::sleep(Duration::from_millis(100));
            }
            server.die();
            let server = Server::start(&world, u64::MAX, false);
            server.until(&when, || {
                server.is_settled() && server.rests() && server.is_ready()
            });
            check(&server, &mut valid, &mut dead, &when);
            server.die();
            deaths += 1;
        }
    }
    println!("{engine}: {deaths} deaths at {writes} writes of a rotation, the same end");
    drop(world);
}

#[test]
fn a_rotation_on_postgres_ends_the_same_wherever_the_server_dies() {
    dies_everywhere("postgres", "128MiB");
}

#[test]
fn a_rotation_on_mariadb_ends_the_same_wherever_the_server_dies() {
    dies_everywhere("mariadb", "256MiB");
}

#[test]
fn a_rotation_on_redis_ends_the_same_wherever_the_server_dies() {
    dies_everywhere("redis", "64MiB");
}
