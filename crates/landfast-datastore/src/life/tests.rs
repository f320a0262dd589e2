//! The life of a store: tables, and random inputs with the invariants swept after each.

use landfast_spec::Engine;
use landfast_types::Bytes;
use proptest::prelude::*;

use super::*;

fn wanted() -> Wanted {
    Wanted {
        engine: Engine::Postgres,
        version: "15".into(),
        memory: Bytes(1 << 30),
        settings: [].into(),
        image: None,
    }
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_millis(seconds * 1_000)
}

fn new() -> Store {
    let scope = Scope {
        app: "shop".parse().unwrap(),
        environment: "production".parse().unwrap(),
    };
    Store::new(
        at(0),
        scope,
        "main".parse().unwrap(),
        ReleaseId(1),
        wanted(),
        15_000,
    )
}

fn told(store: &Store, seconds: i64, input: Input) -> Store {
    match store.decide(at(seconds), &input) {
        Ok(Outcome::Changed(next)) => *next,
        other => panic!("{input:?} in {:?}: {other:?}", store.phase),
    }
}

fn id(number: u64) -> InstanceId {
    InstanceId::new("main", ReleaseId(0), number)
}

fn ended(number: u64) -> Input {
    Input::Ended {
        instance: id(number),
        exit: "was killed by signal 9".into(),
    }
}

fn ready() -> Store {
    let made = told(&new(), 1, Input::Made);
    let starting = told(&made, 1, Input::Tick);
    assert_eq!(starting.pending(), Some(Action::Start { instance: id(1) }));
    told(&starting, 2, Input::Answered { instance: id(1) })
}

#[test]
fn is_made_started_and_ready() {
    assert_eq!(new().pending(), Some(Action::Make));
    let ready = ready();
    assert_eq!(
        (ready.word(), ready.pending(), ready.starts),
        ("ready", None, 1)
    );
}

#[test]
fn a_failed_making_is_tried_again_later() {
    let reason = "no space".to_owned();
    let failed = told(&new(), 1, Input::MakeFailed { reason });
    assert_eq!((failed.pending(), failed.deadline()), (None, Some(at(2))));
    assert_eq!(failed.trouble(), Some("no space"));
    assert_eq!(failed.decide(at(1), &Input::Tick), Ok(Outcome::Unchanged));
    assert_eq!(told(&failed, 2, Input::Tick).pending(), Some(Action::Make));
}

#[test]
fn an_end_is_followed_by_a_start_and_a_loop_by_longer_waits() {
    let mut store = ready();
    let mut now = 100;
    let mut waits = Vec::new();
    for number in 1..=9 {
        store = told(&store, now, ended(number));
        let until = store.deadline().unwrap();
        waits.push(until.since(at(now)).as_secs());
        now += i64::try_from(waits.last().copied().unwrap()).unwrap();
        store = told(&store, now, Input::Tick);
        assert_eq!(store.instance(), Some(&id(number + 1)));
    }
    assert_eq!(waits, [0, 1, 2, 4, 8, 16, 32, 60, 60]);
    // Who was ready for a while begins anew.
    store = told(&store, now, Input::Answered { instance: id(10) });
    store = told(&store, now + 31, ended(10));
    assert_eq!(store.deadline(), Some(at(now + 31)));
}

