//! The one place of this crate that reads a clock.

use std::{
    fmt,
    time::{Duration, Instant, UNIX_EPOCH},
};

use landfast_types::Timestamp;

/// Tells the time to a driver.
pub trait Clock: Send + Sync + 'static {
    /// The present instant, for whatever is recorded: it never runs back.
    fn now(&self) -> Timestamp;

    /// What a clock on the wall shows, which somebody may set at any time: for schedules and for people's files.
    fn wall(&self) -> Timestamp {
        self.now()
    }
}

/// A journal that is ahead of the wall clock by more than this was written while that clock was wrong.
const LEAD_MAX: Duration = Duration::from_secs(3_600);

/// The wall clock as it was when the server started, and from there on time that only runs forward and at its own
/// pace. A wall clock that is set would otherwise end `min_ready`, drains and deadlines at once, or never.
pub struct SystemClock {
    started_at: Timestamp,
    begun: Instant,
}

impl SystemClock {
    /// Begins now, or at the last recorded instant where the wall clock is a little behind it: what is recorded
    /// stays in order. One that was once far ahead is not followed, or every later life would be ahead as well.
    pub fn start(last_recorded: Timestamp) -> Self {
        #[expect(clippy::disallowed_methods, reason = "this is the clock")]
        let begun = Instant::now();
        let wall = wall();
        let started_at = match last_recorded.since(wall) {
            lead if lead <= LEAD_MAX => wall.max(last_recorded),
            lead => {
                tracing::warn!(
                    ?lead,
                    "the journal is ahead of the clock; what it dates so is not believed"
                );
                wall
            }
        };
        Self { started_at, begun }
    }
}

fn wall() -> Timestamp {
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    let wall = std::time::SystemTime::now();
    let since = wall.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Timestamp::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        self.started_at + self.begun.elapsed()
    }

    fn wall(&self) -> Timestamp {
        wall()
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
        let ahead = wall() + Duration::from_secs(1_800);
        let clock = SystemClock::start(ahead);
        let (first, second) = (clock.now(), clock.now());
        assert!(first >= ahead && second >= first);
        assert!(clock.wall() < ahead, "schedules are not ahead with it");
    }

    #[test]
    fn does_not_follow_a_journal_whose_clock_was_wrong() {
        let clock = SystemClock::start(Timestamp::from_micros(i64::MAX / 2));
        assert!(clock.now().since(wall()) < Duration::from_secs(60));
    }
}
