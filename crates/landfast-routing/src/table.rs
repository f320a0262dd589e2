//! A [`Snapshot`] compiled for look-ups. What cannot be used of it becomes a problem in words and is left out;
//! the rest is served: one bad route must not take the others of the host down.
//!
//! The host is chosen first (exact, then a wildcard, then any), then the longest path prefix *of that host*:
//! a path an exact host does not claim is not found, even where a wildcard would have it.

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
};

use landfast_types::{Fence, ReleaseId, ServiceKey};

use crate::{
    admission::{Gate, other_reading},
    headers::host_name,
    schedule::Schedule,
    snapshot::{
        BackendState, EjectionPolicy, HealthCheck, Mode, Protocol, RetryPolicy, Route,
        SNAPSHOT_VERSION, Snapshot,
    },
    sticky,
};

/// All routes of a host, ready to be asked.
#[derive(Debug, Default)]
pub struct Table {
    pub fence: Fence,
    pub routes: Vec<TableRoute>,
    pub services: Vec<TableService>,
    pub groups: Vec<TableGroup>,
    pub backends: Vec<TableBackend>,
    exact: HashMap<String, Vec<usize>>,
    /// By what follows `*.`.
    wildcard: HashMap<String, Vec<usize>>,
    any: Vec<usize>,
}

/// A route and the service it leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableRoute {
    pub route: Route,
    /// Into [`Table::services`].
    pub service: usize,
    /// Into [`Table::routes`]: its own place.
    pub index: usize,
    /// The route's admission, ready to be asked.
    pub gate: Gate,
}

/// A service with its order of groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableService {
    pub key: ServiceKey,
    pub mode: Mode,
    /// Into [`Table::groups`].
    pub groups: Vec<usize>,
    /// Says which of `groups` gets the next request.
    pub schedule: Schedule,
    /// Into [`Table::groups`].
    pub preview: Option<usize>,
    pub health: Option<HealthCheck>,
    pub retry: RetryPolicy,
    pub ejection: EjectionPolicy,
    pub slow_start_ms: u64,
    /// The name of the cookie that keeps clients where they are.
    pub sticky: Option<String>,
    pub protocol: Protocol,
}

/// The backends of one release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableGroup {
    pub release: ReleaseId,
    pub weight: u32,
    /// Those that get new requests, into [`Table::backends`].
    pub serving: Vec<usize>,
}

/// One instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableBackend {
    pub id: String,
    pub address: SocketAddr,
    pub state: BackendState,
    pub release: ReleaseId,
    /// Into [`Table::services`].
    pub service: usize,
}

impl Table {
    /// Compiles a snapshot. The second part says what of it could not be used.
    pub fn compile(snapshot: &Snapshot) -> (Self, Vec<String>) {
        let mut table = Self {
            fence: snapshot.fence,
            ..Self::default()
        };
        let mut problems = Vec::new();
        if snapshot.version > SNAPSHOT_VERSION {
            problems.push(format!(
                "the snapshot has version {}, this proxy knows {SNAPSHOT_VERSION}",
                snapshot.version
            ));
        }
        let mut indices = HashMap::new();
        let mut ids = BTreeSet::new();
        for (key, service) in &snapshot.services {
            indices.insert(key.clone(), table.services.len());
            table.add_service(key, service, &mut ids, &mut problems);
        }
        for route in &snapshot.routes {
            match usable(route, &indices) {
                Ok(service) => table.add_route(route, service, &mut problems),
                Err(problem) => problems.push(format!("route `{}`: {problem}", route.name)),
            }
        }
        table.sort_routes();
        (table, problems)
    }

