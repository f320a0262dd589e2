//! Data stores of an environment.

use std::time::Duration;

use axum::{
    Extension,
    extract::{Path, State},
    response::Response,
};
use http::{HeaderMap, StatusCode};
use landfast_api::{
    Problem, ProblemCode, StoreConnection, StoreDeleteRequest, StoreList, StoreRotateRequest,
    StoreSwitchPlan, StoreSwitchRequest, StoreSwitched,
};
use landfast_datastore::{DELAY_DEFAULT, Input};
use landfast_engine::{RotateError, SwitchOrder, SwitchPlan, View, stores};
use landfast_types::{Scope, StoreName};

use super::{InEnvironment, actor, environment::known, rollout::current, scope, secret::unstored};
use crate::{
    answer::{Answer, Failure, Json},
    idempotency::json_response,
    state::{AppState, Transport},
    wire,
};

/// The longest a deleted store is kept.
const DELAY_MAX: Duration = Duration::from_secs(365 * 24 * 3_600);

pub(super) type InStore = Path<(String, String, String)>;

pub(crate) async fn list(
    State(state): State<AppState>,
    Path((app, environment)): InEnvironment,
) -> Answer<Response> {
    let scope = scope(&app, &environment)?;
    let view = known(&state, &scope)?;
    let stores = wire::stores(state.platform.shared(), &view);
    Ok(json_response(StatusCode::OK, &StoreList { stores }))
}

pub(crate) async fn one(
    State(state): State<AppState>,
    Path((app, environment, store)): InStore,
) -> Answer<Response> {
    let (scope, name) = named(&app, &environment, &store)?;
    answer(&state, &scope, &name, StatusCode::OK)
}

pub(crate) async fn connection(
    State(state): State<AppState>,
    Extension(transport): Extension<Transport>,
    headers: HeaderMap,
    Path((app, environment, store)): InStore,
) -> Answer<Response> {
    transport.may_see_secrets()?;
    let (scope, name) = named(&app, &environment, &store)?;
    let shared = state.platform.shared();
    let asked = name;
    let view = known(&state, &scope)?;
    let name = view.state.served_by(None, &asked).clone();
    let known = shared.stores.of(&scope);
    let known = known.iter().find(|view| view.store.name == name);
    let view = known.ok_or_else(|| unknown(&scope, &name))?;
    if view.store.word() != "ready" {
        let detail = format!("store `{name}` is {}", view.store.word());
        return Err(Failure::new(ProblemCode::StoreNotNow, detail));
    }
    let url = stores::operator_url(shared, &scope, &name).await;
    let url = url.map_err(|reason| Failure::new(ProblemCode::StoreNotNow, reason))?;
    // Whoever has it may do there what the app may.
    tracing::info!(%scope, store = %name, by = actor(&headers), "a connection was given to a person");
    let connection = StoreConnection {
        engine: view.store.wanted.engine.to_string(),
        served_by: (name != asked).then(|| name.to_string()),
        url,
    };
    Ok(unstored(&connection))
}

pub(crate) async fn restart(
    State(state): State<AppState>,
    Path((app, environment, store)): InStore,
) -> Answer<Response> {
    let (scope, name) = named(&app, &environment, &store)?;
    let view = known(&state, &scope)?;
    let server = view.state.served_by(None, &name);
    told(&state, &scope, server, Input::Restart).await
}

pub(crate) async fn rotate(
    State(state): State<AppState>,
    headers: HeaderMap,
    Path((app, environment, store)): InStore,
    Json(request): Json<StoreRotateRequest>,
) -> Answer<Response> {
    let (scope, name) = named(&app, &environment, &store)?;
    let view = known(&state, &scope)?;
    if let Some(secret) = elsewhere(&view, &name) {
        let detail = format!("store `{name}` is somebody else's, and so are its passwords");
        let problem = Problem::new(ProblemCode::StoreNotNow, detail);
        let hint = format!(
            "make a second login there and bring its address to the instances with `landfast secret rotate {secret} --from -`; then remove the first login, and `landfast secret revoke {secret}` its version: a password that is changed in place locks out who has not heard of it"
        );
        return Err(problem.with_hint(hint).into());
    }
    let platform = &state.platform;
    let done = if request.abandon {
        platform
            .abandon_rotation(&scope, &name)
            .await
            .map_err(RotateError::from)
    } else {
        platform.rotate_store(&scope, &name, actor(&headers)).await
    };
    match done {
        Ok(_) => {
            let server = view.state.served_by(None, &name);
            answer(&state, &scope, server, StatusCode::ACCEPTED)
        }
        Err(RotateError::Store(stores::CommandError::Unknown)) => Err(unknown(&scope, &name)),
        Err(error) => Err(error.into()),
    }
}

/// The secret that a store is reached with which Landfast does not run.
fn elsewhere(view: &View, name: &StoreName) -> Option<String> {
    let (_, body) = view.bodies.last_key_value()?;
    let store = body.spec.stores.get(name)?;
    store.secrets().first().map(ToString::to_string)
}

