//! Removes what retention lets go: first a tombstone, the objects with a later prune.
//!
//! Backups are taken out of the ledger before their objects go, WAL likewise; a crash between leaves objects that nothing speaks of, and the
//! next prune removes those. A pack goes when no manifest that is still there names it, a page of the ledger when a newer one says
//! that it is read no more. A manifest that the ledger does not speak of and that has no tombstone (a crash between the two, or a
//! tombstone that was lost) gets one.

use std::collections::BTreeSet;

use landfast_backup::{
    BackupId, Event, Keep, Lsn, Retention, Timeline, pages_to_drop, what_to_keep,
};
use serde::{Deserialize, Serialize};

use crate::{Archive, BackupError, Loaded, WalArchiver};

/// Objects of WAL that are removed between two shipments.
const REMOVED_AT_ONCE: usize = 32;

/// What a prune did, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    pub keep: Keep,
    /// Taken out of the list; their objects go later.
    pub buried: Vec<BackupId>,
    /// WAL that goes.
    pub wal: Vec<(Timeline, Lsn, Lsn)>,
    /// Objects that are gone.
    pub deleted: usize,
}

#[derive(Serialize, Deserialize)]
struct Tombstone {
    /// The newest heartbeat when it was put.
    heartbeat: u64,
}

/// Prunes an archive. `delay_heartbeats` is how long a tombstone stands before the objects go. With `is_dry` nothing is changed.
///
/// # Errors
/// Those of the repository. Nothing is removed from an archive in which anything is missing: first that is looked at.
pub async fn prune(
    archive: &Archive,
    archiver: &WalArchiver,
    retention: &Retention,
    delay_heartbeats: u64,
    is_dry: bool,
) -> Result<Pruned, BackupError> {
    let loaded = archive.load().await?;
    let loaded = loaded.ok_or_else(|| BackupError::EmptyArchive(archive.name().to_owned()))?;
    if let Some(finding) = loaded.findings.first() {
        let (object, wrong) = (&finding.object, &finding.wrong);
        return Err(BackupError::Unsound(format!("`{object}`: {wrong}")));
    }
    let keep = what_to_keep(&loaded.ledger, &loaded.summaries(), retention);
    let mut pruned = Pruned {
        buried: loaded
            .backups
            .iter()
            .map(|backup| backup.summary.id.clone())
            .filter(|id| !keep.backups.contains_key(id))
            .collect(),
        wal: ranges(&loaded, &keep),
        keep,
        deleted: 0,
    };
    if is_dry {
        return Ok(pruned);
    }
    let now = loaded
        .ledger
        .heartbeats()
        .last()
        .map_or(0, |beat| beat.sequence);
    let mut told = Vec::new();
    for id in &pruned.buried {
        bury(archive, id, now).await?;
        let event = Event::BackupRemoved { backup: id.clone() };
        archiver.record(vec![event.clone()]).await?;
        told.push(event);
    }
    let events = pruned.wal.iter().map(|(timeline, from, to)| Event::Pruned {
        timeline: *timeline,
        from: *from,
        to: *to,
    });
    let events: Vec<_> = events.collect();
    let mut ledger = loaded.ledger.clone();
    events.iter().for_each(|event| ledger.apply(event));
    if !events.is_empty() {
        archiver.record(events.clone()).await?;
        told.extend(events);
    }
    // What was pruned, and what a shipment left whose page was not put: the ledger knows a longer piece instead. By now that may be
    // another one, so the archiver looks again.
    let there = archive.pieces_there().await?;
    let gone: Vec<_> = there
        .into_iter()
        .filter(|key| ledger.is_let_go(*key))
        .collect();
    for keys in gone.chunks(REMOVED_AT_ONCE) {
        pruned.deleted += archiver.remove(keys.to_vec()).await?;
    }
    pruned.deleted += remove_buried(archive, &loaded, &pruned, now, delay_heartbeats).await?;
    pruned.deleted += drop_pages(archive, archiver, &loaded, &told).await?;
    Ok(pruned)
}

/// Removes the packs of backups that never came to their end, and gives their number. None may be on its way, of whoever. One pack of the
/// newest stays until a later backup comes, and with it its number: what a killed one has sent may arrive late.
///
/// # Errors
/// Those of the repository. Nothing is removed from an archive in which anything is missing.
pub async fn remove_unfinished(archive: &Archive) -> Result<usize, BackupError> {
    let loaded = archive.load().await?;
    if let Some(finding) = loaded.iter().flat_map(|loaded| &loaded.findings).next() {
        let (object, wrong) = (&finding.object, &finding.wrong);
        return Err(BackupError::Unsound(format!("`{object}`: {wrong}")));
    }
    let known = loaded
        .iter()
        .flat_map(|loaded| loaded.ledger.backups().keys());
    let newest = known.filter_map(BackupId::sequence).fold(0, u64::max);
    let mut later = archive.names("packs").await?;
    later.retain(|name| pack_number(name).is_some_and(|of| of > newest));
    if later.is_empty() {
        return Ok(0);
    }
    let mut needed = BTreeSet::new();
    for name in archive.names("backups").await? {
        if let Some(sequence) = manifest_number(&name) {
            let manifest = archive.manifest(&BackupId::of(sequence), None).await?;
            needed.extend(manifest.tree.packs.into_iter().map(|pack| pack.name));
        }
    }
    let mut deleted = 0;
    later.retain(|name| !needed.contains(name));
    later.sort_by_key(|name| pack_number(name));
    later.pop();
    for name in &later {
        archive.repository().delete(name).await?;
        deleted += 1;
    }
    Ok(deleted)
}

