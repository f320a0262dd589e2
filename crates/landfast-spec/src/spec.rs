//! The checked result: one app in one environment, every default filled in and every overlay applied.
//!
//! An [`AppSpec`] is stored inside a release, so it is read back by later versions of Landfast: fields may be
//! added with `#[serde(default)]`, none changes its meaning.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use landfast_types::{
    AppName, Bytes, Cpu, Digest, EnvironmentName, JobName, Percent, RouteName, Scope, ServiceName,
    StoreName, parse_bytes, parse_duration,
};
use serde::{Deserialize, Serialize};

pub use crate::store::{Part, Place, StoreSpec};
use crate::{
    backup::{BackupSpec, VolumeSpec},
    container::{self, ContainerSpec, ImageSource, RegistrySpec},
    defaults,
    delivery::SecretDelivery,
    sandbox::SandboxSpec,
    schedule::CronLine,
};

/// One app, resolved for one environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppSpec {
    pub app: AppName,
    pub environment: EnvironmentName,
    pub services: BTreeMap<ServiceName, ServiceSpec>,
    #[serde(default)]
    pub jobs: BTreeMap<JobName, JobSpec>,
    #[serde(default)]
    pub routes: BTreeMap<RouteName, RouteSpec>,
    pub deploy: DeploySpec,
    /// Databases, caches and buckets of the environment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub stores: BTreeMap<StoreName, StoreSpec>,
    /// Volumes that are backed up. Their names are none of a store.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub volumes: BTreeMap<StoreName, VolumeSpec>,
    /// What is done with secrets by themselves, by their names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, SecretSpec>,
    /// Logins of registries, by their hosts.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub registries: BTreeMap<String, RegistrySpec>,
}

/// When a secret gets another generated value, and of what kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretSpec {
    pub rotate: CronLine,
    /// In characters.
    pub length: u32,
    /// One of [`ALPHABETS`].
    pub alphabet: String,
}

/// What generated values are made of.
pub const ALPHABETS: &[&str] = &["alphanumeric", "hex", "base64url", "printable"];

impl AppSpec {
    /// The environment this spec is for.
    pub fn scope(&self) -> Scope {
        Scope {
            app: self.app.clone(),
            environment: self.environment.clone(),
        }
    }

    /// The digest of the canonical JSON of the whole spec: equal exactly when nothing a person could have
    /// changed differs.
    pub fn fingerprint(&self) -> Digest {
        fingerprint(self)
    }

    /// Services in waves: each wave needs only those before it (`after`), and is in order of name.
    pub fn waves(&self) -> Vec<Vec<ServiceName>> {
        let mut placed = BTreeSet::new();
        let mut waves = Vec::new();
        while placed.len() < self.services.len() {
            let mut wave = Vec::new();
            for (name, service) in &self.services {
                let ready = |other: &ServiceName| {
                    placed.contains(other) || !self.services.contains_key(other)
                };
                if !placed.contains(name) && service.after.iter().all(ready) {
                    wave.push(name.clone());
                }
            }
            // A spec read from elsewhere could hold a cycle; what is in it then goes last, together.
            if wave.is_empty() {
                let rest = self.services.keys().filter(|name| !placed.contains(*name));
                wave = rest.cloned().collect();
            }
            placed.extend(wave.iter().cloned());
            waves.push(wave);
        }
        waves
    }

