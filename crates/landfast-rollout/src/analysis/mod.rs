//! The canary's judgement: is the new release worse than the old one *in the same seconds*?
//!
//! An [`Analysis`] is fed one [`Observation`] a second and can be asked for a [`Verdict`] after each. It fails a
//! release as soon as the evidence suffices, passes it only at the end of the hold, and says that it is
//! inconclusive where too little was seen; that is never a pass. Looking every second costs nothing: the
//! evidence is a test martingale, so the stated false-abort rate covers all looks, metrics and steps together.
//!
//! The metrics: errors (5xx and requests without a whole answer), and slow answers, by the old release's own 95th
//! and 99th percentile of the last minutes. Under equal releases an error or a slow answer falls on the new side
//! with the odds of its traffic in that second; bursts that hit both sides change nothing in that. Slow answers
//! must show in a majority of the new instances, for one slow machine is no slow release; an instance's first
//! seconds (cold caches) do not count for latency.
//!
//! In the last step the old side stands by without live traffic. There both sides are compared by probes, and the
//! new side's live traffic with the old side's last minutes of it, with twice the tolerance and less weight per
//! second: time has passed, and the release need not be what changed.
//!
//! Each step begins with fresh evidence, since a release may hold at 5 % and fail at 25 %; what is known of the old
//! release, and how long each instance has been warm, is carried over. The maths, the budget and the measured
//! rates: `docs/decisions/0004-canary-analysis.md`.
//!
//! This module knows no clock and no random source, and holds a few kilobytes however long it watches.

mod evidence;
mod latency;
mod observation;
mod reference;
#[cfg(test)]
mod tests;

use std::{fmt, time::Duration};

use landfast_types::ReleaseId;
use serde::{Deserialize, Serialize};

pub use self::observation::{InstanceObservation, Observation, Sample};
use self::{
    evidence::{Against, COMPONENTS, ERRORS, Evidence, Share, cap, sum, temper},
    latency::Latencies,
    observation::{Stratum, Tally},
    reference::Reference,
};

/// Errors get this share of the false-abort budget in the first step, a quarter of it in each further one: with a
/// twentieth of the traffic two errors before any old one must be enough to abort a release that fails half.
const ERRORS_BUDGET: Budget = Budget {
    first: 0.55,
    further: 0.25,
};

/// What one second may add: less than two errors bring in a 5 % step, so that no single second convicts.
const ERRORS_NATS_MAX: f64 = 3.1;
/// The same where the old side is known from earlier only: an outage of a dependency takes long to convict.
const ERRORS_BEFORE_NATS_MAX: f64 = 1.5;
/// One second is never more than so many requests.
const ERRORS_REQUESTS_MAX: u64 = 50;
/// The old side has "no traffic" in an interval if it gets less than one request in so many.
const OLD_SHARE_MIN: u64 = 50;
/// Evidence worth more time at the end of a hold: 50 to 1, where about 250 to 1 aborts.
const SUSPICION: f64 = 50.0;

/// What an analysis is asked for. Rates are parts per million, so that they are exact in any journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AnalysisSettings {
    /// How often equal releases may be aborted, over all steps, metrics and looks of one rollout.
    pub false_abort_ppm: u32,
    /// Fewer requests on a side than this, live and probes together, are too little to pass. After 30 without an
    /// error an error rate above 10 % is excluded with 95 % confidence.
    pub requests_min: u64,
    /// An error rate that exceeds the old one by less than this never aborts.
    pub error_floor_ppm: u32,
    /// Nor does one that is less than this much of the old one, in percent.
    pub error_ratio_percent: u32,
    /// How long an instance's latencies do not count after its first request.
    pub warm_up_ms: u32,
    /// Probes per second and side where traffic is thin; zero never probes.
    pub probes_per_second: u32,
    /// Traffic is thin when a side answers fewer live requests per second.
    pub probes_below_per_second: u32,
}

impl Default for AnalysisSettings {
    fn default() -> Self {
        Self {
            false_abort_ppm: 7_500,
            requests_min: 30,
            error_floor_ppm: 1_000,
            error_ratio_percent: 120,
            warm_up_ms: 15_000,
            probes_per_second: 2,
            probes_below_per_second: 5,
        }
    }
}

