//! The proxy moves to a new binary, again and again, under load.

use std::{thread::sleep, time::Duration};

use anyhow::ensure;

use crate::live::{
    App, AppSettings, Build, Host, HostSettings, Judge, JudgeSettings, Verdict, is_short,
    proportional_kib, wait_until,
};

const SECONDS_BETWEEN: u64 = 3;

/// 2,000 requests/s on 64 kept connections, 500 over 50 HTTP/2 connections, 500 WebSockets, 20 event streams.
fn load() -> JudgeSettings {
    let arguments = [
        "--connections=64",
        "--http2-connections=50",
        "--new-connections=0",
        "--posts=5",
        "--waits=0",
    ];
    JudgeSettings {
        rate: if is_short() { 500 } else { 2_500 },
        websockets: 500,
        events: 20,
        http2: 20,
        arguments: arguments.map(str::to_owned).to_vec(),
        ..JudgeSettings::default()
    }
}

/// Holder and worker are replaced by those of another copy of the binary, 20 times; then a rollout drains what the
/// first of the workers still holds.
pub(crate) fn handover(build: &Build) -> anyhow::Result<()> {
    let rounds = if is_short() { 3 } else { 20 };
    let settings = HostSettings {
        own_binary: true,
        ..HostSettings::default()
    };
    let host = Host::start(build, "handover", settings)?;
    let app = App::new(&host, build, AppSettings::default())?;
    app.deploy_well(&host, 1, "rolling", "seal")?;
    let load = load();
    let judge = Judge::start(build, &host, &app, &load)?;
    wait_until("all WebSockets are open", Duration::from_secs(30), || {
        judge
            .snapshot()
            .is_ok_and(|seen| streams(&seen, "open") == 520)
    })?;
    for round in 1..=rounds {
        let status = host.hand_over(build)?;
        sleep(Duration::from_secs(SECONDS_BETWEEN));
        let seen = judge.snapshot()?;
        println!(
            "  {round:>2}: worker {} serves; {} requests, {} lost, {} connections reset, {} streams cut, {} ended",
            status["pid"],
            seen.number("requests"),
            seen.lost(),
            resets(&seen),
            seen.cut(),
            streams(&seen, "moved") + streams(&seen, "ended"),
        );
        check(&seen, round)?;
    }
    let kept = judge.snapshot()?;
    let elders = host.elders();
    let memory: u64 = elders.iter().map(|pid| proportional_kib(*pid)).sum();
    println!(
        "  {} older workers left, {:.1} MB PSS together",
        elders.len(),
        memory as f64 / 1024.0
    );
    ensure!(
        streams(&kept, "opened") == 520 && streams(&kept, "open") == 520,
        "streams ended although their workers had time: {}",
        kept.0["streams"]
    );
    // A rollout meets the streams that the first worker holds: each gets its Close, and only then its instance stops.
    app.deploy_well(&host, 2, "rolling", "promotion")?;
    wait_until(
        "no older worker holds anything",
        Duration::from_secs(90),
        || host.elders().is_empty(),
    )?;
    let verdict = judge.finish()?;
    println!(
        "figure: {rounds} hand-overs of holder and worker, {} requests at {}/s (64 kept connections, 50 over HTTP/2): {} lost, \
         {} connections reset; 500 WebSockets and 20 event streams lived through all, {} cut; a rollout then closed {} of them in order",
        verdict.number("requests"),
        load.rate,
        verdict.lost(),
        resets(&verdict),
        verdict.cut(),
        streams(&verdict, "moved") + streams(&verdict, "ended"),
    );
    ensure!(
        verdict.is_valid(),
        "the judge fell behind:\n{}",
        verdict.samples()
    );
    check(&verdict, rounds)
}

fn check(seen: &Verdict, round: u32) -> anyhow::Result<()> {
    ensure!(
        seen.lost() + seen.cut() + resets(seen) == 0,
        "lost by hand-over {round}:\n{}",
        seen.samples()
    );
    Ok(())
}

fn resets(verdict: &Verdict) -> u64 {
    verdict.0["connections"]["reset"].as_u64().unwrap_or(0)
}

fn streams(verdict: &Verdict, name: &str) -> u64 {
    verdict.0["streams"][name].as_u64().unwrap_or(0)
}
