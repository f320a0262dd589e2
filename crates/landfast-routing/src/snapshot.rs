//! What the server tells the proxy, and what the proxy answers: the wire between the two, and the format of
//! the last good routes on disk.
//!
//! A [`Snapshot`] is the whole truth for one host. It is declarative: applying the same one twice changes
//! nothing, and a proxy that was restarted in the middle of a drain takes it up from the snapshot alone.
//!
//! Compatibility: fields may be added with `#[serde(default)]`; a reader ignores fields it does not know.
//! Removing a field or changing its meaning takes a new [`SNAPSHOT_VERSION`].

use std::{collections::BTreeMap, net::SocketAddr};

use landfast_types::{Fence, Histogram, ReleaseId, ServiceKey, Timestamp};
use serde::{Deserialize, Serialize};

use crate::admission::Admission;

mod answers;

pub use answers::{FilesRoot, MissingFile, Protocol, RouteAnswers, RouteFiles};

/// The version of the format this crate writes.
pub const SNAPSHOT_VERSION: u32 = 1;

/// All routes of a host, as one value.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Snapshot {
    pub version: u32,
    /// Orders this snapshot among all others. The proxy refuses one that is older than what it has.
    pub fence: Fence,
    pub routes: Vec<Route>,
    pub services: BTreeMap<ServiceKey, Service>,
    #[serde(default)]
    pub certificates: Vec<Certificate>,
    /// The absolute folder of the store that holds the artifacts routes name; empty where none does.
    #[serde(default)]
    pub store: String,
    /// Answers to the questions of a certificate authority that are open just now.
    #[serde(default)]
    pub challenges: Vec<Challenge>,
}

/// A host and a path that lead to a service. Exact hosts win over wildcards, then the longest path prefix wins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// `app/environment/route`, for logs and metrics.
    pub name: String,
    /// `api.example.com`, `*.example.com` (exactly one more label), or `*` for any host. Lower case, no port.
    pub host: String,
    /// A path prefix that ends at a segment: `/api` matches `/api` and `/api/x`, not `/apix`.
    pub path: String,
    pub service: ServiceKey,
    /// Whether `Upgrade: websocket` is passed on. Answered 403 otherwise.
    pub websocket: bool,
    /// Answer plain HTTP with a 308 to `https://`.
    pub https_only: bool,
    pub limits: RouteLimits,
    pub timeouts: RouteTimeouts,
    /// Who may come, and how often.
    #[serde(default)]
    pub admission: Admission,
    #[serde(default)]
    pub answers: RouteAnswers,
}

/// What a request may weigh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteLimits {
    pub body_bytes_max: u64,
}

/// How long each part of an exchange may take, in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteTimeouts {
    pub connect_ms: u64,
    pub first_byte_ms: u64,
    /// Between two reads or writes of a body in either direction.
    pub body_idle_ms: u64,
}

/// A service and the groups that answer for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    pub mode: Mode,
    pub groups: Vec<Group>,
    /// The group that answers on the preview listener, so that a new release can be tested before it gets
    /// traffic, also while the service is paused. Without one the preview listener answers 503.
    #[serde(default)]
    pub preview: Option<ReleaseId>,
    /// The active health check that goes on for ever for every backend in the table.
    #[serde(default)]
    pub health: Option<HealthCheck>,
    pub retry: RetryPolicy,
    pub ejection: EjectionPolicy,
    /// How long a backend that just joined takes to get its full share.
    #[serde(default)]
    pub slow_start_ms: u64,
    /// Whether a cookie keeps clients on their release and instance.
    #[serde(default)]
    pub sticky: bool,
    #[serde(default)]
    pub protocol: Protocol,
}

/// What a service does with a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Mode {
    /// Routes it.
    Serve,
    /// Holds it in a bounded queue until the mode changes; over a bound it is answered 503 with Retry-After.
    Pause {
        requests_max: u32,
        bytes_max: u64,
        wait_max_ms: u64,
    },
    /// Answers 503 with the maintenance page and Retry-After.
    Maintenance {
        retry_after_s: u32,
        page: Option<String>,
    },
}

