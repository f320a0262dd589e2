//! Which backup a restore begins with, which WAL it replays, and where it ends, decided before anything is written.
//!
//! The place to end is an LSN at which a record ends. The WAL that is handed out stops there, so a server that replays all of
//! it ends there and nowhere else; whoever runs the restore compares.

use std::{fmt, time::Duration};

use landfast_types::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{Hole, Ledger, Lsn, Segment, Timeline};

/// A backup of one archive: `000012`, by its sequence.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BackupId(String);

impl BackupId {
    /// From its number among all backups of the archive.
    pub fn of(sequence: u64) -> Self {
        Self(format!("{sequence:06}"))
    }

    /// The text of it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its number; `None` for a text that is no id.
    pub fn sequence(&self) -> Option<u64> {
        let plain = self.0.bytes().all(|byte| byte.is_ascii_digit());
        plain.then(|| self.0.parse().ok()).flatten()
    }
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a backup is worth.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum BackupState {
    /// Whole; the server found nothing wrong with what it read.
    Good,
    /// Kept for a person to look at, never chosen by itself.
    Bad { reason: String },
}

/// What is decided with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupSummary {
    pub id: BackupId,
    pub timeline: Timeline,
    /// Where replay begins.
    pub start: Lsn,
    /// Where the copy is consistent.
    pub stop: Lsn,
    /// When it began, by the controller's clock.
    pub at: Timestamp,
    #[serde(flatten)]
    pub state: BackupState,
}

impl BackupSummary {
    /// Whether a restore may begin with it.
    pub fn is_good(&self) -> bool {
        self.state == BackupState::Good
    }
}

/// Where somebody wants to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The end of the archive.
    Latest,
    /// A place of the newest timeline, or of one that led to it.
    Lsn(Lsn),
    /// The newest heartbeat at or before a time.
    Time(Timestamp),
    /// A named place.
    Point(String),
}

/// What the operator has accepted, by name: the restore ends here, and what lies behind is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AcceptedLoss {
    pub reach: Lsn,
}

/// WAL of one timeline that is replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leg {
    pub timeline: Timeline,
    pub from: Lsn,
    pub to: Lsn,
}

/// What a restore will do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestorePlan {
    pub backup: BackupId,
    /// In the order of replay; the last one's `to` is where it ends.
    pub legs: Vec<Leg>,
    /// The time of the newest heartbeat in the result.
    pub at: Option<Timestamp>,
    /// What the archive has beyond the end, where the target was its end and the loss was accepted.
    pub lost: Option<Hole>,
    /// For a person: a clock that went back, a loss that was accepted.
    pub warnings: Vec<String>,
}

impl RestorePlan {
    /// The timeline it ends on.
    pub fn timeline(&self) -> Timeline {
        self.last().timeline
    }

    /// Where it ends.
    pub fn reach(&self) -> Lsn {
        self.last().to
    }

    /// How much WAL is replayed.
    pub fn wal_bytes(&self) -> u64 {
        let bytes = self.legs.iter().map(|leg| leg.to.bytes_since(leg.from));
        bytes.sum()
    }

    /// Whether a segment is part of it: then it must be handed out, or the server must stop.
    pub fn needs(&self, segment: Segment, ledger: &Ledger) -> bool {
        let size = ledger.segment_bytes();
        let (start, end) = (segment.start(size), segment.end(size));
        let mut legs = self.legs.iter();
        // A leg without bytes (a switch right at the start of a segment) needs nothing.
        legs.any(|leg| leg.timeline == segment.timeline && leg.from < end && leg.to > start)
    }

    fn last(&self) -> &Leg {
        self.legs.last().expect("a plan has at least one leg")
    }
}

