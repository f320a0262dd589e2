//! How many instances each side of each service should have now, and which ones have to go.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use landfast_types::{InstanceId, ServiceName, Timestamp};

use crate::{
    environment::{Environment, Side, Sides},
    instance::{Instance, InstanceState},
    plan::{Gate, Strategy, Topology},
    rollout::{Kind, Phase, Reverting, Rollout},
    traffic::TrafficMode,
};

/// How long an instance may outlive its grace and the kill after it before nobody waits for it any more.
const STOP_PATIENCE: Duration = Duration::from_secs(60);
/// The grace of an instance whose release is not known any more.
const GRACE_UNKNOWN: Duration = Duration::from_secs(10);

impl Environment {
    /// Every service that has instances or should have some.
    pub(crate) fn all_services(&self) -> BTreeSet<ServiceName> {
        let releases = [
            self.serving,
            self.rollout.as_ref().and_then(|rollout| rollout.from),
            self.rollout.as_ref().map(|rollout| rollout.to),
        ];
        let records = releases
            .into_iter()
            .flatten()
            .filter_map(|id| self.releases.get(&id));
        let declared = records.flat_map(|record| record.topology.services.keys());
        let running = self.instances.values().map(|instance| &instance.service);
        declared.chain(running).cloned().collect()
    }

    /// The new release's services, in the order they move.
    pub(crate) fn move_order(&self) -> Vec<ServiceName> {
        self.new_topology()
            .map(Topology::levels)
            .unwrap_or_default()
            .concat()
    }

    pub(crate) fn new_topology(&self) -> Option<&Topology> {
        let rollout = self.rollout.as_ref()?;
        Some(&self.releases.get(&rollout.to)?.topology)
    }

    /// The full size of each side of a service.
    pub(crate) fn full(&self, service: &ServiceName) -> Sides {
        match &self.rollout {
            None => Sides {
                old: self.replicas(self.serving, service),
                new: 0,
            },
            Some(rollout) => Sides {
                old: self.replicas(rollout.from, service),
                new: self.replicas(Some(rollout.to), service),
            },
        }
    }

    /// How many instances each side of a service should have in this state.
    pub(crate) fn wanted(&self, service: &ServiceName) -> Sides {
        if self.stopped {
            return Sides::default();
        }
        let full = self.full(service);
        let Some(rollout) = &self.rollout else {
            return full;
        };
        self.wanted_in(rollout, &rollout.phase, service, full)
    }

    fn wanted_in(
        &self,
        rollout: &Rollout,
        phase: &Phase,
        service: &ServiceName,
        full: Sides,
    ) -> Sides {
        let old_only = Sides {
            old: full.old,
            new: 0,
        };
        let new_only = Sides {
            old: 0,
            new: full.new,
        };
        match phase {
            Phase::Preflight | Phase::Rehearsing | Phase::Migrating | Phase::Pausing => old_only,
            Phase::Gating { .. } if rollout.is_untouched() => old_only,
            Phase::Clearing => Sides::default(),
            Phase::Warming { level } => Sides {
                old: self.old_beside_new(rollout, full),
                new: self.warm(rollout, service, full, Some(*level)),
            },
            Phase::Gating { .. } => Sides {
                old: self.old_beside_new(rollout, full),
                new: self.warm(rollout, service, full, None),
            },
            Phase::Moving { service: index } => self.moving(rollout, service, *index, full),
            Phase::Stepping { step } | Phase::Shifting { step } | Phase::Holding { step } => {
                let new = match &rollout.plan.strategy {
                    Strategy::Canary { .. } => self.canary_size(rollout, service, *step, full),
                    Strategy::BlueGreen | Strategy::Rolling { .. } | Strategy::Recreate => {
                        self.warm(rollout, service, full, None)
                    }
                };
                Sides {
                    old: self.old_beside_new(rollout, full),
                    new,
                }
            }
            Phase::Promoting { service: index } if !self.keeps_old(rollout, service) => {
                self.moving(rollout, service, *index, full)
            }
            Phase::Promoting { .. } => full,
            Phase::Standby if self.keeps_old(rollout, service) => full,
            Phase::Standby | Phase::Sealing | Phase::Contracting => new_only,
            Phase::Reverting { stage, .. } => self.reverting(service, *stage, full),
            Phase::Parked { resume, .. } => self.parked(rollout, resume, service, full),
        }
    }

