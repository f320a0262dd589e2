//! From the texts of Compose files to one tree: interpolation, `include`, several files laid over one another, `extends`.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    ConvertError, ReadFile, Source,
    interpolate::{Origin, Variables, dotenv},
    yaml::{self, Field, Node, Value},
};

/// How deep files include one another and services extend one another.
const DEPTH_MAX: usize = 16;
/// Services a file may have, extended ones included.
const SERVICES_MAX: usize = 500;

/// What was read.
pub(super) struct Loaded {
    pub(super) root: Node,
    /// By [`crate::Place::file`].
    pub(super) files: Vec<String>,
    pub(super) used: BTreeMap<String, Origin>,
    pub(super) notes: Vec<String>,
    /// `.env` with what the caller's environment adds.
    pub(super) variables: BTreeMap<String, String>,
}

struct Loader<'a> {
    files: Vec<String>,
    variables: Variables<'a>,
    read: ReadFile<'a>,
    notes: Vec<String>,
}

pub(super) fn load(
    sources: &[Source],
    environment: &BTreeMap<String, String>,
    read: ReadFile<'_>,
) -> Result<Loaded, ConvertError> {
    let mut notes = Vec::new();
    let mut values = BTreeMap::new();
    let mut secrets = BTreeSet::new();
    if let Some(text) = read(".env") {
        let read = dotenv(&text, environment);
        let broken = read.broken;
        secrets = read.secrets;
        values.extend(
            read.values
                .into_iter()
                .filter_map(|(name, value)| Some((name, value?))),
        );
        for line in broken {
            notes.push(format!(".env:{line} is no `NAME=value` and was left out"));
        }
    }
    // The environment wins over the file, as it does for docker compose.
    values.extend(
        environment
            .iter()
            .map(|(name, value)| (name.clone(), value.clone())),
    );
    let mut loader = Loader {
        files: Vec::new(),
        variables: Variables::with_secrets(&values, secrets),
        read,
        notes,
    };
    let mut root = None;
    for source in sources {
        let node = loader.file(source, 0)?;
        root = Some(match root {
            Some(base) => merge(base, node, &mut Vec::new()),
            None => node,
        });
    }
    let empty = || Node::new(Value::Map(Vec::new()), yaml::Place::default());
    let mut root = root.unwrap_or_else(empty);
    loader.extend_all(&mut root)?;
    hide(&mut root, &mut Vec::new());
    let used = loader.variables.used;
    Ok(Loaded {
        root,
        files: loader.files,
        used,
        notes: loader.notes,
        variables: values,
    })
}

