//! What every journal must do, asked in one place. Each implementation's tests call [`check`] with an empty
//! journal; a new one (PostgreSQL) starts by passing it.

use landfast_types::{Generation, Timestamp};

use crate::{
    AppendError, Change, CompactError, Journal, NewRecord, PutError, RECORDS_KEPT, ReadError,
    Snapshot, SnapshotError,
};

/// Asks an empty journal for everything the trait promises.
///
/// # Panics
/// At the first promise that is not kept.
pub fn check(journal: &dyn Journal) {
    starts_empty(journal);
    numbers_records_without_gaps(journal);
    orders_all_streams_by_position(journal);
    refuses_a_writer_who_is_behind(journal);
    changes_documents_with_records_or_not_at_all(journal);
    keeps_revisions_apart_for_ever(journal);
    lists_a_collection_in_pages(journal);
    keeps_the_newest_snapshot(journal);
    compacts_only_what_a_snapshot_covers(journal);
    counts_generations_up(journal);
    lets_one_of_many_writers_win(journal);
}

fn record(kind: &str, number: u64) -> NewRecord {
    let at = Timestamp::from_millis(i64::try_from(number).expect("small numbers"));
    NewRecord::json(kind, 1, at, &number).expect("a number is JSON")
}

fn numbers(journal: &dyn Journal, stream: &str, after: u64, limit: usize) -> Vec<u64> {
    let records = journal
        .read(stream, after, limit)
        .expect("the stream reads");
    records.iter().map(|record| record.sequence).collect()
}

fn starts_empty(journal: &dyn Journal) {
    assert_eq!(journal.last("a").expect("reads"), 0);
    assert_eq!(journal.last_position().expect("reads"), 0);
    assert!(journal.read("a", 0, 10).expect("reads").is_empty());
    assert!(journal.read_all(0, 10).expect("reads").is_empty());
    assert!(journal.streams().expect("reads").is_empty());
    assert_eq!(journal.load_snapshot("a").expect("reads"), None);
    assert_eq!(journal.get("c", "k").expect("reads"), None);
    assert!(journal.list("c", None, 10).expect("reads").is_empty());
}

fn numbers_records_without_gaps(journal: &dyn Journal) {
    let records: Vec<NewRecord> = (1..=3).map(|number| record("made", number)).collect();
    assert_eq!(journal.append("a", 0, &records).expect("appends"), 3);
    assert_eq!(
        journal
            .append("a", 3, &[])
            .expect("an empty append only compares"),
        3
    );
    assert_eq!(journal.append("a", 3, &records[..2]).expect("appends"), 5);
    assert_eq!(numbers(journal, "a", 0, 10), [1, 2, 3, 4, 5]);
    assert_eq!(numbers(journal, "a", 2, 2), [3, 4]);
    assert!(numbers(journal, "a", 5, 10).is_empty());
    assert!(numbers(journal, "a", 99, 10).is_empty());
    let second = &journal.read("a", 1, 1).expect("reads")[0];
    assert_eq!((second.kind.as_str(), second.version), ("made", 1));
    assert_eq!(second.at, Timestamp::from_millis(2));
    assert_eq!(second.json::<u64>().expect("a number"), 2);
}

fn orders_all_streams_by_position(journal: &dyn Journal) {
    journal
        .append("b", 0, &[record("other", 1)])
        .expect("appends");
    journal
        .append("a", 5, &[record("made", 6)])
        .expect("appends");
    let all = journal.read_all(0, 100).expect("reads");
    let places: Vec<_> = all
        .iter()
        .map(|r| (r.position, r.stream.as_str(), r.sequence))
        .collect();
    let order = ["a", "a", "a", "a", "a", "b", "a"];
    let sequences = [1, 2, 3, 4, 5, 1, 6];
    let expected: Vec<_> = (1..)
        .zip(order)
        .zip(sequences)
        .map(|((p, s), n)| (p, s, n))
        .collect();
    assert_eq!(places, expected);
    let tail = journal.read_all(5, 1).expect("reads");
    assert_eq!(tail[0].position, 6);
    assert_eq!(journal.last_position().expect("reads"), 7);
    assert_eq!(journal.streams().expect("reads"), ["a", "b"]);
}

