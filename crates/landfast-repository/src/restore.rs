//! Files from packs: each pack is read once, in order, and its pages are written where they belong.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _},
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use tokio::task::JoinSet;

use crate::{
    FileKind, FileMap, Keyring, PackEntry, Repository, RepositoryError, Tree,
    pages::FRAME_BYTES,
    repository::compute,
    seal::{HEAD_LEN, Opener},
};

/// Packs that are read or opened at the same time.
const AT_ONCE: usize = 3;
/// Files one worker keeps open.
const OPEN_MAX: usize = 128;

/// How far a restore is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestoreProgress {
    pub bytes: u64,
    pub total: u64,
}

/// Where files go.
#[derive(Debug, Clone)]
pub struct FileSink {
    /// It must be there, and be empty.
    pub root: PathBuf,
    /// Files that get this path instead of their own: what must not be there before all else is.
    pub renamed: BTreeMap<String, String>,
}

impl FileSink {
    /// Files under their own names.
    pub fn new(root: PathBuf) -> Self {
        Self {
            root,
            renamed: BTreeMap::new(),
        }
    }

    fn path(&self, entry: &str) -> Result<PathBuf, RepositoryError> {
        let name = self.renamed.get(entry).map_or(entry, String::as_str);
        let is_below = Path::new(name)
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
        if !is_below {
            return Err(RepositoryError::Damaged {
                name: entry.to_owned(),
                what: "its path leads out of the folder",
            });
        }
        Ok(self.root.join(name))
    }
}

/// One run of a file, in a frame of a pack.
struct Write {
    file: u32,
    at: u64,
    offset: u32,
    len: u32,
}

/// Writes all files of a tree. Nothing is synced; that is for whoever calls the result whole.
///
/// # Errors
/// The first one. What was written by then stays, and is no restored tree.
pub async fn restore_files(
    repository: &Repository,
    tree: &Tree,
    maps: &[FileMap],
    sink: &FileSink,
    mut on_progress: impl FnMut(RestoreProgress),
) -> Result<(), RepositoryError> {
    let paths: Arc<[PathBuf]> = make_entries(tree, sink)?.into();
    let mut by_frame = writes(tree, maps);
    let total = tree.bytes();
    let mut bytes = 0;
    let mut tasks = JoinSet::new();
    let mut first_frame = 0;
    for pack in &tree.packs {
        let frames = pack.frames.len() as u32;
        let mut later = by_frame.split_off(&(first_frame + frames));
        std::mem::swap(&mut later, &mut by_frame);
        let work = PackWork {
            pack: pack.clone(),
            first_frame,
            writes: later,
            paths: Arc::clone(&paths),
            keys: Arc::clone(&repository.keys),
        };
        first_frame += frames;
        while tasks.len() >= AT_ONCE {
            bytes += joined(&mut tasks).await?;
            on_progress(RestoreProgress { bytes, total });
        }
        if work.writes.is_empty() {
            continue;
        }
        let repository = repository.clone();
        tasks.spawn(async move {
            let sealed = repository.storage.get(&work.pack.name).await?;
            let sealed = sealed.ok_or_else(|| RepositoryError::Missing {
                name: work.pack.name.clone(),
            })?;
            compute(move || work.run(sealed)).await
        });
    }
    while !tasks.is_empty() {
        bytes += joined(&mut tasks).await?;
        on_progress(RestoreProgress { bytes, total });
    }
    Ok(())
}

async fn joined(tasks: &mut JoinSet<Result<u64, RepositoryError>>) -> Result<u64, RepositoryError> {
    match tasks.join_next().await {
        Some(Ok(done)) => done,
        Some(Err(error)) => Err(RepositoryError::Stopped(error.to_string())),
        None => Ok(0),
    }
}

/// Makes folders and empty files, and gives the path of each file.
fn make_entries(tree: &Tree, sink: &FileSink) -> Result<Vec<PathBuf>, RepositoryError> {
    let mut paths = Vec::new();
    for entry in &tree.entries {
        let path = sink.path(&entry.path)?;
        let made = match entry.kind {
            FileKind::Folder => make_folder(&path, entry.mode),
            FileKind::File { .. } => {
                let parent = path.parent().unwrap_or(&sink.root);
                make_folder(parent, 0o700).and_then(|()| {
                    let mut options = fs::File::options();
                    options.write(true).create_new(true).mode(entry.mode);
                    options.open(&path).map(drop)
                })
            }
        };
        made.map_err(local("make", &path))?;
        if entry.kind != FileKind::Folder {
            paths.push(path);
        }
    }
    Ok(paths)
}

fn make_folder(path: &Path, mode: u32) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
}

fn writes(tree: &Tree, maps: &[FileMap]) -> BTreeMap<u32, Vec<Write>> {
    let mut by_frame: BTreeMap<u32, Vec<Write>> = BTreeMap::new();
    debug_assert_eq!(tree.files().count(), maps.len());
    for (file, map) in maps.iter().enumerate() {
        let mut at = 0;
        for run in &map.runs {
            by_frame.entry(run.frame).or_default().push(Write {
                file: file as u32,
                at,
                offset: run.offset,
                len: run.len,
            });
            at += u64::from(run.len);
        }
    }
    by_frame
}

struct PackWork {
    pack: PackEntry,
    first_frame: u32,
    writes: BTreeMap<u32, Vec<Write>>,
    paths: Arc<[PathBuf]>,
    keys: Arc<Keyring>,
}

impl PackWork {
    fn run(self, sealed: Bytes) -> Result<u64, RepositoryError> {
        let damaged = |what| RepositoryError::Damaged {
            name: self.pack.name.clone(),
            what,
        };
        let mut sealed = Vec::from(sealed);
        let mut opener = Opener::new(&self.keys, &self.pack.name, &sealed)?;
        let mut open: HashMap<u32, fs::File> = HashMap::new();
        let mut scratch = Vec::with_capacity(FRAME_BYTES);
        let mut bytes = 0;
        let mut at = HEAD_LEN;
        for (number, len) in self.pack.frames.iter().enumerate() {
            let start = at;
            at += *len as usize;
            let Some(writes) = self.writes.get(&(self.first_frame + number as u32)) else {
                continue;
            };
            let frame = sealed
                .get_mut(start..at)
                .ok_or_else(|| damaged("it is cut short"))?;
            let data = opener.frame(number as u64, frame, FRAME_BYTES, &mut scratch)?;
            for write in writes {
                let from = write.offset as usize;
                let part = data.get(from..from + write.len as usize);
                let part = part.ok_or_else(|| damaged("a frame is shorter than its map says"))?;
                let path = &self.paths[write.file as usize];
                if !open.contains_key(&write.file) {
                    if open.len() >= OPEN_MAX {
                        open.clear();
                    }
                    let file = fs::File::options().write(true).open(path);
                    open.insert(write.file, file.map_err(local("open", path))?);
                }
                open[&write.file]
                    .write_all_at(part, write.at)
                    .map_err(local("write", path))?;
                bytes += u64::from(write.len);
            }
        }
        Ok(bytes)
    }
}

fn local(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RepositoryError {
    let doing = format!("{verb} `{}`", path.display());
    move |source| RepositoryError::Local { doing, source }
}