impl Loader<'_> {
    /// One file, with what it includes below it.
    fn file(&mut self, source: &Source, depth: usize) -> Result<Node, ConvertError> {
        let index = self.files.len();
        self.files.push(source.name.clone());
        let mut node = yaml::read(&source.name, index, &source.text)?;
        if !node.is_map() {
            let message = format!(
                "the file is {}, and no mapping with `services`",
                node.kind()
            );
            return Err(ConvertError::new(&source.name, node.place, message)
                .hint("a Compose file begins with `services:`"));
        }
        self.variables
            .tree(&source.name, &mut node, &mut Vec::new())?;
        let Some(includes) = node.get("include").cloned() else {
            return Ok(node);
        };
        if depth >= DEPTH_MAX {
            let message = "files include one another too deep";
            return Err(ConvertError::new(&source.name, includes.place, message));
        }
        for path in included_paths(&includes) {
            let Some(text) = (self.read)(&path) else {
                let message = format!("the included file `{path}` cannot be read");
                return Err(ConvertError::new(&source.name, includes.place, message)
                    .hint("run the command in the folder of the Compose file"));
            };
            let included = self.file(&Source { name: path, text }, depth + 1)?;
            // What the file itself says wins.
            node = merge(included, node, &mut Vec::new());
        }
        Ok(node)
    }

    fn extend_all(&mut self, root: &mut Node) -> Result<(), ConvertError> {
        let names = root.get("services").map(Node::fields).unwrap_or_default();
        let names = names
            .iter()
            .map(|field| field.key.clone())
            .collect::<Vec<_>>();
        if names.len() > SERVICES_MAX {
            let message = format!(
                "there are {} services; {SERVICES_MAX} are read",
                names.len()
            );
            return Err(self.error(root, message));
        }
        for name in names {
            let resolved = self.extended(root, &name, &mut BTreeSet::new())?;
            if let Some(node) = resolved
                && let Some(Value::Map(services)) = value_mut(root, "services")
                && let Some(field) = services.iter_mut().find(|field| field.key == name)
            {
                field.node = node;
            }
        }
        Ok(())
    }

    /// A service with what it extends laid below it; `None`: it extends nothing.
    fn extended(
        &mut self,
        root: &Node,
        name: &str,
        seen: &mut BTreeSet<String>,
    ) -> Result<Option<Node>, ConvertError> {
        let service = root.get("services").and_then(|services| services.get(name));
        let Some(service) = service else {
            return Ok(None);
        };
        let Some(extends) = service.get("extends") else {
            return Ok(None);
        };
        let (file, base) = match &extends.value {
            Value::Text(base) => (None, Some(base.clone())),
            Value::Map(_) => {
                let text = |key: &str| extends.get(key).and_then(Node::scalar);
                (text("file"), text("service"))
            }
            Value::Null | Value::Flag(_) | Value::Integer(_) | Value::Float(_) | Value::List(_) => {
                (None, None)
            }
        };
        let Some(base) = base else {
            return Err(self.error(extends, format!("`{name}` extends no service by name")));
        };
        let mark = format!("{}#{base}", file.as_deref().unwrap_or_default());
        if !seen.insert(mark) || seen.len() > DEPTH_MAX {
            return Err(self.error(
                extends,
                format!("`{name}` extends itself, or too many others"),
            ));
        }
        let other;
        let from = match &file {
            Some(path) => {
                let Some(text) = (self.read)(path) else {
                    let message =
                        format!("`{name}` extends `{base}` of `{path}`, which cannot be read");
                    return Err(self.error(extends, message));
                };
                let source = Source {
                    name: path.clone(),
                    text,
                };
                other = self.file(&source, DEPTH_MAX)?;
                &other
            }
            None => root,
        };
        let below = match self.extended(from, &base, seen)? {
            Some(node) => node,
            None => {
                let found = from
                    .get("services")
                    .and_then(|services| services.get(&base));
                found.cloned().ok_or_else(|| {
                    self.error(
                        extends,
                        format!("`{name}` extends `{base}`, and there is no such service"),
                    )
                })?
            }
        };
        let mut path = vec!["services".to_owned(), name.to_owned()];
        Ok(Some(merge(below, service.clone(), &mut path)))
    }

    fn error(&self, node: &Node, message: impl Into<String>) -> ConvertError {
        let file = self.files.get(node.place.file).map_or("", String::as_str);
        ConvertError::new(file, node.place, message)
    }
}

/// Takes away every text that holds a secret, and leaves its place and the variable's name. Variables of services stay: they
/// become required.
fn hide(node: &mut Node, path: &mut Vec<String>) {
    let is_variable = path.len() > 2 && path[0] == "services" && path[2] == "environment";
    if is_variable {
        return;
    }
    match &mut node.value {
        Value::Text(text) => {
            if node.secret.is_none() && crate::is_credential(text) {
                node.secret = Some(String::new());
            }
            if node.secret.is_some() {
                node.value = Value::Null;
            }
        }
        Value::List(items) => items.iter_mut().for_each(|item| hide(item, path)),
        Value::Map(fields) => {
            for field in fields {
                path.push(field.key.clone());
                hide(&mut field.node, path);
                path.pop();
            }
        }
        Value::Null | Value::Flag(_) | Value::Integer(_) | Value::Float(_) => {}
    }
}

