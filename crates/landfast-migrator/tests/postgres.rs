//! The runner against a real PostgreSQL.

#![expect(clippy::unwrap_used, reason = "a test that panics fails")]

use std::time::Duration;

use landfast_migration::{Engine, MigrationSet, SourceFile};
use landfast_migrator::{Guard, MigratorError, Options, Progress, Session, Stage};
use landfast_testbed::{PgBouncer, Postgres};
use landfast_types::Secret;
use tokio::task::JoinSet;

fn set(files: &[(&str, &str)]) -> MigrationSet {
    let files: Vec<SourceFile> = files
        .iter()
        .map(|(name, text)| SourceFile {
            name: (*name).to_owned(),
            bytes: text.as_bytes().to_vec(),
        })
        .collect();
    MigrationSet::parse(&files, Engine::Postgres).unwrap()
}

/// Times a test can wait for.
fn quick() -> Options {
    Options {
        lock_timeout: Duration::from_millis(200),
        lock_tries: 3,
        retry_first: Duration::from_millis(100),
        retry_max: Duration::from_millis(200),
        blocker_age: Duration::from_millis(300),
        ..Options::default()
    }
}

/// A client of the test's own, and the other half of its connection.
async fn client(url: &str) -> (tokio_postgres::Client, JoinSet<()>) {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls)
        .await
        .unwrap();
    let mut other_half = JoinSet::new();
    other_half.spawn(async move { connection.await.unwrap_or(()) });
    (client, other_half)
}

async fn session(server: &Postgres) -> Session {
    let url = Secret::new(server.url("postgres"));
    Session::connect(Engine::Postgres, &url).await.unwrap()
}

async fn up(
    server: &Postgres,
    set: &MigrationSet,
    stage: Stage,
    options: &Options,
) -> Result<Vec<String>, MigratorError> {
    let report = session(server)
        .await
        .up(set, stage, options, &mut |_| {})
        .await?;
    Ok(report.applied)
}

fn sql(server: &Postgres, text: &str) -> String {
    server.sql("postgres", text).unwrap().trim().to_owned()
}

const TABLE: (&str, &str) = (
    "0001_items.sql",
    "CREATE TABLE items (id bigint PRIMARY KEY, name text NOT NULL);",
);
const INDEX: (&str, &str) = (
    "0002_by_name.sql",
    "-- landfast: transaction=off\nCREATE UNIQUE INDEX CONCURRENTLY items_name ON items (name);",
);
const DROP: (&str, &str) = (
    "0003_no_index.sql",
    "-- landfast: phase=contract\nDROP TABLE items;",
);

#[tokio::test]
async fn each_runs_once_in_its_stage() {
    let server = Postgres::start().unwrap();
    let all = set(&[TABLE, INDEX, DROP]);
    let options = quick();
    let expand = up(&server, &all, Stage::Expand, &options).await.unwrap();
    assert_eq!(expand, ["0001_items", "0002_by_name"]);
    assert_eq!(
        up(&server, &all, Stage::Expand, &options)
            .await
            .unwrap()
            .len(),
        0
    );
    let recorded = "SELECT string_agg(number || state || breaks_older, ' ' ORDER BY number) FROM landfast.migrations";
    assert_eq!(sql(&server, recorded), "1appliedfalse 2appliedfalse");
    let contract = up(&server, &all, Stage::Contract, &options).await.unwrap();
    assert_eq!(contract, ["0003_no_index"]);
    assert_eq!(
        sql(&server, recorded),
        "1appliedfalse 2appliedfalse 3appliedtrue"
    );
}

#[tokio::test]
async fn a_failed_statement_leaves_nothing_and_is_named() {
    let server = Postgres::start().unwrap();
    let options = quick();
    let broken = (
        "0002_two.sql",
        "CREATE TABLE other (id int);\n\nALTER TABLE nowhere ADD COLUMN a int;",
    );
    let all = set(&[TABLE, broken]);
    let error = up(&server, &all, Stage::Expand, &options)
        .await
        .unwrap_err();
    let said = error.to_string();
    for part in ["0002_two", "statement 2", "line 3", "nowhere"] {
        assert!(said.contains(part), "{said}");
    }
    assert_eq!(sql(&server, "SELECT to_regclass('other') IS NULL"), "t");
    let mended = set(&[TABLE, ("0002_two.sql", "CREATE TABLE other (id int);")]);
    let error = up(&server, &mended, Stage::Expand, &options).await;
    // It has left nothing, so its file may be another now.
    assert_eq!(error.unwrap(), ["0002_two"]);
}

