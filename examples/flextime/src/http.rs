//! The router, what every request passes through, and the endpoints that are about the process itself.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
        mpsc::SyncSender,
    },
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Body,
    extract::{DefaultBodyLimit, MatchedPath, Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures_util::StreamExt as _;
use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use serde_json::{Value, json};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    api,
    cache::Cache,
    clock,
    events::Events,
    fault::{Fate, Injector},
    log::{self, Level},
    metrics::Metrics,
    problem::Problem,
    rehearsal,
    release::Release,
    settings::Settings,
    store::{HistoryRow, Store},
    stream,
    workers::Workers,
};

/// The largest body that is kept in memory.
const BODY_BYTES_MAX: usize = 16 << 20;
/// Which release answered.
const RELEASE: HeaderName = HeaderName::from_static("x-release");
/// How long the application itself took, in milliseconds; a client that waited longer waited for something else.
pub(crate) const APP_TIME: HeaderName = HeaderName::from_static("x-app-time");
/// Says that a failure was built in.
const FAULT: HeaderName = HeaderName::from_static("x-fault");

/// Everything a request may need.
#[derive(Debug)]
pub(crate) struct App {
    pub settings: Settings,
    pub release: Release,
    pub injector: Injector,
    pub store: Arc<Store>,
    pub cache: Cache,
    pub workers: Workers,
    pub metrics: Metrics,
    pub events: Events,
    pub history: SyncSender<HistoryRow>,
    pub receipts: Mutex<std::fs::File>,
    pub started: Instant,
    /// Cancelled when the process is asked to leave.
    pub leaving: CancellationToken,
    /// WebSockets, which outlive the request they began as.
    pub streams: TaskTracker,
}

/// The state as handlers get it.
pub(crate) type Shared = State<Arc<App>>;

impl App {
    /// Runs something that blocks where it may.
    pub(crate) async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        doing: &'static str,
        work: impl FnOnce(&Self) -> Result<T, crate::store::StoreError> + Send + 'static,
    ) -> Result<T, Problem> {
        let app = Arc::clone(self);
        match tokio::task::spawn_blocking(move || work(&app)).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(Problem::internal(doing, &error)),
            Err(error) => Err(Problem::internal(doing, &error)),
        }
    }
}

/// Counts something up for as long as it lives.
pub(crate) struct Gauge<F: Fn(&App) -> &AtomicI64>(Arc<App>, F);

impl<F: Fn(&App) -> &AtomicI64> Gauge<F> {
    pub(crate) fn new(app: Arc<App>, which: F) -> Self {
        which(&app).fetch_add(1, Ordering::Relaxed);
        Self(app, which)
    }
}

impl<F: Fn(&App) -> &AtomicI64> Drop for Gauge<F> {
    fn drop(&mut self) {
        (self.1)(&self.0).fetch_sub(1, Ordering::Relaxed);
    }
}

/// All routes.
pub(crate) fn router(app: Arc<App>) -> Router {
    let v2 = Router::new()
        .route("/v2/constraints", get(api::list).post(api::create))
        .route("/v2/constraints/performance", get(api::performance))
        .route(
            "/v2/constraints/{id}",
            get(api::read).put(api::replace).delete(api::delete),
        )
        .route("/v2/evaluate", post(api::evaluate))
        .route("/v2/stream", get(stream::websocket))
        .route("/v2/events", get(stream::events))
        .route("/v2/rehearsal/receipts", post(rehearsal::receipt))
        .route("/v2/rehearsal/wait", get(rehearsal::wait))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), authorise));
    Router::new()
        .route("/version", get(version))
        .merge(v2)
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(middleware::from_fn_with_state(Arc::clone(&app), inject))
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), observe))
        .with_state(app)
}

/// Measures, and signs the answer with the release.
async fn observe(State(app): Shared, request: Request, next: Next) -> Response {
    let started = clock::instant();
    let _in_flight = Gauge::new(Arc::clone(&app), |app| &app.metrics.requests_in_flight);
    let method = method_label(request.method());
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("other", MatchedPath::as_str)
        .to_owned();
    let mut response = next.run(request).await;
    let elapsed = clock::instant().duration_since(started);
    let release = HeaderValue::from_str(app.release.version);
    let headers = response.headers_mut();
    headers.insert(
        RELEASE,
        release.unwrap_or_else(|_| HeaderValue::from_static("unprintable")),
    );
    headers.entry(APP_TIME).or_insert_with(|| app_time(elapsed));
    app.metrics
        .answered(method, &route, response.status().as_u16(), elapsed);
    let fields = json!({
        "method": method, "route": route, "status": response.status().as_u16(),
        "milliseconds": elapsed.as_secs_f64() * 1e3,
    });
    log::line(Level::Debug, "request", fields);
    response
}

/// The value of the header that says how long the application took.
pub(crate) fn app_time(elapsed: Duration) -> HeaderValue {
    let text = format!("{:.3}", elapsed.as_secs_f64() * 1e3);
    HeaderValue::from_str(&text).expect("digits and a point")
}

