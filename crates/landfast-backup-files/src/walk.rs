//! The way through a tree: from folder to folder by open descriptors, so that no name leads out of it, whoever changes it meanwhile.
//!
//! A file that was not touched since the parent (by size, both times and inode) is not read. One that changes while it is read is read
//! again, and named if it goes on. What is gone when its turn comes was removed before the snapshot.

use std::{
    collections::{BTreeSet, HashMap},
    ffi::OsString,
    fs::File,
    io::{self, Read, Seek as _},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{
            ffi::{OsStrExt as _, OsStringExt as _},
            fs::{FileExt as _, MetadataExt as _},
        },
    },
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use landfast_repository::{PageWriter, RepositoryError};
use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, openat, readlinkat, statat},
    io::Errno,
};

use crate::{
    Entry, EntryKind, Moment, Note, NoteKind, RawPath, clock,
    sqlite::{self, BESIDE, HEADER},
};

/// Folders in folders. Each holds a descriptor while those below are read.
const DEPTH_MAX: usize = 200;
/// Readings of a file that changes.
const READS_MAX: usize = 3;
/// A file that was touched so shortly before it was read may be touched again within the same tick of the file system's clock.
const SETTLED_SECONDS: i64 = 2;
/// Notes that are kept.
const NOTES_MAX: usize = 1_000;

/// A walk that has not begun.
pub(crate) struct Walk {
    root: PathBuf,
    scratch: PathBuf,
    known: HashMap<RawPath, Entry>,
    files: Arc<AtomicU64>,
    bytes: Arc<AtomicU64>,
    device: u64,
    /// Files with several names, by device and inode.
    links: HashMap<(u64, u64), RawPath>,
    entries: Vec<Entry>,
    notes: Vec<Note>,
}

/// A name in an open folder.
struct Place<'a> {
    folder: BorrowedFd<'a>,
    name: &'a OsString,
    path: &'a RawPath,
}

impl Walk {
    pub(crate) fn new(
        root: PathBuf,
        scratch: PathBuf,
        known: Vec<Entry>,
        files: &Arc<AtomicU64>,
        bytes: &Arc<AtomicU64>,
    ) -> Self {
        let known = known.into_iter().map(|entry| (entry.path.clone(), entry));
        Self {
            root,
            scratch,
            known: known.collect(),
            files: Arc::clone(files),
            bytes: Arc::clone(bytes),
            device: 0,
            links: HashMap::new(),
            entries: Vec::new(),
            notes: Vec::new(),
        }
    }

    pub(crate) fn run(
        mut self,
        mut writer: PageWriter,
    ) -> Result<(PageWriter, Vec<Entry>, Vec<Note>), RepositoryError> {
        let failed = |source: Errno| RepositoryError::Local {
            doing: format!("read `{}`", self.root.display()),
            source: source.into(),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = rustix::fs::open(&self.root, flags, Mode::empty()).map_err(failed)?;
        let about = fstat(&root).map_err(failed)?;
        self.device = about.st_dev;
        let path = RawPath(Vec::new());
        self.entries.push(entry(&path, &about, EntryKind::Folder));
        let listed = names(&root).map_err(failed)?;
        self.folder(&mut writer, &root, listed, &path, 0)?;
        Ok((writer, self.entries, self.notes))
    }

    fn folder(
        &mut self,
        writer: &mut PageWriter,
        folder: &OwnedFd,
        names: Vec<OsString>,
        path: &RawPath,
        depth: usize,
    ) -> Result<(), RepositoryError> {
        let mut databases = BTreeSet::new();
        for name in &names {
            if beside(name).is_some_and(|of| databases.contains(&of))
                && is_of_database(folder.as_fd(), name)
            {
                continue;
            }
            let path = path.join(name);
            let place = Place {
                folder: folder.as_fd(),
                name,
                path: &path,
            };
            let about = match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(about) => about,
                Err(error) => {
                    self.missed(&path, error);
                    continue;
                }
            };
            match FileType::from_raw_mode(about.st_mode) {
                FileType::Directory => self.below(writer, &place, &about, depth)?,
                FileType::RegularFile => {
                    if self.file(writer, &place)? {
                        databases.insert(name.clone());
                    }
                }
                FileType::Symlink => match readlinkat(folder, name, Vec::new()) {
                    Ok(target) => {
                        let target = RawPath(target.into_bytes());
                        let kind = EntryKind::Symlink { target };
                        self.entries.push(entry(&path, &about, kind));
                    }
                    Err(error) => self.missed(&path, error),
                },
                FileType::Fifo
                | FileType::Socket
                | FileType::CharacterDevice
                | FileType::BlockDevice
                | FileType::Unknown => self.note(&path, NoteKind::Special),
            }
        }
        Ok(())
    }

