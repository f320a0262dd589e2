//! What one serving thread owns: its pool of upstream connections and the tasks that run on it.

use std::{future::Future, rc::Rc, sync::Arc};

use tokio_util::task::TaskTracker;

use crate::{pool::Pool, shared::Shared};

/// One serving thread.
pub(crate) struct Thread {
    pub(crate) shared: Arc<Shared>,
    pub(crate) pool: Pool,
    pub(crate) tasks: TaskTracker,
}

impl Thread {
    pub(crate) fn new(shared: Arc<Shared>) -> Rc<Self> {
        Rc::new(Self {
            shared,
            pool: Pool::default(),
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
        self.0.spawn(async move {
            task.await;
        });
    }
}
