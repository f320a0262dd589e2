//! Which jail an instance is ordered: its user, its limits, the files it reaches.
//!
//! Where an instance cannot have a user of its own without losing what it needs (a volume of the operator's that
//! belongs to somebody else, a state folder nobody else may enter), it runs as the server's user and is said to: an
//! app that ran must not stop running by an upgrade of its host. It has no capability either way.

use std::{fs, io, path::Path, path::PathBuf};

use landfast_shim::wire::{FilesOrder, JailOrder, Unless};
use landfast_target::{Confinement, Content};
use rustix::{
    process::geteuid,
    thread::{CapabilitySet, capabilities},
};

use crate::{ProcessSettings, ownership, users::Users};

/// Processes and threads of an instance whose manifest names no number.
pub const PROCESSES_MAX: u32 = 4_096;
/// Open descriptors of a process whose manifest names no number, as far as the host gives so many.
pub const DESCRIPTORS_MAX: u32 = 65_536;

/// Composes the order. With `mark` it is for a start: the user is remembered, folders are made and handed over.
pub(crate) fn order(
    settings: &ProcessSettings,
    users: Option<&Users>,
    wanted: &Confinement<'_>,
    mark: Option<&str>,
) -> io::Result<JailOrder> {
    let is_start = mark.is_some();
    let user = own_user(settings, users, wanted, is_start)?;
    if is_start {
        give_volumes(settings, wanted, user.as_ref().ok().copied())?;
    }
    let temporary = settings.temporary.join(mark.unwrap_or("new"));
    let resources = wanted.resources;
    let files = FilesOrder {
        read_only: wanted.sandbox.read_only.clone(),
        read_write: wanted
            .volumes
            .values()
            .chain(&wanted.sandbox.read_write)
            .cloned()
            .collect(),
    };
    Ok(JailOrder {
        user: user.as_ref().ok().copied(),
        user_unless: user.err(),
        memory_bytes_max: resources.memory.map(|memory| memory.0),
        cpu_millis_max: resources.cpu.map(|cpu| cpu.millicores),
        processes_max: Some(u64::from(resources.processes.unwrap_or(PROCESSES_MAX))),
        descriptors_max: Some(u64::from(resources.descriptors.unwrap_or(DESCRIPTORS_MAX))),
        files: (!wanted.sandbox.host_files).then_some(files),
        temporary: Some(temporary),
    })
}

/// The user of an instance, or why it gets none.
fn own_user(
    settings: &ProcessSettings,
    users: Option<&Users>,
    wanted: &Confinement<'_>,
    is_start: bool,
) -> io::Result<Result<u32, Unless>> {
    let missing = |reason: String| {
        Ok(Err(Unless {
            is_wanted: false,
            reason,
        }))
    };
    if wanted.sandbox.server_user {
        return Ok(Err(Unless {
            is_wanted: true,
            reason: "the manifest asks for the server's user".to_owned(),
        }));
    }
    let Some(users) = users else {
        return missing("this host keeps no record of users".to_owned());
    };
    if !may_change_user() {
        return missing("the server does not run as root".to_owned());
    }
    let user = users.look_up(wanted.scope)?;
    if !is_mapped(user, &fs::read_to_string("/proc/self/uid_map")?) {
        return missing(format!("user {user} is not mapped in this user namespace"));
    }
    let artifact = match wanted.content {
        Content::Artifact(digest) => settings.store.path(digest),
        Content::Image(_) => None,
    };
    let needed = artifact.iter().chain(std::iter::once(&settings.temporary));
    let secrets = wanted.has_secret_files.then_some(&settings.run);
    for path in needed.chain(secrets) {
        if let Some(closed) = ownership::closed_to_others(path) {
            return missing(format!(
                "`{0}` lets no other user in; `chmod o+x {0}`, or another folder with --state",
                closed.display()
            ));
        }
    }
    for (name, path) in wanted.volumes {
        if let Some(reason) = volume_refused(settings, name, path, user)? {
            return missing(reason);
        }
    }
    if is_start {
        users.take(wanted.scope)
    } else {
        Ok(user)
    }
    .map(Ok)
}

