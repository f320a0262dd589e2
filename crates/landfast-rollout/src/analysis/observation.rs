//! What the analysis is shown: the counts of one short interval, old and new side by side.

use landfast_types::{Histogram, InstanceId};
use serde::{Deserialize, Serialize};

/// What both releases did in one interval, usually a second.
///
/// Requests count when their answer ends them, on both sides alike. An instance that got nothing may be left out.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Observation {
    /// How long the interval was.
    pub millis: u32,
    pub old: Vec<InstanceObservation>,
    pub new: Vec<InstanceObservation>,
}

/// One instance in one interval.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceObservation {
    pub instance: InstanceId,
    /// Requests of clients, as the proxy counted them.
    #[serde(default, skip_serializing_if = "Sample::is_empty")]
    pub live: Sample,
    /// Requests of our own, sent equally to both sides. Kept apart from the live ones: the paths they ask for
    /// are others, and a mixture in unequal parts would make equal releases look different.
    #[serde(default, skip_serializing_if = "Sample::is_empty")]
    pub probes: Sample,
}

/// Counts of one instance, one kind of request and one interval.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Sample {
    /// All that ended, well or badly.
    pub requests: u64,
    /// Of these: answered 5xx, or without a whole answer (connect errors, resets, timeouts, short bodies).
    pub errors: u64,
    /// Latencies of those that were answered.
    pub latency: Histogram,
}

impl Sample {
    /// Whether nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.requests == 0 && self.latency.counts().is_empty()
    }
}

/// The two kinds of requests, which are never compared with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stratum {
    Live,
    Probes,
}

impl Stratum {
    pub(super) const ALL: [Self; 2] = [Self::Live, Self::Probes];

    pub(super) fn of(self, observation: &InstanceObservation) -> &Sample {
        match self {
            Self::Live => &observation.live,
            Self::Probes => &observation.probes,
        }
    }
}

/// Requests and errors of a whole side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Tally {
    pub(super) requests: u64,
    pub(super) errors: u64,
}

impl Tally {
    pub(super) fn of(side: &[InstanceObservation], stratum: Stratum) -> Self {
        side.iter().fold(Self::default(), |sum, instance| {
            let sample = stratum.of(instance);
            sum.plus(Self {
                requests: sample.requests,
                errors: sample.errors,
            })
        })
    }

    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            requests: self.requests.saturating_add(other.requests),
            errors: self.errors.saturating_add(other.errors),
        }
    }

    pub(super) fn minus(self, other: Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(other.requests),
            errors: self.errors.saturating_sub(other.errors),
        }
    }

    /// The share that failed, from 0 to 1.
    pub(super) fn rate(self) -> f64 {
        self.errors as f64 / (self.requests.max(1)) as f64
    }
}
