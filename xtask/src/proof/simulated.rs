//! Figures that tests and the simulator's own binaries show.

use anyhow::{Context as _, bail, ensure};

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
        "secrets" => landfast_test("planted", "--show-output"),
        "lint-truth" => vec![
            "test",
            "--locked",
            "-p",
            "landfast-migrator",
            "--test",
            "lint_truth",
            "--",
            "--nocapture",
        ],
        "canary" => proof_canary(&[seeds, "fails half, 20/s, probes"]),
        "false-aborts" => proof_canary(&[seeds, "equal, "]),
        "power" => proof_canary(&[seeds, "worse, "]),
        _ => bail!("there is no such proof `{name}`"),
    };
    let mut cargo = command("cargo");
    if name == "crash" && !is_short() {
        cargo.env("LANDFAST_CRASH_STRIDE", "1");
    }
    if name == "lint-truth" && !is_short() {
        cargo.env("LANDFAST_LONG", "1");
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

/// Many seeds, each a world of its own; every broken invariant is printed with its seed.
pub(crate) fn sim_long() -> anyhow::Result<()> {
    const STEPS_MIN: u64 = 1_000_000;
    const SEEDS: u64 = 10_000;
    println!("proof sim-long");
    let seeds = if is_short() { SEEDS / 20 } else { SEEDS };
    let output = command("cargo")
        .args([
            "run",
            "--locked",
            "--release",
            "--quiet",
            "-p",
            "landfast-sim",
        ])
        .args([
            "--bin",
            "landfast-sim",
            "--",
            "--seeds",
            &format!("0..{seeds}"),
        ])
        .stderr(std::process::Stdio::inherit())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    print!("{text}");
    // 10000 seeds, 0 broken; 5000000 engine steps, 900000 records
    let steps = text.lines().find_map(|line| {
        let (_, rest) = line.split_once(" broken; ")?;
        rest.split(' ').next()?.parse::<u64>().ok()
    });
    let steps = steps.context("the simulator does not say how many steps it made")?;
    println!("figure: {steps} engine steps over {seeds} seeds, every invariant swept after each");
    ensure!(
        output.status.success(),
        "an invariant was broken; see above"
    );
    let least = STEPS_MIN * seeds / SEEDS;
    ensure!(steps >= least, "fewer than {least} engine steps");
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
