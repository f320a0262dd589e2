//! All environments of a host: reads them back at the start, runs their drivers, and takes what people ask.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use landfast_journal::{Journal, ReadError};
use landfast_rollout::{Environment, Input, Rejected, ScaleOverride};
use landfast_routing::snapshot::Snapshot;
use landfast_spec::AppSpec;
use landfast_target::{InstanceRef, PinnedImage, Target};
use landfast_types::{Digest, Generation, InstanceId, ReleaseId, RolloutId, Scope, ServiceName};
use tokio::{sync::watch, task::JoinSet, time::sleep};

use crate::{
    actions::chain,
    backups::{self, Backups},
    client::now,
    clock::Clock,
    driver::{
        CommandError, Driver, DriverHandle, RELEASES, ReplayError, Reply, View, release_key, replay,
    },
    jobs, measure, migrations,
    part::part,
    plane::{DataPlane, Hub, Obtained, Part},
    planning::{self, Refusal},
    release::{self, ReleaseBody},
    secrets::SecretKeeper,
    shared::{Controls, Folders, Shared},
    spec::is_variable,
    stores::{self, Stores},
    strays,
};

mod images;
mod kept;
mod renew;
mod rotate;
mod schedule;
mod switch;

pub(crate) use self::images::{
    collect as collect_images, ensure as ensure_image, login_of as registry_login,
    refusals as image_refusals,
};
use self::kept::keep_running;
pub use self::{
    images::{ImageProgress, ImagesError, Resolved, warnings as image_warnings},
    renew::Renewal,
    rotate::{RotateError, restart_waits_for},
    switch::{SwitchOrder, SwitchPlan},
};

/// Releases kept beside the ones in use (`contract.md`, "Artifacts and releases").
const RELEASES_KEPT: usize = 10;
/// How long a driver that panicked is away: longer each time, unless the last one lived longer than the most.
const RESTART_FIRST: Duration = Duration::from_millis(200);
const RESTART_MAX: Duration = Duration::from_secs(60);

/// What a host's engine is made of.
pub struct PlatformSettings {
    pub journal: Arc<dyn Journal>,
    pub target: Arc<dyn Target>,
    pub plane: Arc<dyn DataPlane>,
    pub store: Arc<landfast_store::Store>,
    pub clock: Arc<dyn Clock>,
    /// This binary, where processes that are started later find it.
    pub executable: PathBuf,
    pub vault: landfast_secrets::Vault,
    pub generation: Generation,
    pub folders: Folders,
    pub controls: Controls,
    /// The certificates on disk, for the first table.
    pub obtained: Obtained,
}

/// Why the environments could not be read back.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("environment `{scope}` cannot be read back from the journal")]
    Replay { scope: Scope, source: ReplayError },
    #[error("the journal cannot be read")]
    Journal(#[from] ReadError),
    #[error("release {release} of `{scope}` cannot be read back")]
    Body {
        scope: Scope,
        release: ReleaseId,
        source: serde_json::Error,
    },
    #[error("the target does not say what runs")]
    Target(#[source] landfast_target::TargetError),
    #[error("reading environment `{scope}` back panicked")]
    Panicked {
        scope: Scope,
        source: tokio::task::JoinError,
    },
}

/// What a deploy asks for, checked already.
#[derive(Debug, Clone)]
pub struct DeployOrder {
    pub spec: AppSpec,
    pub artifacts: BTreeMap<String, Digest>,
    /// What was resolved, by [`landfast_spec::ImageSource::key`].
    pub images: BTreeMap<String, PinnedImage>,
    pub strategy: Option<landfast_spec::Strategy>,
    pub supersede: bool,
    pub by: String,
    pub commit: Option<String>,
    pub note: Option<String>,
}

/// What became of a deploy.
#[derive(Debug, Clone)]
pub enum Deployed {
    /// Nothing differs from the release that serves.
    Unchanged { release: ReleaseId },
    /// A release was made and a rollout began or waits.
    Begun { release: ReleaseId, view: Arc<View> },
}

/// Why a deploy was not taken.
#[derive(Debug, thiserror::Error)]
pub enum DeployError {
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error("{}", .0.first().map_or("refused", |refusal| &refusal.reason))]
    Refused(Vec<Refusal>),
    #[error("artifact `{name}` ({digest}) was not uploaded")]
    ArtifactMissing { name: String, digest: Digest },
    #[error("artifact `{name}` of the manifest was not named in the request")]
    ArtifactUnnamed { name: String },
    #[error("`{name}` is both a variable of `{process}` and a secret")]
    EnvAndSecret { name: String, process: String },
    #[error(
        "`{name}` of `{process}` is required, and neither the manifest nor a secret gives it a value"
    )]
    EnvMissing { name: String, process: String },
    #[error("there is no secret `{name}`, which a store of the manifest is reached with")]
    StoreSecretMissing { name: String },
    #[error(
        "`{name}_FILE` of `{process}` is where the path of secret `{name}` goes; rename one of them"
    )]
    SecretPathTaken { name: String, process: String },
    #[error(
        "rollout {rollout} is not sealed yet: this would seal it, and the release it replaced could not serve again"
    )]
    StandsBy { rollout: RolloutId },
    #[error("{0}")]
    Unreadable(String),
    #[error(transparent)]
    Images(#[from] ImagesError),
    #[error("the environment's secrets cannot be read")]
    Secrets(#[from] crate::secrets::SecretError),
}

/// Why a job was not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("the release that serves has no job `{0}`")]
    Unknown(landfast_types::JobName),
    #[error(
        "rollout {0} moves a store of the app to another server: what a run wrote would be missing there"
    )]
    Switching(RolloutId),
    #[error(transparent)]
    Begin(#[from] jobs::BeginError),
}

