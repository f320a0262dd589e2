//! Slow answers: evidence per instance and percentile, and what the instances together say.

use std::{collections::BTreeMap, time::Duration};

use landfast_types::{Histogram, InstanceId};
use serde::{Deserialize, Serialize};

use super::{
    AnalysisSettings, Budget, Metric, SUSPICION,
    evidence::{Against, COMPONENTS, Evidence, LATENCY, Share, cap, sum, temper},
    observation::{InstanceObservation, Observation, Stratum},
    reference::Reference,
};

/// Each percentile gets 6.7 % of the false-abort budget in the first step, half as much in each further one.
pub(super) const LATENCY_BUDGET: Budget = Budget {
    first: 0.067,
    further: 0.5,
};

const QUANTILES: [(Metric, f64); 2] = [(Metric::LatencyP95, 0.95), (Metric::LatencyP99, 0.99)];

/// The new side's answers may be slow half again as often: so much difference is still equal.
const TOLERATED: f64 = 1.5;
/// Against the old side of before: twice as slow, twice as often.
const BEFORE_BUCKETS: usize = 4;
const BEFORE_TOLERATED: f64 = 2.0;
/// A percentile must have risen by so many buckets to matter: two are a factor of at least 1.19, 1.41 between
/// equal places in them.
const EFFECT_BUCKETS: usize = 2;
/// One instance alone cannot tell a slow release from a slow machine. Against it count only answers slower than
/// the old release's by these buckets more, a factor of 4: that is beyond machines.
const GROSS_BUCKETS: usize = 8;
/// What one second may add to the evidence of all instances together: a pause of a few seconds convicts nobody.
const NATS_MAX: f64 = 0.8;
/// The same where the old side is known from before only, and a burst that hits both would not be seen to.
const BEFORE_NATS_MAX: f64 = 0.6;
/// One second of one instance is never more than so many answers.
const ANSWERS_MAX: u64 = 20;
/// The old side has no traffic in an interval if it answers less than one in so many.
const OLD_SHARE_MIN: u64 = 50;
/// An instance has a say after so many answers in the step.
const ANSWERS_MIN: u64 = 20;
/// So many instances are followed one by one; further ones are not judged.
const INSTANCES_MAX: usize = 64;
/// An instance that was not seen for so long has left.
const ABSENT_MS_MAX: u32 = 30_000;

/// The latency side of an analysis.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Latencies {
    instances: BTreeMap<InstanceId, Witness>,
    /// Of warm instances, in this step, live and probes apart; the old side in the same intervals.
    new: [Histogram; 2],
    old: [Histogram; 2],
}

/// What one instance of the new release shows.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Witness {
    /// Since its first request, while it had a place in the table.
    age_ms: u32,
    absent_ms: u32,
    /// Judged in this step.
    answers: u64,
    /// For the 95th and the 99th percentile.
    evidence: [Evidence; 2],
    /// That it is slower by a factor of 4.
    gross: [Evidence; 2],
}

/// A percentile that rose.
#[derive(Debug)]
pub(super) struct Slower {
    pub(super) metric: Metric,
    pub(super) old: Duration,
    pub(super) new: Duration,
    pub(super) when: &'static str,
    pub(super) answers: u64,
    pub(super) instances: usize,
    /// Enough to abort; else only enough to doubt.
    pub(super) convicts: bool,
}

impl Latencies {
    pub(super) fn begin_step(&mut self) {
        self.new = Default::default();
        self.old = Default::default();
        for witness in self.instances.values_mut() {
            witness.answers = 0;
            witness.evidence = Default::default();
            witness.gross = Default::default();
        }
    }

    /// How many instances have a say.
    pub(super) fn judged(&self) -> usize {
        self.instances
            .values()
            .filter(|witness| witness.answers >= ANSWERS_MIN)
            .count()
    }

    pub(super) fn observe(
        &mut self,
        observation: &Observation,
        references: [&Reference; 2],
        warm_up_ms: u32,
    ) {
        let warm: Vec<&InstanceObservation> = observation
            .new
            .iter()
            .filter(|seen| {
                self.instances
                    .get(&seen.instance)
                    .is_some_and(|known| known.age_ms >= warm_up_ms)
            })
            .collect();
        self.weigh(observation, &warm, references);
        for (index, stratum) in Stratum::ALL.into_iter().enumerate() {
            if warm.is_empty() {
                break;
            }
            for seen in &warm {
                self.new[index].merge(&stratum.of(seen).latency);
            }
            for seen in &observation.old {
                self.old[index].merge(&stratum.of(seen).latency);
            }
        }
        self.grow_older(observation);
    }

    /// Adds the interval's evidence to each warm instance.
    fn weigh(
        &mut self,
        observation: &Observation,
        warm: &[&InstanceObservation],
        references: [&Reference; 2],
    ) {
        for (place, (_, quantile)) in QUANTILES.into_iter().enumerate() {
            let mut plain = vec![[0.0; COMPONENTS]; warm.len()];
            let mut gross = plain.clone();
            // As many as stay when the most suspicious half is left out.
            let kept = (warm.len() - warm.len() / 2).max(1) as f64;
            for (stratum, reference) in Stratum::ALL.into_iter().zip(references) {
                let Some(mark) = reference.mark(quantile) else {
                    continue;
                };
                let interval = Interval {
                    observation,
                    warm,
                    stratum,
                    mark,
                    quantile,
                };
                interval.weigh(0, kept, &mut plain);
                interval.weigh(GROSS_BUCKETS, kept, &mut gross);
            }
            for ((seen, plain), gross) in warm.iter().zip(plain).zip(gross) {
                if let Some(witness) = self.instances.get_mut(&seen.instance) {
                    witness.evidence[place].add(plain);
                    witness.gross[place].add(gross);
                }
            }
        }
        for seen in warm {
            if let Some(witness) = self.instances.get_mut(&seen.instance) {
                witness.answers += seen.live.latency.count() + seen.probes.latency.count();
            }
        }
    }

