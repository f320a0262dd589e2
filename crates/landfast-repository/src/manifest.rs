//! What a tree of files is made of: entries, the packs they need, where each page lies, and what each page hashes to.
//!
//! Entries and packs are JSON, in the manifest of whoever owns the tree. Places and hashes are many and small; each kind is one
//! object of its own in a plain layout, all numbers little-endian:
//!
//! ```text
//! map:    for each file, in the order of the entries: runs (u32), then each run: frame (u32), offset (u32), length (u32)
//! hashes: for each file: pages (u32), then each page: 16 bytes
//! ```
//!
//! Frames are counted through all packs of the tree, in order. A file is the content of its runs, one behind the other.

use serde::{Deserialize, Serialize};

/// The first half of the SHA-256 of a key of the repository and the page.
pub type PageHash = [u8; 16];

/// One file or folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Below the root, with `/`, never absolute, never with `..`.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    #[serde(flatten)]
    pub kind: FileKind,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum FileKind {
    Folder,
    File { bytes: u64 },
}

/// A pack and the lengths of its frames, as they are stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackEntry {
    pub name: String,
    pub frames: Vec<u32>,
}

/// Some bytes of an opened frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    pub frame: u32,
    pub offset: u32,
    pub len: u32,
}

/// Where the content of a file lies.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FileMap {
    pub runs: Vec<Run>,
    pub hashes: Vec<PageHash>,
}

/// A tree of files.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Tree {
    pub entries: Vec<FileEntry>,
    pub packs: Vec<PackEntry>,
}

/// Bytes that are no map of their tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the map does not fit its tree")]
pub struct TreeError;

impl Tree {
    /// How long all files are together.
    pub fn bytes(&self) -> u64 {
        let bytes = self.entries.iter().map(|entry| match entry.kind {
            FileKind::Folder => 0,
            FileKind::File { bytes } => bytes,
        });
        bytes.sum()
    }

    /// The entries that are files, in order.
    pub fn files(&self) -> impl Iterator<Item = &FileEntry> {
        let mut all = self.entries.iter();
        std::iter::from_fn(move || all.find(|entry| entry.kind != FileKind::Folder))
    }

    /// Writes the places of all files.
    pub fn write_map(maps: &[FileMap]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for map in maps {
            bytes.extend((map.runs.len() as u32).to_le_bytes());
            for run in &map.runs {
                for number in [run.frame, run.offset, run.len] {
                    bytes.extend(number.to_le_bytes());
                }
            }
        }
        bytes
    }

    /// Writes the hashes of all pages.
    pub fn write_hashes(maps: &[FileMap]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for map in maps {
            bytes.extend((map.hashes.len() as u32).to_le_bytes());
            map.hashes.iter().for_each(|hash| bytes.extend(hash));
        }
        bytes
    }

    /// Reads the places of all files, and checks that they add up.
    ///
    /// # Errors
    /// [`TreeError`] where a run lies outside the packs, or a file has another length.
    pub fn read_map(&self, bytes: &[u8]) -> Result<Vec<FileMap>, TreeError> {
        let frames = self
            .packs
            .iter()
            .map(|pack| pack.frames.len())
            .sum::<usize>();
        let mut reader = Reader(bytes);
        let maps = self.files().map(|entry| {
            let mut map = FileMap::default();
            let mut total = 0_u64;
            for _ in 0..reader.number()? {
                let run = Run {
                    frame: reader.number()?,
                    offset: reader.number()?,
                    len: reader.number()?,
                };
                let is_inside = (run.frame as usize) < frames
                    && run.offset.checked_add(run.len)? as usize <= crate::pages::FRAME_BYTES;
                total += u64::from(run.len);
                map.runs.push(is_inside.then_some(run)?);
            }
            (entry.kind == FileKind::File { bytes: total }).then_some(map)
        });
        let maps = maps.collect::<Option<Vec<_>>>().ok_or(TreeError)?;
        if reader.0.is_empty() {
            Ok(maps)
        } else {
            Err(TreeError)
        }
    }

    /// Reads the hashes of all pages into maps that have their places.
    ///
    /// # Errors
    /// [`TreeError`] where there are too few or too many.
    pub fn read_hashes(&self, bytes: &[u8], maps: &mut [FileMap]) -> Result<(), TreeError> {
        let mut reader = Reader(bytes);
        for map in maps {
            let count = reader.number().ok_or(TreeError)?;
            let hashes = (0..count).map(|_| reader.take::<16>());
            map.hashes = hashes.collect::<Option<_>>().ok_or(TreeError)?;
        }
        if reader.0.is_empty() {
            Ok(())
        } else {
            Err(TreeError)
        }
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn number(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> (Tree, Vec<FileMap>) {
        let file = |path: &str, bytes| FileEntry {
            path: path.into(),
            mode: 0o600,
            kind: FileKind::File { bytes },
        };
        let tree = Tree {
            entries: vec![
                file("a", 30),
                FileEntry {
                    path: "d".into(),
                    mode: 0o700,
                    kind: FileKind::Folder,
                },
                file("d/b", 0),
            ],
            packs: vec![PackEntry {
                name: "p".into(),
                frames: vec![9, 9],
            }],
        };
        let run = |frame, offset, len| Run { frame, offset, len };
        let full = FileMap {
            runs: vec![run(0, 5, 10), run(1, 0, 20)],
            hashes: vec![[7; 16]],
        };
        (tree, vec![full, FileMap::default()])
    }

    #[test]
    fn a_map_reads_back() {
        let (tree, maps) = tree();
        let mut read = tree.read_map(&Tree::write_map(&maps)).unwrap();
        tree.read_hashes(&Tree::write_hashes(&maps), &mut read)
            .unwrap();
        assert_eq!(read, maps);
        assert_eq!(tree.bytes(), 30);
    }

    #[test]
    fn a_map_that_does_not_add_up_is_refused() {
        let (tree, maps) = tree();
        let bytes = Tree::write_map(&maps);
        for cut in 0..bytes.len() {
            assert_eq!(tree.read_map(&bytes[..cut]), Err(TreeError));
        }
        for change in [
            |run: &mut Run| run.frame = 2,
            |run: &mut Run| run.len = 11,
            |run: &mut Run| run.offset = u32::MAX,
        ] {
            let mut maps = maps.clone();
            change(&mut maps[0].runs[0]);
            assert_eq!(tree.read_map(&Tree::write_map(&maps)), Err(TreeError));
        }
    }
}
