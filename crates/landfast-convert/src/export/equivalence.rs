//! What Compose can express of a manifest, and what it cannot: one rule for each key of the catalogue.

use landfast_spec::CATALOGUE;
use serde::Serialize;

use super::nginx;

/// What becomes of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "expressed", rename_all = "snake_case")]
pub enum Expressed {
    /// As this.
    As { what: &'static str },
    /// As this, and what is missing of it.
    Partly {
        what: &'static str,
        missing: &'static str,
    },
    /// Not at all, and what to do.
    Not {
        missing: &'static str,
        instead: &'static str,
    },
}

/// A key of the manifest, or all keys below one (`deploy.*`), and what becomes of it.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    pub path: &'static str,
    pub expressed: Expressed,
}

/// What becomes of one key that a manifest has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gap {
    /// As it stands in the manifest: `services.api.replicas`.
    pub key: String,
    #[serde(flatten)]
    pub expressed: Expressed,
}

const fn carried(path: &'static str, what: &'static str) -> Rule {
    let expressed = Expressed::As { what };
    Rule { path, expressed }
}

const fn partly(path: &'static str, what: &'static str, missing: &'static str) -> Rule {
    let expressed = Expressed::Partly { what, missing };
    Rule { path, expressed }
}

const fn not(path: &'static str, missing: &'static str, instead: &'static str) -> Rule {
    let expressed = Expressed::Not { missing, instead };
    Rule { path, expressed }
}

