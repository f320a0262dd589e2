//! What must hold in a world whatever the engine thinks. These rules read what is recorded and what instances
//! and the proxy really do; they know neither the engine's rules nor which bug is planted.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use landfast_rollout::{
    Action, Change, Event, Gate, GroupTraffic, Kind, MemberState, Outcome, ParkReason, Phase,
    RolloutPlan, ServiceTraffic, Strategy, Topology, Traffic, TrafficMode,
};
use landfast_types::{InstanceId, ReleaseId, RolloutId, ServiceName};

use crate::{
    Millis,
    database::Database,
    proxy::{DrainTimes, Proxy, in_rotation},
    target::Target,
};

/// How long nobody can know of a change: a probe's interval and a few delays.
const STALE: Millis = 3_000;

/// An invariant of the world that did not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    pub invariant: &'static str,
    pub detail: String,
    pub at: Millis,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.at as f64 / 1_000.0;
        write!(f, "at {seconds:.3} s: {}: {}", self.invariant, self.detail)
    }
}

/// A rollout as the record tells it.
#[derive(Debug, Clone)]
struct Move {
    id: RolloutId,
    kind: Kind,
    from: Option<ReleaseId>,
    to: ReleaseId,
    plan: RolloutPlan,
    /// It is being taken back, or somebody asked for it, and nobody said otherwise since.
    going_back: bool,
    /// Traffic or instances of the old release were touched.
    disturbed: bool,
    /// The seal was recorded; the old release may go.
    let_go: bool,
    /// It waits for a person.
    waits: bool,
    /// How long it moved under a living server.
    moved_for: Millis,
    bound: Millis,
}

/// The watcher of one world.
#[derive(Debug, Clone, Default)]
pub struct Watch {
    pub broken: Option<Broken>,
    releases: BTreeMap<ReleaseId, (Topology, RolloutPlan)>,
    scale: BTreeMap<ServiceName, (u32, u32)>,
    pub serving: Option<ReleaseId>,
    moving: Option<Move>,
    pub stopped: bool,
    table: Traffic,
    kept: BTreeMap<(ServiceName, ReleaseId), BTreeSet<InstanceId>>,
    owed: BTreeSet<Action>,
    /// When the present server began to look.
    pub life_began: Millis,
    pub sealed: u64,
    pub rolled_back: u64,
    pub parked: u64,
}

impl Watch {
    fn fail(&mut self, at: Millis, invariant: &'static str, detail: String) {
        self.broken.get_or_insert(Broken {
            invariant,
            detail,
            at,
        });
    }

    /// Notes a finding of the world itself.
    pub fn found(&mut self, at: Millis, invariant: &'static str, detail: String) {
        self.fail(at, invariant, detail);
    }

    /// How many instances of a service a release should have: the manifest's, or set by hand.
    pub fn expected(&self, release: ReleaseId, service: &ServiceName) -> u32 {
        let shapes = self.releases.get(&release).map(|(t, _)| &t.services);
        let Some(shape) = shapes.and_then(|shapes| shapes.get(service)) else {
            return 0;
        };
        match self.scale.get(service) {
            Some((replicas, manifest)) if *manifest == shape.replicas => {
                let most = if shape.exclusive { 1 } else { u32::MAX };
                (*replicas).min(most)
            }
            Some(_) | None => shape.replicas,
        }
    }

    pub fn topology(&self, release: ReleaseId) -> Option<&Topology> {
        self.releases.get(&release).map(|(topology, _)| topology)
    }

    fn is_routed(&self, release: ReleaseId, service: &ServiceName) -> bool {
        self.topology(release)
            .and_then(|topology| topology.services.get(service))
            .is_some_and(|shape| shape.routed)
    }

    pub fn drain_times(&self, id: &InstanceId, target: &Target) -> DrainTimes {
        let shape = target.bodies.get(id).and_then(|body| {
            let topology = self.topology(body.release)?;
            topology.services.get(&body.service)
        });
        shape.map_or(
            DrainTimes {
                requests: 0,
                streams: 0,
            },
            |shape| DrainTimes::new(shape.drain, shape.stream_drain),
        )
    }

    /// Whether a rollout moves that waits for nobody.
    pub fn is_moving(&self) -> bool {
        self.moving.as_ref().is_some_and(|moving| !moving.waits)
    }

    pub fn is_waiting(&self) -> bool {
        self.moving.as_ref().is_some_and(|moving| moving.waits)
    }

    /// A person's wish was taken.
    pub fn asked_back(&mut self, rollout: RolloutId) {
        if let Some(moving) = &mut self.moving
            && moving.id == rollout
            && !moving.let_go
        {
            moving.going_back = true;
        }
    }

