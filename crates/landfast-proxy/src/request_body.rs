//! The body on its way to a backend: nothing, a few bytes kept for a second try, or the client's stream,
//! counted and bounded.

use std::{
    cell::Cell,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use landfast_routing::headers;
use tokio::time::{Instant, Sleep};

use crate::{clock, http1, patience::Patience};

/// Why a body did not arrive whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("the request body is larger than the route allows")]
    TooLarge,
    #[error("the client sends the request body too slowly")]
    Idle,
    #[error("the client went away while it sent the request body")]
    ClientGone,
}

/// What is known of a streamed body while it is under way.
#[derive(Debug)]
pub(crate) struct Progress {
    pub(crate) bytes: Cell<u64>,
    pub(crate) at: Cell<Instant>,
    pub(crate) ended: Cell<bool>,
    pub(crate) failed: Cell<Option<BodyError>>,
    /// The answer has begun: from here on both sides may take their time.
    pub(crate) answered: Cell<bool>,
}

/// The body of a request as it comes from the client.
pub(crate) enum ClientBody {
    Empty,
    Http1(http1::RequestBody),
    Hyper(Incoming),
}

/// The client, or what it sent, broke off.
#[derive(Debug, thiserror::Error)]
#[error("the request body broke off")]
pub(crate) struct BrokenOff;

impl Body for ClientBody {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Http1(body) => body.poll_frame(cx),
            Self::Hyper(body) => Pin::new(body)
                .poll_frame(cx)
                .map(|frame| frame.map(|frame| frame.map_err(|_| BrokenOff))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Http1(body) => body.is_over(),
            Self::Hyper(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Http1(body) => body
                .left()
                .map_or_else(SizeHint::default, SizeHint::with_exact),
            Self::Hyper(body) => body.size_hint(),
        }
    }
}

/// A body as hyper's client takes it.
pub(crate) enum RequestBody {
    Empty,
    Whole(Option<Bytes>),
    Streamed(Box<Streamed>),
}

/// The client's own stream.
pub(crate) struct Streamed {
    incoming: ClientBody,
    progress: Rc<Progress>,
    bytes_max: u64,
    /// The longest silence, and all the waiting that bytes do not make good.
    idle: Duration,
    /// Whether it has to come at a rate.
    is_paced: bool,
    patience: Patience,
    waiting: Option<Waiting>,
}

/// Since when, and how long at most.
struct Waiting {
    since: Instant,
    timer: Pin<Box<Sleep>>,
}

impl RequestBody {
    pub(crate) fn streamed(
        incoming: ClientBody,
        bytes_max: u64,
        idle: Duration,
        is_paced: bool,
    ) -> (Self, Rc<Progress>) {
        let progress = Rc::new(Progress {
            bytes: Cell::new(0),
            at: Cell::new(clock::instant()),
            ended: Cell::new(false),
            failed: Cell::new(None),
            answered: Cell::new(false),
        });
        let seen = Rc::clone(&progress);
        let streamed = Streamed {
            incoming,
            progress,
            bytes_max,
            idle,
            is_paced,
            patience: Patience::default(),
            waiting: None,
        };
        (Self::Streamed(Box::new(streamed)), seen)
    }
}

impl Streamed {
    /// The stream of a body that was never sent.
    pub(crate) fn into_incoming(self) -> ClientBody {
        self.incoming
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = Pin::new(&mut self.incoming).poll_frame(cx);
        let Poll::Ready(frame) = polled else {
            let patience = self.patience.left(self.idle);
            let waiting = self.waiting.get_or_insert_with(|| Waiting {
                since: clock::instant(),
                timer: Box::pin(tokio::time::sleep(patience)),
            });
            ready!(waiting.timer.as_mut().poll(cx));
            return Poll::Ready(Some(Err(BodyError::Idle)));
        };
        let now = clock::instant();
        self.progress.at.set(now);
        let waited = self.waiting.take();
        if let Some(waiting) = waited.filter(|_| self.is_paced && !self.progress.answered.get()) {
            let time = now.saturating_duration_since(waiting.since);
            self.patience.waited(time);
        }
        match frame {
            None => {
                self.progress.ended.set(true);
                Poll::Ready(None)
            }
            Some(Err(_)) => Poll::Ready(Some(Err(BodyError::ClientGone))),
            Some(Ok(mut frame)) => {
                let length = frame.data_ref().map_or(0, Bytes::len) as u64;
                self.patience.moved(length);
                let bytes = self.progress.bytes.get() + length;
                self.progress.bytes.set(bytes);
                if bytes > self.bytes_max {
                    return Poll::Ready(Some(Err(BodyError::TooLarge)));
                }
                // Nobody asks for more after a trailer.
                if frame.is_trailers() || self.incoming.is_end_stream() {
                    self.progress.ended.set(true);
                }
                if let Some(trailers) = frame.trailers_mut() {
                    headers::clean_request_trailers(trailers);
                }
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Streamed(streamed) => {
                let polled = ready!(streamed.poll(cx));
                if let Some(Err(error)) = &polled {
                    streamed.progress.failed.set(Some(*error));
                }
                Poll::Ready(polled)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty | Self::Whole(None) => true,
            Self::Whole(Some(_)) => false,
            Self::Streamed(streamed) => streamed.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty | Self::Whole(None) => SizeHint::with_exact(0),
            Self::Whole(Some(bytes)) => SizeHint::with_exact(bytes.len() as u64),
            Self::Streamed(streamed) => streamed.incoming.size_hint(),
        }
    }
}
