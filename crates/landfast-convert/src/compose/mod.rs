//! A Compose file becomes a manifest. Each service has a role first (a service, a job, a store, a proxy that is not needed, or
//! nothing that runs), then each of its keys is carried or named.

mod env;
mod health;
mod load;
mod mounts;
mod nginx_conf;
mod other;
mod ports;
mod proxy;
mod publish;
mod secrets;
mod service;
mod store;
mod top;
mod volumes;

use std::collections::{BTreeMap, BTreeSet};

use landfast_spec::Engine;

pub(crate) use self::{
    mounts::is_mount_target,
    publish::{is_host, is_request_path, is_route_path},
    service::{inner_path, is_variable},
};
use crate::{
    ConvertError, Import, ReadFile, Source,
    draft::{Draft, Table, Toml},
    free_name,
    interpolate::Origin,
    ledger::{At, Fate, Ledger, Mark},
    slug,
    yaml::Node,
};

/// What is imported, and how.
pub struct ComposeOptions<'a> {
    /// Laid over one another in this order.
    pub sources: &'a [Source],
    /// The variables of the caller; they win over `.env`.
    pub environment: &'a BTreeMap<String, String>,
    /// The profiles that are active; `*` is all.
    pub profiles: &'a [String],
    /// The name of the folder, for the app's.
    pub folder: &'a str,
    /// The app's name in place of the file's.
    pub app: Option<&'a str>,
    /// Reads `.env`, `env_file`, what is extended or included, and the configuration of a proxy; paths are as the file has them.
    pub read: ReadFile<'a>,
}

/// What a service of the file becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Service,
    Job,
    Store(Engine),
    /// Landfast's own proxy does what it did.
    Proxy,
    /// It does not run: its profile is not active, or it has no replicas.
    Inactive,
}

/// A port that is reached from outside.
#[derive(Debug, Clone)]
pub(super) struct Published {
    /// The name in the manifest.
    pub(super) service: String,
    pub(super) published: Option<u16>,
    pub(super) loopback: bool,
    /// Host and path, where the file says them.
    pub(super) hosts: Vec<(String, String)>,
    pub(super) line: u32,
}

pub(super) struct Converter<'a> {
    pub(super) ledger: Ledger,
    pub(super) draft: Draft,
    pub(super) decisions: Vec<String>,
    pub(super) roles: BTreeMap<String, Role>,
    /// Names of services in the file to names in the manifest.
    pub(super) names: BTreeMap<String, String>,
    /// The same of volumes.
    pub(super) volumes: BTreeMap<String, String>,
    /// The same of secrets.
    pub(super) secrets: BTreeMap<String, String>,
    pub(super) published: Vec<Published>,
    /// `after` so far, so that no circle is written.
    pub(super) after: BTreeMap<String, BTreeSet<String>>,
    pub(super) read: ReadFile<'a>,
    pub(super) variables: &'a BTreeMap<String, String>,
    pub(super) app: String,
}

