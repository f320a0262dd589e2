//! The key file: three lines of text, readable by its owner only.
//!
//! ```text
//! landfast secrets key 1
//! id 5f0c2a9d11e4b7c3
//! key <64 hexadecimal digits>
//! ```
//!
//! The id is derived from the key, so a damaged file is told from another key, and an envelope can name the
//! key it needs. Whoever loses this file loses the secrets; whoever copies it needs the journal as well.

use std::{
    fmt, fs,
    io::{self, Read as _, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    str::FromStr,
    sync::atomic::{AtomicU64, Ordering},
};

use aws_lc_rs::rand;
use landfast_types::Hasher;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use crate::{hex, source::KeySource};

const HEAD: &str = "landfast secrets key 1";
/// Far more than a key file holds, so that a wrong path does not fill the memory.
const FILE_BYTES_MAX: u64 = 4_096;
const KEY_LEN: usize = 32;

/// The name of a key: derived from it, and no help in guessing it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId([u8; 8]);

impl KeyId {
    fn of(key: &[u8; KEY_LEN]) -> Self {
        let mut hasher = Hasher::default();
        hasher.update_framed(b"landfast secrets key id");
        hasher.update_framed(key);
        let digest = hasher.finish();
        let (id, _) = digest
            .as_bytes()
            .split_first_chunk()
            .expect("a SHA-256 has 32 bytes");
        Self(*id)
    }

    /// The raw bytes.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for KeyId {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let bytes = hex::decode(text).ok_or(())?;
        bytes.as_slice().try_into().map(Self).map_err(|_| ())
    }
}

impl Serialize for KeyId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for KeyId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse()
            .map_err(|()| serde::de::Error::custom("not a key id (16 hexadecimal digits)"))
    }
}

/// Why a key file was not opened or made.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("the key file `{}` does not exist", path.display())]
    Missing { path: PathBuf },
    #[error("the key file `{}` already exists", path.display())]
    Exists { path: PathBuf },
    #[error("the key file `{}` can be read by others (mode {mode:04o})", path.display())]
    Exposed { path: PathBuf, mode: u32 },
    #[error("`{}` is not a Landfast key file, or it is damaged", path.display())]
    Damaged { path: PathBuf },
    #[error(
        "wrong key: `{}` holds key {held}, but the secrets are sealed under key {needed}",
        path.display()
    )]
    Wrong {
        path: PathBuf,
        held: KeyId,
        needed: KeyId,
    },
    #[error("that is no copy of a Landfast key file, or it is damaged")]
    CopyDamaged,
    #[error("wrong key: the copy is of key {copy}, and this host's is {held}")]
    CopyOfOther { copy: KeyId, held: KeyId },
    #[error("the operating system gives no randomness")]
    NoRandomness,
    #[error("failed to read or write the key file `{}`", path.display())]
    Io { path: PathBuf, source: io::Error },
}

impl KeyError {
    /// What the operator can do, as one sentence.
    pub fn hint(&self) -> String {
        match self {
            Self::Missing { path } | Self::Damaged { path } => {
                format!(
                    "put the copy of `{}` back; a new key cannot open what is sealed",
                    path.display()
                )
            }
            Self::Wrong { path, needed, .. } => format!(
                "put the file with `id {needed}` in the place of `{}`; nothing was changed",
                path.display()
            ),
            Self::CopyDamaged => {
                "it is three lines, as `landfast secret key export` printed them".to_owned()
            }
            Self::CopyOfOther { .. } => {
                "copy the key of this host: `landfast secret key export`".to_owned()
            }
            Self::Exists { path } => format!("move `{}` away if it is not needed", path.display()),
            Self::Exposed { path, .. } => format!(
                "run `chmod 600 {}`; if others may have read it, set every secret anew",
                path.display()
            ),
            Self::NoRandomness => "look at the kernel's log".to_owned(),
            Self::Io { path, .. } => {
                format!(
                    "check that the folder of `{}` exists and is writable",
                    path.display()
                )
            }
        }
    }
}

/// A key with its name.
pub(crate) struct Key {
    pub(crate) id: KeyId,
    pub(crate) bytes: Zeroizing<[u8; KEY_LEN]>,
}

