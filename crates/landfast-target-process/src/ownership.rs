//! Who may go where: whether a path can be reached by another user, and folders handed to one.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use rustix::{
    fd::OwnedFd,
    fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Uid, chownat, fchmod, fchown, openat, statat},
};

/// For the app and whoever it lets into its group, nobody else.
const FOLDER_MODE: u32 = 0o750;

/// The first folder on the way to a path, the path included, that lets nobody else in.
pub fn closed_to_others(path: &Path) -> Option<PathBuf> {
    let mut above: Vec<_> = path.ancestors().collect();
    above.reverse();
    let closed = |folder: &&Path| {
        fs::metadata(folder).is_ok_and(|found| found.is_dir() && found.mode() & 0o001 == 0)
    };
    above.into_iter().find(closed).map(Path::to_owned)
}

/// Whether a user can write in a folder that is not ours to give away.
///
/// # Errors
/// When nothing can be said of the folder.
pub fn is_writable_by(folder: &Path, user: u32) -> io::Result<bool> {
    let found = fs::metadata(folder)?;
    let bits = match (found.uid() == user, found.gid() == user) {
        (true, _) => found.mode() >> 6,
        (false, true) => found.mode() >> 3,
        (false, false) => found.mode(),
    };
    Ok(bits & 0o3 == 0o3)
}

/// Makes a folder with what is above it, for a user. True when it was not there.
///
/// # Errors
/// When it cannot be made, or not be given away.
pub fn make_for(folder: &Path, user: u32) -> io::Result<bool> {
    if folder.is_dir() {
        return Ok(false);
    }
    fs::create_dir_all(folder)?;
    std::os::unix::fs::chown(folder, Some(user), Some(user))?;
    fs::set_permissions(folder, fs::Permissions::from_mode(FOLDER_MODE))?;
    Ok(true)
}

/// Hands a folder with all it holds to a user, unless it is that user's already. The folder itself comes last, so
/// that a walk that was cut short begins again. No link is followed: what they lead to is not ours to give.
///
/// # Errors
/// When something in it cannot be given away.
pub fn hand_over(folder: &Path, user: u32) -> io::Result<()> {
    if fs::symlink_metadata(folder)?.uid() == user {
        return Ok(());
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::open(folder, flags, Mode::empty())?;
    hand_over_inside(&opened, user)?;
    fchown(
        &opened,
        Some(Uid::from_raw(user)),
        Some(Gid::from_raw(user)),
    )?;
    fchmod(&opened, Mode::from_raw_mode(FOLDER_MODE))?;
    Ok(())
}

fn hand_over_inside(folder: &OwnedFd, user: u32) -> io::Result<()> {
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let stat = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let inner = openat(folder, name, flags, Mode::empty())?;
            hand_over_inside(&inner, user)?;
        }
        let (owner, group) = (Uid::from_raw(user), Gid::from_raw(user));
        chownat(
            folder,
            name,
            Some(owner),
            Some(group),
            AtFlags::SYMLINK_NOFOLLOW,
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn names_the_first_folder_that_lets_nobody_in() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("open/inner");
        fs::create_dir_all(&inner).unwrap();
        let mode = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        mode(folder.path(), 0o711);
        mode(&folder.path().join("open"), 0o755);
        mode(&inner, 0o755);
        assert_eq!(closed_to_others(&inner), None);
        mode(folder.path(), 0o700);
        assert_eq!(closed_to_others(&inner), Some(folder.path().to_owned()));
    }

    #[test]
    fn hands_over_everything_but_what_links_lead_to() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root can give files away");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let volume = folder.path().join("volume");
        let outside = folder.path().join("outside");
        fs::create_dir_all(volume.join("a/b")).unwrap();
        fs::write(volume.join("a/b/file"), "").unwrap();
        fs::write(&outside, "").unwrap();
        symlink(&outside, volume.join("a/link")).unwrap();
        hand_over(&volume, 1_900_000_001).unwrap();
        for path in ["", "a", "a/b", "a/b/file", "a/link"] {
            let found = fs::symlink_metadata(volume.join(path)).unwrap();
            assert_eq!(
                (found.uid(), found.gid()),
                (1_900_000_001, 1_900_000_001),
                "{path}"
            );
        }
        assert_eq!(fs::metadata(&outside).unwrap().uid(), 0);
        assert_eq!(fs::metadata(&volume).unwrap().mode() & 0o777, 0o750);
        assert!(is_writable_by(&volume, 1_900_000_001).unwrap());
        assert!(!is_writable_by(&volume, 1_900_000_002).unwrap());
    }
}
