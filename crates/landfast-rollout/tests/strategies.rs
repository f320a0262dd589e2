//! Each strategy's way, step by step.

#![expect(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test that panics fails, and it looks at what it is about only"
)]

mod bench;

use std::time::Duration;

use landfast_rollout::{Amount, Gate, RolloutPlan, Strategy, TrafficMode};
use landfast_types::ReleaseId;

use crate::bench::{
    Bench, Quality, api, api_and_work, canary, name, plan, rolling, shape, single, topology, with,
};

fn to_the_end(bench: &mut Bench) {
    bench.until("none");
    bench.run(5);
    bench.replay_agrees();
}

#[test]
fn rolling_replaces_one_by_one() {
    let mut bench = Bench::serving(api());
    bench.deploy(api(), plan(rolling())).unwrap();
    to_the_end(&mut bench);
    assert_eq!(
        bench.phases(),
        ["warming 0", "moving 0", "moving 1", "standby", "sealing"]
    );
    assert_eq!(
        bench.shares("api"),
        [(2, 1), (1, 2), (0, 1)],
        "each new one takes the place of an old one in the same table"
    );
    assert_eq!(bench.most[&name("api")], 4, "replicas and the surge");
    assert_eq!(bench.ended(), "sealed");
    assert_eq!(bench.environment.serving, Some(ReleaseId(2)));
}

#[test]
fn rolling_keeps_to_its_room() {
    let percent = |percent| Amount::Percent(landfast_types::Percent::new(percent).unwrap());
    let table = [
        // replicas, surge, unavailable, most kept, least in rotation
        (3, Amount::Count(1), Amount::Count(0), 4, 3),
        (3, Amount::Count(0), Amount::Count(1), 3, 2),
        (4, Amount::Count(2), Amount::Count(1), 6, 3),
        (1, Amount::Count(1), Amount::Count(0), 2, 1),
        (1, Amount::Count(0), Amount::Count(0), 2, 1),
        (8, percent(25), percent(25), 10, 6),
    ];
    for (replicas, max_surge, max_unavailable, most, least) in table {
        let topology = || topology(&[("api", shape(replicas, true, &[]))]);
        let mut bench = Bench::serving(topology());
        let strategy = Strategy::Rolling {
            max_surge,
            max_unavailable,
        };
        bench.deploy(topology(), plan(strategy)).unwrap();
        let mut fewest = replicas;
        while bench.environment.rollout.is_some() {
            bench.run(1);
            fewest = fewest.min(bench.in_rotation("api"));
        }
        let found = (bench.most[&name("api")], fewest);
        assert_eq!(
            found,
            (most, least),
            "{replicas} {max_surge:?} {max_unavailable:?}"
        );
        assert_eq!(bench.ended(), "sealed");
    }
}

#[test]
fn blue_green_is_one_switch_and_keeps_the_old_group_until_the_seal() {
    let mut bench = Bench::serving(api_and_work());
    bench
        .deploy(api_and_work(), with(Strategy::BlueGreen, &[Gate::Smoke]))
        .unwrap();
    bench.until("standby");
    assert_eq!(bench.shares("api"), [(1, 0), (0, 1)]);
    assert_eq!(bench.ready("api").old, 3, "blue is kept whole");
    assert_eq!(
        bench.of("work", 1).len(),
        0,
        "services without a route have moved"
    );
    assert_eq!(
        bench.order,
        ["start api r2", "shift", "start work r2", "drain work r1"],
        "no worker of the new release before the switch"
    );
    bench.run(59);
    assert_eq!(bench.ready("api").old, 3);
    to_the_end(&mut bench);
    assert_eq!(
        bench.phases(),
        [
            "warming 0",
            "warming 1",
            "gate smoke",
            "shifting 0",
            "promoting 0",
            "promoting 1",
            "promoting 2",
            "standby",
            "sealing"
        ]
    );
    assert_eq!(
        (bench.of("api", 1).len(), bench.ended()),
        (0, "sealed".into())
    );
}