fn included_paths(includes: &Node) -> Vec<String> {
    let mut paths = Vec::new();
    for item in includes.items() {
        match &item.value {
            Value::Text(path) => paths.push(path.clone()),
            Value::Map(_) => {
                let path = item.get("path");
                paths.extend(path.and_then(Node::scalar));
                paths.extend(
                    path.iter()
                        .flat_map(|path| path.items())
                        .filter_map(Node::scalar),
                );
            }
            Value::Null | Value::Flag(_) | Value::Integer(_) | Value::Float(_) | Value::List(_) => {
            }
        }
    }
    paths
}

fn value_mut<'n>(node: &'n mut Node, key: &str) -> Option<&'n mut Value> {
    let Value::Map(fields) = &mut node.value else {
        return None;
    };
    let field = fields.iter_mut().find(|field| field.key == key)?;
    Some(&mut field.node.value)
}

/// Lays one tree over another, by the merge rules of the Compose specification: mappings key by key, lists one after the other,
/// variables and labels by name, volumes and devices by their place in the container, commands and tests as a whole.
pub(super) fn merge(base: Node, over: Node, path: &mut Vec<String>) -> Node {
    let key = path.last().map(String::as_str).unwrap_or_default();
    let in_service = path.len() == 3 && path[0] == "services";
    if over.is_null() {
        return if in_service { over } else { base };
    }
    if (in_service && matches!(key, "command" | "entrypoint")) || key == "test" {
        return over;
    }
    let by_name = matches!(
        key,
        "environment"
            | "labels"
            | "annotations"
            | "args"
            | "sysctls"
            | "extra_hosts"
            | "depends_on"
            | "networks"
    );
    let (base, over) = if by_name && !(base.items().is_empty() && over.items().is_empty()) {
        (as_map(base, key), as_map(over, key))
    } else {
        (base, over)
    };
    let place = over.place;
    match (base.value, over.value) {
        (Value::Map(mut fields), Value::Map(others)) => {
            for other in others {
                path.push(other.key.clone());
                match fields.iter_mut().find(|field| field.key == other.key) {
                    Some(field) => {
                        let below =
                            std::mem::replace(&mut field.node, Node::new(Value::Null, place));
                        field.node = merge(below, other.node, path);
                        field.place = other.place;
                    }
                    None => fields.push(other),
                }
                path.pop();
            }
            Node::new(Value::Map(fields), place)
        }
        (Value::List(mut items), Value::List(others)) => {
            let target = |node: &Node| match key {
                "volumes" | "devices" => container_path(node),
                _ => node.scalar(),
            };
            for other in others {
                let found = target(&other);
                let same = items
                    .iter()
                    .position(|item| found.is_some() && target(item) == found);
                match same {
                    Some(index) => items[index] = other,
                    None => items.push(other),
                }
            }
            Node::new(Value::List(items), place)
        }
        // `env_file`, `dns` and others are one text or several.
        (Value::Text(text), Value::List(mut others))
            if matches!(key, "env_file" | "dns" | "dns_search" | "tmpfs") =>
        {
            others.insert(0, Node::new(Value::Text(text), base.place));
            Node::new(Value::List(others), place)
        }
        (_, value) => Node {
            value,
            place,
            unset: over.unset,
            secret: over.secret,
        },
    }
}

fn container_path(node: &Node) -> Option<String> {
    match &node.value {
        Value::Text(text) => super::volumes::short(text).map(|volume| volume.target),
        Value::Map(_) => node.get("target").and_then(Node::scalar),
        Value::Null | Value::Flag(_) | Value::Integer(_) | Value::Float(_) | Value::List(_) => None,
    }
}