    fn below(
        &mut self,
        writer: &mut PageWriter,
        place: &Place<'_>,
        about: &Stat,
        depth: usize,
    ) -> Result<(), RepositoryError> {
        if about.st_dev != self.device {
            self.note(place.path, NoteKind::Mounted);
            return Ok(());
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = openat(place.folder, place.name, flags, Mode::empty());
        let listed = opened.and_then(|folder| {
            let about = fstat(&folder)?;
            let names = names(&folder)?;
            Ok((folder, about, names))
        });
        match listed {
            // Somebody has mounted over it meanwhile.
            Ok((_, about, _)) if about.st_dev != self.device => {
                self.note(place.path, NoteKind::Mounted);
                Ok(())
            }
            Ok((folder, about, names)) => {
                self.entries
                    .push(entry(place.path, &about, EntryKind::Folder));
                if depth >= DEPTH_MAX {
                    if !names.is_empty() {
                        self.note(place.path, NoteKind::TooDeep);
                    }
                    return Ok(());
                }
                self.folder(writer, &folder, names, place.path, depth + 1)
            }
            Err(error) => {
                self.missed(place.path, error);
                Ok(())
            }
        }
    }

    /// Adds a file; `true` for a database of SQLite that was taken as one.
    fn file(
        &mut self,
        writer: &mut PageWriter,
        place: &Place<'_>,
    ) -> Result<bool, RepositoryError> {
        // Not to wait, should it have become a pipe.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = openat(
            place.folder,
            place.name,
            flags | OFlags::NOCTTY,
            Mode::empty(),
        );
        let mut file = match opened {
            Ok(file) => File::from(file),
            Err(error) => {
                self.missed(place.path, error);
                return Ok(false);
            }
        };
        let about = fstat(&file).map_err(|source| reading(place.path, source.into()))?;
        if FileType::from_raw_mode(about.st_mode) != FileType::RegularFile {
            self.note(place.path, NoteKind::Changing);
            return Ok(false);
        }
        self.files.fetch_add(1, Ordering::Relaxed);
        let inode = (about.st_dev, about.st_ino);
        if about.st_nlink > 1
            && let Some(to) = self.links.get(&inode)
        {
            let kind = EntryKind::HardLink { to: to.clone() };
            self.entries.push(entry(place.path, &about, kind));
            return Ok(false);
        }
        let is_database = is_database(&file);
        let is_alone = !is_database || self.is_alone(place);
        let kind = if self.is_untouched(place.path, &about, is_database) && is_alone {
            let is_known = writer.unchanged(&place.path.to_string(), 0o600);
            let known = self.known.get(place.path);
            is_known
                .then(|| known.map(|known| known.kind.clone()))
                .flatten()
        } else {
            None
        };
        let kind = match kind {
            Some(kind) => Some(kind),
            None if is_database => match self.database(writer, place, &about, is_alone)? {
                Some(kind) => Some(kind),
                None => self.content(writer, place, &mut file)?,
            },
            None => self.content(writer, place, &mut file)?,
        };
        let Some(kind) = kind else {
            return Ok(false);
        };
        let is_taken = matches!(
            &kind,
            EntryKind::File {
                is_sqlite: true,
                ..
            }
        );
        if about.st_nlink > 1 {
            self.links.insert(inode, place.path.clone());
        }
        // Of the moment it was read at, if it was touched meanwhile.
        let about = fstat(&file).map_err(|source| reading(place.path, source.into()))?;
        self.entries.push(entry(place.path, &about, kind));
        Ok(is_taken)
    }

    /// Whether nothing of a database lies in files beside it.
    fn is_alone(&self, place: &Place<'_>) -> bool {
        BESIDE.iter().filter(|end| **end != "-shm").all(|end| {
            let mut name = place.name.clone();
            name.push(end);
            let about = statat(place.folder, &name, AtFlags::SYMLINK_NOFOLLOW);
            about.map_or(true, |about| about.st_size == 0)
        })
    }

