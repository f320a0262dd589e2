//! What a rehearsal sees: locks, tables written anew, the log; and how MariaDB did it.

#![expect(clippy::unwrap_used, reason = "a test that panics fails")]

use std::time::Duration;

use landfast_migration::{Engine, MigrationSet, SourceFile};
use landfast_migrator::{MigratorError, Observed, Options, Session, Stage, Strength};
use landfast_testbed::{Mariadb, Postgres};
use landfast_types::Secret;

fn set(engine: Engine, statements: &[&str]) -> MigrationSet {
    let files: Vec<SourceFile> = statements
        .iter()
        .zip(1..)
        .map(|(text, number)| SourceFile {
            name: format!("{number:04}_step.sql"),
            bytes: text.as_bytes().to_vec(),
        })
        .collect();
    MigrationSet::parse(&files, engine).unwrap()
}

async fn rehearse(url: &str, set: &MigrationSet) -> (Vec<Observed>, Result<(), MigratorError>) {
    let url = Secret::new(url.to_owned());
    let mut session = Session::connect(set.engine(), &url).await.unwrap();
    let options = Options {
        batch_pause: Duration::ZERO,
        ..Options::default()
    };
    session
        .rehearse(set, Stage::All, &options, &mut |_| {})
        .await
}

/// Table, lock, whom it stops.
fn locks(observed: &Observed) -> Vec<(&str, &str, Strength)> {
    let locks = observed.locks.iter();
    locks
        .map(|lock| (lock.table.as_str(), lock.mode.as_str(), lock.strength))
        .collect()
}

#[tokio::test]
async fn postgres_tells_locks_rewrites_and_what_it_logged() {
    let server = Postgres::start().unwrap();
    server
        .sql(
            "postgres",
            "CREATE TABLE items (id bigint PRIMARY KEY, amount int, note text);
             INSERT INTO items SELECT n, n, repeat('x', 50) FROM generate_series(1, 20000) n;
             CREATE TABLE shops (id bigint PRIMARY KEY);
             CREATE FUNCTION slow(note text) RETURNS text IMMUTABLE LANGUAGE plpgsql
                 AS 'BEGIN PERFORM pg_sleep(0.05); RETURN note; END'",
        )
        .unwrap();
    let statements = [
        "ALTER TABLE items ADD COLUMN a bigint DEFAULT 0;",
        "ALTER TABLE items ALTER COLUMN amount TYPE bigint;",
        "CREATE INDEX i1 ON items (amount);",
        "-- landfast: transaction=off\nCREATE INDEX CONCURRENTLY i2 ON items (slow(note)) WHERE id <= 20;",
        "-- landfast: batch=items.id batch_size=5000\nUPDATE items SET a = 1 WHERE id > :from AND id <= :to;",
        "CREATE TABLE fresh (id bigint);\nALTER TABLE fresh ADD COLUMN a text;",
        "ALTER TABLE shops RENAME TO stores;\nSELECT pg_sleep(0.2);",
    ];
    let (seen, ran) = rehearse(&server.url("postgres"), &set(Engine::Postgres, &statements)).await;
    ran.unwrap();
    let [plain, rewrite, index, concurrent, backfill, fresh, rename] = &seen[..] else {
        panic!("{seen:#?}")
    };
    let everybody = ("items", "AccessExclusiveLock", Strength::Everybody);
    assert_eq!(locks(plain), [everybody]);
    assert!(plain.rewritten.is_empty() && plain.wal_bytes.unwrap() < 100_000);
    assert_eq!(
        (locks(rewrite), &rewrite.rewritten[..]),
        (vec![everybody], &["items".to_owned()][..])
    );
    assert!(rewrite.wal_bytes.unwrap() > 1_000_000, "{rewrite:?}");
    assert_eq!(locks(index), [("items", "ShareLock", Strength::Writers)]);
    assert!(index.longest_lock() > Duration::ZERO);
    assert_eq!(
        locks(concurrent),
        [("items", "ShareUpdateExclusiveLock", Strength::Neither)]
    );
    assert_eq!(concurrent.longest_lock(), Duration::ZERO);
    assert_eq!(
        locks(backfill),
        [("items", "RowExclusiveLock", Strength::Neither)]
    );
    assert!(backfill.rewritten.is_empty() && backfill.wal_bytes.unwrap() > 1_000_000);
    assert!(
        locks(fresh).is_empty(),
        "nobody waits for a new table: {fresh:?}"
    );
    assert_eq!(
        locks(rename),
        [("shops", "AccessExclusiveLock", Strength::Everybody)],
        "by the name that people know"
    );
    assert!(rename.longest_lock() >= Duration::from_millis(200));
}

