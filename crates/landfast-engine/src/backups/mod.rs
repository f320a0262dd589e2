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
mod work;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use landfast_backup::{
    AcceptedLoss, BackupId, BackupState, Hole, Lsn, RestorablePoint, Target, Writes,
};
use landfast_backup_postgres::{Pruned, Verified, WalStatus};
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
    Drilled(DrillRecord),
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

/// A backup as readers see it.
#[derive(Debug, Clone)]
pub struct BackupLine {
    pub id: BackupId,
    pub at: Timestamp,
    pub state: BackupState,
    /// Where it is consistent; a dump or a snapshot has no log.
    pub stop: Option<Lsn>,
    /// Of the database's files.
    pub bytes: u64,
    /// What it added to the repository.
    pub stored_bytes: u64,
    pub took: Duration,
    pub parent: Option<BackupId>,
    /// What is not in it as one would expect, and whether that is trouble.
    pub notes: Vec<(String, bool)>,
}

/// How the backups of a store stand.
#[derive(Debug, Clone)]
pub struct BackupView {
    pub scope: Scope,
    /// The name of the store in the manifest, or of the volume.
    pub store: StoreName,
    /// The store that serves the name, and is archived.
    pub server: StoreName,
    pub source: Source,
    pub spec: BackupSpec,
    /// The archiver, where it runs.
    pub wal: Option<WalStatus>,
    /// Why nothing is archived now, and since when.
    pub trouble: Option<(Timestamp, String)>,
    /// Oldest first, as last read back.
    pub backups: Vec<BackupLine>,
    /// Named places to go back to, oldest first.
    pub points: Vec<(String, Lsn, Timestamp)>,
    /// What was wrong in the repository when it was last read.
    pub findings: Vec<String>,
    /// Work that is under way.
    pub running: Option<Progress>,
    /// How work of each kind ended last.
    pub ended: BTreeMap<Kind, Ended>,
    pub drill: Option<DrillRecord>,
    /// The newest drill of each kind.
    pub drills: BTreeMap<Kind, DrillRecord>,
    /// Disks that get full, of the store and of what waits to be shipped: a topic and a sentence.
    pub disks: BTreeMap<String, String>,
    /// Since when the app does not write, because too much waits for the archive.
    pub stopped: Option<(Timestamp, Writes)>,
    /// Bytes that wait for the archive, where writes are to stop for it.
    pub waiting: Option<u64>,
    /// How long a restore to the newest moment would take.
    pub rto: Option<Duration>,
    /// Since when the manifest wants it backed up.
    pub since: Timestamp,
}

impl BackupView {
    /// How far a restore reaches: the newest heartbeat that was read back from the repository. Nowhere without a good backup, nor
    /// while WAL behind the newest one is lost.
    pub fn restorable(&self) -> Option<RestorablePoint> {
        let wal = self.wal.as_ref()?;
        let behind = wal.broken.map_or(Lsn(0), |hole| hole.to);
        self.good()
            .find(|backup| backup.stop.is_some_and(|stop| stop >= behind))?;
        wal.restorable
    }

    /// The same as a time. Of what has no log it is when the newest dump or snapshot began.
    pub fn restorable_to(&self) -> Option<Timestamp> {
        match self.source {
            Source::Log => self.restorable()?.at,
            Source::Dumps { .. } | Source::Volume { .. } => Some(self.good().last()?.at),
        }
    }

    /// What is lost with the server or the host at the most: the time between two dumps or snapshots. Of a log it is not counted by
    /// the clock.
    pub fn interval(&self, now: Timestamp) -> Option<Duration> {
        if self.source == Source::Log {
            return None;
        }
        let next = self.next_after(now)?;
        Some(self.next_after(next)?.since(next))
    }

    fn next_after(&self, at: Timestamp) -> Option<Timestamp> {
        let lines = [Some(&self.spec.full), self.spec.incremental.as_ref()];
        let next = lines.into_iter().flatten();
        next.filter_map(|line| line.next_after(at)).min()
    }

