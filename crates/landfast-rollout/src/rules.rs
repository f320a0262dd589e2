//! The rules by which an environment moves. [`decide`] takes one input, then applies the rules again and again
//! until none has anything left to say; what they said is the answer.
//!
//! Order matters within a round: instances first, then the rollout, then sizes, then the table. A phase that
//! waits for the table compares against the table its own state calls for, so it never mistakes an older
//! confirmation for its own.

use std::{cmp::min, time::Duration};

use landfast_types::{InstanceId, ReleaseId, RolloutId, ServiceName, Timestamp, format_duration};

#[cfg(feature = "planted")]
use crate::environment::PlantedBug;
use crate::{
    analysis::{Analysis, Verdict},
    environment::{Environment, Side},
    event::{Change, Event, Input, Rejected},
    instance::{Instance, InstanceState},
    invariant,
    plan::{Gate, RolloutPlan, Strategy, Topology},
    rollout::{Kind, Outcome, ParkReason, Phase, Reverting, Rollout, Weights},
};

/// Rounds after which the rules must have come to rest. Each round makes progress in a finite order, so this
/// is never reached; it turns a mistake into a message instead of a hang.
const ROUNDS_MAX: usize = 10_000;
/// What the proxy may take beyond the drain times before an instance is ended without its word.
const DRAIN_SLACK: Duration = Duration::from_secs(5);
/// An instance that does not answer is not waited for longer than this.
const DRAIN_HASTY: Duration = Duration::from_secs(2);
/// So many ends of instances that had served make a crash loop.
const CRASHES_MAX: u32 = 3;

pub(crate) fn decide(
    environment: &Environment,
    now: Timestamp,
    input: Input,
) -> Result<Vec<Event>, Rejected> {
    let mut draft = Draft {
        state: environment.clone(),
        events: Vec::new(),
        now,
    };
    draft.take(input)?;
    draft.settle();
    let found = invariant::violations(environment, &draft.state);
    let Some(violation) = found.into_iter().next() else {
        return Ok(draft.events);
    };
    // A broken invariant parks the rollout instead of acting on it; traffic stays as it is.
    let mut parked = Draft {
        state: environment.clone(),
        events: Vec::new(),
        now,
    };
    parked.park(ParkReason::Invariant(violation.to_string()));
    Ok(parked.events)
}

struct Draft {
    state: Environment,
    events: Vec<Event>,
    now: Timestamp,
}

impl Draft {
    fn emit(&mut self, change: Change) {
        let event = Event {
            at: self.now,
            change,
        };
        self.state.apply(&event);
        self.events.push(event);
    }

    fn enter(&mut self, phase: Phase) {
        self.emit(Change::PhaseEntered { phase });
    }

    fn rollout(&self) -> Option<&Rollout> {
        self.state.rollout.as_ref()
    }

    fn moving_rollout(&self) -> Result<&Rollout, Rejected> {
        self.rollout().ok_or(Rejected::NoRollout)
    }

    // ---------------------------------------------------------------------------------------------- inputs

    fn take(&mut self, input: Input) -> Result<(), Rejected> {
        match input {
            Input::Deploy {
                topology,
                plan,
                supersede,
                by,
            } => self.deploy(topology, plan, supersede, by),
            Input::Rollback { to, by } => self.rollback(to, by),
            Input::Restart { by } => self.restart(by),
            Input::Scale { service, replicas } => self.scale(service, replicas),
            Input::Stop => self.stop(),
            Input::Start => self.start(),
            Input::Promote { by } => self.promote(by),
            Input::Abort { by, reason } => self.abort(&by, &reason),
            Input::Seal { by } => self.seal(by),
            Input::Started { instance, address } => {
                if self.is_in(&instance, |state| matches!(state, InstanceState::Planned)) {
                    self.emit(Change::InstanceStarted { instance, address });
                }
                Ok(())
            }
            Input::StartFailed { instance, reason } => {
                self.ended(&instance, format!("could not be started: {reason}"));
                Ok(())
            }
            Input::Probed { instance, passing } => {
                self.probed(instance, passing);
                Ok(())
            }
            Input::NotLive { instance, reason } => {
                self.condemn(&instance, reason);
                Ok(())
            }
            Input::Ended { instance, exit } => {
                self.ended(&instance, exit);
                Ok(())
            }
            Input::TrafficConfirmed { revision } => {
                let news = revision > self.state.traffic_confirmed;
                if news && revision <= self.state.traffic.revision {
                    self.emit(Change::TrafficConfirmed { revision });
                }
                Ok(())
            }
            Input::Drained { instance } => {
                let confirmed = self.state.traffic_confirmed;
                let drained = |state: &InstanceState| matches!(state, InstanceState::Draining { revision, .. } if *revision <= confirmed);
                if self.is_in(&instance, drained) {
                    self.emit(Change::InstanceStopping { instance });
                }
                Ok(())
            }
            Input::GateJudged {
                rollout,
                gate,
                passed,
                detail,
            } => {
                self.gate_judged(rollout, gate, passed, detail);
                Ok(())
            }
            Input::Observed {
                rollout,
                observations,
            } => {
                if self
                    .rollout()
                    .is_some_and(|r| r.id == rollout && r.wants_observations())
                {
                    self.emit(Change::AnalysisObserved { observations });
                }
                Ok(())
            }
            Input::Measured { reading } => {
                self.emit(Change::Measured { reading });
                Ok(())
            }
            Input::Adopted { running } => {
                let gone = |i: &&Instance| {
                    !matches!(i.state, InstanceState::Planned) && !running.contains(&i.id)
                };
                let gone: Vec<_> = self
                    .state
                    .instances
                    .values()
                    .filter(gone)
                    .map(|i| i.id.clone())
                    .collect();
                for instance in gone {
                    let exit = "ended while the server was away".to_owned();
                    self.emit(Change::InstanceEnded {
                        instance,
                        exit,
                        unseen: true,
                    });
                }
                Ok(())
            }
            Input::Notified { rollout } => {
                if self.state.notify.contains(&rollout) {
                    self.emit(Change::Notified { rollout });
                }
                Ok(())
            }
            Input::Collected { releases } => {
                if !releases.is_empty() {
                    self.emit(Change::ReleasesCollected { releases });
                }
                Ok(())
            }
            Input::Tick => Ok(()),
        }
    }

