//! The instances of a simulated host: what really runs, whatever anybody believes.

use std::collections::{BTreeMap, BTreeSet};

use landfast_types::{
    Fence, FenceGuard, Generation, InstanceId, ReleaseId, ServiceName, StaleFence,
};

use crate::Millis;

/// How an instance behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Habit {
    /// The target cannot start it.
    pub refused: bool,
    /// From its start until it is ready.
    pub ready_after: Millis,
    /// From its start until it ends by itself.
    pub ends_after: Option<Millis>,
    /// Ready and not ready in turns, each for so long.
    pub flaps_every: Option<Millis>,
    /// Its probe passes and its requests fail.
    pub lies: bool,
    /// Nothing of it answers any more after this.
    pub hangs_after: Option<Millis>,
    /// It does not end before it is killed.
    pub ignores_stop: bool,
}

/// One instance.
#[derive(Debug, Clone)]
pub struct Body {
    pub service: ServiceName,
    pub release: ReleaseId,
    pub habit: Habit,
    pub guard: FenceGuard,
    /// The highest server generation that an order to it ever came from, kept apart from the guard so that a
    /// guard that fails is noticed.
    pub heard: u64,
    pub alive: bool,
    pub started_at: Option<Millis>,
    pub signalled_at: Option<Millis>,
    /// Since when every probe passed, by the record of answers.
    pub unbroken_since: Option<Millis>,
    /// When a probe last failed after one had passed.
    pub broken_at: Option<Millis>,
}

impl Body {
    /// What a probe finds now.
    pub fn passes(&self, now: Millis) -> bool {
        let Some(started) = self.started_at.filter(|_| self.alive) else {
            return false;
        };
        let age = now.saturating_sub(started);
        let flaps = |every: Millis| ((age - self.habit.ready_after) / every) % 2 == 1;
        age >= self.habit.ready_after
            && self.habit.hangs_after.is_none_or(|after| age < after)
            && !self.habit.flaps_every.is_some_and(flaps)
    }

    /// Whether it stopped answering for good.
    pub fn is_hung(&self, now: Millis) -> bool {
        let age = self.started_at.map(|started| now.saturating_sub(started));
        let hung = |after| age.is_some_and(|age| age >= after);
        self.alive && self.habit.hangs_after.is_some_and(hung)
    }

    /// Notes a probe's answer.
    pub fn probed(&mut self, now: Millis) -> bool {
        let passes = self.passes(now);
        self.note(now, passes);
        passes
    }

    fn note(&mut self, now: Millis, passes: bool) {
        if passes {
            self.unbroken_since.get_or_insert(now);
        } else if self.unbroken_since.take().is_some() {
            self.broken_at = Some(now);
        }
    }

    /// Ready by the record of answers, or was until a moment ago, so that nobody can know yet that it is not.
    pub fn seemed_ready(&self, now: Millis, slack: Millis) -> bool {
        let lately = |at: Millis| at + slack >= now;
        self.unbroken_since.is_some() || self.broken_at.is_some_and(lately)
    }
}

/// All instances that ever were, the ended ones too: a number is never used twice.
#[derive(Debug, Clone, Default)]
pub struct Target {
    pub bodies: BTreeMap<InstanceId, Body>,
    /// The newest generation that took the host over. Orders of older ones are refused for every instance, the
    /// ones that nobody heard of yet included.
    pub taken_over_by: u64,
    /// Whether orders of a replaced server are obeyed: a planted bug.
    pub obeys_stale: bool,
}

impl Target {
    /// Whether an order may be obeyed; the second value tells that it came from a replaced server all the same.
    pub fn admit(
        &mut self,
        instance: &InstanceId,
        service: &ServiceName,
        release: ReleaseId,
        order: Fence,
    ) -> Result<bool, StaleFence> {
        let body = self.bodies.entry(instance.clone()).or_insert_with(|| Body {
            service: service.clone(),
            release,
            habit: Habit::default(),
            guard: FenceGuard::default(),
            heard: 0,
            alive: false,
            started_at: None,
            signalled_at: None,
            unbroken_since: None,
            broken_at: None,
        });
        let newest = body.heard.max(self.taken_over_by);
        let stale = order.generation.0 < newest;
        if stale && !self.obeys_stale {
            let generation = Generation(newest);
            let seen = Fence {
                generation,
                revision: 0,
            };
            return Err(StaleFence {
                refused: order,
                seen,
            });
        }
        body.heard = body.heard.max(order.generation.0);
        match body.guard.take(order) {
            Err(_) if self.obeys_stale => Ok(stale),
            Err(error) => Err(error),
            Ok(()) => Ok(stale),
        }
    }

    /// An instance ends.
    pub fn end(&mut self, instance: &InstanceId, now: Millis) -> bool {
        let Some(body) = self.bodies.get_mut(instance).filter(|body| body.alive) else {
            return false;
        };
        body.alive = false;
        body.note(now, false);
        true
    }

    pub fn running(&self) -> BTreeSet<InstanceId> {
        let alive = self.bodies.iter().filter(|(_, body)| body.alive);
        alive.map(|(id, _)| id.clone()).collect()
    }
}
