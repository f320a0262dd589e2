//! Rollouts on the wire, moving ones and ended ones.

use landfast_api::{
    At, Cause, Deadline, Gate, GateState, Latency, Ledger, ReleaseLedger, ReleaseTraffic, Rollout,
    RolloutKind, RolloutState, Step, Strategy, Streams, Weight,
};
use landfast_engine::{Folders, View, logs};
use landfast_rollout::{
    Environment, Kind, Outcome, ParkReason, Phase, Rollout as Moving, RolloutRecord,
    Strategy as Plan, Unmoved,
};
use landfast_types::{Histogram, RolloutId, Timestamp};

use super::environment::instance;

/// The rollout with a number: the one under way, or one that ended.
pub(crate) fn rollout_by_id(view: &View, folders: &Folders, id: u64) -> Option<Rollout> {
    if view
        .state
        .rollout
        .as_ref()
        .is_some_and(|rollout| rollout.id == RolloutId(id))
    {
        return active_rollout(view, folders);
    }
    if view.state.queued.is_some() && view.state.next_rollout() == RolloutId(id) {
        return queued_rollout(view);
    }
    let record = view
        .state
        .history
        .iter()
        .rev()
        .find(|record| record.id == RolloutId(id))?;
    Some(ended_rollout(view, record))
}

/// The rollout that waits for the one under way to end. It begins with the next number.
fn queued_rollout(view: &View) -> Option<Rollout> {
    let state = &view.state;
    let (queued, before) = (state.queued.as_ref()?, state.rollout.as_ref()?);
    let body = view.bodies.get(&queued.to);
    let begun = body.map_or(before.started_at, |body| body.created_at);
    let from = match before.phase {
        Phase::Sealing | Phase::Contracting => Some(before.to.0),
        Phase::Preflight
        | Phase::Rehearsing
        | Phase::Migrating
        | Phase::Pausing
        | Phase::Clearing
        | Phase::Warming { .. }
        | Phase::Gating { .. }
        | Phase::Moving { .. }
        | Phase::Stepping { .. }
        | Phase::Shifting { .. }
        | Phase::Holding { .. }
        | Phase::Promoting { .. }
        | Phase::Standby
        | Phase::Reverting { .. }
        | Phase::Parked { .. } => before.from.map(|release| release.0),
    };
    Some(Rollout {
        app: state.scope.app.to_string(),
        environment: state.scope.environment.to_string(),
        id: state.next_rollout().0,
        kind: kind(queued.kind),
        strategy: strategy(queued.plan.strategy.name()),
        from,
        to: queued.to.0,
        state: RolloutState::Waiting,
        phase: format!(
            "waiting for rollout {} to end: {}",
            before.id,
            before.phase_words()
        ),
        reason: None,
        cause: None,
        step: None,
        weights: weights(state),
        gates: Vec::new(),
        deadlines: Vec::new(),
        instances: Vec::new(),
        traffic: Vec::new(),
        ledger: Ledger {
            started_at: At(begun),
            ..Ledger::default()
        },
        started_at: At(begun),
        promoted_at: None,
        ended_at: None,
        note: body.and_then(|body| body.note.clone()),
        commit: body.and_then(|body| body.commit.clone()),
        by: Some(queued.by.clone()),
        sequence: 0,
    })
}