    fn deploy(
        &mut self,
        topology: Topology,
        plan: RolloutPlan,
        supersede: bool,
        by: String,
    ) -> Result<(), Rejected> {
        if self.state.stopped {
            return Err(Rejected::EnvironmentStopped);
        }
        let exclusive = topology.is_exclusive();
        if plan.gates.contains(&Gate::Smoke) && !exclusive && lacks_surge(&plan, &topology) {
            return Err(Rejected::SmokeNeedsSurge);
        }
        self.make_room(supersede)?;
        let release = self.state.next_release();
        self.emit(Change::ReleaseCreated {
            release,
            topology,
            plan: plan.clone(),
        });
        self.begin_or_queue(Kind::Deploy, release, plan, by);
        Ok(())
    }

    /// Ends or takes back what stands in the way of a new rollout, or refuses it.
    fn make_room(&mut self, supersede: bool) -> Result<(), Rejected> {
        let Some(rollout) = self.rollout() else {
            return Ok(());
        };
        match &rollout.phase {
            // Standby ⇒ Sealing: whoever deploys further has accepted what serves.
            Phase::Standby => {
                self.enter(Phase::Sealing);
                Ok(())
            }
            Phase::Sealing => Ok(()),
            _ if supersede || rollout.is_waiting() => {
                if !matches!(rollout.phase, Phase::Reverting { .. }) {
                    self.revert("superseded by a newer rollout");
                }
                Ok(())
            }
            _ => Err(self.is_moving(rollout)),
        }
    }

    fn is_moving(&self, rollout: &Rollout) -> Rejected {
        Rejected::RolloutMoving {
            rollout: rollout.id,
            to: rollout.to,
            since: rollout.started_at,
            by: rollout.by.clone(),
        }
    }

    fn begin_or_queue(&mut self, kind: Kind, to: ReleaseId, plan: RolloutPlan, by: String) {
        if self.rollout().is_some() {
            self.emit(Change::RolloutQueued { kind, to, plan, by });
        } else {
            self.begin(kind, to, plan, by);
        }
    }

    fn begin(&mut self, kind: Kind, to: ReleaseId, mut plan: RolloutPlan, by: String) {
        let from = self.state.serving;
        let exclusive = |release| {
            let record = self.state.releases.get(&release);
            record.is_some_and(|record| record.topology.is_exclusive())
        };
        if exclusive(to) || from.is_some_and(exclusive) {
            plan.strategy = Strategy::Recreate;
        }
        if from.is_none() && matches!(plan.strategy, Strategy::Canary { .. }) {
            // There is nothing to compare a first release with.
            plan.strategy = Strategy::BlueGreen;
            plan.gates.remove(&Gate::Analysis);
        }
        let rollout = RolloutId(self.state.next_rollout);
        self.emit(Change::RolloutStarted {
            rollout,
            kind,
            from,
            to,
            plan,
            by,
        });
    }

    fn rollback(&mut self, to: Option<ReleaseId>, by: String) -> Result<(), Rejected> {
        if let Some(rollout) = self.rollout() {
            if to.is_none_or(|to| Some(to) == rollout.from) {
                return self.abort(&by, "rolled back by hand");
            }
            return Err(self.is_moving(rollout));
        }
        let current = self.state.serving.ok_or(Rejected::NothingDeployed)?;
        if self.state.stopped {
            return Err(Rejected::EnvironmentStopped);
        }
        let target = match to {
            Some(to) => to,
            None => self
                .state
                .rollback_target()
                .ok_or(Rejected::NoEarlierRelease { current })?,
        };
        if target == current {
            return Err(Rejected::AlreadyServing(current));
        }
        let record = self
            .state
            .releases
            .get(&target)
            .ok_or(Rejected::NoSuchRelease(target))?;
        if record.sealed_at.is_none() {
            return Err(Rejected::NeverServed(target));
        }
        let plan = record.plan.for_rollback(record.topology.is_exclusive());
        self.begin(Kind::Rollback, target, plan, by);
        Ok(())
    }

