//! `cargo xtask tests`: every test of the workspace, several test programs at a time. `cargo test` runs one after the other,
//! and most of ours wait for servers and clocks. What a program printed is shown whole once it has ended.
//!
//! A test with real servers that fails beside the others is run once more alone, when all the rest is done (decision 0034).
//! If it passes then it is told as unsteady, with what it said at first, and fails nothing.

use std::{
    collections::VecDeque,
    io::{Read as _, Seek as _},
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use crate::live::{command, instant};

pub(crate) const USAGE: &str = "tests [--programs N] [--threads N] [--only NAME] [--once]";

/// A program that takes longer hangs.
const PROGRAM_MAX: Duration = Duration::from_secs(1_200);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Tests of one program at a time, unless it is said.
const THREADS: usize = 4;
/// When more tests than this fail, it is not the machine: none is tried again.
const UNSTEADY_MAX: usize = 3;
/// The packages whose integration tests start real servers and processes and wait for them. No other gets a second try:
/// what fails without them fails by its code or its seed.
const WITH_SERVERS: [&str; 13] = [
    "flextime",
    "landfast",
    "landfast-backup-files",
    "landfast-backup-postgres",
    "landfast-datastore-client",
    "landfast-faults",
    "landfast-migrator",
    "landfast-proxy",
    "landfast-repository",
    "landfast-shim",
    "landfast-target-docker",
    "landfast-target-process",
    "pms",
];
/// How a program of tests ends that has told which of them failed.
const TOLD: i32 = 101;

/// One program of tests.
struct Program {
    name: String,
    path: PathBuf,
    /// Tests look for their files in the folder of their package.
    folder: PathBuf,
    has_servers: bool,
}

/// How a program has ended.
#[derive(Default)]
struct Ended {
    said: String,
    code: Option<i32>,
    /// Why it did not pass.
    why: Option<String>,
}

/// A program that did not pass.
struct Failure {
    program: Program,
    why: String,
    /// The tests that failed. None where it ended in another way, or did not tell all.
    tests: Vec<String>,
}

/// Builds, runs, tells.
pub(crate) fn run(arguments: &[String]) -> anyhow::Result<()> {
    let cores = thread::available_parallelism().map_or(2, usize::from);
    let (mut programs_max, mut threads) = (cores + 1, THREADS);
    let (mut once, mut only) = (false, "");
    let mut rest = arguments.iter();
    while let Some(flag) = rest.next() {
        if flag == "--once" {
            once = true;
            continue;
        }
        let value = rest.next().context("a flag lacks its value")?;
        match flag.as_str() {
            "--programs" => programs_max = value.parse()?,
            "--threads" => threads = value.parse()?,
            // Programs in whose names it is: `landfast test switches`.
            "--only" => only = value,
            _ => bail!("usage: cargo xtask {USAGE}"),
        }
    }
    let begun = instant();
    let mut queue: VecDeque<Program> = build()?.into();
    queue.retain(|program| program.name.contains(only));
    let count = queue.len();
    ensure!(count > 0, "no program of tests is named like `{only}`");
    println!("tests: {count} programs, {programs_max} at a time, {threads} tests of each");
    let queue = Mutex::new(queue);
    let failed = Mutex::new(Vec::new());
    let next = || {
        queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
    };
    thread::scope(|scope| {
        for _ in 0..programs_max.max(1) {
            scope.spawn(|| {
                while let Some(program) = next() {
                    let outcome = run_program(&program, threads, None);
                    // One at a time prints, so that no two reports are mixed.
                    let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                    let ended = outcome.unwrap_or_else(|error| Ended {
                        why: Some(format!("{error:#}")),
                        ..Ended::default()
                    });
                    println!("     Running {}\n{}", program.name, ended.said);
                    if let Some(why) = ended.why {
                        let is_told = ended.code == Some(TOLD);
                        failed.push(Failure {
                            tests: failures(&ended.said)
                                .filter(|_| is_told)
                                .unwrap_or_default(),
                            program,
                            why,
                        });
                    }
                }
            });
        }
    });
    let mut examples = cargo();
    examples.args(["test", "--locked", "--workspace", "--doc", "--quiet"]);
    let documented = !only.is_empty() || examples.status()?.success();
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    let failed_tests: usize = failed.iter().map(|failure| failure.tests.len()).sum();
    let tries_again = !once && failed_tests <= UNSTEADY_MAX;
    let (mut lasting, mut unsteady) = (Vec::new(), Vec::new());
    for failure in failed {
        let name = &failure.program.name;
        if tries_again && passes_alone(&failure) {
            let tests = failure.tests.iter();
            unsteady.extend(tests.map(|test| format!("{name}: {test}")));
        } else {
            lasting.push(format!("{name}: {}", failure.why));
        }
    }
    if !documented {
        lasting.push("examples in the documentation".to_owned());
    }
    if !unsteady.is_empty() {
        println!(
            "tests: UNSTEADY, failed beside the others (above) and passed alone; each is a defect to be mended:\n  {}",
            unsteady.join("\n  ")
        );
    }
    ensure!(
        lasting.is_empty(),
        "{} of {count} programs failed:\n  {}",
        lasting.len(),
        lasting.join("\n  ")
    );
    println!(
        "tests: passed in {} s ({} unsteady)",
        begun.elapsed().as_secs(),
        unsteady.len()
    );
    Ok(())
}

/// Runs each test that failed once more, alone. False where the program did not tell which, or may have no second try.
fn passes_alone(failure: &Failure) -> bool {
    let program = &failure.program;
    let passes = |test: &String| {
        println!("     Running {} again, alone: {test}", program.name);
        match run_program(program, 1, Some(test)) {
            Ok(ended) => {
                println!("{}", ended.said);
                // A name that selects nothing passes, too.
                ended.why.is_none() && ended.said.contains("test result: ok. 1 passed")
            }
            Err(error) => {
                println!("{error:#}");
                false
            }
        }
    };
    program.has_servers && !failure.tests.is_empty() && failure.tests.iter().all(passes)
}

/// The names of the tests that failed: what libtest lists last. `None` where they are not as many as it counts, because
/// something else wrote in between.
fn failures(said: &str) -> Option<Vec<String>> {
    let (_, list) = said.rsplit_once("\nfailures:\n")?;
    let names = list.lines().map_while(|line| line.strip_prefix("    "));
    let names: Vec<_> = names.map(|name| name.trim().to_owned()).collect();
    let (_, result) = list.rsplit_once("test result: FAILED. ")?;
    let mut counts = result.split("; ");
    let failed = counts.find_map(|count| count.strip_suffix(" failed"))?;
    (failed.parse() == Ok(names.len())).then_some(names)
}

fn cargo() -> std::process::Command {
    command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Builds all test programs, as `cargo test` does; in cargo's order.
fn build() -> anyhow::Result<Vec<Program>> {
    let output = cargo()
        .args(["test", "--locked", "--workspace", "--no-run"])
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit())
        .output()
        .context("failed to start cargo")?;
    ensure!(output.status.success(), "the tests were not built");
    let mut programs = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let message: Value = serde_json::from_str(line).context("cargo speaks JSON")?;
        if message["profile"]["test"] != true {
            continue;
        }
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let Some(path) = text(&message["executable"]) else {
            continue;
        };
        let manifest = text(&message["manifest_path"]).context("a package has a manifest")?;
        let folder = Path::new(&manifest)
            .parent()
            .context("a manifest is in a folder")?;
        let package = folder.file_name().unwrap_or_default().to_string_lossy();
        let target = text(&message["target"]["name"]).unwrap_or_default();
        let kind = text(&message["target"]["kind"][0]).unwrap_or_default();
        programs.push(Program {
            name: format!("{package} {kind} {target}"),
            path: path.into(),
            folder: folder.to_owned(),
            has_servers: kind == "test" && WITH_SERVERS.contains(&&*package),
        });
    }
    ensure!(!programs.is_empty(), "there are no tests");
    Ok(programs)
}

