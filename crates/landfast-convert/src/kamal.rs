//! Kamal's `config/deploy.yml` becomes a manifest.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    ConvertError, Import, Source,
    compose::{
        inner_path, is_host, is_mount_target, is_request_path, is_route_path, is_variable, store_of,
    },
    draft::{Draft, Table, Toml},
    free_name, has_login,
    ledger::{At, Fate, Ledger},
    names_a_secret, slug,
    units::{bytes, cpu, duration, exact_bytes, words},
    yaml,
};

/// Imports a `deploy.yml`.
///
/// # Errors
/// When the text is no YAML, or names no service, with the place.
pub fn import_kamal(source: &Source) -> Result<Import, ConvertError> {
    if let Some((number, _)) = source
        .text
        .lines()
        .zip(1..)
        .map(|(line, number)| (number, line))
        .find(|(_, line)| line.contains("<%"))
    {
        let place = yaml::Place {
            file: 0,
            line: number,
            column: 1,
        };
        return Err(ConvertError::new(
            &source.name,
            place,
            "ERB (`<% … %>`) is Ruby, and is not run here",
        )
        .hint("give what `kamal config` prints, or write the value itself"));
    }
    let root = yaml::read(&source.name, 0, &source.text)?;
    let at = At::root(&root);
    let Some(service) = at.get("service").and_then(|at| at.text()) else {
        return Err(
            ConvertError::new(&source.name, at.place, "it names no `service`")
                .hint("Kamal's file has `service:` at its top"),
        );
    };
    let app = slug(&service).unwrap_or_else(|| "app".to_owned());
    let mut kamal = Kamal {
        ledger: Ledger::default(),
        draft: Draft {
            app: app.clone(),
            ..Draft::default()
        },
        decisions: Vec::new(),
        names: BTreeMap::new(),
        stores: BTreeMap::new(),
    };
    kamal.convert(&at);
    kamal.draft.fit_deadlines();
    for (_, name, store) in kamal.draft.take_given() {
        kamal.ledger.given("", &name, &store);
    }
    kamal.ledger.cover(&at, false);
    let marks = kamal.ledger.into_marks();
    kamal.draft.head = vec![
        format!("Written by `landfast import kamal` from {}.", source.name),
        "`landfast check` reads it, `landfast plan` says what a deploy would do. Every key: docs/reference/manifest.md".to_owned(),
    ];
    let groups = [
        ("What was decided:", kamal.decisions.clone()),
        ("Not carried:", not_carried(&marks)),
    ];
    for (title, lines) in groups {
        if !lines.is_empty() {
            kamal.draft.head.push(String::new());
            kamal.draft.head.push(title.to_owned());
            kamal
                .draft
                .head
                .extend(lines.iter().map(|line| format!("  - {line}")));
        }
    }
    let import = Import {
        manifest: kamal.draft.write(),
        files: vec![source.name.clone()],
        secrets: kamal.draft.secrets.values().cloned().collect(),
        decisions: kamal.decisions,
        marks,
    };
    Ok(import.checked())
}

fn not_carried(marks: &[crate::Mark]) -> Vec<String> {
    let lines = marks.iter().filter_map(|mark| match &mark.fate {
        Fate::NotCarried { reason, instead } => Some(format!(
            "{} (line {}): {reason}; {instead}",
            mark.path, mark.place.line
        )),
        Fate::Carried { .. } | Fate::Replaced { .. } => None,
    });
    lines.collect()
}

struct Kamal {
    ledger: Ledger,
    draft: Draft,
    decisions: Vec<String>,
    names: BTreeMap<String, String>,
    /// Hosts that Kamal gives its accessories, to stores.
    stores: BTreeMap<String, String>,
}

