//! The loop of the backups of one store: it keeps the archiver running, begins what is due or asked for, and writes down the end.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use landfast_backup::{BackupState, Writes};
use landfast_backup_files::{FilesError, Series};
use landfast_backup_postgres::{
    Archive, BackupError, Loaded, Programs, Server, WalArchiveConfig, WalArchiver, WalEvent,
    WalStatus, forget_slot,
};
use landfast_datastore::{Phase, Store};
use landfast_spec::{OnWalLimit, RepositorySpec};
use landfast_types::{Bytes, Scope, StoreName, Timestamp};
use serde_json::json;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};

use super::{
    BackupView, Done, Kind, Message, OrderError, Progress, Source, Wanted, Work, WorkError, limit,
    place,
    record::{Book, COLLECTION, StoppedWrites},
    series,
    work::{self, Found},
};
use crate::{
    actions::{RETRY_FIRST, chain},
    client::now,
    driver::until_replaced,
    shared::{DISK_RETRY, Shared},
    stores, webhook,
};

const TICK: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// Work that the clock began and that failed is tried again after this, then after twice as long, up to the most.
const WORK_RETRY_FIRST: Duration = Duration::from_secs(60);
const WORK_RETRY_MAX: Duration = Duration::from_secs(3_600);
/// Trouble that lasts as long is told.
const TOLD_AFTER: Duration = Duration::from_secs(45);
/// The repository is looked through again after this.
const LOOK_EVERY: Duration = Duration::from_secs(15 * 60);
/// The room on the disks is looked at again after this.
const ROOM_EVERY: Duration = Duration::from_secs(15);
/// A disk that is so full is told, until it is less so.
const FULL_PERCENT: u64 = 80;
const CALM_PERCENT: u64 = 75;
/// Closed segments that wait on this host while the repository is away, before the server keeps them.
const SPOOL_BYTES_MAX: u64 = 1 << 30;
/// How long a named place may take to reach the archive.
const POINT_PATIENCE: Duration = Duration::from_secs(30);
/// How long what waits may take to be shipped before an archiver ends.
const STOP_MAX: Duration = Duration::from_secs(10);
/// How long the last of a store that another one takes the place of may take to be shipped.
const REST_MAX: Duration = Duration::from_secs(60);
/// So often it is tried to remove what a restore left.
const UNBORN_TRIES: usize = 20;
/// Who begins what nobody asked for.
const CLOCK: &str = "schedule";

/// What was opened.
enum Open {
    Log {
        archive: Archive,
        server: Server,
        programs: Programs,
    },
    Series(Series),
}

impl Open {
    fn name(&self) -> &str {
        match self {
            Self::Log { archive, .. } => archive.name(),
            Self::Series(series) => series.name(),
        }
    }
}

/// The answer of a try to open the archive, and then to archive; dumps and snapshots have no archiver.
struct Tried {
    open: Option<Open>,
    result: Result<Option<(WalArchiver, mpsc::UnboundedReceiver<WalEvent>)>, String>,
}

/// What the repository holds.
enum Look {
    Log(Result<Option<Loaded>, BackupError>),
    Series(Result<landfast_backup_files::Loaded, FilesError>),
}

/// What work is done with.
enum Context {
    Log(Box<work::Context>),
    Series(Box<series::Context>),
}

/// Work that was begun.
struct Running {
    work: Work,
    progress: watch::Sender<Progress>,
}

pub(super) struct Keeper {
    shared: Arc<Shared>,
    scope: Scope,
    /// The name of the manifest.
    store: StoreName,
    /// The store that serves it, and is archived.
    server: StoreName,
    inbox: mpsc::Receiver<Message>,
    wanted: watch::Receiver<Option<Wanted>>,
    views: watch::Sender<Arc<BackupView>>,
    book: Book,
    revision: u64,
    open: Option<Open>,
    archiver: Option<Arc<WalArchiver>>,
    /// Places that are being made.
    points: JoinSet<()>,
    running: Option<Running>,
    /// Work that failed, and when it is tried again.
    owed: BTreeMap<Kind, (Instant, Duration)>,
    wants_full: bool,
    /// What was told to the webhook and has not ended.
    told: bool,
    /// What the server is to go by.
    writes: watch::Sender<Writes>,
}

impl Keeper {
    pub(super) fn new(
        shared: Arc<Shared>,
        (scope, store): (Scope, StoreName),
        inbox: mpsc::Receiver<Message>,
        wanted: watch::Receiver<Option<Wanted>>,
        views: watch::Sender<Arc<BackupView>>,
    ) -> Self {
        Self {
            shared,
            scope,
            server: store.clone(),
            store,
            inbox,
            wanted,
            views,
            book: Book::default(),
            revision: 0,
            open: None,
            archiver: None,
            points: JoinSet::new(),
            running: None,
            owed: BTreeMap::new(),
            wants_full: false,
            told: false,
            writes: watch::Sender::default(),
        }
    }

    /// Runs until the manifest wants no backups of the store any more, or the server is replaced or stops.
    pub(super) async fn run(mut self) {
        let mut replaced = self.shared.replaced.subscribe();
        tokio::select! {
            () = until_replaced(&mut replaced) => {}
            () = self.keep() => {}
        }
        let backups = &self.shared.backups;
        let book = backups.book.lock();
        let mut book = book.unwrap_or_else(std::sync::PoisonError::into_inner);
        book.remove(&(self.scope.clone(), self.store.clone()));
    }

