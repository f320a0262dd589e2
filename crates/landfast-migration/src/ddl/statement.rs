//! The first words of a statement, and what follows from them.

use super::{Action, Alteration, IndexKind, ObjectName, Reading, alter, cursor::Cursor};
use crate::{Engine, Statement};

/// Reads one statement.
pub(crate) fn read(statement: &Statement, engine: Engine) -> Reading {
    let mut cursor = statement.cursor(engine);
    let actions = actions(&mut cursor)
        .filter(|actions| !actions.is_empty())
        .unwrap_or_else(|| {
            vec![Action::Other {
                words: first_words(&statement.cursor(engine)),
            }]
        });
    let complete = actions.iter().all(understood);
    let mut objects = actions.iter().flat_map(objects).collect::<Vec<_>>();
    objects.sort();
    objects.dedup();
    Reading {
        commits: engine == Engine::Mariadb && actions.iter().any(commits_implicitly),
        outside_transaction: engine == Engine::Postgres && actions.iter().any(refuses_transaction),
        actions,
        objects,
        complete,
    }
}

fn first_words(cursor: &Cursor<'_>) -> String {
    cursor
        .rest()
        .split_whitespace()
        .take(3)
        .collect::<Vec<_>>()
        .join(" ")
}

fn actions(cursor: &mut Cursor<'_>) -> Option<Vec<Action>> {
    let word = cursor.word();
    let mariadb = cursor.engine() == Engine::Mariadb;
    cursor.skip();
    let action = match word.as_str() {
        "create" => create(cursor)?,
        "alter" => alter_statement(cursor)?,
        "drop" => drop_statement(cursor)?,
        "reindex" => reindex(cursor)?,
        "rename" if mariadb && cursor.eat("table") => {
            let table = cursor.object()?;
            cursor.eat("to");
            Action::AlterTable {
                table,
                alterations: vec![Alteration::RenameTable {
                    to: cursor.object()?,
                }],
            }
        }
        "vacuum"
            if cursor.contains("full") || cursor.rest().to_ascii_lowercase().contains("full") =>
        {
            Action::VacuumFull
        }
        "vacuum" => Action::Vacuum,
        "cluster" => Action::Cluster,
        "refresh" => {
            cursor.eat("materialized view");
            let concurrently = cursor.eat("concurrently");
            Action::RefreshView {
                name: cursor.object()?,
                concurrently,
            }
        }
        "lock" => {
            cursor.eat_any(&["table", "tables"]);
            cursor.eat("only");
            Action::Lock {
                tables: cursor.objects(),
            }
        }
        "truncate" => {
            cursor.eat("table");
            cursor.eat("only");
            Action::Truncate {
                tables: cursor.objects(),
            }
        }
        "update" => {
            cursor.eat("only");
            cursor.eat("ignore");
            Action::Write {
                verb: "UPDATE",
                table: cursor.object()?,
                bounded: cursor.contains("where") || cursor.contains("limit"),
            }
        }
        "delete" => {
            cursor.eat("ignore");
            cursor.eat("from");
            cursor.eat("only");
            Action::Write {
                verb: "DELETE",
                table: cursor.object()?,
                bounded: cursor.contains("where") || cursor.contains("limit"),
            }
        }
        "insert" | "replace" => {
            cursor.eat("ignore");
            cursor.eat("into");
            Action::Insert {
                table: cursor.object()?,
            }
        }
        "revoke" => Action::Revoke,
        "grant" => Action::Grant,
        "begin" | "commit" | "rollback" | "savepoint" | "release" | "abort" | "end" => {
            Action::Transaction { word }
        }
        "start" if cursor.at_words("transaction") => Action::Transaction {
            word: "start transaction".into(),
        },
        "set" => {
            cursor.eat_any(&["local", "session"]);
            Action::Set {
                name: cursor.name()?,
            }
        }
        "comment" | "analyze" | "analyse" => return Some(vec![Action::Grant]),
        _ => return None,
    };
    Some(vec![action])
}

fn create(cursor: &mut Cursor<'_>) -> Option<Action> {
    let replaces = cursor.eat("or replace");
    let temporary = cursor.eat_any(&[
        "temporary",
        "temp",
        "local temporary",
        "local temp",
        "global temporary",
    ]);
    let unique = cursor.eat("unique");
    let kind = if cursor.eat("fulltext") {
        IndexKind::Fulltext
    } else if cursor.eat("spatial") {
        IndexKind::Spatial
    } else {
        IndexKind::Plain
    };
    if cursor.eat("index") {
        let concurrently = cursor.eat("concurrently");
        let if_not_exists = cursor.eat("if not exists");
        let name = if cursor.at_words("on") {
            None
        } else {
            cursor.object()
        };
        cursor.seek("on");
        cursor.eat("only");
        return Some(Action::CreateIndex {
            name,
            table: cursor.object()?,
            concurrently,
            if_not_exists,
            unique,
            kind,
        });
    }
    let unlogged = cursor.eat("unlogged");
    if cursor.eat("table") {
        return create_table(cursor, temporary, unlogged);
    }
    // `DEFINER=…` and the like stand before the kind of what is created.
    let words = ["trigger", "policy", "view", "function", "procedure"];
    if cursor.at_words("definer")
        || cursor.at_words("algorithm")
        || cursor.at_words("sql")
        || cursor.at_words("constraint")
    {
        let kind = words.iter().find(|word| cursor.contains(word))?;
        while !cursor.at_words(kind) {
            cursor.skip();
        }
    }
    if cursor.eat("trigger") {
        cursor.eat("if not exists");
        let name = cursor.object()?;
        cursor.seek("on");
        return Some(Action::CreateTrigger {
            name,
            table: cursor.object()?,
        });
    }
    if cursor.eat("policy") {
        cursor.name()?;
        cursor.eat("on");
        return Some(Action::CreatePolicy {
            table: cursor.object()?,
        });
    }
    create_other(cursor, replaces)
}

