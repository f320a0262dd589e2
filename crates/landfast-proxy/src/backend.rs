//! One backend and one service as all threads see them: counters, health, and where a drain stands. They are
//! kept by id across snapshots, so a snapshot that changes a weight loses no count and no failure.
//!
//! # Drain
//!
//! Whoever picks a backend first enters it ([`InFlight`]), then checks that the table the pick came from is
//! still the newest, and leaves and picks anew if not. Applying a snapshot first publishes the table and then
//! reads the counts. Both sides use sequentially consistent operations: so either the picker sees the newer
//! table, or the reader sees the picker's entry. After the answer to a snapshot, nobody new reaches a backend
//! it drains, and the counts cover everybody else.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use landfast_routing::{
    eject::Ejection,
    health::ActiveHealth,
    retry::RetryBudget,
    snapshot::{BackendState, BackendStats, BackendStatus, EjectionPolicy, HealthCheck},
};
use landfast_types::{ReleaseId, ServiceKey, Timestamp};
use tokio::{sync::watch, time::Instant};

use crate::{
    clock,
    counters::{BackendCounters, ServiceCounters},
};

/// Where a backend stands: taking requests, out of the table, or on its way out, and until when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Serving,
    /// Not in the table: it gets no new request, and what it has is left alone. It may only be resting while
    /// its probes fail.
    Absent,
    Draining {
        since: Instant,
        requests: Duration,
        streams: Duration,
    },
}

/// One backend.
#[derive(Debug)]
pub(crate) struct Backend {
    pub(crate) id: String,
    /// Unique in this process, for pools.
    pub(crate) serial: u64,
    pub(crate) service: ServiceKey,
    pub(crate) release: ReleaseId,
    pub(crate) counters: BackendCounters,
    in_flight: AtomicU64,
    streams: AtomicU64,
    healthy: AtomicBool,
    health: Mutex<ActiveHealth>,
    ejection: Mutex<Ejection>,
    ejected_until: AtomicI64,
    /// Cleared by a failure, so that an answer knows whether it has anything to forgive.
    clean: AtomicBool,
    joined: AtomicI64,
    phase: watch::Sender<Phase>,
    left: AtomicI64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Backend {
    pub(crate) fn new(id: String, service: ServiceKey, release: ReleaseId, serial: u64) -> Self {
        Self {
            id,
            serial,
            service,
            release,
            counters: BackendCounters::default(),
            in_flight: AtomicU64::new(0),
            streams: AtomicU64::new(0),
            healthy: AtomicBool::new(true),
            health: Mutex::default(),
            ejection: Mutex::default(),
            ejected_until: AtomicI64::new(0),
            clean: AtomicBool::new(true),
            joined: AtomicI64::new(clock::monotonic().as_micros()),
            phase: watch::Sender::new(Phase::Serving),
            left: AtomicI64::new(i64::MAX),
        }
    }

    /// Follows what the newest snapshot says; `None`: it left the table.
    pub(crate) fn follow(&self, state: Option<BackendState>) {
        let now = clock::instant();
        self.phase.send_if_modified(|phase| {
            let next = match (state, *phase) {
                (Some(BackendState::Serving), _) => Phase::Serving,
                (
                    Some(BackendState::Draining {
                        requests_ms,
                        streams_ms,
                    }),
                    before,
                ) => {
                    let since = match before {
                        Phase::Serving | Phase::Absent => now,
                        Phase::Draining { since, .. } => since,
                    };
                    let requests = Duration::from_millis(requests_ms);
                    Phase::Draining {
                        since,
                        requests,
                        streams: Duration::from_millis(streams_ms),
                    }
                }
                (None, Phase::Serving | Phase::Absent) => Phase::Absent,
                (None, draining @ Phase::Draining { .. }) => draining,
            };
            if *phase != Phase::Serving && next == Phase::Serving {
                self.joined
                    .store(clock::monotonic().as_micros(), Ordering::Relaxed);
            }
            let changed = *phase != next;
            *phase = next;
            changed
        });
        let left = if state.is_some() {
            i64::MAX
        } else {
            clock::monotonic().as_micros()
        };
        let _unchanged = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |before| {
                (state.is_some() || before == i64::MAX).then_some(left)
            });
    }

