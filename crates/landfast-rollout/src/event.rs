//! What comes in, what is recorded, what is owed. [`Event`] is the journal's format: see [`Change`] for the
//! rules of changing it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use landfast_types::{InstanceId, ReleaseId, RolloutId, ServiceName, StoreName, Timestamp};
use serde::{Deserialize, Serialize};

use crate::{
    analysis::Observation,
    binding::StoreSwitch,
    by_hand::HandWork,
    ledger::Reading,
    plan::{Gate, RolloutPlan, Topology},
    rollout::{Kind, Outcome, ParkReason, Phase},
    schema::{MigrationShape, MigrationStage, Obstacle, Schemas},
    traffic::Traffic,
};

/// Something a person, a driver or the clock says.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// Move to a release that does not exist yet; it gets [`Environment::next_release`](crate::Environment::next_release).
    Deploy {
        topology: Topology,
        plan: RolloutPlan,
        supersede: bool,
        by: String,
    },
    /// Move a name of the manifest to another store, by a release that is the one that serves in everything else.
    SwitchStore {
        topology: Topology,
        plan: RolloutPlan,
        store: StoreName,
        to: StoreName,
        was_deleted: bool,
        by: String,
    },
    /// Go back: inside a rollout the same as [`Input::Abort`].
    Rollback { to: Option<ReleaseId>, by: String },
    /// Replace every instance by a new one of the same release.
    Restart { by: String },
    /// Override the manifest's replicas of a service, or return to them.
    Scale {
        service: ServiceName,
        replicas: Option<u32>,
    },
    /// Serve the maintenance page and stop everything.
    Stop,
    /// Serve again.
    Start,
    /// A person lets a waiting rollout go on.
    Promote { by: String },
    /// A person takes the rollout back.
    Abort { by: String, reason: String },
    /// A person lets the old release go before the standby is over.
    Seal { by: String },
    /// The target started the instance.
    Started {
        instance: InstanceId,
        address: Option<SocketAddr>,
    },
    /// The target could not start it, and trying again would not help.
    StartFailed {
        instance: InstanceId,
        reason: String,
    },
    /// The readiness probe's answer. Only changes matter; repeating one is harmless.
    Probed { instance: InstanceId, passing: bool },
    /// Why the readiness probe fails. Only another reason matters; repeating one is harmless.
    NotReady {
        instance: InstanceId,
        reason: String,
    },
    /// The liveness probe gave up on the instance.
    NotLive {
        instance: InstanceId,
        reason: String,
    },
    /// The instance ended, by itself or because it was stopped.
    Ended { instance: InstanceId, exit: String },
    /// The proxy sends every new request by this revision of the table.
    TrafficConfirmed { revision: u64 },
    /// Nothing is in flight to a draining instance any more, by a table that no longer offers it.
    Drained { instance: InstanceId },
    /// A gate that the driver evaluates has an answer.
    GateJudged {
        rollout: RolloutId,
        gate: Gate,
        passed: bool,
        detail: String,
    },
    /// What the proxy measured of both releases in one interval of a canary step.
    Observed {
        rollout: RolloutId,
        observations: BTreeMap<ServiceName, Observation>,
    },
    /// The proxy's counters, for the ledger.
    Measured { reading: Reading },
    /// After a start: what really runs. Everything else that should run has ended unseen.
    Adopted { running: BTreeSet<InstanceId> },
    /// The webhook of an outcome was delivered, or given up on.
    Notified { rollout: RolloutId },
    /// Old releases that are not needed any more were dropped from the store.
    Collected { releases: BTreeSet<ReleaseId> },
    /// The runner has ended: what each database has seen, where it could be read, and why not all has run.
    Migrated {
        rollout: RolloutId,
        stage: MigrationStage,
        schemas: Schemas,
        failure: Option<String>,
    },
    /// A person migrates a database outside a rollout.
    MigrateByHand {
        store: StoreName,
        work: HandWork,
        by: String,
    },
    /// That has ended: what the database has seen, where it could be read, and why not all was done.
    HandEnded {
        run: u64,
        schemas: Schemas,
        failure: Option<String>,
    },
    /// What databases say of themselves, whoever changed them.
    SchemasRead { schemas: Schemas },
    /// A store that a switch has left is deleted, or is none any more.
    StoreRetired { store: StoreName },
    /// Time has passed.
    Tick,
}

