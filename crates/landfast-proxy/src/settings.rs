//! What the proxy is told when it starts. Everything about routes comes later, by snapshot.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use landfast_routing::admission::Trust;
use serde::{Deserialize, Serialize};

/// What the holder needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HolderSettings {
    pub http: Vec<SocketAddr>,
    pub https: Vec<SocketAddr>,
    /// Where a release can be tested before it gets traffic; on loopback.
    pub preview: Option<SocketAddr>,
    /// The control socket, `run/proxy.sock`.
    pub control: PathBuf,
    pub worker: WorkerSettings,
}

/// What a worker needs beside its descriptors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerSettings {
    /// The last good routes, `state/proxy/routes.json`.
    pub routes: PathBuf,
    /// The JSON access log; none is written without a path.
    pub access_log: Option<PathBuf>,
    /// The access log is rotated when it is larger; one older file is kept.
    pub access_log_bytes_max: u64,
    /// Threads that serve. Zero: one per core.
    pub threads: usize,
    pub header_read_ms: u64,
    pub keep_alive_ms: u64,
    /// Answers in progress may take this long after SIGTERM.
    pub shutdown_ms: u64,
    pub header_bytes_max: usize,
    pub headers_max: usize,
    /// How often the files of certificates are looked at.
    #[serde(default = "certificates_ms")]
    pub certificates_ms: u64,
    /// Connections of clients served at a time; more are refused. Zero: what the limit of open descriptors allows, with
    /// a part of them left for the backends.
    #[serde(default)]
    pub connections_max: usize,
    /// Connections one client may hold at a time; further ones are closed. An IPv6 client is its /64. Zero: a
    /// quarter of all.
    #[serde(default)]
    pub connections_per_client_max: u32,
    /// Whether that holds for clients on this host too: for tests and proofs.
    #[serde(default)]
    pub counts_loopback: bool,
    /// The proxies before this one whose word about a client is taken.
    #[serde(default)]
    pub trust: Trust,
    /// After a hand-over the old worker keeps its streams and answers in progress for this long. WebSockets that
    /// are left get Close 1012 spread over the last tenth of it.
    #[serde(default = "handover_ms")]
    pub handover_ms: u64,
}

fn handover_ms() -> u64 {
    3_600_000
}

fn certificates_ms() -> u64 {
    60_000
}

impl WorkerSettings {
    /// The documented defaults, with the routes kept in `routes`.
    pub fn new(routes: PathBuf) -> Self {
        Self {
            routes,
            access_log: None,
            access_log_bytes_max: 64 << 20,
            threads: 0,
            header_read_ms: 10_000,
            keep_alive_ms: 75_000,
            shutdown_ms: 30_000,
            header_bytes_max: 64 << 10,
            headers_max: 100,
            certificates_ms: certificates_ms(),
            connections_max: 0,
            connections_per_client_max: 0,
            counts_loopback: false,
            trust: Trust::default(),
            handover_ms: handover_ms(),
        }
    }

    pub(crate) fn header_read(&self) -> Duration {
        Duration::from_millis(self.header_read_ms)
    }

    pub(crate) fn keep_alive(&self) -> Duration {
        Duration::from_millis(self.keep_alive_ms)
    }

    pub(crate) fn thread_count(&self) -> usize {
        if self.threads > 0 {
            return self.threads;
        }
        std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
    }
}
