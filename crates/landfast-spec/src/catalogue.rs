//! Every key of the manifest as data. The decoder looks keys up here, the JSON Schema and the reference page
//! are printed from here: what is not in this table does not exist.

use std::{collections::BTreeMap, sync::LazyLock};

use crate::{
    container::Pull,
    defaults::{self, Setting},
    delivery::SecretDelivery,
    spec::{Engine, Gate, MissingFile, Protocol, Strategy},
};

/// One key of the manifest.
#[derive(Debug)]
pub struct Key {
    /// Where it stands; `*` is a name a person chooses: `services.*.health.ready`.
    pub path: &'static str,
    pub kind: Kind,
    pub required: bool,
    pub default: Option<&'static Setting>,
    /// Reserved for a part that does not exist yet; says what to do until then.
    pub later: Option<&'static str>,
    /// The version it appeared in.
    pub since: &'static str,
    pub doc: &'static str,
    /// A value as it is written in TOML.
    pub example: &'static str,
    /// What people write who come from somewhere else.
    pub aliases: &'static [&'static str],
}

impl Key {
    /// The last part of the path.
    pub fn name(&self) -> &'static str {
        self.path
            .rsplit_once('.')
            .map_or(self.path, |(_, name)| name)
    }

    /// The path of the table it stands in; empty at the top.
    pub fn parent(&self) -> &'static str {
        self.path.rsplit_once('.').map_or("", |(parent, _)| parent)
    }

    const fn required(mut self) -> Self {
        self.required = true;
        self
    }

    const fn default(mut self, setting: &'static Setting) -> Self {
        self.default = Some(setting);
        self
    }

    const fn aliases(mut self, aliases: &'static [&'static str]) -> Self {
        self.aliases = aliases;
        self
    }
}

/// What a key's value is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// A checked name.
    Name,
    /// The name of a service.
    ServiceName,
    /// Names of services.
    ServiceNames,
    /// Names of stores.
    StoreNames,
    /// The name of a secret.
    SecretName,
    /// Names of secrets.
    SecretNames,
    /// The name of an image.
    ImageName,
    /// A folder that an image is made from, or a table.
    Build,
    /// Arguments of a build: names to values.
    BuildArguments,
    /// `managed`, or an absolute path on the server's host.
    VolumePlace,
    /// An absolute path in a container.
    ContainerPath,
    /// Several of those.
    ContainerPaths,
    /// Capabilities of Linux.
    Capabilities,
    /// Numbers with dots between them.
    Version,
    /// Settings of a server: names to values.
    Settings,
    /// A path from the manifest's folder.
    ArtifactPath,
    /// An absolute path on the server's host.
    HostPath,
    /// Several of those.
    HostPaths,
    /// argv.
    Argv,
    Port,
    Count {
        min: u32,
        max: u32,
    },
    Flag,
    Duration {
        min_ms: u64,
        max_ms: u64,
    },
    Size {
        min: u64,
    },
    Cpu,
    /// A count, or a percentage as text.
    Share,
    /// Percentages that ascend to 100.
    Steps,
    /// One of a few words.
    Word(&'static [&'static str]),
    /// Words, each at most once; the second list is known but does not exist yet.
    Gates,
    When,
    /// A cron line with a time zone.
    Schedule,
    /// A cron line; without a time zone in UTC.
    ScheduleUtc,
    /// A folder or a bucket for backups.
    BackupPlace,
    Probe,
    Host,
    /// A path prefix of a route.
    RoutePath,
    /// A path that is asked, perhaps with a query.
    RequestPath,
    Url,
    /// `5/s`.
    Rate,
    /// `100/s`, `300/m`, `1000/h`.
    RequestRate,
    /// `client`, `route`, `header:NAME`, `cookie:NAME`.
    CountBy,
    /// Networks in CIDR notation.
    Networks,
    /// Text that can stand in a header.
    Line,
    /// Names of headers.
    FieldNames,
    Methods,
    /// Origins of pages.
    Origins,
    /// `name:hash` of users.
    PasswordHashes,
    /// Names of headers to their values.
    Fields,
    /// Text that is served as it is.
    Page,
    /// The value of a header field.
    FieldValue,
    /// Text, number or switch: the value of a variable.
    Scalar,
    /// Fixed keys.
    Table,
    /// Tables with names a person chooses.
    Tables,
    /// Tables with names of secrets.
    Secrets,
    /// Tables with hosts of registries.
    Registries,
    /// Variables of an environment.
    Variables,
    /// Names to paths, or to tables.
    Volumes,
    /// Overlays by environment.
    Overlays,
}

impl Kind {
    /// Whether it has keys of its own.
    pub fn is_table(self) -> bool {
        matches!(
            self,
            Self::Table
                | Self::Tables
                | Self::Secrets
                | Self::Registries
                | Self::Build
                | Self::BuildArguments
                | Self::Variables
                | Self::Volumes
                | Self::Fields
                | Self::Settings
                | Self::Overlays
        )
    }
}

/// Gates that are named in the design but do not exist yet.
pub const GATES_LATER: &[&str] = &[
    "approval-by",
    "backup-fresh",
    "window",
    "freeze",
    "rehearsal",
    "lint",
    "budget",
];

const SECOND: u64 = 1_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

const fn key(path: &'static str, kind: Kind, doc: &'static str, example: &'static str) -> Key {
    let (required, default, later, aliases) = (false, None, None, [].as_slice());
    Key {
        path,
        kind,
        required,
        default,
        later,
        since: "0.1",
        doc,
        example,
        aliases,
    }
}

const fn later(path: &'static str, doc: &'static str, until_then: &'static str) -> Key {
    let mut key = key(path, Kind::Table, doc, "");
    key.later = Some(until_then);
    key
}

const fn duration(min_ms: u64, max_ms: u64) -> Kind {
    Kind::Duration { min_ms, max_ms }
}