#[test]
fn canary_goes_by_its_steps() {
    let mut bench = Bench::serving(api());
    bench.deploy(api(), plan(canary())).unwrap();
    bench.until("holding 0");
    assert_eq!((bench.ready("api").old, bench.ready("api").new), (3, 2));
    to_the_end(&mut bench);
    assert_eq!(bench.shares("api"), [(1, 0), (95, 5), (75, 25), (0, 1)]);
    let phases = bench.phases();
    let held: Vec<_> = phases.iter().filter(|p| p.starts_with("holding")).collect();
    assert_eq!(held, ["holding 0", "holding 1", "holding 2"]);
    assert_eq!(bench.ended(), "sealed");
}

#[test]
fn recreate_pauses_stops_and_starts() {
    let mut bench = Bench::serving(single());
    bench.deploy(single(), plan(rolling())).unwrap();
    assert_eq!(bench.phase(), "pausing", "an exclusive service forces it");
    bench.until("warming 0");
    assert_eq!(bench.of("api", 1).len(), 0);
    let traffic = &bench.environment.traffic.services[&name("api")];
    assert_eq!(traffic.mode, TrafficMode::Pause);
    to_the_end(&mut bench);
    assert_eq!(bench.most[&name("api")], 1, "never two at once");
    assert_eq!(
        bench.phases(),
        [
            "pausing",
            "clearing",
            "warming 0",
            "shifting 0",
            "standby",
            "sealing"
        ]
    );
    assert_eq!(bench.ended(), "sealed");
}

#[test]
fn recreate_waits_for_people_and_time_while_the_old_release_serves() {
    let gates = [Gate::Preflight, Gate::Smoke, Gate::Hold, Gate::Approval];
    let mut bench = Bench::serving(single());
    bench.deploy(single(), with(rolling(), &gates)).unwrap();
    for gate in ["gate hold", "gate approval"] {
        bench.until(gate);
        bench.run(20);
        assert_eq!(
            (bench.phase().as_str(), bench.in_rotation("api")),
            (gate, 1)
        );
        let mode = bench.environment.traffic.services[&name("api")].mode;
        assert_eq!(mode, TrafficMode::Serve, "{gate}");
    }
    bench.promote().unwrap();
    to_the_end(&mut bench);
    assert_eq!(
        bench.phases(),
        [
            "gate hold",
            "gate approval",
            "pausing",
            "clearing",
            "warming 0",
            "gate smoke",
            "shifting 0",
            "standby",
            "sealing"
        ]
    );
    assert_eq!(bench.most[&name("api")], 1, "never two at once");
    assert_eq!(bench.ended(), "sealed");
}

#[test]
fn recreate_that_is_not_approved_leaves_the_old_release_as_it_was() {
    let mut bench = Bench::serving(single());
    let before = bench.of("api", 1);
    let asks = with(rolling(), &[Gate::Approval]);
    bench.deploy(single(), asks).unwrap();
    bench.until("gate approval");
    bench.abort().unwrap();
    assert_eq!(bench.in_rotation("api"), 1);
    to_the_end(&mut bench);
    assert_eq!(bench.phases().last().unwrap(), "back: retiring");
    assert_eq!(bench.of("api", 1), before, "nobody was ended");
}

#[test]
fn recreate_starts_the_old_release_where_the_new_one_fails() {
    let mut bench = Bench::serving(single());
    bench.quality.insert(ReleaseId(2), Quality::Exits);
    bench.deploy(single(), plan(rolling())).unwrap();
    to_the_end(&mut bench);
    assert_eq!(
        bench.phases(),
        [
            "pausing",
            "clearing",
            "warming 0",
            "back: pausing",
            "back: clearing",
            "back: restoring",
            "back: switching",
            "back: retiring"
        ]
    );
    assert_eq!(bench.most[&name("api")], 1, "never two at once");
    assert_eq!((bench.of("api", 1).len(), bench.in_rotation("api")), (1, 1));
    let mode = bench.environment.traffic.services[&name("api")].mode;
    assert_eq!(mode, TrafficMode::Serve);
}

