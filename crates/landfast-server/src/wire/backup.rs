//! Backups on the wire, and as metrics.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use landfast_api::{
    At, Backup, BackupEnded, BackupFrame, BackupSource, BackupWork, Drill, DrillCheck, Problem,
    ProblemCode, RestorePoint, Restored, StoreBackups, Trouble,
};
use landfast_backup::{BackupState, KeepReason};
use landfast_engine::backups::{
    BackupLine, BackupView, Done, DrillRecord, Kind, RestoreInto, Source, WorkError,
};
use landfast_types::{StoreName, Timestamp};

use super::migration::rehearsal;

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// How the backups of a store stand.
pub(crate) fn store_backups(view: &BackupView, now: Timestamp) -> StoreBackups {
    let wal = view.wal.as_ref();
    let restorable = view.restorable();
    let ended = view.ended.iter().map(|(kind, ended)| {
        let ended = BackupEnded {
            at: At(ended.at),
            took_ms: millis(ended.took),
            by: ended.by.clone(),
            failure: ended.failure.clone(),
        };
        (word(*kind).to_owned(), ended)
    });
    StoreBackups {
        store: view.store.to_string(),
        served_by: (view.server != view.store).then(|| view.server.to_string()),
        source: match view.source {
            Source::Log => BackupSource::Log,
            Source::Dumps { .. } => BackupSource::Dumps,
            Source::Volume { .. } => BackupSource::Volume,
        },
        rpo_ms: view.restorable_to().map(|at| millis(now.since(at))),
        interval_ms: view.interval(now).map(millis),
        to: view.spec.to.to_string(),
        restorable_to: view.restorable_to().map(At),
        restorable_lsn: restorable.map(|point| point.lsn.to_string()),
        confirmed_at: wal.and_then(|wal| wal.confirmed).map(At),
        troubles: view.troubles(now),
        waiting_segments: wal.map_or(0, |wal| wal.backlog as u64),
        writes_stopped_at: view.stopped.map(|(since, _)| At(since)),
        waiting_bytes: view.waiting,
        restore_ms: view.rto.map(millis),
        backups: view.backups.iter().map(backup).collect(),
        points: view
            .points
            .iter()
            .map(|(name, lsn, at)| RestorePoint {
                name: name.clone(),
                lsn: lsn.to_string(),
                at: At(*at),
            })
            .collect(),
        drill: view.drill.as_ref().map(|one| drill(&view.store, one)),
        drills: view
            .drills
            .iter()
            .map(|(kind, record)| (word(*kind).to_owned(), drill(&view.store, record)))
            .collect(),
        running: view.running.as_ref().map(|progress| BackupWork {
            kind: word(progress.kind).to_owned(),
            since: At(progress.begun),
            by: progress.by.clone(),
            doing: progress.doing.clone(),
        }),
        ended: ended.collect(),
    }
}

fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Full => "full",
        Kind::Incremental => "incremental",
        Kind::LightDrill => "light-drill",
        Kind::FullDrill => "full-drill",
        Kind::Verify => "verify",
        Kind::Prune => "prune",
        Kind::Restore => "restore",
    }
}

fn backup(line: &BackupLine) -> Backup {
    Backup {
        id: line.id.to_string(),
        at: At(line.at),
        took_ms: millis(line.took),
        bad: match &line.state {
            BackupState::Good => None,
            BackupState::Bad { reason } => Some(reason.clone()),
        },
        bytes: line.bytes,
        stored_bytes: line.stored_bytes,
        parent: line.parent.as_ref().map(ToString::to_string),
        lsn: line.stop.map(|lsn| lsn.to_string()),
        notes: line.notes.iter().map(|(note, _)| note.clone()).collect(),
    }
}

fn drill(store: &StoreName, record: &DrillRecord) -> Drill {
    let phases = &record.phases;
    let phases = [
        ("plan", phases.plan),
        ("restore", phases.restore),
        ("replay", phases.replay),
        ("checks", phases.checks),
    ];
    Drill {
        at: At(record.at),
        is_full: record.is_full,
        passed_at: record.passed_at.map(At),
        failure: record.failure.clone(),
        backup: record.backup.as_ref().map(ToString::to_string),
        reached: record.reached.map(|lsn| lsn.to_string()),
        rpo_ms: record.rpo.map(millis),
        phases_ms: phases
            .map(|(name, took)| (name.to_owned(), millis(took)))
            .into(),
        checks: record
            .checks
            .iter()
            .map(|check| DrillCheck {
                name: check.name.clone(),
                wrong: check.wrong.clone(),
                gave: check.gave.clone(),
            })
            .collect(),
        rehearsal: record
            .rehearsal
            .as_ref()
            .map(|one| rehearsal(store, &one.rehearsed())),
    }
}

/// How work ended.
pub(crate) fn backup_end(store: &StoreName, ended: &Result<Done, WorkError>) -> BackupFrame {
    let done = match ended {
        Ok(done) => done,
        Err(error) => {
            return BackupFrame::Failed {
                problem: Box::new(work_problem(error)),
            };
        }
    };
    match done {
        Done::BackedUp(line) => BackupFrame::BackedUp {
            backup: backup(line),
        },
        Done::Verified(verified) => BackupFrame::Verified {
            objects: verified.objects as u64,
            bytes: verified.bytes,
        },
        Done::Pruned(pruned) => {
            let kept = pruned.keep.backups.iter().map(|(id, reasons)| {
                let reasons = reasons.iter().map(|reason| reason_word(*reason).to_owned());
                (id.to_string(), reasons.collect())
            });
            BackupFrame::Pruned {
                buried: pruned.buried.iter().map(ToString::to_string).collect(),
                kept: kept.collect::<BTreeMap<_, Vec<_>>>(),
                deleted: pruned.deleted as u64,
            }
        }
        Done::Drilled(record) => BackupFrame::Drilled {
            drill: drill(store, record),
        },
        Done::Restored {
            backup,
            reached,
            at,
            into,
            lost,
            warnings,
            took,
        } => {
            let (store, folder) = match into {
                RestoreInto::Store(name) => (Some(name.to_string()), None),
                RestoreInto::Folder(folder) => (None, Some(folder.display().to_string())),
            };
            BackupFrame::Restored {
                restored: Restored {
                    backup: backup.to_string(),
                    reached: reached.clone(),
                    at: at.map(At),
                    store,
                    folder,
                    lost: lost.map(|hole| format!("{} to {}", hole.from, hole.to)),
                    warnings: warnings.clone(),
                    took_ms: millis(*took),
                },
            }
        }
    }
}

