//! The life of one managed store, from its making to its removal.
//!
//! ```text
//! Making ─▶ Down ─▶ Starting ─▶ Ready ─▶ Stopping ─▶ Down | Deleted
//!            ▲──────────┴─────────┘                  Deleted ─▶ Down (undelete) | Removing
//! ```
//!
//! What holds: each start has a number of its own that is recorded before it; a server that ends by itself is started
//! again, with a wait that grows; nothing is removed before a delay after a person asked for it by name. What is owed
//! ([`Store::pending`]) follows from the state alone, so that a driver that crashed simply asks again. What a crash leaves
//! behind: data that is not whole lies under another name and is made again; a server that runs is found by its number.

use std::time::Duration;

use landfast_types::{InstanceId, ReleaseId, Scope, StoreName, Timestamp};
use serde::{Deserialize, Serialize};

use crate::change::{Change, Wanted, change};

/// How long a deleted store can be taken back, unless a person says otherwise.
pub const DELAY_DEFAULT: Duration = Duration::from_secs(7 * 24 * 3_600);
/// The first start after an end waits so long, each further one twice as long.
const WAIT_FIRST: Duration = Duration::from_secs(1);
const WAIT_MAX: Duration = Duration::from_secs(60);
/// Who was ready for so long is not in a crash loop.
const WAS_WELL: Duration = Duration::from_secs(30);

/// A managed store, as the journal keeps it: fields are added with `#[serde(default)]` only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Store {
    pub scope: Scope,
    pub name: StoreName,
    /// What the newest manifest that names it wants.
    pub wanted: Wanted,
    /// What the server that runs, or ran last, goes by.
    #[serde(default)]
    pub applied: Option<Wanted>,
    /// The release whose manifest was looked at last.
    pub release: ReleaseId,
    /// Whether that manifest names it. A store that is not named is kept and runs on.
    pub named: bool,
    /// Where it listens, on 127.0.0.1: the same from its first answer to its deletion.
    pub port: u16,
    /// It has answered at that port since it was made or undeleted, so instances may know it. What an older Landfast wrote does not say.
    #[serde(default = "yes")]
    pub was_ready: bool,
    /// The number of its newest start.
    #[serde(default)]
    pub starts: u64,
    /// Starts in a row that did not last.
    #[serde(default)]
    pub failures: u32,
    /// It was had back to take the place of another store, and has not done so yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lent: bool,
    /// Grows with each change.
    #[serde(default)]
    pub changes: u64,
    pub phase: Phase,
}

/// Where a store is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Phase {
    /// Its data is not there yet. After a failure it is tried again at that instant.
    Making {
        again_at: Timestamp,
        #[serde(default)]
        reason: Option<String>,
    },
    /// It does not run, and is started at that instant.
    Down {
        since: Timestamp,
        again_at: Timestamp,
        #[serde(default)]
        reason: Option<String>,
    },
    /// It was ordered to run, and does not answer yet. It may be recovering for as long as it takes.
    Starting {
        instance: InstanceId,
        since: Timestamp,
    },
    /// It answers.
    Ready {
        instance: InstanceId,
        since: Timestamp,
    },
    /// It is being ended.
    Stopping { instance: InstanceId, then: After },
    /// Its data is kept until that instant, then removed.
    Deleted {
        at: Timestamp,
        until: Timestamp,
        by: String,
    },
    /// Its data is being removed.
    Removing,
}

/// What follows when a server that was told to end has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum After {
    Start,
    Delete {
        at: Timestamp,
        until: Timestamp,
        by: String,
    },
}

