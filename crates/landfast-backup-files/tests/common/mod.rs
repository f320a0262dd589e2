//! A tree, a repository in a folder and a series in it, for tests.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file uses its own part"
)]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use landfast_backup_files::{
    Entry, FilesError, RawPath, RestoredFiles, Series, Snapshot, SnapshotRequest, restore, snapshot,
};
use landfast_repository::{Key, Keyring, Place, Repository, Storage};
use landfast_types::Digest;
use tempfile::TempDir;

pub struct World {
    pub folder: TempDir,
    pub series: Series,
    restored: std::sync::atomic::AtomicUsize,
}

impl World {
    pub async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::Folder(folder.path().join("repository"));
        Self::at(folder, place).await
    }

    pub async fn at(folder: TempDir, place: Place) -> Self {
        let key = Key::generate().unwrap();
        key.write(&folder.path().join("backup.key")).unwrap();
        let keys = Arc::new(Keyring::new(key));
        let storage = Storage::new(&place).unwrap();
        let repository = Repository::create(storage, keys).await.unwrap();
        fs::create_dir(folder.path().join("tree")).unwrap();
        Self {
            series: Series::new(repository, "shop/production/_volumes/uploads").unwrap(),
            folder,
            restored: 0.into(),
        }
    }

    pub fn tree(&self) -> PathBuf {
        self.folder.path().join("tree")
    }

    /// Where the objects of the series lie.
    pub fn objects(&self) -> PathBuf {
        let repository = self.folder.path().join("repository");
        repository.join(self.series.name())
    }

    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.tree().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    pub fn request(&self, is_full: bool) -> SnapshotRequest {
        SnapshotRequest {
            series: self.series.clone(),
            root: self.tree(),
            scratch: self.folder.path().join("scratch"),
            is_full,
        }
    }

    pub async fn snapshot(&self) -> Snapshot {
        snapshot(&self.request(false), |_| {}).await.unwrap()
    }

    /// A snapshot, and how many bytes were read for it.
    pub async fn snapshot_reading(&self) -> (Snapshot, u64) {
        let read = std::sync::atomic::AtomicU64::new(0);
        let request = self.request(false);
        let taken = snapshot(&request, |progress| {
            read.fetch_max(progress.bytes, std::sync::atomic::Ordering::Relaxed);
        });
        let taken = taken.await.unwrap();
        (taken, read.into_inner())
    }

    pub async fn try_restore(&self) -> Result<RestoredFiles, FilesError> {
        let number = self
            .restored
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let to = self.folder.path().join(format!("restored{number}"));
        let loaded = self.series.load().await?;
        restore(&self.series, &loaded, None, &to, |_| {}).await
    }

    pub async fn restore(&self) -> RestoredFiles {
        self.try_restore().await.unwrap()
    }
}

/// Bytes that do not compress, the same for the same seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(len).collect()
}

/// All files below a folder.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The entries of the newest snapshot changed by somebody who has the key.
pub async fn rewritten(world: &World, change: impl FnOnce(&mut Vec<Entry>)) {
    let repository = world.series.repository();
    let at = |rest: &str| format!("{}/{rest}", world.series.name());
    let loaded = world.series.load().await.unwrap();
    let mut snapshot = loaded.snapshots.last().unwrap().clone();
    let mut entries = world.series.entries(&snapshot).await.unwrap();
    change(&mut entries);
    let bytes = serde_json::to_vec(&entries).unwrap();
    snapshot.entries = Digest::of(&bytes);
    let part = |part: &str| at(&format!("snapshots/{}/{part}", snapshot.id));
    repository.put(&part("entries"), bytes).await.unwrap();
    let manifest = serde_json::to_vec(&snapshot).unwrap();
    let list = serde_json::json!({
        "format": 1, "next": 9, "snapshots": { snapshot.id.as_str(): Digest::of(&manifest) },
    });
    repository.put(&part("manifest"), manifest).await.unwrap();
    let list = serde_json::to_vec(&list).unwrap();
    repository.put(&at("list"), list).await.unwrap();
}

pub fn rename(entries: &mut [Entry], from: &str, to: &str) {
    let found = entries
        .iter_mut()
        .find(|entry| entry.path.0 == from.as_bytes());
    found.unwrap().path = RawPath(to.as_bytes().to_vec());
}
