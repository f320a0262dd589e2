//! Shapes of `--json`: an output is reduced to one line for each path and type, and held against
//! `tests/json/NAME.shape`. A path that is gone or has another type fails. One that is new fails, too, until it is
//! written down with `UPDATE_DOCS=1`, so that it is a promise from then on.

use std::{collections::BTreeSet, fs, path::Path};

use serde_json::Value;

/// Maps whose keys are names of the user, not of the format.
const BY_NAME: [&str; 7] = [
    "artifacts",
    "secrets",
    "scale_overrides",
    "statuses",
    "releases",
    "instances",
    "services",
];

/// `path: type` for every place of a value. An empty list says nothing of what it may hold, and null nothing at all.
pub fn shape(value: &Value) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    walk(value, "", &mut lines);
    lines
}

fn walk(value: &Value, path: &str, lines: &mut BTreeSet<String>) {
    let kind = match value {
        Value::Null => return,
        Value::Bool(_) => "true or false",
        Value::Number(_) => "number",
        Value::String(_) => "text",
        Value::Array(items) => {
            for item in items {
                walk(item, &format!("{path}[]"), lines);
            }
            "list"
        }
        Value::Object(fields) => {
            let last = path.rsplit('.').next().unwrap_or_default();
            for (name, field) in fields {
                let name = if BY_NAME.contains(&last) { "*" } else { name };
                walk(field, &format!("{path}.{name}"), lines);
            }
            "object"
        }
    };
    let path = if path.is_empty() { "." } else { path };
    lines.insert(format!("{path}: {kind}"));
}

/// What is wrong with an output, if anything.
pub fn hold(name: &str, value: &Value) -> Vec<String> {
    let found = shape(value);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/json/{name}.shape"));
    let promised = fs::read_to_string(&path).unwrap_or_default();
    let promised: BTreeSet<_> = promised.lines().map(str::to_owned).collect();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        // Nothing that was promised is taken back by this.
        let all: Vec<_> = promised.union(&found).cloned().collect();
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, all.join("\n") + "\n").unwrap();
        return Vec::new();
    }
    let gone = promised
        .difference(&found)
        .map(|line| format!("{name}: gone: {line}"));
    let new = found
        .difference(&promised)
        .map(|line| format!("{name}: new: {line} (run with UPDATE_DOCS=1 to promise it)"));
    gone.chain(new).collect()
}