    /// A person let the rollout go on.
    pub fn promoted(&mut self, rollout: RolloutId) {
        if let Some(moving) = self.moving.as_mut().filter(|m| m.id == rollout) {
            moving.going_back = false;
            moving.moved_for = 0;
        }
    }

    /// Time passes under a living server.
    pub fn passes(&mut self, now: Millis, time: Millis) {
        let Some(moving) = self.moving.as_mut().filter(|moving| !moving.waits) else {
            return;
        };
        moving.moved_for += time;
        if moving.moved_for > moving.bound {
            let (id, bound) = (moving.id, moving.bound / 1_000);
            let detail = format!("rollout {id} moves for more than {bound} s");
            self.fail(now, "every rollout ends", detail);
        }
    }

    /// What the durable record owes to the world.
    pub fn owes(&mut self, actions: impl IntoIterator<Item = Action>) {
        self.owed.extend(actions);
    }

    /// An action takes effect.
    pub fn acted(&mut self, now: Millis, action: &Action, stale: bool) {
        if !self.owed.contains(action) {
            let detail = format!("{action:?} is not owed by any durable record");
            self.fail(now, "no action before its record", detail);
        }
        if stale {
            let detail = format!("{action:?} of a replaced server took effect");
            self.fail(now, "no stale order takes effect", detail);
        }
    }

    /// A migration took effect. Whatever runs must live with it.
    pub fn migrated(&mut self, now: Millis, name: &str, database: &Database, target: &Target) {
        let broken = target.bodies.iter().find(|(_, body)| {
            let topology = self.topology(body.release);
            body.alive && topology.is_some_and(|own| database.breaks(own) == Some(name))
        });
        if let Some((id, _)) = broken {
            let detail = format!("{name} was applied while {id} runs, which does not live with it");
            self.fail(now, "no contract beside a release it breaks", detail);
        }
    }

    /// An instance begins to run. Of a service with one writer nobody else does.
    pub fn started(&mut self, now: Millis, id: &InstanceId, target: &Target, database: &Database) {
        let Some(body) = target.bodies.get(id) else {
            return;
        };
        if let Some(topology) = self.topology(body.release) {
            let (breaks, lacks) = (database.breaks(topology), database.lacks(topology));
            if let Some(migration) = breaks {
                let detail = format!("{id} starts although {migration} was applied");
                self.fail(
                    now,
                    "no release starts on a schema it cannot live with",
                    detail,
                );
            } else if let Some(migration) = lacks {
                let detail = format!("{id} starts before {migration} was applied");
                self.fail(now, "no release starts before the schema it needs", detail);
            }
        }
        let Some(body) = target.bodies.get(id) else {
            return;
        };
        let exclusive = |release| {
            let shapes = self.topology(release).map(|topology| &topology.services);
            let shape = shapes.and_then(|shapes| shapes.get(&body.service));
            shape.is_some_and(|shape| shape.exclusive)
        };
        let beside = target.bodies.iter().find(|(other, known)| {
            let alive = known.alive && known.service == body.service && *other != id;
            alive && (exclusive(body.release) || exclusive(known.release))
        });
        if let Some((other, _)) = beside {
            let detail = format!("{id} starts while {other} runs");
            self.fail(now, "one writer at a time", detail);
        }
    }

    /// An instance is signalled.
    pub fn signalled(&mut self, now: Millis, id: &InstanceId, target: &Target, proxy: &Proxy) {
        if proxy.offers(id) {
            let detail = format!("{id} is signalled while the table in force offers it");
            self.fail(now, "no signal before the drain", detail);
            return;
        }
        if proxy.leaving.contains(id) {
            return;
        }
        let in_flight = proxy.in_flight(now, id);
        let limit = self.drain_times(id, target).longest();
        let since = proxy.draining_since.get(id);
        let over = since.is_some_and(|since| now >= since + limit);
        if in_flight > 0 && !over {
            let detail = format!("{id} is signalled with {in_flight} in flight");
            self.fail(now, "no signal before the drain", detail);
        }
    }

