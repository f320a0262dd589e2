//! How the backups of a store or volume stand, as readers see it.

use std::{collections::BTreeMap, time::Duration};

use landfast_backup::{BackupId, BackupState, Lsn, RestorablePoint, Writes};
use landfast_backup_postgres::WalStatus;
use landfast_spec::BackupSpec;
use landfast_types::{Scope, StoreName, Timestamp};

use super::{
    Progress, Source,
    record::{DrillRecord, Ended, Kind},
};

/// A backup as readers see it.
#[derive(Debug, Clone)]
pub struct BackupLine {
    pub id: BackupId,
    pub at: Timestamp,
    pub state: BackupState,
    /// Where it is consistent; a dump or a snapshot has no log.
    pub stop: Option<Lsn>,
    /// Of the database's files.
    pub bytes: u64,
    /// What it added to the repository.
    pub stored_bytes: u64,
    pub took: Duration,
    pub parent: Option<BackupId>,
    /// What is not in it as one would expect, and whether that is trouble.
    pub notes: Vec<(String, bool)>,
}

/// How the backups of a store stand.
#[derive(Debug, Clone)]
pub struct BackupView {
    pub scope: Scope,
    /// The name of the store in the manifest, or of the volume.
    pub store: StoreName,
    /// The store that serves the name, and is archived.
    pub server: StoreName,
    pub source: Source,
    pub spec: BackupSpec,
    /// The archiver, where it runs.
    pub wal: Option<WalStatus>,
    /// Why nothing is archived now, and since when.
    pub trouble: Option<(Timestamp, String)>,
    /// Oldest first, as last read back.
    pub backups: Vec<BackupLine>,
    /// Named places to go back to, oldest first.
    pub points: Vec<(String, Lsn, Timestamp)>,
    /// What was wrong in the repository when it was last read.
    pub findings: Vec<String>,
    /// Work that is under way.
    pub running: Option<Progress>,
    /// How work of each kind ended last.
    pub ended: BTreeMap<Kind, Ended>,
    pub drill: Option<DrillRecord>,
    /// The newest drill of each kind.
    pub drills: BTreeMap<Kind, DrillRecord>,
    /// Disks that get full, of the store and of what waits to be shipped: a topic and a sentence.
    pub disks: BTreeMap<String, String>,
    /// Since when the app does not write, because too much waits for the archive.
    pub stopped: Option<(Timestamp, Writes)>,
    /// Bytes that wait for the archive, where writes are to stop for it.
    pub waiting: Option<u64>,
    /// Why nobody knows how many do, where that lasts: writes are not stopped, nor let go on.
    pub unseen: Option<String>,
    /// How long a restore to the newest moment would take.
    pub rto: Option<Duration>,
    /// Since when the manifest wants it backed up.
    pub since: Timestamp,
}

impl BackupView {
    /// How far a restore reaches: the newest heartbeat that was read back from the repository. Nowhere without a good backup, nor
    /// while WAL behind the newest one is lost.
    pub fn restorable(&self) -> Option<RestorablePoint> {
        let wal = self.wal.as_ref()?;
        let behind = wal.broken.map_or(Lsn(0), |hole| hole.to);
        self.good()
            .find(|backup| backup.stop.is_some_and(|stop| stop >= behind))?;
        wal.restorable
    }

    /// The same as a time. Of what has no log it is when the newest dump or snapshot began.
    pub fn restorable_to(&self) -> Option<Timestamp> {
        match self.source {
            Source::Log => self.restorable()?.at,
            Source::Dumps { .. } | Source::Volume { .. } => Some(self.good().last()?.at),
        }
    }

    /// What is lost with the server or the host at the most: the time between two dumps or snapshots. Of a log it is not counted by
    /// the clock.
    pub fn interval(&self, now: Timestamp) -> Option<Duration> {
        if self.source == Source::Log {
            return None;
        }
        let next = self.next_after(now)?;
        Some(self.next_after(next)?.since(next))
    }

    fn next_after(&self, at: Timestamp) -> Option<Timestamp> {
        let lines = [Some(&self.spec.full), self.spec.incremental.as_ref()];
        let next = lines.into_iter().flatten();
        next.filter_map(|line| line.next_after(at)).min()
    }

    /// Whether the schedule has asked twice for what did not come.
    fn is_overdue(&self, now: Timestamp) -> bool {
        let newest = self.restorable_to().filter(|_| self.source != Source::Log);
        let next = newest.and_then(|at| self.next_after(self.next_after(at)?));
        next.is_some_and(|next| next <= now)
    }

