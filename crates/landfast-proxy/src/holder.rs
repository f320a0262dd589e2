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
//!   Once it says that it serves, the old one gets SIGTERM and finishes; one that does not come up changes
//!   nothing. What the old one still has in flight is not in the new one's status: upgrade between rollouts.
//! - *The worker ends by SIGTERM sent to it directly*: it finishes first, then it is replaced.
//!
//! Signals need an event loop or unsafe code; so the holder runs tokio's single-threaded one, without workers.

use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
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
    link::{self, LinkError, Listeners},
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
const READY_MAX: Duration = Duration::from_secs(10);
const REAP_INTERVAL: Duration = Duration::from_secs(1);

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
    tracing::warn!(
        pid = std::process::id(),
        worker = handover.sender_pid,
        "a new holder takes over from a dead one"
    );
    let holder = Holder {
        settings: handover.settings,
        listeners: handover.listeners,
    };
    run(holder, handover.worker.map(|pidfd| (pidfd, link)))
}

/// How long to wait before the next start of a process that lived for `lived`, and before which `backoff` was
/// waited.
pub(crate) fn next_backoff(backoff: Duration, lived: Duration) -> Duration {
    if lived >= START_TIME {
        return Duration::ZERO;
    }
    (backoff * 2).clamp(BACKOFF_MIN, BACKOFF_MAX)
}

fn run(holder: Holder, adopted: Option<(OwnedFd, UnixStream)>) -> Result<(), HolderError> {
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
    pidfd: AsyncFd<OwnedFd>,
    child: Option<Child>,
    link: tokio::net::UnixStream,
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
    async fn keep(self, adopted: Option<(OwnedFd, UnixStream)>) -> Result<(), HolderError> {
        let mut ending = Ending {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        };
        let mut next = match adopted {
            Some((pidfd, link)) => Some(Worker::new(pidfd, None, link)?),
            None => None,
        };
        let mut leaving: Vec<Worker> = Vec::new();
        let mut backoff = Duration::ZERO;
        loop {
            let started = clock::instant();
            match next.take().map_or_else(|| self.start(), Ok) {
                Ok(mut worker) => {
                    let ended = self.attend(&mut worker, &mut leaving, &mut ending).await?;
                    let Some(how) = ended else {
                        leaving.push(worker);
                        return self.stop(leaving).await;
                    };
                    tracing::error!(%how, "the worker died; starting another");
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

    /// Stays with a worker until it ends (answers how) or the holder is asked to end (answers nothing).
    async fn attend(
        &self,
        worker: &mut Worker,
        leaving: &mut Vec<Worker>,
        ending: &mut Ending,
    ) -> Result<Option<String>, HolderError> {
        loop {
            tokio::select! {
                ended = worker.ended() => return Ok(Some(ended)),
                _ = ending.terminate.recv() => return Ok(None),
                _ = ending.interrupt.recv() => return Ok(None),
                _ = ending.hangup.recv() => match self.replacement().await {
                    Ok(fresh) => {
                        let old = std::mem::replace(worker, fresh);
                        old.terminate()?;
                        leaving.push(old);
                    }
                    Err(error) => {
                        tracing::error!(%error, "the new worker did not come up; the old one stays");
                    }
                },
                // Only while an old worker is on its way out, to take note of its end.
                () = tokio::time::sleep(REAP_INTERVAL), if !leaving.is_empty() => {
                    leaving.retain_mut(|worker| !worker.has_ended());
                }
            }
        }
    }

    /// Starts another worker beside the present one and waits until it serves.
    async fn replacement(&self) -> Result<Worker, HolderError> {
        let mut fresh = self.start()?;
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

    fn start(&self) -> Result<Worker, HolderError> {
        let (link, child) = spawn(WORKER_ARGUMENTS)?;
        let pid = child
            .id()
            .and_then(|pid| i32::try_from(pid).ok())
            .and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::other("the worker has no process id"))?;
        let pidfd = pidfd_open(pid, PidfdFlags::NONBLOCK).map_err(io::Error::from)?;
        link::send(&link, &self.settings, &self.listeners, None)?;
        Ok(Worker::new(pidfd, Some(child), link)?)
    }

    async fn stop(&self, mut workers: Vec<Worker>) -> Result<(), HolderError> {
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
    fn new(pidfd: OwnedFd, child: Option<Child>, link: UnixStream) -> io::Result<Self> {
        link.set_nonblocking(true)?;
        Ok(Self {
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
