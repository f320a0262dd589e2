//! Migrations by hand, with the real server and databases that it runs.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    unreachable_pub,
    dead_code,
    reason = "a test fails where it unwraps, and helpers are shared by several tests"
)]

mod support;

use std::{fs, process::Child};

use rustix::process::{Pid, Signal};
use serde_json::Value;
use support::shop::{ITEMS, Shop};

/// Each migration of the history with its state and its file's.
fn history(shop: &Shop) -> Vec<String> {
    let status = shop.json(&["migrate", "status"]);
    let files = &status["files"];
    let migrations = status["migrations"].as_array().unwrap().iter();
    let line = |one: &Value| {
        let name = one["name"].as_str().unwrap();
        let file = files[name].as_str().unwrap();
        format!("{name} {} {file}", one["state"].as_str().unwrap())
    };
    migrations.map(line).collect()
}

fn until_begun(shop: &Shop, name: &str) {
    let begun = format!("{name} begun same");
    shop.host
        .until("it is begun", || history(shop).contains(&begun));
}

fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

#[test]
fn a_database_is_asked_migrated_and_taken_back_by_hand() {
    let shop = Shop::with_table("postgres", ITEMS);
    assert_eq!(history(&shop), ["0001_items applied same"]);
    let status = shop.ok(&["migrate", "status"]);
    assert!(status.contains("release 1"), "{status}");
    assert!(
        shop.ok(&["migrate", "up"])
            .contains("nothing was to be done")
    );

    shop.migration(
        "0002_price.sql",
        "ALTER TABLE items ADD COLUMN price integer NOT NULL DEFAULT 0;",
    );
    shop.migration(
        "0002_price.down.sql",
        "ALTER TABLE items DROP COLUMN price;",
    );
    shop.migration(
        "0003_no_name.sql",
        "-- landfast: phase=contract\nALTER TABLE items DROP COLUMN name;",
    );
    let plan = shop.ok(&["migrate", "plan"]);
    for part in [
        "0002_price  expand: before instances of the new release start",
        "0003_no_name  contract: after the seal",
        "release 1, which serves: can run until 0003_no_name has",
        "PG013",
    ] {
        assert!(plan.contains(part), "{part} in {plan}");
    }

    // The contract waits for a release that knows it, and says so; what expands runs.
    let said = shop.refused(&["migrate", "up", "--contract"], 0);
    assert!(said.is_empty(), "an expand file is before it: {said}");
    let said = shop.ok(&["migrate", "up"]);
    assert!(said.contains("applied 0002_price"), "{said}");
    let said = shop.refused(&["migrate", "up", "--contract"], 8);
    assert!(
        said.contains("release 1, which serves, does not know it"),
        "{said}"
    );
    assert_eq!(
        shop.sql("SELECT release FROM landfast.migrations WHERE number = 2"),
        "by hand"
    );
    let status = shop.ok(&["status"]);
    assert!(
        status.contains("2 applied, the newest `0002_price`"),
        "the engine knows: {status}"
    );

    // Nothing in use was made for 0002: it can be taken back. 0001 cannot.
    assert!(
        shop.ok(&["migrate", "down"])
            .contains("taken back 0002_price")
    );
    assert_eq!(
        history(&shop),
        ["0001_items applied same"],
        "the price is gone"
    );
    assert_eq!(
        shop.sql("SELECT count(*) FROM information_schema.columns WHERE table_name = 'items'"),
        "2"
    );
    shop.migration("0001_items.down.sql", "DROP TABLE items;");
    let said = shop.refused(&["migrate", "down"], 8);
    assert!(
        said.contains("release 1 is in use and was made for it"),
        "{said}"
    );

    // A file that was changed after it ran, and how it is accepted.
    shop.migration(
        "0001_items.sql",
        "CREATE TABLE items (id bigint PRIMARY KEY, name varchar(40)); -- people know it by its name",
    );
    assert_eq!(history(&shop), ["0001_items applied changed"]);
    let said = shop.refused(&["migrate", "up"], 8);
    assert!(said.contains("was changed after it ran"), "{said}");
    shop.ok(&["migrate", "accept", "1", "--reason", "a comment"]);
    assert_eq!(history(&shop), ["0001_items applied same"]);
    assert!(
        shop.ok(&["migrate", "status"])
            .contains("accepted: a comment")
    );

    // A release with all of it: the contract can be run by hand once it has been left behind.
    shop.host.build(&shop.app, "2", "");
    shop.ok(&["deploy", "--wait", "seal"]);
    shop.host
        .until("the contract has run", || history(&shop).len() == 3);
    let said = shop.refused(&["migrate", "down"], 8);
    assert!(said.contains("is a contract migration"), "{said}");

    // What is wrong with a folder or a statement is said with its place.
    shop.migration("0005_gap.sql", "SELECT 1;");
    let said = shop.refused(&["migrate", "plan"], 8);
    assert!(said.contains("number 0004 is missing"), "{said}");
    fs::remove_file(shop.app.join("migrations/0005_gap.sql")).unwrap();
    shop.migration("0004_broken.sql", "\nALTER TABLE nowhere ADD COLUMN a int;");
    let said = shop.refused(&["migrate", "up"], 1);
    for part in ["store `main`", "0004_broken", "line 2", "nowhere", "hint:"] {
        assert!(said.contains(part), "{part} in {said}");
    }
}