    /// Whether it left the table at least `age` ago and nothing is in flight.
    pub(crate) fn is_forgettable(&self, now: Timestamp, age: Duration) -> bool {
        let left = Timestamp::from_micros(self.left.load(Ordering::Relaxed));
        now.since(left) >= age && self.entered() == (0, 0)
    }

    pub(crate) fn is_in_table(&self) -> bool {
        self.left.load(Ordering::Relaxed) == i64::MAX
    }

    pub(crate) fn phase(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// When what is in flight to it is cut.
    pub(crate) fn requests_end(&self) -> Option<Instant> {
        match *self.phase.borrow() {
            Phase::Serving | Phase::Absent => None,
            Phase::Draining {
                since, requests, ..
            } => Some(since + requests),
        }
    }

    /// Whether it is on its way out or gone from the table: nothing new may come.
    pub(crate) fn is_leaving(&self) -> bool {
        *self.phase.borrow() != Phase::Serving
    }

    /// Whether its active checks pass.
    pub(crate) fn is_healthy(&self) -> bool {
        self.healthy.load(Ordering::Relaxed)
    }

    /// Whether new requests may go to it.
    pub(crate) fn is_usable(&self, now: Timestamp) -> bool {
        self.is_healthy() && self.ejected_until.load(Ordering::Relaxed) <= now.as_micros()
    }

    /// What it has to carry: requests and streams.
    pub(crate) fn load(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed) + self.streams.load(Ordering::Relaxed)
    }

    pub(crate) fn age(&self, now: Timestamp) -> Duration {
        now.since(Timestamp::from_micros(self.joined.load(Ordering::Relaxed)))
    }

    fn entered(&self) -> (u64, u64) {
        // Requests first: one that becomes a stream raises the other count before it lowers this.
        let in_flight = self.in_flight.load(Ordering::SeqCst);
        let streams = self.streams.load(Ordering::SeqCst);
        (in_flight, streams)
    }

    pub(crate) fn status(&self) -> BackendStatus {
        let (requests_in_flight, streams_open) = self.entered();
        BackendStatus {
            draining: self.is_leaving(),
            requests_in_flight,
            streams_open,
            healthy: self.healthy.load(Ordering::Relaxed),
            ejected: self.ejected_until.load(Ordering::Relaxed) > clock::monotonic().as_micros(),
        }
    }

    pub(crate) fn stats(&self) -> BackendStats {
        let (requests, streams) = self.entered();
        BackendStats {
            in_flight: requests + streams,
            ..self.counters.read()
        }
    }

    /// A request failed here. `others`: how many other backends of the service take requests.
    pub(crate) fn failed(&self, others: usize, policy: &EjectionPolicy) {
        self.counters.failures.add(1);
        self.clean.store(false, Ordering::Relaxed);
        let mut ejection = lock(&self.ejection);
        let Some(pause) = ejection.failure(clock::monotonic(), others, policy) else {
            return;
        };
        self.ejected_until
            .store(ejection.until().as_micros(), Ordering::Relaxed);
        tracing::warn!(backend = %self.id, seconds = pause.as_secs(), "ejected after failures in a row");
    }

    /// A request was answered here.
    pub(crate) fn succeeded(&self, policy: &EjectionPolicy) {
        if self.clean.load(Ordering::Relaxed) {
            return;
        }
        let mut ejection = lock(&self.ejection);
        ejection.success(clock::monotonic(), policy);
        self.clean.store(ejection.is_clean(), Ordering::Relaxed);
    }

    /// Takes the result of an active check in.
    pub(crate) fn checked(&self, passed: bool, check: &HealthCheck) {
        let mut health = lock(&self.health);
        if health.observe(passed, check) {
            self.healthy.store(health.is_healthy(), Ordering::Relaxed);
            tracing::warn!(backend = %self.id, healthy = health.is_healthy(), "active health changed");
        }
    }

    /// No more active checks: what they showed is void.
    pub(crate) fn unchecked(&self) {
        *lock(&self.health) = ActiveHealth::default();
        self.healthy.store(true, Ordering::Relaxed);
    }
}

