//! The rules for PostgreSQL, as measured on 15 (lock and rewrite of each operation).

use std::{collections::BTreeSet, time::Duration};

use super::{Hit, Rule, schema::Schema, squawk};
use crate::{
    Migration, ObjectName,
    ddl::{Action, Alteration, ColumnType, NewColumn, Reading, read},
    step::{Probe, StepKind},
    steps,
};

/// A longer wait for a lock is an outage of its own.
const LOCK_TIMEOUT_MAX: Duration = Duration::from_secs(10);

pub(super) fn check(migration: &Migration, schema: &mut Schema) -> Vec<Hit> {
    let header = migration.header();
    let mut hits = Vec::new();
    if header
        .lock_timeout
        .is_some_and(|timeout| timeout.is_zero() || timeout > LOCK_TIMEOUT_MAX)
    {
        hits.push(Hit::new("PG090", 0, "`lock_timeout` in the header"));
    }
    let mut locked: BTreeSet<ObjectName> = BTreeSet::new();
    let mut unproven: BTreeSet<String> = BTreeSet::new();
    let mut readings = Vec::new();
    for (index, statement) in migration.up.statements.iter().enumerate() {
        let reading = read(statement, migration.engine);
        if !reading.complete && header.batch.is_none() {
            hits.push(Hit::new("PG100", index, statement.summary()));
        }
        if reading.outside_transaction && header.transaction {
            hits.push(Hit::new("PG003", index, statement.summary()));
        }
        for action in &reading.actions {
            hits.extend(
                of_action(action, schema)
                    .into_iter()
                    .map(|(rule, about)| Hit::new(rule, index, about)),
            );
            if header.batch.is_some() {
                hits.retain(|hit| hit.rule != "PG073");
            }
            if header.transaction {
                hits.extend(
                    validated_at_once(action, &mut unproven)
                        .map(|(rule, about)| Hit::new(rule, index, about)),
                );
                for table in strongly_locked(action).filter(|table| !schema.is_new(table)) {
                    locked.insert(table.clone());
                    if locked.len() > 1 {
                        hits.push(Hit::new(
                            "PG091",
                            index,
                            format!("`{table}` beside another"),
                        ));
                    }
                }
            }
            schema.learn(action);
        }
        readings.push(reading);
    }
    for step in steps(&migration.up, migration.engine) {
        if step.kind == StepKind::Bare(Probe::Undecidable) {
            hits.push(Hit::new("PG093", step.statements[0], ""));
        }
    }
    hits.extend(by_squawk(migration, schema, &readings, &hits));
    hits
}