#[test]
fn services_start_after_those_they_name() {
    let chain = || {
        topology(&[
            ("api", shape(1, true, &[])),
            ("web", shape(1, true, &["api"])),
            ("zoo", shape(1, true, &["web"])),
        ])
    };
    for strategy in [rolling(), Strategy::BlueGreen, canary(), Strategy::Recreate] {
        let mut bench = Bench::serving(chain());
        bench.deploy(chain(), plan(strategy.clone())).unwrap();
        to_the_end(&mut bench);
        assert_eq!(bench.ended(), "sealed", "{:?}", bench.phases());
        let starts = |line: &&String| line.starts_with("start");
        let starts: Vec<_> = bench.order.iter().filter(starts).collect();
        assert_eq!(
            starts,
            ["start api r2", "start web r2", "start zoo r2"],
            "{strategy:?}"
        );
    }
}

#[test]
fn a_service_that_the_new_release_drops_stays_until_the_seal() {
    let both = topology(&[
        ("api", shape(2, true, &[])),
        ("web", shape(2, true, &[])),
        ("work", shape(1, false, &[])),
    ]);
    let mut bench = Bench::serving(both);
    bench.deploy(api(), plan(Strategy::BlueGreen)).unwrap();
    bench.until("standby");
    assert_eq!(
        (bench.of("web", 1).len(), bench.of("work", 1).len()),
        (2, 0)
    );
    bench.seal().unwrap();
    to_the_end(&mut bench);
    assert_eq!(bench.of("web", 1).len(), 0);
    assert!(
        !bench
            .environment
            .traffic
            .services
            .contains_key(&name("web"))
    );
}

#[test]
fn a_first_release_has_nothing_to_be_compared_with() {
    let mut bench = Bench::new();
    bench
        .deploy(api(), with(canary(), &[Gate::Analysis]))
        .unwrap();
    // Nor is there anything that could stand by.
    bench.until("none");
    assert_eq!(bench.in_rotation("api"), 3);
    assert_eq!(bench.ended(), "sealed");
    assert_eq!(bench.environment.history[0].strategy, "blue-green");
}

#[test]
fn a_first_release_that_fails_leaves_nothing() {
    let mut bench = Bench::new();
    bench.quality.insert(ReleaseId(1), Quality::Exits);
    bench.deploy(api(), plan(rolling())).unwrap();
    to_the_end(&mut bench);
    assert_eq!(bench.environment.serving, None);
    assert!(bench.environment.instances.is_empty());
    bench.quality.clear();
    bench.deploy(api(), plan(rolling())).unwrap();
    to_the_end(&mut bench);
    assert_eq!(bench.environment.serving, Some(ReleaseId(2)));
}

#[test]
fn the_seal_waits_for_a_whole_new_release() {
    let mut bench = Bench::serving(api());
    bench.deploy(api(), plan(Strategy::BlueGreen)).unwrap();
    bench.until("standby");
    bench.run(58);
    let victim = bench.of("api", 2)[0].clone();
    bench.probe(&victim, false);
    bench.run(10);
    assert_eq!(bench.phase(), "standby", "one of three does not pass");
    assert!(bench.seal().is_err());
    bench.probe(&victim, true);
    to_the_end(&mut bench);
    assert_eq!(bench.ended(), "sealed");
}

