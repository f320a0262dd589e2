//! What goes wrong, and what people do about it.

#![expect(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test that panics fails, and it looks at what it is about only"
)]

mod bench;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use landfast_rollout::{
    Action, Change, Environment, Event, Gate, Input, InstanceState, Kind, Outcome, ParkReason,
    Phase, Rejected, RolloutPlan, Strategy, TrafficMode,
    analysis::{InstanceObservation, Observation, Sample},
};
use landfast_types::{InstanceId, ReleaseId, RolloutId};

use crate::bench::{
    Bench, Quality, api, api_and_work, canary, name, plan, rolling, secs, shape, single, topology,
    with,
};

fn strategies() -> [Strategy; 4] {
    [rolling(), Strategy::BlueGreen, canary(), Strategy::Recreate]
}

#[test]
fn an_exit_before_ready_fails_the_rollout_at_once() {
    for strategy in strategies() {
        let mut bench = Bench::serving(api());
        bench.quality.insert(ReleaseId(2), Quality::Exits);
        bench.deploy(api(), plan(strategy.clone())).unwrap();
        for _ in 0..100 {
            if bench.phase().starts_with("back") {
                break;
            }
            bench.run(1);
        }
        let ends = |change: &Change| matches!(change, Change::InstanceEnded { instance, .. } if instance.as_str().contains(".r2."));
        let fails = |change: &Change| matches!(change, Change::Failed { .. });
        let at = |wanted: &dyn Fn(&Change) -> bool| {
            let event = bench.events.iter().find(|event| wanted(&event.change));
            event.unwrap().at
        };
        assert_eq!(at(&ends), at(&fails), "{strategy:?}");
        bench.until("none");
        assert!(
            bench.ended().contains("before it was ready"),
            "{}",
            bench.ended()
        );
        assert_eq!((bench.of("api", 1).len(), bench.in_rotation("api")), (3, 3));
        bench.replay_agrees();
    }
}

#[test]
fn a_crash_loop_is_taken_back() {
    let mut bench = Bench::serving(api());
    bench.deploy(api(), plan(Strategy::BlueGreen)).unwrap();
    bench.until("standby");
    for _ in 0..3 {
        assert_eq!(bench.phase(), "standby");
        let victim = bench.of("api", 2)[0].clone();
        bench.end(&victim);
        bench.run(1);
    }
    bench.until("none");
    assert!(bench.ended().contains("crash-looping"), "{}", bench.ended());
}

#[test]
fn ends_that_have_nothing_to_do_with_each_other_are_no_crash_loop() {
    let both = || topology(&[("api", shape(3, true, &[])), ("web", shape(3, true, &[]))]);
    let long = RolloutPlan {
        standby: secs(3_600),
        ..plan(Strategy::BlueGreen)
    };
    let mut bench = Bench::serving(both());
    bench.deploy(both(), long).unwrap();
    bench.until("standby");
    for _ in 0..3 {
        // Four at once, but no more than two of one service; and the next ones much later.
        for service in ["api", "web"] {
            for victim in bench.of(service, 2).iter().take(2) {
                bench.end(victim);
            }
        }
        bench.run(310);
        assert_eq!(bench.phase(), "standby");
    }
    bench.replay_agrees();
}

#[test]
fn what_is_found_dead_after_a_takeover_is_not_held_against_the_release() {
    for phase in ["warming 0", "standby"] {
        let mut bench = Bench::serving(api());
        bench.deploy(api(), plan(Strategy::BlueGreen)).unwrap();
        bench.until(phase);
        bench.run(1);
        let all: BTreeSet<_> = bench.environment.instances.keys().cloned().collect();
        bench.now = bench.now + secs(600);
        // The shims' folders outlived the host: each says that its instance ended.
        bench
            .tell(Input::Adopted {
                running: all.clone(),
            })
            .unwrap();
        for instance in &all {
            bench.end(instance);
        }
        bench.until("none");
        assert_eq!(bench.ended(), "sealed", "{phase}");
    }
    // What comes after it counts again.
    let mut bench = Bench::serving(api());
    bench.deploy(api(), plan(Strategy::BlueGreen)).unwrap();
    bench.run(1);
    let running = bench.environment.instances.keys().cloned().collect();
    bench.tell(Input::Adopted { running }).unwrap();
    bench.quality.insert(ReleaseId(2), Quality::Exits);
    bench.until("none");
    assert!(bench.ended().contains("before it was ready"));
}

#[test]
fn a_host_lost_between_an_order_and_its_record_is_not_held_against_the_release() {
    let takes_over = || {
        let mut bench = Bench::serving(api());
        bench.deploy(api(), plan(Strategy::BlueGreen)).unwrap();
        let planned = bench.of("api", 2);
        assert!(!planned.is_empty());
        bench.now = bench.now + secs(5);
        let running = bench.of("api", 1).into_iter().collect();
        bench.tell(Input::Adopted { running }).unwrap();
        (bench, planned)
    };
    // The order is given again: the shim's folder says that the instance ran and has ended.
    let (mut bench, planned) = takes_over();
    for instance in &planned {
        let (instance, address) = (instance.clone(), None);
        bench.tell(Input::Started { instance, address }).unwrap();
    }
    bench.now = bench.now + secs(1);
    planned.iter().for_each(|instance| bench.end(instance));
    bench.until("none");
    assert_eq!(bench.ended(), "sealed");
    // Or the target does not say that it started.
    let (mut bench, planned) = takes_over();
    planned.iter().for_each(|instance| bench.end(instance));
    bench.until("none");
    assert_eq!(bench.ended(), "sealed");
    bench.replay_agrees();
    // A release that cannot be started fails by the next try.
    let (mut bench, planned) = takes_over();
    planned.iter().for_each(|instance| bench.end(instance));
    bench.quality.insert(ReleaseId(2), Quality::Exits);
    bench.until("none");
    assert!(bench.ended().contains("before it was ready"));
}

