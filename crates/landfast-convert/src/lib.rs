//! Other formats to a manifest, and a checked manifest to other formats: Compose files, Kamal's `deploy.yml` and Procfiles come
//! in; a Compose file with nginx in front of it and a Dockerfile go out.
//!
//! Each way keeps a ledger: every key that was read is carried, done by Landfast itself, or named with its place, the reason and
//! what to do instead. Nothing is dropped in silence.
//!
//! This crate knows no file, clock, socket or environment: whoever calls it hands over texts and a way to read further ones, and
//! writes what comes back. It never panics on any text, and never writes a value that looks like a secret.

mod compose;
mod draft;
mod export;
mod interpolate;
mod kamal;
mod ledger;
mod procfile;
mod units;
mod yaml;

use std::{collections::BTreeMap, fmt};

use serde::Serialize;

pub use crate::{
    compose::{ComposeOptions, import_compose},
    draft::NeededSecret,
    export::{
        ExportOptions, ExportedFile,
        dockerfile::{DockerFiles, PROJECT_FILES, ProjectFacts, ProjectKind, dockerfile},
        equivalence::{EQUIVALENCE, Expressed, Gap, Rule, equivalence},
        export_compose,
    },
    kamal::import_kamal,
    ledger::{Fate, Mark},
    procfile::import_procfile,
    yaml::Place,
};

/// A text and what to call it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// As messages name it.
    pub name: String,
    pub text: String,
}

/// How further files are read: `None` where there is none, or it cannot be read as text.
pub type ReadFile<'a> = &'a dyn Fn(&str) -> Option<String>;

/// What became of a file.
#[derive(Debug, Clone)]
pub struct Import {
    /// The text of the manifest, with its reasons as comments.
    pub manifest: String,
    /// The files that were read, in the order of [`Place::file`].
    pub files: Vec<String>,
    /// Every key and value that was read, in the order of the files.
    pub marks: Vec<Mark>,
    /// What was decided, in words.
    pub decisions: Vec<String>,
    /// What must be set before the first deploy.
    pub secrets: Vec<NeededSecret>,
}

impl Import {
    /// Says what a check of the manifest would refuse: an odd file may have values that no reader here weeds out.
    pub(crate) fn checked(mut self) -> Self {
        for one in landfast_spec::check_all(landfast_spec::FILE_NAME, &self.manifest) {
            if one.severity == landfast_spec::Severity::Error {
                self.decisions.push(format!(
                    "`landfast check` refuses line {} of the manifest: {}",
                    one.line, one.message
                ));
            }
        }
        self
    }

    /// What is not in the manifest, and done by nothing.
    pub fn not_carried(&self) -> impl Iterator<Item = &Mark> {
        let marks = self.marks.iter();
        marks.filter(|mark| matches!(mark.fate, Fate::NotCarried { .. }))
    }

    /// The whole report, for `--json`.
    pub fn report(&self) -> serde_json::Value {
        let keys = self.marks.iter().map(|mark| Reported {
            path: &mark.path,
            file: self.files.get(mark.place.file).map_or("", String::as_str),
            line: mark.place.line,
            fate: &mark.fate,
        });
        serde_json::json!({
            "keys": keys.collect::<Vec<_>>(),
            "decisions": self.decisions,
            "secrets": self.secrets,
        })
    }
}

#[derive(Serialize)]
struct Reported<'a> {
    path: &'a str,
    file: &'a str,
    line: u32,
    #[serde(flatten)]
    fate: &'a Fate,
}

/// Why a file cannot be read, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConvertError {
    pub file: String,
    pub place: Place,
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

impl ConvertError {
    pub(crate) fn new(file: &str, place: Place, message: impl Into<String>) -> Self {
        Self {
            file: file.to_owned(),
            place,
            message: message.into(),
            hint: None,
        }
    }

    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        let hint = Some(hint.into());
        Self { hint, ..self }
    }
}

impl fmt::Display for ConvertError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { line, column, .. } = self.place;
        write!(f, "{}:{line}:{column}: {}", self.file, self.message)
    }
}

impl std::error::Error for ConvertError {}

