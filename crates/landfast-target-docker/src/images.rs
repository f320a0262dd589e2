//! Images of the daemon: from a name to what is run, and back out of the daemon when no release needs it.
//!
//! What is here through us is written down with the names it got by that, and tagged `landfast/<host>:<id>`, so that
//! neither a clean-up of others nor a tag that moves takes it from a release. Only what is written down is ever
//! removed, name by name and never by force: an image that somebody else names, or runs, stays.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bollard::{
    auth::DockerCredentials,
    models::{CreateImageInfo, ImageInspect},
    query_parameters::{
        CreateImageOptionsBuilder, RemoveImageOptionsBuilder, TagImageOptionsBuilder,
    },
};
use futures_util::StreamExt as _;
use landfast_target::{
    ImageError, ImageFacts, Images, PinnedImage, Pull, PullProgress, PullProgressSender,
    RegistryLogin, ResolvedImage,
};
use landfast_types::{Bytes, Digest, ImageId, ImageReference};

use crate::{
    core::{Core, blocking},
    credentials,
    daemon::DaemonError,
    exits, name, programs,
};

/// The longest silence of a daemon that brings an image: unpacking a large layer says little.
const PULL_SILENCE_MAX: Duration = Duration::from_secs(300);
/// A registry far away takes its time.
const REGISTRY_WAIT_MAX: Duration = Duration::from_secs(60);

/// What builds are named by begins so.
const BUILT: &str = "landfast/";

/// What is known of an image that never changes.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) facts: ImageFacts,
    /// Its own `PATH`.
    pub(crate) path: Option<String>,
    pub(crate) working_folder: String,
    /// Paths that it was seen to hold.
    held: Mutex<BTreeSet<String>>,
}

impl Image {
    fn new(found: &ImageInspect) -> Self {
        let config = found.config.clone().unwrap_or_default();
        let env = config.env.clone().unwrap_or_default();
        Self {
            facts: facts(found),
            path: env
                .iter()
                .find_map(|variable| variable.strip_prefix("PATH=").map(str::to_owned)),
            working_folder: config.working_dir.unwrap_or_default(),
            held: Mutex::default(),
        }
    }

    pub(crate) fn is_known_to_hold(&self, path: &str) -> bool {
        self.held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(path)
    }

    pub(crate) fn holds(&self, path: &str) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.insert(path.to_owned());
    }
}

fn facts(found: &ImageInspect) -> ImageFacts {
    let config = found.config.clone().unwrap_or_default();
    let ports = config.exposed_ports.unwrap_or_default();
    let mut ports: Vec<u16> = ports
        .iter()
        .filter_map(|port| match port.split_once('/') {
            Some((number, "tcp")) => number.parse().ok(),
            Some(_) => None,
            None => port.parse().ok(),
        })
        .collect();
    ports.sort_unstable();
    let check = config
        .healthcheck
        .and_then(|check| check.test)
        .unwrap_or_default();
    let [os, architecture] =
        [&found.os, &found.architecture].map(|part| part.clone().unwrap_or_default());
    let mut volumes = config.volumes.unwrap_or_default();
    volumes.sort();
    ImageFacts {
        size: Bytes(
            found
                .size
                .and_then(|size| u64::try_from(size).ok())
                .unwrap_or(0),
        ),
        created_at: found.created.as_deref().and_then(exits::instant),
        platform: format!("{os}/{architecture}"),
        user: config.user.unwrap_or_default(),
        user_number: None,
        entrypoint: config.entrypoint.unwrap_or_default(),
        command: config.cmd.unwrap_or_default(),
        ports,
        volumes,
        has_health_check: check.first().is_some_and(|kind| kind != "NONE"),
        stop_signal: config.stop_signal.filter(|signal| !signal.is_empty()),
    }
}

fn id_of(found: &ImageInspect) -> Option<ImageId> {
    let id = found.id.as_deref()?;
    // Podman leaves the kind of digest out.
    id.parse()
        .ok()
        .or_else(|| id.parse::<Digest>().ok().map(ImageId))
}

