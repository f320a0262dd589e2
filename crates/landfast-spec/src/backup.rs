//! Backups of a store: where to, when, for how long, and how they are proven.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use landfast_types::{Bytes, StoreName};
use serde::{Deserialize, Serialize};

use crate::{
    code::Code,
    cursor::Cursor,
    defaults,
    diagnostic::Problem,
    leaf::Leaf,
    schedule::CronLine,
    spec::{Engine, Volume, When},
    store::StoreSpec,
};

/// A volume that is backed up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeSpec {
    /// Where it lies, as the services and jobs that have it say.
    pub place: Volume,
    pub backup: BackupSpec,
}

/// How something is backed up: a PostgreSQL by its log, one of somebody else by dumps, a volume by snapshots. What has no log has no
/// use for `busy_rate`, `keep_wal`, `ship`, `wal_limit` and `on_wal_limit`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupSpec {
    pub to: RepositorySpec,
    /// When every page is stored again.
    pub full: CronLine,
    /// When pages that changed are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incremental: Option<CronLine>,
    /// When every object of the repository is read; a full drill reads them, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify: Option<CronLine>,
    /// How long backups are kept. The newest good one never goes.
    pub keep: Duration,
    /// How long each moment of the past can be gone back to.
    pub keep_wal: Duration,
    /// Between two shipments of what was written: what a lost host costs at the most, roughly.
    pub ship: Duration,
    /// Read of a server in a second while its app uses it.
    #[serde(default = "busy_rate")]
    pub busy_rate: Bytes,
    /// What may wait of its log while it cannot be shipped.
    pub wal_limit: Bytes,
    /// What happens then, which is told.
    #[serde(default)]
    pub on_wal_limit: OnWalLimit,
    pub drill: DrillSpec,
}

/// What happens where too much of a log waits for the repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnWalLimit {
    /// The log is given up: the app writes on, and moments of the past are lost.
    #[default]
    Break,
    /// The app does not write until the archive has caught up.
    StopWrites,
}

/// How backups are proven.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrillSpec {
    /// A restore with its checks.
    pub light: CronLine,
    /// The same with every page and index read.
    pub full: CronLine,
    /// A last success longer ago than this is stale.
    pub max_age: Duration,
    /// The user's own checks, by name.
    #[serde(default)]
    pub checks: BTreeMap<String, CheckSpec>,
}

/// A query on the restored copy and what it must give: the first column of its first row, as text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckSpec {
    pub sql: String,
    pub expect: String,
}

/// Where backups lie.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum RepositorySpec {
    /// An absolute path on the server's host: another disk, or another machine's by NFS.
    Folder { path: String },
    Bucket {
        bucket: String,
        /// Without slashes around it; may be empty.
        prefix: String,
        /// `None`: Amazon's own, of the region.
        endpoint: Option<String>,
        region: String,
        path_style: bool,
        /// A file of certificates, in PEM, that the endpoint's is checked with.
        ca: Option<String>,
        access_key_secret: String,
        secret_key_secret: String,
    },
}

impl BackupSpec {
    /// The secrets that the repository is reached with.
    pub fn secrets(&self) -> Vec<&str> {
        match &self.to {
            RepositorySpec::Folder { .. } => Vec::new(),
            RepositorySpec::Bucket {
                access_key_secret,
                secret_key_secret,
                ..
            } => vec![access_key_secret, secret_key_secret],
        }
    }
}

impl fmt::Display for RepositorySpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder { path } => f.write_str(path),
            Self::Bucket { bucket, prefix, .. } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Self::Bucket { bucket, prefix, .. } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

