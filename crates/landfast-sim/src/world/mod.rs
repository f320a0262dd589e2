//! One host in virtual time: the server with the real engine, its journal, the target and the proxy, and the
//! wires between them.
//!
//! The driver here is the one of `landfast-engine` in small: wait, decide, record, apply, act. Its clock is
//! anchored at the wall clock when a life begins, never before the last record, and then runs steadily; a wall
//! clock that is set meanwhile is noticed by the next life only.

mod beat;
mod host;

use std::collections::{BTreeMap, BTreeSet};

use landfast_rollout::{
    Action, Environment, Event, Input, MigrationShape, PlantedBug, Rejected, Traffic,
};
use landfast_types::{AppName, EnvironmentName, Fence, Generation, InstanceId, Scope, Timestamp};

use crate::{
    Millis,
    database::{Database, Runner},
    dice::Dice,
    fault::{Fault, Fired},
    proxy::Proxy,
    target::Target,
    watch::Watch,
};

/// How often the world looks round: probes, drains, traffic, deadlines.
pub const BEAT: Millis = 500;
/// An action still owed after this is done again.
const AGAIN_AFTER: Millis = 2_000;
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
    pub const ALL: [(&'static str, Self); 8] = [
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
        (
            "contract beside the old release",
            Self::Engine(PlantedBug::ContractBesideOld),
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
    /// The runner's next migration is through.
    Migrates(Runner),
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
    pub database: Database,
    /// Every migration that anybody wrote so far.
    pub migrations: Vec<MigrationShape>,
    pub journal: Vec<Event>,
    /// Inputs the engine has decided, those it refused included.
    pub decided: u64,
    pub watch: Watch,
    pub trace: Option<Vec<String>>,
    /// The server dies when this many records are durable; taken when it happened.
    pub die_at: Option<usize>,
    /// And the host with it: every instance ends.
    pub host_too: bool,
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
            database: Database::default(),
            migrations: Vec::new(),
            journal: Vec::new(),
            decided: 0,
            watch: Watch::default(),
            trace: None,
            die_at: None,
            host_too: false,
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
            Happening::Migrates(runner) => self.migrates(runner),
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
        self.decided += 1;
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
            if self.host_too {
                self.lose_instances();
            }
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
                Action::Migrate {
                    rollout,
                    release,
                    stage,
                } => {
                    let runner = Runner {
                        generation: generation.0,
                        rollout: *rollout,
                        release: *release,
                        stage: *stage,
                    };
                    // A driver has one task for an action; another server waits for the lock.
                    let held = self.database.runner;
                    if held.is_none_or(|held| held.generation != runner.generation) {
                        self.database.runner = Some(runner);
                        let takes = self.dice.between(50, 3_000);
                        self.later(takes, Happening::Migrates(runner));
                    }
                }
                Action::ReadSchema { .. } => {
                    let schemas = self.database.schemas();
                    let delay = self.dice.between(10, 1_000);
                    self.tell(delay, Input::SchemasRead { schemas });
                }
                // The world has one database, and nobody moves it.
                Action::RetireStore { .. } => {}
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
}

/// The environment every world has.
pub fn empty() -> Environment {
    let app = AppName::new("flextime").expect("a name");
    let environment = EnvironmentName::new("production").expect("a name");
    Environment::new(Scope { app, environment })
}
