//! hyper, run by hand on bytes in memory: where it thinks that one request ends.

#![allow(unreachable_pub, reason = "shared by several test files")]

use std::{
    convert::Infallible,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{
    Request, Response,
    body::Incoming,
    rt::{Read, ReadBufCursor, Write},
    server::conn::http1,
    service::service_fn,
};

/// Gives its bytes, then nothing for ever; takes everything.
struct Memory<'a> {
    left: &'a [u8],
}

impl Read for Memory<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if self.left.is_empty() {
            return Poll::Pending;
        }
        let (given, left) = self.left.split_at(buffer.remaining().min(self.left.len()));
        buffer.put_slice(given);
        self.left = left;
        Poll::Ready(Ok(()))
    }
}

impl Write for Memory<'_> {
    fn poll_write(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// How many bytes hyper takes for one whole request; nothing where it refuses.
pub fn one_request(bytes: &[u8]) -> Option<usize> {
    let whole = Arc::new(AtomicU32::new(0));
    let seen = Arc::clone(&whole);
    let service = service_fn(move |request: Request<Incoming>| {
        let seen = Arc::clone(&seen);
        Box::pin(async move {
            if request.into_body().collect().await.is_ok() {
                seen.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
        })
    });
    let mut builder = http1::Builder::new();
    builder.keep_alive(false).max_buf_size(64 << 10);
    let mut connection = builder.serve_connection(Memory { left: bytes }, service);
    let mut cx = Context::from_waker(Waker::noop());
    let polled = (0..1_000).find_map(|_| match connection.poll_without_shutdown(&mut cx) {
        Poll::Pending => None,
        Poll::Ready(result) => Some(result.is_ok()),
    });
    let parts = connection.into_parts();
    let left = parts.io.left.len() + parts.read_buf.len();
    let is_whole = polled == Some(true) && whole.load(Ordering::Relaxed) == 1;
    is_whole.then(|| bytes.len() - left)
}
