//! What a deploy would do, and the reading of manifests it shares with the deploy itself.

use std::collections::{BTreeMap, BTreeSet};

use axum::{
    extract::{Path, State},
    response::Response,
};
use http::StatusCode;
use landfast_api::{
    Change, DiffLine, DiffMark, Manifest, Migration, MigrationPhase, Peak, Plan, PlanRequest,
    Problem, ProblemCode, Refusal, RollbackPlan, RouteClaim, ServicePlan, Strategy,
};
use landfast_engine::{
    ReleaseBody, Resolved, Shared, View, fingerprint, image_warnings, plan as engine_plan,
    planning, settled_release, topology,
};
use landfast_rollout::Strategy as Moves;
use landfast_spec::{AppSpec, ImageSource, Pull, ServiceSpec};
use landfast_types::{Digest, Scope, ServiceName};
use similar::{ChangeTag, TextDiff};

use super::{InEnvironment, rollout::Artifacts, scope, upload::blocking};
use crate::{
    answer::{Answer, Failure, Json, diagnostics, refusal_code},
    idempotency::json_response,
    state::AppState,
    wire,
};

/// What images are pinned to, by their keys.
type Images = BTreeMap<String, landfast_target::PinnedImage>;

/// A manifest without errors.
pub(crate) struct ReadManifest {
    pub(crate) spec: AppSpec,
    pub(crate) artifacts: Artifacts,
    pub(crate) warnings: Vec<String>,
}

/// Reads a manifest for an environment; all of its errors are answered at once.
pub(crate) fn read_manifest(
    state: &AppState,
    scope: &Scope,
    manifest: &Manifest,
    artifacts: &BTreeMap<String, String>,
) -> Answer<ReadManifest> {
    let shared = state.platform.shared();
    let secrets = shared.secrets.current(&shared.journal, scope)?;
    let names: BTreeSet<String> = secrets.into_keys().collect();
    let parsed = landfast_spec::parse_with_secrets(
        &manifest.file_name,
        &manifest.text,
        &scope.environment,
        &names,
    );
    let Some(spec) = parsed.spec else {
        let errors = parsed.diagnostics.iter();
        let errors = errors
            .filter(|one| one.severity == landfast_spec::Severity::Error)
            .count();
        let noun = if errors == 1 { "error" } else { "errors" };
        let detail = format!("{}: {errors} {noun}", manifest.file_name);
        let mut problem = Problem::new(ProblemCode::ManifestInvalid, detail);
        problem.diagnostics = diagnostics(&parsed.diagnostics);
        return Err(problem.into());
    };
    if spec.app != scope.app {
        let detail = format!("the manifest is of app `{}`, not `{}`", spec.app, scope.app);
        return Err(Failure::new(ProblemCode::RequestInvalid, detail));
    }
    let warnings = parsed.diagnostics.iter().map(ToString::to_string).collect();
    let artifacts = artifacts
        .iter()
        .map(|(name, digest)| {
            let digest: Digest = digest
                .parse()
                .map_err(|error: landfast_types::DigestError| {
                    Failure::new(
                        ProblemCode::RequestInvalid,
                        format!("artifact `{name}`: {error}"),
                    )
                })?;
            Ok((name.clone(), digest))
        })
        .collect::<Answer<Artifacts>>()?;
    Ok(ReadManifest {
        spec,
        artifacts,
        warnings,
    })
}

/// The strategy a request names in place of the manifest's.
pub(crate) fn strategy(strategy: Option<Strategy>) -> Answer<Option<landfast_spec::Strategy>> {
    match strategy {
        None => Ok(None),
        Some(Strategy::Rolling) => Ok(Some(landfast_spec::Strategy::Rolling)),
        Some(Strategy::BlueGreen) => Ok(Some(landfast_spec::Strategy::BlueGreen)),
        Some(Strategy::Canary) => Ok(Some(landfast_spec::Strategy::Canary)),
        Some(Strategy::Recreate) => Ok(Some(landfast_spec::Strategy::Recreate)),
        Some(Strategy::Unknown) => Err(Failure::new(
            ProblemCode::RequestInvalid,
            "`strategy` is none this server knows",
        )),
    }
}

