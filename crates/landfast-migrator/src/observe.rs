//! What a migration does to a database, as it is seen from inside: which locks it held for how long, what it wrote anew.
//!
//! PostgreSQL tells a transaction its own locks before it commits, and another session those of a statement that runs outside
//! one. MariaDB tells neither; there it counts which way of changing a table the server agreed to, and what it copied.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// The clock that durations are measured by.
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// What one migration did. Kept in the journal: fields are added with `#[serde(default)]` only.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Observed {
    /// Its title.
    pub migration: String,
    /// From its first step to its last record.
    pub took: Duration,
    /// The strongest lock of each table that was there before. Empty where the engine does not tell.
    pub locks: Vec<TableLock>,
    /// Tables that were written anew as a whole.
    pub rewritten: Vec<String>,
    /// What was written to the log meanwhile, by the whole server. `None`: not told.
    pub wal_bytes: Option<u64>,
    /// MariaDB: how each definition was done, and the rows it copied.
    pub ways: Vec<Way>,
}

impl Observed {
    /// The longest that one table was closed to writers or readers.
    pub fn longest_lock(&self) -> Duration {
        let stopping = self
            .locks
            .iter()
            .filter(|lock| lock.strength != Strength::Neither);
        stopping
            .map(|lock| lock.held)
            .max()
            .unwrap_or(Duration::ZERO)
    }
}

/// A lock on a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableLock {
    pub table: String,
    /// As the engine names it, such as `AccessExclusiveLock`.
    pub mode: String,
    pub strength: Strength,
    /// From the start of the statement that took it to its release: not shorter than it was held.
    pub held: Duration,
}

/// Whom a lock stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strength {
    Neither,
    Writers,
    /// Readers and writers.
    Everybody,
}

/// How MariaDB did a definition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Way {
    /// The statement's line.
    pub line: usize,
    /// `INSTANT`, `NOCOPY`, `INPLACE`, or what the file says.
    pub algorithm: String,
    /// Rows that the server says it copied.
    pub rows_copied: u64,
}

/// Locks that are held now, by table.
#[derive(Debug, Default)]
pub(crate) struct Held {
    tables: BTreeMap<String, (usize, Instant)>,
    ended: BTreeMap<String, (usize, Duration)>,
}

/// PostgreSQL's modes of table locks, the weakest first.
const MODES: [&str; 8] = [
    "AccessShareLock",
    "RowShareLock",
    "RowExclusiveLock",
    "ShareUpdateExclusiveLock",
    "ShareLock",
    "ShareRowExclusiveLock",
    "ExclusiveLock",
    "AccessExclusiveLock",
];

/// From which place on writers are stopped, and everybody is.
const STOPS_WRITERS: usize = 4;
const STOPS_EVERYBODY: usize = 7;

impl Held {
    /// A lock is seen that a statement took which began at this instant.
    pub(crate) fn see(&mut self, table: &str, mode: &str, since: Instant) {
        let Some(place) = MODES.iter().position(|known| *known == mode) else {
            return;
        };
        let known = self
            .tables
            .entry(table.to_owned())
            .or_insert((place, since));
        // A stronger one counts from where it came; one that stopped nobody before it does not matter.
        if place > known.0 {
            let since = if known.0 < STOPS_WRITERS {
                since
            } else {
                known.1
            };
            *known = (place, since);
        }
    }

    /// All locks are let go at this instant.
    pub(crate) fn release(&mut self, at: Instant) {
        for (table, (place, since)) in std::mem::take(&mut self.tables) {
            let held = at.duration_since(since);
            let ended = self.ended.entry(table).or_insert((place, held));
            match place.cmp(&ended.0) {
                std::cmp::Ordering::Greater => *ended = (place, held),
                std::cmp::Ordering::Equal => ended.1 = ended.1.max(held),
                std::cmp::Ordering::Less => {}
            }
        }
    }

    /// Of a statement that lets locks go before it ends: only these are held now.
    pub(crate) fn release_others(&mut self, present: &BTreeSet<&str>, at: Instant) {
        let (kept, gone) = std::mem::take(&mut self.tables)
            .into_iter()
            .partition(|(table, _)| present.contains(table.as_str()));
        self.tables = gone;
        self.release(at);
        self.tables = kept;
    }

    /// None of them was kept: the transaction was taken back and will be tried again.
    pub(crate) fn forget(&mut self) {
        self.tables.clear();
    }

    /// The strongest lock of each of these tables.
    pub(crate) fn strongest(self, of: impl Fn(&str) -> bool) -> Vec<TableLock> {
        let ended = self.ended.into_iter().filter(|(table, _)| of(table));
        ended
            .map(|(table, (place, held))| TableLock {
                table,
                mode: MODES[place].to_owned(),
                strength: match place {
                    STOPS_EVERYBODY.. => Strength::Everybody,
                    STOPS_WRITERS.. => Strength::Writers,
                    _ => Strength::Neither,
                },
                held,
            })
            .collect()
    }
}
