//! The holder: a process so small that it has no reason to die. It owns the listening descriptors, starts the
//! worker, and starts it again when it dies, so that new connections wait in the backlog meanwhile and none is
//! refused. It parses no byte from the network.
//!
//! # Who notices what
//!
//! - *The worker dies* (its pidfd says so): another is started at once; only one that dies within a second of
//!   its start, again and again, waits a little (up to a second).
//! - *The holder dies*: the link ends. The worker goes on serving and starts a new holder, hands it the
//!   descriptors and a pidfd of itself; that holder watches a worker which is not its child. Holders that die
//!   at once are started with the same pauses as workers.
//! - *SIGTERM or SIGINT to the holder*: the worker gets SIGTERM, finishes, and both are gone.
//! - *SIGHUP to the holder*: another worker is started, from the binary that is now at the path of this one.
//!   The old one takes no more snapshots before the new one reads the routes back, so none that was confirmed is
//!   lost between the two. Once the new one says that it serves, the old one is told to leave (see
//!   [`crate::leaving`]; one of a binary that does not know the word gets SIGTERM) and goes by the routes its successor
//!   keeps; a new one that does not come up changes nothing. The new one's status counts what the old one still has
//!   in flight (see [`crate::elders`]). Where the binary has changed, a holder of the new binary then takes the place of
//!   this one (see [`crate::holder_link`]).
//! - *The worker ends by SIGTERM sent to it directly*: it finishes first, then it is replaced.
//!
//! Signals need an event loop or unsafe code; so the holder runs tokio's single-threaded one, without workers.

use std::{
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{fs::MetadataExt, net::UnixStream},
    },
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use tokio::{
    io::{AsyncReadExt, unix::AsyncFd},
    process::{Child, Command},
    signal::unix::{Signal as Signals, SignalKind, signal},
};

use crate::{
    clock,
    holder_link::{hears, say},
    link::{self, LinkError, Listeners, Receiver, Word},
    listen::{self, BindError},
    settings::HolderSettings,
};

/// Arguments of a worker, after the binary: `landfast proxy --worker`. It reads the rest from standard input.
pub const WORKER_ARGUMENTS: [&str; 2] = ["proxy", "--worker"];
/// Arguments of a holder that a worker starts in place of a dead one: `landfast proxy --adopt`.
pub const ADOPT_ARGUMENTS: [&str; 2] = ["proxy", "--adopt"];

/// A process that lives shorter died of its start.
const START_TIME: Duration = Duration::from_secs(1);
const BACKOFF_MIN: Duration = Duration::from_millis(10);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// How long a replacement may take until it serves.
pub(crate) const READY_MAX: Duration = Duration::from_secs(10);
/// How long a worker is waited for that was asked for something: one of an older binary says nothing.
const HELD_MAX: Duration = Duration::from_secs(1);
const REAP_INTERVAL: Duration = Duration::from_millis(100);

/// Why the holder ended.
#[derive(Debug, thiserror::Error)]
pub enum HolderError {
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("failed to set up the holder")]
    Setup(#[from] io::Error),
}

/// Binds the sockets and keeps a worker running on them until SIGTERM. Call it from `main` on the only thread.
///
/// # Errors
/// When a socket cannot be bound or the event loop cannot start.
pub fn holder_main(settings: HolderSettings) -> Result<(), HolderError> {
    let listeners = listen::bind_all(&settings)?;
    tracing::info!(pid = std::process::id(), control = %settings.control.display(), "holding the listening sockets");
    run(
        Holder {
            settings,
            listeners,
        },
        None,
    )
}

/// Takes over from a holder that died: descriptors and the running worker come over standard input.
///
/// # Errors
/// When standard input is no link.
pub fn adopt_main() -> Result<(), HolderError> {
    let link = link::from_stdin()?;
    let handover = link::receive(&link)?;
    if handover.waits {
        if !is_told_to_hold(&link)? {
            return Ok(());
        }
        tracing::info!(
            pid = std::process::id(),
            worker = handover.sender_pid,
            "a holder of a new binary takes over"
        );
    } else {
        tracing::warn!(
            pid = std::process::id(),
            worker = handover.sender_pid,
            "a new holder takes over from a dead one"
        );
    }
    let holder = Holder {
        settings: handover.settings,
        listeners: handover.listeners,
    };
    let pid = handover.sender_pid;
    run(holder, handover.worker.map(|pidfd| (pid, pidfd, link)))
}

