//! Names of the manifest that move from one store to another.

#![expect(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test that panics fails, and the bench looks at what it is about only"
)]

mod bench;

use landfast_rollout::{
    AppliedMigration, Change, Environment, Input, MigrationPhase, MigrationShape, Phase, Rejected,
    Topology,
};
use landfast_types::{ReleaseId, StoreName};

use crate::bench::{Bench, Quality, api, plan, rolling};

fn store(name: &str) -> StoreName {
    StoreName::new(name).unwrap()
}

/// The app with so many of its migrations: they expand, but for the third.
fn knowing(count: u32) -> Topology {
    let shape = |number| MigrationShape {
        number,
        name: format!("{number:04}"),
        phase: phase(number),
    };
    let mut topology = api();
    topology
        .schemas
        .insert(store("main"), (1..=count).map(shape).collect());
    topology
}

fn phase(number: u32) -> MigrationPhase {
    match number {
        3 => MigrationPhase::Contract,
        _ => MigrationPhase::Expand,
    }
}

/// What a store has seen.
fn seen(count: u32) -> Vec<AppliedMigration> {
    let applied = |number| AppliedMigration {
        number,
        name: format!("{number:04}"),
        phase: phase(number),
        is_whole: true,
        breaks_older: false,
    };
    (1..=count).map(applied).collect()
}

/// Release 1 with two migrations serves from `main`; `copy` has seen so many of them.
fn beside(copied: u32) -> Bench {
    let mut bench = Bench::new();
    bench.deploy(knowing(2), plan(rolling())).unwrap();
    bench.until("none");
    bench.databases.insert(store("copy"), seen(copied));
    bench.ran.clear();
    bench
}

fn switch(bench: &mut Bench, to: &str) -> Result<(), Rejected> {
    let release = bench.environment.serving.unwrap();
    let topology = bench.environment.releases[&release].topology.clone();
    let input = Input::SwitchStore {
        topology,
        plan: plan(rolling()),
        store: store("main"),
        to: store(to),
        was_deleted: false,
        by: "ann".into(),
    };
    bench.tell(input).map(drop)
}

fn given(environment: &Environment, release: u64) -> String {
    let name = store("main");
    let release = (release > 0).then_some(ReleaseId(release));
    environment.served_by(release, &name).to_string()
}

/// No two instances that are given different stores ever run together.
fn never_both(bench: &Bench) {
    let mut state = Environment::new(bench.environment.scope.clone());
    for event in &bench.events {
        state.apply(event);
        let instances = state.instances.values();
        let stores: std::collections::BTreeSet<String> = instances
            .map(|instance| given(&state, instance.release.0))
            .collect();
        assert!(stores.len() <= 1, "{stores:?} after {event:?}");
    }
    assert_eq!(state, bench.environment);
}

#[test]
fn a_name_moves_with_the_release_that_its_rollout_starts() {
    let mut bench = beside(1);
    switch(&mut bench, "copy").unwrap();
    assert_eq!(given(&bench.environment, 1), "main");
    assert_eq!(given(&bench.environment, 2), "copy");
    assert_eq!(given(&bench.environment, 0), "main");
    let (main, copy) = (store("main"), store("copy"));
    for either in [&main, &copy] {
        assert_eq!(bench.environment.is_bound(either), Some(&main));
    }
    bench.until("none");
    assert_eq!(bench.ended(), "sealed");
    // The copy was older than the app: what it lacked was run there, and nowhere else.
    assert_eq!(bench.ran, ["0002"]);
    assert_eq!(bench.databases[&main].len(), 2);
    for release in 0..3 {
        assert_eq!(given(&bench.environment, release), "copy");
    }
    let state = &bench.environment;
    assert_eq!(state.serves(&copy), Some(&main));
    assert_eq!((state.serves(&main), state.is_bound(&main)), (None, None));
    bench.run(1);
    assert_eq!(bench.retired, ["main"]);
    never_both(&bench);
    bench.replay_agrees();
}

#[test]
fn nothing_of_a_switch_that_is_taken_back_stays() {
    // Aborted while the new release starts, failed as it does, and failed before anything moved.
    for case in ["aborted", "mute", "unfit"] {
        let mut bench = beside(if case == "unfit" { 3 } else { 1 });
        bench.quality.insert(ReleaseId(2), Quality::Mute);
        switch(&mut bench, "copy").unwrap();
        if case == "aborted" {
            bench.until("warming 0");
            bench.abort().unwrap();
        }
        bench.until("none");
        assert!(bench.ended().starts_with("rolled back"), "{case}");
        for release in 0..3 {
            assert_eq!(given(&bench.environment, release), "main", "{case}");
        }
        let main = store("main");
        assert_eq!(bench.environment.schemas[&main], seen(2), "{case}");
        assert_eq!(bench.of("api", 1).len(), 3, "{case}");
        bench.run(1);
        assert!(bench.retired.is_empty() && bench.environment.retiring.is_empty());
        let has_moved = bench.phases().contains(&"clearing".to_owned());
        assert_eq!(has_moved, case != "unfit");
        never_both(&bench);
        bench.replay_agrees();
        // It can be tried again.
        bench.databases.insert(store("copy"), seen(2));
        switch(&mut bench, "copy").unwrap();
        bench.until("none");
        assert_eq!(given(&bench.environment, 1), "copy");
    }
}

