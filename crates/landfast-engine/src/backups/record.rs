//! What is written down of backups: when each schedule was kept, what began, how it ended, what was proven.

use std::{collections::BTreeMap, fmt, time::Duration};

use landfast_backup::{BackupId, Check, DrillPhases, Lsn, Rates, Verdict, Writes};
use landfast_backup_postgres::DrillReport;
use landfast_spec::{BackupSpec, CronLine};
use landfast_types::{StoreName, Timestamp};
use serde::{Deserialize, Serialize};

use super::rehearsal::DrillRehearsal;

/// The journal's collection.
pub(crate) const COLLECTION: &str = "backups";
/// A time kept further ahead of the clock than this was told by a clock that went wrong.
const AHEAD_MAX: Duration = Duration::from_secs(24 * 3_600);

/// Kinds of work on backups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    Full,
    Incremental,
    LightDrill,
    FullDrill,
    Verify,
    Prune,
    Restore,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Full => "the full backup",
            Self::Incremental => "the incremental backup",
            Self::LightDrill => "the drill",
            Self::FullDrill => "the full drill",
            Self::Verify => "the verification",
            Self::Prune => "the pruning",
            Self::Restore => "the restore",
        })
    }
}

/// How work ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    pub at: Timestamp,
    pub took: Duration,
    pub by: String,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// What a drill has shown. Read by later versions: fields are added with `#[serde(default)]` only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrillRecord {
    pub at: Timestamp,
    /// The repository it proved.
    #[serde(default)]
    pub repository: String,
    pub is_full: bool,
    /// The last one that passed, this one included.
    pub passed_at: Option<Timestamp>,
    /// The backup that it proved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passed: Option<BackupId>,
    pub backup: Option<BackupId>,
    pub reached: Option<Lsn>,
    /// What was lost if the host had been lost when it began: the age of the newest heartbeat in the copy.
    pub rpo: Option<Duration>,
    pub phases: DrillPhases,
    pub rates: Option<Rates>,
    pub checks: Vec<Check>,
    /// What pending migrations did on the copy; of a store that has none, nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rehearsal: Option<DrillRehearsal>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

impl DrillRecord {
    /// What a report says, with what is remembered of the drill before.
    pub(crate) fn of(
        at: Timestamp,
        is_full: bool,
        backup: BackupId,
        report: &DrillReport,
        before: Option<&Self>,
    ) -> Self {
        let failure = match &report.verdict {
            Verdict::Passed { .. } => None,
            Verdict::Failed { reasons } => Some(reasons.join("; ")),
        };
        let passed = failure.is_none();
        Self {
            at,
            repository: String::new(),
            is_full,
            passed_at: if passed {
                Some(at)
            } else {
                before.and_then(|before| before.passed_at)
            },
            passed: match passed {
                true => Some(backup.clone()),
                false => before.and_then(Self::proven).cloned(),
            },
            backup: Some(backup),
            reached: Some(report.facts.reached),
            rpo: report
                .facts
                .newest
                .map(|newest| report.facts.begun.since(newest)),
            phases: report.phases,
            rates: Some(report.rates),
            checks: report.facts.checks.clone(),
            rehearsal: None,
            failure,
        }
    }

    /// What checks that failed gave, a line each: for whoever may see the data.
    pub(crate) fn gave(&self) -> Vec<String> {
        let checks = self.checks.iter();
        let gave = checks.filter_map(|check| Some((&check.name, check.gave.as_ref()?)));
        gave.map(|(name, gave)| format!("{name} gave `{gave}`"))
            .collect()
    }

    /// The backup that a drill proved last.
    pub(crate) fn proven(&self) -> Option<&BackupId> {
        let own = self.backup.as_ref().filter(|_| self.failure.is_none());
        own.or(self.passed.as_ref())
    }

    /// One that did not come as far as a report.
    pub(crate) fn failed(at: Timestamp, is_full: bool, why: String, before: Option<&Self>) -> Self {
        Self {
            at,
            repository: String::new(),
            is_full,
            passed_at: before.and_then(|before| before.passed_at),
            passed: before.and_then(Self::proven).cloned(),
            backup: None,
            reached: None,
            rpo: None,
            phases: DrillPhases::default(),
            rates: before.and_then(|before| before.rates),
            checks: Vec::new(),
            rehearsal: None,
            failure: Some(why),
        }
    }
}

