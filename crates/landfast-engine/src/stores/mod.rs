//! The managed stores of this host: one keeper for each, and what instances are given to reach them.
//!
//! A store is a document of the journal, changed before anything is done. Manifests reach stores by releases: the
//! newest release of an environment says what is wanted, and an older one that is gone back to changes nothing. The
//! attendant compares the two whenever an environment changes, so what a server that died had not done is done by the next.
//!
//! It never restarts a server to change a setting, never shrinks or upgrades data in place, and removes nothing that a
//! person did not name and give a delay.

mod bindings;
mod connections;
mod container;
mod copy;
mod credentials;
mod definers;
mod diagnose;
mod host;
mod image_programs;
mod keeper;
mod lineage;
pub(crate) mod rotation;
mod writes;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use landfast_datastore::{
    Change, Input, Login, Measures, PORTS, Phase, Rejected, Store, Wanted, change, connection_url,
    database_name, pools_fit, port_from,
};
use landfast_rollout::ScaleOverride;
use landfast_secrets::rotation::{Phase as RotationPhase, RotationRejected};
use landfast_spec::AppSpec;
use landfast_target::InstanceRef;
use landfast_types::{ImageId, ReleaseId, Scope, Secret, ServiceName, StoreName, Timestamp};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::sleep,
};

use self::{bindings::Reserved, connections::Side, keeper::Keeper};
pub use self::{
    bindings::is_bound,
    credentials::COLLECTION as CREDENTIALS,
    diagnose::diagnose,
    host::{Room, room},
    rotation::{ROTATION_KIND, RotationView, operator_login, read_record as read_rotation_record},
};
pub(crate) use self::{
    bindings::{find as find_store, is_gone, remove_unborn, retire, served_by},
    connections::{connections, secret_of_store},
    copy::{BUSY, DatabaseCopy},
    credentials::rewrap as rewrap_credential,
    host::{access, find, make_throwaway, owner_of, places},
    image_programs::ImagePrograms,
    lineage::lineage,
    writes::{allow_writes, hold_writes, told as writes_told},
};
use crate::{
    actions::chain, driver::View, planning::Refusal, release::ReleaseBody, shared::Shared,
};

/// The journal's collection of stores.
pub const COLLECTION: &str = "data-stores";
const PAGE: usize = 1_000;
const INBOX_MAX: usize = 64;
/// The attendant looks again after this, whether or not it was woken.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// A store as readers see it.
#[derive(Debug, Clone)]
pub struct StoreView {
    pub store: Store,
    /// The newest measurement of the server that runs.
    pub measured: Option<Arc<Measured>>,
    /// The first size that this server of Landfast saw, for the growth.
    pub first_size: Option<(Timestamp, u64)>,
}

/// A measurement, or why there is none.
#[derive(Debug, Clone)]
pub struct Measured {
    pub at: Timestamp,
    pub result: Result<Measures, String>,
}

