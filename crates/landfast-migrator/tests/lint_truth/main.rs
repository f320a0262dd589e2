//! Whether the rules tell the truth: each finding of the corpus is held against what PostgreSQL 15 does.
//!
//! A finding is shown by what its rule says, seen on the server: a lock on what was there before that stops writers or
//! everybody, every row read or written anew under it, something the release that serves does that fails or comes to something
//! else, or the server's own refusal or warning. A finding that is not shown is a false alarm. Advice (`notice`) and "the
//! statement could not be read" claim nothing, and are counted apart.
//!
//! The other way round: a statement without a finding neither works under such a lock nor breaks the release that serves,
//! but for those that are named with a reason.
//!
//! `LANDFAST_LONG=1` takes a table of 100,000 rows (`make proof-lint-truth`).

#![expect(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test that panics fails, and asks of foreign enums only what it needs"
)]

#[path = "../../../landfast-migration/tests/corpus/mod.rs"]
#[expect(dead_code, reason = "what is expected of each is asserted elsewhere")]
mod corpus;
mod look;
mod world;

use std::collections::{BTreeMap, BTreeSet};

use landfast_migration::{
    Engine,
    lint::{Rule, Severity, lint},
};
use landfast_testbed::Postgres;

use corpus::Case;
use look::{Seen, in_transaction, outside};

/// Without a finding and yet felt by the release that serves, with the reason.
const INTENDED: &[(&str, &str)] = &[
    (
        "ALTER TABLE items ADD CONSTRAINT c CHECK (note IS NOT NULL) NOT VALID",
        "the new limit is what it is for, and no file says what the release that serves writes",
    ),
    (
        "ALTER TABLE parts DETACH PARTITION parts_q1 CONCURRENTLY",
        "that its rows leave is what it is for",
    ),
    (
        "UPDATE items SET note = 'x' WHERE id = 7",
        "that the row changes is what it is for",
    ),
    (
        "DELETE FROM items WHERE id = 7",
        "that the row goes is what it is for",
    ),
];

/// Whether what a rule says was seen.
fn is_shown(rule: &str, seen: &Seen) -> bool {
    let refused = |words: &str| seen.refused.as_ref().is_some_and(|why| why.contains(words));
    let warned = |words: &str| seen.warned.iter().any(|one| one.contains(words));
    match rule {
        // The index is built, or the columns of the domain are read, while writers wait.
        "PG001" | "PG061" => seen.stops_writers() && !seen.scanned.is_empty(),
        "PG002" | "PG071" | "PG072" | "PG074" => seen.stops_everybody(),
        "PG003" => refused("cannot run inside a transaction block"),
        "PG004" => seen.stops_writers() && !seen.rewritten.is_empty(),
        "PG005" => warned("INVALID"),
        "PG010" => refused("contains null values") || !seen.broken.is_empty(),
        "PG012" | "PG030" | "PG070" => seen.stops_everybody() && !seen.rewritten.is_empty(),
        "PG013" => seen
            .broken
            .iter()
            .any(|one| one.contains("cached plan must not change result type")),
        "PG020" | "PG021" | "PG022" | "PG023" | "PG024" | "PG032" | "PG041" | "PG060" | "PG081"
        | "PG082" => !seen.broken.is_empty(),
        "PG040" | "PG050" | "PG052" | "PG053" | "PG054" => {
            seen.stops_everybody() && !seen.scanned.is_empty()
        }
        // Both tables.
        "PG051" => seen.locks.len() > 1,
        "PG073" => seen.rows >= row_count(),
        "PG080" => seen.stops_writers(),
        "PG090" => seen.unlimited,
        "PG091" => seen.locked_against_everybody() > 1,
        "PG092" => seen.unlimited || warned("transaction in progress"),
        "PG093" => warned("twice"),
        _ => false,
    }
}

fn row_count() -> u64 {
    if std::env::var_os("LANDFAST_LONG").is_some() {
        100_000
    } else {
        5_000
    }
}

/// A server with the world as a template.
struct World {
    server: Postgres,
    copies: usize,
}

impl World {
    fn new() -> Self {
        let settings = [
            ("allow_in_place_tablespaces", "on"),
            ("timezone", "UTC"),
            // Every row of a scan is counted where it is ordered, and nobody else takes locks.
            ("max_parallel_workers", "0"),
            ("autovacuum", "off"),
        ];
        let server = Postgres::with_settings(&settings).unwrap();
        server.sql("template1", "CREATE DATABASE pristine").unwrap();
        server
            .sql("template1", "CREATE TABLESPACE fast LOCATION ''")
            .unwrap();
        let base = world::BASE.replace("@ROWS@", &row_count().to_string());
        let schema = corpus::POSTGRES_SCHEMA;
        server.sql("pristine", &format!("{schema}{base}")).unwrap();
        // A template is copied while nobody is connected to it.
        server
            .sql("template1", "CREATE DATABASE base TEMPLATE pristine")
            .unwrap();
        Self { server, copies: 0 }
    }

