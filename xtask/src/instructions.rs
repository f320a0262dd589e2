//! `cargo xtask instructions`: instructions of the cases of `landfast-cases`, counted by callgrind and held against a
//! committed baseline. A count does not depend on how fast or busy the machine is.
//!
//! Each case runs twice, with N and with 2 N repeats, and the difference is what N repeats take: start and preparation
//! cancel out. The development profile is counted, which every check builds anyhow; the toolchain is pinned, so the
//! code is the same everywhere. What may still differ is the C library's choice of `memcpy` and its kin by processor:
//! the tunables below take the plainest ones. Hash seeds are random and move a count by a fraction of a percent.
//!
//! Another version of the C library or of SQLite's compiler may move all journal cases by a few percent; then, as after
//! a change that is worth its price, the baseline is renewed with `--renew` and committed with the reason.

use std::{
    collections::BTreeMap,
    fs, iter,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use anyhow::{Context as _, bail, ensure};

use crate::live::{command, target_folder};

pub(crate) const USAGE: &str = "instructions [--renew]";

/// How much more than its baseline a case may take.
const GROWTH_MAX: f64 = 0.05;
/// A case that takes this much less should have its baseline renewed, or the gain can be lost unseen.
const FALL_NOTED: f64 = 0.05;

/// Counts, and compares or renews.
pub(crate) fn run(arguments: &[String]) -> anyhow::Result<()> {
    let renew = match arguments {
        [] => false,
        [flag] if flag == "--renew" => true,
        _ => bail!("usage: cargo xtask {USAGE}"),
    };
    let binary = build()?;
    let counted = count_all(&binary)?;
    let path = baseline_path();
    if renew {
        let lines = counted
            .iter()
            .map(|(name, count)| format!("{name} {count}\n"));
        fs::write(&path, lines.collect::<String>())?;
        println!("written: {}", path.display());
        return Ok(());
    }
    compare(&counted, &baseline(&fs::read_to_string(&path)?)?)
}

fn baseline_path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../crates/landfast-cases/instructions.txt")
}

fn build() -> anyhow::Result<PathBuf> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let built = command(cargo)
        .args(["build", "--locked", "--quiet", "--workspace"])
        .args(["--bin", "landfast-cases"])
        .status()?;
    ensure!(built.success(), "the cases were not built");
    Ok(target_folder().join("debug/landfast-cases"))
}

fn count_all(binary: &Path) -> anyhow::Result<BTreeMap<String, u64>> {
    let listed = command(binary)
        .output()
        .context("failed to list the cases")?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let cases: Vec<&str> = listed.lines().collect();
    let next = AtomicUsize::new(0);
    let work = || -> anyhow::Result<Vec<_>> {
        let taken = iter::from_fn(|| cases.get(next.fetch_add(1, Ordering::Relaxed)));
        taken.map(|case| count_case(binary, case)).collect()
    };
    // Counts do not depend on what runs beside them.
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let done: Vec<_> = thread::scope(|scope| {
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        let joined = workers.into_iter().map(|worker| worker.join());
        joined
            .map(|done| done.expect("a counter panicked"))
            .collect()
    });
    let mut counted = BTreeMap::new();
    for counts in done {
        counted.extend(counts?);
    }
    ensure!(!counted.is_empty(), "there is no case");
    Ok(counted)
}

/// The instructions of one repeat of a case, from a line `name repeats`.
fn count_case(binary: &Path, line: &str) -> anyhow::Result<(String, u64)> {
    let (name, repeats) = line
        .split_once(' ')
        .context("a case has a number of repeats")?;
    let repeats: u64 = repeats.parse()?;
    let (once, twice) = (
        count(binary, name, repeats)?,
        count(binary, name, 2 * repeats)?,
    );
    Ok((name.to_owned(), twice.saturating_sub(once) / repeats))
}

/// Instructions of a whole process.
fn count(binary: &Path, case: &str, times: u64) -> anyhow::Result<u64> {
    let output = command("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(binary)
        .args([case, &times.to_string()])
        .env(
            "GLIBC_TUNABLES",
            "glibc.cpu.hwcaps=-AVX512F,-AVX2,-AVX,-ERMS,-FSRM,-SSE4_2,-SSSE3",
        )
        .output()
        .context("failed to start valgrind; run `make setup`")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{case} failed under valgrind: {said}"
    );
    // ==12== Collected : 123456
    let collected = said
        .lines()
        .find_map(|line| line.split_once("Collected : "));
    let (_, number) = collected.with_context(|| format!("valgrind says no count: {said}"))?;
    Ok(number.trim().parse()?)
}

fn baseline(text: &str) -> anyhow::Result<BTreeMap<String, u64>> {
    let line = |line: &str| {
        let (name, count) = line.split_once(' ').context("a baseline is `name count`")?;
        Ok((name.to_owned(), count.parse()?))
    };
    text.lines().map(line).collect()
}

fn compare(
    counted: &BTreeMap<String, u64>,
    baseline: &BTreeMap<String, u64>,
) -> anyhow::Result<()> {
    let mut grown = Vec::new();
    println!(
        "{:28} {:>12} {:>12} {:>8}",
        "case", "counted", "baseline", "change"
    );
    for (name, count) in counted {
        let Some(before) = baseline.get(name) else {
            println!("{name:28} {count:>12} {:>12}", "-");
            grown.push(format!("{name} has no baseline"));
            continue;
        };
        let change = *count as f64 / *before as f64 - 1.0;
        let note = if change < -FALL_NOTED {
            "  less: renew the baseline"
        } else {
            ""
        };
        println!(
            "{name:28} {count:>12} {before:>12} {:>+7.1}%{note}",
            change * 100.0
        );
        if change > GROWTH_MAX {
            grown.push(format!("{name} takes {:.1} % more", change * 100.0));
        }
    }
    ensure!(
        grown.is_empty(),
        "{}; if that is worth its price, run `cargo xtask instructions --renew` and say why in the commit",
        grown.join(", ")
    );
    Ok(())
}
