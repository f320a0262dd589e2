//! What the runs of `landfast-faults` found, each as small as it goes.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "helpers of tests, and servers and programs that are looked at from outside"
)]

mod common;

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use common::{World, ask};
use landfast_backup::{Retention, Target};
use landfast_backup_postgres::{Pace, WalEvent, prune, remove_unfinished, verify};

/// Files below a folder of the archive, in order.
fn objects(world: &World, folder: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(world.object(folder)).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

async fn named(world: &World, object: &str) -> bool {
    let findings = verify(&world.archive, |_| {}).await.unwrap().findings;
    findings.iter().any(|finding| finding.object == object)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wal_that_is_gone_from_the_repository_is_told_until_a_backup_lies_behind_it() {
    let world = World::new().await;
    let archiver = world.archiver().await;
    world.sql("CREATE TABLE t (id bigint, pad text)");
    world.back_up(&archiver, true).await.unwrap();
    for _ in 0..3 {
        world.sql("INSERT INTO t SELECT n, repeat('x', 900) FROM generate_series(1, 20000) n");
    }
    world.settle(&archiver).await;
    archiver.stop().await.unwrap();
    let wal = objects(&world, "wal/00000001");
    fs::remove_file(&wal[wal.len() - 3]).unwrap();
    let archiver = world.archiver().await;
    let mut status = archiver.watch();
    let told = status.wait_for(|status| status.broken.is_some());
    let told = tokio::time::timeout(Duration::from_secs(20), told).await;
    let hole = told.expect("the gap is told").unwrap().broken.unwrap();
    let events = world.events.lock().unwrap().clone();
    assert!(
        events.contains(&WalEvent::ChainBroken { hole }),
        "{events:?}"
    );
    world.back_up(&archiver, true).await.unwrap();
    archiver.stop().await.unwrap();
    let before = world.events.lock().unwrap().len();
    let archiver = world.archiver().await;
    world.settle(&archiver).await;
    assert_eq!(archiver.status().broken, None);
    let events = world.events.lock().unwrap()[before..].to_vec();
    let is_broken = |event: &WalEvent| matches!(event, WalEvent::ChainBroken { .. });
    assert!(!events.iter().any(is_broken), "{events:?}");
    archiver.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_newest_page_of_the_ledger_and_its_head_are_missed() {
    let world = World::new().await;
    let mut config = world.config();
    config.interval = Duration::from_millis(10);
    let archiver = world.archiver_with(config).await;
    // A page holds 512 events; a busy machine makes few heartbeats.
    for _ in 0..3_000 {
        if world.object("ledger/00000001").exists() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // Another shipment, which writes the head.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    archiver.stop().await.unwrap();
    let pages = objects(&world, "ledger");
    assert_eq!(pages.len(), 3, "{pages:?}");
    for (number, name) in [(1, "main/ledger/00000001"), (2, "main/ledger/head")] {
        let bytes = fs::read(&pages[number]).unwrap();
        fs::remove_file(&pages[number]).unwrap();
        assert!(named(&world, name).await, "{name}");
        fs::write(&pages[number], bytes).unwrap();
    }
    assert!(!named(&world, "main/ledger/head").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_tombstone_is_named_and_a_lost_one_is_put_again() {
    let world = World::new().await;
    let archiver = world.archiver().await;
    for _ in 0..2 {
        world.back_up(&archiver, true).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    world.settle(&archiver).await;
    let retention = Retention {
        daily: 1,
        wal_heartbeats: 1,
        bad: 0,
    };
    let prune = async || prune(&world.archive, &archiver, &retention, 1 << 40, false).await;
    assert_eq!(prune().await.unwrap().buried.len(), 1);
    let tombstone = objects(&world, "tombstones")[0].clone();
    let mut bytes = fs::read(&tombstone).unwrap();
    bytes[40] ^= 1;
    fs::write(&tombstone, bytes).unwrap();
    assert!(named(&world, "main/tombstones/000001").await);
    fs::remove_file(&tombstone).unwrap();
    prune().await.unwrap();
    assert!(tombstone.is_file());
    archiver.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_alter_system_set_is_kept_and_not_obeyed_by_the_copy() {
    let world = World::new().await;
    let canary = world.folder.path().join("canary");
    fs::set_permissions(
        world.folder.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o777),
    )
    .unwrap();
    let touch = format!("/usr/bin/touch {}", canary.display());
    world.sql(&format!(
        "ALTER SYSTEM SET recovery_end_command = '{touch}'"
    ));
    world.sql("ALTER SYSTEM SET work_mem = '5MB'");
    let archiver = world.archiver().await;
    world.back_up(&archiver, true).await.unwrap();
    world.settle(&archiver).await;
    archiver.stop().await.unwrap();
    let restored = world.restore("copy", Target::Latest).await.unwrap();
    assert_eq!(ask(&restored, "SHOW work_mem"), "4MB");
    let settings = restored.data.join("postgresql.auto.conf");
    restored.finish().await.unwrap();
    assert!(!canary.exists());
    assert!(fs::read_to_string(settings).unwrap().contains("work_mem"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_password_a_killed_backup_left_goes_with_the_next_one() {
    let world = World::new().await;
    let archiver = world.archiver().await;
    let left = world.folder.path().join("spool/backup");
    fs::create_dir(&left).unwrap();
    fs::write(left.join("pgpass"), "secret").unwrap();
    let mut request = landfast_backup_postgres::BackupRequest {
        server: world.server(),
        programs: common::programs(),
        archive: world.archive.clone(),
        is_full: true,
        pace: Pace::new(u64::MAX),
        wal_patience: common::PATIENCE,
    };
    request.server.password = Some(landfast_types::Secret::new("testbed".into()));
    landfast_backup_postgres::back_up(&request, &archiver, |_| {})
        .await
        .unwrap();
    assert!(!left.exists());
    archiver.stop().await.unwrap();
}

/// Who migrates keeps his history beside the heartbeat, whichever of the two comes first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_schema_of_the_heartbeat_is_the_database_owners() {
    let world = World::new().await;
    world.sql("CREATE ROLE shop");
    world.sql("ALTER DATABASE postgres OWNER TO shop");
    let archiver = world.archiver().await;
    let owner = "SELECT nspowner::regrole FROM pg_namespace WHERE nspname = 'landfast'";
    assert_eq!(world.sql(owner), "shop");
    archiver.stop().await.unwrap();
}

/// Ends with the test.
struct Ending(Child);

impl Drop for Ending {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// At that rate it would take a day.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_nobody_uses_is_read_at_once_and_so_is_one_whose_backup_is_waited_for() {
    let world = World::new().await;
    let archiver = world.archiver().await;
    let mut request = landfast_backup_postgres::BackupRequest {
        server: world.server(),
        programs: common::programs(),
        archive: world.archive.clone(),
        is_full: true,
        pace: Pace::new(512),
        wal_patience: common::PATIENCE,
    };
    landfast_backup_postgres::back_up(&request, &archiver, |_| {})
        .await
        .unwrap();
    request.pace = Pace::new(512);
    request.pace.lift();
    landfast_backup_postgres::back_up(&request, &archiver, |_| {})
        .await
        .unwrap();
    archiver.stop().await.unwrap();
}

/// The bound is from below: nothing that is slow makes it shorter.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_is_read_slowly_while_somebody_uses_it() {
    const RATE: u64 = 4 << 20;
    let world = World::new().await;
    let archiver = world.archiver().await;
    let request = landfast_backup_postgres::BackupRequest {
        server: world.server(),
        programs: common::programs(),
        archive: world.archive.clone(),
        is_full: true,
        pace: Pace::new(RATE),
        wal_patience: common::PATIENCE,
    };
    let statements = world.folder.path().join("statements.sql");
    fs::write(&statements, "SELECT pg_sleep(0.01);\n".repeat(60_000)).unwrap();
    let server = world.server();
    let mut user = Ending(
        Command::new("psql")
            .args([
                "-qAt",
                "--host",
                &server.host,
                "--port",
                &server.port.to_string(),
            ])
            .args(["--username", &server.login, "--dbname", &server.database])
            .arg("--file")
            .arg(&statements)
            .stdout(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let ended = || {
        let ended =
            world.sql("SELECT xact_commit FROM pg_stat_database WHERE datname = 'postgres'");
        ended.parse::<u64>().unwrap()
    };
    let first = ended();
    while ended() < first + 100 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let backup = landfast_backup_postgres::back_up(&request, &archiver, |_| {}).await;
    assert!(user.0.try_wait().unwrap().is_none(), "it is used no longer");
    drop(user);
    let backup = backup.unwrap();
    let least = Duration::from_millis(backup.bytes * 1_000 / RATE);
    assert!(
        backup.took_ms >= u64::try_from(least.as_millis()).unwrap(),
        "{} bytes in {} ms",
        backup.bytes,
        backup.took_ms
    );
    archiver.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_packs_of_a_backup_that_never_came_to_its_end_go_and_no_others() {
    let world = World::new().await;
    let archiver = world.archiver().await;
    world.sql("CREATE TABLE t AS SELECT n, md5(n::text) AS text FROM generate_series(1, 20000) n");
    world.back_up(&archiver, true).await.unwrap();
    let packs = || {
        let of_each = objects(&world, "packs").into_iter();
        of_each
            .map(|folder| fs::read_dir(folder).unwrap().count())
            .sum::<usize>()
    };
    let good = packs();
    assert_eq!(remove_unfinished(&world.archive).await.unwrap(), 0);
    // The second one is ended when it has put something.
    let request = landfast_backup_postgres::BackupRequest {
        server: world.server(),
        programs: common::programs(),
        archive: world.archive.clone(),
        is_full: true,
        pace: Pace::new(u64::MAX),
        wal_patience: common::PATIENCE,
    };
    let some_put = async {
        while packs() <= good {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        done = landfast_backup_postgres::back_up(&request, &archiver, |_| {}) => drop(done.unwrap()),
        () = some_put => {}
    }
    let is_listed = world.archive.load().await.unwrap().unwrap().backups.len() == 2;
    for _ in 0..200 {
        remove_unfinished(&world.archive).await.unwrap();
        // One keeps the number; what was being put may come a moment later.
        if is_listed || packs() == good + 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(is_listed || packs() == good + 1, "{}", packs());
    world.settle(&archiver).await;
    archiver.stop().await.unwrap();
    assert_eq!(verify(&world.archive, |_| {}).await.unwrap().findings, []);
    let restored = world.restore("copy", Target::Latest).await.unwrap();
    restored.finish().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_waits_for_whoever_still_works_in_its_folder() {
    let world = World::new().await;
    let archiver = world.archiver().await;
    world.back_up(&archiver, true).await.unwrap();
    world.settle(&archiver).await;
    archiver.stop().await.unwrap();
    // What a killed restore left, and a process of its server that does not know yet.
    let data = world.folder.path().join("copy");
    fs::create_dir(&data).unwrap();
    fs::set_permissions(&data, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    fs::write(data.join(landfast_backup_postgres::UNFINISHED), "").unwrap();
    let mut orphan = Command::new("/usr/bin/sleep")
        .arg("2")
        .current_dir(&data)
        .spawn()
        .unwrap();
    let restored = world.restore("copy", Target::Latest).await.unwrap();
    assert!(orphan.try_wait().unwrap().is_some());
    restored.finish().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prunes_beside_an_archiver_take_nothing_it_has_just_shipped() {
    let world = World::new().await;
    let mut config = world.config();
    config.interval = Duration::from_millis(10);
    let archiver = world.archiver_with(config).await;
    world.sql("CREATE TABLE t (id bigint)");
    world.back_up(&archiver, true).await.unwrap();
    let retention = Retention {
        daily: 1,
        wal_heartbeats: 1,
        bad: 0,
    };
    for round in 0..60 {
        if round % 3 == 0 {
            world.sql("INSERT INTO t VALUES (1); SELECT pg_switch_wal()");
        }
        let pruned = prune(&world.archive, &archiver, &retention, 1 << 40, false).await;
        pruned.unwrap();
    }
    world.settle(&archiver).await;
    archiver.stop().await.unwrap();
    assert_eq!(verify(&world.archive, |_| {}).await.unwrap().findings, []);
}