fn create_other(cursor: &mut Cursor<'_>, replaces: bool) -> Option<Action> {
    const KINDS: &[&str] = &[
        "materialized view",
        "recursive view",
        "view",
        "function",
        "procedure",
        "aggregate",
        "type",
        "domain",
        "schema",
        "sequence",
        "extension",
        "statistics",
        "role",
        "user",
        "database",
        "collation",
        "publication",
        "subscription",
        "event",
        "rule",
    ];
    let kind = KINDS.iter().find(|kind| cursor.eat(kind))?;
    cursor.eat("if not exists");
    Some(Action::CreateOther {
        kind: (*kind).to_owned(),
        name: cursor.object()?,
        replaces,
    })
}

fn create_table(cursor: &mut Cursor<'_>, temporary: bool, unlogged: bool) -> Option<Action> {
    cursor.eat("if not exists");
    let table = cursor.object()?;
    let mut columns = Vec::new();
    let mut foreign_keys = Vec::new();
    if cursor.eat("partition of") {
        // The parent's lock is what matters; naming it keeps the order of migrations honest.
        foreign_keys.extend(cursor.object());
    } else if let Some(inside) = cursor.parentheses() {
        for mut part in inside.split_commas() {
            if part.eat("constraint") {
                part.name();
            }
            if part.at_words("foreign key") {
                part.seek("references");
                foreign_keys.extend(part.object());
            } else if ![
                "primary", "unique", "check", "exclude", "like", "index", "key", "fulltext",
                "spatial", "period",
            ]
            .contains(&part.word().as_str())
                && let Some(column) = alter::column(&mut part)
            {
                columns.push(column);
            }
        }
    }
    Some(Action::CreateTable {
        table,
        columns,
        foreign_keys,
        temporary,
        unlogged,
    })
}

fn alter_statement(cursor: &mut Cursor<'_>) -> Option<Action> {
    if cursor.engine() == Engine::Mariadb {
        cursor.eat_any(&["online", "ignore"]);
    }
    if cursor.eat("table") || cursor.eat("foreign table") {
        cursor.eat("if exists");
        cursor.eat("only");
        let table = cursor.object()?;
        cursor.eat_symbol("*");
        return Some(Action::AlterTable {
            table,
            alterations: alter::alterations(cursor),
        });
    }
    const KINDS: &[&str] = &[
        "materialized view",
        "view",
        "type",
        "domain",
        "sequence",
        "function",
        "procedure",
        "schema",
        "index",
        "trigger",
        "policy",
        "extension",
        "role",
        "user",
        "database",
        "system",
        "default privileges",
        "statistics",
        "aggregate",
        "event",
    ];
    let kind = (*KINDS.iter().find(|kind| cursor.eat(kind))?).to_owned();
    cursor.eat("if exists");
    let name = cursor.object()?;
    if cursor.at_symbol("(") {
        cursor.parentheses();
    }
    if kind == "type" && cursor.eat("add value") {
        cursor.eat("if not exists");
        let value = cursor.literal()?;
        return Some(Action::AddEnumValue {
            name,
            value,
            positioned: cursor.contains("before") || cursor.contains("after"),
        });
    }
    if kind == "domain" && cursor.at_words("add") {
        return Some(Action::DomainConstraint {
            name,
            not_valid: cursor.contains("not valid"),
        });
    }
    if cursor.contains("rename") {
        return Some(if kind == "index" {
            Action::Grant
        } else {
            Action::RenameObject { kind, name }
        });
    }
    if cursor.contains("set schema") {
        return Some(Action::MoveObject { kind, name });
    }
    if kind == "index" && cursor.contains("set tablespace") {
        return Some(Action::AlterTable {
            table: name,
            alterations: vec![Alteration::SetTablespace],
        });
    }
    let harmless = ["sequence", "index", "statistics", "materialized view"]
        .contains(&kind.as_str())
        || cursor.at_words("owner to");
    harmless.then_some(Action::Grant)
}