    fn restart(&mut self, by: String) -> Result<(), Rejected> {
        if let Some(rollout) = self.rollout() {
            return Err(self.is_moving(rollout));
        }
        let current = self.state.serving.ok_or(Rejected::NothingDeployed)?;
        if self.state.stopped {
            return Err(Rejected::EnvironmentStopped);
        }
        let record = self
            .state
            .releases
            .get(&current)
            .ok_or(Rejected::NothingDeployed)?;
        let plan = record.plan.for_restart(record.topology.is_exclusive());
        self.begin(Kind::Restart, current, plan, by);
        Ok(())
    }

    fn scale(&mut self, service: ServiceName, replicas: Option<u32>) -> Result<(), Rejected> {
        let release = self
            .rollout()
            .map(|rollout| rollout.to)
            .or(self.state.serving);
        let release = release.ok_or(Rejected::NothingDeployed)?;
        if self.state.shape(release, &service).is_none() {
            return Err(Rejected::NoSuchService(service));
        }
        self.emit(Change::Scaled { service, replicas });
        Ok(())
    }

    fn stop(&mut self) -> Result<(), Rejected> {
        if let Some(rollout) = self.rollout() {
            return Err(self.is_moving(rollout));
        }
        if self.state.stopped {
            return Err(Rejected::EnvironmentStopped);
        }
        if self.state.serving.is_none() {
            return Err(Rejected::NothingDeployed);
        }
        self.emit(Change::Stopped);
        Ok(())
    }

    fn start(&mut self) -> Result<(), Rejected> {
        if !self.state.stopped {
            return Err(Rejected::NotStopped);
        }
        self.emit(Change::Resumed);
        Ok(())
    }

    fn promote(&mut self, by: String) -> Result<(), Rejected> {
        let rollout = self.moving_rollout()?;
        let refused = Rejected::NotWaiting {
            rollout: rollout.id,
            phase: rollout.phase_words(),
        };
        let forward = forward_entry(rollout);
        match rollout.phase.clone() {
            Phase::Gating {
                gate: gate @ (Gate::Approval | Gate::Hold),
            } => {
                let detail = format!("promoted by {by}");
                self.emit(Change::GateOpened {
                    gate,
                    passed: true,
                    detail,
                });
            }
            Phase::Holding { step } => self.promote_step(step, by),
            Phase::Parked {
                reason: ParkReason::Inconclusive(_),
                resume,
            } => match *resume {
                Phase::Holding { step } => self.promote_step(step, by),
                other => {
                    self.emit(Change::Promoted { by });
                    self.enter(other);
                }
            },
            Phase::Parked {
                reason: ParkReason::RollbackOff(_),
                resume,
            } => {
                self.emit(Change::Promoted { by });
                self.enter(*resume);
            }
            // Parked ⇒ forward: the old release cannot come back, so a person takes the new one.
            Phase::Parked {
                reason: ParkReason::CannotRestore(_),
                ..
            } => {
                self.emit(Change::Promoted { by });
                self.enter(forward);
            }
            _ => return Err(refused),
        }
        Ok(())
    }

    fn promote_step(&mut self, step: usize, by: String) {
        self.emit(Change::Promoted { by });
        self.next_step(step);
    }

    fn abort(&mut self, by: &str, reason: &str) -> Result<(), Rejected> {
        let rollout = self.moving_rollout()?;
        if matches!(rollout.phase, Phase::Reverting { .. }) {
            return Err(Rejected::AlreadyReverting {
                rollout: rollout.id,
            });
        }
        self.revert(&format!("aborted by {by}: {reason}"));
        Ok(())
    }

    fn seal(&mut self, by: String) -> Result<(), Rejected> {
        let rollout = self.moving_rollout()?;
        #[cfg(feature = "planted")]
        if self.state.planted == Some(PlantedBug::SealWhileReverting)
            && matches!(rollout.phase, Phase::Reverting { .. })
        {
            self.emit(Change::RolloutEnded {
                outcome: Outcome::Sealed,
            });
            return Ok(());
        }
        if rollout.phase != Phase::Standby {
            let phase = rollout.phase_words();
            return Err(Rejected::NotSealable {
                rollout: rollout.id,
                phase,
            });
        }
        self.emit(Change::Promoted { by });
        self.enter(Phase::Sealing);
        Ok(())
    }

