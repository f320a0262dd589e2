//! What every driver of a host shares.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use landfast_journal::Journal;
use landfast_store::Store;
use landfast_target::Target;
use landfast_types::{Generation, ImageId, InstanceId, Scope, StoreName, Timestamp};
use tokio::sync::watch;

use crate::{
    backups::Backups, clock::Clock, driver::View, plane::Hub, secrets::SecretKeeper, stores::Stores,
};

/// The outside world, and where things lie on this host.
pub struct Shared {
    pub journal: Arc<dyn Journal>,
    pub target: Arc<dyn Target>,
    pub hub: Arc<Hub>,
    pub store: Arc<Store>,
    pub clock: Arc<dyn Clock>,
    pub secrets: SecretKeeper,
    pub stores: Stores,
    pub backups: Backups,
    /// This binary, where processes that are started later find it.
    pub executable: PathBuf,
    pub generation: Generation,
    pub folders: Folders,
    pub controls: Controls,
    /// Moves on with each record, so that readers of events wake up.
    pub position: watch::Sender<u64>,
    /// What every environment of this host looks like now.
    pub views: Mutex<BTreeMap<Scope, watch::Receiver<Arc<View>>>>,
    /// Numbers of job runs are given out by one at a time.
    pub(crate) job_index: Mutex<()>,
    /// Images that were resolved for a deploy that has not come yet, and until when they are kept for it.
    pub(crate) held_images: Mutex<BTreeMap<ImageId, Timestamp>>,
    /// Set when another server has taken over; nothing is recorded or done after that.
    pub replaced: watch::Sender<Option<String>>,
}

impl Shared {
    pub(crate) fn held_images(&self) -> std::sync::MutexGuard<'_, BTreeMap<ImageId, Timestamp>> {
        let held = self.held_images.lock();
        held.unwrap_or_else(PoisonError::into_inner)
    }

    /// One environment as it is now, when it was read back.
    pub fn environment(&self, scope: &Scope) -> Option<Arc<View>> {
        let views = self.views.lock().unwrap_or_else(PoisonError::into_inner);
        views.get(scope).map(|view| view.borrow().clone())
    }

    /// Every environment of this host as it is now.
    pub fn environments(&self) -> Vec<Arc<View>> {
        let views = self.views.lock().unwrap_or_else(PoisonError::into_inner);
        views.values().map(|view| view.borrow().clone()).collect()
    }
}

/// Where things lie.
#[derive(Debug, Clone)]
pub struct Folders {
    pub state: PathBuf,
    pub run: PathBuf,
}

impl Folders {
    /// Where an instance's output is kept.
    pub fn logs(&self, scope: &Scope, instance: &InstanceId) -> PathBuf {
        self.logs_of(scope).join(instance.as_str())
    }

    /// Where the output of all instances of an environment is kept.
    pub fn logs_of(&self, scope: &Scope) -> PathBuf {
        self.state
            .join("logs")
            .join(scope.app.as_str())
            .join(scope.environment.as_str())
    }

    /// Where the account and the certificates that came by ACME are kept.
    pub fn certificates(&self) -> PathBuf {
        let folder = self.state.join("certificates");
        std::path::absolute(&folder).unwrap_or(folder)
    }

    /// Where everything of a managed data store lies.
    pub fn store(&self, scope: &Scope, name: &StoreName) -> PathBuf {
        let app = self.state.join("stores").join(scope.app.as_str());
        app.join(scope.environment.as_str()).join(name.as_str())
    }

    /// Where a volume lies that the manifest gives no path.
    pub fn volume(&self, scope: &Scope, name: &str) -> PathBuf {
        let app = self.state.join("volumes").join(scope.app.as_str());
        app.join(scope.environment.as_str()).join(name)
    }
}

/// Switches of proofs and tests: each of the first two takes away one protection, to show that the loss judge is not blind. Never on in
/// normal use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Controls {
    /// Ends an instance without waiting until the proxy has confirmed and drained it.
    pub drain_confirmation_off: bool,
    /// Takes an instance for ready as soon as it runs.
    pub health_gate_off: bool,
    /// A helper of a store that makes no progress is ended after this instead.
    pub helper_patience: Option<Duration>,
}

/// How long a record that the disk did not take is kept before it is tried again.
pub(crate) const DISK_RETRY: Duration = Duration::from_secs(1);
