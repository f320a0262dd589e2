//! Walks the whole file, overlays included, against the catalogue: unknown keys, keys of later parts, and
//! values that cannot be read by themselves. What depends on several values is not looked at here.

use std::ops::Range;

use landfast_types::ImageReference;

use crate::{
    catalogue::{Key, Kind, child, suggestion},
    code::Code,
    diagnostic::{Problem, Sink},
    leaf::{
        self, bad_name,
        guard::{field_problem, is_field_value},
        wrong_type,
    },
    tree::{Entry, Node, Table, Value},
};

/// Reports everything that is wrong with single keys and values.
pub(crate) fn check(root: &Table, sink: &Sink) {
    Walk {
        sink,
        in_overlay: false,
    }
    .table("", "", root);
}

/// Most services, jobs or routes of an app. What looks at pairs of them stays fast below it.
pub(crate) const TABLES_MAX: usize = 1_000;

struct Walk<'a> {
    sink: &'a Sink,
    in_overlay: bool,
}

impl Walk<'_> {
    /// `pattern` is the table's path in the catalogue, `place` the one in the file.
    fn table(&self, pattern: &str, place: &str, table: &Table) {
        for (name, entry) in table {
            let key = child(pattern, name).filter(|key| !(self.in_overlay && is_for_all(key)));
            match key {
                Some(key) => self.value(key, &join(place, name), name, entry),
                None => self.unknown(pattern, place, name, &entry.key_span),
            }
        }
    }

    fn unknown(&self, pattern: &str, place: &str, name: &str, span: &Range<usize>) {
        let place = match place {
            "" if self.in_overlay => "in an environment".to_owned(),
            "" => "at the top of the file".to_owned(),
            place => format!("in `[{place}]`"),
        };
        let problem = Problem::new(
            Code::UnknownKey,
            span.clone(),
            format!("unknown key `{name}` {place}"),
        );
        let is_for_all =
            self.in_overlay && pattern.is_empty() && matches!(name, "app" | "environments");
        self.sink.report(if is_for_all {
            problem.help(format!("`{name}` is the same for all environments"))
        } else {
            problem.help_if(suggestion(pattern, name))
        });
    }

    fn value(&self, key: &'static Key, place: &str, name: &str, entry: &Entry) {
        if let Some(until_then) = key.later {
            let message = format!("not yet: `{name}` comes with a later version");
            let problem = Problem::new(Code::NotYet, entry.key_span.clone(), message);
            return self.sink.report(
                problem
                    .label(key.doc.trim_end_matches('.'))
                    .help(until_then),
            );
        }
        if !key.kind.is_table() {
            leaf::read(key, name, &entry.node, self.sink);
            return;
        }
        if key.kind == Kind::Build && entry.node.value.as_table().is_none() {
            let path = Key {
                kind: Kind::ArtifactPath,
                ..*key
            };
            leaf::read(&path, name, &entry.node, self.sink);
            return;
        }
        let Value::Table(table) = &entry.node.value else {
            return self.sink.report(not_a_table(key, name, &entry.node));
        };
        if matches!(key.kind, Kind::Tables | Kind::Secrets | Kind::Registries) {
            self.tables(key, place, table);
        } else if key.kind == Kind::Variables {
            self.variables(key, place, table);
        } else if key.kind == Kind::Volumes {
            self.volumes(key, place, table);
        } else if key.kind == Kind::Fields {
            self.fields(table);
        } else if key.kind == Kind::Settings {
            self.settings(table);
        } else if key.kind == Kind::BuildArguments {
            self.arguments(table);
        } else if key.kind == Kind::Overlays {
            self.overlays(table);
        } else {
            self.table(key.path, place, table);
        }
    }

    fn tables(&self, key: &Key, place: &str, table: &Table) {
        let pattern = format!("{}.*", key.path);
        let what = format!("a {}", key.name().trim_end_matches('s'));
        if table.len() > TABLES_MAX
            && let Some((name, entry)) = table.iter().nth(TABLES_MAX)
        {
            let message = format!(
                "`{}` has {} tables; it has at most {TABLES_MAX}",
                key.name(),
                table.len()
            );
            let problem = Problem::new(Code::OutOfRange, entry.key_span.clone(), message);
            self.sink.report(
                problem
                    .label(format!("from `{name}` on"))
                    .help("make it several apps"),
            );
        }
        for (name, entry) in table {
            let problem = if matches!(key.kind, Kind::Secrets) {
                variable_name_problem(name, &entry.key_span)
            } else if matches!(key.kind, Kind::Registries) {
                registry_problem(name, &entry.key_span)
            } else {
                bad_name(&what, name, entry.key_span.clone())
            };
            if let Some(problem) = problem {
                self.sink.report(problem);
            }
            if let Some(inner) = entry.node.value.as_table() {
                self.table(&pattern, &join(place, name), inner);
            } else {
                let help = format!(
                    "write [{}.NAME] on a line of its own, and its keys below",
                    key.name()
                );
                let name = format!("{}.{name}", key.name());
                self.sink
                    .report(wrong_type(&name, &entry.node, "a table", Some(help)));
            }
        }
    }

    fn variables(&self, key: &Key, place: &str, table: &Table) {
        let pattern = format!("{}.*", key.path);
        for (name, entry) in table {
            if let Some(problem) = variable_name_problem(name, &entry.key_span) {
                self.sink.report(problem);
            }
            if let Some(inner) = entry.node.value.as_table() {
                self.table(&pattern, &join(place, name), inner);
            } else {
                let scalar = child(&pattern, "value").expect("the catalogue has it");
                leaf::read(scalar, name, &entry.node, self.sink);
            }
        }
    }

    fn volumes(&self, key: &Key, place: &str, table: &Table) {
        let pattern = format!("{}.*", key.path);
        for (name, entry) in table {
            if let Some(problem) = bad_name("a volume", name, entry.key_span.clone()) {
                self.sink.report(problem);
            }
            if let Some(inner) = entry.node.value.as_table() {
                self.table(&pattern, &join(place, name), inner);
            } else {
                let from = child(&pattern, "from").expect("the catalogue has it");
                leaf::read(from, name, &entry.node, self.sink);
            }
        }
    }

    fn arguments(&self, table: &Table) {
        for (name, entry) in table {
            let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
            if name.is_empty()
                || name.starts_with(|c: char| c.is_ascii_digit())
                || !name.chars().all(is_word)
            {
                let message = format!("`{name}` cannot name an argument of a build");
                let problem = Problem::new(Code::BadName, entry.key_span.clone(), message);
                let help = "use letters, digits and `_`, not starting with a digit";
                self.sink.report(problem.help(help));
            }
            let read = leaf::read_scalar(name, &entry.node, self.sink);
            if read.is_some_and(|scalar| scalar.text.contains('\0')) {
                let message = format!("`{name}` holds a NUL character");
                let problem = Problem::new(Code::BadValue, entry.node.span.clone(), message);
                self.sink.report(problem);
            }
        }
    }

    fn fields(&self, table: &Table) {
        for (name, entry) in table {
            let problem = field_problem(name, entry.key_span.clone(), true);
            let span = entry.node.span.clone();
            let problem = problem.or_else(|| match entry.node.value.as_text() {
                Some(text) if is_field_value(text) => None,
                Some(_) => {
                    let message = format!("`{name}` cannot stand in a header");
                    let help = "one line of printable ASCII, without blanks around it";
                    Some(Problem::new(Code::BadValue, span, message).help(help))
                }
                None => Some(wrong_type(name, &entry.node, "text in quotes", None)),
            });
            if let Some(problem) = problem {
                self.sink.report(problem);
            }
        }
    }

    fn settings(&self, table: &Table) {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_.-".contains(c);
        for (name, entry) in table {
            if !name.starts_with(|c: char| c.is_ascii_lowercase()) || !name.chars().all(fits) {
                let message = format!("`{name}` cannot name a setting");
                let problem = Problem::new(Code::BadName, entry.key_span.clone(), message);
                let help = "use `a` to `z`, `0` to `9`, `_`, `.` and `-`, starting with a letter";
                self.sink.report(problem.help(help));
            }
            let read = leaf::read_scalar(name, &entry.node, self.sink);
            if read.is_some_and(|scalar| scalar.text.contains(char::is_control)) {
                let message = format!("`{name}` must be on one line");
                let problem = Problem::new(Code::BadValue, entry.node.span.clone(), message);
                self.sink.report(problem);
            }
        }
    }

    fn overlays(&self, table: &Table) {
        for (name, entry) in table {
            if let Some(problem) = bad_name("an environment", name, entry.key_span.clone()) {
                self.sink.report(problem);
            }
            if let Some(inner) = entry.node.value.as_table() {
                Walk {
                    sink: self.sink,
                    in_overlay: true,
                }
                .table("", "", inner);
            } else {
                let help =
                    format!("write [environments.{name}] on a line of its own, and its keys below");
                let name = format!("environments.{name}");
                self.sink
                    .report(wrong_type(&name, &entry.node, "a table", Some(help)));
            }
        }
    }
}

