//! `${VAR}` in values, by the rules of the Compose specification: `$VAR`, `${VAR}`, `${VAR:-default}`, `${VAR-default}`,
//! `${VAR:?error}`, `${VAR?error}`, `${VAR:+other}`, `${VAR+other}`, `$$`, one within another. Keys are left as they are.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    ConvertError, is_credential, looks_secret,
    yaml::{Node, Value},
};

const DEPTH_MAX: usize = 16;

/// Where the value of a variable came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Origin {
    Given,
    Default,
    Unset,
    /// It looks like a secret.
    Secret,
}

/// The variables, and which of them were used.
pub(crate) struct Variables<'a> {
    values: &'a BTreeMap<String, String>,
    /// The names of those that hold another that looks like a secret.
    secrets: BTreeSet<String>,
    pub(crate) used: BTreeMap<String, Origin>,
}

/// A text after interpolation.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Interpolated {
    pub(crate) text: String,
    pub(crate) unset: Vec<String>,
    /// What `:?` says of a variable that has no value.
    pub(crate) demanded: Option<(String, String)>,
    /// The variable in it that looks like a secret, by its name or its value, or that made one of the whole.
    pub(crate) secret: Option<String>,
}

impl<'a> Variables<'a> {
    #[cfg(test)]
    pub(crate) fn new(values: &'a BTreeMap<String, String>) -> Self {
        Self::with_secrets(values, BTreeSet::new())
    }

    /// The same, and the names of some that hold secrets whatever they are called.
    pub(crate) fn with_secrets(
        values: &'a BTreeMap<String, String>,
        secrets: BTreeSet<String>,
    ) -> Self {
        let used = BTreeMap::new();
        Self {
            values,
            secrets,
            used,
        }
    }

    /// Interpolates all values below. A demanded variable (`:?`) without a value is an error but in a service's environment,
    /// where a secret can give it later.
    pub(crate) fn tree(
        &mut self,
        file: &str,
        node: &mut Node,
        path: &mut Vec<String>,
    ) -> Result<(), ConvertError> {
        let place = node.place;
        match &mut node.value {
            Value::Text(text) => {
                if !text.contains('$') {
                    return Ok(());
                }
                let done = self.text(text, 0).map_err(|message| {
                    ConvertError::new(file, place, message)
                        .hint("a `$` that is meant as it is, is written `$$`")
                })?;
                let in_environment =
                    path.len() > 2 && path[0] == "services" && path[2] == "environment";
                if let Some((name, message)) = done.demanded.filter(|_| !in_environment) {
                    let message = format!("`{name}` has no value: {message}");
                    return Err(ConvertError::new(file, place, message).hint(format!(
                        "write {name}=… to `.env`, or give it in the environment"
                    )));
                }
                *text = done.text;
                node.unset = done.unset;
                node.secret = done.secret;
            }
            Value::List(items) => {
                for item in items {
                    self.tree(file, item, path)?;
                }
            }
            Value::Map(fields) => {
                for field in fields {
                    path.push(field.key.clone());
                    let result = self.tree(file, &mut field.node, path);
                    path.pop();
                    result?;
                }
            }
            Value::Null | Value::Flag(_) | Value::Integer(_) | Value::Float(_) => {}
        }
        Ok(())
    }

    /// Interpolates one text.
    pub(crate) fn text(&mut self, text: &str, depth: usize) -> Result<Interpolated, String> {
        if depth > DEPTH_MAX {
            return Err("variables stand too deep in one another".to_owned());
        }
        let mut done = Interpolated::default();
        let mut last = None;
        let mut rest = text;
        while let Some(index) = rest.find('$') {
            done.text.push_str(&rest[..index]);
            rest = &rest[index + 1..];
            if let Some(after) = rest.strip_prefix('$') {
                done.text.push('$');
                rest = after;
            } else if let Some(after) = rest.strip_prefix('{') {
                let end = closing(after).ok_or("a `${` has no `}`")?;
                let name = &after[..name_len(after)];
                last = Some(name);
                let before = done.text.len();
                self.braced(&after[..end], depth, &mut done)?;
                self.look(name, before, &mut done);
                rest = &after[end + 1..];
            } else {
                let len = name_len(rest);
                if len == 0 {
                    return Err("a `$` stands before no variable".to_owned());
                }
                let name = &rest[..len];
                last = Some(name);
                let before = done.text.len();
                self.plain(name, &mut done);
                self.look(name, before, &mut done);
                rest = &rest[len..];
            }
        }
        done.text.push_str(rest);
        // An address with a login may be put together from harmless parts.
        if let Some(name) = last.filter(|_| done.secret.is_none() && is_credential(&done.text)) {
            done.secret = Some(name.to_owned());
        }
        Ok(done)
    }

