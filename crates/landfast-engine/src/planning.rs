//! What a deploy would need and claim, compared with what this host has: the same answer for `plan` and for the
//! preflight gate.

use std::{collections::BTreeMap, fmt::Display, fs, path::Path, sync::Arc};

use landfast_doctor::{Facts, Level, Needs, Places};
use landfast_rollout::{Gate, Rejected, RolloutPlan, Strategy};
use landfast_routing::snapshot::Certificate;
use landfast_shim::find_program;
use landfast_spec::{AppSpec, Place, RouteSpec, ServiceSpec};
use landfast_store::Store;
use landfast_types::{Bytes, Cpu, Digest, ReleaseId, Scope, ServiceName};

use crate::{
    driver::View,
    part::{claims, wanted_claims},
    shared::Shared,
};

/// Memory and CPU at the highest moment of a rollout.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Peak {
    pub old: Need,
    pub new: Need,
    /// What stays up beside the new release until the seal.
    pub standby: Need,
    /// The highest sum at one moment.
    pub peak: Need,
    /// Promised to other environments of this host.
    pub others: Need,
    pub host: Need,
    /// Services without `resources`: their use is not in the sums.
    pub unbounded: Vec<ServiceName>,
}

impl Peak {
    /// Whether the host can carry it.
    pub fn fits(&self) -> bool {
        let need = self.peak.plus(self.others);
        need.memory <= self.host.memory && need.cpu.millicores <= self.host.cpu.millicores
    }

    /// What the host has too little of.
    fn shortages(&self) -> Vec<Refusal> {
        let need = self.peak.plus(self.others);
        let hint =
            "use the recreate strategy, fewer replicas, smaller `resources`, or a larger host";
        let refusal = |code, what, peak: &dyn Display, others: &dyn Display, host: &dyn Display| {
            let reason = format!(
                "the rollout and its way back need up to {peak} of {what}, other environments {others}, and the host has {host}"
            );
            let hint = Some(hint.to_owned());
            Refusal { code, reason, hint }
        };
        let (peak, others, host) = (&self.peak, &self.others, &self.host);
        let memory = (need.memory > host.memory).then(|| {
            let word = "memory-short";
            refusal(word, "memory", &peak.memory, &others.memory, &host.memory)
        });
        let cpu = (need.cpu.millicores > host.cpu.millicores)
            .then(|| refusal("cpu-short", "CPU", &peak.cpu, &others.cpu, &host.cpu));
        memory.into_iter().chain(cpu).collect()
    }
}

/// An amount of memory and CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Need {
    pub memory: Bytes,
    pub cpu: Cpu,
}

impl Need {
    fn plus(self, other: Self) -> Self {
        Self {
            memory: Bytes(self.memory.0 + other.memory.0),
            cpu: Cpu {
                millicores: self.cpu.millicores + other.cpu.millicores,
            },
        }
    }

    fn max(self, other: Self) -> Self {
        Self {
            memory: self.memory.max(other.memory),
            cpu: self.cpu.max(other.cpu),
        }
    }

    fn of_stores(spec: &AppSpec) -> Self {
        let managed = spec.stores.values().filter_map(|store| match store.place {
            Place::Managed { memory, .. } => Some(memory.0),
            Place::External { .. } | Place::Bucket { .. } => None,
        });
        Self {
            memory: Bytes(managed.sum()),
            cpu: Cpu::default(),
        }
    }

    fn of(service: &ServiceSpec, instances: u32) -> Self {
        let memory = service.resources.memory.unwrap_or_default().0 * u64::from(instances);
        let cpu = service.resources.cpu.unwrap_or_default().millicores * u64::from(instances);
        Self {
            memory: Bytes(memory),
            cpu: Cpu { millicores: cpu },
        }
    }
}

/// Why a deploy would be refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub code: &'static str,
    pub reason: String,
    pub hint: Option<String>,
}

