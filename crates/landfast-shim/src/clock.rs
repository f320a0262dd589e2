//! The shim's only clock.

use std::time::Duration;

use landfast_types::Timestamp;
use rustix::time::{ClockId, clock_gettime};

/// Time since the host started: for waits, never printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Monotonic(Duration);

impl Monotonic {
    pub(crate) fn now() -> Self {
        let now = clock_gettime(ClockId::Monotonic);
        Self(Duration::new(
            now.tv_sec.unsigned_abs(),
            u32::try_from(now.tv_nsec).unwrap_or(0),
        ))
    }

    pub(crate) fn after(self, wait: Duration) -> Self {
        Self(self.0.saturating_add(wait))
    }

    pub(crate) fn until(self, later: Self) -> Duration {
        later.0.saturating_sub(self.0)
    }
}

/// The wall clock, for people and logs.
pub(crate) fn wall() -> Timestamp {
    let now = clock_gettime(ClockId::Realtime);
    Timestamp::from_micros(
        now.tv_sec
            .saturating_mul(1_000_000)
            .saturating_add(now.tv_nsec / 1_000),
    )
}
