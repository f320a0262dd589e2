//! From what a route's manifest says of who may come to what the proxy is told.

use landfast_routing::admission::{Admission, CountBy, Quota, Rate};
use landfast_spec::{CountBySpec, QuotaSpec, RouteSpec};

pub(crate) fn admission(route: &RouteSpec) -> Admission {
    let rate = route.limits.rate.as_ref();
    Admission {
        allow: route.allow.clone(),
        rate: rate.and_then(|rate| {
            let by = match &rate.by {
                CountBySpec::Client => CountBy::Client,
                // The manifest's reader makes a total of it.
                CountBySpec::Route => return None,
                CountBySpec::Header { name } => CountBy::Header { name: name.clone() },
                CountBySpec::Cookie { name } => CountBy::Cookie { name: name.clone() },
            };
            let quota = quota(rate.quota);
            Some(Rate { by, quota })
        }),
        total: route.limits.total.map(quota),
    }
}

fn quota(quota: QuotaSpec) -> Quota {
    Quota {
        requests: quota.requests,
        per_ms: quota.per.as_millis() as u64,
        burst: quota.burst,
    }
}
