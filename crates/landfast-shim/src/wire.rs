//! What is said to a shim and by it: JSON, one value per line. These types live apart from the target's own, so
//! that a newer server understands an older shim: fields are only ever added, with a default.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

use landfast_types::{Fence, InstanceId, Scope, Secret, StaleFence};
use serde::{Deserialize, Serialize};

use crate::state::{Ended, Exit, ShimState};

/// Everything a shim needs, given on its standard input: never in arguments, in its own environment or on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShimOrder {
    pub scope: Scope,
    pub instance: InstanceId,
    pub fence: Fence,
    /// The folder the shim makes its own. It exists.
    pub folder: PathBuf,
    /// The file that is run, absolute.
    pub program: PathBuf,
    pub argv: Vec<String>,
    /// The whole environment of the instance, [`crate::MARK_VARIABLE`] included.
    pub env: BTreeMap<String, Secret<String>>,
    pub cwd: PathBuf,
    pub address: Option<SocketAddr>,
    pub is_job: bool,
    pub mark: String,
    pub logs: LogSettings,
    /// The grace when the shim itself gets SIGTERM, as at the shutdown of the host.
    pub grace_ms: u64,
    /// The signal that asks it to end; SIGTERM without it.
    #[serde(default)]
    pub stop_signal: Option<i32>,
    /// What the instance is held to. `None`: an order of a server that knew of no jail.
    #[serde(default)]
    pub jail: Option<JailOrder>,
    /// Secrets it finds as files.
    #[serde(default)]
    pub secrets: Option<SecretsOrder>,
}

/// Secrets given as files: a folder only the instance's user can enter, a file only that user can read for each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretsOrder {
    /// The folder to make, and to remove at the end of the instance.
    pub folder: PathBuf,
    /// By the name of the file.
    pub files: BTreeMap<String, Secret<String>>,
}

/// What an instance is held to. What this host cannot enforce is reported, not refused; what fails although the host
/// can is a start that failed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct JailOrder {
    /// The user (and the group of the same number) it runs as; `None` is the user of the shim.
    pub user: Option<u32>,
    /// Why it gets no user of its own, where that was wanted or not.
    #[serde(default)]
    pub user_unless: Option<Unless>,
    pub memory_bytes_max: Option<u64>,
    /// Thousandths of a core.
    pub cpu_millis_max: Option<u64>,
    /// Processes and threads.
    pub processes_max: Option<u64>,
    pub descriptors_max: Option<u64>,
    /// `None`: whatever its user may.
    pub files: Option<FilesOrder>,
    /// A folder to make for it, and to remove at its end.
    pub temporary: Option<PathBuf>,
}

/// Why a protection is not given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unless {
    /// The manifest wanted it so; otherwise the host cannot.
    pub is_wanted: bool,
    pub reason: String,
}

/// Which files an instance reaches beyond the system's own programs and libraries, its artifact and its temporary folder.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FilesOrder {
    pub read_only: Vec<PathBuf>,
    pub read_write: Vec<PathBuf>,
}

/// Where output is kept, and how much of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogSettings {
    pub folder: PathBuf,
    pub segment_bytes_max: u64,
    pub segments_kept: u64,
}

impl LogSettings {
    /// Segments of 8 MiB, the newest five kept.
    pub fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            segment_bytes_max: 8 << 20,
            segments_kept: 5,
        }
    }
}

/// The one line a shim writes to its standard output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "kebab-case")]
pub enum Report {
    /// It runs, or could not be started (see its end).
    Started {
        state: Box<ShimState>,
    },
    /// Another shim has or had this folder.
    Already,
    Failed {
        reason: String,
    },
}

/// A line sent to the control socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Request {
    /// Answered by [`Reply::State`].
    Status,
    /// SIGTERM (or what the order says) to the group, SIGKILL to everything after the grace. Answered by [`Reply::Ended`] when nothing is left.
    /// A second one may only shorten the grace.
    Stop { fence: Fence, grace_ms: u64 },
    /// Sends a signal to the group of the instance. Answered by [`Reply::Done`].
    Signal { fence: Fence, signal: i32 },
    /// Answered by [`Reply::Ended`] when the instance ended and nothing of it is left: whoever waits may start what
    /// takes its place.
    Wait,
    /// Runs a command in the folder and environment of the instance. `stdin_bytes` bytes of its standard input
    /// follow the line. Answered by [`Reply::Output`] headers, each followed by so many bytes, and one [`Reply::Exec`].
    Exec { argv: Vec<String>, stdin_bytes: u64 },
    /// For an ended instance: ends what it left at once, removes the folder and leaves. Answered by [`Reply::Done`].
    Forget,
}

/// A line received from the control socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Reply {
    State {
        state: Box<ShimState>,
    },
    Ended {
        ended: Ended,
    },
    Done,
    /// So many bytes of output follow this line.
    Output {
        stream: OutputStream,
        bytes: usize,
    },
    /// The command run by `exec` ended.
    Exec {
        exit: Exit,
        /// The kernel killed it at this memory limit, in bytes.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        out_of_memory: Option<u64>,
    },
    /// The order came from a server that was replaced.
    Stale {
        refused: Fence,
        seen: Fence,
    },
    /// The command for `exec` is neither in the folder nor in PATH.
    CommandMissing {
        command: String,
    },
    /// It cannot be done, now or ever.
    Refused {
        reason: String,
    },
}

impl From<StaleFence> for Reply {
    fn from(stale: StaleFence) -> Self {
        Self::Stale {
            refused: stale.refused,
            seen: stale.seen,
        }
    }
}

/// Which output of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OutputStream {
    Stdout,
    Stderr,
}
