//! The worker: one thread per core that serves, and one that takes orders, checks health and watches the
//! holder. It ends by SIGTERM, in order, or by dying; the holder then starts another.

use std::{
    io::{self, Write},
    net::{SocketAddr, TcpListener},
    os::{fd::AsFd, unix::net::UnixStream},
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::Duration,
};

use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, getrlimit, pidfd_open, setrlimit};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::Child,
    runtime::{Builder, LocalOptions},
    signal::unix::{SignalKind, signal},
};
use tokio_rustls::TlsAcceptor;

use crate::{
    clock,
    connection::{self, Kind},
    control_server, health, holder,
    link::{self, Handover, LinkError, Listeners, Receiver, Word},
    pool,
    settings::HolderSettings,
    shared::{Addresses, Shared},
    thread::Thread,
};

/// After an accept failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Between two attempts to start a new holder.
const HOLDER_PAUSE: Duration = Duration::from_secs(1);
/// How often a worker that finishes looks for what its successor was told.
const FOLLOW_EVERY: Duration = Duration::from_millis(100);

/// Takes how the start of a serving thread went, once.
type Ready = mpsc::Sender<io::Result<()>>;

/// Why a worker could not serve.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("failed to set up the worker")]
    Setup(#[from] io::Error),
}

/// Serves until SIGTERM. Settings and descriptors come over the link on standard input.
///
/// # Errors
/// When standard input is no link, or threads and event loops cannot start.
pub fn worker_main() -> Result<(), WorkerError> {
    let link = link::from_stdin()?;
    let Handover {
        settings,
        listeners,
        sender_pid,
        has_elders,
        ..
    } = link::receive(&link)?;
    let descriptors = raise_descriptor_limit();
    let addresses = Addresses {
        http: addresses(&listeners.http)?,
        https: addresses(&listeners.https)?,
        preview: listeners
            .preview
            .as_ref()
            .map(TcpListener::local_addr)
            .transpose()?,
    };
    let boot = format!("{:016x}", rand::random::<u64>());
    let shared = Shared::new(settings.worker.clone(), addresses, boot, descriptors);
    let shared = Arc::new(shared);
    shared.set_holder(sender_pid);
    shared.set_elders(has_elders);
    shared.restore();
    let listeners = Arc::new(listeners);
    let (ready, reports) = mpsc::channel();
    let mut threads = Vec::new();
    for number in 0..settings.worker.thread_count() {
        threads.push(start_thread(number, &shared, &listeners, ready.clone())?);
    }
    drop(ready);
    // A worker that serves with fewer threads than it should is one that failed to start.
    for _ in &threads {
        let report = reports.recv();
        report.map_err(|_| io::Error::other("a serving thread ended at its start"))??;
    }
    tracing::info!(pid = std::process::id(), boot = %shared.boot, http = ?shared.addresses.http, https = ?shared.addresses.https, "serving");
    // The holder waits for this byte before it lets go of an older worker.
    (&link).write_all(&[Word::Serving.byte()])?;
    let control = listeners.control.try_clone()?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(command(&shared, control, &settings, link, &listeners));
    while !threads.iter().all(JoinHandle::is_finished) {
        shared.follow_successor();
        std::thread::sleep(FOLLOW_EVERY);
    }
    for thread in threads {
        if thread.join().is_err() {
            tracing::error!("a serving thread panicked");
        }
    }
    shared.access_log.finish();
    result
}

fn addresses(listeners: &[TcpListener]) -> io::Result<Vec<SocketAddr>> {
    listeners.iter().map(TcpListener::local_addr).collect()
}

/// Each connection takes up to two descriptors; the soft limit is often 1,024. Answers the limit from now on.
fn raise_descriptor_limit() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "failed to raise the limit of open descriptors");
        return limit.current;
    }
    limit.maximum
}

