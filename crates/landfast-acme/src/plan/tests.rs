use super::*;

const DAY: Duration = Duration::from_secs(86_400);
const HOUR: Duration = Duration::from_secs(3_600);

fn at(since: Duration) -> Timestamp {
    Timestamp::EPOCH + Duration::from_secs(1_700_000_000) + since
}

fn ninety_days() -> Validity {
    Validity {
        not_before: at(Duration::ZERO),
        not_after: at(90 * DAY),
    }
}

/// An authority and a clock nobody waits for: each order ends at once, and fails while `fails` says so.
struct World {
    now: Timestamp,
    hosts: BTreeMap<String, Known>,
    life: Duration,
    orders: Vec<(Timestamp, String)>,
}

impl World {
    fn new(hosts: &[&str]) -> Self {
        let known = hosts
            .iter()
            .map(|host| ((*host).to_owned(), Known::default()));
        Self {
            now: at(Duration::ZERO),
            hosts: known.collect(),
            life: 90 * DAY,
            orders: Vec::new(),
        }
    }

    fn run(&mut self, until: Timestamp, fails: impl Fn(Timestamp) -> bool) {
        loop {
            let choice = choose(self.now, &self.hosts, &BTreeSet::new());
            for host in &choice.begin {
                self.orders.push((self.now, host.clone()));
                let known = self.hosts.get_mut(host).expect("a host that was given");
                known.asked = false;
                if fails(self.now) {
                    known.attempts.failures += 1;
                    known.attempts.last_at = Some(self.now);
                    known.attempts.reason = Some("the authority cannot reach it".into());
                } else {
                    known.attempts = Attempts::default();
                    known.validity = Some(Validity {
                        not_before: self.now,
                        not_after: self.now + self.life,
                    });
                }
            }
            if !choice.begin.is_empty() {
                continue;
            }
            match choice.wake {
                Some(wake) if wake <= until => self.now = wake,
                Some(_) | None => return self.now = until,
            }
        }
    }

    fn orders_between(&self, from: Duration, to: Duration) -> usize {
        let within = |(when, _): &&(Timestamp, String)| (at(from)..at(to)).contains(when);
        self.orders.iter().filter(within).count()
    }
}

#[test]
fn a_new_host_is_ordered_at_once_and_renewed_around_two_thirds_of_its_life() {
    let mut world = World::new(&[
        "a.example",
        "b.example",
        "c.example",
        "d.example",
        "e.example",
    ]);
    world.run(at(365 * DAY), |_| false);
    assert_eq!(world.orders_between(Duration::ZERO, DAY), 5);
    let mut last = BTreeMap::new();
    let mut waits = BTreeSet::new();
    for (when, host) in &world.orders {
        if let Some(before) = last.insert(host.clone(), *when) {
            let wait = when.since(before);
            assert!((55 * DAY..=65 * DAY).contains(&wait), "{wait:?}");
            waits.insert(wait);
        }
    }
    assert!(waits.len() > 5, "spread: {waits:?}");
}

#[test]
fn failures_are_tried_again_with_growing_waits_and_never_in_a_tight_loop() {
    let mut world = World::new(&["a.example"]);
    world.run(at(10 * DAY), |_| true);
    assert!(world.orders_between(Duration::ZERO, HOUR) <= 4);
    let daily = world.orders_between(9 * DAY, 10 * DAY);
    assert!((3..=4).contains(&daily), "{daily} a day");
    let mut waits = world
        .orders
        .windows(2)
        .map(|pair| pair[1].0.since(pair[0].0));
    assert!(waits.all(|wait| wait >= RETRY_FIRST));
}

#[test]
fn a_failing_renewal_is_told_weeks_before_the_end_and_recovers() {
    let mut world = World::new(&["a.example"]);
    world.run(at(HOUR), |_| false);
    let broken = |now: Timestamp| now < at(80 * DAY);
    world.run(at(66 * DAY), broken);
    let known = world.hosts["a.example"].clone();
    let told = alert(world.now, &known).expect("an alert");
    assert_eq!(told.severity, Severity::Warning);
    assert!(
        told.text.contains("the authority cannot reach it"),
        "{told:?}"
    );
    assert!(
        told.text.contains("expires in 24 days") || told.text.contains("expires in 23 days"),
        "{told:?}"
    );
    let later = alert(at(85 * DAY), &known).expect("an alert");
    assert_eq!(later.severity, Severity::Error);
    world.run(at(81 * DAY), broken);
    assert_eq!(alert(world.now, &world.hosts["a.example"]), None);
    assert!(
        world.hosts["a.example"]
            .validity
            .expect("renewed")
            .not_after
            > at(160 * DAY)
    );
}

