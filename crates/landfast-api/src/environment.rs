//! An environment as it is, and as it was.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{At, PinnedImage, Protection, Rollout, Schema, Store, StoreBackups};

/// Everything about one environment at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EnvironmentStatus {
    pub app: String,
    pub environment: String,
    pub state: EnvironmentState,
    /// The release that serves; `null` before the first.
    pub release: Option<u64>,
    /// The newest first.
    pub releases: Vec<Release>,
    pub services: Vec<ServiceStatus>,
    /// Data stores, in order of name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stores: Vec<Store>,
    /// Their backups, in order of store.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub backups: Vec<StoreBackups>,
    pub routes: Vec<Route>,
    /// The rollout that is not over, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Rollout>,
    /// Replicas set by `scale`, by service.
    #[serde(default)]
    pub scale_overrides: BTreeMap<String, u32>,
    /// What its databases have seen.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub schemas: Vec<Schema>,
    /// What somebody should look at, the worst first.
    #[serde(default)]
    pub problems: Vec<Trouble>,
    pub at: At,
    /// The sequence of the last event this shows.
    #[serde(default)]
    pub sequence: u64,
}

/// Whether an environment serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum EnvironmentState {
    /// Never deployed.
    Empty,
    /// All wanted instances are ready.
    Serving,
    /// It serves with fewer instances than wanted.
    Degraded,
    /// Not one instance of a service is ready.
    Down,
    /// `landfast stop`: the maintenance page is shown.
    Stopped,
    #[serde(other)]
    Unknown,
}

impl EnvironmentState {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Serving => "serving",
            Self::Degraded => "degraded",
            Self::Down => "down",
            Self::Stopped => "stopped",
            Self::Unknown => "unknown",
        }
    }
}

/// Something somebody should look at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Trouble {
    pub text: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// A service and its groups.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ServiceStatus {
    pub service: String,
    pub replicas_wanted: u32,
    pub replicas_manifest: u32,
    pub groups: Vec<GroupStatus>,
    /// What the newest of its running instances is held to on this host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub protections: Vec<Protection>,
}

/// The instances of one release of a service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct GroupStatus {
    pub release: u64,
    pub role: GroupRole,
    /// Share of new requests, in percent.
    pub weight_percent: f64,
    pub wanted: u32,
    pub ready: u32,
    pub instances: Vec<Instance>,
}

/// What a group is for just now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum GroupRole {
    Serving,
    /// The new release of a rollout.
    Incoming,
    /// The old release, ready to take over until the seal.
    Standby,
    /// Being let go.
    Leaving,
    #[serde(other)]
    Unknown,
}

impl GroupRole {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Incoming => "incoming",
            Self::Standby => "standby",
            Self::Leaving => "leaving",
            Self::Unknown => "unknown",
        }
    }
}

/// One running copy of a service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Instance {
    /// `api.r3.17`.
    pub id: String,
    pub service: String,
    pub release: u64,
    pub state: InstanceState,
    /// Since when it is in this state.
    pub since: At,
    /// Restarts of its place in the group.
    pub restarts: u32,
    /// How its predecessor, or itself, ended: `exited with code 1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_exit: Option<String>,
    /// What the last failed probe said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Where it listens: `127.0.0.1:20001`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Resident memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    #[serde(default)]
    pub requests_in_flight: u64,
    #[serde(default)]
    pub streams_open: u64,
}

/// Where an instance stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum InstanceState {
    /// Runs, but was not ready yet.
    Starting,
    /// Ready, but not for `min_ready` yet.
    Warming,
    /// Counts, and may get traffic.
    Ready,
    /// Was ready, and fails its checks.
    Unready,
    /// Out of rotation; what is in flight may end.
    Draining,
    Stopping,
    /// Ended, and waits to be replaced.
    Backoff,
    Ended,
    #[serde(other)]
    Unknown,
}

impl InstanceState {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Warming => "warming",
            Self::Ready => "ready",
            Self::Unready => "unready",
            Self::Draining => "draining",
            Self::Stopping => "stopping",
            Self::Backoff => "backoff",
            Self::Ended => "ended",
            Self::Unknown => "unknown",
        }
    }
}

/// An immutable, numbered snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Release {
    pub id: u64,
    pub state: ReleaseState,
    pub created_at: At,
    /// The digest of each artifact, by the text the manifest named it with.
    pub artifacts: BTreeMap<String, String>,
    /// What each image meant when the release was made, by its name in the manifest, or `build:` and the folder.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub images: BTreeMap<String, PinnedImage>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// It served all traffic until its rollout was sealed: a rollback may lead to it by itself.
    #[serde(default)]
    pub sealed: bool,
    /// Why it cannot run on today's schemas, with both ways out; absent where it can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub obstacle: Option<String>,
}

/// What a release is for just now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ReleaseState {
    Serving,
    Incoming,
    Standby,
    /// Not running, but startable.
    Kept,
    /// Its artifact is gone.
    Collected,
    #[serde(other)]
    Unknown,
}

impl ReleaseState {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Incoming => "incoming",
            Self::Standby => "standby",
            Self::Kept => "kept",
            Self::Collected => "collected",
            Self::Unknown => "unknown",
        }
    }
}

/// A (host, path) and where it leads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Route {
    pub app: String,
    pub environment: String,
    pub route: String,
    pub host: String,
    pub path: String,
    pub service: String,
    pub websocket: bool,
    pub https_only: bool,
    pub weights: Vec<RouteWeight>,
    /// `serving`, `paused` or `maintenance`.
    pub mode: String,
}

/// The share of a route's new requests that a release gets.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RouteWeight {
    pub release: u64,
    pub percent: f64,
    /// Instances in rotation.
    pub instances: u32,
}

/// All routes of a host, in the order they match.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct RouteList {
    pub routes: Vec<Route>,
}

/// The releases and rollouts of an environment, the newest first.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct History {
    pub releases: Vec<Release>,
    pub rollouts: Vec<Rollout>,
}
