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
    fmt, io,
    path::{Path, PathBuf},
};

use aws_lc_rs::rand;
use landfast_keyfile::{FileError, KEY_LEN, KeyBytes, Kind};
use landfast_types::Hasher;
use zeroize::Zeroizing;

pub use landfast_keyfile::KeyId;

use crate::source::KeySource;

const KIND: Kind = Kind {
    head: "landfast secrets key 1",
    id: id_of,
};

fn id_of(key: &[u8; KEY_LEN]) -> KeyId {
    let mut hasher = Hasher::default();
    hasher.update_framed(b"landfast secrets key id");
    hasher.update_framed(key);
    let digest = hasher.finish();
    let (id, _) = digest
        .as_bytes()
        .split_first_chunk()
        .expect("a SHA-256 has 32 bytes");
    KeyId::of(*id)
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

impl From<FileError> for KeyError {
    fn from(error: FileError) -> Self {
        match error {
            FileError::Missing { path } => Self::Missing { path },
            FileError::Exists { path } => Self::Exists { path },
            FileError::Exposed { path, mode } => Self::Exposed { path, mode },
            FileError::Damaged { path } => Self::Damaged { path },
            FileError::Io { path, source } => Self::Io { path, source },
        }
    }
}

/// A key with its name.
pub(crate) struct Key {
    pub(crate) id: KeyId,
    pub(crate) bytes: KeyBytes,
}

impl Key {
    /// Fresh randomness of the operating system.
    pub(crate) fn generate() -> Result<Self, KeyError> {
        let mut bytes = Zeroizing::new([0; KEY_LEN]);
        rand::fill(bytes.as_mut()).map_err(|_| KeyError::NoRandomness)?;
        Ok(Self::of(bytes))
    }

    /// Reads a key file.
    pub(crate) fn read(source: &KeySource) -> Result<Self, KeyError> {
        let bytes = KIND.read(source.path(), source.forbidden_mode())?;
        Ok(Self::of(bytes))
    }

    /// Writes a key file that must not be there yet. It has its name only once it is whole and on disk.
    pub(crate) fn write(&self, path: &Path) -> Result<(), KeyError> {
        Ok(KIND.write(path, &self.bytes)?)
    }

    /// The text of its file.
    pub(crate) fn text(&self) -> Zeroizing<String> {
        KIND.text(&self.bytes)
    }

    /// Reads the text of a file.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        KIND.parse(text).map(Self::of)
    }

    fn of(bytes: KeyBytes) -> Self {
        let id = id_of(&bytes);
        Self { id, bytes }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files of released versions are read for ever: the id is derived as it was.
    #[test]
    fn a_key_that_was_written_before_reads_back() {
        let text = "landfast secrets key 1\nid 2bd25c4ac1f552a0\nkey 000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f\n";
        let key = Key::parse(text).unwrap();
        assert_eq!(*key.text(), text);
        assert!(!format!("{key:?}").contains("0001"));
        assert!(Key::parse(&text.replace("secrets", "backup")).is_none());
    }
}
