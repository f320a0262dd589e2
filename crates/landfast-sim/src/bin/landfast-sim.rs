//! Runs seeds: `--seed N [--verbose]` replays one, `--seeds A..B` sweeps; `--planted WORDS` plants a bug.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use landfast_sim::{
    fault::{Fault, Fired},
    run::run,
    world::Planted,
};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match sweep(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(reason) => {
            drop(writeln!(io::stderr(), "{reason}"));
            ExitCode::from(2)
        }
    }
}

fn value<'a>(arguments: &'a [String], name: &str) -> Option<&'a str> {
    let place = arguments.iter().position(|argument| argument == name)?;
    arguments.get(place + 1).map(String::as_str)
}

fn sweep(arguments: &[String]) -> Result<bool, String> {
    let verbose = arguments.iter().any(|argument| argument == "--verbose");
    let number = |text: &str| {
        text.parse::<u64>()
            .map_err(|_| format!("`{text}` is not a number"))
    };
    let seeds = match (value(arguments, "--seed"), value(arguments, "--seeds")) {
        (Some(seed), _) => {
            let seed = number(seed)?;
            seed..seed + 1
        }
        (None, Some(range)) => {
            let (from, to) = range
                .split_once("..")
                .ok_or_else(|| format!("`{range}` is not like 0..500"))?;
            number(from)?..number(to)?
        }
        (None, None) => 0..500,
    };
    let planted = match value(arguments, "--planted") {
        None => None,
        Some(words) => {
            let found = Planted::ALL.iter().find(|(name, _)| name.contains(words));
            let (_, planted) = found.ok_or_else(|| format!("no planted bug is like `{words}`"))?;
            Some(*planted)
        }
    };
    let mut out = io::stdout().lock();
    let mut fired = Fired::default();
    let (mut steps, mut records, mut sealed, mut rolled_back, mut parked, mut failed) =
        (0, 0, 0, 0, 0, 0);
    let count = seeds.end.saturating_sub(seeds.start);
    for seed in seeds {
        let report = run(seed, planted, verbose);
        for line in &report.trace {
            writeln!(out, "{line}").map_err(|error| error.to_string())?;
        }
        if let Some(broken) = &report.broken {
            failed += 1;
            writeln!(out, "seed {seed}: {broken}").map_err(|error| error.to_string())?;
        }
        fired.add(&report.fired);
        steps += report.steps;
        records += report.records;
        sealed += report.sealed;
        rolled_back += report.rolled_back;
        parked += report.parked;
    }
    let faults: Vec<String> = Fault::ALL
        .iter()
        .map(|fault| format!("{fault:?} {}", fired.times(*fault)))
        .collect();
    let lines = [
        format!("{count} seeds, {failed} broken; {steps} engine steps, {records} records"),
        format!("rollouts: {sealed} sealed, {rolled_back} rolled back, {parked} times parked"),
        format!("faults: {}", faults.join(", ")),
    ];
    for line in lines {
        writeln!(out, "{line}").map_err(|error| error.to_string())?;
    }
    Ok(failed == 0)
}
