//! A look into the store from another process: the proxy serves files from it. It only reads, by digest, what was
//! committed, and nothing of it ever changes; what is gone was collected, and is an error.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use landfast_types::Digest;

use crate::{blob_path, tree::TreeListing, tree_path};

/// The store in one folder, for reading. The server may change it at the same time.
#[derive(Debug, Clone)]
pub struct Reader {
    root: PathBuf,
}

impl Reader {
    /// Looks at the store in this folder. Nothing is touched yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// What an artifact holds.
    ///
    /// # Errors
    /// When it is not here or its listing cannot be read.
    pub fn listing(&self, artifact: &Digest) -> io::Result<TreeListing> {
        let bytes = std::fs::read(tree_path(&self.root, artifact))?;
        serde_json::from_slice(&bytes).map_err(io::Error::other)
    }

    /// Opens content by its digest.
    ///
    /// # Errors
    /// When it is not here or cannot be opened.
    pub fn open(&self, content: &Digest) -> io::Result<File> {
        File::open(blob_path(&self.root, content))
    }

    /// The folder looked at.
    pub fn root(&self) -> &Path {
        &self.root
    }
}
