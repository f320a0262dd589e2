//! One environment: its releases, its instances, its table and the one rollout that may move it.
//!
//! States: idle (nothing deployed, or `serving` a release), or moving (`rollout`). Guarantees: see
//! [`invariant`](crate::Violation). Assumptions: inputs are told in the order the driver saw them; each may come
//! late, twice or never. A crash leaves behind whatever was recorded; the driver replays it, says what really
//! runs ([`Input::Adopted`]), and asks [`Environment::pending`] what is owed.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use landfast_types::{InstanceId, ReleaseId, RolloutId, Scope, ServiceName, StoreName, Timestamp};
use serde::{Deserialize, Serialize};

use crate::{
    backoff::Backoff,
    binding::{StoreSwitch, Switching},
    by_hand::HandRun,
    event::{Action, Change, Event, Input, Rejected},
    instance::{Instance, InstanceState},
    ledger::{Ledger, Reading},
    plan::{Gate, RolloutPlan, Topology},
    rollout::{Kind, Outcome, Phase, Rollout, Weights},
    rules,
    schema::Schemas,
    traffic::Traffic,
};

/// How many ended rollouts are remembered in the state; the journal has them all.
const HISTORY_MAX: usize = 50;

/// Ends further apart than this have nothing to do with each other.
const CRASH_WINDOW: Duration = Duration::from_secs(300);

/// Ends that are told within this of a takeover may be older than it.
const FOUND_DEAD: Duration = Duration::from_secs(10);

/// The state of one environment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Environment {
    pub scope: Scope,
    /// How many events made this state.
    pub sequence: u64,
    /// The release every request falls back to. During a rollout this is the one it comes from.
    pub serving: Option<ReleaseId>,
    pub releases: BTreeMap<ReleaseId, ReleaseRecord>,
    pub instances: BTreeMap<InstanceId, Instance>,
    pub rollout: Option<Rollout>,
    pub queued: Option<Queued>,
    pub scale: BTreeMap<ServiceName, ScaleOverride>,
    /// The table the proxy should have.
    pub traffic: Traffic,
    /// The newest revision every new request uses.
    pub traffic_confirmed: u64,
    pub stopped: bool,
    /// Started again, and no instance serves yet.
    pub resuming: bool,
    /// What the migrations of each database have come to.
    #[serde(default)]
    pub schemas: Schemas,
    /// The migrations somebody runs outside a rollout.
    #[serde(default)]
    pub by_hand: Option<HandRun>,
    /// Databases that were changed and could not say how far: they are asked again.
    #[serde(default)]
    pub unread: BTreeSet<StoreName>,
    /// The store that serves a name of the manifest, where it is not the one of that name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub bindings: BTreeMap<StoreName, StoreName>,
    /// Stores that a switch has left, and that are not deleted yet.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub retiring: BTreeSet<StoreName>,
    pub history: Vec<RolloutRecord>,
    pub(crate) backoff: BTreeMap<ServiceName, BTreeMap<ReleaseId, Backoff>>,
    pub(crate) notify: BTreeSet<RolloutId>,
    pub(crate) last_reading: Option<Reading>,
    /// When the present life of the server took over.
    #[serde(default)]
    pub(crate) taken_over_at: Option<Timestamp>,
    pub(crate) next_instance: u64,
    pub(crate) next_rollout: u64,
    pub(crate) next_release: u64,
    #[cfg(feature = "planted")]
    #[serde(skip)]
    pub planted: Option<PlantedBug>,
}

/// A known bug the simulator can switch on, to prove that its invariants see it.
#[cfg(feature = "planted")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlantedBug {
    /// A draining instance is stopped although the proxy has not confirmed.
    WeightBeforeDrain,
    /// A flapping instance restarts the progress deadline.
    FlapRestartsDeadline,
    /// Traffic returns before the old release has its capacity back.
    RollbackBeforeCapacity,
    /// A rollout is sealed although it is being taken back.
    SealWhileReverting,
    /// `min_ready` goes on counting over a failed probe.
    MinReadySurvives,
    /// Contract migrations do not wait for the last old instance.
    ContractBesideOld,
}

