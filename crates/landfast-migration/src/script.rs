//! A file's text → header and statements.
//!
//! The header is every comment line `-- landfast: key=value …` before the first statement:
//!
//! ```sql
//! -- landfast: phase=expand transaction=off statement_timeout=0
//! -- landfast: batch=public.items.id batch_size=5000
//! -- landfast: allow=PG072 nobody reads this table before release 14
//! ```

use std::{ops::Range, time::Duration};

use landfast_types::parse_duration;

use crate::{
    Engine, Phase,
    lexer::{Lexer, Token, TokenKind, Unclosed},
};

/// How many rows one step of a backfill takes unless the header says otherwise.
const BATCH_SIZE: u32 = 5_000;
/// More would hold row locks for seconds.
const BATCH_SIZE_MAX: u32 = 100_000;
/// A whole migration; what is larger is data, not a schema.
const TEXT_BYTES_MAX: usize = 4 << 20;

/// What the comment lines at the head of a file choose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// When it runs; `expand` unless said.
    pub phase: Phase,
    /// Whether all statements are one transaction; on unless said.
    pub transaction: bool,
    /// How long a statement waits for a lock before it is retried; the runner's 2 s unless said.
    pub lock_timeout: Option<Duration>,
    /// How long a statement may run, 0 for ever; the runner's choice unless said.
    pub statement_timeout: Option<Duration>,
    /// Run the one statement once per range of keys.
    pub batch: Option<Batch>,
    /// A sequence that counts what still comes in the old way. The migration runs only where nothing has come for a while.
    pub quiet: Option<String>,
    /// Findings that somebody has judged, each with a reason.
    pub allowed: Vec<Suppression>,
}

/// A backfill in ranges of a key: the statement says `:from` and `:to`, and is run for each range `from < key <= to`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The table, as it is written, with its schema if there is one.
    pub table: String,
    /// A column that is unique and indexed.
    pub key: String,
    /// Rows in one range.
    pub size: u32,
}

/// `allow=RULE reason`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suppression {
    /// The id of the rule.
    pub rule: String,
    /// Why it may be.
    pub reason: String,
}

/// One statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// The text without its delimiter.
    pub text: String,
    /// Where it lies in the file, in bytes.
    pub range: Range<usize>,
    /// The line it begins on, from 1.
    pub line: usize,
    pub(crate) tokens: Vec<Token>,
}

/// A file, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    /// What it chose.
    pub header: Header,
    /// What it does, in order.
    pub statements: Vec<Statement>,
    /// The text ranges lie in: LF line ends, no byte order mark.
    pub text: String,
}

/// Why a text is not a script; `line` counts from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScriptError {
    /// Something is opened and never closed.
    #[error("line {line}: {what} is never closed")]
    Unclosed {
        /// What it is.
        what: &'static str,
        /// Where it opens.
        line: usize,
    },
    /// A header line that says something unknown or contradictory.
    #[error("line {line}: {message}")]
    Header {
        /// What is wrong and what would be right.
        message: String,
        /// The header line.
        line: usize,
    },
    /// Something only an interactive client understands.
    #[error("line {line}: {message}")]
    ClientCommand {
        /// What it is and what to write.
        message: String,
        /// Where it is.
        line: usize,
    },
    /// Nothing to do.
    #[error("there is no statement in the file")]
    Empty,
    /// Not text.
    #[error("byte {at} is not UTF-8; save the file as UTF-8")]
    NotUtf8 {
        /// The offset of the first such byte.
        at: usize,
    },
    /// Too much.
    #[error(
        "the file has {bytes} bytes, more than {TEXT_BYTES_MAX}; load data with a job, not a migration"
    )]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
}

impl Script {
    /// Reads the bytes of a file.
    pub fn parse(bytes: &[u8], engine: Engine) -> Result<Self, ScriptError> {
        if bytes.len() > TEXT_BYTES_MAX {
            return Err(ScriptError::TooLarge { bytes: bytes.len() });
        }
        let text = normalise(bytes)?;
        let header = header(&text)?;
        let statements = Splitter::new(&text, engine).run()?;
        if statements.is_empty() {
            return Err(ScriptError::Empty);
        }
        check_batch(&header, &statements)?;
        Ok(Self {
            header,
            statements,
            text,
        })
    }
}

