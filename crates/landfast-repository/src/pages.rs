//! Files cut into pages; those that changed since the parent go into frames, and frames into packs.
//!
//! 8 KiB is what PostgreSQL changes at once. With larger chunks few rows touch nearly all of them: of chunks that hold n
//! rows, updating one row in a hundred at random leaves 0.99ⁿ as they were (docs/decisions/0025). Only the *place* of a page is looked
//! at, not all places: that costs 16 bytes for each page of the parent instead of an index of everything there is.

use std::{
    collections::{BTreeSet, HashMap},
    io::Read,
    sync::{Arc, mpsc},
};

use aws_lc_rs::digest::{Context, SHA256};

use crate::{
    FileEntry, FileKind, FileMap, Keyring, PackEntry, PageHash, RepositoryError, Run, Tree,
    TreeError, seal::Seal,
};

/// The unit of change.
pub const PAGE_BYTES: usize = 8 << 10;
/// What is compressed and sealed together.
pub(crate) const FRAME_BYTES: usize = 128 << 10;
/// What is put together.
const PACK_BYTES: usize = 16 << 20;

/// A full frame, to be compressed and sealed.
pub(crate) struct RawFrame {
    pub(crate) pack: usize,
    /// Within its pack.
    pub(crate) number: u32,
    /// The last one of its pack.
    pub(crate) is_last: bool,
    pub(crate) seal: Arc<Seal>,
    pub(crate) data: Vec<u8>,
}

/// What was made of the pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PageCounts {
    pub bytes: u64,
    /// Of them, referred to in the parent.
    pub same_bytes: u64,
}

/// Whose frames a run is counted in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whose {
    Parent,
    Own,
}

/// A file that begins with a page that was seen before.
enum Copied {
    /// In the parent, by its path.
    Parent(String),
    /// In this tree, by its place.
    Own(usize),
}

/// What a backup is compared with.
pub struct Parent {
    files: HashMap<String, FileMap>,
    /// Where each frame of the parent lies: pack, number within it.
    frames: Vec<(u32, u32)>,
    packs: Vec<PackEntry>,
    /// Nothing of these is referred to any more.
    left: BTreeSet<u32>,
}

/// How much of a pack a tree refers to, in bytes as they are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PackUse {
    pub stored: u64,
    /// Estimated: a frame does not say how much each of its pages takes.
    pub live: u64,
}

impl Parent {
    /// From a tree with its map and its hashes.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn new(tree: &Tree, map: &[u8], hashes: &[u8]) -> Result<Self, TreeError> {
        let mut maps = tree.read_map(map)?;
        tree.read_hashes(hashes, &mut maps)?;
        let names = tree.files().map(|entry| entry.path.clone());
        let frames = tree.packs.iter().enumerate().flat_map(|(pack, entry)| {
            (0..entry.frames.len()).map(move |frame| (pack as u32, frame as u32))
        });
        Ok(Self {
            files: names.zip(maps).collect(),
            frames: frames.collect(),
            packs: tree.packs.clone(),
            left: BTreeSet::new(),
        })
    }

    /// What the parent refers to of each of its packs, in the order of its tree.
    pub fn uses(&self) -> Vec<PackUse> {
        let mut frames = vec![(0_u64, 0_u64); self.frames.len()];
        #[expect(clippy::disallowed_methods, reason = "sums and maxima need no order")]
        let runs = self.files.values().flat_map(|map| &map.runs);
        for run in runs {
            let (live, end) = &mut frames[run.frame as usize];
            *live += u64::from(run.len);
            *end = u64::from(run.offset + run.len).max(*end);
        }
        let mut uses = vec![PackUse::default(); self.packs.len()];
        for ((pack, number), (live, end)) in self.frames.iter().zip(frames) {
            let entry = &self.packs[*pack as usize];
            let stored = u64::from(entry.frames[*number as usize]);
            // All but the last frame of a pack are full; of the last one what is known is what is referred to.
            let is_last = *number as usize + 1 == entry.frames.len();
            let len = if is_last { end } else { FRAME_BYTES as u64 };
            let pack = &mut uses[*pack as usize];
            pack.stored += stored;
            pack.live += stored * live.min(len) / len.max(1);
        }
        uses
    }

    /// Refers to nothing of these packs (by their place in the tree): their pages are stored again, whether they changed or not.
    pub fn leave(&mut self, packs: impl IntoIterator<Item = usize>) {
        self.left.extend(packs.into_iter().map(|pack| pack as u32));
    }

    fn is_left(&self, frame: u32) -> bool {
        let (pack, _) = self.frames[frame as usize];
        self.left.contains(&pack)
    }
}

