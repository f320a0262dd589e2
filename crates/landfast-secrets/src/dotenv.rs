//! Reading dotenv text: names and values, or every line that is wrong. Pure. An error never quotes a value.
//!
//! A line is `NAME=value`, with `export ` before it if one likes. Blank lines and lines that begin with `#` mean nothing.
//! The value is one of these:
//!
//! - bare: up to the end of the line or to a `#` after a blank; blanks around it are not part of it;
//! - in `'…'`: as it stands, over several lines if need be;
//! - in `"…"`: the same, with `\n`, `\r`, `\t`, `\"`, `\\` and `\$` for what is meant by them; a `\` at the end of a line joins it
//!   with the next.
//!
//! `$NAME` and `${NAME}` stay as they are: nothing is put in their place, so that a password with a dollar sign arrives whole.

use std::{collections::BTreeMap, iter::Peekable, str::CharIndices};

use landfast_types::Secret;
use zeroize::Zeroize as _;

/// The longest text, in bytes: far more than a process can be given.
pub const DOTENV_BYTES_MAX: usize = 4 << 20;

/// One name and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DotenvEntry {
    pub name: String,
    pub value: Secret<String>,
    /// Where it begins, from 1.
    pub line: usize,
}

/// What is wrong with a line. Holds no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct DotenvError {
    /// From 1.
    pub line: usize,
    pub reason: &'static str,
}

/// Reads a whole text, in the order of its lines.
///
/// # Errors
/// Everything that is wrong in it: then nothing of it is to be used.
pub fn parse_dotenv(text: &str) -> Result<Vec<DotenvEntry>, Vec<DotenvError>> {
    let mut reader = Reader::new(text);
    let (mut entries, mut errors) = (Vec::new(), Vec::new());
    while reader.skip_to_entry() {
        let line = reader.line;
        match reader.entry() {
            Ok((name, value)) => entries.push(DotenvEntry { name, value, line }),
            Err(reason) => {
                // What is wrong is told where it begins: an open quote would else be told at the end of the file.
                errors.push(DotenvError { line, reason });
                reader.skip_line();
            }
        }
    }
    let mut first = BTreeMap::new();
    for entry in &entries {
        if first.insert(entry.name.as_str(), entry.line).is_some() {
            let reason = "the name was given before; which value is meant is not clear";
            errors.push(DotenvError {
                line: entry.line,
                reason,
            });
        }
    }
    errors.sort_by_key(|error| error.line);
    if errors.is_empty() {
        Ok(entries)
    } else {
        Err(errors)
    }
}

struct Reader<'t> {
    text: &'t str,
    rest: Peekable<CharIndices<'t>>,
    line: usize,
}

impl<'t> Reader<'t> {
    fn new(text: &'t str) -> Self {
        // A byte-order mark of an editor is not part of the first name.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        Self {
            text,
            rest: text.char_indices().peekable(),
            line: 1,
        }
    }

    fn peek(&mut self) -> Option<char> {
        self.rest.peek().map(|(_, c)| *c)
    }

    fn next(&mut self) -> Option<char> {
        let (_, c) = self.rest.next()?;
        if c == '\n' {
            self.line += 1;
        }
        Some(c)
    }

    fn place(&mut self) -> usize {
        self.rest
            .peek()
            .map_or(self.text.len(), |(place, _)| *place)
    }

    fn skip_blanks(&mut self) {
        while self.peek().is_some_and(is_blank) {
            self.next();
        }
    }

    /// To the end of the line, which stays.
    fn skip_line(&mut self) {
        while self.peek().is_some_and(|c| c != '\n') {
            self.next();
        }
    }

    /// Past everything that means nothing; false at the end.
    fn skip_to_entry(&mut self) -> bool {
        loop {
            match self.peek() {
                None => return false,
                Some('#') => self.skip_line(),
                Some(c) if c.is_whitespace() => {
                    self.next();
                }
                Some(_) => return true,
            }
        }
    }

    fn entry(&mut self) -> Result<(String, Secret<String>), &'static str> {
        let mut name = self.word();
        if name == "export" && self.peek().is_some_and(is_blank) {
            self.skip_blanks();
            name = self.word();
        }
        if name.is_empty() {
            return Err("a name was expected: A to Z, 0 to 9 and `_`, not starting with a digit");
        }
        self.skip_blanks();
        if self.peek() != Some('=') {
            return Err("an `=` was expected after the name");
        }
        self.next();
        self.skip_blanks();
        let value = match self.peek() {
            Some('\'') => self.single_quoted()?,
            Some('"') => self.double_quoted()?,
            Some('`') => return Err("backquotes are no quotes here; use ' or \""),
            Some(_) | None => return Ok((name.to_owned(), self.bare()?)),
        };
        self.skip_blanks();
        match self.peek() {
            None | Some('\n' | '#') => {
                self.skip_line();
                Ok((name.to_owned(), value))
            }
            Some(_) => Err("something follows the closing quote"),
        }
    }

    /// A name; empty where none begins.
    fn word(&mut self) -> &'t str {
        let from = self.place();
        let is_first = |c: char| c.is_ascii_alphabetic() || c == '_';
        if self.peek().is_some_and(is_first) {
            while self
                .peek()
                .is_some_and(|c| c.is_ascii_alphanumeric() || c == '_')
            {
                self.next();
            }
        }
        let to = self.place();
        &self.text[from..to]
    }

    fn bare(&mut self) -> Result<Secret<String>, &'static str> {
        let from = self.place();
        // What begins with `#` is no value but a comment.
        let mut before = ' ';
        while let Some(c) = self.peek() {
            if c == '\n' || (c == '#' && is_blank(before)) {
                break;
            }
            before = c;
            self.next();
        }
        let to = self.place();
        let value = self.text[from..to].trim_matches(is_blank);
        self.skip_line();
        // A quote inside is nearly always one that was meant to enclose something.
        if value.contains(['"', '\'']) {
            return Err("a quote inside a bare value; put the whole value into quotes");
        }
        Ok(Secret::new(value.to_owned()))
    }

    fn single_quoted(&mut self) -> Result<Secret<String>, &'static str> {
        self.next();
        let from = self.place();
        loop {
            let to = self.place();
            match self.next() {
                Some('\'') => return Ok(Secret::new(self.text[from..to].to_owned())),
                Some(_) => {}
                None => return Err("the quote that begins here is never closed"),
            }
        }
    }

    fn double_quoted(&mut self) -> Result<Secret<String>, &'static str> {
        self.next();
        // As much room as it can need: growing would leave copies behind.
        let mut value = String::with_capacity(self.text.len() - self.place());
        let failed = loop {
            let c = match self.next() {
                Some('"') => {
                    return Ok(Secret::new(value));
                }
                Some('\\') => match self.next() {
                    Some('n') => '\n',
                    Some('r') => '\r',
                    Some('t') => '\t',
                    Some('\n') => continue,
                    Some(c @ ('"' | '\\' | '$' | '`')) => c,
                    Some(_) => {
                        break "a `\\` before something it does not change; write `\\\\` for one";
                    }
                    None => break "the quote that begins here is never closed",
                },
                Some(c) => c,
                None => break "the quote that begins here is never closed",
            };
            value.push(c);
        };
        value.zeroize();
        Err(failed)
    }
}

fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> String {
        match parse_dotenv(text) {
            Ok(entries) => entries
                .iter()
                .map(|entry| format!("{} {}={:?}\n", entry.line, entry.name, entry.value.reveal()))
                .collect(),
            Err(errors) => errors.iter().map(|error| format!("{error}\n")).collect(),
        }
    }

    #[test]
    fn reads_what_people_write() {
        let cases = [
            ("", ""),
            ("# only a word\n\n  \n", ""),
            ("A=1\nB=2", "1 A=\"1\"\n2 B=\"2\"\n"),
            ("\u{feff}A=1\r\nB=2\r\n", "1 A=\"1\"\n2 B=\"2\"\n"),
            ("export A=1\n export\tB = 2 \n", "1 A=\"1\"\n2 B=\"2\"\n"),
            ("export=1", "1 export=\"1\"\n"),
            ("A=", "1 A=\"\"\n"),
            ("A= # nothing\nB=x", "1 A=\"\"\n2 B=\"x\"\n"),
            ("A=a#b # a word\nB=#c", "1 A=\"a#b\"\n2 B=\"\"\n"),
            ("A=a b  c ", "1 A=\"a b  c\"\n"),
            ("A='a # b' # c", "1 A=\"a # b\"\n"),
            ("A='\\n$X \"q\"'", "1 A=\"\\\\n$X \\\"q\\\"\"\n"),
            ("A=\"a\\n\\t\\\"\\\\\\$\"", "1 A=\"a\\n\\t\\\"\\\\$\"\n"),
            ("A=\"a\\\nb\"\nB=1", "1 A=\"ab\"\n3 B=\"1\"\n"),
            (
                "K=\"-----BEGIN\nMII=\n-----END\"\nB=1",
                "1 K=\"-----BEGIN\\nMII=\\n-----END\"\n4 B=\"1\"\n",
            ),
            ("K='a\nb'\nB=1", "1 K=\"a\\nb\"\n3 B=\"1\"\n"),
            ("A=p$w${x}=%", "1 A=\"p$w${x}=%\"\n"),
            ("A=äö", "1 A=\"äö\"\n"),
            ("A=x=#y", "1 A=\"x=#y\"\n"),
        ];
        for (text, expected) in cases {
            assert_eq!(read(text), expected, "{text:?}");
        }
    }

    #[test]
    fn names_every_line_that_is_wrong_and_quotes_no_value() {
        let text = "GOOD=1\n1A=s3cret\nB s3cret\n=s3cret\nC='s3cret' x\nD=it's3cret\nE=`s3cret`\nF=\"s3cret\\q\"\nGOOD=s3cret\nH='s3cret";
        let errors = read(text);
        let lines: Vec<_> = errors
            .lines()
            .map(|line| line.split(':').next().unwrap())
            .collect();
        assert_eq!(
            lines,
            [
                "line 2", "line 3", "line 4", "line 5", "line 6", "line 7", "line 8", "line 9",
                "line 10"
            ],
            "{errors}"
        );
        assert!(!errors.contains("s3cret"), "{errors}");
    }

    #[test]
    fn whatever_is_read_is_read_whole_or_refused() {
        // Any text: no panic, no endless loop, and lines within the text.
        let pieces = [
            "A", "=", "'", "\"", "\\", "\n", "#", " ", "export ", "é", "$", "`", "\r",
        ];
        let mut state = 1_u64;
        for _ in 0..20_000 {
            let mut text = String::new();
            for _ in 0..12 {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                text.push_str(pieces[(state >> 33) as usize % pieces.len()]);
            }
            let lines = text.lines().count().max(1);
            match parse_dotenv(&text) {
                Ok(entries) => assert!(entries.iter().all(|entry| entry.line <= lines)),
                Err(errors) => {
                    assert!(!errors.is_empty());
                    assert!(errors.iter().all(|error| error.line <= lines), "{text:?}");
                }
            }
        }
    }
}
