//! Whether a request that failed may be sent again (RFC 9110, 9.2.2), and how many retries a service may have.
//!
//! The budget holds retries to a share of the requests, so that retries never multiply an overload. It is a
//! bank: each request pays a share in, each retry takes a whole one out. It starts with a small floor, so that
//! a quiet service can retry at all, and is capped, so that a long quiet time cannot buy a storm.

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};

use http::Method;

/// Retries the budget starts with.
const FLOOR: i64 = 100;
/// Retries it can hold.
const CAP: i64 = 1_000;
/// One retry, in the hundredths the bank counts in.
const WHOLE: i64 = 100;

/// An idle connection that the backend had closed breaks this soon after a request is written to it.
const STALE_MAX: Duration = Duration::from_millis(20);

/// How far an attempt got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// No byte of the request reached a connection the backend had accepted.
    Nothing,
    /// The backend may have seen some of it, and no byte of an answer came back.
    Something,
    /// The backend answered with a status.
    Answered,
}

/// Whether an attempt may be followed by another, apart from budget and number. `replayable`: the body, if
/// any, is still at hand from its first byte.
pub fn may_retry(method: &Method, sent: Sent, replayable: bool) -> bool {
    match sent {
        Sent::Nothing => replayable,
        Sent::Something => replayable && is_idempotent(method),
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
        Sent::Answered => false,
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
#[derive(Debug)]
pub struct RetryBudget {
    hundredths: AtomicI64,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self {
            hundredths: AtomicI64::new(FLOOR * WHOLE),
        }
    }
}

impl RetryBudget {
    /// A request came in: it pays `percent` of a retry.
    pub fn deposit(&self, percent: u32) {
        if self.hundredths.load(Ordering::Relaxed) < CAP * WHOLE {
            self.hundredths
                .fetch_add(i64::from(percent.min(100)), Ordering::Relaxed);
        }
    }

    /// Takes one retry; false when the budget is used up.
    pub fn withdraw(&self) -> bool {
        let take = |held: i64| (held >= WHOLE).then_some(held - WHOLE);
        self.hundredths
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .is_ok()
    }
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
            (Sent::Answered, 1, false),
        ];
        for (sent, millis, expected) in cases {
            let found = is_stale(sent, Duration::from_millis(millis));
            assert_eq!(found, expected, "{sent:?} {millis}");
        }
    }

    proptest! {
        #[test]
        fn retries_stay_within_the_share_and_the_floor(steps in prop::collection::vec(any::<bool>(), 0..3000)) {
            let budget = RetryBudget::default();
            let (mut requests, mut retries) = (0_i64, 0_i64);
            for is_request in steps {
                if is_request {
                    budget.deposit(20);
                    requests += 1;
                } else if budget.withdraw() {
                    retries += 1;
                }
                prop_assert!(retries * 100 <= requests * 20 + FLOOR * 100);
            }
        }
    }
}