/// A (host, path) somebody else owns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TakenRoute {
    pub host: String,
    pub path: String,
    /// `app/environment/route`.
    pub owner: String,
}

/// The routes of a spec that other environments of this host own.
pub fn taken_routes(shared: &Shared, scope: &Scope, spec: &AppSpec) -> Vec<TakenRoute> {
    taken_among(&shared.environments(), scope, spec)
}

/// Why a rollback would claim what somebody else owns by now: its release may have routes that were given up since.
pub(crate) fn rollback_taken(
    views: &[Arc<View>],
    view: &View,
    to: Option<ReleaseId>,
) -> Option<Rejected> {
    if view.state.rollout.is_some() {
        // It is an abort: both releases hold their routes.
        return None;
    }
    let release = to.or_else(|| view.state.rollback_target())?;
    let body = view.bodies.get(&release)?;
    let taken = taken_among(views, &view.state.scope, &body.spec);
    taken.into_iter().next().map(|taken| Rejected::RouteTaken {
        release,
        route: format!("{}{}", taken.host, taken.path),
        owner: taken.owner,
    })
}

fn taken_among(views: &[Arc<View>], scope: &Scope, spec: &AppSpec) -> Vec<TakenRoute> {
    let mut taken = Vec::new();
    let others = views.iter().filter(|view| view.state.scope != *scope);
    let owned: BTreeMap<(String, String), String> = others
        .flat_map(|view| {
            let claims = claims(&view.state, &view.bodies);
            claims
                .into_iter()
                .map(|(host, path, name)| ((host, path), format!("{}/{name}", view.state.scope)))
        })
        .collect();
    for (host, path, _, _) in wanted_claims(spec) {
        if let Some(owner) = owned.get(&(host.clone(), path.clone())) {
            taken.push(TakenRoute {
                host,
                path,
                owner: owner.clone(),
            });
        }
    }
    taken
}

/// Routes that would change their service by a strategy that cannot move them: a route leads to one service at a
/// time, so a canary could not send it its share only, and would compare two different services.
pub fn moved_routes(view: &View, spec: &AppSpec, plan: &RolloutPlan) -> Vec<Refusal> {
    let leaves = release_left(view).and_then(|release| view.bodies.get(&release));
    leaves.map_or_else(Vec::new, |body| {
        unmovable_routes(&body.spec, spec, &plan.strategy)
    })
}

/// The release a deploy of now would come from.
fn release_left(view: &View) -> Option<ReleaseId> {
    match &view.state.rollout {
        Some(rollout) if rollout.is_promoted() => Some(rollout.to),
        Some(_) | None => view.state.serving,
    }
}

fn unmovable_routes(old: &AppSpec, new: &AppSpec, strategy: &Strategy) -> Vec<Refusal> {
    let exclusive = |spec: &AppSpec| spec.services.values().any(|service| service.exclusive);
    if exclusive(old) || exclusive(new) {
        // It is a recreate, whatever the plan says.
        return Vec::new();
    }
    let mut refusals = Vec::new();
    for (name, route) in &new.routes {
        let claims = |other: &&RouteSpec| other.host == route.host && other.path == route.path;
        let Some(before) = old.routes.values().find(claims) else {
            continue;
        };
        let (from, to) = (&before.service, &route.service);
        // A service that goes on without a route is replaced by instances that nobody is sent to.
        let loses_its_routes =
            new.services.contains_key(from) && new.routes_of(from).next().is_none();
        let movable = match strategy {
            Strategy::BlueGreen | Strategy::Recreate => true,
            Strategy::Rolling { .. } => !loses_its_routes,
            Strategy::Canary { .. } => false,
        };
        if from != to && !movable {
            refusals.push(Refusal {
                code: "route-moves",
                reason: format!(
                    "route `{name}` ({}{}) leads to service `{from}` now and to `{to}` in this release, which \
                     {} cannot do without sending requests to the wrong one",
                    route.host,
                    route.path,
                    strategy.name()
                ),
                hint: Some(
                    "deploy this release with `--strategy blue-green` (or `recreate`), which move a route in one \
                     switch"
                        .into(),
                ),
            });
        }
    }
    refusals
}

