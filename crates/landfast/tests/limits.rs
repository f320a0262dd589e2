//! A log that waits for a repository that is away, where writes are to stop before the chain breaks.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    unreachable_pub,
    dead_code,
    reason = "a test fails where it unwraps, and helpers are shared by several tests"
)]

mod support;

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use rustix::process::{Pid, Signal};
use serde_json::Value;
use support::{
    hook::Hook,
    shop::{ITEMS, NOTHING_DUE, Shop},
};

fn shown(shop: &Shop) -> Value {
    shop.json(&["backup", "show", "main"])
}

fn troubles(shop: &Shop) -> String {
    shown(shop)["troubles"].to_string()
}

/// As a disk that is not mounted any more: the folder is there, and nothing can be put into it.
fn take_away(to: &Path) -> PathBuf {
    let away = to.with_extension("away");
    fs::rename(to, &away).unwrap();
    fs::write(to, "").unwrap();
    away
}

/// About 8 MiB of log each time; what the server says.
fn write(shop: &Shop) -> Result<(), String> {
    let rows =
        "INSERT INTO filled SELECT n, repeat(md5(n::text), 8) FROM generate_series(1, 25000) n";
    let output = shop
        .host
        .run(&shop.app, &["store", "psql", "main", "--", "-Atc", rows]);
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// A session that goes on; what is written to it is run.
#[expect(clippy::disallowed_methods, reason = "a client of the database")]
fn session(url: &str) -> Child {
    Command::new("psql")
        .args([url, "-qAt"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn say(session: &mut Child, statement: &str) {
    let stdin = session.stdin.as_mut().unwrap();
    writeln!(stdin, "{statement}").unwrap();
    stdin.flush().unwrap();
}

/// What a session came to.
fn end(mut session: Child) -> String {
    drop(session.stdin.take());
    let output = session.wait_with_output().unwrap();
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn writes_stop_before_the_chain_breaks_and_go_on_when_the_archive_has_caught_up() {
    let mut shop = Shop::beside_others("postgres");
    let hook = Hook::start();
    let to = shop.host.path("backups");
    let backup = format!(
        "migrations = \"migrations\"\n\n[stores.main.backup]\nto = \"{}\"\nship = \"1s\"\nwal_limit = \"96MiB\"\n\
         on_wal_limit = \"stop-writes\"\n{NOTHING_DUE}",
        to.display()
    );
    shop.edit("migrations = \"migrations\"\n", &backup);
    shop.edit("[deploy]\n", &hook.line());
    shop.migration("0001_items.sql", ITEMS);
    shop.ok(&["deploy", "--wait", "seal"]);
    shop.sql("CREATE TABLE filled (n int, text text)");
    shop.host.until("the first backup is proven", || {
        let shown = shown(&shop);
        !shown["drill"]["passed_at"].is_null() && shown["running"].is_null()
    });
    assert_eq!(shop.sql("SHOW max_slot_wal_keep_size"), "1120MB");
    let backups = shown(&shop)["backups"].as_array().unwrap().len();

    let away = take_away(&to);
    // One has written and not committed, one only reads.
    let url = shop.ok(&["store", "connect", "main", "--reveal", "--json"]);
    let url: Value = serde_json::from_str(&url).unwrap();
    let url = url["url"].as_str().unwrap();
    let (mut open, mut reader) = (session(url), session(url));
    say(
        &mut open,
        "BEGIN; INSERT INTO items VALUES (1, 'never committed');",
    );
    say(&mut reader, "SELECT count(*) FROM items;");
    let mut written = 0;
    let refused = loop {
        match write(&shop) {
            Ok(()) => written += 1,
            Err(said) => break said,
        }
        assert!(written < 60, "nothing stopped it");
    };
    assert!(
        refused.contains("read-only transaction") || refused.contains("administrator command"),
        "{refused}"
    );
    shop.host
        .until("it is told", || !hook.told("stopped").is_empty());
    let status = shop.ok(&["status"]);
    assert!(status.contains("writes are stopped since"), "{status}");
    let label = "{app=\"shop\",environment=\"production\",store=\"main\"}";
    let metrics = shop.host.metrics();
    assert!(
        metrics.contains(&format!("landfast_backup_writes_stopped{label} 1")),
        "{metrics}"
    );
    // What was under way is taken back; who reads goes on; who asks for a transaction that writes is ended in the middle of it.
    say(&mut open, "COMMIT;");
    let said = end(open);
    assert!(said.contains("administrator command"), "{said}");
    say(&mut reader, "INSERT INTO items VALUES (2, 'refused');");
    say(&mut reader, "SELECT count(*) FROM items;");
    let said = end(reader);
    assert!(said.contains("read-only transaction"), "{said}");
    let mut insistent = session(url);
    say(
        &mut insistent,
        "BEGIN READ WRITE; INSERT INTO items VALUES (3, 'insists'); SELECT pg_sleep(20); COMMIT;",
    );
    let said = end(insistent);
    assert!(said.contains("administrator command"), "{said}");
    assert_eq!(shop.sql("SELECT count(*) FROM items"), "0");

    // Neither the death of Landfast nor that of the database lets anybody write.
    shop.host.kill_server();
    assert!(write(&shop).is_err());
    shop.host.start_server();
    let pid = shop
        .host
        .path("state/stores/shop/production/main/data/postmaster.pid");
    let pid = fs::read_to_string(pid).unwrap();
    let pid = pid.lines().next().unwrap().parse().unwrap();
    rustix::process::kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    shop.host.until("the database is back", || {
        let read = ["store", "psql", "main", "--", "-Atc", "SELECT 1"];
        shop.host.run(&shop.app, &read).status.success()
    });
    assert!(write(&shop).unwrap_err().contains("read-only transaction"));
    shop.host.until("it is known still", || {
        troubles(&shop).contains("writes are stopped since")
    });
    assert_eq!(hook.told("stopped").len(), 1, "{:?}", hook.told("stopped"));
    let kept = "SELECT wal_status FROM pg_replication_slots";
    assert_ne!(shop.sql(kept), "lost");

    fs::remove_file(&to).unwrap();
    fs::rename(&away, &to).unwrap();
    shop.host
        .until("the app writes again", || write(&shop).is_ok());
    written += 1;
    shop.host.until("that is told", || {
        hook.told("well").concat().contains("writes are stopped")
    });
    shop.host
        .until("nothing is wrong", || troubles(&shop) == "[]");
    // Nothing was given up: no new backup was needed, and each row that was taken is there.
    let now = shown(&shop);
    assert_eq!(now["backups"].as_array().unwrap().len(), backups, "{now}");
    shop.ok(&["restore", "run", "main", "--as", "copy"]);
    shop.host.until("the restored store is ready", || {
        let stores = shop.json(&["store", "list"]);
        let mut stores = stores["stores"].as_array().unwrap().iter();
        stores.any(|store| store["name"] == "copy" && store["state"] == "ready")
    });
    let counted = "SELECT count(*) FROM filled";
    let copy = shop.ok(&["store", "psql", "copy", "--", "-Atc", counted]);
    assert!(
        copy.trim().parse::<u64>().unwrap() >= written * 25_000,
        "{copy} of {written}"
    );
    assert_eq!(shop.sql(counted), copy.trim());
    // And nothing of it came along.
    let insert = "INSERT INTO items VALUES (9, 'copy')";
    shop.ok(&["store", "psql", "copy", "--", "-Atc", insert]);
}

/// Drivers that open each transaction as one that writes do not notice that a server is read-only by its settings.
#[test]
fn who_overrules_a_read_only_server_again_and_again_is_not_let_in_any_more() {
    let mut shop = Shop::beside_others("postgres");
    let to = shop.host.path("backups");
    let backup = format!(
        "migrations = \"migrations\"\n\n[stores.main.backup]\nto = \"{}\"\nship = \"1s\"\nwal_limit = \"64MiB\"\n\
         on_wal_limit = \"stop-writes\"\n{NOTHING_DUE}",
        to.display()
    );
    shop.edit("migrations = \"migrations\"\n", &backup);
    shop.migration("0001_items.sql", ITEMS);
    shop.ok(&["deploy", "--wait", "seal"]);
    shop.sql("CREATE TABLE filled (n int, text text)");
    shop.host.until("the first backup is proven", || {
        let shown = shown(&shop);
        !shown["drill"]["passed_at"].is_null() && shown["running"].is_null()
    });
    let away = take_away(&to);
    let insist = "BEGIN READ WRITE; INSERT INTO filled SELECT n, repeat(md5(n::text), 8) FROM generate_series(1, 3000) n; COMMIT";
    let insist = ["store", "psql", "main", "--", "-Atc", insist];
    let closed = (0..2_000).find_map(|_| {
        let said = shop.host.run(&shop.app, &insist).stderr;
        let said = String::from_utf8_lossy(&said).into_owned();
        said.contains("pg_hba.conf").then_some(said)
    });
    assert!(closed.is_some(), "it wrote on and on");
    shop.host.until("it is told", || {
        troubles(&shop).contains("nobody is let into the database")
    });
    let status = shop.ok(&["status"]);
    assert!(
        status.contains("nobody is let into the database"),
        "{status}"
    );
    // Neither the death of the database, nor that of Landfast, nor a configuration that was written by half lets anybody in.
    let said = || {
        let read = ["store", "psql", "main", "--", "-Atc", "SELECT 1"];
        let output = shop.host.run(&shop.app, &read);
        assert!(!output.status.success(), "somebody was let in");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let folder = shop.host.path("state/stores/shop/production/main");
    let pid = fs::read_to_string(folder.join("data/postmaster.pid")).unwrap();
    let pid = pid.lines().next().unwrap().parse().unwrap();
    rustix::process::kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    let is_back = || {
        let now = fs::read_to_string(folder.join("data/postmaster.pid"));
        now.is_ok_and(|now| !now.starts_with(&format!("{pid}\n")))
    };
    shop.host.until("the database is back, and closed", || {
        said().contains("pg_hba.conf") && is_back()
    });
    fs::rename(folder.join("configuration"), folder.join("lost")).unwrap();
    let access = folder.join("configuration/pg_hba.conf");
    shop.host
        .until("its configuration is there again", || access.exists());
    assert!(!fs::read_to_string(&access).unwrap().contains("host all"));
    shop.host.kill_server();
    // As one that was killed in the middle of opening it: the server was not told.
    fs::remove_file(folder.join("stopped-writes.conf")).unwrap();
    shop.host.start_server();
    shop.host.until("it is closed still", || {
        folder.join("stopped-writes.conf").exists() && troubles(&shop).contains("nobody is let")
    });
    fs::remove_file(&to).unwrap();
    fs::rename(&away, &to).unwrap();
    shop.host
        .until("the app writes again", || write(&shop).is_ok());
    shop.host
        .until("nothing is wrong", || troubles(&shop) == "[]");
}

/// Backed up where writes stop, and proven.
fn stopping(limit: &str) -> (Shop, PathBuf, String) {
    let shop = Shop::beside_others("postgres");
    let to = shop.host.path("backups");
    let backup = format!(
        "migrations = \"migrations\"\n\n[stores.main.backup]\nto = \"{}\"\nship = \"1s\"\nwal_limit = \"{limit}\"\n\
         on_wal_limit = \"stop-writes\"\n{NOTHING_DUE}",
        to.display()
    );
    shop.edit("migrations = \"migrations\"\n", &backup);
    shop.migration("0001_items.sql", ITEMS);
    shop.ok(&["deploy", "--wait", "seal"]);
    shop.sql("CREATE TABLE filled (n int, text text)");
    shop.host.until("the first backup is proven", || {
        let shown = shown(&shop);
        !shown["drill"]["passed_at"].is_null() && shown["running"].is_null()
    });
    (shop, to, backup)
}

fn write_until_stopped(shop: &Shop) {
    for _ in 0..60 {
        if write(shop).is_err() {
            return;
        }
    }
    panic!("nothing stopped it");
}

#[test]
fn an_app_whose_backups_are_given_up_while_it_may_not_write_writes_again_even_if_landfast_dies() {
    let (mut shop, to, backup) = stopping("64MiB");
    take_away(&to);
    write_until_stopped(&shop);
    shop.edit(&backup, "migrations = \"migrations\"\n");
    shop.ok(&["deploy", "--wait", "seal"]);
    shop.host.kill_server();
    shop.host.start_server();
    shop.host
        .until("the app writes again", || write(&shop).is_ok());
    shop.host.until("nothing is kept for the archive", || {
        shop.sql("SELECT count(*) FROM pg_replication_slots") == "0"
    });
    let told = shop
        .host
        .path("state/stores/shop/production/main/stopped-writes.conf");
    assert!(!told.exists());
}

#[test]
fn an_app_that_moves_away_from_a_server_that_is_stopped_writes_there_and_the_old_one_is_let_go_of()
{
    let (shop, to, _) = stopping("64MiB");
    shop.ok(&["restore", "run", "main", "--as", "copy"]);
    let is = |name: &str, state: &str| {
        let stores = shop.json(&["store", "list"]);
        let mut stores = stores["stores"].as_array().unwrap().iter();
        stores.any(|store| store["name"] == name && store["state"] == state)
    };
    shop.host
        .until("the restored store is ready", || is("copy", "ready"));
    let away = take_away(&to);
    write_until_stopped(&shop);
    let told = shop
        .host
        .path("state/stores/shop/production/main/stopped-writes.conf");
    assert!(told.exists());
    let switch = ["restore", "switch", "main", "--to", "copy", "--yes"];
    shop.ok(&[&switch[..], &["--accept-loss"]].concat());
    shop.host
        .until("the app writes again", || write(&shop).is_ok());
    fs::remove_file(&to).unwrap();
    fs::rename(&away, &to).unwrap();
    shop.host
        .until("the old store is let go of", || is("main", "deleted"));
    shop.host
        .until("nothing holds up its writes", || !told.exists());
}

/// Nobody archives while the server of Landfast is dead, and the database gives up what it may not keep.
#[test]
fn a_chain_that_broke_is_told_and_a_full_backup_begins_by_itself() {
    let mut shop = Shop::beside_others("postgres");
    let hook = Hook::start();
    let to = shop.host.path("backups");
    let backup = format!(
        "migrations = \"migrations\"\nsettings = {{ max_wal_size = \"64MB\", min_wal_size = \"32MB\" }}\n\n\
         [stores.main.backup]\nto = \"{}\"\nship = \"1s\"\nwal_limit = \"64MiB\"\n{NOTHING_DUE}",
        to.display()
    );
    shop.edit("migrations = \"migrations\"\n", &backup);
    shop.edit("[deploy]\n", &hook.line());
    shop.migration("0001_items.sql", ITEMS);
    shop.ok(&["deploy", "--wait", "seal"]);
    shop.sql("CREATE TABLE filled (n int, text text)");
    shop.host.until("the first backup is proven", || {
        let shown = shown(&shop);
        !shown["drill"]["passed_at"].is_null() && shown["running"].is_null()
    });
    let url = shop.ok(&["store", "connect", "main", "--reveal", "--json"]);
    let url: Value = serde_json::from_str(&url).unwrap();
    let url = url["url"].as_str().unwrap().to_owned();
    let first = shown(&shop)["backups"][0]["id"].clone();

    shop.host.kill_server();
    let mut rounds = 0;
    let is_lost = || {
        let mut session = session(&url);
        say(
            &mut session,
            "INSERT INTO filled SELECT n, repeat(md5(n::text), 8) FROM generate_series(1, 25000) n; \
             SELECT wal_status FROM pg_replication_slots;",
        );
        drop(session.stdin.take());
        let output = session.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).contains("lost")
    };
    while !is_lost() {
        rounds += 1;
        assert!(rounds < 120, "the database kept all of it");
    }
    shop.host.start_server();
    shop.host
        .until("it is told", || !hook.told("broken").is_empty());
    shop.host.until("a full backup came by itself", || {
        let shown = shown(&shop);
        let backups = shown["backups"].as_array().unwrap().clone();
        let is_new = |newest: &Value| newest["id"] != first && newest["parent"].is_null();
        backups.last().is_some_and(is_new) && shown["running"].is_null()
    });
    assert_eq!(shown(&shop)["ended"]["full"]["by"], "schedule");
    shop.host
        .until("nothing is wrong", || troubles(&shop) == "[]");
    shop.ok(&["drill", "main"]);
    shop.ok(&["restore", "run", "main", "--as", "copy"]);
    shop.host.until("the restored store is ready", || {
        let stores = shop.json(&["store", "list"]);
        let mut stores = stores["stores"].as_array().unwrap().iter();
        stores.any(|store| store["name"] == "copy" && store["state"] == "ready")
    });
    let counted = "SELECT count(*) FROM filled";
    let copy = shop.ok(&["store", "psql", "copy", "--", "-Atc", counted]);
    assert_eq!(shop.sql(counted), copy.trim());
}