/// Reads what a store says of its backups.
pub(crate) fn read(name: &str, at: &Cursor<'_>, engine: Engine) -> Option<BackupSpec> {
    if !at.has("backup") {
        return None;
    }
    if engine != Engine::Postgres {
        let what = engine.label();
        let message = format!("not yet: `{name}` is {what}; PostgreSQL and volumes are backed up");
        let problem = Problem::new(Code::NotYet, at.key_span("backup"), message);
        at.report(problem.help("until then run your backup as a job with a cron line in `when`"));
        return None;
    }
    let table = at.table("backup");
    let is_external = at.has("external");
    if is_external {
        for key in ["busy_rate", "keep_wal", "ship", "wal_limit", "on_wal_limit"] {
            if table.has(key) {
                let message = format!(
                    "`{key}` is of the log, and `{name}` is a server of somebody else: it is dumped"
                );
                let problem = Problem::new(Code::OutOfRange, table.key_span(key), message);
                let help =
                    "remove it; `full` says when a dump is made, which is what a lost server costs";
                table.report(problem.help(help));
            }
        }
    }
    let drill = table.table("drill");
    let checks = drill.tables("checks").into_iter().filter_map(|(name, at)| {
        let check = CheckSpec {
            sql: at.text("sql")?,
            expect: at.text("expect")?,
        };
        Some((name.to_owned(), check))
    });
    let spec = BackupSpec {
        to: repository(&table)?,
        full: line(&table, "full"),
        incremental: optional_line(&table, "incremental"),
        verify: optional_line(&table, "verify"),
        keep: table.duration("keep"),
        keep_wal: table.duration("keep_wal"),
        ship: table.duration("ship"),
        busy_rate: table.bytes_or_default("busy_rate"),
        wal_limit: table.bytes_or_default("wal_limit"),
        on_wal_limit: match table.text("on_wal_limit").as_deref() {
            Some("stop-writes") => OnWalLimit::StopWrites,
            Some(_) | None => OnWalLimit::Break,
        },
        drill: DrillSpec {
            light: line(&drill, "light"),
            full: line(&drill, "full"),
            max_age: drill.duration("max_age"),
            checks: checks.collect(),
        },
    };
    let slot = "max_slot_wal_keep_size";
    let settings = at.table("settings");
    if spec.on_wal_limit == OnWalLimit::StopWrites && settings.has(slot) {
        let message = format!(
            "`{slot}` follows from `wal_limit`, so that writes stop before the log is given up"
        );
        let problem = Problem::new(Code::StoreSetting, settings.key_span(slot), message);
        at.report(problem.help("remove it, or write `on_wal_limit = \"break\"`"));
    }
    if !is_external && spec.keep_wal > spec.keep {
        let message = "`keep_wal` is longer than `keep`: without a backup before it nothing can be gone back to";
        let problem = Problem::new(Code::OutOfRange, table.span("keep_wal"), message);
        table.report(problem.help("keep backups at least as long"));
    }
    Some(spec)
}

/// Reads how volumes are backed up. Where each lies, its services and jobs say.
pub(crate) fn volumes<'a>(
    root: &Cursor<'_>,
    known: impl Iterator<Item = &'a BTreeMap<String, Volume>>,
    stores: &BTreeMap<StoreName, StoreSpec>,
    secrets: Option<&BTreeSet<String>>,
) -> BTreeMap<StoreName, VolumeSpec> {
    let mut places: BTreeMap<&str, BTreeSet<&Volume>> = BTreeMap::new();
    for (name, volume) in known.flatten() {
        places.entry(name).or_default().insert(volume);
    }
    let mut read = BTreeMap::new();
    for (text, at) in root.tables("volumes") {
        let refuse = |message: String, help: &str| {
            let problem = Problem::new(Code::DanglingReference, at.at(), message);
            at.report(problem.help(help.to_owned()));
        };
        let Ok(name) = StoreName::new(text) else {
            continue;
        };
        let of: Vec<_> = places.get(text).into_iter().flatten().copied().collect();
        let place = match of.as_slice() {
            [place] => Volume::clone(place),
            [] => {
                let message = format!("no service or job has a volume `{text}`");
                refuse(
                    message,
                    "name one of theirs, or write volumes = { … } there",
                );
                continue;
            }
            _ => {
                let message = format!("`{text}` has several places");
                refuse(message, "give volumes in different places different names");
                continue;
            }
        };
        if stores.contains_key(&name) {
            let message = format!("there is a store `{text}` as well, and backups go by the name");
            refuse(message, "rename one of the two");
        }
        if !at.has("backup") {
            continue;
        }
        let Some(backup) = of_volume(&at.table("backup")) else {
            continue;
        };
        let missing = |secret: &&&str| secrets.is_some_and(|known| !known.contains(**secret));
        if let Some(secret) = backup.secrets().iter().find(missing) {
            let message = format!("there is no secret `{secret}` for the backups of `{text}`");
            let problem = Problem::new(Code::EnvMissing, at.at(), message);
            at.report(problem.help(format!("`landfast secret set {secret}`")));
        }
        read.insert(name, VolumeSpec { place, backup });
    }
    read
}

