//! Removing what nobody refers to any more.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    time::{Duration, SystemTime},
};

use landfast_types::Digest;

use crate::{
    Store, StoreError,
    build::{remove_tree, set_mode},
};

/// What a collection removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Collected {
    pub artifacts: u64,
    pub blobs: u64,
    /// Uploads that nobody went on with.
    pub partials: u64,
    /// The size of the removed blobs and partial uploads.
    pub bytes: u64,
}

impl Store {
    /// Removes every artifact that is not in `keep`, then all content that no artifact holds, and uploads nobody goes
    /// on with. What is younger than [`crate::UNREFERENCED_KEPT`] stays: it may belong to a deploy being made.
    ///
    /// # Errors
    /// When something cannot be read or removed; what is left is found by the next collection. A kept artifact whose
    /// listing cannot be read stops it: its content would look unneeded.
    pub fn collect(&self, keep: &BTreeSet<Digest>) -> Result<Collected, StoreError> {
        let _alone = self
            .collecting
            .write()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let now = self.file_system_now()?;
        let mut collected = Collected::default();
        let mut needed = BTreeSet::new();
        for (artifact, age) in self.artifacts(now)? {
            if keep.contains(&artifact) || age < self.unreferenced_kept {
                needed.extend(self.listing(&artifact)?.files().map(|(digest, _)| digest));
                continue;
            }
            self.remove_artifact(&artifact)?;
            collected.artifacts += 1;
        }
        for folder in entries(&self.root.join("blobs"))? {
            for blob in entries(&folder)? {
                let digest = name_of(&blob).and_then(|name| name.parse::<Digest>().ok());
                if digest.is_none_or(|digest| needed.contains(&digest)) {
                    continue;
                }
                if let Some(bytes) = self.remove_if_old(&blob, now)? {
                    collected.blobs += 1;
                    collected.bytes += bytes;
                }
            }
        }
        for path in entries(&self.root.join("tmp"))? {
            if path
                .extension()
                .is_some_and(|extension| extension == "part")
                && let Some(bytes) = self.remove_if_old(&path, now)?
            {
                collected.partials += 1;
                collected.bytes += bytes;
            }
        }
        Ok(collected)
    }

    /// All artifacts here, with the age of their listings. A listing without an artifact is a crash's, and counts too.
    fn artifacts(&self, now: SystemTime) -> Result<Vec<(Digest, Duration)>, StoreError> {
        let mut all = Vec::new();
        for path in entries(&self.root.join("trees"))? {
            let name = name_of(&path).and_then(|name| name.strip_suffix(".json"));
            if let Some(artifact) = name.and_then(|name| name.parse().ok()) {
                all.push((artifact, age(&path, now)?));
            }
        }
        Ok(all)
    }

    /// The artifact leaves its place by one rename, so that nobody ever sees half of it.
    fn remove_artifact(&self, artifact: &Digest) -> Result<(), StoreError> {
        let path = self.artifact_path(artifact);
        if path.exists() {
            let leaving = self.root.join("tmp").join(format!("gone-{artifact}"));
            set_mode(&path, 0o755)?;
            fs::rename(&path, &leaving).map_err(StoreError::io("rename", &path))?;
            remove_tree(&leaving)?;
        }
        remove_tree(&self.tree_path(artifact))
    }

    fn remove_if_old(&self, path: &Path, now: SystemTime) -> Result<Option<u64>, StoreError> {
        if age(path, now)? < self.unreferenced_kept {
            return Ok(None);
        }
        let size = fs::metadata(path)
            .map_err(StoreError::io("find", path))?
            .len();
        fs::remove_file(path).map_err(StoreError::io("remove", path))?;
        Ok(Some(size))
    }

    /// The clock that gave the files their times: the file system's own.
    fn file_system_now(&self) -> Result<SystemTime, StoreError> {
        let tmp = self.root.join("tmp");
        let probe = tempfile::NamedTempFile::new_in(&tmp);
        let modified = probe.and_then(|probe| probe.as_file().metadata()?.modified());
        modified.map_err(StoreError::io("write in", &tmp))
    }
}

/// The time since a file was written.
fn age(path: &Path, now: SystemTime) -> Result<Duration, StoreError> {
    let metadata = fs::metadata(path).map_err(StoreError::io("find", path))?;
    let modified = metadata.modified().map_err(StoreError::io("find", path))?;
    Ok(now.duration_since(modified).unwrap_or(Duration::ZERO))
}

fn entries(folder: &Path) -> Result<Vec<std::path::PathBuf>, StoreError> {
    let found = fs::read_dir(folder).map_err(StoreError::io("read", folder))?;
    let paths = found.map(|entry| entry.map(|entry| entry.path()));
    paths
        .collect::<Result<_, _>>()
        .map_err(StoreError::io("read", folder))
}

fn name_of(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()
}
