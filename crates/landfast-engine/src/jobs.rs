//! Runs of jobs: by a gate, by hand, by the clock. Each run has a number, a record in the journal and its own log.
//!
//! The record is written before the job starts. A run that was under way when the server died is found again by
//! its number: the target still has it, or says that nobody saw how it ended.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use landfast_journal::{Document, PutError};
use landfast_rollout::{Environment, Weights};
use landfast_spec::{JobSpec, When};
use landfast_target::{Exit, InstanceRef};
use landfast_types::{Fence, InstanceId, JobName, ReleaseId, Scope, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, task::JoinSet, time::timeout};

use crate::{
    actions::{chain, instant_in},
    driver::View,
    logs,
    release::ReleaseBody,
    shared::Shared,
    spec::job_spec,
};

const COLLECTION: &str = "job-runs";
const NUMBER_TRIES: u32 = 20;
/// Between SIGTERM and SIGKILL of a job that took too long.
const GRACE: Duration = Duration::from_secs(10);

/// What is to be run.
pub struct Run<'a> {
    pub scope: &'a Scope,
    pub body: &'a ReleaseBody,
    pub name: &'a JobName,
    pub job: &'a JobSpec,
    /// For people: `by hand`, `smoke gate`, the cron line.
    pub cause: &'a str,
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
    pub ended_at: Option<Timestamp>,
    #[serde(default)]
    pub exit: Option<Exit>,
    /// It was ended because it took longer than its `timeout`.
    #[serde(default)]
    pub timed_out: bool,
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

/// Begins a run: gives it a number and records it.
///
/// # Errors
/// A sentence, when the journal does not take it.
pub async fn begin(shared: &Arc<Shared>, run: &Run<'_>) -> Result<RunRecord, String> {
    let shared = Arc::clone(shared);
    let (scope, release) = (run.scope.clone(), run.body.release);
    let (job, cause) = (run.name.clone(), run.cause.to_owned());
    let numbered = tokio::task::spawn_blocking(move || {
        let now = shared.clock.now();
        for _ in 0..NUMBER_TRIES {
            let number = next_number(&shared, &scope)?;
            let record = RunRecord {
                number,
                instance: instance_id(&job, release, number),
                job: job.clone(),
                release,
                cause: cause.clone(),
                started_at: now,
                ended_at: None,
                exit: None,
                timed_out: false,
                last_line: None,
            };
            match save(&shared, &scope, &record, Some(0)) {
                Ok(()) => return Ok(record),
                Err(PutError::Conflict(_)) => {}
                Err(error) => return Err(chain(&error)),
            }
        }
        Err("no number was free for the run".to_owned())
    });
    numbered
        .await
        .unwrap_or_else(|error| Err(error.to_string()))
}

/// Runs a job to its end.
///
/// # Errors
/// A sentence, when it could not be run at all.
pub async fn run(
    shared: &Arc<Shared>,
    run: Run<'_>,
    extra: BTreeMap<String, String>,
) -> Result<RunRecord, String> {
    let record = begin(shared, &run).await?;
    finish(shared, &run, record, extra).await
}

/// Starts a run that was begun, waits for its end and records it.
///
/// # Errors
/// A sentence, when it could not be run at all.
pub async fn finish(
    shared: &Arc<Shared>,
    run: &Run<'_>,
    mut record: RunRecord,
    extra: BTreeMap<String, String>,
) -> Result<RunRecord, String> {
    let id = InstanceRef {
        scope: run.scope.clone(),
        instance: record.instance.clone(),
    };
    let spec = job_spec(shared, &id, run.body, run.name, run.job, extra)?;
    let fence = Fence {
        generation: shared.generation,
        revision: record.number,
    };
    let exit = match shared.target.start(fence, &spec).await {
        Ok(_) => match timeout(run.job.timeout, shared.target.wait(&id)).await {
            Ok(exit) => exit.map_err(|error| chain(&error))?,
            Err(_) => {
                record.timed_out = true;
                let stopped = shared.target.stop(fence, &id, GRACE).await;
                stopped.map_err(|error| chain(&error))?
            }
        },
        Err(error) => Exit::NotStarted {
            reason: chain(&error),
        },
    };
    record.exit = Some(exit);
    record.ended_at = Some(shared.clock.now());
    if record.verdict().is_err() {
        record.last_line = logs::last_line(&spec.log_folder);
    }
    let (owner, scope, kept) = (Arc::clone(shared), run.scope.clone(), record.clone());
    let saved = tokio::task::spawn_blocking(move || save(&owner, &scope, &kept, None)).await;
    if let Ok(Err(error)) = saved {
        tracing::warn!(
            error = chain(&error),
            "the end of a job run was not recorded"
        );
    }
    if let Err(error) = shared.target.forget(&id).await {
        tracing::debug!(error = chain(&error), "the target keeps the run");
    }
    Ok(record)
}