#[test]
fn a_port_that_was_taken_is_changed_only_while_nobody_knows_it() {
    let failed = |number, free_port| Input::StartFailed {
        instance: id(number),
        reason: "its port 15000 is taken".into(),
        free_port,
    };
    let made = told(&new(), 1, Input::Made);
    let starting = told(&made, 1, Input::Tick);
    // The server itself lost the race, then the next start sees who won it.
    let lost = told(&told(&starting, 1, ended(1)), 1, Input::Tick);
    assert_eq!(lost.port, 15_000);
    let moved = told(&lost, 2, failed(2, Some(15_001)));
    assert_eq!((moved.port, moved.word()), (15_001, "down"));
    assert_eq!(moved.deadline(), Some(at(2)), "nothing is wrong with it");
    assert_eq!(told(&lost, 2, failed(2, None)).port, 15_000);

    let restarting = told(&told(&ready(), 100, ended(1)), 100, Input::Tick);
    let kept = told(&restarting, 101, failed(2, Some(15_001)));
    assert_eq!(
        (kept.port, kept.trouble()),
        (15_000, Some("its port 15000 is taken"))
    );
    // What an older Landfast wrote does not say whether the port is known.
    let mut old = serde_json::to_value(new()).unwrap();
    old.as_object_mut().unwrap().remove("was_ready");
    assert!(serde_json::from_value::<Store>(old).unwrap().was_ready);
}

#[test]
fn memory_grows_with_a_restart_and_is_given_back_only_before_it() {
    let named = |release, memory| Input::Named {
        release: ReleaseId(release),
        wanted: Some(Wanted {
            memory: Bytes(memory),
            ..wanted()
        }),
    };
    let grown = told(&ready(), 3, named(2, 2 << 30));
    assert!(grown.waits_for_restart().contains(&"memory".to_owned()));
    let back = told(&grown, 4, named(3, 1 << 30));
    assert_eq!(back.waits_for_restart(), Vec::<String>::new());

    let stopping = told(&grown, 5, Input::Restart);
    let restarted = told(&told(&stopping, 6, ended(1)), 6, Input::Tick);
    let restarted = told(&restarted, 7, Input::Answered { instance: id(2) });
    assert_eq!(restarted.waits_for_restart(), Vec::<String>::new());
    let refused = restarted.decide(at(8), &named(4, 1 << 30));
    assert!(
        matches!(refused, Err(Rejected::Refused { .. })),
        "{refused:?}"
    );
}

#[test]
fn what_is_said_of_another_start_is_not_taken() {
    let store = ready();
    for input in [
        ended(7),
        Input::Answered { instance: id(2) },
        Input::StartFailed {
            instance: id(1),
            reason: String::new(),
            free_port: Some(15_001),
        },
        Input::Made,
        Input::Removed,
    ] {
        assert_eq!(
            store.decide(at(3), &input),
            Ok(Outcome::Unchanged),
            "{input:?}"
        );
    }
}

#[test]
fn a_newer_manifest_is_taken_live_or_with_the_next_start() {
    let named = |store: &Store, release, settings: &[(&str, &str)]| {
        let mut wanted = wanted();
        let settings = settings.iter();
        wanted.settings = settings
            .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
            .collect();
        let wanted = Some(wanted);
        told(
            store,
            5,
            Input::Named {
                release: ReleaseId(release),
                wanted,
            },
        )
    };
    let live = named(&ready(), 2, &[("work_mem", "8MB")]);
    assert_eq!(live.pending(), Some(Action::Apply { instance: id(1) }));
    let applied = told(
        &live,
        6,
        Input::Applied {
            wanted: live.wanted.clone(),
        },
    );
    assert_eq!(applied.pending(), None);
    let waiting = named(&applied, 3, &[("max_connections", "5")]);
    assert_eq!(waiting.pending(), None);
    assert_eq!(waiting.waits_for_restart(), ["max_connections"]);
    // An older manifest changes nothing: a rollback leaves stores alone.
    let older = Input::Named {
        release: ReleaseId(1),
        wanted: Some(wanted()),
    };
    assert_eq!(waiting.decide(at(7), &older), Ok(Outcome::Unchanged));
    let stopping = told(&waiting, 8, Input::Restart);
    assert_eq!(stopping.pending(), Some(Action::Stop { instance: id(1) }));
    let down = told(&stopping, 9, ended(1));
    let again = told(&down, 9, Input::Tick);
    assert_eq!((again.waits_for_restart(), again.starts), (vec![], 2));
}

