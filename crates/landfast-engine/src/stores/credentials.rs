//! Passwords of the logins of stores: made here, sealed under the host's key, and nowhere else on disk in the clear.

use landfast_datastore::Login;
use landfast_journal::{Change, Document, PutError};
use landfast_secrets::{Context, Sealed, Vault};
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
/// The next password of Landfast's own login, on disk before the server hears of it. No login is called so.
const NEXT: &str = "landfast_next";
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
    kept_or_made(shared, scope, store, &login.to_string())
}

fn kept_or_made(
    shared: &Shared,
    scope: &Scope,
    store: &StoreName,
    login: &str,
) -> Result<Secret<String>, String> {
    if let Some(known) = read(shared, scope, store, login)? {
        return Ok(known);
    }
    let made = fresh();
    let put = shared.secrets.sealing(|vault| {
        let body = sealed(vault, scope, store, login, &made)?;
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

/// The password that Landfast's own login gets next. Where there is none yet it is made and on disk before the server is told.
pub(super) fn next(
    shared: &Shared,
    scope: &Scope,
    store: &StoreName,
) -> Result<Secret<String>, String> {
    kept_or_made(shared, scope, store, NEXT)
}

/// What opens Landfast's own login: its password and, while it is being changed, the next one.
pub(super) fn own(
    shared: &Shared,
    scope: &Scope,
    store: &StoreName,
) -> Result<Vec<Secret<String>>, String> {
    // In this order: between the two the next one may have become the password.
    let next = read(shared, scope, store, NEXT)?;
    let known = password(shared, scope, store, Login::Administrator)?;
    Ok([known].into_iter().chain(next).collect())
}

/// The next password of Landfast's own login is the password from now on.
pub(super) fn promote_next(
    shared: &Shared,
    scope: &Scope,
    store: &StoreName,
) -> Result<(), String> {
    let own = Login::Administrator.to_string();
    let next = read(shared, scope, store, NEXT)?.ok_or("there is no next password")?;
    let changed = shared.secrets.sealing(|vault| {
        let body = sealed(vault, scope, store, &own, &next)?;
        let changes = [
            Change::put(COLLECTION, &key(scope, store, &own), None, body),
            Change::delete(COLLECTION, &key(scope, store, NEXT), None),
        ];
        let changed = shared.journal.change(&changes);
        changed.map_err(|error| chain(&error))
    });
    changed.map(drop)
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
    let names = names(shared, scope, store)?;
    let logins = names.iter().filter_map(|name| Login::parse(name));
    Ok(logins.collect())
}

fn names(shared: &Shared, scope: &Scope, store: &StoreName) -> Result<Vec<String>, String> {
    let prefix = format!("{scope}/{store}/");
    let page = shared.journal.list(COLLECTION, Some(&prefix), PAGE);
    let page = page.map_err(|error| chain(&error))?;
    let names = page
        .iter()
        .filter_map(|document| document.key.strip_prefix(&prefix));
    Ok(names.map(str::to_owned).collect())
}

pub(crate) fn forget(
    shared: &Shared,
    scope: &Scope,
    store: &StoreName,
    login: Login,
) -> Result<(), String> {
    remove(shared, scope, store, &login.to_string())
}

/// Forgets all of a store.
pub(super) fn forget_all(shared: &Shared, scope: &Scope, store: &StoreName) -> Result<(), String> {
    let names = names(shared, scope, store)?;
    let mut names = names.iter();
    names.try_for_each(|name| remove(shared, scope, store, name))
}

fn remove(shared: &Shared, scope: &Scope, store: &StoreName, login: &str) -> Result<(), String> {
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
    login: &str,
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

fn sealed(
    vault: &Vault,
    scope: &Scope,
    store: &StoreName,
    login: &str,
    password: &Secret<String>,
) -> Result<Vec<u8>, String> {
    let name = secret_name(store, login);
    let sealed = vault.seal(&context(scope, &name), password);
    let sealed = sealed.map_err(|error| chain(&error))?;
    serde_json::to_vec(&Stored { sealed }).map_err(|error| error.to_string())
}

fn key(scope: &Scope, store: &StoreName, login: &str) -> String {
    format!("{scope}/{store}/{login}")
}

/// No secret of a person has a `/` in its name.
fn secret_name(store: &StoreName, login: &str) -> String {
    format!("store/{store}/{login}")
}

fn context<'a>(scope: &'a Scope, name: &'a str) -> Context<'a> {
    Context {
        scope,
        name,
        version: VERSION,
    }
}
