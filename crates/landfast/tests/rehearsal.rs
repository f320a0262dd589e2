//! Migrations on a copy of a database, with the real server and databases that it runs.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    unreachable_pub,
    dead_code,
    reason = "a test fails where it unwraps, and helpers are shared by several tests"
)]

mod support;

use std::{fs, os::unix::fs::PermissionsExt as _};

use support::{disk::Disk, host::Host, shop::Shop};

const TABLE: &str = "CREATE TABLE items (id bigint PRIMARY KEY, amount int, name varchar(40));";
const ROWS: &str = "INSERT INTO items SELECT n, n, 'x' FROM generate_series(1, 20000) n;";
const PRICE: &str = "ALTER TABLE items ADD COLUMN price bigint DEFAULT 0;";
const DUMPS: &str = "state/stores/shop/production/main/rehearsal";
const COPIES: &str = "SELECT count(*) FROM pg_database WHERE datname LIKE '%_rehearsal'";

/// Release 1 serves, with a table of some rows; no table may be written anew.
fn shop(engine: &str, rows: &str) -> Shop {
    let shop = Shop::new(engine);
    budget(&shop);
    shop.migration("0001_items.sql", &format!("{TABLE}\n{rows}"));
    shop.ok(&["deploy", "--wait", "seal"]);
    shop
}

fn budget(shop: &Shop) {
    let migrations = "migrations = \"migrations\"";
    shop.edit(
        migrations,
        &format!("{migrations}\nrehearsal = {{ rewrites = 0 }}"),
    );
}

#[test]
fn what_costs_more_than_its_budget_is_refused_before_anything_moves() {
    let shop = shop("postgres", ROWS);
    shop.migration("0002_price.sql", PRICE);
    let shown = shop.ok(&["migrate", "rehearse"]);
    assert!(
        shown.contains("0002_price") && shown.contains("items everybody"),
        "{shown}"
    );
    shop.migration(
        "0003_wide.sql",
        "-- landfast: allow=PG030 the table is small\nALTER TABLE items ALTER COLUMN amount TYPE bigint;",
    );
    let said = shop.refused(&["migrate", "rehearse"], 3);
    assert!(
        said.contains("0003_wide wrote `items` anew, and may do so with 0 tables"),
        "{said}"
    );
    shop.host.build(&shop.app, "2", "");
    let plan = shop.ok(&["plan"]);
    assert!(plan.contains("rehearse the migrations on a copy"), "{plan}");
    let said = shop.refused(&["deploy"], 8);
    assert!(said.contains("the rehearsal gate refused"), "{said}");
    assert_eq!(shop.version(), "1");
    assert_eq!(shop.applied(), "1", "the database itself was not touched");
    assert_eq!(shop.sql(COPIES), "0");

    // Within its budget it runs.
    fs::remove_file(shop.app.join("migrations/0003_wide.sql")).unwrap();
    shop.ok(&["deploy", "--wait", "seal"]);
    assert_eq!(shop.applied(), "1 2");
    assert_eq!(shop.version(), "2");
}

#[test]
fn a_server_that_dies_leaves_a_copy_that_the_next_one_removes() {
    let mut shop = shop("postgres", ROWS);
    shop.migration("0002_slow.sql", "SELECT pg_sleep(20);");
    let mut rehearsing = shop.begin(&["migrate", "rehearse"]);
    shop.host
        .until("there is a copy", || shop.sql(COPIES) == "1");
    shop.refused(&["migrate", "rehearse"], 11);
    shop.host.kill_server();
    rehearsing.wait().unwrap();
    shop.host.start_server();
    shop.host
        .until("the copy is gone", || shop.sql(COPIES) == "0");
    assert!(!shop.host.path(DUMPS).exists());

    // Ctrl-C, and nothing stays.
    let mut rehearsing = shop.begin(&["migrate", "rehearse"]);
    shop.host
        .until("there is a copy again", || shop.sql(COPIES) == "1");
    rehearsing.kill().unwrap();
    rehearsing.wait().unwrap();
    shop.host
        .until("it is gone, too", || shop.sql(COPIES) == "0");
}