/// Every key, in the order of the reference page.
pub static CATALOGUE: &[Key] = &[
    key("app", Kind::Name, "The name of the app. It becomes part of paths, ids and metrics, so it is not changed later.", "\"flextime\"")
        .required().aliases(&["name", "project", "application"]),

    key("services", Kind::Tables, "Long-running process types of the app, one table each.", "")
        .aliases(&["processes", "service", "apps"]),
    key("services.*.artifact", Kind::ArtifactPath, "The file or folder that is deployed, from the folder of this file. It is copied by its content; instances are plain processes and run only from the copy. A service has `artifact`, `image` or `build`.", "\"target/release/flextime\"")
        .aliases(&["binary", "path", "source", "bin"]),
    key("services.*.image", Kind::ImageName, "The image that instances are containers of: `name`, `name:tag` or `name@sha256:…`, with the registry before it where it is not Docker's. A release keeps what the name meant at the deploy, by digest.", "\"ghcr.io/acme/web:1.4\"")
        .aliases(&["container", "docker"]),
    key("services.*.pull", Kind::Word(Pull::WORDS), "When the registry is asked for `image`. `newer`: at each deploy; where no registry has it and the host does, the host's is taken, and `plan` says so. `missing`: only where the host has none. `always`: at each deploy, or there is none. `never`: it is on the host.", "\"missing\"")
        .default(&defaults::PULL).aliases(&["pull_policy", "image_pull_policy"]),
    key("services.*.build", Kind::Build, "Makes the image from a folder with a Dockerfile before the deploy, where this file is, by the `docker` client: for a server that uses the same Docker. Only the context, or a table.", "\".\"")
        .aliases(&["dockerfile_build"]),
    key("services.*.build.context", Kind::ArtifactPath, "The folder, from the folder of this file.", "\"web\"").default(&defaults::BUILD_CONTEXT).aliases(&["path", "folder", "dir"]),
    key("services.*.build.dockerfile", Kind::ArtifactPath, "The Dockerfile, from the context; `Dockerfile` without it.", "\"deploy/Dockerfile\"").aliases(&["file"]),
    key("services.*.build.target", Kind::Line, "The stage that is built; the last one without it.", "\"runtime\"").aliases(&["stage"]),
    key("services.*.build.args", Kind::BuildArguments, "Arguments of the build, by name. They stay in the image for everybody to see: what is secret goes into `secrets`.", "{ VERSION = \"1.4\" }").aliases(&["arguments", "build_args"]),
    key("services.*.build.secrets", Kind::SecretNames, "Secrets that steps with `RUN --mount=type=secret,id=NAME` may read. They are in no layer, no argument and no cache. BuildKit only.", "[\"NPM_TOKEN\"]").aliases(&["secret"]),
    key("services.*.build.platform", Kind::Line, "What it is built for, where that is not this machine.", "\"linux/arm64\"").aliases(&["arch", "platforms"]),
    key("services.*.command", Kind::Argv, "The program and its arguments, run inside the artifact. Never a shell: `./` is the artifact, other programs are looked up in PATH. Of a container: in place of the image's own.", "[\"./flextime\", \"serve\"]")
        .aliases(&["cmd", "run", "exec", "args", "start"]),
    key("services.*.entrypoint", Kind::Argv, "In place of the image's entrypoint. Containers.", "[\"/app/run\"]"),
    key("services.*.port", Kind::Port, "Says that the service listens. The target chooses the real port of each instance and passes it as `PORT`. Of a container: the port it listens on, which `PORT` says too; nothing is published on the host.", "3000")
        .aliases(&["ports", "listen", "internal_port"]),
    key("services.*.replicas", Kind::Count { min: 1, max: 500 }, "How many instances run.", "3")
        .default(&defaults::REPLICAS).aliases(&["instances", "scale", "count"]),
    key("services.*.resources", Kind::Table, "What one instance may use at most. Without it memory and CPU are not limited, and preflight cannot count them.", "{ cpu = \"500m\", memory = \"512MiB\" }")
        .aliases(&["limits", "resource"]),
    key("services.*.resources.cpu", Kind::Cpu, "Share of CPU it gets at most: cores, or thousandths with `m`.", "\"500m\"").aliases(&["cpus"]),
    key("services.*.resources.memory", Kind::Size { min: 1 << 20 }, "Memory of all its processes together. One that needs more is ended by the kernel, and told as out of memory.", "\"512MiB\"").aliases(&["mem", "ram"]),
    key("services.*.resources.processes", Kind::Count { min: 1, max: 1_000_000 }, "Processes and threads, all together; 4096 without it.", "1000").aliases(&["pids", "pids_limit", "tasks", "tasks_max"]),
    key("services.*.resources.descriptors", Kind::Count { min: 64, max: 1_000_000 }, "Open files and sockets of each process; 65536 without it, or as many as the host gives.", "20000").aliases(&["nofile", "files", "ulimit"]),
    key("services.*.reserve", Kind::Table, "What is kept for one instance when the host is short of it, beside what it may use at most. Containers.", "{ cpu = \"250m\", memory = \"256MiB\" }")
        .aliases(&["reservations", "requests"]),
    key("services.*.reserve.cpu", Kind::Cpu, "Its share of CPU when all want some.", "\"250m\"").aliases(&["cpus"]),
    key("services.*.reserve.memory", Kind::Size { min: 1 << 20 }, "Memory that is not taken from it while others can give some.", "\"256MiB\"").aliases(&["mem", "ram"]),
    key("services.*.sandbox", Kind::Table, "Loosens what an instance is kept from. Without it: a user of its own, no capabilities, and of the host's files only programs, libraries and their settings, its artifact, its volumes and a temporary folder. `plan` and `status` say what this host enforces.", "{ read_only = [\"/srv/models\"] }")
        .aliases(&["jail", "security", "isolation"]),
    key("services.*.sandbox.user", Kind::Word(crate::sandbox::USERS), "`own`: a user of this environment, which nothing else runs as. `server`: the server's user, without capabilities. Managed volumes are handed to the user, so change it by a deploy with `recreate`.", "\"server\"")
        .default(&defaults::SANDBOX_USER).aliases(&["run_as"]),
    key("services.*.sandbox.files", Kind::Word(crate::sandbox::FILES), "`restricted`: only what is named above and below. `host`: whatever its user may.", "\"host\"")
        .default(&defaults::SANDBOX_FILES).aliases(&["filesystem"]),
    key("services.*.sandbox.read_only", Kind::HostPaths, "Further paths on the host it may read and run programs from. They must exist.", "[\"/srv/models\"]").aliases(&["read", "read_only_paths"]),
    key("services.*.sandbox.read_write", Kind::HostPaths, "Further paths on the host it may write too. They must exist.", "[\"/run/shop\"]").aliases(&["write", "read_write_paths"]),
    key("services.*.sandbox.root", Kind::Flag, "A container runs as the image's root, where the image names no other user. Without it, it then runs as a user of this environment.", "true").default(&defaults::SANDBOX_ROOT).aliases(&["run_as_root"]),
    key("services.*.sandbox.writable", Kind::Flag, "A container may write to its image's files. What it writes is gone with the instance.", "true").default(&defaults::SANDBOX_WRITABLE).aliases(&["writable_root"]),
    key("services.*.sandbox.tmpfs", Kind::ContainerPaths, "Folders of a container that are in memory, beside `/tmp`.", "[\"/var/cache/nginx\"]").aliases(&["temporary"]),
    key("services.*.sandbox.capabilities", Kind::Capabilities, "Capabilities of Linux that a container keeps; without it none.", "[\"NET_BIND_SERVICE\"]").aliases(&["cap_add", "caps"]),
    key("services.*.volumes", Kind::Volumes, "Folders outside releases, by name: never cleaned, shared by all releases. An absolute path on the host, or `\"managed\"` for a folder kept by Landfast. An instance finds each in `VOLUME_<NAME>`. A container has it at `/volumes/<name>`, or where a table says.", "{ uploads = \"/data/uploads\" }")
        .aliases(&["mounts", "disks"]),
    key("services.*.volumes.*.from", Kind::VolumePlace, "Where the folder is: `\"managed\"` or an absolute path on the host.", "\"managed\"").required().aliases(&["source", "host"]),
    key("services.*.volumes.*.at", Kind::ContainerPath, "Where it is in the container.", "\"/data\"").aliases(&["target", "path", "to", "mount"]),
    key("services.*.env", Kind::Variables, "Variables of the environment: a value, or a table with `type`, `default`, `value` and `required`.", "{ LOG_LEVEL = \"info\", API_BASE = { required = true } }")
        .aliases(&["environment", "envs", "variables", "vars"]),
    key("services.*.env.*.type", Kind::Word(ENV_TYPES), "What the value must look like.", "\"duration\"").aliases(&["kind"]),
    key("services.*.env.*.default", Kind::Scalar, "The value where no overlay gives another.", "\"1h\""),
    key("services.*.env.*.value", Kind::Scalar, "The value; it wins over `default`.", "\"2h\""),
    key("services.*.env.*.required", Kind::Flag, "A rollout is refused while nothing gives it a value, be it an overlay or a secret.", "true"),
    key("services.*.secrets", Kind::Word(SecretDelivery::WORDS), "How it is given the environment's secrets. `files`: each in a file that only its user can read, with the path in `NAME_FILE`; a secret that `env` names without a value is a variable all the same. `environment`: all of them as variables.", "\"environment\"")
        .default(&defaults::SECRETS).aliases(&["secret", "credentials"]),
    key("services.*.health", Kind::Table, "How an instance is asked whether it is well.", "{ ready = \"http:/ready\", live = \"http:/health\" }")
        .aliases(&["healthcheck", "health_check", "checks", "probes"]),
    key("services.*.health.ready", Kind::Probe, "Whether it may get traffic: `\"http:/path\"`, `\"tcp\"`, `\"none\"`, or for a container `\"image\"`, the image's own HEALTHCHECK.", "\"http:/ready\"")
        .default(&defaults::PROBE_READY).aliases(&["readiness", "path", "startup"]),
    key("services.*.health.live", Kind::Probe, "Whether it is restarted: `\"http:/path\"`, `\"tcp\"`, `\"none\"`, or for a container `\"image\"`.", "\"http:/health\"")
        .default(&defaults::PROBE_LIVE).aliases(&["liveness"]),
    key("services.*.health.interval", duration(100, 5 * MINUTE), "Time between two checks.", "\"2s\"")
        .default(&defaults::PROBE_INTERVAL).aliases(&["period", "every"]),
    key("services.*.health.timeout", duration(10, 5 * MINUTE), "How long one check may take.", "\"2s\"").default(&defaults::PROBE_TIMEOUT),
    key("services.*.health.unhealthy_after", Kind::Count { min: 1, max: 100 }, "Failed checks in a row after which it is unhealthy.", "3")
        .default(&defaults::UNHEALTHY_AFTER).aliases(&["retries", "failure_threshold"]),
    key("services.*.health.healthy_after", Kind::Count { min: 1, max: 100 }, "Passed checks in a row after which it is healthy again.", "1")
        .default(&defaults::HEALTHY_AFTER).aliases(&["success_threshold"]),
    key("services.*.drain", duration(0, HOUR), "How long requests in flight may take once the instance left rotation.", "\"30s\"")
        .default(&defaults::DRAIN).aliases(&["drain_timeout"]),
    key("services.*.stream_drain", duration(0, DAY), "Over how long open WebSockets and SSE streams are ended once the instance left rotation.", "\"60s\"").default(&defaults::STREAM_DRAIN),
    key("services.*.grace", duration(0, HOUR), "Time between SIGTERM and SIGKILL; of a container between the image's stop signal and SIGKILL.", "\"10s\"")
        .default(&defaults::GRACE).aliases(&["stop_timeout", "kill_timeout", "stop_grace_period"]),
    key("services.*.after", Kind::ServiceNames, "Services that move before this one within a rollout.", "[\"api\"]")
        .aliases(&["depends_on", "requires", "needs"]),
    key("services.*.exclusive", Kind::Flag, "Two instances of it must never run at once (one writer only): it moves by pause, stop, start, resume.", "true")
        .default(&defaults::EXCLUSIVE).aliases(&["singleton"]),
    key("services.*.protocol", Kind::Word(Protocol::WORDS), "What the instances speak: HTTP/1.1, or `h2c`, HTTP/2 without TLS, as gRPC servers do. A server that knows only HTTP/2 cannot be asked by an `http:` probe: write `health = { ready = \"tcp\" }`.", "\"h2c\"")
        .default(&defaults::PROTOCOL).aliases(&["grpc", "http2", "scheme"]),
    key("services.*.sticky", Kind::Flag, "Keep each client on its release and its instance by a cookie, as long as they take requests. Clients without the cookie are spread by weight.", "true")
        .default(&defaults::STICKY).aliases(&["session_affinity", "sticky_sessions", "affinity"]),
    key("services.*.uses", Kind::StoreNames, "Stores it may reach. Each store `NAME` gives it `NAME_URL`; the first PostgreSQL, MariaDB or MySQL also `DATABASE_URL`, the first Redis `REDIS_URL`, the first bucket `S3_ENDPOINT` and its companions.", "[\"main\", \"cache\"]")
        .aliases(&["stores", "databases", "links"]),

    key("jobs", Kind::Tables, "Processes that end: smoke tests, scheduled tasks, chores run by hand.", "")
        .aliases(&["job", "tasks", "cron", "hooks"]),
    key("jobs.*.artifact", Kind::ArtifactPath, "As for services.", "\"target/release/flextime\"").aliases(&["binary", "path", "source", "bin"]),
    key("jobs.*.image", Kind::ImageName, "As for services.", "\"ghcr.io/acme/web:1.4\"").aliases(&["container", "docker"]),
    key("jobs.*.pull", Kind::Word(Pull::WORDS), "As for services.", "\"missing\"").default(&defaults::JOB_PULL).aliases(&["pull_policy"]),
    key("jobs.*.build", Kind::Build, "As for services. What is built for several is built once.", "\".\""),
    key("jobs.*.build.context", Kind::ArtifactPath, "As for services.", "\"web\"").default(&defaults::JOB_BUILD_CONTEXT),
    key("jobs.*.build.dockerfile", Kind::ArtifactPath, "As for services.", "\"deploy/Dockerfile\""),
    key("jobs.*.build.target", Kind::Line, "As for services.", "\"runtime\""),
    key("jobs.*.build.args", Kind::BuildArguments, "As for services.", "{ VERSION = \"1.4\" }"),
    key("jobs.*.build.secrets", Kind::SecretNames, "As for services.", "[\"NPM_TOKEN\"]"),
    key("jobs.*.build.platform", Kind::Line, "As for services.", "\"linux/arm64\""),
    key("jobs.*.command", Kind::Argv, "As for services. Exit code 0 is success.", "[\"./flextime\", \"smoke\"]").aliases(&["cmd", "run", "exec"]),
    key("jobs.*.entrypoint", Kind::Argv, "As for services.", "[\"/app/run\"]"),
    key("jobs.*.when", Kind::When, "What starts it: `\"gate:smoke\"`, a cron line with a time zone, or `\"hand\"` (`landfast run JOB`).", "\"0 3 * * * Europe/Berlin\"")
        .default(&defaults::JOB_WHEN).aliases(&["schedule", "cron", "trigger"]),
    key("jobs.*.timeout", duration(SECOND, 7 * DAY), "How long it may take before it is stopped and counts as failed.", "\"10m\"").default(&defaults::JOB_TIMEOUT),
    key("jobs.*.resources", Kind::Table, "As for services.", "{ memory = \"256MiB\" }"),
    key("jobs.*.resources.cpu", Kind::Cpu, "As for services.", "\"500m\""),
    key("jobs.*.resources.memory", Kind::Size { min: 1 << 20 }, "As for services.", "\"256MiB\""),
    key("jobs.*.resources.processes", Kind::Count { min: 1, max: 1_000_000 }, "As for services.", "100"),
    key("jobs.*.resources.descriptors", Kind::Count { min: 64, max: 1_000_000 }, "As for services.", "20000"),
    key("jobs.*.reserve", Kind::Table, "As for services.", "{ memory = \"256MiB\" }"),
    key("jobs.*.reserve.cpu", Kind::Cpu, "As for services.", "\"250m\""),
    key("jobs.*.reserve.memory", Kind::Size { min: 1 << 20 }, "As for services.", "\"256MiB\""),
    key("jobs.*.sandbox", Kind::Table, "As for services.", "{ read_only = [\"/srv/models\"] }"),
    key("jobs.*.sandbox.user", Kind::Word(crate::sandbox::USERS), "As for services.", "\"server\"").default(&defaults::JOB_SANDBOX_USER),
    key("jobs.*.sandbox.files", Kind::Word(crate::sandbox::FILES), "As for services.", "\"host\"").default(&defaults::JOB_SANDBOX_FILES),
    key("jobs.*.sandbox.read_only", Kind::HostPaths, "As for services.", "[\"/srv/models\"]"),
    key("jobs.*.sandbox.read_write", Kind::HostPaths, "As for services.", "[\"/run/shop\"]"),
    key("jobs.*.sandbox.root", Kind::Flag, "As for services.", "true").default(&defaults::JOB_SANDBOX_ROOT),
    key("jobs.*.sandbox.writable", Kind::Flag, "As for services.", "true").default(&defaults::JOB_SANDBOX_WRITABLE),
    key("jobs.*.sandbox.tmpfs", Kind::ContainerPaths, "As for services.", "[\"/var/cache/nginx\"]"),
    key("jobs.*.sandbox.capabilities", Kind::Capabilities, "As for services.", "[\"NET_BIND_SERVICE\"]"),
    key("jobs.*.volumes", Kind::Volumes, "As for services.", "{ uploads = \"/data/uploads\" }"),
    key("jobs.*.volumes.*.from", Kind::VolumePlace, "As for services.", "\"managed\"").required(),
    key("jobs.*.volumes.*.at", Kind::ContainerPath, "As for services.", "\"/data\""),
    key("jobs.*.env", Kind::Variables, "As for services.", "{ LOG_LEVEL = \"info\" }").aliases(&["environment", "variables", "vars"]),
    key("jobs.*.env.*.type", Kind::Word(ENV_TYPES), "As for services.", "\"duration\""),
    key("jobs.*.env.*.default", Kind::Scalar, "As for services.", "\"1h\""),
    key("jobs.*.env.*.value", Kind::Scalar, "As for services.", "\"2h\""),
    key("jobs.*.env.*.required", Kind::Flag, "As for services.", "true"),
    key("jobs.*.uses", Kind::StoreNames, "As for services.", "[\"main\"]").aliases(&["stores", "databases", "links"]),
    key("jobs.*.secrets", Kind::Word(SecretDelivery::WORDS), "As for services.", "\"environment\"").default(&defaults::JOB_SECRETS),

    key("stores", Kind::Tables, "Databases, caches and buckets of the environment: kept when releases come and go, and when the table is removed. Managed ones run on the server's host; `external` ones and buckets are only connected to.", "")
        .aliases(&["databases", "database", "store", "data"]),
    key("stores.*.engine", Kind::Word(Engine::WORDS), "What it is. `postgres`, `mariadb` and `redis` are managed unless `external` names them; `mysql` is external only; `s3` is a bucket somewhere.", "\"postgres\"")
        .required().aliases(&["type", "kind"]),
    key("stores.*.version", Kind::Version, "The major version of a managed server: PostgreSQL 15, MariaDB 10.11 and Redis 7.0 are what Landfast is tested with, and the default where no `image` says otherwise. It never changes in place: restore a backup into a new store.", "\"15\"")
        .aliases(&["major"]),
    key("stores.*.image", Kind::ImageName, "The image that a managed server is a container of: any that has the engine's own programs, such as Docker's own of PostgreSQL, MariaDB and Redis. Its data stays in Landfast's folder on the host. Without it the server is a process of the host. The major version is that of the tag, where `version` does not say it; what a release found the name to mean is kept by digest, and another image of the same major version is taken with the next restart. Services that are containers need it to reach the store.", "\"postgres:15\"")
        .aliases(&["container", "docker"]),
    key("stores.*.pull", Kind::Word(Pull::WORDS), "As for services.", "\"missing\"").default(&defaults::STORE_PULL).aliases(&["pull_policy"]),
    key("stores.*.memory", Kind::Size { min: 64 << 20 }, "Memory of a managed server with all its processes. It is tuned from this, and limited to it.", "\"1GiB\"")
        .default(&defaults::STORE_MEMORY).aliases(&["mem", "ram", "size"]),
    key("stores.*.settings", Kind::Settings, "Settings of a managed server, as its own configuration calls them. They win over what is tuned; what Landfast needs for itself (ports, paths, authentication) is refused. One that needs a restart asks for it: `landfast store restart NAME`.", "{ work_mem = \"16MB\" }")
        .aliases(&["config", "options", "parameters"]),
    key("stores.*.migrations", Kind::ArtifactPath, "The folder of its migrations, from the folder of this file. Copied by its content at the deploy: a release holds its migration set.", "\"migrations\"")
        .aliases(&["migration", "migrate"]),
    key("stores.*.rehearsal", Kind::Table, "What each migration of a managed database may cost. With it every rollout tries its migrations on a copy first, and the `rehearsal` gate refuses what costs more, before anything moved. What is left out is not limited; an empty table only asks that they run.", "{ lock = \"1s\", rewrites = 0 }")
        .aliases(&["budget", "rehearse"]),
    key("stores.*.rehearsal.duration", duration(1, 604_800_000), "How long a migration may take.", "\"30s\"").aliases(&["time"]),
    key("stores.*.rehearsal.lock", duration(1, 604_800_000), "How long a table may be closed to writers or readers. PostgreSQL.", "\"1s\"").aliases(&["locks"]),
    key("stores.*.rehearsal.wal", Kind::Size { min: 1 << 10 }, "How much a migration may write to the server's log. What else the server does meanwhile counts too. PostgreSQL.", "\"1GiB\""),
    key("stores.*.rehearsal.rewrites", Kind::Count { min: 0, max: 1_000 }, "How many tables a migration may write anew.", "0").aliases(&["rewritten"]),
    key("stores.*.pool", Kind::Table, "What processes that use the database are told of keeping connections, in `NAME_POOL_MAX`, `NAME_POOL_MIN`, `NAME_POOL_TIMEOUT_MS` and `NAME_POOL_IDLE_MS` (the first database also with `DATABASE_`): the process has the pool, Landfast the sums. An empty table shares out what the server gives.", "{ max = 10, min = 2 }")
        .aliases(&["pooling", "connections"]),
    key("stores.*.pool.max", Kind::Count { min: 1, max: 10_000 }, "Connections of one process at the most. Without it each release is given half of what a managed server takes, shared among its replicas and jobs, up to 20 each. `plan` and `deploy` refuse what could ask for more than that half.", "10")
        .aliases(&["size", "max_connections", "pool_size"]),
    key("stores.*.pool.min", Kind::Count { min: 0, max: 10_000 }, "Connections of one process while it has nothing to do.", "2").default(&defaults::POOL_MIN).aliases(&["min_idle"]),
    key("stores.*.pool.timeout", duration(SECOND / 10, HOUR), "How long a process waits for a connection of its own.", "\"5s\"").default(&defaults::POOL_TIMEOUT).aliases(&["wait", "acquire_timeout", "connection_timeout"]),
    key("stores.*.pool.idle", duration(SECOND, DAY), "How long a process keeps a connection that it does not use.", "\"10m\"").default(&defaults::POOL_IDLE).aliases(&["idle_timeout"]),
    key("stores.*.external", Kind::Table, "The server is somebody else's: only connect to it. `landfast doctor` says what the login may do.", "{ url_secret = \"MAIN_DATABASE_URL\" }")
        .aliases(&["url"]),
    key("stores.*.external.url_secret", Kind::SecretName, "The secret that holds the address with login and password: `postgres://…`, `mysql://…`, `redis://…`.", "\"MAIN_DATABASE_URL\"")
        .required().aliases(&["url", "secret"]),
    key("stores.*.endpoint", Kind::Url, "Where a bucket's service answers; without it Amazon's own of the `region`.", "\"https://s3.example.com\""),
    key("stores.*.bucket", Kind::Line, "The bucket.", "\"flextime-uploads\""),
    key("stores.*.region", Kind::Line, "The region of a bucket.", "\"eu-central-1\"").default(&defaults::STORE_REGION),
    key("stores.*.path_style", Kind::Flag, "The bucket is the first part of the path instead of the host's name: what most services but Amazon's want. Without the key it is so where there is an `endpoint`.", "true"),
    key("stores.*.access_key_secret", Kind::SecretName, "The secret that holds the id of a bucket's access key.", "\"UPLOADS_ACCESS_KEY\"").aliases(&["access_key"]),
    key("stores.*.secret_key_secret", Kind::SecretName, "The secret that holds the access key's other half.", "\"UPLOADS_SECRET_KEY\"").aliases(&["secret_key"]),
    key("stores.*.rotate", Kind::Schedule, "When the password that instances reach a managed store with is changed, by a rolling restart. A time that was missed is made up for once, and one that comes while a rollout is under way waits for its end.", "\"0 3 1 * * Europe/Berlin\"")
        .aliases(&["rotation", "rotate_password"]),
    key("stores.*.backup", Kind::Table, "Backups of a PostgreSQL. Of a managed one: everything that is written, shipped within seconds, and base backups to begin a restore with. Of an external one: dumps (`pg_dump`), and the time between two is what a lost server costs. They are sealed with the key of `landfast backup key export`, and proven by drills.", "{ to = \"/backup/flextime\" }")
        .aliases(&["backups", "archive"]),
    key("stores.*.backup.to", Kind::BackupPlace, "Where they lie: an absolute path (of another disk, or mounted from another machine), or `s3://BUCKET/PREFIX`.", "\"s3://bucket/flextime\"")
        .required().aliases(&["repository", "repo", "target", "destination"]),
    key("stores.*.backup.full", Kind::ScheduleUtc, "When a backup is made that needs no older object. Of an external server: when it is dumped.", "\"0 3 * * *\"").default(&defaults::BACKUP_FULL).aliases(&["schedule", "when", "cron"]),
    key("stores.*.backup.incremental", Kind::ScheduleUtc, "When one is made that stores changed pages alone, which shortens a restore: less is replayed. The server is read whole for it.", "\"0 * * * *\""),
    key("stores.*.backup.keep", duration(HOUR, 10 * 366 * DAY), "How long backups are kept: one for each day. The newest good one, and what it needs, never goes.", "\"30d\"").default(&defaults::BACKUP_KEEP).aliases(&["retention"]),
    key("stores.*.backup.keep_wal", duration(HOUR, 10 * 366 * DAY), "How far back every moment can be gone back to.", "\"7d\"").default(&defaults::BACKUP_KEEP_WAL).aliases(&["wal"]),
    key("stores.*.backup.ship", duration(SECOND, MINUTE), "Time between two shipments of what was written, and between two heartbeats. What was committed since the last one is lost with the host.", "\"5s\"").default(&defaults::BACKUP_SHIP).aliases(&["every", "interval"]),
    key("stores.*.backup.verify", Kind::ScheduleUtc, "When every object of the repository is read and checked. A full drill does that too; without this line nothing else does by itself.", "\"0 5 * * *\""),
    key("stores.*.backup.busy_rate", Kind::Size { min: 1 << 20 }, "How much of the database is read in a second while its app uses it, so that the app does not notice; more where it would take longer than half an hour. Otherwise it is read as fast as it goes.", "\"24MiB\"").default(&defaults::BACKUP_BUSY_RATE).aliases(&["max_rate", "rate"]),
    key("stores.*.backup.wal_limit", Kind::Size { min: 64 << 20 }, "How much of the log may wait while the repository is away, so that the disk does not fill. What happens beyond it, `on_wal_limit` says.", "\"4GiB\"").default(&defaults::BACKUP_WAL_LIMIT),
    key("stores.*.backup.on_wal_limit", Kind::Word(&["break", "stop-writes"]), "What happens when more of the log waits than `wal_limit`. `break`: the log is given up, the app writes on, and a new full backup begins; moments between are lost. `stop-writes`: nothing is given up; the server becomes read-only and whoever writes all the same is ended, until the archive has caught up. Either is told at once.", "\"stop-writes\"").default(&defaults::BACKUP_ON_WAL_LIMIT),
    key("stores.*.backup.endpoint", Kind::Url, "Where a bucket's service answers; without it Amazon's own of the `region`.", "\"https://s3.example.com\""),
    key("stores.*.backup.region", Kind::Line, "The region of a bucket.", "\"eu-central-1\"").default(&defaults::BACKUP_REGION),
    key("stores.*.backup.path_style", Kind::Flag, "The bucket is the first part of the path instead of the host's name. Without the key it is so where there is an `endpoint`.", "true"),
    key("stores.*.backup.ca", Kind::HostPath, "A file with the certificates, in PEM, of the authority that the endpoint's certificate is from.", "\"/etc/ssl/minio.pem\""),
    key("stores.*.backup.access_key_secret", Kind::SecretName, "The secret that holds the id of the bucket's access key.", "\"BACKUP_ACCESS_KEY\"").default(&defaults::BACKUP_ACCESS_KEY).aliases(&["access_key"]),
    key("stores.*.backup.secret_key_secret", Kind::SecretName, "The secret that holds the access key's other half.", "\"BACKUP_SECRET_KEY\"").default(&defaults::BACKUP_SECRET_KEY).aliases(&["secret_key"]),
    key("stores.*.backup.drill", Kind::Table, "When the newest backup is restored into a server of its own, checked and removed.", "{ light = \"0 5 * * *\", max_age = \"36h\" }")
        .aliases(&["drills", "test", "verify"]),
    key("stores.*.backup.drill.light", Kind::ScheduleUtc, "When it is restored, replayed to the newest moment, and asked the `checks`.", "\"0 5 * * *\"").default(&defaults::DRILL_LIGHT),
    key("stores.*.backup.drill.full", Kind::ScheduleUtc, "When every page and every index is read in it too.", "\"0 6 * * 0\"").default(&defaults::DRILL_FULL),
    key("stores.*.backup.drill.max_age", duration(HOUR, 366 * DAY), "A last success longer ago than this is stale: it is told, and the gate `backup` refuses.", "\"36h\"").default(&defaults::DRILL_MAX_AGE),
    key("stores.*.backup.drill.checks", Kind::Tables, "Questions to the restored database, by name.", ""),
    key("stores.*.backup.drill.checks.*.sql", Kind::Line, "A statement; the first column of its first row is its answer. It may write: the copy is removed.", "\"SELECT count(*) > 1000 FROM bookings\"").required().aliases(&["query"]),
    key("stores.*.backup.drill.checks.*.expect", Kind::Line, "The answer, as text: `t` and `f` for boolean ones.", "\"t\"").required().aliases(&["expected", "equals"]),

    key("routes", Kind::Tables, "Hosts and paths that lead to services.", "").aliases(&["route", "ingress", "domains", "http"]),
    key("routes.*.host", Kind::Host, "The host: `api.example.com`, `*.example.com` (exactly one more label) or `*` for any.", "\"api.flextime.example\"")
        .required().aliases(&["domain", "hostname", "hosts"]),
    key("routes.*.path", Kind::RoutePath, "A path prefix that ends at a segment: `/api` is for `/api` and `/api/x`, not for `/apix`. The longest one wins.", "\"/\"")
        .default(&defaults::ROUTE_PATH).aliases(&["prefix"]),
    key("routes.*.service", Kind::ServiceName, "The service that answers.", "\"api\"").required().aliases(&["to", "backend", "target", "upstream"]),
    key("routes.*.websocket", Kind::Flag, "Whether WebSocket upgrades are passed on; refused with 403 otherwise.", "true")
        .default(&defaults::WEBSOCKET).aliases(&["websockets", "ws"]),
    key("routes.*.tls", Kind::Table, "The certificate of the host, from files.", "{ certificate = \"/etc/tls/api.pem\", key = \"/etc/tls/api.key\" }").aliases(&["ssl", "https"]),
    key("routes.*.tls.certificate", Kind::HostPath, "The certificate with its chain: an absolute path of a PEM file on the server's host.", "\"/etc/tls/api.pem\"").required().aliases(&["cert", "chain"]),
    key("routes.*.tls.key", Kind::HostPath, "Its private key: an absolute path of a PEM file on the server's host.", "\"/etc/tls/api.key\"").required().aliases(&["private_key"]),
    key("routes.*.acme", Kind::Flag, "Obtain and renew the host's certificate by ACME (Let's Encrypt, unless the server is told another authority). On for public hosts without `tls`: exact names that are neither IP addresses nor reserved (`.example`, `.test`, `.local`, `.internal`, …). Off leaves the host without TLS; on, for a private authority, works with any exact name.", "false").aliases(&["auto_tls", "letsencrypt", "autocert", "auto_https"]),
    key("routes.*.https_only", Kind::Flag, "Answer plain HTTP with a redirect to HTTPS. On where the route has `tls` or `acme`, off otherwise. A host whose certificate comes by ACME is served over plain HTTP until the first certificate is there.", "true").aliases(&["redirect", "force_https", "https_redirect"]),
    key("routes.*.limits", Kind::Table, "What a request may weigh.", "{ body = \"100MiB\" }").aliases(&["limit"]),
    key("routes.*.limits.body", Kind::Size { min: 0 }, "The largest request body.", "\"100MiB\"").default(&defaults::BODY_MAX).aliases(&["max_body_size", "size"]),
    key("routes.*.limits.rate", Kind::RequestRate, "How many requests each client may make; further ones are answered 429 with `Retry-After`.", "\"100/s\"").aliases(&["requests", "rps", "ratelimit"]),
    key("routes.*.limits.burst", Kind::Count { min: 1, max: 1_000_000 }, "How many of them may come at once after a time of quiet. Without it, as many as `rate` names.", "200"),
    key("routes.*.limits.by", Kind::CountBy, "What `rate` counts by: `\"client\"` (the address; of IPv6 the first 64 bits), `\"header:NAME\"` or `\"cookie:NAME\"` (its value; requests without it by client), or `\"route\"` (all together). A client can make up keys: limit with `total` too.", "\"header:X-Api-Key\"").default(&defaults::RATE_BY).aliases(&["key", "per"]),
    key("routes.*.limits.total", Kind::RequestRate, "How many requests all clients together may make, beside `rate`.", "\"2000/s\""),
    key("routes.*.limits.total_burst", Kind::Count { min: 1, max: 1_000_000 }, "The burst of `total`.", "4000"),
    key("routes.*.allow", Kind::Networks, "The networks whose clients may come, in CIDR notation; others are answered 403. For a path alone, make a route of the path. Behind a balancer, start the server with `--trusted-proxies`.", "[\"10.0.0.0/8\", \"2001:db8::/32\"]").aliases(&["allow_from", "whitelist", "allowlist", "ips"]),
    key("routes.*.auth", Kind::Table, "Ask for a name and a password (Basic authentication), as for a staging environment. They are checked here and do not reach the service. Serve such a route over HTTPS.", "{ users = [\"ann:$2y$10$abcdefghijklmnopqrstuujydOTSfIH/d5oUHpsygqV5X9xJLQc6e\"] }").aliases(&["basic_auth", "password", "htpasswd"]),
    key("routes.*.auth.users", Kind::PasswordHashes, "Who may come: `name:hash` as `htpasswd -nB NAME` prints it, with bcrypt (cost 4 to 14) or Argon2. Never a password.", "[\"ann:$2y$10$abcdefghijklmnopqrstuujydOTSfIH/d5oUHpsygqV5X9xJLQc6e\"]").required().aliases(&["user", "credentials"]),
    key("routes.*.auth.realm", Kind::Line, "What the browser calls it.", "\"staging\"").default(&defaults::AUTH_REALM),
    key("routes.*.cors", Kind::Table, "Which pages of other origins may read answers. Preflights are answered here; what the service says of it is replaced.", "{ origins = [\"https://app.example.com\"] }"),
    key("routes.*.cors.origins", Kind::Origins, "Their origins: `https://app.example.com`, `https://*.example.com` (exactly one more label) or `*` for all.", "[\"https://app.example.com\"]").required().aliases(&["allow_origins", "origin"]),
    key("routes.*.cors.methods", Kind::Methods, "The methods they may use.", "[\"GET\", \"POST\", \"DELETE\"]").default(&defaults::CORS_METHODS).aliases(&["allow_methods"]),
    key("routes.*.cors.headers", Kind::FieldNames, "The headers they may send beside the harmless ones; `*` for all but `Authorization`.", "[\"content-type\", \"authorization\"]").aliases(&["allow_headers"]),
    key("routes.*.cors.expose", Kind::FieldNames, "The headers of answers they may read beside the harmless ones.", "[\"x-total-count\"]").aliases(&["expose_headers"]),
    key("routes.*.cors.credentials", Kind::Flag, "Whether cookies and passwords go along. Not with the origin `*`.", "true").default(&defaults::CORS_CREDENTIALS).aliases(&["allow_credentials"]),
    key("routes.*.cors.max_age", duration(0, DAY), "How long browsers may remember the answer to a preflight.", "\"10m\"").default(&defaults::CORS_MAX_AGE),
    key("routes.*.security", Kind::Table, "Security headers of all answers, where the service does not set them itself. An empty table sends the defaults; without the table nothing is sent.", "{ hsts = \"365d\", frame = \"deny\" }").aliases(&["security_headers"]),
    key("routes.*.security.hsts", duration(0, 800 * DAY), "How long browsers come by HTTPS only (`Strict-Transport-Security`); sent over HTTPS alone. `\"0s\"` sends none.", "\"365d\"").default(&defaults::HSTS),
    key("routes.*.security.hsts_subdomains", Kind::Flag, "Whether that is so for all subdomains too.", "true").default(&defaults::HSTS_SUBDOMAINS),
    key("routes.*.security.frame", Kind::Word(FRAMES), "Who may show the pages in a frame (`X-Frame-Options` and `frame-ancestors`).", "\"deny\"").default(&defaults::FRAME),
    key("routes.*.security.referrer", Kind::Word(REFERRERS), "What links tell of where they were followed (`Referrer-Policy`).", "\"no-referrer\"").default(&defaults::REFERRER),
    key("routes.*.security.csp", Kind::Line, "A `Content-Security-Policy`. `frame-ancestors` is added where it has none.", "\"default-src 'self'\""),
    key("routes.*.security.overwrite", Kind::Flag, "Replace what the service sets itself.", "true").default(&defaults::SECURITY_OVERWRITE),
    key("routes.*.request_headers", Kind::Table, "Headers of requests, on their way to the service.", "{ set = { X-Env = \"staging\" } }"),
    key("routes.*.request_headers.set", Kind::Fields, "Set, in the place of what the client sent.", "{ X-Env = \"staging\" }"),
    key("routes.*.request_headers.append", Kind::Fields, "Added to what the client sent.", "{ X-Via = \"edge\" }").aliases(&["add"]),
    key("routes.*.request_headers.remove", Kind::FieldNames, "Taken away.", "[\"X-Debug\"]").aliases(&["delete", "unset"]),
    key("routes.*.response_headers", Kind::Table, "Headers of answers, on their way to the client.", "{ remove = [\"Server\"] }").aliases(&["headers"]),
    key("routes.*.response_headers.set", Kind::Fields, "Set, in the place of what the service sent.", "{ Cache-Control = \"no-store\" }"),
    key("routes.*.response_headers.append", Kind::Fields, "Added to what the service sent.", "{ Link = \"</a.css>; rel=preload\" }").aliases(&["add"]),
    key("routes.*.response_headers.remove", Kind::FieldNames, "Taken away.", "[\"Server\"]").aliases(&["delete", "unset"]),
    key("routes.*.timeouts", Kind::Table, "How long each part of an exchange may take.", "{ first_byte = \"60s\" }").aliases(&["timeout"]),
    key("routes.*.timeouts.connect", duration(10, 10 * MINUTE), "Connecting to an instance.", "\"5s\"").default(&defaults::UPSTREAM_CONNECT),
    key("routes.*.timeouts.first_byte", duration(10, DAY), "From the request to the first byte of its answer.", "\"60s\"").default(&defaults::UPSTREAM_FIRST_BYTE).aliases(&["response", "read"]),
    key("routes.*.timeouts.idle", duration(100, DAY), "Silence within a body.", "\"75s\"").default(&defaults::IDLE),
    key("routes.*.compress", Kind::Flag, "Compress answers of text (HTML, JSON, scripts, …) of 1 KiB or more with zstd or gzip, as the client asks. What is coded already, partial, an event stream, or marked `Cache-Control: no-transform` is left alone. Do not turn it on where pages of secrets repeat what a request said (BREACH).", "true")
        .default(&defaults::COMPRESS).aliases(&["compression", "gzip", "encode"]),
    key("routes.*.files", Kind::Table, "Static files that the proxy serves itself, before the service is asked. They are part of the release; in a rollout the weights decide whose page is served, and what one release lacks is taken from the other until the seal.", "{ folder = \"public\", cache_control = \"public, max-age=31536000, immutable\" }")
        .aliases(&["static", "root", "public", "assets"]),
    key("routes.*.files.folder", Kind::ArtifactPath, "The folder, from the folder of this file; its content stands at the route's `path`. Copied by its content at the deploy. `index.html` answers for its folder; a file beside it with `.br`, `.zst` or `.gz` behind its name is what clients get that take that coding. Hidden files and symbolic links are not served.", "\"public\"")
        .required().aliases(&["path", "root", "dir", "directory"]),
    key("routes.*.files.missing", Kind::Word(MissingFile::WORDS), "What follows where no file has the path: ask the `service`; `not-found`; or `index`, the top `index.html` where a page was asked for, for apps that route in the browser.", "\"index\"")
        .default(&defaults::FILES_MISSING).aliases(&["fallback", "try_files", "spa", "not_found"]),
    key("routes.*.files.cache_control", Kind::FieldValue, "The header `Cache-Control` of files. Pages (HTML) always get `no-cache`, so that a new release is seen.", "\"public, max-age=31536000, immutable\"")
        .default(&defaults::FILES_CACHE_CONTROL).aliases(&["cache", "max_age", "expires"]),
    key("routes.*.error_pages", Kind::ArtifactPath, "A folder with pages for errors of the proxy itself, as far as they are there: `404.html` (a file is missing), `502.html`, `503.html`, `504.html`, and `maintenance.html` for a stopped app without `maintenance`. At most 64 KiB each, whole in themselves; copied at the deploy. What an instance answers is never replaced.", "\"errors\"")
        .aliases(&["errors", "error_page"]),
    key("routes.*.maintenance", Kind::Page, "The page (HTML, not a path) that is served with 503 while the app is stopped.", "\"<h1>Back at noon</h1>\"").aliases(&["maintenance_page"]),

    key("deploy", Kind::Table, "How the environment moves from one release to the next.", "").aliases(&["deployment", "rollout", "update"]),
    key("deploy.strategy", Kind::Word(Strategy::WORDS), "How a release takes over.", "\"canary\"").default(&defaults::STRATEGY),
    key("deploy.steps", Kind::Steps, "Shares of the requests a canary gets, in percent, ascending, the last 100.", "[5, 25, 100]").default(&defaults::STEPS).aliases(&["weights"]),
    key("deploy.hold", duration(0, 7 * DAY), "How long each step of a canary is watched.", "\"5m\"").default(&defaults::HOLD).aliases(&["pause"]),
    key("deploy.min_ready", duration(0, HOUR), "How long an instance must pass its checks without a break before it counts.", "\"10s\"").default(&defaults::MIN_READY),
    key("deploy.standby", duration(0, 30 * DAY), "How long the old release stays at hand before the rollout is sealed.", "\"10m\"").default(&defaults::STANDBY),
    key("deploy.gates", Kind::Gates, "What a rollout waits for. Under `strategy = \"canary\"` the default has `analysis` too.", "[\"preflight\", \"smoke\", \"analysis\"]").default(&defaults::GATES),
    key("deploy.healthy_deadline", duration(SECOND, DAY), "How long one instance may take to become ready.", "\"5m\"").default(&defaults::HEALTHY_DEADLINE),
    key("deploy.progress_deadline", duration(SECOND, 7 * DAY), "How long a rollout may go on without a newly ready instance before it is taken back.", "\"10m\"").default(&defaults::PROGRESS_DEADLINE),
    key("deploy.max_surge", Kind::Share, "Instances above `replicas` in a rolling rollout: a count, or a percentage, rounded up.", "\"25%\"").default(&defaults::MAX_SURGE),
    key("deploy.max_unavailable", Kind::Share, "Instances missing below `replicas` in a rolling rollout: a count, or a percentage, rounded down.", "0").default(&defaults::MAX_UNAVAILABLE),
    key("deploy.rollback", Kind::Flag, "Whether a failed rollout is taken back without asking.", "true").default(&defaults::ROLLBACK).aliases(&["auto_rollback"]),
    key("deploy.probe", Kind::Table, "Synthetic requests that give the analysis something to measure where traffic is thin.", "{ path = \"/ready\", rate = \"5/s\" }"),
    key("deploy.probe.path", Kind::RequestPath, "What is asked, with GET.", "\"/ready\"").required(),
    key("deploy.probe.rate", Kind::Rate, "How often, for each release.", "\"5/s\"").default(&defaults::PROBE_RATE),
    key("deploy.webhook", Kind::Url, "Gets one POST with the ledger for each rollout that ended.", "\"https://chat.example.com/hooks/deploys\"").aliases(&["notify", "webhooks", "hook"]),
    later("deploy.window", "Maintenance windows and freezes.", "until then use the gate `approval`"),
    later("deploy.backup", "A fresh backup before each rollout.", "write gates = [\"backup\"]: a deploy is refused while backups are not fresh and proven"),

    key("volumes", Kind::Tables, "Volumes that are backed up, by the names that services and jobs give them. Where they lie is said there.", "")
        .aliases(&["volume"]),
    key("volumes.*.backup", Kind::Table, "Backups of a volume: snapshots, in which what has not changed is not stored again. Databases of SQLite in it are taken whole while they are written. Sealed and proven as those of stores.", "{ to = \"/backup/flextime\" }")
        .aliases(&["backups", "archive"]),
    key("volumes.*.backup.to", Kind::BackupPlace, "As for stores.", "\"s3://bucket/flextime\"")
        .required().aliases(&["repository", "destination", "url"]),
    key("volumes.*.backup.when", Kind::ScheduleUtc, "When a snapshot is taken that stores what changed. The time between two is what a lost host costs.", "\"0 * * * *\"").default(&defaults::VOLUME_BACKUP_WHEN).aliases(&["schedule", "cron", "incremental"]),
    key("volumes.*.backup.full", Kind::ScheduleUtc, "When every file is read and stored again, so that no older object is needed.", "\"0 2 * * 7\"").default(&defaults::VOLUME_BACKUP_FULL),
    key("volumes.*.backup.keep", duration(HOUR, 10 * 366 * DAY), "As for stores.", "\"30d\"").default(&defaults::VOLUME_BACKUP_KEEP).aliases(&["retention"]),
    key("volumes.*.backup.endpoint", Kind::Url, "As for stores.", "\"https://s3.example.com\""),
    key("volumes.*.backup.region", Kind::Line, "As for stores.", "\"eu-central-1\"").default(&defaults::VOLUME_BACKUP_REGION),
    key("volumes.*.backup.path_style", Kind::Flag, "As for stores.", "true"),
    key("volumes.*.backup.ca", Kind::HostPath, "As for stores.", "\"/etc/ssl/minio.pem\""),
    key("volumes.*.backup.access_key_secret", Kind::SecretName, "As for stores.", "\"BACKUP_ACCESS_KEY\"").default(&defaults::VOLUME_BACKUP_ACCESS_KEY).aliases(&["access_key"]),
    key("volumes.*.backup.secret_key_secret", Kind::SecretName, "As for stores.", "\"BACKUP_SECRET_KEY\"").default(&defaults::VOLUME_BACKUP_SECRET_KEY).aliases(&["secret_key"]),
    key("volumes.*.backup.drill", Kind::Table, "When the newest snapshot is restored into a folder of its own, its databases are checked, and it is removed.", "{ light = \"0 5 * * *\", max_age = \"36h\" }")
        .aliases(&["drills", "test", "verify"]),
    key("volumes.*.backup.drill.light", Kind::ScheduleUtc, "When it is restored and checked.", "\"0 5 * * *\"").default(&defaults::VOLUME_DRILL_LIGHT),
    key("volumes.*.backup.drill.full", Kind::ScheduleUtc, "When every object of the repository is read too.", "\"0 6 * * 0\"").default(&defaults::VOLUME_DRILL_FULL),
    key("volumes.*.backup.drill.max_age", duration(HOUR, 366 * DAY), "As for stores.", "\"36h\"").default(&defaults::VOLUME_DRILL_MAX_AGE),

    key("secrets", Kind::Secrets, "What is done with secrets by themselves, by their names. Their values are never in this file: `landfast secret set NAME`.", ""),
    key("secrets.*.rotate", Kind::Schedule, "When it gets another generated value, which a rolling rollout brings to the instances. Only for secrets that nobody else must be told of. Times are kept as for `stores.*.rotate`.", "\"0 3 1 * * Europe/Berlin\"").required()
        .aliases(&["rotation", "schedule", "cron"]),
    key("secrets.*.length", Kind::Count { min: 16, max: 4_096 }, "Characters of a generated value.", "64").default(&defaults::SECRET_LENGTH),
    key("secrets.*.alphabet", Kind::Word(crate::spec::ALPHABETS), "What a generated value is made of.", "\"hex\"").default(&defaults::SECRET_ALPHABET),

    key("registries", Kind::Registries, "Logins for registries of images, by their hosts: `[registries.\"ghcr.io\"]`. Without one the login of the server's user counts (`docker login`).", "")
        .aliases(&["registry", "docker"]),
    key("registries.*.user_secret", Kind::SecretName, "The secret that holds the user's name.", "\"GHCR_USER\"").required().aliases(&["user", "username"]),
    key("registries.*.password_secret", Kind::SecretName, "The secret that holds the password or token. Neither is given to the app.", "\"GHCR_TOKEN\"").required().aliases(&["password", "token"]),

    key("environments", Kind::Overlays, "Places the app runs. Each holds keys that replace those above for that place, most easily as dotted keys: `services.api.replicas = 6`. A file without any has one, `production`.", "")
        .aliases(&["environment", "env", "envs"]),
];

