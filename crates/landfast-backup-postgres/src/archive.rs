//! The archive of one server in a repository: names of objects, the ledger read back, the ledger written.
//!
//! ```text
//! <archive>/ledger/00000000                      pages; the newest is written anew with each shipment
//! <archive>/ledger/head                          the number of a page there must be; the one object that knows of the newest page
//! <archive>/wal/00000001/<from>-<to>             a range of WAL, 16 hexadecimal digits each
//! <archive>/history/00000002                     the history file of a timeline
//! <archive>/backups/000012/{manifest,map,hashes} a backup; it exists once its manifest does
//! <archive>/packs/000012/000000                  the pages it brought
//! <archive>/tombstones/000012                    it was removed; its objects go later
//! ```
//!
//! One writer at a time: whoever runs the WAL archiver holds the server's own slot, which no second one can stream from.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use landfast_backup::{
    BackupId, BackupState, BackupSummary, Carry, Event, Ledger, Lsn, PAGE_EVENTS_MAX, Page, Piece,
    PieceKey, RestorablePoint, Segment, SegmentBytes, Timeline, compact, scan_from_segment_start,
};
use landfast_repository::{Repository, RepositoryError, Tree};
use landfast_types::Digest;
use serde::{Deserialize, Serialize};

use crate::BackupError;

/// Small objects that are read at the same time.
const READS_AT_ONCE: usize = 16;
/// Readings until two of them find the same wrong.
const LOADS_MAX: usize = 5;

/// The archive of one server.
#[derive(Debug, Clone)]
pub struct Archive {
    repository: Repository,
    name: String,
}

/// A backup, whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupManifest {
    pub format: u8,
    #[serde(flatten)]
    pub summary: BackupSummary,
    pub system: u64,
    /// `150018`
    pub server_version: i32,
    /// Whether the server had page checksums, and so looked at every page it sent.
    pub has_checksums: bool,
    pub took_ms: u64,
    pub bytes: u64,
    /// Of them, the same as in the parent.
    pub same_bytes: u64,
    /// What it added to the repository.
    pub stored_bytes: u64,
    pub parent: Option<BackupId>,
    pub map: Digest,
    pub hashes: Digest,
    pub tree: Tree,
}

impl BackupManifest {
    pub(crate) const FORMAT: u8 = 1;
}

/// Something that is not as it should be, by the name of its object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Finding {
    pub object: String,
    pub wrong: String,
}

/// Put before the first page, and again with the first shipment that finds a newer page written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    newest: u64,
}

/// An archive, read back.
#[derive(Debug, Clone)]
pub struct Loaded {
    pub ledger: Ledger,
    /// Those whose manifest is there and opens, oldest first.
    pub backups: Vec<BackupManifest>,
    /// What is wrong, as far as that shows without reading everything.
    pub findings: Vec<Finding>,
    pub(crate) pages: Vec<(Page, Digest)>,
    /// Objects the ledger does not speak of yet: what a crash left between two puts, or a page that is gone.
    pub(crate) unspoken: Vec<Event>,
    head: Option<u64>,
}

impl Loaded {
    /// Backups as a plan sees them.
    pub fn summaries(&self) -> Vec<BackupSummary> {
        let summaries = self.backups.iter();
        summaries.map(|backup| backup.summary.clone()).collect()
    }

    /// The number of the next backup.
    pub(crate) fn next_backup(&self, listed: &[String]) -> BackupId {
        let known = self.ledger.backups().keys().filter_map(BackupId::sequence);
        let there = listed.iter().filter_map(|name| {
            let id = name.rsplit('/').nth(1)?;
            id.parse::<u64>().ok()
        });
        BackupId::of(known.chain(there).max().map_or(1, |newest| newest + 1))
    }

    /// How far a restore can go from the newest good backup, by what was read back.
    pub fn restorable(&self) -> Option<RestorablePoint> {
        let target = landfast_backup::Target::Latest;
        let end = self.ledger.end()?;
        match landfast_backup::plan_restore(&self.ledger, &self.summaries(), &target, None) {
            Ok(_) => Some(end),
            Err(landfast_backup::PlanError::WouldEndEarly { reach, .. }) => Some(RestorablePoint {
                lsn: reach,
                at: self
                    .ledger
                    .heartbeat_at(end.timeline, reach)
                    .map(|beat| beat.at),
                ..end
            }),
            Err(_) => None,
        }
    }
}