pub(crate) async fn plan(
    State(state): State<AppState>,
    Path((app, environment)): InEnvironment,
    Json(request): Json<PlanRequest>,
) -> Answer<Response> {
    let scope = scope(&app, &environment)?;
    let read = read_manifest(&state, &scope, &request.manifest, &request.artifacts)?;
    let strategy = strategy(request.strategy)?;
    let local = state.platform.local_images(&read.spec).await;
    let plan = blocking(move || make(&state, &scope, read, local, strategy)).await?;
    Ok(json_response(StatusCode::OK, &plan))
}

fn make(
    state: &AppState,
    scope: &Scope,
    read: ReadManifest,
    local: Resolved,
    strategy: Option<landfast_spec::Strategy>,
) -> Plan {
    let shared = state.platform.shared();
    let view = state.platform.environment_or_empty(scope);
    let ReadManifest {
        spec,
        artifacts,
        mut warnings,
    } = read;
    let plan = engine_plan(&spec, strategy);
    let old = view
        .state
        .serving
        .and_then(|release| view.bodies.get(&release));
    let secrets = shared
        .secrets
        .current(&shared.journal, scope)
        .unwrap_or_default();
    let images: Images = local
        .iter()
        .map(|(key, one)| (key.clone(), one.image.clone()))
        .collect();
    let is_known = spec.images().keys().all(|key| images.contains_key(key));
    let unchanged = is_known
        && settled_release(&view).is_some_and(|body| {
            body.fingerprint == fingerprint(&spec, &artifacts, &images, &secrets)
        });
    warnings.extend(image_warnings(&spec, &local));
    warnings.extend(unasked(shared, &spec, &images));
    let mut refusals: Vec<Refusal> = planning::refusals(shared, &view, &spec, &artifacts, &plan)
        .into_iter()
        .map(|refusal| Refusal {
            code: refusal_code(refusal.code).as_str().to_owned(),
            reason: refusal.reason,
            hint: refusal.hint,
            diagnostics: Vec::new(),
        })
        .collect();
    if let Some(rollout) = &view.state.rollout
        && !rollout.is_waiting()
        && !matches!(rollout.phase, landfast_rollout::Phase::Standby)
    {
        refusals.push(Refusal {
            code: ProblemCode::RolloutMoving.as_str().to_owned(),
            reason: format!("rollout {} is {}", rollout.id, rollout.phase_words()),
            hint: ProblemCode::RolloutMoving.hint().map(str::to_owned),
            diagnostics: Vec::new(),
        });
    }
    let sets = landfast_engine::sets(&shared.store, &spec, &artifacts).unwrap_or_default();
    let migrations = wire::planned(&view.state, &topology(&spec, &sets));
    warnings.extend(landfast_engine::migration_warnings(&view.state, &sets));
    let peak = planning::peak(shared, &view, &spec, &plan);
    let (expected_ms, how) = planning::rollback_estimate(&view, &plan);
    let body = ReleaseBody {
        release: view.state.next_release(),
        spec: spec.clone(),
        artifacts: artifacts.clone(),
        images: images.clone(),
        secrets,
        created_at: shared.clock.now(),
        commit: None,
        note: None,
        fingerprint: Digest::of(b""),
    };
    Plan {
        app: scope.app.to_string(),
        environment: scope.environment.to_string(),
        unchanged,
        from: view.state.serving.map(|release| release.0),
        to: view.state.next_release().0,
        strategy: wire_strategy(&plan.strategy),
        services: services(&view, old.map(|body| body.as_ref()), &body, |name| {
            wire::protections(&landfast_engine::forecast(shared, &body, name))
        }),
        steps: landfast_engine::stores::changes(shared, scope, &spec)
            .into_iter()
            .chain(steps(&view, &spec, &plan, &migrations))
            .collect(),
        gates: plan
            .gates
            .iter()
            .map(|gate| gate.name().to_owned())
            .collect(),
        rollback: RollbackPlan {
            to: view.state.serving.map(|release| release.0),
            expected_ms: view.state.serving.map(|_| expected_ms),
            how: if view.state.serving.is_some() {
                how
            } else {
                "this is the first release".into()
            },
            obstacle: obstacle(&view, &migrations),
        },
        migrations,
        routes: claims(state, scope, &spec),
        peak: wire_peak(peak),
        refusals,
        warnings,
    }
}

