//! Certificates from a real authority (Debian's pebble) by the real server and proxy: obtained, renewed, and what is
//! served while that fails.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    clippy::print_stdout,
    unreachable_pub,
    dead_code,
    reason = "a test fails where it unwraps, and helpers are shared by several tests"
)]

mod support;

use std::{
    fs,
    path::PathBuf,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
    time::Duration,
};

use serde_json::Value;
use support::{
    host::Host,
    pebble::{Authority, Manners},
};

/// Public: ACME is on by itself. Nobody asks the real one: the authority's name server leads every name home.
const PUBLIC: &str = "shop.landfast-proof.com";
const BY_WISH: &str = "shop.test";
const WITHOUT: &str = "plain.landfast-proof.com";

const MANIFEST: &str = r#"
app = "shop"

[services.api]
artifact = "build"
command = ["./app.py", "serve"]
port = 3000
health = { ready = "http:/ready", interval = "200ms" }

[routes.public]
host = "shop.landfast-proof.com"
service = "api"

[routes.wish]
host = "shop.test"
service = "api"
acme = true

[routes.without]
host = "plain.landfast-proof.com"
service = "api"
acme = false

[deploy]
min_ready = "200ms"
standby = "0s"
"#;

struct World {
    host: Host,
    authority: Authority,
    app: PathBuf,
}

impl World {
    /// A host with the app deployed, beside an authority. `unreachable`: names that lead nowhere at first.
    fn start(manners: Manners, arguments: &[&str], unreachable: &[&str]) -> Self {
        let mut host = Host::stopped();
        let authority = Authority::start(&host, manners);
        for name in unreachable {
            authority.lead(name, false);
        }
        host.arguments = authority.arguments();
        host.arguments
            .extend(arguments.iter().map(|text| (*text).to_owned()));
        host.start_server();
        let app = host.app("shop", MANIFEST);
        host.expect(&app, &["deploy", "--wait", "seal"], 0);
        Self {
            host,
            authority,
            app,
        }
    }

    fn certificate(&self, name: &str) -> Value {
        let list = self.host.json(&self.app, &["certificates"]);
        let all = list["certificates"].as_array().cloned().unwrap_or_default();
        let found = all.into_iter().find(|one| one["host"] == name);
        found.unwrap_or_else(|| panic!("no {name} in {list}"))
    }

    fn until_valid(&self, name: &str) {
        self.host.until(&format!("{name} has a certificate"), || {
            let one = self.certificate(name);
            one["state"] == "valid" && one["failures"] == 0
        });
    }

    fn renew(&self, name: &str) {
        self.host
            .expect(&self.app, &["certificates", "renew", name], 0);
    }

    /// Renews and waits until another certificate is presented.
    fn renews(&self, name: &str) {
        let before = self.authority.serial(&self.host, name);
        self.renew(name);
        self.host
            .until(&format!("{name} has another certificate"), || {
                self.authority.serial(&self.host, name) != before
            });
    }

    fn fails(&self, name: &str, times: u64) {
        self.renew(name);
        self.host
            .until(&format!("{name} has failed {times} times"), || {
                self.certificate(name)["failures"] == times
            });
    }

    fn problems(&self) -> String {
        self.host.json(&self.app, &["status"])["problems"].to_string()
    }

    fn serves_all(&self) {
        for name in [PUBLIC, BY_WISH] {
            self.until_valid(name);
            assert_eq!(
                self.authority.get(&self.host, name).as_deref(),
                Ok("1"),
                "{name}"
            );
            assert_eq!(self.host.get(name, "/").0, 308, "{name} asks for HTTPS");
        }
    }
}

#[test]
fn public_hosts_get_certificates_by_themselves_over_http() {
    let manners = Manners {
        nonces_refused: 30,
        ..Manners::default()
    };
    let world = World::start(manners, &["--acme-challenges", "http-01"], &[]);
    world.serves_all();
    assert_eq!(
        world.host.get(WITHOUT, "/"),
        (200, "1".into()),
        "never redirected"
    );
    assert!(
        world.authority.get(&world.host, WITHOUT).is_err(),
        "it asked for none"
    );
    let list = world.host.json(&world.app, &["certificates"]);
    assert_eq!(
        list["certificates"].as_array().map(Vec::len),
        Some(2),
        "{list}"
    );
    let orders = world.authority.orders();
    assert_eq!(orders, 2, "one order for each");
    // A server that starts again finds them, and orders nothing.
    let serial = world.authority.serial(&world.host, PUBLIC);
    let mut world = world;
    world.host.kill_server();
    assert_eq!(
        world.authority.serial(&world.host, PUBLIC),
        serial,
        "the proxy serves without it"
    );
    world.host.start_server();
    world.serves_all();
    assert_eq!(world.authority.serial(&world.host, PUBLIC), serial);
    assert_eq!(world.authority.orders(), orders);
    world.renews(PUBLIC);
    world.serves_all();
    let unknown = world
        .host
        .run(&world.app, &["certificates", "renew", WITHOUT]);
    assert_eq!(unknown.status.code(), Some(9), "{unknown:?}");
}

#[test]
fn hosts_are_proven_by_tls_alone_too() {
    let world = World::start(
        Manners::default(),
        &["--acme-challenges", "tls-alpn-01"],
        &[],
    );
    world.serves_all();
    world.renews(BY_WISH);
    world.serves_all();
    let left = fs::read_dir(world.host.path("state/certificates/challenges")).unwrap();
    assert_eq!(left.count(), 0, "answers are taken away again");
}

