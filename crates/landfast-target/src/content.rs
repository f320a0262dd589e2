//! What an instance runs: files of the host, or an image; and what a container is told beside.

use std::{collections::BTreeMap, fmt, path::PathBuf, str::FromStr};

use landfast_types::{Bytes, Cpu, Digest, ImageId, StoreName};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What is run, and by that where: an artifact is a process of the host, an image a container.
///
/// Written as the digest of the artifact, which is how instances were written before there were images, or as
/// `sha256:` and the digest of the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Content {
    /// A file or folder of the store.
    Artifact(Digest),
    /// An image that the daemon has.
    Image(ImageId),
}

impl Content {
    /// The first twelve digits, enough for people.
    pub fn short(&self) -> String {
        match self {
            Self::Artifact(digest) => digest.short(),
            Self::Image(id) => id.short(),
        }
    }

    /// Whether it runs as a container.
    pub fn is_image(&self) -> bool {
        matches!(self, Self::Image(_))
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Artifact(digest) => digest.fmt(f),
            Self::Image(id) => id.fmt(f),
        }
    }
}

/// A text that is neither the digest of an artifact nor the id of an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is neither the digest of an artifact nor the id of an image")]
pub struct ContentError(String);

impl FromStr for Content {
    type Err = ContentError;
    fn from_str(text: &str) -> Result<Self, ContentError> {
        if let Ok(digest) = text.parse() {
            return Ok(Self::Artifact(digest));
        }
        let id = text.parse().map(Self::Image);
        id.map_err(|_| ContentError(text.to_owned()))
    }
}

impl Serialize for Content {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// What only a container is told. The default is a container that may do as little as one can; a process ignores it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerOptions {
    /// Takes the place of the image's entrypoint. `None`: the image's. With one, the image's own command falls away,
    /// as it does for every daemon.
    pub entrypoint: Option<Vec<String>>,
    /// The port the app listens on, which `PORT` names too. `None`: the only one that the image exposes.
    pub port: Option<u16>,
    /// The networks it is in. Its address is the one in the first; without any it has no network at all.
    pub networks: Vec<NetworkJoin>,
    /// Where volumes are in the container, by their names in [`crate::InstanceSpec::volumes`]; `/volumes/<name>` for
    /// those not named here. `VOLUME_<NAME>` says the path in the container.
    pub mounts: BTreeMap<String, PathBuf>,
    /// Folders and files of the host that are no volumes of the app.
    pub binds: Vec<Bind>,
    /// Absolute paths that are memory, beside `/tmp` and `/dev/shm`, which always are.
    pub tmpfs: Vec<PathBuf>,
    /// Whether it may write to its own root file system; what it writes there is gone with it.
    pub writable_root: bool,
    pub user: ContainerUser,
    /// Capabilities (capabilities(7)) it keeps, without `CAP_`, in upper case. All others are dropped.
    pub capabilities: Vec<String>,
    /// What it is given when the host runs short.
    pub reservation: Reservation,
    pub health: HealthSource,
    /// The signal that asks it to end, as `kill -l` numbers them. `None`: the image's, else SIGTERM.
    pub stop_signal: Option<i32>,
    /// It has the same address in its first network whenever it is started, as far as nobody took it meanwhile. For one
    /// container of a network at a time.
    pub keeps_address: bool,
    /// The size of `/dev/shm`. `None`: the daemon's.
    pub shared_memory: Option<Bytes>,
}

/// A network that a container is in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkJoin {
    pub network: ContainerNetwork,
    /// Names under which the others in it find this container: its service's, its store's.
    pub aliases: Vec<String>,
}

/// Which network of the instance's environment. The target makes it when the first container joins, and removes it
/// after the last.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ContainerNetwork {
    /// From service to service, and out to the world.
    Environment,
    /// To one data store and back, to nowhere else: joined by the store and by what uses it.
    Store(StoreName),
}

/// A path of the host in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// On the daemon's host; it exists.
    pub from: PathBuf,
    /// In the container, absolute.
    pub at: PathBuf,
    pub read_only: bool,
}

/// As whom a container runs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ContainerUser {
    /// The image's user; where that is root, or the image names none, the number that belongs to the environment.
    #[default]
    NotRoot,
    /// The image's user, root included.
    Image,
    /// The number that belongs to an owner, the one [`crate::Target::own_folder`] gives folders to.
    Owner(String),
}

/// What is held ready for a container. `None`: nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Reservation {
    pub cpu: Option<Cpu>,
    pub memory: Option<Bytes>,
}

/// Who finds out whether a container is well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HealthSource {
    /// Landfast's own probes. A check that the image brings is not run.
    #[default]
    Probes,
    /// The image's own check (`HEALTHCHECK`); [`crate::Observed::health`] says what it found.
    Image,
}

/// What the check of an image found last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum ImageHealth {
    /// It has not passed yet, and its patience has not ended.
    Starting,
    Passing,
    Failing {
        /// The end of what the check printed, in one line.
        output: String,
    },
    /// The image brings none.
    NoCheck,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_read_as_artifacts_were_written() {
        let digest = Digest::of(b"abc");
        let artifact = Content::Artifact(digest);
        let image = Content::Image(ImageId(digest));
        let old = serde_json::to_string(&digest).expect("it is a text");
        assert_eq!(serde_json::to_string(&artifact).expect("it is a text"), old);
        for content in [artifact, image] {
            let text = serde_json::to_string(&content).expect("it is a text");
            let back: Content = serde_json::from_str(&text).expect("it is read back");
            assert_eq!(back, content);
        }
        assert!("nginx:1.27".parse::<Content>().is_err());
    }
}
