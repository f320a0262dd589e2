//! Environments on the wire.

use std::collections::BTreeMap;

use landfast_api::{
    AppSummary, At, EnvironmentState, EnvironmentStatus, GroupRole, GroupStatus, History, Instance,
    InstanceState, Release, ReleaseState, RolloutBrief, Route, RouteWeight, ServiceStatus, Trouble,
};
use landfast_engine::{Folders, View, backend_id, claims};
use landfast_rollout::{
    Instance as Running, InstanceState as State, ParkReason, Phase, Reverting, TrafficMode, Weights,
};
use landfast_routing::snapshot::ProxyStatus;
use landfast_types::{ReleaseId, ServiceName, Timestamp};

use super::rollout::{active_rollout, ended_rollout};
use crate::handlers::images::wire_image;

/// Everything about one environment.
pub(crate) fn environment_status(
    view: &View,
    folders: &Folders,
    proxy: Option<&ProxyStatus>,
    now: Timestamp,
) -> EnvironmentStatus {
    let state = &view.state;
    let overrides = state.scale.iter();
    EnvironmentStatus {
        app: state.scope.app.to_string(),
        environment: state.scope.environment.to_string(),
        state: environment_state(view),
        release: serving(view).map(|release| release.0),
        releases: releases(view),
        services: services(view, proxy),
        // Filled by whoever can ask for them.
        stores: Vec::new(),
        backups: Vec::new(),
        routes: routes(view),
        rollout: active_rollout(view, folders),
        scale_overrides: overrides
            .map(|(name, over)| (name.to_string(), over.replicas))
            .collect(),
        schemas: super::migration::schemas(state),
        problems: problems(view, proxy),
        at: At(now),
        sequence: 0,
    }
}

/// The release that has all traffic; while it moves, the one it leaves.
fn serving(view: &View) -> Option<ReleaseId> {
    let rollout = view.state.rollout.as_ref();
    let promoted = rollout.filter(|r| r.is_promoted());
    promoted.map(|rollout| rollout.to).or(view.state.serving)
}

/// One environment in a line.
pub(crate) fn app_summary(view: &View, folders: &Folders) -> AppSummary {
    let services = services(view, None);
    let rollout = active_rollout(view, folders);
    AppSummary {
        app: view.state.scope.app.to_string(),
        environment: view.state.scope.environment.to_string(),
        state: environment_state(view),
        release: serving(view).map(|release| release.0),
        instances_wanted: services.iter().map(|service| service.replicas_wanted).sum(),
        instances_ready: services
            .iter()
            .flat_map(|s| &s.groups)
            .map(|group| group.ready)
            .sum(),
        rollout: rollout.map(|rollout| RolloutBrief {
            id: rollout.id,
            to: rollout.to,
            state: rollout.state,
            phase: rollout.phase,
        }),
    }
}

/// Releases and rollouts, newest first.
pub(crate) fn history(view: &View, folders: &Folders) -> History {
    let ended = view
        .state
        .history
        .iter()
        .rev()
        .map(|record| ended_rollout(view, record));
    let rollouts = active_rollout(view, folders)
        .into_iter()
        .chain(ended)
        .collect();
    History {
        releases: releases(view),
        rollouts,
    }
}

fn environment_state(view: &View) -> EnvironmentState {
    let state = &view.state;
    if state.stopped {
        return EnvironmentState::Stopped;
    }
    let Some(serving) = state
        .serving
        .or(state.rollout.as_ref().map(|rollout| rollout.to))
    else {
        return EnvironmentState::Empty;
    };
    let Some(record) = state.releases.get(&serving) else {
        return EnvironmentState::Empty;
    };
    let mut short = false;
    for service in record.topology.services.keys() {
        let ready = state.ready(service);
        let wanted = state.replicas(Some(serving), service);
        if wanted > 0 && ready.old + ready.new == 0 {
            return EnvironmentState::Down;
        }
        short |= ready.old + ready.new < wanted;
    }
    if short {
        EnvironmentState::Degraded
    } else {
        EnvironmentState::Serving
    }
}

