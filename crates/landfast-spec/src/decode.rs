//! From the merged tree to the typed spec. Looks at values that stand together; what reaches across tables is
//! in `check`.

use std::collections::{BTreeMap, BTreeSet};

use landfast_types::{
    AppName, EnvironmentName, JobName, Percent, RouteName, ServiceName, StoreName,
};

use crate::{
    backup,
    code::Code,
    container,
    cursor::Cursor,
    delivery::SecretDelivery,
    diagnostic::Problem,
    guard,
    leaf::{Leaf, Scalar},
    public::{can_be_validated, is_public_host},
    sandbox,
    spec::{
        AppSpec, DeploySpec, EnvType, EnvVar, FilesSpec, Gate, HealthSpec, JobSpec, MissingFile,
        Probe, Protocol, ResourcesSpec, RouteSpec, RouteTimeoutsSpec, SecretSpec, ServiceSpec,
        Strategy, SyntheticProbe, TlsSpec, Volume, When,
    },
    store::{self, Given},
    tree::Entry,
};

/// What is known about secrets: their names, or nothing at all.
pub(crate) type Secrets<'a> = Option<&'a BTreeSet<String>>;

/// Reads the whole spec. `None` when something that has no default is missing or wrong.
pub(crate) fn app(
    root: &Cursor<'_>,
    environment: &EnvironmentName,
    secrets: Secrets<'_>,
) -> Option<AppSpec> {
    let app = root.text("app").and_then(|name| AppName::new(&name).ok());
    let given = Given::new(root, secrets);
    let services = root.tables("services");
    let jobs = root.tables("jobs");
    let routes = root.tables("routes");
    // Each is read to its end before the first missing one ends this function, so that all are reported.
    let services = collect(&services, |name, at| {
        Some((ServiceName::new(name).ok()?, service(name, at, &given)?))
    });
    let jobs = collect(&jobs, |name, at| {
        Some((JobName::new(name).ok()?, job(name, at, &given)?))
    });
    let mut read = collect(&routes, |name, at| {
        Some((RouteName::new(name).ok()?, route(at)?))
    });
    if let Some(read) = &mut read {
        one_way_to_each_certificate(&routes, read);
    }
    let routes = read;
    let deploy = deploy(&root.table("deploy"));
    let stores = collect(&root.tables("stores"), |name, at| {
        Some((StoreName::new(name).ok()?, store::read(name, at, secrets)?))
    });
    let rotated = collect(&root.tables("secrets"), |name, at| {
        let length = at.count("length");
        let alphabet = at.text("alphabet");
        let alphabet = alphabet.unwrap_or_else(|| at.default_text("alphabet").to_owned());
        let spec = SecretSpec {
            rotate: store::schedule(at)?,
            length,
            alphabet,
        };
        Some((name.to_owned(), spec))
    });
    let registries = container::registries(root);
    let (services, jobs, stores) = (services?, jobs?, stores?);
    let of_services = services.values().map(|service| &service.volumes);
    let of_jobs = jobs.values().map(|job| &job.volumes);
    let volumes = backup::volumes(root, of_services.chain(of_jobs), &stores, secrets);
    Some(AppSpec {
        app: app?,
        environment: environment.clone(),
        services,
        jobs,
        routes: routes?,
        deploy: deploy?,
        stores,
        volumes,
        secrets: rotated?,
        registries: registries?,
    })
}

fn collect<'a, K: Ord, V>(
    tables: &[(&'a str, Cursor<'a>)],
    read: impl Fn(&str, &Cursor<'a>) -> Option<(K, V)>,
) -> Option<BTreeMap<K, V>> {
    let read = tables
        .iter()
        .map(|(name, at)| read(name, at))
        .collect::<Vec<_>>();
    read.into_iter().collect()
}

