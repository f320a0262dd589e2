//! From an empty process to a serving one, in the order that keeps every promise: lock, journal, generation,
//! target, proxy, environments, and the socket last.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use landfast_engine::{
    Clock as _, Controls, Folders, Platform, PlatformSettings, StartError, SystemClock,
};
use landfast_journal::{Journal, SqliteJournal};
use landfast_proxy::{Trust, TrustedField, control::ControlClient};
use landfast_secrets::KeySource;
use landfast_store::Store;
use landfast_target::Targets;
use landfast_target_process::{ProcessSettings, ProcessTarget};
use landfast_types::{Generation, Timestamp};
use tokio::{
    net::{TcpListener, UnixListener, UnixStream},
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinSet,
};

use crate::{
    certificates::{self, AcmeSettings},
    docker::{self, DockerPlace},
    handlers,
    inherited::Inherited,
    lock::{LockError, StateLock},
    proxy::{ProxyError, ProxyOrder},
    secrets_key,
    state::{AppState, Transport},
};

/// Open answers may take this long once the server was told to end.
const LEAVE_MAX: Duration = Duration::from_secs(5);

/// What a server is told when it starts.
#[derive(Debug, Clone)]
pub struct ServerSettings {
    pub state: PathBuf,
    pub run: PathBuf,
    /// The file of the secrets' key; `None`: a credential of the service manager, else `secrets.key` in the state.
    pub secrets_key: Option<PathBuf>,
    pub http: Vec<SocketAddr>,
    pub https: Vec<SocketAddr>,
    pub preview: SocketAddr,
    /// Serve the API here too; on loopback.
    pub tcp: Option<SocketAddr>,
    /// The `landfast` binary: shims and the proxy are started from it.
    pub executable: PathBuf,
    pub version: String,
    /// What differs from what one might expect, for `status`.
    pub notes: Vec<String>,
    /// Whose word about a client the proxy takes.
    pub trust: Trust,
    /// Connections one client may hold at the proxy; zero leaves it to the proxy.
    pub connections_per_client: u32,
    pub controls: Controls,
    pub acme: AcmeSettings,
    /// `None`: no containers run here.
    pub docker: Option<DockerPlace>,
    /// The control socket of a proxy that others start; `None`: the server starts its own.
    pub proxy: Option<PathBuf>,
    /// No process is started that would have to outlive the server.
    pub containers_only: bool,
}

/// Why a server that is a container runs no processes.
const NO_PROCESSES: &str =
    "this server runs containers only (`--containers-only`), for its processes would end with it";

impl ServerSettings {
    /// Where the key of the secrets is.
    pub(crate) fn key_source(&self) -> KeySource {
        secrets_key::source(self.secrets_key.as_deref(), &self.state)
    }
}

/// How a server ended in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// By SIGTERM or SIGINT.
    Told,
    /// By SIGUSR2: the binary that is now at the path of this one is to go on in this process.
    Replaced,
}

