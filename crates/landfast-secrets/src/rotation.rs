//! A new password for a database while the old one is in use, as a state machine. Pure.
//!
//! PostgreSQL and MariaDB keep one password for each login, so whoever changes it in place locks out all that have not
//! heard of it. Two logins of one owner take turns instead: the idle one gets a new password, instances that start are
//! given that one, and once no instance holds the other, the other is closed.
//!
//! ```text
//! Settled ⇒ Preparing ⇒ Verifying ⇒ Counting ⇒ Replacing ⇒ Closing ⇒ Renewing ⇒ Settled
//!              └──────────┴─ abandoned ⇒ Closing the new one ⇒ Settled
//! ```
//!
//! Guarantees: the login instances are given is open, and was tried; a login is closed only when none of those that may
//! hold it is left; at most two are open, and in `Settled` one. It assumes that the new password is sealed and recorded
//! before the database hears of it, so that an action that is repeated after a crash sets the same password again, and
//! that whoever starts after `Switched` was recorded is given the new one: what runs or is about to run then is counted,
//! by name, and nobody else can hold the old one. From then on there is no way back: a restart that is taken back leaves
//! both logins open, and waits for a person, a schedule or another rollout that ends the holders.
//!
//! Last, the login of Landfast itself gets a new password in place: nobody else has it, and Landfast knows the old one and the new
//! one until the new one was tried.

use std::collections::BTreeSet;

use landfast_types::{InstanceId, RolloutId};
use serde::{Deserialize, Serialize};

/// One of the two logins that take turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Turn {
    #[default]
    First,
    Second,
}

impl Turn {
    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }
}

/// Who may hold a password: instances, and runs of jobs by their numbers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Holders {
    #[serde(default)]
    pub instances: BTreeSet<InstanceId>,
    #[serde(default)]
    pub runs: BTreeSet<u64>,
}

impl Holders {
    /// Whether nobody holds it.
    pub fn is_empty(&self) -> bool {
        self.instances.is_empty() && self.runs.is_empty()
    }

    /// Those that are in both.
    #[must_use]
    pub fn among(&self, alive: &Self) -> Self {
        Self {
            instances: &self.instances & &alive.instances,
            runs: &self.runs & &alive.runs,
        }
    }
}

/// Where a rotation stands. What is recorded of it is [`RotationEvent`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rotation {
    /// The login instances are given that start now.
    given: Turn,
    phase: Phase,
    failure: Option<String>,
    /// The restart was, and waits for somebody.
    taken_back: bool,
}

/// Where it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Phase {
    /// One login is open.
    #[default]
    Settled,
    /// The idle login gets its new password.
    Preparing,
    /// It is tried.
    Verifying,
    /// Instances that start are given it. Who may hold the other one is written down.
    Counting,
    /// These may hold the other one, and are replaced by this restart.
    Replacing {
        holders: Holders,
        restart: Option<RolloutId>,
    },
    /// Nobody holds this one any more; or, given up, nobody was given it.
    Closing { login: Turn, is_abandoned: bool },
    /// The login of Landfast itself gets a new password.
    Renewing,
}

impl Phase {
    /// One word, stable.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Settled => "settled",
            Self::Preparing => "preparing",
            Self::Verifying => "verifying",
            Self::Counting => "counting",
            Self::Replacing { .. } => "replacing",
            Self::Closing { .. } => "closing",
            Self::Renewing => "renewing",
        }
    }
}

/// What happens to a rotation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RotationInput {
    /// Somebody, or the clock, wants a new password; where a restart was taken back, another one.
    Begin { by: String },
    /// An action was carried out.
    Done(RotationAction),
    /// An action failed; it stays owed.
    Failed {
        action: RotationAction,
        reason: String,
    },
    /// Those that run, or are about to, now that the new one is given.
    Counted(Holders),
    /// A restart that replaces the holders was ordered.
    Ordered { restart: RolloutId },
    /// That restart ended, and holders are left.
    TakenBack { restart: RolloutId, reason: String },
    /// Of those that were counted, these are left.
    Left(Holders),
    /// Somebody takes it back.
    Abandon,
}

