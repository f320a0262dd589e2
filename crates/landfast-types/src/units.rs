//! Values with units: `30s`, `1h 30m`, `512MiB`, `500m`, `25%`.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// Why a text is not a value with a unit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    #[error(
        "`{0}` is not a duration; write a number and a unit, such as `500ms`, `30s`, `5m` or `1h 30m`"
    )]
    Duration(String),
    #[error("`{0}` is not a size; write a number and a unit, such as `64KiB`, `512MiB` or `2GB`")]
    Bytes(String),
    #[error(
        "`{0}` is not a share of CPU; write cores such as `2` or `0.5`, or thousandths such as `500m`"
    )]
    Cpu(String),
    #[error("`{0}` is too large")]
    TooLarge(String),
}

/// Reads a duration: one or more of a number and a unit (`us`, `ms`, `s`, `m`, `h`, `d`), largest first or not.
///
/// # Errors
/// When a number has no unit, a unit is unknown, or the sum does not fit.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let error = || UnitError::Duration(text.to_owned());
    let mut rest = text.trim();
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(error());
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let (number, after) = split_number(rest).ok_or_else(error)?;
        let unit_len = after
            .find(|c: char| !c.is_ascii_alphabetic())
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_len);
        let seconds = match unit {
            "us" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3_600.0,
            "d" => 86_400.0,
            _ => return Err(error()),
        };
        let part = Duration::try_from_secs_f64(number * seconds)
            .map_err(|_| UnitError::TooLarge(text.to_owned()))?;
        total = total
            .checked_add(part)
            .ok_or_else(|| UnitError::TooLarge(text.to_owned()))?;
        rest = after.trim_start();
    }
    if total > DURATION_MAX {
        return Err(UnitError::TooLarge(text.to_owned()));
    }
    Ok(total)
}

/// Ten years: more is a slip of the pen.
const DURATION_MAX: Duration = Duration::from_secs(3_650 * 86_400);

/// Prints a duration as a person would write it: `1h 30m`, `10s`, `250ms`. Reads back as the same value
/// down to the millisecond.
pub fn format_duration(duration: Duration) -> String {
    if duration < Duration::from_millis(1) {
        return if duration.is_zero() {
            "0s".into()
        } else {
            format!("{}us", duration.as_micros())
        };
    }
    let millis = duration.as_millis();
    let units = [
        ("d", 86_400_000),
        ("h", 3_600_000),
        ("m", 60_000),
        ("s", 1_000),
        ("ms", 1),
    ];
    let mut rest = millis;
    let mut parts = Vec::new();
    for (unit, size) in units {
        if rest >= size {
            parts.push(format!("{}{unit}", rest / size));
            rest %= size;
        }
    }
    parts.join(" ")
}

/// A size in bytes.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Bytes(pub u64);

const BYTE_UNITS: [(&str, u64); 5] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |(_, size): &&(&str, u64)| self.0 >= *size;
        let (unit, size) = BYTE_UNITS.iter().find(fits).unwrap_or(&("B", 1));
        if self.0.is_multiple_of(*size) {
            return write!(f, "{}{unit}", self.0 / size);
        }
        write!(f, "{:.1}{unit}", self.0 as f64 / *size as f64)
    }
}

/// Reads a size: `B`, `KiB`, `MiB`, `GiB`, `TiB` count in 1,024; `kB`, `MB`, `GB`, `TB` in 1,000.
///
/// # Errors
/// When the number or the unit is missing or unknown.
pub fn parse_bytes(text: &str) -> Result<Bytes, UnitError> {
    let error = || UnitError::Bytes(text.to_owned());
    let (number, unit) = split_number(text.trim()).ok_or_else(error)?;
    let size = match unit.trim() {
        "B" => 1.0,
        "kB" | "KB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        "TB" => 1e12,
        binary => {
            let known = BYTE_UNITS.iter().find(|(name, _)| *name == binary);
            known.ok_or_else(error)?.1 as f64
        }
    };
    let bytes = number * size;
    if bytes >= 1e18 {
        return Err(UnitError::TooLarge(text.to_owned()));
    }
    Ok(Bytes(bytes as u64))
}

