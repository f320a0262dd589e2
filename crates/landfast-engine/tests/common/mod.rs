//! A host that outlives its servers: the real engine and journal, a simulated target and proxy.

#![allow(dead_code, reason = "each test uses its part of the world")]

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
    Clock, Controls, DataPlane, DeployOrder, Folders, PlaneError, Platform, PlatformSettings,
    SystemClock, View,
};
use landfast_journal::{
    AppendError, Change, CompactError, Document, Journal, NewRecord, PutError, ReadError, Record,
    Snapshot as Kept, SnapshotError, SqliteJournal, StorageError,
};
use landfast_routing::snapshot::{BackendState, BackendStatus, ProxyStats, ProxyStatus, Snapshot};
use landfast_secrets::Vault;
use landfast_store::Store;
use landfast_target::{
    ExecOutput, Exit, Images, InstanceRef, InstanceSpec, Observed, Outage, ProgramEnd, ProgramRun,
    ProgramSpec, StartError, Target, TargetError,
    fake::{Call, FakeTarget},
};
use landfast_types::{EnvironmentName, Fence, FenceGuard, Generation, ReleaseId, Scope, Timestamp};
use tokio::{net::TcpListener, time::sleep};

/// No scenario takes longer; this only keeps a mistake from hanging.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A life of the server: when it is over, nothing it still does has an effect.
#[derive(Clone, Default)]
pub(crate) struct Life {
    dead: Arc<AtomicBool>,
}

impl Life {
    fn is_over(&self) -> bool {
        self.dead.load(Ordering::SeqCst)
    }

