//! Placeholder.

pub mod canary;
