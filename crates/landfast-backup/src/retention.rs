//! What is kept. Decided by sequence: a clock that jumps, or ten days on which no backup succeeded, remove nothing.
//!
//! *A day* is a day on which there is a good backup; thirty of them may span longer. *Seven days of WAL* are as many heartbeats
//! as fall into seven days. The newest good backup and all WAL behind its start are always kept.

use std::collections::{BTreeMap, BTreeSet};

use landfast_types::Timestamp;

use crate::{BackupId, BackupState, BackupSummary, Ledger, Lsn, Timeline};

const DAY_MICROS: i64 = 86_400_000_000;

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// For so many days, the newest good backup of each.
    pub daily: usize,
    /// WAL to go to any place of the last so many heartbeats.
    pub wal_heartbeats: usize,
    /// Bad backups, for a person to look at.
    pub bad: usize,
}

impl Retention {
    /// 30 daily backups, 7 days of WAL at a heartbeat every 5 s.
    pub const DEFAULT: Self = Self {
        daily: 30,
        wal_heartbeats: 7 * 24 * 720,
        bad: 3,
    };
}

/// Why a backup stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeepReason {
    /// The newest good one.
    LastGood,
    /// The newest good one of its day.
    Daily,
    /// Places within the days of WAL are reached from it.
    Wal,
    /// For a person to look at.
    Bad,
    /// Newer than the newest good one.
    Newer,
    /// The one that a drill has proven last.
    Proven,
    /// Little older than the newest: there is no log that leads to the moments between.
    Recent,
}

/// What stays.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Keep {
    pub backups: BTreeMap<BackupId, BTreeSet<KeepReason>>,
    /// WAL of each timeline, from here on. Timelines that are not named are kept whole.
    pub wal_from: BTreeMap<Timeline, Lsn>,
    /// Older WAL that makes an older backup consistent: timeline, start and stop of each.
    pub wal_of_backups: Vec<(Timeline, Lsn, Lsn)>,
}

impl Keep {
    /// Whether a range of WAL stays.
    pub fn keeps_wal(&self, timeline: Timeline, from: Lsn, to: Lsn) -> bool {
        self.wal_from.get(&timeline).is_none_or(|start| to > *start)
            || self
                .wal_of_backups
                .iter()
                .any(|(of, start, stop)| *of == timeline && from < *stop && *start < to)
    }
}

/// A backup as retention sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    pub id: BackupId,
    pub at: Timestamp,
    pub is_good: bool,
}

/// Decides which of backups stay that need nothing but themselves. Without a good one all do.
pub fn which_to_keep(
    backups: &[Kept],
    retention: &Retention,
) -> BTreeMap<BackupId, BTreeSet<KeepReason>> {
    let mut keep: BTreeMap<BackupId, BTreeSet<KeepReason>> = BTreeMap::new();
    let mut add = |backup: &Kept, reason| {
        keep.entry(backup.id.clone()).or_default().insert(reason);
    };
    let mut newest_first: Vec<_> = backups.iter().collect();
    newest_first.sort_by(|one, other| other.id.cmp(&one.id));
    let Some(last_good) = newest_first.iter().find(|backup| backup.is_good) else {
        newest_first
            .iter()
            .for_each(|backup| add(backup, KeepReason::Newer));
        return keep;
    };
    add(last_good, KeepReason::LastGood);
    let newer = newest_first
        .iter()
        .filter(|backup| backup.id > last_good.id);
    newer.for_each(|backup| add(backup, KeepReason::Newer));
    let bad = newest_first.iter().filter(|backup| !backup.is_good);
    bad.take(retention.bad)
        .for_each(|backup| add(backup, KeepReason::Bad));
    let mut days = BTreeSet::new();
    for backup in newest_first.iter().filter(|backup| backup.is_good) {
        if days.len() < retention.daily && days.insert(day(backup.at)) {
            add(backup, KeepReason::Daily);
        }
    }
    keep
}