impl AnalysisSettings {
    /// The settings for each of several services that are judged side by side: they share the budget.
    #[must_use]
    pub fn shared_among(mut self, services: usize) -> Self {
        let services = u32::try_from(services.max(1)).unwrap_or(u32::MAX);
        self.false_abort_ppm = (self.false_abort_ppm / services).max(1);
        self
    }
}

/// How a metric's part of the false-abort budget is spent over the steps.
#[derive(Debug)]
struct Budget {
    first: f64,
    further: f64,
}

impl Budget {
    /// How many nats of evidence abort in the given step.
    fn nats(&self, settings: &AnalysisSettings, step: u32) -> f64 {
        let total = f64::from(settings.false_abort_ppm) / 1e6;
        let steps = f64::from(step.min(100));
        -(total.ln() + self.first.ln() + steps * self.further.ln())
    }
}

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Metric {
    Errors,
    LatencyP95,
    LatencyP99,
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Errors => "error rate",
            Self::LatencyP95 => "P95 latency",
            Self::LatencyP99 => "P99 latency",
        })
    }
}

/// Why a release failed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    pub metric: Metric,
    /// What was measured of each release: a share from 0 to 1, or seconds.
    pub old: f64,
    pub new: f64,
    /// For the operator.
    pub sentence: String,
}

/// What the analysis says now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Verdict {
    /// Nothing against the release so far, and the hold is not over.
    Continue,
    /// The hold is over, enough was seen, and nothing speaks against the release.
    Pass,
    /// The release is worse.
    Fail(Finding),
    /// The hold is over and it cannot be said.
    Inconclusive { reason: String },
}

/// The running comparison of two releases through the steps of one canary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Analysis {
    settings: AnalysisSettings,
    old_release: ReleaseId,
    new_release: ReleaseId,
    step: u32,
    /// Live requests per 1,000 seconds of each side, smoothed.
    old_rate: u64,
    new_rate: u64,
    live: Strand,
    probes: Strand,
    errors: Evidence,
    latencies: Latencies,
}

/// One kind of requests.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Strand {
    /// The old side of the last minutes, over all steps.
    reference: Reference,
    /// Both sides in this step.
    old: Tally,
    new: Tally,
}

impl Strand {
    /// What the new side is compared with: the old side in the same seconds or, where it had no traffic, before.
    fn compared(&self) -> (Tally, &'static str) {
        if self.old.requests * OLD_SHARE_MIN < self.new.requests {
            (self.reference.tally(), "before")
        } else {
            (self.old, "in the same seconds")
        }
    }
}

impl Analysis {
    /// Starts at the first step. Observations without a new side may be fed before it: they teach what the old
    /// release is like.
    pub fn new(settings: &AnalysisSettings, old: ReleaseId, new: ReleaseId) -> Self {
        Self {
            settings: settings.clone(),
            old_release: old,
            new_release: new,
            step: 0,
            old_rate: 0,
            new_rate: 0,
            live: Strand::default(),
            probes: Strand::default(),
            errors: Evidence::default(),
            latencies: Latencies::default(),
        }
    }

    /// Goes on to the next step, with fresh evidence and the next part of the budget.
    pub fn begin_step(&mut self) {
        self.step = self.step.saturating_add(1);
        self.old_rate = 0;
        self.new_rate = 0;
        self.errors = Evidence::default();
        self.latencies.begin_step();
        for strand in [&mut self.live, &mut self.probes] {
            strand.old = Tally::default();
            strand.new = Tally::default();
        }
    }

    /// Takes in what one interval brought.
    pub fn observe(&mut self, observation: &Observation) {
        self.observe_rates(observation);
        self.observe_errors(observation);
        let references = [&self.live.reference, &self.probes.reference];
        self.latencies
            .observe(observation, references, self.settings.warm_up_ms);
        for stratum in Stratum::ALL {
            let strand = self.strand_mut(stratum);
            strand.old = strand.old.plus(Tally::of(&observation.old, stratum));
            strand.new = strand.new.plus(Tally::of(&observation.new, stratum));
            // Last, so that no interval is measured by a mark it helped to set.
            strand.reference.observe(&observation.old, stratum);
        }
    }

