//! A tree from a snapshot, beside everything that is there.
//!
//! Content is written first, into files with numbers for names; only then are they given the paths the snapshot says, folder by folder
//! in a tree that we made and nobody else knows. A path must lie in a folder the snapshot named before it; links are made last. So
//! nothing that a snapshot says leads out. The tree gets its name when it is whole and on disk.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
};

use landfast_backup::BackupId;
use landfast_repository::{FileSink, RestoreProgress, freeing, restore_files};
use rustix::{
    fs::{AtFlags, CWD, RenameFlags, Timespec, Timestamps, UTIME_OMIT, renameat_with, utimensat},
    process::geteuid,
};

use crate::{
    Content, Entry, EntryKind, FilesError, RawPath, Series, Snapshot,
    series::{Loaded, tree},
    sqlite,
};

/// What marks a folder that is ours to remove.
const MARK: &str = "landfast.unfinished";

/// A restored tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoredFiles {
    pub snapshot: Snapshot,
    pub folder: PathBuf,
    /// Files, links counted too.
    pub files: u64,
    pub bytes: u64,
    /// Each database of SQLite, and whether it is whole.
    pub sqlite: Vec<SqliteCheck>,
}

/// What `PRAGMA integrity_check` said of a restored database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqliteCheck {
    pub path: RawPath,
    /// What is wrong with it.
    pub wrong: Option<String>,
}

/// Restores a snapshot into a folder that is not there yet. Databases of SQLite in it are checked.
///
/// # Errors
/// [`FilesError::Taken`] where something is there, [`FilesError::Hostile`] where the snapshot names what no tree has. There is no
/// folder then; what was written by then goes with the next try.
pub async fn restore(
    series: &Series,
    loaded: &Loaded,
    id: Option<&BackupId>,
    folder: &Path,
    on_progress: impl FnMut(RestoreProgress),
) -> Result<RestoredFiles, FilesError> {
    let snapshot = loaded.find(id)?.clone();
    let entries = series.entries(&snapshot).await?;
    // Before anything is written.
    let plan = Plan::of(&entries)?;
    let map = series.read_part(&snapshot.id, "map", snapshot.map).await?;
    let tree = tree(&entries, &snapshot.packs);
    let maps = tree.read_map(&map)?;
    free(folder)?;
    let making = Making::begin(folder)?;
    let sink = FileSink {
        root: making.content(),
        renamed: plan.contents.clone(),
    };
    restore_files(series.repository(), &tree, &maps, &sink, on_progress).await?;
    let (bytes, to) = (snapshot.bytes, folder.to_owned());
    let placed = tokio::task::spawn_blocking(move || {
        making.place(&entries, &plan)?;
        let sqlite = making.checks(&entries);
        making.finish(&to)?;
        Ok::<_, FilesError>((entries, sqlite))
    });
    let placed = placed.await;
    let (entries, sqlite) = placed.map_err(|error| FilesError::Stopped(error.to_string()))??;
    let is_folder = |entry: &&Entry| entry.kind == EntryKind::Folder;
    Ok(RestoredFiles {
        files: (entries.len() - entries.iter().filter(is_folder).count()) as u64,
        snapshot,
        folder: folder.to_owned(),
        bytes,
        sqlite,
    })
}

impl RestoredFiles {
    /// What is not as it should be, a line each.
    pub fn wrong(&self) -> Vec<String> {
        let wrong = self.sqlite.iter().filter_map(|check| {
            let wrong = check.wrong.as_ref()?;
            Some(format!("`{}`: {wrong}", check.path))
        });
        let mut wrong: Vec<_> = wrong.collect();
        if let Content::Tree { files, .. } = self.snapshot.content
            && files != self.files
        {
            let (there, total) = (self.files, files);
            wrong.push(format!("{there} files are there instead of {total}"));
        }
        wrong
    }
}

/// Entries that fit together.
struct Plan {
    /// The number of each file's content.
    contents: BTreeMap<String, String>,
}

impl Plan {
    fn of(entries: &[Entry]) -> Result<Self, FilesError> {
        let hostile = |path: &RawPath, what| {
            Err(FilesError::Hostile {
                path: path.to_string(),
                what,
            })
        };
        let root = RawPath(Vec::new());
        let (mut folders, mut files, mut names) = (
            BTreeSet::from([root.clone()]),
            BTreeSet::new(),
            BTreeSet::new(),
        );
        let mut contents = BTreeMap::new();
        for (place, entry) in entries.iter().enumerate() {
            let path = &entry.path;
            if place == 0 && *path == root && entry.kind == EntryKind::Folder {
                continue;
            }
            let Some((parent, _)) = path.split() else {
                return hostile(path, "it leads out of the folder");
            };
            if !folders.contains(&parent) {
                return hostile(path, "it lies in no folder of the backup");
            }
            if !names.insert(path.clone()) {
                return hostile(path, "it is there twice");
            }
            match &entry.kind {
                EntryKind::Folder => {
                    folders.insert(path.clone());
                }
                EntryKind::File { .. } => {
                    contents.insert(path.to_string(), format!("{:09}", contents.len()));
                    files.insert(path.clone());
                }
                EntryKind::HardLink { to } if !files.contains(to) => {
                    return hostile(path, "it is the same as no file of the backup");
                }
                EntryKind::Symlink { target } if target.0.is_empty() || target.0.contains(&0) => {
                    return hostile(path, "its target is none");
                }
                EntryKind::HardLink { .. } | EntryKind::Symlink { .. } => {}
            }
        }
        Ok(Self { contents })
    }
}