    async fn keep(&mut self) {
        while let Err(reason) = self.read_back().await {
            self.trouble(format!("its record cannot be read: {reason}"));
            sleep(RETRY_MAX).await;
        }
        if let Some(into) = self
            .book
            .begun
            .as_ref()
            .and_then(|begun| begun.into.clone())
        {
            self.remove_unborn(into).await;
        }
        if let Some(begun) = &self.book.begun {
            if begun.by == CLOCK {
                self.owed.insert(begun.kind, (now(), WORK_RETRY_FIRST));
            }
            let at = self.shared.clock.now();
            self.book
                .end(at, Some("the server ended before it did".to_owned()));
            self.save().await;
        }
        loop {
            let wanted = self.wanted.borrow_and_update().clone();
            let Some(wanted) = wanted else {
                return self.leave().await;
            };
            self.book.fit(&wanted.spec, self.shared.clock.wall());
            self.server = wanted.server.clone();
            self.leave_stopped().await;
            self.save().await;
            let (ended, drill) = (self.book.ended.clone(), self.book.drill.clone());
            let (drills, findings) = (self.book.drills.clone(), self.book.findings.clone());
            let since = self.book.since.as_ref().map(|since| since.at);
            let stopped = self.book.stopped.as_ref();
            let stopped = stopped.map(|stopped| (stopped.since, stopped.writes));
            self.writes
                .send_replace(stopped.map_or(Writes::Free, |(_, writes)| writes));
            self.show(|view| {
                if view.spec.to != wanted.spec.to {
                    // What there is in another repository is not known yet.
                    (view.backups, view.points, view.findings) = Default::default();
                    (view.rto, view.wal) = (None, None);
                }
                view.spec = wanted.spec.clone();
                view.server = wanted.server.clone();
                view.ended = ended;
                view.drill = drill;
                view.drills = drills;
                view.since = since.unwrap_or(view.since);
                view.stopped.clone_from(&stopped);
                for finding in findings {
                    if !view.findings.contains(&finding) {
                        view.findings.push(finding);
                    }
                }
            });
            self.serve(&wanted).await;
            self.ship_rest().await;
            // The archiver is one writer: the next begins when it has ended.
            self.end_archiver().await;
            self.open = None;
        }
    }

