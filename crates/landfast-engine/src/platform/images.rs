//! Images of releases: resolved before anything is changed, brought back for a rollback, let go when nothing needs them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use landfast_spec::{AppSpec, ContainerSpec, HealthSpec, ImageSource};
use landfast_target::{
    ImageError, ImageFacts, Images, PinnedImage, Pull, PullProgress, RegistryLogin, ResolvedImage,
};
use landfast_types::{ImageId, ImageReference, ReleaseId, Scope, StoreName, Timestamp};
use tokio::{sync::mpsc, task::JoinSet};

use super::{Platform, surplus};
use crate::{
    actions::chain, driver::View, planning::Refusal, release::ReleaseBody, shared::Shared,
};

/// Images of each service and job that are kept beside those that are in use.
const IMAGES_KEPT: usize = landfast_spec::defaults::IMAGES_KEPT.count() as usize;
/// What was resolved is kept for a deploy that is about to name it.
const RESOLVED_KEPT: Duration = Duration::from_secs(3_600);
/// Progress that is not read in time is left out.
const PROGRESS_WAITING: usize = 64;

/// What happens to an image while it is brought here.
#[derive(Debug, Clone)]
pub struct ImageProgress {
    /// As the manifest names it.
    pub image: String,
    pub step: PullProgress,
}

/// Why the images of a manifest are not at hand. Nothing has changed then but what is on the host.
#[derive(Debug, thiserror::Error)]
pub enum ImagesError {
    #[error("`{0}` is to run as a container, and this server uses no Docker")]
    NoContainers(String),
    #[error("the image of `{key}` is built where the manifest is, before the deploy")]
    NotBuilt { key: String },
    #[error(
        "the image of `{key}` was built as {reference}, which the server's Docker does not have"
    )]
    BuiltElsewhere { key: String, reference: String },
    #[error("there is no secret `{name}`, which the registry `{registry}` is asked with")]
    LoginMissing { registry: String, name: String },
    #[error("image {id} of `{key}` is not here")]
    Gone { key: String, id: ImageId },
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error("the environment's secrets cannot be read")]
    Secrets(#[from] crate::secrets::SecretError),
}

impl ImagesError {
    /// What to do next.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoContainers(_) => {
                "install Docker on the server's host, or name another with `landfast server run --docker`".into()
            }
            Self::NotBuilt { .. } => "`landfast deploy` builds it".into(),
            Self::BuiltElsewhere { .. } => {
                "it works where the client and the server use the same Docker; else push the image to a registry and \
                 write `image = …`"
                    .into()
            }
            Self::LoginMissing { name, .. } => format!("`landfast secret set {name}`"),
            Self::Gone { .. } => "deploy again: it is resolved anew".into(),
            Self::Image(ImageError::NotFound { .. }) => {
                "check the name; a private image needs a login: `docker login` as the server's user, or [registries]"
                    .into()
            }
            Self::Image(ImageError::Refused { .. } | ImageError::Login { .. }) => {
                "`docker login` as the server's user, or user_secret and password_secret in [registries.\"HOST\"]".into()
            }
            Self::Image(ImageError::DiskFull { .. }) => {
                "make room where Docker keeps its data: `docker system df` says what lies there".into()
            }
            Self::Image(
                ImageError::RegistryAway { .. } | ImageError::Changed { .. } | ImageError::Io { .. },
            )
            | Self::Secrets(_) => return None,
        })
    }
}

/// A pinned image and what it says of itself.
pub type Resolved = BTreeMap<String, ResolvedImage>;