    /// Whether the schedule has asked twice for what did not come.
    fn is_overdue(&self, now: Timestamp) -> bool {
        let newest = self.restorable_to().filter(|_| self.source != Source::Log);
        let next = newest.and_then(|at| self.next_after(self.next_after(at)?));
        next.is_some_and(|next| next <= now)
    }

    /// Whether it is backed up as the manifest wants it, just now.
    pub fn is_up(&self, now: Timestamp) -> bool {
        let is_fresh = match self.source {
            Source::Log => {
                let wal = self.wal.as_ref();
                wal.is_some_and(|wal| !wal.is_late) && self.restorable().is_some()
            }
            Source::Dumps { .. } | Source::Volume { .. } => {
                self.restorable_to().is_some() && !self.is_overdue(now)
            }
        };
        self.trouble.is_none() && self.stopped.is_none() && is_fresh
    }

    /// What is wrong now, worst first. Empty is green.
    pub fn troubles(&self, now: Timestamp) -> Vec<String> {
        let mut troubles = self.grave(now);
        troubles.extend(self.findings.iter().cloned());
        if let Some(newest) = self.backups.last()
            && let BackupState::Bad { reason } = &newest.state
        {
            troubles.push(format!("backup {} is bad: {reason}", newest.id));
        }
        if let Some(newest) = self.backups.last() {
            let notes = newest.notes.iter().filter(|(_, is_trouble)| *is_trouble);
            troubles.extend(notes.map(|(note, _)| format!("backup {}: {note}", newest.id)));
        }
        for (kind, ended) in &self.ended {
            let is_told = matches!(kind, Kind::Full | Kind::Incremental | Kind::Verify);
            if let Some(failure) = ended.failure.as_ref().filter(|_| is_told) {
                troubles.push(format!("{kind} failed at {}: {failure}", ended.at));
            }
        }
        troubles
    }

    /// What keeps one from going back to the newest moment.
    fn grave(&self, now: Timestamp) -> Vec<String> {
        let mut troubles = Vec::new();
        troubles.extend(
            [Writes::Closed, Writes::ReadOnly]
                .map(|writes| self.writes_stopped(writes))
                .into_iter()
                .flatten(),
        );
        if let Some((since, reason)) = &self.trouble {
            let what = match self.source {
                Source::Log => "archived",
                Source::Dumps { .. } | Source::Volume { .. } => "backed up",
            };
            troubles.push(format!("nothing is {what} since {since}: {reason}"));
        }
        troubles.extend(self.overdue(now));
        let wal = self.wal.as_ref();
        if let Some(hole) = wal.and_then(|wal| wal.broken.as_ref()) {
            let (from, to) = (hole.from, hole.to);
            // A backup behind it needs nothing of what is lost.
            let is_behind = |backup: &BackupLine| backup.stop.is_some_and(|stop| stop >= to);
            if !self.good().any(is_behind) {
                troubles.push(format!(
                    "the chain is broken: WAL from {from} to {to} is lost; a full backup heals it"
                ));
            }
        }
        if let Some(wal) = wal.filter(|wal| wal.is_late) {
            let to = self.restorable_to();
            let to = to.map_or("nothing".to_owned(), |at| at.to_string());
            let why = wal.failing.as_ref().or(wal.unreadable.as_ref());
            let why = why.map_or(String::new(), |why| format!(": {why}"));
            troubles.push(format!(
                "the archive does not advance, a restore reaches {to}{why}"
            ));
        }
        troubles.extend(self.drill_failed());
        troubles.extend(self.unproven(now));
        troubles
    }

    /// That the app does not write, or is not let in either, and when it will be again.
    fn writes_stopped(&self, writes: Writes) -> Option<String> {
        let (since, _) = self.stopped.filter(|(_, now)| *now >= writes)?;
        let limit = self.spec.wal_limit;
        match writes {
            Writes::Free => None,
            Writes::ReadOnly => Some(format!(
                "writes are stopped since {since}: what waits for the archive has reached `wal_limit` ({limit}); they go on by themselves when half of it is shipped"
            )),
            Writes::Closed => Some(format!(
                "nobody is let into the database: its log grew on while writes were stopped, so somebody asks for transactions that write (`wal_limit` is {limit})"
            )),
        }
    }

