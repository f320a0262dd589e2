//! One connection between its requests and within them: what was read and is not done with, what is written and not taken, and
//! where the scanner stands.
//!
//! Several may hold it: the task of the connection, and whoever sends a request's body on, which may be another task.
//! The socket wakes one reader at a time, so the connection itself reads only where no body is left to be read.

use std::{
    cell::{Cell, RefCell},
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
};

use bytes::{Buf as _, Bytes, BytesMut};
use http_body::Frame;
use landfast_framing::{Field, Limits, Refusal, Scanner, Step};
use tokio::io::{AsyncRead as _, ReadBuf};
use tokio_util::io::poll_read_buf;

use super::{
    Source,
    answer::{Answer, TOGETHER_MAX, Turn},
    head::{self, Received},
    output::Output,
};
use crate::{
    activity::Activity,
    client_io::{ClientIo, Transport},
    request_body::BrokenOff,
};

/// Room for the first read of a request, shared by the connections of a thread.
const FIRST_READ: usize = 16 << 10;
/// Read at a time where a head or chunks come in pieces.
const PIECE: usize = 4 << 10;
/// Read of a body at a time, where it comes as fast as that. A slow one is read in pieces: what is reserved is held.
const BODY_READ_MAX: usize = 32 << 10;
/// Kept of what a client sends before its request for another protocol is answered.
const EARLY_BYTES_MAX: usize = 16 << 10;
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

thread_local! {
    static INPUT: RefCell<Vec<u8>> = RefCell::new(vec![0; FIRST_READ]);
    static OUTPUT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    /// The list of fields of one request; most are handled before the next is read.
    static FIELDS: Cell<Vec<Field>> = const { Cell::new(Vec::new()) };
}

/// What comes next on a connection.
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all are requests; a box would cost each of them an allocation"
)]
pub(super) enum Next {
    Request(Received),
    Refused(Refusal),
    /// Nothing more, in order.
    End,
}

/// See the head of the module.
pub(super) struct Conn<S>(RefCell<State<S>>);

struct State<S> {
    /// Gone once the connection is over or became another's.
    io: Option<ClientIo<S>>,
    activity: Rc<Activity>,
    scanner: Scanner,
    /// Read, and not done with.
    buffer: BytesMut,
    output: Output,
    /// Counts the requests: who still holds the body of an earlier one must not read the next one's.
    number: u64,
    /// The request under way asked for another protocol.
    is_upgrade: bool,
    /// The client waits for a word before it sends the body.
    expects: bool,
    /// How much of the body is read next.
    room: usize,
    /// The stream ended, or what came was refused.
    is_broken: bool,
    /// Who waits for the body.
    reader: Option<Waker>,
}

impl<S: Transport> Conn<S> {
    pub(super) fn new(io: ClientIo<S>, limits: Limits, activity: Rc<Activity>) -> Self {
        Self(RefCell::new(State {
            io: Some(io),
            activity,
            scanner: Scanner::new(limits),
            buffer: BytesMut::new(),
            output: Output::default(),
            number: 0,
            is_upgrade: false,
            expects: false,
            room: PIECE,
            is_broken: false,
            reader: None,
        }))
    }

    /// Waits for the next request.
    pub(super) fn poll_next(&self, cx: &mut Context<'_>) -> Poll<io::Result<Next>> {
        self.0.borrow_mut().poll_next(cx)
    }

    /// Ready once the client has left. Nothing is looked at while a body is left to be read.
    pub(super) fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<io::Error> {
        self.0.borrow_mut().poll_gone(cx)
    }

    /// Writes an answer to its end.
    pub(super) fn poll_answer(
        &self,
        cx: &mut Context<'_>,
        answer: &mut Answer,
    ) -> Poll<io::Result<()>> {
        loop {
            {
                let mut state = self.0.borrow_mut();
                ready!(state.poll_flush(cx))?;
                if answer.is_over {
                    return Poll::Ready(Ok(()));
                }
            }
            // The body is asked while nobody holds the connection: it may be the request's that it waits for.
            let is_waiting = OUTPUT.with_borrow_mut(|first| {
                first.clear();
                let (data, end, turn) = answer.gather(cx, first);
                let mut state = self.0.borrow_mut();
                state.write(cx, first, data, end)?;
                first.shrink_to(4 * TOGETHER_MAX);
                match turn {
                    Turn::Goes => Ok(false),
                    Turn::Waits => Ok(true),
                    Turn::Broke => Err(io::Error::other("the answer broke off")),
                }
            })?;
            if is_waiting {
                let mut state = self.0.borrow_mut();
                if let Poll::Ready(flushed) = state.poll_flush(cx) {
                    flushed?;
                }
                return state.poll_gone(cx).map(Err);
            }
        }
    }