/// Imports Compose files.
///
/// # Errors
/// When a text is no YAML or no Compose file, with the place.
pub fn import_compose(options: &ComposeOptions<'_>) -> Result<Import, ConvertError> {
    let loaded = load::load(options.sources, options.environment, options.read)?;
    let root = At::root(&loaded.root);
    let services = root
        .get("services")
        .filter(|at| at.node.is_map() && !at.node.fields().is_empty());
    let Some(services) = services else {
        let file = loaded.files.first().map_or("", String::as_str);
        let error = ConvertError::new(file, root.place, "there is no service in it");
        return Err(error.hint("a Compose file has `services:` at its top, with a mapping below"));
    };
    let named = options
        .app
        .map(str::to_owned)
        .or_else(|| root.get("name")?.text());
    let named = named.or_else(|| loaded.variables.get("COMPOSE_PROJECT_NAME").cloned());
    let app = named
        .as_deref()
        .and_then(slug)
        .or_else(|| slug(options.folder));
    let app = app.unwrap_or_else(|| "app".to_owned());
    let mut converter = Converter {
        ledger: Ledger::default(),
        draft: Draft {
            app: app.clone(),
            ..Draft::default()
        },
        decisions: loaded.notes,
        roles: BTreeMap::new(),
        names: BTreeMap::new(),
        volumes: BTreeMap::new(),
        secrets: BTreeMap::new(),
        published: Vec::new(),
        after: BTreeMap::new(),
        read: options.read,
        variables: &loaded.variables,
        app,
    };
    converter.choose_roles(&services, options.profiles);
    converter.name_volumes(&root);
    converter.top(&root);
    for (name, at) in services.fields() {
        converter.one(name, &at);
    }
    converter.routes();
    converter.variables_used(&loaded.used);
    let files = loaded.files;
    if converter.draft.services.is_empty() && converter.draft.jobs.is_empty() {
        let file = files.first().map_or("", String::as_str);
        let error = ConvertError::new(
            file,
            services.place,
            "none of its services becomes a service or job",
        );
        return Err(error.hint("stores, proxies and services of other profiles alone are no app: `--profile NAME` or `--profile '*'`"));
    }
    converter.draft.fit_deadlines();
    for (owner, name, store) in converter.draft.take_given() {
        let original = converter.names.iter().find(|(_, own)| **own == owner);
        let original = original.map_or(owner.as_str(), |(original, _)| original);
        let prefix = format!("services.{original}.");
        converter.ledger.given(&prefix, &name, &store);
    }
    converter.ledger.cover(&root, false);
    converter.hidden(&root);
    Ok(converter.finish(files, &services).checked())
}

