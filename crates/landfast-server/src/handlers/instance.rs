//! Instances: what they wrote, commands beside them, and runs of jobs.

use std::{convert::Infallible, time::Duration};

use axum::{
    body::Body,
    extract::{Path, Query, State},
    response::Response,
};
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use landfast_api::{
    At, ExecFrame, ExecRequest, JobRun, JobRunState, LogLine, LogQuery, LogStream, NDJSON,
    ProblemCode,
};
use landfast_engine::{
    RunError, View,
    jobs::{self, BeginError},
    logs::{Follower, Line, Wanted},
};
use landfast_shim::logs::LogStream as Wrote;
use landfast_target::{ExecOutput, Exit, InstanceRef, TargetError};
use landfast_types::{InstanceId, JobName, Scope};
use serde::Serialize;
use tokio::{sync::mpsc, time::sleep};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};

use super::{InEnvironment, environment::known, scope, upload::blocking};
use crate::{
    answer::{Answer, Failure, Json, chain},
    idempotency::{Key, json_response},
    state::{AppState, until_leaving},
};

const TAIL_DEFAULT: u32 = 100;
const TAIL_MAX: u32 = 10_000;
const LOOK_EVERY: Duration = Duration::from_millis(300);
const WAITING_MAX: usize = 16;

pub(crate) async fn logs(
    State(state): State<AppState>,
    Path((app, environment)): InEnvironment,
    Query(query): Query<LogQuery>,
) -> Answer<Response> {
    let scope = scope(&app, &environment)?;
    let view = known(&state, &scope)?;
    let folder = state.platform.shared().folders.logs_of(&scope);
    is_known(&view, &folder, &query)?;
    let wanted = Wanted {
        process: query.service.clone(),
        instance: query.instance.clone(),
    };
    let tail = query.tail.unwrap_or(TAIL_DEFAULT).min(TAIL_MAX) as usize;
    let begun = blocking(move || Follower::begin(folder, wanted, tail)).await?;
    let (follower, lines) = begun.map_err(|error| Failure::internal(chain(&error)))?;
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    let follow = query.follow;
    let owner = state.clone();
    state.spawn(async move {
        if send_lines(&sender, &lines).await.is_ok() && follow {
            follow_logs(owner, scope, query.instance, follower, sender).await;
        }
    });
    ndjson(receiver)
}

/// Refuses what never was here, instead of waiting for lines that cannot come.
fn is_known(view: &View, folder: &std::path::Path, query: &LogQuery) -> Answer<()> {
    if let Some(name) = &query.service {
        let specs = view.bodies.values().map(|body| &body.spec);
        let mut specs = specs.filter(|spec| {
            spec.services.keys().any(|service| service.as_str() == name)
                || spec.jobs.keys().any(|job| job.as_str() == name)
        });
        if specs.next().is_none() {
            let detail = format!("no release that is kept has a service or job `{name}`");
            return Err(Failure::new(ProblemCode::ServiceUnknown, detail));
        }
    }
    if let Some(id) = &query.instance {
        let runs = view
            .state
            .instances
            .values()
            .any(|running| running.id.as_str() == id);
        if !runs
            && !folder.join(id).exists()
            && run_number(id).is_none_or(|_| !id.starts_with("job-"))
        {
            let detail = format!("`{id}` does not run, and nothing it wrote is kept");
            return Err(Failure::new(ProblemCode::InstanceUnknown, detail));
        }
    }
    Ok(())
}

/// Sends lines as they come. Those of one run of a job end with the run.
async fn follow_logs(
    state: AppState,
    scope: Scope,
    instance: Option<String>,
    mut follower: Follower,
    sender: mpsc::Sender<Bytes>,
) {
    let mut leaving = state.leaving.clone();
    let run = instance.and_then(|instance| {
        let number = run_number(&instance)?;
        Some((scope, instance, number))
    });
    loop {
        tokio::select! {
            () = until_leaving(&mut leaving) => return,
            () = sender.closed() => return,
            () = sleep(LOOK_EVERY) => {}
        }
        let (shared, run) = (state.platform.shared().clone(), run.clone());
        let read = tokio::task::spawn_blocking(move || {
            // Looked up before the lines are read: what it wrote before its end is among them.
            let has_ended = run.is_some_and(|(scope, instance, number)| {
                jobs::load(&shared, &scope, number).is_some_and(|record| {
                    record.instance.as_str() == instance && record.ended_at.is_some()
                })
            });
            let lines = follower.more();
            (follower, lines, has_ended)
        });
        let Ok((back, Ok(lines), has_ended)) = read.await else {
            return;
        };
        follower = back;
        if send_lines(&sender, &lines).await.is_err() || has_ended {
            return;
        }
    }
}

