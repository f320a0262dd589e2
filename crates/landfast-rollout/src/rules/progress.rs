//! How a rollout goes from phase to phase, forward and back.

use std::time::Duration;

use landfast_types::{ServiceName, Timestamp, format_duration};

#[cfg(feature = "planted")]
use crate::environment::PlantedBug;
use crate::{
    analysis::{Analysis, Finding, Verdict},
    environment::Side,
    event::Change,
    plan::{Gate, Strategy},
    rollout::{Kind, Outcome, ParkReason, Phase, Reverting, Rollout, Weights},
    rules::Draft,
};

/// So many ends of one service's instances within a few minutes make a crash loop.
const CRASHES_MAX: usize = 3;

impl Draft {
    pub(super) fn note_progress(&mut self) {
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
    pub(super) fn is_planted_flap(&self) -> bool {
        self.state.planted == Some(PlantedBug::FlapRestartsDeadline)
    }

    #[cfg(not(feature = "planted"))]
    pub(super) fn is_planted_flap(&self) -> bool {
        false
    }

    pub(super) fn move_rollout(&mut self) {
        let Some(rollout) = self.rollout() else {
            if let Some(queued) = self.state.queued.clone() {
                self.begin(queued.kind, queued.to, queued.plan, queued.by);
            }
            return;
        };
        if rollout.phase.is_forward() {
            if let Some(reason) = self.failure(rollout) {
                if rollout.failure.is_none() {
                    let reason = reason.clone();
                    self.emit(Change::Failed { reason });
                }
                self.answer_failure(&reason);
                return;
            }
        } else if let Phase::Reverting { .. } = rollout.phase
            && self.is_out_of_time(rollout)
        {
            let waited = format_duration(rollout.plan.progress_deadline);
            let detail = match self.state.unendable(self.now) {
                Some(stuck) => format!("{stuck} does not end, and no progress for {waited}"),
                None => format!("no progress for {waited}"),
            };
            self.park(ParkReason::CannotRestore(detail));
            return;
        }
        self.advance();
    }

    /// What the rollout must answer, if anything.
    pub(super) fn failure(&self, rollout: &Rollout) -> Option<String> {
        if let Some(reason) = &rollout.failure {
            return Some(reason.clone());
        }
        let mut crashes = rollout.crash_times.iter();
        if let Some((service, times)) = crashes.find(|(_, times)| times.len() >= CRASHES_MAX) {
            let (to, count) = (rollout.to, times.len());
            return Some(format!(
                "release {to} is crash-looping: {count} instances of `{service}` ended"
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

    pub(super) fn is_out_of_time(&self, rollout: &Rollout) -> bool {
        let since = rollout
            .timed_since()
            .filter(|_| !self.state.is_only_ending());
        since.is_some_and(|since| self.now.since(since) >= rollout.plan.progress_deadline)
    }

    pub(super) fn answer_failure(&mut self, reason: &str) {
        let Some(rollout) = self.rollout() else {
            return;
        };
        // What was written to the new store would be missing in the old one: somebody has to say so.
        if let Some(switching) = rollout.switching.as_ref().filter(|_| rollout.exposed) {
            let to = &switching.switch.to;
            let reason = format!("{reason}, and requests may have been written to store `{to}`");
            self.park(ParkReason::RollbackOff(reason));
        } else if rollout.plan.rollback {
            self.revert(reason);
        } else {
            self.park(ParkReason::RollbackOff(reason.to_owned()));
        }
    }

    /// Begins to take the rollout back. Capacity first; where two releases exclude each other, room first.
    pub(super) fn revert(&mut self, reason: &str) {
        let Some(rollout) = self.rollout() else {
            return;
        };
        let reason = reason.to_owned();
        if self.state.is_restart() {
            // Both sides are the same release: what runs stays, and steady state fits the number.
            self.emit(Change::RolloutEnded {
                outcome: Outcome::RolledBack { reason },
            });
            return;
        }
        if let Some(obstacle) = self.state.way_back_barred() {
            self.park(ParkReason::SchemaMovedOn(obstacle.sentence()));
            return;
        }
        let excluding = rollout.excludes();
        let untouched = match rollout.phase.underlying() {
            Phase::Preflight | Phase::Rehearsing | Phase::Migrating | Phase::Pausing => true,
            // Beside the new release the old one is whole, as whole as it was, until traffic moves.
            Phase::Warming { .. } | Phase::Gating { .. } | Phase::Stepping { .. } => {
                let room_made = excluding && rollout.cleared;
                !room_made && rollout.weights == Weights::OldOnly
            }
            Phase::Clearing
            | Phase::Moving { .. }
            | Phase::Shifting { .. }
            | Phase::Holding { .. }
            | Phase::Promoting { .. }
            | Phase::Standby
            | Phase::Sealing
            | Phase::Contracting
            | Phase::Reverting { .. }
            | Phase::Parked { .. } => false,
        };
        let stage = if untouched {
            Reverting::Switching
        } else if excluding {
            Reverting::Pausing
        } else {
            Reverting::Restoring
        };
        self.enter(Phase::Reverting { reason, stage });
    }

    pub(super) fn park(&mut self, reason: ParkReason) {
        let Some(rollout) = self.rollout() else {
            return;
        };
        if matches!(rollout.phase, Phase::Parked { .. }) {
            return;
        }
        let resume = Box::new(rollout.phase.clone());
        self.enter(Phase::Parked { reason, resume });
    }

    /// Each arm is one move; none of them skips a wait.
    pub(super) fn advance(&mut self) {
        let Some(rollout) = self.rollout() else {
            return;
        };
        let since = rollout.phase_since;
        let plan = rollout.plan.clone();
        match rollout.phase.clone() {
            // Preflight ⇒ rolled back: it waited, and the release it was to restart does not serve any more.
            Phase::Preflight if rollout.kind == Kind::Restart && !self.state.is_restart() => {
                let reason = format!("release {} was taken back before its restart", rollout.to);
                self.emit(Change::RolloutEnded {
                    outcome: Outcome::RolledBack { reason },
                });
            }
            // Preflight ⇒ Parked: what it leads back to cannot run any more.
            Phase::Preflight
                if rollout.kind == Kind::Rollback && self.state.obstacle(rollout.to).is_some() =>
            {
                if let Some(obstacle) = self.state.obstacle(rollout.to) {
                    self.park(ParkReason::SchemaMovedOn(obstacle.sentence()));
                }
            }
            // Preflight ⇒ Reverting: while it waited a contract migration ran that it does not know.
            Phase::Preflight
                if rollout.kind == Kind::Deploy
                    && rollout.switching.is_none()
                    && self.state.obstacle(rollout.to).is_some() =>
            {
                if let Some(obstacle) = self.state.obstacle(rollout.to) {
                    self.emit(Change::Failed {
                        reason: obstacle.sentence(),
                    });
                }
            }
            // Preflight ⇒ Rehearsing | Migrating | Gating | Pausing | Moving | Warming: the host can carry it.
            Phase::Preflight => {
                let passed = rollout
                    .gates
                    .get(&Gate::Preflight)
                    .is_some_and(|gate| gate.passed);
                if plan.gates.contains(&Gate::Preflight) && !passed {
                    return;
                }
                let rehearses = plan.gates.contains(&Gate::Rehearsal) && rollout.from.is_some();
                if rehearses && rollout.kind == Kind::Deploy && self.migrates() {
                    self.enter(Phase::Rehearsing);
                } else {
                    self.migrate_or_move();
                }
            }
            // Rehearsing ⇒ Migrating: they keep within their budgets on a copy.
            Phase::Rehearsing if self.is_open(Gate::Rehearsal) => self.migrate_or_move(),
            // Migrating ⇒ Reverting: the store that is to serve it has seen what the release does not live with.
            Phase::Migrating if rollout.migrated && self.state.obstacle_of_switch().is_some() => {
                if let Some(reason) = self.state.obstacle_of_switch() {
                    self.emit(Change::Failed { reason });
                }
            }
            // Migrating ⇒ Gating | Pausing | Warming: the databases have what the new release needs.
            Phase::Migrating if rollout.migrated => self.begin_moving(),
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
                // Gating ⇒ Gating | Pausing | first traffic: the gate is open.
                if self.is_open(gate) && self.state.is_new_ready() {
                    self.gate_or_expose();
                }
            }
            // Stepping | Shifting ⇒ Reverting: new is worse than old at the weights in force.
            Phase::Stepping { .. } | Phase::Shifting { .. } if self.convict() => {}
            // Stepping ⇒ Shifting: the step's capacity is ready.
            Phase::Stepping { step } if self.state.is_new_ready() => {
                self.enter(Phase::Shifting { step });
            }
            // Shifting ⇒ Holding | Promoting | Standby: every new request follows the new weights.
            Phase::Shifting { step } if self.state.is_traffic_settled() => {
                let next = match plan.strategy {
                    Strategy::Canary { .. } => Phase::Holding { step },
                    Strategy::BlueGreen | Strategy::Rolling { .. } => {
                        Phase::Promoting { service: 0 }
                    }
                    // Nothing of the old release is left that could still move.
                    Strategy::Recreate => Phase::Standby,
                };
                self.enter(next);
            }
            Phase::Holding { step } => self.watch(step),
            // Moving ⇒ Moving | Standby: the service has moved.
            Phase::Moving { service } if self.has_moved(service) && self.may_go_on(service) => {
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
            Phase::Promoting { service } if self.has_moved(service) && self.may_go_on(service) => {
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
            // The old release may be what serves, so it does not go while the new one is not whole.
            Phase::Standby
                if self.now.since(since) >= plan.standby && self.state.is_new_ready() =>
            {
                self.enter(Phase::Sealing);
            }
            // Sealing ⇒ Contracting | sealed: nothing of the old release runs, or what does cannot be ended.
            Phase::Sealing if self.has_ended(Side::Old) || self.is_planted_contract() => {
                self.contract_or_end();
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
            | Phase::Rehearsing
            | Phase::Migrating
            | Phase::Contracting
            | Phase::Parked { .. } => {}
        }
    }

    /// Whether the new release brings migrations that are not in its databases, as far as is known.
    fn migrates(&self) -> bool {
        let topology = self.state.new_topology();
        topology.is_some_and(|new| !new.schemas.is_empty())
    }

    /// The databases first, where the release needs something of them.
    fn migrate_or_move(&mut self) {
        let Some(rollout) = self.rollout() else {
            return;
        };
        let migrates = match rollout.kind {
            // A store that was restored is asked what it has seen, whatever is known of the old one.
            Kind::Deploy => self.migrates() || rollout.switching.is_some(),
            Kind::Rollback => self.state.lacks_schema(rollout.to),
            Kind::Restart => false,
        };
        if migrates {
            self.enter(Phase::Migrating);
        } else {
            self.begin_moving();
        }
    }

    /// The first step of a rollout whose host and databases are ready for it.
    fn begin_moving(&mut self) {
        let Some(rollout) = self.rollout() else {
            return;
        };
        if rollout.excludes() {
            self.gate_or_expose();
            return;
        }
        let next = match rollout.kind {
            Kind::Restart => Phase::Moving { service: 0 },
            Kind::Deploy | Kind::Rollback => Phase::Warming { level: 0 },
        };
        self.enter(next);
    }

    /// The old release is let go. Contract migrations run if nothing is left that they would break; otherwise the next
    /// rollout to this release, or a later one that knows them, tries again.
    fn contract_or_end(&mut self) {
        let Some(rollout) = self.rollout() else {
            return;
        };
        let migrations = self.state.waiting_contracts(rollout.to);
        let hindrance = self.state.contract_hindrance(rollout.to);
        match hindrance.filter(|_| !self.is_planted_contract()) {
            None if !migrations.is_empty() => {
                self.emit(Change::ContractsBegun { migrations });
                self.enter(Phase::Contracting);
                return;
            }
            Some(reason) if !migrations.is_empty() => self.emit(Change::ContractsWait { reason }),
            Some(_) | None => {}
        }
        self.emit(Change::RolloutEnded {
            outcome: Outcome::Sealed,
        });
    }

    #[cfg(feature = "planted")]
    fn is_planted_contract(&self) -> bool {
        self.state.planted == Some(PlantedBug::ContractBesideOld)
    }

    #[cfg(not(feature = "planted"))]
    fn is_planted_contract(&self) -> bool {
        false
    }

    pub(super) fn is_open(&self, gate: Gate) -> bool {
        self.rollout().is_some_and(|rollout| rollout.is_open(gate))
    }

    pub(super) fn gate_or_expose(&mut self) {
        let Some(rollout) = self.rollout() else {
            return;
        };
        let next = match rollout.closed_gate() {
            Some(gate) => Phase::Gating { gate },
            None if rollout.is_untouched() => Phase::Pausing,
            None => match rollout.plan.strategy {
                Strategy::Rolling { .. } => Phase::Moving { service: 0 },
                Strategy::Canary { .. } => Phase::Stepping { step: 0 },
                Strategy::BlueGreen | Strategy::Recreate => Phase::Shifting { step: 0 },
            },
        };
        self.enter(next);
    }

    /// How many services the new release moves.
    pub(super) fn moves(&self) -> usize {
        self.state.move_order().len()
    }

    /// After the last service: the promotion says that the new release serves everything, so the proxy has to have
    /// confirmed that no request goes to an old instance any more.
    fn may_go_on(&self, service: usize) -> bool {
        service < self.moves() || self.state.is_traffic_settled()
    }

    /// Whether the service at this place of the order has its new size and nothing old left in its group.
    /// Past the last place: whether services that the new release does not have are gone.
    pub(super) fn has_moved(&self, index: usize) -> bool {
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
                let keeps_old = |service: &ServiceName| {
                    let rollout = self.rollout();
                    rollout.is_some_and(|rollout| self.state.keeps_old(rollout, service))
                };
                let dropped =
                    |service: &ServiceName| !order.contains(service) && !keeps_old(service);
                let services = self.state.all_services();
                services
                    .iter()
                    .filter(|s| dropped(s))
                    .all(|s| self.state.kept(s).old == 0)
            }
        }
    }

    pub(super) fn watch(&mut self, step: usize) {
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

    /// Between two holds a canary goes on serving its share. It is judged there by the evidence of the last hold,
    /// which is only put aside once the proxy uses the next weights.
    fn convict(&mut self) -> bool {
        let Some(rollout) = self.rollout() else {
            return false;
        };
        let judged = rollout.plan.gates.contains(&Gate::Analysis);
        let Some(finding) = rollout.conviction().filter(|_| judged) else {
            return false;
        };
        self.emit(Change::Failed {
            reason: finding.sentence,
        });
        true
    }

    pub(super) fn next_step(&mut self, step: usize) {
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

    pub(super) fn revert_further(&mut self, reason: String, stage: Reverting) {
        let state = &self.state;
        let next = match stage {
            Reverting::Pausing if state.is_traffic_settled() => Reverting::Clearing,
            Reverting::Clearing if state.is_gone(Side::New) => Reverting::Restoring,
            Reverting::Restoring if state.is_old_routable() || self.is_planted_early_return() => {
                Reverting::Switching
            }
            // Back to Restoring: the server died between this phase and its table, and the old release with it.
            Reverting::Switching if state.would_return_early() => Reverting::Restoring,
            Reverting::Switching if state.is_traffic_settled() => Reverting::Retiring,
            Reverting::Retiring if self.has_ended(Side::New) => {
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

    /// Whether a side is gone, or what is left of it is out of traffic, was killed and does not end. That one goes on
    /// being stopped without a rollout: a process that the kernel holds must not keep the environment from moving.
    fn has_ended(&self, side: Side) -> bool {
        let until = self.state.patience_until(side);
        self.state.is_gone(side) || until.is_some_and(|until| self.now >= until)
    }

    #[cfg(feature = "planted")]
    pub(super) fn is_planted_early_return(&self) -> bool {
        self.state.planted == Some(PlantedBug::RollbackBeforeCapacity)
    }

    #[cfg(not(feature = "planted"))]
    pub(super) fn is_planted_early_return(&self) -> bool {
        false
    }
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
            | Phase::Rehearsing
            | Phase::Migrating
            | Phase::Contracting
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
        self.cleared |= *phase == Phase::Clearing;
        self.exposed |= self.weights != Weights::OldOnly;
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

    /// What already speaks against the new release, once somebody was sent to it.
    fn conviction(&self) -> Option<Finding> {
        let mut analyses = self.analyses.values();
        analyses.find_map(
            |analysis| match analysis.verdict(Duration::ZERO, Duration::MAX) {
                Verdict::Fail(finding) if self.weights != Weights::OldOnly => Some(finding),
                Verdict::Fail(_)
                | Verdict::Continue
                | Verdict::Pass
                | Verdict::Inconclusive { .. } => None,
            },
        )
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
