//! One host in virtual time: the server with the real engine, its journal, the target and the proxy, and the
//! wires between them.
//!
//! The driver here is the one of `landfast-engine` in small: wait, decide, record, apply, act. Its clock is
//! anchored at the wall clock when a life begins, never before the last record, and then runs steadily; a wall
//! clock that is set meanwhile is noticed by the next life only.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr},
};

use landfast_rollout::{
    Action, Environment, Event, Input, PlantedBug, Rejected, Traffic,
    analysis::{InstanceObservation, Observation, Sample},
};
use landfast_types::{
    AppName, EnvironmentName, Fence, Generation, Histogram, InstanceId, ReleaseId, Scope,
    ServiceName, Timestamp,
};

use crate::{
    Millis,
    dice::Dice,
    fault::{Fault, Fired},
    operator,
    proxy::Proxy,
    scenario,
    target::Target,
    watch::Watch,
};

/// How often the world looks round: probes, drains, traffic, deadlines.
pub const BEAT: Millis = 500;
/// An action still owed after this is done again.
const AGAIN_AFTER: Millis = 2_000;
/// Failed probes of a hung instance until liveness gives up on it.
const LIVENESS_FAILURES: u32 = 6;
/// The wall clock at the start of every world.
const EPOCH: i64 = 1_790_000_000_000;

/// Which known bug a world has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Planted {
    Engine(PlantedBug),
    ActionBeforeJournal,
    StaleGenerationAccepted,
}

impl Planted {
    /// Every one the simulator must find.
    pub const ALL: [(&'static str, Self); 7] = [
        (
            "weight moves before drain is confirmed",
            Self::Engine(PlantedBug::WeightBeforeDrain),
        ),
        ("action before journal", Self::ActionBeforeJournal),
        (
            "a flapping instance restarts the progress deadline",
            Self::Engine(PlantedBug::FlapRestartsDeadline),
        ),
        (
            "rollback routes before capacity",
            Self::Engine(PlantedBug::RollbackBeforeCapacity),
        ),
        ("stale generation accepted", Self::StaleGenerationAccepted),
        (
            "seal while a rollback is pending",
            Self::Engine(PlantedBug::SealWhileReverting),
        ),
        (
            "min_ready survives a failed probe",
            Self::Engine(PlantedBug::MinReadySurvives),
        ),
    ];
}

/// What goes wrong in a world by chance, until it calms down.
#[derive(Debug, Clone, Copy, Default)]
pub struct Chaos {
    /// Wires and processes fail by chance before this.
    pub until: Millis,
}

/// An order on its way.
#[derive(Debug, Clone)]
struct Order {
    fence: Fence,
    action: Action,
    table: Option<Traffic>,
}

#[derive(Debug, Clone)]
enum Happening {
    Beat,
    Arrives(Order),
    Told {
        generation: u64,
        input: Input,
    },
    Ends {
        instance: InstanceId,
        exit: &'static str,
    },
    ServerStarts,
    Operator,
}

/// A life of the server.
#[derive(Debug, Clone)]
struct Server {
    generation: u64,
    environment: Environment,
    anchor: Timestamp,
    anchored_at: Millis,
    sent: BTreeMap<Action, Millis>,
    passing: BTreeMap<InstanceId, bool>,
    hung: BTreeMap<InstanceId, u32>,
    observed_at: Millis,
}

impl Server {
    fn clock(&self, now: Millis) -> Timestamp {
        self.anchor + std::time::Duration::from_millis(now - self.anchored_at)
    }
}

/// Where the behaviour of instances comes from.
#[derive(Debug, Clone, Copy)]
pub enum Habits {
    /// From chance: the release's, and each instance's own.
    Random,
    /// From the artifact, as a story tells it.
    Told,
}

/// One world.
#[derive(Debug, Clone)]
pub struct World {
    pub now: Millis,
    pub dice: Dice,
    pub fired: Fired,
    pub target: Target,
    pub proxy: Proxy,
    pub journal: Vec<Event>,
    pub watch: Watch,
    pub trace: Option<Vec<String>>,
    /// The server dies when this many records are durable; taken when it happened.
    pub die_at: Option<usize>,
    /// Every order arrives twice.
    pub twice: bool,
    pub chaos: Chaos,
    salt: u64,
    habits: Habits,
    planted: Option<Planted>,
    server: Option<Server>,
    generation: u64,
    /// How far the wall clock is from where it should be.
    skew: i64,
    queue: BTreeMap<(Millis, u64), Happening>,
    happened: u64,
    /// The operator's next turn has come.
    pub operator_due: bool,
}

impl World {
    /// An empty world whose server starts at once.
    pub fn new(seed: u64, habits: Habits, planted: Option<Planted>) -> Self {
        let stale = planted == Some(Planted::StaleGenerationAccepted);
        let mut world = Self {
            now: 0,
            dice: Dice::new(seed),
            fired: Fired::default(),
            target: Target {
                obeys_stale: stale,
                ..Target::default()
            },
            proxy: Proxy {
                obeys_stale: stale,
                ..Proxy::default()
            },
            journal: Vec::new(),
            watch: Watch::default(),
            trace: None,
            die_at: None,
            twice: false,
            chaos: Chaos::default(),
            salt: seed,
            habits,
            planted,
            server: None,
            generation: 0,
            skew: 0,
            queue: BTreeMap::new(),
            happened: 0,
            operator_due: false,
        };
        world.later(0, Happening::ServerStarts);
        world.later(BEAT, Happening::Beat);
        world
    }

