//! What goes to the client: put together in the thread's own memory, written at once, and kept only as far as the kernel
//! does not take it.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use tokio::io::AsyncWrite;

/// What was not taken yet, in order.
#[derive(Debug, Default)]
pub(super) struct Output {
    copied: Bytes,
    data: Bytes,
    end: &'static [u8],
    /// Given to the stream, which may hold some of it back.
    is_unflushed: bool,
}

impl Output {
    /// Writes `first`, `data` and `end` as far as they are taken now. Nothing may be left from before.
    pub(super) fn write<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
        first: &[u8],
        data: Bytes,
        end: &'static [u8],
    ) -> io::Result<()> {
        debug_assert!(self.copied.is_empty() && self.data.is_empty() && self.end.is_empty());
        self.is_unflushed = true;
        let mut parts = Parts {
            first,
            data: &data,
            end,
        };
        if let Poll::Ready(written) = parts.poll_write(stream, cx) {
            return written;
        }
        let Parts {
            first,
            data: left,
            end,
        } = parts;
        self.copied = Bytes::copy_from_slice(first);
        self.data = data.slice(data.len() - left.len()..);
        self.end = end;
        Ok(())
    }

    /// Writes what is left.
    pub(super) fn poll_flush<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.is_unflushed {
            return Poll::Ready(Ok(()));
        }
        let mut parts = Parts {
            first: &self.copied,
            data: &self.data,
            end: self.end,
        };
        let polled = parts.poll_write(stream, cx);
        let Parts { first, data, end } = parts;
        let (first, data) = (first.len(), data.len());
        self.copied = self.copied.split_off(self.copied.len() - first);
        self.data = self.data.split_off(self.data.len() - data);
        self.end = end;
        ready!(polled)?;
        // Even of length zero they would hold what they were a part of.
        (self.copied, self.data) = (Bytes::new(), Bytes::new());
        ready!(Pin::new(stream).poll_flush(cx))?;
        self.is_unflushed = false;
        Poll::Ready(Ok(()))
    }

    /// Puts something short behind what is left.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        let all = [&self.copied, &self.data, self.end, bytes].concat();
        *self = Self {
            copied: all.into(),
            data: Bytes::new(),
            end: b"",
            is_unflushed: true,
        };
    }
}

/// What is to be written; parts that were become shorter from the front.
struct Parts<'a> {
    first: &'a [u8],
    data: &'a [u8],
    end: &'static [u8],
}

impl Parts<'_> {
    fn poll_write<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let polled = if self.data.is_empty() && self.end.is_empty() {
                if self.first.is_empty() {
                    return Poll::Ready(Ok(()));
                }
                Pin::new(&mut *stream).poll_write(cx, self.first)
            } else {
                let slices = [self.first, self.data, self.end].map(IoSlice::new);
                Pin::new(&mut *stream).poll_write_vectored(cx, &slices)
            };
            match ready!(polled)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.advance(written),
            }
        }
    }

    fn advance(&mut self, mut count: usize) {
        let mut cut = |length: usize| {
            let here = count.min(length);
            count -= here;
            here
        };
        self.first = &self.first[cut(self.first.len())..];
        self.data = &self.data[cut(self.data.len())..];
        self.end = &self.end[cut(self.end.len())..];
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    /// Takes a few bytes, then wants to be asked again.
    struct Slow {
        taken: Vec<u8>,
        piece: usize,
        is_ready: bool,
    }

    impl AsyncWrite for Slow {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.is_ready = !self.is_ready;
            if self.is_ready {
                return Poll::Pending;
            }
            let count = bytes.len().min(self.piece);
            self.taken.extend_from_slice(&bytes[..count]);
            Poll::Ready(Ok(count))
        }

        fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn every_byte_is_written_once_and_in_order_however_few_are_taken() {
        let mut cx = Context::from_waker(Waker::noop());
        for piece in 1..20 {
            for is_ready in [false, true] {
                let mut stream = Slow {
                    taken: Vec::new(),
                    piece,
                    is_ready,
                };
                let mut output = Output::default();
                let data = Bytes::from_static(b"data");
                let written = output.write(&mut stream, &mut cx, b"head", data, b"\r\n");
                written.expect("no error");
                output.push(b"more");
                let mut turns = 0;
                while output.poll_flush(&mut stream, &mut cx).is_pending() {
                    turns += 1;
                    assert!(turns < 100);
                }
                assert_eq!(stream.taken, b"headdata\r\nmore", "{piece}");
                assert!(output.copied.is_empty() && output.data.is_empty());
            }
        }
    }
}
