//! Data stores: what they are, where they are, and which variables their connections are given in.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use landfast_types::{Bytes, StoreName};
use serde::{Deserialize, Serialize};

use crate::{
    backup::{self, BackupSpec},
    code::Code,
    container::{ImageSource, Pull},
    cursor::Cursor,
    decode::Secrets,
    diagnostic::{Problem, Sink},
    leaf::{self, Leaf},
    schedule::CronLine,
    spec::{Engine, When},
    tree::Entry,
};

/// Its server takes about half of this before it holds any data.
const MARIADB_MEMORY_MIN: Bytes = Bytes(192 << 20);

/// A database, cache or bucket of the environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreSpec {
    pub engine: Engine,
    pub place: Place,
    /// The folder of its migrations, as it is written in the manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migrations: Option<String>,
    /// When the password that instances reach a managed store with is changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotate: Option<CronLine>,
    /// What each migration may cost on a copy, before it runs on the database itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rehearsal: Option<Rehearsal>,
    /// How processes keep connections to it, where the file says that they are told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolSpec>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<BackupSpec>,
}

/// The connections that one process keeps to a database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolSpec {
    /// At the most; `None`: what the server gives is shared out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<u32>,
    /// While there is nothing to do.
    pub min: u32,
    /// How long is waited for one.
    pub timeout: Duration,
    /// How long one that is not used is kept.
    pub idle: Duration,
}

/// What of a store decides which variables it gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreKind {
    pub engine: Engine,
    /// Whether it says how connections are kept.
    pub has_pool: bool,
}

/// What one migration may cost. What is not given is not limited.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Rehearsal {
    /// From its first step to its last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<Duration>,
    /// The longest that a table may be closed to writers or readers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lock: Option<Duration>,
    /// What it may write to the server's log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wal: Option<Bytes>,
    /// How many tables may be written anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rewrites: Option<u32>,
}

/// Who runs a store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Place {
    /// Landfast, on the server's host.
    Managed {
        /// The major version: `15`, `10.11`.
        version: String,
        memory: Bytes,
        /// Settings of the server by the names of its own configuration.
        #[serde(default)]
        settings: BTreeMap<String, String>,
        /// Its server is a container of this image; without one it is a process of the host.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        image: Option<ImageSource>,
    },
    /// Somebody else; the secret holds the address with login and password.
    External { url_secret: String },
    /// Somebody's object storage.
    Bucket {
        /// `None`: Amazon's own, of the region.
        endpoint: Option<String>,
        bucket: String,
        region: String,
        path_style: bool,
        access_key_secret: String,
        secret_key_secret: String,
    },
}

impl StoreSpec {
    /// What decides which variables it gives.
    pub fn kind(&self) -> StoreKind {
        StoreKind {
            engine: self.engine,
            has_pool: self.pool.is_some(),
        }
    }

    /// Whether Landfast runs it.
    pub fn is_managed(&self) -> bool {
        matches!(self.place, Place::Managed { .. })
    }

    /// The image that its server is a container of.
    pub fn image(&self) -> Option<&ImageSource> {
        match &self.place {
            Place::Managed { image, .. } => image.as_ref(),
            Place::External { .. } | Place::Bucket { .. } => None,
        }
    }

    /// The secrets it, and its backups, are reached with.
    pub fn secrets(&self) -> Vec<&str> {
        let mut secrets = self.own_secrets();
        secrets.extend(self.backup.iter().flat_map(BackupSpec::secrets));
        secrets
    }

    fn own_secrets(&self) -> Vec<&str> {
        match &self.place {
            Place::Managed { .. } => Vec::new(),
            Place::External { url_secret } => vec![url_secret],
            Place::Bucket {
                access_key_secret,
                secret_key_secret,
                ..
            } => vec![access_key_secret, secret_key_secret],
        }
    }
}

impl Engine {
    /// The major version of managed servers that every build of Landfast is tested with.
    pub const fn tested_version(self) -> Option<&'static str> {
        match self {
            Self::Postgres => Some("15"),
            Self::Mariadb => Some("10.11"),
            Self::Redis => Some("7.0"),
            Self::Mysql | Self::S3 => None,
        }
    }

    /// Whether it speaks SQL: what `DATABASE_URL` is for.
    pub const fn is_sql(self) -> bool {
        matches!(self, Self::Postgres | Self::Mariadb | Self::Mysql)
    }
}

