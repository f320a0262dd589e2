//! How fast a server is read while its app uses it.
//!
//! A thread that computes is not always put aside the moment a session of the database has something to do: by default kernels keep it
//! for some milliseconds, and where sessions are groups of their own (`sched_autogroup`) its niceness does not count against theirs. So
//! it is not enough to give way; there has to be little to do at a time. Unused, a server is read as fast as it goes.

use std::{
    fs::File,
    io::{self, Read},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::{clock, server::Session};

/// Transactions a second from which on somebody uses a server, whom no look has met. Landfast's own are fewer: a heartbeat, what is
/// measured, these looks.
const USED_PER_SECOND: u64 = 20;
/// So long nobody uses it before it counts as unused: jobs and page views come in bursts.
const QUIET_LOOKS: u32 = 5;
/// Between two looks. Sessions tell what they did once a second (`pgstat.c`).
const LOOK: Duration = Duration::from_secs(1);
/// The longest that a backup is held up, roughly: nothing else is done with a server meanwhile.
const LONGEST: Duration = Duration::from_secs(1_800);
/// So long it is not noticed that it may go faster.
const NAP_MAX: Duration = Duration::from_millis(100);
/// Read in one go, so that what follows from it is done within a millisecond.
const STEP_BYTES: usize = 128 << 10;

/// Whether a server is used, from what it has counted.
#[derive(Debug, Default)]
struct Usage {
    /// When, and how many transactions had ended.
    last: Option<(Duration, u64)>,
    state: State,
}

#[derive(Debug)]
enum State {
    Unknown {
        quiet: u32,
    },
    Unused,
    Used {
        /// Looks since then that saw nobody.
        quiet: u32,
    },
}

impl Default for State {
    fn default() -> Self {
        Self::Unknown { quiet: 0 }
    }
}

impl Usage {
    /// Takes a look in: since when the backup runs, whether somebody asks the server something, and how many transactions have ended on
    /// it, for those who stay no longer than for one. A server is thought to be used until it was seen not to be.
    fn is_used(&mut self, at: Duration, is_asked: bool, ended: u64) -> bool {
        let Some((before, had_ended)) = self.last.replace((at, ended)) else {
            return true;
        };
        let took = at.saturating_sub(before).as_millis().max(1);
        let more = u128::from(ended.saturating_sub(had_ended));
        let is_seen = is_asked || more * 1_000 >= u128::from(USED_PER_SECOND) * took;
        self.state = match self.state {
            _ if is_seen => State::Used { quiet: 0 },
            State::Unknown { quiet: 0 } => State::Unknown { quiet: 1 },
            State::Unknown { .. } | State::Unused => State::Unused,
            State::Used { quiet } if quiet + 1 < QUIET_LOOKS => State::Used { quiet: quiet + 1 },
            State::Used { .. } => State::Unused,
        };
        !matches!(self.state, State::Unused)
    }
}

/// How fast a backup reads, shared by who looks, who reads and who waits for its end.
#[derive(Debug, Clone)]
pub struct Pace(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Bytes a second where the server is used.
    rate: AtomicU64,
    is_used: AtomicBool,
    is_lifted: AtomicBool,
}

impl Pace {
    /// So many bytes a second while the server is used, which it is thought to be at first.
    pub fn new(rate: u64) -> Self {
        Self(Arc::new(Shared {
            rate: AtomicU64::new(rate.max(1)),
            is_used: AtomicBool::new(true),
            is_lifted: AtomicBool::new(false),
        }))
    }

    /// Somebody waits for its end: from now on it goes as fast as it can.
    pub fn lift(&self) {
        self.0.is_lifted.store(true, Ordering::Relaxed);
    }

    /// Reads a large server faster, so that [`LONGEST`] is enough.
    pub(crate) fn fit(&self, total: u64) {
        let least = total / LONGEST.as_secs();
        self.0.rate.fetch_max(least, Ordering::Relaxed);
    }

    /// Looks until it is dropped. Where the server does not answer, what was known last stays.
    pub(crate) async fn watch(&self, session: &Session) {
        let begun = clock::instant();
        let mut usage = Usage::default();
        loop {
            match session.usage().await {
                Ok((is_asked, ended)) => {
                    let is_used = usage.is_used(begun.elapsed(), is_asked, ended);
                    self.0.is_used.store(is_used, Ordering::Relaxed);
                }
                Err(error) => tracing::debug!(%error, "nobody knows whether the server is used"),
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Reads by it.
    pub(crate) fn read(&self, file: File) -> Paced {
        Paced {
            file,
            pace: self.clone(),
        }
    }

    /// Bytes a second; `None` for as many as there are.
    fn rate(&self) -> Option<u64> {
        let is_held =
            self.0.is_used.load(Ordering::Relaxed) && !self.0.is_lifted.load(Ordering::Relaxed);
        is_held.then(|| self.0.rate.load(Ordering::Relaxed))
    }
}

/// Reads as fast as may be, in small steps; whoever writes into the pipe waits meanwhile.
pub(crate) struct Paced {
    file: File,
    pace: Pace,
}

impl Read for Paced {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(rate) = self.pace.rate() else {
            return self.file.read(buffer);
        };
        let len = STEP_BYTES.min(buffer.len());
        let read = self.file.read(&mut buffer[..len])?;
        // What was missed is not made up for: that would be a burst.
        let due = clock::instant() + time_of(read, rate);
        while let Some(left) = due.checked_duration_since(clock::instant())
            && !left.is_zero()
            && self.pace.rate().is_some()
        {
            std::thread::sleep(left.min(NAP_MAX));
        }
        Ok(read)
    }
}

/// What so many bytes take at a rate.
fn time_of(bytes: usize, rate: u64) -> Duration {
    Duration::from_nanos((bytes as u64).saturating_mul(1_000_000_000) / rate)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn looks(usage: &mut Usage, ended: &[u64]) -> Vec<bool> {
        let look = |(second, ended): (usize, &u64)| {
            usage.is_used(Duration::from_secs(second as u64), false, *ended)
        };
        ended.iter().enumerate().map(look).collect()
    }

    #[test]
    fn a_server_counts_as_used_until_nobody_is_seen() {
        let seen = looks(&mut Usage::default(), &[100, 102, 104]);
        assert_eq!(seen, [true, true, false]);
    }

    #[test]
    fn who_comes_is_seen_at_the_next_look_and_is_gone_after_five() {
        let mut usage = Usage::default();
        let seen = looks(&mut usage, &[0, 1, 2, 22, 23, 24, 25, 26, 27]);
        let expected = [true, true, false, true, true, true, true, true, false];
        assert_eq!(seen, expected);
        // Counters that began again are no transactions.
        assert!(!usage.is_used(Duration::from_secs(9), false, 0));
        assert!(usage.is_used(Duration::from_secs(10), false, 400));
    }

    #[test]
    fn is_read_in_small_steps_where_it_is_used() {
        let content = vec![7; 3 * STEP_BYTES];
        let file = || {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&content).unwrap();
            io::Seek::rewind(&mut file).unwrap();
            file
        };
        let pace = Pace::new(1 << 40);
        let mut buffer = vec![0; content.len()];
        assert_eq!(pace.read(file()).read(&mut buffer).unwrap(), STEP_BYTES);
        pace.0.is_used.store(false, Ordering::Relaxed);
        assert_eq!(pace.read(file()).read(&mut buffer).unwrap(), content.len());
        pace.0.is_used.store(true, Ordering::Relaxed);
        pace.lift();
        assert_eq!(pace.read(file()).read(&mut buffer).unwrap(), content.len());
    }

    #[test]
    fn who_asks_little_counts_too() {
        let mut usage = Usage::default();
        let mut look = |second, is_asked| usage.is_used(Duration::from_secs(second), is_asked, 0);
        assert_eq!([look(0, false), look(1, true), look(2, false)], [true; 3]);
    }

    #[test]
    fn a_large_server_is_read_in_half_an_hour() {
        let pace = Pace::new(32 << 20);
        pace.fit(10 << 30);
        assert_eq!(pace.rate(), Some(32 << 20));
        pace.fit(1_800 << 30);
        assert_eq!(pace.rate(), Some(1 << 30));
    }

    #[test]
    fn each_step_waits_for_its_time() {
        assert_eq!(
            time_of(STEP_BYTES, 32 << 20),
            Duration::from_micros(3_906) + Duration::from_nanos(250)
        );
        assert_eq!(time_of(0, 1), Duration::ZERO);
    }
}
