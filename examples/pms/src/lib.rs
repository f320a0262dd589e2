//! PMS: a property-management service. Rooms and reservations in MariaDB, what is free in a Redis cache, signed documents
//! in a bucket.
//!
//! It is the example of an app that outlives its stores: without the cache it is slower, without the bucket it takes no
//! documents, and only without the database it is down (module `health`). No store's failure makes a process leave or
//! asks for its restart.
//!
//! It keeps nothing on disk, creates no table (its migrations do) and no bucket.

mod cache;
mod clock;
mod database;
mod documents;
mod health;
mod http;
mod log;
mod model;
mod problem;
mod serve;
mod settings;

use std::process::ExitCode;

use crate::{
    log::Level,
    settings::{Settings, SettingsError},
};

const USAGE: &str = "usage: pms serve|version";

/// Runs the command named in the arguments and says how the process should end.
pub fn run() -> ExitCode {
    let command = std::env::args().nth(1).unwrap_or_default();
    let settings = Settings::read(|name| std::env::var(name).ok());
    let ended = match (command.as_str(), settings) {
        ("serve", Ok(settings)) => {
            log::set_level(settings.log_level);
            serve::run(settings)
        }
        ("serve", Err(SettingsError(problems))) => Err(anyhow::anyhow!(problems.join("; "))),
        ("version", _) => {
            log::raw(&serde_json::json!({"version": env!("CARGO_PKG_VERSION")}));
            Ok(())
        }
        _ => {
            log::complain(USAGE);
            return ExitCode::from(2);
        }
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::line(Level::Error, &format!("{error:#}"), serde_json::Value::Null);
            log::complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}
