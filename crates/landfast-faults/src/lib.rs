//! Backups of a real PostgreSQL under faults, judged by what was acknowledged.
//!
//! Each run is one fault and one seed, and every random choice comes from these. Writers commit rows and note each one that the server
//! acknowledged; the archiver runs in a process of its own ([`host`]) that can be killed; a fault is injected; what is left is restored
//! by the library and held against the notes. A run passes where every acknowledged row is back, or what is missing lies within the
//! printed promise *and was told*: nothing acknowledged before the time that the archive called restorable may be missing.
//!
//! `cargo xtask faults` runs them all and keeps the results; `cargo test -p landfast-faults` runs one seed of the quickest.
//!
//! It never judges by what the archiver says of itself alone, never touches a server it did not start, and leaves nothing behind: what a run
//! that was killed left is swept away by the next. `fsync` is off in its servers, so it proves nothing about a loss of power.

#![expect(
    clippy::disallowed_methods,
    reason = "starting processes and waiting for them is what this crate is for; no decision depends on it"
)]
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "whatever is told instead of what a run waits for is a failure of the run"
)]

mod faults;
mod folder;
mod front;
pub mod host;
pub mod hosted;
mod oracle;
pub mod order;
mod random;
mod run;
mod world;
mod writers;

pub use crate::run::{FAULTS, Fault, Outcome, run, run_briefly};