    /// The routes that lead to a service.
    pub fn routes_of<'a>(
        &'a self,
        service: &'a ServiceName,
    ) -> impl Iterator<Item = (&'a RouteName, &'a RouteSpec)> {
        self.routes
            .iter()
            .filter(move |(_, route)| route.service == *service)
    }

    /// Everything a release copies into the store, as the manifest names it.
    pub fn artifact_names(&self) -> BTreeSet<&str> {
        let services = self.services.values();
        let services = services.filter_map(|service| service.artifact.as_ref());
        let jobs = self.jobs.values().filter_map(|job| job.artifact.as_ref());
        let routes = self.routes.values().flat_map(|route| {
            let files = route.files.as_ref().map(|files| &files.folder);
            files.into_iter().chain(&route.error_pages)
        });
        let stores = self.stores.values();
        let migrations = stores.filter_map(|store| store.migrations.as_ref());
        let names = services.chain(jobs).chain(routes).chain(migrations);
        names.map(String::as_str).collect()
    }

    /// Where images come from, each once by its [`ImageSource::key`], with the names of the services, jobs and
    /// stores that run from it.
    pub fn images(&self) -> BTreeMap<String, (&ImageSource, BTreeSet<String>)> {
        let services = self.services.iter();
        let services = services.filter_map(|(name, one)| {
            Some((format!("service {name}"), &one.container.as_ref()?.source))
        });
        let jobs = self.jobs.iter();
        let jobs = jobs.filter_map(|(name, one)| {
            Some((format!("job {name}"), &one.container.as_ref()?.source))
        });
        let stores = self.stores.iter();
        let stores =
            stores.filter_map(|(name, store)| Some((format!("store {name}"), store.image()?)));
        container::sources(services.chain(jobs).chain(stores))
    }

    /// How stores and volumes are backed up.
    pub fn backups(&self) -> impl Iterator<Item = (&StoreName, &BackupSpec)> {
        let stores = self.stores.iter();
        let stores = stores.filter_map(|(name, store)| Some((name, store.backup.as_ref()?)));
        let volumes = self.volumes.iter();
        stores.chain(volumes.map(|(name, volume)| (name, &volume.backup)))
    }

    /// Whether a secret is what backups or registries are reached with, and nothing that processes are given by itself.
    pub fn is_for_landfast(&self, name: &str) -> bool {
        self.is_for_backups(name)
            || container::registry_secrets(&self.registries).any(|secret| secret == name)
    }

    fn is_for_backups(&self, name: &str) -> bool {
        // What they are called where nothing else is said is never given out by itself, whether this release is backed up or not.
        let defaults = [defaults::BACKUP_ACCESS_KEY, defaults::BACKUP_SECRET_KEY];
        if defaults.iter().any(|default| default.text() == name) {
            return true;
        }
        let mut secrets = self.backups().flat_map(|(_, backup)| backup.secrets());
        secrets.any(|secret| secret == name)
    }

    /// The jobs a gate runs.
    pub fn jobs_of(&self, gate: Gate) -> impl Iterator<Item = (&JobName, &JobSpec)> {
        self.jobs
            .iter()
            .filter(move |(_, job)| job.when == When::Gate { gate })
    }
}

/// A long-running process type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSpec {
    /// The file or folder that is copied into the store, as it is written in the manifest: a plain process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact: Option<String>,
    /// In the place of an artifact: a container. Exactly one of both is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<ContainerSpec>,
    /// argv, never a shell. Empty: the image's own.
    #[serde(default)]
    pub command: Vec<String>,
    /// The port a person wrote. The target chooses the real one and names it `PORT`; `None`: it does not listen.
    pub port: Option<u16>,
    pub replicas: u32,
    #[serde(default)]
    pub resources: ResourcesSpec,
    #[serde(default, skip_serializing_if = "SandboxSpec::is_default")]
    pub sandbox: SandboxSpec,
    #[serde(default)]
    pub volumes: BTreeMap<String, Volume>,
    #[serde(default)]
    pub env: BTreeMap<String, EnvVar>,
    pub health: HealthSpec,
    /// How long requests in flight may take once the instance left rotation.
    #[serde(with = "millis")]
    pub drain: Duration,
    /// The same for WebSockets and SSE streams.
    #[serde(with = "millis")]
    pub stream_drain: Duration,
    /// Between SIGTERM and SIGKILL.
    #[serde(with = "millis")]
    pub grace: Duration,
    /// Services that move before this one within a rollout.
    #[serde(default)]
    pub after: BTreeSet<ServiceName>,
    /// Two releases of it must never run at once: it moves by pause, stop, start, resume.
    #[serde(default)]
    pub exclusive: bool,
    // What is added later is left out of the JSON where it is the default: a release that was made before has the
    // same fingerprint as one that is made now.
    #[serde(default, skip_serializing_if = "is_default")]
    pub protocol: Protocol,
    /// A cookie keeps clients on their release and instance.
    #[serde(default, skip_serializing_if = "is_default")]
    pub sticky: bool,
    /// The stores it may reach, in the order of the manifest.
    #[serde(default, skip_serializing_if = "is_default")]
    pub uses: Vec<StoreName>,
    /// How it is given secrets.
    #[serde(default, skip_serializing_if = "is_default")]
    pub secrets: SecretDelivery,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl ServiceSpec {
    /// The digest of what an instance is started with: when it is equal, a running instance need not be
    /// replaced. Health, drain and replicas are not part of it, since they do not reach the process.
    pub fn process_fingerprint(&self) -> Digest {
        let known = (
            &self.artifact,
            &self.command,
            self.port,
            &self.resources,
            &self.volumes,
            &self.env,
        );
        // As it was before there was any of these: an upgrade of Landfast alone replaces no instance.
        let (sandboxed, uses) = (!self.sandbox.is_default(), !self.uses.is_empty());
        if let Some(container) = &self.container {
            let source = container.source.key();
            let own = (
                source,
                &container.entrypoint,
                &container.reserve,
                &container.mounts,
            );
            return fingerprint(&(known, &self.sandbox, &self.uses, &self.secrets, own));
        }
        match (sandboxed, uses, is_default(&self.secrets)) {
            (false, false, true) => fingerprint(&known),
            (true, false, true) => fingerprint(&(known, &self.sandbox)),
            (_, true, true) => fingerprint(&(known, &self.sandbox, &self.uses)),
            (_, _, false) => fingerprint(&(known, &self.sandbox, &self.uses, &self.secrets)),
        }
    }
}