/// What stands in the way of a rollback to the release that serves now: today, or once the new one is sealed.
fn obstacle(view: &View, migrations: &[Migration]) -> Option<String> {
    let serving = view.state.serving?;
    if let Some(obstacle) = view.state.obstacle(serving) {
        return Some(obstacle.sentence());
    }
    let contract = migrations
        .iter()
        .find(|migration| migration.phase == MigrationPhase::Contract)?;
    Some(format!(
        "until the seal only: then the contract migration `{}` runs on store `{}`, which release {serving} does not live with",
        contract.name, contract.store
    ))
}

/// The migrations of a phase in a line.
fn migration_step(migrations: &[Migration], contract: bool) -> Option<String> {
    let due = migrations
        .iter()
        .filter(|migration| (migration.phase == MigrationPhase::Contract) == contract);
    let names: Vec<_> = due
        .map(|migration| format!("`{}` on `{}`", migration.name, migration.store))
        .collect();
    (!names.is_empty()).then(|| format!("migrate: {}", names.join(", ")))
}

fn wire_strategy(strategy: &Moves) -> Strategy {
    match strategy {
        Moves::Rolling { .. } => Strategy::Rolling,
        Moves::BlueGreen => Strategy::BlueGreen,
        Moves::Canary { .. } => Strategy::Canary,
        Moves::Recreate => Strategy::Recreate,
    }
}

fn wire_peak(peak: planning::Peak) -> Peak {
    Peak {
        memory_old_bytes: peak.old.memory.0,
        memory_new_bytes: peak.new.memory.0,
        memory_standby_bytes: peak.standby.memory.0,
        memory_peak_bytes: peak.peak.memory.0,
        memory_others_bytes: peak.others.memory.0,
        memory_host_bytes: peak.host.memory.0,
        cpu_old_millis: peak.old.cpu.millicores,
        cpu_new_millis: peak.new.cpu.millicores,
        cpu_standby_millis: peak.standby.cpu.millicores,
        cpu_peak_millis: peak.peak.cpu.millicores,
        cpu_others_millis: peak.others.cpu.millicores,
        cpu_host_millis: peak.host.cpu.millicores,
        fits: peak.fits(),
        unbounded: peak.unbounded.iter().map(ToString::to_string).collect(),
    }
}

fn claims(state: &AppState, scope: &Scope, spec: &AppSpec) -> Vec<RouteClaim> {
    let taken = planning::taken_routes(state.platform.shared(), scope, spec);
    let claim = |(name, route): (&landfast_types::RouteName, &landfast_spec::RouteSpec)| {
        let owner = taken
            .iter()
            .find(|t| t.host == route.host && t.path == route.path);
        RouteClaim {
            route: name.to_string(),
            host: route.host.clone(),
            path: route.path.clone(),
            service: route.service.to_string(),
            taken_by: owner.map(|taken| taken.owner.clone()),
        }
    };
    spec.routes.iter().map(claim).collect()
}

/// What a service runs, in a line.
fn content_line(body: &ReleaseBody, service: &ServiceSpec) -> String {
    let Some(container) = &service.container else {
        let name = service.artifact.as_ref();
        let digest = name.and_then(|name| body.artifacts.get(name));
        let digest = digest.map_or_else(|| "not uploaded".into(), Digest::short);
        return format!("content {digest}");
    };
    let key = container.source.key();
    match (body.images.get(&key), &container.source) {
        (Some(image), _) => match &image.pinned {
            Some(pinned) => format!("image {pinned} ({})", image.id.short()),
            None => format!(
                "image {} ({}, on this host only)",
                image.reference,
                image.id.short()
            ),
        },
        (None, ImageSource::Image { .. }) => format!("image {key}, which comes here at the deploy"),
        (None, ImageSource::Build(_)) => format!("image of {key}, which is built at the deploy"),
    }
}

