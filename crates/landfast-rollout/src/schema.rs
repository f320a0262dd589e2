//! What migrations mean for rollouts: which are to run when, and which releases can live with what has run.
//!
//! The engine does not read SQL. It knows of each migration its number, its name and its phase, and of each store which
//! have been applied, as the runner read it from the store's own history.

use std::collections::{BTreeMap, BTreeSet};

use landfast_types::{ReleaseId, StoreName};
use serde::{Deserialize, Serialize};

use crate::{environment::Environment, plan::Topology};

/// When a migration may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MigrationPhase {
    /// Before instances of the new release start; the old release lives with it.
    Expand,
    /// Once the release that brought it is sealed: older releases do not live with it.
    Contract,
    /// Harms neither release; runs with expand.
    Any,
}

/// One migration of a release, as the engine sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationShape {
    /// Its place in the order, unique within a store.
    pub number: u32,
    /// The file's name without its ending, such as `0007_drop_name`.
    pub name: String,
    pub phase: MigrationPhase,
}

/// Which migrations of a release are to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MigrationStage {
    /// All, in the order of their numbers: nothing of this environment serves that could be broken.
    All,
    /// `expand` and `any`.
    Expand,
    /// `contract`: no older release is left.
    Contract,
}

impl MigrationStage {
    /// Whether migrations of a phase run in this stage.
    pub fn takes(self, phase: MigrationPhase) -> bool {
        match self {
            Self::All => true,
            Self::Expand => phase != MigrationPhase::Contract,
            Self::Contract => phase == MigrationPhase::Contract,
        }
    }
}

/// A migration that a store has seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppliedMigration {
    pub number: u32,
    pub name: String,
    pub phase: MigrationPhase,
    /// Applied whole. One that was only begun may have changed the schema or not.
    pub is_whole: bool,
    /// It ran before the seal although older releases do not live with it.
    #[serde(default)]
    pub breaks_older: bool,
}

impl AppliedMigration {
    /// Whether a release that does not know it cannot live with it.
    pub fn is_breaking(&self) -> bool {
        self.phase == MigrationPhase::Contract || self.breaks_older
    }
}

/// What each store has seen, in the order of the numbers.
pub type Schemas = BTreeMap<StoreName, Vec<AppliedMigration>>;

/// Why a release cannot live on today's schema: a breaking migration that it does not know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Obstacle {
    pub release: ReleaseId,
    pub store: StoreName,
    /// The migration's name.
    pub migration: String,
    /// Applied whole; otherwise it was begun, and nobody knows how far it came.
    pub is_whole: bool,
}

impl Obstacle {
    /// The obstacle and both ways out, for people.
    pub fn sentence(&self) -> String {
        let Self {
            release,
            store,
            migration,
            is_whole,
        } = self;
        let state = if *is_whole {
            "was applied to"
        } else {
            "was begun on"
        };
        format!(
            "release {release} cannot run on today's schema: the migration `{migration}`, which it does not live with, {state} store `{store}`. \
             Either go forward (`landfast deploy` a release that mends it), or restore `{store}` to a point before that migration \
             and go back then"
        )
    }
}

/// What keeps a release from running on databases that have seen this.
pub(crate) fn obstacle_among(
    schemas: &Schemas,
    release: ReleaseId,
    topology: &Topology,
) -> Option<Obstacle> {
    topology.schemas.iter().find_map(|(store, own)| {
        let own: BTreeSet<u32> = own.iter().map(|migration| migration.number).collect();
        let mut applied = schemas.get(store)?.iter();
        let unknown =
            applied.find(|applied| applied.is_breaking() && !own.contains(&applied.number))?;
        Some(Obstacle {
            release,
            store: store.clone(),
            migration: unknown.name.clone(),
            is_whole: unknown.is_whole,
        })
    })
}

impl Environment {
    /// What keeps a release from running on today's schemas, if anything does.
    pub fn obstacle(&self, release: ReleaseId) -> Option<Obstacle> {
        self.obstacle_to(release, &self.releases.get(&release)?.topology)
    }

    /// The same of a release that is not made yet.
    pub(crate) fn obstacle_to(&self, release: ReleaseId, topology: &Topology) -> Option<Obstacle> {
        obstacle_among(&self.schemas, release, topology)
    }

