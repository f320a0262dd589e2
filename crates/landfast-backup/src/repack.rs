//! Which packs a backup refers to no longer, so that a repository does not keep what nothing needs.
//!
//! A pack stays as long as one page of it is referred to. Pages change, so ever less of an old pack is needed, and still all of it is
//! kept. A backup reads the server whole anyway: it may store a page again that has not changed, and its pack is free once older
//! backups are gone. The bound is on the whole: what a backup refers to is at most so many times what it needs. The packs with the least
//! that is needed go first, because each byte that is stored again frees most there. So little is stored again at a time: about as much as
//! went out of use since the backup before.
//!
//! A crash leaves what it leaves of any backup: new packs that no manifest names. The old ones go when no manifest names them.

/// How much of a pack the newest backup refers to, in bytes as they are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackShare {
    pub stored: u64,
    pub live: u64,
}

/// Packs a backup refers to may hold so many percent more than it needs.
pub const WASTE_PERCENT_MAX: u64 = 100;

/// The packs to be left, by their place: as few bytes stored again as it takes until the rest holds at most `waste_percent_max` more than is
/// needed of all.
pub fn packs_to_leave(packs: &[PackShare], waste_percent_max: u64) -> Vec<usize> {
    let live: u64 = packs.iter().map(|pack| pack.live).sum();
    let waste_max = u128::from(live) * u128::from(waste_percent_max) / 100;
    let waste = |pack: &PackShare| u128::from(pack.stored.saturating_sub(pack.live));
    let mut left_over: u128 = packs.iter().map(waste).sum();
    let wasting = packs.iter().enumerate().filter(|(_, pack)| waste(pack) > 0);
    let mut least_live: Vec<_> = wasting.collect();
    // By live ÷ stored, without a division; the older one first where that is equal.
    least_live.sort_by(|(_, a), (_, b)| {
        let (a, b) = (
            u128::from(a.live) * u128::from(b.stored),
            u128::from(b.live) * u128::from(a.stored),
        );
        a.cmp(&b)
    });
    let mut left = Vec::new();
    for (place, pack) in least_live {
        if left_over <= waste_max {
            break;
        }
        left_over -= waste(pack);
        left.push(place);
    }
    left.sort_unstable();
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(packs: &[(u64, u64)], expected: &[usize]) {
        let packs: Vec<_> = packs
            .iter()
            .map(|(stored, live)| PackShare {
                stored: *stored,
                live: *live,
            })
            .collect();
        assert_eq!(packs_to_leave(&packs, 100), expected, "{packs:?}");
    }

    #[test]
    fn leaves_the_emptiest_until_the_rest_is_within_the_bound() {
        check(&[], &[]);
        // All that is stored is needed, or nearly.
        check(&[(100, 100), (100, 90)], &[]);
        // 300 for 150: just within.
        check(&[(100, 10), (100, 40), (100, 100)], &[]);
        // 400 for 190: the emptiest one goes, and 300 for 190 is left.
        check(&[(100, 40), (100, 10), (100, 40), (100, 100)], &[1]);
        // Lengths count, not numbers: of equal shares the older one goes.
        check(&[(1_000, 300), (10, 3)], &[0]);
        check(&[(100, 0), (100, 0), (100, 20)], &[0, 1, 2]);
        check(&[(100, 0), (100, 0), (100, 60)], &[0, 1]);
        // What is said to be longer than it is bounds nothing.
        check(&[(10, 12), (0, 0)], &[]);
    }

    /// Backups one behind the other: in each, `changed` pages of every hundred get a new place. Gives what was stored in all, and the
    /// most that the packs of one backup held.
    fn live(pages: usize, changed: usize, backups: usize, seed: u64) -> (u64, u64) {
        let mut state = seed | 1;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        const PACK: usize = 50;
        let mut place: Vec<usize> = (0..pages).map(|page| page / PACK).collect();
        let mut stored: Vec<u64> = vec![PACK as u64; pages.div_ceil(PACK)];
        let (mut total, mut most) = (0, 0);
        for _ in 0..backups {
            let mut shares: Vec<_> = stored.iter().map(|stored| (*stored, 0)).collect();
            place.iter().for_each(|pack| shares[*pack].1 += 1);
            let shares: Vec<_> = shares
                .into_iter()
                .map(|(stored, live)| PackShare { stored, live })
                .collect();
            let left = packs_to_leave(&shares, WASTE_PERCENT_MAX);
            let mut new = 0;
            for pack in &mut place {
                if random() % 100 < changed as u64 || left.binary_search(pack).is_ok() {
                    *pack = stored.len() + new / PACK;
                    new += 1;
                }
            }
            for begun in (0..new).step_by(PACK) {
                stored.push((new - begun).min(PACK) as u64);
            }
            let needed: std::collections::BTreeSet<_> = place.iter().copied().collect();
            // What nothing refers to any more is as good as gone.
            for (pack, stored) in stored.iter_mut().enumerate() {
                if !needed.contains(&pack) {
                    *stored = 0;
                }
            }
            most = stored.iter().sum::<u64>().max(most);
            total += new as u64;
        }
        (total, most)
    }

    #[test]
    fn a_year_of_backups_needs_little_more_room_and_stores_little_again() {
        for changed in [1, 5, 15, 40] {
            let (pages, backups) = (5_000, 365);
            let (total, most) = live(pages, changed, backups, 7);
            // Within the bound, and what one backup adds behind it.
            let pages = pages as u64;
            let bound = 2 * pages + pages * changed as u64 / 50;
            assert!(most <= bound, "{changed} %: {most} pages kept of {pages}");
            let least = pages * changed as u64 * backups as u64 / 100;
            assert!(
                total <= 2 * least,
                "{changed} %: {total} stored, {least} changed"
            );
        }
    }

    proptest::proptest! {
        #[test]
        fn the_rest_is_within_the_bound(packs in proptest::collection::vec((0_u64..1_000, 0_u64..1_000), 0..40), percent in 0_u64..300) {
            let packs: Vec<_> = packs.into_iter().map(|(stored, live)| PackShare { stored, live: live.min(stored) }).collect();
            let left = packs_to_leave(&packs, percent);
            let live: u64 = packs.iter().map(|pack| pack.live).sum();
            let waste = |keep: &dyn Fn(usize) -> bool| -> u64 {
                packs.iter().enumerate().filter(|(place, _)| keep(*place)).map(|(_, pack)| pack.stored - pack.live).sum()
            };
            proptest::prop_assert!(waste(&|place| !left.contains(&place)) <= live * percent / 100);
            // And none that could have stayed beside it: the last one chosen was still too much.
            let most_live = left.iter().copied().max_by(|a, b| {
                let (a, b) = (packs[*a], packs[*b]);
                (a.live * b.stored).cmp(&(b.live * a.stored))
            });
            if let Some(most_live) = most_live {
                let without = waste(&|place| place == most_live || !left.contains(&place));
                proptest::prop_assert!(without > live * percent / 100);
            }
        }
    }
}
