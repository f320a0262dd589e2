//! Names and ids of container images.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::Digest;

/// The registry of a name that names none.
const DEFAULT_REGISTRY: &str = "docker.io";
/// Where that registry keeps what has no owner.
const DEFAULT_OWNER: &str = "library";
const DEFAULT_TAG: &str = "latest";
/// As the distribution specification bounds them.
const NAME_BYTES_MAX: usize = 255;
const TAG_BYTES_MAX: usize = 128;

/// The image a daemon runs, by the digest that the daemon itself knows it by: `sha256:` and 64 hexadecimal digits. It
/// means one image on one daemon; what is asked of a registry is an [`ImageReference`] with a digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageId(pub Digest);

impl ImageId {
    /// The first twelve digits, enough for people.
    pub fn short(&self) -> String {
        self.0.short()
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.0)
    }
}

/// A text that is not an [`ImageId`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the id of an image (`sha256:` and 64 lower-case hexadecimal digits)")]
pub struct ImageIdError(String);

impl FromStr for ImageId {
    type Err = ImageIdError;
    fn from_str(text: &str) -> Result<Self, ImageIdError> {
        let digits = text.strip_prefix("sha256:");
        let digest = digits.and_then(|digits| digits.parse().ok());
        digest
            .map(Self)
            .ok_or_else(|| ImageIdError(text.to_owned()))
    }
}

impl Serialize for ImageId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ImageId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Why a text does not name an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageReferenceError {
    #[error("the name of an image must not be empty")]
    Empty,
    #[error("the name of image `{0}` is longer than {NAME_BYTES_MAX} characters")]
    TooLong(String),
    #[error(
        "`{part}` in image `{text}` is not part of a name: lower-case letters, digits, and single `.`, `_`, `__` or `-` between them"
    )]
    Name { text: String, part: String },
    #[error(
        "`{registry}` in image `{text}` is not the address of a registry, such as `registry.example.com:5000`"
    )]
    Registry { text: String, registry: String },
    #[error(
        "`{tag}` in image `{text}` is not a tag: at most {TAG_BYTES_MAX} letters, digits, `_`, `.` and `-`, and no `.` or `-` first"
    )]
    Tag { text: String, tag: String },
    #[error(
        "`{digest}` in image `{text}` is not a digest: `sha256:` and 64 lower-case hexadecimal digits"
    )]
    Digest { text: String, digest: String },
    /// A daemon would read it as an id.
    #[error("`{0}` is an id, not the name of an image")]
    Id(String),
}

/// The name of an image as people write it: `[registry/]name[:tag][@sha256:…]`. Prints as it was written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageReference {
    written: Box<str>,
    registry: Option<Box<str>>,
    path: Box<str>,
    tag: Option<Box<str>>,
    digest: Option<Digest>,
}

impl ImageReference {
    /// The registry's address; `docker.io` where none is written.
    pub fn registry(&self) -> &str {
        self.registry.as_deref().unwrap_or(DEFAULT_REGISTRY)
    }

    /// The name within its registry, whole: `library/nginx` for `nginx`.
    pub fn repository(&self) -> String {
        match self.registry() == DEFAULT_REGISTRY && !self.path.contains('/') {
            true => format!("{DEFAULT_OWNER}/{}", self.path),
            false => self.path.to_string(),
        }
    }

    /// The name as it was written, without tag and digest.
    pub fn name(&self) -> String {
        match &self.registry {
            Some(registry) => format!("{registry}/{}", self.path),
            None => self.path.to_string(),
        }
    }

    /// The tag that is written.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The tag that is meant where no digest is: `latest` where none is written.
    pub fn tag_meant(&self) -> &str {
        self.tag.as_deref().unwrap_or(DEFAULT_TAG)
    }

    /// The digest of the manifest in the registry, when the name says it.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// The same name at a digest, without its tag: what names one image for ever.
    #[must_use]
    pub fn at(&self, digest: Digest) -> Self {
        let name = self.name();
        Self {
            written: format!("{name}@sha256:{digest}").into(),
            tag: None,
            digest: Some(digest),
            ..self.clone()
        }
    }

    /// Whether both are the same name of the same registry, whatever their tags and digests.
    pub fn is_same_name(&self, other: &Self) -> bool {
        self.registry() == other.registry() && self.repository() == other.repository()
    }

    /// The text as it was written.
    pub fn as_str(&self) -> &str {
        &self.written
    }
}

impl FromStr for ImageReference {
    type Err = ImageReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err(ImageReferenceError::Empty);
        }
        if text.parse::<ImageId>().is_ok() || text.parse::<Digest>().is_ok() {
            return Err(ImageReferenceError::Id(text.to_owned()));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(read_digest(text, digest)?)),
            None => (text, None),
        };
        // A colon before the last slash belongs to the registry's port.
        let last = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match rest[last..].split_once(':') {
            Some((end, tag)) => (&rest[..last + end.len()], Some(read_tag(text, tag)?)),
            None => (rest, None),
        };
        if name.len() > NAME_BYTES_MAX {
            return Err(ImageReferenceError::TooLong(text.to_owned()));
        }
        let (registry, path) = match name.split_once('/') {
            Some((first, path))
                if first.contains(['.', ':'])
                    || first == "localhost"
                    || first != first.to_ascii_lowercase() =>
            {
                (Some(read_registry(text, first)?), path)
            }
            Some(_) | None => (None, name),
        };
        if let Some(part) = path.split('/').find(|part| !is_part(part)) {
            return Err(ImageReferenceError::Name {
                text: text.to_owned(),
                part: part.to_owned(),
            });
        }
        Ok(Self {
            written: text.into(),
            registry: registry.map(Into::into),
            path: path.into(),
            tag: tag.map(Into::into),
            digest,
        })
    }
}

