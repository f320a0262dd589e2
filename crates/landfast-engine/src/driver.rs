//! The loop of one environment: wait, decide, record, apply, act.
//!
//! Whatever happens comes in as a message. The engine decides, the journal takes the events, and only then is
//! anything done about them. What is owed is asked of the state again after each record; an action that is
//! under way is not begun twice, and one that is no longer owed is dropped. Starting after a crash is the same
//! path: replay, say what really runs, act.
//!
//! A journal that cannot be written (a full disk, say) stops decisions and nothing else: traffic and instances
//! go on, the problem is shown, what happens meanwhile is kept and tried again every second, and commands of people
//! are refused at once.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use landfast_journal::{AppendError, Change as DocumentChange, NewRecord};
use landfast_rollout::{Action, Change, Environment, Event, Input, Rejected};
use landfast_target::InstanceRef;
use landfast_types::{InstanceId, ReleaseId, ServiceName, Timestamp};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep_until},
};

use crate::{
    actions, jobs, measure,
    part::part,
    plane::QuietParts,
    platform::ImagesError,
    probe,
    release::ReleaseBody,
    shared::{DISK_RETRY, Shared},
};

/// The version of [`Event`] as it is recorded.
pub const EVENT_VERSION: u16 = 1;
/// The kind of a record of an environment's stream.
pub const EVENT_KIND: &str = "environment";
/// The collection of release bodies.
pub(crate) const RELEASES: &str = "releases";
/// A snapshot of the state is kept each time so many records were written.
const SNAPSHOT_EVERY: u64 = 500;
const SNAPSHOT_VERSION: u16 = 1;
/// The collection of the snapshots before the newest, by stream: where the newest cannot be read, one must be left
/// from which the records that are kept lead on.
const EARLIER_SNAPSHOTS: &str = "earlier-snapshots";
/// So many records stay readable behind a snapshot, for people who ask what happened.
const RECORDS_KEPT: u64 = 20_000;
/// Messages waiting for the driver; senders wait beyond that.
const INBOX_MAX: usize = 1_024;
/// Beyond so many inputs that the journal has not taken, those that are told again anyway are not kept.
const UNWRITTEN_MAX: usize = 10_000;
/// The longest the driver sleeps without looking at the clock again: the clock may have been set.
const SLEEP_MAX: Duration = Duration::from_secs(30);

/// What a driver is told.
pub enum Message {
    /// By itself: from probes, the target, the proxy, a gate.
    Input(Input),
    /// By a person, who waits for the answer.
    Command {
        input: Input,
        body: Option<Box<ReleaseBody>>,
        reply: oneshot::Sender<Reply>,
    },
}

/// The answer to a command.
pub type Reply = Result<Arc<View>, CommandError>;