/// What is owed. Each may be repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum RotationAction {
    /// Give this login its new password and open it.
    Open { login: Turn },
    /// Log in with it.
    Try { login: Turn },
    /// Say who may hold this login.
    Count { login: Turn },
    /// Replace those that hold this login by a rolling restart, and say who is left.
    Replace { login: Turn },
    /// Take this login away, so that its password opens nothing, and end what is left of its sessions.
    Close { login: Turn },
    /// Give the login of Landfast itself a new password.
    Renew,
}

/// What is recorded. Read by later versions: variants and fields are added only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum RotationEvent {
    /// The idle login is to get a new password.
    Begun {
        by: String,
    },
    Opened,
    /// From here on instances that start are given the new one.
    Switched,
    Counted {
        holders: Holders,
    },
    Ordered {
        restart: RolloutId,
    },
    /// After a restart that was taken back, another one is wanted.
    Retried {
        by: String,
    },
    /// None of those that were counted is left.
    Released,
    /// The new one is given up before anybody was given it.
    Abandoned,
    /// One login is open again. An older version goes from here to `Settled`.
    Closed,
    /// Every password is a new one, or the new ones were given up.
    Settled,
    Failed {
        reason: String,
        /// The restart that was taken back; what else failed is tried again by itself.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        restart: Option<RolloutId>,
    },
}

/// Why an input was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RotationRejected {
    #[error("a rotation is under way already")]
    UnderWay,
    #[error("no rotation is under way")]
    NotUnderWay,
    #[error(
        "instances are being given the new password already; both are open until none holds the old one"
    )]
    TooLate,
}

impl Rotation {
    /// One login is open, and it is this one.
    pub fn settled(given: Turn) -> Self {
        Self {
            given,
            ..Self::default()
        }
    }

    /// The login to give to an instance that starts now. It is open, and was tried.
    pub fn given(&self) -> Turn {
        self.given
    }

    /// Where it is.
    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    /// Whether nothing is owed.
    pub fn is_settled(&self) -> bool {
        self.phase == Phase::Settled
    }

    /// Why the last action failed, until one succeeds.
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// Whether the restart was taken back: it goes on when somebody asks again, or when the holders end otherwise.
    pub fn is_taken_back(&self) -> bool {
        self.taken_back
    }

    /// Whether the holders wait for a restart that nobody has ordered. One that could not be had is wanted still.
    pub fn wants_restart(&self) -> bool {
        matches!(&self.phase, Phase::Replacing { restart: None, .. })
    }

