//! What a target must do: start, stop and observe instances, and keep them while the server is away.
//!
//! The rollout engine sees groups and weights; a target sees single instances. It never decides when
//! something starts, whether it is healthy or whether it gets traffic. One conformance suite holds for every
//! target, the fake included.

pub mod conformance;
mod content;
mod daemon;
pub mod fake;
mod fake_images;
mod images;
mod targets;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use landfast_types::{
    Bytes, Cpu, Digest, Fence, ImageId, InstanceId, Protection, Scope, Secret, Timestamp,
};
use serde::{Deserialize, Serialize};

pub use crate::{
    content::{
        Bind, ContainerNetwork, ContainerOptions, ContainerUser, Content, ContentError,
        HealthSource, ImageHealth, NetworkJoin, Reservation,
    },
    daemon::DaemonFacts,
    images::{
        ImageError, ImageFacts, Images, PinnedImage, Pull, PullProgress, PullProgressSender,
        RegistryLogin, ResolvedImage,
    },
    targets::Targets,
};

/// An instance on this host: its environment and its id in it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct InstanceRef {
    pub scope: Scope,
    pub instance: InstanceId,
}

/// Everything a target needs to start one instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceSpec {
    pub id: InstanceRef,
    /// What is run. The working folder is the artifact's root, or the image's own.
    #[serde(alias = "artifact")]
    pub content: Content,
    /// argv. The first word, when it starts with `./`, is inside the working folder; otherwise it is looked up in PATH.
    /// For an image it takes the place of the image's own command, and empty means that one; what an entrypoint makes
    /// of it is the image's affair.
    pub command: Vec<String>,
    /// The whole environment but `PORT` and `HOST`, which the target adds, and the variables of an image, which are
    /// beneath these.
    pub env: BTreeMap<String, Secret<String>>,
    /// Secrets given as files: the instance finds the path of each in `<NAME>_FILE`.
    #[serde(default)]
    pub secret_files: BTreeMap<String, Secret<String>>,
    /// Whether it listens. The target chooses the real port and names it `PORT`.
    pub listens: bool,
    pub resources: Resources,
    /// Folders outside releases, by name; the instance finds each path in `VOLUME_<NAME>`.
    pub volumes: BTreeMap<String, PathBuf>,
    /// Where its standard output and error are kept, in rotated segments.
    pub log_folder: PathBuf,
    /// True for a job: it is expected to end by itself, and its exit status is its answer.
    pub is_job: bool,
    #[serde(default)]
    pub sandbox: Sandbox,
    /// Only for an image.
    #[serde(default)]
    pub container: ContainerOptions,
}

/// How far an instance is kept from what is not its own. The default is the whole of it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Sandbox {
    /// It runs as the server's user, not as one of its own.
    pub server_user: bool,
    /// It reaches every file its user may.
    pub host_files: bool,
    /// Absolute paths it may read, beyond the system's own, its artifact and its volumes.
    pub read_only: Vec<PathBuf>,
    /// Absolute paths it may write too.
    pub read_write: Vec<PathBuf>,
}

/// What an instance may use. `None` is unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Resources {
    pub cpu: Option<Cpu>,
    pub memory: Option<Bytes>,
    /// Processes and threads. `None`: the target's own bound.
    #[serde(default)]
    pub processes: Option<u32>,
    /// Open descriptors of each process. `None`: the target's own bound.
    #[serde(default)]
    pub descriptors: Option<u32>,
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Exit {
    Code {
        code: i32,
    },
    Signal {
        signal: i32,
        core_dumped: bool,
    },
    /// The kernel killed it because its memory limit was used up.
    OutOfMemory {
        limit: Bytes,
    },
    /// It could not be started at all.
    NotStarted {
        reason: String,
    },
    /// Its parent died or the host restarted: nobody saw how it ended.
    Unknown,
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code { code } => write!(f, "exited with code {code}"),
            Self::Signal { signal, .. } => write!(f, "was killed by signal {signal}"),
            Self::OutOfMemory { limit } => write!(
                f,
                "ran out of memory: it was killed at its limit of {limit}"
            ),
            Self::NotStarted { reason } => write!(f, "could not be started: {reason}"),
            Self::Unknown => f.write_str("ended unseen"),
        }
    }
}

