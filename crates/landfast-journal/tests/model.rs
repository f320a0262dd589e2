//! The journal on disk against the one in memory: any sequence of calls, restarts included, must get the same
//! answers from both.

#![cfg(test)]

use std::{fmt::Debug, path::Path};

use landfast_journal::{
    AppendError, Change, CompactError, Journal, MemoryJournal, NewRecord, PutError, RECORDS_KEPT,
    ReadError, Snapshot, SnapshotError, SqliteJournal,
};
use landfast_types::Timestamp;
use proptest::prelude::*;

const STREAMS: [&str; 3] = ["", "a/b", "ü\u{0}x"];
const KEYS: [&str; 3] = ["k", "K", ""];

#[derive(Debug, Clone)]
enum Call {
    /// `off` is added to the true end of the stream.
    Append {
        stream: usize,
        off: i64,
        count: usize,
        changes: Vec<Edit>,
    },
    Change(Vec<Edit>),
    Snapshot {
        stream: usize,
        back: i64,
    },
    Compact {
        stream: usize,
        back: i64,
    },
    Generation,
    Restart,
}

#[derive(Debug, Clone)]
struct Edit {
    key: usize,
    delete: bool,
    /// `None`: whatever is there. Otherwise this is added to the true revision.
    off: Option<i64>,
    body: Vec<u8>,
}

fn edit() -> impl Strategy<Value = Edit> {
    let off = prop_oneof![
        Just(None),
        Just(Some(0)),
        Just(Some(0)),
        Just(Some(-1)),
        Just(Some(1))
    ];
    (
        0..KEYS.len(),
        any::<bool>(),
        off,
        prop::collection::vec(any::<u8>(), 0..20),
    )
        .prop_map(|(key, delete, off, body)| Edit {
            key,
            delete,
            off,
            body,
        })
}

fn call() -> impl Strategy<Value = Call> {
    let stream = || 0..STREAMS.len();
    let count = prop_oneof![3 => 0..4_usize, 1 => Just(RECORDS_KEPT as usize)];
    let append = (
        stream(),
        prop_oneof![4 => Just(0_i64), 1 => -1..=1_i64],
        count,
        prop::collection::vec(edit(), 0..3),
    );
    prop_oneof![
        6 => append.prop_map(|(stream, off, count, changes)| Call::Append { stream, off, count, changes }),
        4 => prop::collection::vec(edit(), 0..4).prop_map(Call::Change),
        2 => (stream(), -1..4_i64).prop_map(|(stream, back)| Call::Snapshot { stream, back }),
        2 => (stream(), -1..4_i64).prop_map(|(stream, back)| Call::Compact { stream, back }),
        1 => Just(Call::Generation),
        1 => Just(Call::Restart),
    ]
}

fn plus(number: u64, off: i64) -> u64 {
    number.saturating_add_signed(off)
}

fn changes(journal: &dyn Journal, edits: &[Edit]) -> Vec<Change> {
    let change = |edit: &Edit| {
        let key = KEYS[edit.key];
        let found = journal
            .get("docs", key)
            .unwrap()
            .map_or(0, |document| document.revision);
        let expected = edit.off.map(|off| plus(found, off));
        if edit.delete {
            return Change::delete("docs", key, expected);
        }
        Change::put("docs", key, expected, edit.body.clone())
    };
    edits.iter().map(change).collect()
}

/// What a call answered, without what only one of the two can say (a path).
fn run(journal: &dyn Journal, call: &Call) -> String {
    fn say<T: Debug, E: Debug>(answer: Result<T, E>) -> String {
        format!("{answer:?}")
    }
    match call {
        Call::Append {
            stream,
            off,
            count,
            changes: edits,
        } => {
            let stream = STREAMS[*stream];
            let expected = plus(journal.last(stream).unwrap(), *off);
            let record = |number: usize| NewRecord {
                kind: format!("kind {number}"),
                version: 7,
                at: Timestamp::from_micros(-5),
                body: vec![number as u8; number % 50],
            };
            let records: Vec<NewRecord> = (0..*count).map(record).collect();
            let changes = changes(journal, edits);
            say::<_, AppendError>(journal.append_with(stream, expected, &records, &changes))
        }
        Call::Change(edits) => say::<_, PutError>(journal.change(&changes(journal, edits))),
        Call::Snapshot { stream, back } => {
            let stream = STREAMS[*stream];
            let sequence = plus(journal.last(stream).unwrap(), -back);
            let body = sequence.to_string().into_bytes();
            let snapshot = Snapshot {
                stream: stream.to_owned(),
                sequence,
                version: 1,
                body,
            };
            say::<_, SnapshotError>(journal.save_snapshot(&snapshot))
        }
        Call::Compact { stream, back } => {
            let stream = STREAMS[*stream];
            let upto = plus(journal.last(stream).unwrap(), -back);
            say::<_, CompactError>(journal.compact(stream, upto))
        }
        Call::Generation => say(journal.next_generation()),
        Call::Restart => String::new(),
    }
}

/// Everything that can be asked.
fn all(journal: &dyn Journal) -> String {
    let mut told = format!(
        "{:?} {:?}",
        journal.streams().unwrap(),
        journal.last_position().unwrap()
    );
    for stream in STREAMS {
        let read = |after| -> Result<_, ReadError> { journal.read(stream, after, 300) };
        told += &format!(
            "\n{stream:?} {:?} {:?}",
            journal.last(stream),
            journal.load_snapshot(stream)
        );
        told += &format!("\n{:?}\n{:?}", read(0), read(RECORDS_KEPT / 2));
    }
    told += &format!("\n{:?}", journal.read_all(3, 400));
    told += &format!("\n{:?}", journal.list("docs", None, 2));
    told += &format!("\n{:?}", journal.list("docs", Some("K"), 9));
    told
}

fn open(path: &Path) -> SqliteJournal {
    SqliteJournal::open(path).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn disk_and_memory_give_the_same_answers(calls in prop::collection::vec(call(), 1..40)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.sqlite");
        let memory = MemoryJournal::default();
        let mut disk = open(&path);
        for call in &calls {
            if matches!(call, Call::Restart) {
                drop(disk);
                disk = open(&path);
            }
            prop_assert_eq!(run(&disk, call), run(&memory, call), "{:?}", call);
        }
        prop_assert_eq!(all(&disk), all(&memory));
    }
}
