//! The body of an answer on its way to the client: nothing, a few bytes of our own, or the backend's stream
//! with the things that must last as long as it does.

use std::{
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, stream};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use landfast_routing::{grpc, headers, sse::EventBoundary};
use tokio::sync::watch;

use crate::{
    backend::{InFlight, OpenStream, Phase, StreamEnd, requests_cut},
    connection::Busy,
    drain,
    exchange::Exchange,
    pool,
    request_body::Progress,
    thread::{self, Thread},
    upstream::Upstream,
};

/// The answer could not be given whole; the connection (or HTTP/2 stream) is reset, so the client knows.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the answer broke off")]
pub(crate) struct Broken;

pub(crate) type Frames = Pin<Box<dyn Stream<Item = Result<Frame<Bytes>, Broken>>>>;

/// A body as hyper's server takes it.
pub(crate) struct AnswerBody {
    kind: Kind,
    /// The client's connection counts as busy while this is held.
    _busy: Option<Busy>,
}

enum Kind {
    Empty,
    Whole(Option<Bytes>),
    Relayed(Frames),
}

impl AnswerBody {
    pub(crate) fn empty() -> Self {
        Self::from(Kind::Empty)
    }

    pub(crate) fn whole(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self::from(if bytes.is_empty() {
            Kind::Empty
        } else {
            Kind::Whole(Some(bytes))
        })
    }

    /// A stream of our own making.
    pub(crate) fn frames(frames: Frames) -> Self {
        Self::from(Kind::Relayed(frames))
    }

    pub(crate) fn hold(self, busy: Busy) -> Self {
        Self {
            _busy: Some(busy),
            ..self
        }
    }
}

impl From<Kind> for AnswerBody {
    fn from(kind: Kind) -> Self {
        Self { kind, _busy: None }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match &mut self.kind {
            Kind::Empty => Poll::Ready(None),
            Kind::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Kind::Relayed(frames) => {
                let polled = frames.as_mut().poll_next(cx);
                let given = |frame: &Option<Result<Frame<Bytes>, Broken>>| match frame {
                    Some(Ok(frame)) => frame.data_ref().map_or(0, Bytes::len) as u64,
                    Some(Err(_)) | None => 0,
                };
                thread::pass_turn(match &polled {
                    Poll::Ready(frame) => Some(given(frame)),
                    Poll::Pending => None,
                });
                polled
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.kind, Kind::Empty | Kind::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Empty | Kind::Whole(None) => SizeHint::with_exact(0),
            Kind::Whole(Some(bytes)) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Relayed(_) => SizeHint::default(),
        }
    }
}

/// The upstream leg of an exchange whose answer has begun.
pub(crate) struct Leg {
    pub(crate) thread: Rc<Thread>,
    pub(crate) sender: Upstream,
    pub(crate) entry: InFlight,
    /// Of a streamed request body.
    pub(crate) progress: Option<Rc<Progress>>,
    /// Whether another request may follow on this connection: not where a change of protocol was asked for,
    /// whatever the backend made of it.
    pub(crate) may_pool: bool,
}

impl Leg {
    /// The answer is complete: the connection may serve another request.
    pub(crate) fn finish(self, exchange: &mut Exchange) {
        self.note_upload(exchange);
        // An answer that came before the end of the request leaves a connection in an unknown state.
        let is_sent = self
            .progress
            .as_ref()
            .is_none_or(|progress| progress.ended.get());
        // An HTTP/2 connection never left its pool.
        if let Upstream::Http1(sender) = self.sender
            && self.may_pool
            && is_sent
        {
            pool::give_back(&self.thread, self.entry.backend(), sender);
        }
    }

    fn note_upload(&self, exchange: &mut Exchange) {
        if let Some(progress) = &self.progress {
            exchange.bytes_in = progress.bytes.get();
        }
    }
}

enum Step {
    Data(Frame<Bytes>),
    End,
    Failed(String),
}

struct Relay {
    body: Incoming,
    idle: Duration,
    phase: watch::Receiver<Phase>,
    leg: Option<Leg>,
    exchange: Box<Exchange>,
    is_grpc: bool,
}

/// Passes a backend's answer on. `is_grpc`: one that breaks off may end with a status instead of a reset.
pub(crate) fn relay(
    body: Incoming,
    leg: Leg,
    mut exchange: Box<Exchange>,
    idle: Duration,
    is_grpc: bool,
) -> AnswerBody {
    if body.is_end_stream() {
        leg.finish(&mut exchange);
        exchange.is_over = true;
        return AnswerBody::empty();
    }
    let phase = leg.entry.backend().phase();
    let relay = Relay {
        body,
        idle,
        phase,
        leg: Some(leg),
        exchange,
        is_grpc,
    };
    let frames = stream::unfold(Some(relay), |relay| async {
        let mut relay = relay?;
        match relay.step().await {
            // After the last byte that was announced nobody asks for more: hyper drops the body of an HTTP/1 answer
            // without reading on to its end.
            Step::Data(frame) if relay.body.is_end_stream() => {
                relay.finish();
                Some((Ok(frame), None))
            }
            Step::Data(frame) => Some((Ok(frame), Some(relay))),
            Step::End => {
                relay.finish();
                None
            }
            Step::Failed(cause) => {
                let is_grpc = relay.is_grpc;
                relay.fail(cause);
                // A gRPC client is told in its own words that it may try again.
                let ending = grpc::status_fields(grpc::UNAVAILABLE, "the answer broke off");
                let last = is_grpc.then(|| Frame::trailers(ending));
                Some((last.ok_or(Broken), None))
            }
        }
    });
    Kind::Relayed(Box::pin(frames)).into()
}

impl Relay {
    async fn step(&mut self) -> Step {
        tokio::select! {
            biased;
            frame = self.body.frame() => match frame {
                Some(Ok(mut frame)) => {
                    self.exchange.bytes_out += frame.data_ref().map_or(0, Bytes::len) as u64;
                    if let Some(trailers) = frame.trailers_mut() {
                        headers::clean_trailers(trailers);
                    }
                    Step::Data(frame)
                }
                Some(Err(error)) => Step::Failed(format!("the backend's answer broke off: {error}")),
                None => Step::End,
            },
            // Made only where the frame is not there at once: most are, and a timer costs as much as a frame.
            () = async { tokio::time::sleep(self.idle).await } => Step::Failed("the backend stopped sending".into()),
            () = requests_cut(&mut self.phase) => Step::Failed("cut at the end of the drain".into()),
        }
    }