/// Where a frame of the new tree lies.
#[derive(Clone, Copy, PartialEq, Eq)]
enum FrameAt {
    Parent { pack: u32, frame: u32 },
    New { pack: u32, frame: u32 },
}

/// Takes files one behind the other and gives frames away as they fill up. Blocking: it waits where they are taken slower
/// than they are made.
pub struct PageWriter {
    keys: Arc<Keyring>,
    /// Below this the packs are put: `<folder>/000000`, ….
    folder: String,
    page_key: Vec<u8>,
    parent: Option<Arc<Parent>>,
    sink: mpsc::SyncSender<RawFrame>,
    entries: Vec<FileEntry>,
    maps: Vec<FileMap>,
    frames: Vec<FrameAt>,
    /// The frame of the new tree a frame of the parent has become.
    borrowed: HashMap<u32, u32>,
    frame: Vec<u8>,
    /// Its number; others may have been borrowed since it was begun.
    filling: u32,
    pack: Option<Arc<Seal>>,
    pack_bytes: usize,
    pack_frames: u32,
    pack_number: usize,
    counts: PageCounts,
    /// By their first page, where copies are looked for.
    copies: Option<HashMap<PageHash, Copied>>,
    /// Of the file that was added last, what was not stored again.
    last_same: u64,
}

/// A written tree whose packs are on their way.
pub(crate) struct Written {
    entries: Vec<FileEntry>,
    pub(crate) maps: Vec<FileMap>,
    frames: Vec<FrameAt>,
    parent: Option<Arc<Parent>>,
    pub(crate) counts: PageCounts,
}

impl PageWriter {
    /// Begins a tree. Full frames go to `sink`.
    pub(crate) fn new(
        keys: Arc<Keyring>,
        folder: &str,
        parent: Option<Arc<Parent>>,
        sink: mpsc::SyncSender<RawFrame>,
    ) -> Self {
        Self {
            page_key: keys.current().derive(b"", b"pages").to_vec(),
            keys,
            folder: folder.to_owned(),
            parent,
            sink,
            entries: Vec::new(),
            maps: Vec::new(),
            frames: Vec::new(),
            borrowed: HashMap::new(),
            frame: Vec::with_capacity(FRAME_BYTES),
            filling: 0,
            pack: None,
            pack_bytes: 0,
            pack_frames: 0,
            pack_number: 0,
            counts: PageCounts::default(),
            copies: None,
            last_same: 0,
        }
    }

