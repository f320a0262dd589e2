//! The data plane as the engine sees it, and the one hub that gives it snapshots.
//!
//! Each environment owns its part of the host's table. The hub joins all parts into one snapshot; it pushes
//! nothing before every environment was read from the journal, so a server that starts never takes another
//! app's routes away. A snapshot is confirmed when the proxy says that every new request uses it.
//!
//! A worker that was replaced may serve an older table than the one that was confirmed, or none. So whatever the
//! proxy says of itself is compared with what was confirmed, at least once a second, and the table is given
//! again where it was lost. Nothing an instance's end depends on is believed of another table or worker.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use landfast_proxy::control::{ControlClient, ControlError};
use landfast_routing::snapshot::{
    Certificate, Challenge, ProxyStats, ProxyStatus, Route, SNAPSHOT_VERSION, Service, Snapshot,
};
use landfast_types::{Fence, Generation, Scope, ServiceKey};
use tokio::{sync::watch, time::sleep};

/// How often a proxy that does not answer is asked again.
const RETRY_EVERY: Duration = Duration::from_millis(200);
/// How often the proxy is asked whether it still has its table.
const KEEP_EVERY: Duration = Duration::from_secs(1);
/// The counters are kept each so many of these looks, and so many times: the oldest is a minute old, or half
/// a minute more.
const KEEP_COUNTERS_EVERY: u32 = 30;
const COUNTERS_KEPT: usize = 3;

/// Why the data plane did not take a snapshot or did not answer.
#[derive(Debug, thiserror::Error)]
pub enum PlaneError {
    /// A newer server has taken over: this one must not act any more.
    #[error("a newer server gave the proxy order {seen}; this one's {refused} is refused")]
    Replaced { refused: Fence, seen: String },
    #[error("the proxy does not answer: {0}")]
    Unreachable(String),
}

/// Takes snapshots and says what became of them.
#[async_trait]
pub trait DataPlane: Send + Sync + 'static {
    /// Puts a snapshot into force; returns once every new request uses it.
    async fn put(&self, snapshot: &Snapshot) -> Result<ProxyStatus, PlaneError>;
    /// What is in force, and what is in flight.
    async fn status(&self) -> Result<ProxyStatus, PlaneError>;
    /// What was measured.
    async fn stats(&self) -> Result<ProxyStats, PlaneError>;
    /// The same for Prometheus.
    async fn metrics(&self) -> Result<String, PlaneError>;
}

#[async_trait]
impl DataPlane for ControlClient {
    async fn put(&self, snapshot: &Snapshot) -> Result<ProxyStatus, PlaneError> {
        let refused = snapshot.fence;
        self.put_snapshot(snapshot)
            .await
            .map_err(|error| plane_error(&error, refused))
    }

    async fn status(&self) -> Result<ProxyStatus, PlaneError> {
        self.status()
            .await
            .map_err(|error| plane_error(&error, Fence::default()))
    }

    async fn stats(&self) -> Result<ProxyStats, PlaneError> {
        self.stats()
            .await
            .map_err(|error| plane_error(&error, Fence::default()))
    }

    async fn metrics(&self) -> Result<String, PlaneError> {
        self.metrics()
            .await
            .map_err(|error| plane_error(&error, Fence::default()))
    }
}

fn plane_error(error: &ControlError, refused: Fence) -> PlaneError {
    if matches!(error, ControlError::Stale { .. }) {
        return PlaneError::Replaced {
            refused,
            seen: error.to_string(),
        };
    }
    PlaneError::Unreachable(error.to_string())
}

/// One environment's part of the table.
#[derive(Debug, Clone, Default)]
pub struct Part {
    /// How many events the state had seen this part was made of: a later part has more.
    pub sequence: u64,
    /// The engine's revision of the table this part carries.
    pub revision: u64,
    pub routes: Vec<Route>,
    pub services: BTreeMap<ServiceKey, Service>,
    pub certificates: Vec<Certificate>,
    /// Hosts whose certificates come by ACME. Until one is there the host is served over plain HTTP too.
    pub acme: BTreeSet<String>,
}