    /// Blue-green and canary keep the old group of a routed service until the seal.
    pub(crate) fn keeps_old(&self, rollout: &Rollout, service: &ServiceName) -> bool {
        match rollout.plan.strategy {
            Strategy::BlueGreen | Strategy::Canary { .. } => {
                let routed = |release| self.shape(release, service).is_some_and(|s| s.routed);
                rollout.from.is_some_and(routed)
            }
            Strategy::Rolling { .. } | Strategy::Recreate => false,
        }
    }

    fn old_beside_new(&self, rollout: &Rollout, full: Sides) -> u32 {
        if rollout.excludes() { 0 } else { full.old }
    }

    /// The new capacity before the first request, up to a level of the `after` order.
    fn warm(
        &self,
        rollout: &Rollout,
        service: &ServiceName,
        full: Sides,
        level: Option<usize>,
    ) -> u32 {
        let Some(topology) = self.new_topology() else {
            return 0;
        };
        let routed = topology
            .services
            .get(service)
            .is_some_and(|shape| shape.routed);
        let levels = topology.levels();
        let of_service = levels.iter().position(|names| names.contains(service));
        if of_service.is_none_or(|own| level.is_some_and(|level| own > level)) {
            return 0;
        }
        match &rollout.plan.strategy {
            Strategy::Rolling { .. } => {
                let first = self.move_order().first() == Some(service);
                // The smoke job may ask any route, and none of them may answer from the old release.
                let tested = routed && rollout.plan.gates.contains(&Gate::Smoke);
                let (surge, _) = rollout.plan.strategy.room(full.new);
                if first || tested {
                    surge.min(1).min(full.new)
                } else {
                    0
                }
            }
            Strategy::BlueGreen => {
                if routed {
                    full.new
                } else {
                    0
                }
            }
            Strategy::Canary { .. } => self.canary_size(rollout, service, 0, full),
            Strategy::Recreate => full.new,
        }
    }

    /// The capacity of a canary step: its share of the replicas, and two where there are two, because one
    /// instance alone cannot be told from its release.
    fn canary_size(
        &self,
        rollout: &Rollout,
        service: &ServiceName,
        step: usize,
        full: Sides,
    ) -> u32 {
        if !self
            .shape(rollout.to, service)
            .is_some_and(|shape| shape.routed)
        {
            return 0;
        }
        let share = landfast_types::Percent::new(rollout.step_percent(step));
        let share = share.unwrap_or(landfast_types::Percent::HUNDRED);
        let so_far = self.kept(service).new;
        share
            .of_ceil(full.new)
            .max(full.new.min(2))
            .max(so_far.min(full.new))
    }

    /// Rolling, service by service: those before `index` have moved, those after have not begun.
    fn moving(&self, rollout: &Rollout, service: &ServiceName, index: usize, full: Sides) -> Sides {
        let order = self.move_order();
        let place = order.iter().position(|name| name == service);
        let Some(place) = place else {
            // The new release has no such service: it goes when all others have moved.
            let all_moved = index >= order.len();
            return Sides {
                old: if all_moved { 0 } else { full.old },
                new: 0,
            };
        };
        if place > index {
            return self.unmoved(service, full);
        }
        if place < index {
            return Sides {
                old: 0,
                new: full.new,
            };
        }
        let (surge, unavailable) = rollout.plan.strategy.room(full.new);
        let (kept, ready) = (self.kept(service), self.ready(service));
        let new = (full.new + surge)
            .saturating_sub(kept.old)
            .max(kept.new)
            .min(full.new);
        let floor = full.new - unavailable.min(full.new);
        // Those that are not ready go first, but no faster than new ones become ready: a moment in which
        // nobody passes must not cost the old release its instances.
        let removable = (kept.old + ready.new).saturating_sub(floor);
        let spare = (ready.old + ready.new).saturating_sub(floor);
        let going = removable.min(kept.old - ready.old + spare).min(kept.old);
        Sides {
            old: kept.old - going,
            new,
        }
    }

