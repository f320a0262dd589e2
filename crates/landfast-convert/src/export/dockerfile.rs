//! A Dockerfile for a project of Rust or Node, or a static site: several stages, no root, a check, and signals that reach the program.

use std::collections::BTreeMap;

/// What kind of project a folder holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProjectKind {
    Rust,
    Node,
    Static,
}

impl ProjectKind {
    /// The word on the command line.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Rust => "rust",
            Self::Node => "node",
            Self::Static => "static",
        }
    }
}

/// Files that say what a folder holds.
pub const PROJECT_FILES: &[&str] = &[
    "Cargo.toml",
    "Cargo.lock",
    "rust-toolchain.toml",
    "src/main.rs",
    "package.json",
    "package-lock.json",
    "yarn.lock",
    "pnpm-lock.yaml",
    "npm-shrinkwrap.json",
    ".nvmrc",
    ".node-version",
    "index.html",
    "public/index.html",
    "dist/index.html",
    "build/index.html",
    "site/index.html",
    "migrations",
];

/// What was found in a folder: the texts of [`PROJECT_FILES`], and what the manifest says.
#[derive(Debug, Clone, Default)]
pub struct ProjectFacts {
    pub files: BTreeMap<String, String>,
    /// The port, where the manifest names one.
    pub port: Option<u16>,
    /// The path of the readiness check, where the manifest names one.
    pub ready: Option<String>,
    /// What is run, where the manifest says it.
    pub command: Option<Vec<String>>,
}

/// The two files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DockerFiles {
    pub kind: ProjectKind,
    pub dockerfile: String,
    pub dockerignore: String,
    /// What was decided, in words.
    pub decisions: Vec<String>,
}

/// Makes a Dockerfile. `kind` is found out where it is not given; `None`: nothing that is known is there.
pub fn dockerfile(facts: &ProjectFacts, kind: Option<ProjectKind>) -> Option<DockerFiles> {
    let has = |path: &str| facts.files.contains_key(path);
    let kind = kind.or_else(|| {
        if has("Cargo.toml") {
            Some(ProjectKind::Rust)
        } else if has("package.json") {
            Some(ProjectKind::Node)
        } else {
            static_folder(facts).map(|_| ProjectKind::Static)
        }
    })?;
    match kind {
        ProjectKind::Rust => rust(facts),
        ProjectKind::Node => node(facts),
        ProjectKind::Static => Some(site(facts, static_folder(facts).unwrap_or("."))),
    }
}

fn static_folder(facts: &ProjectFacts) -> Option<&'static str> {
    let folders = [
        ("dist/index.html", "dist"),
        ("build/index.html", "build"),
        ("public/index.html", "public"),
        ("site/index.html", "site"),
        ("index.html", "."),
    ];
    folders
        .into_iter()
        .find(|(file, _)| facts.files.contains_key(*file))
        .map(|(_, folder)| folder)
}

fn argv(words: &[String]) -> String {
    let words = words
        .iter()
        .map(|word| serde_json::Value::from(word.as_str()).to_string());
    format!("[{}]", words.collect::<Vec<_>>().join(", "))
}

/// A word that cannot end a line or a shell's word.
fn plain(text: &str) -> bool {
    !text.is_empty()
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_.+/?=&%~".contains(c))
}