#[test]
fn one_failure_alone_is_no_alert_while_the_old_certificate_lives() {
    let mut known = Known {
        validity: Some(ninety_days()),
        ..Known::default()
    };
    known.attempts.failures = 1;
    assert_eq!(alert(at(60 * DAY), &known), None);
    known.attempts.failures = 2;
    assert!(alert(at(60 * DAY), &known).is_some());
    let bare = Known {
        validity: None,
        ..known
    };
    assert!(alert(at(DAY), &bare).is_some());
}

#[test]
fn a_certificate_nobody_renews_is_told_before_it_ends_and_after() {
    let told = |day: u32| expiring(at(day * DAY), ninety_days()).map(|alert| alert.severity);
    assert_eq!(told(70), None);
    assert_eq!(told(73), Some(Severity::Warning));
    assert_eq!(told(81), Some(Severity::Error));
    let after = expiring(at(91 * DAY), ninety_days()).expect("expired");
    assert!(
        after.text.starts_with("the certificate expired at "),
        "{after:?}"
    );
}

#[test]
fn no_more_orders_run_at_once_than_allowed_and_the_rest_follow() {
    let hosts: Vec<String> = (0..10).map(|n| format!("h{n}.example")).collect();
    let known: BTreeMap<_, _> = hosts
        .iter()
        .map(|host| (host.clone(), Known::default()))
        .collect();
    let first = choose(at(DAY), &known, &BTreeSet::new());
    assert_eq!(first.begin.len(), ORDERS_MAX);
    let under_way: BTreeSet<_> = first.begin.into_iter().collect();
    assert_eq!(
        choose(at(DAY), &known, &under_way).begin,
        Vec::<String>::new()
    );
    let mut one_ended = under_way.clone();
    one_ended.pop_first();
    assert_eq!(choose(at(DAY), &known, &one_ended).begin.len(), 1);
}

#[test]
fn a_person_who_asks_does_not_wait_and_does_not_hammer() {
    let mut known = Known {
        validity: Some(ninety_days()),
        asked: true,
        ..Known::default()
    };
    assert_eq!(next_order("a.example", &known), Some(Timestamp::EPOCH));
    known.attempts.failures = 9;
    known.attempts.last_at = Some(at(DAY));
    assert_eq!(next_order("a.example", &known), Some(at(DAY) + ASKED_MIN));
}

#[test]
fn what_the_end_of_the_server_cut_off_is_taken_up_at_once_but_not_for_ever() {
    let mut known = Known {
        validity: Some(ninety_days()),
        ..Known::default()
    };
    known.attempts.last_at = Some(at(60 * DAY));
    for cut_off in 1..=RESUMES_AT_ONCE {
        known.attempts.cut_off = cut_off;
        assert!(next_order("a.example", &known) <= Some(at(60 * DAY)));
    }
    known.attempts.cut_off = RESUMES_AT_ONCE + 1;
    assert!(next_order("a.example", &known) >= Some(at(60 * DAY) + RETRY_FIRST));
}

#[test]
fn a_covered_host_is_never_ordered() {
    let known = Known {
        covered: true,
        asked: true,
        ..Known::default()
    };
    assert_eq!(next_order("a.example", &known), None);
}

#[test]
fn short_lives_are_tried_often_enough_and_rate_limits_are_kept() {
    let minute = Duration::from_secs(60);
    assert!(retry_wait("a.example", 9, Some(minute), false) <= minute / 30);
    assert!(retry_wait("a.example", 1, Some(90 * DAY), true) >= RATE_LIMITED_MIN);
    assert!(retry_wait("a.example", u32::MAX, None, false) <= RETRY_MAX + RETRY_MAX / 10);
}
