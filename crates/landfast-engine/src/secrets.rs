//! Secrets of environments: sealed documents in the journal, opened only on the way into a process, or for somebody
//! who asks for a value by name.
//!
//! Every change and every value that was shown is a record of the stream `secrets/<app>/<environment>`, written in the
//! same transaction as the change, or before the value is given out. A removed secret is not part of new releases;
//! releases that pinned a version of it keep working until they are collected.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use landfast_journal::{
    AppendError, Change, Document, Journal, NewRecord, PutError, ReadError, Record,
};
use landfast_secrets::{
    Alphabet, Context, KeyError, Origin, UnsealError, Vault, Version, VersionedSecret,
    VersionsError, generate,
};
use landfast_types::{Scope, Secret, Timestamp};
use serde::{Deserialize, Serialize};

mod rekey;

pub(crate) use self::rekey::{Rewrap, place};
pub use self::rekey::{rewrap_all, unopened};

/// The journal's collection of sealed secrets.
pub const COLLECTION: &str = "secrets";
/// The kind of the records of what was done with secrets.
pub const SECRET_KIND: &str = "secret";
/// The longest value, in bytes: what `execve` takes as one string on Linux.
pub const SECRET_BYTES_MAX: usize = 128 << 10;
const RECORD_VERSION: u16 = 1;
const STREAMS: &str = "secrets/";
const NAME_LEN_MAX: usize = 128;
const PAGE: usize = 1_000;
const TRIES: u32 = 5;

/// Opens and seals secrets with the host's key.
pub struct SecretKeeper {
    /// Whoever seals something holds it until that is on disk: nothing is sealed under a key that has gone meanwhile.
    vault: RwLock<Arc<Vault>>,
    /// One change at a time.
    changing: Mutex<()>,
}

/// Who does something with the secrets of which environment, and when.
pub struct SecretCall<'a> {
    pub journal: &'a Arc<dyn Journal>,
    pub now: Timestamp,
    pub scope: &'a Scope,
    /// For the record.
    pub by: &'a str,
}

/// The versions that kept releases pin of a secret: those are never dropped.
pub type Pinned<'a> = &'a dyn Fn(&str) -> BTreeSet<u64>;

/// What a secret is rotated to.
#[derive(Debug, Clone)]
pub enum NewValue {
    Given(Secret<String>),
    /// So many characters of the alphabet.
    Generated {
        length: u32,
        alphabet: Alphabet,
    },
}

/// A secret without its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretFacts {
    pub name: String,
    pub version: u64,
    pub created_at: Timestamp,
    pub versions: usize,
}

/// One version of a secret without its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionFacts {
    pub version: u64,
    pub created_at: Timestamp,
    pub revoked_at: Option<Timestamp>,
    pub origin: Origin,
    pub is_current: bool,
}

/// A value, and the version it is.
#[derive(Debug)]
pub struct Revealed {
    pub value: Secret<String>,
    pub version: u64,
    /// The version that was asked for, where it was revoked or dropped.
    pub instead_of: Option<u64>,
}

/// What was done with a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SecretDeed {
    Set,
    Imported,
    RolledBack,
    Rotated,
    Revoked,
    Removed,
    /// Its value was shown to somebody.
    Revealed,
    #[serde(other)]
    Unknown,
}

/// A record of the stream of an environment's secrets. Never holds a value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretRecord {
    pub name: String,
    pub version: u64,
    pub deed: SecretDeed,
    pub by: String,
}

/// What became of one name of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    pub name: String,
    pub version: u64,
    /// False where the value was the same as before.
    pub is_new: bool,
}

