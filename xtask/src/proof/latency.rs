//! What a rolling deploy does to the latency of requests that have nothing to do with it.

use std::{
    fs,
    path::Path,
    process::{Child, Stdio},
    thread::sleep,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::live::{
    App, AppSettings, Build, Host, HostSettings, command, instant, is_short, now_micros, share,
    spawn,
};

const PATH: &str = "/v2/constraints";
const CONNECTIONS: u32 = 50;
/// Measured before each deploy.
const STEADY: Duration = Duration::from_secs(10);
/// Connections open and caches fill; not measured.
const WARM: Duration = Duration::from_secs(2);
const RATIO_MAX: f64 = 1.2;
/// Of `[deploy] min_ready`.
const DEFAULT_MIN_READY: &str = "10s";
/// A rate that nothing here can answer, and for how long it is due.
const UNREACHABLE: u32 = 100_000;
const SATURATED: Duration = Duration::from_millis(500);

/// P99 while a rolling deploy moves, by P99 right before it, at half of saturation: the median of several deploys. Held to
/// the figure with the times of the contract's defaults; with the shortest, where the starts of three instances fall
/// into three seconds, it is printed.
pub(crate) fn deploy_latency(build: &Build) -> anyhow::Result<()> {
    let settings = HostSettings {
        apart: true,
        ..HostSettings::default()
    };
    let host = Host::start(build, "latency", settings)?;
    let settings = AppSettings {
        min_ready: DEFAULT_MIN_READY.into(),
        progress: "5m".into(),
        ..AppSettings::default()
    };
    let mut app = App::new(&host, build, settings)?;
    app.deploy_well(&host, 1, "rolling", "seal")?;
    let saturation = saturation(build, &host, &app)?;
    let rate = saturation / 2;
    println!(
        "  saturation {saturation} requests/s, so {rate}/s in an open loop over {CONNECTIONS} connections"
    );
    let rounds = if is_short() { 1 } else { 5 };
    let defaults = median(build, &host, &app, rate, rounds)?;
    println!("figure: P99 during a rolling deploy ÷ steady, at half of saturation: {defaults}");
    app.settings.min_ready = AppSettings::default().min_ready;
    app.write_manifest()?;
    let rounds = if is_short() { 3 } else { 9 };
    let shortest = median(build, &host, &app, rate, rounds)?;
    println!("figure: the same with `min_ready = \"1s\"`: {shortest}");
    ensure!(defaults.median <= RATIO_MAX, "above {RATIO_MAX}");
    Ok(())
}

/// The ratios of several deploys.
struct Ratios {
    median: f64,
    least: f64,
    most: f64,
    deploys: usize,
}

impl std::fmt::Display for Ratios {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            median,
            least,
            most,
            deploys,
        } = self;
        write!(
            f,
            "{median:.2} (median of {deploys}; {least:.2} to {most:.2})"
        )
    }
}

fn median(
    build: &Build,
    host: &Host,
    app: &App,
    rate: u32,
    deploys: usize,
) -> anyhow::Result<Ratios> {
    let begun = instant();
    app.deploy_well(host, 2, "rolling", "seal")?;
    let longest = begun.elapsed().mul_f64(1.2);
    let log = host.folder.join("latency.log");
    let mut ratios = Vec::new();
    for round in 0..deploys {
        let version = [3, 4, 2][round % 3];
        app.build(version)?;
        let load = Load::start(build, host, app, rate, WARM + STEADY + longest, &log)?;
        sleep(WARM);
        let steady = now_micros();
        sleep(STEADY);
        let asked = now_micros();
        app.deploy_well(host, version, "rolling", "promotion")?;
        let promoted = now_micros();
        load.finish()?;
        let rows = rows(&log)?;
        let before = p99(&rows, steady, asked)?;
        let during = p99(&rows, asked, promoted)?;
        let ratio = during as f64 / before as f64;
        println!(
            "  deploy {}: {:.1} s; P99 steady {before} us, during {during} us: {ratio:.2}; {}",
            round + 1,
            (promoted - asked) as f64 / 1e6,
            peaks(&rows, asked, promoted)
        );
        ratios.push(ratio);
        // The next one begins when this one has ended, its standby included.
        crate::live::wait_until("the rollout seals", Duration::from_secs(60), || {
            app.moving(host).is_none()
        })?;
    }
    ratios.sort_by(f64::total_cmp);
    Ok(Ratios {
        median: ratios[ratios.len() / 2],
        least: ratios[0],
        most: ratios[ratios.len() - 1],
        deploys,
    })
}

