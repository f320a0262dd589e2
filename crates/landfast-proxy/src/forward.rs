//! Sends one admitted request to a backend, and to another where that is allowed.
//!
//! An attempt ends in an answer or in how far it got ([`Sent`]). Whatever a backend answered is passed on; what
//! broke before the first byte of an answer may go out again as `landfast_routing::retry` says. Which requests
//! use pooled connections, and why, is in [`crate::pool`].

use std::{
    future::Future, pin::pin, rc::Rc, sync::Arc, sync::atomic::Ordering, task::Poll, time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Method, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Limited};
use landfast_routing::{
    grpc,
    headers::Forwarding,
    retry::{self, Sent},
    snapshot::{Protocol, RouteTimeouts},
};
use tokio::time::Instant;

use crate::{
    answer::Leg,
    backend::{Backend, InFlight},
    clock,
    exchange::Exchange,
    http2_pool,
    patience::Patience,
    pool,
    request_body::{BodyError, ClientBody, Progress, RequestBody},
    shared::Live,
    thread::Thread,
    upstream::{BackendBody, Upstream},
    waits::Wait,
    wire::{Wire, WireBody},
};

/// Bodies up to this size are read before they are sent, so that they can be sent again and a slow client does
/// not hold a backend.
const KEPT_MAX: u64 = 64 << 10;

/// The body of a request before its first attempt.
pub(crate) enum Source {
    Empty,
    Kept(Bytes),
    /// Taken by the attempt that sends it.
    Stream(Option<ClientBody>),
}

impl Source {
    /// The source of a body of which nothing has to be read first, or the body again.
    pub(crate) fn at_hand(body: ClientBody, length: Option<u64>) -> Result<Self, ClientBody> {
        use http_body::Body;
        if body.is_end_stream() {
            return Ok(Self::Empty);
        }
        if length.is_none_or(|length| length > KEPT_MAX) {
            return Ok(Self::Stream(Some(body)));
        }
        Err(body)
    }

    /// Reads a small body whole.
    pub(crate) async fn keep(body: ClientBody, idle: Duration) -> Result<Self, BodyError> {
        let limit = usize::try_from(KEPT_MAX).expect("64 KiB fit");
        let mut limited = Limited::new(body, limit);
        let mut kept: Vec<Bytes> = Vec::new();
        let mut patience = Patience::default();
        let mut since = clock::instant();
        loop {
            let frame = tokio::time::timeout(patience.left(idle), limited.frame());
            match frame.await.map_err(|_| BodyError::Idle)? {
                None => break,
                Some(Err(_)) => return Err(BodyError::ClientGone),
                Some(Ok(frame)) => kept.extend(frame.into_data().ok()),
            }
            let now = clock::instant();
            patience.waited(now.saturating_duration_since(since));
            patience.moved(kept.last().map_or(0, Bytes::len) as u64);
            since = now;
        }
        Ok(match kept.len() {
            0 => Self::Empty,
            1 => Self::Kept(kept.remove(0)),
            _ => Self::Kept(kept.concat().into()),
        })
    }

    /// Whether all of it was taken from the client.
    pub(crate) fn is_read(&self) -> bool {
        !matches!(self, Self::Stream(_))
    }

    fn is_replayable(&self) -> bool {
        !matches!(self, Self::Stream(None))
    }

    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Kept(bytes) => bytes.len() as u64,
            Self::Empty | Self::Stream(_) => 0,
        }
    }
}

/// A request as it will be sent, whoever gets it.
pub(crate) struct Outgoing {
    pub(crate) method: Method,
    /// In origin form.
    pub(crate) target: Uri,
    /// Without those of `forwarding`.
    pub(crate) headers: HeaderMap,
    pub(crate) forwarding: Rc<Forwarding>,
    pub(crate) source: Source,
    pub(crate) body_bytes_max: u64,
    pub(crate) timeouts: RouteTimeouts,
    /// Of a body that is streamed.
    pub(crate) progress: Option<Rc<Progress>>,
    /// A fresh connection, whatever the method: it will be given away.
    pub(crate) is_upgrade: bool,
}

/// Where requests of this kind go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Destination {
    pub(crate) service: usize,
    pub(crate) preview: bool,
}