fn free(folder: &Path) -> Result<(), FilesError> {
    match fs::symlink_metadata(folder) {
        Ok(_) => Err(FilesError::Taken(folder.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(FilesError::io("look at", folder)(error)),
    }
}

/// A tree on its way, in a folder beside.
struct Making {
    folder: PathBuf,
}

impl Making {
    fn begin(folder: &Path) -> Result<Self, FilesError> {
        let mut beside = folder.as_os_str().to_owned();
        beside.push(".landfast-restoring");
        let making = Self {
            folder: beside.into(),
        };
        let mark = making.folder.join(MARK);
        if fs::symlink_metadata(&making.folder).is_ok() {
            // What a killed one has left. Anything else is not ours.
            if !mark.is_file() {
                return Err(FilesError::Taken(making.folder.clone()));
            }
            making.remove()?;
        }
        for path in [making.folder.clone(), making.content(), making.tree()] {
            let made = fs::DirBuilder::new().mode(0o700).create(&path);
            made.map_err(FilesError::io("make", &path))?;
            if path == making.folder {
                fs::write(&mark, "a restore has not ended here\n")
                    .map_err(FilesError::io("write", &mark))?;
            }
        }
        Ok(making)
    }

    fn content(&self) -> PathBuf {
        self.folder.join("content")
    }

    fn tree(&self) -> PathBuf {
        self.folder.join("tree")
    }

    fn at(&self, path: &RawPath) -> PathBuf {
        match path.0.is_empty() {
            true => self.tree(),
            false => self.tree().join(path.as_os()),
        }
    }

    /// The mark goes last, so that what is half removed is still ours.
    fn remove(&self) -> Result<(), FilesError> {
        for path in [self.content(), self.tree()] {
            open_up(&path);
            freeing::remove_tree(&path).map_err(FilesError::io("remove", path))?;
        }
        fs::remove_dir_all(&self.folder).map_err(FilesError::io("remove", &self.folder))
    }

    fn place(&self, entries: &[Entry], plan: &Plan) -> Result<(), FilesError> {
        let content = self.content();
        for entry in entries {
            let to = self.at(&entry.path);
            let made = match &entry.kind {
                EntryKind::Folder if entry.path.0.is_empty() => Ok(()),
                // Its own rights come when all is in it.
                EntryKind::Folder => fs::DirBuilder::new().mode(0o700).create(&to),
                EntryKind::File { .. } => {
                    let from = content.join(&plan.contents[&entry.path.to_string()]);
                    fs::rename(&from, &to).and_then(|()| own(&to, entry))
                }
                EntryKind::HardLink { to: of } => fs::hard_link(self.at(of), &to),
                EntryKind::Symlink { .. } => Ok(()),
            };
            made.map_err(FilesError::io("make", to))?;
        }
        for entry in entries {
            if let EntryKind::Symlink { target } = &entry.kind {
                let to = self.at(&entry.path);
                let made = symlink(target.as_os(), &to).and_then(|()| own(&to, entry));
                made.map_err(FilesError::io("make", to))?;
            }
        }
        // From the deepest up: a folder may be closed, and its time changes with what is in it.
        let folders = entries.iter().rev();
        for entry in folders.filter(|entry| entry.kind == EntryKind::Folder) {
            let at = self.at(&entry.path);
            own(&at, entry).map_err(FilesError::io("make", at))?;
        }
        Ok(())
    }

    fn checks(&self, entries: &[Entry]) -> Vec<SqliteCheck> {
        let databases = entries.iter().filter(|entry| {
            matches!(
                entry.kind,
                EntryKind::File {
                    is_sqlite: true,
                    ..
                }
            )
        });
        let checked = databases.map(|entry| SqliteCheck {
            path: entry.path.clone(),
            wrong: sqlite::check(&self.at(&entry.path)).err(),
        });
        checked.collect()
    }

    /// Gives the tree its name.
    fn finish(&self, to: &Path) -> Result<(), FilesError> {
        let failed = |source: io::Error| FilesError::io("make", to)(source);
        let open = fs::File::open(&self.folder).map_err(failed)?;
        rustix::fs::syncfs(&open).map_err(|error| failed(error.into()))?;
        match renameat_with(CWD, self.tree(), CWD, to, RenameFlags::NOREPLACE) {
            Ok(()) => {}
            Err(rustix::io::Errno::EXIST) => return Err(FilesError::Taken(to.to_owned())),
            Err(error) => return Err(failed(error.into())),
        }
        let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = fs::File::open(parent.unwrap_or(Path::new("."))).map_err(failed)?;
        parent.sync_all().map_err(failed)?;
        self.remove()
    }
}

/// Owner, rights and time as they were. Whoever is not root keeps what he makes.
fn own(path: &Path, entry: &Entry) -> io::Result<()> {
    let is_link = matches!(entry.kind, EntryKind::Symlink { .. });
    let mut mode = entry.mode;
    if geteuid().is_root() {
        std::os::unix::fs::lchown(path, Some(entry.uid), Some(entry.gid))?;
    } else {
        // They would be another user's rights.
        mode &= 0o1777;
    }
    let omitted = Timespec {
        tv_sec: 0,
        tv_nsec: UTIME_OMIT,
    };
    let times = Timestamps {
        last_access: omitted,
        last_modification: Timespec {
            tv_sec: entry.changed.0,
            tv_nsec: i64::from(entry.changed.1),
        },
    };
    if !is_link {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    }
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}

/// Lets us remove what lies in folders that are closed to their owner.
fn open_up(path: &Path) {
    let Ok(about) = fs::symlink_metadata(path) else {
        return;
    };
    if !about.is_dir() {
        return;
    }
    if about.permissions().mode() & 0o700 != 0o700 {
        // What stays closed is named when it cannot be removed.
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).ok();
    }
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            open_up(&entry.path());
        }
    }
}
