//! An HTTP/1.1 connection to a backend, without a task of its own: whoever asks writes the request and reads the
//! answer. That is most of what a proxy does, and costs a third less than handing both to another task and back.
//!
//! It carries requests whose body is at hand. Uploads that are passed on as they come, and connections that become
//! tunnels, go over hyper's client ([`crate::pool::connect`]).
//!
//! An idle connection has no buffer. One that has anything to read while it is idle is not used again, and closed by the next
//! sweep.

mod body;
mod head;
#[cfg(test)]
mod tests;

use std::{
    cell::RefCell,
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf as _, Bytes, BytesMut};
use http::{Method, Response};
use http_body::{Body, Frame, SizeHint};
use landfast_routing::retry::Sent;
use tokio::{
    io::{AsyncRead as _, AsyncWrite as _, ReadBuf},
    net::TcpStream,
};
use tokio_util::io::poll_read_buf;

use self::body::{Framing, Piece};
use crate::{descriptors::Taken, forward::Outgoing, pool::ConnectError};

/// Room for the first read: a head, and a short body with it.
const FIRST_READ: usize = 8 << 10;
const READ_MAX: usize = 32 << 10;
/// A body up to this size is written together with its head.
const TOGETHER_MAX: usize = 16 << 10;
/// How long the rest of a request is still sent after its answer is complete.
const REST_MAX: Duration = Duration::from_secs(5);

thread_local! {
    /// Where requests are put together: most are taken by the kernel at once, and nothing is left of them.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    /// Where what is short is read: a buffer has the size of what came, not of what might.
    static INPUT: RefCell<Vec<u8>> = RefCell::new(vec![0; FIRST_READ]);
}

/// Why there is no answer, or no more of it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("the connection was closed")]
    Closed,
    #[error("the answer's head is malformed: {0}")]
    Head(httparse::Error),
    #[error("the answer's head is too large")]
    HeadTooLarge,
    #[error("the answer's length is given in two ways, or not as a number")]
    Framing,
    #[error("the answer's chunks are malformed")]
    Chunk,
    #[error("the backend switched protocols without being asked")]
    Switched,
}

impl WireError {
    /// Whether it means that an answer came, which is the backend's own word, if one that nobody can read.
    fn sent(&self) -> Option<Sent> {
        match self {
            Self::Io(_) | Self::Closed => None,
            Self::Head(_) | Self::HeadTooLarge | Self::Framing | Self::Chunk | Self::Switched => {
                Some(Sent::Answered)
            }
        }
    }
}

/// See the head of the module.
#[derive(Debug)]
pub(crate) struct Wire {
    stream: TcpStream,
    buffer: BytesMut,
    /// What of the request the kernel has not taken yet.
    unsent: Bytes,
    /// The right to its descriptor.
    _place: Taken,
}

impl Wire {
    /// Opens a connection. `place`: the right to its descriptor.
    pub(crate) async fn connect(
        address: SocketAddr,
        timeout: Duration,
        place: Taken,
    ) -> Result<Self, ConnectError> {
        let connecting = tokio::time::timeout(timeout, TcpStream::connect(address));
        let stream = connecting.await.map_err(|_| ConnectError::Timeout)??;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            buffer: BytesMut::new(),
            unsent: Bytes::new(),
            _place: place,
        })
    }

    /// Whether an idle connection is still open, as far as the last look at the sockets showed.
    pub(crate) fn is_open(&self) -> bool {
        let read = self.stream.try_read(&mut [0]);
        read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Sends a request and waits for the head of its answer.
    ///
    /// # Errors
    /// With how far it got.
    pub(crate) async fn send(
        mut self,
        outgoing: &Outgoing,
        body: &Bytes,
    ) -> Result<Response<WireBody>, (Sent, WireError)> {
        let mut is_begun = false;
        let mut sent = Sent::Nothing;
        let head = std::future::poll_fn(|cx| {
            if !std::mem::replace(&mut is_begun, true) && self.begin(cx, outgoing, body)? {
                sent = Sent::Something;
            }
            let before = self.unsent.len();
            let flushed = self.poll_flush(cx);
            if self.unsent.len() < before {
                sent = Sent::Something;
            }
            let Poll::Ready(Err(error)) = flushed else {
                return self.poll_head(cx, &outgoing.method);
            };
            // What it said before it closed its side counts more.
            self.unsent = Bytes::new();
            Poll::Ready(match self.poll_head(cx, &outgoing.method) {
                Poll::Ready(Ok(head)) => Ok(head::Head {
                    is_kept: false,
                    ..head
                }),
                Poll::Ready(Err(_)) | Poll::Pending => Err(error.into()),
            })
        });
        let head = match head.await {
            Ok(head) => head,
            Err(error) => return Err((error.sent().unwrap_or(sent), error)),
        };
        let mut response = Response::new(());
        *response.status_mut() = head.status;
        *response.headers_mut() = head.headers;
        response.extensions_mut().extend(reason(head.reason));
        let body = WireBody {
            wire: self,
            framing: head.framing,
            is_kept: head.is_kept,
            is_broken: false,
        };
        Ok(response.map(|()| body))
    }

    /// Writes as much as the kernel takes at once, and keeps the rest; tells whether it took anything. Nothing was sent
    /// where this fails.
    fn begin(
        &mut self,
        cx: &mut Context<'_>,
        outgoing: &Outgoing,
        body: &Bytes,
    ) -> io::Result<bool> {
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.clear();
            head::write(outgoing, body.len(), scratch);
            let is_together = body.len() <= TOGETHER_MAX;
            if is_together {
                scratch.extend_from_slice(body);
            }
            let written = match Pin::new(&mut self.stream).poll_write(cx, scratch) {
                Poll::Ready(written) => written?,
                Poll::Pending => 0,
            };
            self.unsent = match (written < scratch.len(), is_together) {
                (false, true) => Bytes::new(),
                (false, false) => body.clone(),
                (true, true) => Bytes::copy_from_slice(&scratch[written..]),
                (true, false) => [&scratch[written..], body].concat().into(),
            };
            Ok(written > 0)
        })
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.unsent.is_empty() {
            return Poll::Ready(Ok(()));
        }
        while !self.unsent.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.unsent))?;
            self.unsent.advance(written);
        }
        // Even of length zero it would hold the body.
        self.unsent = Bytes::new();
        Poll::Ready(Ok(()))
    }

    /// Gives a backend that answered early the rest of the request, for a while. Nobody waits for it.
    pub(crate) async fn send_rest(mut self) {
        let rest = std::future::poll_fn(|cx| self.poll_flush(cx));
        // What it does not take by then it does not want.
        drop(tokio::time::timeout(REST_MAX, rest).await);
    }

    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        method: &Method,
    ) -> Poll<Result<head::Head, WireError>> {
        loop {
            if let Some(head) = head::read(&mut self.buffer, method)? {
                return Poll::Ready(Ok(head));
            }
            if ready!(self.poll_read(cx, FIRST_READ))? == 0 {
                return Poll::Ready(Err(WireError::Closed));
            }
        }
    }

    /// Makes room only once there is something to read: a backend that thinks for long holds no buffer.
    fn poll_read(&mut self, cx: &mut Context<'_>, room: usize) -> Poll<io::Result<usize>> {
        let Poll::Ready(ready) = self.stream.poll_read_ready(cx) else {
            if self.buffer.is_empty() {
                self.buffer = BytesMut::new();
            }
            return Poll::Pending;
        };
        ready?;
        if self.buffer.is_empty() && room <= FIRST_READ {
            return INPUT.with_borrow_mut(|input| {
                let mut input = ReadBuf::new(input);
                ready!(Pin::new(&mut self.stream).poll_read(cx, &mut input))?;
                self.buffer = BytesMut::from(input.filled());
                Poll::Ready(Ok(self.buffer.len()))
            });
        }
        self.buffer.reserve(room);
        let read = poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.buffer);
        if read.is_pending() && self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
        read
    }
}