impl Platform {
    /// Has every image of a spec on the host, by its key: pulled as `pull` says, or taken over from a build. `built`
    /// names what was built.
    ///
    /// # Errors
    /// [`ImagesError`] for the first that is not to be had.
    pub async fn resolve_images(
        &self,
        spec: &AppSpec,
        built: &BTreeMap<String, ImageReference>,
        progress: Option<mpsc::Sender<ImageProgress>>,
    ) -> Result<Resolved, ImagesError> {
        let mut resolved = Resolved::new();
        for (key, (source, _)) in spec.images() {
            let images = images_of(&self.shared, &key)?;
            let image = match source {
                ImageSource::Image { name, pull } => {
                    let login = login(&self.shared, spec, name.registry())?;
                    let told = progress.clone().map(|sender| tell(key.clone(), sender));
                    let sender = told.as_ref().map(|(sender, _)| sender);
                    let pull = wire_pull(*pull);
                    let resolved = images.resolve(name, pull, login.as_ref(), sender).await;
                    if let Some((sender, telling)) = told {
                        drop(sender);
                        telling.join_all().await;
                    }
                    resolved?
                }
                ImageSource::Build(_) => match built.get(&key) {
                    None => return Err(ImagesError::NotBuilt { key }),
                    Some(reference) => match images.claim(reference).await {
                        Err(ImageError::NotFound { reference, .. }) => {
                            return Err(ImagesError::BuiltElsewhere { key, reference });
                        }
                        claimed => claimed?,
                    },
                },
            };
            self.hold(image.image.id);
            resolved.insert(key, image);
        }
        Ok(resolved)
    }

    /// What the host has of a spec's images, and asks nobody for more.
    pub async fn local_images(&self, spec: &AppSpec) -> Resolved {
        let mut found = Resolved::new();
        for (key, (source, _)) in spec.images() {
            let ImageSource::Image { name, .. } = source else {
                continue;
            };
            let Some(images) = self.shared.target.images() else {
                continue;
            };
            if let Ok(image) = images.resolve(name, Pull::Never, None, None).await {
                found.insert(key, image);
            }
        }
        found
    }

    /// Whether every image that a deploy pins is here, and what it says of itself.
    ///
    /// # Errors
    /// [`ImagesError`] for the first that is not.
    pub async fn pinned_images(
        &self,
        spec: &AppSpec,
        pinned: &BTreeMap<String, PinnedImage>,
    ) -> Result<BTreeMap<String, ImageFacts>, ImagesError> {
        let mut all = BTreeMap::new();
        for (key, _) in spec.images() {
            let images = images_of(&self.shared, &key)?;
            let Some(image) = pinned.get(&key) else {
                return Err(ImagesError::NotBuilt { key });
            };
            let id = image.id;
            let facts = images.inspect(&id).await?;
            let facts = facts.ok_or_else(|| ImagesError::Gone {
                key: key.clone(),
                id,
            })?;
            self.hold(id);
            all.insert(key, facts);
        }
        Ok(all)
    }

    /// Has the images here again of the release that a rollback leads to: some may have been let go since it served.
    ///
    /// # Errors
    /// [`ImagesError`]: it cannot serve again.
    pub(super) async fn ensure_for_rollback(
        &self,
        scope: &Scope,
        to: Option<ReleaseId>,
    ) -> Result<(), ImagesError> {
        let view = self.environment_or_empty(scope);
        if view.state.rollout.is_some() {
            // It is an abort: both releases run, and nobody has to be asked.
            return Ok(());
        }
        let release = to.or_else(|| view.state.rollback_target());
        let Some(body) = release.and_then(|release| view.bodies.get(&release)) else {
            return Ok(());
        };
        for (key, image) in &body.images {
            ensure(&self.shared, body, key, image).await?;
            self.hold(image.id);
        }
        Ok(())
    }

    /// Keeps an image for a while, whatever else names it.
    fn hold(&self, id: ImageId) {
        let until = self.shared.clock.now() + RESOLVED_KEPT;
        self.shared.held_images().insert(id, until);
    }
}

/// Has an image of a release here, by its digest where it was removed.
pub(crate) async fn ensure(
    shared: &Shared,
    body: &ReleaseBody,
    key: &str,
    image: &PinnedImage,
) -> Result<(), ImagesError> {
    let images = images_of(shared, key)?;
    let login = login(shared, &body.spec, image.reference.registry())?;
    Ok(images.ensure(image, login.as_ref(), None).await?)
}

fn images_of(shared: &Shared, key: &str) -> Result<Arc<dyn Images>, ImagesError> {
    let images = shared.target.images();
    images.ok_or_else(|| ImagesError::NoContainers(key.to_owned()))
}

