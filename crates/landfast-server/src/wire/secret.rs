//! What was done with secrets, as events.

use landfast_api::{At, Event as WireEvent, Level};
use landfast_engine::{SecretDeed, SecretRecord};
use landfast_journal::Record;
use landfast_types::Scope;

/// The stable word of a deed.
pub(crate) fn deed_word(deed: SecretDeed) -> &'static str {
    match deed {
        SecretDeed::Set => "set",
        SecretDeed::Imported => "imported",
        SecretDeed::RolledBack => "rolled-back",
        SecretDeed::Rotated => "rotated",
        SecretDeed::Revoked => "revoked",
        SecretDeed::Removed => "removed",
        SecretDeed::Revealed => "revealed",
        SecretDeed::Unknown => "unknown",
    }
}

/// An event on the wire.
pub(crate) fn secret_event(record: &Record, scope: &Scope, done: &SecretRecord) -> WireEvent {
    let SecretRecord {
        name, version, by, ..
    } = done;
    let did = match done.deed {
        SecretDeed::Set => "was set",
        SecretDeed::Imported => "was imported",
        SecretDeed::RolledBack => "was rolled back",
        SecretDeed::Rotated => "was rotated",
        SecretDeed::Revoked => "was revoked",
        SecretDeed::Removed => "was removed",
        SecretDeed::Revealed => "was shown",
        SecretDeed::Unknown => "was changed",
    };
    WireEvent {
        sequence: record.position,
        at: At(record.at),
        app: Some(scope.app.to_string()),
        environment: Some(scope.environment.to_string()),
        kind: format!("secret-{}", deed_word(done.deed)),
        level: Level::Info,
        text: format!("secret {name}, version {version}, {did} by {by}"),
        rollout: None,
        release: None,
        service: None,
        instance: None,
    }
}
