//! A service of a Compose file becomes a service or job of the manifest.

use std::collections::BTreeSet;

use landfast_spec::CAPABILITIES;

use crate::{
    compose::{Converter, Role, image_base, pairs, secret_words},
    draft::{Table, Toml},
    ledger::At,
    looks_secret,
    units::{bytes, cpu, duration, exact_bytes, words},
    yaml::Value,
};

/// Official images that begin as root to own their folders, then become somebody else.
const ROOT_IMAGES: &[&str] = &[
    "nginx",
    "httpd",
    "wordpress",
    "mysql",
    "rabbitmq",
    "mongo",
    "nextcloud",
    "ghost",
    "drupal",
    "joomla",
    "matomo",
    "phpmyadmin",
    "couchdb",
    "influxdb",
    "registry",
    "gitea",
    "postgis",
    "timescaledb",
    "pgvector",
    "redmine",
    "php",
    "elasticsearch",
    "tomcat",
    "caddy",
    "zookeeper",
    "valkey",
    "clickhouse-server",
];

const ROOT_CAPABILITIES: &[&str] = &["CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID"];

/// What the engine would refuse in a count.
const REPLICAS_MAX: u64 = 500;

impl Converter<'_> {
    pub(super) fn service(&mut self, name: &str, own: &str, at: &At<'_>, is_job: bool) -> Table {
        let mut table = Table::default();
        table.comment(format!("`{name}` of line {}.", at.place.line));
        self.content(name, at, &mut table);
        self.argv(at, "entrypoint", &mut table);
        self.argv(at, "command", &mut table);
        if is_job {
            table
                .set_text("when", "hand")
                .comment(format!("landfast run {own}"));
            self.decide(format!("`{name}` ends by itself, so it is a job: `landfast run {own}` before a deploy that needs it"));
        }
        let environment = self.environment(name, at);
        if is_job {
            for key in ["ports", "expose"] {
                if let Some(at) = at.get(key) {
                    self.ledger
                        .not_carried(&at, "a job does not listen", "make it a service");
                }
            }
            if let Some(at) = at.get("healthcheck") {
                self.ledger.not_carried(
                    &at,
                    "a job has no health but its exit code",
                    "nothing is to be done",
                );
            }
        } else {
            let port = self.port(own, at, &environment);
            if let Some(port) = port {
                table.set("port", Toml::Number(port.into()));
            }
            self.replicas(at, &mut table);
            self.health(at, &mut table);
        }
        self.links(name, own, at, is_job, &environment, &mut table);
        self.resources(at, &mut table);
        self.mounts(own, at, &mut table);
        self.sandbox(name, at, &mut table);
        self.service_secrets(at);
        if !is_job {
            self.grace(at, &mut table);
            self.updates(name, at);
        }
        if !environment.table.lines.is_empty() {
            table.below.push(("env".to_owned(), environment.table));
        }
        self.others(name, own, at, is_job);
        table
    }

    /// `image`, `build` and `pull_policy`.
    fn content(&mut self, name: &str, at: &At<'_>, table: &mut Table) {
        let image = at.get("image");
        let built = at.get("build").filter(|at| !at.node.is_null());
        let pull = at.get("pull_policy");
        if let Some(build) = &built
            && self.build(name, at, build, table)
        {
            if let Some(image) = &image {
                self.ledger.replaced(
                    image,
                    "what is built is named by Landfast, after its content",
                );
            }
            if let Some(pull) = &pull {
                self.ledger.replaced(pull, "what is built is not pulled");
            }
            return;
        }
        let text = image.as_ref().and_then(|at| at.text());
        let text = text.filter(|text| text.parse::<landfast_types::ImageReference>().is_ok());
        match (&image, text) {
            (Some(image), Some(text)) => {
                table.set_text("image", text);
                self.ledger.carried(image, "image");
            }
            (image, _) => {
                let placeholder = format!(
                    "{}-{}",
                    self.app,
                    crate::slug(name).unwrap_or_else(|| "app".to_owned())
                );
                table
                    .set_text("image", &placeholder)
                    .comment("nothing usable was named: build it under this name");
                table.set_text("pull", "never");
                match image {
                    Some(image) => self.ledger.not_carried(
                        image,
                        "it is no name of an image",
                        "write `image` by hand",
                    ),
                    None if built.is_none() => {
                        let instead = format!("build it yourself: docker build -t {placeholder} …");
                        self.ledger
                            .not_carried(at, "it has neither `image` nor `build`", instead);
                    }
                    None => {}
                }
                return;
            }
        }
        let Some(pull) = pull else { return };
        match pull.text().as_deref() {
            Some(word @ ("always" | "never" | "missing")) => {
                table.set_text("pull", word);
                self.ledger.carried(&pull, "pull");
            }
            Some("if_not_present") => {
                table.set_text("pull", "missing");
                self.ledger.carried(&pull, "pull");
            }
            _ => self.ledger.not_carried(
                &pull,
                "there are `newer`, `missing`, `always` and `never`",
                "by default the registry is asked at each deploy",
            ),
        }
    }

    /// Whether the manifest can build it.
    fn build(&mut self, name: &str, service: &At<'_>, at: &At<'_>, table: &mut Table) -> bool {
        let context_at = match &at.node.value {
            Value::Map(_) => at.get("context"),
            Value::Null
            | Value::Flag(_)
            | Value::Integer(_)
            | Value::Float(_)
            | Value::Text(_)
            | Value::List(_) => Some(at.clone()),
        };
        let context = context_at
            .as_ref()
            .and_then(|at| at.text())
            .unwrap_or_else(|| ".".to_owned());
        let Some(context) = inner_path(&context) else {
            let placeholder = format!(
                "docker build -t {}-{} {context}",
                self.app,
                crate::slug(name).unwrap_or_default()
            );
            self.ledger.not_carried(
                at,
                format!("`{context}` is not a folder below this file"),
                format!("build the image yourself ({placeholder}), or move the file"),
            );
            return false;
        };
        if let Some(at) = &context_at {
            self.ledger.carried(at, "build.context");
        }
        let mut build = vec![("context".to_owned(), Toml::text(&context))];
        for (key, value) in at.fields() {
            match key {
                "context" => {}
                "dockerfile" | "target" => {
                    let text = value.text().filter(|text| key == "target" || inner_path(text).is_some());
                    match text.filter(|text| !text.contains(char::is_control)) {
                        Some(text) => {
                            let text = if key == "dockerfile" { inner_path(&text).unwrap_or(text) } else { text };
                            build.push((key.to_owned(), Toml::text(text)));
                            self.ledger.carried(&value, format!("build.{key}"));
                        }
                        None => self.ledger.not_carried(&value, "it is outside the context", "move it into the context"),
                    }
                }
                "args" => self.build_args(&value, &mut build),
                "secrets" => self.build_secrets(&value, &mut build),
                "platforms" => match &value.texts()[..] {
                    [(platform, _)] => {
                        build.push(("platform".to_owned(), Toml::text(platform)));
                        self.ledger.carried_whole(&value, "build.platform");
                    }
                    _ => self.ledger.not_carried(&value, "an image is built for one platform, that of the server", "name one"),
                },
                "labels" => self.ledger.not_carried(&value, "images are known by their content, not by labels", "write LABEL in the Dockerfile"),
                "tags" => self.ledger.replaced(&value, "what is built is tagged by Landfast"),
                "cache_from" | "cache_to" | "no_cache" | "pull" => {
                    self.ledger.not_carried(&value, "the cache is that of the machine that builds", "set it in the builder");
                }
                _ if key.starts_with("x-") => self.ledger.replaced(&value, "an extension says nothing by itself"),
                _ => self.ledger.not_carried(
                    &value,
                    "the manifest's `build` has context, dockerfile, target, args, secrets and platform",
                    "build the image yourself and name it in `image`",
                ),
            }
        }
        if let Some(platform) = service.get("platform").and_then(|at| at.text())
            && !build.iter().any(|(key, _)| key == "platform")
        {
            build.push(("platform".to_owned(), Toml::text(platform)));
        }
        if build.len() == 1 {
            table.set_text("build", context);
        } else {
            table.set("build", Toml::Inline(build));
        }
        true
    }

    fn build_args(&mut self, at: &At<'_>, build: &mut Vec<(String, Toml)>) {
        let mut args = Vec::new();
        for (name, value, at) in pairs(at) {
            if at.node.secret.is_some() {
                // Named with all others that were taken away.
                continue;
            }
            let value = value.or_else(|| self.variables.get(&name).cloned());
            let is_secret = looks_secret(&name, value.as_deref().unwrap_or("?"));
            if !is_variable(&name) {
                self.ledger
                    .not_carried(&at, "it cannot name an argument", "rename it");
            } else if is_secret {
                let instead = format!(
                    "landfast secret set {name}, secrets = [\"{name}\"] in `build`, and RUN --mount=type=secret,id={name}"
                );
                self.ledger.not_carried(
                    &at,
                    "build arguments stay in the image, and this one looks like a secret",
                    instead,
                );
            } else if let Some(value) = value.filter(|value| !value.contains('\0')) {
                args.push((name, Toml::Text(value)));
                self.ledger.carried(&at, "build.args");
            } else {
                self.ledger.not_carried(
                    &at,
                    "it has no value here, so the Dockerfile's default counts",
                    "give it one in `build.args`",
                );
            }
        }
        if !args.is_empty() {
            build.push(("args".to_owned(), Toml::Inline(args)));
        }
    }

    fn build_secrets(&mut self, at: &At<'_>, build: &mut Vec<(String, Toml)>) {
        let mut names = BTreeSet::new();
        for item in at.items() {
            let source = item.text().or_else(|| item.get("source")?.text());
            match source.map(|source| self.secret_name(&source)) {
                Some(name) => {
                    names.insert(name);
                    self.ledger.carried_whole(&item, "build.secrets");
                }
                None => self.ledger.wrong(&item, "the name of a secret"),
            }
        }
        if !names.is_empty() {
            build.push(("secrets".to_owned(), Toml::texts(names)));
        }
    }

    /// `command` and `entrypoint`.
    fn argv(&mut self, at: &At<'_>, key: &str, table: &mut Table) {
        let Some(at) = at.get(key) else { return };
        // A command without one of its words is another command.
        let secret = std::iter::once(at.clone()).chain(at.items());
        let secret = secret.filter_map(|at| at.node.secret.as_deref()).next();
        if let Some(name) = secret {
            let (reason, instead) = secret_words(name);
            self.ledger.not_carried(&at, reason, instead);
            return;
        }
        let argv = match &at.node.value {
            Value::Null => {
                self.ledger.replaced(&at, "the image's own");
                return;
            }
            Value::List(_) => {
                let texts = at.items().map(|item| item.text());
                texts.collect::<Option<Vec<_>>>()
            }
            Value::Text(text) => words(text),
            Value::Flag(_) | Value::Integer(_) | Value::Float(_) => {
                at.text().map(|text| vec![text])
            }
            Value::Map(_) => None,
        };
        match argv.filter(|argv| !argv.iter().any(|word| word.contains('\0'))) {
            Some(argv) if argv.first().is_none_or(String::is_empty) => {
                self.ledger.not_carried(
                    &at,
                    "an empty one would take the image's own away, which a manifest cannot",
                    "name the whole command in `entrypoint`",
                );
            }
            Some(argv) => {
                table.set(key, Toml::texts(&argv));
                self.ledger.carried_whole(&at, key);
            }
            None => self.ledger.wrong(&at, "a command"),
        }
    }

    fn replicas(&mut self, at: &At<'_>, table: &mut Table) {
        for path in ["deploy.replicas", "scale"] {
            let Some(at) = at.find(path) else { continue };
            match at.text().and_then(|text| text.parse::<u64>().ok()) {
                Some(count) if (1..=REPLICAS_MAX).contains(&count) => {
                    table.set("replicas", Toml::Number(count));
                    self.ledger.carried(&at, "replicas");
                }
                _ => self.ledger.wrong(&at, "a count from 1 to 500"),
            }
        }
        let Some(mode) = at.find("deploy.mode") else {
            return;
        };
        match mode.text().as_deref() {
            Some("replicated") => self.ledger.carried(&mode, "replicas"),
            _ => {
                self.ledger
                    .not_carried(&mode, "there is one server", "name a count in `replicas`")
            }
        }
    }

    fn resources(&mut self, at: &At<'_>, table: &mut Table) {
        for (path, key) in [
            ("deploy.resources.limits.cpus", "cpu"),
            ("cpus", "cpu"),
            ("deploy.resources.limits.memory", "memory"),
            ("mem_limit", "memory"),
            ("deploy.resources.limits.pids", "processes"),
            ("pids_limit", "processes"),
        ] {
            self.resource(at, path, "resources", key, table);
        }
        for (path, key) in [
            ("deploy.resources.reservations.cpus", "cpu"),
            ("deploy.resources.reservations.memory", "memory"),
            ("mem_reservation", "memory"),
        ] {
            self.resource(at, path, "reserve", key, table);
        }
        for (name, at) in at.get("ulimits").iter().flat_map(At::fields) {
            let hard = at.get("hard").unwrap_or_else(|| at.clone());
            let count = hard.text().and_then(|text| text.parse::<u64>().ok());
            match count.filter(|count| name == "nofile" && (64..=1_000_000).contains(count)) {
                Some(count) => {
                    table.set_in("resources", "descriptors", Toml::Number(count));
                    self.ledger.carried_whole(&at, "resources.descriptors");
                }
                None if name == "nofile" => self.ledger.wrong(&at, "a count from 64 to 1000000"),
                None => self.ledger.not_carried(
                    &at,
                    "of the limits of a process only `nofile` and the number of processes are the manifest's",
                    "set it in the image's start script (`ulimit`)",
                ),
            }
        }
    }

    fn resource(&mut self, at: &At<'_>, path: &str, group: &str, key: &str, table: &mut Table) {
        let Some(at) = at.find(path) else { return };
        let text = at.text().unwrap_or_default();
        let value = match key {
            "cpu" => cpu(&text).map(|cpu| Toml::text(cpu.to_string())),
            "memory" => {
                let size = bytes(&text).filter(|size| size.0 >= 1 << 20);
                size.map(|size| Toml::text(exact_bytes(size)))
            }
            _ => {
                let count = text.parse::<u64>().ok();
                count
                    .filter(|count| (1..=1_000_000).contains(count))
                    .map(Toml::Number)
            }
        };
        let zero = matches!(text.trim(), "0" | "0.0" | "-1");
        match value {
            Some(value) => {
                table.set_in(group, key, value);
                self.ledger.carried(&at, format!("{group}.{key}"));
            }
            None if zero => self.ledger.replaced(&at, "no limit, as without it"),
            None => self.ledger.not_carried(
                &at,
                "it is not within what a manifest takes (CPU from 0.001, memory from 1 MiB, processes from 1)",
                format!("write `{group}.{key}` by hand"),
            ),
        }
    }

    fn sandbox(&mut self, name: &str, at: &At<'_>, table: &mut Table) {
        let mut root = false;
        if let Some(user) = at.get("user") {
            let text = user.text().unwrap_or_default();
            if matches!(text.split(':').next(), Some("root" | "0")) {
                root = true;
                self.ledger.carried(&user, "sandbox.root");
            } else {
                self.ledger.not_carried(
                    &user,
                    "an image that names no user runs as one of this environment",
                    format!("write `USER {text}` in the Dockerfile"),
                );
            }
        }
        let image = at.get("image").and_then(|at| at.text()).unwrap_or_default();
        let starts_as_root = at.get("build").is_none() && ROOT_IMAGES.contains(&image_base(&image));
        let mut capabilities = BTreeSet::new();
        if starts_as_root && at.get("user").is_none() {
            root = true;
            capabilities.extend(ROOT_CAPABILITIES.iter().map(|one| (*one).to_owned()));
            self.decide(format!(
                "`{name}` begins as root, as its official image does to own its folders"
            ));
        }
        if root {
            table.set_in("sandbox", "root", Toml::Flag(true));
        }
        let read_only = at.get("read_only");
        let is_read_only = read_only.as_ref().and_then(|at| at.text()).as_deref() == Some("true");
        if let Some(at) = &read_only {
            self.ledger.carried(at, "sandbox.writable");
        }
        if !is_read_only {
            table.set_in("sandbox", "writable", Toml::Flag(true));
            self.decide("containers may write to their image's files, as under Compose: take `writable` away where they need not");
        }
        for (text, item) in at.get("cap_add").iter().flat_map(At::texts) {
            let word = text.to_uppercase();
            let word = word.strip_prefix("CAP_").unwrap_or(&word);
            if CAPABILITIES.contains(&word) {
                capabilities.insert(word.to_owned());
                self.ledger.carried(&item, "sandbox.capabilities");
            } else {
                self.ledger.not_carried(
                    &item,
                    "a container is given capabilities one by one",
                    "name those that it needs in `sandbox.capabilities`",
                );
            }
        }
        if !capabilities.is_empty() {
            table.set_in("sandbox", "capabilities", Toml::texts(capabilities));
        }
    }

    fn grace(&mut self, at: &At<'_>, table: &mut Table) {
        let Some(at) = at.get("stop_grace_period") else {
            return;
        };
        match at.text().and_then(|text| duration(&text)) {
            Some(grace) if grace.as_secs() <= 3_600 => {
                table.set_text("grace", landfast_types::format_duration(grace));
                self.ledger.carried(&at, "grace");
            }
            _ => self.ledger.wrong(&at, "a duration of at most an hour"),
        }
    }

    /// `depends_on`, `links` and what variables say: `after` and `uses`.
    fn links(
        &mut self,
        name: &str,
        own: &str,
        at: &At<'_>,
        is_job: bool,
        environment: &super::env::Environment,
        table: &mut Table,
    ) {
        let mut after = BTreeSet::new();
        let mut uses = environment.uses.clone();
        let mut wanted = Vec::new();
        for at in at.get("depends_on").iter() {
            wanted.extend(at.fields().map(|(name, at)| (name.to_owned(), at)));
            wanted.extend(at.items().filter_map(|at| Some((at.text()?, at))));
        }
        for at in at.get("links").iter().flat_map(At::items) {
            let text = at.text().unwrap_or_default();
            let (other, alias) = text.split_once(':').unwrap_or((&text, &text));
            if alias != other {
                let mut pseudo = at.clone();
                pseudo.path.push_str(":alias");
                let instead = format!(
                    "reach it as `{}`",
                    self.names.get(other).map_or(other, String::as_str)
                );
                self.ledger.not_carried(
                    &pseudo,
                    "services are reached by their own names",
                    instead,
                );
            }
            wanted.push((other.to_owned(), at));
        }
        for (other, at) in wanted {
            let role = self.roles.get(&other).copied();
            let to = self.names.get(&other).cloned().unwrap_or_default();
            match role {
                Some(Role::Store(_)) => {
                    if !uses.contains(&to) {
                        uses.push(to);
                    }
                    self.depends_on_keys(&at, "uses");
                }
                Some(Role::Service) if is_job => {
                    self.ledger.not_carried(&at, "a job starts by itself", "it retries until what it needs is there");
                }
                Some(Role::Service) if other != name && !self.reaches(&to, own) => {
                    self.after.entry(own.to_owned()).or_default().insert(to.clone());
                    after.insert(to);
                    self.depends_on_keys(&at, "after");
                }
                Some(Role::Service) => self.ledger.not_carried(&at, "it would wait for itself", "remove the circle"),
                Some(Role::Job) => self.ledger.not_carried(
                    &at,
                    format!("`{other}` is a job, and a rollout waits for jobs at gates alone"),
                    format!("`landfast run {to}` before the deploy; migrations of a store: `migrations` in its table"),
                ),
                Some(Role::Proxy) => self.ledger.replaced(&at, "Landfast's proxy is always there"),
                Some(Role::Inactive) => self.ledger.not_carried(&at, format!("`{other}` was not imported"), "import its profile too"),
                None => self.ledger.not_carried(&at, format!("there is no service `{other}`"), "remove it"),
            }
        }
        if !uses.is_empty() {
            table.set("uses", Toml::texts(&uses));
        }
        if !after.is_empty() {
            table.set("after", Toml::texts(&after));
        }
    }

    fn depends_on_keys(&mut self, at: &At<'_>, to: &str) {
        if !at.node.is_map() || at.node.fields().is_empty() {
            self.ledger.carried(at, to);
            return;
        }
        for (key, value) in at.fields() {
            match (key, value.text().as_deref()) {
                ("condition", Some("service_started" | "service_healthy")) => self
                    .ledger
                    .carried(&value, format!("{to}: it waits until that one is ready")),
                ("required", Some("true")) => self.ledger.carried(&value, to),
                ("restart", _) => self.ledger.not_carried(
                    &value,
                    "a service is not restarted with another",
                    "an app reconnects by itself",
                ),
                _ => self.ledger.not_carried(
                    &value,
                    "what a service waits for is always there",
                    "nothing is to be done",
                ),
            }
        }
    }

    /// Whether one waits for another, over any number of others.
    fn reaches(&self, from: &str, to: &str) -> bool {
        let mut seen = BTreeSet::new();
        let mut open = vec![from.to_owned()];
        while let Some(name) = open.pop() {
            if name == to {
                return true;
            }
            if seen.insert(name.clone()) {
                open.extend(self.after.get(&name).into_iter().flatten().cloned());
            }
        }
        false
    }

    /// `deploy.update_config`: the manifest has one for all services.
    fn updates(&mut self, name: &str, at: &At<'_>) {
        let Some(at) = at.find("deploy.update_config") else {
            return;
        };
        let text = |key: &str| at.get(key).and_then(|at| at.text());
        let count = text("parallelism").and_then(|text| text.parse::<u64>().ok());
        let share = match count {
            Some(0) => Toml::text("100%"),
            Some(count) => Toml::Number(count.min(500)),
            None => Toml::Number(1),
        };
        for (key, value) in at.fields() {
            let word = value.text().unwrap_or_default();
            let set = match (key, word.as_str()) {
                ("parallelism", _) if count.is_some() => match text("order").as_deref() {
                    Some("stop-first") => vec![("max_unavailable", share.clone())],
                    _ => vec![("max_surge", share.clone())],
                },
                ("order", "start-first") => vec![
                    ("max_unavailable", Toml::Number(0)),
                    ("max_surge", share.clone()),
                ],
                ("order", "stop-first") => vec![
                    ("max_surge", Toml::Number(0)),
                    ("max_unavailable", share.clone()),
                ],
                ("failure_action", "rollback") => vec![("rollback", Toml::Flag(true))],
                ("failure_action", "pause") => vec![("rollback", Toml::Flag(false))],
                ("monitor", _) => match duration(&word).filter(|one| one.as_secs() <= 3_600) {
                    Some(monitor) => vec![(
                        "min_ready",
                        Toml::text(landfast_types::format_duration(monitor)),
                    )],
                    None => vec![],
                },
                ("max_failure_ratio", "0" | "0.0") => {
                    self.ledger.replaced(
                        &value,
                        "one instance that does not become ready fails a rollout",
                    );
                    continue;
                }
                _ => vec![],
            };
            if set.is_empty() {
                let (reason, instead) = match key {
                    "delay" => (
                        "the pace follows readiness",
                        "`min_ready` in [deploy] is how long an instance must be ready before the next",
                    ),
                    "failure_action" => (
                        "a failed rollout is taken back, or parked",
                        "`rollback` in [deploy]",
                    ),
                    "max_failure_ratio" => (
                        "one instance that does not become ready fails a rollout",
                        "nothing is to be done",
                    ),
                    _ => ("[deploy] has no such key", "look at docs/strategies.md"),
                };
                self.ledger.not_carried(&value, reason, instead);
                continue;
            }
            let differs = set.iter().any(|(key, value)| {
                self.draft
                    .deploy
                    .get(key)
                    .is_some_and(|other| other != value)
            });
            if differs {
                self.ledger.not_carried(
                    &value,
                    "[deploy] is for all services, and another says it otherwise",
                    "choose one of both",
                );
                continue;
            }
            for (key, value) in set {
                self.draft.deploy.set(key, value);
            }
            self.ledger.carried(&value, "[deploy]");
        }
        self.draft.deploy.comment(format!(
            "As `{name}` and others say in `deploy.update_config`; it is for the whole environment."
        ));
    }
}

/// A relative path that stays below.
pub(crate) fn inner_path(path: &str) -> Option<String> {
    let is_remote = path.contains("://") || path.starts_with("git@") || path.contains('\\');
    let is_absolute = path.starts_with('/') || path.starts_with('~') || path.get(1..2) == Some(":");
    if is_remote || is_absolute || path.contains(char::is_control) {
        return None;
    }
    let parts = path
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".");
    let parts = parts.collect::<Vec<_>>();
    if parts.contains(&"..") {
        return None;
    }
    Some(if parts.is_empty() {
        ".".to_owned()
    } else {
        parts.join("/")
    })
}

pub(crate) fn is_variable(name: &str) -> bool {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    !name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit()) && name.chars().all(is_word)
}