/// The instances of one release that take part in traffic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    pub release: ReleaseId,
    /// This group's share of new requests, as parts of the sum of all weights. Zero: no new requests but those
    /// of the preview listener.
    pub weight: u32,
    /// A backend that is absent from the newest snapshot gets no new request, and what is in flight to it is
    /// left alone (it may only be resting while its probes fail); only `Draining` ends streams.
    pub backends: Vec<Backend>,
}

/// One instance as the proxy sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    /// `app/environment/instance`: unique on the host and for ever.
    pub id: String,
    pub address: SocketAddr,
    pub state: BackendState,
}

/// Whether a backend gets new requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum BackendState {
    Serving,
    /// Gets no new request. Requests in flight may take `requests_ms`, then they are cut; WebSockets end with
    /// Close 1012 at instants spread over `streams_ms` with jitter, SSE ends between two events. Both count from
    /// the moment the proxy first saw the backend draining.
    Draining {
        requests_ms: u64,
        streams_ms: u64,
    },
}

/// An active HTTP (or, without a path, TCP) check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// `/ready`; `None` only connects.
    pub path: Option<String>,
    pub interval_ms: u64,
    pub timeout_ms: u64,
    /// Failures in a row after which a backend leaves rotation.
    pub unhealthy_after: u32,
    /// Passes in a row after which it comes back.
    pub healthy_after: u32,
}

/// When a failed request may be sent to another backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryPolicy {
    /// Further attempts after the first; only for idempotent methods (RFC 9110, 9.2.2) or requests that were
    /// never sent.
    pub attempts_max: u32,
    /// Retries may be at most this share of requests, in percent.
    pub budget_percent: u32,
}

/// When a backend is taken out because its answers fail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EjectionPolicy {
    /// Failures in a row (connect errors, resets, timeouts: not statuses the instance sent).
    pub failures: u32,
    pub first_ms: u64,
    /// Each further ejection doubles the time up to this.
    pub max_ms: u64,
}

/// A certificate chain with its key, both PEM files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// The hosts it is for, chosen by SNI: exact, or `*.` and a domain.
    pub hosts: Vec<String>,
    pub chain_path: String,
    pub key_path: String,
}

/// The answer by which a certificate authority knows that this host is ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Challenge {
    /// The host that is proven: exact, lower case.
    pub host: String,
    pub answer: ChallengeAnswer,
}

/// How a challenge is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum ChallengeAnswer {
    /// `GET /.well-known/acme-challenge/<token>` is answered with this text (RFC 8555, 8.3), before any route,
    /// redirect or pause of the host.
    Http {
        token: String,
        key_authorization: String,
    },
    /// Who asks for `acme-tls/1` and nothing else gets this certificate (RFC 8737): PEM files.
    TlsAlpn {
        chain_path: String,
        key_path: String,
    },
}

/// What the proxy answers to a snapshot it took, and to `GET /status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProxyStatus {
    /// The version of the binary.
    pub version: String,
    pub pid: u32,
    /// The process that holds the listening descriptors and restarts the worker, where it is known.
    #[serde(default)]
    pub holder_pid: Option<u32>,
    /// Changes with each start of the worker: counters begin again at zero then.
    pub boot: String,
    /// The snapshot every new request uses. No request is sent to a backend this snapshot drains or lacks.
    pub fence: Fence,
    pub http: Vec<SocketAddr>,
    pub https: Vec<SocketAddr>,
    pub preview: Option<SocketAddr>,
    /// Every backend in the table, and those that left it while something was still in flight to them.
    pub backends: BTreeMap<String, BackendStatus>,
    /// An older worker still finishes what it had begun, and `backends` does not show it (it cannot be asked, or goes
    /// by an older table): nothing is drained yet.
    #[serde(default)]
    pub finishing: bool,
    /// Older workers that still finish what they had begun, which `backends` has been added up with.
    #[serde(default)]
    pub elders: Vec<ElderStatus>,
    /// What could not be used of the snapshot, such as an unreadable certificate: host or path, and why.
    #[serde(default)]
    pub problems: Vec<String>,
}