/// Who may show a page in a frame.
const FRAMES: &[&str] = &["deny", "same-origin", "any"];

/// Values of `Referrer-Policy`.
const REFERRERS: &[&str] = &[
    "no-referrer",
    "no-referrer-when-downgrade",
    "origin",
    "origin-when-cross-origin",
    "same-origin",
    "strict-origin",
    "strict-origin-when-cross-origin",
    "unsafe-url",
];

/// Words for the type of a variable.
pub const ENV_TYPES: &[&str] = &[
    "string", "integer", "number", "boolean", "duration", "size", "url",
];

type Children = BTreeMap<&'static str, BTreeMap<&'static str, &'static Key>>;

static CHILDREN: LazyLock<Children> = LazyLock::new(|| {
    let mut children = Children::new();
    for key in CATALOGUE {
        children
            .entry(key.parent())
            .or_default()
            .insert(key.name(), key);
    }
    children
});

/// The key `name` of the table at `parent`, when there is one.
pub(crate) fn child(parent: &str, name: &str) -> Option<&'static Key> {
    CHILDREN.get(parent)?.get(name).copied()
}

/// All keys of the table at `parent`, in order of name.
pub(crate) fn children(parent: &str) -> impl Iterator<Item = &'static Key> {
    CHILDREN
        .get(parent)
        .into_iter()
        .flat_map(|keys| keys.values().copied())
}