    /// A fact became durable.
    pub fn recorded(&mut self, now: Millis, event: &Event, target: &Target) {
        match &event.change {
            Change::ReleaseCreated {
                release,
                topology,
                plan,
            } => {
                self.releases
                    .insert(*release, (topology.clone(), plan.clone()));
            }
            Change::RolloutStarted {
                rollout,
                kind,
                from,
                to,
                plan,
                ..
            } => {
                if let Some(other) = &self.moving {
                    let detail = format!("{rollout} starts while {} moves", other.id);
                    self.fail(now, "one rollout at a time", detail);
                }
                let bound = self.bound(*from, *to, plan);
                self.moving = Some(Move {
                    id: *rollout,
                    kind: *kind,
                    from: *from,
                    to: *to,
                    plan: plan.clone(),
                    going_back: false,
                    disturbed: false,
                    let_go: false,
                    waits: false,
                    moved_for: 0,
                    bound,
                });
            }
            Change::PhaseEntered { phase } => self.entered(now, phase),
            Change::RolloutEnded { outcome } => self.ended(now, outcome),
            Change::Scaled { service, replicas } => {
                let to = self.moving.as_ref().map(|moving| moving.to);
                let shapes = to.or(self.serving).and_then(|id| self.topology(id));
                let manifest = shapes.and_then(|t| t.services.get(service));
                let manifest = manifest.map(|shape| shape.replicas);
                match (replicas, manifest) {
                    (Some(replicas), Some(manifest)) => {
                        self.scale.insert(service.clone(), (*replicas, manifest));
                    }
                    (Some(_), None) | (None, _) => {
                        self.scale.remove(service);
                    }
                }
            }
            Change::Stopped => self.stopped = true,
            Change::Resumed => self.stopped = false,
            Change::InstancePlanned {
                instance,
                service,
                release,
            } => {
                let group = self.kept.entry((service.clone(), *release)).or_default();
                group.insert(instance.clone());
            }
            Change::InstanceDraining {
                instance, hasty, ..
            } => self.drains(now, instance, *hasty, target),
            Change::InstanceEnded { instance, .. } => {
                for group in self.kept.values_mut() {
                    group.remove(instance);
                }
            }
            Change::TrafficChanged { traffic } => {
                let before = std::mem::replace(&mut self.table, traffic.clone());
                self.routed(now, &before, traffic, target);
            }
            Change::ReleasesCollected { .. }
            | Change::RolloutQueued { .. }
            | Change::GateOpened { .. }
            | Change::Promoted { .. }
            | Change::Progressed { .. }
            | Change::Failed { .. }
            | Change::AnalysisObserved { .. }
            | Change::HoldExtended { .. }
            | Change::Notified { .. }
            | Change::StoreSwitching { .. }
            | Change::StoreRetired { .. }
            | Change::Measured { .. }
            | Change::InstanceStarted { .. }
            | Change::InstancePassing { .. }
            | Change::InstanceServing { .. }
            | Change::InstanceFailing { .. }
            | Change::InstanceNotReady { .. }
            | Change::InstanceStopping { .. }
            | Change::TrafficConfirmed { .. }
            | Change::ContractsBegun { .. }
            | Change::ContractsWait { .. }
            | Change::Migrated { .. }
            | Change::SchemasRead { .. }
            | Change::MigratingByHand { .. }
            | Change::MigratedByHand { .. }
            | Change::TakenOver => {}
        }
    }

    /// The longest a rollout may move: every phase there can be, forward and back, waits for progress at most
    /// once per instance, plus the waits it was asked for.
    fn bound(&self, from: Option<ReleaseId>, to: ReleaseId, plan: &RolloutPlan) -> Millis {
        let (mut services, mut replicas) = (0, 0);
        for release in from.into_iter().chain([to]) {
            for service in self
                .topology(release)
                .iter()
                .flat_map(|t| t.services.keys())
            {
                services += 1;
                replicas += u64::from(self.expected(release, service).max(4));
            }
        }
        let steps = match &plan.strategy {
            Strategy::Canary { steps } => steps.len() as u64,
            Strategy::Rolling { .. } | Strategy::BlueGreen | Strategy::Recreate => 1,
        };
        let phases = 12 + 2 * services + 2 * steps;
        let millis = |time: std::time::Duration| time.as_millis() as Millis;
        millis(plan.progress_deadline) * (phases + replicas)
            + millis(plan.hold) * (2 * steps + 1)
            + millis(plan.standby)
            + 60_000
    }

