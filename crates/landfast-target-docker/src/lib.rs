//! Instances as containers of a Docker daemon, or of one that speaks its API.
//!
//! What was ever ordered here is remembered in the state folder, one record under a lock for each instance, made before
//! its container: what has none was never ordered, and how one ended outlives its container. Everything of ours on the
//! daemon carries our labels and the identity of the state folder; nothing else is touched.
//!
//! A daemon that is stopped or hangs has ended nothing. Calls say so, whoever waits for an end goes on waiting, and
//! everything is looked at again when it answers.
//!
//! What a crash leaves behind: a record without a container is started again by the next order; a container that was
//! made and never began is removed by it; one that began is found by its name.
//!
//! It never decides what should run, never restarts anything, never publishes a port, never deletes a volume or a log,
//! and never removes by force what others named.

mod address;
mod clock;
mod core;
mod credentials;
mod daemon;
mod exec;
mod exits;
mod identity;
mod images;
mod logs;
mod name;
mod networks;
mod oom;
mod options;
mod place;
mod programs;
mod read;
mod record;
mod secrets;
mod start;
mod watch;
mod way;

use std::{
    io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bollard::query_parameters::KillContainerOptionsBuilder;
use landfast_target::{
    Confinement, Content, DaemonFacts, ExecOutput, Exit, Images, InstanceRef, InstanceSpec,
    Observed, ObservedState, Outage, StartError, Target, TargetError,
};
use landfast_types::{Fence, Protection};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, timeout_at},
};

pub use crate::{
    address::{DockerAddress, DockerAddressError, DockerChoice, Surroundings, choose, find},
    identity::remembered,
    name::{HostId, LABEL_HOST},
    way::end_former as end_former_way,
};
use crate::{
    core::Core,
    daemon::DaemonError,
    images::DockerImages,
    record::{Ended, Record, Records},
    watch::Follow,
};

/// The signal of an image that names none.
const SIGTERM: &str = "SIGTERM";
const SIGKILL: &str = "SIGKILL";
/// The longest grace; a longer one is none that anybody waits for.
const GRACE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// What a Docker target needs to know.
#[derive(Debug, Clone)]
pub struct DockerSettings {
    pub address: DockerAddress,
    /// Where it remembers what it was ordered: must not be lost.
    pub state: PathBuf,
    /// Where containers find their secrets as files: memory, on the daemon's host.
    pub secrets: PathBuf,
    /// The folder of the volumes it may give to the users of containers. Others are the operator's.
    pub volumes: Option<PathBuf>,
    /// The record of the users of environments. Without it, what must not be root is `nobody`.
    pub users: Option<PathBuf>,
    /// The folder in which Docker's client keeps logins, `~/.docker`.
    pub docker_config: Option<PathBuf>,
    /// The size at which a log segment is followed by the next.
    pub log_segment_bytes_max: u64,
    /// How many log segments of an instance are kept.
    pub log_segments_kept: u64,
    /// The longest wait for an answer of the daemon that is not to take long.
    pub call_wait_max: Duration,
}

impl DockerSettings {
    /// Settings with the documented defaults: five log segments of 8 MiB, answers within 20 s; no users, volumes or
    /// logins.
    pub fn new(address: DockerAddress, state: PathBuf, secrets: PathBuf) -> Self {
        Self {
            address,
            state,
            secrets,
            volumes: None,
            users: None,
            docker_config: None,
            log_segment_bytes_max: 8 << 20,
            log_segments_kept: 5,
            call_wait_max: Duration::from_secs(20),
        }
    }
}

/// The target that runs instances as containers.
pub struct DockerTarget {
    core: Arc<Core>,
    images: Arc<DockerImages>,
    /// Who listens to the daemon, from the first call on. Dropping the target ends it.
    watching: Mutex<Option<Watching>>,
    /// The outputs of instances and of the commands of `exec` that are being passed on.
    driven: Mutex<JoinSet<()>>,
}

