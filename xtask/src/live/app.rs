//! The example app in a folder of its own, as a user has it: a manifest and a binary that changes with each build.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::{Build, Host, process::replace_file};

/// What the manifest says where the proofs differ.
#[derive(Debug, Clone)]
pub(crate) struct AppSettings {
    pub(crate) name: String,
    pub(crate) environment: String,
    pub(crate) host: String,
    pub(crate) replicas: u32,
    pub(crate) strategy: String,
    pub(crate) gates: String,
    pub(crate) steps: String,
    pub(crate) hold: String,
    pub(crate) standby: String,
    pub(crate) min_ready: String,
    pub(crate) progress: String,
    /// Stores the service uses, as the manifest lists them.
    pub(crate) uses: String,
    /// Further tables.
    pub(crate) more: String,
    /// Further lines of `[deploy]`.
    pub(crate) deploy: String,
    pub(crate) content: Content,
}

/// What instances are made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// Processes of a copied folder.
    Artifact,
    /// Containers of an image that is built at each deploy.
    Build,
    /// Containers of an image the daemon has.
    Image(String),
}

impl Default for AppSettings {
    /// The shortest times the contract allows in proofs and demos.
    fn default() -> Self {
        Self {
            name: "flextime".into(),
            environment: "production".into(),
            host: "api.flextime.example".into(),
            replicas: 3,
            strategy: "rolling".into(),
            gates: r#"["preflight", "smoke", "analysis"]"#.into(),
            steps: "[5, 25, 100]".into(),
            hold: "5s".into(),
            standby: "5s".into(),
            min_ready: "1s".into(),
            progress: "60s".into(),
            uses: "[]".into(),
            more: String::new(),
            deploy: String::new(),
            content: Content::Artifact,
        }
    }
}

/// An app in its folder.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) folder: PathBuf,
    pub(crate) settings: AppSettings,
    releases: Vec<PathBuf>,
}

impl App {
    /// Writes the manifest.
    pub(crate) fn new(host: &Host, build: &Build, settings: AppSettings) -> anyhow::Result<Self> {
        let folder = host
            .folder
            .join(format!("{}-{}", settings.name, settings.environment));
        fs::create_dir_all(folder.join("bin"))?;
        let releases = super::RELEASES
            .iter()
            .map(|(version, _)| build.release(*version))
            .collect();
        let app = Self {
            folder,
            settings,
            releases,
        };
        app.write_manifest()?;
        Ok(app)
    }

    /// Writes the manifest again after the settings have changed.
    pub(crate) fn write_manifest(&self) -> anyhow::Result<()> {
        let AppSettings {
            name,
            environment,
            host,
            replicas,
            strategy,
            gates,
            steps,
            hold,
            standby,
            min_ready,
            progress,
            uses,
            more,
            deploy,
            content,
        } = &self.settings;
        let content = |word: &str| match content {
            Content::Artifact => {
                format!("artifact = \"bin/flextime\"\ncommand = [\"./flextime\", \"{word}\"]")
            }
            Content::Build => format!("build = \"bin\"\ncommand = [\"{word}\"]"),
            Content::Image(image) => {
                format!("image = \"{image}\"\npull = \"never\"\ncommand = [\"{word}\"]")
            }
        };
        let (serve, smoke) = (content("serve"), content("smoke"));
        let text = format!(
            r#"app = "{name}"

[services.api]
{serve}
port = 3000
replicas = {replicas}
uses = {uses}
resources = {{ memory = "256MiB" }}
volumes = {{ data = "managed" }}
env = {{ MAX_WORKERS = "1", LOG_LEVEL = "warn" }}
health = {{ ready = "http:/ready", live = "http:/health", interval = "1s" }}
drain = "10s"
stream_drain = "10s"
grace = "10s"

[jobs.smoke]
{smoke}
when = "gate:smoke"

[routes.public]
host = "{host}"
service = "api"
websocket = true

[deploy]
strategy = "{strategy}"
gates = {gates}
steps = {steps}
hold = "{hold}"
standby = "{standby}"
min_ready = "{min_ready}"
healthy_deadline = "30s"
progress_deadline = "{progress}"
probe = {{ path = "/v2/constraints", rate = "2/s" }}
{deploy}
{more}
[environments.{environment}]
"#
        );
        let path = self.folder.join("landfast.toml");
        fs::write(&path, text).with_context(|| format!("failed to write `{}`", path.display()))
    }