impl Kamal {
    fn convert(&mut self, root: &At<'_>) {
        for (name, at) in root.get("accessories").iter().flat_map(At::fields) {
            self.accessory(root, name, &at);
        }
        let image = root.get("image").and_then(|at| at.text());
        let server = root.find("registry.server").and_then(|at| at.text());
        let image = image.map(|image| match &server {
            Some(server) if !image.starts_with(server.as_str()) => format!("{server}/{image}"),
            _ => image,
        });
        let port = root
            .find("proxy.app_port")
            .and_then(|at| at.text()?.parse::<u16>().ok())
            .unwrap_or(80);
        let roles = roles(root);
        for (role, at) in &roles {
            let name = free_name(role, &self.names);
            self.names.insert(role.clone(), name.clone());
            let mut table = Table::default();
            table.comment(format!("The role `{role}`."));
            self.content(root, image.as_deref(), &mut table);
            let is_web = role == "web"
                || roles.len() == 1
                || at.as_ref().is_some_and(|at| at.get("proxy").is_some());
            if is_web {
                table.set("port", Toml::Number(port.into()));
            }
            if let Some(at) = at {
                self.role(at, &mut table);
            }
            if is_web {
                self.health(root, &mut table);
            }
            let mut env = Table::default();
            let mut uses = BTreeSet::new();
            for at in [root.get("env"), at.as_ref().and_then(|at| at.get("env"))]
                .iter()
                .flatten()
            {
                self.env(at, &mut env, &mut uses);
            }
            // Kamal's roles reach every accessory.
            uses.extend(self.stores.values().cloned());
            if !uses.is_empty() {
                table.set("uses", Toml::texts(&uses));
            }
            self.volumes(root, &name, &mut table);
            table.set_in("sandbox", "writable", Toml::Flag(true));
            if let Some(wait) = drain(root) {
                table.set_text("drain", format!("{wait}s"));
            }
            if !env.lines.is_empty() {
                table.below.push(("env".to_owned(), env));
            }
            self.draft.services.insert(name.clone(), table);
            if is_web {
                self.routes(root, &name);
            }
        }
        self.fates(root);
        self.draft
            .deploy
            .set_text("strategy", "rolling")
            .comment("rolling | blue-green | canary | recreate");
    }

    fn content(&mut self, root: &At<'_>, image: Option<&str>, table: &mut Table) {
        let builder = root.get("builder");
        let text = |key: &str| builder.as_ref().and_then(|at| at.get(key)?.text());
        let context = text("context")
            .and_then(|path| inner_path(&path))
            .unwrap_or_else(|| ".".to_owned());
        let mut build = vec![("context".to_owned(), Toml::text(&context))];
        for key in ["dockerfile", "target"] {
            let value = text(key).and_then(|value| inner_path(&value));
            build.extend(value.map(|value| (key.to_owned(), Toml::text(value))));
        }
        if let Some(arch) =
            text("arch").filter(|arch| arch.chars().all(|c| c.is_ascii_alphanumeric() || c == '/'))
        {
            build.push(("platform".to_owned(), Toml::text(format!("linux/{arch}"))));
        }
        let args = builder.as_ref().and_then(|at| at.get("args"));
        let args = args
            .iter()
            .flat_map(At::fields)
            .filter_map(|(name, at)| Some((name.to_owned(), Toml::Text(at.text()?))));
        let args = args
            .filter(|(name, _)| !names_a_secret(name) && is_variable(name))
            .collect::<Vec<_>>();
        if !args.is_empty() {
            build.push(("args".to_owned(), Toml::Inline(args)));
        }
        let secrets = builder
            .as_ref()
            .and_then(|at| at.get("secrets"))
            .map(|at| at.texts())
            .unwrap_or_default();
        let secrets = secrets
            .into_iter()
            .filter(|(name, _)| is_variable(name))
            .collect::<Vec<_>>();
        if !secrets.is_empty() {
            build.push((
                "secrets".to_owned(),
                Toml::texts(secrets.iter().map(|(name, _)| name)),
            ));
            for (name, _) in &secrets {
                self.draft.need_secret(name, "builder.secrets", None);
            }
        }
        if build.len() == 1 {
            table.set_text("build", context);
        } else {
            table.set("build", Toml::Inline(build));
        }
        if let Some(image) = image {
            table.hint(format!("image = \"{image}:TAG\"   # in place of `build`, where the image is pushed to a registry first"));
        }
    }

