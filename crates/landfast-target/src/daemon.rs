//! What a daemon behind a target says of itself.

use std::path::PathBuf;

/// A daemon that answers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DaemonFacts {
    /// What and where: `Docker 28.1 at unix:///var/run/docker.sock`.
    pub what: String,
    /// The version of its API that is spoken.
    pub api_version: String,
    /// `overlay2`.
    pub storage_driver: String,
    /// `1` or `2`; empty where it does not say.
    pub cgroup_version: String,
    /// Containers go on when the daemon ends.
    pub has_live_restore: bool,
    /// Limits it cannot hold containers to: `memory`, `cpu`, `pids`.
    pub lacks: Vec<String>,
    /// The name of its host, when that is another one than this.
    pub elsewhere: Option<String>,
    /// Where it keeps images and containers, when it is on this host.
    pub data: Option<PathBuf>,
}