fn service(name: &str, at: &Cursor<'_>, given: &Given<'_>) -> Option<ServiceSpec> {
    let (artifact, container) = container::content("the service", name, at);
    let command = command(name, at);
    let port = at
        .optional_count("port")
        .and_then(|port| u16::try_from(port).ok());
    let replicas = at.count("replicas");
    let exclusive = at.flag("exclusive");
    if exclusive && replicas > 1 {
        let message = format!("`{name}` is exclusive but has {replicas} replicas");
        let problem = Problem::new(Code::ExclusiveReplicas, at.span("replicas"), message);
        at.report(problem.help("write replicas = 1, or remove `exclusive`"));
    }
    let after = at.texts("after").unwrap_or_default();
    let after = after
        .iter()
        .filter_map(|name| ServiceName::new(name).ok())
        .collect();
    let (resources, volumes) = (resources(at), volumes(at));
    let sandbox = sandbox::read(at);
    let uses = store::uses(at);
    let env = variables(at, given, &uses);
    let health = health(name, at, at.has("port"), is_container(at));
    let secrets = word(at, "secrets", SecretDelivery::from_word);
    if is_container(at) {
        shown_secrets("the service", name, at, secrets, &env);
    }
    if artifact.is_none() && container.is_none() {
        return None;
    }
    Some(ServiceSpec {
        artifact,
        container,
        command: command?,
        port,
        replicas,
        resources,
        sandbox,
        volumes,
        env,
        health,
        drain: at.duration("drain"),
        stream_drain: at.duration("stream_drain"),
        grace: at.duration("grace"),
        after,
        exclusive,
        protocol: word(at, "protocol", Protocol::from_word),
        sticky: at.flag("sticky"),
        uses,
        secrets,
    })
}

/// A word, or its default.
fn word<T>(at: &Cursor<'_>, key: &str, read: impl Fn(&str) -> Option<T>) -> T {
    let written = at.text(key).and_then(|word| read(&word));
    let default = || read(at.default_text(key)).expect("the default is one of the words");
    written.unwrap_or_else(default)
}

fn job(name: &str, at: &Cursor<'_>, given: &Given<'_>) -> Option<JobSpec> {
    let (artifact, container) = container::content("the job", name, at);
    let command = command(name, at);
    let when = match at.leaf("when") {
        Some(Leaf::When(when)) => when,
        _ => When::Hand,
    };
    let timeout = at.duration("timeout");
    let (resources, volumes) = (resources(at), volumes(at));
    let uses = store::uses(at);
    let env = variables(at, given, &uses);
    let secrets = word(at, "secrets", SecretDelivery::from_word);
    if is_container(at) {
        shown_secrets("the job", name, at, secrets, &env);
    }
    if artifact.is_none() && container.is_none() {
        return None;
    }
    Some(JobSpec {
        artifact,
        container,
        command: command?,
        when,
        timeout,
        resources,
        sandbox: sandbox::read(at),
        volumes,
        env,
        uses,
        secrets,
    })
}

fn is_container(at: &Cursor<'_>) -> bool {
    at.has("image") || at.has("build")
}

/// What is started. An image may say it, an artifact does not.
fn command(name: &str, at: &Cursor<'_>) -> Option<Vec<String>> {
    if at.has("command") {
        return at.texts("command");
    }
    if at.has("artifact") && !is_container(at) {
        let message = format!("`command` is missing in `[{}]`", at.place());
        let problem = Problem::new(Code::MissingKey, at.at(), message);
        at.report(problem.help(format!("for example command = [\"./{name}\"]")));
        return None;
    }
    Some(Vec::new())
}

/// Warns of what of a container's secrets Docker shows.
fn shown_secrets(
    what: &str,
    name: &str,
    at: &Cursor<'_>,
    delivery: SecretDelivery,
    env: &BTreeMap<String, EnvVar>,
) {
    let unvalued = env.iter().filter(|(_, variable)| variable.value.is_none());
    let unvalued: Vec<_> = unvalued.map(|(name, _)| name.as_str()).collect();
    container::shown_secrets(what, name, at, delivery, &unvalued);
}

fn resources(at: &Cursor<'_>) -> ResourcesSpec {
    let at = at.table("resources");
    ResourcesSpec {
        cpu: at.cpu("cpu"),
        memory: at.bytes("memory"),
        processes: at.optional_count("processes"),
        descriptors: at.optional_count("descriptors"),
    }
}

fn volumes(at: &Cursor<'_>) -> BTreeMap<String, Volume> {
    let at = at.table("volumes");
    let each = at.entries().filter_map(|(name, entry)| {
        let place = match entry.node.value.as_text() {
            Some(text) => text.to_owned(),
            None => at.variable(entry).text("from")?,
        };
        let volume = match place.as_str() {
            "managed" => Volume::Managed,
            _ => Volume::Path { path: place },
        };
        Some((name.to_owned(), volume))
    });
    each.collect()
}

