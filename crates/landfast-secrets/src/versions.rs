//! The versions of one secret: which one serves, which ones are kept, which were revoked. Pure.
//!
//! Versions count from 1 and no number is used twice. The newest [`VERSIONS_KEPT`] stay, and besides them
//! those a kept release pins. A revoked version loses its envelope at once: it is remembered, so that a
//! release that pinned it is given the newest instead, and this is said; it never serves again.

use std::collections::{BTreeMap, BTreeSet};

use landfast_types::Timestamp;
use serde::{Deserialize, Serialize};

use crate::Sealed;

/// How many versions of a secret are kept.
pub const VERSIONS_KEPT: usize = 30;

/// One version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Version {
    Live {
        at: Timestamp,
        sealed: Sealed,
        #[serde(default, skip_serializing_if = "is_default")]
        origin: Origin,
    },
    Revoked {
        at: Timestamp,
        revoked: Timestamp,
        #[serde(default, skip_serializing_if = "is_default")]
        origin: Origin,
    },
}

impl Version {
    /// When it was added.
    pub fn at(&self) -> Timestamp {
        match self {
            Self::Live { at, .. } | Self::Revoked { at, .. } => *at,
        }
    }

    /// When it was revoked, if it was.
    pub fn revoked(&self) -> Option<Timestamp> {
        match self {
            Self::Live { .. } => None,
            Self::Revoked { revoked, .. } => Some(*revoked),
        }
    }

    /// How it came to be.
    pub fn origin(&self) -> &Origin {
        match self {
            Self::Live { origin, .. } | Self::Revoked { origin, .. } => origin,
        }
    }
}

/// How a version came to be.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Origin {
    /// Somebody gave the value.
    #[default]
    Set,
    /// It came with a dotenv file.
    Imported,
    /// It has the value of an earlier version.
    RolledBack { to: u64 },
    /// The value was generated.
    Rotated,
    /// Written by a newer Landfast.
    #[serde(other)]
    Unknown,
}

fn is_default(origin: &Origin) -> bool {
    *origin == Origin::default()
}

/// A secret with its versions, fit to be stored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionedSecret {
    /// The highest number ever given.
    last: u64,
    versions: BTreeMap<u64, Version>,
}

/// The version that serves for one that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resolved<'a> {
    pub version: u64,
    pub sealed: &'a Sealed,
    /// The version that was asked for, where another one serves. Say so.
    pub instead_of: Option<u64>,
}

/// Why a change to versions was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VersionsError {
    #[error("version {given} is not the next one, {next}: someone else set the secret first")]
    NotNext { given: u64, next: u64 },
    #[error("there is no version {0}")]
    Unknown(u64),
    #[error("version {0} was revoked, and its value forgotten")]
    Revoked(u64),
    #[error("version {0} is the only one left: without it no instance could start")]
    LastLive(u64),
    #[error("there is no earlier version than {0}")]
    NoEarlier(u64),
}

impl VersionedSecret {
    /// The number to seal the next value with.
    pub fn next(&self) -> u64 {
        self.last + 1
    }

    /// Adds the version that [`VersionedSecret::next`] named, and drops the oldest that neither the count
    /// nor a release in `pinned` keeps. Gives the numbers that were dropped.
    ///
    /// # Errors
    /// [`VersionsError::NotNext`] when another version was added in between.
    pub fn add(
        &mut self,
        now: Timestamp,
        version: u64,
        sealed: Sealed,
        origin: Origin,
        pinned: &BTreeSet<u64>,
    ) -> Result<Vec<u64>, VersionsError> {
        let next = self.next();
        if version != next {
            return Err(VersionsError::NotNext {
                given: version,
                next,
            });
        }
        self.last = version;
        let live = Version::Live {
            at: now,
            sealed,
            origin,
        };
        self.versions.insert(version, live);
        let surplus = self.versions.len().saturating_sub(VERSIONS_KEPT);
        let old = self.versions.keys().take(surplus).copied();
        let dropped: Vec<u64> = old.filter(|version| !pinned.contains(version)).collect();
        for version in &dropped {
            self.versions.remove(version);
        }
        Ok(dropped)
    }