    /// Notes a secret in what a variable has added.
    fn look(&mut self, name: &str, before: usize, done: &mut Interpolated) {
        let added = done.text.get(before..).unwrap_or_default();
        let is_secret =
            looks_secret(name, added) || (self.secrets.contains(name) && !added.is_empty());
        if is_secret {
            self.note(name, Origin::Secret);
            done.secret.get_or_insert_with(|| name.to_owned());
        }
    }

    fn plain(&mut self, name: &str, done: &mut Interpolated) {
        if let Some(value) = self.values.get(name) {
            done.text.push_str(value);
            self.note(name, Origin::Given);
        } else {
            done.unset.push(name.to_owned());
            self.note(name, Origin::Unset);
        }
    }

    fn braced(&mut self, inner: &str, depth: usize, done: &mut Interpolated) -> Result<(), String> {
        let len = name_len(inner);
        let (name, rest) = inner.split_at(len);
        if name.is_empty() {
            return Err(format!("`${{{inner}}}` names no variable"));
        }
        if rest.is_empty() {
            self.plain(name, done);
            return Ok(());
        }
        let (empty_counts, rest) = match rest.strip_prefix(':') {
            Some(rest) => (true, rest),
            None => (false, rest),
        };
        let mut chars = rest.chars();
        let operator = chars.next();
        let argument = chars.as_str();
        let value = self.values.get(name);
        let value = value.filter(|value| !(empty_counts && value.is_empty()));
        match (operator, value) {
            (Some('-' | '?'), Some(value)) => {
                done.text.push_str(value);
                self.note(name, Origin::Given);
            }
            (Some('-'), None) => {
                self.note(name, Origin::Default);
                self.append(argument, depth, done)?;
            }
            (Some('?'), None) => {
                let message = self.text(argument, depth + 1)?.text;
                let message = if message.is_empty() {
                    "it is required".to_owned()
                } else {
                    message
                };
                self.note(name, Origin::Unset);
                done.unset.push(name.to_owned());
                done.demanded.get_or_insert((name.to_owned(), message));
            }
            (Some('+'), Some(_)) => {
                self.note(name, Origin::Given);
                self.append(argument, depth, done)?;
            }
            (Some('+'), None) => self.note(name, Origin::Default),
            _ => return Err(format!("`${{{inner}}}` is no form of a variable")),
        }
        Ok(())
    }

    fn append(
        &mut self,
        argument: &str,
        depth: usize,
        done: &mut Interpolated,
    ) -> Result<(), String> {
        let inner = self.text(argument, depth + 1)?;
        done.text.push_str(&inner.text);
        done.unset.extend(inner.unset);
        done.secret = done.secret.take().or(inner.secret);
        done.demanded = done.demanded.take().or(inner.demanded);
        Ok(())
    }

    fn note(&mut self, name: &str, origin: Origin) {
        self.used.insert(name.to_owned(), origin);
    }
}

fn name_len(text: &str) -> usize {
    let mut len = 0;
    for (index, c) in text.char_indices() {
        let fits = c == '_' || c.is_ascii_alphabetic() || (index > 0 && c.is_ascii_digit());
        if !fits {
            break;
        }
        len = index + c.len_utf8();
    }
    len
}

