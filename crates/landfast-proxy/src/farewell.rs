//! The time between the two GOAWAYs that end an HTTP/2 connection.
//!
//! RFC 9113, 6.8: the first GOAWAY refuses nothing and the second names the last stream that is answered; between them the
//! server gives what is on its way the time to come. hyper sends a PING with the first and takes its acknowledgement for
//! that time. But a client may answer a PING before it sends the requests that it has queued already (the `h2` crate
//! does), and those would be refused. So once a connection is to end, acknowledgements of PINGs are held back here for
//! [`HELD`], while every other frame goes through.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, ReadBuf},
    time::Sleep,
};

/// How long an acknowledgement is held back: well within the second an idle connection still has when the proxy ends.
const HELD: Duration = Duration::from_millis(500);
/// What a client sends before its first frame (RFC 9113, 3.4).
const PREFACE_BYTES: usize = 24;
const HEAD_BYTES: usize = 9;
const PING: u8 = 6;
const ACK: u8 = 1;
const PING_BYTES: usize = 8;
const READ_BYTES: usize = 8 << 10;

/// Stands between the socket and hyper.
#[derive(Debug)]
pub(crate) struct Farewell {
    frames: Frames,
    timer: Option<Pin<Box<Sleep>>>,
    /// What hyper is still to get, from `taken` on.
    ready: Vec<u8>,
    taken: usize,
}

impl Farewell {
    pub(crate) fn new() -> Self {
        Self {
            frames: Frames::new(),
            timer: None,
            ready: Vec::new(),
            taken: 0,
        }
    }

    /// The connection goes on: only where frames begin is followed.
    pub(crate) fn follow(&mut self, bytes: &[u8]) {
        self.frames.follow(bytes);
    }

    /// Reads for a connection that is to end.
    pub(crate) fn poll_read<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if let Some(timer) = &mut self.timer
                && timer.as_mut().poll(cx).is_ready()
            {
                self.timer = None;
                self.frames.release(&mut self.ready);
            }
            if self.taken < self.ready.len() {
                let rest = &self.ready[self.taken..];
                let count = rest.len().min(buffer.remaining());
                buffer.put_slice(&rest[..count]);
                self.taken += count;
                return Poll::Ready(Ok(()));
            }
            self.ready.clear();
            self.taken = 0;
            let mut scratch = [std::mem::MaybeUninit::uninit(); READ_BYTES];
            let mut read = ReadBuf::uninit(&mut scratch);
            match Pin::new(&mut *stream).poll_read(cx, &mut read) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) if !read.filled().is_empty() => {
                    self.frames.sift(read.filled(), &mut self.ready);
                }
                ended @ Poll::Ready(_) => return ended,
            }
            if self.frames.holds() && self.timer.is_none() {
                self.timer = Some(Box::pin(tokio::time::sleep(HELD)));
            }
        }
    }
}

/// Where the client's frames begin and end, and those that are held back. Pure.
#[derive(Debug)]
struct Frames {
    /// Bytes up to the next frame's head.
    skip: usize,
    /// The head that has come in part.
    head: [u8; HEAD_BYTES],
    filled: usize,
    /// So many bytes of that head were passed on already.
    passed: usize,
    /// Bytes of the present frame that are still to be held back.
    holding: usize,
    held: Vec<u8>,
    is_due: bool,
}

impl Frames {
    fn new() -> Self {
        Self {
            skip: PREFACE_BYTES,
            head: [0; HEAD_BYTES],
            filled: 0,
            passed: 0,
            holding: 0,
            held: Vec::new(),
            is_due: false,
        }
    }

    fn holds(&self) -> bool {
        !self.held.is_empty()
    }

