//! Content by its digest, and uploads that can be resumed.

use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use landfast_types::{Digest, Hasher};
use tempfile::NamedTempFile;

use crate::{Store, StoreError, scan, sync_folder};

impl Store {
    /// Which of these are not here, each with the bytes of it that a broken upload already left.
    pub fn missing(&self, digests: &[Digest]) -> Vec<(Digest, u64)> {
        let wanted: std::collections::BTreeSet<_> = digests.iter().collect();
        let absent = wanted
            .into_iter()
            .filter(|digest| !self.blob_path(digest).exists());
        absent
            .map(|digest| (*digest, self.uploaded(digest)))
            .collect()
    }

    /// Adds the next piece of an upload. Content that is already here needs no more: the piece is dropped.
    ///
    /// # Errors
    /// [`StoreError::Offset`] when it does not join on; it names where to go on.
    pub fn append(&self, digest: &Digest, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        if self.blob_path(digest).exists() {
            return Ok(());
        }
        let path = self.partial_path(digest);
        let expected = self.uploaded(digest);
        if offset != expected {
            return Err(StoreError::Offset {
                digest: *digest,
                expected,
                offset,
            });
        }
        let file = File::options().create(true).append(true).open(&path);
        let mut file = file.map_err(StoreError::io("open", &path))?;
        file.write_all(bytes).map_err(|error| {
            // Whatever did fit is kept: its size says where to go on.
            StoreError::io("write", &path)(error)
        })
    }

    /// Ends an upload: what came must be what it is called.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when it is not; the upload is dropped and starts anew.
    pub fn finish(&self, digest: &Digest) -> Result<(), StoreError> {
        let blob = self.blob_path(digest);
        if blob.exists() {
            return Ok(());
        }
        let path = self.partial_path(digest);
        let mut file = match File::options().read(true).write(true).open(&path) {
            Ok(file) => file,
            // Content of no bytes at all is never appended to.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                File::create_new(&path).map_err(StoreError::io("make", &path))?
            }
            Err(error) => return Err(StoreError::io("open", &path)(error)),
        };
        let (actual, _) = scan::hash(&mut file).map_err(StoreError::io("read", &path))?;
        if actual != *digest {
            fs::remove_file(&path).map_err(StoreError::io("remove", &path))?;
            return Err(StoreError::Corrupt {
                expected: *digest,
                actual,
            });
        }
        self.seal(&file, &path, digest)
    }

    /// Copies a local file in as a blob, unless it is here already.
    pub(crate) fn ingest(&self, source: &Path, digest: &Digest) -> Result<(), StoreError> {
        if self.blob_path(digest).exists() {
            return Ok(());
        }
        let tmp = self.root.join("tmp");
        let mut copy = NamedTempFile::new_in(&tmp).map_err(StoreError::io("write in", &tmp))?;
        let mut original = File::open(source).map_err(StoreError::io("open", source))?;
        let mut hasher = Hasher::default();
        let mut buffer = vec![0; 256 << 10];
        loop {
            let count = original
                .read(&mut buffer)
                .map_err(StoreError::io("read", source))?;
            if count == 0 {
                break;
            }
            hasher.update(&buffer[..count]);
            copy.write_all(&buffer[..count])
                .map_err(StoreError::io("write", copy.path()))?;
        }
        if hasher.finish() != *digest {
            return Err(StoreError::SourceChanged(source.to_owned()));
        }
        self.seal(copy.as_file(), copy.path(), digest)
        // The name in `tmp` is gone by the rename; dropping `copy` finds nothing to remove.
    }

    /// Makes verified content a blob: read-only and on disk before it has its name.
    fn seal(&self, file: &File, path: &Path, digest: &Digest) -> Result<(), StoreError> {
        let blob = self.blob_path(digest);
        let folder = blob
            .parent()
            .expect("a blob's path has a folder before its name");
        let read_only = fs::Permissions::from_mode(0o444);
        file.set_permissions(read_only)
            .map_err(StoreError::io("protect", path))?;
        file.sync_all().map_err(StoreError::io("sync", path))?;
        fs::create_dir_all(folder).map_err(StoreError::io("make", folder))?;
        fs::rename(path, &blob).map_err(StoreError::io("rename", path))?;
        sync_folder(folder)
    }

    /// The size of a blob; `None` when it is not here.
    pub(crate) fn blob_size(&self, digest: &Digest) -> Option<u64> {
        Some(fs::metadata(self.blob_path(digest)).ok()?.len())
    }

    fn uploaded(&self, digest: &Digest) -> u64 {
        fs::metadata(self.partial_path(digest)).map_or(0, |metadata| metadata.len())
    }

    /// Copies a blob under another name, where it cannot be linked.
    pub(crate) fn copy_blob(&self, digest: &Digest, to: &Path) -> Result<(), StoreError> {
        let blob = self.blob_path(digest);
        let mut from = File::open(&blob).map_err(StoreError::io("open", &blob))?;
        from.rewind().map_err(StoreError::io("read", &blob))?;
        let mut copy = File::create_new(to).map_err(StoreError::io("make", to))?;
        io::copy(&mut from, &mut copy).map_err(StoreError::io("write", to))?;
        copy.sync_all().map_err(StoreError::io("sync", to))
    }
}
