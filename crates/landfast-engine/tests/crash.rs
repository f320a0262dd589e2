//! Crash everywhere: for each record (a sample of them unless LANDFAST_CRASH_STRIDE=1) a scenario writes to the real journal, the server dies right after it, before
//! and after acting on it; a new server on the same journal must come to the same end. Instances and proxy live on
//! meanwhile, as they do when a real server is killed.

#![expect(clippy::print_stdout, reason = "the proof prints its figure")]

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use landfast_engine::{
    Controls, DataPlane, DeployOrder, Folders, PlaneError, Platform, PlatformSettings, SystemClock,
    View,
};
use landfast_journal::{
    AppendError, Change, CompactError, Document, Journal, NewRecord, PutError, ReadError, Record,
    Snapshot as Kept, SnapshotError, SqliteJournal, StorageError,
};
use landfast_rollout::{Input, Outcome};
use landfast_routing::snapshot::{BackendState, BackendStatus, ProxyStats, ProxyStatus, Snapshot};
use landfast_secrets::Vault;
use landfast_store::Store;
use landfast_target::{
    ExecOutput, Exit, InstanceRef, InstanceSpec, Observed, StartError, Target, TargetError,
    fake::FakeTarget,
};
use landfast_types::{EnvironmentName, Fence, FenceGuard, Generation, ReleaseId, Scope, Timestamp};
use tokio::{net::TcpListener, time::sleep};

/// No scenario takes longer; this only keeps a mistake from hanging.
const PATIENCE: Duration = Duration::from_secs(30);

/// A life of the server: when it is over, nothing it still does has an effect.
#[derive(Clone, Default)]
struct Life {
    dead: Arc<AtomicBool>,
}

impl Life {
    fn is_over(&self) -> bool {
        self.dead.load(Ordering::SeqCst)
    }

    fn end(&self) {
        self.dead.store(true, Ordering::SeqCst);
    }

    /// A dead server's call never returns.
    async fn check(&self) {
        if self.is_over() {
            std::future::pending::<()>().await;
        }
    }
}

/// The real journal, until the life that writes to it has written so many records.
struct Mortal {
    inner: SqliteJournal,
    left: AtomicU64,
    written: AtomicU64,
    /// No record is taken any more; actions may go on until `life` ends too.
    full: AtomicBool,
    life: Life,
    /// Whether the life ends together with the last record, before anything is done about it.
    at_once: bool,
}

