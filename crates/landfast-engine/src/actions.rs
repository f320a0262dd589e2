//! Doing what is owed. Each action may be repeated: after a crash, or because its answer got lost.

use std::{sync::Arc, time::Duration};

use landfast_rollout::{Action, Gate, Input};
use landfast_target::{Content, Exit, InstanceRef, InstanceSpec, TargetError};
use landfast_types::{Fence, ImageId, InstanceId, ReleaseId, RolloutId, ServiceName};
use tokio::{sync::mpsc, time::sleep};

use crate::{
    by_hand,
    driver::{Message, View},
    gates, migrations,
    part::{backend_id, part},
    plane::PlaneError,
    platform::ensure_image,
    release::ReleaseBody,
    shared::Shared,
    spec::instance_spec,
    stores, webhook,
};

/// How often the proxy is asked whether an instance has drained.
const DRAIN_POLL: Duration = Duration::from_millis(50);
const START_TRIES: u32 = 3;
pub(crate) const RETRY_FIRST: Duration = Duration::from_millis(200);
pub(crate) const RETRY_MAX: Duration = Duration::from_secs(10);

/// What an action is done with.
pub(crate) struct Context {
    pub(crate) shared: Arc<Shared>,
    pub(crate) view: Arc<View>,
    pub(crate) inbox: mpsc::Sender<Message>,
}

impl Context {
    pub(crate) async fn tell(&self, input: Input) {
        if self.inbox.send(Message::Input(input)).await.is_err() {
            tracing::debug!("the driver has stopped; what it was told is found again at the start");
        }
    }

    /// This order's place among all orders: nobody who decided earlier may overtake it.
    fn fence(&self) -> Fence {
        Fence {
            generation: self.shared.generation,
            revision: self.view.state.sequence,
        }
    }

    fn reference(&self, instance: &InstanceId) -> InstanceRef {
        InstanceRef {
            scope: self.view.state.scope.clone(),
            instance: instance.clone(),
        }
    }

    fn replaced(&self, by: String) {
        self.shared.replaced.send_replace(Some(by));
    }
}

/// Does one action and tells the driver what came of it. Waits as long as it takes: an action that is not owed
/// any more is aborted by the driver.
pub(crate) async fn perform(context: Context, action: Action) {
    match action {
        Action::StartInstance {
            instance,
            service,
            release,
        } => {
            start(&context, instance, &service, release).await;
        }
        Action::StopInstance { instance, grace } => stop(&context, instance, grace).await,
        Action::Publish { .. } => publish(&context).await,
        Action::AwaitDrain { instance, .. } => await_drain(&context, instance).await,
        Action::JudgeGate {
            rollout,
            gate,
            release,
        } => {
            judge(&context, rollout, gate, release).await;
        }
        Action::Migrate {
            rollout,
            release,
            stage,
        } => {
            let (schemas, failure) = migrations::run(&context, rollout, release, stage).await;
            let input = Input::Migrated {
                rollout,
                stage,
                schemas,
                failure,
            };
            context.tell(input).await;
        }
        Action::ReadSchema { store } => {
            let schemas = by_hand::read(&context, store).await;
            context.tell(Input::SchemasRead { schemas }).await;
        }
        Action::RetireStore { store } => {
            stores::retire(&context.shared, &context.view.state.scope, &store).await;
            context.tell(Input::StoreRetired { store }).await;
        }
        Action::Notify { rollout } => {
            webhook::notify(&context, rollout).await;
            context.tell(Input::Notified { rollout }).await;
        }
    }
}

async fn start(context: &Context, instance: InstanceId, service: &ServiceName, release: ReleaseId) {
    let reference = context.reference(&instance);
    let spec = match context.view.bodies.get(&release) {
        Some(body) => prepare(&context.shared, &reference, body, service).await,
        None => Err(format!("release {release} is not kept any more")),
    };
    let spec = match spec {
        Ok(spec) => spec,
        Err(reason) => return context.tell(Input::StartFailed { instance, reason }).await,
    };
    let mut wait = RETRY_FIRST;
    let mut attempt = 0;
    let mut was_brought_back = false;
    loop {
        attempt += 1;
        match context.shared.target.start(context.fence(), &spec).await {
            Ok(observed) => {
                let address = observed.address;
                return context.tell(Input::Started { instance, address }).await;
            }
            Err(landfast_target::StartError::Stale(stale)) => {
                return context.replaced(stale.to_string());
            }
            // Somebody removed it.
            Err(landfast_target::StartError::ImageMissing(id)) if !was_brought_back => {
                was_brought_back = true;
                if let Err(reason) = bring_back(context, release, id).await {
                    return context.tell(Input::StartFailed { instance, reason }).await;
                }
            }
            // A daemon that does not answer says nothing of the release: its deadlines say how long is waited.
            Err(error)
                if error.is_retryable()
                    && (attempt < START_TRIES || is_away(context, &spec.content)) =>
            {
                tracing::warn!(%instance, error = chain(&error), "not started; trying again");
                sleep(wait).await;
                wait = (wait * 2).min(RETRY_MAX);
            }
            Err(error) => {
                let reason = chain(&error);
                // The order may have arrived all the same, and what starts late would run beside what replaces it:
                // from here on it must not start.
                if error.is_retryable() && end(context, &reference, Duration::ZERO).await.is_none()
                {
                    return;
                }
                return context.tell(Input::StartFailed { instance, reason }).await;
            }
        }
    }
}

