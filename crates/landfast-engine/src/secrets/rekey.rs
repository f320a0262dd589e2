//! Everything that is sealed, moved to another key. No value is decrypted: an envelope's data key is wrapped anew.

use std::sync::Arc;

use landfast_journal::{Document, Journal, PutError, ReadError};
use landfast_secrets::{Context, RewrapError, Sealed, Vault};
use landfast_types::Scope;

use super::{COLLECTION, PAGE, SecretError, TRIES, context, parse};
use crate::{actions::chain, stores};

/// Moves every envelope that an older key sealed to the vault's own key; how many documents that changed.
///
/// # Errors
/// When one does not open, or the journal takes no change. What was moved stays moved; it may be done again.
pub fn rewrap_all(journal: &dyn Journal, vault: &Vault) -> Result<u64, SecretError> {
    let mut all = 0;
    loop {
        let rewrap: Rewrap<'_> = &|context, sealed| rewrapped(vault, context, sealed);
        let secrets = each(journal, COLLECTION, |document| secret(document, rewrap))?;
        let credentials = each(journal, stores::CREDENTIALS, |document| {
            stores::rewrap_credential(document, rewrap)
        })?;
        all += secrets + credentials;
        // Whatever was written while this went on is looked at, too.
        if secrets + credentials == 0 {
            return Ok(all);
        }
    }
}

/// What does not open with the vault, or cannot be read: each document with the reason. Changes nothing, and decrypts no value.
///
/// # Errors
/// When the journal cannot be read.
pub fn unopened(journal: &dyn Journal, vault: &Vault) -> Result<Vec<String>, ReadError> {
    let open: Rewrap<'_> = &|context, sealed| opened(vault, context, sealed).map(|_again| None);
    let mut found = Vec::new();
    for (collection, word) in [(COLLECTION, "secret"), (stores::CREDENTIALS, "password")] {
        let mut after = None::<String>;
        loop {
            let page = journal.list(collection, after.as_deref(), PAGE)?;
            for document in &page {
                let looked = match collection {
                    COLLECTION => secret(document, open),
                    _ => stores::rewrap_credential(document, open),
                };
                if let Err(error) = looked {
                    found.push(format!("{word} `{}`: {}", document.key, chain(&error)));
                }
            }
            match page.last() {
                Some(last) if page.len() == PAGE => after = Some(last.key.clone()),
                Some(_) | None => break,
            }
        }
    }
    Ok(found)
}

/// Another envelope of the same value; `None`: it stays.
pub(crate) type Rewrap<'a> =
    &'a dyn Fn(&Context<'_>, &Sealed) -> Result<Option<Sealed>, SecretError>;

/// Changes the documents of a collection for which there is another body.
fn each(
    journal: &dyn Journal,
    collection: &str,
    change: impl Fn(&Document) -> Result<Option<Vec<u8>>, SecretError>,
) -> Result<u64, SecretError> {
    let (mut after, mut changed) = (None::<String>, 0);
    loop {
        let page = journal.list(collection, after.as_deref(), PAGE)?;
        for document in &page {
            changed += u64::from(one(journal, collection, document.clone(), &change)?);
        }
        match page.last() {
            Some(last) if page.len() == PAGE => after = Some(last.key.clone()),
            Some(_) | None => return Ok(changed),
        }
    }
}

fn one(
    journal: &dyn Journal,
    collection: &str,
    mut document: Document,
    change: impl Fn(&Document) -> Result<Option<Vec<u8>>, SecretError>,
) -> Result<bool, SecretError> {
    for _ in 0..TRIES {
        let Some(body) = change(&document)? else {
            return Ok(false);
        };
        match journal.put(collection, &document.key, Some(document.revision), body) {
            Ok(_) => return Ok(true),
            Err(PutError::Conflict(_)) => {}
            Err(error) => return Err(error.into()),
        }
        match journal.get(collection, &document.key)? {
            Some(newer) => document = newer,
            None => return Ok(false),
        }
    }
    Err(SecretError::Busy)
}

fn secret(document: &Document, rewrap: Rewrap<'_>) -> Result<Option<Vec<u8>>, SecretError> {
    let Some((scope, name)) = place(&document.key) else {
        return Ok(None);
    };
    let mut stored = parse(document)?;
    let changed = stored.secret.rewrap(|version, sealed| {
        let context = context(&scope, &name, version);
        rewrap(&context, sealed)
    })?;
    let body = changed.then(|| serde_json::to_vec(&stored));
    body.transpose().map_err(SecretError::Unreadable)
}

/// The envelope under the vault's own key; `None` where it is.
fn rewrapped(
    vault: &Vault,
    context: &Context<'_>,
    sealed: &Sealed,
) -> Result<Option<Sealed>, SecretError> {
    let is_older = |older: &&Arc<Vault>| older.key_id() == sealed.key_id();
    match vault.older().filter(is_older) {
        Some(_) => opened(vault, context, sealed).map(Some),
        None => Ok(None),
    }
}

/// The envelope under the vault's own key, whichever of its keys it is under.
fn opened(vault: &Vault, context: &Context<'_>, sealed: &Sealed) -> Result<Sealed, SecretError> {
    let is_older = |older: &&Arc<Vault>| older.key_id() == sealed.key_id();
    let key = vault.older().filter(is_older).map_or(vault, Arc::as_ref);
    match vault.rewrap(key, context, sealed) {
        Ok(sealed) => Ok(sealed),
        Err(RewrapError::Unseal(error)) => Err(error.into()),
        Err(RewrapError::Key(error)) => Err(error.into()),
    }
}

/// Environment and name of a key `app/environment/name`.
pub(crate) fn place(key: &str) -> Option<(Scope, String)> {
    let (app, rest) = key.split_once('/')?;
    let (environment, name) = rest.split_once('/')?;
    let scope = Scope {
        app: app.parse().ok()?,
        environment: environment.parse().ok()?,
    };
    Some((scope, name.to_owned()))
}
