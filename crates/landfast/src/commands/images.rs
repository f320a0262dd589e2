//! Images of a deploy: built by the `docker` client where the manifest is, then had on the server's host.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::Path,
    process::Stdio,
};

use anyhow::{Context as _, anyhow};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use landfast_api::{ImageFrame, ImagesRequest, Manifest, PinnedImage, SecretRevealRequest};
use landfast_client::Client;
use landfast_spec::{AppSpec, BuildSpec, ImageSource};
use landfast_types::{Scope, Secret};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
};

use crate::{
    exit::{Exit, Failure},
    out::Printer,
    table::bytes,
};

/// The client that builds, found in PATH.
const DOCKER: &str = "docker";
/// The end of what a build said is shown again where it failed.
const LINES_KEPT: usize = 40;

/// Builds what the manifest wants built: the name each was tagged with, by its key.
pub(super) async fn build(
    printer: &Printer,
    client: &Client,
    folder: &Path,
    scope: &Scope,
    spec: &AppSpec,
) -> Result<BTreeMap<String, String>, Failure> {
    let mut built = BTreeMap::new();
    for (key, (source, users)) in spec.images() {
        let ImageSource::Build(build) = source else {
            continue;
        };
        printer.say(&format!("building the image of {}", list(&users)));
        let mut secrets = BTreeMap::new();
        for name in &build.secrets {
            let newest = SecretRevealRequest::default();
            let value = client.reveal_secret(scope, name, &newest).await?;
            secrets.insert(name.clone(), value.value);
        }
        let id = run(printer, folder, build, &secrets).await?;
        let tag = tag(scope, &users, &id);
        docker(&["tag", &id, &tag]).await?;
        printer.say(&format!("built {tag}"));
        built.insert(key, tag);
    }
    Ok(built)
}

fn list(users: &BTreeSet<String>) -> String {
    users.iter().cloned().collect::<Vec<_>>().join(", ")
}

/// `landfast/<app>/<service>:<digest>`, of the first service that runs from it, else of a job.
fn tag(scope: &Scope, users: &BTreeSet<String>, id: &str) -> String {
    let service = users.iter().find(|user| user.starts_with("service "));
    let user = service.or_else(|| users.first());
    let user = user.and_then(|user| user.split(' ').next_back());
    let digest = id.trim_start_matches("sha256:");
    let digest = digest.get(..12).unwrap_or(digest);
    format!("landfast/{}/{}:{digest}", scope.app, user.unwrap_or("app"))
}

/// What the docker client builds with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Builder {
    /// Its plugin `buildx`.
    Buildx,
    /// BuildKit without the plugin, as clients before 23 have it; it is used where it is asked for.
    BuildKit,
    /// The one before BuildKit: it knows no secrets.
    Old,
}

impl Builder {
    fn of(has_buildx: bool, client: &str, is_wanted: bool) -> Self {
        let major = client
            .split('.')
            .next()
            .and_then(|major| major.parse().ok());
        match (has_buildx, major) {
            (true, _) => Self::Buildx,
            // Newer ones refuse without the plugin. One of Podman has other numbers.
            (false, Some(19 | 20)) if is_wanted => Self::BuildKit,
            (false, Some::<u32>(_) | None) => Self::Old,
        }
    }

    async fn find(has_secrets: bool) -> Self {
        let has_buildx = docker(&["buildx", "version"]).await.is_ok();
        let asks = || std::env::var("DOCKER_BUILDKIT").is_ok_and(|asked| asked == "1");
        let version = docker(&["version", "--format", "{{.Client.Version}}"]).await;
        Self::of(
            has_buildx,
            &version.unwrap_or_default(),
            has_secrets || asks(),
        )
    }

    fn has_buildkit(self) -> bool {
        match self {
            Self::Buildx | Self::BuildKit => true,
            Self::Old => false,
        }
    }
}

/// The words that build an image. Values of secrets are in the client's environment alone.
fn arguments(folder: &Path, build: &BuildSpec, iid_file: &Path, builder: Builder) -> Vec<String> {
    let context = folder.join(&build.context);
    let mut words = vec!["build".to_owned()];
    if builder == Builder::Buildx {
        // A builder of another kind keeps what it built to itself.
        words.push("--load".to_owned());
    }
    let mut add = |name: &str, value: String| words.extend([name.to_owned(), value]);
    add("--iidfile", iid_file.display().to_string());
    if builder.has_buildkit() {
        add("--progress", "plain".to_owned());
    }
    if let Some(file) = &build.dockerfile {
        add("--file", context.join(file).display().to_string());
    }
    if let Some(target) = &build.target {
        add("--target", target.clone());
    }
    if let Some(platform) = &build.platform {
        add("--platform", platform.clone());
    }
    for (name, value) in &build.args {
        add("--build-arg", format!("{name}={value}"));
    }
    for name in &build.secrets {
        add("--secret", format!("id={name},env={}", variable(name)));
    }
    words.extend(["--".to_owned(), context.display().to_string()]);
    words
}