/// The most exact rule counts. A test holds it against the catalogue: no key is without one, and what is said to be carried changes
/// what is written.
pub static EQUIVALENCE: &[Rule] = &[
    not(
        "app",
        "containers are named after the folder",
        "COMPOSE_PROJECT_NAME in .env",
    ),
    carried(
        "services.*.artifact",
        "an image of the artifact alone, by NAME.Dockerfile",
    ),
    partly(
        "services.*.image",
        "`image`",
        "a release pins its digest; Compose takes what the tag means on that day",
    ),
    partly(
        "services.*.pull",
        "`pull_policy`",
        "`newer` is Compose's own choice: what is there is taken",
    ),
    carried("services.*.build", "`build`"),
    carried("services.*.build.context", "`build.context`"),
    carried("services.*.build.dockerfile", "`build.dockerfile`"),
    carried("services.*.build.target", "`build.target`"),
    carried("services.*.build.args", "`build.args`"),
    not(
        "services.*.build.secrets",
        "only newer versions of Compose give a build secrets",
        "build by hand: docker build --secret id=NAME,env=NAME",
    ),
    carried("services.*.build.platform", "`platform`"),
    carried("services.*.command", "`command`"),
    carried("services.*.entrypoint", "`entrypoint`"),
    carried(
        "services.*.port",
        "`expose`, PORT and the address nginx asks",
    ),
    carried("services.*.replicas", "`deploy.replicas`"),
    carried("services.*.resources.cpu", "`cpus`"),
    carried("services.*.resources.memory", "`mem_limit`"),
    carried("services.*.resources.processes", "`pids_limit`"),
    carried("services.*.resources.descriptors", "`ulimits.nofile`"),
    partly(
        "services.*.reserve.cpu",
        "`deploy.resources.reservations.cpus`",
        "only a Swarm goes by it",
    ),
    carried("services.*.reserve.memory", "`mem_reservation`"),
    not(
        "services.*.sandbox.user",
        "a container runs as its image's user",
        "USER in the Dockerfile",
    ),
    not(
        "services.*.sandbox.files",
        "a container sees its image and its volumes",
        "mount what it needs",
    ),
    carried("services.*.sandbox.read_only", "mounts that are read-only"),
    carried("services.*.sandbox.read_write", "mounts"),
    not(
        "services.*.sandbox.root",
        "a container runs as its image's user, be it root or not",
        "`user:` for an image that names none",
    ),
    carried("services.*.sandbox.writable", "`read_only`"),
    carried("services.*.sandbox.tmpfs", "`tmpfs`"),
    carried("services.*.sandbox.capabilities", "`cap_add`"),
    carried("services.*.volumes", "`volumes`"),
    carried(
        "services.*.volumes.*.from",
        "`volumes`: a named volume, or a mount of the path",
    ),
    carried("services.*.volumes.*.at", "`volumes`: its target"),
    carried("services.*.env", "`environment`"),
    not(
        "services.*.env.*.type",
        "values are not checked",
        "the app checks them at its start",
    ),
    carried("services.*.env.*.default", "`environment`"),
    carried("services.*.env.*.value", "`environment`"),
    carried(
        "services.*.env.*.required",
        "`${NAME:?…}`, refused where .env has none",
    ),
    partly(
        "services.*.secrets",
        "files in /run/secrets, from secrets/ beside the file",
        "they lie unsealed on the disk, have no versions, and variables are shown by `docker inspect`",
    ),
    partly(
        "services.*.health.ready",
        "`healthcheck`",
        "it runs in the container (curl or wget must be there), and nginx does not go by it",
    ),
    not(
        "services.*.health.live",
        "an unhealthy container is not restarted",
        "a Swarm does so, or a program that watches",
    ),
    carried("services.*.health.interval", "`healthcheck.interval`"),
    carried("services.*.health.timeout", "`healthcheck.timeout`"),
    carried("services.*.health.unhealthy_after", "`healthcheck.retries`"),
    not(
        "services.*.health.healthy_after",
        "one passed check is enough",
        "nothing is to be done",
    ),
    not(
        "services.*.drain",
        "a container is stopped while requests are in flight",
        "the app ends them after SIGTERM, within `stop_grace_period`",
    ),
    not(
        "services.*.stream_drain",
        "streams are cut",
        "clients connect again",
    ),
    carried("services.*.grace", "`stop_grace_period`"),
    partly(
        "services.*.after",
        "`depends_on`",
        "at the first start alone: an update does not wait for readiness",
    ),
    partly(
        "services.*.exclusive",
        "`update_config.order: stop-first`",
        "requests are not held meanwhile",
    ),
    partly(
        "services.*.protocol",
        "`grpc_pass`",
        "nginx speaks HTTP/2 to gRPC servers alone, and takes it from clients of routes with `tls` alone",
    ),
    not(
        "services.*.sticky",
        "nginx does not keep clients on an instance it finds by name",
        "share sessions in a store",
    ),
    carried(
        "services.*.uses",
        "`networks`, `depends_on`, and the variables of the store",
    ),
    // Jobs are services of a profile, run by hand.
    partly(
        "jobs.*.when",
        "a label: `docker-compose run --rm job-NAME`",
        "Compose has no clock and no gates",
    ),
    partly("jobs.*.timeout", "a label", "nothing ends it"),
    carried(
        "stores.*.engine",
        "a service of the official image, where Landfast would run it",
    ),
    carried("stores.*.version", "the image's tag"),
    carried("stores.*.image", "`image`"),
    carried("stores.*.pull", "`pull_policy`"),
    carried("stores.*.memory", "`mem_limit`"),
    carried("stores.*.settings", "arguments of the server"),
    not(
        "stores.*.migrations",
        "migrations are not run",
        "run them by a tool before each start",
    ),
    not(
        "stores.*.rehearsal.*",
        "there are no migrations to rehearse",
        "try them on a copy by hand",
    ),
    partly(
        "stores.*.pool.max",
        "the variables of the store",
        "it is not held against what the server takes",
    ),
    carried("stores.*.pool.min", "the variables of the store"),
    carried("stores.*.pool.timeout", "the variables of the store"),
    carried("stores.*.pool.idle", "the variables of the store"),
    carried("stores.*.external.url_secret", "a variable of .env"),
    carried("stores.*.endpoint", "the variables of the store"),
    carried("stores.*.bucket", "the variables of the store"),
    carried("stores.*.region", "the variables of the store"),
    carried("stores.*.path_style", "the variables of the store"),
    carried("stores.*.access_key_secret", "a variable of .env"),
    carried("stores.*.secret_key_secret", "a variable of .env"),
    not(
        "stores.*.rotate",
        "passwords stay",
        "change them by hand, in the store and in .env",
    ),
    not(
        "stores.*.backup.*",
        "nothing is backed up, and no drill proves anything",
        "a timer with pg_dump, and a restore of it now and then",
    ),
    carried("routes.*.host", "`server_name`"),
    partly(
        "routes.*.path",
        "`location`",
        "on a host with paths nginx answers 400 to every path with `;`, `\\`, `.` or `..` as a segment, or what is encoded twice; Landfast only where such a path leads to another route",
    ),
    carried("routes.*.service", "`proxy_pass`"),
    carried(
        "routes.*.websocket",
        "`Upgrade` is passed on, or refused with 403",
    ),
    carried("routes.*.tls.certificate", "`ssl_certificate`"),
    carried("routes.*.tls.key", "`ssl_certificate_key`"),
    not(
        "routes.*.acme",
        "nginx obtains no certificates",
        "certbot beside it, and `tls` with its files",
    ),
    partly(
        "routes.*.https_only",
        "`return 308`",
        "only where the route has `tls`",
    ),
    carried("routes.*.limits.body", "`client_max_body_size`"),
    partly(
        "routes.*.limits.rate",
        "`limit_req`, 429",
        "there is no `Retry-After`, preflights and refused WebSockets are not counted, and of an IPv6 client the whole address counts; a rate that is no whole number a second or a minute is rounded up",
    ),
    carried("routes.*.limits.burst", "`burst`"),
    partly(
        "routes.*.limits.by",
        "the key of `limit_req_zone`",
        SEEN_ADDRESS,
    ),
    partly(
        "routes.*.limits.total",
        "`limit_req` of the whole server, 429",
        "there is no `Retry-After`; preflights and refused WebSockets are not counted; a rate that is no whole number a second or a minute is rounded up",
    ),
    carried("routes.*.limits.total_burst", "`burst`"),
    partly("routes.*.allow", "`allow` and `deny`", SEEN_ADDRESS),
    partly(
        "routes.*.auth.users",
        "`auth_basic_user_file`; `Authorization` is not passed on",
        "nginx knows no Argon2",
    ),
    carried("routes.*.auth.realm", "`auth_basic`"),
    carried("routes.*.cors.origins", "a map of `Origin`"),
    carried("routes.*.cors.methods", "a header"),
    carried("routes.*.cors.headers", "a header"),
    carried("routes.*.cors.expose", "a header"),
    carried("routes.*.cors.credentials", "a header"),
    carried("routes.*.cors.max_age", "a header"),
    partly(
        "routes.*.security.hsts",
        "a header",
        "only where the route has `tls`",
    ),
    partly(
        "routes.*.security.hsts_subdomains",
        "a header",
        "only where the route has `tls`",
    ),
    carried(
        "routes.*.security.frame",
        "`X-Frame-Options` and `frame-ancestors`",
    ),
    carried("routes.*.security.referrer", "a header"),
    carried("routes.*.security.csp", "a header"),
    carried(
        "routes.*.security.overwrite",
        "`proxy_hide_header`, or a map of what the instance sent",
    ),
    carried("routes.*.request_headers.set", "`proxy_set_header`"),
    carried("routes.*.request_headers.append", "`proxy_set_header`"),
    carried("routes.*.request_headers.remove", "`proxy_set_header`"),
    carried("routes.*.response_headers.set", "`add_header`"),
    carried("routes.*.response_headers.append", "`add_header`"),
    carried("routes.*.response_headers.remove", "`proxy_hide_header`"),
    carried("routes.*.timeouts.connect", "`proxy_connect_timeout`"),
    partly(
        "routes.*.timeouts.first_byte",
        "`proxy_read_timeout`",
        "it counts between any two reads",
    ),
    partly(
        "routes.*.timeouts.idle",
        "`client_body_timeout`, `send_timeout`, `proxy_send_timeout`",
        "what an instance sends may be silent for `first_byte`",
    ),
    partly(
        "routes.*.compress",
        "`gzip`",
        "there is no zstd, and `Cache-Control: no-transform` is not looked at",
    ),
    partly(
        "routes.*.files.folder",
        "`root`",
        "of files that were coded beforehand only those ending in `.gz` are found; the folder is read as it is, not as it was at a release",
    ),
    carried("routes.*.files.missing", "`try_files`"),
    carried("routes.*.files.cache_control", "a header"),
    partly(
        "routes.*.error_pages",
        "`error_page`",
        "the pages 404, 502, 503 and 504 must all be there, and there is none for a stopped app",
    ),
    not(
        "routes.*.maintenance",
        "a stopped app has no page",
        "start nginx with another configuration",
    ),
    partly(
        "deploy.strategy",
        "`update_config.order`, which a Swarm reads",
        "blue-green and canary have no counterpart; `up` stops a container, then starts the next",
    ),
    not(
        "deploy.steps",
        "no share of the requests goes to a new release",
        "two services and weights in nginx, by hand",
    ),
    not("deploy.hold", "there is no canary", "nothing is to be done"),
    carried("deploy.min_ready", "`update_config.monitor`"),
    not(
        "deploy.standby",
        "the old containers are gone at once: there is no seal to wait for",
        "keep the images",
    ),
    not(
        "deploy.gates",
        "nothing is asked before an update",
        "a pipeline in front of it",
    ),
    carried("deploy.healthy_deadline", "`healthcheck.start_period`"),
    not(
        "deploy.progress_deadline",
        "an update goes on however long it takes",
        "watch it",
    ),
    partly(
        "deploy.max_surge",
        "`update_config.parallelism`",
        "only a Swarm goes by it",
    ),
    partly(
        "deploy.max_unavailable",
        "`update_config.parallelism`",
        "only a Swarm goes by it",
    ),
    partly(
        "deploy.rollback",
        "`update_config.failure_action`",
        "only a Swarm goes by it",
    ),
    not(
        "deploy.probe.*",
        "there is no canary to judge",
        "nothing is to be done",
    ),
    not("deploy.webhook", "nobody is told", "a pipeline tells"),
    not(
        "volumes.*.backup.*",
        "nothing is backed up",
        "a timer with a tool of its own",
    ),
    not(
        "secrets.*.rotate",
        "secrets stay as they are",
        "change them by hand",
    ),
    not("secrets.*.length", "no secret is generated", "openssl rand"),
    not(
        "secrets.*.alphabet",
        "no secret is generated",
        "openssl rand",
    ),
    not(
        "registries.*.user_secret",
        "Compose goes by `docker login`",
        "docker login",
    ),
    not(
        "registries.*.password_secret",
        "Compose goes by `docker login`",
        "docker login",
    ),
    partly(
        "environments",
        "the environment that was named",
        "each is exported into a folder of its own",
    ),
];

