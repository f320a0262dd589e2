//! The continuous WAL of one server: received into a spool, shipped into the archive, read back.
//!
//! Closed segments are shipped at once, the open one as far as whole records go, every few seconds. Each shipment is one put, then the
//! ledger's page; only then is the spool's file removed. While the repository is away the spool grows up to its limit, then the
//! server keeps WAL for the slot, up to `max_slot_wal_keep_size`; beyond that the chain breaks, which is told, never hidden.
//!
//! A crash at any point leaves WAL in the spool or kept for the slot, and at most objects the ledger does not speak of yet, which
//! the next start adds. What is called restorable was read back from the repository, and nothing else is.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use landfast_backup::{Carry, Event, Heartbeat, Hole, Lsn, PieceKey, RestorablePoint, Timeline};
use landfast_types::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    task::JoinSet,
};

use crate::{
    Archive, BackupError,
    archive::LedgerWriter,
    clock,
    receiver::{Receiver, ReceiverState},
    server::{Identity, Programs, Server},
    shipper::Driver,
    spool::{self, Tail},
};

pub(crate) const TURN: Duration = Duration::from_millis(250);
/// How long one that ends may hold the slot.
const IDLE_MAX: Duration = Duration::from_secs(30);
/// Whoever has not advanced for so long is told.
const LATE: Duration = Duration::from_secs(45);

/// What to archive, and how.
#[derive(Debug, Clone)]
pub struct WalArchiveConfig {
    pub server: Server,
    pub programs: Programs,
    pub archive: Archive,
    /// On this host, for this archive alone.
    pub spool: PathBuf,
    /// The physical replication slot; made where it is not there.
    pub slot: String,
    /// Receive as a synchronous standby would: flush and answer at once. Whether the server waits for it is the server's setting.
    pub is_synchronous: bool,
    /// Between shipments of the open segment, and between heartbeats.
    pub interval: Duration,
    /// Closed segments that wait for the repository, in bytes; at least 64 MiB makes sense.
    pub spool_bytes_max: u64,
}

/// What an operator is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum WalEvent {
    /// The receiver came up, or went down with its reason.
    Receiver { state: ReceiverState },
    /// Shipping failed; the spool grows meanwhile.
    ShippingFailed { why: String },
    /// What was written cannot be read back.
    Unreadable { why: String },
    /// It goes on; the backlog is being shipped, oldest first.
    ShippingBack,
    /// The archive has not advanced for 45 s.
    Late { restorable: Option<RestorablePoint> },
    /// It advances again.
    OnTime { restorable: RestorablePoint },
    /// WAL is lost for the archive: what lies behind cannot be reached from older backups. A full backup is needed now.
    ChainBroken { hole: Hole },
}

/// How the archive stands.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct WalStatus {
    /// Read back from the repository.
    pub restorable: Option<RestorablePoint>,
    /// When it was read back.
    pub confirmed: Option<Timestamp>,
    /// Closed segments that wait.
    pub backlog: usize,
    pub receiver: ReceiverState,
    /// Why shipping fails now.
    pub failing: Option<String>,
    /// Why what was written cannot be read back now.
    pub unreadable: Option<String>,
    pub is_late: bool,
    /// What stands between the good backups and the end of the archive: WAL that the server no longer had, or that is gone from the
    /// repository, as it was seen in the last minutes. A full backup behind it heals it.
    pub broken: Option<Hole>,
}

/// A running archiver. Dropping it ends it; what is in the spool stays there.
pub struct WalArchiver {
    identity: Identity,
    status: watch::Receiver<WalStatus>,
    commands: mpsc::Sender<Command>,
    tasks: JoinSet<()>,
    spool: PathBuf,
}

pub(crate) enum Command {
    Record(Vec<Event>, oneshot::Sender<Result<(), BackupError>>),
    Carry(Carry, oneshot::Sender<Result<(), BackupError>>),
    /// Ship what is there now; gives how far the ledger reaches.
    Flush(oneshot::Sender<Result<(), BackupError>>),
    /// Remove the objects of pieces, as far as they are let go when this is done.
    Remove(Vec<PieceKey>, oneshot::Sender<Result<usize, BackupError>>),
    Covers(Timeline, Lsn, Lsn, oneshot::Sender<Option<Hole>>),
}

pub(crate) type OnEvent = Arc<dyn Fn(WalEvent) + Send + Sync>;

