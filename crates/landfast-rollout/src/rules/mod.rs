//! The rules by which an environment moves. [`decide`] takes one input, then applies the rules again and again
//! until none has anything left to say; what they said is the answer.
//!
//! Order matters within a round: instances first, then the rollout, then sizes, then the table. A phase that
//! waits for the table compares against the table its own state calls for, so it never mistakes an older

mod deadline;
mod inputs;
mod instances;
mod progress;
mod sizes;

use landfast_types::Timestamp;

pub(crate) use self::deadline::deadline;
use crate::{
    environment::Environment,
    event::{Change, Event, Input, Rejected},
    invariant::{self, Violation},
    rollout::{ParkReason, Phase, Rollout},
};

/// Rounds after which the rules must have come to rest. Each round makes progress in a finite order, so this
/// is never reached; it turns a mistake into a parked rollout instead of a hang.
const ROUNDS_MAX: usize = 10_000;

pub(crate) fn decide(
    environment: &Environment,
    now: Timestamp,
    input: Input,
) -> Result<Vec<Event>, Rejected> {
    let mut draft = Draft {
        state: environment.clone(),
        events: Vec::new(),
        now,
    };
    draft.take(input.clone())?;
    let violation = if draft.settle() {
        broken(environment, &draft.state)
    } else {
        Some(Violation::Restless)
    };
    let Some(violation) = violation else {
        return Ok(draft.events);
    };
    // A broken invariant parks the rollout instead of acting on it; traffic stays as it is. What was told is
    // still recorded, but nothing is made of it; a person's wish is refused.
    if input.is_wish() {
        return Err(Rejected::WouldBreak(violation.to_string()));
    }
    let mut parked = Draft {
        state: environment.clone(),
        events: Vec::new(),
        now,
    };
    parked.take(input)?;
    if broken(environment, &parked.state).is_some() {
        parked.state = environment.clone();
        parked.events.clear();
    }
    parked.park(ParkReason::Invariant(violation.to_string()));
    Ok(parked.events)
}

/// The first invariant that the step would break. A planted bug is left to the simulator to find.
fn broken(before: &Environment, after: &Environment) -> Option<Violation> {
    #[cfg(feature = "planted")]
    if after.planted.is_some() {
        return None;
    }
    invariant::violations(before, after).into_iter().next()
}

pub(crate) struct Draft {
    pub(crate) state: Environment,
    events: Vec<Event>,
    now: Timestamp,
}

impl Draft {
    pub(crate) fn emit(&mut self, change: Change) {
        let event = Event {
            at: self.now,
            change,
        };
        self.state.apply(&event);
        self.events.push(event);
    }

    fn enter(&mut self, phase: Phase) {
        self.emit(Change::PhaseEntered { phase });
    }

    pub(crate) fn rollout(&self) -> Option<&Rollout> {
        self.state.rollout.as_ref()
    }

    fn moving_rollout(&self) -> Result<&Rollout, Rejected> {
        self.rollout().ok_or(Rejected::NoRollout)
    }

    /// Applies the rules until none has anything left to say; false when they never come to rest.
    fn settle(&mut self) -> bool {
        for _ in 0..ROUNDS_MAX {
            let before = self.events.len();
            self.judge_instances();
            self.note_progress();
            self.move_rollout();
            self.fit_sizes();
            self.fit_traffic();
            if self.events.len() == before {
                return true;
            }
        }
        false
    }
}