/// Why a command was not taken. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    #[error(transparent)]
    Rejected(#[from] Rejected),
    #[error("the journal did not take it")]
    Journal(#[source] Arc<AppendError>),
    #[error("the release cannot run again")]
    Images(#[source] Box<ImagesError>),
    #[error("the server is stopping")]
    Stopping,
}

/// An environment as readers see it: never half of a change.
#[derive(Debug, Clone)]
pub struct View {
    pub state: Environment,
    pub bodies: BTreeMap<ReleaseId, Arc<ReleaseBody>>,
    /// The newest end of an instance of each service, and when.
    pub last_exits: BTreeMap<ServiceName, (Timestamp, InstanceId, String)>,
    /// How many instances of each service were replaced since the server started.
    pub replaced: BTreeMap<ServiceName, u32>,
    /// Why the journal did not take the last record, while it does not.
    pub journal_problem: Option<String>,
}

impl View {
    /// A view of an environment of which nothing else is known.
    pub(crate) fn new(state: Environment) -> Self {
        Self {
            state,
            bodies: BTreeMap::new(),
            last_exits: BTreeMap::new(),
            replaced: BTreeMap::new(),
            journal_problem: None,
        }
    }
}

/// A handle to a running driver.
#[derive(Clone)]
pub struct DriverHandle {
    pub inbox: mpsc::Sender<Message>,
    pub view: watch::Receiver<Arc<View>>,
}

impl DriverHandle {
    /// Asks for something and waits for the answer.
    ///
    /// # Errors
    /// [`CommandError`] when it was not taken.
    pub async fn command(&self, input: Input, body: Option<ReleaseBody>) -> Reply {
        let (reply, answer) = oneshot::channel();
        let body = body.map(Box::new);
        let message = Message::Command { input, body, reply };
        self.inbox
            .send(message)
            .await
            .map_err(|_| CommandError::Stopping)?;
        answer.await.map_err(|_| CommandError::Stopping)?
    }
}

/// The driver of one environment.
pub struct Driver {
    shared: Arc<Shared>,
    stream: String,
    view: View,
    inbox: mpsc::Receiver<Message>,
    sender: mpsc::Sender<Message>,
    views: watch::Sender<Arc<View>>,
    tasks: JoinSet<()>,
    acting: BTreeMap<Action, AbortHandle>,
    watching: BTreeMap<InstanceId, AbortHandle>,
    probing: BTreeMap<InstanceId, AbortHandle>,
    measuring: Option<AbortHandle>,
    quiet: QuietParts,
    /// What the journal has not taken yet, in order.
    unwritten: VecDeque<Input>,
    /// Why it took nothing the last time, while something is kept.
    journal_error: Option<Arc<AppendError>>,
    retry_at: Instant,
    snapshot_at: u64,
}

/// The stream of an environment in the journal.
pub fn stream_of(scope: &landfast_types::Scope) -> String {
    format!("environment/{scope}")
}

impl Driver {
    /// Takes over an environment that was read from the journal.
    pub fn new(
        shared: Arc<Shared>,
        state: Environment,
        bodies: BTreeMap<ReleaseId, Arc<ReleaseBody>>,
    ) -> (Self, DriverHandle) {
        let nobody = Arc::new(View::new(Environment::new(state.scope.clone())));
        Self::succeeding(shared, state, bodies, watch::Sender::new(nobody))
    }

    /// Takes over from a driver that is gone; its readers stay.
    pub(crate) fn succeeding(
        shared: Arc<Shared>,
        state: Environment,
        bodies: BTreeMap<ReleaseId, Arc<ReleaseBody>>,
        views: watch::Sender<Arc<View>>,
    ) -> (Self, DriverHandle) {
        let (sender, inbox) = mpsc::channel(INBOX_MAX);
        let view = View {
            bodies,
            ..View::new(state)
        };
        views.send_replace(Arc::new(view.clone()));
        let handle = DriverHandle {
            inbox: sender.clone(),
            view: views.subscribe(),
        };
        let driver = Self {
            stream: stream_of(&view.state.scope),
            snapshot_at: view.state.sequence,
            shared,
            view,
            inbox,
            sender,
            views,
            tasks: JoinSet::new(),
            acting: BTreeMap::new(),
            watching: BTreeMap::new(),
            probing: BTreeMap::new(),
            measuring: None,
            quiet: QuietParts::default(),
            unwritten: VecDeque::new(),
            journal_error: None,
            retry_at: actions::instant_in(Duration::ZERO),
        };
        (driver, handle)
    }

    pub(crate) fn scope(&self) -> &landfast_types::Scope {
        &self.view.state.scope
    }

    /// Where readers see what this driver records.
    pub(crate) fn views(&self) -> watch::Sender<Arc<View>> {
        self.views.clone()
    }

    /// Runs until the server stops or is replaced. What is under way then is dropped: it is still owed, and the
    /// next server does it.
    pub async fn run(mut self, running: BTreeSet<InstanceId>) {
        self.record(Input::Adopted { running }).await;
        self.cancel_gate_runs();
        let mut replaced = self.shared.replaced.subscribe();
        loop {
            // What was done and is not recorded is still owed: doing it again would only say so again.
            if self.unwritten.is_empty() {
                self.act();
            }
            let wake = self.wake_at();
            tokio::select! {
                biased;
                () = until_replaced(&mut replaced) => return,
                message = self.inbox.recv() => match message {
                    Some(message) => self.take(message).await,
                    None => return,
                },
                Some(ended) = self.tasks.join_next() => log_panic(ended),
                () = sleep_until(wake) => match self.unwritten.is_empty() {
                    true => self.record(Input::Tick).await,
                    false => self.catch_up().await,
                },
            }
        }
    }

    async fn take(&mut self, message: Message) {
        match message {
            Message::Input(input) => self.record(input).await,
            Message::Command { input, body, reply } => {
                self.catch_up().await;
                let recorded = match &self.journal_error {
                    // A person is told at once; only what nobody can say again is kept.
                    Some(error) => Err(CommandError::Journal(Arc::clone(error))),
                    None => self.try_record(input, body).await,
                };
                let answer = recorded.map(|()| Arc::new(self.view.clone()));
                if reply.send(answer).is_err() {
                    tracing::debug!(scope = %self.view.state.scope, "nobody waits for the answer");
                }
            }
        }
    }

    /// Records what an input changes; where the journal cannot take it, keeps it until it can.
    async fn record(&mut self, input: Input) {
        self.keep(input);
        if self.journal_error.is_none() {
            self.catch_up().await;
        }
    }

    fn keep(&mut self, input: Input) {
        // These are told again and again.
        let repeats = matches!(
            input,
            Input::Tick | Input::Probed { .. } | Input::Measured { .. }
        );
        if repeats && self.unwritten.len() >= UNWRITTEN_MAX {
            return;
        }
        self.unwritten.push_back(input);
    }

    /// Records what is kept, in order, until the journal takes no more.
    async fn catch_up(&mut self) {
        while let Some(input) = self.unwritten.front().cloned() {
            match self.try_record(input, None).await {
                Ok(()) => {}
                Err(CommandError::Rejected(rejected)) => {
                    tracing::debug!(scope = %self.view.state.scope, %rejected, "not taken");
                }
                Err(CommandError::Stopping | CommandError::Images(_)) => return,
                Err(CommandError::Journal(error)) => {
                    self.journal_error = Some(error);
                    self.retry_at = actions::instant_in(DISK_RETRY);
                    return;
                }
            }
            self.unwritten.pop_front();
        }
        self.journal_error = None;
    }

    async fn try_record(
        &mut self,
        input: Input,
        body: Option<Box<ReleaseBody>>,
    ) -> Result<(), CommandError> {
        if self.shared.replaced.borrow().is_some() {
            return Err(CommandError::Stopping);
        }
        let now = self.shared.clock.now();
        let events = self.view.state.decide(now, input)?;
        if events.is_empty() {
            return Ok(());
        }
        self.append(&events, body.as_deref()).await?;
        for event in &events {
            self.note(event);
            self.view.state.apply(event);
        }
        if let Some(body) = body {
            self.view.bodies.insert(body.release, Arc::from(body));
        }
        self.view
            .bodies
            .retain(|release, _| self.view.state.releases.contains_key(release));
        self.show();
        self.snapshot().await;
        Ok(())
    }

    async fn append(
        &mut self,
        events: &[Event],
        body: Option<&ReleaseBody>,
    ) -> Result<(), CommandError> {
        let records: Vec<NewRecord> = events.iter().map(record_of).collect();
        let scope = &self.view.state.scope;
        let puts: Vec<DocumentChange> = body
            .map(|body| {
                let bytes = serde_json::to_vec(body).expect("a release has text keys");
                DocumentChange::put(RELEASES, &release_key(scope, body.release), Some(0), bytes)
            })
            .into_iter()
            .collect();
        let journal = Arc::clone(&self.shared.journal);
        let (stream, expected) = (self.stream.clone(), self.view.state.sequence);
        let append = move || journal.append_with(&stream, expected, &records, &puts);
        let result = tokio::task::spawn_blocking(append).await;
        match result.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic())) {
            Ok(_) => {
                if self.view.journal_problem.take().is_some() {
                    tracing::info!(scope = %self.view.state.scope, "the journal takes records again");
                }
                Ok(())
            }
            Err(conflict @ AppendError::Conflict { .. }) => {
                // Another server writes this stream: this one has been replaced and must not act.
                self.shared
                    .replaced
                    .send_replace(Some(conflict.to_string()));
                Err(CommandError::Stopping)
            }
            Err(error) => {
                tracing::error!(scope = %self.view.state.scope, %error, "the journal took no record");
                self.view.journal_problem = Some(error.to_string());
                self.show();
                Err(CommandError::Journal(Arc::new(error)))
            }
        }
    }

    /// Remembers for readers what the state itself does not keep.
    fn note(&mut self, event: &Event) {
        let scope = &self.view.state.scope;
        if let Change::InstanceEnded { instance, exit, .. } = &event.change {
            let ended = InstanceRef {
                scope: scope.clone(),
                instance: instance.clone(),
            };
            self.tasks
                .spawn(actions::forget(Arc::clone(&self.shared), ended));
            if let Some(known) = self.view.state.instances.get(instance) {
                let service = known.service.clone();
                if known.is_kept() {
                    *self.view.replaced.entry(service.clone()).or_default() += 1;
                    let end = (event.at, instance.clone(), exit.clone());
                    self.view.last_exits.insert(service, end);
                }
            }
        }
        tracing::debug!(%scope, change = ?event.change, "recorded");
    }

    fn show(&mut self) {
        self.views.send_replace(Arc::new(self.view.clone()));
        self.shared.position.send_modify(|position| *position += 1);
    }

    async fn snapshot(&mut self) {
        let sequence = self.view.state.sequence;
        if sequence < self.snapshot_at + SNAPSHOT_EVERY {
            return;
        }
        self.snapshot_at = sequence;
        let body = serde_json::to_vec(&self.view.state).expect("the state has text keys");
        let stream = self.stream.clone();
        let snapshot = landfast_journal::Snapshot {
            stream,
            sequence,
            version: SNAPSHOT_VERSION,
            body,
        };
        let journal = Arc::clone(&self.shared.journal);
        let kept = tokio::task::spawn_blocking(move || {
            if let Err(error) = keep_snapshot(journal.as_ref(), &snapshot) {
                tracing::warn!(
                    error,
                    "no snapshot was kept; the next start replays more records"
                );
            }
        });
        if let Err(error) = kept.await {
            tracing::warn!(%error, "keeping a snapshot stopped");
        }
    }

    fn wake_at(&self) -> Instant {
        if !self.unwritten.is_empty() {
            return self.retry_at;
        }
        let now = self.shared.clock.now();
        let wait = match self.view.state.deadline() {
            Some((at, _)) => at.since(now).min(SLEEP_MAX),
            None => SLEEP_MAX,
        };
        actions::instant_in(wait.max(Duration::from_millis(1)))
    }

    // ------------------------------------------------------------------------------------------------- acting

    /// Begins what is owed and not under way, and drops what is not owed any more.
    fn act(&mut self) {
        let owed = self.view.state.pending();
        let mut dropped_gate = false;
        self.acting.retain(|action, task| {
            let keep = owed.contains(action) && !task.is_finished();
            if !keep {
                dropped_gate |= matches!(action, Action::JudgeGate { .. }) && !task.is_finished();
                task.abort();
            }
            keep
        });
        if dropped_gate {
            self.cancel_gate_runs();
        }
        for action in owed {
            if !self.acting.contains_key(&action) {
                let work = actions::perform(self.context(), action.clone());
                let task = self.tasks.spawn(work);
                self.acting.insert(action, task);
            }
        }
        self.publish_quietly();
        self.follow_instances();
        self.follow_traffic();
    }

    /// Ends the jobs of gates that nobody waits for any more.
    fn cancel_gate_runs(&mut self) {
        let owed = self.view.state.pending().into_iter();
        let owed: BTreeSet<_> = owed
            .filter_map(|action| match action {
                Action::JudgeGate { rollout, .. } => Some(rollout),
                Action::StartInstance { .. }
                | Action::StopInstance { .. }
                | Action::Publish { .. }
                | Action::AwaitDrain { .. }
                | Action::Migrate { .. }
                | Action::ReadSchema { .. }
                | Action::Notify { .. }
                | Action::RetireStore { .. } => None,
            })
            .collect();
        let (shared, scope) = (Arc::clone(&self.shared), self.view.state.scope.clone());
        let is_owed = move |rollout| owed.contains(&rollout);
        self.tasks.spawn(jobs::cancel(shared, scope, is_owed));
    }

    fn context(&self) -> actions::Context {
        actions::Context {
            shared: Arc::clone(&self.shared),
            view: Arc::new(self.view.clone()),
            inbox: self.sender.clone(),
        }
    }

    /// Routes and settings may change without a new revision of the table (a rollout that ended drops the old
    /// release's routes): nobody waits for these.
    fn publish_quietly(&mut self) {
        let state = &self.view.state;
        if state.traffic.revision == 0 {
            return;
        }
        let part = part(
            state,
            &self.view.bodies,
            !self.shared.controls.health_gate_off,
        );
        if !self.quiet.take(&part, state.traffic_confirmed) {
            return;
        }
        let (hub, scope) = (Arc::clone(&self.shared.hub), state.scope.clone());
        let shared = Arc::clone(&self.shared);
        self.tasks.spawn(async move {
            if let Err(error) = hub.publish(&scope, part).await {
                shared.replaced.send_replace(Some(error.to_string()));
            }
        });
    }

    /// Waits for the end of every instance that runs, and probes those that may serve.
    fn follow_instances(&mut self) {
        let instances = &self.view.state.instances;
        let started = |id: &InstanceId| {
            instances
                .get(id)
                .is_some_and(|instance| instance.word() != "planned")
        };
        let probed = |id: &InstanceId| instances.get(id).is_some_and(|i| i.is_probed());
        retain(&mut self.watching, started);
        retain(&mut self.probing, probed);
        let ids: Vec<InstanceId> = instances.keys().cloned().collect();
        for id in ids {
            if started(&id) && !self.watching.contains_key(&id) {
                let task = self.tasks.spawn(actions::watch(self.context(), id.clone()));
                self.watching.insert(id.clone(), task);
            }
            let instance = &self.view.state.instances[&id];
            if instance.is_probed() && !self.probing.contains_key(&id) {
                let body = self.view.bodies.get(&instance.release);
                let Some(service) = body.and_then(|b| b.spec.services.get(&instance.service))
                else {
                    continue;
                };
                let settings =
                    probe::Settings::new(service, instance.address, &self.shared.controls);
                let reference = InstanceRef {
                    scope: self.view.state.scope.clone(),
                    instance: id.clone(),
                };
                let settings = settings.of_container(&self.shared.target, reference);
                let prober = probe::run(self.sender.clone(), id.clone(), settings);
                let task = self.tasks.spawn(prober);
                self.probing.insert(id, task);
            }
        }
    }

    /// Measures traffic while a rollout is under way, and a little longer.
    fn follow_traffic(&mut self) {
        let wanted = self.view.state.wants_readings(self.shared.clock.now());
        let runs = self
            .measuring
            .as_ref()
            .is_some_and(|task| !task.is_finished());
        if wanted && !runs {
            let receiver = self.views.subscribe();
            let work = measure::run(Arc::clone(&self.shared), receiver, self.sender.clone());
            self.measuring = Some(self.tasks.spawn(work));
        } else if !wanted && let Some(task) = self.measuring.take() {
            task.abort();
        }
    }
}

