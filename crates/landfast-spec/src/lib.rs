//! The manifest: from the text of `landfast.toml` to a checked [`AppSpec`] for one environment, and to every
//! problem in it at once, each with its line, its reason and what to do.
//!
//! The way of a file: `tree` reads TOML and goes on after a broken line; `shape` holds every key and value,
//! overlays included, against the `catalogue`; `overlay` lays one environment over the file; `decode` makes
//! the typed spec; `check` looks at what reaches across tables. The JSON Schema, the reference pages and the
//! decoder all read the same catalogue and the same `defaults`, so none can say what another does not do.
//!
//! This crate knows no file, clock or socket: text comes in, values go out. It never panics on any text. It
//! never looks whether an artifact, a certificate or a host exists; that is the business of preflight.

mod backup;
mod catalogue;
mod check;
mod code;
mod container;
mod cursor;
mod decode;
pub mod defaults;
mod delivery;
mod diagnostic;
mod guard;
mod leaf;
mod overlay;
mod public;
mod reference;
mod render;
mod sandbox;
mod scaffold;
mod schedule;
mod schema;
mod shape;
mod spec;
mod store;
mod tree;

use std::collections::BTreeSet;

use landfast_types::EnvironmentName;

pub use crate::{
    backup::{BackupSpec, CheckSpec, DrillSpec, OnWalLimit, RepositorySpec, VolumeSpec},
    catalogue::{CATALOGUE, ENV_TYPES, GATES_LATER, Key, Kind},
    code::Code,
    container::{
        BuildSpec, CAPABILITIES, ContainerSpec, ImageSource, Pull, RegistrySpec, ReserveSpec,
    },
    delivery::SecretDelivery,
    diagnostic::{Diagnostic, Severity},
    public::is_public_host,
    reference::{defaults_markdown, reference_markdown},
    render::{Style, render, render_json, summary},
    sandbox::SandboxSpec,
    scaffold::{FOLDER_FILES, FolderFacts, scaffold},
    schedule::{CronError, CronLine},
    schema::json_schema,
    shape::is_reserved_variable,
    spec::{
        ALPHABETS, AppSpec, AuthSpec, CorsSpec, CountBySpec, DeploySpec, Engine, EnvType, EnvVar,
        FieldRulesSpec, FilesSpec, Gate, HealthSpec, JobSpec, MissingFile, Part, Place, Probe,
        Protocol, QuotaSpec, RateSpec, ResourcesSpec, RouteLimitsSpec, RouteSpec,
        RouteTimeoutsSpec, SecretSpec, SecuritySpec, ServiceSpec, Share, StoreSpec, Strategy,
        SyntheticProbe, TlsSpec, Volume, When,
    },
    store::{PoolSpec, Rehearsal, StoreKind, injected_variables, is_kept_setting},
};
use crate::{
    cursor::Cursor,
    diagnostic::{Broken, Problem, Sink, finish},
    tree::Table,
};

/// The name of the file.
pub const FILE_NAME: &str = "landfast.toml";

/// The environment of a file that names none.
pub const ENVIRONMENT_DEFAULT: &str = "production";

/// More environments than this are not looked at together.
const ENVIRONMENTS_MAX: usize = 100;

/// A larger file is refused unread.
pub const TEXT_BYTES_MAX: usize = 1 << 20;

/// What became of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    /// There exactly when no diagnostic is an error.
    pub spec: Option<AppSpec>,
    /// In order of place.
    pub diagnostics: Vec<Diagnostic>,
}

impl Parsed {
    /// Whether something is wrong enough to refuse the file.
    pub fn has_errors(&self) -> bool {
        has_errors(&self.diagnostics)
    }
}

/// Reads a manifest for one environment. Nothing is known about secrets, so variables that are required may
/// still lack a value ([`EnvVar::required`]).
pub fn parse(file_name: &str, text: &str, environment: &EnvironmentName) -> Parsed {
    parse_for(file_name, text, environment, None)
}

