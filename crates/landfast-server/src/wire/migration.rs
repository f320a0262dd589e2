//! Migrations on the wire.

use std::{collections::BTreeMap, time::Duration};

use landfast_api::{
    At, MigratePlan, Migration, MigrationFinding, MigrationLock, MigrationPhase, MigrationRecord,
    MigrationRehearsal, MigrationStage as Stage, MigrationState, MigrationStatus, MigrationWay,
    PendingMigration, RehearsedMigration, ReleaseOutlook, Schema,
};
use landfast_engine::by_hand::{Rehearsed, Seen, Trial, WouldRun};
use landfast_migration::{Blocked, StepState, lint::Severity};
use landfast_migrator::{Row, Strength};
use landfast_rollout::{
    Environment, MigrationPhase as Phase, MigrationShape, MigrationStage, Topology,
};
use landfast_types::{ReleaseId, StoreName};

/// What each database of an environment has seen, and what it waits for.
pub(crate) fn schemas(state: &Environment) -> Vec<Schema> {
    let serving = state
        .rollout
        .as_ref()
        .filter(|rollout| rollout.is_promoted());
    let serving = serving.map(|rollout| rollout.to).or(state.serving);
    let known = serving.and_then(|release| state.releases.get(&release));
    let own = known.map(|record| record.topology.schemas.keys());
    let mut stores: Vec<&StoreName> = state
        .schemas
        .keys()
        .chain(own.into_iter().flatten())
        .collect();
    stores.sort();
    stores.dedup();
    let schema = |store: &StoreName| {
        let seen = state.schemas.get(store).map_or(&[][..], Vec::as_slice);
        let mut whole = seen.iter().filter(|migration| migration.is_whole);
        Schema {
            store: store.to_string(),
            applied: whole.clone().count() as u64,
            newest: whole.next_back().map(|migration| migration.name.clone()),
            waiting: known
                .and_then(|record| record.topology.schemas.get(store))
                .into_iter()
                .flatten()
                .filter_map(|migration| waiting(state, store, migration))
                .collect(),
        }
    };
    stores.into_iter().map(schema).collect()
}

/// What a release would bring, in the order it would run: all by number where nothing serves yet, otherwise `contract` at
/// the end.
pub(crate) fn planned(state: &Environment, topology: &Topology) -> Vec<Migration> {
    let stages = if state.serving.is_none() {
        &[MigrationStage::All][..]
    } else {
        &[MigrationStage::Expand, MigrationStage::Contract][..]
    };
    let mut planned = Vec::new();
    for stage in stages {
        for (store, migrations) in &topology.schemas {
            let due = migrations
                .iter()
                .filter(|migration| stage.takes(migration.phase));
            planned.extend(due.filter_map(|migration| waiting(state, store, migration)));
        }
    }
    planned
}

fn waiting(state: &Environment, store: &StoreName, shape: &MigrationShape) -> Option<Migration> {
    let mut seen = state.schemas.get(store).into_iter().flatten();
    let known = seen.rfind(|known| known.number == shape.number);
    if known.is_some_and(|known| known.is_whole) {
        return None;
    }
    Some(Migration {
        store: store.to_string(),
        name: shape.name.clone(),
        phase: match shape.phase {
            Phase::Expand => MigrationPhase::Expand,
            Phase::Contract => MigrationPhase::Contract,
            Phase::Any => MigrationPhase::Any,
        },
        begun: known.is_some(),
    })
}

/// What a database says of itself.
pub(crate) fn migration_status(store: &StoreName, seen: &Seen) -> MigrationStatus {
    let mut by_number: BTreeMap<u32, Vec<&Row>> = BTreeMap::new();
    for row in &seen.rows {
        by_number.entry(row.record.number).or_default().push(row);
    }
    MigrationStatus {
        store: store.to_string(),
        engine: seen.engine.to_string(),
        migrations: by_number.values().filter_map(|rows| record(rows)).collect(),
        runner: seen.runner.clone(),
    }
}

/// A migration from the rows of its steps.
fn record(rows: &[&Row]) -> Option<MigrationRecord> {
    let first = &rows.first()?.record;
    let of = |state| {
        let rows = rows.iter().filter(move |row| row.record.state == state);
        rows.map(|row| row.record.step)
    };
    let steps_applied = of(StepState::Applied).count() as u32;
    let state = if first.state == StepState::Reverting {
        MigrationState::Reverting
    } else if steps_applied == first.steps {
        MigrationState::Applied
    } else {
        MigrationState::Begun
    };
    let notes = rows.iter().map(|row| &row.notes);
    Some(MigrationRecord {
        number: first.number,
        name: format!("{:04}_{}", first.number, first.name),
        phase: file_phase(first.phase),
        state,
        steps: first.steps,
        steps_applied,
        steps_open: of(StepState::Started).collect(),
        checksum: first.checksum.to_string(),
        release: first.release.clone(),
        started_at: notes.clone().filter_map(|one| one.started_at).min().map(At),
        applied_at: match state {
            MigrationState::Applied => notes.clone().filter_map(|one| one.applied_at).max().map(At),
            MigrationState::Begun | MigrationState::Reverting | MigrationState::Unknown => None,
        },
        accepted: notes.clone().find_map(|one| one.accepted.clone()),
    })
}

