//! Backups of the databases and volumes of this host: one keeper for each that the manifest wants backed up.
//!
//! A keeper of a managed database runs the WAL archiver of its server for as long as the manifest says so. A database of somebody else
//! is dumped, and of a volume snapshots are taken. Each keeper begins what is due by the clock or asked for, one piece of work at a
//! time, and writes into the journal what began, how it ended and what was proven. What is told of how far a restore reaches was read
//! back from the repository, never asked of the server.
//!
//! It never writes into the data of a store or a volume, and removes from a repository only what pruning has buried.

mod keeper;
mod limit;
mod place;
mod record;
mod rehearsal;
mod series;
mod view;
mod work;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use landfast_backup::{AcceptedLoss, BackupId, Hole, Lsn, Target};
use landfast_backup_postgres::{Pruned, Verified};
use landfast_spec::{AppSpec, BackupSpec, Engine, Gate, Place, Volume};
use landfast_types::{Scope, StoreName, Timestamp};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::{sleep, timeout},
};

use self::keeper::Keeper;
pub use self::{
    place::{KeyView, confirm_key, export_key, key},
    record::{DrillRecord, Ended, Kind},
    rehearsal::{DrillRehearsal, MigrationsOf},
    view::{BackupLine, BackupView},
};
use crate::{actions::chain, planning::Refusal, shared::Shared};

/// The attendant looks again after this, whether or not it was woken.
const LOOK_EVERY: Duration = Duration::from_secs(5);
const INBOX_MAX: usize = 16;
/// How long an order waits to be taken.
const ANSWER_MAX: Duration = Duration::from_secs(15);
/// How long a migration waits for its place in the archive.
const POINT_MAX: Duration = Duration::from_secs(40);

/// What is backed up, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A server that Landfast runs: its log, and base backups.
    Log,
    /// A server of somebody else, by dumps. The secret holds its address.
    Dumps { url_secret: String },
    /// A folder of this host, by snapshots.
    Volume { path: PathBuf },
}

/// What a person or the clock asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work {
    BackUp {
        is_full: bool,
    },
    Verify,
    Prune {
        is_dry: bool,
    },
    Drill {
        is_full: bool,
        /// Migrations to rehearse on the copy instead of those of the newest release.
        migrations: Option<Arc<MigrationsOf>>,
    },
    Restore(RestoreOrder),
}

/// A restore beside the server that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreOrder {
    pub target: Target,
    /// Where it may end although the archive should reach further.
    pub accepted: Option<AcceptedLoss>,
    pub into: RestoreInto,
}

/// What becomes of the restored data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RestoreInto {
    /// A store of its own, which Landfast runs beside the old one.
    Store(StoreName),
    /// Files in a folder of the host that is not there yet.
    Folder(PathBuf),
}

impl Work {
    /// The store that it makes.
    fn becomes(&self) -> Option<&StoreName> {
        match self {
            Self::Restore(RestoreOrder {
                into: RestoreInto::Store(name),
                ..
            }) => Some(name),
            Self::BackUp { .. }
            | Self::Verify
            | Self::Prune { .. }
            | Self::Drill { .. }
            | Self::Restore(_) => None,
        }
    }

    /// What kind of work it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::BackUp { is_full: true } => Kind::Full,
            Self::BackUp { is_full: false } => Kind::Incremental,
            Self::Verify => Kind::Verify,
            Self::Prune { .. } => Kind::Prune,
            Self::Drill { is_full: true, .. } => Kind::FullDrill,
            Self::Drill { is_full: false, .. } => Kind::LightDrill,
            Self::Restore(_) => Kind::Restore,
        }
    }
}

/// What work came to.
#[derive(Debug, Clone)]
pub enum Done {
    BackedUp(BackupLine),
    Verified(Verified),
    Pruned(Pruned),
    Drilled(Box<DrillRecord>),
    Restored {
        backup: BackupId,
        /// A place of the log, or when the snapshot was taken.
        reached: String,
        /// The clock of the newest heartbeat in it.
        at: Option<Timestamp>,
        into: RestoreInto,
        /// What was accepted to be lost.
        lost: Option<Hole>,
        warnings: Vec<String>,
        took: Duration,
    },
}

