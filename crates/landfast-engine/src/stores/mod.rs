//! The managed stores of this host: one keeper for each, and what instances are given to reach them.
//!
//! A store is a document of the journal, changed before anything is done. Manifests reach stores by releases: the
//! newest release of an environment says what is wanted, and an older one that is gone back to changes nothing. The
//! attendant compares the two whenever an environment changes, so what a server that died had not done is done by the next.
//!
//! It never restarts a server to change a setting, never shrinks or upgrades data in place, and removes nothing that a
//! person did not name and give a delay.

mod connections;
mod copy;
mod credentials;
mod definers;
mod diagnose;
mod host;
mod keeper;
pub(crate) mod rotation;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use landfast_datastore::{
    Change, Input, Login, Measures, PORTS, Phase, Rejected, Store, Wanted, change, connection_url,
    database_name, pool_max, port_from,
};
use landfast_secrets::rotation::RotationRejected;
use landfast_spec::AppSpec;
use landfast_target::InstanceRef;
use landfast_types::{ReleaseId, Scope, Secret, StoreName, Timestamp};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::sleep,
};

use self::keeper::Keeper;
pub(crate) use self::{
    connections::{connections, secret_of_store},
    copy::{BUSY, DatabaseCopy},
    credentials::rewrap as rewrap_credential,
    host::{access, find, make_throwaway, owner_of, places},
};
pub use self::{
    credentials::COLLECTION as CREDENTIALS,
    diagnose::diagnose,
    host::{Room, room},
    rotation::{ROTATION_KIND, RotationView, read_record as read_rotation_record},
};
use crate::{actions::chain, planning::Refusal, release::ReleaseBody, shared::Shared};

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
}

/// Every store of this host.
#[derive(Default)]
pub struct Stores {
    book: Mutex<BTreeMap<(Scope, StoreName), Handle>>,
    tasks: Mutex<JoinSet<()>>,
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

/// The address of a managed store with the login of a person, who may do there what the app may.
///
/// # Errors
/// A sentence, when it is not ready.
pub async fn operator_url(
    shared: &Shared,
    scope: &Scope,
    name: &StoreName,
) -> Result<Secret<String>, String> {
    connections::managed_url(shared, scope, name, |_turn| Login::Operator).await
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
    Ok(each.collect())
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
        let wanted: BTreeMap<&StoreName, Wanted> = wanted_of(&body.spec).collect();
        for (name, wanted) in &wanted {
            if shared.stores.handle(scope, name).is_none()
                && let Err(reason) = begin(shared, scope, name, body, wanted)
            {
                tracing::error!(%scope, store = %name, reason, "the store was not begun");
            }
        }
        for known in shared.stores.of(scope) {
            let store = &known.store;
            if store.release >= body.release {
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
    let port = free_port(shared, scope, name).ok_or("no port is free for it")?;
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
fn free_port(shared: &Shared, scope: &Scope, name: &StoreName) -> Option<u16> {
    let stores = shared.stores.all();
    let taken: BTreeSet<u16> = stores.iter().map(|view| view.store.port).collect();
    let first = port_from(scope, name.as_str());
    let is_free = |port: &u16| {
        !taken.contains(port) && std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok()
    };
    let mut ports = (first..=*PORTS.end()).chain(*PORTS.start()..first);
    ports.find(is_free)
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
        let known = shared.stores.handle(scope, name);
        let known = known.map(|handle| handle.view.borrow().clone());
        let mut refuse = |code, reason, hint| {
            let reason = format!("store `{name}`: {reason}");
            refusals.push(Refusal {
                code,
                reason,
                hint: Some(hint),
            });
        };
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
        if let Some((reason, hint)) = host::programs_missing(wanted.engine, &wanted.version) {
            refuse("store-program-missing", reason, hint);
        }
        if let Err(too_many) = pool_max(spec, name) {
            let hint = format!(
                "a smaller `[stores.{name}.pool] max`, fewer replicas, or more `memory`: a connection for every 5 MiB, unless `settings` \
                 says `max_connections`"
            );
            refuse("store-connections-short", too_many.to_string(), hint);
        }
    }
    refusals
}

/// What a deploy of a manifest does to stores, for people: one line each.
pub fn changes(shared: &Shared, scope: &Scope, spec: &AppSpec) -> Vec<String> {
    let mut lines = Vec::new();
    let wanted: BTreeMap<&StoreName, Wanted> = wanted_of(spec).collect();
    for (name, wanted) in &wanted {
        let (engine, version, memory) = (wanted.engine.label(), &wanted.version, wanted.memory);
        let Some(handle) = shared.stores.handle(scope, name) else {
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
        if known.store.named && !wanted.contains_key(name) {
            lines.push(format!(
                "store {name}: not in the file any more; kept, and runs on"
            ));
        }
    }
    lines
}

fn url_of(store: &Store, login: Login, password: &Secret<String>) -> Secret<String> {
    let database = database_name(&store.scope);
    let (engine, address) = (store.wanted.engine, host::address(store));
    connection_url(engine, &login.to_string(), password, address, &database)
}
