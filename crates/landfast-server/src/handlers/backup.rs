//! Backups: how they stand, and what is done with them. Work goes on when nobody reads the answer.

use std::sync::Arc;

use axum::{
    Extension,
    extract::{Path, State},
    response::Response,
};
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use landfast_api::{
    At, BackupFrame, BackupKey, BackupKeyText, BackupList, BackupRequest, DrillRequest, Problem,
    ProblemCode, PruneRequest, RestoreRequest, RestoreTarget,
};
use landfast_backup::{AcceptedLoss, Lsn, Target};
use landfast_engine::backups::{self, KeyView, Progress, RestoreInto, RestoreOrder, Work};
use landfast_types::StoreName;
use tokio::sync::{mpsc, watch};

use super::{
    InEnvironment, actor,
    environment::known,
    instance::{ndjson, push_line},
    scope,
    secret::{text, unstored},
    store::{InStore, named},
    upload::blocking,
};
use crate::{
    answer::{Answer, Failure, Json},
    idempotency::json_response,
    state::{AppState, Transport},
    wire,
};

/// Pieces of progress that wait for a slow reader.
const WAITING_MAX: usize = 16;

pub(crate) async fn list(
    State(state): State<AppState>,
    Path((app, environment)): InEnvironment,
) -> Answer<Response> {
    let scope = scope(&app, &environment)?;
    known(&state, &scope)?;
    let shared = state.platform.shared();
    let (views, now) = (shared.backups.of(&scope), shared.clock.now());
    let stores = views.iter().map(|view| wire::store_backups(view, now));
    let stores = stores.collect();
    Ok(json_response(StatusCode::OK, &BackupList { stores }))
}

pub(crate) async fn one(
    State(state): State<AppState>,
    Path((app, environment, store)): InStore,
) -> Answer<Response> {
    let (scope, store) = named(&app, &environment, &store)?;
    let shared = state.platform.shared();
    let views = shared.backups.of(&scope);
    let view = views.iter().find(|view| view.store == store);
    let view = view.ok_or_else(|| {
        let detail = format!("`{scope}` has no backups of a store or volume `{store}`");
        Failure::new(ProblemCode::BackupsUnknown, detail)
    })?;
    let backups = wire::store_backups(view, shared.clock.now());
    Ok(json_response(StatusCode::OK, &backups))
}

pub(crate) async fn back_up(
    State(state): State<AppState>,
    Path(path): InStore,
    headers: HeaderMap,
    Json(request): Json<BackupRequest>,
) -> Answer<Response> {
    let is_full = request.full;
    begin(&state, &path, &headers, Work::BackUp { is_full }).await
}

pub(crate) async fn verify(
    State(state): State<AppState>,
    Path(path): InStore,
    headers: HeaderMap,
) -> Answer<Response> {
    begin(&state, &path, &headers, Work::Verify).await
}

pub(crate) async fn prune(
    State(state): State<AppState>,
    Path(path): InStore,
    headers: HeaderMap,
    Json(request): Json<PruneRequest>,
) -> Answer<Response> {
    let is_dry = request.dry_run;
    begin(&state, &path, &headers, Work::Prune { is_dry }).await
}

pub(crate) async fn drill(
    State(state): State<AppState>,
    Path(path): InStore,
    headers: HeaderMap,
    Json(request): Json<DrillRequest>,
) -> Answer<Response> {
    let is_full = request.full;
    begin(&state, &path, &headers, Work::Drill { is_full }).await
}

