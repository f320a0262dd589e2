//! What a snapshot knows of each file, folder and link.

use std::{
    ffi::{OsStr, OsString},
    fmt,
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    str::FromStr,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A path below the root, or the target of a link: bytes, as the system has them. As text, what is no UTF-8 is written `\xFF`, and a
/// backslash is doubled.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RawPath(pub Vec<u8>);

impl RawPath {
    /// A name in a folder.
    #[must_use]
    pub fn join(&self, name: &OsStr) -> Self {
        let mut bytes = self.0.clone();
        if !bytes.is_empty() {
            bytes.push(b'/');
        }
        bytes.extend(name.as_bytes());
        Self(bytes)
    }

    /// As the system takes it.
    pub fn as_os(&self) -> &OsStr {
        OsStr::from_bytes(&self.0)
    }

    /// The folder it lies in, and its name; `None` for what is no path of a tree: absolute, empty, with `.`, `..`, a zero or an
    /// empty part.
    pub fn split(&self) -> Option<(Self, OsString)> {
        let fits = |part: &[u8]| !matches!(part, b"" | b"." | b"..") && !part.contains(&0);
        if !self.0.split(|byte| *byte == b'/').all(fits) {
            return None;
        }
        let at = self.0.iter().rposition(|byte| *byte == b'/');
        let (folder, name) = match at {
            Some(at) => (&self.0[..at], &self.0[at + 1..]),
            None => (&[][..], &self.0[..]),
        };
        Some((Self(folder.to_vec()), OsString::from_vec(name.to_vec())))
    }
}

impl fmt::Display for RawPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            f.write_str(&chunk.valid().replace('\\', "\\\\"))?;
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02X}")?;
            }
        }
        Ok(())
    }
}

impl FromStr for RawPath {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut bytes = Vec::with_capacity(text.len());
        let mut rest = text.as_bytes();
        while let Some((first, behind)) = rest.split_first() {
            rest = behind;
            if *first != b'\\' {
                bytes.push(*first);
                continue;
            }
            rest = match rest {
                [b'\\', behind @ ..] => {
                    bytes.push(b'\\');
                    behind
                }
                [b'x', digits @ ..] => {
                    let (digits, behind) = digits.split_at_checked(2).ok_or(())?;
                    let digits = std::str::from_utf8(digits).map_err(|_| ())?;
                    bytes.push(u8::from_str_radix(digits, 16).map_err(|_| ())?);
                    behind
                }
                _ => return Err(()),
            };
        }
        Ok(Self(bytes))
    }
}

impl Serialize for RawPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for RawPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse()
            .map_err(|()| serde::de::Error::custom("not a path of a backup"))
    }
}

/// A time of the file system: seconds since 1970 and nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Moment(pub i64, pub u32);

/// One thing in a tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub path: RawPath,
    /// Permission bits, with those for the owner's rights and the sticky one.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub changed: Moment,
    #[serde(flatten)]
    pub kind: EntryKind,
}

/// What it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum EntryKind {
    Folder,
    File {
        bytes: u64,
        /// What tells whether it was touched since: its inode and when that changed. `None` where it has to be read again.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        seen: Option<(u64, Moment)>,
        /// A database of SQLite, taken by its own online backup.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        is_sqlite: bool,
    },
    /// A symbolic link, with its target as it is written there.
    Symlink {
        target: RawPath,
    },
    /// The same file as one before it, by the path of that.
    HardLink {
        to: RawPath,
    },
}

/// Something that is not in a snapshot as one would expect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    pub path: RawPath,
    #[serde(flatten)]
    pub kind: NoteKind,
}

/// What is the matter with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "note", rename_all = "snake_case")]
pub enum NoteKind {
    /// A socket, a pipe or a device: left out.
    Special,
    /// It lies on another file system: left out.
    Mounted,
    /// Folders below it are left out.
    TooDeep,
    /// It went on changing while it was read: what is stored may be none of its states.
    Changing,
    /// It could not be read: left out.
    Unreadable { reason: String },
    /// It begins as a database of SQLite, and SQLite could not read it: taken as it lies.
    NotSqlite { reason: String },
}

impl NoteKind {
    /// Whether something a person may rely on is missing or in doubt.
    pub fn is_trouble(&self) -> bool {
        match self {
            // A file that is written all the time is no news after the first time.
            Self::Special | Self::Mounted | Self::Changing => false,
            Self::TooDeep | Self::Unreadable { .. } | Self::NotSqlite { .. } => true,
        }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = &self.path;
        match &self.kind {
            NoteKind::Special => write!(f, "`{path}` is a socket, a pipe or a device: left out"),
            NoteKind::Mounted => write!(f, "`{path}` lies on another file system: left out"),
            NoteKind::TooDeep => write!(f, "folders below `{path}` are too deep: left out"),
            NoteKind::Changing => write!(
                f,
                "`{path}` went on changing while it was read: what is stored may be none of its states"
            ),
            NoteKind::Unreadable { reason } => {
                write!(f, "`{path}` could not be read and is left out: {reason}")
            }
            NoteKind::NotSqlite { reason } => write!(
                f,
                "`{path}` begins as a database of SQLite and is taken as it lies: {reason}"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_of_any_bytes_reads_back() {
        for bytes in [&b"a/b c"[..], b"\\x41", b"\xff\xfe/\\", "ä/ö".as_bytes()] {
            let path = RawPath(bytes.to_vec());
            assert_eq!(path.to_string().parse(), Ok(path));
        }
        for text in ["\\", "\\q", "\\x4", "\\xZZ"] {
            assert_eq!(text.parse::<RawPath>(), Err(()), "{text}");
        }
    }

    #[test]
    fn what_leads_out_of_a_tree_is_no_path_of_it() {
        for bytes in [
            &b""[..],
            b"/etc",
            b"a/../b",
            "a//b".as_bytes(),
            b".",
            b"a/",
            b"a\0b",
        ] {
            assert_eq!(RawPath(bytes.to_vec()).split(), None, "{bytes:?}");
        }
        let (folder, name) = RawPath(b"a/b/c".to_vec()).split().unwrap();
        assert_eq!(
            (folder.0.as_slice(), name.as_bytes()),
            (&b"a/b"[..], &b"c"[..])
        );
    }
}