impl WalArchiver {
    /// Begins, or goes on where the archive ends.
    ///
    /// # Errors
    /// Where the server or the repository cannot be reached at the start, or the archive is of another server. Later failures are
    /// told as events, and it goes on.
    pub async fn start(
        config: WalArchiveConfig,
        on_event: impl Fn(WalEvent) + Send + Sync + 'static,
    ) -> Result<Self, BackupError> {
        let session = config.server.connect().await?;
        let identity = session.identity().await?;
        session.ensure_slot(&config.slot).await?;
        // Whoever reads from the slot writes the ledger: there is one at a time.
        session.wait_idle(&config.slot, IDLE_MAX).await?;
        session.prepare_heartbeat().await?;
        drop(session);
        spool::make(&config.spool)?;
        let segment_bytes = identity.segment_bytes;
        let writer = LedgerWriter::open(&config.archive, identity.system, segment_bytes).await?;
        let passwords = config
            .server
            .write_passwords(&config.spool, &config.programs)?;
        let (receiver_state, receiver) = watch::channel(ReceiverState::Starting);
        let go_on = Arc::new(Notify::new());
        let receive = Receiver {
            server: config.server.clone(),
            programs: config.programs.clone(),
            spool: config.spool.clone(),
            passwords,
            slot: config.slot.clone(),
            is_synchronous: config.is_synchronous,
            spool_bytes_max: config.spool_bytes_max,
            segment_bytes,
            state: receiver_state,
            go_on: Arc::clone(&go_on),
        };
        let spool = config.spool.clone();
        let (beat_sender, beats) = mpsc::channel(64);
        let (status_sender, status) = watch::channel(WalStatus::default());
        let (commands, command_receiver) = mpsc::channel(16);
        let mut tasks = JoinSet::new();
        tasks.spawn(receive.run());
        tasks.spawn(beat(config.server.clone(), config.interval, beat_sender));
        let on_event: OnEvent = Arc::new(on_event);
        let lateness = watch_lateness(
            status_sender.clone(),
            Arc::clone(&on_event),
            config.interval,
        );
        tasks.spawn(lateness);
        let driver = Driver {
            identity: identity.clone(),
            writer,
            tail: Tail::default(),
            receiver,
            go_on,
            beats,
            waiting_beats: VecDeque::new(),
            status: status_sender,
            on_event,
            shipped_open: None,
            confirmed: None,
            audited: None,
            known_receiver: ReceiverState::Starting,
            config,
        };
        tasks.spawn(driver.run(command_receiver));
        Ok(Self {
            identity,
            status,
            commands,
            tasks,
            spool,
        })
    }

    /// How the archive stands.
    pub fn status(&self) -> WalStatus {
        self.status.borrow().clone()
    }

    /// Changes of the status.
    pub fn watch(&self) -> watch::Receiver<WalStatus> {
        self.status.clone()
    }

    pub(crate) fn spool(&self) -> &Path {
        &self.spool
    }

    /// What the server said of itself at the start.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Ships all that is in the spool now.
    ///
    /// # Errors
    /// The first failure; what was shipped by then stays shipped.
    pub async fn flush(&self) -> Result<(), BackupError> {
        self.ask(Command::Flush).await?
    }

    /// Adds events to the ledger, in their order.
    pub(crate) async fn record(&self, events: Vec<Event>) -> Result<(), BackupError> {
        self.ask(|answer| Command::Record(events, answer)).await?
    }

    /// Has old pages of the ledger read no more.
    pub(crate) async fn carry(&self, carry: Carry) -> Result<(), BackupError> {
        self.ask(|answer| Command::Carry(carry, answer)).await?
    }

    /// Removes the objects of pieces that the ledger has let go; gives how many. Whoever ships does it, so that none is on its way to the
    /// ledger meanwhile.
    pub(crate) async fn remove(&self, keys: Vec<PieceKey>) -> Result<usize, BackupError> {
        self.ask(|answer| Command::Remove(keys, answer)).await?
    }

    /// The first hole between two places.
    pub(crate) async fn hole(
        &self,
        timeline: Timeline,
        from: Lsn,
        to: Lsn,
    ) -> Result<Option<Hole>, BackupError> {
        self.ask(|answer| Command::Covers(timeline, from, to, answer))
            .await
    }

    /// Waits until everything that is committed now is in the archive.
    ///
    /// # Errors
    /// [`BackupError::WalBehind`] where it does not arrive in time, and those of the server.
    pub async fn catch_up(&self, server: &Server, patience: Duration) -> Result<Lsn, BackupError> {
        let session = server.connect().await?;
        let (_, timeline, lsn) = session.heartbeat(clock::now()).await?;
        self.wait_for(timeline, lsn, lsn, patience).await?;
        Ok(lsn)
    }