    /// A service whose turn has not come. In a restart what ends is replaced by the new side, which is of the
    /// same release.
    fn unmoved(&self, service: &ServiceName, full: Sides) -> Sides {
        let kept = self.kept(service);
        let replaced = if self.is_restart() {
            full.new.saturating_sub(kept.old)
        } else {
            0
        };
        Sides {
            old: full.old,
            new: kept.new.max(replaced),
        }
    }

    /// While a person is waited for nothing moves on, and what ends is replaced.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "every other phase has sizes of its own, which do not move"
    )]
    fn parked(
        &self,
        rollout: &Rollout,
        resume: &Phase,
        service: &ServiceName,
        full: Sides,
    ) -> Sides {
        let frozen = rollout.frozen.get(service).copied().unwrap_or_default();
        match resume {
            Phase::Moving { .. } | Phase::Promoting { .. } if self.is_restart() => {
                let kept = self.kept(service);
                Sides {
                    old: kept.old,
                    new: (frozen.old + frozen.new).saturating_sub(kept.old),
                }
            }
            Phase::Moving { .. } | Phase::Promoting { .. } => frozen,
            Phase::Reverting {
                stage: Reverting::Restoring | Reverting::Switching,
                ..
            } => Sides {
                old: full.old,
                new: frozen.new,
            },
            other => self.wanted_in(rollout, other, service, full),
        }
    }

    /// How many instances of each service are kept now.
    pub(crate) fn sizes_now(&self) -> BTreeMap<ServiceName, Sides> {
        let services = self.all_services().into_iter();
        services
            .map(|service| (service.clone(), self.kept(&service)))
            .collect()
    }

    fn reverting(&self, service: &ServiceName, stage: Reverting, full: Sides) -> Sides {
        let new = self.kept(service).new;
        match stage {
            Reverting::Pausing => Sides {
                old: self.kept(service).old,
                new,
            },
            Reverting::Clearing => Sides {
                old: self.kept(service).old,
                new: 0,
            },
            Reverting::Restoring | Reverting::Switching => Sides { old: full.old, new },
            // A service without a route gives way when the old one is back; traffic did not wait for it.
            Reverting::Retiring => Sides {
                old: full.old,
                new: if self.is_routed_anywhere(service) || self.ready(service).old >= full.old {
                    0
                } else {
                    new
                },
            },
        }
    }

    fn is_routed_anywhere(&self, service: &ServiceName) -> bool {
        self.routed_services().contains(service)
    }

    /// Whether every service of the old release that traffic goes to has its full capacity ready.
    pub(crate) fn is_old_routable(&self) -> bool {
        self.routed_services()
            .iter()
            .all(|service| self.ready(service).old >= self.full(service).old)
    }

    /// Whether traffic of some service would return to an old release that is not whole: by the table in the record
    /// requests are still held, or the new release still gets some.
    pub(crate) fn would_return_early(&self) -> bool {
        let Some(rollout) = &self.rollout else {
            return false;
        };
        let mut services = self.traffic.services.iter();
        services.any(|(name, traffic)| {
            let held = rollout.cleared && traffic.mode == TrafficMode::Pause;
            let group = traffic.groups.get(&rollout.to);
            let elsewhere = group.is_some_and(|group| group.weight > 0);
            (held || elsewhere) && self.ready(name).old < self.full(name).old
        })
    }

    /// Whether each service has the new capacity this state wants, ready.
    pub(crate) fn is_new_ready(&self) -> bool {
        self.all_services()
            .iter()
            .all(|service| self.ready(service).new >= self.wanted(service).new)
    }

    /// Whether no instance of a side is left, on its way out included.
    pub(crate) fn is_gone(&self, side: Side) -> bool {
        self.instances
            .values()
            .all(|instance| self.side_of(instance) != side)
    }

    /// When what is left of a side is no longer waited for: all of it was told to end, was given its grace and was
    /// killed, and the system does not let go of it. Nothing while any of it still serves or drains.
    pub(crate) fn patience_until(&self, side: Side) -> Option<Timestamp> {
        let mut last = None;
        for instance in self.instances.values() {
            if self.side_of(instance) != side {
                continue;
            }
            let InstanceState::Stopping { since } = instance.state else {
                return None;
            };
            last = last.max(Some(since + self.grace(instance) + STOP_PATIENCE));
        }
        last
    }

    /// An instance that is waited for no more and still there.
    pub(crate) fn unendable(&self, now: Timestamp) -> Option<&InstanceId> {
        let overdue = |instance: &&Instance| match instance.state {
            InstanceState::Stopping { since } => {
                now >= since + self.grace(instance) + STOP_PATIENCE
            }
            InstanceState::Planned
            | InstanceState::Starting { .. }
            | InstanceState::Passing { .. }
            | InstanceState::Serving { .. }
            | InstanceState::Failing { .. }
            | InstanceState::Draining { .. } => false,
        };
        let mut instances = self.instances.values();
        instances.find(overdue).map(|instance| &instance.id)
    }

    /// How long an instance may take to end by itself.
    pub(crate) fn grace(&self, instance: &Instance) -> Duration {
        let shape = self.shape(instance.release, &instance.service);
        shape.map_or(GRACE_UNKNOWN, |shape| shape.grace)
    }

    /// Whether the old release has everything back and only the end of the new one is waited for.
    pub(crate) fn is_only_ending(&self) -> bool {
        let retires = |rollout: &Rollout| {
            matches!(
                rollout.phase,
                Phase::Reverting {
                    stage: Reverting::Retiring,
                    ..
                }
            )
        };
        let kept = |side| {
            self.instances
                .values()
                .any(|i| i.is_kept() && self.side_of(i) == side)
        };
        self.rollout.as_ref().is_some_and(retires) && !kept(Side::New)
    }

    /// The instances of a group that go first when it shrinks: those that serve nobody, then the newest.
    pub(crate) fn surplus(
        &self,
        service: &ServiceName,
        side: Side,
        wanted: u32,
    ) -> Vec<InstanceId> {
        let mut kept: Vec<&Instance> = self
            .group(service, side)
            .filter(|instance| instance.is_kept())
            .collect();
        kept.sort_by_key(|instance| (rank(instance), instance.number));
        kept.iter()
            .skip(wanted as usize)
            .map(|instance| instance.id.clone())
            .collect()
    }

    /// Whether the rollout replaces instances of a release by others of the same. A restart that waited while its
    /// release was taken back does not.
    pub(crate) fn is_restart(&self) -> bool {
        self.rollout.as_ref().is_some_and(|rollout| {
            rollout.kind == Kind::Restart && rollout.from == Some(rollout.to)
        })
    }
}

/// Who is worth keeping: the lower the better.
fn rank(instance: &Instance) -> u8 {
    match instance.state {
        InstanceState::Serving { .. } => 0,
        InstanceState::Passing { .. } => 1,
        InstanceState::Starting { .. } => 2,
        InstanceState::Failing { .. } => 3,
        InstanceState::Planned => 4,
        InstanceState::Draining { .. } | InstanceState::Stopping { .. } => 5,
    }
}