/// What a target knows of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observed {
    pub id: InstanceRef,
    pub state: ObservedState,
    /// Where it listens, when it does.
    pub address: Option<SocketAddr>,
    /// Its process id, for people only: nothing is signalled by it.
    pub pid: Option<u32>,
    pub started_at: Timestamp,
    pub is_job: bool,
    /// What it is held to, as it was started. Empty where the target does not say.
    #[serde(default)]
    pub protections: Vec<Protection>,
    /// What the image's own check says of a running container; `None` where nobody asked for it
    /// ([`HealthSource::Image`]).
    #[serde(default)]
    pub health: Option<ImageHealth>,
}

/// Whether an instance runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum ObservedState {
    Running,
    Exited { exit: Exit, at: Timestamp },
}

/// Why an instance could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("artifact {0:?} is not in the store")]
    ArtifactMissing(Digest),
    #[error("image {0} is not here")]
    ImageMissing(ImageId),
    #[error("`{command}` is not in the artifact or in PATH")]
    CommandMissing { command: String },
    /// Another daemon, or a server that was told to have none.
    #[error("this server runs no containers; `landfast server run --docker` says where they run")]
    NoContainers,
    /// Somebody else's container has the name that this instance's would have.
    #[error(
        "a container named `{name}` is there and is not ours; rename it or remove it: `docker rename {name} …`"
    )]
    NameTaken { name: String },
    /// What is asked for is not to be had here, now or later.
    #[error("{0}")]
    Impossible(String),
    #[error("no free port was found in {from}–{to}")]
    NoPort { from: u16, to: u16 },
    #[error("order refused: {0}")]
    Stale(#[from] landfast_types::StaleFence),
    #[error("this kind of target runs no programs of its host")]
    NoPrograms,
    #[error("failed to {doing}")]
    Io {
        doing: String,
        source: std::io::Error,
    },
}

impl StartError {
    /// Whether the same call may succeed later without anybody changing anything.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NoPort { .. } | Self::Io { .. } => true,
            Self::ArtifactMissing(_)
            | Self::ImageMissing(_)
            | Self::CommandMissing { .. }
            | Self::NoPrograms
            | Self::NoContainers
            | Self::NameTaken { .. }
            | Self::Impossible(_)
            | Self::Stale(_) => false,
        }
    }
}

/// Why an instance could not be stopped, observed or entered.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    #[error("order refused: {0}")]
    Stale(#[from] landfast_types::StaleFence),
    #[error("instance `{0}` is not here")]
    NoSuchInstance(InstanceId),
    #[error("`{command}` is not in the artifact or in PATH")]
    CommandMissing { command: String },
    #[error("failed to {doing}")]
    Io {
        doing: String,
        source: std::io::Error,
    },
}

/// A program of the host itself that runs for an environment, with folders and a user of its own: the server of a data
/// store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgramSpec {
    pub id: InstanceRef,
    /// Whose it is: equal text, equal user. No two owners share one, where the host gives users at all.
    pub owner: String,
    /// Absolute.
    pub program: PathBuf,
    /// What follows the program's name.
    pub arguments: Vec<String>,
    /// The whole environment.
    pub env: BTreeMap<String, Secret<String>>,
    /// The working folder. It exists.
    pub folder: PathBuf,
    /// Paths it may read, beyond the system's own.
    pub read_only: Vec<PathBuf>,
    /// Paths it may write too.
    pub read_write: Vec<PathBuf>,
    /// Where it listens; nobody gives it another place.
    pub address: SocketAddr,
    pub resources: Resources,
    pub log_folder: PathBuf,
    /// The signal that asks it to end, as `kill -l` numbers them.
    pub stop_signal: i32,
}

/// Raised by whoever sees the work of a program go on outside of it: in the server that it asks.
#[derive(Debug, Clone, Default)]
pub struct Elsewhere(Arc<AtomicU64>);

