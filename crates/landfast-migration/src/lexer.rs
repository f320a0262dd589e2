//! Text → tokens, as far as splitting and reading need: what is quoted, what is a comment, what is a word.
//!
//! Sources: PostgreSQL 15, "Lexical Structure" (4.1) and `psql`; MariaDB 10.11, "Comment Syntax", "String Literals" and
//! "Delimiters in the client".

use std::ops::Range;

use crate::Engine;

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TokenKind {
    /// An unquoted word: a keyword or a name. Compared without regard to case.
    Word,
    /// A quoted name, `"x"` or `` `x` ``.
    Name,
    /// A string of any form, dollar quoting included.
    Text,
    /// A number.
    Number,
    /// One punctuation character.
    Symbol,
}

/// One token and where it lies in the file, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) kind: TokenKind,
    pub(crate) range: Range<usize>,
}

/// What the text cannot be read as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unclosed {
    pub(crate) what: &'static str,
    pub(crate) at: usize,
}

pub(crate) struct Lexer<'a> {
    text: &'a str,
    engine: Engine,
    at: usize,
}

impl<'a> Lexer<'a> {
    pub(crate) fn new(text: &'a str, engine: Engine, at: usize) -> Self {
        Self { text, engine, at }
    }

    /// The next token, comments and blanks skipped; `None` at the end.
    pub(crate) fn next_token(&mut self) -> Result<Option<Token>, Unclosed> {
        self.skip_trivia()?;
        let start = self.at;
        let rest = &self.text[start..];
        let Some(first) = rest.chars().next() else {
            return Ok(None);
        };
        let kind = match first {
            '\'' => {
                self.quoted('\'', self.engine == Engine::Mariadb, "a string")?;
                TokenKind::Text
            }
            '"' if self.engine == Engine::Mariadb => {
                self.quoted('"', true, "a string")?;
                TokenKind::Text
            }
            '"' => {
                self.quoted('"', false, "a quoted name")?;
                TokenKind::Name
            }
            '`' if self.engine == Engine::Mariadb => {
                self.quoted('`', false, "a quoted name")?;
                TokenKind::Name
            }
            '$' if self.engine == Engine::Postgres && dollar_tag(rest).is_some() => {
                self.dollar_quoted()?;
                TokenKind::Text
            }
            'e' | 'E' if self.engine == Engine::Postgres && rest[1..].starts_with('\'') => {
                self.at += 1;
                self.quoted('\'', true, "a string")?;
                TokenKind::Text
            }
            first if first.is_ascii_digit() => {
                self.take_while(|c| c.is_ascii_alphanumeric() || c == '.');
                TokenKind::Number
            }
            first if is_word_start(first) => {
                self.take_while(|c| is_word_start(c) || c.is_ascii_digit() || c == '$');
                TokenKind::Word
            }
            first => {
                self.at += first.len_utf8();
                TokenKind::Symbol
            }
        };
        Ok(Some(Token {
            kind,
            range: start..self.at,
        }))
    }

    /// Moves on to an offset, as after a delimiter or a command line of the client.
    pub(crate) fn seek(&mut self, at: usize) {
        self.at = at;
    }

    fn skip_trivia(&mut self) -> Result<(), Unclosed> {
        loop {
            self.take_while(char::is_whitespace);
            let rest = &self.text[self.at..];
            if line_comment(rest, self.engine) {
                self.take_while(|c| c != '\n');
            } else if self.engine == Engine::Mariadb && executable_comment(rest).is_some() {
                // The server runs what is inside, so it is read like the rest.
                self.at += executable_comment(rest).unwrap_or(2);
            } else if self.engine == Engine::Mariadb && rest.starts_with("*/") {
                self.at += 2;
            } else if rest.starts_with("/*") {
                self.block_comment()?;
            } else {
                return Ok(());
            }
        }
    }

    /// PostgreSQL nests block comments, MariaDB does not.
    fn block_comment(&mut self) -> Result<(), Unclosed> {
        let start = self.at;
        let mut depth = 0;
        loop {
            let rest = &self.text[self.at..];
            if rest.starts_with("/*") && (depth == 0 || self.engine == Engine::Postgres) {
                depth += 1;
                self.at += 2;
            } else if rest.starts_with("*/") {
                depth -= 1;
                self.at += 2;
                if depth == 0 {
                    return Ok(());
                }
            } else if let Some(c) = rest.chars().next() {
                self.at += c.len_utf8();
            } else {
                return Err(Unclosed {
                    what: "a comment",
                    at: start,
                });
            }
        }
    }

    fn quoted(&mut self, quote: char, backslash: bool, what: &'static str) -> Result<(), Unclosed> {
        let start = self.at;
        let mut characters = self.text[start..].char_indices().skip(1).peekable();
        while let Some((offset, c)) = characters.next() {
            if backslash && c == '\\' {
                characters.next();
            } else if c == quote {
                if characters.peek().is_some_and(|(_, next)| *next == quote) {
                    characters.next();
                } else {
                    self.at = start + offset + 1;
                    return Ok(());
                }
            }
        }
        Err(Unclosed { what, at: start })
    }

    fn dollar_quoted(&mut self) -> Result<(), Unclosed> {
        let start = self.at;
        let rest = &self.text[start..];
        let tag = dollar_tag(rest).unwrap_or("$$");
        let Some(end) = rest[tag.len()..].find(tag) else {
            return Err(Unclosed {
                what: "a dollar-quoted string",
                at: start,
            });
        };
        self.at = start + tag.len() + end + tag.len();
        Ok(())
    }

    fn take_while(&mut self, accept: impl Fn(char) -> bool) {
        let rest = &self.text[self.at..];
        self.at += rest.find(|c| !accept(c)).unwrap_or(rest.len());
    }
}

fn is_word_start(c: char) -> bool {
    c.is_alphabetic() || c == '_'
}

fn line_comment(rest: &str, engine: Engine) -> bool {
    match engine {
        Engine::Postgres => rest.starts_with("--"),
        // MariaDB wants a blank behind the dashes, so that `5--1` stays arithmetic.
        Engine::Mariadb => {
            rest.starts_with('#')
                || rest
                    .strip_prefix("--")
                    .is_some_and(|tail| tail.chars().next().is_none_or(char::is_whitespace))
        }
    }
}

/// The length of the opening of `/*!`, `/*!50100` or `/*M!100100`.
fn executable_comment(rest: &str) -> Option<usize> {
    let tail = rest
        .strip_prefix("/*!")
        .or_else(|| rest.strip_prefix("/*M!"))?;
    let digits = tail
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(tail.len());
    Some(rest.len() - tail.len() + digits)
}

/// `$tag$` at the beginning of `rest`. A parameter such as `$1` is none.
fn dollar_tag(rest: &str) -> Option<&str> {
    let end = rest[1..].find('$')? + 1;
    let tag = &rest[1..end];
    let named = tag
        .chars()
        .enumerate()
        .all(|(index, c)| is_word_start(c) || (index > 0 && c.is_ascii_digit()));
    named.then(|| &rest[..=end])
}