    /// Goes on behind the request under way; tells whether another may follow.
    pub(super) fn is_ready(&self) -> bool {
        self.0.borrow_mut().is_ready()
    }

    /// The number of the request under way.
    pub(super) fn number(&self) -> u64 {
        self.0.borrow().number
    }

    /// Takes the stream away, with what was read of it and is not done with. Who still waits for a body gets none.
    pub(super) fn take(&self) -> Option<(ClientIo<S>, Bytes)> {
        let (io, early, reader) = {
            let mut state = self.0.borrow_mut();
            let early = std::mem::take(&mut state.buffer).freeze();
            (state.io.take(), early, state.reader.take())
        };
        if let Some(reader) = reader {
            reader.wake();
        }
        io.map(|io| (io, early))
    }
}

impl<S: Transport> Source for Conn<S> {
    fn poll_frame(
        &self,
        number: u64,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        let mut state = self.0.borrow_mut();
        if state.number == number {
            state.poll_body(cx)
        } else {
            Poll::Ready(None)
        }
    }

    fn is_over(&self, number: u64) -> bool {
        let state = self.0.borrow();
        state.number != number || state.scanner.is_body_over()
    }

    fn left(&self, number: u64) -> Option<u64> {
        let state = self.0.borrow();
        (state.number == number).then(|| state.scanner.body_left())?
    }
}

fn gone() -> io::Error {
    io::ErrorKind::UnexpectedEof.into()
}

impl<S: Transport> State<S> {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Next>> {
        if !self.buffer.is_empty() {
            self.activity.begin_head();
        }
        loop {
            if !self.buffer.is_empty() {
                match self.scanner.step(&self.buffer) {
                    Ok(Step::Head(head)) => {
                        let bytes = self.buffer.split_to(head.length).freeze();
                        return Poll::Ready(Ok(self.begin(&bytes, &head)));
                    }
                    Ok(_) => {}
                    Err(refusal) => return Poll::Ready(Ok(Next::Refused(refusal))),
                }
            }
            let is_idle = self.buffer.is_empty();
            if is_idle && self.activity.is_closing() {
                return Poll::Ready(Ok(Next::End));
            }
            if is_idle {
                let Poll::Ready(next) = self.poll_first(cx) else {
                    // An idle connection has no buffer.
                    self.buffer = BytesMut::new();
                    return Poll::Pending;
                };
                if let Some(next) = next? {
                    return Poll::Ready(Ok(next));
                }
            } else if ready!(self.poll_read(cx, PIECE))? == 0 {
                return Poll::Ready(Err(gone()));
            }
        }
    }