/// A release as the engine remembers it. Its whole content is kept by the driver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseRecord {
    pub topology: Topology,
    pub plan: RolloutPlan,
    pub created_at: Timestamp,
    /// When a rollout to it was sealed for the first time.
    pub sealed_at: Option<Timestamp>,
    /// When a rollback left it behind. A later rollback does not lead to it, unless a person names it.
    #[serde(default)]
    pub left_at: Option<Timestamp>,
}

/// A rollout that has ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RolloutRecord {
    pub id: RolloutId,
    pub kind: Kind,
    pub from: Option<ReleaseId>,
    pub to: ReleaseId,
    pub strategy: String,
    pub by: String,
    pub started_at: Timestamp,
    pub ended_at: Timestamp,
    pub outcome: Outcome,
    /// Why it was taken back before anything had moved.
    #[serde(default)]
    pub unmoved: Option<Unmoved>,
    /// Why contract migrations of the release were left to the next seal.
    #[serde(default)]
    pub contract_waits: Option<String>,
    /// The store that was moved to, or was to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub switch: Option<StoreSwitch>,
    pub ledger: Ledger,
}

/// Why a rollout ended although its release never got a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unmoved {
    /// A gate said no.
    Refused,
    /// A newer one took its place.
    Superseded,
}

/// A rollout that waits for the one before it to end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queued {
    pub kind: Kind,
    pub to: ReleaseId,
    pub plan: RolloutPlan,
    pub by: String,
}

/// Replicas set by hand. It holds until the manifest's own number changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScaleOverride {
    pub replicas: u32,
    /// What the manifest said when it was set.
    pub manifest: u32,
}

/// A number for each side of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Sides {
    pub old: u32,
    pub new: u32,
}

/// Which side of a rollout an instance is on. Without a rollout everything is old.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Side {
    Old,
    New,
}

impl Environment {
    /// An environment in which nothing was deployed yet.
    pub fn new(scope: Scope) -> Self {
        Self {
            scope,
            sequence: 0,
            serving: None,
            releases: BTreeMap::new(),
            instances: BTreeMap::new(),
            rollout: None,
            queued: None,
            scale: BTreeMap::new(),
            traffic: Traffic::default(),
            traffic_confirmed: 0,
            stopped: false,
            resuming: false,
            schemas: Schemas::new(),
            by_hand: None,
            unread: BTreeSet::new(),
            bindings: BTreeMap::new(),
            retiring: BTreeSet::new(),
            history: Vec::new(),
            backoff: BTreeMap::new(),
            notify: BTreeSet::new(),
            last_reading: None,
            taken_over_at: None,
            next_instance: 1,
            next_rollout: 1,
            next_release: 1,
            #[cfg(feature = "planted")]
            planted: None,
        }
    }

    /// The number the next release gets.
    pub fn next_release(&self) -> ReleaseId {
        ReleaseId(self.next_release)
    }

    /// The number the next rollout gets.
    pub fn next_rollout(&self) -> RolloutId {
        RolloutId(self.next_rollout)
    }

    /// Decides what has happened. Equal state, time and input give equal events.
    ///
    /// # Errors
    /// [`Rejected`] when a person asks for what is not possible now. Inputs of drivers are never rejected: one
    /// that comes late or twice changes nothing.
    pub fn decide(&self, now: Timestamp, input: Input) -> Result<Vec<Event>, Rejected> {
        rules::decide(self, now, input)
    }

