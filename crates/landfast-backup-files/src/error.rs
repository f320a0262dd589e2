//! Why a snapshot, or something done with one, did not work, and what to do next.

use std::{io, path::PathBuf};

use landfast_repository::{RepositoryError, TreeError};

/// Why something about the backups of files failed.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    #[error("`{0}` is no name of a series of backups")]
    Name(String),
    #[error("failed to {doing} `{}`", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("`{}` is no folder", .0.display())]
    NotAFolder(PathBuf),
    #[error("there is no backup yet")]
    Empty,
    #[error("there is no backup `{0}`")]
    NoBackup(String),
    #[error("there is something at `{}` already", .0.display())]
    Taken(PathBuf),
    #[error("the backup names what no folder can hold: `{path}`: {what}")]
    Hostile { path: String, what: &'static str },
    #[error("the backups are not sound: {0}")]
    Unsound(String),
    #[error("{0}")]
    Failed(String),
    #[error("it was given up: {0}")]
    Stopped(String),
}

impl From<TreeError> for FilesError {
    fn from(_: TreeError) -> Self {
        Self::Repository(RepositoryError::Damaged {
            name: "map".into(),
            what: "it does not fit its manifest",
        })
    }
}

impl FilesError {
    pub(crate) fn io(
        doing: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            doing,
            path,
            source,
        }
    }

    /// Whether something in the repository is not as it should be, rather than out of reach.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Unsound(_) | Self::Hostile { .. } => true,
            Self::Repository(error) => error.bad_object().is_some(),
            Self::Name(_)
            | Self::Io { .. }
            | Self::NotAFolder(_)
            | Self::Empty
            | Self::NoBackup(_)
            | Self::Taken(_)
            | Self::Failed(_)
            | Self::Stopped(_) => false,
        }
    }

    /// What to do next.
    pub fn hint(&self) -> String {
        match self {
            Self::Repository(error) => error.hint(),
            Self::Name(_) => "use `a` to `z`, `0` to `9`, `-`, `_` and `.`".to_owned(),
            Self::Io { path, .. } => format!(
                "check the permissions and the free space of `{}`",
                path.display()
            ),
            Self::NotAFolder(path) => {
                format!("make the folder `{}`, or correct its path", path.display())
            }
            Self::Empty => "make a backup first".to_owned(),
            Self::NoBackup(_) => "list the backups".to_owned(),
            Self::Taken(_) => "choose another folder; nothing is ever overwritten".to_owned(),
            Self::Hostile { .. } => {
                "somebody who has the key wrote it: restore another backup, and look who that was"
                    .to_owned()
            }
            Self::Unsound(_) => "run `backup verify`; nothing was removed".to_owned(),
            Self::Failed(_) => "read its messages above".to_owned(),
            Self::Stopped(_) => "start it again".to_owned(),
        }
    }
}