async fn send_lines(
    sender: &mpsc::Sender<Bytes>,
    lines: &[Line],
) -> Result<(), mpsc::error::SendError<Bytes>> {
    for lines in lines.chunks(256) {
        let mut text = Vec::new();
        for line in lines {
            let stream = match line.stream {
                Wrote::Stdout => LogStream::Stdout,
                Wrote::Stderr => LogStream::Stderr,
                Wrote::Shim => LogStream::Landfast,
            };
            let wire = LogLine {
                at: At(line.at),
                instance: line.instance.to_string(),
                stream,
                line: line.text.clone(),
            };
            push_line(&mut text, &wire);
        }
        sender.send(Bytes::from(text)).await?;
    }
    Ok(())
}

pub(super) fn push_line<T: Serialize>(text: &mut Vec<u8>, value: &T) {
    serde_json::to_writer(&mut *text, value).expect("wire types have text keys");
    text.push(b'\n');
}

pub(super) fn ndjson(receiver: mpsc::Receiver<Bytes>) -> Answer<Response> {
    let body = Body::from_stream(ReceiverStream::new(receiver).map(Ok::<Bytes, Infallible>));
    let response = Response::builder()
        .header(header::CONTENT_TYPE, NDJSON)
        .body(body);
    response.map_err(|error| Failure::internal(error.to_string()))
}

pub(crate) async fn exec(
    State(state): State<AppState>,
    Path((app, environment)): InEnvironment,
    Json(request): Json<ExecRequest>,
) -> Answer<Response> {
    let scope = scope(&app, &environment)?;
    let view = known(&state, &scope)?;
    if request.command.is_empty() {
        return Err(Failure::new(
            ProblemCode::RequestInvalid,
            "`command` is empty",
        ));
    }
    let running = view.state.instances.values();
    let chosen = match (&request.instance, &request.service) {
        (Some(id), _) => running
            .into_iter()
            .find(|instance| instance.id.as_str() == id),
        (None, Some(service)) => {
            let of_service = running.filter(|instance| instance.service.as_str() == service);
            of_service.max_by_key(|instance| (instance.is_serving(), instance.release))
        }
        (None, None) => running.max_by_key(|instance| (instance.is_serving(), instance.release)),
    };
    let id: InstanceId = chosen.map(|instance| instance.id.clone()).ok_or_else(|| {
        let asked = request
            .instance
            .as_deref()
            .or(request.service.as_deref())
            .unwrap_or("any");
        Failure::new(
            ProblemCode::InstanceUnknown,
            format!("no instance of `{asked}` runs"),
        )
    })?;
    let reference = InstanceRef {
        scope,
        instance: id.clone(),
    };
    let target = state.platform.shared().target.clone();
    let output = target
        .exec(&reference, request.command, request.stdin)
        .await;
    let mut output = output.map_err(|error| {
        let code = match &error {
            TargetError::CommandMissing { .. } => ProblemCode::CommandMissing,
            TargetError::NoSuchInstance(_) => ProblemCode::InstanceUnknown,
            TargetError::Stale(_) | TargetError::Io { .. } => ProblemCode::Internal,
        };
        Failure::new(code, chain(&error))
    })?;
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    state.spawn(async move {
        let mut frames = vec![ExecFrame::Started {
            instance: id.to_string(),
        }];
        loop {
            let mut text = Vec::new();
            frames
                .drain(..)
                .for_each(|frame| push_line(&mut text, &frame));
            // A reader that is gone ends the command: its output is dropped with `output`.
            if sender.send(Bytes::from(text)).await.is_err() {
                return;
            }
            let next = tokio::select! {
                next = output.recv() => next,
                () = sender.closed() => return,
            };
            match next {
                Some(ExecOutput::Stdout(bytes)) => frames.push(ExecFrame::Stdout { bytes }),
                Some(ExecOutput::Stderr(bytes)) => frames.push(ExecFrame::Stderr { bytes }),
                Some(ExecOutput::Exited(exit)) => {
                    let code = exit_code(&exit);
                    let mut text = Vec::new();
                    push_line(
                        &mut text,
                        &ExecFrame::Exit {
                            code,
                            text: exit.to_string(),
                        },
                    );
                    drop(sender.send(Bytes::from(text)).await);
                    return;
                }
                None => {
                    let mut text = Vec::new();
                    let reason = "the instance ended".to_owned();
                    push_line(&mut text, &ExecFrame::Failed { reason });
                    drop(sender.send(Bytes::from(text)).await);
                    return;
                }
            }
        }
    });
    ndjson(receiver)
}