pub(crate) async fn until_replaced(replaced: &mut watch::Receiver<Option<String>>) {
    if replaced.wait_for(Option::is_some).await.is_err() {
        tracing::debug!("nobody is left to say so");
    }
}

fn retain(tasks: &mut BTreeMap<InstanceId, AbortHandle>, keep: impl Fn(&InstanceId) -> bool) {
    tasks.retain(|id, task| {
        let keep = keep(id);
        if !keep {
            task.abort();
        }
        keep
    });
}

fn log_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a task of the driver panicked; its action is still owed");
    }
}

/// The key of a release's body.
pub(crate) fn release_key(scope: &landfast_types::Scope, release: ReleaseId) -> String {
    format!("{scope}/{:012}", release.0)
}

fn record_of(event: &Event) -> NewRecord {
    NewRecord::json(EVENT_KIND, EVENT_VERSION, event.at, event).expect("an event has text keys")
}

/// Reads the state of an environment back from the journal.
///
/// # Errors
/// When a record is damaged, or of a version this binary does not know.
pub fn replay(
    journal: &dyn landfast_journal::Journal,
    scope: &landfast_types::Scope,
) -> Result<Environment, ReplayError> {
    const PAGE: usize = 1_000;
    let stream = stream_of(scope);
    let mut state = begin_of_replay(journal, scope);
    loop {
        let page = journal.read(&stream, state.sequence, PAGE)?;
        let last = page.len() < PAGE;
        for record in page {
            if record.version > EVENT_VERSION || record.kind != EVENT_KIND {
                let (kind, version) = (record.kind, record.version);
                return Err(ReplayError::Unknown {
                    stream,
                    sequence: record.sequence,
                    kind,
                    version,
                });
            }
            let sequence = record.sequence;
            let event: Event = record.json().map_err(|source| ReplayError::Unreadable {
                stream: stream.clone(),
                sequence,
                source,
            })?;
            state.apply(&event);
        }
        if last {
            return Ok(state);
        }
    }
}