struct Watching {
    follow: mpsc::UnboundedSender<Follow>,
    _task: JoinSet<()>,
}

impl std::fmt::Debug for DockerTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DockerTarget")
            .field("settings", &self.core.settings)
            .finish_non_exhaustive()
    }
}

impl DockerTarget {
    /// A target on a state folder. Whatever runs there already is found by [`Target::list`]. The daemon need not
    /// answer.
    ///
    /// # Errors
    /// When the state folder cannot be read or written.
    pub fn open(settings: DockerSettings) -> io::Result<Self> {
        let core = Arc::new(Core::open(settings)?);
        Ok(Self {
            images: Arc::new(DockerImages::new(Arc::clone(&core))),
            core,
            watching: Mutex::default(),
            driven: Mutex::default(),
        })
    }

    /// What its things on the daemon are labelled with.
    pub fn host(&self) -> &HostId {
        &self.core.host
    }

    /// What the daemon says of itself.
    ///
    /// # Errors
    /// When it does not answer, or speaks no version that we do.
    pub async fn facts(&self) -> Result<DaemonFacts, TargetError> {
        let asked = self
            .core
            .daemon
            .call(|client| async move { client.info().await });
        let info = asked.await.map_err(|error| TargetError::Io {
            doing: format!("ask Docker at {}", self.core.settings.address),
            source: error.into_io(),
        })?;
        let version = self.core.daemon.version();
        let address = &self.core.settings.address;
        let is_here = matches!(address, DockerAddress::Unix(_));
        let name = info.name.filter(|name| !is_here && *name != own_name());
        let limits = [
            ("memory", info.memory_limit),
            ("cpu", info.cpu_cfs_quota),
            ("pids", info.pids_limit),
        ];
        let lacks = limits.into_iter().filter(|(_, has)| *has == Some(false));
        Ok(DaemonFacts {
            what: format!(
                "Docker {} at {address}",
                info.server_version.unwrap_or_default()
            ),
            api_version: version
                .map(|version| version.to_string())
                .unwrap_or_default(),
            storage_driver: info.driver.unwrap_or_default(),
            cgroup_version: info
                .cgroup_version
                .map(|version| version.to_string())
                .unwrap_or_default(),
            has_live_restore: info.live_restore_enabled == Some(true),
            lacks: lacks.map(|(name, _)| name.to_owned()).collect(),
            elsewhere: name,
            data: info.docker_root_dir.filter(|_| is_here).map(PathBuf::from),
        })
    }

    /// Begins to listen, once.
    fn watch(&self) -> mpsc::UnboundedSender<Follow> {
        let mut watching = self.watching.lock().unwrap_or_else(PoisonError::into_inner);
        let begun = watching.get_or_insert_with(|| {
            let (follow, asked) = mpsc::unbounded_channel();
            let mut task = JoinSet::new();
            task.spawn(watch::watch(Arc::clone(&self.core), asked));
            Watching {
                follow,
                _task: task,
            }
        });
        begun.follow.clone()
    }

    /// Has an output passed on, until the target is dropped.
    fn drive(&self, driven: impl Future<Output = ()> + Send + 'static) {
        let mut all = self.driven.lock().unwrap_or_else(PoisonError::into_inner);
        while all.try_join_next().is_some() {}
        all.spawn(driven);
    }

    /// Orders a container to end, and waits until it has.
    async fn end(
        &self,
        record: &Record,
        container: &str,
        grace: Duration,
    ) -> Result<Exit, TargetError> {
        let id = &record.id;
        let mut changes = self.core.changes();
        let deadline = Instant::now() + grace.min(GRACE_MAX);
        if !grace.is_zero() {
            let signal = self.stop_signal(id, container).await?;
            self.signal(id, container, &signal).await?;
            while Instant::now() < deadline {
                if let Some(exit) = self.ended(id).await? {
                    return Ok(exit);
                }
                // No change in time is what the deadline is for.
                drop(timeout_at(deadline, changes.of(id)).await);
            }
        }
        loop {
            if let Some(exit) = self.ended(id).await? {
                return Ok(exit);
            }
            self.signal(id, container, SIGKILL).await?;
            let soon = Instant::now() + Duration::from_secs(1);
            drop(timeout_at(soon, changes.of(id)).await);
        }
    }

