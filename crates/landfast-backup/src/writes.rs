//! Writes that stop, where the chain of WAL is not to break.
//!
//! *Free* ⇒ *read-only* (what waits for the archive has reached the limit) ⇒ *closed* (it grew on all the same: somebody asks for
//! transactions that write) ⇒ *free* (the archive has caught up). A server that is read-only by its settings can be overruled by each of
//! its sessions; one that lets nobody in cannot.

use serde::{Deserialize, Serialize};

/// Whether the app may write.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Writes {
    #[default]
    Free,
    /// Transactions are read-only, and whoever writes all the same is ended.
    ReadOnly,
    /// Nobody is let in.
    Closed,
}

/// What grows on by itself on a server nobody writes to, or was under way when it became read-only.
const SLACK_BYTES_MIN: u64 = 64 << 20;
/// The open segment, one that is on its way, and one that was shipped a moment ago: nothing waits.
const IDLE_BYTES: u64 = 48 << 20;

impl Writes {
    /// What follows from how many bytes wait for the archive, and how many did when its server began to go by it: `None` where it does
    /// not yet. What was written before that is no one's disobedience.
    #[must_use]
    pub fn next(self, waiting: u64, at_first: Option<u64>, limit: u64) -> Self {
        let slack = (limit / 4).max(SLACK_BYTES_MIN);
        let grows_on = |at_first: u64| waiting >= at_first.max(limit).saturating_add(slack);
        match self {
            // Free ⇒ ReadOnly: the limit is reached.
            Self::Free if waiting >= limit => Self::ReadOnly,
            // ReadOnly, Closed ⇒ Free: the archive has caught up, so that the limit is not reached again in a moment.
            Self::ReadOnly | Self::Closed if waiting <= (limit / 2).max(IDLE_BYTES) => Self::Free,
            // ReadOnly ⇒ Closed: it grows on.
            Self::ReadOnly if at_first.is_some_and(grows_on) => Self::Closed,
            Self::Free | Self::ReadOnly | Self::Closed => self,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn writes_stop_at_the_limit_and_come_back_when_half_of_it_is_shipped() {
        let steps = [
            (0, Writes::Free),
            (1_023, Writes::Free),
            (1_024, Writes::ReadOnly),
            (1_200, Writes::ReadOnly),
            (600, Writes::ReadOnly),
            (512, Writes::Free),
            (1_100, Writes::ReadOnly),
            (1_280, Writes::Closed),
            // Whoever was let in again at once would write on.
            (1_000, Writes::Closed),
            (100, Writes::Free),
        ];
        let mut writes = Writes::Free;
        for (waiting, then) in steps {
            writes = writes.next(waiting * MIB, Some(0), 1_024 * MIB);
            assert_eq!(writes, then, "{waiting} MiB");
        }
    }

    #[test]
    fn the_smallest_limit_is_left_again() {
        let stopped = Writes::Free.next(64 * MIB, None, 64 * MIB);
        assert_eq!(stopped, Writes::ReadOnly);
        let next = |waiting| stopped.next(waiting * MIB, Some(64 * MIB), 64 * MIB);
        assert_eq!(next(127), Writes::ReadOnly);
        assert_eq!(next(48), Writes::Free);
    }

    #[test]
    fn what_was_written_before_writes_stopped_closes_nothing() {
        let stopped = Writes::ReadOnly;
        let next = |waiting, at_first: Option<u64>| {
            stopped.next(waiting * MIB, at_first.map(|at| at * MIB), 64 * MIB)
        };
        assert_eq!(next(900, None), Writes::ReadOnly);
        assert_eq!(next(900, Some(900)), Writes::ReadOnly);
        assert_eq!(next(963, Some(900)), Writes::ReadOnly);
        assert_eq!(next(964, Some(900)), Writes::Closed);
    }
}
