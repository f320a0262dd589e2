//! When a certificate is ordered, when again after a failure, and when somebody must be told. Pure: the same
//! facts at the same instant give the same answer. Chance comes from the host's name and the certificate, so that a
//! restart changes no appointment and hosts do not all come due at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use landfast_types::Timestamp;
use serde::{Deserialize, Serialize};

/// Orders under way at once.
pub(crate) const ORDERS_MAX: usize = 4;
/// The first wait after a failure; it doubles with each further one. Four failures in the first hour, where
/// Let's Encrypt allows five.
const RETRY_FIRST: Duration = Duration::from_secs(300);
const RETRY_MAX: Duration = Duration::from_secs(6 * 3_600);
/// An authority that says "too many" is left alone for at least this.
const RATE_LIMITED_MIN: Duration = Duration::from_secs(3_600);
/// No wait is longer than this part of the life of the certificate that is being renewed, so that short-lived
/// certificates are tried often enough.
const RETRY_LIFE_PARTS: u32 = 30;
/// A renewal that a person asks for still leaves the authority this pause.
const ASKED_MIN: Duration = Duration::from_secs(10);
/// How often an order that was cut off by the end of the server is taken up at once, before it waits like a failure.
const RESUMES_AT_ONCE: u32 = 3;
/// Failures in a row after which somebody is told, where an old certificate still serves.
const FAILURES_TO_TELL: u32 = 2;
/// The same as an error where there is no certificate at all.
const FAILURES_TO_ALARM: u32 = 3;

/// From when to when a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Validity {
    pub(crate) not_before: Timestamp,
    pub(crate) not_after: Timestamp,
}

impl Validity {
    pub(crate) fn life(self) -> Duration {
        self.not_after.since(self.not_before)
    }

    pub(crate) fn holds_at(self, now: Timestamp) -> bool {
        self.not_before <= now && now < self.not_after
    }
}

/// What became of the attempts since the last success. Kept on disk: a server that starts again and again must
/// not ask again and again.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Attempts {
    /// In a row.
    pub(crate) failures: u32,
    /// Attempts that began and never ended, in a row.
    pub(crate) cut_off: u32,
    /// When the newest one began or, if it ended, when it ended.
    pub(crate) last_at: Option<Timestamp>,
    /// Why the newest one failed.
    pub(crate) reason: Option<String>,
    pub(crate) rate_limited: bool,
}

/// Everything a decision about one host is made from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Known {
    pub(crate) validity: Option<Validity>,
    pub(crate) attempts: Attempts,
    /// A person wants it now.
    pub(crate) asked: bool,
    /// Somebody else's good certificate covers the host.
    pub(crate) covered: bool,
}

/// What to begin, and when to look again.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Choice {
    pub(crate) begin: Vec<String>,
    pub(crate) wake: Option<Timestamp>,
}

/// Chooses which orders begin now. The longest due come first.
pub(crate) fn choose(
    now: Timestamp,
    hosts: &BTreeMap<String, Known>,
    under_way: &BTreeSet<String>,
) -> Choice {
    let mut due: Vec<(Timestamp, &String)> = hosts
        .iter()
        .filter(|(host, _)| !under_way.contains(*host))
        .filter_map(|(host, known)| Some((next_order(host, known)?, host)))
        .collect();
    due.sort();
    let room = ORDERS_MAX.saturating_sub(under_way.len());
    let ready = due.iter().filter(|(at, _)| *at <= now);
    Choice {
        begin: ready.take(room).map(|(_, host)| (*host).clone()).collect(),
        // What waits for room is woken by the end of an order.
        wake: due.iter().map(|(at, _)| *at).find(|at| *at > now),
    }
}

/// When the next order for a host begins; `None` where it needs none.
pub(crate) fn next_order(host: &str, known: &Known) -> Option<Timestamp> {
    let attempts = &known.attempts;
    let after = |wait: Duration| attempts.last_at.map_or(Timestamp::EPOCH, |at| at + wait);
    if known.covered {
        return None;
    }
    if known.asked {
        return Some(after(ASKED_MIN));
    }
    let in_a_row = attempts.failures + attempts.cut_off.saturating_sub(RESUMES_AT_ONCE);
    let life = known.validity.map(Validity::life);
    let again = match in_a_row {
        0 => Timestamp::EPOCH,
        failures => after(retry_wait(host, failures, life, attempts.rate_limited)),
    };
    let due = known
        .validity
        .map_or(Timestamp::EPOCH, |validity| renew_at(host, validity));
    // What was begun is ended first, whatever the appointment says.
    let begun = attempts.cut_off > 0;
    Some(if begun { again } else { again.max(due) })
}

