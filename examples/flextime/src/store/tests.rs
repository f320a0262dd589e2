//! What both stores keep, and how.

use serde_json::json;

use super::*;
use crate::constraint::Draft;

fn example(id: &str, sport: &str) -> Constraint {
    let draft: Draft = serde_json::from_value(json!({
        "type": "rest-days", "sport": sport, "name": "rest", "configuration": {"min_days": 2},
    }))
    .unwrap();
    draft.into_constraint(id.to_owned(), Timestamp::UNIX_EPOCH, Timestamp::UNIX_EPOCH)
}

#[test]
fn keeps_what_it_was_given_and_pages_through_it() {
    let folder = tempfile::tempdir().unwrap();
    keeps_and_pages(&Store::Sqlite(Sqlite::open(folder.path()).unwrap()));
    let server = landfast_testbed::Postgres::start().unwrap();
    server.sql("postgres", "CREATE DATABASE flextime").unwrap();
    let store = Postgres::open(&server.url("flextime")).unwrap();
    keeps_and_pages(&Store::Postgres(Box::new(store)));
}

fn keeps_and_pages(store: &Store) {
    for number in 0..5 {
        assert_eq!(
            store
                .insert(&example(&format!("c{number}"), "hockey"))
                .unwrap(),
            Created::Yes
        );
    }
    store.insert(&example("d", "rowing")).unwrap();
    assert_eq!(
        store.insert(&example("d", "rowing")).unwrap(),
        Created::Existed
    );
    assert_eq!(store.get("d").unwrap(), Some(example("d", "rowing")));
    let filter = Filter {
        sport: Some("hockey".to_owned()),
        after: Some("c1".to_owned()),
        limit: 2,
        ..Filter::default()
    };
    let ids: Vec<String> = store
        .list(&filter)
        .unwrap()
        .into_iter()
        .map(|c| c.id)
        .collect();
    assert_eq!(ids, ["c2", "c3"]);
    assert!(store.delete("d").unwrap() && !store.delete("d").unwrap());
    assert_eq!(store.replace(&example("d", "rowing")).unwrap(), None);
}

#[test]
fn many_open_it_at_once_and_write_together() {
    let folder = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        for writer in 0..6 {
            let folder = folder.path();
            scope.spawn(move || {
                let store = Store::Sqlite(Sqlite::open(folder).unwrap());
                for number in 0..20 {
                    store
                        .insert(&example(&format!("w{writer}-{number}"), "golf"))
                        .unwrap();
                }
            });
        }
    });
    let store = Store::Sqlite(Sqlite::open(folder.path()).unwrap());
    store.check().unwrap();
    assert_eq!(
        store
            .list(&Filter {
                limit: 1000,
                ..Filter::default()
            })
            .unwrap()
            .len(),
        120
    );
}

#[test]
fn prunes_only_what_is_older() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::Sqlite(Sqlite::open(folder.path()).unwrap());
    let row = |second| HistoryRow {
        constraint_id: "c".to_owned(),
        slot_id: "s".to_owned(),
        result: "{}".to_owned(),
        evaluation_micros: 1,
        created_at: Timestamp::from_second(second).unwrap(),
    };
    store
        .record(&(0..5_000).map(row).collect::<Vec<_>>())
        .unwrap();
    assert_eq!(
        store
            .prune(
                Timestamp::from_second(5_000).unwrap(),
                Timestamp::from_second(4_990).unwrap()
            )
            .unwrap(),
        4_990
    );
    assert_eq!(store.history_count().unwrap(), 10);
}

fn row(instant: Timestamp) -> HistoryRow {
    HistoryRow {
        constraint_id: "c".to_owned(),
        slot_id: "s".to_owned(),
        result: "{}".to_owned(),
        evaluation_micros: 1,
        created_at: instant,
    }
}

#[test]
fn postgres_has_partitions_ahead_and_drops_those_that_are_over() {
    let mut server = landfast_testbed::Postgres::start().unwrap();
    server.sql("postgres", "CREATE DATABASE flextime").unwrap();
    let store = Postgres::open(&server.url("flextime")).unwrap();
    let at = |text: &str| text.parse::<Timestamp>().unwrap();
    // Rows of before there was a partition for them make one.
    let old = (0..50)
        .map(|_| row(at("2020-02-03T00:00:00Z")))
        .collect::<Vec<_>>();
    store.record(&old).unwrap();
    let now = at("2020-06-20T00:00:00Z");
    let young = ["2020-04-02T00:00:00Z", "2020-06-19T00:00:00Z"].map(|text| row(at(text)));
    store.record(&young).unwrap();
    assert_eq!(store.prune(now, at("2020-05-21T00:00:00Z")).unwrap(), 51);
    assert_eq!(store.history_count().unwrap(), 1);
    let partitions = store.partitions().unwrap();
    assert!(
        !partitions.contains(&"evaluation_history_2020q1".to_owned()),
        "{partitions:?}"
    );
    for ahead in ["2020q2", "2020q3", "2020q4"] {
        let table = format!("evaluation_history_{ahead}");
        assert!(partitions.contains(&table), "{partitions:?}");
    }
    // A server that was away is found again.
    server.stop();
    assert!(store.check().is_err());
    server.boot().unwrap();
    assert!((0..50).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(100));
        store.check().is_ok()
    }));
}
