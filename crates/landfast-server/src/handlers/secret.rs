//! Secrets: set, listed, taken back; their values only where they cannot be overheard, and never without a record.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use axum::{
    Extension,
    extract::{Path, State},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use landfast_api::{
    At, ProblemCode, Secret as WireSecret, SecretDeed, SecretHistory, SecretImported, SecretList,
    SecretRevealRequest, SecretRevokeRequest, SecretRollbackRequest, SecretRotateRequest,
    SecretRotated, SecretStored, SecretValue, SecretVersion, SecretVersionState,
};
use landfast_engine::{
    Deployed, NewValue, SecretCall, SecretError, SecretFacts, SecretKeeper, Shared, VersionFacts,
    View,
};
use landfast_secrets::{
    Alphabet, DOTENV_BYTES_MAX, GENERATED_LEN, GENERATED_LEN_MAX, GENERATED_LEN_MIN, Origin,
    parse_dotenv,
};
use landfast_types::{Scope, Secret};

use super::{InEnvironment, actor, scope, upload::blocking};
use crate::{
    answer::{Answer, Failure, Json},
    idempotency::json_response,
    state::{AppState, Transport},
    wire,
};

/// A path of one secret.
type OneSecret = Path<(String, String, String)>;

pub(crate) async fn list(
    State(state): State<AppState>,
    Path((app, environment)): InEnvironment,
) -> Answer<Response> {
    let scope = scope(&app, &environment)?;
    let pinned = pinned(&state, &scope);
    let secrets = all(&state, &scope).await?;
    let secrets = secrets
        .into_iter()
        .map(|facts| wire_secret(facts, &pinned))
        .collect();
    Ok(json_response(StatusCode::OK, &SecretList { secrets }))
}

pub(crate) async fn one(
    State(state): State<AppState>,
    Path((app, environment, name)): OneSecret,
) -> Answer<Response> {
    let scope = scope(&app, &environment)?;
    answer_one(&state, &scope, &name).await
}

async fn answer_one(state: &AppState, scope: &Scope, name: &str) -> Answer<Response> {
    let secret = look_up(state, scope, name).await?;
    Ok(json_response(StatusCode::OK, &secret))
}

async fn look_up(state: &AppState, scope: &Scope, name: &str) -> Answer<WireSecret> {
    let pinned = pinned(state, scope);
    let mut all = all(state, scope).await?.into_iter();
    let facts = all.find(|facts| facts.name == name).ok_or_else(|| {
        Failure::new(
            ProblemCode::SecretUnknown,
            format!("there is no secret `{name}`"),
        )
    })?;
    Ok(wire_secret(facts, &pinned))
}

pub(crate) async fn set(
    State(state): State<AppState>,
    Path((app, environment, name)): OneSecret,
    headers: HeaderMap,
    body: Bytes,
) -> Answer<Response> {
    let scope = scope(&app, &environment)?;
    may_be_set(&name)?;
    let value = text(&body, "a secret's value")?;
    let values = vec![(name.clone(), value)];
    let bodies = state.platform.environment_or_empty(&scope);
    with_secrets(&state, &scope, &headers, move |keeper, call| {
        let pinned = |name: &str| pinned_by_any(&bodies, name);
        keeper.set(call, &values, &Origin::Set, false, &pinned)
    })
    .await?;
    answer_one(&state, &scope, &name).await
}