fn refuses_a_writer_who_is_behind(journal: &dyn Journal) {
    for wrong in [0, 5, 7] {
        let refused = journal.append("a", wrong, &[record("late", 1)]);
        let Err(AppendError::Conflict {
            stream,
            expected,
            found,
        }) = refused
        else {
            panic!("{wrong} was taken for the end of the stream: {refused:?}");
        };
        assert_eq!((stream.as_str(), expected, found), ("a", wrong, 6));
    }
    assert_eq!(journal.last("a").expect("reads"), 6);
    assert_eq!(journal.last_position().expect("reads"), 7);
}

fn changes_documents_with_records_or_not_at_all(journal: &dyn Journal) {
    let first = Change::put("docs", "one", Some(0), b"1".to_vec());
    journal
        .append_with("a", 6, &[record("made", 7)], &[first])
        .expect("appends");
    let one = journal.get("docs", "one").expect("reads").expect("was put");
    assert_eq!(one.body, b"1");
    // The second change is refused, so neither the first nor the record may stay.
    let changes = [
        Change::put("docs", "two", None, b"2".to_vec()),
        Change::put("docs", "one", Some(one.revision + 9), b"x".to_vec()),
    ];
    let refused = journal.append_with("a", 7, &[record("made", 8)], &changes);
    let Err(AppendError::Document(conflict)) = refused else {
        panic!("the document was not at that revision: {refused:?}");
    };
    assert_eq!(
        (conflict.key.as_str(), conflict.found),
        ("one", one.revision)
    );
    assert_eq!(journal.last("a").expect("reads"), 7);
    assert_eq!(journal.get("docs", "two").expect("reads"), None);
    assert_eq!(
        journal.get("docs", "one").expect("reads"),
        Some(one.clone())
    );
    // And a refused record leaves no document.
    let change = Change::put("docs", "two", None, b"2".to_vec());
    assert!(journal.append_with("a", 1, &[], &[change]).is_err());
    assert_eq!(journal.get("docs", "two").expect("reads"), None);
}

fn keeps_revisions_apart_for_ever(journal: &dyn Journal) {
    let first = journal
        .put("docs", "again", Some(0), b"1".to_vec())
        .expect("puts");
    let second = journal
        .put("docs", "again", Some(first), b"2".to_vec())
        .expect("puts");
    assert!(second > first);
    let late = journal.put("docs", "again", Some(first), b"3".to_vec());
    assert!(matches!(late, Err(PutError::Conflict(conflict)) if conflict.found == second));
    assert!(journal.delete("docs", "again", Some(first)).is_err());
    journal
        .delete("docs", "again", Some(second))
        .expect("deletes");
    journal
        .delete("docs", "again", None)
        .expect("deleting what is gone is no error");
    assert!(journal.delete("docs", "again", Some(second)).is_err());
    let third = journal
        .put("docs", "again", Some(0), b"4".to_vec())
        .expect("puts");
    assert!(third > second, "a revision came back");
    let document = journal
        .get("docs", "again")
        .expect("reads")
        .expect("was put");
    assert_eq!(
        (document.revision, document.body.as_slice()),
        (third, b"4".as_slice())
    );
    assert_eq!(
        journal
            .put("docs", "again", None, b"5".to_vec())
            .expect("puts"),
        third + 1
    );
}

fn lists_a_collection_in_pages(journal: &dyn Journal) {
    for key in ["c", "a", "b"] {
        journal
            .put("pages", key, None, key.as_bytes().to_vec())
            .expect("puts");
    }
    journal
        .put("pages-other", "a", None, Vec::new())
        .expect("puts");
    let keys = |after, limit| {
        let documents = journal.list("pages", after, limit).expect("lists");
        documents
            .into_iter()
            .map(|document| document.key)
            .collect::<Vec<_>>()
    };
    assert_eq!(keys(None, 10), ["a", "b", "c"]);
    assert_eq!(keys(None, 2), ["a", "b"]);
    assert_eq!(keys(Some("b"), 2), ["c"]);
}