fn variables(
    service: &Cursor<'_>,
    given: &Given<'_>,
    uses: &[StoreName],
) -> BTreeMap<String, EnvVar> {
    let at = service.table("env");
    let (secrets, of_stores) = (given.secrets, given.variables(uses));
    if let Some((name, store)) = given.clash(uses) {
        let message = format!("`{name}` is given by the store `{store}` and is a secret too");
        let problem = Problem::new(Code::StoreVariable, service.span("uses"), message);
        service.report(problem.help(format!("`landfast secret rm {name}`")));
    }
    let each = at.entries().map(|(name, entry)| {
        let inner = at.variable(entry);
        let (variable, span) = if entry.node.value.as_table().is_some() {
            let key = if inner.has("value") {
                "value"
            } else {
                "default"
            };
            (table_variable(name, &inner), inner.key_span(key))
        } else {
            (bare_variable(name, &inner, entry), entry.key_span.clone())
        };
        let in_secrets = secrets.is_some_and(|names| names.contains(name));
        let of_store = of_stores.get(name).map(|(store, _)| store);
        if let Some(store) = of_store.filter(|_| variable.value.is_some()) {
            let message = format!("`{name}` has a value here and is given by the store `{store}`");
            let problem = Problem::new(Code::StoreVariable, span.clone(), message);
            at.report(problem.help("remove the value, or choose another name"));
        }
        if variable.value.is_some() && in_secrets {
            let message = format!("`{name}` has a value here and is a secret too");
            let problem = Problem::new(Code::EnvAndSecret, span.clone(), message);
            at.report(problem.help(format!("remove the value, or `landfast secret rm {name}`")));
        }
        let is_given = variable.value.is_some() || in_secrets || of_store.is_some();
        if variable.required && secrets.is_some() && !is_given {
            let message = format!("`{name}` is required and has no value");
            let problem = Problem::new(Code::EnvMissing, entry.key_span.clone(), message);
            at.report(problem.help(format!(
                "give it a value here, or `landfast secret set {name}`"
            )));
        }
        if variable
            .value
            .as_ref()
            .is_some_and(|value| looks_secret(name, value))
        {
            let message = format!("`{name}` looks like a secret, and its value is in the file");
            let problem = Problem::new(Code::LikelySecret, span, message);
            at.report(problem.help(format!("`landfast secret set {name}` and remove it here")));
        }
        (name.to_owned(), variable)
    });
    each.collect()
}

fn bare_variable(name: &str, at: &Cursor<'_>, entry: &Entry) -> EnvVar {
    let Some(Leaf::Scalar(Scalar { text, kind })) = at.bare(name, entry) else {
        return EnvVar {
            value: None,
            kind: EnvType::String,
            required: false,
        };
    };
    EnvVar {
        value: Some(text),
        kind,
        required: false,
    }
}

fn table_variable(name: &str, at: &Cursor<'_>) -> EnvVar {
    let kind = at.text("type");
    let kind = kind.and_then(|word| EnvType::ALL.into_iter().find(|kind| kind.word() == word));
    let required = at.flag_or("required", || false);
    let mut inferred = EnvType::String;
    let mut scalars = BTreeMap::new();
    for key in ["default", "value"] {
        let Some(Leaf::Scalar(scalar)) = at.leaf(key) else {
            continue;
        };
        inferred = scalar.kind;
        if let Some(kind) = kind.filter(|kind| !kind.accepts(&scalar.text)) {
            let message = format!("`{name}` is not of its type, {}", kind.word());
            let problem = Problem::new(Code::EnvValue, at.span(key), message);
            at.report(problem.help(example_of(kind)));
        }
        scalars.insert(key, scalar.text);
    }
    let value = scalars
        .remove("value")
        .or_else(|| scalars.remove("default"));
    EnvVar {
        value,
        kind: kind.unwrap_or(inferred),
        required,
    }
}

fn example_of(kind: EnvType) -> &'static str {
    match kind {
        EnvType::String => "any text without NUL",
        EnvType::Integer => "for example 42",
        EnvType::Number => "for example 0.5",
        EnvType::Boolean => "true or false",
        EnvType::Duration => "for example \"30s\"",
        EnvType::Size => "for example \"512MiB\"",
        EnvType::Url => "for example \"https://api.example.com\"",
    }
}

/// Names that nearly always hold secrets, and values that are not obviously harmless.
pub(crate) fn looks_secret(name: &str, value: &str) -> bool {
    const ENDS: [&str; 8] = [
        "PASSWORD",
        "PASSWD",
        "SECRET",
        "TOKEN",
        "API_KEY",
        "PRIVATE_KEY",
        "SECRET_KEY",
        "ACCESS_KEY",
    ];
    let name = name.to_uppercase();
    ENDS.iter().any(|end| name.ends_with(end)) && value.len() >= 4 && !value.starts_with('/')
}

