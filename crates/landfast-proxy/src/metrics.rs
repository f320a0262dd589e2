//! `/metrics` in the Prometheus text format. Labels come from the table alone, never from requests, so their
//! number is bounded.

use std::fmt::Write;

use landfast_types::Histogram;

use crate::shared::{Counted, Shared};

const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
/// Every fourth bucket of the histogram: one bound per doubling.
const BUCKET_STEP: usize = 4;

/// A text under way, one metric at a time.
struct Page(String);

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP landfast_proxy_{name} {help}"));
        self.line(format_args!("# TYPE landfast_proxy_{name} {kind}"));
    }

    fn value(&mut self, name: &str, labels: &str, value: u64) {
        self.line(format_args!("landfast_proxy_{name}{{{labels}}} {value}"));
    }

    fn line(&mut self, text: std::fmt::Arguments<'_>) {
        self.0.write_fmt(text).expect("a String takes all");
        self.0.push('\n');
    }
}

/// Everything counted so far.
pub(crate) fn render(shared: &Shared) -> String {
    let Counted {
        backends,
        services,
        routes,
    } = shared.counted();
    let mut page = Page(String::with_capacity(4 << 10));
    page.head(
        "route_requests_total",
        "counter",
        "Requests by route and class of the answer.",
    );
    for route in &routes {
        for (class, count) in CLASSES.iter().zip(route.statuses.read()) {
            let labels = format!("route=\"{}\",class=\"{class}\"", escape(&route.name));
            page.value("route_requests_total", &labels, count);
        }
    }
    let stats: Vec<_> = services
        .iter()
        .map(|s| (s.key.to_string(), s.counters.read()))
        .collect();
    type Read = fn(&landfast_routing::snapshot::ServiceStats) -> u64;
    let of_services: [(&str, &str, Read); 10] = [
        ("requests_total", "Requests accepted for a service.", |s| {
            s.requests
        }),
        (
            "unavailable_total",
            "Answered 503: no backend was ready.",
            |s| s.unavailable,
        ),
        ("gateway_errors_total", "Answered 502 or 504.", |s| {
            s.gateway_errors
        }),
        ("refused_total", "Refused by a limit or a rule.", |s| {
            s.refused
        }),
        ("rate_limited_total", "Of these, by a rate limit.", |s| {
            s.rate_limited
        }),
        (
            "denied_total",
            "Of these, because their client may not come.",
            |s| s.denied,
        ),
        ("paused_total", "Held while the service was paused.", |s| {
            s.paused
        }),
        (
            "pause_rejected_total",
            "Held over a bound and answered 503.",
            |s| s.pause_rejected,
        ),
        (
            "maintenance_total",
            "Answered with the maintenance page.",
            |s| s.maintenance,
        ),
        ("client_gone_total", "Ended by the client.", |s| {
            s.client_gone
        }),
    ];
    for (name, help, read) in of_services {
        let name = format!("service_{name}");
        page.head(&name, "counter", help);
        for (key, stats) in &stats {
            page.value(&name, &format!("service=\"{key}\""), read(stats));
        }
    }
    render_backends(&mut page, &backends);
    page.head(
        "framing_refused_total",
        "counter",
        "Requests refused because their framing, target or host has two readings.",
    );
    page.line(format_args!(
        "landfast_proxy_framing_refused_total {}",
        shared.framing_refused.get()
    ));
    page.head(
        "access_log_dropped_total",
        "counter",
        "Access log lines dropped under pressure.",
    );
    page.line(format_args!(
        "landfast_proxy_access_log_dropped_total {}",
        shared.access_log.dropped.get()
    ));
    page.head(
        "connections_refused_total",
        "counter",
        "Connections of clients that had as many as they may.",
    );
    page.line(format_args!(
        "landfast_proxy_connections_refused_total {}",
        shared.peers.refused.get()
    ));
    let descriptors = &shared.descriptors;
    page.head(
        "no_room_total",
        "counter",
        "Connections refused because clients had all the descriptors they may have.",
    );
    page.line(format_args!(
        "landfast_proxy_no_room_total {}",
        descriptors.refused.get()
    ));
    page.head("clients", "gauge", "Connections of clients.");
    page.line(format_args!(
        "landfast_proxy_clients {}",
        descriptors.clients.taken()
    ));
    page.head(
        "clients_max",
        "gauge",
        "Connections of clients that the limit of open descriptors leaves room for.",
    );
    page.line(format_args!(
        "landfast_proxy_clients_max {}",
        descriptors.clients.max()
    ));
    page.0
}

