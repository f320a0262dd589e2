//! The loss judge as a process of its own.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::{
    App, Build, Host, command,
    process::{spawn, wait_until},
};

/// What load the judge puts on.
#[derive(Debug, Clone)]
pub(crate) struct JudgeSettings {
    pub(crate) rate: u32,
    pub(crate) websockets: u32,
    pub(crate) events: u32,
    pub(crate) http2: u32,
    pub(crate) paths: Vec<String>,
    /// Further arguments.
    pub(crate) arguments: Vec<String>,
}

impl Default for JudgeSettings {
    fn default() -> Self {
        Self {
            rate: 1_000,
            websockets: 1_000,
            events: 100,
            http2: 20,
            paths: Vec::new(),
            arguments: Vec::new(),
        }
    }
}

/// Whom the judge asks.
#[derive(Debug, Clone)]
pub(crate) struct Judged {
    pub(crate) address: SocketAddr,
    pub(crate) host: String,
    /// Where the app keeps its receipts.
    pub(crate) receipts: PathBuf,
    /// Where the judge may keep what is its own.
    pub(crate) folder: PathBuf,
}

/// A judge that is measuring.
#[derive(Debug)]
pub(crate) struct Judge {
    child: Child,
    control: PathBuf,
}

/// What the judge says.
#[derive(Debug, Clone)]
pub(crate) struct Verdict(pub(crate) Value);

impl Judge {
    /// Starts load on an app.
    pub(crate) fn start(
        build: &Build,
        host: &Host,
        app: &App,
        settings: &JudgeSettings,
    ) -> anyhow::Result<Self> {
        let judged = Judged {
            address: SocketAddr::from(([127, 0, 0, 1], host.http)),
            host: app.settings.host.clone(),
            receipts: app.receipts(host),
            folder: host.folder.clone(),
        };
        Self::of(build, &judged, settings)
    }

    /// Starts load on whoever answers at an address.
    pub(crate) fn of(
        build: &Build,
        judged: &Judged,
        settings: &JudgeSettings,
    ) -> anyhow::Result<Self> {
        let control = judged.folder.join(format!("judge-{}.sock", judged.host));
        drop(std::fs::remove_file(&control));
        let log = std::fs::File::create(judged.folder.join("judge.log"))?;
        let mut judge = command(build.judge());
        judge
            .args(["--target", &judged.address.to_string()])
            .args(["--host", &judged.host])
            .args(["--rate", &settings.rate.to_string()])
            .args(["--websockets", &settings.websockets.to_string()])
            .args(["--events", &settings.events.to_string()])
            .args(["--http2", &settings.http2.to_string()])
            .args(["--samples", "5000"])
            .args(&settings.arguments)
            .arg("--receipts")
            .arg(&judged.receipts)
            .arg("--control")
            .arg(&control)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        for path in &settings.paths {
            judge.args(["--path", path]);
        }
        let child = spawn(&mut judge)?;
        let judge = Self { child, control };
        wait_until("the judge measures", Duration::from_secs(20), || {
            judge
                .snapshot()
                .is_ok_and(|verdict| verdict.number("requests") > 0)
        })?;
        Ok(judge)
    }

    /// What it has seen so far.
    pub(crate) fn snapshot(&self) -> anyhow::Result<Verdict> {
        self.ask("snapshot")
    }

    /// Ends the load and waits for the verdict, the comparison with the app's receipts included.
    pub(crate) fn finish(mut self) -> anyhow::Result<Verdict> {
        let verdict = self.ask("stop")?;
        self.child.wait().context("the judge did not end")?;
        Ok(verdict)
    }

    fn ask(&self, order: &str) -> anyhow::Result<Verdict> {
        let mut stream = UnixStream::connect(&self.control).context("the judge does not answer")?;
        stream.set_read_timeout(Some(Duration::from_secs(120)))?;
        writeln!(stream, "{order}")?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        ensure!(!line.is_empty(), "the judge ended without a verdict");
        Ok(Verdict(serde_json::from_str(&line)?))
    }
}

impl Drop for Judge {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Verdict {
    /// A top-level count.
    pub(crate) fn number(&self, name: &str) -> u64 {
        self.0[name].as_u64().unwrap_or(0)
    }

    /// Requests that were lost.
    pub(crate) fn lost(&self) -> u64 {
        self.number("lost_total")
    }

    /// Streams that did not end as agreed.
    pub(crate) fn cut(&self) -> u64 {
        self.number("streams_cut")
    }

    /// Whether the judge kept up with its own schedule.
    pub(crate) fn is_valid(&self) -> bool {
        self.0["valid"].as_bool().unwrap_or(false)
    }

    /// The first losses, for people.
    pub(crate) fn samples(&self) -> String {
        let of = |name: &str| self.0[name].as_array().cloned().unwrap_or_default();
        let lines = of("lost").into_iter().chain(of("cuts")).take(12);
        let lines = lines.map(|sample| format!("  {sample}"));
        let late = self.number("judge_late");
        let judge = format!(
            "  judge: late {late} times, faults {}",
            self.number("judge_faults")
        );
        lines.chain([judge]).collect::<Vec<_>>().join("\n")
    }
}