/// Why a secret could not be read or changed. Never holds a value.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error(
        "`{0}` is not a name for a secret: use letters, digits and `_`, not starting with a digit"
    )]
    Name(String),
    #[error(
        "the value of `{name}` has {bytes} bytes; {SECRET_BYTES_MAX} is the most a process can be given"
    )]
    TooLong { name: String, bytes: usize },
    #[error("the value of `{0}` holds a NUL byte, which no process can be given")]
    Nul(String),
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
    #[error("it could not be recorded")]
    Append(#[source] AppendError),
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
            vault: RwLock::new(Arc::new(vault)),
            changing: Mutex::new(()),
        }
    }

    /// The host's key, to open something with.
    pub fn vault(&self) -> Arc<Vault> {
        let vault = self.vault.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&vault)
    }

    /// Seals something and writes it down, under one key from the beginning to the end.
    pub(crate) fn sealing<T>(&self, work: impl FnOnce(&Vault) -> T) -> T {
        let vault = self.vault.read().unwrap_or_else(PoisonError::into_inner);
        work(&vault)
    }

    /// From now on this key is sealed under. What was being sealed is on disk.
    pub fn set_vault(&self, vault: Vault) {
        let _guard = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut held = self.vault.write().unwrap_or_else(PoisonError::into_inner);
        *held = Arc::new(vault);
    }

    /// Adds a version of each name, all of them or none. With `skips_equal`, a name that has this value already gets
    /// no further version.
    ///
    /// # Errors
    /// When a name or value cannot be given to a process, or the journal does not take it: nothing has changed then.
    pub fn set(
        &self,
        call: &SecretCall<'_>,
        values: &[(String, Secret<String>)],
        origin: &Origin,
        skips_equal: bool,
        pinned: Pinned<'_>,
    ) -> Result<Vec<Kept>, SecretError> {
        for (name, value) in values {
            check(name, value)?;
        }
        let deed = deed_of(origin);
        self.change(call, || {
            let mut work = Work::default();
            for (name, value) in values {
                let (mut stored, revision) = load(call, name)?.unwrap_or_default();
                let current = stored.secret.current().filter(|_| !stored.removed);
                if let Some((version, sealed)) = current.filter(|_| skips_equal) {
                    let context = context(call.scope, name, version);
                    if self.vault().unseal(&context, sealed)? == *value {
                        work.kept(name, version, false);
                        continue;
                    }
                }
                let version = stored.secret.next();
                let sealed = self
                    .vault()
                    .seal(&context(call.scope, name, version), value)?;
                let (now, pinned) = (call.now, pinned(name));
                stored
                    .secret
                    .add(now, version, sealed, origin.clone(), &pinned)?;
                stored.removed = false;
                work.put(call, name, &stored, revision)?;
                work.record(call, name, version, deed)?;
                work.kept(name, version, true);
            }
            Ok(work)
        })
    }

    /// Adds a version with this value, or with one that is generated.
    ///
    /// # Errors
    /// [`SecretError::Unknown`] where there is no such secret: a name that was mistyped would make one.
    pub fn rotate(
        &self,
        call: &SecretCall<'_>,
        name: &str,
        value: NewValue,
        pinned: Pinned<'_>,
    ) -> Result<Vec<Kept>, SecretError> {
        load_present(call, name)?;
        let value = match value {
            NewValue::Given(value) => value,
            NewValue::Generated { length, alphabet } => generate(length, alphabet)?,
        };
        let values = [(name.to_owned(), value)];
        self.set(call, &values, &Origin::Rotated, false, pinned)
    }

    /// Adds a version with the value of an earlier one: `to`, or the newest before the current one.
    ///
    /// # Errors
    /// [`SecretError::Unknown`], or [`SecretError::Versions`] when there is no such version any more.
    pub fn roll_back(
        &self,
        call: &SecretCall<'_>,
        name: &str,
        to: Option<u64>,
        pinned: Pinned<'_>,
    ) -> Result<Vec<Kept>, SecretError> {
        let (stored, _) = load_present(call, name)?;
        let (to, sealed) = stored.secret.rollback_target(to)?;
        let value = self
            .vault()
            .unseal(&context(call.scope, name, to), sealed)?;
        let values = [(name.to_owned(), value)];
        self.set(call, &values, &Origin::RolledBack { to }, false, pinned)
    }

    /// Revokes a version: its value is forgotten, and whoever pinned it is given the newest.
    ///
    /// # Errors
    /// [`SecretError::Unknown`], or [`SecretError::Versions`] when it is not there or the only one.
    pub fn revoke(
        &self,
        call: &SecretCall<'_>,
        name: &str,
        version: u64,
    ) -> Result<(), SecretError> {
        self.change(call, || {
            let (mut stored, revision) = load_present(call, name)?;
            stored.secret.revoke(call.now, version)?;
            let mut work = Work::default();
            work.put(call, name, &stored, revision)?;
            work.record(call, name, version, SecretDeed::Revoked)?;
            Ok(work)
        })
        .map(|_kept| ())
    }

    /// Leaves a secret out of new releases.
    ///
    /// # Errors
    /// [`SecretError::Unknown`] when there is none.
    pub fn remove(&self, call: &SecretCall<'_>, name: &str) -> Result<(), SecretError> {
        self.change(call, || {
            let (mut stored, revision) = load_present(call, name)?;
            stored.removed = true;
            let version = stored.secret.current().map_or(0, |(version, _)| version);
            let mut work = Work::default();
            work.put(call, name, &stored, revision)?;
            work.record(call, name, version, SecretDeed::Removed)?;
            Ok(work)
        })
        .map(|_kept| ())
    }

    /// A value for somebody who asked for it: `version`, or the newest. It is recorded before it is given.
    ///
    /// # Errors
    /// When there is none, it does not open, or the journal takes no record.
    pub fn show(
        &self,
        call: &SecretCall<'_>,
        name: &str,
        version: Option<u64>,
    ) -> Result<Revealed, SecretError> {
        let (stored, _) = load_present(call, name)?;
        let (shown, sealed) = match version {
            None => stored.secret.current().ok_or(SecretError::AllRevoked)?,
            Some(asked) => match stored.secret.versions().get(&asked) {
                Some(Version::Live { sealed, .. }) => (asked, sealed),
                Some(Version::Revoked { .. }) => return Err(VersionsError::Revoked(asked).into()),
                None => return Err(VersionsError::Unknown(asked).into()),
            },
        };
        let value = self
            .vault()
            .unseal(&context(call.scope, name, shown), sealed)?;
        self.change(call, || {
            let mut work = Work::default();
            work.record(call, name, shown, SecretDeed::Revealed)?;
            Ok(work)
        })?;
        Ok(Revealed {
            value,
            version: shown,
            instead_of: None,
        })
    }

    /// All versions that are kept, oldest first.
    ///
    /// # Errors
    /// [`SecretError::Unknown`] when there is none.
    pub fn versions(
        &self,
        journal: &Arc<dyn Journal>,
        scope: &Scope,
        name: &str,
    ) -> Result<Vec<VersionFacts>, SecretError> {
        let found = load_from(journal, scope, name)?.filter(|(stored, _)| !stored.removed);
        let (stored, _) = found.ok_or_else(|| SecretError::Unknown(name.to_owned()))?;
        let current = stored.secret.current().map(|(version, _)| version);
        let facts = stored.secret.versions().iter();
        Ok(facts
            .map(|(version, kept)| VersionFacts {
                version: *version,
                created_at: kept.at(),
                revoked_at: kept.revoked(),
                origin: kept.origin().clone(),
                is_current: Some(*version) == current,
            })
            .collect())
    }

    /// What was done with one secret, oldest first.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn deeds(
        &self,
        journal: &Arc<dyn Journal>,
        scope: &Scope,
        name: &str,
    ) -> Result<Vec<(Timestamp, SecretRecord)>, SecretError> {
        let stream = stream(scope);
        let (mut after, mut deeds) = (0, Vec::new());
        loop {
            let page = journal.read(&stream, after, PAGE)?;
            let is_last = page.len() < PAGE;
            for record in page {
                after = record.sequence;
                let read = read_record(&record).filter(|(_, deed)| deed.name == name);
                deeds.extend(read.map(|(_, deed)| (record.at, deed)));
            }
            if is_last {
                return Ok(deeds);
            }
        }
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
                    let found = stored.secret.versions().get(&version);
                    facts.push(SecretFacts {
                        name: name.to_owned(),
                        version,
                        created_at: found.map_or(Timestamp::EPOCH, Version::at),
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
    ) -> Result<Revealed, SecretError> {
        let found = load_from(journal, scope, name)?;
        let (stored, _) = found.ok_or_else(|| SecretError::Unknown(name.to_owned()))?;
        let resolved = stored
            .secret
            .resolve(version)
            .ok_or(SecretError::AllRevoked)?;
        if let Some(asked) = resolved.instead_of {
            let used = resolved.version;
            tracing::warn!(%scope, name, asked, used, "a pinned version was revoked; the newest is used");
        }
        let context = context(scope, name, resolved.version);
        Ok(Revealed {
            value: self.vault().unseal(&context, resolved.sealed)?,
            version: resolved.version,
            instead_of: resolved.instead_of,
        })
    }

    /// Of the versions a release pinned, those that others serve for: name, pinned version, and the one that is used.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn replaced(
        &self,
        journal: &Arc<dyn Journal>,
        scope: &Scope,
        pinned: &BTreeMap<String, u64>,
    ) -> Result<Vec<(String, u64, Option<u64>)>, SecretError> {
        let mut replaced = Vec::new();
        for (name, version) in pinned {
            let Some((stored, _)) = load_from(journal, scope, name)? else {
                continue;
            };
            let used = stored.secret.resolve(*version);
            if used.is_none_or(|used| used.instead_of.is_some()) {
                replaced.push((name.clone(), *version, used.map(|used| used.version)));
            }
        }
        Ok(replaced)
    }

    /// Does some work on the secrets of an environment, again where somebody else was faster.
    fn change(
        &self,
        call: &SecretCall<'_>,
        work: impl Fn() -> Result<Work, SecretError>,
    ) -> Result<Vec<Kept>, SecretError> {
        let _guard = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let stream = stream(call.scope);
        for _ in 0..TRIES {
            let last = call.journal.last(&stream)?;
            let Work {
                records,
                changes,
                kept,
            } = work()?;
            if records.is_empty() {
                return Ok(kept);
            }
            let appended = call.journal.append_with(&stream, last, &records, &changes);
            match appended {
                Ok(_) => return Ok(kept),
                Err(AppendError::Conflict { .. } | AppendError::Document(_)) => {}
                Err(error @ (AppendError::Damaged { .. } | AppendError::Storage(_))) => {
                    return Err(SecretError::Append(error));
                }
            }
        }
        Err(SecretError::Busy)
    }
}

