//! Backups of a managed PostgreSQL through the real server: archived, proven, damaged, restored beside what runs.

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
    path::{Path, PathBuf},
    time::Duration,
};

use landfast_testbed::S3;
use rustix::process::{Pid, Signal};
use serde_json::Value;
use support::{
    disk::Disk,
    hook::Hook,
    host::Host,
    shop::{ITEMS, NOTHING_DUE, Shop},
};

/// Backed up into a folder of the host, with a check of its own.
fn shop() -> (Shop, PathBuf) {
    backed_up(Shop::beside_others("postgres"))
}

fn backed_up(shop: Shop) -> (Shop, PathBuf) {
    let to = shop.host.path("backups");
    let backup = format!(
        "migrations = \"migrations\"\n\n[stores.main.backup]\nto = \"{}\"\nship = \"1s\"\n{NOTHING_DUE}\
         [stores.main.backup.drill.checks.items]\nsql = \"SELECT count(*) > 0 FROM items\"\nexpect = \"t\"\n",
        to.display()
    );
    shop.edit("migrations = \"migrations\"\n", &backup);
    shop.migration("0001_items.sql", ITEMS);
    shop.ok(&["deploy", "--wait", "seal"]);
    shop.sql("INSERT INTO items SELECT n, 'first' FROM generate_series(1, 1000) n");
    (shop, to)
}

fn shown(shop: &Shop) -> Value {
    shop.json(&["backup", "show", "main"])
}

fn troubles(shop: &Shop) -> String {
    shown(shop)["troubles"].to_string()
}

/// It begins by itself, and is proven by itself.
fn until_proven(shop: &Shop) {
    shop.host.until("the first backup is proven", || {
        let shown = shown(shop);
        !shown["drill"]["passed_at"].is_null() && shown["running"].is_null()
    });
}

fn ask(shop: &Shop, store: &str, statement: &str) -> String {
    let said = shop.ok(&["store", "psql", store, "--", "-Atc", statement]);
    said.trim().to_owned()
}

fn until_ready(shop: &Shop, name: &str) {
    shop.host.until("the restored store is ready", || {
        let stores = shop.json(&["store", "list"]);
        let stores = stores["stores"].as_array().unwrap().clone();
        stores
            .iter()
            .any(|store| store["name"] == name && store["state"] == "ready")
    });
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}