#[test]
fn mariadb_tells_how_each_definition_would_be_done() {
    let shop = shop(
        "mariadb",
        "INSERT INTO items VALUES (1, 1, 'x'), (2, 2, 'y');",
    );
    shop.migration(
        "0002_more.sql",
        "ALTER TABLE items ADD COLUMN price int;\nALTER TABLE items MODIFY COLUMN amount bigint, ALGORITHM=COPY, LOCK=SHARED;",
    );
    let output = shop.host.run(&shop.app, &["migrate", "rehearse", "--json"]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    let last: serde_json::Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    let migration = &last["rehearsal"]["migrations"][0];
    assert_eq!(migration["ways"][0]["algorithm"], "INSTANT", "{last}");
    assert_eq!(migration["ways"][1]["rows_copied"], 2, "{last}");
    assert_eq!(migration["rewritten"][0], "items", "{last}");
}

#[test]
fn a_migration_that_names_the_database_fails_on_the_copy_and_leaves_the_main_one() {
    // A trigger runs with the rights of whoever made it: of the operator, who may write to the main database.
    let shop = shop(
        "mariadb",
        "INSERT INTO items VALUES (1, 1, 'x');
        CREATE TABLE notes (n int);
        CREATE TABLE others (n int);
        CREATE VIEW seen AS SELECT id FROM items;
        CREATE TRIGGER note BEFORE UPDATE ON items FOR EACH ROW INSERT INTO shop.notes VALUES (1);
        CREATE TRIGGER other BEFORE INSERT ON others FOR EACH ROW SET NEW.n = (SELECT COUNT(*) FROM seen);",
    );
    let ask = |statement: &str| {
        let said = shop.ok(&["store", "psql", "main", "--", "-N", "-B", "-e", statement]);
        said.trim().to_owned()
    };
    let untouched = || {
        assert_eq!(ask("SELECT amount FROM items"), "1");
        assert_eq!(ask("SELECT COUNT(*) FROM notes"), "0");
        assert_eq!(ask("SELECT MAX(number) FROM landfast_migrations"), "1");
    };
    for text in [
        "UPDATE `shop`.`items` SET amount = amount * 2;",
        "USE shop;\nUPDATE items SET amount = amount * 2;",
        "UPDATE items SET amount = amount * 2;",
    ] {
        shop.migration("0002_price.sql", text);
        let said = shop.refused(&["migrate", "rehearse"], 3);
        assert!(said.contains("leave the database's name"), "{text}: {said}");
        untouched();
    }
    // What stays in its database is rehearsed, with the trigger and the view that came along.
    shop.migration(
        "0002_price.sql",
        "INSERT INTO others VALUES (7);\nALTER TABLE items ADD COLUMN price int;",
    );
    let shown = shop.ok(&["migrate", "rehearse"]);
    assert!(shown.contains("0002_price"), "{shown}");
    untouched();
}

/// Whether a program writes or reads the dump.
fn is_copying(host: &Host) -> bool {
    let dump = host.path("state/stores/shop/production/main/rehearsal/dump");
    let dump = dump.display().to_string();
    let processes = fs::read_dir("/proc").unwrap();
    let mut arguments = processes
        .filter_map(|process| fs::read_to_string(process.ok()?.path().join("cmdline")).ok());
    arguments.any(|arguments| arguments.contains(&dump))
}

#[test]
fn a_dump_ends_with_its_command_and_with_the_server_and_keeps_no_lock() {
    let mut shop = shop("postgres", ROWS);
    shop.migration(
        "0002_price.sql",
        "ALTER TABLE items ADD COLUMN price bigint;",
    );
    // The dump cannot get past this one, for as long as the test takes.
    let lock = "BEGIN; LOCK TABLE items; SELECT pg_sleep(600)";
    let mut locking = shop.begin(&["store", "psql", "main", "--", "-c", lock]);
    let locks = "SELECT count(*) FROM pg_locks WHERE granted AND mode = 'AccessExclusiveLock' \
        AND relation = 'items'::regclass";
    shop.host
        .until("the table is locked", || shop.sql(locks) == "1");
    let sessions =
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'landfast rehearsal'";

    let mut rehearsing = shop.begin(&["migrate", "rehearse"]);
    shop.host
        .until("it is dumped", || shop.sql(sessions) == "1");
    assert!(is_copying(&shop.host));
    rehearsing.kill().unwrap();
    rehearsing.wait().unwrap();
    shop.host
        .until("nobody dumps any more", || !is_copying(&shop.host));
    shop.host
        .until("its session has ended", || shop.sql(sessions) == "0");

    let mut rehearsing = shop.begin(&["migrate", "rehearse"]);
    shop.host
        .until("it is dumped again", || shop.sql(sessions) == "1");
    shop.host.kill_server();
    rehearsing.wait().unwrap();
    shop.host
        .until("nobody dumps without a server", || !is_copying(&shop.host));
    shop.host.start_server();
    shop.host.until("the next server ends its session", || {
        shop.sql(sessions) == "0"
    });
    locking.kill().unwrap();
    locking.wait().unwrap();
}

/// What waits for a lock is ended and says for whose; a server that works for longer is waited for.
#[test]
fn a_dump_that_stands_still_is_ended_and_a_restore_that_works_is_not() {
    let shop = Shop::on("postgres", || {
        let mut host = Host::stopped();
        host.arguments = ["--helper-patience", "4s"].map(str::to_owned).into();
        host.start_server();
        host
    });
    budget(&shop);
    // The index takes its time, in which nothing goes to or from the program that restores it.
    let slow = "CREATE FUNCTION slow(n bigint) RETURNS bigint IMMUTABLE LANGUAGE plpgsql AS
        'BEGIN PERFORM pg_sleep(0.4); RETURN n; END';
        INSERT INTO items SELECT n FROM generate_series(1, 30) n;";
    let index = "CREATE INDEX slow ON items (slow(id));";
    shop.migration("0001_items.sql", &format!("{TABLE}\n{slow}\n{index}"));
    shop.ok(&["deploy", "--wait", "seal"]);
    shop.migration(
        "0002_price.sql",
        "ALTER TABLE items ADD COLUMN price bigint;",
    );
    let shown = shop.ok(&["migrate", "rehearse"]);
    assert!(shown.contains("0002_price"), "{shown}");

    let lock = "BEGIN; LOCK TABLE items; SELECT pg_sleep(600)";
    let mut locking = shop.begin(&["store", "psql", "main", "--", "-c", lock]);
    let locks = "SELECT count(*) FROM pg_locks WHERE granted AND mode = 'AccessExclusiveLock' \
        AND relation = 'items'::regclass";
    shop.host
        .until("the table is locked", || shop.sql(locks) == "1");
    let said = shop.host.run(&shop.app, &["migrate", "rehearse"]);
    let said = format!("{}{}", text(&said.stdout), text(&said.stderr));
    assert!(said.contains("no progress for 4s"), "{said}");
    assert!(said.contains("a lock that `operator` has"), "{said}");
    shop.host
        .until("nobody dumps any more", || !is_copying(&shop.host));
    let sessions =
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'landfast rehearsal'";
    shop.host
        .until("its session has ended", || shop.sql(sessions) == "0");
    locking.kill().unwrap();
    locking.wait().unwrap();
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A disk with less room than a copy and its dump may take: told before anything is written.
#[test]
fn a_copy_that_has_no_room_is_not_begun() {
    let mut disk = None;
    let shop = Shop::on("postgres", || {
        let host = Host::start();
        disk = Some(Disk::mount(&host.path("state/stores"), "250m"));
        host
    });
    shop.migration("0001_items.sql", &format!("{TABLE}\n{ROWS}"));
    shop.ok(&["deploy", "--wait", "seal"]);
    shop.migration("0002_price.sql", PRICE);
    let said = shop.refused(&["migrate", "rehearse"], 1);
    for part in [
        "store `main`: a copy of",
        "and its dump need",
        "is free where",
        "hint: free some space there",
    ] {
        assert!(said.contains(part), "{part} in {said}");
    }
    assert_left_nothing(&shop);
    // As a gate it keeps a rollout from beginning.
    budget(&shop);
    shop.host.build(&shop.app, "2", "");
    let said = shop.refused(&["deploy"], 8);
    assert!(
        said.contains("the rehearsal gate refused") && said.contains("is free where"),
        "{said}"
    );
    assert_eq!((shop.version(), shop.applied()), ("1".into(), "1".into()));
    drop(disk);
}

/// The disk fills while the dump is being written.
#[test]
fn a_disk_that_fills_under_a_dump_is_told_of_and_nothing_stays_on_it() {
    let mut disk = None;
    let shop = Shop::on("postgres", || {
        let host = Host::start();
        disk = Some(Disk::mount(&host.path("state/stores"), "700m"));
        host
    });
    let disk = disk.unwrap();
    shop.migration("0001_items.sql", &format!("{TABLE}\n{ROWS}"));
    shop.ok(&["deploy", "--wait", "seal"]);
    shop.migration("0002_price.sql", PRICE);

    // The dump waits for a lock that somebody holds, and meanwhile the room goes.
    let holder = shop.begin(&[
        "store",
        "psql",
        "main",
        "--",
        "-qc",
        "BEGIN; LOCK TABLE items; SELECT pg_sleep(600)",
    ]);
    let held = "SELECT count(*) FROM pg_locks WHERE relation = 'items'::regclass AND mode = 'AccessExclusiveLock' AND granted";
    shop.host
        .until("the table is locked", || shop.sql(held) == "1");
    let rehearsing = shop.begin(&["migrate", "rehearse"]);
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'landfast rehearsal' AND wait_event_type = 'Lock'";
    shop.host.until("the dump waits", || shop.sql(waits) == "1");
    let ballast = disk.fill(0);
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)' AND pid <> pg_backend_pid()";
    assert_eq!(shop.sql(end), "t");
    drop(holder.wait_with_output());
    let ended = rehearsing.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(1), "{said}");
    for part in [
        "store `main`: `",
        "pg_dump` ",
        "No space left on device",
        "free some space on the state folder's file system",
    ] {
        assert!(said.contains(part), "{part} in {said}");
    }
    assert_left_nothing(&shop);

    fs::remove_file(ballast).unwrap();
    let shown = shop.ok(&["migrate", "rehearse"]);
    assert!(shown.contains("0002_price"), "{shown}");
    assert_left_nothing(&shop);
}

