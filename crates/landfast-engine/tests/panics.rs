//! A driver that panics: its environment is read back and driven on, as after a crash of the server.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use landfast_engine::{
    CommandError, Controls, DataPlane, DeployOrder, Folders, PlaneError, Platform,
    PlatformSettings, SystemClock, View,
};
use landfast_journal::{
    AppendError, Change, CompactError, Document, Journal, NewRecord, PutError, ReadError, Record,
    Snapshot as Kept, SnapshotError, SqliteJournal, StorageError,
};
use landfast_rollout::Input;
use landfast_routing::snapshot::{ProxyStats, ProxyStatus, Snapshot};
use landfast_secrets::Vault;
use landfast_store::Store;
use landfast_target::fake::FakeTarget;
use landfast_types::{Fence, Generation, Scope, Timestamp};
use tokio::time::sleep;

/// A journal under which the driver panics, as many times as is asked for.
struct Brittle {
    inner: SqliteJournal,
    panics: AtomicU32,
}

impl Journal for Brittle {
    fn append_with(
        &self,
        stream: &str,
        expected: u64,
        records: &[NewRecord],
        changes: &[Change],
    ) -> Result<u64, AppendError> {
        let less = |left: u32| left.checked_sub(1);
        let order = Ordering::SeqCst;
        assert!(
            self.panics.fetch_update(order, order, less).is_err(),
            "planted"
        );
        self.inner.append_with(stream, expected, records, changes)
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

/// A proxy that takes everything.
#[derive(Default)]
struct Proxy {
    fence: Mutex<Fence>,
}

#[async_trait]
impl DataPlane for Proxy {
    async fn put(&self, snapshot: &Snapshot) -> Result<ProxyStatus, PlaneError> {
        *self.fence.lock().expect("nobody panics with it") = snapshot.fence;
        self.status().await
    }
    async fn status(&self) -> Result<ProxyStatus, PlaneError> {
        Ok(ProxyStatus {
            version: "test".into(),
            pid: 1,
            holder_pid: None,
            boot: "one".into(),
            fence: *self.fence.lock().expect("nobody panics with it"),
            http: Vec::new(),
            https: Vec::new(),
            preview: None,
            backends: BTreeMap::new(),
            finishing: false,
            elders: Vec::new(),
            problems: Vec::new(),
        })
    }
    async fn stats(&self) -> Result<ProxyStats, PlaneError> {
        Err(PlaneError::Unreachable("it counts nothing".into()))
    }
    async fn metrics(&self) -> Result<String, PlaneError> {
        Ok(String::new())
    }
}

const MANIFEST: &str = r#"
app = "shop"
[services.work]
artifact = "program"
command = ["/bin/true", "serve"]
replicas = 1
health = { ready = "none" }
[deploy]
strategy = "rolling"
hold = "100ms"
standby = "100ms"
min_ready = "50ms"
gates = []
"#;

fn scope() -> Scope {
    Scope {
        app: "shop".parse().expect("a name"),
        environment: "production".parse().expect("a name"),
    }
}

fn order(folder: &std::path::Path) -> DeployOrder {
    let program = folder.join("program");
    std::fs::write(&program, "release").expect("written");
    let store = Store::open(folder.join("store")).expect("a store");
    let digest = store.add_local(&program).expect("stored");
    let parsed = landfast_spec::parse("landfast.toml", MANIFEST, &scope().environment);
    let spec = parsed
        .spec
        .unwrap_or_else(|| panic!("{:?}", parsed.diagnostics));
    DeployOrder {
        spec,
        images: Default::default(),
        artifacts: [("program".to_owned(), digest)].into(),
        strategy: None,
        supersede: false,
        by: "test".into(),
        commit: None,
        note: None,
    }
}

async fn eventually(platform: &Platform, what: &str, holds: impl Fn(&View) -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(20), async {
        while !platform
            .environment(&scope())
            .is_some_and(|view| holds(&view))
        {
            sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("never: {what}"));
}

#[tokio::test]
async fn an_environment_whose_driver_panicked_is_read_back_and_driven_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let inner = SqliteJournal::open(folder.path().join("journal.sqlite")).expect("opens");
    let generation = inner.next_generation().expect("writes");
    let journal = Arc::new(Brittle {
        inner,
        panics: AtomicU32::new(0),
    });
    let platform = Platform::start(PlatformSettings {
        executable: std::path::PathBuf::from("/proc/self/exe"),
        journal: Arc::clone(&journal) as _,
        target: Arc::new(FakeTarget::new()),
        plane: Arc::new(Proxy::default()),
        store: Arc::new(Store::open(folder.path().join("store")).expect("a store")),
        clock: Arc::new(SystemClock::start(Timestamp::EPOCH)),
        vault: Vault::open_or_create_key(&folder.path().join("key")).expect("a key"),
        generation,
        folders: Folders {
            state: folder.path().to_owned(),
            run: folder.path().to_owned(),
        },
        controls: Controls::default(),
        obtained: Default::default(),
    });
    let platform = platform.await.expect("starts");
    let ordered = platform.deploy(order(folder.path())).await;
    ordered.expect("nothing speaks against it");
    let running = |count: usize| {
        move |view: &View| {
            let serving = view.state.instances.values().filter(|i| i.is_serving());
            view.state.rollout.is_none() && serving.count() == count
        }
    };
    eventually(&platform, "it serves", running(1)).await;

    let scale = || Input::Scale {
        service: "work".parse().expect("a name"),
        replicas: Some(2),
    };
    let mut views = platform.shared().environments();
    assert_eq!(views.remove(0).state.instances.len(), 1);
    // It panics twice: the second time while the next driver says what runs, or does what it is asked.
    journal.panics.store(2, Ordering::SeqCst);
    let asked = async {
        let mut refused = 0;
        while let Err(error) = platform.command(&scope(), scale()).await {
            assert!(matches!(error, CommandError::Stopping), "{error}");
            refused += 1;
            sleep(Duration::from_millis(20)).await;
        }
        refused
    };
    let refused = tokio::time::timeout(Duration::from_secs(20), asked).await;
    assert!(refused.expect("it is driven on") > 1);
    assert_eq!(journal.panics.load(Ordering::SeqCst), 0);
    eventually(&platform, "both serve", running(2)).await;
    let views = platform.shared().environments();
    assert!(running(2)(&views[0]), "those who read along still do");
}
