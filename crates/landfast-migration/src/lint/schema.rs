//! What the files before a statement say about the tables: which are new, and what is known of the columns and of the rest.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    Migration, ObjectName,
    ddl::{Action, Alteration, ColumnType, NewColumn, read},
};

#[derive(Default)]
pub(super) struct Schema {
    new: BTreeSet<ObjectName>,
    /// By table and column.
    columns: BTreeMap<(String, String), Column>,
    /// Those that a file created.
    tables: BTreeMap<String, Table>,
    /// Constraints `CHECK (column IS NOT NULL)` by name with the table and column, and which were validated.
    not_null_checks: BTreeMap<String, NotNullCheck>,
}

/// What the files say of a column.
struct Column {
    data_type: ColumnType,
    not_null: bool,
    has_default: bool,
}

/// What the files say of a table.
struct Table {
    is_logged: bool,
    /// Whether policies decide who sees which rows.
    row_security: bool,
}

struct NotNullCheck {
    table: String,
    column: String,
    is_validated: bool,
}

impl Schema {
    /// Takes in a migration that has run: its tables have rows by now.
    pub(super) fn learn_before(&mut self, migration: &Migration) {
        for statement in &migration.up.statements {
            for action in read(statement, migration.engine).actions {
                self.learn(&action);
            }
        }
        self.new.clear();
    }