/// Since when a store is backed up into a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Since {
    repository: String,
    pub(crate) at: Timestamp,
}

/// A schedule, and until when it was kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    line: CronLine,
    since: Timestamp,
}

/// Work that was begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Begun {
    pub(crate) kind: Kind,
    pub(crate) at: Timestamp,
    pub(crate) by: String,
    /// The store that a restore is to become.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) into: Option<StoreName>,
}

/// Writes that are stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoppedWrites {
    /// The store whose server it is.
    pub(crate) server: StoreName,
    pub(crate) writes: Writes,
    pub(crate) since: Timestamp,
}

/// The document of a store. Read by later versions: fields are added with `#[serde(default)]` only.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Book {
    /// Repositories that were made or opened: one of them that is empty was lost, or is not mounted.
    #[serde(default)]
    pub(crate) opened: Vec<String>,
    #[serde(default)]
    pub(crate) kept: BTreeMap<Kind, Kept>,
    #[serde(default)]
    pub(crate) begun: Option<Begun>,
    #[serde(default)]
    pub(crate) ended: BTreeMap<Kind, Ended>,
    #[serde(default)]
    pub(crate) drill: Option<DrillRecord>,
    /// The store that was archived last, where it is not the one of that name.
    #[serde(default)]
    pub(crate) server: Option<StoreName>,
    /// The shortest time between two heartbeats that was ever wanted: what is kept is counted in them.
    #[serde(default)]
    pub(crate) ship_least: Option<Duration>,
    #[serde(default)]
    pub(crate) since: Option<Since>,
    /// What the newest verification found.
    #[serde(default)]
    pub(crate) findings: Vec<String>,
    /// The newest drill of each kind.
    #[serde(default)]
    pub(crate) drills: BTreeMap<Kind, DrillRecord>,
    /// Writes that were stopped, from before they are until they are free again.
    #[serde(default)]
    pub(crate) stopped: Option<StoppedWrites>,
    /// Servers that were left with stopped writes: that their apps may write again is owed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) left: Vec<StoppedWrites>,
    /// What is wrong and was told, by its topic: once it is over, that is told.
    #[serde(default)]
    pub(crate) told: BTreeMap<String, String>,
}

impl Book {
    /// Fits what was kept to what the manifest says now. A line that is new, or was written anew, counts from now on, and so
    /// does one that a wrong clock has moved into the future.
    pub(crate) fn fit(&mut self, spec: &BackupSpec, now: Timestamp) {
        self.ship_least = Some(
            self.ship_least
                .map_or(spec.ship, |least| least.min(spec.ship)),
        );
        // Nothing of another repository was proven.
        let label = spec.to.to_string();
        let is_known = |since: &Since| since.repository == label;
        if !self.since.as_ref().is_some_and(is_known) {
            self.since = Some(Since {
                repository: label.clone(),
                at: now,
            });
            self.findings.clear();
        }
        self.drills.retain(|_, drill| drill.repository == label);
        self.drill = self.drill.take().filter(|drill| drill.repository == label);
        let lines = lines(spec);
        self.kept
            .retain(|kind, _| lines.iter().any(|(known, _)| known == kind));
        for (kind, line) in lines {
            let fits = self
                .kept
                .get(&kind)
                .is_some_and(|kept| kept.line == *line && kept.since <= now + AHEAD_MAX);
            if !fits {
                let line = line.clone();
                self.kept.insert(kind, Kept { line, since: now });
            }
        }
    }