/// How far work has come.
#[derive(Debug, Clone)]
pub struct Progress {
    pub kind: Kind,
    pub begun: Timestamp,
    pub by: String,
    /// What is done now, in words.
    pub doing: String,
    /// Its end, and how it ended.
    pub ended: Option<Result<Done, WorkError>>,
}

/// Why work failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{reason}")]
pub struct WorkError {
    pub reason: String,
    pub hint: Option<String>,
    /// Where a restore would end, so that it can be accepted by name.
    pub reach: Option<Lsn>,
    /// Objects of the repository that are not as they should be.
    pub findings: Vec<String>,
}

impl WorkError {
    pub(crate) fn new(reason: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            hint: Some(hint.into()),
            reach: None,
            findings: Vec::new(),
        }
    }
}

impl WorkError {
    /// What a verification found.
    pub(crate) fn damaged(findings: Vec<String>) -> Self {
        let count = findings.len();
        Self {
            findings,
            ..Self::new(
                format!("{count} objects of the repository are not as they should be"),
                "a full backup makes new ones: `landfast backup now --full`; older moments may be lost",
            )
        }
    }
}

impl From<landfast_backup_postgres::BackupError> for WorkError {
    fn from(error: landfast_backup_postgres::BackupError) -> Self {
        use landfast_backup::PlanError;
        use landfast_backup_postgres::BackupError;
        let reach = if let BackupError::Plan(PlanError::WouldEndEarly { reach, .. }) = &error {
            Some(*reach)
        } else {
            None
        };
        let hint = error.hint();
        Self {
            reason: chain(&error),
            hint: (!hint.is_empty()).then_some(hint),
            reach,
            findings: Vec::new(),
        }
    }
}

/// Why work was not begun.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OrderError {
    #[error("its backups are not wanted by the manifest")]
    Unknown,
    #[error("{0} is under way")]
    Busy(Kind),
    #[error("it is not backed up just now: {0}")]
    NotRunning(String),
    #[error("the journal did not take it: {0}")]
    Journal(String),
    #[error("{0}")]
    Refused(String),
    #[error("the server is stopping")]
    Stopping,
}

pub(crate) enum Message {
    Order {
        work: Work,
        by: String,
        reply: oneshot::Sender<Result<watch::Receiver<Progress>, OrderError>>,
    },
    /// Makes a named place to go back to.
    Point {
        name: String,
        reply: oneshot::Sender<Result<Lsn, String>>,
    },
}

/// What the manifest says, and the secrets that the repository is reached with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) source: Source,
    pub(crate) spec: BackupSpec,
    /// The store that serves the name.
    pub(crate) server: StoreName,
    /// The version of each, as the newest release has them pinned.
    pub(crate) secrets: BTreeMap<String, u64>,
    /// How often the password of Landfast's own login was changed: whoever archives connects anew.
    pub(crate) renewed: u64,
}

#[derive(Clone)]
struct Handle {
    inbox: mpsc::Sender<Message>,
    view: watch::Receiver<Arc<BackupView>>,
    wanted: watch::Sender<Option<Wanted>>,
}

/// The backups of every store of this host.
#[derive(Default)]
pub struct Backups {
    book: Mutex<BTreeMap<(Scope, StoreName), Handle>>,
    tasks: Mutex<JoinSet<()>>,
}

impl Backups {
    fn handle(&self, scope: &Scope, name: &StoreName) -> Option<Handle> {
        let book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        book.get(&(scope.clone(), name.clone())).cloned()
    }

    /// Those of an environment, in order of store.
    pub fn of(&self, scope: &Scope) -> Vec<Arc<BackupView>> {
        let book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        let own = book.iter().filter(|((other, _), _)| other == scope);
        own.map(|(_, handle)| handle.view.borrow().clone())
            .collect()
    }

    /// All of them, in order of environment and store.
    pub fn all(&self) -> Vec<Arc<BackupView>> {
        let book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        let views = book.values().map(|handle| handle.view.borrow().clone());
        views.collect()
    }

