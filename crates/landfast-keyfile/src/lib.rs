//! The file of a key: three lines of text, readable by its owner only.
//!
//! ```text
//! landfast backup key 1
//! id 5f0c2a9d11e4b7c3
//! key <64 hexadecimal digits>
//! ```
//!
//! The first line says which kind of key it is. The id is derived from the key, so a damaged file is told from another key, and what is
//! sealed can name the key it needs.
//!
//! It never replaces a file that is there, reads none that others on the host can read, and keeps no key in memory that is not wiped. It
//! makes no key and derives no id: whoever owns a kind says how ([`Kind`]).

use std::{
    fmt, fs,
    io::{self, Read as _, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    str::FromStr,
    sync::atomic::{AtomicU64, Ordering},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

/// How many bytes a key has.
pub const KEY_LEN: usize = 32;
/// The bits of a mode that let anybody but the owner near a file.
pub const OTHERS: u32 = 0o077;

/// Far more than a key file holds, so that a wrong path does not fill the memory.
const FILE_BYTES_MAX: usize = 4_096;

/// A key, wiped when dropped.
pub type KeyBytes = Zeroizing<[u8; KEY_LEN]>;

/// The name of a key: derived from it, and no help in guessing it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId([u8; 8]);

impl KeyId {
    /// The id of these bytes.
    pub fn of(bytes: [u8; 8]) -> Self {
        Self(bytes)
    }

    /// The raw bytes.
    pub fn as_bytes(&self) -> &[u8; 8] {
        &self.0
    }
}

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
        from_hex(text).map(|bytes| Self(*bytes)).ok_or(())
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
            .map_err(|()| serde::de::Error::custom("not the id of a key (16 hexadecimal digits)"))
    }
}

/// Why a key file was not read or written. Never holds a key.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("there is no key file `{}`", path.display())]
    Missing { path: PathBuf },
    #[error("there is a key file `{}` already", path.display())]
    Exists { path: PathBuf },
    #[error("the key file `{}` can be read by others (mode {mode:04o})", path.display())]
    Exposed { path: PathBuf, mode: u32 },
    #[error("`{}` is no key file of this kind, or is damaged", path.display())]
    Damaged { path: PathBuf },
    #[error("failed to read or write the key file `{}`", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// A kind of key.
#[derive(Clone, Copy)]
pub struct Kind {
    /// The first line of its files.
    pub head: &'static str,
    /// How the id comes from the key.
    pub id: fn(&[u8; KEY_LEN]) -> KeyId,
}

impl Kind {
    /// Reads a key file that has none of the forbidden bits in its mode ([`OTHERS`]).
    ///
    /// # Errors
    /// [`FileError`], but [`FileError::Exists`].
    pub fn read(&self, path: &Path, forbidden_mode: u32) -> Result<KeyBytes, FileError> {
        let owned = || path.to_owned();
        let fail = |source: io::Error| {
            if source.kind() == io::ErrorKind::NotFound {
                return FileError::Missing { path: owned() };
            }
            FileError::Io {
                path: owned(),
                source,
            }
        };
        let file = fs::File::open(path).map_err(fail)?;
        // The open file is asked, not the path: nothing can be put in its place in between.
        let mode = file.metadata().map_err(fail)?.permissions().mode() & 0o7777;
        if mode & forbidden_mode != 0 {
            return Err(FileError::Exposed {
                path: owned(),
                mode,
            });
        }
        // The room is taken at once: growing would leave copies behind.
        let mut text = Zeroizing::new(String::with_capacity(FILE_BYTES_MAX));
        match file.take(FILE_BYTES_MAX as u64).read_to_string(&mut text) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(FileError::Damaged { path: owned() });
            }
            Err(error) => return Err(fail(error)),
        }
        self.parse(&text)
            .ok_or_else(|| FileError::Damaged { path: owned() })
    }

    /// Writes a key file that must not be there yet. It has its name only once it is whole and on disk.
    ///
    /// # Errors
    /// [`FileError::Exists`]: a key is never replaced; [`FileError::Io`].
    pub fn write(&self, path: &Path, key: &[u8; KEY_LEN]) -> Result<(), FileError> {
        // Its own name for each attempt, of threads as of processes. One that a crash left is never read.
        static ATTEMPTS: AtomicU64 = AtomicU64::new(0);
        let attempt = ATTEMPTS.fetch_add(1, Ordering::Relaxed);
        let mut name = path.as_os_str().to_os_string();
        name.push(format!(".{}.{attempt}.new", std::process::id()));
        let unfinished = PathBuf::from(name);
        let write = || {
            match fs::remove_file(&unfinished) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
            let written = self
                .write_to(&unfinished, key)
                .and_then(|()| fs::hard_link(&unfinished, path));
            let removed = fs::remove_file(&unfinished);
            written.and(removed)?;
            let folder = path
                .parent()
                .filter(|folder| !folder.as_os_str().is_empty());
            fs::File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
        };
        write().map_err(|source| {
            let path = path.to_owned();
            if source.kind() == io::ErrorKind::AlreadyExists {
                return FileError::Exists { path };
            }
            FileError::Io { path, source }
        })
    }

    fn write_to(&self, unfinished: &Path, key: &[u8; KEY_LEN]) -> io::Result<()> {
        let mut private = fs::OpenOptions::new();
        let mut file = private
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(unfinished)?;
        file.write_all(self.text(key).as_bytes())?;
        file.sync_all()
    }

    /// The text of the file of a key, for a copy in a safe place as well.
    pub fn text(&self, key: &[u8; KEY_LEN]) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(FILE_BYTES_MAX));
        for piece in [self.head, "\nid ", &(self.id)(key).to_string(), "\nkey "] {
            text.push_str(piece);
        }
        for byte in key {
            text.push(char::from_digit(u32::from(byte >> 4), 16).expect("a nibble"));
            text.push(char::from_digit(u32::from(byte & 15), 16).expect("a nibble"));
        }
        text.push('\n');
        text
    }

    /// Reads the text of a file; `None` where it is damaged or something else.
    pub fn parse(&self, text: &str) -> Option<KeyBytes> {
        let mut lines = text.lines();
        let (head, id, key) = (lines.next()?, lines.next()?, lines.next()?);
        if head != self.head || lines.next().is_some() {
            return None;
        }
        let key: KeyBytes = from_hex(key.strip_prefix("key ")?)?;
        let id = id.strip_prefix("id ")?.parse::<KeyId>().ok()?;
        (id == (self.id)(&key)).then_some(key)
    }
}

