//! What a process is given to reach the stores it uses, resolved at each start.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use landfast_datastore::{Login, Phase, application_name, pool_max, with_application_name};
use landfast_secrets::rotation::Turn;
use landfast_spec::{AppSpec, Part, Place, StoreSpec, injected_variables};
use landfast_types::{ReleaseId, Scope, Secret, StoreName};
use tokio::time::{sleep, timeout};

use super::{
    Handle, StoreView, bindings::served_by, credentials, host, rotation::release_login, url_of,
};
use crate::{
    actions::chain, driver::View, release::ReleaseBody, secrets::SecretError, shared::Shared,
};

/// A store that is not ready by then fails the start that waits for it. It goes on by itself.
const READY_MAX: Duration = Duration::from_secs(300);
/// A store that could not be started so often in a row is told of at once.
const FAILURES_MAX: u32 = 3;
/// A new release is recorded before its stores are.
const BEGIN_MAX: Duration = Duration::from_secs(10);

/// From where a store is to be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// A process of the host.
    Host,
    /// A container in the store's network.
    Container,
}

/// The variables of a process of a release that uses these stores.
///
/// # Errors
/// A sentence that names the store.
pub(crate) async fn connections(
    shared: &Shared,
    scope: &Scope,
    body: &ReleaseBody,
    uses: &[StoreName],
    is_container: bool,
) -> Result<BTreeMap<String, Secret<String>>, String> {
    let stores = &body.spec.stores;
    let mut urls = BTreeMap::new();
    for name in uses {
        let spec = stores.get(name);
        let spec = spec.ok_or_else(|| format!("release {} has no store `{name}`", body.release))?;
        let side = match is_container {
            true => Side::Container,
            false => Side::Host,
        };
        if let Some(url) = url(shared, scope, body, name, spec, side).await? {
            urls.insert(name.clone(), url);
        }
    }
    let mut given = BTreeMap::new();
    for (variable, (name, part)) in injected_variables(uses, |name| Some(stores.get(name)?.kind()))
    {
        let value = match part {
            Part::Url => urls.get(&name).cloned(),
            Part::Endpoint
            | Part::Bucket
            | Part::Region
            | Part::PathStyle
            | Part::AccessKey
            | Part::SecretKey => bucket_part(shared, scope, body, &stores[&name].place, part)?,
            Part::PoolMax | Part::PoolMin | Part::PoolTimeout | Part::PoolIdle => {
                pool_part(&body.spec, &name, part).map(|number| Secret::new(number.to_string()))
            }
        };
        given.extend(value.map(|value| (variable, value)));
    }
    Ok(given)
}

/// The address of a store; `None` for a bucket, which has none.
async fn url(
    shared: &Shared,
    scope: &Scope,
    body: &ReleaseBody,
    name: &StoreName,
    spec: &StoreSpec,
    side: Side,
) -> Result<Option<Secret<String>>, String> {
    match &spec.place {
        Place::Managed { .. } => {
            let login = |turn| release_login(body.release, turn);
            let store = served_by(shared, scope, Some(body.release), name);
            managed_url(shared, scope, &store, login, side)
                .await
                .map(Some)
        }
        Place::External { url_secret } => {
            let url = secret(shared, scope, body, url_secret)?;
            // Its sessions tell which release they are of, where we may make no logins.
            let application = application_name(scope, body.release);
            Ok(Some(with_application_name(&url, &application)))
        }
        Place::Bucket { .. } => Ok(None),
    }
}

/// The address of a managed store with a login that is made if need be: the one that is given in this turn.
pub(crate) async fn managed_url(
    shared: &Shared,
    scope: &Scope,
    name: &StoreName,
    login: impl Fn(Turn) -> Login,
    side: Side,
) -> Result<Secret<String>, String> {
    let at_store = |reason: String| format!("store `{name}`: {reason}");
    let handle = handle(shared, scope, name).await.map_err(at_store)?;
    let view = ready(&handle).await.map_err(at_store)?;
    let store = &view.store;
    // No login is taken away while this is held.
    let mut made = handle.logins.lock().await;
    let login = login(handle.rotation.borrow().rotation.given());
    let password = credentials::password(shared, scope, name, login).map_err(at_store)?;
    if !made.contains(&(store.starts, login)) {
        let mut session = host::connect(shared, store).await.map_err(at_store)?;
        let ensured = session.ensure_login(&login.to_string(), &password).await;
        ensured.map_err(|error| at_store(chain(&error)))?;
        made.insert((store.starts, login));
    }
    let url = url_of(shared, store, login, &password, side).await;
    url.map_err(at_store)
}

