//! What a person sees: arguments in; stdout, stderr and exit code out.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    unreachable_pub,
    dead_code,
    reason = "a test fails where it unwraps, and helpers are shared by several tests"
)]

mod support;

use std::{fs, path::Path};

use insta::assert_snapshot;
use support::{landfast, server::Server, transcript, written};

const MANIFEST: &str = r#"
app = "APP"

[services.api]
artifact = "build"
command = ["./serve"]
port = 3000
replicas = 2
health = { ready = "http:/ready" }

[routes.public]
host = "shop.example"
service = "api"
"#;

/// Each line with a comment is an error of its own.
const TEN_ERRORS: &str = r#"
app = "Shop"                        # 1: upper case
colour = "blue"                     # 2: unknown key

[services.api]
artifact = "build"
command = "./serve"                 # 3: no list
port = 99999                        # 4: out of range
replicas = -1                       # 5: below zero
drain = 30                          # 6: no unit
resources = { memory = "lots" }     # 7: no size

[routes.public]
host = "http://shop.example"        # 8: no host name
service = "apo"                     # 9: leads nowhere

[deploy]
strategy = "yolo"                   # 10: not a word it knows
"#;

fn app(folder: &Path, name: &str) {
    fs::write(folder.join("landfast.toml"), MANIFEST.replace("APP", name)).unwrap();
    fs::create_dir_all(folder.join("build/assets")).unwrap();
    fs::write(folder.join("build/serve"), "#!/bin/true\n").unwrap();
    fs::write(folder.join("build/assets/a.css"), "a {}\n").unwrap();
}

/// Deploys an app against the scripted server.
fn deploy(name: &str, more: &[&str]) -> (Server, String) {
    let server = Server::start();
    app(server.folder(), name);
    let socket = server.socket();
    let arguments = [&["deploy"], more].concat();
    let mut command = landfast(server.folder());
    command.args(&arguments).arg("--socket").arg(socket);
    let text = written(&arguments, &command.output().unwrap());
    (server, text)
}

macro_rules! settled {
    ($text:expr) => {
        insta::with_settings!({ filters => vec![
            (r"(?m)^\d\d:\d\d:\d\d ", "HH:MM:SS "),
            (r"/tmp/[^\s:`]*", "[folder]"),
        ] }, { assert_snapshot!($text) })
    };
}

#[test]
fn says_what_to_do_without_a_manifest() {
    let folder = tempfile::tempdir().unwrap();
    settled!(transcript(folder.path(), &["plan"]));
}

#[test]
fn says_what_to_do_without_a_server() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["status", "--app", "shop", "--socket", "no.sock"];
    settled!(transcript(folder.path(), &arguments));
}

#[test]
fn says_it_as_json_when_asked() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["status", "--app", "shop", "--socket", "no.sock", "--json"];
    settled!(transcript(folder.path(), &arguments));
    let text = transcript(folder.path(), &["deploy", "--bogus", "--json"]);
    assert!(text.contains("\nexit 2\n--- stderr\n{\"error\":"), "{text}");
}

#[test]
fn shows_ten_errors_at_once() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("landfast.toml"), TEN_ERRORS).unwrap();
    let text = transcript(folder.path(), &["check"]);
    assert!(text.contains("10 errors"), "{text}");
    settled!(text);
    let output = landfast(folder.path())
        .args(["deploy", "--json"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3));
    let error: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(
        error["diagnostics"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|one| one["severity"] == "error")
            .count(),
        10
    );
    assert!(output.stdout.is_empty());
}

#[test]
fn a_missing_artifact_is_named_before_a_server_is_looked_for() {
    let folder = tempfile::tempdir().unwrap();
    app(folder.path(), "shop");
    fs::remove_dir_all(folder.path().join("build")).unwrap();
    settled!(transcript(folder.path(), &["deploy"]));
}

#[test]
fn a_deploy_ends_when_the_new_release_serves() {
    let (server, text) = deploy("shop", &[]);
    settled!(text);
    let key = server.world.key.lock().unwrap().clone();
    assert!(key.is_some_and(|key| key.len() == 32));
}

#[test]
fn a_deploy_prints_events_as_lines_where_nothing_is_drawn() {
    let (_, text) = deploy("talks", &[]);
    assert!(text.contains(" api.r5.9 is ready\n"), "{text}");
}

#[test]
fn a_deploy_of_nothing_new_does_nothing() {
    settled!(deploy("same", &[]).1);
}

#[test]
fn a_deploy_that_was_taken_back_says_why() {
    settled!(deploy("broken", &[]).1);
}

#[test]
fn a_deploy_that_parked_says_both_ways_out() {
    settled!(deploy("parks", &[]).1);
}

#[test]
fn a_deploy_that_a_gate_refused_has_its_own_code() {
    let (_, text) = deploy("refuses", &[]);
    assert!(text.contains("exit 8\n"), "{text}");
}

#[test]
fn a_moving_rollout_refuses_and_is_named() {
    settled!(deploy("moves", &[]).1);
}

#[test]
fn a_taken_route_names_its_owner() {
    settled!(deploy("taken", &[]).1);
}