/// Keeps a snapshot and the one before it, and lets go of records that neither needs.
fn keep_snapshot(
    journal: &dyn landfast_journal::Journal,
    snapshot: &landfast_journal::Snapshot,
) -> Result<(), String> {
    let stream = &snapshot.stream;
    let before = journal.load_snapshot(stream).ok().flatten();
    if let Some(before) = before
        .and_then(|before| state_of(&before))
        .filter(|before| before.sequence < snapshot.sequence)
    {
        let body = serde_json::to_vec(&before).expect("the state has text keys");
        let put = journal.put(EARLIER_SNAPSHOTS, stream, None, body);
        put.map_err(|error| actions::chain(&error))?;
    }
    let saved = journal.save_snapshot(snapshot);
    saved.map_err(|error| actions::chain(&error))?;
    let earlier = earlier_state(journal, stream).map_or(0, |state| state.sequence);
    let upto = snapshot.sequence.saturating_sub(RECORDS_KEPT).min(earlier);
    if let Err(error) = journal.compact(stream, upto) {
        tracing::debug!(%error, "old records stay");
    }
    Ok(())
}

/// The state to replay from: of the newest snapshot that can be read, else of nothing.
fn begin_of_replay(
    journal: &dyn landfast_journal::Journal,
    scope: &landfast_types::Scope,
) -> Environment {
    let stream = stream_of(scope);
    match journal.load_snapshot(&stream) {
        Ok(None) => return Environment::new(scope.clone()),
        Ok(Some(snapshot)) => {
            if let Some(state) = state_of(&snapshot) {
                return state;
            }
            tracing::warn!(%stream, "the newest snapshot is of another version");
        }
        Err(error) => tracing::warn!(%stream, %error, "the newest snapshot cannot be read"),
    }
    earlier_state(journal, &stream).unwrap_or_else(|| {
        tracing::warn!(%stream, "no earlier snapshot can be read; replaying all");
        Environment::new(scope.clone())
    })
}

