//! Scenarios written out: what a person asks for and when, and what a world must look like in the end. They know
//! no world, so that the same ones run against the engine alone and against a real server.
//!
//! What an artifact does is written into its shape ([`ServiceShape::grace`], which nothing else here depends on):
//! see [`habit`].

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use landfast_rollout::{
    Amount, Environment, Gate, Input, Kind, MemberState, MigrationPhase, MigrationShape, Outcome,
    Phase, RolloutPlan, ServiceShape, Strategy, Topology, TrafficMode,
};
use landfast_types::{Percent, ReleaseId};

use crate::{Millis, database, operator::service, target::Habit, world::World};

/// The grace of an artifact that exits at start.
const EXITS: Duration = Duration::from_secs(3);

/// One story.
#[derive(Debug, Clone)]
pub struct Scenario {
    pub name: &'static str,
    pub steps: Vec<Step>,
}

/// One step of a story.
#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "a story has a dozen steps")]
pub enum Step {
    Ask(Input),
    Until(Moment),
}

/// When a story goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// No rollout moves.
    Ended,
    Standby,
    Approval,
    Holding,
    Moving,
    Warming,
    Parked,
    /// Nothing of the old size is left over.
    Quiet,
}

impl Moment {
    /// Whether it has come.
    pub fn is_now(self, environment: &Environment) -> bool {
        let phase = environment.rollout.as_ref().map(|rollout| &rollout.phase);
        match self {
            Self::Ended => phase.is_none(),
            Self::Standby => phase == Some(&Phase::Standby),
            Self::Approval => {
                phase
                    == Some(&Phase::Gating {
                        gate: Gate::Approval,
                    })
            }
            Self::Holding => matches!(phase, Some(Phase::Holding { .. })),
            Self::Moving => matches!(phase, Some(Phase::Moving { .. })),
            Self::Warming => matches!(phase, Some(Phase::Warming { .. })),
            Self::Parked => matches!(phase, Some(Phase::Parked { .. })),
            Self::Quiet => environment.pending().is_empty(),
        }
    }
}

/// What an artifact does.
pub fn habit(shape: &ServiceShape) -> Habit {
    Habit {
        ready_after: 700,
        ends_after: (shape.grace == EXITS).then_some(300),
        ..Habit::default()
    }
}

fn shape(replicas: u32, routed: bool) -> ServiceShape {
    ServiceShape {
        replicas,
        routed,
        exclusive: false,
        after: BTreeSet::new(),
        drain: Duration::from_secs(2),
        stream_drain: Duration::from_secs(3),
        grace: Duration::from_secs(1),
    }
}

/// Three replicas behind a route, and a worker after them.
fn shop(drain: u64) -> Topology {
    let mut worker = shape(2, false);
    worker.after.insert(service("api"));
    let mut api = shape(3, true);
    api.drain = Duration::from_secs(drain);
    Topology {
        services: [(service("api"), api), (service("work"), worker)].into(),
        ..Topology::default()
    }
}

/// The shop with so many migrations: the second is a contract.
fn migrating(drain: u64, count: u32) -> Topology {
    let migration = |number| MigrationShape {
        number,
        name: format!("{number:04}_step"),
        phase: if number == 2 {
            MigrationPhase::Contract
        } else {
            MigrationPhase::Expand
        },
    };
    let mut topology = shop(drain);
    let migrations = (1..=count).map(migration).collect();
    topology.schemas.insert(database::store(), migrations);
    topology
}

fn broken() -> Topology {
    let mut topology = shop(4);
    for shape in topology.services.values_mut() {
        shape.grace = EXITS;
    }
    topology
}

fn single(grace: Duration) -> Topology {
    let mut only = shape(1, true);
    only.exclusive = true;
    only.grace = grace;
    Topology {
        services: [(service("api"), only)].into(),
        ..Topology::default()
    }
}

/// Waits of seconds, no gates.
pub fn quick(strategy: Strategy) -> RolloutPlan {
    RolloutPlan {
        strategy,
        gates: BTreeSet::new(),
        min_ready: Duration::from_secs(1),
        healthy_deadline: Duration::from_secs(30),
        progress_deadline: Duration::from_secs(60),
        hold: Duration::from_secs(10),
        standby: Duration::from_secs(15),
        rollback: true,
    }
}

/// One more, none missing.
pub fn rolling() -> Strategy {
    Strategy::Rolling {
        max_surge: Amount::Count(1),
        max_unavailable: Amount::Count(0),
    }
}

/// The contract's steps.
pub fn canary() -> Strategy {
    let steps = [5, 25, 100].map(|percent| Percent::new(percent).expect("at most 100"));
    Strategy::Canary {
        steps: steps.to_vec(),
    }
}

fn deploy(topology: Topology, plan: RolloutPlan) -> Step {
    Step::Ask(Input::Deploy {
        topology,
        plan,
        supersede: false,
        by: "somebody".into(),
    })
}

