//! An answer's body as it is read: where it ends, and what of it is data (RFC 9112, 6 and 7). No sockets here.

use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::WireError;

const SIZE_MAX: u64 = (1 << 60) - 1;
/// Zeros before the size included.
const SIZE_DIGITS_MAX: u32 = 32;
/// What stands between the sizes of one body and the ends of their lines, together.
const EXTENSION_BYTES_MAX: usize = 16 << 10;
const TRAILER_BYTES_MAX: usize = 16 << 10;
const TRAILER_FIELDS_MAX: usize = 64;

/// Where a body ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Framing {
    /// After so many more bytes.
    Length(u64),
    Chunked(Chunked),
    /// With the connection.
    Close,
}

/// A body of chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chunked {
    step: Step,
    /// Of all chunks so far.
    extension_bytes: usize,
}

/// Where in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Size {
        size: u64,
        digits: u32,
    },
    /// After the size: spaces.
    Space {
        size: u64,
    },
    /// From a `;` to the end of the line.
    Extension {
        size: u64,
    },
    SizeLineFeed {
        size: u64,
    },
    Data {
        left: u64,
    },
    DataReturn,
    DataLineFeed,
    Trailer,
    End,
}

/// What came off the front.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
    /// More has to be read.
    More,
    End,
}

impl Framing {
    pub(super) fn chunked() -> Self {
        Self::Chunked(Chunked {
            step: Step::Size { size: 0, digits: 0 },
            extension_bytes: 0,
        })
    }

    /// Whether it is known that nothing more comes.
    pub(super) fn is_over(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunked) => chunked.step == Step::End,
            Self::Close => false,
        }
    }

    /// How many bytes of data are known to come.
    pub(super) fn expected(&self) -> u64 {
        match self {
            Self::Length(left)
            | Self::Chunked(Chunked {
                step: Step::Data { left },
                ..
            }) => *left,
            Self::Chunked(_) | Self::Close => 0,
        }
    }

    /// Takes the next piece off the front of what was read.
    pub(super) fn take(&mut self, buffer: &mut BytesMut) -> Result<Piece, WireError> {
        match self {
            Self::Length(0) => Ok(Piece::End),
            Self::Length(left) => Ok(data(left, buffer)),
            Self::Chunked(chunked) => chunked.take(buffer),
            Self::Close if buffer.is_empty() => Ok(Piece::More),
            Self::Close => Ok(Piece::Data(buffer.split().freeze())),
        }
    }
}

/// As much of the data as is there.
fn data(left: &mut u64, buffer: &mut BytesMut) -> Piece {
    if buffer.is_empty() {
        return Piece::More;
    }
    let here = usize::try_from(*left).map_or(buffer.len(), |left| left.min(buffer.len()));
    *left -= here as u64;
    Piece::Data(buffer.split_to(here).freeze())
}

impl Chunked {
    fn take(&mut self, buffer: &mut BytesMut) -> Result<Piece, WireError> {
        loop {
            match &mut self.step {
                Step::End => return Ok(Piece::End),
                Step::Data { left: 0 } => self.step = Step::DataReturn,
                Step::Data { left } => return Ok(data(left, buffer)),
                Step::Trailer => return self.trailer(buffer),
                Step::Size { .. }
                | Step::Space { .. }
                | Step::Extension { .. }
                | Step::SizeLineFeed { .. }
                | Step::DataReturn
                | Step::DataLineFeed => {
                    if buffer.is_empty() {
                        return Ok(Piece::More);
                    }
                    self.step = self.next(buffer.get_u8())?;
                }
            }
        }
    }

    fn next(&mut self, byte: u8) -> Result<Step, WireError> {
        Ok(match (self.step, byte) {
            (Step::Size { size, digits }, _) if byte.is_ascii_hexdigit() => {
                let digit = char::from(byte).to_digit(16).unwrap_or(0);
                // Servers are known that fill the size up, with zeros before it or spaces behind.
                if size > SIZE_MAX >> 4 || digits == SIZE_DIGITS_MAX {
                    return Err(WireError::Chunk);
                }
                Step::Size {
                    size: size << 4 | u64::from(digit),
                    digits: digits + 1,
                }
            }
            (Step::Size { digits: 0, .. }, _) => return Err(WireError::Chunk),
            (Step::Size { size, .. } | Step::Space { size } | Step::Extension { size }, b'\r') => {
                Step::SizeLineFeed { size }
            }
            (Step::Size { size, .. } | Step::Space { size }, b' ' | b'\t') => {
                self.count()?;
                Step::Space { size }
            }
            (Step::Size { size, .. } | Step::Space { size }, b';') => Step::Extension { size },
            (Step::Extension { size }, _) if byte != b'\n' => {
                self.count()?;
                Step::Extension { size }
            }
            (Step::SizeLineFeed { size: 0 }, b'\n') => Step::Trailer,
            (Step::SizeLineFeed { size }, b'\n') => Step::Data { left: size },
            (Step::DataReturn, b'\r') => Step::DataLineFeed,
            (Step::DataLineFeed, b'\n') => Step::Size { size: 0, digits: 0 },
            _ => return Err(WireError::Chunk),
        })
    }

    fn count(&mut self) -> Result<(), WireError> {
        self.extension_bytes += 1;
        if self.extension_bytes > EXTENSION_BYTES_MAX {
            return Err(WireError::Chunk);
        }
        Ok(())
    }

    /// What follows the last chunk: fields, mostly none, and an empty line.
    fn trailer(&mut self, buffer: &mut BytesMut) -> Result<Piece, WireError> {
        let mut fields = [httparse::EMPTY_HEADER; TRAILER_FIELDS_MAX];
        let (length, trailers) = match httparse::parse_headers(buffer, &mut fields) {
            Ok(httparse::Status::Complete((length, fields))) => {
                let mut trailers = HeaderMap::with_capacity(fields.len());
                for field in fields {
                    let name = HeaderName::from_bytes(field.name.as_bytes());
                    let value = HeaderValue::from_bytes(field.value);
                    let (Ok(name), Ok(value)) = (name, value) else {
                        return Err(WireError::Chunk);
                    };
                    trailers.append(name, value);
                }
                (length, trailers)
            }
            Ok(httparse::Status::Partial) if buffer.len() < TRAILER_BYTES_MAX => {
                return Ok(Piece::More);
            }
            Ok(httparse::Status::Partial) | Err(_) => return Err(WireError::Chunk),
        };
        buffer.advance(length);
        self.step = Step::End;
        Ok(if trailers.is_empty() {
            Piece::End
        } else {
            Piece::Trailers(trailers)
        })
    }
}
