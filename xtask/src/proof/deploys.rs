//! A hundred deploys under load, and the controls that show the judge is not blind.

use std::{thread::sleep, time::Duration};

use anyhow::{Context as _, bail, ensure};
use landfast_testbed::Dockerd;

use crate::live::{
    App, AppSettings, Build, Content, Host, HostSettings, Judge, JudgeSettings, is_short,
    wait_until,
};

/// What a step of the row does.
#[derive(Debug, Clone, Copy)]
enum Step {
    Deploy(&'static str),
    /// Begun, then taken back by hand while it moves.
    Abort(&'static str),
    /// Back to the release before.
    Rollback,
    /// A broken release: how, and the exit code it ends with.
    Broken(u64, &'static str),
}

/// The mix that is repeated; each strategy, rollbacks, aborts and releases that are broken in their own ways.
const ROW: [Step; 10] = [
    Step::Deploy("rolling"),
    Step::Deploy("blue-green"),
    Step::Abort("rolling"),
    Step::Deploy("canary"),
    Step::Rollback,
    Step::Abort("blue-green"),
    Step::Deploy("rolling"),
    Step::Broken(6, "rolling"),
    Step::Deploy("blue-green"),
    Step::Abort("canary"),
];

/// 100 rollouts, or 10.
pub(crate) fn deploys(build: &Build) -> anyhow::Result<()> {
    let host = Host::start(build, "deploys", HostSettings::default())?;
    let app = App::new(&host, build, AppSettings::default())?;
    row(build, &host, &app)
}

/// The same on Docker: every release an image that is built at its deploy, every instance a container.
pub(crate) fn docker_deploys(build: &Build) -> anyhow::Result<()> {
    let docker = Dockerd::start().context("no Docker engine can be started here")?;
    let settings = HostSettings {
        docker: Some(docker.address()),
        ..HostSettings::default()
    };
    let host = Host::start(build, "docker", settings)?;
    let settings = AppSettings {
        content: Content::Build,
        ..AppSettings::default()
    };
    let app = App::new(&host, build, settings)?;
    row(build, &host, &app)
}

fn row(build: &Build, host: &Host, app: &App) -> anyhow::Result<()> {
    let count = if is_short() { 10 } else { 100 };
    let rate = if is_short() { 300 } else { 1_000 };
    app.deploy_well(host, 1, "rolling", "promotion")?;
    let settings = JudgeSettings {
        rate,
        websockets: if is_short() { 200 } else { 1_000 },
        events: if is_short() { 20 } else { 100 },
        ..JudgeSettings::default()
    };
    let judge = Judge::start(build, host, app, &settings)?;
    for number in 0..count {
        let step = ROW[number % ROW.len()];
        take(host, app, step, number)?;
        let seen = judge.snapshot()?;
        println!(
            "  {:>3}: {step:?}: {} requests, {} lost, {} streams cut",
            number + 1,
            seen.number("requests"),
            seen.lost(),
            seen.cut()
        );
        ensure!(
            seen.lost() + seen.cut() == 0,
            "lost in step {}:\n{}",
            number + 1,
            seen.samples()
        );
    }
    let ours: u64 = app
        .history(host)?
        .iter()
        .map(|rollout| rollout["ledger"]["lost"].as_u64().unwrap_or(0))
        .sum();
    let verdict = judge.finish()?;
    println!(
        "figure: {count} rollouts, {} requests at {rate}/s, {} lost, {} streams opened, {} cut; the ledgers say {ours} lost",
        verdict.number("requests"),
        verdict.lost(),
        verdict.number("streams_opened"),
        verdict.cut(),
    );
    ensure!(
        verdict.is_valid(),
        "the judge fell behind:\n{}",
        verdict.samples()
    );
    ensure!(
        verdict.lost() + verdict.cut() == 0,
        "lost:\n{}",
        verdict.samples()
    );
    ensure!(ours == 0, "the ledgers disagree with the judge");
    Ok(())
}

/// The next sound release that differs from the one that serves.
fn next_release(app: &App, host: &Host, number: usize) -> anyhow::Result<u64> {
    let serving = app.get(host, "/version")?["version"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let sound = [1, 2, 3, 4, 9];
    let release = sound
        .iter()
        .cycle()
        .skip(number)
        .find(|version| version.to_string() != serving);
    Ok(*release.unwrap_or(&1))
}

fn take(host: &Host, app: &App, step: Step, number: usize) -> anyhow::Result<()> {
    let release = next_release(app, host, number)?;
    match step {
        Step::Deploy(strategy) => app.deploy_well(host, release, strategy, "promotion"),
        Step::Broken(release, strategy) => {
            app.build(release)?;
            let code = app.deploy(host, strategy, "promotion")?;
            ensure!(
                code == 5,
                "broken release {release} ended with exit code {code}, not 5"
            );
            Ok(())
        }
        Step::Rollback => {
            let arguments = app.arguments(&["rollback", "--wait", "seal"]);
            let output = host.cli(&app.folder, &arguments)?;
            let code = output.status.code().unwrap_or(-1);
            let shown = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(
                [0, 5].contains(&code),
                "the rollback ended with exit code {code}: {shown}"
            );
            Ok(())
        }
        Step::Abort(strategy) => {
            app.build(release)?;
            let arguments = app.arguments(&["deploy", "--strategy", strategy, "--wait", "start"]);
            let output = host.cli(&app.folder, &arguments)?;
            let shown = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(output.status.success(), "the deploy did not begin: {shown}");
            // A different moment each time.
            sleep(Duration::from_millis(500 + (number as u64 * 709) % 6_000));
            let aborted = host.cli(&app.folder, &app.arguments(&["abort", "--wait", "seal"]))?;
            let code = aborted.status.code().unwrap_or(-1);
            let shown = String::from_utf8_lossy(&aborted.stderr).into_owned();
            // It may have been sealed in the meantime, which the command says.
            ensure!(
                [0, 4, 5].contains(&code) || shown.contains("no rollout"),
                "abort: {code}: {shown}"
            );
            wait_until("the rollout ends", Duration::from_secs(90), || {
                app.moving(host).is_none()
            })?;
            Ok(())
        }
    }
}

/// Without drain confirmation, and without the health gate, the judge must see loss.
pub(crate) fn controls(build: &Build) -> anyhow::Result<()> {
    let mut blind = Vec::new();
    for (control, release) in [("drain-confirmation-off", 2), ("health-gate-off", 8)] {
        let settings = HostSettings {
            server_arguments: vec![format!("--{control}")],
            ..HostSettings::default()
        };
        let host = Host::start(build, "controls", settings)?;
        let gates = r#"["preflight"]"#.to_owned();
        let app = App::new(
            &host,
            build,
            AppSettings {
                gates,
                ..AppSettings::default()
            },
        )?;
        app.deploy_well(&host, 1, "rolling", "promotion")?;
        sleep(Duration::from_secs(2));
        let load = JudgeSettings {
            rate: 300,
            websockets: 100,
            events: 10,
            ..JudgeSettings::default()
        };
        let judge = Judge::start(build, &host, &app, &load)?;
        app.build(release)?;
        app.deploy(&host, "rolling", "promotion")?;
        let verdict = judge.finish()?;
        println!(
            "figure: {control}: {} of {} requests lost, {} streams cut",
            verdict.lost(),
            verdict.number("requests"),
            verdict.cut()
        );
        if verdict.lost() == 0 {
            blind.push(control);
        }
    }
    if !blind.is_empty() {
        bail!("the judge saw no loss with {}", blind.join(" and "));
    }
    Ok(())
}