    fn role(&mut self, at: &At<'_>, table: &mut Table) {
        for (key, value) in at.fields() {
            match key {
                "cmd" => match value
                    .text()
                    .and_then(|line| words(&line))
                    .filter(|argv| is_argv(argv))
                {
                    Some(argv) => {
                        table.set("command", Toml::texts(argv));
                        self.ledger.carried(&value, "command");
                    }
                    None => self.ledger.wrong(&value, "a command"),
                },
                "hosts" => self.hosts(&value),
                "env" | "proxy" => {}
                "options" => {
                    for (key, value) in value.fields() {
                        let text = value.text().unwrap_or_default();
                        match key {
                            "memory" if bytes(&text).is_some_and(|size| size.0 >= 1 << 20) => {
                                let size = bytes(&text).map(exact_bytes).unwrap_or_default();
                                table.set_in("resources", "memory", Toml::Text(size));
                                self.ledger.carried(&value, "resources.memory");
                            }
                            "cpus" if cpu(&text).is_some() => {
                                let share =
                                    cpu(&text).map(|cpu| cpu.to_string()).unwrap_or_default();
                                table.set_in("resources", "cpu", Toml::Text(share));
                                self.ledger.carried(&value, "resources.cpu");
                            }
                            _ => self.ledger.not_carried(
                                &value,
                                "options of `docker run` have keys of their own here",
                                "look at `resources` and `sandbox` in docs/reference/manifest.md",
                            ),
                        }
                    }
                }
                _ => self.ledger.not_carried(
                    &value,
                    "a service has no such key",
                    "look at docs/reference/manifest.md",
                ),
            }
        }
    }

    fn hosts(&mut self, at: &At<'_>) {
        let count = at.texts().len();
        if count > 1 {
            self.ledger.not_carried(
                at,
                format!("it names {count} hosts, and a server is one"),
                "set `replicas` for more instances on one host",
            );
        } else {
            self.ledger
                .replaced(at, "`landfast --host ssh://…` names the server");
        }
    }

    fn health(&mut self, root: &At<'_>, table: &mut Table) {
        let check = root.find("proxy.healthcheck");
        let path = check
            .as_ref()
            .and_then(|at| at.get("path")?.text())
            .filter(|path| is_request_path(path));
        table.set_in(
            "health",
            "ready",
            Toml::text(format!("http:{}", path.as_deref().unwrap_or("/up"))),
        );
        for key in ["interval", "timeout"] {
            let Some(at) = check.as_ref().and_then(|at| at.get(key)) else {
                continue;
            };
            match at
                .text()
                .and_then(|text| duration(&text))
                .filter(|one| (100..=300_000).contains(&one.as_millis()))
            {
                Some(time) => table.set_in(
                    "health",
                    key,
                    Toml::text(landfast_types::format_duration(time)),
                ),
                None => self.ledger.wrong(&at, "seconds, up to 300"),
            }
        }
    }

