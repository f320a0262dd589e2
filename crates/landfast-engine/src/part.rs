//! From the engine's table of one environment to its part of the proxy's snapshot.

use std::{collections::BTreeMap, sync::Arc};

use landfast_rollout::{Environment, MemberState, Rollout, ServiceTraffic, TrafficMode, Weights};
use landfast_routing::snapshot::{
    Backend, BackendState, Certificate, EjectionPolicy, Group, HealthCheck, Mode, RetryPolicy,
    Route, RouteAnswers, RouteLimits, RouteTimeouts, Service,
};
use landfast_spec::{AppSpec, Probe, RouteSpec, ServiceSpec};
use landfast_types::{InstanceId, ReleaseId, RouteName, Scope, ServiceKey, ServiceName};

use crate::{
    admission::admission,
    answers::{protocol, route_answers},
    plane::Part,
    release::ReleaseBody,
};

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
    let acme = served
        .iter()
        .filter(|(_, route)| route.acme)
        .map(|(_, route)| route.host.clone())
        .collect();
    let entries = served
        .iter()
        .map(|(name, route)| Route {
            answers: route_answers(environment, bodies, name, route),
            ..route_entry(scope, name, route)
        })
        .collect();
    Part {
        sequence: environment.sequence,
        revision: environment.traffic.revision,
        routes: entries,
        services,
        certificates,
        acme,
    }
}

/// The (host, path) pairs an environment holds now or will hold when what waits begins, with the name of the route.
pub fn claims(
    environment: &Environment,
    bodies: &BTreeMap<ReleaseId, Arc<ReleaseBody>>,
) -> Vec<(String, String, RouteName)> {
    let rollout = environment.rollout.as_ref();
    let releases = [
        environment.serving,
        rollout.and_then(|r| r.from),
        rollout.map(|r| r.to),
        environment.queued.as_ref().map(|queued| queued.to),
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
/// can still serve. In rolling a route gets to another service once that one is at size.
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
            if waits_for_size(environment, &routes, release, route) {
                continue;
            }
            let same = |_: &RouteName, other: &mut &RouteSpec| {
                (other.host.as_str(), other.path.as_str()) != (&route.host, &route.path)
            };
            routes.retain(same);
            routes.insert(name.clone(), route);
        }
    }
    routes
}

