//! `cargo xtask faults`: backups under faults, one run for each fault and seed, kept line by line in `docs/faults.jsonl` and shown in
//! `docs/faults.md`. A run whose line is there for this commit is skipped.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    process::{Child, Stdio},
    thread::sleep,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};

use crate::live::{command, instant, target_folder};

pub(crate) const USAGE: &str = "faults [--only F1,F5] [--seeds N] [--minutes N] [--again]";

const LINES: &str = "docs/faults.jsonl";
const TABLE: &str = "docs/faults.md";
/// A run that takes longer has failed.
const RUN_MAX: Duration = Duration::from_secs(900);
const SEEDS: u64 = 5;
/// Host loss is a distribution.
const SEEDS_OF_HOST_LOSS: u64 = 20;
const HOST_LOSS: &str = "F5";

struct Wish {
    only: Vec<String>,
    seeds: Option<u64>,
    minutes: u64,
    is_again: bool,
}

pub(crate) fn run(arguments: &[String]) -> anyhow::Result<()> {
    let wish = Wish::read(arguments)?;
    let begun = instant();
    let limit = Duration::from_secs(wish.minutes * 60);
    let program = target_folder().join("debug/landfast-faults");
    let shown = program.display();
    ensure!(
        program.is_file(),
        "`{shown}` was not built; run `make faults`"
    );
    let list = command(program.display().to_string())
        .arg("list")
        .output()?;
    let list = String::from_utf8(list.stdout)?;
    let faults: Vec<(&str, &str)> = list
        .lines()
        .filter_map(|line| line.split_once(' '))
        .collect();
    let (commit, date) = (commit()?, date()?);
    let done = lines()?;
    let is_done = |fault: &str, seed: u64| {
        done.iter()
            .any(|line| line["fault"] == fault && line["seed"] == seed && line["commit"] == *commit)
    };
    let mut failed = Vec::new();
    // Seed by seed, so that a piece that is cut short has seen every fault.
    for seed in 1..=SEEDS_OF_HOST_LOSS.max(wish.seeds.unwrap_or(SEEDS)) {
        for (fault, _) in &faults {
            let usual = if *fault == HOST_LOSS {
                SEEDS_OF_HOST_LOSS
            } else {
                SEEDS
            };
            let is_wanted = wish.only.is_empty() || wish.only.iter().any(|only| only == fault);
            if !is_wanted
                || seed > wish.seeds.unwrap_or(usual)
                || (is_done(fault, seed) && !wish.is_again)
            {
                continue;
            }
            if begun.elapsed() > limit {
                println!("{} minutes are over; the next call goes on", wish.minutes);
                return finish(&faults, &failed);
            }
            let mut outcome = one(&program.display().to_string(), fault, seed)?;
            outcome["commit"] = json!(commit);
            outcome["date"] = json!(date);
            println!("{}", sentence(&outcome));
            if outcome["is_passed"] != true {
                failed.push(format!("{fault} seed {seed}"));
            }
            let mut file = fs::File::options().append(true).create(true).open(LINES)?;
            writeln!(file, "{outcome}")?;
        }
    }
    finish(&faults, &failed)
}

impl Wish {
    fn read(arguments: &[String]) -> anyhow::Result<Self> {
        let mut this = Self {
            only: Vec::new(),
            seeds: None,
            minutes: 120,
            is_again: false,
        };
        let mut words = arguments.iter();
        while let Some(word) = words.next() {
            let mut value = || {
                words
                    .next()
                    .with_context(|| format!("`{word}` needs a value"))
            };
            match word.as_str() {
                "--only" => this.only = value()?.split(',').map(str::to_owned).collect(),
                "--seeds" => this.seeds = Some(value()?.parse()?),
                "--minutes" => this.minutes = value()?.parse()?,
                "--again" => this.is_again = true,
                _ => bail!("usage: cargo xtask {USAGE}"),
            }
        }
        Ok(this)
    }
}

/// One run in a process of its own, given up after a while.
fn one(program: &str, fault: &str, seed: u64) -> anyhow::Result<Value> {
    let mut child = command(program)
        .args(["one", fault, &seed.to_string()])
        .stdout(Stdio::piped())
        .spawn()?;
    let begun = instant();
    let wrong =
        |wrong: String| json!({"fault": fault, "seed": seed, "is_passed": false, "wrong": [wrong]});
    while child.try_wait()?.is_none() {
        if begun.elapsed() > RUN_MAX {
            end(&mut child);
            return Ok(wrong(format!(
                "it did not end within {} s",
                RUN_MAX.as_secs()
            )));
        }
        sleep(Duration::from_millis(100));
    }
    let mut text = String::new();
    let mut stdout = child.stdout.take().context("its output is a pipe")?;
    stdout.read_to_string(&mut text)?;
    let line = text.lines().last().unwrap_or_default();
    Ok(serde_json::from_str(line).unwrap_or_else(|_| wrong("it ended without an outcome".into())))
}

fn end(child: &mut Child) {
    drop(child.kill());
    drop(child.wait());
}

