//! The gates a driver evaluates: the host can carry the release, and the app's own smoke jobs pass.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use landfast_spec::{Gate, JobSpec};
use landfast_types::{JobName, ReleaseId, RolloutId};
use tokio::time::{sleep, timeout};

use crate::{
    actions::{Context, chain},
    backups, by_hand, jobs, planning,
    platform::ensure_image,
    release::{self, ReleaseBody},
};

/// How long a rehearsal waits for the end of another of the same database, each time.
const BUSY_RETRY: Duration = Duration::from_secs(1);
/// Half an hour; then the gate refuses, with what is in the way.
const BUSY_TRIES: u32 = 1_800;

/// Whether the host can carry the release. `Err` is the refusal, with what to do.
pub(crate) async fn preflight(context: &Context, release: ReleaseId) -> Result<String, String> {
    let body = context.view.bodies.get(&release).cloned();
    let body = body.ok_or_else(|| format!("release {release} is not kept"))?;
    let patience = body.spec.deploy.progress_deadline;
    let images = timeout(patience, images_are_here(context, &body)).await;
    images.unwrap_or_else(|_elapsed| Err("Docker did not answer in time".into()))?;
    let (shared, view) = (context.shared.clone(), context.view.clone());
    let judged = tokio::task::spawn_blocking(move || {
        let plan = view
            .state
            .rollout
            .as_ref()
            .map(|rollout| rollout.plan.clone());
        let plan = plan.unwrap_or_else(|| release::plan(&body.spec, None));
        let missing = body
            .artifacts
            .iter()
            .find(|(_, digest)| shared.store.path(digest).is_none());
        if let Some((name, digest)) = missing {
            return Err(format!(
                "artifact `{name}` ({}) is not in the store",
                digest.short()
            ));
        }
        let mut refusals = planning::refusals(&shared, &view, &body.spec, &body.artifacts, &plan);
        // Nobody is kept from going back because a backup is old.
        let rollout = view.state.rollout.as_ref();
        if rollout.is_some_and(|rollout| {
            rollout.kind == landfast_rollout::Kind::Deploy && rollout.switching.is_none()
        }) {
            refusals.extend(backups::refusals(&shared, &view.state.scope, &body.spec));
        }
        if refusals.is_empty() {
            let peak = planning::peak(&shared, &view, &body.spec, &plan);
            return Ok(format!(
                "memory peak {} of {}",
                peak.peak.memory, peak.host.memory
            ));
        }
        let lines = refusals.into_iter().map(|refusal| match refusal.hint {
            Some(hint) => format!("{} ({hint})", refusal.reason),
            None => refusal.reason,
        });
        Err(lines.collect::<Vec<_>>().join("; "))
    });
    judged
        .await
        .unwrap_or_else(|error| Err(format!("the preflight itself failed: {error}")))
}

/// Has the images of a release here. A daemon that does not answer is waited for: it says nothing of the release.
async fn images_are_here(context: &Context, body: &ReleaseBody) -> Result<(), String> {
    for (key, image) in &body.images {
        while let Err(error) = ensure_image(&context.shared, body, key, image).await {
            let reason = format!("image `{key}`: {}", chain(&error));
            if context.shared.target.outages().is_empty() {
                return Err(reason);
            }
            tracing::warn!(scope = %body.spec.scope(), reason, "the preflight gate waits for Docker");
            sleep(BUSY_RETRY).await;
        }
    }
    Ok(())
}

