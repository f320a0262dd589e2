//! What every part of the target shares: the daemon, the records, and the view of one instance made from both.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bollard::models::ContainerInspectResponse;
use landfast_target::{Exit, InstanceRef, Observed, ObservedState, TargetError};
use landfast_target_process::users::Users;
use landfast_types::{ImageId, Timestamp};
use tokio::sync::{OnceCell, RwLock, Semaphore, broadcast, watch};

use crate::{
    DockerAddress, DockerSettings, clock,
    daemon::{Daemon, DaemonError},
    exits::{self, Life},
    images::Image,
    name::{self, HostId},
    oom,
    options::Lacks,
    place::Place,
    record::{Ended, Held, Record, Records, Started},
};

/// Changes that nobody has taken yet; who misses some looks at everything.
const CHANGES_MAX: usize = 1_024;
/// How long an end is held back until what the container wrote has been read.
const DRAIN_WAIT_MAX: Duration = Duration::from_secs(3);
/// So many threads work with the records at once.
const READERS_MAX: usize = 4;
/// How often a container is looked at again that is between two states.
const STATE_LOOKS: u32 = 100;
/// How often one is looked at again that was killed a moment ago, and the daemon may not have heard yet why.
const MEMORY_LOOKS: u32 = 2;
const LOOK: Duration = Duration::from_millis(40);
/// Later than this there is nothing more to hear.
const JUST_NOW: Duration = Duration::from_secs(1);
/// A record that somebody holds is asked for again after this.
const HOLD_AGAIN: Duration = Duration::from_millis(10);

/// The socket of a daemon of another host, in the run folder.
pub(crate) const FORWARDED: &str = "docker.sock";

pub(crate) struct Core {
    pub(crate) settings: DockerSettings,
    pub(crate) host: HostId,
    pub(crate) daemon: Daemon,
    pub(crate) records: Records,
    /// Who may work with the records now.
    readers: Semaphore,
    pub(crate) users: Option<Users>,
    /// An instance that changed; `None`: any may have.
    changes: broadcast::Sender<Option<InstanceRef>>,
    /// Whether all that an instance wrote has been read.
    pub(crate) followed: Mutex<BTreeMap<InstanceRef, watch::Receiver<bool>>>,
    /// Networks are removed while nothing is being started.
    pub(crate) networks: RwLock<()>,
    pub(crate) network_makers: tokio::sync::Mutex<()>,
    /// Held by whoever looks at an image.
    pub(crate) looking: tokio::sync::Mutex<()>,
    has_no_init: AtomicBool,
    pub(crate) lacks: Mutex<Option<Lacks>>,
    /// Where this server is, once that is known.
    pub(crate) place: OnceCell<Place>,
    /// By what they hold: an id never means another image.
    pub(crate) images: Mutex<BTreeMap<ImageId, Arc<Image>>>,
}

impl Core {
    pub(crate) fn open(settings: DockerSettings) -> io::Result<Self> {
        let records = Records::new(settings.state.clone());
        let host = records.host(random_bits)?;
        Ok(Self {
            host,
            daemon: Daemon::new(
                settings.address.clone(),
                settings.state.clone(),
                settings.secrets.with_file_name(FORWARDED),
                settings.call_wait_max,
            ),
            records,
            readers: Semaphore::new(READERS_MAX),
            users: settings.users.clone().map(Users::new),
            changes: broadcast::Sender::new(CHANGES_MAX),
            followed: Mutex::default(),
            networks: RwLock::default(),
            network_makers: tokio::sync::Mutex::default(),
            looking: tokio::sync::Mutex::default(),
            has_no_init: AtomicBool::new(false),
            lacks: Mutex::default(),
            place: OnceCell::new(),
            images: Mutex::default(),
            settings,
        })
    }

    pub(crate) fn has_init(&self) -> bool {
        !self.has_no_init.load(Ordering::Relaxed)
    }

    pub(crate) fn go_on_without_init(&self) {
        self.has_no_init.store(true, Ordering::Relaxed);
    }

    /// Tells whoever waits that something may have changed.
    pub(crate) fn announce(&self, id: Option<InstanceRef>) {
        // Nobody may be waiting.
        self.changes.send(id).unwrap_or_default();
    }

    pub(crate) fn changes(&self) -> Changes {
        Changes(self.changes.subscribe())
    }

    /// Waits for the lock of an instance's record.
    pub(crate) async fn hold(&self, id: &InstanceRef) -> io::Result<Held> {
        loop {
            let own = id.clone();
            let held = self.with_records(move |records| records.try_hold(&own));
            match held.await? {
                Some(held) => return Ok(held),
                None => tokio::time::sleep(HOLD_AGAIN).await,
            }
        }
    }

    pub(crate) async fn remembered(&self, id: &InstanceRef) -> io::Result<Option<Record>> {
        let id = id.clone();
        self.with_records(move |records| records.read(&id)).await
    }

