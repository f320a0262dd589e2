//! Migrations in rollouts: before traffic, after the seal, and what cannot be taken back any more.

#![expect(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test that panics fails, and the bench looks at what it is about only"
)]

mod bench;

use landfast_rollout::{
    Gate, Input, MigrationPhase, MigrationShape, ParkReason, Phase, Rejected, Schemas, Strategy,
    Topology,
};
use landfast_types::{ReleaseId, StoreName};

use crate::bench::{Bench, Quality, api, canary, plan, rolling, single};

fn strategies() -> [Strategy; 4] {
    [rolling(), Strategy::BlueGreen, canary(), Strategy::Recreate]
}

fn store() -> StoreName {
    StoreName::new("main").unwrap()
}

/// The app with so many of its migrations: they expand, but for the fourth.
fn knowing(count: usize) -> Topology {
    let names = [
        "0001_users",
        "0002_name",
        "0003_split",
        "0004_drop_name",
        "0005_more",
    ];
    let all = names.iter().zip(1..).map(|(name, number)| MigrationShape {
        number,
        name: (*name).to_owned(),
        phase: if number == 4 {
            MigrationPhase::Contract
        } else {
            MigrationPhase::Expand
        },
    });
    let mut topology = api();
    topology.schemas.insert(store(), all.take(count).collect());
    topology
}

/// Release 1 with two migrations serves.
fn serving(topology: Topology) -> Bench {
    let mut bench = Bench::new();
    bench.deploy(topology, plan(rolling())).unwrap();
    bench.until("none");
    bench
}

fn obstacle(bench: &Bench, release: u64) -> Option<String> {
    let obstacle = bench.environment.obstacle(ReleaseId(release));
    obstacle.map(|obstacle| obstacle.migration)
}

fn barred(bench: &Bench) -> bool {
    let rollout = bench.environment.rollout.as_ref();
    rollout.is_some_and(|rollout| {
        matches!(
            &rollout.phase,
            Phase::Parked {
                reason: ParkReason::SchemaMovedOn(_),
                ..
            }
        )
    })
}

#[test]
fn what_the_new_release_needs_runs_while_the_old_one_serves_alone() {
    for strategy in strategies() {
        let mut bench = serving(knowing(2));
        bench.ran.clear();
        bench.migrates = false;
        bench.deploy(knowing(3), plan(strategy.clone())).unwrap();
        bench.run(1_000);
        assert_eq!(
            bench.phase(),
            "migrating",
            "{strategy:?} waits however long it takes"
        );
        assert_eq!((bench.of("api", 1).len(), bench.of("api", 2).len()), (3, 0));
        bench.migrates = true;
        bench.until("none");
        assert_eq!(
            (bench.ended().as_str(), &bench.ran[..]),
            ("sealed", &["0003_split".to_owned()][..])
        );
        bench.replay_agrees();
    }
}

#[test]
fn contract_runs_after_the_seal_and_nothing_old_is_left_then() {
    for strategy in strategies() {
        let mut bench = serving(knowing(2));
        bench.ran.clear();
        bench.deploy(knowing(4), plan(strategy.clone())).unwrap();
        bench.until("standby");
        assert_eq!(bench.ran, ["0003_split"], "{strategy:?}");
        assert_eq!(obstacle(&bench, 1), None);
        bench.migrates = false;
        bench.until("contracting");
        let old = bench
            .environment
            .instances
            .values()
            .filter(|i| i.release == ReleaseId(1));
        assert_eq!(old.count(), 0);
        assert_eq!(
            obstacle(&bench, 1).as_deref(),
            Some("0004_drop_name"),
            "it may have begun"
        );
        bench.migrates = true;
        bench.until("none");
        assert_eq!(bench.ran, ["0003_split", "0004_drop_name"]);
        assert_eq!(
            (bench.ended().as_str(), bench.in_rotation("api")),
            ("sealed", 3)
        );
        bench.replay_agrees();
    }
}

#[test]
fn a_first_release_runs_everything_in_order_before_it_starts() {
    let mut bench = Bench::new();
    bench.migrates = false;
    bench.deploy(knowing(5), plan(rolling())).unwrap();
    bench.run(5);
    assert_eq!(
        (bench.phase().as_str(), bench.environment.instances.len()),
        ("migrating", 0)
    );
    bench.migrates = true;
    bench.until("none");
    assert_eq!(
        bench.ran,
        [
            "0001_users",
            "0002_name",
            "0003_split",
            "0004_drop_name",
            "0005_more"
        ]
    );
}

