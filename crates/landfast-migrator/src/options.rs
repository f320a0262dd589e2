//! How a run goes about it, and what it tells.

use std::{collections::BTreeSet, time::Duration};

/// Which migrations run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// All, by number: nothing of the app serves.
    All,
    /// `expand` and `any`.
    Expand,
    /// `contract`.
    Contract,
}

/// Who must not be connected while a contract migration runs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Guard {
    /// Logins (or application names) of the releases that live with it.
    pub allowed: BTreeSet<String>,
    /// What the logins and application names of releases begin with.
    pub prefix: String,
}

/// How a run goes about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Recorded with each step, and in the name of the restore point.
    pub release: Option<String>,
    /// The name of a restore point that is made first, where the login may.
    pub restore_point: Option<String>,
    /// Only with contract migrations.
    pub guard: Option<Guard>,
    /// How long a statement waits for a lock, unless the file says.
    pub lock_timeout: Duration,
    /// How often a statement that got no lock is tried, in all.
    pub lock_tries: u32,
    /// The first pause between two tries; it doubles, with jitter, up to `retry_max`.
    pub retry_first: Duration,
    pub retry_max: Duration,
    /// How long a statement inside a transaction may run, unless the file says.
    pub statement_timeout: Duration,
    /// Transactions older than this on a table are waited for before its lock is asked for.
    pub blocker_age: Duration,
    /// How long the lock of another runner is waited for.
    pub runner_wait: Duration,
    /// Between two ranges of a backfill.
    pub batch_pause: Duration,
    /// For how long nothing may come in the old way before a migration that asks for it (`quiet=`) runs.
    pub quiet: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            release: None,
            restore_point: None,
            guard: None,
            lock_timeout: Duration::from_secs(2),
            lock_tries: 10,
            retry_first: Duration::from_secs(1),
            retry_max: Duration::from_secs(30),
            statement_timeout: Duration::from_secs(30),
            blocker_age: Duration::from_secs(5),
            runner_wait: Duration::from_secs(600),
            batch_pause: Duration::from_millis(10),
            quiet: Duration::from_secs(5),
        }
    }
}

/// What happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Another runner holds the lock.
    WaitsForRunner { holder: String },
    /// A migration's step begins.
    Begins {
        migration: String,
        step: u32,
        steps: u32,
    },
    /// What a dead runner left was looked at.
    Resumes { migration: String, step: u32 },
    /// A transaction that is open for long holds a table of the step.
    WaitsForTransaction { migration: String, blocker: String },
    /// It got no lock and is tried again.
    Retries {
        migration: String,
        attempt: u32,
        reason: String,
    },
    /// A range of a backfill is done.
    Backfilled {
        migration: String,
        rows: u64,
        position: String,
    },
    /// A migration is applied whole.
    Applied { migration: String },
    /// A migration was taken back.
    Reverted { migration: String },
}

impl Progress {
    /// In one line.
    pub fn sentence(&self) -> String {
        match self {
            Self::WaitsForRunner { holder } => format!("another runner holds the lock: {holder}"),
            Self::Begins {
                migration,
                step,
                steps,
            } => format!("{migration}: step {step} of {steps}"),
            Self::Resumes { migration, step } => {
                format!("{migration}: step {step} was begun before; looking at what became of it")
            }
            Self::WaitsForTransaction { migration, blocker } => {
                format!("{migration}: waits for {blocker}")
            }
            Self::Retries {
                migration,
                attempt,
                reason,
            } => format!("{migration}: attempt {attempt} failed, trying again: {reason}"),
            Self::Backfilled {
                migration,
                rows,
                position,
            } => format!("{migration}: {rows} rows, up to {position}"),
            Self::Applied { migration } => format!("{migration}: applied"),
            Self::Reverted { migration } => format!("{migration}: taken back"),
        }
    }
}

/// What a run has done.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// The titles of the migrations that it brought to their end, in order.
    pub applied: Vec<String>,
    /// Where the log stood before, where a restore point was made.
    pub restore_point: Option<String>,
}
