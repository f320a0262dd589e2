//! The corpus of statements, each with the rules that must fire on it, read by whoever holds the rules against something.

use landfast_migration::{Engine, MigrationSet, SourceFile};

pub(crate) const POSTGRES: &str = include_str!("postgres.txt");
pub(crate) const POSTGRES_SCHEMA: &str = include_str!("schema.postgres.sql");

/// One line of a corpus.
pub(crate) struct Case {
    /// What the file's head says beside it: `transaction=off`, `phase=contract`.
    pub(crate) option: Option<&'static str>,
    /// Ids of rules.
    pub(crate) expected: Vec<String>,
    pub(crate) sql: String,
}

impl Case {
    pub(crate) fn in_transaction(&self) -> bool {
        self.option != Some("transaction=off")
    }

    pub(crate) fn is_contract(&self) -> bool {
        self.option == Some("phase=contract")
    }

    /// The file.
    pub(crate) fn text(&self) -> String {
        let head = self.option.map(|option| format!("-- landfast: {option}\n"));
        head.unwrap_or_default() + &self.sql
    }
}

/// Its lines: `off PG001 PG002 | statement`.
pub(crate) fn read(text: &str) -> Vec<Case> {
    let line = |line: &str| {
        let (head, sql) = line.split_once('|').expect("`rules | statement`");
        let mut words = head.split_whitespace().peekable();
        let option = match words.peek() {
            Some(&"off") => Some("transaction=off"),
            Some(&"contract") => Some("phase=contract"),
            _ => None,
        };
        let words = words.skip(usize::from(option.is_some()));
        Case {
            option,
            expected: words
                .filter(|word| *word != "-")
                .map(str::to_owned)
                .collect(),
            sql: sql.trim().to_owned(),
        }
    };
    text.lines()
        .filter(|text| !text.starts_with('#') && !text.is_empty())
        .map(line)
        .collect()
}

/// Two files: the schema, and what changes it.
pub(crate) fn set(schema: &str, text: &str, engine: Engine) -> MigrationSet {
    let file = |name: &str, text: &str| SourceFile {
        name: name.into(),
        bytes: text.as_bytes().to_vec(),
    };
    MigrationSet::parse(
        &[
            file("0001_schema.sql", schema),
            file("0002_change.sql", text),
        ],
        engine,
    )
    .unwrap_or_else(|errors| panic!("{text}: {errors:?}"))
}
