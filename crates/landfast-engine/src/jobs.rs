//! Runs of jobs: by a gate, by hand, by the clock. Each run has a number, a record in the journal and its own log.
//!
//! The record is written before the job starts, and what is still open is written with it. A server that starts takes
//! up every open run: it waits for its end, holds it to its timeout and records it. The run of a gate is taken up by
//! its gate, which is judged again, or ended where the gate is not waited for any more. An open run that the target
//! does not know is never started late: nobody can tell how far it had come.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, PoisonError},
    time::Duration,
};

use landfast_journal::{Change, Document, PutError};
use landfast_rollout::{Environment, Weights};
use landfast_spec::{JobSpec, When};
use landfast_target::{Exit, InstanceRef, TargetError};
use landfast_types::{
    Fence, InstanceId, JobName, ReleaseId, RolloutId, Scope, StoreName, Timestamp,
};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    actions::{RETRY_FIRST, RETRY_MAX, chain, instant_in},
    driver::View,
    logs,
    release::ReleaseBody,
    shared::{DISK_RETRY, Shared},
    spec::job_spec,
    stores,
};

const COLLECTION: &str = "job-runs";
/// One document per environment: the last number, and which runs there are.
const INDEXES: &str = "job-run-indexes";
const NUMBER_TRIES: u32 = 20;
/// The newest runs of a job that are remembered.
const RUNS_KEPT: usize = 100;
/// Between SIGTERM and SIGKILL of a job that took too long.
const GRACE: Duration = Duration::from_secs(10);
/// A wall clock that was set back by more than this is believed; by less, an instant that was served stays served.
const SET_BACK_MIN: Duration = Duration::from_secs(60);

/// What is to be run.
#[derive(Clone, Copy)]
pub struct Run<'a> {
    pub scope: &'a Scope,
    pub body: &'a ReleaseBody,
    pub name: &'a JobName,
    pub job: &'a JobSpec,
    /// For people: `by hand`, `smoke gate`, the cron line.
    pub cause: &'a str,
    /// The rollout whose gate waits for it. All other runs of a job are one at a time.
    pub rollout: Option<RolloutId>,
}

/// What became of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRecord {
    pub number: u64,
    pub job: JobName,
    pub instance: InstanceId,
    pub release: ReleaseId,
    pub cause: String,
    pub started_at: Timestamp,
    #[serde(default)]
    pub rollout: Option<RolloutId>,
    /// How long it may take, whoever waits for it by then.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
    #[serde(default)]
    pub ended_at: Option<Timestamp>,
    #[serde(default)]
    pub exit: Option<Exit>,
    /// It was ended because it took longer than its `timeout`.
    #[serde(default)]
    pub timed_out: bool,
    /// It was ended because its gate was not waited for any more.
    #[serde(default)]
    pub cancelled: bool,
    /// The last line it wrote, when it failed.
    #[serde(default)]
    pub last_line: Option<String>,
}

impl RunRecord {
    /// Whether it did what it should; otherwise why not.
    ///
    /// # Errors
    /// A sentence fragment: `exited with code 1: connection refused`.
    pub fn verdict(&self) -> Result<(), String> {
        let line = self
            .last_line
            .as_ref()
            .map_or(String::new(), |line| format!(": {line}"));
        match &self.exit {
            Some(_) if self.cancelled => {
                Err("was ended: its gate is not waited for any more".into())
            }
            Some(Exit::Code { code: 0 }) if !self.timed_out => Ok(()),
            _ if self.timed_out => Err(format!("took longer than its timeout{line}")),
            Some(exit) => Err(format!("{exit}{line}")),
            None => Err("is still running".into()),
        }
    }

    /// How long it took.
    pub fn millis(&self) -> u128 {
        self.ended_at
            .map_or(0, |ended| ended.since(self.started_at).as_millis())
    }
}

/// Why a run was not begun.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BeginError {
    #[error("run {number} of job `{job}` has not ended")]
    Busy { job: JobName, number: u64 },
    #[error(
        "store `{0}` of the app is being moved to another server: what a run wrote would be missing there"
    )]
    Switching(StoreName),
    #[error("the journal did not take it: {0}")]
    Journal(String),
}