/// `- NAME=value` and `- NAME` as a mapping.
fn as_map(node: Node, key: &str) -> Node {
    let Value::List(items) = node.value else {
        return node;
    };
    let place = node.place;
    let fields = items.into_iter().filter_map(|item| {
        let text = item.scalar()?;
        let separator = if key == "extra_hosts" && !text.contains('=') {
            ':'
        } else {
            '='
        };
        let by_name_alone = matches!(key, "depends_on" | "networks");
        let (name, value) = match text.split_once(separator) {
            Some((name, value)) if !by_name_alone => {
                (name.to_owned(), Value::Text(value.to_owned()))
            }
            _ => (text, Value::Null),
        };
        let place = item.place;
        let node = Node {
            value,
            place,
            unset: item.unset,
            secret: item.secret,
        };
        Some(Field {
            key: name,
            place,
            node,
        })
    });
    Node::new(Value::Map(fields.collect()), place)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loaded(texts: &[&str]) -> Result<Loaded, ConvertError> {
        let sources = texts.iter().enumerate().map(|(index, text)| Source {
            name: format!("{index}.yaml"),
            text: (*text).to_owned(),
        });
        let read = |path: &str| match path {
            "other.yaml" => Some("services:\n  base:\n    image: other\n    cpus: 2\n".to_owned()),
            "loop.yaml" => Some("include: [loop.yaml]\n".to_owned()),
            _ => None,
        };
        load(&sources.collect::<Vec<_>>(), &BTreeMap::new(), &read)
    }

    #[test]
    fn later_files_win_by_the_rules_of_each_key() {
        let loaded = loaded(&[
            "services:\n  web:\n    command: [a, b]\n    environment: [A=1, B=2]\n    ports: ['80:80']\n    volumes: ['a:/x', 'b:/y']\n",
            "services:\n  web:\n    command: [c]\n    environment: {B: 3}\n    ports: ['81:81']\n    volumes: ['c:/x:ro']\n",
        ])
        .unwrap();
        let web = loaded.root.get("services").unwrap().get("web").unwrap();
        assert_eq!(web.get("command").unwrap().items().len(), 1);
        let environment = web.get("environment").unwrap();
        assert_eq!(environment.get("A").unwrap().scalar().unwrap(), "1");
        assert_eq!(environment.get("B").unwrap().scalar().unwrap(), "3");
        assert_eq!(web.get("ports").unwrap().items().len(), 2);
        let volumes = web.get("volumes").unwrap().items();
        let volumes = volumes.iter().filter_map(Node::scalar).collect::<Vec<_>>();
        assert_eq!(volumes, ["c:/x:ro", "b:/y"]);
    }

    #[test]
    fn services_extend_others_here_and_elsewhere() {
        let loaded = loaded(&[
            "services:\n  a: {image: x, tty: true}\n  b: {extends: a, image: y}\n  c: {extends: {file: other.yaml, service: base}, cpus: 1}\n",
        ])
        .unwrap();
        let services = loaded.root.get("services").unwrap();
        assert_eq!(
            services
                .get("b")
                .unwrap()
                .get("image")
                .unwrap()
                .scalar()
                .unwrap(),
            "y"
        );
        assert!(services.get("b").unwrap().get("tty").is_some());
        assert_eq!(
            services
                .get("c")
                .unwrap()
                .get("image")
                .unwrap()
                .scalar()
                .unwrap(),
            "other"
        );
        assert_eq!(
            services
                .get("c")
                .unwrap()
                .get("cpus")
                .unwrap()
                .scalar()
                .unwrap(),
            "1"
        );
    }

    #[test]
    fn circles_end() {
        for text in [
            "services:\n  a: {extends: b}\n  b: {extends: a}\n",
            "services:\n  a: {extends: a}\n",
            "services:\n  a: {extends: nobody}\n",
            "services:\n  a: {extends: {file: none.yaml, service: x}}\n",
            "include: [loop.yaml]\n",
            "include: [none.yaml]\n",
            "[]\n",
        ] {
            assert!(loaded(&[text]).is_err(), "{text}");
        }
    }
}
