//! Processes that are killed while they append, and processes that append at the same time. Each test starts
//! this very test binary again as its child, by the environment variable below.

#![cfg(test)]

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Stdio},
};

use landfast_journal::{AppendError, Change, Journal, NewRecord, SqliteJournal};
use landfast_types::Timestamp;

const CHILD: &str = "LANDFAST_JOURNAL_CHILD";

fn record(number: u64) -> NewRecord {
    // Bodies of changing size, so that records straddle pages.
    let body = format!(
        "\"{number}:{}\"",
        "x".repeat((number * 37 % 3_000) as usize)
    );
    NewRecord {
        kind: "made".into(),
        version: 1,
        at: Timestamp::EPOCH,
        body: body.into_bytes(),
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the test kills a process of its own"
)]
fn child(test: &str, path: &Path) -> Child {
    std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(CHILD, path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Appends for ever to `a`, a document with each record, and prints each number once it is acknowledged.
fn append_for_ever(path: &str) -> ! {
    let journal = SqliteJournal::open(path).unwrap();
    let mut last = journal.last("a").unwrap();
    loop {
        let change = Change::put("docs", "last", None, (last + 1).to_string().into_bytes());
        last = journal
            .append_with("a", last, &[record(last + 1)], &[change])
            .unwrap();
        println!("acknowledged {last}");
    }
}

#[test]
fn keeps_every_acknowledged_record_when_killed() {
    if let Ok(path) = std::env::var(CHILD) {
        append_for_ever(&path);
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.sqlite");
    let mut acknowledged = 0;
    for life in 1..=12_u64 {
        let mut child = child("keeps_every_acknowledged_record_when_killed", &path);
        // Each life is killed at another moment, some in the middle of a checkpoint: the log is folded in
        // every thousand pages.
        let until = acknowledged + life * life * 5;
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let number = |line: &str| {
            line.rsplit_once("acknowledged ")
                .and_then(|(_, n)| n.parse::<u64>().ok())
        };
        for line in lines.by_ref() {
            acknowledged = number(&line.unwrap()).unwrap_or(acknowledged);
            if acknowledged >= until {
                break;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What it still said before it died counts as well; its last line may be cut.
        for line in lines.map_while(Result::ok) {
            acknowledged = number(&line)
                .filter(|n| *n == acknowledged + 1)
                .unwrap_or(acknowledged);
        }
        assert!(acknowledged >= until, "the child ended by itself");

        let journal = SqliteJournal::open(&path).unwrap();
        let records = journal.read("a", 0, usize::MAX).unwrap();
        let last = records.len() as u64;
        assert!(
            last >= acknowledged,
            "{acknowledged} were acknowledged, {last} are there"
        );
        for (number, found) in (1..).zip(&records) {
            assert_eq!(found.body, record(number).body, "record {number}");
        }
        let document = journal.get("docs", "last").unwrap().unwrap();
        assert_eq!(
            document.body,
            last.to_string().into_bytes(),
            "a document without its record"
        );
    }
}

/// Adds 100 records to `shared`, against whoever else does.
fn append_with_others(path: &str) {
    let journal = SqliteJournal::open(path).unwrap();
    let mut written = 0;
    while written < 100 {
        let last = journal.last("shared").unwrap();
        match journal.append("shared", last, &[record(last + 1)]) {
            Ok(_) => written += 1,
            Err(AppendError::Conflict { .. }) => {}
            Err(error) => panic!("{error}: {error:?}"),
        }
    }
    println!("generation {}", journal.next_generation().unwrap());
}

#[test]
fn two_processes_share_one_file_without_losing_a_record() {
    if let Ok(path) = std::env::var(CHILD) {
        return append_with_others(&path);
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.sqlite");
    // All of them find no file, so they race to create it as well.
    let name = "two_processes_share_one_file_without_losing_a_record";
    let children: Vec<Child> = (0..3).map(|_| child(name, &path)).collect();
    let mut generations = Vec::new();
    for child in children {
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{text}");
        let told = text
            .lines()
            .find_map(|line| line.rsplit_once("generation "));
        generations.push(told.unwrap().1.parse::<u64>().unwrap());
    }
    generations.sort_unstable();
    assert_eq!(generations, [1, 2, 3], "each start has its own generation");
    let journal = SqliteJournal::open(&path).unwrap();
    let records = journal.read("shared", 0, usize::MAX).unwrap();
    assert_eq!(records.len(), 300);
    for (number, found) in (1..).zip(&records) {
        assert_eq!(
            found.body,
            record(number).body,
            "record {number} was built on another end"
        );
    }
}
