//! A manifest before it is written: tables with comments, as TOML.

use std::{collections::BTreeMap, time::Duration};

use landfast_types::format_duration;
use serde::Serialize;

/// A value of TOML.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Toml {
    Text(String),
    Number(u64),
    Flag(bool),
    List(Vec<Self>),
    /// Written in one line.
    Inline(Vec<(String, Self)>),
}

impl Toml {
    pub(crate) fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    pub(crate) fn texts<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> Self {
        let texts = texts.into_iter().map(|text| Self::text(text.as_ref()));
        Self::List(texts.collect())
    }

    fn write(&self) -> String {
        match self {
            Self::Text(text) => quote(text),
            Self::Number(number) => number.to_string(),
            Self::Flag(flag) => flag.to_string(),
            Self::List(items) => {
                let items = items.iter().map(Self::write).collect::<Vec<_>>();
                format!("[{}]", items.join(", "))
            }
            Self::Inline(fields) => {
                let fields = fields
                    .iter()
                    .map(|(name, value)| format!("{} = {}", key(name), value.write()));
                format!("{{ {} }}", fields.collect::<Vec<_>>().join(", "))
            }
        }
    }
}

/// One key with its value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Line {
    pub(crate) key: String,
    pub(crate) value: Toml,
    pub(crate) comment: Option<String>,
}

/// One table.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Table {
    /// Written above it.
    pub(crate) comments: Vec<String>,
    pub(crate) lines: Vec<Line>,
    /// Written below its keys.
    pub(crate) hints: Vec<String>,
    /// Tables below it, such as that of its variables.
    pub(crate) below: Vec<(String, Self)>,
}

impl Table {
    pub(crate) fn set(&mut self, key: &str, value: Toml) -> &mut Line {
        self.lines.retain(|line| line.key != key);
        self.lines.push(Line {
            key: key.to_owned(),
            value,
            comment: None,
        });
        self.lines.last_mut().expect("it was just pushed")
    }

    pub(crate) fn set_text(&mut self, key: &str, text: impl Into<String>) -> &mut Line {
        self.set(key, Toml::Text(text.into()))
    }

    /// Puts a key into an inline table of this one.
    pub(crate) fn set_in(&mut self, table: &str, key: &str, value: Toml) {
        let line = self.lines.iter_mut().find(|line| line.key == table);
        if let Some(Line {
            value: Toml::Inline(fields),
            ..
        }) = line
        {
            fields.retain(|(name, _)| name != key);
            fields.push((key.to_owned(), value));
            return;
        }
        self.set(table, Toml::Inline(vec![(key.to_owned(), value)]));
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.lines.iter().any(|line| line.key == key)
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Toml> {
        let line = self.lines.iter().find(|line| line.key == key)?;
        Some(&line.value)
    }

    pub(crate) fn comment(&mut self, text: impl Into<String>) {
        let text = text.into();
        if !self.comments.contains(&text) {
            self.comments.push(text);
        }
    }

    pub(crate) fn hint(&mut self, text: impl Into<String>) {
        let text = text.into();
        if !self.hints.contains(&text) {
            self.hints.push(text);
        }
    }
}

impl Line {
    pub(crate) fn comment(&mut self, text: impl Into<String>) {
        self.comment = Some(text.into());
    }
}

/// A secret that must be given before the first deploy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NeededSecret {
    pub name: String,
    /// Where it was found; never its value.
    pub found: String,
    /// The command that sets it.
    pub command: String,
}

/// The whole file.
#[derive(Debug, Clone, Default)]
pub(crate) struct Draft {
    pub(crate) app: String,
    /// Above everything.
    pub(crate) head: Vec<String>,
    pub(crate) services: BTreeMap<String, Table>,
    pub(crate) jobs: BTreeMap<String, Table>,
    pub(crate) stores: BTreeMap<String, Table>,
    pub(crate) routes: BTreeMap<String, Table>,
    pub(crate) deploy: Table,
    pub(crate) secrets: BTreeMap<String, NeededSecret>,
}

impl Draft {
    /// Notes a secret that somebody must set.
    pub(crate) fn need_secret(&mut self, name: &str, found: &str, source: Option<&str>) {
        let command = match source {
            Some(path) => format!("landfast secret set {name} < {path}"),
            None => format!("landfast secret set {name}"),
        };
        self.secrets
            .entry(name.to_owned())
            .or_insert_with(|| NeededSecret {
                name: name.to_owned(),
                found: found.to_owned(),
                command,
            });
    }

    /// Takes values away that a store gives by itself: service or job, variable, store.
    pub(crate) fn take_given(&mut self) -> Vec<(String, String, String)> {
        let mut taken = Vec::new();
        let stores = &self.stores;
        for (owner, table) in self.services.iter_mut().chain(&mut self.jobs) {
            let Some(Toml::List(uses)) = table.get("uses").cloned() else {
                continue;
            };
            for store in &uses {
                let Toml::Text(store) = store else { continue };
                let prefix = store.to_uppercase().replace('-', "_");
                let is_redis = stores.get(store).and_then(|store| store.get("engine"))
                    == Some(&Toml::text("redis"));
                let customary = if is_redis {
                    "REDIS_URL"
                } else {
                    "DATABASE_URL"
                };
                for (_, env) in &mut table.below {
                    for name in [format!("{prefix}_URL"), customary.to_owned()] {
                        let has_value = matches!(env.get(&name), Some(Toml::Text(_)));
                        if has_value {
                            env.lines.retain(|line| line.key != name);
                            taken.push((owner.clone(), name, store.clone()));
                        }
                    }
                }
            }
        }
        taken
    }

