//! The schedule, fixed in advance: which request is sent when, of which kind, over what. Pure.

use std::time::Duration;

use crate::{settings::Settings, tally::Kind};

/// One request of the schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Planned {
    pub number: u64,
    /// Since the start of the run.
    pub at: Duration,
    pub kind: Kind,
    pub http2: bool,
    pub new_connection: bool,
    /// On a new connection over HTTP/1.1: whether the server is asked to close it.
    pub asks_close: bool,
}

/// Request `number` of the run. `settings.rate` must not be zero.
pub(crate) fn planned(settings: &Settings, number: u64) -> Planned {
    let draw = |what: u64, percent: u8| {
        mix(settings.seed ^ mix(number ^ what << 56)) % 100 < u64::from(percent)
    };
    let share = mix(settings.seed ^ mix(number)) % 100;
    let (posts, waits) = (
        u64::from(settings.post_percent),
        u64::from(settings.wait_percent),
    );
    let kind = match share {
        share if share < posts => Kind::Post,
        share if share < posts + waits => Kind::Wait,
        _ => Kind::Get,
    };
    Planned {
        number,
        at: Duration::from_nanos(
            (u128::from(number) * 1_000_000_000 / u128::from(settings.rate)) as u64,
        ),
        kind,
        http2: draw(1, settings.http2_percent),
        new_connection: draw(2, settings.new_connection_percent),
        asks_close: draw(3, 50),
    }
}

/// Splitmix64: spreads a counter over all numbers.
pub(crate) fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schedule_has_the_shares_of_the_contract_and_is_fixed() {
        let mut settings = Settings::new("127.0.0.1:1".parse().unwrap(), "x");
        settings.http2_percent = 20;
        let all: Vec<Planned> = (0..100_000)
            .map(|number| planned(&settings, number))
            .collect();
        let count = |of: &dyn Fn(&Planned) -> bool| all.iter().filter(|one| of(one)).count();
        for (found, wanted) in [
            (count(&|one| one.kind == Kind::Post), 30_000),
            (count(&|one| one.kind == Kind::Wait), 5_000),
            (count(&|one| one.http2), 20_000),
            (count(&|one| one.new_connection), 50_000),
            (
                count(&|one| one.new_connection && one.kind == Kind::Post),
                15_000,
            ),
        ] {
            assert!(found.abs_diff(wanted) < 700, "{found} instead of {wanted}");
        }
        assert_eq!(all[99_999].at, Duration::from_micros(99_999_000));
        assert_eq!(planned(&settings, 77), all[77]);
    }
}
