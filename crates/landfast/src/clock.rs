//! The clock of the command line: only to say how long ago something was.

use landfast_types::Timestamp;

/// An instant, to measure how long something took.
#[expect(
    clippy::disallowed_methods,
    reason = "the clock of the command line, in one place"
)]
pub(crate) fn instant() -> std::time::Instant {
    std::time::Instant::now()
}

/// Now.
pub(crate) fn now() -> Timestamp {
    Timestamp::from_micros(jiff::Timestamp::now().as_microsecond())
}
