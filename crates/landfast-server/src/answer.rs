//! What a handler answers when it cannot do what was asked: problem details, never a bare status.

use axum::{
    extract::{FromRequest, Request, rejection::JsonRejection},
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};
use landfast_api::{
    At, Diagnostic, DiagnosticSeverity, Moving, PROBLEM_JSON, Problem, ProblemCode,
};
use landfast_engine::{
    CommandError, DeployError, ImagesError, RotateError, SecretError, backups, by_hand::HandError,
    stores,
};
use landfast_journal::{AppendError, StorageError};
use landfast_migrator::MigratorError;
use landfast_rollout::Rejected;
use landfast_secrets::{UnsealError, VersionsError};
use landfast_store::StoreError;
use serde::de::DeserializeOwned;

/// The answer of every handler.
pub(crate) type Answer<T> = Result<T, Failure>;

/// A problem on its way out.
#[derive(Debug)]
pub(crate) struct Failure(pub(crate) Box<Problem>);

impl Failure {
    pub(crate) fn new(code: ProblemCode, detail: impl Into<String>) -> Self {
        Self(Box::new(Problem::new(code, detail)))
    }

    pub(crate) fn internal(detail: impl Into<String>) -> Self {
        Self::new(ProblemCode::Internal, detail)
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self(Box::new(problem))
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status);
        let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        if status.is_server_error() {
            tracing::warn!(problem = %self.0, code = self.0.code().as_str(), "answered with a problem");
        }
        let body = serde_json::to_vec(&self.0).expect("a problem has text keys");
        let kind = HeaderValue::from_static(PROBLEM_JSON);
        (status, [(header::CONTENT_TYPE, kind)], body).into_response()
    }
}

/// An error with its causes, once.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// A JSON body; what is wrong with it is answered with the field's name.
pub(crate) struct Json<T>(pub(crate) T);

impl<T, S> FromRequest<S> for Json<T>
where
    T: DeserializeOwned,
    S: Send + Sync,
{
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        let bytes = bytes::Bytes::from_request(request, state)
            .await
            .map_err(|rejection| {
                let code = if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
                    ProblemCode::TooLarge
                } else {
                    ProblemCode::RequestInvalid
                };
                Failure::new(code, rejection.body_text())
            })?;
        let bytes = if bytes.is_empty() {
            bytes::Bytes::from_static(b"{}")
        } else {
            bytes
        };
        let mut reader = serde_json::Deserializer::from_slice(&bytes);
        serde_path_to_error::deserialize(&mut reader)
            .map(Self)
            .map_err(|error| {
                let place = error.path().to_string();
                let detail = match place.as_str() {
                    "." | "?" => error.inner().to_string(),
                    place => format!("`{place}`: {}", error.inner()),
                };
                Failure::new(ProblemCode::RequestInvalid, detail)
            })
    }
}

impl From<JsonRejection> for Failure {
    fn from(rejection: JsonRejection) -> Self {
        Self::new(ProblemCode::RequestInvalid, rejection.body_text())
    }
}

impl From<Rejected> for Failure {
    fn from(rejected: Rejected) -> Self {
        use ProblemCode as Code;
        let code = match &rejected {
            Rejected::RolloutMoving { .. } => Code::RolloutMoving,
            Rejected::NoRollout => Code::NoRollout,
            Rejected::NotWaiting { .. }
            | Rejected::NotSealable { .. }
            | Rejected::AlreadyReverting { .. }
            | Rejected::AlreadyServing(_)
            | Rejected::Contracting { .. }
            | Rejected::StoreServes { .. }
            | Rejected::NotStopped => Code::NotNow,
            Rejected::NothingDeployed => Code::EnvironmentUnknown,
            Rejected::NoEarlierRelease { .. } => Code::NothingToRollBackTo,
            Rejected::NoSuchRelease(_) => Code::ReleaseUnknown,
            Rejected::RouteTaken { .. } => Code::RouteTaken,
            Rejected::NoSuchService(_) => Code::ServiceUnknown,
            Rejected::EnvironmentStopped => Code::EnvironmentStopped,
            Rejected::OneWriter { .. } => Code::OneWriter,
            Rejected::MigratingByHand { .. } => Code::MigrationRunning,
            Rejected::OlderReleaseLeft { .. } | Rejected::MigrationNeeded { .. } => {
                Code::MigrationRefused
            }
            Rejected::SchemaMovedOn(_) => Code::SchemaMovedOn,
            Rejected::SmokeNeedsSurge => Code::GateRefused,
            Rejected::WouldBreak(_) => Code::Internal,
        };
        let mut problem = Problem::new(code, rejected.to_string());
        if let Rejected::RolloutMoving {
            rollout,
            to,
            since,
            by,
        } = &rejected
        {
            problem.moving = Some(Moving {
                rollout: rollout.0,
                to: to.0,
                since: At(*since),
                by: Some(by.clone()),
                phase: String::new(),
            });
        }
        problem.into()
    }
}

