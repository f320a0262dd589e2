//! The corpus: what each statement is found to do, compared with what squawk says by default.

mod corpus;

use std::collections::BTreeSet;

use landfast_migration::{
    Engine, MigrationSet, SourceFile,
    lint::{EXCUSED, Finding, RULES, Rule, lint, render, sarif, summary},
};
use squawk_linter::Linter;

use corpus::{POSTGRES, POSTGRES_SCHEMA, set};

fn rules(findings: &[Finding]) -> Vec<String> {
    let mut rules = findings
        .iter()
        .map(|finding| finding.rule.to_owned())
        .collect::<Vec<_>>();
    rules.sort();
    rules
}

fn check(corpus_text: &str, schema: &str, engine: Engine) -> (usize, BTreeSet<String>) {
    let (mut wrong, mut fired) = (Vec::new(), BTreeSet::new());
    let cases = corpus::read(corpus_text);
    for case in &cases {
        let set = set(schema, &case.text(), engine);
        let found = rules(&lint(&set, 2));
        // One finding per rule and statement: `ADD a, ADD b` is one.
        let mut expected = case.expected.clone();
        if !case.sql.contains(';') {
            expected.dedup();
        }
        if found != expected {
            wrong.push(format!(
                "{}: found {found:?}, expected {expected:?}",
                case.sql
            ));
        }
        fired.extend(found);
    }
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        cases.len(),
        wrong.join("\n")
    );
    (cases.len(), fired)
}

const MARIADB: &str = include_str!("corpus/mariadb.txt");
const MARIADB_SCHEMA: &str = include_str!("corpus/schema.mariadb.sql");

#[test]
fn every_statement_of_the_corpus_is_judged_as_expected_and_every_rule_fires() {
    let (count, mut fired) = check(POSTGRES, POSTGRES_SCHEMA, Engine::Postgres);
    assert!(count >= 200, "{count} statements");
    let (_, more) = check(MARIADB, MARIADB_SCHEMA, Engine::Mariadb);
    fired.extend(more);
    // PG094 is what plan and status say of files and history; PG102 is only what squawk sees.
    let silent = RULES
        .iter()
        .map(|rule| rule.id)
        .filter(|id| !fired.contains(*id) && !["PG094", "PG102"].contains(id));
    assert_eq!(silent.collect::<Vec<_>>(), [""; 0]);
}

/// What squawk reports and a PostgreSQL 15 was measured to do without a rewrite, or with a table nobody uses yet.
const HARMLESS: &[(&str, &str)] = &[
    (
        "ALTER TABLE items ALTER COLUMN name TYPE varchar(40)",
        "changing-column-type",
    ),
    (
        "ALTER TABLE items ALTER COLUMN name TYPE varchar(20)",
        "changing-column-type",
    ),
    (
        "ALTER TABLE items ALTER COLUMN name TYPE character varying(21)",
        "changing-column-type",
    ),
    (
        "ALTER TABLE items ALTER COLUMN name TYPE text",
        "changing-column-type",
    ),
    (
        "ALTER TABLE items ALTER COLUMN price TYPE numeric",
        "changing-column-type",
    ),
    (
        "ALTER TABLE items ALTER COLUMN made TYPE timestamptz",
        "changing-column-type",
    ),
    (
        "ALTER TABLE items ALTER COLUMN seen TYPE timestamp",
        "changing-column-type",
    ),
    (
        "ALTER TABLE items ADD COLUMN a numeric DEFAULT -1",
        "adding-field-with-default",
    ),
    (
        "ALTER TABLE items ALTER COLUMN label SET NOT NULL",
        "adding-not-nullable-field",
    ),
    (
        "ALTER TABLE items ALTER COLUMN note DROP NOT NULL",
        "ban-drop-not-null",
    ),
    (
        "ALTER TABLE items ALTER COLUMN note DROP DEFAULT",
        "ban-drop-default",
    ),
    (
        "ALTER TABLE items FORCE ROW LEVEL SECURITY",
        "ban-alter-row-level-security",
    ),
    ("CREATE POLICY p ON items USING (true)", "ban-create-policy"),
    ("ALTER INDEX items_name RENAME", "renaming-object"),
    ("CREATE TABLE fresh", "adding-required-field"),
];

