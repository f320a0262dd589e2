//! The codes of diagnostics. A code keeps its number and its meaning for ever; one that is no longer used
//! leaves a gap.

use serde::{Deserialize, Serialize};

use crate::diagnostic::Severity;

macro_rules! codes {
    ($($variant:ident = $number:literal, $severity:ident, $title:literal, $explanation:literal;)*) => {
        /// What is wrong, as a stable code: `LF003`.
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        pub enum Code {
            $(#[doc = $explanation] #[serde(rename = $number)] $variant,)*
        }

        impl Code {
            /// Every code, in order of number.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The code as it is printed.
            pub const fn number(self) -> &'static str {
                match self { $(Self::$variant => $number,)* }
            }

            /// The problem in a few words.
            pub const fn title(self) -> &'static str {
                match self { $(Self::$variant => $title,)* }
            }

            /// What it means and what to do.
            pub const fn explain(self) -> &'static str {
                match self { $(Self::$variant => $explanation,)* }
            }

            /// How much it weighs. It is the same wherever the code appears.
            pub const fn severity(self) -> Severity {
                match self { $(Self::$variant => Severity::$severity,)* }
            }

            /// Reads `LF003` (or `lf003`), for `landfast explain`.
            pub fn from_number(number: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|code| code.number().eq_ignore_ascii_case(number))
            }
        }

        impl std::fmt::Display for Code {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.number())
            }
        }
    };
}

