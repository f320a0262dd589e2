//! The worker: one thread per core that serves, and one that takes orders, checks health and watches the
//! holder. It leaves when a successor serves (see [`crate::leaving`]), ends by SIGTERM, in order, or by dying; the holder
//! then starts another.

use std::{
    io::{self, Write},
    net::{SocketAddr, TcpListener},
    os::unix::net::UnixListener,
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::Duration,
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::SockRef;
use tokio::{
    runtime::{Builder, LocalOptions},
    signal::unix::{Signal, SignalKind, signal},
};
use tokio_rustls::TlsAcceptor;

use crate::{
    connection::{self, Kind},
    control_server,
    elders::{Elders, OwnSocket},
    health, holder,
    holder_link::HolderLink,
    leaving,
    link::{self, Handover, LinkError, Listeners, Word},
    persist, pool, priority,
    shared::{Addresses, Shared},
    thread::Thread,
};

/// After an accept failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// What the kernel takes of an answer beyond what the client lets it send. Without a bound that is megabytes for each
/// client that reads slowly; and a socket is writable again only when a third of it has gone, so that such a client
/// seems to take nothing for minutes.
const UNSENT_MAX: u32 = 64 << 10;
/// How often a worker that leaves looks for what its successor was told.
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
        elders: told,
        took_over,
        ..
    } = link::receive(&link)?;
    let own = OwnSocket::bind(&settings.control)
        .inspect_err(|error| tracing::warn!(%error, "no socket of its own: after a hand-over this worker ends as by SIGTERM"))
        .ok();
    let elders = Arc::new(Elders::find(&settings.control));
    let descriptors = raise_descriptor_limit();
    priority::raise();
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
    let is_unknown = elders.lacks(&told);
    shared.set_unknown_elders(is_unknown);
    if took_over {
        shared.set_took_over();
    }
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
    let own_listener = own
        .as_ref()
        .map(|own| own.listener.try_clone())
        .transpose()?;
    let link = HolderLink::new(
        Arc::clone(&shared),
        elders,
        settings,
        own.is_some(),
        link,
        listeners,
    );
    let result = runtime.block_on(lead(link, control, own_listener, &threads));
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

/// The signals a worker hears. A terminal sends SIGINT to the whole group; the holder decides what it means.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    async fn terminated(&mut self) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => {}
            }
        }
    }
}

/// The control thread's life: in charge until the worker leaves, then only for what it still has in flight.
async fn lead(
    link: HolderLink,
    control: UnixListener,
    own: Option<UnixListener>,
    threads: &[JoinHandle<()>],
) -> Result<(), WorkerError> {
    let mut signals = Signals {
        terminate: signal(SignalKind::terminate())?,
        interrupt: signal(SignalKind::interrupt())?,
    };
    let (shared, elders) = (Arc::clone(&link.shared), Arc::clone(&link.elders));
    let answering = async {
        if let Some(own) = own {
            match tokio::net::UnixListener::from_std(own) {
                Ok(own) => control_server::serve_own(own, Arc::clone(&shared)).await,
                Err(error) => tracing::error!(%error, "the worker cannot be asked"),
            }
        }
        std::future::pending::<()>().await;
    };
    let leading = async {
        // With the link go the listening descriptors: whoever leaves keeps no port.
        command(link, control, &mut signals).await?;
        finish(&shared, &mut signals, threads).await;
        let limit = Duration::from_millis(shared.settings.shutdown_ms);
        if tokio::time::timeout(limit, elders.ended()).await.is_err() {
            tracing::warn!("older workers have not ended yet");
        }
        Ok(())
    };
    tokio::select! {
        result = leading => result,
        () = answering => Ok(()),
    }
}

/// Serves until the worker leaves.
async fn command(
    link: HolderLink,
    control: UnixListener,
    signals: &mut Signals,
) -> Result<(), WorkerError> {
    let shared = Arc::clone(&link.shared);
    let control = tokio::net::UnixListener::from_std(control)?;
    let served = control_server::serve(control, Arc::clone(&shared), Arc::clone(&link.elders));
    let checked = health::supervise(Arc::clone(&shared));
    let aged = outlive_elders(&shared);
    let renewed = renew_certificates(&shared);
    let ended = async {
        tokio::select! {
            () = signals.terminated() => {
                tracing::info!("ending: accepting no more, finishing what is in progress");
                shared.life.end(&shared.settings);
            }
            () = shared.life.leaving.cancelled() => {
                tracing::info!("leaving: another worker accepts; keeping what is in progress");
            }
        }
    };
    tokio::select! {
        ((), (), (), ()) = async { tokio::join!(served, ended, aged, renewed) } => Ok(()),
        () = async { checked.await; std::future::pending().await } => Ok(()),
        error = link.watch() => Err(error.into()),
    }
}

