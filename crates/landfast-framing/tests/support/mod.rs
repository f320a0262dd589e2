//! Runs a scanner the way a connection does, and says what it thought.

#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(unreachable_pub, reason = "shared by several test files")]

use landfast_framing::{Limits, Refusal, Scanner, Stop};

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

/// Scans all at once for the refusal, and byte by byte for the ends.
pub fn scan(bytes: &[u8]) -> Verdict {
    let refusal = refusal(Scanner::new(LIMITS).scan(bytes).stop);
    let slow = in_pieces(bytes, std::iter::repeat(1));
    assert_eq!(slow.refusal, refusal);
    slow
}

fn refusal(stop: Option<Stop>) -> Option<Refusal> {
    match stop {
        Some(Stop::Refused { refusal, .. }) => Some(refusal),
        Some(Stop::Upgrade) | None => None,
    }
}

/// How many bytes are passed on when all come at once.
pub fn passed(bytes: &[u8]) -> usize {
    Scanner::new(LIMITS).scan(bytes).pass
}

/// Scans pieces of these lengths, keeping what is not passed. Ends between pieces are found by a second scanner.
pub fn in_pieces(bytes: &[u8], cuts: impl Iterator<Item = usize>) -> Verdict {
    let (mut scanner, mut kept) = (Scanner::new(LIMITS), Vec::new());
    let mut left = bytes;
    let mut stop = None;
    for cut in cuts {
        let (piece, rest) = left.split_at(cut.clamp(1, left.len()));
        left = rest;
        kept.extend_from_slice(piece);
        let scan = scanner.scan(&kept);
        assert!(scan.pass <= kept.len());
        kept.drain(..scan.pass);
        stop = scan.stop;
        if left.is_empty() || matches!(stop, Some(Stop::Refused { .. })) {
            break;
        }
    }
    Verdict {
        ends: ends(bytes),
        refusal: refusal(stop),
    }
}

/// The places after which a request is complete, found one byte at a time.
pub fn ends(bytes: &[u8]) -> Vec<usize> {
    let (mut scanner, mut kept, mut ends) = (Scanner::new(LIMITS), Vec::new(), Vec::new());
    let mut was_between = true;
    for (index, byte) in bytes.iter().enumerate() {
        kept.push(*byte);
        let scan = scanner.scan(&kept);
        kept.drain(..scan.pass);
        if matches!(scan.stop, Some(Stop::Refused { .. })) {
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
