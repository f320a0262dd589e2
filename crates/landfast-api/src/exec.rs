//! Jobs by hand, and commands beside instances.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{At, base64};

/// One run of a job. Its output is read with `…/logs?instance=<run>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JobRun {
    /// The id of the run, which is that of its instance: `smoke.r3.17`.
    pub run: String,
    pub job: String,
    pub release: u64,
    pub state: JobRunState,
    pub started_at: At,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<At>,
    /// In words: `exited with code 1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<String>,
    /// The exit code, where the process had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
}

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum JobRunState {
    Running,
    Succeeded,
    Failed,
    #[serde(other)]
    Unknown,
}

/// Run a command beside an instance: in its folder, with its environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExecRequest {
    /// Any ready instance of this service. One of `service` and `instance` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// argv, never a shell line.
    pub command: Vec<String>,
    /// Base64.
    #[serde(default, with = "base64", skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = String)]
    pub stdin: Vec<u8>,
}

/// One piece of a command's output; the last is `exit` or `failed`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum ExecFrame {
    /// First: where it runs.
    Started { instance: String },
    Stdout {
        #[serde(with = "base64")]
        #[schema(value_type = String)]
        bytes: Vec<u8>,
    },
    Stderr {
        #[serde(with = "base64")]
        #[schema(value_type = String)]
        bytes: Vec<u8>,
    },
    Exit {
        /// Where it ended by itself.
        code: Option<i32>,
        /// In words: `was killed by signal 9`.
        text: String,
    },
    /// It could not go on.
    Failed { reason: String },
}