    async fn ended(&self, id: &InstanceRef) -> Result<Option<Exit>, TargetError> {
        match self.core.observe(id).await? {
            None => Ok(Some(Exit::Unknown)),
            Some(Observed {
                state: ObservedState::Exited { exit, .. },
                ..
            }) => {
                self.core.drained(id).await;
                Ok(Some(exit))
            }
            Some(_) => Ok(None),
        }
    }

    /// The signal an image wants, or the manifest.
    async fn stop_signal(&self, id: &InstanceRef, container: &str) -> Result<String, TargetError> {
        let found = self.core.inspect(container).await;
        let found = found.map_err(|error| self.core.failed(id, error.into_io()))?;
        let signal = found.and_then(|found| found.config?.stop_signal);
        Ok(signal
            .filter(|signal| !signal.is_empty())
            .unwrap_or_else(|| SIGTERM.to_owned()))
    }

    async fn signal(
        &self,
        id: &InstanceRef,
        container: &str,
        signal: &str,
    ) -> Result<(), TargetError> {
        let sent = self.core.daemon.call(|client| {
            let (container, signal) = (container.to_owned(), signal.to_owned());
            async move {
                let options = KillContainerOptionsBuilder::default()
                    .signal(&signal)
                    .build();
                client.kill_container(&container, Some(options)).await
            }
        });
        match sent.await {
            // It has ended, or is gone.
            Err(error) if error.is_missing() || error.is_conflict() => Ok(()),
            Err(error) => Err(TargetError::Io {
                doing: format!(
                    "stop instance `{}` on Docker at {}",
                    id.instance, self.core.settings.address
                ),
                source: error.into_io(),
            }),
            Ok(()) => Ok(()),
        }
    }

    async fn take(&self, order: Fence, doing: &str) -> Result<(), TargetError> {
        let taken = self
            .core
            .with_records(move |records| records.take_generation(order))
            .await;
        let taken = taken.map_err(|source| TargetError::Io {
            doing: doing.to_owned(),
            source,
        })?;
        taken.map_err(TargetError::Stale)
    }
}

#[async_trait]
impl Target for DockerTarget {
    async fn start(&self, order: Fence, spec: &InstanceSpec) -> Result<Observed, StartError> {
        let follow = self.watch();
        let started = Box::pin(self.core.start(order, spec, None)).await?;
        if let Some(ask) = self.core.to_follow(&spec.id) {
            // Nobody takes it only when the target is being dropped.
            follow.send(ask).unwrap_or_default();
        }
        Ok(started)
    }

    async fn start_read(
        &self,
        order: Fence,
        spec: &InstanceSpec,
    ) -> Result<(Observed, mpsc::Receiver<ExecOutput>), StartError> {
        self.watch();
        let reader = read::Reader::default();
        let started = Box::pin(self.core.start(order, spec, Some(&reader))).await?;
        let (reading, receiver) = reader.take().ok_or_else(|| {
            let what = "it was started before, and its output is somebody else's";
            StartError::Impossible(format!("`{}`: {what}", spec.id.instance))
        })?;
        self.drive(reading.drive());
        Ok((started, receiver))
    }

