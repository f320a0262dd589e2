//! `kill -9` of a runner, at each of its moments and at any instant between: the next run ends as if nothing had happened.
//!
//! `LANDFAST_LONG=1` takes more instants.

#![expect(clippy::unwrap_used, reason = "a test that panics fails")]

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    time::Duration,
};

use landfast_migration::{Engine, MigrationSet, SourceFile};
use landfast_migrator::{Options, Session, Stage};
use landfast_testbed::{Mariadb, Postgres};
use landfast_types::Secret;

fn set(files: &[(&str, &str)], engine: Engine) -> MigrationSet {
    let files = files
        .iter()
        .map(|(name, text)| SourceFile {
            name: (*name).into(),
            bytes: text.as_bytes().to_vec(),
        })
        .collect::<Vec<_>>();
    MigrationSet::parse(&files, engine).unwrap()
}

/// Every kind of step: a transaction, concurrent builds, a drop, a backfill.
const POSTGRES: &[(&str, &str)] = &[
    (
        "0001_items.sql",
        "CREATE TABLE items (id bigint PRIMARY KEY, mail text, runs int NOT NULL DEFAULT 0); INSERT INTO items SELECT g, 'm' || g FROM generate_series(1, 2500) g; CREATE INDEX items_old ON items (id, mail)",
    ),
    (
        "0002_email.sql",
        "ALTER TABLE items ADD COLUMN email text; INSERT INTO items VALUES (9001, 'x', 0, 'y')",
    ),
    (
        "0003_index.sql",
        "-- landfast: transaction=off\nCREATE UNIQUE INDEX CONCURRENTLY items_mail ON items (mail); DROP INDEX CONCURRENTLY items_old; REINDEX INDEX CONCURRENTLY items_mail",
    ),
    (
        "0004_fill.sql",
        "-- landfast: batch=items.id batch_size=500\nUPDATE items SET email = mail, runs = runs + 1 WHERE id > :from AND id <= :to",
    ),
    (
        "0005_enum.sql",
        "CREATE TYPE mood AS ENUM ('a'); ALTER TYPE mood ADD VALUE 'b'",
    ),
];
const MARIADB: &[(&str, &str)] = &[
    (
        "0001_items.sql",
        "CREATE TABLE items (id bigint PRIMARY KEY, mail varchar(50), runs int NOT NULL DEFAULT 0); INSERT INTO items (id, mail) SELECT seq, CONCAT('m', seq) FROM seq_1_to_2500;",
    ),
    (
        "0002_email.sql",
        "ALTER TABLE items ADD COLUMN email varchar(50); INSERT INTO items VALUES (9001, 'x', 0, 'y'); CREATE INDEX items_mail ON items (mail); ALTER TABLE items ADD COLUMN price int, ADD COLUMN weight int; DROP INDEX items_mail ON items",
    ),
    (
        "0003_trigger.sql",
        "DELIMITER //\nCREATE TRIGGER items_sync BEFORE INSERT ON items FOR EACH ROW BEGIN SET NEW.email = NEW.mail; END//\nDELIMITER ;",
    ),
    (
        "0004_fill.sql",
        "-- landfast: batch=items.id batch_size=500\nUPDATE items SET email = mail, runs = runs + 1 WHERE id > :from AND id <= :to",
    ),
];

fn files(engine: Engine) -> MigrationSet {
    set(
        if engine == Engine::Postgres {
            POSTGRES
        } else {
            MARIADB
        },
        engine,
    )
}

/// Runs all that is pending, and calls for each moment the runner tells of; gives what was applied.
fn run(engine: Engine, url: &str, mut moment: impl FnMut() + Send) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut session = Session::connect(engine, &Secret::new(url.to_owned()))
            .await
            .unwrap();
        let options = Options {
            batch_pause: Duration::ZERO,
            ..Options::default()
        };
        let report = session
            .up(&files(engine), Stage::Expand, &options, &mut |_| moment())
            .await;
        report.unwrap().applied
    })
}

/// Started by the tests below as a process of its own: it says a line at each moment, and stays at the one it was given.
#[test]
#[ignore = "a helper that the other tests start"]
fn child() {
    let variable = |name: &str| std::env::var(name).expect("the parent sets it");
    let engine = variable("TEST_ENGINE").parse().unwrap();
    let stay: usize = variable("TEST_MOMENT").parse().unwrap();
    let mut seen = 0;
    run(engine, &variable("TEST_URL"), || {
        seen += 1;
        if seen == stay {
            println!("now");
            std::thread::sleep(Duration::from_secs(60));
        }
    });
}

#[expect(
    clippy::disallowed_methods,
    reason = "only a process of its own can be killed"
)]
fn start_child(engine: Engine, url: &str, moment: usize) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--ignored", "--nocapture"])
        .env("TEST_ENGINE", engine.to_string())
        .env("TEST_MOMENT", moment.to_string())
        .env("TEST_URL", url)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Kills a runner at each moment, then after delays that spread over the length of a run; how often it was killed.