impl Journal for Mortal {
    fn append_with(
        &self,
        stream: &str,
        expected: u64,
        records: &[NewRecord],
        changes: &[Change],
    ) -> Result<u64, AppendError> {
        let path = Path::new("journal").to_owned();
        if self.full.load(Ordering::SeqCst) || self.life.is_over() {
            return Err(AppendError::Storage(StorageError::Busy { path }));
        }
        let last = self.inner.append_with(stream, expected, records, changes)?;
        self.written
            .fetch_add(records.len() as u64, Ordering::SeqCst);
        let left = self
            .left
            .load(Ordering::SeqCst)
            .saturating_sub(records.len() as u64);
        self.left.store(left, Ordering::SeqCst);
        if left == 0 {
            self.full.store(true, Ordering::SeqCst);
            if self.at_once {
                self.life.end();
            }
        }
        Ok(last)
    }
    fn read(&self, stream: &str, after: u64, limit: usize) -> Result<Vec<Record>, ReadError> {
        self.inner.read(stream, after, limit)
    }
    fn read_all(&self, after: u64, limit: usize) -> Result<Vec<Record>, ReadError> {
        self.inner.read_all(after, limit)
    }
    fn last(&self, stream: &str) -> Result<u64, ReadError> {
        self.inner.last(stream)
    }
    fn last_position(&self) -> Result<u64, ReadError> {
        self.inner.last_position()
    }
    fn streams(&self) -> Result<Vec<String>, ReadError> {
        self.inner.streams()
    }
    fn save_snapshot(&self, snapshot: &Kept) -> Result<(), SnapshotError> {
        self.inner.save_snapshot(snapshot)
    }
    fn load_snapshot(&self, stream: &str) -> Result<Option<Kept>, ReadError> {
        self.inner.load_snapshot(stream)
    }
    fn compact(&self, stream: &str, upto: u64) -> Result<u64, CompactError> {
        self.inner.compact(stream, upto)
    }
    fn change(&self, changes: &[Change]) -> Result<u64, PutError> {
        self.inner.change(changes)
    }
    fn get(&self, collection: &str, key: &str) -> Result<Option<Document>, ReadError> {
        self.inner.get(collection, key)
    }
    fn list(
        &self,
        collection: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Document>, ReadError> {
        self.inner.list(collection, after, limit)
    }
    fn next_generation(&self) -> Result<Generation, StorageError> {
        self.inner.next_generation()
    }
}

/// The host's instances as one life of the server reaches them.
struct Hands {
    target: FakeTarget,
    life: Life,
}

#[async_trait]
impl Target for Hands {
    async fn start(&self, order: Fence, spec: &InstanceSpec) -> Result<Observed, StartError> {
        self.life.check().await;
        self.target.start(order, spec).await
    }
    async fn stop(
        &self,
        order: Fence,
        id: &InstanceRef,
        grace: Duration,
    ) -> Result<Exit, TargetError> {
        self.life.check().await;
        self.target.stop(order, id, grace).await
    }
    async fn forget(&self, id: &InstanceRef) -> Result<(), TargetError> {
        self.life.check().await;
        self.target.forget(id).await
    }
    async fn list(&self) -> Result<Vec<Observed>, TargetError> {
        self.target.list().await
    }
    async fn wait(&self, id: &InstanceRef) -> Result<Exit, TargetError> {
        self.target.wait(id).await
    }
    async fn exec(
        &self,
        id: &InstanceRef,
        command: Vec<String>,
        stdin: Vec<u8>,
    ) -> Result<tokio::sync::mpsc::Receiver<ExecOutput>, TargetError> {
        self.target.exec(id, command, stdin).await
    }
}

/// The proxy: takes snapshots in order, drains at once, and outlives every server.
#[derive(Clone, Default)]
struct Proxy {
    state: Arc<Mutex<(FenceGuard, Snapshot)>>,
}

impl Proxy {
    fn status(&self) -> ProxyStatus {
        let (guard, snapshot) = &*self.state.lock().expect("no test holds it while it panics");
        let mut backends = BTreeMap::new();
        for backend in snapshot
            .services
            .values()
            .flat_map(|s| &s.groups)
            .flat_map(|g| &g.backends)
        {
            let draining = backend.state != BackendState::Serving;
            let status = BackendStatus {
                draining,
                requests_in_flight: 0,
                streams_open: 0,
                healthy: true,
                ejected: false,
            };
            backends.insert(backend.id.clone(), status);
        }
        ProxyStatus {
            version: "test".into(),
            pid: 1,
            boot: "one".into(),
            fence: guard.seen(),
            http: Vec::new(),
            https: Vec::new(),
            preview: None,
            backends,
            finishing: false,
            problems: Vec::new(),
            holder_pid: None,
        }
    }

    /// The releases new requests go to.
    fn serving(&self) -> Vec<ReleaseId> {
        let (_, snapshot) = &*self.state.lock().expect("no test holds it while it panics");
        let groups = snapshot
            .services
            .values()
            .flat_map(|service| &service.groups);
        groups
            .filter(|group| group.weight > 0)
            .map(|group| group.release)
            .collect()
    }
}

struct Wire {
    proxy: Proxy,
    life: Life,
}

#[async_trait]
impl DataPlane for Wire {
    async fn put(&self, snapshot: &Snapshot) -> Result<ProxyStatus, PlaneError> {
        self.life.check().await;
        {
            let mut state = self
                .proxy
                .state
                .lock()
                .expect("no test holds it while it panics");
            state
                .0
                .take(snapshot.fence)
                .map_err(|stale| PlaneError::Replaced {
                    refused: stale.refused,
                    seen: stale.seen.to_string(),
                })?;
            state.1 = snapshot.clone();
        }
        Ok(self.proxy.status())
    }
    async fn status(&self) -> Result<ProxyStatus, PlaneError> {
        self.life.check().await;
        Ok(self.proxy.status())
    }
    async fn stats(&self) -> Result<ProxyStats, PlaneError> {
        Ok(ProxyStats {
            boot: "one".into(),
            took_over: false,
            at: Timestamp::EPOCH,
            backends: BTreeMap::new(),
            services: BTreeMap::new(),
        })
    }
    async fn metrics(&self) -> Result<String, PlaneError> {
        Ok(String::new())
    }
}

/// A host that outlives its servers.
struct World {
    folder: tempfile::TempDir,
    target: FakeTarget,
    proxy: Proxy,
    _accepting: tokio::task::JoinSet<()>,
}

impl World {
    async fn new() -> Self {
        let target = FakeTarget::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address: SocketAddr = listener.local_addr().expect("bound");
        target.addresses(move |_| address);
        let mut accepting = tokio::task::JoinSet::new();
        accepting.spawn(async move {
            // A readiness probe only connects.
            while let Ok((stream, _)) = listener.accept().await {
                drop(stream);
            }
        });
        let folder = tempfile::tempdir().expect("a folder");
        Self {
            folder,
            target,
            proxy: Proxy::default(),
            _accepting: accepting,
        }
    }

