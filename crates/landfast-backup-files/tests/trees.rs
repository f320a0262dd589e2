//! Trees that come back as they were, while they change, and without anything that is not theirs.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::{
    ffi::OsStr,
    fs,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink},
        net::UnixListener,
    },
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use common::{World, files, noise};
use landfast_backup_files::{Content, FilesError, NoteKind, snapshot};
use landfast_repository::{Place, S3Place};
use landfast_testbed::S3;
use landfast_types::Secret;
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, mknodat, utimensat};

const PATIENCE: usize = 200;

fn touch(path: &Path, seconds: i64, nanos: i64) {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: nanos,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

#[tokio::test]
async fn everything_comes_back_as_it_was() {
    let world = World::new().await;
    let (tree, outside) = (world.tree(), world.folder.path().join("outside"));
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "not theirs").unwrap();
    world.write("a/big", noise(1, 3_000_000));
    world.write("a/b/c/small", "words");
    world.write("none", "");
    fs::create_dir(tree.join("empty")).unwrap();
    fs::set_permissions(tree.join("empty"), fs::Permissions::from_mode(0o2750)).unwrap();
    fs::set_permissions(tree.join("a/big"), fs::Permissions::from_mode(0o640)).unwrap();
    symlink("a/big", tree.join("link")).unwrap();
    symlink("nowhere/at all", tree.join("dangling")).unwrap();
    symlink(&outside, tree.join("out")).unwrap();
    fs::hard_link(tree.join("a/big"), tree.join("same")).unwrap();
    let odd = OsStr::from_bytes(b"\xffname\\ \n");
    fs::write(tree.join(odd), "odd").unwrap();
    let sparse = fs::File::create(tree.join("sparse")).unwrap();
    sparse.set_len(50 << 20).unwrap();
    sparse.write_all_at(b"end", (50 << 20) - 3).unwrap();
    drop(sparse);
    mknodat(CWD, tree.join("pipe"), FileType::Fifo, Mode::from(0o600), 0).unwrap();
    let _socket = UnixListener::bind(tree.join("socket")).unwrap();
    let is_root = rustix::process::geteuid().is_root();
    if is_root {
        std::os::unix::fs::lchown(tree.join("a/b"), Some(4_711), Some(4_712)).unwrap();
        std::os::unix::fs::lchown(tree.join("link"), Some(4_711), Some(4_712)).unwrap();
    }
    touch(&tree.join("a/b/c/small"), 1_000_000_000, 123_456_789);
    touch(&tree.join("link"), 1_000_000_001, 5);
    touch(&tree.join("a/b"), 1_000_000_002, 7);

    let taken = world.snapshot().await;
    let said: Vec<_> = taken.notes.iter().map(ToString::to_string).collect();
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(
        taken
            .notes
            .iter()
            .all(|note| note.kind == NoteKind::Special)
    );
    assert!(matches!(taken.content, Content::Tree { sqlite: 0, .. }));
    // The names of one file are stored once.
    assert!(taken.stored_bytes < 3_500_000, "{}", taken.stored_bytes);

    let restored = world.restore().await;
    assert_eq!(restored.wrong(), Vec::<String>::new());
    let to = &restored.folder;
    let kept = |path: &Path| {
        let about = fs::symlink_metadata(path).unwrap();
        let owner = is_root.then(|| (about.uid(), about.gid()));
        // Where a folder lies in another, it is the file system's to say how long it is.
        let len = if about.is_dir() { 0 } else { about.len() };
        (about.mode(), owner, len, about.mtime(), about.mtime_nsec())
    };
    for path in [
        "",
        "a",
        "a/b",
        "a/b/c",
        "a/b/c/small",
        "a/big",
        "empty",
        "none",
        "link",
        "sparse",
    ] {
        let (mut was, mut is) = (kept(&tree.join(path)), kept(&to.join(path)));
        if !is_root {
            (was.0, is.0) = (was.0 & !0o6000, is.0 & !0o6000);
        }
        assert_eq!(was, is, "{path}");
    }
    assert_eq!(fs::read(to.join("a/big")).unwrap(), noise(1, 3_000_000));
    assert_eq!(fs::read(to.join(odd)).unwrap(), b"odd");
    let sparse = fs::read(to.join("sparse")).unwrap();
    assert!(sparse.ends_with(b"\0\0end") && sparse.len() == 50 << 20);
    assert_eq!(fs::read_link(to.join("out")).unwrap(), outside);
    assert_eq!(
        fs::read_link(to.join("dangling")).unwrap(),
        Path::new("nowhere/at all")
    );
    let inode = |path: &str| fs::metadata(to.join(path)).unwrap().ino();
    assert_eq!(inode("a/big"), inode("same"));
    assert!(!to.join("pipe").exists() && !to.join("socket").exists());
    // Nothing is left beside, and what is there is not restored over.
    assert!(!world.folder.path().join("scratch").exists());
    let loaded = world.series.load().await.unwrap();
    let again = landfast_backup_files::restore(&world.series, &loaded, None, to, |_| {}).await;
    assert!(matches!(again, Err(FilesError::Taken(_))), "{again:?}");
    let left: Vec<_> = fs::read_dir(world.folder.path()).unwrap().collect();
    assert_eq!(left.len(), 5, "{left:?}");
}

