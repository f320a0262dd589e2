//! Which backend of a group gets the request: the one with the fewest requests in flight and streams open;
//! among equals they take turns. A backend that just joined is offered only part of the turns until its slow start is over.

use std::time::Duration;

/// A full share, in thousandths.
pub const FULL_SHARE: u32 = 1_000;
/// The share a slow start begins with.
const FIRST_SHARE: u32 = 100;
/// Spreads the turns a partial share may use evenly: prime, and without a common divisor with 1,000.
const SPREAD: u64 = 617;

/// A backend that could take the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Requests under way and streams open.
    pub in_flight: u64,
    /// Thousandths of the turns it may take.
    pub share: u32,
}

/// The share of a backend that joined `age` ago: it grows evenly from a tenth to the whole.
pub fn slow_start_share(age: Duration, slow_start: Duration) -> u32 {
    if age >= slow_start {
        return FULL_SHARE;
    }
    let grown = u128::from(FULL_SHARE - FIRST_SHARE) * age.as_micros() / slow_start.as_micros();
    FIRST_SHARE + u32::try_from(grown).unwrap_or(FULL_SHARE - FIRST_SHARE)
}

/// Picks among `count` backends. `look` tells about one, `None` when it must not be used. `turn` counts the
/// picks of this group. Turns go round among those that can be used: the neighbour of one that cannot must not
/// get its turns as well.
pub fn least_loaded(
    count: usize,
    turn: u64,
    look: impl Fn(usize) -> Option<Candidate>,
) -> Option<usize> {
    let usable = (0..count).filter(|index| look(*index).is_some()).count();
    let first = usize::try_from(turn % (usable.max(1) as u64)).expect("below a length");
    let ticket = turn.wrapping_mul(SPREAD) % u64::from(FULL_SHARE);
    // By load, then by turn.
    let mut best: Option<(u64, usize, usize)> = None;
    let mut spare: Option<(u64, usize, usize)> = None;
    let candidates = (0..count).filter_map(|index| Some((index, look(index)?)));
    for (place, (index, candidate)) in candidates.enumerate() {
        let choice = if ticket < u64::from(candidate.share) {
            &mut best
        } else {
            &mut spare
        };
        let wait = (place + usable - first) % usable.max(1);
        let found = (candidate.in_flight, wait, index);
        if choice.is_none_or(|before| found < before) {
            *choice = Some(found);
        }
    }
    best.or(spare).map(|(_, _, index)| index)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn full(in_flight: u64) -> Option<Candidate> {
        Some(Candidate {
            in_flight,
            share: FULL_SHARE,
        })
    }

    #[test]
    fn equals_take_turns() {
        let picks: Vec<_> = (0..6)
            .map(|turn| least_loaded(3, turn, |_| full(0)))
            .collect();
        assert_eq!(picks, [0, 1, 2, 0, 1, 2].map(Some));
    }

    #[test]
    fn the_turns_of_one_that_is_out_are_shared_by_all_others() {
        let look = |index: usize| if index == 1 { None } else { full(0) };
        let mut hits = [0; 4];
        for turn in 0..300 {
            hits[least_loaded(4, turn, look).expect("three are left")] += 1;
        }
        assert_eq!(hits, [100, 0, 100, 100]);
    }

    #[test]
    fn the_busy_one_waits() {
        for turn in 0..10 {
            assert_eq!(
                least_loaded(3, turn, |index| full([4, 1, 4][index])),
                Some(1)
            );
        }
        assert_eq!(least_loaded(3, 0, |_| None), None);
        assert_eq!(least_loaded(0, 0, |_| full(0)), None);
    }

    #[test]
    fn a_newcomer_gets_its_part_of_the_turns() {
        let look = |index: usize| {
            Some(Candidate {
                in_flight: 0,
                share: [FULL_SHARE, 100][index],
            })
        };
        let hits = (0..2_000)
            .filter(|turn| least_loaded(2, *turn, look) == Some(1))
            .count();
        assert!((50..=200).contains(&hits), "{hits}");
        let alone = |_: usize| {
            Some(Candidate {
                in_flight: 0,
                share: 100,
            })
        };
        assert!((0..2_000).all(|turn| least_loaded(1, turn, alone) == Some(0)));
    }

    proptest! {
        #[test]
        fn shares_grow_and_end_whole(a in 0_u64..20_000, b in 0_u64..20_000) {
            let share = |millis| slow_start_share(Duration::from_millis(millis), Duration::from_secs(10));
            prop_assert!(share(a.min(b)) <= share(a.max(b)));
            prop_assert!(share(a) >= 100 && share(a) <= FULL_SHARE);
            prop_assert_eq!(share(10_000 + a), FULL_SHARE);
        }

        #[test]
        fn a_usable_backend_is_found_whenever_there_is_one(
            loads in prop::collection::vec(prop::option::of((0_u64..50, 100_u32..=1000)), 0..8), turn: u64,
        ) {
            let look = |index: usize| loads[index].map(|(in_flight, share)| Candidate { in_flight, share });
            let pick = least_loaded(loads.len(), turn, look);
            prop_assert_eq!(pick.is_some(), loads.iter().any(Option::is_some));
            if let Some(index) = pick {
                prop_assert!(loads[index].is_some());
            }
        }
    }
}