fn file_phase(phase: landfast_migration::Phase) -> MigrationPhase {
    match phase {
        landfast_migration::Phase::Expand => MigrationPhase::Expand,
        landfast_migration::Phase::Contract => MigrationPhase::Contract,
        landfast_migration::Phase::Any => MigrationPhase::Any,
    }
}

/// What a folder would do to a database.
pub(crate) fn migrate_plan(
    store: &StoreName,
    would: &WouldRun,
    serving: Option<ReleaseId>,
) -> MigratePlan {
    let (set, history, plan) = (&would.set, &would.history, &would.plan);
    let is_pending =
        |migration: &&landfast_migration::Migration| !history.is_applied(migration.number);
    let pending = |migration: &landfast_migration::Migration| {
        let mut blocked = plan.blocked.iter();
        let blocked = blocked.find(|blocked| blocked.number == migration.number);
        let phase = file_phase(migration.phase());
        PendingMigration {
            number: migration.number,
            name: migration.title(),
            phase,
            stage: match (blocked, phase) {
                (Some(_), _) => Stage::Blocked,
                (None, MigrationPhase::Contract) => Stage::Contract,
                (None, _) => Stage::Expand,
            },
            blocked_by: blocked.map(|blocked| blocker(would, blocked)),
            begun: history.is_begun(migration.number),
            findings: findings(would, &format!("{}.sql", migration.title())),
        }
    };
    MigratePlan {
        store: store.to_string(),
        engine: set.engine().to_string(),
        applied: set
            .iter()
            .filter(|one| history.is_applied(one.number))
            .count() as u32,
        pending: set.iter().filter(is_pending).map(pending).collect(),
        contradictions: plan
            .contradictions
            .iter()
            .map(ToString::to_string)
            .collect(),
        releases: would
            .releases
            .iter()
            .rev()
            .map(|outlook| ReleaseOutlook {
                release: outlook.release.0,
                serves: serving == Some(outlook.release),
                broken_by: outlook.now.clone(),
                broken_by_pending: outlook.after_contract.clone(),
                lacks: outlook.lacks.clone(),
            })
            .collect(),
    }
}

fn blocker(would: &WouldRun, blocked: &Blocked) -> String {
    let title = would
        .set
        .get(blocked.by)
        .map(landfast_migration::Migration::title);
    let title = title.unwrap_or_else(|| format!("{:04}", blocked.by));
    format!("{title} (both touch {})", blocked.shared.join(", "))
}

fn findings(would: &WouldRun, file: &str) -> Vec<MigrationFinding> {
    let own = would.findings.iter().filter(|finding| finding.file == file);
    own.map(|finding| MigrationFinding {
        rule: finding.rule.to_owned(),
        severity: match finding.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Notice => "notice",
        }
        .to_owned(),
        message: finding.message.clone(),
        fix: finding.fix.to_owned(),
        line: finding.line as u32,
        allowed: finding.allowed.clone(),
    })
    .collect()
}

/// What migrations did on a copy.
pub(crate) fn rehearsal(store: &StoreName, rehearsed: &Rehearsed) -> MigrationRehearsal {
    MigrationRehearsal {
        store: store.to_string(),
        engine: rehearsed.engine.to_string(),
        copied_bytes: rehearsed.copied.0,
        copying_ms: millis(rehearsed.copying),
        migrations: rehearsed.migrations.iter().map(trial).collect(),
        failure: rehearsed.failure.clone(),
        is_cut_short: rehearsed.is_cut_short,
    }
}

fn trial(trial: &Trial) -> RehearsedMigration {
    let seen = &trial.observed;
    let lock = |lock: &landfast_migrator::TableLock| MigrationLock {
        table: lock.table.clone(),
        mode: lock.mode.clone(),
        stops: match lock.strength {
            Strength::Neither => "nobody",
            Strength::Writers => "writers",
            Strength::Everybody => "everybody",
        }
        .to_owned(),
        held_ms: millis(lock.held),
    };
    let way = |way: &landfast_migrator::Way| MigrationWay {
        line: way.line as u32,
        algorithm: way.algorithm.clone(),
        rows_copied: way.rows_copied,
    };
    RehearsedMigration {
        name: seen.migration.clone(),
        took_ms: millis(seen.took),
        locks: seen.locks.iter().map(lock).collect(),
        rewritten: seen.rewritten.clone(),
        wal_bytes: seen.wal_bytes,
        ways: seen.ways.iter().map(way).collect(),
        exceeded: trial.exceeded.clone(),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
