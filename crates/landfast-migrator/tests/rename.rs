//! A generated rename, on real servers: both releases write, no row is torn, and the lints find no error in it.

use std::time::Duration;

use landfast_migration::{
    Engine, MigrationSet, Rename, SourceFile,
    lint::{Severity, lint},
};
use landfast_migrator::{Options, Session, Stage};
use landfast_testbed::{Mariadb, Postgres};
use landfast_types::Secret;

fn set(schema: &str, engine: Engine) -> MigrationSet {
    let rename = Rename {
        table: "items".into(),
        from: "mail".into(),
        to: "email".into(),
        data_type: "varchar(50)".into(),
        key: "id".into(),
    };
    let mut files = vec![SourceFile {
        name: "0001_items.sql".into(),
        bytes: schema.into(),
    }];
    let made = rename.files(engine, 2).expect("plain names");
    files.extend(made.into_iter().map(|file| SourceFile {
        name: file.name,
        bytes: file.text.into_bytes(),
    }));
    MigrationSet::parse(&files, engine).unwrap_or_else(|errors| panic!("{errors:?}"))
}

fn quick() -> Options {
    Options {
        quiet: Duration::from_millis(300),
        ..Options::default()
    }
}

fn check(url: &str, set: &MigrationSet, sql: &dyn Fn(&str) -> String) {
    let errors = lint(set, 2)
        .into_iter()
        .filter(|finding| finding.severity == Severity::Error)
        .collect::<Vec<_>>();
    assert!(errors.is_empty(), "{errors:?}");
    let url = Secret::new(url.to_owned());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let run = |stage: Stage| {
        runtime.block_on(async {
            let mut session = Session::connect(set.engine(), &url)
                .await
                .expect("a session");
            session
                .up(set, stage, &quick(), &mut |_| {})
                .await
                .expect("it runs")
                .applied
        })
    };
    assert_eq!(
        run(Stage::Expand),
        [
            "0001_items",
            "0002_rename_items_mail",
            "0003_rename_items_mail_fill"
        ]
    );
    // The old release writes the old column, the new one the new; each may also read what the other wrote.
    sql("INSERT INTO items (id, mail) VALUES (101, 'old')");
    sql("INSERT INTO items (id, email) VALUES (102, 'new')");
    sql("UPDATE items SET mail = 'changed by old' WHERE id = 1");
    sql("UPDATE items SET email = 'changed by new' WHERE id = 2");
    sql("UPDATE items SET email = NULL WHERE id = 3");
    sql("UPDATE items SET other = 7 WHERE id = 4");
    assert_eq!(
        sql("SELECT count(*) FROM items WHERE coalesce(mail, '-') <> coalesce(email, '-')"),
        "0"
    );
    assert_eq!(sql("SELECT mail FROM items WHERE id = 2"), "changed by new");
    assert_eq!(sql("SELECT email FROM items WHERE id = 101"), "old");
    assert_eq!(sql("SELECT count(*) FROM items WHERE mail IS NULL"), "1");
    // Who writes through the old column is seen, release or not.
    let refused = runtime.block_on(async {
        let mut session = Session::connect(set.engine(), &url)
            .await
            .expect("a session");
        let options = Options {
            quiet: Duration::from_secs(2),
            ..Options::default()
        };
        let mut told = |_| {};
        let contract = session.up(set, Stage::Contract, &options, &mut told);
        let stranger = async {
            tokio::time::sleep(Duration::from_millis(700)).await;
            tokio::task::block_in_place(|| {
                sql("UPDATE items SET mail = 'by a stranger' WHERE id = 5");
                sql("UPDATE items SET other = 8 WHERE id = 4");
                sql("UPDATE items SET email = 'by the release' WHERE id = 6");
                sql("INSERT INTO items (id, mail) VALUES (104, 'old')");
            });
        };
        tokio::join!(contract, stranger)
            .0
            .expect_err("it is written")
    });
    let refused = refused.to_string();
    assert!(refused.contains("2 writes came in"), "{refused}");
    assert!(refused.contains("items_mail_writes"), "{refused}");
    assert_eq!(run(Stage::Contract), ["0004_rename_items_mail_contract"]);
    sql("INSERT INTO items (id, email) VALUES (103, 'after')");
    assert_eq!(
        sql(
            "SELECT count(*) FROM information_schema.columns WHERE table_name = 'items' AND column_name = 'mail'"
        ),
        "0"
    );
    assert_eq!(
        sql("SELECT count(*) FROM information_schema.triggers WHERE event_object_table = 'items'"),
        "0"
    );
}

#[test]
fn a_column_of_postgres_is_renamed_while_both_releases_write() {
    let postgres = Postgres::start().expect("a server");
    let schema = "CREATE TABLE items (id bigint PRIMARY KEY, mail varchar(50), other int); INSERT INTO items SELECT g, 'm' || g FROM generate_series(1, 100) g";
    check(
        &postgres.url("postgres"),
        &set(schema, Engine::Postgres),
        &|sql| postgres.sql("postgres", sql).expect(sql),
    );
}

#[test]
fn a_column_of_mariadb_is_renamed_while_both_releases_write() {
    let mariadb = Mariadb::start().expect("a server");
    let schema = "CREATE TABLE items (id bigint PRIMARY KEY, mail varchar(50), other int); INSERT INTO items (id, mail) SELECT seq, CONCAT('m', seq) FROM seq_1_to_100";
    check(&mariadb.url("app"), &set(schema, Engine::Mariadb), &|sql| {
        mariadb.sql("app", sql).expect(sql)
    });
}