    async fn stop(
        &self,
        order: Fence,
        id: &InstanceRef,
        grace: Duration,
    ) -> Result<Exit, TargetError> {
        self.watch();
        let doing = format!("stop instance `{}`", id.instance);
        self.take(order, &doing).await?;
        let io = |source| TargetError::Io {
            doing: doing.clone(),
            source,
        };
        let held = self.core.hold(id).await.map_err(io)?;
        let Some(mut record) = held.read().map_err(io)? else {
            // An order to start it that is still on its way finds this.
            let mut record = Record::new(id, order);
            let (exit, at) = (Exit::Unknown, clock::now());
            record.ended = Some(Ended { exit, at });
            held.write(&record).map_err(io)?;
            return Ok(Exit::Unknown);
        };
        if let Some(ended) = record.ended {
            drop(held);
            self.core.drained(id).await;
            return Ok(ended.exit);
        }
        held.take(&mut record, order)
            .map_err(io)?
            .map_err(TargetError::Stale)?;
        let container = match &record.started {
            Some(started) => started.container.clone(),
            // A start that was cut short: there may be a container, and it may run.
            None => match self.core.find_by_name(id).await {
                Ok(found) => {
                    let state = found.as_ref().and_then(|found| found.state.clone());
                    let life = exits::life(&state.unwrap_or_default(), None);
                    let container = found.and_then(|found| found.id);
                    match (container, life) {
                        (Some(container), exits::Life::Runs { .. } | exits::Life::Ended { .. }) => {
                            container
                        }
                        (made, _) => {
                            if let Some(made) = made {
                                let removed = self.core.remove(&made).await;
                                removed.map_err(|error| io(error.into_io()))?;
                            }
                            let (exit, at) = (Exit::Unknown, clock::now());
                            record.ended = Some(Ended { exit, at });
                            held.write(&record).map_err(io)?;
                            return Ok(Exit::Unknown);
                        }
                    }
                }
                Err(error) => return Err(io(error.into_io())),
            },
        };
        drop(held);
        self.end(&record, &container, grace).await
    }

