//! Printing: data to stdout, everything else to stderr, colour only where it is wanted.

use std::io::{self, IsTerminal as _, Write as _};

use anstyle::{AnsiColor, Style};
use serde::Serialize;

use crate::{args::ColorWhen, exit::Failure};

/// Paints words, or leaves them alone. Nothing may depend on it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Paint {
    colour: bool,
}

impl Paint {
    /// A painter that leaves words alone.
    #[cfg(test)]
    pub(crate) const PLAIN: Self = Self { colour: false };

    fn with(self, style: Style, text: &str) -> String {
        if self.colour && !text.is_empty() {
            format!("{}{text}{}", style.render(), style.render_reset())
        } else {
            text.to_owned()
        }
    }

    pub(crate) fn bold(self, text: &str) -> String {
        self.with(Style::new().bold(), text)
    }

    pub(crate) fn dim(self, text: &str) -> String {
        self.with(Style::new().dimmed(), text)
    }

    pub(crate) fn good(self, text: &str) -> String {
        self.with(AnsiColor::Green.on_default(), text)
    }

    pub(crate) fn warn(self, text: &str) -> String {
        self.with(AnsiColor::Yellow.on_default(), text)
    }

    pub(crate) fn bad(self, text: &str) -> String {
        self.with(AnsiColor::Red.on_default().bold(), text)
    }

    pub(crate) fn colour(self) -> bool {
        self.colour
    }
}

/// Where words go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Printer {
    pub(crate) json: bool,
    pub(crate) verbose: bool,
    /// For stdout.
    pub(crate) paint: Paint,
    /// For stderr.
    pub(crate) paint_error: Paint,
    /// Whether stderr is a terminal that can redraw.
    pub(crate) live: bool,
}

impl Printer {
    /// A printer of the process's own stdout and stderr.
    pub(crate) fn new(json: bool, color: ColorWhen, verbose: u8) -> Self {
        let wanted = |choice: anstream::ColorChoice| match color {
            ColorWhen::Always => true,
            ColorWhen::Never => false,
            ColorWhen::Auto => choice != anstream::ColorChoice::Never,
        };
        let paint = Paint {
            colour: wanted(anstream::AutoStream::choice(&io::stdout())),
        };
        let paint_error = Paint {
            colour: wanted(anstream::AutoStream::choice(&io::stderr())),
        };
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let live = !json && !dumb && io::stderr().is_terminal();
        Self {
            json,
            verbose: verbose > 0,
            paint,
            paint_error,
            live,
        }
    }

    /// Prints text to stdout.
    pub(crate) fn data(&self, text: &str) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        if !text.ends_with('\n') && !text.is_empty() {
            stdout.write_all(b"\n")?;
        }
        stdout.flush()
    }

    /// Prints bytes to stdout as they are.
    pub(crate) fn raw(&self, bytes: &[u8]) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes)?;
        stdout.flush()
    }

    /// Prints one JSON document to stdout.
    pub(crate) fn json<T: Serialize>(&self, value: &T) -> io::Result<()> {
        self.data(&serde_json::to_string_pretty(value).map_err(io::Error::other)?)
    }

    /// Prints one JSON value in one line to stdout.
    pub(crate) fn json_line<T: Serialize>(&self, value: &T) -> io::Result<()> {
        self.data(&serde_json::to_string(value).map_err(io::Error::other)?)
    }

    /// Says something that is no data. Silent with `--json`.
    pub(crate) fn say(&self, text: &str) {
        if !self.json {
            self.error_lines(text);
        }
    }

    /// Says a text of many lines, where there is one.
    pub(crate) fn say_text(&self, text: &str) {
        if !text.trim().is_empty() {
            self.say(text.trim_end_matches('\n'));
        }
    }

    /// Says a warning.
    pub(crate) fn warn(&self, text: &str) {
        self.say(&format!("{} {text}", self.paint_error.warn("warning:")));
    }

    /// Says something only with `-v`.
    pub(crate) fn detail(&self, text: &str) {
        if self.verbose {
            self.say(&self.paint_error.dim(text));
        }
    }

    /// Says why the command failed, and what to do.
    pub(crate) fn failure(&self, failure: &Failure) {
        if self.json {
            if failure.said && failure.exit.code() == 0 {
                return;
            }
            let mut object = serde_json::json!({
                "error": failure.chain(),
                "exit": failure.exit.code(),
            });
            let fields = object.as_object_mut().expect("an object was just made");
            if let Some(hint) = &failure.hint {
                fields.insert("hint".to_owned(), hint.as_str().into());
            }
            if let Some(problem) = &failure.problem {
                fields.insert("code".to_owned(), problem.code().as_str().into());
                let problem = serde_json::to_value(problem).unwrap_or_default();
                fields.insert("problem".to_owned(), problem);
            }
            if let Some(diagnostics) = &failure.diagnostics {
                fields.insert("diagnostics".to_owned(), diagnostics.clone());
            }
            self.error_lines(&object.to_string());
            return;
        }
        if failure.said {
            return;
        }
        self.error_lines(&format!(
            "{} {}",
            self.paint_error.bad("error:"),
            failure.chain()
        ));
        if let Some(hint) = &failure.hint {
            self.error_lines(&format!("{} {hint}", self.paint_error.good("hint:")));
        }
    }

    fn error_lines(&self, text: &str) {
        let mut stderr = io::stderr().lock();
        // Nobody is left to tell when stderr is closed.
        drop(writeln!(stderr, "{text}"));
    }
}
