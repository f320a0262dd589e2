//! Quarters of years: the history in PostgreSQL has a partition for each.

use jiff::{Timestamp, civil::Date, tz::TimeZone};

/// A quarter, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Quarter {
    year: i16,
    /// From 1 to 4.
    number: i8,
}

impl Quarter {
    pub(crate) fn of(instant: Timestamp) -> Self {
        let date = instant.to_zoned(TimeZone::UTC).date();
        Self {
            year: date.year(),
            number: (date.month() - 1) / 3 + 1,
        }
    }

    pub(crate) fn next(self) -> Self {
        match self.number {
            4 => Self {
                year: self.year + 1,
                number: 1,
            },
            number => Self {
                number: number + 1,
                ..self
            },
        }
    }

    /// The first instant.
    pub(crate) fn start(self) -> Timestamp {
        let date = Date::constant(self.year, (self.number - 1) * 3 + 1, 1);
        let start = date.to_zoned(TimeZone::UTC);
        start.map_or(Timestamp::MAX, |start| start.timestamp())
    }

    /// `evaluation_history_2026q4`.
    pub(crate) fn table(self) -> String {
        format!("evaluation_history_{:04}q{}", self.year, self.number)
    }

    /// Reads the name of a table.
    pub(crate) fn of_table(table: &str) -> Option<Self> {
        let (year, number) = table.strip_prefix("evaluation_history_")?.split_once('q')?;
        let (year, number) = (year.parse().ok()?, number.parse().ok()?);
        (1..=4).contains(&number).then_some(Self { year, number })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quarters_follow_each_other_without_a_gap() {
        let mut quarter = Quarter::of("2026-11-21T14:00:00Z".parse().unwrap());
        assert_eq!(quarter.table(), "evaluation_history_2026q4");
        assert_eq!(quarter.start().to_string(), "2026-10-01T00:00:00Z");
        for _ in 0..9 {
            let next = quarter.next();
            assert!(next > quarter);
            assert_eq!(Quarter::of(next.start()), next);
            let last = next.start() - jiff::SignedDuration::from_micros(1);
            assert_eq!(Quarter::of(last), quarter);
            assert_eq!(Quarter::of_table(&next.table()), Some(next));
            quarter = next;
        }
        assert_eq!(Quarter::of_table("evaluation_history_2026q5"), None);
    }
}