#[test]
fn one_instance_that_never_passes_fails_after_its_deadline() {
    let mut bench = Bench::serving(api());
    bench.quality.insert(ReleaseId(2), Quality::Mute);
    let slow = RolloutPlan {
        healthy_deadline: secs(60),
        progress_deadline: secs(600),
        ..plan(Strategy::BlueGreen)
    };
    bench.deploy(api(), slow).unwrap();
    bench.run(58);
    assert_eq!(bench.phase(), "warming 0");
    bench.run(4);
    bench.until("none");
    assert!(
        bench.ended().contains("was not ready within 1m"),
        "{}",
        bench.ended()
    );
}

#[test]
fn an_instance_that_was_not_ready_in_time_fails_with_what_its_probe_said() {
    let mut bench = Bench::serving(api());
    bench.quality.insert(ReleaseId(2), Quality::Mute);
    let slow = RolloutPlan {
        healthy_deadline: secs(60),
        progress_deadline: secs(600),
        ..plan(Strategy::BlueGreen)
    };
    bench.deploy(api(), slow).unwrap();
    bench.run(2);
    for reason in ["connection refused", "GET /ready answered 503"] {
        for instance in bench.of("api", 2) {
            let reason = reason.to_owned();
            bench.tell(Input::NotReady { instance, reason }).unwrap();
        }
    }
    bench.until("none");
    let said = "was not ready within 1m: GET /ready answered 503";
    assert!(bench.ended().contains(said), "{}", bench.ended());
}

#[test]
fn passing_now_and_then_buys_no_time() {
    let mut bench = Bench::serving(api());
    bench.quality.insert(ReleaseId(2), Quality::Mute);
    let slow = RolloutPlan {
        healthy_deadline: secs(60),
        progress_deadline: secs(600),
        ..plan(Strategy::BlueGreen)
    };
    bench.deploy(api(), slow).unwrap();
    for _ in 0..20 {
        bench.run(3);
        for instance in bench.of("api", 2) {
            bench.probe(&instance, true);
        }
        bench.run(3);
        for instance in bench.of("api", 2) {
            bench.probe(&instance, false);
        }
    }
    bench.until("none");
    assert!(
        bench.ended().contains("was not ready within 1m"),
        "{}",
        bench.ended()
    );
}

#[test]
fn no_further_ready_instance_within_the_progress_deadline_is_a_failure() {
    let mut bench = Bench::serving(api());
    bench.quality.insert(ReleaseId(2), Quality::Mute);
    let plan = RolloutPlan {
        progress_deadline: secs(40),
        ..plan(Strategy::BlueGreen)
    };
    bench.deploy(api(), plan).unwrap();
    bench.run(30);
    // The first becomes ready and flaps from then on; that is one step of progress, not many.
    let first = bench.of("api", 2)[0].clone();
    for _ in 0..6 {
        bench.probe(&first, true);
        bench.run(11);
        bench.probe(&first, false);
        bench.run(1);
    }
    bench.until("none");
    assert!(
        bench.ended().contains("no progress for 40s"),
        "{}",
        bench.ended()
    );
}

#[test]
fn a_refused_gate_takes_the_rollout_back_before_anybody_was_sent_to_it() {
    for gate in [Gate::Preflight, Gate::Smoke] {
        let mut bench = Bench::serving(api());
        bench.gates.insert(gate, false);
        bench.deploy(api(), with(rolling(), &[gate])).unwrap();
        bench.until("none");
        assert!(bench.ended().contains(&format!("the {gate} gate refused")));
        let unmoved = bench.environment.history[1].unmoved;
        assert_eq!(unmoved, Some(landfast_rollout::Unmoved::Refused));
        assert_eq!(
            bench.shares("api").iter().map(|s| s.1).max(),
            Some(0).filter(|_| gate != Gate::Preflight)
        );
    }
}

#[test]
fn the_smoke_gate_has_a_preview_to_test() {
    for strategy in [rolling(), Strategy::BlueGreen, canary()] {
        let mut bench = Bench::serving(api());
        bench
            .deploy(api(), with(strategy, &[Gate::Smoke, Gate::Approval]))
            .unwrap();
        bench.until("gate approval");
        let traffic = &bench.environment.traffic.services[&name("api")];
        assert_eq!(traffic.preview, Some(ReleaseId(2)));
        assert_eq!(traffic.groups[&ReleaseId(2)].weight, 0);
    }
    let mut bench = Bench::serving(api());
    let no_room = Strategy::Rolling {
        max_surge: landfast_rollout::Amount::Count(0),
        max_unavailable: landfast_rollout::Amount::Count(1),
    };
    let refused = bench.deploy(api(), with(no_room, &[Gate::Smoke]));
    assert_eq!(refused, Err(Rejected::SmokeNeedsSurge));
}

