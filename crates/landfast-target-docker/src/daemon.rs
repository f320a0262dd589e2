//! One daemon: a client that speaks a version both know, waits no longer than it should, and knows since when the
//! daemon does not answer.
//!
//! The version is in the path of each request, put there by us: bollard 0.21.1 drops it when it joins addresses
//! (fussybeaver/bollard#736), and without one a daemon answers in its newest.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use bollard::{BollardRequest, ClientVersion, Docker, errors::Error};
use landfast_target::Outage;
use tokio::time::Instant;

use crate::{DockerAddress, clock, core::blocking, identity, way::Way};

/// The oldest version that has all we ask for: Docker 20.10.
pub(crate) const OLDEST: Version = Version(1, 41);
/// The newest whose answers we were written for.
const NEWEST: Version = Version(1, 53);
/// bollard counts whole seconds; ours are shorter and come first.
const BOLLARD_SECONDS: u64 = 3_600;
/// So long nobody else waits for one that did not answer: who has many questions asks one.
const SILENCE_KEPT: Duration = Duration::from_secs(1);

/// A version of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(pub(crate) u16, pub(crate) u16);

impl Version {
    fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.split_once('.')?;
        Some(Self(major.parse().ok()?, minor.parse().ok()?))
    }

    fn pack(self) -> u32 {
        u32::from(self.0) << 16 | u32::from(self.1)
    }

    fn unpack(packed: u32) -> Option<Self> {
        let halves = (u16::try_from(packed >> 16), u16::try_from(packed & 0xffff));
        match halves {
            (Ok(major), Ok(minor)) if packed != 0 => Some(Self(major, minor)),
            (Ok(_) | Err(_), Ok(_) | Err(_)) => None,
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// Why a daemon did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DaemonError {
    /// It understood, and said no.
    #[error("{message}")]
    Refused { status: u16, message: String },
    /// It answered what we do not understand.
    #[error("its answer is not understood: {0}")]
    Unclear(String),
    #[error("it did not answer within {0:?}")]
    Silent(Duration),
    /// It speaks no version that we do.
    #[error("{0}")]
    Version(String),
    #[error("{0}")]
    Away(String),
}

impl DaemonError {
    /// Whether it said a state that Docker has not: of Podman, `stopped` is who has ended and was not cleaned up after yet.
    pub(crate) fn is_between_states(&self) -> bool {
        matches!(self, Self::Unclear(message) if message.contains("unknown variant `stopped`"))
    }

    pub(crate) fn is_missing(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. })
    }

    pub(crate) fn is_conflict(&self) -> bool {
        matches!(self, Self::Refused { status: 409, .. })
    }

    /// Whether the order may have been carried out all the same.
    pub(crate) fn is_uncertain(&self) -> bool {
        match self {
            Self::Refused { .. } | Self::Version(_) => false,
            Self::Unclear(_) | Self::Silent(_) | Self::Away(_) => true,
        }
    }

    pub(crate) fn into_io(self) -> io::Error {
        let kind = match self {
            Self::Silent(_) => io::ErrorKind::TimedOut,
            Self::Away(_) => io::ErrorKind::NotConnected,
            Self::Version(_) => io::ErrorKind::Unsupported,
            Self::Unclear(_) => io::ErrorKind::InvalidData,
            Self::Refused { .. } => io::ErrorKind::Other,
        };
        io::Error::new(kind, self.to_string())
    }
}

impl From<Error> for DaemonError {
    fn from(error: Error) -> Self {
        if let Error::DockerResponseServerError {
            status_code,
            message,
        } = error
        {
            return Self::Refused {
                status: status_code,
                message,
            };
        }
        if let Error::DockerStreamError { error } = error {
            return Self::Refused {
                status: 500,
                message: error,
            };
        }
        if let Error::JsonDataError { message, .. } = error {
            return Self::Unclear(message);
        }
        // Its own words end where the reason begins.
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(inner) = cause {
            let inner_text = inner.to_string();
            if !text.contains(&inner_text) {
                text = format!("{text}: {inner_text}");
            }
            cause = inner.source();
        }
        Self::Away(text)
    }
}

