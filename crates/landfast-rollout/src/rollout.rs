//! One move of an environment from a release to another.
//!
//! ```text
//! rolling      Preflight ▸ (Rehearsing) ▸ (Migrating) ▸ Warming ▸ Gating ▸ Moving ▸ Standby ▸ Sealing ▸ (Contracting) ▸ sealed
//! blue-green   Preflight ▸ … Warming ▸ Gating ▸ Shifting ▸ Promoting ▸ Standby ▸ Sealing ▸ sealed
//! canary       Preflight ▸ Warming ▸ Gating ▸ (Stepping ▸ Shifting ▸ Holding)* ▸ Promoting ▸ Standby ▸ …
//! recreate     Preflight ▸ Gating ▸ Pausing ▸ Clearing ▸ Warming ▸ Gating ▸ Shifting ▸ Standby ▸ Sealing ▸ sealed
//! any phase    ▸ Reverting(…) ▸ rolled back,  or ▸ Parked ▸ (a person) promote | abort
//! ```
//!
//! In recreate whoever has to be waited for is waited for while the old release still serves; only the smoke job, which
//! needs the new one, runs while requests are held.
//!
//! Migrations that the old release lives with run in `Migrating`, while it serves alone. Those that it does not live with run in
//! `Contracting`, when nothing of it is left; from then on nothing leads back to it (see [`crate::schema`]).
//!
//! Nothing is sent to the new release before `Moving` or `Shifting`. The old release is not let go before
//! `Sealing`. Taking back restores the old capacity first, then switches, then ends the new release.

use std::collections::BTreeMap;

use landfast_types::{ReleaseId, RolloutId, ServiceName, Timestamp};
use serde::{Deserialize, Serialize};

use crate::{
    analysis::{Analysis, AnalysisSettings, Observation},
    binding::Switching,
    environment::Sides,
    event::Change,
    ledger::Ledger,
    plan::{Gate, RolloutPlan, Strategy},
    schema::MigrationStage,
};

/// Why the environment moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    Deploy,
    Rollback,
    Restart,
}

/// The state of a rollout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rollout {
    pub id: RolloutId,
    pub kind: Kind,
    pub from: Option<ReleaseId>,
    pub to: ReleaseId,
    pub plan: RolloutPlan,
    pub by: String,
    pub started_at: Timestamp,
    /// Instances of `to` with this number or a higher one belong to the new side.
    pub first_instance: u64,
    pub phase: Phase,
    pub phase_since: Timestamp,
    pub weights: Weights,
    /// The old release was ended to make room for the new one.
    #[serde(default)]
    pub cleared: bool,
    /// Some request may have gone to the new release.
    #[serde(default)]
    pub exposed: bool,
    /// The migrations of its stage before traffic have run.
    #[serde(default)]
    pub migrated: bool,
    /// Why its contract migrations wait, where they do.
    #[serde(default)]
    pub contract_waits: Option<String>,
    pub gates: BTreeMap<Gate, GateState>,
    /// The most instances of each service that ever were ready together, and when that last grew.
    pub high_water: BTreeMap<ServiceName, u32>,
    pub progressed_at: Timestamp,
    /// The first thing that went wrong, until it was answered.
    pub failure: Option<String>,
    /// When instances of the new release lately ended by themselves.
    #[serde(default)]
    pub crash_times: BTreeMap<ServiceName, Vec<Timestamp>>,
    /// The sizes at which it was parked. They stay while it waits.
    #[serde(default)]
    pub frozen: BTreeMap<ServiceName, Sides>,
    /// One for each routed service that both releases have.
    pub analyses: BTreeMap<ServiceName, Analysis>,
    pub hold_extended: bool,
    /// The store that its instances are given in place of another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub switching: Option<Switching>,
    pub ledger: Ledger,
}

/// How a gate stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GateState {
    pub passed: bool,
    pub detail: String,
    pub at: Timestamp,
}