    fn later(&mut self, delay: Millis, what: Happening) {
        self.happened += 1;
        self.queue.insert((self.now + delay, self.happened), what);
    }

    /// Calls the operator after a while.
    pub fn call_operator(&mut self, delay: Millis) {
        self.later(delay, Happening::Operator);
    }

    pub fn say(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            let seconds = self.now as f64 / 1_000.0;
            trace.push(format!("{seconds:10.3} {}", line()));
        }
    }

    fn is_chaotic(&self) -> bool {
        self.now < self.chaos.until
    }

    fn fault(&mut self, fault: Fault, permille: u64) -> bool {
        let fires = self.is_chaotic() && self.dice.permille(permille);
        if fires {
            self.fired.note(fault);
            self.say(|| format!("fault: {fault:?}"));
        }
        fires
    }

    /// The engine's state, while a server lives.
    pub fn environment(&self) -> Option<&Environment> {
        self.server.as_ref().map(|server| &server.environment)
    }

    /// The state that the durable record makes.
    pub fn replayed(&self) -> Environment {
        let mut environment = empty();
        if let Some(Planted::Engine(bug)) = self.planted {
            environment.planted = Some(bug);
        }
        for event in &self.journal {
            environment.apply(event);
        }
        environment
    }

    /// Lets the next thing happen. False: nothing is left, which never is.
    pub fn step(&mut self) -> bool {
        let Some(((at, _), what)) = self.queue.pop_first() else {
            return false;
        };
        self.now = at;
        match what {
            Happening::Beat => self.beat(),
            Happening::Arrives(order) => self.arrives(&order),
            Happening::Told { generation, input } => {
                if self.generation == generation && self.server.is_some() {
                    self.feed(input).ok();
                }
            }
            Happening::Ends { instance, exit } => self.ends(&instance, exit),
            Happening::ServerStarts => self.start_server(),
            Happening::Operator => self.operator_due = true,
        }
        true
    }

    // ---------------------------------------------------------------------------------------------- server

    fn start_server(&mut self) {
        if self.server.is_some() {
            return;
        }
        self.generation += 1;
        let environment = self.replayed();
        let wall = Timestamp::from_millis(EPOCH + self.now as i64 + self.skew);
        let last = self.journal.last().map_or(wall, |event| event.at);
        let generation = self.generation;
        self.say(|| format!("server: life {generation} begins at {wall}"));
        self.watch.owes(environment.pending());
        self.watch.life_began = self.now;
        self.target.taken_over_by = generation;
        self.server = Some(Server {
            generation,
            environment,
            anchor: wall.max(last),
            anchored_at: self.now,
            sent: BTreeMap::new(),
            passing: BTreeMap::new(),
            hung: BTreeMap::new(),
            observed_at: self.now,
        });
        let running = self.target.running();
        self.feed(Input::Adopted { running }).ok();
        self.feed(Input::Tick).ok();
        self.act();
    }

