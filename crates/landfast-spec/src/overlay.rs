//! Lays the keys of one environment over those of the file. A value that was replaced brings its own place
//! along, so that problems point at the overlay's line.

use std::collections::BTreeMap;

use crate::{
    catalogue::{Kind, child},
    container::CONTENT,
    tree::{Entry, Node, Table, Value},
};

/// The file as one environment sees it.
pub(crate) fn merge(root: &Table, environment: &str) -> Table {
    let mut merged = root.clone();
    let overlays = merged.remove("environments");
    if let Some(Value::Table(overlays)) = overlays.map(|entry| entry.node.value)
        && let Some(Value::Table(overlay)) =
            overlays.get(environment).map(|entry| &entry.node.value)
    {
        for (name, entry) in overlay.iter().filter(|(name, _)| name.as_str() != "app") {
            let kind = child("", name).map(|key| key.kind);
            lay_over(&mut merged, name, entry, kind, name);
        }
    }
    merged
}

fn lay_over(base: &mut Table, name: &str, over: &Entry, kind: Option<Kind>, pattern: &str) {
    let Some(below) = base.get_mut(name) else {
        base.insert(name.to_owned(), over.clone());
        return;
    };
    match (&mut below.node.value, &over.node.value) {
        (Value::Table(base), Value::Table(over)) => {
            if matches!(pattern, "services.*" | "jobs.*") {
                replace_content(base, over);
            }
            for (name, entry) in over {
                match kind {
                    Some(Kind::Tables | Kind::Secrets | Kind::Registries) => {
                        lay_over(
                            base,
                            name,
                            entry,
                            Some(Kind::Table),
                            &format!("{pattern}.*"),
                        );
                    }
                    Some(Kind::Variables) => lay_variable(base, name, entry),
                    _ => {
                        let pattern = format!("{pattern}.{name}");
                        let key = pattern
                            .rsplit_once('.')
                            .and_then(|(parent, name)| child(parent, name));
                        lay_over(base, name, entry, key.map(|key| key.kind), &pattern);
                    }
                }
            }
        }
        // A folder is built without what a table said of another.
        (Value::Table(_), Value::Text(_)) if kind == Some(Kind::Build) => *below = over.clone(),
        // So is a volume's place, which may be a text or a table.
        (Value::Table(_), Value::Text(_)) if pattern.contains(".volumes.") => {
            *below = over.clone();
        }
        // A value in the place of a table was reported already; the table is kept.
        (Value::Table(_), _) => {}
        (_, _) => *below = over.clone(),
    }
}

/// What an environment runs takes the place of what the file runs, with all that was said of that alone.
fn replace_content(base: &mut Table, over: &Table) {
    if !CONTENT.iter().any(|key| over.contains_key(*key)) {
        return;
    }
    for key in CONTENT.iter().filter(|key| !over.contains_key(**key)) {
        base.remove(*key);
    }
}

/// A bare value over `{ default = …, type = … }` gives the value and keeps the rest; a table over a bare value
/// keeps that value as the default.
fn lay_variable(base: &mut Table, name: &str, over: &Entry) {
    let Some(below) = base.get_mut(name) else {
        base.insert(name.to_owned(), over.clone());
        return;
    };
    match (&mut below.node.value, &over.node.value) {
        (Value::Table(base), Value::Table(over)) => {
            base.extend(
                over.iter()
                    .map(|(name, entry)| (name.clone(), entry.clone())),
            );
            // The overlay's default would otherwise lose against the file's value.
            if over.contains_key("default") && !over.contains_key("value") {
                base.remove("value");
            }
        }
        (Value::Table(base), _) => {
            base.insert("value".to_owned(), over.clone());
        }
        (_, Value::Table(table)) => {
            let mut table = table.clone();
            let given = table.contains_key("value") || table.contains_key("default");
            if !given {
                table.insert("default".to_owned(), below.clone());
            }
            let node = Node {
                value: Value::Table(table),
                span: over.node.span.clone(),
            };
            *below = Entry {
                key_span: over.key_span.clone(),
                node,
            };
        }
        (_, _) => *below = over.clone(),
    }
}

/// Names of the environments a file has, in order.
pub(crate) fn names(root: &Table) -> BTreeMap<&str, &Entry> {
    match root.get("environments").map(|entry| &entry.node.value) {
        Some(Value::Table(overlays)) => overlays
            .iter()
            .map(|(name, entry)| (name.as_str(), entry))
            .collect(),
        _ => BTreeMap::new(),
    }
}
