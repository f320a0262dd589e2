//! The long-running roles: `server` and `proxy`.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use landfast_engine::Controls;
use landfast_proxy::{
    ADOPT_ARGUMENTS, HolderSettings, Trust, TrustedField, WORKER_ARGUMENTS, WorkerSettings,
    control::ControlClient,
};
use landfast_server::{
    AcmeSettings, ChallengeKind, DockerPlace, Ended, LETS_ENCRYPT, ServerSettings,
};
use landfast_target_docker::{
    DockerAddress, DockerAddressError, DockerChoice, Surroundings, choose, find, remembered,
};
use landfast_types::Network;

use crate::{
    args::{self, ChallengeArg},
    context::{run_folder, state_folder},
    exit::{Exit, Failure},
    out::Printer,
};

/// The HTTP and HTTPS ports, and what stands in for them where they may not be bound.
const HTTP_PORTS: (u16, u16) = (80, 8080);
const HTTPS_PORTS: (u16, u16) = (443, 8443);

/// A health check does not wait longer for an answer.
const CHECK_MAX: Duration = Duration::from_secs(5);

/// A thread that works with files ends once it has had nothing to do for this long: each keeps memory of its own.
const FILE_THREAD_IDLE_MAX: Duration = Duration::from_secs(1);
/// What still runs in the background when the server ends is not waited for any longer.
const RUNTIME_END_MAX: Duration = Duration::from_secs(2);

/// Where the server listens and keeps things, every default filled in.
#[derive(Debug)]
pub(crate) struct ServerPlaces {
    pub(crate) state: PathBuf,
    pub(crate) run: PathBuf,
    pub(crate) secrets_key: Option<PathBuf>,
    pub(crate) http: Vec<SocketAddr>,
    pub(crate) https: Vec<SocketAddr>,
    pub(crate) preview: SocketAddr,
    pub(crate) tcp: Option<SocketAddr>,
    pub(crate) acme: AcmeSettings,
    pub(crate) docker: Option<DockerPlace>,
    pub(crate) proxy: Option<PathBuf>,
    pub(crate) containers_only: bool,
    /// What differs from what one might expect.
    pub(crate) notes: Vec<String>,
}

/// Runs the server of this host until it is told to end.
pub(crate) fn server(printer: &Printer, arguments: &args::Server) -> Result<Exit, Failure> {
    if arguments.check {
        return check(printer, arguments);
    }
    let places = places(arguments)?;
    for note in &places.notes {
        printer.say(note);
    }
    log(arguments.log_json);
    landfast_shim::forbid_core_dumps();
    install_crypto();
    let trust = trust(&arguments.trusted_proxies, arguments.trusted_field);
    let controls = Controls {
        drain_confirmation_off: arguments.drain_confirmation_off,
        health_gate_off: arguments.health_gate_off,
        helper_patience: arguments.helper_patience,
    };
    run_server(places, trust, arguments.connections_per_client, controls)
}

/// Whether this build can read the journal of a state folder, as `upgrade` asks of a new one.
fn check(printer: &Printer, arguments: &args::Server) -> Result<Exit, Failure> {
    let state = match &arguments.state {
        Some(state) => state.clone(),
        None => state_folder().context("failed to choose a state folder; pass `--state`")?,
    };
    let environments =
        landfast_server::check(&state).context("the journal cannot be taken over")?;
    printer.data(&format!("{environments} environments read back"))?;
    Ok(Exit::Done)
}

/// Runs the proxy alone: this process holds the listening sockets, and starts the worker that serves.
pub(crate) fn proxy(printer: &Printer, arguments: &args::Proxy) -> Result<Exit, Failure> {
    let Some(routes) = arguments.routes.clone().filter(|_| !arguments.check) else {
        return check_proxy(printer, &arguments.control);
    };
    log(true);
    let mut worker = WorkerSettings::new(routes);
    worker.access_log.clone_from(&arguments.access_log);
    worker.threads = arguments.threads;
    worker.connections_per_client_max = arguments.connections_per_client;
    worker.trust = trust(&arguments.trusted_proxies, arguments.trusted_field);
    let settings = HolderSettings {
        http: arguments.http.clone(),
        https: arguments.https.clone(),
        preview: arguments.preview,
        control: arguments.control.clone(),
        worker,
    };
    landfast_proxy::holder_main(settings).context("the proxy ended")?;
    Ok(Exit::Done)
}

