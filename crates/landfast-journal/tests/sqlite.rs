//! The promises that need a file: conformance, restarts, refusals, full disks and other processes' locks.

#![cfg(test)]

use std::{fs, io::Write as _, path::Path, sync::Arc, time::Duration};

use landfast_journal::{
    AppendError, Journal, NewRecord, OpenError, Options, PutError, RECORDS_KEPT, SCHEMA_VERSION,
    Snapshot, SqliteJournal, StorageError, conformance,
};
use landfast_types::{Generation, Timestamp};
use rusqlite::Connection;

fn record(number: u64) -> NewRecord {
    NewRecord::json("made", 1, Timestamp::EPOCH, &number).unwrap()
}

fn refusal(path: &Path) -> OpenError {
    let options = Options {
        busy_timeout: Duration::from_millis(50),
        ..Options::default()
    };
    SqliteJournal::open_with(path, options).expect_err("it should be refused")
}

#[test]
fn keeps_the_promises_of_a_journal() {
    let folder = tempfile::tempdir().unwrap();
    conformance::check(&SqliteJournal::open(folder.path().join("journal.sqlite")).unwrap());
}

#[test]
fn goes_on_where_it_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.sqlite");
    for life in 1..=3_u64 {
        let journal = SqliteJournal::open(&path).unwrap();
        assert_eq!(journal.next_generation().unwrap(), Generation(life));
        assert_eq!(
            journal.append("a", life - 1, &[record(life)]).unwrap(),
            life
        );
        journal
            .put("docs", "k", None, life.to_string().into_bytes())
            .unwrap();
    }
    let journal = SqliteJournal::open(&path).unwrap();
    let numbers: Vec<u64> = journal
        .read("a", 0, 10)
        .unwrap()
        .iter()
        .map(|r| r.json().unwrap())
        .collect();
    assert_eq!(numbers, [1, 2, 3]);
    assert_eq!(journal.get("docs", "k").unwrap().unwrap().body, b"3");
}

#[test]
fn is_readable_by_its_owner_only() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.sqlite");
    let journal = SqliteJournal::open(&path).unwrap();
    journal.append("a", 0, &[record(1)]).unwrap();
    for entry in fs::read_dir(folder.path()).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{:?}", entry.file_name());
    }
}

#[test]
fn refuses_what_is_not_a_journal_and_leaves_it_alone() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text");
    fs::write(&text, "a shopping list, long enough to be looked at").unwrap();
    let error = refusal(&text);
    assert!(
        matches!(&error, OpenError::NotJournal { found, .. } if found.contains("a shopping list")),
        "{error}"
    );
    assert!(
        fs::read_to_string(&text)
            .unwrap()
            .starts_with("a shopping list")
    );

    let other = folder.path().join("other.sqlite");
    Connection::open(&other)
        .unwrap()
        .execute_batch("CREATE TABLE song (name TEXT)")
        .unwrap();
    let before = fs::read(&other).unwrap();
    let error = refusal(&other);
    assert!(matches!(&error, OpenError::NotJournal { .. }), "{error}");
    assert!(error.to_string().contains("another application"), "{error}");
    assert_eq!(
        fs::read(&other).unwrap(),
        before,
        "a stranger's database was changed"
    );

    assert!(
        matches!(refusal(folder.path()), OpenError::Io { .. }),
        "a folder"
    );
    assert!(matches!(
        refusal(&folder.path().join("no/folder/j")),
        OpenError::Io { .. }
    ));
}

#[test]
fn refuses_a_newer_schema_naming_both() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.sqlite");
    drop(SqliteJournal::open(&path).unwrap());
    let newer = SCHEMA_VERSION + 6;
    Connection::open(&path)
        .unwrap()
        .pragma_update(None, "user_version", newer)
        .unwrap();
    let error = refusal(&path);
    assert!(
        matches!(&error, OpenError::Newer { found, known, .. } if (*found, *known) == (newer, SCHEMA_VERSION))
    );
    let text = error.to_string();
    assert!(
        text.contains("schema 7") && text.contains("up to 1"),
        "{text}"
    );
}

