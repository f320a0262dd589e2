//! The journal in one SQLite file.
//!
//! One connection writes, behind a mutex, in `BEGIN IMMEDIATE` transactions; another reads, so that a long
//! listing delays no rollout. Positions and revisions are counted in the same transaction as what they
//! number, so a reader that has seen position *n* will never be shown an older one later. Two processes on
//! one file are safe: one waits for the other, up to the busy timeout, and whoever comes second with an old
//! `expected` is refused. A file gets its name only once it is whole: see [`open`](SqliteJournal::open).

mod files;
mod rows;

use std::{
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use landfast_types::Generation;
use rusqlite::{
    Connection, ErrorCode, OptionalExtension, Transaction, TransactionBehavior, params,
};

use crate::{
    AppendError, Change, CompactError, Document, DocumentConflict, Journal, NewRecord, OpenError,
    PutError, RECORDS_KEPT, ReadError, Record, Snapshot, SnapshotError, StorageError, checksum,
};

pub use files::SCHEMA_VERSION;

/// How a journal is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// How long a call waits for another process that holds the lock.
    pub busy_timeout: Duration,
    /// The most pages of 4 KiB the file may grow to; `None` for what the disk has.
    pub pages_max: Option<u32>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            busy_timeout: Duration::from_secs(5),
            pages_max: None,
        }
    }
}

/// A journal in one SQLite file. Share it by `Arc`.
#[derive(Debug)]
pub struct SqliteJournal {
    path: PathBuf,
    writer: Mutex<Connection>,
    reader: Mutex<Connection>,
    /// The generation that was taken through this value; none yet is 0.
    generation: AtomicU64,
}