    /// Decides what has happened.
    ///
    /// # Errors
    /// [`RotationRejected`]: what was asked for is not possible here. A late answer to an action is no error and no event.
    pub fn decide(&self, input: RotationInput) -> Result<Vec<RotationEvent>, RotationRejected> {
        use RotationAction::{Close, Open, Renew, Try};
        let idle = self.given.other();
        let event = match (&self.phase, input) {
            // Settled ⇒ Preparing.
            (Phase::Settled, RotationInput::Begin { by }) => RotationEvent::Begun { by },
            // Replacing ⇒ Replacing: whoever asks again wants another restart.
            (Phase::Replacing { .. }, RotationInput::Begin { by }) if self.taken_back => {
                RotationEvent::Retried { by }
            }
            (_, RotationInput::Begin { .. }) => return Err(RotationRejected::UnderWay),
            // Preparing ⇒ Verifying.
            (Phase::Preparing, RotationInput::Done(Open { login })) if login == idle => {
                RotationEvent::Opened
            }
            // Verifying ⇒ Counting.
            (Phase::Verifying, RotationInput::Done(Try { login })) if login == idle => {
                RotationEvent::Switched
            }
            // Counting ⇒ Replacing.
            (Phase::Counting, RotationInput::Counted(holders)) => {
                RotationEvent::Counted { holders }
            }
            (Phase::Replacing { restart: None, .. }, RotationInput::Ordered { restart }) => {
                RotationEvent::Ordered { restart }
            }
            (
                Phase::Replacing {
                    restart: Some(ordered),
                    ..
                },
                RotationInput::TakenBack { restart, reason },
            ) if *ordered == restart && !self.taken_back => RotationEvent::Failed {
                reason,
                restart: Some(restart),
            },
            // Replacing ⇒ Closing: only that nobody is left lets the old login go, not that a restart was done.
            (Phase::Replacing { .. }, RotationInput::Left(left)) if left.is_empty() => {
                RotationEvent::Released
            }
            // Preparing, Verifying ⇒ Closing the new one: nobody was given it.
            (Phase::Preparing | Phase::Verifying, RotationInput::Abandon) => {
                RotationEvent::Abandoned
            }
            (
                Phase::Counting | Phase::Replacing { .. } | Phase::Closing { .. } | Phase::Renewing,
                RotationInput::Abandon,
            ) => {
                return Err(RotationRejected::TooLate);
            }
            (Phase::Settled, RotationInput::Abandon) => {
                return Err(RotationRejected::NotUnderWay);
            }
            // Closing ⇒ Renewing; given up ⇒ Settled.
            (
                Phase::Closing {
                    login,
                    is_abandoned,
                },
                RotationInput::Done(Close { login: closed }),
            ) if *login == closed => match is_abandoned {
                true => RotationEvent::Settled,
                false => RotationEvent::Closed,
            },
            // Renewing ⇒ Settled.
            (Phase::Renewing, RotationInput::Done(Renew)) => RotationEvent::Settled,
            (_, RotationInput::Failed { action, reason }) => {
                let is_news = self.failure.as_ref() != Some(&reason);
                // What waits for somebody says so, whatever else goes wrong meanwhile.
                if self.pending() != Some(action) || !is_news || self.taken_back {
                    return Ok(Vec::new());
                }
                RotationEvent::Failed {
                    reason,
                    restart: None,
                }
            }
            (
                _,
                RotationInput::Done(_)
                | RotationInput::Counted(_)
                | RotationInput::Ordered { .. }
                | RotationInput::TakenBack { .. }
                | RotationInput::Left(_),
            ) => return Ok(Vec::new()),
        };
        Ok(vec![event])
    }

    /// Folds one recorded event into the state.
    pub fn apply(&mut self, event: &RotationEvent) {
        if !matches!(event, RotationEvent::Failed { .. }) {
            self.failure = None;
            self.taken_back = false;
        }
        match event {
            RotationEvent::Begun { .. } => self.phase = Phase::Preparing,
            RotationEvent::Opened => self.phase = Phase::Verifying,
            RotationEvent::Switched => {
                self.given = self.given.other();
                self.phase = Phase::Counting;
            }
            RotationEvent::Counted { holders } => {
                self.phase = Phase::Replacing {
                    holders: holders.clone(),
                    restart: None,
                };
            }
            RotationEvent::Ordered { restart: ordered } => {
                if let Phase::Replacing { restart, .. } = &mut self.phase {
                    *restart = Some(*ordered);
                }
            }
            RotationEvent::Retried { .. } => {
                if let Phase::Replacing { restart, .. } = &mut self.phase {
                    *restart = None;
                }
            }
            RotationEvent::Released | RotationEvent::Abandoned => {
                self.phase = Phase::Closing {
                    login: self.given.other(),
                    is_abandoned: *event == RotationEvent::Abandoned,
                };
            }
            RotationEvent::Closed => self.phase = Phase::Renewing,
            RotationEvent::Settled => self.phase = Phase::Settled,
            RotationEvent::Failed { reason, restart } => {
                self.failure = Some(reason.clone());
                self.taken_back = restart.is_some();
            }
        }
    }

    /// The action that is owed. After a crash the driver simply asks again.
    pub fn pending(&self) -> Option<RotationAction> {
        let other = self.given.other();
        match &self.phase {
            Phase::Settled => None,
            Phase::Preparing => Some(RotationAction::Open { login: other }),
            Phase::Verifying => Some(RotationAction::Try { login: other }),
            Phase::Counting => Some(RotationAction::Count { login: other }),
            Phase::Replacing { .. } => Some(RotationAction::Replace { login: other }),
            Phase::Closing { login, .. } => Some(RotationAction::Close { login: *login }),
            Phase::Renewing => Some(RotationAction::Renew),
        }
    }
}

#[cfg(test)]
mod tests;
