//! Journals of released versions: each is opened, replayed and continued by this build.
//!
//! `tests/journals/<version>/` holds the state folder of a server of that version (journal and artifacts, nothing else), and
//! `expected.json`, what its command line said of it. Before a version is released its folder is written by
//! `cargo test -p landfast --test journals -- --ignored`, and committed; it is never changed afterwards.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    unreachable_pub,
    dead_code,
    reason = "a test fails where it unwraps, and helpers are shared by several tests"
)]

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use support::host::Host;

const MANIFEST: &str = r#"
app = "shop"

[services.api]
artifact = "build"
command = ["./app.py", "serve"]
port = 3000
env = { COLOUR = "green" }
health = { ready = "http:/ready", interval = "200ms" }
drain = "2s"
grace = "2s"

[routes.public]
host = "shop.example"
service = "api"

[deploy]
strategy = "rolling"
min_ready = "200ms"
standby = "1s"
healthy_deadline = "5s"

[environments.production]

[environments.staging]
routes.public.host = "staging.shop.example"
"#;

const HOST: &str = "shop.example";

fn journals() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/journals")
}

/// What must be read back the same: releases and rollouts with their ends.
fn told(host: &Host, app: &Path) -> Value {
    let history = host.json(app, &["history", "--limit", "100"]);
    let rollouts = history["rollouts"].as_array().unwrap();
    let rollouts: Vec<Value> = rollouts
        .iter()
        .map(|rollout| {
            json!({ "id": rollout["id"], "to": rollout["to"], "state": rollout["state"], "strategy": rollout["strategy"] })
        })
        .collect();
    let (production, staging) = (
        host.json(app, &["status"]),
        host.json(app, &["status", "-e", "staging"]),
    );
    let serves = [&production["release"], &staging["release"]];
    assert!(serves.iter().all(|release| release.is_u64()), "{serves:?}");
    json!({ "rollouts": rollouts, "serves": serves, "scale": production["scale_overrides"] })
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&source, &target);
        } else {
            fs::copy(&source, &target).unwrap();
        }
    }
}

#[test]
fn every_released_journal_is_opened_replayed_and_continued() {
    let mut versions: Vec<PathBuf> = fs::read_dir(journals())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    versions.sort();
    assert!(!versions.is_empty());
    for version in versions {
        let mut host = Host::stopped();
        copy_folder(&version.join("state"), &host.path("state"));
        host.start_server();
        let app = host.app("shop", MANIFEST);
        let expected: Value =
            serde_json::from_slice(&fs::read(version.join("expected.json")).unwrap()).unwrap();
        assert_eq!(told(&host, &app), expected, "{}", version.display());
        // What it ran is run again, from the artifacts it had.
        host.until("the release that was current serves", || {
            host.get(HOST, "/") == (200, "2".to_owned())
        });
        assert_eq!(host.get(HOST, "/env/COLOUR"), (200, "green".to_owned()));
        // And it goes on from there, back as well as forth.
        host.build(&app, "9", "");
        host.expect(&app, &["deploy", "--wait", "seal"], 0);
        assert_eq!(host.get(HOST, "/"), (200, "9".to_owned()));
        host.expect(&app, &["rollback", "--wait", "seal"], 0);
        assert_eq!(host.get(HOST, "/"), (200, "2".to_owned()));
    }
}

/// Rollouts of several kinds and ends, two environments.
#[test]
#[ignore = "writes the journal of a version that is about to be released"]
fn write_the_journal_of_this_version() {
    let folder = journals().join(env!("CARGO_PKG_VERSION"));
    assert!(!folder.exists(), "a released journal is never changed");
    let mut host = Host::start();
    let app = host.app("shop", MANIFEST);
    host.expect(&app, &["deploy", "--wait", "seal"], 0);
    host.build(&app, "2", "");
    host.expect(
        &app,
        &["deploy", "--strategy", "blue-green", "--wait", "seal"],
        0,
    );
    host.build(&app, "3", "never-ready");
    host.expect(&app, &["deploy"], 5);
    host.build(&app, "4", "");
    host.expect(&app, &["deploy", "--wait", "seal"], 0);
    host.expect(&app, &["rollback", "--wait", "seal"], 0);
    host.expect(&app, &["restart", "--wait", "seal"], 0);
    host.expect(&app, &["scale", "api", "2"], 0);
    host.expect(&app, &["deploy", "-e", "staging", "--wait", "seal"], 0);
    let expected = told(&host, &app);
    host.kill_server();
    let state = folder.join("state");
    fs::create_dir_all(&state).unwrap();
    for name in ["journal.sqlite", "journal.sqlite-wal"] {
        if host.path("state").join(name).exists() {
            fs::copy(host.path("state").join(name), state.join(name)).unwrap();
        }
    }
    copy_folder(&host.path("state/store"), &state.join("store"));
    let text = serde_json::to_string_pretty(&expected).unwrap();
    fs::write(folder.join("expected.json"), text + "\n").unwrap();
}
