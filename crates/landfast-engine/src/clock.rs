//! The one place of this crate that reads a clock.

use std::{
    fmt,
    time::{Duration, Instant, UNIX_EPOCH},
};

use landfast_types::Timestamp;

/// Tells the time to a driver.
pub trait Clock: Send + Sync + 'static {
    /// The present instant.
    fn now(&self) -> Timestamp;
}

/// The wall clock as it was when the server started, and from there on time that only runs forward and at its own
/// pace. A wall clock that is set would otherwise end `min_ready`, drains and deadlines at once, or never.
pub struct SystemClock {
    started_at: Timestamp,
    begun: Instant,
}

impl SystemClock {
    /// Begins now, or at the last recorded instant where the wall clock is behind it: what is recorded stays in
    /// order.
    pub fn start(last_recorded: Timestamp) -> Self {
        #[expect(clippy::disallowed_methods, reason = "this is the clock")]
        let (wall, begun) = (std::time::SystemTime::now(), Instant::now());
        let since = wall.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let micros = i64::try_from(since.as_micros()).unwrap_or(i64::MAX);
        Self {
            started_at: Timestamp::from_micros(micros).max(last_recorded),
            begun,
        }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        self.started_at + self.begun.elapsed()
    }
}

impl fmt::Debug for SystemClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SystemClock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn begins_where_the_journal_ended_when_the_wall_clock_was_set_back() {
        let future = Timestamp::from_micros(i64::MAX / 2);
        let clock = SystemClock::start(future);
        let (first, second) = (clock.now(), clock.now());
        assert!(first >= future && second >= first);
    }
}
