//! The binary: arguments, printing, exit codes, and the choice of a role.
//!
//! One binary plays every role. As a command line it talks to `landfast server` through the API and nothing else:
//! it opens no journal, no store and no run folder. It never starts a process but the system's `ssh` (and, in `upgrade`,
//! the binary that is to take over), and never takes a secret from an argument.

mod args;
mod clock;
mod commands;
mod context;
mod exit;
mod follow;
mod manifest;
mod out;
mod reference;
mod roles;
mod table;
mod top;
mod tunnel;
mod view;

use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _};

use crate::{
    args::{Cli, Command},
    exit::{Exit, Failure},
    out::Printer,
};

#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[cfg(all(feature = "jemalloc", not(feature = "mimalloc")))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    // The shim forks, so it comes before anything that could start a thread or open a descriptor.
    let words = std::env::args_os().skip(1).take(3).collect::<Vec<_>>();
    let words = words
        .iter()
        .filter_map(|word| word.to_str())
        .collect::<Vec<_>>();
    if words.first() == Some(&"shim") {
        return landfast_shim::run();
    }
    // PostgreSQL's recovery asks for each segment of its log with this.
    if words.first() == Some(&"wal-get") {
        return roles::wal_get();
    }
    // These are small and live long, so they never hold the whole command line in memory.
    if let Some(exit) = roles::proxy_part(&words) {
        return exit;
    }
    let matches = match Cli::command().try_get_matches() {
        Ok(matches) => matches,
        Err(error) => return usage(&error),
    };
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let printer = Printer::new(cli.global.json, cli.global.color, cli.global.verbose);
    let result = if let Command::Server(arguments) = &cli.command {
        roles::server(&printer, arguments)
    } else if let Command::Proxy(arguments) = &cli.command {
        roles::proxy(&printer, arguments)
    } else {
        commands::run(&printer, &cli.global, cli.command)
    };
    match result {
        Ok(exit) => exit.into(),
        Err(failure) => {
            printer.failure(&failure);
            failure.exit.into()
        }
    }
}

/// Prints what clap has to say. Help is data and goes to stdout; with `--json` an error is an object like any other.
fn usage(error: &clap::Error) -> ExitCode {
    if error.use_stderr() && std::env::args_os().any(|word| word == "--json") {
        let text = error.to_string();
        let text = text.strip_prefix("error: ").unwrap_or(&text);
        let first = text.split("\n\n").next().unwrap_or(text).trim().to_owned();
        let failure = Failure::new(Exit::Usage, anyhow::anyhow!(first)).hint("run `landfast help`");
        Printer::new(true, args::ColorWhen::Never, 0).failure(&failure);
        return Exit::Usage.into();
    }
    // Nobody is left to tell when even this cannot be printed.
    drop(error.print());
    if error.use_stderr() {
        Exit::Usage.into()
    } else {
        Exit::Done.into()
    }
}