impl Part {
    /// Whether the proxy would do the same with either. Most events change nothing of the table.
    fn is_same_table(&self, other: &Self) -> bool {
        self.revision == other.revision
            && self.routes == other.routes
            && self.services == other.services
            && self.certificates == other.certificates
            && self.acme == other.acme
    }
}

/// Tells which parts are to be published although no action asks for it.
#[derive(Debug, Default)]
pub(crate) struct QuietParts {
    published: Option<Part>,
}

impl QuietParts {
    /// Whether this part is to be given to the proxy now. A part of a revision that is not confirmed yet is left
    /// to the action that publishes the revision; what changed meanwhile follows once that is done.
    pub(crate) fn take(&mut self, part: &Part, revision_confirmed: u64) -> bool {
        let is_known = |known: &Part| known.is_same_table(part);
        if part.revision > revision_confirmed || self.published.as_ref().is_some_and(is_known) {
            return false;
        }
        self.published = Some(part.clone());
        true
    }
}

/// Joins the parts of all environments and gives them to the data plane.
pub struct Hub {
    plane: Arc<dyn DataPlane>,
    generation: Generation,
    /// The folder of the artifact store, for what the proxy serves itself.
    store: String,
    parts: Mutex<BTreeMap<Scope, Part>>,
    /// What ACME brought: certificates, and the answers to open challenges.
    obtained: Mutex<Obtained>,
    /// Counts the changes of parts that want other certificates than before.
    changed: watch::Sender<u64>,
    pushed: tokio::sync::Mutex<Pushed>,
    /// What the proxy confirmed last; nothing before the first push of this server.
    confirmed: Mutex<Option<Confirmed>>,
    /// The counters of the last minute or so, oldest first.
    counters: Mutex<VecDeque<ProxyStats>>,
}

#[derive(Default)]
struct Pushed {
    revision: u64,
    parts: BTreeMap<Scope, Part>,
}

/// What a certificate authority gave, and what it asks just now: for the hosts of all environments.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Obtained {
    /// By host. Those of hosts that no part wants by ACME any more stay out of the table.
    pub certificates: BTreeMap<String, Certificate>,
    pub challenges: Vec<Challenge>,
}

/// A table, and the worker that said it uses it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Confirmed {
    fence: Fence,
    boot: String,
}

impl Confirmed {
    fn holds(&self, status: &ProxyStatus) -> bool {
        status.boot == self.boot && status.fence >= self.fence
    }
}

impl Hub {
    /// A hub for one life of the server, which begins with what was obtained in an earlier one: a table without
    /// a certificate that is on disk would end TLS for its host.
    pub fn new(plane: Arc<dyn DataPlane>, generation: Generation, obtained: Obtained) -> Self {
        Self {
            plane,
            generation,
            store: String::new(),
            parts: Mutex::default(),
            obtained: Mutex::new(obtained),
            changed: watch::Sender::new(0),
            pushed: tokio::sync::Mutex::default(),
            confirmed: Mutex::default(),
            counters: Mutex::default(),
        }
    }

    /// The same hub, whose proxy finds artifacts in this folder.
    #[must_use]
    pub fn with_store(mut self, root: &std::path::Path) -> Self {
        self.store = root.to_string_lossy().into_owned();
        self
    }

    /// Sets a part without giving it to the proxy yet: for the start. A part of an older state than the one that
    /// is held is ignored: two publishes of one environment may be under way, and the older one may come last.
    pub fn set(&self, scope: &Scope, part: Part) {
        let mut parts = self.lock();
        let held = parts.get(scope);
        if held.is_some_and(|held| held.sequence > part.sequence) {
            return;
        }
        let wants_the_same = held
            .is_some_and(|held| held.acme == part.acme && held.certificates == part.certificates);
        parts.insert(scope.clone(), part);
        if !wants_the_same {
            self.changed.send_modify(|count| *count += 1);
        }
    }

    /// Fires when a part wants other certificates than before.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The hosts whose certificates come by ACME, and the certificates that come from files.
    pub fn wanted_certificates(&self) -> (BTreeSet<String>, Vec<Certificate>) {
        let parts = self.lock();
        let acme = parts.values().flat_map(|part| part.acme.iter().cloned());
        let files = parts.values().flat_map(|part| part.certificates.clone());
        (acme.collect(), files.collect())
    }

