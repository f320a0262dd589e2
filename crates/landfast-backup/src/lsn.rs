//! Places in the WAL: log sequence numbers, timelines, segments.
//!
//! The source of the rules is PostgreSQL's `access/xlog_internal.h` and `access/transam/timeline.c`.

use std::{fmt, ops, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A log sequence number: a byte's place in the WAL. Prints as PostgreSQL does, `0/3000148`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl Lsn {
    /// The start of the page of WAL it lies on.
    #[must_use]
    pub fn page_start(self) -> Self {
        Self(self.0 - self.0 % crate::XLOG_PAGE as u64)
    }

    /// How many bytes lie between; zero where `earlier` is later.
    pub fn bytes_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl ops::Add<u64> for Lsn {
    type Output = Self;
    fn add(self, bytes: u64) -> Self {
        Self(self.0 + bytes)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is not an LSN.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an LSN, such as `0/3000148`")]
pub struct LsnError(String);

impl FromStr for Lsn {
    type Err = LsnError;
    fn from_str(text: &str) -> Result<Self, LsnError> {
        let half = |digits: &str| {
            let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
            plain
                .then(|| u32::from_str_radix(digits, 16).ok())
                .flatten()
        };
        let halves = text.split_once('/');
        let halves = halves.and_then(|(high, low)| Some((half(high)?, half(low)?)));
        let (high, low) = halves.ok_or_else(|| LsnError(text.to_owned()))?;
        Ok(Self(u64::from(high) << 32 | u64::from(low)))
    }
}

impl Serialize for Lsn {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A timeline: the history a server writes between two promotions.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Timeline(pub u32);

impl Timeline {
    /// The name of its history file.
    pub fn history_name(self) -> String {
        format!("{:08X}.history", self.0)
    }
}

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How long a segment of WAL is: a power of two from 1 MiB to 1 GiB, 16 MiB unless `initdb` was told otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SegmentBytes(u32);

impl SegmentBytes {
    /// What `initdb` chooses.
    pub const DEFAULT: Self = Self(16 << 20);

    /// From a number of bytes; `None` where no server would have it.
    pub fn new(bytes: u64) -> Option<Self> {
        let valid = bytes.is_power_of_two() && (1 << 20..=1 << 30).contains(&bytes);
        valid.then(|| Self(u32::try_from(bytes).expect("at most 1 GiB")))
    }

    /// In bytes.
    pub fn get(self) -> u64 {
        u64::from(self.0)
    }
}

/// One segment of a timeline.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Segment {
    pub timeline: Timeline,
    /// Counted from zero.
    pub number: u64,
}

impl Segment {
    /// The segment that holds a byte.
    pub fn of(timeline: Timeline, lsn: Lsn, size: SegmentBytes) -> Self {
        Self {
            timeline,
            number: lsn.0 / size.get(),
        }
    }

    /// Its first byte.
    pub fn start(self, size: SegmentBytes) -> Lsn {
        Lsn(self.number * size.get())
    }

    /// The first byte behind it.
    pub fn end(self, size: SegmentBytes) -> Lsn {
        Lsn((self.number + 1) * size.get())
    }

    /// The name of its file: `000000010000000000000003`.
    pub fn file_name(self, size: SegmentBytes) -> String {
        let each = (1_u64 << 32) / size.get();
        format!(
            "{:08X}{:08X}{:08X}",
            self.timeline.0,
            self.number / each,
            self.number % each
        )
    }

    /// Reads the name of a file; `None` for anything that is no segment.
    pub fn parse(name: &str, size: SegmentBytes) -> Option<Self> {
        let digits = |byte: u8| byte.is_ascii_digit() || (b'A'..=b'F').contains(&byte);
        if name.len() != 24 || !name.bytes().all(digits) {
            return None;
        }
        let part = |range: ops::Range<usize>| u32::from_str_radix(&name[range], 16).ok();
        let each = (1_u64 << 32) / size.get();
        let (high, low) = (u64::from(part(8..16)?), u64::from(part(16..24)?));
        (low < each).then_some(Self {
            timeline: Timeline(part(0..8)?),
            number: high * each + low,
        })
    }
}

/// Where a timeline left its parent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TimelineSwitch {
    pub parent: Timeline,
    /// The end of what both have.
    pub at: Lsn,
}

/// Reads a timeline's history file: its ancestors, oldest first, each with the LSN at which it was left. `None` where a line is
/// not one: `1<tab>0/3000148<tab>reason`.
pub fn parse_history(text: &str) -> Option<Vec<TimelineSwitch>> {
    let lines = text.lines().map(str::trim);
    let told = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    told.map(|line| {
        let mut words = line.split_whitespace();
        Some(TimelineSwitch {
            parent: Timeline(words.next()?.parse().ok()?),
            at: words.next()?.parse().ok()?,
        })
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_and_reads_as_postgresql_does() {
        let lsn = Lsn(0x1_0300_0148);
        assert_eq!(lsn.to_string(), "1/3000148");
        assert_eq!("1/3000148".parse(), Ok(lsn));
        for wrong in ["", "1", "/", "1/", "1/+5", "1/123456789", "x/1"] {
            assert!(wrong.parse::<Lsn>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn names_segments_of_every_size() {
        let segment = Segment::of(Timeline(2), Lsn(0x1_0300_0148), SegmentBytes::DEFAULT);
        let name = segment.file_name(SegmentBytes::DEFAULT);
        assert_eq!(name, "000000020000000100000003");
        assert_eq!(Segment::parse(&name, SegmentBytes::DEFAULT), Some(segment));
        let large = SegmentBytes::new(1 << 30).unwrap();
        assert_eq!(
            Segment::parse("000000020000000100000003", large)
                .unwrap()
                .number,
            7
        );
        assert_eq!(Segment::parse("000000020000000100000004", large), None);
        assert_eq!(Segment::parse("00000002000000010000000g", large), None);
        assert_eq!(SegmentBytes::new(3 << 20), None);
    }

    #[test]
    fn reads_a_history() {
        let text = "1\t0/3000148\tno recovery target specified\n\n2\t0/5000000\tbefore\n";
        let switches = parse_history(text).unwrap();
        assert_eq!(switches.len(), 2);
        assert_eq!(switches[1].parent, Timeline(2));
        assert_eq!(switches[1].at, Lsn(0x500_0000));
        assert_eq!(parse_history("one\t0/1"), None);
    }
}