impl From<CommandError> for Failure {
    fn from(error: CommandError) -> Self {
        match error {
            CommandError::Rejected(rejected) => rejected.into(),
            CommandError::Stopping => Self::new(ProblemCode::NotReady, error.to_string()),
            CommandError::Images(cause) => {
                let Self(mut problem) = Self::from(*cause);
                problem.detail = format!("the release cannot run again: {}", problem.detail);
                Self(problem)
            }
            CommandError::Journal(cause) => {
                let full = matches!(&*cause, AppendError::Storage(StorageError::Full { .. }));
                let code = if full {
                    ProblemCode::DiskFull
                } else {
                    ProblemCode::Internal
                };
                Self::new(code, chain(cause.as_ref()))
            }
        }
    }
}

impl From<DeployError> for Failure {
    fn from(error: DeployError) -> Self {
        match error {
            DeployError::Command(error) => error.into(),
            DeployError::Refused(refusals) => {
                let first = refusals.into_iter().next();
                let Some(refusal) = first else {
                    return Self::internal("refused without a reason");
                };
                let code = refusal_code(refusal.code);
                let problem = Problem::new(code, refusal.reason);
                match refusal.hint {
                    Some(hint) => problem.with_hint(hint).into(),
                    None => problem.into(),
                }
            }
            DeployError::ArtifactMissing { digest, .. } => {
                let mut problem = Problem::new(ProblemCode::ArtifactMissing, error.to_string());
                problem.missing = vec![digest.to_string()];
                problem.into()
            }
            DeployError::ArtifactUnnamed { .. } => {
                Self::new(ProblemCode::RequestInvalid, error.to_string())
            }
            DeployError::EnvAndSecret { .. } | DeployError::SecretPathTaken { .. } => {
                Self::new(ProblemCode::SecretShadowsEnv, error.to_string())
            }
            DeployError::EnvMissing { .. } => Self::new(ProblemCode::EnvMissing, error.to_string()),
            DeployError::StoreSecretMissing { ref name } => {
                let problem = Problem::new(ProblemCode::SecretUnknown, error.to_string());
                problem
                    .with_hint(format!("`landfast secret set {name}`"))
                    .into()
            }
            DeployError::StandsBy { .. } => {
                let problem = Problem::new(ProblemCode::NotNow, error.to_string());
                let hint =
                    "wait for its seal, or end its standby with `landfast seal`; then ask again";
                problem.with_hint(hint).into()
            }
            DeployError::Images(error) => error.into(),
            DeployError::Unreadable(trouble) => Self::internal(trouble),
            DeployError::Secrets(error) => error.into(),
        }
    }
}

impl From<ImagesError> for Failure {
    fn from(error: ImagesError) -> Self {
        use landfast_target::ImageError;
        let code = match &error {
            ImagesError::NoContainers(_) | ImagesError::Image(ImageError::Io { .. }) => {
                ProblemCode::DockerUnreachable
            }
            ImagesError::LoginMissing { .. } => ProblemCode::SecretUnknown,
            ImagesError::Image(ImageError::DiskFull { .. }) => ProblemCode::DiskFull,
            ImagesError::NotBuilt { .. }
            | ImagesError::BuiltElsewhere { .. }
            | ImagesError::Gone { .. }
            | ImagesError::Image(
                ImageError::NotFound { .. }
                | ImageError::Refused { .. }
                | ImageError::RegistryAway { .. }
                | ImageError::Changed { .. }
                | ImageError::Login { .. },
            ) => ProblemCode::ImageMissing,
            ImagesError::Secrets(_) => ProblemCode::Internal,
        };
        let problem = Problem::new(code, chain(&error));
        match error.hint() {
            Some(hint) => problem.with_hint(hint).into(),
            None => problem.into(),
        }
    }
}

