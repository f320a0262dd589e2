//! The control socket: takes snapshots, answers status, stats and metrics. It runs on a thread of its own, so
//! that writing routes to disk holds up no request. Beside it each worker has a socket of its own, where it is asked
//! by its successors and speaks of nobody but itself.

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use landfast_routing::snapshot::{ProxyStatus, Snapshot};
use serde::Serialize;
use tokio::{net::UnixListener, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    control::Problem,
    elders::Elders,
    metrics,
    shared::{ApplyError, Shared},
};

/// The largest snapshot taken.
const SNAPSHOT_BYTES_MAX: usize = 64 << 20;
/// How long calls that were under way may take when the worker leaves.
const LAST_MAX: Duration = Duration::from_secs(2);
/// After an accept failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Who speaks: at the control socket the worker that serves, for those before it as well.
#[derive(Clone)]
pub(crate) enum Voice {
    All(Arc<Elders>),
    Own,
}

/// Serves a worker's own socket as long as the process lives.
pub(crate) async fn serve_own(listener: UnixListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let never = CancellationToken::new();
                    let served = serve_one(TokioIo::new(stream), Arc::clone(&shared), Voice::Own, never);
                    connections.spawn(served);
                }
                Err(error) => {
                    tracing::warn!(%error, "failed to accept on the worker's own socket");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

/// Serves the control socket until the worker leaves.
pub(crate) async fn serve(listener: UnixListener, shared: Arc<Shared>, elders: Arc<Elders>) {
    let mut connections = JoinSet::new();
    let mut held = shared.orders_held();
    loop {
        // While another worker takes over, calls wait in the backlog for it.
        let is_open = !*held.borrow_and_update();
        tokio::select! {
            _ = held.changed() => {}
            accepted = listener.accept(), if is_open => match accepted {
                Ok((stream, _)) => {
                    let voice = Voice::All(Arc::clone(&elders));
                    let leaving = shared.life.leaving.clone();
                    let served = serve_one(TokioIo::new(stream), Arc::clone(&shared), voice, leaving);
                    connections.spawn(served);
                }
                Err(error) => {
                    tracing::warn!(%error, "failed to accept on the control socket");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            () = shared.life.leaving.cancelled() => break,
        }
    }
    // Someone may be watching the last drains. Whoever sends no end of a request must not hold up what follows.
    let last = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(LAST_MAX, last).await.is_err() {
        tracing::warn!("control connections that did not end are cut");
    }
}

async fn serve_one(
    io: TokioIo<tokio::net::UnixStream>,
    shared: Arc<Shared>,
    voice: Voice,
    ending: CancellationToken,
) {
    let service = service_fn(move |request| {
        let (shared, voice) = (Arc::clone(&shared), voice.clone());
        async move { Ok::<_, Infallible>(answer(&shared, &voice, request).await) }
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(30));
    let mut connection = std::pin::pin!(builder.serve_connection(io, service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = ending.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a control connection broke off");
    }
}

type Answer = Response<Full<Bytes>>;

async fn answer(shared: &Shared, voice: &Voice, request: Request<Incoming>) -> Answer {
    let path = request.uri().path().to_owned();
    let is_get = request.method() == Method::GET;
    let is_own = matches!(voice, Voice::Own);
    match path.as_str() {
        "/snapshot" if request.method() == Method::PUT && !is_own => {
            put(shared, voice, request.into_body()).await
        }
        "/end" if request.method() == Method::POST && is_own => {
            shared.life.end(&shared.settings);
            respond(StatusCode::NO_CONTENT, "text/plain", Bytes::new())
        }
        "/snapshot" if is_get => json(StatusCode::OK, &*shared.snapshot()),
        "/status" if is_get => json(StatusCode::OK, &status(shared, voice).await),
        "/stats" if is_get => json(StatusCode::OK, &shared.stats()),
        "/metrics" if is_get => {
            let kind = "text/plain; version=0.0.4; charset=utf-8";
            respond(StatusCode::OK, kind, metrics::render(shared).into())
        }
        "/snapshot" | "/status" | "/stats" | "/metrics" => problem(
            StatusCode::METHOD_NOT_ALLOWED,
            "this path does not know the method",
        ),
        _ => problem(StatusCode::NOT_FOUND, "there is nothing here"),
    }
}

async fn status(shared: &Shared, voice: &Voice) -> ProxyStatus {
    let mut status = shared.status();
    if let Voice::All(elders) = voice {
        elders.add_to(&mut status).await;
    }
    status
}

async fn put(shared: &Shared, voice: &Voice, body: Incoming) -> Answer {
    let body = match Limited::new(body, SNAPSHOT_BYTES_MAX).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return problem(StatusCode::BAD_REQUEST, &format!("no whole body: {error}")),
    };
    let snapshot: Snapshot = match serde_json::from_slice(&body) {
        Ok(snapshot) => snapshot,
        Err(error) => {
            return problem(StatusCode::BAD_REQUEST, &format!("not a snapshot: {error}"));
        }
    };
    match shared.apply(snapshot) {
        Ok(()) => json(StatusCode::OK, &status(shared, voice).await),
        Err(ApplyError::Stale(stale)) => {
            let problem = Problem {
                title: "stale snapshot".into(),
                status: StatusCode::CONFLICT.as_u16(),
                detail: stale.to_string(),
                refused: Some(stale.refused),
                seen: Some(stale.seen),
            };
            json(StatusCode::CONFLICT, &problem)
        }
        Err(error @ ApplyError::Held) => {
            problem(StatusCode::SERVICE_UNAVAILABLE, &error.to_string())
        }
        Err(ApplyError::Save(error)) => {
            use std::error::Error;
            let cause = error
                .source()
                .map(|source| format!(": {source}"))
                .unwrap_or_default();
            tracing::error!(%error, %cause, "a snapshot was refused");
            problem(StatusCode::INSUFFICIENT_STORAGE, &format!("{error}{cause}"))
        }
    }
}

fn problem(status: StatusCode, detail: &str) -> Answer {
    let title = status
        .canonical_reason()
        .unwrap_or("refused")
        .to_lowercase();
    let detail = detail.to_owned();
    let problem = Problem {
        title,
        status: status.as_u16(),
        detail,
        refused: None,
        seen: None,
    };
    json(status, &problem)
}

fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    let kind = if status.is_success() {
        "application/json"
    } else {
        "application/problem+json"
    };
    match serde_json::to_vec(value) {
        Ok(body) => respond(status, kind, body.into()),
        Err(error) => {
            tracing::error!(%error, "an answer could not be written as JSON");
            respond(
                StatusCode::INTERNAL_SERVER_ERROR,
                "text/plain",
                Bytes::new(),
            )
        }
    }
}

fn respond(status: StatusCode, kind: &'static str, body: Bytes) -> Answer {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
