//! Packs on their way: one thread cuts files into pages, some compress and seal frames, and packs are put as they get whole.
//!
//! ```text
//! fill ─ frames of 128 KiB ─▶ sealers, one for each core ─ sealed, out of order ─▶ packs ─▶ put, two at once
//! ```
//!
//! Every arrow has a bound, so the slowest of them slows the others, down to whoever is read from. In memory are the packs that are
//! put or made up, 16 MiB each at most, and a few frames. All threads of it give way to others ([`NICENESS`]).

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, mpsc::sync_channel},
};

use bytes::Bytes;
use rustix::process::setpriority_process;
use tokio::{
    sync::{mpsc, oneshot},
    task::{JoinError, JoinSet},
};

use crate::{
    FileMap, PackEntry, Parent, Repository, RepositoryError, Tree,
    pages::{PageCounts, PageWriter, RawFrame, pack_name},
    seal::Sealer,
};

/// Packs that are put at the same time.
const PUTS_AT_ONCE: usize = 2;
/// Threads that compress and seal, where there are so many cores.
const SEALERS_MAX: usize = 4;
/// Frames that wait for each of them.
const WAITING: usize = 2;
/// Whatever else wants a core has it first (`nice(2)`). A backup of an idle host is no slower for it.
const NICENESS: i32 = 5;

/// A tree whose packs are all in the repository.
pub struct Uploaded {
    pub tree: Tree,
    pub maps: Vec<FileMap>,
    pub counts: PageCounts,
    /// New packs as they are stored.
    pub stored_bytes: u64,
}

/// Runs `fill` on a thread that may block, and puts the packs it makes below `folder`: `<folder>/000000`, ….
///
/// `on_stored` is told how many bytes were put, after each pack.
///
/// # Errors
/// The first one of either side. Packs that were put by then are garbage that no manifest names.
pub async fn upload_packs(
    repository: &Repository,
    folder: &str,
    parent: Option<Arc<Parent>>,
    fill: impl FnOnce(PageWriter) -> Result<PageWriter, RepositoryError> + Send + 'static,
    mut on_stored: impl FnMut(u64),
) -> Result<Uploaded, RepositoryError> {
    let sealers = std::thread::available_parallelism().map_or(1, usize::from);
    let sealers = sealers.min(SEALERS_MAX);
    let (raw, frames) = sync_channel(sealers * WAITING);
    let (sealed, mut arriving) = mpsc::channel(sealers * WAITING);
    let frames = Arc::new(Mutex::new(frames));
    let sealing = (0..sealers).map(|_| {
        let (frames, sealed) = (Arc::clone(&frames), sealed.clone());
        background("backup-seal", move || seal_frames(&frames, &sealed))
    });
    let sealing = sealing.collect::<Result<Vec<_>, _>>()?;
    // Whoever sends holds them from here on.
    drop((frames, sealed));
    let writer = PageWriter::new(Arc::clone(&repository.keys), folder, parent, raw);
    let filling = background("backup-read", move || fill(writer)?.finish())?;

    let mut making: BTreeMap<usize, Making> = BTreeMap::new();
    let mut puts = JoinSet::new();
    let mut put: Vec<(usize, PackEntry)> = Vec::new();
    let mut stored_bytes = 0;
    let mut take = |done: Result<Result<Stored, RepositoryError>, JoinError>| {
        let stored = done.map_err(|error| RepositoryError::Stopped(error.to_string()))??;
        stored_bytes += stored.bytes;
        on_stored(stored_bytes);
        put.push((stored.number, stored.entry));
        Ok::<_, RepositoryError>(())
    };
    while let Some(frame) = arriving.recv().await {
        let number = frame.pack;
        let pack = making.entry(number).or_default();
        pack.add(frame);
        if !pack.is_whole() {
            continue;
        }
        let pack = making.remove(&number).expect("it was just looked at");
        while let Some(done) = puts.try_join_next() {
            take(done)?;
        }
        while puts.len() >= PUTS_AT_ONCE {
            if let Some(done) = puts.join_next().await {
                take(done)?;
            }
        }
        let name = pack_name(folder, number);
        puts.spawn(store(repository.clone(), name, number, pack));
    }
    while let Some(done) = puts.join_next().await {
        take(done)?;
    }
    // Its error is the cause of theirs.
    let written = ended(filling).await?;
    for sealed in sealing {
        ended(sealed).await?;
    }
    put.sort_by_key(|(number, _)| *number);
    let counts = written.counts;
    let (tree, maps) = written.into_tree(put.into_iter().map(|(_, entry)| entry).collect());
    Ok(Uploaded {
        tree,
        maps,
        counts,
        stored_bytes,
    })
}

