//! What goes on without anybody's order: faults, traffic, probes, drains that end, measurements.

use std::{collections::BTreeMap, time::Duration};

use landfast_rollout::{
    Action, Input,
    analysis::{InstanceObservation, Observation, Sample},
};
use landfast_types::{Histogram, InstanceId};

use crate::{
    dice::Dice,
    fault::Fault,
    world::{BEAT, Happening, World},
};

/// Failed probes of a hung instance until liveness gives up on it.
const LIVENESS_FAILURES: u32 = 6;

impl World {
    pub(super) fn beat(&mut self) {
        self.later(BEAT, Happening::Beat);
        self.break_something();
        self.proxy.serve(self.now, &mut self.dice);
        if self.server.is_some() {
            self.watch.passes(self.now, BEAT);
        }
        self.probe();
        self.look_for_drained();
        self.observe();
        let due = self.server.as_ref().and_then(|server| {
            let (deadline, _) = server.environment.deadline()?;
            (deadline <= server.clock(self.now)).then_some(())
        });
        if due.is_some() {
            self.feed(Input::Tick).ok();
        }
        self.act();
    }

    pub(super) fn break_something(&mut self) {
        if self.fault(Fault::ServerDied, 6) {
            self.kill_server();
        }
        if self.fault(Fault::ProxyRestarted, 6) {
            let down = self.dice.between(100, 3_000);
            self.proxy.restart(self.now, down);
        }
        if self.fault(Fault::ClockSetForward, 3) {
            self.skew += self.dice.between(1_000, 3_600_000) as i64;
        }
        if self.fault(Fault::ClockSetBack, 3) {
            self.skew -= self.dice.between(1_000, 3_600_000) as i64;
        }
        if self.fault(Fault::HostLost, 2) {
            self.lose_instances();
            self.kill_server();
        }
    }

    /// Nothing outlives its host; the proxy comes back with it.
    pub(super) fn lose_instances(&mut self) {
        for instance in self.target.running() {
            self.target.end(&instance, self.now);
        }
        self.proxy.restart(self.now, 1_000);
    }

    pub(super) fn probe(&mut self) {
        let now = self.now;
        let Some(server) = &self.server else {
            return;
        };
        let instances = server.environment.instances.values();
        let probed: Vec<InstanceId> = instances
            .filter(|instance| instance.is_probed())
            .map(|instance| instance.id.clone())
            .collect();
        for instance in probed {
            // It may have died of the answer before: then nobody probes any more.
            if self.server.is_none() {
                return;
            }
            let Some(body) = self.target.bodies.get_mut(&instance) else {
                continue;
            };
            let (passing, hung) = (body.probed(now), body.is_hung(now));
            let Some(server) = &mut self.server else {
                return;
            };
            let failures = server.hung.entry(instance.clone()).or_default();
            *failures = if hung { *failures + 1 } else { 0 };
            let not_live = *failures == LIVENESS_FAILURES;
            let news = server.passing.insert(instance.clone(), passing) != Some(passing);
            if news {
                let instance = instance.clone();
                self.feed(Input::Probed { instance, passing }).ok();
            }
            if not_live {
                let reason = "does not answer".to_owned();
                self.feed(Input::NotLive { instance, reason }).ok();
            }
        }
    }

    pub(super) fn look_for_drained(&mut self) {
        let now = self.now;
        let Some(server) = self
            .server
            .as_ref()
            .filter(|_| now >= self.proxy.down_until)
        else {
            return;
        };
        let revision = self.proxy.table.revision;
        let mut drained = Vec::new();
        for action in server.environment.pending() {
            if let Action::AwaitDrain {
                instance,
                revision: needed,
            } = action
                && revision >= needed
                && self.proxy.in_flight(now, &instance) == 0
                && !self.proxy.offers(&instance)
            {
                drained.push(instance);
            }
        }
        for instance in drained {
            if !self.fault(Fault::ReportLost, 50) {
                let delay = self.dice.between(1, 30);
                self.tell(delay, Input::Drained { instance });
            }
        }
    }

    /// What the proxy measured of a canary in the last second.
    pub(super) fn observe(&mut self) {
        let now = self.now;
        let Some(server) = &mut self.server else {
            return;
        };
        let Some(rollout) = &server.environment.rollout else {
            return;
        };
        if !rollout.wants_observations() || now < server.observed_at + 1_000 {
            return;
        }
        server.observed_at = now;
        let mut observations = BTreeMap::new();
        for (service, traffic) in &server.environment.traffic.services {
            let mut observation = Observation {
                millis: 1_000,
                ..Observation::default()
            };
            for (release, group) in traffic.groups.iter().filter(|(_, g)| g.weight > 0) {
                let new = *release == rollout.to;
                for instance in group.members.keys() {
                    let lies = self.target.bodies.get(instance);
                    let lies = lies.is_some_and(|body| body.habit.lies);
                    let measured = InstanceObservation {
                        instance: instance.clone(),
                        live: sample(&mut self.dice, lies),
                        probes: Sample::default(),
                    };
                    let side = if new {
                        &mut observation.new
                    } else {
                        &mut observation.old
                    };
                    side.push(measured);
                }
            }
            observations.insert(service.clone(), observation);
        }
        let input = Input::Observed {
            rollout: rollout.id,
            observations,
        };
        self.feed(input).ok();
    }
}

/// One second of one instance: 40 requests of about 20 ms, half of them failing where it lies.
fn sample(dice: &mut Dice, lies: bool) -> Sample {
    let mut sample = Sample::default();
    let mut latency = Histogram::default();
    for _ in 0..40 {
        sample.requests += 1;
        sample.errors += u64::from(lies && dice.permille(500));
        latency.record(Duration::from_micros(dice.between(12_000, 30_000)));
    }
    sample.latency = latency;
    sample
}