/// Follows its successor until nothing is in flight any more.
async fn finish(shared: &Arc<Shared>, signals: &mut Signals, threads: &[JoinHandle<()>]) {
    let mut routes = persist::Watch::new(&shared.settings.routes);
    let mut checked = std::pin::pin!(health::supervise(Arc::clone(shared)));
    let mut over = std::pin::pin!(tokio::time::sleep(leaving::kept(&shared.settings)));
    let (mut is_checked, mut is_over) = (false, false);
    while !threads.iter().all(JoinHandle::is_finished) {
        if let Some(snapshot) = routes.news() {
            shared.follow_successor(snapshot);
        }
        tokio::select! {
            () = tokio::time::sleep(FOLLOW_EVERY) => {}
            () = signals.terminated() => shared.life.end(&shared.settings),
            () = &mut checked, if !is_checked => is_checked = true,
            () = &mut over, if !is_over => {
                is_over = true;
                shared.life.end_of_handover(&shared.settings);
            }
        }
    }
}

/// Looks for renewed certificates until the worker ends.
async fn renew_certificates(shared: &Shared) {
    let every = Duration::from_millis(shared.settings.certificates_ms.max(1));
    loop {
        tokio::select! {
            () = tokio::time::sleep(every) => shared.renew_certificates(),
            () = shared.life.leaving.cancelled() => return,
        }
    }
}

/// An older worker that cannot be asked cuts what is left when its time is over; by then it is gone, even where a
/// holder that died can no longer say so.
async fn outlive_elders(shared: &Shared) {
    let limit = holder::READY_MAX + Duration::from_millis(shared.settings.shutdown_ms);
    tokio::select! {
        () = tokio::time::sleep(limit) => shared.set_unknown_elders(false),
        () = shared.life.leaving.cancelled() => {}
    }
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
            Ok(runtime) => runtime.block_on(serve(shared, listeners, ready)),
            Err(error) => report(&ready, Err(error)),
        }
    })
}

fn report(ready: &Ready, started: io::Result<()>) {
    // The worker gave up on another thread already, and this one ends with it.
    drop(ready.send(started));
}

/// A serving thread's life.
async fn serve(shared: Arc<Shared>, listeners: Arc<Listeners>, ready: Ready) {
    let thread = match listen(&shared, &listeners) {
        Ok(thread) => thread,
        Err(error) => return report(&ready, Err(error)),
    };
    report(&ready, Ok(()));
    drop((ready, listeners));
    shared.life.leaving.cancelled().await;
    thread.tasks.close();
    // An idle connection to a backend is a task as well; the end must not wait for it.
    thread.pool.close();
    thread.http2_pool.close();
    tokio::select! {
        () = thread.tasks.wait() => {}
        () = shared.life.limit() => tracing::warn!(
            left = thread.tasks.len(),
            "some connections outlived the time to end and are cut"
        ),
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
        // What is accepted has it from its listener.
        if let Err(error) = SockRef::from(listener).set_tcp_notsent_lowat(UNSENT_MAX) {
            tracing::warn!(%error, "what the kernel keeps for slow clients has no bound");
        }
        // The same open socket, registered with this thread's own event loop.
        let listener = tokio::net::TcpListener::from_std(listener.try_clone()?)?;
        let owner = std::rc::Rc::clone(&thread);
        thread.spawn(accept(owner, listener, kind));
    }
    Ok(thread)
}

async fn accept(thread: std::rc::Rc<Thread>, listener: tokio::net::TcpListener, kind: Kind) {
    let leaving = thread.shared.life.leaving.clone();
    let descriptors = &thread.shared.descriptors;
    let mut is_told = false;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = leaving.cancelled() => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                is_told = false;
                // Closed at once: its client has as many as it may.
                let Some(seat) = thread.shared.peers.enter(peer.ip()) else {
                    continue;
                };
                let Some(place) = descriptors.admit() else {
                    if let Some(place) = descriptors.refuse() {
                        thread.spawn(connection::refuse(stream, kind.clone(), place));
                    }
                    continue;
                };
                let owner = std::rc::Rc::clone(&thread);
                thread.spawn(connection::serve(
                    owner,
                    stream,
                    peer,
                    kind.clone(),
                    (place, seat),
                ));
            }
            Err(error) => {
                if pool::is_exhaustion(&error) {
                    descriptors.wanted.notify_waiters();
                }
                // A connection that broke before it was accepted says nothing about the next one.
                if error.kind() != io::ErrorKind::ConnectionAborted {
                    // Once until it goes well again: the log must not fill while the descriptors are all in use.
                    if !std::mem::replace(&mut is_told, true) {
                        tracing::warn!(%error, "failed to accept connections; they wait");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}