    /// Replaces envelopes by others of the same value, where `rewrap` gives one.
    ///
    /// # Errors
    /// What `rewrap` says; nothing is half done to one envelope.
    pub fn rewrap<E>(
        &mut self,
        rewrap: impl Fn(u64, &Sealed) -> Result<Option<Sealed>, E>,
    ) -> Result<bool, E> {
        let mut changed = false;
        for (version, kept) in &mut self.versions {
            if let Version::Live { sealed, .. } = kept
                && let Some(other) = rewrap(*version, sealed)?
            {
                *sealed = other;
                changed = true;
            }
        }
        Ok(changed)
    }

    /// Revokes a version and forgets its value. Revoking twice changes nothing.
    ///
    /// # Errors
    /// [`VersionsError::Unknown`] when it was never there, or was dropped; [`VersionsError::LastLive`] when nothing
    /// could serve in its place.
    pub fn revoke(&mut self, now: Timestamp, version: u64) -> Result<(), VersionsError> {
        let live = self.versions.iter().filter(|(_, kept)| is_live(kept));
        let mut others = live.filter(|(other, _)| **other != version);
        let is_last = others.next().is_none();
        let found = self
            .versions
            .get_mut(&version)
            .ok_or(VersionsError::Unknown(version))?;
        // Live ⇒ Revoked: the envelope goes, the number stays.
        if let Version::Live { at, origin, .. } = found {
            if is_last {
                return Err(VersionsError::LastLive(version));
            }
            let (at, origin) = (*at, origin.clone());
            *found = Version::Revoked {
                at,
                revoked: now,
                origin,
            };
        }
        Ok(())
    }

    /// The version a rollback goes to: `to`, or the newest that serves before the current one.
    ///
    /// # Errors
    /// When there is none, or its value was forgotten.
    pub fn rollback_target(&self, to: Option<u64>) -> Result<(u64, &Sealed), VersionsError> {
        let (current, _) = self.current().ok_or(VersionsError::NoEarlier(self.last))?;
        let Some(to) = to else {
            let earlier = self.versions.range(..current).rev();
            let mut live = earlier.filter_map(|(version, kept)| Some((*version, sealed(kept)?)));
            return live.next().ok_or(VersionsError::NoEarlier(current));
        };
        let found = self.versions.get(&to).ok_or(VersionsError::Unknown(to))?;
        let sealed = sealed(found).ok_or(VersionsError::Revoked(to))?;
        Ok((to, sealed))
    }

    /// The newest version that was not revoked.
    pub fn current(&self) -> Option<(u64, &Sealed)> {
        self.versions
            .iter()
            .rev()
            .find_map(|(version, kept)| Some((*version, sealed(kept)?)))
    }

    /// The version that serves a release which pinned `version`: that one, or the newest where it was revoked
    /// or dropped. `None` where every version was revoked.
    pub fn resolve(&self, version: u64) -> Option<Resolved<'_>> {
        if let Some(Version::Live { sealed, .. }) = self.versions.get(&version) {
            return Some(Resolved {
                version,
                sealed,
                instead_of: None,
            });
        }
        let (newest, sealed) = self.current()?;
        Some(Resolved {
            version: newest,
            sealed,
            instead_of: Some(version),
        })
    }

    /// All versions that are kept, oldest first.
    pub fn versions(&self) -> &BTreeMap<u64, Version> {
        &self.versions
    }

    /// All envelopes, to be moved to another key.
    pub fn envelopes_mut(&mut self) -> impl Iterator<Item = (u64, &mut Sealed)> {
        self.versions
            .iter_mut()
            .filter_map(|(version, kept)| match kept {
                Version::Live { sealed, .. } => Some((*version, sealed)),
                Version::Revoked { .. } => None,
            })
    }
}

fn is_live(version: &Version) -> bool {
    matches!(version, Version::Live { .. })
}

fn sealed(version: &Version) -> Option<&Sealed> {
    match version {
        Version::Live { sealed, .. } => Some(sealed),
        Version::Revoked { .. } => None,
    }
}
