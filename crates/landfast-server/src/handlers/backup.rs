//! Backups: how they stand, and what is done with them. Work goes on when nobody reads the answer.

use std::{sync::Arc, time::Duration};

use axum::{
    Extension,
    extract::{Path, Query, State},
    response::Response,
};
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use landfast_api::{
    At, BackupFrame, BackupKey, BackupKeyText, BackupList, BackupRequest, DrillRequest,
    MigrateFrame, Problem, ProblemCode, PruneRequest, RestoreRequest, RestoreTarget, WaitQuery,
};
use landfast_backup::{AcceptedLoss, Lsn, Target};
use landfast_engine::{
    Shared,
    backups::{self, KeyView, MigrationsOf, OrderError, Progress, RestoreInto, RestoreOrder, Work},
};
use landfast_types::{Scope, StoreName};
use serde::Serialize;
use tokio::{
    sync::{mpsc, watch},
    time::{sleep, timeout},
};

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
/// Whoever waits for what is under way looks again after this, whatever was told.
const LOOK_EVERY: Duration = Duration::from_millis(250);

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
    Query(wait): Query<WaitQuery>,
    headers: HeaderMap,
    Json(request): Json<BackupRequest>,
) -> Answer<Response> {
    let is_full = request.full;
    begin(&state, &path, &headers, wait, Work::BackUp { is_full }).await
}

pub(crate) async fn verify(
    State(state): State<AppState>,
    Path(path): InStore,
    Query(wait): Query<WaitQuery>,
    headers: HeaderMap,
) -> Answer<Response> {
    begin(&state, &path, &headers, wait, Work::Verify).await
}

pub(crate) async fn prune(
    State(state): State<AppState>,
    Path(path): InStore,
    Query(wait): Query<WaitQuery>,
    headers: HeaderMap,
    Json(request): Json<PruneRequest>,
) -> Answer<Response> {
    let is_dry = request.dry_run;
    begin(&state, &path, &headers, wait, Work::Prune { is_dry }).await
}

pub(crate) async fn drill(
    State(state): State<AppState>,
    Path(path): InStore,
    Query(wait): Query<WaitQuery>,
    headers: HeaderMap,
    Json(request): Json<DrillRequest>,
) -> Answer<Response> {
    let work = Work::Drill {
        is_full: request.full,
        migrations: None,
    };
    begin(&state, &path, &headers, wait, work).await
}

pub(crate) async fn restore(
    State(state): State<AppState>,
    Path(path): InStore,
    Query(wait): Query<WaitQuery>,
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
    begin(&state, &path, &headers, wait, Work::Restore(order)).await
}

async fn begin(
    state: &AppState,
    (app, environment, store): &(String, String, String),
    headers: &HeaderMap,
    WaitQuery { wait }: WaitQuery,
    work: Work,
) -> Answer<Response> {
    let (scope, store) = named(app, environment, store)?;
    known(state, &scope)?;
    let order = Order {
        shared: Arc::clone(state.platform.shared()),
        scope,
        store,
        work,
        by: actor(headers),
    };
    order.serve(state, wait, |frame| frame).await
}

/// Rehearses the migrations of a folder on a copy of the newest backup, by a drill. What is under way is waited for.
pub(super) async fn rehearse(
    state: &AppState,
    (scope, store): (Scope, StoreName),
    migrations: MigrationsOf,
    by: String,
) -> Answer<Response> {
    let work = Work::Drill {
        is_full: false,
        migrations: Some(Arc::new(migrations)),
    };
    let order = Order {
        shared: Arc::clone(state.platform.shared()),
        scope,
        store,
        work,
        by,
    };
    let told = |frame| match frame {
        BackupFrame::Progress { text } | BackupFrame::Waiting { text } => {
            MigrateFrame::Progress { text }
        }
        BackupFrame::Drilled { drill } => match drill.rehearsal {
            Some(rehearsal) => MigrateFrame::Rehearsed { rehearsal },
            None => MigrateFrame::Done {
                migrations: Vec::new(),
            },
        },
        BackupFrame::Failed { problem } => MigrateFrame::Failed { problem },
        BackupFrame::BackedUp { .. }
        | BackupFrame::Verified { .. }
        | BackupFrame::Pruned { .. }
        | BackupFrame::Restored { .. }
        | BackupFrame::Unknown => MigrateFrame::Unknown,
    };
    order.serve(state, true, told).await
}

