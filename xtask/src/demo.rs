//! `cargo xtask demo`: one app, four releases by three strategies and a broken one, under load and open WebSockets.
//! It prints the ledger of each rollout and one line in the end, and fails if anything was lost that must not be.

use std::time::Duration;

use anyhow::{bail, ensure};
use serde_json::Value;

use crate::live::{App, AppSettings, Build, Host, HostSettings, Judge, JudgeSettings, instant};

pub(crate) const USAGE: &str = "demo";

/// What is deployed, how, and with which exit code it must end.
const MOVES: [(u64, &str, i32, &str); 5] = [
    (1, "rolling", 0, "first release"),
    (2, "rolling", 0, "instance by instance"),
    (
        3,
        "blue-green",
        0,
        "complete beside the old, then one switch",
    ),
    (4, "canary", 0, "5 %, 25 %, 100 %, each judged"),
    (
        5,
        "canary",
        5,
        "fails half of its requests: caught and taken back by itself",
    ),
];
/// Load for a machine of two cores that also builds nothing meanwhile.
const LOAD: (u32, u32, u32) = (300, 200, 20);
const TIME_MAX: Duration = Duration::from_secs(120);

/// Runs the demo.
pub(crate) fn run() -> anyhow::Result<()> {
    let build = Build::find()?;
    let begun = instant();
    println!("Landfast demo: examples/flextime, three replicas, on loopback.");
    println!("Times are short here: min_ready 1 s, hold 5 s, standby 5 s, drain 10 s.\n");
    let host = Host::start(&build, "demo", HostSettings::default())?;
    let app = App::new(&host, &build, AppSettings::default())?;
    let (rate, websockets, events) = LOAD;
    let mut judge: Option<Judge> = None;
    for (version, strategy, expected, words) in MOVES {
        println!("release {version} by {strategy} ({words})");
        app.build(version)?;
        let code = app.deploy(&host, strategy, "seal")?;
        ensure!(
            code == expected,
            "it ended with exit code {code} instead of {expected}"
        );
        print_ledger(&app, &host)?;
        if judge.is_none() {
            let settings = JudgeSettings {
                rate,
                websockets,
                events,
                ..JudgeSettings::default()
            };
            judge = Some(Judge::start(&build, &host, &app, &settings)?);
            println!(
                "  load: {rate} requests/s, {websockets} WebSockets, {events} event streams\n"
            );
        }
    }
    let serving = app.get(&host, "/version")?;
    ensure!(
        serving["version"] == "4",
        "release 4 should serve, but it is {serving}"
    );
    let Some(judge) = judge else {
        bail!("there was no judge");
    };
    let verdict = judge.finish()?;
    let took = begun.elapsed();
    let (lost, cut) = (verdict.lost(), verdict.cut());
    println!(
        "summary: {} requests, {lost} lost; {} streams opened, {cut} cut; {} answers failed by release 5 on \
         purpose; {:.0} s",
        verdict.number("requests"),
        verdict.number("streams_opened"),
        verdict.number("faults"),
        took.as_secs_f64(),
    );
    if lost + cut > 0 || !verdict.is_valid() {
        bail!(
            "something was lost that must not be, or the judge fell behind:\n{}",
            verdict.samples()
        );
    }
    ensure!(
        took < TIME_MAX,
        "it took longer than {} s",
        TIME_MAX.as_secs()
    );
    Ok(())
}

fn print_ledger(app: &App, host: &Host) -> anyhow::Result<()> {
    let rollouts = app.history(host)?;
    let Some(rollout) = rollouts.first() else {
        bail!("the history is empty");
    };
    let ledger = &rollout["ledger"];
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    let millis = |value: &Value| match value.as_f64() {
        Some(millis) => format!("{millis:.1} ms"),
        None => "-".to_owned(),
    };
    let p99 = &ledger["latency_p99"];
    println!(
        "  rollout {}: {}; requests {}, lost {}, retried {}; streams drained {}, cut {}; P99 before {}, during {}; \
         longest pause {} ms",
        number(&rollout["id"]),
        rollout["state"].as_str().unwrap_or("?"),
        number(&ledger["requests"]),
        number(&ledger["lost"]),
        number(&ledger["retries"]),
        number(&ledger["streams"]["drained"]),
        number(&ledger["streams"]["cut"]),
        millis(&p99["before_ms"]),
        millis(&p99["during_ms"]),
        number(&ledger["pause_longest_ms"]),
    );
    for release in ledger["releases"].as_array().into_iter().flatten() {
        println!(
            "    release {}: {} answers, {} of them its own 5xx",
            number(&release["release"]),
            number(&release["requests"]),
            number(&release["errors_theirs"])
        );
    }
    if let Some(reason) = rollout["reason"].as_str() {
        println!("    why: {reason}");
    }
    println!();
    Ok(())
}
