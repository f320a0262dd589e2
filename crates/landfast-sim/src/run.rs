//! One seed, one world, one verdict.

use landfast_rollout::Input;

use crate::{
    Millis,
    fault::Fired,
    operator,
    watch::Broken,
    world::{Chaos, Habits, Planted, World},
};

/// How long things go wrong by chance.
const CHAOS: Millis = 240_000;
/// After that people are quiet, wires hold, and what moves must end.
const CALM_MAX: Millis = 7_200_000;
/// What rests must be at rest this long after the last rollout ended.
const REST: Millis = 120_000;

/// What became of a seed.
#[derive(Debug, Clone)]
pub struct Report {
    pub seed: u64,
    pub broken: Option<Broken>,
    pub fired: Fired,
    /// Inputs the engine decided; the invariants are swept after each.
    pub steps: u64,
    pub records: usize,
    pub sealed: u64,
    pub rolled_back: u64,
    pub parked: u64,
    pub trace: Vec<String>,
}

/// Runs a seed to its end, or to the first broken invariant.
pub fn run(seed: u64, planted: Option<Planted>, verbose: bool) -> Report {
    let mut world = World::new(seed, Habits::Random, planted);
    world.trace = verbose.then(Vec::new);
    world.chaos = Chaos { until: CHAOS };
    world.call_operator(100);
    chaos(&mut world);
    if world.watch.broken.is_none() {
        calm(&mut world);
    }
    if let Some(broken) = world.watch.broken.clone() {
        world.say(|| format!("BROKEN {broken}"));
    }
    Report {
        seed,
        broken: world.watch.broken.clone(),
        fired: world.fired.clone(),
        steps: world.decided,
        records: world.journal.len(),
        sealed: world.watch.sealed,
        rolled_back: world.watch.rolled_back,
        parked: world.watch.parked,
        trace: world.trace.take().unwrap_or_default(),
    }
}

fn chaos(world: &mut World) {
    while world.now < CHAOS && world.watch.broken.is_none() && world.step() {
        if world.operator_due {
            world.operator_due = false;
            let pause = operator::turn(world);
            world.call_operator(pause);
        }
        if world.dice.permille(2) {
            replay_is_the_same(world);
        }
    }
}

/// Nothing breaks by chance any more. A bad release stays bad.
fn calm(world: &mut World) {
    let begins = world.now;
    let mut ended_at = world.now;
    while world.now < begins + CALM_MAX && world.watch.broken.is_none() && world.step() {
        world.operator_due = false;
        if world.watch.stopped {
            world.feed(Input::Start).ok();
        }
        if world.watch.is_moving() {
            ended_at = world.now;
        }
        if world.now >= ended_at + REST && world.environment().is_some() {
            break;
        }
    }
    if world.watch.broken.is_none() {
        replay_is_the_same(world);
        is_at_rest(world);
    }
}

fn replay_is_the_same(world: &mut World) {
    let replayed = world.replayed();
    let same = world.environment().is_none_or(|live| *live == replayed);
    if !same {
        let detail = "the journal makes another state than the one that was lived".to_owned();
        world.watch.found(world.now, "replay equals life", detail);
    }
}

/// With a good release, no rollout and a quiet world, exactly what should run runs, and nothing is owed.
fn is_at_rest(world: &mut World) {
    let Some(serving) = world.watch.serving.filter(|_| !world.watch.is_waiting()) else {
        return;
    };
    if world.watch.is_moving() || world.watch.stopped {
        return;
    }
    let Some(topology) = world.watch.topology(serving).cloned() else {
        return;
    };
    let now = world.now;
    for service in topology.services.keys() {
        let expected = world.watch.expected(serving, service);
        let bodies = world.target.bodies.values();
        let mut running = bodies.filter(|body| body.alive && body.service == *service);
        let steady = running.clone().all(|body| {
            let habit = body.habit;
            body.passes(now) && habit.flaps_every.is_none() && habit.ends_after.is_none()
        });
        let count = running.clone().count() as u32;
        let foreign = running.any(|body| body.release != serving);
        if foreign || (steady && count > expected) {
            let detail = format!("{count} of `{service}` run, {expected} should");
            world.watch.found(now, "the world comes to rest", detail);
            return;
        }
    }
    let strays = world
        .target
        .bodies
        .iter()
        .find(|(_, body)| body.alive && !topology.services.contains_key(&body.service));
    if let Some((id, _)) = strays {
        let detail = format!("{id} runs, which is of no service of release {serving}");
        world.watch.found(now, "the world comes to rest", detail);
    }
}
