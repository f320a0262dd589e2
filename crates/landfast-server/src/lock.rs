//! One server per state folder: an advisory lock that the kernel drops when the process ends, however it ends.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

/// The lock, held as long as this value lives.
#[derive(Debug)]
pub(crate) struct StateLock {
    _file: File,
}

/// Why the state folder is not ours.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("another server (process {holder}) uses the state folder `{}`", .folder.display())]
    Held { folder: PathBuf, holder: String },
    #[error("failed to lock the state folder `{}`", .folder.display())]
    Io { folder: PathBuf, source: io::Error },
}

impl StateLock {
    /// Takes the lock of a state folder.
    pub(crate) fn take(folder: &Path) -> Result<Self, LockError> {
        let error = |source| LockError::Io {
            folder: folder.to_owned(),
            source,
        };
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(folder.join("lock")).map_err(error)?;
        if let Err(errno) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
            if errno != rustix::io::Errno::WOULDBLOCK {
                return Err(error(errno.into()));
            }
            let mut holder = String::new();
            file.read_to_string(&mut holder).map_err(error)?;
            let holder = holder.trim().to_owned();
            return Err(LockError::Held {
                folder: folder.to_owned(),
                holder,
            });
        }
        // For the message above only: the lock itself is the kernel's.
        file.set_len(0).map_err(error)?;
        file.rewind().map_err(error)?;
        writeln!(file, "{}", std::process::id()).map_err(error)?;
        Ok(Self { _file: file })
    }
}