/// What a rollout to this spec needs at its highest moment.
pub fn peak(shared: &Shared, view: &View, spec: &AppSpec, plan: &RolloutPlan) -> Peak {
    let state = &view.state;
    let mut peak = rollout_peak(view, state.serving, spec, plan);
    // Stores run through it all, once.
    let stores = Need::of_stores(spec);
    peak.new = peak.new.plus(stores);
    peak.peak = peak.peak.plus(stores);
    peak.host = host();
    let others = shared.environments();
    for other in others
        .iter()
        .filter(|other| other.state.scope != state.scope)
    {
        peak.others = peak.others.plus(promised(other));
    }
    peak
}

fn rollout_peak(view: &View, from: Option<ReleaseId>, spec: &AppSpec, plan: &RolloutPlan) -> Peak {
    let strategy = &plan.strategy;
    let mut peak = Peak::default();
    // What each service has beyond its replicas: while it moves, and for the smoke job until it does.
    let mut extras: Vec<(Need, Need)> = Vec::new();
    for (name, service) in &spec.services {
        // What was set by hand holds until the manifest's own number changes.
        let replicas = match view.state.scale.get(name) {
            Some(over) if over.manifest == service.replicas => over.replicas,
            Some(_) | None => service.replicas,
        };
        if service.resources.memory.is_none() {
            peak.unbounded.push(name.clone());
        }
        peak.new = peak.new.plus(Need::of(service, replicas));
        let extra = match strategy {
            Strategy::Rolling { max_surge, .. } => max_surge.of(replicas),
            Strategy::BlueGreen | Strategy::Canary { .. } | Strategy::Recreate => 0,
        };
        let asked = plan.gates.contains(&Gate::Smoke) && spec.routes_of(name).next().is_some();
        let tested = if asked { extra.min(1) } else { 0 };
        extras.push((Need::of(service, extra), Need::of(service, tested)));
    }
    let beside = |moving: usize| {
        let others = extras.iter().enumerate().filter(|(own, _)| *own != moving);
        others.fold(extras[moving].0, |sum, (_, (_, tested))| sum.plus(*tested))
    };
    let surge = (0..extras.len()).map(beside);
    let surge = surge.fold(Need::default(), Need::max);
    let old_spec = from
        .and_then(|release| view.bodies.get(&release))
        .map(|body| &body.spec);
    for (name, service) in old_spec.iter().flat_map(|spec| &spec.services) {
        let need = Need::of(service, view.state.replicas(from, name));
        peak.old = peak.old.plus(need);
        let routed = old_spec.is_some_and(|spec| spec.routes_of(name).next().is_some());
        let stays = matches!(strategy, Strategy::BlueGreen | Strategy::Canary { .. });
        if stays && routed {
            peak.standby = peak.standby.plus(need);
        }
    }
    peak.peak = match strategy {
        // The way back restores the old release's capacity before it takes any from the new one.
        Strategy::Rolling { .. } => {
            let forth = peak.old.max(peak.new).plus(surge);
            forth.max(peak.old.plus(peak.new))
        }
        Strategy::BlueGreen | Strategy::Canary { .. } => peak.old.plus(peak.new),
        Strategy::Recreate => peak.old.max(peak.new),
    };
    peak
}

/// What an environment may use: as it is, or at the highest moment of the rollout that moves it; with its stores.
fn promised(view: &View) -> Need {
    let newest = view.bodies.last_key_value();
    let stores = newest.map(|(_, body)| Need::of_stores(&body.spec));
    promised_instances(view).plus(stores.unwrap_or_default())
}

