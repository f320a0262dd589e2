//! Where requests of HTTP/1.1 begin and end on a connection, and which of them nobody after us may see: a strict
//! scanner of raw request heads (RFC 9112, 2 to 6) and chunk framing (7.1).
//!
//! It refuses whatever two readers could read in two ways: the strictest of nginx, HAProxy and the RFCs is the
//! rule (`docs/decisions/0007-strict-scanner.md`). It is incremental: however the bytes are cut into pieces, the
//! verdict is the same. It allocates nothing but its list of fields, copies nothing and panics on no input.
//!
//! It never changes a byte, knows no route and reads no body but its framing. It knows HTTP/1.0 and HTTP/1.1
//! only; for HTTP/2, whose frames leave no room for two readings of a length, there is [`check_request`].

#![forbid(unsafe_code)]
#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::unreachable
)]

mod bytes;
mod chunks;
mod fields;
mod head;
mod host;
mod refusal;
mod scanner;
mod target;

pub use crate::{
    fields::Field,
    head::{Body, Head},
    refusal::Refusal,
    scanner::{Limits, Scanner, Step},
    target::check_request,
};
