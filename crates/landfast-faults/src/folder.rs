//! The folder of a run. It names its owner, so that what a killed run left is told from what is in use.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

const PREFIX: &str = "landfast-faults.";

/// Makes one that the users of databases may pass through, after sweeping away those whose owner has died.
pub(crate) fn make() -> anyhow::Result<TempDir> {
    sweep();
    let owner = std::process::id();
    let started = start_time(owner).unwrap_or_default();
    let folder = tempfile::Builder::new()
        .prefix(&format!("{PREFIX}{owner}.{started}."))
        .tempdir()?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o711))?;
    Ok(folder)
}

/// The processes of such a run died with it: an archiver ends with its standard input, a restored server with its restore.
fn sweep() {
    for entry in fs::read_dir(std::env::temp_dir())
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(rest) = name.strip_prefix(PREFIX) else {
            continue;
        };
        let mut parts = rest.split('.').map(str::parse::<u64>);
        let (Some(Ok(owner)), Some(Ok(started))) = (parts.next(), parts.next()) else {
            continue;
        };
        let is_in_use = u32::try_from(owner).is_ok_and(|owner| start_time(owner) == Some(started));
        if !is_in_use {
            drop(fs::remove_dir_all(entry.path()));
        }
    }
}

/// When a process started, in clock ticks since boot; `None` if there is no such process.
pub(crate) fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command is in parentheses and may hold anything; the 20th field behind it is the start time.
    stat.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(19)?
        .parse()
        .ok()
}

/// The children of a process: pid, start time, name.
pub(crate) fn children(parent: u32) -> Vec<(u32, u64, String)> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let found = processes.filter_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let (head, rest) = stat.rsplit_once(')')?;
        let is_child = rest.split_whitespace().nth(1)?.parse() == Ok(parent);
        let name = head.split_once('(')?.1.to_owned();
        let started = rest.split_whitespace().nth(19)?.parse().ok()?;
        is_child.then_some((pid, started, name))
    });
    found.collect()
}

/// All files below a folder, in order.
pub(crate) fn files(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                Ok(_) => found.push(entry.path()),
                Err(_) => {}
            }
        }
    }
    found.sort();
    found
}