fn promised_instances(view: &View) -> Need {
    let moving = view.state.rollout.as_ref().and_then(|rollout| {
        let spec = &view.bodies.get(&rollout.to)?.spec;
        Some(rollout_peak(view, rollout.from, spec, &rollout.plan).peak)
    });
    let serving = || {
        let body = view.state.serving.and_then(|id| view.bodies.get(&id));
        let services = body.into_iter().flat_map(|body| &body.spec.services);
        services.fold(Need::default(), |sum, (name, service)| {
            sum.plus(Need::of(
                service,
                view.state.replicas(view.state.serving, name),
            ))
        })
    };
    moving.unwrap_or_else(serving)
}

/// What all environments together may use as they are.
pub fn promised_all(views: &[Arc<View>]) -> Need {
    views
        .iter()
        .fold(Need::default(), |sum, view| sum.plus(promised(view)))
}

/// Everything that speaks against a rollout to this spec on this host.
pub fn refusals(
    shared: &Shared,
    view: &View,
    spec: &AppSpec,
    artifacts: &BTreeMap<String, Digest>,
    plan: &RolloutPlan,
) -> Vec<Refusal> {
    let mut refusals = crate::stores::refusals(shared, &view.state.scope, spec);
    refusals.extend(crate::platform::image_refusals(spec));
    refusals.extend(processes_refused(shared, spec));
    for taken in taken_routes(shared, &view.state.scope, spec) {
        refusals.push(Refusal {
            code: "route-taken",
            reason: format!("{}{} belongs to {}", taken.host, taken.path, taken.owner),
            hint: Some("choose another host or path, or remove the route there first".into()),
        });
    }
    refusals.extend(moved_routes(view, spec, plan));
    refusals.extend(peak(shared, view, spec, plan).shortages());
    refusals.extend(commands_missing(shared, spec, artifacts));
    // What is not uploaded yet cannot be read.
    if crate::migrations::are_there(&shared.store, spec, artifacts) {
        match crate::migrations::sets(&shared.store, spec, artifacts) {
            Ok(sets) => refusals.extend(crate::migrations::unsafe_ones(&view.state, &sets)),
            Err(invalid) => refusals.extend(invalid),
        }
    }
    refusals.extend(certificates_unusable(spec));
    refusals.extend(host_unfit(&shared.folders.state));
    refusals
}

/// Services and jobs that are processes, where none runs.
pub(crate) fn processes_refused(shared: &Shared, spec: &AppSpec) -> Vec<Refusal> {
    let Some(reason) = shared.target.no_processes() else {
        return Vec::new();
    };
    let services = spec.services.iter();
    let services = services.filter(|(_, service)| service.container.is_none());
    let services = services.map(|(name, _)| format!("service `{name}`"));
    let jobs = spec.jobs.iter();
    let jobs = jobs.filter(|(_, job)| job.container.is_none());
    let jobs = jobs.map(|(name, _)| format!("job `{name}`"));
    let refusal = |what: String| {
        Refusal {
        code: "processes-refused",
        reason: format!("{what} is a process: {reason}"),
        hint: Some("give it an `image` or a `build` in place of its `artifact` (`landfast export dockerfile` writes a Dockerfile), or run the server on the host itself".to_owned()),
    }
    };
    services.chain(jobs).map(refusal).collect()
}

/// Every command must name something that can be run.
fn commands_missing(
    shared: &Shared,
    spec: &AppSpec,
    artifacts: &BTreeMap<String, Digest>,
) -> Vec<Refusal> {
    let mut refusals = commands_not_inside(&shared.store, spec, artifacts);
    let services = spec.services.iter();
    let services = services.filter(|(_, service)| service.container.is_none());
    let services = services.map(|(name, service)| (name.to_string(), &service.command));
    let jobs = spec.jobs.iter();
    let jobs = jobs.filter(|(_, job)| job.container.is_none());
    let jobs = jobs.map(|(name, job)| (name.to_string(), &job.command));
    for (name, command) in services.chain(jobs) {
        let Some(program) = command.first() else {
            continue;
        };
        if !program.contains('/') && !is_in_path(program) {
            refusals.push(Refusal {
                code: "command-missing",
                reason: format!("`{name}` starts `{program}`, which is not in PATH on this host"),
                hint: Some(format!(
                    "install it, or write `./{program}` if it is in the artifact"
                )),
            });
        }
    }
    refusals
}