    /// Compares files that the parent does not know with one that begins with the same page: a file that was moved or copied is
    /// not stored again. Costs memory for each file.
    #[must_use]
    pub fn finding_copies(mut self) -> Self {
        let parent = self.parent.clone();
        #[expect(
            clippy::disallowed_methods,
            reason = "any of those that are alike does"
        )]
        let known = parent.iter().flat_map(|parent| parent.files.iter());
        let begins = known.filter_map(|(path, map)| {
            let first = map.hashes.first()?;
            Some((*first, Copied::Parent(path.clone())))
        });
        self.copies = Some(begins.collect());
        self
    }

    /// Adds a folder.
    pub fn folder(&mut self, path: &str, mode: u32) {
        self.entries.push(FileEntry {
            path: path.to_owned(),
            mode,
            kind: FileKind::Folder,
        });
    }

    /// What was taken so far.
    pub fn counts(&self) -> PageCounts {
        self.counts
    }

    /// Adds a file, read to its end.
    ///
    /// # Errors
    /// [`RepositoryError::Local`] where it cannot be read, [`RepositoryError::Stopped`] where nobody takes frames any more.
    pub fn file(
        &mut self,
        path: &str,
        mode: u32,
        content: impl Read,
    ) -> Result<(), RepositoryError> {
        let parent = self.parent.clone();
        let old = parent.as_ref().and_then(|parent| parent.files.get(path));
        self.read(path, mode, content, old.map(|map| (map, Whose::Parent)))
    }

    /// Reads the file that was added last once more, and takes the new content in place of the old. Pages that are the same are not
    /// stored again.
    ///
    /// # Errors
    /// As [`PageWriter::file`].
    pub fn file_again(&mut self, content: impl Read) -> Result<(), RepositoryError> {
        let Some((entry, map)) = self.take_back() else {
            return Ok(());
        };
        self.read(&entry.path, entry.mode, content, Some((&map, Whose::Own)))
    }

    /// Adds a file as the parent has it, unread. `false` where it has none, or where its pages are to be stored again.
    pub fn unchanged(&mut self, path: &str, mode: u32) -> bool {
        let parent = self.parent.clone();
        let known = parent
            .as_ref()
            .and_then(|parent| Some((parent, parent.files.get(path)?)));
        let Some((parent, old)) = known else {
            return false;
        };
        if old.runs.iter().any(|run| parent.is_left(run.frame)) {
            return false;
        }
        let mut map = FileMap {
            runs: Vec::with_capacity(old.runs.len()),
            hashes: old.hashes.clone(),
        };
        let mut bytes = 0;
        for run in &old.runs {
            let frame = self.borrow(run.frame);
            map.push(Run { frame, ..*run });
            bytes += u64::from(run.len);
        }
        self.counts.bytes += bytes;
        self.counts.same_bytes += bytes;
        self.last_same = bytes;
        self.add(path, mode, bytes, map);
        true
    }

    /// Takes the file that was added last out again, where an entry of it cannot be kept. What was stored of it stays unused.
    pub fn take_back(&mut self) -> Option<(FileEntry, FileMap)> {
        let is_file = |entry: &mut FileEntry| entry.kind != FileKind::Folder;
        let entry = self.entries.pop_if(is_file)?;
        let map = self.maps.pop().expect("each file has a map");
        if let FileKind::File { bytes } = entry.kind {
            self.counts.bytes -= bytes;
        }
        self.counts.same_bytes -= std::mem::take(&mut self.last_same);
        // The next one to begin so is stored once more.
        let (place, first) = (self.maps.len(), map.hashes.first());
        if let Some((copies, first)) = self.copies.as_mut().zip(first)
            && matches!(copies.get(first), Some(Copied::Own(known)) if *known == place)
        {
            copies.remove(first);
        }
        Some((entry, map))
    }

    fn read(
        &mut self,
        path: &str,
        mode: u32,
        mut content: impl Read,
        old: Option<(&FileMap, Whose)>,
    ) -> Result<(), RepositoryError> {
        let parent = self.parent.clone();
        let failed = |source| {
            let doing = format!("read `{path}`");
            RepositoryError::Local { doing, source }
        };
        let mut page = vec![0; PAGE_BYTES];
        let mut len = read_page(&mut content, &mut page).map_err(failed)?;
        let mut hash = self.hash(&page[..len]);
        let alike = (old.is_none() && len > 0).then(|| self.alike(&hash));
        let alike = alike.flatten();
        let old = old.or(alike.as_ref().map(|(map, whose)| (map, *whose)));
        let mut old = old.map(|(map, whose)| (OldPages::new(map), whose));
        let mut map = FileMap::default();
        let mut bytes = 0;
        self.last_same = 0;
        while len > 0 {
            let same = old
                .as_mut()
                .and_then(|(old, whose)| Some((old.next(&hash, len)?, *whose)));
            let run = match same {
                Some((run, Whose::Own)) => Some(run),
                Some((run, Whose::Parent)) => {
                    let is_left = parent
                        .as_ref()
                        .is_some_and(|parent| parent.is_left(run.frame));
                    (!is_left).then(|| Run {
                        frame: self.borrow(run.frame),
                        ..run
                    })
                }
                None => None,
            };
            let run = match run {
                Some(run) => {
                    self.counts.same_bytes += len as u64;
                    self.last_same += len as u64;
                    run
                }
                None => self.store(&page[..len])?,
            };
            map.push(run);
            map.hashes.push(hash);
            bytes += len as u64;
            self.counts.bytes += len as u64;
            if len < PAGE_BYTES {
                break;
            }
            len = read_page(&mut content, &mut page).map_err(failed)?;
            hash = self.hash(&page[..len]);
        }
        self.add(path, mode, bytes, map);
        Ok(())
    }

    fn add(&mut self, path: &str, mode: u32, bytes: u64, map: FileMap) {
        if let Some((copies, first)) = self.copies.as_mut().zip(map.hashes.first()) {
            copies
                .entry(*first)
                .or_insert_with(|| Copied::Own(self.maps.len()));
        }
        self.entries.push(FileEntry {
            path: path.to_owned(),
            mode,
            kind: FileKind::File { bytes },
        });
        self.maps.push(map);
    }

    /// A file that begins with the same page.
    fn alike(&self, first: &PageHash) -> Option<(FileMap, Whose)> {
        match self.copies.as_ref()?.get(first)? {
            Copied::Own(place) => Some((self.maps.get(*place)?.clone(), Whose::Own)),
            Copied::Parent(path) => {
                let parent = self.parent.as_ref()?;
                Some((parent.files.get(path)?.clone(), Whose::Parent))
            }
        }
    }

    /// Gives the last frame away.
    ///
    /// # Errors
    /// [`RepositoryError::Stopped`].
    pub(crate) fn finish(mut self) -> Result<Written, RepositoryError> {
        // A frame ends when the next page is there, so what is open now is the last of its pack.
        self.end_frame(true)?;
        Ok(Written {
            entries: self.entries,
            maps: self.maps,
            frames: self.frames,
            parent: self.parent,
            counts: self.counts,
        })
    }

    fn hash(&self, page: &[u8]) -> PageHash {
        let mut context = Context::new(&SHA256);
        context.update(&self.page_key);
        context.update(page);
        context.finish().as_ref()[..16]
            .try_into()
            .expect("32 bytes")
    }

    /// The new number of a frame of the parent.
    fn borrow(&mut self, frame: u32) -> u32 {
        let parent = self.parent.as_ref().expect("a run was taken from it");
        let (pack, number) = parent.frames[frame as usize];
        let frames = &mut self.frames;
        *self.borrowed.entry(frame).or_insert_with(|| {
            frames.push(FrameAt::Parent {
                pack,
                frame: number,
            });
            frames.len() as u32 - 1
        })
    }

    fn store(&mut self, page: &[u8]) -> Result<Run, RepositoryError> {
        if self.frame.len() + page.len() > FRAME_BYTES {
            self.end_frame(false)?;
        }
        if self.frame.is_empty() {
            self.filling = self.frames.len() as u32;
            self.frames.push(FrameAt::New {
                pack: self.pack_number as u32,
                frame: self.pack_frames,
            });
        }
        let offset = self.frame.len() as u32;
        self.frame.extend_from_slice(page);
        Ok(Run {
            frame: self.filling,
            offset,
            len: page.len() as u32,
        })
    }

    fn end_frame(&mut self, is_end: bool) -> Result<(), RepositoryError> {
        if self.frame.is_empty() {
            return Ok(());
        }
        let data = std::mem::replace(&mut self.frame, Vec::with_capacity(FRAME_BYTES));
        self.pack_bytes += data.len();
        let is_last = is_end || self.pack_bytes >= PACK_BYTES;
        let seal = match self.pack.take() {
            Some(seal) => seal,
            None => {
                let name = pack_name(&self.folder, self.pack_number);
                Arc::new(Seal::new(self.keys.current(), &name)?)
            }
        };
        let frame = RawFrame {
            pack: self.pack_number,
            number: self.pack_frames,
            is_last,
            seal: Arc::clone(&seal),
            data,
        };
        if is_last {
            (self.pack_number, self.pack_frames, self.pack_bytes) = (self.pack_number + 1, 0, 0);
        } else {
            self.pack = Some(seal);
            self.pack_frames += 1;
        }
        let sent = self.sink.send(frame);
        sent.map_err(|_| RepositoryError::Stopped("nothing takes its frames any more".into()))
    }
}

