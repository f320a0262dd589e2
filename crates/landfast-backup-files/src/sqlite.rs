//! Databases of SQLite: copied by SQLite's online backup while they are written, and asked whether they are whole.

use std::{os::unix::ffi::OsStrExt as _, path::Path, time::Duration};

use rusqlite::{
    Connection, ErrorCode, OpenFlags,
    backup::{Backup, StepResult},
};

/// What a database of SQLite begins with.
pub(crate) const HEADER: &[u8; 16] = b"SQLite format 3\0";
/// Files beside a database that are part of it while it is open.
pub(crate) const BESIDE: [&str; 3] = ["-wal", "-shm", "-journal"];
/// How often a database that is locked by a writer is looked at, with a pause of a millisecond between.
const LOOKS_MAX: i32 = 30_000;
/// Pages that are copied before a writer is let in.
const STEP_PAGES: i32 = 1_000;
const PAUSE: Duration = Duration::from_millis(5);
/// A writer that comes in between begins the copy anew; after so often it waits for the rest.
const ANEW_MAX: u32 = 3;

/// Copies a database as it stood at one moment. No part of the path may be a link.
///
/// # Errors
/// SQLite's own words.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<(), String> {
    let said = |error: rusqlite::Error| error.to_string();
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let source = Connection::open_with_flags(from, flags).map_err(said)?;
    // SQLite's own way of waiting looks ever more seldom, and finds a busy database locked each time.
    source.busy_handler(Some(look_again)).map_err(said)?;
    let mode = source.query_row("PRAGMA journal_mode", [], |row| row.get::<_, String>(0));
    let has_wal = mode.map_err(said)? == "wal";
    let mut target = Connection::open(to).map_err(said)?;
    // It is thrown away if this does not come to its end.
    let quick = "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF";
    target.execute_batch(quick).map_err(said)?;
    let backup = Backup::new(&source, &mut target).map_err(said)?;
    let (mut anew, mut left) = (0, i32::MAX);
    loop {
        // A reader holds up no writer of a database with a log; one without lets them in between the steps.
        let pages = if has_wal || anew >= ANEW_MAX {
            -1
        } else {
            STEP_PAGES
        };
        match backup.step(pages).map_err(said)? {
            StepResult::Done => break,
            StepResult::More => {
                let remaining = backup.progress().remaining;
                anew += u32::from(remaining >= left);
                left = remaining;
                std::thread::sleep(PAUSE);
            }
            StepResult::Busy | StepResult::Locked => {
                return Err("it was locked all the time".to_owned());
            }
            _ => return Err("SQLite answered what nobody knows".to_owned()),
        }
    }
    drop(backup);
    target.close().map_err(|(_, error)| error.to_string())
}

fn look_again(looks: i32) -> bool {
    std::thread::sleep(Duration::from_millis(1));
    looks < LOOKS_MAX
}

/// Asks a restored database that nobody else has open whether it is whole. Nothing is written beside it.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn check(path: &Path) -> Result<(), String> {
    // SQLite's own form of an address: only so can it be told that nobody writes.
    let mut address = "file:".to_owned();
    for byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"/._-".contains(byte) {
            address.push(char::from(*byte));
        } else {
            address.push_str(&format!("%{byte:02X}"));
        }
    }
    address.push_str("?immutable=1");
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_URI;
    let asked = || {
        let connection = Connection::open_with_flags(&address, flags)?;
        connection.query_row("PRAGMA integrity_check(1)", [], |row| {
            row.get::<_, String>(0)
        })
    };
    match asked() {
        Ok(said) if said == "ok" => Ok(()),
        Ok(said) => Err(said),
        Err(rusqlite::Error::SqliteFailure(failure, _))
            if failure.code == ErrorCode::NotADatabase =>
        {
            Err("it is no database".to_owned())
        }
        Err(error) => Err(error.to_string()),
    }
}