    /// Whether it is backed up as the manifest wants it, just now.
    pub fn is_up(&self, now: Timestamp) -> bool {
        let is_fresh = match self.source {
            Source::Log => {
                let wal = self.wal.as_ref();
                wal.is_some_and(|wal| !wal.is_late) && self.restorable().is_some()
            }
            Source::Dumps { .. } | Source::Volume { .. } => {
                self.restorable_to().is_some() && !self.is_overdue(now)
            }
        };
        self.trouble.is_none() && self.stopped.is_none() && is_fresh
    }

    /// What is wrong now, worst first. Empty is green.
    pub fn troubles(&self, now: Timestamp) -> Vec<String> {
        let mut troubles = self.grave(now);
        troubles.extend(self.findings.iter().cloned());
        if let Some(newest) = self.backups.last()
            && let BackupState::Bad { reason } = &newest.state
        {
            troubles.push(format!("backup {} is bad: {reason}", newest.id));
        }
        if let Some(newest) = self.backups.last() {
            let notes = newest.notes.iter().filter(|(_, is_trouble)| *is_trouble);
            troubles.extend(notes.map(|(note, _)| format!("backup {}: {note}", newest.id)));
        }
        for (kind, ended) in &self.ended {
            let is_told = matches!(kind, Kind::Full | Kind::Incremental | Kind::Verify);
            if let Some(failure) = ended.failure.as_ref().filter(|_| is_told) {
                troubles.push(format!("{kind} failed at {}: {failure}", ended.at));
            }
        }
        troubles
    }

    /// What keeps one from going back to the newest moment.
    fn grave(&self, now: Timestamp) -> Vec<String> {
        let mut troubles = Vec::new();
        troubles.extend(
            [Writes::Closed, Writes::ReadOnly]
                .map(|writes| self.writes_stopped(writes))
                .into_iter()
                .flatten(),
        );
        troubles.extend(self.unseen());
        if let Some((since, reason)) = &self.trouble {
            let what = match self.source {
                Source::Log => "archived",
                Source::Dumps { .. } | Source::Volume { .. } => "backed up",
            };
            troubles.push(format!("nothing is {what} since {since}: {reason}"));
        }
        troubles.extend(self.overdue(now));
        let wal = self.wal.as_ref();
        if let Some(hole) = wal.and_then(|wal| wal.broken.as_ref()) {
            let (from, to) = (hole.from, hole.to);
            // A backup behind it needs nothing of what is lost.
            let is_behind = |backup: &BackupLine| backup.stop.is_some_and(|stop| stop >= to);
            if !self.good().any(is_behind) {
                troubles.push(format!(
                    "the chain is broken: WAL from {from} to {to} is lost; a full backup heals it"
                ));
            }
        }
        if let Some(wal) = wal.filter(|wal| wal.is_late) {
            let to = self.restorable_to();
            let to = to.map_or("nothing".to_owned(), |at| at.to_string());
            let why = wal.failing.as_ref().or(wal.unreadable.as_ref());
            let why = why.map_or(String::new(), |why| format!(": {why}"));
            troubles.push(format!(
                "the archive does not advance, a restore reaches {to}{why}"
            ));
        }
        troubles.extend(self.drill_failed());
        troubles.extend(self.unproven(now));
        troubles
    }

    /// That the app does not write, or is not let in either, and when it will be again.
    fn writes_stopped(&self, writes: Writes) -> Option<String> {
        let (since, _) = self.stopped.filter(|(_, now)| *now >= writes)?;
        let limit = self.spec.wal_limit;
        match writes {
            Writes::Free => None,
            Writes::ReadOnly => Some(format!(
                "writes are stopped since {since}: what waits for the archive has reached `wal_limit` ({limit}); they go on by themselves when half of it is shipped"
            )),
            Writes::Closed => Some(format!(
                "nobody is let into the database: its log grew on while writes were stopped, so somebody asks for transactions that write (`wal_limit` is {limit})"
            )),
        }
    }

    /// That writes would not be stopped.
    fn unseen(&self) -> Option<String> {
        let reason = self.unseen.as_ref()?;
        Some(format!(
            "nobody knows how much waits for the archive, so `on_wal_limit = \"stop-writes\"` stops nothing: {reason}"
        ))
    }

