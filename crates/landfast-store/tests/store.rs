//! The store on a real file system.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    time::Duration,
};

use landfast_store::{Entry, EntryKind, Store, StoreError, TreeError, TreeListing, scan};
use landfast_types::Digest;

struct World {
    folder: tempfile::TempDir,
    store: Store,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().join("store")).unwrap();
        Self { folder, store }
    }

    fn source(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    fn left_in_tmp(&self) -> usize {
        fs::read_dir(self.folder.path().join("store/tmp"))
            .unwrap()
            .count()
    }

    fn blobs(&self) -> usize {
        let folders = fs::read_dir(self.folder.path().join("store/blobs"))
            .unwrap()
            .flatten();
        folders
            .map(|folder| fs::read_dir(folder.path()).unwrap().count())
            .sum()
    }
}

fn write(path: &Path, content: &str, mode: u32) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o777
}

fn file(path: &str, content: &[u8]) -> Entry {
    let (size, digest) = (content.len() as u64, Digest::of(content));
    Entry {
        path: path.to_owned(),
        kind: EntryKind::File {
            executable: false,
            size,
            digest,
        },
    }
}

#[test]
fn keeps_a_read_only_copy_that_outlives_its_source() {
    let world = World::new();
    let source = world.source("source");
    write(&source.join("bin/app"), "#!x", 0o755);
    write(&source.join("web/index.html"), "<html>", 0o600);
    write(&source.join("empty"), "", 0o644);
    fs::create_dir(source.join("nothing")).unwrap();
    symlink("bin/app", source.join("app")).unwrap();
    let artifact = world.store.add_local(&source).unwrap();
    fs::remove_dir_all(&source).unwrap();
    let path = world.store.path(&artifact).unwrap();
    assert_eq!(fs::read_to_string(path.join("app")).unwrap(), "#!x");
    assert_eq!(
        fs::read_to_string(path.join("web/index.html")).unwrap(),
        "<html>"
    );
    for (file, expected) in [
        ("", 0o555),
        ("bin", 0o555),
        ("bin/app", 0o555),
        ("web/index.html", 0o444),
        ("empty", 0o444),
    ] {
        assert_eq!(mode(&path.join(file)), expected, "{file}");
    }
    assert!(path.join("nothing").is_dir());
    world.store.verify(&artifact).unwrap();
    assert_eq!(world.left_in_tmp(), 0);
    assert_eq!(world.store.listing(&artifact).unwrap().digest(), artifact);
}

#[test]
fn names_equal_content_alike() {
    let world = World::new();
    for name in ["one", "two"] {
        write(&world.source(name).join("a/b"), "same", 0o644);
    }
    write(&world.source("three").join("a/b"), "same", 0o755);
    let add = |name: &str| world.store.add_local(&world.source(name)).unwrap();
    assert_eq!(add("one"), add("two"));
    assert_ne!(
        add("one"),
        add("three"),
        "whether it may be run is part of it"
    );
    let plain = world.store.path(&add("one")).unwrap().join("a/b");
    let executable = world.store.path(&add("three")).unwrap().join("a/b");
    assert_eq!((mode(&plain), mode(&executable)), (0o444, 0o555));
    assert_eq!(world.blobs(), 1);
    // A single file is a tree of that file.
    let single = world
        .store
        .add_local(&world.source("one").join("a/b"))
        .unwrap();
    assert_eq!(
        fs::read_to_string(world.store.path(&single).unwrap().join("b")).unwrap(),
        "same"
    );
}

#[test]
fn leaves_out_what_the_ignore_file_says() {
    let world = World::new();
    let source = world.source("source");
    write(
        &source.join(".landfastignore"),
        "*.log\nnode_modules/\n",
        0o644,
    );
    write(&source.join("app"), "a", 0o755);
    write(&source.join("debug.log"), "b", 0o644);
    write(&source.join("node_modules/x/y"), "c", 0o644);
    let listing = scan(&source).unwrap();
    let paths: Vec<_> = listing
        .entries
        .iter()
        .map(|entry| entry.path.as_str())
        .collect();
    assert_eq!(paths, ["app"]);
}