/// What a variable says of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Scheme, login, password, address and database.
    Url,
    Endpoint,
    Bucket,
    Region,
    /// `true` or `false`.
    PathStyle,
    AccessKey,
    SecretKey,
    PoolMax,
    PoolMin,
    /// In milliseconds.
    PoolTimeout,
    /// In milliseconds.
    PoolIdle,
}

impl Part {
    /// Whether it lets in whoever has it.
    pub fn is_secret(self) -> bool {
        matches!(self, Self::Url | Self::AccessKey | Self::SecretKey)
    }
}

const BUCKET_PARTS: [(&str, Part); 6] = [
    ("ENDPOINT", Part::Endpoint),
    ("BUCKET", Part::Bucket),
    ("REGION", Part::Region),
    ("PATH_STYLE", Part::PathStyle),
    ("ACCESS_KEY_ID", Part::AccessKey),
    ("SECRET_ACCESS_KEY", Part::SecretKey),
];

const POOL_PARTS: [(&str, Part); 4] = [
    ("POOL_MAX", Part::PoolMax),
    ("POOL_MIN", Part::PoolMin),
    ("POOL_TIMEOUT_MS", Part::PoolTimeout),
    ("POOL_IDLE_MS", Part::PoolIdle),
];

/// The variables a process gets that uses these stores: each store's own (`MAIN_URL`), and the customary names for
/// the first of its kind (`DATABASE_URL`, `REDIS_URL`, `S3_ENDPOINT`, …). A store's own name for a variable comes
/// before a customary one. Stores that are not known are left out.
pub fn injected_variables(
    uses: &[StoreName],
    kind: impl Fn(&StoreName) -> Option<StoreKind>,
) -> BTreeMap<String, (StoreName, Part)> {
    let mut variables = BTreeMap::new();
    let known: Vec<_> = uses
        .iter()
        .filter_map(|name| Some((name, kind(name)?)))
        .collect();
    for (name, kind) in &known {
        let prefix = name.as_str().to_uppercase().replace('-', "_");
        for (suffix, part) in parts(*kind) {
            variables.insert(format!("{prefix}_{suffix}"), ((*name).clone(), part));
        }
    }
    // All customary names of a kind are of one store.
    let mut first_ones = BTreeSet::new();
    for (name, kind) in &known {
        let prefix = match kind.engine {
            Engine::Postgres | Engine::Mariadb | Engine::Mysql => "DATABASE",
            Engine::Redis => "REDIS",
            Engine::S3 => "S3",
        };
        if !first_ones.insert(prefix) {
            continue;
        }
        for (suffix, part) in parts(*kind) {
            let variable = variables.entry(format!("{prefix}_{suffix}"));
            variable.or_insert_with(|| ((*name).clone(), part));
        }
    }
    variables
}

fn parts(kind: StoreKind) -> impl Iterator<Item = (&'static str, Part)> {
    let reached: &[(&str, Part)] = match kind.engine {
        Engine::S3 => &BUCKET_PARTS,
        Engine::Postgres | Engine::Mariadb | Engine::Mysql | Engine::Redis => &[("URL", Part::Url)],
    };
    let kept: &[(&str, Part)] = if kind.has_pool { &POOL_PARTS } else { &[] };
    reached.iter().chain(kept).copied()
}

/// What processes of a file are given beside their own `env`.
pub(crate) struct Given<'a> {
    pub(crate) secrets: Secrets<'a>,
    stores: BTreeMap<StoreName, (Option<StoreKind>, BTreeSet<String>)>,
}

impl<'a> Given<'a> {
    pub(crate) fn new(root: &Cursor<'_>, secrets: Secrets<'a>) -> Self {
        let stores = root.tables("stores").into_iter().filter_map(|(name, at)| {
            let engine = written(&at, "engine").and_then(|word| Engine::from_word(&word));
            let kind = engine.map(|engine| StoreKind {
                engine,
                has_pool: at.has("pool"),
            });
            let external = at.table("external");
            let names = [
                written(&external, "url_secret"),
                written(&at, "access_key_secret"),
                written(&at, "secret_key_secret"),
            ];
            Some((
                StoreName::new(name).ok()?,
                (kind, names.into_iter().flatten().collect()),
            ))
        });
        Self {
            secrets,
            stores: stores.collect(),
        }
    }

