//! Seeded worlds around the real engine: virtual time, instances and a proxy with faults, a server that dies at
//! any record. After each step the invariants of [`watch`] are swept; they know neither the engine's rules nor
//! which bug is planted. A seed is a whole run: the same seed gives the same trace, byte by byte.
//!
//! Nothing here reads a clock, touches a socket or starts a process.

pub mod canary;
pub mod database;
pub mod dice;
pub mod fault;
pub mod operator;
pub mod proxy;
pub mod run;
pub mod scenario;
pub mod target;
pub mod watch;
pub mod world;

/// Milliseconds of the world's true time.
pub type Millis = u64;
