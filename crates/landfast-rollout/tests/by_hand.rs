//! Migrations outside rollouts: what they wait for, what waits for them, and what a dead server leaves.

#![expect(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test that panics fails, and the bench looks at what it is about only"
)]

mod bench;

use landfast_rollout::{
    AppliedMigration, HandWork, Input, MigrationPhase, MigrationShape, Rejected, Topology,
};
use landfast_types::{ReleaseId, StoreName};

use crate::bench::{Bench, api, plan, rolling};

fn store() -> StoreName {
    StoreName::new("main").unwrap()
}

fn shape(number: u32, phase: MigrationPhase) -> MigrationShape {
    MigrationShape {
        number,
        name: format!("{number:04}_step"),
        phase,
    }
}

/// The app with so many migrations, the third of which contracts.
fn knowing(count: u32) -> Topology {
    let phase = |number| match number {
        3 => MigrationPhase::Contract,
        _ => MigrationPhase::Expand,
    };
    let mut topology = api();
    let all = (1..=count).map(|number| shape(number, phase(number)));
    topology.schemas.insert(store(), all.collect());
    topology
}

fn serving(topology: Topology) -> Bench {
    let mut bench = Bench::new();
    bench.deploy(topology, plan(rolling())).unwrap();
    bench.until("none");
    bench
}

fn migrate(bench: &mut Bench, work: HandWork) -> Result<u64, Rejected> {
    let by = "ann".to_owned();
    let store = store();
    bench.tell(Input::MigrateByHand { store, work, by })?;
    Ok(bench.environment.by_hand.as_ref().unwrap().run)
}

fn ended(bench: &mut Bench, run: u64) {
    let schemas = bench.databases.clone();
    bench
        .tell(Input::HandEnded {
            run,
            schemas,
            failure: None,
        })
        .unwrap();
}

fn apply(bench: &mut Bench, number: u32, phase: MigrationPhase) {
    let shape = shape(number, phase);
    let seen = bench.databases.entry(store()).or_default();
    seen.push(AppliedMigration {
        number,
        name: shape.name,
        phase,
        is_whole: true,
        breaks_older: false,
    });
}

#[test]
fn a_rollout_and_a_run_by_hand_wait_for_each_other() {
    let mut bench = serving(knowing(1));
    bench.deploy(knowing(2), plan(rolling())).unwrap();
    let refused = migrate(&mut bench, HandWork::Expand);
    assert!(
        matches!(refused, Err(Rejected::RolloutMoving { .. })),
        "{refused:?}"
    );
    bench.until("none");
    let run = migrate(&mut bench, HandWork::Expand).unwrap();
    let refusals = [
        bench.deploy(knowing(3), plan(rolling())).err(),
        bench
            .tell(Input::Rollback {
                to: None,
                by: "op".into(),
            })
            .err(),
        bench.tell(Input::Restart { by: "op".into() }).err(),
        migrate(&mut bench, HandWork::Expand).err(),
    ];
    for refused in refusals {
        assert!(
            matches!(refused, Some(Rejected::MigratingByHand { .. })),
            "{refused:?}"
        );
    }
    apply(&mut bench, 3, MigrationPhase::Expand);
    ended(&mut bench, run);
    assert_eq!(bench.environment.schemas[&store()].len(), 3);
    bench.deploy(knowing(3), plan(rolling())).unwrap();
    bench.until("none");
    bench.replay_agrees();
}

#[test]
fn a_contract_runs_by_hand_only_where_every_release_in_use_knows_it() {
    let contract = || HandWork::Contract {
        migrations: vec![shape(3, MigrationPhase::Contract)],
    };
    let mut bench = serving(knowing(2));
    let refused = migrate(&mut bench, contract());
    assert!(
        matches!(&refused, Err(Rejected::OlderReleaseLeft { migration, .. }) if migration == "0003_step"),
        "{refused:?}"
    );
    let accept = HandWork::Accept {
        migration: shape(3, MigrationPhase::Contract),
    };
    let refused = migrate(&mut bench, accept);
    assert!(
        matches!(refused, Err(Rejected::OlderReleaseLeft { .. })),
        "{refused:?}"
    );
    let mut bench = serving(knowing(2));
    bench.deploy(knowing(3), plan(rolling())).unwrap();
    bench.until("none");
    // From the record on nothing leads back, whatever becomes of the run.
    bench
        .databases
        .get_mut(&store())
        .unwrap()
        .retain(|seen| seen.number < 3);
    let schemas = bench.databases.clone();
    bench.tell(Input::SchemasRead { schemas }).unwrap();
    assert_eq!(bench.environment.obstacle(ReleaseId(1)), None);
    migrate(&mut bench, contract()).unwrap();
    assert!(bench.environment.obstacle(ReleaseId(1)).is_some());
}

#[test]
fn what_a_release_in_use_was_made_for_is_not_taken_back() {
    let mut bench = serving(knowing(2));
    let down = |number| HandWork::Down {
        migration: shape(number, MigrationPhase::Expand),
    };
    let refused = migrate(&mut bench, down(2));
    assert!(
        matches!(&refused, Err(Rejected::MigrationNeeded { release, .. }) if *release == ReleaseId(1)),
        "{refused:?}"
    );
    apply(&mut bench, 4, MigrationPhase::Expand);
    let schemas = bench.databases.clone();
    bench.tell(Input::SchemasRead { schemas }).unwrap();
    let run = migrate(&mut bench, down(4)).unwrap();
    let last = bench.environment.schemas[&store()].last().unwrap().clone();
    assert!(!last.is_whole, "nobody knows how far it is");
    bench.databases.get_mut(&store()).unwrap().pop();
    ended(&mut bench, run);
    assert_eq!(bench.environment.schemas[&store()].len(), 2);
}

#[test]
fn a_server_that_dies_in_the_middle_asks_the_database() {
    let mut bench = serving(knowing(2));
    let run = migrate(&mut bench, HandWork::Expand).unwrap();
    apply(&mut bench, 4, MigrationPhase::Expand);
    bench.migrates = false;
    let running = bench.environment.instances.keys().cloned().collect();
    bench.tell(Input::Adopted { running }).unwrap();
    assert_eq!(bench.environment.by_hand, None);
    assert!(bench.environment.unread.contains(&store()));
    // A deploy does not wait for a database that does not answer, and the answer of the lost run is taken.
    ended(&mut bench, run);
    assert_eq!(bench.environment.schemas[&store()].len(), 3);
    assert!(bench.environment.unread.is_empty());

    migrate(&mut bench, HandWork::Expand).unwrap();
    let running = bench.environment.instances.keys().cloned().collect();
    bench.tell(Input::Adopted { running }).unwrap();
    bench.migrates = true;
    bench.run(5);
    assert!(bench.environment.unread.is_empty(), "it was asked");
    bench.replay_agrees();
}
