//! The host: what runs on it and what it has.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{At, EnvironmentState, RolloutState};

/// The server answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// `ok`, or `starting` while the journal is read.
    pub status: String,
    pub version: String,
    /// Grows with each start of the server.
    pub generation: u64,
}

/// The host as the server sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Host {
    pub name: String,
    pub version: String,
    pub generation: u64,
    pub pid: u32,
    pub started_at: At,
    pub proxy: ProxyInfo,
    pub listeners: Listeners,
    pub folders: Folders,
    pub resources: HostResources,
    /// What differs from what one might expect, in words: `port 80 may not be bound; listening on 8080`.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// The proxy beside the server.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct ProxyInfo {
    pub reachable: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// What it could not use, such as an unreadable certificate.
    #[serde(default)]
    pub problems: Vec<String>,
}

/// Where Landfast listens.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Listeners {
    pub socket: String,
    #[serde(default)]
    pub tcp: Vec<String>,
    pub http: Vec<String>,
    pub https: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preview: Option<String>,
}

/// Where Landfast keeps things.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Folders {
    pub state: String,
    pub run: String,
}

/// What the host has.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct HostResources {
    pub cpu_millis: u64,
    pub memory_bytes: u64,
    pub memory_available_bytes: u64,
    /// Of the state folder's file system.
    pub disk_bytes: u64,
    pub disk_free_bytes: u64,
    /// Promised to environments by their manifests.
    pub cpu_promised_millis: u64,
    pub memory_promised_bytes: u64,
}

/// Every environment of a host.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct AppList {
    pub apps: Vec<AppSummary>,
}

/// One environment in a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AppSummary {
    pub app: String,
    pub environment: String,
    pub state: EnvironmentState,
    pub release: Option<u64>,
    pub instances_wanted: u32,
    pub instances_ready: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutBrief>,
}

/// A rollout in a word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RolloutBrief {
    pub id: u64,
    pub to: u64,
    pub state: RolloutState,
    pub phase: String,
}