impl Archive {
    /// An archive by its name: lower-case letters, digits, `-`, `.` and `/` between them. A promoted copy gets another.
    ///
    /// # Errors
    /// [`BackupError::Strange`] where the name cannot be one.
    pub fn new(repository: Repository, name: &str) -> Result<Self, BackupError> {
        let plain = |part: &str| {
            let plain = |byte: u8| {
                byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte)
            };
            !part.is_empty() && !part.starts_with('.') && part.bytes().all(plain)
        };
        if !name.split('/').all(plain) {
            return Err(BackupError::Strange(format!(
                "`{name}` is no name of an archive"
            )));
        }
        Ok(Self {
            repository,
            name: name.to_owned(),
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it lies in.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    pub(crate) fn path(&self, rest: &str) -> String {
        format!("{}/{rest}", self.name)
    }

    pub(crate) fn piece_path(&self, key: PieceKey) -> String {
        let (timeline, from, to) = (key.timeline.0, key.from.0, key.to.0);
        format!("{}/wal/{timeline:08X}/{from:016X}-{to:016X}", self.name)
    }

    pub(crate) fn page_path(&self, number: u64) -> String {
        format!("{}/ledger/{number:08}", self.name)
    }

    fn head_path(&self) -> String {
        format!("{}/ledger/head", self.name)
    }

    pub(crate) fn history_path(&self, timeline: Timeline) -> String {
        format!("{}/history/{:08X}", self.name, timeline.0)
    }

    pub(crate) fn backup_path(&self, backup: &BackupId, part: &str) -> String {
        format!("{}/backups/{backup}/{part}", self.name)
    }

    /// Reads ledger and manifests back, and looks at which objects are there.
    ///
    /// An archiver that runs meanwhile puts pieces together and removes the old ones, so what seems to be missing is looked for
    /// again: it is missing where a newer ledger still speaks of it.
    ///
    /// # Errors
    /// Those of the repository; [`BackupError::Ledger`] where a page is missing or changed. `None` for an empty archive.
    pub async fn load(&self) -> Result<Option<Loaded>, BackupError> {
        let mut suspected = None;
        for attempt in 0..LOADS_MAX {
            let loaded = match self.load_once().await {
                // Pages may have gone between their list and the newest one.
                Err(BackupError::Ledger(_)) if attempt == 0 => continue,
                loaded => loaded?,
            };
            let Some(loaded) = loaded else {
                return Ok(None);
            };
            if loaded.findings.is_empty() || suspected.as_ref() == Some(&loaded.findings) {
                return Ok(Some(loaded));
            }
            suspected = Some(loaded.findings);
        }
        self.load_once().await
    }

    async fn load_once(&self) -> Result<Option<Loaded>, BackupError> {
        // Before the pages are listed, so that it names none which is not there yet.
        let mut findings = Vec::new();
        let head = self.head(&mut findings).await?;
        let names = self.names("ledger").await?;
        let pages: Vec<(Page, Digest)> = stream::iter(names)
            .map(|name| self.page(name))
            .buffered(READS_AT_ONCE)
            .try_collect::<Vec<_>>()
            .await?
            .into_iter()
            .flatten()
            .collect();
        let there = self.pieces_there().await?;
        let Some(mut ledger) = Ledger::read(&pages)? else {
            // The first page is put before any WAL.
            if there.is_empty() && head.unwrap_or_default() == 0 {
                return Ok(None);
            }
            let name = self.page_path(0);
            return Err(RepositoryError::Missing { name }.into());
        };
        let newest = pages.last().map_or(0, |(page, _)| page.number);
        if head.is_some_and(|head| head > newest) {
            let name = self.page_path(newest + 1);
            return Err(RepositoryError::Missing { name }.into());
        }
        for key in ledger.pieces().collect::<Vec<_>>() {
            if !there.contains(&key) {
                ledger.mark_lost(key);
                findings.push(Finding {
                    object: self.piece_path(key),
                    wrong: "it is missing".to_owned(),
                });
            }
        }
        let unspoken = self.unspoken(&ledger, &there, &mut findings).await?;
        unspoken.iter().for_each(|event| ledger.apply(event));
        let backups = self.manifests(&ledger, &mut findings).await?;
        Ok(Some(Loaded {
            ledger,
            backups,
            findings,
            pages,
            unspoken,
            head,
        }))
    }

    /// The number of a page there must be. Where nobody knows it, that is a finding.
    async fn head(&self, findings: &mut Vec<Finding>) -> Result<Option<u64>, BackupError> {
        let name = self.head_path();
        let wrong = match self.repository.find(&name).await {
            Ok(Some(bytes)) => match serde_json::from_slice::<Head>(&bytes) {
                Ok(head) => return Ok(Some(head.newest)),
                Err(_) => "it is no head of a ledger".to_owned(),
            },
            Ok(None) => "it is missing".to_owned(),
            Err(error) if error.bad_object().is_some() => error.to_string(),
            Err(error) => return Err(error.into()),
        };
        let object = name;
        findings.push(Finding { object, wrong });
        Ok(None)
    }

    /// A page; `None` for an object of another name.
    async fn page(&self, name: String) -> Result<Option<(Page, Digest)>, BackupError> {
        let number = name.rsplit('/').next().and_then(|last| last.parse().ok());
        if number.is_none_or(|number| self.page_path(number) != name) {
            return Ok(None);
        }
        // One that is gone meanwhile is missed by those behind it, or by nobody.
        let Some(bytes) = self.repository.find(&name).await? else {
            return Ok(None);
        };
        let digest = Digest::of(&bytes);
        let page = serde_json::from_slice(&bytes).map_err(|_| RepositoryError::Damaged {
            name,
            what: "it is no page of a ledger",
        })?;
        Ok(Some((page, digest)))
    }

    pub(crate) async fn pieces_there(&self) -> Result<BTreeSet<PieceKey>, BackupError> {
        let names = self.names("wal").await?;
        Ok(names.iter().filter_map(|name| parse_piece(name)).collect())
    }

    pub(crate) async fn names(&self, folder: &str) -> Result<Vec<String>, BackupError> {
        let objects = self.repository.list(&self.path(folder)).await?;
        Ok(objects.into_iter().map(|object| object.name).collect())
    }

    /// WAL that goes on where the ledger ends. Each object is opened, so nothing is believed by its name.
    async fn unspoken(
        &self,
        ledger: &Ledger,
        there: &BTreeSet<PieceKey>,
        findings: &mut Vec<Finding>,
    ) -> Result<Vec<Event>, BackupError> {
        let mut events = Vec::new();
        let mut timelines: BTreeSet<_> = ledger.timelines().collect();
        timelines.extend(there.iter().map(|key| key.timeline));
        for timeline in timelines {
            let mut end = ledger.shipped_to(timeline);
            let told = end;
            let new = there
                .iter()
                .filter(|key| key.timeline == timeline && told.is_none_or(|told| key.to > told));
            for key in new {
                // What was merged into a longer piece, or lies behind something that is gone.
                if end.is_some_and(|end| key.to <= end) {
                    continue;
                }
                match self.piece(*key, None).await {
                    Ok(bytes) => {
                        let size = ledger.segment_bytes();
                        let digest = Digest::of(&bytes);
                        let boundary = self.boundary(ledger, &events, *key, &bytes, size);
                        events.push(Event::Shipped {
                            timeline,
                            piece: Piece {
                                from: key.from,
                                to: key.to,
                                digest,
                                boundary,
                            },
                        });
                        end = Some(key.to);
                    }
                    Err(BackupError::Repository(error)) if error.bad_object().is_some() => {
                        findings.push(Finding {
                            object: self.piece_path(*key),
                            wrong: error.to_string(),
                        });
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(events)
    }

    /// Where whole records end in a piece that nobody has told about. Pieces of an open segment end with a record.
    fn boundary(
        &self,
        ledger: &Ledger,
        events: &[Event],
        key: PieceKey,
        bytes: &[u8],
        size: SegmentBytes,
    ) -> Lsn {
        let segment = Segment::of(key.timeline, key.from, size);
        if key.to < segment.end(size) {
            return key.to;
        }
        if key.from == segment.start(size) {
            let scan = scan_from_segment_start(bytes, key.from, size);
            if scan.records > 0 {
                return scan.end;
            }
        }
        let mut known = ledger.clone();
        events.iter().for_each(|event| known.apply(event));
        known.end_of(key.timeline).unwrap_or(key.from)
    }

    async fn manifests(
        &self,
        ledger: &Ledger,
        findings: &mut Vec<Finding>,
    ) -> Result<Vec<BackupManifest>, BackupError> {
        let mut backups = Vec::new();
        // Owned, so that the reads can be sent to another thread.
        let known = ledger.backups().iter();
        let ids: Vec<_> = known.map(|(id, digest)| (id.clone(), *digest)).collect();
        let mut reads = stream::iter(ids)
            .map(|(id, digest): (BackupId, Digest)| async move {
                let read = self.manifest(&id, Some(digest)).await;
                (id, read)
            })
            .buffered(READS_AT_ONCE);
        while let Some((id, read)) = reads.next().await {
            match read {
                Ok(manifest) => backups.push(manifest),
                Err(BackupError::Repository(error)) if error.bad_object().is_some() => {
                    findings.push(Finding {
                        object: self.backup_path(&id, "manifest"),
                        wrong: error.to_string(),
                    });
                }
                Err(error) => return Err(error),
            }
        }
        Ok(backups)
    }

    /// The manifest of a backup.
    ///
    /// # Errors
    /// Those of the repository.
    pub async fn manifest(
        &self,
        id: &BackupId,
        digest: Option<Digest>,
    ) -> Result<BackupManifest, BackupError> {
        let name = self.backup_path(id, "manifest");
        let bytes = self.repository.get(&name).await?;
        let damaged = |what| RepositoryError::Damaged {
            name: name.clone(),
            what,
        };
        if digest.is_some_and(|digest| digest != Digest::of(&bytes)) {
            return Err(damaged("it is another one than the ledger speaks of").into());
        }
        let manifest: BackupManifest =
            serde_json::from_slice(&bytes).map_err(|_| damaged("it is no manifest"))?;
        if manifest.format != BackupManifest::FORMAT {
            return Err(RepositoryError::Format {
                found: manifest.format,
                reads: BackupManifest::FORMAT,
                name,
            }
            .into());
        }
        Ok(manifest)
    }

    /// The bytes of a piece. They are what was shipped, or it fails naming the object.
    pub(crate) async fn piece(
        &self,
        key: PieceKey,
        digest: Option<Digest>,
    ) -> Result<Vec<u8>, BackupError> {
        let name = self.piece_path(key);
        let bytes = self.repository.get(&name).await?;
        let is_right = bytes.len() as u64 == key.to.bytes_since(key.from)
            && digest.is_none_or(|digest| digest == Digest::of(&bytes));
        if !is_right {
            let what = "it is another one than the ledger speaks of";
            return Err(RepositoryError::Damaged { name, what }.into());
        }
        Ok(bytes)
    }
}

fn parse_piece(name: &str) -> Option<PieceKey> {
    let mut parts = name.rsplit('/');
    let (from, to) = parts.next()?.split_once('-')?;
    let number = |text: &str, len| {
        let valid = text.len() == len && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        valid.then(|| u64::from_str_radix(text, 16).ok()).flatten()
    };
    Some(PieceKey {
        timeline: Timeline(u32::try_from(number(parts.next()?, 8)?).ok()?),
        from: Lsn(number(from, 16)?),
        to: Lsn(number(to, 16)?),
    })
}

/// Writes the ledger: the newest page, anew, until it is full.
#[derive(Debug)]
pub(crate) struct LedgerWriter {
    pub(crate) archive: Archive,
    pub(crate) ledger: Ledger,
    page: Page,
    /// Of the newest page, as it was put last.
    written: Option<Digest>,
    /// The page that the head names.
    head: Option<u64>,
    /// Of the backups in the ledger, as far as their manifests were read.
    pub(crate) backups: BTreeMap<BackupId, BackupSummary>,
}

impl LedgerWriter {
    /// Goes on where the archive ends, or begins it.
    pub(crate) async fn open(
        archive: &Archive,
        system: u64,
        segment_bytes: SegmentBytes,
    ) -> Result<Self, BackupError> {
        let Some(loaded) = archive.load().await? else {
            let mut first = Self {
                archive: archive.clone(),
                ledger: Ledger::new(system, segment_bytes),
                page: Page {
                    format: Page::FORMAT,
                    number: 0,
                    previous: None,
                    oldest: 0,
                    system,
                    segment_bytes,
                    events: Vec::new(),
                },
                written: None,
                head: None,
                backups: BTreeMap::new(),
            };
            first.append(Vec::new()).await?;
            return Ok(first);
        };
        if loaded.ledger.system() != system {
            return Err(BackupError::OtherSystem {
                archive: archive.name.clone(),
                system: loaded.ledger.system(),
                found: system,
            });
        }
        let (page, digest) = loaded.pages.last().expect("a ledger has a page");
        let mut writer = Self {
            archive: archive.clone(),
            ledger: loaded.ledger,
            page: page.clone(),
            written: Some(*digest),
            head: loaded.head,
            backups: BTreeMap::new(),
        };
        if !loaded.unspoken.is_empty() {
            writer.append(loaded.unspoken).await?;
        }
        Ok(writer)
    }

    /// Adds events whose objects are all there, and puts the page. After an error nothing has happened.
    pub(crate) async fn append(&mut self, events: Vec<Event>) -> Result<(), BackupError> {
        self.write(events, None).await
    }

    /// Tells again what older pages say that is still meant; after that they are read no more.
    pub(crate) async fn carry(&mut self, carry: Carry) -> Result<(), BackupError> {
        self.write(carry.events, Some(carry.oldest)).await
    }

    async fn write(&mut self, events: Vec<Event>, oldest: Option<u64>) -> Result<(), BackupError> {
        for event in &events {
            self.ledger.check(event)?;
        }
        let newest = self.page.number;
        if self.head != Some(newest) {
            let head = serde_json::to_vec(&Head { newest }).expect("a number");
            let name = self.archive.head_path();
            self.archive.repository.put(&name, head).await?;
            self.head = Some(newest);
        }
        let mut page = self.page.clone();
        page.oldest = oldest.unwrap_or(page.oldest);
        if page.events.len() + events.len() > PAGE_EVENTS_MAX && !page.events.is_empty() {
            page = Page {
                number: page.number + 1,
                previous: self.written,
                events: Vec::new(),
                ..page
            };
        }
        page.events.extend(events.iter().cloned());
        compact(&mut page.events);
        let bytes = serde_json::to_vec(&page).expect("a page is plain data");
        let digest = Digest::of(&bytes);
        let name = self.archive.page_path(page.number);
        self.archive.repository.put(&name, bytes).await?;
        self.page = page;
        self.written = Some(digest);
        events.iter().for_each(|event| self.ledger.apply(event));
        Ok(())
    }

    /// Reads back what was written last, the page and the newest WAL; gives the place that is proven by it.
    pub(crate) async fn confirm(&self) -> Result<Option<RestorablePoint>, BackupError> {
        let Some(written) = self.written else {
            return Ok(None);
        };
        let name = self.archive.page_path(self.page.number);
        let page = self.archive.repository.get(&name).await?;
        if Digest::of(&page) != written {
            let what = "it is not the page that was written";
            return Err(RepositoryError::Damaged { name, what }.into());
        }
        let Some(end) = self.ledger.end() else {
            return Ok(None);
        };
        let newest = self
            .ledger
            .pieces()
            .filter(|key| key.timeline == end.timeline)
            .last();
        if let Some(key) = newest {
            let digest = self.ledger.piece(key).map(|piece| piece.digest);
            self.archive.piece(key, digest).await?;
        }
        Ok(Some(end))
    }
}

/// Whether a backup may be built on and chosen.
pub(crate) fn is_good(backup: &BackupManifest) -> bool {
    backup.summary.state == BackupState::Good
}
