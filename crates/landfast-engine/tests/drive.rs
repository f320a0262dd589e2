//! What happens between a driver and a host that does not always answer: instances that start late or cannot be
//! read, and runs of jobs that outlive the server that began them.

mod common;

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use landfast_engine::{CommandError, DeployError, Platform, RunError, jobs};
use landfast_journal::{Journal as _, NewRecord};
use landfast_rollout::Input;
use landfast_target::{Exit, InstanceRef, Target as _};
use landfast_types::{InstanceId, JobName, ReleaseId};
use tokio::time::sleep;

use crate::common::{Mortal, World, reach, scope};

fn manifest(gates: &str, jobs: &str) -> String {
    format!(
        r#"
app = "shop"
[services.api]
artifact = "program"
command = ["/bin/true", "serve"]
port = 80
replicas = 1
health = {{ ready = "tcp", interval = "100ms" }}
[routes.public]
host = "shop.example"
service = "api"
[deploy]
strategy = "rolling"
standby = "100ms"
min_ready = "50ms"
healthy_deadline = "10s"
progress_deadline = "20s"
gates = [{gates}]
{jobs}
"#
    )
}

/// A host on which the first release of this manifest serves.
async fn serving(manifest: &str) -> (World, Arc<Platform>, Arc<Mortal>) {
    let world = World::new().await;
    let (platform, journal) = world.server(u64::MAX, false).await;
    let deployed = platform.deploy(world.order(1, manifest)).await;
    deployed.expect("it is taken");
    serves(&platform, &journal).await;
    (world, platform, journal)
}

async fn serves(platform: &Platform, journal: &Mortal) {
    let serves = reach(platform, journal, |view| {
        let mut instances = view.state.instances.values();
        view.state.rollout.is_none()
            && view.state.instances.len() == 1
            && instances.all(|instance| instance.is_serving())
    });
    assert!(serves.await);
}

async fn another_life(
    world: &World,
    platform: Arc<Platform>,
    journal: &Mortal,
) -> (Arc<Platform>, Arc<Mortal>) {
    journal.life.end();
    drop(platform);
    world.server(u64::MAX, false).await
}

fn only_instance(platform: &Platform) -> InstanceRef {
    let view = platform.environment(&scope()).expect("it was deployed");
    let instance = view.state.instances.keys().next().expect("one runs");
    InstanceRef {
        scope: scope(),
        instance: instance.clone(),
    }
}

fn report() -> JobName {
    JobName::new("report").expect("a name")
}

