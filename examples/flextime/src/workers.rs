//! A bounded pool of threads for evaluations. A job that panics costs its own answer, never the thread.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

/// Jobs that may wait. Beyond it a request is refused, so that a flood costs answers rather than memory.
const QUEUE_MAX: usize = 8_192;

type Job = Box<dyn FnOnce() + Send>;

/// The pool. Its threads leave when it is dropped and the queue is empty.
#[derive(Debug)]
pub(crate) struct Workers {
    queue: SyncSender<Job>,
    shared: Arc<Shared>,
    workers_max: usize,
}

#[derive(Debug, Default)]
struct Shared {
    active: AtomicUsize,
    queued: AtomicUsize,
}

/// The queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Busy;

impl Workers {
    pub(crate) fn start(workers_max: usize) -> std::io::Result<Self> {
        let (queue, jobs) = sync_channel(QUEUE_MAX);
        let jobs = Arc::new(Mutex::new(jobs));
        let shared = Arc::new(Shared::default());
        for number in 0..workers_max {
            let (jobs, shared) = (Arc::clone(&jobs), Arc::clone(&shared));
            thread::Builder::new()
                .name(format!("evaluate-{number}"))
                .spawn(move || work(&jobs, &shared))?;
        }
        Ok(Self {
            queue,
            shared,
            workers_max,
        })
    }

    pub(crate) fn submit(&self, job: impl FnOnce() + Send + 'static) -> Result<(), Busy> {
        self.shared.queued.fetch_add(1, Ordering::Relaxed);
        self.queue.try_send(Box::new(job)).map_err(|_| {
            self.shared.queued.fetch_sub(1, Ordering::Relaxed);
            Busy
        })
    }

    pub(crate) const fn max(&self) -> usize {
        self.workers_max
    }

    pub(crate) fn active(&self) -> usize {
        self.shared.active.load(Ordering::Relaxed)
    }

    pub(crate) fn queued(&self) -> usize {
        self.shared.queued.load(Ordering::Relaxed)
    }
}

fn work(jobs: &Mutex<Receiver<Job>>, shared: &Shared) {
    loop {
        let next = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = next else { return };
        shared.queued.fetch_sub(1, Ordering::Relaxed);
        shared.active.fetch_add(1, Ordering::Relaxed);
        if catch_unwind(AssertUnwindSafe(job)).is_err() {
            crate::log::line(
                crate::log::Level::Error,
                "an evaluation panicked",
                serde_json::Value::Null,
            );
        }
        shared.active.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn never_runs_more_jobs_at_once_than_it_has_threads() {
        let workers = Workers::start(2).unwrap();
        let (done, finished) = channel();
        let running = Arc::new(AtomicUsize::new(0));
        for _ in 0..50 {
            let (done, running) = (done.clone(), Arc::clone(&running));
            let job = move || {
                let now = running.fetch_add(1, Ordering::SeqCst) + 1;
                thread::yield_now();
                running.fetch_sub(1, Ordering::SeqCst);
                done.send(now).unwrap();
            };
            workers.submit(job).unwrap();
        }
        let most = finished.iter().take(50).max();
        assert!(most <= Some(2), "{most:?}");
    }

    #[test]
    fn survives_a_job_that_panics() {
        let workers = Workers::start(1).unwrap();
        workers.submit(|| panic!("on purpose")).unwrap();
        let (done, finished) = channel();
        workers.submit(move || done.send(()).unwrap()).unwrap();
        finished.recv().unwrap();
    }
}
