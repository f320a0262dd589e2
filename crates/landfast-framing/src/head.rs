//! A request's head (RFC 9112, 2 to 6): the request line here, its fields in [`crate::fields`].

use std::ops::Range;

use crate::{
    Refusal,
    bytes::{self, METHOD},
    fields::{Field, Fields, Section, expect_line_feed},
    scanner::Limits,
    target::{self, TARGET_BYTES_MAX},
};

const METHOD_BYTES_MAX: usize = 32;
const VERSION: &[u8; 8] = b"HTTP/1.1";

/// How a request goes on after its head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    None,
    /// So many bytes, at least one.
    Length(u64),
    Chunked,
}

/// A complete head. Places count from its first byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// With the empty line at its end.
    pub length: usize,
    pub method: Range<usize>,
    pub target: Range<usize>,
    /// HTTP/1.0 otherwise.
    pub is_http_11: bool,
    pub body: Body,
    /// The client waits for `100 Continue` before it sends the body.
    pub expects: bool,
    /// What follows the body is HTTP only if the answer is not 101 (RFC 9110, 7.8).
    pub is_upgrade: bool,
}

#[derive(Debug, Clone)]
enum Step {
    Start,
    EmptyLineFeed,
    Method,
    Target,
    Version,
    LineFeed,
    Fields(Fields),
}

/// A head, as far as it came. The bytes are handed in from its first one each time.
#[derive(Debug, Clone)]
pub(crate) struct HeadScan {
    step: Step,
    /// The first byte that was not looked at.
    at: usize,
    /// Where the part under way begins.
    mark: usize,
    method: Range<usize>,
    target: Range<usize>,
    authority: Option<Range<usize>>,
    is_http_11: bool,
}

impl HeadScan {
    pub(crate) fn new() -> Self {
        Self {
            step: Step::Start,
            at: 0,
            mark: 0,
            method: 0..0,
            target: 0..0,
            authority: None,
            is_http_11: false,
        }
    }

    /// Whether nothing of it came yet.
    pub(crate) fn is_empty(&self) -> bool {
        matches!(self.step, Step::Start) && self.at == 0
    }

    /// Reads on, and tells how the request goes on once the head is complete.
    pub(crate) fn read(
        &mut self,
        bytes: &[u8],
        limits: Limits,
        found: &mut Vec<Field>,
    ) -> Result<Option<Head>, Refusal> {
        let max = limits.head_bytes_max;
        let visible = bytes.get(..max).unwrap_or(bytes);
        while let Some(rest) = visible.get(self.at..)
            && let Some(&byte) = rest.first()
        {
            match &mut self.step {
                Step::Start => self.start(byte)?,
                Step::EmptyLineFeed => {
                    expect_line_feed(byte)?;
                    self.at += 1;
                    self.mark = self.at;
                    self.step = Step::Method;
                }
                Step::Method => self.method(visible, rest)?,
                Step::Target => self.target(visible, rest)?,
                Step::Version => self.version(byte)?,
                Step::LineFeed => {
                    expect_line_feed(byte)?;
                    self.at += 1;
                    self.step = Step::Fields(Fields::new(Section::Head, self.at));
                }
                Step::Fields(fields) => {
                    let length = fields.read(visible, limits.fields_max, found)?;
                    if let Some(length) = length {
                        return self.finish(visible, length).map(Some);
                    }
                    break;
                }
            }
        }
        if bytes.len() < max {
            return Ok(None);
        }
        Err(match self.step {
            Step::Start | Step::EmptyLineFeed | Step::Method | Step::Target | Step::Version => {
                Refusal::TargetTooLong
            }
            Step::LineFeed | Step::Fields(_) => Refusal::HeadTooLarge,
        })
    }

    /// One empty line may come first: some clients end a body with one too many (RFC 9112, 2.2).
    fn start(&mut self, byte: u8) -> Result<(), Refusal> {
        match byte {
            b'\r' => {
                self.at += 1;
                self.step = Step::EmptyLineFeed;
            }
            b'\n' => return Err(Refusal::BareLineFeed),
            _ => self.step = Step::Method,
        }
        Ok(())
    }