fn read_digest(text: &str, digest: &str) -> Result<Digest, ImageReferenceError> {
    let id = digest.parse::<ImageId>();
    id.map(|id| id.0).map_err(|_| ImageReferenceError::Digest {
        text: text.to_owned(),
        digest: digest.to_owned(),
    })
}

fn read_tag<'a>(text: &str, tag: &'a str) -> Result<&'a str, ImageReferenceError> {
    let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    let first = tag.as_bytes().first();
    let rest = tag
        .bytes()
        .all(|byte| is_word(&byte) || matches!(byte, b'.' | b'-'));
    if first.is_some_and(is_word) && rest && tag.len() <= TAG_BYTES_MAX {
        return Ok(tag);
    }
    Err(ImageReferenceError::Tag {
        text: text.to_owned(),
        tag: tag.to_owned(),
    })
}

fn read_registry<'a>(text: &str, registry: &'a str) -> Result<&'a str, ImageReferenceError> {
    let (host, port) = match registry.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        Some(_) | None => (registry, None),
    };
    let address = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let is_label = |label: &str| {
        let inner = label
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        inner && !label.is_empty() && !label.starts_with('-') && !label.ends_with('-')
    };
    let host_holds = match address {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.split('.').all(is_label),
    };
    if host_holds && port.is_none_or(|port| port.parse::<u16>().is_ok()) {
        return Ok(registry);
    }
    Err(ImageReferenceError::Registry {
        text: text.to_owned(),
        registry: registry.to_owned(),
    })
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_part(part: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let ends = |byte: Option<&u8>| byte.is_some_and(|byte| is_word(*byte));
    let bytes = part.as_bytes();
    if !ends(bytes.first()) || !ends(bytes.last()) {
        return false;
    }
    let between = part.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    between
        .into_iter()
        .all(|gap| matches!(gap, "" | "." | "_" | "__") || gap.bytes().all(|byte| byte == b'-'))
}

impl fmt::Display for ImageReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.written)
    }
}

impl Serialize for ImageReference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.written)
    }
}

impl<'de> Deserialize<'de> for ImageReference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGITS: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn reads_names_as_daemons_do() {
        let digest = format!("nginx:1.27@sha256:{DIGITS}");
        for (text, registry, repository, tag) in [
            ("nginx", "docker.io", "library/nginx", None),
            ("nginx:1.27", "docker.io", "library/nginx", Some("1.27")),
            ("docker.io/nginx", "docker.io", "library/nginx", None),
            ("grafana/loki:3", "docker.io", "grafana/loki", Some("3")),
            ("localhost/shop", "localhost", "shop", None),
            (
                "127.0.0.1:5000/a/b:v_1",
                "127.0.0.1:5000",
                "a/b",
                Some("v_1"),
            ),
            ("[::1]:5000/a", "[::1]:5000", "a", None),
            ("ghcr.io/x/y__z-q.r", "ghcr.io", "x/y__z-q.r", None),
            (&digest, "docker.io", "library/nginx", Some("1.27")),
        ] {
            let read: ImageReference = text.parse().expect(text);
            assert_eq!(read.registry(), registry, "{text}");
            assert_eq!(read.repository(), repository, "{text}");
            assert_eq!(read.tag(), tag, "{text}");
            assert_eq!(read.to_string(), text);
        }
        let pinned: ImageReference = digest.parse().expect("a name");
        assert_eq!(pinned.digest(), Some(Digest::of(b"abc")));
        let bare: ImageReference = "nginx:1".parse().expect("a name");
        let at = bare.at(Digest::of(b"abc"));
        assert_eq!(at.to_string(), format!("nginx@sha256:{DIGITS}"));
        assert_eq!(at.to_string().parse(), Ok(at.clone()));
        assert!(at.is_same_name(&"docker.io/library/nginx".parse().expect("a name")));
    }

    #[test]
    fn refuses_what_no_daemon_would_take() {
        let id = format!("sha256:{DIGITS}");
        let long = "a".repeat(256);
        for text in [
            "",
            "Nginx",
            "a//b",
            "a/",
            "/a",
            "a:",
            "a:-x",
            "a:b:c",
            "a@sha256:12",
            "a b",
            "a..b",
            "a___b",
            "-a",
            "x.y:port/a",
            "-.com/a",
            DIGITS,
            &id,
            &long,
            "a\nb",
        ] {
            assert!(text.parse::<ImageReference>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn reads_back_the_ids_it_prints() {
        let id = ImageId(Digest::of(b"abc"));
        assert_eq!(id.to_string(), format!("sha256:{DIGITS}"));
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!(DIGITS.parse::<ImageId>().is_err());
    }
}