    fn gate_judged(&mut self, rollout: RolloutId, gate: Gate, passed: bool, detail: String) {
        let waits = |r: &&Rollout| {
            let here = match &r.phase {
                Phase::Preflight => Gate::Preflight,
                Phase::Gating { gate } => *gate,
                _ => return false,
            };
            r.id == rollout && here == gate
        };
        if self.rollout().filter(waits).is_none() {
            return;
        }
        self.emit(Change::GateOpened {
            gate,
            passed,
            detail: detail.clone(),
        });
        if !passed {
            self.emit(Change::Failed {
                reason: format!("the {gate} gate refused: {detail}"),
            });
        }
    }

    // ------------------------------------------------------------------------------------------- instances

    fn is_in(&self, id: &InstanceId, wanted: impl Fn(&InstanceState) -> bool) -> bool {
        self.state
            .instances
            .get(id)
            .is_some_and(|instance| wanted(&instance.state))
    }

    fn probed(&mut self, instance: InstanceId, passing: bool) {
        use InstanceState::{Failing, Passing, Serving, Starting};
        if passing && self.is_in(&instance, |s| matches!(s, Starting { .. } | Failing { .. })) {
            self.emit(Change::InstancePassing { instance });
        } else if !passing
            && self.is_in(&instance, |s| matches!(s, Passing { .. } | Serving { .. }))
        {
            self.emit(Change::InstanceFailing { instance });
        }
    }

    fn ended(&mut self, id: &InstanceId, exit: String) {
        let Some(instance) = self.state.instances.get(id) else {
            return;
        };
        self.blame(&instance.clone(), &exit);
        self.emit(Change::InstanceEnded {
            instance: id.clone(),
            exit,
            unseen: false,
        });
    }

    /// Takes an instance that does not work out of traffic and ends it.
    fn condemn(&mut self, id: &InstanceId, reason: String) {
        let Some(instance) = self
            .state
            .instances
            .get(id)
            .filter(|i| i.is_kept())
            .cloned()
        else {
            return;
        };
        self.blame(&instance, &reason);
        self.emit(Change::InstanceDraining {
            instance: id.clone(),
            hasty: true,
            reason,
        });
    }

    /// An instance of the new release that ends before it ever served fails its rollout at once.
    fn blame(&mut self, instance: &Instance, what: &str) {
        let Some(rollout) = self.rollout() else {
            return;
        };
        let fresh = instance.first_served_at.is_none() && instance.is_kept();
        let new = self.state.side_of(instance) == Side::New;
        if new && fresh && rollout.phase.is_forward() && rollout.phase != Phase::Standby {
            let (id, release) = (&instance.id, instance.release);
            let reason = format!("instance {id} of release {release} {what} before it was ready");
            self.emit(Change::Failed { reason });
        }
    }

    fn judge_instances(&mut self) {
        let ids: Vec<_> = self.state.instances.keys().cloned().collect();
        for id in ids {
            let Some(instance) = self.state.instances.get(&id) else {
                continue;
            };
            let timing = Timing::of(&self.state, instance);
            match instance.state {
                // Passing ⇒ Serving: it passed long enough without a break.
                InstanceState::Passing { since } if self.now.since(since) >= timing.min_ready => {
                    self.emit(Change::InstanceServing { instance: id });
                }
                // Draining ⇒ Stopping: no table offers it, and its time is over.
                InstanceState::Draining {
                    since,
                    revision,
                    hasty,
                } => {
                    let routed = self.state.routed_services().contains(&instance.service);
                    let confirmed = revision <= self.state.traffic_confirmed;
                    let over = self.now.since(since) >= timing.drain(hasty);
                    if !routed || (confirmed && over) || self.is_planted_hasty_stop() {
                        self.emit(Change::InstanceStopping { instance: id });
                    }
                }
                InstanceState::Planned
                | InstanceState::Starting { .. }
                | InstanceState::Failing { .. } => {
                    let since = instance.unready_since().unwrap_or(self.now);
                    if self.now.since(since) >= timing.healthy_deadline {
                        let limit = format_duration(timing.healthy_deadline);
                        self.condemn(&id, format!("was not ready within {limit}"));
                    }
                }
                InstanceState::Passing { .. }
                | InstanceState::Serving { .. }
                | InstanceState::Stopping { .. } => {}
            }
        }
    }

    #[cfg(feature = "planted")]
    fn is_planted_hasty_stop(&self) -> bool {
        self.state.planted == Some(PlantedBug::WeightBeforeDrain)
    }

    #[cfg(not(feature = "planted"))]
    fn is_planted_hasty_stop(&self) -> bool {
        false
    }

    // --------------------------------------------------------------------------------------------- rollout

    fn settle(&mut self) {
        for _ in 0..ROUNDS_MAX {
            let before = self.events.len();
            self.judge_instances();
            self.note_progress();
            self.move_rollout();
            self.fit_sizes();
            self.fit_traffic();
            if self.events.len() == before {
                return;
            }
        }
        unreachable!("the rules of {} do not come to rest", self.state.scope);
    }

