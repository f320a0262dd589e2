//! Evaluation of one rule against one schedule. Pure: it knows no clock; the caller says when to give up.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    constraint::Rule,
    schedule::{Game, Schedule, Venue},
};

/// Violations kept of one evaluation; the count goes on.
const VIOLATIONS_MAX: usize = 200;
const EARTH_RADIUS_KM: f64 = 6_371.0;

/// What one rule found.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Finding {
    /// Pairs and runs of games that were looked at.
    pub checked: u64,
    pub violation_count: u64,
    pub violations: Vec<Violation>,
}

/// One way in which a schedule breaks a rule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Violation {
    pub games: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub team: Option<String>,
    pub detail: String,
    /// What was found and what is allowed, in the rule's unit.
    pub found: f64,
    pub allowed: f64,
}

/// The caller wanted no answer any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GivenUp;

/// Holds `schedule` against `rule`. `give_up` is asked once per game.
pub(crate) fn evaluate(
    rule: &Rule,
    schedule: &Schedule,
    give_up: &dyn Fn() -> bool,
) -> Result<Finding, GivenUp> {
    let mut finding = Finding::default();
    match *rule {
        Rule::RestDays { days_min } => rest_days(schedule, days_min, give_up, &mut finding)?,
        Rule::VenueConflict { buffer_minutes } => {
            venue_conflict(schedule, buffer_minutes, give_up, &mut finding)?
        }
        Rule::TravelDistance {
            leg_km_max,
            total_km_max,
        } => {
            travel(schedule, leg_km_max, total_km_max, give_up, &mut finding)?;
        }
        Rule::BackToBack { consecutive_max } => {
            back_to_back(schedule, consecutive_max, give_up, &mut finding)?
        }
    }
    Ok(finding)
}

impl Finding {
    fn violated(
        &mut self,
        games: &[&Game],
        team: Option<&str>,
        detail: String,
        found: f64,
        allowed: f64,
    ) {
        self.violation_count += 1;
        if self.violations.len() < VIOLATIONS_MAX {
            let games = games.iter().map(|game| game.id.clone()).collect();
            self.violations.push(Violation {
                games,
                team: team.map(str::to_owned),
                detail,
                found,
                allowed,
            });
        }
    }
}

/// The games of each team in the order they are played.
fn by_team<'a>(
    schedule: &'a Schedule,
    give_up: &dyn Fn() -> bool,
) -> Result<BTreeMap<&'a str, Vec<&'a Game>>, GivenUp> {
    let mut teams: BTreeMap<&str, Vec<&Game>> = BTreeMap::new();
    for game in &schedule.games {
        refuse(give_up)?;
        for team in game.teams() {
            teams.entry(team).or_default().push(game);
        }
    }
    for games in teams.values_mut() {
        games.sort_by_key(|game| game.start);
    }
    Ok(teams)
}

fn refuse(give_up: &dyn Fn() -> bool) -> Result<(), GivenUp> {
    if give_up() { Err(GivenUp) } else { Ok(()) }
}

fn rest_days(
    schedule: &Schedule,
    days_min: i64,
    give_up: &dyn Fn() -> bool,
    finding: &mut Finding,
) -> Result<(), GivenUp> {
    let zone = schedule.time_zone().unwrap_or(jiff::tz::TimeZone::UTC);
    for (team, games) in by_team(schedule, give_up)? {
        for pair in games.windows(2) {
            refuse(give_up)?;
            finding.checked += 1;
            let days = days_between(schedule, pair[0], pair[1], &zone) - 1;
            if days < days_min {
                let detail = format!(
                    "{team} rests {} day(s) between two games, {days_min} are asked for",
                    days.max(0)
                );
                finding.violated(
                    pair,
                    Some(team),
                    detail,
                    days.max(0) as f64,
                    days_min as f64,
                );
            }
        }
    }
    Ok(())
}

fn days_between(
    schedule: &Schedule,
    first: &Game,
    second: &Game,
    zone: &jiff::tz::TimeZone,
) -> i64 {
    let days = schedule.day(second, zone) - schedule.day(first, zone);
    i64::from(days.get_days())
}

