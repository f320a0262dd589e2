//! What a runner does next, so that `kill -9` at any instant is decided.
//!
//! A migration is cut into steps, each recorded as *started* before it begins and as *applied* after. What lies between the
//! two after a crash depends on the kind of the step:
//!
//! | kind | between started and applied | so |
//! | --- | --- | --- |
//! | transaction | effect and `applied` are one transaction | it did not happen: run it |
//! | backfill | each range and its position are one transaction | go on behind the position |
//! | bare | PostgreSQL ran it outside any transaction | ask a probe |
//! | definition | MariaDB's DDL: atomic, but committed apart from the record | compare fingerprints |
//!
//! A runner holds one lock for the whole run, on the same session as the statements. So when a next runner has the lock, a
//! statement of the dead one has ended.

use serde::{Deserialize, Serialize};

use crate::{
    Engine, History, Migration, ObjectName, Script, StepState,
    ddl::{Action, Alteration, read},
};

/// One recorded unit of a migration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Its place, from 1.
    pub step: u32,
    /// Indices of its statements in the script.
    pub statements: Vec<usize>,
    /// How it runs and how it is taken up again.
    pub kind: StepKind,
}

/// How a step runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepKind {
    /// All statements and the record in one transaction.
    Transaction,
    /// One statement in ranges of keys.
    Backfill,
    /// One statement PostgreSQL runs outside transactions.
    Bare(Probe),
    /// One statement of MariaDB that commits by itself.
    Definition,
}

/// The question that tells whether a bare statement took effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// Is there a valid index of this name on this table?
    IndexValid {
        /// The index.
        index: ObjectName,
        /// Its table.
        table: ObjectName,
    },
    /// Are these indexes gone?
    IndexesGone(Vec<ObjectName>),
    /// Is it no partition any more, and is no detaching pending?
    PartitionDetached {
        /// The parent.
        table: ObjectName,
        /// The partition.
        partition: ObjectName,
    },
    /// No question: running it again does the same.
    Repeatable,
    /// No question that could be asked.
    Undecidable,
}

/// What a probe, or the comparison of fingerprints, said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Evidence {
    /// It took effect whole.
    Done,
    /// It left nothing.
    NotDone,
    /// It left an INVALID index, or a partition half detached.
    Broken,
    /// Nobody can tell.
    Unknown,
}

/// What a runner does next for one migration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// All steps are applied.
    Finished,
    /// Record the step as started, then run it.
    Begin(Step),
    /// It is recorded as started, and its effect is known not to be there: run it.
    Run(Step),
    /// It is recorded as started: find the evidence and ask again.
    Ask(Step),
    /// Remove what it left (an INVALID index; finish a half detached partition), then run it.
    Clean(Step),
    /// It took effect and only the record is missing: record it as applied.
    Record(Step),
    /// A person has to look.
    Stop(Step),
}

/// Cuts a script into steps.
pub fn steps(script: &Script, engine: Engine) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut push = |statements: Vec<usize>, kind| {
        let step = steps.len() as u32 + 1;
        steps.push(Step {
            step,
            statements,
            kind,
        });
    };
    if script.header.batch.is_some() {
        push(vec![0], StepKind::Backfill);
        return steps;
    }
    if engine == Engine::Postgres && script.header.transaction {
        push(
            (0..script.statements.len()).collect(),
            StepKind::Transaction,
        );
        return steps;
    }
    let mut run: Vec<usize> = Vec::new();
    for (index, statement) in script.statements.iter().enumerate() {
        let reading = read(statement, engine);
        let kind = if reading.outside_transaction {
            StepKind::Bare(probe(&reading.actions))
        } else if reading.commits {
            StepKind::Definition
        } else {
            StepKind::Transaction
        };
        // Settings belong to the statement behind them, and what MariaDB can take back stays together.
        if kind == StepKind::Transaction && engine == Engine::Mariadb && script.header.transaction {
            run.push(index);
            continue;
        }
        if !run.is_empty() {
            push(std::mem::take(&mut run), StepKind::Transaction);
        }
        push(vec![index], kind);
    }
    if !run.is_empty() {
        push(run, StepKind::Transaction);
    }
    steps
}

fn probe(actions: &[Action]) -> Probe {
    match actions {
        [
            Action::CreateIndex {
                name: Some(index),
                table,
                ..
            },
        ] => Probe::IndexValid {
            index: index.clone(),
            table: table.clone(),
        },
        [Action::DropIndex { names, .. }] => Probe::IndexesGone(names.clone()),
        [Action::AlterTable { table, alterations }] => match alterations.as_slice() {
            [Alteration::DetachPartition { partition, .. }] => Probe::PartitionDetached {
                table: table.clone(),
                partition: partition.clone(),
            },
            _ => Probe::Undecidable,
        },
        [Action::Reindex { .. } | Action::Vacuum | Action::VacuumFull] => Probe::Repeatable,
        _ => Probe::Undecidable,
    }
}

/// Where a way down goes on: from the first step, or from what was recorded of an earlier try.
///
/// The position says `3` before its third step, and `3|…` with the fingerprint before a definition.
pub fn down_position(position: Option<&str>) -> (u32, Option<&str>) {
    let Some(position) = position else {
        return (1, None);
    };
    match position.split_once('|') {
        Some((step, fingerprint)) => (step.parse().unwrap_or(1), Some(fingerprint)),
        None => (position.parse().unwrap_or(1), None),
    }
}

/// Decides what comes next. `evidence` is what was found for the step that is started and not applied, `None` before anybody
/// has looked.
pub fn next(migration: &Migration, history: &History, evidence: Option<Evidence>) -> Next {
    let steps = steps(&migration.up, migration.engine);
    for step in steps {
        match history
            .step(migration.number, step.step)
            .map(|record| record.state)
        {
            Some(StepState::Applied) => {}
            // Nothing ⇒ started: the record comes first.
            None => return Next::Begin(step),
            Some(StepState::Started) => return resume(step, evidence),
            // Half of it is gone again: only its way down leads on.
            Some(StepState::Reverting) => return Next::Stop(step),
        }
    }
    Next::Finished
}

fn resume(step: Step, evidence: Option<Evidence>) -> Next {
    match (&step.kind, evidence) {
        // Their record and their effect are one transaction.
        (StepKind::Transaction | StepKind::Backfill, _)
        | (StepKind::Bare(Probe::Repeatable), _) => Next::Run(step),
        (StepKind::Bare(Probe::Undecidable), None) => Next::Stop(step),
        (StepKind::Bare(_) | StepKind::Definition, None) => Next::Ask(step),
        (StepKind::Bare(_) | StepKind::Definition, Some(Evidence::Done)) => Next::Record(step),
        (StepKind::Bare(_) | StepKind::Definition, Some(Evidence::NotDone)) => Next::Run(step),
        (StepKind::Bare(_), Some(Evidence::Broken)) => Next::Clean(step),
        (StepKind::Bare(_), Some(Evidence::Unknown))
        | (StepKind::Definition, Some(Evidence::Broken | Evidence::Unknown)) => Next::Stop(step),
    }
}