    fn grow_older(&mut self, observation: &Observation) {
        for witness in self.instances.values_mut() {
            witness.absent_ms = witness.absent_ms.saturating_add(observation.millis);
        }
        for seen in &observation.new {
            let known = self.instances.contains_key(&seen.instance);
            let began = !seen.live.is_empty() || !seen.probes.is_empty();
            if known || (began && self.instances.len() < INSTANCES_MAX) {
                let witness = self.instances.entry(seen.instance.clone()).or_default();
                witness.absent_ms = 0;
                witness.age_ms = witness.age_ms.saturating_add(observation.millis);
            }
        }
        self.instances
            .retain(|_, witness| witness.absent_ms <= ABSENT_MS_MAX);
    }

    /// The percentile with the strongest evidence that is at least suspicious and rose by enough to matter.
    pub(super) fn finding(
        &self,
        settings: &AnalysisSettings,
        step: u32,
        before: &Reference,
    ) -> Option<Slower> {
        let judged = || {
            self.instances
                .values()
                .filter(|witness| witness.answers >= ANSWERS_MIN)
        };
        let instances = judged().count();
        if instances == 0 {
            return None;
        }
        let needed = LATENCY_BUDGET.nats(settings, step);
        let mut strongest: Option<(f64, Slower)> = None;
        for (place, (metric, quantile)) in QUANTILES.into_iter().enumerate() {
            let members: Vec<Evidence> = judged().map(|witness| witness.evidence[place]).collect();
            let nats = Evidence::least_suspicious_half(&members, &LATENCY);
            if nats < SUSPICION.ln() {
                continue;
            }
            let Some(mut slower) = self.rise(metric, quantile, before, instances) else {
                continue;
            };
            slower.convicts = if instances > 1 {
                nats >= needed
            } else {
                judged().all(|witness| witness.gross[place].nats(&LATENCY) >= needed)
            };
            if strongest.as_ref().is_none_or(|(most, _)| nats > *most) {
                strongest = Some((nats, slower));
            }
        }
        strongest.map(|(_, slower)| slower)
    }

    /// By how much a percentile rose, by the kind of requests there is more of.
    fn rise(
        &self,
        metric: Metric,
        quantile: f64,
        before: &Reference,
        instances: usize,
    ) -> Option<Slower> {
        let live = self.new[0].count() >= self.new[1].count();
        let new = &self.new[usize::from(!live)];
        let same = &self.old[usize::from(!live)];
        let alone = same.count().saturating_mul(OLD_SHARE_MIN) < new.count();
        let (old, when) = if live && alone {
            (before.latency(), "before")
        } else {
            (same, "in the same seconds")
        };
        let (old_bucket, new_bucket) = (
            old.quantile_bucket(quantile)?,
            new.quantile_bucket(quantile)?,
        );
        if new_bucket < old_bucket + EFFECT_BUCKETS {
            return None;
        }
        Some(Slower {
            metric,
            old: old.quantile(quantile)?,
            new: new.quantile(quantile)?,
            when,
            answers: new.count(),
            instances,
            convicts: false,
        })
    }
}

/// One interval, one kind of requests and one percentile.
struct Interval<'a> {
    observation: &'a Observation,
    warm: &'a [&'a InstanceObservation],
    stratum: Stratum,
    mark: usize,
    quantile: f64,
}

impl Interval<'_> {
    /// Adds what it says against each warm instance, if that may be so many buckets slower than the old side.
    fn weigh(&self, buckets: usize, kept: f64, increments: &mut [[f64; COMPONENTS]]) {
        let new = || self.warm.iter().map(|seen| &self.stratum.of(seen).latency);
        let old = || {
            self.observation
                .old
                .iter()
                .map(|seen| &self.stratum.of(seen).latency)
        };
        let new_answers: u64 = new().map(Histogram::count).sum();
        if new_answers == 0 {
            return;
        }
        let old_answers: u64 = old().map(Histogram::count).sum();
        let alone = old_answers.saturating_mul(OLD_SHARE_MIN) < new_answers;
        let share = Share {
            new_events: 0,
            old_events: old().map(|latency| latency.count_above(self.mark)).sum(),
            new_exposure: new_answers,
            old_exposure: old_answers,
            tolerated: TOLERATED,
        };
        for (latency, sums) in new().zip(increments) {
            let exposure = latency.count();
            let added = if alone {
                let events = latency.count_above(self.mark + BEFORE_BUCKETS + buckets);
                let rate = (1.0 - self.quantile) * BEFORE_TOLERATED;
                temper(
                    Against {
                        events,
                        exposure,
                        rate,
                    }
                    .increments(&LATENCY),
                    exposure,
                    ANSWERS_MAX,
                )
            } else {
                let events = latency.count_above(self.mark + buckets);
                let portion = exposure as f64 / new_answers as f64;
                let answers_max = ANSWERS_MAX * self.warm.len() as u64;
                temper(
                    share.apportioned(&LATENCY, events, portion),
                    new_answers,
                    answers_max,
                )
            };
            let nats_max = if alone { BEFORE_NATS_MAX } else { NATS_MAX };
            *sums = cap(sum(*sums, cap(added, nats_max / kept)), NATS_MAX / kept);
        }
    }
}