/// Where the brace that was opened before this text is closed.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0_usize;
    let bytes = text.as_bytes();
    for (index, byte) in bytes.iter().enumerate() {
        match byte {
            b'{' if index > 0 && bytes[index - 1] == b'$' => depth += 1,
            b'}' if depth == 0 => return Some(index),
            b'}' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// What a `.env` file says.
pub(crate) struct Dotenv {
    pub(crate) values: Vec<(String, Option<String>)>,
    /// Lines that are no `NAME=value`, by number.
    pub(crate) broken: Vec<u32>,
    /// The names of those in whose values others stand that look like secrets.
    pub(crate) secrets: BTreeSet<String>,
}

/// Reads the text of a `.env` file: `NAME=value`, `export`, comments, quotes; in double quotes `\n` and the like.
/// Variables in values are interpolated from what stands above and from `known`. Lines that are none are left out and
/// returned by number.
pub(crate) fn dotenv(text: &str, known: &BTreeMap<String, String>) -> Dotenv {
    let mut secrets = BTreeSet::new();
    let mut values = Vec::new();
    let mut broken = Vec::new();
    let mut scope = known.clone();
    let mut lines = text.lines().zip(1_u32..);
    while let Some((line, number)) = lines.next() {
        let line = line.trim();
        let line = line.strip_prefix("export ").unwrap_or(line).trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) = match line.split_once('=') {
            Some((name, value)) => (name.trim(), Some(value.trim_start().to_owned())),
            None => (line, None),
        };
        if name.is_empty() || name.contains(char::is_whitespace) {
            broken.push(number);
            continue;
        }
        let Some(mut value) = value else {
            values.push((name.to_owned(), None));
            continue;
        };
        let quote = value.chars().next().filter(|c| matches!(c, '"' | '\''));
        if let Some(quote) = quote {
            // A quoted value may go on over lines.
            while end_of_quote(&value, quote).is_none() {
                let Some((more, _)) = lines.next() else { break };
                value.push('\n');
                value.push_str(more);
            }
        }
        let value = unquoted(&value, quote);
        let value = match quote {
            Some('\'') => value,
            _ => match Variables::with_secrets(&scope, secrets.clone()).text(&value, 0) {
                Ok(done) => {
                    if done.secret.is_some() {
                        secrets.insert(name.to_owned());
                    }
                    done.text
                }
                Err(_) => value,
            },
        };
        scope.insert(name.to_owned(), value.clone());
        values.push((name.to_owned(), Some(value)));
    }
    Dotenv {
        values,
        broken,
        secrets,
    }
}

fn end_of_quote(value: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (index, c) in value.char_indices().skip(1) {
        if escaped {
            escaped = false;
        } else if c == '\\' && quote == '"' {
            escaped = true;
        } else if c == quote {
            return Some(index);
        }
    }
    None
}

fn unquoted(value: &str, quote: Option<char>) -> String {
    let Some(quote) = quote else {
        // A comment needs a blank before it.
        let end = value.find(" #").unwrap_or(value.len());
        return value[..end].trim_end().to_owned();
    };
    let end = end_of_quote(value, quote).unwrap_or(value.len());
    let inner = &value[1..end];
    if quote == '\'' {
        return inner.to_owned();
    }
    let mut text = String::new();
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            text.push(c);
            continue;
        }
        match chars.next() {
            Some('n') => text.push('\n'),
            Some('r') => text.push('\r'),
            Some('t') => text.push('\t'),
            Some(other @ ('"' | '\\' | '$')) => text.push(other),
            Some(other) => {
                text.push('\\');
                text.push(other);
            }
            None => text.push('\\'),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, wanted: &str) {
        let values = [("A", "x"), ("EMPTY", "")];
        let values = values.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let values = BTreeMap::from(values);
        let done = Variables::new(&values).text(text, 0).unwrap();
        assert_eq!(done.text, wanted, "{text}");
    }

    #[test]
    fn forms_of_the_specification() {
        check("$A-${A}", "x-x");
        check("${EMPTY:-d}${EMPTY-d}", "d");
        check("${NO:-d}${NO-d}", "dd");
        check("${NO:-${A}y}", "xy");
        check("${NO:-${NO2:-{}}}", "{}");
        check("${A:+z}${EMPTY:+z}${EMPTY+z}${NO+z}", "zz");
        check("$$A $${A}", "$A ${A}");
        check("${A:?must}", "x");
        check("${NO}", "");
    }

    #[test]
    fn what_is_no_form_is_refused() {
        let values = BTreeMap::new();
        for text in ["${", "${}", "$", "$1", "${A B}", "${A:}", "${-x}"] {
            assert!(Variables::new(&values).text(text, 0).is_err(), "{text}");
        }
        let deep = "${A:-".repeat(100) + &"}".repeat(100);
        assert!(Variables::new(&values).text(&deep, 0).is_err());
    }

    #[test]
    fn what_is_demanded_is_told() {
        let values = BTreeMap::new();
        let done = Variables::new(&values).text("${A:?set it}", 0).unwrap();
        assert_eq!(done.demanded, Some(("A".to_owned(), "set it".to_owned())));
        assert_eq!(done.unset, ["A"]);
    }

    #[test]
    fn reads_dotenv() {
        let text = "# c\nexport A=1 # one\nB=\"two\\nlines\"\nC='$A'\nD=$A-${A}\nE\nF=\"x\ny\"\nbad line\nG=a#b\n";
        let Dotenv { values, broken, .. } = dotenv(text, &BTreeMap::new());
        let get = |name: &str| {
            let found = values.iter().find(|(key, _)| key == name);
            found.and_then(|(_, value)| value.clone())
        };
        assert_eq!(get("A").as_deref(), Some("1"));
        assert_eq!(get("B").as_deref(), Some("two\nlines"));
        assert_eq!(get("C").as_deref(), Some("$A"));
        assert_eq!(get("D").as_deref(), Some("1-1"));
        assert_eq!(get("E"), None);
        assert_eq!(get("F").as_deref(), Some("x\ny"));
        assert_eq!(get("G").as_deref(), Some("a#b"));
        assert_eq!(broken, [9]);
    }
}
