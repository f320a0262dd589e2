//! What one serving thread owns: its pool of upstream connections and the tasks that run on it.
//!
//! An HTTP/2 client may stop taking one stream while its connection moves on, and then nobody asks for the rest
//! of that answer, so the answer itself cannot notice. The task of the stream does: the answer says whose turn
//! it is, and a client that leaves its turn unused for too long loses the stream.

use std::{cell::Cell, future::Future, rc::Rc, sync::Arc, time::Duration};

use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::{clock, http2_pool::Http2Pool, pool::Pool, shared::Shared};

tokio::task_local! {
    /// Since when the stream of this task waits for its client.
    static WAITING: Rc<Cell<Option<Instant>>>;
}

/// One serving thread.
pub(crate) struct Thread {
    pub(crate) shared: Arc<Shared>,
    pub(crate) pool: Pool,
    pub(crate) http2_pool: Http2Pool,
    pub(crate) tasks: TaskTracker,
}

impl Thread {
    pub(crate) fn new(shared: Arc<Shared>) -> Rc<Self> {
        Rc::new(Self {
            shared,
            pool: Pool::default(),
            http2_pool: Http2Pool::default(),
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
            let since = Rc::new(Cell::new(None));
            let stalled = stalled(Rc::clone(&since), limit);
            tokio::select! {
                biased;
                _ = WAITING.scope(since, task) => {}
                () = stalled => tracing::debug!("a client left an HTTP/2 stream untaken; it is reset"),
            }
        });
    }
}

/// Notes whether the client is to take something next, or we are to give it. Only HTTP/2 streams are watched.
pub(crate) fn is_clients_turn(is_theirs: bool) {
    // Outside a stream there is nothing to note.
    let _outside = WAITING.try_with(|waiting| waiting.set(is_theirs.then(clock::instant)));
}

/// Ends when the client has been waited for without a break for `limit`.
async fn stalled(since: Rc<Cell<Option<Instant>>>, limit: Duration) {
    let mut wake = clock::instant() + limit;
    loop {
        tokio::time::sleep_until(wake).await;
        let now = clock::instant();
        wake = since.get().unwrap_or(now) + limit;
        if wake <= now {
            return;
        }
    }
}