/// Whether the proxy at a control socket serves, as a health check asks.
fn check_proxy(printer: &Printer, control: &Path) -> Result<Exit, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.context("failed to start the runtime")?;
    let client = ControlClient::new(control.to_owned());
    let asked = async { tokio::time::timeout(CHECK_MAX, client.status()).await };
    let unreachable = |error: anyhow::Error| {
        let what = format!("no proxy serves at `{}`", control.display());
        Failure::new(Exit::Unreachable, error.context(what))
    };
    let told = runtime.block_on(asked).context("it said nothing in time");
    let status = told
        .map_err(unreachable)?
        .map_err(|error| unreachable(error.into()))?;
    printer.data(&format!("the proxy serves, version {}", status.version))?;
    Ok(Exit::Done)
}

/// The parts of the proxy that it starts itself: `proxy --worker` and `proxy --adopt`. `None`: neither.
pub(crate) fn proxy_part(arguments: &[&str]) -> Option<ExitCode> {
    let result = if arguments == WORKER_ARGUMENTS {
        log(true);
        install_crypto();
        landfast_proxy::worker_main().context("the proxy's worker ended")
    } else if arguments == ADOPT_ARGUMENTS {
        log(true);
        landfast_proxy::adopt_main().context("the proxy's holder ended")
    } else {
        return None;
    };
    match result {
        Ok(()) => Some(ExitCode::SUCCESS),
        Err(error) => {
            tracing::error!("{}", Failure::from(error));
            Some(ExitCode::FAILURE)
        }
    }
}

/// Chooses the provider of cryptography for the whole process. One that was chosen before is the same.
fn install_crypto() {
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
}

fn trust(proxies: &[Network], field: args::TrustedField) -> Trust {
    Trust {
        proxies: proxies.to_vec(),
        field: match field {
            args::TrustedField::XForwardedFor => TrustedField::XForwardedFor,
            args::TrustedField::Forwarded => TrustedField::Forwarded,
        },
    }
}

fn places(arguments: &args::Server) -> Result<ServerPlaces, Failure> {
    let state = match &arguments.state {
        Some(state) => state.clone(),
        None => state_folder().context("failed to choose a state folder; pass `--state`")?,
    };
    let run = arguments.run.clone().unwrap_or_else(run_folder);
    // Shims and the proxy work in folders of their own: a relative path would lead them elsewhere.
    let absolute = |path: PathBuf| {
        std::path::absolute(&path)
            .with_context(|| format!("failed to find out where `{}` is", path.display()))
    };
    let (state, run) = (absolute(state)?, absolute(run)?);
    let secrets_key = arguments.secrets_key.clone().map(absolute).transpose()?;
    let mut notes = Vec::new();
    let proxy = arguments.proxy.clone().map(absolute).transpose()?;
    // A proxy that others start says itself where it listens.
    let listen = |asked: &[SocketAddr], ports: (u16, u16), notes: &mut Vec<String>| match &proxy {
        Some(_) if asked.is_empty() => vec![(Ipv4Addr::UNSPECIFIED, ports.0).into()],
        Some(_) | None => listen(asked, ports, notes),
    };
    let http = listen(&arguments.http, HTTP_PORTS, &mut notes);
    let https = listen(&arguments.https, HTTPS_PORTS, &mut notes);
    // Any free port: the proxy says which, and nobody but the smoke jobs needs to know.
    let preview = arguments.preview.unwrap_or((Ipv4Addr::LOCALHOST, 0).into());
    let tcp = arguments.tcp;
    let acme = acme(&arguments.acme, &http, &https, &mut notes)?;
    let docker = docker(arguments, &state.join("docker"), &mut notes)?;
    Ok(ServerPlaces {
        state,
        run,
        secrets_key,
        http,
        https,
        preview,
        tcp,
        acme,
        docker,
        proxy,
        containers_only: arguments.containers_only,
        notes,
    })
}

