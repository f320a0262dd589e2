//! Chores, written in Rust: `cargo xtask CHORE …`.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "printing is what a chore is for"
)]

mod bench;
mod book;
mod demo;
mod docs;
mod errors;
mod faults;
mod flextime;
mod instructions;
mod live;
mod proof;
mod tests;

use anyhow::bail;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let chore = arguments.next().unwrap_or_default();
    let rest: Vec<String> = arguments.collect();
    match chore.as_str() {
        "docs" => docs::run(&rest),
        "flextime" => flextime::run(&rest),
        "bench" => bench::run(&rest),
        "demo" => demo::run(),
        "faults" => faults::run(&rest),
        "instructions" => instructions::run(&rest),
        "proof" => proof::run(&rest),
        "tests" => tests::run(&rest),
        _ => bail!(
            "there is no chore `{chore}`; there is:\n  {}\n  {}\n  {}\n  {}\n  {}\n  {}\n  {}\n  {}",
            bench::USAGE,
            docs::USAGE,
            faults::USAGE,
            flextime::USAGE,
            demo::USAGE,
            instructions::USAGE,
            proof::USAGE,
            tests::USAGE
        ),
    }
}
