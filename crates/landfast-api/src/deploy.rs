//! What `plan` and `deploy` ask, and what a plan says.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Diagnostic, Migration, PinnedImage, Protection, Rollout};

/// A manifest as its author wrote it: the server reads it itself, so that its answer names the author's lines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Manifest {
    /// For messages only, such as `landfast.toml`.
    pub file_name: String,
    pub text: String,
}

/// How a rollout moves traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    Rolling,
    BlueGreen,
    Canary,
    Recreate,
    #[serde(other)]
    Unknown,
}

/// What would a deploy do?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlanRequest {
    pub manifest: Manifest,
    /// The digest of each artifact, by the text the manifest names it with. They need not be uploaded yet.
    #[serde(default)]
    pub artifacts: BTreeMap<String, String>,
    /// In place of the manifest's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strategy: Option<Strategy>,
}

/// Make a release of this and move the environment to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeployRequest {
    pub manifest: Manifest,
    /// The digest of each artifact, by the text the manifest names it with. All must be in the store.
    #[serde(default)]
    pub artifacts: BTreeMap<String, String>,
    /// The images it runs, as `…/images` answered. What is not named is resolved by the server; what is built must be.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub images: BTreeMap<String, PinnedImage>,
    /// In place of the manifest's, for this rollout only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strategy: Option<Strategy>,
    /// For `history`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// The source commit this was built from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// Take a moving rollout back first, instead of being refused by it.
    #[serde(default)]
    pub supersede: bool,
}

/// The answer to a deploy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DeployAnswer {
    /// Nothing differs from the release that serves: no release and no rollout was made (status 200).
    pub unchanged: bool,
    /// The release that serves, or will.
    pub release: u64,
    /// The rollout that began (status 202).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Rollout>,
    /// What the manifest is warned about.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// What a deploy would do, and whether it may.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Plan {
    pub app: String,
    pub environment: String,
    /// Nothing differs: a deploy would make no release.
    pub unchanged: bool,
    /// The release that serves; `null` for the first deploy.
    pub from: Option<u64>,
    /// The number the new release would get.
    pub to: u64,
    pub strategy: Strategy,
    /// In the order they move.
    pub services: Vec<ServicePlan>,
    /// What will happen, in words, one line each.
    pub steps: Vec<String>,
    /// Migrations the release brings that have not run, in the order they would.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub migrations: Vec<Migration>,
    /// The gates the rollout will wait for.
    pub gates: Vec<String>,
    pub peak: Peak,
    pub rollback: RollbackPlan,
    pub routes: Vec<RouteClaim>,
    /// Why a deploy would be refused. Empty: it may go.
    pub refusals: Vec<Refusal>,
    pub warnings: Vec<String>,
}

/// What changes in one service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServicePlan {
    pub service: String,
    pub change: Change,
    /// Now, an override by `scale` included.
    pub replicas_from: Option<u32>,
    pub replicas_to: Option<u32>,
    /// The replicas `scale` set in place of the manifest's, where it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale_override: Option<u32>,
    /// The difference in configuration, line by line. Values of secrets never appear.
    pub lines: Vec<DiffLine>,
    /// What its instances would be held to on this host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub protections: Vec<Protection>,
}

/// What happens to a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    Added,
    Removed,
    Changed,
    Unchanged,
    #[serde(other)]
    Unknown,
}

/// One line of a difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiffLine {
    pub mark: DiffMark,
    pub text: String,
}

/// Which side a line of a difference is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DiffMark {
    Added,
    Removed,
    Kept,
}

/// The most this host must carry at one moment of the rollout.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Peak {
    pub memory_old_bytes: u64,
    pub memory_new_bytes: u64,
    /// What stays up beside the new release until the seal.
    pub memory_standby_bytes: u64,
    /// The highest sum at one moment, this environment only.
    pub memory_peak_bytes: u64,
    /// Promised to other environments of this host.
    pub memory_others_bytes: u64,
    pub memory_host_bytes: u64,
    pub cpu_old_millis: u64,
    pub cpu_new_millis: u64,
    pub cpu_standby_millis: u64,
    pub cpu_peak_millis: u64,
    pub cpu_others_millis: u64,
    pub cpu_host_millis: u64,
    pub fits: bool,
    /// Services without `resources`: their use is not in the sums.
    #[serde(default)]
    pub unbounded: Vec<String>,
}

/// How the release before could serve again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RollbackPlan {
    /// The release a rollback would lead to; `null` where there is none.
    pub to: Option<u64>,
    /// Expected time until it serves all traffic.
    pub expected_ms: Option<u64>,
    /// In words: `switch back, blue stands by` or `start 3 instances of release 4 first`.
    pub how: String,
    /// Why no rollback leads there, by the schemas of today.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub obstacle: Option<String>,
}

/// A (host, path) this app wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RouteClaim {
    pub route: String,
    pub host: String,
    pub path: String,
    pub service: String,
    /// `app/environment/route` of the other that owns it: the claim is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken_by: Option<String>,
}

/// Why a deploy would be refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Refusal {
    /// The code a deploy would be answered with, such as `route-taken`.
    pub code: String,
    pub reason: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub diagnostics: Vec<Diagnostic>,
}
