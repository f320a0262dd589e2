//! The body of an answer on its way to the client: nothing, a few bytes of our own, or the backend's stream
//! with the things that must last as long as it does.

use std::{
    future::Future,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, stream};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use landfast_routing::{grpc, headers, sse::EventBoundary};

use crate::{
    activity::Busy,
    backend::{Backend, InFlight, OpenStream, StreamEnd, requests_cut},
    drain,
    exchange::Exchange,
    pool,
    request_body::Progress,
    thread::{self, Thread},
    upstream::{BackendBody, Upstream},
    wire::After,
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
    Backend(Box<Relay>),
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
            Kind::Backend(relay) => pass_turn(relay.poll(cx)),
            Kind::Relayed(frames) => pass_turn(frames.as_mut().poll_next(cx)),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Empty | Kind::Whole(None) => true,
            Kind::Backend(relay) => relay.body.is_none(),
            Kind::Whole(Some(_)) | Kind::Relayed(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Empty | Kind::Whole(None) => SizeHint::with_exact(0),
            Kind::Whole(Some(bytes)) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Backend(_) | Kind::Relayed(_) => SizeHint::default(),
        }
    }
}

/// Notes whose turn it is after this: the client's, which is to take these bytes, or ours.
fn pass_turn<E>(
    polled: Poll<Option<Result<Frame<Bytes>, E>>>,
) -> Poll<Option<Result<Frame<Bytes>, E>>> {
    let given = |frame: &Option<Result<Frame<Bytes>, E>>| match frame {
        Some(Ok(frame)) => frame.data_ref().map_or(0, Bytes::len) as u64,
        Some(Err(_)) | None => 0,
    };
    thread::pass_turn(match &polled {
        Poll::Ready(frame) => Some(given(frame)),
        Poll::Pending => None,
    });
    polled
}

/// The upstream leg of an exchange whose answer has begun.
pub(crate) struct Leg {
    pub(crate) thread: Rc<Thread>,
    /// The connection, where it is hyper's. One of ours comes with the body.
    pub(crate) sender: Option<Upstream>,
    pub(crate) entry: InFlight,
    /// Of a streamed request body.
    pub(crate) progress: Option<Rc<Progress>>,
}

impl Leg {
    /// The answer is complete: the connection may serve another request.
    pub(crate) fn finish(self, body: BackendBody, exchange: &mut Exchange) {
        self.note_upload(exchange);
        let BackendBody::Wire(body) = body else {
            return;
        };
        match body.into_wire() {
            After::Kept(wire) => pool::give_back(&self.thread, self.entry.backend(), wire),
            After::Sending(wire) => self.thread.spawn(wire.send_rest()),
            After::Closed => {}
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

/// An answer that is passed on as it comes.
struct Relay {
    /// These three until the end.
    body: Option<BackendBody>,
    leg: Option<Leg>,
    exchange: Option<Box<Exchange>>,
    idle: Duration,
    /// There while nothing comes; most frames are there at once. Gives why it is waited for no longer.
    waiting: Option<Pin<Box<dyn Future<Output = &'static str>>>>,
    is_grpc: bool,
}

/// Passes a backend's answer on. `is_grpc`: one that breaks off may end with a status instead of a reset.
pub(crate) fn relay(
    body: BackendBody,
    leg: Leg,
    mut exchange: Box<Exchange>,
    idle: Duration,
    is_grpc: bool,
) -> AnswerBody {
    if body.is_end_stream() {
        leg.finish(body, &mut exchange);
        exchange.is_over = true;
        return AnswerBody::empty();
    }
    let relay = Relay {
        body: Some(body),
        leg: Some(leg),
        exchange: Some(exchange),
        idle,
        waiting: None,
        is_grpc,
    };
    Kind::Backend(Box::new(relay)).into()
}

impl Relay {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let (Some(body), Some(leg), Some(exchange)) =
            (&mut self.body, &self.leg, &mut self.exchange)
        else {
            return Poll::Ready(None);
        };
        let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(cx) else {
            let (idle, entry) = (self.idle, &leg.entry);
            let waiting = self
                .waiting
                .get_or_insert_with(|| Box::pin(given_up(idle, Arc::clone(entry.backend()))));
            let cause = ready!(waiting.as_mut().poll(cx));
            return Poll::Ready(Some(self.fail(cause.to_owned())));
        };
        self.waiting = None;
        match frame {
            Some(Ok(mut frame)) => {
                exchange.bytes_out += frame.data_ref().map_or(0, Bytes::len) as u64;
                if let Some(trailers) = frame.trailers_mut() {
                    headers::clean_trailers(trailers);
                }
                // After the last byte that was announced nobody asks for more: hyper drops the body of an HTTP/1 answer
                // without reading on to its end.
                if body.is_end_stream() {
                    self.finish();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                let cause = format!("the backend's answer broke off: {error}");
                Poll::Ready(Some(self.fail(cause)))
            }
            None => {
                self.finish();
                Poll::Ready(None)
            }
        }
    }

    fn finish(&mut self) {
        if let (Some(leg), Some(body), Some(mut exchange)) =
            (self.leg.take(), self.body.take(), self.exchange.take())
        {
            leg.finish(body, &mut exchange);
            exchange.is_over = true;
        }
    }

    fn fail(&mut self, cause: String) -> Result<Frame<Bytes>, Broken> {
        self.body = None;
        if let (Some(leg), Some(mut exchange)) = (self.leg.take(), self.exchange.take()) {
            let counters = &leg.entry.backend().counters;
            counters.failures.add(1);
            counters.broken_off.add(1);
            leg.note_upload(&mut exchange);
            exchange.fail(cause);
        }
        // A gRPC client is told in its own words that it may try again.
        let ending = || grpc::status_fields(grpc::UNAVAILABLE, "the answer broke off");
        let last = self.is_grpc.then(|| Frame::trailers(ending()));
        last.ok_or(Broken)
    }
}

/// Ends when the rest of an answer has to be given up, and says why.
async fn given_up(idle: Duration, backend: Arc<Backend>) -> &'static str {
    let mut phase = backend.phase();
    tokio::select! {
        () = tokio::time::sleep(idle) => "the backend stopped sending",
        () = requests_cut(&mut phase) => "cut at the end of the drain",
    }
}

struct EventRelay {
    body: BackendBody,
    boundary: EventBoundary,
    due: drain::Due,
    stream: OpenStream,
    exchange: Box<Exchange>,
    is_ending: bool,
    is_done: bool,
    /// Held so that the connection stays open as long as the stream.
    _sender: Option<Upstream>,
}

/// Passes an event stream on. In a drain it ends between two events, without an error.
pub(crate) fn relay_events(body: BackendBody, leg: Leg, exchange: Box<Exchange>) -> AnswerBody {
    let Leg {
        thread,
        sender,
        entry,
        progress: _,
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
        let start = value.and_then(|value| value.trim_start().get(..text.len()));
        start.is_some_and(|start| start.eq_ignore_ascii_case(text))
    };
    starts(http::header::CONTENT_TYPE, "text/event-stream")
        && !headers.contains_key(http::header::CONTENT_LENGTH)
        && (!headers.contains_key(http::header::CONTENT_ENCODING)
            || starts(http::header::CONTENT_ENCODING, "identity"))
}
