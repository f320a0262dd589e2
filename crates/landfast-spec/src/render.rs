//! Diagnostics as text for people and as JSON for machines.

use annotate_snippets::{
    AnnotationKind, Level, Renderer, Snippet, normalize_untrusted_str, renderer::DecorStyle,
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
    let annotation = AnnotationKind::Primary.span(diagnostic.span.clone());
    let annotation = match &diagnostic.label {
        Some(label) => annotation.label(normalize_untrusted_str(label)),
        None => annotation,
    };
    let snippet = Snippet::source(text)
        .path(diagnostic.file.as_str())
        .annotation(annotation);
    let group = title.element(snippet);
    let group = match &diagnostic.help {
        Some(help) => group.element(Level::HELP.message(normalize_untrusted_str(help))),
        None => group,
    };
    renderer.render(&[group])
}
