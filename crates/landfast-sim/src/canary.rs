//! A world of requests for the canary's analysis: two releases behind the proxy's way of splitting traffic, with
//! bursts, slow machines, cold caches and broken releases, from a seed.
//!
//! Every request is simulated: Poisson arrivals, the smooth weighted split between the releases (every 20th at 5 %),
//! least connections between instances, log-normal latencies, counted in the second in which they are answered.
//! Seconds are sampled with a random phase and seen by the engine 200 ms later, so that a verdict is up to 1.2 s
//! late, as it is live. Not modelled: queueing (latency does not rise with load), clients that retry.
//!
//! The generator is written out here (SplitMix64), so that a printed seed means the same for ever.

use std::{collections::VecDeque, time::Duration};

use landfast_rollout::analysis::{
    Analysis, AnalysisSettings, Finding, InstanceObservation, Observation, Sample, Verdict,
};
use landfast_types::{Histogram, InstanceId, ReleaseId};

const OLD: ReleaseId = ReleaseId(4);
const NEW: ReleaseId = ReleaseId(5);
const MEDIAN_SECONDS: f64 = 0.020;
/// From the end of a second to the verdict on it.
const SEEN_AFTER_SECONDS: f64 = 0.2;
const TABLE: usize = 1 << 14;

/// Which latencies rise for a while, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bursts {
    None,
    /// Everywhere at once: × 5 for 1 to 5 s, about once a minute.
    All,
    /// Each instance for itself, on both sides: × 8 for 0.5 to 2.5 s, about every 40 s.
    Each,
    /// As `Each`, but only the first instance of the new side.
    OneNew,
    /// As `Each`, but only the first instance of the old side.
    OneOld,
    /// Half of all requests fail everywhere, for 1 to 5 s about once a minute.
    Errors,
}

/// How the new release's latency differs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Latency {
    Same,
    Times(f64),
    /// Only the slowest part of the answers.
    Tail {
        part: f64,
        times: f64,
    },
}

/// One scenario. What is not said is equal on both sides.
#[derive(Debug, Clone)]
pub struct World {
    pub requests_per_second: f64,
    pub errors: f64,
    pub new_errors: f64,
    pub sigma: f64,
    pub bursts: Bursts,
    /// The first instance of a side takes three times as long.
    pub slow_old: bool,
    pub slow_new: bool,
    /// New instances take twice as long in their first 10 s.
    pub cold: bool,
    pub new_latency: Latency,
    /// The step, counted from 0, from which on the new release is worse.
    pub worse_from: usize,
    /// How many instances the new side has in the first step; three later, as the old side always.
    pub new_instances: usize,
    pub steps: Vec<u32>,
    pub hold_seconds: u32,
    pub settings: AnalysisSettings,
}

impl World {
    /// Equal releases, a plain world, the contract's steps.
    pub fn equal(requests_per_second: f64, errors: f64) -> Self {
        Self {
            requests_per_second,
            errors,
            new_errors: errors,
            sigma: 0.7,
            bursts: Bursts::None,
            slow_old: false,
            slow_new: false,
            cold: false,
            new_latency: Latency::Same,
            worse_from: 0,
            new_instances: 2,
            steps: vec![5, 25, 100],
            hold_seconds: 300,
            settings: AnalysisSettings::default(),
        }
    }

    /// Prepares what all seeds share.
    pub fn prepare(self) -> Prepared {
        let quantile = |i: usize| normal_quantile((i as f64 + 0.5) / TABLE as f64);
        let seconds = |i| MEDIAN_SECONDS * (self.sigma * quantile(i)).exp();
        let latencies: Vec<f32> = (0..TABLE).map(|i| seconds(i) as f32).collect();
        let bucket = |seconds: &f32| Histogram::bucket(Duration::from_secs_f32(*seconds));
        let buckets = latencies
            .iter()
            .map(|seconds| bucket(seconds) as u8)
            .collect();
        Prepared {
            world: self,
            latencies,
            buckets,
        }
    }
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub enum End {
    Passed,
    Failed {
        step: usize,
        seconds: f64,
        finding: Finding,
    },
    /// Inconclusive after the hold and again after its extension.
    Parked {
        step: usize,
        reason: String,
    },
}

/// A world ready to be run with any seed.
#[derive(Debug)]
pub struct Prepared {
    world: World,
    latencies: Vec<f32>,
    buckets: Vec<u8>,
}

impl Prepared {
    /// Runs the whole canary, every step, until it passes, fails or is parked.
    pub fn run(&self, seed: u64) -> Run {
        let mut run = Running::new(self, seed);
        let end = run.all_steps();
        Run {
            end,
            extended: run.extended,
            analysis: run.analysis,
        }
    }
}

/// What came of one seed.
#[derive(Debug)]
pub struct Run {
    pub end: End,
    /// Whether a hold was extended because the analysis was inconclusive.
    pub extended: bool,
    pub analysis: Analysis,
}

struct Running<'a> {
    prepared: &'a Prepared,
    random: SplitMix64,
    analysis: Analysis,
    sides: [Vec<Machine>; 2],
    /// The seconds that are not over yet.
    pending: VecDeque<Observation>,
    /// When the first of them began.
    second_began: f64,
    now: f64,
    next_arrival: f64,
    next_probe: f64,
    probes: u32,
    split: f64,
    common: Burst,
    /// Whose turn it is among equals, for each side on its own: with one counter for both, every 20th request
    /// would always fall on the same instance of two.
    turns: [usize; 2],
    probe_turn: usize,
    extended: bool,
    step: usize,
}