/// A daemon, whether it answers or not.
pub(crate) struct Daemon {
    address: DockerAddress,
    /// Where it is not reached directly.
    way: Option<Way>,
    /// Where it is remembered which daemon it is.
    state: PathBuf,
    /// Whether it is certain that it is the one that is meant.
    is_known: AtomicBool,
    /// One at a time writes down which it is.
    identifying: tokio::sync::Mutex<()>,
    /// The longest wait for an answer that is no stream.
    call_wait_max: Duration,
    client: Mutex<Option<Docker>>,
    version: Arc<AtomicU32>,
    is_podman: AtomicBool,
    outage: Mutex<Option<Outage>>,
    /// When it did not answer last.
    silent_at: Mutex<Option<Instant>>,
}

impl fmt::Debug for Daemon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Daemon")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Daemon {
    /// `forwarded`: where its socket is to be, when it is another host's.
    pub(crate) fn new(
        address: DockerAddress,
        state: PathBuf,
        forwarded: PathBuf,
        call_wait_max: Duration,
    ) -> Self {
        Self {
            way: Way::to(&address, forwarded),
            address,
            state,
            is_known: AtomicBool::new(false),
            identifying: tokio::sync::Mutex::default(),
            silent_at: Mutex::new(None),
            call_wait_max,
            client: Mutex::new(None),
            version: Arc::default(),
            is_podman: AtomicBool::new(false),
            outage: Mutex::new(None),
        }
    }

    /// The version that was agreed on.
    pub(crate) fn version(&self) -> Option<Version> {
        Version::unpack(self.version.load(Ordering::Relaxed))
    }

    /// Since when it does not answer.
    pub(crate) fn outage(&self) -> Option<Outage> {
        lock(&self.outage).clone()
    }

    /// Asks it one thing.
    pub(crate) async fn call<T, Asked>(
        &self,
        ask: impl Fn(Docker) -> Asked,
    ) -> Result<T, DaemonError>
    where
        Asked: Future<Output = Result<T, Error>>,
    {
        self.call_within(self.call_wait_max, ask).await
    }

    /// The same for what takes its time.
    pub(crate) async fn call_within<T, Asked>(
        &self,
        wait_max: Duration,
        ask: impl Fn(Docker) -> Asked,
    ) -> Result<T, DaemonError>
    where
        Asked: Future<Output = Result<T, Error>>,
    {
        let mut again = true;
        loop {
            let client = self.client().await?;
            // Every container has tasks that ask now and then; they have room for a request only while it is under way.
            let asked = Box::pin(ask(client));
            let answer = match tokio::time::timeout(wait_max, asked).await {
                Ok(answer) => answer.map_err(DaemonError::from),
                Err(_) => Err(DaemonError::Silent(wait_max)),
            };
            // One that was upgraded speaks other versions now.
            if let Err(DaemonError::Refused {
                status: 400,
                message,
            }) = &answer
                && std::mem::take(&mut again)
                && is_about_version(message)
            {
                self.version.store(0, Ordering::Relaxed);
                continue;
            }
            self.note(&answer);
            return answer;
        }
    }

    /// A client for streams, whose end is theirs to see.
    pub(crate) async fn client(&self) -> Result<Docker, DaemonError> {
        let is_fresh = |at: Instant| at.elapsed() < SILENCE_KEPT;
        if lock(&self.silent_at).is_some_and(is_fresh) {
            return Err(DaemonError::Silent(self.call_wait_max));
        }
        if let Some(way) = &self.way {
            let opened = way.open().await;
            opened.inspect_err(|error| self.note_error(error))?;
        }
        let client = self.connect().inspect_err(|error| self.note_error(error))?;
        if self.version().is_none() {
            let agreed = self.negotiate(&client).await;
            agreed.inspect_err(|error| self.note_error(error))?;
        }
        if !self.is_known.load(Ordering::Relaxed) {
            self.identify(&client).await?;
        }
        Ok(client)
    }

    /// Makes sure that it is still the daemon on which our containers are: no other knows what became of them.
    pub(crate) async fn is_the_same(&self) -> Result<(), DaemonError> {
        let client = self.client().await?;
        self.identify(&client).await
    }

    async fn identify(&self, client: &Docker) -> Result<(), DaemonError> {
        let _one_writer = self.identifying.lock().await;
        let asked = async {
            let both = async { tokio::try_join!(client.version(), client.info()) };
            let told = tokio::time::timeout(self.call_wait_max, both).await;
            let (version, info) = told.map_err(|_| DaemonError::Silent(self.call_wait_max))??;
            let Some(id) = identity::of(&version, &info) else {
                return Ok(());
            };
            let (state, address) = (self.state.clone(), self.address.clone());
            let checked = blocking(move || identity::check(&state, &address, id)).await;
            let checked = checked.map_err(|error| DaemonError::Away(error.to_string()))?;
            checked.map_err(DaemonError::Away)
        };
        asked.await.inspect_err(|error| self.note_error(error))?;
        self.is_known.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn connect(&self) -> Result<Docker, DaemonError> {
        let mut kept = lock(&self.client);
        if let Some(client) = &*kept {
            return Ok(client.clone());
        }
        let newest = ClientVersion {
            major_version: usize::from(NEWEST.0),
            minor_version: usize::from(NEWEST.1),
        };
        let made = match &self.address {
            DockerAddress::Unix(path) => {
                Docker::connect_with_unix(&path.to_string_lossy(), BOLLARD_SECONDS, &newest)
            }
            DockerAddress::Tcp {
                address,
                certificates: None,
            } => Docker::connect_with_http(address, BOLLARD_SECONDS, &newest),
            DockerAddress::Tcp {
                address,
                certificates: Some(folder),
            } => connect_with_tls(address, folder, &newest),
            DockerAddress::Ssh { .. } => {
                let socket = self.way.as_ref().map_or(Path::new(""), Way::socket);
                Docker::connect_with_unix(&socket.to_string_lossy(), BOLLARD_SECONDS, &newest)
            }
        };
        let version = Arc::clone(&self.version);
        let made = made.map_err(DaemonError::from)?;
        let made = made.with_request_modifier(move |request| prepare(request, &version));
        *kept = Some(made.clone());
        Ok(made)
    }

    /// Whether the one that answered last is Podman.
    pub(crate) fn is_podman(&self) -> bool {
        self.is_podman.load(Ordering::Relaxed)
    }

    async fn negotiate(&self, client: &Docker) -> Result<(), DaemonError> {
        let asked = tokio::time::timeout(self.call_wait_max, client.version()).await;
        let told = asked.map_err(|_| DaemonError::Silent(self.call_wait_max))??;
        let newest = told.api_version.as_deref().and_then(Version::parse);
        let oldest = told.min_api_version.as_deref().and_then(Version::parse);
        let agreed = agree(newest, oldest, told.version.as_deref())?;
        let is_podman = identity::is_podman(&told);
        self.is_podman.store(is_podman, Ordering::Relaxed);
        self.version.store(agreed.pack(), Ordering::Relaxed);
        Ok(())
    }

    fn note<T>(&self, answer: &Result<T, DaemonError>) {
        match answer {
            Ok(_) | Err(DaemonError::Refused { .. } | DaemonError::Unclear(_)) => {
                *lock(&self.outage) = None;
                *lock(&self.silent_at) = None;
            }
            Err(error) => self.note_error(error),
        }
    }

    /// Takes down that it is away: the first to see it says since when.
    pub(crate) fn note_error(&self, error: &DaemonError) {
        // Whoever answers is not away.
        if matches!(error, DaemonError::Refused { .. } | DaemonError::Unclear(_)) {
            return;
        }
        // What answers next may be another one.
        self.is_known.store(false, Ordering::Relaxed);
        if matches!(error, DaemonError::Silent(_)) {
            *lock(&self.silent_at) = Some(Instant::now());
        }
        let mut outage = lock(&self.outage);
        let since = outage.as_ref().map_or_else(clock::now, |known| known.since);
        *outage = Some(Outage {
            what: format!("Docker at {}", self.address),
            since,
            reason: error.to_string(),
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn connect_with_tls(
    address: &str,
    folder: &Path,
    version: &ClientVersion,
) -> Result<Docker, Error> {
    let [key, certificate, authority] =
        ["key.pem", "cert.pem", "ca.pem"].map(|name| folder.join(name));
    Docker::connect_with_ssl(
        address,
        &key,
        &certificate,
        &authority,
        BOLLARD_SECONDS,
        version,
    )
}

/// The version to speak, or why there is none.
fn agree(
    newest: Option<Version>,
    oldest: Option<Version>,
    release: Option<&str>,
) -> Result<Version, DaemonError> {
    let release = release.unwrap_or("of unknown version");
    let Some(newest) = newest else {
        return Err(DaemonError::Version(format!(
            "the daemon ({release}) does not say which version of the API it speaks"
        )));
    };
    if newest < OLDEST {
        return Err(DaemonError::Version(format!(
            "the daemon ({release}) speaks version {newest} of the API; Landfast needs {OLDEST}, which is Docker 20.10, or newer: upgrade the daemon"
        )));
    }
    if oldest.is_some_and(|oldest| oldest > NEWEST) {
        let oldest = oldest.unwrap_or(newest);
        return Err(DaemonError::Version(format!(
            "the daemon ({release}) refuses versions of the API older than {oldest}; this Landfast speaks {NEWEST} at most: upgrade Landfast"
        )));
    }
    Ok(newest.min(NEWEST))
}

/// `client version 1.40 is too old. Minimum supported API version is 1.44, …`
fn is_about_version(message: &str) -> bool {
    message.contains("client version")
        && (message.contains("too old") || message.contains("too new"))
}

/// Puts the version into the path, and the login into the alphabet that daemons read (RFC 4648, 5), which bollard
/// does not use.
fn prepare(mut request: BollardRequest, version: &AtomicU32) -> BollardRequest {
    if let Some(version) = Version::unpack(version.load(Ordering::Relaxed)) {
        let path = request
            .uri()
            .path_and_query()
            .map_or("/", |path| path.as_str());
        let mut parts = request.uri().clone().into_parts();
        parts.path_and_query = format!("/v{version}{path}").parse().ok();
        if let Ok(uri) = http::Uri::from_parts(parts) {
            *request.uri_mut() = uri;
        }
    }
    if let Some(login) = request.headers().get("x-registry-auth")
        && let Ok(text) = login.to_str()
    {
        let text = text.replace('+', "-").replace('/', "_");
        if let Ok(mut value) = http::HeaderValue::from_str(&text) {
            value.set_sensitive(true);
            request.headers_mut().insert("x-registry-auth", value);
        }
    }
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_on_the_newest_both_know() {
        let v = |text| Version::parse(text);
        assert_eq!(agree(v("1.41"), v("1.12"), None).unwrap(), OLDEST);
        assert_eq!(agree(v("1.52"), v("1.44"), None).unwrap(), Version(1, 52));
        assert_eq!(agree(v("1.60"), v("1.44"), None).unwrap(), NEWEST);
        let old = agree(v("1.40"), v("1.12"), Some("19.03"))
            .unwrap_err()
            .to_string();
        assert!(
            old.contains("upgrade the daemon") && old.contains("19.03"),
            "{old}"
        );
        let new = agree(v("1.70"), v("1.60"), Some("40.0"))
            .unwrap_err()
            .to_string();
        assert!(new.contains("upgrade Landfast"), "{new}");
        assert!(agree(None, None, None).is_err());
    }

    #[test]
    fn requests_say_their_version_and_logins_are_readable() {
        let version = AtomicU32::new(OLDEST.pack());
        let request = || {
            let builder = http::Request::builder().uri("unix://61/containers/json?all=true");
            let builder = builder.header("X-Registry-Auth", "a+b/c==");
            builder
                .body(bollard::body_full(bytes::Bytes::new()))
                .unwrap()
        };
        let sent = prepare(request(), &version);
        assert_eq!(
            sent.uri().to_string(),
            "unix://61/v1.41/containers/json?all=true"
        );
        assert_eq!(sent.headers()["x-registry-auth"], "a-b_c==");
        assert!(!format!("{:?}", sent.headers()).contains("a-b_c"));
        let before = prepare(request(), &AtomicU32::new(0));
        assert_eq!(before.uri().path(), "/containers/json");
    }
}
