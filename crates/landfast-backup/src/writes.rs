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
    /// What follows from how many bytes wait for the archive.
    #[must_use]
    pub fn next(self, waiting: u64, limit: u64) -> Self {
        let slack = (limit / 4).max(SLACK_BYTES_MIN);
        match self {
            // Free ⇒ ReadOnly: the limit is reached.
            Self::Free if waiting >= limit => Self::ReadOnly,
            // ReadOnly, Closed ⇒ Free: the archive has caught up, so that the limit is not reached again in a moment.
            Self::ReadOnly | Self::Closed if waiting <= (limit / 2).max(IDLE_BYTES) => Self::Free,
            // ReadOnly ⇒ Closed: it grows on.
            Self::ReadOnly if waiting >= limit.saturating_add(slack) => Self::Closed,
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
            writes = writes.next(waiting * MIB, 1_024 * MIB);
            assert_eq!(writes, then, "{waiting} MiB");
        }
    }

    #[test]
    fn the_smallest_limit_is_left_again() {
        let stopped = Writes::Free.next(64 * MIB, 64 * MIB);
        assert_eq!(stopped, Writes::ReadOnly);
        assert_eq!(stopped.next(127 * MIB, 64 * MIB), Writes::ReadOnly);
        assert_eq!(stopped.next(48 * MIB, 64 * MIB), Writes::Free);
    }
}
