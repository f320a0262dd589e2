//! What a target has and no environment knows: an instance whose start was reported failed and came late, one whose
//! folder could not be read when the server started, the remains of one that was not forgotten.
//!
//! Records come before actions, so what runs is in a state that is read *after* the target was asked. Instances of a
//! scope without a state are left alone unless nothing was ever recorded of it: its environment may only not be
//! readable.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use landfast_target::{InstanceRef, Observed};
use landfast_types::{Fence, Scope};
use tokio::{task::JoinSet, time::sleep};

use crate::{
    actions::chain, driver::stream_of, jobs, logs, platform::collect_images, shared::Shared, stores,
};

const SWEEP_EVERY: Duration = Duration::from_secs(60);
const GRACE: Duration = Duration::from_secs(10);
/// What the streams of environments begin with.
const ENVIRONMENTS: &str = "environment/";
/// Images are looked through each time so many sweeps were made.
const IMAGES_EVERY: u32 = 10;

/// Sweeps at once and then every minute, until another server has taken over.
pub(crate) async fn run(shared: Arc<Shared>) {
    for sweeps in 0_u32.. {
        if shared.replaced.borrow().is_some() {
            return;
        }
        sweep(&shared).await;
        if sweeps % IMAGES_EVERY == IMAGES_EVERY - 1 && everything_is_known(&shared).await {
            collect_images(&shared).await;
        }
        sleep(SWEEP_EVERY).await;
    }
}

pub(crate) async fn sweep(shared: &Arc<Shared>) {
    let listed = match shared.target.list().await {
        Ok(listed) => listed,
        Err(error) => {
            return tracing::warn!(error = chain(&error), "strays were not looked for");
        }
    };
    let owner = Arc::clone(shared);
    let found = tokio::task::spawn_blocking(move || {
        let known = known(&owner)?;
        collect_logs(&owner, &known);
        Ok::<_, String>(strays(listed, &known))
    });
    match found.await {
        Ok(Ok(strays)) => {
            let ending = strays.into_iter().map(|id| end(Arc::clone(shared), id));
            ending.collect::<JoinSet<()>>().join_all().await;
        }
        Ok(Err(reason)) => tracing::warn!(reason, "strays were not looked for"),
        Err(error) => tracing::error!(%error, "looking for strays stopped"),
    }
}

/// Whether every environment was read back: what one that was not needs is not known.
async fn everything_is_known(shared: &Arc<Shared>) -> bool {
    let owner = Arc::clone(shared);
    let known = tokio::task::spawn_blocking(move || known(&owner)).await;
    let Ok(Ok(known)) = known else {
        return false;
    };
    let read: BTreeSet<String> = known.read.iter().map(stream_of).collect();
    let mut streams = known.streams.iter();
    streams.all(|stream| !stream.starts_with(ENVIRONMENTS) || read.contains(stream))
}

async fn end(shared: Arc<Shared>, id: InstanceRef) {
    let InstanceRef { scope, instance } = &id;
    tracing::info!(%scope, %instance, "ending what no environment knows");
    let fence = Fence {
        generation: shared.generation,
        revision: u64::MAX,
    };
    if let Err(error) = shared.target.stop(fence, &id, GRACE).await {
        return tracing::warn!(%scope, %instance, error = chain(&error), "it was not ended");
    }
    if let Err(error) = shared.target.forget(&id).await {
        tracing::debug!(%scope, %instance, error = chain(&error), "still kept");
    }
}

/// What this server answers for.
struct Known {
    /// Instances, open runs of jobs and servers of stores.
    ids: BTreeSet<InstanceRef>,
    /// Environments that were read back.
    read: BTreeSet<Scope>,
    /// The streams of all environments there are.
    streams: BTreeSet<String>,
}

fn known(shared: &Shared) -> Result<Known, String> {
    let streams = shared.journal.streams().map_err(|error| chain(&error))?;
    let mut known = Known {
        ids: BTreeSet::new(),
        read: BTreeSet::new(),
        streams: streams.into_iter().collect(),
    };
    known.ids.extend(stores::instances(shared)?);
    for view in shared.environments() {
        let scope = &view.state.scope;
        let runs = jobs::open(shared, scope)?;
        let instances = view.state.instances.keys().cloned();
        let all = instances.chain(runs.into_iter().map(|run| run.instance));
        known.ids.extend(all.map(|instance| InstanceRef {
            scope: scope.clone(),
            instance,
        }));
        known.read.insert(scope.clone());
    }
    Ok(known)
}

fn strays(listed: Vec<Observed>, known: &Known) -> Vec<InstanceRef> {
    let ids = listed.into_iter().map(|observed| observed.id);
    let is_stray = |id: &InstanceRef| {
        let answered_for = known.read.contains(&id.scope);
        let unread = !answered_for && known.streams.contains(&stream_of(&id.scope));
        !unread && !known.ids.contains(id)
    };
    ids.filter(is_stray).collect()
}

fn collect_logs(shared: &Shared, known: &Known) {
    for scope in &known.read {
        let kept = known.ids.iter().filter(|id| id.scope == *scope);
        let kept = kept.map(|id| id.instance.clone()).collect();
        let folder = shared.folders.logs_of(scope);
        if let Err(error) = logs::collect(&folder, &kept, shared.clock.wall()) {
            tracing::warn!(%scope, %error, "old logs were not removed");
        }
    }
}