/// What records of earlier versions went by.
fn busy_rate() -> Bytes {
    defaults::BACKUP_BUSY_RATE.bytes()
}

fn of_volume(table: &Cursor<'_>) -> Option<BackupSpec> {
    let drill = table.table("drill");
    let keep = table.duration("keep");
    Some(BackupSpec {
        to: repository(table)?,
        full: line(table, "full"),
        incremental: Some(line(table, "when")),
        keep,
        keep_wal: keep,
        ship: defaults::BACKUP_SHIP.duration(),
        busy_rate: defaults::BACKUP_BUSY_RATE.bytes(),
        wal_limit: Bytes(0),
        on_wal_limit: OnWalLimit::Break,
        // Its full drill reads every byte.
        verify: None,
        drill: DrillSpec {
            light: line(&drill, "light"),
            full: line(&drill, "full"),
            max_age: drill.duration("max_age"),
            checks: BTreeMap::new(),
        },
    })
}

fn optional_line(at: &Cursor<'_>, key: &str) -> Option<CronLine> {
    match at.leaf(key) {
        Some(Leaf::When(When::Cron { line })) => Some(line),
        _ => None,
    }
}

fn line(at: &Cursor<'_>, key: &str) -> CronLine {
    optional_line(at, key).unwrap_or_else(|| {
        CronLine::new(at.default_text(key)).expect("the defaults are cron lines")
    })
}

fn repository(at: &Cursor<'_>) -> Option<RepositorySpec> {
    const OF_A_BUCKET: [&str; 6] = [
        "endpoint",
        "region",
        "path_style",
        "ca",
        "access_key_secret",
        "secret_key_secret",
    ];
    let to = at.text("to")?;
    let Some(bucket) = to.strip_prefix("s3://") else {
        for key in OF_A_BUCKET.into_iter().filter(|key| at.has(key)) {
            let message = format!("`{key}` has no effect: `to` is a folder");
            let problem = Problem::new(Code::NoEffect, at.key_span(key), message);
            at.report(problem.help("remove it, or write to = \"s3://BUCKET/PREFIX\""));
        }
        return Some(RepositorySpec::Folder { path: to });
    };
    let (bucket, prefix) = bucket.split_once('/').unwrap_or((bucket, ""));
    let endpoint = at.text("endpoint");
    Some(RepositorySpec::Bucket {
        bucket: bucket.to_owned(),
        prefix: prefix.trim_matches('/').to_owned(),
        region: at
            .text("region")
            .unwrap_or_else(|| at.default_text("region").to_owned()),
        path_style: at.flag_or("path_style", || endpoint.is_some()),
        endpoint,
        ca: at.text("ca"),
        access_key_secret: at
            .text("access_key_secret")
            .unwrap_or_else(|| at.default_text("access_key_secret").to_owned()),
        secret_key_secret: at
            .text("secret_key_secret")
            .unwrap_or_else(|| at.default_text("secret_key_secret").to_owned()),
    })
}

/// What is wrong with a place for backups.
pub(crate) fn place_problem(text: &str) -> Option<&'static str> {
    const FORMS: &str = "an absolute path, or \"s3://BUCKET/PREFIX\"";
    const BUCKET: &str = "a bucket's name is 3 to 63 of `a` to `z`, `0` to `9`, `.` and `-`";
    const PREFIX: &str = "use `a` to `z`, `0` to `9`, `_`, `.` and `-` between slashes";
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    if let Some(rest) = text.strip_prefix("s3://") {
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let fits = |byte| plain(byte) || b".-".contains(&byte);
        if !(3..=63).contains(&bucket.len()) || !bucket.bytes().all(fits) {
            return Some(BUCKET);
        }
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        let part =
            |part: &str| !part.is_empty() && !part.starts_with('.') && part.bytes().all(fits);
        let prefix = prefix.trim_end_matches('/');
        return (!prefix.is_empty() && !prefix.split('/').all(part)).then_some(PREFIX);
    }
    let is_path = text.starts_with('/') && text.len() > 1 && !text.contains(['\0', '\n']);
    let is_straight = text.split('/').all(|part| part != ".." && part != ".");
    (!is_path || !is_straight).then_some(FORMS)
}
