//! The key the secrets are sealed under: where it comes from, whether it is the right one, and whether a copy of it is
//! known to lie in a safe place.
//!
//! What is known of copies is a document for each key: `secrets-key/<id>`. A key nobody has a copy of is one disk away
//! from the loss of every secret, so `status` says it until a copy was read back.

use std::{
    env,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use landfast_api::{At, SecretsKey, Trouble};
use landfast_engine::{
    SECRETS, SecretError, SecretKeeper, rewrap_all, stores::CREDENTIALS as STORE_CREDENTIALS,
    unopened,
};
use landfast_journal::{Journal, PutError, ReadError, SqliteJournal};
use landfast_secrets::{KeyError, KeyId, KeySource, Vault, replace};
use landfast_types::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{answer::chain, run::ServerError};

const COLLECTION: &str = "secrets-key";
/// Where a service manager puts credentials (systemd.exec(5)).
const CREDENTIALS_DIRECTORY: &str = "CREDENTIALS_DIRECTORY";
const PAGE: usize = 1_000;

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

/// Where this server finds its key.
pub(crate) fn source(named: Option<&Path>, state: &Path) -> KeySource {
    let credentials = env::var_os(CREDENTIALS_DIRECTORY);
    KeySource::choose(named, credentials.as_deref().map(Path::new), state)
}

/// Opens the key. One is made only in the state folder, and only where nothing was sealed yet: a new one would open
/// none of the old secrets. One that opens none of them is the wrong key.
pub(crate) fn open(journal: &SqliteJournal, source: &KeySource) -> Result<Vault, ServerError> {
    let sealed = sealed_under(journal).map_err(ServerError::Read)?;
    let vault = match source {
        KeySource::State(path) if sealed.count == 0 => Vault::open_or_create_key(path),
        KeySource::State(_) | KeySource::File(_) | KeySource::Credential(_) => Vault::open(source),
    };
    let vault = Arc::new(vault.map_err(ServerError::Key)?);
    if let Some(next) = begun(source, &vault).map_err(ServerError::Key)? {
        let old = vault.key_id();
        let moved = match move_all(journal, source, &next, old) {
            Ok(moved) => moved,
            Err(error) => {
                let keys = [old, next.key_id()];
                if let Some(needed) = sealed.keys.first()
                    && !sealed.keys.iter().any(|key| keys.contains(key))
                {
                    return Err(wrong(source, old, *needed));
                }
                // With both keys everything opens that did before; what does not is one secret, and this is a whole host.
                tracing::error!(%old, new = %next.key_id(), error = chain(&error), "the change of the secrets' key does not go on");
                return Ok(next);
            }
        };
        tracing::info!(%old, new = %next.key_id(), moved, "went on with the change of the secrets' key");
        return Vault::open(source).map_err(ServerError::Key);
    }
    let held = vault.key_id();
    match sealed.keys.first() {
        Some(needed) if !sealed.keys.contains(&held) => Err(wrong(source, held, *needed)),
        Some(_) | None => Ok(Arc::into_inner(vault).expect("nobody else has it")),
    }
}

fn wrong(source: &KeySource, held: KeyId, needed: KeyId) -> ServerError {
    ServerError::Key(KeyError::Wrong {
        path: source.path().to_owned(),
        held,
        needed,
    })
}

/// A change of the key that an earlier server began.
fn begun(source: &KeySource, old: &Arc<Vault>) -> Result<Option<Vault>, KeyError> {
    match source {
        KeySource::State(path) | KeySource::File(path) => replace::begun(path, Arc::clone(old)),
        KeySource::Credential(_) => Ok(None),
    }
}

/// Why the key was not changed to the end. It is gone on with.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RekeyError {
    #[error("the key is a credential of the service manager, which alone can replace it")]
    Credential,
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("something is sealed under key {0} still")]
    Left(KeyId),
    #[error("{}", unopened_words(.0))]
    Unopened(Vec<String>),
}

/// So many are named.
const NAMED_MAX: usize = 5;

