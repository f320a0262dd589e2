//! HTTP/1.1 as a client speaks it: requests written whole, answers read to their announced end.
//!
//! It trusts nothing: an answer that ends before its length or its last chunk is short, however it ended.

use std::{io, pin::Pin, task::Poll};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncRead as _, AsyncReadExt as _, AsyncWriteExt as _, ReadBuf};

use crate::connection::Io;

const HEAD_BYTES_MAX: usize = 64 << 10;

/// A connection and what is left of its answer.
pub(crate) struct Http1 {
    io: Io,
    buffer: BytesMut,
    framing: Framing,
}

/// The head of an answer, as far as a judge cares.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Head {
    pub status: u16,
    pub release: Option<String>,
    pub is_fault: bool,
    /// It says how much of a rate is left.
    pub has_rate: bool,
    /// Milliseconds the application says it took.
    pub app_time: Option<String>,
    /// The server announced that it closes the connection.
    pub closes: bool,
    pub accept: Option<String>,
    pub length: Option<u64>,
    pub chunked: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    Done,
    Length(u64),
    /// Bytes left of the chunk; `None` before the next chunk's size.
    Chunk(Option<u64>),
    UntilClose,
}

/// What became of a connection while it carried nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Idleness {
    Usable,
    /// Ended in order, or spoken on without being asked.
    Closed,
    Reset,
}

/// Whether the other side broke the connection instead of closing it.
pub(crate) fn is_reset(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionAborted
    )
}

/// Why an answer could not be read.
#[derive(Debug)]
pub(crate) enum ReadError {
    /// The connection ended in order, but too early.
    Closed,
    Broken(io::Error),
    Malformed(&'static str),
}

/// Why a request could not be written.
#[derive(Debug)]
pub(crate) struct WriteError {
    pub bytes_written: usize,
    pub source: io::Error,
}

impl Http1 {
    pub(crate) fn new(io: Io) -> Self {
        Self {
            io,
            buffer: BytesMut::new(),
            framing: Framing::Done,
        }
    }

    /// Whether an idle connection can carry a request: the server has neither closed it nor said anything.
    pub(crate) async fn idleness(&mut self) -> Idleness {
        if !self.buffer.is_empty() || self.framing != Framing::Done {
            return Idleness::Closed;
        }
        let mut byte = [0; 1];
        std::future::poll_fn(|context| {
            let mut buffer = ReadBuf::new(&mut byte);
            Poll::Ready(
                match Pin::new(&mut self.io).poll_read(context, &mut buffer) {
                    Poll::Pending => Idleness::Usable,
                    Poll::Ready(Err(error)) if is_reset(&error) => Idleness::Reset,
                    Poll::Ready(_) => Idleness::Closed,
                },
            )
        })
        .await
    }

    pub(crate) async fn write(&mut self, parts: [&[u8]; 2]) -> Result<(), WriteError> {
        let mut bytes_written = 0;
        for mut part in parts {
            while !part.is_empty() {
                match self.io.write(part).await {
                    Ok(0) => {
                        return Err(WriteError {
                            bytes_written,
                            source: io::ErrorKind::WriteZero.into(),
                        });
                    }
                    Ok(count) => {
                        bytes_written += count;
                        part = &part[count..];
                    }
                    Err(source) => {
                        return Err(WriteError {
                            bytes_written,
                            source,
                        });
                    }
                }
            }
        }
        self.io.flush().await.map_err(|source| WriteError {
            bytes_written,
            source,
        })
    }

    /// Reads the head of the answer. `started` becomes true with its first byte.
    pub(crate) async fn head(&mut self, started: &mut bool) -> Result<Head, ReadError> {
        loop {
            *started |= !self.buffer.is_empty();
            if let Some(end) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                let text = self.buffer.split_to(end + 4);
                let head = parse_head(&text[..end])
                    .ok_or(ReadError::Malformed("the head is no HTTP/1.1"))?;
                if (100..200).contains(&head.status) && head.status != 101 {
                    continue;
                }
                self.framing = match (head.status, head.chunked, head.length) {
                    (101 | 204 | 304, ..) => Framing::Done,
                    (_, true, Some(_)) => {
                        return Err(ReadError::Malformed("both a length and chunks"));
                    }
                    (_, true, None) => Framing::Chunk(None),
                    (_, false, Some(0)) => Framing::Done,
                    (_, false, Some(length)) => Framing::Length(length),
                    (_, false, None) => Framing::UntilClose,
                };
                return Ok(head);
            }
            if self.buffer.len() > HEAD_BYTES_MAX {
                return Err(ReadError::Malformed("the head is too long"));
            }
            if !self.fill().await? {
                return Err(ReadError::Closed);
            }
        }
    }

    /// The next piece of the body; `None` at its announced end.
    pub(crate) async fn data(&mut self) -> Result<Option<Bytes>, ReadError> {
        loop {
            let available = self.buffer.len() as u64;
            match self.framing {
                Framing::Done => return Ok(None),
                Framing::Length(left) | Framing::Chunk(Some(left)) if available > 0 && left > 0 => {
                    let taken = left.min(available);
                    let left = left - taken;
                    self.framing = match self.framing {
                        Framing::Chunk(_) => Framing::Chunk(Some(left)),
                        Framing::Done | Framing::Length(_) | Framing::UntilClose if left == 0 => {
                            Framing::Done
                        }
                        Framing::Done | Framing::Length(_) | Framing::UntilClose => {
                            Framing::Length(left)
                        }
                    };
                    return Ok(Some(self.buffer.split_to(taken as usize).freeze()));
                }
                Framing::UntilClose if available > 0 => {
                    return Ok(Some(self.buffer.split().freeze()));
                }
                // The chunk is read; its line end follows.
                Framing::Chunk(Some(0)) if available >= 2 => {
                    if !self.buffer.starts_with(b"\r\n") {
                        return Err(ReadError::Malformed("a chunk does not end where it said"));
                    }
                    self.buffer.advance(2);
                    self.framing = Framing::Chunk(None);
                    continue;
                }
                Framing::Chunk(None) => {
                    if let Some(size) = self.chunk_size()? {
                        self.framing = if size == 0 {
                            Framing::Done
                        } else {
                            Framing::Chunk(Some(size))
                        };
                        continue;
                    }
                }
                Framing::Length(_) | Framing::Chunk(Some(_)) | Framing::UntilClose => {}
            }
            if !self.fill().await? {
                return match self.framing {
                    Framing::UntilClose => {
                        self.framing = Framing::Done;
                        Ok(None)
                    }
                    Framing::Done | Framing::Length(_) | Framing::Chunk(_) => {
                        Err(ReadError::Closed)
                    }
                };
            }
        }
    }