fn venue_conflict(
    schedule: &Schedule,
    buffer_minutes: i64,
    give_up: &dyn Fn() -> bool,
    finding: &mut Finding,
) -> Result<(), GivenUp> {
    let mut venues: BTreeMap<&str, Vec<&Game>> = BTreeMap::new();
    for game in &schedule.games {
        venues.entry(&game.venue.id).or_default().push(game);
    }
    for (venue, mut games) in venues {
        games.sort_by_key(|game| game.start);
        for (index, first) in games.iter().enumerate() {
            refuse(give_up)?;
            let free_at = first.end_second() + buffer_minutes * 60;
            // Games are in order of their start, so the first that begins later ends the search.
            for second in games[index + 1..]
                .iter()
                .take_while(|game| game.start.as_second() < free_at)
            {
                finding.checked += 1;
                let gap = (second.start.as_second() - first.end_second()) as f64 / 60.0;
                let detail = format!(
                    "{venue} is not free: {gap} minute(s) between two games, {buffer_minutes} are asked for"
                );
                finding.violated(&[first, second], None, detail, gap, buffer_minutes as f64);
            }
            finding.checked += 1;
        }
    }
    Ok(())
}

fn travel(
    schedule: &Schedule,
    leg_km_max: f64,
    total_km_max: Option<f64>,
    give_up: &dyn Fn() -> bool,
    finding: &mut Finding,
) -> Result<(), GivenUp> {
    for (team, games) in by_team(schedule, give_up)? {
        let mut total = 0.0;
        for pair in games.windows(2) {
            refuse(give_up)?;
            finding.checked += 1;
            let leg = kilometres(&pair[0].venue, &pair[1].venue);
            total += leg;
            if leg > leg_km_max {
                let detail = format!(
                    "{team} travels {leg:.0} km between two games, {leg_km_max:.0} are allowed"
                );
                finding.violated(pair, Some(team), detail, leg, leg_km_max);
            }
        }
        if let Some(allowed) = total_km_max
            && total > allowed
        {
            let detail = format!("{team} travels {total:.0} km in all, {allowed:.0} are allowed");
            finding.violated(&[], Some(team), detail, total, allowed);
        }
    }
    Ok(())
}

/// The great-circle distance (haversine).
fn kilometres(from: &Venue, to: &Venue) -> f64 {
    let half_latitude = (to.latitude - from.latitude).to_radians() / 2.0;
    let half_longitude = (to.longitude - from.longitude).to_radians() / 2.0;
    let chord = half_latitude.sin().powi(2)
        + from.latitude.to_radians().cos()
            * to.latitude.to_radians().cos()
            * half_longitude.sin().powi(2);
    2.0 * EARTH_RADIUS_KM * chord.sqrt().min(1.0).asin()
}

