//! Where a daemon is: the address an operator writes, and the one that is meant when nobody does. Pure.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use landfast_ssh::is_plain;

/// The address of a daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DockerAddress {
    /// `unix:///var/run/docker.sock`
    Unix(PathBuf),
    /// `tcp://host:2376`, with the certificates of a folder (`ca.pem`, `cert.pem`, `key.pem`) where it is TLS.
    Tcp {
        address: String,
        certificates: Option<PathBuf>,
    },
    /// `ssh://user@host[:port][/path]`: the socket of another host, forwarded by the `ssh` client.
    Ssh {
        /// As `ssh` takes it.
        destination: String,
        port: Option<u16>,
        /// The socket there.
        socket: PathBuf,
    },
}

/// What an operator may say: an address, or that there are to be no containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DockerChoice {
    Off,
    At(DockerAddress),
}

/// A text that is no address of a daemon.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not where a Docker daemon can be: `unix:///path`, `tcp://host:port`, `ssh://user@host` or `off`"
)]
pub struct DockerAddressError(pub String);

/// Where Docker's own client looks, and the socket on the other side of `ssh`.
const SOCKET: &str = "/var/run/docker.sock";
const PODMAN_SOCKET: &str = "/run/podman/podman.sock";

impl FromStr for DockerChoice {
    type Err = DockerAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "off" => Ok(Self::Off),
            _ => text.parse().map(Self::At),
        }
    }
}

impl FromStr for DockerAddress {
    type Err = DockerAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || DockerAddressError(text.to_owned());
        if let Some(path) = text.strip_prefix("unix://") {
            let is_path = path.starts_with('/') && path.len() > 1;
            return is_path.then(|| Self::Unix(path.into())).ok_or_else(error);
        }
        if let Some(address) = text.strip_prefix("tcp://") {
            let (host, port) = address.rsplit_once(':').ok_or_else(error)?;
            if host.is_empty() || port.parse::<u16>().is_err() {
                return Err(error());
            }
            return Ok(Self::Tcp {
                address: address.to_owned(),
                certificates: None,
            });
        }
        let Some(rest) = text.strip_prefix("ssh://") else {
            return Err(error());
        };
        let (place, socket) = match rest.split_once('/') {
            Some((place, path)) if !path.is_empty() => (place, format!("/{path}")),
            Some((place, _)) => (place, SOCKET.to_owned()),
            None => (rest, SOCKET.to_owned()),
        };
        let (destination, port) = match place.rsplit_once(':') {
            Some((destination, port)) => (destination, Some(port.parse().map_err(|_| error())?)),
            None => (place, None),
        };
        // Nothing that could be an option of `ssh`, or that it expands.
        let (user, host) = match destination.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, destination),
        };
        if !is_plain(host) || !user.is_none_or(is_plain) || socket.contains([':', '\n', '\0']) {
            return Err(error());
        }
        Ok(Self::Ssh {
            destination: destination.to_owned(),
            port,
            socket: socket.into(),
        })
    }
}

impl fmt::Display for DockerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp { address, .. } => write!(f, "tcp://{address}"),
            Self::Ssh {
                destination,
                port,
                socket,
            } => {
                write!(f, "ssh://{destination}")?;
                port.iter().try_for_each(|port| write!(f, ":{port}"))?;
                match socket == Path::new(SOCKET) {
                    true => Ok(()),
                    false => write!(f, "{}", socket.display()),
                }
            }
        }
    }
}

/// What a host says of its daemon, when the operator does not.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// `DOCKER_HOST`.
    pub docker_host: Option<String>,
    /// `DOCKER_CERT_PATH`, where `DOCKER_TLS_VERIFY` is set.
    pub certificates: Option<PathBuf>,
    /// `XDG_RUNTIME_DIR`.
    pub runtime_folder: Option<PathBuf>,
}

