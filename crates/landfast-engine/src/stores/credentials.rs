//! Passwords of the logins of stores: made here, sealed under the host's key, and nowhere else on disk in the clear.

use landfast_datastore::Login;
use landfast_journal::{Change, Document, PutError};
use landfast_secrets::{Context, Sealed};
use landfast_types::{Scope, Secret, StoreName};
use rand::distr::{Alphanumeric, SampleString as _};
use serde::{Deserialize, Serialize};

use crate::{
    actions::chain,
    secrets::{Rewrap, SecretError, place},
    shared::Shared,
};

/// The journal's collection of sealed passwords.
pub const COLLECTION: &str = "store-credentials";
/// 238 bits.
const PASSWORD_LEN: usize = 40;
/// Each password has a login of its own, so there is one version of each.
const VERSION: u64 = 1;
const PAGE: usize = 1_000;

#[derive(Serialize, Deserialize)]
struct Stored {
    sealed: Sealed,
}

/// The password of a login. Where there is none yet it is made and on disk before anybody is told.
pub(crate) fn password(
    shared: &Shared,
    scope: &Scope,
    store: &StoreName,
    login: Login,
) -> Result<Secret<String>, String> {
    if let Some(known) = read(shared, scope, store, login)? {
        return Ok(known);
    }
    let made = fresh();
    let name = secret_name(store, login);
    let put = shared.secrets.sealing(|vault| {
        let sealed = vault.seal(&context(scope, &name), &made);
        let sealed = sealed.map_err(|error| chain(&error))?;
        let body = serde_json::to_vec(&Stored { sealed }).map_err(|error| error.to_string())?;
        let key = key(scope, store, login);
        match shared.journal.put(COLLECTION, &key, Some(0), body) {
            Ok(_) => Ok(true),
            Err(PutError::Conflict(_)) => Ok(false),
            Err(error) => Err(chain(&error)),
        }
    });
    if put? {
        return Ok(made);
    }
    // Somebody else made one at the same time: that one counts.
    let known = read(shared, scope, store, login)?;
    known.ok_or_else(|| "its password was removed meanwhile".to_owned())
}

/// A password nobody knows yet.
pub(super) fn fresh() -> Secret<String> {
    Secret::new(Alphanumeric.sample_string(&mut rand::rng(), PASSWORD_LEN))
}

/// The document of a credential in another envelope; `None` where it stays.
pub(crate) fn rewrap(
    document: &Document,
    rewrap: Rewrap<'_>,
) -> Result<Option<Vec<u8>>, SecretError> {
    // `app/environment/store/login`.
    let Some((scope, name)) = place(&document.key) else {
        return Ok(None);
    };
    let stored: Stored = serde_json::from_slice(&document.body).map_err(SecretError::Unreadable)?;
    let name = format!("store/{name}");
    let sealed = rewrap(&context(&scope, &name), &stored.sealed)?;
    let body = sealed.map(|sealed| serde_json::to_vec(&Stored { sealed }));
    body.transpose().map_err(SecretError::Unreadable)
}

/// The logins of a store that have a password.
pub(crate) fn logins(
    shared: &Shared,
    scope: &Scope,
    store: &StoreName,
) -> Result<Vec<Login>, String> {
    let prefix = format!("{scope}/{store}/");
    let page = shared.journal.list(COLLECTION, Some(&prefix), PAGE);
    let page = page.map_err(|error| chain(&error))?;
    let names = page
        .iter()
        .filter_map(|document| document.key.strip_prefix(&prefix));
    Ok(names.filter_map(Login::parse).collect())
}

pub(crate) fn forget(
    shared: &Shared,
    scope: &Scope,
    store: &StoreName,
    login: Login,
) -> Result<(), String> {
    let key = key(scope, store, login);
    let gone = shared
        .journal
        .change(&[Change::delete(COLLECTION, &key, None)]);
    gone.map(drop).map_err(|error| chain(&error))
}

fn read(
    shared: &Shared,
    scope: &Scope,
    store: &StoreName,
    login: Login,
) -> Result<Option<Secret<String>>, String> {
    let found = shared.journal.get(COLLECTION, &key(scope, store, login));
    let Some(document) = found.map_err(|error| chain(&error))? else {
        return Ok(None);
    };
    let stored: Stored =
        serde_json::from_slice(&document.body).map_err(|error| error.to_string())?;
    let name = secret_name(store, login);
    let opened = shared
        .secrets
        .vault()
        .unseal(&context(scope, &name), &stored.sealed);
    opened.map(Some).map_err(|error| chain(&error))
}

fn key(scope: &Scope, store: &StoreName, login: Login) -> String {
    format!("{scope}/{store}/{login}")
}

/// No secret of a person has a `/` in its name.
fn secret_name(store: &StoreName, login: Login) -> String {
    format!("store/{store}/{login}")
}

fn context<'a>(scope: &'a Scope, name: &'a str) -> Context<'a> {
    Context {
        scope,
        name,
        version: VERSION,
    }
}