/// A relative command with a slash is inside the artifact: where the artifact is stored, nothing that happens later
/// can put it there.
pub(crate) fn commands_not_inside(
    store: &Store,
    spec: &AppSpec,
    artifacts: &BTreeMap<String, Digest>,
) -> Vec<Refusal> {
    let services = spec.services.iter().filter_map(|(name, service)| {
        let artifact = service.artifact.as_ref()?;
        Some((format!("service `{name}`"), artifact, &service.command))
    });
    let jobs = spec.jobs.iter().filter_map(|(name, job)| {
        let artifact = job.artifact.as_ref()?;
        Some((format!("job `{name}`"), artifact, &job.command))
    });
    let refusal = |(process, artifact, command): (String, &String, &Vec<String>)| {
        let digest = artifacts.get(artifact)?;
        let folder = store.path(digest)?;
        let program = command.first()?;
        let is_inside = program.contains('/') && !program.starts_with('/');
        if !is_inside || find_program(program, &folder, None).is_some() {
            return None;
        }
        let what = if folder.join(program).is_file() {
            "is not executable"
        } else {
            "is not there"
        };
        Some(Refusal {
            code: "command-missing",
            reason: format!(
                "{process} starts `{program}`, which {what} in its artifact `{artifact}` ({})",
                digest.short()
            ),
            hint: Some(format!(
                "the artifact holds {} at its top level: correct `command`, or what `artifact` names",
                names(&folder)
            )),
        })
    };
    services.chain(jobs).filter_map(refusal).collect()
}

fn is_in_path(program: &str) -> bool {
    let folders = [
        "/usr/local/sbin",
        "/usr/local/bin",
        "/usr/sbin",
        "/usr/bin",
        "/sbin",
        "/bin",
    ];
    folders
        .iter()
        .any(|folder| Path::new(folder).join(program).is_file())
}

fn names(folder: &Path) -> String {
    let Ok(entries) = fs::read_dir(folder) else {
        return "nothing that can be read".into();
    };
    let mut names: Vec<_> = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    let more = names.len().saturating_sub(8);
    names.truncate(8);
    let rest = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    format!("{}{rest}", names.join(", "))
}

/// A certificate the proxy cannot use leaves its host without TLS: that is for before the deploy.
fn certificates_unusable(spec: &AppSpec) -> Vec<Refusal> {
    let tls = spec
        .routes
        .iter()
        .filter_map(|(name, route)| Some((name, route, route.tls.as_ref()?)));
    let unusable = tls.filter_map(|(name, route, tls)| {
        let pair = Certificate {
            hosts: vec![route.host.to_string()],
            chain_path: tls.certificate.clone(),
            key_path: tls.key.clone(),
        };
        let problem = landfast_proxy::check_certificate(&pair).err()?;
        Some(Refusal {
            code: "certificate-unreadable",
            reason: format!("route `{name}`: {problem}"),
            hint: Some(
                "`certificate` is a PEM chain and `key` its PEM key; the server's user must be able to read both"
                    .into(),
            ),
        })
    });
    unusable.collect()
}

/// What `landfast doctor` calls a failure of this host. Memory and CPU are judged by the rollout's own peak.
fn host_unfit(state: &Path) -> Vec<Refusal> {
    let places = Places {
        state: state.to_owned(),
        ports: Vec::new(),
    };
    let facts = landfast_doctor::measure(&places, |_| None);
    unfit(&facts)
}

fn unfit(facts: &Facts) -> Vec<Refusal> {
    let findings = landfast_doctor::judge(facts, &Needs::default());
    let failures = findings.into_iter().filter(|one| one.level == Level::Fail);
    failures
        .map(|one| Refusal {
            code: match one.check {
                "disk-space" => "disk-short",
                _ => "host-unfit",
            },
            reason: format!("{}: {}", one.check, one.measured),
            hint: one.advice,
        })
        .collect()
}

