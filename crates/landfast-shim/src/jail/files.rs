//! Landlock: which files an instance reaches, whatever its user may.

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use landlock::{
    ABI, Access as _, AccessFs, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr as _,
    RulesetCreated, RulesetCreatedAttr as _,
};

/// Programs, libraries, their settings, and what the kernel tells: to be read and run. What is not there is left out.
const SYSTEM: &[&str] = &[
    "/bin",
    "/etc",
    "/gnu/store",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/nix/store",
    "/opt",
    "/proc",
    "/run/NetworkManager",
    "/run/current-system",
    "/run/resolvconf",
    "/run/systemd/resolve",
    "/sbin",
    "/sys",
    "/usr",
    "/var/lib/ca-certificates",
];
/// Devices that are nobody's, and shared memory.
const DEVICES: &[&str] = &[
    "/dev/full",
    "/dev/null",
    "/dev/ptmx",
    "/dev/pts",
    "/dev/random",
    "/dev/shm",
    "/dev/tty",
    "/dev/urandom",
    "/dev/zero",
];
/// Everything that ABI knows is handled, as far as the kernel does. Connecting to sockets by path (ABI 9) is not: that
/// is how databases on the same host are reached.
const HANDLED: ABI = ABI::V6;

/// Makes the ruleset. `None` where the kernel has no Landlock.
pub(super) fn ruleset(read_only: &[&Path], read_write: &[PathBuf]) -> io::Result<Option<OwnedFd>> {
    let all = AccessFs::from_all(HANDLED);
    let read = AccessFs::from_read(HANDLED);
    let mut rules = Ruleset::default()
        .handle_access(all)
        .and_then(Ruleset::create)
        .map_err(io::Error::other)?;
    for path in SYSTEM.iter().map(Path::new) {
        rules = allow(rules, path, read, Missing::Ignored)?;
    }
    rules = allow(
        rules,
        Path::new("/dev"),
        AccessFs::ReadDir.into(),
        Missing::Ignored,
    )?;
    for path in DEVICES.iter().map(Path::new) {
        rules = allow(rules, path, all, Missing::Ignored)?;
    }
    for path in read_only {
        rules = allow(rules, path, read, Missing::Refused)?;
    }
    for path in read_write {
        rules = allow(rules, path, all, Missing::Refused)?;
    }
    Ok(rules.into())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Ignored,
    Refused,
}

fn allow(
    rules: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
    missing: Missing,
) -> io::Result<RulesetCreated> {
    let opened = match PathFd::new(path) {
        Ok(opened) => opened,
        Err(_) if missing == Missing::Ignored => return Ok(rules),
        Err(error) => return Err(io::Error::other(error)),
    };
    // Rights of folders mean nothing for a file, and are refused by the kernel there.
    let access = if path.is_dir() {
        access
    } else {
        access & AccessFs::from_file(HANDLED)
    };
    let rule = PathBeneath::new(opened, access);
    rules.add_rule(rule).map_err(io::Error::other)
}
