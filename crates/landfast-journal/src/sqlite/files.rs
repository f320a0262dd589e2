//! Opening and creating the file, and telling apart the ways in which that fails.

use std::{
    fs, io,
    io::Read as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use rusqlite::{Connection, ErrorCode, OpenFlags, ffi};

use super::Options;
use crate::OpenError;

/// The schema this code writes. A file with a higher one is refused.
pub const SCHEMA_VERSION: u32 = 1;

/// `LFJ1`: what `file` and we tell a journal by.
const APPLICATION_ID: i32 = 0x4C46_4A31;

/// Before it, two connections that write and checkpoint at once could corrupt the file (the WAL-reset bug).
const SQLITE_NEEDED: (i32, &str) = (3_051_003, "3.51.3");

/// Up to this size every row is held against every index when the file is opened: only that finds a changed key.
const FULL_CHECK_BYTES_MAX: u64 = 64 << 20;

/// Up to this size at least the structure is checked. Beyond it the checksums on read have to do.
const QUICK_CHECK_BYTES_MAX: u64 = 512 << 20;

/// The log is cut back to this after a checkpoint.
const LOG_BYTES_KEPT: u32 = 16 << 20;

const SCHEMA: &str = "
CREATE TABLE record (
    position INTEGER PRIMARY KEY,
    stream   TEXT    NOT NULL,
    sequence INTEGER NOT NULL,
    kind     TEXT    NOT NULL,
    version  INTEGER NOT NULL,
    at       INTEGER NOT NULL, -- microseconds since 1970, UTC
    body     BLOB    NOT NULL, -- JSON
    checksum BLOB    NOT NULL
) STRICT;
CREATE UNIQUE INDEX record_by_stream ON record (stream, sequence);
CREATE TABLE stream (
    name      TEXT    PRIMARY KEY,
    last      INTEGER NOT NULL,
    compacted INTEGER NOT NULL  -- records up to this one were let go
) STRICT;
CREATE TABLE snapshot (
    stream   TEXT    PRIMARY KEY,
    sequence INTEGER NOT NULL,
    version  INTEGER NOT NULL,
    body     BLOB    NOT NULL,
    checksum BLOB    NOT NULL
) STRICT;
CREATE TABLE document (
    collection TEXT    NOT NULL,
    key        TEXT    NOT NULL,
    revision   INTEGER NOT NULL,
    body       BLOB    NOT NULL,
    checksum   BLOB    NOT NULL,
    PRIMARY KEY (collection, key)
) STRICT;
CREATE TABLE counter (
    name  TEXT    PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT;
INSERT INTO counter VALUES ('position', 0), ('revision', 0), ('generation', 0);
";

/// Opens the two connections, the writer first.
pub(super) fn open(path: &Path, options: Options) -> Result<(Connection, Connection), OpenError> {
    if rusqlite::version_number() < SQLITE_NEEDED.0 {
        let (found, needed) = (rusqlite::version().to_owned(), SQLITE_NEEDED.1);
        return Err(OpenError::SqliteTooOld { found, needed });
    }
    let log = beside(path, "-wal");
    match fs::metadata(path) {
        Ok(about) if about.is_file() && about.len() == 0 => {
            return Err(OpenError::Empty {
                path: path.to_path_buf(),
            });
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // A log belongs to the file it was written for; beside a new one it would be replayed into it.
            if fs::metadata(&log).is_ok_and(|about| about.len() > 0) {
                return Err(OpenError::Orphaned {
                    path: path.to_path_buf(),
                    log,
                });
            }
            create(path)?;
        }
        Err(source) => {
            return Err(OpenError::Io {
                path: path.to_path_buf(),
                source: source.into(),
            });
        }
    }
    let fail = |error| refusal(path, error);
    let writer = connect(path, options.busy_timeout).map_err(fail)?;
    verify(&writer, path)?;
    if let Some(pages) = options.pages_max {
        writer
            .pragma_update(None, "max_page_count", pages)
            .map_err(fail)?;
    }
    let reader = connect(path, options.busy_timeout).map_err(fail)?;
    reader
        .pragma_update(None, "query_only", true)
        .map_err(fail)?;
    Ok((writer, reader))
}

/// Builds an empty journal under another name and links it to its own, so that a crash or a full disk in
/// between leaves no half of one, and of two processes that create at once one wins.
fn create(path: &Path) -> Result<(), OpenError> {
    // Its own name for each attempt, of threads as of processes. One that a crash left is never read.
    static ATTEMPTS: AtomicU64 = AtomicU64::new(0);
    let attempt = ATTEMPTS.fetch_add(1, Ordering::Relaxed);
    let unfinished = beside(path, &format!(".{}.{attempt}.new", std::process::id()));
    let fail = |source: io::Error| {
        if source.kind() == io::ErrorKind::StorageFull {
            return OpenError::Full {
                path: path.to_path_buf(),
            };
        }
        OpenError::Io {
            path: path.to_path_buf(),
            source: source.into(),
        }
    };
    // A build that failed leaves its log behind as well, which must meet no other file of that name.
    let remove = || {
        ["", "-wal", "-shm", "-journal"]
            .iter()
            .try_for_each(
                |suffix| match fs::remove_file(beside(&unfinished, suffix)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                    Ok(()) | Err(_) => Ok(()),
                },
            )
    };
    remove().map_err(fail)?;
    let mut private = fs::OpenOptions::new();
    private
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&unfinished)
        .map_err(fail)?;
    let outcome = build(&unfinished)
        .map_err(|error| refusal(path, error))
        .and_then(|()| {
            let linked = fs::hard_link(&unfinished, path);
            // Whoever was faster has made the same thing.
            if linked
                .as_ref()
                .is_err_and(|error| error.kind() == io::ErrorKind::AlreadyExists)
            {
                return Ok(());
            }
            linked
                .and_then(|()| fs::File::open(folder(path))?.sync_all())
                .map_err(fail)
        });
    let removed = remove().map_err(fail);
    outcome.and(removed)
}

fn build(unfinished: &Path) -> rusqlite::Result<()> {
    let mut connection = connect(unfinished, Duration::ZERO)?;
    let transaction = connection.transaction()?;
    transaction.execute_batch(SCHEMA)?;
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    transaction.commit()?;
    // Closing the last connection moves the log into the file, synced, and removes it.
    connection.close().map_err(|(_connection, error)| error)
}

fn connect(path: &Path, busy_timeout: Duration) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    // The timeout comes first: changing to WAL already needs the lock.
    connection.busy_timeout(busy_timeout)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    // Whose file it is has to be known before it is changed in any way, the journal mode included.
    let ours: i32 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let pages: i64 = connection.pragma_query_value(None, "page_count", |row| row.get(0))?;
    if ours == APPLICATION_ID || pages == 0 {
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.pragma_update(None, "synchronous", "full")?;
        connection.pragma_update(None, "journal_size_limit", LOG_BYTES_KEPT)?;
    }
    Ok(connection)
}

