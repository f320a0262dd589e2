//! What a rollout is asked to do: the shape of a release, the strategy and the gates. All of it is recorded when
//! the rollout starts, so a later edit of the manifest changes nothing that is under way.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use landfast_types::{Percent, ServiceName, StoreName};
use serde::{Deserialize, Serialize};

use crate::schema::MigrationShape;

/// What the engine must know of a release: its services, their sizes and their order.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Topology {
    pub services: BTreeMap<ServiceName, ServiceShape>,
    /// Each database that a service of the release uses, with the migrations the release knows, in order. A database without
    /// migrations is there with none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub schemas: BTreeMap<StoreName, Vec<MigrationShape>>,
}

/// One service of a release as the engine sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceShape {
    pub replicas: u32,
    /// Whether a route leads to it. Others move at the final promotion, so that a worker of the new release
    /// takes no work before the switch.
    pub routed: bool,
    /// At most one release may run at a time.
    pub exclusive: bool,
    /// Services that must be ready before this one starts.
    pub after: BTreeSet<ServiceName>,
    /// How long requests in flight may take once an instance leaves traffic.
    pub drain: Duration,
    /// How long WebSockets and event streams may take.
    pub stream_drain: Duration,
    /// Between SIGTERM and SIGKILL.
    pub grace: Duration,
}

impl Topology {
    /// The services in an order that respects `after`; those that may start together share a level. Services
    /// in a cycle, which the manifest refuses, end up together in the last level.
    pub fn levels(&self) -> Vec<Vec<ServiceName>> {
        let mut left: BTreeSet<&ServiceName> = self.services.keys().collect();
        let mut levels = Vec::new();
        while !left.is_empty() {
            let waits = |name: &ServiceName| {
                let shape = self.services.get(name);
                shape.is_some_and(|shape| shape.after.iter().any(|other| left.contains(other)))
            };
            let mut level: Vec<_> = left.iter().copied().filter(|name| !waits(name)).collect();
            if level.is_empty() {
                level = left.iter().copied().collect();
            }
            for name in &level {
                left.remove(*name);
            }
            levels.push(level.into_iter().cloned().collect());
        }
        levels
    }

    /// Whether any service allows only one release at a time.
    pub fn is_exclusive(&self) -> bool {
        self.services.values().any(|shape| shape.exclusive)
    }
}

/// A count, or a share of the replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Amount {
    Count(u32),
    Percent(Percent),
}

impl Amount {
    /// The amount as a count, rounded up: what `max_surge` means.
    pub fn of(self, replicas: u32) -> u32 {
        match self {
            Self::Count(count) => count,
            Self::Percent(percent) => percent.of_ceil(replicas),
        }
    }

    fn down(self, replicas: u32) -> u32 {
        match self {
            Self::Count(count) => count.min(replicas),
            Self::Percent(percent) => percent.of_floor(replicas),
        }
    }
}

/// How traffic moves from one release to the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Strategy {
    Rolling {
        max_surge: Amount,
        max_unavailable: Amount,
    },
    BlueGreen,
    /// Shares of traffic in percent, ascending, the last 100.
    Canary {
        steps: Vec<Percent>,
    },
    Recreate,
}

impl Strategy {
    /// The word the manifest uses.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Rolling { .. } => "rolling",
            Self::BlueGreen => "blue-green",
            Self::Canary { .. } => "canary",
            Self::Recreate => "recreate",
        }
    }

    /// How many instances may run beyond `replicas`, and how many may be missing. Where both would round to
    /// zero nothing could move: then one more may run.
    pub(crate) fn room(&self, replicas: u32) -> (u32, u32) {
        let (surge, unavailable) = match self {
            Self::Rolling {
                max_surge,
                max_unavailable,
            } => (max_surge.of(replicas), max_unavailable.down(replicas)),
            Self::BlueGreen | Self::Canary { .. } | Self::Recreate => (1, 0),
        };
        if surge == 0 && unavailable == 0 {
            (1, 0)
        } else {
            (surge, unavailable)
        }
    }

    /// How many instances may be missing from rotation by the engine's own doing.
    pub fn unavailable_max(&self, replicas: u32) -> u32 {
        match self {
            Self::Recreate => replicas,
            Self::Rolling { .. } | Self::BlueGreen | Self::Canary { .. } => self.room(replicas).1,
        }
    }
}

/// A condition a rollout waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Gate {
    /// The host can carry it. Before anything starts.
    Preflight,
    /// Its migrations keep within their budgets on a copy of each database. Before they run.
    Rehearsal,
    /// The app's own smoke job passes against the preview. Before traffic.
    Smoke,
    /// A fixed time passes with the new release ready. Before traffic.
    Hold,
    /// A person says so. Before traffic.
    Approval,
    /// New against old in the same interval. At every step of a canary.
    Analysis,
}