impl Input {
    /// Whether a person wants something, rather than a driver tells what happened.
    pub(crate) fn is_wish(&self) -> bool {
        match self {
            Self::Deploy { .. }
            | Self::SwitchStore { .. }
            | Self::Rollback { .. }
            | Self::Restart { .. }
            | Self::Scale { .. }
            | Self::Stop
            | Self::Start
            | Self::Promote { .. }
            | Self::Abort { .. }
            | Self::Seal { .. }
            | Self::MigrateByHand { .. } => true,
            Self::Started { .. }
            | Self::StartFailed { .. }
            | Self::Probed { .. }
            | Self::NotReady { .. }
            | Self::NotLive { .. }
            | Self::Ended { .. }
            | Self::TrafficConfirmed { .. }
            | Self::Drained { .. }
            | Self::GateJudged { .. }
            | Self::Observed { .. }
            | Self::Measured { .. }
            | Self::Adopted { .. }
            | Self::Notified { .. }
            | Self::Collected { .. }
            | Self::Migrated { .. }
            | Self::HandEnded { .. }
            | Self::SchemasRead { .. }
            | Self::StoreRetired { .. }
            | Self::Tick => false,
        }
    }
}

/// One recorded fact.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    pub at: Timestamp,
    pub change: Change,
}

/// What a fact changes. This is the journal's format: variants and fields are added, never removed or reused;
/// a reader that finds a variant it does not know refuses to start rather than guess.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(
    tag = "change",
    rename_all = "kebab-case",
    rename_all_fields = "kebab-case"
)]
pub enum Change {
    ReleaseCreated {
        release: ReleaseId,
        topology: Topology,
        plan: RolloutPlan,
    },
    ReleasesCollected {
        releases: BTreeSet<ReleaseId>,
    },
    /// A rollout waits for the one before it to end. One that waited already is superseded.
    RolloutQueued {
        kind: Kind,
        to: ReleaseId,
        plan: RolloutPlan,
        by: String,
    },
    RolloutStarted {
        rollout: RolloutId,
        kind: Kind,
        from: Option<ReleaseId>,
        to: ReleaseId,
        plan: RolloutPlan,
        by: String,
    },
    /// The rollout that was just begun moves a name to another store.
    StoreSwitching {
        switch: StoreSwitch,
    },
    /// A store that was left is deleted.
    StoreRetired {
        store: StoreName,
    },
    PhaseEntered {
        phase: Phase,
    },
    GateOpened {
        gate: Gate,
        passed: bool,
        detail: String,
    },
    /// A person let the rollout go on.
    Promoted {
        by: String,
    },
    /// A further instance of the new release became ready: the progress deadline starts again.
    Progressed {
        service: ServiceName,
        ready: u32,
    },
    /// Something went wrong that the rollout must answer.
    Failed {
        reason: String,
    },
    AnalysisObserved {
        observations: BTreeMap<ServiceName, Observation>,
    },
    HoldExtended {
        reason: String,
    },
    RolloutEnded {
        outcome: Outcome,
    },
    Notified {
        rollout: RolloutId,
    },
    Measured {
        reading: Reading,
    },

    InstancePlanned {
        instance: InstanceId,
        service: ServiceName,
        release: ReleaseId,
    },
    InstanceStarted {
        instance: InstanceId,
        address: Option<SocketAddr>,
    },
    InstancePassing {
        instance: InstanceId,
    },
    InstanceServing {
        instance: InstanceId,
    },
    InstanceFailing {
        instance: InstanceId,
    },
    /// What its readiness probe says while it fails.
    InstanceNotReady {
        instance: InstanceId,
        reason: String,
    },
    /// It leaves traffic and will be stopped. `hasty`: its requests are not waited for, it does not answer.
    InstanceDraining {
        instance: InstanceId,
        hasty: bool,
        reason: String,
    },
    InstanceStopping {
        instance: InstanceId,
    },
    /// `unseen`: nobody saw how, so it is not held against its release.
    InstanceEnded {
        instance: InstanceId,
        exit: String,
        unseen: bool,
    },

    TrafficChanged {
        traffic: Traffic,
    },
    TrafficConfirmed {
        revision: u64,
    },
    /// A new life of the server took over. Nobody probed while it was away, and its clock may have been set:
    /// unbroken passes, drain times and deadlines start again.
    TakenOver,

    /// The runner begins the contract migrations of the new release.
    ContractsBegun {
        migrations: BTreeMap<StoreName, Vec<MigrationShape>>,
    },
    /// They are not run now.
    ContractsWait {
        reason: String,
    },
    /// The runner has ended. Of a database that could not be read nothing is said.
    Migrated {
        stage: MigrationStage,
        schemas: Schemas,
        failure: Option<String>,
    },
    /// A database was asked, and said something else than before.
    SchemasRead {
        schemas: Schemas,
    },
    /// Somebody migrates outside a rollout.
    MigratingByHand {
        run: u64,
        store: StoreName,
        work: HandWork,
        by: String,
    },
    /// That has ended. A database that could not be read is asked again.
    MigratedByHand {
        run: u64,
        schemas: Schemas,
        failure: Option<String>,
    },