    /// Takes in one action.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "only what creates, drops or changes columns is remembered"
    )]
    pub(super) fn learn(&mut self, action: &Action) {
        match action {
            Action::CreateTable {
                table,
                columns,
                unlogged,
                ..
            } => {
                self.new.insert(table.clone());
                let known = Table {
                    is_logged: !unlogged,
                    row_security: false,
                };
                self.tables.insert(table.name.clone(), known);
                for column in columns {
                    self.learn_column(table, column);
                }
            }
            Action::CreateIndex {
                name: Some(name),
                table,
                ..
            } if self.is_new(table) => {
                self.new.insert(name.clone());
            }
            Action::CreateOther {
                name,
                replaces: false,
                ..
            } => {
                self.new.insert(name.clone());
            }
            Action::Drop { names, .. } => {
                for name in names {
                    self.tables.remove(&name.name);
                    self.columns.retain(|(table, _), _| *table != name.name);
                    self.not_null_checks
                        .retain(|_, check| check.table != name.name);
                }
            }
            Action::AlterTable { table, alterations } => {
                for alteration in alterations {
                    self.learn_alteration(table, alteration);
                }
            }
            _ => {}
        }
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "only what changes columns or proves something is remembered"
    )]
    fn learn_alteration(&mut self, table: &ObjectName, alteration: &Alteration) {
        match alteration {
            Alteration::AddColumn(column) => self.learn_column(table, column),
            Alteration::Redefine { from, column } => {
                self.columns.remove(&key(table, from));
                self.learn_column(table, column);
            }
            Alteration::DropColumn { name } => self.forget_column(&table.name, name),
            Alteration::RenameColumn { from, to } => {
                if let Some(column) = self.columns.remove(&key(table, from)) {
                    self.columns.insert(key(table, to), column);
                }
                for check in self.not_null_checks.values_mut() {
                    if check.table == table.name && check.column == *from {
                        check.column.clone_from(to);
                    }
                }
            }
            Alteration::SetType {
                column, data_type, ..
            } => {
                if let Some(known) = self.columns.get_mut(&key(table, column)) {
                    known.data_type = data_type.clone();
                }
            }
            Alteration::SetNotNull { column } => self.note(table, column, |known| {
                known.not_null = true;
            }),
            Alteration::DropNotNull { column } => self.note(table, column, |known| {
                known.not_null = false;
            }),
            Alteration::SetDefault { column } => self.note(table, column, |known| {
                known.has_default = true;
            }),
            Alteration::DropDefault { column } => self.note(table, column, |known| {
                known.has_default = false;
            }),
            Alteration::RenameTable { to } => self.rename_table(table, to),
            Alteration::SetLogged { logged } => {
                if let Some(known) = self.tables.get_mut(&table.name) {
                    known.is_logged = *logged;
                }
            }
            Alteration::RowSecurity {
                enable,
                force: false,
            } => {
                if let Some(known) = self.tables.get_mut(&table.name) {
                    known.row_security = *enable;
                }
            }
            Alteration::AddCheck {
                name: Some(name),
                not_null: Some(column),
                ..
            } => {
                let check = NotNullCheck {
                    table: table.name.clone(),
                    column: column.clone(),
                    is_validated: false,
                };
                self.not_null_checks.insert(name.clone(), check);
            }
            Alteration::ValidateConstraint { name } => {
                if let Some(check) = self.not_null_checks.get_mut(name) {
                    check.is_validated = true;
                }
            }
            Alteration::DropConstraint { name } => drop(self.not_null_checks.remove(name)),
            _ => {}
        }
    }

    fn learn_column(&mut self, table: &ObjectName, column: &NewColumn) {
        let known = Column {
            data_type: column.data_type.clone(),
            not_null: column.not_null || column.identity,
            has_default: column.default.is_some() || column.identity || column.stored,
        };
        self.columns.insert(key(table, &column.name), known);
    }

    fn note(&mut self, table: &ObjectName, column: &str, change: impl FnOnce(&mut Column)) {
        if let Some(known) = self.columns.get_mut(&key(table, column)) {
            change(known);
        }
    }

    fn forget_column(&mut self, table: &str, column: &str) {
        self.columns.remove(&(table.to_owned(), column.to_owned()));
        self.not_null_checks
            .retain(|_, check| check.table != table || check.column != column);
    }

    fn rename_table(&mut self, from: &ObjectName, to: &ObjectName) {
        if self.is_new(from) {
            self.new.insert(to.clone());
        }
        if let Some(table) = self.tables.remove(&from.name) {
            self.tables.insert(to.name.clone(), table);
        }
        let columns = std::mem::take(&mut self.columns);
        let renamed = |(table, column): (String, String)| {
            let table = if table == from.name {
                to.name.clone()
            } else {
                table
            };
            (table, column)
        };
        let columns = columns.into_iter();
        self.columns = columns
            .map(|(name, column)| (renamed(name), column))
            .collect();
        for check in self.not_null_checks.values_mut() {
            if check.table == from.name {
                check.table.clone_from(&to.name);
            }
        }
    }

    /// Whether one of the linted files created it, so that nobody uses it yet.
    pub(super) fn is_new(&self, object: &ObjectName) -> bool {
        self.new.iter().any(|new| new.may_be(object))
    }

    pub(super) fn column_type(&self, table: &ObjectName, column: &str) -> Option<&ColumnType> {
        self.columns
            .get(&key(table, column))
            .map(|known| &known.data_type)
    }

    /// Whether the column is known to take no nulls already.
    pub(super) fn refuses_nulls(&self, table: &ObjectName, column: &str) -> bool {
        let known = self.columns.get(&key(table, column));
        known.is_some_and(|known| known.not_null)
    }

    /// Whether the column is known to take nulls already.
    pub(super) fn takes_nulls(&self, table: &ObjectName, column: &str) -> bool {
        let known = self.columns.get(&key(table, column));
        known.is_some_and(|known| !known.not_null)
    }

    /// Whether the column is known to have no default.
    pub(super) fn lacks_default(&self, table: &ObjectName, column: &str) -> bool {
        let known = self.columns.get(&key(table, column));
        known.is_some_and(|known| !known.has_default)
    }

    /// Whether the table's rows are known to be logged already, or known not to be.
    pub(super) fn is_logged(&self, table: &ObjectName, logged: bool) -> bool {
        let known = self.tables.get(&table.name);
        known.is_some_and(|known| known.is_logged == logged)
    }

    /// Whether policies are known to decide nothing on the table.
    pub(super) fn lacks_row_security(&self, table: &ObjectName) -> bool {
        let known = self.tables.get(&table.name);
        known.is_some_and(|known| !known.row_security)
    }

    /// Whether a validated check says already that the column has no nulls.
    pub(super) fn proves_not_null(&self, table: &ObjectName, column: &str) -> bool {
        let mut checks = self.not_null_checks.values();
        checks
            .any(|check| check.is_validated && check.table == table.name && check.column == column)
    }
}

fn key(table: &ObjectName, column: &str) -> (String, String) {
    (table.name.clone(), column.to_owned())
}
