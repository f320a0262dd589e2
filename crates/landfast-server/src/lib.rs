//! The server of a host: the API over the engine, and the care for the proxy beside it.
//!
//! It owns the lock on the state folder, the journal, the process target and the API's socket. Killing it stops
//! no traffic and no instance; what it was doing is in the journal, and the next one goes on.
//!
//! It never serves an app's request (the proxy does) and never decides about a rollout (the engine does).

mod answer;
mod certificates;
mod docker;
mod events;
mod handlers;
mod idempotency;
mod inherited;
mod lock;
mod proxy;
mod run;
mod secrets_key;
mod state;
mod wire;

pub use landfast_acme::{ChallengeKind, LETS_ENCRYPT};

pub use crate::{
    certificates::AcmeSettings,
    docker::DockerPlace,
    handlers::instance_ports,
    lock::LockError,
    proxy::ProxyError,
    run::{Ended, ServerError, ServerSettings, check, run},
    wire::{diagnosis, event_text},
};
