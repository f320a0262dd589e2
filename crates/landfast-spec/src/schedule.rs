//! Cron lines: five fields and a time zone, such as `0 3 * * * Europe/Berlin`.

use std::fmt;

use cronexpr::{Crontab, MakeTimestamp, normalize_crontab, parse_crontab};
use landfast_types::Timestamp;
use serde::{Deserialize, Serialize};

/// A checked cron line with its time zone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CronLine(String);

/// Why a text is not a cron line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CronError {
    #[error("the cron line has no time zone")]
    NoZone,
    #[error("`{0}` is not a cron line")]
    Shape(String),
    #[error("the cron line never comes due")]
    Never,
}

/// Further ahead nothing is looked for: a line that is not due by then never is.
const FAR: jiff::SignedDuration = jiff::SignedDuration::from_hours(24 * 366 * 8);

impl CronLine {
    /// Checks a line.
    ///
    /// # Errors
    /// When a field is wrong, the zone is missing or unknown, or no date ever matches.
    pub fn new(text: &str) -> Result<Self, CronError> {
        let line = normalize_crontab(text);
        let fields = line.split(' ').count();
        if fields == 5 && parse_crontab(&format!("{line} UTC")).is_ok() {
            return Err(CronError::NoZone);
        }
        parse_crontab(&line).map_err(|_| CronError::Shape(text.to_owned()))?;
        let line = Self(line);
        // 29 February comes at most eight years after any day (2096 to 2104).
        line.next_after(Timestamp::EPOCH).ok_or(CronError::Never)?;
        Ok(line)
    }

    /// The line as it was written, with single blanks.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first instant after `now` at which it is due. Across a change of the clocks the zone's own rules
    /// hold: an hour that does not exist is skipped over.
    pub fn next_after(&self, now: Timestamp) -> Option<Timestamp> {
        let crontab: Crontab = parse_crontab(&self.0).ok()?;
        let start = jiff::Timestamp::from_microsecond(now.as_micros()).ok()?;
        let next = crontab.find_next(MakeTimestamp(start)).ok()?.timestamp();
        (next.duration_since(start) <= FAR).then(|| Timestamp::from_micros(next.as_microsecond()))
    }
}

impl fmt::Display for CronLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl TryFrom<String> for CronLine {
    type Error = CronError;
    fn try_from(text: String) -> Result<Self, CronError> {
        Self::new(&text)
    }
}

impl From<CronLine> for String {
    fn from(line: CronLine) -> Self {
        line.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_in_the_zone_of_the_line() {
        let line = CronLine::new(" 0  3 * * * Europe/Berlin").expect("a line");
        assert_eq!(line.as_str(), "0 3 * * * Europe/Berlin");
        let next = line.next_after(Timestamp::EPOCH).expect("due each day");
        assert_eq!(next.to_string(), "1970-01-01T02:00:00.000Z");
        assert!(line.next_after(next).expect("due again") > next);
    }

    #[test]
    fn refuses_a_line_without_zone_and_one_that_never_comes() {
        assert_eq!(CronLine::new("0 3 * * *"), Err(CronError::NoZone));
        assert_eq!(CronLine::new("0 3 30 2 * UTC"), Err(CronError::Never));
        assert!(CronLine::new("0 3 29 2 * UTC").is_ok());
        assert!(matches!(
            CronLine::new("61 3 * * * UTC"),
            Err(CronError::Shape(_))
        ));
        assert!(matches!(CronLine::new("often"), Err(CronError::Shape(_))));
    }
}
