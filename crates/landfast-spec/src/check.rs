//! What reaches across tables: references, circles, claims, and keys that something else makes useless. Works
//! on the tree rather than on the spec, so that one broken service does not hide what is wrong elsewhere.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use crate::{
    catalogue::closest,
    code::Code,
    cursor::Cursor,
    decode::default_gates,
    diagnostic::Problem,
    leaf::Leaf,
    public::is_public_host,
    spec::{Gate, Protocol, Share, Strategy, When},
    tree::Value,
};

/// Reports what is wrong between tables.
pub(crate) fn check(root: &Cursor<'_>) {
    let services = root
        .tables("services")
        .into_iter()
        .collect::<BTreeMap<_, _>>();
    let routes = root.tables("routes");
    if services.is_empty() && root.tables("jobs").is_empty() {
        let problem = Problem::new(
            Code::NothingToRun,
            root.key_span("services"),
            "there is no service and no job",
        );
        root.report(problem.help("add [services.NAME] with `artifact` and `command`"));
    }
    after(&services);
    for (_, route) in &routes {
        route_target(route, &services);
    }
    claims(&routes);
    certificates(&routes);
    deploy(root, &services);
    uses(root);
}

type Services<'a> = BTreeMap<&'a str, Cursor<'a>>;

/// What `uses` names must be a store of this file.
fn uses(root: &Cursor<'_>) {
    let stores = root.tables("stores");
    let names = || stores.iter().map(|(name, _)| *name);
    for (_, at) in root.tables("services").iter().chain(&root.tables("jobs")) {
        let mut seen = BTreeSet::new();
        for (name, span) in listed(at, "uses") {
            if landfast_types::Name::new(name).is_err() {
                continue;
            }
            if !seen.insert(name) {
                let message = format!("the store `{name}` is there twice");
                let problem = Problem::new(Code::BadValue, span, message);
                at.report(problem.help("name each store once"));
            } else if names().all(|known| known != name) {
                let message = format!("there is no store `{name}`");
                let problem = Problem::new(Code::DanglingReference, span, message);
                at.report(problem.help(match closest(name, names()) {
                    Some(best) => format!("did you mean \"{best}\"?"),
                    None if stores.is_empty() => format!("add [stores.{name}] with an `engine`"),
                    None => {
                        let known = names().collect::<Vec<_>>().join(", ");
                        format!("stores of this file: {known}")
                    }
                }));
            }
        }
    }
}

fn missing_service(name: &str, span: Range<usize>, services: &Services<'_>) -> Problem {
    let problem = Problem::new(
        Code::DanglingReference,
        span,
        format!("there is no service `{name}`"),
    );
    let names = services.keys().copied();
    problem.help(match closest(name, names.clone()) {
        Some(best) => format!("did you mean \"{best}\"?"),
        None if services.is_empty() => "the file has no services".to_owned(),
        None => format!(
            "services of this file: {}",
            names.collect::<Vec<_>>().join(", ")
        ),
    })
}

/// Names in a list with their places.
fn listed<'a>(at: &Cursor<'a>, key: &str) -> Vec<(&'a str, Range<usize>)> {
    let Some(Value::List(items)) = at.entry(key).map(|entry| &entry.node.value) else {
        return Vec::new();
    };
    let each = items
        .iter()
        .filter_map(|item| Some((item.value.as_text()?, item.span.clone())));
    each.collect()
}