/// Where the daemon is when nobody says: where Docker's own client would look, then Podman's sockets. `exists` says
/// whether a path is there.
///
/// # Errors
/// When `DOCKER_HOST` is set to something else than an address.
pub fn find(
    around: &Surroundings,
    exists: impl Fn(&Path) -> bool,
) -> Result<DockerChoice, DockerAddressError> {
    if let Some(text) = around
        .docker_host
        .as_deref()
        .filter(|text| !text.is_empty())
    {
        let mut address: DockerAddress = text.parse()?;
        if let DockerAddress::Tcp { certificates, .. } = &mut address {
            certificates.clone_from(&around.certificates);
        }
        return Ok(DockerChoice::At(address));
    }
    let own = around.runtime_folder.as_ref();
    let sockets = [
        Some(PathBuf::from(SOCKET)),
        own.map(|folder| folder.join("docker.sock")),
        Some(PathBuf::from(PODMAN_SOCKET)),
        own.map(|folder| folder.join("podman/podman.sock")),
    ];
    let found = sockets.into_iter().flatten().find(|path| exists(path));
    Ok(found.map_or(DockerChoice::Off, |path| {
        DockerChoice::At(DockerAddress::Unix(path))
    }))
}

/// Where containers run: as it is told, except that those which are not known to have ended are never left, neither by
/// `off` nor by a guess. `told` is what the operator says of this server, `found` what [`find`] says, `remembered` where
/// containers run already.
pub fn choose(
    told: Option<DockerChoice>,
    found: DockerChoice,
    remembered: Option<DockerAddress>,
) -> DockerChoice {
    match (told, remembered) {
        // Whether it is the same daemon is asked there.
        (Some(DockerChoice::At(address)), _) => DockerChoice::At(address),
        (Some(DockerChoice::Off) | None, Some(remembered)) => DockerChoice::At(remembered),
        (Some(DockerChoice::Off), None) => DockerChoice::Off,
        (None, None) => found,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_where_a_daemon_is() {
        for text in [
            "unix:///var/run/docker.sock",
            "tcp://10.0.0.1:2376",
            "ssh://deploy@example.com",
            "ssh://deploy@example.com:2222",
            "ssh://deploy@example.com:2222/run/podman/podman.sock",
        ] {
            let address: DockerAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
        }
        assert_eq!("off".parse(), Ok(DockerChoice::Off));
        for text in [
            "",
            "docker",
            "unix://",
            "unix://x",
            "tcp://x",
            "tcp://:1",
            "ssh://",
            "ssh://-oProxy=x",
            "ssh://-l@host",
            "ssh://%h",
            "ssh://host/a:b",
            "npipe://x",
        ] {
            assert!(text.parse::<DockerAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_daemon_with_containers_is_never_left_by_a_guess() {
        let at = |path: &str| DockerAddress::Unix(path.into());
        let (podman, docker) = (DockerChoice::At(at(PODMAN_SOCKET)), at(SOCKET));
        let kept = DockerChoice::At(docker.clone());
        for found in [DockerChoice::Off, podman.clone()] {
            assert_eq!(choose(None, found.clone(), Some(docker.clone())), kept);
            assert_eq!(choose(None, found.clone(), None), found);
        }
        let off = Some(DockerChoice::Off);
        assert_eq!(
            choose(off.clone(), podman.clone(), Some(docker.clone())),
            kept
        );
        assert_eq!(choose(off, podman.clone(), None), DockerChoice::Off);
        // The socket of the same daemon may have moved.
        assert_eq!(
            choose(Some(podman.clone()), DockerChoice::Off, Some(docker)),
            podman
        );
    }

    #[test]
    fn looks_where_dockers_own_client_looks() {
        let nothing = Surroundings::default();
        assert_eq!(find(&nothing, |_| false), Ok(DockerChoice::Off));
        let at = |path: &str| Ok(DockerChoice::At(DockerAddress::Unix(path.into())));
        assert_eq!(find(&nothing, |_| true), at(SOCKET));
        let podman = |path: &Path| path == Path::new(PODMAN_SOCKET);
        assert_eq!(find(&nothing, podman), at(PODMAN_SOCKET));
        let told = Surroundings {
            docker_host: Some("tcp://h:2376".to_owned()),
            certificates: Some("/certs".into()),
            ..Default::default()
        };
        let Ok(DockerChoice::At(DockerAddress::Tcp { certificates, .. })) = find(&told, |_| true)
        else {
            panic!("what is told comes first");
        };
        assert_eq!(certificates, Some(PathBuf::from("/certs")));
    }
}
