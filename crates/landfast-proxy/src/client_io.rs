//! The transport of a client's connection: it notes when it moved, closes gently where the client may still be sending, and
//! can be waited for without a buffer.

use std::{
    future::Future,
    io,
    mem::MaybeUninit,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::Sleep,
};
use tokio_rustls::server::TlsStream;

use crate::{activity::Activity, connection::Place, farewell::Farewell, pieces};

/// What a client may still send after an answer that came before the end of its request.
const LINGER_MAX: Duration = Duration::from_secs(2);
const LINGER_BYTES_MAX: usize = 1 << 20;

/// A stream that tells when there is something to read, so that nobody has to hold a buffer meanwhile.
pub(crate) trait Transport: AsyncRead + AsyncWrite + Unpin {
    /// Ready also at the end of the stream, and sometimes for nothing: then reading is pending.
    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}

impl Transport for TcpStream {
    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_read_ready(cx)
    }
}

impl Transport for TlsStream<TcpStream> {
    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (stream, session) = self.get_mut();
        // What was decrypted already shows on no socket.
        let state = session.process_new_packets();
        if state.map_or(true, |state| {
            state.plaintext_bytes_to_read() > 0 || state.peer_has_closed()
        }) {
            return Poll::Ready(Ok(()));
        }
        stream.poll_read_ready(cx)
    }
}

/// The transport, noting when it moved.
pub(crate) struct ClientIo<S> {
    stream: S,
    activity: Rc<Activity>,
    /// Only where the client speaks HTTP/2.
    pub(crate) farewell: Option<Box<Farewell>>,
    /// Given back with the descriptor: a connection that became a tunnel still has it.
    _place: Place,
    lingering: Option<Lingering>,
}

/// Our side is closed; what the client still sends is let go.
struct Lingering {
    timer: Pin<Box<Sleep>>,
    bytes_left: usize,
}

impl<S> ClientIo<S> {
    pub(crate) fn new(stream: S, activity: Rc<Activity>, place: Place) -> Self {
        Self {
            stream,
            activity,
            farewell: None,
            _place: place,
            lingering: None,
        }
    }
}

impl<S: Transport> ClientIo<S> {
    pub(crate) fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.poll_readable(cx)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ClientIo<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self {
            stream,
            activity,
            farewell,
            ..
        } = &mut *self;
        let before = buffer.filled().len();
        let polled = match farewell {
            Some(farewell) if activity.says_farewell() => farewell.poll_read(stream, cx, buffer),
            Some(_) | None => Pin::new(stream).poll_read(cx, buffer),
        };
        if polled.is_ready() && buffer.filled().len() > before {
            activity.read();
            if let Some(farewell) = farewell
                && !activity.says_farewell()
            {
                farewell.follow(&buffer.filled()[before..]);
            }
        }
        polled
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for ClientIo<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.activity.wrote(&polled);
        polled
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = pieces::poll_write(Pin::new(&mut self.stream), cx, pieces);
        self.activity.wrote(&polled);
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Closing a socket with unread bytes resets it, and a reset takes the answer away from a client that is
    /// still sending. So after the end of our side such a client is listened to for a moment.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.lingering.is_none() {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            if !self.activity.lingers() {
                return Poll::Ready(Ok(()));
            }
            self.lingering = Some(Lingering {
                timer: Box::pin(tokio::time::sleep(LINGER_MAX)),
                bytes_left: LINGER_BYTES_MAX,
            });
        }
        let Self {
            stream,
            lingering: Some(lingering),
            ..
        } = &mut *self
        else {
            return Poll::Ready(Ok(()));
        };
        while lingering.bytes_left > 0 && lingering.timer.as_mut().poll(cx).is_pending() {
            let mut scratch = [const { MaybeUninit::uninit() }; 4 << 10];
            let mut buffer = ReadBuf::uninit(&mut scratch);
            let read = ready!(Pin::new(&mut *stream).poll_read(cx, &mut buffer));
            let count = buffer.filled().len();
            if read.is_err() || count == 0 {
                break;
            }
            lingering.bytes_left = lingering.bytes_left.saturating_sub(count);
        }
        Poll::Ready(Ok(()))
    }
}
