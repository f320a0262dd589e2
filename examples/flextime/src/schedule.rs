//! Schedules: games with teams, a venue and a time. Pure.

use std::collections::BTreeSet;

use jiff::{Timestamp, civil::Date, tz::TimeZone};
use serde::{Deserialize, Serialize};

use crate::problem::FieldError;

/// Games one schedule may hold.
pub(crate) const GAMES_MAX: usize = 20_000;

/// What a client wants evaluated.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Schedule {
    pub id: String,
    pub sport: String,
    /// The zone in which days are counted; UTC when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_zone: Option<String>,
    pub games: Vec<Game>,
}

/// One game.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Game {
    pub id: String,
    pub home: String,
    pub away: String,
    pub venue: Venue,
    pub start: Timestamp,
    #[serde(default = "two_hours")]
    pub duration_minutes: i64,
}

const fn two_hours() -> i64 {
    120
}

/// Where a game is played.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Venue {
    pub id: String,
    pub latitude: f64,
    pub longitude: f64,
}

impl Game {
    pub(crate) fn teams(&self) -> [&str; 2] {
        [&self.home, &self.away]
    }

    /// When it is over, in seconds since the epoch.
    pub(crate) fn end_second(&self) -> i64 {
        self.start.as_second() + self.duration_minutes * 60
    }
}

impl Schedule {
    /// Names everything that cannot be evaluated.
    pub(crate) fn problems(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if self.id.is_empty() || self.id.len() > 255 {
            errors.push(FieldError::new(
                "/schedule/id",
                "must have 1 to 255 characters",
            ));
        }
        if self.games.len() > GAMES_MAX {
            errors.push(FieldError::new(
                "/schedule/games",
                format!("must be at most {GAMES_MAX}"),
            ));
            return errors;
        }
        if self.time_zone().is_none() {
            errors.push(FieldError::new(
                "/schedule/time_zone",
                "is no IANA time zone",
            ));
        }
        let mut ids = BTreeSet::new();
        for (index, game) in self.games.iter().enumerate() {
            let mut wrong = |field: &str, detail: &str| {
                errors.push(FieldError::new(
                    format!("/schedule/games/{index}{field}"),
                    detail,
                ));
            };
            if !ids.insert(&game.id) {
                wrong("/id", "is used twice");
            }
            if game.home == game.away {
                wrong("/away", "is also the home team");
            }
            if !(1..=1440).contains(&game.duration_minutes) {
                wrong("/duration_minutes", "must be 1 to 1440");
            }
            if !(-90.0..=90.0).contains(&game.venue.latitude) {
                wrong("/venue/latitude", "must be -90 to 90");
            }
            if !(-180.0..=180.0).contains(&game.venue.longitude) {
                wrong("/venue/longitude", "must be -180 to 180");
            }
        }
        errors
    }

    /// The zone its days are counted in, if there is such a zone.
    pub(crate) fn time_zone(&self) -> Option<TimeZone> {
        match &self.time_zone {
            None => Some(TimeZone::UTC),
            Some(name) => TimeZone::get(name).ok(),
        }
    }

    /// The day a game is played on.
    pub(crate) fn day(&self, game: &Game, zone: &TimeZone) -> Date {
        zone.to_datetime(game.start).date()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_every_problem_of_a_schedule() {
        let schedule: Schedule = serde_json::from_value(json!({
            "id": "s", "sport": "x", "time_zone": "Mars/Olympus",
            "games": [
                {"id": "g", "home": "a", "away": "a", "venue": {"id": "v", "latitude": 91, "longitude": 0}, "start": "2026-01-01T10:00:00Z"},
                {"id": "g", "home": "a", "away": "b", "venue": {"id": "v", "latitude": 0, "longitude": 0}, "start": "2026-01-01T10:00:00Z"},
            ],
        }))
        .unwrap();
        let pointers: Vec<String> = schedule
            .problems()
            .into_iter()
            .map(|error| error.pointer)
            .collect();
        assert_eq!(
            pointers,
            [
                "/schedule/time_zone",
                "/schedule/games/0/away",
                "/schedule/games/0/venue/latitude",
                "/schedule/games/1/id"
            ]
        );
    }
}