#[test]
fn every_route_has_a_preview_while_the_smoke_job_runs() {
    for strategy in [rolling(), Strategy::BlueGreen, canary(), Strategy::Recreate] {
        // The first to move has no route, and one comes after another.
        let topology = || {
            topology(&[
                ("agent", shape(1, false, &[])),
                ("api", shape(3, true, &[])),
                ("web", shape(2, true, &["api"])),
            ])
        };
        let mut bench = Bench::serving(topology());
        bench.judges = false;
        bench
            .deploy(topology(), with(strategy.clone(), &[Gate::Smoke]))
            .unwrap();
        bench.until("gate smoke");
        for service in ["api", "web"] {
            let traffic = &bench.environment.traffic.services[&name(service)];
            assert_eq!(
                traffic.preview,
                Some(ReleaseId(2)),
                "{strategy:?} {service}"
            );
            let members = &traffic.groups[&ReleaseId(2)].members;
            assert!(!members.is_empty(), "{strategy:?} {service}");
        }
        bench.judges = true;
        bench.until("none");
        assert_eq!(bench.ended(), "sealed");
        bench.replay_agrees();
    }
}

#[test]
fn hold_opens_by_time_and_approval_by_a_person() {
    let mut bench = Bench::serving(api());
    bench
        .deploy(
            api(),
            with(Strategy::BlueGreen, &[Gate::Hold, Gate::Approval]),
        )
        .unwrap();
    bench.until("gate hold");
    bench.run(28);
    assert_eq!(bench.phase(), "gate hold");
    bench.until("gate approval");
    bench.run(3_000);
    assert_eq!(
        bench.phase(),
        "gate approval",
        "it waits for as long as it takes"
    );
    bench.promote().unwrap();
    bench.until("standby");
}

#[test]
fn an_open_gate_does_not_wait_for_ever_for_readiness() {
    for gate in [Gate::Hold, Gate::Approval] {
        let mut bench = Bench::serving(api());
        bench
            .deploy(api(), with(Strategy::BlueGreen, &[gate]))
            .unwrap();
        bench.until(&format!("gate {gate}"));
        let sick = bench.of("api", 2)[0].clone();
        bench.probe(&sick, false);
        if gate == Gate::Approval {
            bench.promote().unwrap();
        }
        // It passes now and then, never for long, so that its own deadline does not strike either.
        for _ in 0..80 {
            bench.run(9);
            bench.probe(&sick, true);
            bench.run(2);
            bench.probe(&sick, false);
        }
        assert_eq!(bench.phase(), "none");
        assert!(bench.ended().contains("no progress"), "{}", bench.ended());
    }
}

#[test]
fn an_inconclusive_analysis_extends_once_and_parks_and_a_person_decides() {
    for promoted in [true, false] {
        let mut bench = Bench::serving(api());
        bench
            .deploy(api(), with(canary(), &[Gate::Analysis]))
            .unwrap();
        bench.until("parked");
        let extended = |event: &&Event| matches!(event.change, Change::HoldExtended { .. });
        assert_eq!(bench.events.iter().filter(extended).count(), 1);
        let shares = bench.shares("api");
        assert_eq!(shares.last(), Some(&(95, 5)), "it parks at that weight");
        bench.run(600);
        assert_eq!(bench.phase(), "parked", "it is never promoted by itself");
        if promoted {
            bench.promote().unwrap();
            bench.until("holding 1");
        } else {
            bench.abort().unwrap();
            bench.until("none");
            assert_eq!(bench.in_rotation("api"), 3);
        }
        bench.replay_agrees();
    }
}

/// Feeds so many seconds in which the old side answers and the new one fails so many of its requests.
fn observe(bench: &mut Bench, seconds: u64, new: (u64, u64)) {
    let counted = |release, number, (requests, errors)| InstanceObservation {
        instance: InstanceId::new("api", ReleaseId(release), number),
        live: Sample {
            requests,
            errors,
            ..Sample::default()
        },
        probes: Sample::default(),
    };
    for _ in 0..seconds {
        bench.run(1);
        let observation = Observation {
            millis: 1_000,
            old: vec![counted(1, 1, (190, 0))],
            new: vec![counted(2, 4, new)],
        };
        let Some(rollout) = bench.environment.rollout.as_ref().map(|r| r.id) else {
            return;
        };
        let observations = [(name("api"), observation)].into();
        bench
            .tell(Input::Observed {
                rollout,
                observations,
            })
            .unwrap();
    }
}

#[test]
fn a_canary_that_turns_bad_between_two_holds_gets_no_further_traffic() {
    for (phase, shares) in [
        ("stepping 1", vec![(1, 0), (95, 5), (1, 0)]),
        ("shifting 1", vec![(1, 0), (95, 5), (75, 25), (1, 0)]),
    ] {
        let mut bench = Bench::serving(api());
        let sized = topology(&[("api", shape(10, true, &[]))]);
        bench
            .deploy(sized, with(canary(), &[Gate::Analysis]))
            .unwrap();
        bench.until("holding 0");
        observe(&mut bench, 25, (10, 0));
        bench.confirms = phase != "shifting 1";
        while bench.phase() != phase {
            observe(&mut bench, 1, (10, 0));
        }
        observe(&mut bench, 3, (10, 9));
        bench.confirms = true;
        bench.until("none");
        assert!(bench.ended().contains("5xx of release 2"));
        assert_eq!(bench.shares("api"), shares);
        bench.replay_agrees();
    }
}

