//! Reading a file or folder as a tree.

use std::{
    fs,
    io::{self, Read as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use landfast_types::{Digest, Hasher};

use crate::{
    StoreError,
    ignore::Ignore,
    tree::{Entry, EntryKind, TreeListing},
};

/// In the top folder: which paths are left out.
pub const IGNORE_FILE: &str = ".landfastignore";

/// Lists a file or folder as an artifact. A file becomes a tree of that one file; a folder is taken as it is, but
/// for what its `.landfastignore` leaves out.
///
/// # Errors
/// When something cannot be read, is no file, folder or link, or a link leaves the tree.
pub fn scan(path: &Path) -> Result<TreeListing, StoreError> {
    let metadata = fs::metadata(path).map_err(StoreError::io("find", path))?;
    if metadata.is_dir() {
        return walk(path, &read_ignore(path)?);
    }
    if !metadata.is_file() {
        return Err(StoreError::Special(path.to_owned()));
    }
    // The name that was asked for, even when it is a link to the file.
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| StoreError::NotUtf8(path.to_owned()))?;
    let entry = Entry {
        path: name.to_owned(),
        kind: file(path, &metadata)?,
    };
    Ok(TreeListing::new(vec![entry])?)
}

/// Lists a folder with everything in it.
pub(crate) fn scan_as_is(folder: &Path) -> Result<TreeListing, StoreError> {
    walk(folder, &Ignore::default())
}

/// Where an entry of a scanned path lies.
pub(crate) fn source_of(scanned: &Path, entry: &Entry) -> PathBuf {
    if scanned.is_dir() {
        scanned.join(&entry.path)
    } else {
        scanned.to_owned()
    }
}

/// Hashes a reader to its end.
pub(crate) fn hash(reader: &mut impl io::Read) -> io::Result<(Digest, u64)> {
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; 256 << 10];
    let mut size = 0;
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok((hasher.finish(), size)),
            Ok(count) => {
                hasher.update(&buffer[..count]);
                size += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn read_ignore(folder: &Path) -> Result<Ignore, StoreError> {
    let path = folder.join(IGNORE_FILE);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Ignore::parse(&text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Ignore::default()),
        Err(error) => Err(StoreError::io("read", &path)(error)),
    }
}

fn walk(root: &Path, ignore: &Ignore) -> Result<TreeListing, StoreError> {
    let mut entries = Vec::new();
    let mut folders = vec![(root.to_owned(), String::new())];
    while let Some((folder, prefix)) = folders.pop() {
        for found in fs::read_dir(&folder).map_err(StoreError::io("read", &folder))? {
            let found = found.map_err(StoreError::io("read", &folder))?;
            let source = found.path();
            let name = found.file_name();
            let name = name
                .to_str()
                .ok_or_else(|| StoreError::NotUtf8(source.clone()))?;
            let path = format!("{prefix}{name}");
            // Of the entry itself, never of what a link leads to.
            let metadata = found.metadata().map_err(StoreError::io("find", &source))?;
            if path == IGNORE_FILE || ignore.leaves_out(&path, metadata.is_dir()) {
                continue;
            }
            let kind = if metadata.is_dir() {
                folders.push((source, format!("{path}/")));
                EntryKind::Folder
            } else if metadata.is_file() {
                file(&source, &metadata)?
            } else if metadata.is_symlink() {
                let target = fs::read_link(&source).map_err(StoreError::io("read", &source))?;
                let target = target.into_os_string().into_string();
                EntryKind::Symlink {
                    target: target.map_err(|_| StoreError::NotUtf8(source))?,
                }
            } else {
                return Err(StoreError::Special(source));
            };
            entries.push(Entry { path, kind });
        }
    }
    Ok(TreeListing::new(entries)?)
}

fn file(path: &Path, metadata: &fs::Metadata) -> Result<EntryKind, StoreError> {
    let mut file = fs::File::open(path).map_err(StoreError::io("open", path))?;
    let (digest, size) = hash(&mut file.by_ref()).map_err(StoreError::io("read", path))?;
    let executable = metadata.permissions().mode() & 0o111 != 0;
    Ok(EntryKind::File {
        executable,
        size,
        digest,
    })
}
