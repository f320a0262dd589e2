//! Which store serves which name of the manifest, on this host, and what becomes of one that serves none any more.

use std::{collections::BTreeSet, sync::PoisonError, time::Duration};

use landfast_datastore::{DELAY_DEFAULT, Input, Rejected, Store};
use landfast_types::{ReleaseId, Scope, StoreName};
use tokio::time::sleep;

use super::{COLLECTION, CommandError, Stores, host, key};
use crate::{
    actions::{RETRY_FIRST, RETRY_MAX, chain},
    backups::Source,
    shared::Shared,
};

/// Who deletes a store that a switch has left.
const BY: &str = "restore switch";
/// How often it is looked whether the backups have moved on.
const ASK_EVERY: Duration = Duration::from_millis(500);

/// The store that instances of a release are given for a name of the manifest; without a release, whoever works beside them.
pub(crate) fn served_by(
    shared: &Shared,
    scope: &Scope,
    release: Option<ReleaseId>,
    name: &StoreName,
) -> StoreName {
    match shared.environment(scope) {
        Some(view) => view.state.served_by(release, name).clone(),
        None => name.clone(),
    }
}

/// Why a store may not be deleted although no manifest names it.
pub fn is_bound(shared: &Shared, scope: &Scope, store: &StoreName) -> Option<String> {
    let view = shared.environment(scope)?;
    let name = view.state.is_bound(store)?;
    let (_, newest) = view.bodies.last_key_value()?;
    let is_wanted = newest.spec.stores.contains_key(name) || view.state.rollout.is_some();
    is_wanted.then_some(())?;
    Some(format!(
        "store `{store}` serves `{name}` of the app, or is being moved to or from it"
    ))
}

/// Deletes a store that nobody is given any more, after the delay of a deletion: once what is done with its backups has ended.
pub(crate) async fn retire(shared: &Shared, scope: &Scope, name: &StoreName) {
    let is_backed_up = || {
        let views = shared.backups.of(scope);
        let mut logs = views.iter().filter(|view| view.source == Source::Log);
        logs.any(|view| view.server == *name)
    };
    while is_backed_up() {
        sleep(ASK_EVERY).await;
    }
    let mut wait = RETRY_FIRST;
    loop {
        let (by, delay) = (BY.to_owned(), DELAY_DEFAULT);
        let deleted = shared
            .stores
            .command(scope, name, Input::Delete { by, delay })
            .await;
        match deleted {
            Ok(_) => {
                tracing::info!(%scope, store = %name, "it serves nothing any more, and is deleted after its delay");
                return;
            }
            Err(CommandError::Rejected(Rejected::Deleted(..) | Rejected::Removing(_))) => return,
            // Right after a start it may only not be read back yet.
            Err(CommandError::Unknown) if is_gone(shared, scope, name) => return,
            Err(error) => {
                tracing::debug!(%scope, store = %name, error = chain(&error), "it is not deleted yet");
            }
        }
        sleep(wait).await;
        wait = (wait * 2).min(RETRY_MAX);
    }
}

/// Whether nothing is recorded of a store; not where that cannot be read.
pub(crate) fn is_gone(shared: &Shared, scope: &Scope, name: &StoreName) -> bool {
    matches!(shared.journal.get(COLLECTION, &key(scope, name)), Ok(None))
}

/// The store of a name, as it stands.
pub(crate) fn find(shared: &Shared, scope: &Scope, name: &StoreName) -> Option<Store> {
    let known = shared.stores.of(scope);
    let mut known = known.iter().map(|view| &view.store);
    known.find(|store| store.name == *name).cloned()
}

/// Removes what a restore has left that was to become a store and did not.
///
/// # Errors
/// A sentence.
pub(crate) fn remove_unborn(
    shared: &Shared,
    scope: &Scope,
    name: &StoreName,
) -> Result<(), String> {
    if !shared.stores.reserve(scope, name) {
        return Ok(());
    }
    let is_free = shared.stores.handle(scope, name).is_none() && is_gone(shared, scope, name);
    let removed = match is_free {
        true => host::remove_all(shared, scope, name),
        false => Ok(()),
    };
    shared.stores.release_name(scope, name);
    removed
}

/// Names that stores are to have which are being restored.
pub(super) type Reserved = BTreeSet<(Scope, StoreName)>;

impl Stores {
    /// Keeps a name for a store that is being restored; false where another restore has it.
    pub(crate) fn reserve(&self, scope: &Scope, name: &StoreName) -> bool {
        let mut reserved = self.reserved.lock().unwrap_or_else(PoisonError::into_inner);
        reserved.insert((scope.clone(), name.clone()))
    }

    pub(crate) fn release_name(&self, scope: &Scope, name: &StoreName) {
        let mut reserved = self.reserved.lock().unwrap_or_else(PoisonError::into_inner);
        reserved.remove(&(scope.clone(), name.clone()));
    }

    /// Nobody else sees to a store that was had back; false where somebody does.
    pub(crate) fn hold_lent(&self, scope: &Scope, name: &StoreName) -> bool {
        let mut lent = self.lent.lock().unwrap_or_else(PoisonError::into_inner);
        lent.insert((scope.clone(), name.clone()))
    }

    pub(crate) fn release_lent(&self, scope: &Scope, name: &StoreName) {
        let mut lent = self.lent.lock().unwrap_or_else(PoisonError::into_inner);
        lent.remove(&(scope.clone(), name.clone()));
    }

    pub(crate) fn is_reserved(&self, scope: &Scope, name: &StoreName) -> bool {
        let reserved = self.reserved.lock().unwrap_or_else(PoisonError::into_inner);
        reserved.contains(&(scope.clone(), name.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_kept_for_one_restore() {
        let (stores, name) = (Stores::default(), StoreName::new("noon").unwrap());
        let scope = Scope {
            app: "shop".parse().unwrap(),
            environment: "production".parse().unwrap(),
        };
        assert!(stores.reserve(&scope, &name) && stores.is_reserved(&scope, &name));
        assert!(!stores.reserve(&scope, &name));
        stores.release_name(&scope, &name);
        assert!(!stores.is_reserved(&scope, &name) && stores.reserve(&scope, &name));
    }
}