#[test]
fn a_failure_stops_before_traffic_moves() {
    for strategy in strategies() {
        let mut bench = serving(knowing(2));
        bench.failing.insert("0003_split".into());
        bench.deploy(knowing(3), plan(strategy)).unwrap();
        bench.until("none");
        assert_eq!(bench.ended(), "rolled back: 0003_split failed");
        let phases = bench.phases();
        assert!(
            !phases.iter().any(|phase| phase.starts_with("warming")),
            "{phases:?}"
        );
        assert_eq!((bench.of("api", 1).len(), bench.in_rotation("api")), (3, 3));
    }
}

#[test]
fn a_contract_that_fails_leaves_the_release_sealed_and_is_tried_at_the_next_seal() {
    let mut bench = serving(knowing(2));
    bench.failing.insert("0004_drop_name".into());
    bench.deploy(knowing(4), plan(rolling())).unwrap();
    bench.until("none");
    assert_eq!(bench.ended(), "sealed");
    let record = bench.environment.history.last().unwrap();
    assert_eq!(
        record.contract_waits.as_deref(),
        Some("0004_drop_name failed")
    );
    assert_eq!(
        obstacle(&bench, 1),
        None,
        "the database says that it did not run"
    );
    bench.failing.clear();
    bench.tell(Input::Restart { by: "op".into() }).unwrap();
    bench.until("none");
    assert_eq!(bench.ran.last().map(String::as_str), Some("0004_drop_name"));
    assert_eq!(
        bench.environment.history.last().unwrap().contract_waits,
        None
    );
}

#[test]
fn a_contract_waits_for_an_old_instance_that_does_not_end() {
    let mut bench = serving(knowing(2));
    let stuck = bench.of("api", 1)[0].clone();
    bench.stuck.insert(stuck.clone());
    bench.deploy(knowing(4), plan(Strategy::BlueGreen)).unwrap();
    bench.until("none");
    assert!(!bench.ran.contains(&"0004_drop_name".to_owned()));
    let waits = bench
        .environment
        .history
        .last()
        .unwrap()
        .contract_waits
        .clone();
    assert!(waits.is_some_and(|reason| reason.contains(stuck.as_str())));
}

#[test]
fn a_rollback_across_a_contract_parks_and_names_both_ways_out() {
    for exclusive in [false, true] {
        let old = if exclusive {
            let mut only = single();
            only.schemas = knowing(2).schemas;
            only
        } else {
            knowing(2)
        };
        let mut bench = serving(old);
        bench.deploy(knowing(4), plan(rolling())).unwrap();
        bench.until("none");
        bench
            .tell(Input::Rollback {
                to: None,
                by: "op".into(),
            })
            .unwrap();
        bench.run(1_000);
        assert!(barred(&bench), "{}", bench.phase());
        let words = bench.environment.rollout.as_ref().unwrap().phase_words();
        for part in ["0004_drop_name", "landfast deploy", "restore `main`"] {
            assert!(words.contains(part), "{words}");
        }
        assert_eq!((bench.of("api", 1).len(), bench.in_rotation("api")), (0, 3));
        let refused = bench.tell(Input::Promote { by: "op".into() });
        assert!(
            matches!(refused, Err(Rejected::SchemaMovedOn(_))),
            "{refused:?}"
        );
        // The first way out needs nobody to clear the way.
        bench.deploy(knowing(5), plan(rolling())).unwrap();
        bench.until("none");
        assert_eq!(
            (bench.ended().as_str(), bench.of("api", 3).len()),
            ("sealed", 3)
        );
        bench.replay_agrees();
    }
}

