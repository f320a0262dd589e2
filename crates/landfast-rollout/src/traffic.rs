//! The table the proxy should have: a function of the environment's state, recorded whenever it changes.

use std::collections::BTreeMap;

use landfast_types::{InstanceId, ReleaseId, ServiceName};
use serde::{Deserialize, Serialize};

use crate::{
    environment::{Environment, Side},
    instance::{Instance, InstanceState},
    rollout::{Phase, Reverting, Rollout, Weights},
};

/// The traffic of an environment. Only routed services appear.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Traffic {
    /// Counts up with each change.
    pub revision: u64,
    pub services: BTreeMap<ServiceName, ServiceTraffic>,
}

/// The traffic of one service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceTraffic {
    pub mode: TrafficMode,
    pub groups: BTreeMap<ReleaseId, GroupTraffic>,
    /// The release that answers on the preview listener.
    pub preview: Option<ReleaseId>,
}

/// What happens to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrafficMode {
    Serve,
    Pause,
    Maintenance,
}

/// The traffic of one release of one service.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GroupTraffic {
    /// Its share of new requests as part of the sum over the groups.
    pub weight: u32,
    pub members: BTreeMap<InstanceId, MemberState>,
}

/// Whether an instance gets new requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemberState {
    Serving,
    /// Finishes what is in flight.
    Draining,
    /// Leaves at once: it does not answer.
    Leaving,
}

impl Traffic {
    /// How many serving members of groups with weight a service has: its capacity in rotation.
    pub fn capacity(&self, service: &ServiceName) -> u32 {
        let Some(traffic) = self.services.get(service) else {
            return 0;
        };
        let groups = traffic.groups.values().filter(|group| group.weight > 0);
        let members = groups.flat_map(|group| group.members.values());
        members
            .filter(|member| **member == MemberState::Serving)
            .count() as u32
    }
}

impl Environment {
    /// The table this state calls for, at the revision in force where nothing would change.
    pub(crate) fn wanted_traffic(&self) -> Traffic {
        let mut services: BTreeMap<ServiceName, ServiceTraffic> = BTreeMap::new();
        for name in self.routed_services() {
            services.insert(name.clone(), self.service_traffic(&name));
        }
        let revision = self.traffic.revision;
        let wanted = Traffic { revision, services };
        if wanted.services == self.traffic.services {
            return wanted;
        }
        Traffic {
            revision: revision + 1,
            ..wanted
        }
    }

    /// Whether the proxy uses exactly the table this state calls for.
    pub(crate) fn is_traffic_settled(&self) -> bool {
        self.traffic_confirmed >= self.traffic.revision
            && self.wanted_traffic().revision == self.traffic.revision
    }

    fn service_traffic(&self, service: &ServiceName) -> ServiceTraffic {
        let mut groups: BTreeMap<ReleaseId, GroupTraffic> = BTreeMap::new();
        let (mut old, mut new) = (0, 0);
        for instance in self
            .instances
            .values()
            .filter(|instance| instance.service == *service && self.is_routed(instance))
        {
            let Some(member) = member_state(instance) else {
                continue;
            };
            groups
                .entry(instance.release)
                .or_default()
                .members
                .insert(instance.id.clone(), member);
            match self.side_of(instance) {
                Side::Old if member == MemberState::Serving => old += 1,
                Side::New if member == MemberState::Serving => new += 1,
                Side::Old | Side::New => {}
            }
        }
        let rollout = self.rollout.as_ref();
        let new_counts = if self.waits_for_new(service, old, new) {
            0
        } else {
            new
        };
        let kept = self.kept_shares(service);
        for (release, weight) in weights(rollout, self.serving, old, new_counts, kept) {
            if let Some(group) = groups.get_mut(&release) {
                group.weight += weight;
            }
        }
        let preview = rollout.filter(|r| r.weights == Weights::OldOnly && r.from != Some(r.to));
        let preview = preview
            .map(|rollout| rollout.to)
            .filter(|to| groups.contains_key(to));
        ServiceTraffic {
            mode: self.traffic_mode(old + new),
            groups,
            preview,
        }
    }

    /// When nobody of the new release was left to serve, the old one that stands by took over; the new one gets
    /// traffic back when it is whole again, not when its first instance returns.
    fn waits_for_new(&self, service: &ServiceName, old: u32, new: u32) -> bool {
        let Some(rollout) = self.rollout.as_ref() else {
            return false;
        };
        let Some(from) = rollout.from.filter(|from| *from != rollout.to) else {
            return false;
        };
        let weight = |release| {
            let traffic = self.traffic.services.get(service);
            let group = traffic.and_then(|traffic| traffic.groups.get(&release));
            group.map_or(0, |group| group.weight)
        };
        let stands_in = weight(from) > 0 && weight(rollout.to) == 0;
        let whole = new >= self.full(service).new;
        // On the way back there is no reason to go forth once more.
        let returns = matches!(rollout.phase.underlying(), Phase::Reverting { .. });
        rollout.weights == Weights::NewOnly && stands_in && old > 0 && (!whole || returns)
    }

