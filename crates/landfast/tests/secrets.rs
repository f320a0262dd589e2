//! Secrets by the real command line against a real server: versions, imports, the key.

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
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::Output,
};

use support::host::Host;

const MANIFEST: &str = r#"
app = "shop"

[services.api]
artifact = "build"
command = ["./app.py", "serve"]
port = 3000
env = { TOKEN = { required = true } }
health = { ready = "http:/ready", interval = "200ms" }
drain = "2s"
grace = "2s"

[routes.public]
host = "shop.example"
service = "api"

[deploy]
strategy = "rolling"
min_ready = "200ms"
standby = "1h"
healthy_deadline = "5s"
"#;
const HOST: &str = "shop.example";

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
fn set(host: &Host, app: &Path, name: &str, value: &str) {
    let output = host.run_with(app, &["secret", "set", name], value);
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[track_caller]
fn refused(output: &Output, code: i32, says: &[&str]) {
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{error}");
    for word in says {
        assert!(error.contains(word), "`{word}` is not in: {error}");
    }
}

#[test]
fn a_secret_has_versions_that_come_back_or_are_forgotten() {
    let host = Host::start();
    let app = host.app("shop", MANIFEST);
    refused(&host.run(&app, &["deploy"]), 3, &["TOKEN", "secret set"]);
    for value in ["first", "second", "third"] {
        set(&host, &app, "TOKEN", value);
    }
    let reveal = |more: &[&str]| {
        let arguments = [&["secret", "get", "TOKEN", "--reveal"], more].concat();
        host.expect(&app, &arguments, 0)
    };
    assert_eq!(reveal(&[]), "third");
    assert_eq!(reveal(&["--version", "1"]), "first");
    let facts = host.expect(&app, &["secret", "get", "TOKEN"], 0);
    assert!(
        facts.contains("TOKEN") && !facts.contains("third"),
        "{facts}"
    );

    host.expect(&app, &["deploy"], 0);
    assert_eq!(host.get(HOST, "/env/TOKEN"), (200, "third".to_owned()));
    host.expect(&app, &["secret", "rollback", "TOKEN"], 0);
    assert_eq!(reveal(&[]), "second");
    host.expect(&app, &["secret", "rollback", "TOKEN", "--to", "1"], 0);
    assert_eq!(reveal(&[]), "first");
    refused(
        &host.run(&app, &["secret", "rollback", "TOKEN", "--to", "99"]),
        9,
        &["no version 99", "secret history"],
    );

    // The version the release pinned is revoked: what starts is given the newest, and status says so.
    let revoked = host.run(&app, &["secret", "revoke", "TOKEN", "3"]);
    assert!(text(&revoked.stderr).contains("release 1"), "{revoked:?}");
    assert_eq!(host.get(HOST, "/env/TOKEN"), (200, "third".to_owned()));
    host.expect(&app, &["restart"], 0);
    assert_eq!(host.get(HOST, "/env/TOKEN"), (200, "first".to_owned()));
    let status = host.expect(&app, &["status"], 0);
    assert!(
        status.contains("version 3 of secret `TOKEN`, which was revoked"),
        "{status}"
    );
    refused(
        &host.run(
            &app,
            &["secret", "get", "TOKEN", "--reveal", "--version", "3"],
        ),
        9,
        &["version 3 was revoked"],
    );
    let history = host.json(&app, &["secret", "history", "TOKEN"]);
    let states: Vec<_> = history["versions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|version| format!("{} {}", version["version"], version["state"]))
        .collect();
    assert_eq!(
        states,
        [
            "5 \"current\"",
            "4 \"kept\"",
            "3 \"revoked\"",
            "2 \"kept\"",
            "1 \"kept\""
        ]
    );
    assert_eq!(history["versions"][2]["releases"][0], 1);
    let deeds = history["deeds"].as_array().unwrap();
    let shown = deeds.iter().filter(|deed| deed["deed"] == "revealed");
    assert_eq!(shown.count(), 4, "each value that was shown is recorded");
    assert!(deeds.iter().all(|deed| deed["by"] == "tester"));
}

#[test]
fn a_manifest_says_which_secrets_are_variables() {
    let host = Host::start();
    let app = host.app("shop", MANIFEST);
    for name in ["TOKEN", "OTHER"] {
        set(&host, &app, name, "a value");
    }
    let given = |name: &str| {
        let (_, variable) = host.get(HOST, &format!("/env/{name}"));
        let (_, file) = host.get(HOST, &format!("/file/{name}"));
        (variable, file)
    };
    let (value, none) = ("a value".to_owned(), "-".to_owned());
    host.expect(&app, &["deploy"], 0);
    // `env` names it, so it is a variable.
    assert_eq!(given("TOKEN"), (value.clone(), none.clone()));
    assert_eq!(given("OTHER"), (none.clone(), value.clone()));
    let all = MANIFEST.replace("port = 3000", "port = 3000\nsecrets = \"environment\"");
    fs::write(app.join("landfast.toml"), all).unwrap();
    host.expect(&app, &["deploy"], 0);
    assert_eq!(given("TOKEN"), (value.clone(), none.clone()));
    assert_eq!(given("OTHER"), (value, none));
    // The variable of a path is not given twice.
    fs::write(app.join("landfast.toml"), MANIFEST).unwrap();
    set(&host, &app, "OTHER_FILE", "x");
    refused(
        &host.run(&app, &["deploy"]),
        8,
        &["`OTHER_FILE` of `api` is where the path of secret `OTHER` goes"],
    );
}

#[test]
fn a_rotation_reaches_the_instances_and_changes_nothing_else() {
    let host = Host::start();
    let app = host.app("shop", MANIFEST);
    for name in ["TOKEN", "OTHER"] {
        set(&host, &app, name, "first");
    }
    host.expect(&app, &["secret", "rotate", "NOPE"], 9);
    host.expect(&app, &["deploy"], 0);
    // Set, and not deployed: no rotation brings it along.
    set(&host, &app, "OTHER", "second");
    host.expect(&app, &["secret", "rotate", "TOKEN", "--alphabet", "hex"], 0);
    let token = host.get(HOST, "/env/TOKEN").1;
    assert_eq!(token.len(), 32);
    assert!(
        token.bytes().all(|byte| byte.is_ascii_hexdigit()),
        "{token}"
    );
    assert_eq!(host.get(HOST, "/file/OTHER").1, "first");
    assert_eq!(
        host.expect(&app, &["secret", "get", "TOKEN", "--reveal"], 0),
        token
    );
    let history = host.expect(&app, &["secret", "history", "TOKEN"], 0);
    assert!(history.contains("rotated"), "{history}");
    // A rollback brings the release before it back, with the value it had.
    host.expect(&app, &["seal"], 0);
    let history = host.json(&app, &["history"]);
    assert_eq!(history["rollouts"][0]["strategy"], "rolling");
    let note = &history["releases"][0]["note"];
    assert_eq!(note, "secret TOKEN rotated", "{history}");
    host.expect(&app, &["rollback"], 0);
    assert_eq!(host.get(HOST, "/env/TOKEN").1, "first");
    fn rotate<'a>(more: &[&'a str]) -> Vec<&'a str> {
        [&["secret", "rotate", "TOKEN"], more].concat()
    }
    // It would end the standby of the rollback.
    let output = host.run_with(&app, &rotate(&["--from", "-"]), "from stdin\n");
    refused(&output, 11, &["is not sealed yet", "landfast seal"]);
    host.expect(&app, &["seal"], 0);
    host.until("the rollback is sealed", || {
        host.json(&app, &["status"])["rollout"].is_null()
    });
    let output = host.run_with(&app, &rotate(&["--from", "-"]), "from stdin\n");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(host.get(HOST, "/env/TOKEN").1, "from stdin");
    host.expect(&app, &rotate(&["--length", "64", "--no-restart"]), 0);
    assert_eq!(host.get(HOST, "/env/TOKEN").1, "from stdin");
    let long = host.expect(&app, &["secret", "get", "TOKEN", "--reveal"], 0);
    assert_eq!(long.len(), 64);
    for wrong in [["--length", "8"], ["--alphabet", "emoji"]] {
        host.expect(&app, &rotate(&wrong), 1);
    }
    // While a rollout moves nothing is rotated: there would be a value nobody can be given.
    host.build(&app, "2", "never-ready");
    host.expect(&app, &["deploy", "--wait", "start"], 0);
    refused(&host.run(&app, &rotate(&[])), 4, &["rollout"]);
    let same = host.expect(&app, &["secret", "get", "TOKEN", "--reveal"], 0);
    assert_eq!(same, long);
}