fn after(services: &Services<'_>) {
    let waits = services
        .iter()
        .map(|(name, at)| (*name, listed(at, "after")))
        .collect::<BTreeMap<_, _>>();
    for (name, at) in services {
        for (other, span) in &waits[name] {
            if landfast_types::Name::new(other).is_ok() && !services.contains_key(other) {
                at.report(missing_service(other, span.clone(), services));
            }
        }
    }
    // Take away, again and again, what waits for nothing that is left: a circle is what remains with both
    // something before it and something after it.
    let mut left = services.keys().copied().collect::<BTreeSet<_>>();
    loop {
        let is_free = |name: &&str| !waits[*name].iter().any(|(other, _)| left.contains(other));
        let free = left.iter().copied().filter(is_free).collect::<Vec<_>>();
        if free.is_empty() {
            break;
        }
        left.retain(|name| !free.contains(name));
    }
    while let Some(start) = left.first().copied() {
        let circle = circle_from(start, &waits, &left);
        left.retain(|name| !circle.contains(name));
        let Some((first, second)) = circle.first().zip(circle.get(1).or(circle.first())) else {
            break;
        };
        let place = waits[first].iter().find(|(other, _)| other == second);
        let span = place.map_or_else(|| services[first].at(), |(_, span)| span.clone());
        let path = circle
            .iter()
            .chain([first])
            .map(|name| format!("`{name}`"))
            .collect::<Vec<_>>();
        let message = if circle.len() == 1 {
            format!("{} waits for itself", path[0])
        } else {
            format!("services wait for each other: {}", path.join(" after "))
        };
        let problem = Problem::new(Code::Cycle, span, message);
        services[first].report(problem.help("remove one of these from its `after`"));
        // What only hangs on a circle is not one.
        loop {
            let is_free = |name: &&str| !waits[*name].iter().any(|(other, _)| left.contains(other));
            let free = left.iter().copied().filter(is_free).collect::<Vec<_>>();
            if free.is_empty() {
                break;
            }
            left.retain(|name| !free.contains(name));
        }
    }
}

/// Follows `after` within `left` until a name comes again; everything in `left` leads into a circle.
fn circle_from<'a>(
    start: &'a str,
    waits: &BTreeMap<&'a str, Vec<(&'a str, Range<usize>)>>,
    left: &BTreeSet<&'a str>,
) -> Vec<&'a str> {
    let mut path = vec![start];
    while let Some(last) = path.last() {
        let Some((next, _)) = waits[last].iter().find(|(other, _)| left.contains(other)) else {
            break;
        };
        if let Some(index) = path.iter().position(|name| name == next) {
            return path.split_off(index);
        }
        path.push(next);
    }
    path
}

fn route_target(route: &Cursor<'_>, services: &Services<'_>) {
    let Some(name) = route.text("service") else {
        return;
    };
    match services.get(name.as_str()) {
        None => route.report(missing_service(&name, route.span("service"), services)),
        Some(service) if !service.has("port") => {
            let message = format!("the service `{name}` does not listen");
            let problem = Problem::new(Code::NoPort, route.span("service"), message);
            route.report(problem.help(format!("add `port` to [services.{name}]")));
        }
        Some(service) if route.flag("websocket") && speaks_h2c(service) => {
            let message = format!("`websocket` has no effect: the service `{name}` speaks h2c");
            let problem = Problem::new(Code::NoEffect, route.key_span("websocket"), message);
            route.report(problem.help("WebSockets reach services of protocol = \"http/1.1\""));
        }
        Some(_) => {}
    }
}

fn speaks_h2c(service: &Cursor<'_>) -> bool {
    written(service, "protocol").is_some_and(|word| word == Protocol::H2c.word())
}

fn host_and_path(route: &Cursor<'_>) -> Option<(String, String)> {
    let host = written(route, "host")?;
    let path = match route.has("path") {
        true => written(route, "path")?,
        false => route.default_text("path").to_owned(),
    };
    Some((host, path))
}

/// A text that is there and right; one that is missing is reported elsewhere.
fn written(at: &Cursor<'_>, name: &str) -> Option<String> {
    if at.has(name) { at.text(name) } else { None }
}

