//! The strict scanner between a client's socket and hyper: every byte of HTTP/1.1 passes it before hyper sees it.
//!
//! hyper forgives what another reader may not, and drops some of it without a trace (a `Content-Length` after a
//! `Transfer-Encoding`), so nothing above it can tell. What the scanner refuses never gets there. In its place hyper
//! reads one small request of ours, [`STAND_IN`], which the handler answers with the refusal: so the answer comes
//! in its turn, after those of earlier pipelined requests, is written down like any other, and is the last.
//!
//! A request in one piece is scanned in hyper's own buffer; only a head that comes in several is held here.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{Method, Request};
use landfast_framing::{Limits, Refusal, Scanner, Stop};
use tokio::io::{AsyncRead, ReadBuf};
use tokio_util::io::poll_read_buf;

use crate::connection::Activity;

/// What hyper reads where a request was refused. No request that passes looks like it: `*` is for OPTIONS alone.
const STAND_IN: &[u8] = b"GET * HTTP/1.1\r\nhost: refused\r\n\r\n";
/// Read at a time where a head comes in pieces.
const PIECE: usize = 4 << 10;
/// Kept of what a client sends before its request for another protocol is answered.
const EARLY_BYTES_MAX: usize = 16 << 10;

/// What was refused on a connection, for its handler.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Refused {
    pub(crate) refusal: Refusal,
    /// The request whose body broke is with the handler already.
    is_begun: bool,
}

impl Refused {
    /// Whether this request is the one that stands in for the refused.
    pub(crate) fn is<B>(self, request: &Request<B>) -> bool {
        !self.is_begun && *request.method() == Method::GET && request.uri().path() == "*"
    }

    /// Whether the body of the request under way is what broke.
    pub(crate) fn is_begun(self) -> bool {
        self.is_begun
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Http,
    /// Another protocol was asked for: nothing passes before the answer.
    Asked,
    /// Another protocol was agreed on: everything passes.
    Tunnel,
    Refused {
        is_begun: bool,
    },
}

/// The scanner of one connection, with what it does not let pass yet.
pub(crate) struct Gate {
    scanner: Scanner,
    state: State,
    held: Vec<u8>,
    /// How many of the held bytes may pass.
    ready: usize,
    /// How many of those did.
    given: usize,
}

impl Gate {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            scanner: Scanner::new(limits),
            state: State::Http,
            held: Vec::new(),
            ready: 0,
            given: 0,
        }
    }

    /// Whether there is nothing left for it to do.
    pub(crate) fn is_done(&self) -> bool {
        self.state == State::Tunnel && self.held.is_empty()
    }

    /// Reads what may pass.
    pub(crate) fn poll_read<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        activity: &Activity,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if self.state == State::Asked && activity.is_tunnel() {
                self.state = State::Tunnel;
                self.ready = self.held.len();
            }
            if self.give(buffer) {
                return Poll::Ready(Ok(()));
            }
            match self.state {
                State::Http if self.held.is_empty() => {
                    let before = buffer.filled().len();
                    ready!(Pin::new(&mut *stream).poll_read(cx, buffer))?;
                    if buffer.filled().len() == before {
                        return Poll::Ready(Ok(()));
                    }
                    activity.read();
                    if self.scan_in_place(buffer, before, activity) {
                        return Poll::Ready(Ok(()));
                    }
                }
                State::Asked if self.held.len() >= EARLY_BYTES_MAX => return Poll::Pending,
                State::Http | State::Asked => {
                    self.held.reserve(PIECE);
                    let read = poll_read_buf(Pin::new(&mut *stream), cx, &mut self.held);
                    if ready!(read)? == 0 {
                        return Poll::Ready(Ok(()));
                    }
                    activity.read();
                    if self.state == State::Http {
                        self.scan_held(activity);
                    }
                }
                State::Tunnel => {
                    let before = buffer.filled().len();
                    let polled = Pin::new(&mut *stream).poll_read(cx, buffer);
                    if buffer.filled().len() > before {
                        activity.read();
                    }
                    return polled;
                }
                // The answer to what stands in ends the connection.
                State::Refused { is_begun: false } => return Poll::Pending,
                State::Refused { is_begun: true } => {
                    return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
                }
            }
        }
    }

    /// Hands over what may pass; tells whether there was any.
    fn give(&mut self, buffer: &mut ReadBuf<'_>) -> bool {
        if self.given == self.ready {
            return false;
        }
        let count = buffer.remaining().min(self.ready - self.given);
        buffer.put_slice(&self.held[self.given..self.given + count]);
        self.given += count;
        if self.given == self.ready {
            self.held.drain(..self.given);
            (self.given, self.ready) = (0, 0);
            if self.held.is_empty() {
                // An idle connection has no buffer.
                self.held = Vec::new();
            }
        }
        true
    }

    /// Scans what was read right into hyper's buffer, and takes back what may not pass yet.
    fn scan_in_place(
        &mut self,
        buffer: &mut ReadBuf<'_>,
        before: usize,
        activity: &Activity,
    ) -> bool {
        let scan = self.scanner.scan(&buffer.filled()[before..]);
        let pass = before + scan.pass;
        self.held.extend_from_slice(&buffer.filled()[pass..]);
        buffer.set_filled(pass);
        self.stop(scan.stop, activity);
        scan.pass > 0
    }

    fn scan_held(&mut self, activity: &Activity) {
        let scan = self.scanner.scan(&self.held);
        self.ready = scan.pass;
        self.stop(scan.stop, activity);
    }

    fn stop(&mut self, stop: Option<Stop>, activity: &Activity) {
        match stop {
            None => {}
            Some(Stop::Upgrade) => self.state = State::Asked,
            Some(Stop::Refused { refusal, is_begun }) => {
                activity.refuse(Refused { refusal, is_begun });
                self.state = State::Refused { is_begun };
                self.held.truncate(self.ready);
                if !is_begun {
                    self.held.extend_from_slice(STAND_IN);
                    self.ready = self.held.len();
                }
            }
        }
    }
}