/// The engine of a host.
pub struct Platform {
    me: Weak<Self>,
    shared: Arc<Shared>,
    drivers: Mutex<BTreeMap<Scope, DriverHandle>>,
    /// Environments that were not read back, and why. Their instances and routes stay as they are.
    unreadable: Mutex<BTreeMap<Scope, String>>,
    tasks: Mutex<JoinSet<()>>,
    /// Routes are claimed by one deploy or rollback at a time.
    claiming: tokio::sync::Mutex<()>,
}

impl Platform {
    /// Reads every environment back, adopts what runs, and starts the drivers. The proxy gets its first table
    /// only when all of them are known. One that cannot be read back does not stop the others: nothing of it is
    /// touched, and its part of the table stays what the proxy had last.
    ///
    /// # Errors
    /// When the journal, the target or the last table cannot be read: nothing was changed then.
    pub async fn start(settings: PlatformSettings) -> Result<Arc<Self>, StartError> {
        let hub = Hub::new(settings.plane, settings.generation, settings.obtained);
        let hub = Arc::new(hub.with_store(settings.store.root()));
        let (position, _) = watch::channel(0);
        let (replaced, _) = watch::channel(None);
        let shared = Arc::new(Shared {
            journal: settings.journal,
            target: settings.target,
            hub,
            store: settings.store,
            clock: settings.clock,
            secrets: SecretKeeper::new(settings.vault),
            stores: Stores::default(),
            backups: Backups::default(),
            executable: settings.executable,
            generation: settings.generation,
            folders: settings.folders,
            controls: settings.controls,
            position,
            views: Mutex::default(),
            job_index: Mutex::default(),
            held_images: Mutex::default(),
            replaced,
        });
        let platform = Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            shared: Arc::clone(&shared),
            drivers: Mutex::default(),
            unreadable: Mutex::default(),
            tasks: Mutex::default(),
            claiming: tokio::sync::Mutex::default(),
        });
        let owner = Arc::clone(&shared);
        let read = tokio::task::spawn_blocking(move || read_back(owner.journal.as_ref())).await;
        let ReadBack {
            read: states,
            unreadable,
        } = read.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
        for (scope, error) in unreadable {
            let Ok(part) = last_part(&shared, &scope) else {
                return Err(error);
            };
            shared.hub.set(&scope, part);
            platform.unreadable().insert(scope, chain(&error));
        }
        let running = platform.adopt(&states).await?;
        for (state, bodies) in &states {
            let health = !shared.controls.health_gate_off;
            shared.hub.set(&state.scope, part(state, bodies, health));
        }
        for (state, bodies) in states {
            let own = running.get(&state.scope).cloned().unwrap_or_default();
            platform.drive(state, bodies, own);
        }
        platform.spawn(stores::run(Arc::clone(&shared)));
        let owner = Arc::clone(&shared);
        platform.spawn(keep_running("backups", move || {
            backups::run(Arc::clone(&owner))
        }));
        let me = Weak::clone(&platform.me);
        platform.spawn(keep_running("rotations", move || {
            rotate::run(Weak::clone(&me))
        }));
        let me = Weak::clone(&platform.me);
        platform.spawn(keep_running("schedules of rotations", move || {
            schedule::run(Weak::clone(&me))
        }));
        let owner = Arc::clone(&shared);
        platform.spawn(keep_running("the sweep of strays", move || {
            strays::run(Arc::clone(&owner))
        }));
        platform.spawn(async move {
            let replaced = shared.hub.keep().await;
            shared.replaced.send_replace(Some(replaced.to_string()));
        });
        Ok(platform)
    }

    /// What every environment runs, by the target.
    async fn adopt(
        &self,
        states: &[(Environment, BTreeMap<ReleaseId, Arc<ReleaseBody>>)],
    ) -> Result<BTreeMap<Scope, BTreeSet<InstanceId>>, StartError> {
        let environments = states.iter().map(|(state, _)| state);
        self.running(environments).await
    }

    /// Which of the instances that environments know are here. One that ended while nobody looked is: its watch tells it, with its exit.
    async fn running(
        &self,
        environments: impl Iterator<Item = &Environment>,
    ) -> Result<BTreeMap<Scope, BTreeSet<InstanceId>>, StartError> {
        let target = &self.shared.target;
        let listed = target.list().await.map_err(StartError::Target)?;
        let listed: BTreeSet<InstanceRef> = listed.into_iter().map(|each| each.id).collect();
        let mut running: BTreeMap<Scope, BTreeSet<InstanceId>> = BTreeMap::new();
        let expected = environments.flat_map(|state| {
            let ids = state.instances.keys().cloned();
            ids.map(|instance| InstanceRef {
                scope: state.scope.clone(),
                instance,
            })
        });
        for id in expected {
            if !listed.contains(&id) {
                match target.observe(&id).await {
                    Ok(None) => continue,
                    Ok(Some(_)) => {}
                    // A second one beside it would be worse than a missing one: its watch goes on asking.
                    Err(error) => {
                        let InstanceRef { scope, instance } = &id;
                        tracing::warn!(%scope, %instance, error = chain(&error), "taken for running: it cannot be observed");
                    }
                }
            }
            running.entry(id.scope).or_default().insert(id.instance);
        }
        Ok(running)
    }

    /// Ends what runs although no environment knows it, and lets go of what ended long ago. Done by itself every
    /// minute.
    pub async fn sweep(&self) {
        strays::sweep(&self.shared).await;
    }

    fn drive(
        &self,
        state: Environment,
        bodies: BTreeMap<ReleaseId, Arc<ReleaseBody>>,
        running: BTreeSet<InstanceId>,
    ) -> DriverHandle {
        let scope = state.scope.clone();
        let (driver, handle) = Driver::new(Arc::clone(&self.shared), state, bodies);
        let views = &self.shared.views;
        views
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(scope.clone(), handle.view.clone());
        self.handles().insert(scope, handle.clone());
        self.spawn(keep_driving(Weak::clone(&self.me), driver, running));
        self.spawn(jobs::schedule(
            Arc::clone(&self.shared),
            handle.view.clone(),
        ));
        handle
    }

    /// Reads an environment back whose driver is gone, and gives it another.
    async fn drive_again(
        &self,
        scope: &Scope,
        views: watch::Sender<Arc<View>>,
    ) -> Result<(Driver, BTreeSet<InstanceId>), StartError> {
        let (shared, own) = (Arc::clone(&self.shared), scope.clone());
        let read =
            tokio::task::spawn_blocking(move || read_environment(shared.journal.as_ref(), &own))
                .await;
        let panicked = |source| StartError::Panicked {
            scope: scope.clone(),
            source,
        };
        let (state, bodies) = read.map_err(panicked)??;
        let mut running = self.running(std::iter::once(&state)).await?;
        let running = running.remove(scope).unwrap_or_default();
        let shared = Arc::clone(&self.shared);
        let (driver, handle) = Driver::succeeding(shared, state, bodies, views);
        self.handles().insert(scope.clone(), handle);
        Ok((driver, running))
    }

    /// Begins some work; takes note of what has ended meanwhile, so that it does not pile up.
    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(ended) = tasks.try_join_next() {
            if let Err(error) = ended
                && error.is_panic()
            {
                tracing::error!(%error, "a task panicked");
            }
        }
        tasks.spawn(work);
    }

    fn handles(&self) -> std::sync::MutexGuard<'_, BTreeMap<Scope, DriverHandle>> {
        self.drivers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unreadable(&self) -> std::sync::MutexGuard<'_, BTreeMap<Scope, String>> {
        let unreadable = self.unreadable.lock();
        unreadable.unwrap_or_else(PoisonError::into_inner)
    }

    /// Why nothing can be said of an environment or done to it, and what helps; `None` for all others.
    pub fn trouble(&self, scope: &Scope) -> Option<String> {
        let reason = self.unreadable().get(scope).cloned()?;
        Some(format!(
            "{reason}; its instances and routes are left as they were: start the Landfast that wrote it, or restore the journal"
        ))
    }

    /// What all drivers share.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// All environments, in order of name.
    pub fn environments(&self) -> Vec<Arc<View>> {
        self.shared.environments()
    }

    /// One environment, when something was ever deployed to it.
    pub fn environment(&self, scope: &Scope) -> Option<Arc<View>> {
        let handle = self.handles().get(scope).cloned()?;
        let view = handle.view.borrow().clone();
        Some(view)
    }

    /// One environment, empty when nothing was ever deployed to it.
    pub fn environment_or_empty(&self, scope: &Scope) -> Arc<View> {
        self.environment(scope)
            .unwrap_or_else(|| planning::empty_view(scope))
    }

    /// Asks an environment for something.
    ///
    /// # Errors
    /// [`CommandError`] when it was not taken.
    pub async fn command(&self, scope: &Scope, input: Input) -> Reply {
        let handle = self.handles().get(scope).cloned();
        let handle = handle.ok_or(CommandError::Rejected(Rejected::NothingDeployed))?;
        let mut claim = None;
        if let Input::Rollback { to, .. } = &input {
            // What it was is brought back before anything moves.
            let ensured = self.ensure_for_rollback(scope, *to).await;
            ensured.map_err(|error| CommandError::Images(Box::new(error)))?;
            claim = Some(self.claiming.lock().await);
            let view = handle.view.borrow().clone();
            let views = self.shared.environments();
            if let Some(taken) = planning::rollback_taken(&views, &view, *to) {
                return Err(CommandError::Rejected(taken));
            }
        }
        self.measure(scope).await?;
        let reply = handle.command(input, None).await;
        drop(claim);
        reply
    }

    /// Tells an environment the counters of now: the ledger of what begins next opens at them.
    async fn measure(&self, scope: &Scope) -> Result<(), CommandError> {
        let handle = self.handles().get(scope).cloned();
        let reading = measure::reading(&self.shared, scope).await;
        if let (Some(handle), Some(reading)) = (handle, reading) {
            let measured = crate::driver::Message::Input(Input::Measured { reading });
            let sent = handle.inbox.send(measured).await;
            sent.map_err(|_| CommandError::Stopping)?;
        }
        Ok(())
    }

    /// What speaks against a deploy.
    pub async fn refusals(&self, order: &DeployOrder) -> Vec<Refusal> {
        let view = self.environment_or_empty(&order.spec.scope());
        let (shared, order) = (Arc::clone(&self.shared), order.clone());
        let judged = tokio::task::spawn_blocking(move || {
            let plan = release::plan(&order.spec, order.strategy);
            let spec = &order.spec;
            let mut refusals = planning::refusals(&shared, &view, spec, &order.artifacts, &plan);
            refusals.extend(backups::refusals(&shared, &spec.scope(), spec));
            refusals
        });
        judged.await.unwrap_or_default()
    }

    /// Sets by hand how many instances of a service there are; `None` takes the manifest's number again.
    ///
    /// # Errors
    /// [`DeployError`] when it was refused, as where the pools of more instances do not fit a store: nothing has changed then.
    pub async fn scale(
        &self,
        scope: &Scope,
        service: ServiceName,
        replicas: Option<u32>,
    ) -> Result<Arc<View>, DeployError> {
        let _claim = self.claiming.lock().await;
        let view = self.environment_or_empty(scope);
        let state = &view.state;
        let rollout = state.rollout.as_ref().map(|rollout| rollout.to);
        let releases = [state.serving, rollout].into_iter().flatten();
        for body in releases.filter_map(|release| view.bodies.get(&release)) {
            let Some(manifest) = body.spec.services.get(&service).map(|it| it.replicas) else {
                continue;
            };
            let mut scale = state.scale.clone();
            let before = state.replicas(Some(body.release), &service);
            let replicas = replicas.unwrap_or(manifest);
            let over = ScaleOverride { replicas, manifest };
            scale.insert(service.clone(), over);
            let known = stores::pool_refusals(&body.spec, &state.scale);
            let mut refused = stores::pool_refusals(&body.spec, &scale);
            refused.retain(|refusal| known.iter().all(|known| known.reason != refusal.reason));
            // Fewer are always better.
            if replicas > before && !refused.is_empty() {
                return Err(DeployError::Refused(refused));
            }
        }
        let input = Input::Scale { service, replicas };
        Ok(self.command(scope, input).await?)
    }

    /// Makes a release and begins its rollout, unless nothing differs from what serves.
    ///
    /// # Errors
    /// [`DeployError`] when it was refused: nothing has changed then.
    pub async fn deploy(&self, order: DeployOrder) -> Result<Deployed, DeployError> {
        let _claim = self.claiming.lock().await;
        let scope = order.spec.scope();
        if let Some(trouble) = self.trouble(&scope) {
            return Err(DeployError::Unreadable(trouble));
        }
        let secrets = self.check(&order)?;
        self.pinned_images(&order.spec, &order.images).await?;
        let mut refused = stores::refusals(&self.shared, &scope, &order.spec);
        refused.extend(images::refusals(&order.spec));
        refused.extend(planning::processes_refused(&self.shared, &order.spec));
        if !refused.is_empty() {
            return Err(DeployError::Refused(refused));
        }
        let view = self.environment_or_empty(&scope);
        let fingerprint =
            release::fingerprint(&order.spec, &order.artifacts, &order.images, &secrets);
        if let Some(body) = settled_release(&view).filter(|body| body.fingerprint == fingerprint) {
            return Ok(Deployed::Unchanged {
                release: body.release,
            });
        }
        let taken = planning::taken_routes(&self.shared, &scope, &order.spec);
        if !taken.is_empty() {
            let refusal = |taken: planning::TakenRoute| Refusal {
                code: "route-taken",
                reason: format!("{}{} belongs to {}", taken.host, taken.path, taken.owner),
                hint: Some("choose another host or path, or remove the route there first".into()),
            };
            return Err(DeployError::Refused(
                taken.into_iter().map(refusal).collect(),
            ));
        }
        // A release that cannot run is none: it would only be found out when an instance is started.
        let sets = {
            let (shared, order) = (Arc::clone(&self.shared), order.clone());
            let view = Arc::clone(&view);
            let look = move || {
                let (store, spec, artifacts) = (&shared.store, &order.spec, &order.artifacts);
                let mut refusals = planning::commands_not_inside(store, spec, artifacts);
                let sets = migrations::sets(store, spec, artifacts);
                match &sets {
                    Ok(sets) => refusals.extend(migrations::unsafe_ones(&view.state, sets)),
                    Err(invalid) => refusals.extend(invalid.iter().cloned()),
                }
                sets.ok().filter(|_| refusals.is_empty()).ok_or(refusals)
            };
            let looked = tokio::task::spawn_blocking(look).await;
            looked
                .map_err(|_panic| CommandError::Stopping)?
                .map_err(DeployError::Refused)?
        };
        let mut plan = release::plan(&order.spec, order.strategy);
        let moved = planning::moved_routes(&view, &order.spec, &plan);
        if !moved.is_empty() {
            return Err(DeployError::Refused(moved));
        }
        if self.shared.controls.health_gate_off {
            plan.min_ready = Duration::ZERO;
        }
        let handle = self.handle_or_new(&scope);
        let body = ReleaseBody {
            release: handle.view.borrow().state.next_release(),
            spec: order.spec,
            artifacts: order.artifacts,
            images: order.images,
            secrets,
            created_at: self.shared.clock.now(),
            commit: order.commit,
            note: order.note,
            fingerprint,
        };
        self.measure(&scope).await?;
        let (topology, by) = (release::topology(&body.spec, &sets), order.by);
        let (release, supersede) = (body.release, order.supersede);
        let input = Input::Deploy {
            topology,
            plan,
            supersede,
            by,
        };
        let view = handle.command(input, Some(body)).await?;
        self.collect(&scope).await;
        if self.unreadable().is_empty() {
            images::collect(&self.shared).await;
        }
        Ok(Deployed::Begun { release, view })
    }

    /// Looks at everything a deploy needs that is not a matter of this moment; gives the secrets to pin.
    fn check(&self, order: &DeployOrder) -> Result<BTreeMap<String, u64>, DeployError> {
        let scope = order.spec.scope();
        let services = order.spec.services.iter();
        let services = services.map(|(name, s)| (name.to_string(), &s.env, &s.uses, s.secrets));
        let jobs = order.spec.jobs.iter();
        let jobs = jobs.map(|(name, j)| (name.to_string(), &j.env, &j.uses, j.secrets));
        let secrets = self.shared.secrets.current(&self.shared.journal, &scope)?;
        for name in order.spec.artifact_names() {
            let name = name.to_owned();
            let Some(digest) = order.artifacts.get(&name).copied() else {
                return Err(DeployError::ArtifactUnnamed { name });
            };
            if self.shared.store.path(&digest).is_none() {
                return Err(DeployError::ArtifactMissing { name, digest });
            }
        }
        for store in order.spec.stores.values() {
            let missing = |name: &&str| !secrets.contains_key(*name);
            if let Some(name) = store.secrets().into_iter().find(missing) {
                return Err(DeployError::StoreSecretMissing {
                    name: name.to_owned(),
                });
            }
        }
        for volume in order.spec.volumes.values() {
            let missing = |name: &&str| !secrets.contains_key(*name);
            if let Some(name) = volume.backup.secrets().into_iter().find(missing) {
                return Err(DeployError::StoreSecretMissing {
                    name: name.to_owned(),
                });
            }
        }
        for (process, env, uses, delivery) in services.chain(jobs) {
            for name in secrets.keys() {
                let path = format!("{name}_FILE");
                let is_taken = env.contains_key(&path) || secrets.contains_key(&path);
                if is_taken && !is_variable(name, env, delivery) {
                    let (name, process) = (name.clone(), process.clone());
                    return Err(DeployError::SecretPathTaken { name, process });
                }
            }
            let of_stores = landfast_spec::injected_variables(uses, |name| {
                Some(order.spec.stores.get(name)?.kind())
            });
            for (name, var) in env {
                let secret = secrets.contains_key(name);
                if secret && var.value.is_some() {
                    return Err(DeployError::EnvAndSecret {
                        name: name.clone(),
                        process,
                    });
                }
                let is_given = var.value.is_some() || secret || of_stores.contains_key(name);
                if var.required && !is_given {
                    return Err(DeployError::EnvMissing {
                        name: name.clone(),
                        process,
                    });
                }
            }
        }
        Ok(secrets)
    }

    /// The driver of an environment in which something was deployed.
    pub(crate) fn handle(&self, scope: &Scope) -> Option<DriverHandle> {
        self.handles().get(scope).cloned()
    }

    fn handle_or_new(&self, scope: &Scope) -> DriverHandle {
        let known = self.handles().get(scope).cloned();
        known.unwrap_or_else(|| {
            self.drive(
                Environment::new(scope.clone()),
                BTreeMap::new(),
                BTreeSet::new(),
            )
        })
    }

    /// Drops the releases beyond the last ten that nothing refers to, and their artifacts.
    async fn collect(&self, scope: &Scope) {
        let Some(view) = self.environment(scope) else {
            return;
        };
        let surplus = surplus(&view);
        if surplus.is_empty() {
            return;
        }
        let input = Input::Collected {
            releases: surplus.clone(),
        };
        let Some(handle) = self.handles().get(scope).cloned() else {
            return;
        };
        if let Err(error) = handle.command(input, None).await {
            tracing::warn!(%scope, %error, "old releases were not dropped");
            return;
        }
        // What an environment that was not read back needs is not known.
        let may_collect = self.unreadable().is_empty();
        let (shared, scope) = (Arc::clone(&self.shared), scope.clone());
        let dropped = tokio::task::spawn_blocking(move || {
            for release in surplus {
                let gone = shared
                    .journal
                    .delete(RELEASES, &release_key(&scope, release), None);
                if let Err(error) = gone {
                    tracing::warn!(%scope, %release, error = chain(&error), "its content stays");
                }
            }
            let views = shared.environments();
            let bodies = views.iter().flat_map(|view| view.bodies.values());
            let keep = bodies
                .flat_map(|body| body.artifacts.values().copied())
                .collect();
            if may_collect && let Err(error) = shared.store.collect(&keep) {
                tracing::warn!(error = chain(&error), "unused artifacts stay");
            }
        });
        if let Err(error) = dropped.await {
            tracing::warn!(%error, "collecting old releases stopped");
        }
    }

    /// Waits until another server has taken over, and says how it was noticed.
    pub async fn replaced(&self) -> String {
        let mut replaced = self.shared.replaced.subscribe();
        let seen = replaced.wait_for(Option::is_some).await;
        seen.ok()
            .and_then(|reason| reason.clone())
            .unwrap_or_default()
    }

    /// Begins a run of a job by hand; it goes on by itself.
    ///
    /// # Errors
    /// [`RunError`]; nothing was begun then.
    pub async fn run_job(
        self: &Arc<Self>,
        scope: &Scope,
        job: &landfast_types::JobName,
    ) -> Result<jobs::RunRecord, RunError> {
        let unknown = || RunError::Unknown(job.clone());
        let view = self.environment(scope).ok_or_else(unknown)?;
        let release = jobs::leading_release(&view.state).ok_or_else(unknown)?;
        let rollout = view.state.rollout.as_ref();
        if let Some(rollout) = rollout.filter(|rollout| rollout.switching.is_some()) {
            return Err(RunError::Switching(rollout.id));
        }
        let body = view.bodies.get(&release).ok_or_else(unknown)?.clone();
        let spec = body.spec.jobs.get(job).cloned().ok_or_else(unknown)?;
        let run = jobs::Run {
            scope,
            body: &body,
            name: job,
            job: &spec,
            cause: "by hand",
            rollout: None,
        };
        let record = jobs::begin(&self.shared, &run).await?;
        let (shared, scope, job) = (Arc::clone(&self.shared), scope.clone(), job.clone());
        let begun = record.clone();
        self.spawn(async move {
            let run = jobs::Run {
                scope: &scope,
                body: &body,
                name: &job,
                job: &spec,
                cause: "by hand",
                rollout: None,
            };
            if let Err(error) = jobs::finish(&shared, &run, begun, BTreeMap::new()).await {
                tracing::warn!(%job, error, "the job did not run");
            }
        });
        Ok(record)
    }
}