/// Where a rollout is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Phase {
    /// The host is checked.
    Preflight,
    /// Its migrations are tried on a copy of each database.
    Rehearsing,
    /// The databases get what the new release needs and the old one lives with.
    Migrating,
    /// Requests are held while one release makes room for the other.
    Pausing,
    /// The old release ends, because two cannot run side by side.
    Clearing,
    /// Capacity of the new release is started. Nobody is sent to it.
    Warming { level: usize },
    /// The new release is ready; a gate stands before its first request.
    Gating { gate: Gate },
    /// Rolling: instance by instance, service by service.
    Moving { service: usize },
    /// Canary: the capacity for a step is started.
    Stepping { step: usize },
    /// The proxy is given the new weights.
    Shifting { step: usize },
    /// Canary: a step is watched.
    Holding { step: usize },
    /// All traffic is on the new release; services without a route move.
    Promoting { service: usize },
    /// The new release serves; the old can be returned to.
    Standby,
    /// The old release is let go.
    Sealing,
    /// The old release is gone; the databases lose what only it needed.
    Contracting,
    /// The old release gets its place back.
    Reverting { reason: String, stage: Reverting },
    /// It waits for a person, weights frozen.
    Parked {
        reason: ParkReason,
        resume: Box<Self>,
    },
}

/// How far taking back has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reverting {
    /// Only where two releases cannot run side by side: requests are held.
    Pausing,
    /// … and the new release ends first.
    Clearing,
    /// The old release is brought to full capacity.
    Restoring,
    /// Traffic returns to it.
    Switching,
    /// The new release ends.
    Retiring,
}

/// Why a rollout waits for a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "detail", rename_all = "kebab-case")]
pub enum ParkReason {
    /// The analysis could not tell. Never taken for a pass.
    Inconclusive(String),
    /// It failed, and the manifest says `rollback = false`.
    RollbackOff(String),
    /// The old release did not come back.
    CannotRestore(String),
    /// The engine found one of its own invariants broken and stopped itself.
    Invariant(String),
    /// The release it would lead back to cannot run on today's schema.
    SchemaMovedOn(String),
}

impl ParkReason {
    /// The reason as a sentence fragment.
    pub fn sentence(&self) -> String {
        match self {
            Self::Inconclusive(detail) => format!("the analysis is inconclusive: {detail}"),
            Self::RollbackOff(detail) => format!("{detail}; automatic rollback is off"),
            Self::CannotRestore(detail) => {
                format!("the old release did not come back: {detail}")
            }
            Self::Invariant(detail) => format!("an invariant of the engine is broken: {detail}"),
            Self::SchemaMovedOn(detail) => detail.clone(),
        }
    }
}

/// How a rollout ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Outcome {
    Sealed,
    RolledBack { reason: String },
}

/// How traffic is split between the old and the new side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Weights {
    OldOnly,
    /// Every serving instance gets an equal share.
    ByCount,
    /// The new side gets this many percent.
    Split {
        new: u8,
    },
    NewOnly,
}

impl Rollout {
    /// The canary's share at a step, in percent; other strategies know one step of 100.
    pub fn step_percent(&self, step: usize) -> u8 {
        match &self.plan.strategy {
            Strategy::Canary { steps } => steps.get(step).map_or(100, |percent| percent.get()),
            Strategy::Rolling { .. } | Strategy::BlueGreen | Strategy::Recreate => 100,
        }
    }

    /// The index of the step that carries everything.
    pub(crate) fn last_step(&self) -> usize {
        match &self.plan.strategy {
            Strategy::Canary { steps } => steps.len().saturating_sub(1),
            Strategy::Rolling { .. } | Strategy::BlueGreen | Strategy::Recreate => 0,
        }
    }

    /// The first gate before traffic that has not passed yet and that is to be asked now.
    pub(crate) fn closed_gate(&self) -> Option<Gate> {
        let closed = |gate: &Gate| {
            let passed = self.gates.get(gate).is_some_and(|state| state.passed);
            self.plan.gates.contains(gate) && !passed
        };
        // Nobody serves once the old release has ended: whoever takes his time is asked before.
        let asked_now = |gate: &Gate| match (self.excludes(), gate) {
            (true, Gate::Smoke) => self.cleared,
            (true, _) => !self.cleared,
            (false, _) => true,
        };
        Gate::BEFORE_TRAFFIC
            .into_iter()
            .filter(asked_now)
            .find(closed)
    }