/// Where the client finds the value of a secret: under a name that means nothing else to it.
fn variable(secret: &str) -> String {
    format!("LANDFAST_BUILD_SECRET_{secret}")
}

async fn run(
    printer: &Printer,
    folder: &Path,
    build: &BuildSpec,
    secrets: &BTreeMap<String, Secret<String>>,
) -> Result<String, Failure> {
    let builder = Builder::find(!build.secrets.is_empty()).await;
    if !builder.has_buildkit() && !build.secrets.is_empty() {
        let error = anyhow!("`build.secrets` needs BuildKit, and `docker buildx` is not installed");
        let hint = "install the buildx plugin of the docker client (Debian: docker-buildx), or leave the secrets out";
        return Err(Failure::new(Exit::Failed, error).hint(hint));
    }
    let scratch = tempfile::tempdir().context("failed to make a temporary folder")?;
    let iid_file = scratch.path().join("id");
    let mut command = command();
    command
        .args(arguments(folder, build, &iid_file, builder))
        .env(
            "DOCKER_BUILDKIT",
            if builder.has_buildkit() { "1" } else { "0" },
        )
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    for (name, value) in secrets {
        command.env(variable(name), value.reveal());
    }
    let mut child = command.spawn().map_err(not_there)?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
    let style = ProgressStyle::with_template("{spinner} {wide_msg}");
    bar.set_style(style.expect("the template is well formed"));
    if printer.live && !printer.verbose {
        bar.set_draw_target(ProgressDrawTarget::stderr());
    }
    let mut last = VecDeque::new();
    let mut out = stdout.map(|stdout| BufReader::new(stdout).lines());
    let mut err = stderr.map(|stderr| BufReader::new(stderr).lines());
    while out.is_some() || err.is_some() {
        let line = tokio::select! {
            line = next(&mut out) => line,
            line = next(&mut err) => line,
        };
        let Some(line) = line else { continue };
        if printer.live && !printer.verbose {
            bar.set_message(line.clone());
            bar.tick();
        } else {
            printer.detail(&line);
        }
        last.push_back(line);
        if last.len() > LINES_KEPT {
            last.pop_front();
        }
    }
    bar.finish_and_clear();
    let status = child.wait().await.context("failed to wait for docker")?;
    if !status.success() {
        for line in last {
            printer.say(&line);
        }
        let error = anyhow!("`docker build` of `{}` failed: {status}", build.context);
        let hint = "what it said is above; `--verbose` shows all of it";
        return Err(Failure::new(Exit::Failed, error).hint(hint));
    }
    let id = std::fs::read_to_string(&iid_file);
    let id = id.context("`docker build` did not say what it built")?;
    Ok(id.trim().to_owned())
}

/// The next line; at its end the source is let go.
async fn next<R: tokio::io::AsyncBufRead + Unpin>(
    lines: &mut Option<tokio::io::Lines<R>>,
) -> Option<String> {
    let Some(source) = lines else {
        return std::future::pending().await;
    };
    let line = source.next_line().await.ok().flatten();
    if line.is_none() {
        *lines = None;
    }
    line
}

#[expect(
    clippy::disallowed_methods,
    reason = "the docker client builds, argv by argv"
)]
fn command() -> Command {
    let mut command = Command::new(DOCKER);
    command.kill_on_drop(true);
    command
}

fn not_there(error: std::io::Error) -> Failure {
    let missing = error.kind() == std::io::ErrorKind::NotFound;
    let error = anyhow::Error::from(error).context("failed to start `docker`, which builds images");
    let failure = Failure::new(Exit::Failed, error);
    match missing {
        true => {
            failure.hint("install the docker client here, or push an image and write `image = …`")
        }
        false => failure,
    }
}

/// What it printed.
async fn docker(words: &[&str]) -> Result<String, Failure> {
    let mut command = command();
    let output = command.args(words).stdin(Stdio::null()).output().await;
    let output = output.map_err(not_there)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let error = anyhow!("`docker {}` failed: {}", words.join(" "), said.trim());
    Err(Failure::new(Exit::Failed, error))
}

