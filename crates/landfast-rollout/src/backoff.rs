//! How long to wait before an instance that ended is replaced.

use std::time::Duration;

use landfast_types::Timestamp;
use serde::{Deserialize, Serialize};

use crate::instance::Instance;

/// How often instances of a group ended in a row without having served for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Backoff {
    pub(crate) failures: u32,
    pub(crate) until: Timestamp,
}

/// The first restart waits this long, each further one twice as long.
const BACKOFF_FIRST: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// Who served this long is not in a crash loop.
const SERVED_WELL: Duration = Duration::from_secs(30);

impl Backoff {
    /// The wait after an instance ended by itself. One that had served well is replaced at once.
    pub(crate) fn after_end(self, at: Timestamp, instance: &Instance) -> Self {
        let served = instance
            .first_served_at
            .is_some_and(|since| at.since(since) >= SERVED_WELL);
        if served {
            return Self {
                failures: 0,
                until: at,
            };
        }
        let failures = self.failures.saturating_add(1);
        let doublings = (failures - 1).min(6);
        let wait = (BACKOFF_FIRST * 2_u32.pow(doublings)).min(BACKOFF_MAX);
        // A spread of ±20 % that needs no random source: instances of one host must not restart in step.
        let spread = splitmix(instance.number) % 401;
        let wait = wait * (800 + spread as u32) / 1_000;
        Self {
            failures,
            until: at + wait,
        }
    }
}

/// A fixed scramble of a number (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
fn splitmix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