    /// What can be said after `elapsed_in_step` of a step that is held for `hold`.
    pub fn verdict(&self, elapsed_in_step: Duration, hold: Duration) -> Verdict {
        if let Some(finding) = self.finding() {
            return Verdict::Fail(finding);
        }
        if elapsed_in_step < hold {
            return Verdict::Continue;
        }
        match self.doubt() {
            Some(reason) => Verdict::Inconclusive { reason },
            None => Verdict::Pass,
        }
    }

    /// How many probes per second each side should get now. Both get them, so that they compare.
    pub fn probes_wanted(&self) -> u32 {
        let thinner = self.old_rate.min(self.new_rate);
        let enough = u64::from(self.settings.probes_below_per_second) * 1000;
        if thinner < enough {
            self.settings.probes_per_second
        } else {
            0
        }
    }

    /// What a pass of this step would not cover, for the operator. Empty when everything was judged.
    pub fn unjudged(&self) -> Vec<String> {
        let mut notes = Vec::new();
        match self.latencies.judged() {
            0 => notes.push(format!(
                "latency of release {} was not judged: no instance was warm ({} s) with enough answers",
                self.new_release,
                self.settings.warm_up_ms / 1000
            )),
            1 => notes.push(format!(
                "latency of release {} rests on one instance: only a factor of 4 would have failed it",
                self.new_release
            )),
            _ => {}
        }
        if self.errors.nats(&ERRORS) >= self.errors_nats() && self.worst_errors().is_none() {
            notes.push(format!(
                "release {} has more errors than release {}, but by less than {} %",
                self.new_release,
                self.old_release,
                f64::from(self.settings.error_floor_ppm) / 1e4
            ));
        }
        notes
    }

    fn observe_rates(&mut self, observation: &Observation) {
        let millis = u64::from(observation.millis.max(1));
        let smooth = |rate: &mut u64, tally: Tally| {
            let now = tally.requests.saturating_mul(1_000_000) / millis;
            *rate = (*rate * 3).saturating_add(now) / 4;
        };
        smooth(
            &mut self.old_rate,
            Tally::of(&observation.old, Stratum::Live),
        );
        smooth(
            &mut self.new_rate,
            Tally::of(&observation.new, Stratum::Live),
        );
    }

    fn observe_errors(&mut self, observation: &Observation) {
        let mut together = [0.0; COMPONENTS];
        let mut before = [0.0; COMPONENTS];
        for stratum in Stratum::ALL {
            let old = Tally::of(&observation.old, stratum);
            let new = Tally::of(&observation.new, stratum);
            if old.requests.saturating_mul(OLD_SHARE_MIN) < new.requests {
                before = sum(before, self.errors_against_before(new, stratum));
                continue;
            }
            let share = Share {
                new_events: new.errors,
                old_events: old.errors,
                new_exposure: new.requests,
                old_exposure: old.requests,
                tolerated: 1.0,
            };
            let increments = share.increments(&ERRORS);
            together = sum(
                together,
                temper(increments, new.requests, ERRORS_REQUESTS_MAX),
            );
        }
        if Tally::of(&observation.old, Stratum::Probes).errors > 0 {
            // The old release fails too: whatever it is, it is not the new release alone.
            before = cap(before, 0.0);
        }
        let together = cap(together, ERRORS_NATS_MAX);
        self.errors
            .add(sum(together, cap(before, ERRORS_BEFORE_NATS_MAX)));
    }

    /// Live errors while the old side gets no traffic: up to twice its rate of before, and 1 % more, is equal.
    fn errors_against_before(&self, new: Tally, stratum: Stratum) -> [f64; COMPONENTS] {
        let before = self.strand(stratum).reference.tally();
        if before.requests < self.settings.requests_min {
            return [0.0; COMPONENTS];
        }
        let against = Against {
            events: new.errors,
            exposure: new.requests,
            rate: before.rate() * 2.0 + 0.01,
        };
        temper(
            against.increments(&ERRORS),
            new.requests,
            ERRORS_REQUESTS_MAX,
        )
    }