#[test]
fn refuses_what_cannot_be_run_from_elsewhere() {
    let world = World::new();
    let outside = world.source("outside");
    symlink("/etc/passwd", outside.join("link")).unwrap();
    let error = world.store.add_local(&outside).unwrap_err();
    assert!(
        matches!(error, StoreError::Tree(TreeError::LinkLeaves { .. })),
        "{error}"
    );
    let special = world.source("special");
    let _socket = std::os::unix::net::UnixListener::bind(special.join("socket")).unwrap();
    let error = world.store.add_local(&special).unwrap_err();
    assert!(matches!(error, StoreError::Special(_)), "{error}");
    let error = world.store.add_local(&world.source("empty")).unwrap_err();
    assert!(
        matches!(error, StoreError::Tree(TreeError::Empty)),
        "{error}"
    );
    let error = world
        .store
        .add_local(&world.folder.path().join("nowhere"))
        .unwrap_err();
    assert!(
        matches!(error, StoreError::Io { doing: "find", .. }),
        "{error}"
    );
}

#[test]
fn resumes_an_upload_that_was_cut() {
    let world = World::new();
    let content = b"0123456789".as_slice();
    let digest = Digest::of(content);
    assert_eq!(world.store.missing(&[digest, digest]), [(digest, 0)]);
    world.store.append(&digest, 0, &content[..4]).unwrap();
    // As after a restart.
    let store = Store::open(world.folder.path().join("store")).unwrap();
    assert_eq!(store.missing(&[digest]), [(digest, 4)]);
    let error = store.append(&digest, 0, &content[..4]).unwrap_err();
    assert!(
        matches!(
            error,
            StoreError::Offset {
                expected: 4,
                offset: 0,
                ..
            }
        ),
        "{error}"
    );
    let listing = TreeListing {
        entries: vec![file("a", content)],
    };
    let error = store.commit(&listing).unwrap_err();
    assert!(
        matches!(&error, StoreError::BlobsMissing(missing) if missing == &[digest]),
        "{error}"
    );
    store.append(&digest, 4, &content[4..]).unwrap();
    store.finish(&digest).unwrap();
    store.finish(&digest).unwrap();
    assert_eq!(store.missing(&[digest]), []);
    store.append(&digest, 0, b"late").unwrap();
    let artifact = store.commit(&listing).unwrap();
    assert_eq!(store.commit(&listing).unwrap(), artifact);
    assert_eq!(
        fs::read(store.path(&artifact).unwrap().join("a")).unwrap(),
        content
    );
    // Nothing at all is content as well.
    store.finish(&Digest::of(b"")).unwrap();
    assert_eq!(store.missing(&[Digest::of(b"")]), []);
}

#[test]
fn drops_an_upload_that_is_not_what_it_is_called() {
    let world = World::new();
    let digest = Digest::of(b"right");
    world.store.append(&digest, 0, b"wrong").unwrap();
    let error = world.store.finish(&digest).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    assert_eq!(world.store.missing(&[digest]), [(digest, 0)]);
    assert_eq!(world.blobs(), 0);
}

