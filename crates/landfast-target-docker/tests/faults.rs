//! A daemon that dies, hangs or forgets, and strangers on it: nothing is said that is not so, and all is well when the
//! cause ends.

mod common;

use std::{sync::Arc, time::Duration};

use landfast_target::{
    Content, Exit, InstanceSpec, ObservedState, StartError, Target as _, TargetError,
};
use landfast_target_docker::{DockerSettings, DockerTarget, remembered};
use landfast_testbed::DockerdOptions;
use landfast_types::{Digest, ImageId};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::Instant,
};

use crate::common::{World, fence, id, id_of, until};

fn hasty(world: &World) -> Arc<DockerTarget> {
    let settings = DockerSettings {
        call_wait_max: Duration::from_secs(2),
        ..world.settings()
    };
    Arc::new(DockerTarget::open(settings).expect("a state folder"))
}

/// Waits for an end beside the test.
#[expect(
    clippy::disallowed_methods,
    reason = "its handle is kept and waited for"
)]
fn waiter(
    target: Arc<DockerTarget>,
    number: u64,
) -> tokio::task::JoinHandle<Result<Exit, TargetError>> {
    tokio::spawn(async move { target.wait(&id(number)).await })
}

async fn answers(address: std::net::SocketAddr) -> bool {
    let Ok(mut stream) = tokio::net::TcpStream::connect(address).await else {
        return false;
    };
    let mut answer = String::new();
    stream.write_all(b"x").await.is_ok()
        && stream.read_to_string(&mut answer).await.is_ok()
        && !answer.is_empty()
}

