//! Backups of stores: how they stand, and what is done with them.

use std::collections::BTreeMap;

use landfast_types::Secret as Hidden;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{At, MigrationRehearsal, Problem};

/// The backups of an environment's stores.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BackupList {
    /// In order of their names; volumes are among them.
    pub stores: Vec<StoreBackups>,
}

/// How something is backed up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BackupSource {
    /// A managed database: its log, and base backups.
    #[default]
    Log,
    /// A database of somebody else: dumps.
    Dumps,
    /// A volume: snapshots.
    Volume,
    /// Of a newer server.
    #[serde(other)]
    Unknown,
}

/// How the backups of one store or volume stand. Green is: no `troubles`, and a drill that passed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StoreBackups {
    /// The name of the store or the volume.
    pub store: String,
    /// The store that serves the name and is archived, where it is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub served_by: Option<String>,
    #[serde(default)]
    pub source: BackupSource,
    /// The repository.
    pub to: String,
    /// How far a restore reaches, as read back from the repository: the time of the newest heartbeat in it, or when the newest dump or
    /// snapshot began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restorable_to: Option<At>,
    /// The same as a place in the server's log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restorable_lsn: Option<String>,
    /// What would be lost with the server or the host now: how long ago that is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rpo_ms: Option<u64>,
    /// What would be lost at the most: the time between two dumps or snapshots. A log is not shipped by such a clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval_ms: Option<u64>,
    /// When that was read back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmed_at: Option<At>,
    /// What is wrong now, in words, worst first.
    pub troubles: Vec<String>,
    /// Segments of the log that wait on the server's host.
    #[serde(default)]
    pub waiting_segments: u64,
    /// Since when the app does not write: what waits for the archive has reached its limit, and the chain is not to break.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writes_stopped_at: Option<At>,
    /// What waits for the archive, where writes are to stop for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_bytes: Option<u64>,
    /// How long a restore to the newest moment would take, by what drills took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore_ms: Option<u64>,
    /// Oldest first.
    pub backups: Vec<Backup>,
    /// Named places to go back to, oldest first.
    #[serde(default)]
    pub points: Vec<RestorePoint>,
    /// The newest drill.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drill: Option<Drill>,
    /// The newest drill of each kind: `light-drill`, `full-drill`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub drills: BTreeMap<String, Drill>,
    /// What is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<BackupWork>,
    /// How each kind of work ended last, by kind: `full`, `incremental`, `light-drill`, `full-drill`, `verify`, `prune`, `restore`.
    #[serde(default)]
    pub ended: BTreeMap<String, BackupEnded>,
}

/// One base backup, dump or snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Backup {
    pub id: String,
    /// When it began.
    pub at: At,
    pub took_ms: u64,
    /// Why it is bad: never restored from, kept for a look.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bad: Option<String>,
    /// Of the files in it.
    pub bytes: u64,
    /// What it added to the repository.
    pub stored_bytes: u64,
    /// The backup it was compared with; a full one has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// From this place of the server's log on it is consistent; a dump or a snapshot has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lsn: Option<String>,
    /// What is not in it as one would expect, such as a socket that was left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// A named place to go back to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RestorePoint {
    pub name: String,
    pub lsn: String,
    pub at: At,
}

/// A restore that was done to see whether it can be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Drill {
    pub at: At,
    /// Whether every page and index was read.
    pub is_full: bool,
    /// When one passed last, this one included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passed_at: Option<At>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<String>,
    /// Where the restore ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reached: Option<String>,
    /// What would have been lost had the host been lost when it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rpo_ms: Option<u64>,
    /// By phase: `plan`, `restore`, `replay`, `checks`.
    pub phases_ms: BTreeMap<String, u64>,
    pub checks: Vec<DrillCheck>,
    /// What the migrations that were pending did on the copy. It says nothing of the backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rehearsal: Option<MigrationRehearsal>,
}

/// One check of a drill.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DrillCheck {
    pub name: String,
    /// What was wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wrong: Option<String>,
    /// What a check of the user's own gave instead; told here alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gave: Option<String>,
}

/// Work that is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BackupWork {
    pub kind: String,
    pub since: At,
    pub by: String,
    pub doing: String,
}

/// How work ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BackupEnded {
    pub at: At,
    pub took_ms: u64,
    pub by: String,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// Whether work on backups waits for what is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct WaitQuery {
    /// Begin when what is under way for this store has ended, instead of being refused; whoever goes away before that begins nothing.
    #[serde(default)]
    pub wait: bool,
}

/// Asks for a backup.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct BackupRequest {
    /// Store every page again, so that no older object is needed.
    #[serde(default)]
    pub full: bool,
}

/// Asks for a drill.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct DrillRequest {
    /// Read every page and index, and every object of the repository.
    #[serde(default)]
    pub full: bool,
}

/// Removes what is too old.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct PruneRequest {
    /// Only say what would go.
    #[serde(default)]
    pub dry_run: bool,
}

/// Where a restore goes to.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", content = "value", rename_all = "kebab-case")]
pub enum RestoreTarget {
    /// The end of the archive.
    #[default]
    Latest,
    /// The newest heartbeat at or before a time.
    Time(At),
    /// A place of the server's log, such as `0/3000028`.
    Lsn(String),
    /// A named place, such as `before-rollout-41`.
    Point(String),
}

/// Asks for a restore beside the server that runs. One of `store` and `folder` is given.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct RestoreRequest {
    #[serde(default)]
    pub target: RestoreTarget,
    /// The name of a new store that the copy becomes; of a volume, the name of a folder beside it. A dump becomes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<String>,
    /// A folder of the server's host that is not there yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folder: Option<String>,
    /// Where it may end although the archive should reach further: the place that a refused restore named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accept_loss: Option<String>,
}

/// What a restore came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Restored {
    pub backup: String,
    /// Where it ended: a place of the log, or when the snapshot was taken.
    pub reached: String,
    /// The time of the newest heartbeat in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<At>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folder: Option<String>,
    /// What was accepted to be lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<String>,
    #[serde(default)]
    pub warnings: Vec<String>,
    pub took_ms: u64,
}

/// The key that backups of a host are sealed under.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BackupKey {
    pub id: String,
    /// Its file on the server's host.
    pub path: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exported_at: Option<At>,
    /// When a copy was shown to be one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmed_at: Option<At>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmed_by: Option<String>,
}

/// The text of the key file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BackupKeyText {
    pub id: String,
    #[schema(value_type = String)]
    pub text: Hidden<String>,
}

/// One piece of what work on backups tells. Once begun, it goes on when nobody reads. The last piece is none of `waiting` and `progress`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum BackupFrame {
    /// In one line.
    Progress {
        text: String,
    },
    /// It has not begun: something else is under way, in one line.
    Waiting {
        text: String,
    },
    /// A backup is there. It may be a bad one.
    BackedUp {
        backup: Backup,
    },
    /// Everything was read, and is as it should be.
    Verified {
        objects: u64,
        bytes: u64,
    },
    /// What went, or would.
    Pruned {
        /// Backups that go: their objects a day later.
        buried: Vec<String>,
        /// Those that stay, each with the reasons.
        kept: BTreeMap<String, Vec<String>>,
        /// Objects that are gone.
        deleted: u64,
    },
    Drilled {
        drill: Drill,
    },
    Restored {
        restored: Restored,
    },
    /// It did not work out.
    Failed {
        problem: Box<Problem>,
    },
    /// Of a newer server.
    #[serde(other)]
    Unknown,
}