fn reason_word(reason: KeepReason) -> &'static str {
    match reason {
        KeepReason::LastGood => "the newest good one",
        KeepReason::Daily => "one of its day",
        KeepReason::Wal => "moments behind it are reached from it",
        KeepReason::Bad => "bad, for a look",
        KeepReason::Newer => "newer than the newest good one",
        KeepReason::Proven => "the one that a drill has proven last",
        KeepReason::Recent => "of the last two days",
    }
}

/// Why work failed.
pub(crate) fn work_problem(error: &WorkError) -> Problem {
    let mut detail = error.reason.clone();
    for finding in &error.findings {
        detail.push_str("\n  ");
        detail.push_str(finding);
    }
    let (code, hint) = match error.reach {
        Some(reach) => {
            let hint = format!(
                "`--accept-loss {reach}` restores as far as it goes; `landfast backup verify` names what is wrong"
            );
            (ProblemCode::RestoreWouldLose, Some(hint))
        }
        None => (ProblemCode::BackupFailed, error.hint.clone()),
    };
    let problem = Problem::new(code, detail);
    match hint {
        Some(hint) => problem.with_hint(hint),
        None => problem,
    }
}

/// What `status` says of backups.
pub(crate) fn backup_troubles(views: &[Arc<BackupView>], now: Timestamp) -> Vec<Trouble> {
    let each = views.iter().flat_map(|view| {
        let store = &view.store;
        let disks = view.disks.values().cloned();
        let troubles = view.troubles(now).into_iter().chain(disks);
        troubles.map(move |text| Trouble {
            text: format!("backups of `{store}`: {text}"),
            hint: Some(format!(
                "`landfast backup show {store}` shows how things stand"
            )),
        })
    });
    each.collect()
}

/// The figures of all backups for Prometheus.
pub(crate) fn backup_metrics(views: &[Arc<BackupView>], now: Timestamp) -> String {
    type Figure = fn(&BackupView, Timestamp) -> Option<f64>;
    let figures: [(&str, &str, Figure); 11] = [
        (
            "up",
            "Whether it is backed up as the manifest wants it.",
            |view, now| Some(f64::from(u8::from(view.is_up(now)))),
        ),
        (
            "restorable_timestamp_seconds",
            "The newest moment a restore reaches, as read back from the repository.",
            |view, _| view.restorable_to().map(unix),
        ),
        (
            "last_good_timestamp_seconds",
            "When the newest good backup began.",
            |view, _| {
                let good = view.backups.iter().rev();
                let mut good = good.filter(|line| line.state == BackupState::Good);
                good.next().map(|line| unix(line.at))
            },
        ),
        (
            "drill_passed_timestamp_seconds",
            "When a drill passed last.",
            |view, _| view.drill.as_ref()?.passed_at.map(unix),
        ),
        ("troubles", "How many things are wrong.", |view, now| {
            Some(view.troubles(now).len() as f64)
        }),
        (
            "restore_seconds",
            "How long a restore to the newest moment would take.",
            |view, _| view.rto.map(|rto| rto.as_secs_f64()),
        ),
        (
            "rpo_seconds",
            "What the last drill would have lost.",
            |view, _| view.drill.as_ref()?.rpo.map(|rpo| rpo.as_secs_f64()),
        ),
        (
            "interval_seconds",
            "The time between two dumps or snapshots: what is lost at the most.",
            |view, now| view.interval(now).map(|interval| interval.as_secs_f64()),
        ),
        (
            "writes_stopped",
            "Whether the app does not write because too much waits for the archive; where that is not wanted, nothing.",
            |view, _| {
                view.waiting?;
                Some(f64::from(u8::from(view.stopped.is_some())))
            },
        ),
        (
            "waiting_bytes",
            "What waits for the archive, where writes are to stop for it.",
            |view, _| view.waiting.map(|bytes| bytes as f64),
        ),
        (
            "waiting_segments",
            "Segments of the log that wait on the host.",
            |view, _| view.wal.as_ref().map(|wal| wal.backlog as f64),
        ),
    ];
    let mut text = String::new();
    for (name, help, figure) in figures {
        if views.is_empty() {
            continue;
        }
        let name = format!("landfast_backup_{name}");
        let head = format!("# HELP {name} {help}\n# TYPE {name} gauge\n");
        text.push_str(&head);
        for view in views {
            let Some(value) = figure(view, now) else {
                continue;
            };
            let (app, environment, store) = (&view.scope.app, &view.scope.environment, &view.store);
            let labels = format!("app=\"{app}\",environment=\"{environment}\",store=\"{store}\"");
            text.push_str(&format!("{name}{{{labels}}} {value}\n"));
        }
    }
    text
}

fn unix(at: Timestamp) -> f64 {
    at.as_micros() as f64 / 1e6
}