#[test]
fn an_abort_in_any_phase_of_any_strategy_ends_with_the_old_release_whole() {
    let gates = [Gate::Preflight, Gate::Smoke, Gate::Hold, Gate::Approval];
    for strategy in strategies() {
        // First learn the phases, then abort in each.
        let mut scout = Bench::serving(api_and_work());
        scout
            .deploy(api_and_work(), with(strategy.clone(), &gates))
            .unwrap();
        scout.until("gate approval");
        scout.promote().unwrap();
        scout.until("none");
        let mut phases = scout.phases();
        phases.insert(0, "preflight".into());
        let last = phases.iter().position(|phase| phase == "sealing").unwrap();
        for (place, phase) in phases.iter().enumerate().take(last) {
            let mut bench = Bench::serving(api_and_work());
            bench
                .deploy(api_and_work(), with(strategy.clone(), &gates))
                .unwrap();
            // Some phases pass within one decision; those cannot be aborted in.
            let mut guard = 0;
            while bench.phase() != *phase && guard < 2_000 {
                let beyond = bench.phases().len() > place;
                if beyond && bench.phases().contains(phase) {
                    break;
                }
                if bench.phase() == "gate approval" {
                    bench.promote().unwrap();
                } else {
                    bench.run(1);
                }
                guard += 1;
            }
            if bench.phase() == "sealing" || bench.phase() == "none" {
                continue;
            }
            bench
                .abort()
                .unwrap_or_else(|error| panic!("{strategy:?} {phase}: {error}"));
            bench.until("none");
            bench.run(20);
            let label = format!("{strategy:?}, aborted in {phase}");
            assert!(bench.ended().contains("aborted by ann"), "{label}");
            assert_eq!(bench.environment.serving, Some(ReleaseId(1)), "{label}");
            assert_eq!(bench.in_rotation("api"), 3, "{label}");
            assert_eq!(
                (bench.of("work", 1).len(), bench.of("work", 2).len()),
                (2, 0),
                "{label}"
            );
            assert_eq!(bench.of("api", 2).len(), 0, "{label}");
            bench.replay_agrees();
        }
    }
}

#[test]
fn in_standby_traffic_returns_at_once_and_workers_follow() {
    for strategy in [Strategy::BlueGreen, canary()] {
        let mut bench = Bench::serving(api_and_work());
        bench.deploy(api_and_work(), plan(strategy)).unwrap();
        bench.until("standby");
        bench.rollback(None).unwrap();
        let old = bench.of("api", 1)[0].clone();
        assert!(bench.is_offered(&old), "in the same decision");
        assert_eq!(
            bench.of("work", 2).len(),
            2,
            "workers stay until the old ones are back"
        );
        bench.until("none");
        assert_eq!(
            (bench.of("work", 1).len(), bench.of("work", 2).len()),
            (2, 0)
        );
    }
}

#[test]
fn rollback_goes_further_back_and_never_forth() {
    let quick = || RolloutPlan {
        standby: Duration::ZERO,
        ..with(rolling(), &[Gate::Approval])
    };
    let mut bench = Bench::serving(api());
    for _ in 0..3 {
        bench.deploy(api(), quick()).unwrap();
        bench.until("gate approval");
        bench.promote().unwrap();
        bench.until("none");
    }
    assert_eq!(bench.environment.serving, Some(ReleaseId(4)));
    for release in [3, 2, 1] {
        bench.rollback(None).unwrap();
        // Asking twice is not asking to go forth.
        assert!(matches!(
            bench.rollback(None),
            Err(Rejected::RolloutMoving { .. })
        ));
        bench.until("none");
        assert_eq!(bench.environment.serving, Some(ReleaseId(release)));
        assert_eq!(
            bench.environment.history.last().unwrap().kind,
            Kind::Rollback
        );
    }
    let nothing = Rejected::NoEarlierRelease {
        current: ReleaseId(1),
    };
    assert_eq!(bench.rollback(None), Err(nothing));
    assert_eq!(
        bench.rollback(Some(1)),
        Err(Rejected::AlreadyServing(ReleaseId(1)))
    );
    assert_eq!(
        bench.rollback(Some(9)),
        Err(Rejected::NoSuchRelease(ReleaseId(9)))
    );
    bench.rollback(Some(4)).unwrap();
    bench.until("none");
    assert_eq!(bench.environment.serving, Some(ReleaseId(4)));
    bench.replay_agrees();
}

#[test]
fn rollback_does_not_return_to_a_release_that_a_rollback_left() {
    let quick = || RolloutPlan {
        standby: Duration::ZERO,
        ..plan(rolling())
    };
    let mut bench = Bench::serving(api());
    let deploy = |bench: &mut Bench| {
        bench.deploy(api(), quick()).unwrap();
        bench.until("none");
    };
    let rollback = |bench: &mut Bench, to: Option<u64>| {
        bench.rollback(to).unwrap();
        bench.until("none");
        bench.environment.serving.unwrap().0
    };
    // 2, 3, and back to 2 because 3 is bad; 4 is no better.
    deploy(&mut bench);
    deploy(&mut bench);
    assert_eq!(rollback(&mut bench, None), 2);
    deploy(&mut bench);
    assert_eq!(rollback(&mut bench, None), 2, "not 3");
    // Past 2 as well, by number: none of 2, 3 and 4 is wanted then.
    deploy(&mut bench);
    assert_eq!(rollback(&mut bench, Some(1)), 1);
    deploy(&mut bench);
    assert_eq!(bench.environment.rollback_target(), Some(ReleaseId(1)));
    // By number everything that is kept can be had, and then it is wanted again.
    assert_eq!(rollback(&mut bench, Some(3)), 3);
    deploy(&mut bench);
    assert_eq!(rollback(&mut bench, None), 3);
    bench.replay_agrees();
}