pub(crate) async fn undelete(
    State(state): State<AppState>,
    Path((app, environment, store)): InStore,
) -> Answer<Response> {
    let (scope, name) = named(&app, &environment, &store)?;
    told(&state, &scope, &name, Input::Undelete).await
}

pub(crate) async fn switch(
    State(state): State<AppState>,
    headers: HeaderMap,
    Path((app, environment, store)): InStore,
    Json(request): Json<StoreSwitchRequest>,
) -> Answer<Response> {
    let (scope, name) = named(&app, &environment, &store)?;
    known(&state, &scope)?;
    let to = StoreName::new(&request.to);
    let to = to.map_err(|error| {
        let detail = format!("`to`: {error}");
        Failure::new(ProblemCode::RequestInvalid, detail)
    })?;
    let order = SwitchOrder {
        scope: scope.clone(),
        store: name.clone(),
        to,
        by: actor(&headers),
        accepts_loss: request.accept_loss,
    };
    if request.dry_run {
        let plan = state.platform.plan_switch(&order).await?;
        let switched = StoreSwitched {
            plan: switch_plan(&name, &plan),
            rollout: None,
        };
        return Ok(json_response(StatusCode::OK, &switched));
    }
    let full = format!("{scope}/{name}");
    if request.confirm != full {
        let detail = format!(
            "`confirm` must be `{full}`, the whole name of what is moved to other contents"
        );
        return Err(Failure::new(ProblemCode::RequestInvalid, detail));
    }
    let (plan, view) = state.platform.switch_store(order).await?;
    let switched = StoreSwitched {
        plan: switch_plan(&name, &plan),
        rollout: current(&state, &view).await?,
    };
    Ok(json_response(StatusCode::ACCEPTED, &switched))
}

fn switch_plan(store: &StoreName, plan: &SwitchPlan) -> StoreSwitchPlan {
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    StoreSwitchPlan {
        store: store.to_string(),
        from: plan.from.to_string(),
        to: plan.to.to_string(),
        release: plan.release.0,
        was_deleted: plan.was_deleted,
        ends_ms: millis(plan.ends_in),
        starts_ms: millis(plan.starts_in),
    }
}

pub(crate) async fn delete(
    State(state): State<AppState>,
    headers: HeaderMap,
    Path((app, environment, store)): InStore,
    Json(request): Json<StoreDeleteRequest>,
) -> Answer<Response> {
    let (scope, name) = named(&app, &environment, &store)?;
    let full = format!("{scope}/{name}");
    if request.confirm != full {
        let detail = format!("`confirm` must be `{full}`, the whole name of what is deleted");
        return Err(Failure::new(ProblemCode::RequestInvalid, detail));
    }
    if let Some(reason) = stores::is_bound(state.platform.shared(), &scope, &name) {
        let problem = Problem::new(ProblemCode::StoreNotNow, reason);
        let hint = "`landfast restore switch` moves the name to another store; the one it leaves is deleted by itself";
        return Err(problem.with_hint(hint).into());
    }
    let delay = request
        .delay_seconds
        .map_or(DELAY_DEFAULT, Duration::from_secs);
    if delay > DELAY_MAX {
        let detail = "`delay_seconds` is more than a year";
        return Err(Failure::new(ProblemCode::RequestInvalid, detail));
    }
    let by = actor(&headers);
    told(&state, &scope, &name, Input::Delete { by, delay }).await
}

async fn told(state: &AppState, scope: &Scope, name: &StoreName, input: Input) -> Answer<Response> {
    let stores = &state.platform.shared().stores;
    match stores.command(scope, name, input).await {
        Ok(_) => answer(state, scope, name, StatusCode::ACCEPTED),
        Err(stores::CommandError::Unknown) => Err(unknown(scope, name)),
        Err(error) => Err(error.into()),
    }
}

fn answer(
    state: &AppState,
    scope: &Scope,
    name: &StoreName,
    status: StatusCode,
) -> Answer<Response> {
    let view = known(state, scope)?;
    let stores = wire::stores(state.platform.shared(), &view);
    let store = stores.into_iter().find(|store| store.name == name.as_str());
    let store = store.ok_or_else(|| unknown(scope, name))?;
    Ok(json_response(status, &store))
}

pub(super) fn named(app: &str, environment: &str, store: &str) -> Answer<(Scope, StoreName)> {
    let name = StoreName::new(store);
    let name =
        name.map_err(|error| Failure::new(ProblemCode::RequestInvalid, error.to_string()))?;
    Ok((scope(app, environment)?, name))
}

fn unknown(scope: &Scope, name: &StoreName) -> Failure {
    let detail = format!("{scope} has no store `{name}` that Landfast runs");
    Failure::new(ProblemCode::StoreUnknown, detail)
}