/// Waits until what is observed is what holds.
async fn observed(target: &DockerTarget, number: u64) -> ObservedState {
    for _ in 0..1_000 {
        if let Ok(Some(seen)) = target.observe(&id(number)).await {
            return seen.state;
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    panic!("the daemon never answered again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_live_on_while_their_daemon_is_dead() {
    let Some(mut world) = World::new() else {
        return;
    };
    let target = world.target();
    let listening = InstanceSpec {
        listens: true,
        ..world.spec(1, &["listen", "serve"])
    };
    let started = target.start(fence(1), &listening).await.unwrap();
    let address = started.address.unwrap();
    world.start(&target, 2, &["sleep=3000", "exit=7"]).await;
    world
        .start(
            &target,
            3,
            &["out=before", "sleep=2500", "out=after", "serve"],
        )
        .await;
    until("it listens", || {
        std::net::TcpStream::connect(address).is_ok()
    })
    .await;
    let waiting = waiter(Arc::clone(&target), 2);
    world.dockerd.kill();
    // Traffic goes on; nothing is said of what cannot be known, and what was never here is known not to be.
    assert!(answers(address).await);
    let told = target.observe(&id(1)).await.unwrap_err();
    assert!(
        matches!(&told, TargetError::Io { .. }) && told.to_string().contains("Docker at unix://"),
        "{told}"
    );
    assert_eq!(target.observe(&id(9)).await.unwrap(), None);
    assert_eq!(target.list().await.unwrap(), []);
    let outage = target.outages().pop().unwrap();
    assert!(
        outage.what.contains("docker.sock") && !outage.reason.is_empty(),
        "{outage:?}"
    );
    let refused = target
        .start(fence(2), &world.spec(4, &["serve"]))
        .await
        .unwrap_err();
    assert!(refused.is_retryable(), "{refused}");
    assert!(target.stop(fence(2), &id(1), Duration::ZERO).await.is_err());
    // One ends while nobody looks.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(answers(address).await);
    world.dockerd.boot().unwrap();
    assert_eq!(observed(&target, 1).await, ObservedState::Running);
    let exit = waiting.await.unwrap().unwrap();
    assert_eq!(
        exit,
        Exit::Code { code: 7 },
        "its end is told when the daemon is back"
    );
    assert_eq!(target.outages(), []);
    until("what it wrote meanwhile is read", || {
        world.log(3).contains(&"o after".to_owned())
    })
    .await;
    assert_eq!(world.log(3), ["o before", "o after"]);
    assert!(answers(address).await, "it was never touched");
    let again = target
        .start(fence(2), &world.spec(4, &["serve"]))
        .await
        .unwrap();
    assert_eq!(again.state, ObservedState::Running);
    assert_eq!(target.list().await.unwrap().len(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_hangs_is_given_up_on_and_nothing_is_dead() {
    let Some(world) = World::new() else { return };
    let target = hasty(&world);
    world.start(&target, 1, &["serve"]).await;
    world.start(&target, 2, &["sleep=1500", "exit=5"]).await;
    let waiting = waiter(Arc::clone(&target), 2);
    world.dockerd.pause();
    let told = target.observe(&id(1)).await.unwrap_err();
    let chain = format!("{told}: {}", std::error::Error::source(&told).unwrap());
    assert!(chain.contains("did not answer within 2s"), "{chain}");
    let stopped = target.stop(fence(2), &id(1), Duration::ZERO).await;
    assert!(stopped.is_err(), "{stopped:?}");
    assert_eq!(target.outages().len(), 1);
    // Who has many questions waits for one.
    let begun = Instant::now();
    for _ in 0..30 {
        target.observe(&id(1)).await.unwrap_err();
    }
    assert!(begun.elapsed() < Duration::from_secs(30));
    assert!(!waiting.is_finished(), "an end nobody saw is not told");
    world.dockerd.resume();
    assert_eq!(waiting.await.unwrap().unwrap(), Exit::Code { code: 5 });
    // The order to stop it was given, and may have been carried out late.
    let state = observed(&target, 1).await;
    let killed = Exit::Signal {
        signal: 9,
        core_dumped: false,
    };
    assert_eq!(
        target.stop(fence(2), &id(1), Duration::ZERO).await.unwrap(),
        killed,
        "{state:?}"
    );
    assert_eq!(target.outages(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_live_restore_the_end_of_the_daemon_is_theirs_and_is_told() {
    let options = DockerdOptions {
        live_restore: false,
        ..Default::default()
    };
    let Some(mut world) = World::with(options) else {
        return;
    };
    let target = world.target();
    assert!(!target.facts().await.unwrap().has_live_restore);
    world.start(&target, 1, &["serve"]).await;
    world.dockerd.stop();
    world.dockerd.boot().unwrap();
    let exit = target.wait(&id(1)).await.unwrap();
    assert!(!matches!(exit, Exit::Code { code: 0 }), "{exit:?}");
    assert!(matches!(
        observed(&target, 1).await,
        ObservedState::Exited { .. }
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_is_told_within_a_moment_and_a_removal_too() {
    let Some(world) = World::new() else { return };
    let target = world.target();
    for (number, order) in [(1, "kill"), (2, "rm --force")] {
        world.start(&target, number, &["serve"]).await;
        let waiting = waiter(Arc::clone(&target), number);
        // It is being waited for.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let name = world.dockerd.docker(&["ps", "--quiet"]).unwrap();
        let words: Vec<_> = order.split(' ').chain([name.as_str()]).collect();
        world.dockerd.docker(&words).unwrap();
        let begun = Instant::now();
        let exit = waiting.await.unwrap().unwrap();
        // Ten seconds are what it takes without events.
        assert!(begun.elapsed() < Duration::from_secs(8), "events are heard");
        let killed = matches!(exit, Exit::Signal { signal: 9, .. });
        // A container that is removed was killed before; who asks too late hears nothing of it.
        assert!(killed || number == 2 && exit == Exit::Unknown, "{exit:?}");
        let seen = target.observe(&id(number)).await.unwrap().unwrap();
        assert!(matches!(seen.state, ObservedState::Exited { .. }));
        let again = target
            .start(fence(1), &world.spec(number, &["serve"]))
            .await
            .unwrap();
        assert_eq!(again.state, seen.state, "an id is started once, ever");
    }
    target.forget(&id(2)).await.unwrap();
    assert_eq!(target.observe(&id(2)).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_that_is_gone_and_a_name_that_is_taken_are_named() {
    let Some(world) = World::new() else { return };
    let target = world.target();
    let gone = InstanceSpec {
        content: Content::Image(ImageId(Digest::of(b"gone"))),
        ..world.spec(1, &["serve"])
    };
    let refused = target.start(fence(1), &gone).await.unwrap_err();
    assert!(matches!(refused, StartError::ImageMissing(_)), "{refused}");
    let name = format!(
        "lf-{}.shop.production.api.r1.1",
        &target.host().as_str()[..8]
    );
    world
        .dockerd
        .docker(&["create", "--name", &name, "app:1", "/app", "serve"])
        .unwrap();
    let refused = target
        .start(fence(1), &world.spec(1, &["serve"]))
        .await
        .unwrap_err();
    assert!(
        matches!(&refused, StartError::NameTaken { .. }),
        "{refused}"
    );
    assert!(refused.to_string().contains(&name));
    // The stranger is left alone, and when it has left the instance starts.
    target.stop(fence(1), &id(7), Duration::ZERO).await.unwrap();
    target.forget(&id(1)).await.unwrap();
    assert_eq!(world.dockerd.docker(&["rm", &name]).unwrap(), name);
    world.start(&target, 1, &["serve"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_daemon_knows_nothing_of_what_runs() {
    let (Some(world), Some(other)) = (World::new(), World::new()) else {
        return;
    };
    let state = world.settings().state;
    let target = world.target();
    assert_eq!(remembered(&state).unwrap(), None);
    world.start(&target, 1, &["serve"]).await;
    drop(target);
    let here = world.settings().address;
    assert_eq!(remembered(&state).unwrap(), Some(here.clone()));
    // The next server is told of another daemon.
    let settings = DockerSettings {
        address: other.settings().address,
        ..world.settings()
    };
    let target = DockerTarget::open(settings).unwrap();
    let told = target.observe(&id(1)).await.unwrap_err();
    assert!(matches!(told, TargetError::Io { .. }), "{told}");
    let reason = target.outages().pop().unwrap().reason;
    assert!(
        reason.contains("another daemon answers") && reason.contains(&here.to_string()),
        "{reason}"
    );
    let refused = target.start(fence(2), &world.spec(2, &["serve"])).await;
    assert!(refused.unwrap_err().is_retryable());
    assert_eq!(other.dockerd.docker(&["ps", "--quiet"]).unwrap(), "");
    assert_eq!(remembered(&state).unwrap(), Some(here));
    drop(target);
    let target = world.target();
    assert_eq!(observed(&target, 1).await, ObservedState::Running);
    target.stop(fence(3), &id(1), Duration::ZERO).await.unwrap();
    assert_eq!(
        remembered(&state).unwrap(),
        None,
        "nothing runs there any more"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_landfasts_on_one_daemon_do_not_meet() {
    let Some(world) = World::new() else { return };
    let open = |state| Arc::new(DockerTarget::open(world.settings_in(state)).unwrap());
    let [one, two] = [open("one"), open("two")];
    let first = one
        .start(fence(1), &world.spec(1, &["serve"]))
        .await
        .unwrap();
    let second = two
        .start(fence(1), &world.spec(1, &["serve"]))
        .await
        .unwrap();
    assert_ne!(first.pid, second.pid);
    one.stop(fence(2), &id(1), Duration::ZERO).await.unwrap();
    one.forget(&id(1)).await.unwrap();
    assert_eq!(one.list().await.unwrap(), []);
    let listed = two.list().await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].state, ObservedState::Running);
    assert_eq!(
        two.exec(&id(1), vec!["/app".into()], Vec::new())
            .await
            .map(drop)
            .map_err(|error| error.to_string()),
        Ok(())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_was_cut_short_is_finished_by_the_next_server() {
    let Some(mut world) = World::new() else {
        return;
    };
    let target = world.target();
    world.start(&target, 1, &["serve"]).await;
    let record = world
        .folder
        .path()
        .join("state/docker/instances/shop.production.api.r1.1.json");
    let whole = std::fs::read_to_string(&record).unwrap();
    let mut cut: serde_json::Value = serde_json::from_str(&whole).unwrap();
    drop(target);
    // The server died between the start and its note of it.
    cut["started"] = serde_json::Value::Null;
    std::fs::write(&record, cut.to_string()).unwrap();
    let target = world.target();
    let found = target
        .start(fence(2), &world.spec(1, &["serve"]))
        .await
        .unwrap();
    assert_eq!(found.state, ObservedState::Running);
    let all = || {
        world
            .dockerd
            .docker(&["ps", "--all", "--quiet"])
            .unwrap()
            .lines()
            .count()
    };
    assert_eq!(all(), 1);
    // It died, and it is to be stopped instead.
    std::fs::write(&record, cut.to_string()).unwrap();
    let exit = target.stop(fence(3), &id(1), Duration::ZERO).await.unwrap();
    assert!(matches!(exit, Exit::Signal { signal: 9, .. }), "{exit:?}");
    target.forget(&id(1)).await.unwrap();
    assert_eq!(all(), 0);
    // What is to be stopped was never begun: a late order to start it does nothing.
    target
        .stop(fence(4), &id_of("shop", 2), Duration::ZERO)
        .await
        .unwrap();
    let late = target
        .start(fence(4), &world.spec(2, &["serve"]))
        .await
        .unwrap();
    assert!(matches!(
        late.state,
        ObservedState::Exited {
            exit: Exit::Unknown,
            ..
        }
    ));
    assert_eq!(all(), 0);
    world.dockerd.stop();
}