#[tokio::test]
async fn what_was_not_touched_is_not_read_and_what_was_is() {
    let world = World::new().await;
    for n in 0..20_u64 {
        world.write(&format!("d{}/f{n}", n % 3), noise(n + 1, 100_000));
    }
    let first = world.snapshot().await;
    assert_eq!((first.parent, first.bytes), (None, 2_000_000));
    // What was written just before may be written again within the same tick, so it is read until its time is over.
    let mut tries = 0;
    loop {
        let (taken, read) = world.snapshot_reading().await;
        assert_eq!(taken.same_bytes, 2_000_000);
        assert!(taken.parent.is_some());
        if read == 0 {
            break;
        }
        tries += 1;
        assert!(tries < PATIENCE, "{read} bytes are read again and again");
        thread::sleep(Duration::from_millis(100));
    }
    // Of the same length, with the old time put back: the inode tells.
    let path = world.tree().join("d0/f0");
    let about = fs::metadata(&path).unwrap();
    fs::write(&path, noise(99, 100_000)).unwrap();
    touch(&path, about.mtime(), about.mtime_nsec());
    // Moved and copied: read, and not stored again.
    fs::rename(world.tree().join("d1/f1"), world.tree().join("moved")).unwrap();
    fs::copy(world.tree().join("d2/f2"), world.tree().join("copied")).unwrap();
    // Another page in the middle of a file.
    let file = fs::File::options()
        .write(true)
        .open(world.tree().join("d0/f3"));
    file.unwrap().write_all_at(b"changed", 50_000).unwrap();
    let (taken, read) = world.snapshot_reading().await;
    assert_eq!(taken.bytes, 2_100_000);
    assert_eq!(taken.bytes - taken.same_bytes, 100_000 + 8_192);
    assert!(read <= 400_000, "{read}");
    let to = world.restore().await.folder;
    assert_eq!(fs::read(to.join("d0/f0")).unwrap(), noise(99, 100_000));
    assert_eq!(fs::read(to.join("moved")).unwrap(), noise(2, 100_000));
    assert_eq!(fs::read(to.join("copied")).unwrap(), noise(3, 100_000));
    assert_eq!(
        &fs::read(to.join("d0/f3")).unwrap()[50_000..50_007],
        b"changed"
    );
    assert_eq!(files(&to).len(), 21);
    // A full one needs no older object.
    let full = snapshot(&world.request(true), |_| {}).await.unwrap();
    assert_eq!(full.parent, None);
    let own = format!("/packs/{}/", full.id);
    assert!(full.packs.iter().all(|pack| pack.name.contains(&own)));
}

/// While it lives, something goes on beside.
fn meanwhile<T>(work: impl Fn() + Send + Sync, test: impl FnOnce() -> T) -> T {
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                work();
            }
        });
        let tested = std::panic::catch_unwind(std::panic::AssertUnwindSafe(test));
        is_over.store(true, Ordering::Relaxed);
        tested.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn block<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Runtime::new().unwrap().block_on(future)
}

#[test]
fn what_goes_on_changing_is_named_and_what_vanishes_is_no_error() {
    let world = block(World::new());
    world.write("busy", noise(1, 4_000_000));
    world.write("quiet", "words");
    let busy = fs::File::options()
        .write(true)
        .open(world.tree().join("busy"))
        .unwrap();
    let write = || busy.write_all_at(b"x", 0).unwrap();
    meanwhile(write, || {
        // The writer may get no time while it is read.
        for _ in 0..PATIENCE {
            let taken = block(world.snapshot());
            let named = taken.notes.first();
            if let Some(note) = named {
                assert_eq!(note.path.to_string(), "busy");
                assert_eq!(note.kind, NoteKind::Changing);
                return;
            }
        }
        panic!("it was never named");
    });
    let comes_and_goes = || {
        for n in 0..50 {
            let folder = world.tree().join(format!("new{n}"));
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("file"), "words").unwrap();
        }
        for n in 0..50 {
            fs::remove_dir_all(world.tree().join(format!("new{n}"))).unwrap();
        }
    };
    meanwhile(comes_and_goes, || {
        for _ in 0..20 {
            let taken = block(world.snapshot());
            let is_trouble = |note: &&landfast_backup_files::Note| note.kind.is_trouble();
            assert_eq!(taken.notes.iter().find(is_trouble), None);
            let restored = block(world.restore());
            assert_eq!(fs::read(restored.folder.join("quiet")).unwrap(), b"words");
            fs::remove_dir_all(restored.folder).unwrap();
        }
    });
}

#[tokio::test]
async fn a_tree_goes_through_a_bucket() {
    let s3 = S3::start().unwrap();
    s3.make_bucket("backups").unwrap();
    let place = Place::S3(S3Place {
        bucket: "backups".into(),
        prefix: "a/b".into(),
        region: "us-east-1".into(),
        endpoint: Some(s3.endpoint()),
        is_path_style: true,
        authority: None,
        access_key: S3::KEYS.0.into(),
        secret_key: Secret::new(S3::KEYS.1.into()),
    });
    let world = World::at(tempfile::tempdir().unwrap(), place).await;
    world.write("a/big", noise(1, 1_000_000));
    world.snapshot().await;
    world.write("a/more", "words");
    let second = world.snapshot().await;
    assert_eq!(second.same_bytes, 1_000_000);
    let verified = landfast_backup_files::verify(&world.series, |_| {})
        .await
        .unwrap();
    assert_eq!(verified.findings, []);
    let to = world.restore().await.folder;
    assert_eq!(fs::read(to.join("a/big")).unwrap(), noise(1, 1_000_000));
    assert_eq!(fs::read(to.join("a/more")).unwrap(), b"words");
}
