//! Whether a release can live on a schema.

use std::{collections::BTreeMap, fmt};

use landfast_types::Digest;
use serde::{Deserialize, Serialize};

use crate::{History, MigrationSet, Phase};

/// What a release keeps of its migration set: enough for a verdict long after its files are gone.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Known {
    /// Name, phase and checksum by number.
    pub migrations: BTreeMap<u32, KnownMigration>,
}

/// One migration a release knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownMigration {
    /// Its name.
    pub name: String,
    /// Its phase.
    pub phase: Phase,
    /// Its checksum.
    pub checksum: Digest,
}

impl From<&MigrationSet> for Known {
    fn from(set: &MigrationSet) -> Self {
        let known = |migration: &crate::Migration| KnownMigration {
            name: migration.name.clone(),
            phase: migration.phase(),
            checksum: migration.checksum,
        };
        Self {
            migrations: set
                .iter()
                .map(|migration| (migration.number, known(migration)))
                .collect(),
        }
    }
}

/// The answer for one release.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Verdict {
    /// Migrations that ran, or have begun, that this release does not know and cannot live with.
    pub broken_by: Vec<String>,
    /// Migrations this release was made for that are not there.
    pub needs: Vec<String>,
}

impl Verdict {
    /// Whether the release can run.
    pub fn lives(&self) -> bool {
        self.broken_by.is_empty() && self.needs.is_empty()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.broken_by.is_empty(), self.needs.is_empty()) {
            (true, true) => f.write_str("can live on this schema"),
            (false, _) => write!(
                f,
                "cannot live on this schema since {}",
                self.broken_by.join(", ")
            ),
            (true, false) => write!(f, "needs {}", self.needs.join(", ")),
        }
    }
}

/// Judges a release by the set it was made with against a schema by its history.
///
/// A contract migration breaks every release that does not have it in its set, from its first step on: half a contract is
/// one. So does any other that is recorded as breaking. An expand migration the release does not know is harmless by
/// definition; one of its own that has not run whole is missing to it.
pub fn verdict(release: &Known, history: &History) -> Verdict {
    let title = |number: u32, name: &str| format!("{number:04}_{name}");
    let broken_by = history
        .records()
        .filter(|record| record.breaks_older || record.phase == Phase::Contract)
        .filter(|record| !release.migrations.contains_key(&record.number))
        .map(|record| title(record.number, &record.name))
        .collect::<std::collections::BTreeSet<_>>();
    let needs = release
        .migrations
        .iter()
        .filter(|(number, known)| known.phase != Phase::Contract && !history.is_applied(**number))
        .map(|(number, known)| title(*number, &known.name))
        .collect();
    Verdict {
        broken_by: broken_by.into_iter().collect(),
        needs,
    }
}
