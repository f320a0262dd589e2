//! Moving a name of the manifest to another store: a release that is the one that serves in everything else, moved to by a recreate.

use std::{sync::Arc, time::Duration};

use landfast_datastore::{Change, Input as StoreInput, Phase, Store, Wanted};
use landfast_rollout::{Gate, Input};
use landfast_spec::AppSpec;
use landfast_types::{ReleaseId, Scope, StoreName};

use super::{DeployError, Platform, renew};
use crate::{
    driver::{CommandError, View},
    jobs, migrations,
    planning::Refusal,
    release::{self, ReleaseBody},
    shared::Shared,
    stores,
};

/// A name of the manifest, and the store that is to serve it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwitchOrder {
    pub scope: Scope,
    pub store: StoreName,
    pub to: StoreName,
    pub by: String,
    /// Also where the archive does not have all that was written to the old one.
    pub accepts_loss: bool,
}

/// What a switch would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwitchPlan {
    pub from: StoreName,
    pub to: StoreName,
    /// The release that serves; the next one is the same on the other store.
    pub release: ReleaseId,
    /// The new store is deleted, and is had back for it.
    pub was_deleted: bool,
    /// How long no instance may serve at worst, before it is taken back: for the end of what runs, and for the start of the new
    /// release.
    pub ends_in: Duration,
    pub starts_in: Duration,
}

impl Platform {
    /// What a switch would do, or why it cannot be.
    ///
    /// # Errors
    /// [`DeployError`].
    pub async fn plan_switch(&self, order: &SwitchOrder) -> Result<SwitchPlan, DeployError> {
        let view = self.environment_or_empty(&order.scope);
        self.judge(order, &view).await.map(|(plan, _)| plan)
    }

    /// Begins it.
    ///
    /// # Errors
    /// [`DeployError`] when it was refused: nothing has changed then. A deleted store that was had back for it is deleted again.
    pub async fn switch_store(
        &self,
        order: SwitchOrder,
    ) -> Result<(SwitchPlan, Arc<View>), DeployError> {
        let _claim = self.claiming.lock().await;
        let scope = &order.scope;
        if let Some(trouble) = self.trouble(scope) {
            return Err(DeployError::Unreadable(trouble));
        }
        let view = self.environment_or_empty(scope);
        let (plan, base) = self.judge(&order, &view).await?;
        self.ship_rest(&order, view.state.next_release()).await?;
        // Until it is recorded for whom it is had back.
        let kept = Kept::of(&self.shared, scope, &order.to);
        self.bring_up(&order, &plan, &base.spec).await?;
        let body = ReleaseBody {
            release: view.state.next_release(),
            created_at: self.shared.clock.now(),
            note: Some(format!(
                "store {} is served by {} instead of {}",
                order.store, plan.to, plan.from
            )),
            ..base.as_ref().clone()
        };
        let sets = {
            let (shared, body) = (Arc::clone(&self.shared), body.clone());
            let look = move || migrations::sets(&shared.store, &body.spec, &body.artifacts);
            let looked = tokio::task::spawn_blocking(look).await;
            looked
                .map_err(|_panic| CommandError::Stopping)?
                .map_err(DeployError::Refused)?
        };
        let mut rollout = release::plan(&body.spec, Some(landfast_spec::Strategy::Recreate));
        // Whoever goes back to a backup is not kept from it by what was asked of new code.
        rollout.gates.retain(|gate| *gate == Gate::Preflight);
        if self.shared.controls.health_gate_off {
            rollout.min_ready = Duration::ZERO;
        }
        let input = Input::SwitchStore {
            topology: release::topology(&body.spec, &sets),
            plan: rollout,
            store: order.store.clone(),
            to: order.to.clone(),
            was_deleted: plan.was_deleted,
            by: order.by.clone(),
        };
        self.measure(scope).await?;
        let handle = self.handle_or_new(scope);
        let view = handle.command(input, Some(body)).await?;
        drop(kept);
        // One that began since it was looked has seen the switch before it was started, or is seen here.
        if let Err(held) = self.is_held(&order, &base.spec).await {
            let reason = "a run of a job uses the store".to_owned();
            let rollout = view.state.rollout.as_ref().map(|rollout| rollout.id);
            if let Some(rollout) = rollout {
                tracing::warn!(%scope, %rollout, reason, "the switch is taken back");
            }
            let taken_back = Input::Abort {
                by: BY.to_owned(),
                reason,
            };
            handle.command(taken_back, None).await?;
            return Err(held);
        }
        self.collect(scope).await;
        Ok((plan, view))
    }