/// Has every image on the server's host, and says how far that is. What a deploy pins.
pub(super) async fn resolve(
    printer: &Printer,
    client: &Client,
    scope: &Scope,
    manifest: &Manifest,
    built: BTreeMap<String, String>,
) -> Result<BTreeMap<String, PinnedImage>, Failure> {
    let manifest = manifest.clone();
    let mut frames = client
        .images(scope, &ImagesRequest { manifest, built })
        .await?;
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
    let style =
        ProgressStyle::with_template("pulling {msg} {bar:30} {binary_bytes}/{binary_total_bytes}");
    bar.set_style(
        style
            .expect("the template is well formed")
            .progress_chars("=> "),
    );
    if printer.live {
        bar.set_draw_target(ProgressDrawTarget::stderr());
    }
    let mut layers = Layers::default();
    while let Some(frame) = frames.next().await? {
        match frame {
            ImageFrame::Progress {
                image,
                layer,
                status,
                done_bytes,
                total_bytes,
            } => {
                printer.detail(&format!("{image} {layer} {status}"));
                layers.note(&image, &layer, done_bytes, total_bytes);
                let (done, total) = layers.sum();
                bar.set_message(image);
                bar.set_length(total);
                bar.set_position(done);
            }
            ImageFrame::Done {
                images,
                pulled,
                warnings,
            } => {
                bar.finish_and_clear();
                for key in pulled {
                    let what = images.get(&key).and_then(|image| image.pinned.clone());
                    let weight = match layers.of(&key) {
                        0 => String::new(),
                        weight => format!(", {}", bytes(weight)),
                    };
                    printer.say(&format!("pulled {}{weight}", what.unwrap_or(key)));
                }
                warnings.iter().for_each(|warning| printer.warn(warning));
                return Ok(images);
            }
            ImageFrame::Failed { problem } => {
                bar.finish_and_clear();
                return Err(landfast_client::Error::Problem(problem).into());
            }
            ImageFrame::Unknown => {}
        }
    }
    bar.finish_and_clear();
    let error = anyhow!("the server stopped telling of the images");
    Err(Failure::new(Exit::Unreachable, error).hint("ask again: what was pulled stays"))
}

/// Bytes of each layer of each image: done, and of how many.
#[derive(Default)]
struct Layers(BTreeMap<(String, String), (u64, u64)>);

impl Layers {
    fn note(&mut self, image: &str, layer: &str, done: Option<u64>, total: Option<u64>) {
        let known = self.0.entry((image.to_owned(), layer.to_owned()));
        let known = known.or_default();
        // Unpacking counts anew from nothing: what was loaded stays loaded.
        known.1 = known.1.max(total.unwrap_or(0));
        known.0 = known.0.max(done.unwrap_or(0)).min(known.1);
    }

    fn sum(&self) -> (u64, u64) {
        let add = |(done, total), (more, of): &(u64, u64)| (done + more, total + of);
        self.0.values().fold((0, 0), add)
    }

    /// The weight of an image's layers.
    fn of(&self, image: &str) -> u64 {
        let own = self.0.iter().filter(|((name, _), _)| name == image);
        own.map(|(_, (_, total))| total).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_value_of_a_secret_is_among_the_words() {
        let build = BuildSpec {
            context: "web".into(),
            dockerfile: Some("deploy/Dockerfile".into()),
            target: Some("runtime".into()),
            args: BTreeMap::from([("VERSION".into(), "1.4".into())]),
            secrets: vec!["NPM_TOKEN".into()],
            platform: None,
        };
        let words = |builder| arguments(Path::new("/app"), &build, Path::new("/tmp/id"), builder);
        let expected = [
            "build",
            "--load",
            "--iidfile",
            "/tmp/id",
            "--progress",
            "plain",
            "--file",
            "/app/web/deploy/Dockerfile",
            "--target",
            "runtime",
            "--build-arg",
            "VERSION=1.4",
            "--secret",
            "id=NPM_TOKEN,env=LANDFAST_BUILD_SECRET_NPM_TOKEN",
            "--",
            "/app/web",
        ];
        assert_eq!(words(Builder::Buildx), expected);
        // Without the plugin what is built is in the daemon anyway.
        let own: Vec<_> = expected
            .into_iter()
            .filter(|word| *word != "--load")
            .collect();
        assert_eq!(words(Builder::BuildKit), own);
        let old = own
            .into_iter()
            .filter(|word| !["--progress", "plain"].contains(word));
        assert_eq!(words(Builder::Old), old.collect::<Vec<_>>());
    }

    #[test]
    fn a_client_without_the_plugin_has_its_own_buildkit_or_none() {
        let of = |client, is_wanted| Builder::of(false, client, is_wanted);
        assert_eq!(of("20.10.24+dfsg1\n", true), Builder::BuildKit);
        assert_eq!(of("20.10.24+dfsg1\n", false), Builder::Old);
        for client in ["23.0.1", "27.5.1", "4.3.1", "", "unknown"] {
            assert_eq!(of(client, true), Builder::Old, "{client}");
        }
        assert_eq!(Builder::of(true, "20.10.24", false), Builder::Buildx);
    }

    #[test]
    fn an_image_is_tagged_by_what_it_is() {
        let scope = Scope {
            app: "shop".parse().expect("a name"),
            environment: "production".parse().expect("a name"),
        };
        let users = ["job smoke", "service web", "service worker"];
        let users = users.map(str::to_owned).into();
        let id = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(tag(&scope, &users, id), "landfast/shop/web:ba7816bf8f01");
    }

    #[test]
    fn a_layer_that_is_unpacked_was_loaded() {
        let mut layers = Layers::default();
        layers.note("web", "a", Some(10), Some(10));
        layers.note("web", "a", Some(1), Some(10));
        layers.note("web", "b", Some(5), Some(20));
        layers.note("web", "", None, None);
        assert_eq!(layers.sum(), (15, 30));
        assert_eq!(layers.of("web"), 30);
    }
}