    /// The server is gone at once. What it sent before still arrives.
    pub fn kill_server(&mut self) {
        if self.server.take().is_some() {
            self.say(|| "server: dies".into());
            let away = if let Habits::Told = self.habits {
                1_000
            } else if self.dice.permille(200) {
                self.dice.between(10_000, 60_000)
            } else {
                self.dice.between(50, 5_000)
            };
            self.later(away, Happening::ServerStarts);
        }
    }

    /// Decides, records, applies, acts.
    ///
    /// # Errors
    /// What the engine refuses.
    pub fn feed(&mut self, input: Input) -> Result<(), Rejected> {
        let Some(server) = &self.server else {
            return Ok(());
        };
        let at = server.clock(self.now);
        let rollout = server.environment.rollout.as_ref().map(|r| r.id);
        let events = match server.environment.decide(at, input.clone()) {
            Ok(events) => events,
            Err(rejected) => {
                self.say(|| format!("{input:?}: refused: {rejected}"));
                return Err(rejected);
            }
        };
        if !matches!(input, Input::Tick | Input::Observed { .. }) {
            self.say(|| format!("{input:?}"));
        }
        if let (Input::Promote { .. }, Some(rollout)) = (&input, rollout) {
            self.watch.promoted(rollout);
        }
        self.record(events);
        let back = matches!(input, Input::Abort { .. } | Input::Rollback { .. });
        if let (true, Some(rollout), true) = (back, rollout, self.server.is_some()) {
            self.watch.asked_back(rollout);
        }
        if let Some(server) = &self.server
            && let Some((deadline, who)) = server.environment.deadline()
            && deadline <= at
        {
            let detail = format!("{who} wants to be woken at {deadline}, now is {at}");
            self.watch
                .found(self.now, "no deadline in the past", detail);
        }
        Ok(())
    }

    fn record(&mut self, events: Vec<Event>) {
        let early = self.planted == Some(Planted::ActionBeforeJournal);
        if early && let Some(server) = &mut self.server {
            for event in &events {
                server.environment.apply(event);
            }
            self.act();
        }
        let durable = self.journal.len();
        let unlucky = !events.is_empty() && self.fault(Fault::ServerDiedAtRecord, 4);
        let dies_after = match self.die_at {
            Some(at) if at <= durable + events.len() => {
                self.die_at = None;
                Some(at.saturating_sub(durable))
            }
            Some(_) => None,
            None if unlucky => Some(self.dice.between(0, events.len() as u64) as usize),
            None => None,
        };
        let until = dies_after.unwrap_or(events.len());
        for event in events.iter().take(until) {
            self.say(|| format!("  {:?}", event.change));
            self.journal.push(event.clone());
            self.watch.recorded(self.now, event, &self.target);
        }
        if dies_after.is_some() {
            self.kill_server();
            return;
        }
        let Some(server) = &mut self.server else {
            return;
        };
        if !early {
            for event in &events {
                server.environment.apply(event);
            }
        }
        if !events.is_empty() {
            let owed = server.environment.pending();
            self.watch.owes(owed);
            self.act();
        }
    }

    /// Sends what is owed and was not sent lately.
    fn act(&mut self) {
        let now = self.now;
        let Some(server) = &mut self.server else {
            return;
        };
        let pending: BTreeSet<Action> = server.environment.pending().into_iter().collect();
        server.sent.retain(|action, _| pending.contains(action));
        let due: Vec<Action> = pending
            .into_iter()
            .filter(|action| {
                let sent = server.sent.get(action);
                sent.is_none_or(|at| now - at >= AGAIN_AFTER)
            })
            .collect();
        let (generation, sequence) = (server.generation, server.environment.sequence);
        let table = server.environment.traffic.clone();
        for action in due {
            if let Some(server) = &mut self.server {
                server.sent.insert(action.clone(), now);
            }
            let generation = Generation(generation);
            match &action {
                Action::StartInstance { .. } | Action::StopInstance { .. } => {
                    let fence = Fence {
                        generation,
                        revision: sequence,
                    };
                    self.send(Order {
                        fence,
                        action,
                        table: None,
                    });
                }
                Action::Publish { revision } => {
                    let fence = Fence {
                        generation,
                        revision: *revision,
                    };
                    let table = Some(table.clone());
                    self.send(Order {
                        fence,
                        action,
                        table,
                    });
                }
                Action::JudgeGate { rollout, gate, .. } => {
                    let passed = !self.fault(Fault::GateRefused, 160);
                    let input = Input::GateJudged {
                        rollout: *rollout,
                        gate: *gate,
                        passed,
                        detail: "as the world says".into(),
                    };
                    let delay = self.dice.between(100, 1_900);
                    self.tell(delay, input);
                }
                Action::Notify { rollout } => {
                    let input = Input::Notified { rollout: *rollout };
                    let delay = self.dice.between(10, 1_000);
                    self.tell(delay, input);
                }
                // Looked for at each beat.
                Action::AwaitDrain { .. } => {}
            }
        }
    }