codes! {
    Syntax = "LF001", Error, "the file is not TOML",
        "The line breaks the grammar of TOML: a quote, a bracket or an equals sign is missing, or a value is written in a way TOML does not know. Text is always in quotes: `host = \"api.example.com\"`. The line is left out, and the rest of the file is checked without it.";
    DuplicateKey = "LF002", Error, "a key or table is there twice",
        "TOML allows each key and each table once. Put what both say into one.";
    UnknownKey = "LF003", Error, "the key is not known",
        "The manifest has no such key at this place. Unknown keys are refused, because a key with a slip in its name would otherwise have no effect and nobody would notice.";
    NotYet = "LF004", Error, "the key or word belongs to a part that does not exist yet",
        "The name is reserved for a part of Landfast that this version does not have. It is refused instead of ignored, so that nobody relies on a backup, a gate or a limit that is not there.";
    WrongType = "LF005", Error, "the value is of the wrong type",
        "The key wants another type of value: text in quotes, a whole number, `true` or `false`, a list in `[]`, or a table in `{}`.";
    MissingKey = "LF006", Error, "a key is missing",
        "The table cannot be used without this key, and there is no default for it.";
    MissingUnit = "LF007", Error, "a number has no unit",
        "Durations, sizes, shares of CPU and rates are written as text with a unit, such as `\"30s\"`, `\"512MiB\"`, `\"500m\"` or `\"5/s\"`, so that nobody has to guess whether 30 are seconds or milliseconds.";
    BadValue = "LF008", Error, "the value cannot be read",
        "The value has the right type but not the right form. Durations: `500ms`, `30s`, `5m`, `1h 30m`, `7d`. Sizes: `64KiB`, `512MiB`, `2GB`. CPU: `2`, `0.5`, `500m`. Rates: `5/s`. Percentages: `25%`.";
    BadName = "LF009", Error, "the name is not allowed",
        "Names of apps, services, jobs, routes, volumes and environments are made of `a` to `z`, `0` to `9` and `-`, start with a letter, do not end with `-`, and have at most 40 characters: they become parts of paths, labels and ids. Names of variables are made of letters, digits and `_` and do not start with a digit.";
    OutOfRange = "LF010", Error, "the value is out of range",
        "The value is smaller or larger than what makes sense here; the message names both bounds.";
    UnknownWord = "LF011", Error, "the word is not one of those allowed",
        "The key takes one of a few words; the message lists them.";
    DanglingReference = "LF012", Error, "a name leads nowhere",
        "A route, an `after`, a `uses` or a gate names a service, a job or a store that the file (with the overlay of this environment) does not have.";
    Cycle = "LF013", Error, "services wait for each other",
        "`after` orders services within a rollout. Here it leads in a circle, so none of them could be first.";
    DuplicateRoute = "LF014", Error, "two routes claim the same host and path",
        "A host and path prefix have one owner. Give one of the routes another `path`, or remove it.";
    Steps = "LF015", Error, "the steps of the canary do not ascend to 100",
        "`deploy.steps` are whole percentages, each larger than the one before, the last 100: `[5, 25, 100]`.";
    Deadlines = "LF016", Error, "deadlines contradict each other",
        "`healthy_deadline` (for one instance) must be shorter than `progress_deadline` (for a whole rollout without a newly ready instance), and longer than `min_ready`: otherwise no instance could become ready in time.";
    NoRoom = "LF017", Error, "a rolling rollout could not move",
        "With `max_surge` and `max_unavailable` both zero for a service, no new instance may start and no old one may stop. A percentage of `max_unavailable` is rounded down, so `\"25%\"` of one replica is zero.";
    ExclusiveReplicas = "LF018", Error, "an exclusive service has several replicas",
        "`exclusive = true` says that two instances must never run at once, so `replicas` must be 1.";
    EnvAndSecret = "LF019", Error, "a variable is both in the manifest and a secret",
        "The secret would silently win over what the file says. Remove the value from `env`, or the secret with `landfast secret rm`. A variable that only says `{ required = true }` may be given by a secret.";
    UnknownEnvironment = "LF020", Error, "the environment is not in the file",
        "Environments are those with a table `[environments.NAME]`, which may be empty. A file without any such table has one environment, `production`.";
    BadPath = "LF021", Error, "the path is not allowed",
        "Artifacts are paths from the folder of the manifest. Volumes, certificates and keys are absolute paths on the server's host. Paths of routes and probes start with `/`. `..` is nowhere allowed.";
    BadHost = "LF022", Error, "the host is not a host name",
        "A host is a DNS name without scheme, port and path (`api.example.com`), one with a star as its first label (`*.example.com`, exactly one more label), or `*` for any host.";
    BadCron = "LF023", Error, "the cron line cannot be used",
        "A cron line has five fields (minute, hour, day of month, month, day of week) and a time zone: `0 3 * * * Europe/Berlin`. The zone is wanted because \"three in the morning\" means nothing without one.";
    EnvValue = "LF024", Error, "a variable's value is not of its type",
        "The variable says `type = …`, and its value (or default) is not of that type. Types: `string`, `integer`, `number`, `boolean`, `duration`, `size`, `url`.";
    EnvMissing = "LF025", Error, "a required variable has no value",
        "The variable says `required = true`, and neither the file, nor the overlay of this environment, nor a secret gives it a value.";
    ReservedEnv = "LF026", Error, "the variable is set by Landfast",
        "`PORT`, `HOST` and names that start with `VOLUME_` are set for each instance when it starts; a value in the file could not be kept.";
    NoPort = "LF027", Error, "the service does not listen",
        "A route leads to a service without `port`, or a service without `port` is to be probed over HTTP or TCP. Give the service a `port`; the target chooses the real one and passes it as `PORT`.";
    NoCertificate = "LF028", Error, "a redirect to HTTPS leads nowhere",
        "`https_only = true` redirects to HTTPS, but no route of this host has a certificate in `tls` or gets one by `acme`.";
    NothingToRun = "LF029", Error, "the file describes nothing that runs",
        "An app has at least one service or one job.";
    TooLarge = "LF030", Error, "the file is too large",
        "A manifest may have at most 1 MiB. Large values belong into the artifact or into a volume.";
    NoHealth = "LF031", Warning, "readiness is only a TCP connect",
        "No `health.ready` is given, so an instance counts as ready once its port accepts a connection. Many programs listen before they can answer. Name a path that answers 2xx only when the service can work: `health = { ready = \"http:/ready\" }`. Who means a TCP connect writes `ready = \"tcp\"`.";
    NoEffect = "LF032", Warning, "the key has no effect here",
        "The key is right but something else keeps it from having an effect, such as `steps` without `strategy = \"canary\"`, or a smoke job whose gate is not in `deploy.gates`.";
    LikelySecret = "LF033", Warning, "this looks like a secret in plain text",
        "The name of the variable suggests a password, a token or a key, and its value is in the file, so it would be in version control and in every release. Store it with `landfast secret set NAME` and remove it here.";
    Recreate = "LF034", Notice, "the service moves by pause, stop, start, resume",
        "`exclusive = true` keeps two releases of the service from running at once, so it moves by `recreate` whatever `deploy.strategy` says: requests are held (1,000 requests, 64 MiB, 30 s at most) while it is replaced.";
    AcmeImpossible = "LF035", Error, "the certificate cannot be obtained as it is written",
        "ACME proves a host over HTTP or TLS, which works for exact names only: a wildcard, `*` and an IP address take a certificate from files, in `tls`. A host has one certificate, so all of its routes say the same: `tls`, `acme = true`, or `acme = false`.";
    StoreExternalOnly = "LF036", Error, "the store cannot be managed",
        "Landfast runs PostgreSQL, MariaDB and Redis itself. MySQL is only connected to: distributions do not package its server with backup tools that work with it, so Landfast could not keep its promises about it. Name where it is, `external = { url_secret = \"NAME\" }`, or take `engine = \"mariadb\"`.";
    StoreUntested = "LF037", Notice, "the version of the store is not tested",
        "PostgreSQL 15, MariaDB 10.11 and Redis 7.0 are what every build of Landfast is tested with. Another version is run in the same way, as far as its programs are installed, but nobody has shown that restart, tuning and recovery hold with it.";
    StoreVariable = "LF038", Error, "a variable is given by a store",
        "A service or job that `uses` a store gets its connection in variables such as `DATABASE_URL`. The file, or a secret, gives one of these names another value, and which of the two is meant cannot be told. Remove the value, rename the variable, or take the store out of `uses`.";
    StoreSetting = "LF039", Error, "the setting is not the manifest's",
        "Ports, paths, users, authentication and durability of a managed store are set by Landfast: with other values it could not be reached, watched or recovered. All other settings of the server may be given.";
    OneContent = "LF040", Error, "it is not clear what is run",
        "A service or job has exactly one of `artifact` (a file or folder that runs as a plain process), `image` (a container) and `build` (an image that is made before the deploy). A table of an environment that names one of them replaces the others.";
    ContainerOnly = "LF041", Error, "the key is for containers",
        "The service or job is a plain process, which has no image to take an entrypoint, a check or a place for a volume from. `pull`, `entrypoint`, `reserve`, `volumes.NAME.at`, `health = { ready = \"image\" }` and `root`, `writable`, `tmpfs` and `capabilities` of `sandbox` are for `image` and `build`.";
    ProcessOnly = "LF042", Error, "the key is for plain processes",
        "The service or job is a container: it sees the files of its image and its volumes, and nothing of the host. `user`, `files`, `read_only` and `read_write` of `sandbox` are for an `artifact`. A folder of the host is given to a container as a volume.";
    BadImage = "LF043", Error, "the name is not one of an image",
        "Images are named `name`, `name:tag` or `name@sha256:…`, in lower case, with the host of the registry before it where it is not Docker's own: `ghcr.io/acme/web:1.4`.";
    SecretsShown = "LF044", Warning, "secrets are shown by Docker",
        "Variables of a container are part of its configuration: whoever may ask Docker sees them with `docker inspect`, and they are on the disk of the host. By default secrets are files in memory (`/run/secrets/NAME`), and the variable `NAME_FILE` says where. `secrets = \"environment\"`, or a variable in `env` without a value that a secret or a store gives, asks for the other.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_without_gaps_and_read_back() {
        for (index, code) in Code::ALL.iter().enumerate() {
            assert_eq!(code.number(), format!("LF{:03}", index + 1));
            assert_eq!(
                Code::from_number(&code.number().to_lowercase()),
                Some(*code)
            );
            assert!(code.explain().ends_with('.'), "{code}");
        }
    }
}
