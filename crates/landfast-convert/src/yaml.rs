//! YAML as a tree of values that know their place. Aliases and merge keys (`<<`) are resolved; what would make the tree
//! much larger than its text is refused by the reader's budget.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::{Error, Location, Spanned};

use crate::ConvertError;

/// A larger file is refused unread.
pub(crate) const TEXT_BYTES_MAX: usize = 1 << 20;
/// Values of one file, aliases counted each time they are used.
const NODES_MAX: usize = 50_000;
const DEPTH_MAX: usize = 40;

/// Where something stands. Lines and columns count from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Place {
    /// Which of the files that were read.
    pub file: usize,
    pub line: u32,
    pub column: u32,
}

/// A value and its place.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub(crate) value: Value,
    pub(crate) place: Place,
    /// The variables in it that nothing gave a value.
    pub(crate) unset: Vec<String>,
    /// The variable in it that looks like a secret.
    pub(crate) secret: Option<String>,
}

/// What a value is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Null,
    Flag(bool),
    Integer(i128),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    /// In the order of the file.
    Map(Vec<Field>),
}

/// A value under its key.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Field {
    pub(crate) key: String,
    pub(crate) place: Place,
    pub(crate) node: Node,
}

impl Node {
    pub(crate) fn new(value: Value, place: Place) -> Self {
        let unset = Vec::new();
        Self {
            value,
            place,
            unset,
            secret: None,
        }
    }

    /// A value that stands alone, as text.
    pub(crate) fn scalar(&self) -> Option<String> {
        match &self.value {
            Value::Text(text) => Some(text.clone()),
            Value::Flag(flag) => Some(flag.to_string()),
            Value::Integer(number) => Some(number.to_string()),
            Value::Float(number) => Some(number.to_string()),
            Value::Null | Value::List(_) | Value::Map(_) => None,
        }
    }

    pub(crate) fn fields(&self) -> &[Field] {
        if let Value::Map(fields) = &self.value {
            fields
        } else {
            &[]
        }
    }

    pub(crate) fn items(&self) -> &[Self] {
        if let Value::List(items) = &self.value {
            items
        } else {
            &[]
        }
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Self> {
        let field = self.fields().iter().find(|field| field.key == key)?;
        Some(&field.node)
    }

    pub(crate) fn is_null(&self) -> bool {
        self.value == Value::Null
    }

    pub(crate) fn is_map(&self) -> bool {
        matches!(self.value, Value::Map(_))
    }

    /// What to call it in a message.
    pub(crate) fn kind(&self) -> &'static str {
        match &self.value {
            Value::Null => "nothing",
            Value::Flag(_) => "true or false",
            Value::Integer(_) => "a whole number",
            Value::Float(_) => "a number",
            Value::Text(_) => "text",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }
}

/// Reads one document. An empty one is an empty mapping.
pub(crate) fn read(name: &str, file: usize, text: &str) -> Result<Node, ConvertError> {
    let at_start = Place {
        file,
        line: 1,
        column: 1,
    };
    if text.len() > TEXT_BYTES_MAX {
        let message = format!(
            "the file has {} bytes; it may have {TEXT_BYTES_MAX}",
            text.len()
        );
        return Err(ConvertError::new(name, at_start, message));
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text
        .lines()
        .all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'))
    {
        return Ok(Node::new(Value::Map(Vec::new()), at_start));
    }
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_documents: 1,
            max_nodes: NODES_MAX,
            max_depth: DEPTH_MAX,
            max_aliases: 2_000,
            max_merge_keys: 2_000,
        },
        reject_unsupported_tags: true,
        // `yes`, `no`, `on` and `off` are text, as they are to Compose.
        strict_booleans: true,
        with_snippet: false,
    };
    let tree = serde_saphyr::from_str_with_options::<Spanned<Raw>>(text, options);
    match tree {
        Ok(spanned) => {
            let mut left = NODES_MAX;
            convert(spanned, file, &mut left)
                .ok_or_else(|| ConvertError::new(name, at_start, too_large()))
        }
        Err(error) => Err(syntax_error(name, file, text, &error)),
    }
}

fn too_large() -> String {
    format!("its aliases make more than {NODES_MAX} values of it")
}

