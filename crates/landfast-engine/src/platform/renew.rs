//! Bringing new versions of secrets to instances: a release that differs from the one that serves in them alone, moved
//! there instance by instance.

use std::{collections::BTreeMap, sync::Arc};

use landfast_rollout::{Gate, Input, Rejected};
use landfast_types::Scope;

use super::{DeployError, Deployed, Platform, settled_release};
use crate::{
    driver::{CommandError, View},
    migrations,
    release::{self, ReleaseBody},
};

/// Leave to bring new versions of secrets to the instances of an environment.
pub struct Renewal<'a> {
    scope: Scope,
    _claim: tokio::sync::MutexGuard<'a, ()>,
}

impl Platform {
    /// Whether the release that serves was made with a secret of this name.
    pub fn is_given(&self, scope: &Scope, name: &str) -> bool {
        let view = self.environment_or_empty(scope);
        let state = &view.state;
        let release = state.rollout.as_ref().map(|rollout| rollout.to);
        let releases = [release, state.serving].into_iter().flatten();
        let mut bodies = releases.filter_map(|release| view.bodies.get(&release));
        bodies.any(|body| body.secrets.contains_key(name))
    }

    /// Whether [`Platform::renew`] could begin now. No deploy and no rollback begins while the answer is held.
    ///
    /// # Errors
    /// What is in the way: nothing was deployed, a rollout is under way or waits, or somebody migrates by hand.
    pub async fn may_renew(&self, scope: &Scope) -> Result<Renewal<'_>, DeployError> {
        let claim = self.claiming.lock().await;
        if let Some(trouble) = self.trouble(scope) {
            return Err(DeployError::Unreadable(trouble));
        }
        let view = self.environment_or_empty(scope);
        base(&view)?;
        Ok(Renewal {
            scope: scope.clone(),
            _claim: claim,
        })
    }

    /// Makes a release of what serves with these versions of these secrets, and begins a rolling rollout to it. Code and
    /// configuration are those that serve, so of the gates only preflight is asked, and nothing is held or analysed.
    ///
    /// # Errors
    /// [`DeployError`] when it was refused: nothing has changed then.
    pub async fn renew(
        &self,
        renewal: &Renewal<'_>,
        versions: &BTreeMap<String, u64>,
        by: String,
        note: String,
    ) -> Result<Deployed, DeployError> {
        let scope = &renewal.scope;
        let view = self.environment_or_empty(scope);
        let base = base(&view)?;
        let mut secrets = base.secrets.clone();
        for (name, pinned) in &mut secrets {
            if let Some(version) = versions.get(name) {
                *pinned = *version;
            }
        }
        let fingerprint = release::fingerprint(&base.spec, &base.artifacts, &base.images, &secrets);
        if fingerprint == base.fingerprint {
            return Ok(Deployed::Unchanged {
                release: base.release,
            });
        }
        let mut plan = release::plan(&base.spec, Some(landfast_spec::Strategy::Rolling));
        plan.gates.retain(|gate| *gate == Gate::Preflight);
        let body = ReleaseBody {
            release: view.state.next_release(),
            secrets,
            fingerprint,
            created_at: self.shared.clock.now(),
            note: Some(note),
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
        let release = body.release;
        let input = Input::Deploy {
            topology: release::topology(&body.spec, &sets),
            plan,
            supersede: false,
            by,
        };
        self.measure(scope).await?;
        let view = self.handle_or_new(scope).command(input, Some(body)).await?;
        self.collect(scope).await;
        Ok(Deployed::Begun { release, view })
    }
}

/// The release that serves, where nothing moves, stands by or waits: a rotation takes no rollout's place, and no way back.
pub(super) fn base(view: &View) -> Result<&Arc<ReleaseBody>, DeployError> {
    let reject = |rejected| DeployError::Command(CommandError::Rejected(rejected));
    if view.state.stopped {
        return Err(reject(Rejected::EnvironmentStopped));
    }
    if let Some(rejected) = view.state.beside_hand() {
        return Err(reject(rejected));
    }
    if let Some(body) = settled_release(view) {
        return match &view.state.rollout {
            None => Ok(body),
            Some(rollout) => Err(DeployError::StandsBy {
                rollout: rollout.id,
            }),
        };
    }
    match &view.state.rollout {
        Some(rollout) => Err(reject(Rejected::RolloutMoving {
            rollout: rollout.id,
            to: rollout.to,
            since: rollout.started_at,
            by: rollout.by.clone(),
        })),
        None => Err(reject(Rejected::NothingDeployed)),
    }
}