/// What a store is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A newer manifest wants this of it; `None` where it does not name it, or another store serves its name.
    Named {
        release: ReleaseId,
        wanted: Option<Wanted>,
    },
    /// Its data is there, whole.
    Made,
    MakeFailed {
        reason: String,
    },
    /// It could not be started.
    StartFailed {
        instance: InstanceId,
        reason: String,
        /// Its port is somebody else's; this one is free.
        free_port: Option<u16>,
    },
    /// It answers, and has its database and logins.
    Answered {
        instance: InstanceId,
    },
    /// Its server ended, however.
    Ended {
        instance: InstanceId,
        exit: String,
    },
    /// The server that runs goes by what is wanted.
    Applied {
        wanted: Wanted,
    },
    /// A person wants it restarted.
    Restart,
    /// A person wants it deleted after a delay.
    Delete {
        by: String,
        delay: Duration,
    },
    /// A person wants it back.
    Undelete,
    /// It is to take the place of another store, and is to be what that is wanted to be.
    Fit {
        wanted: Wanted,
    },
    /// A person wants it back, to take the place of another store. It is deleted again where that does not come about.
    Lend,
    /// Its data is gone.
    Removed,
    /// Time has passed.
    Tick,
}

/// Why an input was not taken. Nothing has changed then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    #[error("store `{0}` does not run")]
    NotRunning(StoreName),
    #[error("store `{0}` is in use: the newest manifest names it")]
    InUse(StoreName),
    #[error("store `{0}` is deleted already; it can be had back until {1}")]
    Deleted(StoreName, Timestamp),
    #[error("store `{0}` is not deleted")]
    NotDeleted(StoreName),
    #[error("store `{0}` is being removed: it cannot be had back any more")]
    Removing(StoreName),
    #[error("store `{name}` cannot change: {reason}")]
    Refused {
        name: StoreName,
        reason: String,
        hint: String,
    },
}

/// What is owed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Make the data folder, whole or not at all.
    Make,
    /// Start the server, unless it runs; then ask until it answers.
    Start { instance: InstanceId },
    /// Give the running server what is wanted.
    Apply { instance: InstanceId },
    /// End the server in good order.
    Stop { instance: InstanceId },
    /// Remove its data and all that is kept of it.
    Remove,
}

/// What became of the record itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Unchanged,
    Changed(Box<Store>),
    /// Nothing of it is left to remember.
    Gone,
}

impl Store {
    /// One that a manifest names for the first time.
    pub fn new(
        now: Timestamp,
        scope: Scope,
        name: StoreName,
        release: ReleaseId,
        wanted: Wanted,
        port: u16,
    ) -> Self {
        Self {
            scope,
            name,
            wanted,
            applied: None,
            release,
            named: true,
            port,
            was_ready: false,
            starts: 0,
            failures: 0,
            lent: false,
            changes: 1,
            phase: Phase::Making {
                again_at: now,
                reason: None,
            },
        }
    }

    /// Decides what has happened. Equal state, time and input give an equal outcome.
    ///
    /// # Errors
    /// [`Rejected`] when a person asks for what cannot be.
    pub fn decide(&self, now: Timestamp, input: &Input) -> Result<Outcome, Rejected> {
        let mut next = self.clone();
        match input {
            Input::Named { release, wanted } => next.look(now, *release, wanted.as_ref())?,
            Input::Restart => next.restart()?,
            Input::Delete { by, delay } => next.delete(now, by, *delay)?,
            Input::Undelete => next.undelete(now)?,
            Input::Fit { wanted } => next.fit(wanted)?,
            Input::Lend => {
                next.undelete(now)?;
                next.lent = true;
            }
            Input::Removed if self.phase == Phase::Removing => return Ok(Outcome::Gone),
            Input::Removed => {}
            Input::Made
            | Input::MakeFailed { .. }
            | Input::StartFailed { .. }
            | Input::Answered { .. }
            | Input::Ended { .. }
            | Input::Applied { .. }
            | Input::Tick => next.advance(now, input),
        }
        if next == *self {
            return Ok(Outcome::Unchanged);
        }
        next.changes += 1;
        Ok(Outcome::Changed(Box::new(next)))
    }

