//! Rate limits by GCRA (the generic cell rate algorithm, ITU-T I.371): what a key may still do is one number, the
//! instant at which its bucket will be empty again.
//!
//! A [`Limiter`] holds that number for every key in a fixed number of slots. A key owns no slot: it is hashed, with
//! a secret of the process, into one slot in each of a few rows, is charged in all of them, and is held to the
//! smallest. Others in the same slot can only make that number larger, so:
//!
//! - nobody gets more than its quota, however many threads serve it and whatever else is asked for: nothing
//!   is ever evicted, hence nothing can be reset by flooding the limiter with other keys;
//! - somebody gets less only when *all* of its slots are shared with others that are busy at that moment;
//! - a slot frees itself by time alone.
//!
//! Slots are atomics that all serving threads share; there is no lock. A charge that is refused is given back, so
//! a client that keeps asking is served as soon as its time comes.

use std::{
    hash::{BuildHasher, Hash, RandomState},
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use landfast_types::Timestamp;
use serde::{Deserialize, Serialize};

const ROWS: usize = 4;
/// Slots of a row, as a power of two. All rows together take 256 KiB, for each route that is limited by key.
const ROW_BITS: u32 = 13;
const ROW_SLOTS: usize = 1 << ROW_BITS;

/// How many requests in how much time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    pub requests: u32,
    pub per_ms: u64,
    /// How many may come at once after a time of quiet.
    pub burst: u32,
}

impl Quota {
    /// The time one request takes up, in nanoseconds.
    fn interval(&self) -> u64 {
        let per = self.per_ms.saturating_mul(1_000_000);
        (per / u64::from(self.requests.max(1))).max(1)
    }

    /// The time a whole burst takes up, in nanoseconds.
    fn capacity(&self) -> u64 {
        self.interval().saturating_mul(u64::from(self.burst.max(1)))
    }

    /// How long a used-up burst takes to come back.
    pub fn window(&self) -> Duration {
        Duration::from_nanos(self.capacity())
    }

    /// What is left when the bucket will be empty at `empty_at`.
    fn judge(&self, empty_at: u64, now: u64) -> Taken {
        let used = empty_at.saturating_sub(now);
        let over = used.saturating_sub(self.capacity());
        let left = self.capacity().saturating_sub(used) / self.interval();
        Taken {
            is_admitted: over == 0,
            remaining: u32::try_from(left).unwrap_or(u32::MAX),
            wait: Duration::from_nanos(over),
            refill: Duration::from_nanos(used.min(self.capacity())),
        }
    }
}

/// What became of one request's charge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    pub is_admitted: bool,
    /// Further requests that would be admitted at this instant.
    pub remaining: u32,
    /// When one that was refused would have been admitted.
    pub wait: Duration,
    /// Until the whole burst is there again.
    pub refill: Duration,
}

/// The counts of one route. See the head of the module.
#[derive(Debug)]
pub struct Limiter {
    hasher: RandomState,
    /// Made when the first key is counted: most routes have none.
    slots: OnceLock<Box<[AtomicU64]>>,
    whole: AtomicU64,
}

impl Limiter {
    /// A limiter that nobody was charged by yet. The hasher's keys must be random, and of this process alone: who
    /// knows them could choose keys that share the slots of another.
    pub fn new(hasher: RandomState) -> Self {
        Self {
            hasher,
            slots: OnceLock::new(),
            whole: AtomicU64::new(0),
        }
    }

    /// Charges one request to a key.
    pub fn take(&self, key: &impl Hash, quota: &Quota, now: Timestamp) -> Taken {
        let now = nanos(now);
        let slots = self.slots(key);
        for slot in slots {
            charge(slot, quota.interval(), now);
        }
        // Judged by what the slots hold once all are charged, not by what each held when its turn came: of threads
        // that charge one key at the same time, the last to finish sees all the others.
        let held = slots.map(|slot| slot.load(Ordering::SeqCst));
        let taken = quota.judge(held.into_iter().min().unwrap_or(now), now);
        if !taken.is_admitted {
            give_back(slots, quota);
        }
        taken
    }

    /// Takes the charge of a request back that was refused elsewhere.
    pub fn give_back(&self, key: &impl Hash, quota: &Quota) {
        give_back(self.slots(key), quota);
    }

    /// Charges one request to the route as a whole.
    pub fn take_whole(&self, quota: &Quota, now: Timestamp) -> Taken {
        let now = nanos(now);
        let taken = quota.judge(charge(&self.whole, quota.interval(), now), now);
        if !taken.is_admitted {
            give_back([&self.whole], quota);
        }
        taken
    }

