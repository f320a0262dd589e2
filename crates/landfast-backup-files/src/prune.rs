//! Removes what retention lets go: first a tombstone in the list, the objects with a later prune.
//!
//! A crash between leaves objects that no manifest names, and the next prune removes those. Nothing is removed while anything is
//! missing.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use landfast_backup::{BackupId, KeepReason, Kept, Retention, which_to_keep};

use crate::{FilesError, Series, clock, series::Buried};

/// What a prune did, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    pub keep: BTreeMap<BackupId, BTreeSet<KeepReason>>,
    /// Taken out of the list; their objects go later.
    pub buried: Vec<BackupId>,
    /// Objects that are gone.
    pub deleted: usize,
}

/// Prunes a series. A tombstone stands for `delay`, and until there is a newer snapshot; then the objects go. What is at most `recent`
/// older than the newest stays as well, and the backup that was `proven` last. With `is_dry` nothing is changed.
///
/// # Errors
/// Those of the repository; [`FilesError::Unsound`] where anything is missing or damaged: first that is looked at.
pub async fn prune(
    series: &Series,
    retention: &Retention,
    recent: Duration,
    proven: Option<&BackupId>,
    delay: Duration,
    is_dry: bool,
) -> Result<Pruned, FilesError> {
    let loaded = series.load().await?;
    if let Some(finding) = loaded.findings.first() {
        let (object, wrong) = (&finding.object, &finding.wrong);
        return Err(FilesError::Unsound(format!("`{object}`: {wrong}")));
    }
    let Some(newest) = loaded.snapshots.last().map(|newest| newest.id.clone()) else {
        return Err(FilesError::Empty);
    };
    let kept = loaded.snapshots.iter().map(|snapshot| Kept {
        id: snapshot.id.clone(),
        at: snapshot.at,
        is_good: true,
    });
    let mut keep = which_to_keep(&kept.collect::<Vec<_>>(), retention);
    let newest_at = loaded.snapshots.iter().map(|snapshot| snapshot.at).max();
    for snapshot in &loaded.snapshots {
        if newest_at.is_some_and(|newest| !recent.is_zero() && newest.since(snapshot.at) <= recent)
        {
            let reasons = keep.entry(snapshot.id.clone()).or_default();
            reasons.insert(KeepReason::Recent);
        }
    }
    if let Some(proven) = proven.filter(|id| loaded.list.snapshots.contains_key(id)) {
        let reasons = keep.entry(proven.clone()).or_default();
        reasons.insert(KeepReason::Proven);
    }
    let ids = loaded.snapshots.iter().map(|snapshot| &snapshot.id);
    let mut pruned = Pruned {
        buried: ids.filter(|id| !keep.contains_key(id)).cloned().collect(),
        keep,
        deleted: 0,
    };
    if is_dry {
        return Ok(pruned);
    }
    let now = clock::now();
    let mut list = loaded.list.clone();
    for id in &pruned.buried {
        list.snapshots.remove(id);
        let newest = newest.clone();
        list.buried.insert(id.clone(), Buried { at: now, newest });
    }
    if list != loaded.list {
        series.write(&list).await?;
    }
    let repository = series.repository();
    let is_over = |buried: &Buried| now.since(buried.at) >= delay && newest > buried.newest;
    let over = list.buried.iter().filter(|(_, buried)| is_over(buried));
    let over: Vec<_> = over.map(|(id, _)| id.clone()).collect();
    for id in &over {
        for part in ["manifest", "entries", "map", "hashes"] {
            repository.delete(&series.part(id, part)).await?;
            pruned.deleted += 1;
        }
    }
    // Packs are named by those that are listed, and by those whose tombstone stands.
    let mut needed = BTreeSet::new();
    for snapshot in &loaded.snapshots {
        needed.extend(snapshot.packs.iter().map(|pack| pack.name.clone()));
    }
    for id in loaded.list.buried.keys().filter(|id| !over.contains(id)) {
        if let Some(packs) = series.packs_of(id).await? {
            needed.extend(packs);
        }
    }
    for name in series.names("packs").await? {
        let of = name.rsplit('/').nth(1).and_then(|id| id.parse().ok());
        // One with a higher number may be on its way.
        let is_old = of.is_some_and(|of: u64| BackupId::of(of) <= newest);
        if is_old && !needed.contains(&name) {
            repository.delete(&name).await?;
            pruned.deleted += 1;
        }
    }
    // What a snapshot has left that did not come to its manifest.
    for name in series.names("snapshots").await? {
        let of = name.rsplit('/').nth(1).and_then(|id| id.parse().ok());
        let Some(of) = of.map(BackupId::of) else {
            continue;
        };
        let is_known = loaded.list.snapshots.contains_key(&of) || list.buried.contains_key(&of);
        if of <= newest && !is_known {
            repository.delete(&name).await?;
            pruned.deleted += 1;
        }
    }
    if !over.is_empty() {
        over.iter().for_each(|id| {
            list.buried.remove(id);
        });
        series.write(&list).await?;
    }
    Ok(pruned)
}