fn render_backends(page: &mut Page, backends: &[std::sync::Arc<crate::backend::Backend>]) {
    let read: Vec<_> = backends
        .iter()
        .map(|backend| {
            let (service, release, id) = (&backend.service, backend.release, escape(&backend.id));
            let labels = format!("service=\"{service}\",release=\"{release}\",backend=\"{id}\"");
            (labels, backend.counters.read(), backend.status())
        })
        .collect();
    page.head(
        "backend_answers_total",
        "counter",
        "Answers by backend and class.",
    );
    for (labels, stats, _) in &read {
        for (class, count) in CLASSES.iter().zip(stats.statuses) {
            page.value(
                "backend_answers_total",
                &format!("{labels},class=\"{class}\""),
                count,
            );
        }
    }
    type Read = fn(&landfast_routing::snapshot::BackendStats) -> u64;
    let counters: [(&str, &str, Read); 8] = [
        ("failures_total", "Requests without a whole answer.", |s| {
            s.failures
        }),
        ("retried_total", "Of these, sent again elsewhere.", |s| {
            s.retried
        }),
        (
            "streams_opened_total",
            "WebSockets and event streams opened.",
            |s| s.streams_opened,
        ),
        (
            "streams_ended_total",
            "Streams ended by client or instance.",
            |s| s.streams_ended,
        ),
        (
            "streams_drained_total",
            "Streams closed by a drain, in order.",
            |s| s.streams_drained,
        ),
        (
            "streams_cut_total",
            "Streams ended in any other way.",
            |s| s.streams_cut,
        ),
        ("bytes_in_total", "Bytes of request bodies.", |s| s.bytes_in),
        ("bytes_out_total", "Bytes of answer bodies.", |s| {
            s.bytes_out
        }),
    ];
    for (name, help, value) in counters {
        let name = format!("backend_{name}");
        page.head(&name, "counter", help);
        for (labels, stats, _) in &read {
            page.value(&name, labels, value(stats));
        }
    }
    page.head("backend_requests_in_flight", "gauge", "Requests under way.");
    for (labels, _, status) in &read {
        page.value(
            "backend_requests_in_flight",
            labels,
            status.requests_in_flight,
        );
    }
    page.head("backend_streams_open", "gauge", "Open streams.");
    for (labels, _, status) in &read {
        page.value("backend_streams_open", labels, status.streams_open);
    }
    page.head(
        "backend_in_rotation",
        "gauge",
        "Whether new requests may go to the backend.",
    );
    for (labels, _, status) in &read {
        let is_in = status.healthy && !status.ejected && !status.draining;
        page.value("backend_in_rotation", labels, u64::from(is_in));
    }
    page.head(
        "backend_latency_seconds",
        "histogram",
        "From a request's head to its answer's head.",
    );
    for (labels, stats, _) in &read {
        render_latency(page, labels, &stats.latency);
    }
}

fn render_latency(page: &mut Page, labels: &str, latency: &Histogram) {
    let (mut seen, mut seconds) = (0, 0.0);
    for index in 0..Histogram::buckets() - 1 {
        let count = latency.counts().get(index).copied().unwrap_or(0);
        seen += count;
        let bound = Histogram::bound(index).expect("not the last").as_secs_f64();
        seconds += bound * count as f64;
        if index % BUCKET_STEP == 0 {
            let labels = format!("{labels},le=\"{bound:.6}\"");
            page.value("backend_latency_seconds_bucket", &labels, seen);
        }
    }
    let count = latency.count();
    page.value(
        "backend_latency_seconds_bucket",
        &format!("{labels},le=\"+Inf\""),
        count,
    );
    // An upper bound: each latency counts as the bound of its bucket.
    page.line(format_args!(
        "landfast_proxy_backend_latency_seconds_sum{{{labels}}} {seconds:.6}"
    ));
    page.value("backend_latency_seconds_count", labels, count);
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}
