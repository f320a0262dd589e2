//! The whole thing: the real command line, the real server and proxy, a real application.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    unreachable_pub,
    dead_code,
    reason = "a test fails where it unwraps, and helpers are shared by several tests"
)]

mod support;

use std::fs;

use serde_json::Value;
use support::host::Host;

/// Short times, so that the test ends; what they mean is tested where they are decided.
const MANIFEST: &str = r#"
app = "shop"

[services.api]
artifact = "build"
command = ["./app.py", "serve"]
port = 3000
replicas = 2
health = { ready = "http:/ready", interval = "200ms" }
drain = "2s"
grace = "2s"

[jobs.fail]
artifact = "build"
command = ["./app.py", "fail"]

[routes.public]
host = "shop.example"
service = "api"

[deploy]
strategy = "rolling"
min_ready = "200ms"
standby = "1h"
healthy_deadline = "10s"
"#;

const HOST: &str = "shop.example";

/// `to state`, newest first.
fn rollouts(history: &Value) -> Vec<String> {
    let rollouts = history["rollouts"].as_array().cloned().unwrap_or_default();
    let text = |rollout: &Value| {
        let state = rollout["state"].as_str().unwrap_or("?");
        format!("{} {state}", rollout["to"])
    };
    rollouts.iter().map(text).collect()
}

fn instances(status: &Value) -> Vec<String> {
    let groups = status["services"][0]["groups"].as_array().cloned();
    let groups = groups.unwrap_or_default();
    let instances = groups
        .iter()
        .flat_map(|group| group["instances"].as_array().cloned().unwrap_or_default());
    instances
        .map(|instance| instance["id"].as_str().unwrap_or("?").to_owned())
        .collect()
}

#[test]
fn every_command_does_what_it_says() {
    let host = Host::start();
    let app = host.app("shop", MANIFEST);
    host.expect(&app, &["check"], 0);
    let plan = host.expect(&app, &["plan"], 0);
    assert!(plan.contains("release 1, the first"), "{plan}");
    host.expect(&app, &["deploy"], 0);
    assert_eq!(host.get(HOST, "/"), (200, "1".to_owned()));
    // Nothing changed: no new release, and not an error.
    let again = host.expect(&app, &["deploy"], 0);
    assert!(again.contains("nothing differs from release 1"), "{again}");

    host.expect(&app, &["scale", "api", "3"], 0);
    host.until("three instances", || {
        instances(&host.json(&app, &["status"])).len() == 3
    });
    let plan = host.expect(&app, &["plan"], 0);
    assert!(plan.contains("3 by `landfast scale`"), "{plan}");
    host.expect(&app, &["scale", "api", "manifest"], 0);
    host.until("two instances", || {
        instances(&host.json(&app, &["status"])).len() == 2
    });

    let before = instances(&host.json(&app, &["status"]));
    host.expect(&app, &["restart"], 0);
    let after = instances(&host.json(&app, &["status"]));
    let new = after.iter().filter(|id| !before.contains(id));
    assert_eq!(new.count(), 2, "{after:?}");

    // Straight after, while the restart still lets old instances go.
    host.expect(&app, &["stop", "--reason", "a test"], 0);
    assert_eq!(host.get(HOST, "/").0, 503);
    host.expect(&app, &["restart"], 11);
    host.expect(&app, &["start"], 0);
    assert_eq!(host.get(HOST, "/"), (200, "1".to_owned()));

    let routes = host.expect(&app, &["routes"], 0);
    assert!(routes.contains("shop.example/"), "{routes}");
    let logs = host.expect(&app, &["logs", "api"], 0);
    assert!(logs.contains("serving 1"), "{logs}");
    let said = host.expect(&app, &["exec", "api", "--", "/bin/echo", "here"], 0);
    assert_eq!(said, "here\n");
    host.expect(&app, &["exec", "api", "--", "nope"], 127);
    host.expect(&app, &["logs", "nope"], 9);
    let said = host.expect(&app, &["run", "fail"], 3);
    assert_eq!(said, "failing on purpose\n");
}

#[test]
fn a_secret_belongs_to_the_releases_made_with_it() {
    let host = Host::start();
    let app = host.app("shop", MANIFEST);
    host.expect(&app, &["deploy"], 0);
    let set = host.run_with(&app, &["secret", "set", "TOKEN"], "s3cr3t\n");
    assert!(set.status.success(), "{set:?}");
    let list = host.expect(&app, &["secret", "list"], 0);
    assert!(list.contains("TOKEN") && !list.contains("s3cr3t"), "{list}");
    assert_eq!(host.get(HOST, "/file/TOKEN"), (200, "-".to_owned()));
    host.expect(&app, &["deploy"], 0);
    assert_eq!(host.get(HOST, "/file/TOKEN"), (200, "s3cr3t".to_owned()));
    // A file, unless the manifest asks for a variable.
    assert_eq!(host.get(HOST, "/env/TOKEN"), (200, "-".to_owned()));
    host.expect(&app, &["seal"], 0);
    host.expect(&app, &["rollback"], 0);
    assert_eq!(host.get(HOST, "/file/TOKEN"), (200, "-".to_owned()));
    host.expect(&app, &["secret", "rm", "TOKEN"], 0);
    // Nothing that anybody can read holds the value: not the journal, no log, no process list.
    for file in [
        "server.log",
        "state/journal.sqlite",
        "state/journal.sqlite-wal",
    ] {
        let bytes = fs::read(host.path(file)).unwrap_or_default();
        let holds = bytes.windows(6).any(|part| part == b"s3cr3t");
        assert!(!holds, "{file} holds the secret");
    }
}

