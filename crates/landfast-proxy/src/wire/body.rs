//! An answer's body as it is read: where it ends, and what of it is data (RFC 9112, 6 and 7). No sockets here.

use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::WireError;

/// Digits of a chunk's size; the largest has 2^60 bytes.
const SIZE_DIGITS_MAX: u32 = 15;
/// What the extensions of one chunk may have together.
const EXTENSION_BYTES_MAX: usize = 4 << 10;
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

/// Where in a body of chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chunked {
    Size {
        size: u64,
        digits: u32,
    },
    /// After the size, up to the end of the line.
    Extension {
        size: u64,
        bytes: usize,
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
        Self::Chunked(Chunked::Size { size: 0, digits: 0 })
    }

    /// Whether it is known that nothing more comes.
    pub(super) fn is_over(&self) -> bool {
        matches!(self, Self::Length(0) | Self::Chunked(Chunked::End))
    }

    /// How many bytes of data are known to come.
    pub(super) fn expected(&self) -> u64 {
        match self {
            Self::Length(left) | Self::Chunked(Chunked::Data { left }) => *left,
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
            match self {
                Self::End => return Ok(Piece::End),
                Self::Data { left: 0 } => *self = Self::DataReturn,
                Self::Data { left } => return Ok(data(left, buffer)),
                Self::Trailer => return self.trailer(buffer),
                Self::Size { .. }
                | Self::Extension { .. }
                | Self::SizeLineFeed { .. }
                | Self::DataReturn
                | Self::DataLineFeed => {
                    if buffer.is_empty() {
                        return Ok(Piece::More);
                    }
                    *self = self.step(buffer.get_u8())?;
                }
            }
        }
    }

    fn step(self, byte: u8) -> Result<Self, WireError> {
        Ok(match (self, byte) {
            (Self::Size { size, digits }, _) if byte.is_ascii_hexdigit() => {
                let digit = char::from(byte).to_digit(16).unwrap_or(0);
                if digits == SIZE_DIGITS_MAX {
                    return Err(WireError::Chunk);
                }
                Self::Size {
                    size: size << 4 | u64::from(digit),
                    digits: digits + 1,
                }
            }
            (Self::Size { digits: 0, .. }, _) => return Err(WireError::Chunk),
            (Self::Size { size, .. } | Self::Extension { size, .. }, b'\r') => {
                Self::SizeLineFeed { size }
            }
            // Servers are known that fill the size up with spaces.
            (Self::Size { size, .. }, b' ' | b'\t' | b';') => Self::Extension { size, bytes: 0 },
            (Self::Extension { size, bytes }, _)
                if byte != b'\n' && bytes < EXTENSION_BYTES_MAX =>
            {
                Self::Extension {
                    size,
                    bytes: bytes + 1,
                }
            }
            (Self::SizeLineFeed { size: 0 }, b'\n') => Self::Trailer,
            (Self::SizeLineFeed { size }, b'\n') => Self::Data { left: size },
            (Self::DataReturn, b'\r') => Self::DataLineFeed,
            (Self::DataLineFeed, b'\n') => Self::Size { size: 0, digits: 0 },
            _ => return Err(WireError::Chunk),
        })
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
        *self = Self::End;
        Ok(if trailers.is_empty() {
            Piece::End
        } else {
            Piece::Trailers(trailers)
        })
    }
}
