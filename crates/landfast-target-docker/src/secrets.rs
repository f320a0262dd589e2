//! Secrets as files: a folder of one container in memory of the host, seen in the container at `/run/secrets`.
//!
//! The folder above is the server's alone, so that nobody else of the host gets as far as the files; in the container
//! whoever runs there may read them, whatever user the image takes. The daemon mounts the inner folder by itself.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use landfast_types::Secret;

/// `TMPFS_MAGIC` and `RAMFS_MAGIC` of linux/magic.h.
const IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];

/// Whether what is written below a folder stays in memory. The folder itself need not be there.
pub(crate) fn is_in_memory(folder: &Path) -> bool {
    let there = folder.ancestors().find(|above| above.is_dir());
    let found = there.and_then(|there| rustix::fs::statfs(there).ok());
    // The type has another sign and width on each kind of machine.
    found.is_some_and(|found| IN_MEMORY.contains(&(found.f_type as u64 & 0xffff_ffff)))
}

/// Where the files of one container are, below a folder.
pub(crate) fn place(above: &Path, name: &str) -> PathBuf {
    above.join(name)
}

/// Writes the files of one container below a folder, and says where.
pub(crate) fn write(
    above: &Path,
    name: &str,
    files: &BTreeMap<String, Secret<String>>,
) -> io::Result<PathBuf> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(above)?;
    fs::set_permissions(above, fs::Permissions::from_mode(0o700))?;
    let folder = place(above, name);
    // What an order that failed left there.
    remove(&folder);
    DirBuilder::new().mode(0o755).create(&folder)?;
    for (name, value) in files {
        let mut file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o444)
            .open(folder.join(name))?;
        file.write_all(value.reveal().as_bytes())?;
        // Whatever the umask of the server is.
        file.set_permissions(fs::Permissions::from_mode(0o444))?;
    }
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o555))?;
    Ok(folder)
}

/// Removes the files of one container; what is not there is gone already.
pub(crate) fn remove(folder: &Path) {
    // Only root may remove from a folder that nobody may write to.
    drop(fs::set_permissions(
        folder,
        fs::Permissions::from_mode(0o700),
    ));
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(folder = %folder.display(), %error, "the secrets of an ended container stay there");
        }
        Ok(()) | Err(_) => {}
    }
}

/// Removes what belongs to none of these. Who begins meanwhile writes down where its files will be before they are
/// there: `known` is asked after the folders are seen.
pub(crate) fn sweep(
    above: &Path,
    known: impl FnOnce() -> io::Result<Vec<PathBuf>>,
) -> io::Result<()> {
    let entries = fs::read_dir(above).into_iter().flatten().flatten();
    let seen: Vec<_> = entries.map(|entry| entry.path()).collect();
    let known = known()?;
    let unknown = seen.iter().filter(|path| !known.contains(path));
    unknown.for_each(|path| remove(path));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_memory_from_a_disk() {
        assert!(is_in_memory(Path::new("/dev/shm/not/there")));
        assert!(!is_in_memory(Path::new("/proc")));
    }

    #[test]
    fn only_the_server_gets_as_far_as_the_files() {
        let folder = tempfile::tempdir().unwrap();
        let above = folder.path().join("s");
        let files = BTreeMap::from([("KEY".to_owned(), Secret::new("hidden".to_owned()))]);
        let made = write(&above, "one", &files).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(
            (mode(&above), mode(&made), mode(&made.join("KEY"))),
            (0o700, 0o555, 0o444)
        );
        assert_eq!(fs::read_to_string(made.join("KEY")).unwrap(), "hidden");
        // An order that is given again writes them again.
        let again = write(&above, "one", &files).unwrap();
        assert_eq!(again, made);
        let other = write(&above, "two", &files).unwrap();
        // One begins while the others are looked at.
        let begin = || {
            write(&above, "three", &files).unwrap();
            Ok(vec![other.clone()])
        };
        sweep(&above, begin).unwrap();
        assert!(!made.exists() && other.exists() && above.join("three/KEY").exists());
        remove(&other);
        remove(&other);
    }
}
