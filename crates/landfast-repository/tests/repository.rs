//! A repository in a folder and in a bucket: keys, objects, trees, and everything that can be wrong with them.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use landfast_repository::{
    FileSink, Key, Keyring, Parent, Place, Repository, RepositoryError, S3Place, Storage, Tree,
    Uploaded, restore_files, upload_packs,
};
use landfast_testbed::S3;
use landfast_types::Secret;

fn folder_storage(path: &Path) -> Storage {
    Storage::new(&Place::Folder(path.to_owned())).unwrap()
}

fn bucket_storage(s3: &S3, prefix: &str) -> Storage {
    Storage::new(&Place::S3(S3Place {
        bucket: "backups".into(),
        prefix: prefix.into(),
        region: "us-east-1".into(),
        endpoint: Some(s3.endpoint()),
        is_path_style: true,
        authority: None,
        access_key: S3::KEYS.0.into(),
        secret_key: Secret::new(S3::KEYS.1.into()),
    }))
    .unwrap()
}

fn keys() -> Arc<Keyring> {
    Arc::new(Keyring::new(Key::generate().unwrap()))
}

/// Bytes that do not compress, the same for the same seed.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(len).collect()
}

async fn store(
    repository: &Repository,
    folder: &str,
    parent: Option<&(Tree, Vec<u8>, Vec<u8>)>,
    files: Vec<(&'static str, Vec<u8>)>,
) -> (Uploaded, (Tree, Vec<u8>, Vec<u8>)) {
    let parent =
        parent.map(|(tree, map, hashes)| Arc::new(Parent::new(tree, map, hashes).unwrap()));
    let fill = move |mut writer: landfast_repository::PageWriter| {
        writer.folder("empty", 0o700);
        for (name, content) in files {
            writer.file(name, 0o600, content.as_slice())?;
        }
        Ok(writer)
    };
    let uploaded = upload_packs(repository, folder, parent, fill, |_| {})
        .await
        .unwrap();
    let written = (
        uploaded.tree.clone(),
        Tree::write_map(&uploaded.maps),
        Tree::write_hashes(&uploaded.maps),
    );
    (uploaded, written)
}

async fn restored(
    repository: &Repository,
    tree: &Tree,
    map: &[u8],
    root: PathBuf,
) -> Result<PathBuf, RepositoryError> {
    fs::create_dir(&root).unwrap();
    let maps = tree.read_map(map).unwrap();
    let mut seen = 0;
    restore_files(
        repository,
        tree,
        &maps,
        &FileSink::new(root.clone()),
        |progress| {
            seen = progress.bytes;
        },
    )
    .await?;
    assert_eq!(seen, tree.bytes());
    Ok(root)
}

#[tokio::test]
async fn a_wrong_key_is_told_from_an_empty_and_a_foreign_place() {
    let s3 = S3::start().unwrap();
    s3.make_bucket("backups").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let foreign = tempfile::tempdir().unwrap();
    fs::write(foreign.path().join("holiday.jpg"), "x").unwrap();
    for storage in [folder_storage(folder.path()), bucket_storage(&s3, "a/b")] {
        let opened = Repository::open(storage.clone(), keys()).await;
        assert!(
            matches!(opened, Err(RepositoryError::Empty { .. })),
            "{opened:?}"
        );
        let right = keys();
        let made = Repository::create(storage.clone(), Arc::clone(&right))
            .await
            .unwrap();
        made.put("x/y", "words").await.unwrap();
        Repository::open(storage.clone(), Arc::clone(&right))
            .await
            .unwrap();
        let opened = Repository::open(storage.clone(), keys()).await;
        assert!(
            matches!(opened, Err(RepositoryError::WrongKey { .. })),
            "{opened:?}"
        );
        let again = Repository::create(storage.clone(), right).await;
        assert!(matches!(again, Err(RepositoryError::AlreadyThere { .. })));
    }
    let opened = Repository::open(folder_storage(foreign.path()), keys()).await;
    assert!(matches!(
        opened,
        Err(RepositoryError::NotARepository { .. })
    ));
    // A bucket that is not there is no empty one.
    let mut gone = bucket_storage(&s3, "");
    drop(s3);
    let opened = Repository::open(gone.clone(), keys()).await;
    assert!(
        matches!(opened, Err(RepositoryError::Unreachable { .. })),
        "{opened:?}"
    );
    let s3 = S3::start().unwrap();
    gone = bucket_storage(&s3, "");
    let opened = Repository::open(gone, keys()).await;
    assert!(
        matches!(opened, Err(RepositoryError::Unreachable { .. })),
        "{opened:?}"
    );
}

#[tokio::test]
async fn any_bit_of_the_mark_is_a_damaged_mark_and_no_other_key() {
    let folder = tempfile::tempdir().unwrap();
    let keys = keys();
    let storage = || folder_storage(folder.path());
    Repository::create(storage(), Arc::clone(&keys))
        .await
        .unwrap();
    let path = folder.path().join("repository");
    let mark = fs::read(&path).unwrap();
    for place in 0..mark.len() {
        let mut bytes = mark.clone();
        bytes[place] ^= 1;
        fs::write(&path, bytes).unwrap();
        let opened = Repository::open(storage(), Arc::clone(&keys)).await;
        assert!(
            matches!(&opened, Err(RepositoryError::Damaged { name, .. }) if name == "repository"),
            "{place}: {opened:?}"
        );
    }
    fs::write(&path, mark).unwrap();
    Repository::open(storage(), keys).await.unwrap();
}

#[tokio::test]
async fn objects_are_listed_in_order_and_others_left_alone() {
    let s3 = S3::start().unwrap();
    s3.make_bucket("backups").unwrap();
    let folder = tempfile::tempdir().unwrap();
    for storage in [folder_storage(folder.path()), bucket_storage(&s3, "here")] {
        let repository = Repository::create(storage, keys()).await.unwrap();
        for name in ["a/wal/2", "a/wal/1", "a/ledger/0", "b/wal/9"] {
            repository.put(name, name.to_owned()).await.unwrap();
        }
        let names = |objects: Vec<landfast_repository::Object>| {
            objects
                .into_iter()
                .map(|object| object.name)
                .collect::<Vec<_>>()
        };
        let wal = repository.list("a/wal").await.unwrap();
        assert_eq!(names(wal), ["a/wal/1", "a/wal/2"]);
        assert_eq!(repository.list("").await.unwrap().len(), 5);
        repository.put("a/wal/1", "other").await.unwrap();
        assert_eq!(repository.get("a/wal/1").await.unwrap(), b"other");
        repository.delete("a/wal/1").await.unwrap();
        repository.delete("a/wal/1").await.unwrap();
        let gone = repository.get("a/wal/1").await;
        assert!(matches!(gone, Err(RepositoryError::Missing { name }) if name == "a/wal/1"));
    }
}

#[tokio::test]
async fn a_tree_comes_back_as_it_was_and_only_changed_pages_are_stored_again() {
    let s3 = S3::start().unwrap();
    s3.make_bucket("backups").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let out = tempfile::tempdir().unwrap();
    for (round, storage) in [folder_storage(folder.path()), bucket_storage(&s3, "")]
        .into_iter()
        .enumerate()
    {
        let repository = Repository::create(storage, keys()).await.unwrap();
        // More than one pack, files shorter than a page, a file that grows and one that goes.
        let big = noise(1, 20 << 20);
        let first = vec![
            ("base/1", big.clone()),
            ("base/short", b"short".to_vec()),
            ("base/none", Vec::new()),
            ("base/grows", noise(2, 100_000)),
            ("base/goes", noise(3, 50_000)),
        ];
        let (uploaded, one) = store(&repository, "packs/1", None, first).await;
        assert_eq!(uploaded.counts.same_bytes, 0);
        assert_eq!(uploaded.tree.packs.len(), 2);
        let mut changed = big.clone();
        for page in [0, 700, 2_559] {
            changed[page * 8_192 + 17] ^= 1;
        }
        let second = vec![
            ("base/1", changed.clone()),
            ("base/short", b"short".to_vec()),
            ("base/none", b"some".to_vec()),
            ("base/grows", noise(2, 120_000)),
        ];
        let (uploaded, two) = store(&repository, "packs/2", Some(&one), second).await;
        // Three pages, the last pages of what grew, and one that is new.
        let new = uploaded.counts.bytes - uploaded.counts.same_bytes;
        assert_eq!(new, 3 * 8_192 + (120_000 - 98_304) + 4);
        assert!(uploaded.stored_bytes < 60_000, "{}", uploaded.stored_bytes);
        let (_, three) = store(
            &repository,
            "packs/3",
            Some(&two),
            vec![("base/1", changed.clone())],
        )
        .await;

        let root = restored(
            &repository,
            &one.0,
            &one.1,
            out.path().join(format!("{round}1")),
        )
        .await
        .unwrap();
        assert!(fs::read(root.join("base/1")).unwrap() == big);
        assert_eq!(fs::read(root.join("base/short")).unwrap(), b"short");
        assert_eq!(fs::read(root.join("base/none")).unwrap(), b"");
        assert!(root.join("empty").is_dir());
        let root = restored(
            &repository,
            &two.0,
            &two.1,
            out.path().join(format!("{round}2")),
        )
        .await
        .unwrap();
        assert!(fs::read(root.join("base/1")).unwrap() == changed);
        assert!(fs::read(root.join("base/grows")).unwrap() == noise(2, 120_000));
        assert!(!root.join("base/goes").exists());
        let root = restored(
            &repository,
            &three.0,
            &three.1,
            out.path().join(format!("{round}3")),
        )
        .await
        .unwrap();
        assert!(fs::read(root.join("base/1")).unwrap() == changed);
    }
}

#[tokio::test]
async fn packs_that_are_left_are_needed_no_longer() {
    let folder = tempfile::tempdir().unwrap();
    let out = tempfile::tempdir().unwrap();
    let repository = Repository::create(folder_storage(folder.path()), keys())
        .await
        .unwrap();
    let first = noise(1, 40 << 20);
    let (_, one) = store(
        &repository,
        "packs/1",
        None,
        vec![("base/1", first.clone())],
    )
    .await;
    assert_eq!(one.0.packs.len(), 3);
    // Three quarters of the first pack change, and one page of the last one.
    let mut second = first.clone();
    let changed = (0..12 << 7).map(|page| page * 8_192).chain([39 << 20]);
    changed.for_each(|at| second[at] ^= 1);
    let (_, two) = store(
        &repository,
        "packs/2",
        Some(&one),
        vec![("base/1", second.clone())],
    )
    .await;
    let mut parent = Parent::new(&two.0, &two.1, &two.2).unwrap();
    let uses = parent.uses();
    let percent: Vec<_> = uses
        .iter()
        .map(|pack| pack.live * 100 / pack.stored)
        .collect();
    assert_eq!(percent, [25, 100, 99, 100], "{uses:?}");
    parent.leave([0]);
    let content = second.clone();
    let fill = move |mut writer: landfast_repository::PageWriter| {
        writer.file("base/1", 0o600, content.as_slice())?;
        Ok(writer)
    };
    let uploaded = upload_packs(&repository, "packs/3", Some(Arc::new(parent)), fill, |_| {})
        .await
        .unwrap();
    // A quarter of a pack was stored again, and nothing but what was in it.
    let again = uploaded.counts.bytes - uploaded.counts.same_bytes;
    assert_eq!(again, 4 << 20);
    let names: Vec<_> = uploaded
        .tree
        .packs
        .iter()
        .map(|pack| pack.name.as_str())
        .collect();
    assert!(!names.contains(&"packs/1/000000"), "{names:?}");
    repository.delete("packs/1/000000").await.unwrap();
    let map = Tree::write_map(&uploaded.maps);
    let root = restored(&repository, &uploaded.tree, &map, out.path().join("3"))
        .await
        .unwrap();
    assert!(fs::read(root.join("base/1")).unwrap() == second);
}

#[tokio::test]
async fn a_pack_that_is_changed_cut_or_gone_is_named_and_restores_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let out = tempfile::tempdir().unwrap();
    let repository = Repository::create(folder_storage(folder.path()), keys())
        .await
        .unwrap();
    let (_, (tree, map, _)) = store(
        &repository,
        "packs/1",
        None,
        vec![("base/1", noise(5, 1 << 20))],
    )
    .await;
    let pack = folder.path().join("packs/1/000000");
    let whole = fs::read(&pack).unwrap();
    repository.check_pack(&tree.packs[0]).await.unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    let mut longer = whole.clone();
    longer.push(0);
    let states = [
        Some(flipped),
        Some(whole[..whole.len() - 1].to_vec()),
        Some(longer),
        None,
    ];
    for (number, state) in states.into_iter().enumerate() {
        match &state {
            Some(bytes) => fs::write(&pack, bytes).unwrap(),
            None => fs::remove_file(&pack).unwrap(),
        }
        let checked = repository.check_pack(&tree.packs[0]).await.unwrap_err();
        assert_eq!(checked.bad_object(), Some("packs/1/000000"), "{checked}");
        let result = restored(
            &repository,
            &tree,
            &map,
            out.path().join(number.to_string()),
        )
        .await;
        // A byte behind the last frame is no part of any file.
        assert_eq!(result.is_err(), number != 2);
    }
}

#[tokio::test]
async fn a_path_never_leads_out_of_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let out = tempfile::tempdir().unwrap();
    let repository = Repository::create(folder_storage(folder.path()), keys())
        .await
        .unwrap();
    for name in ["../out", "/etc/x", "a/../../b"] {
        let (_, (tree, map, _)) =
            store(&repository, "packs/1", None, vec![(name, b"x".to_vec())]).await;
        let root = out.path().join("root");
        fs::create_dir_all(&root).unwrap();
        let maps = tree.read_map(&map).unwrap();
        let result = restore_files(&repository, &tree, &maps, &FileSink::new(root), |_| {}).await;
        assert!(
            matches!(result, Err(RepositoryError::Damaged { .. })),
            "{name}"
        );
    }
}