fn first() -> Vec<Step> {
    let mut plan = quick(Strategy::BlueGreen);
    plan.standby = Duration::ZERO;
    vec![deploy(shop(2), plan), Step::Until(Moment::Ended)]
}

fn abort() -> Step {
    Step::Ask(Input::Abort {
        by: "somebody".into(),
        reason: "it looks wrong".into(),
    })
}

fn promote() -> Step {
    Step::Ask(Input::Promote {
        by: "somebody".into(),
    })
}

fn gated(strategy: Strategy, gate: Gate) -> RolloutPlan {
    RolloutPlan {
        gates: [gate].into(),
        ..quick(strategy)
    }
}

fn story(name: &'static str, steps: impl IntoIterator<Item = Step>) -> Scenario {
    let mut all = first();
    all.extend(steps);
    all.push(Step::Until(Moment::Quiet));
    Scenario { name, steps: all }
}

/// Every story.
pub fn all() -> Vec<Scenario> {
    let ended = || Step::Until(Moment::Ended);
    let good = |strategy| deploy(shop(4), quick(strategy));
    let parks = RolloutPlan {
        rollback: false,
        ..quick(rolling())
    };
    let supersede = Step::Ask(Input::Deploy {
        topology: shop(3),
        plan: quick(rolling()),
        supersede: true,
        by: "somebody".into(),
    });
    let rollback = || {
        Step::Ask(Input::Rollback {
            to: None,
            by: "somebody".into(),
        })
    };
    let scale = |replicas| {
        Step::Ask(Input::Scale {
            service: service("api"),
            replicas,
        })
    };
    let restart = Step::Ask(Input::Restart {
        by: "somebody".into(),
    });
    let seal = Step::Ask(Input::Seal {
        by: "somebody".into(),
    });
    let until = Step::Until;
    let exclusive = |grace| deploy(single(grace), quick(Strategy::Recreate));
    vec![
        story("rolling", [good(rolling()), ended()]),
        story(
            "blue-green",
            [
                deploy(shop(4), gated(Strategy::BlueGreen, Gate::Smoke)),
                until(Moment::Standby),
                seal,
                ended(),
            ],
        ),
        story("canary", [good(canary()), ended()]),
        story(
            "recreate",
            [
                exclusive(Duration::from_secs(1)),
                ended(),
                exclusive(Duration::from_secs(2)),
                ended(),
            ],
        ),
        story(
            "rolling, exits at start",
            [deploy(broken(), quick(rolling())), ended()],
        ),
        story(
            "blue-green, exits at start",
            [deploy(broken(), quick(Strategy::BlueGreen)), ended()],
        ),
        story(
            "canary, exits at start",
            [deploy(broken(), quick(canary())), ended()],
        ),
        story(
            "recreate, exits at start",
            [
                exclusive(Duration::from_secs(1)),
                ended(),
                exclusive(EXITS),
                ended(),
            ],
        ),
        story(
            "rolling, aborted on the way",
            [good(rolling()), until(Moment::Moving), abort(), ended()],
        ),
        story(
            "blue-green, aborted in standby",
            [
                good(Strategy::BlueGreen),
                until(Moment::Standby),
                abort(),
                ended(),
            ],
        ),
        story(
            "canary, aborted at a step",
            [good(canary()), until(Moment::Holding), abort(), ended()],
        ),
        story(
            "recreate, aborted in standby",
            [
                deploy(shop(4), quick(Strategy::Recreate)),
                until(Moment::Standby),
                abort(),
                ended(),
            ],
        ),
        story(
            "expand and contract",
            [
                deploy(migrating(4, 1), quick(rolling())),
                ended(),
                deploy(migrating(4, 3), quick(Strategy::BlueGreen)),
                ended(),
            ],
        ),
        story(
            "rollback across a contract, then forward",
            [
                deploy(migrating(4, 1), quick(rolling())),
                ended(),
                deploy(migrating(4, 2), quick(rolling())),
                ended(),
                rollback(),
                deploy(migrating(3, 3), quick(canary())),
                ended(),
            ],
        ),
        story(
            "rollback after the seal",
            [good(rolling()), ended(), rollback(), ended()],
        ),
        story(
            "approval",
            [
                deploy(shop(4), gated(Strategy::BlueGreen, Gate::Approval)),
                until(Moment::Approval),
                promote(),
                ended(),
            ],
        ),
        story(
            "superseded on the way",
            [
                good(Strategy::BlueGreen),
                until(Moment::Warming),
                supersede,
                ended(),
            ],
        ),
        story("restart", [restart, ended()]),
        story(
            "scale",
            [
                scale(Some(5)),
                until(Moment::Quiet),
                good(rolling()),
                ended(),
                scale(None),
                until(Moment::Quiet),
            ],
        ),
        story(
            "stop and start",
            [
                Step::Ask(Input::Stop),
                until(Moment::Quiet),
                Step::Ask(Input::Start),
                until(Moment::Quiet),
            ],
        ),
        story(
            "parked, then aborted",
            [
                deploy(broken(), parks),
                until(Moment::Parked),
                abort(),
                ended(),
            ],
        ),
    ]
}

