//! The ledger: which WAL was shipped, and so how far a restore must reach.
//!
//! *Written* as numbered pages of events. The newest page is written anew, whole, with every shipment until it is full; each page
//! holds the digest of the one before, so a page that is missing or changed in the middle is named. *Read* by folding
//! all events, in order, into a [`Ledger`].
//!
//! Guarantees: an event enters a page only after the object it speaks of was put. Pieces never cross a segment, and one that
//! covers older ones takes their place. Holes are found by looking at what is covered, not by being told.
//! A crash leaves behind at most one object that no event speaks of; its name says which range it is, so it can be added.

use std::collections::{BTreeMap, BTreeSet};

use landfast_types::{Digest, Timestamp};
use serde::{Deserialize, Serialize};

use crate::{Lsn, Segment, SegmentBytes, Timeline, TimelineSwitch, restore::BackupId};

/// A page this long is full. At a heartbeat every 5 s that is at least every 42 minutes.
pub const PAGE_EVENTS_MAX: usize = 512;

/// One object of the ledger. Its wire form is JSON; a reader refuses a format it does not know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    pub format: u8,
    /// Counted from zero.
    pub number: u64,
    /// The digest of the page before, as it was written last; none on the first.
    pub previous: Option<Digest>,
    /// The oldest page that is still kept.
    pub oldest: u64,
    /// PostgreSQL's system identifier: what every copy of one database shares.
    pub system: u64,
    pub segment_bytes: SegmentBytes,
    pub events: Vec<Event>,
}

impl Page {
    /// The format this code writes and reads.
    pub const FORMAT: u8 = 1;
}

/// What happened to the archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A range of WAL lies in the repository.
    Shipped {
        timeline: Timeline,
        #[serde(flatten)]
        piece: Piece,
    },
    /// A timeline's history file lies in the repository. The first timeline has none.
    History {
        timeline: Timeline,
        digest: Digest,
        /// Ancestors, oldest first.
        switches: Vec<TimelineSwitch>,
    },
    /// The server kept WAL no longer than it was told to; what lies between was never shipped.
    Broken {
        timeline: Timeline,
        from: Lsn,
        to: Lsn,
        at: Timestamp,
    },
    /// A row that was committed at a known time, and the LSN it ended at.
    Heartbeat(Heartbeat),
    /// A named place to go back to.
    Point {
        name: String,
        timeline: Timeline,
        lsn: Lsn,
        at: Timestamp,
    },
    /// The manifest of a backup lies in the repository.
    BackupDone { backup: BackupId, digest: Digest },
    /// A backup was removed on purpose.
    BackupRemoved { backup: BackupId },
    /// WAL was removed on purpose.
    Pruned {
        timeline: Timeline,
        from: Lsn,
        to: Lsn,
    },
}

/// A range of WAL in one object, within one segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    pub from: Lsn,
    pub to: Lsn,
    /// Of the bytes of WAL.
    pub digest: Digest,
    /// Where the last whole record ends, as far as this piece and those before it say.
    pub boundary: Lsn,
}

impl Piece {
    /// Which object holds it.
    pub fn key(&self, timeline: Timeline) -> PieceKey {
        PieceKey {
            timeline,
            from: self.from,
            to: self.to,
        }
    }
}

/// Which object holds a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PieceKey {
    pub timeline: Timeline,
    pub from: Lsn,
    pub to: Lsn,
}

/// A row committed at a known time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Ever higher, whatever the clock does.
    pub sequence: u64,
    pub timeline: Timeline,
    /// By the controller's clock.
    pub at: Timestamp,
    /// At or behind the end of its commit.
    pub lsn: Lsn,
}

/// WAL that is not there although it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hole {
    pub timeline: Timeline,
    pub from: Lsn,
    pub to: Lsn,
}