/// UTF-8 without byte order mark, lines ended by LF.
pub(crate) fn normalise(bytes: &[u8]) -> Result<String, ScriptError> {
    let text = std::str::from_utf8(bytes).map_err(|error| ScriptError::NotUtf8 {
        at: error.valid_up_to(),
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    Ok(text.replace("\r\n", "\n").replace('\r', "\n"))
}

pub(crate) fn line_of(text: &str, at: usize) -> usize {
    text[..at.min(text.len())].matches('\n').count() + 1
}

fn header(text: &str) -> Result<Header, ScriptError> {
    let mut header = Header {
        phase: Phase::Expand,
        transaction: true,
        lock_timeout: None,
        statement_timeout: None,
        batch: None,
        quiet: None,
        allowed: Vec::new(),
    };
    let mut size = None;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        let Some(comment) = line.strip_prefix("--") else {
            if line.is_empty() {
                continue;
            }
            break;
        };
        let Some(settings) = comment.trim_start().strip_prefix("landfast:") else {
            continue;
        };
        let fail = |message: String| ScriptError::Header {
            message,
            line: index + 1,
        };
        let settings = settings.trim();
        if let Some(allowed) = settings.strip_prefix("allow=") {
            header.allowed.push(suppression(allowed).map_err(fail)?);
            continue;
        }
        for setting in settings.split_whitespace() {
            let (key, value) = setting
                .split_once('=')
                .ok_or_else(|| fail(format!("`{setting}` is not `key=value`")))?;
            if key == "batch_size" {
                size = Some(batch_size(value).map_err(fail)?);
            } else {
                choose(&mut header, key, value).map_err(fail)?;
            }
        }
    }
    match (&mut header.batch, size) {
        (Some(batch), Some(size)) => batch.size = size,
        (None, Some(_)) => {
            return Err(ScriptError::Header {
                message: "`batch_size` without `batch=table.key`".into(),
                line: 1,
            });
        }
        (_, None) => {}
    }
    Ok(header)
}

fn choose(header: &mut Header, key: &str, value: &str) -> Result<(), String> {
    match key {
        "phase" => header.phase = value.parse()?,
        "transaction" => {
            header.transaction = match value {
                "on" => true,
                "off" => false,
                other => return Err(format!("`transaction={other}`: it is `on` or `off`")),
            }
        }
        "lock_timeout" => header.lock_timeout = Some(timeout(key, value)?),
        "statement_timeout" => header.statement_timeout = Some(timeout(key, value)?),
        "batch" => header.batch = Some(batch(value)?),
        "quiet" => header.quiet = Some(value.to_owned()),
        other => {
            return Err(format!(
                "`{other}` is not known; known are phase, transaction, lock_timeout, statement_timeout, batch, batch_size, quiet, allow"
            ));
        }
    }
    Ok(())
}

fn timeout(key: &str, value: &str) -> Result<Duration, String> {
    if value == "0" {
        return Ok(Duration::ZERO);
    }
    parse_duration(value).map_err(|error| format!("`{key}={value}`: {error}"))
}

fn batch(value: &str) -> Result<Batch, String> {
    match value.rsplit_once('.') {
        Some((table, key)) if !table.is_empty() && !key.is_empty() => Ok(Batch {
            table: table.to_owned(),
            key: key.to_owned(),
            size: BATCH_SIZE,
        }),
        _ => Err(format!(
            "`batch={value}` is not `table.key`, a table and its unique, indexed column"
        )),
    }
}

fn batch_size(value: &str) -> Result<u32, String> {
    match value.parse() {
        Ok(size) if (1..=BATCH_SIZE_MAX).contains(&size) => Ok(size),
        _ => Err(format!(
            "`batch_size={value}` is not between 1 and {BATCH_SIZE_MAX}"
        )),
    }
}

fn suppression(text: &str) -> Result<Suppression, String> {
    let (rule, reason) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    if reason.trim().len() < 8 {
        return Err(format!(
            "`allow={rule}` needs a reason behind it that a stranger can judge"
        ));
    }
    Ok(Suppression {
        rule: rule.to_owned(),
        reason: reason.trim().to_owned(),
    })
}

fn check_batch(header: &Header, statements: &[Statement]) -> Result<(), ScriptError> {
    if header.batch.is_none() {
        return Ok(());
    }
    let fail = |message: &str| {
        Err(ScriptError::Header {
            message: message.to_owned(),
            line: statements[0].line,
        })
    };
    if statements.len() > 1 {
        return fail("a file with `batch` holds one statement");
    }
    if !statements[0].text.contains(":from") || !statements[0].text.contains(":to") {
        return fail("a statement with `batch` bounds its key: `… WHERE id > :from AND id <= :to`");
    }
    Ok(())
}

struct Splitter<'a> {
    text: &'a str,
    engine: Engine,
    lexer: Lexer<'a>,
    delimiter: String,
    statements: Vec<Statement>,
    tokens: Vec<Token>,
    parentheses: usize,
    blocks: usize,
}

