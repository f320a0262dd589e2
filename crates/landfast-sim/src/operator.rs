//! People at random: what they deploy, and what they ask for at which moment.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use landfast_rollout::{
    Amount, Gate, Input, MigrationShape, Phase, RolloutPlan, ServiceShape, Strategy, Topology,
};
use landfast_types::{Percent, ReleaseId, ServiceName};

use crate::{
    Millis, database,
    dice::Dice,
    fault::{Fault, Fired},
    target::Habit,
    world::World,
};

/// A name that is known to be one.
pub fn service(name: &str) -> ServiceName {
    ServiceName::new(name).expect("a service name")
}

fn seconds(dice: &mut Dice, low: u64, high: u64) -> Duration {
    Duration::from_secs(dice.between(low, high))
}

/// One to three services; the first has a route.
pub fn topology(dice: &mut Dice, migrations: &mut Vec<MigrationShape>) -> Topology {
    let count = dice.between(1, 3) as usize;
    let names = ["api", "web", "work"];
    let mut services = BTreeMap::new();
    for (index, name) in names.iter().take(count).enumerate() {
        let mut after = BTreeSet::new();
        if index > 0 && dice.permille(500) {
            after.insert(service(names[index - 1]));
        }
        let exclusive = dice.permille(60);
        let replicas = if exclusive {
            1
        } else {
            dice.between(1, 4) as u32
        };
        let shape = ServiceShape {
            replicas,
            routed: index == 0 || (index == 1 && dice.permille(600)),
            exclusive,
            after,
            drain: seconds(dice, 2, 5),
            stream_drain: seconds(dice, 3, 8),
            grace: seconds(dice, 1, 3),
        };
        services.insert(service(name), shape);
    }
    let mut topology = Topology {
        services,
        ..Topology::default()
    };
    if dice.permille(700) {
        let own = database::migrations(dice, migrations);
        topology.schemas.insert(database::store(), own);
    }
    topology
}

/// Any plan a manifest may hold.
pub fn plan(dice: &mut Dice) -> RolloutPlan {
    let percent = |percent| Percent::new(percent).expect("at most 100");
    let strategy = match dice.between(0, 9) {
        0..3 => {
            let (surge, unavailable) = (dice.between(0, 2) as u32, dice.between(0, 1) as u32);
            Strategy::Rolling {
                max_surge: Amount::Count(surge),
                max_unavailable: Amount::Count(unavailable),
            }
        }
        3 => Strategy::Rolling {
            max_surge: Amount::Percent(percent(25)),
            max_unavailable: Amount::Percent(percent(25)),
        },
        4..7 => Strategy::BlueGreen,
        7..9 => Strategy::Canary {
            steps: [5, 25, 100].map(percent).to_vec(),
        },
        _ => Strategy::Recreate,
    };
    let mut gates = BTreeSet::new();
    for (gate, chance) in [
        (Gate::Preflight, 400),
        (Gate::Smoke, 250),
        (Gate::Hold, 150),
        (Gate::Approval, 100),
        (Gate::Analysis, 600),
    ] {
        if dice.permille(chance) {
            gates.insert(gate);
        }
    }
    RolloutPlan {
        strategy,
        gates,
        min_ready: seconds(dice, 1, 3),
        healthy_deadline: seconds(dice, 15, 30),
        progress_deadline: seconds(dice, 20, 40),
        hold: seconds(dice, 3, 10),
        standby: seconds(dice, 0, 25),
        rollback: dice.permille(850),
    }
}