impl std::fmt::Display for Hole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (timeline, bytes) = (self.timeline, self.to.bytes_since(self.from));
        write!(
            f,
            "{} to {} of timeline {timeline} ({bytes} bytes)",
            self.from, self.to
        )
    }
}

/// How far the archive reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestorablePoint {
    pub timeline: Timeline,
    /// Where the last whole record ends.
    pub lsn: Lsn,
    /// Of the newest heartbeat before it: everything committed by then is in it.
    pub at: Option<Timestamp>,
}

/// Why pages do not add up to a ledger.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    #[error(
        "page {number} of the ledger has format {found}; this Landfast reads {}",
        Page::FORMAT
    )]
    Format { number: u64, found: u8 },
    #[error("page {number} of the ledger is missing, and page {next} is there")]
    PageMissing { number: u64, next: u64 },
    #[error("page {number} of the ledger is not the one that page {next} was written behind")]
    PageChanged { number: u64, next: u64 },
    #[error("page {number} of the ledger is of system {found}, the archive of system {system}")]
    OtherSystem {
        number: u64,
        system: u64,
        found: u64,
    },
    #[error(
        "timeline {timeline} is in the ledger with another history; a promoted copy needs an archive of its own"
    )]
    OtherHistory { timeline: Timeline },
}

/// What one timeline has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Branch {
    history: Option<(Digest, Vec<TimelineSwitch>)>,
    pieces: BTreeMap<Lsn, Piece>,
    /// Pieces whose object is missing or damaged. They count for where the archive ends, and for nothing else.
    lost: BTreeSet<Lsn>,
    pruned: Vec<(Lsn, Lsn)>,
}

/// All pages, folded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ledger {
    system: u64,
    segment_bytes: SegmentBytes,
    branches: BTreeMap<Timeline, Branch>,
    heartbeats: Vec<Heartbeat>,
    points: Vec<(String, Timeline, Lsn, Timestamp)>,
    backups: BTreeMap<BackupId, Digest>,
}

impl Ledger {
    /// An archive in which nothing has happened yet.
    pub fn new(system: u64, segment_bytes: SegmentBytes) -> Self {
        Self {
            system,
            segment_bytes,
            branches: BTreeMap::new(),
            heartbeats: Vec::new(),
            points: Vec::new(),
            backups: BTreeMap::new(),
        }
    }

    /// Folds pages, oldest first, each with the digest of its bytes. `None` for no pages.
    ///
    /// # Errors
    /// [`LedgerError`] names the first page that is missing or does not belong here.
    pub fn read(pages: &[(Page, Digest)]) -> Result<Option<Self>, LedgerError> {
        let Some((newest, _)) = pages.last() else {
            return Ok(None);
        };
        let mut ledger = Self::new(newest.system, newest.segment_bytes);
        let mut before: Option<(u64, Digest)> = None;
        for (page, digest) in pages
            .iter()
            .filter(|(page, _)| page.number >= newest.oldest)
        {
            let number = page.number;
            if page.format != Page::FORMAT {
                let found = page.format;
                return Err(LedgerError::Format { number, found });
            }
            let expected = before.map_or(newest.oldest, |(number, _)| number + 1);
            if number != expected {
                let (number, next) = (expected, number);
                return Err(LedgerError::PageMissing { number, next });
            }
            if let Some((number, digest)) = before
                && page.previous != Some(digest)
            {
                let next = page.number;
                return Err(LedgerError::PageChanged { number, next });
            }
            if page.system != ledger.system {
                let (system, found) = (ledger.system, page.system);
                return Err(LedgerError::OtherSystem {
                    number,
                    system,
                    found,
                });
            }
            page.events.iter().for_each(|event| ledger.apply(event));
            before = Some((number, *digest));
        }
        Ok(Some(ledger))
    }

