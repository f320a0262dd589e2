//! What a run is like.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// The settings of a run; [`Settings::new`] gives those of the contract.
#[derive(Debug, Clone)]
pub struct Settings {
    pub target: SocketAddr,
    /// The value of `Host`, and the name in the certificate.
    pub host: String,
    pub tls: Option<Tls>,
    /// Sent with every request.
    pub headers: Vec<(String, String)>,
    /// Requests per second. Zero holds streams only.
    pub rate: u32,
    /// Of 100 requests, how many go over HTTP/2 (by ALPN over TLS, else with prior knowledge).
    pub http2_percent: u8,
    pub new_connection_percent: u8,
    /// Connections over HTTP/1.1 that are kept and used in turn, each for one request at a time; a request that finds
    /// all of them busy waits. Zero: as many as are needed.
    pub connections_max: usize,
    /// Connections over HTTP/2 that are kept.
    pub http2_connections: usize,
    pub post_percent: u8,
    pub post_bytes: usize,
    pub wait_percent: u8,
    /// How long the slow answers take in the application.
    pub wait: Duration,
    /// Paths of plain requests, in turn.
    pub paths: Vec<String>,
    /// An answer this much later than the application's own time is lost.
    pub late_after: Duration,
    /// How long an answer is waited for after it is late, to tell late from never.
    pub never_after: Duration,
    pub websockets: usize,
    pub event_streams: usize,
    /// Between two numbered messages or events of a stream.
    pub stream_every: Duration,
    /// A stream silent for this long and `stream_every` is cut.
    pub silence_max: Duration,
    /// Where the application keeps its logs of receipts; without it they are not compared.
    pub receipts: Option<PathBuf>,
    /// The route has a rate: 429 with a `RateLimit` field is refused as agreed. Without this it is lost.
    pub expects_limits: bool,
    /// Decides kinds and connections; equal seeds give equal schedules.
    pub seed: u64,
    /// Samples of losses that are kept.
    pub samples_max: usize,
    /// A judge that wakes this much too late has fallen behind, and its run is invalid.
    pub judge_late_after: Duration,
}

/// How to speak TLS.
#[derive(Debug, Clone)]
pub struct Tls {
    /// Certificates to trust, as PEM.
    pub ca_pem: Vec<u8>,
}

impl Settings {
    /// The contract's run against `target`.
    pub fn new(target: SocketAddr, host: impl Into<String>) -> Self {
        Self {
            target,
            host: host.into(),
            tls: None,
            headers: Vec::new(),
            rate: 1_000,
            http2_percent: 0,
            new_connection_percent: 50,
            connections_max: 0,
            http2_connections: 4,
            post_percent: 30,
            post_bytes: 64 << 10,
            wait_percent: 5,
            wait: Duration::from_secs(3),
            paths: vec!["/version".to_owned(), "/v2/constraints?limit=5".to_owned()],
            late_after: Duration::from_secs(1),
            never_after: Duration::from_secs(10),
            websockets: 1_000,
            event_streams: 100,
            stream_every: Duration::from_secs(1),
            silence_max: Duration::from_secs(5),
            receipts: None,
            expects_limits: false,
            seed: 1,
            samples_max: 200,
            judge_late_after: Duration::from_millis(250),
        }
    }
}