/// A process that ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSpec {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact: Option<String>,
    /// In the place of an artifact. Exactly one of both is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<ContainerSpec>,
    #[serde(default)]
    pub command: Vec<String>,
    pub when: When,
    #[serde(with = "millis")]
    pub timeout: Duration,
    #[serde(default)]
    pub resources: ResourcesSpec,
    #[serde(default, skip_serializing_if = "SandboxSpec::is_default")]
    pub sandbox: SandboxSpec,
    #[serde(default)]
    pub volumes: BTreeMap<String, Volume>,
    #[serde(default)]
    pub env: BTreeMap<String, EnvVar>,
    /// The stores it may reach, in the order of the manifest.
    #[serde(default, skip_serializing_if = "is_default")]
    pub uses: Vec<StoreName>,
    /// How it is given secrets.
    #[serde(default, skip_serializing_if = "is_default")]
    pub secrets: SecretDelivery,
}

/// What starts a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum When {
    /// A gate of each rollout.
    Gate { gate: Gate },
    /// The clock.
    Cron { line: CronLine },
    /// A person: `landfast run JOB`.
    Hand,
}

/// What an instance may use; `None` is unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ResourcesSpec {
    pub cpu: Option<Cpu>,
    pub memory: Option<Bytes>,
    /// Left out where it is not given, so that a manifest without it keeps its fingerprint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processes: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub descriptors: Option<u32>,
}

/// A folder outside releases.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Volume {
    /// Kept under the server's state folder.
    Managed,
    /// An absolute path on the host.
    Path { path: String },
}

/// One variable of a process's environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvVar {
    /// `None`: a secret may give it.
    pub value: Option<String>,
    #[serde(rename = "type")]
    pub kind: EnvType,
    /// A rollout is refused while nothing gives it a value.
    #[serde(default)]
    pub required: bool,
}

/// What a variable's value must look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EnvType {
    #[default]
    String,
    Integer,
    Number,
    Boolean,
    Duration,
    Size,
    Url,
}

impl EnvType {
    /// Every type, in the order of the documentation.
    pub const ALL: [Self; 7] = [
        Self::String,
        Self::Integer,
        Self::Number,
        Self::Boolean,
        Self::Duration,
        Self::Size,
        Self::Url,
    ];

