//! The clocks of the judge, in one place.

use std::time::Instant;

use landfast_types::Timestamp;

/// The monotonic clock everything is measured with.
#[expect(
    clippy::disallowed_methods,
    reason = "a judge measures time; this is the only place that reads it"
)]
pub(crate) fn instant() -> Instant {
    Instant::now()
}

/// The wall clock, so that a sample can be found in other logs.
pub(crate) fn now() -> Timestamp {
    Timestamp::from_micros(jiff::Timestamp::now().as_microsecond())
}