    /// The route of a request, and nothing where no route has its host or path. `host` may carry a port.
    pub fn find(&self, host: &str, path: &str) -> Option<&TableRoute> {
        let host = host_name(host);
        let lower;
        let host = if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
            lower = host.to_ascii_lowercase();
            lower.as_str()
        } else {
            host
        };
        let wildcard = || {
            host.split_once('.')
                .and_then(|(_, rest)| self.wildcard.get(rest))
        };
        let routes = self.exact.get(host).or_else(wildcard).unwrap_or(&self.any);
        let matching = |index: &&usize| prefix_matches(&self.routes[**index].route.path, path);
        routes
            .iter()
            .find(matching)
            .map(|index| &self.routes[*index])
    }

    /// Whether a path that leads to `found` would lead elsewhere if it were read as a lenient application reads it:
    /// then what guards one of the two routes would not guard what the application serves.
    pub fn is_ambiguous(&self, host: &str, path: &str, found: &TableRoute) -> bool {
        let Some(read) = other_reading(path) else {
            return false;
        };
        let other = self.find(host, &read);
        other.is_none_or(|other| other.index != found.index)
    }

    fn add_service(
        &mut self,
        key: &ServiceKey,
        service: &crate::snapshot::Service,
        ids: &mut BTreeSet<String>,
        problems: &mut Vec<String>,
    ) {
        let index = self.services.len();
        let mut groups = Vec::with_capacity(service.groups.len());
        let mut preview = None;
        for group in &service.groups {
            let mut serving = Vec::new();
            for backend in &group.backends {
                if !ids.insert(backend.id.clone()) {
                    problems.push(format!("backend `{}` appears twice", backend.id));
                    continue;
                }
                if backend.state == BackendState::Serving {
                    serving.push(self.backends.len());
                }
                self.backends.push(TableBackend {
                    id: backend.id.clone(),
                    address: backend.address,
                    state: backend.state,
                    release: group.release,
                    service: index,
                });
            }
            if service.preview == Some(group.release) {
                preview = Some(self.groups.len());
            }
            groups.push(self.groups.len());
            self.groups.push(TableGroup {
                release: group.release,
                weight: group.weight,
                serving,
            });
        }
        if let (Some(release), None) = (service.preview, preview) {
            problems.push(format!(
                "service `{key}` has no group of its preview release {release}"
            ));
        }
        let weights: Vec<u32> = service.groups.iter().map(|group| group.weight).collect();
        self.services.push(TableService {
            key: key.clone(),
            mode: service.mode.clone(),
            groups,
            schedule: Schedule::new(&weights),
            preview,
            health: service.health.clone(),
            retry: service.retry.clone(),
            ejection: service.ejection.clone(),
            slow_start_ms: service.slow_start_ms,
            sticky: service.sticky.then(|| sticky::cookie_name(key)),
            protocol: service.protocol,
        });
    }

    fn add_route(&mut self, route: &Route, service: usize, problems: &mut Vec<String>) {
        let mut route = route.clone();
        route.host.make_ascii_lowercase();
        // `/api/` and `/api` are one prefix; the root is the empty one.
        route.path.truncate(route.path.trim_end_matches('/').len());
        let list = match route.host.strip_prefix("*.") {
            Some(rest) => self.wildcard.entry(rest.to_owned()).or_default(),
            None if route.host == "*" => &mut self.any,
            None => self.exact.entry(route.host.clone()).or_default(),
        };
        if let Some(owner) = list
            .iter()
            .find(|index| self.routes[**index].route.path == route.path)
        {
            let owner = &self.routes[*owner].route.name;
            problems.push(format!(
                "route `{}`: host `{}` with path `{}/` belongs to route `{owner}`",
                route.name, route.host, route.path
            ));
            return;
        }
        let mut found = Vec::new();
        let gate = Gate::compile(&route.admission, &mut found);
        let named = |problem| format!("route `{}`: {problem}", route.name);
        problems.extend(found.into_iter().map(named));
        let index = self.routes.len();
        list.push(index);
        self.routes.push(TableRoute {
            route,
            service,
            index,
            gate,
        });
    }

    /// Longest prefix first, so that the first match is the right one.
    fn sort_routes(&mut self) {
        let routes = &self.routes;
        let length = |index: &usize| std::cmp::Reverse(routes[*index].route.path.len());
        self.exact
            .values_mut()
            .for_each(|list| list.sort_by_key(length));
        self.wildcard
            .values_mut()
            .for_each(|list| list.sort_by_key(length));
        self.any.sort_by_key(length);
    }
}

