//! Drives a run on a thread of its own: sends by the schedule, holds the streams, watches its own lateness.

use std::{
    io,
    sync::{Arc, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tokio::time::{sleep_until, timeout};

use crate::{
    clock,
    connection::{Connector, TlsError},
    events,
    exchange::{self, Route, Shared, sample},
    plan::planned,
    receipts::{self, Wrong},
    settings::Settings,
    tally::{Kind, Reason, Verdict},
    websocket,
};

/// The judge wakes at least this often, so that it knows when it slept too long.
const WAKE_EVERY: Duration = Duration::from_millis(20);
/// Streams open spread over time, as clients do.
const STREAMS_PER_SECOND: u64 = 500;
/// Requests that may be on their way; more means that nothing is answered, and the judge must not grow for ever.
const IN_FLIGHT_MAX: usize = 50_000;

/// Starts runs.
#[derive(Debug)]
pub struct Judge;

/// Why a run could not begin.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the judge's thread could not be started")]
    Thread(#[source] io::Error),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("{posts} % posts and {waits} % slow answers are more than 100 %")]
    Shares { posts: u8, waits: u8 },
}

/// A run that is on. Dropping it stops the run without a verdict.
pub struct JudgeHandle {
    shared: Arc<Shared>,
    started: Instant,
    thread: Option<JoinHandle<()>>,
}

impl Judge {
    /// Begins a run at once. It has a thread of its own, so a busy caller does not make it late.
    pub fn start(settings: Settings) -> Result<JudgeHandle, StartError> {
        if settings.post_percent.saturating_add(settings.wait_percent) > 100 {
            return Err(StartError::Shares {
                posts: settings.post_percent,
                waits: settings.wait_percent,
            });
        }
        let connector = Connector::new(&settings)?;
        // Ids of one run must never be taken for another's: logs of receipts outlive runs.
        let run = format!("j{:016x}", rand::random::<u64>());
        let shared = Arc::new(Shared::new(settings, connector, run));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let runtime = runtime.map_err(StartError::Thread)?;
        let (thread_shared, started) = (Arc::clone(&shared), clock::instant());
        let thread = std::thread::Builder::new()
            .name("judge".to_owned())
            .spawn(move || runtime.block_on(drive(thread_shared, started)))
            .map_err(StartError::Thread)?;
        Ok(JudgeHandle {
            shared,
            started,
            thread: Some(thread),
        })
    }
}

impl JudgeHandle {
    /// The prefix of this run's receipt ids.
    pub fn run(&self) -> &str {
        &self.shared.run
    }

    /// The verdict as it would be now, without the receipts.
    pub fn snapshot(&self) -> Verdict {
        let seconds = clock::instant().duration_since(self.started).as_secs_f64();
        self.shared.tally().verdict(seconds)
    }

    /// Stops sending, waits for what is on its way, closes the streams, compares the receipts. Blocks for as long
    /// as the slowest answer may take; from async code call it on a blocking thread. The application must still
    /// be able to answer until then, and its logs must be there.
    pub fn finish(mut self) -> Verdict {
        let sending = clock::instant().duration_since(self.started).as_secs_f64();
        self.join();
        let mut receipts = None;
        if let Some(folder) = &self.shared.settings.receipts {
            match receipts::compare(folder, &self.shared.run, &self.shared.posts()) {
                Ok((found, wrong)) => {
                    wrong.iter().for_each(|one| self.blame(*one));
                    receipts = Some(found);
                }
                // Without the logs the run shows nothing about posts.
                Err(error) => self.no_receipts(&error),
            }
        }
        let mut verdict = self.shared.tally().verdict(sending);
        verdict.receipts = receipts;
        verdict
    }

    fn join(&mut self) {
        self.shared.stop.cancel();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            self.shared.tally().judge_fault();
        }
    }

    fn blame(&self, wrong: Wrong) {
        let (reason, number) = match wrong {
            Wrong::Missing(number) => (Reason::ReceiptMissing, number),
            Wrong::Doubled(number) => (Reason::ReceiptDoubled, number),
        };
        let route = Route {
            http: "",
            kept: false,
            opened: clock::instant(),
        };
        let mut sample = sample(Kind::Post, reason, String::new(), &route);
        sample.id = Some(format!("{}-{number}", self.shared.run));
        self.shared.tally().lost_also(sample);
    }

    fn no_receipts(&self, error: &io::Error) {
        let route = Route {
            http: "",
            kept: false,
            opened: clock::instant(),
        };
        let detail = format!("the logs of receipts cannot be read: {error}");
        self.shared
            .tally()
            .lost_also(sample(Kind::Post, Reason::JudgeFault, detail, &route));
    }
}

impl Drop for JudgeHandle {
    fn drop(&mut self) {
        self.join();
    }
}

async fn drive(shared: Arc<Shared>, started: Instant) {
    for number in 0..shared
        .settings
        .websockets
        .max(shared.settings.event_streams)
    {
        let at = started + Duration::from_millis(number as u64 * 1_000 / STREAMS_PER_SECOND);
        if number < shared.settings.websockets {
            shared.tasks.spawn(delayed(
                Arc::clone(&shared),
                at,
                websocket::hold(Arc::clone(&shared), number),
            ));
        }
        if number < shared.settings.event_streams {
            shared.tasks.spawn(delayed(
                Arc::clone(&shared),
                at,
                events::hold(Arc::clone(&shared), number),
            ));
        }
    }
    send_by_schedule(&shared, started).await;
    shared.pool.clear();
    shared.tasks.close();
    let settings = &shared.settings;
    let longest =
        settings.wait + settings.late_after + settings.never_after + Duration::from_secs(15);
    drop(timeout(longest, shared.tasks.wait()).await);
}

async fn delayed(shared: Arc<Shared>, at: Instant, stream: impl Future<Output = ()>) {
    tokio::select! {
        () = sleep_until(at.into()) => stream.await,
        () = shared.stop.cancelled() => {}
    }
}

/// Wakes for each request, and every now and then; what is due is sent, however late the judge is.
async fn send_by_schedule(shared: &Arc<Shared>, started: Instant) {
    let mut number = 0;
    let mut wake = clock::instant();
    loop {
        let now = clock::instant();
        let late = now.duration_since(wake);
        if late > shared.settings.judge_late_after {
            *shared
                .late_at
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = Some(now);
            shared.tally().judge_was_late(late);
        }
        wake = now + WAKE_EVERY;
        if shared.settings.rate > 0 {
            wake = send_due(shared, started, now, &mut number).min(wake);
        }
        tokio::select! {
            biased;
            () = shared.stop.cancelled() => return,
            () = sleep_until(wake.into()) => {}
        }
    }
}

/// Sends everything that is due; says when the next request is.
fn send_due(shared: &Arc<Shared>, started: Instant, now: Instant, number: &mut u64) -> Instant {
    loop {
        let next = planned(&shared.settings, *number);
        let scheduled = started + next.at;
        if scheduled > now {
            return scheduled;
        }
        *number += 1;
        if shared.tasks.len() > IN_FLIGHT_MAX {
            shared.tally().judge_fault();
        } else {
            shared
                .tasks
                .spawn(exchange::perform(Arc::clone(shared), next, scheduled));
        }
    }
}