    /// What is owed now.
    pub fn pending(&self) -> Option<Action> {
        match &self.phase {
            Phase::Making { reason: None, .. } => Some(Action::Make),
            Phase::Making { .. } | Phase::Down { .. } | Phase::Deleted { .. } => None,
            Phase::Starting { instance, .. } => Some(Action::Start {
                instance: instance.clone(),
            }),
            Phase::Ready { instance, .. } if self.is_changed_live() => Some(Action::Apply {
                instance: instance.clone(),
            }),
            Phase::Ready { .. } => None,
            Phase::Stopping { instance, .. } => Some(Action::Stop {
                instance: instance.clone(),
            }),
            Phase::Removing => Some(Action::Remove),
        }
    }

    /// The next instant worth waking for.
    pub fn deadline(&self) -> Option<Timestamp> {
        match &self.phase {
            Phase::Making {
                again_at,
                reason: Some(_),
            } => Some(*again_at),
            Phase::Down { again_at, .. } => Some(*again_at),
            Phase::Deleted { until, .. } => Some(*until),
            Phase::Making { .. }
            | Phase::Starting { .. }
            | Phase::Ready { .. }
            | Phase::Stopping { .. }
            | Phase::Removing => None,
        }
    }

    /// The instance that runs, or is being started or ended.
    pub fn instance(&self) -> Option<&InstanceId> {
        match &self.phase {
            Phase::Starting { instance, .. }
            | Phase::Ready { instance, .. }
            | Phase::Stopping { instance, .. } => Some(instance),
            Phase::Making { .. } | Phase::Down { .. } | Phase::Deleted { .. } | Phase::Removing => {
                None
            }
        }
    }

    /// Why it is not ready, when it failed.
    pub fn trouble(&self) -> Option<&str> {
        match &self.phase {
            Phase::Making { reason, .. } | Phase::Down { reason, .. } => reason.as_deref(),
            Phase::Starting { .. }
            | Phase::Ready { .. }
            | Phase::Stopping { .. }
            | Phase::Deleted { .. }
            | Phase::Removing => None,
        }
    }

    /// What a changed manifest would mean. Memory it was promised and does not run with yet may be taken back.
    pub fn change_to(&self, wanted: &Wanted) -> Change {
        let mut from = self.wanted.clone();
        if let Some(applied) = &self.applied {
            from.memory = applied.memory;
        }
        change(&from, wanted)
    }

    /// Settings that wait for a restart.
    pub fn waits_for_restart(&self) -> Vec<String> {
        match self
            .applied
            .as_ref()
            .map(|applied| change(applied, &self.wanted))
        {
            Some(Change::Restart { settings }) => settings,
            Some(Change::None | Change::Live { .. } | Change::Refused { .. }) | None => Vec::new(),
        }
    }

    fn is_changed_live(&self) -> bool {
        let applied = self.applied.as_ref();
        applied.is_some_and(|applied| matches!(change(applied, &self.wanted), Change::Live { .. }))
    }

