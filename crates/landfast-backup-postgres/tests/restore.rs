//! Base backups and restores: to every kind of target, and never to anywhere else.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "helpers of tests, and servers and programs that are looked at from outside"
)]

mod common;

use std::{fs, path::Path};

use common::{World, ask, programs};
use landfast_backup::{AcceptedLoss, BackupState, Lsn, PlanError, Target};
use landfast_backup_postgres::{BackupError, RestoreStep, UNFINISHED, restore, verify};
use landfast_repository::{Place, RepositoryError, S3Place};
use landfast_testbed::S3;
use landfast_types::{Secret, Timestamp};

fn count(world: &World) -> String {
    world.sql("SELECT count(*) FROM t")
}

async fn archived(rows: u32) -> (World, landfast_backup_postgres::WalArchiver) {
    let world = World::new().await;
    let archiver = world.archiver().await;
    world.sql("CREATE TABLE t (id bigint PRIMARY KEY, pad text)");
    world.sql(&format!(
        "INSERT INTO t SELECT n, md5(n::text) FROM generate_series(1, {rows}) n"
    ));
    (world, archiver)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn comes_back_at_the_end_at_an_lsn_at_a_time_and_at_a_point() {
    let (world, archiver) = archived(1_000).await;
    let full = world.back_up(&archiver, true).await.unwrap();
    assert_eq!(full.summary.state, BackupState::Good);
    world.sql("INSERT INTO t SELECT n, 'second' FROM generate_series(1001, 2000) n");
    let middle: Lsn = world
        .sql("SELECT pg_current_wal_flush_lsn()")
        .parse()
        .unwrap();
    let server = world.server();
    archiver
        .restore_point(&server, "before-rollout-41", common::PATIENCE)
        .await
        .unwrap();
    // A heartbeat behind it.
    tokio::time::sleep(std::time::Duration::from_millis(1_200)).await;
    world.settle(&archiver).await;
    let loaded = world.archive.load().await.unwrap().unwrap();
    let time = loaded.ledger.heartbeats().last().unwrap().at;
    world.sql("DELETE FROM t WHERE id <= 500");
    world
        .write_archived(&archiver, "INSERT INTO t VALUES (5000, 'last')")
        .await;

    let targets = [
        ("latest", Target::Latest, "1501"),
        ("lsn", Target::Lsn(middle), "2000"),
        ("point", Target::Point("before-rollout-41".into()), "2000"),
        ("time", Target::Time(time), "2000"),
    ];
    for (name, target, expected) in targets {
        let restored = world.restore(name, target).await.unwrap();
        assert_eq!(ask(&restored, "SELECT count(*) FROM t"), expected, "{name}");
        assert_eq!(ask(&restored, "SHOW archive_mode"), "off");
        assert_eq!(ask(&restored, "SHOW listen_addresses"), "");
        let data = restored.data.clone();
        restored.finish().await.unwrap();
        assert!(!data.join(UNFINISHED).exists());
        assert!(!data.join("recovery.signal").exists());
        let verified = std::process::Command::new(programs().folder.join("pg_controldata"))
            .arg(&data)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&verified.stdout).into_owned();
        assert!(text.contains("shut down"), "{text}");
    }
    assert_eq!(count(&world), "1501");
    let past = world.restore("past", Target::Time(Timestamp::EPOCH)).await;
    assert!(matches!(
        past.err(),
        Some(BackupError::Plan(PlanError::NoHeartbeat(_)))
    ));
    archiver.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn comes_back_from_a_bucket() {
    let mut s3 = S3::start().unwrap();
    s3.make_bucket("backups").unwrap();
    let place = Place::S3(S3Place {
        bucket: "backups".into(),
        prefix: "flextime".into(),
        region: "us-east-1".into(),
        endpoint: Some(s3.endpoint()),
        is_path_style: true,
        authority: None,
        access_key: S3::KEYS.0.into(),
        secret_key: Secret::new(S3::KEYS.1.into()),
    });
    let postgres = landfast_testbed::Postgres::with_settings(common::SETTINGS).unwrap();
    let world = World::at(postgres, tempfile::tempdir().unwrap(), place).await;
    let archiver = world.archiver().await;
    world.sql("CREATE TABLE t AS SELECT generate_series(1, 3000) AS id");
    world.back_up(&archiver, true).await.unwrap();
    world.sql("INSERT INTO t SELECT generate_series(3001, 4000)");
    world.back_up(&archiver, false).await.unwrap();
    world
        .write_archived(&archiver, "INSERT INTO t VALUES (5000)")
        .await;
    let restored = world.restore("copy", Target::Latest).await.unwrap();
    assert_eq!(ask(&restored, "SELECT count(*) FROM t"), "4001");
    restored.finish().await.unwrap();
    assert_eq!(verify(&world.archive, |_| {}).await.unwrap().findings, []);
    // The server of the bucket goes: that is told, and is not taken for an empty archive.
    s3.kill();
    world.sql("INSERT INTO t VALUES (5001)");
    // What was not received yet cannot fail to be shipped.
    let mut is_told = false;
    for _ in 0..400 {
        is_told = archiver.flush().await.is_err();
        if is_told {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert!(is_told);
    let error = world.restore("none", Target::Latest).await.err().unwrap();
    assert!(
        matches!(
            error,
            BackupError::Repository(RepositoryError::Unreachable { .. })
        ),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_archive_goes_on_over_a_promotion() {
    let (world, archiver) = archived(1_000).await;
    world.back_up(&archiver, true).await.unwrap();
    world
        .write_archived(&archiver, "INSERT INTO t VALUES (5000, 'before')")
        .await;
    archiver.stop().await.unwrap();
    // A restored copy takes the primary's place, and its archive.
    let promoted = world.restore("promoted", Target::Latest).await.unwrap();
    let run = Path::new(&promoted.server.host);
    fs::write(
        run.join("pg_hba.conf"),
        "local all all trust\nlocal replication all trust\n",
    )
    .unwrap();
    ask(&promoted, "SELECT pg_reload_conf()");
    let mut config = world.config();
    config.server = promoted.server.clone();
    config.spool = world.folder.path().join("spool-2");
    let archiver = world.archiver_with(config).await;
    ask(&promoted, "INSERT INTO t VALUES (5001, 'behind')");
    let wanted: Lsn = ask(&promoted, "SELECT pg_current_wal_flush_lsn()")
        .parse()
        .unwrap();
    let mut end = None;
    for _ in 0..400 {
        archiver.flush().await.unwrap();
        end = world.archive.load().await.unwrap().unwrap().ledger.end();
        if end.is_some_and(|end| end.timeline.0 == 2 && end.lsn >= wanted) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(end.unwrap().timeline.0, 2, "{:?}", archiver.status());
    archiver.stop().await.unwrap();
    let restored = world.restore("copy", Target::Latest).await.unwrap();
    assert_eq!(ask(&restored, "SELECT count(*) FROM t"), "1002");
    restored.finish().await.unwrap();
    promoted.finish().await.unwrap();
    // The history that leads there is an object as any other.
    let history = world.object("history/00000002");
    let half = |bytes: &[u8]| Some(bytes[..bytes.len() / 2].to_vec());
    is_named(&world, &history, half).await;
    is_named(&world, &history, |_| None).await;
    fs::remove_file(&history).unwrap();
    let restored = world.restore("without", Target::Latest).await;
    let error = restored.err().unwrap().to_string();
    assert!(error.contains("history/00000002"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_incremental_refers_to_what_is_the_same_and_restores_alone() {
    let (world, archiver) = archived(60_000).await;
    let full = world.back_up(&archiver, true).await.unwrap();
    assert_eq!(full.same_bytes, 0);
    world.sql("UPDATE t SET pad = 'changed' WHERE id IN (7, 30000)");
    let second = world.back_up(&archiver, false).await.unwrap();
    assert_eq!(second.parent, Some(full.summary.id.clone()));
    assert!(
        second.stored_bytes * 5 < full.stored_bytes,
        "{} of {}",
        second.stored_bytes,
        full.stored_bytes
    );
    world.settle(&archiver).await;
    let restored = world.restore("copy", Target::Latest).await.unwrap();
    assert_eq!(restored.backup.summary.id, second.summary.id);
    let sum = "SELECT md5(string_agg(id || pad, ',' ORDER BY id)) FROM t";
    assert_eq!(ask(&restored, sum), world.sql(sum));
    restored.finish().await.unwrap();
    archiver.stop().await.unwrap();
}

/// Damages an object, sees it named by `verify`, and puts it back.
async fn is_named(world: &World, path: &Path, damage: impl FnOnce(&[u8]) -> Option<Vec<u8>>) {
    let whole = fs::read(path).unwrap();
    match damage(&whole) {
        Some(bytes) => fs::write(path, bytes).unwrap(),
        None => fs::remove_file(path).unwrap(),
    }
    let verified = verify(&world.archive, |_| {}).await.unwrap();
    let root = world.folder.path().join("repository");
    let name = path.strip_prefix(root).unwrap().display().to_string();
    let is_there = verified
        .findings
        .iter()
        .any(|finding| finding.object == name);
    assert!(is_there, "{name}: {:?}", verified.findings);
    fs::write(path, whole).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_bit_one_byte_or_one_object_is_named_whatever_kind_it_is_of() {
    let (world, archiver) = archived(2_000).await;
    world.back_up(&archiver, true).await.unwrap();
    world.sql("SELECT pg_switch_wal()");
    world
        .write_archived(&archiver, "INSERT INTO t VALUES (5000, 'last')")
        .await;
    archiver.stop().await.unwrap();
    let wal = fs::read_dir(world.object("wal/00000001")).unwrap();
    let mut objects: Vec<_> = wal.map(|entry| entry.unwrap().path()).collect();
    objects.push(world.object("packs/000001/000000"));
    objects.extend(
        ["manifest", "map", "hashes"].map(|part| world.object(&format!("backups/000001/{part}"))),
    );
    objects.push(world.object("ledger/00000000"));
    assert!(objects.len() >= 7);
    for path in &objects {
        let flip = |bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            Some(bytes)
        };
        is_named(&world, path, flip).await;
        is_named(&world, path, |bytes| {
            Some(bytes[..bytes.len() - 1].to_vec())
        })
        .await;
        is_named(&world, path, |_| None).await;
    }
    assert_eq!(verify(&world.archive, |_| {}).await.unwrap().findings, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wal_that_is_missing_or_damaged_stops_a_restore_and_never_promotes() {
    let (world, archiver) = archived(1_000).await;
    world.back_up(&archiver, true).await.unwrap();
    for round in 0..3 {
        world.sql("SELECT pg_switch_wal()");
        world.sql(&format!(
            "INSERT INTO t VALUES ({}, 'later')",
            10_000 + round
        ));
    }
    world.settle(&archiver).await;
    archiver.stop().await.unwrap();
    let wal = fs::read_dir(world.object("wal/00000001")).unwrap();
    let mut objects: Vec<_> = wal.map(|entry| entry.unwrap().path()).collect();
    objects.sort();
    // One in the middle, and the newest.
    for (number, path) in [
        objects[objects.len() - 2].clone(),
        objects.last().unwrap().clone(),
    ]
    .iter()
    .enumerate()
    {
        let whole = fs::read(path).unwrap();
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 1;
        fs::write(path, &flipped).unwrap();
        let name = format!("flipped{number}");
        let error = world.restore(&name, Target::Latest).await.err().unwrap();
        let named = path.file_name().unwrap().to_str().unwrap();
        assert!(error.to_string().contains(named), "{error}");
        let data = world.folder.path().join(&name);
        assert!(!data.join("pg_wal/00000002.history").exists());

        fs::remove_file(path).unwrap();
        let error = world
            .restore(&format!("missing{number}"), Target::Latest)
            .await
            .err()
            .unwrap();
        let BackupError::Plan(PlanError::WouldEndEarly { reach, .. }) = error else {
            panic!("{error}");
        };
        // Accepted by name it ends there, and says what is lost.
        let mut request = world.request(&format!("accepted{number}"), Target::Latest);
        request.accepted = Some(AcceptedLoss { reach });
        let restored = restore(&request, |_| {}).await.unwrap();
        assert!(restored.reached <= reach);
        assert!(restored.plan.lost.is_some());
        assert!(
            ask(&restored, "SELECT count(*) FROM t")
                .parse::<u32>()
                .unwrap()
                < 1_003
        );
        restored.finish().await.unwrap();
        fs::write(path, whole).unwrap();
    }
    let restored = world.restore("whole", Target::Latest).await.unwrap();
    assert_eq!(ask(&restored, "SELECT count(*) FROM t"), "1003");
    restored.finish().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_backup_takes_over_where_the_newest_is_gone() {
    let (world, archiver) = archived(1_000).await;
    world.back_up(&archiver, true).await.unwrap();
    let newest = world.back_up(&archiver, true).await.unwrap();
    world
        .write_archived(&archiver, "INSERT INTO t VALUES (5000, 'last')")
        .await;
    archiver.stop().await.unwrap();
    fs::remove_file(world.object(&format!("backups/{}/manifest", newest.summary.id))).unwrap();
    let restored = world.restore("copy", Target::Latest).await.unwrap();
    assert_eq!(restored.backup.summary.id.as_str(), "000001");
    assert_eq!(ask(&restored, "SELECT count(*) FROM t"), "1001");
    restored.finish().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_that_was_given_up_cannot_be_started_and_is_made_anew() {
    let (world, archiver) = archived(1_000).await;
    world.back_up(&archiver, true).await.unwrap();
    world.settle(&archiver).await;
    archiver.stop().await.unwrap();
    let request = world.request("copy", Target::Latest);
    // Given up while files are written: dropped at its first step.
    let (told, mut steps) = tokio::sync::mpsc::unbounded_channel();
    {
        let restoring = restore(&request, move |step| drop(told.send(step)));
        let mut restoring = Box::pin(restoring);
        loop {
            tokio::select! {
                _ = &mut restoring => panic!("it ended"),
                step = steps.recv() => if matches!(step, Some(RestoreStep::Files(_))) { break },
            }
        }
    }
    assert!(request.data.join(UNFINISHED).exists());
    assert!(!request.data.join("global/pg_control").exists());
    let restored = restore(&request, |_| {}).await.unwrap();
    assert_eq!(ask(&restored, "SELECT count(*) FROM t"), "1000");
    restored.finish().await.unwrap();
    // A folder that is not ours is left alone.
    let again = restore(&request, |_| {}).await;
    assert!(matches!(again.err(), Some(BackupError::NotEmpty(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_page_of_the_primary_makes_a_bad_backup_that_nobody_chooses() {
    let mut world = World::new().await;
    world.postgres.stop();
    let enabled = std::process::Command::new(programs().folder.join("pg_checksums"))
        .args(["--enable", "--pgdata"])
        .arg(world.postgres.data_folder())
        .output()
        .unwrap();
    assert!(enabled.status.success(), "{enabled:?}");
    own(&world.postgres.data_folder());
    world.postgres.boot().unwrap();
    let archiver = world.archiver().await;
    world.sql(
        "CREATE TABLE t AS SELECT n AS id, md5(n::text) AS pad FROM generate_series(1, 5000) n",
    );
    world.back_up(&archiver, true).await.unwrap();
    let file = world.sql("SELECT pg_relation_filepath('t')");
    world.sql("CHECKPOINT");
    let path = world.postgres.data_folder().join(file);
    let mut bytes = fs::read(&path).unwrap();
    bytes[3 * 8_192 + 4_000] ^= 1;
    fs::write(&path, bytes).unwrap();
    let second = world.back_up(&archiver, false).await.unwrap();
    assert!(
        matches!(second.summary.state, BackupState::Bad { .. }),
        "{:?}",
        second.summary.state
    );
    world.settle(&archiver).await;
    archiver.stop().await.unwrap();
    let restored = world.restore("copy", Target::Latest).await.unwrap();
    assert_eq!(restored.backup.summary.id.as_str(), "000001");
    restored.finish().await.unwrap();
}

fn own(folder: &Path) {
    let Some((uid, gid)) = programs().user else {
        return;
    };
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            std::os::unix::fs::chown(entry.path(), Some(uid), Some(gid)).unwrap();
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            }
        }
    }
}