impl From<HandError> for Failure {
    fn from(error: HandError) -> Self {
        let detail = chain(&error);
        match error {
            HandError::Refused(refusals) => DeployError::Refused(refusals).into(),
            HandError::Unreachable { .. } => Self::new(ProblemCode::DatabaseUnreachable, detail),
            HandError::Migrator { source, .. } => Self::new(migrator_code(&source), detail),
            HandError::Command(error) => error.into(),
            HandError::Ended => Self::new(ProblemCode::MigrationFailed, detail),
            HandError::Failed(_) => Self::internal(detail),
        }
    }
}

fn migrator_code(error: &MigratorError) -> ProblemCode {
    match error {
        MigratorError::Address(_) | MigratorError::Pooled | MigratorError::Unreachable(_) => {
            ProblemCode::DatabaseUnreachable
        }
        MigratorError::RunnerBusy { .. } => ProblemCode::MigrationRunning,
        MigratorError::Contradictions(_)
        | MigratorError::Blocked(_)
        | MigratorError::OlderReleaseConnected { .. }
        | MigratorError::StillWritten { .. }
        | MigratorError::NotNewest { .. }
        | MigratorError::NotWhole(_)
        | MigratorError::Reverting(_)
        | MigratorError::NotBegun(_)
        | MigratorError::AppliedAsItIs(_)
        | MigratorError::NothingApplied
        | MigratorError::NoWayDown(_)
        | MigratorError::ContractStays(_)
        | MigratorError::Unknown(_) => ProblemCode::MigrationRefused,
        MigratorError::Postgres { .. }
        | MigratorError::Mariadb { .. }
        | MigratorError::NoLock { .. }
        | MigratorError::Statement { .. }
        | MigratorError::Undecided { .. }
        | MigratorError::Backfill { .. }
        | MigratorError::History { .. } => ProblemCode::MigrationFailed,
    }
}

/// The problem a refusal of the plan becomes.
pub(crate) fn refusal_code(word: &str) -> ProblemCode {
    match word {
        "route-taken" => ProblemCode::RouteTaken,
        "memory-short" | "cpu-short" | "store-connections-short" => ProblemCode::DoesNotFit,
        "migrations-invalid" => ProblemCode::MigrationsInvalid,
        "migrations-unsafe" => ProblemCode::MigrationsUnsafe,
        "command-missing" => ProblemCode::CommandMissing,
        "disk-short" => ProblemCode::DiskFull,
        "store-unknown" => ProblemCode::StoreUnknown,
        "store-not-now" => ProblemCode::StoreNotNow,
        "store-refused" => ProblemCode::StoreRefused,
        "store-busy" => ProblemCode::NotNow,
        "store-copy-failed" => ProblemCode::MigrationFailed,
        "store-program-missing" => ProblemCode::StoreProgramMissing,
        "processes-refused" => ProblemCode::ProcessesRefused,
        _ => ProblemCode::GateRefused,
    }
}

impl From<backups::OrderError> for Failure {
    fn from(error: backups::OrderError) -> Self {
        let code = match &error {
            backups::OrderError::Unknown => ProblemCode::BackupsUnknown,
            backups::OrderError::Busy(_) | backups::OrderError::NotRunning(_) => {
                ProblemCode::BackupsNotNow
            }
            backups::OrderError::Refused(_) => ProblemCode::BackupFailed,
            backups::OrderError::Journal(_) => ProblemCode::Internal,
            backups::OrderError::Stopping => ProblemCode::NotReady,
        };
        Self::new(code, error.to_string())
    }
}

impl From<stores::CommandError> for Failure {
    fn from(error: stores::CommandError) -> Self {
        let code = match &error {
            stores::CommandError::Unknown => ProblemCode::StoreUnknown,
            stores::CommandError::Rejected(_) | stores::CommandError::Rotation(_) => {
                ProblemCode::StoreNotNow
            }
            stores::CommandError::Journal(_) => ProblemCode::Internal,
            stores::CommandError::Stopping => ProblemCode::NotReady,
        };
        Self::new(code, chain(&error))
    }
}

