//! Containers on a daemon whose socket is reached through ssh: a real `sshd` on loopback, and a daemon whose networks are
//! routed to here. Debian: `apt-get install openssh-server`.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    unreachable_pub,
    dead_code,
    reason = "a test fails where it unwraps, and helpers are shared by several tests"
)]

mod support;

use std::{collections::BTreeSet, ffi::OsString, fs, path::PathBuf};

use landfast_testbed::{Dockerd, DockerdOptions};
use support::{host::Host, sshd::Sshd};

const HOST: &str = "shop.example";

const MANIFEST: &str = r#"
app = "shop"

[services.api]
image = "shop/app:1"
pull = "never"
port = 8080
health = { ready = "http:/ready", interval = "200ms" }
drain = "1s"
grace = "1s"

[routes.public]
host = "shop.example"
service = "api"

[deploy]
min_ready = "200ms"
healthy_deadline = "60s"
progress_deadline = "120s"
"#;

/// The forwards that run, by what they are told.
fn forwards(sshd: &Sshd) -> BTreeSet<OsString> {
    let name = format!("-p\0{}\0", sshd.port);
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let ours = processes.filter(|process| {
        let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        line.contains(&name) && line.contains("docker.sock:") && line.contains("-N")
    });
    ours.map(|process| process.file_name()).collect()
}

#[test]
fn containers_run_on_a_daemon_behind_ssh_and_the_way_to_it_is_found_again() {
    let Some(docker) = Dockerd::start_or_skip(DockerdOptions::default()) else {
        return;
    };
    let Some(sshd) = Sshd::start_or_skip() else {
        return;
    };
    let mut host = Host::stopped();
    let socket = docker.socket();
    let address = format!(
        "ssh://{}@127.0.0.1:{}{}",
        sshd.user,
        sshd.port,
        socket.display()
    );
    host.arguments = vec!["--docker".into(), address.clone()];
    host.search = Some(sshd.path());
    host.start_server();
    let app: PathBuf = host.path("shop");
    support::image::app(&docker, "shop/app", "1", &host.path("work"));
    fs::create_dir_all(&app).unwrap();
    fs::write(app.join("landfast.toml"), MANIFEST).unwrap();
    host.expect(&app, &["deploy", "--wait", "promotion"], 0);
    assert_eq!(host.get(HOST, "/"), (200, "1".to_owned()));
    let told = host.json(&app, &["doctor"]);
    let told = told.to_string();
    assert!(told.contains(&address), "{told}");

    // The way is cut: the next question opens it again, and traffic never went over it.
    let before = forwards(&sshd);
    sshd.cut();
    host.until("ssh has seen it", || forwards(&sshd).is_disjoint(&before));
    host.expect(&app, &["restart"], 0);
    assert_eq!(host.get(HOST, "/"), (200, "1".to_owned()));
    host.until("one ssh runs", || forwards(&sshd).len() == 1);

    // A server that dies leaves its ssh; the next one puts its own in that one's place.
    host.kill_server();
    host.start_server();
    host.expect(&app, &["restart"], 0);
    assert_eq!(host.get(HOST, "/"), (200, "1".to_owned()));
    host.until("one ssh is left", || forwards(&sshd).len() == 1);

    // One that is told another daemon, here the same by its own socket, ends what leads to the former.
    host.kill_server();
    assert_eq!(forwards(&sshd).len(), 1, "nobody has told it to end");
    host.arguments = vec!["--docker".into(), docker.address()];
    host.start_server();
    host.until("no ssh is left", || forwards(&sshd).is_empty());
    host.kill_server();
}

#[test]
fn a_daemon_that_ssh_does_not_reach_is_named_with_what_ssh_said() {
    let Some(sshd) = Sshd::start_or_skip() else {
        return;
    };
    let mut host = Host::stopped();
    let port = landfast_testbed::free_port().unwrap();
    let address = format!("ssh://{}@127.0.0.1:{port}", sshd.user);
    host.arguments = vec!["--docker".into(), address.clone()];
    host.search = Some(sshd.path());
    host.start_server();
    let app = host.path("shop");
    fs::create_dir_all(&app).unwrap();
    fs::write(app.join("landfast.toml"), MANIFEST).unwrap();
    let output = host.run(&app, &["deploy"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(7), "{said}");
    assert!(said.contains(&address), "{said}");
    assert!(said.contains("Connection refused"), "{said}");
    host.kill_server();
}