    fn env(&mut self, at: &At<'_>, env: &mut Table, uses: &mut BTreeSet<String>) {
        let clear = at.get("clear");
        let has_groups = clear.is_some() || at.get("secret").is_some() || at.get("tags").is_some();
        let plain = if has_groups { clear } else { Some(at.clone()) };
        for (name, value) in plain.iter().flat_map(At::fields) {
            let Some(text) = value.text() else {
                self.ledger.wrong(&value, "text");
                continue;
            };
            let store = self.stores.iter().find(|(host, _)| {
                text == **host
                    || text.contains(&format!("//{host}"))
                    || text.contains(&format!("@{host}"))
            });
            if let Some((_, store)) = store {
                uses.insert(store.clone());
                let instead = format!(
                    "read {}_URL in the app",
                    store.to_uppercase().replace('-', "_")
                );
                self.ledger.not_carried(
                    &value,
                    format!("it is the address of what is the store `{store}` now"),
                    instead,
                );
            } else if name == "PORT" {
                self.ledger.replaced(&value, "`port`");
            } else if !is_variable(name) || landfast_spec::is_reserved_variable(name) {
                self.ledger
                    .not_carried(&value, "it cannot name a variable", "rename it");
            } else if text.contains('\0') {
                self.ledger
                    .not_carried(&value, "its value holds a NUL character", "remove it");
            } else if has_login(&text) {
                env.set(name, required());
                self.draft.need_secret(name, "env.clear", None);
                self.ledger.carried(
                    &value,
                    format!("the secret {name}; its value was not written"),
                );
            } else {
                env.set_text(name, text);
                self.ledger.carried(&value, format!("env.{name}"));
            }
        }
        for (text, item) in at.get("secret").iter().flat_map(At::texts) {
            let (name, source) = text.split_once(':').unwrap_or((&text, &text));
            if !is_variable(name) || landfast_spec::is_reserved_variable(name) {
                self.ledger
                    .not_carried(&item, "it cannot name a variable", "rename it");
                continue;
            }
            env.set(name, required());
            self.draft.need_secret(name, source, None);
            self.ledger.carried(&item, format!("the secret {name}"));
        }
        if let Some(tags) = at.get("tags") {
            self.ledger.not_carried(
                &tags,
                "there is one server",
                "write an environment: [environments.NAME]",
            );
        }
    }

    fn volumes(&mut self, root: &At<'_>, own: &str, table: &mut Table) {
        let mut taken = BTreeMap::new();
        for (text, item) in root.get("volumes").iter().flat_map(At::texts) {
            let mut parts = text.splitn(3, ':');
            let (Some(source), Some(target)) = (
                parts.next(),
                parts.next().filter(|target| is_mount_target(target)),
            ) else {
                self.ledger.wrong(&item, "a volume such as `data:/data`");
                continue;
            };
            let is_path = source.starts_with('/');
            if source.contains(char::is_control) || source.split('/').any(|part| part == "..") {
                self.ledger.wrong(&item, "a volume such as `data:/data`");
                continue;
            }
            if !is_path && source.starts_with(['.', '~']) {
                self.ledger.not_carried(
                    &item,
                    "it is a path beside Kamal's folder on the server",
                    "name an absolute path",
                );
                continue;
            }
            let base = if is_path {
                format!("{own}{}", target.replace('/', "-"))
            } else {
                source.to_owned()
            };
            let name = free_name(&base, &taken);
            taken.insert(text.clone(), name.clone());
            let from = if is_path { source } else { "managed" };
            let fields = [("from", from), ("at", target)]
                .map(|(key, text)| (key.to_owned(), Toml::text(text)));
            table.set_in("volumes", &name, Toml::Inline(fields.to_vec()));
            self.ledger.carried(&item, format!("volumes.{name}"));
        }
    }