/// What became of a request.
#[expect(
    clippy::large_enum_variant,
    reason = "nearly every request is answered; a box would cost each of them an allocation"
)]
pub(crate) enum Outcome {
    Answered(Response<BackendBody>, Leg),
    /// A newer table came in before anything was sent: decide anew.
    Moved,
    /// No backend is ready.
    Unavailable,
    Failed(StatusCode, String),
}

struct Failure {
    sent: Sent,
    status: StatusCode,
    cause: String,
    /// Whether the backend is to blame.
    counts: bool,
}

/// Tries backends until one answers or no further attempt is allowed.
pub(crate) async fn forward(
    thread: &Rc<Thread>,
    live: &Arc<Live>,
    destination: Destination,
    outgoing: &mut Outgoing,
    exchange: &mut Exchange,
) -> Outcome {
    let mut live = Arc::clone(live);
    let mut service = destination.service;
    let state = Arc::clone(&live.services[service]);
    let held = exchange.sticky.as_ref().and_then(|sticky| sticky.held);
    let pin = |live: &Live, service| held.and_then(|held| held.resolve(&live.table, service));
    // Who comes back takes no turn: the weights are for those who are new.
    let turn = match pin(&live, service) {
        Some(_) => state.turn.load(Ordering::Relaxed),
        None => state.turn.fetch_add(1, Ordering::Relaxed),
    };
    let mut tried: Vec<u64> = Vec::new();
    let protocol = live.table.services[service].protocol;
    // A pooled connection may cost a second sending. Once per request is enough: what is sent again after a
    // failure goes over a fresh one.
    let mut may_reuse = true;
    let mut last: Option<Failure> = None;
    let mut failed: Option<Arc<Backend>> = None;
    loop {
        let destination = Destination {
            service,
            ..destination
        };
        let pick = live.pick(destination, turn, pin(&live, service), &tried);
        let Some(slot) = pick else {
            return last.map_or(Outcome::Unavailable, |f| Outcome::Failed(f.status, f.cause));
        };
        let Some(entry) = thread.shared.enter(&live, slot) else {
            if last.is_none() {
                return Outcome::Moved;
            }
            // Something was tried already: go on with the newest table, if the service is still there.
            let before = std::mem::replace(&mut live, thread.shared.live());
            let key = &before.table.services[service].key;
            let found = live
                .table
                .services
                .iter()
                .position(|entry| entry.key == *key);
            let Some(found) = found else {
                return last.map_or(Outcome::Unavailable, |f| Outcome::Failed(f.status, f.cause));
            };
            service = found;
            continue;
        };
        let backend = Arc::clone(entry.backend());
        // Only now is it certain that somebody gets the request again.
        if let Some(failed) = failed.take() {
            failed.counters.retried.add(1);
        }
        exchange.attempt_began = clock::instant();
        exchange.backend = Some(Arc::clone(&backend));
        let address = live.table.backends[slot].address;
        let attempted = match protocol {
            Protocol::Http1 => {
                let began = exchange.attempt_began;
                attempt(thread, entry, address, outgoing, may_reuse, began).await
            }
            Protocol::H2c => Box::pin(attempt_http2(thread, entry, address, outgoing)).await,
        };
        let failure = match attempted {
            Ok((response, leg)) => {
                backend.succeeded(&live.table.services[service].ejection);
                return Outcome::Answered(response, leg);
            }
            Err(failure) => failure,
        };
        let entry = &live.table.services[service];
        if failure.counts {
            backend.failed(live.others(service, &backend), &entry.ejection);
        }
        let may_again = exchange.retries < entry.retry.attempts_max
            && retry::may_retry(
                &outgoing.method,
                failure.sent,
                outgoing.source.is_replayable(),
            )
            && state
                .budget
                .withdraw(clock::monotonic(), entry.retry.budget_percent);
        if !may_again {
            return Outcome::Failed(failure.status, failure.cause);
        }
        exchange.retries += 1;
        may_reuse = false;
        tried.push(backend.serial);
        failed = Some(backend);
        last = Some(failure);
    }
}

