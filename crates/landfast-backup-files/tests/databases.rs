//! Databases of SQLite in a tree, while they are written.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::{
    fs,
    sync::atomic::{AtomicBool, AtomicI64, Ordering},
    thread,
    time::Duration,
};

use common::{World, files};
use landfast_backup_files::{Content, NoteKind};
use rusqlite::Connection;
use rustix::fs::{CWD, FileType, Mode, mknodat};

fn block<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Runtime::new().unwrap().block_on(future)
}

/// Two tables that always have the same number of rows.
fn database(world: &World, name: &str, mode: &str) -> Connection {
    let connection = Connection::open(world.tree().join(name)).unwrap();
    connection.busy_timeout(Duration::from_secs(60)).unwrap();
    let set = format!("PRAGMA journal_mode = {mode}");
    connection.query_row(&set, [], |_| Ok(())).unwrap();
    connection
        .execute_batch(
            "CREATE TABLE a (n INTEGER PRIMARY KEY, text TEXT); CREATE TABLE b (n INTEGER PRIMARY KEY, text TEXT)",
        )
        .unwrap();
    connection
}

fn add(connection: &mut Connection, rows: u64) {
    let one = connection.transaction().unwrap();
    for table in ["a", "b"] {
        let add = format!(
            "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {rows}) \
             INSERT INTO {table} (text) SELECT hex(randomblob(200)) FROM n"
        );
        one.execute(&add, []).unwrap();
    }
    one.commit().unwrap();
}

fn counted(path: &std::path::Path) -> (i64, i64) {
    let connection = Connection::open(path).unwrap();
    let ask = "SELECT (SELECT count(*) FROM a), (SELECT count(*) FROM b)";
    let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
    connection.query_row(ask, [], row).unwrap()
}

fn is_whole_while_written(mode: &str) {
    let world = block(World::new());
    let mut connection = database(&world, "app.db", mode);
    add(&mut connection, 3_000);
    let (is_over, written) = (AtomicBool::new(false), AtomicI64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                add(&mut connection, 20);
                written.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(1));
            }
        });
        let tested = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..3 {
                // Somebody does write.
                let before = written.load(Ordering::Relaxed);
                while written.load(Ordering::Relaxed) == before {
                    thread::sleep(Duration::from_millis(10));
                }
                let taken = block(world.snapshot());
                assert!(matches!(taken.content, Content::Tree { sqlite: 1, .. }));
                let restored = block(world.restore());
                assert_eq!(restored.wrong(), Vec::<String>::new());
                assert_eq!(restored.sqlite.len(), 1);
                // What lies beside it is in it.
                assert_eq!(files(&restored.folder), [restored.folder.join("app.db")]);
                let (a, b) = counted(&restored.folder.join("app.db"));
                assert!(a == b && a >= 3_000 + before * 20, "{a} and {b}, {before}");
            }
        }));
        is_over.store(true, Ordering::Relaxed);
        tested.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

#[test]
fn a_database_with_a_log_is_whole_while_it_is_written() {
    is_whole_while_written("WAL");
}

#[test]
fn a_database_with_a_journal_is_whole_while_it_is_written() {
    is_whole_while_written("DELETE");
}

#[tokio::test]
async fn what_was_committed_into_the_log_alone_is_there() {
    let world = World::new().await;
    let mut connection = database(&world, "app.db", "WAL");
    connection
        .execute_batch("PRAGMA wal_autocheckpoint = 0")
        .unwrap();
    // Until nothing of it is read: the database itself is not touched any more.
    add(&mut connection, 10);
    for rows in 1..4 {
        world.snapshot().await;
        let path = world.restore().await.folder.join("app.db");
        assert_eq!(counted(&path), (rows * 10, rows * 10));
        add(&mut connection, 10);
    }
}

#[tokio::test]
async fn what_only_begins_like_a_database_is_taken_as_it_lies() {
    let world = World::new().await;
    let content = [b"SQLite format 3\0".as_slice(), &[0xA5; 5_000]].concat();
    world.write("odd.db", &content);
    world.write("odd.db-wal", "beside");
    let taken = world.snapshot().await;
    assert_eq!(taken.notes.len(), 1, "{:?}", taken.notes);
    assert!(matches!(taken.notes[0].kind, NoteKind::NotSqlite { .. }));
    let to = world.restore().await.folder;
    assert_eq!(fs::read(to.join("odd.db")).unwrap(), content);
    assert_eq!(fs::read(to.join("odd.db-wal")).unwrap(), b"beside");
}

#[tokio::test]
async fn a_pipe_beside_a_database_holds_nothing_up() {
    let world = World::new().await;
    let mut connection = database(&world, "app.db", "DELETE");
    add(&mut connection, 10);
    drop(connection);
    let (pipe, mode) = (
        world.tree().join("app.db-journal"),
        Mode::from_raw_mode(0o600),
    );
    mknodat(CWD, pipe, FileType::Fifo, mode, 0).unwrap();
    let taken = tokio::time::timeout(Duration::from_secs(120), world.snapshot()).await;
    let notes = taken.expect("it waits for the other end of the pipe").notes;
    assert!(notes.iter().any(|note| note.kind.is_trouble()), "{notes:?}");
    let path = world.restore().await.folder.join("app.db");
    assert_eq!(counted(&path), (10, 10));
}

#[tokio::test]
async fn what_is_only_named_like_a_part_of_a_database_is_taken() {
    let world = World::new().await;
    for name in ["sales", "shop"] {
        drop(database(&world, name, "DELETE"));
    }
    world.write("sales-journal/march", "a folder");
    let letter = "a letter about the sale of a wall";
    world.write("shop-wal", letter);
    world.snapshot().await;
    let to = world.restore().await.folder;
    assert_eq!(
        fs::read(to.join("sales-journal/march")).unwrap(),
        b"a folder"
    );
    assert_eq!(fs::read_to_string(to.join("shop-wal")).unwrap(), letter);
}

#[tokio::test]
async fn a_damaged_database_is_named_by_a_restore() {
    let world = World::new().await;
    let mut connection = database(&world, "app.db", "DELETE");
    add(&mut connection, 2_000);
    drop(connection);
    // A page in the middle of a table, as a disk that lies would have it.
    let path = world.tree().join("app.db");
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2 / 4_096 * 4_096;
    bytes[middle..middle + 4_096].fill(0xEE);
    fs::write(&path, bytes).unwrap();
    world.snapshot().await;
    let wrong = world.restore().await.wrong();
    assert_eq!(wrong.len(), 1, "{wrong:?}");
    assert!(wrong[0].contains("app.db"), "{wrong:?}");
}
