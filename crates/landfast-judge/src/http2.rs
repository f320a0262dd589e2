//! The same over HTTP/2: new connections for one request, and a few kept ones that carry many at once.
//!
//! A request the connection gave back unsent (the server had said GOAWAY) goes over another; one that was sent is
//! never repeated, even where the server says it did not begin it.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::{
    clock,
    connection::{Failure, Protocol},
    exchange::{Answer, Request, Route, Shared},
    http1::{Head, is_reset},
    plan::Planned,
    tally::Reason,
};

type Sender = SendRequest<Full<Bytes>>;

/// The kept connections.
#[derive(Default)]
pub(crate) struct Pool(Mutex<Vec<(Sender, Instant)>>);

pub(crate) async fn exchange(
    shared: &Arc<Shared>,
    planned: Planned,
    request: &Request,
    route: &mut Route,
) -> Result<Answer, Failure> {
    let mut message = message(shared, request)?;
    let response = loop {
        let mut sender = match planned.new_connection {
            true => open(shared, route).await?,
            false => kept(shared, planned, route).await?,
        };
        let unsent = match sender.ready().await {
            Err(_) => message,
            Ok(()) => match sender.try_send_request(message).await {
                Ok(response) => break response,
                Err(mut error) => match error.take_message() {
                    Some(message) => message,
                    None => return Err(failure(error.error(), "before an answer")),
                },
            },
        };
        if !route.kept {
            return Err(Failure::new(
                Reason::Reset,
                "a new connection ended before it took a request",
            ));
        }
        shared.tally().connections().closed_idle += 1;
        message = unsent;
    };
    let text = |name: &str| {
        response
            .headers()
            .get(name)
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned)
    };
    let head = Head {
        status: response.status().as_u16(),
        release: text("x-release"),
        is_fault: text("x-fault").as_deref() == Some("injected"),
        has_rate: text("ratelimit").is_some(),
        app_time: text("x-app-time"),
        ..Head::default()
    };
    let length = text("content-length").and_then(|length| length.parse::<u64>().ok());
    let mut incoming = response.into_body();
    let (mut body, mut count) = (Vec::new(), 0_u64);
    while let Some(frame) = incoming.frame().await {
        let frame = frame.map_err(|error| failure(&error, "in the body"))?;
        if let Some(data) = frame.data_ref() {
            count += data.len() as u64;
            if body.len() < 4 << 10 {
                body.extend_from_slice(data);
            }
        }
    }
    match length {
        Some(length) if length != count => Err(Failure::new(
            Reason::ShortBody,
            format!("{count} of {length} bytes"),
        )),
        _ => Ok(Answer { head, body }),
    }
}

fn failure(error: &hyper::Error, place: &str) -> Failure {
    let mut detail = format!("{place}: {error}");
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        detail.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    Failure::new(Reason::Reset, detail)
}

fn was_reset(error: &hyper::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if cause.downcast_ref::<std::io::Error>().is_some_and(is_reset) {
            return true;
        }
        source = cause.source();
    }
    false
}

fn message(shared: &Shared, request: &Request) -> Result<http::Request<Full<Bytes>>, Failure> {
    let scheme = if shared.settings.tls.is_some() {
        "https"
    } else {
        "http"
    };
    let mut message = http::Request::builder()
        .method(request.method)
        .uri(format!(
            "{scheme}://{}{}",
            shared.settings.host, request.path
        ))
        .header("user-agent", "landfast-judge");
    for (name, value) in &shared.settings.headers {
        message = message.header(name, value);
    }
    if let Some(id) = &request.id {
        message = message.header("x-receipt-id", id);
    }
    let message = message.body(Full::new(request.body.clone()));
    message.map_err(|error| Failure::new(Reason::JudgeFault, error.to_string()))
}

async fn open(shared: &Arc<Shared>, route: &mut Route) -> Result<Sender, Failure> {
    let io = shared.connector.open(Protocol::Http2).await?;
    shared.tally().connections().opened += 1;
    (route.kept, route.opened) = (false, clock::instant());
    let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await;
    let (sender, connection) = handshake.map_err(|error| failure(&error, "handshake"))?;
    let owner = Arc::clone(shared);
    shared.tasks.spawn(async move {
        // What ends a connection shows in the requests it carries; only that it was broken does not.
        if connection.await.is_err_and(|error| was_reset(&error)) {
            owner.tally().connections().reset += 1;
        }
    });
    Ok(sender)
}

async fn kept(
    shared: &Arc<Shared>,
    planned: Planned,
    route: &mut Route,
) -> Result<Sender, Failure> {
    {
        let mut pool = shared.pool.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = pool.len();
        pool.retain(|(sender, _)| !sender.is_closed());
        shared.tally().connections().closed_idle += (before - pool.len()) as u64;
        if pool.len() >= shared.settings.http2_connections {
            let (sender, opened) = &pool[planned.number as usize % pool.len()];
            (route.kept, route.opened) = (true, *opened);
            shared.tally().connections().reused += 1;
            return Ok(sender.clone());
        }
    }
    let sender = open(shared, route).await?;
    shared
        .pool
        .0
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push((sender.clone(), route.opened));
    Ok(sender)
}

impl Pool {
    /// Lets go of the kept connections.
    pub(crate) fn clear(&self) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }
}
