//! Data stores: where each stands, what was measured of it, and how a person reaches it.

use landfast_types::Secret as Hidden;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::At;

/// A data store of an environment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Store {
    pub name: String,
    /// `postgres`, `mariadb`, `mysql`, `redis` or `s3`.
    pub engine: String,
    /// Whether Landfast runs it. Of one it does not run, nothing more is known than the manifest says.
    pub managed: bool,
    /// The major version of a managed store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The image its server is a container of: the one that runs, or that it is to run before it ever did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<StoreImage>,
    /// The image that its next restart brings, where that is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_image: Option<StoreImage>,
    pub state: StoreState,
    /// Whether the newest manifest names it. One that is not named is kept and runs on.
    pub named: bool,
    /// The name of the manifest that it serves, where that is not its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serves: Option<String>,
    /// The store that serves its name instead of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub served_by: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Where it listens: `127.0.0.1:15000`, or where it is a container by its name in its network, `main:15000`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The server that runs, as `landfast logs` knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// Since when it is in this state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<At>,
    /// Why it is not ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// Settings that wait for a restart.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waits_for_restart: Vec<String>,
    /// Until when a deleted store can be had back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleted_until: Option<At>,
    /// How the change of the password that instances reach it with stands; of managed stores only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<StoreRotation>,
    /// Services and jobs of the newest release that use it.
    #[serde(default)]
    pub used_by: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measures: Option<StoreMeasures>,
    /// The file system that a managed store lies on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<StoreDisk>,
    /// Whom people and migrations log in as to a managed store; another one after each change of its passwords.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login: Option<String>,
}

/// An image that a store's server is a container of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StoreImage {
    /// As the manifest names it: `postgres:16.2`.
    pub reference: String,
    /// What that name meant at the deploy, as the daemon knows it: `sha256:…`. Missing while no release says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// `name@sha256:…`, by which a registry has it; missing for one that none has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pinned: Option<String>,
}

/// The room on a file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StoreDisk {
    /// The store's own folder.
    pub folder: String,
    pub free_bytes: u64,
    pub total_bytes: u64,
    /// Less than 64 MiB or the twentieth part of it is free.
    pub is_short: bool,
}

/// How the change of a store's password stands.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct StoreRotation {
    /// `settled` where none is under way; else `preparing`, `verifying`, `counting`, `replacing`, `closing` or `renewing`.
    pub phase: String,
    /// When the newest one began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begun_at: Option<At>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// The rollout that replaces those that have the old password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<u64>,
    /// Instances that may have the old password still.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub holders: Vec<String>,
    /// What must be over before instances are replaced, or before what is left of the old passwords goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<String>,
    /// Why it does not go on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// Whether the rollout that replaces instances was taken back: it goes on when somebody asks again, or they end otherwise. What
    /// else fails is tried again by itself.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_taken_back: bool,
    /// Since when the newest password is the only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotated_at: Option<At>,
}

/// Change the password of a store.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct StoreRotateRequest {
    /// Give a rotation up instead, as long as no instance was given the new password.
    pub abandon: bool,
}

/// Where a store stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum StoreState {
    /// Its data is being made.
    Making,
    /// It does not run, and is started again.
    Down,
    /// It runs and does not answer yet; it may be recovering.
    Starting,
    Ready,
    Stopping,
    /// It can be had back for a while.
    Deleted,
    Removing,
    /// Somebody else runs it.
    External,
    #[serde(other)]
    Unknown,
}

impl StoreState {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Making => "making",
            Self::Down => "down",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Stopping => "stopping",
            Self::Deleted => "deleted",
            Self::Removing => "removing",
            Self::External => "external",
            Self::Unknown => "unknown",
        }
    }
}

/// What was measured of a store that runs. What its engine does not tell is zero or empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StoreMeasures {
    pub at: At,
    pub connections: u64,
    pub connections_max: u64,
    pub active: u64,
    pub idle_in_transaction: u64,
    /// On disk, or in memory for Redis.
    pub size_bytes: u64,
    /// The most it may take; zero where nothing bounds it.
    pub size_bytes_max: u64,
    /// By how much it grew in a day, going by what was seen since the server of Landfast started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub growth_bytes_per_day: Option<i64>,
    /// Reads that memory answered, in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hit_percent: Option<u8>,
    /// Statements that run for longer than 200 ms.
    #[serde(default)]
    pub slow: Vec<StoreStatement>,
    /// Statements that wait for a lock.
    #[serde(default)]
    pub waiting: Vec<StoreStatement>,
    /// The statements that took most time in all.
    #[serde(default)]
    pub costly: Vec<StoreCost>,
    #[serde(default)]
    pub replicas: Vec<StoreReplica>,
    pub deadlocks: u64,
    pub evicted: u64,
}

/// A statement that runs, without the values in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StoreStatement {
    /// `release_3`.
    pub login: String,
    pub millis: u64,
    pub text: String,
    /// The logins of those that hold it up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub behind: Vec<String>,
}

/// A kind of statement, over the life of the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StoreCost {
    pub text: String,
    pub calls: u64,
    pub mean_micros: u64,
}

/// A copy that follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StoreReplica {
    pub name: String,
    pub state: String,
    pub lag_bytes: u64,
}

/// The stores of an environment, in order of name.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct StoreList {
    pub stores: Vec<Store>,
}

/// How a person reaches a managed store: a login that may what the app may.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StoreConnection {
    pub engine: String,
    /// The store that serves the name, where it is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub served_by: Option<String>,
    /// With login and password.
    #[schema(value_type = String)]
    pub url: Hidden<String>,
}

/// Having a name of the manifest served by another store.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct StoreSwitchRequest {
    /// The store that is to serve the name: one that was restored from a backup of it.
    pub to: String,
    /// Say what would be done, and do nothing.
    pub dry_run: bool,
    /// Also where not all that was written to the old store is in its archive.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub accept_loss: bool,
    /// `app/environment/store`, typed by the person who means it; not needed to ask what would be done.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub confirm: String,
}

/// What a switch does, or would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StoreSwitchPlan {
    /// The name of the manifest.
    pub store: String,
    /// The store that serves it.
    pub from: String,
    pub to: String,
    /// The release that serves; the next one is the same on the other store.
    pub release: u64,
    /// The new store is deleted, and is had back for it.
    pub was_deleted: bool,
    /// How long what runs may take to end. Requests are held for 30 seconds of it, then answered 503.
    pub ends_ms: u64,
    /// How long the new release may then take to become ready before it is taken back.
    pub starts_ms: u64,
}

/// A switch, and the rollout that brings it about where it was begun.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StoreSwitched {
    pub plan: StoreSwitchPlan,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<crate::Rollout>,
}

/// Deleting a store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StoreDeleteRequest {
    /// `app/environment/store`, typed by the person who means it.
    pub confirm: String,
    /// How long it can be had back; a week without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay_seconds: Option<u64>,
}
