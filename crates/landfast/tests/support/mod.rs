//! Runs the real binary and writes down what a person would see; and a server that answers as it is told.

use std::{path::Path, process::Output};

use assert_cmd::Command;

pub mod disk;
pub mod hook;
pub mod host;
pub mod image;
pub mod images;
pub mod pebble;
pub mod server;
pub mod shape;
pub mod shop;
pub mod sshd;

/// The binary with nothing of the tester's own environment that could change its words.
pub fn landfast(folder: &Path) -> Command {
    let mut command = Command::cargo_bin("landfast").expect("the binary is built with its tests");
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("LANDFAST_") || name.starts_with("XDG_") {
            command.env_remove(name);
        }
    }
    command
        .current_dir(folder)
        .env("TERM", "dumb")
        .env("NO_COLOR", "1")
        .env("COLUMNS", "100");
    command.env("USER", "tester");
    command
}

/// Arguments in; exit code, stdout and stderr out, as one text.
pub fn transcript(folder: &Path, arguments: &[&str]) -> String {
    let output = landfast(folder).args(arguments).output().expect("it runs");
    written(arguments, &output)
}

/// What a person would see of a run.
pub fn written(arguments: &[&str], output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    let code = output.status.code().expect("no signal ended it");
    let mut written = format!("$ landfast {}\nexit {code}\n", arguments.join(" "));
    for (name, text) in [("stdout", out), ("stderr", err)] {
        if !text.is_empty() {
            written.push_str(&format!("--- {name}\n{text}\n"));
        }
    }
    written
}