    /// Builds a release: puts another binary in the place the manifest names.
    pub(crate) fn build(&self, version: u64) -> anyhow::Result<()> {
        let binary = self
            .releases
            .get(version as usize - 1)
            .context("no such release was built")?;
        replace_file(binary, &self.binary())?;
        match self.settings.content {
            Content::Build => make_image_folder(&self.folder.join("bin")),
            Content::Artifact | Content::Image(_) => Ok(()),
        }
    }

    /// The file the manifest names as the artifact.
    pub(crate) fn binary(&self) -> PathBuf {
        self.folder.join("bin/flextime")
    }

    /// Arguments that name the environment.
    pub(crate) fn arguments<'a>(&'a self, arguments: &[&'a str]) -> Vec<&'a str> {
        let mut all = arguments.to_vec();
        all.extend(["--environment", &self.settings.environment]);
        all
    }

    /// Deploys and waits; gives the exit code.
    pub(crate) fn deploy(&self, host: &Host, strategy: &str, wait: &str) -> anyhow::Result<i32> {
        let arguments = self.arguments(&["deploy", "--strategy", strategy, "--wait", wait]);
        let output = host.cli(&self.folder, &arguments)?;
        let code = output.status.code().unwrap_or(-1);
        if std::env::var_os("LANDFAST_TALK").is_some() || ![0, 5, 6].contains(&code) {
            eprintln!("{}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(code)
    }

    /// Deploys a release and demands that it ends well.
    pub(crate) fn deploy_well(
        &self,
        host: &Host,
        version: u64,
        strategy: &str,
        wait: &str,
    ) -> anyhow::Result<()> {
        self.build(version)?;
        let code = self.deploy(host, strategy, wait)?;
        ensure!(
            code == 0,
            "the deploy of {version} by {strategy} ended with exit code {code}"
        );
        Ok(())
    }

    pub(crate) fn status(&self, host: &Host) -> anyhow::Result<Value> {
        host.json(&self.folder, &self.arguments(&["status"]))
    }

    pub(crate) fn history(&self, host: &Host) -> anyhow::Result<Vec<Value>> {
        let history = host.json(
            &self.folder,
            &self.arguments(&["history", "--limit", "1000"]),
        )?;
        Ok(history["rollouts"].as_array().cloned().unwrap_or_default())
    }

    /// The state of the rollout under way, if one is.
    pub(crate) fn moving(&self, host: &Host) -> Option<String> {
        let status = self.status(host).ok()?;
        status["rollout"]["state"].as_str().map(str::to_owned)
    }

    /// Where the app's receipts lie.
    pub(crate) fn receipts(&self, host: &Host) -> PathBuf {
        host.volume(&self.settings.name, &self.settings.environment, "data")
    }

    /// Asks the app itself through the proxy.
    pub(crate) fn get(&self, host: &Host, path: &str) -> anyhow::Result<Value> {
        let output = super::command("curl")
            .args(["-sS", "--max-time", "10", "-H"])
            .arg(format!("host: {}", self.settings.host))
            .arg(format!("http://127.0.0.1:{}{path}", host.http))
            .output()
            .context("failed to run curl")?;
        serde_json::from_slice(&output.stdout).with_context(|| {
            format!(
                "{path} answered {}",
                String::from_utf8_lossy(&output.stdout)
            )
        })
    }
}

/// Puts beside the binary what it needs to be an image by itself: the libraries it is linked with, where it looks for them.
fn make_image_folder(folder: &Path) -> anyhow::Result<()> {
    copy_libraries(&folder.join("flextime"), &folder.join("root"))?;
    let dockerfile =
        "FROM scratch\nCOPY root /\nCOPY flextime /flextime\nENTRYPOINT [\"/flextime\"]\n";
    fs::write(folder.join("Dockerfile"), dockerfile)?;
    Ok(())
}

/// Copies the libraries a program is linked with to where it looks for them below another root.
pub(super) fn copy_libraries(program: &Path, root: &Path) -> anyhow::Result<()> {
    let output = super::command("ldd").arg(program).output();
    let output = output.context("failed to run ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let words = text.split_whitespace();
    for library in words.filter(|word| word.starts_with('/')) {
        let copy = root.join(&library[1..]);
        if let Some(parent) = copy.parent() {
            fs::create_dir_all(parent)?;
        }
        if !copy.exists() {
            fs::copy(library, &copy).with_context(|| format!("failed to copy `{library}`"))?;
        }
    }
    Ok(())
}
