//! The journal: what happened, in order, on disk before anything acts on it.
//!
//! *Streams* hold versioned records, numbered from 1 without a gap; a writer names the last number it knows
//! and is refused when another was faster. Every record also has a *position* in the order of all streams.
//! *Documents* hold what is not an event (bodies of releases, idempotency keys, sealed secrets) under
//! revisions that are never given twice. *Snapshots* spare a replay its beginning; they are a convenience
//! until [`Journal::compact`] is called, which refuses what no readable snapshot covers.
//!
//! A call that wrote returns only after the data is on disk (WAL, `synchronous = FULL`). What a crash leaves
//! behind is a prefix of what was written, in which every acknowledged write is whole. Each record, document
//! and snapshot carries a checksum that is verified on every read: damage is an error that names the place.
//!
//! What it never does: it knows no clock (a record brings its instant), understands no body, creates a
//! journal in the place of one that is damaged, cut to nothing or missing beside its log, reads a schema
//! newer than itself, or hands out a number twice. Secrets come here sealed or not at all.

mod checksum;
pub mod conformance;
mod error;
mod memory;
mod sqlite;

use landfast_types::{Generation, Timestamp};
use serde::{Serialize, de::DeserializeOwned};

pub use crate::{
    error::{
        AppendError, CompactError, DocumentConflict, OpenError, PutError, ReadError, SnapshotError,
        StorageError,
    },
    memory::MemoryJournal,
    sqlite::{Options, SCHEMA_VERSION, SqliteJournal},
};

/// How many of a stream's newest records [`Journal::compact`] always keeps, for people who ask what happened.
pub const RECORDS_KEPT: u64 = 256;

/// A record that is yet to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRecord {
    pub kind: String,
    /// The version of the body's format.
    pub version: u16,
    pub at: Timestamp,
    /// JSON.
    pub body: Vec<u8>,
}

impl NewRecord {
    /// A record whose body is `value` as JSON.
    ///
    /// # Errors
    /// When the value has no JSON form, such as a map whose keys are no strings.
    pub fn json<T: Serialize + ?Sized>(
        kind: &str,
        version: u16,
        at: Timestamp,
        value: &T,
    ) -> Result<Self, serde_json::Error> {
        let body = serde_json::to_vec(value)?;
        Ok(Self {
            kind: kind.to_owned(),
            version,
            at,
            body,
        })
    }
}

/// A record as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its place in the order of all streams, from 1. Gaps appear only where a stream was compacted.
    pub position: u64,
    pub stream: String,
    /// Its number in the stream, from 1, without gaps.
    pub sequence: u64,
    pub kind: String,
    pub version: u16,
    pub at: Timestamp,
    pub body: Vec<u8>,
}

impl Record {
    /// The body, read as JSON.
    ///
    /// # Errors
    /// When the body is no such value.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(&self.body)
    }
}

/// A stream's state after one of its records, so that a replay may begin there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    pub stream: String,
    /// The last record folded into it.
    pub sequence: u64,
    /// The version of the body's format.
    pub version: u16,
    pub body: Vec<u8>,
}

/// A value under a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    pub collection: String,
    pub key: String,
    /// Grows with each change and is never given twice, not even after a deletion.
    pub revision: u64,
    pub body: Vec<u8>,
}

/// A change to a document. `expected` is the revision the writer knows: `None` for whatever is there,
/// `Some(0)` for "there is none yet".
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Put {
        collection: String,
        key: String,
        expected: Option<u64>,
        body: Vec<u8>,
    },
    Delete {
        collection: String,
        key: String,
        expected: Option<u64>,
    },
}

impl Change {
    /// Puts `body` under a key.
    pub fn put(collection: &str, key: &str, expected: Option<u64>, body: Vec<u8>) -> Self {
        Self::Put {
            collection: collection.to_owned(),
            key: key.to_owned(),
            expected,
            body,
        }
    }

    /// Deletes a key.
    pub fn delete(collection: &str, key: &str, expected: Option<u64>) -> Self {
        Self::Delete {
            collection: collection.to_owned(),
            key: key.to_owned(),
            expected,
        }
    }
}

/// A journal. Calls block until their data is on disk; the async side calls from blocking threads.
pub trait Journal: Send + Sync {
    /// Appends records to a stream whose last record is `expected` (0: none yet) and, in the same
    /// transaction, changes documents: all of it happens or none. Gives the stream's last number.
    ///
    /// # Errors
    /// [`AppendError::Conflict`] when the stream has moved on, [`AppendError::Document`] when a document has.
    fn append_with(
        &self,
        stream: &str,
        expected: u64,
        records: &[NewRecord],
        changes: &[Change],
    ) -> Result<u64, AppendError>;

