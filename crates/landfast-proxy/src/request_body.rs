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

use crate::clock;

/// Why a body did not arrive whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("the request body is larger than the route allows")]
    TooLarge,
    #[error("the client stopped sending the request body")]
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
}

/// A body as hyper's client takes it.
pub(crate) enum RequestBody {
    Empty,
    Whole(Option<Bytes>),
    Streamed(Box<Streamed>),
}

/// The client's own stream.
pub(crate) struct Streamed {
    incoming: Incoming,
    progress: Rc<Progress>,
    bytes_max: u64,
    idle: Duration,
    timer: Option<Pin<Box<Sleep>>>,
}

impl RequestBody {
    pub(crate) fn streamed(
        incoming: Incoming,
        bytes_max: u64,
        idle: Duration,
    ) -> (Self, Rc<Progress>) {
        let progress = Rc::new(Progress {
            bytes: Cell::new(0),
            at: Cell::new(clock::instant()),
            ended: Cell::new(false),
            failed: Cell::new(None),
        });
        let seen = Rc::clone(&progress);
        let streamed = Streamed {
            incoming,
            progress,
            bytes_max,
            idle,
            timer: None,
        };
        (Self::Streamed(Box::new(streamed)), seen)
    }
}

impl Streamed {
    /// The stream of a body that was never sent.
    pub(crate) fn into_incoming(self) -> Incoming {
        self.incoming
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = Pin::new(&mut self.incoming).poll_frame(cx);
        let Poll::Ready(frame) = polled else {
            let idle = self.idle;
            let timer = self
                .timer
                .get_or_insert_with(|| Box::pin(tokio::time::sleep(idle)));
            ready!(timer.as_mut().poll(cx));
            return Poll::Ready(Some(Err(BodyError::Idle)));
        };
        self.timer = None;
        self.progress.at.set(clock::instant());
        match frame {
            None => {
                self.progress.ended.set(true);
                Poll::Ready(None)
            }
            Some(Err(_)) => Poll::Ready(Some(Err(BodyError::ClientGone))),
            Some(Ok(mut frame)) => {
                let length = frame.data_ref().map_or(0, Bytes::len) as u64;
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
