//! What can go wrong, one enum per operation.

use std::{error::Error, path::PathBuf};

/// The cause below, whatever the storage is.
pub(crate) type Cause = Box<dyn Error + Send + Sync>;

/// The disk or the database under the journal failed. Nothing of the call was written.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// Another server has taken a newer generation. Do not retry: it is in charge, and nothing was written.
    #[error(
        "a newer server (generation {newest}) writes the journal; this one's generation {own} may not"
    )]
    Superseded {
        own: landfast_types::Generation,
        newest: landfast_types::Generation,
    },
    #[error("no space is left for the journal `{}`", path.display())]
    Full { path: PathBuf },
    #[error("another process kept the journal `{}` locked for too long", path.display())]
    Busy { path: PathBuf },
    #[error("the journal `{}` is damaged", path.display())]
    Damaged { path: PathBuf, source: Cause },
    #[error("the journal `{}` cannot be read or written", path.display())]
    Io { path: PathBuf, source: Cause },
}

/// Why a journal did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("`{}` is not a Landfast journal: it holds {found}", path.display())]
    NotJournal { path: PathBuf, found: String },
    #[error("the journal `{}` is damaged: {found}", path.display())]
    Damaged { path: PathBuf, found: String },
    #[error("the journal `{}` is empty: it was cut to nothing", path.display())]
    Empty { path: PathBuf },
    #[error("the journal `{}` is missing, but its log `{}` is there", path.display(), log.display())]
    Orphaned { path: PathBuf, log: PathBuf },
    #[error(
        "the journal `{}` has schema {found}, written by a newer Landfast; this one knows up to {known}",
        path.display()
    )]
    Newer {
        path: PathBuf,
        found: u32,
        known: u32,
    },
    #[error("another process keeps the journal `{}` locked", path.display())]
    Locked { path: PathBuf },
    #[error("no space is left for the journal `{}`", path.display())]
    Full { path: PathBuf },
    #[error(
        "SQLite {found} may corrupt a journal with two connections; {needed} or later is needed"
    )]
    SqliteTooOld { found: String, needed: &'static str },
    #[error("failed to open the journal `{}`", path.display())]
    Io { path: PathBuf, source: Cause },
}

impl OpenError {
    /// What the operator can do, as one sentence.
    pub fn hint(&self) -> String {
        match self {
            Self::NotJournal { path, .. } => {
                format!(
                    "move `{}` away, or name another state folder with --state",
                    path.display()
                )
            }
            Self::Damaged { path, .. } | Self::Empty { path } => format!(
                "instances and traffic go on without it; keep a copy of `{0}` and `{0}-wal`, then put the newest \
                 good copy in its place (`sqlite3 {0} .recover` reads what is left)",
                path.display()
            ),
            Self::Orphaned { path, log } => format!(
                "put `{}` back; only if its history is to be forgotten, move `{}` away as well",
                path.display(),
                log.display()
            ),
            Self::Newer { .. } => "start the newer Landfast that wrote it".to_owned(),
            Self::Locked { path } => {
                format!(
                    "see who has it open with `fuser {}`, and end that process",
                    path.display()
                )
            }
            Self::Full { path } => format!(
                "make room on the disk of `{}`, then start again",
                path.display()
            ),
            Self::SqliteTooOld { .. } => "build with the bundled SQLite".to_owned(),
            Self::Io { path, .. } => {
                format!(
                    "check that the folder of `{}` exists and is writable",
                    path.display()
                )
            }
        }
    }
}

/// Why records were not appended.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    #[error("stream `{stream}` is at record {found}, not {expected}: someone else wrote first")]
    Conflict {
        stream: String,
        expected: u64,
        found: u64,
    },
    #[error(transparent)]
    Document(#[from] DocumentConflict),
    #[error("record {sequence} of stream `{stream}` is missing or not what was written")]
    Damaged { stream: String, sequence: u64 },
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// A document that is not at the revision its writer knows. Revision 0 means "there is none".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("document `{key}` of `{collection}` is at revision {found}, not {expected}")]
pub struct DocumentConflict {
    pub collection: String,
    pub key: String,
    pub expected: u64,
    pub found: u64,
}

/// Why documents were not changed.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    #[error(transparent)]
    Conflict(#[from] DocumentConflict),
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Why something was not read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("record {sequence} of stream `{stream}` is missing or not what was written")]
    Damaged { stream: String, sequence: u64 },
    #[error("the snapshot of stream `{stream}` is not what was written")]
    DamagedSnapshot { stream: String },
    #[error("document `{key}` of `{collection}` is not what was written")]
    DamagedDocument { collection: String, key: String },
    #[error("the records of stream `{stream}` up to {upto} were let go; begin from its snapshot")]
    Compacted { stream: String, upto: u64 },
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Why a snapshot was not kept.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("a snapshot of stream `{stream}` at {sequence} is ahead of its last record {last}")]
    Ahead {
        stream: String,
        sequence: u64,
        last: u64,
    },
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Why records were not let go.
#[derive(Debug, thiserror::Error)]
pub enum CompactError {
    #[error("no snapshot of stream `{stream}` covers record {upto}")]
    NotCovered { stream: String, upto: u64 },
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Storage(#[from] StorageError),
}
