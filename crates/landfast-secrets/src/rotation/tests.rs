use landfast_types::ReleaseId;

use super::*;

/// A restart comes to its end after so many that were taken back.
const UNLUCKY_MAX: u64 = 3;

/// A database with two logins, instances that hold one each, and a restart that may be under way.
struct World {
    rotation: Rotation,
    records: Vec<RotationEvent>,
    open: BTreeSet<Turn>,
    /// How often Landfast's own password was changed.
    renewed: u64,
    /// What each was given when it started.
    instances: Vec<(InstanceId, Turn)>,
    restart: Option<RolloutId>,
    ended: BTreeSet<RolloutId>,
    /// Instances with lower numbers were there when the restart was ordered: it replaces them all.
    ordered_at: u64,
    next: u64,
    dice: u64,
    faults: u64,
    taken_back: u64,
    /// In this round.
    unlucky: u64,
    /// Somebody was told that the restart was taken back.
    waits_for_somebody: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = Self {
            rotation: Rotation::default(),
            records: Vec::new(),
            open: BTreeSet::from([Turn::First]),
            renewed: 0,
            instances: Vec::new(),
            restart: None,
            ended: BTreeSet::new(),
            ordered_at: 0,
            next: 1,
            dice: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            faults: 0,
            taken_back: 0,
            unlucky: 0,
            waits_for_somebody: false,
        };
        for _ in 0..3 {
            world.start();
        }
        world
    }

    fn throw(&mut self, sides: u64) -> u64 {
        self.dice = self
            .dice
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.dice >> 33) % sides
    }

    fn start(&mut self) {
        let id = InstanceId::new("api", ReleaseId(1), self.next);
        self.next += 1;
        self.instances.push((id, self.rotation.given()));
    }

    fn alive(&self) -> Holders {
        Holders {
            instances: self.instances.iter().map(|(id, _)| id.clone()).collect(),
            runs: BTreeSet::new(),
        }
    }

    /// Records what was decided, then looks whether everybody can still log in.
    fn take(&mut self, input: RotationInput) -> Result<(), RotationRejected> {
        for event in self.rotation.decide(input)? {
            // What is recorded reads back as it was.
            let text = serde_json::to_string(&event).unwrap();
            assert_eq!(serde_json::from_str::<RotationEvent>(&text).unwrap(), event);
            self.rotation.apply(&event);
            self.records.push(event);
        }
        self.check();
        Ok(())
    }

    fn check(&self) {
        assert!(
            self.open.contains(&self.rotation.given()),
            "who starts is locked out: {:?}",
            self.records
        );
        for (id, holds) in &self.instances {
            assert!(
                self.open.contains(holds),
                "{id} is locked out: {:?}",
                self.records
            );
        }
        if self.rotation.is_settled() {
            assert_eq!(self.open, BTreeSet::from([self.rotation.given()]));
        }
    }

    /// A restart goes on by an instance, or is taken back.
    fn go_on(&mut self) {
        let Some(restart) = self.restart else {
            return;
        };
        let since = self.ordered_at;
        let old = self.instances.iter().position(|(id, _)| number(id) < since);
        match old {
            Some(_) if self.unlucky < UNLUCKY_MAX && self.throw(6) == 0 => {
                self.unlucky += 1;
                self.taken_back += 1;
                self.restart = None;
                self.ended.insert(restart);
            }
            Some(place) => {
                self.instances.remove(place);
                self.start();
            }
            None => {
                self.restart = None;
                self.ended.insert(restart);
            }
        }
    }

    /// What a driver does for what is owed; what it would tell.
    fn perform(&mut self, action: RotationAction) -> Option<RotationInput> {
        match action {
            RotationAction::Open { login } => drop(self.open.insert(login)),
            RotationAction::Try { login } => assert!(self.open.contains(&login)),
            RotationAction::Count { .. } => return Some(RotationInput::Counted(self.alive())),
            RotationAction::Replace { .. } => return self.replace(),
            RotationAction::Close { login } => drop(self.open.remove(&login)),
            RotationAction::Renew => self.renewed += 1,
        }
        Some(RotationInput::Done(action))
    }

    fn replace(&mut self) -> Option<RotationInput> {
        let Phase::Replacing { holders, restart } = self.rotation.phase().clone() else {
            panic!("it is owed in no other phase");
        };
        let left = holders.among(&self.alive());
        if left.is_empty() {
            return Some(RotationInput::Left(left));
        }
        if self.rotation.wants_restart() {
            let ordered = self.restart.unwrap_or(RolloutId(self.next));
            self.next += 1;
            if self.restart.replace(ordered) != Some(ordered) {
                self.ordered_at = self.next;
            }
            return Some(RotationInput::Ordered { restart: ordered });
        }
        let restart = restart.filter(|restart| self.ended.contains(restart))?;
        let reason = "an instance did not come up".to_owned();
        Some(RotationInput::TakenBack { restart, reason })
    }

    /// Carries out what is owed, perhaps twice, perhaps with the answer lost, perhaps not at all.
    fn step(&mut self) {
        let Some(action) = self.rotation.pending() else {
            return;
        };
        if self.throw(2) == 0 {
            self.go_on();
        }
        let fault = self.throw(8);
        if fault == 0 {
            self.faults += 1;
            let reason = format!("fault {}", self.throw(3));
            return self.take(RotationInput::Failed { action, reason }).unwrap();
        }
        let input = self.perform(action);
        self.check();
        if fault == 1 {
            // The server died here: the state is what the records say.
            self.faults += 1;
            let mut replayed = Rotation::default();
            self.records.iter().for_each(|event| replayed.apply(event));
            assert_eq!(replayed, self.rotation);
            return;
        }
        if let Some(input) = input {
            self.told(input, fault);
        }
        // Nobody asks again but for a restart that was taken back: what else fails goes on by itself.
        if self.waits_for_somebody && self.throw(2) == 0 {
            self.waits_for_somebody = false;
            let by = "somebody".to_owned();
            self.take(RotationInput::Begin { by }).unwrap();
        }
    }

    fn told(&mut self, input: RotationInput, fault: u64) {
        self.waits_for_somebody |= matches!(input, RotationInput::TakenBack { .. });
        self.take(input.clone()).unwrap();
        if fault == 2 {
            // The same answer again, late.
            self.take(input).unwrap();
        }
        // An instance may start at any moment.
        if self.throw(3) == 0 {
            self.start();
            self.check();
        }
    }
}