#[test]
fn while_the_authority_cannot_reach_a_host_it_serves_on_and_somebody_is_told() {
    let world = World::start(Manners::default(), &[], &[BY_WISH]);
    world.until_valid(PUBLIC);
    world.host.until("the first order has failed", || {
        world.certificate(BY_WISH)["failures"] == 1
    });
    assert_eq!(
        world.host.get(BY_WISH, "/"),
        (200, "1".into()),
        "nobody is sent to a host without a certificate"
    );
    let problems = world.problems();
    assert!(
        problems.contains("no certificate yet") && problems.contains("127.0.0.99"),
        "{problems}"
    );
    world.authority.lead(BY_WISH, true);
    world.renew(BY_WISH);
    world.serves_all();
    assert_eq!(world.problems(), "[]");

    let serial = world.authority.serial(&world.host, BY_WISH);
    world.authority.lead(BY_WISH, false);
    world.fails(BY_WISH, 1);
    world.fails(BY_WISH, 2);
    assert_eq!(world.authority.serial(&world.host, BY_WISH), serial);
    assert_eq!(
        world.authority.get(&world.host, BY_WISH).as_deref(),
        Ok("1"),
        "the old one serves"
    );
    let problems = world.problems();
    assert!(
        problems.contains("the renewal failed 2 times") && problems.contains("127.0.0.99"),
        "{problems}"
    );
    let listed = world.host.expect(&world.app, &["certificates"], 0);
    assert!(
        listed.contains("warning: shop.test: the renewal failed"),
        "{listed}"
    );
    let metrics = world.host.metrics();
    for line in [
        "landfast_certificate_alert{host=\"shop.test\"} 1",
        "landfast_certificate_order_failures{host=\"shop.test\"} 2",
    ] {
        assert!(metrics.contains(line), "{line} in\n{metrics}");
    }
    world.authority.lead(BY_WISH, true);
    world.renews(BY_WISH);
    world.serves_all();
    assert_eq!(world.problems(), "[]");
}

#[test]
fn a_server_killed_in_the_middle_of_an_order_takes_it_up_again() {
    let manners = Manners {
        slow_s: Some(4),
        ..Manners::default()
    };
    let mut world = World::start(manners, &[], &[]);
    for name in [PUBLIC, BY_WISH] {
        let record = world
            .host
            .path(&format!("state/certificates/hosts/{name}.json"));
        world.host.until("the order is open", || {
            fs::read_to_string(&record).is_ok_and(|text| text.contains("\"url\""))
        });
    }
    world.host.kill_server();
    world.host.start_server();
    world.serves_all();
    assert_eq!(world.authority.orders(), 2, "no order was placed twice");
}

/// For `make proof-acme`: everything the authority can do, at once and for longer.
#[test]
#[ignore = "minutes: make proof-acme"]
fn figure_of_the_proof() {
    let mut obtained = 0;
    for (what, manners, kind) in [
        (
            "60 % of nonces refused, http-01",
            Manners {
                nonces_refused: 60,
                ..Manners::default()
            },
            "http-01",
        ),
        (
            "60 % of nonces refused, tls-alpn-01",
            Manners {
                nonces_refused: 60,
                ..Manners::default()
            },
            "tls-alpn-01",
        ),
        (
            "slow by up to 15 s",
            Manners {
                slow_s: Some(15),
                ..Manners::default()
            },
            "http-01,tls-alpn-01",
        ),
        (
            "every proof reused",
            Manners {
                proofs_reused: 100,
                ..Manners::default()
            },
            "http-01",
        ),
        (
            "slow, 30 % of nonces refused, half of proofs reused",
            Manners {
                slow_s: Some(5),
                nonces_refused: 30,
                proofs_reused: 50,
                ..Manners::default()
            },
            "tls-alpn-01",
        ),
    ] {
        let world = World::start(manners, &["--acme-challenges", kind], &[]);
        world.serves_all();
        for name in [PUBLIC, BY_WISH] {
            world.renews(name);
        }
        world.serves_all();
        obtained += 4;
        println!("{what}: 4 of 4 obtained");
    }
    let (answers, renewals, failed) = renewals_under_fire();
    println!(
        "figure: {obtained} of {obtained} certificates obtained under 5 kinds of faults; then certificates of 120 s for 4 minutes with the \
         server killed 8 times and one host unreachable for 30 s three times: {renewals} renewals, {answers} answers over TLS, {failed} failed"
    );
    assert_eq!(failed, 0);
    assert!(renewals >= 3, "{renewals} renewals");
}

/// Certificates that live for a minute, a client that never stops asking, and a server that dies.
fn renewals_under_fire() -> (u32, usize, u32) {
    let manners = Manners {
        life_s: 120,
        nonces_refused: 20,
        slow_s: Some(2),
        ..Manners::default()
    };
    let mut world = World::start(manners, &[], &[]);
    world.serves_all();
    let (stop, answers, failed) = (AtomicBool::new(false), AtomicU32::new(0), AtomicU32::new(0));
    let begun = world.authority.issued();
    let World {
        host, authority, ..
    } = &mut world;
    let (https, root) = (host.https, authority.root());
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for name in [PUBLIC, BY_WISH] {
                    match support::pebble::ask(https, &root, name) {
                        Ok(_) => answers.fetch_add(1, Ordering::Relaxed),
                        Err(error) => {
                            println!("{name}: {error}");
                            failed.fetch_add(1, Ordering::Relaxed)
                        }
                    };
                }
                thread::sleep(Duration::from_millis(50));
            }
        });
        for round in 0..8 {
            thread::sleep(Duration::from_secs(25));
            // Its renewal begins after 80 ± 6 of 120 s, and so has more time than this takes.
            authority.lead(BY_WISH, round % 3 != 1);
            host.kill_server();
            thread::sleep(Duration::from_secs(5));
            host.start_server();
        }
        stop.store(true, Ordering::Relaxed);
    });
    let renewals = world.authority.issued() - begun;
    (answers.into_inner(), renewals, failed.into_inner())
}