    /// All of it goes on.
    fn follow(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let count = self.skip.min(bytes.len());
                self.skip -= count;
                bytes = &bytes[count..];
                continue;
            }
            bytes = self.fill(bytes);
            if self.filled == HEAD_BYTES {
                self.skip = self.length();
                self.filled = 0;
            }
            self.passed = self.filled;
        }
    }

    /// All but acknowledgements of PINGs goes on.
    fn sift(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) {
        while !bytes.is_empty() {
            let count = self.skip.min(bytes.len());
            let (now, rest) = bytes.split_at(count);
            out.extend_from_slice(now);
            self.skip -= count;
            let count = self.holding.min(rest.len());
            let (now, rest) = rest.split_at(count);
            self.held.extend_from_slice(now);
            self.holding -= count;
            if self.skip > 0 || self.holding > 0 {
                return;
            }
            if self.filled == 0 && self.is_due {
                self.hand_out(out);
            }
            bytes = self.fill(rest);
            if self.filled < HEAD_BYTES {
                return;
            }
            let is_acknowledgement = self.head[3] == PING && self.head[4] & ACK != 0;
            if is_acknowledgement && self.length() == PING_BYTES && self.passed == 0 {
                self.held.extend_from_slice(&self.head);
                self.holding = PING_BYTES;
            } else {
                out.extend_from_slice(&self.head[self.passed..]);
                self.skip = self.length();
            }
            self.filled = 0;
            self.passed = 0;
        }
    }

    /// What is held goes on, as soon as no other frame is in the middle.
    fn release(&mut self, out: &mut Vec<u8>) {
        self.is_due = true;
        if self.skip == 0 && self.holding == 0 && self.passed == 0 {
            self.hand_out(out);
        }
    }

    fn hand_out(&mut self, out: &mut Vec<u8>) {
        self.is_due = false;
        out.append(&mut self.held);
    }

    fn fill<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let count = (HEAD_BYTES - self.filled).min(bytes.len());
        let (now, rest) = bytes.split_at(count);
        self.head[self.filled..self.filled + count].copy_from_slice(now);
        self.filled += count;
        rest
    }

    /// The length of the payload that the head announces (RFC 9113, 4.1).
    fn length(&self) -> usize {
        let [high, middle, low, ..] = self.head;
        usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
        let mut frame = length[1..].to_vec();
        frame.extend([kind, flags, 0, 0, 0, 0]);
        frame.extend(payload);
        frame
    }

    #[test]
    fn holds_back_acknowledgements_and_nothing_else_however_the_bytes_are_cut() {
        let [ask, acknowledge] = [frame(PING, 0, &[1; 8]), frame(PING, ACK, &[2; 8])];
        let [headers, data] = [frame(1, 4, &[3; 20]), frame(0, 1, &[4; 300])];
        let before = [vec![b'P'; PREFACE_BYTES], headers.clone()].concat();
        let after = [
            ask.clone(),
            acknowledge.clone(),
            headers.clone(),
            data.clone(),
        ]
        .concat();
        let let_through = [ask, headers, data].concat();
        for cut in 1..=after.len() {
            let mut frames = Frames::new();
            frames.follow(&before);
            let mut out = Vec::new();
            for piece in after.chunks(cut) {
                frames.sift(piece, &mut out);
            }
            assert_eq!(out, let_through, "in pieces of {cut}");
            assert!(frames.holds());
            frames.release(&mut out);
            assert_eq!(out[let_through.len()..], acknowledge, "in pieces of {cut}");
            assert!(!frames.holds());
        }
    }

    #[test]
    fn what_is_due_waits_for_the_end_of_the_frame_that_is_under_way() {
        let [acknowledge, data] = [frame(PING, ACK, &[2; 8]), frame(0, 1, &[4; 30])];
        for cut in 1..data.len() {
            let mut frames = Frames::new();
            frames.follow(&[0; PREFACE_BYTES]);
            let mut out = Vec::new();
            frames.sift(&acknowledge, &mut out);
            assert!(out.is_empty());
            let (first, second) = data.split_at(cut);
            frames.sift(first, &mut out);
            frames.release(&mut out);
            frames.sift(second, &mut out);
            frames.sift(&data, &mut out);
            let late = [&data[..], &acknowledge, &data].concat();
            // A head that has only begun was not handed on yet, so nothing stands in the way.
            let early = [&acknowledge[..], &data, &data].concat();
            let expected = if cut < HEAD_BYTES { early } else { late };
            assert_eq!(out, expected, "cut at {cut}");
        }
    }

    #[test]
    fn a_frame_that_was_begun_before_the_end_is_passed_on_whole() {
        let data = [frame(0, 1, &[4; 30]), frame(PING, ACK, &[2; 8])].concat();
        for cut in 1..39 {
            let mut frames = Frames::new();
            frames.follow(&[0; PREFACE_BYTES]);
            frames.follow(&data[..cut]);
            let mut out = Vec::new();
            frames.sift(&data[cut..], &mut out);
            assert_eq!(out, data[cut..39], "cut at {cut}");
            assert!(frames.holds());
        }
    }
}
