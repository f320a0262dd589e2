//! One task for the whole target: it listens to the daemon, follows what containers write, and notices when the daemon
//! is away.
//!
//! Whoever waits for an end is told by the daemon's own events. A stream of events that breaks, or a daemon that was
//! away, may have lost some: everything is looked at again then.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use bollard::{models::EventMessage, query_parameters::EventsOptionsBuilder};
use futures_util::StreamExt as _;
use landfast_target::InstanceRef;
use landfast_types::{InstanceId, Scope};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::MissedTickBehavior,
};

use crate::{
    core::{Core, blocking},
    daemon::DaemonError,
    name::{self, LABEL_APP, LABEL_ENVIRONMENT, LABEL_INSTANCE},
    secrets,
};

/// How often a daemon that says nothing is asked whether it is there.
const PING_EVERY: Duration = Duration::from_secs(5);
/// A daemon that is away is asked again after this, and this at most.
const ASK_AGAIN: Duration = Duration::from_millis(200);
const ASK_AGAIN_MAX: Duration = Duration::from_secs(2);
/// What concerns whoever waits or watches. Podman says `die` too, and is asked for `died`.
const EVENTS: [&str; 8] = [
    "die",
    "died",
    "destroy",
    "remove",
    "oom",
    "start",
    "health_status",
    "rename",
];

/// An instance whose output is to be read, and where it is told that all of it was.
pub(crate) struct Follow {
    id: InstanceRef,
    read: watch::Sender<bool>,
}

impl Core {
    /// Asks for the output of an instance to be read, unless it is already.
    pub(crate) fn to_follow(&self, id: &InstanceRef) -> Option<Follow> {
        let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        let is_followed =
            |told: &watch::Receiver<bool>| *told.borrow() || told.has_changed().is_ok();
        if followed.get(id).is_some_and(is_followed) {
            return None;
        }
        let (read, told) = watch::channel(false);
        followed.insert(id.clone(), told);
        Some(Follow {
            id: id.clone(),
            read,
        })
    }

    pub(crate) fn follow_no_more(&self, id: &InstanceRef) {
        let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        followed.remove(id);
    }
}

/// Watches until the target is dropped. `follow` names instances whose output is to be read.
pub(crate) async fn watch(core: Arc<Core>, mut follow: mpsc::UnboundedReceiver<Follow>) {
    let mut followers = JoinSet::new();
    for id in adopted(&core).await {
        if let Some(ask) = core.to_follow(&id) {
            follow_one(&core, &mut followers, ask);
        }
    }
    let mut pause = ASK_AGAIN;
    loop {
        let listened = {
            let listening = listen(&core);
            tokio::pin!(listening);
            loop {
                tokio::select! {
                    told = &mut listening => break told,
                    Some(ask) = follow.recv() => follow_one(&core, &mut followers, ask),
                    Some(ended) = followers.join_next(), if !followers.is_empty() => {
                        if let Err(error) = ended && error.is_panic() {
                            tracing::error!(%error, "who follows an output panicked");
                        }
                    }
                }
            }
        };
        match listened {
            Ok(()) => pause = ASK_AGAIN,
            Err(error) => {
                if matches!(error, DaemonError::Unclear(_)) && pause == ASK_AGAIN {
                    tracing::warn!(daemon = %core.settings.address, %error, "Docker's events cannot be read; all containers are looked at instead");
                }
                let since = core.daemon.outage();
                core.daemon.note_error(&error);
                if since.is_none() && core.daemon.outage().is_some() {
                    tracing::warn!(daemon = %core.settings.address, %error, "Docker does not answer; what runs there is not known to have ended");
                }
            }
        }
        let rest = tokio::time::sleep(pause);
        tokio::pin!(rest);
        loop {
            tokio::select! {
                () = &mut rest => break,
                Some(ask) = follow.recv() => follow_one(&core, &mut followers, ask),
            }
        }
        pause = (pause * 2).min(ASK_AGAIN_MAX);
    }
}

/// What was started by this server or others, and may still write; what of their secrets nobody needs any more is
/// removed.
async fn adopted(core: &Arc<Core>) -> Vec<InstanceRef> {
    let (records, above) = (core.records.clone(), core.settings.secrets.clone());
    let read = blocking(move || {
        let mut all = Vec::new();
        secrets::sweep(&above, || {
            all = records.all()?;
            let living = all.iter().filter(|record| record.ended.is_none());
            Ok(living.filter_map(|record| record.secrets.clone()).collect())
        })?;
        Ok(all)
    });
    match read.await {
        Ok(all) => all
            .into_iter()
            .filter(|record| record.started.is_some())
            .map(|record| record.id)
            .collect(),
        Err(error) => {
            tracing::warn!(%error, "what runs on Docker is not known");
            Vec::new()
        }
    }
}

fn follow_one(core: &Arc<Core>, followers: &mut JoinSet<()>, ask: Follow) {
    let core = Arc::clone(core);
    followers.spawn(async move {
        core.follow(&ask.id).await;
        ask.read.send_replace(true);
    });
}

/// Listens until the stream breaks or the daemon does not answer.
async fn listen(core: &Core) -> Result<(), DaemonError> {
    core.daemon
        .call(|client| async move { client.ping().await })
        .await?;
    let client = core.daemon.client().await?;
    let filters = name::filter(&core.host, &[("type", &["container"]), ("event", &EVENTS)]);
    let options = EventsOptionsBuilder::default().filters(&filters).build();
    let mut events = client.events(Some(options));
    // What happened while nobody listened.
    core.announce(None);
    let mut ticks = tokio::time::interval(PING_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.reset();
    let mut was_away = false;
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(Ok(event)) => core.announce(subject(&event)),
                Some(Err(error)) => return Err(error.into()),
                None => return Err(DaemonError::Away("it ended its stream of events".to_owned())),
            },
            _ = ticks.tick() => {
                let pinged = core.daemon.call(|client| async move { client.ping().await }).await;
                match pinged {
                    Ok(_) if std::mem::take(&mut was_away) => core.announce(None),
                    Ok(_) => {}
                    // It may hang, and go on where it was.
                    Err(DaemonError::Silent(_)) => was_away = true,
                    Err(error) => return Err(error),
                }
            }
        }
    }
}

/// The instance an event is about; `None` where it does not say.
fn subject(event: &EventMessage) -> Option<InstanceRef> {
    let attributes = event.actor.as_ref()?.attributes.as_ref()?;
    let said = |label: &str| attributes.get(label);
    Some(InstanceRef {
        scope: Scope {
            app: said(LABEL_APP)?.parse().ok()?,
            environment: said(LABEL_ENVIRONMENT)?.parse().ok()?,
        },
        instance: said(LABEL_INSTANCE)?.parse::<InstanceId>().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use bollard::models::EventActor;

    use super::*;

    #[test]
    fn reads_whom_an_event_is_about() {
        let said = [
            (LABEL_APP, "shop"),
            (LABEL_ENVIRONMENT, "production"),
            (LABEL_INSTANCE, "api.r1.2"),
        ];
        let attributes = |count: usize| {
            let pairs = said[..count].iter();
            pairs
                .map(|(label, value)| ((*label).to_owned(), (*value).to_owned()))
                .collect()
        };
        let event = |attributes: HashMap<_, _>| EventMessage {
            actor: Some(EventActor {
                id: None,
                attributes: Some(attributes),
            }),
            ..Default::default()
        };
        let told = subject(&event(attributes(3))).unwrap();
        assert_eq!(told.instance.as_str(), "api.r1.2");
        assert_eq!(subject(&event(attributes(2))), None);
    }
}
