//! One environment: what it is, what it was, and what is done to it as a whole.

use std::collections::BTreeSet;

use axum::{
    extract::{Path, State},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use landfast_api::{At, ProblemCode, ScaleAnswer, ScaleRequest, Secret as WireSecret, SecretList};
use landfast_engine::{SecretFacts, View};
use landfast_rollout::Input;
use landfast_types::{Scope, Secret, ServiceName};

use super::{InEnvironment, scope, upload::blocking};
use crate::{
    answer::{Answer, Failure, Json},
    certificates, events,
    idempotency::json_response,
    state::AppState,
    wire,
};

pub(crate) async fn status(
    State(state): State<AppState>,
    Path((app, environment)): InEnvironment,
) -> Answer<Response> {
    let scope = scope(&app, &environment)?;
    answer_status(&state, &scope).await
}

async fn answer_status(state: &AppState, scope: &Scope) -> Answer<Response> {
    let view = known(state, scope)?;
    let shared = state.platform.shared();
    let proxy = shared.hub.status().await.ok();
    let now = shared.clock.now();
    let folders = shared.folders.clone();
    let mut status =
        blocking(move || wire::environment_status(&view, &folders, proxy.as_ref(), now)).await?;
    let hosts = status
        .routes
        .iter()
        .map(|route| route.host.clone())
        .collect();
    let troubles = certificates::troubles(&state.certificates, &hosts);
    status.problems.extend(troubles);
    fill_processes(state, scope, &mut status).await;
    let journal = shared.journal.clone();
    let position = blocking(move || journal.last_position()).await?;
    status.sequence = position.unwrap_or(0);
    if let Some(rollout) = &mut status.rollout {
        rollout.sequence = status.sequence;
    }
    Ok(json_response(StatusCode::OK, &status))
}

/// Process ids and memory, which only the target and the kernel know.
async fn fill_processes(
    state: &AppState,
    scope: &Scope,
    status: &mut landfast_api::EnvironmentStatus,
) {
    let Ok(observed) = state.platform.shared().target.list().await else {
        return;
    };
    let of_scope = observed
        .into_iter()
        .filter(|observed| observed.id.scope == *scope);
    let mut running: std::collections::BTreeMap<String, landfast_target::Observed> = of_scope
        .filter(|observed| observed.pid.is_some())
        .map(|observed| (observed.id.instance.to_string(), observed))
        .collect();
    for service in &mut status.services {
        let instances = service
            .groups
            .iter_mut()
            .flat_map(|group| &mut group.instances);
        let mut own = Vec::new();
        for instance in instances {
            let Some(observed) = running.remove(&instance.id) else {
                continue;
            };
            instance.pid = observed.pid;
            instance.memory_bytes = instance.pid.and_then(resident_bytes);
            own.push(observed);
        }
        let newest = own.into_iter().max_by_key(|observed| observed.started_at);
        service.protections = newest.map_or_else(Vec::new, |observed| {
            wire::protections(&observed.protections)
        });
    }
}

fn resident_bytes(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes = line
        .trim()
        .strip_suffix(" kB")?
        .trim()
        .parse::<u64>()
        .ok()?;
    Some(kibibytes << 10)
}

pub(crate) async fn history(
    State(state): State<AppState>,
    Path((app, environment)): InEnvironment,
) -> Answer<Response> {
    let view = known(&state, &scope(&app, &environment)?)?;
    let folders = state.platform.shared().folders.clone();
    let history = blocking(move || wire::history(&view, &folders)).await?;
    Ok(json_response(StatusCode::OK, &history))
}

pub(crate) async fn events(
    State(state): State<AppState>,
    Path((app, environment)): InEnvironment,
    headers: HeaderMap,
) -> Answer<Response> {
    let scope = scope(&app, &environment)?;
    events::stream(state, &headers, Some(scope)).await
}

pub(crate) async fn stop(
    State(state): State<AppState>,
    Path((app, environment)): InEnvironment,
) -> Answer<Response> {
    let scope = scope(&app, &environment)?;
    state.platform.command(&scope, Input::Stop).await?;
    answer_status(&state, &scope).await
}

pub(crate) async fn start(
    State(state): State<AppState>,
    Path((app, environment)): InEnvironment,
) -> Answer<Response> {
    let scope = scope(&app, &environment)?;
    state.platform.command(&scope, Input::Start).await?;
    answer_status(&state, &scope).await
}

/// As many as `replicas` in the manifest may be.
const REPLICAS_MAX: u32 = 500;

pub(crate) async fn scale(
    State(state): State<AppState>,
    Path((app, environment)): InEnvironment,
    Json(request): Json<ScaleRequest>,
) -> Answer<Response> {
    let scope = scope(&app, &environment)?;
    let service: ServiceName = request
        .service
        .parse()
        .map_err(|error| Failure::new(ProblemCode::RequestInvalid, format!("{error}")))?;
    if let Some(replicas) = request.replicas.filter(|replicas| *replicas > REPLICAS_MAX) {
        let detail = format!("{replicas} instances of `{service}`; the most is {REPLICAS_MAX}");
        return Err(Failure::new(ProblemCode::RequestInvalid, detail));
    }
    let current = |view: &View| {
        view.state
            .rollout
            .as_ref()
            .map(|r| r.to)
            .or(view.state.serving)
    };
    let before = known(&state, &scope)?;
    let replicas_before = before.state.replicas(current(&before), &service);
    let input = Input::Scale {
        service: service.clone(),
        replicas: request.replicas,
    };
    let view = state.platform.command(&scope, input).await?;
    let shape = current(&view).and_then(|release| view.state.shape(release, &service));
    let answer = ScaleAnswer {
        service: service.to_string(),
        replicas: view.state.replicas(current(&view), &service),
        replicas_before,
        replicas_manifest: shape.map_or(0, |shape| shape.replicas),
    };
    Ok(json_response(StatusCode::OK, &answer))
}

pub(crate) async fn secrets(
    State(state): State<AppState>,
    Path((app, environment)): InEnvironment,
) -> Answer<Response> {
    let scope = scope(&app, &environment)?;
    let pinned = pinned(&state, &scope);
    let secrets = list(&state, &scope).await?;
    let secrets = secrets
        .into_iter()
        .map(|facts| wire_secret(facts, &pinned))
        .collect();
    Ok(json_response(StatusCode::OK, &SecretList { secrets }))
}

pub(crate) async fn secret(
    State(state): State<AppState>,
    Path((app, environment, name)): Path<(String, String, String)>,
) -> Answer<Response> {
    let scope = scope(&app, &environment)?;
    let pinned = pinned(&state, &scope);
    let found = list(&state, &scope)
        .await?
        .into_iter()
        .find(|facts| facts.name == name);
    let facts = found.ok_or_else(|| {
        Failure::new(
            ProblemCode::SecretUnknown,
            format!("there is no secret `{name}`"),
        )
    })?;
    Ok(json_response(StatusCode::OK, &wire_secret(facts, &pinned)))
}

pub(crate) async fn set_secret(
    State(state): State<AppState>,
    Path((app, environment, name)): Path<(String, String, String)>,
    body: Bytes,
) -> Answer<Response> {
    let scope = scope(&app, &environment)?;
    if landfast_spec::is_reserved_variable(&name) {
        return Err(Failure::new(
            ProblemCode::RequestInvalid,
            format!("`{name}` is set by Landfast for each instance; choose another name"),
        ));
    }
    let value = String::from_utf8(body.to_vec()).map_err(|_| {
        Failure::new(
            ProblemCode::RequestInvalid,
            "a secret's value must be UTF-8",
        )
    })?;
    let value = Secret::new(value);
    let bodies = state.platform.environment_or_empty(&scope);
    let kept = bodies
        .bodies
        .values()
        .filter_map(|body| body.secrets.get(&name).copied());
    let in_use: BTreeSet<u64> = kept.collect();
    let shared = state.platform.shared().clone();
    let (own, secret_name) = (scope.clone(), name.clone());
    blocking(move || {
        let now = shared.clock.now();
        shared
            .secrets
            .set(&shared.journal, now, &own, &secret_name, &value, &in_use)
    })
    .await??;
    secret(State(state), Path((app, environment, name))).await
}

pub(crate) async fn remove_secret(
    State(state): State<AppState>,
    Path((app, environment, name)): Path<(String, String, String)>,
) -> Answer<Response> {
    let scope = scope(&app, &environment)?;
    let shared = state.platform.shared().clone();
    blocking(move || shared.secrets.remove(&shared.journal, &scope, &name)).await??;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn list(state: &AppState, scope: &Scope) -> Answer<Vec<SecretFacts>> {
    let (shared, scope) = (state.platform.shared().clone(), scope.clone());
    Ok(blocking(move || shared.secrets.list(&shared.journal, &scope)).await??)
}

/// The versions the serving release was made with.
fn pinned(state: &AppState, scope: &Scope) -> std::collections::BTreeMap<String, u64> {
    let view = state.platform.environment_or_empty(scope);
    let body = view
        .state
        .serving
        .and_then(|release| view.bodies.get(&release));
    body.map(|body| body.secrets.clone()).unwrap_or_default()
}

fn wire_secret(facts: SecretFacts, pinned: &std::collections::BTreeMap<String, u64>) -> WireSecret {
    WireSecret {
        pinned: pinned.get(&facts.name).copied(),
        name: facts.name,
        version: facts.version,
        set_at: At(facts.created_at),
        versions: facts.versions as u32,
    }
}

/// An environment something was deployed to.
pub(crate) fn known(state: &AppState, scope: &Scope) -> Answer<std::sync::Arc<View>> {
    if let Some(trouble) = state.platform.trouble(scope) {
        return Err(Failure::new(ProblemCode::Internal, trouble));
    }
    state.platform.environment(scope).ok_or_else(|| {
        let detail = format!("nothing was ever deployed to `{scope}` on this host");
        Failure::new(ProblemCode::EnvironmentUnknown, detail)
    })
}
