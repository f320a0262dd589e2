//! Figures that tests and the simulator's own binaries show.

use anyhow::{bail, ensure};

use crate::live::{command, is_short};

/// Runs one of them.
pub(crate) fn run(name: &str) -> anyhow::Result<()> {
    println!("proof {name}");
    let seeds = if is_short() { "100" } else { "1000" };
    let arguments: Vec<&str> = match name {
        "crash" => vec![
            "test",
            "--locked",
            "-p",
            "landfast-engine",
            "--test",
            "crash",
            "--",
            "--nocapture",
        ],
        "planted" => vec![
            "test",
            "--locked",
            "-p",
            "landfast-sim",
            "--test",
            "worlds",
            "--",
            "--nocapture",
        ],
        // The short form leaves out what takes minutes.
        "acme" if is_short() => landfast_test("acme", "--show-output"),
        "acme" => landfast_test("acme", "--include-ignored"),
        "tls" => landfast_test("scanners", "--ignored"),
        "canary" => proof_canary(&[seeds, "fails half, 20/s, probes"]),
        "false-aborts" => proof_canary(&[seeds, "equal, "]),
        "power" => proof_canary(&[seeds, "worse, "]),
        _ => bail!("there is no such proof `{name}`"),
    };
    let mut cargo = command("cargo");
    if name == "crash" && !is_short() {
        cargo.env("LANDFAST_CRASH_STRIDE", "1");
    }
    let status = cargo.args(&arguments).status()?;
    ensure!(status.success(), "cargo {} failed", arguments.join(" "));
    Ok(())
}

/// A test of the whole binary against programs that are not ours.
fn landfast_test<'a>(name: &'a str, which: &'a str) -> Vec<&'a str> {
    let test = ["test", "--locked", "-p", "landfast", "--test", name];
    [&test[..], &["--", "--nocapture", "--test-threads=2", which]].concat()
}

fn proof_canary<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
    let mut all = vec![
        "run",
        "--locked",
        "--release",
        "-p",
        "landfast-sim",
        "--bin",
        "proof-canary",
        "--",
    ];
    all.extend(arguments);
    all
}
