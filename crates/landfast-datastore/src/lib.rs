//! What is decided about managed data stores: how a server is configured from the memory it is given, which programs
//! and arguments run it, what of a manifest may change and how, the life of a store from its making to its removal,
//! and which logins it has.
//!
//! This crate knows no clock, socket, file, process or random source: values come in, values go out. It never runs,
//! stops or deletes anything, and it never sees a password.

mod change;
mod life;
mod login;
mod measure;
mod pool;
mod programs;
mod server;
mod url;

pub use crate::{
    change::{Change, StoreImage, Wanted, change},
    life::{Action, After, DELAY_DEFAULT, Input, Outcome, Phase, Rejected, Store},
    login::{
        DATABASE_LEN_MAX, Login, application_name, application_prefix, database_name, owner_of,
    },
    measure::{Costly, Measures, Replica, SLOW_FROM, Statement, TOLD_MAX, Waiting, without_values},
    pool::{Demand, KEPT_BACK, SHARE_MAX, TooMany, pool_max, pools_fit},
    programs::{Program, Programs, parse_version, programs, version_fits},
    server::{
        Configuration, PORTS, Places, Server, closed_access, port_from, read_only_settings, server,
    },
    url::{connection_url, with_application_name},
};