    /// Until the manifest says something else, and nothing is under way.
    async fn serve(&mut self, wanted: &Wanted) {
        let mut tries: JoinSet<Tried> = JoinSet::new();
        let mut works: JoinSet<(Result<Done, WorkError>, Found)> = JoinSet::new();
        let mut looks: JoinSet<Look> = JoinSet::new();
        let mut events: Option<mpsc::UnboundedReceiver<WalEvent>> = None;
        let mut status: Option<watch::Receiver<WalStatus>> = None;
        let (mut try_at, mut wait) = (now(), RETRY_FIRST);
        let mut look_at: Option<Instant> = None;
        let mut room_at = now();
        let (seen_sender, mut seen) = mpsc::channel(1);
        let mut guards = JoinSet::new();
        if wanted.source == Source::Log
            && (wanted.spec.on_wal_limit == OnWalLimit::StopWrites || self.book.stopped.is_some())
        {
            let of = (self.scope.clone(), self.server.clone());
            let writes = self.writes.subscribe();
            guards.spawn(limit::watch(
                Arc::clone(&self.shared),
                of,
                writes,
                seen_sender,
            ));
        }
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if self.running.is_none() && self.wanted.has_changed().unwrap_or(true) {
                return;
            }
            tokio::select! {
                message = self.inbox.recv() => {
                    let Some(message) = message else { return };
                    self.take(message, wanted, &mut works).await;
                }
                Some(ended) = works.join_next() => {
                    let (done, found) = ended.unwrap_or_else(|panic| {
                        let error = WorkError::new(format!("it panicked: {panic}"), "see the server's log");
                        (Err(error), Found::default())
                    });
                    self.end_work(done, found).await;
                    look_at = Some(now());
                }
                Some(tried) = tries.join_next() => {
                    let tried = tried.unwrap_or_else(|panic| Tried {
                        open: None,
                        result: Err(format!("it panicked: {panic}")),
                    });
                    if let Some(open) = tried.open {
                        look_at.get_or_insert_with(now);
                        self.opened(&open).await;
                        self.open = Some(open);
                    }
                    match tried.result {
                        Ok(archiver) => {
                            if let Some((archiver, told)) = archiver {
                                status = Some(archiver.watch());
                                events = Some(told);
                                self.archiver = Some(Arc::new(archiver));
                            }
                            wait = RETRY_FIRST;
                            self.note_server().await;
                            self.well();
                            look_at = Some(now());
                        }
                        Err(reason) => {
                            self.trouble(reason);
                            try_at = now() + wait;
                            wait = (wait * 2).min(RETRY_MAX);
                        }
                    }
                }
                Some(loaded) = looks.join_next() => {
                    match loaded {
                        Ok(Look::Log(Ok(Some(loaded)))) => self.looked(&loaded),
                        // One that cannot be reached is told of by the archiver.
                        Ok(Look::Log(Err(error))) if error.is_damage() => {
                            self.found(vec![work::sentence(&error)]);
                        }
                        Ok(Look::Log(Ok(None) | Err(_))) | Err(_) => {}
                        Ok(Look::Series(Ok(loaded))) => {
                            self.well();
                            self.looked_series(&loaded);
                        }
                        Ok(Look::Series(Err(error))) => {
                            // Nobody else looks whether it can be reached.
                            self.trouble(explained(&error.into()));
                            look_at = Some(now() + RETRY_MAX);
                        }
                    }
                }
                Some(seen) = seen.recv() => self.weigh(seen, wanted).await,
                Some(event) = next(&mut events) => self.note(&event),
                seen = changed(&mut status) => match seen {
                    Some(seen) => self.show(|view| view.wal = Some(seen)),
                    None => {
                        // It goes on for ever, or it panicked.
                        (status, events) = (None, None);
                        self.archiver = None;
                        self.trouble("the archiver ended; see the server's log".to_owned());
                        try_at = now() + wait;
                        wait = (wait * 2).min(RETRY_MAX);
                    }
                },
                _ = ticks.tick() => {
                    if !self.is_ready() && tries.is_empty() && now() >= try_at {
                        let of = (Arc::clone(&self.shared), self.scope.clone(), self.store.clone());
                        let was_there = self.book.opened.contains(&wanted.spec.to.to_string());
                        tries.spawn(begin(of, wanted.clone(), was_there, self.is_other()));
                    }
                    if let Some(open) = &self.open
                        && looks.is_empty()
                        && look_at.is_some_and(|at| at <= now())
                    {
                        match open {
                            Open::Log { archive, .. } => {
                                let archive = archive.clone();
                                looks.spawn(async move { Look::Log(archive.load().await) });
                            }
                            Open::Series(series) => {
                                let series = series.clone();
                                looks.spawn(async move { Look::Series(series.load().await) });
                            }
                        }
                        look_at = Some(now() + LOOK_EVERY);
                    }
                    if room_at <= now() {
                        room_at = now() + ROOM_EVERY;
                        let disks = self.full_disks();
                        self.show(|view| view.disks = disks);
                    }
                    self.tell_trouble();
                    self.tell_standing().await;
                    self.begin_due(wanted, &mut works).await;
                }
            }
        }
    }

    async fn take(
        &mut self,
        message: Message,
        wanted: &Wanted,
        works: &mut JoinSet<(Result<Done, WorkError>, Found)>,
    ) {
        match message {
            Message::Order { work, by, reply } => {
                let begun = self.begin_work(work, by, wanted, works).await;
                drop(reply.send(begun));
            }
            Message::Point { name, reply } => {
                // Asked again after a death, it stays where it was.
                let known = self
                    .views
                    .borrow()
                    .points
                    .iter()
                    .find(|point| point.0 == name)
                    .map(|point| point.1);
                if let Some(lsn) = known {
                    drop(reply.send(Ok(lsn)));
                    return;
                }
                let (Some(archiver), Some(Open::Log { server, .. })) = (&self.archiver, &self.open)
                else {
                    let why = self.why_not();
                    drop(reply.send(Err(why)));
                    return;
                };
                let (archiver, server) = (Arc::clone(archiver), server.clone());
                let (views, at) = (self.views.clone(), self.shared.clock.now());
                // It waits for the archive; the loop does not.
                while self.points.try_join_next().is_some() {}
                self.points.spawn(async move {
                    let made = archiver.restore_point(&server, &name, POINT_PATIENCE).await;
                    if let Ok(lsn) = &made {
                        let point = (name, *lsn, at);
                        views.send_modify(|view| Arc::make_mut(view).points.push(point));
                    }
                    drop(reply.send(made.map_err(|error| chain(&error))));
                });
            }
        }
    }

    fn why_not(&self) -> String {
        let view = self.views.borrow();
        let reason = view.trouble.as_ref().map(|(_, reason)| reason.clone());
        reason.unwrap_or_else(|| "it begins just now".to_owned())
    }

    async fn begin_work(
        &mut self,
        work: Work,
        by: String,
        wanted: &Wanted,
        works: &mut JoinSet<(Result<Done, WorkError>, Found)>,
    ) -> Result<watch::Receiver<Progress>, OrderError> {
        if let Some(running) = &self.running {
            return Err(OrderError::Busy(running.work.kind()));
        }
        let mut context = self.context(&work, &by, wanted)?;
        let kind = work.kind();
        let before = self.book.clone();
        self.book.begin(kind, self.shared.clock.wall(), &by);
        let into = work.becomes().cloned();
        if let Some(name) = &into {
            // Nobody else makes a store of this name, and what it leaves in the middle is known to be its own.
            let (shared, scope) = (&self.shared, &self.scope);
            let may_begin = stores::may_begin(shared, scope, name);
            let reserved = may_begin.and_then(|()| match shared.stores.reserve(scope, name) {
                true => Ok(()),
                false => Err(format!("another restore makes a store `{name}` just now")),
            });
            if let Err(reason) = reserved {
                self.book = before;
                return Err(OrderError::Refused(format!(
                    "{reason}; choose another name with `--as`"
                )));
            }
        }
        if let Some(begun) = &mut self.book.begun {
            begun.into.clone_from(&into);
        }
        if let Err(error) = self.try_save().await {
            self.book = before;
            if let Some(name) = &into {
                self.shared.stores.release_name(&self.scope, name);
            }
            return Err(OrderError::Journal(error));
        }
        let (progress, follower) = watch::channel(Progress {
            kind,
            begun: self.shared.clock.now(),
            by: by.clone(),
            doing: "begins".to_owned(),
            ended: None,
        });
        tracing::info!(scope = %self.scope, store = %self.store, by, "{kind} begins");
        let (owned, sender, view) = (work.clone(), progress.clone(), self.views.clone());
        works.spawn(async move {
            let show = async {
                let mut progress = sender.subscribe();
                while progress.changed().await.is_ok() {
                    let now = progress.borrow_and_update().clone();
                    view.send_modify(|view| Arc::make_mut(view).running = Some(now));
                    sleep(TICK).await;
                }
            };
            let perform = async {
                match &mut context {
                    Context::Log(context) => {
                        // From here on its password stays.
                        let (scope, store) = (&context.store.scope, &context.store.name);
                        let _stays = context.shared.stores.work(scope, store).await;
                        if let Ok(access) = stores::access(&context.shared, &context.store) {
                            context.server.password = Some(access.password);
                        }
                        work::perform(context, &owned, &sender).await
                    }
                    Context::Series(context) => series::perform(context, &owned, &sender).await,
                }
            };
            tokio::select! {
                ended = perform => ended,
                () = show => unreachable!("the sender lives as long as the work"),
            }
        });
        self.running = Some(Running { work, progress });
        Ok(follower)
    }

    /// What work is done with, where it can be done now.
    fn context(&self, work: &Work, by: &str, wanted: &Wanted) -> Result<Context, OrderError> {
        let Some(open) = &self.open else {
            return Err(OrderError::NotRunning(self.why_not()));
        };
        let (archive, server, programs) = match open {
            Open::Series(series) => {
                return Ok(Context::Series(Box::new(series::Context {
                    shared: Arc::clone(&self.shared),
                    scope: self.scope.clone(),
                    name: self.store.clone(),
                    spec: wanted.spec.clone(),
                    source: wanted.source.clone(),
                    secrets: wanted.secrets.clone(),
                    series: series.clone(),
                    drill: self.book.drill.clone(),
                    is_asked: by != CLOCK,
                })));
            }
            Open::Log {
                archive,
                server,
                programs,
            } => (archive, server, programs),
        };
        let known = self
            .known()
            .ok_or_else(|| OrderError::Refused("there is no such store".into()))?;
        let needs_archiver = !matches!(work, Work::Verify | Work::Restore(_));
        if needs_archiver && self.archiver.is_none() {
            return Err(OrderError::NotRunning(self.why_not()));
        }
        Ok(Context::Log(Box::new(work::Context {
            shared: Arc::clone(&self.shared),
            store: known,
            name: self.store.clone(),
            spec: wanted.spec.clone(),
            archive: archive.clone(),
            archiver: self.archiver.clone(),
            server: server.clone(),
            programs: programs.clone(),
            drill: self.book.drill.clone(),
            ship_least: self.book.ship_least.unwrap_or(wanted.spec.ship),
        })))
    }

    /// Whether what the clock asks for can begin.
    fn is_ready(&self) -> bool {
        self.archiver.is_some() || matches!(self.open, Some(Open::Series(_)))
    }

    async fn end_work(&mut self, done: Result<Done, WorkError>, found: Found) {
        let Some(Running { work, progress }) = self.running.take() else {
            return;
        };
        if let Some(name) = work.becomes() {
            self.shared.stores.release_name(&self.scope, name);
        }
        let kind = work.kind();
        let (at, by) = (self.shared.clock.wall(), progress.borrow().by.clone());
        let failure = match &done {
            // It is kept for a look, and nothing begins with it.
            Ok(Done::BackedUp(line)) => match &line.state {
                BackupState::Good => None,
                BackupState::Bad { reason } => Some(format!("backup {} is bad: {reason}", line.id)),
            },
            Ok(_) => None,
            Err(error) => Some(error.reason.clone()),
        };
        self.book.end(at, failure.clone());
        if let Some(drill) = found.drill {
            let repository = self.views.borrow().spec.to.to_string();
            self.book.drilled(drill, repository);
        }
        if let Some(findings) = &found.findings {
            self.book.findings.clone_from(findings);
        }
        self.save().await;
        match &failure {
            None => {
                tracing::info!(scope = %self.scope, store = %self.store, "{kind} is done");
                self.owed.remove(&kind);
                if matches!(&done, Ok(Done::BackedUp(line)) if line.state == BackupState::Good) {
                    self.wants_full = false;
                    // It is proven by a restore, not by itself.
                    if self.book.drill.is_none() {
                        self.owed
                            .insert(Kind::LightDrill, (now(), WORK_RETRY_FIRST));
                    }
                }
            }
            Some(reason) => {
                tracing::error!(scope = %self.scope, store = %self.store, reason, "{kind} failed");
                // What a verification has found is there the next time, too.
                if by == CLOCK && kind != Kind::Verify {
                    let wait = self
                        .owed
                        .get(&kind)
                        .map_or(WORK_RETRY_FIRST, |(_, wait)| *wait);
                    let next = (wait * 2).min(WORK_RETRY_MAX);
                    self.owed.insert(kind, (now() + wait, next));
                }
                self.alert("failed", &format!("{kind} failed: {reason}"));
            }
        }
        let (ended, drill) = (self.book.ended.clone(), self.book.drill.clone());
        let drills = self.book.drills.clone();
        let new = match &done {
            Ok(Done::BackedUp(line)) => Some(line.clone()),
            _ => None,
        };
        self.show(|view| {
            view.running = None;
            view.ended = ended;
            view.drill = drill;
            view.drills = drills;
            // What pruning took shows when the repository is looked at.
            view.backups.extend(new);
            if let Some(findings) = found.findings {
                view.findings = findings;
            }
        });
        if failure.is_some() {
            // It was told just now.
            let standing = self.views.borrow().standing(self.shared.clock.now());
            let failed = standing
                .into_iter()
                .filter(|(_, (state, _))| *state == "failed");
            let told = failed.map(|(topic, (_, text))| (topic, text));
            self.book.told.extend(told);
            self.save().await;
        }
        progress.send_modify(|progress| progress.ended = Some(done));
    }

    /// Begins what is due, one after the other.
    async fn begin_due(
        &mut self,
        wanted: &Wanted,
        works: &mut JoinSet<(Result<Done, WorkError>, Found)>,
    ) {
        if self.running.is_some() || !self.is_ready() {
            return;
        }
        let is_owed = |kind: &Kind| self.owed.get(kind).is_some_and(|(at, _)| *at <= now());
        let waits = |kind: &Kind| self.owed.get(kind).is_some_and(|(at, _)| *at > now());
        let full = (self.wants_full && !waits(&Kind::Full)).then_some(Kind::Full);
        let owed = self.owed.keys().find(|kind| is_owed(kind)).copied();
        let due = self.book.due(self.shared.clock.wall());
        let Some(kind) = full.or(owed).or(due) else {
            return;
        };
        let work = match kind {
            Kind::Full => Work::BackUp { is_full: true },
            Kind::Incremental => Work::BackUp { is_full: false },
            Kind::LightDrill | Kind::FullDrill => Work::Drill {
                is_full: kind == Kind::FullDrill,
                migrations: None,
            },
            Kind::Verify => Work::Verify,
            Kind::Prune | Kind::Restore => return,
        };
        if let Err(error) = self.begin_work(work, CLOCK.to_owned(), wanted, works).await {
            tracing::warn!(scope = %self.scope, store = %self.store, %error, "{kind} was not begun");
        }
    }

    /// Stops writes, or lets them go on, by what waits for the archive.
    async fn weigh(&mut self, seen: limit::Seen, wanted: &Wanted) {
        let now = *self.writes.borrow();
        let next = match wanted.spec.on_wal_limit {
            OnWalLimit::StopWrites => now.next(seen.waiting, wanted.spec.wal_limit.0),
            OnWalLimit::Break => Writes::Free,
        };
        self.show(|view| view.waiting = Some(seen.waiting));
        if next == Writes::Free && seen.writes == Writes::Free {
            // It is written down until the server goes by it.
            if self.book.stopped.take().is_some() {
                tracing::info!(scope = %self.scope, store = %self.store, "the archive has caught up; the app may write");
                self.save().await;
                self.show(|view| view.stopped = None);
            }
        }
        if next == now {
            return;
        }
        if next != Writes::Free {
            let at = self.shared.clock.now();
            let since = self.book.stopped.as_ref().map_or(at, |known| known.since);
            self.book.stopped = Some(StoppedWrites {
                server: self.server.clone(),
                writes: next,
                since,
            });
            self.save().await;
            self.show(|view| view.stopped = Some((since, next)));
        }
        self.writes.send_replace(next);
    }

    /// Another server is archived now, or none: the app of the one before may write there.
    async fn leave_stopped(&mut self) {
        let is_left = |stopped: &StoppedWrites| stopped.server != self.server;
        let Some(stopped) = self.book.stopped.clone().filter(is_left) else {
            return;
        };
        self.lift(&stopped.server).await;
        self.book.stopped = None;
    }

    /// Tried until it is done: a store whose server is down is done with.
    async fn lift(&self, server: &StoreName) {
        let mut wait = RETRY_FIRST;
        while let Err(reason) = limit::lift(&self.shared, &self.scope, server).await {
            tracing::warn!(scope = %self.scope, store = %server, reason, "its app may not write yet");
            sleep(wait).await;
            wait = (wait * 2).min(RETRY_MAX);
        }
    }

    /// What the archiver tells.
    fn note(&mut self, event: &WalEvent) {
        let (scope, store) = (&self.scope, &self.store);
        match event {
            WalEvent::Receiver { state } => {
                tracing::info!(%scope, %store, ?state, "the receiver of WAL");
            }
            WalEvent::ShippingFailed { why } => {
                tracing::warn!(%scope, %store, why, "WAL is not shipped; it waits on this host");
            }
            WalEvent::Unreadable { why } => {
                tracing::error!(%scope, %store, why, "what was shipped cannot be read back");
            }
            WalEvent::ShippingBack => tracing::info!(%scope, %store, "WAL is shipped again"),
            WalEvent::Late { restorable } => {
                let to = restorable.and_then(|point| point.at);
                let to = to.map_or("nothing yet".to_owned(), |at| at.to_string());
                let status = self.views.borrow().wal.clone().unwrap_or_default();
                let why = status.failing.or(status.unreadable);
                let why = why.map_or(String::new(), |why| format!(": {why}"));
                self.alert(
                    "late",
                    &format!("the archive does not advance; a restore reaches {to}{why}"),
                );
            }
            WalEvent::OnTime { .. } => self.alert("on-time", "the archive advances again"),
            WalEvent::ChainBroken { hole } => {
                self.wants_full = true;
                let (from, to) = (hole.from, hole.to);
                let text = format!(
                    "the chain is broken: WAL from {from} to {to} is lost; a full backup begins"
                );
                self.alert("broken", &text);
            }
        }
    }

    fn looked(&mut self, loaded: &Loaded) {
        let backups: Vec<_> = loaded.backups.iter().map(work::line).collect();
        let is_good = |backup: &&super::BackupLine| backup.state == BackupState::Good;
        let has_good = backups.iter().any(|backup| is_good(&backup));
        if !has_good || loaded.restorable().is_none() {
            self.wants_full = true;
        }
        if has_good && self.book.drill.is_none() {
            let first = (now(), WORK_RETRY_FIRST);
            self.owed.entry(Kind::LightDrill).or_insert(first);
        }
        let rto = work::rto(loaded, self.book.drill.as_ref());
        let points = loaded.ledger.points().collect();
        let findings = work::named(&loaded.findings);
        self.show(|view| {
            view.backups = backups;
            view.rto = rto;
            view.points = points;
        });
        self.found(findings);
    }

    fn looked_series(&mut self, loaded: &landfast_backup_files::Loaded) {
        let backups: Vec<_> = loaded.snapshots.iter().map(series::line).collect();
        if backups.is_empty() {
            self.wants_full = true;
        } else if self.book.drill.is_none() {
            let first = (now(), WORK_RETRY_FIRST);
            self.owed.entry(Kind::LightDrill).or_insert(first);
        }
        let rto = self.book.drill.as_ref().map(|drill| drill.phases.rto());
        let findings = series::named(&loaded.findings);
        self.show(|view| {
            view.backups = backups;
            view.rto = rto.filter(|rto| !rto.is_zero());
        });
        self.found(findings);
    }

    /// What a verification has found stays until the next one; what shows without one is told at once.
    fn found(&self, findings: Vec<String>) {
        self.show(|view| {
            for finding in findings {
                if !view.findings.contains(&finding) {
                    view.findings.push(finding);
                }
            }
        });
    }

    /// Remembers a repository: should it be empty one day, it was lost.
    async fn opened(&mut self, open: &Open) {
        let label = self.views.borrow().spec.to.to_string();
        tracing::info!(scope = %self.scope, store = %self.store, archive = open.name(), at = label, "the archive is open");
        if !self.book.opened.contains(&label) {
            self.book.opened.push(label);
            self.save().await;
        }
    }

    fn trouble(&self, reason: String) {
        let at = self.shared.clock.now();
        let known = self.views.borrow().trouble.clone();
        if known.as_ref().is_none_or(|(_, known)| *known != reason) {
            tracing::warn!(scope = %self.scope, store = %self.store, reason, "nothing is backed up");
        }
        let since = known.map_or(at, |(since, _)| since);
        self.show(|view| {
            view.trouble = Some((since, reason));
        });
    }

    fn well(&mut self) {
        self.show(|view| view.trouble = None);
        if std::mem::take(&mut self.told) {
            self.alert("on-time", "it is backed up again");
        }
    }

    fn tell_trouble(&mut self) {
        if self.told {
            return;
        }
        let trouble = self.views.borrow().trouble.clone();
        let Some((since, reason)) = trouble else {
            return;
        };
        if self.shared.clock.now().since(since) >= TOLD_AFTER {
            self.told = true;
            self.alert("late", &format!("nothing is backed up: {reason}"));
        }
    }

    /// Tells once what is wrong, and once that it is over; also what a server that died had told.
    async fn tell_standing(&mut self) {
        let standing = self.views.borrow().standing(self.shared.clock.now());
        let told = &self.book.told;
        let news = standing.iter().any(|(topic, _)| !told.contains_key(topic));
        if !news && told.keys().all(|topic| standing.contains_key(topic)) {
            return;
        }
        let before = std::mem::take(&mut self.book.told);
        for (topic, text) in &before {
            match standing.contains_key(topic) {
                true => drop(self.book.told.insert(topic.clone(), text.clone())),
                false => self.alert("well", &format!("this is over: {text}")),
            }
        }
        for (topic, (state, text)) in standing {
            if !before.contains_key(&topic) {
                self.alert(state, &text);
                self.book.told.insert(topic, text);
            }
        }
        self.save().await;
    }

    /// The disks that get full, of those that the store and what waits for the repository lie on.
    fn full_disks(&self) -> BTreeMap<String, String> {
        let store = stores::places(&self.shared, &self.scope, &self.server).folder;
        let spool = work::scratch(&self.shared, &self.scope, &self.server);
        let disk = |folder: &Path| fs::metadata(folder).ok().map(|about| about.dev());
        let spool = Some(spool).filter(|spool| disk(spool) != disk(&store));
        let full = |(topic, folder): (&str, PathBuf)| {
            let told = rustix::fs::statvfs(&folder).ok()?;
            let bytes = |blocks: u64| Bytes(blocks.saturating_mul(told.f_frsize));
            // As `df` counts: what root alone may use is neither taken nor free.
            let taken = told.f_blocks.saturating_sub(told.f_bfree);
            let percent = (taken * 100).div_ceil((taken + told.f_bavail).max(1));
            let most = match self.book.told.contains_key(topic) {
                true => CALM_PERCENT,
                false => FULL_PERCENT,
            };
            let (folder, free) = (folder.display(), bytes(told.f_bavail));
            let text = format!("the disk of `{folder}` is {percent} % full: {free} are left");
            (percent >= most).then(|| (topic.to_owned(), text))
        };
        let spool = spool.map(|spool| ("disk of the log", spool));
        let both = [("disk of the store", store)].into_iter().chain(spool);
        both.filter_map(full).collect()
    }

    /// Tells whoever the manifest names, and the log.
    fn alert(&self, state: &str, text: &str) {
        let (scope, store) = (&self.scope, &self.store);
        tracing::error!(%scope, %store, state, "backups: {text}");
        let view = self.views.borrow().clone();
        let message = json!({
            "alert": "backup",
            "environment": scope.to_string(),
            "store": store.to_string(),
            "state": state,
            "text": text,
            "restorable_to": view.restorable_to().map(|at: Timestamp| at.to_string()),
            "at": self.shared.clock.now().to_string(),
        });
        let url = self.shared.environment(scope).and_then(|view| {
            let (_, body) = view.bodies.last_key_value()?;
            body.spec.deploy.webhook.clone()
        });
        if let Some(url) = url {
            self.shared.stores.spawn(async move {
                webhook::deliver(&url, &message.to_string(), "an alert of backups").await;
            });
        }
    }

    fn known(&self) -> Option<Store> {
        stores::find_store(&self.shared, &self.scope, &self.server)
    }

    /// Whether another server is archived than was last.
    fn is_other(&self) -> bool {
        *self.book.server.as_ref().unwrap_or(&self.store) != self.server
    }

    /// Another server goes on with the archive: nothing of it was backed up or proven yet.
    async fn note_server(&mut self) {
        if !self.is_other() {
            return;
        }
        let server = &self.server;
        tracing::info!(scope = %self.scope, store = %self.store, %server, "another store serves the name, and goes on with its archive");
        self.book.server = Some(self.server.clone());
        self.book.drill = None;
        self.wants_full = true;
        self.save().await;
        self.show(|view| view.drill = None);
    }

    /// What a restore has left that did not come to its end.
    async fn remove_unborn(&self, name: StoreName) {
        // A server that was killed with the restore still writes there for a moment.
        for _ in 0..UNBORN_TRIES {
            let (shared, scope, of) = (Arc::clone(&self.shared), self.scope.clone(), name.clone());
            let remove = move || stores::remove_unborn(&shared, &scope, &of);
            let removed = tokio::task::spawn_blocking(remove).await;
            let removed = removed.map_err(|error| error.to_string());
            let Err(reason) = removed.and_then(|removed| removed) else {
                return;
            };
            tracing::warn!(scope = %self.scope, store = %name, reason, "what a restore left is not removed yet");
            sleep(TICK).await;
        }
    }

    /// Another server takes over: nobody goes on with what this one has written last.
    async fn ship_rest(&self) {
        let next = self
            .wanted
            .borrow()
            .as_ref()
            .map(|next| next.server.clone());
        if next.is_none_or(|next| next == self.server) {
            return;
        }
        let (Some(archiver), Some(Open::Log { server, .. })) = (&self.archiver, &self.open) else {
            return;
        };
        if let Err(error) = archiver.catch_up(server, REST_MAX).await {
            let why = chain(&error);
            self.alert(
                "failed",
                &format!("what store `{}` wrote last is not in the archive, and in the old store alone: {why}", self.server),
            );
        }
    }

    fn show(&self, change: impl FnOnce(&mut BackupView)) {
        self.views.send_modify(|view| change(Arc::make_mut(view)));
    }

    /// When it returns nothing of it writes any more.
    async fn end_archiver(&mut self) {
        self.points.shutdown().await;
        let Some(archiver) = self.archiver.take().and_then(Arc::into_inner) else {
            return;
        };
        // The spool keeps what a repository that hangs does not take.
        match timeout(STOP_MAX, archiver.stop()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(scope = %self.scope, store = %self.store, error = chain(&error), "what waits is shipped at the next start");
            }
            Err(_) => {
                tracing::warn!(scope = %self.scope, store = %self.store, "the repository does not answer; what waits is shipped at the next start");
            }
        }
        self.show(|view| view.wal = None);
    }

    /// Nobody wants it any more: the server keeps no WAL for it. What is in the repository stays.
    async fn leave(&mut self) {
        tracing::info!(scope = %self.scope, store = %self.store, "it is not backed up any more; what there is stays");
        if self.views.borrow().source != Source::Log {
            return self.save().await;
        }
        if let Some(stopped) = self.book.stopped.take() {
            self.lift(&stopped.server).await;
        }
        let mut wait = RETRY_FIRST;
        while let Some(store) = self.known() {
            let forgotten = forget(&self.shared, &store).await;
            match forgotten {
                Ok(()) => break,
                Err(reason) => {
                    tracing::warn!(scope = %self.scope, store = %self.store, reason, "its replication slot is there still");
                    sleep(wait).await;
                    wait = (wait * 2).min(RETRY_MAX);
                }
            }
            if self.wanted.borrow().is_some() {
                return;
            }
        }
        // Whoever wants it again begins anew.
        (self.book.since, self.book.told) = Default::default();
        self.save().await;
    }

    async fn read_back(&mut self) -> Result<(), String> {
        let (shared, key) = (Arc::clone(&self.shared), self.key());
        let read = tokio::task::spawn_blocking(move || shared.journal.get(COLLECTION, &key)).await;
        let found = read.map_err(|error| error.to_string())?;
        let Some(document) = found.map_err(|error| chain(&error))? else {
            return Ok(());
        };
        let book = serde_json::from_slice(&document.body);
        self.book = book.map_err(|error| error.to_string())?;
        self.revision = document.revision;
        Ok(())
    }

    /// What has no log has a record of its own, should a store of that name have one.
    fn key(&self) -> String {
        let folder = match self.views.borrow().source {
            Source::Log => "",
            Source::Dumps { .. } => "_dumps/",
            Source::Volume { .. } => "_volumes/",
        };
        format!("{}/{folder}{}", self.scope, self.store)
    }

    /// However long the disk takes.
    async fn save(&mut self) {
        while let Err(error) = self.try_save().await {
            tracing::error!(scope = %self.scope, store = %self.store, error, "the journal took no record of backups");
            sleep(DISK_RETRY).await;
        }
    }

    async fn try_save(&mut self) -> Result<(), String> {
        let (shared, key, revision) = (Arc::clone(&self.shared), self.key(), self.revision);
        let body = serde_json::to_vec(&self.book).expect("it has text keys");
        let put = tokio::task::spawn_blocking(move || {
            shared.journal.put(COLLECTION, &key, Some(revision), body)
        });
        let put = put.await.map_err(|error| error.to_string())?;
        self.revision = put.map_err(|error| chain(&error))?;
        self.shared.position.send_modify(|_| {});
        Ok(())
    }
}

