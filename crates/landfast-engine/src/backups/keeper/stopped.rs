//! Writes of the app that stop, and go on, by what waits for the archive.

use landfast_backup::Writes;
use landfast_spec::OnWalLimit;
use landfast_types::StoreName;
use tokio::time::sleep;

use super::{
    super::{Wanted, limit, record::StoppedWrites},
    Keeper, RETRY_MAX,
};
use crate::actions::RETRY_FIRST;

impl Keeper {
    /// Stops writes, or lets them go on, by what waits for the archive.
    pub(super) async fn weigh(&mut self, seen: limit::Seen, wanted: &Wanted) {
        let now = *self.writes.borrow();
        let next = match wanted.spec.on_wal_limit {
            OnWalLimit::StopWrites => now.next(seen.waiting, wanted.spec.wal_limit.0),
            OnWalLimit::Break => Writes::Free,
        };
        let is_wanted = wanted.spec.on_wal_limit == OnWalLimit::StopWrites;
        self.show(|view| view.waiting = is_wanted.then_some(seen.waiting));
        if next == Writes::Free && seen.writes == Writes::Free {
            // It is written down until the server goes by it.
            if self.book.stopped.take().is_some() {
                tracing::info!(scope = %self.scope, store = %self.store, "the archive has caught up; the app may write");
                self.save().await;
                self.show(|view| view.stopped = None);
            }
        }
        if next == now {
            return;
        }
        if next != Writes::Free {
            let at = self.shared.clock.now();
            let since = self.book.stopped.as_ref().map_or(at, |known| known.since);
            self.book.stopped = Some(StoppedWrites {
                server: self.server.clone(),
                writes: next,
                since,
            });
            self.save().await;
            self.show(|view| view.stopped = Some((since, next)));
        }
        self.writes.send_replace(next);
    }

    /// Another server is archived now, or none: the app of the one before may write there.
    pub(super) async fn leave_stopped(&mut self) {
        let is_left = |stopped: &StoppedWrites| stopped.server != self.server;
        let Some(stopped) = self.book.stopped.clone().filter(is_left) else {
            return;
        };
        self.lift(&stopped.server).await;
        self.book.stopped = None;
    }

    /// Tried until it is done: a store whose server is down is done with.
    pub(super) async fn lift(&self, server: &StoreName) {
        let mut wait = RETRY_FIRST;
        while let Err(reason) = limit::lift(&self.shared, &self.scope, server).await {
            tracing::warn!(scope = %self.scope, store = %server, reason, "its app may not write yet");
            sleep(wait).await;
            wait = (wait * 2).min(RETRY_MAX);
        }
    }
}
