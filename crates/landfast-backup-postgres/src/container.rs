//! PostgreSQL's programs in containers of an image, where this host need have none.
//!
//! Who runs containers is told what a program needs of this host, and nothing else of the host is there: no network, no folder. A program
//! reaches a server through a socket that whoever runs it passes on, so it loses the server with whoever started it.

use std::{
    ffi::OsString,
    fmt, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    pin::Pin,
};

use tokio::sync::{mpsc, oneshot};

use crate::child::Program;

/// Runs programs of one image, all as one user.
pub trait Containers: Send + Sync + fmt::Debug + 'static {
    /// Starts one.
    fn start(
        &self,
        program: ContainedProgram,
    ) -> Pin<Box<dyn Future<Output = io::Result<ContainedRun>> + Send + '_>>;

    /// Ends what works for nobody any more, a Landfast that died having started it, and waits until nothing that was started here
    /// writes to a folder. No process of theirs need be seen by this host.
    ///
    /// # Errors
    /// Where it cannot be said, or not be done.
    fn clear<'a>(
        &'a self,
        folder: &'a Path,
    ) -> Pin<Box<dyn Future<Output = io::Result<()>> + Send + 'a>>;
}

/// A program of the image, and what it is given of this host, each path under its own name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainedProgram {
    /// Absolute, in the image.
    pub path: PathBuf,
    pub arguments: Vec<String>,
    /// Nothing of it is secret.
    pub env: Vec<(String, String)>,
    /// Folders that it may write to.
    pub writes: Vec<PathBuf>,
    /// Files that it may read.
    pub reads: Vec<PathBuf>,
    /// The socket of a server, in the folder in which it is looked for.
    pub server: Option<PathBuf>,
}

/// A program that runs.
#[derive(Debug)]
pub struct ContainedRun {
    /// Pipes, to be read.
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
    /// Of its first process, where this host shows it.
    pub pid: Option<u32>,
    /// Told when it has ended and all it wrote is in the pipes: whether it ended well, or why that is not known.
    pub ended: oneshot::Receiver<Result<bool, String>>,
    /// Orders to end. Dropped, it is ended at once.
    pub end: mpsc::UnboundedSender<End>,
}

/// How a program is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// By SIGINT: PostgreSQL's servers shut down in order, its clients leave off.
    InOrder,
    /// With all that it started.
    AtOnce,
}

impl ContainedProgram {
    /// # Errors
    /// Where a path or an argument is not UTF-8, which no daemon takes.
    pub(crate) fn of(program: &Program) -> io::Result<Self> {
        let text = |words: &OsString| {
            let text = words.to_str().map(str::to_owned);
            text.ok_or_else(|| io::Error::other(format!("{words:?} is not UTF-8")))
        };
        let env = program.env.iter();
        Ok(Self {
            path: program.path.clone(),
            arguments: program.args.iter().map(text).collect::<io::Result<_>>()?,
            env: env
                .map(|(name, value)| Ok(((*name).to_owned(), text(value)?)))
                .collect::<io::Result<_>>()?,
            writes: program.needs.writes.clone(),
            reads: program.needs.reads.clone(),
            server: program.needs.server.clone(),
        })
    }
}