#[test]
fn rollback_by_number_goes_to_any_release_that_is_kept() {
    let quick = || RolloutPlan {
        standby: Duration::ZERO,
        ..plan(rolling())
    };
    let mut bench = Bench::serving(api());
    // Taken back by a bad day of the host, never sealed.
    bench.quality.insert(ReleaseId(2), Quality::Exits);
    bench.deploy(api(), quick()).unwrap();
    bench.until("none");
    bench.quality.clear();
    assert_eq!(bench.environment.rollback_target(), None);
    bench.rollback(Some(2)).unwrap();
    bench.until("none");
    assert_eq!(bench.environment.serving, Some(ReleaseId(2)));
    assert_eq!(bench.environment.rollback_target(), Some(ReleaseId(1)));
    bench.replay_agrees();
}

#[test]
fn without_automatic_rollback_a_failure_parks_and_nothing_moves_on() {
    let mut bench = Bench::serving(api());
    let parks = RolloutPlan {
        rollback: false,
        ..plan(rolling())
    };
    bench.deploy(api(), parks).unwrap();
    bench.until("moving 0");
    bench.run(3);
    let fresh = bench.of("api", 2);
    let young = fresh
        .iter()
        .find(|id| bench.environment.instances[*id].first_served_at.is_none());
    let young = young.unwrap().clone();
    bench.end(&young);
    assert_eq!(bench.phase(), "parked");
    let sizes = (bench.of("api", 1).len(), bench.of("api", 2).len());
    bench.run(300);
    assert_eq!(
        (bench.of("api", 1).len(), bench.of("api", 2).len()),
        sizes,
        "frozen"
    );
    // What ends is replaced by its like.
    let old = bench.of("api", 1)[0].clone();
    bench.end(&old);
    bench.run(60);
    assert_eq!((bench.of("api", 1).len(), bench.of("api", 2).len()), sizes);
    bench.promote().unwrap();
    bench.until("none");
    assert_eq!(bench.ended(), "sealed");
    bench.replay_agrees();
}

#[test]
fn a_moving_rollout_refuses_the_newer_one_and_says_whose_it_is() {
    let mut bench = Bench::serving(api());
    bench.deploy(api(), plan(rolling())).unwrap();
    let refused = bench.deploy(api(), plan(rolling())).unwrap_err();
    let text = refused.to_string();
    assert!(
        text.starts_with("rollout 2 to release 2 is moving since"),
        "{text}"
    );
    assert!(text.ends_with("started by ann"), "{text}");
    assert!(bench.tell(Input::Stop).is_err());
    assert!(bench.tell(Input::Restart { by: "bob".into() }).is_err());
}

#[test]
fn supersede_takes_the_moving_one_back_first() {
    let mut bench = Bench::serving(api());
    bench.deploy(api(), plan(rolling())).unwrap();
    bench.until("moving 0");
    bench.deploy_over(api(), plan(rolling()), true).unwrap();
    assert!(bench.phase().starts_with("back"));
    assert_eq!(
        bench.environment.queued.as_ref().map(|q| q.to),
        Some(ReleaseId(3))
    );
    // The one that waits is superseded without asking; the release it leaves behind never served.
    bench.deploy(api(), plan(Strategy::BlueGreen)).unwrap();
    assert_eq!(
        bench.environment.queued.as_ref().map(|q| q.to),
        Some(ReleaseId(4))
    );
    bench.until("standby");
    let rollout = bench.environment.rollout.as_ref().unwrap();
    assert_eq!(
        (rollout.from, rollout.to),
        (Some(ReleaseId(1)), ReleaseId(4))
    );
    bench.until("none");
    let outcomes: Vec<_> = bench
        .environment
        .history
        .iter()
        .map(|r| (r.id, r.to))
        .collect();
    assert_eq!(
        outcomes,
        [
            (RolloutId(1), ReleaseId(1)),
            (RolloutId(2), ReleaseId(2)),
            (RolloutId(3), ReleaseId(4))
        ]
    );
    bench.replay_agrees();
}

#[test]
fn one_that_waits_for_approval_is_superseded_by_a_newer_one() {
    let mut bench = Bench::serving(api());
    bench
        .deploy(api(), with(Strategy::BlueGreen, &[Gate::Approval]))
        .unwrap();
    bench.until("gate approval");
    bench.deploy(api(), plan(rolling())).unwrap();
    bench.until("standby");
    assert_eq!(bench.environment.rollout.as_ref().unwrap().to, ReleaseId(3));
    let first = &bench.environment.history[1].outcome;
    assert!(matches!(first, Outcome::RolledBack { reason } if reason.contains("superseded")));
    let unmoved = bench.environment.history[1].unmoved;
    assert_eq!(unmoved, Some(landfast_rollout::Unmoved::Superseded));
}

