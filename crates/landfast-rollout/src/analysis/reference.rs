//! What the old release was like a moment ago: the mark that says "slow", and the rates to compare with when the
//! old side gets no traffic any more.

use landfast_types::Histogram;
use serde::{Deserialize, Serialize};

use super::observation::{InstanceObservation, Stratum, Tally};

/// A block is full after so many intervals in which the old side answered something.
const BLOCK_INTERVALS: u32 = 60;

/// The old side's last one to two minutes *with traffic*: it stands still while there is none.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Reference {
    previous: Block,
    current: Block,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Block {
    intervals: u32,
    tally: Tally,
    latency: Histogram,
}

impl Reference {
    pub(super) fn observe(&mut self, old: &[InstanceObservation], stratum: Stratum) {
        let tally = Tally::of(old, stratum);
        if tally.requests == 0 {
            return;
        }
        if self.current.intervals >= BLOCK_INTERVALS {
            self.previous = std::mem::take(&mut self.current);
        }
        self.current.intervals += 1;
        self.current.tally = self.current.tally.plus(tally);
        for instance in old {
            self.current.latency.merge(&stratum.of(instance).latency);
        }
    }

    pub(super) fn tally(&self) -> Tally {
        self.previous.tally.plus(self.current.tally)
    }

    pub(super) fn latency(&self) -> Histogram {
        let mut latency = self.previous.latency.clone();
        latency.merge(&self.current.latency);
        latency
    }

    /// The bucket after which an answer counts as slow, once there is enough to say so.
    pub(super) fn mark(&self, quantile: f64) -> Option<usize> {
        let latency = self.latency();
        let enough = (4.0 / (1.0 - quantile)) as u64;
        if latency.count() < enough {
            None
        } else {
            latency.quantile_bucket(quantile)
        }
    }
}