/// Says that the descriptors are here, and waits until the holder before has gone. Not told so: it stays in charge.
fn is_told_to_hold(link: &UnixStream) -> io::Result<bool> {
    let mut link = link;
    link.write_all(&[Word::Holding.byte()])?;
    let mut byte = [0];
    Ok(link.read(&mut byte)? > 0 && Word::of(byte[0]) == Some(Word::Hold))
}

/// How long to wait before the next start of a process that lived for `lived`, and before which `backoff` was
/// waited.
pub(crate) fn next_backoff(backoff: Duration, lived: Duration) -> Duration {
    if lived >= START_TIME {
        return Duration::ZERO;
    }
    (backoff * 2).clamp(BACKOFF_MIN, BACKOFF_MAX)
}

/// A worker that runs already: process id, pidfd, link.
type Adopted = (u32, OwnedFd, UnixStream);

fn run(holder: Holder, adopted: Option<Adopted>) -> Result<(), HolderError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(holder.keep(adopted))
}

struct Holder {
    settings: HolderSettings,
    listeners: Listeners,
}

/// A worker and this side of its link; dropping the link tells the worker that the holder is gone.
struct Worker {
    pid: u32,
    pidfd: AsyncFd<OwnedFd>,
    child: Option<Child>,
    link: tokio::net::UnixStream,
}

/// Why the holder does not stay with a worker.
enum Left {
    /// The worker ended, and how.
    Died(String),
    /// The holder is to end.
    Asked,
    /// Another holder is in charge.
    Moved,
}

struct Ending {
    terminate: Signals,
    interrupt: Signals,
    hangup: Signals,
}

impl Ending {
    async fn asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

impl Holder {
    async fn keep(self, adopted: Option<Adopted>) -> Result<(), HolderError> {
        let mut ending = Ending {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        };
        let mut next = match adopted {
            Some((pid, pidfd, link)) => Some(Worker::new(pid, pidfd, None, link)?),
            None => None,
        };
        let mut leaving: Vec<Worker> = Vec::new();
        let mut backoff = Duration::ZERO;
        loop {
            let started = clock::instant();
            match next
                .take()
                .map_or_else(|| self.start(&pids(&leaving), false), Ok)
            {
                Ok(mut worker) => {
                    match self.attend(&mut worker, &mut leaving, &mut ending).await? {
                        Left::Died(how) => {
                            tracing::error!(%how, "the worker died; starting another");
                        }
                        Left::Asked => {
                            leaving.push(worker);
                            return self.stop(leaving).await;
                        }
                        Left::Moved => return Ok(()),
                    }
                }
                Err(error) => tracing::error!(%error, "failed to start a worker"),
            }
            let lived = clock::instant().saturating_duration_since(started);
            backoff = next_backoff(backoff, lived);
            // The first death is answered at once, however young the worker was.
            if backoff > BACKOFF_MIN {
                tokio::select! {
                    () = tokio::time::sleep(backoff) => {}
                    () = ending.asked() => return self.stop(leaving).await,
                }
            }
        }
    }

    /// Stays with a worker until it ends, or until this holder has nothing to do with it any more.
    async fn attend(
        &self,
        worker: &mut Worker,
        leaving: &mut Vec<Worker>,
        ending: &mut Ending,
    ) -> Result<Left, HolderError> {
        loop {
            tokio::select! {
                ended = worker.ended() => return Ok(Left::Died(ended)),
                _ = ending.terminate.recv() => return Ok(Left::Asked),
                _ = ending.interrupt.recv() => return Ok(Left::Asked),
                _ = ending.hangup.recv() => {
                    let is_replaced = self.replace(worker, leaving).await?;
                    if is_replaced && has_new_binary() && worker.adopt().await {
                        return Ok(Left::Moved);
                    }
                }
                // Only while an old worker is on its way out, to take note of its end.
                () = tokio::time::sleep(REAP_INTERVAL), if !leaving.is_empty() => {
                    leaving.retain_mut(|worker| !worker.has_ended());
                    if leaving.is_empty() {
                        say(&mut worker.link, Word::Alone).await;
                    }
                }
            }
        }
    }

