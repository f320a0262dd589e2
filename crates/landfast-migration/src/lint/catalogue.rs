//! Every rule, once: what the output, the documentation pages and the tests are made from.

use serde::Serialize;

use crate::Engine;

/// How much a finding weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The migration is refused.
    Error,
    /// Somebody should look.
    Warning,
    /// Advice: it neither locks, nor rewrites, nor breaks anything.
    Notice,
}

/// One rule.
#[derive(Debug, PartialEq, Eq)]
pub struct Rule {
    /// `PG001`; it keeps its meaning for ever.
    pub id: &'static str,
    /// What it is about, in a few words.
    pub title: &'static str,
    /// How much it weighs.
    pub severity: Severity,
    /// Whether the release that still serves cannot live with it, so that only a contract migration may do it.
    pub contract_only: bool,
    /// What happens.
    pub why: &'static str,
    /// What to write instead.
    pub fix: &'static str,
    /// The names squawk has for it.
    pub squawk: &'static [&'static str],
}

impl Rule {
    /// The engine it is about.
    pub fn engine(&self) -> Engine {
        if self.id.starts_with("PG") {
            Engine::Postgres
        } else {
            Engine::Mariadb
        }
    }

    /// The rule of an id.
    pub fn find(id: &str) -> Option<&'static Self> {
        RULES.iter().find(|rule| rule.id == id)
    }
}

const fn rule(
    id: &'static str,
    kind: char,
    title: &'static str,
    why: &'static str,
    fix: &'static str,
    squawk: &'static [&'static str],
) -> Rule {
    let severity = match kind {
        'W' => Severity::Warning,
        'N' => Severity::Notice,
        _ => Severity::Error,
    };
    Rule {
        id,
        title,
        severity,
        contract_only: kind == 'C',
        why,
        fix,
        squawk,
    }
}

