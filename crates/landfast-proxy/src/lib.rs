//! The data plane: sockets, TLS and HTTP around the decisions of `landfast-routing`. A holder process keeps the
//! listening descriptors and restarts a worker process, which serves on one thread per core.
//!
//! Files it serves itself come from the artifact store, which it only reads, by digest.
//!
//! It never decides what should run or where traffic should go: that comes as snapshots over the control
//! socket. It never talks to the server on its own, and serves its last good routes without it.

mod access_log;
mod activity;
mod admission;
mod answer;
mod backend;
mod challenge;
mod client_io;
mod clock;
mod compress;
mod connection;
pub mod control;
mod control_server;
mod counters;
mod credentials;
mod descriptors;
mod drain;
mod elders;
mod exchange;
mod farewell;
mod finish;
mod forward;
mod handler;
mod health;
mod holder;
mod holder_link;
mod http1;
mod http2_pool;
mod leaving;
mod link;
mod listen;
mod metrics;
mod patience;
mod pause;
mod peers;
mod persist;
mod pieces;
mod pool;
mod priority;
mod request_body;
mod route_answers;
mod settings;
mod shared;
mod static_files;
mod sticky;
mod thread;
mod tls;
mod tunnel;
mod upstream;
mod waits;
mod wire;
mod worker;

pub use crate::{
    holder::{ADOPT_ARGUMENTS, HolderError, WORKER_ARGUMENTS, adopt_main, holder_main},
    link::LinkError,
    listen::{BindError, port_owner},
    settings::{HolderSettings, WorkerSettings},
    tls::check_certificate,
    worker::{WorkerError, worker_main},
};
pub use landfast_routing::admission::{Trust, TrustedField};