fn kill_everywhere(
    engine: Engine,
    fresh: impl Fn(usize) -> String,
    check: impl Fn(usize),
) -> usize {
    let mut rounds = 0;
    let mut go_on = |kill: &dyn Fn(&mut Child) -> bool, moment: usize| {
        rounds += 1;
        let url = fresh(rounds);
        let mut child = start_child(engine, &url, moment);
        let killed = kill(&mut child);
        child.kill().unwrap();
        child.wait().unwrap();
        run(engine, &url, || {});
        check(rounds);
        killed
    };
    let at_its_word = |child: &mut Child| {
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        lines.map_while(Result::ok).any(|line| line == "now")
    };
    let mut kills = 0;
    while go_on(&at_its_word, kills + 1) {
        kills += 1;
    }
    let count = if std::env::var_os("LANDFAST_LONG").is_some() {
        150
    } else {
        10
    };
    for seed in 0..count {
        let delay = Duration::from_millis(20 + 1_200 * seed / count);
        go_on(
            &|_| {
                std::thread::sleep(delay);
                true
            },
            usize::MAX,
        );
        kills += 1;
    }
    kills
}

#[test]
fn a_kill_anywhere_on_postgres_ends_as_if_nothing_had_happened() {
    let postgres = Postgres::start().unwrap();
    let fresh = |round: usize| {
        postgres
            .sql("postgres", &format!("CREATE DATABASE t{round}"))
            .unwrap();
        postgres.url(&format!("t{round}"))
    };
    let check = |round: usize| {
        let database = format!("t{round}");
        let one = |sql: &str| postgres.sql(&database, sql).unwrap();
        assert_eq!(
            one("SELECT count(*) FROM pg_index WHERE NOT indisvalid"),
            "0",
            "round {round}"
        );
        let indexes = "SELECT string_agg(indexrelid::regclass::text, ',' ORDER BY indexrelid::regclass::text) FROM pg_index WHERE indrelid = 'items'::regclass";
        assert_eq!(one(indexes), "items_mail,items_pkey", "round {round}");
        // Each row was filled by one run of its range: nothing ran twice, nothing was left out.
        assert_eq!(
            one("SELECT count(*), min(runs), max(runs) FROM items"),
            "2501|1|1",
            "round {round}"
        );
        assert_eq!(
            one("SELECT count(*) FROM items WHERE email IS DISTINCT FROM mail"),
            "0"
        );
        postgres
            .sql(
                "postgres",
                &format!("DROP DATABASE {database} WITH (FORCE)"),
            )
            .unwrap();
    };
    let kills = kill_everywhere(Engine::Postgres, fresh, check);
    assert!(kills > 20, "{kills} kills");
}

#[test]
fn a_kill_anywhere_on_mariadb_ends_as_if_nothing_had_happened() {
    let mariadb = Mariadb::start().unwrap();
    let fresh = |round: usize| {
        mariadb
            .sql(
                "app",
                &format!("CREATE DATABASE t{round} CHARACTER SET utf8mb4"),
            )
            .unwrap();
        mariadb.url(&format!("t{round}"))
    };
    let check = |round: usize| {
        let database = format!("t{round}");
        let one = |sql: &str| mariadb.sql(&database, sql).unwrap();
        assert_eq!(
            one("SELECT COUNT(*), MIN(runs), MAX(runs) FROM items"),
            "2501\t1\t1",
            "round {round}"
        );
        assert_eq!(
            one("SELECT COUNT(*) FROM items WHERE NOT (email <=> mail)"),
            "0"
        );
        let columns = "SELECT COUNT(*) FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = 'items'";
        assert_eq!(one(columns), "6", "round {round}");
        let indexes = "SELECT COUNT(*) FROM information_schema.STATISTICS WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = 'items'";
        assert_eq!(one(indexes), "1", "round {round}");
        assert_eq!(
            one(
                "SELECT COUNT(*) FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA = DATABASE()"
            ),
            "1"
        );
        mariadb
            .sql("app", &format!("DROP DATABASE {database}"))
            .unwrap();
    };
    let kills = kill_everywhere(Engine::Mariadb, fresh, check);
    assert!(kills > 20, "{kills} kills");
}

#[test]
fn two_runners_at_once_do_the_work_once_and_meet_no_deadlock() {
    let postgres = Postgres::start().unwrap();
    let rounds = if std::env::var_os("LANDFAST_LONG").is_some() {
        20
    } else {
        4
    };
    for round in 0..rounds {
        let database = format!("t{round}");
        postgres
            .sql("postgres", &format!("CREATE DATABASE {database}"))
            .unwrap();
        let url = postgres.url(&database);
        let mut applied = std::thread::scope(|scope| {
            let runners =
                [(), ()].map(|()| scope.spawn(|| run(Engine::Postgres, &url, || {}).len()));
            runners.map(|runner| runner.join().unwrap())
        });
        applied.sort_unstable();
        assert_eq!(applied, [0, 5], "round {round}");
        assert_eq!(
            postgres
                .sql(&database, "SELECT min(runs), max(runs) FROM items")
                .unwrap(),
            "1|1"
        );
    }
}
