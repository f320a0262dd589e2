//! Whether a host can carry what it is to carry.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Manifest;

/// What is to be carried; all of it may be left out.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct DoctorRequest {
    /// The host is held against the sum of its services.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<Manifest>,
    /// The environment the manifest is read for; `production` without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// People who use it at one time: the host is held against the size known for so many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub users: Option<u64>,
}

/// What was looked at, in a fixed order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Diagnosis {
    /// The worst of the findings.
    pub level: FindingLevel,
    pub findings: Vec<Finding>,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Finding {
    /// A stable word: `disk-latency`.
    pub check: String,
    pub level: FindingLevel,
    /// What was measured, with its unit.
    pub measured: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FindingLevel {
    Ok,
    /// It works, with less protection, room or speed than it should.
    Warn,
    /// It does not work like this: the preflight gate refuses.
    Fail,
    #[serde(other)]
    Unknown,
}
