//! One statement → what it does to which objects, for both engines.
//!
//! This is a reader, not a parser: it understands the shapes that lock, rewrite, break a release or need a probe, and
//! says `complete: false` where a statement goes on in a way it does not know. Whoever decides on its word then assumes
//! the worst. Function and trigger bodies are not looked into.

mod alter;
mod cursor;
mod statement;

use std::fmt;

use crate::{Engine, Statement};

pub(crate) use self::statement::read;

/// The name of a table, index, type or the like, folded as the engine folds it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    /// The schema, where one was written.
    pub schema: Option<String>,
    /// The name.
    pub name: String,
}

impl ObjectName {
    /// Whether both may mean the same object: a name without a schema may lie in any.
    pub fn may_be(&self, other: &Self) -> bool {
        self.name == other.name
            && match (&self.schema, &other.schema) {
                (Some(own), Some(other)) => own == other,
                _ => true,
            }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.schema {
            Some(schema) => write!(f, "{schema}.{}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// What a statement does.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Reading {
    /// In the order of the text.
    pub(crate) actions: Vec<Action>,
    /// Every object it names that another migration could name too.
    pub(crate) objects: Vec<ObjectName>,
    /// Whether all of it was understood.
    pub(crate) complete: bool,
    /// Whether the engine commits it by itself, whatever transaction it stands in (MariaDB's DDL).
    pub(crate) commits: bool,
    /// Whether PostgreSQL refuses it inside a transaction.
    pub(crate) outside_transaction: bool,
}

/// A column's type as it is written: words folded, arguments kept.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct ColumnType {
    /// `character varying`, `numeric`, `int`.
    pub(crate) name: String,
    /// What stands in its parentheses: `["10", "2"]`.
    pub(crate) arguments: Vec<String>,
}

/// A column that is added or defined.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct NewColumn {
    /// Its name.
    pub(crate) name: String,
    /// Its type.
    pub(crate) data_type: ColumnType,
    /// `NOT NULL` or `PRIMARY KEY`.
    pub(crate) not_null: bool,
    /// The default's text.
    pub(crate) default: Option<String>,
    /// `GENERATED ALWAYS AS (…) STORED` or `PERSISTENT`.
    pub(crate) stored: bool,
    /// `GENERATED … AS IDENTITY`, `serial`, `AUTO_INCREMENT`.
    pub(crate) identity: bool,
    /// `REFERENCES`.
    pub(crate) references: Option<ObjectName>,
    /// `CHECK`.
    pub(crate) check: bool,
    /// `UNIQUE`.
    pub(crate) unique: bool,
    /// `PRIMARY KEY`.
    pub(crate) primary_key: bool,
    /// `CHARACTER SET` or `COLLATE`.
    pub(crate) charset: bool,
}

/// One clause of `ALTER TABLE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Alteration {
    AddColumn(NewColumn),
    DropColumn {
        name: String,
    },
    RenameColumn {
        from: String,
        to: String,
    },
    RenameTable {
        to: ObjectName,
    },
    SetSchema,
    SetType {
        column: String,
        data_type: ColumnType,
        /* `USING` computes something else than the column, or the column cast to that type */
        computed: bool,
    },
    SetNotNull {
        column: String,
    },
    DropNotNull {
        column: String,
    },
    SetDefault {
        column: String,
    },
    DropDefault {
        column: String,
    },
    AddCheck {
        name: Option<String>,
        not_valid: bool,
        /* the column, if it says `column IS NOT NULL` */ not_null: Option<String>,
    },
    AddForeignKey {
        name: Option<String>,
        references: ObjectName,
        not_valid: bool,
    },
    AddUnique {
        using_index: bool,
    },
    AddPrimaryKey {
        using_index: bool,
    },
    AddExclude,
    AddIndex {
        unique: bool,
        kind: IndexKind,
    },
    DropIndex,
    ValidateConstraint {
        name: String,
    },
    DropConstraint {
        name: String,
    },
    SetTablespace,
    SetLogged {
        logged: bool,
    },
    /// `force`: the owner obeys the policies, too; alone it does nothing.
    RowSecurity {
        enable: bool,
        force: bool,
    },
    DetachPartition {
        concurrently: bool,
        partition: ObjectName,
    },
    AttachPartition,
    /// MariaDB's `MODIFY` and `CHANGE`: the new definition whole.
    Redefine {
        from: String,
        column: NewColumn,
    },
    ConvertCharset,
    Engine,
    RowFormat,
    /// `ALGORITHM=` or `LOCK=`.
    Explicit {
        key: String,
        value: String,
    },
    /// Known and without harm: statistics, storage options, owner, comments.
    Harmless,
    /// Not understood.
    Other(String),
}

/// What kind of index MariaDB is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IndexKind {
    Plain,
    Fulltext,
    Spatial,
}

/// What a statement does, one thing at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    CreateTable {
        table: ObjectName,
        columns: Vec<NewColumn>,
        foreign_keys: Vec<ObjectName>,
        temporary: bool,
        unlogged: bool,
    },
    CreateIndex {
        name: Option<ObjectName>,
        table: ObjectName,
        concurrently: bool,
        if_not_exists: bool,
        unique: bool,
        kind: IndexKind,
    },
    DropIndex {
        names: Vec<ObjectName>,
        table: Option<ObjectName>,
        concurrently: bool,
    },
    Reindex {
        target: String,
        name: Option<ObjectName>,
        concurrently: bool,
    },
    AlterTable {
        table: ObjectName,
        alterations: Vec<Alteration>,
    },
    /// `ALTER` of something that is no table.
    RenameObject {
        kind: String,
        name: ObjectName,
    },
    MoveObject {
        kind: String,
        name: ObjectName,
    },
    Drop {
        kind: String,
        names: Vec<ObjectName>,
    },
    AddEnumValue {
        name: ObjectName,
        value: String,
        positioned: bool,
    },
    DomainConstraint {
        name: ObjectName,
        not_valid: bool,
    },
    VacuumFull,
    Vacuum,
    Cluster,
    RefreshView {
        name: ObjectName,
        concurrently: bool,
    },
    Lock {
        tables: Vec<ObjectName>,
    },
    Truncate {
        tables: Vec<ObjectName>,
    },
    /// `UPDATE` or `DELETE`; `bounded` when it has a `WHERE`.
    Write {
        verb: &'static str,
        table: ObjectName,
        bounded: bool,
    },
    Insert {
        table: ObjectName,
    },
    CreateTrigger {
        name: ObjectName,
        table: ObjectName,
    },
    DropTrigger {
        name: ObjectName,
        table: Option<ObjectName>,
    },
    CreatePolicy {
        table: ObjectName,
    },
    Revoke,
    Grant,
    /// `replaces` when it says `OR REPLACE`.
    CreateOther {
        kind: String,
        name: ObjectName,
        replaces: bool,
    },
    Transaction {
        word: String,
    },
    Set {
        name: String,
    },
    Other {
        words: String,
    },
}

impl Statement {
    /// The words at the beginning, for people: `ALTER TABLE items`.
    pub fn summary(&self) -> String {
        let line = self.text.split_whitespace().collect::<Vec<_>>().join(" ");
        if line.chars().count() <= 72 {
            return line;
        }
        let cut = line.chars().take(71).collect::<String>();
        format!("{cut}…")
    }

    pub(crate) fn cursor(&self, engine: Engine) -> cursor::Cursor<'_> {
        cursor::Cursor::new(&self.text, &self.tokens, engine)
    }
}