/// What a world looks like when a story is over. Releases are named by what is in them, because a crash may cost
/// a number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    pub serving: Option<String>,
    pub outcomes: Vec<(Kind, &'static str)>,
    pub running: BTreeMap<(String, String), usize>,
    pub rotation: BTreeMap<String, (TrafficMode, Vec<(String, usize)>)>,
}

/// Tells a story to a world, and how it ended.
///
/// # Errors
/// The step that was waited for in vain, or the invariant that broke.
pub fn tell(world: &mut World, scenario: &Scenario, limit: Millis) -> Result<Ending, String> {
    let mut steps = scenario.steps.iter();
    let mut next = steps.next();
    while let Some(step) = next {
        if world.now > limit {
            return Err(format!("{}: {step:?} never came", scenario.name));
        }
        if let Some(broken) = &world.watch.broken {
            return Err(format!("{}: {broken}", scenario.name));
        }
        let Some(environment) = world.environment() else {
            world.step();
            continue;
        };
        match step {
            Step::Until(moment) => {
                // Over already counts as come: a crash may have let the time pass.
                let over = environment.rollout.is_none() && *moment != Moment::Quiet;
                if moment.is_now(environment) || over {
                    next = steps.next();
                } else {
                    world.step();
                }
            }
            Step::Ask(input) => {
                let durable = world.journal.len();
                let asked = world.feed(input.clone());
                if world.environment().is_some() || was_taken(world, durable, input) {
                    if let Err(rejected) = asked {
                        return Err(format!("{}: {input:?}: {rejected}", scenario.name));
                    }
                    next = steps.next();
                }
                world.step();
            }
        }
    }
    let calm = world.now + 5_000;
    while world.now < calm || world.environment().is_none() {
        world.step();
    }
    Ok(ending(world))
}

/// Whether a wish was recorded although nobody lived to say so: whoever asked looks first, then asks again.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "stories ask for wishes of people only"
)]
fn was_taken(world: &World, durable: usize, input: &Input) -> bool {
    use landfast_rollout::Change;
    let mut records = world.journal.iter().skip(durable);
    records.any(|event| match input {
        Input::Deploy { .. } | Input::Rollback { .. } | Input::Restart { .. } => matches!(
            event.change,
            Change::RolloutStarted { .. } | Change::RolloutQueued { .. }
        ),
        Input::Abort { .. } => matches!(
            event.change,
            Change::PhaseEntered {
                phase: Phase::Reverting { .. }
            }
        ),
        Input::Seal { .. } => matches!(
            event.change,
            Change::PhaseEntered {
                phase: Phase::Sealing
            }
        ),
        Input::Promote { .. } => matches!(
            event.change,
            Change::GateOpened { .. } | Change::Promoted { .. }
        ),
        Input::Scale { .. } => matches!(event.change, Change::Scaled { .. }),
        Input::Stop => event.change == Change::Stopped,
        Input::Start => event.change == Change::Resumed,
        _ => false,
    })
}

fn ending(world: &World) -> Ending {
    let environment = world.replayed();
    let label = |release: ReleaseId| {
        let record = environment.releases.get(&release);
        let shapes = record.map(|record| &record.topology.services);
        let shapes = shapes.into_iter().flatten();
        let words = shapes.map(|(name, shape)| {
            format!("{name} drains {:?}, grace {:?}", shape.drain, shape.grace)
        });
        words.collect::<Vec<_>>().join("; ")
    };
    let mut running: BTreeMap<(String, String), usize> = BTreeMap::new();
    for body in world.target.bodies.values().filter(|body| body.alive) {
        let group = (body.service.to_string(), label(body.release));
        *running.entry(group).or_default() += 1;
    }
    let services = world.proxy.table.services.iter().map(|(name, service)| {
        let groups = service.groups.iter().filter(|(_, group)| group.weight > 0);
        let groups = groups.map(|(release, group)| {
            let members = group.members.values();
            let serving = members.filter(|state| **state == MemberState::Serving);
            (label(*release), serving.count())
        });
        (name.to_string(), (service.mode, groups.collect()))
    });
    let outcomes = environment.history.iter().map(|record| {
        let word = match record.outcome {
            Outcome::Sealed => "sealed",
            Outcome::RolledBack { .. } => "rolled back",
        };
        (record.kind, word)
    });
    Ending {
        serving: environment.serving.map(label),
        outcomes: outcomes.collect(),
        running,
        rotation: services.collect(),
    }
}