    fn routes(&mut self, root: &At<'_>, service: &str) {
        let proxy = root.get("proxy");
        let mut hosts = proxy
            .iter()
            .filter_map(|at| at.get("host")?.text())
            .collect::<Vec<_>>();
        hosts.extend(
            proxy
                .iter()
                .filter_map(|at| at.get("hosts"))
                .flat_map(|at| at.texts())
                .map(|(text, _)| text),
        );
        let hosts = hosts
            .into_iter()
            .map(|host| host.to_lowercase())
            .filter(|host| is_host(host))
            .collect::<BTreeSet<_>>();
        let hosts = if hosts.is_empty() {
            BTreeSet::from([format!("{}.localhost", self.draft.app)])
        } else {
            hosts
        };
        for (index, host) in hosts.iter().enumerate() {
            let mut table = Table::default();
            table.set_text("host", host);
            if let Some(prefix) = proxy
                .as_ref()
                .and_then(|at| at.get("path_prefix")?.text())
                .filter(|path| is_route_path(path))
            {
                table.set_text("path", prefix.trim_end_matches('/'));
            }
            table.set_text("service", service);
            if let Some(seconds) = proxy
                .as_ref()
                .and_then(|at| at.get("response_timeout")?.text()?.parse::<u64>().ok())
                .filter(|seconds| (1..=3_600).contains(seconds))
            {
                table.set_in("timeouts", "first_byte", Toml::text(format!("{seconds}s")));
            }
            let name = if index == 0 {
                "public".to_owned()
            } else {
                format!("public-{}", index + 1)
            };
            self.draft.routes.insert(name, table);
        }
    }

    fn accessory(&mut self, root: &At<'_>, name: &str, at: &At<'_>) {
        let image = at.get("image").and_then(|at| at.text()).unwrap_or_default();
        let own = free_name(name, &self.names);
        self.names.insert(name.to_owned(), own.clone());
        let service = root
            .get("service")
            .and_then(|at| at.text())
            .unwrap_or_default();
        let host = at
            .get("service")
            .and_then(|at| at.text())
            .unwrap_or_else(|| format!("{service}-{name}"));
        if let Some((engine, version)) = store_of(&image) {
            let mut table = Table::default();
            table.comment(format!(
                "The accessory `{name}`. Its data is not moved: dump it there and restore it here."
            ));
            table.set_text("engine", engine);
            if let Some(version) = version {
                table.set_text("version", version);
            }
            self.draft.stores.insert(own.clone(), table);
            self.stores.insert(host, own.clone());
            self.decisions.push(format!(
                "the accessory `{name}` is the store `{own}`; services get `{}_URL`",
                own.to_uppercase().replace('-', "_")
            ));
            for (key, value) in at.fields() {
                match key {
                    "image" => self.ledger.carried(&value, format!("stores.{own}")),
                    "host" | "hosts" | "role" | "roles" | "tag" | "tags" | "env"
                    | "directories" | "volumes" | "network" | "service" => self
                        .ledger
                        .replaced(&value, "Landfast keeps the store, its login and its data"),
                    "port" => self.ledger.not_carried(
                        &value,
                        "a store is reached by the services that use it alone",
                        "`landfast store psql` and its like",
                    ),
                    _ => self.ledger.not_carried(
                        &value,
                        "a store of Landfast has no such key",
                        "look at `[stores.*]` in docs/reference/manifest.md",
                    ),
                }
            }
            return;
        }
        let mut table = Table::default();
        table.comment(format!("The accessory `{name}`."));
        if image.parse::<landfast_types::ImageReference>().is_err() {
            self.ledger
                .not_carried(at, "it names no image", "write it by hand");
            return;
        }
        table.set_text("image", &image);
        table.set_in("sandbox", "writable", Toml::Flag(true));
        let mut env = Table::default();
        for (key, value) in at.fields() {
            match key {
                "image" => self.ledger.carried(&value, "image"),
                "cmd" => match value
                    .text()
                    .and_then(|line| words(&line))
                    .filter(|argv| is_argv(argv))
                {
                    Some(argv) => {
                        table.set("command", Toml::texts(argv));
                        self.ledger.carried(&value, "command");
                    }
                    None => self.ledger.wrong(&value, "a command"),
                },
                "env" => self.env(&value, &mut env, &mut BTreeSet::new()),
                "port" => match value
                    .text()
                    .and_then(|text| text.rsplit(':').next()?.parse::<u16>().ok())
                {
                    Some(port) => {
                        table.set("port", Toml::Number(port.into()));
                        self.ledger
                            .carried(&value, format!("port; other services reach it as `{own}`"));
                    }
                    None => self.ledger.wrong(&value, "a port"),
                },
                "volumes" | "directories" => {
                    for (text, item) in value.texts() {
                        let Some(target) = text
                            .split(':')
                            .nth(1)
                            .filter(|target| is_mount_target(target))
                        else {
                            self.ledger.wrong(&item, "a volume such as `data:/data`");
                            continue;
                        };
                        let volume = slug(&format!("{own}{}", target.replace('/', "-")))
                            .unwrap_or_else(|| own.clone());
                        let fields = [("from", "managed"), ("at", target)]
                            .map(|(key, text)| (key.to_owned(), Toml::text(text)));
                        table.set_in("volumes", &volume, Toml::Inline(fields.to_vec()));
                        self.ledger.carried(&item, format!("volumes.{volume}"));
                    }
                }
                "host" | "hosts" | "role" | "roles" => {
                    self.ledger.replaced(&value, "it runs on the one server")
                }
                _ => self.ledger.not_carried(
                    &value,
                    "a service has no such key",
                    "look at docs/reference/manifest.md",
                ),
            }
        }
        if !env.lines.is_empty() {
            table.below.push(("env".to_owned(), env));
        }
        self.draft.services.insert(own, table);
    }