    /// Whether something that a release needs was never applied: it was left before its migrations had run.
    pub(crate) fn lacks_schema(&self, release: ReleaseId) -> bool {
        let record = self.releases.get(&release);
        let mut stores = record.into_iter().flat_map(|r| &r.topology.schemas);
        stores.any(|(store, migrations)| {
            let mut needed = migrations
                .iter()
                .filter(|migration| MigrationStage::Expand.takes(migration.phase));
            needed.any(|migration| !self.has_run(store, migration.number))
        })
    }

    fn has_run(&self, store: &StoreName, number: u32) -> bool {
        let mut seen = self.schemas.get(store).into_iter().flatten();
        seen.any(|applied| applied.number == number && applied.is_whole)
    }

    /// What keeps a rollout from being taken back, if anything does. One that has not moved yet leads back to what serves anyway.
    pub(crate) fn way_back_barred(&self) -> Option<Obstacle> {
        let rollout = self.rollout.as_ref()?;
        let moved = rollout.exposed || rollout.cleared;
        rollout
            .from
            .filter(|from| moved && *from != rollout.to)
            .and_then(|from| self.obstacle(from))
    }

    /// The contract migrations of a release that have not run whole.
    pub fn waiting_contracts(
        &self,
        release: ReleaseId,
    ) -> BTreeMap<StoreName, Vec<MigrationShape>> {
        let Some(record) = self.releases.get(&release) else {
            return BTreeMap::new();
        };
        let mut waiting = BTreeMap::new();
        for (store, migrations) in &record.topology.schemas {
            let left: Vec<_> = migrations
                .iter()
                .filter(|migration| migration.phase == MigrationPhase::Contract)
                .filter(|migration| !self.has_run(store, migration.number))
                .cloned()
                .collect();
            if !left.is_empty() {
                waiting.insert(store.clone(), left);
            }
        }
        waiting
    }

    /// An instance of a release that would not live with the contract migrations of another: as long as it is there, in
    /// whatever state, they do not run.
    pub(crate) fn contract_hindrance(&self, release: ReleaseId) -> Option<String> {
        let waiting = self.waiting_contracts(release);
        let lacks = |other: ReleaseId| {
            let mut waiting = waiting.iter();
            waiting.any(|(store, migrations)| self.lacks_any(other, store, migrations))
        };
        if let Some(queued) = self.queued.as_ref().filter(|queued| lacks(queued.to)) {
            return Some(format!(
                "release {}, which is next, does not know them",
                queued.to
            ));
        }
        let mut instances = self.instances.values();
        let old = instances.find(|instance| instance.release != release && lacks(instance.release));
        old.map(|instance| {
            format!(
                "{} of release {} has not ended",
                instance.id, instance.release
            )
        })
    }

    /// Whether a release uses a database and does not know all of these migrations of it.
    pub(crate) fn lacks_any(
        &self,
        release: ReleaseId,
        store: &StoreName,
        migrations: &[MigrationShape],
    ) -> bool {
        let Some(record) = self.releases.get(&release) else {
            return !migrations.is_empty();
        };
        let own = record.topology.schemas.get(store);
        own.is_some_and(|own| {
            let has = |number| own.iter().any(|known| known.number == number);
            !migrations.iter().all(|migration| has(migration.number))
        })
    }

    /// What databases say of themselves is the truth; of one that was not read what is known stays.
    pub(crate) fn read_schemas(&mut self, read: &Schemas) {
        for (store, seen) in read {
            self.schemas.insert(store.clone(), seen.clone());
            self.unread.remove(store);
        }
    }

    /// The contract migrations are about to run: until the runner says otherwise nobody knows how far they came.
    pub(crate) fn begin_contracts(&mut self, begun: &BTreeMap<StoreName, Vec<MigrationShape>>) {
        for (store, migrations) in begun {
            let seen = self.schemas.entry(store.clone()).or_default();
            for migration in migrations {
                if seen.iter().all(|known| known.number != migration.number) {
                    seen.push(AppliedMigration {
                        number: migration.number,
                        name: migration.name.clone(),
                        phase: migration.phase,
                        is_whole: false,
                        breaks_older: false,
                    });
                }
            }
            seen.sort_by_key(|migration| migration.number);
        }
    }
}