    /// That the schedule has asked twice in vain.
    fn overdue(&self, now: Timestamp) -> Option<String> {
        let at = self.restorable_to().filter(|_| self.is_overdue(now))?;
        Some(format!(
            "the newest backup is of {at}, and the schedule has asked twice since"
        ))
    }

    fn drill_failed(&self) -> Option<String> {
        let drill = self.drill.as_ref()?;
        let failure = drill.failure.as_ref()?;
        Some(format!("the drill of {} failed: {failure}", drill.at))
    }

    fn unproven(&self, now: Timestamp) -> Option<String> {
        let max_age = self.spec.drill.max_age;
        let is_fresh = |at: Timestamp| now.since(at) <= max_age;
        match &self.drill {
            Some(drill) if drill.failure.is_some() || drill.passed_at.is_some_and(is_fresh) => None,
            Some(drill) => {
                let last = drill.passed_at;
                let last = last.map_or("never".to_owned(), |at| at.to_string());
                Some(format!("not proven: a drill passed last: {last}"))
            }
            None if is_fresh(self.since) => None,
            None => Some("not proven: no drill has passed yet".to_owned()),
        }
    }

    /// What is wrong and not told by the archiver, by topic: its state, and a sentence.
    pub(crate) fn standing(&self, now: Timestamp) -> BTreeMap<String, (&'static str, String)> {
        let mut standing = BTreeMap::new();
        let mut put = |topic: &str, state, text: Option<String>| {
            standing.extend(text.map(|text| (topic.to_owned(), (state, text))));
        };
        put("writes", "stopped", self.writes_stopped(Writes::ReadOnly));
        put("closed", "stopped", self.writes_stopped(Writes::Closed));
        put("unseen", "unseen", self.unseen());
        put("overdue", "late", self.overdue(now));
        put("unproven", "unproven", self.unproven(now));
        put("drill", "failed", self.drill_failed());
        for (topic, text) in &self.disks {
            put(topic, "disk", Some(text.clone()));
        }
        let damaged = self
            .findings
            .first()
            .map(|first| match self.findings.len() {
                1 => format!("the repository is damaged: {first}"),
                count => format!("{count} objects of the repository are damaged: {first}, …"),
            });
        put("damaged", "damaged", damaged);
        for (kind, ended) in &self.ended {
            let is_told = matches!(kind, Kind::Full | Kind::Incremental | Kind::Verify);
            let failure = ended.failure.as_ref().filter(|_| is_told);
            let text = failure.map(|failure| format!("{kind} failed at {}: {failure}", ended.at));
            put(&kind.to_string(), "failed", text);
        }
        standing
    }

    /// Why what was written of late may not be in the archive of a log.
    pub(crate) fn is_unshipped(&self) -> Option<String> {
        if self.source != Source::Log {
            return None;
        }
        if let Some((_, reason)) = &self.trouble {
            return Some(reason.clone());
        }
        let Some(wal) = &self.wal else {
            return Some("it is not archived just now".to_owned());
        };
        let away = wal.failing.clone().or(wal.unreadable.clone());
        away.or_else(|| {
            wal.is_late
                .then(|| "the archive does not advance".to_owned())
        })
    }

    fn good(&self) -> impl DoubleEndedIterator<Item = &BackupLine> {
        let backups = self.backups.iter();
        backups.filter(|backup| backup.state == BackupState::Good)
    }

    /// Why a deploy whose gates ask for it does not begin.
    pub fn is_unfit(&self, now: Timestamp) -> Option<String> {
        if self.good().next().is_none() {
            return Some("there is no good backup yet".to_owned());
        }
        if self
            .drill
            .as_ref()
            .is_none_or(|drill| drill.passed_at.is_none())
        {
            return Some("no drill has passed yet".to_owned());
        }
        self.grave(now).into_iter().next()
    }
}

#[cfg(test)]
mod tests {
    use super::{super::record, *};

    const HOUR: Duration = Duration::from_secs(3_600);

    fn view() -> BackupView {
        let spec = record::tests::spec();
        BackupView {
            scope: Scope {
                app: "shop".parse().unwrap(),
                environment: "production".parse().unwrap(),
            },
            store: "main".parse().unwrap(),
            server: "main".parse().unwrap(),
            source: Source::Log,
            spec,
            wal: None,
            trouble: None,
            backups: Vec::new(),
            points: Vec::new(),
            findings: Vec::new(),
            running: None,
            ended: BTreeMap::new(),
            drill: None,
            drills: BTreeMap::new(),
            disks: BTreeMap::new(),
            stopped: None,
            waiting: None,
            unseen: None,
            rto: None,
            since: Timestamp::EPOCH,
        }
    }