    /// Puts other certificates and challenges into force; returns once every new request uses them. Waits for a
    /// proxy that is away.
    ///
    /// # Errors
    /// [`PlaneError::Replaced`] when another server has taken over.
    pub async fn obtain(&self, obtained: Obtained) -> Result<(), PlaneError> {
        *self.obtained_lock() = obtained;
        loop {
            let mut pushed = self.pushed.lock().await;
            match self.give(&mut pushed).await {
                Ok(_) => return Ok(()),
                Err(replaced @ PlaneError::Replaced { .. }) => return Err(replaced),
                Err(PlaneError::Unreachable(reason)) => {
                    drop(pushed);
                    tracing::debug!(reason, "the proxy is away");
                    sleep(RETRY_EVERY).await;
                }
            }
        }
    }

    /// The part of an environment that was set last.
    pub fn part(&self, scope: &Scope) -> Option<Part> {
        self.lock().get(scope).cloned()
    }

    /// Sets a part and returns its revision once the proxy uses it or a newer one of the same environment.
    /// Waits for a proxy that is away.
    ///
    /// # Errors
    /// [`PlaneError::Replaced`] when another server has taken over.
    pub async fn publish(&self, scope: &Scope, part: Part) -> Result<u64, PlaneError> {
        self.set(scope, part);
        loop {
            match self.push(scope).await {
                Ok(revision) => return Ok(revision),
                Err(replaced @ PlaneError::Replaced { .. }) => return Err(replaced),
                Err(PlaneError::Unreachable(reason)) => {
                    tracing::debug!(%scope, reason, "the proxy is away");
                    sleep(RETRY_EVERY).await;
                }
            }
        }
    }

    /// Gives the joined table to the proxy, unless it already has this environment's newest part.
    async fn push(&self, scope: &Scope) -> Result<u64, PlaneError> {
        let mut pushed = self.pushed.lock().await;
        let wanted = self.part(scope);
        if let Some((had, wanted)) = pushed.parts.get(scope).zip(wanted.as_ref())
            && had.is_same_table(wanted)
        {
            return Ok(wanted.revision);
        }
        self.give(&mut pushed).await?;
        Ok(pushed.parts.get(scope).map_or(0, |part| part.revision))
    }

    /// Gives the table again to a proxy that was found without it.
    async fn push_again(&self, lost: &Confirmed) -> Result<ProxyStatus, PlaneError> {
        let mut pushed = self.pushed.lock().await;
        if self.confirmed().as_ref() == Some(lost) {
            tracing::warn!(fence = %lost.fence, boot = lost.boot, "the proxy's worker was replaced; giving it the table again");
            pushed.parts.clear();
        }
        // Where somebody else was faster, this only asks for a status of the newest table.
        self.give(&mut pushed).await
    }

    async fn give(&self, pushed: &mut Pushed) -> Result<ProxyStatus, PlaneError> {
        let parts = self.lock().clone();
        pushed.revision += 1;
        let fence = Fence {
            generation: self.generation,
            revision: pushed.revision,
        };
        let obtained = self.obtained_lock().clone();
        let snapshot = Snapshot {
            store: self.store.clone(),
            ..join(fence, &parts, &obtained)
        };
        let status = self.plane.put(&snapshot).await?;
        for problem in &status.problems {
            tracing::warn!(problem, "the proxy could not use all of the table");
        }
        pushed.parts = parts;
        let boot = status.boot.clone();
        *self.confirmed_lock() = Some(Confirmed { fence, boot });
        Ok(status)
    }

    /// What the proxy says of itself; never of an older table, or of a worker that was given none.
    ///
    /// # Errors
    /// [`PlaneError`] when it does not answer, or does not take the table it has lost.
    pub async fn status(&self) -> Result<ProxyStatus, PlaneError> {
        let confirmed = self.confirmed();
        let status = self.plane.status().await?;
        match confirmed {
            Some(confirmed) if !confirmed.holds(&status) => self.push_again(&confirmed).await,
            _ => Ok(status),
        }
    }

