//! A first manifest for a folder, from what a caller found in it. Only text is made here: the caller lists the
//! folder, hands over the files it knows, and writes the result.

use std::{collections::BTreeMap, fmt::Write as _};

use landfast_types::Name;

/// What was found in a folder.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FolderFacts {
    /// The name of the folder itself.
    pub folder: String,
    /// The package of `Cargo.toml`.
    pub cargo_package: Option<String>,
    /// Programs of `Cargo.toml` with a name of their own.
    pub cargo_bins: Vec<String>,
    /// The name in `package.json`.
    pub node_name: Option<String>,
    /// The `start` script of `package.json`.
    pub node_start: Option<String>,
    /// Process types of a `Procfile` and their command lines.
    pub procfile: Vec<(String, String)>,
    /// There is a `Dockerfile`.
    pub has_dockerfile: bool,
    /// Ports of its `EXPOSE` lines.
    pub docker_ports: Vec<u16>,
    /// The module of `go.mod`.
    pub go_module: Option<String>,
    /// The folder that holds an `index.html`, from here.
    pub static_folder: Option<String>,
    /// Ports found elsewhere, such as `PORT=` in `.env`.
    pub ports: Vec<u16>,
}

/// Files [`FolderFacts::add_file`] can read something from.
pub const FOLDER_FILES: &[&str] = &[
    "Cargo.toml",
    "package.json",
    "Procfile",
    "Dockerfile",
    "go.mod",
    ".env",
    "index.html",
    "public/index.html",
    "dist/index.html",
];

impl FolderFacts {
    /// Facts about a folder of this name, in which nothing was found yet.
    pub fn new(folder: &str) -> Self {
        Self {
            folder: folder.to_owned(),
            ..Self::default()
        }
    }

    /// Adds what a file says. `path` is one of [`FOLDER_FILES`]; others, and files that cannot be read, say
    /// nothing.
    pub fn add_file(&mut self, path: &str, text: &str) {
        match path {
            "Cargo.toml" => self.add_cargo(text),
            "package.json" => self.add_node(text),
            "Procfile" => self.procfile.extend(text.lines().filter_map(procfile_line)),
            "Dockerfile" => {
                self.has_dockerfile = true;
                self.docker_ports.extend(exposed(text));
            }
            "go.mod" => {
                let module = text
                    .lines()
                    .find_map(|line| line.trim().strip_prefix("module "));
                self.go_module = module.map(|module| module.trim().to_owned());
            }
            ".env" => {
                let port = text
                    .lines()
                    .find_map(|line| line.trim().strip_prefix("PORT="));
                self.ports
                    .extend(port.and_then(|port| port.trim_matches('"').parse::<u16>().ok()));
            }
            _ => {
                if let Some(folder) = path.strip_suffix("index.html") {
                    let folder = folder.trim_end_matches('/');
                    let folder = if folder.is_empty() { "." } else { folder };
                    self.static_folder.get_or_insert_with(|| folder.to_owned());
                }
            }
        }
    }

    fn add_cargo(&mut self, text: &str) {
        let Ok(table) = text.parse::<toml::Table>() else {
            return;
        };
        let package = table.get("package").and_then(|package| package.get("name"));
        self.cargo_package = package.and_then(|name| name.as_str()).map(str::to_owned);
        let bins = table
            .get("bin")
            .and_then(|bins| bins.as_array())
            .into_iter()
            .flatten();
        let names = bins.filter_map(|bin| bin.get("name")?.as_str().map(str::to_owned));
        self.cargo_bins.extend(names);
    }

    fn add_node(&mut self, text: &str) {
        let Ok(json) = serde_json::from_str::<serde_json::Value>(text) else {
            return;
        };
        let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
        self.node_name = text(&json["name"]);
        self.node_start = text(&json["scripts"]["start"]);
    }

    fn app_name(&self) -> String {
        let module = self
            .go_module
            .as_deref()
            .and_then(|module| module.rsplit('/').next());
        let named = [
            self.cargo_package.as_deref(),
            self.node_name.as_deref(),
            module,
        ];
        let candidates = named.into_iter().flatten().chain([self.folder.as_str()]);
        candidates
            .filter_map(slug)
            .next()
            .unwrap_or_else(|| "app".to_owned())
    }

    fn port(&self) -> u16 {
        let known = self.docker_ports.iter().chain(&self.ports);
        known.copied().find(|port| *port > 0).unwrap_or(3000)
    }