fn exit_code(exit: &Exit) -> Option<i32> {
    match exit {
        Exit::Code { code } => Some(*code),
        Exit::Signal { .. }
        | Exit::OutOfMemory { .. }
        | Exit::NotStarted { .. }
        | Exit::Unknown => None,
    }
}

pub(crate) async fn run_job(
    State(state): State<AppState>,
    Path((app, environment, job)): Path<(String, String, String)>,
    headers: HeaderMap,
) -> Answer<Response> {
    let scope = scope(&app, &environment)?;
    let view = known(&state, &scope)?;
    let key = Key::of(&headers, &format!("run {scope} {job}"), &[])?;
    let journal = state.platform.shared().journal.clone();
    if let Some(key) = &key
        && let Some(earlier) = key.earlier(&journal)?
    {
        return Ok(earlier);
    }
    let release = jobs::leading_release(&view.state);
    let spec = release
        .and_then(|release| view.bodies.get(&release))
        .map(|body| &body.spec);
    let name = JobName::new(&job).ok();
    let known = name.filter(|name| spec.is_some_and(|spec| spec.jobs.contains_key(name)));
    let Some(name) = known else {
        let detail = format!("the release that serves has no job `{job}`");
        return Err(Failure::new(ProblemCode::JobUnknown, detail));
    };
    let record = state
        .platform
        .run_job(&scope, &name)
        .await
        .map_err(|error| match error {
            RunError::Unknown(_) => Failure::new(ProblemCode::JobUnknown, error.to_string()),
            RunError::Switching(_)
            | RunError::Begin(BeginError::Busy { .. } | BeginError::Switching(_)) => {
                Failure::new(ProblemCode::NotNow, error.to_string())
            }
            RunError::Begin(BeginError::Journal(reason)) => Failure::internal(reason),
        })?;
    let run = wire_run(&record);
    if let Some(key) = &key {
        key.keep(&journal, StatusCode::ACCEPTED.as_u16(), &run);
    }
    Ok(json_response(StatusCode::ACCEPTED, &run))
}

pub(crate) async fn job_run(
    State(state): State<AppState>,
    Path((app, environment, job, run)): Path<(String, String, String, String)>,
) -> Answer<Response> {
    let scope = scope(&app, &environment)?;
    let number = run_number(&run);
    let shared = state.platform.shared().clone();
    let found = blocking(move || number.and_then(|number| jobs::load(&shared, &scope, number)));
    let found = found.await?.filter(|record| record.job.as_str() == job);
    let record = found.ok_or_else(|| {
        Failure::new(
            ProblemCode::RunUnknown,
            format!("job `{job}` has no run `{run}`"),
        )
    })?;
    Ok(json_response(StatusCode::OK, &wire_run(&record)))
}

/// The number of a run from its instance: `job-smoke.r3.17`.
fn run_number(instance: &str) -> Option<u64> {
    instance.rsplit('.').next()?.parse().ok()
}

fn wire_run(record: &jobs::RunRecord) -> JobRun {
    let state = match (&record.exit, record.verdict()) {
        (None, _) => JobRunState::Running,
        (Some(_), Ok(())) => JobRunState::Succeeded,
        (Some(_), Err(_)) => JobRunState::Failed,
    };
    let timed_out = if record.timed_out {
        " after its timeout"
    } else {
        ""
    };
    JobRun {
        run: record.instance.to_string(),
        job: record.job.to_string(),
        release: record.release.0,
        state,
        started_at: At(record.started_at),
        ended_at: record.ended_at.map(At),
        exit: record
            .exit
            .as_ref()
            .map(|exit| format!("{exit}{timed_out}")),
        exit_code: record.exit.as_ref().and_then(exit_code),
    }
}