impl Core {
    /// An image of this daemon; `None` when it is not here.
    pub(crate) async fn image(&self, id: ImageId) -> Result<Option<Arc<Image>>, DaemonError> {
        let known = self
            .images
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&id)
            .cloned();
        if known.is_some() {
            return Ok(known);
        }
        let Some(found) = self.inspect_image(&id.to_string()).await? else {
            return Ok(None);
        };
        let mut image = Image::new(&found);
        if let Some(user) = image.facts.user_name() {
            image.facts.user_number = programs::number_of(self, id, user).await?;
        }
        let image = Arc::new(image);
        let mut images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        images.insert(id, Arc::clone(&image));
        Ok(Some(image))
    }

    pub(crate) fn forget_image(&self, id: &ImageId) {
        self.images
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(id);
    }

    async fn inspect_image(&self, name: &str) -> Result<Option<ImageInspect>, DaemonError> {
        let asked = self.daemon.call(|client| {
            let name = name.to_owned();
            async move { client.inspect_image(&name).await }
        });
        match asked.await {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The images of a daemon, as a release sees them.
pub(crate) struct DockerImages {
    core: Arc<Core>,
    ledger: tokio::sync::Mutex<()>,
}

/// Names that an image has through us.
type Ledger = BTreeMap<ImageId, BTreeSet<String>>;

impl DockerImages {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self {
            core,
            ledger: tokio::sync::Mutex::default(),
        }
    }

    async fn local(&self, reference: &ImageReference) -> Result<Option<ImageInspect>, ImageError> {
        // With a digest, a daemon may know the image by that alone.
        let name = reference.digest().map_or_else(
            || reference.to_string(),
            |digest| reference.at(digest).to_string(),
        );
        let found = self.core.inspect_image(&name).await;
        found.map_err(|error| self.failed(reference, error))
    }

    /// What the registry has by that name now.
    async fn ask(
        &self,
        reference: &ImageReference,
        login: Option<&DockerCredentials>,
    ) -> Result<Option<Digest>, ImageError> {
        if let Some(digest) = reference.digest() {
            return Ok(Some(digest));
        }
        let name = format!("{}:{}", reference.name(), reference.tag_meant());
        let asked = self.core.daemon.call_within(REGISTRY_WAIT_MAX, |client| {
            let (name, login) = (name.clone(), login.cloned());
            async move { client.inspect_registry_image(&name, login).await }
        });
        match asked.await {
            Ok(told) => {
                let digest = told
                    .descriptor
                    .digest
                    .and_then(|digest| digest.parse::<ImageId>().ok());
                Ok(digest.map(|id| id.0))
            }
            // Podman does not ask registries for others; it can only be told to bring an image.
            Err(DaemonError::Refused {
                status: 404 | 405,
                message,
            }) if message.trim() == "Not Found"
                || message.contains("page not found")
                || message.contains("Method Not Allowed") =>
            {
                Ok(None)
            }
            Err(error) => Err(self.failed(reference, error)),
        }
    }

    async fn pull(
        &self,
        reference: &ImageReference,
        login: Option<DockerCredentials>,
        progress: Option<&PullProgressSender>,
    ) -> Result<(), ImageError> {
        let client = self.core.daemon.client().await;
        let client = client.map_err(|error| self.failed(reference, error))?;
        let version = reference.digest().map_or_else(
            || reference.tag_meant().to_owned(),
            |digest| ImageId(digest).to_string(),
        );
        let options = CreateImageOptionsBuilder::default()
            .from_image(&reference.name())
            .tag(&version)
            .build();
        let mut steps = std::pin::pin!(client.create_image(Some(options), None, login));
        loop {
            let step = tokio::time::timeout(PULL_SILENCE_MAX, steps.next()).await;
            let step = match step {
                Ok(Some(step)) => step.map_err(DaemonError::from),
                Ok(None) => return Ok(()),
                Err(_) => Err(DaemonError::Silent(PULL_SILENCE_MAX)),
            };
            let step = step.map_err(|error| self.failed(reference, error))?;
            if let Some(message) = step
                .error_detail
                .as_ref()
                .and_then(|detail| detail.message.clone())
            {
                return Err(self.failed(
                    reference,
                    DaemonError::Refused {
                        status: 500,
                        message,
                    },
                ));
            }
            if let Some(progress) = progress {
                // A reader that does not keep up misses it.
                drop(progress.try_send(told(&step)));
            }
        }
    }

    /// Brings a version of a name here, under the name too.
    async fn bring(
        &self,
        reference: &ImageReference,
        digest: Option<Digest>,
        login: Option<DockerCredentials>,
        progress: Option<&PullProgressSender>,
    ) -> Result<(ImageInspect, Vec<String>), ImageError> {
        let pinned = digest.map_or_else(|| reference.clone(), |digest| reference.at(digest));
        self.pull(&pinned, login, progress).await?;
        let found = self.local(&pinned).await?;
        let found = found.ok_or_else(|| missing(reference, "it was brought, and is gone again"))?;
        let mut names = vec![pinned.to_string()];
        if digest.is_some() && reference.digest().is_none() {
            let (name, tag) = (reference.name(), reference.tag_meant());
            let whole = format!("{name}:{tag}");
            let is_theirs = self.is_theirs(reference, &whole).await?;
            self.tag(
                reference,
                found.id.as_deref().unwrap_or_default(),
                &name,
                tag,
            )
            .await?;
            if !is_theirs {
                names.push(whole);
            }
        }
        Ok((found, names))
    }

    /// Whether somebody else has given a name to an image here.
    async fn is_theirs(&self, reference: &ImageReference, name: &str) -> Result<bool, ImageError> {
        let found = self.core.inspect_image(name).await;
        let found = found.map_err(|error| self.failed(reference, error))?;
        let Some(id) = found.as_ref().and_then(id_of) else {
            return Ok(false);
        };
        let _one_writer = self.ledger.lock().await;
        let path = self.path();
        let read = blocking(move || read_ledger(&path)).await;
        let ledger = read.map_err(|source| ImageError::Io {
            doing: format!("look up whether `{name}` is here through us"),
            source,
        })?;
        Ok(!ledger.get(&id).is_some_and(|names| names.contains(name)))
    }

    async fn tag(
        &self,
        reference: &ImageReference,
        image: &str,
        name: &str,
        tag: &str,
    ) -> Result<(), ImageError> {
        let tagged = self.core.daemon.call(|client| {
            let image = image.to_owned();
            let options = TagImageOptionsBuilder::default()
                .repo(name)
                .tag(tag)
                .build();
            async move { client.tag_image(&image, Some(options)).await }
        });
        tagged.await.map_err(|error| self.failed(reference, error))
    }

    /// Keeps an image, and says what it is.
    async fn keep(
        &self,
        reference: &ImageReference,
        found: &ImageInspect,
        names: Vec<String>,
    ) -> Result<ResolvedImage, ImageError> {
        let id =
            id_of(found).ok_or_else(|| missing(reference, "the daemon does not say its id"))?;
        let (name, tag) = name::keeping(&self.core.host, &id);
        self.write_down(reference, id, names).await?;
        self.tag(reference, &id.to_string(), &name, &tag).await?;
        let image = self.core.image(id).await;
        let image = image.map_err(|error| self.failed(reference, error))?;
        let facts = image.map_or_else(|| facts(found), |image| image.facts.clone());
        Ok(ResolvedImage {
            image: PinnedImage {
                reference: reference.clone(),
                pinned: pinned(reference, found),
                id,
            },
            registry_said: None,
            was_pulled: false,
            facts,
        })
    }

    fn path(&self) -> PathBuf {
        self.core.settings.state.join("images.json")
    }

    async fn write_down(
        &self,
        reference: &ImageReference,
        id: ImageId,
        names: Vec<String>,
    ) -> Result<(), ImageError> {
        let _one_writer = self.ledger.lock().await;
        let path = self.path();
        let written = blocking(move || {
            let mut ledger = read_ledger(&path)?;
            ledger.entry(id).or_default().extend(names);
            write_ledger(&path, &ledger)
        });
        written.await.map_err(|source| ImageError::Io {
            doing: format!("write down that `{reference}` is here through us"),
            source,
        })
    }

    /// What a daemon said, as what it means for an image.
    fn failed(&self, reference: &ImageReference, error: DaemonError) -> ImageError {
        let DaemonError::Refused { message, .. } = &error else {
            return ImageError::Io {
                doing: format!(
                    "ask Docker at {} for `{reference}`",
                    self.core.settings.address
                ),
                source: error.into_io(),
            };
        };
        said(reference, message)
    }

    async fn remove(&self, name: &str) -> Result<(), DaemonError> {
        let removed = self.core.daemon.call_within(REGISTRY_WAIT_MAX, |client| {
            let name = name.to_owned();
            let options = RemoveImageOptionsBuilder::default()
                .force(false)
                .noprune(false)
                .build();
            async move { client.remove_image(&name, Some(options), None).await }
        });
        match removed.await {
            Err(error) if error.is_missing() => Ok(()),
            told => told.map(drop),
        }
    }

    /// Takes our names from an image. False when somebody still runs it.
    async fn let_go(&self, id: ImageId, names: &BTreeSet<String>) -> Result<bool, DaemonError> {
        let (keeping, tag) = name::keeping(&self.core.host, &id);
        let keeping = format!("{keeping}:{tag}");
        for name in names.iter().chain([&keeping]) {
            let found = self.core.inspect_image(name).await?;
            // A name that means another image by now is not ours to take.
            if found.as_ref().and_then(id_of) != Some(id) {
                continue;
            }
            match self.remove(name).await {
                Ok(()) => {}
                Err(DaemonError::Refused { .. }) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        self.core.forget_image(&id);
        Ok(true)
    }
}

#[async_trait]
impl Images for DockerImages {
    async fn resolve(
        &self,
        reference: &ImageReference,
        pull: Pull,
        login: Option<&RegistryLogin>,
        progress: Option<&PullProgressSender>,
    ) -> Result<ResolvedImage, ImageError> {
        let local = self.local(reference).await?;
        let asks = match pull {
            Pull::Newer | Pull::Always => true,
            Pull::Missing => local.is_none(),
            Pull::Never => false,
        };
        if !asks {
            let found = local.ok_or_else(|| {
                missing(
                    reference,
                    "the daemon does not have it, and no registry is to be asked",
                )
            })?;
            return self.keep(reference, &found, Vec::new()).await;
        }
        let folder = self.core.settings.docker_config.as_deref();
        let brought = async {
            let login = credentials::find(reference.registry(), login, folder).await?;
            let digest = self.ask(reference, login.as_ref()).await?;
            let is_here = |found: &&ImageInspect| {
                digest.is_some_and(|digest| has_digest(found, reference, digest))
            };
            if let Some(found) = local.as_ref().filter(is_here) {
                return Ok((found.clone(), Vec::new(), false));
            }
            let (found, names) = self.bring(reference, digest, login, progress).await?;
            Ok((found, names, true))
        };
        match (brought.await, &local) {
            (Ok((found, names, was_pulled)), _) => Ok(ResolvedImage {
                was_pulled,
                ..self.keep(reference, &found, names).await?
            }),
            // A full disk or a daemon that is away is not the registry's word.
            (
                Err(
                    error @ (ImageError::NotFound { .. }
                    | ImageError::Refused { .. }
                    | ImageError::RegistryAway { .. }
                    | ImageError::Login { .. }),
                ),
                Some(found),
            ) if pull == Pull::Newer => Ok(ResolvedImage {
                registry_said: Some(error.to_string()),
                ..self.keep(reference, found, Vec::new()).await?
            }),
            (Err(error), _) => Err(error),
        }
    }

    async fn ensure(
        &self,
        image: &PinnedImage,
        login: Option<&RegistryLogin>,
        progress: Option<&PullProgressSender>,
    ) -> Result<(), ImageError> {
        let reference = &image.reference;
        let found = self.core.inspect_image(&image.id.to_string()).await;
        if let Some(found) = found.map_err(|error| self.failed(reference, error))? {
            return self.keep(reference, &found, Vec::new()).await.map(drop);
        }
        self.core.forget_image(&image.id);
        let pinned = image.pinned.as_ref().ok_or_else(|| {
            missing(reference, "it was made here, and was removed; build it again, or deploy a release that has it")
        })?;
        let folder = self.core.settings.docker_config.as_deref();
        let login = credentials::find(pinned.registry(), login, folder).await?;
        let (found, names) = self.bring(pinned, pinned.digest(), login, progress).await?;
        let kept = self.keep(reference, &found, names).await?;
        if kept.image.id != image.id {
            return Err(ImageError::Changed {
                reference: pinned.to_string(),
                wanted: image.id,
                found: kept.image.id,
            });
        }
        Ok(())
    }

    async fn inspect(&self, id: &ImageId) -> Result<Option<ImageFacts>, ImageError> {
        let found = self.core.inspect_image(&id.to_string()).await;
        let found = found.map_err(|error| ImageError::Io {
            doing: format!(
                "look at image {id} on Docker at {}",
                self.core.settings.address
            ),
            source: error.into_io(),
        })?;
        Ok(found.as_ref().map(facts))
    }

    async fn find(&self, id: &ImageId, wanted: &[String]) -> Result<Vec<String>, ImageError> {
        let failed = |error: DaemonError| ImageError::Io {
            doing: format!(
                "look into image {} of Docker at {}",
                id.short(),
                self.core.settings.address
            ),
            source: error.into_io(),
        };
        let Some(image) = self.core.image(*id).await.map_err(failed)? else {
            return Ok(Vec::new());
        };
        let found = programs::find(&self.core, *id, &image, wanted).await;
        found.map_err(failed)
    }

    async fn claim(&self, reference: &ImageReference) -> Result<ResolvedImage, ImageError> {
        let found = self.local(reference).await?;
        let found = found.ok_or_else(|| missing(reference, "the daemon does not have it"))?;
        // Other names are their owners' to take away.
        let is_ours = reference.name().starts_with(BUILT);
        let name = is_ours.then(|| format!("{}:{}", reference.name(), reference.tag_meant()));
        self.keep(reference, &found, name.into_iter().collect())
            .await
    }

    async fn collect(&self, keep: &BTreeSet<ImageId>) -> Result<Vec<ImageId>, ImageError> {
        let _one_writer = self.ledger.lock().await;
        let io = |source| ImageError::Io {
            doing: format!(
                "let go of images on Docker at {}",
                self.core.settings.address
            ),
            source,
        };
        let path = self.path();
        let read = blocking(move || read_ledger(&path)).await;
        let mut ledger = read.map_err(io)?;
        let gone: Vec<_> = ledger
            .keys()
            .filter(|id| !keep.contains(id))
            .copied()
            .collect();
        let mut let_go = Vec::new();
        for id in gone {
            let names = ledger.get(&id).cloned().unwrap_or_default();
            if !self
                .let_go(id, &names)
                .await
                .map_err(|error| io(error.into_io()))?
            {
                continue;
            }
            ledger.remove(&id);
            let_go.push(id);
            let (path, now) = (self.path(), ledger.clone());
            blocking(move || write_ledger(&path, &now))
                .await
                .map_err(io)?;
        }
        Ok(let_go)
    }
}

fn told(step: &CreateImageInfo) -> PullProgress {
    let bytes = |number: Option<i64>| {
        number
            .and_then(|number| u64::try_from(number).ok())
            .map(Bytes)
    };
    let detail = step.progress_detail.clone().unwrap_or_default();
    PullProgress {
        layer: step.id.clone().unwrap_or_default(),
        status: step.status.clone().unwrap_or_default(),
        done: bytes(detail.current),
        of: bytes(detail.total),
    }
}

fn missing(reference: &ImageReference, detail: &str) -> ImageError {
    ImageError::NotFound {
        reference: reference.to_string(),
        detail: detail.to_owned(),
    }
}

/// What a message of a daemon about a registry means.
fn said(reference: &ImageReference, message: &str) -> ImageError {
    let (registry, detail) = (reference.registry().to_owned(), message.trim().to_owned());
    let reference = reference.to_string();
    let says = |words: &[&str]| words.iter().any(|word| message.contains(word));
    if says(&["no space left on device", "disk quota exceeded"]) {
        return ImageError::DiskFull { reference, detail };
    }
    if says(&[
        "dial tcp",
        "no such host",
        "i/o timeout",
        "connection refused",
        "Client.Timeout",
        "deadline exceeded",
        "server gave HTTP response",
        "x509:",
        "EOF",
        "connection reset",
        "toomanyrequests",
        "TLS handshake",
    ]) {
        return ImageError::RegistryAway {
            registry,
            reference,
            detail,
        };
    }
    if says(&[
        "not found",
        "manifest unknown",
        "does not exist",
        "No such image",
        "name unknown",
        "no matching manifest",
    ]) {
        return ImageError::NotFound { reference, detail };
    }
    if says(&[
        "unauthorized",
        "denied",
        "authentication required",
        "no basic auth credentials",
        "forbidden",
    ]) {
        return ImageError::Refused {
            registry,
            reference,
            detail,
        };
    }
    ImageError::Io {
        doing: format!("bring `{reference}`"),
        source: io::Error::other(detail),
    }
}

/// Digests under which a registry knows an image, by the name that is asked for.
fn digests<'a>(
    found: &'a ImageInspect,
    reference: &'a ImageReference,
) -> impl Iterator<Item = Digest> + 'a {
    let all = found.repo_digests.iter().flatten();
    all.filter_map(|text| text.parse::<ImageReference>().ok())
        .filter(|known| known.is_same_name(reference))
        .filter_map(|known| known.digest())
}

fn has_digest(found: &ImageInspect, reference: &ImageReference, digest: Digest) -> bool {
    digests(found, reference).any(|known| known == digest)
}

fn pinned(reference: &ImageReference, found: &ImageInspect) -> Option<ImageReference> {
    let wanted = reference.digest();
    let mut known = digests(found, reference);
    let digest = known.find(|digest| wanted.is_none_or(|wanted| wanted == *digest));
    digest.map(|digest| reference.at(digest))
}

fn read_ledger(path: &Path) -> io::Result<Ledger> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Ledger::new()),
        Err(error) => Err(error),
    }
}