/// Why a volume keeps its instance from having a user of its own. Ours are handed over.
fn volume_refused(
    settings: &ProcessSettings,
    name: &str,
    path: &Path,
    user: u32,
) -> io::Result<Option<String>> {
    if is_ours(settings, path) || !path.exists() {
        return Ok(None);
    }
    if let Some(closed) = ownership::closed_to_others(path.parent().unwrap_or(path)) {
        return Ok(Some(format!(
            "volume `{name}` lies in `{0}`, which lets no other user in; `chmod o+x {0}`",
            closed.display()
        )));
    }
    if ownership::is_writable_by(path, user)? {
        return Ok(None);
    }
    let path = path.display();
    Ok(Some(format!(
        "volume `{name}` belongs to somebody else; `chown -R {user}:{user} {path}` gives it to the app"
    )))
}

/// Makes volumes that are not there, and hands over those that Landfast keeps.
fn give_volumes(
    settings: &ProcessSettings,
    wanted: &Confinement<'_>,
    user: Option<u32>,
) -> io::Result<()> {
    for path in wanted.volumes.values() {
        let user = user.unwrap_or(geteuid().as_raw());
        let named = |error: io::Error| {
            let text = format!("volume `{}`: {error}", path.display());
            io::Error::new(error.kind(), text)
        };
        let is_new = ownership::make_for(path, user).map_err(named)?;
        if !is_new && is_ours(settings, path) && may_change_user() {
            ownership::hand_over(path, user).map_err(named)?;
        }
    }
    Ok(())
}

/// Whether a volume is kept by Landfast: one an operator named is never given away.
fn is_ours(settings: &ProcessSettings, path: &Path) -> bool {
    let ours = settings.volumes.as_ref();
    ours.is_some_and(|volumes| path.starts_with(volumes)) && !path.is_symlink()
}

/// The user of an owner that is no environment. `None`: the server's own, for it may give no other.
pub(crate) fn user_of(users: Option<&Users>, owner: &str) -> io::Result<Option<u32>> {
    let Some(users) = users.filter(|_| may_change_user()) else {
        return Ok(None);
    };
    let user = users.take_for(owner)?;
    let map = fs::read_to_string("/proc/self/uid_map")?;
    if is_mapped(user, &map) {
        return Ok(Some(user));
    }
    let reason = format!("user {user} is not mapped in this user namespace");
    Err(io::Error::new(io::ErrorKind::Unsupported, reason))
}

fn may_change_user() -> bool {
    let needed = CapabilitySet::SETUID | CapabilitySet::SETGID | CapabilitySet::CHOWN;
    capabilities(None).is_ok_and(|own| own.effective.contains(needed))
}

/// Whether a number means a user here: `inside outside count` a line (user_namespaces(7)).
fn is_mapped(user: u32, map: &str) -> bool {
    map.lines().any(|line| {
        let mut fields = line.split_whitespace().map(str::parse::<u32>);
        let (Some(Ok(first)), Some(Ok(_)), Some(Ok(count))) =
            (fields.next(), fields.next(), fields.next())
        else {
            return false;
        };
        user >= first && user - first < count
    })
}

/// Removes what instances left in the temporary folder whose shims could not: the host restarted under them.
pub(crate) fn sweep_temporary(temporary: &Path, is_known: impl Fn(&str) -> bool) -> io::Result<()> {
    let entries = match fs::read_dir(temporary) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let path: PathBuf = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        // `<key of the run folder>.<random>`
        let key = name.and_then(|name| Some(name.split_once('.')?.0));
        if key.is_some_and(|key| !is_known(key)) {
            fs::remove_dir_all(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_which_users_a_namespace_has() {
        let whole = "         0          0 4294967295\n";
        assert!(is_mapped(1_900_000_000, whole));
        let container = "         0     100000      65536\n";
        assert!(is_mapped(65_535, container));
        assert!(!is_mapped(65_536, container));
        assert!(!is_mapped(0, ""));
    }

    #[test]
    fn sweeps_only_folders_of_instances_that_are_gone() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["aaaa.1", "bbbb.2", "else"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        sweep_temporary(folder.path(), |key| key == "bbbb").unwrap();
        assert!(!folder.path().join("aaaa.1").exists());
        assert!(folder.path().join("bbbb.2").exists());
        assert!(folder.path().join("else").exists());
        sweep_temporary(&folder.path().join("none"), |_| false).unwrap();
    }
}
