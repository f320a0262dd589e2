//! What a rollout cost, from the proxy's own counters.
//!
//! The driver hands in whole readings of ever growing counters; the ledger keeps the last one and adds the
//! differences. Because a reading is recorded with its counters, a server that was away loses no count: the
//! next reading covers the gap. A reading of another `boot` (the proxy's worker was replaced) counts from zero;
//! what the worker before had in flight died with it, unless it was asked to end and finished that.
//!
//! The first reading after the end of a rollout closes its ledger. Those of the minute after tell only the
//! latencies it left behind.

use std::{collections::BTreeMap, time::Duration};

use landfast_types::{Histogram, ReleaseId, Timestamp};
use serde::{Deserialize, Serialize};

/// With fewer answers the 99th percentile is the slowest one, which says nothing.
const P99_ANSWERS_MIN: u64 = 100;
/// How long after a rollout latencies are looked at, unless enough answers came before.
const AFTER_MAX: Duration = Duration::from_secs(60);

/// The 99th percentile, where there are answers enough to tell.
pub fn p99(latency: &Histogram) -> Option<Duration> {
    let enough = latency.count() >= P99_ANSWERS_MIN;
    latency.quantile(0.99).filter(|_| enough)
}

/// Ever growing counters of one release, or of the services as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Answers the instances gave.
    pub requests: u64,
    /// Of these, statuses from 500 up.
    pub server_errors: u64,
    /// Attempts that got no whole answer from an instance.
    pub failures: u64,
    /// Of these, answers that broke off after their head.
    #[serde(default)]
    pub broken_off: u64,
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
        self.broken_off += other.broken_off;
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
            broken_off: self.broken_off.saturating_sub(earlier.broken_off),
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
    /// Requests over the rate of their route, answered 429 by the proxy.
    #[serde(default)]
    pub rate_limited: u64,
    /// Requests held by a pause.
    pub paused: u64,
    /// Of the newest pause.
    pub pause_longest_ms: u64,
    /// Requests and streams in flight at that moment.
    #[serde(default)]
    pub in_flight: u64,
    /// The worker before this one finished by itself what it had in flight.
    #[serde(default)]
    pub took_over: bool,
    /// Latencies of the last minute, where somebody kept them.
    #[serde(default)]
    pub recent: Option<Histogram>,
}

/// What happened between the start and the end of a rollout.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Ledger {
    pub releases: BTreeMap<ReleaseId, Counts>,
    /// 502, 503 and 504 that no instance sent. Together with cut streams this is what a rollout must not cost.
    pub ours: u64,
    /// Requests over the rate of their route. They are refused as the manifest asks, and neither lost nor failed.
    #[serde(default)]
    pub rate_limited: u64,
    pub paused: u64,
    pub pause_longest_ms: u64,
    /// In flight when a worker of the proxy died.
    #[serde(default)]
    pub died_in_flight: u64,
    /// Latencies of all releases in the minute before the rollout began; since the start of the proxy's worker
    /// where nobody kept count of minutes.
    pub before: Histogram,
    /// Latencies of all releases after the rollout had ended.
    #[serde(default)]
    pub after: Histogram,
    #[serde(default)]
    closing: Closing,
    last: Option<Reading>,
}

/// Where a ledger is on its way to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
enum Closing {
    /// The rollout runs, or nobody will read the counters for it again.
    #[default]
    No,
    /// The rollout has ended; the next reading closes its account.
    Owed { until: Timestamp },
    /// Further readings tell what it left behind.
    After { until: Timestamp },
}

impl Ledger {
    /// Opens a ledger at a reading taken before the rollout began, if there is one.
    pub(crate) fn open(last: Option<Reading>) -> Self {
        let recent = last.as_ref().and_then(|reading| reading.recent.clone());
        let before = recent.unwrap_or_else(|| {
            let mut before = Histogram::default();
            for counts in last.iter().flat_map(|reading| reading.releases.values()) {
                before.merge(&counts.latency);
            }
            before
        });
        Self {
            before,
            last,
            ..Self::default()
        }
    }