/// The name of a pack below its folder.
pub(crate) fn pack_name(folder: &str, number: usize) -> String {
    format!("{folder}/{number:06}")
}

impl Written {
    /// The tree and its maps, once it is known where the new packs lie and how long their frames are.
    pub(crate) fn into_tree(self, new: Vec<PackEntry>) -> (Tree, Vec<FileMap>) {
        let Self {
            entries,
            mut maps,
            frames,
            parent,
            ..
        } = self;
        let old = parent.as_ref().map_or(&[][..], |parent| &parent.packs);
        // Packs of the parent that are still needed come first, whole; then the new ones.
        let needed = frames.iter().filter_map(|at| match at {
            FrameAt::Parent { pack, .. } => Some(*pack),
            FrameAt::New { .. } => None,
        });
        let needed: BTreeSet<_> = needed.collect();
        let mut first_frame = HashMap::new();
        let mut packs = Vec::new();
        let mut total = 0;
        for number in needed {
            let pack = &old[number as usize];
            first_frame.insert((true, number), total);
            total += pack.frames.len() as u32;
            packs.push(pack.clone());
        }
        for (number, pack) in new.into_iter().enumerate() {
            first_frame.insert((false, number as u32), total);
            total += pack.frames.len() as u32;
            packs.push(pack);
        }
        let place = |at: &FrameAt| match at {
            FrameAt::Parent { pack, frame } => first_frame[&(true, *pack)] + frame,
            FrameAt::New { pack, frame } => first_frame[&(false, *pack)] + frame,
        };
        let places: Vec<_> = frames.iter().map(place).collect();
        let runs = maps.iter_mut().flat_map(|map| &mut map.runs);
        runs.for_each(|run| run.frame = places[run.frame as usize]);
        (Tree { entries, packs }, maps)
    }
}

