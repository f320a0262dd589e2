//! Files that bits have fallen out of: damage may be found late, but never read as if it were the truth.

#![cfg(test)]

use std::{fs, path::Path};

use landfast_journal::{
    AppendError, Journal, NewRecord, OpenError, ReadError, Record, Snapshot, SqliteJournal,
};
use landfast_types::Timestamp;

const RECORDS: u64 = 60;

fn record(number: u64) -> NewRecord {
    let body = format!(
        "{{\"number\":{number},\"text\":\"{}\"}}",
        "lorem ipsum ".repeat(20)
    );
    NewRecord {
        kind: "made".into(),
        version: 3,
        at: Timestamp::EPOCH,
        body: body.into_bytes(),
    }
}

fn write(path: &Path) -> Vec<Record> {
    let journal = SqliteJournal::open(path).unwrap();
    for last in 0..RECORDS {
        journal.append("a", last, &[record(last + 1)]).unwrap();
    }
    journal
        .put("docs", "k", None, b"the document".to_vec())
        .unwrap();
    let body = b"the snapshot".to_vec();
    let snapshot = Snapshot {
        stream: "a".into(),
        sequence: 9,
        version: 1,
        body,
    };
    journal.save_snapshot(&snapshot).unwrap();
    journal.read("a", 0, usize::MAX).unwrap()
}

#[test]
fn names_the_record_that_was_changed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.sqlite");
    write(&path);
    let mut bytes = fs::read(&path).unwrap();
    let needle = b"{\"number\":17,";
    let place = bytes
        .windows(needle.len())
        .position(|window| window == needle)
        .unwrap();
    bytes[place + 12] ^= 1;
    fs::write(&path, bytes).unwrap();
    let journal = SqliteJournal::open(&path).unwrap();
    let error = journal.read("a", 0, usize::MAX).unwrap_err();
    assert!(
        matches!(&error, ReadError::Damaged { stream, sequence: 17 } if stream == "a"),
        "{error}"
    );
    assert_eq!(
        error.to_string(),
        "record 17 of stream `a` is missing or not what was written"
    );
    let error = journal.read_all(0, usize::MAX).unwrap_err();
    assert!(
        matches!(error, ReadError::Damaged { sequence: 17, .. }),
        "{error}"
    );
    assert_eq!(
        journal.read("a", 0, 16).unwrap().len(),
        16,
        "what lies before it reads"
    );
    assert_eq!(
        journal.read("a", 17, usize::MAX).unwrap().len(),
        43,
        "and what lies after it"
    );
}

#[test]
fn names_the_record_that_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.sqlite");
    write(&path);
    let delete = |sequence: u64| {
        let connection = rusqlite::Connection::open(&path).unwrap();
        let query = format!("DELETE FROM record WHERE sequence = {sequence}");
        connection.execute_batch(&query).unwrap();
    };
    delete(30);
    let journal = SqliteJournal::open(&path).unwrap();
    let error = journal.read("a", 0, usize::MAX).unwrap_err();
    assert!(
        matches!(error, ReadError::Damaged { sequence: 30, .. }),
        "{error}"
    );
    drop(journal);
    delete(RECORDS);
    let journal = SqliteJournal::open(&path).unwrap();
    let error = journal.last("a").unwrap_err();
    assert!(
        matches!(
            error,
            ReadError::Damaged {
                sequence: RECORDS,
                ..
            }
        ),
        "{error}"
    );
    let error = journal.append("a", RECORDS - 1, &[record(1)]).unwrap_err();
    assert!(
        matches!(
            error,
            AppendError::Damaged {
                sequence: RECORDS,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn no_flipped_byte_is_read_as_the_truth() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.sqlite");
    let written = write(&path);
    let sound = fs::read(&path).unwrap();
    let (mut refused, mut found, mut harmless) = (0, 0, 0);
    // A stride that shares no factor with the page size visits every kind of place in a page.
    for place in (0..sound.len()).step_by(53) {
        let mut bytes = sound.clone();
        bytes[place] ^= 0x41;
        fs::write(&path, bytes).unwrap();
        for log in ["journal.sqlite-wal", "journal.sqlite-shm"] {
            fs::remove_file(folder.path().join(log)).ok();
        }
        let journal = match SqliteJournal::open(&path) {
            Ok(journal) => journal,
            Err(
                OpenError::Damaged { .. }
                | OpenError::NotJournal { .. }
                | OpenError::Newer { .. }
                | OpenError::Io { .. },
            ) => {
                refused += 1;
                continue;
            }
            Err(error) => panic!("byte {place}: {error}"),
        };
        let read = journal.read("a", 0, usize::MAX);
        let document = journal.get("docs", "k");
        let snapshot = journal.load_snapshot("a");
        match &read {
            Ok(records) => assert_eq!(records, &written, "byte {place}"),
            Err(_) => found += 1,
        }
        match &document {
            Ok(Some(document)) => assert_eq!(document.body, b"the document", "byte {place}"),
            Ok(None) => panic!("byte {place}: the document seems never to have been there"),
            Err(_) => {}
        }
        match &snapshot {
            Ok(Some(snapshot)) => {
                assert_eq!(
                    (snapshot.sequence, snapshot.body.as_slice()),
                    (9, b"the snapshot".as_slice())
                );
            }
            Ok(None) => panic!("byte {place}: the snapshot seems never to have been there"),
            Err(_) => {}
        }
        if let Ok(all) = journal.read_all(0, usize::MAX) {
            for record in &all {
                assert!(written.contains(record), "byte {place}: {record:?}");
            }
        }
        if read.is_ok() && document.is_ok() && snapshot.is_ok() {
            harmless += 1;
        }
    }
    println!(
        "flipped bytes: {refused} refused at open, {found} found by a read, {harmless} in unused space"
    );
    assert!(found > 50 && refused > 10, "{refused} {found} {harmless}");
}

#[test]
fn a_log_cut_by_a_power_failure_leaves_a_prefix() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.sqlite");
    let log = folder.path().join("journal.sqlite-wal");
    let journal = SqliteJournal::open(&path).unwrap();
    for last in 0..RECORDS {
        journal.append("a", last, &[record(last + 1)]).unwrap();
    }
    let written = journal.read("a", 0, usize::MAX).unwrap();
    let (file_bytes, log_bytes) = (fs::read(&path).unwrap(), fs::read(&log).unwrap());
    drop(journal);
    let mut lengths = Vec::new();
    for cut in (0..=log_bytes.len())
        .step_by(3_989)
        .chain([log_bytes.len()])
    {
        fs::remove_file(folder.path().join("journal.sqlite-shm")).ok();
        fs::write(&path, &file_bytes).unwrap();
        fs::write(&log, &log_bytes[..cut]).unwrap();
        let journal = SqliteJournal::open(&path).unwrap();
        let records = journal.read("a", 0, usize::MAX).unwrap();
        assert_eq!(records, written[..records.len()], "cut at {cut}");
        lengths.push(records.len());
        let next = records.len() as u64 + 1;
        assert_eq!(
            journal.append("a", next - 1, &[record(next)]).unwrap(),
            next
        );
    }
    assert!(lengths.is_sorted(), "a longer log held less: {lengths:?}");
    assert_eq!(
        (lengths[0], lengths[lengths.len() - 1] as u64),
        (0, RECORDS)
    );
}
