//! The way down: once, whoever dies in between.

#![expect(clippy::unwrap_used, reason = "a test that panics fails")]

use landfast_migration::{Engine, MigrationSet, SourceFile, StepState};
use landfast_migrator::{MigratorError, Options, Progress, Session, Stage};
use landfast_testbed::{Mariadb, Postgres};
use landfast_types::Secret;
use tokio::sync::mpsc;

fn set(engine: Engine, files: &[(&str, &str)]) -> MigrationSet {
    let files: Vec<SourceFile> = files
        .iter()
        .map(|(name, text)| SourceFile {
            name: (*name).to_owned(),
            bytes: text.as_bytes().to_vec(),
        })
        .collect();
    MigrationSet::parse(&files, engine).unwrap()
}

async fn down(url: &str, set: &MigrationSet, number: u32) -> Result<String, MigratorError> {
    let url = Secret::new(url.to_owned());
    let mut session = Session::connect(set.engine(), &url).await?;
    let options = Options::default();
    session.down(set, number, &options, &mut |_| {}).await
}

async fn up(url: &str, set: &MigrationSet) -> Result<Vec<String>, MigratorError> {
    let url = Secret::new(url.to_owned());
    let mut session = Session::connect(set.engine(), &url).await?;
    let options = Options::default();
    let report = session
        .up(set, Stage::Expand, &options, &mut |_| {})
        .await?;
    Ok(report.applied)
}

/// The state of a migration's first row.
async fn state(url: &str, engine: Engine, number: u32) -> Option<StepState> {
    let url = Secret::new(url.to_owned());
    let mut session = Session::connect(engine, &url).await.unwrap();
    let history = session.history().await.unwrap();
    history.first(number).map(|record| record.state)
}

/// Ends the runner when a step begins, as a server that dies would.
async fn cut_at(url: &str, set: &MigrationSet, number: u32, step: u32) {
    let url = Secret::new(url.to_owned());
    let mut session = Session::connect(set.engine(), &url).await.unwrap();
    let (tell, mut told) = mpsc::unbounded_channel();
    let options = Options::default();
    let mut listener = move |progress: Progress| {
        if let Progress::Begins { step: begun, .. } = progress
            && begun == step
        {
            tell.send(()).unwrap();
        }
    };
    tokio::select! {
        done = session.down(set, number, &options, &mut listener) => panic!("{done:?}"),
        _ = told.recv() => {}
    }
}

const TABLE: (&str, &str) = (
    "0001_items.sql",
    "CREATE TABLE items (id bigint PRIMARY KEY, name varchar(20), price int);",
);

#[tokio::test]
async fn mariadb_goes_down_step_by_step_and_on_from_where_it_was_cut() {
    let server = Mariadb::start().unwrap();
    let url = server.url("app");
    let two = (
        "0002_two.sql",
        "ALTER TABLE items ADD COLUMN a int;\nALTER TABLE items ADD COLUMN b int;",
    );
    let files = |down| {
        let down = ("0002_two.down.sql", down);
        set(Engine::Mariadb, &[TABLE, two, down])
    };
    let whole = files("ALTER TABLE items DROP COLUMN b;\nALTER TABLE items DROP COLUMN a;");
    up(&url, &whole).await.unwrap();

    // The first step fails and left nothing: it is applied as before.
    let wrong = files("ALTER TABLE items DROP COLUMN nowhere;");
    down(&url, &wrong, 2).await.unwrap_err();
    assert_eq!(
        state(&url, Engine::Mariadb, 2).await,
        Some(StepState::Applied)
    );

    // The second one fails: only the way down leads on.
    let wrong = files("ALTER TABLE items DROP COLUMN b;\nALTER TABLE items DROP COLUMN nowhere;");
    down(&url, &wrong, 2).await.unwrap_err();
    assert_eq!(
        state(&url, Engine::Mariadb, 2).await,
        Some(StepState::Reverting)
    );
    let refused = up(&url, &whole).await.unwrap_err();
    assert!(matches!(refused, MigratorError::Reverting(_)), "{refused}");
    assert_eq!(down(&url, &whole, 2).await.unwrap(), "0002_two");
    assert_eq!(state(&url, Engine::Mariadb, 2).await, None);

    // Cut where the second begins, which then may have run or not.
    up(&url, &whole).await.unwrap();
    cut_at(&url, &whole, 2, 2).await;
    down(&url, &whole, 2).await.unwrap();
    let columns = "SELECT COUNT(*) FROM information_schema.columns WHERE table_schema = 'app' AND table_name = 'items'";
    assert_eq!(server.sql("app", columns).unwrap().trim(), "3");
    assert_eq!(up(&url, &whole).await.unwrap(), ["0002_two"]);
}

#[tokio::test]
async fn postgres_goes_down_in_one_transaction_or_step_by_step() {
    let server = Postgres::start().unwrap();
    let url = server.url("postgres");
    let bare = (
        "0002_by.sql",
        "-- landfast: transaction=off\nCREATE INDEX CONCURRENTLY i1 ON items (name);\nCREATE INDEX CONCURRENTLY i2 ON items (price);",
    );
    let back = (
        "0002_by.down.sql",
        "-- landfast: transaction=off\nDROP INDEX CONCURRENTLY i2;\nDROP INDEX CONCURRENTLY i1;",
    );
    let all = set(Engine::Postgres, &[TABLE, bare, back]);
    up(&url, &all).await.unwrap();
    cut_at(&url, &all, 2, 1).await;
    down(&url, &all, 2).await.unwrap();
    up(&url, &all).await.unwrap();
    cut_at(&url, &all, 2, 2).await;
    down(&url, &all, 2).await.unwrap();
    let left = server.sql(
        "postgres",
        "SELECT count(*) FROM pg_indexes WHERE tablename = 'items'",
    );
    assert_eq!(left.unwrap().trim(), "1");

    let transaction = [
        TABLE,
        ("0002_a.sql", "ALTER TABLE items ADD COLUMN a int;"),
        (
            "0002_a.down.sql",
            "ALTER TABLE items DROP COLUMN a;\nALTER TABLE nowhere DROP COLUMN a;",
        ),
    ];
    let broken = set(Engine::Postgres, &transaction);
    up(&url, &broken).await.unwrap();
    down(&url, &broken, 2).await.unwrap_err();
    assert_eq!(
        state(&url, Engine::Postgres, 2).await,
        Some(StepState::Applied)
    );
    assert_eq!(
        server
            .sql("postgres", "SELECT count(a) FROM items")
            .unwrap()
            .trim(),
        "0",
        "the column is still there"
    );
    let refused = down(&url, &broken, 1).await.unwrap_err();
    assert!(
        matches!(refused, MigratorError::NotNewest { .. }),
        "{refused}"
    );
}