    fn is_untouched(&self, path: &RawPath, about: &Stat, is_database: bool) -> bool {
        let Some(known) = self.known.get(path) else {
            return false;
        };
        let EntryKind::File {
            bytes,
            seen: Some((inode, touched)),
            is_sqlite,
        } = &known.kind
        else {
            return false;
        };
        *bytes == about.st_size.cast_unsigned()
            && *inode == about.st_ino
            && *touched == touched_at(about)
            && known.changed == changed_at(about)
            && *is_sqlite == is_database
    }

    /// Adds the content of a file as it lies; `None` where it cannot be read.
    fn content(
        &mut self,
        writer: &mut PageWriter,
        place: &Place<'_>,
        file: &mut File,
    ) -> Result<Option<EntryKind>, RepositoryError> {
        let path = place.path.to_string();
        let base = writer.counts().bytes;
        let mut seen = None;
        for attempt in 1..=READS_MAX {
            let now = clock::now().as_micros().div_euclid(1_000_000);
            let before = fstat(&*file).map_err(|source| reading(place.path, source.into()))?;
            file.rewind()
                .map_err(|source| reading(place.path, source))?;
            let mut failed = None;
            let content = Content {
                // What is added meanwhile belongs to the next snapshot.
                inner: (&*file).take(before.st_size.cast_unsigned()),
                bytes: &self.bytes,
                failed: &mut failed,
            };
            if attempt == 1 {
                writer.file(&path, 0o600, content)?;
            } else {
                writer.file_again(content)?;
            }
            if let Some(error) = failed {
                writer.take_back();
                let reason = error.to_string();
                self.note(place.path, NoteKind::Unreadable { reason });
                return Ok(None);
            }
            let after = fstat(&*file).map_err(|source| reading(place.path, source.into()))?;
            if state(&before) == state(&after) {
                let newest = touched_at(&before).max(changed_at(&before));
                let is_settled = newest.0 + SETTLED_SECONDS <= now;
                seen = is_settled.then(|| (before.st_ino, touched_at(&before)));
                break;
            }
            if attempt == READS_MAX {
                self.note(place.path, NoteKind::Changing);
            }
        }
        Ok(Some(EntryKind::File {
            bytes: writer.counts().bytes - base,
            seen,
            is_sqlite: false,
        }))
    }

    /// Adds a database by SQLite's own backup; `None` where SQLite cannot read it.
    fn database(
        &mut self,
        writer: &mut PageWriter,
        place: &Place<'_>,
        about: &Stat,
        is_alone: bool,
    ) -> Result<Option<EntryKind>, RepositoryError> {
        let now = clock::now().as_micros().div_euclid(1_000_000);
        let (from, to) = (self.root.join(place.path.as_os()), self.scratch.join("db"));
        // SQLite opens them, and would wait for the other end of a pipe for ever.
        let is_strange = |end: &&&str| {
            let mut name = place.name.clone();
            name.push(end);
            let about = statat(place.folder, &name, AtFlags::SYMLINK_NOFOLLOW);
            about.is_ok_and(|about| FileType::from_raw_mode(about.st_mode) != FileType::RegularFile)
        };
        if let Some(end) = BESIDE.iter().find(is_strange) {
            let reason = format!("what is named like it with `{end}` is no file");
            self.note(place.path, NoteKind::NotSqlite { reason });
            return Ok(None);
        }
        let local = |doing: &str, source| RepositoryError::Local {
            doing: format!("{doing} `{}`", to.display()),
            source,
        };
        match std::fs::remove_file(&to) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(local("remove", error));
            }
            _ => {}
        }
        let copied = sqlite::copy(&from, &to).and_then(|()| {
            // SQLite goes by the name: it must have led where we have been.
            let there = std::fs::symlink_metadata(&from).map_err(|error| error.to_string())?;
            let is_same = (there.dev(), there.ino()) == (about.st_dev, about.st_ino);
            is_same
                .then_some(())
                .ok_or_else(|| "another file took its place".to_owned())
        });
        if let Err(reason) = copied {
            self.note(place.path, NoteKind::NotSqlite { reason });
            return Ok(None);
        }
        let copy = File::open(&to).map_err(|source| local("open", source))?;
        let base = writer.counts().bytes;
        let mut failed = None;
        let content = Content {
            inner: (&copy).take(u64::MAX),
            bytes: &self.bytes,
            failed: &mut failed,
        };
        writer.file(&place.path.to_string(), 0o600, content)?;
        if let Some(error) = failed {
            return Err(local("read", error));
        }
        std::fs::remove_file(&to).map_err(|source| local("remove", source))?;
        let bytes = writer.counts().bytes - base;
        let newest = touched_at(about).max(changed_at(about));
        let after = statat(place.folder, place.name, AtFlags::SYMLINK_NOFOLLOW);
        let is_still = after.is_ok_and(|after| state(&after) == state(about));
        let is_settled = is_alone && is_still && newest.0 + SETTLED_SECONDS <= now;
        let seen = is_settled && bytes == about.st_size.cast_unsigned();
        Ok(Some(EntryKind::File {
            bytes,
            seen: seen.then(|| (about.st_ino, touched_at(about))),
            is_sqlite: true,
        }))
    }

    fn missed(&mut self, path: &RawPath, error: Errno) {
        match error {
            // Removed meanwhile: that is no state of the snapshot.
            Errno::NOENT => {}
            // What was a file or a folder is a link or something else now.
            Errno::LOOP | Errno::NOTDIR | Errno::NXIO => self.note(path, NoteKind::Changing),
            error => {
                let reason = io::Error::from(error).to_string();
                self.note(path, NoteKind::Unreadable { reason });
            }
        }
    }

    fn note(&mut self, path: &RawPath, kind: NoteKind) {
        if self.notes.len() < NOTES_MAX {
            let path = path.clone();
            self.notes.push(Note { path, kind });
        }
    }
}