/// Why there is no way.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error("the archive holds no WAL")]
    Empty,
    #[error("there is no good backup before {wanted}")]
    NoBackup { wanted: Lsn },
    #[error("there is no point `{0}`")]
    NoPoint(String),
    #[error("there is no heartbeat at or before {0}")]
    NoHeartbeat(Timestamp),
    #[error("{wanted} lies behind the end of the archive, {end}")]
    BehindTheEnd { wanted: Lsn, end: Lsn },
    #[error("the history of timeline {0} is not in the ledger")]
    NoHistory(Timeline),
    #[error("WAL is missing: {hole}; a restore would end at {reach}, {}", lost_time(.seconds))]
    WouldEndEarly {
        hole: Hole,
        reach: Lsn,
        /// Between the last heartbeat before the hole and the target's.
        seconds: Option<u64>,
    },
    #[error("{named} was accepted as the end, but a restore would end at {reach}")]
    OtherLoss { named: Lsn, reach: Lsn },
}

fn lost_time(seconds: &Option<u64>) -> String {
    match seconds {
        Some(seconds) => format!("{seconds} s before what was asked for"),
        None => "nobody knows how long before what was asked for".to_owned(),
    }
}

impl PlanError {
    /// What to do next.
    pub fn hint(&self) -> String {
        match self {
            Self::Empty | Self::NoBackup { .. } => "make a backup now".to_owned(),
            Self::NoPoint(_) => {
                "`landfast backup show STORE` lists the points of this archive".to_owned()
            }
            Self::NoHeartbeat(_) => "choose a later time, or an LSN".to_owned(),
            Self::BehindTheEnd { end, .. } => {
                format!("restore to {end}, or wait until it is shipped")
            }
            Self::NoHistory(timeline) => {
                format!("put `{}` back into the repository", timeline.history_name())
            }
            Self::WouldEndEarly { reach, .. } | Self::OtherLoss { reach, .. } => format!(
                "put what is missing back into the repository, or accept the loss: --accept-loss {reach}"
            ),
        }
    }
}

/// Plans a restore from the newest good backup from which the target can be reached without a hole.
///
/// # Errors
/// [`PlanError`]. [`PlanError::WouldEndEarly`] names the place to accept; it is never gone to without that.
pub fn plan_restore(
    ledger: &Ledger,
    backups: &[BackupSummary],
    target: &Target,
    accepted: Option<AcceptedLoss>,
) -> Result<RestorePlan, PlanError> {
    let mut warnings = Vec::new();
    let (timeline, wanted) = place(ledger, target, &mut warnings)?;
    if ledger.ancestors(timeline).is_none() {
        return Err(PlanError::NoHistory(timeline));
    }
    let on_path = |backup: &&BackupSummary| {
        backup.is_good() && ledger.is_on_path(backup.timeline, backup.stop, timeline, wanted)
    };
    let mut candidates: Vec<_> = backups.iter().filter(on_path).collect();
    candidates.sort_by(|one, other| other.id.cmp(&one.id));
    let mut best: Option<(RestorePlan, Hole)> = None;
    for backup in candidates {
        let legs = legs(ledger, backup, timeline, wanted);
        let Some((place, hole)) = first_hole(ledger, &legs) else {
            return Ok(plan(ledger, backup, legs, warnings));
        };
        let short = shorten(ledger, &legs, place, &hole);
        let short = short.filter(|legs| legs.last().is_some_and(|leg| leg.to >= backup.stop));
        if let Some(legs) = short {
            let plan = plan(ledger, backup, legs, Vec::new());
            if best
                .as_ref()
                .is_none_or(|(best, _)| best.reach() < plan.reach())
            {
                best = Some((plan, hole));
            }
        }
    }
    let (mut short, hole) = best.ok_or(PlanError::NoBackup { wanted })?;
    let reach = short.reach();
    let seconds = {
        let at = ledger.heartbeat_at(timeline, wanted).map(|beat| beat.at);
        let pair = at.zip(short.at);
        pair.map(|(wanted, reached)| wanted.since(reached).as_secs())
    };
    let accepted = accepted.ok_or(PlanError::WouldEndEarly {
        hole,
        reach,
        seconds,
    })?;
    if accepted.reach != reach {
        let named = accepted.reach;
        return Err(PlanError::OtherLoss { named, reach });
    }
    warnings.push(format!(
        "WAL is missing: {hole}; what was committed behind {reach} is lost ({})",
        lost_time(&seconds)
    ));
    short.lost = Some(hole);
    short.warnings = warnings;
    Ok(short)
}