    async fn judge(
        &self,
        order: &SwitchOrder,
        view: &View,
    ) -> Result<(SwitchPlan, Arc<ReleaseBody>), DeployError> {
        let SwitchOrder {
            scope, store, to, ..
        } = order;
        let base = Arc::clone(renew::base(view)?);
        let wanted = base.spec.stores.get(store).and_then(Wanted::of);
        let Some(mut wanted) = wanted else {
            return Err(refused(
                "store-unknown",
                format!("the release that serves has no store `{store}` that Landfast runs"),
                "`landfast store list` lists the names",
            ));
        };
        stores::pin(&mut wanted, &base);
        let from = view.state.served_by(None, store).clone();
        let Some(target) = stores::find_store(&self.shared, scope, to) else {
            let hint = match self.shared.stores.is_reserved(scope, to) {
                true => format!(
                    "its restore is not at its end: `landfast backup show {store}` shows how far it is"
                ),
                false => format!("`landfast restore run {store} --as {to}` makes one"),
            };
            let reason = format!("there is no store `{to}`");
            return Err(refused("store-unknown", reason, hint));
        };
        if from == *to {
            return Err(refused(
                "store-not-now",
                format!("store `{store}` is served by `{to}` already"),
                "`landfast store list` shows which store serves which name",
            ));
        }
        let was_deleted = self.may_serve(order, view, &from, &target, &wanted)?;
        let backups = self.shared.backups.of(scope);
        let backups = backups.iter().find(|view| view.store == *store);
        if let Some(reason) = backups.and_then(|view| view.is_unshipped())
            && !order.accepts_loss
        {
            return Err(unshipped(store, &reason));
        }
        self.is_held(order, &base.spec).await?;
        let rollout = release::plan(&base.spec, None);
        let services = base.spec.services.values();
        let ends_in = services.map(|one| one.drain.max(one.stream_drain) + one.grace);
        let plan = SwitchPlan {
            from,
            to: to.clone(),
            release: base.release,
            was_deleted,
            ends_in: ends_in.max().unwrap_or_default(),
            starts_in: rollout.progress_deadline,
        };
        Ok((plan, base))
    }

    /// Whether a store can take the place of another; true where it has to be had back first.
    fn may_serve(
        &self,
        order: &SwitchOrder,
        view: &View,
        from: &StoreName,
        target: &Store,
        wanted: &Wanted,
    ) -> Result<bool, DeployError> {
        let SwitchOrder {
            scope, store, to, ..
        } = order;
        let newest = view.bodies.last_key_value();
        let is_named =
            |name: &StoreName| newest.is_some_and(|(_, body)| body.spec.stores.contains_key(name));
        if let Some(own) = view.state.serves(to).filter(|own| is_named(own)) {
            return Err(refused(
                "store-not-now",
                format!("store `{to}` serves `{own}` of the app"),
                format!("`landfast restore run {store} --as NAME` makes one that serves nothing"),
            ));
        }
        // The archive goes on only with a server that descends from the one before; one that is lost cannot be asked.
        let lineage = |name| stores::lineage(&self.shared, scope, name);
        if let (Ok(old), Ok(new)) = (lineage(from), lineage(to))
            && old.system != new.system
        {
            return Err(refused(
                "store-refused",
                format!("store `{to}` was not restored from a backup of `{store}`"),
                format!("`landfast restore run {store} --as NAME` makes one that was"),
            ));
        }
        if let Change::Refused { reason, hint } = target.change_to(wanted) {
            let reason = format!("store `{to}` cannot be what `[stores.{store}]` says: {reason}");
            return Err(refused("store-refused", reason, hint));
        }
        for name in [from, to] {
            let rotation = self.shared.stores.rotation(scope, name);
            if rotation.is_some_and(|view| !view.rotation.is_settled()) {
                return Err(refused(
                    "store-not-now",
                    format!("the password of store `{name}` is being changed"),
                    format!("`landfast store show {name}` shows how far it is"),
                ));
            }
        }
        match &target.phase {
            Phase::Ready { .. } => Ok(false),
            Phase::Deleted { .. } => Ok(true),
            Phase::Making { .. }
            | Phase::Down { .. }
            | Phase::Starting { .. }
            | Phase::Stopping { .. }
            | Phase::Removing => Err(refused(
                "store-not-now",
                format!("store `{to}` is {}", target.word()),
                format!("wait until it is ready: `landfast store show {to}`"),
            )),
        }
    }

