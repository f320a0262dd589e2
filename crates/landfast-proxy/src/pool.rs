//! Connections to backends, one pool per thread.
//!
//! # Which request may use a pooled connection
//!
//! A backend may close an idle connection at the very moment a request is written to it, and from outside that
//! looks the same as a backend that took the request and died. Only a request that may be sent twice survives
//! the doubt. So only *idempotent* requests whose body, if any, is at hand use pooled connections. When one of
//! these was never written, or its connection broke at once (`landfast_routing::retry::is_stale`), it is sent
//! once more on a fresh connection to the same backend, and nobody is blamed. A connection that breaks later
//! broke under work: that is a failure of the backend like any other, and goes by the rules for retries.
//! Every other request (a POST, a large upload, a WebSocket) gets a fresh connection: there, a backend that is
//! gone refuses the connection, nothing was sent, and the request goes elsewhere. That costs a POST one
//! connection set-up, and loses none.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io,
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustix::io::Errno;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::Instant,
};

use crate::{
    backend::Backend, clock, descriptors::Taken, pieces, request_body::RequestBody, thread::Thread,
    wire::Wire,
};

/// Idle connections kept per backend and thread.
const IDLE_MAX: usize = 64;
/// An idle connection older than this is closed.
const IDLE_AGE_MAX: Duration = Duration::from_secs(30);
/// The longest head of an answer, and what is read of an answer at a time: for a client that reads slowly a piece or two
/// of this size wait in each of three places.
pub(crate) const HEAD_BYTES_MAX: usize = 32 << 10;
/// The most fields an answer's head may have.
pub(crate) const FIELDS_MAX: usize = 200;
/// How long a connection that its backend has closed may stay half open.
const SWEEP_INTERVAL: Duration = Duration::from_secs(2);

type Sender = http1::SendRequest<RequestBody>;

/// How long a request waits for a descriptor that an idle connection to another backend has.
const DESCRIPTOR_WAIT: Duration = Duration::from_millis(10);
const DESCRIPTOR_WAITS_MAX: u32 = 10;

/// Idle connections by backend.
#[derive(Default)]
pub(crate) struct Pool {
    idle: RefCell<HashMap<u64, Vec<Idle>>>,
    sweeping: Cell<bool>,
    /// The thread ends: nothing is kept any more.
    closed: Cell<bool>,
}

struct Idle {
    wire: Wire,
    since: Instant,
    backend: std::sync::Arc<Backend>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("connect: {0}")]
    Io(#[from] io::Error),
    #[error("connect: no answer in time")]
    Timeout,
    #[error("connect: all descriptors of the proxy are in use")]
    NoDescriptor,
    #[error("connect: {0}")]
    Http(#[from] hyper::Error),
}

impl ConnectError {
    /// Whether it is this host that has run out of descriptors, ports or memory: no fault of the backend.
    pub(crate) fn is_ours(&self) -> bool {
        match self {
            Self::Io(error) => is_exhaustion(error),
            Self::NoDescriptor => true,
            Self::Timeout | Self::Http(_) => false,
        }
    }
}

/// Whether a socket could not be had because this process or host has too many.
pub(crate) fn is_exhaustion(error: &io::Error) -> bool {
    let ours = [
        Errno::MFILE,
        Errno::NFILE,
        Errno::ADDRNOTAVAIL,
        Errno::NOBUFS,
        Errno::NOMEM,
    ];
    ours.iter()
        .any(|ours| error.raw_os_error() == Some(ours.raw_os_error()))
}

impl Pool {
    /// The connection to a backend that became idle last and is still open.
    pub(crate) fn take(&self, backend: &Backend) -> Option<Wire> {
        let mut idle = self.idle.borrow_mut();
        let list = idle.get_mut(&backend.serial)?;
        while let Some(entry) = list.pop() {
            if entry.wire.is_open() {
                return Some(entry.wire);
            }
        }
        None
    }

    fn put(&self, backend: &std::sync::Arc<Backend>, wire: Wire) {
        if backend.is_leaving() || self.closed.get() || !wire.is_open() {
            return;
        }
        let mut idle = self.idle.borrow_mut();
        let list = idle.entry(backend.serial).or_default();
        if list.len() >= IDLE_MAX {
            list.remove(0);
        }
        let backend = std::sync::Arc::clone(backend);
        list.push(Idle {
            wire,
            since: clock::instant(),
            backend,
        });
    }

    /// Closes what is idle: somebody has more need of the descriptors.
    fn let_go(&self) {
        self.idle.borrow_mut().clear();
    }

    /// Closes what is idle and keeps nothing from now on.
    pub(crate) fn close(&self) {
        self.closed.set(true);
        self.let_go();
    }

    fn sweep(&self) {
        let now = clock::instant();
        self.idle.borrow_mut().retain(|_, list| {
            list.retain(|entry| {
                entry.wire.is_open()
                    && !entry.backend.is_leaving()
                    && now.saturating_duration_since(entry.since) < IDLE_AGE_MAX
            });
            !list.is_empty()
        });
    }
}

/// Keeps a thread's pool in step with the table until the worker ends. What idles to a backend that leaves is
/// closed at once: many a server waits at its own end for its connections. So is all that idles while somebody lacks a
/// descriptor.
pub(crate) async fn follow(thread: Rc<Thread>) {
    let mut changes = thread.shared.changes();
    let leaving = thread.shared.life.leaving.clone();
    loop {
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = thread.shared.descriptors.wanted.notified() => thread.pool.let_go(),
            () = leaving.cancelled() => return,
        }
        thread.pool.sweep();
        thread.http2_pool.sweep();
    }
}

