//! Chores, written in Rust: `cargo xtask CHORE …`.

mod docs;
mod flextime;

use anyhow::bail;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let chore = arguments.next().unwrap_or_default();
    let rest: Vec<String> = arguments.collect();
    match chore.as_str() {
        "docs" => docs::run(&rest),
        "flextime" => flextime::run(&rest),
        _ => bail!(
            "there is no chore `{chore}`; there is:\n  {}\n  {}",
            docs::USAGE,
            flextime::USAGE
        ),
    }
}