/// Lets the servers keep no WAL any more for stores that were backed up once, and whose keeper died before it could do so.
pub(super) async fn sweep(shared: Arc<Shared>) {
    const PAGE: usize = 1_000;
    let owner = Arc::clone(&shared);
    let listed = tokio::task::spawn_blocking(move || owner.journal.list(COLLECTION, None, PAGE));
    let Ok(Ok(documents)) = listed.await else {
        return;
    };
    for view in shared.environments() {
        let Some((_, body)) = view.bodies.last_key_value() else {
            continue;
        };
        let scope = &view.state.scope;
        for store in shared.stores.of(scope).iter().map(|view| &view.store) {
            let wanted = body.spec.stores.get(&store.name);
            let is_wanted =
                wanted.is_some_and(|store| store.is_managed() && store.backup.is_some());
            let key = format!("{scope}/{}", store.name);
            if is_wanted || !documents.iter().any(|document| document.key == key) {
                continue;
            }
            let mut wait = RETRY_FIRST;
            while let Err(reason) = limit::lift(&shared, scope, &store.name).await {
                tracing::warn!(%scope, store = %store.name, reason, "its app may not write yet");
                sleep(wait).await;
                wait = (wait * 2).min(RETRY_MAX);
            }
            wait = RETRY_FIRST;
            while let Err(reason) = forget(&shared, store).await {
                tracing::warn!(%scope, store = %store.name, reason, "its replication slot is there still");
                sleep(wait).await;
                wait = (wait * 2).min(RETRY_MAX);
            }
        }
    }
}