    fn send(&mut self, order: Order) {
        if self.fault(Fault::OrderLost, 50) {
            return;
        }
        if self.twice || self.fault(Fault::OrderRepeated, 50) {
            let delay = self.dice.between(10, 20_000);
            self.later(delay, Happening::Arrives(order.clone()));
        }
        let delay = if self.fault(Fault::OrderDelayed, 60) {
            self.dice.between(500, 15_000)
        } else {
            self.dice.between(1, 40)
        };
        self.later(delay, Happening::Arrives(order));
    }

    fn tell(&mut self, delay: Millis, input: Input) {
        let generation = self.generation;
        self.later(delay, Happening::Told { generation, input });
    }

    /// A report that may be lost, repeated or late; whoever waits for it asks again.
    fn report(&mut self, input: Input) {
        if self.fault(Fault::ReportLost, 50) {
            return;
        }
        if self.twice || self.fault(Fault::ReportRepeated, 50) {
            let delay = self.dice.between(10, 20_000);
            self.tell(delay, input.clone());
        }
        let delay = if self.fault(Fault::ReportDelayed, 60) {
            self.dice.between(500, 10_000)
        } else {
            self.dice.between(1, 30)
        };
        self.tell(delay, input);
    }

    // ---------------------------------------------------------------------------------------- target, proxy

    fn arrives(&mut self, order: &Order) {
        let now = self.now;
        if self.server.is_none() || order.fence.generation.0 < self.generation {
            self.fired.note(Fault::StaleOrderArrived);
        }
        match &order.action {
            Action::StartInstance {
                instance,
                service,
                release,
            } => {
                if let Ok(stale) = self.target.admit(instance, service, *release, order.fence) {
                    self.watch.acted(now, &order.action, stale);
                    self.starts(instance, *release);
                }
            }
            Action::StopInstance { instance, grace } => {
                let known = self.target.bodies.get(instance);
                let group = known.map(|body| (body.service.clone(), body.release));
                let (service, release) = group.unwrap_or_else(|| unborn(instance));
                if let Ok(stale) = self.target.admit(instance, &service, release, order.fence) {
                    self.watch.acted(now, &order.action, stale);
                    self.stops(instance, grace.as_millis() as Millis);
                }
            }
            Action::Publish { .. } => self.publishes(order),
            Action::AwaitDrain { .. } | Action::JudgeGate { .. } | Action::Notify { .. } => {}
        }
    }