    /// Makes a named place to go back to, and waits until it is in the archive.
    ///
    /// # Errors
    /// [`BackupError::WalBehind`] where its WAL does not arrive in time: it is not in the archive then.
    pub async fn restore_point(
        &self,
        server: &Server,
        name: &str,
        patience: Duration,
    ) -> Result<Lsn, BackupError> {
        let session = server.connect().await?;
        let at = clock::now();
        let lsn = session.restore_point(name).await?;
        let (_, timeline, _) = session.heartbeat(at).await?;
        self.wait_for(timeline, lsn, lsn, patience).await?;
        let event = Event::Point {
            name: name.to_owned(),
            timeline,
            lsn,
            at,
        };
        self.record(vec![event]).await?;
        Ok(lsn)
    }

    /// Waits until all WAL of a range is in the archive.
    pub(crate) async fn wait_for(
        &self,
        timeline: Timeline,
        from: Lsn,
        to: Lsn,
        patience: Duration,
    ) -> Result<(), BackupError> {
        let seconds = patience.as_secs();
        let covered = async {
            loop {
                // A place is reached when a byte behind nothing before it is missing.
                let first = Lsn(from.0.min(to.0.saturating_sub(1)));
                if self.hole(timeline, first, to).await?.is_none() {
                    return Ok(());
                }
                self.flush().await.ok();
                tokio::time::sleep(TURN).await;
            }
        };
        // The driver may itself be waiting for a repository that does not answer.
        let waited = tokio::time::timeout(patience, covered).await;
        waited.unwrap_or(Err(BackupError::WalBehind { from, to, seconds }))
    }

    /// Ships what is in the spool, then ends. The slot stays.
    ///
    /// # Errors
    /// Where not all could be shipped; it lies in the spool then.
    pub async fn stop(mut self) -> Result<(), BackupError> {
        let flushed = self.flush().await;
        self.tasks.shutdown().await;
        flushed
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, BackupError> {
        let stopped = || BackupError::Stopped("the WAL archiver has ended".to_owned());
        let (sender, answer) = oneshot::channel();
        let sent = self.commands.send(command(sender)).await;
        sent.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())
    }
}

/// Commits a row every interval. A heartbeat that fails is not made up for.
async fn beat(server: Server, interval: Duration, beats: mpsc::Sender<Heartbeat>) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut session = None;
    loop {
        ticks.tick().await;
        if session.is_none() {
            session = server.connect().await.ok();
        }
        let Some(connected) = &session else { continue };
        // Before the commit: everything committed by then is before it.
        let at = clock::now();
        let patience = interval.max(Duration::from_secs(5)) * 2;
        match tokio::time::timeout(patience, connected.heartbeat(at)).await {
            Ok(Ok((sequence, timeline, lsn))) => {
                let beat = Heartbeat {
                    sequence,
                    timeline,
                    at,
                    lsn,
                };
                // The driver is behind: a later one says more.
                if let Err(mpsc::error::TrySendError::Closed(_)) = beats.try_send(beat) {
                    return;
                }
            }
            failed => {
                tracing::debug!(?failed, "no heartbeat");
                session = None;
            }
        }
    }
}

/// Says when the archive does not advance, whatever the driver waits for meanwhile.
async fn watch_lateness(status: watch::Sender<WalStatus>, on_event: OnEvent, interval: Duration) {
    let begun = clock::now();
    let (mut known, mut advanced) = (None, clock::instant());
    let mut ticks = tokio::time::interval(TURN * 4);
    loop {
        ticks.tick().await;
        let (restorable, was_late) = {
            let status = status.borrow();
            (status.restorable, status.is_late)
        };
        // Before anything was read back: since the start.
        let newest = restorable.and_then(|point| point.at).unwrap_or(begun);
        if restorable != known {
            (known, advanced) = (restorable, clock::instant());
        }
        let is_late = is_late(clock::now().since(newest), advanced.elapsed(), interval);
        if is_late == was_late {
            continue;
        }
        status.send_modify(|status| status.is_late = is_late);
        match restorable {
            Some(restorable) if !is_late => on_event(WalEvent::OnTime { restorable }),
            restorable => on_event(WalEvent::Late { restorable }),
        }
    }
}

/// By the age of the newest place and by how long it was the same one: where the clock was put back nothing is old, but what stands still
/// is late by any clock.
fn is_late(age: Duration, still: Duration, interval: Duration) -> bool {
    age.max(still) > LATE + interval
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_still_is_late_even_where_the_clock_was_put_back() {
        let seconds = Duration::from_secs;
        let is_late = |age, still| is_late(seconds(age), seconds(still), seconds(5));
        assert!(!is_late(10, 10));
        assert!(is_late(51, 1));
        assert!(is_late(0, 51));
    }
}
