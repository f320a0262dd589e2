//! A snapshot of a tree: walked once, read where it changed.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::{Content, EntryKind, FilesError, Series, Snapshot, store::Making, walk::Walk};

const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// What to take a snapshot of.
#[derive(Debug, Clone)]
pub struct SnapshotRequest {
    pub series: Series,
    /// The folder. It may be a link; nothing in it is followed.
    pub root: PathBuf,
    /// A folder that only we may read, where copies of databases lie for a moment. It is emptied.
    pub scratch: PathBuf,
    /// Read every file and store it again, so that no older object is needed. Otherwise what was not touched since the newest
    /// snapshot is referred to unread.
    pub is_full: bool,
}

/// How far a snapshot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotProgress {
    pub files: u64,
    pub bytes: u64,
    pub stored_bytes: u64,
    pub elapsed: Duration,
}

/// Takes a snapshot.
///
/// # Errors
/// [`FilesError`]; nothing that could be chosen exists then. A file that cannot be read is a note, not an error.
pub async fn snapshot(
    request: &SnapshotRequest,
    on_progress: impl Fn(SnapshotProgress) + Send + Sync,
) -> Result<Snapshot, FilesError> {
    // From here on no part of the path is a link, which SQLite is held to as well.
    let root = fs::canonicalize(&request.root);
    let root = root.map_err(FilesError::io("look at", &request.root))?;
    if !root.is_dir() {
        return Err(FilesError::NotAFolder(root));
    }
    let scratch = Scratch::make(&request.scratch)?;
    let making = Making::begin(&request.series, request.is_full).await?;
    let known = making.known().await?;
    let (files, bytes, stored) = (
        Arc::new(AtomicU64::new(0)),
        Arc::new(AtomicU64::new(0)),
        AtomicU64::new(0),
    );
    let walk = Walk::new(root, scratch.0.clone(), known, &files, &bytes);
    let begun = crate::clock::instant();
    let progress = || SnapshotProgress {
        files: files.load(Ordering::Relaxed),
        bytes: bytes.load(Ordering::Relaxed),
        stored_bytes: stored.load(Ordering::Relaxed),
        elapsed: begun.elapsed(),
    };
    let on_stored = |bytes| {
        stored.store(bytes, Ordering::Relaxed);
        on_progress(progress());
    };
    let mut upload = Box::pin(making.upload(move |writer| walk.run(writer), on_stored));
    let mut ticks = tokio::time::interval(PROGRESS_EVERY);
    let uploaded = loop {
        tokio::select! {
            uploaded = &mut upload => break uploaded?,
            _ = ticks.tick() => on_progress(progress()),
        }
    };
    drop(upload);
    on_progress(progress());
    let (mut files, mut folders, mut sqlite) = (0, 0, 0);
    for entry in uploaded.entries() {
        match &entry.kind {
            EntryKind::File { is_sqlite, .. } => {
                files += 1;
                sqlite += u64::from(*is_sqlite);
            }
            EntryKind::Folder => folders += 1,
            EntryKind::Symlink { .. } | EntryKind::HardLink { .. } => files += 1,
        }
    }
    let content = Content::Tree {
        files,
        folders,
        sqlite,
    };
    uploaded.finish(content).await
}

/// Empty and ours alone; gone at the end. What a killed one leaves goes with the next.
struct Scratch(PathBuf);

impl Scratch {
    fn make(folder: &Path) -> Result<Self, FilesError> {
        use std::os::unix::fs::DirBuilderExt as _;
        match fs::remove_dir_all(folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(FilesError::io("empty", folder)(error));
            }
            _ => {}
        }
        let made = fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder);
        made.map_err(FilesError::io("make", folder))?;
        Ok(Self(folder.to_owned()))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, folder = %self.0.display(), "a folder was not removed");
        }
    }
}