#[test]
fn the_only_version_of_a_secret_is_not_forgotten() {
    let host = Host::start();
    let app = host.app("shop", MANIFEST);
    set(&host, &app, "TOKEN", "only");
    refused(
        &host.run(&app, &["secret", "revoke", "TOKEN", "1"]),
        11,
        &["the only one left", "set another value"],
    );
    let value = host.expect(&app, &["secret", "get", "TOKEN", "--reveal"], 0);
    assert_eq!(value, "only");
    host.expect(&app, &["secret", "revoke", "NOPE", "1"], 9);
    host.expect(&app, &["secret", "history", "NOPE"], 9);
}

#[test]
fn a_dotenv_file_is_taken_whole_or_not_at_all() {
    let host = Host::start();
    let app = host.app("shop", MANIFEST);
    let broken = "GOOD=planted-1\nBAD planted-2\nALSO='planted-3\n";
    let output = host.run_with(&app, &["secret", "import"], broken);
    refused(&output, 1, &["line 2", "line 3", "nothing was stored"]);
    assert!(!text(&output.stderr).contains("planted"), "{output:?}");
    // A name nobody may set, and a value no process can be given.
    let output = host.run_with(&app, &["secret", "import"], "GOOD=1\nPORT=2\n");
    refused(&output, 1, &["PORT"]);
    let long = format!("GOOD=1\nLONG={}\n", "x".repeat((128 << 10) + 1));
    refused(
        &host.run_with(&app, &["secret", "import"], &long),
        1,
        &["LONG", "131073 bytes"],
    );
    let list = host.json(&app, &["secret", "list"]);
    assert_eq!(list["secrets"].as_array().unwrap().len(), 0);

    let file =
        "# of the shop\nexport TOKEN='a b'\nKEY=\"-----BEGIN\nMII=\n-----END\"\nPLAIN=x # said\n";
    fs::write(app.join(".env"), file).unwrap();
    host.expect(&app, &["secret", "import", ".env"], 0);
    let value = |name| host.expect(&app, &["secret", "get", name, "--reveal"], 0);
    assert_eq!(value("TOKEN"), "a b");
    assert_eq!(value("KEY"), "-----BEGIN\nMII=\n-----END");
    assert_eq!(value("PLAIN"), "x");
    fs::write(app.join(".env"), file.replace("=x", "=y")).unwrap();
    let again = host.json(&app, &["secret", "import", ".env"]);
    let changed: Vec<_> = again["secrets"]
        .as_array()
        .unwrap()
        .iter()
        .map(|secret| format!("{} {}", secret["name"], secret["changed"]))
        .collect();
    assert_eq!(
        changed,
        ["\"TOKEN\" false", "\"KEY\" false", "\"PLAIN\" true"]
    );
    refused(
        &host.run(&app, &["secret", "import", "none.env"]),
        2,
        &["none.env"],
    );
}

