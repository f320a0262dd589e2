//! Where backups lie, and the key they are sealed under.
//!
//! There is one key for each host, made with the first backup and never replaced by itself. What is known of copies of it is a
//! document of the journal: a key nobody has a copy of is lost with the host, and every backup with it.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use landfast_backup_files::Series;
use landfast_backup_postgres::Archive;
use landfast_repository::{
    Key, KeyError, Keyring, Place, Repository, RepositoryError, S3Place, Storage,
};
use landfast_spec::RepositorySpec;
use landfast_types::{Scope, Secret, StoreName, Timestamp};
use serde::{Deserialize, Serialize};

use super::WorkError;
use crate::{actions::chain, shared::Shared, stores::secret_of_store};

const COLLECTION: &str = "backup-key";
const FILE: &str = "backup.key";
/// Keys that were replaced by hand lie beside it: `backup.key.old`, `backup.key.old.1`, …
const OLDER: &str = "backup.key.old";

/// What is known of the copies of a key.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Copies {
    #[serde(default)]
    exported_at: Option<Timestamp>,
    #[serde(default)]
    confirmed_at: Option<Timestamp>,
    #[serde(default)]
    confirmed_by: Option<String>,
}

/// The key that backups of this host are sealed under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyView {
    pub id: String,
    pub path: PathBuf,
    pub exported_at: Option<Timestamp>,
    pub confirmed_at: Option<Timestamp>,
    pub confirmed_by: Option<String>,
}

fn path(shared: &Shared) -> PathBuf {
    shared.folders.state.join(FILE)
}

/// One at a time makes it.
static MAKING: Mutex<()> = Mutex::new(());

