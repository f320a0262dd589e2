//! Removing large files without a stall of their disk.
//!
//! A file system that is mounted with `discard` (ext4(5), XFS) tells its disk of freed blocks while it commits, and every
//! `fsync` on it waits for that. On a disk of a cloud's machine, 16 MiB at once kept a database waiting for 15 to 20 ms; cut
//! shorter by 4 MiB at a time, each time committed, 5. So that is how files go there. Elsewhere they are just removed.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        linux::fs::MetadataExt as _,
        unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// What one commit frees.
const STEP_BYTES: u64 = 4 << 20;
/// Whoever waits for the disk has it in between.
const PAUSE: Duration = Duration::from_millis(20);
/// What a file is called that is on its way out, behind a dot and a number.
const GOING: &str = "going";

/// Removes a file; one that is not there is removed already. Blocks; about 100 ms for 16 MiB where it goes in steps.
///
/// # Errors
/// When it is still there.
pub fn remove_file(path: &Path) -> io::Result<()> {
    remove_file_where(path, is_discarding)
}

fn remove_file_where(path: &Path, is_discarding: impl Fn(u64) -> bool) -> io::Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        metadata => metadata?,
    };
    if is_large(&metadata) && is_discarding(metadata.st_dev()) {
        // Half of a file must not be taken for it.
        let going = going(path);
        fs::rename(path, &going)?;
        shrink(&going, &mut 0)?;
        return unlink(&going);
    }
    unlink(path)
}

/// Removes a folder with all it holds; one that is not there is removed already. Blocks, as [`remove_file`]. A symbolic link in
/// it is removed, not followed.
///
/// # Errors
/// When some of it is still there.
pub fn remove_tree(folder: &Path) -> io::Result<()> {
    remove_tree_where(folder, is_discarding)
}

fn remove_tree_where(folder: &Path, is_discarding: impl Fn(u64) -> bool) -> io::Result<()> {
    // What cannot be made shorter is removed at once.
    if let Ok(metadata) = fs::symlink_metadata(folder)
        && metadata.is_dir()
        && is_discarding(metadata.dev())
        && let Err(error) = shrink_all(folder, metadata.dev(), &mut 0)
    {
        tracing::debug!(folder = %folder.display(), %error, "removed at once");
    }
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes what a process that died left half removed in a folder.
///
/// # Errors
/// When the folder cannot be read.
pub fn sweep(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_str().is_some_and(is_going) {
            unlink(&entry.path())?;
        }
    }
    Ok(())
}

/// Removes one that [`remove_file`] began to, where the process that did died. Blocks, as that.
///
/// # Errors
/// When it is still there.
pub(crate) fn remove_left(path: &Path) -> io::Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        metadata => metadata?,
    };
    if is_large(&metadata) && is_discarding(metadata.st_dev()) {
        shrink(path, &mut 0)?;
    }
    unlink(path)
}

/// Whether a file with this name is on its way out: `.12.0.going`.
pub(crate) fn is_going(name: &str) -> bool {
    is_between(name, GOING)
}

/// Whether a name is that of a file between two states: `.PROCESS.NUMBER.STATE`.
pub(crate) fn is_between(name: &str, state: &str) -> bool {
    let parts: Vec<_> = name.split('.').collect();
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    matches!(parts.as_slice(), ["", process, number, last]
        if is_number(process) && is_number(number) && *last == state)
}

fn going(path: &Path) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    path.with_file_name(format!(".{}.{number}.{GOING}", std::process::id()))
}

fn unlink(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn is_large(metadata: &fs::Metadata) -> bool {
    // One with further names frees nothing.
    metadata.is_file() && metadata.nlink() == 1 && metadata.len() > STEP_BYTES
}

/// Makes a file shorter step by step. `freed` is what was freed since the last commit.
fn shrink(path: &Path, freed: &mut u64) -> io::Result<()> {
    let no_follow = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
    let file = OpenOptions::new()
        .write(true)
        .custom_flags(no_follow)
        .open(path)?;
    let mut length = file.metadata()?.len();
    while length > 0 {
        let step = length.min(STEP_BYTES.saturating_sub(*freed).max(1));
        length -= step;
        *freed += step;
        if *freed < STEP_BYTES {
            // The rest goes with what comes next.
            break;
        }
        file.set_len(length)?;
        commit(&file, freed)?;
    }
    Ok(())
}

fn commit(file: &File, freed: &mut u64) -> io::Result<()> {
    file.sync_all()?;
    *freed = 0;
    std::thread::sleep(PAUSE);
    Ok(())
}

/// Files of the folder, never of another file system below it.
fn shrink_all(folder: &Path, device: u64, freed: &mut u64) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        if metadata.dev() != device {
            continue;
        }
        let path = entry.path();
        if metadata.is_dir() {
            shrink_all(&path, device, freed)?;
        } else if metadata.is_file() && metadata.nlink() == 1 {
            shrink(&path, freed)?;
            unlink(&path)?;
        }
    }
    Ok(())
}

