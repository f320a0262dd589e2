//! The clock of this driver.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use landfast_types::Timestamp;

#[expect(
    clippy::disallowed_methods,
    reason = "a driver reads the clock for the pure crates"
)]
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let micros = since.map_or(0, |since| since.as_micros());
    Timestamp::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
}

#[expect(
    clippy::disallowed_methods,
    reason = "durations of a driver's own work"
)]
pub(crate) fn instant() -> Instant {
    Instant::now()
}
