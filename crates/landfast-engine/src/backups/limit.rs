//! What waits for the archive, and writes that stop when it is too much.
//!
//! Seen from the server and the spool alone, so that it holds where the repository cannot be reached at all, not even at a start.

use std::{fs, path::Path, sync::Arc, time::Duration};

use landfast_backup::Writes;
use landfast_datastore::Phase;
use landfast_types::{Scope, StoreName};
use tokio::{
    sync::{mpsc, watch},
    time::sleep,
};

use super::work;
use crate::{shared::Shared, stores};

/// How often it is looked, and how long who writes all the same may do so.
const LOOK: Duration = Duration::from_millis(500);

/// What was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    /// Bytes that are not in the archive yet, roughly: one segment may be counted twice.
    pub(super) waiting: u64,
    /// What the server goes by.
    pub(super) writes: Writes,
}

/// Looks, and has the server go by what is wanted, until nobody listens.
pub(super) async fn watch(
    shared: Arc<Shared>,
    (scope, server): (Scope, StoreName),
    mut wanted: watch::Receiver<Writes>,
    seen: mpsc::Sender<Seen>,
) {
    let mut is_first = true;
    loop {
        let writes = *wanted.borrow_and_update();
        match look(&shared, &scope, &server, (writes, is_first)).await {
            Ok(Some(waiting)) => {
                is_first = false;
                if seen.send(Seen { waiting, writes }).await.is_err() {
                    return;
                }
            }
            Ok(None) => {}
            Err(reason) => {
                // It may have been told, and not have heard it.
                is_first = true;
                tracing::debug!(%scope, store = %server, reason, "nobody knows how much waits for the archive");
            }
        }
        tokio::select! {
            () = sleep(LOOK) => {}
            changed = wanted.changed() => if changed.is_err() { return },
        }
    }
}

async fn look(
    shared: &Arc<Shared>,
    scope: &Scope,
    server: &StoreName,
    (writes, is_first): (Writes, bool),
) -> Result<Option<u64>, String> {
    let Some(store) = stores::find_store(shared, scope, server) else {
        return Ok(None);
    };
    let is_news = stores::allow_writes(shared, &store, writes).await?;
    let held = (writes, is_news || is_first);
    let kept = stores::hold_writes(shared, &store, held, super::keeper::SLOT).await?;
    let spool = work::scratch(shared, scope, server).join("w");
    Ok(kept.map(|kept| kept.saturating_add(spooled(&spool))))
}

/// Lets an app write again, whose server is not looked after any more. Of a store that is gone nothing is left to do.
///
/// # Errors
/// A sentence.
pub(super) async fn lift(
    shared: &Arc<Shared>,
    scope: &Scope,
    server: &StoreName,
) -> Result<(), String> {
    let Some(store) = stores::find_store(shared, scope, server) else {
        return match stores::is_gone(shared, scope, server) {
            true => Ok(()),
            false => Err("it is not read back yet".to_owned()),
        };
    };
    // One that starts may have read what was there.
    if let Phase::Starting { .. } = store.phase {
        return Err("it starts just now".to_owned());
    }
    look(shared, scope, server, (Writes::Free, true))
        .await
        .map(drop)
}

/// Closed segments that wait to be shipped.
fn spooled(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let is_segment =
        |name: &str| name.len() == 24 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    let closed = entries.filter(|entry| entry.file_name().to_str().is_some_and(is_segment));
    closed
        .filter_map(|entry| Some(entry.metadata().ok()?.len()))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_segments_that_are_closed() {
        let folder = tempfile::tempdir().unwrap();
        for name in [
            "000000010000000000000002",
            "00000001000000000000000A",
            "00000001000000000000000B.partial",
            "00000002.history",
            "pgpass",
        ] {
            fs::write(folder.path().join(name), [0; 100]).unwrap();
        }
        assert_eq!(spooled(folder.path()), 200);
        assert_eq!(spooled(&folder.path().join("none")), 0);
    }
}
