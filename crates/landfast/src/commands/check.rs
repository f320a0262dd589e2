//! `check`: everything wrong with the manifest, without a server.

use landfast_spec::Severity;

use crate::{
    args::Global,
    exit::{Exit, Failure},
    manifest,
    out::Printer,
};

pub(super) fn check(printer: &Printer, global: &Global) -> Result<Exit, Failure> {
    let text = manifest::read(&global.file)?;
    let name = manifest::name(&global.file);
    let diagnostics = match &global.environment {
        Some(environment) => landfast_spec::parse(&name, &text, environment).diagnostics,
        None => landfast_spec::check_all(&name, &text),
    };
    if printer.json {
        // What is wrong is this command's data.
        printer.json(&landfast_spec::render_json(&diagnostics))?;
    } else {
        printer.say_text(&manifest::render(&diagnostics, &text, printer.paint_error));
    }
    if diagnostics
        .iter()
        .any(|one| one.severity == Severity::Error)
    {
        return Err(manifest::invalid(&name, &diagnostics).said());
    }
    let environments = landfast_spec::environments(&text);
    let environments = match &global.environment {
        Some(environment) => environment.to_string(),
        None => environments
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", "),
    };
    printer.say(&format!("{name} is valid for {environments}"));
    Ok(Exit::Done)
}
