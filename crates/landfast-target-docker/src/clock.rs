//! The only clock of this crate.

use std::time::Duration;

use landfast_types::Timestamp;
use rustix::time::{ClockId, clock_gettime};

/// The wall clock, for what a daemon did not stamp.
pub(crate) fn now() -> Timestamp {
    let now = clock_gettime(ClockId::Realtime);
    let micros = now.tv_sec.saturating_mul(1_000_000);
    Timestamp::from_micros(micros.saturating_add(now.tv_nsec / 1_000))
}

/// What the kernel's log counts, as near as a process comes to it.
pub(crate) fn since_boot() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::try_from(now).unwrap_or_default()
}
