//! The loop of one store: wait, decide, record, act.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use landfast_datastore::{Action, Change, Input, Outcome, Phase, Store, change};
use landfast_datastore_client::{Session, StoreError};
use landfast_journal::PutError;
use landfast_target::{InstanceRef, TargetError};
use landfast_types::InstanceId;
use tokio::{
    sync::{mpsc, watch},
    task::{AbortHandle, JoinSet},
    time::{sleep, sleep_until},
};

use super::{CommandError, Measured, Message, StoreView, credentials, document, host, key};
use crate::{
    actions::{RETRY_FIRST, RETRY_MAX, chain, instant_in},
    driver::until_replaced,
    shared::{DISK_RETRY, Shared},
};

/// The longest the loop sleeps without looking at the clock again.
const SLEEP_MAX: Duration = Duration::from_secs(30);
/// How often a server that was started is asked whether it answers.
const ASK_EVERY: Duration = Duration::from_millis(200);
/// A database writes back what it holds in memory before it ends.
const GRACE: Duration = Duration::from_secs(60);
/// How often a store is measured.
const MEASURE_EVERY: Duration = Duration::from_secs(15);

pub(crate) struct Keeper {
    pub(crate) shared: Arc<Shared>,
    pub(crate) store: Store,
    /// Of its document in the journal.
    pub(crate) revision: u64,
    pub(crate) inbox: mpsc::Receiver<Message>,
    pub(crate) sender: mpsc::Sender<Message>,
    pub(crate) views: watch::Sender<Arc<StoreView>>,
    pub(crate) tasks: JoinSet<()>,
    pub(crate) acting: Option<(Action, AbortHandle)>,
    pub(crate) following: Option<(InstanceId, Vec<AbortHandle>)>,
}

impl Keeper {
    /// Runs until the server stops or is replaced, or nothing of the store is left.
    pub(crate) async fn run(mut self) {
        let mut replaced = self.shared.replaced.subscribe();
        loop {
            self.act();
            let wake = self.wake_at();
            let goes_on = tokio::select! {
                biased;
                () = until_replaced(&mut replaced) => return,
                message = self.inbox.recv() => match message {
                    Some(message) => self.take(message).await,
                    None => return,
                },
                Some(ended) = self.tasks.join_next() => {
                    if let Err(error) = ended && error.is_panic() {
                        tracing::error!(%error, "a task of a store panicked; its action is still owed");
                    }
                    true
                }
                () = sleep_until(wake) => self.record(Input::Tick).await,
            };
            if !goes_on {
                return self.leave();
            }
        }
    }

    async fn take(&mut self, message: Message) -> bool {
        match message {
            Message::Input(input) => self.record(input).await,
            Message::Command { input, reply } => {
                let taken = self.try_record(&input).await;
                let answer = taken.map(|_| Arc::clone(&self.views.borrow()));
                if reply.send(answer).is_err() {
                    tracing::debug!("nobody waits for the answer");
                }
                true
            }
            Message::Measured(measured) => {
                self.show(|view| {
                    if let Ok(measures) = &measured.result {
                        view.first_size
                            .get_or_insert((measured.at, measures.size_bytes));
                    }
                    view.measured = Some(Arc::new(measured));
                });
                true
            }
        }
    }

    /// Records what an input changes, however long the disk takes. False when nothing of the store is left.
    async fn record(&mut self, input: Input) -> bool {
        loop {
            match self.try_record(&input).await {
                Ok(goes_on) => return goes_on,
                Err(CommandError::Rejected(rejected)) => {
                    tracing::warn!(store = %self.store.name, scope = %self.store.scope, %rejected, "not taken");
                    return true;
                }
                Err(CommandError::Unknown | CommandError::Stopping | CommandError::Rotation(_)) => {
                    return true;
                }
                Err(CommandError::Journal(error)) => {
                    tracing::error!(store = %self.store.name, error, "the journal took no record of a store");
                    if self.shared.replaced.borrow().is_some() {
                        return true;
                    }
                    sleep(DISK_RETRY).await;
                }
            }
        }
    }