    /// Puts another worker in the place of one, which leaves. Whether that was possible.
    async fn replace(
        &self,
        worker: &mut Worker,
        leaving: &mut Vec<Worker>,
    ) -> Result<bool, HolderError> {
        worker.hold_orders().await;
        let mut elders = pids(leaving);
        elders.push(worker.pid);
        match self.replacement(&elders).await {
            Ok(fresh) => {
                let mut old = std::mem::replace(worker, fresh);
                old.leave().await?;
                leaving.push(old);
                Ok(true)
            }
            Err(error) => {
                tracing::error!(%error, "the new worker did not come up; the old one stays");
                say(&mut worker.link, Word::TakeOrders).await;
                Ok(false)
            }
        }
    }

    /// Starts another worker beside the present one and waits until it serves.
    async fn replacement(&self, elders: &[u32]) -> Result<Worker, HolderError> {
        let mut fresh = self.start(elders, true)?;
        let mut byte = [0];
        let ready = tokio::time::timeout(READY_MAX, fresh.link.read_exact(&mut byte)).await;
        if matches!(ready, Ok(Ok(_))) {
            tracing::info!("a new worker serves; the old one finishes");
            return Ok(fresh);
        }
        if let Some(child) = &mut fresh.child {
            child.kill().await?;
        }
        Err(io::Error::other("it ended or said nothing in time").into())
    }

    fn start(&self, elders: &[u32], took_over: bool) -> Result<Worker, HolderError> {
        let (link, child) = spawn(WORKER_ARGUMENTS)?;
        let no_id = || io::Error::other("the worker has no process id");
        let id = child.id().ok_or_else(no_id)?;
        let pid = i32::try_from(id).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(no_id)?;
        let pidfd = pidfd_open(pid, PidfdFlags::NONBLOCK).map_err(io::Error::from)?;
        let receiver = Receiver::Worker { elders, took_over };
        link::send(&link, &self.settings, &self.listeners, receiver)?;
        Ok(Worker::new(id, pidfd, Some(child), link)?)
    }

    async fn stop(&self, mut workers: Vec<Worker>) -> Result<(), HolderError> {
        if let Some(worker) = workers.last_mut() {
            // It knows of some that a holder before this one started.
            worker.end_elders().await;
        }
        for worker in &workers {
            worker.terminate()?;
        }
        for worker in &mut workers {
            let how = worker.ended().await;
            tracing::info!(%how, "the worker ended");
        }
        drop(std::fs::remove_file(&self.settings.control));
        Ok(())
    }
}

impl Worker {
    fn new(pid: u32, pidfd: OwnedFd, child: Option<Child>, link: UnixStream) -> io::Result<Self> {
        link.set_nonblocking(true)?;
        Ok(Self {
            pid,
            pidfd: watch(pidfd)?,
            child,
            link: tokio::net::UnixStream::from_std(link)?,
        })
    }