async fn forget(shared: &Shared, store: &Store) -> Result<(), String> {
    let (server, _) = work::reach(shared, store).await?;
    let forgotten = forget_slot(&server, SLOT).await;
    forgotten.map_err(|error| chain(&error))
}

/// The slot of a server that Landfast runs is Landfast's alone.
pub(super) const SLOT: &str = "landfast";

async fn begin(
    (shared, scope, name): (Arc<Shared>, Scope, StoreName),
    wanted: Wanted,
    was_there: bool,
    is_other: bool,
) -> Tried {
    let failed = |reason: String| Tried {
        open: None,
        result: Err(reason),
    };
    let folder = match &wanted.source {
        Source::Log => None,
        Source::Dumps { .. } => Some("_dumps"),
        Source::Volume { path } if !path.is_dir() => {
            return failed(format!("the folder `{}` is not there yet", path.display()));
        }
        Source::Volume { path } => {
            if let RepositorySpec::Folder { path: to } = &wanted.spec.to
                && Path::new(to).starts_with(path)
            {
                let path = path.display();
                return failed(format!(
                    "the repository `{to}` lies in the volume `{path}`, which would hold itself ever more often (choose another `to`)"
                ));
            }
            Some("_volumes")
        }
    };
    if let Some(folder) = folder {
        let (to, secrets) = (&wanted.spec.to, &wanted.secrets);
        let of = (&scope, folder, &name);
        return match place::series(&shared, of, to, secrets, was_there).await {
            Ok(series) => Tried {
                open: Some(Open::Series(series)),
                result: Ok(None),
            },
            Err(error) => failed(explained(&error)),
        };
    }
    let Some(store) = stores::find_store(&shared, &scope, &wanted.server) else {
        return failed("the store is not there yet".to_owned());
    };
    // One that was lost is archived no more, and can be restored.
    if matches!(store.phase, Phase::Making { .. } | Phase::Starting { .. }) {
        return failed(format!("the store is {}", store.word()));
    }
    let to = &wanted.spec.to;
    let archive = place::archive(&shared, &scope, &name, to, &wanted.secrets, was_there).await;
    let archive = match archive {
        Ok(archive) => archive,
        Err(error) => return failed(explained(&error)),
    };
    let (server, programs) = match work::reach(&shared, &store).await {
        Ok(reached) => reached,
        Err(reason) => return failed(reason),
    };
    let open = Open::Log {
        archive: archive.clone(),
        server: server.clone(),
        programs: programs.clone(),
    };
    if !matches!(store.phase, Phase::Ready { .. }) {
        return Tried {
            open: Some(open),
            result: Err(format!("the store is {}", store.word())),
        };
    }
    // It is written down before the first WAL is shipped: afterwards the timeline of this one looks like that of another server.
    if is_other {
        let followed = follows(&shared, &store, &archive).await;
        return Tried {
            open: Some(open),
            result: followed.map(|()| None),
        };
    }
    let (sender, events) = mpsc::unbounded_channel();
    let config = WalArchiveConfig {
        server,
        programs,
        archive,
        spool: work::scratch(&shared, &scope, &store.name).join("w"),
        slot: SLOT.to_owned(),
        is_synchronous: false,
        interval: wanted.spec.ship,
        spool_bytes_max: SPOOL_BYTES_MAX,
    };
    let started = match work::make_scratch(&work::scratch(&shared, &scope, &store.name)) {
        Ok(()) => WalArchiver::start(config, move |event| drop(sender.send(event))).await,
        Err(error) => return failed(explained(&error)),
    };
    Tried {
        open: Some(open),
        result: match started {
            Ok(archiver) => Ok(Some((archiver, events))),
            Err(error) => Err(work::sentence(&error)),
        },
    }
}

