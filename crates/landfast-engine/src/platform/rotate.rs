//! Drives the rotations of stores' passwords: wait, do what is owed, record. A rolling restart brings the new login to
//! the instances; what ends them otherwise (a deploy, `landfast restart`, a crash) serves as well, for those that hold
//! the old one are counted by name.

use std::{
    collections::BTreeSet,
    sync::{Arc, Weak},
    time::Duration,
};

use landfast_rollout::{Input, Outcome, Phase as RolloutPhase, Rejected};
use landfast_secrets::rotation::{Holders, Phase, RotationAction, RotationInput};
use landfast_types::{ReleaseId, RolloutId, Scope, StoreName};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{Platform, settled_release};
use crate::{
    actions::{RETRY_FIRST, RETRY_MAX, chain},
    driver::{CommandError, View},
    jobs,
    shared::Shared,
    stores::{self, RotationView, rotation},
};

/// Whoever waits for instances looks again after this, whether or not anything was recorded.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Why a rotation was not begun.
#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    #[error("{0}")]
    NotNow(String),
    #[error(transparent)]
    Store(#[from] stores::CommandError),
    #[error(transparent)]
    Environment(#[from] CommandError),
}

impl Platform {
    /// Begins to change the password that instances reach a managed store with; it goes on by itself. Where a restart
    /// was taken back, another one is tried. While a rollout stands by, the new password is made and given to whoever starts;
    /// the others are replaced when that rollout is sealed ([`restart_waits_for`]).
    ///
    /// # Errors
    /// [`RotateError`]; nothing has changed then.
    pub async fn rotate_store(
        &self,
        scope: &Scope,
        name: &StoreName,
        by: String,
    ) -> Result<Arc<RotationView>, RotateError> {
        if let Some(trouble) = self.trouble(scope) {
            return Err(RotateError::NotNow(trouble));
        }
        let stores = self.shared.stores.of(scope);
        let name = &stores::served_by(&self.shared, scope, None, name);
        let known = stores.iter().find(|view| view.store.name == *name);
        let known = known.ok_or(stores::CommandError::Unknown)?;
        if known.store.word() != "ready" {
            let word = known.store.word();
            return Err(RotateError::NotNow(format!("store `{name}` is {word}")));
        }
        let view = self.environment_or_empty(scope);
        if let Some(rollout) = &view.state.rollout
            && settled_release(&view).is_none()
        {
            let moving = Rejected::RolloutMoving {
                rollout: rollout.id,
                to: rollout.to,
                since: rollout.started_at,
                by: rollout.by.clone(),
            };
            return Err(CommandError::Rejected(moving).into());
        }
        if let Some(rejected) = view.state.beside_hand() {
            return Err(CommandError::Rejected(rejected).into());
        }
        let input = RotationInput::Begin { by };
        Ok(rotation::record(&self.shared, scope, name, input).await?)
    }

    /// Gives a rotation up that no instance has heard of yet.
    ///
    /// # Errors
    /// [`stores::CommandError`]; nothing has changed then.
    pub async fn abandon_rotation(
        &self,
        scope: &Scope,
        name: &StoreName,
    ) -> Result<Arc<RotationView>, stores::CommandError> {
        let name = stores::served_by(&self.shared, scope, None, name);
        rotation::record(&self.shared, scope, &name, RotationInput::Abandon).await
    }
}

/// Goes on with every rotation that is not at its end, until another server has taken over.
pub(super) async fn run(platform: Weak<Platform>) {
    let Some(shared) = platform.upgrade().map(|it| Arc::clone(it.shared())) else {
        return;
    };
    let mut under_way: BTreeSet<(Scope, StoreName)> = BTreeSet::new();
    let mut tasks: JoinSet<(Scope, StoreName)> = JoinSet::new();
    let mut position = shared.position.subscribe();
    while shared.replaced.borrow().is_none() {
        for view in shared.stores.all() {
            let key = (view.store.scope.clone(), view.store.name.clone());
            let rotation = shared.stores.rotation(&key.0, &key.1);
            let is_owed = rotation.is_some_and(|view| !view.rotation.is_settled());
            if is_owed && under_way.insert(key.clone()) {
                tasks.spawn(drive(Weak::clone(&platform), Arc::clone(&shared), key));
            }
        }
        tokio::select! {
            changed = position.changed() => if changed.is_err() { return },
            Some(ended) = tasks.join_next() => match ended {
                Ok(key) => {
                    under_way.remove(&key);
                }
                Err(error) => {
                    tracing::error!(%error, "the driver of a rotation panicked; another takes its place");
                    // Which one is not known, and each step may be done again.
                    tasks.shutdown().await;
                    under_way.clear();
                    sleep(RETRY_MAX).await;
                }
            },
            () = sleep(LOOK_EVERY) => {}
        }
    }
}

/// Does what a rotation owes until it owes nothing.
async fn drive(
    platform: Weak<Platform>,
    shared: Arc<Shared>,
    key: (Scope, StoreName),
) -> (Scope, StoreName) {
    let (scope, name) = &key;
    let mut wait = RETRY_FIRST;
    while shared.replaced.borrow().is_none() {
        // Whatever is recorded from here on wakes this.
        let mut position = shared.position.subscribe();
        let view = shared.stores.rotation(scope, name);
        let owed = view.and_then(|view| Some((view.rotation.pending()?, view)));
        let Some((action, view)) = owed else {
            return key;
        };
        let input = match perform(&platform, &shared, scope, name, &view, action).await {
            Ok(Some(input)) => {
                wait = RETRY_FIRST;
                input
            }
            Ok(None) => {
                // What matters is looked at again either way.
                let _changed = timeout(LOOK_EVERY, position.changed()).await;
                continue;
            }
            Err(reason) => {
                tracing::warn!(%scope, store = %name, reason, "the rotation of its password does not go on; trying again");
                sleep(wait).await;
                wait = (wait * 2).min(RETRY_MAX);
                RotationInput::Failed { action, reason }
            }
        };
        if let Err(error) = rotation::record(&shared, scope, name, input).await {
            tracing::warn!(%scope, store = %name, error = chain(&error), "not recorded; trying again");
            sleep(wait).await;
            wait = (wait * 2).min(RETRY_MAX);
        }
    }
    key
}

/// Does one step. `None`: what it waits for has not come.
async fn perform(
    platform: &Weak<Platform>,
    shared: &Arc<Shared>,
    scope: &Scope,
    name: &StoreName,
    view: &RotationView,
    action: RotationAction,
) -> Result<Option<RotationInput>, String> {
    match action {
        RotationAction::Open { login } => {
            let releases = releases_of(shared, scope, name)?;
            rotation::open(shared, scope, name, &releases, login).await?;
        }
        RotationAction::Try { login } => {
            let releases = releases_of(shared, scope, name)?;
            // A rollout may have begun to a release that was not among them when they were opened.
            rotation::open_more(shared, scope, name, &releases, login).await?;
            rotation::try_logins(shared, scope, name, &releases, login).await?;
        }
        RotationAction::Count { .. } => {
            let holders = running(shared, scope, name).await?;
            return Ok(Some(RotationInput::Counted(holders)));
        }
        RotationAction::Replace { .. } => {
            return replace(platform, shared, scope, name, view).await;
        }
        RotationAction::Close { login } => {
            if migrates(&*environment(shared, scope)?, name)
                || !rotation::close(shared, scope, name, login).await?
            {
                return Ok(None);
            }
        }
        RotationAction::Renew => {
            if !rotation::renew(shared, scope, name).await? {
                return Ok(None);
            }
        }
    }
    Ok(Some(RotationInput::Done(action)))
}

fn environment(shared: &Shared, scope: &Scope) -> Result<Arc<View>, String> {
    let view = shared.environment(scope);
    view.ok_or_else(|| format!("environment `{scope}` was not read back"))
}

/// The releases that run, of those that use a store.
fn releases_of(
    shared: &Shared,
    scope: &Scope,
    name: &StoreName,
) -> Result<BTreeSet<ReleaseId>, String> {
    let view = environment(shared, scope)?;
    let state = &view.state;
    let Some(name) = state.serves(name) else {
        return Ok(BTreeSet::new());
    };
    let rollout = state.rollout.as_ref().map(|rollout| rollout.to);
    let running = state.instances.values().map(|instance| instance.release);
    let releases = [state.serving, rollout].into_iter().flatten();
    let uses = |release: &ReleaseId| {
        let spec = view.bodies.get(release).map(|body| &body.spec);
        spec.is_some_and(|spec| {
            let services = spec.services.values().map(|service| &service.uses);
            let mut all = services.chain(spec.jobs.values().map(|job| &job.uses));
            all.any(|uses| uses.contains(name))
        })
    };
    Ok(releases.chain(running).filter(uses).collect())
}

/// Whether migrations run that may have begun with the login of before.
fn migrates(view: &View, name: &StoreName) -> bool {
    let by_hand = view.state.by_hand.as_ref();
    let rollout = view.state.rollout.as_ref().map(|rollout| &rollout.phase);
    by_hand.is_some_and(|run| view.state.served_by(None, &run.store) == name)
        || matches!(
            rollout,
            Some(RolloutPhase::Rehearsing | RolloutPhase::Migrating | RolloutPhase::Contracting)
        )
}

/// Who runs, or is about to, and may have been told how to reach a store. Of a release that cannot be read, all may, and so may a
/// run that cannot be read.
async fn running(shared: &Arc<Shared>, scope: &Scope, name: &StoreName) -> Result<Holders, String> {
    // The runs first: one that ends meanwhile is not held against anybody.
    let runs = {
        let (shared, scope) = (Arc::clone(shared), scope.clone());
        let open = tokio::task::spawn_blocking(move || jobs::open_numbers(&shared, &scope)).await;
        open.map_err(|error| error.to_string())??
    };
    let view = environment(shared, scope)?;
    let Some(name) = view.state.serves(name) else {
        return Ok(Holders::default());
    };
    let spec = |release| view.bodies.get(&release).map(|body| &body.spec);
    let instances = view.state.instances.values().filter(|instance| {
        let service = spec(instance.release).map(|spec| spec.services.get(&instance.service));
        service
            .flatten()
            .is_none_or(|service| service.uses.contains(name))
    });
    let runs = runs.into_iter().filter(|(_, run)| {
        let job = run
            .as_ref()
            .and_then(|run| spec(run.release)?.jobs.get(&run.job));
        job.is_none_or(|job| job.uses.contains(name))
    });
    Ok(Holders {
        instances: instances.map(|instance| instance.id.clone()).collect(),
        runs: runs.map(|(number, _)| number).collect(),
    })
}

/// Sees to it that those who hold the old login are replaced, and says when none is left.
async fn replace(
    platform: &Weak<Platform>,
    shared: &Arc<Shared>,
    scope: &Scope,
    name: &StoreName,
    view: &RotationView,
) -> Result<Option<RotationInput>, String> {
    let Phase::Replacing { holders, restart } = view.rotation.phase() else {
        return Ok(None);
    };
    let left = holders.among(&running(shared, scope, name).await?);
    if left.is_empty() {
        return Ok(Some(RotationInput::Left(left)));
    }
    let environment = environment(shared, scope)?;
    if view.rotation.wants_restart() && !left.instances.is_empty() {
        if restart_waits_for(&environment).is_some() {
            return Ok(None);
        }
        let by = view.begun.as_ref().map_or("", |(_, by)| by.as_str());
        let by = format!("{by} (new password of store {name})");
        return order(platform, scope, by).await;
    }
    let ended = restart.and_then(|restart| Some((restart, verdict(&environment, restart)?)));
    Ok(ended.and_then(|(restart, verdict)| {
        // A job that runs on is waited for.
        let first = left.instances.first()?;
        let reason = match verdict {
            Some(reason) => {
                format!("rollout {restart}, which was to replace it, was taken back: {reason}")
            }
            None => format!("rollout {restart} is over and did not replace it"),
        };
        let reason = format!("`{first}` still has the old password: {reason}");
        Some(RotationInput::TakenBack { restart, reason })
    }))
}

/// What must be over before instances are replaced, in words: `rollout 5 is sealed`. A rollout that stands by would be sealed by a
/// restart, and with it the way back would be gone; its seal ends most of the holders by itself.
pub fn restart_waits_for(view: &View) -> Option<String> {
    let state = &view.state;
    if let Some(run) = &state.by_hand {
        return Some(format!("nobody migrates store `{}` by hand", run.store));
    }
    if state.stopped {
        return Some("the environment is started again, or its instances have ended".to_owned());
    }
    let rollout = state.rollout.as_ref()?;
    let id = rollout.id;
    Some(match rollout.is_promoted() {
        true => format!("rollout {id} is sealed (`landfast seal` ends its standby)"),
        false => format!("rollout {id} is over"),
    })
}

async fn order(
    platform: &Weak<Platform>,
    scope: &Scope,
    by: String,
) -> Result<Option<RotationInput>, String> {
    let Some(platform) = platform.upgrade() else {
        return Ok(None);
    };
    let view = match platform.command(scope, Input::Restart { by }).await {
        Ok(view) => view,
        // It waits until it can be had.
        Err(CommandError::Rejected(
            Rejected::RolloutMoving { .. }
            | Rejected::EnvironmentStopped
            | Rejected::MigratingByHand { .. },
        )) => return Ok(None),
        Err(error) => return Err(format!("no restart was begun: {}", chain(&error))),
    };
    let state = &view.state;
    let queued = state.queued.as_ref().map(|_| state.next_rollout());
    let moving = || state.rollout.as_ref().map(|rollout| rollout.id);
    let ended = || state.history.last().map(|record| record.id);
    let restart = queued.or_else(moving).or_else(ended);
    Ok(restart.map(|restart| RotationInput::Ordered { restart }))
}

/// How a rollout ended: `Some(None)` where it did what it should, or is so old that nobody remembers. `None` where it
/// has not ended.
fn verdict(view: &View, id: RolloutId) -> Option<Option<String>> {
    let state = &view.state;
    if let Some(record) = state.history.iter().find(|record| record.id == id) {
        return Some(match &record.outcome {
            Outcome::Sealed => None,
            Outcome::RolledBack { reason } => Some(reason.clone()),
        });
    }
    let is_moving = state
        .rollout
        .as_ref()
        .is_some_and(|rollout| rollout.id == id);
    (!is_moving && state.queued.is_none()).then_some(None)
}
