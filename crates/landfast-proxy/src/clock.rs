//! The proxy's clocks, in one place.

use std::{
    cell::RefCell,
    sync::OnceLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use landfast_types::Timestamp;
use rustix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

/// An instant for waiting.
pub(crate) fn instant() -> Instant {
    Instant::now()
}

/// The time since the machine started, as of the kernel's last tick: a few milliseconds old, and many times cheaper
/// to read than [`instant`]. For what is asked with every read and write, and compared with seconds.
pub(crate) fn coarse() -> Duration {
    let time = clock_gettime(ClockId::MonotonicCoarse);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// A clock that is never set back, for the decisions that compare instants: counted from the first call.
pub(crate) fn monotonic() -> Timestamp {
    static START: OnceLock<Duration> = OnceLock::new();
    let start = *START.get_or_init(coarse);
    // One second ahead of zero, so that "never" (zero) lies in the past.
    Timestamp::EPOCH + Duration::from_secs(1) + coarse().saturating_sub(start)
}

thread_local! {
    /// The second whose date was written last, and that date.
    static DATE: RefCell<(i64, String)> = const { RefCell::new((i64::MIN, String::new())) };
}

/// Gives the date as HTTP writes it (RFC 9110, 5.6.7). It is written once a second.
pub(crate) fn with_date<T>(given: impl FnOnce(&[u8]) -> T) -> T {
    let second = clock_gettime(ClockId::RealtimeCoarse).tv_sec;
    DATE.with_borrow_mut(|(written, date)| {
        if *written != second {
            let since_epoch = Duration::from_secs(u64::try_from(second).unwrap_or(0));
            *date = httpdate::fmt_http_date(UNIX_EPOCH + since_epoch);
            *written = second;
        }
        given(date.as_bytes())
    })
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