async fn handle(shared: &Shared, scope: &Scope, name: &StoreName) -> Result<Handle, String> {
    let look = async {
        loop {
            if let Some(handle) = shared.stores.handle(scope, name) {
                return handle;
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    let found = timeout(BEGIN_MAX, look).await;
    found.map_err(|_| "this host does not keep it".to_owned())
}

/// Waits until it is ready, or is known not to become so soon.
pub(super) async fn ready(handle: &Handle) -> Result<Arc<StoreView>, String> {
    let mut view = handle.view.clone();
    let decided = view.wait_for(|view| match &view.store.phase {
        Phase::Ready { .. } | Phase::Deleted { .. } | Phase::Removing => true,
        Phase::Making { .. } | Phase::Down { .. } => {
            view.store.trouble().is_some() && view.store.failures >= FAILURES_MAX
        }
        Phase::Starting { .. } | Phase::Stopping { .. } => false,
    });
    let decided = timeout(READY_MAX, decided).await;
    let view = match decided {
        Ok(Ok(view)) => view.clone(),
        Ok(Err(_)) => return Err("it was removed".to_owned()),
        Err(_) => return Err("it is not ready after 5 minutes".to_owned()),
    };
    match (&view.store.phase, view.store.trouble()) {
        (Phase::Ready { .. }, _) => Ok(view),
        (Phase::Deleted { .. } | Phase::Removing, _) => {
            let name = &view.store.name;
            Err(format!(
                "it is deleted; `landfast store undelete {name}` brings it back"
            ))
        }
        (_, Some(reason)) => Err(reason.to_owned()),
        (_, None) => Err(format!("it is {}", view.store.word())),
    }
}

/// How connections are kept, as the release's own manifest says: no instance is told anew when another release comes.
fn pool_part(spec: &AppSpec, name: &StoreName, part: Part) -> Option<u64> {
    let pool = spec.stores.get(name)?.pool.as_ref()?;
    // What asks for too much was refused before; what a person scaled up meanwhile still gets one.
    let max = pool_max(spec, name).unwrap_or(Some(1))?;
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    match part {
        Part::PoolMax => Some(max.into()),
        Part::PoolMin => Some(pool.min.min(max).into()),
        Part::PoolTimeout => Some(millis(pool.timeout)),
        Part::PoolIdle => Some(millis(pool.idle)),
        Part::Url
        | Part::Endpoint
        | Part::Bucket
        | Part::Region
        | Part::PathStyle
        | Part::AccessKey
        | Part::SecretKey => None,
    }
}

fn bucket_part(
    shared: &Shared,
    scope: &Scope,
    body: &ReleaseBody,
    place: &Place,
    part: Part,
) -> Result<Option<Secret<String>>, String> {
    let Place::Bucket {
        endpoint,
        bucket,
        region,
        path_style,
        access_key_secret,
        secret_key_secret,
    } = place
    else {
        return Ok(None);
    };
    let plain = |text: &str| Ok(Some(Secret::new(text.to_owned())));
    match part {
        Part::Url | Part::PoolMax | Part::PoolMin | Part::PoolTimeout | Part::PoolIdle => Ok(None),
        Part::Endpoint => match endpoint {
            Some(endpoint) => plain(endpoint),
            None => plain(&format!("https://s3.{region}.amazonaws.com")),
        },
        Part::Bucket => plain(bucket),
        Part::Region => plain(region),
        Part::PathStyle => plain(&path_style.to_string()),
        Part::AccessKey => secret(shared, scope, body, access_key_secret).map(Some),
        Part::SecretKey => secret(shared, scope, body, secret_key_secret).map(Some),
    }
}

fn secret(
    shared: &Shared,
    scope: &Scope,
    body: &ReleaseBody,
    name: &str,
) -> Result<Secret<String>, String> {
    let found = secret_of_store(shared, scope, name, Some(&body.secrets))?;
    found.ok_or_else(|| format!("there is no secret `{name}`"))
}

/// The value of a person's secret that a store of somebody else is reached with (decision 0026): the version that the release
/// pinned, or a newer one that a release was sealed with. Without pins it is for whoever works beside the releases.
pub(crate) fn secret_of_store(
    shared: &Shared,
    scope: &Scope,
    name: &str,
    pins: Option<&BTreeMap<String, u64>>,
) -> Result<Option<Secret<String>>, String> {
    let at_secret = |error: SecretError| format!("secret `{name}`: {}", chain(&error));
    let own = pins.and_then(|pins| pins.get(name)).copied();
    let view = shared.environment(scope);
    let proven = view.and_then(|view| proven(&view, name, pins.is_none()));
    let version = match own.max(proven) {
        Some(version) => version,
        None if pins.is_some() => return Ok(None),
        // Nothing has served yet.
        None => {
            let newest = shared.secrets.current(&shared.journal, scope);
            match newest.map_err(at_secret)?.get(name) {
                Some(version) => *version,
                None => return Ok(None),
            }
        }
    };
    let revealed = shared.secrets.reveal(&shared.journal, scope, name, version);
    Ok(Some(revealed.map_err(at_secret)?.value))
}

/// The newest version that a release served with until it was sealed; for whoever works beside the releases, one with all traffic
/// counts, too.
fn proven(view: &View, name: &str, is_beside: bool) -> Option<u64> {
    let pin = |release: ReleaseId| view.bodies.get(&release)?.secrets.get(name).copied();
    let releases = view.state.releases.iter();
    let sealed = releases.filter(|(_, record)| record.sealed_at.is_some());
    let newest = sealed.filter_map(|(release, _)| pin(*release)).max();
    let promoted = view.state.rollout.as_ref().filter(|_| is_beside);
    let promoted = promoted.filter(|rollout| rollout.is_promoted());
    newest.max(promoted.and_then(|rollout| pin(rollout.to)))
}