    async fn try_record(&mut self, input: &Input) -> Result<bool, CommandError> {
        let now = self.shared.clock.now();
        let next = match self.store.decide(now, input)? {
            Outcome::Unchanged => return Ok(true),
            Outcome::Changed(next) => Some(next),
            Outcome::Gone => None,
        };
        let (shared, revision) = (Arc::clone(&self.shared), self.revision);
        let (key, body) = (
            key(&self.store.scope, &self.store.name),
            next.as_deref().map(document),
        );
        let put = tokio::task::spawn_blocking(move || match body {
            Some(body) => shared
                .journal
                .put(super::COLLECTION, &key, Some(revision), body),
            None => {
                let gone = shared
                    .journal
                    .delete(super::COLLECTION, &key, Some(revision));
                gone.map(|()| 0)
            }
        });
        let put = put
            .await
            .map_err(|error| CommandError::Journal(error.to_string()))?;
        self.revision = put.map_err(|error: PutError| CommandError::Journal(chain(&error)))?;
        let Some(next) = next else {
            return Ok(false);
        };
        tracing::debug!(store = %next.name, scope = %next.scope, phase = next.word(), "recorded");
        self.store = *next;
        let store = self.store.clone();
        self.show(|view| view.store = store);
        self.shared.position.send_modify(|position| *position += 1);
        Ok(true)
    }

    fn show(&self, change: impl FnOnce(&mut StoreView)) {
        self.views.send_modify(|view| change(Arc::make_mut(view)));
    }

    fn leave(&self) {
        let mut book = self
            .shared
            .stores
            .book
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        book.remove(&(self.store.scope.clone(), self.store.name.clone()));
        tracing::info!(store = %self.store.name, scope = %self.store.scope, "the store was removed");
    }

    fn wake_at(&self) -> tokio::time::Instant {
        let now = self.shared.clock.now();
        let wait = match self.store.deadline() {
            Some(at) => at.since(now).min(SLEEP_MAX),
            None => SLEEP_MAX,
        };
        instant_in(wait)
    }

    /// Begins what is owed and not under way, and drops what is not owed any more.
    fn act(&mut self) {
        let owed = self.store.pending();
        if let Some((action, task)) = &self.acting
            && (owed.as_ref() != Some(action) || task.is_finished())
        {
            task.abort();
            self.acting = None;
        }
        if let Some(action) = owed
            && self.acting.is_none()
        {
            let work = perform(self.context(), action.clone());
            let task = self.tasks.spawn(work);
            self.acting = Some((action, task));
        }
        self.follow();
    }

    /// A server that is ready is watched for its end, and measured.
    fn follow(&mut self) {
        let ready = match &self.store.phase {
            Phase::Ready { instance, .. } => Some(instance.clone()),
            Phase::Making { .. }
            | Phase::Down { .. }
            | Phase::Starting { .. }
            | Phase::Stopping { .. }
            | Phase::Deleted { .. }
            | Phase::Removing => None,
        };
        if self.following.as_ref().map(|(instance, _)| instance) == ready.as_ref() {
            return;
        }
        for task in self
            .following
            .take()
            .into_iter()
            .flat_map(|(_, tasks)| tasks)
        {
            task.abort();
        }
        self.show(|view| view.measured = None);
        if let Some(instance) = ready {
            let watching = watch_end(self.context(), instance.clone());
            let watching = self.tasks.spawn(watching);
            let measuring = self.tasks.spawn(measure(self.context()));
            self.following = Some((instance, vec![watching, measuring]));
        }
    }

    fn context(&self) -> Context {
        Context {
            shared: Arc::clone(&self.shared),
            store: self.store.clone(),
            inbox: self.sender.clone(),
        }
    }
}

/// What a task of a keeper works with.
struct Context {
    shared: Arc<Shared>,
    store: Store,
    inbox: mpsc::Sender<Message>,
}

impl Context {
    async fn tell(&self, input: Input) {
        if self.inbox.send(Message::Input(input)).await.is_err() {
            tracing::debug!("the keeper has stopped; what it was told is found again at the start");
        }
    }