/// What is to be done, for whom.
struct Order {
    shared: Arc<Shared>,
    scope: Scope,
    store: StoreName,
    work: Work,
    by: String,
}

impl Order {
    /// Answers with what happens, each piece as the caller has it.
    async fn serve<T: Serialize + Send + 'static>(
        self,
        state: &AppState,
        waits: bool,
        told: impl Fn(BackupFrame) -> T + Send + Sync + 'static,
    ) -> Answer<Response> {
        let (frame_sender, frames) = mpsc::channel(WAITING_MAX);
        let store = self.store.clone();
        match self.begin().await {
            Err(OrderError::Busy(_)) if waits => state.spawn(self.wait(frame_sender)),
            begun => state.spawn(follow(store, begun?, frame_sender)),
        }
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        state.spawn(pass_on(frames, sender, told));
        ndjson(receiver)
    }

    async fn begin(&self) -> Result<watch::Receiver<Progress>, OrderError> {
        let (work, by) = (self.work.clone(), self.by.clone());
        let backups = &self.shared.backups;
        backups.order(&self.scope, &self.store, work, by).await
    }

    /// Begins when what is under way has ended. Nothing is begun for whoever has gone away.
    async fn wait(self, sender: mpsc::Sender<BackupFrame>) {
        loop {
            if !self.until_idle(&sender).await {
                return;
            }
            let problem = match self.begin().await {
                Ok(begun) => return follow(self.store, begun, sender).await,
                Err(OrderError::Busy(_)) => {
                    // What was begun a moment ago does not show yet.
                    sleep(LOOK_EVERY).await;
                    continue;
                }
                Err(error) => Failure::from(error).0,
            };
            if sender.send(BackupFrame::Failed { problem }).await.is_err() {
                tracing::debug!("nobody reads on");
            }
            return;
        }
    }

    /// Tells what is under way until nothing is; false when nobody reads that any more.
    async fn until_idle(&self, sender: &mpsc::Sender<BackupFrame>) -> bool {
        let Some(mut views) = self.shared.backups.watch(&self.scope, &self.store) else {
            return !sender.is_closed();
        };
        let mut told = None;
        loop {
            let running = views.borrow_and_update().running.clone();
            let Some(running) = running.filter(|running| running.ended.is_none()) else {
                return !sender.is_closed();
            };
            let (kind, by, doing) = (running.kind, &running.by, &running.doing);
            let text = format!("waiting for {kind}, begun by {by}: {doing}");
            if told.as_ref() != Some(&text) {
                let frame = BackupFrame::Waiting { text: text.clone() };
                if sender.send(frame).await.is_err() {
                    return false;
                }
                told = Some(text);
            }
            tokio::select! {
                changed = timeout(LOOK_EVERY * 20, views.changed()) => {
                    // Its keeper has left; another may be there.
                    if matches!(changed, Ok(Err(_))) {
                        return !sender.is_closed();
                    }
                }
                () = sender.closed() => return false,
            }
        }
    }
}

/// A line for each piece, until there is none any more, or nobody reads.
async fn pass_on<T: Serialize + Send>(
    mut frames: mpsc::Receiver<BackupFrame>,
    sender: mpsc::Sender<Bytes>,
    told: impl Fn(BackupFrame) -> T + Send + Sync,
) {
    loop {
        let frame = tokio::select! {
            frame = frames.recv() => frame,
            () = sender.closed() => return,
        };
        let Some(frame) = frame else { return };
        let mut text = Vec::new();
        push_line(&mut text, &told(frame));
        if sender.send(Bytes::from(text)).await.is_err() {
            return;
        }
    }
}

/// Passes on what is done now, until it has ended or nobody reads.
async fn follow(
    store: StoreName,
    mut progress: watch::Receiver<Progress>,
    sender: mpsc::Sender<BackupFrame>,
) {
    let mut told = None;
    loop {
        let now = progress.borrow_and_update().clone();
        let frame = match &now.ended {
            Some(ended) => wire::backup_end(&store, ended),
            None => BackupFrame::Progress {
                text: now.doing.clone(),
            },
        };
        let is_over = now.ended.is_some();
        if is_over || told.as_ref() != Some(&now.doing) {
            if sender.send(frame).await.is_err() {
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