    /// Starts a server that may write so many records.
    async fn server(&self, records: u64, at_once: bool) -> (Arc<Platform>, Arc<Mortal>) {
        let life = Life::default();
        let inner = SqliteJournal::open(self.folder.path().join("journal.sqlite")).expect("opens");
        let generation = inner.next_generation().expect("writes");
        let journal = Arc::new(Mortal {
            inner,
            left: AtomicU64::new(records),
            written: AtomicU64::new(0),
            full: AtomicBool::new(false),
            life: life.clone(),
            at_once,
        });
        let vault = Vault::open_or_create_key(&self.folder.path().join("key")).expect("a key");
        let platform = Platform::start(PlatformSettings {
            journal: Arc::clone(&journal) as _,
            target: Arc::new(Hands {
                target: self.target.clone(),
                life: life.clone(),
            }),
            plane: Arc::new(Wire {
                proxy: self.proxy.clone(),
                life,
            }),
            store: Arc::new(Store::open(self.folder.path().join("store")).expect("a store")),
            clock: Arc::new(SystemClock::start(Timestamp::EPOCH)),
            vault,
            generation,
            folders: Folders {
                state: self.folder.path().to_owned(),
                run: self.folder.path().to_owned(),
            },
            controls: Controls::default(),
        });
        (platform.await.expect("starts"), journal)
    }