/// Why a store did not do what a person asked.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    #[error("there is no such store")]
    Unknown,
    #[error(transparent)]
    Rejected(#[from] Rejected),
    #[error("the journal did not take it: {0}")]
    Journal(String),
    #[error(transparent)]
    Rotation(#[from] RotationRejected),
    #[error("the server is stopping")]
    Stopping,
}

/// What a keeper is told.
pub(crate) enum Message {
    Input(Input),
    Command {
        input: Input,
        reply: oneshot::Sender<Result<Arc<StoreView>, CommandError>>,
    },
    Measured(Measured),
}

#[derive(Clone)]
struct Handle {
    inbox: mpsc::Sender<Message>,
    view: watch::Receiver<Arc<StoreView>>,
    /// Logins that were made since its newest start; made one at a time.
    logins: Arc<tokio::sync::Mutex<BTreeSet<(u64, Login)>>>,
    /// How far the change of its passwords has come.
    rotation: watch::Sender<Arc<RotationView>>,
    /// What is recorded of that is decided by one at a time.
    recording: Arc<tokio::sync::Mutex<()>>,
    /// There is one copy of it at a time.
    copying: Arc<tokio::sync::Mutex<()>>,
    /// Read while something goes on with Landfast's own password, and written to while that changes.
    working: Arc<tokio::sync::RwLock<()>>,
    /// Its configuration is written by one at a time.
    configuring: Arc<tokio::sync::Mutex<()>>,
}

/// Every store of this host.
#[derive(Default)]
pub struct Stores {
    book: Mutex<BTreeMap<(Scope, StoreName), Handle>>,
    containers: container::Containers,
    tasks: Mutex<JoinSet<()>>,
    reserved: Mutex<Reserved>,
    /// Stores that were had back, as long as somebody sees to what becomes of them.
    lent: Mutex<Reserved>,
}

impl Stores {
    fn handle(&self, scope: &Scope, name: &StoreName) -> Option<Handle> {
        let book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        book.get(&(scope.clone(), name.clone())).cloned()
    }

    /// Begins some work that ends with the server.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(work);
    }

    /// The stores of an environment, in order of name.
    pub fn of(&self, scope: &Scope) -> Vec<Arc<StoreView>> {
        let book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        let own = book.iter().filter(|((other, _), _)| other == scope);
        own.map(|(_, handle)| handle.view.borrow().clone())
            .collect()
    }

    /// How far the change of a store's passwords has come.
    pub fn rotation(&self, scope: &Scope, name: &StoreName) -> Option<Arc<RotationView>> {
        let handle = self.handle(scope, name)?;
        Some(handle.rotation.borrow().clone())
    }

    /// What the end of a rotation waits for, in words.
    pub fn rotation_waits_for(&self, scope: &Scope, name: &StoreName) -> Option<&'static str> {
        let handle = self.handle(scope, name)?;
        match handle.rotation.borrow().rotation.phase() {
            RotationPhase::Closing { .. } | RotationPhase::Renewing => {}
            RotationPhase::Settled
            | RotationPhase::Preparing
            | RotationPhase::Verifying
            | RotationPhase::Counting
            | RotationPhase::Replacing { .. } => return None,
        }
        if handle.copying.try_lock().is_err() {
            return Some("the rehearsal on its copy is over");
        }
        let is_free = handle.working.try_write().is_ok();
        (!is_free).then_some("the work on its backups is over")
    }

    /// Landfast's own password of a store stays what it is while this is held.
    pub(crate) async fn work(
        &self,
        scope: &Scope,
        name: &StoreName,
    ) -> Option<tokio::sync::OwnedRwLockReadGuard<()>> {
        let working = self.handle(scope, name)?.working;
        Some(working.read_owned().await)
    }

    /// Nobody else writes the configuration of a store while this is held.
    async fn configure(
        &self,
        scope: &Scope,
        name: &StoreName,
    ) -> Option<tokio::sync::OwnedMutexGuard<()>> {
        let configuring = self.handle(scope, name)?.configuring;
        Some(configuring.lock_owned().await)
    }

    /// Every store, in order of environment and name.
    pub fn all(&self) -> Vec<Arc<StoreView>> {
        let book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        book.values()
            .map(|handle| handle.view.borrow().clone())
            .collect()
    }

    /// Asks a store for something.
    ///
    /// # Errors
    /// [`CommandError`]; nothing has changed then.
    pub async fn command(
        &self,
        scope: &Scope,
        name: &StoreName,
        input: Input,
    ) -> Result<Arc<StoreView>, CommandError> {
        let handle = self.handle(scope, name).ok_or(CommandError::Unknown)?;
        let (reply, answer) = oneshot::channel();
        let sent = handle.inbox.send(Message::Command { input, reply }).await;
        sent.map_err(|_| CommandError::Stopping)?;
        answer.await.map_err(|_| CommandError::Stopping)?
    }
}

/// The address of a managed store with the login of a person, who may do there what the app may. It is asked for by its own name,
/// not by one that it serves.
///
/// # Errors
/// A sentence, when it is not ready.
pub async fn operator_url(
    shared: &Shared,
    scope: &Scope,
    name: &StoreName,
) -> Result<Secret<String>, String> {
    connections::managed_url(shared, scope, name, operator_login, Side::Host).await
}