impl Elsewhere {
    /// Its work has advanced.
    pub fn advanced(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Another number than before where it has.
    pub fn seen(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A program that is run to its end, as the user of an owner.
#[derive(Debug, Clone)]
pub struct ProgramRun {
    pub owner: String,
    /// Absolute.
    pub program: PathBuf,
    pub arguments: Vec<String>,
    pub env: BTreeMap<String, Secret<String>>,
    pub folder: PathBuf,
    /// Its standard input, which it may also open as `/dev/stdin`. Never on disk.
    pub stdin: Secret<Vec<u8>>,
    /// It looks up the name of its user, and users of owners have none: it is run as the first of these that the host
    /// knows, and the folder, which must be the owner's and empty, is handed back afterwards.
    pub named_users: Vec<String>,
    /// It is ended, with its whole group, when neither it nor what it started has used the processor or moved a byte for so long, nor
    /// its work has advanced elsewhere. What advances may take as long as it takes.
    pub patience: Duration,
    pub elsewhere: Elsewhere,
}

/// How a program that was run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgramEnd {
    pub exit: Exit,
    /// The end of what it wrote to both outputs.
    pub output: String,
}

/// What an instance is to be held to.
#[derive(Debug, Clone, Copy)]
pub struct Confinement<'a> {
    pub scope: &'a Scope,
    pub content: &'a Content,
    pub resources: &'a Resources,
    pub volumes: &'a BTreeMap<String, PathBuf>,
    pub sandbox: &'a Sandbox,
    /// Only for an image.
    pub container: &'a ContainerOptions,
    /// Whether it is given secrets as files.
    pub has_secret_files: bool,
}

impl InstanceSpec {
    /// What it is to be held to.
    pub fn confinement(&self) -> Confinement<'_> {
        Confinement {
            scope: &self.id.scope,
            content: &self.content,
            resources: &self.resources,
            volumes: &self.volumes,
            sandbox: &self.sandbox,
            container: &self.container,
            has_secret_files: !self.secret_files.is_empty(),
        }
    }
}

/// One piece of output of a command run beside an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecOutput {
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
    Exited(Exit),
}

/// Something that instances depend on and that does not answer: a daemon that is stopped, or hangs. They may well run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outage {
    /// What and where: `Docker at unix:///var/run/docker.sock`.
    pub what: String,
    /// The first call that failed since the last that did not.
    pub since: Timestamp,
    /// In a sentence.
    pub reason: String,
}