/// Why a server did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error("failed to prepare `{}`", .path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error("failed to open the journal")]
    Journal(#[source] landfast_journal::OpenError),
    #[error("failed to read the journal")]
    Read(#[source] landfast_journal::ReadError),
    #[error("failed to take the next generation")]
    Generation(#[source] landfast_journal::StorageError),
    #[error("failed to open the key of the secrets")]
    Key(#[source] landfast_secrets::KeyError),
    #[error("failed to open the artifact store")]
    Store(#[source] landfast_store::StoreError),
    #[error("failed to open the certificates")]
    Certificates(#[source] landfast_acme::StoreError),
    #[error("the certificate authority cannot be asked")]
    Acme(#[source] landfast_acme::ConnectError),
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("another server answers at `{}`", .0.display())]
    SocketTaken(PathBuf),
    #[error("failed to listen at `{at}`")]
    Listen { at: String, source: io::Error },
    #[error("port {} ({address}) is taken by {owner}", address.port())]
    PortTaken { address: SocketAddr, owner: String },
    #[error("`{0}` is not a loopback address; the API is served on loopback only")]
    NotLoopback(SocketAddr),
    #[error("another server has taken over: {0}")]
    Replaced(String),
    #[error("failed to serve the API")]
    Serve(#[source] io::Error),
    #[error("this build cannot read `{scope}`: {reason}")]
    Unreadable { scope: String, reason: String },
}

impl ServerError {
    /// What to do next, when that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Lock(LockError::Held { .. }) => Some(
                "one server per state folder: stop the other one, or name another folder with --state".into(),
            ),
            Self::Journal(error) => Some(error.hint()),
            Self::Key(error) => Some(error.hint()),
            Self::SocketTaken(_) => Some("stop the other server, or name another --run folder".into()),
            Self::Replaced(_) => Some("nothing is to be done: traffic goes on under the newer server".into()),
            Self::Proxy(ProxyError::Ended(_)) => {
                Some("if a port is taken, end its owner or choose others with --http and --https".into())
            }
            Self::Proxy(ProxyError::Absent(_)) => Some(
                "start `landfast proxy --control` with this path, in a container of its own: `docker compose up --detach`".into(),
            ),
            Self::PortTaken { .. } => Some("end its owner, or choose another address with --tcp".into()),
            Self::Listen { .. } => Some("choose another address with --tcp, or another folder with --run".into()),
            Self::Folder { .. } => {
                Some("name folders this user may write, with --state and --run".into())
            }
            Self::Generation(_) => Some("free some space where the state is; instances and traffic go on, and nothing is lost".into()),
            Self::Acme(_) => Some("name a PEM file with `--acme-ca`".into()),
            Self::Certificates(_) => Some("the server's user must be able to write the state folder".into()),
            Self::Lock(_) | Self::Read(_) | Self::Store(_) | Self::Proxy(_) | Self::Start(_) | Self::NotLoopback(_) | Self::Serve(_)
            | Self::Unreadable { .. } => None,
        }
    }
}

/// Reads the journal of a state folder as a start does and does nothing else: how many environments there are. Safe
/// beside a server that runs.
///
/// # Errors
/// When this build cannot read the journal, or some environment of it.
pub fn check(state: &Path) -> Result<usize, ServerError> {
    let path = state.join("journal.sqlite");
    if !path.exists() {
        return Ok(0);
    }
    let journal = SqliteJournal::open(path).map_err(ServerError::Journal)?;
    let (environments, unreadable) = landfast_engine::check_journal(&journal)?;
    match unreadable.into_iter().next() {
        Some((scope, reason)) => Err(ServerError::Unreadable {
            scope: scope.to_string(),
            reason,
        }),
        None => Ok(environments),
    }
}

/// Runs a server until it is told to end or another one takes over.
///
/// # Errors
/// [`ServerError`]: what failed and, with [`ServerError::hint`], what to do.
pub async fn run(settings: ServerSettings) -> Result<Ended, ServerError> {
    if let Some(tcp) = settings.tcp.filter(|address| !address.ip().is_loopback()) {
        return Err(ServerError::NotLoopback(tcp));
    }
    for folder in [&settings.state, &settings.run] {
        private_folder(folder)?;
    }
    let _lock = StateLock::take(&settings.state)?;
    let socket = settings.run.join("landfast.sock");
    let listener = listen(&socket).await?;
    // Everything that can be refused is asked for before a process is started that would stay behind.
    let tcp = match settings.tcp {
        Some(address) => Some(listen_tcp(address).await?),
        None => None,
    };

    let journal = Arc::new(
        SqliteJournal::open(settings.state.join("journal.sqlite")).map_err(ServerError::Journal)?,
    );
    let clock = Arc::new(SystemClock::start(last_recorded(journal.as_ref())?));
    let vault = secrets_key::open(journal.as_ref(), &settings.key_source())?;
    let store = Arc::new(Store::open(settings.state.join("store")).map_err(ServerError::Store)?);
    let target = ProcessTarget::new(ProcessSettings {
        temporary: settings.state.join("tmp"),
        volumes: Some(settings.state.join("volumes")),
        users: Some(settings.state.join("users.json")),
        ..ProcessSettings::new(
            settings.executable.clone(),
            settings.run.clone(),
            Arc::clone(&store),
        )
    });

    let containers = docker::open(&settings)
        .await
        .map_err(|source| ServerError::Folder {
            path: settings.state.join("docker"),
            source,
        })?;
    let target = Targets::new(Arc::new(target), containers);
    let target = match settings.containers_only {
        true => target.without_processes(NO_PROCESSES),
        false => target,
    };
    let inherited = Inherited::find();
    let proxy = proxy_order(&settings);
    proxy.ensure().await?;
    let generation = next_generation(journal.as_ref(), &proxy.control).await?;
    let folders = Folders {
        state: settings.state.clone(),
        run: settings.run.clone(),
    };
    let certificates = landfast_acme::Store::open(folders.certificates());
    let certificates = certificates.map_err(ServerError::Certificates)?;
    let platform = Platform::start(PlatformSettings {
        journal,
        target: Arc::new(target),
        plane: Arc::new(ControlClient::new(proxy.control.clone())),
        store,
        clock: Arc::clone(&clock) as _,
        executable: settings.executable.clone(),
        vault,
        generation,
        folders,
        controls: settings.controls,
        obtained: certificates::obtained(&certificates),
    })
    .await?;
    let certificates = certificates::manager(&settings.acme, certificates, platform.shared())?;

    let (leaving, left) = watch::channel(false);
    let state = AppState::new(
        Arc::clone(&platform),
        settings.clone(),
        Arc::clone(&certificates),
        clock.now(),
        left,
    );
    let router = handlers::router(state.clone(), Transport::Socket);
    let mut tasks = JoinSet::new();
    tasks.spawn(proxy.guard(inherited));
    tasks.spawn(certificates.run());
    if let Some(tcp) = tcp {
        let router = handlers::router(state, Transport::Loopback);
        let left = leaving.subscribe();
        tasks.spawn(async move {
            let served = axum::serve(tcp, router)
                .with_graceful_shutdown(wait_for(left))
                .await;
            if let Err(error) = served {
                tracing::error!(%error, "the API on TCP ended");
            }
        });
    }
    tracing::info!(%generation, socket = %socket.display(), "serving");
    let api = axum::serve(listener, router).with_graceful_shutdown(wait_for(leaving.subscribe()));
    let api = async { api.await.map_err(ServerError::Serve) };
    let mut api = std::pin::pin!(api);
    let ended = tokio::select! {
        served = &mut api => return served.map(|()| Ended::Told),
        ended = told_to_end() => Ok(ended),
        reason = platform.replaced() => Err(ServerError::Replaced(reason)),
    };
    tracing::info!("ending; instances and traffic go on");
    leaving.send_replace(true);
    if tokio::time::timeout(LEAVE_MAX, api).await.is_err() {
        tracing::debug!("some answers were still open");
    }
    ended
}

/// A generation above every other, that of the proxy included: this server holds the lock, so a proxy that has seen a
/// higher one was led by a server whose journal this is an older copy of.
async fn next_generation(
    journal: &SqliteJournal,
    control: &Path,
) -> Result<Generation, ServerError> {
    let seen = ControlClient::new(control.to_owned()).status().await;
    let seen = seen.map_or(Generation::default(), |status| status.fence.generation);
    let mut generation = journal.next_generation().map_err(ServerError::Generation)?;
    if generation <= seen {
        tracing::warn!(%generation, proxy = %seen, "the journal is older than the proxy; going on above both");
    }
    while generation <= seen {
        generation = journal.next_generation().map_err(ServerError::Generation)?;
    }
    Ok(generation)
}

/// When the newest record of all was written.
fn last_recorded(journal: &SqliteJournal) -> Result<Timestamp, ServerError> {
    let last = journal.last_position().map_err(ServerError::Read)?;
    let records = journal
        .read_all(last.saturating_sub(1), 1)
        .map_err(ServerError::Read)?;
    Ok(records.first().map_or(Timestamp::EPOCH, |record| record.at))
}

async fn wait_for(mut leaving: watch::Receiver<bool>) {
    if leaving.wait_for(|leaving| *leaving).await.is_err() {
        tracing::debug!("the server is gone");
    }
}

async fn told_to_end() -> Ended {
    let streams = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
        signal(SignalKind::user_defined2()),
    );
    let (Ok(mut terminate), Ok(mut interrupt), Ok(mut replace)) = streams else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => Ended::Told,
        _ = interrupt.recv() => Ended::Told,
        _ = replace.recv() => Ended::Replaced,
    }
}

fn private_folder(path: &Path) -> Result<(), ServerError> {
    let error = |source| ServerError::Folder {
        path: path.to_owned(),
        source,
    };
    fs::create_dir_all(path).map_err(error)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o711)).map_err(error)
}

