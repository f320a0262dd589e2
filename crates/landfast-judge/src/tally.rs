//! What was counted, and the verdict it makes.

use std::{collections::BTreeMap, time::Duration};

use landfast_types::{Histogram, Timestamp};
use serde::{Deserialize, Serialize};

use crate::receipts::Receipts;

/// Releases counted apart; more are counted together.
const RELEASES_MAX: usize = 1_000;

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    Get,
    Post,
    Wait,
    Websocket,
    Events,
}

/// How something was lost or cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The connection was refused or not opened in time.
    Refused,
    /// The connection ended in order without an answer, or none came in time.
    NoAnswer,
    /// The connection broke.
    Reset,
    /// The answer ended before its announced end.
    ShortBody,
    /// A status the instance did not send: the answer has no `x-release`.
    NotFromApp,
    /// Later than the application's own time and what is allowed.
    Late,
    /// No HTTP, or no WebSocket.
    Malformed,
    /// An answer to something else.
    WrongBody,
    /// Answered, but not in the application's logs.
    ReceiptMissing,
    /// More than once in the application's logs.
    ReceiptDoubled,
    /// A number was left out, doubled or out of order.
    Gap,
    /// A WebSocket ended inside a message.
    CutInMessage,
    /// An event stream ended inside an event.
    CutInEvent,
    /// A stream ended without saying so.
    Unannounced,
    /// A WebSocket was closed with a code other than 1012.
    UnexpectedClose,
    /// A stream said nothing for too long, or did not echo.
    Silent,
    /// The judge's own side failed (no port, no descriptor): the run is invalid, nothing is counted as lost.
    JudgeFault,
}

/// One thing that was lost or cut.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LostSample {
    pub at: Timestamp,
    pub kind: Kind,
    pub reason: Reason,
    pub detail: String,
    /// `1.1` or `2`.
    pub http: String,
    /// Whether the connection had carried requests before.
    pub kept: bool,
    pub connection_age_ms: u64,
    pub status: Option<u16>,
    pub release: Option<String>,
    pub id: Option<String>,
    /// From the scheduled instant of the request to `at`.
    pub waited_ms: Option<u64>,
    /// How long the application worked on it, of an answer that came late.
    pub app_ms: Option<u64>,
}

/// Requests of one kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KindTotals {
    pub sent: u64,
    pub answered: u64,
    pub lost: u64,
    pub faults: u64,
    /// Answered 429 by the proxy, over the rate of the route.
    #[serde(default)]
    pub limited: u64,
}

/// Answers of one release, by its `x-release`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ReleaseTotals {
    pub answers: u64,
    pub statuses: BTreeMap<u16, u64>,
    /// 5xx a release that is broken on purpose sent.
    pub faults: u64,
    pub streams_opened: u64,
    pub latency: Latency,
}

/// Latencies from the scheduled instant to the end of the answer. Quantiles are bounds of buckets 19 % wide.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    pub histogram: Histogram,
    pub p50_ms: f64,
    pub p95_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
}

/// Whole microseconds: a number that short is read back as it was written.
fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

impl Latency {
    fn record(&mut self, latency: Duration) {
        self.histogram.record(latency);
        self.max_ms = self.max_ms.max(millis(latency));
    }

    fn settle(&mut self) {
        let of = |share| {
            let bound = self.histogram.quantile(share);
            // The bound of a bucket may lie above everything that is in it.
            bound.map_or(0.0, |time: Duration| millis(time).min(self.max_ms))
        };
        (self.p50_ms, self.p95_ms, self.p99_ms) = (of(0.5), of(0.95), of(0.99));
    }
}

/// What became of connections.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connections {
    pub opened: u64,
    pub reused: u64,
    /// Closed by the server while idle, before a byte of a request was written: no loss.
    pub closed_idle: u64,
    /// Closed by the server after it had announced so: no loss.
    pub closed_announced: u64,
    /// Ended by a reset instead of in order, while nothing was asked for.
    #[serde(default)]
    pub reset: u64,
}

/// What became of WebSockets and event streams.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Streams {
    pub opened: u64,
    pub open: u64,
    /// WebSockets closed with 1012 between two messages.
    pub moved: u64,
    /// Event streams ended between two events.
    pub ended: u64,
    pub cut: u64,
    pub messages: u64,
    pub events: u64,
    pub echoes: u64,
}

/// What a run showed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// The prefix of this run's ids.
    pub run: String,
    pub seconds: f64,
    pub rate: u32,
    /// False when the judge itself fell behind or failed: the run shows nothing.
    pub valid: bool,
    /// How often the judge woke too late, and the worst.
    pub judge_late: u64,
    pub judge_late_worst_ms: f64,
    /// Late answers the judge's own lateness overlaps: blamed on nobody.
    pub judge_late_answers: u64,
    pub judge_faults: u64,
    pub requests: u64,
    pub answered: u64,
    pub in_flight: u64,
    pub lost_total: u64,
    pub lost_by_reason: BTreeMap<Reason, u64>,
    /// Samples, the first ones.
    pub lost: Vec<LostSample>,
    pub faults: u64,
    /// Refused by a rate limit, where the run expects one.
    #[serde(default)]
    pub limited: u64,
    /// 5xx of the application that are no faults: answers, not losses.
    pub app_5xx: u64,
    pub kinds: BTreeMap<Kind, KindTotals>,
    pub releases: BTreeMap<String, ReleaseTotals>,
    pub latency: Latency,
    pub connections: Connections,
    pub streams_opened: u64,
    pub streams_cut: u64,
    pub streams: Streams,
    pub cut_by_reason: BTreeMap<Reason, u64>,
    pub cuts: Vec<LostSample>,
    /// `None` when no folder was given.
    pub receipts: Option<Receipts>,
}

