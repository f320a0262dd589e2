//! The far end of the wires: what an order does to the target and the proxy, and what comes back.

use std::net::{Ipv4Addr, SocketAddr};

use landfast_rollout::{Action, Input, Schemas};
use landfast_types::{InstanceId, ReleaseId, ServiceName};

use crate::{
    Millis,
    database::Runner,
    dice::Dice,
    fault::Fault,
    operator, scenario,
    world::{Habits, Happening, Order, World},
};

impl World {
    pub(super) fn arrives(&mut self, order: &Order) {
        let now = self.now;
        if self.server.is_none() || order.fence.generation.0 < self.generation {
            self.fired.note(Fault::StaleOrderArrived);
        }
        match &order.action {
            Action::StartInstance {
                instance,
                service,
                release,
            } => {
                if let Ok(stale) = self.target.admit(instance, service, *release, order.fence) {
                    self.watch.acted(now, &order.action, stale);
                    self.starts(instance, *release);
                }
            }
            Action::StopInstance { instance, grace } => {
                let known = self.target.bodies.get(instance);
                let group = known.map(|body| (body.service.clone(), body.release));
                let (service, release) = group.unwrap_or_else(|| unborn(instance));
                if let Ok(stale) = self.target.admit(instance, &service, release, order.fence) {
                    self.watch.acted(now, &order.action, stale);
                    self.stops(instance, grace.as_millis() as Millis);
                }
            }
            Action::Publish { .. } => self.publishes(order),
            Action::AwaitDrain { .. }
            | Action::JudgeGate { .. }
            | Action::Migrate { .. }
            | Action::ReadSchema { .. }
            | Action::Notify { .. }
            | Action::RetireStore { .. } => {}
        }
    }