/// The rule of a key of the catalogue. Keys of jobs go by those of services.
pub(crate) fn rule(path: &str) -> Option<&'static Rule> {
    let exact = EQUIVALENCE.iter().find(|rule| rule.path == path);
    let below = || {
        EQUIVALENCE.iter().find(|rule| {
            let parent = rule
                .path
                .strip_suffix(".*")
                .filter(|parent| parent.matches('.').count() > 0);
            parent.is_some_and(|parent| {
                path.strip_prefix(parent)
                    .is_some_and(|rest| rest.starts_with('.'))
            })
        })
    };
    let as_service = || rule(&format!("services.{}", path.strip_prefix("jobs.")?));
    exact.or_else(below).or_else(as_service)
}

/// What becomes of each key that a manifest has, in its order. The text must be one that parses.
pub fn equivalence(manifest: &str) -> Vec<Gap> {
    let mut gaps = Vec::new();
    if let Ok(table) = manifest.parse::<toml::Table>() {
        walk(&toml::Value::Table(table), "", "", &mut gaps);
    }
    gaps
}

fn walk(value: &toml::Value, place: &str, pattern: &str, gaps: &mut Vec<Gap>) {
    let toml::Value::Table(table) = value else {
        return;
    };
    for (name, value) in table {
        let known = |path: &str| CATALOGUE.iter().any(|key| key.path == path);
        let named = join(pattern, name);
        let starred = join(pattern, "*");
        let below = format!("{starred}.");
        let pattern = if known(&named) {
            named
        } else if known(&starred) || CATALOGUE.iter().any(|key| key.path.starts_with(&below)) {
            starred
        } else {
            continue;
        };
        let place = join(place, name);
        let has_keys = CATALOGUE.iter().any(|key| {
            key.path
                .strip_prefix(pattern.as_str())
                .is_some_and(|rest| rest.starts_with('.'))
        });
        match rule(&pattern).filter(|_| !(has_keys && value.is_table())) {
            Some(rule) => gaps.push(Gap {
                key: place,
                expressed: lessened(&pattern, value).unwrap_or(rule.expressed),
            }),
            None => walk(value, &place, &pattern, gaps),
        }
    }
}

