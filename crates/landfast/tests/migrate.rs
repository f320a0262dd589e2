//! `landfast migrate`: files of migrations are written and judged without a server or a database.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    unreachable_pub,
    dead_code,
    reason = "a test fails where it unwraps, and helpers are shared by several tests"
)]

mod support;

use std::{fs, path::Path};

use support::landfast;

const MANIFEST: &str = r#"
app = "shop"

[services.api]
artifact = "build"
command = ["./serve"]
port = 3000
uses = ["main"]

[stores.main]
engine = "ENGINE"
migrations = "migrations"
"#;

/// Exit code, stdout and stderr.
fn run(folder: &Path, arguments: &[&str]) -> (i32, String, String) {
    let output = landfast(folder).args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code().unwrap(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

fn shop(engine: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(
        folder.path().join("landfast.toml"),
        MANIFEST.replace("ENGINE", engine),
    )
    .unwrap();
    folder
}

fn migration(folder: &Path, name: &str, text: &str) {
    fs::create_dir_all(folder.join("migrations")).unwrap();
    fs::write(folder.join("migrations").join(name), text).unwrap();
}

#[test]
fn lint_names_the_line_the_rule_and_the_way_out() {
    let folder = shop("postgres");
    let folder = folder.path();
    migration(
        folder,
        "0001_items.sql",
        "CREATE TABLE items (id bigint PRIMARY KEY);\n",
    );
    migration(
        folder,
        "0002_index.sql",
        "\nCREATE INDEX items_id ON items (id);\n",
    );
    // In one run the table is new, so nobody waits.
    let (code, _, said) = run(folder, &["migrate", "lint"]);
    assert_eq!(
        (code, said.contains("migrations: 2 migrations, no findings")),
        (0, true),
        "{said}"
    );
    let (code, _, said) = run(folder, &["migrate", "lint", "--from", "2"]);
    assert_eq!(code, 3, "{said}");
    for part in [
        "error[PG001]",
        "0002_index.sql:2:1",
        "CREATE INDEX CONCURRENTLY",
        "refused: 1 error",
    ] {
        assert!(said.contains(part), "{part} in {said}");
    }
    let (code, json, _) = run(folder, &["migrate", "lint", "--from", "2", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (
            code,
            json["findings"][0]["rule"].as_str(),
            json["engine"].as_str()
        ),
        (3, Some("PG001"), Some("postgres"))
    );
    let (code, sarif, _) = run(folder, &["migrate", "lint", "--from", "2", "--sarif"]);
    let sarif: serde_json::Value = serde_json::from_str(&sarif).unwrap();
    let result = &sarif["runs"][0]["results"][0];
    assert_eq!((code, result["ruleId"].as_str()), (3, Some("PG001")));
    assert_eq!(
        result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"],
        "migrations/0002_index.sql"
    );
}

#[test]
fn new_takes_the_next_number_and_never_replaces_a_file() {
    let folder = shop("postgres");
    let folder = folder.path();
    assert_eq!(run(folder, &["migrate", "new", "add_price"]).0, 0);
    assert!(folder.join("migrations/0001_add_price.down.sql").is_file());
    // A file without a statement is said to be so.
    let (code, _, said) = run(folder, &["migrate", "lint"]);
    assert_eq!(
        (code, said.contains("there is no statement in the file")),
        (3, true),
        "{said}"
    );
    migration(folder, "0001_add_price.sql", "CREATE TABLE a (b bigint);\n");
    migration(folder, "0001_add_price.down.sql", "DROP TABLE a;\n");
    assert_eq!(
        run(
            folder,
            &["migrate", "new", "drop_old", "--phase", "contract"]
        )
        .0,
        0
    );
    let text = fs::read_to_string(folder.join("migrations/0002_drop_old.sql")).unwrap();
    assert_eq!(text, "-- landfast: phase=contract\n");
    assert_eq!(run(folder, &["migrate", "new", "Not A Name"]).0, 2);
}

#[test]
fn rename_column_writes_what_its_own_lint_lets_through() {
    for engine in ["postgres", "mariadb"] {
        let folder = shop(engine);
        let folder = folder.path();
        migration(
            folder,
            "0001_items.sql",
            "CREATE TABLE items (id bigint PRIMARY KEY, mail varchar(50));\n",
        );
        let rename = [
            "migrate",
            "rename-column",
            "items",
            "mail",
            "email",
            "--type",
            "varchar(50)",
        ];
        let (code, _, said) = run(folder, &rename);
        assert_eq!(code, 0, "{said}");
        assert!(
            said.contains("wrote migrations/0004_rename_items_mail_contract.sql"),
            "{said}"
        );
        let (code, _, said) = run(folder, &["migrate", "lint", "--from", "2"]);
        assert_eq!(code, 0, "{engine}: {said}");
    }
}

#[test]
fn says_which_migrations_are_meant_or_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    migration(folder, "0001_a.sql", "CREATE INDEX i ON a (b);\n");
    let (code, _, said) = run(folder, &["migrate", "lint"]);
    assert_eq!((code, said.contains("landfast.toml")), (2, true), "{said}");
    let without = [
        "migrate",
        "lint",
        "--folder",
        "migrations",
        "--engine",
        "mariadb",
    ];
    let (code, _, said) = run(folder, &without);
    assert_eq!((code, said.contains("warning[MY040]")), (0, true), "{said}");
    migration(folder, "0003_b.sql", "SELECT 1;\n");
    let (code, _, said) = run(folder, &without);
    assert_eq!(
        (code, said.contains("number 0002 is missing")),
        (3, true),
        "{said}"
    );
}
