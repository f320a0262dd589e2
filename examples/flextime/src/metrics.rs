//! What the service measures, and its Prometheus text.
//!
//! The number of label values is bounded: constraints beyond the bound are counted together as `other`.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

/// Upper bounds of the buckets of evaluations, in seconds.
const EVALUATION_BUCKETS: [f64; 7] = [0.01, 0.05, 0.1, 0.5, 1.0, 2.0, 5.0];
/// Upper bounds of the buckets of requests, in seconds.
const REQUEST_BUCKETS: [f64; 9] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0];
const CONSTRAINTS_MAX: usize = 500;

/// All measurements of a process.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    inner: Mutex<Inner>,
    pub requests_in_flight: AtomicI64,
    pub streams_open: AtomicI64,
    pub receipts: AtomicU64,
    pub faults_injected: AtomicU64,
    pub history_dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct Inner {
    evaluations: BTreeMap<String, Evaluations>,
    requests: BTreeMap<(&'static str, String, u16), u64>,
    request_seconds: BTreeMap<String, Buckets<9>>,
}

/// What one constraint cost.
#[derive(Debug, Clone, Default)]
pub(crate) struct Evaluations {
    pub results: BTreeMap<&'static str, u64>,
    pub seconds: Buckets<7>,
}

/// A histogram with fixed bounds.
#[derive(Debug, Clone)]
pub(crate) struct Buckets<const N: usize> {
    counts: [u64; N],
    pub count: u64,
    pub sum: f64,
}

impl<const N: usize> Default for Buckets<N> {
    fn default() -> Self {
        Self {
            counts: [0; N],
            count: 0,
            sum: 0.0,
        }
    }
}

impl<const N: usize> Buckets<N> {
    fn record(&mut self, bounds: &[f64; N], time: Duration) {
        let seconds = time.as_secs_f64();
        self.count += 1;
        self.sum += seconds;
        if let Some(index) = bounds.iter().position(|bound| seconds <= *bound) {
            self.counts[index] += 1;
        }
    }

    fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.sum += other.sum;
        for (own, more) in self.counts.iter_mut().zip(other.counts) {
            *own += more;
        }
    }

    /// The bound under which a share of the values lies; `None` when it lies above the last, or there is none.
    fn quantile(&self, bounds: &[f64; N], share: f64) -> Option<f64> {
        let rank = (self.count as f64 * share).ceil().max(1.0) as u64;
        let mut seen = 0;
        bounds.iter().zip(self.counts).find_map(|(bound, count)| {
            seen += count;
            (self.count > 0 && seen >= rank).then_some(*bound)
        })
    }

    fn write(&self, out: &mut String, name: &str, labels: &str, bounds: &[f64; N]) {
        let mut seen = 0;
        for (bound, count) in bounds.iter().zip(self.counts) {
            seen += count;
            put(
                out,
                format_args!("{name}_bucket{{{labels},le=\"{bound}\"}} {seen}"),
            );
        }
        put(
            out,
            format_args!("{name}_bucket{{{labels},le=\"+Inf\"}} {}", self.count),
        );
        put(out, format_args!("{name}_sum{{{labels}}} {}", self.sum));
        put(out, format_args!("{name}_count{{{labels}}} {}", self.count));
    }
}

/// Evaluations of all constraints together.
#[derive(Debug, Clone, Default)]
pub(crate) struct Totals {
    pub results: BTreeMap<&'static str, u64>,
    pub seconds: Buckets<7>,
}

impl Totals {
    pub(crate) fn quantile_seconds(&self, share: f64) -> Option<f64> {
        self.seconds.quantile(&EVALUATION_BUCKETS, share)
    }
}

impl Metrics {
    pub(crate) fn evaluated(&self, constraint_id: &str, result: &'static str, time: Duration) {
        let mut inner = self.lock();
        let known = inner.evaluations.len() < CONSTRAINTS_MAX
            || inner.evaluations.contains_key(constraint_id);
        let id = if known { constraint_id } else { "other" };
        let of_constraint = inner.evaluations.entry(id.to_owned()).or_default();
        *of_constraint.results.entry(result).or_default() += 1;
        of_constraint.seconds.record(&EVALUATION_BUCKETS, time);
    }

    pub(crate) fn answered(&self, method: &'static str, route: &str, status: u16, time: Duration) {
        let mut inner = self.lock();
        *inner
            .requests
            .entry((method, route.to_owned(), status))
            .or_default() += 1;
        inner
            .request_seconds
            .entry(route.to_owned())
            .or_default()
            .record(&REQUEST_BUCKETS, time);
    }