fn rust(facts: &ProjectFacts) -> Option<DockerFiles> {
    let cargo = facts.files.get("Cargo.toml")?;
    let table = cargo.parse::<toml::Table>().ok()?;
    let package = table
        .get("package")
        .and_then(|package| package.get("name"))
        .and_then(|name| name.as_str());
    let bins = table
        .get("bin")
        .and_then(|bins| bins.as_array())
        .into_iter()
        .flatten();
    let bins = bins
        .filter_map(|bin| bin.get("name")?.as_str())
        .collect::<Vec<_>>();
    let default = table
        .get("package")
        .and_then(|package| package.get("default-run"))
        .and_then(|name| name.as_str());
    let program = default
        .or(bins.first().copied())
        .or(package)
        .filter(|name| plain(name))
        .unwrap_or("app");
    let workspace = table.get("workspace").is_some();
    let version = facts.files.get("rust-toolchain.toml").and_then(|text| {
        let table = text.parse::<toml::Table>().ok()?;
        let channel = table.get("toolchain")?.get("channel")?.as_str()?.to_owned();
        channel
            .starts_with(|c: char| c.is_ascii_digit())
            .then_some(channel)
    });
    let version = version
        .filter(|version| plain(version))
        .unwrap_or_else(|| "1".to_owned());
    let locked = if facts.files.contains_key("Cargo.lock") {
        " --locked"
    } else {
        ""
    };
    let port = facts.port.unwrap_or(3_000);
    let package_flag = if workspace {
        format!(" --bin {program}")
    } else {
        String::new()
    };
    let command = facts.command.clone().unwrap_or_default();
    let arguments = command.get(1..).unwrap_or_default();
    let mut words = vec![format!("/app/{program}")];
    words.extend(arguments.iter().cloned());
    let ready = facts
        .ready
        .as_deref()
        .filter(|path| plain(path) && path.starts_with('/'));
    let check = match ready {
        // Debian's slim image has bash, and neither curl nor wget.
        Some(path) => format!(
            "exec 3<>/dev/tcp/127.0.0.1/${{PORT}} && printf '%s\\r\\n' 'GET {path} HTTP/1.0' 'Host: localhost' '' >&3 && read -r _ status _ <&3 && [[ $status == [23]* ]]"
        ),
        None => "exec 3<>/dev/tcp/127.0.0.1/${PORT}".to_owned(),
    };
    let check = argv(&["bash".to_owned(), "-c".to_owned(), check]);
    let dockerfile = format!(
        "# Written by `landfast export dockerfile`.
FROM rust:{version}-bookworm AS build
WORKDIR /src
COPY . .
# With BuildKit, `--mount=type=cache,target=/src/target` makes the next build faster.
RUN cargo build --release{locked}{package_flag} && mkdir /out && cp target/release/{program} /out/

FROM debian:bookworm-slim AS runtime
# A user with a number, so that a host can hold it to be no root.
RUN groupadd --system --gid 10001 app && useradd --system --uid 10001 --gid app --no-create-home --shell /usr/sbin/nologin app
WORKDIR /app
COPY --from=build /out/{program} /app/{program}
USER 10001:10001
ENV PORT={port}
EXPOSE {port}
# The program is the first process: signals reach it, with no shell between. It must end at SIGTERM.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=2s --start-period=30s --retries=3 CMD {check}
ENTRYPOINT {}
",
        argv(&words)
    );
    Some(DockerFiles {
        kind: ProjectKind::Rust,
        dockerfile,
        dockerignore: "# Written by `landfast export dockerfile`.\ntarget\n.git\n.env\n.env.*\n**/*.pem\n**/*.key\nDockerfile\n.dockerignore\n".to_owned(),
        decisions: vec![
            format!("the program is `{program}`"),
            format!("it listens on PORT, {port} without it"),
            match ready {
                Some(path) => format!("it is asked at {path}"),
                None => "it is asked whether its port is open: name a path in `health.ready` for more".to_owned(),
            },
            "it is the first process and has no init: Landfast and `docker run --init` give one".to_owned(),
        ],
    })
}