    /// The address of a copy in which this was done, and its name.
    fn copy(&mut self, ready: &str) -> (String, String) {
        self.copies += 1;
        let name = format!("copy_{}", self.copies);
        let create = format!("CREATE DATABASE {name} TEMPLATE pristine");
        self.server.sql("template1", &create).unwrap();
        if !ready.is_empty() {
            self.server.sql(&name, ready).unwrap();
        }
        (self.server.url(&name), name)
    }

    fn drop_copy(&self, name: &str) {
        let drop = format!("DROP DATABASE {name} WITH (FORCE)");
        self.server.sql("template1", &drop).unwrap();
    }

    /// Every look at a statement that its rules may need.
    async fn look(&mut self, case: &Case, statements: &[String], rules: &BTreeSet<&str>) -> Looks {
        let ready = world::made_ready(&case.sql);
        let mut looks = Looks(Vec::new());
        if case.in_transaction() {
            let (url, name) = if ready.is_empty() {
                (self.server.url("base"), None)
            } else {
                let (url, name) = self.copy(ready);
                (url, Some(name))
            };
            let seen = in_transaction(&url, statements, false).await;
            let meets_nulls = seen.refused.as_ref();
            let meets_nulls = meets_nulls.is_some_and(|why| why.contains("null values"));
            looks.0.push(seen);
            if meets_nulls {
                looks.0.push(in_transaction(&url, statements, true).await);
            }
            if let Some(name) = name {
                self.drop_copy(&name);
            }
        }
        if !case.in_transaction() || !rules.iter().all(|rule| looks.show(rule)) {
            let (url, name) = self.copy(ready);
            looks.0.push(outside(&url, statements).await);
            self.drop_copy(&name);
        }
        looks
    }
}

struct Looks(Vec<Seen>);

impl Looks {
    fn show(&self, rule: &str) -> bool {
        self.0.iter().any(|seen| is_shown(rule, seen))
    }

    fn harm(&self) -> bool {
        self.0
            .iter()
            .any(|seen| seen.works_under_lock() || !seen.broken.is_empty())
    }
}

/// What came of the whole corpus.
#[derive(Default)]
struct Tally {
    shown: BTreeMap<&'static str, u32>,
    judged: u32,
    silent: u32,
    advice: u32,
    unread: u32,
    wrong: Vec<String>,
    missed: Vec<String>,
}

impl Tally {
    /// The rules that claim something about the statement.
    fn claims(&mut self, case: &Case) -> (BTreeSet<&'static str>, Vec<String>) {
        let set = corpus::set(corpus::POSTGRES_SCHEMA, &case.text(), Engine::Postgres);
        let mut claims = BTreeSet::new();
        for finding in lint(&set, 2) {
            let severity = Rule::find(finding.rule).unwrap().severity;
            match finding.rule {
                _ if severity == Severity::Notice => self.advice += 1,
                "PG100" => self.unread += 1,
                rule => drop(claims.insert(rule)),
            }
        }
        let statements = &set.get(2).unwrap().up.statements;
        let texts = statements.iter().map(|one| one.text.clone());
        (claims, texts.collect())
    }

    fn judge(&mut self, case: &Case, rules: BTreeSet<&'static str>, looks: &Looks) {
        if rules.is_empty() {
            self.silent += 1;
            let is_intended = INTENDED.iter().any(|(sql, _)| *sql == case.sql);
            // What only a contract may do is in its place there.
            if looks.harm() && !is_intended && !case.is_contract() {
                self.missed.push(format!("{}\n    {:?}", case.sql, looks.0));
            }
            return;
        }
        self.judged += 1;
        for rule in rules {
            if looks.show(rule) {
                *self.shown.entry(rule).or_default() += 1;
            } else {
                self.wrong
                    .push(format!("{rule}: {}\n    {:?}", case.sql, looks.0));
            }
        }
    }
}

#[tokio::test]
async fn no_finding_of_the_corpus_is_a_false_alarm_and_no_silence_hides_harm() {
    let mut world = World::new();
    let mut tally = Tally::default();
    for case in corpus::read(corpus::POSTGRES) {
        let (rules, statements) = tally.claims(&case);
        let looks = world.look(&case, &statements, &rules).await;
        tally.judge(&case, rules, &looks);
    }
    let Tally {
        shown,
        judged,
        silent,
        advice,
        unread,
        wrong,
        missed,
    } = tally;
    let total: u32 = shown.values().sum();
    let by_rule: Vec<_> = shown
        .iter()
        .map(|(rule, count)| format!("{rule} {count}"))
        .collect();
    // The figures of docs/proof.md.
    eprintln!(
        "figure: {} false of {} findings of {} rules on {judged} statements, PostgreSQL 15 with {} rows; {} of {silent} statements without a finding do harm; {advice} advice, {unread} unread\n  {}",
        wrong.len(),
        total as usize + wrong.len(),
        shown.len(),
        row_count(),
        missed.len(),
        by_rule.join(" · ")
    );
    assert!(wrong.is_empty(), "false alarms:\n{}", wrong.join("\n"));
    assert!(missed.is_empty(), "missed:\n{}", missed.join("\n"));
    assert!(
        total >= 150 && shown.len() >= 35,
        "{total} findings of {} rules",
        shown.len()
    );
}
