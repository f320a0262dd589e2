//! One handler for each endpoint of `landfast_api::endpoints`.

mod backup;
mod certificate;
mod doctor;
mod environment;
mod host;
pub(crate) mod images;
mod instance;
mod key;
mod migrate;
mod plan;
mod rollout;
mod secret;
mod store;
mod upload;

pub use self::doctor::instance_ports;
use axum::{
    Extension, Router,
    extract::{DefaultBodyLimit, Path, Request},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, patch, post},
};
use http::HeaderMap;
use landfast_api::{ACTOR, BLOB_PIECE_BYTES_MAX, ProblemCode, paths};
use landfast_types::{AppName, EnvironmentName, Scope};

use crate::{
    answer::{Answer, Failure},
    state::{AppState, Transport},
};

/// Every path of the API.
pub(crate) fn router(state: AppState, transport: Transport) -> Router {
    let pieces = DefaultBodyLimit::max(BLOB_PIECE_BYTES_MAX + 1024);
    let dotenv = DefaultBodyLimit::max(landfast_secrets::DOTENV_BYTES_MAX + 1024);
    Router::new()
        .route(paths::HEALTH, get(host::health))
        .route(paths::OPENAPI, get(host::openapi))
        .route(paths::HOST, get(host::host))
        .route(paths::DOCTOR, post(doctor::doctor))
        .route(paths::APPS, get(host::apps))
        .route(paths::ROUTES, get(host::routes))
        .route(paths::CERTIFICATES, get(certificate::list))
        .route(paths::CERTIFICATE_RENEW, post(certificate::renew))
        .route(paths::TRAFFIC, get(host::traffic))
        .route(paths::EVENTS, get(host::events))
        .route(paths::METRICS, get(host::metrics))
        .route(paths::BLOBS_MISSING, post(upload::missing))
        .route(paths::BLOB, patch(upload::piece).layer(pieces))
        .route(paths::ARTIFACTS, post(upload::create))
        .route(paths::ENVIRONMENT, get(environment::status))
        .route(paths::HISTORY, get(environment::history))
        .route(paths::ENVIRONMENT_EVENTS, get(environment::events))
        .route(paths::STOP, post(environment::stop))
        .route(paths::START, post(environment::start))
        .route(paths::SCALE, post(environment::scale))
        .route(paths::PLAN, post(plan::plan))
        .route(paths::IMAGES, post(images::images))
        .route(paths::ROLLOUTS, get(rollout::list).post(rollout::deploy))
        .route(paths::ROLLOUT, get(rollout::one))
        .route(paths::PROMOTE, post(rollout::promote))
        .route(paths::ABORT, post(rollout::abort))
        .route(paths::SEAL, post(rollout::seal))
        .route(paths::ROLLBACK, post(rollout::rollback))
        .route(paths::RESTART, post(rollout::restart))
        .route(paths::LOGS, get(instance::logs))
        .route(paths::EXEC, post(instance::exec))
        .route(paths::JOB_RUNS, post(instance::run_job))
        .route(paths::JOB_RUN, get(instance::job_run))
        .route(
            paths::SECRETS,
            get(secret::list).post(secret::import).layer(dotenv),
        )
        .route(
            paths::SECRET,
            get(secret::one).put(secret::set).delete(secret::remove),
        )
        .route(paths::SECRET_REVEAL, post(secret::reveal))
        .route(paths::SECRET_HISTORY, get(secret::history))
        .route(paths::SECRET_ROLLBACK, post(secret::roll_back))
        .route(paths::SECRET_ROTATE, post(secret::rotate))
        .route(paths::SECRET_REVOKE, post(secret::revoke))
        .route(paths::SECRETS_KEY, get(key::show))
        .route(paths::SECRETS_KEY_EXPORT, post(key::export))
        .route(paths::SECRETS_KEY_CONFIRM, post(key::confirm))
        .route(paths::SECRETS_KEY_ROTATE, post(key::rotate))
        .route(paths::STORES, get(store::list))
        .route(paths::STORE, get(store::one))
        .route(paths::STORE_CONNECTION, post(store::connection))
        .route(paths::STORE_RESTART, post(store::restart))
        .route(paths::STORE_ROTATE, post(store::rotate))
        .route(paths::STORE_SWITCH, post(store::switch))
        .route(paths::STORE_DELETE, post(store::delete))
        .route(paths::STORE_UNDELETE, post(store::undelete))
        .route(paths::BACKUPS, get(backup::list))
        .route(paths::STORE_BACKUPS, get(backup::one).post(backup::back_up))
        .route(paths::BACKUPS_VERIFY, post(backup::verify))
        .route(paths::BACKUPS_PRUNE, post(backup::prune))
        .route(paths::DRILLS, post(backup::drill))
        .route(paths::RESTORES, post(backup::restore))
        .route(paths::BACKUP_KEY, get(backup::key))
        .route(paths::BACKUP_KEY_EXPORT, post(backup::export_key))
        .route(paths::BACKUP_KEY_CONFIRM, post(backup::confirm_key))
        .route(paths::MIGRATIONS, get(migrate::status))
        .route(paths::MIGRATIONS_PLAN, post(migrate::plan))
        .route(paths::MIGRATIONS_UP, post(migrate::up))
        .route(paths::MIGRATIONS_DOWN, post(migrate::down))
        .route(paths::MIGRATIONS_REHEARSE, post(migrate::rehearse))
        .route(paths::MIGRATIONS_ACCEPT, post(migrate::accept))
        .fallback(async || Failure::new(ProblemCode::PathUnknown, "no such path").into_response())
        .method_not_allowed_fallback(async || {
            Failure::new(ProblemCode::MethodNotAllowed, "no such method here").into_response()
        })
        .layer(Extension(transport))
        .layer(middleware::from_fn(move |request, next| {
            let_in(transport, request, next)
        }))
        .with_state(state)
}

async fn let_in(transport: Transport, request: Request, next: Next) -> Response {
    match transport.may_ask(request.method(), request.uri().path()) {
        Ok(()) => next.run(request).await,
        Err(failure) => failure.into_response(),
    }
}

/// The environment a path names.
pub(crate) fn scope(app: &str, environment: &str) -> Answer<Scope> {
    let wrong = |error: landfast_types::NameError| {
        Failure::new(ProblemCode::RequestInvalid, error.to_string())
    };
    let app = AppName::new(app).map_err(wrong)?;
    let environment = EnvironmentName::new(environment).map_err(wrong)?;
    Ok(Scope { app, environment })
}

/// The path of an environment.
pub(crate) type InEnvironment = Path<(String, String)>;

/// Who asks, for the history: what a trusted client says, else that it came over the local socket.
pub(crate) fn actor(headers: &HeaderMap) -> String {
    let named = headers.get(ACTOR).and_then(|value| value.to_str().ok());
    let named = named.map(|name| name.chars().filter(|c| !c.is_control()).take(100).collect());
    named
        .filter(|name: &String| !name.is_empty())
        .unwrap_or_else(|| "somebody local".into())
}