/// Gives a connection back once its exchange is over. An idle thread has no timer: the sweeper runs only while
/// there is something to sweep.
pub(crate) fn give_back(thread: &Rc<Thread>, backend: &std::sync::Arc<Backend>, wire: Wire) {
    thread.pool.put(backend, wire);
    if thread.pool.sweeping.replace(true) {
        return;
    }
    let owner = Rc::clone(thread);
    let leaving = thread.shared.life.leaving.clone();
    thread.spawn(async move {
        while !owner.pool.idle.borrow().is_empty() {
            tokio::select! {
                () = tokio::time::sleep(SWEEP_INTERVAL) => owner.pool.sweep(),
                () = leaving.cancelled() => break,
            }
        }
        owner.pool.sweeping.set(false);
    });
}

/// Opens a connection of hyper's client, for one request alone.
pub(crate) async fn connect(
    thread: &Rc<Thread>,
    address: SocketAddr,
    timeout: Duration,
) -> Result<Sender, ConnectError> {
    let place = descriptor(thread).await?;
    let connecting = tokio::time::timeout(timeout, TcpStream::connect(address));
    let stream = connecting.await.map_err(|_| ConnectError::Timeout)??;
    stream.set_nodelay(true)?;
    let stream = BackendIo {
        stream,
        _place: place,
    };
    let mut builder = http1::Builder::new();
    builder.max_buf_size(HEAD_BYTES_MAX).max_headers(FIELDS_MAX);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
    thread.spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::trace!(%address, %error, "connection to a backend ended");
        }
    });
    Ok(sender)
}

/// The right to one more descriptor. What idles is let go first, and that takes a moment.
pub(crate) async fn descriptor(thread: &Rc<Thread>) -> Result<Taken, ConnectError> {
    for _ in 0..DESCRIPTOR_WAITS_MAX {
        if let Some(place) = thread.shared.descriptors.take() {
            return Ok(place);
        }
        tokio::time::sleep(DESCRIPTOR_WAIT).await;
    }
    let last = thread.shared.descriptors.take();
    last.ok_or(ConnectError::NoDescriptor)
}

/// A connection to a backend with the right to its descriptor, also where it becomes a tunnel.
pub(crate) struct BackendIo {
    pub(crate) stream: TcpStream,
    pub(crate) _place: Taken,
}

impl AsyncRead for BackendIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for BackendIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        pieces::poll_write(Pin::new(&mut self.stream), cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_want_is_told_from_a_backend_that_refuses() {
        for (errno, is_ours) in [
            (Errno::MFILE, true),
            (Errno::NFILE, true),
            (Errno::ADDRNOTAVAIL, true),
            (Errno::CONNREFUSED, false),
            (Errno::CONNRESET, false),
            (Errno::HOSTUNREACH, false),
        ] {
            let error = ConnectError::Io(io::Error::from(errno));
            assert_eq!(error.is_ours(), is_ours, "{errno}");
        }
        assert!(!ConnectError::Timeout.is_ours());
    }
}