    /// A run of a job that began on the old store writes there to its end.
    async fn is_held(&self, order: &SwitchOrder, spec: &AppSpec) -> Result<(), DeployError> {
        let (shared, scope) = (Arc::clone(&self.shared), order.scope.clone());
        let open = tokio::task::spawn_blocking(move || jobs::open_numbers(&shared, &scope)).await;
        let open = open.map_err(|error| error.to_string());
        let open = open
            .and_then(|open| open)
            .map_err(|reason| refused("store-not-now", reason, "try again"))?;
        let uses = |run: &jobs::RunRecord| {
            let job = spec.jobs.get(&run.job);
            job.is_none_or(|job| job.uses.contains(&order.store))
        };
        let holder = open
            .into_iter()
            .find(|(_, run)| run.as_ref().is_none_or(uses));
        let Some((number, _)) = holder else {
            return Ok(());
        };
        Err(refused(
            "store-not-now",
            format!("run {number} of a job uses store `{}`", order.store),
            "wait for its end: what it writes from now on would be missing",
        ))
    }

    /// Has the new store run, as the manifest wants it and on a timeline behind that of the old one. Its start is waited for by the
    /// rollout.
    async fn bring_up(
        &self,
        order: &SwitchOrder,
        plan: &SwitchPlan,
        spec: &AppSpec,
    ) -> Result<(), DeployError> {
        let SwitchOrder {
            scope, store, to, ..
        } = order;
        let tell = async |input| {
            let told = self.shared.stores.command(scope, to, input).await;
            told.map_err(|error| refused("store-not-now", error.to_string(), "try again"))
        };
        let wanted = spec.stores.get(store).and_then(Wanted::of);
        let wanted = wanted.expect("it was judged as one that Landfast runs");
        let known = tell(StoreInput::Fit { wanted }).await?;
        let lineage = |name| stores::lineage(&self.shared, scope, name).map(|it| it.timeline);
        let is_behind =
            matches!((lineage(&plan.from), lineage(to)), (Ok(old), Ok(new)) if new <= old);
        if plan.was_deleted {
            tell(StoreInput::Lend).await?;
        } else if is_behind || !known.store.waits_for_restart().is_empty() {
            tell(StoreInput::Restart).await?;
        }
        Ok(())
    }

    /// What the old store has written is in the archive, up to now, and there is a place to go back to. What comes behind it is shipped
    /// when the archive passes over.
    async fn ship_rest(&self, order: &SwitchOrder, release: ReleaseId) -> Result<(), DeployError> {
        let SwitchOrder { scope, store, .. } = order;
        let views = self.shared.backups.of(scope);
        let view = views.iter().find(|view| view.store == *store);
        // A point that is there stays where it is: one of a try that came to nothing says nothing of what was written since.
        let is_free = |name: &String| {
            let mut points = view.iter().flat_map(|view| &view.points);
            !points.any(|(known, ..)| known == name)
        };
        let mut names = (1..).map(|time| match time {
            1 => format!("before-switch-{release}"),
            time => format!("before-switch-{release}-{time}"),
        });
        let name = names.find(is_free).expect("there is always another number");
        let Some(shipped) = self.shared.backups.point(scope, store, &name).await else {
            return Ok(());
        };
        let Err(reason) = shipped else {
            return Ok(());
        };
        if order.accepts_loss {
            tracing::warn!(%scope, %store, reason, "what the archive lacks of the old store is given up, as accepted");
            return Ok(());
        }
        Err(unshipped(store, &reason))
    }
}

/// Who takes back a switch that was begun.
const BY: &str = "restore switch";

/// Nobody takes a store for one that was had back in vain while this is there.
struct Kept<'a> {
    shared: &'a Shared,
    scope: &'a Scope,
    store: &'a StoreName,
    is_ours: bool,
}

impl<'a> Kept<'a> {
    fn of(shared: &'a Shared, scope: &'a Scope, store: &'a StoreName) -> Self {
        let is_ours = shared.stores.hold_lent(scope, store);
        Self {
            shared,
            scope,
            store,
            is_ours,
        }
    }
}

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        if self.is_ours {
            self.shared.stores.release_lent(self.scope, self.store);
        }
    }
}

fn unshipped(store: &StoreName, reason: &str) -> DeployError {
    refused(
        "store-not-now",
        format!("what was written to `{store}` of late is not in its archive: {reason}"),
        format!(
            "`landfast backup show {store}` shows what is wrong; `--accept-loss` goes on without it: it is in the old store alone then, which is deleted"
        ),
    )
}

fn refused(code: &'static str, reason: String, hint: impl Into<String>) -> DeployError {
    DeployError::Refused(vec![Refusal {
        code,
        reason,
        hint: Some(hint.into()),
    }])
}