fn state_of(snapshot: &landfast_journal::Snapshot) -> Option<Environment> {
    let known = snapshot.version == SNAPSHOT_VERSION;
    known
        .then(|| serde_json::from_slice(&snapshot.body).ok())
        .flatten()
}

fn earlier_state(journal: &dyn landfast_journal::Journal, stream: &str) -> Option<Environment> {
    let document = journal.get(EARLIER_SNAPSHOTS, stream).ok()??;
    serde_json::from_slice(&document.body).ok()
}

/// Why an environment could not be read back.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    #[error(transparent)]
    Read(#[from] landfast_journal::ReadError),
    #[error(
        "record {sequence} of `{stream}` is `{kind}` version {version}, which a newer Landfast wrote"
    )]
    Unknown {
        stream: String,
        sequence: u64,
        kind: String,
        version: u16,
    },
    #[error("record {sequence} of `{stream}` cannot be read")]
    Unreadable {
        stream: String,
        sequence: u64,
        source: serde_json::Error,
    },
}

#[cfg(test)]
mod tests {
    use landfast_journal::{Journal as _, MemoryJournal, Snapshot};
    use landfast_types::RolloutId;

    use super::*;

    #[test]
    fn goes_on_from_the_earlier_snapshot_when_the_newest_cannot_be_read() {
        let scope = landfast_types::Scope {
            app: "shop".parse().unwrap(),
            environment: "production".parse().unwrap(),
        };
        let (journal, stream) = (MemoryJournal::default(), stream_of(&scope));
        let mut state = Environment::new(scope.clone());
        for sequence in 1..=900 {
            let event = Event {
                at: Timestamp::EPOCH,
                change: Change::Notified {
                    rollout: RolloutId(sequence),
                },
            };
            let appended = journal.append(&stream, sequence - 1, &[record_of(&event)]);
            assert_eq!(appended.unwrap(), sequence);
            state.apply(&event);
            if sequence % 300 == 0 {
                let snapshot = Snapshot {
                    stream: stream.clone(),
                    sequence,
                    version: SNAPSHOT_VERSION,
                    body: serde_json::to_vec(&state).unwrap(),
                };
                keep_snapshot(&journal, &snapshot).unwrap();
            }
        }
        journal.compact(&stream, 600).unwrap();
        let damaged = Snapshot {
            stream,
            sequence: 900,
            version: SNAPSHOT_VERSION,
            body: b"{}".to_vec(),
        };
        journal.save_snapshot(&damaged).unwrap();
        assert_eq!(replay(&journal, &scope).unwrap(), state);
    }
}
