//! Building an artifact's folder from blobs.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::Path,
};

use landfast_types::Digest;

use crate::{
    Store, StoreError, scan, sync_folder,
    tree::{EntryKind, TreeListing},
};

const FOLDER_MODE: u32 = 0o555;
const FOLDER_BUILDING_MODE: u32 = 0o755;

impl Store {
    /// Makes an artifact of a listing whose content is all here. Returns its digest; one that exists is left as it is.
    ///
    /// # Errors
    /// [`StoreError::BlobsMissing`] names what must be uploaded first; a listing that could write outside its folder
    /// is refused.
    pub fn commit(&self, listing: &TreeListing) -> Result<Digest, StoreError> {
        listing.check()?;
        let artifact = listing.digest();
        // Poisoned only if another commit panicked, which leaves nothing half done here.
        let _collecting = self
            .collecting
            .read()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        if self.path(&artifact).is_some() && self.tree_path(&artifact).exists() {
            return Ok(artifact);
        }
        self.check_blobs(listing)?;
        let tmp = self.root.join("tmp");
        let building = tempfile::Builder::new().prefix("build-").tempdir_in(&tmp);
        let building = building.map_err(StoreError::io("write in", &tmp))?;
        let result = self.fill(building.path(), listing).and_then(|()| {
            self.write_listing(&artifact, listing)?;
            self.publish(building.path(), &artifact)
        });
        if result.is_err() {
            // Read-only folders inside would stop the removal by `building` itself.
            remove_tree(building.path())?;
        }
        result.map(|()| artifact)
    }

    /// Scans a local file or folder and makes it an artifact.
    ///
    /// # Errors
    /// As [`scan()`](crate::scan()) and [`Store::commit`]; [`StoreError::SourceChanged`] when it is being written to.
    pub fn add_local(&self, path: &Path) -> Result<Digest, StoreError> {
        let listing = scan(path)?;
        for entry in &listing.entries {
            if let EntryKind::File { digest, .. } = &entry.kind {
                self.ingest(&scan::source_of(path, entry), digest)?;
            }
        }
        self.commit(&listing)
    }

    fn check_blobs(&self, listing: &TreeListing) -> Result<(), StoreError> {
        let needed: Vec<_> = listing.files().map(|(digest, _)| digest).collect();
        let missing = self.missing(&needed);
        if !missing.is_empty() {
            return Err(StoreError::BlobsMissing(
                missing.into_iter().map(|(digest, _)| digest).collect(),
            ));
        }
        for entry in &listing.entries {
            if let EntryKind::File { digest, size, .. } = &entry.kind
                && let Some(actual) = self.blob_size(digest)
                && actual != *size
            {
                return Err(StoreError::SizeDiffers {
                    path: entry.path.clone(),
                    listed: *size,
                    actual,
                });
            }
        }
        Ok(())
    }

    fn fill(&self, root: &Path, listing: &TreeListing) -> Result<(), StoreError> {
        let mut folders = Vec::new();
        for entry in &listing.entries {
            let path = root.join(&entry.path);
            match &entry.kind {
                EntryKind::Folder => {
                    fs::create_dir(&path).map_err(StoreError::io("make", &path))?;
                    folders.push(path);
                }
                EntryKind::File {
                    executable, digest, ..
                } => self.place(digest, *executable, &path)?,
                EntryKind::Symlink { target } => {
                    symlink(target, &path).map_err(StoreError::io("make", &path))?;
                }
            }
        }
        for folder in folders.iter().rev() {
            set_mode(folder, FOLDER_MODE)?;
            sync_folder(folder)?;
        }
        sync_folder(root)
    }

    /// Links a blob into the tree. The mode belongs to the file, not to the link: a blob that is already linked with
    /// the other mode is copied instead.
    fn place(&self, digest: &Digest, executable: bool, path: &Path) -> Result<(), StoreError> {
        let blob = self.blob_path(digest);
        let mode = if executable { 0o555 } else { 0o444 };
        let metadata = fs::metadata(&blob).map_err(StoreError::io("find", &blob))?;
        if metadata.nlink() == 1 {
            set_mode(&blob, mode)?;
        } else if metadata.permissions().mode() & 0o777 != mode {
            self.copy_blob(digest, path)?;
            return set_mode(path, mode);
        }
        match fs::hard_link(&blob, path) {
            Ok(()) => Ok(()),
            // Too many links to one file (an empty one, say), or a file system without them.
            Err(error) if is_no_link(&error) => {
                self.copy_blob(digest, path)?;
                set_mode(path, mode)
            }
            Err(error) => Err(StoreError::io("link", path)(error)),
        }
    }

    /// Written before the artifact appears: a listing without an artifact is nothing, an artifact without a listing
    /// would lose its blobs to the next collection.
    fn write_listing(&self, artifact: &Digest, listing: &TreeListing) -> Result<(), StoreError> {
        let path = self.tree_path(artifact);
        let tmp = self.root.join("tmp");
        let trees = self.root.join("trees");
        let file =
            tempfile::NamedTempFile::new_in(&tmp).map_err(StoreError::io("write in", &tmp))?;
        let bytes = serde_json::to_vec(listing).map_err(io::Error::other);
        let bytes = bytes.map_err(StoreError::io("write", &path))?;
        fs::write(file.path(), bytes).map_err(StoreError::io("write", &path))?;
        file.as_file()
            .sync_all()
            .map_err(StoreError::io("sync", &path))?;
        fs::rename(file.path(), &path).map_err(StoreError::io("rename", &path))?;
        sync_folder(&trees)
    }

    fn publish(&self, building: &Path, artifact: &Digest) -> Result<(), StoreError> {
        let path = self.artifact_path(artifact);
        match fs::rename(building, &path) {
            Ok(()) => {}
            // Another commit of the same content was faster; ours is dropped.
            Err(error) if path.is_dir() && is_taken(&error) => return remove_tree(building),
            Err(error) => return Err(StoreError::io("rename", building)(error)),
        }
        // Only now: a folder that is read-only cannot be moved to another parent.
        set_mode(&path, FOLDER_MODE)?;
        sync_folder(&self.root.join("artifacts"))
    }
}

fn is_no_link(error: &io::Error) -> bool {
    use io::ErrorKind::{PermissionDenied, TooManyLinks, Unsupported};
    matches!(error.kind(), TooManyLinks | Unsupported | PermissionDenied)
}

fn is_taken(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists
    )
}

pub(crate) fn set_mode(path: &Path, mode: u32) -> Result<(), StoreError> {
    let permissions = fs::Permissions::from_mode(mode);
    fs::set_permissions(path, permissions).map_err(StoreError::io("set the mode of", path))
}

/// Removes a file, or a folder with read-only folders in it. One that is gone already is no error.
pub(crate) fn remove_tree(path: &Path) -> Result<(), StoreError> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(StoreError::io("find", path)(error)),
    };
    if !metadata.is_dir() {
        return fs::remove_file(path).map_err(StoreError::io("remove", path));
    }
    set_mode(path, FOLDER_BUILDING_MODE)?;
    for entry in fs::read_dir(path).map_err(StoreError::io("read", path))? {
        remove_tree(&entry.map_err(StoreError::io("read", path))?.path())?;
    }
    fs::remove_dir(path).map_err(StoreError::io("remove", path))
}
