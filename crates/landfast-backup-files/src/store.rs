//! From content to a snapshot: pages up first, the manifest last. What is dropped between the two leaves packs that nobody names;
//! pruning removes them.

use std::{
    io::Read,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use landfast_backup::{BackupId, PackShare, WASTE_PERCENT_MAX, packs_to_leave};
use landfast_repository::{PageWriter, Parent, RepositoryError, Tree, Uploaded, upload_packs};
use landfast_types::{Digest, Timestamp};

use crate::{
    Content, Entry, EntryKind, FilesError, Moment, Note, RawPath, Series, Snapshot, clock,
    series::{List, tree},
};

/// A snapshot that is being made.
pub(crate) struct Making {
    series: Series,
    list: List,
    id: BackupId,
    at: Timestamp,
    begun: Instant,
    parent: Option<(Snapshot, Arc<Parent>)>,
}

/// Content whose pages are all in the repository, and which is no snapshot yet.
pub struct Stored {
    making: Making,
    uploaded: Uploaded,
    entries: Vec<Entry>,
    notes: Vec<Note>,
}

impl Making {
    /// Chooses the id, and what to compare with. With `is_full` there is nothing.
    pub(crate) async fn begin(series: &Series, is_full: bool) -> Result<Self, FilesError> {
        let (at, begun) = (clock::now(), clock::instant());
        let loaded = series.load().await?;
        series.begin(&loaded).await?;
        let id = series.next(&loaded).await?;
        let newest = loaded.snapshots.last().filter(|_| !is_full);
        let parent = match newest {
            Some(newest) => compared(series, newest).await?,
            None => None,
        };
        Ok(Self {
            series: series.clone(),
            list: loaded.list,
            id,
            at,
            begun,
            parent,
        })
    }

    /// What the parent knows of its files.
    pub(crate) async fn known(&self) -> Result<Vec<Entry>, FilesError> {
        match &self.parent {
            Some((parent, _)) => self.series.entries(parent).await,
            None => Ok(Vec::new()),
        }
    }

    /// Uploads what `fill` writes. It gives the entries in the order it wrote them.
    pub(crate) async fn upload(
        self,
        fill: impl FnOnce(PageWriter) -> Result<(PageWriter, Vec<Entry>, Vec<Note>), RepositoryError>
        + Send
        + 'static,
        on_stored: impl FnMut(u64),
    ) -> Result<Stored, FilesError> {
        let told = Arc::new(Mutex::new((Vec::new(), Vec::new())));
        let filled = {
            let told = Arc::clone(&told);
            move |writer: PageWriter| {
                let (writer, entries, notes) = fill(writer.finding_copies())?;
                *told.lock().unwrap_or_else(PoisonError::into_inner) = (entries, notes);
                Ok(writer)
            }
        };
        let packs = self.series.path(&format!("packs/{}", self.id));
        let parent = self.parent.as_ref().map(|(_, parent)| Arc::clone(parent));
        let repository = self.series.repository().clone();
        let uploaded = upload_packs(&repository, &packs, parent, filled, on_stored).await?;
        let (entries, notes) =
            std::mem::take(&mut *told.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(Stored {
            making: self,
            uploaded,
            entries,
            notes,
        })
    }
}

impl Stored {
    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// How long the content is.
    pub fn bytes(&self) -> u64 {
        self.uploaded.counts.bytes
    }

    /// Makes a snapshot of it.
    ///
    /// # Errors
    /// Those of the repository. Where the last step fails, the next writer may find the snapshot and take it in.
    pub async fn finish(self, content: Content) -> Result<Snapshot, FilesError> {
        let Self {
            making,
            uploaded,
            entries,
            notes,
        } = self;
        let listed = serde_json::to_vec(&entries).expect("entries have text keys");
        let map = Tree::write_map(&uploaded.maps);
        let hashes = Tree::write_hashes(&uploaded.maps);
        let added = (listed.len() + map.len() + hashes.len()) as u64;
        let snapshot = Snapshot {
            format: Snapshot::FORMAT,
            id: making.id.clone(),
            at: making.at,
            took_ms: u64::try_from(making.begun.elapsed().as_millis()).unwrap_or(u64::MAX),
            bytes: uploaded.counts.bytes,
            same_bytes: uploaded.counts.same_bytes,
            stored_bytes: uploaded.stored_bytes + added,
            parent: making.parent.as_ref().map(|(parent, _)| parent.id.clone()),
            content,
            notes,
            entries: Digest::of(&listed),
            map: Digest::of(&map),
            hashes: Digest::of(&hashes),
            packs: uploaded.tree.packs,
        };
        let parts = [("entries", listed), ("map", map), ("hashes", hashes)];
        making.series.put(making.list, &snapshot, parts).await?;
        Ok(snapshot)
    }
}

/// Stores one file that somebody writes, such as a dump. It is no snapshot before [`Stored::finish`].
///
/// # Errors
/// Where it cannot be read to its end, or the repository takes nothing.
pub async fn store_file(
    series: &Series,
    name: &str,
    is_full: bool,
    content: impl Read + Send + 'static,
    on_stored: impl FnMut(u64),
) -> Result<Stored, FilesError> {
    let making = Making::begin(series, is_full).await?;
    let path: RawPath = name
        .parse()
        .map_err(|()| FilesError::Name(name.to_owned()))?;
    let seconds = making.at.as_micros().div_euclid(1_000_000);
    let fill = move |mut writer: PageWriter| {
        let before = writer.counts().bytes;
        writer.file(&path.to_string(), 0o600, content)?;
        let entry = Entry {
            path,
            mode: 0o600,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            changed: Moment(seconds, 0),
            kind: EntryKind::File {
                bytes: writer.counts().bytes - before,
                seen: None,
                is_sqlite: false,
            },
        };
        Ok((writer, vec![entry], Vec::new()))
    };
    making.upload(fill, on_stored).await
}

/// The pages of a snapshot, to compare with. `None` where they cannot be read: nothing is built on that.
async fn compared(
    series: &Series,
    newest: &Snapshot,
) -> Result<Option<(Snapshot, Arc<Parent>)>, FilesError> {
    let read = async {
        let entries = series.entries(newest).await?;
        let map = series.read_part(&newest.id, "map", newest.map).await?;
        let hashes = series
            .read_part(&newest.id, "hashes", newest.hashes)
            .await?;
        let tree = tree(&entries, &newest.packs);
        Ok::<_, FilesError>(Parent::new(&tree, &map, &hashes)?)
    };
    let mut parent = match read.await {
        Ok(parent) => parent,
        Err(error) if error.is_damage() => return Ok(None),
        Err(error) => return Err(error),
    };
    let shares = parent.uses().into_iter().map(|pack| PackShare {
        stored: pack.stored,
        live: pack.live,
    });
    let mut left = packs_to_leave(&shares.collect::<Vec<_>>(), WASTE_PERCENT_MAX);
    // A pack that is gone is not referred to any more.
    let there = series.repository().list(&series.path("packs")).await?;
    let has = |name: &str| {
        there
            .binary_search_by(|object| object.name.as_str().cmp(name))
            .is_ok()
    };
    let gone = newest.packs.iter().enumerate();
    left.extend(gone.filter_map(|(place, pack)| (!has(&pack.name)).then_some(place)));
    parent.leave(left);
    Ok(Some((newest.clone(), Arc::new(parent))))
}