#[test]
fn the_key_is_copied_confirmed_and_never_taken_for_another() {
    let mut host = Host::stopped();
    let port = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    host.arguments = vec!["--tcp".into(), format!("127.0.0.1:{port}")];
    host.start_server();
    let app = host.app("shop", MANIFEST);
    set(&host, &app, "TOKEN", "planted-value");
    host.expect(&app, &["deploy"], 0);
    let status = host.expect(&app, &["status"], 0);
    assert!(status.contains("no copy of the secrets' key"), "{status}");
    let key = host.expect(&app, &["secret", "key", "export"], 0);
    assert_eq!(
        key,
        fs::read_to_string(host.path("state/secrets.key")).unwrap()
    );
    let other = "landfast secrets key 1\nid 0000000000000000\nkey 00\n";
    let output = host.run_with(&app, &["secret", "key", "confirm"], other);
    refused(&output, 1, &["no copy of a Landfast key file"]);
    let output = host.run_with(&app, &["secret", "key", "confirm"], &key);
    assert!(output.status.success(), "{output:?}");
    let status = host.expect(&app, &["status"], 0);
    assert!(!status.contains("no copy"), "{status}");
    let described = host.json(&app, &["secret", "key"]);
    assert_eq!(described["source"], "state");
    assert_eq!(described["confirmed_by"], "tester");

    // Whoever is on this host reaches the loopback address: no value and no key comes from there.
    for path in [
        "/v1/host/secrets-key/export",
        "/v1/apps/shop/environments/production/secrets/TOKEN/reveal",
        // Whoever runs a command in an instance, or deploys one, has what it was given.
        "/v1/apps/shop/environments/production/exec",
        "/v1/apps/shop/environments/production/rollouts",
        "/v1/apps/shop/environments/production/stop",
        "/v1/host/secrets-key/rotate",
    ] {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
        assert!(!answer.contains("planted") && !answer.contains("landfast secrets key 1"));
    }

    let tcp = |path: &str| {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer[..12].to_owned()
    };
    let environment = "/v1/apps/shop/environments/production";
    assert_eq!(tcp(environment), "HTTP/1.1 200");
    assert_eq!(tcp(&format!("{environment}/logs")), "HTTP/1.1 403");

    // Another key opens nothing, and nothing is changed by trying.
    host.kill_server();
    let kept = host.path("kept.key");
    fs::rename(host.path("state/secrets.key"), &kept).unwrap();
    let start = |host: &Host| {
        let mut command = host.server_command();
        text(&command.output().unwrap().stderr)
    };
    let said = start(&host);
    assert!(said.contains("does not exist"), "{said}");
    let other = "landfast secrets key 1\nid 7dda1e8d20f3aba8\nkey 0000000000000000000000000000000000000000000000000000000000000000\n";
    fs::write(host.path("state/secrets.key"), other).unwrap();
    set_mode(&host.path("state/secrets.key"), 0o600);
    let said = start(&host);
    // The id is derived from the key, so a made-up one is damage; a real one is the wrong key.
    assert!(said.contains("damaged"), "{said}");
    let second = Host::start();
    second.expect(&app, &["secret", "key"], 0);
    fs::copy(
        second.path("state/secrets.key"),
        host.path("state/secrets.key"),
    )
    .unwrap();
    let said = start(&host);
    assert!(
        said.contains("wrong key") && said.contains("hint:"),
        "{said}"
    );

    // The right one as a file of the operator's, then as a credential of the service manager.
    host.arguments = vec!["--secrets-key".into(), kept.display().to_string()];
    host.start_server();
    let value = host.expect(&app, &["secret", "get", "TOKEN", "--reveal"], 0);
    assert_eq!(value, "planted-value");
    assert_eq!(host.json(&app, &["secret", "key"])["source"], "file");
}

fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn another_key_takes_the_place_of_the_old_one_wherever_that_is_interrupted() {
    let mut host = Host::start();
    let app = host.app("shop", MANIFEST);
    for value in ["first", "second"] {
        set(&host, &app, "TOKEN", value);
    }
    host.expect(&app, &["deploy"], 0);
    let key = |host: &Host| {
        host.json(&app, &["secret", "key"])["id"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let value = |host: &Host, version: &str| {
        let arguments = ["secret", "get", "TOKEN", "--reveal", "--version", version];
        host.expect(&app, &arguments, 0)
    };
    let first = key(&host);
    let rotated = host.json(&app, &["secret", "key", "rotate"]);
    let second = key(&host);
    assert_eq!(rotated["previous"], first);
    assert_ne!(first, second);
    // It is the envelopes that have changed: the old key opens nothing of what is stored.
    let aside = host.path(&format!("state/secrets.key.before-{first}"));
    assert_eq!(rotated["previous_path"], aside.display().to_string());
    assert!(aside.exists() && !host.path("state/secrets.key.next").exists());
    assert_eq!(
        (value(&host, "1"), value(&host, "2")),
        ("first".into(), "second".into())
    );
    host.kill_server();
    let own = host.path("state/secrets.key");
    let new = fs::read(&own).unwrap();
    fs::copy(&aside, &own).unwrap();
    let said = text(&host.server_command().output().unwrap().stderr);
    assert!(
        said.contains("wrong key") && said.contains(&second),
        "{said}"
    );
    fs::write(&own, new).unwrap();
    host.start_server();
    assert_eq!(value(&host, "1"), "first");
    host.expect(&app, &["restart"], 0);
    assert_eq!(host.get(HOST, "/env/TOKEN").1, "second");

    // A server died in between, before anything or after everything was re-wrapped: the next one goes on.
    let other = Host::start();
    other.expect(&app, &["secret", "key"], 0);
    host.kill_server();
    let next = host.path("state/secrets.key.next");
    fs::copy(other.path("state/secrets.key"), &next).unwrap();
    set_mode(&next, 0o600);
    host.start_server();
    let third = key(&host);
    assert_eq!(third, key(&other));
    assert!(!next.exists());
    assert!(
        host.path(&format!("state/secrets.key.before-{second}"))
            .exists()
    );
    assert_eq!(value(&host, "2"), "second");
    host.kill_server();
    // As it was right before the last step: everything under the next key, the old one in its place.
    fs::rename(&own, &next).unwrap();
    fs::copy(
        host.path(&format!("state/secrets.key.before-{second}")),
        &own,
    )
    .unwrap();
    set_mode(&own, 0o600);
    host.start_server();
    assert_eq!(key(&host), third);
    assert_eq!(value(&host, "2"), "second");

    // Old keys go when a copy of the new one is known.
    let copy = host.expect(&app, &["secret", "key", "export"], 0);
    let output = host.run_with(&app, &["secret", "key", "confirm"], &copy);
    assert!(output.status.success(), "{output:?}");
    let left = fs::read_dir(host.path("state")).unwrap().flatten();
    let mut names = left.map(|entry| entry.file_name().into_string().unwrap());
    assert!(!names.any(|name| name.starts_with("secrets.key.")));
    assert_eq!(value(&host, "1"), "first");
}