fn releases(view: &View) -> Vec<Release> {
    let rollout = view.state.rollout.as_ref();
    let promoted = rollout.is_some_and(|r| r.is_promoted());
    let state = |release: ReleaseId| {
        let incoming = rollout.is_some_and(|rollout| rollout.to == release);
        let base = view.state.serving == Some(release);
        match (base, incoming, promoted) {
            (_, true, true) | (true, _, false) => ReleaseState::Serving,
            (true, false, true) => ReleaseState::Standby,
            (false, true, false) => ReleaseState::Incoming,
            (false, false, _) => ReleaseState::Kept,
        }
    };
    let started_by = |release: ReleaseId| {
        let ended = view
            .state
            .history
            .iter()
            .find(|r| r.to == release)
            .map(|r| r.by.clone());
        ended.or_else(|| rollout.filter(|r| r.to == release).map(|r| r.by.clone()))
    };
    let one = |(id, record): (&ReleaseId, &landfast_rollout::ReleaseRecord)| {
        let body = view.bodies.get(id);
        let artifacts = body.map(|body| &body.artifacts).into_iter().flatten();
        let images = body.map(|body| &body.images).into_iter().flatten();
        Release {
            id: id.0,
            state: state(*id),
            created_at: At(record.created_at),
            artifacts: artifacts
                .map(|(name, d)| (name.clone(), d.to_string()))
                .collect(),
            images: images
                .map(|(key, image)| (key.clone(), wire_image(image)))
                .collect(),
            commit: body.and_then(|body| body.commit.clone()),
            note: body.and_then(|body| body.note.clone()),
            by: started_by(*id),
            sealed: record.sealed_at.is_some(),
            obstacle: view.state.obstacle(*id).map(|obstacle| obstacle.sentence()),
        }
    };
    view.state.releases.iter().rev().map(one).collect()
}

fn services(view: &View, proxy: Option<&ProxyStatus>) -> Vec<ServiceStatus> {
    let state = &view.state;
    let current = state
        .rollout
        .as_ref()
        .map(|rollout| rollout.to)
        .or(state.serving);
    let mut groups: BTreeMap<ServiceName, BTreeMap<ReleaseId, Vec<&Running>>> = BTreeMap::new();
    for release in [state.serving, current].into_iter().flatten() {
        let record = state.releases.get(&release);
        for service in record
            .into_iter()
            .flat_map(|record| record.topology.services.keys())
        {
            groups
                .entry(service.clone())
                .or_default()
                .entry(release)
                .or_default();
        }
    }
    for running in state.instances.values() {
        let service = groups.entry(running.service.clone()).or_default();
        service.entry(running.release).or_default().push(running);
    }
    let mut services = Vec::new();
    for (service, releases) in groups {
        let manifest = current.and_then(|release| state.shape(release, &service));
        services.push(ServiceStatus {
            replicas_wanted: state.replicas(current, &service),
            replicas_manifest: manifest.map_or(0, |shape| shape.replicas),
            groups: releases
                .iter()
                .map(|(release, running)| group(view, &service, *release, running, proxy))
                .collect(),
            service: service.to_string(),
            // Only the target knows.
            protections: Vec::new(),
        });
    }
    services
}

fn group(
    view: &View,
    service: &ServiceName,
    release: ReleaseId,
    running: &[&Running],
    proxy: Option<&ProxyStatus>,
) -> GroupStatus {
    let state = &view.state;
    let traffic = state.traffic.services.get(service);
    let total: u32 = traffic.map_or(0, |traffic| {
        traffic.groups.values().map(|group| group.weight).sum()
    });
    let weight = traffic
        .and_then(|traffic| traffic.groups.get(&release))
        .map_or(0, |g| g.weight);
    let ready = running
        .iter()
        .filter(|instance| instance.is_serving())
        .count() as u32;
    GroupStatus {
        release: release.0,
        role: role(view, release),
        weight_percent: f64::from(weight) * 100.0 / f64::from(total.max(1)),
        wanted: state.replicas(Some(release), service),
        ready,
        instances: running
            .iter()
            .map(|running| instance(view, running, proxy))
            .collect(),
    }
}

fn role(view: &View, release: ReleaseId) -> GroupRole {
    let Some(rollout) = &view.state.rollout else {
        let serves = view.state.serving == Some(release);
        return if serves {
            GroupRole::Serving
        } else {
            GroupRole::Leaving
        };
    };
    let new = rollout.to == release;
    match (&rollout.phase, new) {
        (Phase::Standby | Phase::Sealing | Phase::Contracting, true) => GroupRole::Serving,
        (Phase::Standby, false) => GroupRole::Standby,
        (Phase::Sealing | Phase::Contracting, false)
        | (
            Phase::Reverting {
                stage: Reverting::Retiring,
                ..
            },
            true,
        ) => GroupRole::Leaving,
        (_, true) => GroupRole::Incoming,
        (_, false) if rollout.weights == Weights::NewOnly => GroupRole::Standby,
        (_, false) => GroupRole::Serving,
    }
}

