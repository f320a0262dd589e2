//! What a process of a run is told to do, as a file that only its owner reads.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use landfast_backup::{BackupId, Lsn};
use landfast_backup_postgres::{
    Archive, BackupRequest, Pace, Programs, Server, WalArchiveConfig, WalEvent, WalStatus,
};
use landfast_repository::{Key, Keyring, Place, Repository, S3Place, Storage};
use landfast_testbed::S3;
use landfast_types::Secret;
use serde::{Deserialize, Serialize};

/// The bucket of a run on S3.
pub const BUCKET: &str = "backups";

/// The server, the repository and the spool of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Order {
    /// The folder of the server's socket.
    pub socket: PathBuf,
    pub port: u16,
    pub place: PlaceOrder,
    /// Key files; the first one seals.
    pub keys: Vec<PathBuf>,
    pub spool: PathBuf,
    pub interval_ms: u64,
    pub spool_bytes_max: u64,
    /// How long the WAL of a backup may take, in milliseconds.
    pub patience_ms: u64,
    /// Take a full backup when the chain is broken, as whoever runs an archiver has to.
    pub heals: bool,
    /// Where a restore goes to; for the role `restore` only.
    pub data: PathBuf,
    pub run: PathBuf,
}

/// Where the repository is.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlaceOrder {
    Folder(PathBuf),
    /// The endpoint of the testbed's server, or of what stands before it.
    S3(String),
}

/// A line on the standard input of an archiver.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum Ask {
    BackUp {
        is_full: bool,
    },
    Flush,
    Prune {
        daily: usize,
        wal_heartbeats: usize,
        bad: usize,
        delay: u64,
    },
    Stop,
}

/// A line on its standard output.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "told", rename_all = "snake_case")]
pub enum Told {
    Started,
    Event {
        event: WalEvent,
    },
    Status {
        status: WalStatus,
    },
    BackedUp {
        id: BackupId,
        is_good: bool,
        took_ms: u64,
    },
    Flushed,
    Pruned {
        kept: Vec<BackupId>,
        buried: Vec<BackupId>,
        deleted: usize,
    },
    Failed {
        what: String,
        why: String,
    },
    Step {
        name: String,
    },
    Restored {
        reached: Lsn,
    },
}

impl Order {
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read(path).with_context(|| format!("read {}", path.display()))?;
        Ok(serde_json::from_slice(&text)?)
    }

    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        fs::write(path, serde_json::to_vec(self)?)?;
        Ok(())
    }

    pub fn storage(&self) -> anyhow::Result<Storage> {
        let place = match &self.place {
            PlaceOrder::Folder(folder) => Place::Folder(folder.clone()),
            PlaceOrder::S3(endpoint) => Place::S3(S3Place {
                bucket: BUCKET.into(),
                prefix: "faults".into(),
                region: "us-east-1".into(),
                endpoint: Some(endpoint.clone()),
                is_path_style: true,
                authority: None,
                access_key: S3::KEYS.0.into(),
                secret_key: Secret::new(S3::KEYS.1.into()),
            }),
        };
        Ok(Storage::new(&place)?)
    }

    pub fn keyring(&self) -> anyhow::Result<Arc<Keyring>> {
        let mut paths = self.keys.iter();
        let first = paths.next().context("an order names a key")?;
        let mut keys = Keyring::new(Key::read(first)?);
        for path in paths {
            keys = keys.with_older(Key::read(path)?);
        }
        Ok(Arc::new(keys))
    }

    /// The archive, its repository opened.
    pub async fn open(&self) -> anyhow::Result<Archive> {
        let repository = Repository::open(self.storage()?, self.keyring()?).await?;
        Ok(Archive::new(repository, "main")?)
    }

    pub fn server(&self) -> Server {
        Server {
            host: self.socket.display().to_string(),
            port: self.port,
            login: "postgres".into(),
            password: None,
            database: "postgres".into(),
        }
    }

    pub fn config(&self, archive: &Archive) -> WalArchiveConfig {
        WalArchiveConfig {
            server: self.server(),
            programs: programs(),
            archive: archive.clone(),
            spool: self.spool.clone(),
            slot: "landfast".into(),
            is_synchronous: false,
            interval: Duration::from_millis(self.interval_ms),
            spool_bytes_max: self.spool_bytes_max,
        }
    }

    pub fn backup(&self, archive: &Archive, is_full: bool) -> BackupRequest {
        BackupRequest {
            server: self.server(),
            programs: programs(),
            archive: archive.clone(),
            is_full,
            pace: Pace::new(24 << 20),
            wal_patience: Duration::from_millis(self.patience_ms),
        }
    }
}

/// Debian's PostgreSQL 15; its servers as `postgres` where we are root.
pub fn programs() -> Programs {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let postgres = passwd.lines().find_map(|line| {
        let mut fields = line.strip_prefix("postgres:")?.split(':').skip(1);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    });
    Programs {
        folder: "/usr/lib/postgresql/15/bin".into(),
        user: postgres.filter(|_| rustix::process::geteuid().is_root()),
        containers: None,
    }
}
