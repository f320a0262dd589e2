//! Flextime: a service that evaluates game schedules against constraints.
//!
//! It keeps constraints in SQLite, evaluates schedules in a bounded pool of threads behind a cache, and streams
//! the results. Several processes, also of different releases, share one data folder. It is the application
//! that Landfast deploys in its demonstration and its proofs, so it also has rehearsal endpoints (module
//! `rehearsal`) and can be built broken on purpose (module `fault`).
//!
//! It never terminates TLS, never trusts a forwarded header and keeps nothing outside its data folder.

mod api;
mod cache;
mod clock;
mod constraint;
mod evaluate;
mod events;
mod fault;
mod http;
mod log;
mod metrics;
mod problem;
mod prune;
mod rehearsal;
mod release;
mod schedule;
mod serve;
mod settings;
mod smoke;
mod store;
mod stream;
mod websocket;
mod workers;

use std::process::ExitCode;

use crate::{
    fault::Fault,
    log::Level,
    release::Release,
    settings::{Settings, SettingsError},
};

/// What was compiled in.
#[derive(Debug, Clone, Copy)]
pub struct Build {
    pub version: &'static str,
    /// Empty in a sound release; see the module `fault`.
    pub fault: &'static str,
}

const USAGE: &str = "usage: flextime serve|smoke|prune|version";

/// Runs the command named in the arguments and says how the process should end.
pub fn run(build: Build) -> ExitCode {
    let command = std::env::args().nth(1).unwrap_or_default();
    let release = match Release::of(build.version) {
        Ok(release) => release,
        Err(error) => return fail(&format!("failed to read the own executable: {error}")),
    };
    let fault: Fault = match build.fault.parse() {
        Ok(fault) => fault,
        Err(error) => return fail(&format!("this binary was built wrong: {error}")),
    };
    match command.as_str() {
        "serve" => serve_command(release, fault),
        "smoke" => match smoke::run(|name| std::env::var(name).ok()) {
            Ok(passed) => {
                log::line(
                    Level::Info,
                    "smoke test passed",
                    serde_json::json!({"checks": passed}),
                );
                ExitCode::SUCCESS
            }
            Err(error) => fail(&format!("smoke test failed: {error:#}")),
        },
        "prune" => match with_settings(|settings| prune::run(&settings)) {
            Ok(removed) => {
                log::line(
                    Level::Info,
                    "history pruned",
                    serde_json::json!({"rows": removed}),
                );
                ExitCode::SUCCESS
            }
            Err(error) => fail(&format!("pruning failed: {error:#}")),
        },
        "version" => {
            log::raw(&serde_json::json!({"version": release.version, "digest": release.digest}));
            ExitCode::SUCCESS
        }
        _ => {
            log::complain(USAGE);
            ExitCode::from(2)
        }
    }
}

fn serve_command(release: Release, fault: Fault) -> ExitCode {
    if fault.exit_at_start {
        return fail("leaving at once: this release was built to");
    }
    match with_settings(|settings| serve::run(settings, release, fault)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("{error:#}")),
    }
}

fn with_settings<T>(then: impl FnOnce(Settings) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let settings = Settings::read(|name| std::env::var(name).ok());
    let settings =
        settings.map_err(|SettingsError(problems)| anyhow::anyhow!(problems.join("; ")))?;
    log::set_level(settings.log_level);
    then(settings)
}

fn fail(message: &str) -> ExitCode {
    log::line(Level::Error, message, serde_json::Value::Null);
    log::complain(message);
    ExitCode::FAILURE
}