    /// Folds one recorded event into the state. Replay uses this and nothing else.
    pub fn apply(&mut self, event: &Event) {
        self.sequence += 1;
        let at = event.at;
        match &event.change {
            Change::ReleaseCreated {
                release,
                topology,
                plan,
            } => {
                self.next_release = self.next_release.max(release.0 + 1);
                let record = ReleaseRecord {
                    topology: topology.clone(),
                    plan: plan.clone(),
                    created_at: at,
                    sealed_at: None,
                    left_at: None,
                };
                self.releases.insert(*release, record);
            }
            Change::ReleasesCollected { releases } => {
                self.releases
                    .retain(|release, _| !releases.contains(release));
            }
            Change::RolloutQueued { kind, to, plan, by } => {
                let queued = Queued {
                    kind: *kind,
                    to: *to,
                    plan: plan.clone(),
                    by: by.clone(),
                };
                self.queued = Some(queued);
            }
            Change::RolloutStarted {
                rollout,
                kind,
                from,
                to,
                plan,
                by,
            } => {
                self.start_rollout(at, *rollout, *kind, *from, *to, plan, by);
            }
            Change::Scaled {
                service,
                replicas: Some(replicas),
            } => {
                let manifest = self.manifest_replicas(service).unwrap_or(*replicas);
                let over = ScaleOverride {
                    replicas: *replicas,
                    manifest,
                };
                self.scale.insert(service.clone(), over);
            }
            Change::Scaled {
                service,
                replicas: None,
            } => {
                self.scale.remove(service);
            }
            Change::Stopped => self.stopped = true,
            Change::Resumed => {
                self.stopped = false;
                self.resuming = true;
            }
            Change::TrafficChanged { traffic } => self.traffic = traffic.clone(),
            Change::TrafficConfirmed { revision } => {
                self.confirm(at, *revision);
            }
            Change::TakenOver => self.take_over(at),
            Change::Notified { rollout } => {
                self.notify.remove(rollout);
            }
            Change::Measured { reading } => {
                self.last_reading = Some(reading.clone());
                if let Some(rollout) = &mut self.rollout {
                    rollout.ledger.add(reading);
                } else if let Some(ended) = self.history.last_mut() {
                    ended.ledger.add_after(at, reading);
                }
            }
            Change::RolloutEnded { outcome } => self.end_rollout(at, outcome),
            Change::PhaseEntered { phase } => {
                let frozen = self.sizes_now();
                if let Some(rollout) = &mut self.rollout {
                    if matches!(phase, Phase::Parked { .. }) {
                        rollout.frozen = frozen;
                    }
                    rollout.apply(at, &event.change);
                }
                if *phase == Phase::Sealing {
                    self.adopt();
                }
            }
            Change::StoreSwitching { switch } => {
                self.retiring.remove(&switch.to);
                if let Some(rollout) = &mut self.rollout {
                    rollout.switching = Some(Switching {
                        switch: switch.clone(),
                        schema: None,
                        is_done: false,
                    });
                }
            }
            Change::StoreRetired { store } => {
                self.retiring.remove(store);
            }
            Change::ContractsBegun { migrations } => self.begin_contracts(migrations),
            Change::SchemasRead { schemas } => self.read_schemas(schemas),
            Change::MigratingByHand {
                run,
                store,
                work,
                by,
            } => self.begin_by_hand(at, *run, store, work, by),
            Change::MigratedByHand { run, schemas, .. } => self.end_by_hand(*run, schemas),
            Change::Migrated { schemas, .. } => {
                self.read_migrated(schemas);
                if let Some(rollout) = &mut self.rollout {
                    rollout.apply(at, &event.change);
                }
            }
            Change::GateOpened { .. }
            | Change::ContractsWait { .. }
            | Change::Promoted { .. }
            | Change::Progressed { .. }
            | Change::Failed { .. }
            | Change::AnalysisObserved { .. }
            | Change::HoldExtended { .. } => {
                if let Some(rollout) = &mut self.rollout {
                    rollout.apply(at, &event.change);
                }
            }
            Change::InstancePlanned { .. }
            | Change::InstanceStarted { .. }
            | Change::InstancePassing { .. }
            | Change::InstanceServing { .. }
            | Change::InstanceFailing { .. }
            | Change::InstanceNotReady { .. }
            | Change::InstanceDraining { .. }
            | Change::InstanceStopping { .. }
            | Change::InstanceEnded { .. } => self.apply_to_instance(at, &event.change),
        }
    }

