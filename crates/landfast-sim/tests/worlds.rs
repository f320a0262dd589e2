//! The sweep that CI runs, the planted bugs, and a crash at every record of every story.

use std::collections::BTreeMap;

use landfast_sim::{
    fault::{Fault, Fired},
    run::run,
    scenario::{self, Ending},
    world::{Habits, Planted, World},
};

/// How many seeds CI runs.
const SEEDS: u64 = 500;

#[test]
fn no_seed_breaks_an_invariant_and_every_kind_of_fault_fires() {
    let (mut fired, mut sealed, mut rolled_back, mut parked) = (Fired::default(), 0, 0, 0);
    for seed in 0..SEEDS {
        let report = run(seed, None, false);
        if let Some(broken) = report.broken {
            panic!("seed {seed}: {broken}; see it with: landfast-sim --seed {seed} --verbose");
        }
        fired.add(&report.fired);
        sealed += report.sealed;
        rolled_back += report.rolled_back;
        parked += report.parked;
    }
    println!("{SEEDS} seeds: {sealed} sealed, {rolled_back} rolled back, {parked} times parked");
    for fault in Fault::ALL {
        println!("{fault:?}: {}", fired.times(fault));
        assert!(fired.times(fault) >= 100, "{fault:?} fired too seldom");
    }
    assert!(sealed > 200 && rolled_back > 200 && parked > 20);
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in [1, 17, 404] {
        let (first, second) = (run(seed, None, true), run(seed, None, true));
        assert!(first.trace.len() > 100);
        assert_eq!(first.trace, second.trace);
        assert_ne!(first.trace, run(seed + 1, None, true).trace);
    }
}

#[test]
fn every_planted_bug_is_found() {
    let mut missed = Vec::new();
    for (words, planted) in Planted::ALL {
        let found = (0..SEEDS).find_map(|seed| {
            let broken = run(seed, Some(planted), false).broken?;
            Some((seed, broken))
        });
        match found {
            Some((seed, broken)) => println!("{words}: seed {seed}: {broken}"),
            None => missed.push(words),
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}

const LIMIT: u64 = 900_000;

fn world() -> World {
    World::new(7, Habits::Told, None)
}

#[test]
fn a_crash_at_any_record_of_any_story_leads_to_the_same_end() {
    let mut places = 0;
    for scenario in scenario::all() {
        let mut whole = world();
        let expected = scenario::tell(&mut whole, &scenario, LIMIT).unwrap();
        let records = whole.journal.len();
        assert!(records > 40, "{}", scenario.name);
        for place in 0..=records {
            let mut world = world();
            world.die_at = Some(place);
            let found = scenario::tell(&mut world, &scenario, LIMIT);
            let found = found.unwrap_or_else(|error| panic!("dead at record {place}: {error}"));
            same(&found, &expected, scenario.name, place);
            if let Some(broken) = &world.watch.broken {
                panic!("{}, dead at record {place}: {broken}", scenario.name);
            }
            places += 1;
        }
        println!(
            "{}: {records} records, {:?}",
            scenario.name, expected.outcomes
        );
    }
    println!("died in {places} places");
}

/// Where the host goes too, a release may be taken for one whose instances exit, so the story may end another way, or a
/// later step of it be refused. What holds, holds.
#[test]
fn a_host_lost_at_any_record_of_any_story_breaks_no_invariant() {
    for scenario in scenario::all() {
        let mut whole = world();
        scenario::tell(&mut whole, &scenario, LIMIT).unwrap();
        for place in 0..=whole.journal.len() {
            let mut world = world();
            (world.die_at, world.host_too) = (Some(place), true);
            let found = scenario::tell(&mut world, &scenario, LIMIT);
            if let Some(broken) = &world.watch.broken {
                panic!("{}, lost at record {place}: {broken}", scenario.name);
            }
            assert!(world.now <= LIMIT, "lost at record {place}: {found:?}");
        }
    }
}

fn same(found: &Ending, expected: &Ending, name: &str, place: usize) {
    assert_eq!(found, expected, "{name}, dead at record {place}");
}

#[test]
fn each_action_done_twice_makes_the_same_world() {
    for scenario in scenario::all() {
        let expected = scenario::tell(&mut world(), &scenario, LIMIT).unwrap();
        let mut doubled = world();
        doubled.twice = true;
        let found = scenario::tell(&mut doubled, &scenario, LIMIT).unwrap();
        same(&found, &expected, scenario.name, 0);
        assert_eq!(doubled.watch.broken, None, "{}", scenario.name);
    }
}

#[test]
fn the_stories_end_as_they_should() {
    let mut endings = BTreeMap::new();
    for scenario in scenario::all() {
        let ending = scenario::tell(&mut world(), &scenario, LIMIT).unwrap();
        let words: Vec<&str> = ending.outcomes.iter().map(|(_, word)| *word).collect();
        endings.insert(scenario.name, words.join(", "));
    }
    let expected = [
        ("approval", "sealed, sealed"),
        ("blue-green", "sealed, sealed"),
        ("blue-green, aborted in standby", "sealed, rolled back"),
        ("blue-green, exits at start", "sealed, rolled back"),
        ("canary", "sealed, sealed"),
        ("canary, aborted at a step", "sealed, rolled back"),
        ("canary, exits at start", "sealed, rolled back"),
        ("expand and contract", "sealed, sealed, sealed"),
        ("parked, then aborted", "sealed, rolled back"),
        ("recreate", "sealed, sealed, sealed"),
        ("recreate, aborted in standby", "sealed, rolled back"),
        ("recreate, exits at start", "sealed, sealed, rolled back"),
        ("restart", "sealed, sealed"),
        (
            "rollback across a contract, then forward",
            "sealed, sealed, sealed, rolled back, sealed",
        ),
        ("rollback after the seal", "sealed, sealed, sealed"),
        ("rolling", "sealed, sealed"),
        ("rolling, aborted on the way", "sealed, rolled back"),
        ("rolling, exits at start", "sealed, rolled back"),
        ("scale", "sealed, sealed"),
        ("stop and start", "sealed"),
        ("superseded on the way", "sealed, rolled back, sealed"),
    ];
    let expected: BTreeMap<_, _> = expected
        .into_iter()
        .map(|(name, words)| (name, words.to_owned()))
        .collect();
    assert_eq!(endings, expected);
}