/// What this host has.
pub fn host() -> Need {
    let memory = landfast_doctor::memory().0.map(Bytes);
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    Need {
        memory: memory.unwrap_or(Bytes(u64::MAX >> 1)),
        cpu: Cpu {
            millicores: cores * 1_000,
        },
    }
}

/// How long a rollback of this plan takes, in words and in milliseconds, when the release is up.
pub fn rollback_estimate(view: &View, plan: &RolloutPlan) -> (u64, String) {
    let ready = plan.min_ready.as_millis() as u64;
    let from = view
        .state
        .serving
        .map_or("none".to_owned(), |release| release.to_string());
    match plan.strategy {
        Strategy::BlueGreen | Strategy::Canary { .. } => (
            1_000,
            format!("switch back: release {from} stands by at full capacity until the seal"),
        ),
        Strategy::Rolling { .. } => (
            ready + 2_000,
            format!("start the instances of release {from} first, then switch back"),
        ),
        Strategy::Recreate => (
            ready + 3_000,
            format!("hold requests, end the new release, start release {from} again"),
        ),
    }
}

/// A view of an environment that does not exist yet.
pub(crate) fn empty_view(scope: &Scope) -> Arc<View> {
    Arc::new(View::new(landfast_rollout::Environment::new(scope.clone())))
}

#[cfg(test)]
mod tests {
    use landfast_rollout::Amount;
    use landfast_types::{EnvironmentName, Percent};

    use super::*;
    use crate::release;

    const SPEC: &str = r#"
app = "shop"
[services.api]
artifact = "program"
command = ["COMMAND"]
port = 80
replicas = 3
resources = { cpu = "500m", memory = "100MiB" }
[routes.public]
host = "shop.example"
service = "api"
"#;

    /// Two services and what is said of routes.
    fn two(text: &str) -> AppSpec {
        let mut manifest = "app = \"shop\"\n".to_owned();
        for service in ["api", "web"] {
            manifest.push_str(&format!(
                "[services.{service}]\nartifact = \"a\"\ncommand = [\"./a\"]\nport = 3000\n"
            ));
        }
        manifest.push_str(text);
        spec(&manifest)
    }

    fn spec(text: &str) -> AppSpec {
        let production: EnvironmentName = "production".parse().unwrap();
        let parsed = landfast_spec::parse("landfast.toml", text, &production);
        parsed
            .spec
            .unwrap_or_else(|| panic!("{:?}", parsed.diagnostics))
    }

    #[test]
    fn a_rollback_does_not_take_a_route_from_its_new_owner() {
        use crate::part::tests::{World, spec};
        let view = |world: &World| {
            Arc::new(View {
                state: world.environment.clone(),
                bodies: world.bodies.clone(),
                ..(*empty_view(&world.environment.scope)).clone()
            })
        };
        let (mut first, mut second) = (World::new("first"), World::new("second"));
        first.deploy(spec("api", &["api"]));
        first.settle();
        let mut without = spec("api", &["api"]);
        without.routes.values_mut().next().unwrap().host = "other.example".into();
        first.deploy(without);
        first.settle();
        let alone = [view(&first), view(&second)];
        assert_eq!(rollback_taken(&alone, &alone[0], None), None);
        second.deploy(spec("api", &["api"]));
        second.settle();
        let both = [view(&first), view(&second)];
        for to in [None, Some(ReleaseId(1))] {
            let refused = rollback_taken(&both, &both[0], to).unwrap();
            assert_eq!(
                refused.to_string(),
                "release 1 has the route shop.example/, which belongs to second/production/public now: remove it \
                 there first, or deploy a release without it"
            );
        }
    }