/// What the app, its proxy and the load together can do on this machine: requests per second when the same client always
/// has a request due on every connection. Another client would cost another share of the same cores.
fn saturation(build: &Build, host: &Host, app: &App) -> anyhow::Result<u32> {
    let log = host.folder.join("saturation.log");
    Load::start(build, host, app, UNREACHABLE, SATURATED, &log)?.finish()?;
    let rows = rows(&log)?;
    let answered = |(at, latency): &(i64, u64)| at + i64::try_from(*latency).unwrap_or(i64::MAX);
    let first = rows.iter().map(|(at, _)| *at).min();
    let last = rows.iter().map(answered).max();
    let (first, last) = first.zip(last).context("nothing was answered")?;
    let seconds = (last - first) as f64 / 1e6;
    Ok((rows.len() as f64 / seconds) as u32)
}

/// An open loop that logs each request.
struct Load(Child);

impl Load {
    fn start(
        build: &Build,
        host: &Host,
        app: &App,
        rate: u32,
        time: Duration,
        log: &Path,
    ) -> anyhow::Result<Self> {
        // It stands for clients elsewhere: what it waits for itself is not what a deploy does to them.
        let mut load = command("setsid");
        load.arg(build.bench())
            .args(["rate", &format!("127.0.0.1:{}", host.http)])
            .args(["--host", &app.settings.host, "--path", PATH])
            .args(["--rate", &rate.to_string()])
            .args(["--connections", &CONNECTIONS.to_string()])
            .args(["--milliseconds", &time.as_millis().to_string()])
            .arg("--log")
            .arg(log)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let load = spawn(&mut load)?;
        share(load.id(), -15);
        Ok(Self(load))
    }

    /// Waits for its end; nothing may have failed.
    fn finish(mut self) -> anyhow::Result<()> {
        let out = self.0.stdout.take().context("the load has an output")?;
        let done: Value = serde_json::from_reader(out).context("the load says nothing")?;
        self.0.wait()?;
        ensure!(done["failed"] == 0, "requests failed: {done}");
        Ok(())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// When each request was due, and how long after that its answer was whole; both in microseconds.
pub(super) fn rows(log: &Path) -> anyhow::Result<Vec<(i64, u64)>> {
    let text = fs::read_to_string(log).context("the load wrote no log")?;
    let rows = text.lines().filter_map(|line| {
        let (at, latency) = line.split_once(' ')?;
        Some((at.parse().ok()?, latency.parse().ok()?))
    });
    Ok(rows.collect())
}

/// When in a window it was slowest: the three worst fifths of a second.
fn peaks(rows: &[(i64, u64)], from: i64, to: i64) -> String {
    const STEP: i64 = 200_000;
    let mut steps: Vec<(u64, i64)> = (from..to)
        .step_by(STEP as usize)
        .map(|at| {
            let within = rows.iter().filter(|(due, _)| (at..at + STEP).contains(due));
            (within.map(|(_, latency)| *latency).max().unwrap_or(0), at)
        })
        .collect();
    steps.sort_unstable_by(|a, b| b.cmp(a));
    let told = steps.iter().take(3).map(|(worst, at)| {
        format!(
            "{:.1} ms after {:.1} s",
            *worst as f64 / 1e3,
            (at - from) as f64 / 1e6
        )
    });
    format!("worst {}", told.collect::<Vec<_>>().join(", "))
}

pub(super) fn p99(rows: &[(i64, u64)], from: i64, to: i64) -> anyhow::Result<u64> {
    let within = rows.iter().filter(|(at, _)| (from..to).contains(at));
    let mut latencies: Vec<u64> = within.map(|(_, latency)| *latency).collect();
    latencies.sort_unstable();
    ensure!(
        latencies.len() >= 1_000,
        "only {} requests in a window",
        latencies.len()
    );
    Ok(latencies[latencies.len() * 99 / 100].max(1))
}
