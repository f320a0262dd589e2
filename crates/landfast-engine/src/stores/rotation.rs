//! The passwords that releases reach a managed store with, and how they change: what is recorded, and what is done at
//! the store. What restarts instances is `platform::rotate`.
//!
//! The stream `rotations/<app>/<environment>/<store>` has every step before it is done. Every release has two logins,
//! `release_3` and `release_3_b`; all releases are in the same turn, so a rotation also ends the logins of older releases
//! that nothing runs of. A release that is gone back to gets a login, and a password, at its next start.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use landfast_datastore::{Login, Store};
use landfast_datastore_client::{Access, Session};
use landfast_journal::{AppendError, NewRecord, Record};
use landfast_secrets::rotation::{Phase, Rotation, RotationEvent, RotationInput, Turn};
use landfast_types::{ReleaseId, Scope, StoreName, Timestamp};
use tokio::time::sleep;

use super::{
    CommandError, Handle,
    connections::{self, Side},
    credentials, host,
};
use crate::{
    actions::{chain, instant_in},
    shared::Shared,
};

/// The kind of the records of rotations.
pub const ROTATION_KIND: &str = "rotation";
const STREAMS: &str = "rotations/";
const RECORD_VERSION: u16 = 1;
const PAGE: usize = 1_000;
/// Sessions of a login that no instance holds any more may end by themselves for so long.
const SESSIONS_WAIT: Duration = Duration::from_secs(30);
const SESSIONS_ASK: Duration = Duration::from_millis(250);

/// How far the change of a store's passwords has come.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RotationView {
    pub rotation: Rotation,
    /// How many records made it.
    pub sequence: u64,
    /// When the newest one began, and who wanted it.
    pub begun: Option<(Timestamp, String)>,
    /// Since when the newest password is the only one.
    pub settled_at: Option<Timestamp>,
    /// How often the password of Landfast's own login was changed.
    pub renewed: u64,
}

impl RotationView {
    fn take(&mut self, at: Timestamp, event: &RotationEvent) {
        self.sequence += 1;
        match event {
            RotationEvent::Begun { by } | RotationEvent::Retried { by } => {
                self.begun = Some((at, by.clone()));
            }
            RotationEvent::Settled => {
                self.settled_at = Some(at);
                self.renewed += u64::from(*self.rotation.phase() == Phase::Renewing);
            }
            RotationEvent::Opened
            | RotationEvent::Closed
            | RotationEvent::Switched
            | RotationEvent::Counted { .. }
            | RotationEvent::Ordered { .. }
            | RotationEvent::Released
            | RotationEvent::Abandoned
            | RotationEvent::Failed { .. } => {}
        }
        self.rotation.apply(event);
    }
}

/// The login of a release in a turn.
pub(crate) fn release_login(release: ReleaseId, turn: Turn) -> Login {
    match turn {
        Turn::First => Login::Release(release),
        Turn::Second => Login::ReleaseOther(release),
    }
}

fn turn_of(login: Login) -> Option<Turn> {
    match login {
        Login::Release(_) | Login::Operator => Some(Turn::First),
        Login::ReleaseOther(_) | Login::OperatorOther => Some(Turn::Second),
        Login::Administrator | Login::Rehearsal => None,
    }
}

/// The login of migrations and people in a turn.
pub fn operator_login(turn: Turn) -> Login {
    match turn {
        Turn::First => Login::Operator,
        Turn::Second => Login::OperatorOther,
    }
}

// --------------------------------------------------------------------------------------------------------- records

fn stream(scope: &Scope, name: &StoreName) -> String {
    format!("{STREAMS}{scope}/{name}")
}

/// A record of a rotation with its environment and store; `None` where it is none.
pub fn read_record(record: &Record) -> Option<(Scope, StoreName, RotationEvent)> {
    if record.kind != ROTATION_KIND {
        return None;
    }
    let mut parts = record.stream.strip_prefix(STREAMS)?.split('/');
    let scope = Scope {
        app: parts.next()?.parse().ok()?,
        environment: parts.next()?.parse().ok()?,
    };
    Some((scope, parts.next()?.parse().ok()?, record.json().ok()?))
}

/// Reads back how far the rotation of a store has come.
pub(super) fn read(
    shared: &Shared,
    scope: &Scope,
    name: &StoreName,
) -> Result<RotationView, String> {
    let stream = stream(scope, name);
    let mut view = RotationView::default();
    loop {
        let page = shared.journal.read(&stream, view.sequence, PAGE);
        let page = page.map_err(|error| chain(&error))?;
        let is_last = page.len() < PAGE;
        for record in page {
            let event = record.json::<RotationEvent>();
            // Whoever guesses who holds which password locks somebody out.
            let event = event
                .map_err(|error| format!("record {} of `{stream}`: {error}", record.sequence))?;
            view.take(record.at, &event);
        }
        if is_last {
            return Ok(view);
        }
    }
}