struct Machine {
    joined: f64,
    times: f64,
    burst: Option<Burst>,
    /// When each request in flight ends, and the soonest of them.
    in_flight: Vec<f64>,
    soonest: f64,
}

impl Machine {
    fn in_flight(&mut self, now: f64) -> usize {
        if now >= self.soonest {
            self.in_flight.retain(|ends| *ends > now);
            self.soonest = self.in_flight.iter().copied().fold(f64::INFINITY, f64::min);
        }
        self.in_flight.len()
    }
}

/// Alternates between quiet and burst.
struct Burst {
    begins: f64,
    ends: f64,
    every: f64,
    longest: f64,
    shortest: f64,
}

impl Burst {
    fn new(every: f64, shortest: f64, longest: f64, now: f64, random: &mut SplitMix64) -> Self {
        let mut burst = Self {
            begins: now,
            ends: now,
            every,
            longest,
            shortest,
        };
        burst.next(now, random);
        burst
    }

    fn next(&mut self, now: f64, random: &mut SplitMix64) {
        self.begins = now + random.exponential(self.every);
        self.ends = self.begins + self.shortest + random.unit() * (self.longest - self.shortest);
    }

    fn rages(&mut self, now: f64, random: &mut SplitMix64) -> bool {
        while now >= self.ends {
            self.next(self.ends, random);
        }
        now >= self.begins
    }
}

impl<'a> Running<'a> {
    fn new(prepared: &'a Prepared, seed: u64) -> Self {
        let world = &prepared.world;
        let mut random = SplitMix64(seed);
        let phase = random.unit();
        let split = random.unit() * 100.0;
        let common = Burst::new(60.0, 1.0, 5.0, 0.0, &mut random);
        let mut run = Self {
            prepared,
            random,
            analysis: Analysis::new(&world.settings, OLD, NEW),
            sides: [Vec::new(), Vec::new()],
            pending: VecDeque::new(),
            second_began: phase - 1.0,
            now: 0.0,
            next_arrival: 0.0,
            next_probe: 0.0,
            probes: 0,
            split,
            common,
            turns: [0, 0],
            probe_turn: 0,
            extended: false,
            step: 0,
        };
        for _ in 0..3 {
            run.join(0, -1000.0);
        }
        run.next_arrival = run.random.exponential(1.0 / world.requests_per_second);
        run
    }

    fn join(&mut self, side: usize, joined: f64) {
        let world = &self.prepared.world;
        let first = self.sides[side].is_empty();
        let slow = first
            && if side == 0 {
                world.slow_old
            } else {
                world.slow_new
            };
        let bursts = match world.bursts {
            Bursts::Each => true,
            Bursts::OneNew => first && side == 1,
            Bursts::OneOld => first && side == 0,
            Bursts::None | Bursts::All | Bursts::Errors => false,
        };
        let now = self.now;
        let burst = bursts.then(|| Burst::new(40.0, 0.5, 2.5, now, &mut self.random));
        let times = if slow { 3.0 } else { 1.0 };
        self.sides[side].push(Machine {
            joined,
            times,
            burst,
            in_flight: Vec::new(),
            soonest: f64::INFINITY,
        });
    }

    fn all_steps(&mut self) -> End {
        for (step, weight) in self.prepared.world.steps.clone().into_iter().enumerate() {
            let instances = if step == 0 {
                self.prepared.world.new_instances
            } else {
                3
            };
            while self.sides[1].len() < instances {
                self.join(1, self.now);
            }
            self.step = step;
            if step > 0 {
                self.analysis.begin_step();
            }
            self.probes = self.analysis.probes_wanted();
            self.next_probe = self.now;
            let began = self.now;
            match self.hold(began, f64::from(weight)) {
                Verdict::Pass | Verdict::Continue => {}
                Verdict::Fail(finding) => {
                    return End::Failed {
                        step,
                        seconds: self.now - began,
                        finding,
                    };
                }
                Verdict::Inconclusive { reason } => return End::Parked { step, reason },
            }
        }
        End::Passed
    }

