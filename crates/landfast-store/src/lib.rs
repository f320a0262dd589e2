//! The artifact store: content under its SHA-256, read-only, whole or not there at all.
//!
//! An artifact is a tree of files, folders and symbolic links; its name is the digest of its [`TreeListing`].
//! Files are kept once as blobs and hard-linked into each artifact that holds them.
//!
//! ```text
//! blobs/ab/<sha256>      whole, verified content
//! trees/<digest>.json    the listing of each artifact
//! artifacts/<digest>/    the artifact, ready to be run from
//! tmp/                   what is being built or uploaded; <sha256>.part is an upload that may be resumed
//! ```
//!
//! Guarantees: a blob has the content its name says; an artifact appears by one rename after everything in it is
//! on disk; a crash leaves only things in `tmp`, which the next [`Store::open`] clears, uploads excepted.
//!
//! It never decides what is still needed (it is told), never follows a link out of a tree, and never changes
//! what it was given to copy. One process opens a store at a time: the server, by its lock on the state folder.
//! A [`Reader`] may look into it from another. All calls block.

mod blobs;
mod build;
mod collect;
mod ignore;
mod reader;
mod scan;
mod tree;

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use landfast_types::Digest;

pub use crate::{
    collect::Collected,
    reader::Reader,
    scan::{IGNORE_FILE, scan},
    tree::{Entry, EntryKind, TreeError, TreeListing},
};

/// Unreferenced content younger than this is left alone: it may belong to a deploy that is just being made.
pub const UNREFERENCED_KEPT: Duration = Duration::from_secs(3_600);

/// Why the store could not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the disk is full: `{}` could not be written", path.display())]
    Full { path: PathBuf, source: io::Error },
    #[error("failed to {doing} `{}`", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("`{}` is neither a file, a folder nor a symbolic link", .0.display())]
    Special(PathBuf),
    #[error("`{}` has a name that is not UTF-8", .0.display())]
    NotUtf8(PathBuf),
    #[error("`{}` changed while it was copied", .0.display())]
    SourceChanged(PathBuf),
    #[error("the tree is not valid")]
    Tree(#[from] TreeError),
    #[error("{} of the artifact's files are not in the store, {:?} first", .0.len(), .0[0])]
    BlobsMissing(Vec<Digest>),
    #[error("`{path}` is listed with {listed} bytes, but its content has {actual}")]
    SizeDiffers {
        path: String,
        listed: u64,
        actual: u64,
    },
    #[error("the upload of {digest:?} goes on at byte {expected}, not at {offset}")]
    Offset {
        digest: Digest,
        expected: u64,
        offset: u64,
    },
    #[error("what was uploaded as {expected:?} is {actual:?}; the upload was dropped")]
    Corrupt { expected: Digest, actual: Digest },
    #[error("artifact {0:?} is not in the store")]
    NoArtifact(Digest),
    #[error("artifact {digest:?} was changed on disk: it now is {actual:?}")]
    Changed { digest: Digest, actual: Digest },
}

impl StoreError {
    /// Whether the same call may succeed later without anybody changing what is asked.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Full { .. } | Self::Io { .. } | Self::SourceChanged(_) | Self::Corrupt { .. } => {
                true
            }
            Self::BlobsMissing(_) | Self::Offset { .. } => true,
            Self::Special(_)
            | Self::NotUtf8(_)
            | Self::Tree(_)
            | Self::SizeDiffers { .. }
            | Self::NoArtifact(_)
            | Self::Changed { .. } => false,
        }
    }

    /// For `map_err`: what was being done to which path.
    fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| {
            let kind = source.kind();
            if matches!(
                kind,
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            ) {
                return Self::Full { path, source };
            }
            Self::Io {
                doing,
                path,
                source,
            }
        }
    }
}

/// The store in one folder.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    /// Held shared while something is built from blobs, and alone while the unneeded is removed.
    collecting: std::sync::RwLock<()>,
    unreferenced_kept: Duration,
}

impl Store {
    /// Opens the store, making it where it is not there, and clears what a crash left half built.
    ///
    /// # Errors
    /// When its folders cannot be made or cleared.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let root = root.into();
        for folder in ["blobs", "trees", "artifacts", "tmp"] {
            let path = root.join(folder);
            fs::create_dir_all(&path).map_err(StoreError::io("make", &path))?;
        }
        // Instances run inside it, so what it gives out must not depend on the server's working folder.
        let root = fs::canonicalize(&root).map_err(StoreError::io("find", &root))?;
        let collecting = std::sync::RwLock::new(());
        let store = Self {
            root,
            collecting,
            unreferenced_kept: UNREFERENCED_KEPT,
        };
        store.clear_half_built()?;
        Ok(store)
    }

    /// The same store, with another age from which on unreferenced content is removed.
    #[must_use]
    pub fn keep_unreferenced_for(mut self, age: Duration) -> Self {
        self.unreferenced_kept = age;
        self
    }

    /// The folder of the store.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of an artifact to run from, when it is here.
    pub fn path(&self, artifact: &Digest) -> Option<PathBuf> {
        let path = self.artifact_path(artifact);
        path.is_dir().then_some(path)
    }

    /// What an artifact holds.
    ///
    /// # Errors
    /// When it is not here or its listing cannot be read.
    pub fn listing(&self, artifact: &Digest) -> Result<TreeListing, StoreError> {
        let path = self.tree_path(artifact);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StoreError::NoArtifact(*artifact));
            }
            Err(error) => return Err(StoreError::io("read", &path)(error)),
        };
        let listing = serde_json::from_slice(&bytes).map_err(io::Error::other);
        listing.map_err(StoreError::io("understand", &path))
    }

    /// Reads a whole artifact again and compares it with its name.
    ///
    /// # Errors
    /// [`StoreError::Changed`] when something on disk is not what was stored.
    pub fn verify(&self, artifact: &Digest) -> Result<(), StoreError> {
        let path = self
            .path(artifact)
            .ok_or(StoreError::NoArtifact(*artifact))?;
        let actual = scan::scan_as_is(&path)?.digest();
        if actual != *artifact {
            return Err(StoreError::Changed {
                digest: *artifact,
                actual,
            });
        }
        Ok(())
    }

    fn clear_half_built(&self) -> Result<(), StoreError> {
        let tmp = self.root.join("tmp");
        for entry in fs::read_dir(&tmp).map_err(StoreError::io("read", &tmp))? {
            let path = entry.map_err(StoreError::io("read", &tmp))?.path();
            if path.extension().is_none_or(|extension| extension != "part") {
                build::remove_tree(&path)?;
            }
        }
        Ok(())
    }

    fn artifact_path(&self, artifact: &Digest) -> PathBuf {
        self.root.join("artifacts").join(artifact.to_string())
    }

    fn tree_path(&self, artifact: &Digest) -> PathBuf {
        tree_path(&self.root, artifact)
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        blob_path(&self.root, digest)
    }

    fn partial_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("tmp").join(format!("{digest}.part"))
    }
}

fn tree_path(root: &Path, artifact: &Digest) -> PathBuf {
    root.join("trees").join(format!("{artifact}.json"))
}

fn blob_path(root: &Path, digest: &Digest) -> PathBuf {
    let name = digest.to_string();
    root.join("blobs").join(&name[..2]).join(name)
}

/// Makes a rename in this folder survive a loss of power.
fn sync_folder(folder: &Path) -> Result<(), StoreError> {
    let synced = fs::File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(StoreError::io("sync", folder))
}