/// The same for stores that were read back.
pub(super) fn read_back(
    shared: &Shared,
    stores: Vec<(Store, u64)>,
) -> Result<Vec<(Store, u64, RotationView)>, String> {
    let with_rotation = |(store, revision): (Store, u64)| {
        let rotation = read(shared, &store.scope, &store.name)?;
        Ok((store, revision, rotation))
    };
    stores.into_iter().map(with_rotation).collect()
}

/// Records what an input changes.
///
/// # Errors
/// [`CommandError`]; nothing has changed then.
pub(crate) async fn record(
    shared: &Arc<Shared>,
    scope: &Scope,
    name: &StoreName,
    input: RotationInput,
) -> Result<Arc<RotationView>, CommandError> {
    let handle = shared
        .stores
        .handle(scope, name)
        .ok_or(CommandError::Unknown)?;
    let _one_writer = handle.recording.lock().await;
    if shared.replaced.borrow().is_some() {
        return Err(CommandError::Stopping);
    }
    let view = handle.rotation.borrow().clone();
    let events = view.rotation.decide(input)?;
    if events.is_empty() {
        return Ok(view);
    }
    let now = shared.clock.now();
    let record = |event| NewRecord::json(ROTATION_KIND, RECORD_VERSION, now, event);
    let records: Result<Vec<_>, _> = events.iter().map(record).collect();
    let records = records.map_err(|error| CommandError::Journal(error.to_string()))?;
    let (journal, stream) = (Arc::clone(&shared.journal), stream(scope, name));
    let expected = view.sequence;
    let append = move || journal.append(&stream, expected, &records);
    let appended = tokio::task::spawn_blocking(append).await;
    let appended = appended.map_err(|error| CommandError::Journal(error.to_string()))?;
    match appended {
        Ok(_) => {}
        Err(conflict @ AppendError::Conflict { .. }) => {
            // Another server writes this stream: this one has been replaced and must not act.
            let by = Some(conflict.to_string());
            shared.replaced.send_replace(by);
            return Err(CommandError::Stopping);
        }
        Err(error) => return Err(CommandError::Journal(chain(&error))),
    }
    let mut next = view.as_ref().clone();
    for event in &events {
        tracing::info!(%scope, store = %name, ?event, "the rotation of its password goes on");
        next.take(now, event);
    }
    let next = Arc::new(next);
    handle.rotation.send_replace(Arc::clone(&next));
    shared.position.send_modify(|position| *position += 1);
    Ok(next)
}

// ----------------------------------------------------------------------------------------------------- at the store

fn handle(shared: &Shared, scope: &Scope, name: &StoreName) -> Result<Handle, String> {
    let handle = shared.stores.handle(scope, name);
    handle.ok_or_else(|| format!("there is no store `{name}` any more"))
}

/// Gives releases, migrations and people their logins in a turn that nobody is given yet, with new passwords.
pub(crate) async fn open(
    shared: &Shared,
    scope: &Scope,
    name: &StoreName,
    releases: &BTreeSet<ReleaseId>,
    turn: Turn,
) -> Result<(), String> {
    let handle = handle(shared, scope, name)?;
    {
        let mut made = handle.logins.lock().await;
        still_ours(shared, scope, name, &handle)?;
        // A login that was there before rotations took it along has an old one.
        for login in of_turn(shared, scope, name, turn)? {
            credentials::forget(shared, scope, name, login)?;
            made.retain(|(_, known)| *known != login);
        }
    }
    open_more(shared, scope, name, releases, turn).await
}

/// The same for who came later; what was given before stays.
pub(crate) async fn open_more(
    shared: &Shared,
    scope: &Scope,
    name: &StoreName,
    releases: &BTreeSet<ReleaseId>,
    turn: Turn,
) -> Result<(), String> {
    connections::managed_url(
        shared,
        scope,
        name,
        |_given| operator_login(turn),
        Side::Host,
    )
    .await?;
    for release in releases {
        let login = |_given| release_login(*release, turn);
        connections::managed_url(shared, scope, name, login, Side::Host).await?;
    }
    Ok(())
}

