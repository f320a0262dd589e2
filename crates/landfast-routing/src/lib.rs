//! Decides where a request goes: match a route, pick a group by weight, pick a backend, judge health, allow a
//! retry. Pure: it owns no socket, file, clock or random source, so the HTTP engine around it can be replaced.
//!
//! It never changes the table it was given; whoever holds a newer table swaps the whole.

pub mod admission;
pub mod balance;
pub mod eject;
pub mod elders;
pub mod encoding;
pub mod files;
pub mod grpc;
pub mod headers;
pub mod health;
pub mod media;
pub mod retry;
pub mod schedule;
pub mod snapshot;
pub mod sse;
pub mod sticky;
pub mod table;
pub mod websocket;