    #[test]
    fn refuses_to_move_a_route_where_the_strategy_cannot() {
        let route = |service: &str| {
            format!("[routes.public]\nhost = \"shop.example\"\nservice = \"{service}\"\n")
        };
        let own = "[routes.own]\nhost = \"api.example\"\nservice = \"api\"\n";
        let exclusive = "exclusive = true\n";
        let rolling = Strategy::Rolling {
            max_surge: Amount::Count(1),
            max_unavailable: Amount::Count(0),
        };
        let canary = Strategy::Canary {
            steps: vec![Percent::new(5).unwrap(), Percent::HUNDRED],
        };
        let old = two(&route("api"));
        let table = [
            (&rolling, route("web"), true),
            (&rolling, route("web") + own, false),
            (&rolling, route("api"), false),
            (&canary, route("web") + own, true),
            (&canary, route("api") + own, false),
            (&canary, exclusive.to_owned() + &route("web"), false),
            (&Strategy::BlueGreen, route("web"), false),
            (&Strategy::Recreate, route("web"), false),
        ];
        for (strategy, text, refused) in table {
            let refusals = unmovable_routes(&old, &two(&text), strategy);
            assert_eq!(!refusals.is_empty(), refused, "{strategy:?} {text}");
            for refusal in refusals {
                for word in ["`public`", "`api`", "`web`", strategy.name()] {
                    assert!(refusal.reason.contains(word), "{}", refusal.reason);
                }
                assert!(refusal.hint.unwrap().contains("blue-green"));
            }
        }
    }

    /// An environment whose release 1 serves this spec.
    fn serving(spec: &AppSpec) -> View {
        let mut view = View::clone(&empty_view(&spec.scope()));
        let body = release::ReleaseBody {
            release: ReleaseId(1),
            spec: spec.clone(),
            artifacts: BTreeMap::new(),
            images: BTreeMap::new(),
            secrets: BTreeMap::new(),
            created_at: landfast_types::Timestamp::EPOCH,
            commit: None,
            note: None,
            fingerprint: Digest::of(b"any"),
        };
        let record = landfast_rollout::ReleaseRecord {
            topology: release::topology(spec, &crate::migrations::Sets::new()),
            plan: release::plan(spec, None),
            created_at: landfast_types::Timestamp::EPOCH,
            sealed_at: None,
            left_at: None,
        };
        view.state.releases.insert(ReleaseId(1), record);
        view.state.serving = Some(ReleaseId(1));
        view.bodies.insert(ReleaseId(1), Arc::new(body));
        view
    }

    fn peak_of(strategy: landfast_spec::Strategy) -> (u64, u64) {
        let spec = spec(SPEC);
        let plan = release::plan(&spec, Some(strategy));
        let peak = rollout_peak(&serving(&spec), Some(ReleaseId(1)), &spec, &plan);
        (peak.peak.memory.0 >> 20, peak.peak.cpu.millicores)
    }

