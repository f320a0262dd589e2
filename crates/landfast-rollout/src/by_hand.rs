//! Migrations that somebody runs outside rollouts: one at a time, and never beside a rollout.
//!
//! States: none, or one run ([`Environment::by_hand`]) from its record until the runner has ended. What it is about to do counts
//! from the record on: contract migrations as begun, one that is taken back as not whole. A run whose server died has ended with
//! it; its database is then *unread* until somebody has asked it what became of it ([`Action::ReadSchema`](crate::Action)).

use landfast_types::{ReleaseId, StoreName, Timestamp};
use serde::{Deserialize, Serialize};

use crate::{
    environment::Environment,
    event::{Change, Rejected},
    rules::Draft,
    schema::{MigrationPhase, MigrationShape, Schemas},
};

/// A run by hand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandRun {
    /// Unlike that of any other run of the environment.
    pub run: u64,
    pub store: StoreName,
    pub work: HandWork,
    pub by: String,
    pub since: Timestamp,
}

/// What is done by hand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum HandWork {
    /// What is pending of `expand` and `any`.
    Expand,
    /// What is pending of `contract`.
    Contract { migrations: Vec<MigrationShape> },
    /// The newest migration is taken back.
    Down { migration: MigrationShape },
    /// A changed file, or a step nobody could judge, is taken for applied.
    Accept { migration: MigrationShape },
}

impl HandWork {
    /// The migrations that releases must know for it.
    fn breaking(&self) -> &[MigrationShape] {
        match self {
            Self::Contract { migrations } => migrations,
            Self::Accept { migration } if migration.phase == MigrationPhase::Contract => {
                std::slice::from_ref(migration)
            }
            Self::Expand | Self::Down { .. } | Self::Accept { .. } => &[],
        }
    }

    /// For people: `contract migrations run`.
    pub fn words(&self) -> &'static str {
        match self {
            Self::Expand => "migrations run",
            Self::Contract { .. } => "contract migrations run",
            Self::Down { .. } => "a migration is taken back",
            Self::Accept { .. } => "a migration is accepted",
        }
    }
}

impl Draft {
    pub(crate) fn migrate_by_hand(
        &mut self,
        store: StoreName,
        work: HandWork,
        by: String,
    ) -> Result<(), Rejected> {
        if let Some(rollout) = self.rollout() {
            return Err(self.is_moving(rollout));
        }
        self.refuse_beside_hand()?;
        if let Some(reason) = self.state.hand_hindrance(&store, work.breaking()) {
            let migration = work.breaking().first().map(|one| one.name.clone());
            return Err(Rejected::OlderReleaseLeft {
                migration: migration.unwrap_or_default(),
                store,
                reason,
            });
        }
        if let HandWork::Down { migration } = &work
            && let Some(release) = self.state.needs_migration(&store, migration.number)
        {
            return Err(Rejected::MigrationNeeded {
                migration: migration.name.clone(),
                store,
                release,
            });
        }
        let run = self.state.sequence;
        self.emit(Change::MigratingByHand {
            run,
            store,
            work,
            by,
        });
        Ok(())
    }

    /// Whatever moves releases waits for a run by hand.
    pub(crate) fn refuse_beside_hand(&self) -> Result<(), Rejected> {
        self.state.beside_hand().map_or(Ok(()), Err)
    }

    /// A runner has ended. One that was given up already still tells what its database has seen.
    pub(crate) fn hand_ended(&mut self, run: u64, schemas: Schemas, failure: Option<String>) {
        if self
            .state
            .by_hand
            .as_ref()
            .is_some_and(|known| known.run == run)
        {
            self.emit(Change::MigratedByHand {
                run,
                schemas,
                failure,
            });
        } else {
            self.schemas_read(schemas);
        }
    }

    pub(crate) fn schemas_read(&mut self, schemas: Schemas) {
        // While a runner is at work, what it has begun is not in the database yet.
        let at_work = self.state.by_hand.is_some()
            || self
                .rollout()
                .is_some_and(|rollout| rollout.stage_due().is_some());
        let is_news = schemas.iter().any(|(store, seen)| {
            self.state.schemas.get(store) != Some(seen) || self.state.unread.contains(store)
        });
        if is_news && !at_work {
            self.emit(Change::SchemasRead { schemas });
        }
    }

    /// After a start: the runner died with its server.
    pub(crate) fn give_hand_up(&mut self) {
        let Some(run) = self.state.by_hand.as_ref().map(|run| run.run) else {
            return;
        };
        self.emit(Change::MigratedByHand {
            run,
            schemas: Schemas::new(),
            failure: Some("the server ended before it did".to_owned()),
        });
    }
}

impl Environment {
    /// Why no rollout begins now; nothing unless somebody migrates by hand.
    pub fn beside_hand(&self) -> Option<Rejected> {
        let run = self.by_hand.as_ref()?;
        Some(Rejected::MigratingByHand {
            store: run.store.clone(),
            words: run.work.words(),
            since: run.since,
            by: run.by.clone(),
        })
    }

    pub(crate) fn begin_by_hand(
        &mut self,
        at: Timestamp,
        run: u64,
        store: &StoreName,
        work: &HandWork,
        by: &str,
    ) {
        match work {
            HandWork::Expand | HandWork::Accept { .. } => {}
            HandWork::Contract { migrations } => {
                self.begin_contracts(&[(store.clone(), migrations.clone())].into());
            }
            HandWork::Down { migration } => {
                let seen = self.schemas.get_mut(store).into_iter().flatten();
                for known in seen.filter(|known| known.number == migration.number) {
                    known.is_whole = false;
                }
            }
        }
        self.by_hand = Some(HandRun {
            run,
            store: store.clone(),
            work: work.clone(),
            by: by.to_owned(),
            since: at,
        });
    }

    pub(crate) fn end_by_hand(&mut self, run: u64, schemas: &Schemas) {
        if let Some(known) = self.by_hand.take_if(|known| known.run == run) {
            self.unread.insert(known.store);
        }
        self.read_schemas(schemas);
    }

    /// A release in use that would not live with these migrations: it runs, or serves, and does not know them.
    fn hand_hindrance(&self, store: &StoreName, migrations: &[MigrationShape]) -> Option<String> {
        let lacks = |release: &ReleaseId| self.lacks_any(*release, store, migrations);
        if let Some(serving) = self.serving.filter(lacks) {
            return Some(format!(
                "release {serving}, which serves, does not know it; deploy one that does"
            ));
        }
        let mut instances = self.instances.values();
        let old = instances.find(|instance| lacks(&instance.release))?;
        let (instance, release) = (&old.id, old.release);
        Some(format!(
            "{instance} of release {release}, which does not know it, has not ended"
        ))
    }

    /// A release in use whose set has the migration.
    fn needs_migration(&self, store: &StoreName, number: u32) -> Option<ReleaseId> {
        let instances = self.instances.values().map(|instance| instance.release);
        let mut used = self.serving.into_iter().chain(instances);
        used.find(|release| {
            let record = self.releases.get(release);
            let own = record.and_then(|record| record.topology.schemas.get(store));
            own.is_some_and(|own| own.iter().any(|known| known.number == number))
        })
    }
}