/// What the server runs in then: a place of its own where nobody finds the program that dumps.
const WITHOUT_DUMP: &str = r#"#!/bin/sh -e
if [ -z "$APART" ]; then APART=1 exec unshare --mount --propagation private "$0" "$@"; fi
for place in /usr/lib/postgresql/15/bin/pg_dump /usr/bin/pg_dump /usr/local/bin/pg_dump; do
    if [ -e "$place" ]; then mount --bind /dev/null "$place"; fi
done
exec "@BINARY@" "$@"
"#;

#[test]
fn a_program_that_is_missing_is_named_with_its_package() {
    let mut shop = Shop::with_table("postgres", &format!("{TABLE}\n{ROWS}"));
    shop.migration("0002_price.sql", PRICE);
    shop.host.kill_server();
    let script = shop.host.path("without-dump");
    let binary = shop.host.binary.display().to_string();
    fs::write(&script, WITHOUT_DUMP.replace("@BINARY@", &binary)).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    shop.host.binary = script;
    shop.host.start_server();

    let said = shop.refused(&["migrate", "rehearse"], 8);
    for part in [
        "store `main`: `pg_dump` is not installed, which makes the copy",
        "hint: apt-get install postgresql-client-15",
    ] {
        assert!(said.contains(part), "{part} in {said}");
    }
    assert_left_nothing(&shop);
    assert_eq!(shop.applied(), "1");
}

#[track_caller]
fn assert_left_nothing(shop: &Shop) {
    assert_eq!(shop.sql(COPIES), "0");
    assert!(!shop.host.path(DUMPS).exists());
}