    /// How those of one store or volume stand, as that changes.
    pub fn watch(
        &self,
        scope: &Scope,
        name: &StoreName,
    ) -> Option<watch::Receiver<Arc<BackupView>>> {
        Some(self.handle(scope, name)?.view)
    }

    /// Begins work; it goes on when nobody follows it.
    ///
    /// # Errors
    /// [`OrderError`]; nothing was begun then.
    pub async fn order(
        &self,
        scope: &Scope,
        name: &StoreName,
        work: Work,
        by: String,
    ) -> Result<watch::Receiver<Progress>, OrderError> {
        let handle = self.handle(scope, name).ok_or(OrderError::Unknown)?;
        let (reply, answer) = oneshot::channel();
        let asked = async {
            let sent = handle.inbox.send(Message::Order { work, by, reply }).await;
            sent.map_err(|_| OrderError::Stopping)?;
            answer.await.map_err(|_| OrderError::Stopping)?
        };
        let away = || OrderError::NotRunning("what was archived ends, or begins anew".to_owned());
        timeout(ANSWER_MAX, asked)
            .await
            .unwrap_or_else(|_| Err(away()))
    }

    /// Makes a named place to go back to; `None` where the store is not backed up.
    pub(crate) async fn point(
        &self,
        scope: &Scope,
        store: &StoreName,
        name: &str,
    ) -> Option<Result<Lsn, String>> {
        let handle = self.handle(scope, store)?;
        if handle.view.borrow().source != Source::Log {
            return None;
        }
        let (reply, answer) = oneshot::channel();
        let name = name.to_owned();
        let message = Message::Point { name, reply };
        let stopping = || Err("the server is stopping".to_owned());
        let asked = async {
            if handle.inbox.send(message).await.is_err() {
                return stopping();
            }
            answer.await.unwrap_or_else(|_| stopping())
        };
        // No migration waits for ever for a repository that hangs.
        let away = || Err("the archive did not answer in time".to_owned());
        Some(timeout(POINT_MAX, asked).await.unwrap_or_else(|_| away()))
    }
}

/// Begins and ends keepers as the manifests say, until another server has taken over.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut position = shared.position.subscribe();
    shared.stores.spawn(keeper::sweep(Arc::clone(&shared)));
    while shared.replaced.borrow().is_none() {
        attend(&shared);
        tokio::select! {
            changed = position.changed() => if changed.is_err() { return },
            () = sleep(LOOK_EVERY) => {}
        }
    }
}

fn attend(shared: &Arc<Shared>) {
    for view in shared.environments() {
        let Some((_, body)) = view.bodies.last_key_value() else {
            continue;
        };
        let scope = &view.state.scope;
        let all = wanted(shared, scope, &body.spec);
        for (name, source, spec) in &all {
            let own = match source {
                Source::Dumps { url_secret } => Some(url_secret.as_str()),
                Source::Log | Source::Volume { .. } => None,
            };
            let secrets = spec.secrets().into_iter().chain(own);
            let pinned = |name: &str| Some((name.to_owned(), *body.secrets.get(name)?));
            let server = match source {
                Source::Log => view.state.served_by(None, name).clone(),
                Source::Dumps { .. } | Source::Volume { .. } => (*name).clone(),
            };
            let wanted = Wanted {
                source: source.clone(),
                spec: (*spec).clone(),
                server: server.clone(),
                secrets: secrets.filter_map(pinned).collect(),
                renewed: shared
                    .stores
                    .rotation(scope, &server)
                    .map_or(0, |view| view.renewed),
            };
            match shared.backups.handle(scope, name) {
                Some(handle) => {
                    // What is backed up in another way now has a keeper of its own, once this one has left.
                    let is_same = handle.view.borrow().source == *source;
                    let wanted = is_same.then_some(wanted);
                    handle.wanted.send_if_modified(|known| {
                        let is_other = *known != wanted;
                        *known = wanted;
                        is_other
                    });
                }
                None => begin(shared, scope, name, wanted),
            }
        }
        let book = shared.backups.book.lock();
        let book = book.unwrap_or_else(PoisonError::into_inner);
        let own = book.iter().filter(|((other, _), _)| other == scope);
        for ((_, name), handle) in own {
            if !all.iter().any(|(known, ..)| *known == name) {
                handle
                    .wanted
                    .send_if_modified(|known| known.take().is_some());
            }
        }
    }
}

