//! Migrations outside rollouts: what a database says of itself, and what people do to it by hand.
//!
//! A run is recorded before it begins and when it has ended, so that nothing moves releases beside it. Between the two it is the
//! caller's: when nobody listens any more, the connection is closed, and the database takes back what was not committed. What it
//! has seen is then read anew and recorded. A server that dies meanwhile asks the database at its next start (`read`).

mod look;
mod rehearsal;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use landfast_migration::{History, Migration, MigrationSet};
use landfast_migrator::{MigratorError, Options, Progress, Session, Stage};
use landfast_rollout::{HandWork, Input, MigrationShape, Rejected, Schemas};
use landfast_spec::AppSpec;
use landfast_types::{Digest, Scope, StoreName};
use tokio::{sync::mpsc, time::sleep};

pub(crate) use self::rehearsal::{on_copy, rehearse};
pub use self::{
    look::{Outlook, Seen, WouldRun, look, what_would_run},
    rehearsal::{Rehearsed, Trial},
};

use crate::{
    actions::{Context, RETRY_FIRST, chain},
    driver::{CommandError, DriverHandle, Message},
    migrations::{self, phase},
    planning::Refusal,
    platform::Platform,
    release::ReleaseBody,
    shared::Shared,
    stores,
};

/// What the history says of who ran it.
const BY_HAND: &str = "by hand";
/// A database that was just left answers within this, or is asked later.
const READ_MAX: Duration = Duration::from_secs(10);
/// The longest pause between two questions to a database that does not answer.
const READ_RETRY_MAX: Duration = Duration::from_secs(30);
/// What was told is recorded within this, unless the disk is full.
const RECORD_MAX: Duration = Duration::from_secs(5);

/// What is to be done by hand.
#[derive(Debug, Clone)]
pub struct HandOrder {
    pub spec: AppSpec,
    pub artifacts: BTreeMap<String, Digest>,
    pub store: StoreName,
    pub wish: HandWish,
    pub by: String,
}

/// One thing that can be done by hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HandWish {
    /// What is pending of `expand` and `any`.
    Expand,
    /// What is pending of `contract`.
    Contract,
    /// The newest is taken back.
    Down,
    /// A changed file, or a step nobody could judge, is taken for applied.
    Accept { number: u32, reason: String },
}

/// Why migrating by hand ended early.
#[derive(Debug, thiserror::Error)]
pub enum HandError {
    #[error("{}", .0.first().map_or("refused", |refusal| &refusal.reason))]
    Refused(Vec<Refusal>),
    #[error("store `{store}`: {reason}")]
    Unreachable { store: StoreName, reason: String },
    #[error("store `{store}`")]
    Migrator {
        store: StoreName,
        source: MigratorError,
    },
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error("it was ended before it was done")]
    Ended,
    #[error("{0}")]
    Failed(String),
}

impl HandError {
    /// Whether only another rehearsal is in the way.
    pub(crate) fn is_busy(&self) -> bool {
        let Self::Refused(refusals) = self else {
            return false;
        };
        refusals.iter().any(|refusal| refusal.code == stores::BUSY)
    }
}