    fn entered(&mut self, now: Millis, phase: &Phase) {
        let Some(moving) = &mut self.moving else {
            return;
        };
        moving.waits = matches!(
            phase,
            Phase::Parked { .. }
                | Phase::Gating {
                    gate: Gate::Approval
                }
        );
        match phase {
            Phase::Reverting { .. } => moving.going_back = true,
            Phase::Sealing => {
                moving.let_go = true;
                if moving.going_back {
                    let detail = format!("rollout {} lets the old release go", moving.id);
                    self.fail(now, "no seal after a rollback was asked for", detail);
                }
            }
            Phase::Parked {
                reason: ParkReason::Invariant(detail),
                ..
            } => {
                let detail = detail.clone();
                self.fail(now, "the engine keeps its own invariants", detail);
            }
            Phase::Parked { .. } => self.parked += 1,
            Phase::Clearing
            | Phase::Moving { .. }
            | Phase::Shifting { .. }
            | Phase::Promoting { .. } => moving.disturbed = true,
            Phase::Preflight
            | Phase::Rehearsing
            | Phase::Migrating
            | Phase::Contracting
            | Phase::Pausing
            | Phase::Warming { .. }
            | Phase::Gating { .. }
            | Phase::Stepping { .. }
            | Phase::Holding { .. }
            | Phase::Standby => {}
        }
    }

    fn ended(&mut self, now: Millis, outcome: &Outcome) {
        let Some(moving) = self.moving.take() else {
            return;
        };
        match outcome {
            Outcome::Sealed => {
                self.sealed += 1;
                self.serving = Some(moving.to);
                if moving.going_back {
                    let detail = format!("rollout {} is sealed", moving.id);
                    self.fail(now, "no seal after a rollback was asked for", detail);
                }
                let shapes = self.releases.get(&moving.to).map(|(t, _)| t.clone());
                let shapes = shapes.unwrap_or_default().services;
                self.scale.retain(|service, (_, manifest)| {
                    shapes.get(service).is_some_and(|s| s.replicas == *manifest)
                });
            }
            Outcome::RolledBack { .. } => {
                self.rolled_back += 1;
                self.serving = moving.from;
            }
        }
    }

    /// Blue-green and canary keep the old release of services with a route whole until the seal.
    fn drains(&mut self, now: Millis, id: &InstanceId, hasty: bool, target: &Target) {
        for group in self.kept.values_mut() {
            group.remove(id);
        }
        let Some(moving) = self.moving.as_ref().filter(|_| !hasty) else {
            return;
        };
        let kept_whole = match moving.plan.strategy {
            Strategy::BlueGreen | Strategy::Canary { .. } => true,
            Strategy::Rolling { .. } | Strategy::Recreate => false,
        };
        let Some(body) = target.bodies.get(id) else {
            return;
        };
        let old = moving.kind != Kind::Restart && moving.from == Some(body.release);
        if !old || moving.let_go || !kept_whole || !self.is_routed(body.release, &body.service) {
            return;
        }
        let group = self.kept.get(&(body.service.clone(), body.release));
        let left = group.map_or(0, BTreeSet::len) as u32;
        let expected = self.expected(body.release, &body.service);
        if left < expected {
            let detail = format!("{id} is let go, {left} of {expected} are left");
            self.fail(now, "the old release stays until the seal", detail);
        }
    }

    fn routed(&mut self, now: Millis, before: &Traffic, after: &Traffic, target: &Target) {
        let none = ServiceTraffic {
            mode: TrafficMode::Serve,
            groups: BTreeMap::new(),
            preview: None,
        };
        for (name, service) in &after.services {
            let was = before.services.get(name).unwrap_or(&none);
            self.only_ready_get_weight(now, name, service, target);
            self.only_proven_join(now, was, service, target);
            self.returns_whole(now, name, was, service, target);
        }
        self.capacity_stays(now, before, after, target);
    }

    /// Ready as far as a server could know: a new life has not probed anybody yet.
    fn seemed_ready(&self, target: &Target, id: &InstanceId, now: Millis) -> bool {
        let body = target.bodies.get(id);
        body.is_some_and(|body| {
            body.seemed_ready(now, STALE) || (body.alive && now < self.life_began + STALE)
        })
    }

    fn only_ready_get_weight(
        &mut self,
        now: Millis,
        name: &ServiceName,
        service: &ServiceTraffic,
        target: &Target,
    ) {
        for (release, group) in &service.groups {
            let ready = serving(group).any(|id| self.seemed_ready(target, id, now));
            if group.weight > 0 && !ready {
                let detail = format!("release {release} of `{name}` has weight and nobody ready");
                self.fail(now, "no weight on a group that is not ready", detail);
            }
        }
    }