/// One attempt over HTTP/2. A connection that was going away when it was found never took the request; that costs
/// a further attempt like any other, since nothing was sent.
async fn attempt_http2(
    thread: &Rc<Thread>,
    entry: InFlight,
    address: std::net::SocketAddr,
    outgoing: &mut Outgoing,
) -> Result<(Response<BackendBody>, Leg), Failure> {
    let timeout = Duration::from_millis(outgoing.timeouts.connect_ms);
    // A connection may close between being found and being written to; then another is tried, once.
    for is_last in [false, true] {
        let stream = http2_pool::take(thread, entry.backend(), address, timeout).await;
        let stream = stream.map_err(|error| unconnected(address, &error))?;
        match send(thread, Upstream::Http2(stream), &entry, outgoing).await {
            Ok((response, sender, progress)) => {
                let leg = Leg {
                    thread: Rc::clone(thread),
                    sender: Some(sender),
                    entry,
                    progress,
                };
                return Ok((response, leg));
            }
            Err(failure)
                if !is_last
                    && failure.sent == Sent::Nothing
                    && outgoing.source.is_replayable()
                    && !entry.backend().is_leaving() => {}
            Err(failure) => return Err(failure),
        }
    }
    unreachable!("the last turn returns")
}

async fn attempt(
    thread: &Rc<Thread>,
    entry: InFlight,
    address: std::net::SocketAddr,
    outgoing: &mut Outgoing,
    may_reuse: bool,
    began: Instant,
) -> Result<(Response<BackendBody>, Leg), Failure> {
    let timeout = Duration::from_millis(outgoing.timeouts.connect_ms);
    let body = match &outgoing.source {
        Source::Empty if !outgoing.is_upgrade => Bytes::new(),
        Source::Kept(bytes) => bytes.clone(),
        Source::Empty | Source::Stream(_) => {
            let sender = Box::pin(pool::connect(thread, address, timeout)).await;
            let sender = Upstream::Http1(sender.map_err(|error| unconnected(address, &error))?);
            let (response, sender, progress) =
                Box::pin(send(thread, sender, &entry, outgoing)).await?;
            let leg = Leg {
                thread: Rc::clone(thread),
                sender: Some(sender),
                entry,
                progress,
            };
            return Ok((response, leg));
        }
    };
    let whole = |response: Response<WireBody>, entry| {
        let leg = Leg {
            thread: Rc::clone(thread),
            sender: None,
            entry,
            progress: None,
        };
        (response.map(BackendBody::Wire), leg)
    };
    let pooled = (may_reuse && retry::is_idempotent(&outgoing.method))
        .then(|| thread.pool.take(entry.backend()))
        .flatten();
    if let Some(wire) = pooled {
        match send_whole(thread, wire, &entry, outgoing, &body, began).await {
            Ok(response) => return Ok(whole(response, entry)),
            // The connection had gone stale. Such a request may be sent twice: once more, on a fresh one.
            Err(failure)
                if failure.status == StatusCode::BAD_GATEWAY
                    && retry::is_stale(
                        failure.sent,
                        clock::instant().saturating_duration_since(began),
                    )
                    && !entry.backend().is_leaving() => {}
            Err(failure) => return Err(failure),
        }
    }
    // Apart: most requests find a connection, and have no room for the timers of those that do not.
    let connecting = Box::pin(async {
        let place = pool::descriptor(thread).await?;
        Wire::connect(address, timeout, place).await
    });
    let wire = connecting.await;
    let wire = wire.map_err(|error| unconnected(address, &error))?;
    let response = send_whole(thread, wire, &entry, outgoing, &body, clock::instant()).await?;
    Ok(whole(response, entry))
}

fn unconnected(address: std::net::SocketAddr, error: &pool::ConnectError) -> Failure {
    let is_ours = error.is_ours();
    if is_ours {
        tracing::error!(%address, %error, "this host has no connection left to give");
    }
    let status = match error {
        _ if is_ours => StatusCode::SERVICE_UNAVAILABLE,
        pool::ConnectError::Timeout => StatusCode::GATEWAY_TIMEOUT,
        pool::ConnectError::Io(_)
        | pool::ConnectError::Http(_)
        | pool::ConnectError::NoDescriptor => StatusCode::BAD_GATEWAY,
    };
    Failure {
        sent: Sent::Nothing,
        status,
        cause: error.to_string(),
        counts: !is_ours,
    }
}

type Answered = (Response<BackendBody>, Upstream, Option<Rc<Progress>>);

/// Sends a request whose body is at hand.
async fn send_whole(
    thread: &Rc<Thread>,
    wire: Wire,
    entry: &InFlight,
    outgoing: &Outgoing,
    body: &Bytes,
    began: Instant,
) -> Result<Response<WireBody>, Failure> {
    let answered = wire.send(outgoing, body);
    let answered = in_time(thread, answered, entry, &outgoing.timeouts, None, began).await?;
    answered.map_err(|(sent, error)| Failure {
        sent,
        status: StatusCode::BAD_GATEWAY,
        cause: format!("no answer: {error}"),
        counts: true,
    })
}

