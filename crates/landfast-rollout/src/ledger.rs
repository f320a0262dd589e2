//! What a rollout cost, from the proxy's own counters.
//!
//! The driver hands in whole readings of ever growing counters; the ledger keeps the last one and adds the
//! differences. Because a reading is recorded with its counters, a server that was away loses no count: the
//! next reading covers the gap. A reading of another `boot` (the proxy's worker was replaced) counts from zero.

use std::collections::BTreeMap;

use landfast_types::{Histogram, ReleaseId};
use serde::{Deserialize, Serialize};

/// Ever growing counters of one release, or of the services as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Answers the instances gave.
    pub requests: u64,
    /// Of these, statuses from 500 up.
    pub server_errors: u64,
    /// Attempts that got no whole answer from an instance.
    pub failures: u64,
    pub retried: u64,
    pub streams_opened: u64,
    pub streams_ended: u64,
    /// Ended by us in a drain, as agreed: Close 1012, or between two events.
    pub streams_drained: u64,
    /// Ended in any other way.
    pub streams_cut: u64,
    pub latency: Histogram,
}

impl Counts {
    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.server_errors += other.server_errors;
        self.failures += other.failures;
        self.retried += other.retried;
        self.streams_opened += other.streams_opened;
        self.streams_ended += other.streams_ended;
        self.streams_drained += other.streams_drained;
        self.streams_cut += other.streams_cut;
        self.latency.merge(&other.latency);
    }

    fn since(&self, earlier: &Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(earlier.requests),
            server_errors: self.server_errors.saturating_sub(earlier.server_errors),
            failures: self.failures.saturating_sub(earlier.failures),
            retried: self.retried.saturating_sub(earlier.retried),
            streams_opened: self.streams_opened.saturating_sub(earlier.streams_opened),
            streams_ended: self.streams_ended.saturating_sub(earlier.streams_ended),
            streams_drained: self.streams_drained.saturating_sub(earlier.streams_drained),
            streams_cut: self.streams_cut.saturating_sub(earlier.streams_cut),
            latency: self.latency.since(&earlier.latency),
        }
    }
}

/// One look at the proxy's counters of an environment.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Reading {
    /// Which life of the proxy's worker counted.
    pub boot: String,
    pub releases: BTreeMap<ReleaseId, Counts>,
    /// Answers that were ours, not an instance's: 502, 503, 504.
    pub ours: u64,
    /// Requests held by a pause.
    pub paused: u64,
    pub pause_longest_ms: u64,
}

/// What happened between the start and the end of a rollout.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Ledger {
    pub releases: BTreeMap<ReleaseId, Counts>,
    /// 502, 503 and 504 that no instance sent. Together with cut streams this is what a rollout must not cost.
    pub ours: u64,
    pub paused: u64,
    pub pause_longest_ms: u64,
    /// Latencies of all releases from the process start to the rollout's start.
    pub before: Histogram,
    last: Option<Reading>,
}

impl Ledger {
    /// Opens a ledger at a reading taken before the rollout began, if there is one.
    pub(crate) fn open(last: Option<Reading>) -> Self {
        let mut before = Histogram::default();
        for counts in last.iter().flat_map(|reading| reading.releases.values()) {
            before.merge(&counts.latency);
        }
        Self {
            before,
            last,
            ..Self::default()
        }
    }

    /// Adds what was counted since the last reading.
    pub(crate) fn add(&mut self, reading: &Reading) {
        let fresh = Reading::default();
        let last = self
            .last
            .as_ref()
            .filter(|last| last.boot == reading.boot)
            .unwrap_or(&fresh);
        let zero = Counts::default();
        for (release, counts) in &reading.releases {
            let delta = counts.since(last.releases.get(release).unwrap_or(&zero));
            self.releases.entry(*release).or_default().add(&delta);
        }
        self.ours += reading.ours.saturating_sub(last.ours);
        self.paused += reading.paused.saturating_sub(last.paused);
        if reading.paused > last.paused {
            self.pause_longest_ms = self.pause_longest_ms.max(reading.pause_longest_ms);
        }
        self.last = Some(reading.clone());
    }

    /// The newest reading, to open the next ledger with.
    pub(crate) fn last(&self) -> Option<&Reading> {
        self.last.as_ref()
    }

    /// Answers of instances, all releases together.
    pub fn requests(&self) -> u64 {
        self.releases.values().map(|counts| counts.requests).sum()
    }

    /// What the rollout cost and must not: our own 5xx, and streams that did not end as agreed.
    pub fn lost(&self) -> u64 {
        self.ours
            + self
                .releases
                .values()
                .map(|counts| counts.streams_cut)
                .sum::<u64>()
    }

    /// Latencies while the rollout ran.
    pub fn during(&self) -> Histogram {
        let mut during = Histogram::default();
        for counts in self.releases.values() {
            during.merge(&counts.latency);
        }
        during
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(boot: &str, requests: u64, ours: u64) -> Reading {
        let counts = Counts {
            requests,
            ..Counts::default()
        };
        let releases = [(ReleaseId(1), counts)].into();
        Reading {
            boot: boot.into(),
            releases,
            ours,
            ..Reading::default()
        }
    }

    #[test]
    fn counts_what_happened_between_two_readings() {
        let mut ledger = Ledger::open(Some(reading("a", 100, 3)));
        ledger.add(&reading("a", 150, 3));
        ledger.add(&reading("a", 160, 4));
        assert_eq!((ledger.requests(), ledger.lost()), (60, 1));
    }

    #[test]
    fn starts_at_zero_after_the_proxy_was_replaced() {
        let mut ledger = Ledger::open(Some(reading("a", 100, 3)));
        ledger.add(&reading("b", 7, 0));
        ledger.add(&reading("b", 9, 1));
        assert_eq!((ledger.requests(), ledger.lost()), (9, 1));
    }
}