#[test]
fn nothing_that_squawk_reports_is_missed() {
    let mut missed = Vec::new();
    let mut reports = 0;
    for case in corpus::read(POSTGRES) {
        let text = case.text();
        let mut linter = Linter::with_default_rules();
        linter.settings.assume_in_transaction = case.in_transaction();
        let theirs = linter.lint(&squawk_syntax::SourceFile::parse(&text), &text);
        let set = set(POSTGRES_SCHEMA, &text, Engine::Postgres);
        let ours = rules(&lint(&set, 2));
        for violation in theirs {
            reports += 1;
            let name = violation.code.to_string();
            let excused = EXCUSED.iter().any(|(excused, _)| *excused == name);
            let stand_for = || {
                RULES
                    .iter()
                    .filter(|rule| rule.squawk.contains(&name.as_str()))
            };
            let seen = stand_for().any(|rule| ours.iter().any(|id| id == rule.id));
            // In a contract migration what only it may do is in its place.
            let in_place = stand_for().any(|rule| rule.contract_only) && case.is_contract();
            let measured = HARMLESS
                .iter()
                .any(|(statement, harmless)| case.sql.starts_with(statement) && name == *harmless);
            if !excused && !seen && !in_place && !measured {
                missed.push(format!("{name}: {}", case.sql));
            }
        }
    }
    assert!(reports > 100, "{reports} reports of squawk");
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

#[test]
fn a_table_of_the_same_run_is_empty_and_one_that_ran_before_is_not() {
    let files = [
        ("0001_new.sql", "CREATE TABLE fresh (id bigint)"),
        ("0002_index.sql", "CREATE INDEX i ON fresh (id)"),
    ];
    let files = files.map(|(name, text)| SourceFile {
        name: name.into(),
        bytes: text.into(),
    });
    let set = MigrationSet::parse(&files, Engine::Postgres).unwrap();
    assert_eq!(rules(&lint(&set, 1)), [""; 0]);
    assert_eq!(rules(&lint(&set, 2)), ["PG001"]);
}

#[test]
fn not_null_after_a_validated_check_is_free() {
    let text = "ALTER TABLE items ADD CONSTRAINT c CHECK (note IS NOT NULL) NOT VALID";
    let files = [
        ("0001_schema.sql", POSTGRES_SCHEMA),
        ("0002_check.sql", text),
        (
            "0003_validate.sql",
            "ALTER TABLE items VALIDATE CONSTRAINT c",
        ),
        (
            "0004_set.sql",
            "ALTER TABLE items ALTER COLUMN note SET NOT NULL",
        ),
    ];
    let files = files.map(|(name, text)| SourceFile {
        name: name.into(),
        bytes: text.into(),
    });
    let set = MigrationSet::parse(&files, Engine::Postgres).unwrap();
    assert_eq!(rules(&lint(&set, 2)), [""; 0]);
}

#[test]
fn findings_read_well_as_text_and_as_sarif() {
    let set = set(
        POSTGRES_SCHEMA,
        "-- landfast: allow=PG072 nobody has read this table since release 12\n\nTRUNCATE shops;\n  CREATE INDEX i ON items (amount);\n",
        Engine::Postgres,
    );
    let findings = lint(&set, 2);
    insta::assert_snapshot!(render(&findings, &set, false));
    assert_eq!(summary(&findings), "1 error");
    let sarif = sarif(&findings, "migrations", "1.2.3");
    let results = &sarif["runs"][0]["results"];
    assert_eq!(
        results[0]["suppressions"][0]["justification"],
        "nobody has read this table since release 12"
    );
    assert_eq!(results[1]["ruleId"], "PG001");
    assert_eq!(
        results[1]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"],
        "migrations/0002_change.sql"
    );
    assert_eq!(
        results[1]["locations"][0]["physicalLocation"]["region"]["startLine"],
        4
    );
    assert_eq!(
        results[1]["locations"][0]["physicalLocation"]["region"]["startColumn"],
        3
    );
    let index = results[1]["ruleIndex"].as_u64().unwrap() as usize;
    assert_eq!(
        sarif["runs"][0]["tool"]["driver"]["rules"][index]["id"],
        "PG001"
    );
}

/// `docs/lints/`: one page for each rule, made from the catalogue. `UPDATE_DOCS=1` writes them.
#[test]
fn each_rule_has_its_page() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/lints");
    let mut pages = vec![("README.md".to_owned(), index())];
    pages.extend(
        RULES
            .iter()
            .map(|rule| (format!("{}.md", rule.id), page(rule))),
    );
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::create_dir_all(folder).unwrap();
    }
    for (name, text) in &pages {
        let path = format!("{folder}/{name}");
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(&path, text).unwrap();
        }
        assert_eq!(
            std::fs::read_to_string(&path).unwrap_or_default(),
            *text,
            "{path}; UPDATE_DOCS=1 writes it"
        );
    }
    assert_eq!(std::fs::read_dir(folder).unwrap().count(), pages.len());
}

const GENERATED: &str = "<!-- Generated from the catalogue of `landfast-migration`; UPDATE_DOCS=1 writes it. Do not edit by hand. -->\n\n";

fn weight(rule: &Rule) -> &'static str {
    match (rule.contract_only, rule.severity) {
        (true, _) => "only in a contract migration",
        (false, landfast_migration::lint::Severity::Error) => "error",
        (false, landfast_migration::lint::Severity::Notice) => "advice",
        (false, landfast_migration::lint::Severity::Warning) => "warning",
    }
}

fn page(rule: &Rule) -> String {
    let squawk = if rule.squawk.is_empty() {
        String::new()
    } else {
        format!("## In squawk\n\n`{}`\n\n", rule.squawk.join("`, `"))
    };
    format!(
        "{GENERATED}# {}: {}\n\nFor {}; {}.\n\n## What happens\n\n{}\n\n## What to write instead\n\n{}\n\n{squawk}\
         A finding that was judged is allowed at the head of the file, with a reason: `-- landfast: allow={} why it may be`.\n\n[All rules](README.md)\n",
        rule.id,
        rule.title,
        rule.engine(),
        weight(rule),
        rule.why,
        rule.fix,
        rule.id
    )
}

fn index() -> String {
    let rows = RULES
        .iter()
        .map(|rule| {
            format!(
                "| [{id}]({id}.md) | {} | {} |\n",
                rule.title,
                weight(rule),
                id = rule.id
            )
        })
        .collect::<String>();
    let excused = EXCUSED
        .iter()
        .map(|(name, reason)| format!("- `{name}`: {reason}\n"))
        .collect::<String>();
    format!(
        "{GENERATED}# Rules for migrations\n\n| rule | about | weight |\n| --- | --- | --- |\n{rows}\n## What squawk reports and Landfast does not\n\n{excused}"
    )
}