    /// What the clock asks for: the most thorough of what has come due. A check that came due before the newest backup
    /// ended has let that one pass, and goes before the next: where a backup takes as long as the time between two of
    /// them, nothing would ever be proven.
    pub(crate) fn due(&self, now: Timestamp) -> Option<Kind> {
        const BACKUPS: [Kind; 2] = [Kind::Full, Kind::Incremental];
        const CHECKS: [Kind; 3] = [Kind::FullDrill, Kind::LightDrill, Kind::Verify];
        let due_at = |kind: &Kind| {
            let kept = self.kept.get(kind)?;
            let at = kept.line.next_after(kept.since)?;
            (at <= now).then_some(at)
        };
        let backups = BACKUPS.iter().filter_map(|kind| self.ended.get(kind));
        let backed_up = backups.map(|ended| ended.at).max();
        let has_waited = |kind: &Kind| due_at(kind).is_some_and(|at| Some(at) <= backed_up);
        let waited = CHECKS.into_iter().find(has_waited);
        // A backup is drilled when it is there.
        let mut all = BACKUPS.into_iter().chain(CHECKS);
        waited.or_else(|| all.find(|kind| due_at(kind).is_some()))
    }

    /// Notes that work begins. A full one of its sort keeps the lesser one, too.
    pub(crate) fn begin(&mut self, kind: Kind, at: Timestamp, by: &str) {
        let lesser: &[Kind] = match kind {
            Kind::Full => &[Kind::Incremental],
            Kind::FullDrill => &[Kind::LightDrill, Kind::Verify],
            Kind::Incremental | Kind::LightDrill | Kind::Verify | Kind::Prune | Kind::Restore => {
                &[]
            }
        };
        for kind in lesser.iter().copied().chain([kind]) {
            if let Some(kept) = self.kept.get_mut(&kind) {
                kept.since = at;
            }
        }
        let by = by.to_owned();
        self.begun = Some(Begun {
            kind,
            at,
            by,
            into: None,
        });
    }

    /// Remembers a drill. A light one says nothing of what a full one has found.
    pub(crate) fn drilled(&mut self, mut drill: DrillRecord, repository: String) {
        drill.repository = repository;
        let kind = match drill.is_full {
            true => Kind::FullDrill,
            false => Kind::LightDrill,
        };
        self.drills.insert(kind, drill.clone());
        let is_lighter = |known: &DrillRecord| known.is_full && known.failure.is_some();
        if !drill.is_full && drill.failure.is_none() && self.drill.as_ref().is_some_and(is_lighter)
        {
            return;
        }
        self.drill = Some(drill);
    }

    /// Writes stay stopped on the server that is archived; on another one that was left it is owed to lift that. One that is archived
    /// again owes nothing, and is as it was left.
    pub(crate) fn serve_by(&mut self, server: &StoreName) {
        self.left
            .extend(self.stopped.take_if(|stopped| stopped.server != *server));
        let is_back = |left: &StoppedWrites| left.server == *server;
        if let Some(at) = self.left.iter().position(is_back) {
            let left = self.left.remove(at);
            self.stopped.get_or_insert(left);
        }
    }

    /// Servers whose writes may be stopped.
    pub(crate) fn owing(&self) -> impl Iterator<Item = &StoreName> {
        let stopped = self.left.iter().chain(&self.stopped);
        stopped.map(|stopped| &stopped.server)
    }

    /// Nobody wants it any more, and nothing is owed: whoever wants it again begins anew.
    pub(crate) fn settle(&mut self) {
        (self.stopped, self.left) = Default::default();
        (self.since, self.told) = Default::default();
    }

    /// Nothing is archived any more.
    pub(crate) fn serve_nobody(&mut self) {
        self.left.extend(self.stopped.take());
    }

    /// Notes how it ended.
    pub(crate) fn end(&mut self, at: Timestamp, failure: Option<String>) {
        let Some(begun) = self.begun.take() else {
            return;
        };
        let ended = Ended {
            at,
            took: at.since(begun.at),
            by: begun.by,
            failure,
        };
        // What is wrong with one kind of backup is mended by the other.
        if ended.failure.is_none() && begun.kind == Kind::Full {
            self.ended.remove(&Kind::Incremental);
        }
        if ended.failure.is_none() && begun.kind == Kind::FullDrill {
            self.ended.remove(&Kind::LightDrill);
        }
        self.ended.insert(begun.kind, ended);
    }
}

