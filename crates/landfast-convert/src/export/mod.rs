//! A checked manifest becomes a Compose file with nginx in front of it, and everything it needs beside it.

pub(crate) mod dockerfile;
pub(crate) mod equivalence;
mod nginx;
mod stores;
mod yaml;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use landfast_spec::{
    AppSpec, EnvVar, HealthSpec, ImageSource, JobSpec, Probe, Pull, ResourcesSpec, SandboxSpec,
    SecretDelivery, ServiceSpec, Strategy, Volume, When,
};
use landfast_types::StoreName;
use serde_json::{Map, Value, json};

use crate::units::exact_bytes;

/// How the files find the project.
#[derive(Debug, Clone)]
pub struct ExportOptions {
    /// The manifest's folder, from the folder that is written to: `..`.
    pub project: String,
    /// The folder that is written to, from the manifest's: `compose`.
    pub folder: String,
}

/// One file to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportedFile {
    /// From the folder that is written to.
    pub path: String,
    pub text: String,
}

/// The image that plain processes run in.
const BASE_IMAGE: &str = "debian:bookworm-slim";

/// Makes the files. The first is `compose.yaml`.
pub fn export_compose(spec: &AppSpec, options: &ExportOptions) -> Vec<ExportedFile> {
    let mut export = Export {
        spec,
        options,
        files: Vec::new(),
        secrets: BTreeSet::new(),
        addresses: BTreeMap::new(),
        variables: BTreeMap::new(),
        volumes: BTreeSet::new(),
        store_names: stores::names(spec),
    };
    let mut services = Map::new();
    if !spec.routes.is_empty() {
        let (proxy, files) = nginx::proxy(spec, options);
        services.insert(free("nginx", spec), proxy);
        export.files.extend(files);
    }
    for (name, service) in &spec.services {
        services.insert(name.to_string(), export.service(name.as_str(), service));
    }
    for (name, job) in &spec.jobs {
        services.insert(format!("job-{name}"), export.job(name.as_str(), job));
    }
    for (name, store) in &spec.stores {
        if let Some(value) = export.store(name, store) {
            services.insert(export.store_names[name].clone(), value);
        }
    }
    let mut root = Map::new();
    root.insert("services".to_owned(), services.into());
    let mut networks = Map::new();
    networks.insert("app".to_owned(), json!({}));
    for (name, store) in &spec.stores {
        if store.is_managed() {
            networks.insert(format!("store-{name}"), json!({ "internal": true }));
        }
    }
    root.insert("networks".to_owned(), networks.into());
    if !export.volumes.is_empty() {
        let volumes = export.volumes.iter().map(|name| (name.clone(), json!({})));
        root.insert("volumes".to_owned(), volumes.collect::<Map<_, _>>().into());
    }
    if !export.secrets.is_empty() {
        let secrets = export
            .secrets
            .iter()
            .map(|name| (name.clone(), json!({ "file": format!("./secrets/{name}") })));
        root.insert("secrets".to_owned(), secrets.collect::<Map<_, _>>().into());
    }
    let head = format!(
        "# Written by `landfast export compose` from the app {} in {}. What Compose cannot do: EQUIVALENCE.md\n# Start: cp .env.example .env, fill it and secrets/, then `docker-compose up -d` (or `docker compose up -d`)\n",
        spec.app, spec.environment
    );
    let mut files = vec![ExportedFile {
        path: "compose.yaml".to_owned(),
        text: head + &yaml::write(&root.into()),
    }];
    files.append(&mut export.files);
    files.push(export.dotenv());
    files
}

pub(super) struct Export<'a> {
    pub(super) spec: &'a AppSpec,
    pub(super) options: &'a ExportOptions,
    pub(super) files: Vec<ExportedFile>,
    /// Files of secrets.
    pub(super) secrets: BTreeSet<String>,
    /// What stands in files of secrets that are made of others.
    pub(super) addresses: BTreeMap<String, String>,
    /// Variables of `.env`, and what each is.
    pub(super) variables: BTreeMap<String, String>,
    pub(super) volumes: BTreeSet<String>,
    pub(super) store_names: BTreeMap<StoreName, String>,
}

