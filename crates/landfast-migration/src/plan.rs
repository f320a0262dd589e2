//! What is pending, in which phase, and what stands in the way.

use landfast_types::Digest;
use serde::Serialize;

use crate::{History, Migration, MigrationSet, Phase};

/// What a set and a history say together. Numbers, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Plan {
    /// To run before new instances start: phases `expand` and `any`, those that have begun included.
    pub expand: Vec<u32>,
    /// To run after the seal.
    pub contract: Vec<u32>,
    /// Expand files that wait for a contract file before them. Those behind a blocked one wait too.
    pub blocked: Vec<Blocked>,
    /// Where history and files contradict each other. Nothing runs while there is one.
    pub contradictions: Vec<Contradiction>,
}

/// An expand file that may not pass a waiting contract file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Blocked {
    /// The file that waits.
    pub number: u32,
    /// The contract file it waits for.
    pub by: u32,
    /// The objects both touch.
    pub shared: Vec<String>,
}

/// A contradiction between files and history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Contradiction {
    /// The file is not the one that ran.
    #[error(
        "{number:04}_{name} was changed after it ran: it ran as sha256:{applied}, the file is sha256:{file}; restore the file, and put the change into a new one"
    )]
    Edited {
        /// Its number.
        number: u32,
        /// Its name.
        name: String,
        /// The checksum that ran.
        applied: Digest,
        /// The file's.
        file: Digest,
    },
    /// It ran, and the file is gone.
    #[error("{number:04}_{name} ran as sha256:{applied}, and its file is gone; restore it")]
    Missing {
        /// Its number.
        number: u32,
        /// Its name.
        name: String,
        /// The checksum that ran.
        applied: Digest,
    },
    /// It has not run, though later ones have.
    #[error(
        "{number:04}_{name} (sha256:{file}) has not run, though {after:04} has; give it the next free number"
    )]
    OutOfOrder {
        /// Its number.
        number: u32,
        /// Its name.
        name: String,
        /// The file's checksum.
        file: Digest,
        /// The highest number that has run.
        after: u32,
    },
}

impl Plan {
    /// Compares a set with a history.
    pub fn new(set: &MigrationSet, history: &History) -> Self {
        let mut plan = Self {
            contradictions: contradictions(set, history),
            ..Self::default()
        };
        let mut waiting: Vec<&Migration> = Vec::new();
        let mut blocker = None;
        for migration in set
            .iter()
            .filter(|migration| !history.is_applied(migration.number))
        {
            if migration.phase() == Phase::Contract {
                plan.contract.push(migration.number);
                waiting.push(migration);
            } else if let Some(blocked) = blocker.clone().or_else(|| blocked(migration, &waiting)) {
                blocker = Some(Blocked {
                    number: migration.number,
                    ..blocked
                });
                plan.blocked.extend(blocker.clone());
            } else {
                plan.expand.push(migration.number);
            }
        }
        plan
    }

    /// Whether nothing is left to do.
    pub fn is_empty(&self) -> bool {
        self.expand.is_empty() && self.contract.is_empty() && self.blocked.is_empty()
    }

    /// What a run of one phase does: `contract` files run in order, and not past an expand file that is still to run.
    pub fn numbers(&self, phase: Phase) -> Vec<u32> {
        match phase {
            Phase::Expand | Phase::Any => self.expand.clone(),
            Phase::Contract => {
                let first = self.expand.first().copied().unwrap_or(u32::MAX);
                self.contract
                    .iter()
                    .copied()
                    .take_while(|number| *number < first)
                    .collect()
            }
        }
    }
}

fn blocked(migration: &Migration, waiting: &[&Migration]) -> Option<Blocked> {
    waiting.iter().find_map(|contract| {
        let shared = migration.shared_with(contract);
        (!shared.is_empty()).then_some(Blocked {
            number: migration.number,
            by: contract.number,
            shared,
        })
    })
}

fn contradictions(set: &MigrationSet, history: &History) -> Vec<Contradiction> {
    let mut found = Vec::new();
    for record in history.migrations() {
        match set.get(record.number) {
            None => found.push(Contradiction::Missing {
                number: record.number,
                name: record.name.clone(),
                applied: record.checksum,
            }),
            Some(migration) if migration.checksum != record.checksum => {
                found.push(Contradiction::Edited {
                    number: record.number,
                    name: record.name.clone(),
                    applied: record.checksum,
                    file: migration.checksum,
                });
            }
            Some(_) => {}
        }
    }
    let Some(after) = history.migrations().next_back().map(|record| record.number) else {
        return found;
    };
    let late = set
        .iter()
        .filter(|migration| migration.number < after && history.first(migration.number).is_none());
    for migration in late {
        // A contract file that waits may be passed by what shares nothing with it; every other one came too late.
        let passed = migration.phase() == Phase::Contract
            && set
                .iter()
                .filter(|other| {
                    other.number > migration.number && history.first(other.number).is_some()
                })
                .all(|other| migration.shared_with(other).is_empty());
        if !passed {
            found.push(Contradiction::OutOfOrder {
                number: migration.number,
                name: migration.name.clone(),
                file: migration.checksum,
                after,
            });
        }
    }
    found
}