/// Reads all stores back and keeps them, until another server has taken over.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut wait = Duration::from_secs(1);
    loop {
        match read_back(&shared).and_then(|stores| rotation::read_back(&shared, stores)) {
            Ok(stores) => {
                for (store, revision, rotation) in stores {
                    let (scope, name) = (store.scope.clone(), store.name.clone());
                    keep(&shared, store, revision, rotation);
                    shared
                        .stores
                        .spawn(copy::sweep(Arc::clone(&shared), scope, name));
                }
                break;
            }
            // Without them nothing is known of what runs: it is tried until it can be read.
            Err(reason) => {
                tracing::error!(reason, "the stores cannot be read back");
                sleep(wait).await;
                wait = (wait * 2).min(Duration::from_secs(60));
            }
        }
    }
    let mut position = shared.position.subscribe();
    while shared.replaced.borrow().is_none() {
        attend(&shared).await;
        tokio::select! {
            changed = position.changed() => if changed.is_err() { return },
            () = sleep(LOOK_EVERY) => {}
        }
    }
}

fn read_back(shared: &Shared) -> Result<Vec<(Store, u64)>, String> {
    let mut stores = Vec::new();
    let mut after = None::<String>;
    loop {
        let page = shared.journal.list(COLLECTION, after.as_deref(), PAGE);
        let page = page.map_err(|error| chain(&error))?;
        for document in &page {
            match serde_json::from_slice::<Store>(&document.body) {
                Ok(store) => stores.push((store, document.revision)),
                Err(error) => return Err(format!("`{}`: {error}", document.key)),
            }
        }
        match page.last() {
            Some(last) if page.len() == PAGE => after = Some(last.key.clone()),
            Some(_) | None => return Ok(stores),
        }
    }
}

/// The instances of all stores, as the journal has them: what runs of them is no stray.
pub(crate) fn instances(shared: &Shared) -> Result<Vec<InstanceRef>, String> {
    let stores = read_back(shared)?;
    let each = stores.into_iter().filter_map(|(store, _)| {
        let instance = store.instance()?.clone();
        Some(InstanceRef {
            scope: store.scope,
            instance,
        })
    });
    Ok(each.chain(shared.stores.containers.running()).collect())
}

fn keep(shared: &Arc<Shared>, store: Store, revision: u64, rotation: RotationView) {
    let (sender, inbox) = mpsc::channel(INBOX_MAX);
    let key = (store.scope.clone(), store.name.clone());
    let view = StoreView {
        store: store.clone(),
        measured: None,
        first_size: None,
    };
    let (views, view) = watch::channel(Arc::new(view));
    let handle = Handle {
        inbox: sender.clone(),
        view,
        logins: Arc::default(),
        rotation: watch::Sender::new(Arc::new(rotation)),
        recording: Arc::default(),
        copying: Arc::default(),
        working: Arc::default(),
        configuring: Arc::default(),
    };
    let stores = &shared.stores;
    let mut book = stores.book.lock().unwrap_or_else(PoisonError::into_inner);
    book.insert(key, handle);
    let keeper = Keeper {
        shared: Arc::clone(shared),
        store,
        revision,
        inbox,
        sender,
        views,
        tasks: JoinSet::new(),
        acting: None,
        following: None,
    };
    drop(book);
    stores.spawn(keeper.run());
}

/// Tells the stores of each environment what its newest release says of them, and makes those that are new.
async fn attend(shared: &Arc<Shared>) {
    for view in shared.environments() {
        let Some((_, body)) = view.bodies.last_key_value() else {
            continue;
        };
        let scope = &view.state.scope;
        let wanted = wanted_at(&view, body);
        for (name, wanted) in &wanted {
            if shared.stores.handle(scope, name).is_none()
                && !shared.stores.is_reserved(scope, name)
                && let Err(reason) = begin(shared, scope, name, body, wanted)
            {
                tracing::error!(%scope, store = %name, reason, "the store was not begun");
            }
        }
        for known in shared.stores.of(scope) {
            let store = &known.store;
            take_back(shared, &view, store);
            let is_moved = store.named != wanted.contains_key(&store.name);
            if store.release > body.release || (store.release == body.release && !is_moved) {
                continue;
            }
            let input = Input::Named {
                release: body.release,
                wanted: wanted.get(&store.name).cloned(),
            };
            if let Err(error) = shared.stores.command(scope, &store.name, input).await {
                tracing::warn!(%scope, store = %store.name, %error, "the store was not told of the newest manifest");
            }
        }
    }
}

