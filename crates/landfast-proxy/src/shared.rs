//! What all threads of a worker share: the table behind one atomic pointer, the backends and services it
//! names, and how a snapshot becomes the table.

use std::{
    collections::BTreeMap,
    hash::RandomState,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use landfast_routing::{
    admission::Limiter,
    balance::{self, Candidate, FULL_SHARE},
    snapshot::{Mode, ProxyStats, ProxyStatus, Snapshot},
    sticky::Pinned,
    table::Table,
};
use landfast_types::{Fence, FenceGuard, ServiceKey, StaleFence, Timestamp};
use tokio::sync::watch;

use crate::{
    access_log::AccessLog,
    backend::{Backend, InFlight, Service},
    clock,
    counters::{Counter, Statuses},
    credentials::Verifier,
    descriptors::Descriptors,
    forward::Destination,
    leaving::Life,
    peers::Peers,
    persist::{self, SaveError},
    route_answers::{Artifacts, RouteAnswers},
    settings::WorkerSettings,
    tls::{self, Certificates, Stamps},
};

/// How long the counters of a backend that left are still shown.
const LEFT_SHOWN: Duration = Duration::from_secs(600);

/// One client may hold one connection in so many.
const CLIENT_SHARE: usize = 4;

/// A table with the live things its indices stand for.
pub(crate) struct Live {
    /// Counts the tables of this worker.
    pub(crate) generation: u64,
    pub(crate) table: Table,
    pub(crate) backends: Vec<Arc<Backend>>,
    pub(crate) services: Vec<Arc<Service>>,
    pub(crate) routes: Vec<Arc<RouteCounters>>,
    /// Per route: what it does with answers, where it does anything.
    pub(crate) answers: Vec<Option<Arc<RouteAnswers>>>,
    /// Per group: whose turn it is.
    turns: Vec<AtomicU64>,
}

/// Requests of one route, and what of its quotas is used up: neither begins anew with a new table.
#[derive(Debug)]
pub(crate) struct RouteCounters {
    pub(crate) name: String,
    pub(crate) statuses: Statuses,
    pub(crate) limiter: Limiter,
}

/// Everything that is counted.
pub(crate) struct Counted {
    pub(crate) backends: Vec<Arc<Backend>>,
    pub(crate) services: Vec<Arc<Service>>,
    pub(crate) routes: Vec<Arc<RouteCounters>>,
}

/// Why a snapshot was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    #[error(transparent)]
    Stale(#[from] StaleFence),
    #[error("another worker is taking over; it takes the snapshot")]
    Held,
    #[error(transparent)]
    Save(#[from] SaveError),
}

/// Where this worker listens.
#[derive(Debug, Clone, Default)]
pub(crate) struct Addresses {
    pub(crate) http: Vec<SocketAddr>,
    pub(crate) https: Vec<SocketAddr>,
    pub(crate) preview: Option<SocketAddr>,
}

/// See the head of the module.
pub(crate) struct Shared {
    pub(crate) settings: WorkerSettings,
    pub(crate) boot: String,
    pub(crate) addresses: Addresses,
    pub(crate) certificates: Certificates,
    pub(crate) access_log: AccessLog,
    /// Requests refused for their framing, before a route was looked for.
    pub(crate) framing_refused: Counter,
    /// Checks names and passwords.
    pub(crate) verifier: Verifier,
    /// How many connections each client holds.
    pub(crate) peers: Arc<Peers>,
    pub(crate) descriptors: Descriptors,
    pub(crate) life: Life,
    live: ArcSwap<Live>,
    newest: AtomicU64,
    changed: watch::Sender<u64>,
    registry: Mutex<Registry>,
    holder_pid: AtomicU64,
    orders_held: watch::Sender<bool>,
    /// Whether older workers that cannot be asked still finish what they had begun.
    has_elders: AtomicBool,
    /// Whether there were any at the start.
    took_over: AtomicBool,
}

#[derive(Default)]
struct Registry {
    guard: FenceGuard,
    snapshot: Arc<Snapshot>,
    problems: Vec<String>,
    /// Certificates that could not be read.
    unreadable: Vec<String>,
    stamps: Stamps,
    backends: BTreeMap<String, Arc<Backend>>,
    services: BTreeMap<ServiceKey, Arc<Service>>,
    routes: BTreeMap<String, Arc<RouteCounters>>,
    artifacts: Artifacts,
    serial: u64,
}

impl Shared {
    /// `descriptors`: how many this process may have open.
    pub(crate) fn new(
        settings: WorkerSettings,
        addresses: Addresses,
        boot: String,
        descriptors: Option<u64>,
    ) -> Self {
        let listeners =
            addresses.http.len() + addresses.https.len() + usize::from(addresses.preview.is_some());
        let descriptors = Descriptors::new(
            descriptors,
            settings.thread_count(),
            listeners,
            settings.connections_max,
        );
        let per_client = match settings.connections_per_client_max {
            0 => u32::try_from(descriptors.clients.max() / CLIENT_SHARE)
                .unwrap_or(u32::MAX)
                .max(1),
            given => given,
        };
        let peers = Peers::new(per_client, settings.trust.clone(), settings.counts_loopback);
        let life = Life::new();
        let access_log = AccessLog::start(&settings, life.leaving.clone());
        Self {
            settings,
            boot,
            addresses,
            certificates: Certificates::default(),
            access_log,
            framing_refused: Counter::default(),
            verifier: Verifier::default(),
            peers,
            descriptors,
            life,
            live: ArcSwap::from_pointee(Live::empty()),
            newest: AtomicU64::new(0),
            changed: watch::Sender::new(0),
            registry: Mutex::default(),
            holder_pid: AtomicU64::new(0),
            orders_held: watch::Sender::new(false),
            has_elders: AtomicBool::new(false),
            took_over: AtomicBool::new(false),
        }
    }

    /// The table to decide by.
    pub(crate) fn live(&self) -> Arc<Live> {
        self.live.load_full()
    }

    /// Fires with each new table.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Counts the tables whose backends have heard of them.
    pub(crate) fn published(&self) -> u64 {
        *self.changed.borrow()
    }

    /// Whether no newer table has come.
    pub(crate) fn is_newest(&self, live: &Live) -> bool {
        self.newest.load(Ordering::SeqCst) == live.generation
    }

    pub(crate) fn set_holder(&self, pid: u32) {
        self.holder_pid.store(u64::from(pid), Ordering::Relaxed);
    }

    /// Enters a backend a pick found in `live`; nothing when a newer table came in between.
    pub(crate) fn enter(&self, live: &Live, backend: usize) -> Option<InFlight> {
        let entry = InFlight::enter(&live.backends[backend]);
        self.is_newest(live).then_some(entry)
    }

    /// Takes the routes on disk, before anything is served.
    pub(crate) fn restore(&self) {
        let Some(snapshot) = persist::load(&self.settings.routes) else {
            return;
        };
        let mut registry = self.registry();
        registry.guard = FenceGuard::new(snapshot.fence);
        self.publish(&mut registry, snapshot);
    }

    /// Takes no more snapshots, or takes them again. When this returns, one that was being taken is on disk, so
    /// that a successor that reads the routes back finds the newest that was ever confirmed.
    pub(crate) fn hold_orders(&self, held: bool) {
        let _registry = self.registry();
        self.orders_held.send_replace(held);
    }

    /// Fires when orders are held or taken again.
    pub(crate) fn orders_held(&self) -> watch::Receiver<bool> {
        self.orders_held.subscribe()
    }

    /// Older workers that cannot be asked still finish.
    pub(crate) fn set_unknown_elders(&self, has_elders: bool) {
        self.has_elders.store(has_elders, Ordering::Relaxed);
    }

    /// There was a worker before this one, which was asked to leave.
    pub(crate) fn set_took_over(&self) {
        self.took_over.store(true, Ordering::Relaxed);
    }

    /// Takes what a successor has kept on disk: what is still held here learns of a resume, and no request of an
    /// open connection goes to a backend that has left meanwhile.
    pub(crate) fn follow_successor(&self, snapshot: Snapshot) {
        let mut registry = self.registry();
        if snapshot.fence > registry.guard.seen() {
            registry.guard = FenceGuard::new(snapshot.fence);
            self.publish(&mut registry, snapshot);
        }
    }

    /// Takes a snapshot: refuses an older one, keeps it on disk, and publishes it. When this returns, every
    /// new request uses it.
    pub(crate) fn apply(&self, snapshot: Snapshot) -> Result<(), ApplyError> {
        let mut registry = self.registry();
        if *self.orders_held.borrow() {
            return Err(ApplyError::Held);
        }
        let mut guard = registry.guard;
        guard.take(snapshot.fence)?;
        if *registry.snapshot != snapshot || registry.guard.seen() == Fence::default() {
            persist::save(&self.settings.routes, &snapshot)?;
        }
        registry.guard = guard;
        self.publish(&mut registry, snapshot);
        Ok(())
    }

    fn publish(&self, registry: &mut Registry, snapshot: Snapshot) {
        let (table, mut problems) = Table::compile(&snapshot);
        let artifacts = &mut registry.artifacts;
        let answers = artifacts.prepare(&snapshot.store, &table.routes, &mut problems);
        for problem in &problems {
            tracing::warn!(%problem, fence = %snapshot.fence, "part of the snapshot cannot be used");
        }
        self.load_certificates(registry, &snapshot);
        registry.forget();
        let generation = self.newest.load(Ordering::SeqCst) + 1;
        let live = registry.live(generation, table, answers);
        for backend in registry.backends.values() {
            let here = |found: &&Arc<Backend>| Arc::ptr_eq(found, backend);
            if !live.backends.iter().any(|found| here(&found)) {
                backend.follow(None);
            }
        }
        let states: Vec<_> = live
            .backends
            .iter()
            .zip(&live.table.backends)
            .map(|(backend, entry)| (Arc::clone(backend), entry.state))
            .collect();
        self.live.store(Arc::new(live));
        self.newest.store(generation, Ordering::SeqCst);
        for (backend, state) in states {
            backend.follow(Some(state));
        }
        registry.begin_pauses(&snapshot);
        registry.snapshot = Arc::new(snapshot);
        registry.problems = problems;
        self.changed.send_replace(generation);
    }

    /// Reads certificates again whose files have changed since.
    pub(crate) fn renew_certificates(&self) {
        let mut registry = self.registry();
        let snapshot = Arc::clone(&registry.snapshot);
        if tls::stamps(&snapshot.certificates) != registry.stamps {
            tracing::info!("files of certificates have changed; reading them again");
            self.load_certificates(&mut registry, &snapshot);
        }
    }

    fn load_certificates(&self, registry: &mut Registry, snapshot: &Snapshot) {
        // Looked at first: a file that changes while it is read is read again the next time.
        registry.stamps = tls::stamps(&snapshot.certificates);
        registry.unreadable = self.certificates.load(&snapshot.certificates);
        let unanswered = self.certificates.challenges.load(&snapshot.challenges);
        registry.unreadable.extend(unanswered);
        for problem in &registry.unreadable {
            tracing::warn!(%problem, "a certificate cannot be used");
        }
    }

    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.registry().snapshot)
    }

    pub(crate) fn status(&self) -> ProxyStatus {
        let registry = self.registry();
        let shown = |(id, backend): (&String, &Arc<Backend>)| {
            let status = backend.status();
            let relevant = backend.is_in_table() || !status.is_drained();
            relevant.then(|| (id.clone(), status))
        };
        let holder = self.holder_pid.load(Ordering::Relaxed);
        ProxyStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            holder_pid: u32::try_from(holder).ok().filter(|pid| *pid > 0),
            boot: self.boot.clone(),
            fence: registry.snapshot.fence,
            http: self.addresses.http.clone(),
            https: self.addresses.https.clone(),
            preview: self.addresses.preview,
            backends: registry.backends.iter().filter_map(shown).collect(),
            finishing: self.has_elders.load(Ordering::Relaxed),
            elders: Vec::new(),
            problems: [&*registry.problems, &*registry.unreadable].concat(),
        }
    }

    pub(crate) fn stats(&self) -> ProxyStats {
        let registry = self.registry();
        let backends = registry.backends.iter();
        let services = registry.services.iter();
        ProxyStats {
            boot: self.boot.clone(),
            took_over: self.took_over.load(Ordering::Relaxed),
            at: clock::wall(),
            backends: backends
                .map(|(id, backend)| (id.clone(), backend.stats()))
                .collect(),
            services: services
                .map(|(key, s)| (key.clone(), s.counters.read()))
                .collect(),
        }
    }

    /// Everything that is counted, for `/metrics`.
    pub(crate) fn counted(&self) -> Counted {
        let registry = self.registry();
        Counted {
            backends: registry.backends.values().cloned().collect(),
            services: registry.services.values().cloned().collect(),
            routes: registry.routes.values().cloned().collect(),
        }
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registry {
    /// The longest wait is of one pause: it begins again where a service enters another.
    fn begin_pauses(&self, next: &Snapshot) {
        let is_paused = |snapshot: &Snapshot, key: &ServiceKey| {
            let service = snapshot.services.get(key);
            service.is_some_and(|service| matches!(service.mode, Mode::Pause { .. }))
        };
        for (key, service) in &self.services {
            if is_paused(next, key) && !is_paused(&self.snapshot, key) {
                service.counters.pause_longest_ms.reset();
            }
        }
    }

    fn forget(&mut self) {
        let now = clock::monotonic();
        self.backends
            .retain(|_, backend| !backend.is_forgettable(now, LEFT_SHOWN));
    }

    fn live(
        &mut self,
        generation: u64,
        table: Table,
        answers: Vec<Option<Arc<RouteAnswers>>>,
    ) -> Live {
        let mut services = Vec::with_capacity(table.services.len());
        for service in &table.services {
            let entry = self.services.entry(service.key.clone());
            let found = entry.or_insert_with(|| Arc::new(Service::new(service.key.clone())));
            services.push(Arc::clone(found));
        }
        let mut backends = Vec::with_capacity(table.backends.len());
        for backend in &table.backends {
            let serial = &mut self.serial;
            let entry = self.backends.entry(backend.id.clone());
            let found = entry.or_insert_with(|| {
                *serial += 1;
                let service = table.services[backend.service].key.clone();
                Arc::new(Backend::new(
                    backend.id.clone(),
                    service,
                    backend.release,
                    *serial,
                ))
            });
            backends.push(Arc::clone(found));
        }
        let mut routes = Vec::with_capacity(table.routes.len());
        for entry in &table.routes {
            let name = entry.route.name.clone();
            let found = self.routes.entry(name.clone()).or_insert_with(|| {
                Arc::new(RouteCounters {
                    name,
                    statuses: Statuses::default(),
                    limiter: Limiter::new(RandomState::new()),
                })
            });
            routes.push(Arc::clone(found));
        }
        // Names come and go with environments; what no table and no request holds is forgotten.
        self.routes.retain(|_, route| Arc::strong_count(route) > 1);
        // Begin somewhere else each time: with many snapshots the first backend must not get more than its part.
        let turns = table
            .groups
            .iter()
            .map(|_| AtomicU64::new(generation))
            .collect();
        Live {
            generation,
            table,
            backends,
            services,
            routes,
            answers,
            turns,
        }
    }
}

/// Which backends a pick may find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Admit {
    /// Healthy, and not ejected.
    Usable,
    /// Healthy by the active checks.
    Healthy,
}

