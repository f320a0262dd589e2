//! What a deploy would need and claim, compared with what this host has: the same answer for `plan` and for the
//! preflight gate.

use std::{collections::BTreeMap, fs, path::Path, sync::Arc};

use landfast_rollout::{RolloutPlan, Strategy};
use landfast_spec::{AppSpec, ServiceSpec};
use landfast_types::{Bytes, Cpu, Digest, Scope, ServiceName};

use crate::{
    driver::View,
    part::{claims, wanted_claims},
    shared::Shared,
};

/// Disk that must stay free for logs, the journal and uploads.
const DISK_FREE_MIN: Bytes = Bytes(256 << 20);

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
        self.peak.memory.0 + self.others.memory.0 <= self.host.memory.0
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
    let mut taken = Vec::new();
    let others = shared.environments();
    let others = others.iter().filter(|view| view.state.scope != *scope);
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

/// What a rollout to this spec needs at its highest moment.
pub fn peak(shared: &Shared, view: &View, spec: &AppSpec, plan: &RolloutPlan) -> Peak {
    let state = &view.state;
    let old_spec = state
        .serving
        .and_then(|id| view.bodies.get(&id))
        .map(|body| &body.spec);
    let mut peak = Peak {
        host: host(),
        ..Peak::default()
    };
    let mut surge = Need::default();
    for (name, service) in &spec.services {
        let replicas = service.replicas;
        if service.resources.memory.is_none() {
            peak.unbounded.push(name.clone());
        }
        peak.new = peak.new.plus(Need::of(service, replicas));
        let extra = match plan.strategy {
            Strategy::Rolling { max_surge, .. } => max_surge.of(replicas),
            Strategy::BlueGreen | Strategy::Canary { .. } | Strategy::Recreate => 0,
        };
        surge = surge.max(Need::of(service, extra));
    }
    for (name, service) in old_spec.iter().flat_map(|spec| &spec.services) {
        let need = Need::of(service, state.replicas(state.serving, name));
        peak.old = peak.old.plus(need);
        let routed = old_spec.is_some_and(|spec| spec.routes_of(name).next().is_some());
        let stays = matches!(plan.strategy, Strategy::BlueGreen | Strategy::Canary { .. });
        if stays && routed {
            peak.standby = peak.standby.plus(need);
        }
    }
    peak.peak = match plan.strategy {
        Strategy::Rolling { .. } => peak.old.max(peak.new).plus(surge),
        Strategy::BlueGreen | Strategy::Canary { .. } => peak.old.plus(peak.new),
        Strategy::Recreate => peak.old.max(peak.new),
    };
    let others = shared.environments();
    for other in others
        .iter()
        .filter(|other| other.state.scope != state.scope)
    {
        peak.others = peak.others.plus(promised(other));
    }
    peak
}

/// What an environment may use as it is.
fn promised(view: &View) -> Need {
    let body = view
        .state
        .serving
        .and_then(|release| view.bodies.get(&release));
    let services = body.into_iter().flat_map(|body| &body.spec.services);
    services.fold(Need::default(), |sum, (name, service)| {
        sum.plus(Need::of(
            service,
            view.state.replicas(view.state.serving, name),
        ))
    })
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
    let mut refusals = Vec::new();
    for taken in taken_routes(shared, &view.state.scope, spec) {
        refusals.push(Refusal {
            code: "route-taken",
            reason: format!("{}{} belongs to {}", taken.host, taken.path, taken.owner),
            hint: Some("choose another host or path, or remove the route there first".into()),
        });
    }
    let peak = peak(shared, view, spec, plan);
    if !peak.fits() {
        refusals.push(Refusal {
            code: "memory-short",
            reason: format!(
                "the rollout needs up to {} of memory, other environments {}, and the host has {}",
                peak.peak.memory, peak.others.memory, peak.host.memory
            ),
            hint: Some("use the rolling strategy, fewer replicas, or a larger host".into()),
        });
    }
    refusals.extend(files_missing(shared, spec, artifacts));
    refusals.extend(certificates_unreadable(spec));
    refusals.extend(disk_short(&shared.folders.state));
    refusals
}

/// Commands that start with `./` must be in the artifact.
fn files_missing(
    shared: &Shared,
    spec: &AppSpec,
    artifacts: &BTreeMap<String, Digest>,
) -> Vec<Refusal> {
    let services = spec
        .services
        .iter()
        .map(|(name, s)| (name.to_string(), &s.artifact, &s.command));
    let jobs = spec
        .jobs
        .iter()
        .map(|(name, j)| (name.to_string(), &j.artifact, &j.command));
    let mut refusals = Vec::new();
    for (name, artifact, command) in services.chain(jobs) {
        let Some(digest) = artifacts.get(artifact) else {
            continue;
        };
        let Some(folder) = shared.store.path(digest) else {
            continue;
        };
        let Some(program) = command.first() else {
            continue;
        };
        let inside = program
            .strip_prefix("./")
            .filter(|inside| !folder.join(inside).is_file());
        if let Some(inside) = inside {
            refusals.push(Refusal {
                code: "command-missing",
                reason: format!(
                    "`{name}` starts `{program}`, but `{artifact}` holds no file `{inside}`"
                ),
                hint: Some(format!("it holds: {}", names(&folder))),
            });
        } else if !program.contains('/') && !is_in_path(program) {
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

fn certificates_unreadable(spec: &AppSpec) -> Vec<Refusal> {
    let tls = spec
        .routes
        .iter()
        .filter_map(|(name, route)| Some((name, route.tls.as_ref()?)));
    let files = tls.flat_map(|(name, tls)| [(name, &tls.certificate), (name, &tls.key)]);
    let unreadable = files.filter_map(|(name, path)| {
        let error = fs::File::open(path).err()?;
        Some(Refusal {
            code: "certificate-unreadable",
            reason: format!("route `{name}`: `{path}` cannot be read: {error}"),
            hint: Some("the server's user must be able to read the certificate and its key".into()),
        })
    });
    unreadable.collect()
}

fn disk_short(state: &Path) -> Option<Refusal> {
    let stat = rustix::fs::statvfs(state).ok()?;
    let free = Bytes(stat.f_bavail.saturating_mul(stat.f_frsize));
    (free < DISK_FREE_MIN).then(|| Refusal {
        code: "disk-short",
        reason: format!(
            "`{}` has {free} left; {DISK_FREE_MIN} is the least",
            state.display()
        ),
        hint: Some("make room, or move the state folder with --state".into()),
    })
}

/// What this host has.
pub fn host() -> Need {
    let memory = fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:"))?;
        let kibibytes = line
            .trim()
            .strip_suffix(" kB")?
            .trim()
            .parse::<u64>()
            .ok()?;
        Some(Bytes(kibibytes << 10))
    });
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
