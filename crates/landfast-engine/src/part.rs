//! From the engine's table of one environment to its part of the proxy's snapshot.

use std::{collections::BTreeMap, sync::Arc};

use landfast_rollout::{Environment, MemberState, ServiceTraffic, TrafficMode, Weights};
use landfast_routing::snapshot::{
    Backend, BackendState, Certificate, EjectionPolicy, Group, HealthCheck, Mode, RetryPolicy,
    Route, RouteLimits, RouteTimeouts, Service,
};
use landfast_spec::{AppSpec, Probe, RouteSpec, ServiceSpec};
use landfast_types::{InstanceId, ReleaseId, RouteName, Scope, ServiceKey, ServiceName};

use crate::{plane::Part, release::ReleaseBody};

/// What a pause holds at most (`contract.md`, "One rollout moves a whole environment").
const PAUSE: Mode = Mode::Pause {
    requests_max: 1_000,
    bytes_max: 64 << 20,
    wait_max_ms: 30_000,
};
const MAINTENANCE_RETRY_S: u32 = 30;
/// An instance that does not answer is not waited for.
const LEAVING: BackendState = BackendState::Draining {
    requests_ms: 1_000,
    streams_ms: 500,
};
const SLOW_START_MS: u64 = 2_000;

/// Builds the part of an environment. `health_checks` off leaves all judgement to the engine (for controls of
/// the proofs only).
pub fn part(
    environment: &Environment,
    bodies: &BTreeMap<ReleaseId, Arc<ReleaseBody>>,
    health_checks: bool,
) -> Part {
    let scope = &environment.scope;
    let spec = |release: ReleaseId| bodies.get(&release).map(|body| &body.spec);
    let routes = routes(environment, bodies);
    let mut services = BTreeMap::new();
    for (name, traffic) in &environment.traffic.services {
        let current = current_release(environment);
        let owners = current
            .into_iter()
            .chain(traffic.groups.keys().rev().copied());
        let Some(service) = owners
            .filter_map(spec)
            .find_map(|spec| spec.services.get(name))
        else {
            continue;
        };
        let page = routes.values().find(|route| route.service == *name);
        let page = page.and_then(|route| route.maintenance.clone());
        let mut entry = service_entry(environment, service, name, traffic, page);
        if !health_checks {
            entry.health = None;
        }
        services.insert(ServiceKey::new(scope, name), entry);
    }
    let has_service =
        |route: &&RouteSpec| services.contains_key(&ServiceKey::new(scope, &route.service));
    let served: Vec<_> = routes
        .iter()
        .filter(|(_, route)| has_service(route))
        .collect();
    let certificates = served
        .iter()
        .filter_map(|(_, route)| certificate(route))
        .collect();
    let entries = served
        .iter()
        .map(|(name, route)| route_entry(scope, name, route))
        .collect();
    Part {
        sequence: environment.sequence,
        revision: environment.traffic.revision,
        routes: entries,
        services,
        certificates,
    }
}

/// The (host, path) pairs an environment holds now, with the name of the route.
pub fn claims(
    environment: &Environment,
    bodies: &BTreeMap<ReleaseId, Arc<ReleaseBody>>,
) -> Vec<(String, String, RouteName)> {
    let rollout = environment.rollout.as_ref();
    let releases = [
        environment.serving,
        rollout.and_then(|r| r.from),
        rollout.map(|r| r.to),
    ];
    let specs = releases
        .into_iter()
        .flatten()
        .filter_map(|release| bodies.get(&release));
    let routes = specs.flat_map(|body| &body.spec.routes);
    let mut claims: Vec<_> = routes
        .map(|(name, route)| (route.host.clone(), route.path.clone(), name.clone()))
        .collect();
    claims.sort();
    claims.dedup();
    claims
}

/// The routes in force: those of the release that is exposed, over those of the one it comes from while that
/// can still serve.
fn routes<'a>(
    environment: &Environment,
    bodies: &'a BTreeMap<ReleaseId, Arc<ReleaseBody>>,
) -> BTreeMap<RouteName, &'a RouteSpec> {
    let mut routes = BTreeMap::new();
    let rollout = environment.rollout.as_ref();
    let old = rollout.map_or(environment.serving, |rollout| rollout.from);
    let new = rollout.filter(|r| r.weights != Weights::OldOnly || r.from.is_none());
    let old_leads = rollout.is_none_or(|rollout| rollout.weights != Weights::NewOnly);
    for release in [old.filter(|_| old_leads), new.map(|rollout| rollout.to)]
        .into_iter()
        .flatten()
    {
        let Some(body) = bodies.get(&release) else {
            continue;
        };
        // A route that moved to another name keeps one owner: the newer claim wins.
        for (name, route) in &body.spec.routes {
            let same = |_: &RouteName, other: &mut &RouteSpec| {
                (other.host.as_str(), other.path.as_str()) != (&route.host, &route.path)
            };
            routes.retain(same);
            routes.insert(name.clone(), route);
        }
    }
    routes
}

