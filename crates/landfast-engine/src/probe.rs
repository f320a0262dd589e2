//! Asks an instance whether it is ready and whether it is alive, for as long as it may serve.
//!
//! The check of an image is run by Docker, which is asked what it found. A Docker that does not answer changes nothing.
//!
//! Only what changes matters to the engine; an unchanged answer is repeated now and then, so that one that got
//! lost does no harm.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use landfast_rollout::Input;
use landfast_spec::{HealthSpec, Probe, ServiceSpec};
use landfast_target::{ImageHealth, InstanceRef, Target};
use landfast_types::InstanceId;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

use crate::{
    client::{connect, get, now},
    driver::Message,
    shared::Controls,
};

/// An answer is repeated to the engine after so many equal ones.
const REPEAT_EVERY: u32 = 15;
/// Another reason why an instance is not ready is told at most so often.
const REASON_EVERY: Duration = Duration::from_secs(1);
/// While an instance is not ready yet it is asked more often, so that a rollout does not wait for a tick.
const EAGER: Duration = Duration::from_millis(200);
const EAGER_FAST: Duration = Duration::from_millis(50);

/// How an instance is asked.
pub(crate) struct Settings {
    health: HealthSpec,
    address: Option<SocketAddr>,
    always_ready: bool,
    container: Option<Container>,
}

/// Who knows what the check of an image found.
struct Container {
    target: Arc<dyn Target>,
    id: InstanceRef,
    /// What it found last.
    found: Mutex<Result<(), String>>,
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
            container: None,
        }
    }

    /// Asks the target too, where the image's own check is wanted.
    pub(crate) fn of_container(self, target: &Arc<dyn Target>, id: InstanceRef) -> Self {
        let is_wanted = [&self.health.ready, &self.health.live].contains(&&Probe::Image);
        let container = is_wanted.then(|| Container {
            target: Arc::clone(target),
            id,
            found: Mutex::new(Err("the check of the image has not run yet".into())),
        });
        Self { container, ..self }
    }
}

impl Container {
    async fn ask(&self) -> Result<(), String> {
        if let Ok(Some(observed)) = self.target.observe(&self.id).await {
            let found = match observed.health {
                Some(ImageHealth::Passing) => Ok(()),
                Some(ImageHealth::Starting) => {
                    Err("the check of the image has not passed yet".to_owned())
                }
                Some(ImageHealth::Failing { output }) if output.is_empty() => {
                    Err("the check of the image fails".to_owned())
                }
                Some(ImageHealth::Failing { output }) => {
                    Err(format!("the check of the image fails: {output}"))
                }
                Some(ImageHealth::NoCheck) | None => {
                    Err("the image brings no check (HEALTHCHECK)".to_owned())
                }
            };
            *self.found.lock().unwrap_or_else(PoisonError::into_inner) = found;
        }
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.clone()
    }
}

/// Probes until it is aborted.
pub(crate) async fn run(inbox: mpsc::Sender<Message>, instance: InstanceId, settings: Settings) {
    let mut readiness = Streak::default();
    let mut liveness = Streak::default();
    let mut told: Option<(bool, u32)> = None;
    let mut reasons = Reasons::default();
    let health = &settings.health;
    let mut asked = 0_u32;
    loop {
        let ready = if settings.always_ready {
            Ok(())
        } else {
            settings.ask(&health.ready).await
        };
        readiness.note(ready.is_ok());
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
        if let Err(reason) = ready
            && !passing
            && reasons.is_news(&reason, now())
        {
            let input = Input::NotReady {
                instance: instance.clone(),
                reason,
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

/// Which reasons were told: each is recorded, so one that comes and goes is not told at every probe.
#[derive(Debug, Default)]
struct Reasons {
    told: Option<(String, Instant)>,
}

impl Reasons {
    fn is_news(&mut self, reason: &str, now: Instant) -> bool {
        let is_old = |(told, at): &(String, Instant)| {
            told == reason || now.saturating_duration_since(*at) < REASON_EVERY
        };
        if self.told.as_ref().is_some_and(is_old) {
            return false;
        }
        self.told = Some((reason.to_owned(), now));
        true
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
        if let (Probe::Image, Some(container)) = (probe, &self.container) {
            return container.ask().await;
        }
        let Some(address) = self.address else {
            return Ok(());
        };
        let limit = self.health.timeout;
        let answer = match probe {
            Probe::None | Probe::Image => return Ok(()),
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
    Err(format!("GET {path} answered {}", answer.status.as_u16()))
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    fn settings(address: SocketAddr) -> Settings {
        let text = r#"
app = "shop"
[services.api]
artifact = "program"
command = ["./program"]
port = 80
health = { ready = "http:/ready", interval = "100ms" }
"#;
        let environment = "production".parse().unwrap();
        let spec = landfast_spec::parse("landfast.toml", text, &environment).spec;
        let spec = spec.unwrap();
        let service = spec.services.values().next().unwrap();
        Settings::new(service, Some(address), &Controls::default())
    }

    /// What the engine is told of an instance that is not ready, until it is.
    async fn reason_of(inbox: &mut mpsc::Receiver<Message>) -> String {
        loop {
            match inbox.recv().await.unwrap() {
                Message::Input(Input::NotReady { reason, .. }) => return reason,
                Message::Input(_) | Message::Command { .. } => {}
            }
        }
    }

    #[tokio::test]
    async fn a_failing_readiness_probe_says_why() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let (sender, mut inbox) = mpsc::channel(64);
        let id = InstanceId::new("api", landfast_types::ReleaseId(1), 1);
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(run(sender, id, settings(address)));
        let refused = reason_of(&mut inbox).await;
        assert!(
            refused.contains("refused") && refused.contains(&address.to_string()),
            "{refused}"
        );

        let listener = TcpListener::bind(address).await.unwrap();
        tasks.spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = [0; 1_024];
                drop(stream.read(&mut head).await);
                let answer = b"HTTP/1.1 503 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                drop(stream.write_all(answer).await);
            }
        });
        assert_eq!(reason_of(&mut inbox).await, "GET /ready answered 503");
    }

    #[test]
    fn a_reason_that_comes_and_goes_is_told_once_a_second() {
        let mut reasons = Reasons::default();
        let start = now();
        let at = |millis| start + Duration::from_millis(millis);
        assert!(reasons.is_news("refused", at(0)));
        assert!(!reasons.is_news("refused", at(5_000)));
        assert!(reasons.is_news("503", at(5_001)));
        assert!(!reasons.is_news("refused", at(5_500)));
        assert!(reasons.is_news("refused", at(6_001)));
    }
}