#[test]
fn a_deploy_in_standby_accepts_what_serves() {
    let mut bench = Bench::serving(api());
    bench.deploy(api(), plan(Strategy::BlueGreen)).unwrap();
    bench.until("standby");
    bench.deploy(api(), plan(rolling())).unwrap();
    bench.until("none");
    let outcomes: Vec<_> = bench
        .environment
        .history
        .iter()
        .map(|r| &r.outcome)
        .collect();
    assert_eq!(outcomes, [&Outcome::Sealed; 3]);
}

#[test]
fn a_stop_or_a_restart_in_standby_accepts_what_serves() {
    for is_stop in [true, false] {
        for strategy in [Strategy::BlueGreen, rolling()] {
            let mut bench = Bench::serving(api());
            bench.deploy(api(), plan(strategy)).unwrap();
            bench.until("standby");
            let input = match is_stop {
                true => Input::Stop,
                false => Input::Restart { by: "bob".into() },
            };
            bench.tell(input).unwrap();
            // Whoever seals what is being sealed is told nothing but yes.
            if bench.phase() == "sealing" {
                bench.seal().unwrap();
            }
            bench.until("none");
            bench.run(60);
            assert_eq!(bench.environment.serving, Some(ReleaseId(2)));
            assert_eq!(bench.environment.history[1].outcome, Outcome::Sealed);
            let wanted = if is_stop { 0 } else { 3 };
            assert_eq!(bench.in_rotation("api"), wanted);
        }
    }
}

#[test]
fn a_restart_that_waited_ends_where_its_release_was_taken_back() {
    let mut bench = Bench::serving(api());
    bench.deploy(api(), plan(Strategy::BlueGreen)).unwrap();
    bench.until("standby");
    bench.tell(Input::Restart { by: "bob".into() }).unwrap();
    assert_eq!(bench.phase(), "sealing");
    let queued = bench.environment.queued.as_ref();
    assert_eq!(queued.map(|queued| queued.to), Some(ReleaseId(2)));
    bench.abort().unwrap();
    bench.until("none");
    bench.run(60);
    assert_eq!(bench.environment.serving, Some(ReleaseId(1)));
    assert_eq!((bench.of("api", 1).len(), bench.in_rotation("api")), (3, 3));
    assert_eq!(bench.of("api", 2), []);
    // It is not lost without a word: it has a number, an end and a reason.
    let restart = bench.environment.history.last().unwrap();
    assert_eq!((restart.kind, restart.id), (Kind::Restart, RolloutId(3)));
    assert_eq!(
        bench.ended(),
        "rolled back: release 2 was taken back before its restart"
    );
    assert_eq!(bench.phases(), [""; 0]);
    bench.replay_agrees();
}

#[test]
fn a_restart_that_was_begun_across_two_releases_is_taken_back_capacity_first() {
    let mut bench = Bench::serving(api());
    bench.deploy(api(), plan(Strategy::BlueGreen)).unwrap();
    bench.until("standby");
    bench.abort().unwrap();
    bench.until("none");
    // An earlier version recorded this.
    let record = [
        Change::RolloutStarted {
            rollout: RolloutId(3),
            kind: Kind::Restart,
            from: Some(ReleaseId(1)),
            to: ReleaseId(2),
            plan: plan(rolling()),
            by: "bob".into(),
        },
        Change::PhaseEntered {
            phase: Phase::Moving { service: 0 },
        },
    ];
    for change in record {
        let at = bench.now;
        let event = Event { at, change };
        bench.environment.apply(&event);
        bench.events.push(event);
    }
    bench.tell(Input::Tick).unwrap();
    bench.until("standby");
    assert_eq!(bench.of("api", 1), []);
    bench.abort().unwrap();
    assert_eq!(
        (bench.phase().as_str(), bench.in_rotation("api")),
        ("back: restoring", 3)
    );
    bench.until("none");
    assert_eq!((bench.of("api", 1).len(), bench.in_rotation("api")), (3, 3));
    bench.replay_agrees();
}

#[test]
fn held_requests_are_let_go_to_a_whole_release_only_though_the_host_died_at_the_switch() {
    let mut bench = Bench::serving(api());
    bench.deploy(api(), plan(Strategy::Recreate)).unwrap();
    bench.until("warming 0");
    bench.abort().unwrap();
    bench.until("none");
    bench.forget_after("back: switching");
    let mode = |bench: &Bench| bench.environment.traffic.services[&name("api")].mode;
    assert_eq!(mode(&bench), TrafficMode::Pause);
    bench.tell(Input::Adopted { running: [].into() }).unwrap();
    while mode(&bench) == TrafficMode::Pause {
        assert_eq!(bench.phase(), "back: restoring");
        bench.run(1);
    }
    assert_eq!((bench.ready("api").old, bench.in_rotation("api")), (3, 3));
    bench.until("none");
    assert!(bench.ended().starts_with("rolled back: aborted"));
    bench.replay_agrees();
}

#[test]
fn shares_stay_until_the_old_release_is_whole_though_it_died_at_the_switch() {
    for lost in [1, 3] {
        let mut bench = Bench::serving(api());
        bench.deploy(api(), plan(rolling())).unwrap();
        bench.until("standby");
        bench.abort().unwrap();
        bench.until("none");
        bench.forget_after("back: switching");
        let dead: BTreeSet<InstanceId> = bench.of("api", 1).into_iter().take(lost).collect();
        let all = bench.environment.instances.keys().cloned();
        let running = all.filter(|id| !dead.contains(id)).collect();
        bench.tell(Input::Adopted { running }).unwrap();
        let weight = |bench: &Bench, release| {
            let traffic = &bench.environment.traffic.services[&name("api")];
            let group = traffic.groups.get(&ReleaseId(release));
            group.map_or(0, |group| group.weight)
        };
        while weight(&bench, 2) > 0 {
            assert_eq!(bench.phase(), "back: restoring");
            bench.run(1);
        }
        assert_eq!((bench.ready("api").old, weight(&bench, 1)), (3, 1));
        bench.until("none");
        assert_eq!((bench.of("api", 1).len(), bench.in_rotation("api")), (3, 3));
        bench.replay_agrees();
    }
}