fn reading(path: &RawPath, source: io::Error) -> RepositoryError {
    let doing = format!("read `{path}`");
    RepositoryError::Local { doing, source }
}

fn names(folder: &OwnedFd) -> Result<Vec<OsString>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name));
        }
    }
    // A database comes before what lies beside it.
    names.sort();
    Ok(names)
}

/// The database that a file would belong to by its name.
fn beside(name: &OsString) -> Option<OsString> {
    let ends = BESIDE.iter().find_map(|end| {
        let rest = name.as_bytes().strip_suffix(end.as_bytes())?;
        Some(OsString::from_vec(rest.to_vec()))
    });
    ends.filter(|rest| !rest.is_empty())
}

/// Whether a file that is named like one of SQLite's is one.
fn is_of_database(folder: BorrowedFd<'_>, name: &OsString) -> bool {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let Ok(file) = openat(folder, name, flags, Mode::empty()) else {
        return false;
    };
    let is_plain = fstat(&file)
        .is_ok_and(|about| FileType::from_raw_mode(about.st_mode) == FileType::RegularFile);
    let mut head = [0; 8];
    let file = File::from(file);
    let is_own = match file.read_at(&mut head, 0) {
        Ok(0) => true,
        Ok(_) => {
            // A log, its index (in the byte order of the machine), and a journal; one that was ended has zeros there.
            let word = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
            let index = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]);
            matches!(word, 0x377f_0682 | 0x377f_0683)
                || index == 3_007_000
                || head == [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7]
                || head == [0; 8]
        }
        Err(_) => false,
    };
    is_plain && is_own
}

fn is_database(file: &File) -> bool {
    let mut head = [0; HEADER.len()];
    file.read_exact_at(&mut head, 0).is_ok() && head == *HEADER
}

fn entry(path: &RawPath, about: &Stat, kind: EntryKind) -> Entry {
    Entry {
        path: path.clone(),
        mode: about.st_mode & 0o7777,
        uid: about.st_uid,
        gid: about.st_gid,
        changed: changed_at(about),
        kind,
    }
}

fn changed_at(about: &Stat) -> Moment {
    Moment(about.st_mtime, about.st_mtime_nsec as u32)
}

fn touched_at(about: &Stat) -> Moment {
    Moment(about.st_ctime, about.st_ctime_nsec as u32)
}

fn state(about: &Stat) -> (i64, Moment, Moment) {
    (about.st_size, changed_at(about), touched_at(about))
}

/// Counts what is read. A file that cannot be read ends, and the error is told beside.
struct Content<'a> {
    inner: io::Take<&'a File>,
    bytes: &'a AtomicU64,
    failed: &'a mut Option<io::Error>,
}

impl Read for Content<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.inner.read(buffer) {
            Ok(len) => {
                self.bytes.fetch_add(len as u64, Ordering::Relaxed);
                Ok(len)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                *self.failed = Some(error);
                Ok(0)
            }
        }
    }
}