    /// [`Journal::append_with`] without documents.
    ///
    /// # Errors
    /// [`AppendError::Conflict`] when the stream has moved on.
    fn append(
        &self,
        stream: &str,
        expected: u64,
        records: &[NewRecord],
    ) -> Result<u64, AppendError> {
        self.append_with(stream, expected, records, &[])
    }

    /// Reads up to `limit` records of a stream after number `after`.
    ///
    /// # Errors
    /// [`ReadError::Damaged`] when a record is missing or not what was written,
    /// [`ReadError::Compacted`] when the records right after `after` were let go.
    fn read(&self, stream: &str, after: u64, limit: usize) -> Result<Vec<Record>, ReadError>;

    /// Reads up to `limit` records of all streams after a position, in the order they were written. A reader
    /// that goes on from the last position it saw misses nothing.
    ///
    /// # Errors
    /// [`ReadError::Damaged`] when a record is not what was written.
    fn read_all(&self, after_position: u64, limit: usize) -> Result<Vec<Record>, ReadError>;

    /// The number of a stream's last record, 0 where there is none.
    ///
    /// # Errors
    /// When the journal cannot be read.
    fn last(&self, stream: &str) -> Result<u64, ReadError>;

    /// The position of the newest record of all, 0 where there is none.
    ///
    /// # Errors
    /// When the journal cannot be read.
    fn last_position(&self) -> Result<u64, ReadError>;

    /// The names of all streams, in order.
    ///
    /// # Errors
    /// When the journal cannot be read.
    fn streams(&self) -> Result<Vec<String>, ReadError>;

    /// Keeps a snapshot. One that is older than the kept one is ignored: a slow writer harms nothing.
    ///
    /// # Errors
    /// [`SnapshotError::Ahead`] when it claims records the stream does not have.
    fn save_snapshot(&self, snapshot: &Snapshot) -> Result<(), SnapshotError>;

    /// The newest snapshot of a stream.
    ///
    /// # Errors
    /// [`ReadError::DamagedSnapshot`] when it is not what was written. The records are still there, unless
    /// the stream was compacted.
    fn load_snapshot(&self, stream: &str) -> Result<Option<Snapshot>, ReadError>;

    /// Lets go of a stream's records up to `upto`, except the newest [`RECORDS_KEPT`]. Gives how many went.
    ///
    /// # Errors
    /// [`CompactError::NotCovered`] unless a readable snapshot covers them.
    fn compact(&self, stream: &str, upto: u64) -> Result<u64, CompactError>;

    /// Changes documents, all or none. Gives the newest revision there is now.
    ///
    /// # Errors
    /// [`PutError::Conflict`] when a document is not at the expected revision.
    fn change(&self, changes: &[Change]) -> Result<u64, PutError>;

    /// Puts one document and gives its revision. See [`Change`] for `expected`.
    ///
    /// # Errors
    /// [`PutError::Conflict`] when the document is not at the expected revision.
    fn put(
        &self,
        collection: &str,
        key: &str,
        expected: Option<u64>,
        body: Vec<u8>,
    ) -> Result<u64, PutError> {
        self.change(&[Change::put(collection, key, expected, body)])
    }

    /// Deletes one document; one that is not there is no error, unless `expected` says it was.
    ///
    /// # Errors
    /// [`PutError::Conflict`] when the document is not at the expected revision.
    fn delete(&self, collection: &str, key: &str, expected: Option<u64>) -> Result<(), PutError> {
        self.change(&[Change::delete(collection, key, expected)])
            .map(|_revision| ())
    }

    /// One document.
    ///
    /// # Errors
    /// [`ReadError::DamagedDocument`] when it is not what was written.
    fn get(&self, collection: &str, key: &str) -> Result<Option<Document>, ReadError>;

    /// Up to `limit` documents of a collection whose keys come after `after`, in the order of keys.
    ///
    /// # Errors
    /// [`ReadError::DamagedDocument`] when one is not what was written.
    fn list(
        &self,
        collection: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Document>, ReadError>;

    /// Takes the next generation. It is on disk before this returns, so no later start gets it again.
    ///
    /// # Errors
    /// When it cannot be written.
    fn next_generation(&self) -> Result<Generation, StorageError>;
}
