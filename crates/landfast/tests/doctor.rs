//! What a host is asked and what its instances are held to, through the real binary.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    unreachable_pub,
    dead_code,
    reason = "a test fails where it unwraps, and helpers are shared by several tests"
)]

mod support;

use std::{fs, os::unix::fs::MetadataExt as _};

use serde_json::Value;
use support::{host::Host, landfast};

const MANIFEST: &str = r#"
app = "shop"

[services.api]
artifact = "build"
command = ["./app.py", "serve"]
port = 3000
resources = { memory = "128MiB", cpu = "250m" }
volumes = { data = "managed" }
health = { ready = "http:/ready", interval = "200ms" }
drain = "1s"
grace = "1s"

[jobs.hog]
artifact = "build"
command = ["python3", "-c", "held = [bytearray(1 << 20) for _ in range(1024)]"]
resources = { memory = "32MiB" }

[routes.public]
host = "shop.example"
service = "api"

[deploy]
min_ready = "200ms"
standby = "1h"
"#;

fn levels(diagnosis: &Value) -> Vec<(String, String)> {
    let findings = diagnosis["findings"].as_array().unwrap();
    let word = |value: &Value| value.as_str().unwrap().to_owned();
    findings
        .iter()
        .map(|one| (word(&one["check"]), word(&one["level"])))
        .collect()
}

#[test]
fn a_doctor_looks_at_the_host_and_the_manifest() {
    let host = Host::start();
    let app = host.app("shop", MANIFEST);
    let diagnosis = host.json(&app, &["doctor", "--users", "300"]);
    let found = levels(&diagnosis);
    for check in [
        "listeners",
        "proxy",
        "system",
        "pidfd",
        "cpu",
        "memory",
        "disk-space",
        "disk-latency",
        "descriptors",
        "port-ranges",
        "clock",
        "user",
        "cgroup-memory",
        "cgroup-pids",
        "landlock",
        "size-cpu",
        "size-memory",
    ] {
        assert!(
            found.iter().any(|(one, _)| one == check),
            "{check}: {found:?}"
        );
    }
    for one in diagnosis["findings"].as_array().unwrap() {
        assert_eq!(one["advice"].is_string(), one["level"] != "ok", "{one}");
    }
    // What the manifest promises is held against the host, and the exit code says so.
    let large = host.app("large", &MANIFEST.replace("128MiB", "900TiB"));
    let text = host.expect(&large, &["doctor"], 8);
    assert!(text.contains("hint: memory: use fewer replicas"), "{text}");
    host.expect(&large, &["plan"], 8);
}

#[test]
fn a_doctor_needs_no_server() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().to_owned();
    let output = landfast(folder.path())
        .args(["doctor", "--json"])
        .env("XDG_RUNTIME_DIR", &state)
        .env("XDG_STATE_HOME", &state)
        .env_remove("LANDFAST_SOCKET")
        .output()
        .unwrap();
    let diagnosis: Value = serde_json::from_slice(&output.stdout).unwrap();
    let found = levels(&diagnosis);
    assert!(
        !found
            .iter()
            .any(|(check, _)| check == "proxy" || check == "size-cpu")
    );
    assert_eq!(found.iter().filter(|(check, _)| check == "port").count(), 2);
    let failed = diagnosis["level"] == "fail";
    assert_eq!(output.status.code(), Some(if failed { 8 } else { 0 }));
}

#[test]
fn status_says_what_instances_are_held_to_and_a_hog_ran_out_of_memory() {
    let host = Host::start();
    let app = host.app("shop", MANIFEST);
    let plan = host.json(&app, &["plan"]);
    host.expect(&app, &["deploy"], 0);
    let status = host.json(&app, &["status"]);
    let service = &status["services"][0];
    let protections = service["protections"].as_array().unwrap();
    assert_eq!(protections.len(), 8, "{protections:?}");
    assert_eq!(service["protections"], plan["services"][0]["protections"]);
    let state = |part: &str| {
        let one = protections.iter().find(|one| one["part"] == part).unwrap();
        one["state"].as_str().unwrap().to_owned()
    };
    if state("user") == "enforced" {
        let volume = host.path("state/volumes/shop/production/data");
        assert!(fs::metadata(volume).unwrap().uid() >= 1_900_000_000);
    } else {
        eprintln!("skipped: users, which only root can give");
    }
    if state("memory") == "enforced" {
        let output = host.run(&app, &["run", "hog"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("ran out of memory"), "{said}");
        assert!(said.contains("32MiB"), "{said}");
        assert_ne!(output.status.code(), Some(0));
    } else {
        eprintln!("skipped: memory, which nothing here holds");
    }
}