    /// The word for people.
    pub fn word(&self) -> &'static str {
        match &self.phase {
            Phase::Making { .. } => "making",
            Phase::Down { .. } => "down",
            Phase::Starting { .. } => "starting",
            Phase::Ready { .. } => "ready",
            Phase::Stopping { .. } => "stopping",
            Phase::Deleted { .. } => "deleted",
            Phase::Removing => "removing",
        }
    }

    fn look(
        &mut self,
        now: Timestamp,
        release: ReleaseId,
        wanted: Option<&Wanted>,
    ) -> Result<(), Rejected> {
        // Under the same manifest a store is moved to, or away from.
        let is_moved = release == self.release && self.named != wanted.is_some();
        if release <= self.release && !is_moved {
            return Ok(());
        }
        if let Some(wanted) = wanted {
            self.fit(wanted)?;
            self.lent = false;
            // What a manifest names is in use: nobody means to remove it any more.
            match self.undelete(now) {
                Ok(()) | Err(Rejected::NotDeleted(_)) => {}
                Err(rejected) => return Err(rejected),
            }
        }
        self.release = release;
        self.named = wanted.is_some();
        Ok(())
    }

    fn fit(&mut self, wanted: &Wanted) -> Result<(), Rejected> {
        if let Change::Refused { reason, hint } = self.change_to(wanted) {
            let name = self.name.clone();
            return Err(Rejected::Refused { name, reason, hint });
        }
        self.wanted = wanted.clone();
        Ok(())
    }

    fn advance(&mut self, now: Timestamp, input: &Input) {
        let is_current = |other: &InstanceId| self.instance() == Some(other);
        let next = match (&self.phase, input) {
            // Making ⇒ Down: the data is there. While one was deleted nobody was given its address, and somebody else may have taken
            // its port.
            (Phase::Making { .. }, Input::Made) => {
                self.failures = 0;
                self.was_ready = false;
                Some(Phase::Down {
                    since: now,
                    again_at: now,
                    reason: None,
                })
            }
            (Phase::Making { .. }, Input::MakeFailed { reason }) => {
                self.failures = self.failures.saturating_add(1);
                Some(Phase::Making {
                    again_at: now + self.wait(),
                    reason: Some(reason.clone()),
                })
            }
            // Making ⇒ Making: it is tried again.
            (
                Phase::Making {
                    again_at,
                    reason: Some(_),
                },
                Input::Tick,
            ) if now >= *again_at => Some(Phase::Making {
                again_at: now,
                reason: None,
            }),
            // Down ⇒ Starting: its time has come.
            (Phase::Down { again_at, .. }, Input::Tick) if now >= *again_at => {
                self.starts += 1;
                self.applied = Some(self.wanted.clone());
                Some(Phase::Starting {
                    instance: instance_id(&self.name, self.starts),
                    since: now,
                })
            }
            // Starting ⇒ Ready: it answers.
            (Phase::Starting { instance, .. }, Input::Answered { instance: other })
                if instance == other =>
            {
                self.was_ready = true;
                Some(Phase::Ready {
                    instance: instance.clone(),
                    since: now,
                })
            }
            // Starting ⇒ Down: somebody was faster at a port that nobody knows yet; it takes another.
            (
                Phase::Starting { .. },
                Input::StartFailed {
                    instance,
                    reason,
                    free_port: Some(port),
                },
            ) if is_current(instance) && !self.was_ready => {
                self.port = *port;
                self.failures = 0;
                Some(self.fallen(now, reason))
            }
            // Starting ⇒ Down: it cannot be started.
            (
                Phase::Starting { .. },
                Input::StartFailed {
                    instance, reason, ..
                },
            ) if is_current(instance) => Some(self.fallen(now, reason)),
            // Starting, Ready ⇒ Down: it ended by itself.
            (Phase::Starting { .. }, Input::Ended { instance, exit }) if is_current(instance) => {
                Some(self.fallen(now, exit))
            }
            (Phase::Ready { since, .. }, Input::Ended { instance, exit })
                if is_current(instance) =>
            {
                if now.since(*since) >= WAS_WELL {
                    self.failures = 0;
                }
                Some(self.fallen(now, exit))
            }
            // Stopping ⇒ Down, Deleted: it ended as it was told.
            (Phase::Stopping { then, .. }, Input::Ended { instance, .. })
                if is_current(instance) =>
            {
                Some(match then.clone() {
                    After::Start => Phase::Down {
                        since: now,
                        again_at: now,
                        reason: None,
                    },
                    After::Delete { at, until, by } => Phase::Deleted { at, until, by },
                })
            }
            (Phase::Ready { .. }, Input::Applied { wanted }) => {
                self.applied = Some(wanted.clone());
                None
            }
            // Deleted ⇒ Removing: nobody wanted it back.
            (Phase::Deleted { until, .. }, Input::Tick) if now >= *until => Some(Phase::Removing),
            // Late, early or of another start: it says nothing about this one.
            (
                Phase::Making { .. }
                | Phase::Down { .. }
                | Phase::Starting { .. }
                | Phase::Ready { .. }
                | Phase::Stopping { .. }
                | Phase::Deleted { .. }
                | Phase::Removing,
                _,
            ) => None,
        };
        if let Some(next) = next {
            self.phase = next;
        }
    }

    /// It ended without being told. Its first end in a while is followed by a start at once.
    fn fallen(&mut self, now: Timestamp, reason: &str) -> Phase {
        let wait = match self.failures {
            0 => Duration::ZERO,
            _ => self.wait(),
        };
        self.failures = self.failures.saturating_add(1);
        Phase::Down {
            since: now,
            again_at: now + wait,
            reason: Some(reason.to_owned()),
        }
    }

    fn wait(&self) -> Duration {
        let doublings = self.failures.saturating_sub(1).min(6);
        (WAIT_FIRST * 2_u32.pow(doublings)).min(WAIT_MAX)
    }

    fn restart(&mut self) -> Result<(), Rejected> {
        let (Phase::Ready { instance, .. } | Phase::Starting { instance, .. }) = &self.phase else {
            return Err(Rejected::NotRunning(self.name.clone()));
        };
        // Ready ⇒ Stopping: a person wants it.
        self.phase = Phase::Stopping {
            instance: instance.clone(),
            then: After::Start,
        };
        Ok(())
    }

    fn delete(&mut self, now: Timestamp, by: &str, delay: Duration) -> Result<(), Rejected> {
        let name = self.name.clone();
        if self.named {
            return Err(Rejected::InUse(name));
        }
        let (at, until, by) = (now, now + delay, by.to_owned());
        self.lent = false;
        self.phase = match &self.phase {
            Phase::Deleted { until, .. } => return Err(Rejected::Deleted(name, *until)),
            Phase::Stopping {
                then: After::Delete { until, .. },
                ..
            } => return Err(Rejected::Deleted(name, *until)),
            Phase::Removing => return Err(Rejected::Removing(name)),
            // Making, Down ⇒ Deleted: nothing runs.
            Phase::Making { .. } | Phase::Down { .. } => Phase::Deleted { at, until, by },
            // Starting, Ready, Stopping ⇒ Stopping: it is ended first.
            Phase::Starting { instance, .. }
            | Phase::Ready { instance, .. }
            | Phase::Stopping { instance, .. } => Phase::Stopping {
                instance: instance.clone(),
                then: After::Delete { at, until, by },
            },
        };
        Ok(())
    }

    fn undelete(&mut self, now: Timestamp) -> Result<(), Rejected> {
        let name = self.name.clone();
        self.phase = match &self.phase {
            // Deleted ⇒ Making: what was never whole is made; what is whole is found so.
            Phase::Deleted { .. } => Phase::Making {
                again_at: now,
                reason: None,
            },
            Phase::Stopping {
                instance,
                then: After::Delete { .. },
            } => Phase::Stopping {
                instance: instance.clone(),
                then: After::Start,
            },
            Phase::Removing => return Err(Rejected::Removing(name)),
            Phase::Making { .. }
            | Phase::Down { .. }
            | Phase::Starting { .. }
            | Phase::Ready { .. }
            | Phase::Stopping { .. } => return Err(Rejected::NotDeleted(name)),
        };
        // Its first start is as good as any.
        self.failures = 0;
        Ok(())
    }
}

fn yes() -> bool {
    true
}

/// Releases have numbers from 1, so no instance of a service has the id of a store's start.
fn instance_id(name: &StoreName, number: u64) -> InstanceId {
    InstanceId::new(name.as_str(), ReleaseId(0), number)
}

#[cfg(test)]
mod tests;