/// Refuses what is not a journal, is newer than this code, or does not hang together.
fn verify(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let fail = |error| refusal(path, error);
    let path = path.to_path_buf();
    let id: i32 = connection
        .pragma_query_value(None, "application_id", |row| row.get(0))
        .map_err(fail)?;
    if id != APPLICATION_ID {
        let found = format!("a SQLite database of another application (id {id:#010x})");
        return Err(OpenError::NotJournal { path, found });
    }
    let found: u32 = connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(fail)?;
    if found > SCHEMA_VERSION {
        return Err(OpenError::Newer {
            path,
            found,
            known: SCHEMA_VERSION,
        });
    }
    if found < SCHEMA_VERSION {
        // Version 1 is the first. A migration from an older one starts here.
        let found = format!("it has schema {found}, which no Landfast ever wrote");
        return Err(OpenError::Damaged { path, found });
    }
    let bytes = fs::metadata(&path).map_or(0, |about| about.len());
    if bytes > QUICK_CHECK_BYTES_MAX {
        tracing::info!(path = %path.display(), bytes, "the journal is too large to be checked when opened");
        return Ok(());
    }
    let full = bytes <= FULL_CHECK_BYTES_MAX;
    let pragma = if full {
        "PRAGMA integrity_check(1)"
    } else {
        "PRAGMA quick_check(1)"
    };
    let check: String = connection
        .query_row(pragma, [], |row| row.get(0))
        .map_err(fail)?;
    if check != "ok" {
        return Err(OpenError::Damaged {
            path,
            found: check.to_lowercase(),
        });
    }
    Ok(())
}

/// What it means for the operator that SQLite could not open the file.
fn refusal(path: &Path, error: rusqlite::Error) -> OpenError {
    let path = path.to_path_buf();
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => {
            let found = describe(&path);
            OpenError::NotJournal { path, found }
        }
        Some(ErrorCode::DatabaseCorrupt) => OpenError::Damaged {
            path,
            found: error.to_string(),
        },
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => OpenError::Locked { path },
        Some(ErrorCode::DiskFull) => OpenError::Full { path },
        _ if out_of_space(&error) => OpenError::Full { path },
        _ => OpenError::Io {
            path,
            source: error.into(),
        },
    }
}

/// Whether the disk could not hold the shared index beside the log: SQLite calls that an I/O error.
pub(super) fn out_of_space(error: &rusqlite::Error) -> bool {
    error
        .sqlite_error()
        .is_some_and(|error| error.extended_code == ffi::SQLITE_IOERR_SHMSIZE)
}

/// Says what a file that is no database begins with. Read only after SQLite has refused it: closing a file
/// drops every lock this process holds on it.
fn describe(path: &Path) -> String {
    let mut head = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(16).read_to_end(&mut head));
    match read {
        Ok(_) if head.is_ascii() && !head.contains(&0) => {
            format!("text that begins with {:?}", String::from_utf8_lossy(&head))
        }
        Ok(_) => {
            let digits: Vec<String> = head.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("bytes that begin with {}", digits.join(" "))
        }
        Err(error) => format!("something that cannot be read ({error})"),
    }
}

/// The path with something after its last character.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(suffix);
    name.into()
}

fn folder(path: &Path) -> &Path {
    path.parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_connections_wait_for_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.sqlite");
        let (writer, reader) = open(&path, Options::default()).unwrap();
        for connection in [&writer, &reader] {
            let mode: String = connection
                .pragma_query_value(None, "journal_mode", |row| row.get(0))
                .unwrap();
            let synchronous: u32 = connection
                .pragma_query_value(None, "synchronous", |row| row.get(0))
                .unwrap();
            assert_eq!((mode.as_str(), synchronous), ("wal", 2));
        }
        assert!(
            reader.execute("DELETE FROM record", []).is_err(),
            "the reader must not write"
        );
        let names: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert!(
            names
                .iter()
                .all(|name| !name.to_string_lossy().ends_with(".new")),
            "{names:?}"
        );
    }
}