    pub(crate) fn end(&self) {
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
pub(crate) struct Mortal {
    pub(crate) inner: SqliteJournal,
    left: AtomicU64,
    pub(crate) written: AtomicU64,
    /// No record is taken any more; actions may go on until `life` ends too.
    pub(crate) full: AtomicBool,
    /// No document is taken any more.
    pub(crate) broken: AtomicBool,
    pub(crate) life: Life,
    /// Whether the life ends together with the last record, before anything is done about it.
    at_once: bool,
    /// Which writes count, where not all records do.
    counts: Option<Counts>,
}

/// What of the journal a scenario dies at: records of a kind, and changes of documents in a collection. Whoever writes the last
/// of them gets no answer before the life is over.
#[derive(Clone, Copy)]
pub(crate) struct Counts {
    pub(crate) kind: &'static str,
    pub(crate) collection: &'static str,
}

impl Mortal {
    fn count(&self, writes: u64) {
        self.written.fetch_add(writes, Ordering::SeqCst);
        let left = self.left.load(Ordering::SeqCst).saturating_sub(writes);
        self.left.store(left, Ordering::SeqCst);
        if left == 0 {
            self.full.store(true, Ordering::SeqCst);
            if self.at_once && self.counts.is_none() {
                self.life.end();
            }
        }
    }

    /// No answer comes to whoever wrote last.
    fn answered(&self) -> Result<(), StorageError> {
        if !self.full.load(Ordering::SeqCst) || !self.at_once || self.counts.is_none() {
            return Ok(());
        }
        while !self.life.is_over() {
            std::thread::sleep(Duration::from_millis(1));
        }
        Err(StorageError::Busy {
            path: Path::new("journal").to_owned(),
        })
    }
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
        let counted = match self.counts {
            None => records.len(),
            Some(counts) => records.iter().filter(|it| it.kind == counts.kind).count(),
        };
        if counted > 0 {
            self.count(counted as u64);
            self.answered()?;
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
        if self.broken.load(Ordering::SeqCst) {
            let path = Path::new("journal").to_owned();
            return Err(PutError::Storage(StorageError::Busy { path }));
        }
        let Some(counts) = self.counts else {
            return self.inner.change(changes);
        };
        if self.full.load(Ordering::SeqCst) || self.life.is_over() {
            let path = Path::new("journal").to_owned();
            return Err(PutError::Storage(StorageError::Busy { path }));
        }
        let revision = self.inner.change(changes)?;
        let is_counted = changes.iter().any(|change| match change {
            Change::Put { collection, .. } | Change::Delete { collection, .. } => {
                collection == counts.collection
            }
        });
        if is_counted {
            self.count(1);
            self.answered()?;
        }
        Ok(revision)
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
    target: Arc<dyn Target>,
    life: Life,
}

#[async_trait]
impl Target for Hands {
    async fn start(&self, order: Fence, spec: &InstanceSpec) -> Result<Observed, StartError> {
        self.life.check().await;
        self.target.start(order, spec).await
    }
    async fn start_program(
        &self,
        order: Fence,
        spec: &ProgramSpec,
    ) -> Result<Observed, StartError> {
        self.life.check().await;
        self.target.start_program(order, spec).await
    }
    async fn own_folder(&self, owner: &str, folder: &Path) -> Result<(), StartError> {
        self.target.own_folder(owner, folder).await
    }
    async fn run_program(&self, run: &ProgramRun) -> Result<ProgramEnd, StartError> {
        self.target.run_program(run).await
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
    async fn observe(&self, id: &InstanceRef) -> Result<Option<Observed>, TargetError> {
        self.target.observe(id).await
    }
    async fn wait(&self, id: &InstanceRef) -> Result<Exit, TargetError> {
        self.target.wait(id).await
    }
    fn images(&self) -> Option<Arc<dyn Images>> {
        self.target.images()
    }
    fn outages(&self) -> Vec<Outage> {
        self.target.outages()
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
pub(crate) struct Proxy {
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
            elders: Vec::new(),
            problems: Vec::new(),
            holder_pid: None,
        }
    }

    /// What it serves by.
    pub(crate) fn table(&self) -> Snapshot {
        let state = self.state.lock().expect("no test holds it while it panics");
        state.1.clone()
    }

    /// The releases new requests go to.
    pub(crate) fn serving(&self) -> Vec<ReleaseId> {
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

/// The host's clock, whose face a test may set.
struct HostClock {
    inner: SystemClock,
    wall_ahead: Arc<AtomicU64>,
}

impl Clock for HostClock {
    fn now(&self) -> Timestamp {
        self.inner.now()
    }
    fn wall(&self) -> Timestamp {
        self.inner.wall() + Duration::from_millis(self.wall_ahead.load(Ordering::SeqCst))
    }
}

/// A host that outlives its servers.
pub(crate) struct World {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) target: FakeTarget,
    /// What servers reach the host by; the fake, unless a test has something else.
    pub(crate) hands: Arc<dyn Target>,
    pub(crate) proxy: Proxy,
    /// By how many milliseconds the wall clock is ahead of the real one.
    pub(crate) wall_ahead: Arc<AtomicU64>,
    /// Where every instance listens.
    pub(crate) address: SocketAddr,
    _accepting: tokio::task::JoinSet<()>,
}

impl World {
    pub(crate) async fn new() -> Self {
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
            hands: Arc::new(target.clone()),
            target,
            proxy: Proxy::default(),
            wall_ahead: Arc::default(),
            address,
            _accepting: accepting,
        }
    }

    /// Starts a server that may write so many records.
    pub(crate) async fn server(&self, records: u64, at_once: bool) -> (Arc<Platform>, Arc<Mortal>) {
        self.server_that_counts(records, at_once, None).await
    }

    /// Starts a server that may make so many of these writes.
    pub(crate) async fn server_that_counts(
        &self,
        writes: u64,
        at_once: bool,
        counts: Option<Counts>,
    ) -> (Arc<Platform>, Arc<Mortal>) {
        let life = Life::default();
        let inner = SqliteJournal::open(self.folder.path().join("journal.sqlite")).expect("opens");
        let generation = inner.next_generation().expect("writes");
        let journal = Arc::new(Mortal {
            inner,
            left: AtomicU64::new(writes),
            written: AtomicU64::new(0),
            full: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            life: life.clone(),
            at_once,
            counts,
        });
        let vault = Vault::open_or_create_key(&self.folder.path().join("key")).expect("a key");
        let platform = Platform::start(PlatformSettings {
            executable: std::path::PathBuf::from("/proc/self/exe"),
            journal: Arc::clone(&journal) as _,
            target: Arc::new(Hands {
                target: Arc::clone(&self.hands),
                life: life.clone(),
            }),
            plane: Arc::new(Wire {
                proxy: self.proxy.clone(),
                life,
            }),
            store: Arc::new(Store::open(self.folder.path().join("store")).expect("a store")),
            clock: Arc::new(HostClock {
                inner: SystemClock::start(Timestamp::EPOCH),
                wall_ahead: Arc::clone(&self.wall_ahead),
            }),
            vault,
            generation,
            folders: Folders {
                state: self.folder.path().to_owned(),
                run: self.folder.path().to_owned(),
            },
            controls: Controls::default(),
            obtained: Default::default(),
        });
        (platform.await.expect("starts"), journal)
    }

    /// What runs on the host, by the target, and what should, by the environment, once both agree or much too late.
    pub(crate) async fn running(&self, platform: &Platform) -> (Vec<String>, Vec<String>) {
        let mut tries = 0;
        loop {
            let listed = self.target.list().await.expect("the fake always lists");
            let ids = listed.iter().map(|each| each.id.instance.to_string());
            let real: Vec<String> = ids.collect();
            let view = platform.environment(&scope()).expect("it was deployed");
            let wanted = view.state.instances.keys().map(ToString::to_string);
            let wanted: Vec<String> = wanted.collect();
            tries += 1;
            if real == wanted || tries == 100 {
                return (real, wanted);
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// How often something whose id begins like this was started.
    pub(crate) fn starts(&self, prefix: &str) -> usize {
        let calls = self.target.calls().into_iter();
        let starts = calls.filter(
            |call| matches!(call, Call::Start(id) if id.instance.as_str().starts_with(prefix)),
        );
        starts.count()
    }

    /// A deploy of this manifest, with a program of its own for each number.
    pub(crate) fn order(&self, number: u64, manifest: &str) -> DeployOrder {
        let program = self.folder.path().join("program");
        std::fs::write(&program, format!("release {number}")).expect("written");
        let store = Store::open(self.folder.path().join("store")).expect("a store");
        let digest = store.add_local(&program).expect("stored");
        let production = EnvironmentName::new("production").expect("a name");
        let parsed = landfast_spec::parse("landfast.toml", manifest, &production);
        let spec = parsed
            .spec
            .unwrap_or_else(|| panic!("{:?}", parsed.diagnostics));
        DeployOrder {
            spec,
            artifacts: [("program".to_owned(), digest)].into(),
            images: BTreeMap::new(),
            strategy: None,
            supersede: false,
            by: "test".into(),
            commit: None,
            note: None,
        }
    }
}

pub(crate) fn scope() -> Scope {
    Scope {
        app: "shop".parse().expect("a name"),
        environment: "production".parse().expect("a name"),
    }
}

/// Waits until something holds of the environment; false when the journal takes no more records.
pub(crate) async fn reach(
    platform: &Platform,
    journal: &Mortal,
    holds: impl Fn(&View) -> bool,
) -> bool {
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