#[test]
fn what_was_committed_is_archived_proven_and_restored_beside() {
    let (mut shop, _to) = shop();
    until_proven(&shop);
    let list = shop.json(&["backup", "list"]);
    assert_eq!(list["stores"][0]["troubles"].to_string(), "[]", "{list}");
    let drill = &list["stores"][0]["drill"];
    let checks: Vec<_> = drill["checks"].as_array().unwrap().iter().collect();
    assert!(
        checks.iter().any(|check| check["name"] == "items"),
        "{drill}"
    );
    assert!(drill["rpo_ms"].as_u64().is_some(), "{drill}");

    // A migration leaves a place to go back to; what comes behind it is not there.
    shop.migration("0002_more.sql", "ALTER TABLE items ADD COLUMN more int;");
    shop.host.build(&shop.app, "2", "-");
    shop.ok(&["deploy", "--wait", "seal"]);
    shop.sql("DELETE FROM items WHERE id > 10");
    shop.ok(&["backup", "now", "main"]);
    let backups = shown(&shop)["backups"].clone();
    let backups = backups.as_array().unwrap().clone();
    assert_eq!(backups.len(), 2, "{backups:?}");
    assert_eq!(backups[1]["parent"], backups[0]["id"]);
    assert!(backups[1]["stored_bytes"].as_u64() < backups[0]["stored_bytes"].as_u64());

    // The server of Landfast may die: archiving goes on, with what was written meanwhile.
    shop.host.kill_server();
    shop.host.start_server();
    shop.sql("INSERT INTO items (id, name) VALUES (5000, 'last')");
    shop.host.until("it is archived again", || {
        troubles(&shop) == "[]" && !shown(&shop)["restorable_to"].is_null()
    });
    let said = shop.ok(&["restore", "run", "main", "--as", "newest"]);
    assert!(said.contains("restored from backup"), "{said}");
    until_ready(&shop, "newest");
    let counted = "SELECT count(*), max(id) FROM items";
    assert_eq!(ask(&shop, "newest", counted), "11|5000");
    // It is a store like any other: it can be written to, and the app's own goes on.
    ask(&shop, "newest", "INSERT INTO items (id) VALUES (6000)");
    assert_eq!(shop.sql(counted), "11|5000");
    // No password of the restored moment opens it.
    let logins = "SELECT string_agg(rolname, ' ' ORDER BY rolname) FROM pg_roles WHERE rolcanlogin";
    assert_eq!(ask(&shop, "newest", logins), "landfast operator");
    // No manifest names it: it can be deleted.
    let delete = [
        "store",
        "delete",
        "newest",
        "--confirm",
        "shop/production/newest",
    ];
    shop.ok(&delete);

    let points = shown(&shop)["points"].to_string();
    assert!(points.contains("before-rollout-2"), "{points}");
    let point = ["--point", "before-rollout-2"];
    shop.ok(&[&["restore", "run", "main", "--as", "before"], &point[..]].concat());
    until_ready(&shop, "before");
    assert_eq!(ask(&shop, "before", counted), "1000|1000");
    let columns = "SELECT count(*) FROM information_schema.columns WHERE table_name = 'items'";
    assert_eq!(ask(&shop, "before", columns), "2");

    let into = shop.host.path("exported");
    let folder = into.display().to_string();
    shop.ok(&[
        "restore",
        "export",
        "main",
        "--into",
        &folder,
        "--point",
        "before-rollout-2",
    ]);
    assert!(into.join("PG_VERSION").is_file());
    // What is there is not overwritten, whatever it is.
    shop.refused(&["restore", "export", "main", "--into", &folder], 1);
    shop.refused(&["restore", "run", "main", "--as", "before"], 1);
    shop.refused(
        &[
            "restore", "run", "main", "--as", "other", "--point", "nowhere",
        ],
        1,
    );

    let said = shop.ok(&["drill", "main", "--full"]);
    assert!(
        said.contains("proven") && said.contains("pg_amcheck"),
        "{said}"
    );
    let metrics = shop.host.metrics();
    let label = "{app=\"shop\",environment=\"production\",store=\"main\"}";
    assert!(
        metrics.contains(&format!("landfast_backup_up{label} 1")),
        "{metrics}"
    );
    assert!(metrics.contains("landfast_backup_drill_passed_timestamp_seconds"));
}

/// Each login has another password then, Landfast's own included, and each server asks for it.
#[test]
fn archive_migrations_and_rehearsals_go_on_with_the_passwords_of_a_rotation() {
    let (shop, _to) = shop();
    until_proven(&shop);
    let old = shop.ok(&["store", "connect", "main", "--reveal"]);
    for round in 0..2 {
        let said = shop.ok(&["store", "rotate", "main"]);
        assert!(said.contains("has one password"), "{said}");
        let new = shop.ok(&["store", "connect", "main", "--reveal"]);
        assert_ne!(old, new);
        // Nobody has a session of before.
        shop.ok(&["store", "restart", "main"]);
        until_ready(&shop, "main");
        let insert = format!("INSERT INTO items (id) VALUES ({})", 7_000 + round);
        shop.host.until("it takes a row", || {
            let asked = ["store", "psql", "main", "--", "-Atc", insert.as_str()];
            shop.host.run(&shop.app, &asked).status.success()
        });
        let before = shown(&shop)["restorable_to"].clone();
        shop.host.until("it is archived again", || {
            let now = shown(&shop);
            let is_well = now["troubles"].as_array().is_some_and(Vec::is_empty);
            is_well && !now["restorable_to"].is_null() && now["restorable_to"] != before
        });
        shop.ok(&["backup", "now", "main"]);
        shop.ok(&["drill", "main"]);
        let column = format!("ALTER TABLE items ADD COLUMN more_{round} int;");
        shop.migration(&format!("000{}_more.sql", round + 2), &column);
        let said = shop.ok(&["migrate", "rehearse"]);
        assert!(said.contains(&format!("000{}", round + 2)), "{said}");
        shop.host.build(&shop.app, &format!("{}", round + 2), "-");
        shop.ok(&["deploy", "--wait", "seal"]);
    }
    let stores = shop.json(&["store", "show", "main"]);
    assert!(stores["trouble"].is_null(), "{stores}");
}