#[tokio::test]
async fn an_index_that_could_not_be_built_is_gone_and_built_again() {
    let server = Postgres::start().unwrap();
    let all = set(&[TABLE, INDEX]);
    let options = quick();
    up(&server, &set(&[TABLE]), Stage::Expand, &options)
        .await
        .unwrap();
    sql(&server, "INSERT INTO items VALUES (1, 'a'), (2, 'a')");
    let error = up(&server, &all, Stage::Expand, &options)
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("Key (name)=(…) is duplicated"),
        "{error}"
    );
    let invalid = "SELECT count(*) FROM pg_index WHERE NOT indisvalid";
    assert_eq!(sql(&server, invalid), "0");
    sql(&server, "DELETE FROM items WHERE id = 2");
    assert_eq!(
        up(&server, &all, Stage::Expand, &options).await.unwrap(),
        ["0002_by_name"]
    );
}

#[tokio::test]
async fn what_a_dead_runner_left_is_found_out_from_the_database() {
    let server = Postgres::start().unwrap();
    let all = set(&[TABLE, INDEX]);
    let options = quick();
    up(&server, &set(&[TABLE]), Stage::Expand, &options)
        .await
        .unwrap();
    let begun = |extra: &str| {
        let checksum = all.get(2).unwrap().checksum;
        format!(
            "{extra} DELETE FROM landfast.migrations WHERE number = 2;
             INSERT INTO landfast.migrations (number, step, steps, name, phase, checksum, state, breaks_older)
             VALUES (2, 1, 1, 'by_name', 'expand', '{checksum}', 'started', false);"
        )
    };
    // It died before, in the middle (leaving an INVALID index) and after.
    let invalid = "CREATE UNIQUE INDEX items_name ON items (name); UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'items_name'::regclass;";
    let valid = "CREATE UNIQUE INDEX items_name ON items (name);";
    for left in ["", invalid, valid] {
        sql(&server, &begun(left));
        let before = sql(
            &server,
            "SELECT coalesce(to_regclass('items_name')::oid::text, 'none')",
        );
        assert_eq!(
            up(&server, &all, Stage::Expand, &options).await.unwrap(),
            ["0002_by_name"]
        );
        let after = sql(
            &server,
            "SELECT indexrelid::oid::text FROM pg_index WHERE indexrelid = 'items_name'::regclass AND indisvalid",
        );
        assert_eq!(
            before == after,
            left == valid,
            "only the whole index is kept: {left}"
        );
        sql(&server, "DROP INDEX items_name");
    }
}

#[tokio::test]
async fn a_long_transaction_is_named_and_waited_for_and_nobody_is_blocked() {
    let server = Postgres::start().unwrap();
    let options = quick();
    let add = ("0002_price.sql", "ALTER TABLE items ADD COLUMN price int;");
    let all = set(&[TABLE, add]);
    up(&server, &set(&[TABLE]), Stage::Expand, &options)
        .await
        .unwrap();
    let (holder, other_half) = client(&server.url("postgres")).await;
    holder
        .batch_execute("BEGIN; SELECT count(*) FROM items")
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(400)).await;
    let mut told = Vec::new();
    let mut runner = session(&server).await;
    let error = runner
        .up(&all, Stage::Expand, &options, &mut |progress| {
            told.push(progress)
        })
        .await
        .unwrap_err();
    assert!(
        matches!(&error, MigratorError::NoLock { reason, .. } if reason.contains("`items`")),
        "{error}"
    );
    assert!(told.iter().any(|one| matches!(one, Progress::WaitsForTransaction { blocker, .. } if blocker.contains("process"))));
    // It never stood in the queue, so nobody waits behind it.
    let (reader, second) = client(&server.url("postgres")).await;
    reader
        .batch_execute("SET statement_timeout = 500; SELECT count(*) FROM items")
        .await
        .unwrap();
    holder.batch_execute("COMMIT").await.unwrap();
    assert_eq!(
        up(&server, &all, Stage::Expand, &options).await.unwrap(),
        ["0002_price"]
    );
    drop((other_half, second));
}