#[test]
fn after_host_loss_everything_starts_again_and_the_rollout_goes_on() {
    for strategy in strategies() {
        let mut bench = Bench::serving(api());
        bench.deploy(api(), plan(strategy.clone())).unwrap();
        bench.run(15);
        // The host is away for longer than any deadline.
        bench.now = bench.now + secs(3_600);
        bench.tell(Input::Adopted { running: [].into() }).unwrap();
        bench.until("none");
        bench.run(60);
        assert_eq!(bench.ended(), "sealed", "{strategy:?}");
        assert_eq!(bench.in_rotation("api"), 3, "{strategy:?}");
        bench.replay_agrees();
    }
}

#[test]
fn passes_before_a_restart_of_the_server_do_not_count() {
    let mut bench = Bench::serving(api());
    bench.deploy(api(), plan(Strategy::BlueGreen)).unwrap();
    bench.run(10);
    let passing = |bench: &Bench| {
        let instances = bench.environment.instances.values();
        instances
            .filter(|i| matches!(i.state, InstanceState::Passing { .. }))
            .count()
    };
    assert_eq!(passing(&bench), 3);
    let running = bench.environment.instances.keys().cloned().collect();
    bench.now = bench.now + secs(60);
    bench.tell(Input::Adopted { running }).unwrap();
    assert_eq!((passing(&bench), bench.phase()), (0, "warming 0".into()));
    for instance in bench.of("api", 2) {
        bench.probe(&instance, true);
    }
    bench.until("standby");
}

#[test]
fn nothing_is_stopped_before_the_proxy_confirmed_and_what_is_in_flight_ended() {
    let mut bench = Bench::serving(api());
    bench.drains = false;
    bench.confirms = false;
    bench.scale("api", Some(2));
    let stops = |bench: &Bench| {
        let pending = bench.environment.pending();
        let stops = |action: &Action| matches!(action, Action::StopInstance { .. });
        pending.iter().any(stops)
    };
    bench.run(3_600);
    assert!(!stops(&bench), "not confirmed");
    bench.confirms = true;
    bench.run(1);
    bench.confirms = false;
    bench.run(60);
    assert_eq!(
        bench.environment.instances.len(),
        3,
        "its time counts from the confirmation"
    );
    bench.run(10);
    assert_eq!(
        bench.environment.instances.len(),
        2,
        "the drain time is over"
    );
}

#[test]
fn what_comes_late_or_twice_changes_nothing() {
    let mut bench = Bench::serving(api());
    let (first, ended) = (bench.of("api", 1)[0].clone(), bench.of("api", 1)[1].clone());
    bench.end(&ended);
    bench.run(60);
    let before = bench.environment.clone();
    let inputs = [
        Input::Started {
            instance: first.clone(),
            address: None,
        },
        Input::Started {
            instance: ended.clone(),
            address: None,
        },
        Input::Probed {
            instance: first.clone(),
            passing: true,
        },
        Input::Probed {
            instance: ended.clone(),
            passing: false,
        },
        Input::Drained { instance: first },
        Input::Drained {
            instance: ended.clone(),
        },
        Input::NotLive {
            instance: ended.clone(),
            reason: "late".into(),
        },
        Input::Ended {
            instance: ended.clone(),
            exit: "again".into(),
        },
        Input::StartFailed {
            instance: ended,
            reason: "late".into(),
        },
        Input::TrafficConfirmed { revision: 1 },
        Input::TrafficConfirmed { revision: 9_999 },
        Input::GateJudged {
            rollout: RolloutId(1),
            gate: Gate::Smoke,
            passed: false,
            detail: "late".into(),
        },
        Input::Observed {
            rollout: RolloutId(1),
            observations: BTreeMap::new(),
        },
        Input::Notified {
            rollout: RolloutId(1),
        },
        Input::Collected {
            releases: [ReleaseId(1)].into(),
        },
        Input::Tick,
    ];
    for input in inputs {
        assert_eq!(bench.tell(input.clone()), Ok(Vec::new()), "{input:?}");
    }
    assert_eq!(bench.environment, before);
}

#[test]
fn a_snapshot_of_the_state_is_read_back_as_it_was() {
    let mut bench = Bench::serving(api_and_work());
    bench.deploy(api_and_work(), plan(canary())).unwrap();
    for _ in 0..40 {
        bench.run(3);
        let text = serde_json::to_string(&bench.environment).unwrap();
        let read: Environment = serde_json::from_str(&text).unwrap();
        assert_eq!(read, bench.environment);
    }
}