    fn starts(&mut self, instance: &InstanceId, release: ReleaseId) {
        let now = self.now;
        let Some(body) = self.target.bodies.get_mut(instance) else {
            return;
        };
        if body.signalled_at.is_some() && body.started_at.is_none() {
            return;
        }
        if body.started_at.is_none() {
            let number: u64 = instance
                .as_str()
                .rsplit('.')
                .next()
                .and_then(|number| number.parse().ok())
                .unwrap_or(0);
            // An instance has its own dice: what it does must not depend on when it starts.
            let mut own = Dice::new(self.salt ^ (number << 20));
            let calm = now >= self.chaos.until;
            let shape = self.watch.topology(release);
            let shape = shape.and_then(|topology| topology.services.get(&body.service));
            let habit = match (self.habits, shape) {
                (Habits::Told, Some(shape)) => scenario::habit(shape),
                (Habits::Told, None) | (Habits::Random, _) => {
                    operator::habit(&mut own, &mut self.fired, release, calm, self.salt)
                }
            };
            body.habit = habit;
            body.started_at = Some(now);
            if habit.refused {
                let reason = "no such file".into();
                self.report(Input::StartFailed {
                    instance: instance.clone(),
                    reason,
                });
                return;
            }
            body.alive = true;
            self.watch.started(now, instance, &self.target);
            if let Some(after) = habit.ends_after {
                let happening = Happening::Ends {
                    instance: instance.clone(),
                    exit: "exited with 1",
                };
                self.later(after, happening);
            }
        } else if body.habit.refused {
            let reason = "no such file".into();
            self.report(Input::StartFailed {
                instance: instance.clone(),
                reason,
            });
            return;
        } else if !body.alive {
            self.report(Input::Ended {
                instance: instance.clone(),
                exit: "exited with 1".into(),
            });
            return;
        }
        let address = Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 3000)));
        self.report(Input::Started {
            instance: instance.clone(),
            address,
        });
    }

    fn stops(&mut self, instance: &InstanceId, grace: Millis) {
        let now = self.now;
        let Some(body) = self.target.bodies.get_mut(instance) else {
            return;
        };
        if !body.alive {
            body.signalled_at.get_or_insert(now);
            let exit = "not running".into();
            self.report(Input::Ended {
                instance: instance.clone(),
                exit,
            });
            return;
        }
        if body.signalled_at.is_some() {
            return;
        }
        body.signalled_at = Some(now);
        let ignores = body.habit.ignores_stop;
        self.watch
            .signalled(now, instance, &self.target, &self.proxy);
        let takes = if ignores {
            self.fired.note(Fault::HangsAtStop);
            grace
        } else {
            self.dice.between(10, 300)
        };
        self.later(
            takes,
            Happening::Ends {
                instance: instance.clone(),
                exit: "stopped",
            },
        );
    }

    fn ends(&mut self, instance: &InstanceId, exit: &str) {
        if !self.target.end(instance, self.now) {
            return;
        }
        self.say(|| format!("world: {instance} ends: {exit}"));
        self.proxy.flights.remove(instance);
        let delay = self.dice.between(1, 30);
        let input = Input::Ended {
            instance: instance.clone(),
            exit: exit.to_owned(),
        };
        self.tell(delay, input);
    }

    fn publishes(&mut self, order: &Order) {
        let now = self.now;
        let (Some(table), true) = (&order.table, now >= self.proxy.down_until) else {
            return;
        };
        let (watch, target) = (&self.watch, &self.target);
        let times = |id: &InstanceId| watch.drain_times(id, target);
        let taken = self
            .proxy
            .take(now, order.fence, table, times, &mut self.dice);
        let Ok(stale) = taken else {
            return;
        };
        self.watch.acted(now, &order.action, stale);
        let revision = table.revision;
        self.say(|| format!("proxy: table {revision} is in force"));
        self.report(Input::TrafficConfirmed { revision });
    }

    // ------------------------------------------------------------------------------------------------ beats

    fn beat(&mut self) {
        self.later(BEAT, Happening::Beat);
        self.break_something();
        self.proxy.serve(self.now, &mut self.dice);
        if self.server.is_some() {
            self.watch.passes(self.now, BEAT);
        }
        self.probe();
        self.look_for_drained();
        self.observe();
        let due = self.server.as_ref().and_then(|server| {
            let (deadline, _) = server.environment.deadline()?;
            (deadline <= server.clock(self.now)).then_some(())
        });
        if due.is_some() {
            self.feed(Input::Tick).ok();
        }
        self.act();
    }

    fn break_something(&mut self) {
        if self.fault(Fault::ServerDied, 6) {
            self.kill_server();
        }
        if self.fault(Fault::ProxyRestarted, 6) {
            let down = self.dice.between(100, 3_000);
            self.proxy.restart(self.now, down);
        }
        if self.fault(Fault::ClockSetForward, 3) {
            self.skew += self.dice.between(1_000, 3_600_000) as i64;
        }
        if self.fault(Fault::ClockSetBack, 3) {
            self.skew -= self.dice.between(1_000, 3_600_000) as i64;
        }
        if self.fault(Fault::HostLost, 2) {
            for instance in self.target.running() {
                self.target.end(&instance, self.now);
            }
            self.proxy.restart(self.now, 1_000);
            self.kill_server();
        }
    }

    fn probe(&mut self) {
        let now = self.now;
        let Some(server) = &self.server else {
            return;
        };
        let instances = server.environment.instances.values();
        let probed: Vec<InstanceId> = instances
            .filter(|instance| instance.is_probed())
            .map(|instance| instance.id.clone())
            .collect();
        for instance in probed {
            let Some(body) = self.target.bodies.get_mut(&instance) else {
                continue;
            };
            let (passing, hung) = (body.probed(now), body.is_hung(now));
            let Some(server) = &mut self.server else {
                return;
            };
            let failures = server.hung.entry(instance.clone()).or_default();
            *failures = if hung { *failures + 1 } else { 0 };
            let not_live = *failures == LIVENESS_FAILURES;
            let news = server.passing.insert(instance.clone(), passing) != Some(passing);
            if news {
                let instance = instance.clone();
                self.feed(Input::Probed { instance, passing }).ok();
            }
            if not_live {
                let reason = "does not answer".to_owned();
                self.feed(Input::NotLive { instance, reason }).ok();
            }
        }
    }

    fn look_for_drained(&mut self) {
        let now = self.now;
        let Some(server) = self
            .server
            .as_ref()
            .filter(|_| now >= self.proxy.down_until)
        else {
            return;
        };
        let revision = self.proxy.table.revision;
        let mut drained = Vec::new();
        for action in server.environment.pending() {
            if let Action::AwaitDrain {
                instance,
                revision: needed,
            } = action
                && revision >= needed
                && self.proxy.in_flight(now, &instance) == 0
                && !self.proxy.offers(&instance)
            {
                drained.push(instance);
            }
        }
        for instance in drained {
            if !self.fault(Fault::ReportLost, 50) {
                let delay = self.dice.between(1, 30);
                self.tell(delay, Input::Drained { instance });
            }
        }
    }

    /// What the proxy measured of a canary in the last second.
    fn observe(&mut self) {
        let now = self.now;
        let Some(server) = &mut self.server else {
            return;
        };
        let Some(rollout) = &server.environment.rollout else {
            return;
        };
        if !rollout.wants_observations() || now < server.observed_at + 1_000 {
            return;
        }
        server.observed_at = now;
        let mut observations = BTreeMap::new();
        for (service, traffic) in &server.environment.traffic.services {
            let mut observation = Observation {
                millis: 1_000,
                ..Observation::default()
            };
            for (release, group) in traffic.groups.iter().filter(|(_, g)| g.weight > 0) {
                let new = *release == rollout.to;
                for instance in group.members.keys() {
                    let lies = self.target.bodies.get(instance);
                    let lies = lies.is_some_and(|body| body.habit.lies);
                    let measured = InstanceObservation {
                        instance: instance.clone(),
                        live: sample(&mut self.dice, lies),
                        probes: Sample::default(),
                    };
                    let side = if new {
                        &mut observation.new
                    } else {
                        &mut observation.old
                    };
                    side.push(measured);
                }
            }
            observations.insert(service.clone(), observation);
        }
        let input = Input::Observed {
            rollout: rollout.id,
            observations,
        };
        self.feed(input).ok();
    }
}

/// One second of one instance: 40 requests of about 20 ms, half of them failing where it lies.
fn sample(dice: &mut Dice, lies: bool) -> Sample {
    let mut sample = Sample::default();
    let mut latency = Histogram::default();
    for _ in 0..40 {
        sample.requests += 1;
        sample.errors += u64::from(lies && dice.permille(500));
        latency.record(std::time::Duration::from_micros(
            dice.between(12_000, 30_000),
        ));
    }
    sample.latency = latency;
    sample
}

/// The service and release in an id, for an instance that is to be stopped before it ever started.
fn unborn(instance: &InstanceId) -> (ServiceName, ReleaseId) {
    let mut parts = instance.as_str().split('.');
    let service = parts.next().and_then(|name| ServiceName::new(name).ok());
    let release = parts.next().and_then(|text| text.get(1..)?.parse().ok());
    let service = service.expect("an instance id begins with its service");
    (service, ReleaseId(release.unwrap_or(0)))
}

/// The environment every world has.
pub fn empty() -> Environment {
    let app = AppName::new("flextime").expect("a name");
    let environment = EnvironmentName::new("production").expect("a name");
    Environment::new(Scope { app, environment })
}
