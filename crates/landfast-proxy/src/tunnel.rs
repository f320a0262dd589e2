//! A WebSocket once both sides have switched: frames pass untouched, each direction is followed closely enough
//! to know where a message ends.
//!
//! When the stream is due (see [`crate::drain`]) the client gets Close 1012 at the first place between two
//! messages: never inside a frame, never inside a fragmented message. What the client still sends goes on to
//! the backend until the client's own Close, which is passed on and so closes the backend's side; a client that
//! does not answer in time is closed for by us. A backend that goes away without a Close is announced to the
//! client in the same way, and its Close is waited for as well: closing at once would reset the connection of a
//! client that is just sending, and the reset takes our Close away.

use std::{cell::Cell, io, pin::pin, time::Duration};

use bytes::Bytes;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use landfast_routing::websocket::{CLOSE_SERVICE_RESTART, Frames, close_frame};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_util::sync::CancellationToken;

use crate::{
    backend::{OpenStream, StreamEnd},
    drain::Due,
    exchange::Exchange,
    upstream::Upstream,
};

/// How long the other side's Close is waited for.
const ECHO_WAIT: Duration = Duration::from_secs(2);
const BUFFER: usize = 16 << 10;
const REASON: &str = "service restart";

thread_local! {
    /// Where pieces are read into: an idle tunnel owns no buffer.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A stream that has begun on the backend's side, and waits for the client's.
pub(crate) struct Handoff {
    pub(crate) upstream: OnUpgrade,
    /// Dropping it would end the connection to the backend before it is handed over.
    pub(crate) sender: Option<Upstream>,
    pub(crate) stream: OpenStream,
    pub(crate) due: Due,
    pub(crate) exchange: Box<Exchange>,
}

impl Handoff {
    /// Runs the tunnel to its end. The client has had its 101.
    pub(crate) async fn run(self, client: impl AsyncRead + AsyncWrite + Unpin) {
        let Self {
            upstream,
            sender,
            stream,
            due,
            exchange,
        } = self;
        let upstream = upstream.await;
        drop(sender);
        run(client, upstream, stream, due, exchange).await;
    }
}

async fn run(
    client: impl AsyncRead + AsyncWrite + Unpin,
    upstream: Result<Upgraded, hyper::Error>,
    mut stream: OpenStream,
    mut due: Due,
    mut exchange: Box<Exchange>,
) {
    let upstream = match upstream {
        Ok(upstream) => upstream,
        Err(error) => {
            stream.end = StreamEnd::Cut;
            exchange.fail(format!("the connection was not handed over: {error}"));
            return;
        }
    };
    let tunnel = Tunnel::default();
    let ended = {
        let pumps = pin!(tunnel.pump(client, TokioIo::new(upstream)));
        let cut = pin!(async {
            due.wait(false).await;
            tunnel.due.cancel();
            due.wait(true).await;
        });
        tokio::select! {
            ended = pumps => Some(ended),
            () = cut => None,
        }
    };
    exchange.bytes_in = tunnel.bytes_in.get();
    exchange.bytes_out = tunnel.bytes_out.get();
    stream.end = match ended {
        // Our Close came between messages; what the other side makes of it is its own affair.
        Some(End::Orderly) | None if tunnel.close_sent.is_cancelled() => StreamEnd::Drained,
        Some(End::Orderly) => StreamEnd::Ended,
        Some(End::BackendGone) | None => StreamEnd::Cut,
    };
    if stream.end == StreamEnd::Cut {
        let cause = if ended.is_some() {
            "the backend left without a Close"
        } else {
            "no end of a message until the end of the drain"
        };
        stream
            .backend()
            .counters
            .failures
            .add(u64::from(ended.is_some()));
        exchange.fail(cause);
    }
    exchange.is_over = true;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Orderly,
    BackendGone,
}

#[derive(Default)]
struct Tunnel {
    /// Close at the next place between messages.
    due: CancellationToken,
    /// Our Close is on its way to the client.
    close_sent: CancellationToken,
    /// The backend left without a Close, and the client was told.
    backend_gone: CancellationToken,
    /// The client sent its Close, or left.
    client_closed: CancellationToken,
    bytes_in: Cell<u64>,
    bytes_out: Cell<u64>,
}

impl Tunnel {
    async fn pump<C, U>(&self, client: C, upstream: U) -> End
    where
        C: AsyncRead + AsyncWrite + Unpin,
        U: AsyncRead + AsyncWrite + Unpin,
    {
        let (client_read, client_write) = tokio::io::split(client);
        let (upstream_read, upstream_write) = tokio::io::split(upstream);
        let down = self.down(upstream_read, client_write);
        let up = self.up(client_read, upstream_write);
        let (end, ()) = tokio::join!(down, up);
        end
    }

    /// From the backend to the client.
    async fn down(
        &self,
        mut upstream: impl AsyncRead + Unpin,
        mut client: impl AsyncWrite + Unpin,
    ) -> End {
        let mut frames = Frames::default();
        let end = loop {
            if self.due.is_cancelled() && frames.is_between_messages() && !frames.has_closed() {
                self.close_client(&mut upstream, &mut client).await;
                break End::Orderly;
            }
            let piece = tokio::select! {
                biased;
                piece = read_some(&mut upstream) => piece,
                () = self.due.cancelled(), if !self.due.is_cancelled() => continue,
                () = self.client_closed_and_silent() => break End::Orderly,
            };
            let Ok(mut piece) = piece else {
                break self.backend_left(&frames, &mut client).await;
            };
            if piece.is_empty() {
                break self.backend_left(&frames, &mut client).await;
            }
            if !self.due.is_cancelled() {
                frames.feed(&piece);
            } else if let Some(end) = frames.feed_to_boundary(&piece) {
                piece.truncate(end);
            }
            self.bytes_out
                .set(self.bytes_out.get() + piece.len() as u64);
            if client.write_all(&piece).await.is_err() {
                // The client is gone; the other direction sees it too.
                break End::Orderly;
            }
        };
        // A side that is gone already has nothing to be told.
        drop(client.shutdown().await);
        end
    }

    /// Sends our Close, then waits for the client's while what the backend still says is let go.
    async fn close_client(
        &self,
        upstream: &mut (impl AsyncRead + Unpin),
        client: &mut (impl AsyncWrite + Unpin),
    ) {
        let frame = close_frame(CLOSE_SERVICE_RESTART, REASON, None);
        if client.write_all(&frame).await.is_err() || client.flush().await.is_err() {
            return;
        }
        self.close_sent.cancel();
        let drained = async {
            while read_some(upstream)
                .await
                .is_ok_and(|piece| !piece.is_empty())
            {}
        };
        // The echo, then the backend's own end of the connection.
        drop(tokio::time::timeout(ECHO_WAIT * 2, drained).await);
    }

    /// The backend's end of the stream. Without a Close before it, the client is told to come back.
    async fn backend_left(&self, frames: &Frames, client: &mut (impl AsyncWrite + Unpin)) -> End {
        if frames.has_closed() || self.client_closed.is_cancelled() {
            return End::Orderly;
        }
        let frame = close_frame(CLOSE_SERVICE_RESTART, REASON, None);
        let told = if frames.is_between_messages() {
            client.write_all(&frame).await.is_ok() && client.flush().await.is_ok()
        } else {
            false
        };
        if told {
            self.backend_gone.cancel();
        } else {
            self.client_closed.cancel();
        }
        End::BackendGone
    }

    async fn client_closed_and_silent(&self) {
        self.client_closed.cancelled().await;
        tokio::time::sleep(ECHO_WAIT).await;
    }

    /// From the client to the backend.
    async fn up(&self, mut client: impl AsyncRead + Unpin, mut upstream: impl AsyncWrite + Unpin) {
        let mut frames = Frames::default();
        let mut is_taken = true;
        let mut late = pin!(self.echo_late());
        loop {
            let piece = tokio::select! {
                biased;
                () = &mut late => break,
                piece = read_some(&mut client) => piece,
                () = self.client_closed.cancelled() => break,
            };
            let Ok(piece) = piece else { break };
            if piece.is_empty() {
                break;
            }
            frames.feed(&piece);
            self.bytes_in.set(self.bytes_in.get() + piece.len() as u64);
            // What a backend that left does not take is let go; the other direction sees its end and tells the
            // client.
            is_taken = is_taken && upstream.write_all(&piece).await.is_ok();
            let is_told = self.close_sent.is_cancelled() || self.backend_gone.is_cancelled();
            if frames.has_closed() && is_told {
                break;
            }
        }
        if !frames.has_closed() && frames.is_between_messages() && self.close_sent.is_cancelled() {
            let mask = rand::random::<u32>().to_be_bytes();
            let frame = close_frame(CLOSE_SERVICE_RESTART, REASON, Some(mask));
            drop(upstream.write_all(&frame).await);
        }
        self.client_closed.cancel();
        drop(upstream.shutdown().await);
    }

    async fn echo_late(&self) {
        tokio::select! {
            () = self.close_sent.cancelled() => {}
            () = self.backend_gone.cancelled() => {}
        }
        tokio::time::sleep(ECHO_WAIT).await;
    }
}

/// Reads a piece; an empty one is the end.
async fn read_some(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Bytes> {
    std::future::poll_fn(|cx| {
        let mut scratch = SCRATCH.take();
        scratch.resize(BUFFER, 0);
        let mut buffer = ReadBuf::new(&mut scratch);
        let polled = std::pin::Pin::new(&mut *from).poll_read(cx, &mut buffer);
        let polled = polled.map_ok(|()| Bytes::copy_from_slice(buffer.filled()));
        SCRATCH.set(scratch);
        polled
    })
    .await
}
