//! What the proxy counted, for whoever draws it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::At;

/// Counters of the proxy since its worker started. They only grow while `boot` is the same, so the difference of
/// two readings is what happened between them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Traffic {
    /// Changes when the counters begin again at zero.
    pub boot: String,
    pub at: At,
    pub instances: Vec<InstanceTraffic>,
    pub services: Vec<ServiceTraffic>,
}

/// What one instance was asked and answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InstanceTraffic {
    pub app: String,
    pub environment: String,
    /// `api.r3.17`.
    pub instance: String,
    /// Answers by status class: 1xx, 2xx, 3xx, 4xx, 5xx.
    pub statuses: Vec<u64>,
    /// Requests that got no whole answer: connect errors, resets, timeouts, short bodies.
    pub failures: u64,
    /// Of these, how many broke off after the answer's head, which is in `statuses` as well.
    pub broken_off: u64,
    /// Requests and streams in flight at this moment: the only number here that falls.
    pub in_flight: u64,
    /// How many answers took how long to begin. Bucket 0 is below 64 µs; bucket `i` ends at 64 µs × 2^(i/4).
    /// Trailing empty buckets are left out.
    pub latency_counts: Vec<u64>,
    pub streams_opened: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
}

/// What the proxy itself answered for a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServiceTraffic {
    pub app: String,
    pub environment: String,
    pub service: String,
    /// Requests accepted for the service, whatever became of them.
    pub requests: u64,
    /// Answered 502, 503 or 504 by the proxy.
    pub failed: u64,
    /// Refused by a limit.
    pub refused: u64,
}
