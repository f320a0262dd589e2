//! The backups of one thing in a repository: names of objects, the list read back, the list written.
//!
//! ```text
//! <series>/list                                           which snapshots there are, and which were removed
//! <series>/snapshots/000012/{manifest,entries,map,hashes} a snapshot; it exists once its manifest does
//! <series>/packs/000012/000000                            the pages it brought
//! ```
//!
//! The list is put before the first snapshot, and after each manifest. So of the manifests it does not speak of at most one is new:
//! what a crash left between the two, which the next writer takes in. More than one say that the list is an old one. A snapshot that
//! is removed is a tombstone in the list first; its objects go later. One writer at a time.

use std::collections::BTreeMap;

use futures_util::{StreamExt as _, stream};
use landfast_backup::BackupId;
use landfast_repository::{FileEntry, FileKind, PackEntry, Repository, RepositoryError, Tree};
use landfast_types::{Digest, Timestamp};
use serde::{Deserialize, Serialize};

use crate::{Entry, EntryKind, FilesError, Note};

/// Small objects that are read at the same time.
const READS_AT_ONCE: usize = 16;

/// The backups of one thing.
#[derive(Debug, Clone)]
pub struct Series {
    repository: Repository,
    name: String,
}

/// The manifest of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    pub format: u8,
    pub id: BackupId,
    /// When it was begun.
    pub at: Timestamp,
    pub took_ms: u64,
    /// Of all files.
    pub bytes: u64,
    /// Of them, the same as before, or as elsewhere.
    pub same_bytes: u64,
    /// What it added to the repository.
    pub stored_bytes: u64,
    pub parent: Option<BackupId>,
    pub content: Content,
    /// What is not in it as one would expect.
    #[serde(default)]
    pub notes: Vec<Note>,
    pub entries: Digest,
    pub map: Digest,
    pub hashes: Digest,
    pub packs: Vec<PackEntry>,
}

impl Snapshot {
    pub(crate) const FORMAT: u8 = 1;
}

/// What a snapshot holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Content {
    /// A tree of files.
    Tree {
        files: u64,
        folders: u64,
        /// Databases of SQLite among the files.
        sqlite: u64,
    },
    /// A dump of a database, one file.
    Dump {
        /// `150018`
        server_version: i32,
        database: String,
        /// Of the server and the database it was, where those told.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        source: Option<Digest>,
        /// Of its schema, where it was the same before and after.
        schema: Option<Digest>,
    },
}

/// Something that is not as it should be, by the name of its object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Finding {
    pub object: String,
    pub wrong: String,
}

/// Which snapshots there are.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct List {
    format: u8,
    /// The lowest number that no snapshot has had.
    next: u64,
    pub(crate) snapshots: BTreeMap<BackupId, Digest>,
    /// Those that were removed, and when.
    #[serde(default)]
    pub(crate) buried: BTreeMap<BackupId, Buried>,
}

/// A tombstone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Buried {
    pub(crate) at: Timestamp,
    /// The newest snapshot by then.
    pub(crate) newest: BackupId,
}

impl List {
    const FORMAT: u8 = 1;

    fn take_in(&mut self, id: &BackupId, digest: Digest) {
        self.next = self.next.max(id.sequence().map_or(0, |number| number + 1));
        self.snapshots.insert(id.clone(), digest);
    }
}

/// A series, read back.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// Oldest first.
    pub snapshots: Vec<Snapshot>,
    /// What is wrong, as far as that shows without reading everything.
    pub findings: Vec<Finding>,
    pub(crate) list: List,
    /// Whether the list in the repository is this one.
    is_listed: bool,
}

impl Loaded {
    /// A snapshot by its id, or the newest one.
    ///
    /// # Errors
    /// [`FilesError::Empty`], [`FilesError::NoBackup`].
    pub fn find(&self, id: Option<&BackupId>) -> Result<&Snapshot, FilesError> {
        let Some(id) = id else {
            return self.snapshots.last().ok_or(FilesError::Empty);
        };
        let found = self.snapshots.iter().find(|snapshot| snapshot.id == *id);
        found.ok_or_else(|| FilesError::NoBackup(id.to_string()))
    }

    /// The newest snapshot at or before a time.
    ///
    /// # Errors
    /// [`FilesError::Empty`] where there is none.
    pub fn before(&self, at: Timestamp) -> Result<&Snapshot, FilesError> {
        let mut newest_first = self.snapshots.iter().rev();
        newest_first
            .find(|snapshot| snapshot.at <= at)
            .ok_or(FilesError::Empty)
    }
}