/// Whether what runs containers does not answer just now.
fn is_away(context: &Context, content: &Content) -> bool {
    content.is_image() && !context.shared.target.outages().is_empty()
}

/// Has an image of a release here again.
async fn bring_back(context: &Context, release: ReleaseId, id: ImageId) -> Result<(), String> {
    let gone = || format!("image {} is not on this host", id.short());
    let body = context.view.bodies.get(&release).ok_or_else(gone)?;
    let mut images = body.images.iter();
    let (key, image) = images.find(|(_, image)| image.id == id).ok_or_else(gone)?;
    tracing::warn!(image = key, id = %id.short(), "an image of a release was removed; bringing it back");
    let brought = ensure_image(&context.shared, body, key, image).await;
    brought.map_err(|error| format!("{}: {}", gone(), chain(&error)))
}

/// What the instance is started with; waits until the stores it uses are ready.
async fn prepare(
    shared: &Shared,
    id: &InstanceRef,
    body: &ReleaseBody,
    service: &ServiceName,
) -> Result<InstanceSpec, String> {
    let known = body.spec.services.get(service);
    let uses = known.map(|spec| spec.uses.as_slice()).unwrap_or_default();
    let is_container = known.is_some_and(|spec| spec.container.is_some());
    let connections = stores::connections(shared, &id.scope, body, uses, is_container).await?;
    instance_spec(shared, id, body, service, connections)
}

async fn stop(context: &Context, instance: InstanceId, grace: Duration) {
    let reference = context.reference(&instance);
    if let Some(exit) = end(context, &reference, grace).await {
        let exit = exit.to_string();
        context.tell(Input::Ended { instance, exit }).await;
    }
}

/// Ends an instance, however often it must be asked; `None` when another server has taken over.
async fn end(context: &Context, reference: &InstanceRef, grace: Duration) -> Option<Exit> {
    let instance = &reference.instance;
    let mut wait = RETRY_FIRST;
    loop {
        match context
            .shared
            .target
            .stop(context.fence(), reference, grace)
            .await
        {
            Ok(exit) => return Some(exit),
            Err(TargetError::Stale(stale)) => {
                context.replaced(stale.to_string());
                return None;
            }
            Err(error) => {
                tracing::warn!(%instance, error = chain(&error), "not stopped; trying again");
                sleep(wait).await;
                wait = (wait * 2).min(RETRY_MAX);
            }
        }
    }
}

/// Waits until an instance ends by itself.
pub(crate) async fn watch(context: Context, instance: InstanceId) {
    let reference = context.reference(&instance);
    let mut wait = RETRY_FIRST;
    loop {
        match context.shared.target.wait(&reference).await {
            Ok(exit) => {
                context
                    .tell(Input::Ended {
                        instance,
                        exit: exit.to_string(),
                    })
                    .await;
                return;
            }
            Err(error) => {
                tracing::debug!(%instance, error = chain(&error), "cannot be watched just now");
                sleep(wait).await;
                wait = (wait * 2).min(RETRY_MAX);
            }
        }
    }
}

/// Drops what the target keeps of an instance whose end is recorded. What cannot be dropped now is swept later.
pub(crate) async fn forget(shared: Arc<Shared>, reference: InstanceRef) {
    if let Err(error) = shared.target.forget(&reference).await {
        let instance = &reference.instance;
        tracing::debug!(%instance, error = chain(&error), "still kept by the target");
    }
}

async fn publish(context: &Context) {
    let state = &context.view.state;
    let part = part(
        state,
        &context.view.bodies,
        !context.shared.controls.health_gate_off,
    );
    match context.shared.hub.publish(&state.scope, part).await {
        Ok(revision) => context.tell(Input::TrafficConfirmed { revision }).await,
        Err(PlaneError::Replaced { refused, seen }) => {
            context.replaced(PlaneError::Replaced { refused, seen }.to_string());
        }
        Err(PlaneError::Unreachable(_)) => {}
    }
}

async fn await_drain(context: &Context, instance: InstanceId) {
    if context.shared.controls.drain_confirmation_off {
        // A control of the proofs: what happens when nobody waits.
        return stop(context, instance, Duration::ZERO).await;
    }
    let state = &context.view.state;
    let backend = backend_id(&state.scope, &instance);
    loop {
        // The engine takes a `Drained` only once a table without the instance is confirmed; until then the proxy
        // does not call it draining either.
        if let Ok(true) = context.shared.hub.is_drained(&backend).await {
            let instance = instance.clone();
            context.tell(Input::Drained { instance }).await;
        }
        sleep(DRAIN_POLL).await;
    }
}

async fn judge(context: &Context, rollout: RolloutId, gate: Gate, release: ReleaseId) {
    let verdict = match gate {
        Gate::Preflight => gates::preflight(context, release).await,
        Gate::Rehearsal => gates::rehearsal(context, release).await,
        Gate::Smoke => gates::smoke(context, rollout, release).await,
        Gate::Hold | Gate::Approval | Gate::Analysis => return,
    };
    let (passed, detail) = match verdict {
        Ok(detail) => (true, detail),
        Err(detail) => (false, detail),
    };
    context
        .tell(Input::GateJudged {
            rollout,
            gate,
            passed,
            detail,
        })
        .await;
}

/// An error with its causes, once, joined by `: `.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// The instant of the runtime's clock that is `wait` away.
pub(crate) fn instant_in(wait: Duration) -> tokio::time::Instant {
    let now = tokio::time::Instant::now();
    now + wait
}
