//! Migrations in rollouts, with the real server and a PostgreSQL that it runs.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    unreachable_pub,
    dead_code,
    reason = "a test fails where it unwraps, and helpers are shared by several tests"
)]

mod support;

use std::process::{Child, Command, Stdio};

use support::shop::{ITEMS, Shop};

#[test]
fn expand_runs_before_and_contract_after_the_seal_and_nothing_leads_back_across_it() {
    let shop = Shop::new("postgres");
    shop.migration("0001_items.sql", ITEMS);
    let plan = shop.ok(&["plan"]);
    assert!(plan.contains("migrate: `0001_items` on `main`"), "{plan}");
    shop.ok(&["deploy", "--wait", "seal"]);
    assert_eq!(shop.applied(), "1");

    // Release 2 brings a column and drops another after its seal.
    shop.host.build(&shop.app, "2", "");
    shop.migration("0002_title.sql", "ALTER TABLE items ADD COLUMN title text;");
    shop.migration(
        "0003_no_name.sql",
        "-- landfast: phase=contract\nALTER TABLE items DROP COLUMN name;",
    );
    let plan = shop.ok(&["plan"]);
    assert!(plan.contains("until the seal only"), "{plan}");
    shop.ok(&["deploy"]);
    assert_eq!(
        shop.applied(),
        "1 2",
        "it serves, and the old release can still be gone back to"
    );
    shop.ok(&["seal"]);
    shop.host
        .until("the contract has run", || shop.applied() == "1 2 3");
    let status = shop.ok(&["status"]);
    assert!(
        status.contains("3 applied, the newest `0003_no_name`"),
        "{status}"
    );
    let history = shop.json(&["history"]);
    let releases = history["releases"].as_array().unwrap();
    let obstacle = |id: u64| {
        let release = releases.iter().find(|release| release["id"] == id).unwrap();
        release["obstacle"].as_str().map(str::to_owned)
    };
    assert!(obstacle(1).is_some_and(|said| said.contains("0003_no_name")));
    assert_eq!(obstacle(2), None);

    // Back to release 1: parked, with both ways out, and release 2 serves on.
    let said = shop.refused(&["rollback"], 6);
    for part in ["0003_no_name", "landfast deploy", "restore `main`"] {
        assert!(said.contains(part), "{said}");
    }
    assert_eq!(shop.version(), "2");

    // The first way out: a release that goes on from there takes the rollback's place.
    shop.host.build(&shop.app, "3", "");
    shop.migration("0004_more.sql", "ALTER TABLE items ADD COLUMN price int;");
    shop.ok(&["deploy", "--wait", "seal"]);
    assert_eq!(shop.applied(), "1 2 3 4");
}

#[test]
fn a_migration_that_fails_stops_before_anything_moves() {
    let shop = Shop::with_table("postgres", "CREATE TABLE items (id bigint PRIMARY KEY);");
    shop.host.build(&shop.app, "2", "");
    shop.migration(
        "0002_broken.sql",
        "ALTER TABLE items ADD COLUMN a int;\nALTER TABLE nowhere ADD COLUMN b int;",
    );
    let said = shop.refused(&["deploy"], 5);
    for part in ["store `main`", "0002_broken", "line 2", "nowhere"] {
        assert!(said.contains(part), "{said}");
    }
    assert_ne!(shop.version(), "2");
    assert_eq!(
        shop.sql("SELECT count(*) FROM information_schema.columns WHERE table_name = 'items'"),
        "1"
    );
    // A folder that holds no migrations is refused before there is a release.
    shop.migration("0004_gap.sql", "SELECT 1;");
    let said = shop.refused(&["deploy"], 8);
    assert!(said.contains("number 0003 is missing"), "{said}");
}

