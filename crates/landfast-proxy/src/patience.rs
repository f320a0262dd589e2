//! How long a client may keep us waiting altogether. A bound on each wait alone is none: a byte before each end of it,
//! and a connection with all it holds lasts for ever. A bound on the whole would cut who has much to move. So waiting
//! uses up patience, and bytes bring it back, never more of it than one wait may take: whoever moves fewer than
//! [`BYTES_PER_SECOND`] while we wait for nothing else is cut, sooner or later; nobody is cut for one pause.
//!
//! Only waiting counts: a stream that has nothing to say, and a backend that is slow, use nothing up.

use std::time::Duration;

/// What Apache demands of the slowest (`mod_reqtimeout`); a twentieth of the slowest mobile network in use.
const BYTES_PER_SECOND: u64 = 500;

/// The waiting that so many bytes make good.
pub(crate) fn earned(bytes: u64) -> Duration {
    Duration::from_micros(bytes.saturating_mul(1_000_000 / BYTES_PER_SECOND))
}

/// What of its patience one client has used up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Patience {
    spent: Duration,
}

impl Patience {
    /// It was waited for.
    pub(crate) fn waited(&mut self, time: Duration) {
        self.spent += time;
    }

    /// It moved something.
    pub(crate) fn moved(&mut self, bytes: u64) {
        self.spent = self.spent.saturating_sub(earned(bytes));
    }

    /// How long it may still be waited for, of `all`.
    pub(crate) fn left(self, all: Duration) -> Duration {
        all.saturating_sub(self.spent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seconds until a client is cut that takes so many bytes every so often, or nothing where it is not within a day.
    fn cut_after(bytes: u64, every: u64) -> Option<u64> {
        let all = Duration::from_secs(75);
        let every = Duration::from_secs(every);
        let mut patience = Patience::default();
        let mut at = Duration::ZERO;
        while at < Duration::from_secs(86_400) {
            if patience.left(all) < every {
                return Some((at + patience.left(all)).as_secs());
            }
            at += every;
            patience.waited(every);
            patience.moved(bytes);
        }
        None
    }

    #[test]
    fn whoever_moves_almost_nothing_is_cut_and_nobody_for_a_pause() {
        for (bytes, every, expected) in [
            // slowhttptest: a body of 32 bytes each 10 s; five bytes of an answer each second.
            (32, 10, Some(75)),
            (5, 1, Some(75)),
            (250, 1, Some(149)),
            (0, 80, Some(75)),
            // A phone at the edge of its network: 600 bytes a second; a tunnel of a minute, then 40 kB.
            (600, 1, None),
            (40_000, 60, None),
        ] {
            assert_eq!(cut_after(bytes, every), expected, "{bytes} each {every} s");
        }
    }

    #[test]
    fn what_was_fast_earns_no_more_than_one_wait() {
        let mut patience = Patience::default();
        patience.moved(1 << 30);
        assert_eq!(
            patience.left(Duration::from_secs(75)),
            Duration::from_secs(75)
        );
    }
}
