//! Recorded changes as lines for people and stable words for machines.

use std::collections::BTreeMap;

use landfast_api::{At, Event as WireEvent, Level};
use landfast_rollout::{Change, Event, MigrationShape, MigrationStage, Outcome, Phase};
use landfast_types::{Scope, StoreName};

/// An event on the wire; `None` for those that only the engine needs.
pub(crate) fn event(position: u64, scope: &Scope, event: &Event) -> Option<WireEvent> {
    let (kind, level, text) = event_text(&event.change)?;
    let mut wire = WireEvent {
        sequence: position,
        at: At(event.at),
        app: Some(scope.app.to_string()),
        environment: Some(scope.environment.to_string()),
        kind: kind.to_owned(),
        level,
        text,
        rollout: None,
        release: None,
        service: None,
        instance: None,
    };
    match &event.change {
        Change::ReleaseCreated { release, .. } => wire.release = Some(release.0),
        Change::RolloutStarted { rollout, to, .. } => {
            wire.rollout = Some(rollout.0);
            wire.release = Some(to.0);
        }
        Change::RolloutQueued { to, .. } => wire.release = Some(to.0),
        Change::InstancePlanned {
            instance,
            service,
            release,
        } => {
            wire.instance = Some(instance.to_string());
            wire.service = Some(service.to_string());
            wire.release = Some(release.0);
        }
        Change::InstanceStarted { instance, .. }
        | Change::InstancePassing { instance }
        | Change::InstanceServing { instance }
        | Change::InstanceFailing { instance }
        | Change::InstanceNotReady { instance, .. }
        | Change::InstanceDraining { instance, .. }
        | Change::InstanceStopping { instance }
        | Change::InstanceEnded { instance, .. } => wire.instance = Some(instance.to_string()),
        Change::Progressed { service, .. } | Change::Scaled { service, .. } => {
            wire.service = Some(service.to_string());
        }
        Change::ReleasesCollected { .. }
        | Change::PhaseEntered { .. }
        | Change::GateOpened { .. }
        | Change::Promoted { .. }
        | Change::Failed { .. }
        | Change::AnalysisObserved { .. }
        | Change::HoldExtended { .. }
        | Change::RolloutEnded { .. }
        | Change::StoreSwitching { .. }
        | Change::StoreRetired { .. }
        | Change::Notified { .. }
        | Change::Measured { .. }
        | Change::TrafficChanged { .. }
        | Change::TrafficConfirmed { .. }
        | Change::ContractsBegun { .. }
        | Change::ContractsWait { .. }
        | Change::Migrated { .. }
        | Change::SchemasRead { .. }
        | Change::MigratingByHand { .. }
        | Change::MigratedByHand { .. }
        | Change::TakenOver
        | Change::Stopped
        | Change::Resumed => {}
    }
    Some(wire)
}

