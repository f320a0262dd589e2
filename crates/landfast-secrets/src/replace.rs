//! The files of a change of the key.
//!
//! ```text
//! secrets.key                       the old key
//! secrets.key + .next               both open; what is sealed is sealed under `.next`, the rest is re-wrapped
//! secrets.key + .before-<id>        the new key is in its place; the old one is aside
//! ```
//!
//! At every moment the key lies under its own name, and whoever finds a `.next` goes on: that is all a crash leaves.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    Vault,
    key::{KeyError, KeyId},
};

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(suffix);
    PathBuf::from(name)
}

fn next_of(path: &Path) -> PathBuf {
    beside(path, ".next")
}

/// Where the key of this name is put aside.
pub fn aside(path: &Path, old: KeyId) -> PathBuf {
    beside(path, &format!(".before-{old}"))
}

/// Begins, or goes on with, a change of the key in `path`: the vault of the next key, which opens what the old one
/// sealed.
///
/// # Errors
/// As [`Vault::open_key`] and [`Vault::create_key`].
pub fn begin(path: &Path, old: Arc<Vault>) -> Result<Vault, KeyError> {
    let next = Vault::open_or_create_key(&next_of(path))?;
    Ok(next.with_older(old))
}

/// Whether a change was begun and is not at its end.
pub fn is_begun(path: &Path) -> bool {
    next_of(path).exists()
}

/// The vault of a change that was begun and is not at its end; `None` where none is under way.
///
/// # Errors
/// As [`Vault::open_key`].
pub fn begun(path: &Path, old: Arc<Vault>) -> Result<Option<Vault>, KeyError> {
    match Vault::open_key(&next_of(path)) {
        Ok(next) => Ok(Some(next.with_older(old))),
        Err(KeyError::Missing { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Puts the next key in its place, and the old one aside. Nothing may be sealed under the old one any more.
///
/// # Errors
/// [`KeyError::Io`]; it may be done again.
pub fn finish(path: &Path, old: KeyId) -> Result<(), KeyError> {
    let failed = |source| KeyError::Io {
        path: path.to_path_buf(),
        source,
    };
    match fs::hard_link(path, aside(path, old)) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
        Ok(()) | Err(_) => {}
    }
    sync_folder(path).map_err(failed)?;
    fs::rename(next_of(path), path).map_err(failed)?;
    sync_folder(path).map_err(failed)
}

/// Removes the keys that were put aside; their names.
///
/// # Errors
/// [`KeyError::Io`].
pub fn forget_aside(path: &Path) -> Result<Vec<PathBuf>, KeyError> {
    let failed = |source| KeyError::Io {
        path: path.to_path_buf(),
        source,
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let prefix = format!("{name}.before-");
    let mut removed = Vec::new();
    for entry in fs::read_dir(folder_of(path)).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            fs::remove_file(entry.path()).map_err(failed)?;
            removed.push(entry.path());
        }
    }
    Ok(removed)
}

fn folder_of(path: &Path) -> &Path {
    let folder = path.parent();
    let folder = folder.filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or(Path::new("."))
}

fn sync_folder(path: &Path) -> io::Result<()> {
    fs::File::open(folder_of(path))?.sync_all()
}