/// A worker that was replaced and keeps what it had begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ElderStatus {
    pub pid: u32,
    /// The version of its binary.
    pub version: String,
    pub requests_in_flight: u64,
    pub streams_open: u64,
}

/// One backend as the proxy finds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendStatus {
    /// Draining by the snapshot, or no longer in it.
    pub draining: bool,
    pub requests_in_flight: u64,
    pub streams_open: u64,
    /// False while active checks fail.
    pub healthy: bool,
    /// True while passively ejected.
    pub ejected: bool,
}

impl BackendStatus {
    /// Nothing is in flight and nothing new can come.
    pub fn is_drained(&self) -> bool {
        self.draining && self.requests_in_flight == 0 && self.streams_open == 0
    }
}

/// What the proxy measured since its worker started (`GET /stats`). Counters only grow while `boot` is the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProxyStats {
    pub boot: String,
    /// The worker before this one was asked to end, and finished what it had in flight by itself.
    #[serde(default)]
    pub took_over: bool,
    pub at: Timestamp,
    pub backends: BTreeMap<String, BackendStats>,
    pub services: BTreeMap<ServiceKey, ServiceStats>,
}

/// Counters of one backend.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BackendStats {
    /// Answers by status class: 1xx, 2xx, 3xx, 4xx, 5xx.
    pub statuses: [u64; 5],
    /// Requests that got no whole answer from this backend: connect errors, resets, timeouts, short bodies.
    pub failures: u64,
    /// Of these, how many broke off after the answer's head, which is in `statuses` as well.
    #[serde(default)]
    pub broken_off: u64,
    /// Of the failures, how many were sent again elsewhere.
    pub retried: u64,
    /// Requests and streams in flight at this moment: the only number here that falls.
    #[serde(default)]
    pub in_flight: u64,
    /// Time from the start of the attempt that was answered to the answer's head: neither a pause nor another
    /// backend's failure is in it.
    pub latency: Histogram,
    pub streams_opened: u64,
    /// Closed by the client or the instance itself.
    pub streams_ended: u64,
    /// Closed by us with 1012 (WebSocket) or between events (SSE) in a drain.
    pub streams_drained: u64,
    /// Ended in any other way: reset by the instance, or cut at the end of the drain.
    pub streams_cut: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
}

/// Counters of one service that belong to no backend.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ServiceStats {
    /// Requests accepted for the service, whatever became of them.
    pub requests: u64,
    /// Answered 503 by us: no backend was ready, or this host had no connection left for one.
    pub unavailable: u64,
    /// Answered 502 or 504 by us.
    pub gateway_errors: u64,
    /// Refused by a limit or a rule (413, 431, 403, 429, 400, …).
    pub refused: u64,
    /// Of these, by a rate limit (429).
    #[serde(default)]
    pub rate_limited: u64,
    /// Of these, because their client may not come (401, 403).
    #[serde(default)]
    pub denied: u64,
    /// Held while paused, and the longest of those waits in the newest pause.
    pub paused: u64,
    pub pause_longest_ms: u64,
    /// Held, and then answered 503 because a bound was reached.
    pub pause_rejected: u64,
    /// Answered with the maintenance page.
    pub maintenance: u64,
    /// Ended by the client before the answer was whole.
    pub client_gone: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_ignores_fields_it_does_not_know() {
        let text = r#"{"version":1,"fence":{"generation":1,"revision":2},"routes":[],"services":{},"later":1}"#;
        let snapshot: Snapshot = serde_json::from_str(text).expect("an older reader reads it");
        assert_eq!(snapshot.fence.revision, 2);
        assert!(snapshot.certificates.is_empty());
    }
}