/// Whether a server can go on with an archive that another one has filled. Each timeline of it has one history.
async fn follows(shared: &Shared, store: &Store, archive: &Archive) -> Result<(), String> {
    let loaded = archive
        .load()
        .await
        .map_err(|error| work::sentence(&error))?;
    let newest = loaded.and_then(|loaded| loaded.ledger.newest_timeline());
    let own = stores::lineage(shared, &store.scope, &store.name)?.timeline;
    match newest.filter(|newest| own <= newest.0) {
        None => Ok(()),
        Some(newest) => Err(format!(
            "store `{}` is on timeline {own}, and the archive has timeline {newest} of another server: give it a repository of its own \
             (another `to`)",
            store.name
        )),
    }
}

fn explained(error: &WorkError) -> String {
    match &error.hint {
        Some(hint) => format!("{} ({hint})", error.reason),
        None => error.reason.clone(),
    }
}

async fn next(events: &mut Option<mpsc::UnboundedReceiver<WalEvent>>) -> Option<WalEvent> {
    match events {
        Some(events) => events.recv().await,
        None => std::future::pending().await,
    }
}

/// The next status; `None` where there will be none.
async fn changed(status: &mut Option<watch::Receiver<WalStatus>>) -> Option<WalStatus> {
    let Some(status) = status else {
        return std::future::pending().await;
    };
    match status.changed().await {
        Ok(()) => Some(status.borrow_and_update().clone()),
        Err(_) => None,
    }
}