/// What this plan does not know of images: it brings none here and builds none.
fn unasked(shared: &Shared, spec: &AppSpec, images: &Images) -> Vec<String> {
    if shared.target.images().is_none() {
        return Vec::new();
    }
    let line = |(key, (source, _)): (String, (&ImageSource, _))| match source {
        ImageSource::Image { name, pull } => {
            let asks = matches!(pull, Pull::Newer | Pull::Always) && name.digest().is_none();
            (asks && images.contains_key(&key)).then(|| {
                format!("image {key} is planned as it is on this host; the deploy asks its registry for a newer one")
            })
        }
        ImageSource::Build(_) => None,
    };
    spec.images().into_iter().filter_map(line).collect()
}

/// What changes in each service, in the order they move.
fn services(
    view: &View,
    old: Option<&ReleaseBody>,
    new: &ReleaseBody,
    protections: impl Fn(&ServiceName) -> Vec<landfast_api::Protection>,
) -> Vec<ServicePlan> {
    let mut names: Vec<ServiceName> = new.spec.waves().concat();
    let dropped = old.iter().flat_map(|body| body.spec.services.keys());
    names.extend(
        dropped
            .filter(|name| !new.spec.services.contains_key(*name))
            .cloned(),
    );
    let plan = |name: ServiceName| {
        let (before, after) = (
            old.and_then(|body| body.spec.services.get(&name)),
            new.spec.services.get(&name),
        );
        let text = |body: Option<&ReleaseBody>, service: Option<&ServiceSpec>| {
            let (Some(body), Some(service)) = (body, service) else {
                return String::new();
            };
            let spec = serde_json::to_string_pretty(service).unwrap_or_default();
            format!("{}\n{spec}\n", content_line(body, service))
        };
        let (from, to) = (text(old, before), text(Some(new), after));
        let change = match (before, after) {
            (None, _) => Change::Added,
            (Some(_), None) => Change::Removed,
            (Some(_), Some(_)) if from == to => Change::Unchanged,
            (Some(_), Some(_)) => Change::Changed,
        };
        let running = view.state.replicas(view.state.serving, &name);
        let manifest = after.map(|service| service.replicas);
        let over = view.state.scale.get(&name);
        let over = over
            .filter(|over| Some(over.manifest) == manifest)
            .map(|over| over.replicas);
        ServicePlan {
            service: name.to_string(),
            change,
            replicas_from: before.map(|_| running),
            replicas_to: over.or(manifest),
            scale_override: over,
            lines: if change == Change::Changed {
                diff(&from, &to)
            } else {
                Vec::new()
            },
            protections: after.map_or_else(Vec::new, |_| protections(&name)),
        }
    };
    names.into_iter().map(plan).collect()
}

fn diff(from: &str, to: &str) -> Vec<DiffLine> {
    let diff = TextDiff::from_lines(from, to);
    let changes = diff
        .iter_all_changes()
        .filter(|change| change.tag() != ChangeTag::Equal);
    let line = |change: similar::Change<&str>| {
        let mark = match change.tag() {
            ChangeTag::Insert => DiffMark::Added,
            ChangeTag::Delete => DiffMark::Removed,
            ChangeTag::Equal => DiffMark::Kept,
        };
        DiffLine {
            mark,
            text: change.value().trim_end().to_owned(),
        }
    };
    changes.map(line).collect()
}