/// The control thread's life.
async fn command(
    shared: &Arc<Shared>,
    control: std::os::unix::net::UnixListener,
    settings: &HolderSettings,
    link: UnixStream,
    listeners: &Listeners,
) -> Result<(), WorkerError> {
    let mut terminate = signal(SignalKind::terminate())?;
    // A terminal sends SIGINT to the whole group; the holder decides what it means.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let control = tokio::net::UnixListener::from_std(control)?;
    let served = control_server::serve(control, Arc::clone(shared));
    let checked = health::supervise(Arc::clone(shared));
    let held = watch_holder(shared, settings, link, listeners);
    let aged = outlive_elders(shared);
    let renewed = renew_certificates(shared);
    let ended = async {
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => {}
            }
        }
        tracing::info!("ending: accepting no more, finishing what is in progress");
        shared.shutdown.cancel();
    };
    tokio::select! {
        ((), (), (), (), ()) = async { tokio::join!(served, checked, ended, aged, renewed) } => Ok(()),
        error = held => Err(error),
    }
}

/// Looks for renewed certificates until the worker ends.
async fn renew_certificates(shared: &Shared) {
    let every = Duration::from_millis(shared.settings.certificates_ms.max(1));
    loop {
        tokio::select! {
            () = tokio::time::sleep(every) => shared.renew_certificates(),
            () = shared.shutdown.cancelled() => return,
        }
    }
}

/// An older worker cuts what is left when its time is over; by then it is gone, even where a holder that died
/// can no longer say so.
async fn outlive_elders(shared: &Shared) {
    let limit = holder::READY_MAX + Duration::from_millis(shared.settings.shutdown_ms);
    tokio::select! {
        () = tokio::time::sleep(limit) => shared.set_elders(false),
        () = shared.shutdown.cancelled() => {}
    }
}

/// Starts a new holder whenever there is none. Only an error that can never go away ends it.
async fn watch_holder(
    shared: &Arc<Shared>,
    settings: &HolderSettings,
    link: UnixStream,
    listeners: &Listeners,
) -> WorkerError {
    let mut link = link;
    let mut child: Option<Child> = None;
    let mut started = clock::instant();
    let mut backoff = Duration::ZERO;
    loop {
        if let Err(error) = listen_to_holder(shared, link).await {
            return error.into();
        }
        // A holder that died in the middle of a replacement asks for nothing any more.
        shared.hold_orders(false);
        if shared.shutdown.is_cancelled() {
            std::future::pending::<()>().await;
        }
        tracing::error!("the holder died; starting another");
        if let Some(mut dead) = child.take() {
            // Reaped without waiting; tokio takes care of one that is still on its way out.
            drop(dead.try_wait());
        }
        let lived = clock::instant().saturating_duration_since(started);
        backoff = holder::next_backoff(backoff, lived);
        tokio::time::sleep(backoff).await;
        started = clock::instant();
        link = loop {
            match start_holder(settings, listeners) {
                Ok((link, started)) => {
                    shared.set_holder(started.id().unwrap_or(0));
                    child = Some(started);
                    break link;
                }
                Err(error) => {
                    tracing::error!(%error, "failed to start a holder; serving without one");
                    tokio::time::sleep(HOLDER_PAUSE).await;
                }
            }
        };
    }
}

/// Does what the holder says until the other end of the link is closed.
async fn listen_to_holder(shared: &Shared, link: UnixStream) -> io::Result<()> {
    link.set_nonblocking(true)?;
    let mut link = tokio::net::UnixStream::from_std(link)?;
    let mut byte = [0];
    while link.read(&mut byte).await.is_ok_and(|count| count > 0) {
        match Word::of(byte[0]) {
            Some(Word::HoldOrders) => {
                shared.hold_orders(true);
                if let Err(error) = link.write_all(&[Word::OrdersHeld.byte()]).await {
                    tracing::debug!(%error, "the holder does not listen");
                }
            }
            Some(Word::TakeOrders) => shared.hold_orders(false),
            Some(Word::Alone) => shared.set_elders(false),
            Some(Word::Serving | Word::OrdersHeld) | None => {
                tracing::debug!(byte = byte[0], "the holder says what nobody knows");
            }
        }
    }
    Ok(())
}

