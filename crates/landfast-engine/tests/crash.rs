//! Crash everywhere: for each record (a sample of them unless LANDFAST_CRASH_STRIDE=1) a scenario writes to the real journal, the server dies right after it, before
//! and after acting on it; a new server on the same journal must come to the same end. Instances and proxy live on
//! meanwhile, as they do when a real server is killed.

#![expect(clippy::print_stdout, reason = "the proof prints its figure")]

mod common;

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use landfast_engine::{Platform, View};
use landfast_rollout::{Input, Outcome};
use landfast_types::ReleaseId;
use tokio::time::sleep;

use crate::common::{Mortal, World, reach, scope};

/// A way a second release goes: by a strategy, to an end.
struct Scenario {
    name: &'static str,
    strategy: &'static str,
    gates: &'static str,
    /// What the second release's instances do.
    second: &'static str,
    /// What a person does once it moves.
    then: Option<fn() -> Input>,
    serving: u64,
}

fn rollback() -> Input {
    Input::Rollback {
        to: None,
        by: "test".into(),
    }
}

const SCENARIOS: [Scenario; 7] = [
    Scenario {
        name: "rolling",
        strategy: "rolling",
        gates: r#""preflight""#,
        second: "serve",
        then: None,
        serving: 2,
    },
    Scenario {
        name: "blue-green",
        strategy: "blue-green",
        gates: r#""preflight""#,
        second: "serve",
        then: None,
        serving: 2,
    },
    Scenario {
        name: "canary",
        strategy: "canary",
        gates: r#""preflight""#,
        second: "serve",
        then: None,
        serving: 2,
    },
    Scenario {
        name: "recreate",
        strategy: "recreate",
        gates: r#""preflight""#,
        second: "serve",
        then: None,
        serving: 2,
    },
    Scenario {
        name: "a release that exits at start",
        strategy: "rolling",
        gates: r#""preflight""#,
        second: "exit=1",
        then: None,
        serving: 1,
    },
    Scenario {
        name: "a rollback after the seal",
        strategy: "rolling",
        gates: r#""preflight""#,
        second: "serve",
        then: Some(rollback),
        serving: 1,
    },
    Scenario {
        name: "a smoke job before the switch",
        strategy: "blue-green",
        gates: r#""preflight", "smoke""#,
        second: "serve",
        then: None,
        serving: 2,
    },
];

fn manifest(release: u64, scenario: &Scenario) -> String {
    let word = if release == 2 {
        scenario.second
    } else {
        "serve"
    };
    format!(
        r#"
app = "shop"
[services.api]
artifact = "program"
command = ["/bin/true", "{word}"]
port = 80
replicas = 2
exclusive = false
health = {{ ready = "tcp", interval = "100ms" }}
[services.work]
artifact = "program"
command = ["/bin/true", "serve"]
after = ["api"]
[routes.public]
host = "shop.example"
service = "api"
[deploy]
strategy = "{}"
steps = [50, 100]
hold = "100ms"
standby = "100ms"
min_ready = "50ms"
healthy_deadline = "5s"
progress_deadline = "10s"
gates = [{}]
[jobs.smoke]
artifact = "program"
command = ["/bin/true", "sleep=60"]
when = "gate:smoke"
[jobs.report]
artifact = "program"
command = ["/bin/true", "sleep=60"]
when = "* * * * * UTC"
"#,
        scenario.strategy, scenario.gates
    )
}

/// Goes on with the scenario from wherever the journal is. Returns false when this life ended on the way.
async fn go_on(
    world: &World,
    scenario: &Scenario,
    platform: &Arc<Platform>,
    journal: &Mortal,
) -> bool {
    let still = |view: &View| view.state.rollout.is_none();
    for release in [1, 2] {
        let known = |view: &View| view.state.releases.contains_key(&ReleaseId(release));
        let begun = platform
            .environment(&scope())
            .is_some_and(|view| known(&view));
        if !begun {
            let order = world.order(release, &manifest(release, scenario));
            if platform.deploy(order).await.is_err() {
                return false;
            }
        }
        if !reach(platform, journal, still).await {
            return false;
        }
    }
    let Some(then) = scenario.then else {
        return true;
    };
    let view = platform.environment(&scope()).expect("it was deployed");
    if view.state.next_rollout().0 < 4 && platform.command(&scope(), then()).await.is_err() {
        return false;
    }
    reach(platform, journal, still).await
}