    /// Taking back came as far as the switch, its table was never recorded, and the old release has to be restored once
    /// more: until then the shares stay as they are.
    fn kept_shares(&self, service: &ServiceName) -> Option<(u32, u32)> {
        let rollout = self.rollout.as_ref()?;
        let from = rollout.from.filter(|from| *from != rollout.to)?;
        let restores = matches!(
            rollout.phase.underlying(),
            Phase::Reverting {
                stage: Reverting::Restoring,
                ..
            }
        );
        let groups = &self.traffic.services.get(service)?.groups;
        let weight = |release| groups.get(&release).map_or(0, |group| group.weight);
        let shares = (weight(from), weight(rollout.to));
        let unswitched = rollout.weights == Weights::OldOnly && shares.1 > 0;
        (restores && unswitched).then_some(shares)
    }

    fn traffic_mode(&self, serving: u32) -> TrafficMode {
        if self.stopped || (self.resuming && serving == 0) {
            return TrafficMode::Maintenance;
        }
        match &self.rollout {
            Some(rollout) if holds_requests(rollout) => TrafficMode::Pause,
            Some(_) | None => TrafficMode::Serve,
        }
    }
}

/// Whether requests wait, because one release must make room for the other.
fn holds_requests(rollout: &Rollout) -> bool {
    let unexposed = rollout.excludes() && rollout.cleared && rollout.weights == Weights::OldOnly;
    match &rollout.phase {
        Phase::Pausing | Phase::Clearing => true,
        Phase::Warming { .. } | Phase::Gating { .. } => unexposed,
        Phase::Reverting { stage, .. } => match stage {
            Reverting::Pausing | Reverting::Clearing => true,
            Reverting::Restoring => rollout.excludes(),
            Reverting::Switching | Reverting::Retiring => false,
        },
        Phase::Parked { .. }
        | Phase::Preflight
        | Phase::Rehearsing
        | Phase::Migrating
        | Phase::Contracting
        | Phase::Moving { .. }
        | Phase::Stepping { .. }
        | Phase::Shifting { .. }
        | Phase::Holding { .. }
        | Phase::Promoting { .. }
        | Phase::Standby
        | Phase::Sealing => false,
    }
}

/// The share of each release, given how many instances of the old and the new side serve. A side on which
/// nobody serves gets nothing; where the strategy would leave everything to such a side, the other takes it,
/// if traffic was ever meant for it. `kept` are shares that stay although the old side is to get everything.
fn weights(
    rollout: Option<&Rollout>,
    serving: Option<ReleaseId>,
    old: u32,
    new: u32,
    kept: Option<(u32, u32)>,
) -> Vec<(ReleaseId, u32)> {
    let Some(rollout) = rollout else {
        return serving
            .map(|release| (release, u32::from(old > 0)))
            .into_iter()
            .collect();
    };
    let to = rollout.to;
    let Some(from) = rollout.from.filter(|from| *from != to) else {
        let exposed = rollout.weights != Weights::OldOnly || rollout.from == Some(to);
        return vec![(to, u32::from(exposed && old + new > 0))];
    };
    let (old_share, new_share) = match rollout.weights {
        Weights::OldOnly => kept.unwrap_or((1, 0)),
        Weights::ByCount => (old, new),
        Weights::Split { new } => (100 - u32::from(new.min(100)), u32::from(new)),
        Weights::NewOnly => (0, 1),
    };
    let exposed = rollout.weights != Weights::OldOnly || kept.is_some();
    let (old_share, new_share) = match (old > 0, new > 0 && exposed) {
        (true, true) => (old_share, new_share),
        (true, false) => (1, 0),
        (false, true) => (0, 1),
        (false, false) => (0, 0),
    };
    vec![(from, old_share), (to, new_share)]
}

/// How an instance appears in the table; `None`: not at all.
fn member_state(instance: &Instance) -> Option<MemberState> {
    match instance.state {
        // It never counted, so no request was ever sent to it.
        InstanceState::Draining { .. } if instance.first_served_at.is_none() => None,
        InstanceState::Serving { .. } => Some(MemberState::Serving),
        InstanceState::Draining { hasty: false, .. } => Some(MemberState::Draining),
        InstanceState::Draining { hasty: true, .. } => Some(MemberState::Leaving),
        InstanceState::Planned
        | InstanceState::Starting { .. }
        | InstanceState::Passing { .. }
        | InstanceState::Failing { .. }
        | InstanceState::Stopping { .. } => None,
    }
}