impl SqliteJournal {
    /// Opens the journal at `path`, creating it where there is none. It is built under another name and
    /// linked into place when whole, so what carries the name is a journal or has been damaged, and is then
    /// refused, never replaced.
    ///
    /// # Errors
    /// One variant of [`OpenError`] per thing an operator can do about it; see [`OpenError::hint`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        Self::open_with(path, Options::default())
    }

    /// Opens the journal with other settings than the usual.
    ///
    /// # Errors
    /// See [`SqliteJournal::open`].
    pub fn open_with(path: impl AsRef<Path>, options: Options) -> Result<Self, OpenError> {
        let path = path.as_ref().to_path_buf();
        let (writer, reader) = files::open(&path, options)?;
        Ok(Self {
            path,
            writer: Mutex::new(writer),
            reader: Mutex::new(reader),
            generation: AtomicU64::new(0),
        })
    }

    /// Where the journal lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn writer(&self) -> MutexGuard<'_, Connection> {
        // A transaction that a panic dropped was rolled back; the connection itself is sound.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reader(&self) -> MutexGuard<'_, Connection> {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work` in a transaction that is on disk when this returns, or never was. Refused once somebody else has taken
    /// a newer generation.
    fn write<T, E: From<StorageError>>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        self.write_unfenced(|transaction| {
            self.check_fence(transaction)?;
            work(transaction)
        })
    }

    /// Whoever has taken a generation writes no more once there is a newer one. Who has taken none is no server.
    fn check_fence(&self, transaction: &Transaction<'_>) -> Result<(), StorageError> {
        let own = self.generation.load(Ordering::Relaxed);
        let newest = transaction.query_row(
            "SELECT value FROM counter WHERE name = 'generation'",
            [],
            |row| row.get::<_, i64>(0),
        );
        let newest = newest.map_err(|error| self.fault(error))?;
        let newest = u64::try_from(newest).unwrap_or(u64::MAX);
        if own == 0 || own >= newest {
            return Ok(());
        }
        Err(StorageError::Superseded {
            own: Generation(own),
            newest: Generation(newest),
        })
    }

    fn write_unfenced<T, E: From<StorageError>>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut writer = self.writer();
        let begun = writer.transaction_with_behavior(TransactionBehavior::Immediate);
        let transaction = begun.map_err(|error| self.fault(error))?;
        let outcome = work(&transaction)?;
        transaction.commit().map_err(|error| self.fault(error))?;
        Ok(outcome)
    }

    /// Runs `work` on one consistent view.
    fn view<T, E: From<StorageError>>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut reader = self.reader();
        let transaction = reader.transaction().map_err(|error| self.fault(error))?;
        work(&transaction)
    }

    fn fault(&self, error: rusqlite::Error) -> StorageError {
        let path = self.path.clone();
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => StorageError::Full { path },
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                StorageError::Busy { path }
            }
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => StorageError::Damaged {
                path,
                source: error.into(),
            },
            _ if files::out_of_space(&error) => StorageError::Full { path },
            _ => StorageError::Io {
                path,
                source: error.into(),
            },
        }
    }

    /// The last number of a stream, counted in two ways that damage would have to change alike.
    fn last_of(&self, connection: &Connection, stream: &str) -> Result<u64, CountError> {
        let damaged = |sequence| CountError::Damaged {
            stream: stream.to_owned(),
            sequence,
        };
        let query = "SELECT (SELECT last FROM stream WHERE name = ?1), \
                     (SELECT max(sequence) FROM record WHERE stream = ?1)";
        let columns = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
        let (named, found): (Option<i64>, Option<i64>) = connection
            .query_row(query, [stream], columns)
            .map_err(|error| {
                if rows::misshapen(&error) {
                    damaged(0)
                } else {
                    self.fault(error).into()
                }
            })?;
        if named != found {
            return Err(damaged(rows::unsigned(named.max(found).unwrap_or(0))));
        }
        Ok(rows::unsigned(named.unwrap_or(0)))
    }

    /// Tells a row of the wrong shape, which is damage to that row, from a fault of the storage.
    fn damage(&self, error: rusqlite::Error, damaged: impl FnOnce() -> ReadError) -> ReadError {
        if rows::misshapen(&error) {
            damaged()
        } else {
            self.fault(error).into()
        }
    }

    /// Takes the next value of a counter.
    fn count(&self, transaction: &Transaction<'_>, name: &str) -> Result<u64, StorageError> {
        let query = "UPDATE counter SET value = value + 1 WHERE name = ?1 RETURNING value";
        let value = transaction.query_row(query, [name], |row| row.get::<_, i64>(0));
        value.map(rows::unsigned).map_err(|error| self.fault(error))
    }

    fn insert(&self, transaction: &Transaction<'_>, record: &Record) -> Result<(), StorageError> {
        let query = "INSERT INTO record (position, stream, sequence, kind, version, at, body, checksum) \
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
        let values = params![
            rows::signed(record.position),
            record.stream,
            rows::signed(record.sequence),
            record.kind,
            record.version,
            record.at.as_micros(),
            record.body,
            checksum::of_record(record),
        ];
        transaction
            .execute(query, values)
            .map_err(|error| self.fault(error))?;
        Ok(())
    }

    fn change_one<E: From<StorageError> + From<DocumentConflict>>(
        &self,
        transaction: &Transaction<'_>,
        change: &Change,
    ) -> Result<(), E> {
        let (Change::Put {
            collection,
            key,
            expected,
            ..
        }
        | Change::Delete {
            collection,
            key,
            expected,
        }) = change;
        let query = "SELECT revision FROM document WHERE collection = ?1 AND key = ?2";
        let found = transaction.query_row(query, [collection, key], |row| row.get::<_, i64>(0));
        let found = found.optional().map_err(|error| self.fault(error))?;
        let found = rows::unsigned(found.unwrap_or(0));
        if let Some(expected) = expected.filter(|expected| *expected != found) {
            let (collection, key) = (collection.clone(), key.clone());
            return Err(DocumentConflict {
                collection,
                key,
                expected,
                found,
            }
            .into());
        }
        let revision = self.count(transaction, "revision")?;
        let done = match change {
            Change::Put {
                collection,
                key,
                body,
                ..
            } => {
                let (collection, key, body) = (collection.clone(), key.clone(), body.clone());
                let document = Document {
                    collection,
                    key,
                    revision,
                    body,
                };
                let query = "INSERT INTO document (collection, key, revision, body, checksum) \
                             VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (collection, key) DO UPDATE \
                             SET revision = excluded.revision, body = excluded.body, checksum = excluded.checksum";
                let values = params![
                    document.collection,
                    document.key,
                    rows::signed(revision),
                    document.body,
                    checksum::of_document(&document),
                ];
                transaction.execute(query, values)
            }
            Change::Delete {
                collection, key, ..
            } => {
                let query = "DELETE FROM document WHERE collection = ?1 AND key = ?2";
                transaction.execute(query, [collection, key])
            }
        };
        done.map_err(|error| self.fault(error))?;
        Ok(())
    }

    fn snapshot_of(
        &self,
        connection: &Connection,
        stream: &str,
    ) -> Result<Option<Snapshot>, ReadError> {
        let damaged = || ReadError::DamagedSnapshot {
            stream: stream.to_owned(),
        };
        let query =
            "SELECT stream, sequence, version, body, checksum FROM snapshot WHERE stream = ?1";
        let found = connection
            .query_row(query, [stream], rows::snapshot)
            .optional();
        let Some((snapshot, kept)) = found.map_err(|error| self.damage(error, damaged))? else {
            return Ok(None);
        };
        if kept != checksum::of_snapshot(&snapshot) {
            return Err(damaged());
        }
        Ok(Some(snapshot))
    }

    fn compacted_of(&self, connection: &Connection, stream: &str) -> Result<u64, ReadError> {
        let query = "SELECT compacted FROM stream WHERE name = ?1";
        let upto = connection
            .query_row(query, [stream], |row| row.get::<_, i64>(0))
            .optional();
        let upto = upto.map_err(|error| self.damage(error, || damaged(stream, 0)))?;
        Ok(rows::unsigned(upto.unwrap_or(0)))
    }
}