    fn note_progress(&mut self) {
        let Some(rollout) = self.rollout() else {
            return;
        };
        let mut grown = Vec::new();
        for service in self.state.all_services() {
            let ready = self.state.ready(&service).new;
            let most = rollout.high_water.get(&service).copied().unwrap_or(0);
            if ready > most || (ready != most && self.is_planted_flap()) {
                grown.push((service, ready));
            }
        }
        for (service, ready) in grown {
            self.emit(Change::Progressed { service, ready });
        }
    }

    #[cfg(feature = "planted")]
    fn is_planted_flap(&self) -> bool {
        self.state.planted == Some(PlantedBug::FlapRestartsDeadline)
    }

    #[cfg(not(feature = "planted"))]
    fn is_planted_flap(&self) -> bool {
        false
    }

    fn move_rollout(&mut self) {
        let Some(rollout) = self.rollout() else {
            if let Some(queued) = self.state.queued.clone() {
                self.begin(queued.kind, queued.to, queued.plan, queued.by);
            }
            return;
        };
        if rollout.phase.is_forward() {
            if let Some(reason) = self.failure(rollout) {
                self.emit(Change::Failed {
                    reason: reason.clone(),
                });
                self.answer_failure(&reason);
                return;
            }
        } else if let Phase::Reverting { .. } = rollout.phase
            && self.is_out_of_time(rollout)
        {
            let waited = format_duration(rollout.plan.progress_deadline);
            let detail = format!("no progress for {waited}");
            self.park(ParkReason::CannotRestore(detail));
            return;
        }
        self.advance();
    }

    /// What the rollout must answer, if anything.
    fn failure(&self, rollout: &Rollout) -> Option<String> {
        if let Some(reason) = &rollout.failure {
            return Some(reason.clone());
        }
        if rollout.crashes >= CRASHES_MAX {
            let (to, crashes) = (rollout.to, rollout.crashes);
            return Some(format!(
                "release {to} is crash-looping: {crashes} instances ended"
            ));
        }
        if self.is_out_of_time(rollout) {
            let waited = format_duration(rollout.plan.progress_deadline);
            return Some(format!(
                "no progress for {waited} while {}",
                rollout.phase_words()
            ));
        }
        None
    }

    fn is_out_of_time(&self, rollout: &Rollout) -> bool {
        rollout.phase.is_timed()
            && self.now.since(rollout.progressed_at) >= rollout.plan.progress_deadline
    }

    fn answer_failure(&mut self, reason: &str) {
        let Some(rollout) = self.rollout() else {
            return;
        };
        if rollout.plan.rollback {
            self.revert(reason);
        } else {
            self.park(ParkReason::RollbackOff(reason.to_owned()));
        }
    }

    /// Begins to take the rollout back. Capacity first; where two releases exclude each other, room first.
    fn revert(&mut self, reason: &str) {
        let Some(rollout) = self.rollout() else {
            return;
        };
        let reason = reason.to_owned();
        if rollout.kind == Kind::Restart {
            // Both sides are the same release: what runs stays, and steady state fits the number.
            self.emit(Change::RolloutEnded {
                outcome: Outcome::RolledBack { reason },
            });
            return;
        }
        let phase = match &rollout.phase {
            Phase::Parked { resume, .. } => resume,
            other => other,
        };
        let untouched = matches!(phase, Phase::Preflight | Phase::Pausing);
        let room_first = rollout.is_recreate() && rollout.from.is_some() && !untouched;
        let stage = if room_first {
            Reverting::Pausing
        } else {
            Reverting::Restoring
        };
        self.enter(Phase::Reverting { reason, stage });
    }

    fn park(&mut self, reason: ParkReason) {
        let Some(rollout) = self.rollout() else {
            return;
        };
        let resume = match &rollout.phase {
            Phase::Parked { .. } => return,
            other => Box::new(other.clone()),
        };
        self.enter(Phase::Parked { reason, resume });
    }