    fn method(&mut self, bytes: &[u8], rest: &[u8]) -> Result<(), Refusal> {
        self.at += bytes::run(METHOD, rest);
        if self.at - self.mark > METHOD_BYTES_MAX {
            return Err(Refusal::Method);
        }
        match bytes.get(self.at) {
            None => return Ok(()),
            Some(b' ') if self.at > self.mark => {}
            Some(b'\n') => return Err(Refusal::BareLineFeed),
            Some(_) => return Err(Refusal::Method),
        }
        self.method = self.mark..self.at;
        if bytes.get(self.method.clone()) == Some(b"CONNECT") {
            return Err(Refusal::Connect);
        }
        self.at += 1;
        self.mark = self.at;
        self.step = Step::Target;
        Ok(())
    }

    fn target(&mut self, bytes: &[u8], rest: &[u8]) -> Result<(), Refusal> {
        let is_end = |byte: &u8| matches!(byte, b' ' | b'\r' | b'\n');
        self.at += rest.iter().position(is_end).unwrap_or(rest.len());
        if self.at - self.mark > TARGET_BYTES_MAX {
            return Err(Refusal::TargetTooLong);
        }
        match bytes.get(self.at) {
            None => return Ok(()),
            Some(b' ') => {}
            // A request line without a version is HTTP/0.9.
            Some(b'\n') => return Err(Refusal::BareLineFeed),
            Some(_) => return Err(Refusal::Version),
        }
        let method = bytes.get(self.method.clone()).unwrap_or_default();
        let target = bytes.get(self.mark..self.at).unwrap_or_default();
        let authority = target::check(method, target)?;
        let shifted = |range: Range<usize>| self.mark + range.start..self.mark + range.end;
        self.authority = authority.map(shifted);
        self.target = self.mark..self.at;
        self.at += 1;
        self.mark = self.at;
        self.step = Step::Version;
        Ok(())
    }

    fn version(&mut self, byte: u8) -> Result<(), Refusal> {
        let place = self.at - self.mark;
        match VERSION.get(place) {
            Some(_) if place == VERSION.len() - 1 && matches!(byte, b'0' | b'1') => {
                self.is_http_11 = byte == b'1';
            }
            Some(wanted) if *wanted == byte && place < VERSION.len() - 1 => {}
            None if byte == b'\r' => self.step = Step::LineFeed,
            None if byte == b'\n' => return Err(Refusal::BareLineFeed),
            Some(_) | None => return Err(Refusal::Version),
        }
        self.at += 1;
        Ok(())
    }

    fn finish(&self, bytes: &[u8], length: usize) -> Result<Head, Refusal> {
        let Step::Fields(fields) = &self.step else {
            return Err(Refusal::Version);
        };
        let facts = fields.facts();
        let host = facts.host.clone().and_then(|range| bytes.get(range));
        if host.is_none() && self.is_http_11 {
            return Err(Refusal::HostMissing);
        }
        let authority = self.authority.clone().and_then(|range| bytes.get(range));
        if let (Some(host), Some(authority)) = (host, authority)
            && !host.eq_ignore_ascii_case(authority)
        {
            return Err(Refusal::HostMismatch);
        }
        if facts.is_chunked && !self.is_http_11 {
            return Err(Refusal::TransferEncodingInHttp10);
        }
        let body = match (facts.is_chunked, facts.length) {
            (true, Some(_)) => return Err(Refusal::LengthAndEncoding),
            (true, None) => Body::Chunked,
            (false, None | Some(0)) => Body::None,
            (false, Some(length)) => Body::Length(length),
        };
        Ok(Head {
            length,
            method: self.method.clone(),
            target: self.target.clone(),
            is_http_11: self.is_http_11,
            body,
            // RFC 9110, 10.1.1: HTTP/1.0 cannot be told to go on.
            expects: facts.expects && self.is_http_11,
            // HTTP/1.0 has no upgrade, and a server must not see one there (RFC 9110, 7.8).
            is_upgrade: facts.is_upgrade && self.is_http_11,
        })
    }
}