/// What squawk sees and the rules above do not.
fn by_squawk(
    migration: &Migration,
    schema: &Schema,
    readings: &[Reading],
    own: &[Hit],
) -> Vec<Hit> {
    squawk::violations(&migration.up.text, migration.header().transaction)
        .into_iter()
        .filter_map(|violation| {
            let rule = violation.rule?;
            let index = migration.up.statements.iter().position(|statement| {
                statement.range.contains(&violation.at) || statement.range.start >= violation.at
            })?;
            let reading = &readings[index];
            // A table nobody uses yet, or what was measured to be harmless and is decided above from what squawk cannot know:
            // the column before, the check that proves it, the default's kind, whether policies count.
            let decided = reading.complete
                && ["PG012", "PG024", "PG030", "PG040", "PG041", "PG081"].contains(&rule);
            let harmless = decided
                || reading
                    .actions
                    .iter()
                    .all(|action| is_about_new(action, schema));
            let seen = own.iter().any(|hit| {
                hit.statement == index
                    && (hit.rule == rule
                        || Rule::find(hit.rule)
                            .is_some_and(|own| own.squawk.contains(&violation.message.as_str())))
            });
            (!harmless && !seen).then(|| Hit::new(rule, index, violation.message))
        })
        .collect()
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "everything else is about objects in use"
)]
fn is_about_new(action: &Action, schema: &Schema) -> bool {
    match action {
        Action::AlterTable { table, .. } | Action::CreateIndex { table, .. } => {
            schema.is_new(table)
        }
        Action::DropIndex { names, .. } | Action::Drop { names, .. } => {
            names.iter().all(|name| schema.is_new(name))
        }
        _ => false,
    }
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
        Action::CreateIndex { table, .. } if schema.is_new(table) => Fired::new(),
        Action::CreateIndex {
            table,
            concurrently: false,
            ..
        } => one("PG001", format!("writes to `{table}` wait")),
        Action::CreateIndex {
            name,
            if_not_exists: true,
            ..
        } => one(
            "PG005",
            name.as_ref().map(ToString::to_string).unwrap_or_default(),
        ),
        Action::DropIndex {
            names,
            concurrently: false,
            ..
        } if !names.iter().all(|name| schema.is_new(name)) => one("PG002", list(names)),
        Action::Reindex {
            name,
            concurrently: false,
            ..
        } => one(
            "PG004",
            name.as_ref().map(ToString::to_string).unwrap_or_default(),
        ),
        Action::AlterTable { table, .. } if schema.is_new(table) => Fired::new(),
        Action::AlterTable { table, alterations } => alterations
            .iter()
            .flat_map(|alteration| of_alteration(table, alteration, schema))
            .collect(),
        Action::RenameObject { name, .. } | Action::MoveObject { name, .. }
            if !schema.is_new(name) =>
        {
            one("PG024", format!("`{name}`"))
        }
        Action::Drop { names, .. } if !names.iter().all(|name| schema.is_new(name)) => {
            one("PG023", list(names))
        }
        Action::AddEnumValue { name, value, .. } => {
            one("PG060", format!("`{name}` gets `{value}`"))
        }
        Action::DomainConstraint {
            name,
            not_valid: false,
        } => one("PG061", format!("`{name}`")),
        Action::VacuumFull => one("PG070", "VACUUM FULL"),
        Action::Cluster => one("PG070", "CLUSTER"),
        Action::RefreshView {
            name,
            concurrently: false,
        } => one("PG071", format!("`{name}`")),
        Action::Lock { tables } | Action::Truncate { tables }
            if !tables.iter().all(|table| schema.is_new(table)) =>
        {
            one("PG072", list(tables))
        }
        Action::Write {
            table,
            bounded: false,
            verb,
        } if !schema.is_new(table) => one("PG073", format!("{verb} of all of `{table}`")),
        Action::CreateTrigger { table, .. } if !schema.is_new(table) => {
            one("PG080", format!("on `{table}`"))
        }
        Action::CreatePolicy { table }
            if !schema.is_new(table) && !schema.lacks_row_security(table) =>
        {
            one("PG081", format!("on `{table}`"))
        }
        Action::Revoke => one("PG081", "REVOKE"),
        Action::CreateOther {
            kind,
            name,
            replaces: true,
        } if !schema.is_new(name) => one("PG082", format!("{kind} `{name}`")),
        Action::Transaction { word } => one("PG092", word.to_uppercase()),
        Action::Set { name } if name == "lock_timeout" => one(
            "PG090",
            "the file sets `lock_timeout` itself; the header can",
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
        Alteration::DropColumn { name } => one("PG020", format!("`{table}.{name}`")),
        Alteration::RenameColumn { from, to } => {
            one("PG021", format!("`{table}.{from}` becomes `{to}`"))
        }
        Alteration::RenameTable { to } => one("PG022", format!("`{table}` becomes `{to}`")),
        Alteration::SetSchema => one("PG024", format!("`{table}`")),
        Alteration::SetType {
            column,
            data_type,
            computed,
        } => {
            let old = schema.column_type(table, column).filter(|_| !*computed);
            match change(old, data_type) {
                Change::None => Fired::new(),
                Change::Name => one("PG013", format!("`{table}.{column}`")),
                Change::Zone => one("PG032", format!("`{table}.{column}`")),
                Change::Rewrite => one(
                    "PG030",
                    format!("`{table}.{column}` becomes {}", data_type.name),
                ),
            }
        }
        Alteration::SetNotNull { column }
            if !schema.refuses_nulls(table, column) && !schema.proves_not_null(table, column) =>
        {
            one("PG040", format!("`{table}.{column}`"))
        }
        Alteration::DropNotNull { column } if schema.takes_nulls(table, column) => Fired::new(),
        Alteration::DropDefault { column } if schema.lacks_default(table, column) => Fired::new(),
        Alteration::DropNotNull { column }
        | Alteration::SetDefault { column }
        | Alteration::DropDefault { column } => one("PG041", format!("`{table}.{column}`")),
        Alteration::AddCheck {
            not_valid: false, ..
        } => one("PG050", format!("`{table}`")),
        Alteration::AddForeignKey {
            references,
            not_valid: false,
            ..
        } => one("PG051", format!("`{table}` and `{references}`")),
        Alteration::AddUnique { using_index: false } => one("PG052", format!("`{table}`")),
        Alteration::AddPrimaryKey { using_index: false } => one("PG053", format!("`{table}`")),
        Alteration::AddExclude => one("PG054", format!("`{table}`")),
        Alteration::SetLogged { logged } if schema.is_logged(table, *logged) => Fired::new(),
        Alteration::SetTablespace | Alteration::SetLogged { .. } => {
            one("PG070", format!("`{table}`"))
        }
        // Policies and their force count once row security is enabled, which is found where it is.
        Alteration::RowSecurity { enable, force }
            if schema.lacks_row_security(table) && (*force || !*enable) =>
        {
            Fired::new()
        }
        Alteration::RowSecurity { .. } => one("PG081", format!("`{table}`")),
        Alteration::DetachPartition {
            concurrently: false,
            ..
        } => one("PG074", format!("`{table}`")),
        _ => Fired::new(),
    }
}

fn of_column(table: &ObjectName, column: &NewColumn) -> Fired {
    let about = || format!("`{table}.{}`", column.name);
    let rules = [
        (
            "PG010",
            column.not_null
                && column.default.is_none()
                && !column.stored
                && !column.identity
                && !column.primary_key,
        ),
        (
            "PG012",
            column.stored || column.identity || column.default.as_deref().is_some_and(is_volatile),
        ),
        ("PG013", true),
        ("PG050", column.check),
        ("PG051", column.references.is_some()),
        ("PG052", column.unique),
        ("PG053", column.primary_key),
    ];
    rules
        .into_iter()
        .filter(|(_, fires)| *fires)
        .map(|(rule, _)| (rule, about()))
        .collect()
}

