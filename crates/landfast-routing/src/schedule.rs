//! Which group gets the next request. The order is fixed when the table is compiled, so the shares are exact
//! over every period and nothing random is involved: with weights 95 and 5, any 20 requests in a row hold
//! exactly one for the second group, spread as evenly as whole requests allow.

/// The longest period kept. Weights whose sum (after division by their common divisor) is larger are scaled.
const PERIOD_MAX: u64 = 2_000;

/// A repeating order of groups.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Schedule {
    slots: Box<[u16]>,
}

impl Schedule {
    /// Lays out groups by weight (the "smooth" weighted round robin). Groups of weight zero never appear.
    pub fn new(weights: &[u32]) -> Self {
        let weights = reduce(weights);
        let total: i64 = weights.iter().sum();
        let mut credit = vec![0_i64; weights.len()];
        let mut slots = Vec::with_capacity(usize::try_from(total).unwrap_or(0));
        for _ in 0..total {
            for (credit, weight) in credit.iter_mut().zip(&weights) {
                *credit += weight;
            }
            let richest = (0..weights.len())
                .filter(|index| weights[*index] > 0)
                .max_by_key(|index| (credit[*index], std::cmp::Reverse(*index)))
                .expect("the total is above zero, so a weight is");
            credit[richest] -= total;
            slots.push(u16::try_from(richest).unwrap_or(u16::MAX));
        }
        Self {
            slots: slots.into(),
        }
    }

    /// The group of the request with this number; `None` when no group has weight.
    pub fn pick(&self, counter: u64) -> Option<usize> {
        let period = self.slots.len() as u64;
        if period == 0 {
            return None;
        }
        let slot = usize::try_from(counter % period).expect("below a length");
        Some(usize::from(self.slots[slot]))
    }

    /// After how many requests the order repeats.
    pub fn period(&self) -> usize {
        self.slots.len()
    }
}

/// Divides by the common divisor; scales what is still too long, keeping at least one slot for every weight.
fn reduce(weights: &[u32]) -> Vec<i64> {
    let divisor = weights
        .iter()
        .fold(0, |divisor, weight| gcd(divisor, *weight))
        .max(1);
    let total: u64 = weights
        .iter()
        .map(|weight| u64::from(weight / divisor))
        .sum();
    let share = |weight: &u32| {
        let weight = u64::from(weight / divisor);
        if total <= PERIOD_MAX || weight == 0 {
            return i64::try_from(weight).expect("a u32 fits");
        }
        i64::try_from((weight * PERIOD_MAX / total).max(1)).expect("below the period")
    };
    weights.iter().map(share).collect()
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn any_twenty_in_a_row_hold_one_of_five_percent() {
        let schedule = Schedule::new(&[95, 5]);
        for start in 0..100_u64 {
            let hits = (start..start + 20)
                .filter(|n| schedule.pick(*n) == Some(1))
                .count();
            assert_eq!(hits, 1, "from {start}");
        }
    }

    #[test]
    fn a_group_without_weight_never_comes_up() {
        let schedule = Schedule::new(&[0, 3, 0]);
        assert!((0..50).all(|n| schedule.pick(n) == Some(1)));
        assert_eq!(Schedule::new(&[0, 0]).pick(7), None);
        assert_eq!(Schedule::new(&[]).pick(7), None);
    }

    proptest! {
        #[test]
        fn every_period_is_exact_and_no_prefix_strays(weights in prop::collection::vec(0_u32..60, 1..5), start in 0_u64..1000) {
            let schedule = Schedule::new(&weights);
            let divisor = weights.iter().fold(0, |d, w| gcd(d, *w)).max(1);
            let total: u32 = weights.iter().sum::<u32>() / divisor;
            prop_assert_eq!(schedule.period(), total as usize);
            let mut counts = vec![0_u32; weights.len()];
            for n in 0..u64::from(total) {
                counts[schedule.pick(start + n).expect("some weight")] += 1;
            }
            for (count, weight) in counts.iter().zip(&weights) {
                prop_assert_eq!(*count, weight / divisor);
            }
            let mut seen = vec![0_f64; weights.len()];
            for n in 0..u64::from(total) {
                seen[schedule.pick(n).expect("some weight")] += 1.0;
                for (seen, weight) in seen.iter().zip(&weights) {
                    let due = f64::from(weight / divisor) / f64::from(total) * (n + 1) as f64;
                    prop_assert!((seen - due).abs() <= weights.len() as f64);
                }
            }
        }

        #[test]
        fn huge_weights_keep_every_group(a in 1_u32.., b in 1_u32..) {
            let schedule = Schedule::new(&[a, b]);
            prop_assert!(schedule.period() <= 2_002);
            let hit = |group| (0..schedule.period() as u64).any(|n| schedule.pick(n) == Some(group));
            prop_assert!(hit(0) && hit(1));
        }
    }
}
