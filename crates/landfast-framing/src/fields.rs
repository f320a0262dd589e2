//! Field lines up to the empty one (RFC 9112, 5), of a head or of a trailer. The bytes are handed in from the
//! section's first one each time; what was looked at before is not looked at again.

use std::ops::Range;

use crate::{
    Refusal,
    bytes::{self, TOKEN},
    host,
};

/// Which section the fields are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Section {
    Head,
    Trailer,
}

/// Where a field lies in its section: name, and value without the spaces around it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    pub name: Range<usize>,
    pub value: Range<usize>,
}

/// What the fields of a head say about framing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Facts {
    pub(crate) host: Option<Range<usize>>,
    pub(crate) length: Option<u64>,
    pub(crate) is_chunked: bool,
    pub(crate) is_upgrade: bool,
    pub(crate) expects: bool,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Line,
    Name,
    Value,
    LineFeed,
    LastLineFeed,
}

/// The fields of one section, as far as they came.
#[derive(Debug, Clone)]
pub(crate) struct Fields {
    section: Section,
    step: Step,
    /// The first byte that was not looked at.
    at: usize,
    /// Where the name of the line begins, and ends, and where its value ends.
    name: Range<usize>,
    value_end: usize,
    count: usize,
    facts: Facts,
}

impl Fields {
    pub(crate) fn new(section: Section, at: usize) -> Self {
        Self {
            section,
            step: Step::Line,
            at,
            name: 0..0,
            value_end: 0,
            count: 0,
            facts: Facts::default(),
        }
    }

    pub(crate) fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Reads on, and adds what it finds to `found`. Gives the length of the section, with its empty line, once that
    /// came.
    pub(crate) fn read(
        &mut self,
        bytes: &[u8],
        count_max: usize,
        found: &mut Vec<Field>,
    ) -> Result<Option<usize>, Refusal> {
        while let Some(rest) = bytes.get(self.at..)
            && let Some(&byte) = rest.first()
        {
            match self.step {
                Step::Line => self.begin_line(byte, count_max)?,
                Step::Name => {
                    self.at += bytes::run(TOKEN, rest);
                    match bytes.get(self.at) {
                        None => {}
                        Some(b':') if self.at > self.name.start => {
                            self.name.end = self.at;
                            self.at += 1;
                            self.step = Step::Value;
                        }
                        Some(_) => return Err(Refusal::FieldName),
                    }
                }
                Step::Value => {
                    self.at += bytes::value_run(rest);
                    match bytes.get(self.at) {
                        None => {}
                        Some(b'\r') => {
                            self.value_end = self.at;
                            self.at += 1;
                            self.step = Step::LineFeed;
                        }
                        Some(b'\n') => return Err(Refusal::BareLineFeed),
                        Some(_) => return Err(Refusal::FieldValue),
                    }
                }
                Step::LineFeed => {
                    expect_line_feed(byte)?;
                    self.at += 1;
                    self.step = Step::Line;
                    let value = self.end_line(bytes)?;
                    let name = self.name.clone();
                    found.push(Field { name, value });
                }
                Step::LastLineFeed => {
                    expect_line_feed(byte)?;
                    return Ok(Some(self.at + 1));
                }
            }
        }
        Ok(None)
    }

    fn begin_line(&mut self, byte: u8, count_max: usize) -> Result<(), Refusal> {
        match byte {
            b'\r' => {
                self.at += 1;
                self.step = Step::LastLineFeed;
            }
            b'\n' => return Err(Refusal::BareLineFeed),
            b' ' | b'\t' => return Err(Refusal::Folded),
            _ => {
                self.count += 1;
                if self.count > count_max {
                    return Err(match self.section {
                        Section::Head => Refusal::TooManyFields,
                        Section::Trailer => Refusal::TrailerTooLarge,
                    });
                }
                self.name.start = self.at;
                self.step = Step::Name;
            }
        }
        Ok(())
    }

    /// Looks at a whole line. Gives where its value lies.
    fn end_line(&mut self, bytes: &[u8]) -> Result<Range<usize>, Refusal> {
        let name = bytes.get(self.name.clone()).unwrap_or_default();
        let begin = self.name.end + 1;
        let raw = bytes.get(begin..self.value_end).unwrap_or_default();
        let (skipped, value) = bytes::trim_at(raw);
        let place = begin + skipped..begin + skipped + value.len();
        if self.section == Section::Trailer {
            check_trailer(name)?;
            return Ok(place);
        }
        let is = |wanted: &[u8]| name.eq_ignore_ascii_case(wanted);
        // Few names have one of these lengths, so most lines cost one comparison of numbers.
        match name.len() {
            4 if is(b"host") => self.host(value, place.clone())?,
            6 if is(b"expect") => self.expect(value)?,
            7 if is(b"upgrade") => self.facts.is_upgrade = true,
            14 if is(b"content-length") => self.length(value)?,
            17 if is(b"transfer-encoding") => self.encoding(value)?,
            _ => {}
        }
        Ok(place)
    }

