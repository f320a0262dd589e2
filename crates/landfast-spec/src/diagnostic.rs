//! One problem at one place of the file, and the sink that collects them.

use std::{cell::RefCell, fmt, ops::Range};

use serde::{Deserialize, Serialize};

use crate::{code::Code, container::CONTENT};

/// How much a diagnostic weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// The file cannot be used.
    Error,
    /// It can, but somebody should look.
    Warning,
    /// Worth knowing.
    Notice,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Notice => "notice",
        })
    }
}

/// One problem at one place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnostic {
    pub code: Code,
    pub severity: Severity,
    /// What is wrong, as a fragment: it starts in lower case and has no full stop.
    pub message: String,
    /// The place, in bytes from the start of the file.
    pub span: Range<usize>,
    pub file: String,
    /// Counted from 1.
    pub line: usize,
    /// Counted from 1, in characters.
    pub column: usize,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    /// What is written beside the marked place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
}

impl fmt::Display for Diagnostic {
    /// One line, as compilers print it: `landfast.toml:3:9: error[LF003]: unknown key …`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            code,
            severity,
            message,
            file,
            line,
            column,
            ..
        } = self;
        write!(f, "{file}:{line}:{column}: {severity}[{code}]: {message}")?;
        self.help
            .iter()
            .try_for_each(|help| write!(f, " (help: {help})"))
    }
}

/// A problem before its line is known.
#[derive(Debug)]
pub(crate) struct Problem {
    code: Code,
    span: Range<usize>,
    message: String,
    help: Option<String>,
    label: Option<String>,
}

impl Problem {
    pub(crate) fn new(code: Code, span: Range<usize>, message: impl Into<String>) -> Self {
        Self {
            code,
            span,
            message: message.into(),
            help: None,
            label: None,
        }
    }

    pub(crate) fn help(self, help: impl Into<String>) -> Self {
        Self {
            help: Some(help.into()),
            ..self
        }
    }

    pub(crate) fn help_if(self, help: Option<String>) -> Self {
        Self {
            help: help.or(self.help),
            ..self
        }
    }

    pub(crate) fn label(self, label: impl Into<String>) -> Self {
        Self {
            label: Some(label.into()),
            ..self
        }
    }
}

/// Collects problems. Shared by reference, so that everything that reads the file can report.
#[derive(Debug, Default)]
pub(crate) struct Sink(RefCell<Vec<Problem>>);

impl Sink {
    pub(crate) fn report(&self, problem: Problem) {
        self.0.borrow_mut().push(problem);
    }

    pub(crate) fn take(&self) -> Vec<Problem> {
        self.0.take()
    }
}

/// What a broken line means for the rest: which problems would only follow from it.
#[derive(Debug, Default)]
pub(crate) struct Broken {
    /// Spans of the lines that were left out.
    pub(crate) lines: Vec<Range<usize>>,
    /// One of them was (or may have been) the head of a table, so whole tables may be missing.
    pub(crate) tables: bool,
    /// Keys that stood on them.
    pub(crate) keys: Vec<String>,
}

impl Broken {
    /// Whether a problem would only repeat what a broken line already says.
    fn explains(&self, problem: &Problem) -> bool {
        let has_key = |name: &str| self.keys.iter().any(|key| key == name);
        let names = |key: &String| problem.message.contains(&format!("`{key}`"));
        let by_key = (problem.code == Code::MissingKey && self.keys.iter().any(names))
            || (problem.code == Code::OneContent && CONTENT.into_iter().any(has_key))
            || (problem.code == Code::NoHealth && has_key("health"))
            || (problem.code == Code::NoPort && has_key("port"));
        let by_table = self.tables
            && matches!(
                problem.code,
                Code::MissingKey
                    | Code::OneContent
                    | Code::NoHealth
                    | Code::NoPort
                    | Code::DanglingReference
                    | Code::NothingToRun
                    | Code::UnknownEnvironment
                    | Code::NoCertificate
                    | Code::NoEffect
                    | Code::EnvMissing
            );
        let on_line = |line: &Range<usize>| line.contains(&problem.span.start);
        by_key || by_table || (problem.code != Code::Syntax && self.lines.iter().any(on_line))
    }
}

/// Gives problems their lines, drops what only follows from a broken line, and sorts by place.
pub(crate) fn finish(
    file: &str,
    text: &str,
    problems: Vec<Problem>,
    broken: &Broken,
) -> Vec<Diagnostic> {
    let lines = Lines::new(text);
    let mut diagnostics = problems
        .into_iter()
        .filter(|problem| !broken.explains(problem))
        .map(|problem| {
            let span = lines.clamp(problem.span);
            let (line, column) = lines.place(span.start);
            Diagnostic {
                code: problem.code,
                severity: problem.code.severity(),
                message: problem.message,
                span,
                file: file.to_owned(),
                line,
                column,
                help: problem.help,
                label: problem.label,
            }
        })
        .collect::<Vec<_>>();
    diagnostics.sort_by(|a, b| {
        let key = |d: &Diagnostic| (d.span.start, d.span.end, d.code);
        key(a).cmp(&key(b)).then_with(|| a.message.cmp(&b.message))
    });
    diagnostics.dedup();
    diagnostics
}

/// Finds lines and columns in a text.
pub(crate) struct Lines<'t> {
    text: &'t str,
    starts: Vec<usize>,
}

impl<'t> Lines<'t> {
    pub(crate) fn new(text: &'t str) -> Self {
        let after_newline = text.match_indices('\n').map(|(index, _)| index + 1);
        Self {
            text,
            starts: std::iter::once(0).chain(after_newline).collect(),
        }
    }

    /// Line and column, both from 1, of a byte offset.
    pub(crate) fn place(&self, offset: usize) -> (usize, usize) {
        let line = self.starts.partition_point(|start| *start <= offset).max(1) - 1;
        let column = self.text[self.starts[line]..offset].chars().count();
        (line + 1, column + 1)
    }

    /// The span of the line at an offset, without its newline.
    pub(crate) fn line(&self, offset: usize) -> Range<usize> {
        let line = self.starts.partition_point(|start| *start <= offset).max(1) - 1;
        let start = self.starts[line];
        let end = self
            .starts
            .get(line + 1)
            .map_or(self.text.len(), |next| next - 1);
        start..end.max(start)
    }

    /// A span within the text and on character boundaries, whatever it was before.
    fn clamp(&self, span: Range<usize>) -> Range<usize> {
        let start = self
            .text
            .floor_char_boundary(span.start.min(self.text.len()));
        let end = self
            .text
            .ceil_char_boundary(span.end.clamp(start, self.text.len()));
        start..end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_lines_and_characters_from_one() {
        let lines = Lines::new("a\nüb\n");
        assert_eq!(lines.place(0), (1, 1));
        assert_eq!(lines.place(4), (2, 2));
        assert_eq!(lines.place(6), (3, 1));
        assert_eq!(lines.line(3), 2..5);
    }
}
