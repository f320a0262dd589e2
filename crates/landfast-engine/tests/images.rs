//! Releases of images: what they pin, where they go back to, what is kept, and a daemon that goes away meanwhile.

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use landfast_engine::{DeployError, DeployOrder, Deployed, ImagesError, Platform, SecretCall};
use landfast_journal::Journal;
use landfast_rollout::Input;
use landfast_secrets::Origin;
use landfast_target::{Exit, ImageError, ImageFacts, ImageHealth, InstanceRef};
use landfast_types::{Digest, ImageId, ReleaseId, Secret, Timestamp};
use tokio::{sync::mpsc, time::sleep};

use crate::common::{Mortal, World, reach, scope};

const NAME: &str = "registry.test/shop:1";

fn manifest(service: &str) -> String {
    format!(
        r#"
app = "shop"
[services.api]
image = "{NAME}"
port = 80
replicas = 1
health = {{ ready = "tcp", interval = "100ms" }}
{service}
[routes.public]
host = "shop.example"
service = "api"
[deploy]
strategy = "rolling"
standby = "50ms"
min_ready = "50ms"
healthy_deadline = "20s"
progress_deadline = "30s"
gates = ["preflight"]
"#
    )
}

fn image(number: u32) -> ImageId {
    ImageId(Digest::of(&number.to_be_bytes()))
}

/// Puts an image into the registry under the name the manifest has.
fn offer(world: &World, number: u32) {
    let name = NAME.parse().expect("a name");
    let facts = ImageFacts {
        command: vec!["/app".into()],
        ..ImageFacts::default()
    };
    world.target.shelf().offer(&name, image(number), facts);
}

/// The order of a deploy, with what the images mean now.
async fn order(
    world: &World,
    platform: &Platform,
    manifest: &str,
) -> Result<DeployOrder, ImagesError> {
    let mut order = world.order(1, manifest);
    let nothing = BTreeMap::new();
    let resolved = platform.resolve_images(&order.spec, &nothing, None);
    let resolved = resolved.await?.into_iter();
    order.images = resolved.map(|(key, one)| (key, one.image)).collect();
    Ok(order)
}

async fn deploy(world: &World, platform: &Platform, journal: &Mortal, manifest: &str) -> ReleaseId {
    let order = order(world, platform, manifest).await.expect("resolved");
    let deployed = platform.deploy(order).await.expect("it is taken");
    let Deployed::Begun { release, .. } = deployed else {
        panic!("{deployed:?}");
    };
    serves(platform, journal, release).await;
    release
}

async fn serves(platform: &Platform, journal: &Mortal, release: ReleaseId) {
    let serves = reach(platform, journal, |view| {
        let mut instances = view.state.instances.values();
        view.state.rollout.is_none()
            && view.state.serving == Some(release)
            && view.state.instances.len() == 1
            && instances.all(|instance| instance.is_serving())
    });
    assert!(serves.await);
}

fn only_instance(platform: &Platform) -> InstanceRef {
    let view = platform.environment(&scope()).expect("it was deployed");
    let instance = view.state.instances.keys().next().expect("one runs");
    InstanceRef {
        scope: scope(),
        instance: instance.clone(),
    }
}