type Ending<T> = oneshot::Receiver<Result<T, RepositoryError>>;

/// Starts a thread of its own that gives way to others. Threads that are lent would go on giving way for whoever has them next.
fn background<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> Result<T, RepositoryError> + Send + 'static,
) -> Result<Ending<T>, RepositoryError> {
    let (sender, ending) = oneshot::channel();
    let thread = std::thread::Builder::new().name(name.to_owned());
    let started = thread.spawn(move || {
        // Linux counts niceness by thread; where it is refused the work is done all the same.
        setpriority_process(None, NICENESS).ok();
        drop(sender.send(work()));
    });
    match started {
        Ok(_thread) => Ok(ending),
        Err(source) => Err(RepositoryError::Local {
            doing: "start a thread".into(),
            source,
        }),
    }
}

async fn ended<T>(ending: Ending<T>) -> Result<T, RepositoryError> {
    let gone = |_| RepositoryError::Stopped("a thread of the backup ended before its work".into());
    ending.await.map_err(gone)?
}

struct SealedFrame {
    pack: usize,
    number: u32,
    is_last: bool,
    head: Option<Vec<u8>>,
    bytes: Vec<u8>,
}

/// Until there are no more frames, or nobody takes them.
fn seal_frames(
    frames: &Mutex<std::sync::mpsc::Receiver<RawFrame>>,
    sealed: &mpsc::Sender<SealedFrame>,
) -> Result<(), RepositoryError> {
    let mut sealer = Sealer::new()?;
    let next = || {
        let frames = frames.lock().unwrap_or_else(PoisonError::into_inner);
        frames.recv().ok()
    };
    while let Some(frame) = next() {
        let number = frame.number;
        let mut bytes = Vec::new();
        sealer.frame(&frame.seal, u64::from(number), &frame.data, &mut bytes);
        let done = SealedFrame {
            pack: frame.pack,
            number,
            is_last: frame.is_last,
            head: (number == 0).then(|| frame.seal.head.to_vec()),
            bytes,
        };
        if sealed.blocking_send(done).is_err() {
            break;
        }
    }
    Ok(())
}

/// A pack whose frames come in, in any order.
#[derive(Default)]
struct Making {
    head: Vec<u8>,
    frames: BTreeMap<u32, Vec<u8>>,
    /// How many there are to be, once the last one was seen.
    count: Option<u32>,
}

impl Making {
    fn add(&mut self, frame: SealedFrame) {
        if let Some(head) = frame.head {
            self.head = head;
        }
        if frame.is_last {
            self.count = Some(frame.number + 1);
        }
        self.frames.insert(frame.number, frame.bytes);
    }

    fn is_whole(&self) -> bool {
        self.count == Some(self.frames.len() as u32)
    }
}

struct Stored {
    number: usize,
    entry: PackEntry,
    bytes: u64,
}

async fn store(
    repository: Repository,
    name: String,
    number: usize,
    pack: Making,
) -> Result<Stored, RepositoryError> {
    let frames = pack.frames.values().map(|frame| frame.len() as u32);
    let frames = frames.collect();
    let parts = std::iter::once(pack.head).chain(pack.frames.into_values());
    let parts: Vec<_> = parts.map(Bytes::from).collect();
    let bytes = parts.iter().map(|part| part.len() as u64).sum();
    repository.storage.put_parts(&name, parts).await?;
    Ok(Stored {
        number,
        entry: PackEntry { name, frames },
        bytes,
    })
}
