//! Chunk framing (RFC 9112, 7.1) up to the line of the last chunk. Data is skipped, never looked at.

use crate::{
    Refusal,
    bytes::{self, TOKEN},
    fields::expect_line_feed,
};

/// Digits of a size; the largest has 2^60 bytes.
const SIZE_DIGITS_MAX: u32 = 15;
/// What all extensions of one body may have together: nobody uses them but to make a reader work.
const EXTENSION_BYTES_MAX: u32 = 4 << 10;

#[derive(Debug, Clone, Copy)]
enum Step {
    Size,
    /// After a `;`, with or without spaces.
    NameStart,
    Name,
    ValueStart,
    Value,
    Quoted,
    Escaped,
    /// After a whole extension: another, or the end of the line.
    After,
    LineFeed,
    Data,
    DataReturn,
    DataLineFeed,
}

/// What follows framing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// So many bytes of data.
    Data(usize),
    /// The line of the last chunk has ended.
    Last,
    /// All was framing.
    Nothing,
}

/// The chunks of one body, as far as they came.
#[derive(Debug, Clone)]
pub(crate) struct Chunks {
    step: Step,
    size: u64,
    digits: u32,
    extension_bytes: u32,
}

impl Chunks {
    pub(crate) fn new() -> Self {
        Self {
            step: Step::Size,
            size: 0,
            digits: 0,
            extension_bytes: 0,
        }
    }

    /// Reads on from bytes it has not seen. Gives how many at the beginning were framing, and what came then.
    pub(crate) fn read(&mut self, bytes: &[u8]) -> Result<(usize, Found), Refusal> {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            if matches!(self.step, Step::Data) {
                let here = bytes.len() - at;
                let taken = usize::try_from(self.size).map_or(here, |size| size.min(here));
                self.size -= u64::try_from(taken).unwrap_or(self.size);
                if self.size == 0 {
                    self.step = Step::DataReturn;
                }
                return Ok((at, Found::Data(taken)));
            }
            at += 1;
            if self.take(byte)? {
                return Ok((at, Found::Last));
            }
        }
        Ok((at, Found::Nothing))
    }

    /// Takes one byte of framing; tells whether it ended the last chunk's line.
    fn take(&mut self, byte: u8) -> Result<bool, Refusal> {
        self.step = match self.step {
            Step::Size => self.size(byte)?,
            Step::LineFeed => {
                expect_line_feed(byte)?;
                if self.size == 0 {
                    return Ok(true);
                }
                Step::Data
            }
            Step::DataReturn if byte == b'\r' => Step::DataLineFeed,
            Step::DataLineFeed if byte == b'\n' => {
                self.digits = 0;
                Step::Size
            }
            Step::Data | Step::DataReturn | Step::DataLineFeed => return Err(Refusal::ChunkEnd),
            Step::NameStart
            | Step::Name
            | Step::ValueStart
            | Step::Value
            | Step::Quoted
            | Step::Escaped
            | Step::After => self.extension(byte)?,
        };
        Ok(false)
    }

    fn size(&mut self, byte: u8) -> Result<Step, Refusal> {
        if let Some(digit) = char::from(byte).to_digit(16) {
            self.digits += 1;
            if self.digits > SIZE_DIGITS_MAX {
                return Err(Refusal::ChunkSize);
            }
            self.size = self.size << 4 | u64::from(digit);
            return Ok(Step::Size);
        }
        match byte {
            _ if self.digits == 0 => Err(Refusal::ChunkSize),
            b'\r' => Ok(Step::LineFeed),
            b';' => {
                self.extension_bytes += 1;
                Ok(Step::NameStart)
            }
            b'\n' => Err(Refusal::BareLineFeed),
            _ => Err(Refusal::ChunkSize),
        }
    }

    /// `;` name, or name `=` token or quoted string (RFC 9112, 7.1.1). Spaces are taken where the grammar has
    /// them ("bad" whitespace), except before the first `;`, where a reader may take them for part of the size.
    fn extension(&mut self, byte: u8) -> Result<Step, Refusal> {
        if byte == b'\n' {
            return Err(Refusal::BareLineFeed);
        }
        self.extension_bytes += 1;
        if self.extension_bytes > EXTENSION_BYTES_MAX {
            return Err(Refusal::ChunkExtensionTooLong);
        }
        let is_token = bytes::is(TOKEN, byte);
        let is_text = byte == b'\t' || (b' '..0x7f).contains(&byte);
        match (self.step, byte) {
            (Step::NameStart, b' ' | b'\t') => Ok(Step::NameStart),
            (Step::NameStart | Step::Name, _) if is_token => Ok(Step::Name),
            (Step::Name, b'=') => Ok(Step::ValueStart),
            (Step::ValueStart, b'"') => Ok(Step::Quoted),
            (Step::ValueStart | Step::Value, _) if is_token => Ok(Step::Value),
            (Step::Quoted, b'"') => Ok(Step::After),
            (Step::Quoted, b'\\') => Ok(Step::Escaped),
            (Step::Quoted | Step::Escaped, _) if is_text => Ok(Step::Quoted),
            (Step::Name | Step::Value | Step::After, b';') => Ok(Step::NameStart),
            (Step::Name | Step::Value | Step::After, b'\r') => Ok(Step::LineFeed),
            _ => Err(Refusal::ChunkExtension),
        }
    }
}
