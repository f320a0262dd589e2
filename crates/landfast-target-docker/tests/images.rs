//! Images from a registry of the test's own: resolved, pinned, brought back, refused, and let go of.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod common;

use std::{fs, time::Duration};

use landfast_target::{Content, ImageError, InstanceSpec, Pull, RegistryLogin, Target as _};
use landfast_testbed::{DockerdOptions, Registry};
use landfast_types::{ImageId, ImageReference, Secret};

use crate::common::{World, fence, id};

/// Pushes another image of the app, and takes every name of it from the daemon.
fn publish(world: &World, name: &ImageReference, line: &str) -> ImageId {
    let id = world.import(name.as_str(), &[line]);
    world
        .dockerd
        .docker(&["push", "--quiet", name.as_str()])
        .unwrap();
    world.dockerd.docker(&["rmi", name.as_str()]).unwrap();
    id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_is_followed_pinned_and_brought_back() {
    let Some(world) = World::new() else { return };
    let mut registry = Registry::start(&world.dockerd, false).unwrap();
    let target = world.target();
    let images = target.images().unwrap();
    let shop: ImageReference = format!("{}/team/shop:1", registry.address())
        .parse()
        .unwrap();
    // A layer that the daemon does not have.
    fs::write(world.folder.path().join("image/new"), "new").unwrap();
    let one = publish(&world, &shop, "ENV VERSION=1");
    let (progress, mut steps) = tokio::sync::mpsc::channel(1_000);
    let first = images
        .resolve(&shop, Pull::default(), None, Some(&progress))
        .await
        .unwrap();
    assert_eq!((first.image.id, first.was_pulled), (one, true));
    let pinned = first.image.pinned.clone().unwrap();
    assert!(
        pinned.is_same_name(&shop) && pinned.digest().is_some(),
        "{pinned}"
    );
    assert!(first.facts.size.0 > 0 && first.facts.platform.starts_with("linux/"));
    drop(progress);
    let mut words = Vec::new();
    while let Some(step) = steps.recv().await {
        words.push(step.status);
    }
    assert!(
        words.iter().any(|word| word.contains("Pull complete")),
        "{words:?}"
    );
    // Nothing newer: nothing is brought.
    let same = images
        .resolve(&shop, Pull::Newer, None, None)
        .await
        .unwrap();
    assert_eq!((same.image, same.was_pulled), (first.image.clone(), false));
    let two = publish_beside(&world, &shop);
    let kept = images
        .resolve(&shop, Pull::Missing, None, None)
        .await
        .unwrap();
    assert_eq!(kept.image.id, one, "the name is known here");
    let newer = images
        .resolve(&shop, Pull::Newer, None, None)
        .await
        .unwrap();
    assert_eq!((newer.image.id, newer.was_pulled), (two, true));
    // By its digest it is what it was, and it runs.
    let exact = images
        .resolve(&pinned, Pull::Newer, None, None)
        .await
        .unwrap();
    assert_eq!(exact.image.id, one);
    let spec = InstanceSpec {
        content: Content::Image(one),
        ..world.spec(1, &["env=VERSION"])
    };
    assert_eq!(world.lines(&target, &spec).await, ["1"]);
    // The registry is away: what is here is taken, and it is said why.
    registry.kill();
    let local = images
        .resolve(&shop, Pull::Newer, None, None)
        .await
        .unwrap();
    assert_eq!(local.image.id, two);
    assert!(local.registry_said.unwrap().contains("cannot be reached"));
    let strict = images
        .resolve(&shop, Pull::Always, None, None)
        .await
        .unwrap_err();
    assert!(
        matches!(strict, ImageError::RegistryAway { .. }) && strict.is_retryable(),
        "{strict}"
    );
    // What runs stays, whoever lets go of it.
    assert_eq!(images.collect(&[two].into()).await.unwrap(), []);
    target.forget(&id(1)).await.unwrap();
    assert_eq!(images.collect(&[two].into()).await.unwrap(), [one]);
    assert_eq!(images.inspect(&one).await.unwrap(), None);
    assert!(images.inspect(&two).await.unwrap().is_some());
    // A release that goes back brings it back.
    let gone = images.ensure(&first.image, None, None).await.unwrap_err();
    assert!(gone.is_retryable(), "{gone}");
    registry.boot().unwrap();
    images.ensure(&first.image, None, None).await.unwrap();
    assert!(images.inspect(&one).await.unwrap().is_some());
    // Our names keep it from a clean-up of somebody else.
    world
        .dockerd
        .docker(&["image", "prune", "--force"])
        .unwrap();
    assert!(images.inspect(&one).await.unwrap().is_some());
    let unknown: ImageReference = format!("{}/team/none:1", registry.address())
        .parse()
        .unwrap();
    let unknown = images
        .resolve(&unknown, Pull::Newer, None, None)
        .await
        .unwrap_err();
    assert!(matches!(unknown, ImageError::NotFound { .. }), "{unknown}");
}

/// A newer image under the same name, pushed without changing what the name means here.
fn publish_beside(world: &World, name: &ImageReference) -> ImageId {
    let id = world.import("beside:1", &["ENV VERSION=2"]);
    let before = world
        .dockerd
        .docker(&["image", "inspect", "--format", "{{.Id}}", name.as_str()])
        .unwrap();
    world
        .dockerd
        .docker(&["tag", "beside:1", name.as_str()])
        .unwrap();
    world
        .dockerd
        .docker(&["push", "--quiet", name.as_str()])
        .unwrap();
    world
        .dockerd
        .docker(&["tag", &before, name.as_str()])
        .unwrap();
    world.dockerd.docker(&["rmi", "beside:1"]).unwrap();
    id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_asks_is_told_who_asks() {
    let Some(world) = World::new() else { return };
    let registry = Registry::start(&world.dockerd, true).unwrap();
    let (user, password) = Registry::LOGIN;
    let address = registry.address();
    world
        .dockerd
        .docker(&["login", "--username", user, "--password", password, address])
        .unwrap();
    let shop: ImageReference = format!("{address}/shop:1").parse().unwrap();
    let expected = publish(&world, &shop, "ENV VERSION=1");
    let target = world.target();
    let images = target.images().unwrap();
    let refused = images
        .resolve(&shop, Pull::Newer, None, None)
        .await
        .unwrap_err();
    assert!(matches!(refused, ImageError::Refused { .. }), "{refused:?}");
    let login = |password: &str| RegistryLogin {
        user: user.to_owned(),
        password: Secret::new(password.to_owned()),
    };
    // Bytes that the two alphabets of base64 write differently.
    let wrong = images
        .resolve(&shop, Pull::Newer, Some(&login("~~~???>>>")), None)
        .await
        .unwrap_err();
    assert!(!wrong.to_string().contains("~~~"), "{wrong}");
    let given = images
        .resolve(&shop, Pull::Newer, Some(&login(password)), None)
        .await
        .unwrap();
    assert_eq!(given.image.id, expected);
    assert_eq!(images.collect(&[].into()).await.unwrap(), [expected]);
    // What Docker's own client keeps on this host does, too.
    let folder = world.settings().docker_config.unwrap();
    fs::create_dir_all(&folder).unwrap();
    // `printf 'testbed:testbed-secret' | base64`
    let auth = "dGVzdGJlZDp0ZXN0YmVkLXNlY3JldA==";
    fs::write(
        folder.join("config.json"),
        format!("{{\"auths\":{{\"{address}\":{{\"auth\":\"{auth}\"}}}}}}"),
    )
    .unwrap();
    let found = images
        .resolve(&shop, Pull::Newer, None, None)
        .await
        .unwrap();
    assert_eq!((found.image.id, found.was_pulled), (expected, true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_made_here_is_kept_and_let_go_by_its_name() {
    let Some(world) = World::new() else { return };
    let target = world.target();
    let images = target.images().unwrap();
    let built: ImageReference = "landfast/shop/api:0123456789ab".parse().unwrap();
    let made = world.import(built.as_str(), &["ENV MADE=here"]);
    let claimed = images.claim(&built).await.unwrap();
    assert_eq!(
        (claimed.image.id, claimed.image.pinned.clone()),
        (made, None)
    );
    let theirs: ImageReference = "theirs:1".parse().unwrap();
    let other = world.import(theirs.as_str(), &["ENV MADE=there"]);
    let resolved = images
        .resolve(&theirs, Pull::Never, None, None)
        .await
        .unwrap();
    assert_eq!(resolved.image.id, other);
    let mut gone = images.collect(&[].into()).await.unwrap();
    gone.sort();
    let mut expected = [made, other];
    expected.sort();
    assert_eq!(gone, expected);
    // Ours is gone; what somebody else has named is theirs.
    assert_eq!(images.inspect(&made).await.unwrap(), None);
    assert!(images.inspect(&other).await.unwrap().is_some());
    let names = world
        .dockerd
        .docker(&["images", "--format", "{{.Repository}}:{{.Tag}}"])
        .unwrap();
    assert!(!names.contains("landfast/"), "{names}");
    // A build under a name that is not ours to take.
    images.claim(&theirs).await.unwrap();
    assert_eq!(images.collect(&[].into()).await.unwrap(), [other]);
    assert!(images.inspect(&other).await.unwrap().is_some());
    let lost = images.ensure(&claimed.image, None, None).await.unwrap_err();
    assert!(
        matches!(&lost, ImageError::NotFound { detail, .. } if detail.contains("build it again")),
        "{lost}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_is_full_is_named_and_nothing_else_suffers() {
    let Some(world) = World::new() else { return };
    let small = DockerdOptions {
        disk_bytes: Some(48 << 20),
        ..Default::default()
    };
    let Some(little) = World::with(small) else {
        return;
    };
    let registry = Registry::start(&world.dockerd, false).unwrap();
    let large: ImageReference = format!("{}/large:1", registry.address()).parse().unwrap();
    let content = world.folder.path().join("image/large");
    // Nothing that shrinks on its way.
    let noise: Vec<u8> = (0..96_u64 << 17)
        .flat_map(|number| {
            number
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .rotate_left(17)
                .wrapping_mul(0xd6e8_feb8_6659_fd93)
                .to_le_bytes()
        })
        .collect();
    fs::write(content, noise).unwrap();
    publish(&world, &large, "ENV VERSION=1");
    let target = little.target();
    little.start(&target, 1, &["serve"]).await;
    let full = target
        .images()
        .unwrap()
        .resolve(&large, Pull::Newer, None, None)
        .await
        .unwrap_err();
    assert!(matches!(&full, ImageError::DiskFull { .. }), "{full:?}");
    assert!(!full.is_retryable());
    let running = target.observe(&id(1)).await.unwrap().unwrap();
    assert_eq!(running.state, landfast_target::ObservedState::Running);
    target.stop(fence(2), &id(1), Duration::ZERO).await.unwrap();
}
