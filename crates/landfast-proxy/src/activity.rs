//! What a connection's transport, its protocol and its requests know of each other: when something moved, who waits for
//! whom, and how the connection is to end.
//!
//! One timer per connection is enough to hold all its times: it is moved only when it would fire too late.

use std::{cell::Cell, io, rc::Rc, task::Poll, time::Duration};

use landfast_framing::Refusal;
use tokio::time::Instant;

use crate::{clock, patience};

/// How long a connection may wait for its client.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Between two requests.
    pub(crate) idle: Duration,
    /// From the first byte of a head to its last.
    pub(crate) head: Duration,
    /// For the client to take any byte of an answer, and all the waiting for it that bytes do not make good.
    pub(crate) write: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Overdue {
    Idle,
    Head,
    Write,
    Nothing,
}

/// See the head of the module.
#[derive(Debug)]
pub(crate) struct Activity {
    start: Instant,
    /// The same instant by the coarse clock.
    start_coarse: Duration,
    /// Requests under way.
    requests: Cell<u32>,
    /// Microseconds after `start`; `NEVER` where there is none.
    last: Cell<i64>,
    head_since: Cell<i64>,
    write_since: Cell<i64>,
    /// The microseconds of waiting for the client to take something that bytes have not made good.
    write_spent: Cell<i64>,
    /// HTTP/2 sends frames outside requests, which are no slow heads.
    is_http2: Cell<bool>,
    /// The client may still be sending when we close.
    lingers: Cell<bool>,
    /// The connection is to end, and an HTTP/2 client is being told.
    says_farewell: Cell<bool>,
    /// No further request is waited for.
    is_closing: Cell<bool>,
    /// Why the body of the request under way is not read on.
    refused: Cell<Option<Refusal>>,
}

const NEVER: i64 = -1;

/// A request under way. Dropping it says that the answer was given.
#[derive(Debug)]
pub(crate) struct Busy(Rc<Activity>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.requests.set(self.0.requests.get().saturating_sub(1));
        self.0.touch();
    }
}

impl Activity {
    pub(crate) fn new() -> Self {
        Self {
            start: clock::instant(),
            start_coarse: clock::coarse(),
            requests: Cell::new(0),
            last: Cell::new(0),
            head_since: Cell::new(NEVER),
            write_since: Cell::new(NEVER),
            write_spent: Cell::new(0),
            is_http2: Cell::new(false),
            lingers: Cell::new(false),
            says_farewell: Cell::new(false),
            is_closing: Cell::new(false),
            refused: Cell::new(None),
        }
    }

    pub(crate) fn set_http2(&self) {
        self.is_http2.set(true);
    }

    /// A request's head is complete.
    pub(crate) fn begin(self: &Rc<Self>) -> Busy {
        self.requests.set(self.requests.get() + 1);
        self.head_since.set(NEVER);
        Busy(Rc::clone(self))
    }

    /// The connection closes after this answer although its client may not be done, so it closes gently.
    pub(crate) fn linger(&self) {
        self.lingers.set(true);
    }

    pub(crate) fn lingers(&self) -> bool {
        self.lingers.get()
    }

    pub(crate) fn say_farewell(&self) {
        self.says_farewell.set(true);
    }

    pub(crate) fn says_farewell(&self) -> bool {
        self.says_farewell.get()
    }

    /// The connection ends with the request under way, or at once where there is none.
    pub(crate) fn close(&self) {
        self.is_closing.set(true);
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.is_closing.get()
    }

    /// The body of the request under way has two readings: nothing more of what the client sends is read.
    pub(crate) fn refuse(&self, refusal: Refusal) {
        self.linger();
        self.refused.set(Some(refusal));
    }

    pub(crate) fn refused(&self) -> Option<Refusal> {
        self.refused.get()
    }

    fn now(&self) -> i64 {
        let age = clock::coarse().saturating_sub(self.start_coarse);
        i64::try_from(age.as_micros()).unwrap_or(i64::MAX)
    }

    pub(crate) fn touch(&self) {
        self.last.set(self.now());
    }

    /// Bytes came.
    pub(crate) fn read(&self) {
        let now = self.now();
        self.last.set(now);
        self.head_began(now);
    }

    /// A part of a head is there, from when the last request was under way.
    pub(crate) fn begin_head(&self) {
        self.head_began(self.now());
    }

    fn head_began(&self, now: i64) {
        let is_idle = self.requests.get() == 0 && !self.is_http2.get();
        if is_idle && self.head_since.get() == NEVER {
            self.head_since.set(now);
        }
    }

    /// The client took so many bytes, or has to be waited for.
    pub(crate) fn wrote(&self, polled: &Poll<io::Result<usize>>) {
        let since = self.write_since.get();
        let Poll::Ready(taken) = polled else {
            if since == NEVER {
                self.write_since.set(self.now());
            }
            return;
        };
        let mut spent = self.write_spent.get();
        if since == NEVER && spent == 0 {
            return;
        }
        if since != NEVER {
            self.write_since.set(NEVER);
            spent += self.now() - since;
        }
        let bytes = taken.as_ref().map_or(0, |count| *count as u64);
        let earned = i64::try_from(patience::earned(bytes).as_micros()).unwrap_or(i64::MAX);
        self.write_spent.set(spent.saturating_sub(earned).max(0));
    }

    /// The next instant at which this connection would have taken too long, and with what.
    pub(crate) fn deadline(&self, limits: Limits) -> (Instant, Overdue) {
        let Limits { idle, head, write } = limits;
        let at =
            |micros: i64| self.start + Duration::from_micros(u64::try_from(micros).unwrap_or(0));
        let write_since = self.write_since.get();
        if write_since != NEVER {
            let spent = self.write_spent.get();
            let left = write.saturating_sub(Duration::from_micros(spent.unsigned_abs()));
            return (at(write_since) + left, Overdue::Write);
        }
        let last = at(self.last.get());
        if self.requests.get() > 0 {
            return (last + idle, Overdue::Nothing);
        }
        let head_since = self.head_since.get();
        if head_since != NEVER {
            return (at(head_since) + head, Overdue::Head);
        }
        (last + idle, Overdue::Idle)
    }
}
