//! HTTP/2 connections to backends that speak it without TLS, one pool per thread.
//!
//! Every request may use a shared connection, a POST as well: where the backend closes it, GOAWAY says which streams
//! it never looked at, and only those are sent again (RFC 9113, 6.8). A connection takes as many streams as
//! the backend allows, and no more than [`STREAMS_MAX`]; then another is opened. One to a backend that leaves
//! is let go at once and ends with its last stream. No pings are sent: gRPC servers take them for an attack.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    error::Error,
    future::Future,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use hyper::client::conn::http2;
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, sync::Mutex};

use crate::{
    backend::Backend,
    pool::{self, BackendIo, ConnectError},
    request_body::RequestBody,
    thread::Thread,
};

/// Streams on one connection at a time: what most servers allow.
const STREAMS_MAX: u32 = 100;
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 2 << 20;

type Sender = http2::SendRequest<RequestBody>;

/// Open connections by backend.
#[derive(Default)]
pub(crate) struct Http2Pool {
    backends: RefCell<HashMap<u64, Rc<Entry>>>,
    /// The thread ends: nothing is kept any more.
    closed: Cell<bool>,
}

struct Entry {
    backend: Arc<Backend>,
    connections: RefCell<Vec<Connection>>,
    /// Held while one is opened, so that a burst does not open one for each request.
    opening: Mutex<()>,
}

struct Connection {
    sender: Sender,
    streams: Rc<Cell<u32>>,
}

/// A place on a connection. Dropping it gives the place back.
pub(crate) struct Stream {
    pub(crate) sender: Sender,
    streams: Rc<Cell<u32>>,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.streams.set(self.streams.get().saturating_sub(1));
    }
}

impl Entry {
    fn place(&self) -> Option<Stream> {
        let mut connections = self.connections.borrow_mut();
        connections.retain(|connection| !connection.sender.is_closed());
        let free = connections
            .iter()
            .filter(|connection| connection.streams.get() < STREAMS_MAX);
        free.min_by_key(|connection| connection.streams.get())
            .map(Connection::take)
    }
}

impl Connection {
    fn take(&self) -> Stream {
        self.streams.set(self.streams.get() + 1);
        Stream {
            sender: self.sender.clone(),
            streams: Rc::clone(&self.streams),
        }
    }
}

impl Http2Pool {
    /// Lets go what leads to backends that leave.
    pub(crate) fn sweep(&self) {
        self.backends
            .borrow_mut()
            .retain(|_, entry| !entry.backend.is_leaving());
    }

    /// Lets everything go and keeps nothing from now on.
    pub(crate) fn close(&self) {
        self.closed.set(true);
        self.backends.borrow_mut().clear();
    }

    fn entry(&self, backend: &Arc<Backend>) -> Rc<Entry> {
        let new = || {
            Rc::new(Entry {
                backend: Arc::clone(backend),
                connections: RefCell::default(),
                opening: Mutex::new(()),
            })
        };
        if self.closed.get() || backend.is_leaving() {
            return new();
        }
        let mut backends = self.backends.borrow_mut();
        Rc::clone(backends.entry(backend.serial).or_insert_with(new))
    }
}

/// A place on an open connection, or on a new one.
pub(crate) async fn take(
    thread: &Rc<Thread>,
    backend: &Arc<Backend>,
    address: SocketAddr,
    timeout: Duration,
) -> Result<Stream, ConnectError> {
    let entry = thread.http2_pool.entry(backend);
    if let Some(place) = entry.place() {
        return Ok(place);
    }
    let _opening = entry.opening.lock().await;
    if let Some(place) = entry.place() {
        return Ok(place);
    }
    let opened = tokio::time::timeout(timeout, open(thread, address)).await;
    let connection = Connection {
        sender: opened.map_err(|_| ConnectError::Timeout)??,
        streams: Rc::default(),
    };
    let place = connection.take();
    entry.connections.borrow_mut().push(connection);
    Ok(place)
}

async fn open(thread: &Rc<Thread>, address: SocketAddr) -> Result<Sender, ConnectError> {
    let place = pool::descriptor(thread).await?;
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    // A backend whose host is gone says nothing; the kernel finds out.
    rustix::net::sockopt::set_socket_keepalive(&stream, true).map_err(std::io::Error::from)?;
    let stream = BackendIo {
        stream,
        _place: place,
    };
    let mut builder = http2::Builder::new(Background(Rc::clone(thread)));
    builder
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(64 << 10)
        .max_send_buf_size(64 << 10);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
    thread.spawn(async move {
        if let Err(error) = connection.await {
            tracing::trace!(%address, %error, "HTTP/2 connection to a backend ended");
        }
    });
    Ok(sender)
}

/// Lets hyper run its side tasks on this thread.
#[derive(Clone)]
struct Background(Rc<Thread>);

impl<F: Future + 'static> hyper::rt::Executor<F> for Background {
    fn execute(&self, task: F) {
        self.0.spawn(async move {
            task.await;
        });
    }
}

/// Whether the backend says that it never looked at the request (RFC 9113, 8.7): it refused the stream, or
/// was going away in good order.
pub(crate) fn was_refused(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            let is_end = error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR);
            return error.is_remote()
                && (is_end || error.reason() == Some(h2::Reason::REFUSED_STREAM));
        }
        next = error.source();
    }
    false
}