/// What services and jobs have in common.
struct Process<'a> {
    name: &'a str,
    artifact: Option<&'a str>,
    container: Option<&'a landfast_spec::ContainerSpec>,
    command: &'a [String],
    resources: &'a ResourcesSpec,
    sandbox: &'a SandboxSpec,
    volumes: &'a BTreeMap<String, Volume>,
    env: &'a BTreeMap<String, EnvVar>,
    uses: &'a [StoreName],
    secrets: SecretDelivery,
}

impl Export<'_> {
    fn service(&mut self, name: &str, service: &ServiceSpec) -> Value {
        let process = Process {
            name,
            artifact: service.artifact.as_deref(),
            container: service.container.as_ref(),
            command: &service.command,
            resources: &service.resources,
            sandbox: &service.sandbox,
            volumes: &service.volumes,
            env: &service.env,
            uses: &service.uses,
            secrets: service.secrets,
        };
        let mut value = self.process(&process, service.port);
        if let Some(port) = service.port {
            value.insert("expose".to_owned(), json!([port.to_string()]));
        }
        let health = health(
            &service.health,
            service.port,
            self.spec.deploy.healthy_deadline,
        );
        value.insert("healthcheck".to_owned(), health);
        // What is in flight has `drain`, and the process `grace` after it.
        value.insert(
            "stop_grace_period".to_owned(),
            duration(service.grace).into(),
        );
        value.insert("restart".to_owned(), "unless-stopped".into());
        let mut depends = self.depends(&service.uses);
        for other in &service.after {
            depends.insert(other.to_string(), json!({ "condition": "service_started" }));
        }
        if !depends.is_empty() {
            value.insert("depends_on".to_owned(), depends.into());
        }
        let deploy = self.deploy(service);
        value.insert("deploy".to_owned(), deploy);
        value.into()
    }

    fn job(&mut self, name: &str, job: &JobSpec) -> Value {
        let process = Process {
            name: &format!("job-{name}"),
            artifact: job.artifact.as_deref(),
            container: job.container.as_ref(),
            command: &job.command,
            resources: &job.resources,
            sandbox: &job.sandbox,
            volumes: &job.volumes,
            env: &job.env,
            uses: &job.uses,
            secrets: job.secrets,
        };
        let mut value = self.process(&process, None);
        let when = match &job.when {
            When::Gate { gate } => format!("gate:{gate}"),
            When::Cron { line } => line.to_string(),
            When::Hand => "hand".to_owned(),
        };
        value.insert("profiles".to_owned(), json!(["jobs"]));
        value.insert("restart".to_owned(), "no".into());
        value.insert("labels".to_owned(), json!({ "dev.landfast.when": literal(&when), "dev.landfast.timeout": duration(job.timeout) }));
        if let Some(reservations) = job.container.as_ref().and_then(reservations) {
            value.insert("deploy".to_owned(), json!({ "resources": reservations }));
        }
        let depends = self.depends(&job.uses);
        if !depends.is_empty() {
            value.insert("depends_on".to_owned(), depends.into());
        }
        value.into()
    }

    fn process(&mut self, process: &Process<'_>, port: Option<u16>) -> Map<String, Value> {
        let mut value = Map::new();
        self.content(process, &mut value);
        let argv = |words: &[String]| words.iter().map(|word| literal(word)).collect::<Vec<_>>();
        if let Some(entrypoint) = process.container.and_then(|one| one.entrypoint.as_ref()) {
            value.insert("entrypoint".to_owned(), argv(entrypoint).into());
        }
        if !process.command.is_empty() {
            value.insert("command".to_owned(), argv(process.command).into());
        }
        value.insert("init".to_owned(), true.into());
        let (mut env, secrets) = self.variables_of(process, port);
        let mounts = self.mounts(process, &mut env);
        if !secrets.is_empty() {
            value.insert("secrets".to_owned(), secrets.into());
        }
        if !env.is_empty() {
            value.insert("environment".to_owned(), env.into());
        }
        if !mounts.is_empty() {
            value.insert("volumes".to_owned(), mounts.into());
        }
        limits(process, &mut value);
        isolation(process.sandbox, &mut value);
        let mut networks = vec!["app".to_owned()];
        let managed = process.uses.iter().filter(|name| {
            self.spec
                .stores
                .get(*name)
                .is_some_and(landfast_spec::StoreSpec::is_managed)
        });
        networks.extend(managed.map(|name| format!("store-{name}")));
        value.insert("networks".to_owned(), networks.into());
        value
    }

    /// `image` or `build`.
    fn content(&mut self, process: &Process<'_>, value: &mut Map<String, Value>) {
        match process.container.map(|one| &one.source) {
            Some(ImageSource::Image { name, pull }) => {
                value.insert("image".to_owned(), literal(&name.to_string()).into());
                let policy = pull_policy(*pull);
                value.extend(policy.map(|policy| ("pull_policy".to_owned(), policy.into())));
            }
            Some(ImageSource::Build(build)) => {
                let mut table = Map::new();
                table.insert(
                    "context".to_owned(),
                    join(&self.options.project, &build.context).into(),
                );
                let texts = [("dockerfile", &build.dockerfile), ("target", &build.target)];
                for (key, text) in texts {
                    table.extend(
                        text.iter()
                            .map(|text| (key.to_owned(), literal(text).into())),
                    );
                }
                if !build.args.is_empty() {
                    let args = build
                        .args
                        .iter()
                        .map(|(name, text)| (name.clone(), literal(text).into()));
                    table.insert("args".to_owned(), args.collect::<Map<_, _>>().into());
                }
                value.insert("build".to_owned(), table.into());
                value.extend(
                    build
                        .platform
                        .iter()
                        .map(|platform| ("platform".to_owned(), literal(platform).into())),
                );
            }
            None => {
                let artifact = process.artifact.unwrap_or(".");
                let file = format!("{}.Dockerfile", process.name);
                let dockerfile = join(&self.options.folder, &file);
                value.insert(
                    "build".to_owned(),
                    json!({ "context": self.options.project, "dockerfile": dockerfile }),
                );
                self.files.push(ExportedFile {
                    path: file,
                    text: process_dockerfile(artifact),
                });
            }
        }
    }

    /// The variables of a process, and the secrets that it has as files.
    fn variables_of(
        &mut self,
        process: &Process<'_>,
        port: Option<u16>,
    ) -> (Map<String, Value>, Vec<Value>) {
        let mut env = Map::new();
        env.extend(port.map(|port| ("PORT".to_owned(), port.to_string().into())));
        let mut files = Vec::new();
        for (name, variable) in process.env {
            match &variable.value {
                Some(text) => {
                    env.insert(name.clone(), literal(text).into());
                }
                None => {
                    let form = if variable.required {
                        ":?write it to .env"
                    } else {
                        ""
                    };
                    env.insert(name.clone(), format!("${{{name}{form}}}").into());
                    self.variables.insert(
                        name.clone(),
                        format!("for `{}`; required: {}", process.name, variable.required),
                    );
                    if process.secrets == SecretDelivery::Files {
                        env.insert(
                            format!("{name}_FILE"),
                            format!("/run/secrets/{name}").into(),
                        );
                        self.secrets.insert(name.clone());
                        files.push(name.clone().into());
                    }
                }
            }
        }
        for (name, given) in self.store_variables(process.uses) {
            if env.contains_key(&name) {
                continue;
            }
            env.insert(name.clone(), given.text.into());
            let secret = given.secret;
            if let Some(secret) = secret.filter(|_| process.secrets == SecretDelivery::Files) {
                env.insert(
                    format!("{name}_FILE"),
                    format!("/run/secrets/{name}").into(),
                );
                files.push(json!({ "source": secret, "target": name }));
                self.secrets.insert(secret);
            }
        }
        (env, files)
    }

    fn mounts(&mut self, process: &Process<'_>, env: &mut Map<String, Value>) -> Vec<Value> {
        let mut mounts = Vec::new();
        for (name, volume) in process.volumes {
            let given = process
                .container
                .and_then(|one| one.mounts.get(name).cloned());
            let at = given.unwrap_or_else(|| format!("/volumes/{name}"));
            let source = match volume {
                Volume::Managed => {
                    self.volumes.insert(name.clone());
                    name.clone()
                }
                Volume::Path { path } => literal(path),
            };
            let kind = if matches!(volume, Volume::Managed) {
                "volume"
            } else {
                "bind"
            };
            mounts.push(json!({ "type": kind, "source": source, "target": literal(&at) }));
            let variable = format!("VOLUME_{}", name.to_uppercase().replace('-', "_"));
            env.insert(variable, literal(&at).into());
        }
        let reads = process.sandbox.read_only.iter().map(|path| (path, true));
        let writes = process.sandbox.read_write.iter().map(|path| (path, false));
        for (path, read_only) in reads.chain(writes) {
            mounts.push(json!({ "type": "bind", "source": literal(path), "target": literal(path), "read_only": read_only }));
        }
        mounts
    }

    fn depends(&self, uses: &[StoreName]) -> Map<String, Value> {
        let managed = uses.iter().filter(|name| {
            self.spec
                .stores
                .get(*name)
                .is_some_and(landfast_spec::StoreSpec::is_managed)
        });
        let depends = managed.map(|name| {
            (
                self.store_names[name].clone(),
                json!({ "condition": "service_healthy" }),
            )
        });
        depends.collect()
    }

    /// What a Swarm reads; `docker-compose up` takes `replicas` of it.
    fn deploy(&self, service: &ServiceSpec) -> Value {
        let deploy = &self.spec.deploy;
        let mut value = json!({ "replicas": service.replicas });
        if let Some(reservations) = service.container.as_ref().and_then(reservations) {
            value["resources"] = reservations;
        }
        let stops_first = deploy.strategy == Strategy::Recreate || service.exclusive;
        let surge = deploy.max_surge.of_ceil(service.replicas);
        let missing = deploy.max_unavailable.of_floor(service.replicas);
        let order = if stops_first || surge == 0 {
            "stop-first"
        } else {
            "start-first"
        };
        let count = if stops_first {
            service.replicas
        } else if surge == 0 {
            missing.max(1)
        } else {
            surge
        };
        value["update_config"] = json!({
            "parallelism": count,
            "order": order,
            "failure_action": if deploy.rollback { "rollback" } else { "pause" },
            "monitor": duration(deploy.min_ready),
        });
        value
    }

    fn dotenv(&self) -> ExportedFile {
        let mut text = "# Copy it to .env. Values are read by Compose, and shown by `docker inspect`.\n# A value with `$` is written in single quotes.\n".to_owned();
        text.push_str("HTTP_PORT=80\nHTTPS_PORT=443\nNGINX_IMAGE=nginx:stable\n");
        for (name, what) in &self.variables {
            text.push_str(&format!("# {what}\n{name}=\n"));
        }
        if !self.secrets.is_empty() {
            text.push_str(
                "# The same values as files, without a line's end, readable for the containers' users alone:\n",
            );
            for name in &self.secrets {
                let address = self.addresses.get(name);
                let address = address.map_or(String::new(), |address| format!(" ({address})"));
                text.push_str(&format!("#   secrets/{name}{address}\n"));
            }
        }
        ExportedFile {
            path: ".env.example".to_owned(),
            text,
        }
    }
}