    /// The rollout has ended.
    pub(crate) fn end(&mut self, at: Timestamp) {
        let until = at + AFTER_MAX;
        self.closing = Closing::Owed { until };
    }

    /// Whether readings still tell something about a rollout that has ended.
    pub(crate) fn wants_readings(&self, now: Timestamp) -> bool {
        match self.closing {
            Closing::No => false,
            Closing::Owed { until } => now <= until,
            Closing::After { until } => now <= until && self.after.count() < P99_ANSWERS_MIN,
        }
    }

    /// Takes a reading from after the end in, while there is something to learn from it.
    pub(crate) fn add_after(&mut self, now: Timestamp, reading: &Reading) {
        if !self.wants_readings(now) {
            self.closing = Closing::No;
            return;
        }
        match self.closing {
            Closing::No => {}
            Closing::Owed { until } => {
                self.add(reading);
                self.closing = Closing::After { until };
            }
            Closing::After { .. } => {
                for delta in self.since_last(reading).values() {
                    self.after.merge(&delta.latency);
                }
                self.last = Some(reading.clone());
            }
        }
    }

    /// What each release did since the last reading.
    fn since_last(&self, reading: &Reading) -> BTreeMap<ReleaseId, Counts> {
        let last = self.last.as_ref().filter(|last| last.boot == reading.boot);
        let zero = Counts::default();
        let delta = |(release, counts): (&ReleaseId, &Counts)| {
            let before = last.and_then(|last| last.releases.get(release));
            (*release, counts.since(before.unwrap_or(&zero)))
        };
        reading.releases.iter().map(delta).collect()
    }