async fn serving(manifest: &str) -> (World, Arc<Platform>, Arc<Mortal>) {
    let world = World::new().await;
    let (platform, journal) = world.server(u64::MAX, false).await;
    offer(&world, 1);
    deploy(&world, &platform, &journal, manifest).await;
    (world, platform, journal)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_keeps_what_its_image_meant() {
    let (world, platform, journal) = serving(&manifest("")).await;
    // The same again is no other release; the same name with another image is.
    let same = order(&world, &platform, &manifest(""))
        .await
        .expect("resolved");
    assert!(matches!(
        platform.deploy(same).await.expect("it is taken"),
        Deployed::Unchanged {
            release: ReleaseId(1)
        }
    ));
    offer(&world, 2);
    let second = deploy(&world, &platform, &journal, &manifest("")).await;
    let view = platform.environment(&scope()).expect("it was deployed");
    let pinned = |release| &view.bodies[&ReleaseId(release)].images[NAME];
    assert_eq!((pinned(1).id, pinned(2).id), (image(1), image(2)));
    let at = pinned(1).pinned.as_ref().expect("a registry has it");
    assert!(at.to_string().starts_with("registry.test/shop@sha256:"));
    assert_eq!(second, ReleaseId(2));
    // Somebody cleared it away meanwhile: the way back brings it.
    world.target.shelf().remove(&image(1));
    let name = NAME.parse().expect("a name");
    world
        .target
        .shelf()
        .offer(&name, image(1), ImageFacts::default());
    let back = Input::Rollback {
        to: None,
        by: "test".into(),
    };
    platform.command(&scope(), back).await.expect("it is taken");
    serves(&platform, &journal, ReleaseId(1)).await;
    assert!(world.target.shelf().has(&image(1)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollback_to_an_image_that_is_nowhere_changes_nothing() {
    let (world, platform, journal) = serving(&manifest("")).await;
    offer(&world, 2);
    deploy(&world, &platform, &journal, &manifest("")).await;
    world.target.shelf().remove(&image(1));
    let back = Input::Rollback {
        to: None,
        by: "test".into(),
    };
    let refused = platform.command(&scope(), back).await;
    let refused = refused.expect_err("it cannot serve again").to_string();
    assert_eq!(refused, "the release cannot run again");
    let view = platform.environment(&scope()).expect("it was deployed");
    assert!(view.state.rollout.is_none());
    assert_eq!(view.state.serving, Some(ReleaseId(2)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_five_images_stay_and_where_a_rollback_leads() {
    let (world, platform, journal) = serving(&manifest("")).await;
    for number in 2..=8 {
        offer(&world, number);
        deploy(&world, &platform, &journal, &manifest("")).await;
    }
    // The ones held for a deploy that has not come are let go of later; those of now are all of these.
    let here = |number| world.target.shelf().has(&image(number));
    let kept: Vec<u32> = (1..=8).filter(|number| here(*number)).collect();
    assert_eq!(kept, [1, 2, 3, 4, 5, 6, 7, 8], "held for an hour");
    // Another server holds nothing for a deploy of before.
    journal.life.end();
    drop(platform);
    let (platform, journal) = world.server(u64::MAX, false).await;
    offer(&world, 9);
    deploy(&world, &platform, &journal, &manifest("")).await;
    let kept: Vec<u32> = (1..=9).filter(|number| here(*number)).collect();
    assert_eq!(kept, [5, 6, 7, 8, 9]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_goes_away_in_a_rollout_ends_nothing() {
    let (world, platform, journal) = serving(&manifest("")).await;
    let first = only_instance(&platform);
    offer(&world, 2);
    let order = order(&world, &platform, &manifest(""))
        .await
        .expect("resolved");
    platform.deploy(order).await.expect("it is taken");
    // Before its first instance, perhaps before its first gate.
    world.target.lose_daemon(Some("it was stopped"));
    sleep(Duration::from_millis(1_500)).await;
    let view = platform.environment(&scope()).expect("it was deployed");
    assert!(view.state.instances.contains_key(&first.instance));
    let rollout = view.state.rollout.as_ref().expect("it waits");
    assert!(rollout.is_on_the_way(), "{}", rollout.phase_words());
    world.target.lose_daemon(None);
    serves(&platform, &journal, ReleaseId(2)).await;
    assert!(world.starts("api.r2") >= 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_that_somebody_removed_comes_back_with_the_next_instance() {
    let (world, platform, journal) = serving(&manifest("")).await;
    let first = only_instance(&platform);
    world.target.shelf().remove(&image(1));
    world.target.crash(&first, Exit::Code { code: 1 });
    let replaced = reach(&platform, &journal, |view| {
        let mut instances = view.state.instances.iter();
        instances.any(|(id, one)| *id != first.instance && one.is_serving())
    });
    assert!(replaced.await);
    assert!(world.target.shelf().has(&image(1)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_check_of_an_image_decides_where_it_is_asked() {
    let asks = "health = { ready = \"image\", interval = \"100ms\", unhealthy_after = 1 }";
    let manifest = manifest("").replace("health = { ready = \"tcp\", interval = \"100ms\" }", asks);
    let (world, platform, journal) = serving(&manifest).await;
    let id = only_instance(&platform);
    world.target.set_health(
        &id,
        ImageHealth::Failing {
            output: "no database".into(),
        },
    );
    let told = reach(&platform, &journal, |view| {
        let instance = view.state.instances.get(&id.instance);
        let reason = instance.and_then(|instance| instance.not_ready.clone());
        reason.is_some_and(|reason| reason.contains("no database"))
    });
    assert!(told.await);
    // What cannot be asked is taken as it was.
    world.target.set_health(&id, ImageHealth::Passing);
    serves(&platform, &journal, ReleaseId(1)).await;
    world.target.lose_daemon(Some("it was stopped"));
    sleep(Duration::from_millis(500)).await;
    let view = platform.environment(&scope()).expect("it was deployed");
    assert!(view.state.instances[&id.instance].is_serving());
    world.target.lose_daemon(None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_to_be_had_is_told_before_anything_is_changed() {
    let world = World::new().await;
    let (platform, _journal) = world.server(u64::MAX, false).await;
    let missing = order(&world, &platform, &manifest("")).await;
    let missing = missing.expect_err("no registry has it");
    assert!(matches!(
        missing,
        ImagesError::Image(ImageError::NotFound { .. })
    ));
    assert!(missing.hint().is_some());
    // A deploy that names an image that is not here, or none.
    let bare = world.order(1, &manifest(""));
    let refused = platform.deploy(bare).await;
    assert!(matches!(
        refused,
        Err(DeployError::Images(ImagesError::NotBuilt { .. }))
    ));
    assert!(platform.environment(&scope()).is_none());
    // What is built comes under the name it was given.
    let built = manifest("").replace(&format!("image = \"{NAME}\""), "build = \".\"");
    let spec = world.order(1, &built).spec;
    let nothing = platform.resolve_images(&spec, &BTreeMap::new(), None).await;
    assert!(matches!(nothing, Err(ImagesError::NotBuilt { .. })));
    let tag = "landfast/shop/api:1".parse().expect("a name");
    let named = BTreeMap::from([("build:.".to_owned(), tag)]);
    let elsewhere = platform.resolve_images(&spec, &named, None).await;
    assert!(matches!(elsewhere, Err(ImagesError::BuiltElsewhere { .. })));
    let shelf = world.target.shelf();
    shelf.build(&named["build:."], image(7), ImageFacts::default());
    let (sender, mut told) = mpsc::channel(16);
    let resolved = platform.resolve_images(&spec, &named, Some(sender)).await;
    let resolved = resolved.expect("it is here");
    assert_eq!(resolved["build:."].image.id, image(7));
    assert!(told.recv().await.is_none(), "nothing was pulled");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn progress_is_told_under_the_name_in_the_manifest() {
    let world = World::new().await;
    let (platform, _journal) = world.server(u64::MAX, false).await;
    offer(&world, 1);
    let spec = world.order(1, &manifest("")).spec;
    let (sender, mut told) = mpsc::channel(16);
    let resolved = platform
        .resolve_images(&spec, &BTreeMap::new(), Some(sender))
        .await
        .expect("the registry has it");
    assert!(resolved[NAME].was_pulled);
    let first = told.recv().await.expect("it was pulled");
    assert_eq!(first.image, NAME);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_comes_from_the_secrets_the_manifest_names() {
    let world = World::new().await;
    let (platform, journal) = world.server(u64::MAX, false).await;
    offer(&world, 1);
    let login = "[registries.\"registry.test\"]\nuser_secret = \"USER_NAME\"\npassword_secret = \"TOKEN\"\n";
    let text = manifest("") + login;
    let missing = order(&world, &platform, &text)
        .await
        .expect_err("no secret");
    assert!(
        matches!(missing, ImagesError::LoginMissing { .. }),
        "{missing}"
    );
    let values = ["USER_NAME", "TOKEN"].map(|name| (name.to_owned(), Secret::new(name.to_owned())));
    let call = SecretCall {
        journal: &(journal as Arc<dyn Journal>),
        now: Timestamp::from_micros(1),
        scope: &scope(),
        by: "somebody",
    };
    let keeper = &platform.shared().secrets;
    let set = keeper.set(&call, &values, &Origin::Set, false, &|_| BTreeSet::new());
    set.expect("they are taken");
    order(&world, &platform, &text).await.expect("resolved");
}
