//! The file as a tree of values that know their place. Nothing here knows TOML but [`read`], so that another
//! syntax would be a small addition.

use std::{collections::BTreeMap, ops::Range};

use toml::de::{DeTable, DeValue};

use crate::{
    code::Code,
    diagnostic::{Broken, Lines, Problem, Sink},
};

/// A value and its place.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) value: Value,
    pub(crate) span: Range<usize>,
}

/// What a value is.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    Text(String),
    /// In decimal digits; `None` when it does not fit.
    Integer(Option<i64>),
    Float(String),
    Flag(bool),
    Datetime,
    List(Vec<Node>),
    Table(Table),
}

impl Value {
    pub(crate) fn as_text(&self) -> Option<&str> {
        if let Self::Text(text) = self {
            Some(text)
        } else {
            None
        }
    }

    pub(crate) fn as_table(&self) -> Option<&Table> {
        if let Self::Table(table) = self {
            Some(table)
        } else {
            None
        }
    }

    /// What to call it in a message.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "text",
            Self::Integer(_) => "a whole number",
            Self::Float(_) => "a number",
            Self::Flag(_) => "true or false",
            Self::Datetime => "a date",
            Self::List(_) => "a list",
            Self::Table(_) => "a table",
        }
    }
}

/// Keys and values, in order of key.
pub(crate) type Table = BTreeMap<String, Entry>;

/// A value under its key.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) key_span: Range<usize>,
    pub(crate) node: Node,
}

/// How often a file is read again without its broken lines.
const PASSES_MAX: usize = 64;

/// Reads TOML. The parser gives up at a line it cannot read, so such a line is reported, blanked out, and the
/// rest is read again: offsets stay what they were.
pub(crate) fn read(text: &str, sink: &Sink) -> (Table, Broken) {
    let lines = Lines::new(text);
    let mut broken = Broken::default();
    let mut readable = text.to_owned();
    for _ in 0..PASSES_MAX {
        let line = {
            let (table, errors) = DeTable::parse_recoverable(&readable);
            let is_new = |line: &Range<usize>| !line.is_empty() && !broken.lines.contains(line);
            let syntax = errors
                .iter()
                .filter(|error| error.message() != DUPLICATE_KEY);
            let found = syntax
                .map(|error| (error, broken_line(&readable, &lines, error)))
                .find(|(_, line)| is_new(line));
            // Later errors of a pass may only follow from its first; the next pass tells.
            let Some((error, line)) = found else {
                let duplicates = errors
                    .iter()
                    .filter(|error| error.message() == DUPLICATE_KEY);
                duplicates.for_each(|error| sink.report(duplicate_problem(text, error)));
                return (convert_table(table.into_inner()), broken);
            };
            sink.report(syntax_problem(error, line.clone(), &text[line.clone()]));
            line
        };
        note_broken(&mut broken, &text[line.clone()]);
        broken.lines.push(line.clone());
        let region = line.start..region_end(&readable, &line);
        let blank = |c: char| {
            if c == '\n' {
                "\n".to_owned()
            } else {
                " ".repeat(c.len_utf8())
            }
        };
        let blanks = readable[region.clone()]
            .chars()
            .map(blank)
            .collect::<String>();
        readable.replace_range(region, &blanks);
    }
    // A file with that many broken lines is no TOML at all; what is left of it proves nothing.
    broken.tables = true;
    (Table::new(), broken)
}

/// How far a broken line reaches: the keys below the broken head of a table would otherwise be taken for keys of
/// the table before it.
fn region_end(text: &str, line: &Range<usize>) -> usize {
    if !text[line.clone()].trim_start().starts_with('[') {
        return line.end;
    }
    let below = &text[line.end..];
    below
        .find("\n[")
        .map_or(text.len(), |index| line.end + index)
}

const DUPLICATE_KEY: &str = "duplicate key";

/// The line an error is on. What is missing at the end of the file is missing on the last line that says
/// something.
fn broken_line(readable: &str, lines: &Lines<'_>, error: &toml::de::Error) -> Range<usize> {
    let start = error
        .span()
        .map_or(readable.len(), |span| span.start.min(readable.len()));
    let line = lines.line(start);
    if !readable[line.clone()].trim().is_empty() {
        return line;
    }
    lines.line(readable[..line.start].trim_end().len().saturating_sub(1))
}

fn syntax_problem(error: &toml::de::Error, at: Range<usize>, line: &str) -> Problem {
    // An error at the very end of a line says nothing; its value is what is wrong.
    let value = line.find('=').map_or(0, |index| index + 1);
    let value = value + (line[value..].len() - line[value..].trim_start().len());
    let whole = at.start + value.min(line.trim_end().len())..at.start + line.trim_end().len();
    let span = error
        .span()
        .filter(|span| at.contains(&span.start))
        .unwrap_or(whole);
    let message = format!("this is not TOML: {}", error.message());
    let problem = Problem::new(Code::Syntax, span, message);
    let unquoted = line
        .split_once('=')
        .map(|(_, value)| value.trim())
        .filter(|value| {
            value.starts_with(|c: char| c.is_alphanumeric())
                && !value.contains(['"', '\'', '[', '{', '#'])
        });
    match unquoted {
        Some(value) => problem.help(format!(
            "text and values with units are in quotes: \"{value}\""
        )),
        None => problem,
    }
}

fn duplicate_problem(text: &str, error: &toml::de::Error) -> Problem {
    let span = error.span().unwrap_or_default();
    let name = text.get(span.clone()).unwrap_or_default();
    Problem::new(Code::DuplicateKey, span, format!("`{name}` is there twice"))
        .label("the second time")
        .help("put what both say into one, and remove the other")
}

fn note_broken(broken: &mut Broken, line: &str) {
    match line.split_once('=') {
        Some((key, _)) if !line.trim_start().starts_with('[') => {
            broken
                .keys
                .extend(key.split('.').map(|part| part.trim().to_owned()));
            // A list or table that was left open takes the lines below with it.
            broken.tables |= line.contains(['[', '{']) || line.contains("\"\"\"");
        }
        _ => {
            let word = line.split_whitespace().next().unwrap_or_default();
            let is_key = word
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
            if is_key && !word.is_empty() {
                broken.keys.push(word.to_owned());
            } else {
                broken.tables = true;
            }
        }
    }
}

fn convert_table(table: DeTable<'_>) -> Table {
    let entries = table.into_iter().map(|(key, value)| {
        let entry = Entry {
            key_span: key.span(),
            node: convert(value),
        };
        (key.into_inner().into_owned(), entry)
    });
    entries.collect()
}

fn convert(value: toml::Spanned<DeValue<'_>>) -> Node {
    let span = value.span();
    let value = match value.into_inner() {
        DeValue::String(text) => Value::Text(text.into_owned()),
        DeValue::Integer(number) => {
            Value::Integer(i64::from_str_radix(number.as_str(), number.radix()).ok())
        }
        DeValue::Float(number) => Value::Float(number.as_str().to_owned()),
        DeValue::Boolean(flag) => Value::Flag(flag),
        DeValue::Datetime(_) => Value::Datetime,
        DeValue::Array(items) => Value::List(items.into_iter().map(convert).collect()),
        DeValue::Table(table) => Value::Table(convert_table(table)),
    };
    Node { value, span }
}