    /// The word in the manifest.
    pub const fn word(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Boolean => "boolean",
            Self::Duration => "duration",
            Self::Size => "size",
            Self::Url => "url",
        }
    }

    /// Whether a value is of this type. Also for secrets, whose values only the server sees.
    pub fn accepts(self, value: &str) -> bool {
        match self {
            Self::String => !value.contains('\0'),
            Self::Integer => value.parse::<i64>().is_ok(),
            Self::Number => value.parse::<f64>().is_ok_and(f64::is_finite),
            Self::Boolean => matches!(value, "true" | "false"),
            Self::Duration => parse_duration(value).is_ok(),
            Self::Size => parse_bytes(value).is_ok(),
            Self::Url => is_url(value),
        }
    }
}

/// A scheme, `://`, and something behind it, without blanks. More is the business of whoever opens it.
pub(crate) fn is_url(text: &str) -> bool {
    let Some((scheme, rest)) = text.split_once("://") else {
        return false;
    };
    let scheme_char = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
    scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(scheme_char)
        && !rest.is_empty()
        && (scheme == "file" || !rest.starts_with('/'))
        && !rest.contains(|c: char| c.is_whitespace() || c.is_control())
}

/// How an instance is asked whether it is well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthSpec {
    /// Whether it may get traffic.
    pub ready: Probe,
    /// Whether it is restarted.
    pub live: Probe,
    #[serde(with = "millis")]
    pub interval: Duration,
    #[serde(with = "millis")]
    pub timeout: Duration,
    /// Failures in a row after which it is not ready (or, for `live`, is restarted).
    pub unhealthy_after: u32,
    /// Passes in a row after which it is ready again.
    pub healthy_after: u32,
}

/// One question to an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Probe {
    /// GET of this path (and query) must answer 2xx or 3xx.
    Http { path: String },
    /// The port must accept a connection.
    Tcp,
    /// The check that the container's image brings must pass.
    Image,
    /// Nothing is asked: an instance that runs is well.
    None,
}

/// A host and a path that lead to a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteSpec {
    /// `api.example.com`, `*.example.com` or `*`; lower case, no port.
    pub host: String,
    /// A prefix that ends at a segment; `/` or without a slash at its end.
    pub path: String,
    pub service: ServiceName,
    #[serde(default)]
    pub websocket: bool,
    #[serde(default)]
    pub tls: Option<TlsSpec>,
    /// The certificate of the host is obtained and renewed by ACME.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub acme: bool,
    /// Plain HTTP is answered with a redirect to HTTPS; where the certificate comes by ACME, once it is there.
    #[serde(default)]
    pub https_only: bool,
    pub limits: RouteLimitsSpec,
    /// The networks that may come, in CIDR notation; all, where none is named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<AuthSpec>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cors: Option<CorsSpec>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub security: Option<SecuritySpec>,
    #[serde(default, skip_serializing_if = "FieldRulesSpec::is_empty")]
    pub request_headers: FieldRulesSpec,
    #[serde(default, skip_serializing_if = "FieldRulesSpec::is_empty")]
    pub response_headers: FieldRulesSpec,
    pub timeouts: RouteTimeoutsSpec,
    /// The page (HTML, not a path) that is served with 503 while the app is stopped.
    #[serde(default)]
    pub maintenance: Option<String>,
    /// Answers are compressed for clients that take them so.
    #[serde(default, skip_serializing_if = "is_default")]
    pub compress: bool,
    #[serde(default, skip_serializing_if = "is_default")]
    pub files: Option<FilesSpec>,
    /// The folder of the pages for the proxy's own errors, as it is written in the manifest.
    #[serde(default, skip_serializing_if = "is_default")]
    pub error_pages: Option<String>,
}

/// Static files in front of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilesSpec {
    /// The folder that is copied into the store, as it is written in the manifest.
    pub folder: String,
    pub missing: MissingFile,
    /// The value of the header.
    pub cache_control: String,
}

/// A certificate chain and its key: absolute paths of PEM files on the server's host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TlsSpec {
    pub certificate: String,
    pub key: String,
}

/// What a request may weigh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteLimitsSpec {
    pub body: Bytes,
    /// For each client or key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<RateSpec>,
    /// For the route as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<QuotaSpec>,
}

/// Basic authentication.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthSpec {
    pub realm: String,
    /// `name:hash`, bcrypt or Argon2.
    pub users: Vec<String>,
}