/// The end of a scenario, as far as it must be the same whatever happened on the way.
fn end_of(world: &World, view: &View) -> (Option<ReleaseId>, Vec<ReleaseId>, Vec<String>) {
    let mut running: Vec<String> = view
        .state
        .instances
        .values()
        .filter(|instance| instance.is_serving())
        .map(|instance| format!("{} of release {}", instance.service, instance.release))
        .collect();
    running.sort();
    (view.state.serving, world.proxy.serving(), running)
}

async fn settle(platform: &Arc<Platform>, journal: &Mortal) -> Arc<View> {
    let whole = |view: &View| {
        let serving = view
            .state
            .instances
            .values()
            .filter(|i| i.is_serving())
            .count();
        serving == 3 && view.state.instances.len() == 3 && view.state.rollout.is_none()
    };
    assert!(
        reach(platform, journal, whole).await,
        "this life has no end"
    );
    platform.environment(&scope()).expect("it was deployed")
}

async fn undisturbed(
    scenario: &Scenario,
) -> (u64, (Option<ReleaseId>, Vec<ReleaseId>, Vec<String>)) {
    let world = World::new().await;
    let (platform, journal) = world.server(u64::MAX, false).await;
    assert!(go_on(&world, scenario, &platform, &journal).await);
    let view = settle(&platform, &journal).await;
    for record in &view.state.history {
        if scenario.second == "serve" {
            assert_eq!(record.outcome, Outcome::Sealed, "{}", scenario.name);
        }
    }
    let end = end_of(&world, &view);
    assert_eq!(
        end.0,
        Some(ReleaseId(scenario.serving)),
        "{}",
        scenario.name
    );
    (journal.written.load(Ordering::SeqCst), end)
}

async fn dies_everywhere(scenario: &Scenario) {
    let (records, end) = undisturbed(scenario).await;
    let mut lives = 0;
    // Every record in `make proof-crash`; in everyday tests a sample, shifted so that scenarios differ in theirs.
    let stride = std::env::var("LANDFAST_CRASH_STRIDE")
        .ok()
        .and_then(|text| text.parse().ok());
    let stride = stride.unwrap_or(7_usize).max(1);
    let first = 1 + scenario.name.len() as u64 % stride as u64;
    for death in (first..=records).step_by(stride) {
        for at_once in [true, false] {
            let world = World::new().await;
            let (platform, journal) = world.server(death, at_once).await;
            let survived = go_on(&world, scenario, &platform, &journal).await;
            if !at_once && !survived {
                // What is owed for the last record may still be done before the server is gone.
                sleep(Duration::from_millis(20)).await;
            }
            journal.life.end();
            drop(platform);
            let (platform, journal) = world.server(u64::MAX, false).await;
            assert!(go_on(&world, scenario, &platform, &journal).await);
            let view = settle(&platform, &journal).await;
            let (real, wanted) = world.running(&platform).await;
            assert_eq!(
                real, wanted,
                "{}: died at record {death}: nothing leaked, nothing twice",
                scenario.name
            );
            assert_eq!(
                end_of(&world, &view),
                end,
                "{}: died at record {death}",
                scenario.name
            );
            lives += 1;
        }
    }
    println!(
        "{}: {lives} deaths over {records} records (every {stride}), the same end",
        scenario.name
    );
}

macro_rules! scenarios {
    ($($name:ident $index:literal)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            dies_everywhere(&SCENARIOS[$index]).await;
        }
    )*};
}

scenarios! {
    rolling_ends_the_same_wherever_the_server_dies 0
    blue_green_ends_the_same_wherever_the_server_dies 1
    canary_ends_the_same_wherever_the_server_dies 2
    recreate_ends_the_same_wherever_the_server_dies 3
    a_failed_release_is_taken_back_wherever_the_server_dies 4
    a_rollback_ends_the_same_wherever_the_server_dies 5
    a_smoke_job_ends_the_same_wherever_the_server_dies 6
}