/// One spelling for each value: upper case is refused, so that no changed byte goes unseen.
fn from_hex<const N: usize>(text: &str) -> Option<Zeroizing<[u8; N]>> {
    let nibble = |byte: u8| {
        let digit = (byte as char).to_digit(16)?;
        (!byte.is_ascii_uppercase()).then_some(digit)
    };
    if text.len() != N * 2 {
        return None;
    }
    let mut bytes = Zeroizing::new([0; N]);
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::try_from(nibble(pair[0])? << 4 | nibble(pair[1])?).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: Kind = Kind {
        head: "landfast test key 1",
        // Each byte counts.
        id: |key| {
            let mut id = [0_u8; 8];
            for (place, byte) in key.iter().enumerate() {
                id[place % 8] = id[place % 8].wrapping_mul(31).wrapping_add(*byte);
            }
            KeyId::of(id)
        },
    };
    const KEY: [u8; KEY_LEN] = [0xa7; KEY_LEN];

    #[test]
    fn a_key_is_written_once_and_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("test.key");
        assert!(matches!(
            KIND.read(&path, OTHERS),
            Err(FileError::Missing { .. })
        ));
        KIND.write(&path, &KEY).unwrap();
        assert_eq!(*KIND.read(&path, OTHERS).unwrap(), KEY);
        assert!(matches!(
            KIND.write(&path, &[1; KEY_LEN]),
            Err(FileError::Exists { .. })
        ));
        assert_eq!(*KIND.read(&path, OTHERS).unwrap(), KEY);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        let nowhere = folder.path().join("none/test.key");
        assert!(matches!(
            KIND.write(&nowhere, &KEY),
            Err(FileError::Io { .. })
        ));
    }

    #[test]
    fn one_that_others_may_read_is_refused_as_far_as_it_is_asked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("test.key");
        KIND.write(&path, &KEY).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(
            KIND.read(&path, OTHERS),
            Err(FileError::Exposed { mode: 0o640, .. })
        ));
        assert_eq!(*KIND.read(&path, 0o037).unwrap(), KEY);
    }

    #[test]
    fn a_damaged_one_is_no_other_key() {
        let text = KIND.text(&KEY);
        assert_eq!(*KIND.parse(&text).unwrap(), KEY);
        for (place, found) in text.char_indices() {
            let other = if found == '0' { '1' } else { '0' };
            let damaged = format!("{}{other}{}", &text[..place], &text[place + 1..]);
            assert!(KIND.parse(&damaged).is_none(), "{damaged}");
        }
        for other in [
            text.to_uppercase(),
            text.replace("test", "other"),
            format!("{}more\n", &*text),
            text[..text.len() - 3].to_owned(),
            String::new(),
        ] {
            assert!(KIND.parse(&other).is_none(), "{other}");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("test.key");
        for bytes in [&b"\xff\xfe"[..], b"something else\n"] {
            drop(fs::remove_file(&path));
            let mut private = fs::OpenOptions::new();
            let mut file = private
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)
                .unwrap();
            file.write_all(bytes).unwrap();
            assert!(matches!(
                KIND.read(&path, OTHERS),
                Err(FileError::Damaged { .. })
            ));
        }
    }

    #[test]
    fn an_id_has_one_spelling() {
        let id: KeyId = "5f0c2a9d11e4b7c3".parse().unwrap();
        assert_eq!(serde_json::to_string(&id).unwrap(), "\"5f0c2a9d11e4b7c3\"");
        assert_eq!(format!("{id} {id:?}"), "5f0c2a9d11e4b7c3 5f0c2a9d11e4b7c3");
        for text in ["5F0c2a9d11e4b7c3", "5f0c2a9d11e4b7", "5f0c2a9d11e4b7cx", ""] {
            assert_eq!(text.parse::<KeyId>(), Err(()), "{text}");
        }
    }
}