#[tokio::test]
async fn two_runners_do_not_work_twice_nor_lock_each_other_up() {
    let server = Postgres::start().unwrap();
    let all = set(&[TABLE, INDEX]);
    for _ in 0..3 {
        sql(
            &server,
            "DROP TABLE IF EXISTS items; DROP SCHEMA IF EXISTS landfast CASCADE",
        );
        let options = quick();
        let (one, other) = tokio::join!(
            up(&server, &all, Stage::Expand, &options),
            up(&server, &all, Stage::Expand, &options)
        );
        let applied = one.unwrap().len() + other.unwrap().len();
        assert_eq!(applied, 2, "each by one of them");
    }
}

#[tokio::test]
async fn a_schema_that_somebody_else_makes_meanwhile_is_no_error() {
    let server = Postgres::start().unwrap();
    let (other, _half) = client(&server.url("postgres")).await;
    let begun = other.batch_execute("BEGIN; CREATE SCHEMA landfast").await;
    begun.unwrap();
    let (all, options) = (set(&[TABLE]), quick());
    let run = up(&server, &all, Stage::Expand, &options);
    let waits = async {
        let ask = "SELECT count(*) FROM pg_locks WHERE NOT granted";
        while sql(&server, ask) == "0" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        other.batch_execute("COMMIT").await.unwrap();
    };
    let (applied, ()) = tokio::join!(run, waits);
    assert_eq!(applied.unwrap(), ["0001_items"]);
}

#[tokio::test]
async fn a_proxy_that_shares_sessions_is_refused() {
    let server = Postgres::start().unwrap();
    let pooler = PgBouncer::start(&server, "transaction").unwrap();
    let url = Secret::new(pooler.url("postgres"));
    let refused = Session::connect(Engine::Postgres, &url).await;
    assert!(matches!(refused.err(), Some(MigratorError::Pooled)));
    let pooler = PgBouncer::start(&server, "session").unwrap();
    let url = Secret::new(pooler.url("postgres"));
    assert!(
        Session::connect(Engine::Postgres, &url).await.is_ok(),
        "sessions of one's own are as good as direct"
    );
}

#[tokio::test]
async fn a_backfill_goes_on_where_it_stopped() {
    let server = Postgres::start().unwrap();
    let options = quick();
    let wide = (
        "0001_items.sql",
        "CREATE TABLE items (id bigint PRIMARY KEY, name text, copy text);",
    );
    let fill = (
        "0002_fill.sql",
        "-- landfast: batch=items.id batch_size=100\nUPDATE items SET copy = name WHERE id > :from AND id <= :to AND 1 / (id - 501) IS NOT NULL;",
    );
    let all = set(&[wide, fill]);
    up(&server, &set(&[wide]), Stage::Expand, &options)
        .await
        .unwrap();
    sql(
        &server,
        "INSERT INTO items SELECT n, 'n' || n FROM generate_series(-50, 1000) AS n",
    );
    // The row 501 divides by zero: so far it comes, and no further.
    let error = up(&server, &all, Stage::Expand, &options)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("division by zero"), "{error}");
    let done: i64 = sql(&server, "SELECT count(*) FROM items WHERE copy IS NOT NULL")
        .parse()
        .unwrap();
    assert!(done > 0 && done % 100 == 0, "{done}");
    sql(&server, "CREATE TABLE touched (id bigint); CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN INSERT INTO touched VALUES (NEW.id); RETURN NEW; END';
        CREATE TRIGGER note AFTER UPDATE ON items FOR EACH ROW EXECUTE FUNCTION note(); DELETE FROM items WHERE id = 501");
    assert_eq!(
        up(&server, &all, Stage::Expand, &options).await.unwrap(),
        ["0002_fill"]
    );
    assert_eq!(
        sql(
            &server,
            "SELECT count(*) FROM items WHERE copy IS DISTINCT FROM name"
        ),
        "0"
    );
    let touched: i64 = sql(&server, "SELECT count(*) FROM touched")
        .parse()
        .unwrap();
    assert_eq!(
        touched,
        1_050 - done,
        "what was done before was not done again"
    );
}