/// Whether the migrations of the new release keep within their budgets on copies of its databases.
pub(crate) async fn rehearsal(context: &Context, release: ReleaseId) -> Result<String, String> {
    let body = context.view.bodies.get(&release).cloned();
    let body = body.ok_or_else(|| format!("release {release} is not kept"))?;
    let budgeted = body.spec.stores.iter();
    let budgeted = budgeted.filter(|(_, store)| store.rehearsal.is_some());
    let mut passed = Vec::new();
    for (name, _) in budgeted {
        let tell = |text: String| tracing::info!(scope = %body.spec.scope(), store = %name, "rehearsal: {text}");
        let (spec, artifacts) = (&body.spec, &body.artifacts);
        let mut tries = 0;
        let rehearsed = loop {
            match by_hand::rehearse(&context.shared, spec, artifacts, name, tell).await {
                // A person's, or what an earlier server left: it ends.
                Err(error) if error.is_busy() && tries < BUSY_TRIES => {
                    if tries == 0 {
                        tracing::warn!(scope = %body.spec.scope(), store = %name, "the rehearsal gate waits for another rehearsal to end");
                    }
                    tries += 1;
                    sleep(BUSY_RETRY).await;
                }
                Err(error) => return Err(chain(&error)),
                Ok(rehearsed) => break rehearsed,
            }
        };
        match rehearsed.verdict() {
            Ok(said) => passed.push(format!("store `{name}`: {said}")),
            Err(why) => return Err(format!("store `{name}`: {why}")),
        }
    }
    Ok(passed.join(", "))
}

/// Runs every smoke job of the new release against the preview, one after the other.
pub(crate) async fn smoke(
    context: &Context,
    rollout: RolloutId,
    release: ReleaseId,
) -> Result<String, String> {
    let body = context.view.bodies.get(&release).cloned();
    let body = body.ok_or_else(|| format!("release {release} is not kept"))?;
    let found: Vec<(JobName, JobSpec)> = body
        .spec
        .jobs_of(Gate::Smoke)
        .map(|(name, job)| (name.clone(), job.clone()))
        .collect();
    if found.is_empty() {
        return Err("no job has `when = \"gate:smoke\"`".into());
    }
    let status = context
        .shared
        .hub
        .status()
        .await
        .map_err(|error| error.to_string())?;
    let mut extra = BTreeMap::from([("LANDFAST_ROLLOUT".to_owned(), rollout.to_string())]);
    if let Some(preview) = status.preview {
        extra.insert("LANDFAST_PREVIEW_URL".into(), format!("http://{preview}"));
    }
    if let Some(route) = body.spec.routes.values().next() {
        let host = route.host.replace('*', "preview");
        extra.insert("LANDFAST_PREVIEW_HOST".into(), host);
        extra.insert("LANDFAST_PREVIEW_PATH".into(), route.path.clone());
    }
    let mut passed = Vec::new();
    for (name, job) in found {
        let scope = &context.view.state.scope;
        let mut extra = extra.clone();
        if job.container.is_some() {
            let address = reachable(context, &body, release).ok_or_else(|| {
                format!("job `{name}` is a container, and no routed service of release {release} is one it could ask")
            })?;
            extra.insert("LANDFAST_PREVIEW_URL".into(), format!("http://{address}"));
        }
        let run = jobs::Run {
            scope,
            body: &body,
            name: &name,
            job: &job,
            cause: "smoke gate",
            rollout: Some(rollout),
        };
        let record = jobs::run_for_gate(&context.shared, run, extra).await?;
        match record.verdict() {
            Ok(()) => passed.push(format!("`{name}` passed in {} ms", record.millis())),
            Err(reason) => return Err(format!("job `{name}` {reason}")),
        }
    }
    Ok(passed.join(", "))
}

/// An instance of the new release that a container of it can ask: the preview itself is on the host's loopback, where no
/// container reaches it.
fn reachable(context: &Context, body: &ReleaseBody, release: ReleaseId) -> Option<SocketAddr> {
    let state = &context.view.state;
    let routed = body.spec.routes.values().map(|route| &route.service);
    let mut routed = routed.filter(|name| {
        let service = body.spec.services.get(name);
        service.is_some_and(|service| service.container.is_some())
    });
    routed.find_map(|name| {
        let mut instances = state.instances.values();
        let found = instances
            .find(|one| one.release == release && one.service == *name && one.is_serving());
        found.and_then(|one| one.address)
    })
}
