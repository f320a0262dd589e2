//! Why a backup, the archive or a restore did not go on, and what to do next.

use std::{io, path::PathBuf};

use landfast_backup::{LedgerError, Lsn, PlanError, Timeline};
use landfast_backup_files::FilesError;
use landfast_repository::{KeyError, RepositoryError, TreeError};

/// Why something about the backups of a PostgreSQL server failed. Never holds a password or a key.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    #[error(transparent)]
    Files(FilesError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error("failed to {doing} on the server")]
    Server {
        doing: &'static str,
        source: tokio_postgres::Error,
    },
    #[error("the server says something nobody can use: {0}")]
    Strange(String),
    #[error("this server is of system {found}, and the archive `{archive}` of system {system}")]
    OtherSystem {
        archive: String,
        system: u64,
        found: u64,
    },
    #[error("failed to {doing} `{}`", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{0}")]
    Program(String),
    #[error(
        "the database has the tablespace `{0}`; backups of tablespaces outside the data folder are not made"
    )]
    Tablespace(String),
    #[error("the backup's WAL, {from} to {to}, did not reach the archive within {seconds} s")]
    WalBehind { from: Lsn, to: Lsn, seconds: u64 },
    #[error("the server wrote a manifest nobody can read: {0}")]
    PgManifest(String),
    #[error("backup `{0}` is not in the archive")]
    NoBackup(String),
    #[error("the archive `{0}` is empty")]
    EmptyArchive(String),
    #[error("`{}` is not empty", .0.display())]
    NotEmpty(PathBuf),
    #[error("the restore ended at {reached} on timeline {timeline} instead of {wanted}: {said}")]
    EndedEarly {
        reached: Lsn,
        timeline: Timeline,
        wanted: Lsn,
        said: String,
    },
    #[error("recovery was stopped because of the object `{object}`: {why}")]
    WalUnusable { object: String, why: String },
    #[error("the archive is not sound: {0}")]
    Unsound(String),
    #[error("the restored server did not come out of recovery: {0}")]
    NotReady(String),
    #[error("it was given up: {0}")]
    Stopped(String),
}

impl From<TreeError> for BackupError {
    fn from(_: TreeError) -> Self {
        Self::Repository(RepositoryError::Damaged {
            name: "map".into(),
            what: "it does not fit its manifest",
        })
    }
}

impl BackupError {
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

    pub(crate) fn server(doing: &'static str) -> impl FnOnce(tokio_postgres::Error) -> Self {
        move |source| Self::Server { doing, source }
    }

    /// Whether something in the repository is not as it should be, rather than out of reach.
    pub fn is_damage(&self) -> bool {
        let names_objects = matches!(
            self,
            Self::Ledger(_) | Self::Unsound(_) | Self::WalUnusable { .. }
        );
        names_objects
            || matches!(self, Self::Repository(error) if error.bad_object().is_some())
            || matches!(self, Self::Files(error) if error.is_damage())
    }

    /// What to do next.
    pub fn hint(&self) -> String {
        match self {
            Self::Repository(error) => error.hint(),
            Self::Files(error) => error.hint(),
            Self::Key(error) => error.hint(),
            Self::Plan(error) => error.hint(),
            Self::Ledger(LedgerError::PageMissing { .. } | LedgerError::PageChanged { .. }) => {
                "put the page back into the repository, or begin a new archive with a full backup"
                    .to_owned()
            }
            Self::Ledger(_) | Self::OtherSystem { .. } => {
                "give this database an archive of its own".to_owned()
            }
            Self::Server { .. } => {
                "check that the server runs and that the login may replicate (REPLICATION) and monitor (pg_monitor)"
                    .to_owned()
            }
            Self::Io { path, .. } => {
                format!("check the permissions and the free space of `{}`", path.display())
            }
            Self::Tablespace(_) => "move its tables back, or use dumps".to_owned(),
            Self::WalBehind { .. } => "look at the state of the WAL archive, then try again".to_owned(),
            Self::Unsound(_) => "run `backup verify`; nothing was removed".to_owned(),
            Self::NoBackup(_) => "list the backups".to_owned(),
            Self::EmptyArchive(_) => "make a backup first".to_owned(),
            Self::NotEmpty(_) => "choose an empty folder; nothing is ever overwritten".to_owned(),
            Self::EndedEarly { .. } | Self::WalUnusable { .. } => {
                "run `backup verify`; the restored copy must not be used".to_owned()
            }
            Self::Strange(_) | Self::PgManifest(_) => "say which version the server has".to_owned(),
            Self::Program(_) | Self::NotReady(_) => "read its messages above".to_owned(),
            Self::Stopped(_) => "start it again".to_owned(),
        }
    }
}