    /// The services to write: name, artifact, argv, whether it listens, and where that was read.
    fn services(&self) -> Vec<Draft> {
        let app = self.app_name();
        if !self.procfile.is_empty() {
            let artifact = self
                .artifact_of_programs()
                .unwrap_or_else(|| ".".to_owned());
            let drafts = self.procfile.iter().filter(|(name, _)| name != "release");
            return drafts
                .filter_map(|(name, line)| {
                    let listens = matches!(name.as_str(), "web" | "api" | "http" | "app");
                    Draft::new(&slug(name)?, &artifact, argv(line), listens, "Procfile")
                })
                .collect();
        }
        let bins = match (&self.cargo_bins[..], &self.cargo_package) {
            ([], Some(package)) => std::slice::from_ref(package),
            (bins, _) => bins,
        };
        let mut drafts = Vec::new();
        for (index, bin) in bins.iter().enumerate() {
            let artifact = format!("target/release/{bin}");
            let name = slug(bin).unwrap_or_else(|| app.clone());
            drafts.extend(Draft::new(
                &name,
                &artifact,
                vec![format!("./{bin}")],
                index == 0,
                "Cargo.toml",
            ));
        }
        if let Some(start) = &self.node_start {
            drafts.extend(Draft::new("web", ".", argv(start), true, "package.json"));
        }
        if self.go_module.is_some() {
            drafts.extend(Draft::new(
                &app,
                &app,
                vec![format!("./{app}")],
                true,
                "go.mod",
            ));
        }
        drafts
    }

    fn artifact_of_programs(&self) -> Option<String> {
        let bin = self.cargo_bins.first().or(self.cargo_package.as_ref())?;
        Some(format!("target/release/{bin}"))
    }
}

/// One service before it is written.
struct Draft {
    name: String,
    artifact: String,
    command: Vec<String>,
    listens: bool,
    found_in: &'static str,
}

impl Draft {
    fn new(
        name: &str,
        artifact: &str,
        command: Vec<String>,
        listens: bool,
        found_in: &'static str,
    ) -> Option<Self> {
        let usable = !command.is_empty() && !artifact.split('/').any(|part| part == "..");
        let (name, artifact) = (name.to_owned(), artifact.to_owned());
        usable.then_some(Self {
            name,
            artifact,
            command,
            listens,
            found_in,
        })
    }
}

/// Writes a commented manifest. Whatever the facts are, it parses without errors.
pub fn scaffold(facts: &FolderFacts) -> String {
    let app = facts.app_name();
    let mut text = String::new();
    put(
        &mut text,
        "# What Landfast deploys. `landfast check` reads it, `landfast plan` says what a deploy would do.",
    );
    put(&mut text, "# Every key: docs/reference/manifest.md\n");
    put(&mut text, &format!("app = {}", quote(&app)));
    let mut services = BTreeMap::new();
    for draft in facts.services() {
        services.entry(draft.name.clone()).or_insert(draft);
    }
    let is_built = services.is_empty() && facts.has_dockerfile;
    if services.is_empty() && !is_built {
        put(
            &mut text,
            "\n# Nothing that runs was found here: name the program that was built, and how it is started.",
        );
        if let Some(folder) = &facts.static_folder {
            put(
                &mut text,
                &format!(
                    "# There is an index.html in {}. This version serves no files by itself:",
                    quote(folder)
                ),
            );
            put(
                &mut text,
                "# deploy a program that does, with the folder as its artifact.",
            );
        }
        let artifact = format!("build/{app}");
        let draft = Draft::new(&app, &artifact, vec![format!("./{app}")], true, "");
        services.extend(draft.map(|draft| (app.clone(), draft)));
    }
    if is_built {
        write_build(&mut text, &app, facts.port());
        write_route(&mut text, &app, &app);
    }
    let mut routed = false;
    for draft in services.values() {
        write_service(&mut text, draft, facts.port());
        if draft.listens && !routed {
            routed = true;
            write_route(&mut text, &app, &draft.name);
        }
    }
    if let Some(command) = release_command(facts) {
        let artifact = services
            .values()
            .next()
            .map_or(".", |draft| draft.artifact.as_str());
        put(
            &mut text,
            "\n# `release` of the Procfile. By hand: landfast run release",
        );
        put(&mut text, "[jobs.release]");
        put(&mut text, &format!("artifact = {}", quote(artifact)));
        put(&mut text, &format!("command  = {}", quote_all(&command)));
    }
    text.push_str(DEPLOY);
    text
}

fn release_command(facts: &FolderFacts) -> Option<Vec<String>> {
    let (_, line) = facts.procfile.iter().find(|(name, _)| name == "release")?;
    Some(argv(line)).filter(|words| !words.is_empty())
}