    /// Whether it waits for somebody rather than moves: a newer rollout may take its place.
    pub fn is_waiting(&self) -> bool {
        match &self.phase {
            Phase::Gating { gate } => *gate == Gate::Approval,
            Phase::Parked { reason, .. } => match reason {
                ParkReason::Inconclusive(_) | ParkReason::RollbackOff(_) => true,
                // What never left its old release can be ended without going back to anything.
                ParkReason::SchemaMovedOn(_) => !self.exposed && !self.cleared,
                ParkReason::CannotRestore(_) | ParkReason::Invariant(_) => false,
            },
            Phase::Preflight
            | Phase::Rehearsing
            | Phase::Migrating
            | Phase::Pausing
            | Phase::Clearing
            | Phase::Warming { .. }
            | Phase::Moving { .. }
            | Phase::Stepping { .. }
            | Phase::Shifting { .. }
            | Phase::Holding { .. }
            | Phase::Promoting { .. }
            | Phase::Standby
            | Phase::Sealing
            | Phase::Contracting
            | Phase::Reverting { .. } => false,
        }
    }

    /// The migrations that are owed in this phase.
    pub(crate) fn stage_due(&self) -> Option<MigrationStage> {
        // Nothing of this environment has run before: there is no release to be broken.
        let before_traffic = if self.from.is_none() {
            MigrationStage::All
        } else {
            MigrationStage::Expand
        };
        let waits = !self.migrated && self.failure.is_none();
        if self.phase == Phase::Migrating && waits {
            Some(before_traffic)
        } else {
            (self.phase == Phase::Contracting).then_some(MigrationStage::Contract)
        }
    }

    /// Whether a gate has passed.
    pub(crate) fn is_open(&self, gate: Gate) -> bool {
        self.gates.get(&gate).is_some_and(|state| state.passed)
    }

    /// Since when the rollout must make progress, where it must. At a gate it need not, but once the gate is
    /// open only readiness is missing; the same holds when the standby is over.
    pub(crate) fn timed_since(&self) -> Option<Timestamp> {
        if self.phase == Phase::Standby {
            return Some(self.progressed_at.max(self.phase_since + self.plan.standby));
        }
        let gated = |gate: Gate| gate == Gate::Smoke || self.is_open(gate);
        let timed = self.phase.is_timed() || self.phase.gate().is_some_and(gated);
        timed.then_some(self.progressed_at)
    }

    /// Whether the new release serves everything, for good or until it is taken back.
    pub fn is_promoted(&self) -> bool {
        matches!(
            self.phase,
            Phase::Standby | Phase::Sealing | Phase::Contracting
        )
    }

    /// Whether both sides may not run at once.
    pub(crate) fn is_recreate(&self) -> bool {
        self.plan.strategy == Strategy::Recreate
    }

    /// Whether sizes still move, forth or back, also while it waits for a person.
    pub fn is_on_the_way(&self) -> bool {
        match self.phase.underlying() {
            Phase::Standby | Phase::Sealing | Phase::Contracting => false,
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
            | Phase::Reverting { .. }
            | Phase::Parked { .. } => true,
        }
    }

    /// Whether the old release has to end before the new one starts.
    pub(crate) fn excludes(&self) -> bool {
        self.is_recreate() && self.from.is_some()
    }

    /// Whether the old release serves on because it was not yet asked to make room.
    pub(crate) fn is_untouched(&self) -> bool {
        self.excludes() && !self.cleared
    }

    /// The phase in words.
    pub fn phase_words(&self) -> String {
        self.phase.words(self)
    }
}

impl Rollout {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "it is handed the changes of rollouts only"
    )]
    pub(crate) fn apply(&mut self, at: Timestamp, change: &Change) {
        match change {
            Change::PhaseEntered { phase } => self.enter(at, phase),
            Change::GateOpened {
                gate,
                passed,
                detail,
            } => {
                let state = GateState {
                    passed: *passed,
                    detail: detail.clone(),
                    at,
                };
                self.gates.insert(*gate, state);
                self.progressed_at = at;
            }
            Change::Promoted { .. } => {
                self.hold_extended = false;
                self.failure = None;
                self.crash_times.clear();
            }
            Change::Progressed { service, ready } => {
                self.high_water.insert(service.clone(), *ready);
                self.progressed_at = at;
            }
            Change::Migrated { stage, failure, .. } => match stage {
                MigrationStage::Contract => self.contract_waits.clone_from(failure),
                MigrationStage::All | MigrationStage::Expand => self.migrated |= failure.is_none(),
            },
            Change::ContractsWait { reason } => self.contract_waits = Some(reason.clone()),
            Change::Failed { reason } => {
                self.failure.get_or_insert_with(|| reason.clone());
            }
            Change::AnalysisObserved { observations } => self.observe(observations),
            Change::HoldExtended { .. } => self.hold_extended = true,
            _ => {}
        }
    }

    fn observe(&mut self, observations: &BTreeMap<ServiceName, Observation>) {
        let Some(from) = self.from else {
            return;
        };
        let settings = AnalysisSettings::default().shared_among(observations.len());
        for (service, observation) in observations {
            let analysis = self
                .analyses
                .entry(service.clone())
                .or_insert_with(|| Analysis::new(&settings, from, self.to));
            analysis.observe(observation);
        }
    }
}