    fn reference(&self, instance: &InstanceId) -> InstanceRef {
        InstanceRef {
            scope: self.store.scope.clone(),
            instance: instance.clone(),
        }
    }

    async fn connect(&self) -> Result<Session, String> {
        host::connect(&self.shared, &self.store).await
    }
}

async fn perform(context: Context, action: Action) {
    match action {
        Action::Make => {
            let made = host::make(&context.shared, &context.store).await;
            context
                .tell(match made {
                    Ok(()) => Input::Made,
                    Err(reason) => Input::MakeFailed { reason },
                })
                .await;
        }
        Action::Start { instance } => start(&context, instance).await,
        Action::Apply { .. } => apply(&context).await,
        Action::Stop { instance } => stop(&context, instance).await,
        Action::Remove => remove(&context).await,
    }
}

async fn start(context: &Context, instance: InstanceId) {
    let started = host::start(&context.shared, &context.store, &instance).await;
    match started {
        Ok(()) => {}
        Err(landfast_target::StartError::Stale(stale)) => {
            let by = Some(stale.to_string());
            context.shared.replaced.send_replace(by);
            return;
        }
        Err(error) => {
            let reason = chain(&error);
            // The order may have arrived all the same, and a second server on the same data must not be.
            if end(context, &instance, Duration::ZERO).await.is_some() {
                let failed = Input::StartFailed {
                    instance,
                    reason,
                    free_port: host::port_taken(&context.store)
                        .and_then(|_| super::another_port(&context.shared)),
                };
                context.tell(failed).await;
            }
            return;
        }
    }
    let answered = until_it_answers(context);
    tokio::select! {
        exit = until_ended(context, &instance) => {
            let exit = told_exit(context, &instance, exit);
            context.tell(Input::Ended { instance, exit }).await;
        }
        () = answered => context.tell(Input::Answered { instance }).await,
    }
}

/// Recovery takes as long as it takes: a server that is killed in it only begins anew.
async fn until_it_answers(context: &Context) {
    loop {
        match prepare(context).await {
            Ok(()) => return,
            Err(reason) => {
                tracing::debug!(store = %context.store.name, reason, "it does not answer yet");
            }
        }
        sleep(ASK_EVERY).await;
    }
}

async fn prepare(context: &Context) -> Result<(), String> {
    let mut session = context.connect().await?;
    session.prepare().await.map_err(|error| chain(&error))
}

/// How it ended, with what its log says of it.
fn told_exit(context: &Context, instance: &InstanceId, exit: String) -> String {
    let folder = context.shared.folders.logs(&context.store.scope, instance);
    match crate::logs::causal_line(&folder) {
        Some(line) => format!("{exit}: {line}"),
        None => exit,
    }
}

async fn watch_end(context: Context, instance: InstanceId) {
    let exit = until_ended(&context, &instance).await;
    let exit = told_exit(&context, &instance, exit);
    context.tell(Input::Ended { instance, exit }).await;
}

async fn until_ended(context: &Context, instance: &InstanceId) -> String {
    let reference = context.reference(instance);
    let mut wait = RETRY_FIRST;
    loop {
        match context.shared.target.wait(&reference).await {
            Ok(exit) => return exit.to_string(),
            Err(error) => {
                tracing::debug!(%instance, error = chain(&error), "cannot be watched just now");
                sleep(wait).await;
                wait = (wait * 2).min(RETRY_MAX);
            }
        }
    }
}

async fn stop(context: &Context, instance: InstanceId) {
    if let Some(exit) = end(context, &instance, GRACE).await {
        context.tell(Input::Ended { instance, exit }).await;
    }
}

/// Ends a server, however often it must be asked; `None` when another server of Landfast has taken over.
async fn end(context: &Context, instance: &InstanceId, grace: Duration) -> Option<String> {
    let (reference, fence) = (
        context.reference(instance),
        host::fence(&context.shared, &context.store),
    );
    let mut wait = RETRY_FIRST;
    loop {
        match context.shared.target.stop(fence, &reference, grace).await {
            Ok(exit) => return Some(exit.to_string()),
            Err(TargetError::Stale(stale)) => {
                context
                    .shared
                    .replaced
                    .send_replace(Some(stale.to_string()));
                return None;
            }
            Err(error) => {
                tracing::warn!(%instance, error = chain(&error), "not stopped; trying again");
                sleep(wait).await;
                wait = (wait * 2).min(RETRY_MAX);
            }
        }
    }
}

