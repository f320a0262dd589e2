//! Findings as text for people and as SARIF 2.1.0 for code hosts.

use annotate_snippets::{
    AnnotationKind, Level, Renderer, Snippet, normalize_untrusted_str, renderer::DecorStyle,
};
use serde_json::{Value, json};

use super::{Finding, RULES, Severity};
use crate::MigrationSet;

/// Findings over their text, each statement marked, and a last line that counts them. Those a header allows are left out.
pub fn render(findings: &[Finding], set: &MigrationSet, colour: bool) -> String {
    let renderer = if colour {
        Renderer::styled()
    } else {
        Renderer::plain()
    }
    .decor_style(DecorStyle::Ascii);
    let mut output = String::new();
    for finding in findings.iter().filter(|finding| finding.allowed.is_none()) {
        let Some(migration) = set
            .iter()
            .find(|one| format!("{}.sql", one.title()) == finding.file)
        else {
            continue;
        };
        output.push_str(&one(&renderer, finding, &migration.up.text));
        output.push_str("\n\n");
    }
    if !output.is_empty() {
        output.push_str(&summary(findings));
        output.push('\n');
    }
    output
}

fn one(renderer: &Renderer, finding: &Finding, text: &str) -> String {
    let level = match finding.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
        Severity::Notice => Level::NOTE,
    };
    let start = text[..finding.range.start]
        .rfind('\n')
        .map_or(0, |at| at + 1);
    // The first line is enough to find the statement; a long body would hide the next finding.
    let end = text[finding.range.start..]
        .find('\n')
        .map_or(text.len(), |at| finding.range.start + at);
    let span = finding.range.start - start..finding.range.end.min(end) - start;
    let snippet = Snippet::source(&text[start..end])
        .line_start(finding.line)
        .path(finding.file.as_str())
        .annotation(AnnotationKind::Primary.span(span));
    let title = level
        .primary_title(normalize_untrusted_str(&finding.message))
        .id(finding.rule);
    renderer.render(&[title
        .element(snippet)
        .element(Level::HELP.message(finding.fix))])
}

/// `2 errors, 1 warning`.
pub fn summary(findings: &[Finding]) -> String {
    let count = |severity| {
        findings
            .iter()
            .filter(|one| one.allowed.is_none() && one.severity == severity)
            .count()
    };
    let parts = [
        (count(Severity::Error), "error"),
        (count(Severity::Warning), "warning"),
        (count(Severity::Notice), "notice"),
    ];
    let parts = parts
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, word)| format!("{count} {word}{}", if count == 1 { "" } else { "s" }))
        .collect::<Vec<_>>();
    if parts.is_empty() {
        "no findings".to_owned()
    } else {
        parts.join(", ")
    }
}

/// One SARIF 2.1.0 log with one run. `folder` stands before each file's name.
pub fn sarif(findings: &[Finding], folder: &str, version: &str) -> Value {
    let level = |severity| match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Notice => "note",
    };
    let rules = RULES.iter().map(|rule| {
        json!({
            "id": rule.id,
            "shortDescription": { "text": rule.title },
            "fullDescription": { "text": rule.why },
            "help": { "text": rule.fix },
            "defaultConfiguration": { "level": level(rule.severity) },
        })
    });
    let results = findings.iter().map(|finding| {
        let mut result = json!({
            "ruleId": finding.rule,
            "ruleIndex": RULES.iter().position(|rule| rule.id == finding.rule),
            "level": level(finding.severity),
            "message": { "text": finding.message },
            "locations": [{ "physicalLocation": {
                "artifactLocation": { "uri": format!("{folder}/{}", finding.file) },
                "region": { "startLine": finding.line, "startColumn": finding.column },
            }}],
        });
        if let Some(reason) = &finding.allowed {
            result["suppressions"] = json!([{ "kind": "inSource", "justification": reason }]);
        }
        result
    });
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": { "name": "landfast", "version": version, "rules": rules.collect::<Vec<_>>() } },
            "columnKind": "unicodeCodePoints",
            "results": results.collect::<Vec<_>>(),
        }],
    })
}