pub(crate) async fn import(
    State(state): State<AppState>,
    Path((app, environment)): InEnvironment,
    headers: HeaderMap,
    body: Bytes,
) -> Answer<Response> {
    let scope = scope(&app, &environment)?;
    if body.len() > DOTENV_BYTES_MAX {
        let detail = format!("the file is longer than {} MiB", DOTENV_BYTES_MAX >> 20);
        return Err(Failure::new(ProblemCode::TooLarge, detail));
    }
    let text = text(&body, "a dotenv file")?;
    let entries = parse_dotenv(text.reveal()).map_err(|errors| {
        let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
        let detail = format!("the file was not understood: {}", lines.join("; "));
        let problem = landfast_api::Problem::new(ProblemCode::RequestInvalid, detail);
        problem.with_hint("nothing was stored; mend these lines and import it again")
    })?;
    for entry in &entries {
        may_be_set(&entry.name)?;
    }
    let values: Vec<_> = entries
        .into_iter()
        .map(|entry| (entry.name, entry.value))
        .collect();
    let bodies = state.platform.environment_or_empty(&scope);
    let kept = with_secrets(&state, &scope, &headers, move |keeper, call| {
        let pinned = |name: &str| pinned_by_any(&bodies, name);
        keeper.set(call, &values, &Origin::Imported, true, &pinned)
    })
    .await?;
    let secrets = kept.into_iter().map(|kept| SecretStored {
        name: kept.name,
        version: kept.version,
        changed: kept.is_new,
    });
    let secrets = secrets.collect();
    Ok(json_response(StatusCode::OK, &SecretImported { secrets }))
}

pub(crate) async fn reveal(
    State(state): State<AppState>,
    Extension(transport): Extension<Transport>,
    Path((app, environment, name)): OneSecret,
    headers: HeaderMap,
    Json(request): Json<SecretRevealRequest>,
) -> Answer<Response> {
    transport.may_see_secrets()?;
    let scope = scope(&app, &environment)?;
    let asked = name.clone();
    let shown = with_secrets(&state, &scope, &headers, move |keeper, call| {
        keeper.show(call, &asked, request.version)
    })
    .await?;
    let answer = SecretValue {
        name,
        version: shown.version,
        value: shown.value,
    };
    Ok(unstored(&answer))
}

pub(crate) async fn history(
    State(state): State<AppState>,
    Path((app, environment, name)): OneSecret,
) -> Answer<Response> {
    let scope = scope(&app, &environment)?;
    answer_history(&state, &scope, name).await
}

async fn answer_history(state: &AppState, scope: &Scope, name: String) -> Answer<Response> {
    let bodies = state.platform.environment_or_empty(scope);
    let (shared, own, asked) = (
        Arc::clone(state.platform.shared()),
        scope.clone(),
        name.clone(),
    );
    let read = blocking(move || {
        let versions = shared.secrets.versions(&shared.journal, &own, &asked)?;
        let deeds = shared.secrets.deeds(&shared.journal, &own, &asked)?;
        Ok::<_, SecretError>((versions, deeds))
    });
    let (versions, deeds) = read.await??;
    let version = |facts: &VersionFacts| wire_version(facts, &name, &bodies);
    let history = SecretHistory {
        versions: versions.iter().rev().map(version).collect(),
        deeds: deeds
            .into_iter()
            .rev()
            .map(|(at, record)| SecretDeed {
                at: At(at),
                deed: wire::deed_word(record.deed).to_owned(),
                version: record.version,
                by: record.by,
            })
            .collect(),
        name,
    };
    Ok(json_response(StatusCode::OK, &history))
}

pub(crate) async fn roll_back(
    State(state): State<AppState>,
    Path((app, environment, name)): OneSecret,
    headers: HeaderMap,
    Json(request): Json<SecretRollbackRequest>,
) -> Answer<Response> {
    let scope = scope(&app, &environment)?;
    let bodies = state.platform.environment_or_empty(&scope);
    let asked = name.clone();
    with_secrets(&state, &scope, &headers, move |keeper, call| {
        let pinned = |name: &str| pinned_by_any(&bodies, name);
        keeper.roll_back(call, &asked, request.to, &pinned)
    })
    .await?;
    answer_one(&state, &scope, &name).await
}

