//! How a worker leaves: by hand-over to a successor, or with the whole proxy.
//!
//! # Stages
//!
//! - *Serving*.
//! - *Leaving*: nothing is accepted any more, and whatever is answered over HTTP/1 says `Connection: close`; HTTP/2
//!   clients get GOAWAY twice: first with the largest stream number there is, which refuses none, and a while later
//!   with the last one that came (see [`crate::farewell`]). Everything else goes on. An idle connection is not closed sooner than it would have been anyway: closing
//!   one always risks the request that is on its way, and a successor already serves, so nothing is gained by
//!   taking that risk once more. So the old worker is idle at the latest after the keep-alive time.
//! - *Ending*: streams get their Close 1012 spread over a time, idle connections go after a second, and at the
//!   limit what is left is cut.
//!
//! By hand-over a worker stays in *leaving* for most of `handover_ms`, and ends over the last tenth, so that thousands of
//! clients do not come back at once. By SIGTERM both stages begin together and end soon, as nobody else would
//! serve; SIGTERM also shortens an ending that is under way.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{clock, drain, settings::WorkerSettings};

/// Over which time streams close by SIGTERM.
const STREAMS: Duration = Duration::from_secs(5);
/// The part of the hand-over's time over which its streams close.
const LAST_PART: u32 = 10;

/// How and until when a worker ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ending {
    pub(crate) since: Instant,
    /// Over which time streams close.
    pub(crate) streams: Duration,
    /// When what is left is cut.
    pub(crate) limit: Instant,
}

/// The stage a worker is in. All threads look at it.
#[derive(Debug)]
pub(crate) struct Life {
    /// Cancelled from *leaving* on.
    pub(crate) leaving: CancellationToken,
    /// Cancelled from *ending* on.
    pub(crate) ended: CancellationToken,
    ending: watch::Sender<Option<Ending>>,
    /// The same as the tokens say, where it is asked with every request and every poll.
    is_leaving: AtomicBool,
    is_ending: AtomicBool,
}

impl Life {
    pub(crate) fn new() -> Self {
        Self {
            leaving: CancellationToken::new(),
            ended: CancellationToken::new(),
            ending: watch::Sender::new(None),
            is_leaving: AtomicBool::new(false),
            is_ending: AtomicBool::new(false),
        }
    }

    pub(crate) fn is_leaving(&self) -> bool {
        self.is_leaving.load(Ordering::Acquire)
    }

    pub(crate) fn is_ending(&self) -> bool {
        self.is_ending.load(Ordering::Acquire)
    }

    /// Follows how the worker ends.
    pub(crate) fn ending(&self) -> watch::Receiver<Option<Ending>> {
        self.ending.subscribe()
    }

    /// Serving ⇒ leaving: another worker serves.
    pub(crate) fn leave(&self) {
        self.is_leaving.store(true, Ordering::Release);
        self.leaving.cancel();
    }

    /// ⇒ ending, by SIGTERM. A later limit is drawn nearer.
    pub(crate) fn end(&self, settings: &WorkerSettings) {
        let now = clock::instant();
        self.end_by(Ending {
            since: now,
            streams: STREAMS,
            limit: now + Duration::from_millis(settings.shutdown_ms),
        });
    }

    /// Leaving ⇒ ending: the time after a hand-over is almost over.
    pub(crate) fn end_of_handover(&self, settings: &WorkerSettings) {
        let now = clock::instant();
        let streams = last_part(settings);
        self.end_by(Ending {
            since: now,
            streams,
            limit: now + streams + drain::SLACK + STREAMS,
        });
    }

    fn end_by(&self, ending: Ending) {
        self.ending.send_if_modified(|present| {
            let is_sooner = present.is_none_or(|present| ending.limit < present.limit);
            if is_sooner {
                *present = Some(ending);
            }
            is_sooner
        });
        // Before those that wait are woken: they look here.
        self.is_leaving.store(true, Ordering::Release);
        self.is_ending.store(true, Ordering::Release);
        self.leaving.cancel();
        self.ended.cancel();
    }

    /// Waits until the limit of the ending, which may be drawn nearer meanwhile.
    pub(crate) async fn limit(&self) {
        let mut ending = self.ending();
        loop {
            let limit = ending.borrow_and_update().map(|ending| ending.limit);
            let over = async {
                match limit {
                    Some(limit) => tokio::time::sleep_until(limit).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = over => return,
                changed = ending.changed() => if changed.is_err() { return },
            }
        }
    }
}

/// How long after a hand-over streams are left alone.
pub(crate) fn kept(settings: &WorkerSettings) -> Duration {
    Duration::from_millis(settings.handover_ms).saturating_sub(last_part(settings))
}

fn last_part(settings: &WorkerSettings) -> Duration {
    Duration::from_millis(settings.handover_ms) / LAST_PART
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sigterm_draws_the_end_of_a_handover_nearer_and_nothing_puts_it_off() {
        let mut settings = WorkerSettings::new("routes.json".into());
        settings.handover_ms = 1_000_000;
        settings.shutdown_ms = 30_000;
        let life = Life::new();
        life.leave();
        assert!(life.is_leaving() && !life.ended.is_cancelled());
        assert_eq!(kept(&settings), Duration::from_secs(900));
        let ending = life.ending();
        let streams = || ending.borrow().map(|ending| ending.streams);
        life.end_of_handover(&settings);
        assert!(life.ended.is_cancelled());
        assert_eq!(streams(), Some(Duration::from_secs(100)));
        life.end(&settings);
        assert_eq!(streams(), Some(STREAMS));
        let sooner = *ending.borrow();
        life.end_of_handover(&settings);
        life.end(&settings);
        assert_eq!(*ending.borrow(), sooner);
    }
}
