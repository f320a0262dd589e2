//! One environment: what it is, what it was, and what is done to it as a whole.

use axum::{
    extract::{Path, State},
    response::Response,
};
use http::{HeaderMap, StatusCode};
use landfast_api::{At, ProblemCode, ScaleAnswer, ScaleRequest, Trouble};
use landfast_engine::View;
use landfast_rollout::Input;
use landfast_types::{Scope, ServiceName};

use super::{InEnvironment, key, scope, upload::blocking};
use crate::{
    answer::{Answer, Failure, Json},
    certificates, events,
    idempotency::json_response,
    secrets_key,
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
    status.problems.extend(secret_troubles(state, scope).await?);
    let current = known(state, scope)?;
    status.stores = wire::stores(shared, &current);
    status.problems.extend(wire::store_troubles(&status.stores));
    let backups = shared.backups.of(scope);
    status.problems.extend(wire::backup_troubles(&backups, now));
    status.backups = backups
        .iter()
        .map(|view| wire::store_backups(view, now))
        .collect();
    status
        .problems
        .extend(backup_key_trouble(state, !backups.is_empty()).await?);
    fill_processes(state, scope, &mut status).await;
    tell_outages(shared, &current, &mut status);
    let journal = shared.journal.clone();
    let position = blocking(move || journal.last_position()).await?;
    status.sequence = position.unwrap_or(0);
    if let Some(rollout) = &mut status.rollout {
        rollout.sequence = status.sequence;
    }
    Ok(json_response(StatusCode::OK, &status))
}

/// A key of backups that nobody has a copy of.
async fn backup_key_trouble(state: &AppState, is_used: bool) -> Answer<Option<Trouble>> {
    if !is_used {
        return Ok(None);
    }
    let shared = std::sync::Arc::clone(state.platform.shared());
    let key = blocking(move || landfast_engine::backups::key(&shared)).await?;
    let key = key.map_err(Failure::internal)?;
    let unsafe_one = key.filter(|key| key.confirmed_at.is_none());
    Ok(unsafe_one.map(|key| Trouble {
        text: format!(
            "no copy of the backups' key {} is known: lost with this host, it takes every backup with it",
            key.id
        ),
        hint: Some("`landfast backup key export` prints it; `landfast backup key confirm` reads the copy back".to_owned()),
    }))
}

/// Versions that others serve for, and a key nobody has a copy of.
async fn secret_troubles(state: &AppState, scope: &Scope) -> Answer<Vec<Trouble>> {
    let view = state.platform.environment_or_empty(scope);
    let serving = view.state.serving.and_then(|id| view.bodies.get(&id));
    let Some(body) = serving.filter(|body| !body.secrets.is_empty()) else {
        return Ok(Vec::new());
    };
    let (shared, own, pinned) = (
        state.platform.shared().clone(),
        scope.clone(),
        body.secrets.clone(),
    );
    let replaced = blocking(move || shared.secrets.replaced(&shared.journal, &own, &pinned));
    let trouble = |(name, version, used): (String, u64, Option<u64>)| {
        let used = match used {
            Some(used) => format!("an instance that starts is given version {used}"),
            None => "no version is left, so no instance can start".to_owned(),
        };
        Trouble {
            text: format!(
                "release {} was made with version {version} of secret `{name}`, which was revoked: {used}",
                body.release
            ),
            hint: Some("`landfast deploy` makes a release with the newest".to_owned()),
        }
    };
    let mut troubles: Vec<_> = replaced.await??.into_iter().map(trouble).collect();
    troubles.extend(secrets_key::trouble(&key::describe(state).await?));
    Ok(troubles)
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

/// What runs containers and does not answer: what only it could tell is not known then. What our own probes see is.
fn tell_outages(
    shared: &landfast_engine::Shared,
    view: &View,
    status: &mut landfast_api::EnvironmentStatus,
) {
    let outages = shared.target.outages();
    let service = |release: u64, name: &str| {
        let body = view.bodies.get(&landfast_types::ReleaseId(release))?;
        let mut services = body.spec.services.iter();
        let (_, spec) = services.find(|(service, _)| service.as_str() == name)?;
        spec.container.is_some().then_some(spec)
    };
    let mut has_containers = false;
    for group in status.services.iter_mut().flat_map(|one| &mut one.groups) {
        for instance in &mut group.instances {
            let Some(spec) = service(instance.release, &instance.service) else {
                continue;
            };
            has_containers = true;
            let is_probed = matches!(
                spec.health.ready,
                landfast_spec::Probe::Http { .. } | landfast_spec::Probe::Tcp
            );
            if !outages.is_empty() && !is_probed {
                instance.state = landfast_api::InstanceState::Unknown;
            }
        }
    }
    if !has_containers {
        return;
    }
    let trouble = |outage: landfast_target::Outage| {
        Trouble {
        text: format!(
            "{} has not answered since {}: {}",
            outage.what,
            At(outage.since),
            outage.reason
        ),
        hint: Some(
            "containers that run keep their traffic; nothing is started, stopped or replaced until it answers".into(),
        ),
    }
    };
    status.problems.extend(outages.into_iter().map(trouble));
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
    let scaled = state
        .platform
        .scale(&scope, service.clone(), request.replicas);
    let view = scaled.await?;
    let shape = current(&view).and_then(|release| view.state.shape(release, &service));
    let answer = ScaleAnswer {
        service: service.to_string(),
        replicas: view.state.replicas(current(&view), &service),
        replicas_before,
        replicas_manifest: shape.map_or(0, |shape| shape.replicas),
    };
    Ok(json_response(StatusCode::OK, &answer))
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
