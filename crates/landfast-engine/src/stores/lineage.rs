//! Timelines of PostgreSQL servers that descend from one another.
//!
//! A restored server begins a timeline of its own, and goes on with the archive of the one it was restored from. An archive has one
//! history for each timeline, and its newest one is what a restore leads to. So before a store can take another one's place it must
//! be on a timeline that none of its relatives on this host has, and behind theirs: a store that serves no name, and whose
//! timeline is not the newest of its family, takes a newer one when it starts. A server that serves is left alone.
//!
//! PostgreSQL chooses the number itself, when it leaves recovery: the first behind its own for which it finds no history file. So the
//! numbers that relatives have are shown to it as files, and it is told to recover to the end of what it has.

use std::{
    fs,
    io::{self, Read as _},
    path::Path,
};

use landfast_datastore::Store;
use landfast_spec::Engine;
use landfast_types::{Scope, StoreName};

use super::host::places;
use crate::shared::Shared;

/// Where PostgreSQL 12 to 17 keep in their control file what is read here.
const VERSIONS: std::ops::Range<u32> = 1_200..1_800;
const CONTROL_LEN: usize = 52;

/// Of which family a server is, and its newest timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lineage {
    pub(crate) system: u64,
    pub(crate) timeline: u32,
}

/// What the data of a store says of itself. It may lag behind the promotion of a server that runs, until that answers.
///
/// # Errors
/// A sentence.
pub(crate) fn lineage(shared: &Shared, scope: &Scope, name: &StoreName) -> Result<Lineage, String> {
    read(&places(shared, scope, name).data())
}

fn read(data: &Path) -> Result<Lineage, String> {
    let path = data.join("global/pg_control");
    let failed = |error: io::Error| format!("failed to read `{}`: {error}", path.display());
    let mut bytes = [0; CONTROL_LEN];
    fs::File::open(&path)
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(failed)?;
    parse(&bytes).ok_or_else(|| format!("`{}` is of another version", path.display()))
}

fn parse(bytes: &[u8; CONTROL_LEN]) -> Option<Lineage> {
    let number = |at: usize| Some(u32::from_le_bytes(bytes[at..at + 4].try_into().ok()?));
    VERSIONS.contains(&number(8)?).then_some(())?;
    Some(Lineage {
        system: u64::from_le_bytes(bytes[..8].try_into().ok()?),
        timeline: number(48)?,
    })
}

/// Prepares a start on a newer timeline where the store needs one; what the server is told besides. Done again it does the same.
///
/// # Errors
/// A sentence.
pub(super) fn fork(shared: &Shared, store: &Store) -> Result<Vec<String>, String> {
    if store.wanted.engine != Engine::Postgres {
        return Ok(Vec::new());
    }
    let data = places(shared, &store.scope, &store.name).data();
    let signal = data.join("recovery.signal");
    let newest = newest_of_family(shared, store, &data);
    if let Some(newest) = newest.filter(|_| !signal.exists()) {
        let own = read(&data)?.timeline;
        let io = |error: io::Error| format!("failed to write into `{}`: {error}", data.display());
        taken(&data, own, newest).map_err(io)?;
        give(&signal, &data).map_err(io)?;
        tracing::info!(scope = %store.scope, store = %store.name, own, newest, "it takes a timeline behind those of its relatives");
    }
    if !signal.exists() {
        return Ok(Vec::new());
    }
    // A restored server was recovered with settings of its own, which only a standby would have to match.
    let told = [
        "restore_command=false",
        "recovery_target_timeline=current",
        "hot_standby=off",
    ];
    let told = told.into_iter();
    Ok(told
        .flat_map(|setting| ["-c".to_owned(), setting.to_owned()])
        .collect())
}

/// The newest timeline of the relatives of a store that serves nothing; `None` where its own is newer.
fn newest_of_family(shared: &Shared, store: &Store, data: &Path) -> Option<u32> {
    let view = shared.environment(&store.scope)?;
    let names = view
        .bodies
        .last_key_value()
        .map(|(_, body)| &body.spec.stores);
    let serves = view.state.serves(&store.name);
    if serves.is_some_and(|name| names.is_some_and(|names| names.contains_key(name))) {
        return None;
    }
    let own = read(data).ok()?;
    let others = shared.stores.of(&store.scope);
    let others = others.iter().map(|view| &view.store);
    let others = others.filter(|other| other.name != store.name);
    let relatives = others.filter_map(|other| {
        let data = places(shared, &other.scope, &other.name).data();
        let found = read(&data).ok()?;
        let newest = histories(&data).max().unwrap_or(found.timeline);
        (found.system == own.system).then_some(newest.max(found.timeline))
    });
    relatives.max().filter(|newest| *newest >= own.timeline)
}

/// The timelines of whose history a server has a file.
fn histories(data: &Path) -> impl Iterator<Item = u32> {
    let entries = fs::read_dir(data.join("pg_wal")).into_iter().flatten();
    entries.flatten().filter_map(|entry| {
        let name = entry.file_name();
        let digits = name.to_str()?.strip_suffix(".history")?;
        u32::from_str_radix(digits, 16).ok()
    })
}

/// Shows a server that these timelines are taken. It looks whether there is a file, and reads none that is not its own ancestor's.
fn taken(data: &Path, own: u32, newest: u32) -> io::Result<()> {
    for timeline in own + 1..=newest {
        let path = data.join(format!("pg_wal/{timeline:08X}.history"));
        if !path.exists() {
            give(&path, data)?;
        }
    }
    Ok(())
}

/// Makes an empty file that belongs to whom the folder belongs to.
fn give(path: &Path, data: &Path) -> io::Result<()> {
    use std::os::unix::fs::{MetadataExt as _, chown};
    fs::File::create(path)?.sync_all()?;
    let owner = fs::metadata(data)?;
    chown(path, Some(owner.uid()), Some(owner.gid()))?;
    fs::File::open(path.parent().unwrap_or(data))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_control_file_of_the_versions_it_knows() {
        let mut bytes = [0; CONTROL_LEN];
        bytes[..8].copy_from_slice(&7_213_456_789_u64.to_le_bytes());
        bytes[8..12].copy_from_slice(&1_300_u32.to_le_bytes());
        bytes[48..].copy_from_slice(&3_u32.to_le_bytes());
        let lineage = Lineage {
            system: 7_213_456_789,
            timeline: 3,
        };
        assert_eq!(parse(&bytes), Some(lineage));
        bytes[8..12].copy_from_slice(&1_900_u32.to_le_bytes());
        assert_eq!(parse(&bytes), None);
    }

    #[test]
    fn shows_every_number_behind_its_own_as_taken() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("pg_wal")).unwrap();
        taken(folder.path(), 1, 3).unwrap();
        let mut found: Vec<_> = histories(folder.path()).collect();
        found.sort_unstable();
        assert_eq!(found, [2, 3]);
    }
}