    /// One step. An inconclusive end extends the hold once.
    fn hold(&mut self, began: f64, weight: f64) -> Verdict {
        let mut hold = Duration::from_secs(u64::from(self.prepared.world.hold_seconds));
        let mut extended = false;
        loop {
            let verdict_at = self.second_began + 1.0 + SEEN_AFTER_SECONDS;
            let probe_at = if self.probes > 0 {
                self.next_probe
            } else {
                f64::INFINITY
            };
            if self.next_arrival < verdict_at && self.next_arrival <= probe_at {
                self.now = self.next_arrival;
                let mean = 1.0 / self.prepared.world.requests_per_second;
                self.next_arrival += self.random.exponential(mean);
                self.arrive(weight);
            } else if probe_at < verdict_at {
                self.now = probe_at;
                self.next_probe += 1.0 / f64::from(self.probes);
                self.probe_turn += 1;
                for side in 0..2 {
                    let machine = self.probe_turn % self.sides[side].len();
                    self.answer(side, machine, true);
                }
            } else {
                self.now = verdict_at;
                let second = self.end_of_second();
                self.analysis.observe(&second);
                let quiet = self.probes == 0;
                self.probes = self.analysis.probes_wanted();
                if quiet {
                    self.next_probe = self.now;
                }
                let elapsed = Duration::from_secs_f64(self.now - began);
                match self.analysis.verdict(elapsed, hold) {
                    Verdict::Continue => {}
                    Verdict::Inconclusive { .. } if !extended => {
                        extended = true;
                        self.extended = true;
                        hold *= 2;
                    }
                    verdict @ (Verdict::Pass | Verdict::Fail(_) | Verdict::Inconclusive { .. }) => {
                        return verdict;
                    }
                }
            }
        }
    }

    fn end_of_second(&mut self) -> Observation {
        self.second_began += 1.0;
        let mut second = self.pending.pop_front().unwrap_or_default();
        second.millis = 1000;
        second
    }

    /// A client's request: smooth weighted between the releases, least connections within.
    fn arrive(&mut self, weight: f64) {
        self.split += weight;
        let side = usize::from(self.split >= 100.0);
        if side == 1 {
            self.split -= 100.0;
        }
        self.turns[side] += 1;
        let now = self.now;
        let machines = &mut self.sides[side];
        let mut index = self.turns[side] % machines.len();
        let mut best = (usize::MAX, 0);
        for _ in 0..machines.len() {
            let in_flight = machines[index].in_flight(now);
            if in_flight < best.0 {
                best = (in_flight, index);
            }
            index = if index + 1 == machines.len() {
                0
            } else {
                index + 1
            };
        }
        self.answer(side, best.1, false);
    }

    fn answer(&mut self, side: usize, index: usize, probe: bool) {
        let world = &self.prepared.world;
        let draw = self.random.next() as usize % TABLE;
        let raging = self.common.rages(self.now, &mut self.random);
        let machine = &mut self.sides[side][index];
        let mut times = machine.times;
        if machine
            .burst
            .as_mut()
            .is_some_and(|burst| burst.rages(self.now, &mut self.random))
        {
            times *= 8.0;
        }
        if raging && world.bursts == Bursts::All {
            times *= 5.0;
        }
        let worse = side == 1 && self.step >= world.worse_from;
        if side == 1 {
            if world.cold && self.now - machine.joined < 10.0 {
                times *= 2.0;
            }
            times *= match world.new_latency {
                Latency::Same => 1.0,
                Latency::Times(_) | Latency::Tail { .. } if !worse => 1.0,
                Latency::Times(times) => times,
                Latency::Tail { part, times } if draw as f64 >= (1.0 - part) * TABLE as f64 => {
                    times
                }
                Latency::Tail { .. } => 1.0,
            };
        }
        let seconds = f64::from(self.prepared.latencies[draw]) * times;
        let bucket = if times == 1.0 {
            usize::from(self.prepared.buckets[draw])
        } else {
            Histogram::bucket(Duration::from_secs_f64(seconds))
        };
        let errors = if worse {
            world.new_errors
        } else {
            world.errors
        };
        let errors = if raging && world.bursts == Bursts::Errors {
            errors.max(0.5)
        } else {
            errors
        };
        let failed = errors > 0.0 && self.random.unit() < errors;
        let ends = self.now + seconds;
        if !probe {
            machine.in_flight.push(ends);
            machine.soonest = machine.soonest.min(ends);
        }
        let sample = self.sample(ends, side, index, probe);
        sample.requests += 1;
        sample.errors += u64::from(failed);
        sample.latency.add(bucket, 1);
    }

