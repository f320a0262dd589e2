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
    App, AppSettings, Build, Host, HostSettings, command, instant, is_short, now_micros, spawn,
};

const PATH: &str = "/v2/constraints";
const CONNECTIONS: u32 = 50;
/// Measured before each deploy.
const STEADY: Duration = Duration::from_secs(10);
/// Connections open and caches fill; not measured.
const WARM: Duration = Duration::from_secs(2);
const RATIO_MAX: f64 = 1.2;

/// P99 while a rolling deploy moves, by P99 right before it, at half of saturation: the median of several deploys.
pub(crate) fn deploy_latency(build: &Build) -> anyhow::Result<()> {
    let host = Host::start(build, "latency", HostSettings::default())?;
    let app = App::new(&host, build, AppSettings::default())?;
    app.deploy_well(&host, 1, "rolling", "seal")?;
    let begun = instant();
    app.deploy_well(&host, 2, "rolling", "seal")?;
    let longest = begun.elapsed().mul_f64(1.5);
    let saturation = saturation(&host, &app)?;
    let rate = saturation / 2;
    println!(
        "  saturation {saturation} requests/s, so {rate}/s in an open loop over {CONNECTIONS} connections"
    );
    let mut ratios = Vec::new();
    let deploys = if is_short() { 3 } else { 9 };
    for round in 0..deploys {
        let log = host.folder.join("latency.log");
        let load = Load::start(build, &host, &app, rate, WARM + STEADY + longest, &log)?;
        sleep(WARM);
        let steady = now_micros();
        sleep(STEADY);
        let asked = now_micros();
        app.deploy_well(&host, [3, 4, 2][round % 3], "rolling", "promotion")?;
        let promoted = now_micros();
        load.finish()?;
        let rows = rows(&log)?;
        let before = p99(&rows, steady, asked)?;
        let during = p99(&rows, asked, promoted)?;
        let ratio = during as f64 / before as f64;
        println!(
            "  deploy {}: {:.1} s; P99 steady {before} us, during {during} us: {ratio:.2}",
            round + 1,
            (promoted - asked) as f64 / 1e6
        );
        ratios.push(ratio);
        // The next one begins when this one has ended, its standby included.
        crate::live::wait_until("the rollout seals", Duration::from_secs(60), || {
            app.moving(&host).is_none()
        })?;
    }
    ratios.sort_by(f64::total_cmp);
    let median = ratios[ratios.len() / 2];
    println!(
        "figure: P99 during a rolling deploy ÷ steady, at half of saturation: {median:.2} (median of {deploys}; {:.2} to {:.2})",
        ratios[0],
        ratios[ratios.len() - 1]
    );
    ensure!(median <= RATIO_MAX, "above {RATIO_MAX}");
    Ok(())
}

/// What the app, its proxy and the load together can do on this machine.
fn saturation(host: &Host, app: &App) -> anyhow::Result<u32> {
    let output = command("wrk")
        .args(["-t1", &format!("-c{CONNECTIONS}"), "-d5s", "-H"])
        .arg(format!("Host: {}", app.settings.host))
        .arg(format!("http://127.0.0.1:{}{PATH}", host.http))
        .output()
        .context("failed to start wrk; run `make setup-bench`")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        !text.contains("Non-2xx"),
        "the app does not answer 200: {text}"
    );
    let found = text
        .lines()
        .find_map(|line| line.strip_prefix("Requests/sec:"));
    let per_second: f64 = found.context("wrk gives no rate")?.trim().parse()?;
    Ok(per_second as u32)
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
        let mut load = command(build.bench());
        load.args(["rate", &format!("127.0.0.1:{}", host.http)])
            .args(["--host", &app.settings.host, "--path", PATH])
            .args(["--rate", &rate.to_string()])
            .args(["--connections", &CONNECTIONS.to_string()])
            .args(["--milliseconds", &time.as_millis().to_string()])
            .arg("--log")
            .arg(log)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        spawn(&mut load).map(Self)
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