#[tokio::test]
async fn what_was_seen_before_a_failure_is_told() {
    let server = Postgres::start().unwrap();
    let statements = [
        "CREATE TABLE items (id int);",
        "ALTER TABLE nowhere ADD COLUMN a int;",
    ];
    let (seen, ran) = rehearse(&server.url("postgres"), &set(Engine::Postgres, &statements)).await;
    assert!(
        matches!(ran, Err(MigratorError::Statement { .. })),
        "{ran:?}"
    );
    let titles: Vec<_> = seen.iter().map(|one| one.migration.as_str()).collect();
    assert_eq!(titles, ["0001_step", "0002_step"]);
}

#[tokio::test]
async fn what_reaches_beyond_the_copy_is_not_tried_and_told_with_the_way_out() {
    let server = Postgres::start().unwrap();
    server.sql("postgres", "CREATE DATABASE copy").unwrap();
    let settings = "SELECT count(*) FROM pg_db_role_setting";
    for statement in [
        "ALTER DATABASE postgres SET work_mem = '8MB';",
        "ALTER ROLE CURRENT_USER SET work_mem = '8MB';",
        "DO $$ BEGIN EXECUTE 'ALTER DATABASE postgres SET work_mem = ''8MB'''; END $$;",
    ] {
        let set = set(Engine::Postgres, &["SELECT 1;", statement]);
        let (seen, ran) = rehearse(&server.url("copy"), &set).await;
        let said = ran.unwrap_err().to_string();
        assert!(said.contains("reaches beyond the copy"), "{said}");
        assert!(said.contains("current_database()"), "{said}");
        assert_eq!(seen.len(), 1, "the one before it ran");
        assert_eq!(server.sql("postgres", settings).unwrap().trim(), "0");
        server
            .sql("postgres", "DROP DATABASE copy WITH (FORCE)")
            .unwrap();
        server.sql("postgres", "CREATE DATABASE copy").unwrap();
    }
    // The way out changes the copy alone.
    let own = "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET work_mem = ''8MB''', current_database()); END $$;";
    let (_, ran) = rehearse(&server.url("copy"), &set(Engine::Postgres, &[own])).await;
    ran.unwrap();
    let of = "SELECT datname FROM pg_db_role_setting JOIN pg_database d ON d.oid = setdatabase";
    assert_eq!(server.sql("postgres", of).unwrap().trim(), "copy");
}

#[tokio::test]
async fn mariadb_tells_how_it_did_it_and_what_it_copied() {
    let server = Mariadb::start().unwrap();
    server
        .sql(
            "app",
            "CREATE TABLE items (id bigint PRIMARY KEY, amount int, note varchar(20)) DEFAULT CHARSET=utf8mb4;
             INSERT INTO items SELECT seq, seq, 'x' FROM seq_1_to_5000",
        )
        .unwrap();
    let statements = [
        "ALTER TABLE items ADD COLUMN a int DEFAULT 0;",
        "CREATE INDEX i1 ON items (amount);",
        "ALTER TABLE items MODIFY COLUMN amount bigint, ALGORITHM=COPY, LOCK=SHARED;",
        "ALTER TABLE items MODIFY COLUMN note varchar(20) NOT NULL;",
    ];
    let (seen, ran) = rehearse(&server.url("app"), &set(Engine::Mariadb, &statements)).await;
    ran.unwrap();
    let ways: Vec<_> = seen
        .iter()
        .map(|one| {
            let way = &one.ways[0];
            (way.algorithm.as_str(), way.rows_copied, one.rewritten.len())
        })
        .collect();
    assert_eq!(
        ways,
        [
            ("INSTANT", 0, 0),
            ("NOCOPY", 0, 0),
            ("as it is written", 5000, 1),
            ("INPLACE", 0, 1)
        ]
    );
}
