//! One running copy, from the decision to start it to its end.
//!
//! ```text
//! Planned ─▶ Starting ─▶ Passing ─▶ Serving ─▶ Draining ─▶ Stopping ─▶ (gone)
//!                ▲          │          │
//!                └──────────┴─ Failing ┘
//! ```
//!
//! It may end by itself in every state. Only a `Serving` one may get traffic, and only a `Stopping` one is
//! signalled: between the two the proxy has confirmed that nobody will be sent to it any more.

use std::net::SocketAddr;

use landfast_types::{InstanceId, ReleaseId, ServiceName, Timestamp};
use serde::{Deserialize, Serialize};

/// What the engine knows of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    pub id: InstanceId,
    /// The running number in its environment.
    pub number: u64,
    pub service: ServiceName,
    pub release: ReleaseId,
    pub planned_at: Timestamp,
    pub state: InstanceState,
    pub address: Option<SocketAddr>,
    /// Since when it could have become ready: planned, started, or taken over by a new life of the server.
    pub waits_since: Timestamp,
    /// When it first counted; crash loops and back-off depend on it.
    pub first_served_at: Option<Timestamp>,
    /// What its readiness probe said last, while it does not pass.
    #[serde(default)]
    pub not_ready: Option<String>,
}

/// Where an instance is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum InstanceState {
    /// It is to be started.
    Planned,
    /// It runs and has not passed a probe yet.
    Starting { since: Timestamp },
    /// It passes since then without a break, not yet for `min_ready`.
    Passing { since: Timestamp },
    /// It counts: ready, and in rotation where its release has traffic.
    Serving { since: Timestamp },
    /// It ran and does not pass now.
    Failing { since: Timestamp },
    /// It leaves traffic; the table of `revision` no longer offers it.
    Draining {
        since: Timestamp,
        revision: u64,
        hasty: bool,
    },
    /// It is being ended.
    Stopping { since: Timestamp },
}

impl Instance {
    /// Counts towards the size of its group: it is not on its way out.
    pub fn is_kept(&self) -> bool {
        match self.state {
            InstanceState::Planned
            | InstanceState::Starting { .. }
            | InstanceState::Passing { .. }
            | InstanceState::Serving { .. }
            | InstanceState::Failing { .. } => true,
            InstanceState::Draining { .. } | InstanceState::Stopping { .. } => false,
        }
    }

    /// Ready for at least `min_ready`.
    pub fn is_serving(&self) -> bool {
        matches!(self.state, InstanceState::Serving { .. })
    }

    /// Whether probing it makes sense.
    pub fn is_probed(&self) -> bool {
        matches!(
            self.state,
            InstanceState::Starting { .. }
                | InstanceState::Passing { .. }
                | InstanceState::Serving { .. }
                | InstanceState::Failing { .. }
        )
    }

    /// When the present wait for readiness began, if it waits. One that never counted waits since its start:
    /// passing now and then does not buy it more time.
    pub(crate) fn unready_since(&self) -> Option<Timestamp> {
        match self.state {
            InstanceState::Planned | InstanceState::Starting { .. } => Some(self.waits_since),
            InstanceState::Failing { since } => match self.first_served_at {
                None => Some(self.waits_since),
                Some(_) => Some(since.max(self.waits_since)),
            },
            InstanceState::Passing { .. }
            | InstanceState::Serving { .. }
            | InstanceState::Draining { .. }
            | InstanceState::Stopping { .. } => None,
        }
    }

    /// One word for people.
    pub fn word(&self) -> &'static str {
        match self.state {
            InstanceState::Planned => "planned",
            InstanceState::Starting { .. } => "starting",
            InstanceState::Passing { .. } => "passing",
            InstanceState::Serving { .. } => "serving",
            InstanceState::Failing { .. } => "failing",
            InstanceState::Draining { .. } => "draining",
            InstanceState::Stopping { .. } => "stopping",
        }
    }
}
