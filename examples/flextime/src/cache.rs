//! A cache of findings, keyed by content, bounded in entries and in age. The least recently used entry leaves first.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use sha2::{Digest as _, Sha256};

use crate::{constraint::Rule, evaluate::Finding, schedule::Schedule};

/// The content of a rule and a schedule.
pub(crate) type Key = [u8; 32];

/// The content of a schedule, to be combined with rules by [`key`].
pub(crate) fn schedule_digest(schedule: &Schedule) -> Key {
    let text = serde_json::to_vec(schedule).expect("a schedule is plain data");
    Sha256::digest(&text).into()
}

/// The key of one evaluation. The rule is taken as it was understood, so that equal rules written differently agree.
pub(crate) fn key(schedule: &Key, rule: &Rule) -> Key {
    let mut hasher = Sha256::new();
    hasher.update(schedule);
    hasher.update(format!("{rule:?}").as_bytes());
    hasher.finalize().into()
}

/// The cache; all times come in.
#[derive(Debug)]
pub(crate) struct Cache {
    ttl: Duration,
    entries_max: usize,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    entries: HashMap<Key, Entry>,
    /// Keys by the turn in which they were last used.
    order: BTreeMap<u64, Key>,
    turn: u64,
    hits: u64,
    misses: u64,
}

#[derive(Debug)]
struct Entry {
    finding: Arc<Finding>,
    since: Instant,
    turn: u64,
}

/// What the cache did so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts {
    pub entries: usize,
    pub hits: u64,
    pub misses: u64,
}

impl Cache {
    pub(crate) fn new(ttl: Duration, entries_max: usize) -> Self {
        Self {
            ttl,
            entries_max,
            inner: Mutex::default(),
        }
    }

    pub(crate) fn get(&self, now: Instant, key: &Key) -> Option<Arc<Finding>> {
        let mut guard = self.lock();
        let inner = &mut *guard;
        inner.turn += 1;
        let turn = inner.turn;
        let fresh = inner
            .entries
            .get_mut(key)
            .filter(|entry| now.duration_since(entry.since) < self.ttl);
        let Some(entry) = fresh else {
            inner.misses += 1;
            inner.remove(key);
            return None;
        };
        inner.hits += 1;
        inner.order.remove(&entry.turn);
        inner.order.insert(turn, *key);
        entry.turn = turn;
        Some(Arc::clone(&entry.finding))
    }

    pub(crate) fn put(&self, now: Instant, key: Key, finding: Arc<Finding>) {
        if self.entries_max == 0 || self.ttl.is_zero() {
            return;
        }
        let mut inner = self.lock();
        inner.remove(&key);
        while inner.entries.len() >= self.entries_max {
            let oldest = inner.order.first_key_value().map(|(_, key)| *key);
            inner.remove(&oldest.expect("every entry has a turn"));
        }
        inner.turn += 1;
        let turn = inner.turn;
        inner.order.insert(turn, key);
        inner.entries.insert(
            key,
            Entry {
                finding,
                since: now,
                turn,
            },
        );
    }

    pub(crate) fn counts(&self) -> Counts {
        let inner = self.lock();
        Counts {
            entries: inner.entries.len(),
            hits: inner.hits,
            misses: inner.misses,
        }
    }

    pub(crate) const fn entries_max(&self) -> usize {
        self.entries_max
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn remove(&mut self, key: &Key) {
        if let Some(entry) = self.entries.remove(key) {
            self.order.remove(&entry.turn);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(checked: u64) -> Arc<Finding> {
        Arc::new(Finding {
            checked,
            ..Finding::default()
        })
    }

    #[test]
    fn forgets_what_is_old_and_what_was_used_least_recently() {
        let start = crate::clock::instant();
        let cache = Cache::new(Duration::from_secs(60), 2);
        cache.put(start, [1; 32], finding(1));
        cache.put(start, [2; 32], finding(2));
        assert!(cache.get(start, &[1; 32]).is_some());
        cache.put(start + Duration::from_secs(30), [3; 32], finding(3));
        assert!(
            cache.get(start, &[2; 32]).is_none(),
            "the least recently used had to leave"
        );
        assert_eq!(
            cache.get(start, &[1; 32]).map(|found| found.checked),
            Some(1)
        );
        let later = start + Duration::from_secs(61);
        assert!(cache.get(later, &[1; 32]).is_none());
        assert!(cache.get(later, &[3; 32]).is_some());
        assert_eq!(
            cache.counts(),
            Counts {
                entries: 1,
                hits: 3,
                misses: 2
            }
        );
    }

    #[test]
    fn keys_differ_by_rule_and_by_schedule() {
        let rule = |days_min| Rule::RestDays { days_min };
        assert_ne!(key(&[0; 32], &rule(1)), key(&[0; 32], &rule(2)));
        assert_ne!(key(&[0; 32], &rule(1)), key(&[1; 32], &rule(1)));
        assert_eq!(key(&[0; 32], &rule(1)), key(&[0; 32], &rule(1)));
    }
}
