//! The shim alone, as tests start it: the same entry that the `landfast` binary calls.

use std::process::ExitCode;

fn main() -> ExitCode {
    landfast_shim::run()
}
