//! The last good routes on disk: written whole, synced, renamed, so that a proxy that starts without the
//! server serves what the last one served.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use landfast_routing::snapshot::Snapshot;

/// Why routes could not be kept.
#[derive(Debug, thiserror::Error)]
#[error("failed to write the routes to `{path}`")]
pub(crate) struct SaveError {
    path: PathBuf,
    source: io::Error,
}

/// Writes a snapshot so that either it or the one before is found after a crash.
pub(crate) fn save(path: &Path, snapshot: &Snapshot) -> Result<(), SaveError> {
    try_save(path, snapshot).map_err(|source| SaveError {
        path: path.to_owned(),
        source,
    })
}

fn try_save(path: &Path, snapshot: &Snapshot) -> io::Result<()> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let temporary = path.with_extension("json.new");
    let mut options = File::options();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(&serde_json::to_vec(snapshot)?)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(folder)?.sync_all()
}

/// Reads what another worker keeps, each time it has kept something else.
#[derive(Debug)]
pub(crate) struct Watch {
    path: PathBuf,
    seen: Option<(u64, u64, i64, i64)>,
}

impl Watch {
    pub(crate) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            seen: None,
        }
    }

    /// What was kept since the last look, if it can be read.
    pub(crate) fn news(&mut self) -> Option<Snapshot> {
        // Each save is another file under the same name.
        let found = fs::metadata(&self.path).ok()?;
        let stamp = (found.ino(), found.len(), found.mtime(), found.mtime_nsec());
        if self.seen == Some(stamp) {
            return None;
        }
        let snapshot = serde_json::from_slice(&fs::read(&self.path).ok()?).ok()?;
        // Looked at before it was read: what came in between is read again the next time.
        self.seen = Some(stamp);
        Some(snapshot)
    }
}

/// Reads the routes back. A file that cannot be read is set aside, so that the proxy starts empty, says so,
/// and nobody overwrites what may still tell what happened.
pub(crate) fn load(path: &Path) -> Option<Snapshot> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::error!(path = %path.display(), %error, "failed to read the last routes; starting without any until the server sends them");
            return None;
        }
    };
    match serde_json::from_slice(&bytes) {
        Ok(snapshot) => Some(snapshot),
        Err(error) => {
            let aside = path.with_extension("json.corrupt");
            let moved = fs::rename(path, &aside);
            tracing::error!(
                path = %path.display(), %error, set_aside = %aside.display(), moved = moved.is_ok(),
                "the last routes are corrupt; starting without any until the server sends them"
            );
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use landfast_types::{Fence, Generation};

    use super::*;

    #[test]
    fn reads_back_what_it_wrote_and_sets_aside_what_is_corrupt() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("proxy/routes.json");
        assert_eq!(load(&path), None);
        let fence = Fence {
            generation: Generation(2),
            revision: 3,
        };
        let snapshot = Snapshot {
            version: 1,
            fence,
            ..Snapshot::default()
        };
        save(&path, &snapshot).expect("a writable folder");
        assert_eq!(load(&path).as_ref(), Some(&snapshot));
        let mut watch = Watch::new(&path);
        assert_eq!(watch.news().as_ref(), Some(&snapshot));
        assert_eq!(watch.news(), None, "nothing new");
        let newer = Snapshot {
            fence: Fence {
                generation: Generation(2),
                revision: 4,
            },
            ..snapshot
        };
        save(&path, &newer).expect("a writable folder");
        assert_eq!(watch.news(), Some(newer));
        fs::write(&path, b"{\"version\":1,\"fe").expect("a writable file");
        assert_eq!(load(&path), None);
        assert!(!path.exists());
        assert!(path.with_extension("json.corrupt").exists());
    }
}
