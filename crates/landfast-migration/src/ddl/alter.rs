//! `ALTER TABLE`, clause by clause, and definitions of columns.

use super::{Alteration, ColumnType, IndexKind, NewColumn, cursor::Cursor};
use crate::Engine;

/// Words that begin a constraint of a column and so end its type or default.
const COLUMN_WORDS: &[&str] = &[
    "not",
    "null",
    "default",
    "primary",
    "unique",
    "references",
    "check",
    "constraint",
    "generated",
    "as",
    "collate",
    "character",
    "charset",
    "auto_increment",
    "comment",
    "first",
    "after",
    "stored",
    "persistent",
    "virtual",
    "invisible",
    "on",
    "deferrable",
    "initially",
    "unsigned",
    "zerofill",
    "storage",
    "compression",
    "using",
];

pub(super) fn alterations(cursor: &Cursor<'_>) -> Vec<Alteration> {
    cursor.split_commas().into_iter().map(alteration).collect()
}

fn alteration(mut cursor: Cursor<'_>) -> Alteration {
    let whole = cursor.clone();
    read(&mut cursor).unwrap_or_else(|| Alteration::Other(whole.rest().to_owned()))
}

fn read(cursor: &mut Cursor<'_>) -> Option<Alteration> {
    let word = cursor.word();
    cursor.skip();
    match word.as_str() {
        "add" => add(cursor),
        "drop" => drop(cursor),
        "rename" => rename(cursor),
        "alter" => alter(cursor),
        "validate" => {
            cursor.eat("constraint");
            Some(Alteration::ValidateConstraint {
                name: cursor.name()?,
            })
        }
        "set" => set(cursor),
        "enable" | "disable" | "force" if cursor.at_words("row level security") => {
            Some(Alteration::RowSecurity {
                enable: word != "disable",
                force: word == "force",
            })
        }
        "no" if cursor.at_words("force row level security") => Some(Alteration::RowSecurity {
            enable: false,
            force: true,
        }),
        "detach" => {
            cursor.eat("partition");
            let partition = cursor.object()?;
            Some(Alteration::DetachPartition {
                concurrently: cursor.contains("concurrently"),
                partition,
            })
        }
        "attach" => Some(Alteration::AttachPartition),
        "owner" | "reset" | "cluster" => Some(Alteration::Harmless),
        _ if cursor.engine() == Engine::Mariadb => mariadb(cursor, &word),
        _ => None,
    }
}

fn mariadb(cursor: &mut Cursor<'_>, word: &str) -> Option<Alteration> {
    match word {
        "modify" => {
            cursor.eat("column");
            cursor.eat("if exists");
            let column = column(cursor)?;
            Some(Alteration::Redefine {
                from: column.name.clone(),
                column,
            })
        }
        "change" => {
            cursor.eat("column");
            cursor.eat("if exists");
            let from = cursor.name()?;
            Some(Alteration::Redefine {
                from,
                column: column(cursor)?,
            })
        }
        "convert" => Some(Alteration::ConvertCharset),
        "default" | "character" | "charset" | "collate" | "comment" | "auto_increment" => {
            Some(Alteration::Harmless)
        }
        "engine" => Some(Alteration::Engine),
        "row_format" | "key_block_size" => Some(Alteration::RowFormat),
        "force" => Some(Alteration::Engine),
        "algorithm" | "lock" => {
            cursor.eat_symbol("=");
            Some(Alteration::Explicit {
                key: word.to_owned(),
                value: cursor.word(),
            })
        }
        _ => None,
    }
}