impl FileMap {
    /// Adds a run, or lengthens the last one.
    fn push(&mut self, run: Run) {
        match self.runs.last_mut() {
            Some(last) if last.frame == run.frame && last.offset + last.len == run.offset => {
                last.len += run.len;
            }
            _ => self.runs.push(run),
        }
    }
}

/// The pages of a file in the parent, in order.
struct OldPages<'a> {
    map: &'a FileMap,
    page: usize,
    run: usize,
    within: u32,
}

impl<'a> OldPages<'a> {
    fn new(map: &'a FileMap) -> Self {
        Self {
            map,
            page: 0,
            run: 0,
            within: 0,
        }
    }

    /// Goes on by one page; gives its place where it is the same.
    fn next(&mut self, hash: &PageHash, len: usize) -> Option<Run> {
        let old = *self.map.hashes.get(self.page)?;
        self.page += 1;
        let run = *self.map.runs.get(self.run)?;
        let left = run.len - self.within;
        let old_len = left.min(PAGE_BYTES as u32);
        let place = Run {
            frame: run.frame,
            offset: run.offset + self.within,
            len: old_len,
        };
        self.within += old_len;
        if self.within == run.len {
            self.run += 1;
            self.within = 0;
        }
        (old == *hash && old_len as usize == len).then_some(place)
    }
}

fn read_page(content: &mut impl Read, page: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < page.len() {
        match content.read(&mut page[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