impl Key {
    /// Fresh randomness of the operating system.
    pub(crate) fn generate() -> Result<Self, KeyError> {
        let mut bytes = Zeroizing::new([0; KEY_LEN]);
        rand::fill(bytes.as_mut()).map_err(|_| KeyError::NoRandomness)?;
        Ok(Self {
            id: KeyId::of(&bytes),
            bytes,
        })
    }

    /// Reads a key file.
    pub(crate) fn read(source: &KeySource) -> Result<Self, KeyError> {
        let path = source.path();
        let path_buf = || path.to_path_buf();
        let fail = |source: io::Error| {
            if source.kind() == io::ErrorKind::NotFound {
                return KeyError::Missing { path: path_buf() };
            }
            KeyError::Io {
                path: path_buf(),
                source,
            }
        };
        let file = fs::File::open(path).map_err(fail)?;
        // The open file is asked, not the path: nothing can be put in its place in between.
        let mode = file.metadata().map_err(fail)?.permissions().mode() & 0o7777;
        if mode & source.forbidden_mode() != 0 {
            return Err(KeyError::Exposed {
                path: path_buf(),
                mode,
            });
        }
        let mut text = Zeroizing::new(String::with_capacity(FILE_BYTES_MAX as usize));
        match file.take(FILE_BYTES_MAX).read_to_string(&mut text) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(KeyError::Damaged { path: path_buf() });
            }
            Err(source) => return Err(fail(source)),
        }
        Self::parse(&text).ok_or_else(|| KeyError::Damaged { path: path_buf() })
    }

    /// Writes a key file that must not be there yet. It has its name only once it is whole and on disk.
    pub(crate) fn write(&self, path: &Path) -> Result<(), KeyError> {
        // Its own name for each attempt, of threads as of processes. One that a crash left is never read.
        static ATTEMPTS: AtomicU64 = AtomicU64::new(0);
        let attempt = ATTEMPTS.fetch_add(1, Ordering::Relaxed);
        let mut name = path.as_os_str().to_os_string();
        name.push(format!(".{}.{attempt}.new", std::process::id()));
        let unfinished = PathBuf::from(name);
        if let Err(source) = fs::remove_file(&unfinished)
            && source.kind() != io::ErrorKind::NotFound
        {
            return Err(KeyError::Io {
                path: path.to_path_buf(),
                source,
            });
        }
        let outcome = self
            .write_to(&unfinished)
            .and_then(|()| fs::hard_link(&unfinished, path));
        let removed = fs::remove_file(&unfinished);
        match outcome {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(KeyError::Exists {
                    path: path.to_path_buf(),
                });
            }
            outcome => outcome.and(removed),
        }
        .and_then(|()| {
            let folder = path
                .parent()
                .filter(|folder| !folder.as_os_str().is_empty());
            fs::File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
        })
        .map_err(|source| KeyError::Io {
            path: path.to_path_buf(),
            source,
        })
    }

    fn write_to(&self, unfinished: &Path) -> io::Result<()> {
        let text = self.text();
        let mut private = fs::OpenOptions::new();
        let mut file = private
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(unfinished)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    }

    /// The text of its file.
    pub(crate) fn text(&self) -> Zeroizing<String> {
        let digits = Zeroizing::new(hex::encode(self.bytes.as_ref()));
        // The room is taken at once: growing would leave copies behind.
        let mut text = Zeroizing::new(String::with_capacity(FILE_BYTES_MAX as usize));
        for piece in [HEAD, "\nid ", &self.id.to_string(), "\nkey ", &digits, "\n"] {
            text.push_str(piece);
        }
        text
    }

    /// Reads the text of a file.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let (head, id, key) = (lines.next()?, lines.next()?, lines.next()?);
        if head != HEAD || lines.next().is_some() {
            return None;
        }
        let digits = hex::decode(key.strip_prefix("key ")?)?;
        let bytes = Zeroizing::new(<[u8; KEY_LEN]>::try_from(digits.as_slice()).ok()?);
        let id = id.strip_prefix("id ")?.parse::<KeyId>().ok()?;
        (id == KeyId::of(&bytes)).then_some(Self { id, bytes })
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.id)
    }
}
