//! What a manifest wants of a store, and what becomes of a store when that changes.

use std::collections::BTreeMap;

use landfast_spec::{Engine, ImageSource, OnWalLimit, Place, StoreSpec};
use landfast_types::{Bytes, ImageId, ImageReference};
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
    /// Its server is a container of this; `None`: a process of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<StoreImage>,
}

/// The image that a server is a container of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreImage {
    /// As the manifest says.
    pub reference: ImageReference,
    /// `name@sha256:…`, by which it is had again; `None` for one that no registry has.
    #[serde(default)]
    pub pinned: Option<ImageReference>,
    /// What is run; `None` while no release says what the name meant.
    #[serde(default)]
    pub id: Option<ImageId>,
}

impl StoreImage {
    /// Whether the other is known to be another one.
    fn differs(&self, other: &Self) -> bool {
        match (self.id, other.id) {
            (Some(own), Some(other)) => own != other,
            _ => self.reference != other.reference,
        }
    }
}

impl Wanted {
    /// `None` for a store that somebody else runs. What its image means is not known by it.
    pub fn of(spec: &StoreSpec) -> Option<Self> {
        let Place::Managed {
            version,
            memory,
            settings,
            image,
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
            image: image.as_ref().and_then(|image| match image {
                ImageSource::Image { name, .. } => Some(StoreImage {
                    reference: name.clone(),
                    pinned: None,
                    id: None,
                }),
                ImageSource::Build(_) => None,
            }),
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
    if let (Some(old), Some(new)) = (&from.image, &to.image)
        && old.differs(new)
    {
        restart.push("image".to_owned());
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
    let kind = |wanted: &Wanted| match wanted.image {
        Some(_) => "a container",
        None => "a process of the host",
    };
    // Instances that run know it by an address that it would no longer have.
    if from.image.is_some() != to.image.is_some() {
        let (old, new) = (kind(from), kind(to));
        let reason = format!("its server is {old}, and does not become {new} in place");
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
            image: None,
        }
    }

    fn of_image(reference: &str, id: Option<&[u8]>) -> Wanted {
        Wanted {
            image: Some(StoreImage {
                reference: reference.parse().expect("a name"),
                pinned: None,
                id: id.map(|text| ImageId(landfast_types::Digest::of(text))),
            }),
            ..wanted(&[])
        }
    }

    #[test]
    fn another_image_waits_for_a_restart_and_a_container_stays_one() {
        let [old, same, other] = [
            of_image("postgres:15", Some(b"a")),
            of_image("postgres:15.9", Some(b"a")),
            of_image("postgres:15", Some(b"b")),
        ];
        assert_eq!(change(&old, &same), Change::None);
        let settings = vec!["image".to_owned()];
        assert_eq!(change(&old, &other), Change::Restart { settings });
        // Before a release says what a name means, the names are held against each other.
        assert_eq!(change(&old, &of_image("postgres:15", None)), Change::None);
        let unknown = change(&old, &of_image("postgres:15.9", None));
        assert!(matches!(unknown, Change::Restart { .. }), "{unknown:?}");
        for (from, to) in [(&old, &wanted(&[])), (&wanted(&[]), &old)] {
            let refused = change(from, to);
            assert!(
                matches!(&refused, Change::Refused { reason, .. } if reason.contains("in place"))
            );
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
