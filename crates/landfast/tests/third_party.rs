//! A server that nobody here wrote, installed from a public package, deployed by the manifest in `examples/`.

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
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use support::host::Host;

const HOST: &str = "httpbin.example";
const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/httpbin");
/// The release before the one the example names.
const OLDER: (&str, &str) = ("httpbin==0.10.4", "httpbin==0.10.2");

/// Installs what `requirements.txt` names into `site`, anew.
#[expect(
    clippy::disallowed_methods,
    reason = "the package installer is what a user would run"
)]
fn install(app: &Path) {
    drop(fs::remove_dir_all(app.join("site")));
    let output = Command::new("python3")
        .args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-compile",
            "--root-user-action=ignore",
        ])
        .args([
            "--disable-pip-version-check",
            "--target",
            "site",
            "-r",
            "requirements.txt",
        ])
        .current_dir(app)
        .output()
        .expect("python3 is installed");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn installed_version(host: &Host, app: &Path) -> String {
    let ask = "import importlib.metadata as m; print(m.version('httpbin'))";
    let said = host.expect(app, &["exec", "web", "--", "python3", "-c", ask], 0);
    said.trim().to_owned()
}

#[test]
fn a_server_of_somebody_else_is_deployed_and_rolled() {
    let host = Host::start();
    let app = host.path("httpbin");
    fs::create_dir(&app).unwrap();
    // Its times are those of production; the test has less of it.
    let manifest = fs::read_to_string(Path::new(EXAMPLE).join("landfast.toml")).unwrap();
    let manifest = format!("{manifest}min_ready = \"1s\"\nstandby = \"1s\"\n");
    fs::write(app.join("landfast.toml"), manifest).unwrap();
    let newer = fs::read_to_string(Path::new(EXAMPLE).join("requirements.txt")).unwrap();
    let older = newer.replace(OLDER.0, OLDER.1);
    assert_ne!(older, newer, "the example names {}", OLDER.0);

    fs::write(app.join("requirements.txt"), older).unwrap();
    install(&app);
    host.expect(&app, &["deploy"], 0);
    assert_eq!(installed_version(&host, &app), "0.10.2");

    fs::write(app.join("requirements.txt"), newer).unwrap();
    install(&app);
    let over = AtomicBool::new(false);
    let answered = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let ask = |client: u64| {
            let mut number = 0;
            while !over.load(Ordering::Relaxed) {
                number += 1;
                let path = format!("/anything/{client}/{number}");
                let (status, body) = host.get(HOST, &path);
                assert_eq!(status, 200, "{path}: {body}");
                assert!(body.contains(&path), "{path}: {body}");
                answered.fetch_add(1, Ordering::Relaxed);
            }
        };
        let clients = [1, 2, 3, 4].map(|client| scope.spawn(move || ask(client)));
        let deployed = host.run(&app, &["deploy", "--wait", "seal"]);
        over.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().expect("no request was lost");
        }
        assert!(
            deployed.status.success(),
            "{}",
            String::from_utf8_lossy(&deployed.stderr)
        );
    });
    assert!(answered.load(Ordering::Relaxed) > 100);
    assert_eq!(installed_version(&host, &app), "0.10.4");
}
