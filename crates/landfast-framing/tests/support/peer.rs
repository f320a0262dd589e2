//! hyper, run by hand on bytes in memory: where it thinks that one request ends.

#![allow(unreachable_pub, reason = "shared by several test files")]

use std::{
    convert::Infallible,
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{
    HeaderMap, Request, Response,
    body::Incoming,
    header::{HeaderName, HeaderValue},
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

/// One request as hyper reads it.
#[derive(Debug, PartialEq, Eq)]
pub struct OneRequest {
    /// How many bytes it takes.
    pub length: usize,
    /// Method and target, head fields, data, trailer fields.
    pub parts: Vec<String>,
}

/// Lines of fields in the order of their names; those of one name in their own order.
fn sorted(mut fields: Vec<String>) -> Vec<String> {
    fields.sort_by(|one, other| one.split(':').next().cmp(&other.split(':').next()));
    fields
}

fn lines(fields: &HeaderMap) -> Vec<String> {
    let line = |(name, value): (&HeaderName, &HeaderValue)| {
        format!("{name}: {}", String::from_utf8_lossy(value.as_bytes()))
    };
    sorted(fields.iter().map(line).collect())
}

/// One whole request, as hyper reads it; nothing where it refuses.
pub fn one_request(bytes: &[u8]) -> Option<OneRequest> {
    let whole = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&whole);
    let service = service_fn(move |request: Request<Incoming>| {
        let seen = Arc::clone(&seen);
        Box::pin(async move {
            let mut parts = vec![format!("{} {}", request.method(), request.uri())];
            parts.extend(lines(request.headers()));
            if let Ok(body) = request.into_body().collect().await {
                let trailers = body.trailers().map(lines).unwrap_or_default();
                parts.push(String::from_utf8_lossy(&body.to_bytes()).into_owned());
                parts.extend(trailers);
                seen.lock().expect("no panic").push(parts);
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
    let mut whole = whole.lock().expect("no panic");
    let parts = whole.pop().filter(|_| polled == Some(true))?;
    let length = bytes.len() - left;
    whole.is_empty().then_some(OneRequest { length, parts })
}