    Scaled {
        service: ServiceName,
        replicas: Option<u32>,
    },
    Stopped,
    Resumed,
}

/// Something owed to the world. Equal state owes equal actions; doing one twice does no harm.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    StartInstance {
        instance: InstanceId,
        service: ServiceName,
        release: ReleaseId,
    },
    StopInstance {
        instance: InstanceId,
        grace: Duration,
    },
    /// Give the proxy the table of this revision ([`Environment::traffic`](crate::Environment::traffic)).
    Publish {
        revision: u64,
    },
    /// Tell when the instance has nothing in flight; the table of `revision` or a later one must be in force.
    AwaitDrain {
        instance: InstanceId,
        revision: u64,
    },
    JudgeGate {
        rollout: RolloutId,
        gate: Gate,
        release: ReleaseId,
    },
    /// Run the migrations of a stage. The runner finds out from each database what is left to do.
    Migrate {
        rollout: RolloutId,
        release: ReleaseId,
        stage: MigrationStage,
    },
    /// Ask a database what it has seen: whoever changed it last could not say.
    ReadSchema {
        store: StoreName,
    },
    Notify {
        rollout: RolloutId,
    },
    /// Delete a store that nobody is given any more, after a delay.
    RetireStore {
        store: StoreName,
    },
}

/// Why an input was not taken. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    #[error("rollout {rollout} to release {to} is moving since {since}, started by {by}")]
    RolloutMoving {
        rollout: RolloutId,
        to: ReleaseId,
        since: Timestamp,
        by: String,
    },
    #[error("no rollout is under way")]
    NoRollout,
    #[error("rollout {rollout} does not wait for anybody: it is {phase}")]
    NotWaiting { rollout: RolloutId, phase: String },
    #[error("rollout {rollout} cannot be sealed yet: it is {phase}")]
    NotSealable { rollout: RolloutId, phase: String },
    #[error("rollout {rollout} is already being taken back")]
    AlreadyReverting { rollout: RolloutId },
    #[error("nothing was deployed here yet")]
    NothingDeployed,
    #[error("there is no sealed release before release {current} to go back to")]
    NoEarlierRelease { current: ReleaseId },
    #[error("release {0} is not kept")]
    NoSuchRelease(ReleaseId),
    #[error("release {0} is the one that serves")]
    AlreadyServing(ReleaseId),
    #[error(
        "release {release} has the route {route}, which belongs to {owner} now: remove it there first, or deploy a release without it"
    )]
    RouteTaken {
        release: ReleaseId,
        route: String,
        owner: String,
    },
    #[error("service `{0}` is not part of the release that serves")]
    NoSuchService(ServiceName),
    #[error(
        "service `{service}` cannot have {replicas} instances: it is exclusive, so two of it must never run at once; leave it at 1, or deploy a release in which it is not exclusive"
    )]
    OneWriter { service: ServiceName, replicas: u32 },
    #[error("store `{store}` is served by `{by}` already")]
    StoreServes { store: StoreName, by: StoreName },
    #[error("the environment is stopped")]
    EnvironmentStopped,
    #[error("the environment is not stopped")]
    NotStopped,
    #[error("{}", .0.sentence())]
    SchemaMovedOn(Box<Obstacle>),
    #[error(
        "rollout {rollout} is sealed and its contract migrations run: nothing of the old release is left to go back to; wait for their end"
    )]
    Contracting { rollout: RolloutId },
    #[error("{words} by hand on store `{store}` since {since}, begun by {by}")]
    MigratingByHand {
        store: StoreName,
        words: &'static str,
        since: Timestamp,
        by: String,
    },
    #[error("`{migration}` was not run on store `{store}`: {reason}")]
    OlderReleaseLeft {
        migration: String,
        store: StoreName,
        reason: String,
    },
    #[error(
        "`{migration}` was not taken back on store `{store}`: release {release} is in use and was made for it; deploy a release without it first"
    )]
    MigrationNeeded {
        migration: String,
        store: StoreName,
        release: ReleaseId,
    },
    /// The engine found that it would break one of its own promises.
    #[error("not done, because an invariant of the engine would not hold: {0}")]
    WouldBreak(String),
    #[error(
        "the smoke gate needs room for one more instance than `replicas`; set max_surge to at least 1"
    )]
    SmokeNeedsSurge,
}

impl Change {
    /// Parks or ends in this reason, when the change is such.
    pub fn park_reason(&self) -> Option<&ParkReason> {
        if let Self::PhaseEntered {
            phase: Phase::Parked { reason, .. },
        } = self
        {
            return Some(reason);
        }
        None
    }
}
