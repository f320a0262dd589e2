//! Memory of connections that say nothing: growth of the proxy's PSS, divided by their number.

use std::{
    io::{BufRead as _, BufReader},
    process::Stdio,
    thread::sleep,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::{
    load::{Tools, Workload},
    machine::{LOAD_CORE, pinned},
    peers::{Kind, Peer, Stage},
};

/// What idles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Idle {
    KeepAlive,
    TlsKeepAlive,
    WebSocket,
    TlsWebSocket,
}

impl Idle {
    pub(crate) const ALL: [Self; 4] = [
        Self::KeepAlive,
        Self::TlsKeepAlive,
        Self::WebSocket,
        Self::TlsWebSocket,
    ];

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::KeepAlive => "keep-alive",
            Self::TlsKeepAlive => "TLS keep-alive",
            Self::WebSocket => "WebSocket",
            Self::TlsWebSocket => "WebSocket over TLS",
        }
    }

    fn is_tls(self) -> bool {
        matches!(self, Self::TlsKeepAlive | Self::TlsWebSocket)
    }

    fn is_websocket(self) -> bool {
        matches!(self, Self::WebSocket | Self::TlsWebSocket)
    }
}

/// What was weighed, in kB (1,000 bytes).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weight {
    pub(crate) base: f64,
    pub(crate) each: f64,
}

/// Weighs a proxy of its own before and after.
pub(crate) fn weigh(
    kind: Kind,
    idle: Idle,
    stage: &Stage,
    tools: &Tools,
    count: usize,
) -> anyhow::Result<Weight> {
    let peer = Peer::start(kind, stage)?;
    // What is allocated once is not the price of a connection.
    let warm = if idle.is_tls() {
        Workload::Tls
    } else {
        Workload::KeepAlive
    };
    tools.run(warm, &peer, Duration::from_secs(1))?;
    sleep(Duration::from_millis(500));
    let before = peer.tree.proportional_kib();
    let address = if idle.is_tls() { peer.https } else { peer.http };
    let mut client = pinned(LOAD_CORE, &tools.bench);
    client.args(["idle", &address.to_string(), "--count", &count.to_string()]);
    if idle.is_tls() {
        client.arg("--ca").arg(&tools.certificate);
    }
    if idle.is_websocket() {
        client.arg("--websocket");
    }
    client.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut client = crate::live::spawn(&mut client)?;
    let out = client.stdout.take().context("the client has an output")?;
    let mut line = String::new();
    BufReader::new(out).read_line(&mut line)?;
    let open: Value = serde_json::from_str(&line)
        .with_context(|| format!("{}: not all connections opened", kind.name()))?;
    ensure!(open["open"].as_u64() == Some(count as u64), "open: {open}");
    sleep(Duration::from_secs(1));
    let after = peer.tree.proportional_kib();
    drop(client.stdin.take());
    let status = client.wait()?;
    ensure!(
        status.success(),
        "{}: its idle connections did not live",
        kind.name()
    );
    let kilobytes = |kib: u64| kib as f64 * 1.024;
    Ok(Weight {
        base: kilobytes(before),
        each: kilobytes(after.saturating_sub(before)) / count as f64,
    })
}