/// The store that a run uses and that is being moved just now. Whoever begins a run looks after it was recorded, and whoever moves a
/// store looks for runs after that was: one of the two sees the other.
fn moving(shared: &Shared, run: &Run<'_>) -> Option<StoreName> {
    let view = shared.environment(run.scope)?;
    let rollout = view.state.rollout.as_ref()?;
    let switching = rollout.switching.as_ref()?;
    let is_its_own = run.rollout == Some(rollout.id);
    let store = &switching.switch.store;
    (!is_its_own && run.job.uses.contains(store)).then(|| store.clone())
}

/// Which runs of an environment there are.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Index {
    last: u64,
    kept: BTreeMap<JobName, BTreeSet<u64>>,
    /// Those whose end is not recorded yet.
    open: BTreeMap<u64, JobName>,
}

impl Index {
    /// Takes in the next run and gives its number, and the numbers of those that are let go.
    fn add(&mut self, job: &JobName) -> (u64, Vec<u64>) {
        self.last += 1;
        self.open.insert(self.last, job.clone());
        let kept = self.kept.entry(job.clone()).or_default();
        kept.insert(self.last);
        let surplus = kept.len().saturating_sub(RUNS_KEPT);
        let ended = kept.iter().filter(|number| !self.open.contains_key(number));
        let dropped: Vec<u64> = ended.copied().take(surplus).collect();
        kept.retain(|number| !dropped.contains(number));
        (self.last, dropped)
    }

    fn busy(&self, job: &JobName) -> Option<u64> {
        let mut open = self.open.iter();
        open.find(|(_, other)| *other == job)
            .map(|(number, _)| *number)
    }

    /// Reads it, with its revision. Journals of before it was kept are looked through once.
    fn load(shared: &Shared, scope: &Scope) -> Result<(Self, u64), String> {
        let document = shared.journal.get(INDEXES, &scope.to_string());
        match document.map_err(|error| chain(&error))? {
            Some(document) => {
                let index = serde_json::from_slice(&document.body);
                let index = index.map_err(|error| format!("the index of job runs: {error}"))?;
                Ok((index, document.revision))
            }
            None => Ok((Self::gather(shared, scope)?, 0)),
        }
    }

    fn gather(shared: &Shared, scope: &Scope) -> Result<Self, String> {
        const PAGE: usize = 1_000;
        let prefix = format!("{scope}/");
        let mut after = prefix.clone();
        let mut index = Self::default();
        loop {
            let page = shared.journal.list(COLLECTION, Some(&after), PAGE);
            let page = page.map_err(|error| chain(&error))?;
            let own: Vec<&Document> = page
                .iter()
                .take_while(|document| document.key.starts_with(&prefix))
                .collect();
            for document in &own {
                let number = document.key[prefix.len()..].parse::<u64>();
                index.last = number.unwrap_or(index.last).max(index.last);
                let Some(record) = parse(document) else {
                    continue;
                };
                let kept = index.kept.entry(record.job.clone()).or_default();
                kept.insert(record.number);
                if record.ended_at.is_none() {
                    index.open.insert(record.number, record.job);
                }
            }
            match own.last() {
                Some(document) if own.len() == PAGE => after.clone_from(&document.key),
                Some(_) | None => return Ok(index),
            }
        }
    }

    fn put(&self, scope: &Scope, revision: u64) -> Change {
        let body = serde_json::to_vec(self).expect("an index has text keys");
        Change::put(INDEXES, &scope.to_string(), Some(revision), body)
    }
}