/// Whether a route of the new release stays out of force because rolling has not brought its service to size yet.
/// Until then requests go where the old release's routes send them, while somebody serves there.
fn waits_for_size(
    environment: &Environment,
    in_force: &BTreeMap<RouteName, &RouteSpec>,
    release: ReleaseId,
    route: &RouteSpec,
) -> bool {
    let rolls = |rollout: &&Rollout| {
        let comes = rollout.to == release && rollout.from.is_some_and(|from| from != release);
        comes && rollout.weights == Weights::ByCount && rollout.is_on_the_way()
    };
    if environment.rollout.as_ref().filter(rolls).is_none() {
        return false;
    }
    let covers = |other: &&&RouteSpec| other.host == route.host && other.path == route.path;
    let before = in_force.values().find(covers);
    if before.is_some_and(|before| before.service == route.service) {
        return false;
    }
    let served = before.is_none_or(|before| environment.traffic.capacity(&before.service) > 0);
    let whole = environment.replicas(Some(release), &route.service);
    served && environment.ready(&route.service).new < whole
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
        sticky: service.sticky,
        protocol: protocol(service.protocol),
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
        // The proxy asks what it can ask itself: whether the port is there.
        Probe::Image if service.port.is_some() => None,
        Probe::Image | Probe::None => return None,
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
        admission: admission(route),
        answers: RouteAnswers::default(),
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

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use landfast_rollout::{Action, Input, RolloutPlan};
    use landfast_types::{Digest, EnvironmentName, Timestamp};

    use super::*;
    use crate::release::topology;

    /// An app whose route leads to a service; `replicas` of each service.
    pub(crate) fn spec(route_to: &str, services: &[&str]) -> AppSpec {
        let mut text = format!(
            "app = \"shop\"\n[routes.public]\nhost = \"shop.example\"\nservice = \"{route_to}\"\n"
        );
        for service in services {
            text.push_str(&format!(
                "[services.{service}]\nartifact = \"a\"\ncommand = [\"./a\"]\nport = 3000\nreplicas = 2\n"
            ));
        }
        let production: EnvironmentName = "production".parse().unwrap();
        let parsed = landfast_spec::parse("landfast.toml", &text, &production);
        parsed
            .spec
            .unwrap_or_else(|| panic!("{:?}", parsed.diagnostics))
    }

    pub(crate) struct World {
        now: Timestamp,
        pub(crate) environment: Environment,
        pub(crate) bodies: BTreeMap<ReleaseId, Arc<ReleaseBody>>,
        parts: Vec<Part>,
    }

    impl World {
        pub(crate) fn new(app: &str) -> Self {
            Self {
                now: Timestamp::from_millis(1_790_000_000_000),
                environment: Environment::new(Scope {
                    app: app.parse().unwrap(),
                    environment: "production".parse().unwrap(),
                }),
                bodies: BTreeMap::new(),
                parts: Vec::new(),
            }
        }

        pub(crate) fn tell(&mut self, input: Input) {
            for event in self.environment.decide(self.now, input).unwrap() {
                self.environment.apply(&event);
            }
        }

        pub(crate) fn deploy(&mut self, spec: AppSpec) {
            let release = self.environment.next_release();
            let input = Input::Deploy {
                topology: topology(&spec, &crate::migrations::Sets::new()),
                plan: RolloutPlan {
                    standby: Duration::from_secs(30),
                    ..RolloutPlan::default()
                },
                supersede: true,
                by: "ann".into(),
            };
            let body = ReleaseBody {
                release,
                spec,
                artifacts: BTreeMap::new(),
                images: BTreeMap::new(),
                secrets: BTreeMap::new(),
                created_at: self.now,
                commit: None,
                note: None,
                fingerprint: Digest::of(b""),
            };
            self.bodies.insert(release, Arc::new(body));
            self.tell(input);
        }

        /// Everything is ready at once, the proxy confirms, nothing is in flight.
        pub(crate) fn second(&mut self) {
            self.now = self.now + Duration::from_secs(1);
            self.tell(Input::Tick);
            for action in self.environment.pending() {
                let input = match action {
                    Action::StartInstance { instance, .. } => {
                        let address = Some(([127, 0, 0, 1], 9).into());
                        self.tell(Input::Started {
                            instance: instance.clone(),
                            address,
                        });
                        let passing = true;
                        Input::Probed { instance, passing }
                    }
                    Action::StopInstance { instance, .. } => {
                        let exit = "stopped".into();
                        Input::Ended { instance, exit }
                    }
                    Action::Publish { revision } => {
                        self.parts.push(part(&self.environment, &self.bodies, true));
                        Input::TrafficConfirmed { revision }
                    }
                    Action::AwaitDrain { instance, .. } => Input::Drained { instance },
                    Action::JudgeGate { .. }
                    | Action::Migrate { .. }
                    | Action::RetireStore { .. }
                    | Action::ReadSchema { .. } => continue,
                    Action::Notify { rollout } => Input::Notified { rollout },
                };
                self.tell(input);
            }
        }

        pub(crate) fn settle(&mut self) {
            for _ in 0..1_000 {
                self.second();
                if self.environment.rollout.is_none() {
                    return;
                }
            }
            panic!("it never ended");
        }
    }

    /// How many instances get what is sent to the only route.
    fn answered_by(part: &Part) -> (String, usize) {
        let service = &part.routes[0].service;
        let groups = part.services[service].groups.iter();
        let serving = groups.filter(|group| group.weight > 0).flat_map(|group| {
            let backends = group.backends.iter();
            backends.filter(|backend| backend.state == BackendState::Serving)
        });
        (service.service.to_string(), serving.count())
    }

    #[test]
    fn rolling_moves_a_route_to_another_service_when_that_one_is_at_size() {
        // The service it leaves: gone in the new release, and kept there with a route of its own.
        for kept in [false, true] {
            let mut world = World::new("shop");
            world.deploy(spec("api", &["api"]));
            world.settle();
            world.parts.clear();
            let new = if kept {
                let mut new = spec("web", &["api", "web"]);
                let mut own = new.routes.values().next().unwrap().clone();
                own.host = "api.example".into();
                own.service = "api".parse().unwrap();
                new.routes.insert("zapi".parse().unwrap(), own);
                new
            } else {
                spec("web", &["web"])
            };
            world.deploy(new);
            world.settle();
            let answers: Vec<_> = world.parts.iter().map(answered_by).collect();
            let least = answers.iter().map(|(_, serving)| *serving).min();
            assert_eq!(least, Some(2), "{answers:?}");
            assert_eq!(answers.first().unwrap().0, "api");
            assert_eq!(answers.last().unwrap().0, "web");
            let mut order: Vec<_> = answers.into_iter().map(|(service, _)| service).collect();
            order.dedup();
            assert_eq!(order, ["api", "web"], "it moves once");
        }
    }

    #[test]
    fn what_waits_in_the_queue_is_claimed() {
        let mut world = World::new("shop");
        world.deploy(spec("api", &["api"]));
        world.settle();
        world.deploy(spec("api", &["api"]));
        world.second();
        let mut later = spec("api", &["api"]);
        later.routes.values_mut().next().unwrap().host = "later.example".into();
        world.deploy(later);
        assert!(world.environment.queued.is_some());
        let claims = claims(&world.environment, &world.bodies);
        let hosts: Vec<_> = claims.iter().map(|(host, _, _)| host.as_str()).collect();
        assert_eq!(hosts, ["later.example", "shop.example"]);
    }

    #[test]
    fn rolling_keeps_a_route_that_is_taken_back_before_it_moved() {
        let mut world = World::new("shop");
        world.deploy(spec("api", &["api"]));
        world.settle();
        world.parts.clear();
        world.deploy(spec("web", &["web"]));
        while world.environment.ready(&"web".parse().unwrap()).new == 0 {
            world.second();
        }
        world.tell(Input::Abort {
            by: "ann".into(),
            reason: "it looks wrong".into(),
        });
        world.settle();
        for part in &world.parts {
            assert_eq!(answered_by(part), ("api".into(), 2));
        }
    }
}
