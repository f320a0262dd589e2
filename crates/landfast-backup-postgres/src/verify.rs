//! Reads every byte of an archive, and names each object that is not as it should be.

use std::collections::BTreeMap;

use futures_util::{StreamExt as _, stream};
use landfast_backup::LedgerError;
use landfast_repository::RepositoryError;
use landfast_types::Digest;

use crate::{Archive, BackupError, Finding, Loaded, receiver::chain};

const READS_AT_ONCE: usize = 2;
/// Shipments that a crash can leave untold: a batch of closed segments and the open one.
const UNTOLD_MAX: usize = 9;

/// What was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    pub objects: usize,
    /// As they are stored, packs only; the rest as it is opened.
    pub bytes: u64,
    /// Empty where all is well.
    pub findings: Vec<Finding>,
}

impl Verified {
    fn read(&mut self, bytes: u64) {
        self.objects += 1;
        self.bytes += bytes;
    }

    fn found(&mut self, object: String, wrong: impl Into<String>) {
        self.findings.push(Finding {
            object,
            wrong: wrong.into(),
        });
    }

    /// Takes note of what a read came to. A repository that cannot be reached is no finding.
    fn note(&mut self, object: String, read: Result<u64, BackupError>) -> Result<(), BackupError> {
        match read {
            Ok(bytes) => self.read(bytes),
            Err(BackupError::Repository(error)) if is_about_objects(&error) => {
                let wrong = chain(&error);
                self.found(object, wrong);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

fn is_about_objects(error: &RepositoryError) -> bool {
    !error.is_transient()
        && !matches!(
            error,
            RepositoryError::Local { .. } | RepositoryError::Stopped(_)
        )
}

/// Verifies an archive. `on_progress` is told how many objects were read.
///
/// # Errors
/// Where the repository cannot be reached. Everything that is wrong with what lies in it is a finding.
pub async fn verify(
    archive: &Archive,
    mut on_progress: impl FnMut(usize),
) -> Result<Verified, BackupError> {
    let mut verified = Verified::default();
    let loaded = match archive.load().await {
        Ok(Some(loaded)) => loaded,
        Ok(None) => return Err(BackupError::EmptyArchive(archive.name().to_owned())),
        Err(BackupError::Repository(error)) if is_about_objects(&error) => {
            let object = error.bad_object().unwrap_or("ledger").to_owned();
            verified.found(object, chain(&error));
            return Ok(verified);
        }
        Err(BackupError::Ledger(error)) => {
            let number = match &error {
                LedgerError::Format { number, .. }
                | LedgerError::PageMissing { number, .. }
                | LedgerError::PageChanged { number, .. }
                | LedgerError::OtherSystem { number, .. } => *number,
                LedgerError::OtherHistory { .. } => 0,
            };
            verified.found(archive.page_path(number), error.to_string());
            return Ok(verified);
        }
        Err(error) => return Err(error),
    };
    verified.objects = loaded.pages.len() + loaded.backups.len();
    verified.findings.extend(loaded.findings.iter().cloned());
    untold(archive, &loaded, &mut verified);
    wal(archive, &loaded, &mut verified, &mut on_progress).await?;
    if verified.findings.len() > loaded.findings.len() {
        forget_merged(archive, &loaded, &mut verified).await?;
    }
    backups(archive, &loaded, &mut verified, &mut on_progress).await?;
    verified.findings.sort();
    verified
        .findings
        .dedup_by(|one, other| one.object == other.object);
    Ok(verified)
}

/// An archiver that runs meanwhile puts pieces together: what is not spoken of any more is not missing.
async fn forget_merged(
    archive: &Archive,
    loaded: &Loaded,
    verified: &mut Verified,
) -> Result<(), BackupError> {
    let Some(now) = archive.load().await? else {
        return Ok(());
    };
    let merged = loaded
        .ledger
        .pieces()
        .filter(|key| now.ledger.piece(*key).is_none())
        .map(|key| archive.piece_path(key));
    let merged: Vec<_> = merged.collect();
    verified
        .findings
        .retain(|finding| !merged.contains(&finding.object));
    Ok(())
}

/// What lies there and the ledger does not speak of.
fn untold(archive: &Archive, loaded: &Loaded, verified: &mut Verified) {
    if loaded.unspoken.len() > UNTOLD_MAX {
        let next = loaded.pages.last().map_or(0, |(page, _)| page.number + 1);
        let count = loaded.unspoken.len();
        let wrong =
            format!("it is missing: {count} ranges of WAL lie behind the end of the ledger");
        verified.found(archive.page_path(next), wrong);
    }
    for hole in loaded.ledger.holes() {
        let is_named = verified.findings.iter().any(|finding| {
            let timeline = format!("/wal/{:08X}/", hole.timeline.0);
            finding.object.contains(&timeline)
        });
        if !is_named {
            let object = archive.path(&format!("wal/{:08X}", hole.timeline.0));
            verified.found(object, format!("WAL is missing: {hole}"));
        }
    }
}

async fn wal(
    archive: &Archive,
    loaded: &Loaded,
    verified: &mut Verified,
    on_progress: &mut impl FnMut(usize),
) -> Result<(), BackupError> {
    let missing: Vec<_> = loaded
        .findings
        .iter()
        .map(|finding| &finding.object)
        .collect();
    let keys = loaded
        .ledger
        .pieces()
        .filter(|key| !missing.contains(&&archive.piece_path(*key)));
    let keys: Vec<_> = keys.collect();
    let mut reads = stream::iter(keys)
        .map(|key| async move {
            let digest = loaded.ledger.piece(key).map(|piece| piece.digest);
            let read = archive.piece(key, digest).await;
            (
                archive.piece_path(key),
                read.map(|bytes| bytes.len() as u64),
            )
        })
        .buffer_unordered(READS_AT_ONCE);
    while let Some((object, read)) = reads.next().await {
        verified.note(object, read)?;
        on_progress(verified.objects);
    }
    drop(reads);
    for timeline in loaded.ledger.timelines() {
        let Some(digest) = loaded.ledger.history_digest(timeline) else {
            continue;
        };
        let name = archive.history_path(timeline);
        let read = whole(archive, &name, digest).await;
        verified.note(name, read)?;
    }
    Ok(())
}

async fn backups(
    archive: &Archive,
    loaded: &Loaded,
    verified: &mut Verified,
    on_progress: &mut impl FnMut(usize),
) -> Result<(), BackupError> {
    // A pack is read once, whichever backups refer to it.
    let mut packs = BTreeMap::new();
    for backup in &loaded.backups {
        let id = &backup.summary.id;
        for (part, digest) in [("map", backup.map), ("hashes", backup.hashes)] {
            let name = archive.backup_path(id, part);
            let read = whole(archive, &name, digest).await;
            verified.note(name, read)?;
        }
        for pack in &backup.tree.packs {
            packs
                .entry(pack.name.clone())
                .or_insert_with(|| pack.clone());
        }
    }
    let repository = archive.repository();
    let mut reads = stream::iter(packs.into_values())
        .map(|pack| async move {
            let read = repository.check_pack(&pack).await;
            (pack.name, read.map_err(BackupError::from))
        })
        .buffer_unordered(READS_AT_ONCE);
    while let Some((object, read)) = reads.next().await {
        verified.note(object, read)?;
        on_progress(verified.objects);
    }
    drop(reads);
    for name in archive.names("tombstones").await? {
        let read = repository.get(&name).await;
        let read = read.map(|bytes| bytes.len() as u64);
        verified.note(name, read.map_err(BackupError::from))?;
    }
    Ok(())
}

async fn whole(archive: &Archive, name: &str, digest: Digest) -> Result<u64, BackupError> {
    let bytes = archive.repository().get(name).await?;
    if Digest::of(&bytes) != digest {
        return Err(RepositoryError::Damaged {
            name: name.to_owned(),
            what: "it is another one than was written",
        }
        .into());
    }
    Ok(bytes.len() as u64)
}
