//! What became of each key of a file: nothing that was read goes unnamed.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::yaml::{Field, Node, Place, Value};

/// What became of one key or value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "fate", rename_all = "snake_case")]
pub enum Fate {
    /// It is in the manifest.
    Carried {
        /// Where, or as what.
        to: String,
    },
    /// Landfast does it by itself, or it says nothing by itself.
    Replaced {
        /// By what.
        by: String,
    },
    /// It is not in the manifest, and nothing does it.
    NotCarried { reason: String, instead: String },
}

/// Why a value is not carried that no part of the reader expects where it stands.
pub(crate) const UNREAD: &str = "nothing reads it in this place";

/// The fate of what stands at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// `services.web.ports[0]`.
    pub path: String,
    pub place: Place,
    pub fate: Fate,
}

/// All fates, by path.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ledger {
    marks: BTreeMap<String, Mark>,
}

impl Ledger {
    /// What was said last about a path counts.
    fn mark(&mut self, at: &At<'_>, fate: Fate) {
        let mark = Mark {
            path: at.path.clone(),
            place: at.place,
            fate,
        };
        self.marks.insert(at.path.clone(), mark);
    }

    pub(crate) fn carried(&mut self, at: &At<'_>, to: impl Into<String>) {
        self.mark(at, Fate::Carried { to: to.into() });
    }

    /// The same for each value below.
    pub(crate) fn carried_whole(&mut self, at: &At<'_>, to: &str) {
        match &at.node.value {
            Value::List(items) if !items.is_empty() => {
                for item in at.items() {
                    self.carried_whole(&item, to);
                }
            }
            Value::Map(fields) if !fields.is_empty() => {
                for (_, value) in at.fields() {
                    self.carried_whole(&value, to);
                }
            }
            Value::Null
            | Value::Flag(_)
            | Value::Integer(_)
            | Value::Float(_)
            | Value::Text(_)
            | Value::List(_)
            | Value::Map(_) => self.carried(at, to),
        }
    }

    pub(crate) fn replaced(&mut self, at: &At<'_>, by: impl Into<String>) {
        self.mark(at, Fate::Replaced { by: by.into() });
    }

    pub(crate) fn not_carried(
        &mut self,
        at: &At<'_>,
        reason: impl Into<String>,
        instead: impl Into<String>,
    ) {
        let (reason, instead) = (reason.into(), instead.into());
        self.mark(at, Fate::NotCarried { reason, instead });
    }

    /// What has another form than its specification says.
    pub(crate) fn wrong(&mut self, at: &At<'_>, wanted: &str) {
        let reason = format!("it is {}, where {wanted} belongs", at.node.kind());
        self.not_carried(at, reason, "write it as the specification says");
    }

    /// Says of a variable that was carried that a store gives it instead.
    pub(crate) fn given(&mut self, prefix: &str, name: &str, store: &str) {
        let to = format!("env.{name}");
        for mark in self.marks.values_mut() {
            let is_it = matches!(&mark.fate, Fate::Carried { to: other } if *other == to);
            if is_it && mark.path.starts_with(prefix) {
                mark.fate = Fate::NotCarried {
                    reason: format!("the store `{store}` gives `{name}`"),
                    instead: "rename it where the app means another server".to_owned(),
                };
            }
        }
    }

    /// Names every value below of which nothing was said: what has a form that no part of the reader expects.
    pub(crate) fn cover(&mut self, at: &At<'_>, is_said: bool) {
        let is_said = is_said || self.marks.contains_key(&at.path);
        let below = at.fields().map(|(_, at)| at).chain(at.items());
        let below = below.collect::<Vec<_>>();
        if below.is_empty() && !is_said {
            self.not_carried(at, UNREAD, "write it as the specification says");
        }
        for at in &below {
            self.cover(at, is_said);
        }
    }

    /// In the order of the files.
    pub(crate) fn into_marks(self) -> Vec<Mark> {
        let mut marks = self.marks.into_values().collect::<Vec<_>>();
        marks.sort_by(|a, b| (a.place, &a.path).cmp(&(b.place, &b.path)));
        marks
    }
}

/// A value, and how one comes to it.
#[derive(Debug, Clone)]
pub(crate) struct At<'a> {
    pub(crate) node: &'a Node,
    pub(crate) path: String,
    /// That of its key, where it has one.
    pub(crate) place: Place,
}

impl<'a> At<'a> {
    pub(crate) fn root(node: &'a Node) -> Self {
        let (path, place) = (String::new(), node.place);
        Self { node, path, place }
    }

    pub(crate) fn fields(&self) -> impl Iterator<Item = (&'a str, Self)> + use<'a> {
        let path = self.path.clone();
        let fields = self.node.fields().iter();
        fields.map(move |field| (field.key.as_str(), Self::field(&path, field)))
    }

    pub(crate) fn items(&self) -> impl Iterator<Item = Self> + use<'a> {
        let path = self.path.clone();
        let items = self.node.items().iter().enumerate();
        items.map(move |(index, node)| Self {
            node,
            path: format!("{path}[{index}]"),
            place: node.place,
        })
    }

    pub(crate) fn get(&self, key: &str) -> Option<Self> {
        let mut fields = self.node.fields().iter();
        let field = fields.find(|field| field.key == key)?;
        Some(Self::field(&self.path, field))
    }

    /// `a.b.c` from here.
    pub(crate) fn find(&self, path: &str) -> Option<Self> {
        let mut at = self.clone();
        for key in path.split('.') {
            at = at.get(key)?;
        }
        Some(at)
    }

    pub(crate) fn text(&self) -> Option<String> {
        self.node.scalar()
    }

    /// The last key of the path.
    pub(crate) fn key(&self) -> &str {
        self.path.rsplit('.').next().unwrap_or_default()
    }

    /// Texts of a list, or the one text that stands in its place.
    pub(crate) fn texts(&self) -> Vec<(String, Self)> {
        if let Some(text) = self.text() {
            return vec![(text, self.clone())];
        }
        let texts = self.items().filter_map(|item| Some((item.text()?, item)));
        texts.collect()
    }

    fn field(path: &str, field: &'a Field) -> Self {
        let path = if path.is_empty() {
            field.key.clone()
        } else {
            format!("{path}.{}", field.key)
        };
        Self {
            node: &field.node,
            path,
            place: field.place,
        }
    }
}