/// Who asks a registry, by the newest manifest of an environment.
pub(crate) fn login_of(
    shared: &Shared,
    scope: &Scope,
    registry: &str,
) -> Result<Option<RegistryLogin>, ImagesError> {
    let view = shared.environment(scope);
    match view
        .as_ref()
        .and_then(|view| view.bodies.values().next_back())
    {
        Some(body) => login(shared, &body.spec, registry),
        None => Ok(None),
    }
}

fn login(
    shared: &Shared,
    spec: &AppSpec,
    registry: &str,
) -> Result<Option<RegistryLogin>, ImagesError> {
    let Some(names) = spec.registries.get(registry) else {
        return Ok(None);
    };
    let scope = spec.scope();
    let current = shared.secrets.current(&shared.journal, &scope)?;
    let value = |name: &String| {
        let version = *current.get(name).ok_or_else(|| ImagesError::LoginMissing {
            registry: registry.to_owned(),
            name: name.clone(),
        })?;
        let revealed = shared
            .secrets
            .reveal(&shared.journal, &scope, name, version)?;
        Ok::<_, ImagesError>(revealed.value)
    };
    Ok(Some(RegistryLogin {
        user: value(&names.user_secret)?.reveal().clone(),
        password: value(&names.password_secret)?,
    }))
}

fn wire_pull(pull: landfast_spec::Pull) -> Pull {
    match pull {
        landfast_spec::Pull::Newer => Pull::Newer,
        landfast_spec::Pull::Missing => Pull::Missing,
        landfast_spec::Pull::Always => Pull::Always,
        landfast_spec::Pull::Never => Pull::Never,
    }
}

/// Progress of one image, passed on under its name for as long as it is pulled.
fn tell(
    image: String,
    sender: mpsc::Sender<ImageProgress>,
) -> (mpsc::Sender<PullProgress>, JoinSet<()>) {
    let (steps, mut told) = mpsc::channel(PROGRESS_WAITING);
    let mut task = JoinSet::new();
    task.spawn(async move {
        while let Some(step) = told.recv().await {
            let image = image.clone();
            if sender.send(ImageProgress { image, step }).await.is_err() {
                return;
            }
        }
    });
    (steps, task)
}

/// A service or job that is a container.
struct Container<'a> {
    /// For people.
    name: String,
    spec: &'a ContainerSpec,
    command: &'a [String],
    uses: &'a [StoreName],
    /// Services only.
    health: Option<&'a HealthSpec>,
}

fn containers(spec: &AppSpec) -> impl Iterator<Item = Container<'_>> {
    let services = spec.services.iter().filter_map(|(name, service)| {
        Some(Container {
            name: format!("service `{name}`"),
            spec: service.container.as_ref()?,
            command: &service.command,
            uses: &service.uses,
            health: Some(&service.health),
        })
    });
    let jobs = spec.jobs.iter().filter_map(|(name, job)| {
        Some(Container {
            name: format!("job `{name}`"),
            spec: job.container.as_ref()?,
            command: &job.command,
            uses: &job.uses,
            health: None,
        })
    });
    services.chain(jobs)
}

/// What containers cannot have.
pub(crate) fn refusals(spec: &AppSpec) -> Vec<Refusal> {
    let is_process = |name: &&StoreName| {
        let store = spec.stores.get(*name);
        store.is_some_and(|store| store.is_managed() && store.image().is_none())
    };
    let mut refusals = Vec::new();
    for container in containers(spec) {
        for store in container.uses.iter().filter(is_process) {
            refusals.push(Refusal {
                code: "store-refused",
                reason: format!(
                    "{} is a container and uses the store `{store}`, whose server is a process of the host that listens \
                     on the host's own loopback: no container reaches it",
                    container.name
                ),
                hint: Some(format!(
                    "give a new store an `image`, as `[stores.{store}] image = \"…\"`, which makes its server a container; a store \
                     that is there already stays what it is"
                )),
            });
        }
    }
    refusals
}

