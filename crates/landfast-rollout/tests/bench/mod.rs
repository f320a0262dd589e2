//! A small world for scenario tests: every instance becomes ready after two seconds unless told otherwise, the
//! proxy confirms at once, drains end a second later. Time goes from deadline to deadline in half seconds.

#![allow(dead_code, reason = "each test file uses its own part of the bench")]

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use landfast_rollout::{
    Action, Amount, AppliedMigration, Change, Environment, Event, Gate, Input, InstanceState,
    MemberState, MigrationStage, Outcome, Phase, Rejected, Reverting, RolloutPlan, Schemas,
    ServiceShape, Sides, Strategy, Topology,
};
use landfast_types::{
    AppName, EnvironmentName, InstanceId, Percent, ReleaseId, Scope, ServiceName, Timestamp,
};

pub(crate) const START: Timestamp = Timestamp::from_millis(1_790_000_000_000);

pub(crate) fn name(text: &str) -> ServiceName {
    ServiceName::new(text).unwrap()
}

pub(crate) fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A service: `api` with a route, anything that begins with `work` without.
pub(crate) fn shape(replicas: u32, routed: bool, after: &[&str]) -> ServiceShape {
    ServiceShape {
        replicas,
        routed,
        exclusive: false,
        after: after.iter().copied().map(name).collect(),
        drain: secs(30),
        stream_drain: secs(60),
        grace: secs(10),
    }
}

pub(crate) fn topology(services: &[(&str, ServiceShape)]) -> Topology {
    let services = services.iter().cloned();
    Topology {
        services: services.map(|(text, shape)| (name(text), shape)).collect(),
        ..Topology::default()
    }
}

/// Three replicas behind a route.
pub(crate) fn api() -> Topology {
    topology(&[("api", shape(3, true, &[]))])
}

/// The same and two workers after it.
pub(crate) fn api_and_work() -> Topology {
    topology(&[
        ("api", shape(3, true, &[])),
        ("work", shape(2, false, &["api"])),
    ])
}

pub(crate) fn single() -> Topology {
    let mut only = shape(1, true, &[]);
    only.exclusive = true;
    topology(&[("api", only)])
}

pub(crate) fn rolling() -> Strategy {
    Strategy::Rolling {
        max_surge: Amount::Count(1),
        max_unavailable: Amount::Count(0),
    }
}

pub(crate) fn canary() -> Strategy {
    let steps = [5, 25, 100].map(|percent| Percent::new(percent).unwrap());
    Strategy::Canary {
        steps: steps.to_vec(),
    }
}

pub(crate) fn plan(strategy: Strategy) -> RolloutPlan {
    RolloutPlan {
        strategy,
        standby: secs(60),
        hold: secs(30),
        ..RolloutPlan::default()
    }
}

pub(crate) fn with(strategy: Strategy, gates: &[Gate]) -> RolloutPlan {
    RolloutPlan {
        gates: gates.iter().copied().collect(),
        ..plan(strategy)
    }
}

/// How instances of a release behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Quality {
    Good,
    /// Exits half a second after its start.
    Exits,
    /// Never ready.
    Mute,
}

