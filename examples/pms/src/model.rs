//! Rooms, stays and reservations, and what makes them valid.

use jiff::civil::Date;
use serde::{Deserialize, Serialize};

/// A stay is no lease.
const NIGHTS_MAX: i32 = 365;
const GUEST_CHARS_MAX: usize = 200;
const ROOM_CHARS_MAX: usize = 16;
const KIND_CHARS_MAX: usize = 32;
/// A million a night.
const PRICE_CENTS_MAX: u32 = 100_000_000;

/// A room that can be booked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Room {
    pub number: String,
    pub kind: String,
    /// For one night.
    pub price_cents: u32,
}

impl Room {
    /// What is wrong with it.
    pub(crate) fn problem(&self) -> Option<String> {
        let number = self.number.chars().count();
        if !(1..=ROOM_CHARS_MAX).contains(&number) {
            return Some(format!("number must have 1 to {ROOM_CHARS_MAX} characters"));
        }
        if !(1..=KIND_CHARS_MAX).contains(&self.kind.chars().count()) {
            return Some(format!("kind must have 1 to {KIND_CHARS_MAX} characters"));
        }
        (self.price_cents > PRICE_CENTS_MAX)
            .then(|| format!("price_cents must be at most {PRICE_CENTS_MAX}"))
    }
}

/// From the day of arrival to the day of departure, whose night is not booked any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stay {
    pub arrives: Date,
    pub departs: Date,
}

impl Stay {
    /// What is wrong with it.
    pub(crate) fn problem(&self) -> Option<String> {
        let nights = self.departs.since(self.arrives).map(|span| span.get_days());
        match nights {
            Ok(1..=NIGHTS_MAX) => None,
            Ok(_) | Err(_) => Some(format!(
                "departs must be 1 to {NIGHTS_MAX} days after arrives"
            )),
        }
    }
}

/// What a client asks for.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Draft {
    pub room: String,
    pub guest: String,
    pub arrives: Date,
    pub departs: Date,
}

impl Draft {
    pub(crate) fn stay(&self) -> Stay {
        Stay {
            arrives: self.arrives,
            departs: self.departs,
        }
    }

    /// What is wrong with it.
    pub(crate) fn problem(&self) -> Option<String> {
        if !(1..=GUEST_CHARS_MAX).contains(&self.guest.trim().chars().count()) {
            return Some(format!("guest must have 1 to {GUEST_CHARS_MAX} characters"));
        }
        self.stay().problem()
    }
}

/// A reservation as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Reservation {
    pub id: u64,
    pub room: String,
    pub guest: String,
    pub arrives: String,
    pub departs: String,
    /// `booked` or `cancelled`.
    pub state: String,
    /// SHA-256 of the signed document, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub document_sha256: Option<String>,
}

/// One line of a reservation's history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Change {
    pub at: String,
    pub action: String,
    /// Of the app that made it.
    pub release: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stay(arrives: &str, departs: &str) -> Stay {
        Stay {
            arrives: arrives.parse().unwrap(),
            departs: departs.parse().unwrap(),
        }
    }

    #[test]
    fn a_stay_has_a_night_and_an_end() {
        assert_eq!(stay("2027-02-28", "2027-03-01").problem(), None);
        assert_eq!(stay("2027-01-01", "2028-01-01").problem(), None);
        for (arrives, departs) in [
            ("2027-03-01", "2027-03-01"),
            ("2027-03-02", "2027-03-01"),
            ("2027-01-01", "2028-01-02"),
        ] {
            assert!(
                stay(arrives, departs).problem().is_some(),
                "{arrives} {departs}"
            );
        }
    }

    #[test]
    fn names_and_prices_are_bounded() {
        let room = |number: &str, price_cents| Room {
            number: number.to_owned(),
            kind: "double".to_owned(),
            price_cents,
        };
        assert_eq!(room("101", 9_900).problem(), None);
        assert!(room("", 9_900).problem().is_some());
        assert!(room("0123456789abcdefg", 9_900).problem().is_some());
        assert!(room("101", u32::MAX).problem().is_some());
    }
}
