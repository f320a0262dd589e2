//! What happened: events of environments, and lines of instances.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::At;

/// Something that happened. In an event stream its sequence is the `id` and its kind the `event`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Grows over the whole host; pass the last one seen as `Last-Event-ID` to go on from there.
    pub sequence: u64,
    pub at: At,
    /// Absent for events of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// A stable word: `rollout-started`, `instance-ready`, `weights-moved`, …
    pub kind: String,
    pub level: Level,
    /// One line for people.
    pub text: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
}

/// How much an event matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    Info,
    Warning,
    Error,
    #[serde(other)]
    Unknown,
}

/// One line an instance wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogLine {
    pub at: At,
    pub instance: String,
    pub stream: LogStream,
    /// Without its line end; bytes that are not UTF-8 are replaced.
    pub line: String,
}

/// Where an instance wrote a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LogStream {
    Stdout,
    Stderr,
    /// Written by Landfast about the instance: started, ended, lines lost.
    Landfast,
    #[serde(other)]
    Unknown,
}

/// Which lines are wanted: the query of `…/logs`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct LogQuery {
    /// Of a service or job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// How many lines of the past, over all chosen instances; the server's default is 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tail: Option<u32>,
    /// Go on as lines come, instances that start later included.
    #[serde(default)]
    pub follow: bool,
}
