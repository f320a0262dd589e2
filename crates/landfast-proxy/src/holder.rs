//! The holder: a process so small that it has no reason to die. It owns the listening descriptors, starts the
//! worker, and starts it again when it dies, so that new connections wait in the backlog meanwhile and none is
//! refused. It parses no byte from the network.
//!
//! # Who notices what
//!
//! - *The worker dies* (its pidfd says so): another is started at once; only one that dies within a second of
//!   its start, again and again, waits a little (up to a second).
//! - *The holder dies*: the link ends. The worker goes on serving and starts a new holder, hands it the
//!   descriptors and a pidfd of itself; that holder watches a worker which is not its child.
//! - *SIGTERM or SIGINT to the holder*: the worker gets SIGTERM, finishes, and both are gone.
//! - *The worker ends by SIGTERM sent to it directly*: it is replaced, which is how a new binary takes over.
//!
//! Signals need an event loop or unsafe code; so the holder runs tokio's single-threaded one, without workers.

use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::{
    io::unix::AsyncFd,
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

/// A worker that lives shorter died of its start.
const START_TIME: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

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
    _link: UnixStream,
}

struct Ending {
    terminate: Signals,
    interrupt: Signals,
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
        };
        let mut next = match adopted {
            Some((pidfd, link)) => Some(Worker {
                pidfd: watch(pidfd)?,
                child: None,
                _link: link,
            }),
            None => None,
        };
        let mut backoff = Duration::ZERO;
        loop {
            let started = clock::instant();
            let worker = match next.take().map_or_else(|| self.start(), Ok) {
                Ok(worker) => Some(worker),
                Err(error) => {
                    tracing::error!(%error, "failed to start a worker");
                    None
                }
            };
            if let Some(mut worker) = worker {
                tokio::select! {
                    ended = worker.ended() => tracing::error!(how = %ended, "the worker died; starting another"),
                    () = ending.asked() => return self.stop(worker).await,
                }
            }
            let lived = clock::instant().saturating_duration_since(started);
            backoff = if lived >= START_TIME {
                Duration::ZERO
            } else {
                (backoff * 2).clamp(Duration::from_millis(10), BACKOFF_MAX)
            };
            // The first death is answered at once, however young the worker was.
            if backoff > Duration::from_millis(10) {
                tokio::select! {
                    () = tokio::time::sleep(backoff) => {}
                    () = ending.asked() => return Ok(()),
                }
            }
        }
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
        Ok(Worker {
            pidfd: watch(pidfd)?,
            child: Some(child),
            _link: link,
        })
    }

    async fn stop(&self, mut worker: Worker) -> Result<(), HolderError> {
        pidfd_send_signal(worker.pidfd.as_fd(), Signal::TERM).map_err(io::Error::from)?;
        let how = worker.ended().await;
        tracing::info!(%how, "the worker ended");
        drop(std::fs::remove_file(&self.settings.control));
        Ok(())
    }
}

impl Worker {
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

/// Starts this binary in another role, with its end of a new link as standard input.
pub(crate) fn spawn(arguments: [&str; 2]) -> Result<(UnixStream, Child), LinkError> {
    let (here, there) = UnixStream::pair()?;
    #[expect(
        clippy::disallowed_methods,
        reason = "the proxy starts itself in its other role, argv by argv"
    )]
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(arguments)
        .stdin(Stdio::from(OwnedFd::from(there)))
        .kill_on_drop(false);
    let child = command.spawn()?;
    Ok((here, child))
}