/// Where containers run: what is said, else where some run already, else where Docker's own client would look.
fn docker(
    arguments: &args::Server,
    state: &Path,
    notes: &mut Vec<String>,
) -> Result<Option<DockerPlace>, Failure> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let folder = |name: &str| variable(name).map(PathBuf::from);
    let certificates = arguments.docker_certificates.clone();
    let around = Surroundings {
        docker_host: variable("DOCKER_HOST").map(|host| host.to_string_lossy().into_owned()),
        certificates: folder("DOCKER_CERT_PATH")
            .filter(|_| variable("DOCKER_TLS_VERIFY").is_some()),
        runtime_folder: folder("XDG_RUNTIME_DIR"),
    };
    let usage = |error: DockerAddressError| Failure::new(Exit::Usage, error.into());
    let told = arguments.docker.as_ref().map(|text| text.parse());
    let told: Option<DockerChoice> = told.transpose().map_err(usage)?;
    let found = match &told {
        Some(_) => DockerChoice::Off,
        None => find(&around, Path::exists).map_err(usage)?,
    };
    if let Some(DockerChoice::At(address @ DockerAddress::Ssh { .. })) = &told {
        notes.push(format!(
            "containers run on Docker at {address}: they serve only where their networks are routed to here"
        ));
    }
    let found = match found {
        DockerChoice::At(address @ DockerAddress::Ssh { .. }) => {
            notes.push(format!(
                "no containers run: DOCKER_HOST is {address}, a daemon of another host; `--docker {address}` uses it all the same"
            ));
            DockerChoice::Off
        }
        here @ (DockerChoice::Off | DockerChoice::At(_)) => here,
    };
    let remembered = remembered(state).with_context(|| {
        let state = state.display();
        format!("failed to find out from `{state}` which Docker daemon containers run on")
    })?;
    let wanted = told.clone().unwrap_or_else(|| found.clone());
    let choice = choose(told, found, remembered);
    if let DockerChoice::At(address) = &choice
        && wanted != choice
    {
        notes.push(format!(
            "containers run on Docker at {address}: it is asked, although nothing says so now; another daemon can be chosen when they have ended"
        ));
    }
    let DockerChoice::At(mut address) = choice else {
        return Ok(None);
    };
    if let DockerAddress::Tcp {
        certificates: known,
        ..
    } = &mut address
    {
        let said = certificates.or_else(|| around.certificates.clone());
        *known = known.take().or(said);
    }
    let home = folder("HOME").map(|home| home.join(".docker"));
    Ok(Some(DockerPlace {
        address,
        config: folder("DOCKER_CONFIG").or(home),
    }))
}

/// Let's Encrypt asks ports 80 and 443: without a word about another authority, a server that listens on neither
/// orders nothing.
fn acme(
    asked: &args::Acme,
    http: &[SocketAddr],
    https: &[SocketAddr],
    notes: &mut Vec<String>,
) -> Result<AcmeSettings, Failure> {
    let is_reachable = http.iter().any(|at| at.port() == HTTP_PORTS.0)
        || https.iter().any(|at| at.port() == HTTPS_PORTS.0);
    let directory = match &asked.acme_directory {
        _ if asked.acme_off => None,
        Some(url) if url.starts_with("https://") => Some(url.clone()),
        Some(url) => {
            let error = anyhow::anyhow!("`{url}` is not an https address");
            let failure = Failure::new(Exit::Usage, error);
            let hint = "the directory of Let's Encrypt, for example, is https://acme-v02.api.letsencrypt.org/directory";
            return Err(Failure {
                hint: Some(hint.into()),
                ..failure
            });
        }
        None if is_reachable => Some(LETS_ENCRYPT.to_owned()),
        None => {
            notes.push(
                "no certificates are ordered: the proxy listens on neither port 80 nor 443; `--acme-directory` orders them anyway".into(),
            );
            None
        }
    };
    let kind = |asked: &ChallengeArg| match asked {
        ChallengeArg::Http01 => ChallengeKind::Http01,
        ChallengeArg::TlsAlpn01 => ChallengeKind::TlsAlpn01,
    };
    Ok(AcmeSettings {
        directory,
        contacts: asked.acme_contact.clone(),
        ca: asked.acme_ca.clone(),
        challenges: asked.acme_challenges.iter().map(kind).collect(),
    })
}

/// Where a server would listen that is told nothing.
pub(crate) fn default_listeners() -> Vec<SocketAddr> {
    let address = |(port, _)| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    [HTTP_PORTS, HTTPS_PORTS].map(address).into()
}