impl Converter<'_> {
    pub(super) fn decide(&mut self, text: impl Into<String>) {
        let text = text.into();
        if !self.decisions.contains(&text) {
            self.decisions.push(text);
        }
    }

    /// Names every text that was taken away for the secret in it.
    fn hidden(&mut self, at: &At<'_>) {
        if let Some(name) = at.node.secret.as_deref().filter(|_| at.node.is_null()) {
            let (reason, instead) = secret_words(name);
            self.ledger.not_carried(at, reason, instead);
        }
        for at in at.fields().map(|(_, at)| at).chain(at.items()) {
            self.hidden(&at);
        }
    }

    fn choose_roles(&mut self, services: &At<'_>, profiles: &[String]) {
        let mut waited_for = BTreeSet::new();
        for (_, at) in services.fields() {
            for (name, condition) in at.get("depends_on").iter().flat_map(At::fields) {
                let condition = condition.get("condition").and_then(|at| at.text());
                if condition.as_deref() == Some("service_completed_successfully") {
                    waited_for.insert(name.to_owned());
                }
            }
        }
        // Who has a name that can stay keeps it.
        let exact = services
            .fields()
            .filter(|(name, _)| slug(name).as_deref() == Some(*name));
        self.names
            .extend(exact.map(|(name, _)| (name.to_owned(), name.to_owned())));
        for (name, at) in services.fields() {
            let role = match at.node.is_map() {
                true => role(&at, waited_for.contains(name), profiles),
                false => Role::Inactive,
            };
            self.roles.insert(name.to_owned(), role);
            let free = match self.names.get(name) {
                Some(own) => own.clone(),
                None => free_name(name, &self.names),
            };
            if free != name && role != Role::Inactive && role != Role::Proxy {
                self.decide(format!(
                    "`{name}` is called `{free}`, and other services reach it by that name"
                ));
            }
            self.names.insert(name.to_owned(), free);
        }
    }

    fn one(&mut self, name: &str, at: &At<'_>) {
        if !at.node.is_map() {
            self.ledger.wrong(at, "a mapping");
            return;
        }
        let role = self.roles.get(name).copied().unwrap_or(Role::Service);
        let own = self.names.get(name).cloned().unwrap_or_default();
        match role {
            Role::Service | Role::Job => {
                let is_job = role == Role::Job;
                let table = self.service(name, &own, at, is_job);
                let tables = if is_job {
                    &mut self.draft.jobs
                } else {
                    &mut self.draft.services
                };
                tables.insert(own, table);
            }
            Role::Store(engine) => {
                let table = self.store(name, at, engine);
                self.draft.stores.insert(own, table);
            }
            Role::Proxy => self.proxy(name, at),
            Role::Inactive => {
                let none = at.find("deploy.replicas").or_else(|| at.get("scale"));
                let (reason, instead) = match none.and_then(|at| at.text()).as_deref() {
                    Some("0") => (
                        "it has no replicas".to_owned(),
                        "write it by hand when it is to run".to_owned(),
                    ),
                    _ => {
                        let profiles = at.get("profiles").map(|at| at.texts()).unwrap_or_default();
                        let profiles = profiles
                            .into_iter()
                            .map(|(text, _)| text)
                            .collect::<Vec<_>>();
                        let first = profiles.first().cloned().unwrap_or_default();
                        (
                            format!(
                                "none of its profiles ({}) was asked for",
                                profiles.join(", ")
                            ),
                            format!("import it with `--profile {first}`"),
                        )
                    }
                };
                self.ledger.not_carried(at, reason, instead);
            }
        }
    }

    fn variables_used(&mut self, used: &BTreeMap<String, Origin>) {
        let list = |origin: Origin| {
            let names = used.iter().filter(|(_, one)| **one == origin);
            names
                .map(|(name, _)| format!("`{name}`"))
                .collect::<Vec<_>>()
                .join(", ")
        };
        let secrets = list(Origin::Secret);
        if !secrets.is_empty() {
            self.decide(format!(
                "{secrets}: they look like secrets, so nothing that holds their values was written"
            ));
        }
        let given = list(Origin::Given);
        if !given.is_empty() {
            self.decide(format!(
                "a manifest has no variables of the shell: the values of {given} in `.env` or the environment were written; environments differ by [environments.NAME]"
            ));
        }
        let defaults = list(Origin::Default);
        if !defaults.is_empty() {
            self.decide(format!(
                "{defaults} had no value, so what the file gives in their place was written"
            ));
        }
        let unset = list(Origin::Unset);
        if !unset.is_empty() {
            self.decide(format!("{unset} had no value: empty where a text was, required where a variable of a service was"));
        }
    }

    fn finish(mut self, files: Vec<String>, services: &At<'_>) -> Import {
        if !self.draft.deploy.has("strategy") {
            let mut deploy = std::mem::take(&mut self.draft.deploy);
            deploy.lines.insert(
                0,
                crate::draft::Line {
                    key: "strategy".to_owned(),
                    value: Toml::text("rolling"),
                    comment: Some("rolling | blue-green | canary | recreate".to_owned()),
                },
            );
            self.draft.deploy = deploy;
        }
        let marks = self.ledger.into_marks();
        let not_carried = marks
            .iter()
            .filter(|mark| matches!(mark.fate, Fate::NotCarried { .. }));
        let not_carried = not_carried.collect::<Vec<_>>();
        let from = files.join(", ");
        self.draft.head = vec![
            format!("Written by `landfast import compose` from {from}."),
            "`landfast check` reads it, `landfast plan` says what a deploy would do. Every key: docs/reference/manifest.md".to_owned(),
        ];
        if !self.decisions.is_empty() {
            self.draft.head.push(String::new());
            self.draft.head.push("What was decided:".to_owned());
            let lines = self.decisions.iter().map(|text| format!("  - {text}"));
            self.draft.head.extend(lines);
        }
        let mut elsewhere = Vec::new();
        for mark in &not_carried {
            let line = note(mark, &files);
            match table_of(&mut self.draft, &self.names, services, &mark.path) {
                Some(table) => table.hint(format!("not carried: {line}")),
                None => elsewhere.push(format!("  - {line}")),
            }
        }
        if !elsewhere.is_empty() {
            self.draft.head.push(String::new());
            self.draft
                .head
                .push("Not carried, and no part of a table below:".to_owned());
            self.draft.head.extend(elsewhere);
        }
        Import {
            manifest: self.draft.write(),
            files,
            secrets: self.draft.secrets.values().cloned().collect(),
            decisions: self.decisions,
            marks,
        }
    }
}

fn note(mark: &Mark, files: &[String]) -> String {
    let Fate::NotCarried { reason, instead } = &mark.fate else {
        return String::new();
    };
    let file = match files.len() {
        0 | 1 => String::new(),
        _ => format!("{}:", files.get(mark.place.file).map_or("", String::as_str)),
    };
    format!(
        "{} ({file}line {}): {reason}; {instead}",
        mark.path, mark.place.line
    )
}

