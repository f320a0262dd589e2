//! Every default in one table. The decoder, the proxy and the engine read their values here, and
//! `docs/reference/defaults.md` is printed from here, so the page cannot say anything else than the code.

use std::time::Duration;

use landfast_types::{Bytes, format_duration};

/// One default: what it is called, what it is, what it means, and where it was decided.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Setting {
    pub name: &'static str,
    pub value: Value,
    pub meaning: &'static str,
    pub source: &'static str,
}

/// The value of a default.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value {
    Millis(u64),
    Bytes(u64),
    Count(u32),
    Percent(u32),
    Flag(bool),
    Text(&'static str),
    Words(&'static [&'static str]),
    Steps(&'static [u8]),
}

impl Setting {
    /// The value as a duration. Fails to compile (in a constant) or panics for another kind of setting.
    pub const fn duration(&self) -> Duration {
        let Value::Millis(millis) = self.value else {
            panic!("not a duration")
        };
        Duration::from_millis(millis)
    }

    /// The value as a size. See [`Setting::duration`].
    pub const fn bytes(&self) -> Bytes {
        let Value::Bytes(bytes) = self.value else {
            panic!("not a size")
        };
        Bytes(bytes)
    }

    /// The value as a count or a percentage. See [`Setting::duration`].
    pub const fn count(&self) -> u32 {
        let (Value::Count(count) | Value::Percent(count)) = self.value else {
            panic!("not a count")
        };
        count
    }

    /// The value as a switch. See [`Setting::duration`].
    pub const fn flag(&self) -> bool {
        let Value::Flag(flag) = self.value else {
            panic!("not a switch")
        };
        flag
    }

    /// The value as text. See [`Setting::duration`].
    pub const fn text(&self) -> &'static str {
        let Value::Text(text) = self.value else {
            panic!("not a text")
        };
        text
    }

    /// The value as words. See [`Setting::duration`].
    pub const fn words(&self) -> &'static [&'static str] {
        let Value::Words(words) = self.value else {
            panic!("not words")
        };
        words
    }

    /// The value as steps in percent. See [`Setting::duration`].
    pub const fn steps(&self) -> &'static [u8] {
        let Value::Steps(steps) = self.value else {
            panic!("not steps")
        };
        steps
    }
}

impl std::fmt::Display for Value {
    /// As it would be written in the manifest.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Millis(millis) => {
                write!(f, "\"{}\"", format_duration(Duration::from_millis(*millis)))
            }
            Self::Bytes(bytes) => write!(f, "\"{}\"", Bytes(*bytes)),
            Self::Count(count) => write!(f, "{count}"),
            Self::Percent(percent) => write!(f, "\"{percent}%\""),
            Self::Flag(flag) => write!(f, "{flag}"),
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Words(words) => write!(f, "{words:?}"),
            Self::Steps(steps) => write!(f, "{steps:?}"),
        }
    }
}

macro_rules! settings {
    ($($constant:ident = $name:literal, $value:expr, $meaning:literal, $source:literal;)*) => {
        $(
            #[doc = $meaning]
            pub const $constant: Setting =
                Setting { name: $name, value: $value, meaning: $meaning, source: $source };
        )*

        /// Every default, in the order of the documentation.
        pub const ALL: &[Setting] = &[$($constant,)*];
    };
}

const SECOND: u64 = 1_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
const MIB: u64 = 1 << 20;