/// Whether the file system with this device number is mounted so.
fn is_discarding(device: u64) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    discards(
        &mounts,
        rustix::fs::major(device),
        rustix::fs::minor(device),
    )
}

/// `36 35 98:0 /root /mount rw,noatime shared:1 - ext4 /dev/x rw,discard`: `proc_pid_mountinfo(5)`. With `discard=async`
/// nobody waits.
fn discards(mounts: &str, major: u32, minor: u32) -> bool {
    let device = format!("{major}:{minor}");
    mounts.lines().any(|line| {
        let Some((mount, system)) = line.split_once(" - ") else {
            return false;
        };
        let options = system.split(' ').nth(2).unwrap_or_default();
        mount.split(' ').nth(2) == Some(device.as_str())
            && options.split(',').any(|option| option == "discard")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_how_a_file_system_is_mounted() {
        let mounts = "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard,resuid=1\n\
                      23 22 0:20 / /proc rw - proc proc rw\n\
                      24 22 0:31 / /b rw,noatime - btrfs /dev/vdb rw,discard=async,space_cache=v2\n";
        assert!(discards(mounts, 254, 0));
        assert!(!discards(mounts, 0, 31));
        assert!(!discards(mounts, 0, 20));
        assert!(!discards("", 254, 0));
    }

    #[test]
    fn removes_in_steps_what_is_there_and_nothing_beside() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("kept"), vec![1; 9 << 20]).unwrap();
        fs::create_dir_all(at("tree/deep")).unwrap();
        for name in ["a", "deep/b", "deep/c"] {
            fs::write(at("tree").join(name), vec![1; 5 << 20]).unwrap();
        }
        std::os::unix::fs::symlink(at("kept"), at("tree/link")).unwrap();
        fs::hard_link(at("kept"), at("tree/again")).unwrap();
        // Whether this machine's disk asks for it or not.
        shrink_all(&at("tree"), fs::metadata(at("tree")).unwrap().dev(), &mut 0).unwrap();
        assert!(!at("tree/deep/c").exists());
        remove_tree(&at("tree")).unwrap();
        remove_tree(&at("tree")).unwrap();
        assert!(!at("tree").exists());
        assert_eq!(fs::metadata(at("kept")).unwrap().len(), 9 << 20);
        let mut freed = 0;
        shrink(&at("kept"), &mut freed).unwrap();
        assert_eq!(freed, 1 << 20);
        assert_eq!(fs::metadata(at("kept")).unwrap().len(), 1 << 20);
        remove_file(&at("kept")).unwrap();
        remove_file(&at("kept")).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    /// Whatever this machine's disk is mounted like.
    #[test]
    fn a_file_goes_under_another_name_step_by_step() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("pack"), vec![1; 9 << 20]).unwrap();
        // Who reads it meanwhile sees it get shorter, and nobody finds it by its name.
        let reader = File::open(at("pack")).unwrap();
        remove_file_where(&at("pack"), |_| true).unwrap();
        assert_eq!(reader.metadata().unwrap().len(), 1 << 20);
        assert_eq!(reader.metadata().unwrap().nlink(), 0);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        remove_file_where(&at("pack"), |_| true).unwrap();

        // Small ones, those with a second name and links go at once, and the second name keeps all of it.
        fs::write(at("small"), b"x").unwrap();
        fs::write(at("kept"), vec![1; 5 << 20]).unwrap();
        fs::hard_link(at("kept"), at("again")).unwrap();
        std::os::unix::fs::symlink(at("kept"), at("link")).unwrap();
        for name in ["small", "again", "link"] {
            remove_file_where(&at(name), |_| true).unwrap();
        }
        assert_eq!(fs::metadata(at("kept")).unwrap().len(), 5 << 20);

        // Elsewhere it is not made shorter.
        let reader = File::open(at("kept")).unwrap();
        remove_file_where(&at("kept"), |_| false).unwrap();
        assert_eq!(reader.metadata().unwrap().len(), 5 << 20);

        fs::create_dir_all(at("tree/deep")).unwrap();
        fs::write(at("tree/deep/a"), vec![1; 9 << 20]).unwrap();
        let reader = File::open(at("tree/deep/a")).unwrap();
        remove_tree_where(&at("tree"), |_| true).unwrap();
        assert_eq!(reader.metadata().unwrap().len(), 1 << 20);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn sweeps_what_a_dead_one_left() {
        let folder = tempfile::tempdir().unwrap();
        for name in [".12.0.going", "000000010000000000000001", "a.going"] {
            fs::write(folder.path().join(name), b"x").unwrap();
        }
        sweep(folder.path()).unwrap();
        assert!(!folder.path().join(".12.0.going").exists());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
