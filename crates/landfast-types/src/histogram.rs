//! A latency histogram with fixed, logarithmic buckets: small, mergeable, and equal on both ends of a wire.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Buckets per doubling of the latency: each is about 19 % wide.
const PER_OCTAVE: u32 = 4;
/// Octaves from 64 µs to over two minutes.
const OCTAVES: u32 = 21;
const BASE_MICROS: f64 = 64.0;
const BUCKETS: usize = (PER_OCTAVE * OCTAVES) as usize + 2;

/// Counts of latencies in buckets whose bounds grow by 2^(1/4), from 64 µs up. Counts only grow, so the
/// difference of two readings is the histogram of what happened between them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Histogram {
    /// Trailing empty buckets are not kept.
    counts: Vec<u64>,
}

impl Histogram {
    /// Counts one latency.
    pub fn record(&mut self, latency: Duration) {
        self.add(Self::bucket(latency), 1);
    }

    /// Adds `count` to bucket `index`; indices past the last bucket count in the last.
    pub fn add(&mut self, index: usize, count: u64) {
        let index = index.min(BUCKETS - 1);
        if self.counts.len() <= index {
            self.counts.resize(index + 1, 0);
        }
        self.counts[index] = self.counts[index].saturating_add(count);
    }

    /// The bucket a latency falls into, for counters kept outside (an array of atomics, say).
    pub fn bucket(latency: Duration) -> usize {
        let micros = latency.as_secs_f64() * 1e6;
        if micros < BASE_MICROS {
            return 0;
        }
        let octaves = (micros / BASE_MICROS).log2();
        ((octaves * f64::from(PER_OCTAVE)) as usize + 1).min(BUCKETS - 1)
    }

    /// How many buckets there are.
    pub const fn buckets() -> usize {
        BUCKETS
    }

    /// The upper bound of a bucket; the last has none.
    pub fn bound(index: usize) -> Option<Duration> {
        if index + 1 >= BUCKETS {
            return None;
        }
        let micros = BASE_MICROS * (index as f64 / f64::from(PER_OCTAVE)).exp2();
        Some(Duration::from_secs_f64(micros / 1e6))
    }

    /// How many latencies were counted.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The counts from the fastest bucket up; missing ones are zero.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// How many latencies fell into buckets after `index`.
    pub fn count_above(&self, index: usize) -> u64 {
        self.counts.iter().skip(index + 1).sum()
    }

    /// Adds another histogram to this one.
    pub fn merge(&mut self, other: &Self) {
        for (index, count) in other.counts.iter().enumerate() {
            self.add(index, *count);
        }
    }

    /// What was counted since `earlier`, a reading of the same histogram. Where `earlier` counts more (the
    /// process behind it was replaced), the bucket counts as zero.
    pub fn since(&self, earlier: &Self) -> Self {
        let before = |index: usize| earlier.counts.get(index).copied().unwrap_or(0);
        let delta = self
            .counts
            .iter()
            .enumerate()
            .map(|(i, n)| n.saturating_sub(before(i)));
        Self {
            counts: delta.collect(),
        }
    }

    /// The bucket in which the given quantile (0 to 1) lies; `None` when nothing was counted.
    pub fn quantile_bucket(&self, quantile: f64) -> Option<usize> {
        let total = self.count();
        let rank = ((total as f64) * quantile.clamp(0.0, 1.0)).ceil().max(1.0) as u64;
        let mut seen = 0;
        self.counts.iter().position(|count| {
            seen += count;
            total > 0 && seen >= rank
        })
    }

    /// The upper bound of the bucket in which the given quantile lies: at most 19 % above the true value.
    pub fn quantile(&self, quantile: f64) -> Option<Duration> {
        let index = self.quantile_bucket(quantile)?;
        Some(Self::bound(index).unwrap_or(Duration::from_secs(135)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_at_most_a_bucket_above_the_truth() {
        let mut histogram = Histogram::default();
        for millis in 1..=1000 {
            histogram.record(Duration::from_millis(millis));
        }
        for (quantile, truth) in [(0.5, 500.0), (0.95, 950.0), (0.99, 990.0)] {
            let found = histogram.quantile(quantile).expect("counted").as_secs_f64() * 1e3;
            assert!(
                found >= truth * 0.999 && found <= truth * 1.19,
                "{quantile}: {found}"
            );
        }
        assert_eq!(Histogram::default().quantile(0.5), None);
    }

    #[test]
    fn bounds_and_buckets_agree() {
        for index in 0..Histogram::buckets() - 1 {
            let bound = Histogram::bound(index).expect("not the last");
            assert_eq!(Histogram::bucket(bound.mul_f64(0.999)), index);
            assert_eq!(Histogram::bucket(bound.mul_f64(1.001)), index + 1);
        }
        assert_eq!(
            Histogram::bucket(Duration::from_secs(1 << 20)),
            Histogram::buckets() - 1
        );
    }

    #[test]
    fn the_difference_of_two_readings_is_what_happened_between() {
        let mut histogram = Histogram::default();
        histogram.record(Duration::from_millis(3));
        let before = histogram.clone();
        histogram.record(Duration::from_secs(3));
        assert_eq!(histogram.since(&before).count(), 1);
        assert_eq!(
            histogram.since(&before).quantile(0.5),
            histogram.quantile(0.99)
        );
    }
}
