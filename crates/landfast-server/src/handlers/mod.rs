//! One handler for each endpoint of `landfast_api::endpoints`.

mod certificate;
mod doctor;
mod environment;
mod host;
mod instance;
mod plan;
mod rollout;
mod upload;

pub use self::doctor::instance_ports;
use axum::{
    Router,
    extract::{DefaultBodyLimit, Path},
    response::IntoResponse,
    routing::{get, patch, post},
};
use http::HeaderMap;
use landfast_api::{ACTOR, BLOB_PIECE_BYTES_MAX, ProblemCode, paths};
use landfast_types::{AppName, EnvironmentName, Scope};

use crate::{
    answer::{Answer, Failure},
    state::AppState,
};

/// Every path of the API.
pub(crate) fn router(state: AppState) -> Router {
    let pieces = DefaultBodyLimit::max(BLOB_PIECE_BYTES_MAX + 1024);
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
        .route(paths::SECRETS, get(environment::secrets))
        .route(
            paths::SECRET,
            get(environment::secret)
                .put(environment::set_secret)
                .delete(environment::remove_secret),
        )
        .fallback(async || Failure::new(ProblemCode::PathUnknown, "no such path").into_response())
        .method_not_allowed_fallback(async || {
            Failure::new(ProblemCode::MethodNotAllowed, "no such method here").into_response()
        })
        .with_state(state)
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