/// A store that was had back to take the place of another one is deleted again where nothing came of that: it was refused, or the
/// server died before it was recorded.
fn take_back(shared: &Arc<Shared>, view: &View, store: &Store) {
    let (scope, name) = (store.scope.clone(), store.name.clone());
    let serves = view.state.serves(&name);
    let mut specs = view.bodies.values().map(|body| &body.spec);
    let is_used = view.state.is_bound(&name).is_some()
        || serves.is_some_and(|serves| specs.any(|spec| spec.stores.contains_key(serves)));
    // Whoever moves an app to it holds it until that is recorded, and whoever deletes it until that is done.
    if !store.lent || is_used || !shared.stores.hold_lent(&scope, &name) {
        return;
    }
    tracing::info!(%scope, store = %name, "nothing came of what it was had back for");
    let work = Arc::clone(shared);
    shared.stores.spawn(async move {
        retire(&work, &scope, &name).await;
        work.stores.release_lent(&scope, &name);
    });
}

/// What a manifest wants, by the stores that serve its names.
fn wanted_at(view: &View, body: &ReleaseBody) -> BTreeMap<StoreName, Wanted> {
    let at = |(name, mut wanted): (_, Wanted)| {
        pin(&mut wanted, body);
        (view.state.served_by(None, name).clone(), wanted)
    };
    wanted_of(&body.spec).map(at).collect()
}

/// What a release found the image of a store to be.
pub(crate) fn pin(wanted: &mut Wanted, body: &ReleaseBody) {
    if let Some(image) = &mut wanted.image
        && let Some(pinned) = body.images.get(&image.reference.to_string())
    {
        image.pinned = pinned.pinned.clone();
        image.id = Some(pinned.id);
    }
}

fn wanted_of(spec: &AppSpec) -> impl Iterator<Item = (&StoreName, Wanted)> {
    let stores = spec.stores.iter();
    stores.filter_map(|(name, store)| Some((name, Wanted::of(store)?)))
}

/// Records a store for the first time.
fn begin(
    shared: &Arc<Shared>,
    scope: &Scope,
    name: &StoreName,
    body: &ReleaseBody,
    wanted: &Wanted,
) -> Result<(), String> {
    record(shared, scope, name, body.release, wanted.clone())
}

fn record(
    shared: &Arc<Shared>,
    scope: &Scope,
    name: &StoreName,
    release: ReleaseId,
    wanted: Wanted,
) -> Result<(), String> {
    let port = free_port(shared, port_from(scope, name.as_str()));
    let port = port.ok_or("no port is free for it")?;
    let now = shared.clock.now();
    let (scope, name) = (scope.clone(), name.clone());
    let store = Store::new(now, scope, name, release, wanted, port);
    // One of this name that was removed may have left records.
    let rotation = rotation::read(shared, &store.scope, &store.name)?;
    let key = key(&store.scope, &store.name);
    let put = shared
        .journal
        .put(COLLECTION, &key, Some(0), document(&store));
    let revision = put.map_err(|error| chain(&error))?;
    tracing::info!(scope = %store.scope, store = %store.name, port, "a store begins");
    keep(shared, store, revision, rotation);
    Ok(())
}

/// Whether a store may be made under a name.
///
/// # Errors
/// A sentence.
pub(crate) fn may_begin(shared: &Shared, scope: &Scope, name: &StoreName) -> Result<(), String> {
    if shared.stores.handle(scope, name).is_some() {
        return Err(format!("there is a store `{name}` already"));
    }
    let view = shared.environment(scope);
    let newest = view.as_ref().and_then(|view| view.bodies.last_key_value());
    if newest.is_some_and(|(_, body)| body.spec.stores.contains_key(name)) {
        return Err(format!("the manifest names a store `{name}`"));
    }
    if newest.is_some_and(|(_, body)| body.spec.volumes.contains_key(name)) {
        return Err(format!(
            "there is a volume `{name}`, and backups go by the name"
        ));
    }
    let data = places(shared, scope, name).data();
    match data.exists() && !data.join(landfast_backup_postgres::UNFINISHED).exists() {
        true => Err(format!("`{}` is there already", data.display())),
        false => Ok(()),
    }
}

