//! What keeps an instance from what is not its own, and whether this host enforces it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One thing an instance is held to, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Protection {
    pub part: ProtectionPart,
    pub state: ProtectionState,
    /// By what, or why not: `cgroup v2, 512MiB`, `the kernel has no Landlock`.
    pub detail: String,
}

impl Protection {
    /// A protection in this state, with a word about how or why.
    pub fn new(part: ProtectionPart, state: ProtectionState, detail: impl Into<String>) -> Self {
        Self {
            part,
            state,
            detail: detail.into(),
        }
    }

    /// Whether somebody should know: it was wanted, and this host does not give it whole.
    pub fn is_short(&self) -> bool {
        matches!(
            self.state,
            ProtectionState::Weaker | ProtectionState::Missing
        )
    }
}

impl fmt::Display for Protection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            part,
            state,
            detail,
        } = self;
        match state {
            ProtectionState::Enforced => write!(f, "{part}: {detail}"),
            ProtectionState::Weaker => write!(f, "{part}: weaker, {detail}"),
            ProtectionState::Missing => write!(f, "{part}: not enforced, {detail}"),
            ProtectionState::Off => write!(f, "{part}: off, {detail}"),
            ProtectionState::Unknown => write!(f, "{part}: unknown, {detail}"),
        }
    }
}

/// What is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProtectionPart {
    /// A user of its own.
    User,
    /// No capability, and none to be gained.
    Privileges,
    Memory,
    Cpu,
    /// How many processes and threads.
    Processes,
    /// How many open descriptors.
    Descriptors,
    /// Which files can be reached.
    Files,
    /// A temporary folder of its own.
    Temporary,
    /// Secrets as files that only it reads.
    Secrets,
    #[serde(other)]
    Unknown,
}

impl fmt::Display for ProtectionPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::User => "user",
            Self::Privileges => "privileges",
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::Processes => "processes",
            Self::Descriptors => "descriptors",
            Self::Files => "files",
            Self::Temporary => "temporary folder",
            Self::Secrets => "secrets",
            Self::Unknown => "unknown",
        })
    }
}

/// Whether it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProtectionState {
    Enforced,
    /// By a substitute that holds less: a limit of each process instead of all together.
    Weaker,
    /// It was wanted, and this host cannot.
    Missing,
    /// The manifest does not ask for it.
    Off,
    #[serde(other)]
    Unknown,
}