    /// Reads the first bytes of a request into the thread's own memory. Most requests are whole then.
    fn poll_first(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Next>>> {
        INPUT.with_borrow_mut(|input| {
            let Some(io) = &mut self.io else {
                return Poll::Ready(Err(gone()));
            };
            let mut input = ReadBuf::new(input);
            ready!(Pin::new(io).poll_read(cx, &mut input))?;
            let input = input.filled();
            if input.is_empty() {
                return Poll::Ready(Ok(Some(Next::End)));
            }
            self.scanner.give_room(FIELDS.take());
            Poll::Ready(Ok(match self.scanner.step(input) {
                Ok(Step::Head(head)) => {
                    let (bytes, rest) = input.split_at(head.length);
                    let bytes = Bytes::copy_from_slice(bytes);
                    self.buffer.extend_from_slice(rest);
                    Some(self.begin(&bytes, &head))
                }
                Ok(_) => {
                    self.buffer.extend_from_slice(input);
                    None
                }
                Err(refusal) => Some(Next::Refused(refusal)),
            }))
        })
    }

    fn begin(&mut self, bytes: &Bytes, head: &landfast_framing::Head) -> Next {
        if let Err(refusal) = self.scanner.look_ahead(&self.buffer) {
            return Next::Refused(refusal);
        }
        let received = head::read(bytes, head, self.scanner.fields());
        FIELDS.set(self.scanner.take_room());
        let Some(received) = received else {
            return Next::Refused(Refusal::Target);
        };
        self.number += 1;
        self.expects = received.expects;
        self.is_upgrade = received.is_upgrade;
        Next::Request(received)
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, room: usize) -> Poll<io::Result<usize>> {
        let Some(io) = &mut self.io else {
            return Poll::Ready(Err(gone()));
        };
        ready!(io.poll_readable(cx))?;
        self.buffer.reserve(room);
        let read = poll_read_buf(Pin::new(io), cx, &mut self.buffer);
        if read.is_pending() && self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
        read
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        // Whoever reads the body is who notices.
        if !self.scanner.is_body_over() {
            return Poll::Pending;
        }
        loop {
            let is_full = if self.is_upgrade {
                self.buffer.len() >= EARLY_BYTES_MAX
            } else {
                !self.buffer.is_empty()
            };
            if is_full {
                return Poll::Pending;
            }
            match ready!(self.poll_read(cx, PIECE)) {
                Ok(0) => return Poll::Ready(gone()),
                Ok(_) => {}
                Err(error) => return Poll::Ready(error),
            }
        }
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        loop {
            if self.is_broken || self.io.is_none() {
                return Poll::Ready(Some(Err(BrokenOff)));
            }
            // Behind the body is the next request, which is not looked at yet.
            if self.scanner.is_body_over() {
                return Poll::Ready(None);
            }
            match self.scanner.step(&self.buffer) {
                Ok(Step::Data { skipped, length }) => {
                    self.buffer.advance(skipped);
                    let data = self.buffer.split_to(length).freeze();
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Ok(Step::Trailer { skipped, length }) => {
                    self.buffer.advance(skipped);
                    let bytes = self.buffer.split_to(length);
                    let trailers = head::trailers(&bytes, self.scanner.fields());
                    self.is_broken = trailers.is_none();
                    return Poll::Ready(Some(trailers.map(Frame::trailers).ok_or(BrokenOff)));
                }
                Ok(Step::End { skipped }) => {
                    self.buffer.advance(skipped);
                    return Poll::Ready(None);
                }
                Ok(Step::More { used }) => self.buffer.advance(used),
                Ok(Step::Head(_) | Step::Left) => return Poll::Ready(None),
                Err(refusal) => {
                    self.activity.refuse(refusal);
                    self.is_broken = true;
                    continue;
                }
            }
            let left = self.scanner.body_left().unwrap_or(PIECE as u64);
            let left = usize::try_from(left).unwrap_or(BODY_READ_MAX);
            let room = left.clamp(PIECE, self.room);
            self.say_continue(cx);
            match self.poll_read(cx, room) {
                Poll::Pending => {
                    self.reader = Some(cx.waker().clone());
                    return Poll::Pending;
                }
                Poll::Ready(Ok(0) | Err(_)) => self.is_broken = true,
                Poll::Ready(Ok(read)) if read >= room => {
                    self.room = (2 * self.room).min(BODY_READ_MAX);
                }
                Poll::Ready(Ok(read)) if read < room / 4 => self.room = PIECE,
                Poll::Ready(Ok(_)) => {}
            }
        }
    }

    /// Somebody wants the body: its client may send it (RFC 9110, 10.1.1).
    fn say_continue(&mut self, cx: &mut Context<'_>) {
        if !std::mem::take(&mut self.expects) || !self.buffer.is_empty() {
            return;
        }
        self.output.push(CONTINUE);
        // What is not taken goes before the answer; a client that left is noticed by reading.
        drop(self.poll_flush(cx));
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Some(io) => self.output.poll_flush(io, cx),
            None => Poll::Ready(Err(gone())),
        }
    }

    fn write(
        &mut self,
        cx: &mut Context<'_>,
        first: &[u8],
        data: Bytes,
        end: &'static [u8],
    ) -> io::Result<()> {
        if first.is_empty() && data.is_empty() {
            return Ok(());
        }
        match &mut self.io {
            Some(io) => self.output.write(io, cx, first, data, end),
            None => Err(gone()),
        }
    }

    fn is_ready(&mut self) -> bool {
        if self.is_broken || !self.scanner.is_body_over() {
            return false;
        }
        // A body that was read leaves its end unsaid where nobody asked once more.
        if !self.scanner.is_between() {
            match self.scanner.step(&[]) {
                Ok(Step::End { .. }) => {}
                Ok(_) | Err(_) => return false,
            }
        }
        !self.is_upgrade
    }
}