    /// A rollout has more time than one instance, and one instance more than it must stay ready.
    pub(crate) fn fit_deadlines(&mut self) {
        let read = |deploy: &Table, key: &str, default: u64| match deploy.get(key) {
            Some(Toml::Text(text)) => landfast_types::parse_duration(text).unwrap_or_default(),
            _ => Duration::from_secs(default),
        };
        let min_ready = read(&self.deploy, "min_ready", 10);
        let mut healthy = read(&self.deploy, "healthy_deadline", 300);
        if healthy <= min_ready {
            healthy = min_ready + Duration::from_mins(5);
            self.deploy
                .set_text("healthy_deadline", format_duration(healthy));
        }
        if read(&self.deploy, "progress_deadline", 600) <= healthy {
            self.deploy
                .set_text("progress_deadline", format_duration(healthy * 2));
        }
    }

    pub(crate) fn write(&self) -> String {
        let mut text = String::new();
        for line in &self.head {
            comment(&mut text, line);
        }
        if !self.secrets.is_empty() {
            comment(&mut text, "");
            comment(
                &mut text,
                "Before the first deploy, give these (values are never in this file):",
            );
            for secret in self.secrets.values() {
                comment(&mut text, &format!("  {}", secret.command));
            }
        }
        text.push_str(&format!("\napp = {}\n", quote(&self.app)));
        let groups = [
            ("services", &self.services),
            ("jobs", &self.jobs),
            ("stores", &self.stores),
            ("routes", &self.routes),
        ];
        for (group, tables) in groups {
            for (name, table) in tables {
                write_table(&mut text, &format!("{group}.{name}"), table);
            }
        }
        write_table(&mut text, "deploy", &self.deploy);
        text
    }
}

fn write_table(text: &mut String, name: &str, table: &Table) {
    text.push('\n');
    for line in &table.comments {
        comment(text, line);
    }
    text.push_str(&format!("[{name}]\n"));
    let width = table.lines.iter().map(|line| line.key.len()).max();
    let width = width.unwrap_or_default().min(16);
    for line in &table.lines {
        let written = format!("{:width$} = {}", key(&line.key), line.value.write());
        let note = line.comment.as_deref().unwrap_or_default();
        let note = one_line(note);
        text.push_str(&written);
        if !note.is_empty() {
            text.push_str("   # ");
            text.push_str(&note);
        }
        text.push('\n');
    }
    for line in &table.hints {
        comment(text, line);
    }
    for (below, table) in &table.below {
        if !table.lines.is_empty() {
            write_table(text, &format!("{name}.{below}"), table);
        }
    }
}

/// Writes comment lines of at most about 110 characters.
fn comment(text: &mut String, line: &str) {
    let line = line.replace(|c: char| c.is_control(), " ");
    let (indent, mut current) = (line.len() - line.trim_start().len(), String::new());
    let lead = " ".repeat(indent);
    for word in line.split_whitespace() {
        if !current.is_empty() && current.len() + word.len() > 110 {
            text.push_str(&format!("# {lead}{current}\n"));
            current.clear();
        }
        if !current.is_empty() {
            current.push(' ');
        }
        current.push_str(word);
    }
    let last = format!("# {lead}{current}");
    text.push_str(last.trim_end());
    text.push('\n');
}

fn one_line(text: &str) -> String {
    text.replace(|c: char| c.is_control(), " ")
}

/// A key, in quotes where it needs them.
pub(crate) fn key(name: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if !name.is_empty() && name.chars().all(bare) {
        return name.to_owned();
    }
    quote(name)
}

/// A TOML string. JSON's escapes are TOML's, but for DEL.
pub(crate) fn quote(text: &str) -> String {
    let json = serde_json::Value::from(text).to_string();
    json.replace('\u{7f}', "\\u007F")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_text_reads_back_as_it_was() {
        for text in ["a\"b\\c\n\t\u{7f}\u{1}é🦀", "", "'''", "#"] {
            let toml = format!("a = {}", quote(text));
            let table = toml.parse::<toml::Table>().unwrap();
            assert_eq!(table["a"].as_str().unwrap(), text);
        }
    }

    #[test]
    fn tables_are_written_with_their_reasons() {
        let mut draft = Draft {
            app: "shop".to_owned(),
            head: vec!["Head.".to_owned()],
            ..Draft::default()
        };
        draft.need_secret("KEY", "web", None);
        let mut web = Table::default();
        web.comment("Why\nso.");
        web.set_text("image", "a:1").comment("pinned");
        web.set_in("resources", "cpu", Toml::text("500m"));
        web.set_in("resources", "memory", Toml::text("1MiB"));
        draft.services.insert("web".to_owned(), web);
        let text = draft.write();
        let table = text.parse::<toml::Table>().unwrap();
        assert_eq!(
            table["services"]["web"]["resources"]["cpu"].as_str(),
            Some("500m")
        );
        assert!(text.contains("# Why so.\n[services.web]\n"), "{text}");
        assert!(text.contains("landfast secret set KEY"), "{text}");
    }
}