    /// Lists the actions still owed. After a crash the driver simply asks again.
    pub fn pending(&self) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.traffic.revision > self.traffic_confirmed {
            actions.push(Action::Publish {
                revision: self.traffic.revision,
            });
        }
        for instance in self.instances.values() {
            let id = instance.id.clone();
            match instance.state {
                InstanceState::Planned => actions.push(Action::StartInstance {
                    instance: id,
                    service: instance.service.clone(),
                    release: instance.release,
                }),
                InstanceState::Draining { revision, .. } => {
                    actions.push(Action::AwaitDrain {
                        instance: id,
                        revision,
                    });
                }
                InstanceState::Stopping { .. } => {
                    actions.push(Action::StopInstance {
                        instance: id,
                        grace: self.grace(instance),
                    });
                }
                InstanceState::Starting { .. }
                | InstanceState::Passing { .. }
                | InstanceState::Serving { .. }
                | InstanceState::Failing { .. } => {}
            }
        }
        if let Some(rollout) = &self.rollout {
            let judged =
                |gate: &Gate| matches!(gate, Gate::Preflight | Gate::Rehearsal | Gate::Smoke);
            let closed = |gate: &Gate| judged(gate) && !rollout.is_open(*gate);
            let gate = rollout.phase.gate().filter(closed);
            let judge = |gate| Action::JudgeGate {
                rollout: rollout.id,
                gate,
                release: rollout.to,
            };
            if let Some(stage) = rollout.stage_due() {
                actions.push(Action::Migrate {
                    rollout: rollout.id,
                    release: rollout.to,
                    stage,
                });
            }
            let failed = rollout.failure.is_some();
            actions.extend(gate.filter(|_| !failed).map(judge));
        }
        // A runner at work tells by itself what it has come to.
        let is_migrating = self.by_hand.is_some()
            || self
                .rollout
                .as_ref()
                .is_some_and(|rollout| rollout.stage_due().is_some());
        if !is_migrating {
            let read = |store: &StoreName| Action::ReadSchema {
                store: store.clone(),
            };
            actions.extend(self.unread.iter().map(read));
        }
        let retire = |store: &StoreName| Action::RetireStore {
            store: store.clone(),
        };
        actions.extend(self.retiring.iter().map(retire));
        actions.extend(
            self.notify
                .iter()
                .map(|rollout| Action::Notify { rollout: *rollout }),
        );
        actions
    }

    /// Names the next instant worth waking for, and who wants it.
    pub fn deadline(&self) -> Option<(Timestamp, &'static str)> {
        rules::deadline(self)
    }

    /// What of a release's shape the engine knows about a service.
    pub fn shape(
        &self,
        release: ReleaseId,
        service: &ServiceName,
    ) -> Option<&crate::plan::ServiceShape> {
        self.releases.get(&release)?.topology.services.get(service)
    }

    /// How many instances of a service a release should have: the manifest's number, or the one set by hand.
    pub fn replicas(&self, release: Option<ReleaseId>, service: &ServiceName) -> u32 {
        let Some(shape) = release.and_then(|release| self.shape(release, service)) else {
            return 0;
        };
        match self.scale.get(service) {
            // A number set while the service was not exclusive does not make a second writer of it.
            Some(over) if over.manifest == shape.replicas && shape.exclusive => {
                over.replicas.min(1)
            }
            Some(over) if over.manifest == shape.replicas => over.replicas,
            Some(_) | None => shape.replicas,
        }
    }

    /// Whether the proxy's counters tell something about a rollout: the one that runs, or the last one's end and
    /// what came after it.
    pub fn wants_readings(&self, now: Timestamp) -> bool {
        let ended = self.history.last();
        self.rollout.is_some() || ended.is_some_and(|ended| ended.ledger.wants_readings(now))
    }

    /// The last sealed release before the current one that no rollback has left, for a rollback without a number.
    pub fn rollback_target(&self) -> Option<ReleaseId> {
        let current = self.serving?;
        let earlier = self.releases.range(..current).rev();
        earlier
            .filter(|(_, record)| record.sealed_at.is_some() && record.left_at.is_none())
            .map(|(id, _)| *id)
            .next()
    }

    /// The services of either release that a route leads to.
    pub(crate) fn routed_services(&self) -> BTreeSet<ServiceName> {
        let rollout = self.rollout.as_ref();
        let releases = [
            self.serving,
            rollout.and_then(|r| r.from),
            rollout.map(|r| r.to),
        ];
        let records = releases
            .into_iter()
            .flatten()
            .filter_map(|id| self.releases.get(&id));
        let shapes = records.flat_map(|record| &record.topology.services);
        let declared = shapes.filter(|(_, shape)| shape.routed);
        let declared = declared.map(|(name, _)| name.clone());
        let routed = self.instances.values().filter(|i| self.is_routed(i));
        declared.chain(routed.map(|i| i.service.clone())).collect()
    }

    /// Whether a route leads to the instance, by its own release.
    pub(crate) fn is_routed(&self, instance: &Instance) -> bool {
        let shape = self.shape(instance.release, &instance.service);
        shape.is_some_and(|shape| shape.routed)
    }

    pub(crate) fn side_of(&self, instance: &Instance) -> Side {
        match &self.rollout {
            Some(rollout)
                if instance.release == rollout.to && instance.number >= rollout.first_instance =>
            {
                Side::New
            }
            Some(_) | None => Side::Old,
        }
    }

    /// The instances of a service on one side.
    pub(crate) fn group(
        &self,
        service: &ServiceName,
        side: Side,
    ) -> impl Iterator<Item = &Instance> {
        let of_service = self
            .instances
            .values()
            .filter(move |instance| instance.service == *service);
        of_service.filter(move |instance| self.side_of(instance) == side)
    }

    /// How many instances of a service are kept on each side.
    pub(crate) fn kept(&self, service: &ServiceName) -> Sides {
        let count = |side| self.group(service, side).filter(|i| i.is_kept()).count() as u32;
        Sides {
            old: count(Side::Old),
            new: count(Side::New),
        }
    }

    /// How many instances of a service count as ready on each side.
    pub fn ready(&self, service: &ServiceName) -> Sides {
        let count = |side| self.group(service, side).filter(|i| i.is_serving()).count() as u32;
        Sides {
            old: count(Side::Old),
            new: count(Side::New),
        }
    }

    fn manifest_replicas(&self, service: &ServiceName) -> Option<u32> {
        let release = self
            .rollout
            .as_ref()
            .map(|rollout| rollout.to)
            .or(self.serving)?;
        Some(self.shape(release, service)?.replicas)
    }

    fn start_rollout(
        &mut self,
        at: Timestamp,
        id: RolloutId,
        kind: Kind,
        from: Option<ReleaseId>,
        to: ReleaseId,
        plan: &RolloutPlan,
        by: &str,
    ) {
        self.next_rollout = self.next_rollout.max(id.0 + 1);
        self.queued = None;
        let weights = if kind == Kind::Restart {
            Weights::ByCount
        } else {
            Weights::OldOnly
        };
        self.rollout = Some(Rollout {
            id,
            kind,
            from,
            to,
            plan: plan.clone(),
            by: by.to_owned(),
            started_at: at,
            first_instance: self.next_instance,
            phase: Phase::Preflight,
            phase_since: at,
            weights,
            cleared: false,
            exposed: false,
            migrated: false,
            contract_waits: None,
            gates: BTreeMap::new(),
            high_water: BTreeMap::new(),
            progressed_at: at,
            failure: None,
            crash_times: BTreeMap::new(),
            frozen: BTreeMap::new(),
            analyses: BTreeMap::new(),
            hold_extended: false,
            switching: None,
            ledger: Ledger::open(self.last_reading.clone()),
        });
    }

    fn end_rollout(&mut self, at: Timestamp, outcome: &Outcome) {
        let Some(mut rollout) = self.rollout.take() else {
            return;
        };
        rollout.ledger.end(at);
        let unmoved = match outcome {
            Outcome::RolledBack { .. } if rollout.exposed || rollout.cleared => None,
            Outcome::RolledBack { .. } if rollout.gates.values().any(|gate| !gate.passed) => {
                Some(Unmoved::Refused)
            }
            Outcome::RolledBack { .. } => self.queued.as_ref().map(|_| Unmoved::Superseded),
            Outcome::Sealed => None,
        };
        self.last_reading = rollout.ledger.last().cloned().or(self.last_reading.take());
        self.notify.insert(rollout.id);
        if let Some(switching) = &rollout.switching {
            self.end_switch(switching);
        }
        match outcome {
            Outcome::Sealed => {
                self.serving = Some(rollout.to);
                if rollout.kind == Kind::Rollback {
                    self.leave_behind(at, rollout.to);
                }
                // The same code and configuration: a rollback means an earlier one.
                if let Some(from) = rollout.from.filter(|_| rollout.switching.is_some())
                    && let Some(record) = self.releases.get_mut(&from)
                {
                    record.left_at.get_or_insert(at);
                }
                if let Some(record) = self.releases.get_mut(&rollout.to) {
                    record.sealed_at.get_or_insert(at);
                    // Not before: until here the old release may come back at the size it was given.
                    let shapes = &record.topology.services;
                    self.scale.retain(|service, over| {
                        shapes
                            .get(service)
                            .is_some_and(|shape| shape.replicas == over.manifest)
                    });
                }
            }
            Outcome::RolledBack { .. } => self.serving = rollout.from,
        }
        self.history.push(RolloutRecord {
            id: rollout.id,
            kind: rollout.kind,
            from: rollout.from,
            to: rollout.to,
            strategy: rollout.plan.strategy.name().to_owned(),
            by: rollout.by,
            started_at: rollout.started_at,
            ended_at: at,
            outcome: outcome.clone(),
            unmoved,
            contract_waits: rollout.contract_waits,
            switch: rollout.switching.map(|switching| switching.switch),
            ledger: rollout.ledger,
        });
        let excess = self.history.len().saturating_sub(HISTORY_MAX);
        self.history.drain(..excess);
        let serving = self.serving;
        for groups in self.backoff.values_mut() {
            groups.retain(|release, _| Some(*release) == serving);
        }
    }

    /// Whoever goes back to a release does not want those after it.
    fn leave_behind(&mut self, at: Timestamp, to: ReleaseId) {
        for (release, record) in self.releases.range_mut(to..) {
            if *release == to {
                record.left_at = None;
            } else {
                record.left_at.get_or_insert(at);
            }
        }
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "it is handed the changes of instances only"
    )]
    fn apply_to_instance(&mut self, at: Timestamp, change: &Change) {
        if let Change::InstancePlanned {
            instance,
            service,
            release,
        } = change
        {
            let number = self.next_instance;
            self.next_instance += 1;
            let planned = Instance {
                id: instance.clone(),
                number,
                service: service.clone(),
                release: *release,
                planned_at: at,
                state: InstanceState::Planned,
                address: None,
                waits_since: at,
                first_served_at: None,
                not_ready: None,
            };
            self.instances.insert(instance.clone(), planned);
            return;
        }
        if let Change::InstanceEnded {
            instance, unseen, ..
        } = change
        {
            if !unseen {
                self.note_death(at, instance);
            }
            self.instances.remove(instance);
            return;
        }
        if let Change::InstanceDraining {
            instance,
            hasty: true,
            ..
        } = change
        {
            self.note_death(at, instance);
        }
        let next_revision = self.traffic.revision;
        #[cfg(feature = "planted")]
        if self.planted == Some(PlantedBug::MinReadySurvives)
            && let Change::InstanceFailing { instance } = change
            && let Some(known) = self.instances.get(instance)
            && matches!(known.state, InstanceState::Passing { .. })
        {
            return;
        }
        let mut update = |id: &InstanceId, state: InstanceState| {
            if let Some(instance) = self.instances.get_mut(id) {
                instance.state = state;
            }
        };
        match change {
            Change::InstanceStarted { instance, address } => {
                update(instance, InstanceState::Starting { since: at });
                if let Some(instance) = self.instances.get_mut(instance) {
                    instance.address = *address;
                    instance.waits_since = at;
                }
            }
            Change::InstancePassing { instance } => {
                update(instance, InstanceState::Passing { since: at });
                if let Some(instance) = self.instances.get_mut(instance) {
                    instance.not_ready = None;
                }
            }
            Change::InstanceNotReady { instance, reason } => {
                if let Some(instance) = self.instances.get_mut(instance) {
                    instance.not_ready = Some(reason.clone());
                }
            }
            Change::InstanceServing { instance } => {
                if let Some(instance) = self.instances.get_mut(instance) {
                    instance.first_served_at.get_or_insert(at);
                    instance.state = InstanceState::Serving { since: at };
                }
                self.note_resumed(instance);
            }
            Change::InstanceFailing { instance } => {
                update(instance, InstanceState::Failing { since: at });
            }
            Change::InstanceDraining {
                instance, hasty, ..
            } => {
                let state = InstanceState::Draining {
                    since: at,
                    revision: next_revision + 1,
                    hasty: *hasty,
                };
                update(instance, state);
                self.relax_drain(instance);
            }
            Change::InstanceStopping { instance } => {
                update(instance, InstanceState::Stopping { since: at });
            }
            _ => {}
        }
    }

    /// An instance that never counted was in no table: none has to be in force before it is left alone.
    fn relax_drain(&mut self, id: &InstanceId) {
        if let Some(Instance {
            state: InstanceState::Draining { revision, .. },
            first_served_at: None,
            ..
        }) = self.instances.get_mut(id)
        {
            *revision = 0;
        }
    }

    /// A table is in force. The time of those that it drains begins now: the proxy gives them theirs from the
    /// moment it learns of it.
    fn confirm(&mut self, at: Timestamp, confirmed: u64) {
        let before = self.traffic_confirmed;
        self.traffic_confirmed = before.max(confirmed);
        for instance in self.instances.values_mut() {
            if let InstanceState::Draining {
                since, revision, ..
            } = &mut instance.state
                && *revision > before
                && *revision <= confirmed
            {
                *since = at;
            }
        }
    }

    fn take_over(&mut self, at: Timestamp) {
        self.taken_over_at = Some(at);
        if let Some(rollout) = &mut self.rollout {
            rollout.progressed_at = at;
        }
        for instance in self.instances.values_mut() {
            instance.waits_since = at;
            match &mut instance.state {
                InstanceState::Passing { .. } => {
                    instance.state = InstanceState::Failing { since: at };
                }
                InstanceState::Draining { since, .. } => *since = at,
                InstanceState::Planned
                | InstanceState::Starting { .. }
                | InstanceState::Serving { .. }
                | InstanceState::Failing { .. }
                | InstanceState::Stopping { .. } => {}
            }
        }
    }

    /// Whether an instance that is found to have ended may have done so while nobody looked, with its host perhaps:
    /// it ran before the takeover and was not heard of since.
    ///
    /// One that was planned before it may have run as well: its order was given, and the host was lost before the start was
    /// recorded. Starting it again then finds that it has ended. One that was in truth never started gets another try.
    pub(crate) fn is_found_dead(&self, now: Timestamp, instance: &Instance) -> bool {
        let Some(taken_over) = self.taken_over_at else {
            return false;
        };
        let silent = match instance.state {
            InstanceState::Passing { .. } => false,
            InstanceState::Planned | InstanceState::Starting { .. } => {
                instance.planned_at < taken_over
            }
            InstanceState::Serving { since }
            | InstanceState::Failing { since }
            | InstanceState::Draining { since, .. }
            | InstanceState::Stopping { since } => since <= taken_over,
        };
        silent && now.since(taken_over) < FOUND_DEAD
    }

    /// The maintenance page goes when a service that has a route serves again.
    fn note_resumed(&mut self, id: &InstanceId) {
        let routed = self.instances.get(id).is_some_and(|instance| {
            self.shape(instance.release, &instance.service)
                .is_some_and(|shape| shape.routed)
        });
        if routed {
            self.resuming = false;
        }
    }

    /// Remembers that an instance which should have run did not: for the back-off, and against the rollout.
    fn note_death(&mut self, at: Timestamp, id: &InstanceId) {
        let Some(instance) = self.instances.get(id).filter(|instance| instance.is_kept()) else {
            return;
        };
        let instance = instance.clone();
        let groups = self.backoff.entry(instance.service.clone()).or_default();
        let backoff = groups.entry(instance.release).or_insert(Backoff {
            failures: 0,
            until: Timestamp::EPOCH,
        });
        *backoff = backoff.after_end(at, &instance);
        let new = self.side_of(&instance) == Side::New;
        if let Some(rollout) = self.rollout.as_mut().filter(|_| new) {
            let times = rollout.crash_times.entry(instance.service).or_default();
            times.retain(|earlier| at.since(*earlier) < CRASH_WINDOW);
            times.push(at);
        }
    }
}