    /// Each arm is one move; none of them skips a wait.
    fn advance(&mut self) {
        let Some(rollout) = self.rollout() else {
            return;
        };
        let since = rollout.phase_since;
        let plan = rollout.plan.clone();
        match rollout.phase.clone() {
            // Preflight ⇒ Pausing | Moving | Warming: the host can carry it.
            Phase::Preflight => {
                let passed = rollout
                    .gates
                    .get(&Gate::Preflight)
                    .is_some_and(|gate| gate.passed);
                if plan.gates.contains(&Gate::Preflight) && !passed {
                    return;
                }
                let next = match rollout.kind {
                    _ if rollout.is_recreate() && rollout.from.is_some() => Phase::Pausing,
                    Kind::Restart => Phase::Moving { service: 0 },
                    Kind::Deploy | Kind::Rollback => Phase::Warming { level: 0 },
                };
                self.enter(next);
            }
            // Pausing ⇒ Clearing: the proxy holds every new request.
            Phase::Pausing if self.state.is_traffic_settled() => self.enter(Phase::Clearing),
            // Clearing ⇒ Warming: nothing of the old release runs.
            Phase::Clearing if self.state.is_gone(Side::Old) => {
                self.enter(Phase::Warming { level: 0 });
            }
            // Warming ⇒ Warming | Gating | first traffic: this level of the new release is ready.
            Phase::Warming { level } if self.state.is_new_ready() => {
                let levels = self.state.new_topology().map_or(0, |t| t.levels().len());
                if level + 1 < levels {
                    self.enter(Phase::Warming { level: level + 1 });
                } else {
                    self.gate_or_expose();
                }
            }
            Phase::Gating { gate } => {
                if gate == Gate::Hold
                    && !self.is_open(Gate::Hold)
                    && self.now.since(since) >= plan.hold
                {
                    let detail = format!("held for {}", format_duration(plan.hold));
                    self.emit(Change::GateOpened {
                        gate,
                        passed: true,
                        detail,
                    });
                }
                // Gating ⇒ Gating | first traffic: the gate is open.
                if self.is_open(gate) && self.state.is_new_ready() {
                    self.gate_or_expose();
                }
            }
            // Stepping ⇒ Shifting: the step's capacity is ready.
            Phase::Stepping { step } if self.state.is_new_ready() => {
                self.enter(Phase::Shifting { step });
            }
            // Shifting ⇒ Holding | Promoting: every new request follows the new weights.
            Phase::Shifting { step } if self.state.is_traffic_settled() => {
                let next = match plan.strategy {
                    Strategy::Canary { .. } => Phase::Holding { step },
                    Strategy::BlueGreen | Strategy::Rolling { .. } | Strategy::Recreate => {
                        Phase::Promoting { service: 0 }
                    }
                };
                self.enter(next);
            }
            Phase::Holding { step } => self.watch(step),
            // Moving ⇒ Moving | Standby: the service has moved.
            Phase::Moving { service } if self.has_moved(service) => {
                let next = Phase::Moving {
                    service: service + 1,
                };
                self.enter(if service < self.moves() {
                    next
                } else {
                    Phase::Standby
                });
            }
            // Promoting ⇒ Promoting | Standby: the service has moved.
            Phase::Promoting { service } if self.has_moved(service) => {
                let next = Phase::Promoting {
                    service: service + 1,
                };
                self.enter(if service < self.moves() {
                    next
                } else {
                    Phase::Standby
                });
            }
            // Standby ⇒ Sealing: the time to go back at once is over.
            Phase::Standby if self.now.since(since) >= plan.standby => self.enter(Phase::Sealing),
            // Sealing ⇒ sealed: nothing of the old release runs.
            Phase::Sealing if self.state.is_gone(Side::Old) => {
                self.emit(Change::RolloutEnded {
                    outcome: Outcome::Sealed,
                });
            }
            Phase::Reverting { reason, stage } => self.revert_further(reason, stage),
            Phase::Pausing
            | Phase::Clearing
            | Phase::Warming { .. }
            | Phase::Moving { .. }
            | Phase::Stepping { .. }
            | Phase::Shifting { .. }
            | Phase::Promoting { .. }
            | Phase::Standby
            | Phase::Sealing
            | Phase::Parked { .. } => {}
        }
    }

    fn is_open(&self, gate: Gate) -> bool {
        let state = self.rollout().and_then(|rollout| rollout.gates.get(&gate));
        state.is_some_and(|state| state.passed)
    }

    fn gate_or_expose(&mut self) {
        let Some(rollout) = self.rollout() else {
            return;
        };
        let next = match rollout.closed_gate() {
            Some(gate) => Phase::Gating { gate },
            None => match rollout.plan.strategy {
                Strategy::Rolling { .. } => Phase::Moving { service: 0 },
                Strategy::Canary { .. } => Phase::Stepping { step: 0 },
                Strategy::BlueGreen | Strategy::Recreate => Phase::Shifting { step: 0 },
            },
        };
        self.enter(next);
    }

    /// How many services the new release moves.
    fn moves(&self) -> usize {
        self.state.move_order().len()
    }

    /// Whether the service at this place of the order has its new size and nothing old left in its group.
    /// Past the last place: whether services that the new release does not have are gone.
    fn has_moved(&self, index: usize) -> bool {
        let order = self.state.move_order();
        let at_size = |service: &ServiceName| {
            let (kept, ready) = (self.state.kept(service), self.state.ready(service));
            let wanted = self.state.wanted(service);
            ready.new >= wanted.new
                && kept.old <= wanted.old
                && wanted.new == self.state.full(service).new
        };
        match order.get(index) {
            Some(service) => at_size(service),
            None => {
                let dropped = |service: &ServiceName| !order.contains(service);
                let services = self.state.all_services();
                services
                    .iter()
                    .filter(|s| dropped(s))
                    .all(|s| self.state.kept(s).old == 0)
            }
        }
    }

