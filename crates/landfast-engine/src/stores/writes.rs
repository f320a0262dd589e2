//! A PostgreSQL whose app does not write for a while.
//!
//! What its server goes by lies beside its data, so that a server that is started again goes by it from its first moment, and no backup
//! holds it. A setting alone is overruled by whoever asks for a transaction that writes (some drivers always do), so sessions that have
//! written are ended as long as it lasts. Landfast's own login is let through.

use std::{fs, io, os::unix::fs::PermissionsExt as _, path::Path, sync::Arc};

use landfast_backup::Writes;
use landfast_datastore::{Login, Phase, Store, closed_access, read_only_settings};

use super::host;
use crate::{actions::chain, shared::Shared};

/// Says where the server reads it whether its app may write; true where that is news. Done again it does the same.
///
/// # Errors
/// A sentence.
pub(crate) async fn allow_writes(
    shared: &Arc<Shared>,
    store: &Store,
    writes: Writes,
) -> Result<bool, String> {
    let places = host::places(shared, &store.scope, &store.name);
    let (settings, access) = (
        places.stopped_writes(),
        places.configuration().join("pg_hba.conf"),
    );
    let wanted = match writes {
        Writes::Free => None,
        Writes::ReadOnly | Writes::Closed => Some(read_only_settings()),
    };
    let closed = closed_access(&Login::Administrator.to_string());
    let is_closed = read(&access)?.as_deref() == Some(closed.as_str());
    let has_changed = read(&settings)? != wanted;
    if has_changed {
        match &wanted {
            Some(text) => write(&settings, text),
            None => fs::remove_file(&settings),
        }
        .map_err(|error| failed(&settings, &error))?;
    }
    if has_changed || (is_closed && writes != Writes::Closed) {
        // One of an older Landfast does not look there, and one that was closed is opened.
        host::reconfigure(shared, store).await?;
    }
    let closes = writes == Writes::Closed && (has_changed || !is_closed);
    if closes {
        write(&access, &closed).map_err(|error| failed(&access, &error))?;
    }
    Ok(has_changed || closes || (is_closed && writes != Writes::Closed))
}

/// Has a server that runs go by it, ends whom it concerns, and gives how many bytes of its log are kept for a slot. `None` where it
/// does not run.
///
/// # Errors
/// A sentence.
pub(crate) async fn hold_writes(
    shared: &Shared,
    store: &Store,
    (writes, is_news): (Writes, bool),
    slot: &str,
) -> Result<Option<u64>, String> {
    if !matches!(store.phase, Phase::Ready { .. }) {
        return Ok(None);
    }
    let mut session = host::connect(shared, store).await?;
    let held = async {
        if is_news {
            session.reload().await?;
        }
        if writes != Writes::Free {
            let ended = session.end_others(writes == Writes::Closed).await?;
            if ended > 0 {
                let (scope, store) = (&store.scope, &store.name);
                tracing::warn!(%scope, %store, ended, "writes are stopped: sessions were ended");
            }
        }
        session.kept_for(slot).await
    };
    held.await.map(Some).map_err(|error| chain(&error))
}

fn read(path: &Path) -> Result<Option<String>, String> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(path, &error)),
    }
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
