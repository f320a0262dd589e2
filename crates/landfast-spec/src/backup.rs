//! Backups of a store: where to, when, for how long, and how they are proven.

use std::{collections::BTreeMap, fmt, time::Duration};

use landfast_types::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    code::Code,
    cursor::Cursor,
    diagnostic::Problem,
    leaf::Leaf,
    schedule::CronLine,
    spec::{Engine, When},
};

/// How a managed PostgreSQL is backed up.
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
    /// What the server keeps of its log while it cannot be shipped. Beyond it the chain breaks, which is told.
    pub wal_limit: Bytes,
    pub drill: DrillSpec,
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
    if engine != Engine::Postgres || at.has("external") {
        let what = if at.has("external") {
            "an external server"
        } else {
            engine.label()
        };
        let message =
            format!("not yet: `{name}` is {what}; PostgreSQL that Landfast runs is backed up");
        let problem = Problem::new(Code::NotYet, at.key_span("backup"), message);
        at.report(problem.help("until then run your backup as a job with a cron line in `when`"));
        return None;
    }
    let table = at.table("backup");
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
        wal_limit: table.bytes_or_default("wal_limit"),
        drill: DrillSpec {
            light: line(&drill, "light"),
            full: line(&drill, "full"),
            max_age: drill.duration("max_age"),
            checks: checks.collect(),
        },
    };
    if spec.keep_wal > spec.keep {
        let message = "`keep_wal` is longer than `keep`: without a backup before it nothing can be gone back to";
        let problem = Problem::new(Code::OutOfRange, table.span("keep_wal"), message);
        table.report(problem.help("keep backups at least as long"));
    }
    Some(spec)
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
