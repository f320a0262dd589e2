//! How the binary ends: the documented exit codes, and the error that carries one.

use std::{fmt, process::ExitCode};

use landfast_api::{Problem, ProblemCode};
use landfast_client::Error as ClientError;

macro_rules! exits {
    ($($(#[doc = $doc:literal])+ $name:ident = $code:literal;)*) => {
        /// The exit codes. Scripts may rely on them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Exit {
            $($(#[doc = $doc])+ $name,)*
            /// The code of the command that `exec` or `run` ran.
            Command(u8),
        }

        impl Exit {
            /// Every documented code with its meaning.
            pub(crate) const ALL: &'static [(u8, &'static str)] =
                &[$(($code, concat!($($doc),+))),*];

            /// The number.
            pub(crate) fn code(self) -> u8 {
                match self { $(Self::$name => $code,)* Self::Command(code) => code }
            }
        }
    };
}

exits! {
    /// It worked, or nothing had to change.
    Done = 0;
    /// It failed for another reason than those below.
    Failed = 1;
    /// The command line is wrong.
    Usage = 2;
    /// The manifest, or a migration, has errors. Nothing was changed.
    ManifestInvalid = 3;
    /// Refused: another rollout of this environment is moving. Nothing was changed.
    RolloutMoving = 4;
    /// The rollout was taken back; the release before serves.
    RolledBack = 5;
    /// The rollout is parked: it waits for somebody to promote or abort it.
    Parked = 6;
    /// The server, or the host it runs on, cannot be reached.
    Unreachable = 7;
    /// A gate or the preflight refused. Nothing was changed.
    GateRefused = 8;
    /// There is no such environment, release, rollout, service, instance, job, run, secret or store.
    NotFound = 9;
    /// A newer rollout took the place of this one before it moved.
    Superseded = 10;
    /// Not possible in the state it is in.
    NotNow = 11;
    /// Ended by Ctrl-C: a rollout goes on without this command, migrations by hand end.
    Detached = 130;
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// The table of exit codes as text.
pub(crate) fn exit_codes_text() -> String {
    let rows = Exit::ALL
        .iter()
        .map(|(code, meaning)| format!("{code:>5}  {}\n", meaning.trim()));
    let rows = rows.collect::<String>();
    format!(
        "{rows}\n`exec` and `run` end with the code of the command they ran; 127: `exec` found no such command.\n"
    )
}

/// Why a command ends without having done what was asked.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    pub(crate) error: anyhow::Error,
    pub(crate) hint: Option<String>,
    /// What the server answered, for `--json`.
    pub(crate) problem: Option<Box<Problem>>,
    /// Diagnostics as JSON, for `--json`.
    pub(crate) diagnostics: Option<serde_json::Value>,
    /// It was all said before: nothing more is printed but with `--json`.
    pub(crate) said: bool,
}

impl Failure {
    /// A failure with its exit code.
    pub(crate) fn new(exit: Exit, error: anyhow::Error) -> Self {
        Self {
            exit,
            error,
            hint: None,
            problem: None,
            diagnostics: None,
            said: false,
        }
    }

    /// The same with the next thing to do.
    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        Self {
            hint: Some(hint.into()),
            ..self
        }
    }

    /// The same, printed already.
    pub(crate) fn said(self) -> Self {
        Self { said: true, ..self }
    }

    /// The whole chain once, joined by `: `.
    pub(crate) fn chain(&self) -> String {
        let mut text = String::new();
        for cause in self.error.chain() {
            let cause = cause.to_string();
            // Some libraries print their cause themselves.
            if text.ends_with(&cause) {
                continue;
            }
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&cause);
        }
        text
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.chain())
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        match error.downcast::<ClientError>() {
            Ok(error) => error.into(),
            Err(error) => Self::new(Exit::Failed, error),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        // A reader that has seen enough (`landfast logs | head`) is no failure.
        let quiet = error.kind() == std::io::ErrorKind::BrokenPipe;
        let exit = if quiet { Exit::Done } else { Exit::Failed };
        let failure = Self::new(exit, anyhow::Error::from(error).context("failed to print"));
        if quiet { failure.said() } else { failure }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let exit = match &error {
            ClientError::NotRunning { .. }
            | ClientError::Denied { .. }
            | ClientError::Cut { .. }
            | ClientError::Ended { .. }
            | ClientError::Silent { .. } => Exit::Unreachable,
            ClientError::Problem(problem) => exit_of(problem.code()),
            ClientError::Foreign { .. }
            | ClientError::LineTooLong { .. }
            | ClientError::File { .. }
            | ClientError::FileChanged { .. } => Exit::Failed,
        };
        let hint = error.hint();
        let problem = match &error {
            ClientError::Problem(problem) => Some(problem.clone()),
            ClientError::NotRunning { .. }
            | ClientError::Denied { .. }
            | ClientError::Cut { .. }
            | ClientError::Ended { .. }
            | ClientError::Silent { .. }
            | ClientError::Foreign { .. }
            | ClientError::LineTooLong { .. }
            | ClientError::File { .. }
            | ClientError::FileChanged { .. } => None,
        };
        Self {
            hint,
            problem,
            ..Self::new(exit, error.into())
        }
    }
}