/// What is kept for a process, where anything is.
fn reservations(container: &landfast_spec::ContainerSpec) -> Option<Value> {
    let reserve = container.reserve;
    let mut table = Map::new();
    table.extend(
        reserve
            .cpu
            .map(|cpu| ("cpus".to_owned(), cores(cpu.millicores).into())),
    );
    table.extend(
        reserve
            .memory
            .map(|memory| ("memory".to_owned(), size(memory).into())),
    );
    (!table.is_empty()).then(|| json!({ "reservations": table }))
}

fn limits(process: &Process<'_>, value: &mut Map<String, Value>) {
    let resources = process.resources;
    if let Some(cpu) = resources.cpu {
        let cores = cpu.millicores as f64 / 1_000.0;
        value.insert("cpus".to_owned(), cores.into());
    }
    value.extend(
        resources
            .memory
            .map(|memory| ("mem_limit".to_owned(), size(memory).into())),
    );
    value.insert(
        "pids_limit".to_owned(),
        resources.processes.unwrap_or(4_096).into(),
    );
    if let Some(count) = resources.descriptors {
        value.insert(
            "ulimits".to_owned(),
            json!({ "nofile": { "soft": count, "hard": count } }),
        );
    }
    let reserve = process.container.and_then(|one| one.reserve.memory);
    value.extend(reserve.map(|memory| ("mem_reservation".to_owned(), size(memory).into())));
}