fn usable(route: &Route, services: &HashMap<ServiceKey, usize>) -> Result<usize, String> {
    let name = route.host.strip_prefix("*.").unwrap_or(&route.host);
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:[]".contains(c);
    if route.host != "*" && (name.is_empty() || !name.chars().all(plain)) {
        return Err(format!("`{}` is not a host", route.host));
    }
    if !route.path.starts_with('/') {
        return Err(format!("the path `{}` does not begin with `/`", route.path));
    }
    let service = services.get(&route.service);
    service
        .copied()
        .ok_or_else(|| format!("there is no service `{}`", route.service))
}

/// Whether a prefix (without a final `/`) covers a path at a segment's end.
fn prefix_matches(prefix: &str, path: &str) -> bool {
    path.strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::snapshot::{Backend, Group, RouteAnswers, RouteLimits, RouteTimeouts, Service};

    fn key(text: &str) -> ServiceKey {
        text.parse().expect("a key")
    }

    fn route(host: &str, path: &str, service: &str) -> Route {
        Route {
            name: format!("{host}{path}"),
            host: host.into(),
            path: path.into(),
            service: key(service),
            websocket: true,
            https_only: false,
            limits: RouteLimits { body_bytes_max: 1 },
            timeouts: RouteTimeouts {
                connect_ms: 1,
                first_byte_ms: 1,
                body_idle_ms: 1,
            },
            admission: crate::admission::Admission::default(),
            answers: RouteAnswers::default(),
        }
    }

    fn service(groups: &[(u64, u32, &[&str])]) -> Service {
        let backend = |id: &&str| Backend {
            id: (*id).into(),
            address: "127.0.0.1:1".parse().expect("an address"),
            state: if id.ends_with('d') {
                BackendState::Draining {
                    requests_ms: 1,
                    streams_ms: 1,
                }
            } else {
                BackendState::Serving
            },
        };
        let group = |(release, weight, ids): &(u64, u32, &[&str])| Group {
            release: ReleaseId(*release),
            weight: *weight,
            backends: ids.iter().map(backend).collect(),
        };
        Service {
            mode: Mode::Serve,
            groups: groups.iter().map(group).collect(),
            preview: None,
            health: None,
            retry: RetryPolicy {
                attempts_max: 1,
                budget_percent: 20,
            },
            ejection: EjectionPolicy {
                failures: 5,
                first_ms: 1,
                max_ms: 2,
            },
            slow_start_ms: 0,
            sticky: false,
            protocol: Protocol::default(),
        }
    }

    fn table(routes: Vec<Route>) -> (Table, Vec<String>) {
        let services = [(key("a/b/c"), service(&[])), (key("a/b/d"), service(&[]))].into();
        Table::compile(&Snapshot {
            version: 1,
            routes,
            services,
            ..Snapshot::default()
        })
    }

    #[test]
    fn the_host_is_chosen_first_then_the_longest_prefix() {
        let (table, problems) = table(vec![
            route("*", "/", "a/b/c"),
            route("a.example", "/", "a/b/c"),
            route("a.example", "/api", "a/b/d"),
            route("a.example", "/api/deep/", "a/b/c"),
            route("*.example", "/w", "a/b/c"),
            route("B.example", "/only", "a/b/c"),
        ]);
        assert!(problems.is_empty(), "{problems:?}");
        for (host, path, name) in [
            ("a.example", "/", Some("a.example/")),
            ("A.Example.:8080", "/api", Some("a.example/api")),
            ("a.example", "/api/x", Some("a.example/api")),
            ("a.example", "/apix", Some("a.example/")),
            ("a.example", "/api/deep", Some("a.example/api/deep/")),
            ("a.example", "/api/deepest", Some("a.example/api")),
            ("z.example", "/w", Some("*.example/w")),
            ("z.example", "/v", None),
            ("y.z.example", "/w", Some("*/")),
            ("example", "/w", Some("*/")),
            ("b.example", "/w", None),
            ("b.example", "/only/x", Some("B.example/only")),
            ("other", "/x", Some("*/")),
        ] {
            let found = table
                .find(host, path)
                .map(|found| found.route.name.as_str());
            assert_eq!(found, name, "{host}{path}");
        }
    }

    #[test]
    fn an_unknown_host_leads_nowhere() {
        let (table, _) = table(vec![route("a.example", "/", "a/b/c")]);
        assert!(table.find("b.example", "/").is_none());
        assert!(Table::default().find("a", "/").is_none());
    }

    #[test]
    fn a_path_that_two_routes_could_read_as_theirs_is_ambiguous() {
        let (table, _) = table(vec![
            route("a.example", "/", "a/b/c"),
            route("a.example", "/admin", "a/b/d"),
            route("b.example", "/only", "a/b/d"),
        ]);
        for (host, path, expected) in [
            ("a.example", "/x", false),
            ("a.example", "//x", false),
            ("a.example", "/files/a%2fb", false),
            ("a.example", "/admin/../admin/x", false),
            ("a.example", "//admin", true),
            ("a.example", "/%61dmin", true),
            ("a.example", "/x/..;/admin", true),
            ("a.example", "/admin/../x", true),
            ("b.example", "/only/../x", true),
        ] {
            let found = table.find(host, path).expect("a route");
            assert_eq!(
                table.is_ambiguous(host, path, found),
                expected,
                "{host}{path}"
            );
        }
    }

    #[test]
    fn what_cannot_be_used_is_named_and_the_rest_serves() {
        let (table, problems) = table(vec![
            route("a.example", "/", "a/b/c"),
            route("a.example", "", "a/b/c"),
            route("a b", "/", "a/b/c"),
            route("b.example", "/", "a/b/missing"),
            route("A.example", "//", "a/b/d"),
        ]);
        assert_eq!(problems.len(), 4, "{problems:#?}");
        assert!(
            problems[3].contains("belongs to route `a.example/`"),
            "{problems:?}"
        );
        assert_eq!(table.routes.len(), 1);
    }

    #[test]
    fn only_serving_backends_are_offered_and_ids_are_unique() {
        let mut wanted = service(&[(1, 95, &["x", "yd"]), (2, 5, &["z", "x"])]);
        wanted.preview = Some(ReleaseId(2));
        let snapshot = Snapshot {
            services: [(key("a/b/c"), wanted)].into(),
            ..Snapshot::default()
        };
        let (table, problems) = Table::compile(&snapshot);
        assert_eq!(problems, ["backend `x` appears twice"]);
        assert_eq!(table.groups[0].serving, [0]);
        assert_eq!(table.groups[1].serving, [2]);
        assert_eq!(table.services[0].preview, Some(1));
        assert_eq!(table.services[0].schedule.period(), 20);
    }

    proptest! {
        #[test]
        fn a_match_is_a_prefix_at_a_segment_and_none_longer_matches(
            prefixes in prop::collection::btree_set("(/[ab]{1,2}){0,3}", 1..6), path in "(/[ab]{1,2}){1,4}",
        ) {
            let routes = prefixes.iter().map(|p| route("h", &format!("{p}/"), "a/b/c")).collect();
            let (table, _) = table(routes);
            let naive = prefixes.iter()
                .filter(|p| path == **p || path.starts_with(&format!("{p}/")))
                .max_by_key(|p| p.len());
            prop_assert_eq!(table.find("h", &path).map(|found| &found.route.path), naive);
        }
    }
}