/// What a manifest wants backed up.
fn wanted<'a>(
    shared: &Shared,
    scope: &Scope,
    spec: &'a AppSpec,
) -> Vec<(&'a StoreName, Source, &'a BackupSpec)> {
    let stores = spec.stores.iter().filter_map(|(name, store)| {
        let source = match &store.place {
            Place::Managed { .. } => Source::Log,
            Place::External { url_secret } => Source::Dumps {
                url_secret: url_secret.clone(),
            },
            Place::Bucket { .. } => return None,
        };
        let is_postgres = store.engine == Engine::Postgres;
        let backup = store.backup.as_ref().filter(|_| is_postgres)?;
        Some((name, source, backup))
    });
    let volumes = spec.volumes.iter().map(|(name, volume)| {
        let path = match &volume.place {
            Volume::Managed => shared.folders.volume(scope, name.as_str()),
            Volume::Path { path } => path.into(),
        };
        (name, Source::Volume { path }, &volume.backup)
    });
    stores.chain(volumes).collect()
}

fn begin(shared: &Arc<Shared>, scope: &Scope, name: &StoreName, wanted: Wanted) {
    let (sender, inbox) = mpsc::channel(INBOX_MAX);
    let view = BackupView {
        scope: scope.clone(),
        store: name.clone(),
        server: wanted.server.clone(),
        source: wanted.source.clone(),
        spec: wanted.spec.clone(),
        wal: None,
        trouble: None,
        backups: Vec::new(),
        points: Vec::new(),
        findings: Vec::new(),
        running: None,
        ended: BTreeMap::new(),
        drill: None,
        drills: BTreeMap::new(),
        disks: BTreeMap::new(),
        stopped: None,
        waiting: None,
        unseen: None,
        rto: None,
        since: shared.clock.now(),
    };
    let (views, view) = watch::channel(Arc::new(view));
    let (wanted, wishes) = watch::channel(Some(wanted));
    let handle = Handle {
        inbox: sender,
        view,
        wanted,
    };
    let key = (scope.clone(), name.clone());
    let backups = &shared.backups;
    let mut book = backups.book.lock().unwrap_or_else(PoisonError::into_inner);
    book.insert(key.clone(), handle);
    drop(book);
    let keeper = Keeper::new(Arc::clone(shared), key, inbox, wishes, views);
    let mut tasks = backups.tasks.lock().unwrap_or_else(PoisonError::into_inner);
    while tasks.try_join_next().is_some() {}
    tasks.spawn(keeper.run());
}

/// What the gate `backup` of a manifest refuses.
pub fn refusals(shared: &Shared, scope: &Scope, spec: &AppSpec) -> Vec<Refusal> {
    if !spec.deploy.gates.contains(&Gate::Backup) {
        return Vec::new();
    }
    let views = shared.backups.of(scope);
    let now = shared.clock.now();
    let serving = shared.environment(scope).and_then(|view| {
        let body = view.bodies.get(&view.state.serving?)?;
        Some(Arc::clone(body))
    });
    let was_backed_up = |name: &StoreName| {
        let serving = serving.as_ref();
        serving.is_some_and(|body| body.spec.backups().any(|(known, _)| known == name))
    };
    let unfit = spec.backups().filter_map(|(name, _)| {
        // One that nothing which serves has backed up holds nothing yet.
        if !was_backed_up(name) {
            return None;
        }
        let view = views.iter().find(|view| view.store == *name);
        let reason = match view {
            Some(view) => view.is_unfit(now)?,
            None => "its backups were not looked at yet".to_owned(),
        };
        Some(Refusal {
            code: "backup-unfit",
            reason: match spec.volumes.contains_key(name) {
                true => format!("volume `{name}`: {reason}"),
                false => format!("store `{name}`: {reason}"),
            },
            hint: Some(format!(
                "`landfast backup list {name}` and `landfast drill {name}`; or deploy without the gate `backup`"
            )),
        })
    });
    unfit.collect()
}