async fn ended(platform: &Platform, number: u64) -> jobs::RunRecord {
    for _ in 0..500 {
        let record = jobs::load(platform.shared(), &scope(), number);
        if let Some(record) = record.filter(|record| record.ended_at.is_some()) {
            return record;
        }
        sleep(Duration::from_millis(20)).await;
    }
    panic!("run {number} never ended");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_cannot_be_read_is_not_replaced() {
    let (world, platform, journal) = serving(&manifest("", "")).await;
    let id = only_instance(&platform);
    world.target.make_unreadable(&id, true);
    let (platform, journal) = another_life(&world, platform, &journal).await;
    sleep(Duration::from_millis(500)).await;
    assert_eq!(world.starts("api."), 1, "nothing runs beside it");
    assert_eq!(only_instance(&platform), id);
    // Once it can be read again, its end is seen like any other.
    world.target.make_unreadable(&id, false);
    world.target.crash(&id, Exit::Code { code: 1 });
    let replaced = |view: &landfast_engine::View| !view.state.instances.contains_key(&id.instance);
    assert!(reach(&platform, &journal, replaced).await);
    serves(&platform, &journal).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_reported_failed_does_not_start_late() {
    let world = World::new().await;
    let (platform, journal) = world.server(u64::MAX, false).await;
    world.target.start_late(Duration::from_millis(1_500));
    world.target.fail_starts(2);
    let manifest = manifest("", "");
    let deployed = platform.deploy(world.order(1, &manifest)).await;
    deployed.expect("it is taken");
    let over = |view: &landfast_engine::View| view.state.rollout.is_none();
    assert!(reach(&platform, &journal, over).await);
    sleep(Duration::from_secs(2)).await;
    let (real, wanted) = world.running(&platform).await;
    assert_eq!(real, wanted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_environment_knows_is_swept() {
    let (world, platform, journal) = serving(&manifest("", "")).await;
    let stray = landfast_target::InstanceSpec {
        id: InstanceRef {
            scope: scope(),
            instance: InstanceId::new("api", ReleaseId(1), 99),
        },
        content: landfast_target::Content::Artifact(landfast_types::Digest::of(b"any")),
        command: vec!["/bin/true".into(), "serve".into()],
        env: [].into(),
        listens: false,
        resources: landfast_target::Resources::default(),
        volumes: [].into(),
        log_folder: world.folder.path().join("logs"),
        is_job: false,
        secret_files: Default::default(),
        sandbox: landfast_target::Sandbox::default(),
        container: landfast_target::ContainerOptions::default(),
    };
    let fence = landfast_types::Fence {
        generation: platform.shared().generation,
        revision: 0,
    };
    let started = world.target.start(fence, &stray).await;
    started.expect("it starts");
    platform.sweep().await;
    let (real, wanted) = world.running(&platform).await;
    assert_eq!(real, wanted);
    drop(journal);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_kept_of_an_instance_whose_end_is_recorded() {
    let (world, platform, journal) = serving(&manifest("", "")).await;
    let id = only_instance(&platform);
    world.target.crash(&id, Exit::Code { code: 1 });
    let replaced = |view: &landfast_engine::View| !view.state.instances.contains_key(&id.instance);
    assert!(reach(&platform, &journal, replaced).await);
    serves(&platform, &journal).await;
    let (real, wanted) = world.running(&platform).await;
    assert_eq!(real, wanted, "the target lists what it has not forgotten");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_goes_on_under_the_next_server() {
    let jobs = r#"
[jobs.report]
artifact = "program"
command = ["/bin/true", "sleep=1500"]
timeout = "20s"
"#;
    let (world, platform, journal) = serving(&manifest("", jobs)).await;
    let run = platform.run_job(&scope(), &report()).await;
    let run = run.expect("it begins");
    sleep(Duration::from_millis(200)).await;
    let (platform, _journal) = another_life(&world, platform, &journal).await;
    let again = platform.run_job(&scope(), &report()).await;
    assert!(
        matches!(again, Err(RunError::Begin(jobs::BeginError::Busy { number, .. })) if number == run.number),
        "{again:?}"
    );
    let record = ended(&platform, run.number).await;
    assert_eq!(record.exit, Some(Exit::Code { code: 0 }));
    assert_eq!(world.starts("job-"), 1);
    let (real, wanted) = world.running(&platform).await;
    assert_eq!(real, wanted, "it is forgotten once its end is recorded");
    let again = platform.run_job(&scope(), &report()).await;
    assert_eq!(again.expect("the way is free").number, run.number + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_timeout_holds_under_the_next_server() {
    let jobs = r#"
[jobs.report]
artifact = "program"
command = ["/bin/true", "serve"]
timeout = "1s"
"#;
    let (world, platform, journal) = serving(&manifest("", jobs)).await;
    let run = platform.run_job(&scope(), &report()).await;
    let run = run.expect("it begins");
    sleep(Duration::from_millis(100)).await;
    let (platform, _journal) = another_life(&world, platform, &journal).await;
    let record = ended(&platform, run.number).await;
    assert!(record.timed_out, "{record:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_run_outlives_a_full_disk() {
    let jobs = r#"
[jobs.report]
artifact = "program"
command = ["/bin/true", "sleep=200", "exit=7"]
"#;
    let (world, platform, journal) = serving(&manifest("", jobs)).await;
    let run = platform.run_job(&scope(), &report()).await;
    let run = run.expect("it begins");
    journal.broken.store(true, Ordering::SeqCst);
    sleep(Duration::from_millis(600)).await;
    let listed = world.target.list().await.expect("it lists");
    assert!(
        listed.iter().any(|each| each.id.instance == run.instance),
        "only the target knows how it ended"
    );
    journal.broken.store(false, Ordering::SeqCst);
    let record = ended(&platform, run.number).await;
    assert_eq!(record.exit, Some(Exit::Code { code: 7 }));
}

const SMOKE: &str = r#"
[jobs.smoke]
artifact = "program"
command = ["/bin/true", "WORDS"]
when = "gate:smoke"
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gate_takes_up_the_run_it_began() {
    let world = World::new().await;
    let (platform, journal) = world.server(u64::MAX, false).await;
    let manifest = manifest("\"smoke\"", &SMOKE.replace("WORDS", "sleep=1500"));
    let deployed = platform.deploy(world.order(1, &manifest)).await;
    deployed.expect("it is taken");
    assert!(reach(&platform, &journal, |_| world.starts("job-smoke") == 1).await);
    let (platform, journal) = another_life(&world, platform, &journal).await;
    serves(&platform, &journal).await;
    assert_eq!(world.starts("job-smoke"), 1, "one run, two lives");
    let record = ended(&platform, 1).await;
    assert_eq!(record.exit, Some(Exit::Code { code: 0 }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_ends_with_its_gate() {
    let (world, platform, journal) = serving(&manifest("", "")).await;
    let manifest = manifest("\"smoke\"", &SMOKE.replace("WORDS", "serve"));
    let deployed = platform.deploy(world.order(2, &manifest)).await;
    deployed.expect("it is taken");
    assert!(reach(&platform, &journal, |_| world.starts("job-smoke") == 1).await);
    let abort = Input::Abort {
        by: "test".into(),
        reason: "a test".into(),
    };
    let aborted = platform.command(&scope(), abort).await;
    aborted.expect("it is taken");
    let record = ended(&platform, 1).await;
    assert!(record.cancelled, "{record:?}");
    serves(&platform, &journal).await;
    let (real, wanted) = world.running(&platform).await;
    assert_eq!(real, wanted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schedule_follows_the_wall_clock_one_run_at_a_time() {
    let jobs = r#"
[jobs.report]
artifact = "program"
command = ["/bin/true", "sleep=6000"]
when = "* * * * * UTC"
"#;
    let world = World::new().await;
    let before_the_minute = || {
        #[expect(clippy::disallowed_methods, reason = "the test sets the clock by it")]
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let into = now.expect("it is later").as_millis() % 60_000;
        // A day ahead, and a second before a full minute.
        let ahead = 86_400_000 + 60_000 + 59_000 - u64::try_from(into).expect("it is small");
        world.wall_ahead.store(ahead, Ordering::SeqCst);
    };
    before_the_minute();
    let (platform, journal) = world.server(u64::MAX, false).await;
    let manifest = manifest("", jobs);
    let deployed = platform.deploy(world.order(1, &manifest)).await;
    deployed.expect("it is taken");
    assert!(reach(&platform, &journal, |_| world.starts("job-report") == 1).await);
    before_the_minute();
    let (platform, _journal) = another_life(&world, platform, &journal).await;
    sleep(Duration::from_millis(2_000)).await;
    assert_eq!(
        world.starts("job-report"),
        1,
        "the run before has not ended"
    );
    let record = ended(&platform, 1).await;
    assert_eq!(record.exit, Some(Exit::Code { code: 0 }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_is_not_in_the_artifact_makes_no_release() {
    let world = World::new().await;
    let (platform, _journal) = world.server(u64::MAX, false).await;
    let manifest = manifest("", "").replace("/bin/true", "./shop");
    let refused = platform.deploy(world.order(1, &manifest)).await;
    assert!(
        matches!(&refused, Err(DeployError::Refused(refusals)) if refusals[0].code == "command-missing"),
        "{refused:?}"
    );
    assert!(platform.environment(&scope()).is_none(), "nothing was made");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_is_refused_while_the_journal_takes_nothing() {
    let (world, platform, journal) = serving(&manifest("", "")).await;
    let id = only_instance(&platform);
    journal.full.store(true, Ordering::SeqCst);
    world.target.crash(&id, Exit::Code { code: 1 });
    sleep(Duration::from_millis(300)).await;
    let scope = scope();
    let commanded = platform.command(&scope, Input::Stop);
    let answer = tokio::time::timeout(Duration::from_secs(60), commanded).await;
    let answer = answer.expect("it does not hang");
    assert!(
        matches!(answer, Err(CommandError::Journal(_))),
        "{answer:?}"
    );
    journal.full.store(false, Ordering::SeqCst);
    // What happened meanwhile was kept.
    let replaced = |view: &landfast_engine::View| !view.state.instances.contains_key(&id.instance);
    assert!(reach(&platform, &journal, replaced).await);
    serves(&platform, &journal).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_environment_that_cannot_be_read_back_does_not_stop_the_others() {
    let (world, platform, journal) = serving(&manifest("", "")).await;
    let staging = landfast_types::Scope {
        environment: "staging".parse().expect("a name"),
        ..scope()
    };
    let stream = landfast_engine::stream_of(&staging);
    let at = landfast_types::Timestamp::EPOCH;
    let record = NewRecord::json("of-the-future", 9, at, &1).expect("it is JSON");
    let appended = journal.inner.append(&stream, 0, &[record]);
    appended.expect("it is taken");
    // What the proxy has of it stays, also when others publish.
    let table = world.proxy.table();
    let text = serde_json::to_string(&table).expect("it is JSON");
    let text = text.replace("shop/production", "shop/staging");
    let folder = world.folder.path().join("proxy");
    std::fs::create_dir(&folder).expect("made");
    std::fs::write(folder.join("routes.json"), text).expect("written");
    let (platform, journal) = another_life(&world, platform, &journal).await;
    serves(&platform, &journal).await;
    let scope = scope();
    let restarted = platform.command(&scope, Input::Restart { by: "test".into() });
    restarted.await.expect("it is taken");
    assert!(reach(&platform, &journal, |view| view.state.rollout.is_none()).await);
    let routes = world.proxy.table().routes;
    let scopes: Vec<_> = routes.iter().map(|route| &route.service.scope).collect();
    assert_eq!(scopes, [&scope, &staging]);
    assert!(platform.environment(&staging).is_none());
    let trouble = platform.trouble(&staging).expect("it is said");
    assert!(trouble.contains("newer Landfast"), "{trouble}");
    let mut order = world.order(2, &manifest("", ""));
    order.spec.environment = staging.environment;
    let refused = platform.deploy(order).await;
    assert!(
        matches!(refused, Err(DeployError::Unreadable(_))),
        "{refused:?}"
    );
}