/// What to write for a key that does not exist.
pub(crate) fn suggestion(parent: &str, unknown: &str) -> Option<String> {
    let folded = unknown.to_lowercase().replace('-', "_");
    let alias = children(parent).find(|key| key.aliases.contains(&folded.as_str()));
    let usable = || children(parent).filter(|key| key.later.is_none());
    if let Some(key) = alias.or_else(|| usable().find(|key| key.name() == folded)) {
        return Some(format!("did you mean `{}`?", key.name()));
    }
    if let Some(name) = closest(&folded, usable().map(Key::name)) {
        return Some(format!("did you mean `{name}`?"));
    }
    // Known, but somewhere else.
    let elsewhere = CATALOGUE
        .iter()
        .find(|key| key.name() == folded && key.later.is_none() && !key.path.contains(".env."));
    elsewhere.map(|key| match key.parent() {
        "" => format!("`{folded}` stands at the top of the file, before the first table"),
        parent => format!("`{folded}` is a key of `[{}]`", parent.replace('*', "NAME")),
    })
}

/// The word a person most likely meant.
pub(crate) fn closest<'w>(word: &str, known: impl Iterator<Item = &'w str>) -> Option<&'w str> {
    let scored = known.map(|one| (strsim::damerau_levenshtein(word, one), one));
    let (distance, best) = scored.min_by_key(|(distance, _)| *distance)?;
    // A third of the letters may be wrong: more, and the guess is noise.
    let allowed = (word.chars().count().max(best.chars().count()) / 3).max(1);
    (distance <= allowed).then_some(best)
}