    fn watch(&mut self, step: usize) {
        let Some(rollout) = self.rollout() else {
            return;
        };
        let hold = rollout.plan.hold;
        let held = self.now.since(rollout.phase_since);
        let limit = if rollout.hold_extended {
            hold * 2
        } else {
            hold
        };
        if !rollout.plan.gates.contains(&Gate::Analysis) {
            // Holding ⇒ next step: only time was asked for.
            if held >= hold {
                self.next_step(step);
            }
            return;
        }
        match rollout.verdict(held, limit) {
            Verdict::Continue => {}
            // Holding ⇒ next step: new is no worse than old.
            Verdict::Pass => self.next_step(step),
            // Holding ⇒ Reverting: new is worse than old.
            Verdict::Fail(finding) => self.emit(Change::Failed {
                reason: finding.sentence,
            }),
            Verdict::Inconclusive { reason } if !rollout.hold_extended => {
                self.emit(Change::HoldExtended { reason });
            }
            // Holding ⇒ Parked: twice the time was not enough to tell.
            Verdict::Inconclusive { reason } => self.park(ParkReason::Inconclusive(reason)),
        }
    }

    fn next_step(&mut self, step: usize) {
        let Some(rollout) = self.rollout() else {
            return;
        };
        let next = if step >= rollout.last_step() {
            Phase::Promoting { service: 0 }
        } else {
            Phase::Stepping { step: step + 1 }
        };
        self.enter(next);
    }

    fn revert_further(&mut self, reason: String, stage: Reverting) {
        let state = &self.state;
        let nothing_runs = state.is_gone(Side::New) && state.is_gone(Side::Old);
        let next = match stage {
            Reverting::Pausing if state.is_traffic_settled() => Reverting::Clearing,
            Reverting::Clearing if nothing_runs => Reverting::Restoring,
            Reverting::Restoring if state.is_old_whole() || self.is_planted_early_return() => {
                Reverting::Switching
            }
            Reverting::Switching if state.is_traffic_settled() => Reverting::Retiring,
            Reverting::Retiring if state.is_gone(Side::New) => {
                self.emit(Change::RolloutEnded {
                    outcome: Outcome::RolledBack { reason },
                });
                return;
            }
            Reverting::Pausing
            | Reverting::Clearing
            | Reverting::Restoring
            | Reverting::Switching
            | Reverting::Retiring => return,
        };
        self.enter(Phase::Reverting {
            reason,
            stage: next,
        });
    }

    #[cfg(feature = "planted")]
    fn is_planted_early_return(&self) -> bool {
        self.state.planted == Some(PlantedBug::RollbackBeforeCapacity)
    }

    #[cfg(not(feature = "planted"))]
    fn is_planted_early_return(&self) -> bool {
        false
    }

    // ------------------------------------------------------------------------------------ sizes and traffic

    fn fit_sizes(&mut self) {
        for service in self.state.all_services() {
            for side in [Side::Old, Side::New] {
                self.fit_group(&service, side);
            }
        }
        self.end_strays();
    }

    fn fit_group(&mut self, service: &ServiceName, side: Side) {
        let (wanted, kept) = (self.state.wanted(service), self.state.kept(service));
        let (wanted, kept) = match side {
            Side::Old => (wanted.old, kept.old),
            Side::New => (wanted.new, kept.new),
        };
        if kept > wanted {
            for instance in self.state.surplus(service, side, wanted) {
                let reason = "no longer needed".to_owned();
                self.emit(Change::InstanceDraining {
                    instance,
                    hasty: false,
                    reason,
                });
            }
        }
        let rollout = self.state.rollout.as_ref();
        let release = match side {
            Side::Old if self.state.is_restart() => None,
            Side::Old => rollout.map_or(self.state.serving, |rollout| rollout.from),
            Side::New => rollout.map(|rollout| rollout.to),
        };
        let Some(release) = release else {
            return;
        };
        if kept < wanted && self.may_start(service, release) {
            for _ in kept..wanted {
                let number = self.state.next_instance;
                let instance = InstanceId::new(service.as_str(), release, number);
                let service = service.clone();
                self.emit(Change::InstancePlanned {
                    instance,
                    service,
                    release,
                });
            }
        }
    }

    fn may_start(&self, service: &ServiceName, release: ReleaseId) -> bool {
        let Some(shape) = self.state.shape(release, service) else {
            return false;
        };
        let of_service = self
            .state
            .instances
            .values()
            .filter(|i| i.service == *service);
        let leaving = of_service.filter(|instance| !instance.is_kept()).count();
        let crowded = shape.exclusive && leaving > 0;
        !crowded && backoff_until(&self.state, service, release).is_none_or(|at| at <= self.now)
    }

    /// Without a rollout only the serving release has instances.
    fn end_strays(&mut self) {
        if self.state.rollout.is_some() {
            return;
        }
        let serving = self.state.serving;
        let stray = |i: &&Instance| i.is_kept() && Some(i.release) != serving;
        let strays: Vec<_> = self
            .state
            .instances
            .values()
            .filter(stray)
            .map(|i| i.id.clone())
            .collect();
        for instance in strays {
            let reason = "its release does not serve".to_owned();
            self.emit(Change::InstanceDraining {
                instance,
                hasty: false,
                reason,
            });
        }
    }