/// Logs in with them as an instance would.
pub(crate) async fn try_logins(
    shared: &Shared,
    scope: &Scope,
    name: &StoreName,
    releases: &BTreeSet<ReleaseId>,
    turn: Turn,
) -> Result<(), String> {
    let handle = handle(shared, scope, name)?;
    let view = connections::ready(&handle).await?;
    let logins = releases.iter().map(|release| release_login(*release, turn));
    for login in logins.chain([operator_login(turn)]) {
        let access = Access {
            login: login.to_string(),
            password: credentials::password(shared, scope, name, login)?,
            ..host::access(shared, &view.store)?
        };
        let tried = Session::try_login(&access).await;
        tried.map_err(|error| format!("`{login}` cannot log in: {}", chain(&error)))?;
    }
    Ok(())
}

fn of_turn(
    shared: &Shared,
    scope: &Scope,
    name: &StoreName,
    turn: Turn,
) -> Result<Vec<Login>, String> {
    let logins = credentials::logins(shared, scope, name)?;
    let of_turn = |login: &Login| turn_of(*login) == Some(turn);
    Ok(logins.into_iter().filter(of_turn).collect())
}

/// Takes the logins of a turn away. Nobody holds them; sessions that are left all the same may end by themselves for a
/// while, then they are ended. False while a copy is worked on with one of them.
pub(crate) async fn close(
    shared: &Shared,
    scope: &Scope,
    name: &StoreName,
    turn: Turn,
) -> Result<bool, String> {
    let handle = handle(shared, scope, name)?;
    let store = connections::ready(&handle).await?.store.clone();
    // One that is made now has the other login.
    if handle.copying.try_lock().is_err() {
        return Ok(false);
    }
    let logins = of_turn(shared, scope, name, turn)?;
    let connect = async || host::connect(shared, &store).await;
    let until = instant_in(SESSIONS_WAIT);
    let mut session = connect().await?;
    loop {
        let mut left = 0;
        for login in &logins {
            let counted = session.sessions_of(&login.to_string()).await;
            left += counted.map_err(|error| chain(&error))?;
        }
        if left == 0 {
            break;
        }
        if instant_in(Duration::ZERO) >= until {
            tracing::warn!(%scope, store = %name, sessions = left, "no instance has the old password any more; what still uses it is ended");
            break;
        }
        sleep(SESSIONS_ASK).await;
    }
    let mut made = handle.logins.lock().await;
    still_ours(shared, scope, name, &handle)?;
    for login in logins {
        // Not one connection for all: each may take as long as an answer may.
        let mut session = connect().await?;
        let dropped = session.drop_login(&login.to_string()).await;
        dropped.map_err(|error| chain(&error))?;
        credentials::forget(shared, scope, name, login)?;
        made.retain(|(_, known)| *known != login);
    }
    Ok(true)
}

/// Gives Landfast's own login a new password. The next one is sealed before the server hears of it, and the one before is forgotten
/// when it was tried; in between both are tried by whoever connects. Done again it sets another one. False while something runs
/// that was given the old one and may connect with it still.
pub(crate) async fn renew(
    shared: &Shared,
    scope: &Scope,
    name: &StoreName,
) -> Result<bool, String> {
    let handle = handle(shared, scope, name)?;
    let store = connections::ready(&handle).await?.store.clone();
    let (Ok(_no_copy), Ok(_no_work)) = (handle.copying.try_lock(), handle.working.try_write())
    else {
        return Ok(false);
    };
    let _no_logins = handle.logins.lock().await;
    still_ours(shared, scope, name, &handle)?;
    let before = host::access(shared, &store)?;
    let next = credentials::next(shared, scope, name)?;
    let mut session = host::connect(shared, &store).await?;
    let changed = session.change_own_password(&before.login, &next).await;
    changed.map_err(|error| chain(&error))?;
    let access = Access {
        password: next,
        ..before.clone()
    };
    if let Err(error) = Session::connect(&access).await {
        let reason = format!("the new one does not open it: {}", chain(&error));
        let taken_back = session.change_own_password(&before.login, &before.password);
        return match taken_back.await {
            Ok(()) => Err(reason),
            Err(error) => Err(format!(
                "{reason}; it was not taken back: {}",
                chain(&error)
            )),
        };
    }
    still_ours(shared, scope, name, &handle)?;
    credentials::promote_next(shared, scope, name)?;
    Ok(true)
}

/// A server that was away while another one went on must not take away what that one opened.
fn still_ours(
    shared: &Shared,
    scope: &Scope,
    name: &StoreName,
    handle: &Handle,
) -> Result<(), String> {
    let last = shared.journal.last(&stream(scope, name));
    let last = last.map_err(|error| chain(&error))?;
    if last == handle.rotation.borrow().sequence {
        return Ok(());
    }
    let reason = format!("another server goes on with the rotation of store `{name}`");
    shared.replaced.send_replace(Some(reason.clone()));
    Err(reason)
}
