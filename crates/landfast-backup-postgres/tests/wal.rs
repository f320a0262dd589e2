//! Continuous WAL: what arrives, what is found again after every kind of death, what is told.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "helpers of tests, and servers and programs that are looked at from outside"
)]

mod common;

use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};

use common::World;
use landfast_backup::{Lsn, Timeline};
use landfast_backup_postgres::{BackupError, ReceiverState, WalEvent, verify};

async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    for _ in 0..600 {
        if done().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("it did not come to: {what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wal_is_shipped_without_a_hole_and_read_back() {
    let world = World::new().await;
    let archiver = world.archiver().await;
    world.sql("CREATE TABLE t (id bigint, pad text)");
    world.sql("INSERT INTO t SELECT n, repeat('x', 900) FROM generate_series(1, 40000) n");
    world.settle(&archiver).await;
    let loaded = world.archive.load().await.unwrap().unwrap();
    assert_eq!(loaded.ledger.holes(), []);
    // Closed segments are one object each; the open one a few.
    assert!(loaded.ledger.pieces().count() >= 3);
    until("a place that was read back", async || {
        let status = archiver.status();
        status.restorable.is_some_and(|point| point.at.is_some()) && status.failing.is_none()
    })
    .await;
    let verified = verify(&world.archive, |_| {}).await.unwrap();
    assert_eq!(verified.findings, []);
    // The spool keeps no more than what the receiver goes on from.
    archiver.flush().await.unwrap();
    let kept = std::fs::read_dir(world.folder.path().join("spool"))
        .unwrap()
        .count();
    assert!(kept <= 3, "{kept} files");
    archiver.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_server_makes_few_objects() {
    let world = World::new().await;
    let archiver = world.archiver().await;
    for n in 0..25 {
        world.sql(&format!("SELECT txid_current(), {n}"));
        archiver.flush().await.unwrap();
    }
    world.settle(&archiver).await;
    let objects = std::fs::read_dir(world.object("wal/00000001"))
        .unwrap()
        .count();
    // Up to sixteen pieces, then they are one again.
    assert!(objects <= 18, "{objects}");
    archiver.stop().await.unwrap();
}

struct Archiving(Child);

impl Archiving {
    fn start(world: &World) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_landfast-backup-testapp"))
            .arg("archive")
            .arg(world.postgres.socket_folder())
            .arg(world.postgres.port().to_string())
            .arg(world.folder.path().join("repository"))
            .arg(&world.key)
            .arg(world.folder.path().join("spool"))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn receivers(world: &World) -> String {
    world.sql("SELECT coalesce(string_agg(pid::text, ','), '') FROM pg_stat_replication WHERE application_name = 'landfast backup'")
}

async fn shipped(world: &World) -> Lsn {
    let loaded = world.archive.load().await.unwrap();
    loaded
        .and_then(|loaded| loaded.ledger.end())
        .map_or(Lsn(0), |end| end.lsn)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn goes_on_after_its_own_death_and_leaves_no_child() {
    let world = World::new().await;
    world.sql("CREATE TABLE t (id bigint, pad text)");
    for round in 0..3 {
        let archiving = Archiving::start(&world);
        until("a receiver", async || !receivers(&world).is_empty()).await;
        world.sql("INSERT INTO t SELECT n, repeat('x', 900) FROM generate_series(1, 15000) n");
        let wanted: Lsn = world
            .sql("SELECT pg_current_wal_flush_lsn()")
            .parse()
            .unwrap();
        if round < 2 {
            // In the middle of it.
            tokio::time::sleep(Duration::from_millis(150 * round)).await;
        } else {
            until("all of it", async || shipped(&world).await >= wanted).await;
        }
        archiving.kill();
        until("no receiver", async || receivers(&world).is_empty()).await;
    }
    let loaded = world.archive.load().await.unwrap().unwrap();
    assert_eq!(loaded.ledger.holes(), []);
    assert_eq!(verify(&world.archive, |_| {}).await.unwrap().findings, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_receiver_is_started_again_and_its_death_is_told() {
    let world = World::new().await;
    let archiver = world.archiver().await;
    until("streaming", async || {
        matches!(archiver.status().receiver, ReceiverState::Streaming { .. })
    })
    .await;
    let ReceiverState::Streaming { pid } = archiver.status().receiver else {
        panic!("{:?}", archiver.status());
    };
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    until("another receiver", async || {
        let state = archiver.status().receiver;
        matches!(state, ReceiverState::Streaming { pid: new } if new as i32 != pid.as_raw_nonzero().get())
    })
    .await;
    world
        .write_archived(
            &archiver,
            "CREATE TABLE t AS SELECT generate_series(1, 1000)",
        )
        .await;
    let loaded = world.archive.load().await.unwrap().unwrap();
    assert_eq!(loaded.ledger.holes(), []);
    archiver.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repository_that_was_away_gets_the_backlog_in_order() {
    let world = World::new().await;
    let archiver = world.archiver().await;
    world
        .write_archived(&archiver, "CREATE TABLE t (id bigint, pad text)")
        .await;
    let (here, away) = (world.object("wal"), world.folder.path().join("away"));
    std::fs::rename(&here, &away).unwrap();
    // A file in its place: writes fail, as on a full or broken disk.
    std::fs::write(&here, "").unwrap();
    world.sql("INSERT INTO t SELECT n, repeat('x', 900) FROM generate_series(1, 40000) n");
    until("it is told", async || archiver.status().failing.is_some()).await;
    let restorable = archiver.status().restorable;
    assert!(archiver.flush().await.is_err());
    assert_eq!(archiver.status().restorable, restorable);
    std::fs::remove_file(&here).unwrap();
    std::fs::rename(&away, &here).unwrap();
    world.settle(&archiver).await;
    let loaded = world.archive.load().await.unwrap().unwrap();
    assert_eq!((loaded.ledger.holes(), loaded.findings), (vec![], vec![]));
    let events = world.events.lock().unwrap().clone();
    assert!(
        events
            .iter()
            .any(|event| matches!(event, WalEvent::ShippingFailed { .. }))
    );
    assert!(events.contains(&WalEvent::ShippingBack));
    archiver.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wal_the_server_no_longer_has_is_a_hole_with_a_name() {
    let settings = [
        ("max_slot_wal_keep_size", "32MB"),
        ("max_wal_size", "32MB"),
        ("min_wal_size", "32MB"),
    ];
    let postgres = landfast_testbed::Postgres::with_settings(&settings).unwrap();
    let world = World::with(postgres).await;
    let archiver = world.archiver().await;
    world
        .write_archived(&archiver, "CREATE TABLE t (id bigint, pad text)")
        .await;
    let before = shipped(&world).await;
    archiver.stop().await.unwrap();
    for _ in 0..6 {
        world.sql("INSERT INTO t SELECT n, repeat('x', 900) FROM generate_series(1, 20000) n");
        world.sql("CHECKPOINT");
    }
    let archiver = world.archiver().await;
    until("the break is told", async || {
        archiver.status().broken.is_some()
    })
    .await;
    let hole = archiver.status().broken.unwrap();
    assert_eq!(hole.timeline, Timeline(1));
    assert!(hole.from >= before && hole.to > hole.from, "{hole}");
    world
        .write_archived(&archiver, "INSERT INTO t VALUES (1, 'behind the hole')")
        .await;
    let loaded = world.archive.load().await.unwrap().unwrap();
    assert_eq!(loaded.ledger.holes().len(), 1);
    // Nothing but a new backup heals it.
    assert_eq!(loaded.restorable(), None);
    world.back_up(&archiver, true).await.unwrap();
    let loaded = world.archive.load().await.unwrap().unwrap();
    assert!(loaded.restorable().is_some());
    archiver.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archive_takes_no_other_server() {
    let world = World::new().await;
    let archiver = world.archiver().await;
    world
        .write_archived(&archiver, "SELECT txid_current()")
        .await;
    archiver.stop().await.unwrap();
    let mut other = World::new().await;
    other.archive = world.archive.clone();
    let started = landfast_backup_postgres::WalArchiver::start(other.config(), |_| {}).await;
    assert!(matches!(
        started.err(),
        Some(BackupError::OtherSystem { .. })
    ));
}