    /// That the schedule has asked twice in vain.
    fn overdue(&self, now: Timestamp) -> Option<String> {
        let at = self.restorable_to().filter(|_| self.is_overdue(now))?;
        Some(format!(
            "the newest backup is of {at}, and the schedule has asked twice since"
        ))
    }

    fn drill_failed(&self) -> Option<String> {
        let drill = self.drill.as_ref()?;
        let failure = drill.failure.as_ref()?;
        Some(format!("the drill of {} failed: {failure}", drill.at))
    }

    fn unproven(&self, now: Timestamp) -> Option<String> {
        let max_age = self.spec.drill.max_age;
        let is_fresh = |at: Timestamp| now.since(at) <= max_age;
        match &self.drill {
            Some(drill) if drill.failure.is_some() || drill.passed_at.is_some_and(is_fresh) => None,
            Some(drill) => {
                let last = drill.passed_at;
                let last = last.map_or("never".to_owned(), |at| at.to_string());
                Some(format!("not proven: a drill passed last: {last}"))
            }
            None if is_fresh(self.since) => None,
            None => Some("not proven: no drill has passed yet".to_owned()),
        }
    }

    /// What is wrong and not told by the archiver, by topic: its state, and a sentence.
    pub(crate) fn standing(&self, now: Timestamp) -> BTreeMap<String, (&'static str, String)> {
        let mut standing = BTreeMap::new();
        let mut put = |topic: &str, state, text: Option<String>| {
            standing.extend(text.map(|text| (topic.to_owned(), (state, text))));
        };
        put("writes", "stopped", self.writes_stopped(Writes::ReadOnly));
        put("closed", "stopped", self.writes_stopped(Writes::Closed));
        put("overdue", "late", self.overdue(now));
        put("unproven", "unproven", self.unproven(now));
        put("drill", "failed", self.drill_failed());
        for (topic, text) in &self.disks {
            put(topic, "disk", Some(text.clone()));
        }
        let damaged = self
            .findings
            .first()
            .map(|first| match self.findings.len() {
                1 => format!("the repository is damaged: {first}"),
                count => format!("{count} objects of the repository are damaged: {first}, …"),
            });
        put("damaged", "damaged", damaged);
        for (kind, ended) in &self.ended {
            let is_told = matches!(kind, Kind::Full | Kind::Incremental | Kind::Verify);
            let failure = ended.failure.as_ref().filter(|_| is_told);
            let text = failure.map(|failure| format!("{kind} failed at {}: {failure}", ended.at));
            put(&kind.to_string(), "failed", text);
        }
        standing
    }

    /// Why what was written of late may not be in the archive of a log.
    pub(crate) fn is_unshipped(&self) -> Option<String> {
        if self.source != Source::Log {
            return None;
        }
        if let Some((_, reason)) = &self.trouble {
            return Some(reason.clone());
        }
        let Some(wal) = &self.wal else {
            return Some("it is not archived just now".to_owned());
        };
        let away = wal.failing.clone().or(wal.unreadable.clone());
        away.or_else(|| {
            wal.is_late
                .then(|| "the archive does not advance".to_owned())
        })
    }

    fn good(&self) -> impl DoubleEndedIterator<Item = &BackupLine> {
        let backups = self.backups.iter();
        backups.filter(|backup| backup.state == BackupState::Good)
    }