/// Decides what stays of an archive. Without a good backup everything does.
pub fn what_to_keep(ledger: &Ledger, backups: &[BackupSummary], retention: &Retention) -> Keep {
    let is_good = |backup: &BackupSummary| backup.state == BackupState::Good;
    let alone = backups.iter().map(|backup| Kept {
        id: backup.id.clone(),
        at: backup.at,
        is_good: is_good(backup),
    });
    let mut keep = Keep {
        backups: which_to_keep(&alone.collect::<Vec<_>>(), retention),
        ..Keep::default()
    };
    let mut newest_first: Vec<_> = backups.iter().collect();
    newest_first.sort_by(|one, other| other.id.cmp(&one.id));
    if !newest_first.iter().any(|backup| is_good(backup)) {
        return keep;
    }

    // The oldest place that can be chosen freely, and the newest good backup before it.
    let beats = ledger.heartbeats();
    let oldest = beats.len().checked_sub(retention.wal_heartbeats);
    let first = oldest.and_then(|oldest| beats.get(oldest));
    let base = first.and_then(|beat| {
        let mut good = newest_first.iter().filter(|backup| is_good(backup));
        good.find(|backup| ledger.is_on_path(backup.timeline, backup.stop, beat.timeline, beat.lsn))
    });
    // Not enough heartbeats, or no backup before them: all WAL stays.
    let Some(base) = base else {
        return keep.with_good(&newest_first);
    };
    for backup in newest_first.iter().filter(|backup| backup.id >= base.id) {
        if is_good(backup) {
            keep.add(backup, KeepReason::Wal);
        }
    }
    for timeline in ledger
        .timelines()
        .filter(|timeline| *timeline <= base.timeline)
    {
        let from = if timeline == base.timeline {
            base.start
        } else {
            // Older histories: nothing but what backups need.
            Lsn(u64::MAX)
        };
        keep.wal_from.insert(timeline, from);
    }
    keep.wal_of_backups = newest_first
        .iter()
        .filter(|backup| keep.backups.contains_key(&backup.id) && is_good(backup))
        .map(|backup| (backup.timeline, backup.start, backup.stop))
        .collect();
    keep
}

impl Keep {
    fn add(&mut self, backup: &BackupSummary, reason: KeepReason) {
        self.backups
            .entry(backup.id.clone())
            .or_default()
            .insert(reason);
    }

    /// While all WAL stays, so does every backup it could be replayed on.
    fn with_good(mut self, backups: &[&BackupSummary]) -> Self {
        for backup in backups
            .iter()
            .filter(|backup| backup.state == BackupState::Good)
        {
            self.add(backup, KeepReason::Wal);
        }
        self
    }
}

