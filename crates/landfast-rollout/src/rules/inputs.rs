//! What people, drivers and the clock say, and what is recorded of it.

use std::{collections::BTreeSet, time::Duration};

use landfast_types::{ReleaseId, RolloutId, ServiceName, StoreName};

#[cfg(feature = "planted")]
use crate::environment::PlantedBug;
use crate::{
    binding::StoreSwitch,
    event::{Change, Input, Rejected},
    instance::{Instance, InstanceState},
    plan::{Gate, RolloutPlan, Strategy, Topology},
    rollout::{Kind, Outcome, ParkReason, Phase, Rollout},
    rules::Draft,
    schema::{MigrationStage, Schemas},
};

impl Draft {
    pub(super) fn take(&mut self, input: Input) -> Result<(), Rejected> {
        match input {
            Input::Deploy {
                topology,
                plan,
                supersede,
                by,
            } => self.deploy(topology, plan, supersede, by),
            Input::SwitchStore {
                topology,
                plan,
                store,
                to,
                was_deleted,
                by,
            } => {
                let from = self.state.served_by(None, &store).clone();
                let switch = StoreSwitch {
                    store,
                    from,
                    to,
                    was_deleted,
                };
                self.switch_store(topology, plan, switch, by)
            }
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
            Input::NotReady { instance, reason } => {
                self.not_ready(instance, reason);
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
                self.give_hand_up();
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
                if !self.state.instances.is_empty() || self.state.rollout.is_some() {
                    self.emit(Change::TakenOver);
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
                let needed = self.needed_releases();
                let releases: BTreeSet<_> = releases.difference(&needed).copied().collect();
                if !releases.is_empty() {
                    self.emit(Change::ReleasesCollected { releases });
                }
                Ok(())
            }
            Input::Migrated {
                rollout,
                stage,
                schemas,
                failure,
            } => {
                self.migrated(rollout, stage, schemas, failure);
                Ok(())
            }
            Input::MigrateByHand { store, work, by } => self.migrate_by_hand(store, work, by),
            Input::HandEnded {
                run,
                schemas,
                failure,
            } => {
                self.hand_ended(run, schemas, failure);
                Ok(())
            }
            Input::SchemasRead { schemas } => {
                self.schemas_read(schemas);
                Ok(())
            }
            Input::StoreRetired { store } => {
                self.store_retired(store);
                Ok(())
            }
            Input::Tick => Ok(()),
        }
    }

    pub(super) fn deploy(
        &mut self,
        topology: Topology,
        plan: RolloutPlan,
        supersede: bool,
        by: String,
    ) -> Result<(), Rejected> {
        if self.state.stopped {
            return Err(Rejected::EnvironmentStopped);
        }
        self.refuse_beside_hand()?;
        let exclusive = topology.is_exclusive();
        if plan.gates.contains(&Gate::Smoke) && !exclusive && lacks_surge(&plan, &topology) {
            return Err(Rejected::SmokeNeedsSurge);
        }
        let release = self.state.next_release();
        if let Some(obstacle) = self.state.obstacle_to(release, &topology) {
            return Err(Rejected::SchemaMovedOn(Box::new(obstacle)));
        }
        self.make_room(supersede)?;
        self.emit(Change::ReleaseCreated {
            release,
            topology,
            plan: plan.clone(),
        });
        self.begin_or_queue(Kind::Deploy, release, plan, by);
        Ok(())
    }

    /// A rollout of the same code and configuration, of which nothing runs beside the old release. It waits for none, and none
    /// stands by behind it: what is written after it lies in another store.
    fn switch_store(
        &mut self,
        topology: Topology,
        plan: RolloutPlan,
        switch: StoreSwitch,
        by: String,
    ) -> Result<(), Rejected> {
        if self.state.stopped {
            return Err(Rejected::EnvironmentStopped);
        }
        if let Some(rollout) = self.rollout() {
            return Err(self.is_moving(rollout));
        }
        if self.state.serving.is_none() {
            return Err(Rejected::NothingDeployed);
        }
        self.refuse_beside_hand()?;
        if switch.from == switch.to {
            let (store, by) = (switch.store, switch.to);
            return Err(Rejected::StoreServes { store, by });
        }
        let release = self.state.next_release();
        let plan = RolloutPlan {
            strategy: Strategy::Recreate,
            standby: Duration::ZERO,
            ..plan
        };
        self.emit(Change::ReleaseCreated {
            release,
            topology,
            plan: plan.clone(),
        });
        self.begin(Kind::Deploy, release, plan, by);
        self.emit(Change::StoreSwitching { switch });
        Ok(())
    }

    fn store_retired(&mut self, store: StoreName) {
        if self.state.retiring.contains(&store) {
            self.emit(Change::StoreRetired { store });
        }
    }

    /// The releases that run, or to which the environment is on its way.
    pub(super) fn needed_releases(&self) -> BTreeSet<ReleaseId> {
        let rollout = self.rollout();
        let named = [
            self.state.serving,
            rollout.and_then(|rollout| rollout.from),
            rollout.map(|rollout| rollout.to),
            self.state.queued.as_ref().map(|queued| queued.to),
        ];
        let running = self.state.instances.values().map(|i| i.release);
        named.into_iter().flatten().chain(running).collect()
    }

    /// Ends or takes back what stands in the way of a new rollout, or refuses it.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "every phase that moves is refused alike"
    )]
    pub(super) fn make_room(&mut self, supersede: bool) -> Result<(), Rejected> {
        let Some(rollout) = self.rollout() else {
            return Ok(());
        };
        match &rollout.phase {
            // Standby ⇒ Sealing: whoever deploys further has accepted what serves.
            Phase::Standby if self.state.is_new_ready() => {
                self.enter(Phase::Sealing);
                Ok(())
            }
            Phase::Sealing | Phase::Contracting => Ok(()),
            // What may have been written to the new store is left behind by nobody but a person who says `abort`.
            phase
                if rollout.switching.is_some()
                    && rollout.exposed
                    && !matches!(phase, Phase::Reverting { .. }) =>
            {
                Err(self.is_moving(rollout))
            }
            // It is on its way out already, for one that waits: that one is superseded.
            Phase::Reverting { .. } if self.state.queued.is_some() => Ok(()),
            _ if supersede || rollout.is_waiting() => {
                if !matches!(rollout.phase, Phase::Reverting { .. }) {
                    self.revert("superseded by a newer rollout");
                }
                Ok(())
            }
            _ => Err(self.is_moving(rollout)),
        }
    }

    /// Whether the new release serves and the old one only stands by or leaves, with nobody in line behind it.
    fn is_settled(&self, rollout: &Rollout) -> bool {
        let stands_by = rollout.phase == Phase::Standby && self.state.is_new_ready();
        let is_sealed = matches!(rollout.phase, Phase::Sealing | Phase::Contracting);
        (stands_by || is_sealed) && self.state.queued.is_none()
    }

    pub(crate) fn is_moving(&self, rollout: &Rollout) -> Rejected {
        Rejected::RolloutMoving {
            rollout: rollout.id,
            to: rollout.to,
            since: rollout.started_at,
            by: rollout.by.clone(),
        }
    }

    pub(super) fn begin_or_queue(
        &mut self,
        kind: Kind,
        to: ReleaseId,
        plan: RolloutPlan,
        by: String,
    ) {
        if self.rollout().is_some() {
            self.emit(Change::RolloutQueued { kind, to, plan, by });
        } else {
            self.begin(kind, to, plan, by);
        }
    }

    pub(super) fn begin(&mut self, kind: Kind, to: ReleaseId, mut plan: RolloutPlan, by: String) {
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
        if from.is_none() {
            // There is nothing to go back to, so nothing stands by.
            plan.standby = Duration::ZERO;
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

    pub(super) fn rollback(&mut self, to: Option<ReleaseId>, by: String) -> Result<(), Rejected> {
        if let Some(rollout) = self.rollout() {
            // Taking a rollback back would lead forth.
            let back = rollout.kind != Kind::Rollback;
            if back && to.is_none_or(|to| Some(to) == rollout.from) {
                return self.abort(&by, "rolled back by hand");
            }
            return Err(self.is_moving(rollout));
        }
        let current = self.state.serving.ok_or(Rejected::NothingDeployed)?;
        self.refuse_beside_hand()?;
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
        let plan = record.plan.for_rollback(record.topology.is_exclusive());
        self.begin(Kind::Rollback, target, plan, by);
        Ok(())
    }

    pub(super) fn restart(&mut self, by: String) -> Result<(), Rejected> {
        if let Some(rollout) = self.rollout()
            && !self.is_settled(rollout)
        {
            return Err(self.is_moving(rollout));
        }
        self.refuse_beside_hand()?;
        // What stands in standby serves already, and is sealed by this.
        let accepted = self.rollout().map(|rollout| rollout.to);
        let current = accepted.or(self.state.serving);
        let current = current.ok_or(Rejected::NothingDeployed)?;
        if self.state.stopped {
            return Err(Rejected::EnvironmentStopped);
        }
        let record = self
            .state
            .releases
            .get(&current)
            .ok_or(Rejected::NothingDeployed)?;
        let plan = record.plan.for_restart(record.topology.is_exclusive());
        self.make_room(false)?;
        self.begin_or_queue(Kind::Restart, current, plan, by);
        Ok(())
    }

    pub(super) fn scale(
        &mut self,
        service: ServiceName,
        replicas: Option<u32>,
    ) -> Result<(), Rejected> {
        let release = self
            .rollout()
            .map(|rollout| rollout.to)
            .or(self.state.serving);
        let release = release.ok_or(Rejected::NothingDeployed)?;
        let Some(shape) = self.state.shape(release, &service) else {
            return Err(Rejected::NoSuchService(service));
        };
        if let Some(replicas) = replicas.filter(|replicas| shape.exclusive && *replicas > 1) {
            return Err(Rejected::OneWriter { service, replicas });
        }
        self.emit(Change::Scaled { service, replicas });
        Ok(())
    }

    pub(super) fn stop(&mut self) -> Result<(), Rejected> {
        if let Some(rollout) = self.rollout() {
            if !self.is_settled(rollout) {
                return Err(self.is_moving(rollout));
            }
            // Standby ⇒ Sealing: whoever stops what serves does not take it back.
            if rollout.phase == Phase::Standby {
                self.enter(Phase::Sealing);
            }
        }
        if self.state.stopped {
            return Err(Rejected::EnvironmentStopped);
        }
        if self.state.serving.is_none() && self.rollout().is_none() {
            return Err(Rejected::NothingDeployed);
        }
        self.emit(Change::Stopped);
        Ok(())
    }

    pub(super) fn start(&mut self) -> Result<(), Rejected> {
        if !self.state.stopped {
            return Err(Rejected::NotStopped);
        }
        self.emit(Change::Resumed);
        Ok(())
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "whatever does not wait for a person is refused alike"
    )]
    pub(super) fn promote(&mut self, by: String) -> Result<(), Rejected> {
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
            // A rollback leads nowhere but to the release that cannot run.
            Phase::Parked {
                reason: ParkReason::SchemaMovedOn(_),
                ..
            } if rollout.kind == Kind::Rollback => {
                let obstacle = self.state.obstacle(rollout.to);
                return Err(obstacle.map_or(refused, |obstacle| {
                    Rejected::SchemaMovedOn(Box::new(obstacle))
                }));
            }
            // Parked ⇒ forward: the old release cannot come back, so a person takes the new one.
            Phase::Parked {
                reason: ParkReason::CannotRestore(_) | ParkReason::SchemaMovedOn(_),
                ..
            } => {
                self.emit(Change::Promoted { by });
                self.enter(forward);
            }
            _ => return Err(refused),
        }
        Ok(())
    }

    pub(super) fn promote_step(&mut self, step: usize, by: String) {
        self.emit(Change::Promoted { by });
        self.next_step(step);
    }

    pub(super) fn abort(&mut self, by: &str, reason: &str) -> Result<(), Rejected> {
        let rollout = self.moving_rollout()?;
        if matches!(rollout.phase, Phase::Reverting { .. }) {
            return Err(Rejected::AlreadyReverting {
                rollout: rollout.id,
            });
        }
        let is_switched = rollout.switching.as_ref();
        let is_switched = is_switched.is_some_and(|switching| switching.is_done);
        if rollout.phase == Phase::Contracting || is_switched {
            return Err(Rejected::Contracting {
                rollout: rollout.id,
            });
        }
        if let Some(obstacle) = self.state.way_back_barred() {
            let barred = matches!(
                rollout.phase,
                Phase::Parked {
                    reason: ParkReason::SchemaMovedOn(_),
                    ..
                }
            );
            if barred {
                return Err(Rejected::SchemaMovedOn(Box::new(obstacle)));
            }
        }
        self.revert(&format!("aborted by {by}: {reason}"));
        Ok(())
    }

    pub(super) fn seal(&mut self, by: String) -> Result<(), Rejected> {
        let rollout = self.moving_rollout()?;
        if matches!(rollout.phase, Phase::Sealing | Phase::Contracting) {
            // It is being done.
            return Ok(());
        }
        let sealable = rollout.phase == Phase::Standby && self.state.is_new_ready();
        if !sealable && !self.is_planted_seal() {
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

    /// The check forgets that a rollback may be under way.
    #[cfg(feature = "planted")]
    fn is_planted_seal(&self) -> bool {
        let reverts = |rollout: &Rollout| matches!(rollout.phase, Phase::Reverting { .. });
        let planted = self.state.planted == Some(PlantedBug::SealWhileReverting);
        planted && self.rollout().is_some_and(reverts)
    }

    #[cfg(not(feature = "planted"))]
    fn is_planted_seal(&self) -> bool {
        false
    }

    fn migrated(
        &mut self,
        rollout: RolloutId,
        stage: MigrationStage,
        schemas: Schemas,
        failure: Option<String>,
    ) {
        let waits = |r: &&Rollout| r.id == rollout && r.stage_due() == Some(stage);
        if self.rollout().filter(waits).is_none() {
            return;
        }
        self.emit(Change::Migrated {
            stage,
            schemas,
            failure: failure.clone(),
        });
        match stage {
            // Contracting ⇒ sealed: the release serves with or without them.
            MigrationStage::Contract => self.emit(Change::RolloutEnded {
                outcome: Outcome::Sealed,
            }),
            MigrationStage::All | MigrationStage::Expand => {
                if let Some(reason) = failure {
                    self.emit(Change::Failed { reason });
                }
            }
        }
    }

    pub(super) fn gate_judged(
        &mut self,
        rollout: RolloutId,
        gate: Gate,
        passed: bool,
        detail: String,
    ) {
        let waits =
            |r: &&Rollout| r.id == rollout && r.phase.gate() == Some(gate) && !r.is_open(gate);
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
