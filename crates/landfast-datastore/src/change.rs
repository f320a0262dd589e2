//! What a manifest wants of a store, and what becomes of a store when that changes.

use std::collections::BTreeMap;

use landfast_spec::{Engine, OnWalLimit, Place, StoreSpec};
use landfast_types::Bytes;
use serde::{Deserialize, Serialize};

use crate::server::{needs_restart, tuned};

/// What a manifest wants of a managed store. Kept in the journal: fields are added with `#[serde(default)]` only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    pub engine: Engine,
    /// The major version.
    pub version: String,
    pub memory: Bytes,
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
}

impl Wanted {
    /// `None` for a store that somebody else runs.
    pub fn of(spec: &StoreSpec) -> Option<Self> {
        let Place::Managed {
            version,
            memory,
            settings,
        } = &spec.place
        else {
            return None;
        };
        let mut settings = settings.clone();
        if let Some(backup) = &spec.backup {
            let setting = "max_slot_wal_keep_size".to_owned();
            match backup.on_wal_limit {
                // What is kept for the archive does not fill the disk.
                OnWalLimit::Break => {
                    let limit = format!("{}MB", backup.wal_limit.0 >> 20);
                    settings.entry(setting).or_insert(limit);
                }
                // Before it does, nobody writes. Where nobody counts, as while Landfast is away, the disk does not fill either.
                OnWalLimit::StopWrites => {
                    let limit = emergency(backup.wal_limit);
                    drop(settings.insert(setting, format!("{}MB", limit.0 >> 20)));
                }
            }
        }
        Some(Self {
            engine: spec.engine,
            version: version.clone(),
            memory: *memory,
            settings,
        })
    }

    /// What a setting is to be: tuned, or as the manifest says. `None`: its own default.
    pub fn setting(&self, name: &str) -> Option<String> {
        tuned(self).remove(name)
    }
}

/// What a server keeps for its archive where writes are to stop long before: so much that they do, and no more.
fn emergency(wal_limit: Bytes) -> Bytes {
    const ROOM_MIN: u64 = 1 << 30;
    let Bytes(limit) = wal_limit;
    Bytes(limit.saturating_mul(4).max(limit.saturating_add(ROOM_MIN)))
}

/// What a changed manifest means for a store that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    None,
    /// These settings change while the server runs.
    Live { settings: Vec<String> },
    /// These settings take effect with its next restart, for which a person chooses the moment.
    Restart { settings: Vec<String> },
    /// It is not done in place.
    Refused { reason: String, hint: String },
}

/// What it takes to get from one to the other.
pub fn change(from: &Wanted, to: &Wanted) -> Change {
    if let Some(refused) = refusal(from, to) {
        return refused;
    }
    let (old, new) = (tuned(from), tuned(to));
    let names = old.keys().chain(new.keys());
    let mut changed: Vec<String> = names
        .filter(|name| old.get(*name) != new.get(*name))
        .cloned()
        .collect();
    changed.sort();
    changed.dedup();
    let mut restart = changed.clone();
    restart.retain(|name| needs_restart(to.engine, name));
    // The limit of its memory is set when its process is started.
    if from.memory != to.memory {
        restart.push("memory".to_owned());
    }
    match (changed.is_empty(), restart.is_empty()) {
        (true, true) => Change::None,
        (false, true) => Change::Live { settings: changed },
        (_, false) => Change::Restart { settings: restart },
    }
}

fn refusal(from: &Wanted, to: &Wanted) -> Option<Change> {
    let restored = "add a store with another name, restore a backup or a dump into it, and let services use that one";
    let refused = |reason: String, hint: &str| {
        let hint = hint.to_owned();
        Some(Change::Refused { reason, hint })
    };
    if from.engine != to.engine {
        let reason = format!(
            "its engine is {} and cannot become {}",
            from.engine, to.engine
        );
        return refused(reason, restored);
    }
    if from.version != to.version {
        let (engine, old, new) = (to.engine.label(), &from.version, &to.version);
        let reason =
            format!("its data is of {engine} {old}, which {engine} {new} does not open in place");
        return refused(reason, restored);
    }
    if to.memory < from.memory {
        let reason = format!(
            "its memory would shrink from {} to {}",
            from.memory, to.memory
        );
        let hint = format!(
            "write memory = \"{}\" or more, or restore into a new store",
            from.memory
        );
        return refused(reason, &hint);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(settings: &[(&str, &str)]) -> Wanted {
        let settings = settings
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Wanted {
            engine: Engine::Postgres,
            version: "15".into(),
            memory: Bytes(1 << 30),
            settings: settings.collect(),
        }
    }

    #[test]
    fn writes_stop_long_before_the_log_is_given_up() {
        let mib = |limit: u64| emergency(Bytes(limit << 20)).0 >> 20;
        assert_eq!((mib(64), mib(4_096)), (1_088, 16_384));
    }

    #[test]
    fn equal_wishes_change_nothing() {
        assert_eq!(change(&wanted(&[]), &wanted(&[])), Change::None);
        // What is tuned so anyway is no change when it is written.
        let same = wanted(&[("random_page_cost", "1.1")]);
        assert_eq!(change(&wanted(&[]), &same), Change::None);
    }

    #[test]
    fn a_setting_is_live_or_waits_for_a_restart() {
        let live = change(&wanted(&[]), &wanted(&[("work_mem", "64MB")]));
        let settings = vec!["work_mem".to_owned()];
        assert_eq!(live, Change::Live { settings });
        let both = wanted(&[("work_mem", "64MB"), ("max_connections", "7")]);
        let settings = vec!["max_connections".to_owned()];
        assert_eq!(change(&wanted(&[]), &both), Change::Restart { settings });
        // Taking it away again needs one, too.
        let settings = vec!["max_connections".to_owned()];
        assert_eq!(
            change(&both, &wanted(&[("work_mem", "64MB")])),
            Change::Restart { settings }
        );
    }

    #[test]
    fn more_memory_waits_for_a_restart_and_less_is_refused() {
        let mut larger = wanted(&[]);
        larger.memory = Bytes(2 << 30);
        let grown = change(&wanted(&[]), &larger);
        assert!(
            matches!(&grown, Change::Restart { settings } if settings.contains(&"shared_buffers".to_owned())
                && settings.contains(&"memory".to_owned())),
            "{grown:?}"
        );
        let shrunk = change(&larger, &wanted(&[]));
        assert!(matches!(&shrunk, Change::Refused { reason, .. } if reason.contains("shrink")));
    }

    #[test]
    fn engine_and_version_never_change_in_place() {
        let mut newer = wanted(&[]);
        newer.version = "16".into();
        assert!(matches!(
            change(&wanted(&[]), &newer),
            Change::Refused { .. }
        ));
        let mut other = wanted(&[]);
        other.engine = Engine::Mariadb;
        let refused = change(&wanted(&[]), &other);
        assert!(matches!(&refused, Change::Refused { hint, .. } if hint.contains("restore")));
    }
}