/// A record of the streams of secrets with its environment; `None` where it is none.
pub fn read_record(record: &Record) -> Option<(Scope, SecretRecord)> {
    if record.kind != SECRET_KIND {
        return None;
    }
    let (app, environment) = record.stream.strip_prefix(STREAMS)?.split_once('/')?;
    let scope = Scope {
        app: app.parse().ok()?,
        environment: environment.parse().ok()?,
    };
    Some((scope, record.json().ok()?))
}

/// What is to be written, all of it or none.
#[derive(Default)]
struct Work {
    records: Vec<NewRecord>,
    changes: Vec<Change>,
    kept: Vec<Kept>,
}

impl Work {
    fn put(
        &mut self,
        call: &SecretCall<'_>,
        name: &str,
        stored: &Stored,
        expected: u64,
    ) -> Result<(), SecretError> {
        let body = serde_json::to_vec(stored).map_err(SecretError::Unreadable)?;
        let key = key(call.scope, name);
        let change = Change::put(COLLECTION, &key, Some(expected), body);
        self.changes.push(change);
        Ok(())
    }

    fn record(
        &mut self,
        call: &SecretCall<'_>,
        name: &str,
        version: u64,
        deed: SecretDeed,
    ) -> Result<(), SecretError> {
        let body = SecretRecord {
            name: name.to_owned(),
            version,
            deed,
            by: call.by.to_owned(),
        };
        let record = NewRecord::json(SECRET_KIND, RECORD_VERSION, call.now, &body);
        self.records.push(record.map_err(SecretError::Unreadable)?);
        Ok(())
    }