impl Journal for SqliteJournal {
    fn append_with(
        &self,
        stream: &str,
        expected: u64,
        records: &[NewRecord],
        changes: &[Change],
    ) -> Result<u64, AppendError> {
        self.write(|transaction| {
            let found = self.last_of(transaction, stream)?;
            if found != expected {
                return Err(AppendError::Conflict {
                    stream: stream.to_owned(),
                    expected,
                    found,
                });
            }
            let mut last = found;
            for record in records {
                last += 1;
                let record = Record {
                    position: self.count(transaction, "position")?,
                    stream: stream.to_owned(),
                    sequence: last,
                    kind: record.kind.clone(),
                    version: record.version,
                    at: record.at,
                    body: record.body.clone(),
                };
                self.insert(transaction, &record)?;
            }
            if last > found {
                let query = "INSERT INTO stream (name, last, compacted) VALUES (?1, ?2, 0) \
                             ON CONFLICT (name) DO UPDATE SET last = excluded.last";
                let values = params![stream, rows::signed(last)];
                transaction
                    .execute(query, values)
                    .map_err(|error| self.fault(error))?;
            }
            for change in changes {
                self.change_one::<AppendError>(transaction, change)?;
            }
            Ok(last)
        })
    }

    fn read(&self, stream: &str, after: u64, limit: usize) -> Result<Vec<Record>, ReadError> {
        self.view(|view| {
            let last = self.last_of(view, stream)?;
            let upto = self.compacted_of(view, stream)?;
            if after < upto {
                return Err(ReadError::Compacted { stream: stream.to_owned(), upto });
            }
            let query = "SELECT position, stream, sequence, kind, version, at, body, checksum FROM record \
                         WHERE stream = ?1 AND sequence > ?2 ORDER BY sequence LIMIT ?3";
            let values = params![stream, rows::signed(after), rows::limit(limit)];
            let mut statement = view.prepare(query).map_err(|error| self.fault(error))?;
            let mut found = statement.query(values).map_err(|error| self.fault(error))?;
            let mut records = Vec::new();
            let mut next = after.saturating_add(1);
            while let Some(row) = found.next().map_err(|error| self.fault(error))? {
                let read = rows::record(row);
                let (record, kept) = read.map_err(|error| self.damage(error, || damaged(stream, next)))?;
                if record.sequence != next || kept != checksum::of_record(&record) {
                    return Err(damaged(stream, next));
                }
                records.push(record);
                next += 1;
            }
            if records.len() < limit && next <= last {
                return Err(damaged(stream, next));
            }
            Ok(records)
        })
    }

