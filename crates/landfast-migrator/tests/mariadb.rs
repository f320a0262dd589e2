//! The runner against a real MariaDB.

#![expect(clippy::unwrap_used, reason = "a test that panics fails")]

use std::time::Duration;

use landfast_migration::{Engine, MigrationSet, SourceFile};
use landfast_migrator::{MigratorError, Options, Session, Stage};
use landfast_testbed::Mariadb;
use landfast_types::Secret;

fn set(files: &[(&str, &str)]) -> MigrationSet {
    let files: Vec<SourceFile> = files
        .iter()
        .map(|(name, text)| SourceFile {
            name: (*name).to_owned(),
            bytes: text.as_bytes().to_vec(),
        })
        .collect();
    MigrationSet::parse(&files, Engine::Mariadb).unwrap()
}

fn quick() -> Options {
    Options {
        lock_timeout: Duration::from_secs(1),
        lock_tries: 2,
        retry_first: Duration::from_millis(100),
        retry_max: Duration::from_millis(200),
        ..Options::default()
    }
}

/// A server; it has a database `app`.
fn server() -> Mariadb {
    Mariadb::start().unwrap()
}

async fn up(
    server: &Mariadb,
    set: &MigrationSet,
    stage: Stage,
) -> Result<Vec<String>, MigratorError> {
    let url = Secret::new(server.url("app"));
    let mut session = Session::connect(Engine::Mariadb, &url).await?;
    let report = session.up(set, stage, &quick(), &mut |_| {}).await?;
    Ok(report.applied)
}

fn sql(server: &Mariadb, text: &str) -> String {
    server.sql("app", text).unwrap().trim().to_owned()
}

const TABLE: (&str, &str) = (
    "0001_items.sql",
    "CREATE TABLE items (id bigint PRIMARY KEY, name varchar(50) NOT NULL, copy varchar(50)) DEFAULT CHARSET=utf8mb4;",
);

#[tokio::test]
async fn each_definition_is_a_step_and_runs_once() {
    let server = server();
    let two = (
        "0002_two.sql",
        "ALTER TABLE items ADD COLUMN price int;\nCREATE INDEX items_name ON items (name);",
    );
    let all = set(&[TABLE, two]);
    assert_eq!(
        up(&server, &all, Stage::Expand).await.unwrap(),
        ["0001_items", "0002_two"]
    );
    assert_eq!(up(&server, &all, Stage::Expand).await.unwrap().len(), 0);
    let recorded = "SELECT GROUP_CONCAT(number, '.', step, state ORDER BY number, step) FROM landfast_migrations";
    assert_eq!(sql(&server, recorded), "1.1applied,2.1applied,2.2applied");
}

#[tokio::test]
async fn what_a_dead_runner_left_is_found_out_from_the_schema() {
    let server = server();
    let add = ("0002_price.sql", "ALTER TABLE items ADD COLUMN price int;");
    let all = set(&[TABLE, add]);
    for happened in [false, true] {
        sql(
            &server,
            "DROP TABLE IF EXISTS items; DROP TABLE IF EXISTS landfast_migrations",
        );
        up(&server, &all, Stage::Expand).await.unwrap();
        // As it is when the runner died between the record and the statement, or between the statement and the record.
        sql(
            &server,
            "UPDATE landfast_migrations SET state = 'started', applied_at = NULL WHERE number = 2",
        );
        if !happened {
            sql(&server, "ALTER TABLE items DROP COLUMN price");
        }
        assert_eq!(
            up(&server, &all, Stage::Expand).await.unwrap(),
            ["0002_price"],
            "happened: {happened}"
        );
        assert_eq!(
            sql(
                &server,
                "SELECT COUNT(*) FROM information_schema.columns WHERE table_name = 'items' AND column_name = 'price'"
            ),
            "1"
        );
    }
}

#[tokio::test]
async fn what_would_copy_the_table_is_refused_and_leaves_nothing() {
    let server = server();
    let wider = (
        "0002_wider.sql",
        "ALTER TABLE items MODIFY name varchar(300) NOT NULL;",
    );
    let all = set(&[TABLE, wider]);
    up(&server, &set(&[TABLE]), Stage::Expand).await.unwrap();
    let error = up(&server, &all, Stage::Expand)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("0002_wider") && error.contains("ALGORITHM=COPY"),
        "{error}"
    );
    let explicit = (
        "0002_wider.sql",
        "ALTER TABLE items MODIFY name varchar(300) NOT NULL, ALGORITHM=COPY, LOCK=SHARED;",
    );
    assert_eq!(
        up(&server, &set(&[TABLE, explicit]), Stage::Expand)
            .await
            .unwrap(),
        ["0002_wider"]
    );
}

#[tokio::test]
async fn a_held_table_costs_a_few_tries_and_then_nothing_has_happened() {
    let server = server();
    let add = ("0002_price.sql", "ALTER TABLE items ADD COLUMN price int;");
    let all = set(&[TABLE, add]);
    up(&server, &set(&[TABLE]), Stage::Expand).await.unwrap();
    sql(&server, "INSERT INTO items VALUES (1, 'a', NULL)");
    let pool = mysql_async::Conn::from_url(server.url("app")).await;
    let mut holder = pool.unwrap();
    use mysql_async::prelude::Queryable as _;
    holder.query_drop("START TRANSACTION").await.unwrap();
    holder.query_drop("SELECT * FROM items").await.unwrap();
    let error = up(&server, &all, Stage::Expand).await.unwrap_err();
    assert!(matches!(error, MigratorError::NoLock { .. }), "{error}");
    holder.query_drop("COMMIT").await.unwrap();
    assert_eq!(
        up(&server, &all, Stage::Expand).await.unwrap(),
        ["0002_price"]
    );
}

#[tokio::test]
async fn a_backfill_goes_in_ranges() {
    let server = server();
    let fill = (
        "0002_fill.sql",
        "-- landfast: batch=items.id batch_size=100\nUPDATE items SET copy = name WHERE id > :from AND id <= :to;",
    );
    let all = set(&[TABLE, fill]);
    up(&server, &set(&[TABLE]), Stage::Expand).await.unwrap();
    sql(
        &server,
        "INSERT INTO items SELECT seq, CONCAT('n', seq), NULL FROM seq_1_to_950",
    );
    assert_eq!(
        up(&server, &all, Stage::Expand).await.unwrap(),
        ["0002_fill"]
    );
    assert_eq!(
        sql(&server, "SELECT COUNT(*) FROM items WHERE copy <=> name"),
        "950"
    );
}

#[tokio::test]
async fn two_runners_do_not_work_twice() {
    let server = server();
    let all = set(&[TABLE]);
    let (one, other) = tokio::join!(
        up(&server, &all, Stage::Expand),
        up(&server, &all, Stage::Expand)
    );
    assert_eq!(one.unwrap().len() + other.unwrap().len(), 1);
}
