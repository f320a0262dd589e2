//! One client connection: TLS, the protocol it speaks, and the times it may take.
//!
//! hyper's own timer cannot tell an idle connection from a head that arrives slowly, so the two are told apart
//! here: the transport notes when bytes came while no request was under way, and one timer per connection is
//! moved only when it would fire too late.

use std::{
    cell::RefCell,
    future::Future,
    io,
    mem::MaybeUninit,
    net::SocketAddr,
    pin::{Pin, pin},
    rc::Rc,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use hyper::{
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use landfast_framing::Limits as FramingLimits;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep},
};
use tokio_rustls::TlsAcceptor;

use crate::{
    challenge::ACME_TLS,
    clock,
    descriptors::{ClientPlace, Taken},
    gate::{Gate, Refused},
    handler::{self, Client},
    patience,
    peers::Seat,
    pieces,
    thread::{Executor, Thread},
};

/// How HTTP/2 begins without TLS (RFC 9113, 3.4); no HTTP/1.1 request begins so.
const PREFACE: &[u8] = b"PRI * HTTP/2.0";
/// How long an idle connection is still listened to when the proxy ends, so that a request that is on its way
/// is answered (with `Connection: close`) rather than reset. After a hand-over it keeps all its time
/// (see [`crate::leaving`]).
const SHUTDOWN_IDLE: Duration = Duration::from_secs(1);
/// What a client may still send after an answer that came before the end of its request.
const LINGER_MAX: Duration = Duration::from_secs(2);
const LINGER_BYTES_MAX: usize = 1 << 20;
const H2_STREAMS_MAX: u32 = 256;
/// How many fields hyper reads unless it is told otherwise.
const HYPER_HEADERS_MAX: usize = 100;

/// A connection's part of the room for all, and of its client's.
pub(crate) type Place = (ClientPlace, Seat);

/// What kind of listener a connection came in on.
#[derive(Clone)]
pub(crate) enum Kind {
    Http,
    Https(TlsAcceptor),
    Preview,
}

/// Serves a connection to its end.
pub(crate) async fn serve(
    thread: Rc<Thread>,
    stream: TcpStream,
    peer: SocketAddr,
    kind: Kind,
    place: Place,
) {
    if stream.set_nodelay(true).is_err() {
        return;
    }
    // A stream may be quiet for long; the kernel finds out whether its client is still there.
    if rustix::net::sockopt::set_socket_keepalive(&stream, true).is_err() {
        return;
    }
    let settings = &thread.shared.settings;
    let activity = Arc::new(Activity::new());
    let client = Rc::new(Client {
        thread: Rc::clone(&thread),
        address: peer.ip(),
        is_https: matches!(kind, Kind::Https(_)),
        is_preview: matches!(kind, Kind::Preview),
        forwarding: RefCell::default(),
        activity: Arc::clone(&activity),
    });
    let Kind::Https(acceptor) = kind else {
        let is_h2 = tokio::select! {
            is_h2 = starts_http2(&stream, settings.keep_alive(), settings.header_read()) => is_h2,
            () = ended(&thread) => None,
        };
        return match is_h2 {
            Some(true) => serve_http2(client, ClientIo::new(stream, activity, place)).await,
            Some(false) => serve_http1(client, ClientIo::new(stream, activity, place)).await,
            None => {}
        };
    };
    let accepting = tokio::time::timeout(settings.header_read(), acceptor.accept(stream));
    let Ok(Ok(stream)) = accepting.await else {
        return;
    };
    let protocol = stream.get_ref().1.alpn_protocol();
    // The handshake was the question and its answer (RFC 8737, 3): no HTTP follows.
    if protocol == Some(ACME_TLS) {
        return;
    }
    let is_h2 = protocol == Some(b"h2");
    let io = ClientIo::new(stream, activity, place);
    if is_h2 {
        Box::pin(serve_http2(client, io)).await;
    } else {
        Box::pin(serve_http1(client, io)).await;
    }
}

/// Told to who finds no room, before anything is read.
const NO_ROOM: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain; charset=utf-8\r\n\
    content-length: 29\r\nretry-after: 1\r\nconnection: close\r\n\r\nno room for more connections\n";
