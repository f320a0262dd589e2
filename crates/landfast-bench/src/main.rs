//! The far ends of `make bench`, one process each: a backend that costs next to nothing, a client that does full
//! handshakes, and one that opens connections and leaves them idle.
//!
//! It measures no processor time and judges nothing: `cargo xtask bench` starts it beside the proxies, reads the
//! scheduler's figures, and compares. It shares no code with the proxy.

mod backend;
mod certificate;
mod handshakes;
mod idle;
mod items;
mod rate;
mod target;
mod writes;

use std::{
    io::{self, Write as _},
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;

use crate::target::Target;

/// The far ends of the benchmarks.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Answers GET /1k, /100k and /1m, takes the body of a POST, and echoes WebSocket messages, until it is killed.
    Backend {
        #[arg(required = true)]
        listen: Vec<SocketAddr>,
    },
    /// Writes `cert.pem` and `key.pem` (ECDSA P-256, for `localhost`) and both in `both.pem`.
    Certificate { folder: PathBuf },
    /// Opens TLS connections without resumption, one request each; prints how many, as JSON.
    Handshakes {
        target: SocketAddr,
        /// The certificate to trust.
        #[arg(long)]
        ca: PathBuf,
        #[arg(long, default_value_t = 2_000)]
        milliseconds: u64,
        /// Connections at a time.
        #[arg(long, default_value_t = 32)]
        at_a_time: usize,
    },
    /// Keeps a fixed rate in an open loop, and logs each request.
    Rate {
        target: SocketAddr,
        #[arg(long)]
        host: String,
        #[arg(long)]
        path: String,
        /// Requests per second.
        #[arg(long)]
        rate: u32,
        #[arg(long, default_value_t = 50)]
        connections: u32,
        #[arg(long)]
        milliseconds: u64,
        /// Takes a line per answer: when it was due, and after how long it was whole, in microseconds.
        #[arg(long)]
        log: PathBuf,
    },
    /// An app on the table `items (id, COLUMN)` of the PostgreSQL at `$DATABASE_URL`, on `$PORT`, until it is told to end.
    Items {
        #[arg(long)]
        column: String,
    },
    /// Writes and reads items at a fixed rate, and holds what it reads against what was acknowledged.
    Writes {
        target: SocketAddr,
        #[arg(long)]
        host: String,
        /// Requests per second.
        #[arg(long)]
        rate: u32,
        #[arg(long, default_value_t = 16)]
        connections: u32,
        #[arg(long)]
        milliseconds: u64,
        /// Items with the numbers 1 to this exist.
        #[arg(long)]
        items: u64,
        /// Takes a line per answer: when it was due, and after how long it was whole, in microseconds.
        #[arg(long)]
        log: PathBuf,
        /// Takes a line per item: its number, and the value that was acknowledged last.
        #[arg(long)]
        acknowledged: PathBuf,
    },
    /// Opens connections, uses each once, prints how many are open, and holds them until its input ends.
    Idle {
        target: SocketAddr,
        #[arg(long)]
        ca: Option<PathBuf>,
        #[arg(long, default_value_t = 9_000)]
        count: usize,
        #[arg(long)]
        websocket: bool,
        #[arg(long, default_value = "localhost")]
        host: String,
        #[arg(long, default_value = "/1k")]
        path: String,
        /// Uses each again at the end, and prints how many answered; without it, some of them.
        #[arg(long)]
        each: bool,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().role) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            drop(writeln!(io::stderr(), "landfast-bench: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(role: Role) -> anyhow::Result<()> {
    raise_descriptor_limit().context("failed to raise the limit of open descriptors")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default())
        .context("failed to start the event loop")?;
    match role {
        Role::Backend { listen } => runtime.block_on(backend::serve(&listen)),
        Role::Certificate { folder } => certificate::write(&folder),
        Role::Handshakes {
            target,
            ca,
            milliseconds,
            at_a_time,
        } => {
            let target = Target::new(target, Some(&ca))?;
            let time = Duration::from_millis(milliseconds);
            print(&runtime.block_on(handshakes::run(target, time, at_a_time)))
        }
        Role::Items { column } => runtime.block_on(items::serve(&column)),
        Role::Writes {
            target,
            host,
            rate,
            connections,
            milliseconds,
            items,
            log,
            acknowledged,
        } => {
            let target = Target::new(target, None)?;
            let plan = writes::Plan {
                host,
                rate,
                connections,
                time: Duration::from_millis(milliseconds),
                items,
            };
            print(&runtime.block_on(writes::run(target, plan, &log, &acknowledged))?)
        }
        Role::Rate {
            target,
            host,
            path,
            rate,
            connections,
            milliseconds,
            log,
        } => {
            let target = Target::new(target, None)?;
            let plan = rate::Plan {
                path,
                host,
                rate,
                connections,
                time: Duration::from_millis(milliseconds),
            };
            print(&runtime.block_on(rate::run(target, plan, &log))?)
        }
        Role::Idle {
            target,
            ca,
            count,
            websocket,
            host,
            path,
            each,
        } => {
            let use_of = if websocket {
                idle::Use::WebSocket
            } else {
                idle::Use::Get { host, path }
            };
            let target = Target::new(target, ca.as_deref())?;
            runtime.block_on(idle::run(target, count, use_of, each))
        }
    }
}

/// One line of JSON for who started this.
fn print(value: &impl Serialize) -> anyhow::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    let mut out = io::stdout().lock();
    out.write_all(&line).context("nobody reads the result")?;
    out.flush().context("nobody reads the result")
}

/// The soft limit is often 1,024, and 9,000 connections are to be held.
fn raise_descriptor_limit() -> io::Result<()> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    Ok(setrlimit(Resource::Nofile, raised)?)
}
