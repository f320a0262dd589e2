use super::*;
use crate::{
    Event, TimelineSwitch,
    ledger::tests::{SEG, beat, ledger, shipped},
};
use landfast_types::Digest;

fn backup(sequence: u64, timeline: u32, start: u64, stop: u64) -> BackupSummary {
    BackupSummary {
        id: BackupId::of(sequence),
        timeline: Timeline(timeline),
        start: Lsn(start),
        stop: Lsn(stop),
        at: Timestamp::from_millis(sequence as i64),
        state: BackupState::Good,
    }
}

fn bad(mut backup: BackupSummary) -> BackupSummary {
    backup.state = BackupState::Bad {
        reason: "a page is damaged".into(),
    };
    backup
}

#[test]
fn takes_the_newest_good_backup_before_the_target() {
    let ledger = ledger(&[shipped(1, 0, SEG), shipped(1, SEG, SEG + 500)]);
    let backups = [
        backup(1, 1, 10, 20),
        backup(2, 1, 100, 200),
        bad(backup(3, 1, 300, 310)),
        backup(4, 1, 400, 600),
    ];
    let to = |target| plan_restore(&ledger, &backups, &target, None).unwrap();
    let latest = to(Target::Latest);
    assert_eq!(
        (latest.backup.as_str(), latest.reach()),
        ("000004", Lsn(SEG + 500))
    );
    let before = to(Target::Lsn(Lsn(599)));
    assert_eq!(before.backup.as_str(), "000002");
    assert_eq!(before.wal_bytes(), 499);
    assert_eq!(
        plan_restore(&ledger, &backups, &Target::Lsn(Lsn(19)), None),
        Err(PlanError::NoBackup { wanted: Lsn(19) })
    );
    assert!(matches!(
        plan_restore(&ledger, &backups, &Target::Lsn(Lsn(2 * SEG)), None),
        Err(PlanError::BehindTheEnd { .. })
    ));
}

#[test]
fn a_hole_is_never_passed_over_in_silence() {
    let ledger = ledger(&[
        shipped(1, 0, 1_000),
        beat(1, 100, 900),
        shipped(1, 2_000, 5_000),
        beat(2, 142, 4_900),
    ]);
    let old = [backup(1, 1, 10, 20)];
    let error = plan_restore(&ledger, &old, &Target::Latest, None).unwrap_err();
    let PlanError::WouldEndEarly {
        hole,
        reach,
        seconds,
    } = error.clone()
    else {
        panic!("{error}");
    };
    assert_eq!((hole.from, hole.to), (Lsn(1_000), Lsn(2_000)));
    assert_eq!((reach, seconds), (Lsn(1_000), Some(42)));
    assert!(
        error.hint().ends_with("--accept-loss 0/3E8"),
        "{}",
        error.hint()
    );
    let accept = |reach| Some(AcceptedLoss { reach: Lsn(reach) });
    assert_eq!(
        plan_restore(&ledger, &old, &Target::Latest, accept(999)),
        Err(PlanError::OtherLoss {
            named: Lsn(999),
            reach
        })
    );
    let plan = plan_restore(&ledger, &old, &Target::Latest, accept(1_000)).unwrap();
    assert_eq!((plan.reach(), plan.lost), (reach, Some(hole)));
    assert_eq!(plan.warnings.len(), 1);
    // What lies before the hole needs no acceptance; a backup behind it needs none either.
    assert!(plan_restore(&ledger, &old, &Target::Lsn(Lsn(800)), None).is_ok());
    let both = [backup(1, 1, 10, 20), backup(2, 1, 2_000, 2_100)];
    let plan = plan_restore(&ledger, &both, &Target::Latest, None).unwrap();
    assert_eq!((plan.backup.as_str(), plan.lost), ("000002", None));
}