    #[test]
    fn refuses_a_certificate_that_is_there_and_cannot_be_used() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("empty.pem");
        fs::write(&file, "").unwrap();
        let tls = format!(
            "[routes.public]\nhost = \"shop.example\"\nservice = \"api\"\n\
             tls = {{ certificate = \"{0}\", key = \"{0}\" }}\n",
            file.display()
        );
        let refusals = certificates_unusable(&two(&tls));
        assert_eq!(refusals.len(), 1);
        let reason = &refusals[0].reason;
        assert!(
            reason.contains("`public`") && reason.contains("holds no certificate"),
            "{reason}"
        );
    }

    #[test]
    fn refuses_a_host_that_the_doctor_calls_unfit() {
        let folder = tempfile::tempdir().unwrap();
        let places = Places {
            state: folder.path().to_owned(),
            ports: Vec::new(),
        };
        let mut facts = landfast_doctor::measure(&places, |_| None);
        facts.clock_micros = 0;
        facts.disk.as_mut().unwrap().free_bytes = 1 << 20;
        let refusals = unfit(&facts);
        let codes: Vec<_> = refusals.iter().map(|refusal| refusal.code).collect();
        assert_eq!(codes, ["disk-short", "host-unfit"]);
        assert!(refusals[0].reason.contains("1MiB of") && refusals[0].hint.is_some());
    }

    #[test]
    fn counts_the_way_back() {
        assert_eq!(peak_of(landfast_spec::Strategy::Rolling), (600, 3_000));
        assert_eq!(peak_of(landfast_spec::Strategy::BlueGreen), (600, 3_000));
        assert_eq!(peak_of(landfast_spec::Strategy::Recreate), (300, 1_500));
    }

    #[test]
    fn refuses_what_lacks_memory_or_cpu() {
        let need = |mebibytes: u64, millicores| Need {
            memory: Bytes(mebibytes << 20),
            cpu: Cpu { millicores },
        };
        let check = |others, host, expected: &[&str]| {
            let peak = Peak {
                peak: need(600, 3_000),
                others,
                host,
                ..Peak::default()
            };
            let codes: Vec<_> = peak
                .shortages()
                .iter()
                .map(|refusal| refusal.code)
                .collect();
            assert_eq!(codes, expected);
            assert_eq!(peak.fits(), expected.is_empty());
        };
        check(need(0, 0), need(600, 3_000), &[]);
        check(need(1, 0), need(600, 3_000), &["memory-short"]);
        check(need(0, 1), need(600, 3_000), &["cpu-short"]);
        check(need(1, 1), need(600, 3_000), &["memory-short", "cpu-short"]);
    }

    #[test]
    fn another_environment_counts_with_the_rollout_that_moves_it() {
        let spec = spec(SPEC);
        let mut view = View::clone(&empty_view(&spec.scope()));
        let input = landfast_rollout::Input::Deploy {
            topology: release::topology(&spec, &crate::migrations::Sets::new()),
            plan: release::plan(&spec, None),
            supersede: false,
            by: "test".into(),
        };
        let now = landfast_types::Timestamp::EPOCH;
        for event in view.state.decide(now, input).unwrap() {
            view.state.apply(&event);
        }
        view.bodies = serving(&spec).bodies;
        assert_eq!(view.state.serving, None);
        // Three instances, and one more while they are exchanged.
        assert_eq!(promised(&view).memory, Bytes(400 << 20));
    }

    #[test]
    fn finds_commands_that_are_not_in_the_artifact() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("source");
        fs::create_dir_all(source.join("bin")).unwrap();
        fs::write(source.join("readme"), "no program").unwrap();
        fs::write(source.join("bin/app"), "#!").unwrap();
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(source.join("bin/app"), fs::Permissions::from_mode(0o755)).unwrap();
        let store = Store::open(folder.path().join("store")).unwrap();
        let digest = store.add_local(&source).unwrap();
        let check = |command: &str, expected: Option<&str>| {
            let spec = spec(&SPEC.replace("COMMAND", command));
            let artifacts = BTreeMap::from([("program".to_owned(), digest)]);
            let refusals = commands_not_inside(&store, &spec, &artifacts);
            let reasons: Vec<_> = refusals
                .iter()
                .map(|refusal| {
                    refusal
                        .reason
                        .replace(&digest.short().to_string(), "DIGEST")
                })
                .collect();
            assert_eq!(reasons, Vec::from_iter(expected), "{command}");
            for refusal in refusals {
                let hint = refusal.hint.unwrap();
                assert!(hint.contains("holds bin, readme at"), "{hint}");
            }
        };
        check("bin/app", None);
        check("./bin/app", None);
        check("/bin/true", None);
        check("anything", None);
        check(
            "./app",
            Some(
                "service `api` starts `./app`, which is not there in its artifact `program` (DIGEST)",
            ),
        );
        check(
            "./readme",
            Some(
                "service `api` starts `./readme`, which is not executable in its artifact `program` (DIGEST)",
            ),
        );
    }
}