/// The rollout under way.
pub(crate) fn active_rollout(view: &View, folders: &Folders) -> Option<Rollout> {
    let state = &view.state;
    let rollout = state.rollout.as_ref()?;
    let body = view.bodies.get(&rollout.to);
    let weights = weights(state);
    let traffic = rollout
        .ledger
        .releases
        .iter()
        .map(|(release, counts)| ReleaseTraffic {
            release: release.0,
            requests: counts.requests,
            errors: counts.server_errors + counts.failures.saturating_sub(counts.retried),
            requests_per_second: None,
            p99_ms: p99(&counts.latency),
        });
    let wire_state = rollout_state(rollout);
    let promoted = matches!(rollout.phase, Phase::Standby | Phase::Sealing);
    Some(Rollout {
        app: state.scope.app.to_string(),
        environment: state.scope.environment.to_string(),
        id: rollout.id.0,
        kind: kind(rollout.kind),
        strategy: strategy(rollout.plan.strategy.name()),
        from: rollout.from.map(|release| release.0),
        to: rollout.to.0,
        state: wire_state,
        phase: rollout.phase_words(),
        reason: reason(rollout),
        cause: rollout
            .failure
            .as_ref()
            .map(|what| cause(state, folders, what)),
        step: step(rollout),
        weights,
        gates: gates(rollout),
        deadlines: deadlines(rollout),
        instances: state
            .instances
            .values()
            .filter(|i| i.release == rollout.to || Some(i.release) == rollout.from)
            .map(|i| instance(view, i, None))
            .collect(),
        traffic: traffic.collect(),
        ledger: ledger(&rollout.ledger, rollout.started_at, None, Some(wire_state)),
        started_at: At(rollout.started_at),
        promoted_at: promoted.then_some(At(rollout.phase_since)),
        ended_at: None,
        note: body.and_then(|body| body.note.clone()),
        commit: body.and_then(|body| body.commit.clone()),
        by: Some(rollout.by.clone()),
        sequence: 0,
    })
}

/// A rollout that ended.
pub(crate) fn ended_rollout(view: &View, record: &RolloutRecord) -> Rollout {
    let body = view.bodies.get(&record.to);
    let (state, reason) = match &record.outcome {
        Outcome::Sealed => {
            let waits = record.contract_waits.as_ref();
            let waits = waits.map(|reason| format!("contract migrations wait: {reason}"));
            (RolloutState::Sealed, waits)
        }
        Outcome::RolledBack { reason } => {
            let state = match record.unmoved {
                None => RolloutState::RolledBack,
                Some(Unmoved::Refused) => RolloutState::Refused,
                Some(Unmoved::Superseded) => RolloutState::Superseded,
            };
            (state, Some(reason.clone()))
        }
    };
    let phase = state.as_str().replace('-', " ");
    Rollout {
        app: view.state.scope.app.to_string(),
        environment: view.state.scope.environment.to_string(),
        id: record.id.0,
        kind: kind(record.kind),
        strategy: strategy(&record.strategy),
        from: record.from.map(|release| release.0),
        to: record.to.0,
        state,
        phase,
        cause: reason
            .as_ref()
            .filter(|_| state != RolloutState::Sealed)
            .map(|what| Cause {
                what: what.clone(),
                instance: None,
                line: None,
            }),
        reason,
        step: None,
        weights: Vec::new(),
        gates: Vec::new(),
        deadlines: Vec::new(),
        instances: Vec::new(),
        traffic: Vec::new(),
        ledger: ledger(
            &record.ledger,
            record.started_at,
            Some(record.ended_at),
            Some(state),
        ),
        started_at: At(record.started_at),
        promoted_at: None,
        ended_at: Some(At(record.ended_at)),
        note: body.and_then(|body| body.note.clone()),
        commit: body.and_then(|body| body.commit.clone()),
        by: Some(record.by.clone()),
        sequence: 0,
    }
}

fn kind(kind: Kind) -> RolloutKind {
    match kind {
        Kind::Deploy => RolloutKind::Deploy,
        Kind::Rollback => RolloutKind::Rollback,
        Kind::Restart => RolloutKind::Restart,
    }
}

fn strategy(name: &str) -> Strategy {
    match name {
        "rolling" => Strategy::Rolling,
        "blue-green" => Strategy::BlueGreen,
        "canary" => Strategy::Canary,
        "recreate" => Strategy::Recreate,
        _ => Strategy::Unknown,
    }
}