/// A change's stable word, its weight, and one line about it. `None`: nothing a reader would miss.
pub fn event_text(change: &Change) -> Option<(&'static str, Level, String)> {
    use Level::{Error, Info, Warning};
    let line = match change {
        Change::ReleaseCreated { release, .. } => (
            "release-created",
            Info,
            format!("release {release} was made"),
        ),
        Change::ReleasesCollected { releases } => {
            let names: Vec<_> = releases.iter().map(ToString::to_string).collect();
            (
                "releases-collected",
                Info,
                format!("old releases were dropped: {}", names.join(", ")),
            )
        }
        Change::RolloutQueued { to, by, .. } => (
            "rollout-queued",
            Info,
            format!("a rollout to release {to} by {by} waits its turn"),
        ),
        Change::RolloutStarted {
            rollout,
            from,
            to,
            plan,
            by,
            ..
        } => {
            let from = from.map_or(String::new(), |from| format!(" from release {from}"));
            let strategy = plan.strategy.name();
            let text = format!("rollout {rollout}{from} to release {to} ({strategy}) by {by}");
            ("rollout-started", Info, text)
        }
        Change::StoreSwitching { switch } => (
            "store-switching",
            Info,
            format!(
                "store `{}` is to be served by `{}` instead of `{}`",
                switch.store, switch.to, switch.from
            ),
        ),
        Change::StoreRetired { store } => (
            "store-retired",
            Info,
            format!("store `{store}` serves nothing any more, and is deleted after its delay"),
        ),
        Change::PhaseEntered { phase } => return phase_text(phase),
        Change::GateOpened {
            gate,
            passed: true,
            detail,
        } => (
            "gate-passed",
            Info,
            format!("the {gate} gate passed: {detail}"),
        ),
        Change::GateOpened {
            gate,
            passed: false,
            detail,
        } => (
            "gate-failed",
            Error,
            format!("the {gate} gate refused: {detail}"),
        ),
        Change::Promoted { by } => ("promoted", Info, format!("{by} let it go on")),
        Change::Progressed { service, ready } => (
            "instance-ready",
            Info,
            format!("{ready} of the new release's `{service}` ready"),
        ),
        Change::Failed { reason } => ("rollout-failed", Error, reason.clone()),
        Change::HoldExtended { reason } => (
            "hold-extended",
            Warning,
            format!("the hold is extended once: {reason}"),
        ),
        Change::RolloutEnded {
            outcome: Outcome::Sealed,
        } => ("rollout-sealed", Info, "the rollout is sealed".to_owned()),
        Change::RolloutEnded {
            outcome: Outcome::RolledBack { reason },
        } => (
            "rollout-rolled-back",
            Error,
            format!("rolled back: {reason}"),
        ),
        Change::InstancePlanned { instance, .. } => (
            "instance-planned",
            Info,
            format!("{instance} is to be started"),
        ),
        Change::InstanceStarted { instance, address } => {
            let at = address.map_or(String::new(), |address| format!(" at {address}"));
            ("instance-started", Info, format!("{instance} runs{at}"))
        }
        Change::InstancePassing { instance } => (
            "instance-passing",
            Info,
            format!("{instance} passes its readiness probe"),
        ),
        Change::InstanceServing { instance } => (
            "instance-serving",
            Info,
            format!("{instance} counts as ready"),
        ),
        Change::InstanceFailing { instance } => (
            "instance-failing",
            Warning,
            format!("{instance} fails its readiness probe"),
        ),
        Change::InstanceNotReady { instance, reason } => (
            "instance-not-ready",
            Info,
            format!("{instance} is not ready: {reason}"),
        ),
        Change::InstanceDraining {
            instance,
            hasty,
            reason,
        } => {
            let level = if *hasty { Warning } else { Info };
            (
                "instance-draining",
                level,
                format!("{instance} leaves traffic: {reason}"),
            )
        }
        Change::InstanceStopping { instance } => (
            "instance-stopping",
            Info,
            format!("{instance} is drained and told to end"),
        ),
        Change::InstanceEnded { instance, exit, .. } => {
            ("instance-ended", Info, format!("{instance} {exit}"))
        }
        Change::TrafficChanged { traffic } => return Some(traffic_text(traffic)),
        Change::Scaled {
            service,
            replicas: Some(replicas),
        } => (
            "scaled",
            Info,
            format!("`{service}` is scaled to {replicas}"),
        ),
        Change::Scaled {
            service,
            replicas: None,
        } => (
            "scaled",
            Info,
            format!("`{service}` has the manifest's replicas again"),
        ),
        Change::Stopped => ("stopped", Warning, "the environment is stopped".to_owned()),
        Change::Resumed => ("started", Info, "the environment is started".to_owned()),
        Change::TakenOver => (
            "taken-over",
            Info,
            "a new life of the server took over".to_owned(),
        ),
        Change::ContractsBegun { migrations } => (
            "contracts-begun",
            Info,
            format!(
                "contract migrations run: {}; from here on nothing leads back to releases that do not know them",
                named(migrations)
            ),
        ),
        Change::ContractsWait { reason } => (
            "contracts-wait",
            Warning,
            format!("contract migrations wait for the next seal: {reason}"),
        ),
        Change::Migrated {
            stage: MigrationStage::Contract,
            failure: Some(reason),
            ..
        } => (
            "contracts-wait",
            Warning,
            format!("contract migrations wait for the next seal: {reason}"),
        ),
        Change::Migrated {
            failure: Some(reason),
            ..
        } => ("migration-failed", Error, reason.clone()),
        Change::Migrated { failure: None, .. } => (
            "migrated",
            Info,
            "the databases have the migrations of the new release".to_owned(),
        ),
        Change::SchemasRead { schemas } => {
            let stores: Vec<_> = schemas.keys().map(|store| format!("`{store}`")).collect();
            let text = format!("what {} has seen was read anew", stores.join(", "));
            ("schemas-read", Info, text)
        }
        Change::MigratingByHand {
            store, work, by, ..
        } => (
            "migrating-by-hand",
            Info,
            format!("{} by hand on store `{store}`, by {by}", work.words()),
        ),
        Change::MigratedByHand {
            failure: Some(reason),
            ..
        } => (
            "migration-failed",
            Warning,
            format!("migrating by hand ended early: {reason}"),
        ),
        Change::MigratedByHand { failure: None, .. } => (
            "migrated-by-hand",
            Info,
            "migrating by hand has ended".to_owned(),
        ),
        Change::TrafficConfirmed { .. }
        | Change::AnalysisObserved { .. }
        | Change::Notified { .. }
        | Change::Measured { .. } => return None,
    };
    Some(line)
}

