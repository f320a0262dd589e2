//! One run: a fault, a seed, and what it came to.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use landfast_backup_postgres::Server;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    faults,
    oracle::{Missing, Rows},
    random::Random,
    writers::Log,
};

/// A fault of the plan, by its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    pub name: &'static str,
    pub what: &'static str,
}

/// All that are run.
pub const FAULTS: &[Fault] = &[
    Fault {
        name: "F1",
        what: "kill -9 of the archiver in a backup",
    },
    Fault {
        name: "F2",
        what: "kill -9 of its children, alone or with their group",
    },
    Fault {
        name: "F3",
        what: "kill -9 of a restore",
    },
    Fault {
        name: "F5",
        what: "kill -9 of server and archiver, data folder and spool discarded, shipping every 5 s",
    },
    Fault {
        name: "F7",
        what: "the bucket refuses, hangs, answers 503 or 403, or is slow",
    },
    Fault {
        name: "F8",
        what: "a bit, a cut, a loss in each kind of object",
    },
    Fault {
        name: "F9",
        what: "a gap in the WAL",
    },
    Fault {
        name: "F10",
        what: "a full disk: spool, pg_wal, data, scratch",
    },
    Fault {
        name: "F11",
        what: "a bit of a page on the primary",
    },
    Fault {
        name: "F12",
        what: "a wrong, rotated, lost or damaged key",
    },
    Fault {
        name: "F13",
        what: "the clock of the archiver jumps",
    },
    Fault {
        name: "F14",
        what: "retention over ten days on which every backup fails",
    },
    Fault {
        name: "F20",
        what: "a restored copy that would archive, run commands or call out",
    },
];

/// What a run came to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Outcome {
    pub fault: String,
    pub seed: u64,
    /// Which kind of the fault the seed chose.
    pub variant: String,
    pub is_passed: bool,
    /// Why it is not passed, each reason on its own.
    pub wrong: Vec<String>,
    pub acknowledged: u64,
    pub lost: u64,
    /// From the first lost commit to the fault.
    pub lost_ms: u64,
    pub took_ms: u64,
    pub figures: BTreeMap<String, Value>,
}

/// A run in progress.
pub(crate) struct Run {
    pub(crate) random: Random,
    pub(crate) seed: u64,
    pub(crate) program: PathBuf,
    /// One round instead of some.
    pub(crate) is_brief: bool,
    outcome: Outcome,
}

/// What may be lost.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Promise {
    Nothing,
    /// Of a host that is gone, at an instant.
    Within(Duration, Instant),
}

impl Run {
    pub(crate) fn variant(&mut self, variant: impl Into<String>) {
        self.outcome.variant = variant.into();
    }

    pub(crate) fn figure(&mut self, name: &str, value: impl Into<Value>) {
        self.outcome.figures.insert(name.to_owned(), value.into());
    }

    /// Demands something; the run goes on either way.
    pub(crate) fn check(&mut self, is_so: bool, wrong: impl FnOnce() -> String) {
        if !is_so {
            self.outcome.wrong.push(wrong());
        }
    }

    /// Holds a copy against the notes, and gives what is missing. A log is counted once, however many copies it is held against.
    pub(crate) async fn judge(
        &mut self,
        copy: &Server,
        log: &Log,
        promise: Promise,
    ) -> anyhow::Result<Missing> {
        let missing = Rows::read(copy, log).await?.missing(log)?;
        self.outcome.lost = self.outcome.lost.max(missing.rows);
        match promise {
            Promise::Nothing => {
                let (rows, first) = (missing.rows, missing.first);
                self.check(rows == 0, || {
                    format!("{rows} acknowledged rows are missing, from {first:?}")
                });
            }
            Promise::Within(limit, died) => {
                let age = missing.age(died);
                let millis = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
                self.outcome.lost_ms = self.outcome.lost_ms.max(millis);
                self.check(age <= limit, || {
                    format!("{age:?} were lost, and {limit:?} are promised")
                });
            }
        }
        Ok(missing)
    }

    pub(crate) fn acknowledged(&mut self, log: &Log) {
        self.outcome.acknowledged += log.rows();
    }
}

/// Runs a fault with a seed. `program` answers to the roles of this crate's binary.
///
/// # Errors
/// None: whatever goes wrong is a run that is not passed.
pub async fn run(fault: &str, seed: u64, program: &Path) -> Outcome {
    run_as(fault, seed, program, false).await
}

/// As [`run`], with one round where that takes some: for tests.
///
/// # Errors
/// None.
pub async fn run_briefly(fault: &str, seed: u64, program: &Path) -> Outcome {
    run_as(fault, seed, program, true).await
}

async fn run_as(fault: &str, seed: u64, program: &Path, is_brief: bool) -> Outcome {
    let begun = Instant::now();
    let mut run = Run {
        random: Random::new(fault, seed),
        seed,
        program: program.to_owned(),
        is_brief,
        outcome: Outcome {
            fault: fault.to_owned(),
            seed,
            variant: String::new(),
            is_passed: false,
            wrong: Vec::new(),
            acknowledged: 0,
            lost: 0,
            lost_ms: 0,
            took_ms: 0,
            figures: BTreeMap::new(),
        },
    };
    if let Err(error) = faults::run(fault, &mut run).await {
        run.outcome.wrong.push(format!("{error:#}"));
    }
    let mut outcome = run.outcome;
    outcome.is_passed = outcome.wrong.is_empty();
    outcome.took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    outcome
}
