//! Compressing answers on their way to the client.
//!
//! Flush-correct: whatever the instance has sent so far can be decoded by the client as soon as the instance
//! pauses. So it is flushed when there is nothing more to read at the moment, and not after each piece.
//! Bounded: a window of 128 KiB, one piece of output at a time, and no more than [`CODED_MAX`] answers at a
//! time on one thread; further ones go as they are.

use std::{
    cell::Cell,
    io::{self, Write},
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Response, header::ACCEPT_ENCODING};
use http_body::{Body, Frame};
use landfast_routing::encoding::{self, Coding};

use crate::answer::{AnswerBody, Broken};

/// Answers that are compressed at a time on one thread.
const CODED_MAX: usize = 256;
/// Output is handed on when it is this long.
const PIECE_BYTES: usize = 16 << 10;
/// Input taken in one go: compressing must not hold the thread's other connections up.
const INPUT_BYTES_MAX: usize = 128 << 10;
const GZIP_LEVEL: u32 = 5;
const ZSTD_LEVEL: i32 = 3;
/// 128 KiB: more would be megabytes for each answer.
const ZSTD_WINDOW_LOG: u32 = 17;

thread_local! {
    static CODED: Cell<usize> = const { Cell::new(0) };
}

/// What the client takes, of all its fields.
pub(crate) fn accepted(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut values = headers.get_all(ACCEPT_ENCODING).iter();
    let first = values.next()?;
    if values.next().is_none() {
        return Some(first.clone());
    }
    let values = headers.get_all(ACCEPT_ENCODING).iter();
    let all: Vec<&[u8]> = values.map(HeaderValue::as_bytes).collect();
    HeaderValue::from_bytes(&all.join(&b","[..])).ok()
}

/// The coding of those offered that the client likes best.
pub(crate) fn negotiate(accepted: Option<&HeaderValue>, offered: &[Coding]) -> Option<Coding> {
    let accepted = accepted.and_then(|value| value.to_str().ok())?;
    encoding::negotiate(accepted, offered)
}

/// Codes an answer where it may be and the client takes it.
pub(crate) fn apply(
    accepted: Option<&HeaderValue>,
    response: Response<AnswerBody>,
) -> Response<AnswerBody> {
    if !encoding::is_eligible(response.status(), response.headers()) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    encoding::vary(&mut parts.headers);
    let coding = negotiate(accepted, &Coding::MADE);
    let encoder = coding
        .filter(|_| !body.is_end_stream())
        .and_then(Encoder::new);
    let (Some(coding), Some(encoder)) = (coding, encoder) else {
        return Response::from_parts(parts, body);
    };
    encoding::mark_coded(&mut parts.headers, coding);
    Response::from_parts(parts, Coded::new(body, encoder).into_body())
}

enum Kind {
    Gzip(flate2::write::GzEncoder<Vec<u8>>),
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
}

struct Encoder(Kind);

impl Encoder {
    /// Nothing where too many are at work, or there is no memory for one.
    fn new(coding: Coding) -> Option<Self> {
        if CODED.get() >= CODED_MAX {
            return None;
        }
        let kind = match coding {
            Coding::Gzip => Kind::Gzip(flate2::write::GzEncoder::new(
                Vec::new(),
                flate2::Compression::new(GZIP_LEVEL),
            )),
            Coding::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), ZSTD_LEVEL).ok()?;
                encoder.window_log(ZSTD_WINDOW_LOG).ok()?;
                Kind::Zstd(encoder)
            }
            Coding::Brotli => return None,
        };
        CODED.set(CODED.get() + 1);
        Some(Self(kind))
    }

    fn write(&mut self, data: &[u8]) -> io::Result<()> {
        match &mut self.0 {
            Kind::Gzip(encoder) => encoder.write_all(data),
            Kind::Zstd(encoder) => encoder.write_all(data),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Kind::Gzip(encoder) => encoder.flush(),
            Kind::Zstd(encoder) => encoder.flush(),
        }
    }

    fn end(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Kind::Gzip(encoder) => encoder.try_finish(),
            Kind::Zstd(encoder) => encoder.do_finish(),
        }
    }

    fn output(&mut self) -> &mut Vec<u8> {
        match &mut self.0 {
            Kind::Gzip(encoder) => encoder.get_mut(),
            Kind::Zstd(encoder) => encoder.get_mut(),
        }
    }

    fn take(&mut self) -> Bytes {
        std::mem::take(self.output()).into()
    }
}

impl Drop for Encoder {
    fn drop(&mut self) {
        CODED.set(CODED.get().saturating_sub(1));
    }
}

enum State {
    Open,
    /// All is read; this is left to give.
    Trailers(Option<HeaderMap>),
    Done,
}

/// A body that is coded while it is read.
struct Coded {
    inner: Pin<Box<AnswerBody>>,
    encoder: Encoder,
    /// Something was written since the last flush.
    is_dirty: bool,
    state: State,
}

type Polled = Poll<Option<Result<Frame<Bytes>, Broken>>>;

impl Coded {
    fn new(inner: AnswerBody, encoder: Encoder) -> Self {
        Self {
            inner: Box::pin(inner),
            encoder,
            is_dirty: false,
            state: State::Open,
        }
    }

