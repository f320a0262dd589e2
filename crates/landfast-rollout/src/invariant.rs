//! What must hold whatever happens. Checked by the engine itself after each decision, before it is recorded: a
//! decision that would break one is not taken, and its rollout parks.
//!
//! The simulator checks the world as well, with rules of its own that know nothing of this code.

use std::fmt;

use landfast_types::{InstanceId, ReleaseId, ServiceName};

use crate::{
    environment::Environment,
    instance::InstanceState,
    rollout::Phase,
    traffic::{MemberState, Traffic},
};

/// An invariant that a decision would break.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    /// Ready capacity in rotation would fall under `replicas − max_unavailable` by our own doing.
    Capacity {
        service: ServiceName,
        before: u32,
        after: u32,
        floor: u32,
    },
    /// Weight on a group none of whose instances serves.
    WeightOnUnready {
        service: ServiceName,
        release: ReleaseId,
    },
    /// An instance is ended that the proxy may still send requests to.
    StoppedWhileOffered { instance: InstanceId },
    /// The old release was let go before the seal.
    LetGoEarly { service: ServiceName },
    /// Contract migrations would run while something is there that they break.
    ContractBesideOld { hindrance: String },
    /// A rollout would move releases while somebody migrates by hand.
    RolloutBesideHand,
    /// A rollout to one release was replaced by another without an end.
    TwoRollouts,
    /// The rules contradict each other and never come to rest.
    Restless,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Capacity {
                service,
                before,
                after,
                floor,
            } => write!(
                f,
                "capacity of `{service}` would fall from {before} to {after}, under {floor}"
            ),
            Self::WeightOnUnready { service, release } => {
                write!(
                    f,
                    "release {release} of `{service}` would get traffic with nobody ready"
                )
            }
            Self::StoppedWhileOffered { instance } => {
                write!(
                    f,
                    "{instance} would be ended while the proxy may still use it"
                )
            }
            Self::LetGoEarly { service } => {
                write!(
                    f,
                    "the old instances of `{service}` would be let go before the seal"
                )
            }
            Self::ContractBesideOld { hindrance } => {
                write!(f, "contract migrations would run although {hindrance}")
            }
            Self::RolloutBesideHand => {
                f.write_str("a rollout would begin while somebody migrates by hand")
            }
            Self::TwoRollouts => f.write_str("a second rollout would move the environment"),
            Self::Restless => f.write_str("the rules would never come to rest"),
        }
    }
}

/// What the step from one state to the next breaks.
pub(crate) fn violations(before: &Environment, after: &Environment) -> Vec<Violation> {
    let mut found = Vec::new();
    for (service, traffic) in &after.traffic.services {
        for (release, group) in &traffic.groups {
            let serving = group.members.values().any(|m| *m == MemberState::Serving);
            if group.weight > 0 && !serving {
                found.push(Violation::WeightOnUnready {
                    service: service.clone(),
                    release: *release,
                });
            }
        }
        found.extend(capacity_lost(before, after, service));
    }
    found.extend(stopped_while_offered(before, after));
    found.extend(let_go_early(after));
    found.extend(contract_beside_old(after));
    if after.rollout.is_some() && after.by_hand.is_some() {
        found.push(Violation::RolloutBesideHand);
    }
    let ids = (
        before.rollout.as_ref().map(|r| r.id),
        after.rollout.as_ref().map(|r| r.id),
    );
    if let (Some(old), Some(new)) = ids
        && old != new
        && !after.history.iter().any(|record| record.id == old)
    {
        found.push(Violation::TwoRollouts);
    }
    found
}

/// Serving instances taken out of rotation by a decision, where that leaves too few.
fn capacity_lost(
    before: &Environment,
    after: &Environment,
    service: &ServiceName,
) -> Option<Violation> {
    let rollout = after.rollout.as_ref()?;
    if after.stopped || rollout.is_recreate() {
        return None;
    }
    let drained = |environment: &Environment| {
        let of_service = environment
            .instances
            .values()
            .filter(|i| i.service == *service);
        let leaving =
            |state: &InstanceState| matches!(state, InstanceState::Draining { hasty: false, .. });
        of_service.filter(|i| leaving(&i.state)).count()
    };
    let by_us = drained(after) > drained(before);
    let full = after.full(service);
    let replicas = if full.old == 0 {
        full.new
    } else {
        full.new.min(full.old).max(1)
    };
    let floor = replicas.saturating_sub(rollout.plan.strategy.unavailable_max(replicas));
    let in_rotation = |traffic: &Traffic| traffic.capacity(service);
    let (was, is) = (in_rotation(&before.traffic), in_rotation(&after.traffic));
    // A service that only one of the releases has a route to goes or comes; it is not kept.
    let routed = |release| {
        let shape = after.shape(release, service);
        shape.is_some_and(|shape| shape.routed)
    };
    let stays = rollout.from.is_some_and(routed) && routed(rollout.to);
    let ends = full.new == 0 || !stays;
    let broken = by_us && is < was && is < floor && !ends;
    broken.then(|| Violation::Capacity {
        service: service.clone(),
        before: was,
        after: is,
        floor,
    })
}

/// Instances that go from draining to stopping although the confirmed table may offer them.
fn stopped_while_offered(before: &Environment, after: &Environment) -> Vec<Violation> {
    let stopping = after.instances.values().filter(|instance| {
        matches!(instance.state, InstanceState::Stopping { .. }) && after.is_routed(instance)
    });
    let early = stopping.filter(|instance| match before.instances.get(&instance.id) {
        Some(known) => match known.state {
            InstanceState::Draining { revision, .. } => revision > after.traffic_confirmed,
            InstanceState::Stopping { .. } => false,
            InstanceState::Planned
            | InstanceState::Starting { .. }
            | InstanceState::Passing { .. }
            | InstanceState::Serving { .. }
            | InstanceState::Failing { .. } => known.first_served_at.is_some(),
        },
        None => false,
    });
    early
        .map(|instance| Violation::StoppedWhileOffered {
            instance: instance.id.clone(),
        })
        .collect()
}

fn contract_beside_old(after: &Environment) -> Option<Violation> {
    let rollout = after.rollout.as_ref()?;
    let hindrance = after.contract_hindrance(rollout.to)?;
    (rollout.phase == Phase::Contracting).then_some(Violation::ContractBesideOld { hindrance })
}

/// In standby of blue-green and canary the old group is wanted whole.
fn let_go_early(after: &Environment) -> Option<Violation> {
    let rollout = after.rollout.as_ref()?;
    if !matches!(rollout.phase, Phase::Standby | Phase::Promoting { .. }) {
        return None;
    }
    let services = after.all_services();
    let early = services.into_iter().find(|service| {
        after.keeps_old(rollout, service) && after.wanted(service).old < after.full(service).old
    })?;
    Some(Violation::LetGoEarly { service: early })
}