#[test]
fn the_old_release_takes_over_from_nobody_and_keeps_until_the_new_one_is_whole() {
    let mut bench = Bench::serving(api());
    bench.deploy(api(), plan(Strategy::BlueGreen)).unwrap();
    bench.until("standby");
    let new = bench.of("api", 2);
    for instance in &new {
        bench.probe(instance, false);
    }
    assert_eq!(bench.in_rotation("api"), 3, "blue serves");
    bench.probe(&new[0], true);
    bench.run(15);
    assert!(
        !bench.is_offered(&new[0]),
        "one alone does not get everything"
    );
    bench.probe(&new[1], true);
    bench.probe(&new[2], true);
    bench.run(15);
    assert!(bench.is_offered(&new[0]));
    assert_eq!(bench.in_rotation("api"), 3);
}

#[test]
fn restart_replaces_every_instance_of_the_same_release() {
    let mut bench = Bench::serving(api_and_work());
    let before = bench.of("api", 1);
    let by = || "ann".to_owned();
    bench
        .tell(landfast_rollout::Input::Restart { by: by() })
        .unwrap();
    bench.run(1);
    // What ends by itself meanwhile is replaced, whichever side it was on.
    let worker = bench.of("work", 1)[0].clone();
    bench.end(&worker);
    let mut fewest = 3;
    while bench.environment.rollout.is_some() {
        bench.run(1);
        fewest = fewest.min(bench.in_rotation("api"));
    }
    let after = bench.of("api", 1);
    assert!(after.iter().all(|id| !before.contains(id)));
    assert_eq!((after.len(), fewest, bench.of("work", 1).len()), (3, 3, 2));
    bench.replay_agrees();
}

#[test]
fn stop_serves_the_maintenance_page_until_something_is_ready_again() {
    let mut bench = Bench::serving(api_and_work());
    bench.tell(landfast_rollout::Input::Stop).unwrap();
    let mode = |bench: &Bench| bench.environment.traffic.services[&name("api")].mode;
    assert_eq!(mode(&bench), TrafficMode::Maintenance);
    bench.run(10);
    assert!(bench.environment.instances.is_empty());
    assert!(bench.deploy(api(), RolloutPlan::default()).is_err());
    bench.tell(landfast_rollout::Input::Start).unwrap();
    bench.run(5);
    assert_eq!(
        mode(&bench),
        TrafficMode::Maintenance,
        "nobody is ready yet"
    );
    bench.run(20);
    assert_eq!(
        (mode(&bench), bench.in_rotation("api")),
        (TrafficMode::Serve, 3)
    );
    bench.replay_agrees();
}

#[test]
fn a_scale_by_hand_holds_until_the_manifest_says_another_number() {
    let sized = |replicas| topology(&[("api", shape(replicas, true, &[]))]);
    let quick = || RolloutPlan {
        standby: Duration::ZERO,
        ..plan(rolling())
    };
    let mut bench = Bench::serving(sized(3));
    bench.scale("api", Some(5));
    bench.run(30);
    assert_eq!(bench.in_rotation("api"), 5);
    bench.deploy(sized(3), quick()).unwrap();
    to_the_end(&mut bench);
    assert_eq!(bench.in_rotation("api"), 5, "the manifest still says 3");
    bench
        .deploy(sized(4), with(rolling(), &[Gate::Approval]))
        .unwrap();
    bench.until("gate approval");
    assert_eq!(
        bench.ready("api").old,
        5,
        "the old release keeps its size until the seal"
    );
    bench.promote().unwrap();
    to_the_end(&mut bench);
    assert_eq!(bench.in_rotation("api"), 4);
    bench.deploy(sized(3), quick()).unwrap();
    to_the_end(&mut bench);
    assert_eq!(bench.in_rotation("api"), 3, "the override was spent");
    bench.scale("api", Some(1));
    bench.scale("api", None);
    bench.run(30);
    assert_eq!(bench.in_rotation("api"), 3);
}

#[test]
fn a_worker_is_ended_without_waiting_for_the_proxy() {
    let mut bench = Bench::serving(api_and_work());
    bench.confirms = false;
    bench.scale("work", Some(1));
    bench.run(1);
    assert_eq!(bench.environment.instances.len(), 4);
}