    /// Short work with the records, a few at a time: a thread for each instance that is looked at would stay for as
    /// long as there are instances, with its memory. What may wait for others, or take long, is none of it.
    pub(crate) async fn with_records<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Records) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let permit = self.readers.acquire().await;
        let _permit = permit.map_err(io::Error::other)?;
        let records = self.records.clone();
        blocking(move || work(&records)).await
    }

    /// What the daemon says of a container; `None` when it has none of that name.
    pub(crate) async fn inspect(
        &self,
        container: &str,
    ) -> Result<Option<Box<ContainerInspectResponse>>, DaemonError> {
        let mut looks = 0;
        loop {
            let asked = self.daemon.call(|client| {
                let container = container.to_owned();
                async move {
                    let found = client.inspect_container(&container, None).await;
                    found.map(Box::new)
                }
            });
            match asked.await {
                Ok(found) => return Ok(Some(found)),
                Err(error) if error.is_missing() => {
                    self.daemon.is_the_same().await?;
                    return Ok(None);
                }
                Err(error) if error.is_between_states() && looks < STATE_LOOKS => {
                    looks += 1;
                    tokio::time::sleep(LOOK).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The same for whoever takes down how a container ended, which is not changed later: of one that was killed under a
    /// limit the kernel is asked whether memory was the reason ([`oom`]). Where its log is not to be read, the daemon is
    /// looked at again, which may hear of it after the end.
    pub(crate) async fn inspect_with_reason(
        &self,
        container: &str,
    ) -> Result<Option<Box<ContainerInspectResponse>>, DaemonError> {
        let mut looks = 0;
        loop {
            let Some(mut found) = self.inspect(container).await? else {
                return Ok(None);
            };
            let now = clock::now();
            let Some(ended) = exits::killed_under_a_limit(&found) else {
                return Ok(Some(found));
            };
            match (
                self.ran_out(&found, now.since(ended)).await,
                &mut found.state,
            ) {
                (Ok(true), Some(state)) => {
                    state.oom_killed = Some(true);
                    return Ok(Some(found));
                }
                (Ok(_), _) => return Ok(Some(found)),
                (Err(error), _) => tracing::debug!(%error, "the kernel's log is not asked"),
            }
            if looks == MEMORY_LOOKS || now.since(ended) > JUST_NOW {
                return Ok(Some(found));
            }
            looks += 1;
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Whether the kernel says that a container was killed for its memory, so long ago.
    async fn ran_out(&self, found: &ContainerInspectResponse, ago: Duration) -> io::Result<bool> {
        if !matches!(self.settings.address, DockerAddress::Unix(_)) {
            return Err(io::Error::other("the daemon is of another host"));
        }
        let id = found.id.clone().unwrap_or_default();
        self.with_records(move |_| oom::ran_out(&id, ago)).await
    }

    /// The container of an instance whose record does not say that one began.
    pub(crate) async fn find_by_name(
        &self,
        id: &InstanceRef,
    ) -> Result<Option<Box<ContainerInspectResponse>>, DaemonError> {
        let container = name::container(&self.host, id);
        let found = self.inspect_with_reason(&container).await?;
        Ok(found.filter(|found| {
            let config = found.config.as_ref();
            let labels = config.and_then(|config| config.labels.as_ref());
            name::is_ours(&self.host, id, labels)
        }))
    }

    /// What is known of an instance; `None` only when it is certain that it is not here.
    pub(crate) async fn observe(&self, id: &InstanceRef) -> Result<Option<Observed>, TargetError> {
        self.look(id).await.map_err(|error| self.failed(id, error))
    }

    pub(crate) fn failed(&self, id: &InstanceRef, source: io::Error) -> TargetError {
        TargetError::Io {
            doing: format!(
                "observe instance `{}` on Docker at {}",
                id.instance, self.settings.address
            ),
            source,
        }
    }

    async fn look(&self, id: &InstanceRef) -> io::Result<Option<Observed>> {
        let Some(record) = self.remembered(id).await? else {
            return Ok(None);
        };
        if record.ended.is_some() {
            return Ok(record.observed(None));
        }
        let found = match &record.started {
            Some(started) => self.inspect_with_reason(&started.container).await,
            None => self.find_by_name(id).await,
        };
        let found = found.map_err(DaemonError::into_io)?;
        self.reconcile(record, found).await
    }

    /// Takes down what the daemon says and the record does not yet.
    async fn reconcile(
        &self,
        record: Record,
        found: Option<Box<ContainerInspectResponse>>,
    ) -> io::Result<Option<Observed>> {
        let state = found.as_ref().and_then(|found| found.state.as_ref());
        let life = state.map(|state| exits::life(state, record.memory_max));
        match (life, &record.started) {
            (None | Some(Life::Made), None) => Ok(None),
            // It was removed by somebody else: nobody will know how it ended.
            (None | Some(Life::Made), Some(_)) => {
                let record = self.end(&record.id, Exit::Unknown, None, None).await?;
                Ok(record.and_then(|record| record.observed(None)))
            }
            (Some(Life::Runs { pid, since }), started) => {
                let record = match started {
                    Some(_) => Some(record),
                    None => self.begin(&record.id, found.as_deref(), since).await?,
                };
                let observed = record.as_ref().and_then(|record| record.observed(pid));
                let asks = record.is_some_and(|record| record.asks_health);
                Ok(observed.map(|observed| Observed {
                    health: asks.then(|| {
                        let health = found.as_ref().and_then(|found| found.state.as_ref());
                        exits::health(health.and_then(|state| state.health.as_ref()))
                    }),
                    ..observed
                }))
            }
            (Some(Life::Ended { exit, at, since }), started) => {
                if started.is_none() {
                    self.begin(&record.id, found.as_deref(), since).await?;
                }
                let record = self.end(&record.id, exit, at, since).await?;
                Ok(record.and_then(|record| record.observed(None)))
            }
        }
    }

    /// Takes down that a container has begun, which whoever started it could not.
    async fn begin(
        &self,
        id: &InstanceRef,
        found: Option<&ContainerInspectResponse>,
        since: Option<Timestamp>,
    ) -> io::Result<Option<Record>> {
        let Some(container) = found.and_then(|found| found.id.clone()) else {
            return Ok(None);
        };
        let held = self.hold(id).await?;
        let Some(mut record) = held.read()? else {
            return Ok(None);
        };
        if record.started.is_none() {
            let first = record.networks.first().map(String::as_str);
            let port = found.and_then(crate::start::port_of);
            record.started = Some(Started {
                container,
                at: since.unwrap_or_else(clock::now),
                address: found.and_then(|found| crate::start::address_of(found, first, port)),
            });
            held.write(&record)?;
        }
        Ok(Some(record))
    }

    /// Takes down how a container ended. What was taken down first stays.
    pub(crate) async fn end(
        &self,
        id: &InstanceRef,
        exit: Exit,
        at: Option<Timestamp>,
        since: Option<Timestamp>,
    ) -> io::Result<Option<Record>> {
        let held = self.hold(id).await?;
        let Some(mut record) = held.read()? else {
            return Ok(None);
        };
        if record.ended.is_none() {
            let at = at.unwrap_or_else(clock::now);
            let began = record.started.as_ref().map(|started| started.at).or(since);
            // A clock that was set back must not let it end before it began.
            let at = began.map_or(at, |began| at.max(began));
            record.ended = Some(Ended { exit, at });
            held.write(&record)?;
            if let Some(secrets) = &record.secrets {
                crate::secrets::remove(secrets);
            }
        }
        drop(held);
        self.announce(Some(id.clone()));
        Ok(Some(record))
    }

    /// Waits until what an ended instance wrote has been read, but not for ever.
    pub(crate) async fn drained(&self, id: &InstanceRef) {
        let receiver = {
            let followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
            followed.get(id).cloned()
        };
        if let Some(mut receiver) = receiver {
            let read = tokio::time::timeout(DRAIN_WAIT_MAX, receiver.wait_for(|done| *done)).await;
            if read.is_err() {
                tracing::warn!(scope = %id.scope, instance = %id.instance, "what it wrote last is still being read");
            }
        }
    }

    /// Waits until an instance has ended.
    pub(crate) async fn wait(&self, id: &InstanceRef) -> Result<Exit, TargetError> {
        let mut changes = self.changes();
        loop {
            match self.look(id).await {
                Ok(None) => return Ok(Exit::Unknown),
                Ok(Some(observed)) => match observed.state {
                    ObservedState::Running => {}
                    ObservedState::Exited { exit, .. } => {
                        self.drained(id).await;
                        return Ok(exit);
                    }
                },
                // While the daemon is away nothing has ended that anybody knows of.
                Err(error) if self.daemon.outage().is_some() => {
                    tracing::debug!(%error, "an end is waited for while the daemon is away");
                }
                Err(error) => return Err(self.failed(id, error)),
            }
            changes.of(id).await;
        }
    }
}

/// Every change since it was made.
pub(crate) struct Changes(broadcast::Receiver<Option<InstanceRef>>);

/// What no event told is found out after this.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

impl Changes {
    /// Waits until an instance may have changed.
    pub(crate) async fn of(&mut self, id: &InstanceRef) {
        let change = async {
            loop {
                match self.0.recv().await {
                    Ok(Some(changed)) if changed != *id => {}
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => return,
                    // The target is gone; whoever waits is dropped with it.
                    Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
                }
            }
        };
        // Nothing is lost by looking once too often.
        drop(tokio::time::timeout(LOOK_AGAIN, change).await);
    }
}

/// Runs file system work where it may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(io::Error::other(error)),
    }
}

pub(crate) fn random_bits() -> io::Result<u64> {
    use io::Read as _;
    let mut bytes = [0; 8];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}