fn health(name: &str, service: &Cursor<'_>, listens: bool, is_container: bool) -> HealthSpec {
    let at = service.table("health");
    let given = |key: &str| match at.leaf(key) {
        Some(Leaf::Probe(probe)) => Some(probe),
        _ => None,
    };
    let (ready, live) = (given("ready"), given("live"));
    for (key, probe) in [("ready", &ready), ("live", &live)] {
        if !listens && matches!(probe, Some(Probe::Http { .. } | Probe::Tcp)) {
            let message = format!("`{name}` has no port to probe");
            let problem = Problem::new(Code::NoPort, at.span(key), message);
            at.report(problem.help("add `port`, or write \"none\""));
        }
        if !is_container && matches!(probe, Some(Probe::Image)) {
            let message = format!("`{name}` is a plain process: it has no image with a check");
            let problem = Problem::new(Code::ContainerOnly, at.span(key), message);
            at.report(problem.help("\"http:/path\", \"tcp\" or \"none\""));
        }
    }
    if listens && !at.has("ready") {
        let message = format!("`{name}` names no `health.ready`: ready means TCP connect only");
        let problem = Problem::new(Code::NoHealth, service.key_span("health"), message);
        at.report(problem.help("health = { ready = \"http:/ready\" }"));
    }
    let default = |key: &str| match at.default_text(key) {
        "tcp" if listens => Probe::Tcp,
        _ => Probe::None,
    };
    HealthSpec {
        ready: ready.unwrap_or_else(|| default("ready")),
        live: live.unwrap_or_else(|| default("live")),
        interval: at.duration("interval"),
        timeout: at.duration("timeout"),
        unhealthy_after: at.count("unhealthy_after"),
        healthy_after: at.count("healthy_after"),
    }
}

fn route(at: &Cursor<'_>) -> Option<RouteSpec> {
    let host = at.text("host");
    let path = at
        .text("path")
        .unwrap_or_else(|| at.default_text("path").to_owned());
    let service = at
        .text("service")
        .and_then(|name| ServiceName::new(&name).ok());
    let tls = at.has("tls").then(|| {
        let at = at.table("tls");
        let (certificate, key) = (at.text("certificate"), at.text("key"));
        Some(TlsSpec {
            certificate: certificate?,
            key: key?,
        })
    });
    let files = at.has("files").then(|| files(&at.table("files")));
    let acme = acme(at, host.as_deref());
    let timeouts = at.table("timeouts");
    let route = RouteSpec {
        host: host?,
        path,
        service: service?,
        websocket: at.flag("websocket"),
        https_only: at.flag_or("https_only", || tls.is_some() || acme),
        acme,
        tls: match tls {
            Some(tls) => Some(tls?),
            None => None,
        },
        limits: guard::limits(&at.table("limits")),
        allow: at.texts("allow").unwrap_or_default(),
        auth: guard::auth(at),
        cors: guard::cors(at),
        security: guard::security(at),
        request_headers: guard::field_rules(&at.table("request_headers")),
        response_headers: guard::field_rules(&at.table("response_headers")),
        timeouts: RouteTimeoutsSpec {
            connect: timeouts.duration("connect"),
            first_byte: timeouts.duration("first_byte"),
            idle: timeouts.duration("idle"),
        },
        maintenance: at.text("maintenance"),
        compress: at.flag("compress"),
        files: match files {
            Some(files) => Some(files?),
            None => None,
        },
        error_pages: at.text("error_pages"),
    };
    Some(route)
}

fn files(at: &Cursor<'_>) -> Option<FilesSpec> {
    let cache_control = at.text("cache_control");
    let default = || at.default_text("cache_control").to_owned();
    Some(FilesSpec {
        missing: word(at, "missing", MissingFile::from_word),
        cache_control: cache_control.unwrap_or_else(default),
        folder: at.text("folder")?,
    })
}

/// Whether ACME gives this route's host its certificate: as it is written, else for public hosts without files.
fn acme(at: &Cursor<'_>, host: Option<&str>) -> bool {
    let acme = at.flag_or("acme", || {
        !at.has("tls") && host.is_some_and(is_public_host)
    });
    let blame = |message: String, help: &str| {
        at.report(Problem::new(Code::AcmeImpossible, at.span("acme"), message).help(help));
    };
    if acme && at.has("tls") {
        let message = "`acme = true` and certificate files in `tls` contradict each other".into();
        blame(message, "remove one of them");
    } else if let Some(host) = host.filter(|host| acme && !can_be_validated(host)) {
        let message = format!("ACME cannot prove `{host}` over HTTP or TLS");
        blame(
            message,
            "name an exact host, or give `tls` a certificate from files",
        );
    }
    acme
}