async fn send(
    thread: &Rc<Thread>,
    mut sender: Upstream,
    entry: &InFlight,
    outgoing: &mut Outgoing,
) -> Result<Answered, Failure> {
    let idle = Duration::from_millis(outgoing.timeouts.body_idle_ms);
    let (body, progress) = match &mut outgoing.source {
        Source::Empty => (RequestBody::Empty, None),
        Source::Kept(bytes) => (RequestBody::Whole(Some(bytes.clone())), None),
        Source::Stream(stream) => {
            let incoming = stream
                .take()
                .expect("a stream that was sent is not replayable");
            // A stream of messages has pauses of its own.
            let is_paced = !grpc::is_grpc(&outgoing.headers);
            let (body, progress) =
                RequestBody::streamed(incoming, outgoing.body_bytes_max, idle, is_paced);
            (body, Some(progress))
        }
    };
    outgoing.progress.clone_from(&progress);
    let request = sender.request(outgoing, body);
    let answered = sender.send(request);
    let answered = in_time(
        thread,
        answered,
        entry,
        &outgoing.timeouts,
        progress.as_deref(),
        clock::instant(),
    )
    .await?;
    let mut error = match answered {
        Ok(response) => {
            if let Some(progress) = &progress {
                progress.answered.set(true);
            }
            return Ok((response.map(BackendBody::Hyper), sender, progress));
        }
        Err(error) => error,
    };
    let recovered = error.take_message();
    let broken = progress.and_then(|progress| progress.failed.get());
    if let Some(broken) = broken {
        let status = match broken {
            BodyError::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            BodyError::Idle | BodyError::ClientGone => StatusCode::REQUEST_TIMEOUT,
        };
        let (sent, cause) = (Sent::Answered, broken.to_string());
        return Err(Failure {
            sent,
            status,
            cause,
            counts: false,
        });
    }
    let sent = if recovered.is_some() || http2_pool::was_refused(error.error()) {
        Sent::Nothing
    } else {
        Sent::Something
    };
    if let (Some(request), Source::Stream(stream)) = (recovered, &mut outgoing.source)
        && let RequestBody::Streamed(streamed) = request.into_body()
    {
        *stream = Some(streamed.into_incoming());
    }
    Err(Failure {
        sent,
        status: StatusCode::BAD_GATEWAY,
        cause: format!("no answer: {}", error.into_error()),
        counts: true,
    })
}

/// What a backend answers, unless it takes too long from `began` on or the end of its drain comes first.
async fn in_time<T>(
    thread: &Rc<Thread>,
    answered: impl Future<Output = T>,
    entry: &InFlight,
    timeouts: &RouteTimeouts,
    progress: Option<&Progress>,
    began: Instant,
) -> Result<T, Failure> {
    let first_byte = Duration::from_millis(timeouts.first_byte_ms);
    let failure = |sent, cause: &str, counts| Failure {
        sent,
        status: StatusCode::GATEWAY_TIMEOUT,
        cause: cause.to_owned(),
        counts,
    };
    let mut answered = pin!(answered);
    let mut wait = Wait::new(thread);
    std::future::poll_fn(|cx| {
        if let Poll::Ready(answered) = answered.as_mut().poll(cx) {
            return Poll::Ready(Ok(answered));
        }
        if wait.is_due(cx) {
            // The wait for the answer counts from the last piece of the request.
            let moved = progress.map(|progress| progress.at.get());
            let late = moved.map_or(began, |moved| moved.max(began)) + first_byte;
            let cut = entry.backend().requests_end();
            // The clock is read only by those who have waited.
            let now = wait.has_begun().then(clock::instant);
            if now.is_some_and(|now| late <= now) {
                return Poll::Ready(Err(failure(Sent::Silence, "no answer in time", true)));
            }
            if now.is_some_and(|now| cut.is_some_and(|cut| cut <= now)) {
                let cause = "cut at the end of the drain";
                return Poll::Ready(Err(failure(Sent::Something, cause, false)));
            }
            wait.until(cut.map_or(late, |cut| cut.min(late)), cx);
        }
        Poll::Pending
    })
    .await
}