fn back_to_back(
    schedule: &Schedule,
    consecutive_max: i64,
    give_up: &dyn Fn() -> bool,
    finding: &mut Finding,
) -> Result<(), GivenUp> {
    let zone = schedule.time_zone().unwrap_or(jiff::tz::TimeZone::UTC);
    for (team, games) in by_team(schedule, give_up)? {
        let mut run: Vec<&Game> = Vec::new();
        let mut days = 0;
        let mut close = |run: &mut Vec<&Game>, days: i64| {
            finding.checked += 1;
            if days > consecutive_max {
                let detail =
                    format!("{team} plays on {days} days in a row, {consecutive_max} are allowed");
                finding.violated(run, Some(team), detail, days as f64, consecutive_max as f64);
            }
            run.clear();
        };
        for game in games {
            refuse(give_up)?;
            match run
                .last()
                .map(|last| days_between(schedule, last, game, &zone))
            {
                None => days = 1,
                Some(0) => {}
                Some(1) => days += 1,
                Some(_) => {
                    close(&mut run, days);
                    days = 1;
                }
            }
            run.push(game);
        }
        close(&mut run, days);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn schedule(games: &[(&str, &str, &str, &str, &str)]) -> Schedule {
        let place = |venue: &str| match venue {
            "paris" => (48.8566, 2.3522),
            "london" => (51.5074, -0.1278),
            _ => (0.0, 0.0),
        };
        let games: Vec<_> = games
            .iter()
            .map(|(id, home, away, venue, start)| {
                let (latitude, longitude) = place(venue);
                json!({"id": id, "home": home, "away": away, "start": start,
                       "venue": {"id": venue, "latitude": latitude, "longitude": longitude}})
            })
            .collect();
        serde_json::from_value(json!({"id": "s", "sport": "basketball", "games": games})).unwrap()
    }

    fn check(rule: Rule, schedule: &Schedule) -> Vec<(Vec<String>, Option<String>)> {
        let finding = evaluate(&rule, schedule, &|| false).unwrap();
        assert_eq!(finding.violation_count as usize, finding.violations.len());
        finding
            .violations
            .into_iter()
            .map(|violation| (violation.games, violation.team))
            .collect()
    }

    #[test]
    fn counts_days_of_rest_between_games_of_a_team() {
        let schedule = schedule(&[
            ("1", "a", "b", "paris", "2026-03-01T20:00:00Z"),
            ("2", "a", "c", "paris", "2026-03-02T10:00:00Z"),
            ("3", "b", "c", "paris", "2026-03-04T10:00:00Z"),
        ]);
        let found = check(Rule::RestDays { days_min: 1 }, &schedule);
        assert_eq!(
            found,
            [(vec!["1".to_owned(), "2".to_owned()], Some("a".to_owned()))]
        );
        assert_eq!(check(Rule::RestDays { days_min: 0 }, &schedule), []);
    }

    #[test]
    fn a_day_is_the_day_of_the_schedules_zone() {
        let mut schedule = schedule(&[
            ("1", "a", "b", "paris", "2026-03-01T23:30:00Z"),
            ("2", "a", "c", "paris", "2026-03-02T05:30:00Z"),
        ]);
        assert_eq!(check(Rule::RestDays { days_min: 0 }, &schedule).len(), 0);
        assert_eq!(
            check(Rule::BackToBack { consecutive_max: 1 }, &schedule).len(),
            1
        );
        schedule.time_zone = Some("Asia/Tokyo".to_owned());
        assert_eq!(
            check(Rule::BackToBack { consecutive_max: 1 }, &schedule).len(),
            0
        );
    }

    #[test]
    fn a_venue_holds_one_game_at_a_time() {
        let schedule = schedule(&[
            ("1", "a", "b", "paris", "2026-03-01T10:00:00Z"),
            ("2", "c", "d", "paris", "2026-03-01T11:59:00Z"),
            ("3", "e", "f", "paris", "2026-03-01T14:00:00Z"),
            ("4", "g", "h", "london", "2026-03-01T10:00:00Z"),
        ]);
        assert_eq!(
            check(Rule::VenueConflict { buffer_minutes: 0 }, &schedule).len(),
            1
        );
        assert_eq!(
            check(Rule::VenueConflict { buffer_minutes: 30 }, &schedule).len(),
            2
        );
    }

    #[test]
    fn measures_legs_and_totals_on_the_globe() {
        let schedule = schedule(&[
            ("1", "a", "b", "paris", "2026-03-01T10:00:00Z"),
            ("2", "a", "c", "london", "2026-03-05T10:00:00Z"),
            ("3", "a", "d", "paris", "2026-03-09T10:00:00Z"),
        ]);
        let finding = evaluate(
            &Rule::TravelDistance {
                leg_km_max: 300.0,
                total_km_max: Some(600.0),
            },
            &schedule,
            &|| false,
        )
        .unwrap();
        assert_eq!(finding.violation_count, 3);
        assert!(
            (finding.violations[0].found - 343.6).abs() < 1.0,
            "{:?}",
            finding.violations[0]
        );
        assert_eq!(
            check(
                Rule::TravelDistance {
                    leg_km_max: 400.0,
                    total_km_max: None
                },
                &schedule
            ),
            []
        );
    }

    #[test]
    fn a_run_of_days_is_one_violation() {
        let schedule = schedule(&[
            ("1", "a", "b", "paris", "2026-03-01T10:00:00Z"),
            ("2", "a", "c", "paris", "2026-03-02T10:00:00Z"),
            ("3", "a", "d", "paris", "2026-03-03T10:00:00Z"),
            ("4", "a", "e", "paris", "2026-03-09T10:00:00Z"),
        ]);
        let found = check(Rule::BackToBack { consecutive_max: 2 }, &schedule);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].0, ["1", "2", "3"]);
    }

    #[test]
    fn gives_up_when_told() {
        let schedule = schedule(&[("1", "a", "b", "paris", "2026-03-01T10:00:00Z")]);
        assert_eq!(
            evaluate(&Rule::BackToBack { consecutive_max: 1 }, &schedule, &|| {
                true
            }),
            Err(GivenUp)
        );
    }
}
