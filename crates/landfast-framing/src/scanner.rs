//! The scanner of one connection: message after message, until one is refused or asks to leave HTTP.
//!
//! States: a head under way, a body with or without chunks, a trailer, then again a head. `Upgrade` and
//! `Refused` are never left. A head and a trailer are passed on whole or not at all, so that nobody after the
//! scanner ever has the beginning of what it then refuses; bodies are passed on as they come.

use crate::{
    Refusal,
    chunks::Chunks,
    fields::{Fields, Section},
    head::{Body, Framing, Head},
};

/// What a trailer may have, with the empty line at its end.
const TRAILER_BYTES_MAX: usize = 8 << 10;

/// What a head may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// From the first byte of a request line to the last of the empty line.
    pub head_bytes_max: usize,
    pub fields_max: usize,
}

/// Why nothing more is passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// A request that asks for another protocol is complete. What follows is not HTTP if it gets it, and must
    /// not be read as HTTP if it does not.
    Upgrade,
    /// The request at this place, and all after it.
    Refused {
        refusal: Refusal,
        /// Whether its head was passed on before: what broke is its body.
        is_begun: bool,
    },
}

/// What became of the bytes of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scan {
    /// How many bytes, from the first, may be passed on.
    pub pass: usize,
    pub stop: Option<Stop>,
}

#[derive(Debug, Clone)]
enum Place {
    Head(Head),
    /// The bytes left of a body.
    Length(u64),
    Chunks(Chunks),
    Trailer(Fields),
    Stopped(Stop),
}

/// Scans what one client sends on one connection.
#[derive(Debug, Clone)]
pub struct Scanner {
    limits: Limits,
    place: Place,
    /// The request under way asked for another protocol.
    is_upgrade: bool,
}

impl Scanner {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            place: Place::Head(Head::new()),
            is_upgrade: false,
        }
    }

    /// Whether the last request is complete and nothing of the next came.
    pub fn is_between(&self) -> bool {
        match &self.place {
            Place::Head(head) => head.is_empty(),
            Place::Stopped(stop) => *stop == Stop::Upgrade,
            Place::Length(_) | Place::Chunks(_) | Place::Trailer(_) => false,
        }
    }

    /// Looks at bytes from the first that was not passed on yet: what a call did not pass must come again, in
    /// front of what came since. At most one head or trailer is kept so. No byte is looked at twice.
    ///
    /// A request whose head and body come in one call and that is refused is not passed at all.
    pub fn scan(&mut self, bytes: &[u8]) -> Scan {
        let mut at = 0;
        // Where the request under way begins, if that is in these bytes.
        let mut begin = None;
        loop {
            let rest = bytes.get(at..).unwrap_or_default();
            let step = match &mut self.place {
                Place::Head(head) => match head.read(rest, self.limits) {
                    Ok(None) => None,
                    Ok(Some(framing)) => {
                        begin = Some(at);
                        self.enter(framing);
                        Some(framing.length)
                    }
                    Err(refusal) => return self.refuse(refusal, Some(at)),
                },
                Place::Length(0) => {
                    self.next();
                    begin = None;
                    Some(0)
                }
                Place::Length(left) => {
                    let here = u64::try_from(rest.len()).unwrap_or(u64::MAX);
                    let taken = here.min(*left);
                    *left -= taken;
                    at += usize::try_from(taken).unwrap_or(rest.len());
                    (*left == 0).then_some(0)
                }
                Place::Chunks(chunks) => match chunks.read(rest) {
                    Ok((taken, false)) => {
                        at += taken;
                        None
                    }
                    Ok((taken, true)) => {
                        self.place = Place::Trailer(Fields::new(Section::Trailer, 0));
                        Some(taken)
                    }
                    Err(refusal) => return self.refuse(refusal, begin),
                },
                Place::Trailer(fields) => match read_trailer(fields, rest, self.limits) {
                    Ok(None) => None,
                    Ok(Some(length)) => {
                        self.place = Place::Length(0);
                        Some(length)
                    }
                    Err(refusal) => return self.refuse(refusal, begin),
                },
                Place::Stopped(stop) => {
                    let stop = Some(*stop);
                    return Scan { pass: at, stop };
                }
            };
            let Some(taken) = step else {
                return Scan {
                    pass: at,
                    stop: None,
                };
            };
            at += taken;
        }
    }

    fn enter(&mut self, framing: Framing) {
        self.is_upgrade = framing.is_upgrade;
        self.place = match framing.body {
            Body::None => Place::Length(0),
            Body::Length(length) => Place::Length(length),
            Body::Chunked => Place::Chunks(Chunks::new()),
        };
    }

    fn next(&mut self) {
        self.place = if self.is_upgrade {
            Place::Stopped(Stop::Upgrade)
        } else {
            Place::Head(Head::new())
        };
    }

    fn refuse(&mut self, refusal: Refusal, begin: Option<usize>) -> Scan {
        let is_begun = begin.is_none();
        let stop = Stop::Refused { refusal, is_begun };
        self.place = Place::Stopped(stop);
        Scan {
            pass: begin.unwrap_or(0),
            stop: Some(stop),
        }
    }
}

fn read_trailer(
    fields: &mut Fields,
    bytes: &[u8],
    limits: Limits,
) -> Result<Option<usize>, Refusal> {
    let visible = bytes.get(..TRAILER_BYTES_MAX).unwrap_or(bytes);
    match fields.read(visible, limits.fields_max)? {
        None if bytes.len() >= TRAILER_BYTES_MAX => Err(Refusal::TrailerTooLarge),
        length => Ok(length),
    }
}
