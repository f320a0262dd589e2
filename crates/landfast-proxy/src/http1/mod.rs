//! HTTP/1.1 and 1.0 as a client speaks it, without a task or a channel between the socket and the handler: whoever serves the
//! connection reads a head, has it answered, and writes the answer, one request after the other.
//!
//! # What holds
//!
//! - Every byte passes the strict scanner (`landfast-framing`) before anything else sees it. A request that came whole and
//!   breaks in its body is refused before anybody has seen its head.
//! - Requests are answered in order, one at a time. What a client sends on top waits in the kernel, but for the first
//!   piece of it: reading it is how a client that leaves is noticed.
//! - A body is read when somebody asks for it, never ahead; `100 Continue` is said then. What was not asked for is not read
//!   on: the answer is the last, and the connection closes gently.
//! - An idle connection has no buffer. Neither has one whose backend thinks.
//! - An answer that breaks off ends its connection in the middle of it.
//!
//! The times a connection may take are not held here (see [`crate::connection`]).

mod answer;
mod conn;
mod encode;
mod head;
mod output;

use std::{
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use bytes::{Buf as _, Bytes};
use http::Request;
use http_body::Frame;
use landfast_framing::{Body, Limits};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};

use self::{
    answer::Answer,
    conn::{Conn, Next},
};
use crate::{
    client_io::{ClientIo, Transport},
    handler::{self, Client},
    request_body::{BrokenOff, ClientBody},
};

/// Requests answered in a row before others of the thread have their turn.
const TURNS_MAX: u32 = 16;

/// Serves a connection to its end.
///
/// # Errors
/// What went wrong between the client and us; nobody is left to be told.
pub(crate) fn serve<S>(
    client: Rc<Client>,
    io: ClientIo<S>,
) -> impl Future<Output = io::Result<()>> + use<S>
where
    S: Transport + 'static,
{
    let settings = &client.thread.shared.settings;
    let limits = Limits {
        head_bytes_max: settings.header_bytes_max,
        fields_max: settings.headers_max,
    };
    let conn = Rc::new(Conn::new(io, limits, Rc::clone(&client.activity)));
    take_turns(client, conn)
}

async fn take_turns<S>(client: Rc<Client>, conn: Rc<Conn<S>>) -> io::Result<()>
where
    S: Transport + 'static,
{
    let mut turns = 0;
    loop {
        let next = std::future::poll_fn(|cx| conn.poll_next(cx)).await?;
        let (request, asked, refused) = match next {
            Next::Request(received) => {
                let body = match received.body {
                    Body::None => ClientBody::Empty,
                    Body::Length(_) | Body::Chunked => {
                        let source: Rc<dyn Source> = Rc::clone(&conn) as _;
                        let number = conn.number();
                        ClientBody::Http1(RequestBody { source, number })
                    }
                };
                let (parts, ()) = received.request.into_parts();
                (Request::from_parts(parts, body), received.asked, None)
            }
            Next::Refused(refusal) => {
                let (request, asked) = head::unread();
                let request = request.map(|()| ClientBody::Empty);
                (request, asked, Some(refusal))
            }
            Next::End => break,
        };
        // In memory of its own: an idle connection has none of it.
        let mut answering = Box::pin(handler::handle(Rc::clone(&client), request, refused));
        let answered = std::future::poll_fn(|cx| match answering.as_mut().poll(cx) {
            Poll::Ready(response) => Poll::Ready(Ok(response)),
            Poll::Pending => conn.poll_gone(cx).map(Err),
        });
        let response = answered.await?;
        drop(answering);
        let mut answer = Answer::new(response, asked);
        std::future::poll_fn(|cx| conn.poll_answer(cx, &mut answer)).await?;
        let is_last = answer.is_last();
        drop(answer);
        if let Some(handoff) = client.handoff.take()
            && let Some((io, early)) = conn.take()
        {
            // In one place: each future that it is handed through would have room for it.
            let stream = Box::new(Early { early, io });
            client.thread.spawn(handoff.run(stream));
            return Ok(());
        }
        if !conn.is_ready() || is_last {
            break;
        }
        turns += 1;
        if turns == TURNS_MAX {
            turns = 0;
            tokio::task::yield_now().await;
        }
    }
    let Some((mut io, _)) = conn.take() else {
        return Ok(());
    };
    io.shutdown().await
}

/// Where the bodies of a connection's requests come from, by the request's number.
pub(crate) trait Source {
    fn poll_frame(
        &self,
        number: u64,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>>;
    /// Nothing of it is left to come.
    fn is_over(&self, number: u64) -> bool;
    /// How many bytes are known to come.
    fn left(&self, number: u64) -> Option<u64>;
}

/// The body of one request.
pub(crate) struct RequestBody {
    source: Rc<dyn Source>,
    number: u64,
}

impl RequestBody {
    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        self.source.poll_frame(self.number, cx)
    }

    pub(crate) fn is_over(&self) -> bool {
        self.source.is_over(self.number)
    }

    pub(crate) fn left(&self) -> Option<u64> {
        self.source.left(self.number)
    }
}

/// A stream of which something was read before.
struct Early<S> {
    early: Bytes,
    io: S,
}

impl<S: AsyncRead + Unpin> AsyncRead for Early<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.early.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buffer);
        }
        let count = self.early.len().min(buffer.remaining());
        buffer.put_slice(&self.early[..count]);
        self.early.advance(count);
        if self.early.is_empty() {
            self.early = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Early<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