fn lines(spec: &BackupSpec) -> Vec<(Kind, &CronLine)> {
    let mut lines = vec![
        (Kind::Full, &spec.full),
        (Kind::LightDrill, &spec.drill.light),
        (Kind::FullDrill, &spec.drill.full),
    ];
    lines.extend(spec.verify.iter().map(|line| (Kind::Verify, line)));
    lines.extend(
        spec.incremental
            .iter()
            .map(|line| (Kind::Incremental, line)),
    );
    lines
}

#[cfg(test)]
pub(super) mod tests {
    use landfast_spec::{DrillSpec, OnWalLimit, RepositorySpec};
    use landfast_types::Bytes;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    pub(crate) fn spec() -> BackupSpec {
        let line = |text| CronLine::new(text).unwrap();
        BackupSpec {
            to: RepositorySpec::Folder {
                path: "/backup".into(),
            },
            full: line("0 3 * * * UTC"),
            incremental: Some(line("0 * * * * UTC")),
            verify: None,
            keep: 720 * 60 * MINUTE,
            keep_wal: 168 * 60 * MINUTE,
            ship: MINUTE,
            busy_rate: Bytes(24 << 20),
            wal_limit: Bytes(1 << 30),
            on_wal_limit: OnWalLimit::Break,
            drill: DrillSpec {
                light: line("30 * * * * UTC"),
                full: line("30 4 * * * UTC"),
                max_age: 36 * 60 * MINUTE,
                checks: BTreeMap::new(),
            },
        }
    }

    fn at(minutes: i64) -> Timestamp {
        Timestamp::from_millis(minutes * 60_000)
    }

    #[test]
    fn what_was_missed_is_made_up_for_once_and_the_greater_counts_for_the_lesser() {
        let mut book = Book::default();
        book.fit(&spec(), at(1));
        assert_eq!(book.due(at(29)), None);
        assert_eq!(book.due(at(30)), Some(Kind::LightDrill));
        // The server was away for a night.
        assert_eq!(book.due(at(300)), Some(Kind::Full));
        book.begin(Kind::Full, at(300), "schedule");
        assert_eq!(book.due(at(301)), Some(Kind::FullDrill));
        book.end(at(310), None);
        book.begin(Kind::FullDrill, at(310), "schedule");
        book.end(at(320), Some("it failed".into()));
        assert_eq!(book.due(at(320)), None);
        assert_eq!(book.ended[&Kind::FullDrill].took, 10 * MINUTE);
        assert_eq!(book.due(at(360)), Some(Kind::Incremental));
    }

    #[test]
    fn what_is_backed_up_without_a_pause_is_proven_too() {
        let mut book = Book::default();
        book.fit(&spec(), at(1));
        let mut now = 60;
        let mut done = Vec::new();
        for _ in 0..8 {
            let kind = book.due(at(now)).unwrap();
            book.begin(kind, at(now), "schedule");
            // As long as the time between two of them.
            now += match kind {
                Kind::Full | Kind::Incremental => 60,
                Kind::FullDrill | Kind::LightDrill | Kind::Verify | Kind::Prune | Kind::Restore => {
                    5
                }
            };
            book.end(at(now), None);
            done.push(kind);
        }
        let expected = [
            Kind::Incremental,
            Kind::LightDrill,
            Kind::Incremental,
            Kind::LightDrill,
            Kind::Full,
            Kind::LightDrill,
            Kind::Incremental,
            Kind::FullDrill,
        ];
        assert_eq!(done, expected);
    }

    #[test]
    fn a_verification_has_its_own_time_and_a_full_drill_keeps_it() {
        let mut spec = spec();
        spec.verify = Some(CronLine::new("50 * * * * UTC").unwrap());
        let mut book = Book::default();
        book.fit(&spec, at(1));
        book.begin(Kind::LightDrill, at(31), "schedule");
        assert_eq!(book.due(at(49)), None);
        assert_eq!(book.due(at(50)), Some(Kind::Verify));
        book.begin(Kind::FullDrill, at(50), "somebody");
        assert_eq!(book.due(at(51)), None);
    }