impl Platform {
    /// Does one thing by hand; gives the titles of the migrations it is about. It ends when nobody receives progress any more.
    ///
    /// # Errors
    /// [`HandError`]: what was done before it stays, and is in the database's history.
    pub async fn migrate(
        &self,
        order: HandOrder,
        progress: mpsc::Sender<String>,
    ) -> Result<Vec<String>, HandError> {
        let scope = order.spec.scope();
        let nothing = CommandError::Rejected(Rejected::NothingDeployed);
        let handle = self.handle(&scope).ok_or(nothing)?;
        let shared = self.shared();
        let set = read_set(shared, &order.spec, &order.artifacts, &order.store).await?;
        let at_store = |source| HandError::Migrator {
            store: order.store.clone(),
            source,
        };
        let look = async {
            let mut session = connect(shared, &scope, &order.spec, &order.store).await?;
            let history = session.history().await.map_err(at_store)?;
            Ok::<_, HandError>((session, history))
        };
        let (mut session, history) = tokio::select! {
            looked = look => looked?,
            () = progress.closed() => return Err(HandError::Ended),
        };
        let Some(work) = work(&set, &history, &order.wish).map_err(at_store)? else {
            return Ok(Vec::new());
        };
        let mut state = handle.view.borrow().state.clone();
        if matches!(work, HandWork::Expand | HandWork::Contract { .. }) {
            let seen = migrations::applied(&history);
            state.schemas.insert(order.store.clone(), seen);
            let sets = [(order.store.clone(), set.clone())].into();
            let refused = migrations::unsafe_ones(&state, &sets);
            if !refused.is_empty() {
                return Err(HandError::Refused(refused));
            }
        }
        let serving = state.serving;
        let (store, by) = (order.store.clone(), order.by.clone());
        let input = Input::MigrateByHand {
            store,
            work: work.clone(),
            by,
        };
        let view = handle.command(input, None).await?;
        let Some(run) = view.state.by_hand.as_ref().map(|known| known.run) else {
            return Err(HandError::Ended);
        };
        let options = Options {
            release: Some(BY_HAND.to_owned()),
            restore_point: Some(format!("before-migrate-{run}")),
            guard: Some(migrations::guard(
                &scope,
                &order.spec,
                &order.store,
                serving,
            )),
            ..Options::default()
        };
        let place = format!("before-migrate-{run}");
        migrations::point(shared, &scope, &order.store, &place).await;
        let ran = tokio::select! {
            ran = act(&mut session, &set, &work, &order, &options, &progress) => ran.map_err(at_store),
            () = progress.closed() => Err(HandError::Ended),
        };
        // What it holds is let go of before the database is asked.
        drop(session);
        let schemas = reread(shared, &scope, &order.spec, &order.store).await;
        let failure = ran.as_ref().err().map(|error| chain(error));
        record_end(&handle, run, schemas, failure).await;
        ran
    }
}

pub(crate) async fn read_set(
    shared: &Arc<Shared>,
    spec: &AppSpec,
    artifacts: &BTreeMap<String, Digest>,
    store: &StoreName,
) -> Result<MigrationSet, HandError> {
    let owned = (
        Arc::clone(shared),
        spec.clone(),
        artifacts.clone(),
        store.clone(),
    );
    let read = tokio::task::spawn_blocking(move || {
        let (shared, spec, artifacts, store) = owned;
        migrations::set_of(&shared.store, &spec, &artifacts, &store)
    });
    let read = read
        .await
        .map_err(|panic| HandError::Failed(panic.to_string()))?;
    read.map_err(HandError::Refused)
}

/// A session of an operator; a managed store that is not ready is not waited for.
async fn connect(
    shared: &Shared,
    scope: &Scope,
    spec: &AppSpec,
    store: &StoreName,
) -> Result<Session, HandError> {
    // Some say themselves which store they are about.
    let prefix = format!("store `{store}`: ");
    let unreachable = |reason: String| HandError::Unreachable {
        store: store.clone(),
        reason: reason.strip_prefix(&prefix).unwrap_or(&reason).to_owned(),
    };
    let known = spec.stores.get(store);
    let known = known.ok_or_else(|| unreachable("the manifest does not have it".into()))?;
    let Some(engine) = migrations::engine(known.engine) else {
        return Err(unreachable("it is no database with a schema".into()));
    };
    let views = shared.stores.of(scope);
    let served_by = stores::served_by(shared, scope, None, store);
    let managed = views.iter().find(|view| view.store.name == served_by);
    if let Some(view) = managed.filter(|view| view.store.word() != "ready") {
        return Err(unreachable(format!("it is {}", view.store.word())));
    }
    let url = migrations::address(shared, scope, spec, None, store).await;
    let session = Session::connect(engine, &url.map_err(unreachable)?).await;
    session.map_err(|source| HandError::Migrator {
        store: store.clone(),
        source,
    })
}

/// What the engine is told before anything is done; `None`: nothing is to be done.
fn work(
    set: &MigrationSet,
    history: &History,
    wish: &HandWish,
) -> Result<Option<HandWork>, MigratorError> {
    let pending = |stage| landfast_migrator::pending(set, history, stage);
    Ok(match wish {
        HandWish::Expand => (!pending(Stage::Expand)?.is_empty()).then_some(HandWork::Expand),
        HandWish::Contract => {
            let numbers = pending(Stage::Contract)?;
            let found = numbers.iter().filter_map(|number| set.get(*number));
            let migrations: Vec<_> = found.map(shape).collect();
            (!migrations.is_empty()).then_some(HandWork::Contract { migrations })
        }
        HandWish::Down => Some(HandWork::Down {
            migration: shape(landfast_migrator::revertible(set, history)?),
        }),
        HandWish::Accept { number, .. } => Some(HandWork::Accept {
            migration: shape(set.get(*number).ok_or(MigratorError::Unknown(*number))?),
        }),
    })
}

