//! The way back without Landfast: `docs/restore-by-hand.py` on snapshots.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::{
    fs,
    os::unix::{
        ffi::OsStringExt as _,
        fs::{MetadataExt as _, PermissionsExt as _, symlink},
    },
    path::{Path, PathBuf},
    process::{Command, Output},
};

use common::{World, noise, rename, rewritten};
use landfast_backup_files::{Entry, EntryKind, RawPath};
use rusqlite::Connection;

#[expect(clippy::disallowed_methods, reason = "the script, by argv")]
fn by_hand(world: &World, arguments: &[&str]) -> Output {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/restore-by-hand.py");
    Command::new("/usr/bin/python3")
        .arg(script)
        .arg(world.folder.path().join("repository"))
        .arg(world.folder.path().join("backup.key"))
        .args(arguments)
        .output()
        .unwrap()
}

fn ok(world: &World, arguments: &[&str]) -> String {
    let output = by_hand(world, arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Everything below a folder that a restore is to bring back, in order.
fn seen(root: &Path) -> Vec<(PathBuf, u32, u64, i64, i64, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let about = fs::symlink_metadata(&path).unwrap();
            let content = match about.file_type() {
                kind if kind.is_symlink() => {
                    fs::read_link(&path).unwrap().into_os_string().into_vec()
                }
                kind if kind.is_file() => fs::read(&path).unwrap(),
                _ => {
                    folders.push(path.clone());
                    Vec::new()
                }
            };
            let mode = match about.file_type().is_symlink() {
                true => 0,
                false => about.permissions().mode(),
            };
            let links = if about.is_file() { about.nlink() } else { 0 };
            let below = path.strip_prefix(root).unwrap().to_owned();
            found.push((
                below,
                mode,
                links,
                about.mtime(),
                about.mtime_nsec(),
                content,
            ));
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn a_snapshot_comes_back_without_landfast() {
    let world = World::new().await;
    world.write("a/photo", noise(7, 400_000));
    world.write("a/b/empty", "");
    world.write("notes.txt", "first");
    let tree = world.tree();
    let odd = std::ffi::OsString::from_vec(b"a/odd\\name\xff \xc3\xa4".to_vec());
    fs::write(tree.join(odd), "odd").unwrap();
    fs::hard_link(tree.join("notes.txt"), tree.join("a/same")).unwrap();
    symlink("../elsewhere", tree.join("a/link")).unwrap();
    let database = Connection::open(tree.join("app.db")).unwrap();
    database
        .execute_batch("CREATE TABLE t (n); INSERT INTO t VALUES (1), (2)")
        .unwrap();
    drop(database);
    fs::set_permissions(tree.join("a/photo"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::set_permissions(tree.join("a/b"), fs::Permissions::from_mode(0o500)).unwrap();
    let first = world.snapshot().await;
    // What refers to pages of the one before.
    world.write("later.txt", "second");
    let second = world.snapshot().await;
    assert!(second.parent.is_some());

    let series = world.series.name();
    assert_eq!(ok(&world, &["names"]).trim(), series);
    let listed = ok(&world, &[series, "list"]);
    let ids: Vec<_> = listed
        .lines()
        .map(|line| line.split(' ').next().unwrap().to_owned())
        .collect();
    assert_eq!(ids, [first.id.to_string(), second.id.to_string()]);
    let to = world.folder.path().join("by-hand");
    let said = ok(&world, &[series, "tree", &ids[1], to.to_str().unwrap()]);
    assert!(said.contains("bytes, as of"), "{said}");
    // The same as what Landfast itself brings back.
    let restored = world.restore().await;
    assert_eq!(seen(&to), seen(&restored.folder));
    let copy = Connection::open(to.join("app.db")).unwrap();
    let whole: String = copy
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(whole, "ok");
    let earlier = world.folder.path().join("earlier");
    ok(
        &world,
        &[series, "tree", &ids[0], earlier.to_str().unwrap()],
    );
    assert!(!earlier.join("later.txt").exists() && earlier.join("a/same").exists());

    // Nothing is overwritten, and what is damaged is not taken for a backup.
    assert!(
        !by_hand(&world, &[series, "tree", &ids[0], to.to_str().unwrap()])
            .status
            .success()
    );
    let packs = common::files(&world.objects().join("packs"));
    let pack = packs
        .iter()
        .max_by_key(|path| fs::metadata(path).unwrap().len());
    let pack = pack.unwrap();
    let mut bytes = fs::read(pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(pack, bytes).unwrap();
    let to = world.folder.path().join("damaged");
    assert!(
        !by_hand(&world, &[series, "tree", &ids[1], to.to_str().unwrap()])
            .status
            .success()
    );
    // The test's folder is removed.
    for root in [
        world.tree(),
        earlier,
        restored.folder,
        world.folder.path().join("by-hand"),
    ] {
        fs::set_permissions(root.join("a/b"), fs::Permissions::from_mode(0o700)).unwrap();
    }
}

/// By somebody who has the key, for whoever restores as root.
#[tokio::test]
async fn a_hostile_snapshot_reaches_nothing_outside_by_hand() {
    type Change = fn(&mut Vec<Entry>, &Path);
    fn linked(entries: &mut Vec<Entry>, path: &str, to: impl Into<Vec<u8>>) {
        let kind = EntryKind::HardLink {
            to: RawPath(to.into()),
        };
        let path = RawPath(path.into());
        let like = entries[0].clone();
        entries.push(Entry { path, kind, ..like });
    }
    fn outside(world: &Path) -> Vec<u8> {
        world.join("victim").into_os_string().into_vec()
    }
    let changes: [(Change, &str); 7] = [
        (
            |entries, world| linked(entries, "hard", outside(world)),
            "the same as no file",
        ),
        (
            |entries, _| linked(entries, "hard", "../victim"),
            "the same as no file",
        ),
        // The link leads to it, and a further name of a link is a link.
        (
            |entries, _| linked(entries, "hard", "link"),
            "the same as no file",
        ),
        (|entries, _| linked(entries, "link", "file"), "twice"),
        (
            |entries, world| {
                let to = String::from_utf8(outside(world)).unwrap();
                rename(entries, "file", &format!("{to}.new"));
            },
            "in no folder",
        ),
        // One part, so that its parent is the folder itself.
        (
            |entries, _| rename(entries, "file", "/landfast-escaped"),
            "in no folder",
        ),
        (
            |entries, _| rename(entries, "file", "link/escaped"),
            "in no folder",
        ),
    ];
    for (number, (change, expected)) in changes.into_iter().enumerate() {
        let world = World::new().await;
        let victim = world.folder.path().join("victim");
        fs::write(&victim, "theirs").unwrap();
        fs::set_permissions(&victim, fs::Permissions::from_mode(0o600)).unwrap();
        world.write("file", "words");
        symlink(&victim, world.tree().join("link")).unwrap();
        let taken = world.snapshot().await;
        rewritten(&world, |entries| change(entries, world.folder.path())).await;
        let about = || {
            let about = fs::metadata(&victim).unwrap();
            (about.mode(), about.uid(), about.nlink(), about.mtime_nsec())
        };
        let before = about();
        let to = world.folder.path().join("by-hand");
        let series = world.series.name();
        let tree = [series, "tree", taken.id.as_str(), to.to_str().unwrap()];
        let output = by_hand(&world, &tree);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && said.contains(expected),
            "{number}: {said}"
        );
        assert_eq!(
            (about(), fs::read(&victim).unwrap()),
            (before, b"theirs".to_vec())
        );
        assert!(!Path::new("/landfast-escaped").exists());
    }
}