fn add(cursor: &mut Cursor<'_>) -> Option<Alteration> {
    let name = if cursor.eat("constraint") {
        cursor.eat("if not exists");
        (!cursor.at_words("check") && !cursor.at_words("foreign") && !cursor.at_words("unique"))
            .then(|| cursor.name())
            .flatten()
    } else {
        None
    };
    let not_valid = cursor.contains("not valid");
    let using_index = cursor.contains("using index");
    if cursor.eat("check") {
        let not_null = cursor.parentheses().and_then(|mut inside| {
            let column = inside.name()?;
            (inside.eat("is not null") && inside.done()).then_some(column)
        });
        return Some(Alteration::AddCheck {
            name,
            not_valid,
            not_null,
        });
    }
    if cursor.eat("foreign key") {
        cursor.seek("references");
        return Some(Alteration::AddForeignKey {
            name,
            references: cursor.object()?,
            not_valid,
        });
    }
    if cursor.eat("primary key") {
        return Some(Alteration::AddPrimaryKey { using_index });
    }
    if cursor.eat("exclude") {
        return Some(Alteration::AddExclude);
    }
    for (word, kind) in [
        ("fulltext", IndexKind::Fulltext),
        ("spatial", IndexKind::Spatial),
    ] {
        if cursor.eat(word) {
            return Some(Alteration::AddIndex {
                unique: false,
                kind,
            });
        }
    }
    if cursor.eat("unique") {
        return Some(if cursor.engine() == Engine::Mariadb {
            Alteration::AddIndex {
                unique: true,
                kind: IndexKind::Plain,
            }
        } else {
            Alteration::AddUnique { using_index }
        });
    }
    if cursor.engine() == Engine::Mariadb && cursor.eat_any(&["index", "key"]) {
        return Some(Alteration::AddIndex {
            unique: false,
            kind: IndexKind::Plain,
        });
    }
    if name.is_some() || cursor.at_words("partition") || cursor.at_words("generated") {
        return None;
    }
    cursor.eat("column");
    cursor.eat("if not exists");
    Some(Alteration::AddColumn(column(cursor)?))
}

fn drop(cursor: &mut Cursor<'_>) -> Option<Alteration> {
    if cursor.eat("constraint") || cursor.eat("foreign key") {
        cursor.eat("if exists");
        return Some(Alteration::DropConstraint {
            name: cursor.name()?,
        });
    }
    if cursor.eat("primary key") {
        return Some(Alteration::DropConstraint {
            name: "primary".into(),
        });
    }
    if cursor.engine() == Engine::Mariadb && cursor.eat_any(&["index", "key"]) {
        return Some(Alteration::DropIndex);
    }
    if cursor.at_words("partition") {
        return None;
    }
    cursor.eat("column");
    cursor.eat("if exists");
    Some(Alteration::DropColumn {
        name: cursor.name()?,
    })
}

fn rename(cursor: &mut Cursor<'_>) -> Option<Alteration> {
    if cursor.eat("to") || (cursor.engine() == Engine::Mariadb && cursor.eat("as")) {
        return Some(Alteration::RenameTable {
            to: cursor.object()?,
        });
    }
    if cursor.eat("constraint")
        || (cursor.engine() == Engine::Mariadb && cursor.eat_any(&["index", "key"]))
    {
        return Some(Alteration::Harmless);
    }
    cursor.eat("column");
    cursor.eat("if exists");
    let from = cursor.name()?;
    if !cursor.eat("to") {
        // MariaDB takes `RENAME new_name` for a table.
        return (cursor.engine() == Engine::Mariadb && cursor.done()).then_some(
            Alteration::RenameTable {
                to: super::ObjectName {
                    schema: None,
                    name: from,
                },
            },
        );
    }
    Some(Alteration::RenameColumn {
        from,
        to: cursor.name()?,
    })
}

fn alter(cursor: &mut Cursor<'_>) -> Option<Alteration> {
    if cursor.eat("constraint") || cursor.eat("index") {
        return Some(Alteration::Harmless);
    }
    cursor.eat("column");
    let column = cursor.name()?;
    if cursor.eat("set not null") {
        return Some(Alteration::SetNotNull { column });
    }
    if cursor.eat("drop not null") {
        return Some(Alteration::DropNotNull { column });
    }
    if cursor.eat("set default") {
        return Some(Alteration::SetDefault { column });
    }
    if cursor.eat("drop default") {
        return Some(Alteration::DropDefault { column });
    }
    if cursor.eat("set data type") || cursor.eat("type") {
        let data_type = data_type(cursor);
        return Some(Alteration::SetType {
            computed: computes(cursor, &column, &data_type),
            column,
            data_type,
        });
    }
    if cursor.at_words("set statistics")
        || cursor.at_words("set storage")
        || cursor.at_words("set compression")
    {
        return Some(Alteration::Harmless);
    }
    if cursor.eat("set") && cursor.at_symbol("(") {
        return Some(Alteration::Harmless);
    }
    None
}

