//! The folder `pg_receivewal` writes into, and where whole records end in it.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use landfast_backup::{Lsn, Segment, SegmentBytes, Timeline, scan_from_segment_start, scan_wal};
use landfast_repository::freeing;

use crate::{BackupError, Programs, restore::own_tree};

const PARTIAL: &str = ".partial";

/// A file of WAL in the spool.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SpoolFile {
    pub(crate) segment: Segment,
    /// Still being written, or left behind when its timeline ended.
    pub(crate) is_partial: bool,
    pub(crate) path: PathBuf,
}

impl SpoolFile {
    /// The same file under the name it gets when it is full.
    pub(crate) fn closed(&self) -> Self {
        let path = match self.is_partial {
            true => self.path.with_extension(""),
            false => self.path.clone(),
        };
        Self {
            segment: self.segment,
            is_partial: false,
            path,
        }
    }
}

/// What lies in the spool.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// In order of timeline and place.
    pub(crate) files: Vec<SpoolFile>,
    pub(crate) histories: Vec<(Timeline, PathBuf)>,
}

pub(crate) fn make(folder: &Path) -> Result<(), BackupError> {
    let made = fs::create_dir_all(folder)
        .and_then(|()| fs::set_permissions(folder, fs::Permissions::from_mode(0o700)))
        .and_then(|()| freeing::sweep(folder));
    made.map_err(BackupError::io("make", folder))
}

/// What is in it, too: `pg_receivewal` goes on with the segment that it left.
pub(crate) fn hand_over(folder: &Path, programs: &Programs) -> Result<(), BackupError> {
    if programs.containers.is_none() {
        return Ok(());
    }
    own_tree(folder, programs.user).map_err(BackupError::io("give away", folder))
}

pub(crate) fn list(folder: &Path, size: SegmentBytes) -> Result<Listing, BackupError> {
    let failed = || BackupError::io("list", folder);
    let mut listing = Listing::default();
    for entry in fs::read_dir(folder).map_err(failed())? {
        let entry = entry.map_err(failed())?;
        let (name, path) = (entry.file_name(), entry.path());
        // Where a container writes it, a link would lead to a file of this host.
        let Some(name) = name
            .to_str()
            .filter(|_| entry.file_type().is_ok_and(|kind| kind.is_file()))
        else {
            continue;
        };
        let (whole, is_partial) = match name.strip_suffix(PARTIAL) {
            Some(whole) => (whole, true),
            None => (name, false),
        };
        if let Some(segment) = Segment::parse(whole, size) {
            listing.files.push(SpoolFile {
                segment,
                is_partial,
                path,
            });
        } else if let Some(digits) = name.strip_suffix(".history")
            && let Ok(timeline) = u32::from_str_radix(digits, 16)
            && Timeline(timeline).history_name() == name
        {
            listing.histories.push((Timeline(timeline), path));
        }
    }
    listing.files.sort();
    listing.histories.sort();
    Ok(listing)
}

/// What a receiver that was killed while it made a file leaves behind, which the next one refuses to go on with.
pub(crate) fn mend(folder: &Path, size: SegmentBytes) -> Result<(), BackupError> {
    for file in list(folder, size)?.files {
        if !file.is_partial {
            continue;
        }
        match fs::metadata(&file.path) {
            Ok(metadata) if metadata.len() == size.get() => {}
            Ok(_) => remove(&file.path)?,
            // Shipped and removed since it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(BackupError::io("look at", &file.path)(error)),
        }
    }
    Ok(())
}

pub(crate) fn remove(path: &Path) -> Result<(), BackupError> {
    freeing::remove_file(path).map_err(BackupError::io("remove", path))
}

/// The same for what was shipped, while the server writes.
pub(crate) async fn remove_all(paths: Vec<PathBuf>) -> Result<(), BackupError> {
    let work = move || paths.iter().try_for_each(|path| remove(path));
    let removed = tokio::task::spawn_blocking(work).await;
    removed.map_err(|error| {
        BackupError::io("remove from", Path::new("the spool"))(io::Error::other(error))
    })?
}

/// Where whole records end, carried on from segment to segment so that one that runs over is checked whole.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    place: Option<Place>,
}

#[derive(Debug)]
struct Place {
    timeline: Timeline,
    end: Lsn,
    last: Option<Lsn>,
    /// From the page of `end` to the end of its segment, where that is closed.
    carry: Vec<u8>,
}

impl Tail {
    /// Reads a segment as far as it is written, its bytes padded to its length; gives where whole records end. `None` where no
    /// record that ends in it was seen whole.
    pub(crate) fn read(
        &mut self,
        segment: Segment,
        bytes: &[u8],
        is_closed: bool,
        size: SegmentBytes,
    ) -> Option<Lsn> {
        let (start, end) = (segment.start(size), segment.end(size));
        let known = self.place.take().filter(|place| {
            place.timeline == segment.timeline
                && place.end < end
                && (place.end >= start
                    || place.end.page_start() + place.carry.len() as u64 == start)
        });
        let scan = match &known {
            Some(place) if place.end >= start => {
                let page = place.end.page_start().bytes_since(start) as usize;
                scan_wal(&bytes[page..], place.end, place.last, size)
            }
            Some(place) => {
                let joined = [place.carry.as_slice(), bytes].concat();
                scan_wal(&joined, place.end, place.last, size)
            }
            None => scan_from_segment_start(bytes, start, size),
        };
        if known.is_none() && scan.records == 0 {
            return None;
        }
        let carry = if !is_closed {
            // The segment will be read again. What came before it is needed as long as its record is.
            known
                .map(|place| place.carry)
                .filter(|_| scan.end < start)
                .unwrap_or_default()
        } else if scan.end >= start {
            let page = scan.end.page_start().bytes_since(start) as usize;
            bytes.get(page..).unwrap_or_default().to_vec()
        } else {
            let mut carry = known.map(|place| place.carry).unwrap_or_default();
            carry.extend_from_slice(bytes);
            carry
        };
        self.place = Some(Place {
            timeline: segment.timeline,
            end: scan.end,
            last: scan.last,
            carry,
        });
        Some(scan.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_what_is_wal_and_mends_what_was_begun() {
        let folder = tempfile::tempdir().unwrap();
        let size = SegmentBytes::DEFAULT;
        for (name, len) in [
            ("000000010000000000000002", 16 << 20),
            ("000000010000000000000001", 16 << 20),
            ("000000010000000000000003.partial", 4_096),
            ("00000002.history", 10),
            ("pgpass", 3),
            ("000000010000000000000003.gz", 9),
        ] {
            let file = fs::File::create(folder.path().join(name)).unwrap();
            file.set_len(len).unwrap();
        }
        let listing = list(folder.path(), size).unwrap();
        let numbers: Vec<_> = listing
            .files
            .iter()
            .map(|file| file.segment.number)
            .collect();
        assert_eq!(numbers, [1, 2, 3]);
        assert!(listing.files[2].is_partial);
        assert_eq!(listing.histories[0].0, Timeline(2));
        mend(folder.path(), size).unwrap();
        assert_eq!(list(folder.path(), size).unwrap().files.len(), 2);
    }
}