/// What people should know of the images that a deploy would run.
pub fn warnings(spec: &AppSpec, resolved: &Resolved) -> Vec<String> {
    let mut warnings = Vec::new();
    for (key, image) in resolved {
        if let Some(said) = &image.registry_said {
            let id = image.image.id.short();
            warnings.push(format!("image {key} is the one on this host, {id}: {said}"));
        }
    }
    for container in containers(spec) {
        let key = container.spec.source.key();
        if let Some(image) = resolved.get(&key) {
            warnings.extend(container.warnings(&key, &image.facts));
        }
    }
    warnings
}

impl Container<'_> {
    fn warnings(&self, key: &str, facts: &ImageFacts) -> Vec<String> {
        let mut warnings = Vec::new();
        let name = &self.name;
        let asks_image = |health: &HealthSpec| {
            [&health.ready, &health.live].contains(&&landfast_spec::Probe::Image)
        };
        if self.health.is_some_and(asks_image) && !facts.has_health_check {
            warnings.push(format!(
                "{name} asks the check of its image, and {key} brings none: it never becomes ready"
            ));
        }
        let has_own = !self.command.is_empty() || self.spec.entrypoint.is_some();
        if !has_own && facts.command.is_empty() && facts.entrypoint.is_empty() {
            warnings.push(format!(
                "image {key} says nothing to start: write `command` for {name}"
            ));
        }
        let is_mounted = |path: &&String| self.spec.mounts.values().any(|at| at == *path);
        for path in facts.volumes.iter().filter(|path| !is_mounted(path)) {
            warnings.push(format!(
                "image {key} keeps data at `{path}`, which goes with each instance of {name}: a volume there keeps it, \
                 volumes = {{ data = {{ from = \"managed\", at = \"{path}\" }} }}"
            ));
        }
        warnings
    }
}

/// The images an environment needs: those of releases in use, of where a rollback leads, the last few of each service
/// and job, and those of any release that no registry could give again.
pub(crate) fn needed(view: &View) -> BTreeSet<ImageId> {
    let state = &view.state;
    let surplus = surplus(view);
    let rollout = state.rollout.as_ref();
    let in_use: BTreeSet<ReleaseId> = [
        state.serving,
        rollout.and_then(|rollout| rollout.from),
        rollout.map(|rollout| rollout.to),
        state.queued.as_ref().map(|queued| queued.to),
        state.rollback_target(),
    ]
    .into_iter()
    .flatten()
    .chain(state.instances.values().map(|instance| instance.release))
    .collect();
    let mut needed = BTreeSet::new();
    let mut newest: BTreeMap<String, Vec<ImageId>> = BTreeMap::new();
    for (release, body) in view.bodies.iter().rev() {
        let is_kept = !surplus.contains(release);
        for (key, image) in &body.images {
            let is_the_only_one = image.pinned.is_none() && is_kept;
            if in_use.contains(release) || is_the_only_one {
                needed.insert(image.id);
            }
            let images = body.spec.images();
            for user in images.get(key).iter().flat_map(|(_, users)| users) {
                let known = newest.entry(user.clone()).or_default();
                if !known.contains(&image.id) && known.len() < IMAGES_KEPT {
                    known.push(image.id);
                }
            }
        }
    }
    needed.extend(newest.into_values().flatten());
    needed
}

/// Lets go of images that nothing needs any more. Only what came here by us is looked at, and volumes never are.
pub(crate) async fn collect(shared: &Arc<Shared>) {
    let Some(images) = shared.target.images() else {
        return;
    };
    let views = shared.environments();
    let mut keep: BTreeSet<ImageId> = views.iter().flat_map(|view| needed(view)).collect();
    keep.extend(held(shared, shared.clock.now()));
    keep.extend(crate::stores::images(shared));
    match images.collect(&keep).await {
        Ok(gone) => {
            for id in gone {
                tracing::info!(image = %id.short(), "let go of an image that no release needs");
            }
        }
        Err(error) => tracing::warn!(error = chain(&error), "unused images stay"),
    }
}

fn held(shared: &Shared, now: Timestamp) -> BTreeSet<ImageId> {
    let mut held = shared.held_images();
    held.retain(|_, until| *until > now);
    held.keys().copied().collect()
}