fn begin() -> RotationInput {
    RotationInput::Begin {
        by: "somebody".to_owned(),
    }
}

#[test]
fn nobody_is_locked_out_whatever_fails_and_the_old_password_is_dead_at_the_end() {
    let (mut faults, mut abandoned, mut taken_back) = (0, 0, 0);
    for seed in 0..2_000 {
        let mut world = World::new(seed);
        for round in 0..3 {
            let (before, renewed) = (world.rotation.given(), world.renewed);
            world.unlucky = 0;
            world.take(begin()).unwrap();
            assert_eq!(world.take(begin()), Err(RotationRejected::UnderWay));
            let mut given_up = false;
            for _ in 0..1_000 {
                if world.rotation.is_settled() {
                    break;
                }
                if world.throw(40) == 0 && world.take(RotationInput::Abandon).is_ok() {
                    given_up = true;
                }
                world.step();
            }
            assert!(
                world.rotation.is_settled(),
                "seed {seed}, round {round}: {:?}",
                world.records
            );
            let expected = if given_up { before } else { before.other() };
            assert_eq!(world.rotation.given(), expected);
            assert!(
                !world.open.contains(&expected.other()),
                "the old one is dead"
            );
            // Landfast's own is a new one, unless they were given up.
            assert_eq!(world.renewed > renewed, !given_up, "seed {seed}");
            abandoned += usize::from(given_up);
        }
        faults += world.faults;
        taken_back += world.taken_back;
    }
    assert!(
        faults > 1_000 && abandoned > 100 && taken_back > 100,
        "{faults} {abandoned} {taken_back}"
    );
}

