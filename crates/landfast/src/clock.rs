//! The clock of the command line: only to say how long ago something was.

use landfast_types::Timestamp;

/// Now.
pub(crate) fn now() -> Timestamp {
    Timestamp::from_micros(jiff::Timestamp::now().as_microsecond())
}