fn method_label(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        _ => "other",
    }
}

/// Breaks requests the way the release was built to.
async fn inject(State(app): Shared, request: Request, next: Next) -> Response {
    match app.injector.next() {
        Fate::Served => {
            let started = clock::instant();
            let response = next.run(request).await;
            let delay = app.injector.delay(clock::instant().duration_since(started));
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            response
        }
        Fate::Failed => {
            app.metrics.faults_injected.fetch_add(1, Ordering::Relaxed);
            // The body is read first: an answer before it would make the failure one of the connection too.
            let mut body = request.into_body().into_data_stream();
            while let Some(Ok(_)) = body.next().await {}
            let problem = Problem::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "injected",
                "this release was built to fail",
            );
            let mut response = problem.into_response();
            response
                .headers_mut()
                .insert(FAULT, HeaderValue::from_static("injected"));
            response
        }
        Fate::Hung => std::future::pending().await,
    }
}

/// Asks for the key, when there is one.
async fn authorise(State(app): Shared, request: Request, next: Next) -> Response {
    if let Some(key) = &app.settings.api_key {
        let offered = request
            .headers()
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok());
        let offered = offered.and_then(|value| value.strip_prefix("Bearer "));
        if !offered.is_some_and(|offered| key.is(offered)) {
            let problem = Problem::new(
                StatusCode::UNAUTHORIZED,
                "unauthorised",
                "a valid bearer token is needed",
            );
            let mut response = problem.into_response();
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            return response;
        }
    }
    next.run(request).await
}

async fn no_such_path(request: Request) -> Problem {
    Problem::not_found("path", request.uri().path())
}

async fn no_such_method(request: Request) -> Problem {
    let detail = format!(
        "{} is not possible on `{}`",
        request.method(),
        request.uri().path()
    );
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", detail)
}

pub(crate) fn json_response(status: StatusCode, value: &Value) -> Response {
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (status, kind, Body::from(value.to_string())).into_response()
}

async fn version(State(app): Shared) -> Response {
    json_response(
        StatusCode::OK,
        &json!({"version": app.release.version, "digest": app.release.digest}),
    )
}

/// Alive, and how well: the store is written to, the workers are looked at.
async fn health(State(app): Shared) -> Response {
    let app_of_check = Arc::clone(&app);
    let store = tokio::task::spawn_blocking(move || app_of_check.store.check()).await;
    let store = match store {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    let backlog = app.workers.queued() > app.workers.max() * 64;
    let (status, code) = match (&store, backlog) {
        (Err(_), _) => ("unhealthy", StatusCode::SERVICE_UNAVAILABLE),
        (Ok(()), true) => ("degraded", StatusCode::OK),
        (Ok(()), false) => ("healthy", StatusCode::OK),
    };
    let checks = json!({
        "store": match &store { Ok(()) => json!({"status": "healthy"}), Err(error) => json!({"status": "unhealthy", "error": error}) },
        "workers": {"status": if backlog { "degraded" } else { "healthy" }, "active": app.workers.active(), "queued": app.workers.queued()},
    });
    let body = json!({
        "status": status, "version": app.release.version, "timestamp": clock::now().to_string(),
        "uptime_seconds": clock::instant().duration_since(app.started).as_secs(), "checks": checks,
    });
    json_response(code, &body)
}

/// Whether traffic is welcome.
async fn ready(State(app): Shared) -> Response {
    let fault = app.injector.fault();
    let reason = if app.leaving.is_cancelled() {
        Some("leaving")
    } else if fault.never_ready || clock::instant().duration_since(app.started) < fault.slow_start {
        Some("starting")
    } else {
        let read = app
            .blocking("read the store", |app| app.store.get("performance"))
            .await;
        read.err().map(|_| "the store cannot be read")
    };
    match reason {
        None => json_response(
            StatusCode::OK,
            &json!({"ready": true, "version": app.release.version}),
        ),
        Some(reason) => json_response(
            StatusCode::SERVICE_UNAVAILABLE,
            &json!({"ready": false, "reason": reason}),
        ),
    }
}

async fn metrics(State(app): Shared) -> Response {
    let cache = app.cache.counts();
    let gauges = [
        (
            "active_workers",
            "Number of active worker threads",
            app.workers.active() as f64,
        ),
        (
            "queued_evaluations",
            "Evaluations that wait for a worker",
            app.workers.queued() as f64,
        ),
        (
            "cache_entries",
            "Findings in the cache",
            cache.entries as f64,
        ),
        (
            "cache_hits",
            "Evaluations answered from the cache since the start",
            cache.hits as f64,
        ),
        (
            "cache_misses",
            "Evaluations not found in the cache since the start",
            cache.misses as f64,
        ),
    ];
    let text = app.metrics.text(app.release.version, &gauges);
    (
        [(
            header::CONTENT_TYPE,
            "text/plain; version=0.0.4; charset=utf-8",
        )],
        text,
    )
        .into_response()
}