    fn finding(&self) -> Option<Finding> {
        if self.errors.nats(&ERRORS) >= self.errors_nats()
            && let Some(finding) = self.worst_errors()
        {
            return Some(finding);
        }
        let latency = self
            .latencies
            .finding(&self.settings, self.step, &self.live.reference)?;
        latency.convicts.then(|| self.worded(&latency))
    }

    /// Why a pass would say more than is known.
    fn doubt(&self) -> Option<String> {
        let seen = |live: Tally, probes: Tally| live.plus(probes).requests;
        let new = seen(self.live.new, self.probes.new);
        let old = seen(self.live.compared().0, self.probes.old);
        for (release, requests) in [(self.new_release, new), (self.old_release, old)] {
            if requests < self.settings.requests_min {
                return Some(format!(
                    "release {release} answered {requests} requests; {} are the least to judge by",
                    self.settings.requests_min
                ));
            }
        }
        if self.errors.nats(&ERRORS) >= SUSPICION.ln()
            && let Some(finding) = self.worst_errors()
        {
            return Some(format!(
                "{}: suspicious, but it may be chance",
                finding.sentence
            ));
        }
        let latency = self
            .latencies
            .finding(&self.settings, self.step, &self.live.reference)?;
        let why = if latency.instances == 1 {
            "one instance cannot tell a slow release from a slow machine"
        } else {
            "suspicious, but it may be chance"
        };
        Some(format!("{}: {why}", self.worded(&latency).sentence))
    }

    fn errors_nats(&self) -> f64 {
        ERRORS_BUDGET.nats(&self.settings, self.step)
    }

    /// The kind of requests whose errors rose most, if by enough to matter.
    fn worst_errors(&self) -> Option<Finding> {
        let floor = f64::from(self.settings.error_floor_ppm) / 1e6;
        let ratio = f64::from(self.settings.error_ratio_percent) / 100.0;
        let mut worst: Option<(f64, Finding)> = None;
        for stratum in Stratum::ALL {
            let strand = self.strand(stratum);
            let (old, when) = strand.compared();
            let excess = strand.new.rate() - old.rate();
            if excess < floor || strand.new.rate() < old.rate() * ratio {
                continue;
            }
            let requests = match stratum {
                Stratum::Live => "requests",
                Stratum::Probes => "probes",
            };
            let sentence = format!(
                "5xx of release {}: {:.1} % of {} {requests}; release {} {when}: {:.1} % of {}",
                self.new_release,
                strand.new.rate() * 100.0,
                strand.new.requests,
                self.old_release,
                old.rate() * 100.0,
                old.requests,
            );
            let metric = Metric::Errors;
            let finding = Finding {
                metric,
                old: old.rate(),
                new: strand.new.rate(),
                sentence,
            };
            if worst.as_ref().is_none_or(|(most, _)| excess > *most) {
                worst = Some((excess, finding));
            }
        }
        worst.map(|(_, finding)| finding)
    }

    fn worded(&self, latency: &latency::Slower) -> Finding {
        let name = match latency.metric {
            Metric::LatencyP99 => "P99",
            Metric::LatencyP95 | Metric::Errors => "P95",
        };
        let sentence = format!(
            "{name} of release {}: {} over {} answers of {} instances; release {} {}: {}",
            self.new_release,
            Millis(latency.new),
            latency.answers,
            latency.instances,
            self.old_release,
            latency.when,
            Millis(latency.old),
        );
        let (old, new) = (latency.old.as_secs_f64(), latency.new.as_secs_f64());
        Finding {
            metric: latency.metric,
            old,
            new,
            sentence,
        }
    }

    fn strand(&self, stratum: Stratum) -> &Strand {
        match stratum {
            Stratum::Live => &self.live,
            Stratum::Probes => &self.probes,
        }
    }

    fn strand_mut(&mut self, stratum: Stratum) -> &mut Strand {
        match stratum {
            Stratum::Live => &mut self.live,
            Stratum::Probes => &mut self.probes,
        }
    }
}

/// A latency with about three digits.
struct Millis(Duration);

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_secs_f64() * 1e3;
        if millis < 10.0 {
            write!(f, "{millis:.1} ms")
        } else {
            write!(f, "{millis:.0} ms")
        }
    }
}
