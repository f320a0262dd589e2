//! The loop of the backups of one store: it keeps the archiver running, begins what is due or asked for, and writes down the end.

mod alerts;
mod begin;
mod stopped;
mod sweep;
mod works;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use landfast_backup::{BackupState, Writes};
use landfast_backup_files::{FilesError, Series};
use landfast_backup_postgres::{
    Archive, BackupError, Loaded, Programs, Server, WalArchiver, WalEvent, WalStatus,
};
use landfast_datastore::Store;
use landfast_spec::OnWalLimit;
use landfast_types::{Scope, StoreName};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};

pub(super) use self::{begin::SLOT, sweep::sweep};
use self::{
    begin::{Tried, begin, explained, forget},
    works::Running,
};
use super::{
    BackupView, Done, Kind, Message, Source, Wanted, WorkError, limit,
    record::{Book, COLLECTION},
    series,
    work::{self, Found},
};
use crate::{
    actions::{RETRY_FIRST, chain},
    client::now,
    driver::until_replaced,
    shared::{DISK_RETRY, Shared},
    stores,
};

const TICK: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// Work that the clock began and that failed is tried again after this, then after twice as long, up to the most.
const WORK_RETRY_FIRST: Duration = Duration::from_secs(60);
/// The repository is looked through again after this.
const LOOK_EVERY: Duration = Duration::from_secs(15 * 60);
/// The room on the disks is looked at again after this.
const ROOM_EVERY: Duration = Duration::from_secs(15);
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

/// What the repository holds.
enum Look {
    Log(Result<Option<Loaded>, BackupError>),
    Series(Result<landfast_backup_files::Loaded, FilesError>),
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
    /// How many bytes waited for the archive when writes had stopped.
    at_first: Option<u64>,
    /// Servers that were left, whose apps are let write again.
    lifts: JoinSet<StoreName>,
    /// What is in the book is not in the journal yet.
    is_unsaved: bool,
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
            at_first: None,
            lifts: JoinSet::new(),
            is_unsaved: false,
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
            self.save_soon().await;
        }
        loop {
            let wanted = self.wanted.borrow_and_update().clone();
            let Some(wanted) = wanted else {
                return self.leave().await;
            };
            self.book.fit(&wanted.spec, self.shared.clock.wall());
            self.server = wanted.server.clone();
            self.book.serve_by(&wanted.server);
            if wanted.source == Source::Log {
                self.find_stopped();
            }
            self.save_soon().await;
            self.lift_left().await;
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
                if wanted.spec.on_wal_limit == OnWalLimit::Break {
                    view.waiting = None;
                }
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
                wanted.spec.wal_limit.0,
                writes,
                seen_sender,
            ));
        }
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if self.wanted.has_changed().unwrap_or(true) {
                match &self.running {
                    Some(running) => running.hurry(),
                    None => return,
                }
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
                    let begun = match tried.result {
                        Ok(archiver) => {
                            if let Some((archiver, told)) = archiver {
                                status = Some(archiver.watch());
                                events = Some(told);
                                self.archiver = Some(Arc::new(archiver));
                            }
                            self.note_server().await
                        }
                        Err(reason) => Err(reason),
                    };
                    match begun {
                        Ok(()) => {
                            wait = RETRY_FIRST;
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
                Some(lifted) = self.lifts.join_next() => self.lifted(lifted).await,
                Some(look) = seen.recv() => match look {
                    Ok(Some(seen)) => self.weigh(seen, wanted).await,
                    Ok(None) => self.unseen(None),
                    Err(reason) => self.unseen(Some(reason)),
                },
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
                    if self.is_unsaved {
                        self.save_soon().await;
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
            self.save_soon().await;
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
    async fn note_server(&mut self) -> Result<(), String> {
        if !self.is_other() {
            return Ok(());
        }
        let before = self.book.clone();
        let server = &self.server;
        tracing::info!(scope = %self.scope, store = %self.store, %server, "another store serves the name, and goes on with its archive");
        self.book.server = Some(self.server.clone());
        self.book.drill = None;
        self.wants_full = true;
        if let Err(error) = self.try_save().await {
            self.book = before;
            return Err(format!("the journal took no record of it: {error}"));
        }
        self.show(|view| view.drill = None);
        Ok(())
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
        self.book.serve_nobody();
        self.save().await;
        self.lift_left().await;
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
        while !self.book.left.is_empty() {
            tokio::select! {
                Some(lifted) = self.lifts.join_next() => self.lifted(lifted).await,
                () = sleep(TICK) => {}
            }
            // Whoever wants it again goes on with what is owed.
            if self.wanted.borrow().is_some() {
                return;
            }
        }
        self.book.settle();
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

    /// What a disk that is full does not take is tried again with each tick: whoever watches over a server waits for no disk.
    async fn save_soon(&mut self) {
        let saved = self.try_save().await;
        if let Err(error) = &saved
            && !self.is_unsaved
        {
            tracing::error!(scope = %self.scope, store = %self.store, error, "the journal took no record of backups");
        }
        self.is_unsaved = saved.is_err();
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
