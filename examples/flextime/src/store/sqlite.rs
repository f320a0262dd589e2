//! Embedded: constraints and the history of evaluations in one SQLite file.
//!
//! Several processes, of two releases at a time, use the file together: write-ahead log, a busy timeout, and
//! changes of the schema that only ever add. A reader never waits for a writer. Calls block; they belong on a
//! blocking thread.

use std::{
    fs,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use rusqlite::{Connection, ErrorCode, OptionalExtension as _, Row, TransactionBehavior, params};

use super::{Created, Filter, HistoryRow, StoreError};
use crate::constraint::{Constraint, Priority};

const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Rows removed in one transaction, so that pruning never holds the write lock for long.
const PRUNE_ROWS: usize = 2_000;

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS constraints (
        id TEXT PRIMARY KEY, type TEXT NOT NULL, sport TEXT NOT NULL, name TEXT NOT NULL, version TEXT NOT NULL,
        priority TEXT NOT NULL, configuration TEXT NOT NULL, metadata TEXT NOT NULL, active INTEGER NOT NULL,
        created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX IF NOT EXISTS idx_constraints_type_sport ON constraints(type, sport);
    CREATE INDEX IF NOT EXISTS idx_constraints_active ON constraints(active);
    CREATE TABLE IF NOT EXISTS evaluation_history (
        id INTEGER PRIMARY KEY, constraint_id TEXT NOT NULL, slot_id TEXT NOT NULL, result TEXT NOT NULL,
        evaluation_time INTEGER NOT NULL, created_at INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX IF NOT EXISTS idx_evaluation_history_constraint ON evaluation_history(constraint_id);
    CREATE INDEX IF NOT EXISTS idx_evaluation_history_created ON evaluation_history(created_at);
";

/// The file, opened twice.
#[derive(Debug)]
pub(crate) struct Sqlite {
    writer: Mutex<Connection>,
    reader: Mutex<Connection>,
}

impl Sqlite {
    pub(crate) fn open(folder: &Path) -> Result<Self, StoreError> {
        fs::create_dir_all(folder).map_err(|source| StoreError::Folder {
            folder: folder.display().to_string(),
            source,
        })?;
        let path = folder.join("flextime.sqlite");
        let writer = connect(&path)?;
        writer.execute_batch(&format!("BEGIN IMMEDIATE; {SCHEMA} COMMIT;"))?;
        let reader = connect(&path)?;
        reader.pragma_update(None, "query_only", true)?;
        Ok(Self {
            writer: Mutex::new(writer),
            reader: Mutex::new(reader),
        })
    }

    /// Reads and writes, so that a full disk or a lost folder shows.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        self.read().query_row(
            "SELECT count(*) FROM (SELECT 1 FROM constraints LIMIT 1)",
            [],
            |_| Ok(()),
        )?;
        // Takes the write lock and gives it back; nothing changes, and a checkpoint is not forced.
        self.write().execute_batch("BEGIN IMMEDIATE; ROLLBACK;")?;
        Ok(())
    }

    pub(crate) fn list(&self, filter: &Filter) -> Result<Vec<Constraint>, StoreError> {
        let reader = self.read();
        let mut statement = reader.prepare(
            "SELECT id, type, sport, name, version, priority, configuration, metadata, active, created_at, updated_at
             FROM constraints
             WHERE (?1 IS NULL OR type = ?1) AND (?2 IS NULL OR sport = ?2) AND (?3 IS NULL OR active = ?3)
               AND (?4 IS NULL OR id > ?4)
             ORDER BY id LIMIT ?5",
        )?;
        let limit = i64::try_from(filter.limit).unwrap_or(i64::MAX);
        let values = params![
            filter.kind,
            filter.sport,
            filter.active,
            filter.after,
            limit
        ];
        let rows = statement.query_map(values, |row| Ok(constraint(row)))?;
        rows.map(|row| row?).collect()
    }

    pub(crate) fn get(&self, id: &str) -> Result<Option<Constraint>, StoreError> {
        let reader = self.read();
        let mut statement = reader.prepare(
            "SELECT id, type, sport, name, version, priority, configuration, metadata, active, created_at, updated_at
             FROM constraints WHERE id = ?1",
        )?;
        statement
            .query_row([id], |row| Ok(constraint(row)))
            .optional()?
            .transpose()
    }

    pub(crate) fn insert(&self, new: &Constraint) -> Result<Created, StoreError> {
        let changed = self.write().execute(
            "INSERT INTO constraints (id, type, sport, name, version, priority, configuration, metadata, active, created_at, updated_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11) ON CONFLICT DO NOTHING",
            params![
                new.id, new.kind, new.sport, new.name, new.version, new.priority.name(),
                new.configuration.to_string(), new.metadata.to_string(), new.active,
                new.created_at.as_microsecond(), new.updated_at.as_microsecond(),
            ],
        )?;
        Ok(if changed == 1 {
            Created::Yes
        } else {
            Created::Existed
        })
    }

    /// Replaces everything but the id and the instant of creation; `None` when there is no such constraint.
    pub(crate) fn replace(&self, new: &Constraint) -> Result<Option<Constraint>, StoreError> {
        self.write().execute(
            "UPDATE constraints SET type = ?2, sport = ?3, name = ?4, version = ?5, priority = ?6,
                 configuration = ?7, metadata = ?8, active = ?9, updated_at = ?10 WHERE id = ?1",
            params![
                new.id,
                new.kind,
                new.sport,
                new.name,
                new.version,
                new.priority.name(),
                new.configuration.to_string(),
                new.metadata.to_string(),
                new.active,
                new.updated_at.as_microsecond(),
            ],
        )?;
        self.get(&new.id)
    }

    /// Whether it existed.
    pub(crate) fn delete(&self, id: &str) -> Result<bool, StoreError> {
        Ok(self
            .write()
            .execute("DELETE FROM constraints WHERE id = ?1", [id])?
            == 1)
    }

    pub(crate) fn record(&self, rows: &[HistoryRow]) -> Result<(), StoreError> {
        let mut writer = self.write();
        let transaction = writer.transaction_with_behavior(TransactionBehavior::Immediate)?;
        {
            let mut statement = transaction.prepare(
                "INSERT INTO evaluation_history (constraint_id, slot_id, result, evaluation_time, created_at)
                 VALUES (?1, ?2, ?3, ?4, ?5)",
            )?;
            for row in rows {
                statement.execute(params![
                    row.constraint_id,
                    row.slot_id,
                    row.result,
                    row.evaluation_micros,
                    row.created_at.as_microsecond(),
                ])?;
            }
        }
        Ok(transaction.commit()?)
    }

    /// Removes history older than `before` and says how many rows went.
    pub(crate) fn prune(&self, before: Timestamp) -> Result<usize, StoreError> {
        let mut removed = 0;
        loop {
            let rows = self.write().execute(
                "DELETE FROM evaluation_history WHERE id IN
                     (SELECT id FROM evaluation_history WHERE created_at < ?1 LIMIT ?2)",
                params![before.as_microsecond(), PRUNE_ROWS as i64],
            )?;
            removed += rows;
            if rows < PRUNE_ROWS {
                return Ok(removed);
            }
        }
    }

    /// How many evaluations are kept.
    pub(crate) fn history_count(&self) -> Result<i64, StoreError> {
        Ok(self
            .read()
            .query_row("SELECT count(*) FROM evaluation_history", [], |row| {
                row.get(0)
            })?)
    }

    fn read(&self) -> MutexGuard<'_, Connection> {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> MutexGuard<'_, Connection> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens the file. Switching to the write-ahead log needs the file alone for a moment and does not honour the
/// busy timeout, so processes that start together try again.
fn connect(path: &Path) -> Result<Connection, StoreError> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    let mut attempts = 0;
    while let Err(error) = connection.pragma_update(None, "journal_mode", "wal") {
        attempts += 1;
        let busy = matches!(
            error.sqlite_error_code(),
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)
        );
        if !busy || attempts > 100 {
            return Err(error.into());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    connection.pragma_update(None, "synchronous", "normal")?;
    Ok(connection)
}

fn constraint(row: &Row<'_>) -> Result<Constraint, StoreError> {
    let id: String = row.get(0)?;
    let json = |column: usize| -> Result<serde_json::Value, StoreError> {
        let text: String = row.get(column)?;
        serde_json::from_str(&text).map_err(|_| StoreError::Corrupt { id: id.clone() })
    };
    let instant = |column: usize| -> Result<Timestamp, StoreError> {
        Timestamp::from_microsecond(row.get(column)?)
            .map_err(|_| StoreError::Corrupt { id: id.clone() })
    };
    let priority: String = row.get(5)?;
    Ok(Constraint {
        kind: row.get(1)?,
        sport: row.get(2)?,
        name: row.get(3)?,
        version: row.get(4)?,
        priority: Priority::parse(&priority)
            .ok_or_else(|| StoreError::Corrupt { id: id.clone() })?,
        configuration: json(6)?,
        metadata: json(7)?,
        active: row.get(8)?,
        created_at: instant(9)?,
        updated_at: instant(10)?,
        id,
    })
}