/// What was asked for, else the well-known port, else (where this user may not bind it) its stand-in.
fn listen(asked: &[SocketAddr], ports: (u16, u16), notes: &mut Vec<String>) -> Vec<SocketAddr> {
    if !asked.is_empty() {
        return asked.to_vec();
    }
    let (port, instead) = ports;
    let address = |port: u16| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    // A port that is taken is most likely held by our own proxy; the proxy says so if it is not.
    match TcpListener::bind(address(port)) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            notes.push(format!(
                "port {port} may not be bound by this user; listening on {instead} instead"
            ));
            vec![address(instead)]
        }
        Ok(_) | Err(_) => vec![address(port)],
    }
}

/// What is logged unless `LANDFAST_LOG` says otherwise. rustls warns of what clients send in their hellos, so anybody could
/// fill the log.
const LOGGED: &str = "info,rustls=error";

fn log(json: bool) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("LANDFAST_LOG");
    let filter = filter.unwrap_or_else(|_unset| tracing_subscriber::EnvFilter::new(LOGGED));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    // A second subscriber in one process would be a slip; the first stays.
    let _kept = if json {
        builder.json().try_init()
    } else {
        builder.with_ansi(false).try_init()
    };
}

/// Goes on as the binary that is now at this one's path: the process, and with it whoever started it, stay the same.
/// Only an error comes back: then even this very binary could not be started again.
fn become_new(executable: &Path) -> anyhow::Error {
    // The kernel marks the path of a binary that was replaced.
    let path = executable.to_string_lossy();
    let path = PathBuf::from(path.strip_suffix(" (deleted)").unwrap_or(&path));
    tracing::info!(path = %path.display(), "going on as the binary that is there now");
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let become_one = |program: &Path| {
        #[expect(
            clippy::disallowed_methods,
            reason = "the server goes on in the same process, argv by argv"
        )]
        let mut command = std::process::Command::new(program);
        command.args(&arguments).exec()
    };
    let failed = become_one(&path);
    tracing::error!(error = %failed, path = %path.display(), "the new binary cannot be started; going on as the old one");
    let failed = become_one(Path::new("/proc/self/exe"));
    anyhow::Error::new(failed).context("the server ended and cannot be started again")
}

/// The one place that knows how the server is started.
fn run_server(
    places: ServerPlaces,
    trust: Trust,
    connections_per_client: u32,
    controls: Controls,
) -> Result<Exit, Failure> {
    let executable = std::env::current_exe().context("failed to find this program's own file")?;
    let settings = ServerSettings {
        state: places.state,
        run: places.run,
        secrets_key: places.secrets_key,
        http: places.http,
        https: places.https,
        preview: places.preview,
        tcp: places.tcp,
        executable: executable.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        notes: places.notes,
        trust,
        connections_per_client,
        controls,
        acme: places.acme,
        docker: places.docker,
        proxy: places.proxy,
        containers_only: places.containers_only,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_keep_alive(FILE_THREAD_IDLE_MAX)
        .build();
    let runtime = runtime.context("failed to start the runtime")?;
    let ended = runtime.block_on(landfast_server::run(settings));
    runtime.shutdown_timeout(RUNTIME_END_MAX);
    match ended {
        Ok(Ended::Told) => Ok(Exit::Done),
        Ok(Ended::Replaced) => Err(become_new(&executable).into()),
        Err(error) => {
            let hint = error.hint();
            let failure = Failure::new(Exit::Failed, error.into());
            Err(Failure { hint, ..failure })
        }
    }
}

/// `landfast wal-get SOCKET NAME PATH`: what a restore is done with, as PostgreSQL's `restore_command`. 255 stops the server,
/// where less would let it promote.
pub(crate) fn wal_get() -> ExitCode {
    let mut words = std::env::args_os().skip(2);
    let name = |word: &std::ffi::OsString| word.to_str().map(str::to_owned);
    let (socket, name, path) = (
        words.next(),
        words.next().as_ref().and_then(name),
        words.next(),
    );
    let (Some(socket), Some(name), Some(path)) = (socket, name, path) else {
        return ExitCode::from(255);
    };
    landfast_backup_postgres::wal_get(Path::new(&socket), &name, Path::new(&path))
}
