//! Who may come to a route, and how often: from the tree to the spec, with what these keys make of each other.

use std::time::Duration;

use crate::{
    code::Code,
    cursor::Cursor,
    diagnostic::Problem,
    leaf::Leaf,
    spec::{CountBySpec, QuotaSpec, RateSpec, RouteLimitsSpec},
};

/// Reads `[routes.NAME.limits]`.
pub(crate) fn limits(at: &Cursor<'_>) -> RouteLimitsSpec {
    let by = match at.leaf("by") {
        Some(Leaf::CountBy(by)) => by,
        _ => CountBySpec::Client,
    };
    let each = quota(at, "rate", "burst");
    let total = quota(at, "total", "total_burst");
    if !at.has("rate") {
        no_effect(at, "by", "write `rate` too");
    }
    let (rate, total) = match (each, by) {
        (Some(quota), CountBySpec::Route) => {
            no_effect(
                at,
                "total",
                "it is what by = \"route\" says; remove one of them",
            );
            (None, Some(quota))
        }
        (each, by) => (each.map(|quota| RateSpec { by, quota }), total),
    };
    RouteLimitsSpec {
        body: at.bytes_or_default("body"),
        rate,
        total,
    }
}

/// A rate with its burst: without one, what comes in the rate's own unit of time may come at once.
fn quota(at: &Cursor<'_>, rate: &str, burst: &str) -> Option<QuotaSpec> {
    if !at.has(rate) {
        no_effect(at, burst, &format!("write `{rate}` too"));
    }
    let burst = at.optional_count(burst);
    let Some(Leaf::Rate { requests, per_ms }) = at.leaf(rate) else {
        return None;
    };
    Some(QuotaSpec {
        requests,
        per: Duration::from_millis(per_ms),
        burst: burst.unwrap_or(requests),
    })
}

fn no_effect(at: &Cursor<'_>, key: &str, help: &str) {
    if at.has(key) {
        let message = format!("`{key}` has no effect here");
        let problem = Problem::new(Code::NoEffect, at.key_span(key), message);
        at.report(problem.help(help));
    }
}