impl From<RotateError> for Failure {
    fn from(error: RotateError) -> Self {
        match error {
            RotateError::NotNow(reason) => Self::new(ProblemCode::StoreNotNow, reason),
            RotateError::Store(error) => error.into(),
            RotateError::Environment(error) => error.into(),
        }
    }
}

impl From<SecretError> for Failure {
    fn from(error: SecretError) -> Self {
        let code = match &error {
            SecretError::Name(_) | SecretError::Nul(_) => ProblemCode::RequestInvalid,
            SecretError::TooLong { .. } => ProblemCode::TooLarge,
            SecretError::Unknown(_)
            | SecretError::Versions(
                VersionsError::Unknown(_) | VersionsError::Revoked(_) | VersionsError::NoEarlier(_),
            ) => ProblemCode::SecretUnknown,
            SecretError::Versions(VersionsError::LastLive(_)) => ProblemCode::NotNow,
            SecretError::Append(AppendError::Storage(StorageError::Full { .. })) => {
                ProblemCode::DiskFull
            }
            SecretError::AllRevoked
            | SecretError::Busy
            | SecretError::Unreadable(_)
            | SecretError::Key(_)
            | SecretError::Unseal(_)
            | SecretError::Versions(VersionsError::NotNext { .. })
            | SecretError::Read(_)
            | SecretError::Put(_)
            | SecretError::Append(_) => ProblemCode::Internal,
        };
        let problem = Problem::new(code, chain(&error));
        match secret_hint(&error) {
            Some(hint) => problem.with_hint(hint).into(),
            None => problem.into(),
        }
    }
}

fn secret_hint(error: &SecretError) -> Option<&'static str> {
    if let SecretError::Versions(VersionsError::LastLive(_)) = error {
        return Some(
            "set another value first, or leave the secret out of new releases with `landfast secret rm`",
        );
    }
    if let SecretError::Versions(_) = error {
        return Some("`landfast secret history NAME` lists the versions");
    }
    if let SecretError::Unseal(UnsealError::OtherKey { .. }) = error {
        return Some("start the server with the key this was sealed under (`--secrets-key`)");
    }
    None
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let detail = chain(&error);
        match error {
            StoreError::Full { .. } => Self::new(ProblemCode::DiskFull, detail),
            StoreError::Offset { expected, .. } => {
                let mut problem = Problem::new(ProblemCode::UploadOffset, detail);
                problem.offset = Some(expected);
                problem.into()
            }
            StoreError::BlobsMissing(digests) => {
                let mut problem = Problem::new(ProblemCode::BlobMissing, detail);
                problem.missing = digests.iter().map(ToString::to_string).collect();
                problem.into()
            }
            StoreError::Corrupt { .. } => Self::new(ProblemCode::UploadCorrupt, detail),
            StoreError::Tree(_) | StoreError::SizeDiffers { .. } => {
                Self::new(ProblemCode::RequestInvalid, detail)
            }
            StoreError::Io { .. }
            | StoreError::Special(_)
            | StoreError::NotUtf8(_)
            | StoreError::SourceChanged(_)
            | StoreError::NoArtifact(_)
            | StoreError::Changed { .. } => Self::internal(detail),
        }
    }
}

/// The manifest's problems on the wire.
pub(crate) fn diagnostics(found: &[landfast_spec::Diagnostic]) -> Vec<Diagnostic> {
    let severity = |severity| match severity {
        landfast_spec::Severity::Error => DiagnosticSeverity::Error,
        landfast_spec::Severity::Warning => DiagnosticSeverity::Warning,
        landfast_spec::Severity::Notice => DiagnosticSeverity::Notice,
    };
    let one = |diagnostic: &landfast_spec::Diagnostic| Diagnostic {
        severity: severity(diagnostic.severity),
        code: diagnostic.code.to_string(),
        message: diagnostic.message.clone(),
        file: diagnostic.file.clone(),
        line: diagnostic.line as u32,
        column: diagnostic.column as u32,
        start: diagnostic.span.start as u64,
        end: diagnostic.span.end as u64,
        label: diagnostic.label.clone(),
        help: diagnostic.help.clone(),
    };
    found.iter().map(one).collect()
}
