//! A PostgreSQL whose app does not write for a while.
//!
//! What its server goes by lies beside its data, so that a server that is started again goes by it from its first moment, and no backup
//! holds it. A setting alone is overruled by whoever asks for a transaction that writes (some drivers always do), so sessions that have
//! written are ended as long as it lasts. Landfast's own login is let through.

use std::{fs, io, os::unix::fs::PermissionsExt as _, path::Path, sync::Arc};

use landfast_backup::Writes;
use landfast_datastore::{Phase, Places, Store, read_only_settings};
use landfast_datastore_client::Session;

use super::host;
use crate::{actions::chain, shared::Shared};

/// Says where the server reads it whether its app may write; true where that is news for one that runs. Done again it does the same,
/// and mends what was not done to its end.
///
/// # Errors
/// A sentence.
pub(crate) async fn allow_writes(
    shared: &Arc<Shared>,
    store: &Store,
    writes: Writes,
) -> Result<bool, String> {
    let places = host::places(shared, &store.scope, &store.name);
    let _alone = shared.stores.configure(&store.scope, &store.name).await;
    let settings = places.stopped_writes();
    let has_changed = told(&places)? != writes;
    if has_changed {
        match settings_of(writes) {
            Some(text) => write(&settings, &text),
            None => fs::remove_file(&settings),
        }
        .map_err(|error| failed(&settings, &error))?;
    }
    // The others are configured when they start.
    if !matches!(store.phase, Phase::Ready { .. }) {
        return Ok(has_changed);
    }
    Ok(host::mend(shared, store).await? || has_changed)
}

/// What the server of a store is told.
///
/// # Errors
/// A sentence.
pub(crate) fn told(places: &Places) -> Result<Writes, String> {
    let path = places.stopped_writes();
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Writes::Free),
        Err(error) => return Err(format!("failed to read `{}`: {error}", path.display())),
    };
    match settings_of(Writes::Closed).as_ref() == Some(&text) {
        true => Ok(Writes::Closed),
        false => Ok(Writes::ReadOnly),
    }
}

fn settings_of(writes: Writes) -> Option<String> {
    match writes {
        Writes::Free => None,
        Writes::ReadOnly => Some(read_only_settings(false)),
        Writes::Closed => Some(read_only_settings(true)),
    }
}

/// Has a server that runs go by it, ends whom it concerns, and gives how many bytes of its log are kept for a slot. `None` where it
/// does not run. A session that is there is used, and left for the next time where nothing went wrong.
///
/// # Errors
/// A sentence.
pub(crate) async fn hold_writes(
    shared: &Shared,
    store: &Store,
    session: &mut Option<Session>,
    (writes, is_news): (Writes, bool),
    slot: &str,
) -> Result<Option<u64>, String> {
    if !matches!(store.phase, Phase::Ready { .. }) {
        *session = None;
        return Ok(None);
    }
    let mut open = match session.take() {
        Some(open) => open,
        None => host::connect(shared, store).await?,
    };
    if is_news {
        open.reload().await.map_err(|error| chain(&error))?;
        // A file that it cannot read leaves it as it was.
        let goes_by = open.goes_by(writes != Writes::Free, writes == Writes::Closed);
        if !goes_by.await.map_err(|error| chain(&error))? {
            let log = "its server was told whether its app may write, and does not go by it; see the server's log";
            return Err(log.to_owned());
        }
    }
    if writes != Writes::Free {
        let ended = open.end_others(writes == Writes::Closed).await;
        let ended = ended.map_err(|error| chain(&error))?;
        if ended > 0 {
            let (scope, store) = (&store.scope, &store.name);
            tracing::warn!(%scope, %store, ended, "writes are stopped: sessions were ended");
        }
    }
    let kept = open.kept_for(slot).await.map_err(|error| chain(&error))?;
    *session = Some(open);
    Ok(Some(kept))
}

/// Whole or not at all, and readable for the server's user.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let next = path.with_extension("next");
    fs::write(&next, text)?;
    fs::set_permissions(&next, fs::Permissions::from_mode(0o644))?;
    fs::File::open(&next)?.sync_all()?;
    fs::rename(&next, path)?;
    fs::File::open(path.parent().unwrap_or(path))?.sync_all()
}

fn failed(path: &Path, error: &io::Error) -> String {
    format!("failed to write `{}`: {error}", path.display())
}