/// Functions that PostgreSQL evaluates once for all rows: stable and immutable ones without arguments of the row.
const STEADY: &[&str] = &[
    "now(",
    "current_timestamp",
    "current_date",
    "current_time",
    "localtimestamp",
    "localtime",
    "transaction_timestamp(",
    "statement_timestamp(",
    "current_user",
    "session_user",
    "user",
    "current_schema",
    "current_database(",
    "current_setting(",
];

/// Whether a default is computed anew for every row: it calls something that is not known to be steady.
fn is_volatile(default: &str) -> bool {
    let text = default.trim().to_ascii_lowercase();
    // A literal, whatever it says.
    if text.starts_with('\'') || text.starts_with("array[") {
        return false;
    }
    let calls = text
        .char_indices()
        .filter(|(_, c)| *c == '(')
        .any(|(at, _)| text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_'));
    calls && !STEADY.iter().any(|steady| text.starts_with(steady))
}

enum Change {
    /// The same type in other words.
    None,
    /// The rows stay as they are, and what queries give has another type.
    Name,
    /// What the rows say depends on the time zone.
    Zone,
    Rewrite,
}

/// What becomes of the rows when a column's type changes, as far as the files say what it was.
fn change(old: Option<&ColumnType>, new: &ColumnType) -> Change {
    let Some(old) = old else {
        return Change::Rewrite;
    };
    let (before, after) = (family(&old.name), family(&new.name));
    let numbers = |data_type: &ColumnType| {
        data_type
            .arguments
            .iter()
            .filter_map(|one| one.trim().parse().ok())
            .collect::<Vec<u32>>()
    };
    let (sizes, wanted) = (numbers(old), numbers(new));
    match (before, after) {
        _ if before == after && sizes == wanted && !before.is_empty() => Change::None,
        ("varchar", "text") => Change::Name,
        ("varchar", "varchar") if wanted.is_empty() || (!sizes.is_empty() && sizes <= wanted) => {
            Change::Name
        }
        ("text", "varchar") if wanted.is_empty() => Change::Name,
        ("numeric", "numeric") if wanted.is_empty() => Change::Name,
        ("numeric", "numeric")
            if sizes.len() == 2
                && wanted.len() == 2
                && sizes[1] == wanted[1]
                && sizes[0] <= wanted[0] =>
        {
            Change::Name
        }
        ("timestamp", "timestamptz") | ("timestamptz", "timestamp") => Change::Zone,
        _ => Change::Rewrite,
    }
}

fn family(name: &str) -> &str {
    match name {
        "character varying" | "varchar" => "varchar",
        "decimal" | "numeric" => "numeric",
        "timestamp" | "timestamp without time zone" => "timestamp",
        "timestamptz" | "timestamp with time zone" => "timestamptz",
        "int" | "integer" | "int4" => "int4",
        "bigint" | "int8" => "int8",
        other => other,
    }
}

/// A constraint that is added NOT VALID and validated in the same transaction: the lock of the first is held through the
/// scan of the second.
fn validated_at_once<'a>(
    action: &'a Action,
    unproven: &'a mut BTreeSet<String>,
) -> impl Iterator<Item = (&'static str, String)> + use<> {
    let mut found = Vec::new();
    if let Action::AlterTable { alterations, table } = action {
        for alteration in alterations {
            if let Alteration::AddCheck {
                name: Some(name),
                not_valid: true,
                ..
            } = alteration
            {
                unproven.insert(format!("check {name}"));
            }
            if let Alteration::AddForeignKey {
                name: Some(name),
                not_valid: true,
                ..
            } = alteration
            {
                unproven.insert(format!("key {name}"));
            }
            if let Alteration::ValidateConstraint { name } = alteration {
                let about = || {
                    format!("`{name}` of `{table}` is validated in the transaction that adds it")
                };
                if unproven.contains(&format!("check {name}")) {
                    found.push(("PG050", about()));
                }
                if unproven.contains(&format!("key {name}")) {
                    found.push(("PG051", about()));
                }
            }
        }
    }
    found.into_iter()
}

/// The tables a statement locks against readers.
fn strongly_locked(action: &Action) -> impl Iterator<Item = &ObjectName> {
    let table = if let Action::AlterTable { table, alterations } = action {
        let strong = alterations.iter().any(|alteration| {
            !matches!(
                alteration,
                Alteration::ValidateConstraint { .. }
                    | Alteration::Harmless
                    | Alteration::AttachPartition
            )
        });
        strong.then_some(table)
    } else {
        None
    };
    table.into_iter()
}

fn list(names: &[ObjectName]) -> String {
    names
        .iter()
        .map(|name| format!("`{name}`"))
        .collect::<Vec<_>>()
        .join(", ")
}