#[test]
fn never_makes_a_new_journal_in_the_place_of_a_lost_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.sqlite");
    let log = folder.path().join("journal.sqlite-wal");
    let journal = SqliteJournal::open(&path).unwrap();
    journal.append("a", 0, &[record(1)]).unwrap();
    // As after a kill: the log is not folded in. Then somebody deletes the file.
    let (file_bytes, log_bytes) = (fs::read(&path).unwrap(), fs::read(&log).unwrap());
    drop(journal);
    fs::remove_file(&path).unwrap();
    fs::write(&log, &log_bytes).unwrap();
    assert!(matches!(refusal(&path), OpenError::Orphaned { .. }));
    assert!(!path.exists());

    fs::write(&path, "").unwrap();
    let error = refusal(&path);
    assert!(matches!(error, OpenError::Empty { .. }), "{error}");
    assert!(error.hint().contains("copy"), "{}", error.hint());

    fs::write(&path, &file_bytes).unwrap();
    let journal = SqliteJournal::open(&path).unwrap();
    assert_eq!(
        journal.last("a").unwrap(),
        1,
        "the file came back, and its log with it"
    );
}

#[test]
fn says_who_is_at_fault_when_another_process_holds_the_lock() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.sqlite");
    let options = Options {
        busy_timeout: Duration::from_millis(50),
        ..Options::default()
    };
    let journal = SqliteJournal::open_with(&path, options).unwrap();
    let other = Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let refused = journal.append("a", 0, &[record(1)]);
    assert!(
        matches!(
            refused,
            Err(AppendError::Storage(StorageError::Busy { .. }))
        ),
        "{refused:?}"
    );
    assert_eq!(journal.last("a").unwrap(), 0, "reading goes on");
    other.execute_batch("COMMIT").unwrap();
    assert_eq!(journal.append("a", 0, &[record(1)]).unwrap(), 1);
    drop(journal);

    other
        .execute_batch("PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE")
        .unwrap();
    let error = refusal(&path);
    assert!(matches!(error, OpenError::Locked { .. }), "{error}");
}

#[test]
fn refuses_to_grow_past_its_bound_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.sqlite");
    let options = Options {
        pages_max: Some(64),
        ..Options::default()
    };
    let journal = SqliteJournal::open_with(&path, options).unwrap();
    let kept = fill(&journal);
    drop(journal);
    let journal = SqliteJournal::open(&path).unwrap();
    assert_eq!(journal.read("a", 0, usize::MAX).unwrap().len() as u64, kept);
    assert_eq!(
        journal.append("a", kept, &[record(1)]).unwrap(),
        kept + 1,
        "room again"
    );
}

/// Appends until there is no room; gives the last acknowledged number.
fn fill(journal: &SqliteJournal) -> u64 {
    let body = vec![b'7'; 2_000];
    let record = NewRecord {
        kind: "big".into(),
        version: 1,
        at: Timestamp::EPOCH,
        body,
    };
    for last in 0..100_000 {
        match journal.append("a", last, std::slice::from_ref(&record)) {
            Ok(_) => {}
            Err(AppendError::Storage(StorageError::Full { path })) => {
                assert_eq!(path, journal.path());
                assert_eq!(
                    journal.last("a").unwrap(),
                    last,
                    "a refused record is not there"
                );
                let refused = journal.put("docs", "k", None, vec![0; 20_000]);
                assert!(matches!(
                    refused,
                    Err(PutError::Storage(StorageError::Full { .. }))
                ));
                return last;
            }
            Err(error) => panic!("record {last}: {error}: {error:?}"),
        }
    }
    panic!("the disk never filled");
}

#[test]
fn survives_a_full_disk() {
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(folder.path(), "600k") else {
        return say_skipped();
    };
    let path = folder.path().join("journal.sqlite");
    let journal = SqliteJournal::open(&path).unwrap();
    let kept = fill(&journal);
    assert!(kept > 10, "only {kept} records fitted");
    drop(journal);
    // The disk is still full: what is there can be read, or the refusal says why.
    match SqliteJournal::open(&path) {
        Ok(journal) => assert_eq!(journal.last("a").unwrap(), kept),
        Err(OpenError::Full { .. }) => {}
        Err(error) => panic!("{error}: {error:?}"),
    }
    disk.resize("4m");
    let journal = SqliteJournal::open(&path).unwrap();
    assert_eq!(journal.read("a", 0, usize::MAX).unwrap().len() as u64, kept);
    assert_eq!(journal.append("a", kept, &[record(1)]).unwrap(), kept + 1);
}

#[test]
fn makes_no_half_journal_on_a_full_disk() {
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(folder.path(), "16k") else {
        return say_skipped();
    };
    let path = folder.path().join("journal.sqlite");
    let error = refusal(&path);
    assert!(
        matches!(error, OpenError::Full { .. }),
        "{error}: {error:?}"
    );
    assert!(!path.exists());
    disk.resize("4m");
    SqliteJournal::open(&path).unwrap();
    let names: Vec<_> = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert!(
        names
            .iter()
            .all(|name| !name.to_string_lossy().contains(".new")),
        "{names:?}"
    );
}