fn node(facts: &ProjectFacts) -> Option<DockerFiles> {
    let package =
        serde_json::from_str::<serde_json::Value>(facts.files.get("package.json")?).ok()?;
    let has = |path: &str| facts.files.contains_key(path);
    let script = |name: &str| package["scripts"][name].as_str();
    let version = facts
        .files
        .get(".nvmrc")
        .or_else(|| facts.files.get(".node-version"));
    let version = version.map(|text| text.trim().trim_start_matches('v').to_owned());
    let from_engines = || {
        let text = package["engines"]["node"].as_str()?;
        let number = text.trim_start_matches(|c: char| !c.is_ascii_digit());
        Some(
            number
                .chars()
                .take_while(char::is_ascii_digit)
                .collect::<String>(),
        )
        .filter(|number| !number.is_empty())
    };
    let version = version
        .filter(|version| plain(version) && version.starts_with(|c: char| c.is_ascii_digit()));
    let version = version
        .or_else(from_engines)
        .unwrap_or_else(|| "22".to_owned());
    let depends = |key: &str| {
        package[key]
            .as_object()
            .is_some_and(|table| !table.is_empty())
    };
    let (install, prune, lock) = if has("pnpm-lock.yaml") {
        (
            "corepack enable && pnpm install --frozen-lockfile",
            "pnpm prune --prod",
            "pnpm-lock.yaml",
        )
    } else if has("yarn.lock") {
        (
            "corepack enable && yarn install --frozen-lockfile",
            "yarn install --frozen-lockfile --production",
            "yarn.lock",
        )
    } else if has("package-lock.json") || has("npm-shrinkwrap.json") {
        ("npm ci", "npm prune --omit=dev", "package-lock.json")
    } else {
        ("npm install", "npm prune --omit=dev", "")
    };
    let mut steps = Vec::new();
    if depends("dependencies") || depends("devDependencies") {
        steps.push(format!("COPY package.json {lock} ./").replace("  ", " "));
        steps.push(format!("RUN {install}"));
    }
    steps.push("COPY . .".to_owned());
    if script("build").is_some() {
        steps.push("RUN npm run build".to_owned());
    }
    if depends("devDependencies") {
        steps.push(format!("RUN {prune}"));
    }
    let main = package["main"]
        .as_str()
        .filter(|main| plain(main))
        .unwrap_or("index.js");
    // A package manager in between would keep signals from the program.
    let start = script("start").map(|line| {
        line.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    });
    let start = start.filter(|words| {
        words.first().is_some_and(|word| word == "node") && words.iter().all(|word| plain(word))
    });
    let given = facts
        .command
        .clone()
        .filter(|words| words.first().is_some_and(|word| word == "node"));
    let words = given
        .or(start)
        .unwrap_or_else(|| vec!["node".to_owned(), main.to_owned()]);
    let port = facts.port.unwrap_or(3_000);
    let path = facts
        .ready
        .as_deref()
        .filter(|path| plain(path) && path.starts_with('/'))
        .unwrap_or("/");
    let check = format!(
        "fetch('http://127.0.0.1:'+process.env.PORT+'{path}',{{redirect:'manual'}}).then(r=>process.exit(r.status<400?0:1),()=>process.exit(1))"
    );
    let check = argv(&["node".to_owned(), "-e".to_owned(), check]);
    let dockerfile = format!(
        "# Written by `landfast export dockerfile`.
FROM node:{version}-bookworm-slim AS build
WORKDIR /app
{}

FROM node:{version}-bookworm-slim AS runtime
# Node as the first process ignores signals it has no handler for, and leaves orphans: tini is the first process.
RUN command -v tini >/dev/null || (apt-get update && apt-get install -y --no-install-recommends tini && rm -rf /var/lib/apt/lists/*)
ENV NODE_ENV=production
WORKDIR /app
COPY --from=build --chown=root:root /app /app
# The image's own user `node`, by its number.
USER 1000:1000
ENV PORT={port}
EXPOSE {port}
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s --retries=3 CMD {check}
ENTRYPOINT [\"tini\", \"--\"]
CMD {}
",
        steps.join("\n"),
        argv(&words)
    );
    Some(DockerFiles {
        kind: ProjectKind::Node,
        dockerfile,
        dockerignore: "# Written by `landfast export dockerfile`.\nnode_modules\n.git\n.env\n.env.*\nnpm-debug.log\n**/*.pem\n**/*.key\nDockerfile\n.dockerignore\n".to_owned(),
        decisions: vec![
            format!("it is started as `{}`, without npm between", words.join(" ")),
            format!("it listens on PORT, {port} without it, and is asked at {path}"),
        ],
    })
}

fn site(facts: &ProjectFacts, folder: &str) -> DockerFiles {
    let port = facts.port.unwrap_or(8_080);
    let from = if folder == "." { "." } else { folder };
    let dockerfile = format!(
        r#"# Written by `landfast export dockerfile`.
FROM debian:bookworm-slim AS build
COPY {from} /site
# What is no part of the site does not go out with it.
RUN rm -rf /site/.git /site/.env* /site/Dockerfile /site/.dockerignore && find /site -type d -exec chmod 755 {{}} + && find /site -type f -exec chmod 644 {{}} +
RUN printf '%s\n' \
    'worker_processes 1;' \
    'pid /tmp/nginx.pid;' \
    'error_log /dev/stderr warn;' \
    'events {{ worker_connections 1024; }}' \
    'http {{' \
    '  include /etc/nginx/mime.types;' \
    '  default_type application/octet-stream;' \
    '  access_log /dev/stdout;' \
    '  server_tokens off;' \
    '  client_body_temp_path /tmp/client_body;' \
    '  proxy_temp_path /tmp/proxy;' \
    '  fastcgi_temp_path /tmp/fastcgi;' \
    '  uwsgi_temp_path /tmp/uwsgi;' \
    '  scgi_temp_path /tmp/scgi;' \
    '  gzip on;' \
    '  gzip_types text/css application/javascript application/json image/svg+xml;' \
    '  server {{' \
    '    listen {port};' \
    '    root /site;' \
    '    location = /healthz {{ return 204; }}' \
    '    location / {{ try_files $uri $uri/ $uri.html =404; }}' \
    '  }}' \
    '}}' > /nginx.conf

FROM nginx:stable-bookworm AS runtime
COPY --from=build /nginx.conf /etc/nginx/nginx.conf
COPY --from=build /site /site
USER 10001:10001
EXPOSE {port}
# nginx ends at once at SIGTERM; at SIGQUIT it first answers what it has begun.
STOPSIGNAL SIGQUIT
HEALTHCHECK --interval=5s --timeout=2s --start-period=5s --retries=3 CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/{port} && printf 'GET /healthz HTTP/1.0\\r\\n\\r\\n' >&3 && read -r _ status _ <&3 && [[ $status == 2* ]]"]
ENTRYPOINT ["nginx", "-g", "daemon off;"]
"#
    );
    DockerFiles {
        kind: ProjectKind::Static,
        dockerfile,
        dockerignore: "# Written by `landfast export dockerfile`.\n.git\nnode_modules\n.env\n.env.*\n**/*.pem\n**/*.key\nDockerfile\n.dockerignore\n".to_owned(),
        decisions: vec![format!("the site is the folder `{folder}`, served at port {port} by nginx without root")],
    }
}