fn unopened_words(all: &[String]) -> String {
    let named = all.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>();
    let more = match all.len().saturating_sub(NAMED_MAX) {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    format!(
        "not everything that is sealed can be opened, and what cannot would be lost with its key: {}{more}",
        named.join("; ")
    )
}

/// Replaces the key: a new one, everything re-wrapped under it, the old one put aside. A change that was begun is gone on
/// with. Gives the old key's name and where it lies, and how many documents were re-wrapped.
pub(crate) fn rotate(
    journal: &dyn Journal,
    keeper: &SecretKeeper,
    source: &KeySource,
) -> Result<(KeyId, PathBuf, u64), RekeyError> {
    let (KeySource::State(path) | KeySource::File(path)) = source else {
        return Err(RekeyError::Credential);
    };
    let _one_at_a_time = ROTATING.lock().unwrap_or_else(PoisonError::into_inner);
    let held = keeper.vault();
    // One that was begun and not ended has both keys.
    let is_begun = replace::is_begun(path);
    let held = held
        .older()
        .filter(|_| is_begun)
        .cloned()
        .unwrap_or_else(|| Arc::clone(&held));
    let old = held.key_id();
    if !is_begun {
        // A change that is begun cannot be taken back, and one that cannot end needs both keys for ever.
        openable(journal, &held)?;
    }
    keeper.set_vault(replace::begin(path, held)?);
    let moved = move_all(journal, source, &keeper.vault(), old)?;
    match Vault::open(source) {
        Ok(vault) => keeper.set_vault(vault),
        // The one at work opens everything, too.
        Err(error) => tracing::warn!(%error, "the new key of the secrets was not read back"),
    }
    Ok((old, replace::aside(path, old), moved))
}

fn openable(journal: &dyn Journal, vault: &Vault) -> Result<(), RekeyError> {
    let closed = unopened(journal, vault)?;
    match closed.is_empty() {
        true => Ok(()),
        false => Err(RekeyError::Unopened(closed)),
    }
}

static ROTATING: Mutex<()> = Mutex::new(());

/// Re-wraps everything under the next key, and puts that in its place.
fn move_all(
    journal: &dyn Journal,
    source: &KeySource,
    next: &Vault,
    old: KeyId,
) -> Result<u64, RekeyError> {
    let moved = match rewrap_all(journal, next) {
        Ok(moved) => moved,
        Err(error) => {
            // Which ones it is about, if it is about any.
            openable(journal, next)?;
            return Err(error.into());
        }
    };
    let under = sealed_under(journal)?;
    if let Some(other) = under.keys.iter().find(|key| **key != next.key_id()) {
        return Err(RekeyError::Left(*other));
    }
    replace::finish(source.path(), old)?;
    Ok(moved)
}

/// Removes keys that were put aside, now that a copy of the one that replaced them is in a safe place.
pub(crate) fn forget_aside(source: &KeySource) {
    let (KeySource::State(path) | KeySource::File(path)) = source else {
        return;
    };
    match replace::forget_aside(path) {
        Ok(removed) => {
            for path in removed {
                tracing::info!(path = %path.display(), "an old key of the secrets was removed");
            }
        }
        Err(error) => tracing::warn!(%error, "old keys of the secrets stay aside"),
    }
}

struct SealedUnder {
    count: u64,
    keys: Vec<KeyId>,
}

/// The keys the stored envelopes name. What cannot be read is told when it is needed.
fn sealed_under(journal: &dyn Journal) -> Result<SealedUnder, ReadError> {
    let mut under = SealedUnder {
        count: 0,
        keys: Vec::new(),
    };
    for collection in [SECRETS, STORE_CREDENTIALS] {
        note_sealed(journal, collection, &mut under)?;
    }
    Ok(under)
}

fn note_sealed(
    journal: &dyn Journal,
    collection: &str,
    under: &mut SealedUnder,
) -> Result<(), ReadError> {
    let mut after = None;
    loop {
        let page = journal.list(collection, after.as_deref(), PAGE)?;
        for document in &page {
            under.count += 1;
            let stored = serde_json::from_slice::<serde_json::Value>(&document.body);
            for key in stored.iter().flat_map(keys_in) {
                if !under.keys.contains(&key) {
                    under.keys.push(key);
                }
            }
        }
        match page.last() {
            Some(last) if page.len() == PAGE => after = Some(last.key.clone()),
            Some(_) | None => return Ok(()),
        }
    }
}

/// `key` of every envelope in a stored secret or credential.
fn keys_in(stored: &serde_json::Value) -> Vec<KeyId> {
    let versions = stored["secret"]["versions"].as_object();
    let versions = versions.into_iter().flat_map(|versions| versions.values());
    let sealed = versions.map(|version| &version["live"]["sealed"]);
    sealed
        .chain([&stored["sealed"]])
        .filter_map(|sealed| sealed["key"].as_str()?.parse().ok())
        .collect()
}

/// What the API says of the key.
pub(crate) fn describe(
    journal: &dyn Journal,
    vault: &Vault,
    source: &KeySource,
) -> Result<SecretsKey, ReadError> {
    let (copies, _) = copies(journal, vault)?;
    Ok(SecretsKey {
        id: vault.key_id().to_string(),
        source: source.word().to_owned(),
        path: source.path().display().to_string(),
        secrets: sealed_under(journal)?.count,
        exported_at: copies.exported_at.map(At),
        confirmed_at: copies.confirmed_at.map(At),
        confirmed_by: copies.confirmed_by,
        replaces: vault.older().map(|older| older.key_id().to_string()),
    })
}

/// Remembers that the key was given out.
pub(crate) fn exported(
    journal: &dyn Journal,
    vault: &Vault,
    now: Timestamp,
) -> Result<(), CopyError> {
    change(journal, vault, |copies| copies.exported_at = Some(now))
}

/// Remembers that a copy was read back.
pub(crate) fn confirmed(
    journal: &dyn Journal,
    vault: &Vault,
    now: Timestamp,
    by: &str,
) -> Result<(), CopyError> {
    change(journal, vault, |copies| {
        copies.confirmed_at = Some(now);
        copies.confirmed_by = Some(by.to_owned());
    })
}

/// What `status` says while both keys are needed, and until a copy was confirmed.
pub(crate) fn trouble(key: &SecretsKey) -> Option<Trouble> {
    if let Some(older) = &key.replaces {
        let (path, id) = (&key.path, &key.id);
        return Some(Trouble {
            text: format!(
                "the change of the secrets' key from {older} to {id} is not at its end: `{path}` and `{path}.next` are both needed"
            ),
            hint: Some(
                "`landfast secret key rotate` goes on, or names what does not open; remove neither file, for each secret is sealed under one of them"
                    .to_owned(),
            ),
        });
    }
    if key.secrets == 0 || key.confirmed_at.is_some() {
        return None;
    }
    let text = format!(
        "no copy of the secrets' key {} is known to be in a safe place: without `{}` every secret is lost",
        key.id, key.path
    );
    let hint =
        "`landfast secret key export` prints it; `landfast secret key confirm` reads the copy back";
    Some(Trouble {
        text,
        hint: Some(hint.to_owned()),
    })
}

/// Why it was not remembered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CopyError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Put(#[from] PutError),
    #[error("it has no JSON form")]
    Json(#[from] serde_json::Error),
}

fn change(
    journal: &dyn Journal,
    vault: &Vault,
    edit: impl FnOnce(&mut Copies),
) -> Result<(), CopyError> {
    let (mut copies, revision) = copies(journal, vault)?;
    edit(&mut copies);
    let body = serde_json::to_vec(&copies)?;
    let key = vault.key_id().to_string();
    journal.put(COLLECTION, &key, Some(revision), body)?;
    Ok(())
}

fn copies(journal: &dyn Journal, vault: &Vault) -> Result<(Copies, u64), ReadError> {
    let found = journal.get(COLLECTION, &vault.key_id().to_string())?;
    let read = found.map(|document| {
        // What cannot be read is asked for again.
        let copies = serde_json::from_slice(&document.body).unwrap_or_default();
        (copies, document.revision)
    });
    Ok(read.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs};

    use landfast_engine::SecretCall;
    use landfast_secrets::Origin;
    use landfast_types::{Scope, Secret};

    use super::*;

    struct World {
        folder: tempfile::TempDir,
        journal: Arc<SqliteJournal>,
        source: KeySource,
        scope: Scope,
    }

    impl World {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let journal = SqliteJournal::open(folder.path().join("journal.sqlite")).unwrap();
            Self {
                source: KeySource::State(folder.path().join("secrets.key")),
                folder,
                journal: Arc::new(journal),
                scope: Scope {
                    app: "shop".parse().unwrap(),
                    environment: "production".parse().unwrap(),
                },
            }
        }

        fn open(&self) -> Result<SecretKeeper, ServerError> {
            open(&self.journal, &self.source).map(SecretKeeper::new)
        }

        fn set(&self, keeper: &SecretKeeper, name: &str, value: &str) {
            let journal: Arc<dyn Journal> = Arc::<SqliteJournal>::clone(&self.journal);
            let call = SecretCall {
                journal: &journal,
                now: Timestamp::from_micros(1),
                scope: &self.scope,
                by: "somebody",
            };
            let values = [(name.to_owned(), Secret::new(value.to_owned()))];
            let pinned = |_: &str| BTreeSet::new();
            let set = keeper.set(&call, &values, &Origin::Set, false, &pinned);
            set.unwrap();
        }

        fn value(&self, keeper: &SecretKeeper, name: &str) -> String {
            let journal: Arc<dyn Journal> = Arc::<SqliteJournal>::clone(&self.journal);
            let revealed = keeper.reveal(&journal, &self.scope, name, 1).unwrap();
            revealed.value.reveal().clone()
        }

        fn damage(&self) {
            let key = "shop/production/BAD";
            let revision = self.journal.get(SECRETS, key).unwrap();
            let revision = revision.map(|document| document.revision);
            let written_by_a_newer_one = b"{\"secret\":7}".to_vec();
            self.journal
                .put(SECRETS, key, revision.or(Some(0)), written_by_a_newer_one)
                .unwrap();
        }

        fn has_next(&self) -> bool {
            self.folder.path().join("secrets.key.next").exists()
        }
    }

    #[test]
    fn what_does_not_open_is_named_before_there_is_another_key() {
        let world = World::new();
        let keeper = world.open().unwrap();
        world.set(&keeper, "TOKEN", "hunter2");
        world.set(&keeper, "BAD", "lost");
        world.damage();
        let before = keeper.vault().key_id();
        let refused = rotate(world.journal.as_ref(), &keeper, &world.source).unwrap_err();
        let said = refused.to_string();
        assert!(said.contains("secret `shop/production/BAD`"), "{said}");
        assert!(!said.contains("TOKEN"), "{said}");
        assert!(!world.has_next());
        assert_eq!(keeper.vault().key_id(), before);
        assert_eq!(world.value(&world.open().unwrap(), "TOKEN"), "hunter2");
        // Without it the key is replaced.
        world
            .journal
            .delete(SECRETS, "shop/production/BAD", None)
            .unwrap();
        rotate(world.journal.as_ref(), &keeper, &world.source).unwrap();
        assert_ne!(keeper.vault().key_id(), before);
        assert_eq!(world.value(&world.open().unwrap(), "TOKEN"), "hunter2");
    }

    #[test]
    fn a_change_that_cannot_end_leaves_a_server_that_starts() {
        let world = World::new();
        let keeper = world.open().unwrap();
        world.set(&keeper, "TOKEN", "hunter2");
        // A server died in the middle, and one document was damaged since.
        let next = world.folder.path().join("secrets.key.next");
        let next = Vault::create_key(&next).unwrap().key_id();
        world.damage();
        let keeper = world.open().unwrap();
        assert_eq!(world.value(&keeper, "TOKEN"), "hunter2");
        assert_eq!(keeper.vault().key_id(), next);
        let described = describe(world.journal.as_ref(), &keeper.vault(), &world.source).unwrap();
        let trouble = trouble(&described).unwrap();
        assert!(trouble.text.contains("both needed"), "{trouble:?}");
        let refused = rotate(world.journal.as_ref(), &keeper, &world.source).unwrap_err();
        assert!(refused.to_string().contains("BAD"), "{refused}");
        // What is set meanwhile is sealed under the next one, and both are found again.
        world.set(&keeper, "OTHER", "value");
        let keeper = world.open().unwrap();
        assert_eq!(world.value(&keeper, "OTHER"), "value");
        world
            .journal
            .delete(SECRETS, "shop/production/BAD", None)
            .unwrap();
        rotate(world.journal.as_ref(), &keeper, &world.source).unwrap();
        assert!(!world.has_next() && keeper.vault().older().is_none());
        assert_eq!(world.value(&world.open().unwrap(), "TOKEN"), "hunter2");
    }

    #[test]
    fn keys_that_open_nothing_are_refused() {
        let world = World::new();
        let keeper = world.open().unwrap();
        world.set(&keeper, "TOKEN", "hunter2");
        let path = world.folder.path().join("secrets.key");
        fs::remove_file(&path).unwrap();
        Vault::create_key(&path).unwrap();
        Vault::create_key(&world.folder.path().join("secrets.key.next")).unwrap();
        assert!(matches!(
            world.open(),
            Err(ServerError::Key(KeyError::Wrong { .. }))
        ));
    }
}