#[test]
fn a_store_that_is_not_named_any_more_runs_on() {
    let release = ReleaseId(2);
    let detached = told(
        &ready(),
        5,
        Input::Named {
            release,
            wanted: None,
        },
    );
    assert_eq!((detached.named, detached.word()), (false, "ready"));
    let release = ReleaseId(3);
    let wanted = Some(wanted());
    assert!(told(&detached, 6, Input::Named { release, wanted }).named);
}

#[test]
fn a_name_is_moved_away_and_to_it_under_one_manifest() {
    let release = ReleaseId(1);
    let moved = |wanted| Input::Named { release, wanted };
    let left = told(&ready(), 5, moved(None));
    assert_eq!((left.named, left.word()), (false, "ready"));
    let (by, delay) = ("switch".to_owned(), DELAY_DEFAULT);
    let deleted = told(&left, 6, Input::Delete { by, delay });
    let mut larger = wanted();
    larger.memory = Bytes(2 << 30);
    let back = told(&deleted, 7, moved(Some(larger.clone())));
    assert_eq!((back.named, &back.wanted), (true, &larger));
    assert!(matches!(
        back.phase,
        Phase::Stopping {
            then: After::Start,
            ..
        }
    ));
    // Said again it changes nothing, and the manifest of an earlier release never does.
    let again = back.decide(at(8), &moved(Some(larger)));
    assert_eq!(again, Ok(Outcome::Unchanged));
    let earlier = Input::Named {
        release: ReleaseId(0),
        wanted: None,
    };
    assert_eq!(back.decide(at(8), &earlier), Ok(Outcome::Unchanged));
}

#[test]
fn what_cannot_change_in_place_is_refused() {
    let mut smaller = wanted();
    smaller.memory = Bytes(1);
    let input = Input::Named {
        release: ReleaseId(2),
        wanted: Some(smaller),
    };
    let refused = ready().decide(at(5), &input);
    assert!(matches!(refused, Err(Rejected::Refused { .. })));
}

#[test]
fn a_store_that_is_lent_is_fitted_first_and_no_longer_lent_once_it_is_named_or_deleted() {
    let delete = || Input::Delete {
        by: "ann".into(),
        delay: Duration::from_secs(60),
    };
    let detached = Input::Named {
        release: ReleaseId(2),
        wanted: None,
    };
    let deleted = told(
        &told(&told(&ready(), 5, detached), 6, delete()),
        7,
        ended(1),
    );
    let mut larger = wanted();
    larger.memory = Bytes(2 << 30);
    let fit = Input::Fit {
        wanted: larger.clone(),
    };
    let lent = told(&told(&deleted, 8, fit), 9, Input::Lend);
    assert!(lent.lent && !lent.named);
    // Its first start goes by what is wanted.
    let started = told(&told(&lent, 10, Input::Made), 11, Input::Tick);
    assert_eq!(started.applied, Some(larger.clone()));
    assert!(started.waits_for_restart().is_empty());
    assert!(!told(&started, 12, delete()).lent);
    let named = Input::Named {
        release: ReleaseId(3),
        wanted: Some(larger),
    };
    assert!(!told(&started, 12, named).lent);
    let mut smaller = wanted();
    smaller.memory = Bytes(1);
    let fit = Input::Fit { wanted: smaller };
    assert!(matches!(
        started.decide(at(13), &fit),
        Err(Rejected::Refused { .. })
    ));
}

