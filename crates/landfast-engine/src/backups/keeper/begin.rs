//! The beginning of a series, or of an archive and its archiver; and the end of what a server keeps for one.

use std::{path::Path, sync::Arc};

use landfast_backup_postgres::{Archive, WalArchiveConfig, WalArchiver, WalEvent, forget_slot};
use landfast_datastore::{Phase, Store};
use landfast_spec::RepositorySpec;
use landfast_types::{Scope, StoreName};
use tokio::sync::mpsc;

use super::{
    super::{Source, Wanted, WorkError, place, work},
    Open,
};
use crate::{actions::chain, shared::Shared, stores};

/// Closed segments that wait on this host while the repository is away, before the server keeps them.
const SPOOL_BYTES_MAX: u64 = 1 << 30;

/// The answer of a try to open the archive, and then to archive; dumps and snapshots have no archiver.
pub(super) struct Tried {
    pub(super) open: Option<Open>,
    pub(super) result: Result<Option<(WalArchiver, mpsc::UnboundedReceiver<WalEvent>)>, String>,
}

pub(super) async fn forget(shared: &Shared, store: &Store) -> Result<(), String> {
    let server = work::reach(shared, store)?;
    let forgotten = forget_slot(&server, SLOT).await;
    forgotten.map_err(|error| chain(&error))
}

/// The slot of a server that Landfast runs is Landfast's alone.
pub(in crate::backups) const SLOT: &str = "landfast";

pub(super) async fn begin(
    (shared, scope, name): (Arc<Shared>, Scope, StoreName),
    wanted: Wanted,
    was_there: bool,
    is_other: bool,
) -> Tried {
    let failed = |reason: String| Tried {
        open: None,
        result: Err(reason),
    };
    let folder = match &wanted.source {
        Source::Log => None,
        Source::Dumps { .. } => Some("_dumps"),
        Source::Volume { path } if !path.is_dir() => {
            return failed(format!("the folder `{}` is not there yet", path.display()));
        }
        Source::Volume { path } => {
            if let RepositorySpec::Folder { path: to } = &wanted.spec.to
                && Path::new(to).starts_with(path)
            {
                let path = path.display();
                return failed(format!(
                    "the repository `{to}` lies in the volume `{path}`, which would hold itself ever more often (choose another `to`)"
                ));
            }
            Some("_volumes")
        }
    };
    if let Some(folder) = folder {
        let (to, secrets) = (&wanted.spec.to, &wanted.secrets);
        let of = (&scope, folder, &name);
        return match place::series(&shared, of, to, secrets, was_there).await {
            Ok(series) => Tried {
                open: Some(Open::Series(series)),
                result: Ok(None),
            },
            Err(error) => failed(explained(&error)),
        };
    }
    let Some(store) = stores::find_store(&shared, &scope, &wanted.server) else {
        return failed("the store is not there yet".to_owned());
    };
    // One that was lost is archived no more, and can be restored.
    if matches!(store.phase, Phase::Making { .. } | Phase::Starting { .. }) {
        return failed(format!("the store is {}", store.word()));
    }
    let to = &wanted.spec.to;
    let archive = place::archive(&shared, &scope, &name, to, &wanted.secrets, was_there).await;
    let archive = match archive {
        Ok(archive) => archive,
        Err(error) => return failed(explained(&error)),
    };
    let reached = async {
        let programs = work::programs_as(&shared, &store, &store.name).await?;
        Ok::<_, String>((work::reach(&shared, &store)?, programs))
    };
    let (server, programs) = match reached.await {
        Ok(reached) => reached,
        Err(reason) => return failed(reason),
    };
    let open = Open::Log {
        archive: archive.clone(),
        server: server.clone(),
        programs: programs.clone(),
    };
    if !matches!(store.phase, Phase::Ready { .. }) {
        return Tried {
            open: Some(open),
            result: Err(format!("the store is {}", store.word())),
        };
    }
    // It is written down before the first WAL is shipped: afterwards the timeline of this one looks like that of another server.
    if is_other {
        let followed = follows(&shared, &store, &archive).await;
        return Tried {
            open: Some(open),
            result: followed.map(|()| None),
        };
    }
    let (sender, events) = mpsc::unbounded_channel();
    let config = WalArchiveConfig {
        server,
        programs,
        archive,
        spool: work::scratch(&shared, &scope, &store.name).join("w"),
        slot: SLOT.to_owned(),
        is_synchronous: false,
        interval: wanted.spec.ship,
        spool_bytes_max: SPOOL_BYTES_MAX,
    };
    let started = match work::make_scratch(&work::scratch(&shared, &scope, &store.name)) {
        Ok(()) => WalArchiver::start(config, move |event| drop(sender.send(event))).await,
        Err(error) => return failed(explained(&error)),
    };
    Tried {
        open: Some(open),
        result: match started {
            Ok(archiver) => Ok(Some((archiver, events))),
            Err(error) => Err(work::sentence(&error)),
        },
    }
}

/// Whether a server can go on with an archive that another one has filled. Each timeline of it has one history.
async fn follows(shared: &Shared, store: &Store, archive: &Archive) -> Result<(), String> {
    let loaded = archive
        .load()
        .await
        .map_err(|error| work::sentence(&error))?;
    let newest = loaded.and_then(|loaded| loaded.ledger.newest_timeline());
    let own = stores::lineage(shared, &store.scope, &store.name)?.timeline;
    match newest.filter(|newest| own <= newest.0) {
        None => Ok(()),
        Some(newest) => Err(format!(
            "store `{}` is on timeline {own}, and the archive has timeline {newest} of another server: give it a repository of its own \
             (another `to`)",
            store.name
        )),
    }
}

pub(super) fn explained(error: &WorkError) -> String {
    match &error.hint {
        Some(hint) => format!("{} ({hint})", error.reason),
        None => error.reason.clone(),
    }
}