    async fn forget(&self, id: &InstanceRef) -> Result<(), TargetError> {
        let io = |source| TargetError::Io {
            doing: format!("forget instance `{}`", id.instance),
            source,
        };
        // A container that ended unseen is seen now.
        if let Some(observed) = self.core.observe(id).await?
            && observed.state == ObservedState::Running
        {
            return Ok(());
        }
        let held = self.core.hold(id).await.map_err(io)?;
        let Some(record) = held.read().map_err(io)? else {
            return held.remove().map_err(io);
        };
        if record.ended.is_none() {
            return Ok(());
        }
        self.core.drained(id).await;
        // Without an image nothing was ever made.
        if record.image.is_some() {
            let container = match &record.started {
                Some(started) => Some(started.container.clone()),
                None => {
                    let found = self.core.find_by_name(id).await;
                    found
                        .map_err(|error| io(error.into_io()))?
                        .and_then(|found| found.id)
                }
            };
            if let Some(container) = container {
                let removed = self.core.remove(&container).await;
                removed.map_err(|error| io(error.into_io()))?;
            }
        }
        if let Some(folder) = &record.secrets {
            secrets::remove(folder);
        }
        self.core.follow_no_more(id);
        held.remove().map_err(io)?;
        if !record.networks.is_empty()
            && let Err(error) = self.core.sweep_networks().await
        {
            // The next one that is forgotten tries again.
            tracing::debug!(%error, "networks that nobody is in stay");
        }
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Observed>, TargetError> {
        self.watch();
        let all = self.core.with_records(Records::all).await;
        let all = all.map_err(|source| TargetError::Io {
            doing: "list containers".to_owned(),
            source,
        })?;
        let mut listed = Vec::with_capacity(all.len());
        let mut is_away = false;
        for record in all {
            if record.ended.is_some() {
                listed.extend(record.observed(None));
                continue;
            }
            // One question to a daemon that hangs is enough.
            if is_away {
                continue;
            }
            match self.core.observe(&record.id).await {
                Ok(observed) => listed.extend(observed),
                Err(error) => {
                    is_away = self.core.daemon.outage().is_some();
                    tracing::warn!(instance = %record.id.instance, %error, "instance cannot be observed");
                }
            }
        }
        Ok(listed)
    }

    async fn open(&self) -> Result<Vec<InstanceRef>, TargetError> {
        let open = self.core.with_records(Records::open).await;
        open.map_err(|source| TargetError::Io {
            doing: "list containers".to_owned(),
            source,
        })
    }

    async fn observe(&self, id: &InstanceRef) -> Result<Option<Observed>, TargetError> {
        self.watch();
        self.core.observe(id).await
    }

    async fn wait(&self, id: &InstanceRef) -> Result<Exit, TargetError> {
        self.watch();
        self.core.wait(id).await
    }

    fn forecast(&self, wanted: &Confinement<'_>) -> Vec<Protection> {
        let Content::Image(image) = wanted.content else {
            return Vec::new();
        };
        let images = self
            .core
            .images
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // Until it was looked at, an image is taken for one of root's.
        let is_root = images.get(image).is_none_or(|image| image.facts.is_root());
        let lacks = *self
            .core
            .lacks
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let user = self
            .core
            .users
            .as_ref()
            .and_then(|users| users.look_up(wanted.scope).ok());
        let here = rustix::process::geteuid();
        let user = match here.is_root() || wanted.volumes.is_empty() {
            true => user.unwrap_or(start::NOBODY),
            false => here.as_raw(),
        };
        let lacks = lacks.unwrap_or_else(|| self.core.lacks_here());
        options::protections(wanted, is_root, user, &lacks)
    }

    fn images(&self) -> Option<Arc<dyn Images>> {
        Some(Arc::clone(&self.images) as Arc<dyn Images>)
    }

    fn outages(&self) -> Vec<Outage> {
        self.core.daemon.outage().into_iter().collect()
    }

    async fn daemon(&self) -> Option<Result<DaemonFacts, Outage>> {
        let facts = self.facts().await;
        Some(facts.map_err(|error| {
            self.core.daemon.outage().unwrap_or_else(|| Outage {
                what: format!("Docker at {}", self.core.settings.address),
                since: clock::now(),
                reason: error.to_string(),
            })
        }))
    }

    async fn exec(
        &self,
        id: &InstanceRef,
        command: Vec<String>,
        stdin: Vec<u8>,
    ) -> Result<mpsc::Receiver<ExecOutput>, TargetError> {
        self.watch();
        let (running, receiver) = exec::begin(&self.core, id, command, stdin).await?;
        self.drive(running.drive());
        Ok(receiver)
    }
}

/// What this host is called, as a daemon of it would say.
fn own_name() -> String {
    let name = rustix::system::uname();
    name.nodename().to_string_lossy().into_owned()
}

impl Core {
    /// What can be said without the daemon.
    fn lacks_here(&self) -> options::Lacks {
        options::Lacks {
            memory_for_secrets: !secrets::is_in_memory(&self.settings.secrets),
            ..Default::default()
        }
    }

    /// What the daemon's kernel cannot limit; asked once.
    pub(crate) async fn lacks(&self) -> options::Lacks {
        let known = *self.lacks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known {
            return known;
        }
        let asked = self
            .daemon
            .call(|client| async move { client.info().await });
        let Ok(info) = asked.await else {
            return self.lacks_here();
        };
        let security = info.security_options.unwrap_or_default();
        let maps_some = ["name=userns", "name=rootless"];
        let found = options::Lacks {
            memory: info.memory_limit == Some(false),
            cpu: info.cpu_cfs_quota == Some(false),
            processes: info.pids_limit == Some(false),
            users: security
                .iter()
                .any(|option| maps_some.iter().any(|known| option.starts_with(known))),
            ..self.lacks_here()
        };
        *self.lacks.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
        found
    }
}

impl From<DaemonError> for io::Error {
    fn from(error: DaemonError) -> Self {
        error.into_io()
    }
}