/// Two thirds into its life, give or take a twentieth.
pub(crate) fn renew_at(host: &str, validity: Validity) -> Timestamp {
    let life = validity.life();
    let early = life / 3 * 2 - life / 20;
    let spread = life / 10;
    let chance = chance(host, &validity.not_before.as_micros().to_be_bytes());
    validity.not_before + early + spread.mul_f64(chance)
}

fn retry_wait(host: &str, failures: u32, life: Option<Duration>, rate_limited: bool) -> Duration {
    let doubled = RETRY_FIRST.saturating_mul(1 << (failures - 1).min(16));
    let mut wait = doubled.min(RETRY_MAX);
    if rate_limited {
        wait = wait.max(RATE_LIMITED_MIN);
    }
    // A tenth more at most, so that hosts that failed together do not come back together.
    wait = wait.mul_f64(1.0 + chance(host, &failures.to_be_bytes()) / 10.0);
    life.map_or(wait, |life| wait.min(life / RETRY_LIFE_PARTS))
}

/// A number in [0, 1) from a name and a salt (FNV-1a, finished so that near names differ).
fn chance(host: &str, salt: &[u8]) -> f64 {
    let bytes = host.bytes().chain(salt.iter().copied());
    let mut hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    (hash >> 11) as f64 / (1_u64 << 53) as f64
}

/// How much somebody should hurry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    Warning,
    Error,
}

/// Something somebody should look at, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alert {
    pub severity: Severity,
    /// Without the host: `its renewal fails (3 times): …; it expires in 20 days`.
    pub text: String,
}

/// What is to be told of a certificate that comes by ACME.
pub(crate) fn alert(now: Timestamp, known: &Known) -> Option<Alert> {
    let attempts = &known.attempts;
    let reason = attempts.reason.as_deref().unwrap_or("no reason is known");
    let failures = attempts.failures;
    let times = format!(
        "{failures} {}",
        if failures == 1 { "time" } else { "times" }
    );
    let Some(validity) = known.validity else {
        return (failures > 0).then(|| Alert {
            severity: severity(failures >= FAILURES_TO_ALARM),
            text: format!("no certificate yet, tried {times}: {reason}"),
        });
    };
    if failures >= FAILURES_TO_TELL {
        let ends = expiry(now, validity);
        // A ninth of its life: ten days of ninety.
        let is_near = validity.not_after.since(now) < validity.life() / 9;
        return Some(Alert {
            severity: severity(is_near),
            text: format!("the renewal failed {times}: {reason}; the certificate {ends}"),
        });
    }
    expiring(now, validity)
}

/// What is to be told of any certificate that nears its end while nobody seems to renew it.
pub(crate) fn expiring(now: Timestamp, validity: Validity) -> Option<Alert> {
    let left = validity.not_after.since(now);
    let life = validity.life();
    (left < life / 5).then(|| Alert {
        severity: severity(left < life / 9),
        text: format!("the certificate {}", expiry(now, validity)),
    })
}

fn severity(is_error: bool) -> Severity {
    if is_error {
        Severity::Error
    } else {
        Severity::Warning
    }
}

fn expiry(now: Timestamp, validity: Validity) -> String {
    let left = validity.not_after.since(now);
    if left.is_zero() {
        return format!("expired at {}", validity.not_after);
    }
    let days = left.as_secs() / 86_400;
    let rest = match days {
        0 if left.as_secs() < 3_600 => format!("{} minutes", left.as_secs() / 60),
        0 => format!("{} hours", left.as_secs() / 3_600),
        1 => "1 day".to_owned(),
        days => format!("{days} days"),
    };
    format!("expires in {rest}")
}

#[cfg(test)]
mod tests;
