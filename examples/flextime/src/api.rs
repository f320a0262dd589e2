//! Constraints, evaluations and how they perform.

use std::{
    sync::{Arc, mpsc::TrySendError},
    time::{Duration, Instant},
};

use axum::{
    body::Bytes,
    extract::{Path, Query, State, rejection::QueryRejection},
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::{
    cache, clock,
    constraint::{Constraint, Draft, Rule},
    evaluate::{self, Finding, GivenUp},
    http::{App, Shared, json_response},
    problem::{FieldError, Problem},
    schedule::Schedule,
    store::{Created, Filter, HistoryRow},
};

const PAGE_DEFAULT: usize = 20;
const PAGE_MAX: usize = 100;
/// Constraints one request may be held against.
const CONSTRAINTS_MAX: usize = 1_000;

/// What a list may be asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListQuery {
    #[serde(rename = "type")]
    kind: Option<String>,
    sport: Option<String>,
    active: Option<bool>,
    limit: Option<usize>,
    cursor: Option<String>,
}

pub(crate) async fn list(
    State(app): Shared,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(query) = query.map_err(|error| bad_request(&error.body_text()))?;
    let limit = query.limit.unwrap_or(PAGE_DEFAULT);
    if !(1..=PAGE_MAX).contains(&limit) {
        return Err(bad_request(&format!("limit must be 1 to {PAGE_MAX}")));
    }
    let filter = Filter {
        kind: query.kind,
        sport: query.sport,
        active: query.active,
        after: query.cursor,
        // One more than asked for tells whether there is a next page.
        limit: limit + 1,
    };
    let mut items = app
        .blocking("list constraints", move |app| app.store.list(&filter))
        .await?;
    let more = items.len() > limit;
    items.truncate(limit);
    let next = items.last().filter(|_| more).map(|last| last.id.clone());
    Ok(json_response(
        StatusCode::OK,
        &json!({"items": items, "next_cursor": next}),
    ))
}

pub(crate) async fn read(State(app): Shared, Path(id): Path<String>) -> Result<Response, Problem> {
    let wanted = id.clone();
    let found = app
        .blocking("read a constraint", move |app| app.store.get(&wanted))
        .await?;
    let found = found.ok_or_else(|| Problem::not_found("constraint", &id))?;
    Ok(json_response(StatusCode::OK, &json!(found)))
}

pub(crate) async fn create(State(app): Shared, body: Bytes) -> Result<Response, Problem> {
    let draft: Draft = checked(&body, Draft::problems)?;
    let id = draft
        .id
        .clone()
        .unwrap_or_else(|| format!("con-{:016x}", rand::random::<u64>()));
    let now = clock::now();
    let new = draft.into_constraint(id.clone(), now, now);
    let (new, created) = app
        .blocking("create a constraint", move |app| {
            app.store.insert(&new).map(|created| (new, created))
        })
        .await?;
    match created {
        Created::Existed => Err(Problem::new(
            StatusCode::CONFLICT,
            "exists",
            format!("constraint `{id}` exists already"),
        )),
        Created::Yes => {
            let mut response = json_response(StatusCode::CREATED, &json!(new));
            let location = HeaderValue::from_str(&format!("/v2/constraints/{id}"))
                .expect("ids are plain ASCII");
            response.headers_mut().insert(header::LOCATION, location);
            Ok(response)
        }
    }
}

pub(crate) async fn replace(
    State(app): Shared,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Response, Problem> {
    let draft: Draft = checked(&body, Draft::problems)?;
    if draft.id.as_ref().is_some_and(|other| *other != id) {
        return Err(Problem::invalid(vec![FieldError::new(
            "/id",
            "differs from the id in the path",
        )]));
    }
    let now = clock::now();
    let new = draft.into_constraint(id.clone(), now, now);
    let stored = app
        .blocking("replace a constraint", move |app| app.store.replace(&new))
        .await?;
    let stored = stored.ok_or_else(|| Problem::not_found("constraint", &id))?;
    Ok(json_response(StatusCode::OK, &json!(stored)))
}

pub(crate) async fn delete(
    State(app): Shared,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let wanted = id.clone();
    match app
        .blocking("delete a constraint", move |app| app.store.delete(&wanted))
        .await?
    {
        true => Ok(StatusCode::NO_CONTENT.into_response()),
        false => Err(Problem::not_found("constraint", &id)),
    }
}

/// A schedule and the constraints it is held against: those named, or all active ones of its sport.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct EvaluateRequest {
    schedule: Schedule,
    constraints: Option<Vec<String>>,
}

/// What became of one constraint.
struct Outcome {
    constraint: Constraint,
    result: &'static str,
    finding: Option<Arc<Finding>>,
    cached: bool,
    time: Duration,
}

