//! Passive ejection: a backend whose answers fail several times in a row is left alone for a while, each time
//! for twice as long. The last backend that still takes requests is never ejected, and one that is gets requests
//! all the same while no other can take them: a bad answer is better than none.

use std::time::Duration;

use landfast_types::Timestamp;

use crate::snapshot::EjectionPolicy;

/// What the answers of one backend have shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ejection {
    failures: u32,
    /// How often in a row it was ejected.
    times: u32,
    until: Timestamp,
}

impl Ejection {
    /// Whether the backend is out at `now`.
    pub fn is_ejected(&self, now: Timestamp) -> bool {
        now < self.until
    }

    /// When it comes back in; in the past when it is in.
    pub fn until(&self) -> Timestamp {
        self.until
    }

    /// Whether a success would change anything; most of the time it would not, and need not be reported.
    pub fn is_clean(&self) -> bool {
        self.failures == 0 && self.times == 0
    }

    /// Counts a failure. While the backend is ejected none counts: what fails then was begun before, or had
    /// nowhere else to go. `others` is the number of other backends of the service that take requests now.
    /// Answers for how long the backend is ejected, if it is.
    pub fn failure(
        &mut self,
        now: Timestamp,
        others: usize,
        policy: &EjectionPolicy,
    ) -> Option<Duration> {
        if self.is_ejected(now) {
            return None;
        }
        self.failures = self.failures.saturating_add(1);
        if self.failures < policy.failures.max(1) || others == 0 {
            return None;
        }
        let doubled = policy.first_ms.saturating_mul(1 << self.times.min(16));
        let pause = Duration::from_millis(doubled.min(policy.max_ms.max(policy.first_ms)));
        self.times = self.times.saturating_add(1);
        self.failures = 0;
        self.until = now + pause;
        Some(pause)
    }

    /// Counts an answer. After `max_ms` without an ejection the doubling begins anew.
    pub fn success(&mut self, now: Timestamp, policy: &EjectionPolicy) {
        self.failures = 0;
        if now.since(self.until) >= Duration::from_millis(policy.max_ms) {
            self.times = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: EjectionPolicy = EjectionPolicy {
        failures: 5,
        first_ms: 10_000,
        max_ms: 300_000,
    };

    fn eject(ejection: &mut Ejection, now: Timestamp, others: usize) -> Option<Duration> {
        (0..5)
            .filter_map(|_| ejection.failure(now, others, &POLICY))
            .next()
    }

    #[test]
    fn doubles_from_ten_seconds_to_five_minutes() {
        let mut ejection = Ejection::default();
        let mut now = Timestamp::from_millis(0);
        for seconds in [10, 20, 40, 80, 160, 300, 300] {
            assert_eq!(
                eject(&mut ejection, now, 2),
                Some(Duration::from_secs(seconds))
            );
            assert!(ejection.is_ejected(now));
            now = ejection.until();
            assert!(!ejection.is_ejected(now));
        }
        now = now + Duration::from_secs(300);
        ejection.success(now, &POLICY);
        assert_eq!(eject(&mut ejection, now, 2), Some(Duration::from_secs(10)));
    }

    #[test]
    fn what_fails_during_an_ejection_does_not_count_after_it() {
        let mut ejection = Ejection::default();
        let now = Timestamp::from_millis(0);
        assert!(eject(&mut ejection, now, 2).is_some());
        assert_eq!(eject(&mut ejection, now, 2), None);
        let back = ejection.until();
        for _ in 0..4 {
            assert_eq!(ejection.failure(back, 2, &POLICY), None);
        }
        assert!(ejection.failure(back, 2, &POLICY).is_some());
    }

    #[test]
    fn an_answer_in_between_forgives() {
        let mut ejection = Ejection::default();
        let now = Timestamp::from_millis(0);
        for _ in 0..10 {
            for _ in 0..4 {
                assert_eq!(ejection.failure(now, 2, &POLICY), None);
            }
            ejection.success(now, &POLICY);
        }
    }

    #[test]
    fn the_last_one_stays() {
        let mut ejection = Ejection::default();
        let now = Timestamp::from_millis(0);
        assert_eq!(eject(&mut ejection, now, 0), None);
        assert!(!ejection.is_ejected(now));
        assert!(
            ejection.failure(now, 1, &POLICY).is_some(),
            "as soon as there is another"
        );
    }
}