/// How long a client that is refused may take to take it.
const NO_ROOM_MAX: Duration = Duration::from_secs(1);

/// Tells a client that it is not served. Over TLS that would cost a handshake, so there its connection is closed.
pub(crate) async fn refuse(mut stream: TcpStream, kind: Kind, _place: Taken) {
    if matches!(kind, Kind::Https(_)) {
        return;
    }
    let telling = async {
        stream.write_all(NO_ROOM).await?;
        stream.shutdown().await?;
        // Closing over unread bytes would be a reset, which takes the answer away.
        let mut scratch = [0; 1 << 10];
        while stream.read(&mut scratch).await? > 0 {}
        io::Result::Ok(())
    };
    if let Ok(Err(error)) = tokio::time::timeout(NO_ROOM_MAX, telling).await {
        tracing::trace!(%error, "a refused client left");
    }
}

/// The proxy ends, and a request that was on its way has had time to come.
async fn ended(thread: &Thread) {
    thread.shared.life.ended.cancelled().await;
    tokio::time::sleep(SHUTDOWN_IDLE).await;
}

/// Looks at the first bytes without taking them. Nothing is buffered for a client that has sent nothing yet.
async fn starts_http2(stream: &TcpStream, idle: Duration, head: Duration) -> Option<bool> {
    let mut seen = [0; PREFACE.len()];
    let mut limit = clock::instant() + idle;
    let mut first = true;
    loop {
        let peeked = tokio::time::timeout_at(limit, stream.peek(&mut seen))
            .await
            .ok()?;
        let count = peeked.ok().filter(|count| *count > 0)?;
        if !PREFACE.starts_with(&seen[..count]) {
            return Some(false);
        }
        if count == PREFACE.len() {
            return Some(true);
        }
        if std::mem::take(&mut first) {
            limit = clock::instant() + head;
        }
        if clock::instant() >= limit {
            return None;
        }
        // The rest of a preface split over packets: peeking cannot wait for more than is there.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn serve_http1<S>(client: Rc<Client>, mut io: ClientIo<S>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let settings = &client.thread.shared.settings;
    io.gate = Some(Box::new(Gate::new(FramingLimits {
        head_bytes_max: settings.header_bytes_max,
        fields_max: settings.headers_max,
    })));
    let mut builder = http1::Builder::new();
    builder
        .max_buf_size(settings.header_bytes_max)
        .half_close(false);
    // The scanner has counted the fields already. Any number but its own costs hyper an allocation with each head.
    if settings.headers_max > HYPER_HEADERS_MAX {
        builder.max_headers(settings.headers_max);
    }
    let handler = Rc::clone(&client);
    let service = service_fn(move |request| {
        let answer = handler::handle(Rc::clone(&handler), request);
        async move { Ok::<_, std::convert::Infallible>(answer.await) }
    });
    let connection = builder
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades();
    Box::pin(drive(
        &client,
        connection,
        |connection| connection.graceful_shutdown(),
        false,
    ))
    .await;
}

async fn serve_http2<S>(client: Rc<Client>, io: ClientIo<S>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    client.activity.is_http2.store(true, Ordering::Relaxed);
    let settings = &client.thread.shared.settings;
    let mut builder = http2::Builder::new(Executor(Rc::clone(&client.thread)));
    builder
        .max_concurrent_streams(H2_STREAMS_MAX)
        .max_header_list_size(u32::try_from(settings.header_bytes_max).unwrap_or(u32::MAX))
        .max_send_buf_size(64 << 10);
    let handler = Rc::clone(&client);
    let service = service_fn(move |request| {
        let answer = handler::handle(Rc::clone(&handler), request);
        async move { Ok::<_, std::convert::Infallible>(answer.await) }
    });
    let connection = builder.serve_connection(TokioIo::new(io), service);
    Box::pin(drive(
        &client,
        connection,
        |connection| connection.graceful_shutdown(),
        true,
    ))
    .await;
}

/// Runs a connection until it ends, is idle too long, brings a head too slowly, or takes nothing any more.
async fn drive<C>(client: &Client, connection: C, end: impl Fn(Pin<&mut C>), ends_at_once: bool)
where
    C: Future<Output = Result<(), hyper::Error>>,
{
    let shared = &client.thread.shared;
    let activity = &client.activity;
    let limits = Limits {
        idle: shared.settings.keep_alive(),
        head: shared.settings.header_read(),
        write: shared.settings.keep_alive(),
    };
    let mut connection = pin!(connection);
    let mut leaving = pin!(shared.life.leaving.cancelled());
    let mut ended = pin!(shared.life.ended.cancelled());
    let mut timer = pin!(tokio::time::sleep_until(activity.deadline(limits).0));
    let mut is_watching = false;
    let mut stopping = false;
    let mut closing = false;
    let mut is_told = false;
    std::future::poll_fn(|cx| {
        if ends_at_once && !is_told && leaving.as_mut().poll(cx).is_ready() {
            is_told = true;
            closing = true;
            activity.touch();
            activity.linger();
            end(connection.as_mut());
        }
        // Asked once, to be woken by it.
        let is_ending = shared.life.is_ending()
            || (!std::mem::replace(&mut is_watching, true) && ended.as_mut().poll(cx).is_ready());
        if !stopping && is_ending {
            stopping = true;
            // The time to say one last thing counts from here.
            activity.touch();
        }
        loop {
            if let Poll::Ready(result) = connection.as_mut().poll(cx) {
                if let Err(error) = result {
                    tracing::trace!(peer = %client.address, %error, "client connection ended");
                }
                return Poll::Ready(());
            }
            // A slow reader keeps its time: the end of the worker has a bound of its own.
            let idle = if stopping { SHUTDOWN_IDLE } else { limits.idle };
            let (deadline, overdue) = activity.deadline(Limits { idle, ..limits });
            if deadline < timer.deadline() || timer.is_elapsed() {
                timer.as_mut().reset(deadline);
            }
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if deadline > clock::instant() {
                continue;
            }
            match overdue {
                Overdue::Idle if !closing => {
                    closing = true;
                    end(connection.as_mut());
                    activity.touch();
                }
                Overdue::Idle | Overdue::Head | Overdue::Write => return Poll::Ready(()),
                Overdue::Nothing => activity.touch(),
            }
        }
    })
    .await;
}

/// How long a connection may wait for its client.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// Between two requests.
    idle: Duration,
    /// From the first byte of a head to its last.
    head: Duration,
    /// For the client to take any byte of an answer, and all the waiting for it that bytes do not make good.
    write: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Overdue {
    Idle,
    Head,
    Write,
    Nothing,
}

/// What the transport and the handler know of a connection.
#[derive(Debug)]
pub(crate) struct Activity {
    start: Instant,
    /// The same instant by the coarse clock.
    start_coarse: Duration,
    /// Requests under way.
    requests: AtomicU32,
    /// Microseconds after `start`; `NEVER` where there is none.
    last: AtomicI64,
    head_since: AtomicI64,
    write_since: AtomicI64,
    /// The microseconds of waiting for the client to take something that bytes have not made good.
    write_spent: AtomicI64,
    /// HTTP/2 sends frames outside requests, which are no slow heads.
    is_http2: AtomicBool,
    /// The client may still be sending when we close.
    lingers: AtomicBool,
    /// Another protocol was agreed on.
    is_tunnel: AtomicBool,
    refused: OnceLock<Refused>,
}

const NEVER: i64 = -1;

/// A request under way. Dropping it says that the answer was given.
#[derive(Debug)]
pub(crate) struct Busy(Arc<Activity>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Ordering::Relaxed);
        self.0.touch();
    }
}