#[test]
fn what_is_cut_off_is_found_in_the_database() {
    let mut shop = Shop::with_table("postgres", ITEMS);
    let set = shop
        .host
        .run_with(&shop.app, &["secret", "set", "TOKEN"], "first");
    assert!(set.status.success(), "{set:?}");
    shop.ok(&["deploy", "--wait", "seal"]);
    shop.migration(
        "0002_slow.sql",
        "ALTER TABLE items ADD COLUMN a integer;\nSELECT pg_sleep(5);",
    );
    // Ctrl-C.
    let mut up = shop.begin(&["migrate", "up"]);
    until_begun(&shop, "0002_slow");
    let said = shop.refused(&["deploy"], 11);
    assert!(
        said.contains("migrations run by hand on store `main`"),
        "{said}"
    );
    // Nor is anything made that could not be brought to the instances.
    for rotate in [["store", "rotate", "main"], ["secret", "rotate", "TOKEN"]] {
        let said = shop.refused(&rotate, 11);
        assert!(
            said.contains("migrations run by hand on store `main`"),
            "{said}"
        );
    }
    let kept = shop.json(&["secret", "history", "TOKEN"]);
    assert_eq!(kept["versions"].as_array().map(Vec::len), Some(1));
    signal(&up, Signal::INT);
    assert_eq!(up.wait().unwrap().code(), Some(130));
    shop.host.until("the run has ended", || {
        shop.json(&["migrate", "status"])["runner"].is_null()
    });
    assert_eq!(
        shop.sql("SELECT count(*) FROM information_schema.columns WHERE table_name = 'items'"),
        "2",
        "it was taken back"
    );

    // A server that is killed: the next one knows that nothing runs any more, and goes on.
    let mut up = shop.begin(&["migrate", "up"]);
    shop.host.until("somebody runs it", || {
        shop.json(&["migrate", "status"])["runner"].is_string()
    });
    shop.host.kill_server();
    assert_eq!(up.wait().unwrap().code(), Some(7));
    shop.host.start_server();
    assert_eq!(
        history(&shop),
        ["0001_items applied same", "0002_slow begun same"]
    );
    let said = shop.ok(&["migrate", "up"]);
    assert!(said.contains("applied 0002_slow"), "{said}");
    assert_eq!(
        history(&shop),
        ["0001_items applied same", "0002_slow applied same"]
    );

    // A database that is gone in the middle of a step: its name, the next step, and nothing is lost.
    shop.migration(
        "0003_slow.sql",
        "ALTER TABLE items ADD COLUMN b integer;\nSELECT pg_sleep(5);",
    );
    let mut up = shop.begin(&["migrate", "up"]);
    until_begun(&shop, "0003_slow");
    shop.ok(&["store", "restart", "main"]);
    assert_eq!(up.wait().unwrap().code(), Some(1));
    shop.host.until("it is there again", || {
        shop.host
            .run(&shop.app, &["migrate", "status"])
            .status
            .code()
            == Some(0)
    });
    assert!(shop.ok(&["migrate", "up"]).contains("applied 0003_slow"));
}

#[test]
fn mariadb_is_asked_and_migrated_by_hand() {
    let shop = Shop::with_table("mariadb", ITEMS);
    shop.migration(
        "0002_price.sql",
        "ALTER TABLE items ADD COLUMN price integer NOT NULL DEFAULT 0;\nALTER TABLE items ADD COLUMN stock integer;",
    );
    shop.migration(
        "0002_price.down.sql",
        "ALTER TABLE items DROP COLUMN stock;\nALTER TABLE items DROP COLUMN price;",
    );
    assert!(shop.ok(&["migrate", "plan"]).contains("0002_price  expand"));
    assert!(shop.ok(&["migrate", "up"]).contains("applied 0002_price"));
    let status = shop.json(&["migrate", "status"]);
    let newest = &status["migrations"][1];
    assert_eq!(
        (newest["steps"].as_u64(), newest["steps_applied"].as_u64()),
        (Some(2), Some(2))
    );
    assert!(newest["applied_at"].is_string(), "{newest}");
    assert!(
        shop.ok(&["migrate", "down"])
            .contains("taken back 0002_price")
    );
    assert_eq!(history(&shop), ["0001_items applied same"]);
    assert!(shop.ok(&["migrate", "up"]).contains("applied 0002_price"));
}