    fn read_all(&self, after_position: u64, limit: usize) -> Result<Vec<Record>, ReadError> {
        self.view(|view| {
            let query = "SELECT position, stream, sequence, kind, version, at, body, checksum FROM record \
                         WHERE position > ?1 ORDER BY position LIMIT ?2";
            let values = params![rows::signed(after_position), rows::limit(limit)];
            let mut statement = view.prepare(query).map_err(|error| self.fault(error))?;
            let mut found = statement.query(values).map_err(|error| self.fault(error))?;
            let mut records = Vec::new();
            while let Some(row) = found.next().map_err(|error| self.fault(error))? {
                let (stream, sequence) = rows::place(row);
                let read = rows::record(row);
                let (record, kept) =
                    read.map_err(|error| self.damage(error, || damaged(&stream, sequence)))?;
                if kept != checksum::of_record(&record) {
                    return Err(damaged(&stream, sequence));
                }
                records.push(record);
            }
            Ok(records)
        })
    }

    fn last(&self, stream: &str) -> Result<u64, ReadError> {
        self.view(|view| Ok(self.last_of(view, stream)?))
    }

    fn last_position(&self) -> Result<u64, ReadError> {
        self.view(|view| {
            let query = "SELECT value FROM counter WHERE name = 'position'";
            let value = view.query_row(query, [], |row| row.get::<_, i64>(0));
            Ok(rows::unsigned(value.map_err(|error| self.fault(error))?))
        })
    }

    fn streams(&self) -> Result<Vec<String>, ReadError> {
        self.view(|view| {
            let query = "SELECT name FROM stream ORDER BY name";
            let mut statement = view.prepare(query).map_err(|error| self.fault(error))?;
            let names = statement
                .query_map([], |row| row.get(0))
                .map_err(|error| self.fault(error))?;
            names
                .map(|name| Ok(name.map_err(|error| self.fault(error))?))
                .collect()
        })
    }

    fn save_snapshot(&self, snapshot: &Snapshot) -> Result<(), SnapshotError> {
        self.write(|transaction| {
            let last = self.last_of(transaction, &snapshot.stream).map_err(ReadError::from)?;
            if snapshot.sequence > last {
                let (stream, sequence) = (snapshot.stream.clone(), snapshot.sequence);
                return Err(SnapshotError::Ahead { stream, sequence, last });
            }
            let query = "INSERT INTO snapshot (stream, sequence, version, body, checksum) \
                         VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (stream) DO UPDATE \
                         SET sequence = excluded.sequence, version = excluded.version, body = excluded.body, \
                         checksum = excluded.checksum WHERE excluded.sequence >= snapshot.sequence";
            let values = params![
                snapshot.stream,
                rows::signed(snapshot.sequence),
                snapshot.version,
                snapshot.body,
                checksum::of_snapshot(snapshot),
            ];
            transaction.execute(query, values).map_err(|error| self.fault(error))?;
            Ok(())
        })
    }

    fn load_snapshot(&self, stream: &str) -> Result<Option<Snapshot>, ReadError> {
        self.view(|view| self.snapshot_of(view, stream))
    }