/// Begins a run: gives it a number and records it.
///
/// # Errors
/// [`BeginError`]; nothing was recorded then.
pub async fn begin(shared: &Arc<Shared>, run: &Run<'_>) -> Result<RunRecord, BeginError> {
    if let Some(store) = moving(shared, run) {
        return Err(BeginError::Switching(store));
    }
    let owner = Arc::clone(shared);
    let (scope, release, rollout) = (run.scope.clone(), run.body.release, run.rollout);
    let (job, cause) = (run.name.clone(), run.cause.to_owned());
    let timeout_ms = u64::try_from(run.job.timeout.as_millis()).ok();
    let begun = tokio::task::spawn_blocking(move || {
        let shared = owner;
        let _one_writer = shared
            .job_index
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let now = shared.clock.now();
        for _ in 0..NUMBER_TRIES {
            let loaded = Index::load(&shared, &scope);
            let (mut index, revision) = loaded.map_err(BeginError::Journal)?;
            if rollout.is_none()
                && let Some(number) = index.busy(&job)
            {
                return Err(BeginError::Busy { job, number });
            }
            let (number, dropped) = index.add(&job);
            let record = RunRecord {
                number,
                instance: instance_id(&job, release, number),
                job: job.clone(),
                release,
                cause: cause.clone(),
                started_at: now,
                rollout,
                timeout_ms,
                ended_at: None,
                exit: None,
                timed_out: false,
                cancelled: false,
                last_line: None,
            };
            let mut changes = vec![index.put(&scope, revision), put(&scope, &record, Some(0))];
            let drop = |number| Change::delete(COLLECTION, &key(&scope, number), None);
            changes.extend(dropped.into_iter().map(drop));
            match shared.journal.change(&changes) {
                Ok(_) => return Ok(record),
                Err(PutError::Conflict(_)) => {}
                Err(error) => return Err(BeginError::Journal(chain(&error))),
            }
        }
        Err(BeginError::Journal("no number was free".to_owned()))
    });
    let begun = begun.await;
    begun.unwrap_or_else(|error| Err(BeginError::Journal(error.to_string())))
}

/// Runs a job to its end.
///
/// # Errors
/// A sentence, when it could not be begun, or another server has taken over.
pub async fn run(
    shared: &Arc<Shared>,
    run: Run<'_>,
    extra: BTreeMap<String, String>,
) -> Result<RunRecord, String> {
    let record = begin(shared, &run).await;
    let record = record.map_err(|error| error.to_string())?;
    finish(shared, &run, record, extra).await
}

/// Runs a job for the gate of a rollout. A gate that is judged again, because nobody recorded its verdict, takes up
/// the run it began or takes the pass it had.
///
/// # Errors
/// A sentence, when it could not be begun, or another server has taken over.
pub async fn run_for_gate(
    shared: &Arc<Shared>,
    run: Run<'_>,
    extra: BTreeMap<String, String>,
) -> Result<RunRecord, String> {
    let earlier = {
        let (owner, scope, job) = (Arc::clone(shared), run.scope.clone(), run.name.clone());
        let rollout = run.rollout;
        blocking(move || newest_of(&owner, &scope, &job, rollout)).await?
    };
    match earlier.filter(|earlier| !earlier.cancelled) {
        Some(open) if open.ended_at.is_none() => {
            let ended = supervise(shared, run.scope, open).await?;
            // One that was never started, or ended unseen, says nothing about the release.
            if !ended.cancelled && ended.exit != Some(Exit::Unknown) {
                return Ok(ended);
            }
        }
        Some(ended) if ended.verdict().is_ok() => return Ok(ended),
        Some(_) | None => {}
    }
    self::run(shared, run, extra).await
}

/// Starts a run that was begun, waits for its end and records it.
///
/// # Errors
/// A sentence, when another server has taken over: the end is that one's to record.
pub async fn finish(
    shared: &Arc<Shared>,
    run: &Run<'_>,
    record: RunRecord,
    extra: BTreeMap<String, String>,
) -> Result<RunRecord, String> {
    let id = reference(run.scope, &record);
    if let Some(store) = moving(shared, run) {
        let reason = BeginError::Switching(store).to_string();
        return close(shared, run.scope, record, Exit::NotStarted { reason }).await;
    }
    let is_container = run.job.container.is_some();
    let uses = &run.job.uses;
    let connections = stores::connections(shared, run.scope, run.body, uses, is_container).await;
    let spec = connections.and_then(|connections| {
        job_spec(shared, &id, run.body, run.name, run.job, connections, extra)
    });
    let failed = match spec {
        Err(reason) => Exit::NotStarted { reason },
        Ok(spec) => match shared.target.start(fence(shared, &record), &spec).await {
            Ok(_) => return supervise(shared, run.scope, record).await,
            Err(landfast_target::StartError::Stale(stale)) => {
                return Err(replaced(shared, &stale));
            }
            Err(error) => {
                let reason = chain(&error);
                // The order may have arrived all the same.
                let exit = match error.is_retryable() {
                    true => end(shared, run.scope, &record).await?,
                    false => Exit::Unknown,
                };
                if exit == Exit::Unknown {
                    Exit::NotStarted { reason }
                } else {
                    exit
                }
            }
        },
    };
    close(shared, run.scope, record, failed).await
}

