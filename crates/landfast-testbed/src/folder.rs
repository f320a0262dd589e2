//! Private folders that name their owner, so that what a killed run left can be told from what is in use.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::StartError;

const PREFIX: &str = "landfast-testbed.";

/// A folder that only this server uses; removed with everything in it when dropped.
pub(crate) struct Folder {
    inner: tempfile::TempDir,
}

impl Folder {
    /// Makes one, owned by `user` where the caller is root, after sweeping away those whose owner has died.
    pub(crate) fn new(server: &str, user: Option<(u32, u32)>) -> Result<Self, StartError> {
        sweep();
        let owner = std::process::id();
        let started = start_time(owner).unwrap_or_default();
        let io = |source| StartError::Io {
            what: "make a private folder".into(),
            source,
        };
        let inner = tempfile::Builder::new()
            .prefix(&format!("{PREFIX}{server}.{owner}.{started}."))
            .tempdir()
            .map_err(io)?;
        fs::set_permissions(inner.path(), fs::Permissions::from_mode(0o700)).map_err(io)?;
        if let Some((uid, gid)) = user {
            chown(inner.path(), Some(uid), Some(gid)).map_err(io)?;
        }
        Ok(Self { inner })
    }

    pub(crate) fn path(&self) -> &Path {
        self.inner.path()
    }

    /// Notes the pid of the server inside, for a later sweep.
    pub(crate) fn note_server(&self, pid: u32) {
        let started = start_time(pid).unwrap_or_default();
        drop(fs::write(
            self.path().join("server.pid"),
            format!("{pid} {started}"),
        ));
    }
}

/// Ends servers whose test process is gone, and removes their folders.
fn sweep() {
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(rest) = name.strip_prefix(PREFIX) else {
            continue;
        };
        let mut parts = rest.split('.').skip(1);
        let (Some(owner), Some(started)) = (
            parts.next().and_then(|part| part.parse().ok()),
            parts.next().and_then(|part| part.parse().ok()),
        ) else {
            continue;
        };
        if start_time(owner) == Some(started) {
            continue;
        }
        kill_noted_server(&entry.path());
        kill_whoever_names(&entry.path());
        drop(fs::remove_dir_all(entry.path()));
    }
}

/// Ends every process that names a private folder in its arguments: nobody else knows that name.
pub(crate) fn kill_whoever_names(folder: &Path) {
    let name = folder.as_os_str().as_encoded_bytes();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid: Option<i32> = entry
            .file_name()
            .to_str()
            .and_then(|text| text.parse().ok());
        let Some(process) = pid.and_then(Pid::from_raw) else {
            continue;
        };
        let Ok(descriptor) = pidfd_open(process, PidfdFlags::empty()) else {
            continue;
        };
        let arguments = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if arguments.windows(name.len()).any(|part| part == name) {
            pidfd_send_signal(&descriptor, Signal::KILL).ok();
        }
    }
}

fn kill_noted_server(folder: &Path) {
    let Ok(note) = fs::read_to_string(folder.join("server.pid")) else {
        return;
    };
    let mut words = note.split(' ').map(str::parse::<u64>);
    let (Some(Ok(pid)), Some(Ok(started))) = (words.next(), words.next()) else {
        return;
    };
    let Some(process) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return;
    };
    let Ok(descriptor) = pidfd_open(process, PidfdFlags::empty()) else {
        return;
    };
    // The descriptor is open, so a number that was given away since shows in its start time.
    if start_time(pid as u32) == Some(started) {
        pidfd_send_signal(&descriptor, Signal::KILL).ok();
    }
}

/// When a process started, in clock ticks since boot; `None` if there is no such process.
pub(crate) fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command is in parentheses and may hold anything; the 20th field behind it is the start time.
    let rest = stat.rsplit_once(')')?.1;
    rest.split_whitespace().nth(19)?.parse().ok()
}

/// The first of these programs that is there.
pub(crate) fn program(
    name: &'static str,
    package: &'static str,
    folders: &[&str],
) -> Result<PathBuf, StartError> {
    folders
        .iter()
        .map(|folder| Path::new(folder).join(name))
        .find(|path| path.is_file())
        .ok_or(StartError::ProgramMissing {
            program: name,
            package,
        })
}

/// User and group of a system account, where the caller is root and has to become somebody else.
pub(crate) fn account(name: &str) -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let passwd = fs::read_to_string("/etc/passwd").ok()?;
    let line = passwd
        .lines()
        .find(|line| line.split(':').next() == Some(name))?;
    let mut fields = line.split(':').skip(2);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}
