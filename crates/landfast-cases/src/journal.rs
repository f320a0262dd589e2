//! The journal on disk. Counted are instructions of the process; what the disk takes is Criterion's part.

use std::hint::black_box;

use landfast_journal::{Journal, NewRecord, SqliteJournal};
use landfast_types::Timestamp;
use serde_json::json;

use crate::Work;

const RECORDS: u64 = 1_000;

fn record(number: u64) -> NewRecord {
    let body = json!({"kind": "instance-ready", "instance": "api.r3.17", "number": number});
    let at = Timestamp::from_millis(1_790_000_000_000);
    NewRecord::json("environment", 1, at, &body).expect("JSON")
}

fn open() -> (tempfile::TempDir, SqliteJournal) {
    let folder = tempfile::tempdir().expect("a folder");
    let journal = SqliteJournal::open(folder.path().join("journal.sqlite")).expect("a journal");
    (folder, journal)
}

pub(crate) fn append_one() -> Work {
    let (folder, journal) = open();
    let mut last = 0;
    Box::new(move || {
        let records = [record(1)];
        last = journal
            .append("flextime/production", last, black_box(&records))
            .expect("nobody else writes");
        assert!(folder.path().exists());
    })
}

pub(crate) fn replay() -> Work {
    let (folder, journal) = open();
    let records: Vec<NewRecord> = (1..=RECORDS).map(record).collect();
    journal
        .append("flextime/production", 0, &records)
        .expect("nobody else writes");
    Box::new(move || {
        let read = journal
            .read("flextime/production", black_box(0), RECORDS as usize)
            .expect("what was written");
        assert!(read.len() as u64 == RECORDS && folder.path().exists());
    })
}