    /// The variables that stores give a process.
    pub(crate) fn variables(&self, uses: &[StoreName]) -> BTreeMap<String, (StoreName, Part)> {
        injected_variables(uses, |name| self.stores.get(name)?.0)
    }

    /// A secret that has the name of a variable of a store, and is not what that store is reached with.
    pub(crate) fn clash(&self, uses: &[StoreName]) -> Option<(String, StoreName)> {
        let secrets = self.secrets?;
        let own = |store: &StoreName, name: &String| {
            self.stores
                .get(store)
                .is_some_and(|(_, own)| own.contains(name))
        };
        self.variables(uses)
            .into_iter()
            .find(|(name, (store, _))| secrets.contains(name) && !own(store, name))
            .map(|(name, (store, _))| (name, store))
    }
}

/// A text that is there and right; one that is missing is reported elsewhere.
fn written(at: &Cursor<'_>, name: &str) -> Option<String> {
    if at.has(name) { at.text(name) } else { None }
}

/// What a service or job says in `uses`.
pub(crate) fn uses(at: &Cursor<'_>) -> Vec<StoreName> {
    let names = at.texts("uses").unwrap_or_default();
    names
        .iter()
        .filter_map(|name| StoreName::new(name).ok())
        .collect()
}

/// Reads one store.
pub(crate) fn read(name: &str, at: &Cursor<'_>, secrets: Secrets<'_>) -> Option<StoreSpec> {
    let engine = at
        .text("engine")
        .and_then(|word| Engine::from_word(&word))?;
    let place =
        match engine {
            Engine::S3 => bucket(at),
            _ if at.has("external") => external(at),
            Engine::Mysql => {
                let message = format!("`{name}` has no `external`: MySQL is only connected to");
                let problem = Problem::new(Code::StoreExternalOnly, at.span("engine"), message);
                at.report(problem.help(
                    "add external = { url_secret = \"NAME\" }, or write engine = \"mariadb\"",
                ));
                None
            }
            Engine::Postgres | Engine::Mariadb | Engine::Redis => Some(managed(at, engine)),
        };
    without_effect(name, at, engine);
    let spec = StoreSpec {
        engine,
        place: place?,
        migrations: at.text("migrations"),
        rotate: schedule(at),
        rehearsal: rehearsal(name, at, engine),
        pool: pool(name, at, engine),
        backup: backup::read(name, at, engine),
    };
    if let Some(known) = secrets {
        for secret in spec.secrets() {
            if !known.contains(secret) {
                let message = format!("there is no secret `{secret}` to reach `{name}` with");
                let problem = Problem::new(Code::EnvMissing, at.at(), message);
                at.report(problem.help(format!("`landfast secret set {secret}`")));
            }
        }
    }
    Some(spec)
}

/// When something is to be rotated.
pub(crate) fn schedule(at: &Cursor<'_>) -> Option<CronLine> {
    match at.leaf("rotate") {
        Some(Leaf::When(When::Cron { line })) => Some(line),
        _ => None,
    }
}

/// The budgets of a rehearsal, where there is a table of them.
fn rehearsal(name: &str, at: &Cursor<'_>, engine: Engine) -> Option<Rehearsal> {
    if !at.has("rehearsal") {
        return None;
    }
    let without = |why: &str, help: &str| {
        let message = format!("`rehearsal` has no effect: {why}");
        let problem = Problem::new(Code::NoEffect, at.key_span("rehearsal"), message);
        at.report(problem.help(help.to_owned()));
        None
    };
    if !engine.is_sql() || at.has("external") {
        let why = format!(
            "only of a database that Landfast runs can it make a copy, and `{name}` is none"
        );
        return without(&why, "remove it");
    }
    if !at.has("migrations") {
        let why = format!("`{name}` has no `migrations`");
        return without(&why, "name their folder, or remove it");
    }
    let table = at.table("rehearsal");
    if engine == Engine::Mariadb {
        for key in ["lock", "wal"].into_iter().filter(|key| table.has(key)) {
            let message = format!("`{key}` has no effect: MariaDB does not tell");
            let problem = Problem::new(Code::NoEffect, table.key_span(key), message);
            table.report(problem.help("remove it"));
        }
    }
    Some(Rehearsal {
        duration: table.optional_duration("duration"),
        lock: table.optional_duration("lock"),
        wal: table.bytes("wal"),
        rewrites: table.optional_count("rewrites"),
    })
}