#[test]
fn is_taken_back_only_while_nobody_was_given_the_new_one() {
    let mut rotation = Rotation::settled(Turn::Second);
    let take = |rotation: &mut Rotation, input| {
        let events = rotation.decide(input)?;
        events.iter().for_each(|event| rotation.apply(event));
        Ok::<_, RotationRejected>(events)
    };
    assert_eq!(
        take(&mut rotation, RotationInput::Abandon),
        Err(RotationRejected::NotUnderWay)
    );
    take(&mut rotation, begin()).unwrap();
    let login = Turn::First;
    for action in [
        RotationAction::Open { login },
        RotationAction::Try { login },
    ] {
        assert_eq!(rotation.pending(), Some(action));
        assert_eq!(rotation.given(), Turn::Second);
        take(&mut rotation, RotationInput::Done(action)).unwrap();
    }
    assert_eq!(rotation.given(), Turn::First);
    assert_eq!(
        take(&mut rotation, RotationInput::Abandon),
        Err(RotationRejected::TooLate)
    );
    let holders = Holders {
        instances: BTreeSet::from([InstanceId::new("api", ReleaseId(3), 7)]),
        runs: BTreeSet::from([4]),
    };
    take(&mut rotation, RotationInput::Counted(holders.clone())).unwrap();
    // A run of a job still holds the old one: it stays open, however often the restart was done.
    let left = Holders {
        instances: BTreeSet::new(),
        ..holders
    };
    assert_eq!(take(&mut rotation, RotationInput::Left(left)), Ok(vec![]));
    let owed = RotationAction::Replace {
        login: Turn::Second,
    };
    assert_eq!(rotation.pending(), Some(owed));
}

#[test]
fn a_restart_that_was_taken_back_waits_for_somebody_who_asks_again() {
    let mut rotation = Rotation::default();
    let take = |rotation: &mut Rotation, input| {
        let events = rotation.decide(input).unwrap();
        events.iter().for_each(|event| rotation.apply(event));
    };
    take(&mut rotation, begin());
    let login = Turn::Second;
    take(
        &mut rotation,
        RotationInput::Done(RotationAction::Open { login }),
    );
    take(
        &mut rotation,
        RotationInput::Done(RotationAction::Try { login }),
    );
    let holders = Holders {
        instances: BTreeSet::from([InstanceId::new("api", ReleaseId(3), 7)]),
        runs: BTreeSet::new(),
    };
    take(&mut rotation, RotationInput::Counted(holders));
    assert!(rotation.wants_restart());
    let restart = RolloutId(9);
    take(&mut rotation, RotationInput::Ordered { restart });
    assert!(!rotation.wants_restart());
    let reason = "it does not come up".to_owned();
    take(&mut rotation, RotationInput::TakenBack { restart, reason });
    assert_eq!(rotation.failure(), Some("it does not come up"));
    assert!(!rotation.wants_restart());
    take(&mut rotation, begin());
    assert!(rotation.wants_restart() && rotation.failure().is_none());
    // What the first restart did is old news now.
    let reason = "late".to_owned();
    assert_eq!(
        rotation.decide(RotationInput::TakenBack { restart, reason }),
        Ok(vec![])
    );
}

#[test]
fn a_restart_that_could_not_be_had_is_wanted_still() {
    let mut rotation = Rotation::default();
    let login = Turn::Second;
    let holders = Holders {
        instances: BTreeSet::from([InstanceId::new("api", ReleaseId(3), 7)]),
        runs: BTreeSet::new(),
    };
    let owed = RotationAction::Replace { login: Turn::First };
    let failed = |reason: &str| RotationInput::Failed {
        action: owed,
        reason: reason.to_owned(),
    };
    for input in [
        begin(),
        RotationInput::Done(RotationAction::Open { login }),
        RotationInput::Done(RotationAction::Try { login }),
        RotationInput::Counted(holders),
        failed("the journal's disk is full"),
    ] {
        let events = rotation.decide(input).unwrap();
        events.iter().for_each(|event| rotation.apply(event));
    }
    assert_eq!(rotation.failure(), Some("the journal's disk is full"));
    assert!(rotation.wants_restart() && !rotation.is_taken_back());
    assert_eq!(rotation.decide(begin()), Err(RotationRejected::UnderWay));
    // As an earlier version wrote it, of a restart that was taken back: it is looked at again.
    let text = r#"{"kind":"failed","reason":"an instance did not come up"}"#;
    let restart = RolloutId(9);
    for event in [
        RotationEvent::Ordered { restart },
        serde_json::from_str(text).unwrap(),
    ] {
        rotation.apply(&event);
    }
    let reason = "an instance did not come up".to_owned();
    let taken_back = RotationInput::TakenBack { restart, reason };
    assert_eq!(rotation.decide(taken_back).unwrap().len(), 1);
}

fn number(id: &InstanceId) -> u64 {
    let text = id.to_string();
    let last = text.rsplit('.').next().unwrap_or_default();
    last.parse().unwrap()
}
