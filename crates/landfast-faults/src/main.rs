//! `landfast-faults one FAULT SEED`, and the roles its runs start.

#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a tool that prints what its runs came to"
)]

use std::{os::unix::process::CommandExt as _, path::Path, process::ExitCode};

use landfast_faults::{FAULTS, host};

/// Set where a mount namespace of its own was entered.
const APART: &str = "LANDFAST_FAULTS_APART";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["wal-get", socket, name, path] => {
            landfast_backup_postgres::wal_get(Path::new(socket), name, Path::new(path))
        }
        ["list"] => {
            FAULTS
                .iter()
                .for_each(|fault| println!("{} {}", fault.name, fault.what));
            ExitCode::SUCCESS
        }
        ["one", fault, seed] => match seed.parse() {
            Ok(seed) => one(fault, seed),
            Err(_) => usage(),
        },
        ["archive", order] => role(host::archive(Path::new(order))),
        ["restore", order] => match std::env::current_exe() {
            Ok(program) => role(host::restore_copy(Path::new(order), program)),
            Err(error) => role(async { Err(error.into()) }),
        },
        _ => usage(),
    }
}

fn usage() -> ExitCode {
    eprintln!("usage: landfast-faults list | one FAULT SEED");
    ExitCode::from(64)
}

/// Runs one and prints its outcome as one line.
fn one(fault: &str, seed: u64) -> ExitCode {
    let Ok(program) = std::env::current_exe() else {
        return usage();
    };
    // What it mounts is gone with its namespace.
    if fault == "F10" && std::env::var_os(APART).is_none() {
        let error = std::process::Command::new("/usr/bin/unshare")
            .args(["--mount", "--propagation", "private"])
            .arg(&program)
            .args(["one", fault, &seed.to_string()])
            .env(APART, "1")
            .exec();
        eprintln!("`unshare`: {error}");
        return ExitCode::FAILURE;
    }
    let outcome = runtime(landfast_faults::run(fault, seed, &program));
    println!("{}", serde_json::to_string(&outcome).expect("plain data"));
    if outcome.is_passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn role(work: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    match runtime(work) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn runtime<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a process that can start no thread can do nothing here");
    runtime.block_on(work)
}
