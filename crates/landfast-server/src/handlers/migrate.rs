//! Migrations outside rollouts: what a database says of itself, what a folder would do to it, and doing it by hand.

use std::collections::BTreeMap;

use axum::{
    extract::{Path, Query, State},
    response::Response,
};
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use landfast_api::{
    Manifest, MigrateAcceptRequest, MigrateFrame, MigrateRequest, MigrateUpRequest, ProblemCode,
    RehearseFrom, RehearseQuery,
};
use landfast_engine::{
    backups::MigrationsOf,
    by_hand::{self, HandOrder, HandWish},
};
use tokio::sync::mpsc;

use super::{
    actor,
    environment::known,
    instance::{ndjson, push_line},
    plan::{ReadManifest, read_manifest},
    rollout::plain,
    store::{InStore, named},
};
use crate::{
    answer::{Answer, Failure, Json},
    idempotency::json_response,
    state::AppState,
    wire,
};

/// Pieces of progress that wait for a slow reader; further ones are left out.
const WAITING_MAX: usize = 256;

pub(crate) async fn status(
    State(state): State<AppState>,
    Path((app, environment, store)): InStore,
) -> Answer<Response> {
    let (scope, store) = named(&app, &environment, &store)?;
    known(&state, &scope)?;
    let seen = by_hand::look(&state.platform, &scope, &store).await?;
    Ok(json_response(
        StatusCode::OK,
        &wire::migration_status(&store, &seen),
    ))
}

pub(crate) async fn plan(
    State(state): State<AppState>,
    Path(path): InStore,
    Json(request): Json<MigrateRequest>,
) -> Answer<Response> {
    let (read, store) = read(&state, &path, &request.manifest, &request.artifacts)?;
    let view = state.platform.environment_or_empty(&read.spec.scope());
    let would =
        by_hand::what_would_run(&state.platform, &read.spec, &read.artifacts, &store).await?;
    let plan = wire::migrate_plan(&store, &would, view.state.serving);
    Ok(json_response(StatusCode::OK, &plan))
}

pub(crate) async fn up(
    State(state): State<AppState>,
    Path(path): InStore,
    headers: HeaderMap,
    Json(request): Json<MigrateUpRequest>,
) -> Answer<Response> {
    let wish = if request.contract {
        HandWish::Contract
    } else {
        HandWish::Expand
    };
    let (manifest, artifacts) = (&request.manifest, &request.artifacts);
    begin(state, &path, &headers, manifest, artifacts, wish)
}

pub(crate) async fn down(
    State(state): State<AppState>,
    Path(path): InStore,
    headers: HeaderMap,
    Json(request): Json<MigrateRequest>,
) -> Answer<Response> {
    let (manifest, artifacts) = (&request.manifest, &request.artifacts);
    begin(state, &path, &headers, manifest, artifacts, HandWish::Down)
}

pub(crate) async fn accept(
    State(state): State<AppState>,
    Path(path): InStore,
    headers: HeaderMap,
    Json(request): Json<MigrateAcceptRequest>,
) -> Answer<Response> {
    let reason = plain(&request.reason);
    if reason.is_empty() {
        let detail = "`reason` is empty: whoever reads the history later wants to know why";
        return Err(Failure::new(ProblemCode::RequestInvalid, detail));
    }
    let wish = HandWish::Accept {
        number: request.number,
        reason,
    };
    let (manifest, artifacts) = (&request.manifest, &request.artifacts);
    begin(state, &path, &headers, manifest, artifacts, wish)
}

/// Reads the manifest of a request, and makes sure it is of the environment of its path.
fn read(
    state: &AppState,
    (app, environment, store): &(String, String, String),
    manifest: &Manifest,
    artifacts: &BTreeMap<String, String>,
) -> Answer<(ReadManifest, landfast_types::StoreName)> {
    let (scope, store) = named(app, environment, store)?;
    known(state, &scope)?;
    let read = read_manifest(state, &scope, manifest, artifacts)?;
    if !read.spec.stores.contains_key(&store) {
        let detail = format!("the manifest has no store `{store}`");
        return Err(Failure::new(ProblemCode::StoreUnknown, detail));
    }
    Ok((read, store))
}

pub(crate) async fn rehearse(
    State(state): State<AppState>,
    Path(path): InStore,
    Query(query): Query<RehearseQuery>,
    headers: HeaderMap,
    Json(request): Json<MigrateRequest>,
) -> Answer<Response> {
    let (read, store) = read(&state, &path, &request.manifest, &request.artifacts)?;
    if query.from == Some(RehearseFrom::Backup) {
        let of = (read.spec.scope(), store);
        let migrations = MigrationsOf {
            spec: read.spec,
            artifacts: read.artifacts,
        };
        return super::backup::rehearse(&state, of, migrations, actor(&headers)).await;
    }
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    let (progress, told) = mpsc::channel(WAITING_MAX);
    let platform = state.platform.clone();
    state.spawn(async move {
        let (spec, artifacts) = (&read.spec, &read.artifacts);
        let rehearse = platform.rehearse(spec, artifacts, &store, progress);
        // The end comes behind all progress.
        let (rehearsed, ()) = tokio::join!(rehearse, tell(told, sender.clone()));
        let last = match rehearsed {
            Ok(rehearsed) => MigrateFrame::Rehearsed {
                rehearsal: wire::rehearsal(&store, &rehearsed),
            },
            Err(error) => MigrateFrame::Failed {
                problem: Failure::from(error).0,
            },
        };
        send(&sender, &last).await;
    });
    ndjson(receiver)
}

/// Answers with what happens, as it happens. A reader that goes away ends it.
fn begin(
    state: AppState,
    path: &(String, String, String),
    headers: &HeaderMap,
    manifest: &Manifest,
    artifacts: &BTreeMap<String, String>,
    wish: HandWish,
) -> Answer<Response> {
    let (read, store) = read(&state, path, manifest, artifacts)?;
    let order = HandOrder {
        spec: read.spec,
        artifacts: read.artifacts,
        store,
        wish,
        by: actor(headers),
    };
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    let (progress, told) = mpsc::channel(WAITING_MAX);
    let platform = state.platform.clone();
    state.spawn(async move {
        let migrate = platform.migrate(order, progress);
        let (migrated, ()) = tokio::join!(migrate, tell(told, sender.clone()));
        let last = match migrated {
            Ok(migrations) => MigrateFrame::Done { migrations },
            Err(error) => MigrateFrame::Failed {
                problem: Failure::from(error).0,
            },
        };
        send(&sender, &last).await;
    });
    ndjson(receiver)
}

/// Passes progress on until there is no more, or nobody reads it.
async fn tell(mut told: mpsc::Receiver<String>, sender: mpsc::Sender<Bytes>) {
    loop {
        let text = tokio::select! {
            text = told.recv() => text,
            () = sender.closed() => return,
        };
        let Some(text) = text else { return };
        send(&sender, &MigrateFrame::Progress { text }).await;
    }
}

async fn send(sender: &mpsc::Sender<Bytes>, frame: &MigrateFrame) {
    let mut text = Vec::new();
    push_line(&mut text, frame);
    if sender.send(Bytes::from(text)).await.is_err() {
        tracing::debug!("nobody reads on");
    }
}
