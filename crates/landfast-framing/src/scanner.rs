//! The scanner of one connection: message after message, until one is refused or asks to leave HTTP.
//!
//! States: a head under way, a body with or without chunks, a trailer, then again a head. `Left` and `Refused` are
//! never left. A head and a trailer are given whole or not at all, so that nobody after the scanner ever has the
//! beginning of what it then refuses; bodies are given as they come.

use crate::{
    Refusal,
    chunks::{Chunks, Found},
    fields::{Field, Fields, Section},
    head::{Body, Head, HeadScan},
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

/// What the next bytes are. Those that a step names are done with; the next step begins behind them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// So many bytes are done with. What follows them, if anything, must come again, in front of what comes next.
    More { used: usize },
    /// A request begins.
    Head(Head),
    /// Of its body, behind so many bytes of framing.
    Data { skipped: usize, length: usize },
    /// The fields behind its body, with the empty line at their end. Their places count from the first byte behind
    /// `skipped`.
    Trailer { skipped: usize, length: usize },
    /// The request is complete, behind so many bytes of framing.
    End { skipped: usize },
    /// A request that asked for another protocol is complete. What follows is not HTTP if it gets it, and must
    /// not be read as HTTP if it does not.
    Left,
}

#[derive(Debug, Clone)]
enum Place {
    Head(HeadScan),
    /// The bytes left of a body.
    Length(u64),
    Chunks(Chunks),
    Trailer(Fields),
    Left,
    Refused(Refusal),
}

/// Scans what one client sends on one connection.
#[derive(Debug, Clone)]
pub struct Scanner {
    limits: Limits,
    place: Place,
    /// Of the head or trailer that came last, or is under way.
    fields: Vec<Field>,
    /// The request under way asked for another protocol.
    is_upgrade: bool,
}

impl Scanner {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            place: Place::Head(HeadScan::new()),
            fields: Vec::new(),
            is_upgrade: false,
        }
    }

    /// Whether the last request is complete and nothing of the next came.
    pub fn is_between(&self) -> bool {
        match &self.place {
            Place::Head(head) => head.is_empty(),
            Place::Left => true,
            Place::Length(_) | Place::Chunks(_) | Place::Trailer(_) | Place::Refused(_) => false,
        }
    }

    /// Whether nothing of the body of the request under way is left to come.
    pub fn is_body_over(&self) -> bool {
        match &self.place {
            Place::Length(left) => *left == 0,
            Place::Head(_) | Place::Left => true,
            Place::Chunks(_) | Place::Trailer(_) | Place::Refused(_) => false,
        }
    }

    /// How many bytes of the body are known to come.
    pub fn body_left(&self) -> Option<u64> {
        match &self.place {
            Place::Length(left) => Some(*left),
            Place::Head(_)
            | Place::Chunks(_)
            | Place::Trailer(_)
            | Place::Left
            | Place::Refused(_) => None,
        }
    }

    /// The fields of the head or trailer that the last step gave.
    pub fn fields(&self) -> &[Field] {
        &self.fields
    }

    /// Takes the memory of the list of fields, for who wants to keep none between requests.
    pub fn take_room(&mut self) -> Vec<Field> {
        std::mem::take(&mut self.fields)
    }

    /// Gives it memory to use for the next list. Between two requests only.
    pub fn give_room(&mut self, mut room: Vec<Field>) {
        room.clear();
        self.fields = room;
    }

    /// Looks at bytes from the first that is not done with. Of a head or a trailer no byte is looked at twice.
    ///
    /// # Errors
    /// What has two readings. Every further step says the same.
    pub fn step(&mut self, bytes: &[u8]) -> Result<Step, Refusal> {
        let step = self.look(bytes);
        if let Err(refusal) = step {
            self.place = Place::Refused(refusal);
        }
        step
    }

    fn look(&mut self, bytes: &[u8]) -> Result<Step, Refusal> {
        match &mut self.place {
            Place::Head(head) => {
                if head.is_empty() {
                    self.fields.clear();
                }
                let Some(head) = head.read(bytes, self.limits, &mut self.fields)? else {
                    return Ok(Step::More { used: 0 });
                };
                self.enter(&head);
                Ok(Step::Head(head))
            }
            Place::Length(0) => {
                self.next();
                Ok(Step::End { skipped: 0 })
            }
            Place::Length(_) if bytes.is_empty() => Ok(Step::More { used: 0 }),
            Place::Length(left) => {
                let here = bytes.len();
                let length = usize::try_from(*left).map_or(here, |left| left.min(here));
                *left -= u64::try_from(length).unwrap_or(*left);
                Ok(Step::Data { skipped: 0, length })
            }
            Place::Chunks(chunks) => match chunks.read(bytes)? {
                (used, Found::Nothing) => Ok(Step::More { used }),
                (skipped, Found::Data(length)) => Ok(Step::Data { skipped, length }),
                (skipped, Found::Last) => {
                    self.fields.clear();
                    self.place = Place::Trailer(Fields::new(Section::Trailer, 0));
                    let rest = bytes.get(skipped..).unwrap_or_default();
                    self.trailer(rest, skipped)
                }
            },
            Place::Trailer(_) => self.trailer(bytes, 0),
            Place::Left => Ok(Step::Left),
            Place::Refused(refusal) => Err(*refusal),
        }
    }

    fn trailer(&mut self, bytes: &[u8], skipped: usize) -> Result<Step, Refusal> {
        let Place::Trailer(fields) = &mut self.place else {
            return Ok(Step::More { used: skipped });
        };
        let visible = bytes.get(..TRAILER_BYTES_MAX).unwrap_or(bytes);
        match fields.read(visible, self.limits.fields_max, &mut self.fields)? {
            None if bytes.len() >= TRAILER_BYTES_MAX => Err(Refusal::TrailerTooLarge),
            None => Ok(Step::More { used: skipped }),
            Some(length) if self.fields.is_empty() => {
                self.next();
                let skipped = skipped + length;
                Ok(Step::End { skipped })
            }
            Some(length) => {
                self.place = Place::Length(0);
                Ok(Step::Trailer { skipped, length })
            }
        }
    }

    /// Looks ahead, without going there: whether the request under way breaks within these bytes. A request that came
    /// whole and breaks in its body is so known before anybody has seen its head.
    ///
    /// # Errors
    /// What is refused.
    pub fn look_ahead(&self, bytes: &[u8]) -> Result<(), Refusal> {
        // A length alone cannot break.
        if !matches!(self.place, Place::Chunks(_)) {
            return Ok(());
        }
        let mut ahead = Self {
            limits: self.limits,
            place: self.place.clone(),
            fields: Vec::new(),
            is_upgrade: false,
        };
        let mut at = 0;
        loop {
            let rest = bytes.get(at..).unwrap_or_default();
            at += match ahead.step(rest)? {
                Step::Data { skipped, length } => skipped + length,
                Step::More { .. }
                | Step::Trailer { .. }
                | Step::End { .. }
                | Step::Head(_)
                | Step::Left => return Ok(()),
            };
        }
    }

    fn enter(&mut self, head: &Head) {
        self.is_upgrade = head.is_upgrade;
        self.place = match head.body {
            Body::None => Place::Length(0),
            Body::Length(length) => Place::Length(length),
            Body::Chunked => Place::Chunks(Chunks::new()),
        };
    }

    fn next(&mut self) {
        self.place = if self.is_upgrade {
            Place::Left
        } else {
            Place::Head(HeadScan::new())
        };
    }
}