    /// What became of the keys at the top.
    fn fates(&mut self, root: &At<'_>) {
        for (key, at) in root.fields() {
            match key {
                "service" => self.ledger.carried(&at, "app"),
                "image" => self
                    .ledger
                    .replaced(&at, "`build`; a line with `image` is beside it"),
                "servers" => {
                    if at.node.items().is_empty() {
                        for (role, at) in at.fields() {
                            if at.node.items().is_empty() {
                                if at.node.fields().is_empty() {
                                    self.ledger.carried(&at, format!("services.{role}"));
                                }
                            } else {
                                self.hosts(&at);
                            }
                        }
                    } else {
                        self.hosts(&at);
                    }
                }
                "accessories" | "volumes" | "env"
                    if !at.node.fields().is_empty() || !at.node.items().is_empty() => {}
                "proxy" => self.proxy_fates(&at),
                "builder" => {
                    for (key, value) in at.fields() {
                        match key {
                            "context" | "dockerfile" | "target" | "arch" | "secrets" => {
                                self.ledger.carried_whole(&value, &format!("build.{key}"))
                            }
                            "args" => {
                                for (name, value) in value.fields() {
                                    if !is_variable(name) {
                                        self.ledger.not_carried(
                                            &value,
                                            "it cannot name an argument",
                                            "rename it",
                                        );
                                    } else if names_a_secret(name) {
                                        self.ledger.not_carried(&value, "build arguments stay in the image, and this one looks like a secret", format!("secrets = [\"{name}\"] in `build`"));
                                    } else {
                                        self.ledger.carried(&value, "build.args");
                                    }
                                }
                            }
                            _ => self.ledger.not_carried(
                                &value,
                                "an image is built where `landfast deploy` runs",
                                "build it elsewhere, and name it in `image`",
                            ),
                        }
                    }
                }
                "registry" => {
                    for (key, value) in at.fields() {
                        match key {
                            "server" => self.ledger.replaced(&value, "the line with `image`"),
                            _ => self.ledger.not_carried(&value, "logins of registries are secrets", "[registries.\"HOST\"] user_secret = \"…\", password_secret = \"…\", or `docker login` on the server"),
                        }
                    }
                }
                "drain_timeout" => match drain(root) {
                    Some(_) => self.ledger.carried(&at, "drain"),
                    None => self.ledger.wrong(&at, "seconds, up to 3600"),
                },
                "deploy_timeout" => {
                    let seconds = at
                        .text()
                        .and_then(|text| text.parse::<u64>().ok())
                        .filter(|one| (1..=86_400).contains(one));
                    match seconds {
                        Some(seconds) => {
                            self.draft
                                .deploy
                                .set_text("healthy_deadline", format!("{seconds}s"));
                            self.ledger.carried(&at, "[deploy] healthy_deadline");
                        }
                        None => self.ledger.wrong(&at, "seconds"),
                    }
                }
                "readiness_delay"
                | "retain_containers"
                | "run_directory"
                | "minimum_version"
                | "primary_role"
                | "allow_empty_roles"
                | "require_destination"
                | "logging"
                | "hooks_output" => {
                    self.ledger.replaced(&at, "Landfast does it by itself");
                }
                "error_pages_path" | "asset_path" => {
                    let instead = if key == "asset_path" {
                        "files = { folder = \"public\" } of a route"
                    } else {
                        "error_pages = \"…\" of a route"
                    };
                    self.ledger
                        .not_carried(&at, "it is a key of a route", instead);
                }
                "boot" => self.ledger.not_carried(
                    &at,
                    "the pace is that of [deploy]",
                    "max_surge and min_ready",
                ),
                "ssh" | "sshkit" => self
                    .ledger
                    .replaced(&at, "`landfast --host ssh://user@host:port`"),
                "aliases" => self.ledger.not_carried(
                    &at,
                    "commands have no aliases",
                    "`landfast exec web -- …`, or a job with when = \"hand\"",
                ),
                _ if key.starts_with("x-") => self
                    .ledger
                    .replaced(&at, "an extension says nothing by itself"),
                _ => self.ledger.not_carried(
                    &at,
                    "a manifest has no such key",
                    "look at docs/reference/manifest.md",
                ),
            }
        }
    }