/// Waits for the end of a run, ends it when its time is up, and records how it ended.
async fn supervise(
    shared: &Arc<Shared>,
    scope: &Scope,
    mut record: RunRecord,
) -> Result<RunRecord, String> {
    let id = reference(scope, &record);
    let waiting = until_ended(shared, &id);
    let waited = match record.timeout_ms.map(Duration::from_millis) {
        Some(whole) => {
            let passed = shared.clock.now().since(record.started_at);
            timeout(whole.saturating_sub(passed), waiting).await.ok()
        }
        None => Some(waiting.await),
    };
    let exit = match waited {
        // Whatever an earlier server ordered and the target has not seen yet must not begin now.
        Some(Exit::Unknown) => end(shared, scope, &record).await?,
        Some(exit) => exit,
        None => {
            record.timed_out = true;
            end(shared, scope, &record).await?
        }
    };
    close(shared, scope, record, exit).await
}

async fn until_ended(shared: &Shared, id: &InstanceRef) -> Exit {
    let mut wait = RETRY_FIRST;
    loop {
        match shared.target.wait(id).await {
            Ok(exit) => return exit,
            Err(error) => {
                tracing::warn!(instance = %id.instance, error = chain(&error), "a job run cannot be watched just now");
                sleep(wait).await;
                wait = (wait * 2).min(RETRY_MAX);
            }
        }
    }
}

/// Ends what runs of it. Fails only when another server has taken over.
async fn end(shared: &Shared, scope: &Scope, record: &RunRecord) -> Result<Exit, String> {
    let (id, fence) = (reference(scope, record), fence(shared, record));
    let mut wait = RETRY_FIRST;
    loop {
        match shared.target.stop(fence, &id, GRACE).await {
            Ok(exit) => return Ok(exit),
            Err(TargetError::Stale(stale)) => return Err(replaced(shared, &stale)),
            Err(error) => {
                tracing::warn!(instance = %id.instance, error = chain(&error), "a job run was not ended; trying again");
                sleep(wait).await;
                wait = (wait * 2).min(RETRY_MAX);
            }
        }
    }
}

/// Records how a run ended, however long the disk takes, and only then lets the target forget it.
async fn close(
    shared: &Arc<Shared>,
    scope: &Scope,
    mut record: RunRecord,
    exit: Exit,
) -> Result<RunRecord, String> {
    record.exit = Some(exit);
    record.ended_at = Some(shared.clock.now());
    if record.verdict().is_err() {
        record.last_line = logs::last_line(&shared.folders.logs(scope, &record.instance));
    }
    let record = loop {
        if let Some(reason) = shared.replaced.borrow().clone() {
            return Err(reason);
        }
        let (owner, scope, ended) = (Arc::clone(shared), scope.clone(), record.clone());
        match blocking(move || save_end(&owner, &scope, ended)).await {
            Ok(saved) => break saved,
            Err(error) => {
                tracing::warn!(job = %record.job, run = record.number, error, "the end of a job run was not recorded; trying again");
                sleep(DISK_RETRY).await;
            }
        }
    };
    if let Err(error) = shared.target.forget(&reference(scope, &record)).await {
        tracing::debug!(error = chain(&error), "the target keeps the run");
    }
    Ok(record)
}

/// Gives what is recorded: two may have waited for one end, and the first tells it.
fn save_end(shared: &Shared, scope: &Scope, mut record: RunRecord) -> Result<RunRecord, String> {
    let _one_writer = shared
        .job_index
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    let (mut index, revision) = Index::load(shared, scope)?;
    if let Some(known) = load(shared, scope, record.number) {
        if known.ended_at.is_some() {
            return Ok(known);
        }
        record.cancelled |= known.cancelled;
    }
    index.open.remove(&record.number);
    let changes = [index.put(scope, revision), put(scope, &record, None)];
    let changed = shared.journal.change(&changes);
    changed.map(|_| record).map_err(|error| chain(&error))
}