pub(crate) async fn rotate(
    State(state): State<AppState>,
    Path((app, environment, name)): OneSecret,
    headers: HeaderMap,
    Json(request): Json<SecretRotateRequest>,
) -> Answer<Response> {
    let scope = scope(&app, &environment)?;
    let is_in_use = state.platform.is_given(&scope, &name) && !request.no_restart;
    let value = new_value(request)?;
    // Asked before there is a new value, which could not be brought to anybody.
    let renewal = match is_in_use {
        true => Some(state.platform.may_renew(&scope).await?),
        false => None,
    };
    let bodies = state.platform.environment_or_empty(&scope);
    let asked = name.clone();
    let kept = with_secrets(&state, &scope, &headers, move |keeper, call| {
        let pinned = |name: &str| pinned_by_any(&bodies, name);
        keeper.rotate(call, &asked, value, &pinned)
    })
    .await?;
    let mut rollout = None;
    if let Some(renewal) = renewal {
        let versions = kept.into_iter().map(|kept| (kept.name, kept.version));
        let (versions, by): (BTreeMap<_, _>, _) = (versions.collect(), actor(&headers));
        let note = format!("secret {name} rotated");
        let begun = state.platform.renew(&renewal, &versions, by, note).await;
        let begun = begun.map_err(|error| not_brought(error.into(), &name, &versions))?;
        if let Deployed::Begun { view, .. } = begun {
            rollout = super::rollout::current(&state, &view).await?;
        }
    }
    let secret = look_up(&state, &scope, &name).await?;
    Ok(json_response(
        StatusCode::OK,
        &SecretRotated { secret, rollout },
    ))
}

/// Why a new value that is stored did not reach the instances.
fn not_brought(failure: Failure, name: &str, versions: &BTreeMap<String, u64>) -> Failure {
    let version = versions.get(name).copied().unwrap_or_default();
    let mut problem = *failure.0;
    problem.detail = format!(
        "version {version} of `{name}` is stored, and was not brought to the instances: {}",
        problem.detail
    );
    let hint = format!("`landfast deploy` takes it, or `landfast secret revoke {name} {version}`");
    problem.with_hint(hint).into()
}

/// The value a request names, or how one is to be generated.
fn new_value(request: SecretRotateRequest) -> Answer<NewValue> {
    let wrong = |detail: String| Failure::new(ProblemCode::RequestInvalid, detail);
    if let Some(value) = request.value {
        if request.length.is_some() || request.alphabet.is_some() {
            let detail = "`length` and `alphabet` are of a generated value, and `value` gives one";
            return Err(wrong(detail.to_owned()));
        }
        return Ok(NewValue::Given(value));
    }
    let length = request.length.unwrap_or(GENERATED_LEN);
    if !(GENERATED_LEN_MIN..=GENERATED_LEN_MAX).contains(&length) {
        return Err(wrong(format!(
            "a generated value has {GENERATED_LEN_MIN} to {GENERATED_LEN_MAX} characters, not {length}"
        )));
    }
    let alphabet = match request.alphabet {
        None => Alphabet::default(),
        Some(word) => Alphabet::from_word(&word).ok_or_else(|| {
            let known = Alphabet::ALL.map(Alphabet::word).join(", ");
            wrong(format!("`{word}` is no alphabet; there is {known}"))
        })?,
    };
    Ok(NewValue::Generated { length, alphabet })
}

pub(crate) async fn revoke(
    State(state): State<AppState>,
    Path((app, environment, name)): OneSecret,
    headers: HeaderMap,
    Json(request): Json<SecretRevokeRequest>,
) -> Answer<Response> {
    let scope = scope(&app, &environment)?;
    let asked = name.clone();
    with_secrets(&state, &scope, &headers, move |keeper, call| {
        keeper.revoke(call, &asked, request.version)
    })
    .await?;
    answer_history(&state, &scope, name).await
}

