//! Asks an instance whether it is ready and whether it is alive, for as long as it may serve.
//!
//! Only what changes matters to the engine; an unchanged answer is repeated now and then, so that one that got
//! lost does no harm.

use std::{net::SocketAddr, time::Duration};

use landfast_rollout::Input;
use landfast_spec::{HealthSpec, Probe, ServiceSpec};
use landfast_types::InstanceId;
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};

use crate::{
    client::{connect, get},
    driver::Message,
    shared::Controls,
};

/// An answer is repeated to the engine after so many equal ones.
const REPEAT_EVERY: u32 = 15;
/// While an instance is not ready yet it is asked more often, so that a rollout does not wait for a tick.
const EAGER: Duration = Duration::from_millis(200);
const EAGER_FAST: Duration = Duration::from_millis(50);

/// How an instance is asked.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    health: HealthSpec,
    address: Option<SocketAddr>,
    always_ready: bool,
}

impl Settings {
    /// From the service's manifest.
    pub(crate) fn new(
        service: &ServiceSpec,
        address: Option<SocketAddr>,
        controls: &Controls,
    ) -> Self {
        let health = service.health.clone();
        Self {
            health,
            address,
            always_ready: controls.health_gate_off,
        }
    }
}

/// Probes until it is aborted.
pub(crate) async fn run(inbox: mpsc::Sender<Message>, instance: InstanceId, settings: Settings) {
    let mut readiness = Streak::default();
    let mut liveness = Streak::default();
    let mut told: Option<(bool, u32)> = None;
    let health = &settings.health;
    let mut asked = 0_u32;
    loop {
        let ready = settings.always_ready || settings.ask(&health.ready).await.is_ok();
        readiness.note(ready);
        let passing = match told {
            // The first pass counts at once: `min_ready` asks for an unbroken row of them anyway.
            None | Some((false, _)) => readiness.passes >= health.healthy_after.max(1),
            Some((true, _)) => readiness.failures < health.unhealthy_after.max(1),
        };
        let repeats = told
            .filter(|(said, _)| *said == passing)
            .map_or(0, |(_, times)| times + 1);
        told = Some((passing, repeats));
        if repeats.is_multiple_of(REPEAT_EVERY) {
            let input = Input::Probed {
                instance: instance.clone(),
                passing,
            };
            if inbox.send(Message::Input(input)).await.is_err() {
                return;
            }
        }
        // Before it was ever ready an instance is judged by its deadline, not by liveness.
        if readiness.ever {
            let alive = settings.ask(&health.live).await;
            liveness.note(alive.is_ok());
            if let Err(reason) = alive
                && liveness.failures >= health.unhealthy_after.max(1)
            {
                let reason = format!("does not answer its liveness probe: {reason}");
                let input = Input::NotLive {
                    instance: instance.clone(),
                    reason,
                };
                if inbox.send(Message::Input(input)).await.is_err() {
                    return;
                }
            }
        }
        asked = asked.saturating_add(1);
        let eager = if asked < 20 { EAGER_FAST } else { EAGER };
        sleep(if passing {
            health.interval
        } else {
            health.interval.min(eager)
        })
        .await;
    }
}

#[derive(Debug, Default)]
struct Streak {
    passes: u32,
    failures: u32,
    ever: bool,
}

impl Streak {
    fn note(&mut self, passed: bool) {
        if passed {
            self.passes = self.passes.saturating_add(1);
            self.failures = 0;
            self.ever = true;
        } else {
            self.failures = self.failures.saturating_add(1);
            self.passes = 0;
        }
    }
}

impl Settings {
    async fn ask(&self, probe: &Probe) -> Result<(), String> {
        let Some(address) = self.address else {
            return Ok(());
        };
        let limit = self.health.timeout;
        let answer = match probe {
            Probe::None => return Ok(()),
            Probe::Tcp => timeout(limit, connect(address))
                .await
                .map(|done| done.map(|_| ())),
            Probe::Http { path } => Ok(ask_path(address, path, limit).await),
        };
        answer.unwrap_or_else(|_| Err(format!("no connection within {} ms", limit.as_millis())))
    }
}

async fn ask_path(address: SocketAddr, path: &str, limit: Duration) -> Result<(), String> {
    let answer = get(address, &address.to_string(), path, limit).await?;
    if answer.status.is_success() || answer.status.is_redirection() {
        return Ok(());
    }
    Err(format!("GET {path} answered {}", answer.status))
}
