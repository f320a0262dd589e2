//! Rolling, blue-green, canary and recreate as one pure state machine per environment.
//!
//! [`Environment`] decides; it is handed the time and inputs, and returns events. Folding those events gives
//! the next state, so replaying the journal is the same as having lived through it. What is owed to the world
//! is not remembered anywhere: [`Environment::pending`] derives it from the state, so a driver that crashed
//! simply asks again.
//!
//! This crate never touches a process, a proxy, a clock or a random source, and never decides whether an
//! instance *is* healthy: it is told.

pub mod analysis;
mod backoff;
mod binding;
mod by_hand;
mod environment;
mod event;
mod instance;
mod invariant;
mod ledger;
mod plan;
mod reconcile;
mod rollout;
mod rules;
mod schema;
mod traffic;

#[cfg(feature = "planted")]
pub use crate::environment::PlantedBug;
pub use crate::{
    binding::{StoreSwitch, Switching},
    by_hand::{HandRun, HandWork},
    environment::{
        Environment, Queued, ReleaseRecord, RolloutRecord, ScaleOverride, Sides, Unmoved,
    },
    event::{Action, Change, Event, Input, Rejected},
    instance::{Instance, InstanceState},
    invariant::Violation,
    ledger::{Counts, Ledger, Reading, p99},
    plan::{Amount, Gate, RolloutPlan, ServiceShape, Strategy, Topology},
    rollout::{GateState, Kind, Outcome, ParkReason, Phase, Reverting, Rollout, Weights},
    schema::{AppliedMigration, MigrationPhase, MigrationShape, MigrationStage, Obstacle, Schemas},
    traffic::{GroupTraffic, MemberState, ServiceTraffic, Traffic, TrafficMode},
};