fn isolation(sandbox: &SandboxSpec, value: &mut Map<String, Value>) {
    if !sandbox.writable {
        value.insert("read_only".to_owned(), true.into());
    }
    let mut tmpfs = vec!["/tmp".to_owned()];
    tmpfs.extend(sandbox.tmpfs.iter().map(|path| literal(path)));
    value.insert("tmpfs".to_owned(), tmpfs.into());
    value.insert("cap_drop".to_owned(), json!(["ALL"]));
    if !sandbox.capabilities.is_empty() {
        value.insert("cap_add".to_owned(), sandbox.capabilities.clone().into());
    }
    value.insert("security_opt".to_owned(), json!(["no-new-privileges:true"]));
}

fn health(health: &HealthSpec, port: Option<u16>, deadline: Duration) -> Value {
    let test = match (&health.ready, port) {
        (Probe::Http { path }, Some(port)) => {
            let url = literal(&shell_word(&format!("http://127.0.0.1:{port}{path}")));
            Some(json!([
                "CMD-SHELL",
                format!("curl -fsS -o /dev/null {url} || wget -q -O /dev/null {url} || exit 1")
            ]))
        }
        (Probe::Tcp, Some(port)) => {
            let test =
                format!("nc -z 127.0.0.1 {port} || bash -c '</dev/tcp/127.0.0.1/{port}' || exit 1");
            Some(json!(["CMD-SHELL", test]))
        }
        (Probe::Image, _) => None,
        (Probe::None, _) | (Probe::Http { .. } | Probe::Tcp, None) => {
            return json!({ "disable": true });
        }
    };
    let mut value = Map::new();
    value.extend(test.map(|test| ("test".to_owned(), test)));
    value.insert("interval".to_owned(), duration(health.interval).into());
    value.insert("timeout".to_owned(), duration(health.timeout).into());
    value.insert("retries".to_owned(), health.unhealthy_after.into());
    value.insert("start_period".to_owned(), duration(deadline).into());
    value.into()
}