/// Whether a `USING` gives something else than the column, bare or cast to its new type.
fn computes(cursor: &Cursor<'_>, column: &str, wanted: &ColumnType) -> bool {
    let mut cursor = cursor.clone();
    if !cursor.seek("using") {
        return false;
    }
    let is_column = cursor.name().as_deref() == Some(column);
    let mut is_cast = false;
    while cursor.eat_symbol(":") || cursor.eat_symbol("::") {
        is_cast = true;
    }
    let is_wanted = !is_cast || data_type(&mut cursor) == *wanted;
    !(is_column && is_wanted && cursor.done())
}

fn set(cursor: &mut Cursor<'_>) -> Option<Alteration> {
    if cursor.at_symbol("(") {
        return Some(Alteration::Harmless);
    }
    match cursor.word().as_str() {
        "schema" => Some(Alteration::SetSchema),
        "tablespace" => Some(Alteration::SetTablespace),
        word @ ("logged" | "unlogged") => Some(Alteration::SetLogged {
            logged: word == "logged",
        }),
        "without" => Some(Alteration::Harmless),
        _ => None,
    }
}

/// `name type constraint…`
pub(super) fn column(cursor: &mut Cursor<'_>) -> Option<NewColumn> {
    let mut column = NewColumn {
        name: cursor.name()?,
        data_type: data_type(cursor),
        ..NewColumn::default()
    };
    column.identity = column.data_type.name.ends_with("serial");
    while !cursor.done() {
        if cursor.eat("generated by default as identity") {
            column.identity = true;
        } else if cursor.eat("not null") {
            column.not_null = true;
        } else if cursor.eat("default") {
            column.default = Some(expression(cursor));
        } else if cursor.eat("primary key") {
            column.primary_key = true;
            column.not_null = true;
        } else if cursor.eat("unique") {
            column.unique = true;
        } else if cursor.eat("references") {
            column.references = cursor.object();
        } else if cursor.eat("check") {
            column.check = true;
            cursor.parentheses();
        } else if cursor.eat("as identity") || cursor.eat("auto_increment") {
            column.identity = true;
        } else if cursor.eat_any(&["stored", "persistent"]) {
            column.stored = true;
        } else if cursor.eat_any(&["collate", "character set", "charset"]) {
            column.charset = true;
        } else if cursor.at_symbol("(") {
            cursor.parentheses();
        } else {
            cursor.skip();
        }
    }
    Some(column)
}

fn data_type(cursor: &mut Cursor<'_>) -> ColumnType {
    let mut data_type = ColumnType::default();
    let mut words = Vec::new();
    loop {
        if cursor.at_symbol("(") {
            if let Some(inside) = cursor.parentheses() {
                data_type.arguments = inside
                    .split_commas()
                    .iter()
                    .map(|part| part.rest().to_owned())
                    .collect();
            }
        } else if cursor.at_symbol("[") || cursor.at_symbol("]") {
            words.push(cursor.peek_text().to_owned());
            cursor.skip();
        } else if cursor.eat_symbol(".") {
            words.push(".".to_owned());
        } else {
            let word = cursor.word();
            let varying = word == "character" && {
                let mut ahead = cursor.clone();
                ahead.skip();
                !ahead.at_words("set")
            };
            if cursor.done()
                || (COLUMN_WORDS.contains(&word.as_str()) && !(varying && words.is_empty()))
            {
                break;
            }
            let Some(name) = cursor.name() else { break };
            words.push(name);
        }
    }
    data_type.name = words.join(" ");
    data_type
}

/// A default's text: up to the next word that begins another constraint.
fn expression(cursor: &mut Cursor<'_>) -> String {
    let mut text = String::new();
    while !cursor.done() {
        let word = cursor.word();
        // `DEFAULT NULL` is a value; later a `NULL` is a constraint.
        if !text.is_empty() && COLUMN_WORDS.contains(&word.as_str()) {
            break;
        }
        if cursor.at_symbol("(") {
            let before = cursor.rest();
            cursor.parentheses();
            let taken = before.len() - cursor.rest().len();
            text.push_str(before[..taken].trim_end());
        } else {
            text.push_str(cursor.peek_text());
            cursor.skip();
        }
    }
    text
}