#[test]
fn an_older_backup_takes_over_where_the_newest_cannot_be_used() {
    // The WAL the newest one was taken with is gone, and the older chain goes round it on no account.
    let ledger = ledger(&[shipped(1, 0, 1_000), shipped(1, 1_000, 3_000)]);
    let backups = [backup(1, 1, 10, 20), bad(backup(2, 1, 1_500, 1_600))];
    let plan = plan_restore(&ledger, &backups, &Target::Latest, None).unwrap();
    assert_eq!(plan.backup.as_str(), "000001");
    assert_eq!(plan.reach(), Lsn(3_000));
}

#[test]
fn follows_the_history_over_a_promotion() {
    let history = Event::History {
        timeline: Timeline(2),
        digest: Digest::of(b"h"),
        switches: vec![TimelineSwitch {
            parent: Timeline(1),
            at: Lsn(700),
        }],
    };
    let events = [shipped(1, 0, 1_000), history, shipped(2, 0, 2_000)];
    let ledger = ledger(&events);
    let backups = [backup(1, 1, 10, 20), backup(2, 1, 800, 900)];
    let plan = plan_restore(&ledger, &backups, &Target::Latest, None).unwrap();
    // The second backup lies behind the switch: it is of a history that was left.
    assert_eq!(plan.backup.as_str(), "000001");
    let leg = |timeline, from, to| Leg {
        timeline: Timeline(timeline),
        from: Lsn(from),
        to: Lsn(to),
    };
    assert_eq!(plan.legs, [leg(1, 10, 700), leg(2, 700, 2_000)]);
    let segment = |timeline, number| Segment {
        timeline: Timeline(timeline),
        number,
    };
    assert!(plan.needs(segment(1, 0), &ledger));
    assert!(plan.needs(segment(2, 0), &ledger));
    assert!(!plan.needs(segment(2, 1), &ledger));
    let without = crate::ledger::tests::ledger(&[shipped(1, 0, 1_000), shipped(2, 0, 2_000)]);
    assert_eq!(
        plan_restore(&without, &backups, &Target::Latest, None),
        Err(PlanError::NoHistory(Timeline(2)))
    );
}

#[test]
fn a_time_means_the_last_row_before_it_and_a_clock_that_went_back_is_told() {
    let steady = ledger(&[
        shipped(1, 0, 5_000),
        beat(1, 100, 1_000),
        beat(2, 105, 2_000),
        beat(3, 110, 3_000),
    ]);
    let backups = [backup(1, 1, 10, 20)];
    let to = |ledger: &Ledger, seconds: i64| {
        let target = Target::Time(Timestamp::from_millis(seconds * 1_000));
        plan_restore(ledger, &backups, &target, None)
    };
    let plan = to(&steady, 107).unwrap();
    assert_eq!((plan.reach(), plan.warnings.len()), (Lsn(2_000), 0));
    assert_eq!(plan.at, Some(Timestamp::from_millis(105_000)));
    assert!(matches!(to(&steady, 99), Err(PlanError::NoHeartbeat(_))));
    // One commit an hour ahead, then back.
    let skewed = ledger(&[
        shipped(1, 0, 5_000),
        beat(1, 100, 1_000),
        beat(2, 3_700, 2_000),
        beat(3, 110, 3_000),
    ]);
    let plan = to(&skewed, 115).unwrap();
    assert_eq!(plan.reach(), Lsn(3_000));
    assert_eq!(plan.warnings.len(), 1);
}

#[test]
fn goes_to_a_named_point() {
    let point = Event::Point {
        name: "before-rollout-41".into(),
        timeline: Timeline(1),
        lsn: Lsn(700),
        at: Timestamp::EPOCH,
    };
    let ledger = ledger(&[shipped(1, 0, 1_000), point]);
    let backups = [backup(1, 1, 10, 20)];
    let to = |name: &str| plan_restore(&ledger, &backups, &Target::Point(name.into()), None);
    assert_eq!(to("before-rollout-41").unwrap().reach(), Lsn(700));
    assert_eq!(to("x"), Err(PlanError::NoPoint("x".into())));
}
