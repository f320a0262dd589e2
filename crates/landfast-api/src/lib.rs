//! The words of the API under `/v1`: what travels over the wire between `landfast server` and everyone else.
//!
//! Every type here is a wire type: plain texts, numbers and lists, apart from the domain types the engine
//! decides with, so that neither can change the other by accident. Conversions are explicit and live with the
//! server. This crate opens no socket, reads no file and knows no clock; it never decides anything.
//!
//! Compatibility, thought through both ways:
//! - an old reader with new data: fields it does not know are ignored, unit enums read an unknown word as
//!   `Unknown`, so fields and words may be added;
//! - a new reader with old data: every field added after the first release carries `#[serde(default)]`;
//! - nothing is ever renamed, removed or given another unit under `/v1`.
//!
//! Instants are RFC 3339 in UTC ([`At`]), durations are whole milliseconds in fields named `…_ms`, sizes are bytes
//! in fields named `…_bytes`, shares of CPU are thousandths in fields named `…_millis`.

mod at;
mod backup;
pub mod base64;
mod certificate;
mod deploy;
mod doctor;
mod environment;
mod event;
mod exec;
mod host;
mod image;
mod migration;
mod openapi;
pub mod paths;
mod problem;
mod protection;
mod rollout;
mod secret;
mod store;
mod traffic;
mod upload;

pub use crate::{
    at::{At, AtError},
    backup::{
        Backup, BackupEnded, BackupFrame, BackupKey, BackupKeyText, BackupList, BackupRequest,
        BackupSource, BackupWork, Drill, DrillCheck, DrillRequest, PruneRequest, RestorePoint,
        RestoreRequest, RestoreTarget, Restored, StoreBackups, WaitQuery,
    },
    certificate::{
        Certificate, CertificateAlert, CertificateList, CertificateSource, CertificateState,
    },
    deploy::{
        Change, DeployAnswer, DeployRequest, DiffLine, DiffMark, Manifest, Peak, Plan, PlanRequest,
        Refusal, RollbackPlan, RouteClaim, ServicePlan, Strategy,
    },
    doctor::{Diagnosis, DoctorRequest, Finding, FindingLevel},
    environment::{
        EnvironmentState, EnvironmentStatus, GroupRole, GroupStatus, History, Instance,
        InstanceState, Release, ReleaseState, Route, RouteList, RouteWeight, ServiceStatus,
        Trouble,
    },
    event::{Event, Level, LogLine, LogQuery, LogStream},
    exec::{ExecFrame, ExecRequest, JobRun, JobRunState},
    host::{
        AppList, AppSummary, Folders, Health, Host, HostResources, Listeners, ProxyInfo,
        RolloutBrief,
    },
    image::{ImageFrame, ImagesRequest, PinnedImage},
    migration::{
        MigrateAcceptRequest, MigrateFrame, MigratePlan, MigrateRequest, MigrateUpRequest,
        Migration, MigrationFinding, MigrationLock, MigrationPhase, MigrationRecord,
        MigrationRehearsal, MigrationStage, MigrationState, MigrationStatus, MigrationWay,
        PendingMigration, RehearseFrom, RehearseQuery, RehearsedMigration, ReleaseOutlook, Schema,
    },
    openapi::{Endpoint, Method, endpoints, openapi, openapi_json},
    problem::{Diagnostic, DiagnosticSeverity, Moving, PROBLEM_TYPE_PREFIX, Problem, ProblemCode},
    protection::{Protection, ProtectionState},
    rollout::{
        Cause, Deadline, Gate, GateState, Latency, Ledger, ReleaseLedger, ReleaseTraffic, Rollout,
        RolloutKind, RolloutList, RolloutState, Step, Streams, Weight,
    },
    rollout::{ReasonRequest, RollbackRequest, ScaleAnswer, ScaleRequest},
    secret::{
        Secret, SecretDeed, SecretHistory, SecretImported, SecretList, SecretRevealRequest,
        SecretRevokeRequest, SecretRollbackRequest, SecretRotateRequest, SecretRotated,
        SecretStored, SecretValue, SecretVersion, SecretVersionState, SecretsKey,
        SecretsKeyRotated, SecretsKeyText,
    },
    store::{
        Store, StoreConnection, StoreCost, StoreDeleteRequest, StoreDisk, StoreImage, StoreList,
        StoreMeasures, StoreReplica, StoreRotateRequest, StoreRotation, StoreState, StoreStatement,
        StoreSwitchPlan, StoreSwitchRequest, StoreSwitched,
    },
    traffic::{InstanceTraffic, ServiceTraffic, Traffic},
    upload::{
        ArtifactCreated, ArtifactEntry, ArtifactEntryKind, ArtifactListing, BlobSize, MissingBlob,
        MissingBlobs, MissingBlobsRequest,
    },
};

/// The header that makes a repeated `POST` safe: the same key and body answer with the first answer.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// The header that carries the deployer's name over a connection the server trusts, for `history` only.
pub const ACTOR: &str = "landfast-actor";
/// The media type of problem details (RFC 9457).
pub const PROBLEM_JSON: &str = "application/problem+json";
/// The media type of a stream of JSON values, one per line.
pub const NDJSON: &str = "application/x-ndjson";
/// The media type of a stream of events.
pub const EVENT_STREAM: &str = "text/event-stream";
/// The largest piece of a blob in one request, in bytes.
pub const BLOB_PIECE_BYTES_MAX: usize = 1 << 20;
/// How often the server writes a comment into a silent event stream, in seconds: a reader that hears nothing
/// for three times as long takes the connection for dead.
pub const EVENT_HEARTBEAT_S: u64 = 5;