fn is_admitted(backend: &Backend, admit: Admit, now: Timestamp) -> bool {
    match admit {
        Admit::Usable => backend.is_usable(now),
        Admit::Healthy => backend.is_healthy(),
    }
}

impl Live {
    fn empty() -> Self {
        Self {
            generation: 0,
            table: Table::default(),
            backends: Vec::new(),
            services: Vec::new(),
            routes: Vec::new(),
            answers: Vec::new(),
            turns: Vec::new(),
        }
    }

    /// Picks a backend of a service for an attempt (on the preview listener of the preview group and no other, or a
    /// test of a new release could pass on the old one), best first: one not tried yet, one that was (it may have come
    /// to its senses, and a single replica has only itself), and then the same among those that are ejected,
    /// since a backend that failed a moment ago is better than no answer.
    /// A client that is kept where it is gets its own instance, or one of its release, as long as that is no worse.
    pub(crate) fn pick(
        &self,
        destination: Destination,
        turn: u64,
        pinned: Option<Pinned>,
        tried: &[u64],
    ) -> Option<usize> {
        let Destination { service, preview } = destination;
        [Admit::Usable, Admit::Healthy]
            .into_iter()
            .flat_map(|admit| [(admit, tried), (admit, &[])])
            .find_map(|(admit, avoid)| {
                pinned
                    .and_then(|pinned| self.pick_pinned(service, pinned, admit, avoid))
                    .or_else(|| self.pick_among(service, preview, turn, admit, avoid))
            })
    }