async fn apply(context: &Context) {
    let mut wait = RETRY_FIRST;
    loop {
        match try_apply(context).await {
            Ok(()) => {
                let wanted = context.store.wanted.clone();
                return context.tell(Input::Applied { wanted }).await;
            }
            Err(reason) => {
                tracing::warn!(store = %context.store.name, reason, "settings were not applied; trying again");
                sleep(wait).await;
                wait = (wait * 2).min(RETRY_MAX);
            }
        }
    }
}

async fn try_apply(context: &Context) -> Result<(), String> {
    let wanted = &context.store.wanted;
    let applied = context.store.applied.as_ref();
    let Some(Change::Live { settings }) = applied.map(|applied| change(applied, wanted)) else {
        return Ok(());
    };
    host::reconfigure(&context.shared, &context.store).await?;
    let mut session = context.connect().await?;
    let waiting = session.apply(wanted, &settings).await;
    let waiting = waiting.map_err(|error| chain(&error))?;
    if !waiting.is_empty() {
        let (store, settings) = (&context.store.name, waiting.join(", "));
        tracing::warn!(%store, settings, "these settings take effect with the next restart");
    }
    Ok(())
}

async fn remove(context: &Context) {
    let mut wait = RETRY_FIRST;
    loop {
        let (shared, store) = (Arc::clone(&context.shared), context.store.clone());
        let removed = tokio::task::spawn_blocking(move || {
            host::remove_all(&shared, &store.scope, &store.name)
        })
        .await;
        match removed.unwrap_or_else(|error| Err(error.to_string())) {
            Ok(()) => return context.tell(Input::Removed).await,
            Err(reason) => {
                tracing::warn!(store = %context.store.name, reason, "not removed; trying again");
                sleep(wait).await;
                wait = (wait * 2).min(RETRY_MAX);
            }
        }
    }
}

/// Measures it again and again, and drops the logins of releases that are gone.
async fn measure(context: Context) {
    loop {
        let measured = try_measure(&context).await;
        if let Err(reason) = &measured {
            tracing::warn!(store = %context.store.name, reason, "not measured");
        }
        let message = Message::Measured(Measured {
            at: context.shared.clock.now(),
            result: measured,
        });
        if context.inbox.send(message).await.is_err() {
            return;
        }
        if let Err(reason) = drop_old_logins(&context).await {
            tracing::warn!(store = %context.store.name, reason, "logins of old releases stay for now");
        }
        sleep(MEASURE_EVERY).await;
    }
}

async fn try_measure(context: &Context) -> Result<landfast_datastore::Measures, String> {
    let mut session = context.connect().await?;
    let measured = session.measure().await;
    measured.map_err(|error: StoreError| chain(&error))
}

async fn drop_old_logins(context: &Context) -> Result<(), String> {
    let (shared, store) = (&context.shared, &context.store);
    // Nothing is known of the releases of an environment that was not read back.
    let Some(view) = shared.environment(&store.scope) else {
        return Ok(());
    };
    let logins = credentials::logins(shared, &store.scope, &store.name)?;
    let old = logins.into_iter().filter(|login| {
        let release = login.release();
        release.is_some_and(|release| {
            let newest = view.state.releases.keys().next_back();
            // A release that is being made has its login before it is in the view.
            !view.state.releases.contains_key(&release)
                && newest.is_some_and(|newest| release < *newest)
        })
    });
    for login in old {
        let mut session = context.connect().await?;
        let dropped = session.drop_login(&login.to_string()).await;
        dropped.map_err(|error| chain(&error))?;
        credentials::forget(shared, &store.scope, &store.name, login)?;
        tracing::info!(store = %store.name, %login, "the login of a release that is gone was dropped");
    }
    Ok(())
}
