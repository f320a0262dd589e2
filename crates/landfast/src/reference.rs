//! The command line as Markdown, from the same definitions that read it.

use clap::CommandFactory as _;

use crate::{args::Cli, exit::exit_codes_text};

/// `docs/reference/cli.md`, whole.
pub(crate) fn markdown() -> String {
    let mut root = Cli::command().term_width(100);
    root.build();
    let mut text = String::from(
        "# The command line\n\nGenerated from `crates/landfast/src/args.rs`; change that instead.\n\n",
    );
    text.push_str("Data goes to stdout, everything else to stderr. With `--json` data and errors are JSON.\n\n");
    text.push_str("## Exit codes\n\n```text\n");
    text.push_str(&exit_codes_text());
    text.push_str("```\n\n## Global options\n\n| option | meaning |\n| --- | --- |\n");
    for argument in root
        .get_arguments()
        .filter(|argument| argument.is_global_set())
    {
        let long = argument
            .get_long()
            .map(|long| format!("--{long}"))
            .unwrap_or_default();
        let short = argument
            .get_short()
            .map(|short| format!("-{short}, "))
            .unwrap_or_default();
        let help = argument
            .get_help()
            .map(ToString::to_string)
            .unwrap_or_default();
        let env = argument
            .get_env()
            .map(|env| format!(" (`{}`)", env.to_string_lossy()))
            .unwrap_or_default();
        text.push_str(&format!("| `{short}{long}` | {help}{env} |\n"));
    }
    for command in root.get_subcommands_mut() {
        section(&mut text, command, "landfast");
    }
    let lines = text.lines().map(str::trim_end);
    lines.collect::<Vec<_>>().join("\n") + "\n"
}

fn section(text: &mut String, command: &mut clap::Command, parent: &str) {
    if command.is_hide_set() {
        return;
    }
    let name = format!("{parent} {}", command.get_name());
    let nested = command
        .get_subcommands()
        .any(|nested| nested.get_name() != "help");
    if nested {
        for nested in command
            .get_subcommands_mut()
            .filter(|nested| nested.get_name() != "help")
        {
            section(text, nested, &name);
        }
        return;
    }
    // The global options are listed once, above.
    let mut own = command
        .clone()
        .disable_help_flag(true)
        .mut_args(|argument| {
            let listed = argument.is_global_set() || argument.get_id() == "version";
            let hide = listed || argument.is_hide_set();
            argument.hide(hide)
        });
    let help = own.render_long_help().to_string();
    let help = help.trim_end();
    text.push_str(&format!("\n## `{name}`\n\n```text\n{help}\n```\n"));
}
