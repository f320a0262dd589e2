//! A rollout as a reader sees it, and what it cost.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{At, Instance, Strategy};

/// Moving one environment from a release to another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Rollout {
    pub app: String,
    pub environment: String,
    /// Counted from 1 in each environment.
    pub id: u64,
    pub kind: RolloutKind,
    pub strategy: Strategy,
    /// The release that served before; `null` for the first.
    pub from: Option<u64>,
    pub to: u64,
    pub state: RolloutState,
    /// Where it stands, in words: `starting 2 of 3 instances of api`.
    pub phase: String,
    /// Why it parked, was taken back or refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The first thing that went wrong, where something did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// The canary's step, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<Step>,
    /// The share of new requests of each release.
    pub weights: Vec<Weight>,
    pub gates: Vec<Gate>,
    /// What happens by itself, and when, the nearest first.
    pub deadlines: Vec<Deadline>,
    /// The instances of both releases.
    pub instances: Vec<Instance>,
    /// What each release answered since the rollout began.
    pub traffic: Vec<ReleaseTraffic>,
    pub ledger: Ledger,
    pub started_at: At,
    /// Since when the new release has all traffic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promoted_at: Option<At>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<At>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// Who began it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// The sequence of the last event this shows; events follow from here with `Last-Event-ID`.
    #[serde(default)]
    pub sequence: u64,
}

/// Why a rollout was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RolloutKind {
    Deploy,
    Rollback,
    Restart,
    #[serde(other)]
    Unknown,
}

/// Where a rollout stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RolloutState {
    /// Not begun: another one is first, or an approval is missing. A newer one supersedes it.
    Waiting,
    /// Instances start, traffic moves, or a gate is being waited for.
    Moving,
    /// The new release has all traffic; the old one can still take it back.
    Promoted,
    /// Going back to the old release.
    RollingBack,
    /// The end: the old release is let go.
    Sealed,
    /// The end: the old release serves.
    RolledBack,
    /// Frozen with a reason, until somebody promotes or aborts.
    Parked,
    /// The end: a newer one took its place before it moved.
    Superseded,
    /// The end: a gate or the preflight refused it before anything moved.
    Refused,
    #[serde(other)]
    Unknown,
}

impl RolloutState {
    /// Nothing more happens to this rollout, whatever anyone does.
    pub fn is_ended(self) -> bool {
        matches!(
            self,
            Self::Sealed | Self::RolledBack | Self::Superseded | Self::Refused
        )
    }

    /// Nothing more happens to the traffic unless somebody says so: ended, promoted or parked.
    pub fn is_settled(self) -> bool {
        self.is_ended() || matches!(self, Self::Promoted | Self::Parked)
    }

    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Moving => "moving",
            Self::Promoted => "promoted",
            Self::RollingBack => "rolling-back",
            Self::Sealed => "sealed",
            Self::RolledBack => "rolled-back",
            Self::Parked => "parked",
            Self::Superseded => "superseded",
            Self::Refused => "refused",
            Self::Unknown => "unknown",
        }
    }
}

/// The first thing that went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Cause {
    /// In words: `api.r5.17 exited with code 1 after 80ms`.
    pub what: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// The line of its log that most likely says why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<String>,
}

/// One step of a canary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Step {
    /// From 1.
    pub number: u32,
    pub of: u32,
    pub percent: u32,
}

/// The share of new requests a release gets.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Weight {
    pub release: u64,
    pub percent: f64,
}

/// A condition the rollout waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Gate {
    /// `preflight`, `smoke`, `hold`, `analysis`, `approval`, …
    pub name: String,
    pub state: GateState,
    /// What it saw or waits for, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Where a gate stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum GateState {
    /// Its turn has not come.
    Pending,
    /// The rollout waits for it now.
    Waiting,
    Passed,
    Failed,
    /// Seen, but not enough to say; never taken for passed.
    Inconclusive,
    /// Not asked, because this rollout skips it.
    Skipped,
    #[serde(other)]
    Unknown,
}

/// Something that happens by itself at an instant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Deadline {
    /// `progress_deadline`, `hold`, `standby`, …
    pub name: String,
    pub at: At,
    /// In words: `rolls back unless another instance is ready`.
    #[serde(default)]
    pub then: String,
}

/// What a release answered.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ReleaseTraffic {
    pub release: u64,
    pub requests: u64,
    /// 5xx the instances sent, and requests they never answered.
    pub errors: u64,
    /// Lately, not since the beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_second: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99_ms: Option<f64>,
}

/// What a rollout cost.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct Ledger {
    pub started_at: At,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<At>,
    /// `sealed`, `rolled-back`, `parked`, …; `null` while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<RolloutState>,
    /// Requests accepted while it ran.
    pub requests: u64,
    /// What must read zero: requests Landfast itself broke (5xx of its own, answers and streams it cut).
    pub lost: u64,
    /// Requests over the rate of their route, answered 429. They never reached an instance, and are not lost.
    #[serde(default)]
    pub rate_limited: u64,
    pub releases: Vec<ReleaseLedger>,
    pub streams: Streams,
    pub latency_p99: Latency,
    /// The longest a request was held by a pause.
    pub pause_longest_ms: u64,
    /// Requests sent to a second instance after the first failed.
    pub retries: u64,
}

/// What one release's part was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct ReleaseLedger {
    pub release: u64,
    pub requests: u64,
    /// 5xx the instances sent themselves.
    pub errors_theirs: u64,
    /// 5xx Landfast answered in their place.
    pub errors_ours: u64,
}

/// Long-lived connections while a rollout ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Streams {
    pub opened: u64,
    /// Ended by the client or the instance.
    pub ended: u64,
    /// Ended by Landfast between two messages, with Close 1012.
    pub drained: u64,
    /// Ended in any other way. Must read zero.
    pub cut: u64,
}

/// P99 in three intervals, in milliseconds; `null` where there was too little traffic to say.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct Latency {
    pub before_ms: Option<f64>,
    pub during_ms: Option<f64>,
    pub after_ms: Option<f64>,
}

/// Rollouts of an environment, the newest first.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct RolloutList {
    pub rollouts: Vec<Rollout>,
    /// Pass as `before` for the next page; absent on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u64>,
}

/// Why somebody promotes, aborts, seals, stops or starts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct ReasonRequest {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Go back.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct RollbackRequest {
    /// Any kept release; absent: the last sealed one before the current.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Run more or fewer instances until the manifest's `replicas` changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ScaleRequest {
    pub service: String,
    /// Absent: back to the manifest's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<u32>,
}

/// What a service is scaled to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ScaleAnswer {
    pub service: String,
    pub replicas: u32,
    pub replicas_before: u32,
    pub replicas_manifest: u32,
}