fn place(
    ledger: &Ledger,
    target: &Target,
    warnings: &mut Vec<String>,
) -> Result<(Timeline, Lsn), PlanError> {
    let end = ledger.end().ok_or(PlanError::Empty)?;
    match target {
        Target::Latest => Ok((end.timeline, end.lsn)),
        Target::Lsn(wanted) if *wanted > end.lsn => {
            let (wanted, end) = (*wanted, end.lsn);
            Err(PlanError::BehindTheEnd { wanted, end })
        }
        Target::Lsn(wanted) => Ok((end.timeline, *wanted)),
        Target::Point(name) => {
            let (timeline, lsn, _) = ledger
                .point(name)
                .ok_or_else(|| PlanError::NoPoint(name.clone()))?;
            let end = ledger.end_of(timeline).unwrap_or_default();
            if lsn > end {
                let wanted = lsn;
                return Err(PlanError::BehindTheEnd { wanted, end });
            }
            Ok((timeline, lsn))
        }
        Target::Time(time) => {
            let beats = ledger.heartbeats();
            let shipped = |beat: &&crate::Heartbeat| {
                ledger.is_on_path(beat.timeline, beat.lsn, end.timeline, end.lsn)
            };
            // The newest by sequence: where the clock went back, that time was there twice, and the later one is meant.
            let found = beats
                .iter()
                .rev()
                .filter(shipped)
                .find(|beat| beat.at <= *time);
            let found = found.ok_or(PlanError::NoHeartbeat(*time))?;
            let back = beats.windows(2).filter(|pair| pair[1].at < pair[0].at);
            let doubtful = back
                .filter(|pair| pair[1].at <= *time && *time <= pair[0].at + Duration::from_secs(60))
                .count();
            if doubtful > 0 {
                warnings.push(format!(
                    "the clock went back {doubtful} time(s) around {time}: that time was there more than once; the last is \
                     taken, {} at {}",
                    found.lsn, found.at
                ));
            }
            Ok((found.timeline, found.lsn))
        }
    }
}

/// From the backup's start to the place, along the history.
fn legs(ledger: &Ledger, backup: &BackupSummary, timeline: Timeline, wanted: Lsn) -> Vec<Leg> {
    let ancestors = ledger.ancestors(timeline).unwrap_or_default();
    let mut legs = Vec::new();
    let mut from = backup.start;
    let path = ancestors
        .iter()
        .map(|switch| (switch.parent, switch.at))
        .chain([(timeline, wanted)]);
    for (timeline, end) in path.skip_while(|(timeline, _)| *timeline != backup.timeline) {
        let to = end.min(wanted);
        legs.push(Leg { timeline, from, to });
        from = to;
        if end >= wanted {
            break;
        }
    }
    legs
}

fn first_hole(ledger: &Ledger, legs: &[Leg]) -> Option<(usize, Hole)> {
    let mut holes = legs.iter().enumerate();
    holes.find_map(|(place, leg)| Some((place, ledger.hole(leg.timeline, leg.from, leg.to)?)))
}

/// The part before a hole, to the end of the last whole record there.
fn shorten(ledger: &Ledger, legs: &[Leg], place: usize, hole: &Hole) -> Option<Vec<Leg>> {
    let mut short = legs[..=place].to_vec();
    let last = short.last_mut()?;
    let segment = Segment::of(
        last.timeline,
        Lsn(hole.from.0.saturating_sub(1)),
        ledger.segment_bytes(),
    );
    let pieces = ledger.pieces_of(segment);
    let before = pieces.iter().rev().find(|piece| piece.to <= hole.from)?;
    last.to = before.boundary;
    Some(short)
}

fn plan(
    ledger: &Ledger,
    backup: &BackupSummary,
    legs: Vec<Leg>,
    warnings: Vec<String>,
) -> RestorePlan {
    let last = legs.last().expect("a path has its own timeline");
    let at = ledger.heartbeat_at(last.timeline, last.to);
    RestorePlan {
        backup: backup.id.clone(),
        at: at.map(|beat| beat.at),
        legs,
        lost: None,
        warnings,
    }
}

#[cfg(test)]
#[path = "restore_tests.rs"]
mod tests;