/// The release that has all traffic and that nothing waits to replace.
pub fn settled_release(view: &View) -> Option<&Arc<ReleaseBody>> {
    let state = &view.state;
    let release = match &state.rollout {
        None => state.serving,
        Some(rollout) if rollout.is_promoted() => Some(rollout.to),
        Some(_) => None,
    };
    let release = release.filter(|_| state.queued.is_none())?;
    view.bodies.get(&release)
}

/// The releases nothing needs any more: beyond the newest ten, but for the newest release of each of the last ten versions of the code.
/// Secrets that are rotated by the clock make releases as well, and must not push out those one wants to go back to.
fn surplus(view: &View) -> BTreeSet<ReleaseId> {
    let state = &view.state;
    let rollout = state.rollout.as_ref();
    let in_use: BTreeSet<ReleaseId> = [
        state.serving,
        rollout.and_then(|rollout| rollout.from),
        rollout.map(|rollout| rollout.to),
        state.queued.as_ref().map(|queued| queued.to),
        // Where a rollback would lead is never dropped, however many failed releases came after it.
        state.rollback_target(),
    ]
    .into_iter()
    .flatten()
    .chain(state.instances.values().map(|instance| instance.release))
    .collect();
    let rest = state
        .releases
        .keys()
        .rev()
        .filter(|release| !in_use.contains(release));
    let rest = rest.skip(RELEASES_KEPT.saturating_sub(in_use.len()));
    let newest_of_code = newest_of_code(view);
    rest.filter(|release| !newest_of_code.contains(release))
        .copied()
        .collect()
}