fn day(at: Timestamp) -> i64 {
    at.as_micros().div_euclid(DAY_MICROS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::tests::{SEG, beat, ledger, shipped};

    fn backup(sequence: u64, day: i64, is_good: bool) -> BackupSummary {
        let state = if is_good {
            BackupState::Good
        } else {
            BackupState::Bad { reason: "x".into() }
        };
        BackupSummary {
            id: BackupId::of(sequence),
            timeline: Timeline(1),
            start: Lsn(sequence * 1_000),
            stop: Lsn(sequence * 1_000 + 100),
            at: Timestamp::from_micros(day * DAY_MICROS),
            state,
        }
    }

    /// A beat for each backup, a little behind it.
    fn archive(backups: &[BackupSummary]) -> Ledger {
        let beats = backups.iter().map(|backup| {
            let sequence = backup.id.sequence().unwrap();
            beat(
                sequence,
                backup.at.as_micros() / 1_000_000,
                sequence * 1_000 + 500,
            )
        });
        let mut events: Vec<_> = beats.collect();
        events.push(shipped(1, 0, SEG));
        ledger(&events)
    }

    const THREE: Retention = Retention {
        daily: 3,
        wal_heartbeats: 2,
        bad: 1,
    };

    fn kept(keep: &Keep) -> Vec<u64> {
        keep.backups.keys().filter_map(BackupId::sequence).collect()
    }

    #[test]
    fn keeps_days_and_the_wal_of_the_newest() {
        let backups: Vec<_> = (1..=6).map(|n| backup(n, n as i64, true)).collect();
        let keep = what_to_keep(&archive(&backups), &backups, &THREE);
        assert_eq!(kept(&keep), [4, 5, 6]);
        assert!(keep.keeps_wal(Timeline(1), Lsn(5_000), Lsn(5_200)));
        // Older WAL only where it makes an older backup whole.
        assert!(keep.keeps_wal(Timeline(1), Lsn(4_050), Lsn(4_060)));
        assert!(!keep.keeps_wal(Timeline(1), Lsn(4_200), Lsn(4_900)));
        assert!(!keep.keeps_wal(Timeline(1), Lsn(0), Lsn(3_500)));
    }

    #[test]
    fn days_without_a_good_backup_and_jumps_of_the_clock_remove_nothing() {
        let mut backups: Vec<_> = (1..=3).map(|n| backup(n, n as i64, true)).collect();
        backups.extend((4..=14).map(|n| backup(n, n as i64, false)));
        let keep = what_to_keep(&archive(&backups), &backups, &THREE);
        assert!([1, 2, 3].iter().all(|good| kept(&keep).contains(good)));
        assert!(keep.backups[&BackupId::of(3)].contains(&KeepReason::LastGood));
        // The last three were made a thousand days ahead, or a thousand days back.
        for jump in [1_000, -1_000] {
            let mut backups: Vec<_> = (1..=4).map(|n| backup(n, n as i64, true)).collect();
            backups.extend((5..=6).map(|n| backup(n, n as i64 + jump, true)));
            let keep = what_to_keep(&archive(&backups), &backups, &THREE);
            assert_eq!(kept(&keep), [4, 5, 6], "{jump}");
        }
    }

    #[test]
    fn without_a_good_backup_everything_stays() {
        let backups = [backup(1, 1, false), backup(2, 2, false)];
        let keep = what_to_keep(&archive(&backups), &backups, &THREE);
        assert_eq!(kept(&keep), [1, 2]);
        assert!(keep.keeps_wal(Timeline(1), Lsn(0), Lsn(1)));
    }

    #[test]
    fn the_last_good_chain_stays_whatever_is_asked() {
        let none = Retention {
            daily: 0,
            wal_heartbeats: 0,
            bad: 0,
        };
        let backups: Vec<_> = (1..=4).map(|n| backup(n, n as i64, n < 3)).collect();
        let keep = what_to_keep(&archive(&backups), &backups, &none);
        assert!(kept(&keep).contains(&2));
        assert!(keep.keeps_wal(Timeline(1), Lsn(2_000), Lsn(2_001)));
        assert!(keep.keeps_wal(Timeline(1), Lsn(9_000), Lsn(9_001)));
    }

    proptest::proptest! {
        #[test]
        fn what_is_kept_can_be_restored(goods in proptest::collection::vec(proptest::bool::ANY, 1..20), daily in 0_usize..5, beats in 0_usize..8) {
            let backups: Vec<_> = goods.iter().enumerate().map(|(n, good)| backup(n as u64 + 1, n as i64, *good)).collect();
            let retention = Retention { daily, wal_heartbeats: beats, bad: 1 };
            let keep = what_to_keep(&archive(&backups), &backups, &retention);
            let newest = backups.iter().rev().find(|backup| backup.state == BackupState::Good);
            if let Some(newest) = newest {
                proptest::prop_assert!(keep.backups.contains_key(&newest.id));
                // From its start to the end of the archive, and for every kept one to where it is consistent.
                proptest::prop_assert!(keep.keeps_wal(Timeline(1), newest.start, Lsn(newest.start.0 + 1)));
                proptest::prop_assert!(keep.keeps_wal(Timeline(1), Lsn(SEG - 1), Lsn(SEG)));
            }
            for backup in backups.iter().filter(|b| b.state == BackupState::Good && keep.backups.contains_key(&b.id)) {
                for at in (backup.start.0..backup.stop.0).step_by(10) {
                    proptest::prop_assert!(keep.keeps_wal(Timeline(1), Lsn(at), Lsn(at + 1)));
                }
            }
        }
    }
}
