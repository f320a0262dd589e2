//! The rules for MariaDB, as measured on 10.11: the best mode the server accepted for each operation.

use super::{Hit, schema::Schema};
use crate::{
    Migration, ObjectName,
    ddl::{Action, Alteration, ColumnType, IndexKind, NewColumn, read},
};

pub(super) fn check(migration: &Migration, schema: &mut Schema) -> Vec<Hit> {
    let header = migration.header();
    let mut hits = Vec::new();
    if header
        .lock_timeout
        .is_some_and(|timeout| timeout.is_zero() || timeout.as_secs() > 10)
    {
        hits.push(Hit::new("MY071", 0, "`lock_timeout` in the header"));
    }
    let mut rows_before = false;
    let mut unchecked = false;
    for (index, statement) in migration.up.statements.iter().enumerate() {
        let reading = read(statement, migration.engine);
        if !reading.complete {
            hits.push(Hit::new("MY100", index, statement.summary()));
        }
        if reading.commits && rows_before {
            hits.push(Hit::new(
                "MY070",
                index,
                "it commits the rows written before it",
            ));
        }
        let text = statement.text.to_ascii_lowercase();
        unchecked |=
            text.starts_with("set") && text.contains("foreign_key_checks") && text.ends_with('0');
        for action in &reading.actions {
            rows_before |= matches!(action, Action::Write { .. } | Action::Insert { .. });
            for (rule, about) in of_action(action, schema) {
                let judged =
                    (rule == "MY050" && unchecked) || (rule == "MY072" && header.batch.is_some());
                if !judged {
                    hits.push(Hit::new(rule, index, about));
                }
            }
            schema.learn(action);
        }
    }
    hits
}

type Fired = Vec<(&'static str, String)>;

fn one(rule: &'static str, about: impl ToString) -> Fired {
    vec![(rule, about.to_string())]
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "what is not named here was measured to be harmless"
)]
fn of_action(action: &Action, schema: &Schema) -> Fired {
    match action {
        Action::CreateTable { columns, table, .. }
            if columns.iter().any(|column| column.references.is_some()) =>
        {
            one("MY052", format!("`{table}`"))
        }
        Action::CreateIndex { table, .. } | Action::AlterTable { table, .. }
            if schema.is_new(table) =>
        {
            Fired::new()
        }
        Action::CreateIndex {
            table,
            kind: IndexKind::Plain,
            ..
        } => one("MY040", format!("`{table}`")),
        Action::CreateIndex { table, .. } => one("MY041", format!("`{table}`")),
        Action::DropIndex {
            table: Some(table), ..
        } if !schema.is_new(table) => one("MY040", format!("`{table}`")),
        Action::AlterTable { table, alterations } => alterations
            .iter()
            .flat_map(|one| of_alteration(table, one, schema))
            .collect(),
        Action::Drop { names, .. } if !names.iter().all(|name| schema.is_new(name)) => {
            one("MY010", format!("`{}`", names[0]))
        }
        Action::Write {
            table,
            bounded: false,
            verb,
        } if !schema.is_new(table) => one("MY072", format!("{verb} of all of `{table}`")),
        Action::Truncate { tables } if !tables.iter().all(|table| schema.is_new(table)) => {
            one("MY072", "TRUNCATE")
        }
        Action::Lock { .. } => one("MY072", "LOCK TABLES"),
        Action::Transaction { word } => one("MY070", word.to_uppercase()),
        Action::Set { name } if name == "lock_wait_timeout" => one(
            "MY071",
            "the file sets `lock_wait_timeout` itself; the header can",
        ),
        _ => Fired::new(),
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "what is not named here was measured to be harmless"
)]
fn of_alteration(table: &ObjectName, alteration: &Alteration, schema: &Schema) -> Fired {
    match alteration {
        Alteration::AddColumn(column) => of_column(table, column),
        Alteration::DropColumn { name } => one("MY010", format!("`{table}.{name}`")),
        Alteration::RenameColumn { from, to } => {
            one("MY011", format!("`{table}.{from}` becomes `{to}`"))
        }
        Alteration::RenameTable { to } => one("MY012", format!("`{table}` becomes `{to}`")),
        Alteration::Redefine { from, column } => redefined(table, from, column, schema),
        Alteration::ConvertCharset => one("MY023", format!("`{table}`")),
        Alteration::AddIndex {
            kind: IndexKind::Plain,
            ..
        }
        | Alteration::DropIndex => one("MY040", format!("`{table}`")),
        Alteration::AddIndex { .. } => one("MY041", format!("`{table}`")),
        Alteration::AddForeignKey { references, .. } => {
            one("MY050", format!("`{table}` to `{references}`"))
        }
        Alteration::AddCheck { .. } => one("MY051", format!("`{table}`")),
        Alteration::AddPrimaryKey { .. } | Alteration::Engine | Alteration::RowFormat => {
            one("MY060", format!("`{table}`"))
        }
        Alteration::Explicit { key, value }
            if ["copy", "shared", "exclusive"].contains(&value.as_str()) =>
        {
            one(
                "MY001",
                format!("{}={}", key.to_uppercase(), value.to_uppercase()),
            )
        }
        _ => Fired::new(),
    }
}

fn of_column(table: &ObjectName, column: &NewColumn) -> Fired {
    let rules = [
        ("MY002", true),
        (
            "MY003",
            column.not_null && column.default.is_none() && !column.stored && !column.identity,
        ),
        ("MY004", column.stored),
        ("MY051", column.check),
        ("MY052", column.references.is_some()),
        ("MY040", column.unique || column.primary_key),
    ];
    let about = || format!("`{table}.{}`", column.name);
    rules
        .into_iter()
        .filter(|(_, fires)| *fires)
        .map(|(rule, _)| (rule, about()))
        .collect()
}

fn redefined(table: &ObjectName, from: &str, column: &NewColumn, schema: &Schema) -> Fired {
    let about = format!("`{table}.{from}`");
    let mut fired = Fired::new();
    if from != column.name {
        fired.push(("MY011", format!("{about} becomes `{}`", column.name)));
    }
    if column.charset {
        fired.push(("MY023", about.clone()));
    }
    let old = schema.column_type(table, from);
    if column.data_type.name == "enum" || column.data_type.name == "set" {
        fired.push(("MY022", about));
    } else if old.is_some_and(|old| old == &column.data_type) {
        fired.push(("MY030", about));
    } else if !widens_in_place(old, &column.data_type) {
        fired.push((
            "MY020",
            format!("{about} becomes {}", column.data_type.name),
        ));
    }
    fired
}

/// A longer varchar stays in place as long as its length needs the same number of bytes: 63 characters of utf8mb4 are 252.
fn widens_in_place(old: Option<&ColumnType>, new: &ColumnType) -> bool {
    let size = |data_type: &ColumnType| {
        data_type
            .arguments
            .first()
            .and_then(|one| one.trim().parse::<u32>().ok())
    };
    let (Some(old), "varchar") = (old, new.name.as_str()) else {
        return false;
    };
    let (Some(before), Some(after), "varchar") = (size(old), size(new), old.name.as_str()) else {
        return false;
    };
    before <= after && (after <= 63 || before > 63)
}