/// Of each run of releases that differ in their secrets alone, the newest.
fn newest_of_code(view: &View) -> BTreeSet<ReleaseId> {
    let code = |release| {
        let body = view.bodies.get(&release)?;
        Some((&body.spec, &body.artifacts, &body.images))
    };
    let mut newer = None;
    let is_other = |release: &ReleaseId| {
        let before = std::mem::replace(&mut newer, code(*release));
        before.is_none() || before != newer
    };
    let releases = view.state.releases.keys().rev().copied();
    releases.filter(is_other).take(RELEASES_KEPT).collect()
}

type Bodies = BTreeMap<ReleaseId, Arc<ReleaseBody>>;

/// The environments of the journal: those that could be read back, and why the others could not.
#[derive(Default)]
struct ReadBack {
    read: Vec<(Environment, Bodies)>,
    unreadable: BTreeMap<Scope, StartError>,
}

/// Reads every environment back as a start does, and does nothing else: how many there are, and what of them this
/// build cannot read. A build that is to take over is asked first.
///
/// # Errors
/// When the journal itself cannot be read.
pub fn check_journal(
    journal: &dyn Journal,
) -> Result<(usize, BTreeMap<Scope, String>), StartError> {
    let back = read_back(journal)?;
    let unreadable = back.unreadable.iter();
    let unreadable: BTreeMap<_, _> = unreadable
        .map(|(scope, error)| (scope.clone(), chain(error)))
        .collect();
    Ok((back.read.len() + unreadable.len(), unreadable))
}

