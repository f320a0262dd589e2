//! Diagnostics as text for people and as JSON for machines.

use std::ops::Range;

use annotate_snippets::{
    Annotation, AnnotationKind, Level, Origin, Renderer, Snippet, normalize_untrusted_str,
    renderer::DecorStyle,
};

use crate::diagnostic::{Diagnostic, Severity};

/// How text is rendered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Style {
    /// No colour, and nothing but ASCII around the text.
    #[default]
    Plain,
    /// With ANSI colours.
    Colour,
}

/// Renders diagnostics over the text they are about, each with its line marked, and a last line that counts
/// them. Empty without diagnostics.
pub fn render(diagnostics: &[Diagnostic], text: &str, style: Style) -> String {
    if diagnostics.is_empty() {
        return String::new();
    }
    let renderer = match style {
        Style::Plain => Renderer::plain(),
        Style::Colour => Renderer::styled(),
    };
    let renderer = renderer.decor_style(DecorStyle::Ascii);
    let mut output = String::new();
    for diagnostic in diagnostics {
        output.push_str(&render_one(&renderer, diagnostic, text));
        output.push_str("\n\n");
    }
    output.push_str(&summary(diagnostics));
    output.push('\n');
    output
}

/// `2 errors, 1 warning`.
pub fn summary(diagnostics: &[Diagnostic]) -> String {
    let kinds = [Severity::Error, Severity::Warning, Severity::Notice];
    let parts = kinds.iter().filter_map(|severity| {
        let count = diagnostics
            .iter()
            .filter(|one| one.severity == *severity)
            .count();
        let plural = if count == 1 { "" } else { "s" };
        (count > 0).then(|| format!("{count} {severity}{plural}"))
    });
    let parts = parts.collect::<Vec<_>>();
    if parts.is_empty() {
        "no problems".to_owned()
    } else {
        parts.join(", ")
    }
}

/// The same diagnostics as JSON: an object with the diagnostics and their numbers by severity.
pub fn render_json(diagnostics: &[Diagnostic]) -> serde_json::Value {
    let count = |severity| {
        diagnostics
            .iter()
            .filter(|one| one.severity == severity)
            .count()
    };
    serde_json::json!({
        "errors": count(Severity::Error),
        "warnings": count(Severity::Warning),
        "notices": count(Severity::Notice),
        "diagnostics": diagnostics,
    })
}

fn render_one(renderer: &Renderer, diagnostic: &Diagnostic, text: &str) -> String {
    let level = match diagnostic.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
        Severity::Notice => Level::NOTE,
    };
    let title = level
        .primary_title(normalize_untrusted_str(&diagnostic.message))
        .id(diagnostic.code.number());
    let group = match window(diagnostic, text) {
        Some(window) => title.element(snippet(diagnostic, text, window)),
        None => title.element(
            Origin::path(diagnostic.file.as_str())
                .line(diagnostic.line)
                .char_column(diagnostic.column),
        ),
    };
    let group = match &diagnostic.help {
        Some(help) => group.element(Level::HELP.message(normalize_untrusted_str(help))),
        None => group,
    };
    renderer.render(&[group])
}

/// Only the lines that are shown are handed over: a file of ten thousand problems is rendered in one go.
fn snippet<'a>(
    diagnostic: &'a Diagnostic,
    text: &'a str,
    window: Range<usize>,
) -> Snippet<'a, Annotation<'a>> {
    let span = diagnostic.span.start - window.start..diagnostic.span.end - window.start;
    let annotation = AnnotationKind::Primary.span(span);
    let annotation = match &diagnostic.label {
        Some(label) => annotation.label(normalize_untrusted_str(label)),
        None => annotation,
    };
    Snippet::source(&text[window])
        .line_start(diagnostic.line)
        .path(diagnostic.file.as_str())
        .annotation(annotation)
}

/// The whole lines a diagnostic is on; `None` when it is about another text.
fn window(diagnostic: &Diagnostic, text: &str) -> Option<Range<usize>> {
    let span = diagnostic.span.clone();
    text.get(span.clone())?;
    let first = text[..span.start].rfind('\n').map_or(0, |index| index + 1);
    let after = &text[span.end..];
    Some(first..span.end + after.find('\n').unwrap_or(after.len()))
}