    fn finish(mut self) {
        if let Some(leg) = self.leg.take() {
            leg.finish(&mut self.exchange);
        }
        self.exchange.is_over = true;
    }

    fn fail(mut self, cause: String) {
        if let Some(leg) = &self.leg {
            let counters = &leg.entry.backend().counters;
            counters.failures.add(1);
            counters.broken_off.add(1);
            leg.note_upload(&mut self.exchange);
        }
        self.exchange.fail(cause);
    }
}

struct EventRelay {
    body: Incoming,
    boundary: EventBoundary,
    due: drain::Due,
    stream: OpenStream,
    exchange: Box<Exchange>,
    is_ending: bool,
    is_done: bool,
    /// Held so that the connection stays open as long as the stream.
    _sender: Upstream,
}

/// Passes an event stream on. In a drain it ends between two events, without an error.
pub(crate) fn relay_events(body: Incoming, leg: Leg, exchange: Box<Exchange>) -> AnswerBody {
    let Leg {
        thread,
        sender,
        entry,
        progress: _,
        may_pool: _,
    } = leg;
    let due = drain::Due::new(entry.backend(), &thread.shared);
    let relay = EventRelay {
        body,
        boundary: EventBoundary::default(),
        due,
        stream: entry.into_stream(),
        exchange,
        is_ending: false,
        is_done: false,
        _sender: sender,
    };
    let frames = stream::unfold(Some(relay), |relay| async {
        let mut relay = relay?;
        match relay.step().await {
            Step::Data(frame) => Some((Ok(frame), Some(relay))),
            Step::End => {
                relay.exchange.is_over = true;
                None
            }
            Step::Failed(cause) => {
                relay.stream.end = StreamEnd::Cut;
                relay.exchange.fail(cause);
                Some((Err(Broken), None))
            }
        }
    });
    Kind::Relayed(Box::pin(frames)).into()
}

impl EventRelay {
    async fn step(&mut self) -> Step {
        loop {
            if self.is_done || (self.is_ending && self.boundary.is_between_events()) {
                self.stream.end = StreamEnd::Drained;
                return Step::End;
            }
            tokio::select! {
                biased;
                () = self.due.wait(self.is_ending) => {
                    if self.is_ending {
                        let cause = "no end of an event until the end of the drain";
                        return Step::Failed(cause.into());
                    }
                    self.is_ending = true;
                }
                frame = self.body.frame() => match frame {
                    Some(Ok(frame)) => return Step::Data(self.pass(frame)),
                    Some(Err(error)) => {
                        return Step::Failed(format!("the backend's stream broke off: {error}"));
                    }
                    None => return Step::End,
                },
            }
        }
    }

    fn pass(&mut self, frame: Frame<Bytes>) -> Frame<Bytes> {
        let Ok(mut data) = frame.into_data() else {
            return Frame::data(Bytes::new());
        };
        if !self.is_ending {
            self.boundary.feed(&data);
        } else if let Some(end) = self.boundary.feed_to_boundary(&data) {
            data.truncate(end);
            self.is_done = true;
        }
        self.exchange.bytes_out += data.len() as u64;
        Frame::data(data)
    }
}

/// Whether an answer is an event stream whose events can be told apart.
pub(crate) fn is_event_stream(headers: &http::HeaderMap) -> bool {
    let starts = |name, text: &str| {
        let value = headers
            .get(name)
            .and_then(|value: &http::HeaderValue| value.to_str().ok());
        value.is_some_and(|value| value.trim_start().to_ascii_lowercase().starts_with(text))
    };
    starts(http::header::CONTENT_TYPE, "text/event-stream")
        && !headers.contains_key(http::header::CONTENT_LENGTH)
        && (!headers.contains_key(http::header::CONTENT_ENCODING)
            || starts(http::header::CONTENT_ENCODING, "identity"))
}
