//! The clocks of this process, in one place.

use std::time::Instant;

/// The wall clock, for what people read.
pub(crate) fn now() -> jiff::Timestamp {
    jiff::Timestamp::now()
}

/// The monotonic clock, for durations.
#[expect(
    clippy::disallowed_methods,
    reason = "a server owns its clock; this is the only place that reads it"
)]
pub(crate) fn instant() -> Instant {
    Instant::now()
}