impl Series {
    /// A series by its name: lower-case letters, digits, `-`, `_`, `.`, and `/` between them.
    ///
    /// # Errors
    /// [`FilesError::Name`].
    pub fn new(repository: Repository, name: &str) -> Result<Self, FilesError> {
        let plain =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
        let part =
            |part: &str| !part.is_empty() && !part.starts_with('.') && part.bytes().all(plain);
        if !name.split('/').all(part) {
            return Err(FilesError::Name(name.to_owned()));
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

    pub(crate) fn part(&self, id: &BackupId, part: &str) -> String {
        format!("{}/snapshots/{id}/{part}", self.name)
    }

    pub(crate) async fn names(&self, folder: &str) -> Result<Vec<String>, FilesError> {
        let objects = self.repository.list(&self.path(folder)).await?;
        Ok(objects.into_iter().map(|object| object.name).collect())
    }

    /// Reads the list and the manifests back.
    ///
    /// # Errors
    /// Where the repository cannot be reached. What is wrong with what lies in it is a finding.
    pub async fn load(&self) -> Result<Loaded, FilesError> {
        let mut findings = Vec::new();
        let (known, there) = (self.list(&mut findings).await?, self.there().await?);
        let has_list = known.is_some();
        let mut list = known.unwrap_or_default();
        let mut snapshots = Vec::new();
        // Owned, so that the reads can be sent to another thread.
        let listed = list.snapshots.iter();
        let mut wanted: Vec<_> = listed
            .map(|(id, digest)| (id.clone(), Some(*digest)))
            .collect();
        let is_new = |id: &BackupId| {
            let number = id.sequence().unwrap_or(0);
            !list.snapshots.contains_key(id) && (!has_list || number >= list.next)
        };
        let new: Vec<_> = there.iter().filter(|id| is_new(id)).cloned().collect();
        if new.len() > 1 && has_list {
            let wrong = format!(
                "it is an old one: it does not speak of the backups {} to {}",
                new[0],
                new[new.len() - 1]
            );
            findings.push(self.finding("list", wrong));
        }
        if !has_list && findings.is_empty() && !there.is_empty() {
            findings.push(self.finding("list", "it is missing".to_owned()));
        }
        let is_listed = has_list && new.is_empty();
        wanted.extend(new.into_iter().map(|id| (id, None)));
        let mut reads = stream::iter(wanted)
            .map(|(id, digest): (BackupId, Option<Digest>)| async move {
                let read = self.manifest(&id, digest).await;
                (id, read)
            })
            .buffered(READS_AT_ONCE);
        while let Some((id, read)) = reads.next().await {
            match read {
                Ok((snapshot, digest)) => {
                    list.take_in(&id, digest);
                    snapshots.push(snapshot);
                }
                Err(FilesError::Repository(error)) if error.bad_object().is_some() => {
                    findings.push(Finding {
                        object: self.part(&id, "manifest"),
                        wrong: chain(&error),
                    });
                }
                Err(error) => return Err(error),
            }
        }
        drop(reads);
        snapshots.sort_by(|one, other| one.id.cmp(&other.id));
        list.format = List::FORMAT;
        Ok(Loaded {
            snapshots,
            findings,
            list,
            is_listed,
        })
    }

    /// The list; `None` where there is none, or none that can be read.
    async fn list(&self, findings: &mut Vec<Finding>) -> Result<Option<List>, FilesError> {
        let name = self.path("list");
        let read = match self.repository.find(&name).await {
            Ok(None) => return Ok(None),
            Ok(Some(bytes)) => {
                serde_json::from_slice::<List>(&bytes).map_err(|_| RepositoryError::Damaged {
                    name: name.clone(),
                    what: "it is no list of backups",
                })
            }
            Err(error) if error.bad_object().is_some() => Err(error),
            Err(error) => return Err(error.into()),
        };
        match read {
            Ok(list) if list.format > List::FORMAT => Err(RepositoryError::Format {
                name,
                found: list.format,
                reads: List::FORMAT,
            }
            .into()),
            Ok(list) => Ok(Some(list)),
            Err(error) => {
                findings.push(self.finding("list", chain(&error)));
                Ok(None)
            }
        }
    }

    /// The snapshots whose manifest is there, whatever the list says.
    async fn there(&self) -> Result<Vec<BackupId>, FilesError> {
        let names = self.names("snapshots").await?;
        let ids = names.iter().filter_map(|name| {
            let name = name.strip_suffix("/manifest")?;
            name.rsplit('/').next()?.parse().ok().map(BackupId::of)
        });
        Ok(ids.collect())
    }

    fn finding(&self, object: &str, wrong: String) -> Finding {
        Finding {
            object: self.path(object),
            wrong,
        }
    }

    async fn manifest(
        &self,
        id: &BackupId,
        digest: Option<Digest>,
    ) -> Result<(Snapshot, Digest), FilesError> {
        let name = self.part(id, "manifest");
        let bytes = self.repository.get(&name).await?;
        let found = Digest::of(&bytes);
        let damaged = |what| RepositoryError::Damaged {
            name: name.clone(),
            what,
        };
        if digest.is_some_and(|digest| digest != found) {
            return Err(damaged("it is another one than the list speaks of").into());
        }
        let snapshot: Snapshot =
            serde_json::from_slice(&bytes).map_err(|_| damaged("it is no manifest"))?;
        if snapshot.format != Snapshot::FORMAT {
            return Err(RepositoryError::Format {
                found: snapshot.format,
                reads: Snapshot::FORMAT,
                name,
            }
            .into());
        }
        if snapshot.id != *id {
            return Err(damaged("it is the manifest of another backup").into());
        }
        Ok((snapshot, found))
    }

    /// The packs a buried snapshot names, as long as it can be read.
    pub(crate) async fn packs_of(&self, id: &BackupId) -> Result<Option<Vec<String>>, FilesError> {
        match self.manifest(id, None).await {
            Ok((snapshot, _)) => Ok(Some(
                snapshot.packs.into_iter().map(|pack| pack.name).collect(),
            )),
            Err(FilesError::Repository(error)) if error.bad_object().is_some() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A part of a snapshot, as it was written.
    pub(crate) async fn read_part(
        &self,
        id: &BackupId,
        part: &str,
        digest: Digest,
    ) -> Result<Vec<u8>, FilesError> {
        let name = self.part(id, part);
        let bytes = self.repository.get(&name).await?;
        if Digest::of(&bytes) != digest {
            let what = "it is another one than was written";
            return Err(RepositoryError::Damaged { name, what }.into());
        }
        Ok(bytes)
    }

    /// What a snapshot knows of each of its files, in order.
    ///
    /// # Errors
    /// Those of the repository.
    pub async fn entries(&self, snapshot: &Snapshot) -> Result<Vec<Entry>, FilesError> {
        let bytes = self
            .read_part(&snapshot.id, "entries", snapshot.entries)
            .await?;
        let read = serde_json::from_slice(&bytes);
        Ok(read.map_err(|_| RepositoryError::Damaged {
            name: self.part(&snapshot.id, "entries"),
            what: "it is no list of files",
        })?)
    }

    /// Before the first snapshot: whoever finds objects and no list knows that it is missing.
    pub(crate) async fn begin(&self, loaded: &Loaded) -> Result<(), FilesError> {
        if loaded.is_listed {
            return Ok(());
        }
        self.write(&loaded.list).await
    }

    /// The number of the next snapshot: none that any object bears.
    pub(crate) async fn next(&self, loaded: &Loaded) -> Result<BackupId, FilesError> {
        let mut names = self.names("packs").await?;
        names.extend(self.names("snapshots").await?);
        let there = names
            .iter()
            .filter_map(|name| name.rsplit('/').nth(1)?.parse::<u64>().ok());
        let after = there.max().map_or(1, |newest| newest + 1);
        Ok(BackupId::of(loaded.list.next.max(after).max(1)))
    }

    /// Puts a snapshot whose pages are all there: its parts, its manifest, the list.
    pub(crate) async fn put(
        &self,
        mut list: List,
        snapshot: &Snapshot,
        parts: [(&str, Vec<u8>); 3],
    ) -> Result<(), FilesError> {
        for (part, bytes) in parts {
            self.repository
                .put(&self.part(&snapshot.id, part), bytes)
                .await?;
        }
        let bytes = serde_json::to_vec(snapshot).expect("a manifest is plain data");
        list.take_in(&snapshot.id, Digest::of(&bytes));
        self.repository
            .put(&self.part(&snapshot.id, "manifest"), bytes)
            .await?;
        self.write(&list).await
    }

    pub(crate) async fn write(&self, list: &List) -> Result<(), FilesError> {
        let bytes = serde_json::to_vec(list).expect("a list has text keys");
        self.repository.put(&self.path("list"), bytes).await?;
        Ok(())
    }
}

/// The tree of a snapshot's files: what its map speaks of.
pub(crate) fn tree(entries: &[Entry], packs: &[PackEntry]) -> Tree {
    let files = entries.iter().filter_map(|entry| match &entry.kind {
        EntryKind::File { bytes, .. } => Some(FileEntry {
            path: entry.path.to_string(),
            mode: 0o600,
            kind: FileKind::File { bytes: *bytes },
        }),
        EntryKind::Folder | EntryKind::Symlink { .. } | EntryKind::HardLink { .. } => None,
    });
    Tree {
        entries: files.collect(),
        packs: packs.to_vec(),
    }
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
