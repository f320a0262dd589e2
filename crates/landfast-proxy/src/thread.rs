//! What one serving thread owns: its pool of upstream connections and the tasks that run on it.
//!
//! An HTTP/2 client may stop taking one stream while its connection moves on, and then nobody asks for the rest
//! of that answer, so the answer itself cannot notice. The task of the stream does: the answer says whose turn
//! it is, and a client that leaves its turn unused for too long loses the stream.

use std::{cell::Cell, future::Future, rc::Rc, sync::Arc, time::Duration};

use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::{
    clock, http2_pool::Http2Pool, patience::Patience, pool::Pool, shared::Shared, waits::Waits,
};

tokio::task_local! {
    /// How the stream of this task waits for its client.
    static WAITING: Rc<Turn>;
}

/// Whose turn it is on an HTTP/2 stream.
#[derive(Default)]
struct Turn {
    /// Since when it is the client's.
    since: Cell<Option<Instant>>,
    patience: Cell<Patience>,
}

impl Turn {
    fn pass(&self, to_client: Option<u64>) {
        let now = clock::instant();
        let mut patience = self.patience.get();
        if let Some(since) = self.since.get() {
            patience.waited(now.saturating_duration_since(since));
        }
        patience.moved(to_client.unwrap_or(0));
        self.patience.set(patience);
        self.since.set(to_client.map(|_| now));
    }

    /// When the client has kept us waiting for too long.
    fn deadline(&self, limit: Duration) -> Instant {
        match self.since.get() {
            Some(since) => since + self.patience.get().left(limit),
            None => clock::instant() + limit,
        }
    }
}

/// One serving thread.
pub(crate) struct Thread {
    pub(crate) shared: Arc<Shared>,
    pub(crate) pool: Pool,
    pub(crate) http2_pool: Http2Pool,
    pub(crate) waits: Waits,
    pub(crate) tasks: TaskTracker,
}

impl Thread {
    pub(crate) fn new(shared: Arc<Shared>) -> Rc<Self> {
        Rc::new(Self {
            shared,
            pool: Pool::default(),
            http2_pool: Http2Pool::default(),
            waits: Waits::default(),
            tasks: TaskTracker::new(),
        })
    }

    /// Runs a task on this thread. A panic in it ends this task alone: one bad request must not end the others.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        drop(self.tasks.spawn_local(task));
    }
}

/// Lets hyper run its HTTP/2 streams on this thread.
#[derive(Clone)]
pub(crate) struct Executor(pub(crate) Rc<Thread>);

impl<F> hyper::rt::Executor<F> for Executor
where
    F: Future + 'static,
{
    fn execute(&self, task: F) {
        let limit = self.0.shared.settings.keep_alive();
        self.0.spawn(async move {
            let turn = Rc::new(Turn::default());
            let stalled = stalled(Rc::clone(&turn), limit);
            tokio::select! {
                biased;
                _ = WAITING.scope(turn, task) => {}
                () = stalled => tracing::debug!("a client left an HTTP/2 stream untaken; it is reset"),
            }
        });
    }
}

/// Notes that the client is to take so many bytes next, or that we are to give some. Only HTTP/2 streams are watched.
pub(crate) fn pass_turn(to_client: Option<u64>) {
    // Outside a stream there is nothing to note.
    let _outside = WAITING.try_with(|turn| turn.pass(to_client));
}

/// Ends when the client has used up its patience of `limit`.
async fn stalled(turn: Rc<Turn>, limit: Duration) {
    let mut wake = clock::instant() + limit;
    loop {
        tokio::time::sleep_until(wake).await;
        wake = turn.deadline(limit);
        if wake <= clock::instant() {
            return;
        }
    }
}