    /// SIGTERM; to one that has just ended there is nothing to say.
    fn terminate(&self) -> io::Result<()> {
        match pidfd_send_signal(self.pidfd.as_fd(), Signal::TERM) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Asks for something, and waits for the answer.
    async fn ask(&mut self, word: Word, answer: Word, limit: Duration) -> bool {
        say(&mut self.link, word).await;
        hears(&mut self.link, answer, limit).await
    }

    /// Asks for no more snapshots to be taken, and waits until none is.
    async fn hold_orders(&mut self) {
        if !self.ask(Word::HoldOrders, Word::OrdersHeld, HELD_MAX).await {
            tracing::warn!("the worker does not say that it takes no more routes; going on");
        }
    }

    /// Tells it that another worker serves.
    async fn leave(&mut self) -> io::Result<()> {
        if self.ask(Word::Leave, Word::Leaving, HELD_MAX).await {
            return Ok(());
        }
        tracing::warn!(
            pid = self.pid,
            "the old worker does not know how to leave; it ends as by SIGTERM"
        );
        self.terminate()
    }

    /// Has a holder of the new binary started. Whether that one is in charge once this one has gone.
    async fn adopt(&mut self) -> bool {
        let is_held = self.ask(Word::Adopt, Word::Holding, READY_MAX).await;
        if is_held {
            tracing::info!("a holder of the new binary takes over; this one goes");
        } else {
            tracing::error!("no holder of the new binary came up; this one stays");
        }
        is_held
    }

    async fn end_elders(&mut self) {
        if !self.ask(Word::EndElders, Word::EndElders, HELD_MAX).await {
            tracing::debug!("the worker does not say that older ones end");
        }
    }

    fn has_ended(&mut self) -> bool {
        match &mut self.child {
            Some(child) => child.try_wait().is_ok_and(|status| status.is_some()),
            None => {
                let mut watched = [PollFd::new(self.pidfd.get_ref(), PollFlags::IN)];
                poll(&mut watched, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
            }
        }
    }

    async fn ended(&mut self) -> String {
        match &mut self.child {
            Some(child) => match child.wait().await {
                Ok(status) => describe(status),
                Err(error) => error.to_string(),
            },
            // Not our child: the pidfd is all there is, and it becomes readable at the end.
            None => match self.pidfd.readable().await {
                Ok(_) => "ended".to_owned(),
                Err(error) => error.to_string(),
            },
        }
    }
}

#[expect(
    deprecated,
    reason = "the replacement is unsafe for types that may change their descriptor; an OwnedFd does not"
)]
fn watch(pidfd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(pidfd)
}

fn describe(status: ExitStatus) -> String {
    status.to_string()
}

/// The binary that is now at the path of this one, so that an upgrade takes effect; this very one where there is
/// none any more.
fn own_binary() -> PathBuf {
    let kept = || PathBuf::from("/proc/self/exe");
    let Ok(path) = std::env::current_exe() else {
        return kept();
    };
    // The kernel marks the path of a binary that was replaced.
    let path = match path
        .to_str()
        .and_then(|path| path.strip_suffix(" (deleted)"))
    {
        Some(path) => PathBuf::from(path),
        None => path,
    };
    if path.is_file() { path } else { kept() }
}

/// Whether another binary is now at the path of this one.
fn has_new_binary() -> bool {
    let identity = |path: &Path| {
        let found = std::fs::metadata(path).ok()?;
        Some((found.dev(), found.ino()))
    };
    let running = identity(Path::new("/proc/self/exe"));
    running.is_some() && identity(&own_binary()) != running
}

fn pids(workers: &[Worker]) -> Vec<u32> {
    workers.iter().map(|worker| worker.pid).collect()
}

/// Starts this binary in another role, with its end of a new link as standard input.
pub(crate) fn spawn(arguments: [&str; 2]) -> Result<(UnixStream, Child), LinkError> {
    let (here, there) = UnixStream::pair()?;
    #[expect(
        clippy::disallowed_methods,
        reason = "the proxy starts itself in its other role, argv by argv"
    )]
    let mut command = Command::new(own_binary());
    command
        .args(arguments)
        .stdin(Stdio::from(OwnedFd::from(there)))
        .kill_on_drop(false);
    let child = command.spawn()?;
    Ok((here, child))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_dies_at_once_again_and_again_is_waited_for() {
        let mut backoff = Duration::ZERO;
        let mut waits = Vec::new();
        for lived in [0, 5, 5, 5, 5, 5, 5, 5, 5, 2_000, 5] {
            backoff = next_backoff(backoff, Duration::from_millis(lived));
            waits.push(backoff.as_millis());
        }
        assert_eq!(waits, [10, 20, 40, 80, 160, 320, 640, 1_000, 1_000, 0, 10]);
    }
}
