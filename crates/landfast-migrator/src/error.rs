//! Why a run ended early. No error holds a password: neither library shows the address it was given.

use landfast_datastore_client::StoreError;
use landfast_migration::{Blocked, Contradiction};

/// What is said of a statement whose database went away under it.
pub(crate) const GONE: &str =
    "; the database is gone: look why it ended (`landfast store logs`), then run again";

impl MigratorError {
    /// Whether it says nothing of the migrations: the same ones may run the next time.
    pub fn is_of_the_moment(&self) -> bool {
        match self {
            Self::Unreachable(_)
            | Self::Postgres { .. }
            | Self::Mariadb { .. }
            | Self::RunnerBusy { .. }
            | Self::NoLock { .. } => true,
            Self::Statement { reason, .. } => reason.ends_with(GONE),
            Self::Address(_)
            | Self::Pooled
            | Self::Contradictions(_)
            | Self::Blocked(_)
            | Self::Undecided { .. }
            | Self::OlderReleaseConnected { .. }
            | Self::StillWritten { .. }
            | Self::Backfill { .. }
            | Self::History { .. }
            | Self::NothingApplied
            | Self::NotNewest { .. }
            | Self::NotWhole(_)
            | Self::Reverting(_)
            | Self::NotBegun(_)
            | Self::AppliedAsItIs(_)
            | Self::NoWayDown(_)
            | Self::ContractStays(_)
            | Self::Unknown(_) => false,
        }
    }
}

/// Why a run did not do all it was asked.
#[derive(Debug, thiserror::Error)]
pub enum MigratorError {
    #[error("`{0}` is not an address of a database that migrations run on")]
    Address(&'static str),
    #[error(transparent)]
    Unreachable(#[from] StoreError),
    #[error("failed to {doing}")]
    Postgres {
        doing: String,
        #[source]
        source: tokio_postgres::Error,
    },
    #[error("failed to {doing}")]
    Mariadb {
        doing: String,
        #[source]
        source: mysql_async::Error,
    },
    #[error(
        "the address leads through a proxy that shares sessions (transaction pooling): a lock taken there is not held. \
         Give the database's own address"
    )]
    Pooled,
    #[error("another runner holds the lock for too long: {holder}; end it, or wait and run again")]
    RunnerBusy { holder: String },
    #[error("{}", contradictions(.0))]
    Contradictions(Vec<Contradiction>),
    #[error("{}", blocked(.0))]
    Blocked(Vec<Blocked>),
    #[error(
        "{migration} got no lock in {tries} tries; last: {reason}. Nothing of this step was changed. End what holds the table, \
         or run it at a quieter time"
    )]
    NoLock {
        migration: String,
        tries: u32,
        reason: String,
    },
    #[error("{migration}, statement {statement} (line {line}): {reason}")]
    Statement {
        migration: String,
        statement: usize,
        line: usize,
        reason: String,
    },
    #[error(
        "{migration}, step {step}: nobody can tell whether it took effect before its runner died. Look at the schema: finish \
         it by hand and run `landfast migrate accept {number} --reason …`, or undo what it did and delete its row of the history"
    )]
    Undecided {
        migration: String,
        number: u32,
        step: u32,
    },
    #[error(
        "{migration} was not run: {login} of another release is connected ({connections} connections). It would meet a schema \
         it cannot live with"
    )]
    OlderReleaseConnected {
        migration: String,
        login: String,
        connections: i64,
    },
    #[error(
        "{migration} was not run: in {seconds} s {writes} writes came in through what it takes away (counted by `{sequence}`), by a \
         program that is no release. Find it in the sessions of the database; the migration is tried again at the next seal"
    )]
    StillWritten {
        migration: String,
        sequence: String,
        writes: i64,
        seconds: f64,
    },
    #[error("{migration}: {reason}")]
    Backfill { migration: String, reason: String },
    #[error(
        "the history table says something unknown of migration {number:04}, step {step}: {what}; a newer Landfast may have written it"
    )]
    History {
        number: u32,
        step: u32,
        what: &'static str,
    },
    #[error("nothing is applied that could be taken back")]
    NothingApplied,
    #[error(
        "the newest migration is {newest}, not {wanted:04}: somebody migrated meanwhile; look again"
    )]
    NotNewest { newest: String, wanted: u32 },
    #[error("{0} is not applied whole; bring it to its end first (`landfast migrate up`)")]
    NotWhole(String),
    #[error(
        "{0} was being taken back when its runner ended, and half of it may be gone: `landfast migrate down` goes on with that"
    )]
    Reverting(String),
    #[error(
        "{0} has not run on this database, so there is nothing to accept; `landfast migrate up` runs it, `landfast migrate status` shows what has run"
    )]
    NotBegun(String),
    #[error("{0} is applied, and its file is the one that ran: there is nothing to accept")]
    AppliedAsItIs(String),
    #[error("{0} has no way down; write one beside it, or go forward with a new migration")]
    NoWayDown(String),
    #[error(
        "{0} is a contract migration: what it dropped is not in the way down. Restore the database to a point before it"
    )]
    ContractStays(String),
    #[error("migration {0:04} is not among the files")]
    Unknown(u32),
}

fn contradictions(all: &[Contradiction]) -> String {
    let all: Vec<String> = all.iter().map(ToString::to_string).collect();
    all.join("; ")
}

fn blocked(all: &[Blocked]) -> String {
    let all = all.iter().map(|blocked| {
        format!(
            "{:04} may not pass the contract migration {:04}, which still waits: both touch {}",
            blocked.number,
            blocked.by,
            blocked.shared.join(", ")
        )
    });
    format!(
        "{}; seal the release that brought it first",
        all.collect::<Vec<_>>().join("; ")
    )
}
