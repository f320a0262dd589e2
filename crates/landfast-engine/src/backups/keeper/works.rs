//! Work that is begun, one piece at a time, and how it ended.

use std::{sync::Arc, time::Duration};

use landfast_backup::BackupState;
use landfast_backup_postgres::Pace;
use tokio::{sync::watch, task::JoinSet, time::sleep};

use super::{
    super::{
        Done, Kind, OrderError, Progress, Wanted, Work, WorkError, series,
        work::{self, Found},
    },
    CLOCK, Keeper, Open, TICK, WORK_RETRY_FIRST,
};
use crate::{client::now, stores};

const WORK_RETRY_MAX: Duration = Duration::from_secs(3_600);

/// What work is done with.
pub(super) enum Context {
    Log(Box<work::Context>),
    Series(Box<series::Context>),
}

/// Work that was begun.
pub(super) struct Running {
    pub(super) work: Work,
    pub(super) progress: watch::Sender<Progress>,
    /// Of a backup of a server.
    pace: Option<Pace>,
}

impl Running {
    /// Somebody waits for its end.
    pub(super) fn hurry(&self) {
        if let Some(pace) = &self.pace {
            pace.lift();
        }
    }
}

impl Keeper {
    pub(super) async fn begin_work(
        &mut self,
        work: Work,
        by: String,
        wanted: &Wanted,
        works: &mut JoinSet<(Result<Done, WorkError>, Found)>,
    ) -> Result<watch::Receiver<Progress>, OrderError> {
        if let Some(running) = &self.running {
            running.hurry();
            return Err(OrderError::Busy(running.work.kind()));
        }
        let mut context = self.context(&work, &by, wanted)?;
        let pace = match &context {
            Context::Log(context) => Some(context.pace.clone()),
            Context::Series(_) => None,
        };
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
        self.running = Some(Running {
            work,
            progress,
            pace,
        });
        Ok(follower)
    }

    /// What work is done with, where it can be done now.
    pub(super) fn context(
        &self,
        work: &Work,
        by: &str,
        wanted: &Wanted,
    ) -> Result<Context, OrderError> {
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
            pace: Pace::new(wanted.spec.busy_rate.0),
            ship_least: self.book.ship_least.unwrap_or(wanted.spec.ship),
        })))
    }

    /// Whether what the clock asks for can begin.
    pub(super) fn is_ready(&self) -> bool {
        self.archiver.is_some() || matches!(self.open, Some(Open::Series(_)))
    }

    pub(super) async fn end_work(&mut self, done: Result<Done, WorkError>, found: Found) {
        let Some(Running { work, progress, .. }) = self.running.take() else {
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
        self.save_soon().await;
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
            self.save_soon().await;
        }
        progress.send_modify(|progress| progress.ended = Some(done));
    }

    /// Begins what is due, one after the other.
    pub(super) async fn begin_due(
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
}