/// The same with the names of the secrets the environment has: a variable that is both is refused, and so is a
/// required one that is neither.
pub fn parse_with_secrets(
    file_name: &str,
    text: &str,
    environment: &EnvironmentName,
    secrets: &BTreeSet<String>,
) -> Parsed {
    parse_for(file_name, text, environment, Some(secrets))
}

/// All problems of a file in all of its environments, each once.
pub fn check_all(file_name: &str, text: &str) -> Vec<Diagnostic> {
    let mut diagnostics = Vec::<Diagnostic>::new();
    for environment in environments(text).into_iter().take(ENVIRONMENTS_MAX) {
        let found = parse(file_name, text, &environment).diagnostics;
        let new = found
            .into_iter()
            .filter(|one| !diagnostics.contains(one))
            .collect::<Vec<_>>();
        diagnostics.extend(new);
    }
    diagnostics.sort_by_key(|one| (one.span.start, one.span.end, one.code));
    diagnostics
}

/// The environments of a file, in order of name: those it has a table for, else [`ENVIRONMENT_DEFAULT`] alone.
/// Names that are not allowed are left out.
pub fn environments(text: &str) -> Vec<EnvironmentName> {
    let (root, _) = read(text, &Sink::default());
    let names = overlay::names(&root);
    let named = names
        .keys()
        .filter_map(|name| EnvironmentName::new(name).ok())
        .collect::<Vec<_>>();
    if named.is_empty() {
        return EnvironmentName::new(ENVIRONMENT_DEFAULT)
            .into_iter()
            .collect();
    }
    named
}

fn parse_for(
    file: &str,
    text: &str,
    environment: &EnvironmentName,
    secrets: Option<&BTreeSet<String>>,
) -> Parsed {
    let (sink, silent) = (Sink::default(), Sink::default());
    let (root, broken) = read(text, &sink);
    let spec = (text.len() <= TEXT_BYTES_MAX)
        .then(|| {
            shape::check(&root, &sink);
            check_environment(&root, environment, &sink);
            let merged = overlay::merge(&root, environment.as_str());
            let cursor = Cursor::root(&merged, &sink, &silent);
            check::check(&cursor);
            // Each mistake is reported once: what both passes see is the same problem at the same place.
            decode::app(&cursor, environment, secrets)
        })
        .flatten();
    let diagnostics = finish(file, text, sink.take(), &broken);
    let spec = spec.filter(|_| !has_errors(&diagnostics) && broken.lines.is_empty());
    Parsed { spec, diagnostics }
}

fn read(text: &str, sink: &Sink) -> (Table, Broken) {
    if text.len() > TEXT_BYTES_MAX {
        let message = format!(
            "the file has {} bytes; it may have {TEXT_BYTES_MAX}",
            text.len()
        );
        sink.report(Problem::new(Code::TooLarge, 0..0, message));
        return (Table::new(), Broken::default());
    }
    tree::read(text, sink)
}

fn check_environment(root: &Table, environment: &EnvironmentName, sink: &Sink) {
    let names = overlay::names(root);
    if names.contains_key(environment.as_str())
        || (names.is_empty() && environment.as_str() == ENVIRONMENT_DEFAULT)
    {
        return;
    }
    let span = root
        .get("environments")
        .map_or(0..0, |entry| entry.key_span.clone());
    let message = format!("the file has no environment `{environment}`");
    let known = || names.keys().copied();
    let help = match catalogue::closest(environment.as_str(), known()) {
        Some(best) => format!("did you mean `{best}`? Or add [environments.{environment}]"),
        None if names.is_empty() => {
            format!(
                "it has only `{ENVIRONMENT_DEFAULT}`; add [environments.{environment}], which may be empty"
            )
        }
        None => {
            let known = known().collect::<Vec<_>>().join(", ");
            format!("it has {known}; add [environments.{environment}], which may be empty")
        }
    };
    sink.report(Problem::new(Code::UnknownEnvironment, span, message).help(help));
}

fn has_errors(diagnostics: &[Diagnostic]) -> bool {
    diagnostics
        .iter()
        .any(|one| one.severity == Severity::Error)
}
