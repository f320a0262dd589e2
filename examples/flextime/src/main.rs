//! The binary. Releases of this example differ by what is compiled in here: a version and, for releases that
//! are broken on purpose, a fault. Everything else is in the library, so building another release compiles
//! this file and links.

use std::process::ExitCode;

use flextime::Build;

fn main() -> ExitCode {
    flextime::run(Build {
        version: option_env!("FLEXTIME_VERSION").unwrap_or("0"),
        fault: option_env!("FLEXTIME_FAULT").unwrap_or(""),
    })
}