    #[test]
    fn a_server_that_is_left_with_stopped_writes_is_owed_until_it_is_archived_again() {
        let name = |name: &str| StoreName::new(name).unwrap();
        let stopped = |server: &str| StoppedWrites {
            server: name(server),
            writes: Writes::Closed,
            since: at(1),
        };
        let mut book = Book {
            stopped: Some(stopped("main")),
            ..Book::default()
        };
        book.serve_by(&name("main"));
        assert_eq!(
            (book.stopped.clone(), book.left.len()),
            (Some(stopped("main")), 0)
        );
        book.serve_by(&name("noon"));
        assert_eq!(
            (book.stopped.clone(), book.left.clone()),
            (None, vec![stopped("main")])
        );
        // A server that died meanwhile owes it still.
        let text = serde_json::to_string(&book).unwrap();
        let mut book: Book = serde_json::from_str(&text).unwrap();
        book.serve_by(&name("main"));
        assert_eq!(
            (book.stopped.clone(), book.left.len()),
            (Some(stopped("main")), 0)
        );
        book.serve_nobody();
        assert_eq!((book.stopped, book.left), (None, vec![stopped("main")]));
    }

    #[test]
    fn what_is_known_of_a_repository_outlives_the_server_and_not_the_repository() {
        let mut book = Book::default();
        book.fit(&spec(), at(1));
        book.findings = vec!["`packs/1` is missing".to_owned()];
        book.drilled(
            DrillRecord::failed(at(2), true, "it failed".into(), None),
            spec().to.to_string(),
        );
        // A light one that passes is no word on what the full one found; both are remembered.
        let mut light = DrillRecord::failed(at(3), false, String::new(), None);
        light.failure = None;
        book.drilled(light, spec().to.to_string());
        let mut book: Book = serde_json::from_slice(&serde_json::to_vec(&book).unwrap()).unwrap();
        book.fit(&spec(), at(60));
        assert_eq!(book.since.as_ref().unwrap().at, at(1));
        assert_eq!(book.findings.len(), 1);
        assert!(book.drill.as_ref().unwrap().is_full);
        assert_eq!(book.drills[&Kind::LightDrill].at, at(3));
        assert_eq!(book.drills[&Kind::FullDrill].at, at(2));
        let mut other = spec();
        other.to = RepositorySpec::Folder {
            path: "/other".into(),
        };
        book.fit(&other, at(70));
        assert_eq!(book.since.as_ref().unwrap().at, at(70));
        assert!(book.findings.is_empty() && book.drills.is_empty() && book.drill.is_none());
    }

    #[test]
    fn a_line_that_is_new_counts_from_now_on_and_a_wrong_clock_stops_nothing() {
        let mut book = Book::default();
        book.fit(&spec(), at(1));
        let mut other = spec();
        other.full = CronLine::new("0 5 * * * UTC").unwrap();
        other.incremental = None;
        book.fit(&other, at(290));
        assert_eq!(book.due(at(299)), Some(Kind::FullDrill));
        assert!(!book.kept.contains_key(&Kind::Incremental));
        assert_eq!(book.due(at(300)), Some(Kind::Full));
        // A drill that was due before the backup ended goes first, by whichever clock.
        book.begin(Kind::Full, at(1_000_000), "schedule");
        book.end(at(1_000_001), None);
        book.fit(&other, at(301));
        for expected in [Kind::FullDrill, Kind::Full] {
            let now = at(24 * 60 + 301);
            assert_eq!(book.due(now), Some(expected));
            book.begin(expected, now, "schedule");
        }
    }

    #[test]
    fn what_was_proven_stays_so_when_later_drills_fail() {
        let at = Timestamp::EPOCH;
        let passed = DrillRecord {
            backup: Some(BackupId::of(3)),
            failure: None,
            ..DrillRecord::failed(at, false, String::new(), None)
        };
        let mut drill = passed;
        for _ in 0..2 {
            drill = DrillRecord::failed(at, false, "it is torn".to_owned(), Some(&drill));
            assert_eq!(drill.proven(), Some(&BackupId::of(3)));
        }
    }
}
