//! Constraints and the history of evaluations: embedded in a file, or in PostgreSQL where the environment says so
//! (`DATABASE_URL`). Calls block; they belong on a blocking thread.

mod postgres;
mod quarter;
mod sqlite;

use std::io;

use jiff::Timestamp;

use self::{postgres::Postgres, sqlite::Sqlite};
use crate::{constraint::Constraint, settings::Settings};

/// Why the store did not do as asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("failed to create folder `{folder}`")]
    Folder { folder: String, source: io::Error },
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    #[error("PostgreSQL did not do as asked")]
    Postgres(#[from] tokio_postgres::Error),
    #[error("`DATABASE_URL` is no address of a PostgreSQL")]
    Address,
    #[error("constraint `{id}` as stored cannot be read")]
    Corrupt { id: String },
}

/// Whether something was created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Created {
    Yes,
    Existed,
}

/// Which constraints a list holds.
#[derive(Debug, Clone, Default)]
pub(crate) struct Filter {
    pub kind: Option<String>,
    pub sport: Option<String>,
    pub active: Option<bool>,
    /// Only ids that sort after this one.
    pub after: Option<String>,
    pub limit: usize,
}

/// One evaluation that was made.
#[derive(Debug, Clone)]
pub(crate) struct HistoryRow {
    pub constraint_id: String,
    pub slot_id: String,
    pub result: String,
    pub evaluation_micros: i64,
    pub created_at: Timestamp,
}

/// The store.
#[derive(Debug)]
pub(crate) enum Store {
    Sqlite(Sqlite),
    Postgres(Box<Postgres>),
}

macro_rules! each {
    ($store:expr, $inner:ident => $call:expr) => {
        match $store {
            Store::Sqlite($inner) => $call,
            Store::Postgres($inner) => $call,
        }
    };
}

impl Store {
    pub(crate) fn open(settings: &Settings) -> Result<Self, StoreError> {
        match &settings.database {
            Some(url) => Postgres::open(url.reveal()).map(|store| Self::Postgres(Box::new(store))),
            None => Sqlite::open(&settings.data).map(Self::Sqlite),
        }
    }

    /// Reads and writes, so that a full disk or a lost folder shows.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        each!(self, store => store.check())
    }

    pub(crate) fn list(&self, filter: &Filter) -> Result<Vec<Constraint>, StoreError> {
        each!(self, store => store.list(filter))
    }

    pub(crate) fn get(&self, id: &str) -> Result<Option<Constraint>, StoreError> {
        each!(self, store => store.get(id))
    }

    pub(crate) fn insert(&self, new: &Constraint) -> Result<Created, StoreError> {
        each!(self, store => store.insert(new))
    }

    /// Replaces everything but the id and the instant of creation; `None` when there is no such constraint.
    pub(crate) fn replace(&self, new: &Constraint) -> Result<Option<Constraint>, StoreError> {
        each!(self, store => store.replace(new))
    }

    /// Whether it existed.
    pub(crate) fn delete(&self, id: &str) -> Result<bool, StoreError> {
        each!(self, store => store.delete(id))
    }

    pub(crate) fn record(&self, rows: &[HistoryRow]) -> Result<(), StoreError> {
        each!(self, store => store.record(rows))
    }

    /// Removes history older than `before` and says how many rows went. In PostgreSQL it also makes the partitions
    /// of the quarters to come, seen from `now`.
    pub(crate) fn prune(&self, now: Timestamp, before: Timestamp) -> Result<usize, StoreError> {
        match self {
            Self::Sqlite(store) => store.prune(before),
            Self::Postgres(store) => store.prune(now, before),
        }
    }

    /// How many evaluations are kept.
    pub(crate) fn history_count(&self) -> Result<i64, StoreError> {
        each!(self, store => store.history_count())
    }
}

#[cfg(test)]
mod tests;