/// Whether a gate is one that exists now.
pub(crate) fn gate(word: &str) -> Option<Gate> {
    Gate::from_word(word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::EnvType;

    #[test]
    fn every_table_but_the_open_ones_has_keys_and_every_key_a_table() {
        for key in CATALOGUE {
            if key.kind == Kind::Table && key.later.is_none() {
                assert!(children(key.path).count() > 0, "{}", key.path);
            }
            let parent = key.parent().trim_end_matches(".*");
            let exists = parent.is_empty() || CATALOGUE.iter().any(|other| other.path == parent);
            assert!(exists, "{} has no table", key.path);
            assert!(key.doc.ends_with('.'), "{}", key.path);
        }
    }

    #[test]
    fn defaults_of_keys_are_named_after_them() {
        for key in CATALOGUE {
            assert!(
                key.default.is_none_or(|setting| setting.name == key.path),
                "{}",
                key.path
            );
        }
    }

    #[test]
    fn words_of_types_are_those_of_the_types() {
        assert_eq!(ENV_TYPES, EnvType::ALL.map(EnvType::word));
    }

    #[test]
    fn guesses_only_what_is_near() {
        assert_eq!(
            suggestion("services.*", "replcas").as_deref(),
            Some("did you mean `replicas`?")
        );
        assert_eq!(
            suggestion("services.*", "cmd").as_deref(),
            Some("did you mean `command`?")
        );
        let elsewhere = suggestion("deploy", "drain");
        assert_eq!(
            elsewhere.as_deref(),
            Some("`drain` is a key of `[services.NAME]`")
        );
        assert_eq!(suggestion("deploy", "quux"), None);
    }
}