/// The release whose settings hold for a service: the new one once it is exposed.
fn current_release(environment: &Environment) -> Option<ReleaseId> {
    match &environment.rollout {
        Some(rollout) if rollout.weights != Weights::OldOnly => Some(rollout.to),
        Some(rollout) => rollout.from.or(Some(rollout.to)),
        None => environment.serving,
    }
}

fn service_entry(
    environment: &Environment,
    service: &ServiceSpec,
    name: &ServiceName,
    traffic: &ServiceTraffic,
    page: Option<String>,
) -> Service {
    let mode = match traffic.mode {
        TrafficMode::Serve => Mode::Serve,
        TrafficMode::Pause => PAUSE,
        TrafficMode::Maintenance => Mode::Maintenance {
            retry_after_s: MAINTENANCE_RETRY_S,
            page,
        },
    };
    let groups = traffic.groups.iter().map(|(release, group)| {
        let members = group.members.iter();
        let backends =
            members.filter_map(|(id, member)| backend(environment, *release, name, id, *member));
        Group {
            release: *release,
            weight: group.weight,
            backends: backends.collect(),
        }
    });
    Service {
        mode,
        groups: groups.collect(),
        preview: traffic.preview,
        health: health_check(service),
        retry: RetryPolicy {
            attempts_max: 1,
            budget_percent: 20,
        },
        ejection: EjectionPolicy {
            failures: 5,
            first_ms: 10_000,
            max_ms: 300_000,
        },
        slow_start_ms: SLOW_START_MS,
    }
}

fn backend(
    environment: &Environment,
    release: ReleaseId,
    service: &ServiceName,
    id: &InstanceId,
    member: MemberState,
) -> Option<Backend> {
    let address = environment.instances.get(id)?.address?;
    let shape = environment.shape(release, service);
    let state = match member {
        MemberState::Serving => BackendState::Serving,
        MemberState::Leaving => LEAVING,
        MemberState::Draining => BackendState::Draining {
            requests_ms: shape.map_or(30_000, |shape| shape.drain.as_millis() as u64),
            streams_ms: shape.map_or(60_000, |shape| shape.stream_drain.as_millis() as u64),
        },
    };
    Some(Backend {
        id: backend_id(&environment.scope, id),
        address,
        state,
    })
}

/// The name of an instance in the proxy.
pub fn backend_id(scope: &Scope, instance: &InstanceId) -> String {
    format!("{scope}/{instance}")
}

/// The instance behind a backend's name, when it is one of this environment.
pub(crate) fn instance_of(scope: &Scope, backend: &str) -> Option<InstanceId> {
    backend.strip_prefix(&format!("{scope}/"))?.parse().ok()
}

/// The release in an instance's id: `api.r3.17` is of release 3.
pub(crate) fn release_of(instance: &InstanceId) -> Option<ReleaseId> {
    let release = instance.as_str().split('.').nth(1)?.strip_prefix('r')?;
    release.parse().ok()
}

fn health_check(service: &ServiceSpec) -> Option<HealthCheck> {
    let path = match &service.health.ready {
        Probe::Http { path } => Some(path.clone()),
        Probe::Tcp => None,
        Probe::None => return None,
    };
    Some(HealthCheck {
        path,
        interval_ms: service.health.interval.as_millis() as u64,
        timeout_ms: service.health.timeout.as_millis() as u64,
        unhealthy_after: service.health.unhealthy_after,
        healthy_after: service.health.healthy_after,
    })
}

fn route_entry(scope: &Scope, name: &RouteName, route: &RouteSpec) -> Route {
    Route {
        name: format!("{scope}/{name}"),
        host: route.host.clone(),
        path: route.path.clone(),
        service: ServiceKey::new(scope, &route.service),
        websocket: route.websocket,
        https_only: route.https_only,
        limits: RouteLimits {
            body_bytes_max: route.limits.body.0,
        },
        timeouts: RouteTimeouts {
            connect_ms: route.timeouts.connect.as_millis() as u64,
            first_byte_ms: route.timeouts.first_byte.as_millis() as u64,
            body_idle_ms: route.timeouts.idle.as_millis() as u64,
        },
    }
}

fn certificate(route: &RouteSpec) -> Option<Certificate> {
    let tls = route.tls.as_ref()?;
    Some(Certificate {
        hosts: vec![route.host.clone()],
        chain_path: tls.certificate.clone(),
        key_path: tls.key.clone(),
    })
}

/// Every (host, path) of a spec with the route's name.
pub(crate) fn wanted_claims(spec: &AppSpec) -> Vec<(String, String, RouteName, ServiceName)> {
    let claim = |(name, route): (&RouteName, &RouteSpec)| {
        (
            route.host.clone(),
            route.path.clone(),
            name.clone(),
            route.service.clone(),
        )
    };
    spec.routes.iter().map(claim).collect()
}