#[test]
fn a_deploy_as_json_prints_the_rollout_alone() {
    let (_, text) = deploy("shop", &["--json"]);
    let json = text.split_once("--- stdout\n").unwrap().1;
    let rollout: serde_json::Value = serde_json::from_str(json).unwrap();
    assert_eq!(
        (rollout["state"].as_str(), rollout["id"].as_u64()),
        (Some("promoted"), Some(7))
    );
}

#[test]
fn a_secret_comes_from_stdin_byte_for_byte() {
    let server = Server::start();
    app(server.folder(), "shop");
    let mut command = landfast(server.folder());
    command
        .args(["secret", "set", "API_KEY", "--socket"])
        .arg(server.socket());
    let output = command
        .write_stdin(b"p\xc3\xa4ss word \n".as_slice())
        .output()
        .unwrap();
    let text = written(&["secret", "set", "API_KEY"], &output);
    assert!(!text.contains("word"), "{text}");
    settled!(text);
    let secret = server.world.secret.lock().unwrap().clone();
    assert_eq!(secret.as_deref(), Some(b"p\xc3\xa4ss word ".as_slice()));
}

#[test]
fn a_command_beside_an_instance_ends_with_its_own_code() {
    let server = Server::start();
    app(server.folder(), "shop");
    let mut command = landfast(server.folder());
    command
        .args(["exec", "-i", "--socket"])
        .arg(server.socket());
    command.args(["api", "--", "./x", "--json", "a b"]);
    let output = command.write_stdin("in").output().unwrap();
    assert_eq!(output.status.code(), Some(42));
    assert_eq!(output.stdout, b"./x|--json|a b");
    assert_eq!(output.stderr, b"in");
}

#[test]
fn logs_tell_the_streams_apart_without_colour() {
    let server = Server::start();
    app(server.folder(), "shop");
    let mut command = landfast(server.folder());
    command
        .args(["logs", "api.r4.1", "-n", "5", "--socket"])
        .arg(server.socket());
    settled!(written(
        &["logs", "api.r4.1", "-n", "5"],
        &command.output().unwrap()
    ));
}

#[test]
fn an_environment_nobody_knows_has_its_own_code() {
    let server = Server::start();
    let mut command = landfast(server.folder());
    command
        .args(["history", "--app", "shop", "--socket"])
        .arg(server.socket());
    assert_eq!(command.output().unwrap().status.code(), Some(9));
}

#[test]
fn init_writes_a_manifest_that_is_valid() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(
        folder.path().join("package.json"),
        r#"{"name":"x","scripts":{"start":"node ."}}"#,
    )
    .unwrap();
    let init = |more: &[&str]| {
        landfast(folder.path())
            .args(["init", "--name", "shop"])
            .args(more)
            .output()
            .unwrap()
    };
    assert_eq!(init(&[]).status.code(), Some(0));
    let text = fs::read_to_string(folder.path().join("landfast.toml")).unwrap();
    assert!(text.contains("app = \"shop\""), "{text}");
    let check = landfast(folder.path()).arg("check").output().unwrap();
    assert_eq!(
        check.status.code(),
        Some(0),
        "{}\n{text}",
        String::from_utf8_lossy(&check.stderr)
    );
    assert_eq!(
        init(&[]).status.code(),
        Some(1),
        "it replaced a manifest unasked"
    );
    assert_eq!(init(&["--force"]).status.code(), Some(0));
}

#[test]
fn exit_codes_are_a_topic_of_help() {
    let folder = tempfile::tempdir().unwrap();
    settled!(transcript(folder.path(), &["help", "exit-codes"]));
}

#[test]
fn the_help_of_every_command_has_an_example() {
    let folder = tempfile::tempdir().unwrap();
    let reference = landfast(folder.path()).arg("reference").output().unwrap();
    let reference = String::from_utf8(reference.stdout).unwrap();
    let sections = reference
        .split("\n## `landfast ")
        .skip(1)
        .collect::<Vec<_>>();
    assert!(sections.len() > 25, "{}", sections.len());
    for section in sections {
        let (name, help) = section.split_once('`').unwrap();
        assert!(
            help.contains("Example:\n  landfast "),
            "{name} has no example"
        );
    }
}

/// `UPDATE_DOCS=1 cargo test -p landfast` writes it.
#[test]
fn the_committed_reference_is_this_one() {
    let committed = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/cli.md");
    let folder = tempfile::tempdir().unwrap();
    let reference = landfast(folder.path()).arg("reference").output().unwrap();
    let reference = String::from_utf8(reference.stdout).unwrap();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(committed, &reference).unwrap();
    }
    let text = fs::read_to_string(committed).unwrap_or_default();
    assert!(
        text == reference,
        "docs/reference/cli.md is old: run this test with UPDATE_DOCS=1"
    );
}

#[test]
fn a_manifest_that_cannot_be_read_says_which_line_and_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let text = b"app = \"shop\"\n# caf\xe9\n";
    fs::write(folder.path().join("landfast.toml"), text).unwrap();
    let shown = transcript(folder.path(), &["check"]);
    assert!(shown.contains("exit 3"), "{shown}");
    assert!(
        shown.contains("`landfast.toml` is not UTF-8 in line 2"),
        "{shown}"
    );
    let shown = transcript(folder.path(), &["check", "--file", "."]);
    assert!(
        shown.contains("exit 2") && shown.contains("hint:"),
        "{shown}"
    );
}
