//! The arithmetic of evidence: test martingales in logarithms, one component per assumed factor.
//!
//! A component multiplies, interval by interval, a number whose expectation is at most one when the releases are
//! equal. Its value can therefore be looked at after every interval: the chance that it *ever* passes 1/α is at
//! most α (Ville's inequality). Components are kept as whole micro-nats, rounded down, so that a state read
//! back from a journal goes on exactly where it was.

use serde::{Deserialize, Serialize};

/// How many factors are assumed side by side.
pub(super) const COMPONENTS: usize = 4;

const MICRO: f64 = 1e6;

/// No component falls below this. A floor lets evidence that begins late catch up within 10 nats; it adds at
/// most `intervals × e^-10` to the expectation, 3 % of α in ten minutes.
const FLOOR_NATS: f64 = -10.0;

/// The assumed factors of a metric, and how much of the bet is on each.
#[derive(Debug)]
pub(super) struct Mixture {
    pub(super) factors: [f64; COMPONENTS],
    pub(super) weights: [f64; COMPONENTS],
}

/// Errors of the new side × 2, × 4, × 12, or practically all errors. Most of the bet is on the last: it is the one
/// that must be quick.
pub(super) const ERRORS: Mixture = Mixture {
    factors: [2.0, 4.0, 12.0, 1000.0],
    weights: [0.05, 0.05, 0.2, 0.7],
};

/// Slow answers of the new side, beyond the tolerated factor.
pub(super) const LATENCY: Mixture = Mixture {
    factors: [1.5, 2.5, 5.0, 12.0],
    weights: [0.25, 0.25, 0.25, 0.25],
};

/// The evidence of one process, per component, in micro-nats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Evidence([i64; COMPONENTS]);

impl Evidence {
    /// Adds one interval's increments, in nats.
    pub(super) fn add(&mut self, increments: [f64; COMPONENTS]) {
        for (sum, increment) in self.0.iter_mut().zip(increments) {
            let micro = (increment * MICRO).floor() as i64;
            *sum = (*sum + micro).max((FLOOR_NATS * MICRO) as i64);
        }
    }

    /// ln of the weighted sum of the components.
    pub(super) fn nats(&self, mixture: &Mixture) -> f64 {
        let top = self.0.iter().copied().max().unwrap_or(0);
        let terms = self.0.iter().zip(mixture.weights);
        let sum: f64 = terms
            .map(|(micro, weight)| weight * ((micro - top) as f64 / MICRO).exp())
            .sum();
        top as f64 / MICRO + sum.ln()
    }

    /// What is left of a group's evidence when the most suspicious half of its members is left out: per component,
    /// the sum over the others. A release is not blamed for what a minority of its instances shows.
    pub(super) fn least_suspicious_half(members: &[Self], mixture: &Mixture) -> f64 {
        let kept = members.len() - members.len() / 2;
        let mut sums = Self::default();
        for (component, sum) in sums.0.iter_mut().enumerate() {
            let mut values: Vec<i64> = members.iter().map(|member| member.0[component]).collect();
            values.sort_unstable();
            *sum = values.iter().take(kept).sum();
        }
        sums.nats(mixture)
    }
}

/// Two sides in the same interval: each event falls on the new side with the odds of its exposure.
#[derive(Debug, Clone, Copy)]
pub(super) struct Share {
    pub(super) new_events: u64,
    pub(super) old_events: u64,
    pub(super) new_exposure: u64,
    pub(super) old_exposure: u64,
    /// The ratio of rates that still counts as equal.
    pub(super) tolerated: f64,
}

impl Share {
    /// ln of (likelihood if the new side's odds were `factor` times higher) / (likelihood if equal).
    pub(super) fn increments(&self, mixture: &Mixture) -> [f64; COMPONENTS] {
        self.apportioned(mixture, self.new_events, 1.0)
    }

    /// The part of the increments that one member of the new side brings: its own events, and of the old side's
    /// events the portion that belongs to its part of the new side's exposure. The parts add up to the whole.
    pub(super) fn apportioned(
        &self,
        mixture: &Mixture,
        member_events: u64,
        portion: f64,
    ) -> [f64; COMPONENTS] {
        let new = self.tolerated * self.new_exposure as f64;
        let all = new + self.old_exposure as f64;
        if all <= 0.0 {
            return [0.0; COMPONENTS];
        }
        mixture.factors.map(|factor| {
            let normal = ((factor - 1.0) * new / all).ln_1p();
            let own = member_events as f64 * (factor.ln() - normal);
            own - self.old_events as f64 * portion * normal
        })
    }
}

/// One side alone against a rate known from before: used only when the other side gets no traffic.
#[derive(Debug, Clone, Copy)]
pub(super) struct Against {
    pub(super) events: u64,
    pub(super) exposure: u64,
    /// The highest rate that still counts as equal.
    pub(super) rate: f64,
}