/// One instance on the wire.
pub(crate) fn instance(view: &View, running: &Running, proxy: Option<&ProxyStatus>) -> Instance {
    let (state, since) = match running.state {
        State::Planned => (InstanceState::Starting, running.planned_at),
        State::Starting { since } => (InstanceState::Starting, since),
        State::Passing { since } => (InstanceState::Warming, since),
        State::Serving { since } => (InstanceState::Ready, since),
        State::Failing { since } => (InstanceState::Unready, since),
        State::Draining { since, .. } => (InstanceState::Draining, since),
        State::Stopping { since } => (InstanceState::Stopping, since),
    };
    let backend = proxy.and_then(|proxy| {
        proxy
            .backends
            .get(&backend_id(&view.state.scope, &running.id))
    });
    Instance {
        id: running.id.to_string(),
        service: running.service.to_string(),
        release: running.release.0,
        state,
        since: At(since),
        restarts: view.replaced.get(&running.service).copied().unwrap_or(0),
        last_exit: view
            .last_exits
            .get(&running.service)
            .map(|(_, id, exit)| format!("{id} {exit}")),
        health: running.not_ready.clone(),
        pid: None,
        address: running.address.map(|address| address.to_string()),
        memory_bytes: None,
        requests_in_flight: backend.map_or(0, |backend| backend.requests_in_flight),
        streams_open: backend.map_or(0, |backend| backend.streams_open),
    }
}

/// The routes of an environment.
pub(crate) fn routes(view: &View) -> Vec<Route> {
    let state = &view.state;
    let rollout = state.rollout.as_ref();
    let releases = [
        rollout.map(|rollout| rollout.to),
        state.serving,
        rollout.and_then(|r| r.from),
    ];
    let route = |(host, path, name): (String, String, landfast_types::RouteName)| {
        let specs = releases
            .into_iter()
            .flatten()
            .filter_map(|release| view.bodies.get(&release));
        let spec = specs
            .filter_map(|body| body.spec.routes.get(&name))
            .next()?;
        let traffic = state.traffic.services.get(&spec.service);
        let groups = traffic.iter().flat_map(|traffic| &traffic.groups);
        let total: u32 = groups.clone().map(|(_, group)| group.weight).sum();
        let weights = groups.map(|(release, group)| RouteWeight {
            release: release.0,
            percent: f64::from(group.weight) * 100.0 / f64::from(total.max(1)),
            instances: group.members.len() as u32,
        });
        let mode = match traffic.map(|traffic| traffic.mode) {
            Some(TrafficMode::Pause) => "paused",
            Some(TrafficMode::Maintenance) => "maintenance",
            Some(TrafficMode::Serve) | None => "serving",
        };
        Some(Route {
            app: state.scope.app.to_string(),
            environment: state.scope.environment.to_string(),
            route: name.to_string(),
            host,
            path,
            service: spec.service.to_string(),
            websocket: spec.websocket,
            https_only: spec.https_only,
            weights: weights.collect(),
            mode: mode.to_owned(),
        })
    };
    claims(state, &view.bodies)
        .into_iter()
        .filter_map(route)
        .collect()
}

fn problems(view: &View, proxy: Option<&ProxyStatus>) -> Vec<Trouble> {
    let mut problems = Vec::new();
    let mut add = |text: String, hint: Option<&str>| {
        problems.push(Trouble {
            text,
            hint: hint.map(str::to_owned),
        });
    };
    if let Some(problem) = &view.journal_problem {
        let hint = "make room on the state folder's disk; what waits is then written by itself";
        add(
            format!("the journal takes no records: {problem}"),
            Some(hint),
        );
    }
    match proxy {
        None => add(
            "the proxy does not answer".into(),
            Some("the server starts it again by itself"),
        ),
        Some(proxy) => {
            for problem in &proxy.problems {
                add(
                    problem.clone(),
                    Some("traffic of other hosts is not touched"),
                );
            }
        }
    }
    if let Some(rollout) = &view.state.rollout
        && let Phase::Parked { reason, .. } = &rollout.phase
    {
        let hint = match reason {
            ParkReason::SchemaMovedOn(_) => {
                "both ways out are named above; `landfast abort` ends a rollback that has not moved"
            }
            ParkReason::Inconclusive(_)
            | ParkReason::RollbackOff(_)
            | ParkReason::CannotRestore(_)
            | ParkReason::Invariant(_) => {
                "go on with `landfast promote`, or take it back with `landfast abort`"
            }
        };
        add(
            format!("rollout {} is parked: {}", rollout.id, reason.sentence()),
            Some(hint),
        );
    }
    if let Some(record) = view.state.history.last()
        && let Some(reason) = &record.contract_waits
    {
        add(
            format!(
                "contract migrations of release {} have not run: {reason}",
                record.to
            ),
            Some(
                "they are tried again at the seal of the next rollout; `landfast restart` makes one",
            ),
        );
    }
    for running in view.state.instances.values() {
        if let State::Failing { .. } = running.state {
            let said = running.not_ready.as_ref();
            let said = said.map_or(String::new(), |said| format!(": {said}"));
            let hint = format!("landfast logs --instance {}", running.id);
            add(
                format!("{} fails its readiness probe{said}", running.id),
                Some(&hint),
            );
        }
    }
    problems
}