/// Ends the runs of gates that are not waited for any more: those of rollouts that `is_owed` does not name.
pub(crate) async fn cancel(
    shared: Arc<Shared>,
    scope: Scope,
    is_owed: impl Fn(RolloutId) -> bool + Send + 'static,
) {
    let cancelled = {
        let (shared, scope) = (Arc::clone(&shared), scope.clone());
        blocking(move || {
            let mut cancelled = Vec::new();
            for mut record in open(&shared, &scope)? {
                if record.rollout.is_some_and(|rollout| !is_owed(rollout)) {
                    record.cancelled = true;
                    // Where this is not recorded, its end will be all the same.
                    if let Err(error) = shared.journal.change(&[put(&scope, &record, None)]) {
                        tracing::warn!(error = chain(&error), "the journal took no record");
                    }
                    cancelled.push(record);
                }
            }
            Ok(cancelled)
        })
    };
    match cancelled.await {
        Ok(cancelled) => {
            for record in cancelled {
                tracing::info!(%scope, job = %record.job, run = record.number, "ended: its gate is not waited for any more");
                let ended = end(&shared, &scope, &record).await;
                let Ok(exit) = ended else { return };
                if let Err(reason) = close(&shared, &scope, record, exit).await {
                    tracing::debug!(reason, "the end is another server's to record");
                }
            }
        }
        Err(error) => tracing::warn!(%scope, error, "open job runs were not read"),
    }
}

/// The runs whose end is not recorded.
pub(crate) fn open(shared: &Shared, scope: &Scope) -> Result<Vec<RunRecord>, String> {
    let (index, _) = Index::load(shared, scope)?;
    let numbers = index.open.into_keys();
    Ok(numbers
        .filter_map(|number| load(shared, scope, number))
        .collect())
}

/// The numbers of the runs whose end is not recorded, each with its record where that can be read.
pub(crate) fn open_numbers(
    shared: &Shared,
    scope: &Scope,
) -> Result<Vec<(u64, Option<RunRecord>)>, String> {
    let (index, _) = Index::load(shared, scope)?;
    let read = |number| {
        let document = shared.journal.get(COLLECTION, &key(scope, number));
        let document = document.map_err(|error| chain(&error))?;
        Ok((number, document.as_ref().and_then(parse)))
    };
    index.open.into_keys().map(read).collect()
}

fn newest_of(
    shared: &Shared,
    scope: &Scope,
    job: &JobName,
    rollout: Option<RolloutId>,
) -> Result<Option<RunRecord>, String> {
    let (index, _) = Index::load(shared, scope)?;
    let numbers = index.kept.get(job).into_iter().flatten().rev();
    let mut records = numbers.filter_map(|number| load(shared, scope, *number));
    Ok(records.find(|record| record.rollout == rollout))
}

/// A run by its number.
pub fn load(shared: &Shared, scope: &Scope, number: u64) -> Option<RunRecord> {
    let document = shared.journal.get(COLLECTION, &key(scope, number)).ok()??;
    parse(&document)
}

fn parse(document: &Document) -> Option<RunRecord> {
    serde_json::from_slice(&document.body).ok()
}

fn put(scope: &Scope, record: &RunRecord, expected: Option<u64>) -> Change {
    let body = serde_json::to_vec(record).expect("a run has text keys");
    Change::put(COLLECTION, &key(scope, record.number), expected, body)
}

fn key(scope: &Scope, number: u64) -> String {
    format!("{scope}/{number:012}")
}

fn reference(scope: &Scope, record: &RunRecord) -> InstanceRef {
    InstanceRef {
        scope: scope.clone(),
        instance: record.instance.clone(),
    }
}

fn fence(shared: &Shared, record: &RunRecord) -> Fence {
    Fence {
        generation: shared.generation,
        revision: record.number,
    }
}

fn replaced(shared: &Shared, stale: &landfast_types::StaleFence) -> String {
    let reason = stale.to_string();
    shared.replaced.send_replace(Some(reason.clone()));
    reason
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(error.to_string()))
}

/// Jobs have ids of their own, so that a job and a service of one name never meet.
fn instance_id(job: &JobName, release: ReleaseId, number: u64) -> InstanceId {
    let mut name = format!("job-{job}");
    name.truncate(40);
    InstanceId::new(name.trim_end_matches('-'), release, number)
}

