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
    /// The full block before the current one.
    previous: Block,
    /// That one and the current one together.
    all: Block,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Block {
    intervals: u32,
    tally: Tally,
    latency: Histogram,
}

impl Block {
    /// What came after `earlier`, which is a part of this block.
    fn since(&self, earlier: &Self) -> Self {
        Self {
            intervals: self.intervals.saturating_sub(earlier.intervals),
            tally: self.tally.minus(earlier.tally),
            latency: self.latency.since(&earlier.latency),
        }
    }
}

impl Reference {
    pub(super) fn observe(&mut self, old: &[InstanceObservation], stratum: Stratum) {
        let tally = Tally::of(old, stratum);
        if tally.requests == 0 {
            return;
        }
        if self.all.intervals >= self.previous.intervals.saturating_add(BLOCK_INTERVALS) {
            self.previous = self.all.since(&self.previous);
            self.all = self.previous.clone();
        }
        self.all.intervals = self.all.intervals.saturating_add(1);
        self.all.tally = self.all.tally.plus(tally);
        for instance in old {
            self.all.latency.merge(&stratum.of(instance).latency);
        }
    }

    pub(super) fn tally(&self) -> Tally {
        self.all.tally
    }

    pub(super) fn latency(&self) -> &Histogram {
        &self.all.latency
    }

    /// The bucket after which an answer counts as slow, once there is enough to say so.
    pub(super) fn mark(&self, quantile: f64) -> Option<usize> {
        let enough = (4.0 / (1.0 - quantile)) as u64;
        let latency = &self.all.latency;
        if latency.count() < enough {
            None
        } else {
            latency.quantile_bucket(quantile)
        }
    }
}