#[test]
fn deleting_waits_and_can_be_taken_back_until_then() {
    let delete = || Input::Delete {
        by: "ann".into(),
        delay: Duration::from_secs(60),
    };
    let in_use = ready().decide(at(5), &delete());
    assert!(
        matches!(in_use, Err(Rejected::InUse(_))),
        "the manifest names it"
    );
    let detached = told(
        &ready(),
        5,
        Input::Named {
            release: ReleaseId(2),
            wanted: None,
        },
    );
    let stopping = told(&detached, 6, delete());
    assert_eq!(stopping.pending(), Some(Action::Stop { instance: id(1) }));
    let deleted = told(&stopping, 7, ended(1));
    assert_eq!(
        (deleted.pending(), deleted.deadline()),
        (None, Some(at(66)))
    );
    assert_eq!(deleted.decide(at(65), &Input::Tick), Ok(Outcome::Unchanged));
    let back = told(&deleted, 60, Input::Undelete);
    assert_eq!(back.pending(), Some(Action::Make));
    let again = told(&told(&back, 60, Input::Made), 60, Input::Tick);
    let taken = Input::StartFailed {
        instance: again.instance().unwrap().clone(),
        reason: "its port 15000 is taken".into(),
        free_port: Some(15_001),
    };
    assert_eq!(told(&again, 61, taken).port, 15_001);
    let release = ReleaseId(3);
    let named = told(
        &deleted,
        60,
        Input::Named {
            release,
            wanted: Some(wanted()),
        },
    );
    assert_eq!(
        (named.named, named.pending()),
        (true, Some(Action::Make)),
        "a manifest names it again"
    );
    let removing = told(&deleted, 66, Input::Tick);
    assert_eq!(removing.pending(), Some(Action::Remove));
    assert!(matches!(
        removing.decide(at(67), &Input::Undelete),
        Err(Rejected::Removing(_))
    ));
    assert_eq!(removing.decide(at(67), &Input::Removed), Ok(Outcome::Gone));
}

#[test]
fn reads_back_what_it_wrote() {
    let store = told(&ready(), 5, Input::Restart);
    let text = serde_json::to_string(&store).unwrap();
    assert_eq!(serde_json::from_str::<Store>(&text).unwrap(), store);
}

fn inputs() -> impl Strategy<Value = Input> {
    let number = 1..4_u64;
    prop_oneof![
        Just(Input::Made),
        Just(Input::Tick),
        Just(Input::Restart),
        Just(Input::Undelete),
        Just(Input::Removed),
        Just(Input::MakeFailed { reason: "x".into() }),
        Just(Input::Delete {
            by: "ann".into(),
            delay: Duration::from_secs(9)
        }),
        number.clone().prop_map(ended),
        number
            .clone()
            .prop_map(|n| Input::Answered { instance: id(n) }),
        (number, prop::option::of(15_001..15_009_u16)).prop_map(|(n, free_port)| {
            Input::StartFailed {
                instance: id(n),
                reason: "x".into(),
                free_port,
            }
        }),
        (1..6_u64, any::<bool>()).prop_map(|(release, named)| Input::Named {
            release: ReleaseId(release),
            wanted: named.then(wanted),
        }),
    ]
}

proptest! {
    /// Whatever comes: a number is never used twice, nothing is removed before its time, and there is always either
    /// something owed, an instant to wait for, or a server that runs.
    #[test]
    fn is_never_stuck_and_removes_nothing_early(steps in prop::collection::vec((0..20_i64, inputs()), 0..60)) {
        let (mut store, mut now) = (new(), 0);
        let mut tombstone = None;
        for (wait, input) in steps {
            now += wait;
            let next = match store.decide(at(now), &input) {
                Ok(Outcome::Changed(next)) => *next,
                Ok(Outcome::Unchanged) | Err(_) => continue,
                Ok(Outcome::Gone) => {
                    prop_assert!(tombstone.is_some_and(|until| at(now) >= until));
                    return Ok(());
                }
            };
            prop_assert!(next.starts == store.starts || next.starts == store.starts + 1);
            if next.starts > store.starts {
                prop_assert!(store.instance().is_none(), "two at once");
            }
            if let Phase::Deleted { until, .. } = &next.phase {
                tombstone = Some(*until);
            }
            if next.phase == Phase::Removing {
                prop_assert!(tombstone.is_some_and(|until| at(now) >= until));
            }
            let runs = matches!(next.phase, Phase::Ready { .. });
            prop_assert!(runs || next.pending().is_some() || next.deadline().is_some());
            prop_assert_eq!(next.changes, store.changes + 1);
            store = next;
        }
    }
}