/// The table that a key of a service is about.
fn table_of<'d>(
    draft: &'d mut Draft,
    names: &BTreeMap<String, String>,
    services: &At<'_>,
    path: &str,
) -> Option<&'d mut Table> {
    let rest = path.strip_prefix("services.")?;
    // A service's name may hold dots.
    let mut known = services.fields().map(|(name, _)| name);
    let name = known.find(|name| {
        rest.strip_prefix(name)
            .is_some_and(|rest| rest.starts_with('.'))
    })?;
    let own = names.get(name)?;
    let Draft {
        services,
        jobs,
        stores,
        ..
    } = draft;
    services
        .get_mut(own)
        .or(jobs.get_mut(own))
        .or(stores.get_mut(own))
}

fn role(at: &At<'_>, waited_for: bool, active: &[String]) -> Role {
    let profiles = at.get("profiles").map(|at| at.texts()).unwrap_or_default();
    let is_active = |profile: &String| active.iter().any(|one| one == profile || one == "*");
    if !profiles.is_empty() && !profiles.iter().any(|(profile, _)| is_active(profile)) {
        return Role::Inactive;
    }
    let replicas = at.find("deploy.replicas").or_else(|| at.get("scale"));
    if replicas.and_then(|at| at.text()).as_deref() == Some("0") {
        return Role::Inactive;
    }
    if at.get("build").is_none()
        && let Some(image) = at.get("image").and_then(|at| at.text())
    {
        if let Some(engine) = store::engine(&image) {
            return Role::Store(engine);
        }
        if proxy::is_proxy(&image, at) {
            return Role::Proxy;
        }
    }
    let mode = at.find("deploy.mode").and_then(|at| at.text());
    match mode.as_deref() {
        Some("replicated-job" | "global-job") => Role::Job,
        _ if waited_for => Role::Job,
        _ => Role::Service,
    }
}

/// The engine and version of an image that becomes a store.
pub(crate) fn store_of(image: &str) -> Option<(&'static str, Option<String>)> {
    let engine = store::engine(image)?;
    Some((engine.word(), store::version(engine, image)))
}

/// The last part of an image's name, without registry, tag and digest.
pub(super) fn image_base(image: &str) -> &str {
    let name = image_name(image);
    name.rsplit('/').next().unwrap_or(name)
}

/// An image's name without tag and digest.
pub(super) fn image_name(image: &str) -> &str {
    let name = image.split('@').next().unwrap_or(image);
    match name.rsplit_once(':') {
        // What has a slash behind the colon is a port of a registry.
        Some((name, tag)) if !tag.contains('/') => name,
        _ => name,
    }
}

/// An image's tag.
pub(super) fn image_tag(image: &str) -> Option<&str> {
    let name = image.split('@').next().unwrap_or(image);
    let (_, tag) = name.rsplit_once(':')?;
    (!tag.contains('/')).then_some(tag)
}

/// Names and texts of a mapping, or of a list of `NAME=value`, with their places.
pub(super) fn pairs<'n>(at: &At<'n>) -> Vec<(String, Option<String>, At<'n>)> {
    let fields = at.fields().map(|(name, value)| {
        let text = value.text();
        (name.to_owned(), text, value)
    });
    let items = at.items().filter_map(|item| {
        let text = item.text()?;
        Some(match text.split_once('=') {
            Some((name, value)) => (name.trim().to_owned(), Some(value.to_owned()), item),
            None => (text.trim().to_owned(), None, item),
        })
    });
    fields.chain(items).collect()
}

/// Why a text with a secret is not carried, and what to do. Without a name, the secret stands in the file itself.
pub(super) fn secret_words(name: &str) -> (String, String) {
    match name {
        "" => (
            "it holds what looks like a secret".to_owned(),
            "give it by `landfast secret set NAME`, and read the variable or /run/secrets/NAME in the app".to_owned(),
        ),
        name => (
            format!("it holds the value of `{name}`, which looks like a secret"),
            format!("give it by `landfast secret set {name}`, and read the variable or /run/secrets/{name} in the app"),
        ),
    }
}

/// Whether a value is exactly one variable that nothing gave a value.
pub(super) fn is_unset(node: &Node, value: Option<&str>) -> bool {
    value.is_some_and(|value| value.trim().is_empty()) && node.unset.len() == 1
}