impl Activity {
    fn new() -> Self {
        Self {
            start: clock::instant(),
            start_coarse: clock::coarse(),
            requests: AtomicU32::new(0),
            last: AtomicI64::new(0),
            head_since: AtomicI64::new(NEVER),
            write_since: AtomicI64::new(NEVER),
            write_spent: AtomicI64::new(0),
            is_http2: AtomicBool::new(false),
            lingers: AtomicBool::new(false),
            is_tunnel: AtomicBool::new(false),
            refused: OnceLock::new(),
        }
    }

    /// A request's head is complete.
    pub(crate) fn begin(self: &Arc<Self>) -> Busy {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.head_since.store(NEVER, Ordering::Relaxed);
        Busy(Arc::clone(self))
    }

    /// The connection closes after this answer although its client may not be done, so it closes gently.
    pub(crate) fn linger(&self) {
        self.lingers.store(true, Ordering::Relaxed);
    }

    /// From here on the client speaks another protocol.
    pub(crate) fn begin_tunnel(&self) {
        self.is_tunnel.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_tunnel(&self) -> bool {
        self.is_tunnel.load(Ordering::Relaxed)
    }

    /// Nothing more of what the client sends is read.
    pub(crate) fn refuse(&self, refused: Refused) {
        self.linger();
        self.refused.get_or_init(|| refused);
    }

    pub(crate) fn refused(&self) -> Option<Refused> {
        self.refused.get().copied()
    }

    fn now(&self) -> i64 {
        let age = clock::coarse().saturating_sub(self.start_coarse);
        i64::try_from(age.as_micros()).unwrap_or(i64::MAX)
    }

    fn touch(&self) {
        self.last.store(self.now(), Ordering::Relaxed);
    }

    /// Bytes came.
    pub(crate) fn read(&self) {
        let now = self.now();
        self.last.store(now, Ordering::Relaxed);
        let is_idle =
            self.requests.load(Ordering::Relaxed) == 0 && !self.is_http2.load(Ordering::Relaxed);
        if is_idle && self.head_since.load(Ordering::Relaxed) == NEVER {
            self.head_since.store(now, Ordering::Relaxed);
        }
    }

    /// The client took so many bytes, or has to be waited for.
    fn wrote(&self, polled: &Poll<io::Result<usize>>) {
        let since = self.write_since.load(Ordering::Relaxed);
        let Poll::Ready(taken) = polled else {
            if since == NEVER {
                self.write_since.store(self.now(), Ordering::Relaxed);
            }
            return;
        };
        let mut spent = self.write_spent.load(Ordering::Relaxed);
        if since == NEVER && spent == 0 {
            return;
        }
        if since != NEVER {
            self.write_since.store(NEVER, Ordering::Relaxed);
            spent += self.now() - since;
        }
        let bytes = taken.as_ref().map_or(0, |count| *count as u64);
        let earned = i64::try_from(patience::earned(bytes).as_micros()).unwrap_or(i64::MAX);
        let spent = spent.saturating_sub(earned).max(0);
        self.write_spent.store(spent, Ordering::Relaxed);
    }

    /// The next instant at which this connection would have taken too long, and with what.
    fn deadline(&self, limits: Limits) -> (Instant, Overdue) {
        let Limits { idle, head, write } = limits;
        let at =
            |micros: i64| self.start + Duration::from_micros(u64::try_from(micros).unwrap_or(0));
        let write_since = self.write_since.load(Ordering::Relaxed);
        if write_since != NEVER {
            let spent = self.write_spent.load(Ordering::Relaxed);
            let left = write.saturating_sub(Duration::from_micros(spent.unsigned_abs()));
            return (at(write_since) + left, Overdue::Write);
        }
        let last = at(self.last.load(Ordering::Relaxed));
        if self.requests.load(Ordering::Relaxed) > 0 {
            return (last.max(at(self.now())) + idle, Overdue::Nothing);
        }
        let head_since = self.head_since.load(Ordering::Relaxed);
        if head_since != NEVER {
            return (at(head_since) + head, Overdue::Head);
        }
        (last + idle, Overdue::Idle)
    }
}

/// The transport, noting when it moved, with the strict scanner before all that is HTTP/1.1.
pub(crate) struct ClientIo<S> {
    stream: S,
    activity: Arc<Activity>,
    gate: Option<Box<Gate>>,
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
    fn new(stream: S, activity: Arc<Activity>, place: Place) -> Self {
        Self {
            stream,
            activity,
            gate: None,
            _place: place,
            lingering: None,
        }
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
            gate,
            ..
        } = &mut *self;
        gate.take_if(|gate| gate.is_done());
        if let Some(gate) = gate {
            return gate.poll_read(stream, activity, cx, buffer);
        }
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if polled.is_ready() && buffer.filled().len() > before {
            self.activity.read();
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
            if !self.activity.lingers.load(Ordering::Relaxed) {
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
