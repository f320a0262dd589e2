//! When an environment must be looked at again although nobody said anything.

use std::{cmp::min, time::Duration};

use landfast_types::{ReleaseId, ServiceName, Timestamp};

use crate::{
    environment::{Environment, Side},
    instance::{Instance, InstanceState},
    plan::{Gate, RolloutPlan},
    rollout::Phase,
    rules::sizes::startable,
};

/// What the proxy may take beyond the drain times before an instance is ended without its word.
const DRAIN_SLACK: Duration = Duration::from_secs(5);
/// An instance that does not answer is not waited for longer than this.
const DRAIN_HASTY: Duration = Duration::from_secs(2);

pub(super) fn backoff_until(
    state: &Environment,
    service: &ServiceName,
    release: ReleaseId,
) -> Option<Timestamp> {
    Some(state.backoff.get(service)?.get(&release)?.until)
}

/// The times that hold for one instance.
pub(super) struct Timing {
    pub(super) min_ready: Duration,
    pub(super) healthy_deadline: Duration,
    pub(super) drain: Duration,
}

impl Timing {
    pub(super) fn of(state: &Environment, instance: &Instance) -> Self {
        let own = state
            .releases
            .get(&instance.release)
            .map(|record| &record.plan);
        let fallback = RolloutPlan::default();
        let plan = state.rollout.as_ref().map(|rollout| &rollout.plan).or(own);
        let plan = plan.unwrap_or(&fallback);
        let shape = state.shape(instance.release, &instance.service);
        let drain = shape.map_or(DRAIN_SLACK, |shape| shape.drain.max(shape.stream_drain));
        Self {
            min_ready: plan.min_ready,
            healthy_deadline: plan.healthy_deadline,
            drain,
        }
    }

    pub(super) fn drain(&self, hasty: bool) -> Duration {
        if hasty {
            DRAIN_HASTY
        } else {
            self.drain + DRAIN_SLACK
        }
    }
}

pub(crate) fn deadline(state: &Environment) -> Option<(Timestamp, &'static str)> {
    let mut earliest: Option<(Timestamp, &'static str)> = None;
    let mut want = |at: Timestamp, who: &'static str| {
        earliest = Some(match earliest {
            Some(known) => min(known, (at, who)),
            None => (at, who),
        });
    };
    for instance in state.instances.values() {
        let timing = Timing::of(state, instance);
        match instance.state {
            InstanceState::Passing { since } => want(since + timing.min_ready, "min_ready"),
            InstanceState::Draining {
                since,
                revision,
                hasty,
            } => {
                if revision <= state.traffic_confirmed {
                    want(since + timing.drain(hasty), "drain");
                }
            }
            InstanceState::Planned
            | InstanceState::Starting { .. }
            | InstanceState::Failing { .. } => {
                let since = instance.unready_since().unwrap_or(instance.planned_at);
                want(since + timing.healthy_deadline, "healthy_deadline");
            }
            InstanceState::Serving { .. } | InstanceState::Stopping { .. } => {}
        }
    }
    for service in state.all_services() {
        let (wanted, kept) = (state.wanted(&service), state.kept(&service));
        let sides = [
            (Side::Old, wanted.old > kept.old),
            (Side::New, wanted.new > kept.new),
        ];
        for (side, _) in sides.into_iter().filter(|(_, short)| *short) {
            let until = startable(state, &service, side)
                .and_then(|release| backoff_until(state, &service, release));
            if let Some(until) = until {
                want(until, "backoff");
            }
        }
    }
    if let Some(rollout) = &state.rollout {
        let (since, plan) = (rollout.phase_since, &rollout.plan);
        let ends = if rollout.phase == Phase::Sealing {
            Some(Side::Old)
        } else {
            Some(Side::New).filter(|_| state.is_only_ending())
        };
        if let Some(until) = ends.and_then(|side| state.patience_until(side)) {
            want(until, "stop");
        }
        if let Some(timed_since) = rollout.timed_since().filter(|_| !state.is_only_ending()) {
            want(timed_since + plan.progress_deadline, "progress_deadline");
        }
        let holds = rollout.phase.gate() == Some(Gate::Hold) && !rollout.is_open(Gate::Hold);
        if holds {
            want(since + plan.hold, "hold");
        }
        if let Phase::Holding { .. } = rollout.phase {
            let times = if rollout.hold_extended { 2 } else { 1 };
            want(since + plan.hold * times, "hold");
        }
        if rollout.phase == Phase::Standby && state.is_new_ready() {
            want(since + plan.standby, "standby");
        }
    }
    earliest
}