/// All rules, by id. `E` error, `W` warning, `N` advice, `C` allowed only in a contract migration.
pub static RULES: &[Rule] = &[
    rule(
        "PG001",
        'E',
        "an index is built while writes wait",
        "`CREATE INDEX` holds a SHARE lock on the table: every INSERT, UPDATE and DELETE waits until the index is built.",
        "`CREATE INDEX CONCURRENTLY` as the only statement of a file with `-- landfast: transaction=off`. The runner checks that the index is valid, and cleans up one that is not.",
        &["require-concurrent-index-creation"],
    ),
    rule(
        "PG002",
        'E',
        "an index is dropped while everything waits",
        "`DROP INDEX` takes an ACCESS EXCLUSIVE lock on the table: it waits for every running query, and every new query waits behind it.",
        "`DROP INDEX CONCURRENTLY` in a file with `-- landfast: transaction=off`.",
        &["require-concurrent-index-deletion", "ban-drop-index"],
    ),
    rule(
        "PG003",
        'E',
        "the statement cannot run in a transaction",
        "PostgreSQL refuses `CONCURRENTLY` and `VACUUM` inside a transaction, and in a string of several statements.",
        "Put `-- landfast: transaction=off` at the head of the file: each statement then is a step of its own.",
        &["ban-concurrent-index-creation-in-transaction"],
    ),
    rule(
        "PG004",
        'E',
        "an index is rebuilt while writes wait",
        "`REINDEX` holds SHARE on the table and ACCESS EXCLUSIVE on the index.",
        "`REINDEX INDEX CONCURRENTLY` in a file with `-- landfast: transaction=off`.",
        &["require-concurrent-reindex"],
    ),
    rule(
        "PG005",
        'W',
        "IF NOT EXISTS hides an invalid index",
        "A concurrent build that failed leaves an INVALID index of that name. `IF NOT EXISTS` then says \"already exists, skipping\", and the index is never used.",
        "Leave `IF NOT EXISTS` away. The runner finds out by itself whether the index is there and valid.",
        &[],
    ),
    rule(
        "PG010",
        'E',
        "a required column without a default",
        "`ADD COLUMN … NOT NULL` without a default fails on a table with rows, and breaks every INSERT of the release that does not know the column.",
        "Add it nullable or with a constant default; make it NOT NULL later (PG040).",
        &["adding-required-field", "ban-new-write-restriction"],
    ),
    rule(
        "PG012",
        'E',
        "the new column rewrites the table",
        "A volatile default, a stored generated column, an identity or a serial is computed for every row under ACCESS EXCLUSIVE.",
        "Add the column nullable, `ALTER COLUMN … SET DEFAULT` for new rows, and backfill the old ones with `-- landfast: batch=table.key`.",
        &["adding-field-with-default"],
    ),
    rule(
        "PG013",
        'W',
        "prepared queries fail once",
        "After `ADD COLUMN`, a prepared `SELECT *` of the serving release fails with \"cached plan must not change result type\" until it is prepared again; after a change of type, each prepared query that gives the column does.",
        "List the columns in queries, or have the application repeat the query once.",
        &["ban-add-column", "ban-add-composite-attribute"],
    ),
    rule(
        "PG020",
        'C',
        "a column is dropped",
        "The release that still serves reads or writes it.",
        "First release code that does not read it, then code that does not write it; drop it in a migration with `-- landfast: phase=contract`.",
        &["ban-drop-column", "ban-drop-generated-expression"],
    ),
    rule(
        "PG021",
        'E',
        "a column is renamed",
        "Either the old release or the new one does not find it.",
        "`landfast migrate rename-column` writes the pair: a new column kept in step by a trigger, a backfill, and the contract that drops the old one.",
        &["renaming-column"],
    ),
    rule(
        "PG022",
        'E',
        "a table is renamed",
        "Either the old release or the new one does not find it.",
        "Rename it and, in the same transaction, create an updatable view under the old name; drop the view in a contract migration. Then allow this rule with that reason.",
        &["renaming-table"],
    ),
    rule(
        "PG023",
        'C',
        "an object is dropped",
        "The release that still serves may use the table, view, type, function or schema, and its data cannot be brought back.",
        "In a contract migration, first rename it aside (`items` → `items_dropped`) for one retention period; drop it later.",
        &[
            "ban-drop-table",
            "ban-drop-view",
            "ban-drop-type",
            "ban-drop-function",
            "ban-drop-schema",
            "ban-drop-database",
            "ban-drop-sequence",
            "ban-drop-domain",
            "ban-drop-extension",
            "ban-drop-trigger",
            "ban-drop-policy",
            "ban-drop-constraint",
        ],
    ),
    rule(
        "PG024",
        'E',
        "an object moves or is renamed",
        "The release that still serves does not find it under the new name or in the new schema.",
        "Create the new object beside the old one, or a view under the old name; drop the old one in a contract migration.",
        &["ban-set-schema", "renaming-object"],
    ),
    rule(
        "PG030",
        'E',
        "the new type rewrites the table",
        "Changing a type (int → bigint, a shorter varchar) rewrites the table and its indexes under ACCESS EXCLUSIVE.",
        "Add a column of the new type, keep it in step with a trigger, backfill, and drop the old one in a contract migration: `landfast migrate rename-column` writes these.",
        &["changing-column-type"],
    ),
    rule(
        "PG032",
        'W',
        "timestamps change their meaning",
        "timestamp → timestamptz reads the old values in the session's time zone, and rewrites the table unless that is UTC.",
        "`SET LOCAL timezone = 'UTC'` before it, if the values are UTC; else a new column.",
        &[],
    ),
    rule(
        "PG040",
        'E',
        "NOT NULL scans the table",
        "`SET NOT NULL` reads every row under ACCESS EXCLUSIVE.",
        "`ADD CONSTRAINT c CHECK (column IS NOT NULL) NOT VALID`; in a later file `VALIDATE CONSTRAINT c`; then `SET NOT NULL`, which takes the proof from the check; then drop the check.",
        &["adding-not-nullable-field"],
    ),
    rule(
        "PG041",
        'W',
        "nulls or defaults appear",
        "Code that serves meets nulls it did not expect, or loses a default it relied on.",
        "Release code that copes with both first.",
        &["ban-drop-not-null", "ban-drop-default", "ban-set-default"],
    ),
    rule(
        "PG050",
        'E',
        "a check scans the table",
        "Adding a CHECK, or validating it in the transaction that added it, reads every row under ACCESS EXCLUSIVE.",
        "`NOT VALID` in one file, `VALIDATE CONSTRAINT` in a later one: validating alone blocks nobody.",
        &["constraint-missing-not-valid"],
    ),
    rule(
        "PG051",
        'E',
        "a foreign key blocks writes on both tables",
        "Both tables are locked against writes while every row is checked. For a new column without a default there is nothing to check, but both locks are taken together and wait behind every transaction on either table.",
        "`NOT VALID` in one file, `VALIDATE CONSTRAINT` in a later one; an inline `REFERENCES` becomes a column and a constraint of its own.",
        &[
            "adding-foreign-key-constraint",
            "constraint-missing-not-valid",
        ],
    ),
    rule(
        "PG052",
        'E',
        "a unique constraint builds its index while everything waits",
        "The index behind it is built under ACCESS EXCLUSIVE.",
        "`CREATE UNIQUE INDEX CONCURRENTLY`, then `ADD CONSTRAINT … UNIQUE USING INDEX`.",
        &[
            "disallowed-unique-constraint",
            "constraint-missing-not-valid",
        ],
    ),
    rule(
        "PG053",
        'E',
        "a primary key builds its index while everything waits",
        "The index is built, and NOT NULL is checked, under ACCESS EXCLUSIVE.",
        "`CREATE UNIQUE INDEX CONCURRENTLY` on columns that are NOT NULL already, then `ADD PRIMARY KEY USING INDEX`.",
        &[
            "adding-serial-primary-key-field",
            "constraint-missing-not-valid",
        ],
    ),
    rule(
        "PG054",
        'E',
        "an exclusion constraint scans the table",
        "It builds its index under ACCESS EXCLUSIVE, and there is no concurrent way.",
        "Do it in a maintenance window.",
        &["constraint-missing-not-valid"],
    ),
    rule(
        "PG060",
        'W',
        "an enum grows",
        "The new value cannot be used in the same transaction, and the release that still serves may read it.",
        "Add it in an expand migration; write it only after the old release is gone.",
        &["require-enum-value-ordering", "ban-add-enum-value"],
    ),
    rule(
        "PG061",
        'E',
        "a domain's constraint scans every table that uses it",
        "All columns of that domain are read while locked.",
        "Put a CHECK on the tables (PG050).",
        &[
            "ban-alter-domain-with-add-constraint",
            "ban-create-domain-with-constraint",
        ],
    ),
    rule(
        "PG070",
        'E',
        "the table is rewritten",
        "`VACUUM FULL`, `CLUSTER`, `SET TABLESPACE` and `SET LOGGED` copy the whole table under ACCESS EXCLUSIVE.",
        "pg_repack, or a maintenance window.",
        &["prefer-repack"],
    ),
    rule(
        "PG071",
        'W',
        "readers of the view wait",
        "`REFRESH MATERIALIZED VIEW` holds ACCESS EXCLUSIVE on it until it is filled.",
        "A unique index on the view, and `REFRESH MATERIALIZED VIEW CONCURRENTLY`.",
        &[],
    ),
    rule(
        "PG072",
        'E',
        "the table is locked or emptied",
        "`LOCK TABLE` and `TRUNCATE` take ACCESS EXCLUSIVE; what is truncated is gone.",
        "Delete in batches with `-- landfast: batch=table.key`.",
        &["ban-truncate-cascade"],
    ),
    rule(
        "PG073",
        'E',
        "every row is written in one transaction",
        "Row locks are held for seconds per 100,000 rows, the table bloats, and replicas fall behind.",
        "`-- landfast: batch=table.key` and `WHERE key > :from AND key <= :to`: the runner goes through it in ranges and takes up where it stopped.",
        &[],
    ),
    rule(
        "PG074",
        'E',
        "detaching a partition blocks the parent",
        "`DETACH PARTITION` holds ACCESS EXCLUSIVE on the parent.",
        "`DETACH PARTITION … CONCURRENTLY` in a file with `-- landfast: transaction=off`.",
        &["require-concurrent-partition-detach"],
    ),
    rule(
        "PG080",
        'W',
        "writes wait for the trigger, then run it",
        "`CREATE TRIGGER` holds SHARE ROW EXCLUSIVE for an instant; from then on every write of the serving release runs it.",
        "Test the trigger with the serving release's writes.",
        &["ban-disable-trigger"],
    ),
    rule(
        "PG081",
        'C',
        "rows or rights may vanish",
        "Row level security, a policy on a table that has it, or a REVOKE hides rows from the release that still serves.",
        "Give each release a role of its own; switch in a contract migration.",
        &[
            "ban-alter-row-level-security",
            "ban-create-policy",
            "ban-revoke",
            "ban-alter-policy-condition",
            "ban-alter-policy-roles",
        ],
    ),
    rule(
        "PG082",
        'W',
        "a view or function changes under the serving release",
        "`CREATE OR REPLACE` takes effect for both releases at once.",
        "Create it under a versioned name.",
        &["ban-replace-view-function"],
    ),
    rule(
        "PG090",
        'E',
        "the wait for a lock has no bound",
        "A statement that waits for a lock makes every later query on the table wait behind it.",
        "Leave `lock_timeout` to the runner (2 s, then again), or choose up to 10 s.",
        &[],
    ),
    rule(
        "PG091",
        'W',
        "two tables are locked in one transaction",
        "Locks are held together until the end, and two such transactions can deadlock.",
        "One table per file.",
        &[],
    ),
    rule(
        "PG092",
        'E',
        "the file steers transactions itself",
        "The runner records a step and its effect in one transaction; a `COMMIT` inside tears them apart.",
        "Leave `BEGIN` and `COMMIT` away, or write `-- landfast: transaction=off`.",
        &["transaction-nesting", "ban-uncommitted-transaction"],
    ),
    rule(
        "PG093",
        'E',
        "a crash in it could not be decided",
        "Outside a transaction nobody can tell after a crash whether this statement took effect.",
        "Name the index; one statement per file.",
        &[],
    ),
    rule(
        "PG094",
        'E',
        "history and files contradict each other",
        "A file was edited or lost after it ran, came in behind one that has run, or a number is missing.",
        "Restore the file, or give the new one the next free number.",
        &[],
    ),
    rule(
        "PG100",
        'W',
        "the statement could not be read",
        "No rule could look at it.",
        "Try it on a copy of the database, which knows what it means.",
        &[],
    ),
    rule(
        "PG101",
        'N',
        "the type has a narrower cousin's limits",
        "Integers run out at 2³¹; char(n) pads; varchar(n) needs a migration to grow; timestamp has no zone; serial leaves its sequence behind.",
        "bigint, text, timestamptz, `GENERATED … AS IDENTITY`.",
        &[
            "prefer-bigint-over-int",
            "prefer-bigint-over-smallint",
            "prefer-text-field",
            "ban-char-field",
            "prefer-timestamp-tz",
            "prefer-identity",
            "ban-alter-identity",
        ],
    ),
    rule(
        "PG102",
        'W',
        "the statement does not mean what it says",
        "A name longer than 63 bytes is cut; a column assigned twice is refused.",
        "Shorten the name; assign once.",
        &["identifier-too-long", "ban-duplicate-column-assignments"],
    ),
    rule(
        "MY001",
        'E',
        "the statement asks for a copy or a lock",
        "`ALGORITHM=COPY`, `LOCK=SHARED` and `LOCK=EXCLUSIVE` block writes for as long as the table is large.",
        "Leave both away: the runner asks for INSTANT, then NOCOPY, then INPLACE with LOCK=NONE, and refuses the rest.",
        &[],
    ),
    rule(
        "MY002",
        'W',
        "a column appears",
        "`INSERT` without a column list fails, and `SELECT *` gives one column more.",
        "List the columns in the serving release first.",
        &[],
    ),
    rule(
        "MY003",
        'E',
        "a required column without a default",
        "In strict mode every INSERT of the release that does not know the column fails.",
        "Give it a default, or make it nullable.",
        &[],
    ),
    rule(
        "MY004",
        'E',
        "a stored column copies the table",
        "A stored generated column is computed for every row while writes wait.",
        "A virtual column, or an ordinary one kept by a trigger.",
        &[],
    ),
    rule(
        "MY010",
        'C',
        "a column or table is dropped",
        "The release that still serves reads or writes it.",
        "Drop it in a migration with `-- landfast: phase=contract`.",
        &[],
    ),
    rule(
        "MY011",
        'E',
        "a column is renamed",
        "Either the old release or the new one does not find it.",
        "`landfast migrate rename-column` writes the pair: a new column kept in step by triggers, a backfill, and the contract.",
        &[],
    ),
    rule(
        "MY012",
        'E',
        "a table is renamed",
        "Either the old release or the new one does not find it.",
        "Create a view under the old name in the next statement, and allow this rule with that reason.",
        &[],
    ),
    rule(
        "MY020",
        'E',
        "the new type copies the table",
        "int → bigint, a shorter varchar, or a varchar that crosses 255 bytes is copied row by row while writes wait.",
        "A new column, a trigger, a backfill, then the contract.",
        &[],
    ),
    rule(
        "MY022",
        'W',
        "an enum changes",
        "Values appended at the end are instant, but the serving release may read them; inserted or reordered ones copy the table.",
        "Append at the end; write the value only after the old release is gone.",
        &[],
    ),
    rule(
        "MY023",
        'E',
        "the character set copies the table",
        "`CONVERT TO` and a column's new character set copy every row while writes wait, and change what is equal.",
        "A new column or a maintenance window.",
        &[],
    ),
    rule(
        "MY030",
        'W',
        "nullability rebuilds the table",
        "The table is rebuilt in place, and rows with NULL make it fail at the end.",
        "Look for such rows first; expect the room of a second table.",
        &[],
    ),
    rule(
        "MY040",
        'W',
        "an index is built in place",
        "Writes go on, but duplicates make a unique index fail at the very end, and replicas lag for as long.",
        "Look for duplicates first.",
        &[],
    ),
    rule(
        "MY041",
        'E',
        "a fulltext or spatial index blocks writes",
        "The server accepts no less than LOCK=SHARED for it.",
        "A maintenance window.",
        &[],
    ),
    rule(
        "MY050",
        'E',
        "a foreign key copies the table",
        "With `foreign_key_checks=1` the server copies the table while writes wait.",
        "`SET foreign_key_checks=0` before it in the same file, then a query for orphans.",
        &[],
    ),
    rule(
        "MY051",
        'E',
        "a check copies the table",
        "The server copies the table while writes wait.",
        "Check in the application, or a maintenance window.",
        &[],
    ),
    rule(
        "MY052",
        'E',
        "an inline REFERENCES is read in two ways",
        "MySQL takes it and does nothing; MariaDB makes a foreign key of it and copies the table.",
        "A constraint of its own (MY050).",
        &[],
    ),
    rule(
        "MY060",
        'W',
        "the table is rebuilt",
        "`ENGINE=`, `ROW_FORMAT=` and `FORCE` rebuild the table in place: writes go on, room for a second table is needed.",
        "Do it at a quiet hour.",
        &[],
    ),
    rule(
        "MY070",
        'E',
        "there is no transaction around it",
        "Each DDL statement commits by itself, along with the INSERT before it: a ROLLBACK takes nothing back.",
        "Leave `BEGIN`, `COMMIT` and `ROLLBACK` away; put rows in a file of their own.",
        &[],
    ),
    rule(
        "MY071",
        'E',
        "the wait for a lock has no bound",
        "`lock_wait_timeout` is a day by default; a waiting ALTER makes every later query on the table wait behind it.",
        "Leave it to the runner (2 s, then again), or choose up to 10 s.",
        &[],
    ),
    rule(
        "MY072",
        'E',
        "every row is written at once",
        "An UPDATE or DELETE without bound, a TRUNCATE or a LOCK TABLES blocks writers, and replicas fall behind.",
        "`-- landfast: batch=table.key` and `WHERE key > :from AND key <= :to`.",
        &[],
    ),
    rule(
        "MY100",
        'W',
        "the statement could not be read",
        "No rule could look at it.",
        "Try it on a copy of the database, which knows what it means.",
        &[],
    ),
];

/// What squawk reports by default and Landfast does not, with the reason.
pub static EXCUSED: &[(&str, &str)] = &[
    (
        "prefer-robust-stmts",
        "each step is recorded before and after it and probed after a crash; IF NOT EXISTS would hide an invalid index (PG005)",
    ),
    (
        "require-lock-timeout",
        "the runner sets it before each statement (PG090 looks at what changes it)",
    ),
    (
        "require-statement-timeout",
        "the runner sets it before each statement",
    ),
    (
        "require-timeout-settings",
        "the runner sets them before each statement",
    ),
    (
        "unused-ignore",
        "suppression is a header of Landfast's own, with a reason",
    ),
];
