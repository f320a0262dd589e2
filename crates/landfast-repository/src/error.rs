//! Why something did not work, and what to do next.

use std::{io, path::PathBuf};

use crate::KeyId;

/// Why a key file cannot be used. Never holds a key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("there is no key file `{}`", path.display())]
    Missing { path: PathBuf },
    #[error("`{}` is no key of a backup repository, or is damaged", path.display())]
    Damaged { path: PathBuf },
    #[error("`{}` may be read by others (mode {mode:o})", path.display())]
    Exposed { path: PathBuf, mode: u32 },
    #[error("there is a key file `{}` already", path.display())]
    Exists { path: PathBuf },
    #[error("failed to read or write `{}`", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("the system gives no random bytes")]
    NoRandomness,
}

impl KeyError {
    /// What to do next.
    pub fn hint(&self) -> String {
        match self {
            Self::Missing { path } | Self::Damaged { path } => format!(
                "put the exported copy of the key back as `{}`; without it no backup can be read",
                path.display()
            ),
            Self::Exposed { path, .. } => format!("run `chmod 600 {}`", path.display()),
            Self::Exists { path } => {
                format!(
                    "use it, or move `{}` away if it is not needed",
                    path.display()
                )
            }
            Self::Io { path, .. } => format!("check the folder of `{}`", path.display()),
            Self::NoRandomness => "look at the kernel's log".to_owned(),
        }
    }
}

/// Why the repository did not do what it was asked. Never holds a key or a password.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    #[error("failed to {doing} at `{place}`")]
    Unreachable {
        place: String,
        doing: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("no answer within {seconds} s to: {doing} at `{place}`")]
    Silent {
        place: String,
        doing: String,
        seconds: u64,
    },
    #[error("`{place}` is empty: there is no repository yet")]
    Empty { place: String },
    #[error("`{place}` holds something, but no repository: the object `repository` is missing")]
    NotARepository { place: String },
    #[error("`{place}` holds a repository already")]
    AlreadyThere { place: String },
    #[error("wrong key: `{what}` is sealed under key {needed}, and {held} was given")]
    WrongKey {
        what: String,
        needed: KeyId,
        held: KeyId,
    },
    #[error("the object `{name}` is missing")]
    Missing { name: String },
    #[error("the object `{name}` is damaged: {what}")]
    Damaged { name: String, what: &'static str },
    #[error("`{name}` has format {found}; this Landfast reads {reads}")]
    Format { name: String, found: u8, reads: u8 },
    #[error("failed to {doing}")]
    Local { doing: String, source: io::Error },
    #[error("it was given up: {0}")]
    Stopped(String),
}

impl RepositoryError {
    /// Whether the same call may succeed later, with nothing changed by a person.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Silent { .. })
    }

    /// The object that is missing or damaged.
    pub fn bad_object(&self) -> Option<&str> {
        match self {
            Self::Missing { name } | Self::Damaged { name, .. } => Some(name),
            Self::Unreachable { .. }
            | Self::Silent { .. }
            | Self::Empty { .. }
            | Self::NotARepository { .. }
            | Self::AlreadyThere { .. }
            | Self::WrongKey { .. }
            | Self::Format { .. }
            | Self::Local { .. }
            | Self::Stopped(_) => None,
        }
    }

    /// What to do next.
    pub fn hint(&self) -> String {
        match self {
            Self::Unreachable { place, .. } | Self::Silent { place, .. } => format!(
                "check that `{place}` is reachable, that the keys may read and write there, and that it has room"
            ),
            Self::Empty { .. } => "make a repository there, or correct the address".to_owned(),
            Self::NotARepository { .. } => "choose an empty folder or prefix".to_owned(),
            Self::AlreadyThere { .. } => "open it with its key".to_owned(),
            Self::WrongKey { needed, .. } => {
                format!("give the key file with `id {needed}`; nothing was changed")
            }
            Self::Missing { .. } | Self::Damaged { .. } => {
                "run `backup verify` to see what else is wrong, then make a new full backup"
                    .to_owned()
            }
            Self::Format { .. } => "use a newer Landfast".to_owned(),
            Self::Local { .. } => "check the folder's permissions and free space".to_owned(),
            Self::Stopped(_) => "start it again".to_owned(),
        }
    }
}
