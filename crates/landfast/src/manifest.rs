//! Reading the manifest and saying what is wrong with it.

use std::{io, path::Path};

use anyhow::anyhow;
use landfast_api::{Diagnostic as WireDiagnostic, DiagnosticSeverity};
use landfast_spec::{AppSpec, Diagnostic, Style};
use landfast_types::EnvironmentName;

use crate::{
    exit::{Exit, Failure},
    out::{Paint, Printer},
};

/// Reads the file.
pub(crate) fn read(file: &Path) -> Result<String, Failure> {
    let name = file.display();
    let bytes = std::fs::read(file).map_err(|error| {
        let missing = error.kind() == io::ErrorKind::NotFound;
        let error = anyhow::Error::from(error).context(format!("failed to read `{name}`"));
        let hint = match missing {
            true => "`landfast init` writes one; `--file` names another, `--app` does without",
            false => "`--file` names another, `--app` does without",
        };
        Failure::new(Exit::Usage, error).hint(hint)
    })?;
    String::from_utf8(bytes).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = good.iter().filter(|byte| **byte == b'\n').count() + 1;
        let error = anyhow!("`{name}` is not UTF-8 in line {line}");
        Failure::new(Exit::ManifestInvalid, error)
            .hint("save it as UTF-8, without a byte order mark")
    })
}

/// The file as messages name it.
pub(crate) fn name(file: &Path) -> String {
    file.strip_prefix("./")
        .unwrap_or(file)
        .display()
        .to_string()
}

/// Reads and checks it for one environment. Warnings are printed; errors are printed and end the command.
pub(crate) fn load(
    printer: &Printer,
    file: &Path,
    environment: &EnvironmentName,
) -> Result<(String, AppSpec), Failure> {
    let text = read(file)?;
    let parsed = landfast_spec::parse(&name(file), &text, environment);
    printer.say_text(&render(&parsed.diagnostics, &text, printer.paint_error));
    match parsed.spec {
        Some(spec) => Ok((text, spec)),
        None => Err(invalid(&name(file), &parsed.diagnostics).said()),
    }
}

/// Diagnostics over the lines they are about.
pub(crate) fn render(diagnostics: &[Diagnostic], text: &str, paint: Paint) -> String {
    let style = if paint.colour() {
        Style::Colour
    } else {
        Style::Plain
    };
    landfast_spec::render(diagnostics, text, style)
}

/// The failure of a manifest with errors.
pub(crate) fn invalid(name: &str, diagnostics: &[Diagnostic]) -> Failure {
    let summary = landfast_spec::summary(diagnostics);
    let failure = Failure::new(
        Exit::ManifestInvalid,
        anyhow!("`{name}` cannot be used: {summary}"),
    );
    Failure {
        diagnostics: Some(landfast_spec::render_json(diagnostics)["diagnostics"].clone()),
        ..failure
    }
    .hint("`landfast explain CODE` says more about a code")
}

/// Diagnostics of the server as lines: it has looked at secrets and routes too.
pub(crate) fn wire_lines(diagnostics: &[WireDiagnostic], paint: Paint) -> Vec<String> {
    let line = |one: &WireDiagnostic| {
        let severity = match one.severity {
            DiagnosticSeverity::Error => paint.bad("error"),
            DiagnosticSeverity::Warning => paint.warn("warning"),
            DiagnosticSeverity::Notice | DiagnosticSeverity::Unknown => "notice".to_owned(),
        };
        let help = one
            .help
            .as_ref()
            .map(|help| format!(" (help: {help})"))
            .unwrap_or_default();
        let WireDiagnostic {
            file,
            line,
            column,
            code,
            message,
            ..
        } = one;
        format!("{file}:{line}:{column}: {severity}[{code}]: {message}{help}")
    };
    diagnostics.iter().map(line).collect()
}

/// The app's name from a text that may have errors elsewhere.
pub(crate) fn app_line(text: &str) -> Option<&str> {
    let before_tables = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with('['));
    let value =
        before_tables.filter_map(|line| line.strip_prefix("app")?.trim_start().strip_prefix('='));
    let value = value.last()?.trim_start();
    let quote = value
        .chars()
        .next()
        .filter(|quote| matches!(quote, '"' | '\''))?;
    value[1..].split(quote).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_app_in_a_broken_file() {
        assert_eq!(
            app_line("# x\napp = \"shop\" # y\n[services.a]\nport = \n"),
            Some("shop")
        );
        assert_eq!(app_line("app='shop'"), Some("shop"));
        assert_eq!(app_line("[a]\napp = \"shop\""), None);
        assert_eq!(app_line("apple = \"x\""), None);
    }
}