/// A request on its way to or from a backend. Dropping it leaves.
#[derive(Debug)]
pub(crate) struct InFlight(Arc<Backend>);

impl InFlight {
    pub(crate) fn enter(backend: &Arc<Backend>) -> Self {
        backend.in_flight.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(backend))
    }

    pub(crate) fn backend(&self) -> &Arc<Backend> {
        &self.0
    }

    /// The request became a stream.
    pub(crate) fn into_stream(self) -> OpenStream {
        self.0.streams.fetch_add(1, Ordering::SeqCst);
        self.0.counters.streams_opened.add(1);
        OpenStream {
            backend: Arc::clone(&self.0),
            end: StreamEnd::Ended,
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::SeqCst);
    }
}

/// How a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StreamEnd {
    /// By the client or the instance, in order.
    Ended,
    /// By us, between two messages.
    Drained,
    Cut,
}

/// An open WebSocket or event stream. Dropping it counts how it ended.
#[derive(Debug)]
pub(crate) struct OpenStream {
    backend: Arc<Backend>,
    pub(crate) end: StreamEnd,
}

impl OpenStream {
    pub(crate) fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let counters = &self.backend.counters;
        match self.end {
            StreamEnd::Ended => counters.streams_ended.add(1),
            StreamEnd::Drained => counters.streams_drained.add(1),
            StreamEnd::Cut => counters.streams_cut.add(1),
        }
        self.backend.streams.fetch_sub(1, Ordering::SeqCst);
    }
}

/// One service: what belongs to it and to no backend.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) key: ServiceKey,
    pub(crate) counters: ServiceCounters,
    pub(crate) budget: RetryBudget,
    /// Numbers the requests, for the order of groups.
    pub(crate) turn: AtomicU64,
    /// The same for static files: pages, and what they need. Apart, or every second request of a page with one
    /// script would always be the page.
    pub(crate) page_turn: AtomicU64,
    pub(crate) asset_turn: AtomicU64,
    pub(crate) paused: AtomicU32,
    pub(crate) paused_bytes: AtomicU64,
}

impl Service {
    pub(crate) fn new(key: ServiceKey) -> Self {
        Self {
            key,
            counters: ServiceCounters::default(),
            budget: RetryBudget::default(),
            turn: AtomicU64::new(0),
            page_turn: AtomicU64::new(0),
            asset_turn: AtomicU64::new(0),
            paused: AtomicU32::new(0),
            paused_bytes: AtomicU64::new(0),
        }
    }
}

/// Waits until what is in flight to a draining backend has used up its time.
pub(crate) async fn requests_cut(phase: &mut watch::Receiver<Phase>) {
    loop {
        let now = *phase.borrow_and_update();
        let over = async {
            match now {
                Phase::Serving | Phase::Absent => std::future::pending().await,
                Phase::Draining {
                    since, requests, ..
                } => {
                    tokio::time::sleep_until(since + requests).await;
                }
            }
        };
        tokio::select! {
            () = over => return,
            changed = phase.changed() => if changed.is_err() {
                std::future::pending::<()>().await;
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_draining_ends_what_is_in_flight_and_its_time_begins_when_it_is_first_seen() {
        let service = "shop/production/api".parse().expect("a key");
        let backend = Backend::new("api.r1.1".into(), service, ReleaseId(1), 1);
        let draining = Some(BackendState::Draining {
            requests_ms: 1_000,
            streams_ms: 2_000,
        });
        let phase = || *backend.phase().borrow();
        backend.follow(Some(BackendState::Serving));
        backend.follow(None);
        assert_eq!(phase(), Phase::Absent);
        assert!(backend.is_leaving());
        backend.follow(Some(BackendState::Serving));
        assert_eq!(phase(), Phase::Serving);
        backend.follow(None);
        std::thread::sleep(Duration::from_millis(2));
        let before = clock::instant();
        backend.follow(draining);
        let first = phase();
        let Phase::Draining { since, .. } = first else {
            panic!("not draining: {first:?}");
        };
        assert!(since >= before, "the time out of the table counts not");
        // Seen again, or gone from the table once its drain is published: the same drain goes on.
        backend.follow(draining);
        assert_eq!(phase(), first);
        backend.follow(None);
        assert_eq!(phase(), first);
    }
}
