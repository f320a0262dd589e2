//! Reads the keys of one table through the catalogue. A value that is wrong was reported by `shape` already,
//! so reading it again is silent and gives nothing.

use std::{ops::Range, time::Duration};

use landfast_types::{Bytes, Cpu};

use crate::{
    catalogue::{Key, child},
    code::Code,
    defaults::Setting,
    diagnostic::{Problem, Sink},
    leaf::{self, Leaf, Scalar},
    shape::{TABLES_MAX, join},
    spec::Share,
    tree::{Entry, Table, Value},
};

/// One table of the file and where it stands.
pub(crate) struct Cursor<'a> {
    table: Option<&'a Table>,
    /// The key of the table itself: where a missing key is reported.
    at: Range<usize>,
    /// The table's path in the catalogue, and the one in the file.
    pattern: String,
    place: String,
    sink: &'a Sink,
    /// Takes what was reported before.
    silent: &'a Sink,
}

impl<'a> Cursor<'a> {
    pub(crate) fn root(table: &'a Table, sink: &'a Sink, silent: &'a Sink) -> Self {
        Self {
            table: Some(table),
            at: 0..0,
            pattern: String::new(),
            place: String::new(),
            sink,
            silent,
        }
    }

    pub(crate) fn report(&self, problem: Problem) {
        self.sink.report(problem);
    }

    /// Where the table itself is named.
    pub(crate) fn at(&self) -> Range<usize> {
        self.at.clone()
    }

    /// Its path in the file.
    pub(crate) fn place(&self) -> &str {
        &self.place
    }