fn drop_statement(cursor: &mut Cursor<'_>) -> Option<Action> {
    cursor.eat("temporary");
    if cursor.eat("index") {
        let concurrently = cursor.eat("concurrently");
        cursor.eat("if exists");
        let names = cursor.objects();
        let table = cursor.eat("on").then(|| cursor.object()).flatten();
        return Some(Action::DropIndex {
            names,
            table,
            concurrently,
        });
    }
    if cursor.eat("trigger") {
        cursor.eat("if exists");
        let name = cursor.object()?;
        let table = cursor.eat("on").then(|| cursor.object()).flatten();
        return Some(Action::DropTrigger { name, table });
    }
    const KINDS: &[&str] = &[
        "materialized view",
        "foreign table",
        "table",
        "view",
        "type",
        "domain",
        "function",
        "procedure",
        "aggregate",
        "schema",
        "sequence",
        "extension",
        "database",
        "policy",
        "rule",
        "statistics",
        "role",
        "user",
        "event",
    ];
    let kind = (*KINDS.iter().find(|kind| cursor.eat(kind))?).to_owned();
    cursor.eat("if exists");
    let names = cursor.objects();
    (!names.is_empty()).then_some(Action::Drop { kind, names })
}

fn reindex(cursor: &mut Cursor<'_>) -> Option<Action> {
    let options = cursor
        .parentheses()
        .is_some_and(|inside| inside.contains("concurrently"));
    let target = cursor.word();
    cursor.skip();
    let concurrently = cursor.eat("concurrently") || options;
    Some(Action::Reindex {
        target,
        name: cursor.object(),
        concurrently,
    })
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "a new kind of action has to be asked for by name to count here"
)]
fn understood(action: &Action) -> bool {
    match action {
        Action::Other { .. } => false,
        Action::AlterTable { alterations, .. } => !alterations
            .iter()
            .any(|alteration| matches!(alteration, Alteration::Other(_))),
        _ => true,
    }
}

fn commits_implicitly(action: &Action) -> bool {
    !matches!(
        action,
        Action::Write { .. }
            | Action::Insert { .. }
            | Action::Set { .. }
            | Action::CreateTable {
                temporary: true,
                ..
            }
    )
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "a new kind of action has to be asked for by name to count here"
)]
fn refuses_transaction(action: &Action) -> bool {
    match action {
        Action::CreateIndex { concurrently, .. }
        | Action::DropIndex { concurrently, .. }
        | Action::Reindex { concurrently, .. } => *concurrently,
        Action::AlterTable { alterations, .. } => alterations.iter().any(|alteration| {
            matches!(
                alteration,
                Alteration::DetachPartition {
                    concurrently: true,
                    ..
                }
            )
        }),
        Action::Vacuum | Action::VacuumFull => true,
        Action::Drop { kind, .. } | Action::CreateOther { kind, .. } => kind == "database",
        _ => false,
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "a new kind of action has to be asked for by name to count here"
)]
fn objects(action: &Action) -> Vec<ObjectName> {
    let one = |name: &ObjectName| vec![name.clone()];
    match action {
        Action::CreateTable {
            table,
            columns,
            foreign_keys,
            ..
        } => {
            let referenced = columns
                .iter()
                .filter_map(|column| column.references.clone());
            one(table)
                .into_iter()
                .chain(foreign_keys.iter().cloned())
                .chain(referenced)
                .collect()
        }
        Action::CreateIndex { name, table, .. } => name.iter().cloned().chain(one(table)).collect(),
        Action::DropIndex { names, table, .. } => {
            names.iter().cloned().chain(table.iter().cloned()).collect()
        }
        Action::Reindex { name, .. } => name.iter().cloned().collect(),
        Action::AlterTable { table, alterations } => {
            let more = alterations
                .iter()
                .filter_map(|alteration| match alteration {
                    Alteration::RenameTable { to } => Some(to.clone()),
                    Alteration::AddForeignKey { references, .. } => Some(references.clone()),
                    Alteration::DetachPartition { partition, .. } => Some(partition.clone()),
                    Alteration::AddColumn(column) => column.references.clone(),
                    _ => None,
                });
            one(table).into_iter().chain(more).collect()
        }
        Action::RenameObject { name, .. }
        | Action::MoveObject { name, .. }
        | Action::AddEnumValue { name, .. }
        | Action::DomainConstraint { name, .. }
        | Action::RefreshView { name, .. }
        | Action::CreateOther { name, .. } => one(name),
        Action::Drop { names, .. } => names.clone(),
        Action::Lock { tables } | Action::Truncate { tables } => tables.clone(),
        Action::Write { table, .. } | Action::Insert { table } | Action::CreatePolicy { table } => {
            one(table)
        }
        Action::CreateTrigger { name, table } => vec![name.clone(), table.clone()],
        Action::DropTrigger { name, table } => {
            one(name).into_iter().chain(table.iter().cloned()).collect()
        }
        Action::VacuumFull
        | Action::Vacuum
        | Action::Cluster
        | Action::Revoke
        | Action::Grant
        | Action::Transaction { .. }
        | Action::Set { .. }
        | Action::Other { .. } => Vec::new(),
    }
}