/// A word of a shell's line.
fn shell_word(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// Text that Compose leaves as it is.
pub(super) fn literal(text: &str) -> String {
    text.replace('$', "$$")
}

pub(super) fn size(bytes: landfast_types::Bytes) -> String {
    let text = exact_bytes(bytes);
    text.replace("iB", "").replace('B', "").to_lowercase()
        + if text.ends_with("iB") { "" } else { "b" }
}

fn cores(millicores: u64) -> String {
    format!("{}", millicores as f64 / 1_000.0)
}

/// As Compose reads it: whole milliseconds or seconds.
pub(super) fn duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    if millis.is_multiple_of(1_000) {
        format!("{}s", millis / 1_000)
    } else {
        format!("{millis}ms")
    }
}

/// Joins relative paths.
pub(super) fn join(folder: &str, path: &str) -> String {
    match (folder.trim_end_matches('/'), path) {
        (folder, "." | "") => folder.to_owned(),
        (".", path) => path.to_owned(),
        (folder, path) => format!("{folder}/{path}"),
    }
}

/// A name no service or store has.
fn free(name: &str, spec: &AppSpec) -> String {
    let taken = |name: &str| {
        spec.services.keys().any(|one| one.as_str() == name)
            || spec.stores.keys().any(|one| one.as_str() == name)
    };
    let mut free = name.to_owned();
    while taken(&free) {
        free.push_str("-proxy");
    }
    free
}

fn process_dockerfile(artifact: &str) -> String {
    let copy = json!([artifact, "./"]);
    [
        "# A plain process of the manifest, in a container: the artifact, and nothing else of the project.".to_owned(),
        format!("FROM {BASE_IMAGE}"),
        "WORKDIR /app".to_owned(),
        format!("COPY {copy}"),
        "USER 10001:10001".to_owned(),
        "STOPSIGNAL SIGTERM".to_owned(),
        String::new(),
    ]
    .join("\n")
}

/// `pull_policy` of the Compose specification; its own default asks where the image is missing.
fn pull_policy(pull: Pull) -> Option<&'static str> {
    match pull {
        Pull::Newer => None,
        Pull::Missing => Some("if_not_present"),
        Pull::Always => Some("always"),
        Pull::Never => Some("never"),
    }
}
