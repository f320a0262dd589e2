//! The proxy's clocks, in one place.

use std::{
    sync::OnceLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use landfast_types::Timestamp;
use tokio::time::Instant;

/// An instant for waiting.
pub(crate) fn instant() -> Instant {
    Instant::now()
}

/// A clock that is never set back, for the decisions that compare instants: counted from the first call.
pub(crate) fn monotonic() -> Timestamp {
    static START: OnceLock<Instant> = OnceLock::new();
    let start = *START.get_or_init(instant);
    // One second ahead of zero, so that "never" (zero) lies in the past.
    Timestamp::EPOCH + Duration::from_secs(1) + instant().saturating_duration_since(start)
}

/// The time of day, for people.
#[expect(
    clippy::disallowed_methods,
    reason = "the proxy is a driver and owns its clock"
)]
pub(crate) fn wall() -> Timestamp {
    let since_epoch = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp::EPOCH + since_epoch
}
