//! Figures that simulation shows: they run the simulator's own binaries and tests.

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
        "canary" => proof_canary(&[seeds, "fails half, 20/s, probes"]),
        "false-aborts" => proof_canary(&[seeds, "equal, "]),
        "power" => proof_canary(&[seeds, "worse, "]),
        _ => bail!("there is no simulated proof `{name}`"),
    };
    let mut cargo = command("cargo");
    if name == "crash" && !is_short() {
        cargo.env("LANDFAST_CRASH_STRIDE", "1");
    }
    let status = cargo.args(&arguments).status()?;
    ensure!(status.success(), "cargo {} failed", arguments.join(" "));
    Ok(())
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