fn shape(migration: &Migration) -> MigrationShape {
    MigrationShape {
        number: migration.number,
        name: migration.title(),
        phase: phase(migration.phase()),
    }
}

async fn act(
    session: &mut Session,
    set: &MigrationSet,
    work: &HandWork,
    order: &HandOrder,
    options: &Options,
    progress: &mpsc::Sender<String>,
) -> Result<Vec<String>, MigratorError> {
    let store = &order.store;
    let mut tell = |step: Progress| {
        let sentence = step.sentence();
        tracing::info!(scope = %order.spec.scope(), %store, by = order.by, "{sentence}");
        // A reader that is slow misses some of it; what was done is told at the end.
        if progress.try_send(sentence).is_err() {
            tracing::debug!("progress was not told");
        }
    };
    match work {
        HandWork::Expand => {
            let report = session.up(set, Stage::Expand, options, &mut tell).await;
            report.map(|report| report.applied)
        }
        HandWork::Contract { .. } => {
            let report = session.up(set, Stage::Contract, options, &mut tell).await;
            report.map(|report| report.applied)
        }
        HandWork::Down { migration } => {
            let number = migration.number;
            let title = session.down(set, number, options, &mut tell).await;
            title.map(|title| vec![title])
        }
        HandWork::Accept { migration } => {
            let reason = match &order.wish {
                HandWish::Accept { reason, .. } => format!("{reason} ({})", order.by),
                HandWish::Expand | HandWish::Contract | HandWish::Down => order.by.clone(),
            };
            let number = migration.number;
            let accepted = session.accept(set, number, &reason, options, &mut tell);
            accepted.await.map(|()| vec![migration.name.clone()])
        }
    }
}

/// What a database has seen now; nothing where it does not say.
async fn reread(shared: &Shared, scope: &Scope, spec: &AppSpec, store: &StoreName) -> Schemas {
    let read = tokio::time::timeout(READ_MAX, seen(shared, scope, spec, store)).await;
    let why = match read {
        Ok(Ok(schemas)) => return schemas,
        Ok(Err(reason)) => reason,
        Err(_) => "no answer".to_owned(),
    };
    tracing::warn!(%scope, %store, why, "the database did not say what it has seen; it is asked again");
    Schemas::new()
}

async fn seen(
    shared: &Shared,
    scope: &Scope,
    spec: &AppSpec,
    store: &StoreName,
) -> Result<Schemas, String> {
    let session = connect(shared, scope, spec, store).await;
    let mut session = session.map_err(|error| chain(&error))?;
    let history = session.history().await.map_err(|error| chain(&error))?;
    Ok([(store.clone(), migrations::applied(&history))].into())
}

/// Records the end, however long the disk takes; gives up waiting for it, not the record itself.
async fn record_end(handle: &DriverHandle, run: u64, schemas: Schemas, failure: Option<String>) {
    let input = Input::HandEnded {
        run,
        schemas,
        failure,
    };
    if handle.inbox.send(Message::Input(input)).await.is_err() {
        tracing::debug!("the driver has stopped; the database is asked at the next start");
        return;
    }
    let mut view = handle.view.clone();
    let is_over = |view: &Arc<crate::View>| {
        let known = view.state.by_hand.as_ref();
        known.is_none_or(|known| known.run != run)
    };
    if tokio::time::timeout(RECORD_MAX, view.wait_for(is_over))
        .await
        .is_err()
    {
        tracing::warn!("the end of migrating by hand is not recorded yet");
    }
}

/// Asks a database that was changed what it has seen, until it answers.
pub(crate) async fn read(context: &Context, store: StoreName) -> Schemas {
    let (shared, state) = (&context.shared, &context.view.state);
    let mut wait = RETRY_FIRST;
    loop {
        let reason = match newest_with(&context.view.bodies, &store) {
            None => "no release that is kept knows it".to_owned(),
            Some(body) => match seen(shared, &state.scope, &body.spec, &store).await {
                Ok(schemas) => return schemas,
                Err(reason) => reason,
            },
        };
        tracing::debug!(scope = %state.scope, %store, reason, "not read yet");
        sleep(wait).await;
        wait = (wait * 2).min(READ_RETRY_MAX);
    }
}

/// The newest release that knows a store.
fn newest_with<'a>(
    bodies: &'a BTreeMap<landfast_types::ReleaseId, Arc<ReleaseBody>>,
    store: &StoreName,
) -> Option<&'a Arc<ReleaseBody>> {
    let mut newest = bodies.values().rev();
    newest.find(|body| body.spec.stores.contains_key(store))
}