    pub(crate) fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for evaluations in self.lock().evaluations.values() {
            totals.seconds.merge(&evaluations.seconds);
            for (result, count) in &evaluations.results {
                *totals.results.entry(result).or_default() += count;
            }
        }
        totals
    }

    /// The constraints evaluated most.
    pub(crate) fn busiest(&self, count: usize) -> Vec<(String, Evaluations)> {
        let inner = self.lock();
        let mut all: Vec<_> = inner
            .evaluations
            .iter()
            .map(|(id, of)| (id.clone(), of.clone()))
            .collect();
        all.sort_by_key(|(_, of)| std::cmp::Reverse(of.seconds.count));
        all.truncate(count);
        all
    }

    /// The text Prometheus reads. `gauges` are values others own: name, help, value.
    pub(crate) fn text(&self, version: &str, gauges: &[(&str, &str, f64)]) -> String {
        let mut out = String::with_capacity(8_192);
        let inner = self.lock();
        head(
            &mut out,
            "constraint_evaluations_total",
            "counter",
            "Total number of constraint evaluations",
        );
        for (id, of) in &inner.evaluations {
            for (result, count) in &of.results {
                let id = escaped(id);
                put(
                    &mut out,
                    format_args!(
                        "constraint_evaluations_total{{constraint_id=\"{id}\",result=\"{result}\"}} {count}"
                    ),
                );
            }
        }
        head(
            &mut out,
            "constraint_evaluation_duration_seconds",
            "histogram",
            "Duration of constraint evaluations",
        );
        for (id, of) in &inner.evaluations {
            let labels = format!("constraint_id=\"{}\"", escaped(id));
            of.seconds.write(
                &mut out,
                "constraint_evaluation_duration_seconds",
                &labels,
                &EVALUATION_BUCKETS,
            );
        }
        head(
            &mut out,
            "http_requests_total",
            "counter",
            "Requests answered",
        );
        for ((method, route, status), count) in &inner.requests {
            put(
                &mut out,
                format_args!(
                    "http_requests_total{{method=\"{method}\",route=\"{route}\",status=\"{status}\"}} {count}"
                ),
            );
        }
        head(
            &mut out,
            "http_request_duration_seconds",
            "histogram",
            "Time from the head of a request to the head of its answer",
        );
        for (route, seconds) in &inner.request_seconds {
            seconds.write(
                &mut out,
                "http_request_duration_seconds",
                &format!("route=\"{route}\""),
                &REQUEST_BUCKETS,
            );
        }
        drop(inner);
        for (name, counter, help) in [
            (
                "rehearsal_receipts_total",
                &self.receipts,
                "Receipts written",
            ),
            (
                "faults_injected_total",
                &self.faults_injected,
                "Requests failed on purpose",
            ),
            (
                "evaluation_history_dropped_total",
                &self.history_dropped,
                "Evaluations not recorded because the queue was full",
            ),
        ] {
            head(&mut out, name, "counter", help);
            put(
                &mut out,
                format_args!("{name} {}", counter.load(Ordering::Relaxed)),
            );
        }
        for (name, gauge, help) in [
            (
                "http_requests_in_flight",
                &self.requests_in_flight,
                "Requests being answered",
            ),
            (
                "streams_open",
                &self.streams_open,
                "WebSockets and event streams",
            ),
        ] {
            head(&mut out, name, "gauge", help);
            put(
                &mut out,
                format_args!("{name} {}", gauge.load(Ordering::Relaxed)),
            );
        }
        for (name, help, value) in gauges {
            head(&mut out, name, "gauge", help);
            put(&mut out, format_args!("{name} {value}"));
        }
        head(
            &mut out,
            "flextime_build_info",
            "gauge",
            "The release that runs",
        );
        put(
            &mut out,
            format_args!("flextime_build_info{{version=\"{}\"}} 1", escaped(version)),
        );
        out
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    put(
        out,
        format_args!("# HELP {name} {help}\n# TYPE {name} {kind}"),
    );
}

fn put(out: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(out, "{line}").expect("a String takes everything");
}

fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_the_names_and_buckets_of_the_document() {
        let metrics = Metrics::default();
        metrics.evaluated("c\"1", "satisfied", Duration::from_millis(30));
        metrics.evaluated("c\"1", "violated", Duration::from_secs(9));
        let text = metrics.text(
            "7",
            &[("active_workers", "Number of active worker threads", 3.0)],
        );
        for line in [
            "constraint_evaluations_total{constraint_id=\"c\\\"1\",result=\"satisfied\"} 1",
            "constraint_evaluation_duration_seconds_bucket{constraint_id=\"c\\\"1\",le=\"0.01\"} 0",
            "constraint_evaluation_duration_seconds_bucket{constraint_id=\"c\\\"1\",le=\"0.05\"} 1",
            "constraint_evaluation_duration_seconds_bucket{constraint_id=\"c\\\"1\",le=\"5\"} 1",
            "constraint_evaluation_duration_seconds_bucket{constraint_id=\"c\\\"1\",le=\"+Inf\"} 2",
            "active_workers 3",
            "flextime_build_info{version=\"7\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }

    #[test]
    fn the_number_of_labels_is_bounded() {
        let metrics = Metrics::default();
        for number in 0..2_000 {
            metrics.evaluated(&format!("c{number}"), "satisfied", Duration::ZERO);
        }
        assert!(metrics.lock().evaluations.len() <= CONSTRAINTS_MAX + 1);
        assert_eq!(metrics.totals().seconds.count, 2_000);
    }
}
