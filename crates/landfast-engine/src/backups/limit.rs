//! What waits for the archive, and writes that stop when it is too much.
//!
//! Seen from the server and the spool alone, so that it holds where the repository cannot be reached at all, not even at a start.

use std::{fs, path::Path, sync::Arc, time::Duration};

use landfast_backup::Writes;
use landfast_datastore::Phase;
use landfast_datastore_client::Session;
use landfast_types::{Scope, StoreName};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep},
};

use super::work;
use crate::{client::now, shared::Shared, stores};

/// How often it is looked, and how long who writes all the same may do so.
const LOOK: Duration = Duration::from_millis(500);
/// The longest where little waits.
const LOOK_MAX: Duration = Duration::from_secs(5);
/// Bytes a second that no database is thought to write into its log.
const FASTEST: u64 = 256 << 20;
/// So many looks that fail in a row are told, and looks that fail for so long: one that nobody answers takes as long as an answer may.
const FAILED_MAX: u32 = 20;
const FAILED_FOR: Duration = Duration::from_secs(30);

/// What was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    /// Bytes that are not in the archive yet, roughly: one segment may be counted twice.
    pub(super) waiting: u64,
    /// What the server goes by.
    pub(super) writes: Writes,
}

/// What a look came to: nothing where the server does not run, or why it came to nothing again and again.
pub(super) type Look = Result<Option<Seen>, String>;

/// Looks, and has the server go by what is wanted, until nobody listens.
pub(super) async fn watch(
    shared: Arc<Shared>,
    (scope, server): (Scope, StoreName),
    limit: u64,
    mut wanted: watch::Receiver<Writes>,
    looks: mpsc::Sender<Look>,
) {
    let mut session = None;
    let (mut is_first, mut failing) = (true, Failing::default());
    loop {
        let begun = now();
        let writes = *wanted.borrow_and_update();
        let looked = look(&shared, &scope, &server, &mut session, (writes, is_first)).await;
        let wait = match &looked {
            Ok(Some(waiting)) if writes == Writes::Free => until_next(*waiting, limit),
            Ok(_) | Err(_) => LOOK,
        };
        let told = match looked {
            Ok(waiting) => {
                (is_first, failing) = (is_first && waiting.is_none(), Failing::default());
                Some(Ok(waiting.map(|waiting| Seen { waiting, writes })))
            }
            Err(reason) => {
                // It may have been told, and not have heard it.
                is_first = true;
                tracing::debug!(%scope, store = %server, reason, "nobody knows how much waits for the archive");
                failing.again(begun, now()).then_some(Err(reason))
            }
        };
        if let Some(told) = told
            && looks.send(told).await.is_err()
        {
            return;
        }
        tokio::select! {
            () = sleep(wait) => {}
            changed = wanted.changed() => if changed.is_err() { return },
        }
    }
}

/// Looks in a row that failed.
#[derive(Debug, Default)]
struct Failing {
    count: u32,
    since: Option<Instant>,
}

impl Failing {
    /// One more, from then to now; whether it is told.
    fn again(&mut self, begun: Instant, now: Instant) -> bool {
        self.count += 1;
        let since = *self.since.get_or_insert(begun);
        self.count >= FAILED_MAX || now.duration_since(since) >= FAILED_FOR
    }
}

/// Until half of the limit can wait, at the fastest.
fn until_next(waiting: u64, limit: u64) -> Duration {
    let left = (limit / 2).saturating_sub(waiting);
    Duration::from_millis(left / (FASTEST / 1_000)).clamp(LOOK, LOOK_MAX)
}

async fn look(
    shared: &Arc<Shared>,
    scope: &Scope,
    server: &StoreName,
    session: &mut Option<Session>,
    (writes, is_first): (Writes, bool),
) -> Result<Option<u64>, String> {
    let Some(store) = stores::find_store(shared, scope, server) else {
        return Ok(None);
    };
    let is_news = stores::allow_writes(shared, &store, writes).await?;
    let held = (writes, is_news || is_first);
    let slot = super::keeper::SLOT;
    let kept = stores::hold_writes(shared, &store, session, held, slot).await?;
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
    look(shared, scope, server, &mut None, (Writes::Free, true))
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
    fn the_more_waits_the_sooner_it_is_looked_again() {
        const GIB: u64 = 1 << 30;
        assert_eq!(until_next(0, 4 * GIB), LOOK_MAX);
        let near = until_next(3 * GIB / 2, 4 * GIB);
        assert!(near > LOOK && near < LOOK_MAX, "{near:?}");
        for (waiting, limit) in [(2 * GIB, 4 * GIB), (5 * GIB, 4 * GIB), (0, 64 << 20)] {
            assert_eq!(until_next(waiting, limit), LOOK);
        }
    }

    #[test]
    fn looks_that_fail_are_told_after_so_many_or_after_so_long() {
        let begun = now();
        let mut failing = Failing::default();
        for n in 1..FAILED_MAX {
            assert!(!failing.again(begun + LOOK * (n - 1), begun + LOOK * n));
        }
        assert!(failing.again(begun + LOOK * 19, begun + LOOK * 20));

        // Ten seconds each: the first began before it was known to fail.
        let ten = FAILED_FOR / 3;
        let mut hanging = Failing::default();
        assert!(!hanging.again(begun, begun + ten));
        assert!(!hanging.again(begun + ten, begun + ten * 2));
        assert!(hanging.again(begun + ten * 2, begun + ten * 3));
    }

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