fn syntax_error(name: &str, file: usize, text: &str, error: &Error) -> ConvertError {
    let place = error.location().map(|location| place(file, location));
    // What is missing at the end is missing on the last line.
    let last = u32::try_from(text.lines().count()).unwrap_or(u32::MAX);
    let place = place.filter(|place| place.line > 0).unwrap_or(Place {
        file,
        line: last.max(1),
        column: 1,
    });
    let message = error.without_snippet().to_string();
    let message = message.lines().next().unwrap_or_default().trim().to_owned();
    let tagged = text.contains("!reset") || text.contains("!override");
    let hint = match tagged {
        true => "tags are not read: give what `docker compose config` prints",
        false => {
            "mind the indentation, and quote text with `: `, `#` or a leading `*`, `&`, `@` or `%`"
        }
    };
    ConvertError::new(name, place, format!("this is not YAML: {message}")).hint(hint)
}

fn place(file: usize, location: Location) -> Place {
    Place {
        file,
        line: u32::try_from(location.line()).unwrap_or(u32::MAX),
        column: u32::try_from(location.column()).unwrap_or(u32::MAX),
    }
}

/// The reader's own limit counts events; this one counts what aliases make of them.
fn convert(spanned: Spanned<Raw>, file: usize, left: &mut usize) -> Option<Node> {
    *left = left.checked_sub(1)?;
    let at = if spanned.defined.line() > 0 {
        spanned.defined
    } else {
        spanned.referenced
    };
    let value = match spanned.value {
        Raw::Null => Value::Null,
        Raw::Flag(flag) => Value::Flag(flag),
        Raw::Integer(number) => Value::Integer(number),
        Raw::Float(number) => Value::Float(number),
        Raw::Text(text) => Value::Text(text),
        Raw::List(items) => {
            let items = items.into_iter().map(|item| convert(item, file, left));
            Value::List(items.collect::<Option<_>>()?)
        }
        Raw::Map(fields) => {
            let fields = fields.into_iter().map(|(key, value)| {
                let at = if key.defined.line() > 0 {
                    key.defined
                } else {
                    key.referenced
                };
                Some(Field {
                    key: key.value,
                    place: place(file, at),
                    node: convert(value, file, left)?,
                })
            });
            Value::Map(fields.collect::<Option<_>>()?)
        }
    };
    Some(Node::new(value, place(file, at)))
}

enum Raw {
    Null,
    Flag(bool),
    Integer(i128),
    Float(f64),
    Text(String),
    List(Vec<Spanned<Self>>),
    Map(Vec<(Spanned<String>, Spanned<Self>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Flag(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Integer(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Integer(value.into()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Raw, E> {
        Ok(Raw::Integer(value))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Raw, E> {
        Ok(i128::try_from(value).map_or_else(|_| Raw::Text(value.to_string()), Raw::Integer))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Raw, E> {
        Ok(Raw::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Raw, E> {
        Ok(Raw::Text(value))
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        Raw::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Raw::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let mut fields = Vec::new();
        while let Some(field) = map.next_entry()? {
            fields.push(field);
        }
        Ok(Raw::Map(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Node {
        read("compose.yaml", 0, text).unwrap()
    }

    #[test]
    fn values_know_their_lines_through_anchors_and_merges() {
        let node = parse(
            "x-base: &base\n  image: a\n  tty: true\nservices:\n  web:\n    <<: *base\n    image: b\n    cpus: 0.5\n",
        );
        let web = node.get("services").and_then(|it| it.get("web")).unwrap();
        assert_eq!(web.get("image").unwrap().scalar().unwrap(), "b");
        assert_eq!(web.get("tty").unwrap().value, Value::Flag(true));
        assert_eq!(web.get("tty").unwrap().place.line, 3);
        assert_eq!(web.get("cpus").unwrap().place.line, 8);
        assert_eq!(web.get("cpus").unwrap().value, Value::Float(0.5));
    }

    #[test]
    fn bad_yaml_is_said_with_line_and_column() {
        for text in [
            "services:\n  web:\n   image: a\n  - b\n",
            "a: [1, 2\n",
            "a: \"b\n",
            "a: *nobody\n",
            "a: 1\na: 2\n",
            "a: !reset null\n",
            "\t- x: y\n  z\n",
        ] {
            let error = read("compose.yaml", 0, text).unwrap_err();
            assert!(error.place.line > 0 && error.place.column > 0, "{error:?}");
            assert!(error.to_string().starts_with("compose.yaml:"), "{error}");
        }
    }

    #[test]
    fn bombs_are_refused() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..9 {
            let before = level - 1;
            let refs = vec![format!("*a{before}"); 10].join(", ");
            text.push_str(&format!("a{level}: &a{level} [{refs}]\n"));
        }
        assert!(read("compose.yaml", 0, &text).is_err());
        let deep = "[".repeat(10_000);
        assert!(read("compose.yaml", 0, &deep).is_err());
    }

    #[test]
    fn an_empty_text_is_an_empty_mapping() {
        assert!(parse("# nothing\n\n").fields().is_empty());
    }
}