#[test]
fn what_stays_wrong_is_told_once_and_outlives_the_server() {
    let (mut shop, to) = shop();
    until_proven(&shop);
    let hook = Hook::start();
    shop.edit("[deploy]\n", &hook.line());
    shop.edit(
        "ship = \"1s\"\n",
        "ship = \"1s\"\nverify = \"* * * * * UTC\"\n",
    );
    let packs = files(&to).into_iter();
    let pack = packs
        .filter(|path| path.to_string_lossy().contains("/packs/"))
        .max_by_key(|path| fs::metadata(path).unwrap().len())
        .unwrap();
    let mut bytes = fs::read(&pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&pack, &bytes).unwrap();
    let name = pack.strip_prefix(&to).unwrap().display().to_string();
    shop.ok(&["deploy", "--wait", "seal"]);
    // A minute is the shortest that a line can say.
    for _ in 0..240 {
        if !hook.told("damaged").is_empty() {
            break;
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    assert!(hook.told("damaged").concat().contains(&name));
    assert_eq!(hook.told("failed").len(), 1, "{:?}", hook.told("failed"));
    let ended = shown(&shop)["ended"]["verify"].clone();
    assert_eq!(ended["by"], "schedule", "{ended}");
    // It comes again each minute, and would be in the way.
    shop.edit("verify = \"* * * * * UTC\"\n", "");
    shop.ok(&["deploy", "--wait", "seal"]);
    let verified = || shown(&shop)["ended"]["verify"]["at"].clone();
    let (failed, at) = (hook.told("failed").len(), verified());

    shop.host.kill_server();
    shop.host.start_server();
    shop.host.until("it is archived again", || {
        !shown(&shop)["restorable_to"].is_null()
    });
    let known = shown(&shop);
    assert_eq!(known["ended"]["verify"]["at"], at, "nobody looked again");
    assert!(known["troubles"].to_string().contains(&name), "{known}");
    assert!(
        !known["drills"]["light-drill"]["passed_at"].is_null(),
        "{known}"
    );
    assert_eq!(hook.told("damaged").len(), 1);
    assert_eq!(hook.told("failed").len(), failed);

    // Taken out of the manifest, what the server keeps for it is limited until nothing is kept.
    let manifest = fs::read_to_string(shop.app.join("landfast.toml")).unwrap();
    let mut lines = Vec::new();
    let mut is_kept = true;
    for line in manifest.lines() {
        if line.starts_with('[') {
            is_kept = !line.starts_with("[stores.main.backup");
        }
        lines.extend(is_kept.then_some(line));
    }
    fs::write(shop.app.join("landfast.toml"), lines.join("\n")).unwrap();
    shop.ok(&["deploy", "--wait", "seal"]);
    assert_eq!(shop.sql("SHOW max_slot_wal_keep_size"), "4GB");
    shop.host.until("its slot is gone", || {
        shop.sql("SELECT count(*) FROM pg_replication_slots") == "0"
    });
    assert_eq!(shop.sql("SHOW max_slot_wal_keep_size"), "4GB");
}

#[test]
fn a_disk_that_gets_full_is_told_before_it_is() {
    let mut disk = None;
    let shop = Shop::on("postgres", || {
        let host = Host::start();
        disk = Some(Disk::mount(&host.path("state/stores"), "500m"));
        host
    });
    let (disk, hook) = (disk.unwrap(), Hook::start());
    shop.edit("[deploy]\n", &hook.line());
    let (shop, _to) = backed_up(shop);
    until_proven(&shop);
    let is_of_store = |text: &String| text.contains("state/stores") && text.contains("% full");
    let told = |state| {
        hook.told(state)
            .iter()
            .filter(|text| is_of_store(text))
            .count()
    };
    assert_eq!(told("disk"), 0, "{:?}", hook.told("disk"));
    let ballast = disk.fill(80 << 20);
    shop.host.until("it is told", || told("disk") == 1);
    let status = shop.ok(&["status"]);
    assert!(is_of_store(&status), "{status}");
    assert_eq!(troubles(&shop), "[]", "it can be gone back to all the same");
    fs::remove_file(ballast).unwrap();
    shop.host.until("it is over", || told("well") == 1);
    assert_eq!(told("disk"), 1);
    drop(disk);
}

#[test]
fn a_drill_rehearses_what_is_pending_and_says_nothing_of_the_backup_by_it() {
    let (shop, _to) = shop();
    until_proven(&shop);
    // Of the folder, which nobody has deployed.
    shop.migration(
        "0002_wide.sql",
        "-- landfast: allow=PG030 a rehearsal\nALTER TABLE items ALTER COLUMN name TYPE varchar(20);",
    );
    let from_backup = ["migrate", "rehearse", "--from", "backup"];
    let said = shop.ok(&from_backup);
    assert!(
        said.contains("0002_wide") && said.contains("items everybody"),
        "{said}"
    );
    let drill = shown(&shop)["drill"].clone();
    let seen = &drill["rehearsal"]["migrations"][0];
    assert_eq!(seen["rewritten"].to_string(), "[\"items\"]", "{drill}");
    assert!(seen["wal_bytes"].as_u64().is_some_and(|bytes| bytes > 0));
    // The database that runs was not touched.
    let width = "SELECT character_maximum_length FROM information_schema.columns WHERE table_name = 'items' AND column_name = 'name'";
    assert_eq!(shop.sql(width), "40");
    assert_eq!(shop.applied(), "1");
    // What it may not do there it may not do here: it runs as the owner, not as an administrator.
    shop.migration("0003_bad.sql", "COPY items TO PROGRAM 'cat';");
    let said = shop.refused(&from_backup, 3);
    assert!(
        said.contains("0003_bad") || said.contains("permission denied"),
        "{said}"
    );
    let now = shown(&shop);
    assert!(now["drill"]["failure"].is_null(), "{now}");
    assert!(!now["drill"]["rehearsal"]["failure"].is_null(), "{now}");
    assert_eq!(now["troubles"].to_string(), "[]", "{now}");
    let said = shop.ok(&["backup", "show", "main"]);
    assert!(
        said.contains("proven") && said.contains("the rehearsal failed"),
        "{said}"
    );
    for name in ["0002_wide.sql", "0003_bad.sql"] {
        fs::remove_file(shop.app.join("migrations").join(name)).unwrap();
    }

    // Of the newest release: what waits for its seal.
    shop.edit("standby = \"1s\"\n", "standby = \"10m\"\n");
    shop.migration(
        "0002_less.sql",
        "-- landfast: phase=contract\nALTER TABLE items DROP COLUMN name;",
    );
    shop.host.build(&shop.app, "2", "-");
    shop.ok(&["deploy", "--wait", "promotion"]);
    let said = shop.ok(&["drill", "main"]);
    assert!(
        said.contains("proven") && said.contains("0002_less"),
        "{said}"
    );
    let columns = "SELECT count(*) FROM information_schema.columns WHERE table_name = 'items'";
    assert_eq!(shop.sql(columns), "2");
}

#[test]
fn whoever_wants_a_backup_waits_for_what_is_under_way_unless_told_not_to() {
    let (shop, _to) = shop();
    until_proven(&shop);
    // A question that takes its time.
    let slow = "[stores.main.backup.drill.checks.items]\n";
    shop.edit(
        slow,
        &format!("[stores.main.backup.drill.checks.slow]\nsql = \"SELECT 't' FROM pg_sleep(15)\"\nexpect = \"t\"\n\n{slow}"),
    );
    shop.ok(&["deploy", "--wait", "seal"]);
    let begin = || {
        let drill = shop.begin(&["drill", "main", "--full"]);
        shop.host
            .until("it is under way", || !shown(&shop)["running"].is_null());
        drill
    };
    let mut drill = begin();
    for arguments in [
        &["backup", "now", "main", "--no-wait"][..],
        &["drill", "main", "--no-wait"],
        &["backup", "verify", "main", "--no-wait"],
    ] {
        let said = shop.refused(arguments, 11);
        assert!(said.contains("the full drill is under way"), "{said}");
    }
    // Whoever goes away begins nothing; whoever stays is told what is waited for, and then has a backup.
    let mut gone = shop.begin(&["backup", "now", "main", "--full"]);
    let before = shown(&shop)["backups"].as_array().unwrap().len();
    let output = shop.host.run(&shop.app, &["backup", "now", "main"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains("waiting for the full drill, begun by"),
        "{said}"
    );
    assert_eq!(drill.wait().unwrap().code(), Some(0));
    assert_eq!(gone.wait().unwrap().code(), Some(0));
    let now = shown(&shop)["backups"].as_array().unwrap().len();
    assert_eq!(now, before + 2);

    let mut drill = begin();
    let mut gone = shop.begin(&["backup", "now", "main"]);
    std::thread::sleep(Duration::from_millis(500));
    gone.kill().unwrap();
    gone.wait().unwrap();
    assert_eq!(drill.wait().unwrap().code(), Some(0));
    shop.ok(&["backup", "verify", "main"]);
    assert_eq!(shown(&shop)["backups"].as_array().unwrap().len(), now);
}

#[test]
fn what_is_damaged_is_named_and_no_restore_hides_it() {
    let (shop, to) = shop();
    until_proven(&shop);
    shop.ok(&["backup", "verify", "main"]);
    let packs = files(&to).into_iter();
    let pack = packs
        .filter(|path| path.to_string_lossy().contains("/packs/"))
        .max_by_key(|path| fs::metadata(path).unwrap().len())
        .unwrap();
    let mut bytes = fs::read(&pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&pack, &bytes).unwrap();
    let name = pack.strip_prefix(&to).unwrap().display().to_string();
    let said = shop.refused(&["backup", "verify", "main"], 1);
    assert!(said.contains(&name), "{said}");
    let status = shop.ok(&["status"]);
    assert!(status.contains(&name), "{status}");
    let said = shop.refused(&["restore", "run", "main", "--as", "copy"], 1);
    assert!(said.contains(&name), "{said}");
    let said = shop.refused(&["drill", "main"], 1);
    assert!(said.contains(&name), "{said}");
    assert!(troubles(&shop).contains(&name));
    // The gate of a deploy says no, and says why.
    shop.edit(
        "[deploy]\n",
        "[deploy]\ngates = [\"preflight\", \"backup\"]\n",
    );
    shop.host.build(&shop.app, "2", "-");
    let said = shop.refused(&["deploy", "--wait", "seal"], 8);
    assert!(said.contains("store `main`"), "{said}");
    // A full one is made of new objects alone, and heals it.
    shop.ok(&["backup", "now", "main", "--full"]);
    shop.ok(&["drill", "main"]);
    fs::remove_file(&pack).unwrap();
    let said = shop.refused(&["backup", "verify", "main"], 1);
    assert!(said.contains("missing"), "{said}");
    shop.ok(&["restore", "run", "main", "--as", "copy"]);
    until_ready(&shop, "copy");
    assert_eq!(ask(&shop, "copy", "SELECT count(*) FROM items"), "1000");
}

#[test]
fn a_repository_that_is_away_is_told_within_a_minute_and_made_up_for() {
    let (shop, to) = shop();
    until_proven(&shop);
    // As a disk that is not mounted any more: the folder is there, and nothing can be put into it.
    let away = to.with_extension("away");
    fs::rename(&to, &away).unwrap();
    fs::write(&to, "").unwrap();
    shop.sql("INSERT INTO items (id, name) VALUES (2000, 'meanwhile')");
    // It gives up after a minute.
    shop.host.until("it is told", || {
        troubles(&shop).contains("does not advance")
    });
    let status = shop.ok(&["status"]);
    assert!(
        status.contains("the archive does not advance, a restore reaches"),
        "{status}"
    );
    let label = "{app=\"shop\",environment=\"production\",store=\"main\"}";
    assert!(
        shop.host
            .metrics()
            .contains(&format!("landfast_backup_up{label} 0"))
    );
    // The app writes on meanwhile.
    shop.sql("INSERT INTO items (id, name) VALUES (2001, 'and on')");
    fs::remove_file(&to).unwrap();
    fs::rename(&away, &to).unwrap();
    shop.host
        .until("it is made up for", || troubles(&shop) == "[]");
    shop.ok(&["restore", "run", "main", "--as", "copy"]);
    until_ready(&shop, "copy");
    let both = "SELECT count(*) FROM items WHERE id IN (2000, 2001)";
    assert_eq!(ask(&shop, "copy", both), "2");
}

#[test]
fn the_key_is_copied_and_confirmed_and_another_one_opens_nothing() {
    let (mut shop, to) = shop();
    until_proven(&shop);
    let status = shop.ok(&["status"]);
    assert!(status.contains("no copy of the backups' key"), "{status}");
    let key = shop.ok(&["backup", "key", "export"]);
    let other = shop
        .host
        .run_with(&shop.app, &["backup", "key", "confirm"], "no key\n");
    assert!(!other.status.success());
    let said = shop
        .host
        .run_with(&shop.app, &["backup", "key", "confirm"], &key);
    assert!(said.status.success(), "{said:?}");
    let status = shop.ok(&["status"]);
    assert!(!status.contains("no copy of the backups' key"), "{status}");
    // What is stored is sealed: nothing of a row, or of a name, can be read there.
    for file in files(&to) {
        let bytes = fs::read(&file).unwrap();
        let holds = |what: &[u8]| bytes.windows(what.len()).any(|part| part == what);
        assert!(
            !holds(b"items") && !holds(b"pg_catalog"),
            "{}",
            file.display()
        );
    }
    // A host with another key reads nothing, says so, and writes nothing of its own beside it.
    let path = shop.host.path("state/backup.key");
    shop.host.kill_server();
    let kept = path.with_extension("kept");
    fs::rename(&path, &kept).unwrap();
    shop.host.start_server();
    shop.host.until("the lost key is told", || {
        troubles(&shop).contains("there is no key file")
    });
    assert!(
        !path.exists(),
        "a new key would hide that the old one is lost"
    );
    fs::rename(&kept, &path).unwrap();
    shop.host.until("it goes on", || troubles(&shop) == "[]");
}

#[test]
fn a_server_that_is_killed_in_the_middle_of_anything_goes_on() {
    let (mut shop, _to) = shop();
    until_proven(&shop);
    shop.sql("CREATE TABLE big AS SELECT n, repeat(md5(n::text), 20) AS text FROM generate_series(1, 60000) n");
    for arguments in [
        &["backup", "now", "main"][..],
        &["drill", "main"],
        &["restore", "run", "main", "--as", "copy"],
    ] {
        let mut begun = shop.begin(arguments);
        shop.host
            .until("it is under way", || !shown(&shop)["running"].is_null());
        shop.host.kill_server();
        shop.host.start_server();
        drop(begun.wait());
        // What it left that was to become a store goes with the next start.
        let left = shop.host.path("state/stores/shop/production/copy");
        shop.host.until("nothing half is left", || !left.exists());
        shop.host.until("the server of the store is archived", || {
            let shown = shown(&shop);
            !shown["restorable_to"].is_null() && shown["running"].is_null()
        });
        // A fast host may have made the copy before the server died.
        let again = shop.host.run(&shop.app, arguments);
        let said = String::from_utf8_lossy(&again.stderr);
        assert!(
            again.status.success() || said.contains("there is a store `copy` already"),
            "{arguments:?}: {said}"
        );
    }
    until_ready(&shop, "copy");
    assert_eq!(
        ask(&shop, "copy", "SELECT count(*), sum(length(text)) FROM big"),
        "60000|38400000"
    );
    shop.ok(&["backup", "verify", "main"]);
    // The store's own server may be killed too.
    let pid = fs::read_to_string(
        shop.host
            .path("state/stores/shop/production/main/data/postmaster.pid"),
    )
    .unwrap();
    let pid = pid.lines().next().unwrap().parse().unwrap();
    rustix::process::kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    shop.host.until("it is archived again", || {
        let write = [
            "store",
            "psql",
            "main",
            "--",
            "-Atc",
            "INSERT INTO items (id) VALUES (3000) ON CONFLICT DO NOTHING",
        ];
        shop.host.run(&shop.app, &write).status.success() && troubles(&shop) == "[]"
    });
    shop.ok(&["restore", "run", "main", "--as", "after"]);
    until_ready(&shop, "after");
    assert_eq!(
        ask(&shop, "after", "SELECT count(*) FROM items WHERE id = 3000"),
        "1"
    );
}

#[test]
fn a_bucket_is_reached_with_secrets_that_no_process_is_given() {
    let bucket = S3::start().unwrap();
    bucket.make_bucket("kept").unwrap();
    let shop = Shop::beside_others("postgres");
    let backup = format!(
        "migrations = \"migrations\"\nbackup = {{ to = \"s3://kept/shop\", endpoint = \"{}\", ship = \"1s\" }}\n",
        bucket.endpoint()
    );
    shop.edit("migrations = \"migrations\"\n", &backup);
    shop.migration("0001_items.sql", ITEMS);
    let said = shop.refused(&["deploy", "--wait", "seal"], 3);
    assert!(said.contains("BACKUP_ACCESS_KEY"), "{said}");
    for (name, value) in [
        ("BACKUP_ACCESS_KEY", S3::KEYS.0),
        ("BACKUP_SECRET_KEY", S3::KEYS.1),
        ("OTHER", "of the app"),
    ] {
        let set = ["secret", "set", name];
        let output = shop.host.run_with(&shop.app, &set, value);
        assert!(output.status.success(), "{output:?}");
    }
    shop.ok(&["deploy", "--wait", "seal"]);
    until_proven(&shop);
    let file = |name: &str| shop.host.get("shop.example", &format!("/file/{name}")).1;
    assert_eq!(file("OTHER"), "of the app");
    assert_eq!(file("BACKUP_SECRET_KEY"), "-");
    assert_eq!(file("BACKUP_ACCESS_KEY"), "-");
    shop.ok(&["backup", "verify", "main"]);
}
