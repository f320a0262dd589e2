//! What `--json` prints is a promise: a field that was there stays there, under its name, with its type.
//!
//! The shapes lie in `tests/json/`; `support::shape` says how they are held.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    unreachable_pub,
    dead_code,
    reason = "a test fails where it unwraps, and helpers are shared by several tests"
)]

mod support;

use serde_json::Value;
use support::{
    host::Host,
    shape::{hold, shape},
};

const MANIFEST: &str = r#"
app = "shop"

[services.api]
artifact = "build"
command = ["./app.py", "serve"]
port = 3000
replicas = 2
health = { ready = "http:/ready", interval = "200ms" }
env = { GREETING = "hello" }
drain = "2s"
grace = "2s"

[jobs.fail]
artifact = "build"
command = ["./app.py", "fail"]

[routes.public]
host = "shop.example"
service = "api"

[deploy]
strategy = "blue-green"
min_ready = "200ms"
standby = "1h"
healthy_deadline = "5s"
"#;

#[test]
fn what_json_promised_it_keeps() {
    let host = Host::start();
    let app = host.app("shop", MANIFEST);
    let mut wrong = Vec::new();
    let mut look = |name: &str, arguments: &[&str]| {
        let value = host.json(&app, arguments);
        wrong.extend(hold(name, &value));
    };
    look("check", &["check"]);
    let stored = host.run_with(&app, &["secret", "set", "API_KEY"], "a value");
    assert!(stored.status.success());
    look("secret-list", &["secret", "list"]);
    look("plan", &["plan"]);
    host.expect(
        &app,
        &[
            "deploy",
            "--note",
            "the first",
            "--commit",
            "0123456789abcdef",
        ],
        0,
    );
    host.build(&app, "2", "");
    look("plan-next", &["plan"]);
    host.expect(&app, &["deploy", "--note", "the second"], 0);
    host.expect(&app, &["scale", "api", "3"], 0);
    host.until("three instances", || {
        let status = host.json(&app, &["status"]);
        status["services"][0]["groups"]
            .as_array()
            .is_some_and(|groups| groups.iter().any(|group| group["ready"] == 3))
    });
    host.get("shop.example", "/");
    look("status", &["status"]);
    look("status-all", &["status", "--all"]);
    look("host", &["status", "--host-info"]);
    look("history", &["history"]);
    look("routes", &["routes"]);
    look("top", &["top", "--interval", "200"]);
    look("explain", &["explain", "LF003"]);
    look("exit-codes", &["help", "exit-codes"]);
    let errors = host.run(&app, &["logs", "nobody", "--json"]);
    let error: Value = serde_json::from_slice(&errors.stderr).expect("an error is one JSON object");
    wrong.extend(hold("error", &error));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_shape_names_every_place_and_its_type() {
    let value =
        serde_json::json!({ "a": [{ "b": 1 }, { "c": null }], "releases": { "3": { "d": "x" } } });
    let lines: Vec<_> = shape(&value).into_iter().collect();
    assert_eq!(
        lines,
        [
            ".: object",
            ".a: list",
            ".a[].b: number",
            ".a[]: object",
            ".releases.*.d: text",
            ".releases.*: object",
            ".releases: object",
        ]
    );
}