fn write_ledger(path: &Path, ledger: &Ledger) -> io::Result<()> {
    crate::record::write_whole(
        path,
        &serde_json::to_vec_pretty(ledger).map_err(io::Error::other)?,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_what_a_daemon_means() {
        let shop: ImageReference = "registry.test/shop:1".parse().unwrap();
        let kind = |message: &str| match said(&shop, message) {
            ImageError::NotFound { .. } => "not found",
            ImageError::Refused { .. } => "refused",
            ImageError::RegistryAway { .. } => "away",
            ImageError::DiskFull { .. } => "full",
            ImageError::Changed { .. } | ImageError::Login { .. } | ImageError::Io { .. } => "else",
        };
        for (message, expected) in [
            (
                "manifest for registry.test/shop:1 not found: manifest unknown: manifest unknown",
                "not found",
            ),
            (
                "pull access denied for shop, repository does not exist or may require 'docker login'",
                "not found",
            ),
            (
                "Get \"https://registry.test/v2/\": dial tcp: lookup registry.test: no such host",
                "away",
            ),
            (
                "Head \"http://127.0.0.1:1/v2/\": no basic auth credentials",
                "refused",
            ),
            ("unauthorized: authentication required", "refused"),
            (
                "write /var/lib/docker/tmp/x: no space left on device",
                "full",
            ),
            ("something new", "else"),
        ] {
            assert_eq!(kind(message), expected, "{message}");
        }
    }

    #[test]
    fn pins_by_the_registry_that_was_asked() {
        let digest = Digest::of(b"manifest");
        let found = ImageInspect {
            repo_digests: Some(vec![format!("other.test/shop@sha256:{digest}")]),
            ..Default::default()
        };
        let asked: ImageReference = "registry.test/shop:1".parse().unwrap();
        assert_eq!(pinned(&asked, &found), None);
        let other: ImageReference = "other.test/shop:1".parse().unwrap();
        assert_eq!(pinned(&other, &found), Some(other.at(digest)));
        assert!(has_digest(&found, &other, digest));
    }

    #[test]
    fn reads_what_an_image_says_of_itself() {
        let found = ImageInspect {
            os: Some("linux".to_owned()),
            architecture: Some("amd64".to_owned()),
            config: Some(bollard::models::ImageConfig {
                exposed_ports: Some(vec![
                    "9000/tcp".to_owned(),
                    "80/tcp".to_owned(),
                    "53/udp".to_owned(),
                ]),
                env: Some(vec!["PATH=/app".to_owned()]),
                ..Default::default()
            }),
            ..Default::default()
        };
        let image = Image::new(&found);
        assert_eq!(image.facts.ports, [80, 9_000]);
        assert_eq!(
            (image.facts.platform.as_str(), image.path.as_deref()),
            ("linux/amd64", Some("/app"))
        );
        assert!(image.facts.is_root());
    }
}
