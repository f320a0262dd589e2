//! Starts what is missing, drains what is too much, and gives the table what came of it.

use landfast_types::{InstanceId, ReleaseId, ServiceName};

use crate::{
    environment::{Environment, Side},
    event::Change,
    instance::Instance,
    rules::{Draft, deadline::backoff_until},
};

impl Draft {
    pub(super) fn fit_sizes(&mut self) {
        for service in self.state.all_services() {
            for side in [Side::Old, Side::New] {
                self.fit_group(&service, side);
            }
        }
        self.end_strays();
    }

    pub(super) fn fit_group(&mut self, service: &ServiceName, side: Side) {
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
        let Some(release) = startable(&self.state, service, side) else {
            return;
        };
        let waits = backoff_until(&self.state, service, release).is_some_and(|at| at > self.now);
        if kept < wanted && !waits {
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

    /// Without a rollout only the serving release has instances.
    pub(super) fn end_strays(&mut self) {
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

    pub(super) fn fit_traffic(&mut self) {
        let traffic = self.state.wanted_traffic();
        if traffic.revision != self.state.traffic.revision {
            self.emit(Change::TrafficChanged { traffic });
        }
    }
}

/// The release that a missing instance of a side would be started from, if one may be started now but for its
/// back-off.
pub(super) fn startable(
    state: &Environment,
    service: &ServiceName,
    side: Side,
) -> Option<ReleaseId> {
    let rollout = state.rollout.as_ref();
    let release = match side {
        // Both sides are of one release; what is missing is the new side's.
        Side::Old if state.is_restart() => None,
        Side::Old => rollout.map_or(state.serving, |rollout| rollout.from),
        Side::New => rollout.map(|rollout| rollout.to),
    }?;
    let shape = state.shape(release, service)?;
    let mut of_service = state.instances.values().filter(|i| i.service == *service);
    let crowded = shape.exclusive && of_service.any(|instance| !instance.is_kept());
    (!crowded).then_some(release)
}
