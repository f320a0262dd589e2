//! Results as they are made, by WebSocket and by server-sent events, and the numbered streams of rehearsals.
//!
//! When the process is asked to leave, WebSockets end with Close 1012 between two messages and event streams
//! between two events.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::{Query, Request, State},
    response::{IntoResponse, Response},
};
use futures_util::stream;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::broadcast::{Receiver, error::RecvError},
    time::{Interval, MissedTickBehavior, interval, timeout},
};

use crate::{
    http::{App, Gauge, Shared},
    problem::Problem,
    websocket::{self, Message, ReadError, Reader, Writer, accept},
};

/// How long a peer may take to answer a Close or to take a frame.
const PEER_WAIT_MAX: Duration = Duration::from_secs(5);
/// Frames a numbered message is cut into.
const FRAGMENTS: usize = 3;
const PADDING: &str = "................................................................................................";

/// What a stream may be asked for.
#[derive(Debug, Deserialize)]
pub(crate) struct StreamQuery {
    /// `numbers` sends a rehearsal's numbered messages instead of results.
    rehearsal: Option<String>,
    /// Milliseconds between numbered messages.
    #[serde(default = "second")]
    every: u64,
}

const fn second() -> u64 {
    1_000
}

/// Where the messages of a stream come from.
enum Source {
    Results(Receiver<Arc<str>>),
    Numbers { next: u64, ticks: Interval },
}

impl Source {
    fn new(app: &App, query: &StreamQuery) -> Result<Self, Problem> {
        match query.rehearsal.as_deref() {
            None => Ok(Self::Results(app.events.subscribe())),
            Some("numbers") => {
                let mut ticks = interval(Duration::from_millis(query.every.clamp(1, 600_000)));
                ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
                Ok(Self::Numbers { next: 0, ticks })
            }
            Some(other) => {
                let detail = format!("there is no rehearsal `{other}`; there is `numbers`");
                Err(Problem::new(StatusCode::BAD_REQUEST, "bad-request", detail))
            }
        }
    }

    /// The next message, with its number if it has one. Safe to cancel.
    async fn next(&mut self, app: &App) -> Option<(Option<u64>, String)> {
        match self {
            Self::Results(receiver) => match receiver.recv().await {
                Ok(result) => Some((None, result.to_string())),
                Err(RecvError::Lagged(missed)) => {
                    Some((None, json!({"missed": missed}).to_string()))
                }
                Err(RecvError::Closed) => None,
            },
            Self::Numbers { next, ticks } => {
                ticks.tick().await;
                let number = *next;
                *next += 1;
                let text = format!(
                    r#"{{"number":{number},"release":"{}","padding":"{PADDING}"}}"#,
                    app.release.version
                );
                Some((Some(number), text))
            }
        }
    }
}

/// `GET /v2/stream`: answers the handshake; the conversation goes on in a task of its own.
pub(crate) async fn websocket(
    State(app): Shared,
    Query(query): Query<StreamQuery>,
    mut request: Request,
) -> Result<Response, Problem> {
    let key = handshake(request.headers())?;
    let source = Source::new(&app, &query)?;
    let Some(upgrade) = request.extensions_mut().remove::<OnUpgrade>() else {
        return Err(refused("this connection cannot become a WebSocket"));
    };
    let task_app = Arc::clone(&app);
    app.streams.spawn(async move {
        let _open = Gauge::new(Arc::clone(&task_app), |app| &app.metrics.streams_open);
        if let Ok(upgraded) = upgrade.await {
            let (read, write) = tokio::io::split(TokioIo::new(upgraded));
            converse(&task_app, source, Reader::new(read), Writer::new(write)).await;
        }
    });
    let accepted = HeaderValue::from_str(&accept(&key)).expect("base64 is plain ASCII");
    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accepted);
    Ok(response)
}