    pub(crate) fn entry(&self, name: &str) -> Option<&'a Entry> {
        self.table?.get(name)
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.entry(name).is_some()
    }

    /// The place of a value, or of the table where the value is left to its default.
    pub(crate) fn span(&self, name: &str) -> Range<usize> {
        self.entry(name)
            .map_or_else(|| self.at(), |entry| entry.node.span.clone())
    }

    /// The place of a key, or of the table.
    pub(crate) fn key_span(&self, name: &str) -> Range<usize> {
        self.entry(name)
            .map_or_else(|| self.at(), |entry| entry.key_span.clone())
    }

    fn key(&self, name: &str) -> &'static Key {
        child(&self.pattern, name)
            .unwrap_or_else(|| unreachable!("`{}.{name}` is not in the catalogue", self.pattern))
    }

    /// The value of a key, when it is there and right. A required key that is missing is reported.
    pub(crate) fn leaf(&self, name: &str) -> Option<Leaf> {
        let key = self.key(name);
        let Some(entry) = self.entry(name) else {
            if key.required {
                let place = match self.place.as_str() {
                    "" => "at the top of the file".to_owned(),
                    place => format!("in `[{place}]`"),
                };
                let problem = Problem::new(
                    Code::MissingKey,
                    self.at(),
                    format!("`{name}` is missing {place}"),
                );
                self.report(problem.help(format!("for example {name} = {}", key.example)));
            }
            return None;
        };
        leaf::read(key, name, &entry.node, self.silent)
    }

    fn default(&self, name: &str) -> &'static Setting {
        self.key(name).default.unwrap_or_else(|| {
            unreachable!("`{}.{name}` has no default in the catalogue", self.pattern)
        })
    }

    pub(crate) fn text(&self, name: &str) -> Option<String> {
        if let Leaf::Text(text) = self.leaf(name)? {
            Some(text)
        } else {
            None
        }
    }

    pub(crate) fn texts(&self, name: &str) -> Option<Vec<String>> {
        if let Leaf::Texts(texts) = self.leaf(name)? {
            Some(texts)
        } else {
            None
        }
    }

    pub(crate) fn flag(&self, name: &str) -> bool {
        self.flag_or(name, || self.default(name).flag())
    }

    pub(crate) fn flag_or(&self, name: &str, default: impl FnOnce() -> bool) -> bool {
        match self.leaf(name) {
            Some(Leaf::Flag(flag)) => flag,
            _ => default(),
        }
    }

    pub(crate) fn count(&self, name: &str) -> u32 {
        self.optional_count(name)
            .unwrap_or_else(|| self.default(name).count())
    }

    pub(crate) fn optional_count(&self, name: &str) -> Option<u32> {
        if let Leaf::Count(count) = self.leaf(name)? {
            Some(count)
        } else {
            None
        }
    }

    pub(crate) fn duration(&self, name: &str) -> Duration {
        match self.leaf(name) {
            Some(Leaf::Duration(duration)) => duration,
            _ => self.default(name).duration(),
        }
    }

    pub(crate) fn optional_duration(&self, name: &str) -> Option<Duration> {
        if let Leaf::Duration(duration) = self.leaf(name)? {
            Some(duration)
        } else {
            None
        }
    }

    pub(crate) fn bytes(&self, name: &str) -> Option<Bytes> {
        if let Leaf::Bytes(bytes) = self.leaf(name)? {
            Some(bytes)
        } else {
            None
        }
    }

    pub(crate) fn bytes_or_default(&self, name: &str) -> Bytes {
        self.bytes(name)
            .unwrap_or_else(|| self.default(name).bytes())
    }

    pub(crate) fn cpu(&self, name: &str) -> Option<Cpu> {
        if let Leaf::Cpu(cpu) = self.leaf(name)? {
            Some(cpu)
        } else {
            None
        }
    }

    pub(crate) fn share(&self, name: &str) -> Share {
        match self.leaf(name) {
            Some(Leaf::Share(share)) => share,
            _ => Share::Count(self.default(name).count()),
        }
    }

    /// The default of a key as text.
    pub(crate) fn default_text(&self, name: &str) -> &'static str {
        self.default(name).text()
    }

    /// A table below this one; an absent one is empty.
    pub(crate) fn table(&self, name: &str) -> Self {
        let key = self.key(name);
        let table = match self.entry(name).map(|entry| &entry.node.value) {
            Some(Value::Table(table)) => Some(table),
            _ => None,
        };
        Self {
            table,
            at: self.key_span(name),
            pattern: key.path.to_owned(),
            place: join(&self.place, name),
            sink: self.sink,
            silent: self.silent,
        }
    }

    /// The named tables below a key, in order of name. What is no table was reported.
    pub(crate) fn tables(&self, name: &str) -> Vec<(&'a str, Self)> {
        let pattern = format!("{}.*", self.key(name).path);
        let place = join(&self.place, name);
        let Some(Value::Table(tables)) = self.entry(name).map(|entry| &entry.node.value) else {
            return Vec::new();
        };
        let each = tables.iter().take(TABLES_MAX).filter_map(|(name, entry)| {
            let Value::Table(table) = &entry.node.value else {
                return None;
            };
            let cursor = Self {
                table: Some(table),
                at: entry.key_span.clone(),
                pattern: pattern.clone(),
                place: join(&place, name),
                sink: self.sink,
                silent: self.silent,
            };
            Some((name.as_str(), cursor))
        });
        each.collect()
    }

    /// The entries of a table whose keys a person chooses.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&'a str, &'a Entry)> {
        self.table
            .into_iter()
            .flatten()
            .map(|(name, entry)| (name.as_str(), entry))
    }

    /// The same place, for one variable below it.
    pub(crate) fn variable(&self, entry: &'a Entry) -> Self {
        let table = entry.node.value.as_table();
        Self {
            table,
            at: entry.key_span.clone(),
            pattern: format!("{}.*", self.pattern),
            place: self.place.clone(),
            sink: self.sink,
            silent: self.silent,
        }
    }

    /// A value where a person chooses the key.
    pub(crate) fn scalar(&self, name: &str, entry: &Entry) -> Option<Scalar> {
        leaf::read_scalar(name, &entry.node, self.silent)
    }

    /// A bare value in the place of a variable's table.
    pub(crate) fn bare(&self, name: &str, entry: &Entry) -> Option<Leaf> {
        leaf::read(self.key("value"), name, &entry.node, self.silent)
    }
}