    fn pick_pinned(
        &self,
        service: usize,
        pinned: Pinned,
        admit: Admit,
        avoid: &[u64],
    ) -> Option<usize> {
        let own = pinned.backend.filter(|slot| {
            let backend = &self.backends[*slot];
            is_admitted(backend, admit, clock::monotonic()) && !avoid.contains(&backend.serial)
        });
        let slow_start_ms = self.table.services[service].slow_start_ms;
        own.or_else(|| self.pick_in(pinned.group, slow_start_ms, admit, avoid))
    }

    /// The group by weight (or the preview group), then the least loaded of it.
    /// Where the group's turn finds it without a usable backend, another group with weight takes it.
    /// `avoid`: serials already tried.
    fn pick_among(
        &self,
        service: usize,
        preview: bool,
        turn: u64,
        admit: Admit,
        avoid: &[u64],
    ) -> Option<usize> {
        let entry = &self.table.services[service];
        if preview {
            let group = entry.preview?;
            return self.pick_in(group, entry.slow_start_ms, admit, avoid);
        }
        let first = entry.groups[entry.schedule.pick(turn)?];
        self.pick_in(first, entry.slow_start_ms, admit, avoid)
            .or_else(|| {
                let others = entry.groups.iter().filter(|group| **group != first);
                let mut weighted: Vec<usize> = others
                    .copied()
                    .filter(|group| self.table.groups[*group].weight > 0)
                    .collect();
                weighted.sort_by_key(|group| std::cmp::Reverse(self.table.groups[*group].weight));
                weighted
                    .into_iter()
                    .find_map(|group| self.pick_in(group, entry.slow_start_ms, admit, avoid))
            })
    }