#[test]
fn a_failure_across_a_contract_freezes_weights_instead_of_going_back() {
    let mut bench = serving(knowing(3));
    bench.deploy(knowing(5), plan(Strategy::BlueGreen)).unwrap();
    bench.until("standby");
    // Somebody runs the contract by hand.
    let shape = &knowing(4).schemas[&store()][3];
    let applied = landfast_rollout::AppliedMigration {
        number: shape.number,
        name: shape.name.clone(),
        phase: shape.phase,
        is_whole: true,
        breaks_older: false,
    };
    bench.databases.entry(store()).or_default().push(applied);
    let schemas: Schemas = bench.databases.clone();
    bench.tell(Input::SchemasRead { schemas }).unwrap();
    bench.quality.insert(ReleaseId(2), Quality::Exits);
    for _ in 0..3 {
        for victim in bench.of("api", 2) {
            bench.end(&victim);
        }
        bench.run(30);
    }
    assert!(barred(&bench), "{}", bench.phase());
    let refused = bench.tell(Input::Abort {
        by: "op".into(),
        reason: "no".into(),
    });
    assert!(
        matches!(refused, Err(Rejected::SchemaMovedOn(_))),
        "{refused:?}"
    );
    bench.quality.clear();
    bench.tell(Input::Promote { by: "op".into() }).unwrap();
    bench.until("none");
    assert_eq!(bench.ended(), "sealed");
}

#[test]
fn nothing_leads_back_while_contracts_run() {
    let mut bench = serving(knowing(2));
    bench.deploy(knowing(4), plan(rolling())).unwrap();
    bench.until("standby");
    bench.migrates = false;
    bench.until("contracting");
    let abort = bench.tell(Input::Abort {
        by: "op".into(),
        reason: "no".into(),
    });
    assert!(
        matches!(abort, Err(Rejected::Contracting { .. })),
        "{abort:?}"
    );
    let back = bench.tell(Input::Rollback {
        to: None,
        by: "op".into(),
    });
    assert!(
        matches!(back, Err(Rejected::Contracting { .. })),
        "{back:?}"
    );
    // A further deploy waits for them.
    bench.deploy(knowing(5), plan(rolling())).unwrap();
    bench.run(10);
    assert_eq!(bench.phase(), "contracting");
    bench.migrates = true;
    bench.run(1);
    bench.until("none");
    assert_eq!(
        bench.ran[2..],
        ["0003_split", "0004_drop_name", "0005_more"]
    );
}

#[test]
fn a_server_that_dies_while_contracts_run_takes_them_up_again() {
    let mut bench = serving(knowing(2));
    bench.deploy(knowing(4), plan(rolling())).unwrap();
    bench.until("standby");
    bench.migrates = false;
    bench.until("contracting");
    bench.forget_after("contracting");
    assert_eq!(obstacle(&bench, 1).as_deref(), Some("0004_drop_name"));
    bench.migrates = true;
    bench.until("none");
    assert_eq!(bench.ran.last().map(String::as_str), Some("0004_drop_name"));
}

#[test]
fn a_rehearsal_is_judged_before_anything_moves() {
    for strategy in strategies() {
        let mut bench = serving(knowing(2));
        bench.ran.clear();
        bench.judges = false;
        let gated = landfast_rollout::RolloutPlan {
            gates: [Gate::Rehearsal].into(),
            ..plan(strategy.clone())
        };
        bench.deploy(knowing(3), gated.clone()).unwrap();
        bench.run(1_000);
        assert_eq!(
            bench.phase(),
            "rehearsing",
            "{strategy:?} waits however long it takes"
        );
        assert_eq!((bench.of("api", 1).len(), bench.of("api", 2).len()), (3, 0));
        bench.gates.insert(Gate::Rehearsal, false);
        bench.judges = true;
        bench.run(10);
        bench.until("none");
        assert!(
            bench.ended().contains("the rehearsal gate refused"),
            "{}",
            bench.ended()
        );
        assert_eq!(bench.ran.len(), 0);
        assert_eq!((bench.of("api", 1).len(), bench.in_rotation("api")), (3, 3));

        bench.gates.insert(Gate::Rehearsal, true);
        bench.deploy(knowing(3), gated).unwrap();
        bench.until("none");
        assert_eq!((bench.ended().as_str(), bench.ran.len()), ("sealed", 1));
        bench.replay_agrees();
    }
}

#[test]
fn a_first_release_has_no_database_to_copy() {
    let mut bench = Bench::new();
    bench.judges = false;
    let gated = landfast_rollout::RolloutPlan {
        gates: [Gate::Rehearsal].into(),
        ..plan(rolling())
    };
    bench.deploy(knowing(2), gated).unwrap();
    bench.until("none");
    assert_eq!(bench.ended(), "sealed");
}