#[tokio::test]
async fn a_contract_is_refused_while_an_older_release_is_connected() {
    let server = Postgres::start().unwrap();
    sql(
        &server,
        "CREATE ROLE release_1 LOGIN PASSWORD 'p'; CREATE ROLE release_2 LOGIN PASSWORD 'p'; GRANT CREATE ON DATABASE postgres TO release_1",
    );
    let all = set(&[
        TABLE,
        (
            "0002_gone.sql",
            "-- landfast: phase=contract\nDROP TABLE items;",
        ),
    ]);
    let mut options = quick();
    up(&server, &all, Stage::Expand, &options).await.unwrap();
    options.guard = Some(Guard {
        allowed: ["release_2".to_owned()].into(),
        prefix: "release_".into(),
    });
    let (old, other_half) = client(&server.url_of("release_1", "p", "postgres")).await;
    let (new, second) = client(&server.url_of("release_2", "p", "postgres")).await;
    new.batch_execute("SELECT 1").await.unwrap();
    let error = up(&server, &all, Stage::Contract, &options)
        .await
        .unwrap_err();
    assert!(
        matches!(&error, MigratorError::OlderReleaseConnected { login, .. } if login == "release_1"),
        "{error}"
    );
    assert_eq!(sql(&server, "SELECT to_regclass('items') IS NOT NULL"), "t");
    drop((old, other_half));
    for _ in 0..100 {
        if up(&server, &all, Stage::Contract, &options).await.is_ok() {
            drop((new, second));
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the old release has left, and the contract is still refused");
}

#[tokio::test]
async fn an_edited_migration_is_named_and_can_be_accepted() {
    let server = Postgres::start().unwrap();
    let options = quick();
    up(&server, &set(&[TABLE]), Stage::Expand, &options)
        .await
        .unwrap();
    let edited = set(&[("0001_items.sql", "CREATE TABLE items (id int);")]);
    let error = up(&server, &edited, Stage::Expand, &options)
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("0001_items was changed after it ran"),
        "{error}"
    );
    let mut runner = session(&server).await;
    runner
        .accept(&edited, 1, "only the type differs", &options, &mut |_| {})
        .await
        .unwrap();
    assert_eq!(
        up(&server, &edited, Stage::Expand, &options)
            .await
            .unwrap()
            .len(),
        0
    );
}

#[tokio::test]
async fn the_newest_can_be_taken_back_but_no_contract() {
    let server = Postgres::start().unwrap();
    let options = quick();
    let all = set(&[TABLE, ("0001_items.down.sql", "DROP TABLE items;")]);
    up(&server, &all, Stage::Expand, &options).await.unwrap();
    let mut runner = session(&server).await;
    let taken = runner.down(&all, 1, &options, &mut |_| {}).await.unwrap();
    assert_eq!(
        (
            taken.as_str(),
            sql(&server, "SELECT to_regclass('items') IS NULL").as_str()
        ),
        ("0001_items", "t")
    );
    assert_eq!(
        up(&server, &all, Stage::Expand, &options).await.unwrap(),
        ["0001_items"]
    );
    let gone = set(&[
        TABLE,
        (
            "0002_gone.sql",
            "-- landfast: phase=contract\nDROP TABLE items;",
        ),
    ]);
    up(&server, &gone, Stage::Contract, &options).await.unwrap();
    let error = runner
        .down(&gone, 2, &options, &mut |_| {})
        .await
        .unwrap_err();
    assert!(matches!(error, MigratorError::ContractStays(_)), "{error}");
}

/// On a server of somebody else releases share a login, and are told apart by what their sessions are called.
#[tokio::test(flavor = "multi_thread")]
async fn a_contract_is_refused_while_a_session_bears_the_name_of_an_older_release() {
    let server = Postgres::start().unwrap();
    let all = set(&[
        TABLE,
        (
            "0002_gone.sql",
            "-- landfast: phase=contract\nDROP TABLE items;",
        ),
    ]);
    let mut options = quick();
    up(&server, &all, Stage::Expand, &options).await.unwrap();
    options.guard = Some(Guard {
        allowed: ["shop/production r2".to_owned()].into(),
        prefix: "shop/production r".into(),
    });
    let named = |name: &str| format!("{}?application_name={name}", server.url("postgres"));
    let old = client(&named("shop%2Fproduction%20r1")).await;
    let others = [
        client(&named("shop%2Fproduction%20r2")).await,
        client(&named("shop%2Fstaging%20r1")).await,
        client(&named("psql")).await,
    ];
    let error = up(&server, &all, Stage::Contract, &options)
        .await
        .unwrap_err();
    assert!(
        matches!(&error, MigratorError::OlderReleaseConnected { login, .. } if login == "shop/production r1"),
        "{error}"
    );
    drop(old);
    for _ in 0..100 {
        if up(&server, &all, Stage::Contract, &options).await.is_ok() {
            drop(others);
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the old release has left, and the contract is still refused");
}

#[tokio::test]
async fn only_what_ran_otherwise_or_may_have_run_is_accepted() {
    let server = Postgres::start().unwrap();
    let options = quick();
    let more = ("0002_more.sql", "ALTER TABLE items ADD COLUMN more int;");
    up(&server, &set(&[TABLE]), Stage::Expand, &options)
        .await
        .unwrap();
    let all = set(&[TABLE, more]);
    let accept = async |number| {
        let mut runner = session(&server).await;
        runner
            .accept(&all, number, "a slip", &options, &mut |_| {})
            .await
            .unwrap_err()
    };
    let pending = accept(2).await;
    assert!(
        matches!(&pending, MigratorError::NotBegun(title) if title == "0002_more"),
        "{pending}"
    );
    let same = accept(1).await;
    assert!(matches!(&same, MigratorError::AppliedAsItIs(_)), "{same}");
    assert_eq!(
        up(&server, &all, Stage::Expand, &options).await.unwrap(),
        ["0002_more"],
        "it runs as if nobody had asked"
    );
    sql(
        &server,
        "UPDATE landfast.migrations SET state = 'reverting' WHERE number = 2",
    );
    let reverting = accept(2).await;
    assert!(
        matches!(&reverting, MigratorError::Reverting(_)),
        "{reverting}"
    );
    // Of this one nobody can tell.
    sql(
        &server,
        "UPDATE landfast.migrations SET state = 'started' WHERE number = 2",
    );
    let mut runner = session(&server).await;
    runner
        .accept(&all, 2, "looked at", &options, &mut |_| {})
        .await
        .unwrap();
}

#[tokio::test]
async fn a_contract_sees_sessions_of_another_login() {
    let server = Postgres::start().unwrap();
    sql(
        &server,
        "CREATE ROLE app_a LOGIN PASSWORD 'p'; CREATE ROLE app_b LOGIN PASSWORD 'p';
         GRANT CREATE ON DATABASE postgres TO app_b; GRANT CREATE ON SCHEMA public TO app_b",
    );
    let url = Secret::new(server.url_of("app_b", "p", "postgres"));
    let all = set(&[
        TABLE,
        (
            "0002_gone.sql",
            "-- landfast: phase=contract\nDROP TABLE items;",
        ),
    ]);
    let mut options = quick();
    let mut runner = Session::connect(Engine::Postgres, &url).await.unwrap();
    runner
        .up(&all, Stage::Expand, &options, &mut |_| {})
        .await
        .unwrap();
    options.guard = Some(Guard {
        allowed: ["shop/production r2".to_owned()].into(),
        prefix: "shop/production r".into(),
    });
    let (old, _other_half) = client(&server.url_of("app_a", "p", "postgres")).await;
    old.batch_execute("SET application_name = 'shop/production r1'")
        .await
        .unwrap();
    let error = runner
        .up(&all, Stage::Contract, &options, &mut |_| {})
        .await
        .unwrap_err();
    assert!(
        matches!(&error, MigratorError::OlderReleaseConnected { login, .. } if login == "shop/production r1"),
        "{error}"
    );
}

#[tokio::test]
async fn an_error_holds_no_row_of_the_database() {
    let server = Postgres::start().unwrap();
    let options = quick();
    up(&server, &set(&[TABLE]), Stage::Expand, &options)
        .await
        .unwrap();
    sql(
        &server,
        "ALTER TABLE items ADD COLUMN token text; INSERT INTO items (id, name, token) VALUES (9001, 'a', 'hunter2'), (9002, 'b', 'hunter2')",
    );
    for (statement, named) in [
        ("ALTER TABLE items ADD CONSTRAINT once UNIQUE (token);", "once"),
        ("ALTER TABLE items ADD CONSTRAINT short CHECK (length(token) < 3);", "short"),
        ("ALTER TABLE items ALTER COLUMN token TYPE int USING token::int;", "invalid input"),
        (
            "CREATE TABLE tokens (token text PRIMARY KEY);
             ALTER TABLE items ADD CONSTRAINT known FOREIGN KEY (token) REFERENCES tokens DEFERRABLE INITIALLY DEFERRED NOT VALID;
             UPDATE items SET token = token || 'x';",
            "known",
        ),
    ] {
        let all = set(&[TABLE, ("0002_more.sql", statement)]);
        let error = up(&server, &all, Stage::Expand, &options).await.unwrap_err();
        let said = format!("{error} {error:?}");
        assert!(!said.contains("hunter2"), "{said}");
        assert!(said.contains(named), "{said}");
    }
}