/// The number of the backup that a manifest is of.
fn manifest_number(name: &str) -> Option<u64> {
    let name = name.strip_suffix("/manifest")?;
    name.rsplit('/').next()?.parse().ok()
}

/// The number of the backup that put a pack.
fn pack_number(name: &str) -> Option<u64> {
    name.rsplit('/').nth(1)?.parse().ok()
}

async fn bury(archive: &Archive, id: &BackupId, now: u64) -> Result<(), BackupError> {
    let tombstone = Tombstone { heartbeat: now };
    let bytes = serde_json::to_vec(&tombstone).expect("a number");
    let name = archive.path(&format!("tombstones/{id}"));
    archive.repository().put(&name, bytes).await?;
    Ok(())
}

/// Removes the pages of the ledger that say nothing any more but what can be told again in the newest one.
async fn drop_pages(
    archive: &Archive,
    archiver: &WalArchiver,
    loaded: &Loaded,
    told: &[Event],
) -> Result<usize, BackupError> {
    let mut ledger = loaded.ledger.clone();
    told.iter().for_each(|event| ledger.apply(event));
    let pages: Vec<_> = loaded.pages.iter().map(|(page, _)| page.clone()).collect();
    // Those a crash has left are removed, too.
    let mut oldest = pages.last().map_or(0, |page| page.oldest);
    if let Some(carry) = pages_to_drop(&ledger, &pages) {
        oldest = carry.oldest;
        archiver.carry(carry).await?;
    }
    let mut deleted = 0;
    for page in pages.iter().filter(|page| page.number < oldest) {
        let name = archive.page_path(page.number);
        archive.repository().delete(&name).await?;
        deleted += 1;
    }
    Ok(deleted)
}

/// WAL that is not kept, one range for what lies side by side.
fn ranges(loaded: &Loaded, keep: &Keep) -> Vec<(Timeline, Lsn, Lsn)> {
    let mut ranges: Vec<(Timeline, Lsn, Lsn)> = Vec::new();
    for key in loaded.ledger.pieces() {
        if keep.keeps_wal(key.timeline, key.from, key.to) {
            continue;
        }
        match ranges.last_mut() {
            Some((timeline, _, to)) if *timeline == key.timeline && *to == key.from => *to = key.to,
            _ => ranges.push((key.timeline, key.from, key.to)),
        }
    }
    ranges
}

async fn remove_buried(
    archive: &Archive,
    loaded: &Loaded,
    pruned: &Pruned,
    now: u64,
    delay: u64,
) -> Result<usize, BackupError> {
    let repository = archive.repository();
    let mut deleted = 0;
    for name in archive.names("tombstones").await? {
        let id = name
            .rsplit('/')
            .next()
            .and_then(|id| id.parse().ok())
            .map(BackupId::of);
        let (Some(id), bytes) = (id, repository.get(&name).await?) else {
            continue;
        };
        let Ok(tombstone) = serde_json::from_slice::<Tombstone>(&bytes) else {
            continue;
        };
        if now.saturating_sub(tombstone.heartbeat) < delay {
            continue;
        }
        for part in ["manifest", "map", "hashes"] {
            repository.delete(&archive.backup_path(&id, part)).await?;
            deleted += 1;
        }
        repository.delete(&name).await?;
    }
    let known = loaded.ledger.backups().keys().chain(&pruned.buried);
    let newest = known.filter_map(BackupId::sequence).fold(0, u64::max);
    let tombstones: BTreeSet<_> = archive.names("tombstones").await?.into_iter().collect();
    // Manifests that are still there, listed or not, name the packs that stay.
    let mut needed = BTreeSet::new();
    for name in archive.names("backups").await? {
        let Some(sequence) = manifest_number(&name) else {
            continue;
        };
        let id = BackupId::of(sequence);
        let manifest = archive.manifest(&id, None).await?;
        let has_tombstone = tombstones.contains(&archive.path(&format!("tombstones/{id}")));
        let is_listed = loaded.ledger.backups().contains_key(&id);
        // One with a higher number may be on its way.
        if sequence <= newest && !is_listed && !has_tombstone {
            bury(archive, &id, now).await?;
        }
        needed.extend(manifest.tree.packs.into_iter().map(|pack| pack.name));
    }
    for name in archive.names("packs").await? {
        let of = pack_number(&name);
        // One with a higher number may be on its way.
        if of.is_some_and(|of| of <= newest) && !needed.contains(&name) {
            repository.delete(&name).await?;
            deleted += 1;
        }
    }
    Ok(deleted)
}