fn reason(reason: Option<hyper::ext::ReasonPhrase>) -> http::Extensions {
    let mut extensions = http::Extensions::new();
    if let Some(reason) = reason {
        extensions.insert(reason);
    }
    extensions
}

/// A connection after an answer.
#[derive(Debug)]
pub(crate) enum After {
    /// Another request may follow on it.
    Kept(Wire),
    /// The answer came before the request was taken.
    Sending(Wire),
    Closed,
}

/// The rest of an answer, with its connection.
#[derive(Debug)]
pub(crate) struct WireBody {
    wire: Wire,
    framing: Framing,
    is_kept: bool,
    is_broken: bool,
}

impl WireBody {
    /// What becomes of the connection.
    pub(crate) fn into_wire(self) -> After {
        let Self {
            mut wire,
            framing,
            is_kept,
            is_broken,
        } = self;
        if is_broken || !framing.is_over() {
            return After::Closed;
        }
        let is_clean = wire.buffer.is_empty();
        wire.buffer = BytesMut::new();
        if !wire.unsent.is_empty() {
            After::Sending(wire)
        } else if is_kept && is_clean {
            After::Kept(wire)
        } else {
            After::Closed
        }
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece, WireError>> {
        // The backend may want the rest of the request before it goes on.
        if let Poll::Ready(Err(_)) = self.wire.poll_flush(cx) {
            self.wire.unsent = Bytes::new();
            self.is_kept = false;
        }
        loop {
            match self.framing.take(&mut self.wire.buffer)? {
                Piece::More => {}
                piece @ (Piece::Data(_) | Piece::Trailers(_) | Piece::End) => {
                    return Poll::Ready(Ok(piece));
                }
            }
            let expected = usize::try_from(self.framing.expected()).unwrap_or(READ_MAX);
            let room = expected.clamp(FIRST_READ, READ_MAX);
            if ready!(self.wire.poll_read(cx, room))? == 0 {
                return Poll::Ready(match self.framing {
                    Framing::Close => Ok(Piece::End),
                    Framing::Length(_) | Framing::Chunked(_) => Err(WireError::Closed),
                });
            }
        }
    }
}

impl Body for WireBody {
    type Data = Bytes;
    type Error = WireError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, WireError>>> {
        let polled = ready!(self.poll_piece(cx));
        Poll::Ready(match polled {
            Ok(Piece::Data(bytes)) => Some(Ok(Frame::data(bytes))),
            Ok(Piece::Trailers(trailers)) => Some(Ok(Frame::trailers(trailers))),
            Ok(Piece::More | Piece::End) => None,
            Err(error) => {
                self.is_broken = true;
                Some(Err(error))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.framing.is_over()
    }

    fn size_hint(&self) -> SizeHint {
        match self.framing {
            Framing::Length(left) => SizeHint::with_exact(left),
            Framing::Chunked(_) | Framing::Close => SizeHint::default(),
        }
    }
}