pub(crate) async fn evaluate(State(app): Shared, body: Bytes) -> Result<Response, Problem> {
    let started = clock::instant();
    let deadline = started + app.settings.evaluation_timeout;
    let (request, digest) = parsed(body).await?;
    let constraints = chosen(&app, &request).await?;
    let schedule = Arc::new(request.schedule);
    let mut waiting = Vec::with_capacity(constraints.len());
    for constraint in constraints {
        waiting.push(begin(&app, constraint, &schedule, &digest, deadline)?);
    }
    let mut outcomes = Vec::with_capacity(waiting.len());
    for one in waiting {
        outcomes.push(one.outcome(deadline).await);
    }
    report(&app, &schedule, &outcomes);
    Ok(json_response(
        StatusCode::OK,
        &answer(
            &schedule,
            &outcomes,
            clock::instant().duration_since(started),
        ),
    ))
}

/// Reads the request away from the threads that serve connections: a schedule may be megabytes.
async fn parsed(body: Bytes) -> Result<(EvaluateRequest, cache::Key), Problem> {
    let parse = move || {
        let request: EvaluateRequest = checked(&body, |request: &EvaluateRequest| {
            request.schedule.problems()
        })?;
        let digest = cache::schedule_digest(&request.schedule);
        Ok((request, digest))
    };
    match tokio::task::spawn_blocking(parse).await {
        Ok(result) => result,
        Err(error) => Err(Problem::internal("read the schedule", &error)),
    }
}

async fn chosen(app: &Arc<App>, request: &EvaluateRequest) -> Result<Vec<Constraint>, Problem> {
    let Some(ids) = request.constraints.clone() else {
        let sport = Some(request.schedule.sport.clone());
        let filter = Filter {
            sport,
            active: Some(true),
            limit: CONSTRAINTS_MAX,
            ..Filter::default()
        };
        return app
            .blocking("read constraints", move |app| app.store.list(&filter))
            .await;
    };
    if ids.len() > CONSTRAINTS_MAX {
        let detail = format!("must be at most {CONSTRAINTS_MAX}");
        return Err(Problem::invalid(vec![FieldError::new(
            "/constraints",
            detail,
        )]));
    }
    let read = move |app: &App| {
        ids.into_iter()
            .map(|id| Ok((app.store.get(&id)?, id)))
            .collect()
    };
    let found: Vec<(Option<Constraint>, String)> = app.blocking("read constraints", read).await?;
    let missing = found
        .iter()
        .enumerate()
        .filter(|(_, (found, _))| found.is_none());
    let missing: Vec<FieldError> = missing
        .map(|(index, (_, id))| {
            FieldError::new(
                format!("/constraints/{index}"),
                format!("`{id}` does not exist"),
            )
        })
        .collect();
    match missing.is_empty() {
        true => Ok(found.into_iter().filter_map(|(found, _)| found).collect()),
        false => Err(Problem::invalid(missing)),
    }
}

/// One evaluation on its way.
enum Waiting {
    Done(Outcome),
    Running(
        Constraint,
        oneshot::Receiver<(Result<Arc<Finding>, GivenUp>, Duration)>,
    ),
}

fn begin(
    app: &Arc<App>,
    constraint: Constraint,
    schedule: &Arc<Schedule>,
    digest: &cache::Key,
    deadline: Instant,
) -> Result<Waiting, Problem> {
    let done = |constraint, result, finding, cached| {
        Ok(Waiting::Done(Outcome {
            constraint,
            result,
            finding,
            cached,
            time: Duration::ZERO,
        }))
    };
    // Written by another release, perhaps, which knows more types.
    let Ok(rule) = Rule::read(&constraint.kind, &constraint.configuration) else {
        return done(constraint, "error", None, false);
    };
    let key = cache::key(digest, &rule);
    if let Some(finding) = app.cache.get(clock::instant(), &key) {
        return done(constraint, result_of(&finding), Some(finding), true);
    }
    let (answer, answered) = oneshot::channel();
    let (schedule, worker_app) = (Arc::clone(schedule), Arc::clone(app));
    let job = move || {
        let started = clock::instant();
        // Nobody waits for the answer any more when the client left.
        let give_up = || answer.is_closed() || clock::instant() >= deadline;
        let found = evaluate::evaluate(&rule, &schedule, &give_up).map(Arc::new);
        let now = clock::instant();
        if let Ok(finding) = &found {
            worker_app.cache.put(now, key, Arc::clone(finding));
        }
        drop(answer.send((found, now.duration_since(started))));
    };
    match app.workers.submit(job) {
        Ok(()) => Ok(Waiting::Running(constraint, answered)),
        Err(crate::workers::Busy) => Err(Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "busy",
            "too many evaluations wait for a worker; try again soon",
        )),
    }
}

impl Waiting {
    async fn outcome(self, deadline: Instant) -> Outcome {
        let (constraint, answered) = match self {
            Self::Done(outcome) => return outcome,
            Self::Running(constraint, answered) => (constraint, answered),
        };
        let failed = |constraint, result| Outcome {
            constraint,
            result,
            finding: None,
            cached: false,
            time: Duration::ZERO,
        };
        match tokio::time::timeout_at(deadline.into(), answered).await {
            Ok(Ok((Ok(finding), time))) => Outcome {
                constraint,
                result: result_of(&finding),
                finding: Some(finding),
                cached: false,
                time,
            },
            Ok(Ok((Err(GivenUp), _))) | Err(_) => failed(constraint, "timeout"),
            Ok(Err(_)) => failed(constraint, "error"),
        }
    }
}

