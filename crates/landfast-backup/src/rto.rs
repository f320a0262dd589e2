//! How long a restore would take, from what the last ones took.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rates {
    /// Bytes of files per second.
    pub restore: u64,
    /// Bytes of WAL per second.
    pub replay: u64,
}

/// How long each part would take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RtoEstimate {
    pub restore: Duration,
    pub replay: Duration,
    pub checks: Duration,
}

impl RtoEstimate {
    /// All of it.
    pub fn total(&self) -> Duration {
        self.restore + self.replay + self.checks
    }
}

/// `bytes ÷ restore rate + WAL ÷ replay rate + checks`. `None` where nothing was measured.
pub fn estimate_rto(
    rates: Rates,
    data_bytes: u64,
    wal_bytes: u64,
    checks: Duration,
) -> Option<RtoEstimate> {
    let at = |bytes: u64, rate: u64| {
        let micros = u128::from(bytes) * 1_000_000 / u128::from(rate);
        Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
    };
    (rates.restore > 0 && rates.replay > 0).then(|| RtoEstimate {
        restore: at(data_bytes, rates.restore),
        replay: at(wal_bytes, rates.replay),
        checks,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adds_up() {
        let rates = Rates {
            restore: 70_000_000,
            replay: 12_000_000,
        };
        let second = Duration::from_secs(1);
        let estimate = estimate_rto(rates, 140_000_000, 24_000_000, second).unwrap();
        assert_eq!(estimate.total(), 5 * second);
        let none = Rates {
            restore: 0,
            ..rates
        };
        assert_eq!(estimate_rto(none, 1, 1, second), None);
    }
}