impl Verdict {
    /// Nothing lost, nothing cut, by a judge that kept up.
    pub fn is_clean(&self) -> bool {
        self.valid && self.lost_total == 0 && self.streams_cut == 0
    }
}

/// The counters of a run that is on.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    verdict: Verdict,
    samples_max: usize,
}

impl Tally {
    pub(crate) fn new(run: String, rate: u32, samples_max: usize) -> Self {
        let verdict = Verdict {
            run,
            rate,
            valid: true,
            ..Verdict::default()
        };
        Self {
            verdict,
            samples_max,
        }
    }

    /// The verdict as it would be now.
    pub(crate) fn verdict(&self, seconds: f64) -> Verdict {
        let mut verdict = self.verdict.clone();
        verdict.seconds = (seconds * 1e6).round() / 1e6;
        verdict.in_flight = verdict.requests.saturating_sub(
            verdict.answered
                + verdict.limited
                + verdict.kinds.values().map(|k| k.lost).sum::<u64>(),
        );
        verdict.latency.settle();
        for release in verdict.releases.values_mut() {
            release.latency.settle();
        }
        verdict.streams_opened = verdict.streams.opened;
        verdict.streams_cut = verdict.streams.cut;
        verdict.valid =
            verdict.judge_late == 0 && verdict.judge_late_answers == 0 && verdict.judge_faults == 0;
        verdict
    }

    pub(crate) fn sent(&mut self, kind: Kind) {
        self.verdict.requests += 1;
        self.verdict.kinds.entry(kind).or_default().sent += 1;
    }

    /// An answer that is in order, whatever its status.
    pub(crate) fn answered(
        &mut self,
        kind: Kind,
        release: &str,
        status: u16,
        is_fault: bool,
        latency: Duration,
    ) {
        let verdict = &mut self.verdict;
        verdict.answered += 1;
        verdict.latency.record(latency);
        let of_kind = verdict.kinds.entry(kind).or_default();
        of_kind.answered += 1;
        of_kind.faults += u64::from(is_fault);
        verdict.faults += u64::from(is_fault);
        verdict.app_5xx += u64::from(status >= 500 && !is_fault);
        let of_release = self.release(release);
        of_release.answers += 1;
        of_release.faults += u64::from(is_fault);
        *of_release.statuses.entry(status).or_default() += 1;
        of_release.latency.record(latency);
    }

    /// Refused by a rate limit, with the time to come back at: neither answered nor lost.
    pub(crate) fn limited(&mut self, kind: Kind) {
        self.verdict.limited += 1;
        self.verdict.kinds.entry(kind).or_default().limited += 1;
    }

    /// A request that is lost. One of the judge's own failures costs the run its validity instead.
    pub(crate) fn lost(&mut self, sample: LostSample) {
        self.verdict.kinds.entry(sample.kind).or_default().lost += 1;
        self.lost_also(sample);
    }

    /// An answered request that turned out to be lost.
    pub(crate) fn lost_also(&mut self, sample: LostSample) {
        if sample.reason == Reason::JudgeFault {
            self.verdict.judge_faults += 1;
        } else {
            self.verdict.lost_total += 1;
        }
        *self
            .verdict
            .lost_by_reason
            .entry(sample.reason)
            .or_default() += 1;
        if self.verdict.lost.len() < self.samples_max {
            self.verdict.lost.push(sample);
        }
    }

    pub(crate) fn judge_was_late(&mut self, late: Duration) {
        self.verdict.judge_late += 1;
        self.verdict.judge_late_worst_ms = self.verdict.judge_late_worst_ms.max(millis(late));
    }

    pub(crate) fn judge_late_answer(&mut self) {
        self.verdict.judge_late_answers += 1;
    }

    pub(crate) fn judge_fault(&mut self) {
        self.verdict.judge_faults += 1;
    }

    pub(crate) fn connections(&mut self) -> &mut Connections {
        &mut self.verdict.connections
    }

    pub(crate) fn streams(&mut self) -> &mut Streams {
        &mut self.verdict.streams
    }

    pub(crate) fn stream_opened(&mut self, release: &str) {
        self.verdict.streams.opened += 1;
        self.verdict.streams.open += 1;
        self.release(release).streams_opened += 1;
    }

    /// A stream that ended in a way it must not.
    pub(crate) fn cut(&mut self, sample: LostSample) {
        self.verdict.streams.cut += 1;
        *self.verdict.cut_by_reason.entry(sample.reason).or_default() += 1;
        if self.verdict.cuts.len() < self.samples_max {
            self.verdict.cuts.push(sample);
        }
    }

    fn release(&mut self, release: &str) -> &mut ReleaseTotals {
        let known = self.verdict.releases.len() < RELEASES_MAX
            || self.verdict.releases.contains_key(release);
        self.verdict
            .releases
            .entry(if known { release } else { "others" }.to_owned())
            .or_default()
    }
}