    fn fit_traffic(&mut self) {
        let traffic = self.state.wanted_traffic();
        if traffic.revision != self.state.traffic.revision {
            self.emit(Change::TrafficChanged { traffic });
        }
    }
}

/// Where a person's "go on" leads a rollout whose way back is barred.
fn forward_entry(rollout: &Rollout) -> Phase {
    match rollout.plan.strategy {
        Strategy::Rolling { .. } => Phase::Moving { service: 0 },
        Strategy::BlueGreen | Strategy::Canary { .. } => Phase::Stepping {
            step: rollout.last_step(),
        },
        Strategy::Recreate => Phase::Pausing,
    }
}

fn lacks_surge(plan: &RolloutPlan, topology: &Topology) -> bool {
    let rolling = matches!(plan.strategy, Strategy::Rolling { .. });
    rolling
        && topology
            .services
            .values()
            .any(|shape| plan.strategy.room(shape.replicas).0 == 0)
}

fn backoff_until(
    state: &Environment,
    service: &ServiceName,
    release: ReleaseId,
) -> Option<Timestamp> {
    Some(state.backoff.get(service)?.get(&release)?.until)
}

impl Rollout {
    /// Enters a phase: its clock starts, and the weights it stands for apply.
    pub(crate) fn enter(&mut self, at: Timestamp, phase: &Phase) {
        self.weights = match phase {
            Phase::Moving { .. } => Weights::ByCount,
            Phase::Shifting { step } => match self.step_percent(*step) {
                100 => Weights::NewOnly,
                new => Weights::Split { new },
            },
            Phase::Reverting {
                stage: Reverting::Switching | Reverting::Clearing,
                ..
            } => Weights::OldOnly,
            Phase::Pausing | Phase::Clearing => Weights::OldOnly,
            Phase::Preflight
            | Phase::Warming { .. }
            | Phase::Gating { .. }
            | Phase::Stepping { .. }
            | Phase::Holding { .. }
            | Phase::Promoting { .. }
            | Phase::Standby
            | Phase::Sealing
            | Phase::Reverting { .. }
            | Phase::Parked { .. } => self.weights,
        };
        if let Phase::Holding { step } = phase {
            self.hold_extended = false;
            if *step > 0 {
                self.analyses.values_mut().for_each(Analysis::begin_step);
            }
        }
        self.phase = phase.clone();
        self.phase_since = at;
        self.progressed_at = at;
    }

    /// Whether what the proxy measures is to be shown to the analysis. It learns what the old release is like
    /// before the new one gets its first request.
    pub fn wants_observations(&self) -> bool {
        let canary = matches!(self.plan.strategy, Strategy::Canary { .. });
        canary && self.plan.gates.contains(&Gate::Analysis) && self.phase.is_forward()
    }

    /// What the analyses of all services say together: the first failure, else the first doubt.
    fn verdict(&self, held: Duration, hold: Duration) -> Verdict {
        let mut whole = if held < hold {
            Verdict::Continue
        } else {
            Verdict::Pass
        };
        if self.analyses.is_empty() && held >= hold {
            let reason = "nothing was measured".to_owned();
            return Verdict::Inconclusive { reason };
        }
        for analysis in self.analyses.values() {
            match analysis.verdict(held, hold) {
                fail @ Verdict::Fail(_) => return fail,
                doubt @ Verdict::Inconclusive { .. } => whole = doubt,
                Verdict::Continue | Verdict::Pass => {}
            }
        }
        whole
    }
}

/// The times that hold for one instance.
struct Timing {
    min_ready: Duration,
    healthy_deadline: Duration,
    drain: Duration,
}

impl Timing {
    fn of(state: &Environment, instance: &Instance) -> Self {
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

    fn drain(&self, hasty: bool) -> Duration {
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
        let rollout = state.rollout.as_ref();
        let old = rollout.map_or(state.serving, |rollout| rollout.from);
        let sides = [
            (old, wanted.old > kept.old),
            (rollout.map(|r| r.to), wanted.new > kept.new),
        ];
        for release in sides
            .into_iter()
            .filter(|(_, short)| *short)
            .filter_map(|(id, _)| id)
        {
            if let Some(until) = backoff_until(state, &service, release) {
                want(until, "backoff");
            }
        }
    }
    if let Some(rollout) = &state.rollout {
        let (since, plan) = (rollout.phase_since, &rollout.plan);
        if rollout.phase.is_timed() {
            want(
                rollout.progressed_at + plan.progress_deadline,
                "progress_deadline",
            );
        }
        match rollout.phase {
            Phase::Gating { gate: Gate::Hold } => want(since + plan.hold, "hold"),
            Phase::Holding { .. } => {
                let times = if rollout.hold_extended { 2 } else { 1 };
                want(since + plan.hold * times, "hold");
            }
            Phase::Standby => want(since + plan.standby, "standby"),
            _ => {}
        }
    }
    earliest
}
