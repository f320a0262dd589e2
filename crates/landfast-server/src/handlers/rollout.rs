//! Rollouts: begun, watched and steered.

use std::collections::BTreeMap;

use axum::{
    extract::{Path, Query, State},
    response::Response,
};
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use landfast_api::{
    DeployAnswer, DeployRequest, ProblemCode, ReasonRequest, RollbackRequest, Rollout, RolloutList,
};
use landfast_engine::{DeployOrder, Deployed, View};
use landfast_rollout::Input;
use landfast_types::{ReleaseId, Scope};
use serde::Deserialize;

use super::{
    InEnvironment, actor, environment::known, images::read_pins, plan::read_manifest, scope,
    upload::blocking,
};
use crate::{
    answer::{Answer, Failure, Json},
    idempotency::{Key, json_response},
    state::AppState,
    wire,
};

/// Characters of a note or a reason that are kept.
const WORDS_MAX: usize = 500;

type OfRollout = Path<(String, String, u64)>;

pub(crate) async fn deploy(
    State(state): State<AppState>,
    Path((app, environment)): InEnvironment,
    headers: HeaderMap,
    body: Bytes,
) -> Answer<Response> {
    let scope = scope(&app, &environment)?;
    let key = Key::of(&headers, &format!("deploy {scope}"), &body)?;
    let journal = state.platform.shared().journal.clone();
    if let Some(key) = &key
        && let Some(earlier) = key.earlier(&journal)?
    {
        return Ok(earlier);
    }
    let request: DeployRequest = parse(&body)?;
    let read = read_manifest(&state, &scope, &request.manifest, &request.artifacts)?;
    let mut warnings = read.warnings;
    let mut images = read_pins(&request.images)?;
    if let Some(key) = read
        .spec
        .images()
        .keys()
        .find(|key| !images.contains_key(*key))
    {
        tracing::debug!(key, "resolving the images that the request does not name");
        let nothing = BTreeMap::new();
        let resolved = state.platform.resolve_images(&read.spec, &nothing, None);
        let resolved = resolved.await?;
        warnings.extend(landfast_engine::image_warnings(&read.spec, &resolved));
        for (key, image) in resolved {
            images.entry(key).or_insert(image.image);
        }
    }
    let order = DeployOrder {
        spec: read.spec,
        artifacts: read.artifacts,
        images,
        strategy: super::plan::strategy(request.strategy)?,
        supersede: request.supersede,
        by: actor(&headers),
        commit: request.commit,
        note: request.note.map(|note| plain(&note)),
    };
    let (status, answer) = match state.platform.deploy(order).await? {
        Deployed::Unchanged { release } => {
            let answer = DeployAnswer {
                unchanged: true,
                release: release.0,
                rollout: None,
                warnings,
            };
            (StatusCode::OK, answer)
        }
        Deployed::Begun { release, view } => {
            let rollout = current(&state, &view).await?;
            let answer = DeployAnswer {
                unchanged: false,
                release: release.0,
                rollout,
                warnings,
            };
            (StatusCode::ACCEPTED, answer)
        }
    };
    if let Some(key) = &key {
        key.keep(&journal, status.as_u16(), &answer);
    }
    Ok(json_response(status, &answer))
}

fn parse<T: serde::de::DeserializeOwned>(body: &[u8]) -> Answer<T> {
    let body = if body.is_empty() { b"{}" } else { body };
    let mut reader = serde_json::Deserializer::from_slice(body);
    serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let detail = format!("`{}`: {}", error.path(), error.inner());
        Failure::new(ProblemCode::RequestInvalid, detail)
    })
}

#[derive(Deserialize)]
pub(crate) struct PageQuery {
    limit: Option<usize>,
    before: Option<u64>,
}

pub(crate) async fn list(
    State(state): State<AppState>,
    Path((app, environment)): InEnvironment,
    Query(page): Query<PageQuery>,
) -> Answer<Response> {
    let view = known(&state, &scope(&app, &environment)?)?;
    let folders = state.platform.shared().folders.clone();
    let history = blocking(move || wire::history(&view, &folders)).await?;
    let limit = page.limit.unwrap_or(20).clamp(1, 100);
    let older = |rollout: &Rollout| page.before.is_none_or(|before| rollout.id < before);
    let mut rollouts: Vec<Rollout> = history.rollouts.into_iter().filter(older).collect();
    let more = rollouts.len() > limit;
    rollouts.truncate(limit);
    let next = rollouts.last().map(|rollout| rollout.id).filter(|_| more);
    Ok(json_response(
        StatusCode::OK,
        &RolloutList { rollouts, next },
    ))
}

pub(crate) async fn one(
    State(state): State<AppState>,
    Path((app, environment, id)): OfRollout,
) -> Answer<Response> {
    let view = known(&state, &scope(&app, &environment)?)?;
    let rollout = by_id(&state, view, id).await?;
    Ok(json_response(StatusCode::OK, &rollout))
}

/// Who asks, with the reason they gave: `ann (new certificate)`.
fn who_and_why(headers: &HeaderMap, reason: Option<String>) -> String {
    let who = actor(headers);
    match reason.map(|reason| plain(&reason)) {
        Some(why) if !why.is_empty() => format!("{who} ({why})"),
        Some(_) | None => who,
    }
}

