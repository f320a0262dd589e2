//! Faults a release can be built with, to see that a broken release is caught.
//!
//! `FLEXTIME_FAULT` at build time is a list separated by commas:
//!
//! | switch | effect |
//! | --- | --- |
//! | `errors:50` | 50 % of requests are answered 500 with `x-fault: injected` |
//! | `after:200` | faults of requests begin with the 201st request of an instance |
//! | `slow-start:8s` | `/ready` answers 503 for the first 8 s |
//! | `never-ready` | `/ready` always answers 503 |
//! | `leak` | each request keeps 64 KiB for ever, up to 1 GiB |
//! | `hang` | requests are never answered |
//! | `exit-at-start` | the process leaves with status 1 at once |
//! | `latency:2x`, `latency:50ms` | the time in the handler is doubled; 50 ms are added |
//!
//! Faults of requests never touch `/health`, `/ready` and `/metrics`, so that such a release looks well and is not.

use std::{
    str::FromStr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::settings;

const LEAK_BYTES: usize = 64 << 10;
const LEAK_BYTES_MAX: u64 = 1 << 30;

/// What is wrong with this release.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Fault {
    pub errors_percent: u64,
    pub after_requests: u64,
    pub slow_start: Duration,
    pub never_ready: bool,
    pub leak: bool,
    pub hang: bool,
    pub exit_at_start: bool,
    /// The factor by which handlers take longer, less one.
    pub latency_more: f64,
    pub latency_added: Duration,
}

/// A switch that means nothing.
#[derive(Debug, thiserror::Error)]
#[error("FLEXTIME_FAULT has `{0}`, which is no fault this application knows")]
pub(crate) struct UnknownFault(String);

impl FromStr for Fault {
    type Err = UnknownFault;

    fn from_str(text: &str) -> Result<Self, UnknownFault> {
        let mut fault = Self::default();
        for switch in text
            .split(',')
            .map(str::trim)
            .filter(|switch| !switch.is_empty())
        {
            let unknown = || UnknownFault(switch.to_owned());
            let (name, value) = switch.split_once(':').unwrap_or((switch, ""));
            match (name, value) {
                ("errors", percent) => {
                    let percent = percent.parse().ok().filter(|percent| *percent <= 100);
                    fault.errors_percent = percent.ok_or_else(unknown)?;
                }
                ("after", count) => fault.after_requests = count.parse().map_err(|_| unknown())?,
                ("slow-start", time) => {
                    fault.slow_start = settings::duration(time).ok_or_else(unknown)?
                }
                ("never-ready", "") => fault.never_ready = true,
                ("leak", "") => fault.leak = true,
                ("hang", "") => fault.hang = true,
                ("exit-at-start", "") => fault.exit_at_start = true,
                ("latency", value) => match value.strip_suffix('x') {
                    Some(factor) => {
                        let factor: Option<f64> =
                            factor.parse().ok().filter(|f| (1.0..=100.0).contains(f));
                        fault.latency_more = factor.ok_or_else(unknown)? - 1.0;
                    }
                    None => fault.latency_added = settings::duration(value).ok_or_else(unknown)?,
                },
                _ => return Err(unknown()),
            }
        }
        Ok(fault)
    }
}

/// What becomes of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Served,
    Failed,
    Hung,
}

/// Applies a fault to the requests of this process.
#[derive(Debug)]
pub(crate) struct Injector {
    fault: Fault,
    requests: AtomicU64,
    leaked: Mutex<Vec<Vec<u8>>>,
}

impl Injector {
    pub(crate) fn new(fault: Fault) -> Self {
        Self {
            fault,
            requests: AtomicU64::new(0),
            leaked: Mutex::default(),
        }
    }

    pub(crate) fn fault(&self) -> &Fault {
        &self.fault
    }

    /// Decides the fate of the next request. Failures are spread evenly rather than drawn, so that a rate of
    /// 50 % fails every second request and a test of ten sees five.
    pub(crate) fn next(&self) -> Fate {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let Some(number) = number.checked_sub(self.fault.after_requests) else {
            return Fate::Served;
        };
        if self.fault.leak && number * (LEAK_BYTES as u64) < LEAK_BYTES_MAX {
            // Written, not only reserved: a leak counts once its pages are touched.
            self.leaked
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(vec![1; LEAK_BYTES]);
        }
        let failures = |requests: u64| requests * self.fault.errors_percent / 100;
        if self.fault.hang {
            Fate::Hung
        } else if failures(number + 1) > failures(number) {
            Fate::Failed
        } else {
            Fate::Served
        }
    }

    /// How much longer a request must take that took `elapsed`.
    pub(crate) fn delay(&self, elapsed: Duration) -> Duration {
        if self.requests.load(Ordering::Relaxed) <= self.fault.after_requests {
            return Duration::ZERO;
        }
        elapsed.mul_f64(self.fault.latency_more) + self.fault.latency_added
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fails_the_share_it_was_built_for_and_only_after_its_time() {
        let injector = Injector::new("errors:30,after:10".parse().unwrap());
        let fates: Vec<Fate> = (0..110).map(|_| injector.next()).collect();
        assert!(fates[..10].iter().all(|fate| *fate == Fate::Served));
        assert_eq!(
            fates.iter().filter(|fate| **fate == Fate::Failed).count(),
            30
        );
    }

    #[test]
    fn refuses_switches_it_does_not_know() {
        for text in [
            "error:50",
            "errors:101",
            "slow-start:soon",
            "latency:x",
            "hang:2",
        ] {
            assert!(text.parse::<Fault>().is_err(), "{text}");
        }
        let fault: Fault = "slow-start:8s, latency:2x".parse().unwrap();
        assert_eq!(
            (fault.slow_start, fault.latency_more),
            (Duration::from_secs(8), 1.0)
        );
        assert_eq!("".parse::<Fault>().unwrap(), Fault::default());
    }

    #[test]
    fn doubles_the_time_of_requests() {
        let injector = Injector::new("latency:2x".parse().unwrap());
        injector.next();
        assert_eq!(
            injector.delay(Duration::from_millis(7)),
            Duration::from_millis(7)
        );
    }
}