/// A share of CPU, in thousandths of a core.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Cpu {
    pub millicores: u64,
}

impl fmt::Display for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.millicores.is_multiple_of(1_000) {
            return write!(f, "{}", self.millicores / 1_000);
        }
        write!(f, "{}m", self.millicores)
    }
}

/// Reads a share of CPU: `2`, `0.5` or `500m`.
///
/// # Errors
/// When it is not a number, or zero.
pub fn parse_cpu(text: &str) -> Result<Cpu, UnitError> {
    let error = || UnitError::Cpu(text.to_owned());
    let (number, unit) = split_number(text.trim()).ok_or_else(error)?;
    let millicores = match unit {
        "" => number * 1_000.0,
        "m" => number,
        _ => return Err(error()),
    };
    if !(1.0..=1e7).contains(&millicores) {
        return Err(error());
    }
    Ok(Cpu {
        millicores: millicores.round() as u64,
    })
}

/// A share in whole percent, 0 to 100.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Percent(u8);

impl Percent {
    /// All of it.
    pub const HUNDRED: Self = Self(100);

    /// A percentage; `None` above 100.
    pub const fn new(percent: u8) -> Option<Self> {
        if percent <= 100 {
            Some(Self(percent))
        } else {
            None
        }
    }

    /// The number, 0 to 100.
    pub const fn get(self) -> u8 {
        self.0
    }

    /// This share of a count, rounded up.
    pub fn of_ceil(self, count: u32) -> u32 {
        (count * u32::from(self.0)).div_ceil(100)
    }

    /// This share of a count, rounded down.
    pub fn of_floor(self, count: u32) -> u32 {
        count * u32::from(self.0) / 100
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

/// Splits `1.5GiB` into the number and what follows it.
fn split_number(text: &str) -> Option<(f64, &str)> {
    let end = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(text.len());
    let (number, rest) = text.split_at(end);
    let number = number.parse::<f64>().ok()?;
    Some((number, rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_durations_with_units() {
        let cases = [
            ("30s", 30_000),
            ("1h 30m", 5_400_000),
            ("250ms", 250),
            ("1.5m", 90_000),
            ("0", 0),
        ];
        for (text, millis) in cases {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_millis(millis)),
                "{text}"
            );
        }
        for text in ["", "30", "s", "5 minutes", "-3s", "1e9h", "9999999d"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn reads_sizes_and_shares() {
        assert_eq!(parse_bytes("512MiB"), Ok(Bytes(512 << 20)));
        assert_eq!(parse_bytes("2GB"), Ok(Bytes(2_000_000_000)));
        assert_eq!(parse_bytes("1.5KiB"), Ok(Bytes(1_536)));
        assert!(parse_bytes("512").is_err());
        assert!(parse_bytes("512mb").is_err());
        assert_eq!(parse_cpu("500m"), Ok(Cpu { millicores: 500 }));
        assert_eq!(parse_cpu("0.5"), Ok(Cpu { millicores: 500 }));
        assert_eq!(parse_cpu("2"), Ok(Cpu { millicores: 2_000 }));
        assert!(parse_cpu("0").is_err());
        assert_eq!(Bytes(512 << 20).to_string(), "512MiB");
        assert_eq!(Cpu { millicores: 2_000 }.to_string(), "2");
    }

    #[test]
    fn rounds_a_step_up_to_whole_instances() {
        let five = Percent::new(5).expect("a percentage");
        assert_eq!((five.of_ceil(3), five.of_floor(3)), (1, 0));
        assert_eq!(Percent::HUNDRED.of_ceil(3), 3);
        assert_eq!(Percent::new(101), None);
    }

    proptest! {
        #[test]
        fn reads_back_the_durations_it_prints(millis in 0_u64..200_000_000_000) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }
    }
}