pub(crate) async fn restore(
    State(state): State<AppState>,
    Path(path): InStore,
    headers: HeaderMap,
    Json(request): Json<RestoreRequest>,
) -> Answer<Response> {
    let invalid = |detail: String| Failure::new(ProblemCode::RequestInvalid, detail);
    let lsn = |text: &str| {
        let read = text.parse::<Lsn>();
        read.map_err(|error| invalid(format!("`{text}` is no place of a log: {error}")))
    };
    let target = match &request.target {
        RestoreTarget::Latest => Target::Latest,
        RestoreTarget::Time(at) => Target::Time(at.0),
        RestoreTarget::Lsn(text) => Target::Lsn(lsn(text)?),
        RestoreTarget::Point(name) => Target::Point(name.clone()),
    };
    let accepted = request.accept_loss.as_deref().map(lsn).transpose()?;
    let into = match (&request.store, &request.folder) {
        (Some(name), None) => {
            let name = StoreName::new(name).map_err(|error| invalid(error.to_string()))?;
            RestoreInto::Store(name)
        }
        (None, Some(folder)) if folder.starts_with('/') => RestoreInto::Folder(folder.into()),
        (None, Some(_)) => return Err(invalid("`folder` is no absolute path".to_owned())),
        (None, None) | (Some(_), Some(_)) => {
            return Err(invalid("one of `store` and `folder` is needed".to_owned()));
        }
    };
    let order = RestoreOrder {
        target,
        accepted: accepted.map(|reach| AcceptedLoss { reach }),
        into,
    };
    begin(&state, &path, &headers, Work::Restore(order)).await
}

async fn begin(
    state: &AppState,
    (app, environment, store): &(String, String, String),
    headers: &HeaderMap,
    work: Work,
) -> Answer<Response> {
    let (scope, store) = named(app, environment, store)?;
    known(state, &scope)?;
    let shared = state.platform.shared();
    let begun = shared
        .backups
        .order(&scope, &store, work, actor(headers))
        .await?;
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    state.spawn(follow(begun, sender));
    ndjson(receiver)
}

/// Passes on what is done now, until it has ended or nobody reads.
async fn follow(mut progress: watch::Receiver<Progress>, sender: mpsc::Sender<Bytes>) {
    let mut told = None;
    loop {
        let now = progress.borrow_and_update().clone();
        let frame = match &now.ended {
            Some(ended) => wire::backup_end(ended),
            None => BackupFrame::Progress {
                text: now.doing.clone(),
            },
        };
        let is_over = now.ended.is_some();
        if is_over || told.as_ref() != Some(&now.doing) {
            let mut text = Vec::new();
            push_line(&mut text, &frame);
            if sender.send(Bytes::from(text)).await.is_err() {
                return;
            }
            told = Some(now.doing);
        }
        if is_over {
            return;
        }
        tokio::select! {
            changed = progress.changed() => if changed.is_err() { return },
            () = sender.closed() => return,
        }
    }
}

pub(crate) async fn key(State(state): State<AppState>) -> Answer<Response> {
    let key = described(&state).await?;
    Ok(json_response(StatusCode::OK, &key))
}

async fn described(state: &AppState) -> Answer<BackupKey> {
    let shared = Arc::clone(state.platform.shared());
    let key = blocking(move || backups::key(&shared)).await?;
    let key = key.map_err(Failure::internal)?;
    let key = key.ok_or_else(|| {
        let detail = "this host has no key for backups yet: it is made with the first one, or when it is exported";
        Failure::new(ProblemCode::BackupsUnknown, detail)
    })?;
    Ok(wire_key(key))
}

fn wire_key(key: KeyView) -> BackupKey {
    BackupKey {
        id: key.id,
        path: key.path.display().to_string(),
        exported_at: key.exported_at.map(At),
        confirmed_at: key.confirmed_at.map(At),
        confirmed_by: key.confirmed_by,
    }
}

pub(crate) async fn export_key(
    State(state): State<AppState>,
    Extension(transport): Extension<Transport>,
    headers: HeaderMap,
) -> Answer<Response> {
    transport.may_see_secrets()?;
    let (shared, by) = (Arc::clone(state.platform.shared()), actor(&headers));
    let exported = blocking(move || backups::export_key(&shared, &by)).await?;
    let (id, text) = exported.map_err(Failure::internal)?;
    Ok(unstored(&BackupKeyText { id, text }))
}

pub(crate) async fn confirm_key(
    State(state): State<AppState>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer<Response> {
    let copy = text(&body, "a key")?;
    let (shared, by) = (Arc::clone(state.platform.shared()), actor(&headers));
    let confirmed = blocking(move || backups::confirm_key(&shared, &copy, &by)).await?;
    confirmed.map_err(|reason| {
        let problem = Problem::new(ProblemCode::RequestInvalid, reason);
        Failure::from(problem.with_hint("`landfast backup key export` prints it"))
    })?;
    let key = described(&state).await?;
    Ok(json_response(StatusCode::OK, &key))
}