fn keyring(shared: &Shared, may_make: bool) -> Result<Keyring, KeyError> {
    let _one = MAKING
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let path = path(shared);
    let current = match Key::read(&path) {
        // Where there was one, another would hide that it is lost.
        Err(KeyError::Missing { .. }) if may_make && recorded(shared).is_none() => {
            let made = Key::generate()?;
            // The file first: one that was recorded and never written would be taken for lost.
            made.write(&path)?;
            if let Err(reason) = remember(shared, &made, &Copies::default(), 0) {
                tracing::error!(
                    reason,
                    "the journal took no record of the key of the backups"
                );
            }
            tracing::warn!(id = %made.id(), "a key for backups was made; `landfast backup key export` copies it to a safe place");
            made
        }
        read => read?,
    };
    let mut keys = Keyring::new(current);
    for older in (0..).map(|number| match number {
        0 => OLDER.to_owned(),
        number => format!("{OLDER}.{number}"),
    }) {
        match Key::read(&shared.folders.state.join(older)) {
            Ok(key) => keys = keys.with_older(key),
            Err(KeyError::Missing { .. }) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(keys)
}

/// The id of a key that was made here once. A journal that cannot be read is taken for one that knows one.
fn recorded(shared: &Shared) -> Option<String> {
    match shared.journal.list(COLLECTION, None, 1) {
        Ok(documents) => documents.into_iter().next().map(|document| document.key),
        Err(error) => Some(chain(&error)),
    }
}

/// The key, where there is one.
///
/// # Errors
/// A sentence.
pub fn key(shared: &Shared) -> Result<Option<KeyView>, String> {
    let key = match Key::read(&path(shared)) {
        Err(error @ KeyError::Missing { .. }) => {
            return match recorded(shared) {
                None => Ok(None),
                Some(id) => Err(format!(
                    "{error}; it held key {id}: put the copy of it there, mode 0600"
                )),
            };
        }
        read => read.map_err(|error| chain(&error))?,
    };
    let (copies, _) = copies(shared, &key)?;
    Ok(Some(KeyView {
        id: key.id().to_string(),
        path: path(shared),
        exported_at: copies.exported_at,
        confirmed_at: copies.confirmed_at,
        confirmed_by: copies.confirmed_by,
    }))
}

/// The text of the key file; that it was given out is remembered first.
///
/// # Errors
/// A sentence.
pub fn export_key(shared: &Shared, by: &str) -> Result<(String, Secret<String>), String> {
    let key = keyring(shared, true).map_err(|error| chain(&error))?;
    let key = key.current();
    let (mut known, revision) = copies(shared, key)?;
    known.exported_at = Some(shared.clock.now());
    remember(shared, key, &known, revision)?;
    tracing::warn!(id = %key.id(), by, "the key of the backups was exported");
    Ok((key.id().to_string(), key.export()))
}

/// Takes a text for a copy of the key.
///
/// # Errors
/// A sentence, where it is none.
pub fn confirm_key(shared: &Shared, text: &Secret<String>, by: &str) -> Result<(), String> {
    let held = Key::read(&path(shared)).map_err(|error| chain(&error))?;
    let copy = Key::parse(text.reveal());
    let copy = copy.ok_or("that is no key of backups, or it is damaged")?;
    if copy.id() != held.id() {
        return Err(format!(
            "that is key {}, and backups are sealed under {}",
            copy.id(),
            held.id()
        ));
    }
    let (mut known, revision) = copies(shared, &held)?;
    known.confirmed_at = Some(shared.clock.now());
    known.confirmed_by = Some(by.to_owned());
    remember(shared, &held, &known, revision)
}

fn copies(shared: &Shared, key: &Key) -> Result<(Copies, u64), String> {
    let found = shared.journal.get(COLLECTION, &key.id().to_string());
    match found.map_err(|error| chain(&error))? {
        None => Ok((Copies::default(), 0)),
        Some(document) => {
            let known = serde_json::from_slice(&document.body);
            Ok((known.map_err(|error| error.to_string())?, document.revision))
        }
    }
}

fn remember(shared: &Shared, key: &Key, known: &Copies, revision: u64) -> Result<(), String> {
    let body = serde_json::to_vec(known).expect("plain fields");
    let put = shared
        .journal
        .put(COLLECTION, &key.id().to_string(), Some(revision), body);
    put.map(drop).map_err(|error| chain(&error))
}

/// The archive of a store.
///
/// # Errors
/// As [`repository`].
pub(crate) async fn archive(
    shared: &Arc<Shared>,
    scope: &Scope,
    store: &StoreName,
    to: &RepositorySpec,
    secrets: &BTreeMap<String, u64>,
    was_there: bool,
) -> Result<Archive, WorkError> {
    let repository = repository(shared, scope, to, secrets, was_there).await?;
    let name = format!("{}/{}/{store}", scope.app, scope.environment);
    Ok(Archive::new(repository, &name)?)
}

/// The series of what has no log: `_dumps` or `_volumes` keeps it apart from the archives of stores.
///
/// # Errors
/// As [`repository`].
pub(crate) async fn series(
    shared: &Arc<Shared>,
    (scope, folder, name): (&Scope, &str, &StoreName),
    to: &RepositorySpec,
    secrets: &BTreeMap<String, u64>,
    was_there: bool,
) -> Result<Series, WorkError> {
    let repository = repository(shared, scope, to, secrets, was_there).await?;
    let name = format!("{}/{}/{folder}/{name}", scope.app, scope.environment);
    Ok(Series::new(repository, &name)?)
}

/// A repository is made where the place is empty; one that was there before is not made anew.
async fn repository(
    shared: &Arc<Shared>,
    scope: &Scope,
    to: &RepositorySpec,
    secrets: &BTreeMap<String, u64>,
    was_there: bool,
) -> Result<Repository, WorkError> {
    let place = place(shared, scope, to, secrets).map_err(|reason| {
        WorkError::new(
            reason,
            format!("`landfast status {}` shows what is wrong", scope.app),
        )
    })?;
    let owner = Arc::clone(shared);
    let keys = tokio::task::spawn_blocking(move || keyring(&owner, !was_there)).await;
    let keys = keys.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
    let keys = Arc::new(keys.map_err(|error| {
        let hint = "put the copy of the key there (`landfast backup key` says where), mode 0600: without it no backup can be read";
        WorkError::new(chain(&error), hint)
    })?);
    let repository = async {
        let storage = Storage::new(&place)?;
        match Repository::open(storage.clone(), Arc::clone(&keys)).await {
            Err(RepositoryError::Empty { .. }) if !was_there => {
                Repository::create(storage, keys).await
            }
            opened => opened,
        }
    };
    repository.await.map_err(|error| {
        let is_empty = matches!(error, RepositoryError::Empty { .. });
        let hint = match is_empty {
            true => "there were backups: is the disk mounted, is it the right bucket? Another `to` begins anew".to_owned(),
            false => error.hint().to_owned(),
        };
        WorkError::new(chain(&error), hint)
    })
}

fn place(
    shared: &Shared,
    scope: &Scope,
    to: &RepositorySpec,
    secrets: &BTreeMap<String, u64>,
) -> Result<Place, String> {
    let RepositorySpec::Bucket {
        bucket,
        prefix,
        endpoint,
        region,
        path_style,
        ca,
        access_key_secret,
        secret_key_secret,
    } = to
    else {
        return Ok(Place::Folder(match to {
            RepositorySpec::Folder { path } => path.into(),
            RepositorySpec::Bucket { .. } => unreachable!("it was matched above"),
        }));
    };
    let secret = |name: &str| {
        let found = secret_of_store(shared, scope, name, Some(secrets))?;
        found.ok_or_else(|| format!("the secret `{name}` is not set"))
    };
    let authority = ca.as_ref().map(|path| {
        let read = std::fs::read_to_string(path);
        read.map_err(|error| format!("failed to read `{path}`: {error}"))
    });
    Ok(Place::S3(S3Place {
        bucket: bucket.clone(),
        prefix: prefix.clone(),
        region: region.clone(),
        endpoint: endpoint.clone(),
        is_path_style: *path_style,
        authority: authority.transpose()?,
        access_key: secret(access_key_secret)?.reveal().clone(),
        secret_key: secret(secret_key_secret)?,
    }))
}