    fn proxy_fates(&mut self, at: &At<'_>) {
        for (key, value) in at.fields() {
            match key {
                "host" | "hosts" => self.ledger.carried_whole(&value, "routes"),
                "app_port" => self.ledger.carried(&value, "port"),
                "path_prefix" => self.ledger.carried(&value, "path of the route"),
                "response_timeout" => self.ledger.carried(&value, "timeouts.first_byte"),
                "ssl" if value.text().is_some() => self
                    .ledger
                    .replaced(&value, "certificates of public hosts come by ACME"),
                "ssl_redirect" | "forward_headers" => {
                    self.ledger.replaced(&value, "as it is by default")
                }
                "healthcheck" => {
                    for (key, value) in value.fields() {
                        match key {
                            "path" | "interval" | "timeout" => {
                                self.ledger.carried(&value, format!("health.{key}"))
                            }
                            _ => self.ledger.not_carried(
                                &value,
                                "checks go to the service's port",
                                "write `health` by hand",
                            ),
                        }
                    }
                }
                _ => self.ledger.not_carried(
                    &value,
                    "the proxy has no such key",
                    "look at `[routes.*]`: limits, timeouts, tls",
                ),
            }
        }
    }
}

/// Words that can be run.
fn is_argv(argv: &[String]) -> bool {
    argv.first().is_some_and(|word| !word.is_empty())
        && !argv.iter().any(|word| word.contains('\0'))
}

/// `drain_timeout`, where it is one.
fn drain(root: &At<'_>) -> Option<u64> {
    let seconds = root.get("drain_timeout")?.text()?.parse::<u64>().ok()?;
    (seconds <= 3_600).then_some(seconds)
}

/// The roles, with their tables where they have one.
fn roles<'n>(root: &At<'n>) -> Vec<(String, Option<At<'n>>)> {
    let servers = root.get("servers");
    let fields = servers.iter().flat_map(At::fields);
    let named = fields.map(|(name, at)| {
        let at = at.node.is_map().then_some(at);
        (name.to_owned(), at)
    });
    let named = named.collect::<Vec<_>>();
    if named.is_empty() {
        vec![("web".to_owned(), None)]
    } else {
        named
    }
}

fn required() -> Toml {
    Toml::Inline(vec![("required".to_owned(), Toml::Flag(true))])
}