impl Phase {
    /// The gate that is waited for.
    pub(crate) fn gate(&self) -> Option<Gate> {
        if let Self::Gating { gate } = self {
            return Some(*gate);
        }
        if *self == Self::Rehearsing {
            return Some(Gate::Rehearsal);
        }
        (*self == Self::Preflight).then_some(Gate::Preflight)
    }

    /// The phase itself, or the one in which it was parked.
    pub(crate) fn underlying(&self) -> &Self {
        if let Self::Parked { resume, .. } = self {
            return resume;
        }
        self
    }

    /// The phase in words, for people.
    fn words(&self, rollout: &Rollout) -> String {
        match self {
            Self::Preflight => "checking the host".into(),
            Self::Rehearsing => "rehearsing the migrations on a copy".into(),
            Self::Migrating => "migrating databases".into(),
            Self::Pausing => "holding requests".into(),
            Self::Clearing => "ending the old release".into(),
            Self::Warming { .. } => "starting the new release".into(),
            Self::Gating { gate } => format!("waiting for the {gate} gate"),
            Self::Moving { .. } => "replacing instances".into(),
            Self::Stepping { step } => {
                format!("starting capacity for {} %", rollout.step_percent(*step))
            }
            Self::Shifting { step } => {
                format!("moving {} % of traffic", rollout.step_percent(*step))
            }
            Self::Holding { step } => {
                format!("watching the canary at {} %", rollout.step_percent(*step))
            }
            Self::Promoting { .. } => "moving services without a route".into(),
            Self::Standby => "serving; the old release stands by".into(),
            Self::Sealing => "letting the old release go".into(),
            Self::Contracting => "migrating databases after the seal".into(),
            Self::Reverting { stage, .. } => match stage {
                Reverting::Pausing => "taking back: holding requests".into(),
                Reverting::Clearing => "taking back: ending the new release".into(),
                Reverting::Restoring => "taking back: restoring the old release".into(),
                Reverting::Switching => "taking back: returning traffic".into(),
                Reverting::Retiring => "taking back: ending the new release".into(),
            },
            Self::Parked { reason, .. } => format!("parked: {}", reason.sentence()),
        }
    }

    /// Whether the phase must make progress within the progress deadline. Gates and standby: see [`Rollout::timed_since`].
    fn is_timed(&self) -> bool {
        match self {
            Self::Preflight
            | Self::Pausing
            | Self::Clearing
            | Self::Warming { .. }
            | Self::Moving { .. }
            | Self::Stepping { .. }
            | Self::Shifting { .. }
            | Self::Promoting { .. }
            | Self::Reverting { .. } => true,
            // A migration may take hours; the runner has times of its own.
            Self::Rehearsing
            | Self::Migrating
            | Self::Contracting
            | Self::Gating { .. }
            | Self::Holding { .. }
            | Self::Standby
            | Self::Sealing
            | Self::Parked { .. } => false,
        }
    }

    /// Whether the rollout goes forward and nobody serves from the new release for good yet.
    pub(crate) fn is_forward(&self) -> bool {
        match self {
            Self::Preflight
            | Self::Rehearsing
            | Self::Migrating
            | Self::Pausing
            | Self::Clearing
            | Self::Warming { .. }
            | Self::Gating { .. }
            | Self::Moving { .. }
            | Self::Stepping { .. }
            | Self::Shifting { .. }
            | Self::Holding { .. }
            | Self::Promoting { .. }
            | Self::Standby => true,
            Self::Sealing | Self::Contracting | Self::Reverting { .. } | Self::Parked { .. } => {
                false
            }
        }
    }
}