fn sentence(outcome: &Value) -> String {
    let verdict = if outcome["is_passed"] == true {
        "passed"
    } else {
        "FAILED"
    };
    let number = |name: &str| outcome[name].as_u64().unwrap_or_default();
    let mut text = format!(
        "{} seed {} {verdict}: {} acknowledged, {} lost ({} ms), {:.1} s {} {}",
        outcome["fault"].as_str().unwrap_or_default(),
        number("seed"),
        number("acknowledged"),
        number("lost"),
        number("lost_ms"),
        number("took_ms") as f64 / 1e3,
        outcome["variant"].as_str().unwrap_or_default(),
        outcome["figures"]
    );
    for wrong in outcome["wrong"].as_array().into_iter().flatten() {
        text.push_str(&format!("\n    {}", wrong.as_str().unwrap_or_default()));
    }
    text
}

fn finish(faults: &[(&str, &str)], failed: &[String]) -> anyhow::Result<()> {
    fs::write(TABLE, table(faults, &lines()?))?;
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}

fn lines() -> anyhow::Result<Vec<Value>> {
    let text = fs::read_to_string(LINES).unwrap_or_default();
    let lines = text.lines().map(serde_json::from_str);
    lines
        .collect::<Result<_, _>>()
        .with_context(|| format!("read `{LINES}`"))
}

/// The newest line of each fault and seed.
fn table(faults: &[(&str, &str)], lines: &[Value]) -> String {
    let mut newest = BTreeMap::new();
    for line in lines {
        let key = (
            line["fault"].as_str().unwrap_or_default(),
            line["seed"].as_u64(),
        );
        newest.insert(key, line);
    }
    let mut text = String::from(
        "# Backups under faults\n\nWritten by `make faults` from `faults.jsonl`: the newest run of each fault and seed. The servers run without \
         `fsync`, so this shows deaths of processes and hosts, and no loss of power.\n\n\
         | fault | seeds passed | acknowledged rows | lost | worst loss | last run | commits |\n| --- | --- | --- | --- | --- | --- | --- |\n",
    );
    let mut all = 0;
    for (fault, what) in faults {
        let runs: Vec<&Value> = newest
            .iter()
            .filter(|((of, _), _)| of == fault)
            .map(|(_, line)| *line)
            .collect();
        let sum = |name: &str| {
            runs.iter()
                .filter_map(|run| run[name].as_u64())
                .sum::<u64>()
        };
        let passed = runs.iter().filter(|run| run["is_passed"] == true).count();
        let worst = runs
            .iter()
            .filter_map(|run| run["lost_ms"].as_u64())
            .max()
            .unwrap_or_default();
        let words = |name: &str| {
            let mut words: Vec<_> = runs.iter().filter_map(|run| run[name].as_str()).collect();
            words.sort_unstable();
            words.dedup();
            words
        };
        all += sum("acknowledged");
        let worst = if worst == 0 {
            "–".to_owned()
        } else {
            format!("{:.1} s", worst as f64 / 1e3)
        };
        text.push_str(&format!(
            "| {fault}: {what} | {passed} of {} | {} | {} | {worst} | {} | {} |\n",
            runs.len(),
            sum("acknowledged"),
            sum("lost"),
            words("date").last().copied().unwrap_or("–"),
            words("commit").join(", "),
        ));
    }
    text.push_str(&format!("\n{all} acknowledged rows in all.\n"));
    host_loss(&mut text, &newest);
    text
}

fn host_loss(text: &mut String, newest: &BTreeMap<(&str, Option<u64>), &Value>) {
    let runs = newest.iter().filter(|((fault, _), _)| *fault == HOST_LOSS);
    let mut losses: Vec<u64> = runs
        .filter_map(|(_, run)| run["lost_ms"].as_u64())
        .collect();
    losses.sort_unstable();
    let Some(worst) = losses.last() else { return };
    let rank = (losses.len() * 99).div_ceil(100).saturating_sub(1);
    let shown: Vec<_> = losses
        .iter()
        .map(|loss| format!("{:.1}", *loss as f64 / 1e3))
        .collect();
    text.push_str(&format!("\n## Host loss\n\nSeconds of acknowledged commits that were lost with the host, shipping every 5 s, {} runs: {}. Median {:.1}, P99 {:.1}, \
         worst {:.1}; promised are at most 15, P99 at most 6.\n",
        losses.len(),
        shown.join(", "),
        losses[losses.len() / 2] as f64 / 1e3,
        losses[rank] as f64 / 1e3,
        *worst as f64 / 1e3,));
}

/// The last commit that changed code; `+` where code was changed since.
fn commit() -> anyhow::Result<String> {
    const CODE: [&str; 3] = ["crates", "Cargo.lock", "Cargo.toml"];
    let git = |words: &[&str]| {
        let output = command("git").args(words).arg("--").args(CODE).output()?;
        ensure!(output.status.success(), "`git {}` failed", words.join(" "));
        anyhow::Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    };
    let commit = git(&["log", "-1", "--format=%h"])?;
    let is_changed = !git(&["status", "--porcelain"])?.is_empty();
    Ok(if is_changed {
        format!("{commit}+")
    } else {
        commit
    })
}

fn date() -> anyhow::Result<String> {
    let output = command("date").args(["-u", "+%Y-%m-%d"]).output()?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
