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
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{clock, server::Session};

/// Transactions a second from which on somebody uses a server. Landfast's own are fewer: a heartbeat, what is measured, these looks.
const USED_PER_SECOND: u64 = 5;
/// So long nobody uses it before it counts as unused: jobs and page views come in bursts.
const QUIET_LOOKS: u32 = 5;
/// Between two looks. Sessions tell what they did once a second (`pgstat.c`).
const LOOK: Duration = Duration::from_secs(1);
/// Read in one go, so that what follows from it is done within a millisecond.
const STEP_BYTES: usize = 128 << 10;

/// Whether a server is used, from what it has counted.
#[derive(Debug, Default)]
struct Usage {
    /// When, and how many transactions had ended.
    last: Option<(Duration, u64)>,
    state: State,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Unknown,
    Unused,
    Used {
        /// Looks since then that saw nobody.
        quiet: u32,
    },
}

impl Usage {
    /// Takes a look in: since when the backup runs, and how many transactions have ended on the server. A server is thought to be used
    /// until it was seen not to be.
    fn is_used(&mut self, at: Duration, ended: u64) -> bool {
        let Some((before, had_ended)) = self.last.replace((at, ended)) else {
            return true;
        };
        let took = at.saturating_sub(before).as_millis().max(1);
        let more = u128::from(ended.saturating_sub(had_ended));
        let is_seen = more * 1_000 >= u128::from(USED_PER_SECOND) * took;
        self.state = match self.state {
            _ if is_seen => State::Used { quiet: 0 },
            State::Unknown | State::Unused => State::Unused,
            State::Used { quiet } if quiet + 1 < QUIET_LOOKS => State::Used { quiet: quiet + 1 },
            State::Used { .. } => State::Unused,
        };
        !matches!(self.state, State::Unused)
    }
}

/// What a backup goes by, shared by who looks and who reads.
#[derive(Debug, Clone)]
pub(crate) struct Pace {
    /// Bytes a second where the server is used.
    rate: u64,
    is_used: Arc<AtomicBool>,
}

impl Pace {
    /// A server is thought to be used at first.
    pub(crate) fn new(rate: u64) -> Self {
        Self {
            rate: rate.max(1),
            is_used: Arc::new(AtomicBool::new(true)),
        }
    }

    /// Looks until it is dropped. Where the server does not answer, what was known last stays.
    pub(crate) async fn watch(&self, session: &Session) {
        let begun = clock::instant();
        let mut usage = Usage::default();
        loop {
            match session.ended_transactions().await {
                Ok(ended) => {
                    let is_used = usage.is_used(begun.elapsed(), ended);
                    self.is_used.store(is_used, Ordering::Relaxed);
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
            due: clock::instant(),
        }
    }
}

/// Reads as fast as may be, in small steps; whoever writes into the pipe waits meanwhile.
pub(crate) struct Paced {
    file: File,
    pace: Pace,
    /// When what was read was due at that rate.
    due: Instant,
}

impl Read for Paced {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let is_used = self.pace.is_used.load(Ordering::Relaxed);
        let step = if is_used { STEP_BYTES } else { buffer.len() };
        let len = step.min(buffer.len());
        let read = self.file.read(&mut buffer[..len])?;
        if is_used {
            // What was missed is not made up for: that would be a burst.
            let now = clock::instant();
            self.due = self.due.max(now) + time_of(read, self.pace.rate);
            std::thread::sleep(self.due - now);
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
            usage.is_used(Duration::from_secs(second as u64), *ended)
        };
        ended.iter().enumerate().map(look).collect()
    }

    #[test]
    fn a_server_counts_as_used_until_nobody_is_seen() {
        let seen = looks(&mut Usage::default(), &[100, 102, 104]);
        assert_eq!(seen, [true, false, false]);
    }

    #[test]
    fn who_comes_is_seen_at_the_next_look_and_is_gone_after_five() {
        let mut usage = Usage::default();
        let seen = looks(&mut usage, &[0, 1, 6, 7, 8, 9, 10, 11, 12]);
        let expected = [true, false, true, true, true, true, true, false, false];
        assert_eq!(seen, expected);
        // Counters that began again are no transactions.
        assert!(!usage.is_used(Duration::from_secs(9), 0));
        assert!(usage.is_used(Duration::from_secs(10), 400));
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
        pace.is_used.store(false, Ordering::Relaxed);
        assert_eq!(pace.read(file()).read(&mut buffer).unwrap(), content.len());
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
