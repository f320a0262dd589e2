//! Migrations of databases, as plans, states and histories show them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{At, Manifest, Problem};

/// A migration that has not run whole, as far as the server knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Migration {
    pub store: String,
    /// The file's name without its ending.
    pub name: String,
    pub phase: MigrationPhase,
    /// It was begun, and nobody knows how far it came.
    #[serde(default)]
    pub begun: bool,
}

/// When a migration runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum MigrationPhase {
    /// Before instances of the new release start.
    Expand,
    /// After the seal.
    Contract,
    /// With expand.
    Any,
    #[serde(other)]
    Unknown,
}

impl MigrationPhase {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Expand => "expand",
            Self::Contract => "contract",
            Self::Any => "any",
            Self::Unknown => "unknown",
        }
    }
}

/// What a database has seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Schema {
    pub store: String,
    /// How many migrations were applied.
    pub applied: u64,
    /// The name of the newest of them.
    pub newest: Option<String>,
    /// What the release that serves brings and has not run whole.
    pub waiting: Vec<Migration>,
}

/// What a database says was done to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MigrationStatus {
    pub store: String,
    /// What its migrations are written for: `postgres` or `mariadb`.
    pub engine: String,
    /// By number.
    pub migrations: Vec<MigrationRecord>,
    /// Who runs migrations there just now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runner: Option<String>,
}

/// One migration of a database's history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MigrationRecord {
    pub number: u32,
    /// The file's name without its ending.
    pub name: String,
    pub phase: MigrationPhase,
    pub state: MigrationState,
    pub steps: u32,
    pub steps_applied: u32,
    /// Steps that began and have not ended.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps_open: Vec<u32>,
    /// SHA-256 of the way up when it ran, line ends and blanks at their ends left out.
    pub checksum: String,
    /// The release it ran for, or `by hand`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<String>,
    /// By the database's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<At>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied_at: Option<At>,
    /// Why somebody took it for applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepted: Option<String>,
}

/// How far a migration is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum MigrationState {
    Applied,
    /// It began and has not ended.
    Begun,
    /// Taking it back began and has not ended.
    Reverting,
    #[serde(other)]
    Unknown,
}

impl MigrationState {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Begun => "begun",
            Self::Reverting => "reverting",
            Self::Unknown => "unknown",
        }
    }
}

/// A folder of migrations, as the manifest names it and as it was uploaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MigrateRequest {
    pub manifest: Manifest,
    /// Digests of uploaded artifacts by the name the manifest gives them. The folders of migrations must be among them.
    pub artifacts: BTreeMap<String, String>,
}

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MigrateUpRequest {
    pub manifest: Manifest,
    pub artifacts: BTreeMap<String, String>,
    /// `expand` runs what is pending of `expand` and `any`; `contract` the rest, where every release in use knows it.
    #[serde(default)]
    pub contract: bool,
}

/// Which migration is taken for applied, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MigrateAcceptRequest {
    pub manifest: Manifest,
    pub artifacts: BTreeMap<String, String>,
    pub number: u32,
    pub reason: String,
}

/// What a folder of migrations would do to a database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MigratePlan {
    pub store: String,
    pub engine: String,
    /// How many of the folder were applied.
    pub applied: u32,
    /// What has not run whole, by number.
    pub pending: Vec<PendingMigration>,
    /// Where files and history contradict each other: nothing runs while there is one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub contradictions: Vec<String>,
    /// Whether the kept releases can run, newest first.
    pub releases: Vec<ReleaseOutlook>,
}

/// A migration that has not run whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PendingMigration {
    pub number: u32,
    pub name: String,
    pub phase: MigrationPhase,
    pub stage: MigrationStage,
    /// The migration it waits for, and the objects both touch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocked_by: Option<String>,
    /// It began and has not ended.
    #[serde(default)]
    pub begun: bool,
    pub findings: Vec<MigrationFinding>,
}

/// When a pending migration would run in a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum MigrationStage {
    /// Before instances of the new release start.
    Expand,
    /// After the seal.
    Contract,
    /// Not before another one has run.
    Blocked,
    #[serde(other)]
    Unknown,
}

impl MigrationStage {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Expand => "expand",
            Self::Contract => "contract",
            Self::Blocked => "blocked",
            Self::Unknown => "unknown",
        }
    }
}

/// What a rule says of a statement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MigrationFinding {
    /// The rule's id: docs/lints has a page for it.
    pub rule: String,
    /// `error`, `warning` or `notice`.
    pub severity: String,
    pub message: String,
    pub fix: String,
    /// From 1.
    pub line: u32,
    /// The reason in the file's header, where it allows this rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed: Option<String>,
}

/// Whether a kept release can run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReleaseOutlook {
    pub release: u64,
    /// Whether it is the one that serves.
    pub serves: bool,
    /// The migration it cannot live with, today.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broken_by: Option<String>,
    /// The same once everything pending has run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broken_by_pending: Option<String>,
    /// Migrations of its own that are not applied.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lacks: Vec<String>,
}

/// What a rehearsal's copy is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RehearseQuery {
    /// Nothing: the database that runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<RehearseFrom>,
}

/// What else it can be made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RehearseFrom {
    /// The newest backup, restored into a server of its own.
    Backup,
}

/// What migrations did on a copy of a database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MigrationRehearsal {
    pub store: String,
    pub engine: String,
    /// The size of the database.
    pub copied_bytes: u64,
    /// How long making the copy took.
    pub copying_ms: u64,
    pub migrations: Vec<RehearsedMigration>,
    /// Why not all of them ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// That was the connection, or a lock, and says nothing of the migrations.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_cut_short: bool,
}

/// One migration on the copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RehearsedMigration {
    pub name: String,
    pub took_ms: u64,
    /// The strongest lock of each table that was there before; PostgreSQL tells.
    pub locks: Vec<MigrationLock>,
    /// Tables that were written anew as a whole.
    pub rewritten: Vec<String>,
    /// What the server wrote to its log meanwhile, for whomever; PostgreSQL tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wal_bytes: Option<u64>,
    /// How each definition was done; MariaDB tells.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ways: Vec<MigrationWay>,
    /// Where it costs more than its budget, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exceeded: Vec<String>,
}

/// A lock on a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MigrationLock {
    pub table: String,
    /// As the engine names it.
    pub mode: String,
    /// Whom it stops: `nobody`, `writers` or `everybody`.
    pub stops: String,
    /// From the start of the statement that took it.
    pub held_ms: u64,
}

/// How a definition was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MigrationWay {
    /// From 1.
    pub line: u32,
    /// `INSTANT`, `NOCOPY`, `INPLACE`, or as it is written.
    pub algorithm: String,
    pub rows_copied: u64,
}

/// One piece of what migrating by hand tells; the last is `done`, `rehearsed` or `failed`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum MigrateFrame {
    /// In one line.
    Progress { text: String },
    /// The migrations that were run, taken back or accepted, in order. None: nothing was to be done.
    Done { migrations: Vec<String> },
    /// What a rehearsal came to.
    Rehearsed { rehearsal: MigrationRehearsal },
    /// It could not go on. What was done before it stays.
    Failed { problem: Box<Problem> },
    /// Of a newer server.
    #[serde(other)]
    Unknown,
}
