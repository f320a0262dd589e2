//! What instances are held to on the host they run on.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// One thing an instance is held to, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Protection {
    /// `user`, `privileges`, `memory`, `cpu`, `processes`, `descriptors`, `files`, `temporary` or `secrets`.
    pub part: String,
    pub state: ProtectionState,
    /// In a line: `memory: 512MiB for all its processes together (cgroup v2)`.
    pub text: String,
}

/// Whether it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ProtectionState {
    Enforced,
    /// By a substitute that holds less.
    Weaker,
    /// It was wanted, and this host cannot.
    Missing,
    /// The manifest does not ask for it.
    Off,
    #[serde(other)]
    Unknown,
}
