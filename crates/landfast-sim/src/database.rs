//! The database of a simulated host: what it has seen, whatever anybody believes. A migration takes its time, and one whose
//! server dies meanwhile is either done or not.

use landfast_rollout::{
    AppliedMigration, MigrationPhase, MigrationShape, MigrationStage, Schemas, Topology,
};
use landfast_types::{ReleaseId, RolloutId, StoreName};

use crate::dice::Dice;

/// A name that is known to be one.
pub fn store() -> StoreName {
    StoreName::new("main").expect("a store name")
}

/// A runner in a life of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Runner {
    pub generation: u64,
    pub rollout: RolloutId,
    pub release: ReleaseId,
    pub stage: MigrationStage,
}

/// The one database.
#[derive(Debug, Clone, Default)]
pub struct Database {
    pub seen: Vec<AppliedMigration>,
    /// Who holds its lock.
    pub runner: Option<Runner>,
}

impl Database {
    /// The next migration of a release in a stage that has not run.
    pub fn next(&self, topology: &Topology, stage: MigrationStage) -> Option<MigrationShape> {
        let migrations = topology.schemas.get(&store())?;
        let has_run = |number| self.seen.iter().any(|known| known.number == number);
        let mut left = migrations.iter();
        left.find(|migration| stage.takes(migration.phase) && !has_run(migration.number))
            .cloned()
    }

    pub fn apply(&mut self, migration: MigrationShape) {
        self.seen.push(AppliedMigration {
            number: migration.number,
            name: migration.name,
            phase: migration.phase,
            is_whole: true,
            breaks_older: false,
        });
        self.seen.sort_by_key(|known| known.number);
    }

    /// What it says of itself.
    pub fn schemas(&self) -> Schemas {
        [(store(), self.seen.clone())].into()
    }

    /// The contract migration that a release does not live with, if it saw one.
    pub fn breaks(&self, topology: &Topology) -> Option<&str> {
        let own = topology.schemas.get(&store())?;
        let knows = |number| own.iter().any(|known| known.number == number);
        let mut contracts = self
            .seen
            .iter()
            .filter(|seen| seen.phase == MigrationPhase::Contract);
        let unknown = contracts.find(|seen| !knows(seen.number))?;
        Some(&unknown.name)
    }

    /// What a release needs and the database does not have.
    pub fn lacks(&self, topology: &Topology) -> Option<String> {
        let next = self.next(topology, MigrationStage::Expand)?;
        Some(next.name)
    }
}

/// The migrations a release brings: those of an earlier one, mostly with some more; now and then fewer, from an old branch.
pub fn migrations(dice: &mut Dice, so_far: &mut Vec<MigrationShape>) -> Vec<MigrationShape> {
    for _ in 0..dice.between(0, 2) {
        let number = so_far.len() as u32 + 1;
        let phase = match dice.between(0, 9) {
            0..5 => MigrationPhase::Expand,
            5..9 => MigrationPhase::Contract,
            _ => MigrationPhase::Any,
        };
        let name = format!("{number:04}_step");
        so_far.push(MigrationShape {
            number,
            name,
            phase,
        });
    }
    let kept = if dice.permille(120) {
        dice.between(0, so_far.len() as u64) as usize
    } else {
        so_far.len()
    };
    so_far[..kept].to_vec()
}