#[test]
fn refuses_listings_that_lie() {
    let world = World::new();
    world.store.append(&Digest::of(b"x"), 0, b"x").unwrap();
    world.store.finish(&Digest::of(b"x")).unwrap();
    for path in ["../escape", "/absolute", "a/../../b"] {
        let listing = TreeListing {
            entries: vec![file(path, b"x")],
        };
        let error = world.store.commit(&listing).unwrap_err();
        assert!(
            matches!(error, StoreError::Tree(TreeError::Path(_))),
            "{error}"
        );
    }
    let mut lies = file("a", b"x");
    lies.kind = EntryKind::File {
        executable: false,
        size: 2,
        digest: Digest::of(b"x"),
    };
    let error = world
        .store
        .commit(&TreeListing {
            entries: vec![lies],
        })
        .unwrap_err();
    assert!(
        matches!(
            error,
            StoreError::SizeDiffers {
                listed: 2,
                actual: 1,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(world.left_in_tmp(), 0);
}

#[test]
fn tells_when_an_artifact_was_changed_on_disk() {
    let world = World::new();
    write(&world.source("source").join("app"), "good", 0o755);
    let artifact = world.store.add_local(&world.source("source")).unwrap();
    let app = world.store.path(&artifact).unwrap().join("app");
    fs::set_permissions(&app, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(&app, "evil").unwrap();
    let error = world.store.verify(&artifact).unwrap_err();
    assert!(matches!(error, StoreError::Changed { .. }), "{error}");
    let error = world.store.verify(&Digest::of(b"none")).unwrap_err();
    assert!(matches!(error, StoreError::NoArtifact(_)), "{error}");
}

#[test]
fn collects_what_nobody_refers_to() {
    let world = World::new();
    let add = |name: &str, own: &str| {
        write(&world.source(name).join("shared"), "shared", 0o644);
        write(&world.source(name).join("deep/own"), own, 0o644);
        world.store.add_local(&world.source(name)).unwrap()
    };
    let (old, kept) = (add("old", "old"), add("kept", "kept"));
    world
        .store
        .append(&Digest::of(b"partial"), 0, b"par")
        .unwrap();
    world
        .store
        .append(&Digest::of(b"loose"), 0, b"loose")
        .unwrap();
    world.store.finish(&Digest::of(b"loose")).unwrap();
    let keep = BTreeSet::from([kept]);
    // Everything is young: it may belong to a deploy that is just being made.
    assert_eq!(world.store.collect(&keep).unwrap(), Default::default());
    assert!(world.store.path(&old).is_some());
    let store = Store::open(world.folder.path().join("store")).unwrap();
    let store = store.keep_unreferenced_for(Duration::ZERO);
    let collected = store.collect(&keep).unwrap();
    assert_eq!(
        (collected.artifacts, collected.blobs, collected.partials),
        (1, 2, 1)
    );
    assert_eq!(collected.bytes, 3 + 5 + 3);
    assert_eq!(store.path(&old), None);
    store.verify(&kept).unwrap();
    assert_eq!(world.blobs(), 2);
    assert_eq!(world.left_in_tmp(), 0);
    // What was collected can come back.
    assert_eq!(add("old", "old"), old);
    store.verify(&old).unwrap();
}

#[test]
fn leaves_nothing_half_after_a_crash() {
    let world = World::new();
    let root = world.folder.path().join("store");
    write(&world.source("source").join("deep/app"), "app", 0o755);
    let artifact = world.store.add_local(&world.source("source")).unwrap();
    // A crash while an artifact was built, one between its listing and itself, and one of a collection.
    write(&root.join("tmp/build-abc/deep/app"), "ap", 0o444);
    fs::set_permissions(
        root.join("tmp/build-abc/deep"),
        fs::Permissions::from_mode(0o555),
    )
    .unwrap();
    write(&root.join("tmp/.tmpXYZ"), "half a blob", 0o600);
    fs::set_permissions(
        root.join("artifacts").join(artifact.to_string()),
        fs::Permissions::from_mode(0o755),
    )
    .unwrap();
    fs::rename(
        root.join("artifacts").join(artifact.to_string()),
        root.join("tmp/gone-x"),
    )
    .unwrap();
    let store = Store::open(&root).unwrap();
    assert_eq!(world.left_in_tmp(), 0);
    assert_eq!(store.path(&artifact), None);
    let listing = store.listing(&artifact).unwrap();
    assert_eq!(
        store.commit(&listing).unwrap(),
        artifact,
        "its blobs are still here"
    );
    store.verify(&artifact).unwrap();
}

/// A real full disk: a tiny file system in memory, where this test may mount one.
#[test]
fn says_plainly_that_the_disk_is_full() {
    let world = World::new();
    let tiny = world.source("tiny");
    if !mount_tiny(&tiny) {
        println!("not allowed to mount: skipped");
        return;
    }
    let store = Store::open(tiny.join("store")).unwrap();
    let source = world.source("source");
    write(&source.join("big"), &"x".repeat(4 << 20), 0o644);
    let result = store.add_local(&source);
    let left = fs::read_dir(tiny.join("store/tmp")).unwrap().count();
    let big = vec![b'x'; 4 << 20];
    let digest = Digest::of(&big);
    let upload = store.append(&digest, 0, &big);
    let resumes_at = store.missing(&[digest])[0].1;
    drop(store);
    unmount(&tiny);
    let error = result.unwrap_err();
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    assert_eq!(left, 0, "nothing half is left");
    assert!(matches!(upload.unwrap_err(), StoreError::Full { .. }));
    assert!(
        resumes_at > 0 && resumes_at < big.len() as u64,
        "the upload goes on where it stopped"
    );
}

#[expect(clippy::disallowed_methods, reason = "mounting is a program's work")]
fn system(program: &str, arguments: &[&str]) -> bool {
    let status = std::process::Command::new(program).args(arguments).status();
    status.is_ok_and(|status| status.success())
}

fn mount_tiny(path: &Path) -> bool {
    system(
        "mount",
        &[
            "-t",
            "tmpfs",
            "-o",
            "size=1m",
            "tmpfs",
            path.to_str().unwrap(),
        ],
    )
}

fn unmount(path: &Path) {
    assert!(system("umount", &[path.to_str().unwrap()]));
}