#[test]
fn a_rollback_moves_no_contents_and_the_way_back_is_a_switch() {
    let mut bench = beside(2);
    bench.deploy(knowing(2), plan(rolling())).unwrap();
    bench.until("none");
    switch(&mut bench, "copy").unwrap();
    bench.until("none");
    // Release 3 is release 2 on another store; the one before it is release 1.
    bench.rollback(None).unwrap();
    bench.until("none");
    assert_eq!(bench.environment.serving, Some(ReleaseId(1)));
    assert_eq!(given(&bench.environment, 1), "copy");
    switch(&mut bench, "main").unwrap();
    assert_eq!(given(&bench.environment, 1), "copy");
    bench.until("none");
    assert_eq!(given(&bench.environment, 1), "main");
    assert!(bench.environment.bindings.is_empty());
    bench.run(1);
    assert_eq!(bench.retired, ["main", "copy"]);
    never_both(&bench);
    bench.replay_agrees();
}

#[test]
fn a_switch_waits_for_nobody_and_is_not_made_twice() {
    let mut bench = beside(2);
    assert!(matches!(
        switch(&mut bench, "main"),
        Err(Rejected::StoreServes { .. })
    ));
    bench.deploy(knowing(2), plan(rolling())).unwrap();
    for phase in ["moving 0", "standby"] {
        bench.until(phase);
        assert!(matches!(
            switch(&mut bench, "copy"),
            Err(Rejected::RolloutMoving { .. })
        ));
    }
    bench.until("none");
    switch(&mut bench, "copy").unwrap();
    assert!(matches!(
        switch(&mut bench, "copy"),
        Err(Rejected::RolloutMoving { .. })
    ));
    bench.until("none");
    assert!(matches!(
        switch(&mut bench, "copy"),
        Err(Rejected::StoreServes { .. })
    ));
    let mut bench = Bench::new();
    let nothing = bench.tell(Input::SwitchStore {
        topology: knowing(1),
        plan: plan(rolling()),
        store: store("main"),
        to: store("copy"),
        was_deleted: false,
        by: "ann".into(),
    });
    assert_eq!(nothing, Err(Rejected::NothingDeployed));
}

#[test]
fn what_may_have_been_written_is_not_left_behind_by_itself() {
    let mut bench = beside(2);
    switch(&mut bench, "copy").unwrap();
    bench.until("warming 0");
    bench.confirms = false;
    bench.until("shifting 0");
    // The table may be in use already, although nobody has said so.
    bench.quality.insert(ReleaseId(2), Quality::Exits);
    for instance in bench.of("api", 2) {
        bench.end(&instance);
    }
    bench.until("parked");
    assert_eq!(given(&bench.environment, 2), "copy");
    for supersede in [false, true] {
        let topology = bench.environment.releases[&ReleaseId(1)].topology.clone();
        let newer = bench.deploy_over(topology, plan(rolling()), supersede);
        assert!(
            matches!(newer, Err(Rejected::RolloutMoving { .. })),
            "{newer:?}"
        );
    }
    bench.confirms = true;
    // A person may say so.
    bench.abort().unwrap();
    bench.until("none");
    assert_eq!(given(&bench.environment, 1), "main");
    assert_eq!(bench.of("api", 1).len(), 3);
    never_both(&bench);
}

#[test]
fn a_store_that_was_taken_back_for_it_is_deleted_again() {
    let mut bench = beside(2);
    let topology = bench.environment.releases[&ReleaseId(1)].topology.clone();
    bench.quality.insert(ReleaseId(2), Quality::Mute);
    let input = Input::SwitchStore {
        topology,
        plan: plan(rolling()),
        store: store("main"),
        to: store("copy"),
        was_deleted: true,
        by: "ann".into(),
    };
    bench.tell(input).unwrap();
    bench.until("none");
    bench.run(1);
    assert_eq!(bench.retired, ["copy"]);
    let retired = |change: &Change| matches!(change, Change::StoreRetired { .. });
    let count = bench.events.iter().filter(|event| retired(&event.change));
    assert_eq!(count.count(), 1);
    let sealed = |change: &Change| {
        matches!(
            change,
            Change::PhaseEntered {
                phase: Phase::Sealing
            }
        )
    };
    let sealings = bench.events.iter().filter(|event| sealed(&event.change));
    assert_eq!(sealings.count(), 1, "only that of release 1");
}