fn read_back(journal: &dyn Journal) -> Result<ReadBack, StartError> {
    let mut back = ReadBack::default();
    for stream in journal.streams()? {
        let Some(scope) = stream.strip_prefix("environment/").and_then(parse_scope) else {
            continue;
        };
        match read_environment(journal, &scope) {
            Ok(environment) => back.read.push(environment),
            Err(error) => {
                tracing::error!(%scope, error = chain(&error), "not read back; what runs of it is left alone");
                back.unreadable.insert(scope, error);
            }
        }
    }
    Ok(back)
}

fn read_environment(
    journal: &dyn Journal,
    scope: &Scope,
) -> Result<(Environment, Bodies), StartError> {
    let state = replay(journal, scope).map_err(|source| StartError::Replay {
        scope: scope.clone(),
        source,
    })?;
    let mut bodies = BTreeMap::new();
    for release in state.releases.keys() {
        let Some(document) = journal.get(RELEASES, &release_key(scope, *release))? else {
            continue;
        };
        let body: ReleaseBody =
            serde_json::from_slice(&document.body).map_err(|source| StartError::Body {
                scope: scope.clone(),
                release: *release,
                source,
            })?;
        bodies.insert(*release, Arc::new(body));
    }
    Ok((state, bodies))
}

/// The part of the table an environment has in the proxy's last good routes. Nothing where there are none yet; an
/// error where they cannot be read: to publish a table without it would end its traffic.
fn last_part(shared: &Shared, scope: &Scope) -> io::Result<Part> {
    let path = shared.folders.state.join("proxy/routes.json");
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Part::default()),
        Err(error) => return Err(error),
    };
    let snapshot: Snapshot = serde_json::from_slice(&bytes).map_err(io::Error::other)?;
    let mut part = Part::default();
    let routes = snapshot.routes.into_iter();
    part.routes
        .extend(routes.filter(|route| route.service.scope == *scope));
    let services = snapshot.services.into_iter();
    part.services
        .extend(services.filter(|(key, _)| key.scope == *scope));
    // What lies in our own folder came by ACME, and is renewed there.
    let own = shared.folders.certificates();
    for certificate in snapshot.certificates {
        let mut hosts = part.routes.iter().map(|route| &route.host);
        if !hosts.any(|host| certificate.hosts.contains(host)) {
            continue;
        }
        if Path::new(&certificate.chain_path).starts_with(&own) {
            part.acme.extend(certificate.hosts);
        } else {
            part.certificates.push(certificate);
        }
    }
    Ok(part)
}