/// The nearest name to a text, other than those that are taken.
pub(crate) fn free_name(text: &str, taken: &BTreeMap<String, String>) -> String {
    let base = slug(text).unwrap_or_else(|| "app".to_owned());
    let mut name = base.clone();
    let mut number = 2;
    while taken.values().any(|other| *other == name) {
        let end = format!("-{number}");
        let room = landfast_types::NAME_LEN_MAX - end.len();
        let base = base.get(..base.len().min(room)).unwrap_or(&base);
        name = format!("{}{end}", base.trim_end_matches('-'));
        number += 1;
    }
    name
}

/// The nearest name to a text, where there is one.
pub(crate) fn slug(text: &str) -> Option<String> {
    let text = text.to_lowercase();
    let mapped = text
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' });
    let mapped = mapped.collect::<String>();
    let start = mapped.find(|c: char| c.is_ascii_lowercase())?;
    let name = &mapped[start..];
    let name = &name[..name.len().min(landfast_types::NAME_LEN_MAX)];
    let name = name.trim_end_matches('-');
    landfast_types::Name::new(name)
        .ok()
        .map(|name| name.as_str().to_owned())
}

/// Names that nearly always hold secrets.
pub(crate) fn names_a_secret(name: &str) -> bool {
    const ENDS: &[&str] = &[
        "PASSWORD",
        "PASSWD",
        "PASS",
        "PWD",
        "SECRET",
        "TOKEN",
        "API_KEY",
        "APIKEY",
        "PRIVATE_KEY",
        "SECRET_KEY",
        "ACCESS_KEY",
        "ENCRYPTION_KEY",
        "MASTER_KEY",
        "APP_KEY",
        "CREDENTIALS",
        "SECRET_KEY_BASE",
        "SALT",
        "DSN",
    ];
    /// What a secret has, a file, or a setting, but is none.
    const PLAIN_ENDS: &[&str] = &[
        "_FILE", "_PATH", "_DIR", "_PORT", "_HOST", "_TIMEOUT", "_TTL", "_VERSION", "_IMAGE",
        "_ENABLED", "_LENGTH",
    ];
    let name = name.to_uppercase();
    let ends = |end: &str| {
        name.strip_suffix(end)
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('_'))
    };
    if name.ends_with("PASSWORD") || name.ends_with("TOKEN") || ENDS.iter().any(|end| ends(end)) {
        return true;
    }
    let is_plain = PLAIN_ENDS.iter().any(|end| name.ends_with(end));
    let name = name.replace("KEYCLOAK", "").replace("PUBLIC_KEY", "");
    let parts = ["SECRET", "TOKEN", "PASS", "KEY", "CREDENTIAL"];
    !is_plain && parts.iter().any(|part| name.contains(part))
}

/// Whether a variable holds a secret, by its name or by its value.
pub(crate) fn looks_secret(name: &str, value: &str) -> bool {
    let switches = ["true", "false", "yes", "no", "on", "off"];
    let is_switch = switches.iter().any(|one| value.eq_ignore_ascii_case(one));
    !value.is_empty() && ((names_a_secret(name) && !is_switch) || is_credential(value))
}

/// Whether a value has the form of a secret: a login in an address, a private key, a token of a well-known service.
pub(crate) fn is_credential(value: &str) -> bool {
    const STARTS: &[&str] = &[
        "sk_live_",
        "sk_test_",
        "rk_live_",
        "whsec_",
        "ghp_",
        "gho_",
        "ghs_",
        "github_pat_",
        "glpat-",
        "xoxb-",
        "xoxp-",
        "AKIA",
        "npm_",
        "SG.",
        "eyJ",
    ];
    let is_token = |start: &&str| value.starts_with(*start) && value.len() >= start.len() + 12;
    let is_key = value.contains("-----BEGIN") && value.contains("PRIVATE KEY");
    has_login(value) || is_key || STARTS.iter().any(is_token)
}

/// Whether a value holds a login with a password: `scheme://user:password@host`.
pub(crate) fn has_login(value: &str) -> bool {
    let Some((_, rest)) = value.split_once("://") else {
        return false;
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let Some((login, _)) = authority.rsplit_once('@') else {
        return false;
    };
    login
        .split_once(':')
        .is_some_and(|(_, password)| !password.is_empty())
}
