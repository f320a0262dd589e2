//! Which store serves which name of the manifest, and how that is moved.
//!
//! A name is served by the store of the same name, until a rollout moves it to another one. Instances that this rollout starts are
//! given the new store, all others the old one, until it is sealed; from then on every start of whichever release is given the
//! new one. Taken back before that, the rollout leaves nothing behind. So at no instant two releases are given different stores and
//! run: the rollout is always a recreate.
//!
//! What a database has seen belongs to the database: while a switch is under way, what is known of the new one is kept with the
//! rollout, and takes the place of what is known of the old one when it takes its place.

use landfast_types::{ReleaseId, StoreName};
use serde::{Deserialize, Serialize};

use crate::{
    environment::Environment,
    schema::{AppliedMigration, Obstacle, Schemas},
};

/// A name of the manifest, the store that serves it, and the one that is to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreSwitch {
    pub store: StoreName,
    pub from: StoreName,
    pub to: StoreName,
    /// The new one was had back from its deletion for this. Where the switch does not come about it is deleted again.
    #[serde(default)]
    pub was_deleted: bool,
}

/// A switch that a rollout is to bring about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Switching {
    pub switch: StoreSwitch,
    /// What the new store has seen, once it was asked.
    #[serde(default)]
    pub schema: Option<Vec<AppliedMigration>>,
    /// It has taken the place of the old one.
    #[serde(default)]
    pub is_done: bool,
}

impl Environment {
    /// The store that instances of a release are given for a name of the manifest; without a release, whoever works beside them.
    pub fn served_by<'a>(
        &'a self,
        release: Option<ReleaseId>,
        store: &'a StoreName,
    ) -> &'a StoreName {
        let rollout = self.rollout.as_ref();
        let own = rollout.filter(|rollout| Some(rollout.to) == release);
        let switching = own.and_then(|rollout| rollout.switching.as_ref());
        match switching.filter(|switching| switching.switch.store == *store) {
            Some(switching) => &switching.switch.to,
            None => self.bindings.get(store).unwrap_or(store),
        }
    }

    /// The name that a store serves: its own, unless it serves another one, or another one serves that.
    pub fn serves<'a>(&'a self, store: &'a StoreName) -> Option<&'a StoreName> {
        let mut bindings = self.bindings.iter();
        match bindings.find(|(_, bound)| *bound == store) {
            Some((name, _)) => Some(name),
            None => (!self.bindings.contains_key(store)).then_some(store),
        }
    }

    /// Why a store cannot be removed, where a name is bound to it or is being moved to or away from it.
    pub fn is_bound(&self, store: &StoreName) -> Option<&StoreName> {
        let rollout = self.rollout.as_ref();
        let switching = rollout.and_then(|rollout| rollout.switching.as_ref());
        let moving = switching.filter(|switching| {
            let StoreSwitch { from, to, .. } = &switching.switch;
            from == store || to == store
        });
        let mut bindings = self.bindings.iter();
        let bound = bindings.find(|(_, bound)| *bound == store);
        let name = bound.map(|(name, _)| name);
        name.or(moving.map(|switching| &switching.switch.store))
    }

    /// What keeps a release from running on the store it is moved to, once that was asked.
    pub(crate) fn obstacle_of_switch(&self) -> Option<String> {
        let rollout = self.rollout.as_ref()?;
        let switching = rollout.switching.as_ref()?;
        let (name, to) = (&switching.switch.store, &switching.switch.to);
        let seen: Schemas = [(name.clone(), switching.schema.clone()?)].into();
        let topology = &self.releases.get(&rollout.to)?.topology;
        let Obstacle { migration, .. } =
            crate::schema::obstacle_among(&seen, rollout.to, topology)?;
        Some(format!(
            "store `{to}` has seen the migration `{migration}`, which the release that serves does not live with: deploy one that knows it \
             first, or restore `{name}` to a point before it"
        ))
    }

    /// What databases have seen; of the one that a name is being moved to apart.
    pub(crate) fn read_migrated(&mut self, schemas: &Schemas) {
        let mut schemas = schemas.clone();
        let rollout = self.rollout.as_mut();
        let switching = rollout.and_then(|rollout| rollout.switching.as_mut());
        if let Some(switching) = switching.filter(|switching| !switching.is_done)
            && let Some(seen) = schemas.remove(&switching.switch.store)
        {
            switching.schema = Some(seen);
        }
        self.read_schemas(&schemas);
    }

    /// From here on every start is given the new store.
    pub(crate) fn adopt(&mut self) {
        let rollout = self.rollout.as_mut();
        let Some(switching) = rollout.and_then(|rollout| rollout.switching.as_mut()) else {
            return;
        };
        switching.is_done = true;
        let (switch, schema) = (switching.switch.clone(), switching.schema.clone());
        if switch.to == switch.store {
            self.bindings.remove(&switch.store);
        } else {
            self.bindings.insert(switch.store.clone(), switch.to);
        }
        match schema {
            Some(seen) => drop(self.schemas.insert(switch.store, seen)),
            None => drop(self.schemas.remove(&switch.store)),
        }
    }

    /// The store that nobody is given any more is deleted, after a delay.
    pub(crate) fn end_switch(&mut self, switching: &Switching) {
        let StoreSwitch {
            from,
            to,
            was_deleted,
            ..
        } = &switching.switch;
        if switching.is_done {
            self.retiring.insert(from.clone());
        } else if *was_deleted {
            self.retiring.insert(to.clone());
        }
    }
}
