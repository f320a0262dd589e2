//! Writes of the app that stop, and go on, by what waits for the archive.

use std::sync::Arc;

use landfast_backup::Writes;
use landfast_spec::OnWalLimit;
use landfast_types::StoreName;
use tokio::{task::JoinError, time::sleep};

use super::{
    super::{Wanted, limit, record::StoppedWrites},
    Keeper, RETRY_MAX,
};
use crate::{actions::RETRY_FIRST, stores};

impl Keeper {
    /// What a server says that was left with stopped writes, and that nobody wrote down, as where the disk of the journal was full.
    pub(super) fn find_stopped(&mut self) {
        let places = stores::places(&self.shared, &self.scope, &self.server);
        let told = match stores::writes_told(&places) {
            Ok(told) => told,
            Err(reason) => {
                return tracing::warn!(scope = %self.scope, store = %self.store, reason, "nobody knows whether writes are stopped");
            }
        };
        if told != Writes::Free && self.book.stopped.is_none() {
            self.book.stopped = Some(StoppedWrites {
                server: self.server.clone(),
                writes: told,
                since: self.shared.clock.now(),
            });
        }
    }

    /// How much waits is not known.
    pub(super) fn unseen(&self, reason: Option<String>) {
        self.show(|view| {
            view.waiting = None;
            view.unseen = reason;
        });
    }

    /// Stops writes, or lets them go on, by what waits for the archive. The server is told at once, however long the journal takes: what
    /// it is told lies beside its data, and is found there again. People are told when the server goes by it and who had written is ended:
    /// until then a commit may still be acknowledged.
    pub(super) async fn weigh(&mut self, seen: limit::Seen, wanted: &Wanted) {
        let now = *self.writes.borrow();
        match seen.writes {
            Writes::Free => self.at_first = None,
            Writes::ReadOnly | Writes::Closed => {
                self.at_first.get_or_insert(seen.waiting);
            }
        }
        let next = match wanted.spec.on_wal_limit {
            OnWalLimit::StopWrites => {
                now.next(seen.waiting, self.at_first, wanted.spec.wal_limit.0)
            }
            OnWalLimit::Break => Writes::Free,
        };
        let is_wanted = wanted.spec.on_wal_limit == OnWalLimit::StopWrites;
        self.show(|view| {
            view.waiting = is_wanted.then_some(seen.waiting);
            view.unseen = None;
            if let Some(known) = &self.book.stopped
                && seen.writes != Writes::Free
            {
                view.stopped = Some((known.since, seen.writes));
            }
        });
        if next == Writes::Free && seen.writes == Writes::Free {
            // It is written down until the server goes by it.
            if self.book.stopped.take().is_some() {
                tracing::info!(scope = %self.scope, store = %self.store, "the archive has caught up; the app may write");
                self.show(|view| view.stopped = None);
                self.save_soon().await;
            }
        }
        if next == now {
            return;
        }
        self.writes.send_replace(next);
        if next != Writes::Free {
            let at = self.shared.clock.now();
            let since = self.book.stopped.as_ref().map_or(at, |known| known.since);
            self.book.stopped = Some(StoppedWrites {
                server: self.server.clone(),
                writes: next,
                since,
            });
            self.save_soon().await;
        }
    }

    /// Has the apps of servers that were left write there again, beside all else: a server that cannot be reached holds nothing up.
    pub(super) async fn lift_left(&mut self) {
        self.lifts.shutdown().await;
        for left in &self.book.left {
            let (shared, scope) = (Arc::clone(&self.shared), self.scope.clone());
            let server = left.server.clone();
            self.lifts.spawn(async move {
                let mut wait = RETRY_FIRST;
                while let Err(reason) = limit::lift(&shared, &scope, &server).await {
                    tracing::warn!(%scope, store = %server, reason, "its app may not write yet");
                    sleep(wait).await;
                    wait = (wait * 2).min(RETRY_MAX);
                }
                server
            });
        }
    }

    /// It is written down until it is done.
    pub(super) async fn lifted(&mut self, lifted: Result<StoreName, JoinError>) {
        match lifted {
            Ok(server) => {
                tracing::info!(scope = %self.scope, store = %server, "its app may write again");
                self.book.left.retain(|left| left.server != server);
                self.save_soon().await;
            }
            Err(panic) => {
                tracing::error!(scope = %self.scope, store = %self.store, %panic, "what lets an app write again ended; the next start does it");
            }
        }
    }
}
