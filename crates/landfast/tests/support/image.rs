//! An app that is one static program, and with it a whole image.

use std::{fs, path::Path, process::Command};

use landfast_testbed::Dockerd;

const SOURCE: &str = include_str!("../docker/app.rs");

/// Makes `name:version` of the app on a daemon; `work` is a folder for what is compiled.
#[expect(
    clippy::disallowed_methods,
    reason = "the app is compiled as one would"
)]
pub fn app(docker: &Dockerd, name: &str, version: &str, work: &Path) {
    let content = work.join("content");
    fs::create_dir_all(&content).unwrap();
    let source = work.join("app.rs");
    fs::write(&source, SOURCE).unwrap();
    let compiler = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let output = Command::new(compiler)
        .args(["--edition", "2024", "-C", "target-feature=+crt-static"])
        .args(["-C", "strip=symbols", "-o"])
        .arg(content.join("app"))
        .arg(&source)
        .env("VERSION", version)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let lines = ["ENTRYPOINT [\"/app\"]"];
    docker
        .import(&format!("{name}:{version}"), &content, &lines)
        .unwrap();
}