/// A run by its number.
pub fn load(shared: &Shared, scope: &Scope, number: u64) -> Option<RunRecord> {
    let document = shared.journal.get(COLLECTION, &key(scope, number)).ok()??;
    parse(&document)
}

fn parse(document: &Document) -> Option<RunRecord> {
    serde_json::from_slice(&document.body).ok()
}

fn save(
    shared: &Shared,
    scope: &Scope,
    record: &RunRecord,
    expected: Option<u64>,
) -> Result<(), PutError> {
    let body = serde_json::to_vec(record).expect("a run has text keys");
    shared
        .journal
        .put(COLLECTION, &key(scope, record.number), expected, body)?;
    Ok(())
}

fn key(scope: &Scope, number: u64) -> String {
    format!("{scope}/{number:012}")
}

fn next_number(shared: &Shared, scope: &Scope) -> Result<u64, String> {
    const PAGE: usize = 1_000;
    let prefix = format!("{scope}/");
    let mut after = prefix.clone();
    let mut last = 0;
    loop {
        let page = shared.journal.list(COLLECTION, Some(&after), PAGE);
        let page = page.map_err(|error| chain(&error))?;
        let own: Vec<&Document> = page
            .iter()
            .take_while(|document| document.key.starts_with(&prefix))
            .collect();
        if let Some(document) = own.last() {
            last = document.key[prefix.len()..].parse::<u64>().unwrap_or(last);
            after.clone_from(&document.key);
        }
        if own.len() < PAGE {
            return Ok(last + 1);
        }
    }
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

/// Runs scheduled jobs of one environment when their time comes, one run of each at a time.
pub async fn schedule(shared: Arc<Shared>, mut views: watch::Receiver<Arc<View>>) {
    let mut runs: JoinSet<JobName> = JoinSet::new();
    let mut busy: Vec<JobName> = Vec::new();
    let mut from = shared.clock.now();
    loop {
        let view = views.borrow_and_update().clone();
        let body = leading_release(&view.state).and_then(|release| view.bodies.get(&release));
        let body = body.filter(|_| !view.state.stopped).cloned();
        let jobs = body.iter().flat_map(|body| &body.spec.jobs);
        let due: Vec<_> = jobs
            .filter_map(|(name, job)| match &job.when {
                When::Cron { line } => Some((line.next_after(from)?, name.clone(), job.clone())),
                When::Gate { .. } | When::Hand => None,
            })
            .collect();
        let next = due.iter().map(|(at, ..)| *at).min();
        let now = shared.clock.now();
        let wait = next.map_or(Duration::from_secs(3_600), |at| at.since(now));
        tokio::select! {
            changed = views.changed() => if changed.is_err() { return },
            Some(ended) = runs.join_next() => {
                if let Ok(name) = ended { busy.retain(|other| *other != name); }
            }
            () = tokio::time::sleep_until(instant_in(wait.min(Duration::from_secs(60)))) => {
                let now = shared.clock.now();
                for (at, name, job) in due {
                    if at > now { continue; }
                    if busy.contains(&name) {
                        tracing::warn!(job = %name, "skipped: the run before has not ended");
                        continue;
                    }
                    let Some(body) = body.clone() else { continue };
                    busy.push(name.clone());
                    let (shared, scope) = (Arc::clone(&shared), view.state.scope.clone());
                    runs.spawn(async move {
                        let cause = "schedule";
                        let run = Run { scope: &scope, body: &body, name: &name, job: &job, cause };
                        match self::run(&shared, run, BTreeMap::new()).await {
                            Ok(record) => if let Err(reason) = record.verdict() {
                                tracing::warn!(job = %name, reason, "a scheduled job failed");
                            },
                            Err(error) => tracing::warn!(job = %name, error, "a scheduled job did not run"),
                        }
                        name
                    });
                }
                from = now;
            }
        }
    }
}