pub(crate) async fn remove(
    State(state): State<AppState>,
    Path((app, environment, name)): OneSecret,
    headers: HeaderMap,
) -> Answer<Response> {
    let scope = scope(&app, &environment)?;
    with_secrets(&state, &scope, &headers, move |keeper, call| {
        keeper.remove(call, &name)
    })
    .await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Does something with the secrets of an environment where it may block, and wakes the readers of events.
async fn with_secrets<T: Send + 'static>(
    state: &AppState,
    scope: &Scope,
    headers: &HeaderMap,
    work: impl FnOnce(&SecretKeeper, &SecretCall<'_>) -> Result<T, SecretError> + Send + 'static,
) -> Answer<T> {
    let (shared, scope) = (Arc::clone(state.platform.shared()), scope.clone());
    let by = actor(headers);
    let done = blocking(move || {
        let call = SecretCall {
            journal: &shared.journal,
            now: shared.clock.now(),
            scope: &scope,
            by: &by,
        };
        let done = work(&shared.secrets, &call);
        shared.position.send_modify(|_| {});
        done
    });
    Ok(done.await??)
}

/// A body as text that is wiped.
pub(super) fn text(body: &Bytes, what: &str) -> Answer<Secret<String>> {
    let text = std::str::from_utf8(body).map_err(|_| {
        let detail = format!("{what} must be UTF-8");
        Failure::new(ProblemCode::RequestInvalid, detail)
    })?;
    Ok(Secret::new(text.to_owned()))
}

/// An answer that nobody may keep.
pub(super) fn unstored<T: serde::Serialize>(answer: &T) -> Response {
    let mut response = json_response(StatusCode::OK, answer);
    let never = HeaderValue::from_static("no-store");
    response.headers_mut().insert(header::CACHE_CONTROL, never);
    response
}

fn may_be_set(name: &str) -> Answer<()> {
    if !landfast_spec::is_reserved_variable(name) {
        return Ok(());
    }
    let detail = format!("`{name}` is set by Landfast for each instance; choose another name");
    Err(Failure::new(ProblemCode::RequestInvalid, detail))
}

async fn all(state: &AppState, scope: &Scope) -> Answer<Vec<SecretFacts>> {
    let (shared, scope): (Arc<Shared>, _) = (Arc::clone(state.platform.shared()), scope.clone());
    Ok(blocking(move || shared.secrets.list(&shared.journal, &scope)).await??)
}

/// The versions of a secret that kept releases were made with.
fn pinned_by_any(view: &View, name: &str) -> BTreeSet<u64> {
    let bodies = view.bodies.values();
    bodies
        .filter_map(|body| body.secrets.get(name).copied())
        .collect()
}

/// The versions the serving release was made with.
fn pinned(state: &AppState, scope: &Scope) -> BTreeMap<String, u64> {
    let view = state.platform.environment_or_empty(scope);
    let serving = view.state.serving;
    let body = serving.and_then(|release| view.bodies.get(&release));
    body.map(|body| body.secrets.clone()).unwrap_or_default()
}

fn wire_secret(facts: SecretFacts, pinned: &BTreeMap<String, u64>) -> WireSecret {
    WireSecret {
        pinned: pinned.get(&facts.name).copied(),
        name: facts.name,
        version: facts.version,
        set_at: At(facts.created_at),
        versions: facts.versions as u32,
    }
}

fn wire_version(facts: &VersionFacts, name: &str, view: &View) -> SecretVersion {
    let state = match (facts.revoked_at, facts.is_current) {
        (Some(_), _) => SecretVersionState::Revoked,
        (None, true) => SecretVersionState::Current,
        (None, false) => SecretVersionState::Kept,
    };
    let releases = view.bodies.values();
    let releases = releases.filter(|body| body.secrets.get(name) == Some(&facts.version));
    SecretVersion {
        version: facts.version,
        set_at: At(facts.created_at),
        state,
        origin: match &facts.origin {
            Origin::Set => "set".to_owned(),
            Origin::Imported => "imported".to_owned(),
            Origin::RolledBack { to } => format!("rolled back to {to}"),
            Origin::Rotated => "rotated".to_owned(),
            Origin::Unknown => "unknown".to_owned(),
        },
        revoked_at: facts.revoked_at.map(At),
        releases: releases.map(|body| body.release.0).collect(),
    }
}