/// What people write is printed on other people's terminals: one line, without control characters.
pub(super) fn plain(text: &str) -> String {
    let printable = |c: char| if c.is_control() { ' ' } else { c };
    let text: String = text.chars().map(printable).take(WORDS_MAX).collect();
    text.trim().to_owned()
}

pub(crate) async fn promote(
    State(state): State<AppState>,
    Path((app, environment, id)): OfRollout,
    headers: HeaderMap,
    Json(request): Json<ReasonRequest>,
) -> Answer<Response> {
    let scope = scope(&app, &environment)?;
    steer(
        &state,
        &scope,
        id,
        Input::Promote {
            by: who_and_why(&headers, request.reason),
        },
    )
    .await
}

pub(crate) async fn abort(
    State(state): State<AppState>,
    Path((app, environment, id)): OfRollout,
    headers: HeaderMap,
    Json(request): Json<ReasonRequest>,
) -> Answer<Response> {
    let scope = scope(&app, &environment)?;
    let reason = request
        .reason
        .map_or_else(|| "by hand".into(), |reason| plain(&reason));
    steer(
        &state,
        &scope,
        id,
        Input::Abort {
            by: actor(&headers),
            reason,
        },
    )
    .await
}

pub(crate) async fn seal(
    State(state): State<AppState>,
    Path((app, environment, id)): OfRollout,
    headers: HeaderMap,
    Json(request): Json<ReasonRequest>,
) -> Answer<Response> {
    let scope = scope(&app, &environment)?;
    steer(
        &state,
        &scope,
        id,
        Input::Seal {
            by: who_and_why(&headers, request.reason),
        },
    )
    .await
}

/// Does something to a rollout, if it is still the one under way.
async fn steer(state: &AppState, scope: &Scope, id: u64, input: Input) -> Answer<Response> {
    let view = known(state, scope)?;
    let moving = view.state.rollout.as_ref().map(|rollout| rollout.id.0);
    if moving != Some(id) {
        let detail = match by_id(state, view, id).await {
            Ok(rollout) => format!("rollout {id} has ended: {}", rollout.phase),
            Err(unknown) => return Err(unknown),
        };
        return Err(Failure::new(ProblemCode::NotNow, detail));
    }
    let view = state.platform.command(scope, input).await?;
    let rollout = by_id(state, view, id).await?;
    Ok(json_response(StatusCode::OK, &rollout))
}

pub(crate) async fn rollback(
    State(state): State<AppState>,
    Path((app, environment)): InEnvironment,
    headers: HeaderMap,
    body: Bytes,
) -> Answer<Response> {
    let scope = scope(&app, &environment)?;
    let request: RollbackRequest = parse(&body)?;
    let input = Input::Rollback {
        to: request.to.map(ReleaseId),
        by: who_and_why(&headers, request.reason),
    };
    begin(&state, &scope, "rollback", &headers, &body, input).await
}

pub(crate) async fn restart(
    State(state): State<AppState>,
    Path((app, environment)): InEnvironment,
    headers: HeaderMap,
    body: Bytes,
) -> Answer<Response> {
    let scope = scope(&app, &environment)?;
    let request: ReasonRequest = parse(&body)?;
    let by = who_and_why(&headers, request.reason);
    begin(
        &state,
        &scope,
        "restart",
        &headers,
        &body,
        Input::Restart { by },
    )
    .await
}

async fn begin(
    state: &AppState,
    scope: &Scope,
    what: &str,
    headers: &HeaderMap,
    body: &[u8],
    input: Input,
) -> Answer<Response> {
    let key = Key::of(headers, &format!("{what} {scope}"), body)?;
    let journal = state.platform.shared().journal.clone();
    if let Some(key) = &key
        && let Some(earlier) = key.earlier(&journal)?
    {
        return Ok(earlier);
    }
    let view = state.platform.command(scope, input).await?;
    let rollout = current(state, &view)
        .await?
        .ok_or_else(|| Failure::internal(format!("the {what} ended before it could be shown")))?;
    if let Some(key) = &key {
        key.keep(&journal, StatusCode::ACCEPTED.as_u16(), &rollout);
    }
    Ok(json_response(StatusCode::ACCEPTED, &rollout))
}

/// The rollout that was just asked for: the one that waits, the one under way, or else the one that ended last (a
/// restart that moved nothing ends at once).
pub(super) async fn current(
    state: &AppState,
    view: &std::sync::Arc<View>,
) -> Answer<Option<Rollout>> {
    let queued = view
        .state
        .queued
        .as_ref()
        .map(|_| view.state.next_rollout());
    let id = queued.or_else(|| view.state.rollout.as_ref().map(|rollout| rollout.id));
    let id = id.or_else(|| view.state.history.last().map(|record| record.id));
    let Some(id) = id else {
        return Ok(None);
    };
    Ok(Some(by_id(state, view.clone(), id.0).await?))
}

async fn by_id(state: &AppState, view: std::sync::Arc<View>, id: u64) -> Answer<Rollout> {
    let shared = state.platform.shared().clone();
    let found = blocking(move || {
        let mut rollout = wire::rollout_by_id(&view, &shared.folders, id)?;
        rollout.sequence = shared.journal.last_position().unwrap_or(0);
        Some(rollout)
    });
    found.await?.ok_or_else(|| {
        Failure::new(
            ProblemCode::RolloutUnknown,
            format!("there is no rollout {id}"),
        )
    })
}

/// Artifact digests by the text the manifest names them with.
pub(crate) type Artifacts = BTreeMap<String, landfast_types::Digest>;