    /// Takes the connection and what was read beyond the head, for another protocol.
    pub(crate) fn into_parts(self) -> (Io, BytesMut) {
        (self.io, self.buffer)
    }

    /// Takes a chunk's size line; with the last chunk also the (empty) trailer.
    fn chunk_size(&mut self) -> Result<Option<u64>, ReadError> {
        let Some(end) = self.buffer.windows(2).position(|two| two == b"\r\n") else {
            return Ok(None);
        };
        let line = self.buffer[..end]
            .split(|byte| *byte == b';')
            .next()
            .unwrap_or_default();
        let size = std::str::from_utf8(line)
            .ok()
            .and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
        let size = size.ok_or(ReadError::Malformed("a chunk's size is no number"))?;
        if size > 0 {
            self.buffer.advance(end + 2);
            return Ok(Some(size));
        }
        let rest = &self.buffer[end + 2..];
        let trailer = if rest.starts_with(b"\r\n") {
            Some(2)
        } else {
            None
        };
        let trailer = trailer.or_else(|| {
            rest.windows(4)
                .position(|four| four == b"\r\n\r\n")
                .map(|at| at + 4)
        });
        let Some(trailer) = trailer else {
            return Ok(None);
        };
        self.buffer.advance(end + 2 + trailer);
        Ok(Some(0))
    }

    async fn fill(&mut self) -> Result<bool, ReadError> {
        self.buffer.reserve(4 << 10);
        Ok(self
            .io
            .read_buf(&mut self.buffer)
            .await
            .map_err(ReadError::Broken)?
            > 0)
    }
}

fn parse_head(text: &[u8]) -> Option<Head> {
    let text = std::str::from_utf8(text).ok()?;
    let mut lines = text.split("\r\n");
    let status = lines
        .next()?
        .strip_prefix("HTTP/1.1 ")?
        .get(..3)?
        .parse()
        .ok()?;
    let mut head = Head {
        status,
        ..Head::default()
    };
    for line in lines {
        let (name, value) = line.split_once(':')?;
        let value = value.trim();
        let has = |word: &str| {
            value
                .split(',')
                .any(|part| part.trim().eq_ignore_ascii_case(word))
        };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => head.length = Some(value.parse().ok()?),
            "transfer-encoding" => head.chunked = has("chunked"),
            "connection" => head.closes = has("close"),
            "x-release" => head.release = Some(value.to_owned()),
            "x-fault" => head.is_fault = value == "injected",
            "ratelimit" => head.has_rate = true,
            "x-app-time" => head.app_time = Some(value.to_owned()),
            "sec-websocket-accept" => head.accept = Some(value.to_owned()),
            _ => {}
        }
    }
    Some(head)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(bytes: &[u8]) -> (Result<Head, ReadError>, Vec<u8>, Option<ReadError>) {
        let (near, mut far) = tokio::io::duplex(1 << 16);
        far.write_all(bytes).await.unwrap();
        drop(far);
        let mut connection = Http1::new(Box::new(near));
        let head = connection.head(&mut false).await;
        let mut body = Vec::new();
        if head.is_err() {
            return (head, body, None);
        }
        loop {
            match connection.data().await {
                Ok(Some(data)) => body.extend_from_slice(&data),
                Ok(None) => return (head, body, None),
                Err(error) => return (head, body, Some(error)),
            }
        }
    }

    #[tokio::test]
    async fn reads_lengths_and_chunks_to_their_end() {
        let (head, body, error) = read(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nX-Release: 7\r\nContent-Length: 3\r\n\r\nabc").await;
        assert_eq!(
            (head.unwrap().release.as_deref(), &body[..], error.is_none()),
            (Some("7"), &b"abc"[..], true)
        );
        let chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n1;x=y\r\nc\r\n0\r\n\r\n";
        let (_, body, error) = read(chunked).await;
        assert_eq!((&body[..], error.is_none()), (&b"abc"[..], true));
        let (_, body, error) = read(b"HTTP/1.1 200 OK\r\n\r\nabc").await;
        assert_eq!((&body[..], error.is_none()), (&b"abc"[..], true));
    }

    #[tokio::test]
    async fn an_early_end_is_never_taken_for_the_end() {
        for cut in [
            &b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nabc"[..],
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\nabc",
        ] {
            let (_, _, error) = read(cut).await;
            assert!(
                matches!(error, Some(ReadError::Closed)),
                "{}",
                String::from_utf8_lossy(cut)
            );
        }
        assert!(matches!(
            read(b"HTTP/1.1 200 OK\r\nx").await.0,
            Err(ReadError::Closed)
        ));
        assert!(matches!(
            read(b"SSH-2.0\r\n\r\n").await.0,
            Err(ReadError::Malformed(_))
        ));
    }
}
