//! What a keeper still owed that died when nobody wanted its backups any more: servers that let their apps write, and keep no WAL.

use std::{sync::Arc, time::Duration};

use landfast_journal::Document;
use landfast_types::{Scope, StoreName};
use tokio::time::sleep;

use super::{
    super::{
        Source, limit,
        record::{Book, COLLECTION},
        wanted,
    },
    RETRY_MAX,
    begin::forget,
};
use crate::{
    actions::{RETRY_FIRST, chain},
    shared::Shared,
    stores,
};

const PAGE: usize = 1_000;
/// How often it is looked whether an environment was read back.
const ASK_EVERY: Duration = Duration::from_secs(2);

/// One task for each record of a store, so that none waits for the server of another.
pub(in crate::backups) async fn sweep(shared: Arc<Shared>) {
    let mut after = None::<String>;
    loop {
        let (owner, from) = (Arc::clone(&shared), after.clone());
        let list = move || owner.journal.list(COLLECTION, from.as_deref(), PAGE);
        let listed = tokio::task::spawn_blocking(list).await;
        let page = match listed.map(|listed| listed.map_err(|error| chain(&error))) {
            Ok(Ok(page)) => page,
            Ok(Err(reason)) => {
                tracing::error!(reason, "the records of backups cannot be read");
                sleep(RETRY_MAX).await;
                continue;
            }
            Err(_) => return,
        };
        after = page.last().map(|last| last.key.clone());
        let is_last = page.len() < PAGE;
        for document in page {
            if let Some((scope, store)) = named(&document.key) {
                let settle = settle(Arc::clone(&shared), scope, store, document);
                shared.stores.spawn(settle);
            }
        }
        if is_last {
            return;
        }
    }
}

/// What has a log, and only that, goes by `APP/ENVIRONMENT/STORE`.
fn named(key: &str) -> Option<(Scope, StoreName)> {
    let mut parts = key.split('/');
    let scope = Scope {
        app: parts.next()?.parse().ok()?,
        environment: parts.next()?.parse().ok()?,
    };
    let store = StoreName::new(parts.next()?).ok()?;
    parts.next().is_none().then_some((scope, store))
}

async fn settle(shared: Arc<Shared>, scope: Scope, name: StoreName, document: Document) {
    let Ok(book) = serde_json::from_slice::<Book>(&document.body) else {
        return;
    };
    while shared.environment(&scope).is_none() {
        sleep(ASK_EVERY).await;
    }
    let server = book.server.clone().unwrap_or_else(|| name.clone());
    let mut owed: Vec<StoreName> = book.owing().cloned().collect();
    if !owed.contains(&server) {
        owed.push(server.clone());
    }
    for owed in owed {
        let mut wait = RETRY_FIRST;
        loop {
            // Its keeper sees to all of it.
            if is_wanted(&shared, &scope, &name) {
                return;
            }
            if is_archived(&shared, &scope, &owed) {
                break;
            }
            match release(&shared, &scope, &owed, owed == server).await {
                Ok(()) => break,
                Err(reason) => {
                    tracing::warn!(%scope, store = %owed, reason, "what was archived of it once is not let go of yet");
                }
            }
            sleep(wait).await;
            wait = (wait * 2).min(RETRY_MAX);
        }
    }
    if is_wanted(&shared, &scope, &name) {
        return;
    }
    let mut settled = book.clone();
    settled.settle();
    if settled != book {
        let body = serde_json::to_vec(&settled).expect("it has text keys");
        let (key, revision) = (document.key, document.revision);
        let put = move || shared.journal.put(COLLECTION, &key, Some(revision), body);
        if let Ok(Err(error)) = tokio::task::spawn_blocking(put).await {
            tracing::warn!(%scope, store = %name, error = chain(&error), "that it is let go of is not written down; the next start looks again");
        }
    }
}

/// Whether there is, or is to be, a keeper of that name.
fn is_wanted(shared: &Arc<Shared>, scope: &Scope, name: &StoreName) -> bool {
    let view = shared.environment(scope);
    let newest = view.as_ref().and_then(|view| view.bodies.last_key_value());
    let is_named = newest.is_some_and(|(_, body)| {
        let mut all = wanted(shared, scope, &body.spec).into_iter();
        all.any(|(known, source, _)| known == name && source == Source::Log)
    });
    is_named || shared.backups.handle(scope, name).is_some()
}

/// Whether a store serves another name by now that is backed up.
fn is_archived(shared: &Arc<Shared>, scope: &Scope, server: &StoreName) -> bool {
    let view = shared.environment(scope);
    let name = view.as_ref().and_then(|view| view.state.serves(server));
    name.is_some_and(|name| is_wanted(shared, scope, name))
}

async fn release(
    shared: &Arc<Shared>,
    scope: &Scope,
    server: &StoreName,
    has_slot: bool,
) -> Result<(), String> {
    limit::lift(shared, scope, server).await?;
    match stores::find_store(shared, scope, server) {
        Some(store) if has_slot => forget(shared, &store).await,
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dumps_and_snapshots_have_no_server_to_let_go_of() {
        assert!(named("shop/production/main").is_some());
        assert!(named("shop/production/_dumps/main").is_none());
        assert!(named("shop/production").is_none());
    }
}