/// The release scheduled jobs run from: the one with most weight.
pub fn leading_release(state: &Environment) -> Option<ReleaseId> {
    let Some(rollout) = &state.rollout else {
        return state.serving;
    };
    match rollout.weights {
        Weights::NewOnly => Some(rollout.to),
        Weights::Split { new } if new > 50 => Some(rollout.to),
        Weights::ByCount => {
            let mut counts: BTreeMap<ReleaseId, usize> = BTreeMap::new();
            for instance in state
                .instances
                .values()
                .filter(|instance| instance.is_serving())
            {
                *counts.entry(instance.release).or_default() += 1;
            }
            counts
                .into_iter()
                .max_by_key(|(_, count)| *count)
                .map(|(release, _)| release)
        }
        Weights::OldOnly | Weights::Split { .. } => rollout.from.or(state.serving),
    }
}

/// Looks after the runs of one environment: takes up those that an earlier life of the server began, and runs
/// scheduled jobs when their time comes, one run of each at a time. Schedules follow the wall clock, set or not.
pub async fn schedule(shared: Arc<Shared>, mut views: watch::Receiver<Arc<View>>) {
    let scope = views.borrow().state.scope.clone();
    let mut runs: JoinSet<()> = JoinSet::new();
    let adopted = {
        let (shared, scope) = (Arc::clone(&shared), scope.clone());
        blocking(move || open(&shared, &scope)).await
    };
    let adopted = adopted.unwrap_or_else(|error| {
        tracing::error!(%scope, error, "open job runs were not read: nobody waits for them");
        Vec::new()
    });
    for record in adopted {
        // The run of a gate is its gate's.
        if record.rollout.is_none() {
            let (shared, scope) = (Arc::clone(&shared), scope.clone());
            runs.spawn(async move {
                let job = record.job.clone();
                tell(&job, supervise(&shared, &scope, record).await);
            });
        }
    }
    let mut from = shared.clock.wall();
    loop {
        let view = views.borrow_and_update().clone();
        let body = leading_release(&view.state).and_then(|release| view.bodies.get(&release));
        let body = body.filter(|_| !view.state.stopped).cloned();
        let now = shared.clock.wall();
        if from.since(now) > SET_BACK_MIN {
            from = now;
        }
        let jobs = body.iter().flat_map(|body| &body.spec.jobs);
        let due: Vec<_> = jobs
            .filter_map(|(name, job)| match &job.when {
                When::Cron { line } => Some((line.next_after(from)?, name.clone(), job.clone())),
                When::Gate { .. } | When::Hand => None,
            })
            .collect();
        let next = due.iter().map(|(at, ..)| *at).min();
        let wait = next.map_or(Duration::from_secs(3_600), |at| at.since(now));
        tokio::select! {
            changed = views.changed() => if changed.is_err() { return },
            Some(ended) = runs.join_next() => if let Err(error) = ended {
                tracing::error!(%scope, %error, "a job run is not waited for any more");
            },
            // Not for long: the wall clock may have been set meanwhile.
            () = tokio::time::sleep_until(instant_in(wait.min(Duration::from_secs(30)))) => {
                let now = shared.clock.wall();
                // What it wrote to the store that is left would be missing in the other one. It runs when that is over.
                if view.state.rollout.as_ref().is_some_and(|rollout| rollout.switching.is_some()) {
                    continue;
                }
                for (at, name, job) in due {
                    if at > now { continue; }
                    let Some(body) = body.clone() else { continue };
                    let (shared, scope) = (Arc::clone(&shared), scope.clone());
                    runs.spawn(async move {
                        let run = Run {
                            scope: &scope,
                            body: &body,
                            name: &name,
                            job: &job,
                            cause: "schedule",
                            rollout: None,
                        };
                        tell(&name, self::run(&shared, run, BTreeMap::new()).await);
                    });
                }
                from = from.max(now);
            }
        }
    }
}

fn tell(job: &JobName, ended: Result<RunRecord, String>) {
    match ended.and_then(|record| record.verdict()) {
        Ok(()) => tracing::debug!(%job, "a job has run"),
        Err(reason) => tracing::warn!(%job, reason, "a job failed"),
    }
}