    /// Whether nothing is in flight to a backend any more and nothing new can come. Before this server's table was
    /// confirmed nobody can say so.
    ///
    /// # Errors
    /// [`PlaneError`] when the proxy does not answer.
    pub async fn is_drained(&self, backend: &str) -> Result<bool, PlaneError> {
        if self.confirmed().is_none() {
            return Ok(false);
        }
        let status = self.status().await?;
        let backend = status.backends.get(backend);
        Ok(!status.finishing && backend.is_none_or(|backend| backend.is_drained()))
    }

    /// Looks once a second whether the proxy still has its table, and gives it again where not. Ends only when
    /// another server has taken over.
    pub async fn keep(&self) -> PlaneError {
        let mut look = 0;
        loop {
            sleep(KEEP_EVERY).await;
            if look == 0 {
                self.keep_counters().await;
            }
            look = (look + 1) % KEEP_COUNTERS_EVERY;
            match self.status().await {
                Err(replaced @ PlaneError::Replaced { .. }) => return replaced,
                Err(PlaneError::Unreachable(reason)) => {
                    tracing::debug!(reason, "the proxy is away");
                }
                Ok(_) => {}
            }
        }
    }

    async fn keep_counters(&self) {
        let Ok(stats) = self.plane.stats().await else {
            return;
        };
        let mut kept = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push_back(stats);
        while kept.len() > COUNTERS_KEPT {
            kept.pop_front();
        }
    }

    /// The counters of a minute ago, once this server has looked for as long.
    pub(crate) fn a_minute_ago(&self) -> Option<ProxyStats> {
        let kept = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        kept.front()
            .filter(|_| kept.len() == COUNTERS_KEPT)
            .cloned()
    }

    /// What the proxy measured.
    ///
    /// # Errors
    /// [`PlaneError::Unreachable`] when it does not answer.
    pub async fn stats(&self) -> Result<ProxyStats, PlaneError> {
        let stats = self.plane.stats().await?;
        if self.confirmed().is_some_and(|it| it.boot != stats.boot) {
            self.status().await?;
        }
        Ok(stats)
    }

    /// The proxy's metrics for Prometheus.
    ///
    /// # Errors
    /// [`PlaneError::Unreachable`] when it does not answer.
    pub async fn metrics(&self) -> Result<String, PlaneError> {
        self.plane.metrics().await
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Scope, Part>> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn obtained_lock(&self) -> MutexGuard<'_, Obtained> {
        let obtained = self.obtained.lock();
        obtained.unwrap_or_else(PoisonError::into_inner)
    }

    fn confirmed(&self) -> Option<Confirmed> {
        self.confirmed_lock().clone()
    }