    /// Where a request that ends then is counted.
    fn sample(&mut self, ends: f64, side: usize, index: usize, probe: bool) -> &mut Sample {
        let ahead = (ends - self.second_began).max(0.0) as usize;
        while self.pending.len() <= ahead {
            self.pending.push_back(Observation::default());
        }
        let second = &mut self.pending[ahead];
        let (machines, release) = if side == 0 {
            (&mut second.old, OLD)
        } else {
            (&mut second.new, NEW)
        };
        while machines.len() <= index {
            let instance = InstanceId::new("api", release, machines.len() as u64);
            let (live, probes) = (Sample::default(), Sample::default());
            machines.push(InstanceObservation {
                instance,
                live,
                probes,
            });
        }
        if probe {
            &mut machines[index].probes
        } else {
            &mut machines[index].live
        }
    }
}

/// A small generator with a fixed output (Steele, Lea and Flood, 2014).
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// From 0 up to, not including, 1.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.unit()).ln()
    }
}

/// The inverse of the normal distribution function, by bisection of a series for its integral: a table's worth
/// of calls needs no speed.
fn normal_quantile(probability: f64) -> f64 {
    let (mut low, mut high) = (-9.0_f64, 9.0_f64);
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        if normal_distribution(middle) < probability {
            low = middle
        } else {
            high = middle
        }
    }
    f64::midpoint(low, high)
}

/// Φ(x) = ½ + φ(x) (x + x³/3 + x⁵/(3·5) + …) (Marsaglia, 2004).
fn normal_distribution(x: f64) -> f64 {
    let (mut sum, mut term, mut odd) = (x, x, 1.0);
    while term.abs() > 1e-17 * sum.abs().max(1e-300) {
        odd += 2.0;
        term *= x * x / odd;
        sum += term;
    }
    0.5 + sum * (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(world: World, seeds: std::ops::Range<u64>) -> Vec<End> {
        let prepared = world.prepare();
        seeds.map(|seed| prepared.run(seed).end).collect()
    }

    fn failures(ends: &[End]) -> usize {
        ends.iter()
            .filter(|end| matches!(end, End::Failed { .. }))
            .count()
    }

    #[test]
    fn the_table_holds_the_normal_distribution() {
        for (probability, x) in [
            (0.5, 0.0),
            (0.95, 1.644_854),
            (0.99, 2.326_348),
            (0.001, -3.090_232),
        ] {
            assert!(
                (normal_quantile(probability) - x).abs() < 1e-5,
                "{probability}"
            );
        }
    }

    #[test]
    fn equal_seeds_give_equal_runs() {
        let prepared = World {
            hold_seconds: 20,
            ..World::equal(50.0, 0.05)
        }
        .prepare();
        assert_eq!(prepared.run(7).analysis, prepared.run(7).analysis);
        assert_ne!(prepared.run(7).analysis, prepared.run(8).analysis);
    }

    #[test]
    fn a_release_that_fails_half_is_aborted_within_ten_seconds() {
        let world = World {
            new_errors: 0.5,
            ..World::equal(20.0, 0.0)
        };
        let ends = ends(world, 0..100);
        let quick =
            |end: &&End| matches!(end, End::Failed { step: 0, seconds, .. } if *seconds <= 10.0);
        let quick = ends.iter().filter(quick).count();
        assert!(quick >= 98, "{quick} of 100");
    }

    #[test]
    fn equal_releases_are_let_through() {
        let plain = World {
            hold_seconds: 60,
            ..World::equal(50.0, 0.05)
        };
        for world in [
            World {
                bursts: Bursts::All,
                ..plain.clone()
            },
            World {
                bursts: Bursts::Each,
                ..plain.clone()
            },
            World {
                bursts: Bursts::Errors,
                ..plain.clone()
            },
            World {
                slow_new: true,
                sigma: 0.5,
                ..plain.clone()
            },
            World {
                slow_old: true,
                sigma: 1.0,
                ..plain.clone()
            },
            World {
                cold: true,
                bursts: Bursts::OneNew,
                ..plain.clone()
            },
        ] {
            let text = format!("{world:?}");
            let failed = failures(&ends(world, 0..40));
            assert!(failed <= 2, "{failed} of 40: {text}");
        }
    }

    #[test]
    fn worse_releases_are_caught_within_the_hold() {
        let plain = World {
            steps: vec![5],
            ..World::equal(200.0, 0.005)
        };
        for world in [
            World {
                new_errors: 0.03,
                ..plain.clone()
            },
            World {
                new_latency: Latency::Times(2.0),
                ..plain.clone()
            },
            World {
                new_latency: Latency::Tail {
                    part: 0.05,
                    times: 2.0,
                },
                ..plain.clone()
            },
        ] {
            let text = format!("{world:?}");
            let caught = failures(&ends(world, 0..20));
            assert!(caught >= 18, "{caught} of 20: {text}");
        }
    }
}
