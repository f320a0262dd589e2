//! The key file of a repository: three lines of text, readable by its owner only.
//!
//! ```text
//! landfast backup key 1
//! id 5f0c2a9d11e4b7c3
//! key <64 hexadecimal digits>
//! ```
//!
//! The id is derived from the key, so a damaged file is told from another key. Whoever loses this file loses every backup.

use std::{
    fmt, fs,
    io::{self, Read as _, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
    str::FromStr,
};

use aws_lc_rs::{digest, hkdf, rand};
use landfast_types::Secret;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use crate::{KeyError, RepositoryError};

const HEAD: &str = "landfast backup key 1";
const FILE_BYTES_MAX: u64 = 4_096;
pub(crate) const KEY_LEN: usize = 32;

/// The name of a key: derived from it, and no help in guessing it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyId(pub(crate) [u8; 8]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
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
        from_hex(text).map(Self).ok_or(())
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
            .map_err(|()| serde::de::Error::custom("not the id of a key"))
    }
}

/// A key. Prints as its id.
pub struct Key {
    id: KeyId,
    bytes: Zeroizing<[u8; KEY_LEN]>,
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
        let owned = || path.to_owned();
        let fail = |source: io::Error| {
            if source.kind() == io::ErrorKind::NotFound {
                return KeyError::Missing { path: owned() };
            }
            KeyError::Io {
                path: owned(),
                source,
            }
        };
        let file = fs::File::open(path).map_err(fail)?;
        // The open file is asked, not the path: nothing can be put in its place in between.
        let mode = file.metadata().map_err(fail)?.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Exposed {
                path: owned(),
                mode,
            });
        }
        let mut text = Zeroizing::new(String::with_capacity(FILE_BYTES_MAX as usize));
        match file.take(FILE_BYTES_MAX).read_to_string(&mut text) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(KeyError::Damaged { path: owned() });
            }
            Err(error) => return Err(fail(error)),
        }
        Self::parse(&text).ok_or_else(|| KeyError::Damaged { path: owned() })
    }

    /// Writes a key file that must not be there yet; it has its name only once it is whole and on disk.
    ///
    /// # Errors
    /// [`KeyError::Exists`]: a key is never replaced.
    pub fn write(&self, path: &Path) -> Result<(), KeyError> {
        let mut name = path.as_os_str().to_os_string();
        name.push(format!(".{}.new", std::process::id()));
        let unfinished = Path::new(&name);
        let write = || {
            match fs::remove_file(unfinished) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut options = fs::File::options();
            let mut file = options
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(unfinished)?;
            file.write_all(self.export().reveal().as_bytes())?;
            file.sync_all()?;
            let linked = fs::hard_link(unfinished, path);
            fs::remove_file(unfinished)?;
            linked?;
            let folder = path
                .parent()
                .filter(|folder| !folder.as_os_str().is_empty());
            fs::File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
        };
        write().map_err(|source| {
            let path = path.to_owned();
            if source.kind() == io::ErrorKind::AlreadyExists {
                return KeyError::Exists { path };
            }
            KeyError::Io { path, source }
        })
    }

    /// The key's name.
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// The text of the key file, for a copy in a safe place.
    pub fn export(&self) -> Secret<String> {
        let mut text = String::with_capacity(FILE_BYTES_MAX as usize);
        text.push_str(&format!("{HEAD}\nid {}\nkey ", self.id));
        for byte in self.bytes.iter() {
            text.push(char::from_digit(u32::from(byte >> 4), 16).expect("a nibble"));
            text.push(char::from_digit(u32::from(byte & 15), 16).expect("a nibble"));
        }
        text.push('\n');
        Secret::new(text)
    }

    /// Reads the text of a key file; `None` where it is damaged or something else.
    pub fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let (head, id, key) = (lines.next()?, lines.next()?, lines.next()?);
        if head != HEAD || lines.next().is_some() {
            return None;
        }
        let key = Self::of(Zeroizing::new(from_hex(key.strip_prefix("key ")?)?));
        (id.strip_prefix("id ")?.parse() == Ok(key.id)).then_some(key)
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

    fn of(bytes: Zeroizing<[u8; KEY_LEN]>) -> Self {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(b"landfast backup key id");
        context.update(bytes.as_ref());
        let digest = context.finish();
        let id = digest.as_ref()[..8].try_into().expect("eight bytes");
        Self {
            id: KeyId(id),
            bytes,
        }
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

fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let nibble = |byte: u8| {
        (byte as char)
            .to_digit(16)
            .filter(|_| !byte.is_ascii_uppercase())
    };
    if text.len() != N * 2 {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::try_from(nibble(pair[0])? << 4 | nibble(pair[1])?).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_written_once_and_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("backup.key");
        assert!(matches!(Key::read(&path), Err(KeyError::Missing { .. })));
        let key = Key::generate().unwrap();
        key.write(&path).unwrap();
        assert_eq!(Key::read(&path).unwrap().id(), key.id());
        assert!(matches!(key.write(&path), Err(KeyError::Exists { .. })));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(
            Key::read(&path),
            Err(KeyError::Exposed { mode: 0o640, .. })
        ));
    }

    #[test]
    fn a_damaged_key_is_no_other_key() {
        let key = Key::generate().unwrap();
        let text = key.export().reveal().clone();
        let last = text.len() - 2;
        let other = if text.as_bytes()[last] == b'0' {
            "1"
        } else {
            "0"
        };
        let damaged = format!("{}{other}\n", &text[..last]);
        assert!(Key::parse(&damaged).is_none());
        assert!(Key::parse(&text).is_some());
        assert!(!format!("{key:?}").contains(&text[40..60]));
    }
}