    fn kept(&mut self, name: &str, version: u64, is_new: bool) {
        self.kept.push(Kept {
            name: name.to_owned(),
            version,
            is_new,
        });
    }
}

fn deed_of(origin: &Origin) -> SecretDeed {
    match origin {
        Origin::Set => SecretDeed::Set,
        Origin::Imported => SecretDeed::Imported,
        Origin::RolledBack { .. } => SecretDeed::RolledBack,
        Origin::Rotated => SecretDeed::Rotated,
        Origin::Unknown => SecretDeed::Unknown,
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
    let (name, bytes) = (name.to_owned(), value.reveal().len());
    if bytes > SECRET_BYTES_MAX {
        return Err(SecretError::TooLong { name, bytes });
    }
    if value.reveal().contains('\0') {
        return Err(SecretError::Nul(name));
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

fn stream(scope: &Scope) -> String {
    format!("{STREAMS}{scope}")
}

fn load(call: &SecretCall<'_>, name: &str) -> Result<Option<(Stored, u64)>, SecretError> {
    load_from(call.journal, call.scope, name)
}

/// One that was not removed.
fn load_present(call: &SecretCall<'_>, name: &str) -> Result<(Stored, u64), SecretError> {
    let found = load(call, name)?.filter(|(stored, _)| !stored.removed);
    found.ok_or_else(|| SecretError::Unknown(name.to_owned()))
}

fn load_from(
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
