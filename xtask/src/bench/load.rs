//! The loads: Debian's wrk and h2load, and the handshake client of `landfast-bench`.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::{
    machine::{LOAD_CORE, pinned},
    peers::Peer,
};

/// What is asked of a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Workload {
    KeepAlive,
    ManyConnections,
    Large,
    Tls,
    Handshakes,
    Http2,
    FixedRate,
}

impl Workload {
    pub(crate) const ALL: [Self; 7] = [
        Self::KeepAlive,
        Self::Tls,
        Self::Handshakes,
        Self::Large,
        Self::ManyConnections,
        Self::Http2,
        Self::FixedRate,
    ];

    /// For the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::KeepAlive => "h1",
            Self::ManyConnections => "h1-512",
            Self::Large => "100k",
            Self::Tls => "tls",
            Self::Handshakes => "handshakes",
            Self::Http2 => "h2",
            Self::FixedRate => "rate",
        }
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::KeepAlive => "HTTP/1.1 keep-alive, 64 connections, 1 KB",
            Self::ManyConnections => "HTTP/1.1 keep-alive, 512 connections, 1 KB",
            Self::Large => "HTTP/1.1 keep-alive, 64 connections, 100 KB",
            Self::Tls => "TLS 1.3 keep-alive, 64 connections, 1 KB",
            Self::Handshakes => "full TLS handshakes, one request each, 32 at a time",
            Self::Http2 => "HTTP/2 over TLS, 16 connections x 32 streams, 1 KB",
            Self::FixedRate => "HTTP/1.1 at 5,000 requests/s, 50 connections, 1 KB",
        }
    }
}

/// What a load saw.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Answered {
    pub(crate) requests: u64,
    /// Half and 99 of 100 were answered within these, in microseconds; of the fixed rate only.
    pub(crate) p50_micros: Option<u64>,
    pub(crate) p99_micros: Option<u64>,
}

/// The tools a run needs besides the proxies.
#[derive(Debug, Clone)]
pub(crate) struct Tools {
    pub(crate) bench: std::path::PathBuf,
    pub(crate) certificate: std::path::PathBuf,
    pub(crate) scratch: std::path::PathBuf,
}

impl Tools {
    /// Puts a load on a proxy for a time.
    pub(crate) fn run(
        &self,
        workload: Workload,
        peer: &Peer,
        time: Duration,
    ) -> anyhow::Result<Answered> {
        let plain = |path: &str| format!("http://{}{path}", peer.http);
        let secure = |path: &str| format!("https://localhost:{}{path}", peer.https.port());
        let answered = match workload {
            Workload::KeepAlive => wrk(64, time, &plain("/1k")),
            Workload::ManyConnections => wrk(512, time, &plain("/1k")),
            Workload::Large => wrk(64, time, &plain("/100k")),
            Workload::Tls => wrk(64, time, &secure("/1k")),
            Workload::Handshakes => self.handshakes(peer, time),
            Workload::Http2 => h2load(&["-c16", "-m32"], time, &secure("/1k")),
            Workload::FixedRate => self.fixed_rate(time, &plain("/1k")),
        };
        answered.with_context(|| format!("{}: {}", peer.kind.name(), workload.title()))
    }

    fn handshakes(&self, peer: &Peer, time: Duration) -> anyhow::Result<Answered> {
        let mut client = pinned(LOAD_CORE, &self.bench);
        client
            .args(["handshakes", &peer.https.to_string(), "--ca"])
            .arg(&self.certificate)
            .args(["--milliseconds", &time.as_millis().to_string()]);
        let done: Value = serde_json::from_str(&output(&mut client)?)?;
        ensure!(done["failed"] == 0, "handshakes failed: {done}");
        Ok(Answered {
            requests: done["completed"].as_u64().unwrap_or(0),
            ..Answered::default()
        })
    }

    fn fixed_rate(&self, time: Duration, url: &str) -> anyhow::Result<Answered> {
        let log = self.scratch.join("h2load.log");
        drop(fs::remove_file(&log));
        let log_argument = format!("--log-file={}", log.display());
        let arguments = ["--h1", "-c50", "--rps=100", &log_argument];
        let answered = h2load(&arguments, time, url)?;
        let (p50, p99) = percentiles(&log)?;
        Ok(Answered {
            p50_micros: Some(p50),
            p99_micros: Some(p99),
            ..answered
        })
    }
}

/// Seconds as both tools take them: whole ones.
fn seconds(time: Duration) -> u64 {
    time.as_secs().max(1)
}

fn wrk(connections: u32, time: Duration, url: &str) -> anyhow::Result<Answered> {
    let mut wrk = pinned(LOAD_CORE, "wrk");
    wrk.args(["-t1", &format!("-c{connections}"), "--timeout", "10s"])
        .arg(format!("-d{}s", seconds(time)))
        .arg(url);
    let text = output(&mut wrk)?;
    let line = text.lines().find(|line| line.contains(" requests in "));
    let requests = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    let requests: u64 = requests.with_context(|| format!("wrk says: {text}"))?;
    let fault = text
        .lines()
        .find(|line| line.contains("Non-2xx") || line.contains("Socket errors"));
    ensure!(
        fault.is_none(),
        "wrk says: {}",
        fault.unwrap_or_default().trim()
    );
    Ok(Answered {
        requests,
        ..Answered::default()
    })
}

fn h2load(arguments: &[&str], time: Duration, url: &str) -> anyhow::Result<Answered> {
    let mut h2load = pinned(LOAD_CORE, "h2load");
    h2load
        .args(arguments)
        .args(["-t1", &format!("-D{}", seconds(time))])
        .arg(url);
    let text = output(&mut h2load)?;
    // requests: 1000 total, 1000 started, 1000 done, 1000 succeeded, 0 failed, 0 errored, 0 timeout
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("requests: "));
    let line = line.with_context(|| format!("h2load says: {text}"))?;
    let count = |word: &str| {
        let mut parts = line.split(", ").map(|part| part.split_once(' '));
        let found = parts.find_map(|part| part.filter(|(_, name)| *name == word));
        found.and_then(|(count, _)| count.parse::<u64>().ok())
    };
    ensure!(count("failed") == Some(0), "h2load says: {line}");
    Ok(Answered {
        requests: count("succeeded").context("h2load gives no count")?,
        ..Answered::default()
    })
}

/// The log has a line per request: when it began, its status, and how long it took in microseconds.
fn percentiles(log: &Path) -> anyhow::Result<(u64, u64)> {
    let text = fs::read_to_string(log).context("h2load wrote no log")?;
    let mut micros: Vec<u64> = text
        .lines()
        .filter_map(|line| line.split_whitespace().nth(2)?.parse().ok())
        .collect();
    micros.sort_unstable();
    ensure!(!micros.is_empty(), "h2load logged nothing");
    let at = |percent: usize| micros[(micros.len() * percent / 100).min(micros.len() - 1)];
    Ok((at(50), at(99)))
}

fn output(command: &mut Command) -> anyhow::Result<String> {
    let shown = format!("{command:?}");
    let output = command
        .output()
        .with_context(|| format!("failed to start {shown}"))?;
    ensure!(
        output.status.success(),
        "{shown} failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