    fn confirmed_lock(&self) -> MutexGuard<'_, Option<Confirmed>> {
        self.confirmed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn join(fence: Fence, parts: &BTreeMap<Scope, Part>, obtained: &Obtained) -> Snapshot {
    let mut snapshot = Snapshot {
        version: SNAPSHOT_VERSION,
        fence,
        challenges: obtained.challenges.clone(),
        ..Snapshot::default()
    };
    let wanted: BTreeSet<_> = parts.values().flat_map(|part| &part.acme).collect();
    for part in parts.values() {
        let routes = part.routes.iter().cloned().map(|mut route| {
            // Nobody is sent to a host that cannot be trusted yet.
            let is_bare = wanted.contains(&route.host)
                && !obtained.certificates.contains_key(&route.host)
                && !has_files(parts, &route.host);
            route.https_only &= !is_bare;
            route
        });
        snapshot.routes.extend(routes);
        snapshot.services.extend(part.services.clone());
        snapshot
            .certificates
            .extend(part.certificates.iter().cloned());
    }
    let brought = obtained.certificates.iter();
    let brought = brought.filter(|(host, _)| wanted.contains(host));
    // Files come first: they win where a host has both.
    snapshot
        .certificates
        .extend(brought.map(|(_, certificate)| certificate.clone()));
    snapshot
}

/// Whether a certificate from files is named for a host, by itself or by a wildcard.
fn has_files(parts: &BTreeMap<Scope, Part>, host: &str) -> bool {
    let wildcard = host.split_once('.').map(|(_, rest)| format!("*.{rest}"));
    let names = |name: &String| name == host || Some(name) == wildcard.as_ref();
    let mut files = parts.values().flat_map(|part| &part.certificates);
    files.any(|certificate| certificate.hosts.iter().any(names))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A proxy that keeps what it is given, until its worker is replaced.
    #[derive(Default)]
    struct Proxy {
        state: Mutex<State>,
    }

    #[derive(Default, Clone)]
    struct State {
        boot: u32,
        snapshot: Snapshot,
        puts: u32,
        finishing: bool,
    }

    impl Proxy {
        fn state(&self) -> MutexGuard<'_, State> {
            self.state.lock().unwrap()
        }

        fn answer(&self) -> ProxyStatus {
            let state = self.state().clone();
            ProxyStatus {
                version: "test".into(),
                pid: 1,
                holder_pid: None,
                boot: state.boot.to_string(),
                fence: state.snapshot.fence,
                http: Vec::new(),
                https: Vec::new(),
                preview: None,
                backends: BTreeMap::new(),
                finishing: state.finishing,
                elders: Vec::new(),
                problems: Vec::new(),
            }
        }

        fn route_names(&self) -> Vec<String> {
            let snapshot = self.state().snapshot.clone();
            snapshot
                .routes
                .into_iter()
                .map(|route| route.name)
                .collect()
        }
    }

    #[async_trait]
    impl DataPlane for Proxy {
        async fn put(&self, snapshot: &Snapshot) -> Result<ProxyStatus, PlaneError> {
            {
                let mut state = self.state();
                state.snapshot = snapshot.clone();
                state.puts += 1;
            }
            Ok(self.answer())
        }
        async fn status(&self) -> Result<ProxyStatus, PlaneError> {
            Ok(self.answer())
        }
        async fn stats(&self) -> Result<ProxyStats, PlaneError> {
            Ok(ProxyStats {
                boot: self.state().boot.to_string(),
                took_over: false,
                at: landfast_types::Timestamp::EPOCH,
                backends: BTreeMap::new(),
                services: BTreeMap::new(),
            })
        }
        async fn metrics(&self) -> Result<String, PlaneError> {
            Ok(String::new())
        }
    }

    fn hub() -> (Arc<Proxy>, Hub, Scope) {
        let proxy = Arc::new(Proxy::default());
        let hub = Hub::new(Arc::clone(&proxy) as _, Generation(1), Obtained::default());
        let scope = Scope {
            app: "shop".parse().unwrap(),
            environment: "production".parse().unwrap(),
        };
        (proxy, hub, scope)
    }

    fn part(sequence: u64, revision: u64, route: &str) -> Part {
        let route = serde_json::json!({
            "name": route, "host": "shop.example", "path": "/", "service": "shop/production/api",
            "websocket": false, "https_only": false, "limits": { "body_bytes_max": 1 },
            "timeouts": { "connect_ms": 1, "first_byte_ms": 1, "body_idle_ms": 1 },
        });
        Part {
            sequence,
            revision,
            routes: vec![serde_json::from_value(route).unwrap()],
            ..Part::default()
        }
    }

    #[tokio::test]
    async fn sends_nobody_to_a_host_whose_certificate_is_not_there_yet() {
        let (proxy, hub, scope) = hub();
        let host = "shop.example".to_owned();
        let mut wants = part(1, 1, "one");
        wants.acme.insert(host.clone());
        wants.routes[0].https_only = true;
        hub.publish(&scope, wants.clone()).await.unwrap();
        let table = || proxy.state().snapshot.clone();
        assert!(!table().routes[0].https_only);
        let brought = |host: &str| Certificate {
            hosts: vec![host.to_owned()],
            chain_path: format!("/state/{host}"),
            key_path: format!("/state/{host}"),
        };
        let hosts = ["shop.example", "unwanted.example"];
        let certificates = hosts.map(|host| (host.to_owned(), brought(host)));
        let obtained = Obtained {
            certificates: certificates.into(),
            challenges: Vec::new(),
        };
        hub.obtain(obtained).await.unwrap();
        assert!(table().routes[0].https_only);
        assert_eq!(table().certificates, [brought("shop.example")]);
        wants.sequence = 2;
        wants.acme.clear();
        wants.certificates.push(brought("*.example"));
        hub.publish(&scope, wants).await.unwrap();
        assert!(table().routes[0].https_only, "files are another matter");
        assert_eq!(table().certificates, [brought("*.example")]);
    }

