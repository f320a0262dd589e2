//! The typed client of the API: over the server's Unix socket, or TCP on loopback.
//!
//! One method for each endpoint, streams that go on where they were cut, and uploads that resume. It never
//! reaches round the API: it opens no journal, no store and no run folder. It starts no process, prints nothing
//! and decides nothing about deploys.
//!
//! What a cut does: a request that changes nothing, or carries an idempotency key, is sent again by itself once
//! the server was reached before, for [`PATIENCE`]; any other is reported as [`Error::Cut`], because whether it
//! was done is unknown.

mod backups;
mod connection;
mod error;
mod events;
mod lines;
mod methods;
mod sse;
mod upload;

use std::{
    fmt,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

pub use crate::{
    error::Error,
    events::{Events, Followed},
    lines::Lines,
    sse::{SseEvent, SseParser},
    upload::{Blob, UploadProgress},
};

/// How long a server that was reached before may be away before a repeatable request gives up: long enough for
/// a restart of the server, or of an ssh connection.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Where the server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Tcp(address) => write!(f, "{address}"),
        }
    }
}

/// A client of one server. Clones share their connections.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    place: Place,
    /// What people call the place, such as `ssh://deploy@host`, where it is a forwarded socket.
    title: Option<String>,
    /// Who asks, for `history`.
    actor: Option<String>,
    /// Once true, being away is taken for a restart and waited out.
    reached: AtomicBool,
    pool: connection::Pool,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client({})", self.inner.place)
    }
}

impl Client {
    /// A client. Nothing is connected until the first request.
    pub fn new(place: Place) -> Self {
        Self::build(place, None, None)
    }

    /// A client that gives the place another name in errors, and its user's name to the server.
    pub fn build(place: Place, title: Option<String>, actor: Option<String>) -> Self {
        let reached = AtomicBool::new(false);
        let pool = connection::Pool::default();
        Self {
            inner: Arc::new(Inner {
                place,
                title,
                actor,
                reached,
                pool,
            }),
        }
    }

    /// Where the server listens.
    pub fn place(&self) -> &Place {
        &self.inner.place
    }

    /// The place as errors name it.
    fn title(&self) -> String {
        self.inner
            .title
            .clone()
            .unwrap_or_else(|| self.inner.place.to_string())
    }
}