    fn into_body(mut self) -> AnswerBody {
        AnswerBody::frames(Box::pin(stream::poll_fn(move |cx| self.poll(cx))))
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Polled {
        match &mut self.state {
            State::Open => {}
            State::Trailers(trailers) => {
                let trailers = trailers.take();
                self.state = State::Done;
                return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
            }
            State::Done => return Poll::Ready(None),
        }
        let mut taken = 0;
        loop {
            if self.encoder.output().len() >= PIECE_BYTES {
                return self.give();
            }
            let trailers = match self.inner.as_mut().poll_frame(cx) {
                Poll::Pending if self.is_dirty => return self.flush(),
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Err(broken))) => {
                    self.state = State::Done;
                    return Poll::Ready(Some(Err(broken)));
                }
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => {
                        if self.encoder.write(&data).is_err() {
                            return self.fail();
                        }
                        self.is_dirty |= !data.is_empty();
                        taken += data.len();
                        if taken >= INPUT_BYTES_MAX {
                            return self.flush();
                        }
                        continue;
                    }
                    Err(frame) => frame.into_trailers().ok(),
                },
                Poll::Ready(None) => None,
            };
            self.state = State::Trailers(trailers);
            if self.encoder.end().is_err() {
                return self.fail();
            }
            return self.give();
        }
    }

    fn flush(&mut self) -> Polled {
        self.is_dirty = false;
        if self.encoder.flush().is_err() {
            return self.fail();
        }
        self.give()
    }

    fn give(&mut self) -> Polled {
        Poll::Ready(Some(Ok(Frame::data(self.encoder.take()))))
    }

    fn fail(&mut self) -> Polled {
        self.state = State::Done;
        Poll::Ready(Some(Err(Broken)))
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read, task::Waker};

    use http_body_util::BodyExt;

    use super::*;

    fn gunzip(bytes: &[u8]) -> Vec<u8> {
        let mut text = Vec::new();
        // What was flushed is readable, also where the end is missing.
        drop(flate2::read::GzDecoder::new(bytes).read_to_end(&mut text));
        text
    }

    fn unzstd(bytes: &[u8]) -> Vec<u8> {
        let mut text = Vec::new();
        let mut decoder = zstd::stream::read::Decoder::new(bytes).expect("a decoder");
        drop(decoder.read_to_end(&mut text));
        text
    }

    type Undo = fn(&[u8]) -> Vec<u8>;
    const CODINGS: [(Coding, Undo); 2] = [(Coding::Gzip, gunzip), (Coding::Zstd, unzstd)];

    fn coded(coding: Coding, frames: Vec<Poll<Frame<Bytes>>>) -> AnswerBody {
        let mut frames = frames.into_iter();
        let inner = stream::poll_fn(move |_| match frames.next() {
            Some(Poll::Ready(frame)) => Poll::Ready(Some(Ok(frame))),
            Some(Poll::Pending) => Poll::Pending,
            None => Poll::Ready(None),
        });
        let encoder = Encoder::new(coding).expect("room for one");
        Coded::new(AnswerBody::frames(Box::pin(inner)), encoder).into_body()
    }

    fn data(text: &'static [u8]) -> Poll<Frame<Bytes>> {
        Poll::Ready(Frame::data(Bytes::from_static(text)))
    }

    #[test]
    fn what_was_sent_can_be_read_while_the_rest_is_waited_for() {
        for (coding, undo) in CODINGS {
            let frames = vec![
                data(b"first "),
                data(b"second"),
                Poll::Pending,
                data(b" third"),
            ];
            let mut body = Box::pin(coded(coding, frames));
            let mut cx = Context::from_waker(Waker::noop());
            let mut seen = Vec::new();
            let mut read = |seen: &mut Vec<u8>| loop {
                match body.as_mut().poll_frame(&mut cx) {
                    Poll::Ready(Some(Ok(frame))) => seen.extend(frame.into_data().expect("data")),
                    Poll::Ready(Some(Err(broken))) => panic!("{broken}"),
                    Poll::Ready(None) | Poll::Pending => return,
                }
                if undo(seen) == b"first second" {
                    return;
                }
            };
            read(&mut seen);
            assert_eq!(undo(&seen), b"first second", "{coding:?}");
            read(&mut seen);
            assert_eq!(undo(&seen), b"first second third", "{coding:?}");
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn large_answers_come_in_pieces_with_their_trailers() {
        for (coding, undo) in CODINGS {
            // Nothing that compresses.
            let piece: Vec<u8> = (0..64_u32 << 10)
                .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
                .collect();
            let piece = Bytes::from(piece);
            let mut frames: Vec<_> = (0..8)
                .map(|_| Poll::Ready(Frame::data(piece.clone())))
                .collect();
            let mut trailers = HeaderMap::new();
            trailers.insert("x-sum", "1".parse().expect("a value"));
            frames.push(Poll::Ready(Frame::trailers(trailers.clone())));
            let collected = coded(coding, frames).collect().await.expect("a body");
            assert_eq!(collected.trailers(), Some(&trailers));
            assert!(undo(&collected.to_bytes()) == piece.repeat(8), "{coding:?}");
        }
        assert_eq!(CODED.get(), 0, "given back");
    }

    #[test]
    fn there_is_a_bound_on_how_many_are_compressed() {
        let held: Vec<_> = (0..CODED_MAX).map(|_| Encoder::new(Coding::Gzip)).collect();
        assert!(held.iter().all(Option::is_some));
        assert!(Encoder::new(Coding::Gzip).is_none());
        drop(held);
        assert!(Encoder::new(Coding::Zstd).is_some());
    }
}
