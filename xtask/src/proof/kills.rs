//! kill -9 of everything, one after the other and at once.

use std::{fs, thread::sleep, time::Duration};

use anyhow::{Context as _, bail, ensure};

use crate::live::{
    App, AppSettings, Build, Host, HostSettings, Judge, JudgeSettings, Verdict, instant, is_short,
    kill, now_micros, wait_until,
};

/// A release of flextime that fails half of its requests.
const BROKEN: u64 = 5;
/// An answer later than the application's time and this is lost (contract.md).
const LATE_AFTER: Duration = Duration::from_secs(1);

/// Fewer rounds in the short form.
fn rounds(full: usize, short: usize) -> usize {
    if is_short() { short } else { full }
}

fn load(rate: u32) -> JudgeSettings {
    JudgeSettings {
        rate,
        websockets: 0,
        events: 0,
        http2: 0,
        ..JudgeSettings::default()
    }
}

/// A host that serves release 1, sealed.
fn serving(build: &Build, name: &str) -> anyhow::Result<(Host, App)> {
    let host = Host::start(build, name, HostSettings::default())?;
    let app = App::new(&host, build, AppSettings::default())?;
    app.deploy_well(&host, 1, "rolling", "seal")?;
    Ok((host, app))
}

/// One instance of three dies: idempotent requests are answered elsewhere.
pub(crate) fn instance_kill(build: &Build) -> anyhow::Result<()> {
    let (host, app) = serving(build, "ikill")?;
    let rate = if is_short() { 300 } else { 1_000 };
    let judge = Judge::start(build, &host, &app, &load(rate))?;
    let rounds = rounds(20, 3);
    let mut kills = Vec::new();
    for _ in 0..rounds {
        wait_until("three instances serve", Duration::from_secs(60), || {
            ready(&app, &host) == 3
        })?;
        // The oldest, and not before it has served for 30 s: sooner it would be a crash loop, with its back-off.
        sleep(Duration::from_secs(11));
        let instances = host.instances();
        let number = |id: &str| id.rsplit('.').next().and_then(|n| n.parse::<u64>().ok());
        let oldest = instances.iter().min_by_key(|(id, ..)| number(id));
        let (_, _, main) = oldest.context("no instance runs")?;
        let before = now_micros();
        kill(*main);
        kills.push((before, now_micros()));
        sleep(Duration::from_secs(1));
    }
    wait_until("three instances serve", Duration::from_secs(60), || {
        ready(&app, &host) == 3
    })?;
    let verdict = judge.finish()?;
    let repeated = repeated_in_time(&verdict, &kills)?;
    let lost = verdict.lost() - repeated;
    let others = lost_of(&verdict, "post");
    let idempotent = lost - others;
    println!(
        "figure: {rounds} kills, {} requests: {idempotent} idempotent lost, {others} others (in flight on the \
         instance); {repeated} slow ones were begun again on another instance, and answered in time from there",
        verdict.number("requests")
    );
    ensure!(
        idempotent == 0,
        "idempotent requests were lost:\n{}",
        verdict.samples()
    );
    // About three requests of 64 KiB are in flight on an instance at any moment.
    ensure!(
        others <= rounds as u64 * 20,
        "more were lost than can have been in flight"
    );
    Ok(())
}

/// How many late answers are those of a request whose instance was killed while it worked, and which came within
/// the application's time + 1 s of that kill (docs/decisions/0005). A late one that no kill explains is lost.
fn repeated_in_time(verdict: &Verdict, kills: &[(i64, i64)]) -> anyhow::Result<u64> {
    let late = verdict.0["lost_by_reason"]["late"].as_u64().unwrap_or(0);
    let samples = verdict.0["lost"].as_array().cloned().unwrap_or_default();
    let samples: Vec<_> = samples
        .iter()
        .filter(|sample| sample["reason"] == "late")
        .collect();
    ensure!(
        samples.len() as u64 == late,
        "the judge kept {} samples of {late} late answers",
        samples.len()
    );
    let mut in_time = 0;
    for sample in samples {
        let micros = |key: &str| sample[key].as_u64().map(|millis| millis as i64 * 1_000);
        let (Some(arrived), Some(waited), Some(worked)) =
            (sample["at"].as_i64(), micros("waited_ms"), micros("app_ms"))
        else {
            bail!("the judge left out how long an answer took: {sample}");
        };
        let sent = arrived - waited;
        let limit = worked + LATE_AFTER.as_micros() as i64;
        // The kill lies between two readings of the clock.
        let explains = |(begun, done): &(i64, i64)| {
            sent <= *done && *begun <= arrived && arrived <= done + limit
        };
        if sample["kind"] == "wait" && kills.iter().any(explains) {
            in_time += 1;
        }
    }
    Ok(in_time)
}

fn lost_of(verdict: &Verdict, kind: &str) -> u64 {
    verdict.0["kinds"][kind]["lost"].as_u64().unwrap_or(0)
}

/// How many instances count as ready.
fn ready(app: &App, host: &Host) -> u64 {
    let Ok(status) = app.status(host) else {
        return 0;
    };
    let groups = status["services"].as_array().into_iter().flatten();
    let groups = groups.flat_map(|service| service["groups"].as_array().into_iter().flatten());
    groups
        .map(|group| group["ready"].as_u64().unwrap_or(0))
        .sum()
}

