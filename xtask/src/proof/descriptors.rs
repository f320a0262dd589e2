//! As many kept connections on one proxy process as its limit of descriptors leaves room for, while a rollout replaces
//! what they speak to.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, ChildStdout, Stdio},
};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::live::{
    App, AppSettings, Build, Host, HostSettings, Judge, JudgeSettings, command, instant, is_short,
    proportional_kib, spawn,
};

/// The clients are processes of their own, and each has the same limit.
const IDLE_CLIENTS: usize = 2;

/// Each connection asks once, idles through a rollout under load, and asks again.
pub(crate) fn descriptors(build: &Build) -> anyhow::Result<()> {
    let wanted = if is_short() { 2_000 } else { 18_000 };
    let host = Host::start(build, "descriptors", HostSettings::default())?;
    let app = App::new(&host, build, AppSettings::default())?;
    app.deploy_well(&host, 1, "rolling", "seal")?;
    let (_, worker) = host.proxy()?;
    let before = proportional_kib(worker);
    let begun = instant();
    let mut clients = Vec::new();
    for _ in 0..IDLE_CLIENTS {
        clients.push(Clients::start(build, &host, &app, wanted / IDLE_CLIENTS)?);
    }
    for client in &mut clients {
        let open = client.read("open")?;
        ensure!(
            open == wanted / IDLE_CLIENTS,
            "only {open} connections are open"
        );
    }
    let opened = begun.elapsed();
    let idle = proportional_kib(worker);
    let files = std::fs::read_dir(format!("/proc/{worker}/fd"))?.count();
    println!(
        "  {wanted} connections after {:.0} s; the worker has {files} descriptors open",
        opened.as_secs_f64()
    );
    let load = JudgeSettings {
        rate: 200,
        websockets: 10,
        events: 5,
        http2: 20,
        ..JudgeSettings::default()
    };
    let judge = Judge::start(build, &host, &app, &load)?;
    app.deploy_well(&host, 2, "rolling", "promotion")?;
    let verdict = judge.finish()?;
    let peak = proportional_kib(worker);
    ensure!(host.proxy()?.1 == worker, "the proxy's worker was replaced");
    let mut alive = 0;
    for client in clients {
        alive += client.ask_again()?;
    }
    println!(
        "figure: {wanted} kept connections on one process ({:.2} kB each; {:.1} MB PSS before, {:.1} with them, {:.1} after a \
         rolling deploy); {} requests meanwhile, {} lost, {} streams cut; {alive} of {wanted} answered once more",
        idle.saturating_sub(before) as f64 * 1.024 / wanted as f64,
        before as f64 / 1024.0,
        idle as f64 / 1024.0,
        peak as f64 / 1024.0,
        verdict.number("requests"),
        verdict.lost(),
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
    ensure!(alive == wanted, "connections were lost");
    Ok(())
}

/// A process with connections that idle.
struct Clients {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Clients {
    fn start(build: &Build, host: &Host, app: &App, count: usize) -> anyhow::Result<Self> {
        let mut clients = command(build.bench());
        clients
            .args(["idle", &format!("127.0.0.1:{}", host.http), "--each"])
            .args(["--host", &app.settings.host, "--path", "/version"])
            .args(["--count", &count.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = spawn(&mut clients)?;
        let out = child.stdout.take().context("the clients have an output")?;
        let out = BufReader::new(out);
        Ok(Self { child, out })
    }

    fn read(&mut self, name: &str) -> anyhow::Result<usize> {
        let mut line = String::new();
        self.out.read_line(&mut line)?;
        let said: Value = serde_json::from_str(&line).context("the clients say nothing")?;
        let number = said[name].as_u64().context("no such number")?;
        Ok(usize::try_from(number)?)
    }

    /// How many answer.
    fn ask_again(mut self) -> anyhow::Result<usize> {
        drop(self.child.stdin.take());
        self.read("alive")
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
