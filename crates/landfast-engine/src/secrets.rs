//! Secrets of environments: sealed documents in the journal, opened only on the way into a process.
//!
//! A removed secret is not part of new releases; releases that pinned a version of it keep working until they
//! are collected.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
};

use landfast_journal::{Document, Journal, PutError, ReadError};
use landfast_secrets::{Context, KeyError, UnsealError, Vault, VersionedSecret, VersionsError};
use landfast_types::{Scope, Secret, Timestamp};
use serde::{Deserialize, Serialize};

/// The journal's collection of sealed secrets.
pub const COLLECTION: &str = "secrets";
/// The longest value, in bytes: what `execve` takes as one string on Linux.
pub const SECRET_BYTES_MAX: usize = 128 << 10;
const NAME_LEN_MAX: usize = 128;
const PAGE: usize = 1_000;
const TRIES: u32 = 5;

/// Opens and seals secrets with the host's key.
pub struct SecretKeeper {
    vault: Vault,
    /// One change at a time.
    changing: Mutex<()>,
}

/// A secret without its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretFacts {
    pub name: String,
    pub version: u64,
    pub created_at: Timestamp,
    pub versions: usize,
}

/// Why a secret could not be read or changed. Never holds a value.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error(
        "`{0}` is not a name for a secret: use A to Z, 0 to 9 and `_`, not starting with a digit"
    )]
    Name(String),
    #[error("the value has {0} bytes; {SECRET_BYTES_MAX} is the most a process can be given")]
    TooLong(usize),
    #[error("the value holds a NUL byte, which no process can be given")]
    Nul,
    #[error("there is no secret `{0}`")]
    Unknown(String),
    #[error("every version was revoked")]
    AllRevoked,
    #[error("someone else changed it at the same time")]
    Busy,
    #[error("what is stored of it cannot be read")]
    Unreadable(#[source] serde_json::Error),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Unseal(#[from] UnsealError),
    #[error(transparent)]
    Versions(#[from] VersionsError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Put(#[from] PutError),
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Stored {
    secret: VersionedSecret,
    #[serde(default)]
    removed: bool,
}

impl SecretKeeper {
    /// With the host's key.
    pub fn new(vault: Vault) -> Self {
        Self {
            vault,
            changing: Mutex::new(()),
        }
    }

    /// Adds a version and returns its number.
    ///
    /// # Errors
    /// When the name or value cannot be given to a process, or the journal does not take it.
    pub fn set(
        &self,
        journal: &Arc<dyn Journal>,
        now: Timestamp,
        scope: &Scope,
        name: &str,
        value: &Secret<String>,
        pinned: &BTreeSet<u64>,
    ) -> Result<u64, SecretError> {
        check(name, value)?;
        let _guard = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..TRIES {
            let (mut stored, revision) = load(journal, scope, name)?.unwrap_or_default();
            let version = stored.secret.next();
            let sealed = self.vault.seal(&context(scope, name, version), value)?;
            stored.secret.add(now, version, sealed, pinned)?;
            stored.removed = false;
            match save(journal, scope, name, &stored, revision) {
                Ok(()) => return Ok(version),
                Err(SecretError::Put(PutError::Conflict(_))) => {}
                Err(error) => return Err(error),
            }
        }
        Err(SecretError::Busy)
    }

    /// Leaves a secret out of new releases.
    ///
    /// # Errors
    /// [`SecretError::Unknown`] when there is none.
    pub fn remove(
        &self,
        journal: &Arc<dyn Journal>,
        scope: &Scope,
        name: &str,
    ) -> Result<(), SecretError> {
        let _guard = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let found = load(journal, scope, name)?.filter(|(stored, _)| !stored.removed);
        let (mut stored, revision) = found.ok_or_else(|| SecretError::Unknown(name.to_owned()))?;
        stored.removed = true;
        save(journal, scope, name, &stored, revision)
    }

    /// The secrets new releases get.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn list(
        &self,
        journal: &Arc<dyn Journal>,
        scope: &Scope,
    ) -> Result<Vec<SecretFacts>, SecretError> {
        let prefix = format!("{scope}/");
        let mut facts = Vec::new();
        let mut after = prefix.clone();
        loop {
            let page = journal.list(COLLECTION, Some(&after), PAGE)?;
            for document in &page {
                let Some(name) = document.key.strip_prefix(&prefix) else {
                    return Ok(facts);
                };
                let stored: Stored = parse(document)?;
                let versions = stored.secret.versions().len();
                let current = stored.secret.current().filter(|_| !stored.removed);
                if let Some((version, _)) = current {
                    let created_at = created_at(&stored, version);
                    facts.push(SecretFacts {
                        name: name.to_owned(),
                        version,
                        created_at,
                        versions,
                    });
                }
            }
            match page.last() {
                Some(last) if page.len() == PAGE => after.clone_from(&last.key),
                Some(_) | None => return Ok(facts),
            }
        }
    }

    /// The current version of each secret, to pin in a release.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn current(
        &self,
        journal: &Arc<dyn Journal>,
        scope: &Scope,
    ) -> Result<BTreeMap<String, u64>, SecretError> {
        let facts = self.list(journal, scope)?;
        Ok(facts
            .into_iter()
            .map(|secret| (secret.name, secret.version))
            .collect())
    }

    /// The value a release pinned; of a revoked version the newest is used, and that is said.
    ///
    /// # Errors
    /// When there is none, or it does not open.
    pub fn reveal(
        &self,
        journal: &Arc<dyn Journal>,
        scope: &Scope,
        name: &str,
        version: u64,
    ) -> Result<Secret<String>, SecretError> {
        let found = load(journal, scope, name)?;
        let (stored, _) = found.ok_or_else(|| SecretError::Unknown(name.to_owned()))?;
        let resolved = stored
            .secret
            .resolve(version)
            .ok_or(SecretError::AllRevoked)?;
        if let Some(asked) = resolved.instead_of {
            let used = resolved.version;
            tracing::warn!(%scope, name, asked, used, "a pinned version was revoked; the newest is used");
        }
        Ok(self
            .vault
            .unseal(&context(scope, name, resolved.version), resolved.sealed)?)
    }
}