impl Against {
    pub(super) fn increments(&self, mixture: &Mixture) -> [f64; COMPONENTS] {
        let base = self.rate.clamp(1e-6, 0.5);
        let quiet = self.exposure.saturating_sub(self.events) as f64;
        mixture.factors.map(|factor| {
            let assumed = (base * factor).min(0.95);
            self.events as f64 * (assumed / base).ln()
                + quiet * ((1.0 - assumed) / (1.0 - base)).ln()
        })
    }
}

/// Counts an interval with many requests as if it held `requests_max`: requests of one second share their luck, so
/// a second is never more than so many witnesses. (A power below one keeps the expectation below one.)
pub(super) fn temper(
    increments: [f64; COMPONENTS],
    requests: u64,
    requests_max: u64,
) -> [f64; COMPONENTS] {
    if requests <= requests_max {
        return increments;
    }
    let power = requests_max as f64 / requests as f64;
    increments.map(|increment| increment * power)
}

/// Cuts what one interval may add, so that it takes several to convict.
pub(super) fn cap(increments: [f64; COMPONENTS], nats_max: f64) -> [f64; COMPONENTS] {
    increments.map(|increment| increment.min(nats_max))
}

pub(super) fn sum(a: [f64; COMPONENTS], b: [f64; COMPONENTS]) -> [f64; COMPONENTS] {
    std::array::from_fn(|component| a[component] + b[component])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binomial(trials: u64, successes: u64, probability: f64) -> f64 {
        let choose = (0..successes).fold(1.0, |product, i| {
            product * (trials - i) as f64 / (i + 1) as f64
        });
        choose
            * probability.powi(successes as i32)
            * (1.0 - probability).powi((trials - successes) as i32)
    }

    #[test]
    fn equal_releases_expect_at_most_the_stake_back() {
        for (new_exposure, old_exposure) in [(1, 19), (5, 15), (1, 1), (19, 1), (1, 0)] {
            for events in [1, 2, 7, 30] {
                let share = new_exposure as f64 / (new_exposure + old_exposure) as f64;
                let mut expected = [0.0; COMPONENTS];
                for new_events in 0..=events {
                    let old_events = events - new_events;
                    let counts = Share {
                        new_events,
                        old_events,
                        new_exposure,
                        old_exposure,
                        tolerated: 1.0,
                    };
                    let increments = counts.increments(&ERRORS);
                    for (sum, increment) in expected.iter_mut().zip(increments) {
                        *sum += binomial(events, new_events, share) * increment.exp();
                    }
                }
                for value in expected {
                    assert!(
                        (value - 1.0).abs() < 1e-9,
                        "{new_exposure}:{old_exposure}: {value}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_part_of_the_new_side_expects_at_most_the_stake_back() {
        // One trial falls on the old side, on the judged member, or (not counted) on another member.
        for (member, others, old) in [
            (1.0, 1.0, 38.0),
            (1.0, 1.0, 2.0),
            (1.0, 9.0, 10.0),
            (2.0, 1.0, 0.1),
        ] {
            for mixture in [&ERRORS, &LATENCY] {
                for tolerated in [1.0, 1.5] {
                    let scale = 1000.0;
                    let counts = |old_events| Share {
                        new_events: 0,
                        old_events,
                        new_exposure: ((member + others) * scale) as u64,
                        old_exposure: (old * scale) as u64,
                        tolerated,
                    };
                    let portion = member / (member + others);
                    let hit = counts(0).apportioned(mixture, 1, portion);
                    let miss = counts(1).apportioned(mixture, 0, portion);
                    let total = tolerated * member + old;
                    for component in 0..COMPONENTS {
                        let expected = (tolerated * member * hit[component].exp()
                            + old * miss[component].exp())
                            / total;
                        assert!(
                            expected <= 1.0 + 1e-9,
                            "{member} {others} {old}: {expected}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn a_rate_known_from_before_expects_at_most_the_stake_back() {
        let mut expected = [0.0; COMPONENTS];
        for events in 0..=40 {
            let increments = Against {
                events,
                exposure: 40,
                rate: 0.1,
            }
            .increments(&LATENCY);
            for (sum, increment) in expected.iter_mut().zip(increments) {
                *sum += binomial(40, events, 0.1) * increment.exp();
            }
        }
        assert!(
            expected.iter().all(|value| (value - 1.0).abs() < 1e-9),
            "{expected:?}"
        );
    }

    #[test]
    fn the_most_suspicious_half_is_left_out() {
        let calm = Evidence([0; COMPONENTS]);
        let loud = Evidence([50_000_000; COMPONENTS]);
        let group = |members: &[Evidence]| Evidence::least_suspicious_half(members, &LATENCY);
        assert!(group(&[calm, loud]) < 1.0);
        assert!(
            group(&[calm, loud, loud]) > 49.0,
            "two of three are a majority"
        );
        assert!(group(&[calm, calm, loud, loud]) < 1.0);
        assert!(group(&[loud]) > 49.0);
    }

    #[test]
    fn evidence_against_has_a_floor() {
        let mut evidence = Evidence::default();
        evidence.add([-1e6; COMPONENTS]);
        evidence.add([20.0; COMPONENTS]);
        assert!((evidence.nats(&ERRORS) - 10.0).abs() < 1e-5);
    }
}