    /// Why a deploy whose gates ask for it does not begin.
    pub fn is_unfit(&self, now: Timestamp) -> Option<String> {
        if self.good().next().is_none() {
            return Some("there is no good backup yet".to_owned());
        }
        if self
            .drill
            .as_ref()
            .is_none_or(|drill| drill.passed_at.is_none())
        {
            return Some("no drill has passed yet".to_owned());
        }
        self.grave(now).into_iter().next()
    }
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
    let mut is_swept = false;
    while shared.replaced.borrow().is_none() {
        if !is_swept && !shared.environments().is_empty() {
            is_swept = true;
            shared.stores.spawn(keeper::sweep(Arc::clone(&shared)));
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    fn view() -> BackupView {
        let spec = record::tests::spec();
        BackupView {
            scope: Scope {
                app: "shop".parse().unwrap(),
                environment: "production".parse().unwrap(),
            },
            store: "main".parse().unwrap(),
            server: "main".parse().unwrap(),
            source: Source::Log,
            spec,
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
            rto: None,
            since: Timestamp::EPOCH,
        }
    }

    fn topics(view: &BackupView, after: Duration) -> Vec<String> {
        let standing = view.standing(Timestamp::EPOCH + after);
        // Whatever is told is in `status` as well; that may say more of it.
        for (_, text) in standing
            .values()
            .filter(|(state, _)| ["unproven", "failed"].contains(state))
        {
            let troubles = view.troubles(Timestamp::EPOCH + after);
            assert!(troubles.contains(text), "{text}: {troubles:?}");
        }
        standing.into_keys().collect()
    }

    #[test]
    fn a_stale_drill_and_whatever_failed_are_told() {
        let mut view = view();
        assert_eq!(topics(&view, 35 * HOUR), [""; 0]);
        assert_eq!(topics(&view, 37 * HOUR), ["unproven"]);
        let failed = |why: &str| {
            DrillRecord::failed(Timestamp::EPOCH + 40 * HOUR, false, why.to_owned(), None)
        };
        view.drill = Some(failed("it did not start"));
        assert_eq!(topics(&view, 90 * HOUR), ["drill"]);
        view.drill = Some(DrillRecord {
            failure: None,
            passed_at: Some(Timestamp::EPOCH + 40 * HOUR),
            ..failed("")
        });
        assert_eq!(topics(&view, 76 * HOUR), [""; 0]);
        assert_eq!(topics(&view, 77 * HOUR), ["unproven"]);
        let ended = |failure: Option<&str>| Ended {
            at: Timestamp::EPOCH,
            took: HOUR,
            by: "schedule".into(),
            failure: failure.map(str::to_owned),
        };
        view.ended = [
            (Kind::Full, ended(Some("the server ended before it did"))),
            (Kind::Verify, ended(None)),
            (Kind::Restore, ended(Some("somebody else's business"))),
        ]
        .into();
        view.findings = vec!["`packs/1` is missing".into(), "`packs/2` is missing".into()];
        let full = ("disk of the store", "the disk of `/data` is 83 % full");
        view.disks = [(full.0.to_owned(), full.1.to_owned())].into();
        let told = ["damaged", "disk of the store", "the full backup"];
        assert_eq!(topics(&view, 50 * HOUR), told);
        view.disks.clear();
        view.stopped = Some((Timestamp::EPOCH, Writes::ReadOnly));
        assert_eq!(
            topics(&view, 50 * HOUR),
            ["damaged", "the full backup", "writes"]
        );
        view.stopped = Some((Timestamp::EPOCH, Writes::Closed));
        let told = ["closed", "damaged", "the full backup", "writes"];
        assert_eq!(topics(&view, 50 * HOUR), told);
        assert!(view.troubles(Timestamp::EPOCH)[0].contains("nobody is let in"));
        let text = &view.standing(Timestamp::EPOCH)["damaged"].1;
        assert_eq!(
            text,
            "2 objects of the repository are damaged: `packs/1` is missing, …"
        );
    }

    #[test]
    fn a_schedule_that_asked_twice_in_vain_is_told() {
        let mut view = view();
        view.source = Source::Dumps {
            url_secret: "URL".into(),
        };
        view.spec.incremental = None;
        view.backups = vec![BackupLine {
            id: BackupId::of(1),
            at: Timestamp::EPOCH + 3 * HOUR,
            state: BackupState::Good,
            stop: None,
            bytes: 1,
            stored_bytes: 1,
            took: HOUR,
            parent: None,
            notes: Vec::new(),
        }];
        // At 3 each day.
        assert_eq!(topics(&view, 30 * HOUR), [""; 0]);
        let late = view.standing(Timestamp::EPOCH + 51 * HOUR);
        assert_eq!(late["overdue"].0, "late");
        assert!(
            view.troubles(Timestamp::EPOCH + 51 * HOUR)
                .contains(&late["overdue"].1)
        );
    }
}