#[test]
fn a_migration_that_would_break_the_release_that_serves_is_refused_before_there_is_a_release() {
    let shop = Shop::with_table("postgres", ITEMS);
    shop.host.build(&shop.app, "2", "");
    let drop = "ALTER TABLE items DROP COLUMN name;";
    shop.migration("0002_no_name.sql", drop);
    for command in ["plan", "deploy"] {
        let said = shop.host.run(&shop.app, &[command]);
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&said.stdout),
            String::from_utf8_lossy(&said.stderr)
        );
        assert_eq!(said.status.code(), Some(8), "{command}: {text}");
        for part in ["0002_no_name.sql:1", "PG020", "phase=contract"] {
            assert!(text.contains(part), "{command}: {text}");
        }
    }
    assert_eq!(shop.applied(), "1");
    let history = shop.json(&["history"]);
    assert_eq!(history["releases"].as_array().unwrap().len(), 1);
    // Whoever looks what holds a lock sees the other sessions.
    let seen = "SELECT bool_and(state IS NOT NULL) FROM pg_stat_activity WHERE backend_type = 'client backend'";
    assert_eq!(shop.sql(seen), "t");
    // In its place it is no danger.
    shop.migration(
        "0002_no_name.sql",
        &format!("-- landfast: phase=contract\n{drop}"),
    );
    shop.ok(&["plan"]);
}

/// A contract takes away what release 1 reads; as long as anything of release 1 is left, nobody gets it to run.
#[test]
fn a_contract_waits_while_anything_of_the_release_before_it_is_left() {
    let shop = Shop::with_table("postgres", ITEMS);
    let address = shop.address();
    shop.edit(
        "strategy = \"rolling\"",
        "strategy = \"canary\"\ngates = [\"preflight\"]\nsteps = [50, 100]\nhold = \"1h\"",
    );
    shop.edit("standby = \"1s\"", "standby = \"1h\"");
    shop.host.build(&shop.app, "2", "");
    shop.migration(
        "0002_no_name.sql",
        "-- landfast: phase=contract\nALTER TABLE items DROP COLUMN name;",
    );

    // Both serve.
    shop.ok(&["deploy", "--wait", "start"]);
    shop.host.until("both are asked", || {
        let mut answers: Vec<_> = (0..8).map(|_| shop.version()).collect();
        answers.sort();
        answers.dedup();
        answers.len() == 2
    });
    let by_hand = ["migrate", "up", "--contract"];
    let said = shop.refused(&by_hand, 4);
    assert!(said.contains("rollout 2"), "{said}");

    // Release 2 serves, and release 1 stands by.
    shop.ok(&["promote", "--wait", "start"]);
    shop.host.until("release 2 alone is asked", || {
        (0..8).all(|_| shop.version() == "2")
    });
    shop.ok(&["promote"]);
    let said = shop.refused(&by_hand, 4);
    assert!(said.contains("rollout 2"), "{said}");
    assert_eq!(shop.applied(), "1");

    // Release 1 is let go, and somebody who has its login is still connected.
    let mut session = left_behind(&address);
    let held = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'release_1'";
    shop.host
        .until("a session of release 1 is open", || shop.sql(held) == "1");
    shop.ok(&["seal"]);
    let waits = "contract migrations of release 2 have not run: store `main`: 0002_no_name was not run: release_1 of another release is connected";
    shop.host.until("the contract was refused", || {
        shop.ok(&["status"]).contains(waits)
    });
    let said = shop.refused(&by_hand, 8);
    assert!(
        said.contains("release_1 of another release is connected (1 connections)"),
        "{said}"
    );
    assert_eq!(shop.applied(), "1");
    assert_eq!(shop.sql("SELECT count(name) FROM items"), "0");

    // It has left.
    session.kill().unwrap();
    session.wait().unwrap();
    shop.host.until("it is gone", || shop.sql(held) == "0");
    assert!(shop.ok(&by_hand).contains("applied 0002_no_name"));
    assert_eq!(shop.applied(), "1 2");
    assert_eq!(shop.version(), "2");
}

/// A client that has a release's login and keeps its session open, waiting for what to do.
#[expect(
    clippy::disallowed_methods,
    reason = "a client of the database, argv only"
)]
fn left_behind(address: &str) -> Child {
    Command::new("psql")
        .args(["-qAt", address])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}