/// The key of a proper handshake.
fn handshake(headers: &HeaderMap) -> Result<String, Problem> {
    let has = |name: header::HeaderName, word: &str| {
        let values = headers
            .get_all(name)
            .into_iter()
            .filter_map(|value| value.to_str().ok());
        values
            .flat_map(|value| value.split(','))
            .any(|part| part.trim().eq_ignore_ascii_case(word))
    };
    if !has(header::CONNECTION, "upgrade") || !has(header::UPGRADE, "websocket") {
        return Err(refused(
            "this is a WebSocket; ask with `Upgrade: websocket`",
        ));
    }
    if !has(header::SEC_WEBSOCKET_VERSION, "13") {
        return Err(refused("only version 13 of WebSocket is spoken here"));
    }
    let key = headers
        .get(header::SEC_WEBSOCKET_KEY)
        .and_then(|key| key.to_str().ok());
    let key = key
        .filter(|key| key.len() == 24)
        .ok_or_else(|| refused("`Sec-WebSocket-Key` is missing or odd"))?;
    Ok(key.to_owned())
}

fn refused(detail: &str) -> Problem {
    Problem::new(StatusCode::UPGRADE_REQUIRED, "no-websocket", detail)
}

async fn converse<R, W>(
    app: &Arc<App>,
    mut source: Source,
    mut reader: Reader<R>,
    mut writer: Writer<W>,
) where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let numbered = matches!(source, Source::Numbers { .. });
    loop {
        let written = tokio::select! {
            biased;
            () = app.leaving.cancelled() => return bid_farewell(reader, writer, websocket::code::SERVICE_RESTART, "leaving").await,
            received = reader.next() => match received {
                // A rehearsal's client wants to see that its own messages arrive.
                Ok(Message::Text(text)) if numbered => within(writer.text(&json!({"echo": text}).to_string())).await,
                Ok(Message::Text(_) | Message::Binary(_) | Message::Pong) => Ok(()),
                Ok(Message::Ping(payload)) => within(writer.pong(&payload)).await,
                Ok(Message::Close(code)) => {
                    drop(within(writer.close(code.unwrap_or(websocket::code::NORMAL), "")).await);
                    return;
                }
                Err(ReadError::Protocol(code, reason)) => return bid_farewell(reader, writer, code, reason).await,
                Err(ReadError::Gone(_)) => return,
            },
            message = source.next(app) => match message {
                Some((Some(_), text)) => within(writer.fragmented(&text, FRAGMENTS)).await,
                Some((None, text)) => within(writer.text(&text)).await,
                None => return bid_farewell(reader, writer, websocket::code::NORMAL, "").await,
            },
        };
        if written.is_err() {
            return;
        }
    }
}

/// A peer that does not take what it is sent for so long is gone.
async fn within(write: impl Future<Output = std::io::Result<()>>) -> std::io::Result<()> {
    timeout(PEER_WAIT_MAX, write)
        .await
        .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
}

/// Sends a Close and waits for the peer's, so that the peer reads ours before the connection ends.
async fn bid_farewell<R, W>(mut reader: Reader<R>, mut writer: Writer<W>, code: u16, reason: &str)
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    if within(writer.close(code, reason)).await.is_err() {
        return;
    }
    let closed = async { while !matches!(reader.next().await, Ok(Message::Close(_)) | Err(_)) {} };
    drop(timeout(PEER_WAIT_MAX, closed).await);
}

/// `GET /v2/events`: each event is one chunk, so an end is always between two.
pub(crate) async fn events(
    State(app): Shared,
    Query(query): Query<StreamQuery>,
) -> Result<Response, Problem> {
    let source = Source::new(&app, &query)?;
    let open = Gauge::new(Arc::clone(&app), |app: &App| &app.metrics.streams_open);
    let chunks = stream::unfold((source, app, open), |(mut source, app, open)| async move {
        let next = tokio::select! {
            biased;
            () = app.leaving.cancelled() => None,
            next = source.next(&app) => next,
        };
        let (number, text) = next?;
        let event = match number {
            Some(number) => format!("id: {number}\nevent: number\ndata: {text}\n\n"),
            None => format!("event: evaluation\ndata: {text}\n\n"),
        };
        Some((Ok::<_, Infallible>(Bytes::from(event)), (source, app, open)))
    });
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    Ok((headers, Body::from_stream(chunks)).into_response())
}
