//! The real server and proxy move to another binary while an application serves.

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
    path::Path,
    process::Command,
    sync::{Mutex, PoisonError},
};

use serde_json::Value;
use support::{host::Host, shape};

const MANIFEST: &str = r#"
app = "shop"

[services.api]
artifact = "build"
command = ["./app.py", "serve"]
port = 3000
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
"#;

const HOST: &str = "shop.example";

/// One test at a time: a binary that is being copied while another test starts a process is open for writing in that
/// process for a moment, and cannot be started.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn host_info(host: &Host, app: &Path) -> Value {
    host.json(app, &["status", "--host-info"])
}

/// The binary behind a process.
fn runs(pid: &Value) -> String {
    let exe = fs::read_link(format!("/proc/{pid}/exe")).unwrap();
    exe.display().to_string()
}

fn instance(host: &Host, app: &Path) -> Value {
    let status = host.json(app, &["status"]);
    status["services"][0]["groups"][0]["instances"][0]["id"].clone()
}

#[test]
fn server_and_proxy_move_to_the_new_binary_and_nothing_else_changes() {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let host = Host::start_from_copy();
    let app = host.app("shop", MANIFEST);
    host.expect(&app, &["deploy", "--wait", "seal"], 0);
    let (before, serving) = (host_info(&host, &app), instance(&host, &app));
    let fresh = host.copy_binary("fresh");
    let upgraded = host.json(&app, &["upgrade", "--binary", fresh.to_str().unwrap()]);
    assert_eq!(shape::hold("upgrade", &upgraded), Vec::<String>::new());
    let after = host_info(&host, &app);
    assert_eq!(
        after["pid"], before["pid"],
        "who started the server need not know"
    );
    assert!(after["generation"].as_u64() > before["generation"].as_u64());
    assert_ne!(after["proxy"]["pid"], before["proxy"]["pid"]);
    let binary = host.binary.display().to_string();
    for pid in [
        &after["pid"],
        &after["proxy"]["pid"],
        &upgraded["holder_pid"],
    ] {
        assert_eq!(runs(pid), binary, "{upgraded}");
    }
    assert_eq!(upgraded["previous"], format!("{binary}.previous"));
    assert!(Path::new(&format!("{binary}.previous")).is_file());
    host.until("the replaced holder is reaped", || {
        children(host.server_pid()).is_empty()
    });
    assert_eq!(host.get(HOST, "/"), (200, "1".to_owned()));
    assert_eq!(instance(&host, &app), serving, "the instance went on");
    // The old shim takes the new server's orders.
    host.build(&app, "2", "");
    host.expect(&app, &["deploy", "--wait", "seal"], 0);
    assert_eq!(host.get(HOST, "/"), (200, "2".to_owned()));
}

/// The processes a process has started and not reaped.
fn children(parent: u32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{parent}/task"))
        .unwrap()
        .flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let pids = lists.flat_map(|list| {
        list.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    });
    pids.collect()
}

fn kill(signal: &str, pid: &str) {
    #[expect(clippy::disallowed_methods, reason = "somebody has to send the signal")]
    let status = Command::new("kill").args([signal, pid]).status();
    assert!(status.unwrap().success());
}

#[test]
fn a_holder_that_ends_leaves_no_zombie_in_either_life_of_the_server() {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    for goes_on_as_new_binary in [false, true] {
        let host = Host::start_from_copy();
        let app = host.app("shop", MANIFEST);
        let (server, before) = (host.server_pid(), host_info(&host, &app));
        let [holder] = &children(server)[..] else {
            panic!("{:?}", children(server));
        };
        if goes_on_as_new_binary {
            kill("-USR2", &server.to_string());
            host.until("the server goes on", || {
                let after = host.run(&app, &["status", "--host-info", "--json"]).stdout;
                let after: Value = serde_json::from_slice(&after).unwrap_or_default();
                after["generation"].as_u64() > before["generation"].as_u64()
            });
            assert_eq!(
                children(server),
                std::slice::from_ref(holder),
                "it was inherited"
            );
        }
        kill("-KILL", holder);
        host.until("the holder is reaped", || children(server).is_empty());
    }
}

/// A binary that plays every role but the server's: it looks for the key of the secrets under another name.
fn broken(host: &Host) -> String {
    let path = host.copy_binary("broken");
    let (name, wrong) = (b"secrets.key", b"secrots.key");
    let mut bytes = fs::read(&path).unwrap();
    let places: Vec<usize> = (0..bytes.len() - name.len())
        .filter(|at| bytes[*at..].starts_with(name))
        .collect();
    assert!(!places.is_empty());
    for at in places {
        bytes[at..at + wrong.len()].copy_from_slice(wrong);
    }
    fs::write(&path, bytes).unwrap();
    path.display().to_string()
}

#[test]
fn a_binary_that_does_not_come_up_is_taken_back() {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let host = Host::start_from_copy();
    let app = host.app("shop", MANIFEST);
    host.expect(&app, &["deploy", "--wait", "seal"], 0);
    let old = fs::read(&host.binary).unwrap();

    // One that cannot read the journal, or is none of ours, changes nothing at all.
    let before = host_info(&host, &app);
    host.expect(&app, &["upgrade", "--binary", "/bin/false"], 1);
    host.expect(&app, &["upgrade", "--binary", "/bin/echo"], 1);
    assert_eq!(
        host_info(&host, &app)["proxy"]["pid"],
        before["proxy"]["pid"]
    );

    host.run_with(
        &app,
        &["secret", "set", "TOKEN"],
        "t0ken
",
    );
    let broken = broken(&host);
    let output = host.run(&app, &["upgrade", "--binary", &broken]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("the proxy serves from the new binary"),
        "{said}"
    );
    assert!(
        said.contains("the proxy serves from the old binary again"),
        "{said}"
    );
    assert!(
        said.contains("the server runs from the old binary again"),
        "{said}"
    );
    let after = host_info(&host, &app);
    assert!(
        after["generation"].as_u64() > before["generation"].as_u64(),
        "started again"
    );
    assert_eq!(fs::read(&host.binary).unwrap(), old);
    assert_eq!(runs(&after["pid"]), host.binary.display().to_string());
    assert_eq!(host.get(HOST, "/"), (200, "1".to_owned()));
    host.build(&app, "2", "");
    host.expect(&app, &["deploy", "--wait", "seal"], 0);
    assert_eq!(host.get(HOST, "/"), (200, "2".to_owned()));
}
