//! The key file of a repository: three lines of text, readable by its owner only.
//!
//! ```text
//! landfast backup key 1
//! id 5f0c2a9d11e4b7c3
//! key <64 hexadecimal digits>
//! ```
//!
//! The id is derived from the key, so a damaged file is told from another key. Whoever loses this file loses every backup.

use std::{fmt, path::Path};

use aws_lc_rs::{digest, hkdf, rand};
use landfast_keyfile::{FileError, KEY_LEN, KeyBytes, KeyId, Kind, OTHERS};
use landfast_types::Secret;
use zeroize::Zeroizing;

use crate::{KeyError, RepositoryError};

const KIND: Kind = Kind {
    head: "landfast backup key 1",
    id: id_of,
};

fn id_of(key: &[u8; KEY_LEN]) -> KeyId {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(b"landfast backup key id");
    context.update(key);
    let digest = context.finish();
    KeyId::of(digest.as_ref()[..8].try_into().expect("eight bytes"))
}

/// A key. Prints as its id.
pub struct Key {
    id: KeyId,
    bytes: KeyBytes,
}

impl Key {
    /// A new key, from the operating system's randomness.
    ///
    /// # Errors
    /// [`KeyError::NoRandomness`] only.
    pub fn generate() -> Result<Self, KeyError> {
        let mut bytes = Zeroizing::new([0; KEY_LEN]);
        rand::fill(bytes.as_mut()).map_err(|_| KeyError::NoRandomness)?;
        Ok(Self::of(bytes))
    }

    /// Reads a key file.
    ///
    /// # Errors
    /// [`KeyError::Missing`], [`KeyError::Exposed`] where others may read it, [`KeyError::Damaged`].
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        Ok(Self::of(KIND.read(path, OTHERS)?))
    }

    /// Writes a key file that must not be there yet; it has its name only once it is whole and on disk.
    ///
    /// # Errors
    /// [`KeyError::Exists`]: a key is never replaced.
    pub fn write(&self, path: &Path) -> Result<(), KeyError> {
        Ok(KIND.write(path, &self.bytes)?)
    }

    /// The key's name.
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// The text of the key file, for a copy in a safe place.
    pub fn export(&self) -> Secret<String> {
        Secret::new(std::mem::take(&mut *KIND.text(&self.bytes)))
    }

    /// Reads the text of a key file; `None` where it is damaged or something else.
    pub fn parse(text: &str) -> Option<Self> {
        KIND.parse(text).map(Self::of)
    }

    /// A key for one purpose, from 32 bytes that are used for nothing else.
    pub(crate) fn derive(&self, salt: &[u8], purpose: &[u8]) -> Zeroizing<[u8; KEY_LEN]> {
        let mut derived = Zeroizing::new([0; KEY_LEN]);
        hkdf::Salt::new(hkdf::HKDF_SHA256, salt)
            .extract(self.bytes.as_ref())
            .expand(&[purpose], hkdf::HKDF_SHA256)
            .and_then(|okm| okm.fill(derived.as_mut()))
            .expect("32 bytes is what HKDF with SHA-256 gives in one block");
        derived
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

/// The key that seals, and older ones that only open.
#[derive(Debug)]
pub struct Keyring {
    current: Key,
    older: Vec<Key>,
}

impl Keyring {
    /// One key.
    pub fn new(current: Key) -> Self {
        Self {
            current,
            older: Vec::new(),
        }
    }

    /// Opens what an older key sealed, too.
    #[must_use]
    pub fn with_older(mut self, older: Key) -> Self {
        self.older.push(older);
        self
    }

    /// The key that seals.
    pub fn current(&self) -> &Key {
        &self.current
    }

    pub(crate) fn find(&self, needed: KeyId, what: &str) -> Result<&Key, RepositoryError> {
        let mut keys = std::iter::once(&self.current).chain(&self.older);
        keys.find(|key| key.id == needed)
            .ok_or_else(|| RepositoryError::WrongKey {
                what: what.to_owned(),
                needed,
                held: self.current.id,
            })
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Files of released versions are read for ever: the id is derived as it was.
    #[test]
    fn a_key_that_was_written_before_reads_back() {
        let text = "landfast backup key 1\nid 25686725a1654cae\nkey 000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f\n";
        let key = Key::parse(text).unwrap();
        assert_eq!(*key.export().reveal(), text);
        assert!(!format!("{key:?}").contains("0001"));
        let other = text.replace("backup", "secrets");
        assert!(Key::parse(&other).is_none());
    }
}