/// Runs a program, or with `only` one of its tests.
fn run_program(program: &Program, threads: usize, only: Option<&str>) -> anyhow::Result<Ended> {
    let mut output = tempfile::tempfile()?;
    let only = only.map(|test| [test, "--exact"]);
    let mut child = command(&program.path)
        .args(only.iter().flatten())
        .current_dir(&program.folder)
        .env("CARGO_MANIFEST_DIR", &program.folder)
        .env("RUST_TEST_THREADS", threads.to_string())
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output.try_clone()?)
        .spawn()?;
    let begun = instant();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if begun.elapsed() > PROGRAM_MAX {
            child.kill()?;
            child.wait()?;
            break None;
        }
        thread::sleep(LOOK_EVERY);
    };
    let mut bytes = Vec::new();
    output.rewind()?;
    output.read_to_end(&mut bytes)?;
    let why = match status {
        Some(status) if status.success() => None,
        Some(status) => Some(status.to_string()),
        None => Some(format!(
            "hangs: it did not end within {} s",
            PROGRAM_MAX.as_secs()
        )),
    };
    Ok(Ended {
        said: String::from_utf8_lossy(&bytes).into_owned(),
        code: status.and_then(|status| status.code()),
        why,
    })
}

#[cfg(test)]
mod reading {
    use super::failures;

    #[test]
    fn reads_which_tests_failed() {
        let said = |list: &str| {
            format!(
                "running 3 tests\ntest a ... ok\n\nfailures:\n\n---- b::c stdout ----\n    left: 1\n\n\nfailures:\n{list}\ntest result: FAILED. 1 passed; 2 failed; 0 ignored; finished in 0.10s\n"
            )
        };
        let names = ["b::c", "d"].map(str::to_owned).to_vec();
        assert_eq!(failures(&said("    b::c\n    d\n")), Some(names));
        // Another process wrote in between, so that a name is not seen.
        assert_eq!(failures(&said("    b::c\nLOG: ends\n    d\n")), None);
        assert_eq!(failures("running 1 test\ntest a ... ok\n"), None);
    }
}