/// Past the harness, which would keep the words of a test that passes.
fn say_skipped() {
    let notice = "notice: no small disk could be mounted here (needs root); a test of the journal was skipped";
    writeln!(std::io::stderr(), "{notice}").unwrap();
}

/// A tmpfs of a few kilobytes over a folder, taken away when dropped.
struct SmallDisk<'a> {
    folder: &'a Path,
}

impl<'a> SmallDisk<'a> {
    fn mount(folder: &'a Path, size: &str) -> Option<Self> {
        let options = format!("size={size}");
        run(
            "mount",
            &["-t", "tmpfs", "-o", &options, "tmpfs", folder.to_str()?],
        )
        .then_some(Self { folder })
    }

    fn resize(&self, size: &str) {
        let options = format!("remount,size={size}");
        assert!(run(
            "mount",
            &["-o", &options, self.folder.to_str().unwrap()]
        ));
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        // Lazily: the journal of the test may still be open.
        run("umount", &["-l", self.folder.to_str().unwrap()]);
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "mounting needs the system's own tool"
)]
fn run(program: &str, arguments: &[&str]) -> bool {
    let output = std::process::Command::new(program).args(arguments).output();
    output.is_ok_and(|output| output.status.success())
}

#[test]
fn reads_while_another_thread_writes() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Arc::new(SqliteJournal::open(folder.path().join("journal.sqlite")).unwrap());
    const TOTAL: u64 = 300;
    let writer = {
        let journal = Arc::clone(&journal);
        std::thread::spawn(move || {
            for last in 0..TOTAL {
                journal
                    .append(["a", "b"][(last % 2) as usize], last / 2, &[record(last)])
                    .unwrap();
            }
        })
    };
    // A follower that goes on from the last position it saw must see every record once, in order.
    let mut seen = Vec::new();
    let mut position = 0;
    while (seen.len() as u64) < TOTAL {
        for record in journal.read_all(position, 7).unwrap() {
            assert!(record.position > position);
            position = record.position;
            seen.push(record.json::<u64>().unwrap());
        }
    }
    writer.join().unwrap();
    assert_eq!(seen, (0..TOTAL).collect::<Vec<_>>());
}

#[test]
fn a_compacted_stream_stays_compacted_over_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.sqlite");
    let total = RECORDS_KEPT + 100;
    let journal = SqliteJournal::open(&path).unwrap();
    let records: Vec<NewRecord> = (1..=total).map(record).collect();
    journal.append("a", 0, &records).unwrap();
    let (stream, body) = ("a".to_owned(), b"{}".to_vec());
    journal
        .save_snapshot(&Snapshot {
            stream,
            sequence: total,
            version: 1,
            body,
        })
        .unwrap();
    assert_eq!(journal.compact("a", 60).unwrap(), 60);
    drop(journal);
    let journal = SqliteJournal::open(&path).unwrap();
    assert_eq!(
        journal.read("a", 60, usize::MAX).unwrap().len() as u64,
        total - 60
    );
    assert_eq!(journal.read_all(0, 1).unwrap()[0].sequence, 61);
    assert_eq!(journal.last("a").unwrap(), total);
}

#[test]
fn a_server_that_wakes_up_late_writes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("journal.sqlite");
    let (old, new) = (
        SqliteJournal::open(&path).expect("a journal"),
        SqliteJournal::open(&path).expect("the same journal"),
    );
    let first = old.next_generation().expect("a generation");
    old.append("a", 0, &[record(1)]).expect("it is in charge");
    let second = new.next_generation().expect("a generation");
    assert!(second > first);
    // It knows the last number, so that alone would not stop it.
    let refused = old.append("a", 1, &[record(2)]);
    assert!(
        matches!(refused, Err(AppendError::Storage(StorageError::Superseded { own, newest })) if own == first && newest == second),
        "{refused:?}"
    );
    let refused = old.put("things", "one", Some(0), b"{}".to_vec());
    assert!(
        matches!(
            refused,
            Err(PutError::Storage(StorageError::Superseded { .. }))
        ),
        "{refused:?}"
    );
    assert_eq!(new.last_position().expect("read"), 1);
    new.append("a", 1, &[record(2)])
        .expect("the new one is in charge");
    assert_eq!(old.last_position().expect("reading goes on"), 2);
}
