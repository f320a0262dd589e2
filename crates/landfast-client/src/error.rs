//! Why a request did not work.

use std::{io, path::PathBuf, time::Duration};

use landfast_api::{Problem, ProblemCode};

/// Why a request did not work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens there.
    #[error("no server answers on {place}")]
    NotRunning { place: String, source: io::Error },
    /// Somebody listens, but this user may not ask.
    #[error("this user may not connect to {place}")]
    Denied { place: String, source: io::Error },
    /// The server answered what is wrong.
    #[error("{0}")]
    Problem(Box<Problem>),
    /// The connection ended in the middle: whether the request was done is unknown.
    #[error("the connection to {place} was cut during {doing}")]
    Cut {
        place: String,
        doing: String,
        source: hyper::Error,
    },
    /// A stream that should go on came to an end, or fell silent: the server ended, or the way to it did.
    #[error("the stream of {doing} from {place} ended")]
    Ended { place: String, doing: String },
    /// The server took the request and said nothing.
    #[error("{place} did not answer {doing} within {}s", wait.as_secs())]
    Silent {
        place: String,
        doing: String,
        wait: Duration,
    },
    /// The server answered something else than this API.
    #[error("the answer to {doing} is not understood")]
    Foreign {
        doing: String,
        source: serde_json::Error,
    },
    /// A line or event of a stream was longer than any should be.
    #[error("a line of {doing} is longer than {bytes_max} bytes")]
    LineTooLong { doing: String, bytes_max: usize },
    /// A file to upload could not be read.
    #[error("failed to read `{}`", path.display())]
    File { path: PathBuf, source: io::Error },
    /// A file is shorter now than when it was scanned.
    #[error("`{}` changed while it was uploaded", path.display())]
    FileChanged { path: PathBuf },
}

impl Error {
    /// The code of the problem the server answered, where it did.
    pub fn code(&self) -> Option<ProblemCode> {
        match self {
            Self::Problem(problem) => Some(problem.code()),
            Self::NotRunning { .. }
            | Self::Denied { .. }
            | Self::Cut { .. }
            | Self::Ended { .. }
            | Self::Silent { .. }
            | Self::Foreign { .. }
            | Self::LineTooLong { .. }
            | Self::File { .. }
            | Self::FileChanged { .. } => None,
        }
    }

    /// The server could not be reached, or not to the end: the same request may work in a moment.
    pub fn is_away(&self) -> bool {
        match self {
            Self::NotRunning { .. }
            | Self::Cut { .. }
            | Self::Ended { .. }
            | Self::Silent { .. } => true,
            Self::Problem(problem) => problem.code() == ProblemCode::NotReady,
            Self::Denied { .. }
            | Self::Foreign { .. }
            | Self::LineTooLong { .. }
            | Self::File { .. }
            | Self::FileChanged { .. } => false,
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotRunning { place, .. } if place.starts_with("ssh://") => {
                Some("start it there with `landfast server`".to_owned())
            }
            Self::NotRunning { .. } => Some(
                "start it with `landfast server`, or name another with `--socket` or `--host ssh://user@host`"
                    .to_owned(),
            ),
            Self::Denied { .. } => {
                Some("run it as the user that runs `landfast server`, or as root".to_owned())
            }
            Self::Problem(problem) => problem.hint.clone(),
            Self::Cut { .. } | Self::Ended { .. } | Self::Silent { .. } => {
                Some("`landfast status` shows whether it was done".to_owned())
            }
            Self::Foreign { .. } => {
                Some("client and server may be of different versions: compare `landfast status --host-info`".to_owned())
            }
            Self::FileChanged { .. } => Some("run it again once the build has ended".to_owned()),
            Self::LineTooLong { .. } | Self::File { .. } => None,
        }
    }
}