#[test]
fn a_person_promotes_aborts_seals_and_rolls_back() {
    let host = Host::start();
    let approved = format!("{MANIFEST}gates = [\"preflight\", \"approval\"]\n");
    let app = host.app("shop", MANIFEST);
    host.expect(&app, &["deploy"], 0);
    fs::write(app.join("landfast.toml"), approved).unwrap();
    // 2 waits for a person, and is superseded by 3.
    host.build(&app, "2", "");
    host.expect(&app, &["deploy", "--wait", "start"], 0);
    host.until("it waits", || {
        host.json(&app, &["status"])["rollout"]["state"] == "waiting"
    });
    assert_eq!(host.get(HOST, "/").1, "1");
    host.build(&app, "3", "");
    host.expect(&app, &["deploy", "--wait", "start"], 0);
    host.until("3 waits", || {
        let rollout = &host.json(&app, &["status"])["rollout"];
        rollout["state"] == "waiting" && rollout["to"] == 3
    });
    host.expect(&app, &["promote"], 0);
    assert_eq!(host.get(HOST, "/").1, "3");
    // In standby the old release takes over again.
    host.expect(&app, &["abort", "--reason", "wrong colour"], 0);
    assert_eq!(host.get(HOST, "/").1, "1");
    // Sealed, and back all the same.
    host.build(&app, "4", "");
    host.expect(&app, &["deploy", "--wait", "start"], 0);
    host.until("4 waits", || {
        host.json(&app, &["status"])["rollout"]["state"] == "waiting"
    });
    host.expect(&app, &["promote", "--wait", "promotion"], 0);
    host.expect(&app, &["seal"], 0);
    host.expect(&app, &["seal"], 11);
    assert_eq!(host.get(HOST, "/").1, "4");
    host.expect(&app, &["rollback"], 0);
    assert_eq!(host.get(HOST, "/").1, "1");
    // A release that never becomes ready is taken back by itself.
    fs::write(app.join("landfast.toml"), MANIFEST).unwrap();
    host.build(&app, "5", "never-ready");
    host.expect(&app, &["seal"], 0);
    host.expect(&app, &["deploy"], 5);
    assert_eq!(host.get(HOST, "/").1, "1");
    // Until its seal a rollback takes the rollout itself back, and that is what was asked for.
    host.build(&app, "6", "");
    host.expect(&app, &["deploy"], 0);
    assert_eq!(host.get(HOST, "/").1, "6");
    host.expect(&app, &["rollback"], 0);
    assert_eq!(host.get(HOST, "/").1, "1");
    let history = rollouts(&host.json(&app, &["history"]));
    let wanted = [
        "6 rolled-back",
        "5 rolled-back",
        "1 sealed",
        "4 sealed",
        "3 rolled-back",
        "2 superseded",
        "1 sealed",
    ];
    assert_eq!(history, wanted);
}

#[test]
fn a_server_that_died_goes_on_where_it_was() {
    let mut host = Host::start();
    let app = host.app("shop", MANIFEST);
    host.expect(&app, &["deploy"], 0);
    let before = instances(&host.json(&app, &["status"]));
    host.build(&app, "2", "");
    host.kill_server();
    assert_eq!(host.get(HOST, "/").1, "1", "the proxy serves alone");
    host.start_server();
    assert_eq!(
        instances(&host.json(&app, &["status"])),
        before,
        "re-adopted"
    );
    host.expect(&app, &["deploy", "--wait", "start"], 0);
    host.kill_server();
    host.start_server();
    host.until("release 2 serves", || host.get(HOST, "/").1 == "2");
}

#[test]
fn folders_may_be_named_from_where_the_server_is_started() {
    let mut host = Host::stopped();
    host.is_relative = true;
    host.start_server();
    let app = host.app("shop", MANIFEST);
    host.expect(&app, &["deploy"], 0);
    assert_eq!(host.get(HOST, "/"), (200, "1".to_owned()));
}

#[test]
fn refuses_a_second_server_and_a_route_that_has_an_owner() {
    let host = Host::start();
    let mut second = host.server_command();
    let second = second.output().unwrap();
    let text = String::from_utf8_lossy(&second.stderr);
    assert!(!second.status.success() && text.contains("hint:"), "{text}");
    let app = host.app("shop", MANIFEST);
    host.expect(&app, &["deploy"], 0);
    let other = host.app("thief", &MANIFEST.replace("\"shop\"", "\"thief\""));
    for command in ["plan", "deploy"] {
        let output = host.run(&other, &[command]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned()
            + &String::from_utf8_lossy(&output.stdout);
        assert!(!output.status.success(), "{command}: {text}");
        assert!(text.contains("shop/production"), "{command}: {text}");
    }
    assert_eq!(host.get(HOST, "/").1, "1");
}

#[test]
fn a_terminal_gets_a_live_view_and_shows_no_secret() {
    let host = Host::start();
    let app = host.app("shop", MANIFEST);
    let (code, shown) = host.on_terminal(&app, &["deploy"], "");
    assert_eq!(code, 0, "{shown}");
    // Drawn in place, with what a person waits for.
    for part in [
        "\x1b[",
        "RELEASE",
        "WEIGHT",
        "api.r1.1",
        "gates",
        "release 1 serves all of shop/production",
    ] {
        assert!(shown.contains(part), "no {part:?} in\n{shown}");
    }
    let (code, shown) = host.on_terminal(&app, &["secret", "set", "TOKEN"], "s3cr3t");
    assert_eq!(code, 0, "{shown}");
    assert!(
        shown.contains("TOKEN") && !shown.contains("s3cr3t"),
        "{shown}"
    );
    host.expect(&app, &["deploy"], 0);
    assert_eq!(host.get(HOST, "/file/TOKEN"), (200, "s3cr3t".to_owned()));
}
