//! Who may have how many descriptors open. The kernel has one limit for the whole process; without shares of it,
//! whoever comes first takes all, and the control socket, which ends an overload, is the first to go without.
//!
//! - *Our own* ([`OWN`] and some for each thread): listeners, event loops, control, logs, routes, certificates. Nobody
//!   else may have these.
//! - *Clients* have at most what is left less one part in [`BACKENDS_PART`]. Who comes when there is no room is refused
//!   at once: waiting in the backlog would be a timeout without a word.
//! - *Backends* and files that are sent have all that clients leave. A request that finds nothing for a moment is
//!   answered 503, and its connection stays.
//! - *Checks* of backends have [`CHECKS_MAX`] of our own where nothing else is left, so that a host at its limit still
//!   learns which backends serve.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::Notify;

use crate::counters::Counter;

/// Neither a client's nor a backend's.
const OWN: u64 = 64;
/// Each serving thread: its event loop, what wakes it, and a connection that is looked at before it is let in. Beside
/// these, its own descriptor of each listener.
const OWN_OF_THREAD: u64 = 3;
/// The part of all descriptors that clients leave to the backends. Most connections idle, and an idle one needs no
/// backend.
const BACKENDS_PART: u64 = 11;
const CLIENTS_MIN: u64 = 16;
const CHECKS_MAX: usize = 16;
/// Clients that are told why they are not served, at a time; further ones are closed without a word.
const REFUSALS_MAX: usize = 16;

/// So many of something, and how many of them are taken.
#[derive(Debug)]
pub(crate) struct Budget {
    max: usize,
    taken: AtomicUsize,
}

/// One of a budget. Dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Taken(Arc<Budget>);

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Budget {
    fn new(max: usize) -> Arc<Self> {
        Arc::new(Self {
            max,
            taken: AtomicUsize::new(0),
        })
    }

    fn take(self: &Arc<Self>) -> Option<Taken> {
        let more = |taken: usize| (taken < self.max).then_some(taken + 1);
        let taken = self
            .taken
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, more);
        taken.is_ok().then(|| Taken(Arc::clone(self)))
    }

    pub(crate) fn max(&self) -> usize {
        self.max
    }

    pub(crate) fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }
}

/// A client's connection: one of all descriptors, and one of the clients' share.
pub(crate) type ClientPlace = (Taken, Taken);

/// See the head of the module.
#[derive(Debug)]
pub(crate) struct Descriptors {
    /// Of clients, backends and files together.
    pub(crate) shared: Arc<Budget>,
    pub(crate) clients: Arc<Budget>,
    checks: Arc<Budget>,
    refusals: Arc<Budget>,
    /// Clients that found no room.
    pub(crate) refused: Counter,
    /// Somebody needs one that an idle connection to a backend has.
    pub(crate) wanted: Notify,
}

impl Descriptors {
    /// `limit`: of the process. `clients_max`: zero for what the limit leaves room for.
    pub(crate) fn new(
        limit: Option<u64>,
        threads: usize,
        listeners: usize,
        clients_max: usize,
    ) -> Self {
        let (shared, clients) = shares(limit, threads as u64, listeners as u64);
        let clients = match clients_max {
            0 => clients,
            given => given,
        };
        Self {
            shared: Budget::new(shared),
            clients: Budget::new(clients),
            checks: Budget::new(CHECKS_MAX),
            refusals: Budget::new(REFUSALS_MAX),
            refused: Counter::default(),
            wanted: Notify::new(),
        }
    }

    /// For a client that has connected.
    pub(crate) fn admit(&self) -> Option<ClientPlace> {
        let clients = self.clients.take()?;
        let place = self.shared.take().map(|shared| (shared, clients));
        if place.is_none() {
            self.wanted.notify_waiters();
        }
        place
    }

    /// For a connection to a backend, or a file. Where there is none, idle connections to backends are let go.
    pub(crate) fn take(&self) -> Option<Taken> {
        let taken = self.shared.take();
        if taken.is_none() {
            self.wanted.notify_waiters();
        }
        taken
    }

    /// For a check of a backend.
    pub(crate) fn take_for_check(&self) -> Option<Taken> {
        self.shared.take().or_else(|| self.checks.take())
    }

    /// For telling a client that it is not served.
    pub(crate) fn refuse(&self) -> Option<Taken> {
        self.refused.add(1);
        self.refusals.take()
    }
}

/// What is not our own, and how much of it clients may have.
fn shares(limit: Option<u64>, threads: u64, listeners: u64) -> (usize, usize) {
    let Some(limit) = limit else {
        return (usize::MAX, usize::MAX);
    };
    let own = OWN + threads * (OWN_OF_THREAD + listeners);
    // A limit that leaves nothing is one that serves nobody; better a few with luck.
    let shared = limit.saturating_sub(own).max(2 * CLIENTS_MIN);
    let clients = shared
        .saturating_sub(limit / BACKENDS_PART)
        .max(CLIENTS_MIN);
    let whole = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    (whole(shared), whole(clients))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_leave_a_part_to_the_backends_and_both_leave_ours() {
        for (limit, threads, expected) in [
            (Some(10), 2, (32, 32)),
            (Some(256), 2, (180, 157)),
            (Some(1_024), 2, (948, 855)),
            (Some(20_000), 2, (19_924, 18_106)),
            (Some(20_000), 64, (19_552, 17_734)),
            (None, 2, (usize::MAX, usize::MAX)),
        ] {
            assert_eq!(shares(limit, threads, 3), expected, "{limit:?}");
        }
    }

    #[test]
    fn backends_have_what_clients_leave_and_checks_some_of_their_own() {
        let descriptors = Descriptors::new(Some(256), 2, 3, 0);
        let mut clients: Vec<_> = (0..157).map_while(|_| descriptors.admit()).collect();
        assert_eq!(clients.len(), 157);
        assert!(descriptors.admit().is_none());
        let mut backends: Vec<_> = (0..100).map_while(|_| descriptors.take()).collect();
        assert_eq!(backends.len(), 180 - 157);
        assert!(descriptors.take_for_check().is_some());
        clients.truncate(100);
        backends.extend((0..100).map_while(|_| descriptors.take()));
        assert_eq!(backends.len(), 80);
        // Their share is free, but somebody else has the descriptors.
        assert!(descriptors.admit().is_none());
        assert_eq!(descriptors.clients.taken(), 100, "nothing is kept of it");
        drop((clients, backends));
        assert_eq!(descriptors.shared.taken(), 0);
    }
}
