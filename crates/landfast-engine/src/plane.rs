//! The data plane as the engine sees it, and the one hub that gives it snapshots.
//!
//! Each environment owns its part of the host's table. The hub joins all parts into one snapshot; it pushes
//! nothing before every environment was read from the journal, so a server that starts never takes another
//! app's routes away. A snapshot is confirmed when the proxy says that every new request uses it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use landfast_proxy::control::{ControlClient, ControlError};
use landfast_routing::snapshot::{
    Certificate, ProxyStats, ProxyStatus, Route, SNAPSHOT_VERSION, Service, Snapshot,
};
use landfast_types::{Fence, Generation, Scope, ServiceKey};
use tokio::time::sleep;

/// How often a proxy that does not answer is asked again.
const RETRY_EVERY: Duration = Duration::from_millis(200);

/// Why the data plane did not take a snapshot or did not answer.
#[derive(Debug, thiserror::Error)]
pub enum PlaneError {
    /// A newer server has taken over: this one must not act any more.
    #[error("a newer server gave the proxy order {seen}; this one's {refused} is refused")]
    Replaced { refused: Fence, seen: String },
    #[error("the proxy does not answer: {0}")]
    Unreachable(String),
}

/// Takes snapshots and says what became of them.
#[async_trait]
pub trait DataPlane: Send + Sync + 'static {
    /// Puts a snapshot into force; returns once every new request uses it.
    async fn put(&self, snapshot: &Snapshot) -> Result<ProxyStatus, PlaneError>;
    /// What is in force, and what is in flight.
    async fn status(&self) -> Result<ProxyStatus, PlaneError>;
    /// What was measured.
    async fn stats(&self) -> Result<ProxyStats, PlaneError>;
    /// The same for Prometheus.
    async fn metrics(&self) -> Result<String, PlaneError>;
}

#[async_trait]
impl DataPlane for ControlClient {
    async fn put(&self, snapshot: &Snapshot) -> Result<ProxyStatus, PlaneError> {
        let refused = snapshot.fence;
        self.put_snapshot(snapshot)
            .await
            .map_err(|error| plane_error(&error, refused))
    }

    async fn status(&self) -> Result<ProxyStatus, PlaneError> {
        self.status()
            .await
            .map_err(|error| plane_error(&error, Fence::default()))
    }

    async fn stats(&self) -> Result<ProxyStats, PlaneError> {
        self.stats()
            .await
            .map_err(|error| plane_error(&error, Fence::default()))
    }

    async fn metrics(&self) -> Result<String, PlaneError> {
        self.metrics()
            .await
            .map_err(|error| plane_error(&error, Fence::default()))
    }
}

fn plane_error(error: &ControlError, refused: Fence) -> PlaneError {
    if matches!(error, ControlError::Stale { .. }) {
        return PlaneError::Replaced {
            refused,
            seen: error.to_string(),
        };
    }
    PlaneError::Unreachable(error.to_string())
}

/// One environment's part of the table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Part {
    /// The engine's revision of the table this part carries.
    pub revision: u64,
    pub routes: Vec<Route>,
    pub services: BTreeMap<ServiceKey, Service>,
    pub certificates: Vec<Certificate>,
}

/// Joins the parts of all environments and gives them to the data plane.
pub struct Hub {
    plane: Arc<dyn DataPlane>,
    generation: Generation,
    parts: Mutex<BTreeMap<Scope, Part>>,
    pushed: tokio::sync::Mutex<Pushed>,
}

#[derive(Default)]
struct Pushed {
    revision: u64,
    parts: BTreeMap<Scope, Part>,
}

impl Hub {
    /// A hub for one life of the server.
    pub fn new(plane: Arc<dyn DataPlane>, generation: Generation) -> Self {
        Self {
            plane,
            generation,
            parts: Mutex::default(),
            pushed: tokio::sync::Mutex::default(),
        }
    }

    /// Sets a part without giving it to the proxy yet: for the start.
    pub fn set(&self, scope: &Scope, part: Part) {
        self.lock().insert(scope.clone(), part);
    }

    /// The part of an environment that was set last.
    pub fn part(&self, scope: &Scope) -> Option<Part> {
        self.lock().get(scope).cloned()
    }

    /// Sets a part and returns its revision once the proxy uses it or a newer one of the same environment.
    /// Waits for a proxy that is away.
    ///
    /// # Errors
    /// [`PlaneError::Replaced`] when another server has taken over.
    pub async fn publish(&self, scope: &Scope, part: Part) -> Result<u64, PlaneError> {
        self.set(scope, part);
        loop {
            match self.push(scope).await {
                Ok(revision) => return Ok(revision),
                Err(replaced @ PlaneError::Replaced { .. }) => return Err(replaced),
                Err(PlaneError::Unreachable(reason)) => {
                    tracing::debug!(%scope, reason, "the proxy is away");
                    sleep(RETRY_EVERY).await;
                }
            }
        }
    }

    /// Gives the joined table to the proxy, unless it already has this environment's newest part.
    async fn push(&self, scope: &Scope) -> Result<u64, PlaneError> {
        let mut pushed = self.pushed.lock().await;
        let parts = self.lock().clone();
        let wanted = parts.get(scope);
        if wanted.is_some() && pushed.parts.get(scope) == wanted {
            return Ok(wanted.map_or(0, |part| part.revision));
        }
        pushed.revision += 1;
        let fence = Fence {
            generation: self.generation,
            revision: pushed.revision,
        };
        let status = self.plane.put(&join(fence, &parts)).await?;
        for problem in &status.problems {
            tracing::warn!(problem, "the proxy could not use all of the table");
        }
        let revision = parts.get(scope).map_or(0, |part| part.revision);
        pushed.parts = parts;
        Ok(revision)
    }

    /// What the proxy says of itself.
    ///
    /// # Errors
    /// [`PlaneError::Unreachable`] when it does not answer.
    pub async fn status(&self) -> Result<ProxyStatus, PlaneError> {
        self.plane.status().await
    }

    /// What the proxy measured.
    ///
    /// # Errors
    /// [`PlaneError::Unreachable`] when it does not answer.
    pub async fn stats(&self) -> Result<ProxyStats, PlaneError> {
        self.plane.stats().await
    }

    /// The proxy's metrics for Prometheus.
    ///
    /// # Errors
    /// [`PlaneError::Unreachable`] when it does not answer.
    pub async fn metrics(&self) -> Result<String, PlaneError> {
        self.plane.metrics().await
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Scope, Part>> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn join(fence: Fence, parts: &BTreeMap<Scope, Part>) -> Snapshot {
    let mut snapshot = Snapshot {
        version: SNAPSHOT_VERSION,
        fence,
        ..Snapshot::default()
    };
    for part in parts.values() {
        snapshot.routes.extend(part.routes.iter().cloned());
        snapshot.services.extend(part.services.clone());
        snapshot
            .certificates
            .extend(part.certificates.iter().cloned());
    }
    snapshot
}
