//! The rollout engine over a history the simulator made: the same seed, the same history.

use std::hint::black_box;

use landfast_rollout::{Environment, Event, Input};
use landfast_sim::world::{self, Habits, World};
use landfast_types::Timestamp;

use crate::Work;

const SEED: u64 = 17;
/// Long enough for several rollouts.
const RECORDS: usize = 400;

/// What happened in one environment until a rollout was under way.
fn history() -> (Vec<Event>, Environment) {
    let mut world = World::new(SEED, Habits::Random, None);
    world.call_operator(100);
    let is_moving = |environment: &Environment| environment.rollout.is_some();
    while world.journal.len() < RECORDS || !is_moving(&world.replayed()) {
        assert!(world.step(), "there is always something next");
        if std::mem::take(&mut world.operator_due) {
            let pause = landfast_sim::operator::turn(&mut world);
            world.call_operator(pause);
        }
    }
    let environment = world.replayed();
    (world.journal, environment)
}

pub(crate) fn replay() -> Work {
    let (events, end) = history();
    Box::new(move || {
        let mut environment = world::empty();
        for event in black_box(&events) {
            environment.apply(event);
        }
        assert_eq!(environment.sequence, end.sequence);
    })
}

pub(crate) fn decide_tick() -> Work {
    let (events, environment) = history();
    let now: Timestamp = events.last().expect("a history").at;
    Box::new(move || {
        let decided = environment.decide(black_box(now), Input::Tick);
        assert!(black_box(decided).is_ok());
    })
}

pub(crate) fn pending() -> Work {
    let (_, environment) = history();
    Box::new(move || {
        black_box(black_box(&environment).pending());
    })
}