    fn topics(view: &BackupView, after: Duration) -> Vec<String> {
        let standing = view.standing(Timestamp::EPOCH + after);
        // Whatever is told is in `status` as well; that may say more of it.
        for (_, text) in standing
            .values()
            .filter(|(state, _)| ["unproven", "failed"].contains(state))
        {
            let troubles = view.troubles(Timestamp::EPOCH + after);
            assert!(troubles.contains(text), "{text}: {troubles:?}");
        }
        standing.into_keys().collect()
    }

    #[test]
    fn a_stale_drill_and_whatever_failed_are_told() {
        let mut view = view();
        assert_eq!(topics(&view, 35 * HOUR), [""; 0]);
        assert_eq!(topics(&view, 37 * HOUR), ["unproven"]);
        let failed = |why: &str| {
            DrillRecord::failed(Timestamp::EPOCH + 40 * HOUR, false, why.to_owned(), None)
        };
        view.drill = Some(failed("it did not start"));
        assert_eq!(topics(&view, 90 * HOUR), ["drill"]);
        view.drill = Some(DrillRecord {
            failure: None,
            passed_at: Some(Timestamp::EPOCH + 40 * HOUR),
            ..failed("")
        });
        assert_eq!(topics(&view, 76 * HOUR), [""; 0]);
        assert_eq!(topics(&view, 77 * HOUR), ["unproven"]);
        let ended = |failure: Option<&str>| Ended {
            at: Timestamp::EPOCH,
            took: HOUR,
            by: "schedule".into(),
            failure: failure.map(str::to_owned),
        };
        view.ended = [
            (Kind::Full, ended(Some("the server ended before it did"))),
            (Kind::Verify, ended(None)),
            (Kind::Restore, ended(Some("somebody else's business"))),
        ]
        .into();
        view.findings = vec!["`packs/1` is missing".into(), "`packs/2` is missing".into()];
        let full = ("disk of the store", "the disk of `/data` is 83 % full");
        view.disks = [(full.0.to_owned(), full.1.to_owned())].into();
        let told = ["damaged", "disk of the store", "the full backup"];
        assert_eq!(topics(&view, 50 * HOUR), told);
        view.disks.clear();
        view.stopped = Some((Timestamp::EPOCH, Writes::ReadOnly));
        assert_eq!(
            topics(&view, 50 * HOUR),
            ["damaged", "the full backup", "writes"]
        );
        view.stopped = Some((Timestamp::EPOCH, Writes::Closed));
        let told = ["closed", "damaged", "the full backup", "writes"];
        assert_eq!(topics(&view, 50 * HOUR), told);
        assert!(view.troubles(Timestamp::EPOCH)[0].contains("nobody is let in"));
        view.stopped = None;
        view.unseen = Some("it does not answer".into());
        assert_eq!(
            topics(&view, 50 * HOUR),
            ["damaged", "the full backup", "unseen"]
        );
        assert!(view.troubles(Timestamp::EPOCH)[0].contains("stops nothing: it does not answer"));
        let text = &view.standing(Timestamp::EPOCH)["damaged"].1;
        assert_eq!(
            text,
            "2 objects of the repository are damaged: `packs/1` is missing, …"
        );
    }

    #[test]
    fn a_schedule_that_asked_twice_in_vain_is_told() {
        let mut view = view();
        view.source = Source::Dumps {
            url_secret: "URL".into(),
        };
        view.spec.incremental = None;
        view.backups = vec![BackupLine {
            id: BackupId::of(1),
            at: Timestamp::EPOCH + 3 * HOUR,
            state: BackupState::Good,
            stop: None,
            bytes: 1,
            stored_bytes: 1,
            took: HOUR,
            parent: None,
            notes: Vec::new(),
        }];
        // At 3 each day.
        assert_eq!(topics(&view, 30 * HOUR), [""; 0]);
        let late = view.standing(Timestamp::EPOCH + 51 * HOUR);
        assert_eq!(late["overdue"].0, "late");
        assert!(
            view.troubles(Timestamp::EPOCH + 51 * HOUR)
                .contains(&late["overdue"].1)
        );
    }
}
