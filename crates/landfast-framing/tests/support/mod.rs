//! Runs a scanner the way a connection does, and says what it thought.

#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(unreachable_pub, reason = "shared by several test files")]

use landfast_framing::{Field, Limits, Refusal, Scanner, Step};

pub const LIMITS: Limits = Limits {
    head_bytes_max: 64 << 10,
    fields_max: 50,
};

/// Where requests ended, and what ended it all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub ends: Vec<usize>,
    pub refusal: Option<Refusal>,
}

/// What became of the bytes of one call.
struct Scan {
    /// How many are done with.
    used: usize,
    refusal: Option<Refusal>,
}

/// Goes as far as these bytes lead. A request that is refused in the bytes it began in is not used at all.
fn advance(scanner: &mut Scanner, bytes: &[u8]) -> Scan {
    let mut at = 0;
    loop {
        let step = scanner.step(&bytes[at..]);
        let step = step.and_then(|step| {
            if let Step::Head(head) = &step {
                scanner.look_ahead(&bytes[at + head.length..])?;
            }
            Ok(step)
        });
        at += match step {
            Ok(Step::Head(head)) => head.length,
            Ok(Step::Data { skipped, length } | Step::Trailer { skipped, length }) => {
                assert!(length > 0);
                skipped + length
            }
            Ok(Step::End { skipped }) => skipped,
            Ok(Step::More { used }) => {
                let (used, refusal) = (at + used, None);
                return Scan { used, refusal };
            }
            Ok(Step::Left) => {
                let (used, refusal) = (at, None);
                return Scan { used, refusal };
            }
            Err(refusal) => {
                let (used, refusal) = (at, Some(refusal));
                return Scan { used, refusal };
            }
        };
    }
}

/// Scans all at once for the refusal, and byte by byte for the ends.
pub fn scan(bytes: &[u8]) -> Verdict {
    let refusal = advance(&mut Scanner::new(LIMITS), bytes).refusal;
    let slow = in_pieces(bytes, std::iter::repeat(1));
    assert_eq!(slow.refusal, refusal);
    slow
}

/// How many bytes are done with when all come at once.
pub fn passed(bytes: &[u8]) -> usize {
    advance(&mut Scanner::new(LIMITS), bytes).used
}

/// Scans pieces of these lengths, keeping what is not done with. Ends between pieces are found by a second scanner.
pub fn in_pieces(bytes: &[u8], cuts: impl Iterator<Item = usize>) -> Verdict {
    let (mut scanner, mut kept) = (Scanner::new(LIMITS), Vec::new());
    let mut left = bytes;
    let mut refusal = None;
    for cut in cuts {
        let (piece, rest) = left.split_at(cut.clamp(1, left.len()));
        left = rest;
        kept.extend_from_slice(piece);
        let scan = advance(&mut scanner, &kept);
        kept.drain(..scan.used);
        refusal = scan.refusal;
        if left.is_empty() || refusal.is_some() {
            break;
        }
    }
    Verdict {
        ends: ends(bytes),
        refusal,
    }
}

/// The places after which a request is complete, found one byte at a time.
pub fn ends(bytes: &[u8]) -> Vec<usize> {
    let (mut scanner, mut kept, mut ends) = (Scanner::new(LIMITS), Vec::new(), Vec::new());
    let mut was_between = true;
    for (index, byte) in bytes.iter().enumerate() {
        kept.push(*byte);
        let scan = advance(&mut scanner, &kept);
        kept.drain(..scan.used);
        if scan.refusal.is_some() {
            break;
        }
        let is_between = scanner.is_between();
        if is_between && !was_between {
            ends.push(index + 1);
        }
        was_between = is_between;
    }
    ends
}

/// One request as the scanner's steps say it: request line, fields, data, trailer fields.
pub fn dissect(bytes: &[u8]) -> Option<Vec<String>> {
    let mut scanner = Scanner::new(LIMITS);
    let (mut at, mut parts, mut data) = (0, Vec::new(), Vec::new());
    let mut has_trailer = false;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let fields = |scanner: &Scanner, section: &[u8], parts: &mut Vec<String>| {
        let line = |field: &Field| {
            let name = text(&section[field.name.clone()]).to_ascii_lowercase();
            format!("{name}: {}", text(&section[field.value.clone()]))
        };
        let mut lines: Vec<String> = scanner.fields().iter().map(line).collect();
        // In the order of their names; those of one name in their own order.
        lines.sort_by(|one, other| one.split(':').next().cmp(&other.split(':').next()));
        parts.extend(lines);
    };
    loop {
        let rest = &bytes[at..];
        match scanner.step(rest).ok()? {
            Step::Head(head) => {
                let method = text(&rest[head.method.clone()]);
                parts.push(format!("{method} {}", text(&rest[head.target.clone()])));
                fields(&scanner, rest, &mut parts);
                at += head.length;
            }
            Step::Data { skipped, length } => {
                data.extend_from_slice(&rest[skipped..skipped + length]);
                at += skipped + length;
            }
            Step::Trailer { skipped, length } => {
                parts.push(text(&data));
                fields(&scanner, &rest[skipped..], &mut parts);
                has_trailer = true;
                at += skipped + length;
            }
            Step::End { .. } => {
                if !has_trailer {
                    parts.push(text(&data));
                }
                return Some(parts);
            }
            Step::More { .. } | Step::Left => return None,
        }
    }
}
