//! What a migration locks, rewrites or breaks, statement by statement.
//!
//! The findings are Landfast's own rules over its own reading, plus what squawk sees and they do not. A statement that no
//! rule could read is said to be so; a parser's complaint never refuses a migration, because the database is the judge of
//! syntax.

mod catalogue;
mod mariadb;
mod output;
mod postgres;
mod schema;
mod squawk;

use std::ops::Range;

use serde::Serialize;

pub use self::{
    catalogue::{EXCUSED, RULES, Rule, Severity},
    output::{render, sarif, summary},
};
use crate::{Engine, Migration, MigrationSet, Phase, script::line_of};
use schema::Schema;

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The id of the rule.
    pub rule: &'static str,
    /// How much it weighs here.
    pub severity: Severity,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub fix: &'static str,
    /// The file.
    pub file: String,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// The statement's place in the file, in bytes.
    #[serde(skip)]
    pub range: Range<usize>,
    /// Which statement, from 0.
    pub statement: usize,
    /// Whether the release that still serves cannot live with it.
    pub breaks_older: bool,
    /// The reason in the file's header, where it allows this rule: then it weighs nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed: Option<String>,
}

/// Lints the migrations of a set from a number on, as if those before it had run: a table that one of the linted files
/// creates is empty, so what would block or rewrite it harms nobody.
pub fn lint(set: &MigrationSet, from: u32) -> Vec<Finding> {
    let mut schema = Schema::default();
    let mut findings = Vec::new();
    for migration in set.iter() {
        if migration.number < from {
            schema.learn_before(migration);
        } else {
            findings.extend(lint_one(migration, &mut schema));
        }
    }
    findings
}

fn lint_one(migration: &Migration, schema: &mut Schema) -> Vec<Finding> {
    let file = format!("{}.sql", migration.title());
    let mut hits = match migration.engine {
        Engine::Postgres => postgres::check(migration, schema),
        Engine::Mariadb => mariadb::check(migration, schema),
    };
    hits.sort_by_key(|hit| (hit.statement, hit.rule));
    hits.dedup_by_key(|hit| (hit.statement, hit.rule));
    hits.into_iter()
        .filter_map(|hit| finding(migration, &file, hit))
        .collect()
}

/// A rule that fired on a statement.
struct Hit {
    rule: &'static str,
    statement: usize,
    /// Names what it is about, behind the rule's title.
    about: String,
}

impl Hit {
    fn new(rule: &'static str, statement: usize, about: impl Into<String>) -> Self {
        Self {
            rule,
            statement,
            about: about.into(),
        }
    }
}

fn finding(migration: &Migration, file: &str, hit: Hit) -> Option<Finding> {
    let rule = Rule::find(hit.rule)?;
    // What only a contract migration may do is in its place there.
    if rule.contract_only && migration.phase() == Phase::Contract {
        return None;
    }
    let script = &migration.up;
    let range = script.statements[hit.statement].range.clone();
    let line_start = script.text[..range.start]
        .rfind('\n')
        .map_or(0, |at| at + 1);
    let message = if hit.about.is_empty() {
        rule.title.to_owned()
    } else {
        format!("{}: {}", rule.title, hit.about)
    };
    Some(Finding {
        rule: rule.id,
        severity: rule.severity,
        message,
        fix: rule.fix,
        file: file.to_owned(),
        line: line_of(&script.text, range.start),
        column: script.text[line_start..range.start].chars().count() + 1,
        range,
        statement: hit.statement,
        breaks_older: rule.contract_only
            || [
                "PG010", "PG021", "PG022", "PG024", "MY003", "MY011", "MY012",
            ]
            .contains(&rule.id),
        allowed: script
            .header
            .allowed
            .iter()
            .find(|one| one.rule == rule.id)
            .map(|one| one.reason.clone()),
    })
}

/// Whether a release that does not know this migration cannot live with it: it is a contract, or allows itself a finding
/// that breaks one.
pub fn breaks_older(set: &MigrationSet, number: u32) -> bool {
    let Some(migration) = set.get(number) else {
        return false;
    };
    migration.phase() == Phase::Contract
        || lint(set, number).iter().any(|finding| {
            finding.file == format!("{}.sql", migration.title()) && finding.breaks_older
        })
}