/// Runs an environment's driver until the server stops. Where it panics, traffic goes on and another takes its
/// place as after a crash of the server: what is owed is in the journal.
async fn keep_driving(
    platform: Weak<Platform>,
    mut driver: Driver,
    mut running: BTreeSet<InstanceId>,
) {
    let (scope, views) = (driver.scope().clone(), driver.views());
    let mut wait = RESTART_FIRST;
    loop {
        let begun = now();
        let mut task = JoinSet::new();
        task.spawn(driver.run(running));
        match task.join_next().await {
            Some(Err(error)) if error.is_panic() => {
                tracing::error!(%scope, %error, "the driver panicked; another takes its place");
            }
            Some(_) | None => return,
        }
        if now().saturating_duration_since(begun) > RESTART_MAX {
            wait = RESTART_FIRST;
        }
        (driver, running) = loop {
            sleep(wait).await;
            wait = (wait * 2).min(RESTART_MAX);
            let Some(platform) = platform.upgrade() else {
                return;
            };
            match platform.drive_again(&scope, views.clone()).await {
                Ok(next) => break next,
                Err(error) => {
                    tracing::error!(%scope, error = chain(&error), "not taken up; trying again");
                }
            }
        };
    }
}

fn parse_scope(text: &str) -> Option<Scope> {
    let (app, environment) = text.split_once('/')?;
    Some(Scope {
        app: app.parse().ok()?,
        environment: environment.parse().ok()?,
    })
}