fn start_holder(
    settings: &HolderSettings,
    listeners: &Listeners,
) -> Result<(UnixStream, Child), LinkError> {
    let own = i32::try_from(std::process::id())
        .ok()
        .and_then(Pid::from_raw);
    let own = own.ok_or_else(|| io::Error::other("no process id"))?;
    let pidfd = pidfd_open(own, PidfdFlags::NONBLOCK).map_err(io::Error::from)?;
    let (link, child) = holder::spawn(holder::ADOPT_ARGUMENTS)?;
    link::send(&link, settings, listeners, Receiver::Holder(pidfd.as_fd()))?;
    Ok((link, child))
}

fn start_thread(
    number: usize,
    shared: &Arc<Shared>,
    listeners: &Arc<Listeners>,
    ready: Ready,
) -> io::Result<JoinHandle<()>> {
    let shared = Arc::clone(shared);
    let listeners = Arc::clone(listeners);
    let name = format!("serve-{number}");
    std::thread::Builder::new().name(name).spawn(move || {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build_local(LocalOptions::default());
        match runtime {
            Ok(runtime) => runtime.block_on(serve(shared, &listeners, ready)),
            Err(error) => report(&ready, Err(error)),
        }
    })
}

fn report(ready: &Ready, started: io::Result<()>) {
    // The worker gave up on another thread already, and this one ends with it.
    drop(ready.send(started));
}

/// A serving thread's life.
async fn serve(shared: Arc<Shared>, listeners: &Listeners, ready: Ready) {
    let thread = match listen(&shared, listeners) {
        Ok(thread) => thread,
        Err(error) => return report(&ready, Err(error)),
    };
    report(&ready, Ok(()));
    drop(ready);
    shared.shutdown.cancelled().await;
    thread.tasks.close();
    // An idle connection to a backend is a task as well; the end must not wait for it.
    thread.pool.close();
    thread.http2_pool.close();
    let limit = Duration::from_millis(shared.settings.shutdown_ms);
    if tokio::time::timeout(limit, thread.tasks.wait())
        .await
        .is_err()
    {
        tracing::warn!(
            left = thread.tasks.len(),
            "some connections outlived the time to end and are cut"
        );
    }
}

/// Begins to accept on this thread.
fn listen(shared: &Arc<Shared>, listeners: &Listeners) -> io::Result<std::rc::Rc<Thread>> {
    let acceptor = TlsAcceptor::from(shared.certificates.server_config());
    let thread = Thread::new(Arc::clone(shared));
    thread.spawn(pool::follow(std::rc::Rc::clone(&thread)));
    let mut kinds: Vec<(&TcpListener, Kind)> = Vec::new();
    kinds.extend(listeners.http.iter().map(|listener| (listener, Kind::Http)));
    kinds.extend(
        listeners
            .https
            .iter()
            .map(|listener| (listener, Kind::Https(acceptor.clone()))),
    );
    kinds.extend(
        listeners
            .preview
            .iter()
            .map(|listener| (listener, Kind::Preview)),
    );
    for (listener, kind) in kinds {
        // The same open socket, registered with this thread's own event loop.
        let listener = tokio::net::TcpListener::from_std(listener.try_clone()?)?;
        let owner = std::rc::Rc::clone(&thread);
        thread.spawn(accept(owner, listener, kind));
    }
    Ok(thread)
}

async fn accept(thread: std::rc::Rc<Thread>, listener: tokio::net::TcpListener, kind: Kind) {
    let shutdown = thread.shared.shutdown.clone();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                // Over the bound this one waits here, and the others in the backlog.
                let permit = tokio::select! {
                    permit = Arc::clone(&thread.shared.room).acquire_owned() => permit,
                    () = shutdown.cancelled() => return,
                };
                let Ok(permit) = permit else { return };
                let owner = std::rc::Rc::clone(&thread);
                thread.spawn(connection::serve(owner, stream, peer, kind.clone(), permit));
            }
            Err(error) => {
                // A connection that broke before it was accepted says nothing about the next one.
                if error.kind() != io::ErrorKind::ConnectionAborted {
                    tracing::warn!(%error, "failed to accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}
