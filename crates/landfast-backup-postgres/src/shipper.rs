//! The driver of the WAL archiver: spool in, objects and ledger out.

use std::{
    collections::{BTreeMap, VecDeque},
    fs, io,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use landfast_backup::{Event, Heartbeat, Hole, Lsn, Piece, PieceKey, Timeline, parse_history};
use landfast_types::Digest;
use tokio::sync::{Notify, mpsc, watch};

use crate::{
    BackupError,
    archive::LedgerWriter,
    clock,
    receiver::{ReceiverState, chain},
    server::Identity,
    spool::{self, SpoolFile, Tail},
    wal_archiver::{Command, OnEvent, TURN, WalArchiveConfig, WalEvent, WalStatus},
};

/// How often what was written is read back.
const CONFIRM: Duration = Duration::from_secs(15);
/// How often it is looked whether all WAL is there: a list of its objects, a thousand to a request.
const AUDIT: Duration = Duration::from_secs(60);
/// The same of a large archive.
const AUDIT_LARGE: Duration = Duration::from_secs(240);
/// Pieces from which on an archive is large.
const LARGE: usize = 10_000;
/// Pieces of one open segment before they are put together into one.
const PIECES_MAX: usize = 16;
/// An open segment up to this length is shipped whole each time.
const WHOLE_MAX: u64 = 1 << 20;
/// Segments that are told to the ledger together.
const BATCH: usize = 8;
/// Heartbeats that wait for their WAL. More than a day.
const BEATS_MAX: usize = 20_000;

/// Waits, ships, tells the ledger, reads back. An event goes out before the status that shows the same.
pub(crate) struct Driver {
    pub(crate) config: WalArchiveConfig,
    pub(crate) identity: Identity,
    pub(crate) writer: LedgerWriter,
    pub(crate) tail: Tail,
    pub(crate) receiver: watch::Receiver<ReceiverState>,
    pub(crate) known_receiver: ReceiverState,
    pub(crate) go_on: Arc<Notify>,
    pub(crate) beats: mpsc::Receiver<Heartbeat>,
    pub(crate) waiting_beats: VecDeque<Heartbeat>,
    pub(crate) status: watch::Sender<WalStatus>,
    pub(crate) on_event: OnEvent,
    pub(crate) shipped_open: Option<Instant>,
    pub(crate) confirmed: Option<Instant>,
    pub(crate) audited: Option<Instant>,
}

impl Driver {
    pub(crate) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut ticks = tokio::time::interval(TURN);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    let turned = self.turn(false).await;
                    self.note(turned.as_ref().err());
                }
                command = commands.recv() => match command {
                    Some(command) => self.obey(command).await,
                    None => return,
                },
            }
            self.look().await;
        }
    }

    async fn obey(&mut self, command: Command) {
        match command {
            Command::Record(events, answer) => drop(answer.send(self.writer.append(events).await)),
            Command::Carry(carry, answer) => drop(answer.send(self.writer.carry(carry).await)),
            Command::Flush(answer) => {
                let turned = self.turn(true).await;
                self.note(turned.as_ref().err());
                drop(answer.send(turned));
            }
            Command::Remove(keys, answer) => drop(answer.send(self.remove(keys).await)),
            Command::Covers(timeline, from, to, answer) => {
                answer
                    .send(self.writer.ledger.hole(timeline, from, to))
                    .ok();
            }
        }
    }

    /// Ships what there is to ship.
    async fn turn(&mut self, is_flush: bool) -> Result<(), BackupError> {
        while let Ok(beat) = self.beats.try_recv() {
            if self.waiting_beats.len() == BEATS_MAX {
                self.waiting_beats.pop_front();
            }
            self.waiting_beats.push_back(beat);
        }
        let size = self.identity.segment_bytes;
        let listing = spool::list(&self.config.spool, size)?;
        for (timeline, path) in &listing.histories {
            self.ship_history(*timeline, path).await?;
        }
        let newest = listing.files.last().cloned();
        let is_newest = |file: &SpoolFile| newest.as_ref() == Some(file);
        let mut events = Vec::new();
        let mut shipped = Vec::new();
        let mut backlog = listing.files.iter().filter(|file| !file.is_partial).count();
        let is_due =
            |last: Option<Instant>| last.is_none_or(|last| last.elapsed() >= self.config.interval);
        let is_open_due = is_flush || is_due(self.shipped_open);
        for file in &listing.files {
            if !file.is_partial {
                if let Some(event) = self.ship_closed(file).await? {
                    events.push(event);
                }
                backlog -= 1;
                if !is_newest(file) {
                    shipped.push(file.path.clone());
                }
            } else if !is_newest(file) || is_open_due {
                let pieces = self.ship_open(file).await?;
                events.extend(pieces);
                if !is_newest(file) {
                    shipped.push(file.path.clone());
                } else {
                    self.shipped_open = Some(clock::instant());
                }
            }
            if events.len() >= BATCH {
                self.tell(std::mem::take(&mut events)).await?;
                spool::remove_all(std::mem::take(&mut shipped)).await?;
            }
            self.status.send_if_modified(|status| {
                let is_changed = status.backlog != backlog;
                status.backlog = backlog;
                is_changed
            });
        }
        self.tell(events).await?;
        spool::remove_all(shipped).await?;
        if matches!(self.known_receiver, ReceiverState::Broken { .. }) {
            self.break_chain(newest).await?;
        }
        Ok(())
    }

    async fn ship_history(&mut self, timeline: Timeline, path: &Path) -> Result<(), BackupError> {
        if self.writer.ledger.history_digest(timeline).is_some() {
            return Ok(());
        }
        let bytes = fs::read(path).map_err(BackupError::io("read", path))?;
        let switches = std::str::from_utf8(&bytes).ok().and_then(parse_history);
        // It is being written.
        let Some(switches) = switches.filter(|switches| !switches.is_empty()) else {
            return Ok(());
        };
        let event = Event::History {
            timeline,
            digest: Digest::of(&bytes),
            switches,
        };
        self.writer.ledger.check(&event)?;
        let name = self.config.archive.history_path(timeline);
        self.config.archive.repository().put(&name, bytes).await?;
        self.writer.append(vec![event]).await
    }

    async fn ship_closed(&mut self, file: &SpoolFile) -> Result<Option<Event>, BackupError> {
        let size = self.identity.segment_bytes;
        let segment = file.segment;
        let (from, to) = (segment.start(size), segment.end(size));
        let timeline = segment.timeline;
        let key = PieceKey { timeline, from, to };
        if self.writer.ledger.piece(key).is_some() {
            return Ok(None);
        }
        let bytes = self.read(&file.path).await?;
        let boundary = self.tail.read(segment, &bytes, true, size);
        let known = self.writer.ledger.end_of(timeline);
        let boundary = boundary.or(known).unwrap_or(from);
        self.put(key, bytes, boundary).await.map(Some)
    }

    /// The open segment as far as whole records go: what is new, or all of it where that is little or in many pieces.
    async fn ship_open(&mut self, file: &SpoolFile) -> Result<Option<Event>, BackupError> {
        let size = self.identity.segment_bytes;
        let segment = file.segment;
        let bytes = match self.read(&file.path).await {
            // Full since it was listed: the receiver has given it its own name.
            Err(BackupError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return self.ship_closed(&file.closed()).await;
            }
            read => read?,
        };
        let start = segment.start(size);
        let end = self.tail.read(segment, &bytes, false, size);
        let pieces = self.writer.ledger.pieces_of(segment);
        let shipped = pieces.last().map_or(start, |piece| piece.to);
        // A record that ends right at the end of the segment closes it; then the whole file comes at once.
        let Some(end) = end.filter(|end| *end > shipped && *end <= segment.end(size)) else {
            return Ok(None);
        };
        let is_whole = end.bytes_since(start) <= WHOLE_MAX || pieces.len() >= PIECES_MAX;
        let from = if is_whole { start } else { shipped };
        let part = from.bytes_since(start) as usize..end.bytes_since(start) as usize;
        let key = PieceKey {
            timeline: segment.timeline,
            from,
            to: end,
        };
        self.put(key, bytes[part].to_vec(), end).await.map(Some)
    }

    async fn put(
        &self,
        key: PieceKey,
        bytes: Vec<u8>,
        boundary: Lsn,
    ) -> Result<Event, BackupError> {
        let archive = &self.config.archive;
        let digest = Digest::of(&bytes);
        archive
            .repository()
            .put(&archive.piece_path(key), bytes)
            .await?;
        Ok(Event::Shipped {
            timeline: key.timeline,
            piece: Piece {
                from: key.from,
                to: key.to,
                digest,
                boundary,
            },
        })
    }

    /// Tells the ledger, with every heartbeat that is in the archive by that; then removes what was merged.
    async fn tell(&mut self, mut events: Vec<Event>) -> Result<(), BackupError> {
        if events.is_empty() {
            return Ok(());
        }
        let before: Vec<_> = self.writer.ledger.pieces().collect();
        let mut ends = BTreeMap::new();
        for event in &events {
            if let Event::Shipped { timeline, piece } = event {
                let end = ends.entry(*timeline).or_insert(piece.boundary);
                *end = piece.boundary.max(*end);
            }
        }
        let is_in = |beat: &Heartbeat| {
            let known = self.writer.ledger.end_of(beat.timeline);
            known
                .max(ends.get(&beat.timeline).copied())
                .is_some_and(|end| beat.lsn <= end)
        };
        let newest = ends.keys().copied().max();
        while let Some(beat) = self.waiting_beats.front().copied() {
            if is_in(&beat) {
                events.push(Event::Heartbeat(beat));
            } else if newest.is_none_or(|newest| beat.timeline >= newest) {
                break;
            }
            // One of a timeline that was left is in no archive any more.
            self.waiting_beats.pop_front();
        }
        self.writer.append(events).await?;
        for key in before {
            if self.writer.ledger.piece(key).is_none() {
                let archive = &self.config.archive;
                archive
                    .repository()
                    .delete(&archive.piece_path(key))
                    .await?;
            }
        }
        Ok(())
    }

    async fn remove(&self, keys: Vec<PieceKey>) -> Result<usize, BackupError> {
        let archive = &self.config.archive;
        let mut removed = 0;
        for key in keys {
            if self.writer.ledger.is_let_go(key) {
                let name = archive.piece_path(key);
                archive.repository().delete(&name).await?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    async fn read(&self, path: &Path) -> Result<Vec<u8>, BackupError> {
        let read = tokio::fs::read(path).await;
        let mut bytes = read.map_err(BackupError::io("read", path))?;
        // The receiver pads a file before it names it, except when it was killed meanwhile.
        bytes.resize(self.identity.segment_bytes.get() as usize, 0);
        Ok(bytes)
    }

    /// Everything that was received is shipped. Begins anew with what the server still has.
    async fn break_chain(&mut self, newest: Option<SpoolFile>) -> Result<(), BackupError> {
        let session = self.config.server.connect().await?;
        session.drop_slot(&self.config.slot).await?;
        let slot = session.ensure_slot(&self.config.slot).await?;
        let ledger = &self.writer.ledger;
        let timeline = ledger.newest_timeline().unwrap_or(self.identity.timeline);
        let from = ledger.shipped_to(timeline).unwrap_or_default();
        let size = self.identity.segment_bytes.get();
        let kept = slot.restart.unwrap_or_default();
        let to = Lsn(kept.0 - kept.0 % size);
        if let Some(file) = newest {
            spool::remove(&file.path)?;
        }
        self.tail = Tail::default();
        if to > from {
            let hole = Hole { timeline, from, to };
            let at = clock::now();
            self.writer
                .append(vec![Event::Broken {
                    timeline,
                    from,
                    to,
                    at,
                }])
                .await?;
            (self.on_event)(WalEvent::ChainBroken { hole });
            self.status.send_modify(|status| status.broken = Some(hole));
        }
        self.known_receiver = ReceiverState::Starting;
        self.go_on.notify_one();
        Ok(())
    }

    /// Takes note of what a turn came to.
    fn note(&mut self, error: Option<&BackupError>) {
        let why = error.map(|error| chain(error));
        let was = self.status.borrow().failing.is_some();
        match (&why, was) {
            (Some(why), false) => (self.on_event)(WalEvent::ShippingFailed { why: why.clone() }),
            (None, true) => (self.on_event)(WalEvent::ShippingBack),
            _ => {}
        }
        self.status.send_if_modified(|status| {
            let is_changed = status.failing != why;
            status.failing = why;
            is_changed
        });
    }

    /// Takes note of whether what was written can be read back.
    fn note_unread(&mut self, why: Option<String>) {
        let was = self.status.borrow().unreadable.clone();
        if let Some(why) = why.clone().filter(|_| was.is_none()) {
            (self.on_event)(WalEvent::Unreadable { why });
        }
        if why != was {
            self.status.send_modify(|status| status.unreadable = why);
        }
    }

    /// Looks at the receiver, reads back what was written, and says whether the archive advances.
    async fn look(&mut self) {
        // Only what is new: what is broken stays said until the receiver goes on.
        if self.receiver.has_changed().unwrap_or(false) {
            let state = self.receiver.borrow_and_update().clone();
            self.known_receiver = state.clone();
            (self.on_event)(WalEvent::Receiver {
                state: state.clone(),
            });
            self.status.send_modify(|status| status.receiver = state);
        }
        let is_due = self.confirmed.is_none_or(|last| {
            let first = self.status.borrow().restorable.is_none();
            last.elapsed()
                >= if first {
                    self.config.interval
                } else {
                    CONFIRM.min(self.config.interval * 3)
                }
        });
        if is_due {
            self.confirmed = Some(clock::instant());
            match self.writer.confirm().await {
                Ok(Some(point)) => {
                    self.note_unread(None);
                    self.status.send_modify(|status| {
                        status.restorable = Some(point);
                        status.confirmed = Some(clock::now());
                    });
                }
                Ok(None) => {}
                Err(error) => self.note_unread(Some(chain(&error))),
            }
        }
        let every = if self.writer.ledger.pieces().nth(LARGE).is_some() {
            AUDIT_LARGE
        } else {
            AUDIT
        };
        if self.audited.is_none_or(|last| last.elapsed() >= every) {
            self.audited = Some(clock::instant());
            match self.writer.audit().await {
                Ok(hole) => self.note_hole(hole),
                // Whether the repository can be read is told by what is read back.
                Err(error) => tracing::debug!(error = %chain(&error), "the WAL was not looked at"),
            }
        }
    }

    /// Takes note of what stands between the backups and the end of the archive.
    fn note_hole(&mut self, hole: Option<Hole>) {
        let was = self.status.borrow().broken;
        if hole == was || (hole.is_none() && !self.writer.has_good_backup()) {
            return;
        }
        if let Some(hole) = hole
            && was.is_none_or(|was| (was.timeline, was.from) != (hole.timeline, hole.from))
        {
            (self.on_event)(WalEvent::ChainBroken { hole });
        }
        self.status.send_modify(|status| status.broken = hole);
    }
}
