//! What is damaged, missing, cut, killed or hostile in a series.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use common::{World, files, noise, rename, rewritten};
use landfast_backup::{BackupId, KeepReason, Retention};
use landfast_backup_files::{
    Entry, EntryKind, FilesError, RawPath, Series, SnapshotRequest, Verified, prune, restore,
    snapshot, verify,
};
use landfast_repository::{Key, Keyring, Place, Repository, Storage};

const ONE: Retention = Retention {
    daily: 1,
    wal_heartbeats: 0,
    bad: 0,
};

async fn verified(world: &World) -> Verified {
    verify(&world.series, |_| {}).await.unwrap()
}

#[tokio::test]
async fn each_object_that_is_changed_cut_or_gone_is_named() {
    let world = World::new().await;
    world.write("a/big", noise(1, 500_000));
    world.snapshot().await;
    world.write("a/more", noise(2, 100_000));
    world.snapshot().await;
    assert_eq!(verified(&world).await.findings, []);
    let objects = files(&world.objects());
    // The list; manifest, entries, map and hashes of two; their packs.
    assert_eq!(objects.len(), 1 + 2 * 4 + 2, "{objects:?}");
    for path in objects {
        let name = path.strip_prefix(world.folder.path().join("repository"));
        let name = name.unwrap().display().to_string();
        let whole = fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 4;
        for damage in [Some(&flipped[..]), Some(&whole[..whole.len() - 1]), None] {
            match damage {
                Some(bytes) => fs::write(&path, bytes).unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            let findings = verified(&world).await.findings;
            let named: Vec<_> = findings.iter().map(|finding| &finding.object).collect();
            assert_eq!(named, [&name], "{findings:?}");
            // What the list and the manifests say is looked at before anything is removed.
            if name.ends_with("/list") || name.ends_with("/manifest") {
                let pruned = prune(
                    &world.series,
                    &ONE,
                    Duration::ZERO,
                    None,
                    Duration::ZERO,
                    false,
                )
                .await;
                assert!(matches!(pruned, Err(FilesError::Unsound(_))), "{name}");
            }
            fs::write(&path, &whole).unwrap();
        }
    }
    assert_eq!(verified(&world).await.findings, []);
}

#[tokio::test]
async fn a_restore_of_what_is_damaged_fails_and_the_next_snapshot_heals() {
    let world = World::new().await;
    world.write("a/big", noise(1, 500_000));
    let first = world.snapshot().await;
    let pack = files(&world.objects().join("packs/000001"))[0].clone();
    let whole = fs::read(&pack).unwrap();
    let mut flipped = whole.clone();
    flipped[1_000] ^= 1;
    fs::write(&pack, flipped).unwrap();
    let failed = world.try_restore().await.unwrap_err();
    let named = failed.to_string().contains(&first.packs[0].name);
    assert!(failed.is_damage() && named, "{failed}");
    assert!(!world.folder.path().join("restored0").exists());
    // A full one is made of new objects alone.
    let full = snapshot(&world.request(true), |_| {}).await.unwrap();
    let to = world.restore().await;
    assert_eq!(to.snapshot.id, full.id);
    // What is gone is not referred to, even by one that is not full.
    fs::remove_file(files(&world.objects().join(format!("packs/{}", full.id)))[0].clone()).unwrap();
    world.try_restore().await.unwrap_err();
    world.snapshot().await;
    let to = world.restore().await.folder;
    assert_eq!(fs::read(to.join("a/big")).unwrap(), noise(1, 500_000));
}

#[tokio::test]
async fn an_old_list_is_told_from_a_new_one() {
    let world = World::new().await;
    world.write("file", "1");
    world.snapshot().await;
    let list = world.objects().join("list");
    let old = fs::read(&list).unwrap();
    world.write("file", "22");
    world.snapshot().await;
    // As a crash between manifest and list leaves it: the snapshot is there.
    fs::write(&list, &old).unwrap();
    assert_eq!(verified(&world).await.findings, []);
    assert_eq!(world.series.load().await.unwrap().snapshots.len(), 2);
    let third = world.snapshot().await;
    assert_eq!(third.id, BackupId::of(3));
    fs::write(&list, &old).unwrap();
    let findings = verified(&world).await.findings;
    assert!(findings[0].object.ends_with("/list"), "{findings:?}");
    assert!(
        findings[0].wrong.contains("000002 to 000003"),
        "{findings:?}"
    );
}

#[tokio::test]
async fn what_is_too_old_goes_in_two_steps_and_the_newest_never() {
    let world = World::new().await;
    let empty = prune(
        &world.series,
        &ONE,
        Duration::ZERO,
        None,
        Duration::ZERO,
        false,
    )
    .await;
    assert!(matches!(empty, Err(FilesError::Empty)));
    world.write("file", noise(1, 50_000));
    world.write("same", noise(9, 50_000));
    world.snapshot().await;
    let none = Retention { daily: 0, ..ONE };
    let kept = prune(
        &world.series,
        &none,
        Duration::ZERO,
        None,
        Duration::ZERO,
        false,
    )
    .await
    .unwrap();
    assert!(kept.keep[&BackupId::of(1)].contains(&KeepReason::LastGood));
    for seed in 2..5 {
        world.write("file", noise(seed, 50_000));
        world.snapshot().await;
    }
    let proven = BackupId::of(2);
    let dry = prune(
        &world.series,
        &none,
        Duration::ZERO,
        Some(&proven),
        Duration::ZERO,
        true,
    )
    .await
    .unwrap();
    assert_eq!(dry.buried, [BackupId::of(1), BackupId::of(3)]);
    assert!(dry.keep[&proven].contains(&KeepReason::Proven));
    assert_eq!(world.series.load().await.unwrap().snapshots.len(), 4);
    let before = files(&world.objects()).len();
    let pruned = prune(
        &world.series,
        &none,
        Duration::ZERO,
        None,
        Duration::ZERO,
        false,
    )
    .await
    .unwrap();
    assert_eq!((pruned.buried.len(), pruned.deleted), (3, 0));
    assert_eq!(files(&world.objects()).len(), before);
    assert_eq!(world.series.load().await.unwrap().snapshots.len(), 1);
    // With the next snapshot the objects go, but for what it refers to.
    world.write("file", noise(7, 50_000));
    world.snapshot().await;
    let delay = Duration::from_secs(3_600);
    let recent = Duration::from_secs(3_600);
    let kept = prune(&world.series, &none, recent, None, delay, true).await;
    assert_eq!(kept.unwrap().buried, [], "there is no log between them");
    let early = prune(&world.series, &none, Duration::ZERO, None, delay, false)
        .await
        .unwrap();
    assert_eq!(early.deleted, 0);
    let pruned = prune(
        &world.series,
        &none,
        Duration::ZERO,
        None,
        Duration::ZERO,
        false,
    )
    .await
    .unwrap();
    assert!(pruned.deleted > 0);
    assert_eq!(verified(&world).await.findings, []);
    let packs = files(&world.objects().join("packs"));
    assert!(
        packs.iter().any(|pack| pack.ends_with("000001/000000")),
        "{packs:?}"
    );
    assert!(
        !packs.iter().any(|pack| pack.ends_with("000002/000000")),
        "{packs:?}"
    );
    let to = world.restore().await.folder;
    assert_eq!(fs::read(to.join("file")).unwrap(), noise(7, 50_000));
    assert_eq!(fs::read(to.join("same")).unwrap(), noise(9, 50_000));
}

#[tokio::test]
async fn a_hostile_snapshot_writes_nothing_anywhere() {
    type Change = fn(&mut Vec<Entry>);
    let changes: [(Change, &str); 8] = [
        (|entries| rename(entries, "file", "../escaped"), "leads out"),
        (
            |entries| rename(entries, "file", "/tmp/escaped"),
            "leads out",
        ),
        (
            |entries| rename(entries, "file", "a/../../escaped"),
            "leads out",
        ),
        (
            |entries| rename(entries, "file", "elsewhere/escaped"),
            "in no folder",
        ),
        // Through a link that the snapshot brings itself.
        (
            |entries| rename(entries, "file", "link/escaped"),
            "in no folder",
        ),
        (|entries| rename(entries, "file", "a/inner"), "twice"),
        (
            |entries| {
                let kind = EntryKind::HardLink {
                    to: RawPath(b"../../tree/file".to_vec()),
                };
                entries.push(Entry {
                    path: RawPath(b"hard".to_vec()),
                    kind,
                    ..entries[0].clone()
                });
            },
            "the same as no file",
        ),
        (|entries| rename(entries, "file", "fi\0le"), "leads out"),
    ];
    for (change, expected) in changes {
        let world = World::new().await;
        world.write("a/inner", "inner");
        world.write("file", "words");
        std::os::unix::fs::symlink(world.folder.path(), world.tree().join("link")).unwrap();
        world.snapshot().await;
        rewritten(&world, change).await;
        let before = files(world.folder.path());
        let failed = world.try_restore().await.unwrap_err();
        assert!(matches!(failed, FilesError::Hostile { .. }), "{failed}");
        assert!(failed.to_string().contains(expected), "{failed}");
        assert_eq!(files(world.folder.path()), before);
    }
}

#[tokio::test]
async fn what_a_killed_restore_left_goes_and_what_is_foreign_stays() {
    let world = World::new().await;
    world.write("file", "words");
    world.snapshot().await;
    let beside = world.folder.path().join("restored0.landfast-restoring");
    fs::create_dir_all(beside.join("tree/closed")).unwrap();
    let refused = world.try_restore().await;
    assert!(matches!(refused, Err(FilesError::Taken(_))), "{refused:?}");
    fs::rename(
        &beside,
        world.folder.path().join("restored1.landfast-restoring"),
    )
    .unwrap();
    let mark = world
        .folder
        .path()
        .join("restored1.landfast-restoring/landfast.unfinished");
    fs::write(mark, "").unwrap();
    let to = world.restore().await.folder;
    assert_eq!(files(&to), [to.join("file")]);
    assert!(
        !world
            .folder
            .path()
            .join("restored1.landfast-restoring")
            .exists()
    );
}

const CHILD: &str = "LANDFAST_TEST_FOLDER";

/// The half of the next test that is killed.
#[test]
#[ignore = "run by another test"]
fn snapshots_until_it_is_killed() {
    let folder = std::path::PathBuf::from(std::env::var_os(CHILD).unwrap());
    let work = async {
        let series = opened(&folder).await;
        let request = SnapshotRequest {
            series,
            root: folder.join("tree"),
            scratch: folder.join("scratch"),
            is_full: false,
        };
        let taken = snapshot(&request, |progress| {
            if progress.stored_bytes > 0 {
                println!("in the middle");
                loop {
                    std::thread::park();
                }
            }
        });
        taken.await.unwrap();
    };
    tokio::runtime::Runtime::new().unwrap().block_on(work);
}

async fn opened(folder: &Path) -> Series {
    let key = Key::read(&folder.join("backup.key")).unwrap();
    let storage = Storage::new(&Place::Folder(folder.join("repository"))).unwrap();
    let keys = Arc::new(Keyring::new(key));
    let repository = Repository::open(storage, keys).await.unwrap();
    Series::new(repository, "shop/production/_volumes/uploads").unwrap()
}

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "it kills itself, in another process"
)]
fn kill_9_in_the_middle_leaves_what_was_there_and_the_next_goes_on() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let world = runtime.block_on(World::new());
    world.write("first", "words");
    let first = runtime.block_on(world.snapshot());
    // Several packs.
    world.write("big", noise(1, 40 << 20));
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "snapshots_until_it_is_killed",
            "--ignored",
            "--nocapture",
        ])
        .env(CHILD, world.folder.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let said = BufReader::new(child.stdout.take().unwrap());
    let is_there = said
        .lines()
        .any(|line| line.unwrap().contains("in the middle"));
    assert!(is_there, "the child did not come so far");
    child.kill().unwrap();
    child.wait().unwrap();
    runtime.block_on(async {
        let mut left = files(&world.objects().join("packs/000002"));
        // What was being put has no name yet, and is no object.
        left.retain(|path| !path.file_name().unwrap().to_string_lossy().starts_with('.'));
        assert!(!left.is_empty());
        let loaded = world.series.load().await.unwrap();
        assert_eq!(loaded.snapshots, [first]);
        assert_eq!(verified(&world).await.findings, []);
        let to = world.restore().await.folder;
        assert_eq!(files(&to), [to.join("first")]);
        // The next one has a number of its own, and what is left of the other goes.
        let next = world.snapshot().await;
        assert_eq!(next.id, BackupId::of(3));
        let loaded = world.series.load().await.unwrap();
        let (older, to) = (BackupId::of(1), world.folder.path().join("older"));
        let older = restore(&world.series, &loaded, Some(&older), &to, |_| {}).await;
        assert_eq!(files(&older.unwrap().folder), [to.join("first")]);
        let delay = Duration::from_secs(3_600);
        let pruned = prune(
            &world.series,
            &Retention::DEFAULT,
            Duration::ZERO,
            None,
            delay,
            false,
        );
        assert_eq!(pruned.await.unwrap().deleted, left.len());
        let to = world.restore().await.folder;
        assert_eq!(fs::read(to.join("big")).unwrap(), noise(1, 40 << 20));
        assert_eq!(verified(&world).await.findings, []);
    });
}