/// A place where groups run.
///
/// Every call is idempotent: a driver that crashed after calling simply calls again. Orders carry a
/// [`Fence`]; one from a server that has been replaced is refused.
#[async_trait]
pub trait Target: Send + Sync + 'static {
    /// Starts an instance and returns once it runs (not once it is ready). An instance of this id that already
    /// runs, or already ended, is returned as it is: an id is started once, ever.
    async fn start(&self, order: Fence, spec: &InstanceSpec) -> Result<Observed, StartError>;

    /// Starts an instance of an image as [`Target::start`] does, and gives what it writes as it comes. Nothing of it is kept, and it waits
    /// where nobody reads. The channel ends with the instance, or when it is lost out of sight: [`Target::wait`] alone says how it ended.
    /// Where the loss is seen, [`ExecOutput::Exited`] with [`Exit::Unknown`] comes last; otherwise an instance that still runs, or ended
    /// later than its channel, tells of it. An id is started once, ever: one that was before is refused.
    ///
    /// # Errors
    /// [`StartError::NoPrograms`] where that is not possible.
    async fn start_read(
        &self,
        order: Fence,
        spec: &InstanceSpec,
    ) -> Result<(Observed, tokio::sync::mpsc::Receiver<ExecOutput>), StartError> {
        let _nothing_is_started = (order, spec);
        Err(StartError::NoPrograms)
    }

    /// Starts a program of the host as an instance; from then on it is one like any other. An id is started once, ever.
    ///
    /// # Errors
    /// [`StartError::NoPrograms`] where that is not possible.
    async fn start_program(
        &self,
        order: Fence,
        spec: &ProgramSpec,
    ) -> Result<Observed, StartError> {
        let _nothing_is_started = (order, spec);
        Err(StartError::NoPrograms)
    }

    /// Makes a folder that belongs to an owner and lets nobody else in; one that is there is handed over with all it
    /// holds.
    ///
    /// # Errors
    /// When this host cannot give it away, with the reason.
    async fn own_folder(&self, owner: &str, folder: &Path) -> Result<(), StartError> {
        let _nothing_is_made = (owner, folder);
        Err(StartError::NoPrograms)
    }

    /// Runs a program of the host to its end. Dropped in the middle it ends the program and what that started; the end of the server
    /// ends the program alone.
    ///
    /// # Errors
    /// When it could not be run, or made no progress and was ended. One that failed is no error.
    async fn run_program(&self, run: &ProgramRun) -> Result<ProgramEnd, StartError> {
        let _nothing_is_run = run;
        Err(StartError::NoPrograms)
    }

    /// Ends an instance and everything it started: SIGTERM, at most `grace`, SIGKILL. Returns how it ended. One
    /// that is not known has ended unseen: that is no error.
    async fn stop(
        &self,
        order: Fence,
        id: &InstanceRef,
        grace: Duration,
    ) -> Result<Exit, TargetError>;

    /// Drops what is kept of an ended instance, but not its logs. Unknown or running ones are left alone.
    async fn forget(&self, id: &InstanceRef) -> Result<(), TargetError>;

    /// Everything this target runs or remembers, whoever started it, in order of id. A server that starts
    /// calls this first and adopts what it finds. One that cannot be read just now must not hide the others, so it
    /// is left out: only [`Target::observe`] says that an instance is not here.
    async fn list(&self) -> Result<Vec<Observed>, TargetError>;

    /// Everything that may run here, whoever started it: that it ended is not written down. Unlike [`Target::list`] it leaves nothing out.
    ///
    /// # Errors
    /// Where one of them cannot be read.
    async fn open(&self) -> Result<Vec<InstanceRef>, TargetError> {
        let listed = self.list().await?.into_iter();
        let open = listed.filter(|observed| observed.state == ObservedState::Running);
        Ok(open.map(|observed| observed.id).collect())
    }

    /// What is known of one instance; `None` only when it is certain that it is not here.
    ///
    /// # Errors
    /// When that cannot be said just now. It may well run.
    async fn observe(&self, id: &InstanceRef) -> Result<Option<Observed>, TargetError>;

    /// Waits until an instance and everything it started has ended, and says how the instance did. What it left
    /// behind when it ended by itself is ended within a moment. Returns at once for one that ended;
    /// [`Exit::Unknown`] for one that is not known.
    async fn wait(&self, id: &InstanceRef) -> Result<Exit, TargetError>;

    /// What an instance of this environment would be held to on this host. Starts and changes nothing.
    fn forecast(&self, wanted: &Confinement<'_>) -> Vec<Protection> {
        let _nothing_is_said = wanted;
        Vec::new()
    }

    /// The images of the daemon behind this target, where there is one.
    fn images(&self) -> Option<Arc<dyn Images>> {
        None
    }

    /// Why plain processes do not run here, where they do not.
    fn no_processes(&self) -> Option<&'static str> {
        None
    }

    /// What does not answer just now. Instances behind it are not known to have ended.
    fn outages(&self) -> Vec<Outage> {
        Vec::new()
    }

    /// What the daemon behind this target says of itself; `None` where there is none.
    async fn daemon(&self) -> Option<Result<DaemonFacts, Outage>> {
        None
    }

    /// Runs a command beside a running instance, in its folder and with its environment. Output comes in pieces;
    /// the last is [`ExecOutput::Exited`]. Dropping the receiver ends the command.
    async fn exec(
        &self,
        id: &InstanceRef,
        command: Vec<String>,
        stdin: Vec<u8>,
    ) -> Result<tokio::sync::mpsc::Receiver<ExecOutput>, TargetError>;
}
