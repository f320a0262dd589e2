//! Plays the proxy's roles for the tests of this crate: `proxy --worker` and `proxy --adopt` as the real binary
//! does, and `holder SETTINGS.json` in place of its command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments.as_slice() {
        ["proxy", "--worker"] => landfast_proxy::worker_main().map_err(|error| chain(&error)),
        ["proxy", "--adopt"] => landfast_proxy::adopt_main().map_err(|error| chain(&error)),
        ["holder", path] => holder(path),
        other => Err(format!("unknown arguments {other:?}")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            complain(&message);
            ExitCode::FAILURE
        }
    }
}

fn holder(path: &str) -> Result<(), String> {
    let text = std::fs::read_to_string(path).map_err(|error| chain(&error))?;
    let settings = serde_json::from_str(&text).map_err(|error| chain(&error))?;
    landfast_proxy::holder_main(settings).map_err(|error| chain(&error))
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[expect(
    clippy::print_stderr,
    reason = "a test binary tells its test what went wrong"
)]
fn complain(message: &str) {
    eprintln!("{message}");
}
