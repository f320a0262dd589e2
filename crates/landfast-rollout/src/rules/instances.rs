//! How an instance goes from one state to the next, and what its end means for its rollout.

use landfast_types::{InstanceId, format_duration};

#[cfg(feature = "planted")]
use crate::environment::PlantedBug;
use crate::{
    environment::Side,
    event::Change,
    instance::{Instance, InstanceState},
    rollout::Phase,
    rules::{Draft, deadline::Timing},
};

impl Draft {
    pub(super) fn is_in(&self, id: &InstanceId, wanted: impl Fn(&InstanceState) -> bool) -> bool {
        self.state
            .instances
            .get(id)
            .is_some_and(|instance| wanted(&instance.state))
    }

    pub(super) fn probed(&mut self, instance: InstanceId, passing: bool) {
        use InstanceState::{Failing, Passing, Serving, Starting};
        if passing && self.is_in(&instance, |s| matches!(s, Starting { .. } | Failing { .. })) {
            self.emit(Change::InstancePassing { instance });
        } else if !passing
            && self.is_in(&instance, |s| matches!(s, Passing { .. } | Serving { .. }))
        {
            self.emit(Change::InstanceFailing { instance });
        }
    }

    /// Remembers why an instance does not pass, so that its deadline can name the cause.
    pub(super) fn not_ready(&mut self, id: InstanceId, reason: String) {
        use InstanceState::{Failing, Starting};
        let waits = self.is_in(&id, |s| matches!(s, Starting { .. } | Failing { .. }));
        let known = self.state.instances.get(&id);
        let known = known.and_then(|instance| instance.not_ready.as_ref());
        if waits && known != Some(&reason) {
            let instance = id;
            self.emit(Change::InstanceNotReady { instance, reason });
        }
    }

    pub(super) fn ended(&mut self, id: &InstanceId, exit: String) {
        let Some(instance) = self.state.instances.get(id) else {
            return;
        };
        let unseen = self.state.is_found_dead(self.now, instance);
        if !unseen {
            self.blame(&instance.clone(), &format!("{exit} before it was ready"));
        }
        self.emit(Change::InstanceEnded {
            instance: id.clone(),
            exit,
            unseen,
        });
    }

    /// Takes an instance that does not work out of traffic and ends it.
    pub(super) fn condemn(&mut self, id: &InstanceId, reason: String) {
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
    pub(super) fn blame(&mut self, instance: &Instance, what: &str) {
        let Some(rollout) = self.rollout() else {
            return;
        };
        let fresh = instance.first_served_at.is_none() && instance.is_kept();
        let new = self.state.side_of(instance) == Side::New;
        if new && fresh && rollout.phase.is_forward() && rollout.phase != Phase::Standby {
            let (id, release) = (&instance.id, instance.release);
            let reason = format!("instance {id} of release {release} {what}");
            self.emit(Change::Failed { reason });
        }
    }

    pub(super) fn judge_instances(&mut self) {
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
                    let routed = self.state.is_routed(instance);
                    let confirmed = revision <= self.state.traffic_confirmed;
                    let over = self.now.since(since) >= timing.drain(hasty);
                    let unused = !routed || instance.first_served_at.is_none();
                    if unused || (confirmed && over) || self.is_planted_hasty_stop() {
                        self.emit(Change::InstanceStopping { instance: id });
                    }
                }
                InstanceState::Planned
                | InstanceState::Starting { .. }
                | InstanceState::Failing { .. } => {
                    let since = instance.unready_since().unwrap_or(self.now);
                    if self.now.since(since) >= timing.healthy_deadline {
                        let limit = format_duration(timing.healthy_deadline);
                        let cause = instance.not_ready.as_ref();
                        let cause = cause.map_or(String::new(), |cause| format!(": {cause}"));
                        self.condemn(&id, format!("was not ready within {limit}{cause}"));
                    }
                }
                InstanceState::Passing { .. }
                | InstanceState::Serving { .. }
                | InstanceState::Stopping { .. } => {}
            }
        }
    }

    #[cfg(feature = "planted")]
    pub(super) fn is_planted_hasty_stop(&self) -> bool {
        self.state.planted == Some(PlantedBug::WeightBeforeDrain)
    }

    #[cfg(not(feature = "planted"))]
    pub(super) fn is_planted_hasty_stop(&self) -> bool {
        false
    }
}