    fn only_proven_join(
        &mut self,
        now: Millis,
        was: &ServiceTraffic,
        service: &ServiceTraffic,
        target: &Target,
    ) {
        for (release, group) in &service.groups {
            let before = was.groups.get(release);
            let joins = serving(group).filter(|id| {
                let known = before.and_then(|group| group.members.get(*id));
                known != Some(&MemberState::Serving)
            });
            let own = self.releases.get(release).map(|(_, plan)| plan.min_ready);
            let moving = self.moving.as_ref().map(|moving| moving.plan.min_ready);
            let min_ready = own.into_iter().chain(moving).min().unwrap_or_default();
            let needed = min_ready.as_millis() as Millis;
            let early = joins.into_iter().find(|id| {
                let since = target.bodies.get(*id).and_then(|body| body.unbroken_since);
                since.is_none_or(|since| since + needed > now)
            });
            if let Some(id) = early.cloned() {
                let detail = format!("{id} joined before it passed {needed} ms without a break");
                self.fail(now, "no traffic before min_ready", detail);
            }
        }
    }

    /// While a rollout is taken back, traffic returns only to an old release that is whole, unless nobody else
    /// is there to serve it.
    fn returns_whole(
        &mut self,
        now: Millis,
        name: &ServiceName,
        was: &ServiceTraffic,
        service: &ServiceTraffic,
        target: &Target,
    ) {
        let Some(moving) = self
            .moving
            .as_ref()
            .filter(|m| m.going_back && m.disturbed && !m.waits)
        else {
            return;
        };
        let Some(from) = moving.from.filter(|from| *from != moving.to) else {
            return;
        };
        let weight = |service: &ServiceTraffic, release| {
            let group: Option<&GroupTraffic> = service.groups.get(&release);
            group.map_or(0, |group| group.weight)
        };
        let paused = was.mode == TrafficMode::Pause;
        let switches = service.mode == TrafficMode::Serve
            && weight(service, moving.to) == 0
            && (paused || weight(was, moving.to) > 0);
        let new = was.groups.get(&moving.to).into_iter().flat_map(serving);
        let new_serves = new.into_iter().any(|id| {
            let body = target.bodies.get(id);
            body.is_some_and(|body| body.unbroken_since.is_some())
        });
        if !switches || !(paused || new_serves) {
            return;
        }
        let old = service.groups.get(&from).into_iter().flat_map(serving);
        let ready = old.filter(|id| self.seemed_ready(target, id, now)).count() as u32;
        let expected = self.expected(from, name);
        if ready < expected && self.is_routed(from, name) {
            let detail = format!("`{name}` returns to release {from} with {ready} of {expected}");
            self.fail(now, "capacity returns before traffic", detail);
        }
    }

    fn capacity_stays(&mut self, now: Millis, before: &Traffic, after: &Traffic, target: &Target) {
        let excluding = |moving: &Move| moving.plan.strategy == Strategy::Recreate;
        if self.stopped || self.moving.as_ref().is_some_and(excluding) {
            return;
        }
        let leaving: BTreeSet<&InstanceId> = crate::proxy::members(after)
            .filter(|(_, state)| *state == MemberState::Leaving)
            .map(|(id, _)| id)
            .collect();
        let now_in: BTreeSet<_> = in_rotation(after).collect();
        let removed = in_rotation(before).filter(|(service, id)| {
            let body = target.bodies.get(*id);
            let healthy = body.is_some_and(|body| body.alive && body.unbroken_since.is_some());
            healthy && !now_in.contains(&(service, id)) && !leaving.contains(id)
        });
        let touched: BTreeSet<_> = removed.map(|(service, _)| service.clone()).collect();
        for service in touched {
            let left = now_in
                .iter()
                .filter(|(name, id)| **name == service && self.seemed_ready(target, id, now));
            let (left, floor) = (left.count() as u32, self.floor(&service));
            if left < floor {
                let detail = format!("`{service}` keeps {left} in rotation, {floor} are due");
                self.fail(now, "capacity stays in rotation", detail);
            }
        }
    }

    fn floor(&self, service: &ServiceName) -> u32 {
        let releases: Vec<ReleaseId> = match &self.moving {
            // What only the new release has goes when it is taken back.
            Some(moving) if moving.going_back => moving.from.into_iter().collect(),
            Some(moving) => moving.from.into_iter().chain([moving.to]).collect(),
            None => self.serving.into_iter().collect(),
        };
        let sizes = releases.iter().map(|id| {
            let routed = self.is_routed(*id, service);
            if routed {
                self.expected(*id, service)
            } else {
                0
            }
        });
        let replicas = sizes.min().unwrap_or(0);
        let strategy = self.moving.as_ref().map(|moving| &moving.plan.strategy);
        replicas.saturating_sub(strategy.map_or(0, |s| s.unavailable_max(replicas)))
    }
}

fn serving(group: &GroupTraffic) -> impl Iterator<Item = &InstanceId> {
    let members = group.members.iter();
    members
        .filter(|(_, state)| **state == MemberState::Serving)
        .map(|(id, _)| id)
}
