//! Instances as plain processes on this host, each under a shim of its own.
//!
//! Everything this target knows is in its run folder, `i/<key>/` per instance; a value of [`ProcessTarget`] remembers
//! nothing that a later one would miss. An instance is alive as long as its shim holds the lock of its folder.
//!
//! What a crash leaves behind: a folder in which nothing was started is started in again; a shim that died without
//! writing how its instance ended is found by its free lock, what it left behind is ended, and the instance ended
//! unseen. After a restart of the host the run folder is empty, or tells of another boot: nothing is signalled.
//!
//! It never decides what should run, never restarts anything, never deletes a volume or a log, and never signals a
//! process by a number alone.

mod client;
mod exec;
mod folder;
mod jail;
pub mod ownership;
mod ports;
mod program;
mod start;
pub mod users;

use std::{
    ops::RangeInclusive,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
pub use landfast_shim::logs;

use landfast_shim::{
    ShimState,
    wire::{Reply, Request},
};
use landfast_store::Store;
use landfast_target::{
    Confinement, ExecOutput, Exit, InstanceRef, InstanceSpec, Observed, ObservedState, ProgramEnd,
    ProgramRun, ProgramSpec, StartError, Target, TargetError,
};
use landfast_types::{Bytes, Fence, Protection, StaleFence};
use tokio::{
    sync::{Mutex, mpsc},
    task::JoinSet,
};

pub use crate::jail::{DESCRIPTORS_MAX, PROCESSES_MAX};
use crate::{client::Answer, folder::Folder, ports::Ports, users::Users};

/// A shim that is alive but does not answer is asked again after this: it is starting or leaving.
const ASK_AGAIN: Duration = Duration::from_millis(20);
/// Starts and stops of one instance exclude each other; so few others share its lock that nobody notices.
const STRIPES: usize = 64;

/// The ports instances are given where nobody says otherwise, on 127.0.0.1.
pub const PORTS: RangeInclusive<u16> = 20_000..=29_999;

/// What a process target needs to know.
#[derive(Debug, Clone)]
pub struct ProcessSettings {
    /// The `landfast` binary; shims are `<executable> shim`.
    pub executable: PathBuf,
    /// The run folder: emptied when the host restarts.
    pub run: PathBuf,
    /// Where artifacts are run from.
    pub store: Arc<Store>,
    /// The ports instances may be given, on 127.0.0.1.
    pub ports: RangeInclusive<u16>,
    /// The size at which a log segment is followed by the next.
    pub log_segment_bytes_max: u64,
    /// How many log segments of an instance are kept.
    pub log_segments_kept: u64,
    /// The grace of an instance whose shim is told to end, as at the shutdown of the host.
    pub shutdown_grace: Duration,
    /// Where temporary folders of instances are made.
    pub temporary: PathBuf,
    /// The folder of the volumes this target may give to the users of their instances. Others are the operator's.
    pub volumes: Option<PathBuf>,
    /// The record of the users of environments. Without it instances run as the server's user.
    pub users: Option<PathBuf>,
}

impl ProcessSettings {
    /// Where instances find the files of their secrets: in the run folder, which is memory on most hosts.
    pub(crate) fn secrets(&self) -> PathBuf {
        self.run.join("f")
    }

    /// Settings with the documented defaults: ports 20000–29999, five log segments of 8 MiB, a grace of 10 s; temporary
    /// folders in the run folder, and no users of their own.
    pub fn new(executable: PathBuf, run: PathBuf, store: Arc<Store>) -> Self {
        Self {
            executable,
            temporary: run.join("t"),
            volumes: None,
            users: None,
            run,
            store,
            ports: PORTS,
            log_segment_bytes_max: 8 << 20,
            log_segments_kept: 5,
            shutdown_grace: Duration::from_secs(10),
        }
    }
}

/// The target that runs instances as processes of this host.
#[derive(Debug)]
pub struct ProcessTarget {
    settings: ProcessSettings,
    users: Option<Arc<Users>>,
    ports: std::sync::Mutex<Ports>,
    stripes: Vec<Mutex<()>>,
    /// The commands of `exec` that are being passed on. Dropping the target ends them.
    execs: std::sync::Mutex<JoinSet<()>>,
}

/// The same number for the same path, and mostly another one for another path (FNV-1a).
fn path_seed(path: &Path) -> u64 {
    let bytes = path.as_os_str().as_encoded_bytes();
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

impl ProcessTarget {
    /// A target on a run folder. Whatever runs there already is found by [`Target::list`].
    pub fn new(settings: ProcessSettings) -> Self {
        Self {
            ports: std::sync::Mutex::new(Ports::new(
                settings.ports.clone(),
                path_seed(&settings.run),
            )),
            users: settings
                .users
                .clone()
                .map(|path| Arc::new(Users::new(path))),
            settings,
            stripes: (0..STRIPES).map(|_| Mutex::new(())).collect(),
            execs: std::sync::Mutex::new(JoinSet::new()),
        }
    }

    fn folder(&self, id: &InstanceRef) -> Folder {
        Folder::of(&self.settings.run, id)
    }

    async fn lock(&self, folder: &Folder) -> tokio::sync::MutexGuard<'_, ()> {
        self.stripes[folder.stripe(STRIPES)].lock().await
    }

    /// Refuses an order of a server that was replaced, for instances that no shim speaks for.
    async fn take_generation(&self, order: Fence) -> std::io::Result<Result<(), StaleFence>> {
        let run = self.settings.run.clone();
        blocking(move || folder::take_generation(&run, order)).await
    }

    /// Asks the shim of an instance until it answers or the instance is known to have ended.
    async fn ask(&self, id: &InstanceRef, request: &Request) -> Result<Told, TargetError> {
        let folder = self.folder(id);
        let io = |source| TargetError::Io {
            doing: format!("observe instance `{}`", id.instance),
            source,
        };
        loop {
            let Some((state, is_alive)) = folder.observe().await.map_err(io)? else {
                return Ok(Told::Unknown);
            };
            if !is_alive {
                return Ok(Told::Ended(exit_of(&state)));
            }
            match client::ask(&folder, request).await {
                Answer::Reply(Reply::Ended { ended }) => {
                    return Ok(Told::Ended(exit(ended.exit, ended.out_of_memory)));
                }
                Answer::Reply(Reply::Stale { refused, seen }) => {
                    return Err(StaleFence { refused, seen }.into());
                }
                Answer::Reply(Reply::Done) => return Ok(Told::Done),
                Answer::Reply(
                    Reply::State { .. }
                    | Reply::Output { .. }
                    | Reply::Exec { .. }
                    | Reply::CommandMissing { .. },
                ) => {
                    return Err(io(std::io::Error::other(
                        "the shim answered something else",
                    )));
                }
                Answer::Reply(Reply::Refused { reason }) => {
                    return Err(io(std::io::Error::other(reason)));
                }
                Answer::Gone => tokio::time::sleep(ASK_AGAIN).await,
            }
        }
    }
}

/// What is known after a shim was asked.
enum Told {
    Unknown,
    Ended(Exit),
    Done,
}

#[async_trait]
impl Target for ProcessTarget {
    async fn start(&self, order: Fence, spec: &InstanceSpec) -> Result<Observed, StartError> {
        self.start_process(order, spec).await
    }

    async fn start_program(
        &self,
        order: Fence,
        spec: &ProgramSpec,
    ) -> Result<Observed, StartError> {
        self.start_host_program(order, spec).await
    }

    async fn own_folder(&self, owner: &str, folder: &Path) -> Result<(), StartError> {
        self.give_folder(owner, folder).await
    }

    async fn run_program(&self, run: &ProgramRun) -> Result<ProgramEnd, StartError> {
        self.run_to_end(run).await
    }

    async fn stop(
        &self,
        order: Fence,
        id: &InstanceRef,
        grace: Duration,
    ) -> Result<Exit, TargetError> {
        let doing = || format!("stop instance `{}`", id.instance);
        let taken = self.take_generation(order).await;
        taken.map_err(|source| TargetError::Io {
            doing: doing(),
            source,
        })??;
        let folder = self.folder(id);
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        loop {
            // Not while it is being started.
            drop(self.lock(&folder).await);
            let request = Request::Stop {
                fence: order,
                grace_ms,
            };
            if let Told::Ended(exit) = self.ask(id, &request).await? {
                return Ok(exit);
            }
            // A shim that was ordered by a server which died may still be on its way: it finds this and leaves.
            let _starting = self.lock(&folder).await;
            let buried = folder.bury(id).await;
            let buried = buried.map_err(|source| TargetError::Io {
                doing: doing(),
                source,
            })?;
            if buried {
                return Ok(Exit::Unknown);
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    async fn forget(&self, id: &InstanceRef) -> Result<(), TargetError> {
        let folder = self.folder(id);
        let _starting = self.lock(&folder).await;
        let io = |source| TargetError::Io {
            doing: format!("forget instance `{}`", id.instance),
            source,
        };
        match folder.observe().await.map_err(io)? {
            None => return Ok(()),
            Some((state, _)) if state.ended.is_none() => return Ok(()),
            // It is still ending what the instance left behind.
            Some((_, true)) => drop(self.ask(id, &Request::Forget).await?),
            Some((_, false)) => {}
        }
        folder.remove().await.map_err(io)
    }

    async fn list(&self) -> Result<Vec<Observed>, TargetError> {
        let io = |source| TargetError::Io {
            doing: "list instances".to_owned(),
            source,
        };
        let (run, temporary) = (self.settings.run.clone(), self.settings.temporary.clone());
        let secrets = self.settings.secrets();
        let folders = blocking(move || {
            // No shim of before would come to remove them.
            let is_known = |key: &str| run.join("i").join(key).is_dir();
            for folder in [temporary, secrets] {
                if let Err(error) = jail::sweep_temporary(&folder, is_known) {
                    let folder = folder.display();
                    tracing::warn!(%folder, %error, "what ended instances left there stays");
                }
            }
            Folder::all(&run)
        });
        let folders = folders.await.map_err(io)?;
        let mut all = Vec::with_capacity(folders.len());
        for folder in folders {
            match folder.observe().await {
                Ok(Some((state, _))) => all.push(observed(&state)),
                Ok(None) => {}
                // One that cannot be read must not hide the others.
                Err(error) => {
                    tracing::warn!(folder = %folder.path().display(), %error, "instance cannot be observed")
                }
            }
        }
        all.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(all)
    }

    async fn observe(&self, id: &InstanceRef) -> Result<Option<Observed>, TargetError> {
        let found = self.folder(id).observe().await;
        let found = found.map_err(|source| TargetError::Io {
            doing: format!("observe instance `{}`", id.instance),
            source,
        })?;
        Ok(found.map(|(state, _)| observed(&state)))
    }

    async fn wait(&self, id: &InstanceRef) -> Result<Exit, TargetError> {
        match self.ask(id, &Request::Wait).await? {
            Told::Ended(exit) => Ok(exit),
            Told::Unknown | Told::Done => Ok(Exit::Unknown),
        }
    }

    fn forecast(&self, wanted: &Confinement<'_>) -> Vec<Protection> {
        match jail::order(&self.settings, self.users.as_deref(), wanted, None) {
            Ok(order) => landfast_shim::jail::forecast(&order),
            Err(error) => {
                tracing::warn!(%error, "what an instance would be held to is not known");
                Vec::new()
            }
        }
    }

    async fn exec(
        &self,
        id: &InstanceRef,
        command: Vec<String>,
        stdin: Vec<u8>,
    ) -> Result<mpsc::Receiver<ExecOutput>, TargetError> {
        self.exec_beside(id, command, stdin).await
    }
}

/// Converts what a shim tells into what a target tells.
fn observed(state: &ShimState) -> Observed {
    let id = InstanceRef {
        scope: state.scope.clone(),
        instance: state.instance.clone(),
    };
    let (observed, pid) = match &state.ended {
        None => (ObservedState::Running, state.main.map(|main| main.pid)),
        Some(ended) => {
            let exit = exit(ended.exit.clone(), ended.out_of_memory);
            (ObservedState::Exited { exit, at: ended.at }, None)
        }
    };
    Observed {
        id,
        state: observed,
        address: state.address,
        pid,
        started_at: state.started_at,
        is_job: state.is_job,
        protections: state.protections.clone(),
        health: None,
    }
}

fn exit(exit: landfast_shim::Exit, out_of_memory: Option<u64>) -> Exit {
    if let Some(limit) = out_of_memory {
        let limit = Bytes(limit);
        return Exit::OutOfMemory { limit };
    }
    match exit {
        landfast_shim::Exit::Code { code } => Exit::Code { code },
        landfast_shim::Exit::Signal {
            signal,
            core_dumped,
        } => Exit::Signal {
            signal,
            core_dumped,
        },
        landfast_shim::Exit::NotStarted { reason } => Exit::NotStarted { reason },
        landfast_shim::Exit::Unknown => Exit::Unknown,
    }
}

fn exit_of(state: &ShimState) -> Exit {
    state.ended.as_ref().map_or(Exit::Unknown, |ended| {
        exit(ended.exit.clone(), ended.out_of_memory)
    })
}

/// Runs file system work where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(std::io::Error::other(error)),
    }
}