impl fmt::Debug for AuthSpec {
    /// Without the hashes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.users.iter().filter_map(|user| user.split(':').next());
        f.debug_struct("AuthSpec")
            .field("realm", &self.realm)
            .field("users", &names.collect::<Vec<_>>())
            .finish()
    }
}

/// Which pages of other origins may read answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CorsSpec {
    pub origins: Vec<String>,
    pub methods: Vec<String>,
    pub headers: Vec<String>,
    pub expose: Vec<String>,
    pub credentials: bool,
    #[serde(with = "millis")]
    pub max_age: Duration,
}

/// Security headers of answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecuritySpec {
    #[serde(with = "millis")]
    pub hsts: Duration,
    pub hsts_subdomains: bool,
    /// `deny`, `same-origin` or `any`.
    pub frame: String,
    pub referrer: String,
    pub csp: Option<String>,
    pub overwrite: bool,
}

/// Headers that are set, added or taken away.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FieldRulesSpec {
    pub set: BTreeMap<String, String>,
    pub append: BTreeMap<String, String>,
    pub remove: Vec<String>,
}

impl FieldRulesSpec {
    /// Whether nothing is to be done.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// How many requests in how much time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuotaSpec {
    pub requests: u32,
    #[serde(with = "millis")]
    pub per: Duration,
    /// How many may come at once after a time of quiet.
    pub burst: u32,
}

/// A quota for each of something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateSpec {
    pub by: CountBySpec,
    pub quota: QuotaSpec,
}

/// What requests are counted by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum CountBySpec {
    /// The client's address.
    Client,
    /// The route as a whole: written in the file, kept as [`RouteLimitsSpec::total`].
    Route,
    /// The value of a header; in lower case.
    Header { name: String },
    /// The value of a cookie.
    Cookie { name: String },
}

/// How long each part of an exchange may take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteTimeoutsSpec {
    #[serde(with = "millis")]
    pub connect: Duration,
    #[serde(with = "millis")]
    pub first_byte: Duration,
    #[serde(with = "millis")]
    pub idle: Duration,
}

/// How the environment moves from one release to the next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeploySpec {
    pub strategy: Strategy,
    /// Shares of the canary, ascending, the last 100.
    pub steps: Vec<Percent>,
    #[serde(with = "millis")]
    pub hold: Duration,
    #[serde(with = "millis")]
    pub min_ready: Duration,
    #[serde(with = "millis")]
    pub standby: Duration,
    pub gates: Vec<Gate>,
    #[serde(with = "millis")]
    pub healthy_deadline: Duration,
    #[serde(with = "millis")]
    pub progress_deadline: Duration,
    pub max_surge: Share,
    pub max_unavailable: Share,
    /// A failed rollout is taken back without asking.
    pub rollback: bool,
    /// Synthetic requests that give the canary's analysis something to measure where traffic is thin.
    #[serde(default)]
    pub probe: Option<SyntheticProbe>,
    /// Gets one POST for each rollout that ended.
    #[serde(default)]
    pub webhook: Option<String>,
}

impl DeploySpec {
    /// Whether a rollout waits for this gate.
    pub fn has_gate(&self, gate: Gate) -> bool {
        self.gates.contains(&gate)
    }
}

/// A path that is asked at a steady rate during a canary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyntheticProbe {
    pub path: String,
    pub requests_per_second: u32,
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$variant_doc])* #[serde(rename = $word)] $variant,)*
        }

        impl $name {
            /// Every one, in the order of the documentation.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The words in the manifest, in the same order.
            pub const WORDS: &[&str] = &[$($word,)*];

            /// The word in the manifest.
            pub const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }

            /// Reads the word.
            pub fn from_word(word: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|one| one.word() == word)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.word())
            }
        }
    };
}

words! {
    /// What instances speak.
    #[derive(Default)]
    Protocol {
        #[default]
        Http1 = "http/1.1",
        /// HTTP/2 without TLS, known beforehand.
        H2c = "h2c",
    }
}

words! {
    /// What a data store is.
    Engine {
        Postgres = "postgres",
        Mariadb = "mariadb",
        Mysql = "mysql",
        Redis = "redis",
        S3 = "s3",
    }
}