/// What nginx has no word for in the value of a key that it expresses otherwise.
fn lessened(pattern: &str, value: &toml::Value) -> Option<Expressed> {
    let names = value.as_array().into_iter().flatten();
    let stars = names.filter(|name| name.as_str() == Some("*")).count();
    let others = value.as_array().is_some_and(|names| names.len() > stars);
    let own = ["server", "date"];
    let is_own = |name: &str| own.iter().any(|one| name.eq_ignore_ascii_case(one));
    match pattern {
        "routes.*.limits.body" if is_nothing(value) => Some(Expressed::Partly {
            what: "`client_max_body_size`",
            missing: "one byte is let through: to nginx, none at all is no limit",
        }),
        "routes.*.request_headers.remove" | "routes.*.response_headers.remove" if stars > 0 => {
            let missing = "`*`: nginx takes headers away by their names alone";
            Some(match (others, pattern.contains("request")) {
                (true, true) => Expressed::Partly {
                    what: "`proxy_set_header`",
                    missing,
                },
                (true, false) => Expressed::Partly {
                    what: "`proxy_hide_header`",
                    missing,
                },
                (false, _) => Expressed::Not {
                    missing,
                    instead: "name each header",
                },
            })
        }
        "routes.*.response_headers.remove"
            if value.as_array().is_some_and(|names| {
                let mut names = names.iter().filter_map(toml::Value::as_str);
                names.any(is_own)
            }) =>
        {
            Some(OWN_HEADERS)
        }
        "routes.*.response_headers.set" | "routes.*.response_headers.append"
            if value
                .as_table()
                .is_some_and(|fields| fields.keys().any(|name| is_own(name))) =>
        {
            Some(OWN_HEADERS)
        }
        "routes.*.request_headers.append" => {
            let mut names = value.as_table()?.keys();
            let missing = "a name that no variable of nginx can have: only letters, digits and `-`";
            names
                .any(|name| nginx::header_variable(name).is_none())
                .then_some(Expressed::Partly {
                    what: "`proxy_set_header`",
                    missing,
                })
        }
        "routes.*.limits.by" => {
            let text = value.as_str()?;
            if text.trim() == "route" {
                return Some(Expressed::As {
                    what: "the key of `limit_req_zone`",
                });
            }
            let variable = match text.split_once(':')? {
                ("header", name) => nginx::header_variable(name.trim()),
                (_, name) => nginx::cookie_variable(name.trim()),
            };
            variable.is_none().then_some(Expressed::Partly {
                what: "the key of `limit_req_zone`",
                missing: "no variable of nginx has this name: clients are counted instead",
            })
        }
        _ => None,
    }
}

/// Of who is told apart by address.
const SEEN_ADDRESS: &str = "clients are told apart by the address that nginx's container sees: behind a balancer or Docker's own proxy (IPv6, rootless) that is the gateway's, the same for all; name it in `set_real_ip_from` of nginx.conf";

const OWN_HEADERS: Expressed = Expressed::Partly {
    what: "`proxy_hide_header`, `add_header`",
    missing: "nginx says `Server: nginx` and its own `Date`, whatever an instance or a rule says",
};

/// Whether a size is zero.
fn is_nothing(value: &toml::Value) -> bool {
    let digits = |text: &str| {
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.');
        text[..end.unwrap_or(text.len())].parse() == Ok(0.0)
    };
    value.as_integer() == Some(0) || value.as_str().is_some_and(|text| digits(text.trim()))
}

fn join(parent: &str, name: &str) -> String {
    if parent.is_empty() {
        name.to_owned()
    } else {
        format!("{parent}.{name}")
    }
}
