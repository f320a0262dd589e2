//! Whether a request that failed may be sent again (RFC 9110, 9.2.2), and how many retries a service may have.
//!
//! The budget holds retries to a share of the requests, so that retries never multiply an overload. Both are
//! counted over the last ten seconds: that is long enough for everything in flight to an instance that dies to
//! be sent again at once, and too short for a quiet hour to buy a storm. A small floor lets a service with
//! hardly any requests retry at all.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http::Method;
use landfast_types::Timestamp;

/// Seconds that are looked back on.
const WINDOW: usize = 10;
/// Retries that a window has in any case.
const FLOOR: u64 = 20;

/// An idle connection that the backend had closed breaks this soon after a request is written to it.
const STALE_MAX: Duration = Duration::from_millis(20);

/// How far an attempt got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// No byte of the request reached a connection the backend had accepted.
    Nothing,
    /// The backend may have seen some of it, and no byte of an answer came back.
    Something,
    /// The backend took it and was silent for all the time it may take.
    Silence,
    /// The backend answered with a status.
    Answered,
}

/// Whether an attempt may be followed by another, apart from budget and number. `replayable`: the body, if
/// any, is still at hand from its first byte.
pub fn may_retry(method: &Method, sent: Sent, replayable: bool) -> bool {
    match sent {
        Sent::Nothing => replayable,
        Sent::Something => replayable && is_idempotent(method),
        // It may well be at work. The same again would take as long, and add to what makes it slow.
        Sent::Silence => false,
        // An answer is the backend's own word, whatever it says: it is passed on.
        Sent::Answered => false,
    }
}

/// Whether a request that failed on a kept connection, `after` it was written, found the connection closed
/// rather than the backend broken.
pub fn is_stale(sent: Sent, after: Duration) -> bool {
    match sent {
        Sent::Nothing => true,
        Sent::Something => after <= STALE_MAX,
        Sent::Silence | Sent::Answered => false,
    }
}

/// The methods of which doing it twice equals doing it once.
pub fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::PUT | Method::DELETE | Method::OPTIONS | Method::TRACE
    )
}

/// Holds the retries of one service to a share of its requests.
#[derive(Debug, Default)]
pub struct RetryBudget {
    requests: Recent,
    /// Locked, so that threads that ask at the same time stay within the share together.
    retries: Mutex<Recent>,
}

impl RetryBudget {
    /// A request came in.
    pub fn deposit(&self, now: Timestamp) {
        self.requests.add(now);
    }

    /// Takes one retry, where retries are to be `percent` of the requests; false when the budget is used up.
    pub fn withdraw(&self, now: Timestamp, percent: u32) -> bool {
        let share = self.requests.sum(now) * u64::from(percent.min(100)) / 100;
        let retries = self.retries.lock().unwrap_or_else(PoisonError::into_inner);
        let is_granted = percent > 0 && retries.sum(now) < share.max(FLOOR);
        if is_granted {
            retries.add(now);
        }
        is_granted
    }
}

/// A count over the last seconds: per second a slot, with the second in the upper half and its count in the
/// lower.
#[derive(Debug, Default)]
struct Recent([AtomicU64; WINDOW]);

impl Recent {
    fn add(&self, now: Timestamp) {
        let second = second(now);
        let slot = usize::try_from(second).unwrap_or(0) % WINDOW;
        let count = |held: u64| {
            let is_same = held >> 32 >= second;
            Some(if is_same {
                held + 1
            } else {
                (second << 32) + 1
            })
        };
        let _always = self.0[slot].fetch_update(Ordering::Relaxed, Ordering::Relaxed, count);
    }

    fn sum(&self, now: Timestamp) -> u64 {
        let oldest = (second(now) + 1).saturating_sub(WINDOW as u64);
        let slots = self.0.iter().map(|slot| slot.load(Ordering::Relaxed));
        slots
            .filter(|held| held >> 32 >= oldest)
            .map(|held| held & u64::from(u32::MAX))
            .sum()
    }
}

fn second(now: Timestamp) -> u64 {
    u64::try_from(now.as_micros() / 1_000_000).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_what_was_never_sent_or_is_idempotent_goes_out_again() {
        let cases = [
            (Method::GET, Sent::Something, true, true),
            (Method::PUT, Sent::Something, true, true),
            (Method::PUT, Sent::Something, false, false),
            (Method::POST, Sent::Something, true, false),
            (Method::PATCH, Sent::Something, true, false),
            (Method::POST, Sent::Nothing, true, true),
            (Method::POST, Sent::Nothing, false, false),
            (Method::GET, Sent::Silence, true, false),
            (Method::GET, Sent::Answered, true, false),
        ];
        for (method, sent, replayable, expected) in cases {
            assert_eq!(
                may_retry(&method, sent, replayable),
                expected,
                "{method} {sent:?} {replayable}"
            );
        }
    }

    #[test]
    fn only_a_connection_that_breaks_at_once_was_stale() {
        let cases = [
            (Sent::Nothing, 3_000, true),
            (Sent::Something, 1, true),
            (Sent::Something, 20, true),
            (Sent::Something, 21, false),
            (Sent::Something, 3_000, false),
            (Sent::Silence, 1, false),
            (Sent::Answered, 1, false),
        ];
        for (sent, millis, expected) in cases {
            let found = is_stale(sent, Duration::from_millis(millis));
            assert_eq!(found, expected, "{sent:?} {millis}");
        }
    }

    fn after(began: Timestamp, millis: u64) -> Timestamp {
        began + Duration::from_millis(millis)
    }

    #[test]
    fn all_that_was_in_flight_to_one_dead_instance_of_three_goes_out_again() {
        // One request in twenty takes three seconds; a third of what is in flight was on the dead one.
        for per_second in [1, 20, 100, 400, 1_000] {
            let budget = RetryBudget::default();
            let began = Timestamp::from_millis(5_000);
            for number in 0..per_second * 10 {
                budget.deposit(after(began, number * 1_000 / per_second));
            }
            let lost = per_second * 3 / 20 / 3 + 10;
            let granted = (0..lost).filter(|_| budget.withdraw(after(began, 9_999), 20));
            assert_eq!(granted.count() as u64, lost, "{per_second}/s");
        }
    }

    #[test]
    fn a_quiet_time_buys_nothing() {
        let budget = RetryBudget::default();
        let began = Timestamp::from_millis(5_000);
        let granted = |at| (0..1_000).filter(|_| budget.withdraw(at, 20)).count();
        for _ in 0..1_000 {
            budget.deposit(began);
        }
        assert_eq!(granted(after(began, 9_000)), 200);
        assert_eq!(granted(after(began, 9_000)), 0);
        assert_eq!(granted(after(began, 60_000)), 20);
        assert!(!budget.withdraw(after(began, 120_000), 0));
    }

    proptest! {
        #[test]
        fn retries_stay_within_the_share_and_the_floor(
            steps in prop::collection::vec((any::<bool>(), 0_u64..400), 0..2_000),
        ) {
            let budget = RetryBudget::default();
            let mut now = Timestamp::from_millis(1_000);
            let (mut requests, mut retries) = (Vec::new(), Vec::new());
            for (is_request, millis) in steps {
                now = after(now, millis);
                if is_request {
                    budget.deposit(now);
                    requests.push(second(now));
                    continue;
                }
                let recent = |list: &[u64]| list.iter().filter(|at| **at + 10 > second(now)).count() as u64;
                let may = recent(&retries) < FLOOR.max(recent(&requests) / 5);
                prop_assert_eq!(budget.withdraw(now, 20), may);
                if may {
                    retries.push(second(now));
                }
            }
        }
    }
}
