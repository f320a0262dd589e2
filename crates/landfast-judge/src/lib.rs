//! The loss judge: a client of its own that says whether a request was lost, and how.
//!
//! It sends requests by a schedule fixed in advance (open loop), half of them on new connections, never repeats
//! one, holds numbered WebSockets and event streams open, and in the end compares what it sent with what the
//! application's own logs say it received. *Lost* is what the contract says: no answer, a reset, a refused
//! connection, a short body, a status the instance did not send, an answer later than the application's own time
//! and a second, or an id missing or doubled in the application's logs. What a release that was broken on
//! purpose failed has a column of its own.
//!
//! It never asks Landfast anything, and it never hides its own weakness: a judge that fell behind marks its run invalid.

mod clock;
mod connection;
mod events;
mod exchange;
mod http1;
mod http2;
mod judge;
mod plan;
mod receipts;
mod settings;
mod table;
mod tally;
mod websocket;

pub use crate::{
    connection::TlsError,
    judge::{Judge, JudgeHandle, StartError},
    receipts::Receipts,
    settings::{Settings, Tls},
    tally::{
        Connections, Kind, KindTotals, Latency, LostSample, Reason, ReleaseTotals, Streams, Verdict,
    },
};