    fn host(&mut self, value: &[u8], place: Range<usize>) -> Result<(), Refusal> {
        if self.facts.host.is_some() {
            return Err(Refusal::HostTwice);
        }
        if !host::is_valid(value) {
            return Err(Refusal::HostInvalid);
        }
        self.facts.host = Some(place);
        Ok(())
    }

    /// Obfuscated expectations make one reader wait for `100 Continue` where the next does not (RFC 9110, 10.1.1).
    fn expect(&mut self, value: &[u8]) -> Result<(), Refusal> {
        let is_plain = value.eq_ignore_ascii_case(b"100-continue");
        if std::mem::replace(&mut self.facts.expects, true) || !is_plain {
            return Err(Refusal::Expectation);
        }
        Ok(())
    }

    /// One number of digits alone. A leading zero is refused: some readers take it for an octal number.
    fn length(&mut self, value: &[u8]) -> Result<(), Refusal> {
        if self.facts.length.is_some() {
            return Err(Refusal::ContentLengthTwice);
        }
        let is_plain = value == b"0" || (value.first() != Some(&b'0') && !value.is_empty());
        let number = value.iter().try_fold(0_u64, |sum, byte| {
            let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
            sum.checked_mul(10)?.checked_add(digit)
        });
        let number = number.filter(|number| is_plain && i64::try_from(*number).is_ok());
        self.facts.length = Some(number.ok_or(Refusal::ContentLength)?);
        Ok(())
    }

    /// `chunked` alone and once. Other codings that are well-formed are answered 501 (RFC 9112, 6.1).
    fn encoding(&mut self, value: &[u8]) -> Result<(), Refusal> {
        if self.facts.is_chunked {
            return Err(Refusal::TransferEncoding);
        }
        if value.eq_ignore_ascii_case(b"chunked") {
            self.facts.is_chunked = true;
            return Ok(());
        }
        let mut codings = value.split(|byte| *byte == b',').map(bytes::trim);
        let is_coding = |coding: &[u8]| {
            !coding.is_empty()
                && bytes::run(TOKEN, coding) == coding.len()
                && !coding.eq_ignore_ascii_case(b"chunked")
        };
        // `chunked` twice, or before another coding, is malformed rather than unknown.
        let mut last_is_unknown = false;
        let is_known_shape = codings.all(|coding| {
            let is_last_chunked = coding.eq_ignore_ascii_case(b"chunked") && last_is_unknown;
            last_is_unknown = is_coding(coding);
            last_is_unknown || is_last_chunked
        });
        Err(if is_known_shape {
            Refusal::UnknownTransferEncoding
        } else {
            Refusal::TransferEncoding
        })
    }
}

pub(crate) fn expect_line_feed(byte: u8) -> Result<(), Refusal> {
    if byte == b'\n' {
        Ok(())
    } else {
        Err(Refusal::BareCarriageReturn)
    }
}

/// Fields that a reader may merge into the head after others have looked at it (RFC 9110, 6.5.1): those that
/// frame, route, modify, authenticate, or say who sent the request.
fn check_trailer(name: &[u8]) -> Result<(), Refusal> {
    const REFUSED: [&[u8]; 27] = [
        b"authorization",
        b"cache-control",
        b"connection",
        b"content-encoding",
        b"content-length",
        b"content-range",
        b"content-type",
        b"cookie",
        b"expect",
        b"forwarded",
        b"host",
        b"if-match",
        b"if-modified-since",
        b"if-none-match",
        b"if-range",
        b"if-unmodified-since",
        b"keep-alive",
        b"max-forwards",
        b"origin",
        b"proxy-authorization",
        b"range",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"x-real-ip",
        b"x-request-id",
    ];
    let family = name.get(..12).unwrap_or_default();
    let is_refused = family.eq_ignore_ascii_case(b"x-forwarded-")
        || name.contains(&b'_')
        || REFUSED
            .iter()
            .any(|refused| name.eq_ignore_ascii_case(refused));
    if is_refused {
        return Err(Refusal::TrailerField);
    }
    Ok(())
}