fn rollout_state(rollout: &Moving) -> RolloutState {
    match &rollout.phase {
        Phase::Gating {
            gate: landfast_rollout::Gate::Approval,
        } => RolloutState::Waiting,
        Phase::Standby | Phase::Sealing | Phase::Contracting => RolloutState::Promoted,
        Phase::Reverting { .. } => RolloutState::RollingBack,
        Phase::Parked { .. } => RolloutState::Parked,
        Phase::Preflight
        | Phase::Rehearsing
        | Phase::Migrating
        | Phase::Pausing
        | Phase::Clearing
        | Phase::Warming { .. }
        | Phase::Gating { .. }
        | Phase::Moving { .. }
        | Phase::Stepping { .. }
        | Phase::Shifting { .. }
        | Phase::Holding { .. }
        | Phase::Promoting { .. } => RolloutState::Moving,
    }
}

fn reason(rollout: &Moving) -> Option<String> {
    match &rollout.phase {
        Phase::Reverting { reason, .. } => Some(reason.clone()),
        Phase::Parked { reason, .. } => Some(reason.sentence()),
        Phase::Preflight
        | Phase::Rehearsing
        | Phase::Migrating
        | Phase::Pausing
        | Phase::Clearing
        | Phase::Warming { .. }
        | Phase::Gating { .. }
        | Phase::Moving { .. }
        | Phase::Stepping { .. }
        | Phase::Shifting { .. }
        | Phase::Holding { .. }
        | Phase::Promoting { .. }
        | Phase::Standby
        | Phase::Contracting
        | Phase::Sealing => rollout.failure.clone(),
    }
}

/// The first thing that went wrong, with the line of the instance's log that most likely says why.
fn cause(state: &Environment, folders: &Folders, what: &str) -> Cause {
    let id = what
        .split_whitespace()
        .find_map(|word| word.parse::<landfast_types::InstanceId>().ok());
    let line = id
        .as_ref()
        .and_then(|id| logs::causal_line(&folders.logs(&state.scope, id)));
    Cause {
        what: what.to_owned(),
        instance: id.map(|id| id.to_string()),
        line,
    }
}

fn step(rollout: &Moving) -> Option<Step> {
    let Plan::Canary { steps } = &rollout.plan.strategy else {
        return None;
    };
    let index = match &rollout.phase {
        Phase::Stepping { step } | Phase::Shifting { step } | Phase::Holding { step } => *step,
        Phase::Preflight
        | Phase::Rehearsing
        | Phase::Migrating
        | Phase::Pausing
        | Phase::Clearing
        | Phase::Warming { .. }
        | Phase::Gating { .. }
        | Phase::Moving { .. }
        | Phase::Promoting { .. }
        | Phase::Standby
        | Phase::Sealing
        | Phase::Contracting
        | Phase::Reverting { .. }
        | Phase::Parked { .. } => return None,
    };
    let percent = u32::from(rollout.step_percent(index));
    Some(Step {
        number: index as u32 + 1,
        of: steps.len() as u32,
        percent,
    })
}

/// The share of new requests of each release, over all services.
fn weights(state: &Environment) -> Vec<Weight> {
    let Some((_, service)) = state.traffic.services.iter().next() else {
        return Vec::new();
    };
    let total: u32 = service.groups.values().map(|group| group.weight).sum();
    let weight =
        |(release, group): (&landfast_types::ReleaseId, &landfast_rollout::GroupTraffic)| {
            let percent = f64::from(group.weight) * 100.0 / f64::from(total.max(1));
            Weight {
                release: release.0,
                percent,
            }
        };
    service.groups.iter().map(weight).collect()
}