/// How connections are kept, where there is a table that says so.
fn pool(name: &str, at: &Cursor<'_>, engine: Engine) -> Option<PoolSpec> {
    if !at.has("pool") {
        return None;
    }
    if !engine.is_sql() {
        let message = format!("`pool` has no effect: `{name}` is no SQL database ({engine})");
        let problem = Problem::new(Code::NoEffect, at.key_span("pool"), message);
        at.report(problem.help("remove it"));
        return None;
    }
    let table = at.table("pool");
    let pool = PoolSpec {
        max: table.optional_count("max"),
        min: table.count("min"),
        timeout: table.duration("timeout"),
        idle: table.duration("idle"),
    };
    match pool.max {
        None if at.has("external") => {
            let message =
                format!("`max` is missing: nobody here knows what the server of `{name}` gives");
            let problem = Problem::new(Code::MissingKey, at.key_span("pool"), message);
            at.report(problem.help("write the connections that one process may keep: max = 10"));
        }
        Some(max) if pool.min > max => {
            let message = format!("`min` is {}, and `max` {max}", pool.min);
            at.report(Problem::new(Code::OutOfRange, table.span("min"), message));
        }
        Some(_) | None => {}
    }
    Some(pool)
}

fn managed(at: &Cursor<'_>, engine: Engine) -> Place {
    let tested = engine.tested_version().unwrap_or_default();
    let image = image(at);
    let of_image = image.as_ref().and_then(|image| version_of(engine, image));
    let version = at.text("version").or(of_image);
    let version = version.unwrap_or_else(|| tested.to_owned());
    if version != tested && at.leaf("version").is_some() {
        let message = format!("{} {version} is not tested with this build", engine.label());
        let problem = Problem::new(Code::StoreUntested, at.span("version"), message);
        at.report(problem.help(format!("tested: version = \"{tested}\"")));
    }
    let memory = at.bytes_or_default("memory");
    if engine == Engine::Mariadb && memory < MARIADB_MEMORY_MIN {
        let message = format!("MariaDB does not run in {memory}");
        let problem = Problem::new(Code::OutOfRange, at.span("memory"), message);
        at.report(problem.help(format!("write memory = \"{MARIADB_MEMORY_MIN}\" or more")));
    }
    Place::Managed {
        version,
        memory,
        settings: settings(at, engine),
        image,
    }
}

fn image(at: &Cursor<'_>) -> Option<ImageSource> {
    let pull = at.text("pull").and_then(|word| Pull::from_word(&word));
    if !at.has("image") {
        if at.has("pull") {
            let message = "`pull` has no effect: the store's server is a process of the host";
            let problem = Problem::new(Code::NoEffect, at.key_span("pull"), message);
            at.report(problem.help("remove it, or name the `image` it is a container of"));
        }
        return None;
    }
    let name = at.text("image")?.parse().ok()?;
    let pull = pull.unwrap_or_default();
    Some(ImageSource::Image { name, pull })
}

/// The major version in the tag of an image, as those of the engines themselves are tagged: `16.2-alpine`, `10.11`.
fn version_of(engine: Engine, image: &ImageSource) -> Option<String> {
    let ImageSource::Image { name, .. } = image else {
        return None;
    };
    let tag = name.tag()?;
    let numbers = tag.split('-').next().unwrap_or_default();
    let mut parts = numbers.split('.');
    let is_number =
        |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let (first, second) = (
        parts.next().filter(is_number)?,
        parts.next().filter(is_number),
    );
    // What other engines than PostgreSQL call a major version has two parts.
    Some(match (engine, second) {
        (Engine::Postgres, _) | (_, None) => first.to_owned(),
        (_, Some(second)) => format!("{first}.{second}"),
    })
}

fn settings(at: &Cursor<'_>, engine: Engine) -> BTreeMap<String, String> {
    let table = at.table("settings");
    let each = table.entries().filter_map(|(name, entry)| {
        if let Some(owner) = is_ours(engine, name) {
            let message = format!("`{name}` is set by Landfast{owner}");
            let problem = Problem::new(Code::StoreSetting, entry.key_span.clone(), message);
            at.report(problem.help("remove it"));
        }
        Some((name.to_owned(), scalar(name, entry)?))
    });
    each.collect()
}

fn scalar(name: &str, entry: &Entry) -> Option<String> {
    let silent = Sink::default(); // What is wrong with it was reported by `shape`.
    leaf::read_scalar(name, &entry.node, &silent).map(|scalar| scalar.text)
}