fn keeps_the_newest_snapshot(journal: &dyn Journal) {
    let snapshot = |sequence, body: &[u8]| Snapshot {
        stream: "a".to_owned(),
        sequence,
        version: 2,
        body: body.to_vec(),
    };
    journal.save_snapshot(&snapshot(5, b"five")).expect("saves");
    journal
        .save_snapshot(&snapshot(3, b"late"))
        .expect("an older one is ignored");
    assert_eq!(
        journal.load_snapshot("a").expect("reads"),
        Some(snapshot(5, b"five"))
    );
    let ahead = journal.save_snapshot(&snapshot(8, b"eight"));
    assert!(matches!(
        ahead,
        Err(SnapshotError::Ahead {
            sequence: 8,
            last: 7,
            ..
        })
    ));
    assert_eq!(
        numbers(journal, "a", 0, 10).len(),
        7,
        "a snapshot replaces no record"
    );
}

fn compacts_only_what_a_snapshot_covers(journal: &dyn Journal) {
    let total = RECORDS_KEPT + 50;
    let records: Vec<NewRecord> = (1..=total).map(|number| record("step", number)).collect();
    journal.append("long", 0, &records).expect("appends");
    let refused = journal.compact("long", 10);
    assert!(
        matches!(refused, Err(CompactError::NotCovered { upto: 10, .. })),
        "{refused:?}"
    );
    let (stream, body) = ("long".to_owned(), b"state".to_vec());
    let snapshot = Snapshot {
        stream,
        sequence: total,
        version: 1,
        body,
    };
    journal.save_snapshot(&snapshot).expect("saves");
    assert_eq!(journal.compact("long", 10).expect("compacts"), 10);
    assert_eq!(
        journal.compact("long", total).expect("compacts"),
        40,
        "the newest stay"
    );
    assert_eq!(journal.compact("long", 10).expect("again"), 0);
    assert_eq!(journal.last("long").expect("reads"), total);
    let early = journal.read("long", 49, 10);
    assert!(
        matches!(early, Err(ReadError::Compacted { upto: 50, .. })),
        "{early:?}"
    );
    assert_eq!(numbers(journal, "long", 50, 1), [51]);
    let kept = journal.read("long", 50, usize::MAX).expect("reads");
    assert_eq!(kept.len() as u64, RECORDS_KEPT);
    assert_eq!(
        journal
            .append("long", total, &[record("step", 1)])
            .expect("appends"),
        total + 1
    );
    assert_eq!(
        numbers(journal, "a", 0, 1),
        [1],
        "another stream lost records"
    );
}

fn counts_generations_up(journal: &dyn Journal) {
    assert_eq!(journal.next_generation().expect("counts"), Generation(1));
    assert_eq!(journal.next_generation().expect("counts"), Generation(2));
}

fn lets_one_of_many_writers_win(journal: &dyn Journal) {
    const WRITERS: u64 = 4;
    const RECORDS: u64 = 25;
    let write = |writer: u64| {
        let mut written = 0;
        let mut conflicts = 0_u64;
        while written < RECORDS {
            let last = journal.last("shared").expect("reads");
            match journal.append("shared", last, &[record("race", writer)]) {
                Ok(_) => written += 1,
                Err(AppendError::Conflict { .. }) => conflicts += 1,
                Err(error) => panic!("writer {writer}: {error}"),
            }
        }
        conflicts
    };
    let write = &write;
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|id| scope.spawn(move || write(id)))
            .collect();
        for writer in writers {
            writer.join().expect("no writer panics");
        }
    });
    let records = journal.read("shared", 0, usize::MAX).expect("reads");
    assert_eq!(records.len() as u64, WRITERS * RECORDS);
    for writer in 0..WRITERS {
        let own = records
            .iter()
            .filter(|record| record.json::<u64>().is_ok_and(|id| id == writer));
        assert_eq!(own.count() as u64, RECORDS, "writer {writer}");
    }
}