/// A host has one way to its certificate: where one of its routes names files or says `acme = false`, the others
/// do not bring ACME in by default.
fn one_way_to_each_certificate(tables: &[(&str, Cursor<'_>)], routes: &mut Routes) {
    let says_no = |at: &Cursor<'_>| at.has("tls") || !at.flag_or("acme", || true);
    let without: BTreeSet<String> = tables
        .iter()
        .filter(|(_, at)| says_no(at))
        .filter_map(|(_, at)| at.text("host"))
        .collect();
    for (name, at) in tables {
        let Some(route) = RouteName::new(name)
            .ok()
            .and_then(|name| routes.get_mut(&name))
        else {
            continue;
        };
        if !route.acme || !without.contains(&route.host) {
            continue;
        }
        if at.has("acme") && !at.has("tls") {
            let message = format!("another route of `{}` says otherwise", route.host);
            let problem = Problem::new(Code::AcmeImpossible, at.span("acme"), message);
            at.report(
                problem.help("a host has one certificate: say the same in all of its routes"),
            );
        }
        route.acme = false;
        route.https_only = at.flag_or("https_only", || false);
    }
}

type Routes = BTreeMap<RouteName, RouteSpec>;

fn deploy(at: &Cursor<'_>) -> Option<DeploySpec> {
    let strategy = at.text("strategy");
    let strategy = strategy.unwrap_or_else(|| at.default_text("strategy").to_owned());
    let strategy = Strategy::from_word(&strategy).unwrap_or(Strategy::Rolling);
    let steps = match at.leaf("steps") {
        Some(Leaf::Steps(steps)) => steps,
        _ => crate::defaults::STEPS
            .steps()
            .iter()
            .copied()
            .filter_map(Percent::new)
            .collect(),
    };
    let gates = match at.leaf("gates") {
        Some(Leaf::Gates(gates)) => gates,
        _ => default_gates(strategy),
    };
    let (min_ready, healthy) = (at.duration("min_ready"), at.duration("healthy_deadline"));
    let progress = at.duration("progress_deadline");
    deadlines(at, min_ready, healthy, progress);
    let probe = at.has("probe").then(|| {
        let at = at.table("probe");
        let default = || {
            let rate = at.default_text("rate").trim_end_matches("/s");
            rate.parse().expect("the default is a number per second")
        };
        let requests_per_second = at.optional_count("rate").unwrap_or_else(default);
        Some(SyntheticProbe {
            path: at.text("path")?,
            requests_per_second,
        })
    });
    Some(DeploySpec {
        strategy,
        steps,
        hold: at.duration("hold"),
        min_ready,
        standby: at.duration("standby"),
        gates,
        healthy_deadline: healthy,
        progress_deadline: progress,
        max_surge: at.share("max_surge"),
        max_unavailable: at.share("max_unavailable"),
        rollback: at.flag("rollback"),
        probe: match probe {
            Some(probe) => Some(probe?),
            None => None,
        },
        webhook: at.text("webhook"),
    })
}

pub(crate) fn default_gates(strategy: Strategy) -> Vec<Gate> {
    let words = crate::defaults::GATES.words().iter();
    let mut gates = words
        .filter_map(|word| Gate::from_word(word))
        .collect::<Vec<_>>();
    // A canary that nobody judges is only a slow rollout.
    if strategy == Strategy::Canary {
        gates.push(Gate::Analysis);
    }
    gates
}

fn deadlines(
    at: &Cursor<'_>,
    min_ready: std::time::Duration,
    healthy: std::time::Duration,
    progress: std::time::Duration,
) {
    let print = landfast_types::format_duration;
    let blame = |keys: [&str; 2]| {
        let written = keys.into_iter().find(|key| at.has(key));
        written.map_or_else(|| at.at(), |key| at.span(key))
    };
    if healthy >= progress {
        let message = format!(
            "`healthy_deadline` ({}) must be shorter than `progress_deadline` ({})",
            print(healthy),
            print(progress)
        );
        let span = blame(["healthy_deadline", "progress_deadline"]);
        at.report(
            Problem::new(Code::Deadlines, span, message)
                .help("one instance gets less time than the whole rollout without progress"),
        );
    }
    if min_ready >= healthy {
        let message = format!(
            "`min_ready` ({}) must be shorter than `healthy_deadline` ({})",
            print(min_ready),
            print(healthy)
        );
        let span = blame(["min_ready", "healthy_deadline"]);
        at.report(
            Problem::new(Code::Deadlines, span, message)
                .help("otherwise no instance could become ready in time"),
        );
    }
}
