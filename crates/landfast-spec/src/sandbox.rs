//! How far a process is kept from what is not its own, and what loosens it.

use serde::{Deserialize, Serialize};

use crate::cursor::Cursor;

/// The words of `sandbox.user`.
pub(crate) const USERS: &[&str] = &["own", "server"];
/// The words of `sandbox.files`.
pub(crate) const FILES: &[&str] = &["restricted", "host"];

/// What `sandbox` says. The default is the strictest: what is stored of a manifest without the key is not changed by it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SandboxSpec {
    /// It runs as the server's user instead of one of its own.
    pub server_user: bool,
    /// It reaches every file its user may.
    pub host_files: bool,
    /// Absolute paths on the host that it may read.
    pub read_only: Vec<String>,
    /// Absolute paths on the host that it may write too.
    pub read_write: Vec<String>,
    // Left out where they are not given, so that what was stored before keeps its fingerprint.
    /// A container runs as the root of an image that names no user.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub root: bool,
    /// A container may write to its image's files.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub writable: bool,
    /// Folders of a container that are in memory.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tmpfs: Vec<String>,
    /// What a container may do beyond the ordinary, without `CAP_`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<String>,
}

impl SandboxSpec {
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Reads the table of a service or job.
pub(crate) fn read(at: &Cursor<'_>) -> SandboxSpec {
    let at = at.table("sandbox");
    SandboxSpec {
        server_user: at.text("user").is_some_and(|word| word == USERS[1]),
        host_files: at.text("files").is_some_and(|word| word == FILES[1]),
        read_only: at.texts("read_only").unwrap_or_default(),
        read_write: at.texts("read_write").unwrap_or_default(),
        root: at.flag("root"),
        writable: at.flag("writable"),
        tmpfs: at.texts("tmpfs").unwrap_or_default(),
        capabilities: at.texts("capabilities").unwrap_or_default(),
    }
}