/// The exit code of what the server answered.
pub(crate) fn exit_of(code: ProblemCode) -> Exit {
    match code {
        ProblemCode::ManifestInvalid => Exit::ManifestInvalid,
        ProblemCode::RolloutMoving => Exit::RolloutMoving,
        ProblemCode::RouteTaken
        | ProblemCode::DoesNotFit
        | ProblemCode::OneWriter
        | ProblemCode::GateRefused
        | ProblemCode::SchemaMovedOn
        | ProblemCode::MigrationsInvalid
        | ProblemCode::MigrationRefused
        | ProblemCode::MigrationsUnsafe
        | ProblemCode::SecretShadowsEnv
        | ProblemCode::EnvMissing
        | ProblemCode::StoreRefused
        | ProblemCode::StoreProgramMissing
        | ProblemCode::ImageMissing
        | ProblemCode::ProcessesRefused
        | ProblemCode::CommandMissing => Exit::GateRefused,
        ProblemCode::EnvironmentUnknown
        | ProblemCode::RolloutUnknown
        | ProblemCode::ReleaseUnknown
        | ProblemCode::ServiceUnknown
        | ProblemCode::InstanceUnknown
        | ProblemCode::JobUnknown
        | ProblemCode::RunUnknown
        | ProblemCode::CertificateUnknown
        | ProblemCode::SecretUnknown
        | ProblemCode::BackupsUnknown
        | ProblemCode::StoreUnknown => Exit::NotFound,
        ProblemCode::NoRollout
        | ProblemCode::NotNow
        | ProblemCode::NothingToRollBackTo
        | ProblemCode::AcmeOff
        | ProblemCode::EnvironmentStopped
        | ProblemCode::MigrationRunning
        | ProblemCode::BackupsNotNow
        | ProblemCode::StoreNotNow => Exit::NotNow,
        ProblemCode::NotReady
        | ProblemCode::DockerUnreachable
        | ProblemCode::DatabaseUnreachable => Exit::Unreachable,
        ProblemCode::RequestInvalid
        | ProblemCode::PathUnknown
        | ProblemCode::MethodNotAllowed
        | ProblemCode::TooLarge
        | ProblemCode::BlobMissing
        | ProblemCode::ArtifactMissing
        | ProblemCode::UploadOffset
        | ProblemCode::UploadCorrupt
        | ProblemCode::KeyReused
        | ProblemCode::DiskFull
        | ProblemCode::MigrationFailed
        | ProblemCode::BackupFailed
        | ProblemCode::RestoreWouldLose
        | ProblemCode::ProxyUnreachable
        | ProblemCode::Forbidden
        | ProblemCode::Internal
        | ProblemCode::Unknown => Exit::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_each_used_once() {
        let mut codes = Exit::ALL.iter().map(|(code, _)| *code).collect::<Vec<_>>();
        let len = codes.len();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), len);
    }

    #[test]
    fn a_chain_is_joined_once() {
        let error = anyhow::anyhow!("no such file").context("failed to read `a`");
        assert_eq!(
            Failure::new(Exit::Failed, error).chain(),
            "failed to read `a`: no such file"
        );
    }
}