pub(crate) struct Bench {
    pub(crate) now: Timestamp,
    pub(crate) environment: Environment,
    pub(crate) events: Vec<Event>,
    pub(crate) quality: BTreeMap<ReleaseId, Quality>,
    pub(crate) started: BTreeMap<InstanceId, Timestamp>,
    /// Answers of gates; true unless said otherwise.
    pub(crate) gates: BTreeMap<Gate, bool>,
    /// While false no gate gets an answer.
    pub(crate) judges: bool,
    /// While false the proxy confirms nothing.
    pub(crate) confirms: bool,
    /// Instances that do not end, whatever they are told.
    pub(crate) stuck: BTreeSet<InstanceId>,
    /// While false nothing in flight ever ends.
    pub(crate) drains: bool,
    /// What the databases themselves say.
    pub(crate) databases: Schemas,
    /// The stores that were left by a switch and deleted, in order.
    pub(crate) retired: Vec<String>,
    /// The names of the migrations that ran, in order.
    pub(crate) ran: Vec<String>,
    /// Migrations that fail, by name.
    pub(crate) failing: BTreeSet<String>,
    /// While false no migration gets an end.
    pub(crate) migrates: bool,
    pub(crate) most: BTreeMap<ServiceName, u32>,
    /// The services and releases in the order in which instances were first planned and first stopped.
    pub(crate) order: Vec<String>,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let app = AppName::new("flextime").unwrap();
        let environment = EnvironmentName::new("production").unwrap();
        Self {
            now: START,
            environment: Environment::new(Scope { app, environment }),
            events: Vec::new(),
            quality: BTreeMap::new(),
            started: BTreeMap::new(),
            gates: BTreeMap::new(),
            judges: true,
            databases: Schemas::new(),
            retired: Vec::new(),
            ran: Vec::new(),
            failing: BTreeSet::new(),
            migrates: true,
            confirms: true,
            stuck: BTreeSet::new(),
            drains: true,
            most: BTreeMap::new(),
            order: Vec::new(),
        }
    }

    /// An environment in which release 1 of a topology serves.
    pub(crate) fn serving(topology: Topology) -> Self {
        let mut bench = Self::new();
        let first = RolloutPlan {
            standby: Duration::ZERO,
            ..plan(Strategy::BlueGreen)
        };
        bench.deploy(topology, first).unwrap();
        bench.run(120);
        assert_eq!(bench.environment.serving, Some(ReleaseId(1)));
        assert!(bench.environment.rollout.is_none());
        bench.order.clear();
        bench.most.clear();
        bench
    }

    pub(crate) fn tell(&mut self, input: Input) -> Result<Vec<Event>, Rejected> {
        let events = self.environment.decide(self.now, input)?;
        for event in &events {
            // What is written to the journal is what is read back.
            let text = serde_json::to_string(event).unwrap();
            let read: Event = serde_json::from_str(&text).unwrap();
            assert_eq!(&read, event, "{text}");
            self.note(&event.change);
            self.environment.apply(event);
            let is_promoted = matches!(
                event.change,
                Change::PhaseEntered {
                    phase: Phase::Standby
                }
            );
            assert!(
                !is_promoted
                    || self.environment.traffic_confirmed >= self.environment.traffic.revision,
                "promoted while the proxy may still send requests to the old release"
            );
            for service in self.environment_services() {
                let kept = self.kept(&service);
                let most = self.most.entry(service).or_default();
                *most = (*most).max(kept);
            }
        }
        self.events.extend(events.iter().cloned());
        if let Some((deadline, who)) = self.environment.deadline() {
            assert!(deadline > self.now, "{who} wants to be woken in the past");
        }
        Ok(events)
    }

    fn note(&mut self, change: &Change) {
        let line = match change {
            Change::InstancePlanned {
                service, release, ..
            } => format!("start {service} r{release}"),
            Change::InstanceDraining { instance, .. } => {
                let instance = &self.environment.instances[instance];
                format!("drain {} r{}", instance.service, instance.release)
            }
            Change::PhaseEntered {
                phase: Phase::Shifting { .. },
            } => "shift".into(),
            _ => return,
        };
        if !self.order.contains(&line) {
            self.order.push(line);
        }
    }

    fn environment_services(&self) -> Vec<ServiceName> {
        let instances = self.environment.instances.values();
        let names: BTreeSet<ServiceName> = instances.map(|i| i.service.clone()).collect();
        names.into_iter().collect()
    }

    pub(crate) fn kept(&self, service: &ServiceName) -> u32 {
        let instances = self.environment.instances.values();
        let kept = instances.filter(|i| i.service == *service && i.is_kept());
        kept.count() as u32
    }

    pub(crate) fn deploy(&mut self, topology: Topology, plan: RolloutPlan) -> Result<(), Rejected> {
        self.deploy_over(topology, plan, false)
    }

    pub(crate) fn deploy_over(
        &mut self,
        topology: Topology,
        plan: RolloutPlan,
        supersede: bool,
    ) -> Result<(), Rejected> {
        self.tell(Input::Deploy {
            topology,
            plan,
            supersede,
            by: "ann".into(),
        })
        .map(drop)
    }

    pub(crate) fn abort(&mut self) -> Result<(), Rejected> {
        let (by, reason) = ("ann".into(), "it looks wrong".into());
        self.tell(Input::Abort { by, reason }).map(drop)
    }

    pub(crate) fn promote(&mut self) -> Result<(), Rejected> {
        self.tell(Input::Promote { by: "ann".into() }).map(drop)
    }

    pub(crate) fn seal(&mut self) -> Result<(), Rejected> {
        self.tell(Input::Seal { by: "ann".into() }).map(drop)
    }

    pub(crate) fn rollback(&mut self, to: Option<u64>) -> Result<(), Rejected> {
        let (to, by) = (to.map(ReleaseId), "ann".into());
        self.tell(Input::Rollback { to, by }).map(drop)
    }

    pub(crate) fn scale(&mut self, service: &str, replicas: Option<u32>) {
        let service = name(service);
        self.tell(Input::Scale { service, replicas }).unwrap();
    }

    /// Lets so many seconds pass.
    pub(crate) fn run(&mut self, seconds: u64) {
        for _ in 0..seconds * 2 {
            self.half_second();
        }
    }

    /// Lets time pass until a phase, or gives up after 25 minutes.
    pub(crate) fn until(&mut self, word: &str) {
        for _ in 0..3_000 {
            if self.phase() == word {
                return;
            }
            self.half_second();
        }
        panic!("`{word}` never came; it is `{}`", self.phase());
    }

    fn half_second(&mut self) {
        self.world_acts();
        self.now = self.now + Duration::from_millis(500);
        self.instances_act();
        let due = self
            .environment
            .deadline()
            .is_some_and(|(at, _)| at <= self.now);
        if due {
            self.tell(Input::Tick).unwrap();
        }
        self.world_acts();
    }

    fn world_acts(&mut self) {
        for action in self.environment.pending() {
            let input = match action {
                Action::StartInstance { instance, .. } => {
                    self.started.insert(instance.clone(), self.now);
                    Input::Started {
                        instance,
                        address: None,
                    }
                }
                Action::StopInstance { instance, .. } if !self.stuck.contains(&instance) => {
                    Input::Ended {
                        instance,
                        exit: "stopped".into(),
                    }
                }
                Action::Publish { revision } if self.confirms => {
                    Input::TrafficConfirmed { revision }
                }
                Action::AwaitDrain { instance, revision }
                    if self.drains && revision <= self.environment.traffic_confirmed =>
                {
                    Input::Drained { instance }
                }
                Action::JudgeGate { rollout, gate, .. } if self.judges => Input::GateJudged {
                    rollout,
                    gate,
                    passed: self.gates.get(&gate).copied().unwrap_or(true),
                    detail: "as told".into(),
                },
                Action::Migrate {
                    rollout,
                    release,
                    stage,
                } if self.migrates => {
                    let failure = self.migrate(release, stage);
                    Input::Migrated {
                        rollout,
                        stage,
                        schemas: self.seen_by(Some(release)),
                        failure,
                    }
                }
                Action::ReadSchema { .. } if self.migrates => Input::SchemasRead {
                    schemas: self.seen_by(None),
                },
                Action::Notify { rollout } => Input::Notified { rollout },
                Action::RetireStore { store } => {
                    self.retired.push(store.to_string());
                    Input::StoreRetired { store }
                }
                Action::StopInstance { .. }
                | Action::Publish { .. }
                | Action::AwaitDrain { .. }
                | Action::Migrate { .. }
                | Action::ReadSchema { .. }
                | Action::JudgeGate { .. } => {
                    continue;
                }
            };
            self.tell(input).unwrap();
        }
    }

    /// What the databases that a release is given say, by the names of the manifest.
    fn seen_by(&self, release: Option<ReleaseId>) -> Schemas {
        let releases = self.environment.releases.values();
        let names = releases.flat_map(|record| record.topology.schemas.keys());
        let seen = names.filter_map(|name| {
            let store = self.environment.served_by(release, name);
            Some((name.clone(), self.databases.get(store)?.clone()))
        });
        seen.collect()
    }

    /// What a runner does, told from the databases' side; the first failure ends it.
    fn migrate(&mut self, release: ReleaseId, stage: MigrationStage) -> Option<String> {
        let schemas = self.environment.releases[&release].topology.schemas.clone();
        for (store, migrations) in schemas {
            let served_by = self.environment.served_by(Some(release), &store).clone();
            let is_apart = served_by != *self.environment.served_by(None, &store);
            // Nobody uses a store that is being moved to.
            let stage = if is_apart { MigrationStage::All } else { stage };
            let seen = self.databases.entry(served_by).or_default();
            for migration in migrations {
                let has_run = seen.iter().any(|known| known.number == migration.number);
                if !stage.takes(migration.phase) || has_run {
                    continue;
                }
                if self.failing.contains(&migration.name) {
                    return Some(format!("{} failed", migration.name));
                }
                self.ran.push(migration.name.clone());
                seen.push(AppliedMigration {
                    number: migration.number,
                    name: migration.name,
                    phase: migration.phase,
                    is_whole: true,
                    breaks_older: false,
                });
            }
        }
        None
    }

    fn instances_act(&mut self) {
        for (instance, started) in self.started.clone() {
            let Some(known) = self.environment.instances.get(&instance) else {
                continue;
            };
            let quality = self.quality.get(&known.release).copied();
            let age = self.now.since(started);
            match quality.unwrap_or(Quality::Good) {
                Quality::Good if age >= secs(2) => {
                    let fresh = matches!(known.state, InstanceState::Starting { .. });
                    if fresh {
                        self.probe(&instance, true);
                    }
                }
                Quality::Exits if known.is_kept() => self.end(&instance),
                Quality::Good | Quality::Exits | Quality::Mute => {}
            }
        }
    }

    pub(crate) fn probe(&mut self, instance: &InstanceId, passing: bool) {
        let instance = instance.clone();
        self.tell(Input::Probed { instance, passing }).unwrap();
    }

    pub(crate) fn end(&mut self, instance: &InstanceId) {
        let (instance, exit) = (instance.clone(), "exited with 1".into());
        self.tell(Input::Ended { instance, exit }).unwrap();
    }

    /// The kept instances of a service and release.
    pub(crate) fn of(&self, service: &str, release: u64) -> Vec<InstanceId> {
        let (service, release) = (name(service), ReleaseId(release));
        let instances = self.environment.instances.values();
        instances
            .filter(|i| i.service == service && i.release == release && i.is_kept())
            .map(|i| i.id.clone())
            .collect()
    }

    pub(crate) fn phase(&self) -> String {
        let rollout = self.environment.rollout.as_ref();
        rollout.map_or_else(|| "none".into(), |rollout| word(&rollout.phase))
    }

    /// The phases of the last rollout in order.
    pub(crate) fn phases(&self) -> Vec<String> {
        let begun = |event: &Event| matches!(event.change, Change::RolloutStarted { .. });
        let start = self.events.iter().rposition(begun).unwrap();
        let phases = self.events[start..].iter();
        phases
            .filter_map(|event| match &event.change {
                Change::PhaseEntered { phase } => Some(word(phase)),
                _ => None,
            })
            .collect()
    }

    /// Every division of traffic between release 1 and 2 that a table of the last rollout had.
    pub(crate) fn shares(&self, service: &str) -> Vec<(u32, u32)> {
        let begun = |event: &Event| matches!(event.change, Change::RolloutStarted { .. });
        let start = self.events.iter().rposition(begun).unwrap();
        let mut shares = Vec::new();
        for event in &self.events[start..] {
            let Change::TrafficChanged { traffic } = &event.change else {
                continue;
            };
            let groups = traffic.services.get(&name(service)).map(|s| &s.groups);
            let weight = |release| {
                let group = groups.and_then(|groups| groups.get(&ReleaseId(release)));
                group.map_or(0, |group| group.weight)
            };
            let share = (weight(1), weight(2));
            if shares.last() != Some(&share) {
                shares.push(share);
            }
        }
        shares
    }

    /// How many members of a service get new requests.
    pub(crate) fn in_rotation(&self, service: &str) -> u32 {
        self.environment.traffic.capacity(&name(service))
    }

    pub(crate) fn ready(&self, service: &str) -> Sides {
        self.environment.ready(&name(service))
    }

    pub(crate) fn outcome(&self) -> Option<&Outcome> {
        self.environment
            .history
            .last()
            .map(|record| &record.outcome)
    }

    pub(crate) fn ended(&self) -> String {
        match self.outcome() {
            None => "nothing".into(),
            Some(Outcome::Sealed) => "sealed".into(),
            Some(Outcome::RolledBack { reason }) => format!("rolled back: {reason}"),
        }
    }

    /// The server died right after it recorded that it enters a phase: what it decided with that is forgotten.
    pub(crate) fn forget_after(&mut self, phase: &str) {
        let entered = |event: &Event| matches!(&event.change, Change::PhaseEntered { phase: p } if word(p) == phase);
        let last = self.events.iter().rposition(entered).unwrap();
        self.events.truncate(last + 1);
        self.environment = Environment::new(self.environment.scope.clone());
        for event in &self.events {
            self.environment.apply(event);
        }
    }

    /// Replays all that was recorded and compares it with what was lived.
    pub(crate) fn replay_agrees(&self) {
        let mut replayed = Environment::new(self.environment.scope.clone());
        for event in &self.events {
            replayed.apply(event);
        }
        assert_eq!(replayed, self.environment);
    }

    pub(crate) fn is_offered(&self, instance: &InstanceId) -> bool {
        let services = self.environment.traffic.services.values();
        let groups = services.flat_map(|service| service.groups.values());
        groups
            .filter(|group| group.weight > 0)
            .any(|group| group.members.get(instance) == Some(&MemberState::Serving))
    }
}