    #[tokio::test]
    async fn gives_the_table_again_to_a_worker_that_lost_it() {
        let (proxy, hub, scope) = hub();
        hub.publish(&scope, part(1, 1, "one")).await.unwrap();
        let lose: [fn(&mut State); 3] = [
            // Another worker, without any routes.
            |state| (state.boot, state.snapshot) = (state.boot + 1, Snapshot::default()),
            // Another worker that read back what lay on disk before the last order.
            |state| (state.boot, state.snapshot.fence.revision) = (state.boot + 1, 0),
            // The same worker with an older table.
            |state| state.snapshot = Snapshot::default(),
        ];
        for lose in lose {
            lose(&mut proxy.state());
            let status = hub.status().await.unwrap();
            assert_eq!(proxy.route_names(), ["one"]);
            assert_eq!(status.fence, proxy.state().snapshot.fence);
        }
        // Counters of another worker are enough to notice.
        proxy.state().boot += 1;
        proxy.state().snapshot = Snapshot::default();
        hub.stats().await.unwrap();
        assert_eq!(proxy.route_names(), ["one"]);
        let puts = proxy.state().puts;
        hub.status().await.unwrap();
        hub.publish(&scope, part(2, 1, "one")).await.unwrap();
        assert_eq!(
            proxy.state().puts,
            puts,
            "a table that is there is not given again"
        );
    }

    #[tokio::test]
    async fn believes_no_drain_of_a_table_that_is_not_its_own() {
        let (proxy, hub, scope) = hub();
        assert!(!hub.is_drained("shop/production/api.r1.1").await.unwrap());
        assert_eq!(
            proxy.state().puts,
            0,
            "before the journal was read nothing is given"
        );
        hub.publish(&scope, part(1, 1, "one")).await.unwrap();
        assert!(hub.is_drained("shop/production/api.r1.1").await.unwrap());
        proxy.state().finishing = true;
        assert!(!hub.is_drained("shop/production/api.r1.1").await.unwrap());
    }

    #[tokio::test]
    async fn an_older_part_never_takes_the_place_of_a_newer_one() {
        let (proxy, hub, scope) = hub();
        hub.publish(&scope, part(7, 2, "new")).await.unwrap();
        let revision = hub.publish(&scope, part(5, 1, "old")).await.unwrap();
        assert_eq!((revision, proxy.route_names()), (2, vec!["new".to_owned()]));
        // Of one revision the later state counts as well.
        hub.publish(&scope, part(6, 2, "old")).await.unwrap();
        assert_eq!(proxy.route_names(), ["new"]);
        hub.publish(&scope, part(8, 2, "newest")).await.unwrap();
        assert_eq!(proxy.route_names(), ["newest"]);
    }

    #[tokio::test]
    async fn knows_the_counters_of_a_minute_ago_once_it_has_looked_so_long() {
        let (proxy, hub, _) = hub();
        for boot in 1..=4 {
            assert_eq!(hub.a_minute_ago().is_some(), boot == 4);
            proxy.state().boot = boot;
            hub.keep_counters().await;
        }
        assert_eq!(hub.a_minute_ago().unwrap().boot, "2");
    }

    #[test]
    fn routes_that_change_while_a_revision_is_unconfirmed_follow_it() {
        let mut quiet = QuietParts::default();
        assert!(quiet.take(&part(1, 1, "one"), 1));
        assert!(!quiet.take(&part(2, 1, "one"), 1));
        assert!(!quiet.take(&part(3, 2, "two"), 1), "the action gives it");
        assert!(quiet.take(&part(4, 2, "two"), 2));
    }
}
