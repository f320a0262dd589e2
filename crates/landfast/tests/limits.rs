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
    time::Duration,
};

use rustix::process::{Pid, Signal};
use serde_json::Value;
use support::{
    disk::Disk,
    hook::Hook,
    host::Host,
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
    let said = |shop: &Shop| {
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
        said(&shop).contains("pg_hba.conf") && is_back()
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
    // Nor does what changes its configuration or its logins meanwhile: both are begun, and wait.
    let before = url(&shop);
    shop.ok(&["store", "rotate", "main", "--no-wait"]);
    shop.host.until("the new password was tried", || {
        let rotation = rotation(&shop);
        rotation["phase"] == "verifying" && rotation["failure"].to_string().contains("pg_hba.conf")
    });
    let unmigrated = backup.replace(
        "migrations = \"migrations\"",
        "settings = { work_mem = \"7MB\" }",
    );
    shop.edit(&backup, &unmigrated);
    shop.ok(&["deploy", "--wait", "start"]);
    let written = folder.join("configuration/postgresql.conf");
    shop.host.until("the setting is written", || {
        fs::read_to_string(&written).is_ok_and(|text| text.contains("work_mem = 7MB"))
    });
    assert!(!fs::read_to_string(&access).unwrap().contains("host all"));
    assert!(said(&shop).contains("pg_hba.conf"));
    assert!(refused_at(&before).contains("pg_hba.conf"));

    fs::remove_file(&to).unwrap();
    fs::rename(&away, &to).unwrap();
    shop.host
        .until("the app writes again", || write(&shop).is_ok());
    shop.host.until("the new password opens it", || {
        rotation(&shop)["phase"] != "verifying"
    });
    shop.host.until("there is one password again", || {
        rotation(&shop)["phase"] == "settled"
    });
    assert_ne!(url(&shop), before);
    assert!(refused_at(&before).contains("password authentication failed"));
    shop.host.until("the new setting holds", || {
        shop.sql("SHOW work_mem") == "7MB"
    });
    shop.host
        .until("nothing is wrong", || troubles(&shop) == "[]");
}

/// What people reach the database with.
fn url(shop: &Shop) -> String {
    let url = shop.json(&["store", "connect", "main", "--reveal"]);
    url["url"].as_str().unwrap().to_owned()
}

fn rotation(shop: &Shop) -> Value {
    shop.json(&["store", "show", "main"])["rotation"].clone()
}

/// What the database says to whoever comes with this.
#[track_caller]
fn refused_at(url: &str) -> String {
    let said = end(session(url));
    assert!(said.contains("FATAL"), "somebody was let in: {said}");
    said
}

/// Backed up where writes stop, and proven.
fn stopping(limit: &str) -> (Shop, PathBuf, String) {
    stopping_on(Shop::beside_others("postgres"), limit)
}

fn stopping_on(shop: Shop, limit: &str) -> (Shop, PathBuf, String) {
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

/// Writes stop all the same, and what stops them lies beside the data of the database.
#[test]
fn a_journal_whose_disk_is_full_stops_no_stop() {
    let hook = Hook::start();
    let mut disks = Vec::new();
    let host = {
        let mut host = Host::stopped();
        disks.push(Disk::mount(&host.path("state"), "320m"));
        // The database and what waits for the archive have their own.
        for name in ["stores", "b"] {
            let elsewhere = host.path(&format!("{name}-elsewhere"));
            // The last one made is the first one to go.
            disks.insert(0, Disk::bind(&elsewhere, &host.path("state").join(name)));
        }
        host.start_server();
        host
    };
    let shop = Shop::beside_others_on("postgres", host);
    shop.edit("[deploy]\n", &hook.line());
    let (mut shop, to, _) = stopping_on(shop, "64MiB");
    let away = take_away(&to);
    let ballast = disks.last().unwrap().fill(0);
    // What the journal has room for on its own is taken, too.
    let taken = (0..2_000).all(|n| {
        let set = ["secret", "set", &format!("S{n}")];
        let output = shop.host.run_with(&shop.app, &set, "x");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            output.status.success() || said.contains("no space is left"),
            "{output:?}"
        );
        output.status.success()
    });
    assert!(!taken, "the journal is never full");
    write_until_stopped(&shop);
    shop.host
        .until("it is told", || !hook.told("stopped").is_empty());
    let status = shop.ok(&["status"]);
    assert!(status.contains("writes are stopped since"), "{status}");
    let log = || fs::read_to_string(shop.host.path("server.log")).unwrap();
    assert!(log().contains("the journal took no record of backups"));
    let since = stopped_since(&shop);

    shop.host.kill_server();
    assert!(write(&shop).is_err());
    // Without a journal it does not start, which is said.
    fs::remove_file(ballast).unwrap();
    shop.host.start_server();
    shop.host.until("it is known still", || {
        troubles(&shop).contains("writes are stopped since")
    });
    // Found beside the data, for nobody had written it down.
    assert_ne!(stopped_since(&shop), since);
    assert!(write(&shop).unwrap_err().contains("read-only transaction"));
    fs::remove_file(&to).unwrap();
    fs::rename(&away, &to).unwrap();
    shop.host
        .until("the app writes again", || write(&shop).is_ok());
    shop.host.until("that is told", || {
        hook.told("well").concat().contains("writes are stopped")
    });
    drop(disks);
}

fn stopped_since(shop: &Shop) -> String {
    let told = troubles(shop);
    let (_, since) = told.split_once("writes are stopped since ").unwrap();
    since.split(": ").next().unwrap().to_owned()
}

/// A server that takes connections and answers nobody, as where its disk hangs.
#[test]
fn a_database_that_cannot_be_asked_how_much_waits_is_told_of_until_it_answers() {
    let shop = Shop::beside_others("postgres");
    let hook = Hook::start();
    shop.edit("[deploy]\n", &hook.line());
    let (shop, _to, _) = stopping_on(shop, "64MiB");
    let folder = shop.host.path("state/stores/shop/production/main");
    let hung = Hung::all_of(&folder.join("data"));
    // It is asked in vain for half a minute before anybody is told.
    let patience = Duration::from_secs(180);
    shop.host
        .until_within(patience, "it is told", || !hook.told("unseen").is_empty());
    let unseen = "nobody knows how much waits for the archive";
    let status = shop.ok(&["status"]);
    assert!(status.contains(unseen), "{status}");
    assert!(troubles(&shop).contains(unseen));
    drop(hung);
    shop.host.until_within(patience, "that is over", || {
        hook.told("well").concat().contains(unseen)
    });
    shop.host
        .until("nothing is wrong", || troubles(&shop) == "[]");
    assert_eq!(hook.told("unseen").len(), 1, "{:?}", hook.told("unseen"));
    // And it is counted again.
    take_away(&_to);
    write_until_stopped(&shop);
    shop.host
        .until("it is told", || !hook.told("stopped").is_empty());
}

/// The processes of a PostgreSQL, none of which runs; until it is dropped.
struct Hung(Vec<Pid>);

impl Hung {
    fn all_of(data: &Path) -> Self {
        let pid = fs::read_to_string(data.join("postmaster.pid")).unwrap();
        let first = pid.lines().next().unwrap().parse().unwrap();
        let mut hung = Self(Vec::new());
        // The first, so that it begins no others.
        hung.stop(first);
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            let parent = stat
                .rsplit_once(") ")
                .and_then(|(_, rest)| rest.split(' ').nth(1));
            if parent == Some(&first.to_string()) {
                hung.stop(entry.file_name().to_str().unwrap().parse().unwrap());
            }
        }
        hung
    }

    fn stop(&mut self, pid: i32) {
        let pid = Pid::from_raw(pid).unwrap();
        // One that has ended meanwhile hangs, too.
        if rustix::process::kill_process(pid, Signal::STOP).is_ok() {
            self.0.push(pid);
        }
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        for pid in self.0.iter().rev() {
            // One that has ended meanwhile needs none.
            let _ended = rustix::process::kill_process(*pid, Signal::CONT);
        }
    }
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