    /// Folds one event.
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::Shipped { timeline, piece } => self.branch(*timeline).add(*piece),
            Event::History {
                timeline,
                digest,
                switches,
            } => self.branch(*timeline).history = Some((*digest, switches.clone())),
            // The hole shows by itself; the event is there for whoever reads the pages.
            Event::Broken { .. } => {}
            Event::Heartbeat(heartbeat) => self.beat(*heartbeat),
            Event::Point {
                name,
                timeline,
                lsn,
                at,
            } => self.points.push((name.clone(), *timeline, *lsn, *at)),
            Event::BackupDone { backup, digest } => {
                self.backups.insert(backup.clone(), *digest);
            }
            Event::BackupRemoved { backup } => {
                self.backups.remove(backup);
            }
            Event::Pruned { timeline, from, to } => {
                let branch = self.branch(*timeline);
                let is_in = |piece: &Piece| *from <= piece.from && piece.to <= *to;
                branch.pieces.retain(|_, piece| !is_in(piece));
                branch.pruned.push((*from, *to));
            }
        }
    }

    /// As a rule behind the last one. One that is told again goes to its place; a lower number that fits in nowhere is of a copy that
    /// counts anew, and says nothing until it is past the last.
    fn beat(&mut self, beat: Heartbeat) {
        let place = self
            .heartbeats
            .binary_search_by_key(&beat.sequence, |known| known.sequence);
        let Err(place) = place else { return };
        let fits = self.heartbeats.get(place).is_none_or(|next| {
            let is_before = beat.lsn <= next.lsn && beat.at <= next.at;
            beat.timeline <= next.timeline && is_before
        });
        if fits {
            self.heartbeats.insert(place, beat);
        }
    }

    /// Whether an event may be added: a timeline keeps its history.
    ///
    /// # Errors
    /// [`LedgerError::OtherHistory`].
    pub fn check(&self, event: &Event) -> Result<(), LedgerError> {
        if let Event::History {
            timeline, switches, ..
        } = event
            && let Some(Branch {
                history: Some((_, known)),
                ..
            }) = self.branches.get(timeline)
            && known != switches
        {
            let timeline = *timeline;
            return Err(LedgerError::OtherHistory { timeline });
        }
        Ok(())
    }

    /// PostgreSQL's system identifier.
    pub fn system(&self) -> u64 {
        self.system
    }

    /// How long segments are.
    pub fn segment_bytes(&self) -> SegmentBytes {
        self.segment_bytes
    }

    /// The newest timeline that has WAL.
    pub fn newest_timeline(&self) -> Option<Timeline> {
        let mut with_wal = self.branches.iter().rev();
        with_wal
            .find(|(_, branch)| !branch.pieces.is_empty())
            .map(|(timeline, _)| *timeline)
    }

    /// All timelines with anything in them, oldest first.
    pub fn timelines(&self) -> impl Iterator<Item = Timeline> + '_ {
        self.branches.keys().copied()
    }

    /// The end of the newest timeline: what a restore must reach unless it is told otherwise.
    pub fn end(&self) -> Option<RestorablePoint> {
        let timeline = self.newest_timeline()?;
        let lsn = self.end_of(timeline)?;
        Some(RestorablePoint {
            timeline,
            lsn,
            at: self.heartbeat_at(timeline, lsn).map(|beat| beat.at),
        })
    }

    /// Where the last whole record of a timeline ends.
    pub fn end_of(&self, timeline: Timeline) -> Option<Lsn> {
        let pieces = &self.branches.get(&timeline)?.pieces;
        pieces.values().map(|piece| piece.boundary).max()
    }

    /// The first byte behind what a timeline has shipped, whole record or not.
    pub fn shipped_to(&self, timeline: Timeline) -> Option<Lsn> {
        let pieces = &self.branches.get(&timeline)?.pieces;
        pieces.values().map(|piece| piece.to).max()
    }

    /// The first byte a timeline still has.
    pub(crate) fn first_of(&self, timeline: Timeline) -> Option<Lsn> {
        let pieces = &self.branches.get(&timeline)?.pieces;
        pieces.keys().next().copied()
    }

    /// The ancestors of a timeline, oldest first. The first timeline has none; `None` where the history is not known.
    pub fn ancestors(&self, timeline: Timeline) -> Option<&[TimelineSwitch]> {
        match self.branches.get(&timeline) {
            Some(Branch {
                history: Some((_, switches)),
                ..
            }) => Some(switches),
            _ if timeline.0 <= 1 => Some(&[]),
            _ => None,
        }
    }

    /// The digest of a timeline's history file.
    pub fn history_digest(&self, timeline: Timeline) -> Option<Digest> {
        let branch = self.branches.get(&timeline)?;
        branch.history.as_ref().map(|(digest, _)| *digest)
    }

    /// The pieces of a segment that can be used, in order.
    pub fn pieces_of(&self, segment: Segment) -> Vec<Piece> {
        let (start, end) = (
            segment.start(self.segment_bytes),
            segment.end(self.segment_bytes),
        );
        let branch = self.branches.get(&segment.timeline);
        let range = branch.map(|branch| branch.pieces.range(start..end));
        let lost = |from: &Lsn| branch.is_some_and(|branch| branch.lost.contains(from));
        let pieces = range.into_iter().flatten();
        let usable = pieces.filter(|(from, _)| !lost(from));
        usable.map(|(_, piece)| *piece).collect()
    }

    /// Notes that an object is missing or damaged. A restore goes round it or fails; where the archive ends stays as it was.
    pub fn mark_lost(&mut self, key: PieceKey) {
        if self.piece(key).is_some() {
            self.branch(key.timeline).lost.insert(key.from);
        }
    }

    /// Whether the object of a piece is needed no more: a longer one has taken its place, or it was pruned.
    pub fn is_let_go(&self, key: PieceKey) -> bool {
        let is_covered = self
            .shipped_to(key.timeline)
            .is_some_and(|end| key.to <= end);
        let pruned = self
            .branches
            .get(&key.timeline)
            .map(|branch| &branch.pruned);
        let mut pruned = pruned.into_iter().flatten();
        let is_pruned = pruned.any(|(from, to)| *from <= key.from && key.to <= *to);
        self.piece(key).is_none() && (is_covered || is_pruned)
    }

    /// Takes all objects for there again, before somebody looks anew.
    pub fn forget_lost(&mut self) {
        let branches = self.branches.values_mut();
        branches.for_each(|branch| branch.lost.clear());
    }

    /// All pieces, oldest first.
    pub fn pieces(&self) -> impl Iterator<Item = PieceKey> + '_ {
        self.branches.iter().flat_map(|(timeline, branch)| {
            branch.pieces.values().map(|piece| PieceKey {
                timeline: *timeline,
                from: piece.from,
                to: piece.to,
            })
        })
    }

    /// A piece by its object.
    pub fn piece(&self, key: PieceKey) -> Option<&Piece> {
        let piece = self.branches.get(&key.timeline)?.pieces.get(&key.from)?;
        (piece.to == key.to).then_some(piece)
    }

    /// The first hole between two places of a timeline.
    pub fn hole(&self, timeline: Timeline, from: Lsn, to: Lsn) -> Option<Hole> {
        let hole = |from, to| Some(Hole { timeline, from, to });
        let mut covered = from;
        let branch = self.branches.get(&timeline);
        for piece in branch.into_iter().flat_map(Branch::usable) {
            if covered >= to {
                return None;
            }
            if piece.to <= covered {
                continue;
            }
            if piece.from > covered {
                return hole(covered, piece.from.min(to));
            }
            covered = piece.to;
        }
        if covered >= to {
            None
        } else {
            hole(covered, to)
        }
    }

    /// Every hole inside what each timeline has, oldest first. What was removed on purpose is none.
    pub fn holes(&self) -> Vec<Hole> {
        let mut holes = Vec::new();
        for (timeline, branch) in &self.branches {
            let Some(first) = branch.pieces.values().next() else {
                continue;
            };
            let end = self.shipped_to(*timeline).unwrap_or(first.from);
            let mut from = first.from;
            while let Some(hole) = self.hole(*timeline, from, end) {
                from = hole.to;
                let is_meant = |(from, to): &(Lsn, Lsn)| *from <= hole.from && hole.to <= *to;
                if !branch.pruned.iter().any(is_meant) {
                    holes.push(hole);
                }
            }
        }
        holes
    }

    /// All heartbeats, oldest first.
    pub fn heartbeats(&self) -> &[Heartbeat] {
        &self.heartbeats
    }

    /// The newest heartbeat that a restore to this place brings back.
    pub fn heartbeat_at(&self, timeline: Timeline, lsn: Lsn) -> Option<&Heartbeat> {
        let mut newest_first = self.heartbeats.iter().rev();
        newest_first.find(|beat| self.is_on_path(beat.timeline, beat.lsn, timeline, lsn))
    }

    /// A named place; the newest of that name.
    pub fn point(&self, name: &str) -> Option<(Timeline, Lsn, Timestamp)> {
        let mut newest_first = self.points.iter().rev();
        let found = newest_first.find(|(known, ..)| known == name)?;
        Some((found.1, found.2, found.3))
    }

    /// All points, oldest first: name, place and the clock then.
    pub fn points(&self) -> impl Iterator<Item = (String, Lsn, Timestamp)> {
        let points = self.points.iter();
        points.map(|(name, _, lsn, at)| (name.clone(), *lsn, *at))
    }

    /// Backups whose manifest was put, with its digest.
    pub fn backups(&self) -> &BTreeMap<BackupId, Digest> {
        &self.backups
    }

    /// Whether a place of one timeline is part of the history that leads to another place.
    pub fn is_on_path(&self, timeline: Timeline, lsn: Lsn, to: Timeline, end: Lsn) -> bool {
        if timeline == to {
            return lsn <= end;
        }
        let ancestors = self.ancestors(to).unwrap_or_default();
        let switch = ancestors.iter().find(|switch| switch.parent == timeline);
        switch.is_some_and(|switch| lsn <= switch.at.min(end))
    }

    fn branch(&mut self, timeline: Timeline) -> &mut Branch {
        self.branches.entry(timeline).or_default()
    }
}

