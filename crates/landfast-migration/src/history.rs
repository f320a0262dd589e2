//! What a database says was done to it.

use std::collections::BTreeMap;

use landfast_types::Digest;
use serde::{Deserialize, Serialize};

use crate::Phase;

/// How far one step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StepState {
    /// Recorded before it began; whether it took effect is for a probe to say.
    Started,
    /// It took effect.
    Applied,
    /// Its migration is being taken back; the first row's position says how far.
    Reverting,
}

/// One row of the history table: one step of one migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The migration's number.
    pub number: u32,
    /// The step, from 1.
    pub step: u32,
    /// How many steps the migration has.
    pub steps: u32,
    /// The migration's name.
    pub name: String,
    /// The phase it ran in.
    pub phase: Phase,
    /// Its checksum when it ran, or the one that was accepted since.
    pub checksum: Digest,
    /// How far it is.
    pub state: StepState,
    /// Whether a release that does not know it cannot live with it.
    #[serde(default)]
    pub breaks_older: bool,
    /// Of a backfill: the last key that is done. Of MariaDB's DDL: the fingerprint of the schema before it. Of a way down: its
    /// step under way, and that step's own.
    #[serde(default)]
    pub position: Option<String>,
    /// The release it ran for, where one was named.
    #[serde(default)]
    pub release: Option<String>,
}

/// All rows, by migration and step.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct History {
    records: BTreeMap<u32, BTreeMap<u32, Record>>,
}

impl FromIterator<Record> for History {
    fn from_iter<T: IntoIterator<Item = Record>>(records: T) -> Self {
        let mut history = Self::default();
        for record in records {
            history.insert(record);
        }
        history
    }
}

impl History {
    /// Adds or replaces a row.
    pub fn insert(&mut self, record: Record) {
        let steps = self.records.entry(record.number).or_default();
        steps.insert(record.step, record);
    }

    /// The row of a step.
    pub fn step(&self, number: u32, step: u32) -> Option<&Record> {
        self.records.get(&number)?.get(&step)
    }

    /// A migration's first row: what is known of it as a whole.
    pub fn first(&self, number: u32) -> Option<&Record> {
        self.records.get(&number)?.values().next()
    }

    /// Whether every step of it took effect.
    pub fn is_applied(&self, number: u32) -> bool {
        self.records.get(&number).is_some_and(|steps| {
            let done = steps
                .values()
                .filter(|record| record.state == StepState::Applied);
            let wanted = steps.values().next().map_or(1, |record| record.steps);
            done.count() == wanted as usize
        })
    }

    /// Whether it began and has not ended.
    pub fn is_begun(&self, number: u32) -> bool {
        self.records.contains_key(&number) && !self.is_applied(number)
    }

    /// Whether taking it back has begun and not ended.
    pub fn is_reverting(&self, number: u32) -> bool {
        self.first(number)
            .is_some_and(|record| record.state == StepState::Reverting)
    }

    /// Each migration that left a row, by its first, in order.
    pub fn migrations(&self) -> impl DoubleEndedIterator<Item = &Record> {
        self.records
            .values()
            .filter_map(|steps| steps.values().next())
    }

    /// All rows.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.records.values().flat_map(BTreeMap::values)
    }
}