/// How an instance of a release behaves: the release's own quality, and bad luck of its own.
pub fn habit(
    own: &mut Dice,
    fired: &mut Fired,
    release: ReleaseId,
    calm: bool,
    salt: u64,
) -> Habit {
    let mut habit = Habit {
        ready_after: own.between(100, 3_000),
        ..Habit::default()
    };
    let mut quality = Dice::new(salt ^ (release.0 << 40) ^ 0x51);
    match quality.between(0, 19) {
        0 => {
            fired.note(Fault::CrashAtStart);
            habit.ends_after = Some(own.between(50, 900));
        }
        1 => {
            fired.note(Fault::CrashLater);
            habit.ends_after = Some(own.between(4_000, 25_000));
        }
        2 | 3 if own.permille(700) => {
            fired.note(Fault::ReadinessFlaps);
            // All of a release in one beat, so that they may miss each other for ever.
            habit.flaps_every = Some(quality.between(1_000, 9_000));
        }
        4 => {
            fired.note(Fault::LiesAboutHealth);
            habit.lies = true;
        }
        5 => {
            fired.note(Fault::StartLate);
            habit.ready_after = own.between(5_000, 40_000);
        }
        _ => {}
    }
    if calm {
        return habit;
    }
    let mut luck = |fault, chance| {
        let fires = own.permille(chance);
        if fires {
            fired.note(fault);
        }
        fires
    };
    if luck(Fault::CrashAtStart, 20) {
        habit.ends_after = Some(300);
    }
    if luck(Fault::CrashLater, 50) {
        habit.ends_after = Some(30_000);
    }
    if luck(Fault::StartLate, 50) {
        habit.ready_after = 12_000;
    }
    if luck(Fault::StartRefused, 15) {
        habit.refused = true;
    }
    if luck(Fault::ReadinessFlaps, 30) {
        habit.flaps_every = Some(3_500);
    }
    if luck(Fault::LiesAboutHealth, 20) {
        habit.lies = true;
    }
    if luck(Fault::Hangs, 30) {
        habit.hangs_after = Some(20_000);
    }
    habit.ignores_stop = own.permille(60);
    habit
}

/// What a person does now, and how long until the next.
pub fn turn(world: &mut World) -> Millis {
    let Some(environment) = world.environment() else {
        return 1_000;
    };
    let (stopped, next) = (environment.stopped, environment.next_release().0);
    let reverts = environment
        .rollout
        .as_ref()
        .is_some_and(|rollout| matches!(rollout.phase, Phase::Reverting { .. }));
    let waits = environment.rollout.as_ref().is_some_and(|r| r.is_waiting());
    let services: Vec<ServiceName> = environment
        .instances
        .values()
        .map(|i| i.service.clone())
        .collect();
    let dice = &mut world.dice;
    let by = "somebody".to_owned();
    let roll = dice.between(0, 99);
    let input = match roll {
        _ if stopped && roll < 70 => Input::Start,
        _ if next == 1 => deploy(dice, &mut world.migrations),
        // A script that seals when its own clock says so does not ask what happens meanwhile.
        _ if reverts && roll < 40 => Input::Seal { by },
        _ if waits && roll < 30 => Input::Promote { by },
        0..34 => deploy(dice, &mut world.migrations),
        34..46 => Input::Abort {
            by,
            reason: "it looks wrong".into(),
        },
        46..56 => Input::Promote { by },
        56..66 => Input::Seal { by },
        66..76 => Input::Rollback { to: None, by },
        76..80 => Input::Rollback {
            to: Some(ReleaseId(dice.between(1, next))),
            by,
        },
        80..88 if !services.is_empty() => {
            let service = dice.pick(&services).clone();
            let replicas = dice.permille(700).then(|| dice.between(1, 5) as u32);
            Input::Scale { service, replicas }
        }
        80..94 => Input::Restart { by },
        94..97 => Input::Stop,
        _ => Input::Start,
    };
    let back = matches!(input, Input::Abort { .. } | Input::Rollback { .. });
    world.feed(input).ok();
    let dice = &mut world.dice;
    if back && dice.permille(500) {
        return dice.between(10, 2_000);
    }
    dice.between(500, 40_000)
}

fn deploy(dice: &mut Dice, migrations: &mut Vec<MigrationShape>) -> Input {
    Input::Deploy {
        topology: topology(dice, migrations),
        plan: plan(dice),
        supersede: dice.permille(250),
        by: "somebody".into(),
    }
}
