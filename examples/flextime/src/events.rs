//! Results of evaluations on their way to streams. A reader that is too slow misses results and is told how many.

use std::sync::Arc;

use tokio::sync::broadcast::{self, Receiver, Sender};

/// Results a slow reader may lag behind.
const BACKLOG_MAX: usize = 1_024;

/// The hub every evaluation reports to.
#[derive(Debug)]
pub(crate) struct Events(Sender<Arc<str>>);

impl Events {
    pub(crate) fn new() -> Self {
        Self(broadcast::channel(BACKLOG_MAX).0)
    }

    /// Sends a result to whoever listens. Nobody listening is fine.
    pub(crate) fn publish(&self, result: &serde_json::Value) {
        if self.0.receiver_count() > 0 {
            drop(self.0.send(Arc::from(result.to_string())));
        }
    }

    pub(crate) fn subscribe(&self) -> Receiver<Arc<str>> {
        self.0.subscribe()
    }
}