fn gates(rollout: &Moving) -> Vec<Gate> {
    let waited = match &rollout.phase {
        Phase::Preflight => Some(landfast_rollout::Gate::Preflight),
        Phase::Rehearsing => Some(landfast_rollout::Gate::Rehearsal),
        Phase::Gating { gate } => Some(*gate),
        Phase::Holding { .. } => Some(landfast_rollout::Gate::Analysis),
        Phase::Migrating
        | Phase::Contracting
        | Phase::Pausing
        | Phase::Clearing
        | Phase::Warming { .. }
        | Phase::Moving { .. }
        | Phase::Stepping { .. }
        | Phase::Shifting { .. }
        | Phase::Promoting { .. }
        | Phase::Standby
        | Phase::Sealing
        | Phase::Reverting { .. }
        | Phase::Parked { .. } => None,
    };
    let gate = |gate: &landfast_rollout::Gate| {
        let known = rollout.gates.get(gate);
        let inconclusive = matches!(
            &rollout.phase,
            Phase::Parked {
                reason: ParkReason::Inconclusive(_),
                ..
            }
        ) && *gate == landfast_rollout::Gate::Analysis;
        let state = match known {
            Some(state) if state.passed => GateState::Passed,
            Some(_) => GateState::Failed,
            None if inconclusive => GateState::Inconclusive,
            None if waited == Some(*gate) => GateState::Waiting,
            None => GateState::Pending,
        };
        let reason = known.map(|state| state.detail.clone());
        Gate {
            name: gate.name().to_owned(),
            state,
            reason,
        }
    };
    rollout.plan.gates.iter().map(gate).collect()
}

fn deadlines(rollout: &Moving) -> Vec<Deadline> {
    let mut deadlines = Vec::new();
    let mut add = |name: &str, at: Timestamp, then: &str| {
        deadlines.push(Deadline {
            name: name.to_owned(),
            at: At(at),
            then: then.to_owned(),
        });
    };
    let (since, plan) = (rollout.phase_since, &rollout.plan);
    match &rollout.phase {
        Phase::Holding { .. } => {
            let times = if rollout.hold_extended { 2 } else { 1 };
            add(
                "hold",
                since + plan.hold * times,
                "the next step, when the analysis passes",
            );
        }
        Phase::Standby => add("standby", since + plan.standby, "the old release is let go"),
        Phase::Gating {
            gate: landfast_rollout::Gate::Hold,
        } => {
            add("hold", since + plan.hold, "traffic moves");
        }
        Phase::Gating { .. }
        | Phase::Parked { .. }
        | Phase::Sealing
        | Phase::Rehearsing
        | Phase::Migrating
        | Phase::Contracting => {}
        Phase::Preflight
        | Phase::Pausing
        | Phase::Clearing
        | Phase::Warming { .. }
        | Phase::Moving { .. }
        | Phase::Stepping { .. }
        | Phase::Shifting { .. }
        | Phase::Promoting { .. }
        | Phase::Reverting { .. } => {
            let then = "rolls back unless another instance is ready";
            add(
                "progress_deadline",
                rollout.progressed_at + plan.progress_deadline,
                then,
            );
        }
    }
    deadlines
}

fn p99(latency: &Histogram) -> Option<f64> {
    landfast_rollout::p99(latency).map(|quantile| quantile.as_secs_f64() * 1e3)
}

/// What a rollout cost.
fn ledger(
    ledger: &landfast_rollout::Ledger,
    started_at: Timestamp,
    ended_at: Option<Timestamp>,
    outcome: Option<RolloutState>,
) -> Ledger {
    let mut streams = Streams::default();
    let mut retries = 0;
    for counts in ledger.releases.values() {
        streams.opened += counts.streams_opened;
        streams.ended += counts.streams_ended;
        streams.drained += counts.streams_drained;
        streams.cut += counts.streams_cut;
        retries += counts.retried;
    }
    let release = |(release, counts): (&landfast_types::ReleaseId, &landfast_rollout::Counts)| {
        ReleaseLedger {
            release: release.0,
            requests: counts.requests,
            errors_theirs: counts.server_errors,
            errors_ours: counts.failures.saturating_sub(counts.retried),
        }
    };
    Ledger {
        started_at: At(started_at),
        ended_at: ended_at.map(At),
        outcome: outcome.filter(|state| state.is_ended() || *state == RolloutState::Parked),
        requests: ledger.requests(),
        lost: ledger.lost(),
        rate_limited: ledger.rate_limited,
        releases: ledger.releases.iter().map(release).collect(),
        streams,
        latency_p99: Latency {
            before_ms: p99(&ledger.before),
            during_ms: p99(&ledger.during()),
            after_ms: p99(&ledger.after),
        },
        pause_longest_ms: ledger.pause_longest_ms,
        retries,
    }
}