    pub(super) fn starts(&mut self, instance: &InstanceId, release: ReleaseId) {
        let now = self.now;
        let Some(body) = self.target.bodies.get_mut(instance) else {
            return;
        };
        if body.signalled_at.is_some() && body.started_at.is_none() {
            return;
        }
        if body.started_at.is_none() {
            let number: u64 = instance
                .as_str()
                .rsplit('.')
                .next()
                .and_then(|number| number.parse().ok())
                .unwrap_or(0);
            // An instance has its own dice: what it does must not depend on when it starts.
            let mut own = Dice::new(self.salt ^ (number << 20));
            let calm = now >= self.chaos.until;
            let shape = self.watch.topology(release);
            let shape = shape.and_then(|topology| topology.services.get(&body.service));
            let habit = match (self.habits, shape) {
                (Habits::Told, Some(shape)) => scenario::habit(shape),
                (Habits::Told, None) | (Habits::Random, _) => {
                    operator::habit(&mut own, &mut self.fired, release, calm, self.salt)
                }
            };
            body.habit = habit;
            body.started_at = Some(now);
            if habit.refused {
                let reason = "no such file".into();
                self.report(Input::StartFailed {
                    instance: instance.clone(),
                    reason,
                });
                return;
            }
            body.alive = true;
            self.watch
                .started(now, instance, &self.target, &self.database);
            if let Some(after) = habit.ends_after {
                let happening = Happening::Ends {
                    instance: instance.clone(),
                    exit: "exited with 1",
                };
                self.later(after, happening);
            }
        } else if body.habit.refused {
            let reason = "no such file".into();
            self.report(Input::StartFailed {
                instance: instance.clone(),
                reason,
            });
            return;
        } else if !body.alive {
            self.report(Input::Ended {
                instance: instance.clone(),
                exit: "exited with 1".into(),
            });
            return;
        }
        let address = Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 3000)));
        self.report(Input::Started {
            instance: instance.clone(),
            address,
        });
    }

    pub(super) fn stops(&mut self, instance: &InstanceId, grace: Millis) {
        let now = self.now;
        let Some(body) = self.target.bodies.get_mut(instance) else {
            return;
        };
        if !body.alive {
            body.signalled_at.get_or_insert(now);
            let exit = "not running".into();
            self.report(Input::Ended {
                instance: instance.clone(),
                exit,
            });
            return;
        }
        if body.signalled_at.is_some() {
            return;
        }
        body.signalled_at = Some(now);
        let ignores = body.habit.ignores_stop;
        self.watch
            .signalled(now, instance, &self.target, &self.proxy);
        let takes = if ignores {
            self.fired.note(Fault::HangsAtStop);
            grace
        } else {
            self.dice.between(10, 300)
        };
        self.later(
            takes,
            Happening::Ends {
                instance: instance.clone(),
                exit: "stopped",
            },
        );
    }

    pub(super) fn ends(&mut self, instance: &InstanceId, exit: &str) {
        if !self.target.end(instance, self.now) {
            return;
        }
        self.say(|| format!("world: {instance} ends: {exit}"));
        self.proxy.flights.remove(instance);
        let delay = self.dice.between(1, 30);
        let input = Input::Ended {
            instance: instance.clone(),
            exit: exit.to_owned(),
        };
        self.tell(delay, input);
    }

    /// A runner of the server in this process: it goes on while that lives and the action is owed.
    pub(super) fn migrates(&mut self, runner: Runner) {
        let owed = Action::Migrate {
            rollout: runner.rollout,
            release: runner.release,
            stage: runner.stage,
        };
        let lives = self.server.as_ref().is_some_and(|server| {
            server.generation == runner.generation && server.environment.pending().contains(&owed)
        });
        if !lives {
            self.fired.note(Fault::MigrationCut);
            self.database.runner.take_if(|other| *other == runner);
            return;
        }
        let topology = self.watch.topology(runner.release);
        let next = topology.and_then(|topology| self.database.next(topology, runner.stage));
        let failure = next.as_ref().and_then(|next| {
            let fails = self.fault(Fault::MigrationFailed, 120);
            fails.then(|| format!("{} did not get its lock", next.name))
        });
        if let (Some(next), None) = (next, &failure) {
            let name = next.name.clone();
            self.say(|| format!("database: {name} is applied"));
            self.database.apply(next);
            self.watch
                .migrated(self.now, &name, &self.database, &self.target);
            let takes = self.dice.between(50, 3_000);
            self.later(takes, Happening::Migrates(runner));
            return;
        }
        self.database.runner = None;
        // A database that cannot be reached says nothing of itself.
        let is_read = failure.is_none() || self.dice.permille(700);
        let schemas = if is_read {
            self.database.schemas()
        } else {
            Schemas::new()
        };
        let delay = self.dice.between(1, 500);
        self.tell(
            delay,
            Input::Migrated {
                rollout: runner.rollout,
                stage: runner.stage,
                schemas,
                failure,
            },
        );
    }

    pub(super) fn publishes(&mut self, order: &Order) {
        let now = self.now;
        let (Some(table), true) = (&order.table, now >= self.proxy.down_until) else {
            return;
        };
        let (watch, target) = (&self.watch, &self.target);
        let times = |id: &InstanceId| watch.drain_times(id, target);
        let taken = self
            .proxy
            .take(now, order.fence, table, times, &mut self.dice);
        let Ok(stale) = taken else {
            return;
        };
        self.watch.acted(now, &order.action, stale);
        let revision = table.revision;
        self.say(|| format!("proxy: table {revision} is in force"));
        self.report(Input::TrafficConfirmed { revision });
    }
}

/// The service and release in an id, for an instance that is to be stopped before it ever started.
fn unborn(instance: &InstanceId) -> (ServiceName, ReleaseId) {
    let mut parts = instance.as_str().split('.');
    let service = parts.next().and_then(|name| ServiceName::new(name).ok());
    let release = parts.next().and_then(|text| text.get(1..)?.parse().ok());
    let service = service.expect("an instance id begins with its service");
    (service, ReleaseId(release.unwrap_or(0)))
}
