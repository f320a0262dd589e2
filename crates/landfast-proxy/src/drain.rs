//! When a stream to a draining backend is due to close: at an instant of its own, spread over the drain's time,
//! so that thousands of clients do not come back at once.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;

use crate::{
    backend::{Backend, Phase},
    leaving::Ending,
    shared::Shared,
};

/// The part of the drain's time over which closing is spread; the rest is for finishing.
const SPREAD: f64 = 0.8;
/// Beyond the drain's time, for the last frames to pass and the last Close to be answered.
pub(crate) const SLACK: Duration = Duration::from_secs(3);

/// The instants of one stream.
pub(crate) struct Due {
    phase: watch::Receiver<Phase>,
    ending: watch::Receiver<Option<Ending>>,
    /// This stream's place in the spread, 0 to 1.
    place: f64,
}

impl Due {
    pub(crate) fn new(backend: &Arc<Backend>, shared: &Shared) -> Self {
        Self {
            phase: backend.phase(),
            ending: shared.life.ending(),
            place: rand::random(),
        }
    }

    /// Waits until it is this stream's turn to close, or (`to_the_end`) until its time is over.
    pub(crate) async fn wait(&mut self, to_the_end: bool) {
        let place = self.place;
        let after = |streams: Duration| {
            if to_the_end {
                streams + SLACK
            } else {
                streams.mul_f64(SPREAD * place)
            }
        };
        loop {
            let phase = *self.phase.borrow_and_update();
            let mut at = match phase {
                Phase::Serving | Phase::Absent => None,
                Phase::Draining { since, streams, .. } => Some(since + after(streams)),
            };
            if let Some(ending) = *self.ending.borrow_and_update() {
                let end = ending.since + after(ending.streams);
                at = Some(at.map_or(end, |at| at.min(end)));
            }
            let over = async {
                match at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = over => return,
                changed = self.ending.changed() => if changed.is_err() {
                    std::future::pending::<()>().await;
                },
                changed = self.phase.changed() => if changed.is_err() {
                    std::future::pending::<()>().await;
                },
            }
        }
    }
}
