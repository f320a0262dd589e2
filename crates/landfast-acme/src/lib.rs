//! Certificates by ACME (RFC 8555): which hosts need one, when it is renewed, and the conversation that gets it.
//!
//! `plan` decides (what is ordered now, when it is tried again, what somebody should be told) and is pure: no clock,
//! file or socket. `store` keeps the account, the certificates and what became of each attempt in one folder;
//! `order` leads one conversation with the authority; [`Manager`] joins them and runs inside the server. The proxy
//! gets certificates as files and challenge answers as values, both in its snapshot.
//!
//! It never serves a request, never touches a certificate that a person provided, never orders one for a host that
//! has a good one, and never replaces a certificate by anything but a newer one: while a renewal fails the old one
//! serves on. Keys leave this crate only into files of mode 0600.

mod connect;
mod facts;
mod manager;
mod order;
mod plan;
mod store;

pub use crate::{
    connect::ConnectError,
    manager::{Listed, Manager, ManagerSettings, Notice, RenewError, Source, Surroundings},
    order::ChallengeKind,
    plan::{Alert, Severity},
    store::{Store, StoreError},
};

/// The directory of Let's Encrypt, the authority where the server is told no other.
pub const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";