/// The proxy's worker dies while the server is stopped: connections wait, none is refused.
pub(crate) fn proxy_kill(build: &Build) -> anyhow::Result<()> {
    let (mut host, app) = serving(build, "pkill")?;
    host.kill_server();
    let rate = if is_short() { 300 } else { 1_000 };
    let judge = Judge::start(build, &host, &app, &load(rate))?;
    let rounds = rounds(20, 3);
    let mut slowest = Duration::ZERO;
    for _ in 0..rounds {
        let (_, worker) = host.proxy()?;
        kill(worker);
        let killed = instant();
        wait_until("the proxy answers again", Duration::from_secs(10), || {
            app.get(&host, "/version").is_ok()
        })?;
        slowest = slowest.max(killed.elapsed());
        sleep(Duration::from_secs(1));
    }
    let verdict = judge.finish()?;
    let refused = verdict.0["lost_by_reason"]["refused"].as_u64().unwrap_or(0);
    println!(
        "figure: {rounds} kills, {} requests: {refused} refused, {} lost in flight ({}), next answer after at most {} ms",
        verdict.number("requests"),
        verdict.lost(),
        verdict.0["lost_by_reason"],
        slowest.as_millis()
    );
    ensure!(refused == 0, "connections were refused");
    ensure!(
        slowest < Duration::from_secs(1),
        "the next answer took a second or more"
    );
    Ok(())
}

/// Everything dies and the run folder is emptied; only the server is started.
pub(crate) fn host_loss(build: &Build) -> anyhow::Result<()> {
    let (mut host, app) = serving(build, "hostloss")?;
    let killed = host.kill_everything();
    wait_until("everything is dead", Duration::from_secs(10), || {
        host.instances().is_empty()
    })?;
    fs::remove_dir_all(host.run()).context("failed to empty the run folder")?;
    // A stranger now has a number that a process of ours may have had: nobody may signal it.
    let mut stranger = crate::live::spawn(crate::live::command("sleep").arg("300"))?;
    let begun = instant();
    host.start_server()?;
    wait_until("three instances serve", Duration::from_secs(60), || {
        ready(&app, &host) == 3
    })?;
    wait_until("the app answers", Duration::from_secs(10), || {
        app.get(&host, "/version").is_ok()
    })?;
    let took = begun.elapsed();
    let unharmed = matches!(stranger.try_wait(), Ok(None));
    drop(stranger.kill());
    drop(stranger.wait());
    println!(
        "figure: {} processes killed, all services serve again after {:.1} s; a bystander was signalled: {}",
        killed.len(),
        took.as_secs_f64(),
        !unharmed
    );
    ensure!(unharmed, "a process that is not ours was signalled");
    Ok(())
}

/// The server dies at moments spread over rollouts of every strategy.
pub(crate) fn server_kill(build: &Build) -> anyhow::Result<()> {
    let (mut host, app) = serving(build, "skill")?;
    let rate = if is_short() { 200 } else { 500 };
    let settings = JudgeSettings {
        websockets: 100,
        events: 10,
        ..load(rate)
    };
    let judge = Judge::start(build, &host, &app, &settings)?;
    let rounds = rounds(50, 4);
    let mut ends: std::collections::BTreeMap<String, usize> = std::collections::BTreeMap::new();
    let mut sound = [2, 3, 4, 9].into_iter().cycle();
    for round in 0..rounds {
        // Every fourth release answers half of its requests with 500: the server dies while it takes that one back.
        let is_broken = round % 4 == 2;
        let strategy = ["rolling", "blue-green", "canary"][round % 3];
        let (strategy, release) = match is_broken {
            true => ("canary", BROKEN),
            false => (
                strategy,
                sound.next().context("there is always a next one")?,
            ),
        };
        app.build(release)?;
        let begun = app.arguments(&["deploy", "--strategy", strategy, "--wait", "start"]);
        let output = host.cli(&app.folder, &begun)?;
        let shown = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            output.status.success(),
            "round {round}: the deploy did not begin: {shown}"
        );
        // Moments without a pattern: a fixed scramble of the round.
        let millis = (round as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) % 9_000;
        sleep(Duration::from_millis(millis));
        host.kill_server();
        sleep(Duration::from_millis(millis % 700));
        host.start_server()?;
        wait_until("the rollout ends", Duration::from_secs(120), || {
            let moving = app.moving(&host);
            moving.is_none() || moving.as_deref() == Some("parked")
        })?;
        let history = app.history(&host)?;
        let end = history
            .first()
            .and_then(|rollout| rollout["state"].as_str())
            .unwrap_or("?");
        if end == "parked" {
            bail!(
                "round {round}: parked, which nothing here calls for: {}",
                history[0]["reason"]
            );
        }
        let wanted = if is_broken { "rolled-back" } else { "sealed" };
        ensure!(
            end == wanted,
            "round {round}: {strategy} of release {release} ended {end}: {}",
            history[0]["reason"]
        );
        *ends.entry(end.to_owned()).or_default() += 1;
        let seen = judge.snapshot()?;
        println!(
            "  {:>2}: {strategy} killed after {millis} ms: {end}; {} lost",
            round + 1,
            seen.lost()
        );
        ensure!(
            seen.lost() + seen.cut() == 0,
            "lost in round {round}:\n{}",
            seen.samples()
        );
    }
    let verdict = judge.finish()?;
    println!(
        "figure: {rounds} kills: {ends:?}; {} requests, {} lost, {} streams cut; nothing was unlocked by hand",
        verdict.number("requests"),
        verdict.lost(),
        verdict.cut()
    );
    ensure!(
        verdict.lost() + verdict.cut() == 0,
        "lost:\n{}",
        verdict.samples()
    );
    Ok(())
}
