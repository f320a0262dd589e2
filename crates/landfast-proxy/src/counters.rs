//! Counters that many threads raise and the control thread reads.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use landfast_routing::snapshot::{BackendStats, ServiceStats};
use landfast_types::Histogram;

/// A number that grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn raise_to(&self, value: u64) {
        self.0.fetch_max(value, Ordering::Relaxed);
    }

    /// Back to zero: for the one that is a maximum, not a count.
    pub(crate) fn reset(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counts by status class.
#[derive(Debug, Default)]
pub(crate) struct Statuses([Counter; 5]);

impl Statuses {
    pub(crate) fn count(&self, status: u16) {
        let class = usize::from(status / 100).clamp(1, 5) - 1;
        self.0[class].add(1);
    }

    pub(crate) fn read(&self) -> [u64; 5] {
        std::array::from_fn(|class| self.0[class].get())
    }
}

/// See [`BackendStats`].
#[derive(Debug)]
pub(crate) struct BackendCounters {
    pub(crate) statuses: Statuses,
    pub(crate) failures: Counter,
    pub(crate) broken_off: Counter,
    pub(crate) retried: Counter,
    latency: Box<[Counter]>,
    pub(crate) streams_opened: Counter,
    pub(crate) streams_ended: Counter,
    pub(crate) streams_drained: Counter,
    pub(crate) streams_cut: Counter,
    pub(crate) bytes_in: Counter,
    pub(crate) bytes_out: Counter,
}

impl Default for BackendCounters {
    fn default() -> Self {
        Self {
            statuses: Statuses::default(),
            failures: Counter::default(),
            broken_off: Counter::default(),
            retried: Counter::default(),
            latency: (0..Histogram::buckets())
                .map(|_| Counter::default())
                .collect(),
            streams_opened: Counter::default(),
            streams_ended: Counter::default(),
            streams_drained: Counter::default(),
            streams_cut: Counter::default(),
            bytes_in: Counter::default(),
            bytes_out: Counter::default(),
        }
    }
}

impl BackendCounters {
    pub(crate) fn answered(&self, status: u16, latency: Duration) {
        self.statuses.count(status);
        self.latency[Histogram::bucket(latency)].add(1);
    }

    pub(crate) fn read(&self) -> BackendStats {
        let mut latency = Histogram::default();
        for (bucket, counter) in self.latency.iter().enumerate() {
            let count = counter.get();
            if count > 0 {
                latency.add(bucket, count);
            }
        }
        BackendStats {
            statuses: self.statuses.read(),
            failures: self.failures.get(),
            broken_off: self.broken_off.get(),
            retried: self.retried.get(),
            in_flight: 0,
            latency,
            streams_opened: self.streams_opened.get(),
            streams_ended: self.streams_ended.get(),
            streams_drained: self.streams_drained.get(),
            streams_cut: self.streams_cut.get(),
            bytes_in: self.bytes_in.get(),
            bytes_out: self.bytes_out.get(),
        }
    }
}

/// See [`ServiceStats`].
#[derive(Debug, Default)]
pub(crate) struct ServiceCounters {
    pub(crate) requests: Counter,
    pub(crate) unavailable: Counter,
    pub(crate) gateway_errors: Counter,
    pub(crate) refused: Counter,
    pub(crate) rate_limited: Counter,
    pub(crate) denied: Counter,
    pub(crate) paused: Counter,
    pub(crate) pause_longest_ms: Counter,
    pub(crate) pause_rejected: Counter,
    pub(crate) maintenance: Counter,
    pub(crate) client_gone: Counter,
}

impl ServiceCounters {
    pub(crate) fn read(&self) -> ServiceStats {
        ServiceStats {
            requests: self.requests.get(),
            unavailable: self.unavailable.get(),
            gateway_errors: self.gateway_errors.get(),
            refused: self.refused.get(),
            rate_limited: self.rate_limited.get(),
            denied: self.denied.get(),
            paused: self.paused.get(),
            pause_longest_ms: self.pause_longest_ms.get(),
            pause_rejected: self.pause_rejected.get(),
            maintenance: self.maintenance.get(),
            client_gone: self.client_gone.get(),
        }
    }
}