impl Engine {
    /// As its makers write it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Postgres => "PostgreSQL",
            Self::Mariadb => "MariaDB",
            Self::Mysql => "MySQL",
            Self::Redis => "Redis",
            Self::S3 => "S3",
        }
    }
}

words! {
    /// What follows where no static file has the path.
    MissingFile {
        /// The service is asked.
        Service = "service",
        /// 404.
        NotFound = "not-found",
        /// The top `index.html`, where a page was asked for.
        Index = "index",
    }
}

words! {
    /// How a release takes over from the one before.
    Strategy {
        /// Instance by instance.
        Rolling = "rolling",
        /// A complete new group beside the old one, then one switch.
        BlueGreen = "blue-green",
        /// A growing share of the requests, judged at each step.
        Canary = "canary",
        /// Pause, stop, start, resume.
        Recreate = "recreate",
    }
}

words! {
    /// A condition a rollout waits for.
    Gate {
        /// The host has room for it, ports and files are there.
        Preflight = "preflight",
        /// Backups of its stores are fresh, and a drill has proven them.
        Backup = "backup",
        /// The jobs with `when = "gate:smoke"` pass against the new release.
        Smoke = "smoke",
        /// `hold` has passed.
        Hold = "hold",
        /// A person says go.
        Approval = "approval",
        /// The canary's figures are no worse than the old release's.
        Analysis = "analysis",
    }
}

/// A count, or a share of the replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "ShareText", try_from = "ShareText")]
pub enum Share {
    Count(u32),
    Percent(Percent),
}

impl Share {
    /// The share as a count, rounded up: what `max_surge` means.
    pub fn of_ceil(self, replicas: u32) -> u32 {
        match self {
            Self::Count(count) => count,
            Self::Percent(percent) => percent.of_ceil(replicas),
        }
    }

    /// The share as a count, rounded down: what `max_unavailable` means.
    pub fn of_floor(self, replicas: u32) -> u32 {
        match self {
            Self::Count(count) => count,
            Self::Percent(percent) => percent.of_floor(replicas),
        }
    }

    /// Reads `25%`.
    pub(crate) fn from_percent_text(text: &str) -> Option<Self> {
        let number = text.strip_suffix('%')?.trim_end().parse::<u8>().ok()?;
        Percent::new(number).map(Self::Percent)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum ShareText {
    Count(u32),
    Text(String),
}

impl From<Share> for ShareText {
    fn from(share: Share) -> Self {
        match share {
            Share::Count(count) => Self::Count(count),
            Share::Percent(percent) => Self::Text(percent.to_string()),
        }
    }
}

/// A stored text that is no share.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a percentage such as `25%`")]
struct ShareError(String);

impl TryFrom<ShareText> for Share {
    type Error = ShareError;
    fn try_from(text: ShareText) -> Result<Self, ShareError> {
        match text {
            ShareText::Count(count) => Ok(Self::Count(count)),
            ShareText::Text(text) => Self::from_percent_text(&text).ok_or(ShareError(text)),
        }
    }
}

/// Hashes the JSON of a value with every object's keys sorted, so that the order of fields in our code does
/// not matter.
pub(crate) fn fingerprint<T: Serialize>(value: &T) -> Digest {
    let json = serde_json::to_value(value).expect("these types have text keys and finite numbers");
    let mut text = String::new();
    write_canonical(&json, &mut text);
    Digest::of(text.as_bytes())
}

fn write_canonical(value: &serde_json::Value, text: &mut String) {
    use serde_json::Value;
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            text.push_str(&value.to_string());
        }
        Value::Array(items) => {
            text.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    text.push(',');
                }
                write_canonical(item, text);
            }
            text.push(']');
        }
        Value::Object(fields) => {
            text.push('{');
            let sorted = fields.iter().collect::<BTreeMap<_, _>>();
            for (index, (name, field)) in sorted.into_iter().enumerate() {
                if index > 0 {
                    text.push(',');
                }
                text.push_str(&Value::from(name.as_str()).to_string());
                text.push(':');
                write_canonical(field, text);
            }
            text.push('}');
        }
    }
}

/// Durations are whole milliseconds in JSON.
mod millis {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        duration: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}