/// Binds the API's socket. The lock on the state folder is ours already; a socket in the same run folder may still
/// belong to a server of another state folder.
async fn listen(socket: &Path) -> Result<UnixListener, ServerError> {
    let error = |source| ServerError::Listen {
        at: socket.display().to_string(),
        source,
    };
    if UnixStream::connect(socket).await.is_ok() {
        return Err(ServerError::SocketTaken(socket.to_owned()));
    }
    match fs::remove_file(socket) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(error(source)),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(socket).map_err(error)?;
    fs::set_permissions(socket, fs::Permissions::from_mode(0o600)).map_err(error)?;
    Ok(listener)
}

async fn listen_tcp(address: SocketAddr) -> Result<TcpListener, ServerError> {
    let taken = |source: &io::Error| source.kind() == io::ErrorKind::AddrInUse;
    TcpListener::bind(address).await.map_err(|source| {
        match landfast_proxy::port_owner(address.port()).filter(|_| taken(&source)) {
            Some(owner) => ServerError::PortTaken { address, owner },
            None => ServerError::Listen {
                at: address.to_string(),
                source,
            },
        }
    })
}

fn proxy_order(settings: &ServerSettings) -> ProxyOrder {
    let control = settings.proxy.clone();
    let is_ours = control.is_none();
    let control = control.unwrap_or_else(|| settings.run.join("proxy.sock"));
    let folder = settings.state.join("proxy");
    let mut arguments = vec!["proxy".to_owned()];
    let mut add = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
    add("--control", control.display().to_string());
    add("--routes", folder.join("routes.json").display().to_string());
    add(
        "--access-log",
        folder.join("access.log").display().to_string(),
    );
    add("--preview", settings.preview.to_string());
    for address in &settings.http {
        add("--http", address.to_string());
    }
    for address in &settings.https {
        add("--https", address.to_string());
    }
    if settings.connections_per_client > 0 {
        add(
            "--connections-per-client",
            settings.connections_per_client.to_string(),
        );
    }
    for network in &settings.trust.proxies {
        add("--trusted-proxies", network.to_string());
    }
    match settings.trust.field {
        TrustedField::XForwardedFor => {}
        TrustedField::Forwarded => add("--trusted-field", "forwarded".to_owned()),
    }
    let executable = settings.executable.clone();
    ProxyOrder {
        executable,
        arguments,
        control,
        is_ours,
        log: folder.join("proxy.log"),
    }
}
