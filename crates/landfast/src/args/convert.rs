//! `import` and `export`: other formats in and out.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// What is imported.
#[derive(Debug, Subcommand)]
pub(crate) enum ImportCommand {
    /// Make a manifest of a Compose file
    #[command(
        after_help = "Without FILE it takes compose.yaml, compose.yml, docker-compose.yml or docker-compose.yaml, and what overrides it. `.env`, `env_file`, `extends` and `include` are read. Values that look like secrets are never written: it says how to set them.\n\nExample:\n  landfast import compose\n  landfast import compose -f compose.yaml -f compose.prod.yaml --profile web --out landfast.toml"
    )]
    Compose(ImportCompose),
    /// Make a manifest of Kamal's config/deploy.yml
    #[command(
        after_help = "Example:\n  landfast import kamal\n  landfast import kamal config/deploy.yml --out landfast.toml"
    )]
    Kamal(ImportFile),
    /// Make a manifest of a Procfile
    #[command(
        after_help = "Example:\n  landfast import procfile\n  landfast import procfile Procfile --json"
    )]
    Procfile(ImportFile),
}

#[derive(Debug, Args)]
pub(crate) struct ImportCompose {
    /// The Compose file
    #[arg(value_name = "COMPOSE", conflicts_with = "compose_files")]
    pub(crate) compose: Option<PathBuf>,
    /// A Compose file; later ones are laid over earlier ones
    #[arg(short = 'f', long = "compose-file", value_name = "COMPOSE")]
    pub(crate) compose_files: Vec<PathBuf>,
    /// A profile whose services are imported too; `*` is all
    #[arg(long, value_name = "NAME")]
    pub(crate) profile: Vec<String>,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct ImportFile {
    /// The file
    #[arg(value_name = "SOURCE")]
    pub(crate) source: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// Where a manifest goes.
#[derive(Debug, Args)]
pub(crate) struct Output {
    /// The manifest to write; `-` is stdout [default: that of `--file`]
    #[arg(long, value_name = "MANIFEST")]
    pub(crate) out: Option<PathBuf>,
    /// Replace a manifest that is there
    #[arg(long)]
    pub(crate) force: bool,
}

/// What is exported.
#[derive(Debug, Subcommand)]
pub(crate) enum ExportCommand {
    /// Write a Compose file that runs the app without Landfast, with nginx in front, and what Compose cannot do
    #[command(
        after_help = "Writes compose.yaml, nginx/, .env.example, EQUIVALENCE.md and equivalence.json. Stores become services, secrets files.\n\nExample:\n  landfast export compose\n  landfast export compose -e staging --out deploy/compose"
    )]
    Compose(ExportCompose),
    /// Write a Dockerfile and a .dockerignore for a project of Rust or Node, or a static site
    #[command(
        after_help = "Several stages, no root, a check, and signals that reach the program. Port and path of the check are the manifest's, where there is one.\n\nExample:\n  landfast export dockerfile\n  landfast export dockerfile --kind node --port 8080"
    )]
    Dockerfile(ExportDockerfile),
}

#[derive(Debug, Args)]
pub(crate) struct ExportCompose {
    /// The folder to write to
    #[arg(long, value_name = "FOLDER", default_value = "compose")]
    pub(crate) out: PathBuf,
    /// Replace files that are there
    #[arg(long)]
    pub(crate) force: bool,
}

/// What a folder holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    Rust,
    Node,
    Static,
}

#[derive(Debug, Args)]
pub(crate) struct ExportDockerfile {
    /// What the project is [default: found out by its files]
    #[arg(long)]
    pub(crate) kind: Option<Kind>,
    /// The port it listens on [default: the manifest's]
    #[arg(long)]
    pub(crate) port: Option<u16>,
    /// The path that answers 2xx when it can work [default: the manifest's]
    #[arg(long, value_name = "PATH")]
    pub(crate) ready: Option<String>,
    /// Replace files that are there
    #[arg(long)]
    pub(crate) force: bool,
}