/// The password of the login that Landfast itself has; made where there is none yet.
///
/// # Errors
/// A sentence.
pub(crate) fn administrator_password(
    shared: &Shared,
    scope: &Scope,
    name: &StoreName,
) -> Result<Secret<String>, String> {
    credentials::password(shared, scope, name, Login::Administrator)
}

/// Records a store whose data was restored; it is run like any other, and no manifest names it.
///
/// # Errors
/// A sentence.
pub(crate) fn begin_restored(
    shared: &Arc<Shared>,
    scope: &Scope,
    name: &StoreName,
    wanted: Wanted,
    release: ReleaseId,
) -> Result<(), String> {
    record(shared, scope, name, release, wanted)
}

/// A port that no store has and nobody listens at just now. Somebody else may be faster: then it is chosen anew.
fn free_port(shared: &Shared, first: u16) -> Option<u16> {
    let stores = shared.stores.all();
    let taken: BTreeSet<u16> = stores.iter().map(|view| view.store.port).collect();
    let is_free = |port: &u16| {
        !taken.contains(port) && std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok()
    };
    let mut ports = (first..=*PORTS.end()).chain(*PORTS.start()..first);
    ports.find(is_free)
}

/// The same from a random one on: whoever was faster may be looking for the next one too.
fn another_port(shared: &Shared) -> Option<u16> {
    free_port(shared, rand::random_range(PORTS))
}

fn key(scope: &Scope, name: &StoreName) -> String {
    format!("{scope}/{name}")
}

fn document(store: &Store) -> Vec<u8> {
    serde_json::to_vec(store).expect("a store has text keys")
}

/// What of a manifest's stores would be refused here.
pub fn refusals(shared: &Shared, scope: &Scope, spec: &AppSpec) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    for (name, wanted) in wanted_of(spec) {
        let served_by = served_by(shared, scope, None, name);
        let known = shared.stores.handle(scope, &served_by);
        let known = known.map(|handle| handle.view.borrow().clone());
        let mut refuse = |code, reason, hint| {
            let reason = format!("store `{name}`: {reason}");
            refusals.push(Refusal {
                code,
                reason,
                hint: Some(hint),
            });
        };
        let view = shared.environment(scope);
        let bound = view.as_ref().and_then(|view| view.state.serves(name));
        let bound = bound.filter(|bound| *bound != name);
        if let Some(other) = bound {
            refuse(
                "store-refused",
                format!("a store of this name serves `{other}`"),
                "give the new one another name".to_owned(),
            );
        }
        if shared.stores.is_reserved(scope, name) {
            refuse(
                "store-refused",
                "a restore makes a store of this name just now".to_owned(),
                "wait for its end, or give the new one another name".to_owned(),
            );
        }
        match known.as_ref().map(|view| &view.store) {
            Some(store) if store.phase == Phase::Removing => refuse(
                "store-refused",
                "its data is being removed".to_owned(),
                "wait until it is gone, or give the new one another name".to_owned(),
            ),
            Some(store) => {
                if let Change::Refused { reason, hint } = store.change_to(&wanted) {
                    refuse("store-refused", reason, hint);
                }
            }
            None => {}
        }
        let missing = host::programs_missing(wanted.engine, &wanted.version);
        let no_processes = shared.target.no_processes();
        match (&wanted.image, missing) {
            (None, _) if no_processes.is_some() => refuse(
                "store-refused",
                format!(
                    "its server would be a process: {}",
                    no_processes.unwrap_or_default()
                ),
                "say which image it runs: `image = \"…\"`".to_owned(),
            ),
            (None, Some((reason, hint))) => refuse("store-program-missing", reason, hint),
            (Some(_), _) if shared.target.images().is_none() => refuse(
                "store-program-missing",
                "its server is a container, and this server uses no Docker".to_owned(),
                "install Docker on the server's host, or name another with `landfast server run --docker`"
                    .to_owned(),
            ),
            (None | Some(_), _) => {}
        }
    }
    let view = shared.environment(scope);
    let scale = view.map(|view| view.state.scale.clone());
    refusals.extend(pool_refusals(spec, &scale.unwrap_or_default()));
    refusals
}