impl<'a> Splitter<'a> {
    fn new(text: &'a str, engine: Engine) -> Self {
        Self {
            text,
            engine,
            lexer: Lexer::new(text, engine, 0),
            delimiter: ";".into(),
            statements: Vec::new(),
            tokens: Vec::new(),
            parentheses: 0,
            blocks: 0,
        }
    }

    fn run(mut self) -> Result<Vec<Statement>, ScriptError> {
        let unclosed = |text: &str, error: &Unclosed| ScriptError::Unclosed {
            what: error.what,
            line: line_of(text, error.at),
        };
        while let Some(token) = self
            .lexer
            .next_token()
            .map_err(|error| unclosed(self.text, &error))?
        {
            let text = &self.text[token.range.clone()];
            if self.tokens.is_empty() && self.client_command(&token)? {
                continue;
            }
            if self.at_delimiter(&token) {
                let end = token.range.start;
                self.lexer.seek(end + self.delimiter.len());
                self.finish();
                continue;
            }
            match text {
                "(" => self.parentheses += 1,
                ")" => self.parentheses = self.parentheses.saturating_sub(1),
                _ => {}
            }
            self.count_blocks(&token);
            self.tokens.push(token);
        }
        self.finish();
        Ok(self.statements)
    }

    /// Whether a delimiter that counts begins here. A semicolon inside parentheses (a rule's actions) or inside a
    /// function's `BEGIN ATOMIC … END` does not count, as in `psql`.
    fn at_delimiter(&self, token: &Token) -> bool {
        self.text[token.range.start..].starts_with(&self.delimiter)
            && (self.engine == Engine::Mariadb || (self.parentheses == 0 && self.blocks == 0))
            && (token.kind == TokenKind::Symbol || self.delimiter != ";")
    }

    fn count_blocks(&mut self, token: &Token) {
        if self.engine != Engine::Postgres || token.kind != TokenKind::Word {
            return;
        }
        let word = self.text[token.range.clone()].to_ascii_lowercase();
        let before = self
            .tokens
            .last()
            .map(|token| self.text[token.range.clone()].to_ascii_lowercase());
        match word.as_str() {
            "atomic" if before.as_deref() == Some("begin") => self.blocks += 1,
            "case" if self.blocks > 0 => self.blocks += 1,
            "end" if self.blocks > 0 => self.blocks -= 1,
            _ => {}
        }
    }

    /// Obeys `DELIMITER x`, and refuses what only an interactive client could do.
    fn client_command(&mut self, token: &Token) -> Result<bool, ScriptError> {
        let line = self.text[token.range.start..].lines().next().unwrap_or("");
        let fail = |message: &str| {
            Err(ScriptError::ClientCommand {
                message: message.to_owned(),
                line: line_of(self.text, token.range.start),
            })
        };
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or("").to_ascii_lowercase();
        if first.starts_with('\\') {
            return fail("a backslash command belongs to an interactive client; write plain SQL");
        }
        if self.engine == Engine::Mariadb && first == "delimiter" {
            let Some(delimiter) = words.next() else {
                return fail("`DELIMITER` without a delimiter");
            };
            self.delimiter = delimiter.to_owned();
            self.lexer.seek(token.range.start + line.len());
            return Ok(true);
        }
        Ok(false)
    }

    fn finish(&mut self) {
        let tokens = std::mem::take(&mut self.tokens);
        self.parentheses = 0;
        self.blocks = 0;
        let (Some(first), Some(last)) = (tokens.first(), tokens.last()) else {
            return;
        };
        let range = first.range.start..last.range.end;
        self.statements.push(Statement {
            text: self.text[range.clone()].to_owned(),
            line: line_of(self.text, range.start),
            tokens: tokens
                .into_iter()
                .map(|token| Token {
                    range: token.range.start - range.start..token.range.end - range.start,
                    ..token
                })
                .collect(),
            range,
        });
    }
}