impl Gate {
    /// The word the manifest uses.
    pub fn name(self) -> &'static str {
        match self {
            Self::Preflight => "preflight",
            Self::Rehearsal => "rehearsal",
            Self::Smoke => "smoke",
            Self::Hold => "hold",
            Self::Approval => "approval",
            Self::Analysis => "analysis",
        }
    }

    /// The gates between a ready new release and its first request, in the order they are tried.
    pub(crate) const BEFORE_TRAFFIC: [Self; 3] = [Self::Smoke, Self::Hold, Self::Approval];
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a rollout goes about it. Times are the contract's defaults unless the manifest says otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutPlan {
    pub strategy: Strategy,
    pub gates: BTreeSet<Gate>,
    /// Unbroken passes before an instance counts.
    pub min_ready: Duration,
    /// How long one instance may take to become ready.
    pub healthy_deadline: Duration,
    /// How long the rollout may go without a further instance becoming ready.
    pub progress_deadline: Duration,
    /// How long each canary step, and the hold gate, last.
    pub hold: Duration,
    /// How long the old release can be returned to at once.
    pub standby: Duration,
    /// Whether a failure takes the rollout back by itself; otherwise it parks.
    pub rollback: bool,
}

impl RolloutPlan {
    /// The plan that takes an environment back: capacity first, one switch, no gates, no waiting.
    pub(crate) fn for_rollback(&self, exclusive: bool) -> Self {
        let strategy = if exclusive {
            Strategy::Recreate
        } else {
            Strategy::BlueGreen
        };
        Self {
            strategy,
            gates: BTreeSet::new(),
            standby: Duration::ZERO,
            ..self.clone()
        }
    }

    /// The plan that replaces every instance of a release by a new one of the same.
    pub(crate) fn for_restart(&self, exclusive: bool) -> Self {
        let rolling = match &self.strategy {
            Strategy::Rolling { .. } => self.strategy.clone(),
            Strategy::BlueGreen | Strategy::Canary { .. } | Strategy::Recreate => {
                Strategy::Rolling {
                    max_surge: Amount::Count(1),
                    max_unavailable: Amount::Count(0),
                }
            }
        };
        let strategy = if exclusive {
            Strategy::Recreate
        } else {
            rolling
        };
        Self {
            strategy,
            gates: BTreeSet::new(),
            standby: Duration::ZERO,
            ..self.clone()
        }
    }
}

impl Default for RolloutPlan {
    fn default() -> Self {
        Self {
            strategy: Strategy::Rolling {
                max_surge: Amount::Count(1),
                max_unavailable: Amount::Count(0),
            },
            gates: BTreeSet::new(),
            min_ready: Duration::from_secs(10),
            healthy_deadline: Duration::from_secs(300),
            progress_deadline: Duration::from_secs(600),
            hold: Duration::from_secs(300),
            standby: Duration::from_secs(600),
            rollback: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(after: &[&str]) -> ServiceShape {
        ServiceShape {
            replicas: 1,
            routed: true,
            exclusive: false,
            after: after
                .iter()
                .map(|name| ServiceName::new(name).unwrap())
                .collect(),
            drain: Duration::from_secs(30),
            stream_drain: Duration::from_secs(60),
            grace: Duration::from_secs(10),
        }
    }

    #[test]
    fn starts_services_after_those_they_name() {
        let services = [
            ("web", shape(&["api"])),
            ("api", shape(&[])),
            ("work", shape(&["api"])),
        ];
        let services = services.map(|(name, shape)| (ServiceName::new(name).unwrap(), shape));
        let levels = Topology {
            services: services.into(),
            ..Topology::default()
        }
        .levels();
        let words: Vec<Vec<&str>> = levels
            .iter()
            .map(|level| level.iter().map(ServiceName::as_str).collect())
            .collect();
        assert_eq!(words, [vec!["api"], vec!["web", "work"]]);
    }

    #[test]
    fn always_leaves_room_to_move() {
        let quarter = Amount::Percent(Percent::new(25).unwrap());
        let rolling = |max_surge, max_unavailable| Strategy::Rolling {
            max_surge,
            max_unavailable,
        };
        assert_eq!(rolling(quarter, quarter).room(3), (1, 0));
        assert_eq!(rolling(quarter, quarter).room(8), (2, 2));
        assert_eq!(rolling(Amount::Count(0), quarter).room(3), (1, 0));
        assert_eq!(rolling(Amount::Count(0), Amount::Count(1)).room(3), (0, 1));
    }
}
