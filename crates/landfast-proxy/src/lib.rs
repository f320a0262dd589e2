//! The data plane: sockets, TLS and HTTP around the decisions of `landfast-routing`. A holder process keeps the
//! listening descriptors and restarts a worker process, which serves on one thread per core.
//!
//! It never decides what should run or where traffic should go: that comes as snapshots over the control
//! socket. It never talks to the server on its own, and serves its last good routes without it.

mod access_log;
mod answer;
mod backend;
mod clock;
mod connection;
pub mod control;
mod control_server;
mod counters;
mod drain;
mod elders;
mod exchange;
mod forward;
mod handler;
mod health;
mod holder;
mod holder_link;
mod leaving;
mod link;
mod listen;
mod metrics;
mod pause;
mod persist;
mod pool;
mod request_body;
mod settings;
mod shared;
mod thread;
mod tls;
mod tunnel;
mod worker;

pub use crate::{
    holder::{ADOPT_ARGUMENTS, HolderError, WORKER_ARGUMENTS, adopt_main, holder_main},
    link::LinkError,
    listen::{BindError, port_owner},
    settings::{HolderSettings, WorkerSettings},
    tls::check_certificate,
    worker::{WorkerError, worker_main},
};