pub(crate) fn join(place: &str, name: &str) -> String {
    if place.is_empty() {
        name.to_owned()
    } else {
        format!("{place}.{name}")
    }
}

/// Keys that an environment cannot change.
fn is_for_all(key: &Key) -> bool {
    matches!(key.path, "app" | "environments")
}

fn not_a_table(key: &Key, name: &str, node: &Node) -> Problem {
    let help = match (&node.value, key.kind) {
        (Value::List(_), Kind::Tables | Kind::Secrets | Kind::Registries) => Some(format!(
            "each has a name of its own: write [{name}.NAME] instead of [[{name}]]"
        )),
        (Value::Text(text), _) if key.path == "services.*.health" => {
            Some(format!("write health = {{ ready = {text:?} }}"))
        }
        _ if key.example.is_empty() => Some(format!("write [{name}] on a line of its own")),
        _ => Some(format!("for example {name} = {}", key.example)),
    };
    wrong_type(name, node, "a table", help)
}

/// Whether Landfast itself sets a variable for each instance, so that nobody else may.
pub fn is_reserved_variable(name: &str) -> bool {
    matches!(name, "PORT" | "HOST") || name.starts_with("VOLUME_")
}

/// The host of a registry is what stands before an image's name.
fn registry_problem(name: &str, span: &Range<usize>) -> Option<Problem> {
    let read = format!("{name}/x").parse::<ImageReference>();
    if read.is_ok_and(|reference| reference.registry() == name) {
        return None;
    }
    let message = format!("`{name}` is not the host of a registry");
    let problem = Problem::new(Code::BadName, span.clone(), message);
    Some(problem.help("for example [registries.\"ghcr.io\"] or [registries.\"localhost:5000\"]"))
}

fn variable_name_problem(name: &str, span: &Range<usize>) -> Option<Problem> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty()
        || name.starts_with(|c: char| c.is_ascii_digit())
        || !name.chars().all(is_word)
    {
        let message = format!("`{name}` cannot name a variable");
        let better = name.replace(|c| !is_word(c), "_").to_uppercase();
        let problem = Problem::new(Code::BadName, span.clone(), message);
        let usable = better.starts_with(|c: char| c.is_ascii_alphabetic());
        return Some(problem.help_if(usable.then(|| format!("write `{better}`"))));
    }
    if is_reserved_variable(name) {
        let message = format!("`{name}` is set by Landfast for each instance");
        return Some(
            Problem::new(Code::ReservedEnv, span.clone(), message)
                .help("remove it, or choose another name"),
        );
    }
    None
}