fn check(name: &str, value: &Secret<String>) -> Result<(), SecretError> {
    let letter = |c: char| c.is_ascii_alphabetic() || c == '_';
    let fits = name.starts_with(letter)
        && name.len() <= NAME_LEN_MAX
        && name.chars().all(|c| letter(c) || c.is_ascii_digit());
    if !fits {
        return Err(SecretError::Name(name.to_owned()));
    }
    if value.reveal().len() > SECRET_BYTES_MAX {
        return Err(SecretError::TooLong(value.reveal().len()));
    }
    if value.reveal().contains('\0') {
        return Err(SecretError::Nul);
    }
    Ok(())
}

fn context<'a>(scope: &'a Scope, name: &'a str, version: u64) -> Context<'a> {
    Context {
        scope,
        name,
        version,
    }
}

fn key(scope: &Scope, name: &str) -> String {
    format!("{scope}/{name}")
}

fn load(
    journal: &Arc<dyn Journal>,
    scope: &Scope,
    name: &str,
) -> Result<Option<(Stored, u64)>, SecretError> {
    let Some(document) = journal.get(COLLECTION, &key(scope, name))? else {
        return Ok(None);
    };
    Ok(Some((parse(&document)?, document.revision)))
}

fn parse(document: &Document) -> Result<Stored, SecretError> {
    serde_json::from_slice(&document.body).map_err(SecretError::Unreadable)
}

fn save(
    journal: &Arc<dyn Journal>,
    scope: &Scope,
    name: &str,
    stored: &Stored,
    expected: u64,
) -> Result<(), SecretError> {
    let body = serde_json::to_vec(stored).map_err(SecretError::Unreadable)?;
    journal.put(COLLECTION, &key(scope, name), Some(expected), body)?;
    Ok(())
}

fn created_at(stored: &Stored, version: u64) -> Timestamp {
    match stored.secret.versions().get(&version) {
        Some(landfast_secrets::Version::Live { at, .. }) => *at,
        Some(landfast_secrets::Version::Revoked { at, .. }) => *at,
        None => Timestamp::EPOCH,
    }
}
