//! Finding the file that a command names.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Component, Path, PathBuf},
};

/// Where commands are looked up for an instance whose environment names no `PATH`. Never the server's own: what runs
/// must not depend on the shell that a server was started from.
pub const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The file a command names: a word with a `/` is inside `folder` (or absolute), any other is looked up in `path`.
/// `None` when there is no such file that may be run; a word that leaves the folder names none.
pub fn find_program(command: &str, folder: &Path, path: Option<&str>) -> Option<PathBuf> {
    if command.contains('/') {
        let word = Path::new(command);
        let leaves = word.components().any(|part| part == Component::ParentDir);
        let file = folder.join(word);
        return (!leaves && is_program(&file)).then_some(file);
    }
    if command.is_empty() {
        return None;
    }
    let folders = path.unwrap_or(PATH_DEFAULT).split(':');
    // A relative folder in PATH would mean something else in each working folder.
    let absolute = folders.map(Path::new).filter(|folder| folder.is_absolute());
    absolute
        .map(|folder| folder.join(command))
        .find(|file| is_program(file))
}

fn is_program(file: &Path) -> bool {
    fs::metadata(file)
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_may_be_run_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, mode| {
            let path = folder.path().join(name);
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        let (app, _data) = (file("app", 0o555), file("data", 0o444));
        let path = format!("relative:{}", folder.path().display());
        let find = |command| find_program(command, folder.path(), Some(&path));
        assert_eq!(find("./app"), Some(folder.path().join("./app")));
        assert_eq!(find("app"), Some(app));
        for missing in [
            "./data",
            "data",
            "./none",
            "none",
            "",
            "./",
            "../app",
            "./x/../app",
        ] {
            assert_eq!(find(missing), None, "{missing}");
        }
        assert_eq!(find_program("app", folder.path(), None), None);
        assert!(find_program("cat", folder.path(), None).is_some());
        assert!(find_program("/bin/cat", folder.path(), None).is_some());
    }
}