fn claims(routes: &[(&str, Cursor<'_>)]) {
    let mut owners = BTreeMap::<_, (&str, &Cursor<'_>)>::new();
    for (name, route) in routes {
        let Some(claim) = host_and_path(route) else {
            continue;
        };
        let Some((owner, first)) = owners.get(&claim) else {
            owners.insert(claim, (*name, route));
            continue;
        };
        // The one further down is told; an overlay may be anywhere.
        let (later, earlier) = if route.span("host").start >= first.span("host").start {
            (route, *owner)
        } else {
            (*first, *name)
        };
        let span = if later.has("path") {
            later.span("path")
        } else {
            later.span("host")
        };
        let (host, path) = &claim;
        let message = format!("`{host}{path}` belongs to the route `{earlier}` already");
        let problem = Problem::new(Code::DuplicateRoute, span, message);
        later.report(problem.help("give one of them another `path`"));
    }
}

fn certificates(routes: &[(&str, Cursor<'_>)]) {
    let by_acme = |route: &Cursor<'_>| {
        let is_public = || written(route, "host").is_some_and(|host| is_public_host(&host));
        route.flag_or("acme", is_public)
    };
    let with_tls = routes
        .iter()
        .filter(|(_, route)| route.has("tls") || by_acme(route));
    let hosts = with_tls
        .filter_map(|(_, route)| written(route, "host"))
        .collect::<BTreeSet<_>>();
    let covered = |host: &str| {
        let wildcard = host.split_once('.').map(|(_, rest)| format!("*.{rest}"));
        hosts.contains(host) || wildcard.is_some_and(|wildcard| hosts.contains(&wildcard))
    };
    for (_, route) in routes {
        let wanted = route.flag_or("https_only", || false);
        let Some(host) = written(route, "host").filter(|host| wanted && !covered(host)) else {
            continue;
        };
        let message = format!("no route of `{host}` has a certificate to redirect to");
        let problem = Problem::new(Code::NoCertificate, route.span("https_only"), message);
        route
            .report(problem.help("add tls = { certificate = \"…\", key = \"…\" }, or acme = true"));
    }
}

fn deploy(root: &Cursor<'_>, services: &Services<'_>) {
    let at = root.table("deploy");
    let word = at.text("strategy");
    let is_known = !at.has("strategy") || word.is_some();
    let strategy = word
        .as_deref()
        .and_then(Strategy::from_word)
        .unwrap_or(Strategy::Rolling);
    let gates = match at.leaf("gates") {
        Some(Leaf::Gates(gates)) => Some(gates),
        Some(_) => None,
        None => (!at.has("gates")).then(|| default_gates(strategy)),
    };
    if let Some(gates) = gates {
        smoke(root, &at, &gates);
        backup(root, &at, &gates);
        if is_known && strategy != Strategy::Canary && gates.contains(&Gate::Analysis) {
            let message =
                format!("the gate `analysis` has no effect with the strategy `{strategy}`");
            let problem = Problem::new(Code::NoEffect, gate_span(&at, Gate::Analysis), message);
            at.report(problem.help("it judges the steps of strategy = \"canary\""));
        }
    }
    for (key, strategies) in [
        ("steps", [Strategy::Canary].as_slice()),
        ("probe", &[Strategy::Canary]),
        ("max_surge", &[Strategy::Rolling]),
        ("max_unavailable", &[Strategy::Rolling]),
    ] {
        if is_known && at.has(key) && !strategies.contains(&strategy) {
            let message = format!("`{key}` has no effect with the strategy `{strategy}`");
            let problem = Problem::new(Code::NoEffect, at.key_span(key), message);
            at.report(problem.help(format!("it is for strategy = \"{}\"", strategies[0])));
        }
    }
    if is_known && strategy == Strategy::Rolling {
        room(&at, services);
    }
    for (name, service) in services {
        if service.flag("exclusive") && is_known && strategy != Strategy::Recreate {
            let message = format!("`{name}` moves by `recreate`, because it is exclusive");
            service.report(Problem::new(
                Code::Recreate,
                service.key_span("exclusive"),
                message,
            ));
        }
    }
}

fn gate_span(deploy: &Cursor<'_>, gate: Gate) -> Range<usize> {
    let items = match deploy.entry("gates").map(|entry| &entry.node.value) {
        Some(Value::List(items)) => items.as_slice(),
        _ => &[],
    };
    let is_it = |value: &Value| matches!(value, Value::Text(text) if text == gate.word());
    let item = items.iter().find(|item| is_it(&item.value));
    item.map_or_else(|| deploy.span("gates"), |item| item.span.clone())
}

fn smoke(root: &Cursor<'_>, deploy: &Cursor<'_>, gates: &[Gate]) {
    let jobs = root.tables("jobs");
    let is_smoke = |job: &Cursor<'_>| {
        matches!(
            job.leaf("when"),
            Some(Leaf::When(When::Gate { gate: Gate::Smoke }))
        )
    };
    let smoke_jobs = jobs
        .iter()
        .filter(|(_, job)| is_smoke(job))
        .collect::<Vec<_>>();
    let wanted = gates.contains(&Gate::Smoke);
    // A job whose `when` is wrong may have been meant.
    let unclear = jobs
        .iter()
        .any(|(_, job)| job.has("when") && job.leaf("when").is_none());
    if wanted && smoke_jobs.is_empty() && !unclear {
        let span = gate_span(deploy, Gate::Smoke);
        let problem = Problem::new(Code::DanglingReference, span, "the gate `smoke` has no job");
        deploy.report(problem.help("give a job when = \"gate:smoke\""));
    }
    if !wanted {
        for (name, job) in smoke_jobs {
            let message = format!("the job `{name}` never runs: `smoke` is not in `deploy.gates`");
            let problem = Problem::new(Code::NoEffect, job.span("when"), message);
            job.report(problem.help("add \"smoke\" to gates in [deploy]"));
        }
    }
}

/// A gate that nothing could ever fail is not taken for one.
fn backup(root: &Cursor<'_>, deploy: &Cursor<'_>, gates: &[Gate]) {
    let (stores, volumes) = (root.tables("stores"), root.tables("volumes"));
    let mut tables = stores.iter().chain(&volumes);
    if gates.contains(&Gate::Backup) && !tables.any(|(_, one)| one.has("backup")) {
        let span = gate_span(deploy, Gate::Backup);
        let message = "the gate `backup` has no store and no volume that is backed up";
        let problem = Problem::new(Code::DanglingReference, span, message);
        deploy.report(problem.help("write backup = { to = \"…\" } in the table of a store"));
    }
}

fn room(deploy: &Cursor<'_>, services: &Services<'_>) {
    let (surge, unavailable) = (deploy.share("max_surge"), deploy.share("max_unavailable"));
    let readable = |key| !deploy.has(key) || deploy.leaf(key).is_some();
    if !readable("max_surge") || !readable("max_unavailable") {
        return;
    }
    let key = if deploy.has("max_surge") {
        "max_surge"
    } else {
        "max_unavailable"
    };
    let is_nothing = |share: Share| share.of_ceil(1_000) == 0;
    if is_nothing(surge) && is_nothing(unavailable) {
        let message = "`max_surge` and `max_unavailable` are both 0, so nothing could move";
        let problem = Problem::new(Code::NoRoom, deploy.span(key), message);
        return deploy.report(problem.help("write max_surge = 1"));
    }
    for (name, service) in services {
        let replicas = service.count("replicas");
        if surge.of_ceil(replicas) == 0 && unavailable.of_floor(replicas) == 0 {
            let message = format!(
                "`{name}` could not move: of {replicas} replicas, `max_unavailable` is rounded down to 0"
            );
            let problem = Problem::new(Code::NoRoom, deploy.span("max_unavailable"), message);
            deploy.report(problem.help("write max_surge = 1, or max_unavailable = 1"));
        }
    }
}