const DEPLOY: &str = "
[deploy]
strategy = \"rolling\"        # rolling | blue-green | canary | recreate
gates    = [\"preflight\"]    # preflight | smoke | hold | approval | analysis

# Other places the app runs. Each replaces only what it names.
# [environments.production]
# services.NAME.replicas = 3
#
# [environments.staging]
# routes.public.host = \"staging.example.com\"
";

/// A service whose image is built from the folder's Dockerfile.
fn write_build(text: &mut String, app: &str, port: u16) {
    put(
        text,
        "\n# Found in Dockerfile: `landfast deploy` builds the image with the docker client.",
    );
    put(text, &format!("[services.{app}]"));
    put(
        text,
        "build    = \".\"   # or image = \"ghcr.io/acme/app:1.0\", where a registry has it",
    );
    put(
        text,
        &format!(
            "port     = {port}   # the program listens on it in the container; PORT says so too"
        ),
    );
    put(text, "replicas = 1");
    put(
        text,
        "health   = { ready = \"tcp\" }   # better: { ready = \"http:/ready\" }, or \"image\" for its HEALTHCHECK",
    );
    put(
        text,
        "# resources = { cpu = \"500m\", memory = \"512MiB\" }",
    );
    put(
        text,
        "# volumes   = { data = { from = \"managed\", at = \"/data\" } }   # what must outlive an instance",
    );
}

fn write_service(text: &mut String, draft: &Draft, port: u16) {
    put(text, "");
    if !draft.found_in.is_empty() {
        put(text, &format!("# Found in {}.", draft.found_in));
    }
    put(text, &format!("[services.{}]", draft.name));
    put(
        text,
        &format!(
            "artifact = {}   # file or folder; copied by content",
            quote(&draft.artifact)
        ),
    );
    if draft.command.first().is_some_and(|program| program == "sh") {
        put(
            text,
            "# A line for a shell: better is a list of words, so that signals reach the program itself.",
        );
    }
    put(text, &format!("command  = {}", quote_all(&draft.command)));
    if draft.listens {
        put(
            text,
            &format!("port     = {port}   # the program must listen on the port in PORT"),
        );
        put(text, "replicas = 1");
        put(
            text,
            "# Name a path that answers 2xx only when the service can work; \"tcp\" only connects.",
        );
        put(
            text,
            "health   = { ready = \"tcp\" }   # better: { ready = \"http:/ready\", live = \"http:/health\" }",
        );
    }
    put(
        text,
        "# resources = { cpu = \"500m\", memory = \"512MiB\" }",
    );
    put(
        text,
        "# env       = { LOG_LEVEL = \"info\" }   # secrets: landfast secret set NAME",
    );
}

fn write_route(text: &mut String, app: &str, service: &str) {
    put(text, "\n[routes.public]");
    put(
        text,
        &format!(
            "host    = {}   # \"*\" is any host",
            quote(&format!("{app}.localhost"))
        ),
    );
    put(text, &format!("service = {}", quote(service)));
    put(
        text,
        "# tls   = { certificate = \"/etc/tls/app.pem\", key = \"/etc/tls/app.key\" }",
    );
}

fn put(text: &mut String, line: &str) {
    writeln!(text, "{line}").expect("writing to a string cannot fail");
}

/// A TOML string. What TOML would want escaped beyond JSON is dropped: nobody names a program with DEL.
fn quote(text: &str) -> String {
    let printable = text.chars().filter(|c| !c.is_control()).collect::<String>();
    serde_json::Value::from(printable).to_string()
}

fn quote_all(words: &[String]) -> String {
    format!(
        "[{}]",
        words
            .iter()
            .map(|word| quote(word))
            .collect::<Vec<_>>()
            .join(", ")
    )
}

/// A command line as argv. One that needs a shell gets one, in the open.
fn argv(line: &str) -> Vec<String> {
    let line = line.trim();
    let needs_shell = line.contains([
        '$', '|', '&', ';', '<', '>', '*', '"', '\'', '`', '(', '=', '\\',
    ]);
    if needs_shell {
        return vec!["sh".to_owned(), "-c".to_owned(), line.to_owned()];
    }
    line.split_whitespace().map(str::to_owned).collect()
}

fn procfile_line(line: &str) -> Option<(String, String)> {
    let (name, command) = line.split_once(':')?;
    let name = name.trim();
    let fine = !name.starts_with('#') && slug(name).is_some() && !command.trim().is_empty();
    fine.then(|| (name.to_owned(), command.trim().to_owned()))
}

fn exposed(dockerfile: &str) -> Vec<u16> {
    let lines = dockerfile.lines().filter_map(|line| {
        let (word, rest) = line.trim().split_once(char::is_whitespace)?;
        word.eq_ignore_ascii_case("expose").then_some(rest)
    });
    let ports = lines.flat_map(str::split_whitespace);
    ports
        .filter_map(|port| port.split('/').next()?.parse::<u16>().ok())
        .collect()
}

/// The nearest name to a text, when there is one.
fn slug(text: &str) -> Option<String> {
    let text = text.rsplit('/').next().unwrap_or(text).to_lowercase();
    let mapped = text
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(40);
    let mapped = mapped.collect::<String>();
    let trimmed = mapped
        .trim_start_matches(|c: char| !c.is_ascii_lowercase())
        .trim_end_matches('-');
    Name::new(trimmed).ok().map(|name| name.as_str().to_owned())
}