const fn result_of(finding: &Finding) -> &'static str {
    if finding.violation_count == 0 {
        "satisfied"
    } else {
        "violated"
    }
}

/// Measures, records and streams.
fn report(app: &App, schedule: &Schedule, outcomes: &[Outcome]) {
    let now = clock::now();
    for outcome in outcomes {
        app.metrics
            .evaluated(&outcome.constraint.id, outcome.result, outcome.time);
        let result = json!({
            "schedule_id": schedule.id,
            "constraint_id": outcome.constraint.id,
            "type": outcome.constraint.kind,
            "result": outcome.result,
            "violation_count": outcome.finding.as_ref().map(|finding| finding.violation_count),
            "cached": outcome.cached,
            "at": now.to_string(),
        });
        app.events.publish(&result);
        if outcome.cached {
            continue;
        }
        let row = HistoryRow {
            constraint_id: outcome.constraint.id.clone(),
            slot_id: schedule.id.clone(),
            result: result.to_string(),
            evaluation_micros: i64::try_from(outcome.time.as_micros()).unwrap_or(i64::MAX),
            created_at: now,
        };
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) =
            app.history.try_send(row)
        {
            app.metrics
                .history_dropped
                .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }
}

fn answer(schedule: &Schedule, outcomes: &[Outcome], time: Duration) -> Value {
    let weight = |outcome: &&Outcome| outcome.constraint.priority.weight();
    let all: f64 = outcomes.iter().map(|outcome| weight(&outcome)).sum();
    let met: f64 = outcomes
        .iter()
        .filter(|outcome| outcome.result == "satisfied")
        .map(|o| weight(&o))
        .sum();
    let results: Vec<Value> = outcomes
        .iter()
        .map(|outcome| {
            json!({
                "constraint_id": outcome.constraint.id,
                "name": outcome.constraint.name,
                "type": outcome.constraint.kind,
                "priority": outcome.constraint.priority,
                "result": outcome.result,
                "cached": outcome.cached,
                "milliseconds": outcome.time.as_secs_f64() * 1e3,
                "finding": outcome.finding.as_deref(),
            })
        })
        .collect();
    json!({
        "schedule_id": schedule.id,
        "games": schedule.games.len(),
        "satisfied": outcomes.iter().all(|outcome| outcome.result == "satisfied"),
        // Of 100, each constraint weighing by its priority; nothing to check is nothing wrong.
        "score": if all > 0.0 { (100.0 * met / all).round() } else { 100.0 },
        "milliseconds": time.as_secs_f64() * 1e3,
        "results": results,
    })
}

pub(crate) async fn performance(State(app): Shared) -> Result<Response, Problem> {
    let history = app
        .blocking("count the history", |app| app.store.history_count())
        .await?;
    let totals = app.metrics.totals();
    let cache = app.cache.counts();
    let lookups = cache.hits + cache.misses;
    let milliseconds = |share| totals.quantile_seconds(share).map(|seconds| seconds * 1e3);
    let mean = |count: u64, sum: f64| {
        if count == 0 {
            0.0
        } else {
            sum * 1e3 / count as f64
        }
    };
    let busiest: Vec<Value> = app
        .metrics
        .busiest(10)
        .into_iter()
        .map(|(id, of)| {
            json!({"constraint_id": id, "evaluations": of.seconds.count, "results": of.results,
                   "mean_milliseconds": mean(of.seconds.count, of.seconds.sum)})
        })
        .collect();
    let body = json!({
        "version": app.release.version,
        "instance": app.settings.instance,
        "uptime_seconds": clock::instant().duration_since(app.started).as_secs(),
        "evaluations": {"total": totals.seconds.count, "results": totals.results, "history_rows": history},
        // Bounds of the buckets the quantiles lie in; null above the last.
        "milliseconds": {"mean": mean(totals.seconds.count, totals.seconds.sum), "p50": milliseconds(0.5),
                         "p95": milliseconds(0.95), "p99": milliseconds(0.99)},
        "cache": {"entries": cache.entries, "entries_max": app.cache.entries_max(), "hits": cache.hits, "misses": cache.misses,
                  "hit_rate": if lookups == 0 { 0.0 } else { cache.hits as f64 / lookups as f64 },
                  "ttl_seconds": app.settings.cache_ttl.as_secs()},
        "workers": {"max": app.workers.max(), "active": app.workers.active(), "queued": app.workers.queued()},
        "constraints": busiest,
    });
    Ok(json_response(StatusCode::OK, &body))
}

fn bad_request(detail: &str) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "bad-request", detail)
}

fn checked<T: DeserializeOwned>(
    body: &[u8],
    problems: impl Fn(&T) -> Vec<FieldError>,
) -> Result<T, Problem> {
    let value: T = serde_json::from_slice(body).map_err(|error| bad_request(&error.to_string()))?;
    match problems(&value) {
        errors if errors.is_empty() => Ok(value),
        errors => Err(Problem::invalid(errors)),
    }
}
