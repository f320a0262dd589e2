//! `explain`, `completions` and `help`.

use anyhow::{Context as _, anyhow};
use clap::CommandFactory as _;
use landfast_api::ProblemCode;
use landfast_spec::Code;

use crate::{
    args::{Cli, Completions, Explain, Help, Man},
    exit::{Exit, Failure, exit_codes_text},
    out::Printer,
    table::table,
};

/// One code of any kind.
struct Explained {
    code: String,
    title: String,
    text: String,
    hint: Option<String>,
}

fn all() -> Vec<Explained> {
    let diagnostics = Code::ALL.iter().map(|code| Explained {
        code: code.number().to_owned(),
        title: code.title().to_owned(),
        text: code.explain().to_owned(),
        hint: None,
    });
    let problems = ProblemCode::ALL.iter().map(|code| Explained {
        code: code.as_str().to_owned(),
        title: code.title().to_owned(),
        text: code
            .explanation()
            .lines()
            .map(str::trim)
            .collect::<Vec<_>>()
            .join(" "),
        hint: code.hint().map(str::to_owned),
    });
    let exits = Exit::ALL.iter().map(|(code, meaning)| Explained {
        code: code.to_string(),
        title: "an exit code".to_owned(),
        text: meaning.trim().to_owned(),
        hint: None,
    });
    diagnostics.chain(problems).chain(exits).collect()
}

pub(super) fn explain(printer: &Printer, arguments: &Explain) -> Result<Exit, Failure> {
    let all = all();
    let json = |one: &Explained| serde_json::json!({ "code": one.code, "title": one.title, "text": one.text, "hint": one.hint });
    let Some(wanted) = &arguments.code else {
        if printer.json {
            printer.json(&all.iter().map(json).collect::<Vec<_>>())?;
        } else {
            let named = all.iter().filter(|one| one.title != "an exit code");
            let rows = named
                .map(|one| vec![one.code.clone(), one.title.clone()])
                .collect();
            printer.data(&table(&["CODE", "MEANING"], &[], rows))?;
        }
        return Ok(Exit::Done);
    };
    let Some(found) = all.iter().find(|one| one.code.eq_ignore_ascii_case(wanted)) else {
        let failure = Failure::new(Exit::NotFound, anyhow!("there is no code `{wanted}`"));
        return Err(failure.hint("`landfast explain` lists all codes"));
    };
    if printer.json {
        printer.json(&json(found))?;
        return Ok(Exit::Done);
    }
    let mut text = format!(
        "{}: {}\n\n{}",
        printer.paint.bold(&found.code),
        found.title,
        found.text
    );
    if let Some(hint) = &found.hint {
        text.push_str(&format!("\n\n{} {hint}", printer.paint.good("hint:")));
    }
    printer.data(&text)?;
    Ok(Exit::Done)
}

pub(super) fn completions(printer: &Printer, arguments: &Completions) -> Result<Exit, Failure> {
    let mut text = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::command(), "landfast", &mut text);
    printer.raw(&text)?;
    Ok(Exit::Done)
}

/// A page for the program and one for each command, as `man` finds them.
pub(super) fn man(printer: &Printer, arguments: &Man) -> Result<Exit, Failure> {
    let folder = &arguments.folder;
    std::fs::create_dir_all(folder)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), folder))
        .with_context(|| format!("failed to write the man pages into `{}`", folder.display()))?;
    printer.say(&format!("the man pages are in {}", folder.display()));
    Ok(Exit::Done)
}

pub(super) fn help(printer: &Printer, arguments: &Help) -> Result<Exit, Failure> {
    if arguments.topic == ["exit-codes"] {
        if printer.json {
            let codes = Exit::ALL
                .iter()
                .map(|(code, meaning)| (code.to_string(), meaning.trim()));
            printer.json(&codes.collect::<std::collections::BTreeMap<_, _>>())?;
        } else {
            printer.data(&exit_codes_text())?;
        }
        return Ok(Exit::Done);
    }
    let mut root = Cli::command();
    root.build();
    let mut command = &mut root;
    for word in &arguments.topic {
        let Some(found) = command.find_subcommand_mut(word) else {
            let failure = Failure::new(Exit::Usage, anyhow!("there is no command `{word}`"));
            return Err(failure.hint(
                "`landfast help` lists the commands; `landfast help exit-codes` is a topic",
            ));
        };
        command = found;
    }
    let text = command.render_long_help();
    let text = if printer.paint.colour() {
        text.ansi().to_string()
    } else {
        text.to_string()
    };
    printer.data(&text)?;
    Ok(Exit::Done)
}