/// Migrations as a list for people.
fn named(migrations: &BTreeMap<StoreName, Vec<MigrationShape>>) -> String {
    let names = migrations.iter().flat_map(|(store, list)| {
        list.iter()
            .map(move |migration| format!("`{}` on `{store}`", migration.name))
    });
    names.collect::<Vec<_>>().join(", ")
}

fn phase_text(phase: &Phase) -> Option<(&'static str, Level, String)> {
    use Level::{Error, Info, Warning};
    let line = match phase {
        Phase::Preflight => return None,
        Phase::Rehearsing => (
            "phase",
            Info,
            "rehearsing the migrations on a copy of each database".to_owned(),
        ),
        Phase::Migrating => ("phase", Info, "migrating databases".to_owned()),
        Phase::Contracting => return None,
        Phase::Pausing => ("phase", Info, "holding requests".to_owned()),
        Phase::Clearing => ("phase", Info, "ending the old release".to_owned()),
        Phase::Warming { level: 0 } => ("phase", Info, "starting the new release".to_owned()),
        Phase::Warming { level } => (
            "phase",
            Info,
            format!("starting level {} of the new release", level + 1),
        ),
        Phase::Gating { gate } => ("gate-waiting", Info, format!("waiting for the {gate} gate")),
        Phase::Moving { service: 0 } => ("phase", Info, "replacing instances".to_owned()),
        Phase::Moving { .. } | Phase::Promoting { .. } => return None,
        Phase::Stepping { step } => (
            "phase",
            Info,
            format!("starting the capacity of step {}", step + 1),
        ),
        Phase::Shifting { .. } => ("phase", Info, "moving traffic".to_owned()),
        Phase::Holding { step } => ("phase", Info, format!("watching step {}", step + 1)),
        Phase::Standby => (
            "rollout-promoted",
            Info,
            "the new release serves; the old one stands by".to_owned(),
        ),
        Phase::Sealing => ("phase", Info, "letting the old release go".to_owned()),
        Phase::Reverting { reason, stage } => {
            let stage = format!("{stage:?}").to_lowercase();
            (
                "rolling-back",
                Warning,
                format!("taking back ({stage}): {reason}"),
            )
        }
        Phase::Parked { reason, .. } => (
            "rollout-parked",
            Error,
            format!("parked: {}", reason.sentence()),
        ),
    };
    Some(line)
}

fn traffic_text(traffic: &landfast_rollout::Traffic) -> (&'static str, Level, String) {
    let mut parts = Vec::new();
    for (service, entry) in &traffic.services {
        let total: u32 = entry.groups.values().map(|group| group.weight).sum();
        let shares = entry.groups.iter().filter(|(_, group)| group.weight > 0);
        let shares: Vec<_> = shares
            .map(|(release, group)| {
                let percent = f64::from(group.weight) * 100.0 / f64::from(total.max(1));
                format!("release {release} {percent:.0} %")
            })
            .collect();
        let shares = if shares.is_empty() {
            "nobody".to_owned()
        } else {
            shares.join(", ")
        };
        parts.push(format!("`{service}` to {shares}"));
    }
    (
        "weights-moved",
        Level::Info,
        format!("traffic: {}", parts.join("; ")),
    )
}
