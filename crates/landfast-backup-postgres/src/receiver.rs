//! `pg_receivewal` under supervision: started again whenever it ends, stopped while the spool is full.
//!
//! States: *streaming* ⇒ *down* (it ended; started again after 1 to 10 s) ⇒ *streaming*; *full* (the spool has reached its limit,
//! the server keeps WAL meanwhile); *broken* (the server no longer has the WAL that is needed; waits to be told to go on).

use std::{path::PathBuf, sync::Arc, time::Duration};

use landfast_backup::SegmentBytes;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};

use crate::{
    BackupError,
    child::Running,
    server::{Programs, Server},
    spool,
};

const BACKOFF_MIN: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// How often the spool is looked at while a receiver runs.
const LOOK: Duration = Duration::from_millis(500);

/// What the receiver does.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(tag = "receiver", rename_all = "snake_case")]
pub enum ReceiverState {
    #[default]
    Starting,
    Streaming {
        pid: u32,
    },
    Down {
        why: String,
    },
    /// The spool has reached its limit.
    Full {
        bytes: u64,
    },
    /// WAL is gone that was never shipped.
    Broken {
        why: String,
    },
}

pub(crate) struct Receiver {
    pub(crate) server: Server,
    pub(crate) programs: Programs,
    pub(crate) spool: PathBuf,
    pub(crate) passwords: Option<PathBuf>,
    pub(crate) slot: String,
    pub(crate) is_synchronous: bool,
    pub(crate) spool_bytes_max: u64,
    pub(crate) segment_bytes: SegmentBytes,
    pub(crate) state: watch::Sender<ReceiverState>,
    /// Told when what is broken was taken note of.
    pub(crate) go_on: Arc<Notify>,
}

impl Receiver {
    /// Runs until it is dropped.
    pub(crate) async fn run(self) {
        let mut backoff = BACKOFF_MIN;
        loop {
            let begun = crate::clock::instant();
            let ended = self.once().await;
            if begun.elapsed() > BACKOFF_MAX * 2 {
                backoff = BACKOFF_MIN;
            }
            match ended {
                Ok(state) => {
                    let is_broken = matches!(state, ReceiverState::Broken { .. });
                    self.state.send_replace(state);
                    if is_broken {
                        self.go_on.notified().await;
                        backoff = BACKOFF_MIN;
                        continue;
                    }
                }
                Err(error) => {
                    let why = chain(&error);
                    self.state.send_replace(ReceiverState::Down { why });
                }
            }
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    /// One life of the program; says how it ended.
    async fn once(&self) -> Result<ReceiverState, BackupError> {
        let bytes = self.spool_bytes()?;
        let is_still_full = self.is_full() && bytes > self.spool_bytes_max / 2;
        if bytes > self.spool_bytes_max || is_still_full {
            return Ok(ReceiverState::Full { bytes });
        }
        let slot = self.server.connect().await?.ensure_slot(&self.slot).await?;
        if slot.restart.is_none() || slot.status == "lost" {
            let why = "the server no longer keeps the WAL of the slot".to_owned();
            return Ok(ReceiverState::Broken { why });
        }
        spool::mend(&self.spool, self.segment_bytes)?;
        spool::hand_over(&self.spool, &self.programs)?;
        let program = self.programs.program("pg_receivewal");
        let mut program = self
            .server
            .reach(program, self.passwords.as_deref())
            .arg("--directory")
            .arg(&self.spool)
            .writes(&self.spool)
            .arg(format!("--slot={}", self.slot))
            .args(["--no-loop", "--status-interval=1"])
            .env("PGAPPNAME", "landfast backup");
        if self.is_synchronous {
            program = program.arg("--synchronous");
        }
        let mut running = Running::start(&program)
            .await
            .map_err(BackupError::io("start", &program.path))?;
        let pid = running.pid().unwrap_or_default();
        self.state.send_replace(ReceiverState::Streaming { pid });
        loop {
            tokio::select! {
                ended = running.wait() => {
                    ended.map_err(BackupError::io("wait for", &program.path))?;
                    break;
                }
                () = tokio::time::sleep(LOOK) => {
                    let bytes = self.spool_bytes()?;
                    if bytes > self.spool_bytes_max {
                        running.signal(Signal::TERM);
                        // Told at once: where a daemon hangs it is not seen to end.
                        self.state.send_replace(ReceiverState::Full { bytes });
                        running.wait().await.map_err(BackupError::io("wait for", &program.path))?;
                        return Ok(ReceiverState::Full { bytes });
                    }
                }
            }
        }
        let why = running.said();
        if why.contains("has already been removed") {
            return Ok(ReceiverState::Broken { why });
        }
        Ok(ReceiverState::Down { why })
    }

    fn is_full(&self) -> bool {
        matches!(*self.state.borrow(), ReceiverState::Full { .. })
    }

    fn spool_bytes(&self) -> Result<u64, BackupError> {
        let listing = spool::list(&self.spool, self.segment_bytes)?;
        let closed = listing.files.iter().filter(|file| !file.is_partial).count();
        Ok(closed as u64 * self.segment_bytes.get())
    }
}

/// An error with all its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