/// The stores whose connections are too few for a manifest's processes, with the replicas that a person has set.
pub(crate) fn pool_refusals(
    spec: &AppSpec,
    scale: &BTreeMap<ServiceName, ScaleOverride>,
) -> Vec<Refusal> {
    // Such a number holds until the manifest's own changes.
    let holds = |(name, over): (&ServiceName, &ScaleOverride)| {
        let service = spec.services.get(name)?;
        (service.replicas == over.manifest).then(|| (name.clone(), over.replicas))
    };
    let scaled: BTreeMap<_, _> = scale.iter().filter_map(holds).collect();
    let refusal = |(name, _): (&StoreName, Wanted)| {
        let too_many = pools_fit(spec, name, &scaled).err()?;
        Some(Refusal {
            code: "store-connections-short",
            reason: format!("store `{name}`: {too_many}"),
            hint: Some(format!(
                "a smaller `[stores.{name}.pool] max`, fewer replicas, or more `memory`: a connection for every 5 MiB, unless `settings` \
                 says `max_connections`"
            )),
        })
    };
    wanted_of(spec).filter_map(refusal).collect()
}

/// What a deploy of a manifest does to stores, for people: one line each.
pub fn changes(shared: &Shared, scope: &Scope, spec: &AppSpec) -> Vec<String> {
    let mut lines = Vec::new();
    let wanted: BTreeMap<&StoreName, Wanted> = wanted_of(spec).collect();
    for (name, wanted) in &wanted {
        let (engine, version, memory) = (wanted.engine.label(), &wanted.version, wanted.memory);
        let served_by = served_by(shared, scope, None, name);
        let Some(handle) = shared.stores.handle(scope, &served_by) else {
            lines.push(format!(
                "store {name}: new, {engine} {version} with {memory}"
            ));
            continue;
        };
        let known = handle.view.borrow().clone();
        let from = known.store.applied.as_ref().unwrap_or(&known.store.wanted);
        match change(from, wanted) {
            Change::Live { settings } => {
                lines.push(format!(
                    "store {name}: changes {} while it runs",
                    settings.join(", ")
                ));
            }
            Change::Restart { settings } => lines.push(format!(
                "store {name}: {} with its next restart (`landfast store restart {name}`)",
                settings.join(", ")
            )),
            Change::None | Change::Refused { .. } => {}
        }
    }
    for known in shared.stores.of(scope) {
        let name = &known.store.name;
        let view = shared.environment(scope);
        let serves = view
            .as_ref()
            .map_or(Some(name), |view| view.state.serves(name));
        if known.store.named && serves.is_some_and(|serves| !wanted.contains_key(serves)) {
            lines.push(format!(
                "store {name}: not in the file any more; kept, and runs on"
            ));
        }
    }
    lines
}

async fn url_of(
    shared: &Shared,
    store: &Store,
    login: Login,
    password: &Secret<String>,
    side: Side,
) -> Result<Secret<String>, String> {
    let database = database_name(&store.scope);
    let address = match side {
        Side::Container if host::is_container(store) => format!("{}:{}", store.name, store.port),
        Side::Container | Side::Host => host::address(shared, store).await?.to_string(),
    };
    let (engine, login) = (store.wanted.engine, login.to_string());
    Ok(connection_url(
        engine, &login, password, &address, &database,
    ))
}

/// The images that stores run, or are to run.
pub(crate) fn images(shared: &Shared) -> BTreeSet<ImageId> {
    let views = shared.stores.all();
    let wishes = views
        .iter()
        .flat_map(|view| [Some(&view.store.wanted), view.store.applied.as_ref()]);
    let images = wishes
        .flatten()
        .filter_map(|wanted| wanted.image.as_ref()?.id);
    images.collect()
}
