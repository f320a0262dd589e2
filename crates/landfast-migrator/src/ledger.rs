//! The statements that keep the history of migrations. Databases differ in the name of its table, in how an instant and a text
//! are written, and in little else.

use landfast_migration::{Migration, Phase, Record, StepState};

use crate::runner::{End, Work};

/// How a database writes them.
pub(crate) struct Ledger {
    pub(crate) table: &'static str,
    /// The column of the release: a word of its own in MariaDB.
    pub(crate) release: &'static str,
    /// The instant.
    pub(crate) now: &'static str,
    /// A text, whatever is in it.
    pub(crate) literal: fn(&str) -> String,
}

impl Ledger {
    /// A step begins; `position` is what is found out later by.
    pub(crate) fn started(&self, record: &Record, position: Option<&str>) -> String {
        let (table, release) = (self.table, self.release);
        let text = |text: &str| (self.literal)(text);
        let optional = |known: Option<&str>| known.map_or_else(|| "NULL".to_owned(), text);
        format!(
            "INSERT INTO {table} (number, step, steps, name, phase, checksum, state, breaks_older, position, {release})
             VALUES ({}, {}, {}, {}, {}, {}, 'started', {}, {}, {})",
            record.number,
            record.step,
            record.steps,
            text(&record.name),
            text(&record.phase.to_string()),
            text(&record.checksum.to_string()),
            record.breaks_older,
            optional(position),
            optional(record.release.as_deref()),
        )
    }

    /// A step is at its end.
    pub(crate) fn ended(&self, work: &Work<'_>) -> String {
        let (number, step) = (work.migration.number, work.step.step);
        match work.end {
            End::Applied => self.applied(number, step),
            End::Due(next) => self.reverting(number, &next.to_string()),
            End::Forgotten => self.forgotten(number),
        }
    }

    pub(crate) fn applied(&self, number: u32, step: u32) -> String {
        format!(
            "UPDATE {} SET state = 'applied', applied_at = {} WHERE number = {number} AND step = {step}",
            self.table, self.now
        )
    }

    /// A step that was begun has left nothing.
    pub(crate) fn void(&self, number: u32, step: u32) -> String {
        format!(
            "DELETE FROM {} WHERE number = {number} AND step = {step} AND state = 'started'",
            self.table
        )
    }

    /// How far a backfill has come.
    pub(crate) fn reached(&self, number: u32, position: &str) -> String {
        format!(
            "UPDATE {} SET position = {} WHERE number = {number} AND step = 1",
            self.table,
            (self.literal)(position)
        )
    }

    /// The way down is at this step.
    pub(crate) fn reverting(&self, number: u32, position: &str) -> String {
        format!(
            "UPDATE {} SET state = 'reverting', position = CASE WHEN step = 1 THEN {} END WHERE number = {number}",
            self.table,
            (self.literal)(position)
        )
    }

    /// A way down has left nothing: the migration is applied as before.
    pub(crate) fn kept(&self, number: u32) -> String {
        format!(
            "UPDATE {} SET state = 'applied', position = NULL WHERE number = {number} AND state = 'reverting'",
            self.table
        )
    }

    /// The way down has run.
    pub(crate) fn forgotten(&self, number: u32) -> String {
        format!("DELETE FROM {} WHERE number = {number}", self.table)
    }

    /// A migration of so many steps is taken for applied. To be run as one.
    pub(crate) fn accepted(&self, migration: &Migration, steps: u32, reason: &str) -> Vec<String> {
        let number = migration.number;
        let text = |text: &str| (self.literal)(text);
        let row = |step| {
            format!(
                "({number}, {step}, {steps}, {}, {}, {}, {}, {}, {}, {})",
                text(&migration.name),
                text(&migration.phase().to_string()),
                text(&migration.checksum.to_string()),
                text(crate::state_word(StepState::Applied)),
                migration.phase() == Phase::Contract,
                self.now,
                text(reason),
            )
        };
        let rows: Vec<_> = (1..=steps).map(row).collect();
        let insert = format!(
            "INSERT INTO {} (number, step, steps, name, phase, checksum, state, breaks_older, applied_at, accepted) VALUES {}",
            self.table,
            rows.join(", ")
        );
        vec![self.forgotten(number), insert]
    }
}
