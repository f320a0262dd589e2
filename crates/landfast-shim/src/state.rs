//! What a shim keeps on disk about its instance: enough to tell how it ended, nothing that is secret.
//!
//! The folder lives in the run folder, which is emptied when the host restarts, so a rename is enough: nothing
//! has to survive a loss of power.

use std::{
    fmt,
    fs::{self, File},
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use landfast_types::{Digest, FenceGuard, InstanceId, Protection, Scope, Timestamp};
use rustix::process::{Flock, FlockType};
use serde::{Deserialize, Serialize};

/// The control socket in a shim's folder.
pub const SOCKET_FILE: &str = "s";
/// Locked by a living shim. A record lock: it cannot be inherited by what the shim starts.
pub const LOCK_FILE: &str = "lock";
/// The [`ShimState`] of a shim's folder.
pub const STATE_FILE: &str = "state.json";

/// The name of an instance's folder under `<run>/i`: short, because socket paths are.
pub fn folder_key(scope: &Scope, instance: &InstanceId) -> String {
    let digest = Digest::of(format!("{scope}/{instance}").as_bytes());
    digest.to_string()[..16].to_owned()
}

/// A process that cannot be mistaken for a later one of the same number: its start time in clock ticks since boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessKey {
    pub pid: u32,
    pub start_ticks: u64,
}

/// How an instance ended, as the shim saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Exit {
    Code {
        code: i32,
    },
    Signal {
        signal: i32,
        core_dumped: bool,
    },
    NotStarted {
        reason: String,
    },
    /// Written by whoever finds a dead shim.
    Unknown,
}

/// An end and its instant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    pub exit: Exit,
    pub at: Timestamp,
    /// The kernel killed it at this memory limit, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out_of_memory: Option<u64>,
}

/// Everything a shim tells about itself and its instance. Holds neither environment nor secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShimState {
    pub scope: Scope,
    pub instance: InstanceId,
    pub argv: Vec<String>,
    pub is_job: bool,
    pub address: Option<SocketAddr>,
    pub started_at: Timestamp,
    /// The boot of the host in which this was started; in any other, nothing of it is left.
    pub boot: String,
    /// The random value of [`crate::MARK_VARIABLE`] in everything the instance starts.
    pub mark: String,
    pub shim: Option<ProcessKey>,
    pub main: Option<ProcessKey>,
    pub fence: FenceGuard,
    pub ended: Option<Ended>,
    /// Lines that were not written because the disk was full or the log folder was gone.
    #[serde(default)]
    pub log_lines_dropped: u64,
    /// What it is held to on this host. Empty: a shim of before there were jails.
    #[serde(default)]
    pub protections: Vec<Protection>,
    /// What the shim made outside its folder and removes at its end; a shim that was killed could not.
    #[serde(default)]
    pub leftovers: Leftovers,
}

/// Folders of an instance that outlive a shim that was killed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Leftovers {
    pub temporary: Option<PathBuf>,
    pub cgroups: Vec<PathBuf>,
    /// The folder of its secrets.
    #[serde(default)]
    pub secrets: Option<PathBuf>,
}

impl Leftovers {
    /// Removes them, once nothing of the instance is left. What cannot be removed stays; there is nobody to tell.
    pub fn remove(&self) {
        for cgroup in &self.cgroups {
            // A cgroup's files are the kernel's: the folder goes as a whole.
            drop(fs::remove_dir(cgroup));
            drop(cgroup.parent().map(fs::remove_dir));
        }
        for folder in self.temporary.iter().chain(&self.secrets) {
            drop(fs::remove_dir_all(folder));
        }
    }
}

impl ShimState {
    /// Reads the state in a shim's folder; `None` when nothing was started there.
    ///
    /// # Errors
    /// When it exists but cannot be read or understood.
    pub fn read(folder: &Path) -> io::Result<Option<Self>> {
        match fs::read(folder.join(STATE_FILE)) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Replaces the state in a shim's folder as a whole.
    ///
    /// # Errors
    /// When the folder is gone or the disk is full; the old state then stays.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        let next = folder.join("state.next");
        let bytes = serde_json::to_vec(self).map_err(io::Error::other)?;
        fs::write(&next, bytes)?;
        fs::rename(next, folder.join(STATE_FILE))
    }
}

/// Whether a living shim holds the lock of this folder.
///
/// # Errors
/// When the lock cannot be asked.
pub fn shim_is_alive(folder: &Path) -> io::Result<bool> {
    let lock = match File::options()
        .read(true)
        .write(true)
        .open(folder.join(LOCK_FILE))
    {
        Ok(lock) => lock,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let holder = rustix::process::fcntl_getlk(&lock, &Flock::from(FlockType::WriteLock))?;
    Ok(holder.is_some())
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code { code } => write!(f, "exited with code {code}"),
            Self::Signal { signal, .. } => write!(f, "was killed by signal {signal}"),
            Self::NotStarted { reason } => write!(f, "could not be started: {reason}"),
            Self::Unknown => f.write_str("ended unseen"),
        }
    }
}