/// A phase in one word.
pub(crate) fn word(phase: &Phase) -> String {
    match phase {
        Phase::Preflight => "preflight".into(),
        Phase::Rehearsing => "rehearsing".into(),
        Phase::Migrating => "migrating".into(),
        Phase::Contracting => "contracting".into(),
        Phase::Pausing => "pausing".into(),
        Phase::Clearing => "clearing".into(),
        Phase::Warming { level } => format!("warming {level}"),
        Phase::Gating { gate } => format!("gate {gate}"),
        Phase::Moving { service } => format!("moving {service}"),
        Phase::Stepping { step } => format!("stepping {step}"),
        Phase::Shifting { step } => format!("shifting {step}"),
        Phase::Holding { step } => format!("holding {step}"),
        Phase::Promoting { service } => format!("promoting {service}"),
        Phase::Standby => "standby".into(),
        Phase::Sealing => "sealing".into(),
        Phase::Reverting { stage, .. } => match stage {
            Reverting::Pausing => "back: pausing".into(),
            Reverting::Clearing => "back: clearing".into(),
            Reverting::Restoring => "back: restoring".into(),
            Reverting::Switching => "back: switching".into(),
            Reverting::Retiring => "back: retiring".into(),
        },
        Phase::Parked { .. } => "parked".into(),
    }
}