    fn compact(&self, stream: &str, upto: u64) -> Result<u64, CompactError> {
        self.write(|transaction| {
            let snapshot = self.snapshot_of(transaction, stream)?;
            if snapshot.map_or(0, |snapshot| snapshot.sequence) < upto {
                return Err(CompactError::NotCovered {
                    stream: stream.to_owned(),
                    upto,
                });
            }
            let last = self.last_of(transaction, stream).map_err(ReadError::from)?;
            let upto = upto.min(last.saturating_sub(RECORDS_KEPT));
            if upto <= self.compacted_of(transaction, stream)? {
                return Ok(0);
            }
            let values = params![stream, rows::signed(upto)];
            let query = "UPDATE stream SET compacted = ?2 WHERE name = ?1";
            transaction
                .execute(query, values)
                .map_err(|error| self.fault(error))?;
            let query = "DELETE FROM record WHERE stream = ?1 AND sequence <= ?2";
            let gone = transaction
                .execute(query, values)
                .map_err(|error| self.fault(error))?;
            Ok(gone as u64)
        })
    }

    fn change(&self, changes: &[Change]) -> Result<u64, PutError> {
        self.write(|transaction| {
            for change in changes {
                self.change_one::<PutError>(transaction, change)?;
            }
            let query = "SELECT value FROM counter WHERE name = 'revision'";
            let value = transaction.query_row(query, [], |row| row.get::<_, i64>(0));
            Ok(rows::unsigned(value.map_err(|error| self.fault(error))?))
        })
    }

    fn get(&self, collection: &str, key: &str) -> Result<Option<Document>, ReadError> {
        self.view(|view| {
            let damaged = || damaged_document(collection, key);
            let query = "SELECT collection, key, revision, body, checksum FROM document \
                         WHERE collection = ?1 AND key = ?2";
            let found = view
                .query_row(query, [collection, key], rows::document)
                .optional();
            let Some((document, kept)) = found.map_err(|error| self.damage(error, damaged))? else {
                return Ok(None);
            };
            if kept != checksum::of_document(&document) {
                return Err(damaged());
            }
            Ok(Some(document))
        })
    }

    fn list(
        &self,
        collection: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Document>, ReadError> {
        self.view(|view| {
            let query = "SELECT collection, key, revision, body, checksum FROM document \
                         WHERE collection = ?1 AND (?2 IS NULL OR key > ?2) ORDER BY key LIMIT ?3";
            let values = params![collection, after, rows::limit(limit)];
            let mut statement = view.prepare(query).map_err(|error| self.fault(error))?;
            let mut found = statement.query(values).map_err(|error| self.fault(error))?;
            let mut documents = Vec::new();
            while let Some(row) = found.next().map_err(|error| self.fault(error))? {
                let read = rows::document(row);
                let (document, kept) =
                    read.map_err(|error| self.damage(error, || damaged_document(collection, "?")))?;
                if kept != checksum::of_document(&document) {
                    return Err(damaged_document(collection, &document.key));
                }
                documents.push(document);
            }
            Ok(documents)
        })
    }

    fn next_generation(&self) -> Result<Generation, StorageError> {
        let taken = self.write_unfenced(|transaction| self.count(transaction, "generation"))?;
        self.generation.store(taken, Ordering::Relaxed);
        Ok(Generation(taken))
    }
}

/// Why a stream was not counted: the part that appending and reading have in common.
enum CountError {
    Damaged { stream: String, sequence: u64 },
    Storage(StorageError),
}

impl From<StorageError> for CountError {
    fn from(fault: StorageError) -> Self {
        Self::Storage(fault)
    }
}

impl From<CountError> for ReadError {
    fn from(error: CountError) -> Self {
        match error {
            CountError::Damaged { stream, sequence } => Self::Damaged { stream, sequence },
            CountError::Storage(fault) => Self::Storage(fault),
        }
    }
}

impl From<CountError> for AppendError {
    fn from(error: CountError) -> Self {
        match error {
            CountError::Damaged { stream, sequence } => Self::Damaged { stream, sequence },
            CountError::Storage(fault) => Self::Storage(fault),
        }
    }
}

fn damaged(stream: &str, sequence: u64) -> ReadError {
    ReadError::Damaged {
        stream: stream.to_owned(),
        sequence,
    }
}

fn damaged_document(collection: &str, key: &str) -> ReadError {
    ReadError::DamagedDocument {
        collection: collection.to_owned(),
        key: key.to_owned(),
    }
}
