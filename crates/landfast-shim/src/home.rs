//! The shim's own folder: its lock, its socket, and what happens when somebody removes them.
//!
//! Run folders vanish under running processes: a session manager empties a user's when the last session ends, an
//! operator cleans up too much. An instance that no server can find would go on beside the one that replaces it,
//! so the shim makes its folder anew, and where it cannot, the instance must end. It looks every few seconds:
//! inotify would tell sooner, but a user has 128 of those, and a host may have more shims than that.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::{
        fs::{DirBuilderExt as _, MetadataExt as _},
        net::UnixListener,
    },
    path::PathBuf,
};

use rustix::{fs::FlockOperation, io::Errno};

use crate::{
    clock,
    state::{LOCK_FILE, SOCKET_FILE, STATE_FILE},
};

pub(crate) struct Home {
    folder: PathBuf,
    lock: File,
    pub(crate) listener: UnixListener,
}

/// Why a folder could not be taken.
pub(crate) enum HomeError {
    /// Another shim has or had it: an id is started once, ever.
    Taken,
    Io(&'static str, io::Error),
}

impl HomeError {
    fn io(doing: &'static str) -> impl Fn(io::Error) -> Self {
        move |error| Self::Io(doing, error)
    }
}

impl Home {
    /// Takes a folder that exists and was never used. The working folder is moved there, so that no path of ours is
    /// too long for a socket.
    pub(crate) fn take(folder: PathBuf) -> Result<Self, HomeError> {
        std::env::set_current_dir(&folder).map_err(HomeError::io("enter the run folder"))?;
        let lock = take_lock()?;
        if fs::exists(STATE_FILE).map_err(HomeError::io("look for an earlier state"))? {
            return Err(HomeError::Taken);
        }
        let listener = listen().map_err(HomeError::io("bind the control socket"))?;
        Ok(Self {
            folder,
            lock,
            listener,
        })
    }

    /// Whether a server would find this shim.
    pub(crate) fn is_intact(&self) -> bool {
        let at_path = fs::metadata(self.folder.join(LOCK_FILE));
        let is_ours = at_path.and_then(|found| {
            let ours = self.lock.metadata()?;
            Ok((found.dev(), found.ino()) == (ours.dev(), ours.ino()))
        });
        let exists = |name| self.folder.join(name).exists();
        is_ours.unwrap_or(false) && exists(SOCKET_FILE) && exists(STATE_FILE)
    }

    /// Makes the folder, the lock and the socket again; the state is the caller's to write.
    pub(crate) fn restore(&mut self) -> Result<(), HomeError> {
        let make = DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.folder);
        make.map_err(HomeError::io("make the run folder again"))?;
        std::env::set_current_dir(&self.folder).map_err(HomeError::io("enter the run folder"))?;
        // Closing any descriptor of the lock file would let the lock go, so it is opened only when it is another file.
        let at_path = fs::metadata(LOCK_FILE).and_then(|found| Ok((found, self.lock.metadata()?)));
        if !at_path
            .is_ok_and(|(found, ours)| found.ino() == ours.ino() && found.dev() == ours.dev())
        {
            self.lock = take_lock()?;
        }
        self.listener = listen().map_err(HomeError::io("bind the control socket"))?;
        Ok(())
    }

    /// Removes the whole folder. What cannot be removed is removed by whoever asked for it.
    pub(crate) fn remove(&self) {
        drop(fs::remove_dir_all(&self.folder));
    }
}

fn take_lock() -> Result<File, HomeError> {
    let lock = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(LOCK_FILE);
    let lock = lock.map_err(HomeError::io("open the lock"))?;
    match rustix::fs::fcntl_lock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(Errno::AGAIN | Errno::ACCESS) => Err(HomeError::Taken),
        Err(error) => Err(HomeError::Io("take the lock", error.into())),
    }
}

fn listen() -> io::Result<UnixListener> {
    // A socket of a shim that was killed before it wrote its state.
    drop(fs::remove_file(SOCKET_FILE));
    let listener = UnixListener::bind(SOCKET_FILE)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Leaves a word for whoever looks into the folder; standard error is a file there.
pub(crate) fn note(text: &str) {
    let line = format!("{} {text}\n", clock::wall());
    rustix::io::write(rustix::stdio::stderr(), line.as_bytes()).unwrap_or_default();
}