    fn order(&self, release: u64, scenario: &Scenario) -> DeployOrder {
        let program = self.folder.path().join("program");
        std::fs::write(&program, format!("release {release}")).expect("written");
        let store = Store::open(self.folder.path().join("store")).expect("a store");
        let digest = store.add_local(&program).expect("stored");
        let word = if release == 2 {
            scenario.second
        } else {
            "serve"
        };
        let text = format!(
            r#"
app = "shop"
[services.api]
artifact = "program"
command = ["/bin/true", "{word}"]
port = 80
replicas = 2
exclusive = false
health = {{ ready = "tcp", interval = "100ms" }}
[services.work]
artifact = "program"
command = ["/bin/true", "serve"]
after = ["api"]
[routes.public]
host = "shop.example"
service = "api"
[deploy]
strategy = "{}"
steps = [50, 100]
hold = "100ms"
standby = "100ms"
min_ready = "50ms"
healthy_deadline = "5s"
progress_deadline = "10s"
gates = ["preflight"]
"#,
            scenario.strategy
        );
        let production = EnvironmentName::new("production").expect("a name");
        let parsed = landfast_spec::parse("landfast.toml", &text, &production);
        let spec = parsed
            .spec
            .unwrap_or_else(|| panic!("{:?}", parsed.diagnostics));
        DeployOrder {
            spec,
            artifacts: [("program".to_owned(), digest)].into(),
            strategy: None,
            supersede: false,
            by: "test".into(),
            commit: None,
            note: None,
        }
    }
}

/// A way a second release goes: by a strategy, to an end.
struct Scenario {
    name: &'static str,
    strategy: &'static str,
    /// What the second release's instances do.
    second: &'static str,
    /// What a person does once it moves.
    then: Option<fn() -> Input>,
    serving: u64,
}

fn rollback() -> Input {
    Input::Rollback {
        to: None,
        by: "test".into(),
    }
}

const SCENARIOS: [Scenario; 6] = [
    Scenario {
        name: "rolling",
        strategy: "rolling",
        second: "serve",
        then: None,
        serving: 2,
    },
    Scenario {
        name: "blue-green",
        strategy: "blue-green",
        second: "serve",
        then: None,
        serving: 2,
    },
    Scenario {
        name: "canary",
        strategy: "canary",
        second: "serve",
        then: None,
        serving: 2,
    },
    Scenario {
        name: "recreate",
        strategy: "recreate",
        second: "serve",
        then: None,
        serving: 2,
    },
    Scenario {
        name: "a release that exits at start",
        strategy: "rolling",
        second: "exit=1",
        then: None,
        serving: 1,
    },
    Scenario {
        name: "a rollback after the seal",
        strategy: "rolling",
        second: "serve",
        then: Some(rollback),
        serving: 1,
    },
];

fn scope() -> Scope {
    Scope {
        app: "shop".parse().expect("a name"),
        environment: "production".parse().expect("a name"),
    }
}

/// Waits until something holds of the environment; false when the journal takes no more records.
async fn reach(platform: &Platform, journal: &Mortal, holds: impl Fn(&View) -> bool) -> bool {
    let waited = tokio::time::timeout(PATIENCE, async {
        loop {
            if journal.full.load(Ordering::SeqCst) {
                return false;
            }
            if platform
                .environment(&scope())
                .is_some_and(|view| holds(&view))
            {
                return true;
            }
            sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.unwrap_or_else(|_| {
        let view = platform.environment(&scope());
        let phase = view
            .and_then(|view| view.state.rollout.clone())
            .map(|r| r.phase_words());
        panic!("it does not come to its end: {phase:?}")
    })
}

/// Goes on with the scenario from wherever the journal is. Returns false when this life ended on the way.
async fn go_on(
    world: &World,
    scenario: &Scenario,
    platform: &Arc<Platform>,
    journal: &Mortal,
) -> bool {
    let still = |view: &View| view.state.rollout.is_none();
    for release in [1, 2] {
        let known = |view: &View| view.state.releases.contains_key(&ReleaseId(release));
        let begun = platform
            .environment(&scope())
            .is_some_and(|view| known(&view));
        if !begun {
            let order = world.order(release, scenario);
            if platform.deploy(order).await.is_err() {
                return false;
            }
        }
        if !reach(platform, journal, still).await {
            return false;
        }
    }
    let Some(then) = scenario.then else {
        return true;
    };
    let view = platform.environment(&scope()).expect("it was deployed");
    if view.state.next_rollout().0 < 4 && platform.command(&scope(), then()).await.is_err() {
        return false;
    }
    reach(platform, journal, still).await
}

/// The end of a scenario, as far as it must be the same whatever happened on the way.
fn end_of(world: &World, view: &View) -> (Option<ReleaseId>, Vec<ReleaseId>, Vec<String>) {
    let mut running: Vec<String> = view
        .state
        .instances
        .values()
        .filter(|instance| instance.is_serving())
        .map(|instance| format!("{} of release {}", instance.service, instance.release))
        .collect();
    running.sort();
    (view.state.serving, world.proxy.serving(), running)
}

async fn settle(platform: &Arc<Platform>, journal: &Mortal) -> Arc<View> {
    let whole = |view: &View| {
        let serving = view
            .state
            .instances
            .values()
            .filter(|i| i.is_serving())
            .count();
        serving == 3 && view.state.instances.len() == 3 && view.state.rollout.is_none()
    };
    assert!(
        reach(platform, journal, whole).await,
        "this life has no end"
    );
    platform.environment(&scope()).expect("it was deployed")
}

async fn undisturbed(
    scenario: &Scenario,
) -> (u64, (Option<ReleaseId>, Vec<ReleaseId>, Vec<String>)) {
    let world = World::new().await;
    let (platform, journal) = world.server(u64::MAX, false).await;
    assert!(go_on(&world, scenario, &platform, &journal).await);
    let view = settle(&platform, &journal).await;
    for record in &view.state.history {
        if scenario.second == "serve" {
            assert_eq!(record.outcome, Outcome::Sealed, "{}", scenario.name);
        }
    }
    let end = end_of(&world, &view);
    assert_eq!(
        end.0,
        Some(ReleaseId(scenario.serving)),
        "{}",
        scenario.name
    );
    (journal.written.load(Ordering::SeqCst), end)
}

async fn dies_everywhere(scenario: &Scenario) {
    let (records, end) = undisturbed(scenario).await;
    let mut lives = 0;
    // Every record in `make proof-crash`; in everyday tests a sample, shifted so that scenarios differ in theirs.
    let stride = std::env::var("LANDFAST_CRASH_STRIDE")
        .ok()
        .and_then(|text| text.parse().ok());
    let stride = stride.unwrap_or(7_usize).max(1);
    let first = 1 + scenario.name.len() as u64 % stride as u64;
    for death in (first..=records).step_by(stride) {
        for at_once in [true, false] {
            let world = World::new().await;
            let (platform, journal) = world.server(death, at_once).await;
            let survived = go_on(&world, scenario, &platform, &journal).await;
            if !at_once && !survived {
                // What is owed for the last record may still be done before the server is gone.
                sleep(Duration::from_millis(20)).await;
            }
            journal.life.end();
            drop(platform);
            let (platform, journal) = world.server(u64::MAX, false).await;
            assert!(go_on(&world, scenario, &platform, &journal).await);
            let view = settle(&platform, &journal).await;
            assert_eq!(
                end_of(&world, &view),
                end,
                "{}: died at record {death}",
                scenario.name
            );
            lives += 1;
        }
    }
    println!(
        "{}: {lives} deaths over {records} records (every {stride}), the same end",
        scenario.name
    );
}

macro_rules! scenarios {
    ($($name:ident $index:literal)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            dies_everywhere(&SCENARIOS[$index]).await;
        }
    )*};
}

scenarios! {
    rolling_ends_the_same_wherever_the_server_dies 0
    blue_green_ends_the_same_wherever_the_server_dies 1
    canary_ends_the_same_wherever_the_server_dies 2
    recreate_ends_the_same_wherever_the_server_dies 3
    a_failed_release_is_taken_back_wherever_the_server_dies 4
    a_rollback_ends_the_same_wherever_the_server_dies 5
}
