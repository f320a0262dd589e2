//! One client connection: TLS, the protocol it speaks, and the times it may take.
//!
//! HTTP/1.1 is served by a loop of our own ([`crate::http1`]), HTTP/2 by hyper. Both are driven the same way, with the same times:
//! the transport notes when it moved ([`crate::activity`]), so that an idle connection is told from a head that arrives slowly.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    rc::Rc,
    task::Poll,
    time::Duration,
};

use http::Request;
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::TlsAcceptor;

use crate::{
    activity::{Activity, Limits, Overdue},
    challenge::ACME_TLS,
    client_io::{ClientIo, Transport},
    clock,
    descriptors::{ClientPlace, Taken},
    farewell::Farewell,
    handler::{self, Client},
    http1,
    peers::Seat,
    request_body::ClientBody,
    thread::{Executor, Thread},
};

/// How HTTP/2 begins without TLS (RFC 9113, 3.4); no HTTP/1.1 request begins so.
const PREFACE: &[u8] = b"PRI * HTTP/2.0";
/// How long an idle connection is still listened to when the proxy ends, so that a request that is on its way
/// is answered (with `Connection: close`) rather than reset. After a hand-over it keeps all its time
/// (see [`crate::leaving`]).
const SHUTDOWN_IDLE: Duration = Duration::from_secs(1);
const H2_STREAMS_MAX: u32 = 256;
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
    let activity = Rc::new(Activity::new());
    let client = Rc::new(Client {
        thread: Rc::clone(&thread),
        address: peer.ip(),
        is_https: matches!(kind, Kind::Https(_)),
        is_preview: matches!(kind, Kind::Preview),
        forwarding: RefCell::default(),
        handoff: Cell::default(),
        activity: Rc::clone(&activity),
    });
    let Kind::Https(acceptor) = kind else {
        // Apart, as below: what the beginning of a connection needs is let go before the rest begins.
        let is_h2 = Box::pin(async {
            tokio::select! {
                is_h2 = starts_http2(&stream, settings.keep_alive(), settings.header_read()) => is_h2,
                () = ended(&thread) => None,
            }
        });
        return match is_h2.await {
            Some(true) => serve_http2(client, ClientIo::new(stream, activity, place)).await,
            Some(false) => serve_http1(client, ClientIo::new(stream, activity, place)).await,
            None => {}
        };
    };
    let accepting = tokio::time::timeout(settings.header_read(), acceptor.accept(stream));
    let Ok(Ok(stream)) = Box::pin(accepting).await else {
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
        serve_http2(client, io).await;
    } else {
        serve_http1(client, io).await;
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

/// A connection lasts long and idles most of the time, so its future has nothing in it but what it needs then.
type Serving = Pin<Box<dyn Future<Output = ()>>>;

fn serve_http1<S>(client: Rc<Client>, io: ClientIo<S>) -> Serving
where
    S: Transport + 'static,
{
    let connection = http1::serve(Rc::clone(&client), io);
    Box::pin(async move {
        let close = |_: Pin<&mut _>| client.activity.close();
        drive(&client, connection, close, false).await;
    })
}

fn serve_http2<S>(client: Rc<Client>, mut io: ClientIo<S>) -> Serving
where
    S: Transport + 'static,
{
    client.activity.set_http2();
    io.farewell = Some(Box::new(Farewell::new()));
    let settings = &client.thread.shared.settings;
    let mut builder = http2::Builder::new(Executor(Rc::clone(&client.thread)));
    builder
        .max_concurrent_streams(H2_STREAMS_MAX)
        .max_header_list_size(u32::try_from(settings.header_bytes_max).unwrap_or(u32::MAX))
        .max_send_buf_size(64 << 10);
    let handler = Rc::clone(&client);
    let service = service_fn(move |request: Request<Incoming>| {
        let request = request.map(ClientBody::Hyper);
        let answer = handler::handle(Rc::clone(&handler), request, None);
        async move { Ok::<_, std::convert::Infallible>(answer.await) }
    });
    let connection = builder.serve_connection(TokioIo::new(io), service);
    Box::pin(async move {
        let end = |connection: Pin<&mut _>| http2::Connection::graceful_shutdown(connection);
        drive(&client, connection, end, true).await;
    })
}

/// Runs a connection until it ends, is idle too long, brings a head too slowly, or takes nothing any more.
async fn drive<C, E>(client: &Client, connection: C, end: impl Fn(Pin<&mut C>), ends_at_once: bool)
where
    C: Future<Output = Result<(), E>>,
    E: std::fmt::Display,
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
    let mut is_armed = false;
    let mut stopping = false;
    let mut closing = false;
    let mut is_told = false;
    std::future::poll_fn(|cx| {
        if ends_at_once && !is_told && leaving.as_mut().poll(cx).is_ready() {
            is_told = true;
            closing = true;
            activity.touch();
            activity.linger();
            activity.say_farewell();
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
                is_armed = false;
            }
            // Once polled it wakes this task by itself.
            if (is_armed && !timer.is_elapsed()) || timer.as_mut().poll(cx).is_pending() {
                is_armed = true;
                return Poll::Pending;
            }
            if deadline > clock::instant() {
                continue;
            }
            match overdue {
                Overdue::Idle if !closing => {
                    closing = true;
                    activity.say_farewell();
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