#[test]
fn where_the_old_release_does_not_come_back_it_parks_and_both_ways_are_open() {
    for promoted in [true, false] {
        let mut bench = Bench::serving(api());
        bench.deploy(api(), plan(rolling())).unwrap();
        bench.until("standby");
        bench.quality.insert(ReleaseId(1), Quality::Mute);
        bench.abort().unwrap();
        bench.until("parked");
        let phase = &bench.environment.rollout.as_ref().unwrap().phase;
        assert!(matches!(
            phase,
            Phase::Parked {
                reason: ParkReason::CannotRestore(_),
                ..
            }
        ));
        assert_eq!(
            bench.in_rotation("api"),
            3,
            "the new release goes on serving"
        );
        bench.quality.clear();
        if promoted {
            bench.promote().unwrap();
        } else {
            bench.abort().unwrap();
        }
        bench.until("none");
        let serves = if promoted { 2 } else { 1 };
        assert_eq!(bench.environment.serving, Some(ReleaseId(serves)));
        assert_eq!(bench.in_rotation("api"), 3);
        bench.replay_agrees();
    }
}

#[test]
fn an_instance_that_cannot_be_ended_holds_up_neither_the_seal_nor_the_way_back() {
    for back in [false, true] {
        let mut bench = Bench::serving(api());
        bench.deploy(api(), plan(Strategy::BlueGreen)).unwrap();
        bench.until("standby");
        let stuck = bench.of("api", if back { 2 } else { 1 })[0].clone();
        bench.stuck.insert(stuck.clone());
        if back {
            bench.abort().unwrap();
            bench.until("back: retiring");
        } else {
            bench.seal().unwrap();
        }
        bench.run(60);
        assert_ne!(bench.phase(), "none", "it is given its time");
        bench.run(15);
        assert_eq!(bench.phase(), "none");
        assert_eq!(bench.ended().contains("aborted by ann"), back);
        let stops = |action: &Action| matches!(action, Action::StopInstance { instance, .. } if *instance == stuck);
        assert!(
            bench.environment.pending().iter().any(stops),
            "it goes on being stopped"
        );
        assert!(!bench.is_offered(&stuck));
        bench.deploy(api(), plan(rolling())).unwrap();
        bench.until("none");
        assert_eq!(
            (bench.ended().as_str(), bench.in_rotation("api")),
            ("sealed", 3)
        );
        bench.replay_agrees();
    }
}

#[test]
fn an_exclusive_service_has_one_instance() {
    let mut bench = Bench::serving(single());
    let scale = |replicas| Input::Scale {
        service: name("api"),
        replicas,
    };
    let refused = bench.tell(scale(Some(2))).unwrap_err();
    let service = name("api");
    let replicas = 2;
    assert_eq!(refused, Rejected::OneWriter { service, replicas });
    for replicas in [Some(0), Some(1), None] {
        bench.tell(scale(replicas)).unwrap();
    }
    // A number from before it became exclusive.
    let one = || topology(&[("api", shape(1, true, &[]))]);
    let mut bench = Bench::serving(one());
    bench.scale("api", Some(3));
    bench.run(30);
    bench.most.clear();
    bench.deploy(single(), plan(rolling())).unwrap();
    bench.until("none");
    assert_eq!(
        (bench.ended().as_str(), bench.of("api", 2).len()),
        ("sealed", 1)
    );
    bench.replay_agrees();
}

#[test]
fn one_writer_that_cannot_be_ended_lets_no_other_start() {
    let mut bench = Bench::serving(single());
    let quick = || RolloutPlan {
        progress_deadline: secs(120),
        ..plan(rolling())
    };
    let stuck = bench.of("api", 1)[0].clone();
    bench.stuck.insert(stuck);
    bench.deploy(single(), quick()).unwrap();
    bench.run(900);
    assert_eq!(bench.of("api", 2).len(), 0);
    assert_eq!(bench.phase(), "parked");
    let words = bench.environment.rollout.as_ref().unwrap().phase_words();
    assert!(words.contains("api.r1.1 does not end"), "{words}");
    bench.stuck.clear();
    bench.abort().unwrap();
    bench.until("none");
    assert_eq!(bench.in_rotation("api"), 1);
}

#[test]
fn a_moment_in_which_nobody_passes_costs_no_instance() {
    let mut bench = Bench::serving(api());
    bench.deploy(api(), plan(rolling())).unwrap();
    bench.until("moving 0");
    let old = bench.of("api", 1);
    for instance in &old {
        bench.probe(instance, false);
    }
    bench.run(1);
    assert_eq!(bench.of("api", 1).len(), old.len());
    for instance in &old {
        bench.probe(instance, true);
    }
    bench.until("none");
    assert_eq!(bench.ended(), "sealed");
}

#[test]
fn a_gate_that_opened_is_not_asked_again() {
    let mut bench = Bench::serving(api());
    bench
        .deploy(api(), with(Strategy::BlueGreen, &[Gate::Smoke]))
        .unwrap();
    bench.judges = false;
    bench.until("gate smoke");
    // One of three stops passing while the smoke job runs.
    let sick = bench.of("api", 2)[0].clone();
    bench.probe(&sick, false);
    bench.judges = true;
    for _ in 0..80 {
        bench.run(9);
        bench.probe(&sick, true);
        bench.run(2);
        bench.probe(&sick, false);
    }
    let opened = |event: &&Event| {
        matches!(
            event.change,
            Change::GateOpened {
                gate: Gate::Smoke,
                ..
            }
        )
    };
    assert_eq!(bench.events.iter().filter(opened).count(), 1);
    assert_eq!(bench.phase(), "none");
    assert!(bench.ended().contains("no progress"), "{}", bench.ended());
}
