//! An answer on its way: what of it is written next, and when it is over. No sockets here.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, Response, response::Parts};
use http_body::Body as _;

use super::encode::{self, Asked, Framing};
use crate::{answer::AnswerBody, clock};

/// Answers are put together up to here before they are written; larger pieces of a body are written from where they lie.
pub(super) const TOGETHER_MAX: usize = 16 << 10;

/// An answer on its way.
pub(super) struct Answer {
    body: AnswerBody,
    /// Until it is written.
    parts: Option<Parts>,
    asked: Asked,
    framing: Framing,
    is_last: bool,
    pub(super) is_over: bool,
}

/// Whose turn it is after a piece of an answer.
pub(super) enum Turn {
    Goes,
    /// The backend has nothing at the moment.
    Waits,
    Broke,
}

impl Answer {
    pub(super) fn new(response: Response<AnswerBody>, asked: Asked) -> Self {
        let (parts, body) = response.into_parts();
        Self {
            body,
            parts: Some(parts),
            asked,
            framing: Framing::Nothing,
            is_last: true,
            is_over: false,
        }
    }

    /// Whether the connection ends with it.
    pub(super) fn is_last(&self) -> bool {
        self.is_last
    }

    /// Puts together what there is to write now: bytes in `first`, then data from where it lies, then its end.
    pub(super) fn gather(
        &mut self,
        cx: &mut Context<'_>,
        first: &mut Vec<u8>,
    ) -> (Bytes, &'static [u8], Turn) {
        if let Some(parts) = self.parts.take() {
            let length = self.body.size_hint().exact();
            let said =
                clock::with_date(|date| encode::head(self.asked, &parts, length, date, first));
            self.framing = said.framing;
            self.is_last = said.is_last;
            self.is_over = matches!(said.framing, Framing::Nothing | Framing::Length(0));
        }
        let nothing = (Bytes::new(), &b""[..]);
        while !self.is_over {
            if first.len() >= TOGETHER_MAX {
                return (nothing.0, nothing.1, Turn::Goes);
            }
            let frame = match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Pending => return (nothing.0, nothing.1, Turn::Waits),
                Poll::Ready(Some(Err(_))) => return (nothing.0, nothing.1, Turn::Broke),
                Poll::Ready(Some(Ok(frame))) => frame,
                Poll::Ready(None) => {
                    return if self.end(None, first) {
                        (nothing.0, nothing.1, Turn::Goes)
                    } else {
                        (nothing.0, nothing.1, Turn::Broke)
                    };
                }
            };
            match frame.into_data() {
                Ok(data) => {
                    let (data, end) = self.take(data, first);
                    if !data.is_empty() {
                        return (data, end, Turn::Goes);
                    }
                }
                Err(frame) => {
                    let trailers = frame.into_trailers().ok();
                    let trailers = trailers.filter(|_| self.asked.takes_trailers);
                    if !self.end(trailers.as_ref(), first) {
                        return (nothing.0, nothing.1, Turn::Broke);
                    }
                }
            }
        }
        (nothing.0, nothing.1, Turn::Goes)
    }

    /// Takes data in: copies it where it is short, gives it back where it is to be written from where it lies.
    fn take(&mut self, mut data: Bytes, first: &mut Vec<u8>) -> (Bytes, &'static [u8]) {
        if data.is_empty() {
            return (data, b"");
        }
        match &mut self.framing {
            Framing::Length(left) => {
                // More than was announced would be taken for the next answer.
                data.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= data.len() as u64;
                self.is_over = *left == 0;
            }
            Framing::Chunked => encode::chunk_size(data.len(), first),
            Framing::Nothing | Framing::Close => {}
        }
        let end: &'static [u8] = if self.framing == Framing::Chunked {
            b"\r\n"
        } else {
            b""
        };
        if first.len() + data.len() > TOGETHER_MAX {
            return (data, end);
        }
        first.extend_from_slice(&data);
        first.extend_from_slice(end);
        // The end in the same piece, where it is known.
        if !self.is_over && self.body.is_end_stream() {
            self.end(None, first);
        }
        (Bytes::new(), b"")
    }

    /// Ends the body; tells whether it is as long as was announced.
    fn end(&mut self, trailers: Option<&HeaderMap>, first: &mut Vec<u8>) -> bool {
        self.is_over = true;
        match self.framing {
            Framing::Chunked => {
                encode::last_chunk(trailers, first);
                true
            }
            Framing::Length(left) => left == 0,
            Framing::Nothing | Framing::Close => true,
        }
    }
}