impl Branch {
    fn usable(&self) -> impl Iterator<Item = &Piece> {
        let pieces = self.pieces.iter();
        pieces
            .filter(|(from, _)| !self.lost.contains(from))
            .map(|(_, piece)| piece)
    }

    fn add(&mut self, piece: Piece) {
        let before = self.pieces.range(..=piece.from).next_back();
        if before.is_some_and(|(_, old)| piece.to < old.to) {
            return;
        }
        let within = self.pieces.range(piece.from..piece.to);
        let covered = within.filter(|(_, old)| old.to <= piece.to);
        for from in covered.map(|(from, _)| *from).collect::<Vec<_>>() {
            self.pieces.remove(&from);
            self.lost.remove(&from);
        }
        self.pieces.insert(piece.from, piece);
    }
}

/// Leaves out of a page what a later event of the same page has taken the place of.
pub fn compact(events: &mut Vec<Event>) {
    let mut ledger: BTreeMap<Timeline, Branch> = BTreeMap::new();
    for event in events.iter() {
        if let Event::Shipped { timeline, piece } = event {
            ledger.entry(*timeline).or_default().add(*piece);
        }
    }
    events.retain(|event| match event {
        Event::Shipped { timeline, piece } => {
            ledger[timeline].pieces.get(&piece.from) == Some(piece)
        }
        Event::History { .. }
        | Event::Broken { .. }
        | Event::Heartbeat(_)
        | Event::Point { .. }
        | Event::BackupDone { .. }
        | Event::BackupRemoved { .. }
        | Event::Pruned { .. } => true,
    });
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
pub(crate) mod tests;