    /// The slots of a key, one of each row.
    fn slots(&self, key: &impl Hash) -> [&AtomicU64; ROWS] {
        let make = || (0..ROWS * ROW_SLOTS).map(|_| AtomicU64::new(0)).collect();
        let slots = self.slots.get_or_init(make);
        let hash = self.hasher.hash_one(key);
        std::array::from_fn(|row| {
            let bits = hash >> (row as u32 * ROW_BITS);
            &slots[row * ROW_SLOTS + (bits as usize & (ROW_SLOTS - 1))]
        })
    }
}

fn nanos(now: Timestamp) -> u64 {
    u64::try_from(now.as_micros())
        .unwrap_or(0)
        .saturating_mul(1_000)
}

/// Adds one request to a slot, and answers when its bucket will be empty.
fn charge(slot: &AtomicU64, interval: u64, now: u64) -> u64 {
    let add = |empty_at: u64| empty_at.max(now).saturating_add(interval);
    let before = slot.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |empty_at| {
        Some(add(empty_at))
    });
    add(before.unwrap_or_else(|same| same))
}

fn give_back<const N: usize>(slots: [&AtomicU64; N], quota: &Quota) {
    for slot in slots {
        slot.fetch_sub(quota.interval(), Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    const QUOTA: Quota = Quota {
        requests: 10,
        per_ms: 1_000,
        burst: 3,
    };

    fn fresh() -> Limiter {
        Limiter::new(RandomState::new())
    }

    fn at(millis: u64) -> Timestamp {
        Timestamp::EPOCH + Duration::from_secs(1) + Duration::from_millis(millis)
    }

    #[test]
    fn a_burst_then_one_each_interval_and_refusals_cost_nothing() {
        let limiter = fresh();
        let mut admitted = Vec::new();
        for millis in (0..1_000).step_by(10) {
            if limiter.take(&"a", &QUOTA, at(millis)).is_admitted {
                admitted.push(millis);
            }
        }
        assert_eq!(
            admitted,
            [0, 10, 20, 100, 200, 300, 400, 500, 600, 700, 800, 900]
        );
        let refused = limiter.take(&"a", &QUOTA, at(990));
        assert_eq!(refused.wait, Duration::from_millis(10));
        assert_eq!((refused.is_admitted, refused.remaining), (false, 0));
        let other = limiter.take(&"b", &QUOTA, at(990));
        assert_eq!((other.is_admitted, other.remaining), (true, 2));
        assert_eq!(other.refill, Duration::from_millis(100));
        // After a time of quiet the burst is whole, and not more than whole.
        let later = limiter.take(&"a", &QUOTA, at(60_000));
        assert_eq!((later.is_admitted, later.remaining), (true, 2));
    }

    #[test]
    fn the_whole_route_is_counted_apart_from_its_keys_and_a_charge_can_be_given_back() {
        let limiter = fresh();
        for _ in 0..3 {
            assert!(limiter.take(&"a", &QUOTA, at(0)).is_admitted);
            assert!(limiter.take_whole(&QUOTA, at(0)).is_admitted);
        }
        assert!(!limiter.take(&"a", &QUOTA, at(0)).is_admitted);
        assert!(!limiter.take_whole(&QUOTA, at(0)).is_admitted);
        limiter.give_back(&"a", &QUOTA);
        assert!(limiter.take(&"a", &QUOTA, at(0)).is_admitted);
        assert!(limiter.take_whole(&QUOTA, at(100)).is_admitted);
    }

    #[test]
    fn threads_together_never_get_more_than_one_would() {
        let (limiter, admitted) = (fresh(), AtomicU32::new(0));
        let quota = Quota {
            burst: 1_000,
            ..QUOTA
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..2_000 {
                        if limiter.take(&"a", &quota, at(0)).is_admitted {
                            admitted.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        // Two that met at the last place may both have been refused.
        while limiter.take(&"a", &quota, at(0)).is_admitted {
            admitted.fetch_add(1, Ordering::Relaxed);
        }
        assert_eq!(admitted.into_inner(), 1_000);
    }

    #[test]
    fn a_flood_of_other_keys_resets_nobody() {
        let limiter = fresh();
        while limiter.take(&"a", &QUOTA, at(0)).is_admitted {}
        for other in 0..200_000_u32 {
            limiter.take(&other, &QUOTA, at(0));
        }
        assert!(!limiter.take(&"a", &QUOTA, at(99)).is_admitted);
    }

    #[test]
    fn a_thousand_busy_clients_leave_the_next_one_alone() {
        let limiter = fresh();
        for busy in 0..1_000_u32 {
            while limiter.take(&busy, &QUOTA, at(0)).is_admitted {}
        }
        let refused = (1_000_000..1_001_000_u32)
            .filter(|fresh| !limiter.take(fresh, &QUOTA, at(0)).is_admitted)
            .count();
        // One in about seven thousand would share all of its four slots.
        assert!(refused <= 5, "{refused}");
    }
}