    fn pick_in(
        &self,
        group: usize,
        slow_start_ms: u64,
        admit: Admit,
        avoid: &[u64],
    ) -> Option<usize> {
        let serving = &self.table.groups[group].serving;
        let turn = self.turns[group].fetch_add(1, Ordering::Relaxed);
        let now = clock::monotonic();
        let slow_start = Duration::from_millis(slow_start_ms);
        let index = balance::least_loaded(serving.len(), turn, |index| {
            let backend = &self.backends[serving[index]];
            if !is_admitted(backend, admit, now) || avoid.contains(&backend.serial) {
                return None;
            }
            let share = if slow_start_ms == 0 {
                FULL_SHARE
            } else {
                balance::slow_start_share(backend.age(now), slow_start)
            };
            Some(Candidate {
                in_flight: backend.load(),
                share,
            })
        })?;
        Some(serving[index])
    }

    /// How many backends of a service besides this one take requests.
    pub(crate) fn others(&self, service: usize, backend: &Backend) -> usize {
        let now = clock::monotonic();
        let groups = self.table.services[service]
            .groups
            .iter()
            .map(|group| &self.table.groups[*group]);
        groups
            .filter(|group| group.weight > 0)
            .flat_map(|group| &group.serving)
            .map(|slot| &self.backends[*slot])
            .filter(|other| other.serial != backend.serial && other.is_usable(now))
            .count()
    }
}