/// Whether a setting of a managed server is Landfast's own, so that no manifest may have it.
pub fn is_kept_setting(engine: Engine, setting: &str) -> bool {
    is_ours(engine, setting).is_some()
}

/// Settings without which Landfast could not reach, watch or recover a server; with what to write instead.
fn is_ours(engine: Engine, setting: &str) -> Option<&'static str> {
    const POSTGRES: &[&str] = &[
        "archive_command",
        "archive_library",
        "archive_mode",
        "config_file",
        "data_directory",
        "dynamic_shared_memory_type",
        "external_pid_file",
        "fsync",
        "full_page_writes",
        "hba_file",
        "ident_file",
        "listen_addresses",
        "log_destination",
        "logging_collector",
        "password_encryption",
        "port",
        "ssl",
        "unix_socket_directories",
        "unix_socket_permissions",
        "wal_level",
    ];
    const MARIADB: &[&str] = &[
        "bind-address",
        "datadir",
        "init-file",
        "innodb_checksum_algorithm",
        "innodb_doublewrite",
        "log-bin",
        "log-error",
        "log_bin",
        "pid-file",
        "plugin-dir",
        "port",
        "skip-grant-tables",
        "socket",
        "tmpdir",
        "user",
    ];
    const REDIS: &[&str] = &[
        "aclfile",
        "bind",
        "daemonize",
        "dir",
        "include",
        "loadmodule",
        "logfile",
        "masterauth",
        "pidfile",
        "port",
        "protected-mode",
        "replicaof",
        "requirepass",
        "supervised",
        "unixsocket",
        "user",
    ];
    let ours = match engine {
        Engine::Postgres => POSTGRES,
        Engine::Mariadb => MARIADB,
        Engine::Redis => REDIS,
        Engine::Mysql | Engine::S3 => &[],
    };
    let other = setting.replace('-', "_");
    let is_one = ours.iter().any(|one| one.replace('-', "_") == other);
    match setting {
        "maxmemory" if engine == Engine::Redis => Some(": write `memory`"),
        _ => is_one.then_some(""),
    }
}

fn external(at: &Cursor<'_>) -> Option<Place> {
    let url_secret = at.table("external").text("url_secret")?;
    Some(Place::External { url_secret })
}

fn bucket(at: &Cursor<'_>) -> Option<Place> {
    let needed = |key: &str| {
        let text = at.text(key).filter(|text| !text.is_empty());
        if text.is_none() && !at.has(key) {
            let message = format!("`{key}` is missing: a bucket is reached with it");
            at.report(Problem::new(Code::MissingKey, at.at(), message));
        }
        text
    };
    let (bucket, access_key, secret_key) = (
        needed("bucket"),
        needed("access_key_secret"),
        needed("secret_key_secret"),
    );
    let endpoint = at.text("endpoint");
    let region = at.text("region");
    Some(Place::Bucket {
        path_style: at.flag_or("path_style", || endpoint.is_some()),
        endpoint,
        bucket: bucket?,
        region: region.unwrap_or_else(|| at.default_text("region").to_owned()),
        access_key_secret: access_key?,
        secret_key_secret: secret_key?,
    })
}

/// Says which keys mean nothing for this kind of store.
fn without_effect(name: &str, at: &Cursor<'_>, engine: Engine) {
    const MANAGED: &[&str] = &["version", "memory", "settings", "rotate", "image", "pull"];
    const BUCKET: &[&str] = &[
        "endpoint",
        "bucket",
        "region",
        "path_style",
        "access_key_secret",
        "secret_key_secret",
    ];
    let is_bucket = engine == Engine::S3;
    let is_external = at.has("external");
    let why = match (is_bucket, is_external) {
        (true, _) => "a bucket",
        (false, true) => "an external store",
        (false, false) => "a managed store",
    };
    let mut idle: Vec<&str> = Vec::new();
    if is_bucket || is_external {
        idle.extend(MANAGED);
    }
    if is_bucket {
        idle.push("external");
    } else {
        idle.extend(BUCKET);
    }
    if !engine.is_sql() {
        idle.push("migrations");
    }
    for key in idle.into_iter().filter(|key| at.has(key)) {
        let message = format!("`{key}` has no effect: `{name}` is {why} ({engine})");
        let problem = Problem::new(Code::NoEffect, at.key_span(key), message);
        at.report(problem.help("remove it"));
    }
}
