//! New versions of secrets: what releases that are gone back to are given, and which releases are kept.

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use landfast_engine::{NewValue, Platform, SecretCall};
use landfast_journal::Journal;
use landfast_rollout::Input;
use landfast_secrets::Origin;
use landfast_target::InstanceSpec;
use landfast_types::{ReleaseId, Secret, Timestamp};

use crate::common::{Mortal, World, reach, scope};

const MANIFEST: &str = r#"
app = "shop"
[services.api]
artifact = "program"
command = ["/bin/true", "serve"]
port = 80
replicas = 1
uses = ["main"]
health = { ready = "tcp", interval = "100ms" }
[stores.main]
engine = "redis"
external = { url_secret = "DB_URL" }
[routes.public]
host = "shop.example"
service = "api"
[deploy]
strategy = "rolling"
standby = "100ms"
min_ready = "50ms"
healthy_deadline = "10s"
progress_deadline = "20s"
gates = []
"#;

struct Shop {
    world: World,
    platform: Arc<Platform>,
    journal: Arc<Mortal>,
    /// Every instance that was started, in order.
    started: Arc<Mutex<Vec<InstanceSpec>>>,
}

impl Shop {
    async fn new() -> Self {
        let world = World::new().await;
        let (platform, journal) = world.server(u64::MAX, false).await;
        let started: Arc<Mutex<Vec<InstanceSpec>>> = Arc::default();
        let (seen, address) = (Arc::clone(&started), world.address);
        world.target.addresses(move |spec| {
            seen.lock().expect("nobody panics").push(spec.clone());
            address
        });
        Self {
            world,
            platform,
            journal,
            started,
        }
    }

    fn with_call<T>(&self, work: impl FnOnce(&SecretCall<'_>) -> T) -> T {
        let journal: Arc<dyn Journal> = Arc::<Mortal>::clone(&self.journal);
        let scope = scope();
        work(&SecretCall {
            journal: &journal,
            now: Timestamp::from_micros(1),
            scope: &scope,
            by: "somebody",
        })
    }

    fn set(&self, name: &str, value: &str) {
        let values = [(name.to_owned(), Secret::new(value.to_owned()))];
        let keeper = &self.platform.shared().secrets;
        let pinned = |_: &str| BTreeSet::new();
        let set = self.with_call(|call| keeper.set(call, &values, &Origin::Set, false, &pinned));
        set.expect("it is taken");
    }

    async fn deploy(&self, number: u64) {
        let order = self.world.order(number, MANIFEST);
        self.platform.deploy(order).await.expect("it is taken");
        self.serves(number).await;
    }

    /// As `landfast secret rotate NAME --from -` does.
    async fn rotate(&self, name: &str, value: &str) {
        let renewal = self.platform.may_renew(&scope()).await.expect("it may");
        let keeper = &self.platform.shared().secrets;
        let given = NewValue::Given(Secret::new(value.to_owned()));
        let pinned = |_: &str| BTreeSet::new();
        let kept = self
            .with_call(|call| keeper.rotate(call, name, given, &pinned))
            .expect("it is taken");
        let versions = kept.into_iter().map(|kept| (kept.name, kept.version));
        let versions: BTreeMap<_, _> = versions.collect();
        let by = "somebody".to_owned();
        let begun = self.platform.renew(&renewal, &versions, by, String::new());
        begun.await.expect("it begins");
    }

    async fn serves(&self, release: u64) {
        let serves = reach(&self.platform, &self.journal, |view| {
            view.state.rollout.is_none() && view.state.serving == Some(ReleaseId(release))
        });
        assert!(serves.await, "release {release}");
    }

    /// The address that the newest instance of a release was given.
    fn given(&self, release: u64) -> String {
        let started = self.started.lock().expect("nobody panics");
        let prefix = format!("api.r{release}.");
        let mut own = started
            .iter()
            .filter(|spec| spec.id.instance.as_str().starts_with(&prefix));
        let newest = own.next_back().expect("one was started");
        newest.env["REDIS_URL"].reveal().clone()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_that_is_gone_back_to_has_the_address_that_serves() {
    let shop = Shop::new().await;
    shop.set("DB_URL", "redis://a:first@db.example/0");
    shop.deploy(1).await;
    assert!(shop.given(1).contains("first"), "{}", shop.given(1));
    shop.rotate("DB_URL", "redis://b:second@db.example/0").await;
    shop.serves(2).await;
    assert!(shop.given(2).contains("second"));
    // Set by somebody, and not deployed: nobody's.
    shop.set("DB_URL", "redis://c:third@db.example/1");
    let back = Input::Rollback {
        to: Some(ReleaseId(1)),
        by: "somebody".into(),
    };
    shop.platform
        .command(&scope(), back)
        .await
        .expect("it is taken");
    shop.serves(1).await;
    assert!(
        shop.given(1).contains("second"),
        "the first password opens nothing any more"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_that_fails_with_its_address_leaves_the_earlier_one() {
    let shop = Shop::new().await;
    shop.set("DB_URL", "redis://a:first@db.example/0");
    shop.deploy(1).await;
    shop.world.target.fail_starts(1_000);
    shop.rotate("DB_URL", "redis://b:typo@db.example/0").await;
    let is_back = reach(&shop.platform, &shop.journal, |view| {
        view.state.rollout.is_none()
            && !view.state.history.is_empty()
            && view.state.serving == Some(ReleaseId(1))
            && view.state.releases.contains_key(&ReleaseId(2))
    });
    assert!(is_back.await);
    shop.world.target.fail_starts(0);
    let restart = Input::Restart {
        by: "somebody".into(),
    };
    shop.platform
        .command(&scope(), restart)
        .await
        .expect("it is taken");
    shop.serves(1).await;
    assert!(shop.given(1).contains("first"), "{}", shop.given(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotated_secrets_push_no_other_code_out() {
    let shop = Shop::new().await;
    shop.set("DB_URL", "redis://a:first@db.example/0");
    shop.deploy(1).await;
    shop.deploy(2).await;
    for number in 3..16 {
        shop.rotate("DB_URL", &format!("redis://a:{number}@db.example/0"))
            .await;
        shop.serves(number).await;
    }
    let view = shop
        .platform
        .environment(&scope())
        .expect("it was deployed");
    let kept: Vec<u64> = view
        .state
        .releases
        .keys()
        .map(|release| release.0)
        .collect();
    assert!(kept.contains(&1), "the code before: {kept:?}");
    assert!(!kept.contains(&2), "of one code the newest ones: {kept:?}");
    assert!(kept.len() <= 12, "{kept:?}");
}