    /// Adds what was counted since the last reading.
    pub(crate) fn add(&mut self, reading: &Reading) {
        for (release, delta) in self.since_last(reading) {
            self.releases.entry(release).or_default().add(&delta);
        }
        let fresh = Reading::default();
        let last = match &self.last {
            Some(last) if last.boot == reading.boot => last,
            Some(dead) => {
                if !reading.took_over {
                    self.died_in_flight += dead.in_flight;
                }
                &fresh
            }
            None => &fresh,
        };
        self.ours += reading.ours.saturating_sub(last.ours);
        self.rate_limited += reading.rate_limited.saturating_sub(last.rate_limited);
        self.paused += reading.paused.saturating_sub(last.paused);
        // A wait is known when it is over; by then it may belong to a reading in which nothing more was held.
        if self.paused > 0 {
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

    /// What the rollout cost and must not: our own 5xx, answers that broke off, streams that did not end as
    /// agreed, and what was in flight when a worker of the proxy died.
    pub fn lost(&self) -> u64 {
        let counts = self.releases.values();
        let cut: u64 = counts
            .map(|counts| counts.broken_off + counts.streams_cut)
            .sum();
        self.ours + cut + self.died_in_flight
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

    #[test]
    fn requests_over_their_rate_are_counted_apart_and_are_not_lost() {
        let limited = |boot, rate_limited| Reading {
            rate_limited,
            ..reading(boot, 10, 0)
        };
        let mut ledger = Ledger::open(Some(limited("a", 5)));
        ledger.add(&limited("a", 8));
        ledger.add(&limited("b", 4));
        assert_eq!((ledger.rate_limited, ledger.lost()), (7, 0));
    }

    #[test]
    fn answers_that_break_off_are_lost() {
        let mut ledger = Ledger::open(Some(reading("a", 100, 0)));
        let mut broken = reading("a", 101, 0);
        let counts = broken.releases.get_mut(&ReleaseId(1)).unwrap();
        (counts.failures, counts.broken_off) = (3, 1);
        ledger.add(&broken);
        assert_eq!(ledger.lost(), 1, "the other two were answered elsewhere");
    }

    #[test]
    fn what_a_dead_worker_had_in_flight_is_lost_and_what_a_leaving_one_finishes_is_not() {
        let busy = |boot| Reading {
            in_flight: 5,
            ..reading(boot, 10, 0)
        };
        let mut ledger = Ledger::open(Some(busy("a")));
        ledger.add(&Reading {
            took_over: true,
            ..busy("b")
        });
        assert_eq!(ledger.lost(), 0);
        ledger.add(&reading("c", 1, 0));
        assert_eq!(ledger.lost(), 5);
        ledger.add(&reading("c", 2, 0));
        assert_eq!(ledger.lost(), 5);
    }

    fn timed(requests: u64) -> Reading {
        let mut reading = reading("a", requests, 0);
        let counts = reading.releases.get_mut(&ReleaseId(1)).unwrap();
        let bucket = Histogram::bucket(Duration::from_millis(5));
        counts.latency.add(bucket, requests);
        reading
    }

    #[test]
    fn the_first_reading_after_the_end_closes_the_account_and_later_ones_tell_the_latency_after() {
        let end = Timestamp::EPOCH + Duration::from_secs(1_000);
        let at = |seconds| end + Duration::from_secs(seconds);
        let mut ledger = Ledger::open(Some(timed(10)));
        ledger.add(&timed(20));
        assert!(!ledger.wants_readings(at(0)));
        ledger.end(end);
        assert!(ledger.wants_readings(at(1)));
        ledger.add_after(at(1), &timed(50));
        assert_eq!((ledger.requests(), ledger.during().count()), (40, 40));
        ledger.add_after(at(5), &timed(120));
        assert_eq!((ledger.requests(), ledger.after.count()), (40, 70));
        assert_eq!(p99(&ledger.after), None);
        ledger.add_after(at(10), &timed(160));
        assert!(p99(&ledger.after).is_some());
        assert!(!ledger.wants_readings(at(10)), "enough is known");
        ledger.add_after(at(15), &timed(900));
        assert_eq!((ledger.requests(), ledger.after.count()), (40, 110));
    }

    #[test]
    fn a_reading_long_after_the_end_is_not_of_the_rollout() {
        let mut ledger = Ledger::open(Some(timed(10)));
        ledger.end(Timestamp::EPOCH);
        let late = Timestamp::EPOCH + AFTER_MAX + Duration::from_secs(1);
        assert!(!ledger.wants_readings(late));
        ledger.add_after(late, &timed(1_000));
        assert_eq!((ledger.requests(), ledger.after.count()), (0, 0));
    }

    #[test]
    fn the_minute_before_counts_where_somebody_kept_it() {
        let recent = timed(7).releases[&ReleaseId(1)].latency.clone();
        let last = Reading {
            recent: Some(recent.clone()),
            ..timed(1_000)
        };
        assert_eq!(Ledger::open(Some(last)).before, recent);
        assert_eq!(Ledger::open(Some(timed(1_000))).before.count(), 1_000);
    }

    #[test]
    fn a_pause_is_as_long_as_its_longest_wait_whenever_that_ends() {
        let paused = |paused, pause_longest_ms| Reading {
            paused,
            pause_longest_ms,
            ..reading("a", 1, 0)
        };
        let mut ledger = Ledger::open(Some(paused(4, 900)));
        ledger.add(&paused(4, 900));
        assert_eq!(ledger.pause_longest_ms, 0, "an earlier rollout's");
        ledger.add(&paused(6, 0));
        ledger.add(&paused(6, 250));
        assert_eq!(ledger.pause_longest_ms, 250);
    }

    #[test]
    fn reads_a_ledger_and_a_reading_that_were_written_without_the_newer_fields() {
        let old = r#"{"releases":{},"ours":2,"paused":0,"pause_longest_ms":0,"before":BEFORE,
            "last":{"boot":"a","releases":{},"ours":2,"paused":0,"pause_longest_ms":0}}"#;
        let empty = serde_json::to_string(&Histogram::default()).unwrap();
        let ledger: Ledger = serde_json::from_str(&old.replace("BEFORE", &empty)).unwrap();
        assert_eq!((ledger.lost(), ledger.closing), (2, Closing::No));
    }
}