settings! {
    REPLICAS = "services.*.replicas", Value::Count(1), "How many instances of a service run.", "decoder";
    DRAIN = "services.*.drain", Value::Millis(30 * SECOND), "How long requests in flight may take once their instance left rotation.", "contract";
    STREAM_DRAIN = "services.*.stream_drain", Value::Millis(60 * SECOND), "Over how long open WebSockets and SSE streams are ended when their instance left rotation.", "contract";
    GRACE = "services.*.grace", Value::Millis(10 * SECOND), "How long an instance has between SIGTERM and SIGKILL.", "contract";
    EXCLUSIVE = "services.*.exclusive", Value::Flag(false), "Whether two releases of a service must never run at once.", "contract";
    PROTOCOL = "services.*.protocol", Value::Text("http/1.1"), "What the proxy speaks with instances.", "decision 0010";
    STICKY = "services.*.sticky", Value::Flag(false), "Whether a cookie keeps clients on their release and instance.", "decision 0010";
    PROBE_READY = "services.*.health.ready", Value::Text("tcp"), "How readiness is asked where the manifest names no probe and the service listens; a warning says so.", "contract";
    PROBE_LIVE = "services.*.health.live", Value::Text("none"), "How liveness is asked where the manifest names no probe: an instance that runs is alive.", "decoder";
    PROBE_INTERVAL = "services.*.health.interval", Value::Millis(2 * SECOND), "Time between two health checks of an instance.", "contract, example";
    PROBE_TIMEOUT = "services.*.health.timeout", Value::Millis(2 * SECOND), "How long a health check may take.", "decoder";
    UNHEALTHY_AFTER = "services.*.health.unhealthy_after", Value::Count(3), "Failed checks in a row after which an instance is unhealthy.", "decoder";
    HEALTHY_AFTER = "services.*.health.healthy_after", Value::Count(1), "Passed checks in a row after which it is healthy again.", "decoder";
    SANDBOX_USER = "services.*.sandbox.user", Value::Text("own"), "The user an instance runs as, where the server runs as root.", "decision 0012";
    SANDBOX_FILES = "services.*.sandbox.files", Value::Text("restricted"), "The files of the host an instance reaches, where the kernel has Landlock.", "decision 0012";
    JOB_SANDBOX_USER = "jobs.*.sandbox.user", Value::Text("own"), "The same for a run of a job.", "decision 0012";
    JOB_SANDBOX_FILES = "jobs.*.sandbox.files", Value::Text("restricted"), "The same for a run of a job.", "decision 0012";
    SANDBOX_ROOT = "services.*.sandbox.root", Value::Flag(false), "Whether a container runs as root where its image names no user.", "decision 0031";
    SANDBOX_WRITABLE = "services.*.sandbox.writable", Value::Flag(false), "Whether a container may write to its image's files.", "decision 0031";
    JOB_SANDBOX_ROOT = "jobs.*.sandbox.root", Value::Flag(false), "The same for a run of a job.", "decision 0031";
    JOB_SANDBOX_WRITABLE = "jobs.*.sandbox.writable", Value::Flag(false), "The same for a run of a job.", "decision 0031";
    PULL = "services.*.pull", Value::Text("newer"), "When a registry is asked for an image.", "decision 0031";
    JOB_PULL = "jobs.*.pull", Value::Text("newer"), "The same for the image of a job.", "decision 0031";
    STORE_PULL = "stores.*.pull", Value::Text("newer"), "The same for the image of a store.", "decision 0033";
    BUILD_CONTEXT = "services.*.build.context", Value::Text("."), "The folder that an image is built from.", "decision 0031";
    JOB_BUILD_CONTEXT = "jobs.*.build.context", Value::Text("."), "The same for the image of a job.", "decision 0031";
    SECRETS = "services.*.secrets", Value::Text("files"), "How an instance is given secrets that `env` does not name.", "decision 0016";
    JOB_SECRETS = "jobs.*.secrets", Value::Text("files"), "The same for a run of a job.", "decision 0016";
    JOB_WHEN = "jobs.*.when", Value::Text("hand"), "What starts a job: a person.", "contract";
    JOB_TIMEOUT = "jobs.*.timeout", Value::Millis(10 * MINUTE), "How long a job may take before it is stopped and counts as failed.", "decoder";
    ROUTE_PATH = "routes.*.path", Value::Text("/"), "The path prefix of a route.", "contract";
    WEBSOCKET = "routes.*.websocket", Value::Flag(false), "Whether WebSocket upgrades are passed on.", "contract";
    BODY_MAX = "routes.*.limits.body", Value::Bytes(100 * MIB), "The largest request body.", "contract";
    RATE_BY = "routes.*.limits.by", Value::Text("client"), "What a rate limit counts by.", "contract";
    AUTH_REALM = "routes.*.auth.realm", Value::Text("restricted"), "What a browser calls what it asks a password for.", "decoder";
    CORS_METHODS = "routes.*.cors.methods", Value::Words(&["GET", "HEAD", "POST"]), "The methods pages of other origins may use.", "decoder";
    CORS_CREDENTIALS = "routes.*.cors.credentials", Value::Flag(false), "Whether cookies and passwords go along.", "decoder";
    CORS_MAX_AGE = "routes.*.cors.max_age", Value::Millis(10 * MINUTE), "How long browsers may remember the answer to a preflight.", "decoder";
    HSTS = "routes.*.security.hsts", Value::Millis(180 * 24 * 60 * MINUTE), "How long browsers come by HTTPS only.", "decoder";
    HSTS_SUBDOMAINS = "routes.*.security.hsts_subdomains", Value::Flag(false), "Whether that is so for all subdomains too.", "decoder";
    FRAME = "routes.*.security.frame", Value::Text("same-origin"), "Who may show the pages in a frame.", "decoder";
    REFERRER = "routes.*.security.referrer", Value::Text("strict-origin-when-cross-origin"), "What links tell of where they were followed.", "decoder";
    SECURITY_OVERWRITE = "routes.*.security.overwrite", Value::Flag(false), "Whether what the service sets itself is replaced.", "decoder";
    UPSTREAM_CONNECT = "routes.*.timeouts.connect", Value::Millis(5 * SECOND), "How long connecting to an instance may take.", "contract";
    UPSTREAM_FIRST_BYTE = "routes.*.timeouts.first_byte", Value::Millis(60 * SECOND), "How long an instance may take to begin its answer.", "contract";
    IDLE = "routes.*.timeouts.idle", Value::Millis(75 * SECOND), "How long a body or a kept connection may be silent.", "contract";
    COMPRESS = "routes.*.compress", Value::Flag(false), "Whether the proxy compresses answers.", "decision 0010";
    FILES_MISSING = "routes.*.files.missing", Value::Text("service"), "What follows where no static file has the path.", "decision 0010";
    FILES_CACHE_CONTROL = "routes.*.files.cache_control", Value::Text("no-cache"), "The header `Cache-Control` of static files: kept, and asked for again each time.", "decision 0010";
    STORE_MEMORY = "stores.*.memory", Value::Bytes(256 * MIB), "Memory of a managed store's server.", "decision 0018";
    STORE_REGION = "stores.*.region", Value::Text("us-east-1"), "The region of a bucket.", "decision 0018";
    BACKUP_FULL = "stores.*.backup.full", Value::Text("0 3 * * * UTC"), "When a backup is made that needs no older object.", "contract, example";
    BACKUP_KEEP = "stores.*.backup.keep", Value::Millis(30 * DAY), "How long backups are kept.", "requirement E2";
    BACKUP_KEEP_WAL = "stores.*.backup.keep_wal", Value::Millis(7 * DAY), "How far back every moment can be gone back to.", "requirement E2";
    BACKUP_SHIP = "stores.*.backup.ship", Value::Millis(5 * SECOND), "Time between two shipments of what was written.", "decision 0028";
    BACKUP_BUSY_RATE = "stores.*.backup.busy_rate", Value::Bytes(24 << 20), "How much of a database is read in a second while its app uses it.", "measured, decision 0028";
    BACKUP_WAL_LIMIT = "stores.*.backup.wal_limit", Value::Bytes(4 << 30), "How much of the log may wait while the repository is away.", "decision 0028";
    BACKUP_ON_WAL_LIMIT = "stores.*.backup.on_wal_limit", Value::Text("break"), "What happens when more waits.", "decision 0028";
    BACKUP_REGION = "stores.*.backup.region", Value::Text("us-east-1"), "The region of a bucket for backups.", "decision 0028";
    BACKUP_ACCESS_KEY = "stores.*.backup.access_key_secret", Value::Text("BACKUP_ACCESS_KEY"), "The secret with the id of the access key.", "decision 0028";
    BACKUP_SECRET_KEY = "stores.*.backup.secret_key_secret", Value::Text("BACKUP_SECRET_KEY"), "The secret with the access key's other half.", "decision 0028";
    DRILL_LIGHT = "stores.*.backup.drill.light", Value::Text("0 5 * * * UTC"), "When the newest backup is restored and checked.", "requirement E5";
    DRILL_FULL = "stores.*.backup.drill.full", Value::Text("0 6 * * 7 UTC"), "When every page and index of the restored copy is read.", "decision 0028";
    DRILL_MAX_AGE = "stores.*.backup.drill.max_age", Value::Millis(36 * HOUR), "How old the last proof of a backup may be.", "decision 0028";
    VOLUME_BACKUP_WHEN = "volumes.*.backup.when", Value::Text("0 3 * * * UTC"), "When a snapshot of a volume is taken.", "decision 0030";
    VOLUME_BACKUP_FULL = "volumes.*.backup.full", Value::Text("0 2 * * 7 UTC"), "When every file of a volume is stored again.", "decision 0030";
    VOLUME_BACKUP_KEEP = "volumes.*.backup.keep", Value::Millis(30 * DAY), "How long snapshots are kept.", "requirement E2";
    VOLUME_BACKUP_REGION = "volumes.*.backup.region", Value::Text("us-east-1"), "The region of a bucket for backups.", "decision 0028";
    VOLUME_BACKUP_ACCESS_KEY = "volumes.*.backup.access_key_secret", Value::Text("BACKUP_ACCESS_KEY"), "The secret with the id of the access key.", "decision 0028";
    VOLUME_BACKUP_SECRET_KEY = "volumes.*.backup.secret_key_secret", Value::Text("BACKUP_SECRET_KEY"), "The secret with the access key's other half.", "decision 0028";
    VOLUME_DRILL_LIGHT = "volumes.*.backup.drill.light", Value::Text("0 5 * * * UTC"), "When the newest snapshot is restored and checked.", "requirement E5";
    VOLUME_DRILL_FULL = "volumes.*.backup.drill.full", Value::Text("0 6 * * 7 UTC"), "When every object of the repository is read too.", "decision 0030";
    VOLUME_DRILL_MAX_AGE = "volumes.*.backup.drill.max_age", Value::Millis(36 * HOUR), "How old the last proof of a backup may be.", "decision 0028";
    POOL_MIN = "stores.*.pool.min", Value::Count(0), "Connections that a process keeps while it has nothing to do.", "decision 0024";
    POOL_TIMEOUT = "stores.*.pool.timeout", Value::Millis(5 * SECOND), "How long a process waits for a connection of its own.", "decision 0024";
    POOL_IDLE = "stores.*.pool.idle", Value::Millis(10 * MINUTE), "How long a process keeps a connection that it does not use.", "decision 0024";
    SECRET_LENGTH = "secrets.*.length", Value::Count(32), "Characters of a generated value: of letters and digits that is 190 bits.", "decision 0022";
    SECRET_ALPHABET = "secrets.*.alphabet", Value::Text("alphanumeric"), "What a generated value is made of.", "decision 0022";
    STRATEGY = "deploy.strategy", Value::Text("rolling"), "How a release takes over.", "decoder";
    STEPS = "deploy.steps", Value::Steps(&[5, 25, 100]), "Shares of the requests a canary gets, in percent.", "contract, example";
    HOLD = "deploy.hold", Value::Millis(5 * MINUTE), "How long each step of a canary is watched.", "contract";
    MIN_READY = "deploy.min_ready", Value::Millis(10 * SECOND), "How long an instance must pass its checks without a break before it counts.", "contract";
    STANDBY = "deploy.standby", Value::Millis(10 * MINUTE), "How long the old release stays at hand after the last step.", "contract";
    GATES = "deploy.gates", Value::Words(&["preflight"]), "What a rollout waits for; under `strategy = \"canary\"` also `analysis`.", "decoder";
    HEALTHY_DEADLINE = "deploy.healthy_deadline", Value::Millis(5 * MINUTE), "How long one instance may take to become ready.", "contract";
    PROGRESS_DEADLINE = "deploy.progress_deadline", Value::Millis(10 * MINUTE), "How long a rollout may go on without a newly ready instance before it is taken back.", "contract";
    MAX_SURGE = "deploy.max_surge", Value::Count(1), "How many instances may run above `replicas` in a rolling rollout.", "design";
    MAX_UNAVAILABLE = "deploy.max_unavailable", Value::Count(0), "How many instances may be missing below `replicas` in a rolling rollout.", "design";
    ROLLBACK = "deploy.rollback", Value::Flag(true), "Whether a failed rollout is taken back without asking.", "design";
    PROBE_RATE = "deploy.probe.rate", Value::Text("5/s"), "How often the synthetic probe asks.", "decoder";
    RESTART_BACKOFF_MIN = "restart backoff, first", Value::Millis(SECOND), "Wait before an instance that ended is replaced for the first time; doubles each time, with jitter.", "contract";
    RESTART_BACKOFF_MAX = "restart backoff, longest", Value::Millis(60 * SECOND), "The wait never grows beyond this.", "contract";
    HEADER_READ = "header read", Value::Millis(10 * SECOND), "How long a client may take to send the head of a request.", "contract";
    RETRIES_MAX = "retries", Value::Count(1), "Further attempts for a request that is idempotent or was never sent.", "contract";
    RETRY_BUDGET = "retry budget", Value::Percent(20), "Retries are at most this share of the requests of the last 10 s; 20 are always allowed.", "contract";
    EJECT_FAILURES = "eject after", Value::Count(5), "Failures in a row after which an instance is taken out of rotation.", "contract";
    EJECT_FIRST = "eject for, first", Value::Millis(10 * SECOND), "How long it is taken out for the first time; doubles each time.", "contract";
    EJECT_MAX = "eject for, longest", Value::Millis(300 * SECOND), "The time never grows beyond this.", "contract";
    PAUSE_REQUESTS = "pause, requests", Value::Count(1_000), "Requests that wait at most while a service is paused; further ones get 503 with Retry-After.", "contract";
    PAUSE_BYTES = "pause, bytes", Value::Bytes(64 * MIB), "Bytes of waiting requests at most.", "contract";
    PAUSE_WAIT = "pause, time", Value::Millis(30 * SECOND), "How long a request waits at most.", "contract";
    IMAGES_KEPT = "images kept", Value::Count(5), "Images of each service and job that stay on the host, beside those that a rollback leads to and those that no registry could give again.", "requirement I2, decision 0031";
    RELEASES_KEPT = "releases kept", Value::Count(10), "Releases of an environment that can be gone back to.", "contract";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_prints_as_it_would_be_written() {
        assert_eq!(DRAIN.value.to_string(), "\"30s\"");
        assert_eq!(BODY_MAX.value.to_string(), "\"100MiB\"");
        assert_eq!(GATES.value.to_string(), "[\"preflight\"]");
        assert_eq!(STEPS.value.to_string(), "[5, 25, 100]");
    }

    #[test]
    fn no_name_is_given_twice() {
        let names = ALL
            .iter()
            .map(|setting| setting.name)
            .collect::<std::collections::BTreeSet<_>>();
        assert_eq!(names.len(), ALL.len());
    }
}