/// What will happen, a line each.
fn steps(
    view: &View,
    spec: &AppSpec,
    plan: &landfast_rollout::RolloutPlan,
    migrations: &[Migration],
) -> Vec<String> {
    let mut steps = Vec::new();
    let duration = landfast_types::format_duration;
    let routed: Vec<_> = spec
        .services
        .iter()
        .filter(|(name, _)| spec.routes_of(name).next().is_some())
        .map(|(name, service)| format!("{} of `{name}`", service.replicas))
        .collect();
    let first = view.state.serving.is_none();
    let mut strategy = plan.strategy.clone();
    if spec.services.values().any(|service| service.exclusive) {
        strategy = Moves::Recreate;
    }
    // In recreate these come before the old release ends.
    let waits = || {
        plan.gates.iter().filter_map(|gate| match gate {
            landfast_rollout::Gate::Hold => Some(format!("wait {}", duration(plan.hold))),
            landfast_rollout::Gate::Approval => Some("wait for `landfast promote`".to_owned()),
            landfast_rollout::Gate::Preflight
            | landfast_rollout::Gate::Rehearsal
            | landfast_rollout::Gate::Smoke
            | landfast_rollout::Gate::Analysis => None,
        })
    };
    if plan.gates.contains(&landfast_rollout::Gate::Preflight) {
        steps.push("check that the host can carry it".into());
    }
    if plan.gates.contains(&landfast_rollout::Gate::Rehearsal) && !first {
        steps.push("rehearse the migrations on a copy of each database".into());
    }
    steps.extend(migration_step(migrations, false));
    if first {
        // Nothing serves that it could break.
        steps.extend(migration_step(migrations, true));
    }
    match &strategy {
        Moves::Rolling { .. } if first => steps.push("start the instances one by one".into()),
        Moves::Rolling { .. } => {
            steps.push("start one instance more than `replicas`, out of traffic".into());
        }
        Moves::BlueGreen => steps.push(format!("start {} beside the old ones", routed.join(", "))),
        Moves::Canary { steps: shares } => {
            let share = shares.first().map_or(100, |share| share.get());
            steps.push(format!("start the instances of the {share} % step"));
        }
        Moves::Recreate if first => {}
        Moves::Recreate => {
            steps.extend(waits());
            steps.push("hold requests (at most 1,000 for 30 s), end the old release".into());
        }
    }
    steps.push(format!(
        "each counts after {} of unbroken passes",
        duration(plan.min_ready)
    ));
    if plan.gates.contains(&landfast_rollout::Gate::Smoke) {
        steps.push("run the smoke jobs against the preview".into());
    }
    if first || strategy != Moves::Recreate {
        steps.extend(waits());
    }
    match &strategy {
        Moves::Rolling { .. } if first => {}
        Moves::Rolling { .. } => {
            steps.push("replace the old instances one by one, each drained first".into())
        }
        Moves::BlueGreen if first => steps.push("send it all traffic at once".into()),
        Moves::BlueGreen => steps.push("switch all traffic at once".into()),
        Moves::Canary { steps: shares } => {
            for share in shares {
                let judged = if plan.gates.contains(&landfast_rollout::Gate::Analysis) {
                    "judged against the old release"
                } else {
                    "held"
                };
                steps.push(format!(
                    "{} % of traffic, {judged} for {}",
                    share.get(),
                    duration(plan.hold)
                ));
            }
        }
        Moves::Recreate => steps.push("let the held requests through to the new release".into()),
    }
    if !first {
        steps.push(format!(
            "keep the old release returnable for {}, then seal",
            duration(plan.standby)
        ));
        steps.extend(migration_step(migrations, true));
    }
    steps
}

#[cfg(test)]
mod tests {
    use landfast_rollout::Environment;
    use landfast_types::ReleaseId;

    use super::*;

    #[test]
    fn recreate_waits_before_it_holds_requests_and_tests_after() {
        let text = "app = \"shop\"\n[services.api]\nartifact = \"a\"\ncommand = [\"./a\"]\nexclusive = true\n\
                    [jobs.check]\nartifact = \"a\"\ncommand = [\"./a\"]\nwhen = \"gate:smoke\"\n\
                    [deploy]\nstrategy = \"recreate\"\ngates = [\"smoke\", \"hold\", \"approval\"]\n";
        let scope = Scope {
            app: "shop".parse().expect("a name"),
            environment: "production".parse().expect("a name"),
        };
        let parsed = landfast_spec::parse("landfast.toml", text, &scope.environment);
        let spec = parsed
            .spec
            .unwrap_or_else(|| panic!("{:?}", parsed.diagnostics));
        let mut view = View {
            state: Environment::new(scope),
            bodies: BTreeMap::new(),
            last_exits: BTreeMap::new(),
            replaced: BTreeMap::new(),
            journal_problem: None,
        };
        let places = |view: &View| {
            let steps = steps(view, &spec, &engine_plan(&spec, None), &[]);
            ["wait 5m", "promote", "hold requests", "smoke jobs"]
                .map(|words| steps.iter().position(|step| step.contains(words)))
        };
        let first = places(&view);
        assert_eq!(first[2], None, "{first:?}: nothing has to make room");
        view.state.serving = Some(ReleaseId(1));
        let places = places(&view);
        assert!(places.is_sorted() && places[0].is_some(), "{places:?}");
    }
}
