//! Real servers for tests: PostgreSQL, MariaDB, Redis, PgBouncer, an S3 server, Docker and a registry from packages, each in
//! a private folder, on a free loopback port (Docker: in a network of its own) and a socket of its own, killed when dropped.
//!
//! It never touches a server it did not start, never listens beyond loopback, and leaves nothing behind: what a killed
//! test run left is swept away by the next one. It is slow to be safe nowhere: `fsync` is off, so nothing here may be
//! used to prove that data survives a power loss.
//!
//! Started as root, PostgreSQL and PgBouncer run as the user `postgres`, MariaDB as `mysql`, because they refuse to be root.

#![expect(
    clippy::disallowed_methods,
    reason = "starting servers and waiting for them is what this crate is for; no decision depends on it"
)]

mod docker;
mod folder;
mod mariadb;
mod pgbouncer;
mod ports;
mod postgres;
mod process;
mod redis;
mod s3;

pub use crate::{
    docker::{Dockerd, DockerdOptions, Engine, Registry},
    mariadb::Mariadb,
    pgbouncer::PgBouncer,
    ports::free_port,
    postgres::Postgres,
    redis::Redis,
    s3::S3,
};

/// Why a server did not come up, with the end of what it said. Tests unwrap it.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A program of a Debian package is not there.
    #[error("`{program}` is not installed; install the package `{package}`")]
    ProgramMissing {
        /// What was looked for.
        program: &'static str,
        /// The Debian package it is in.
        package: &'static str,
    },
    /// A file or process could not be made.
    #[error("failed to {what}")]
    Io {
        /// What was being done.
        what: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// Nothing of the kind can be started here. A test that needs it is skipped.
    #[error("{reason}")]
    Unavailable {
        /// Why.
        reason: String,
    },
    /// A program ended with an error, or did not answer in time.
    #[error("{what}: {output}")]
    Failed {
        /// What was being done.
        what: String,
        /// The end of its output.
        output: String,
    },
}
