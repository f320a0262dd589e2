//! The proxy's counters as the API shows them.

use landfast_api::{At, InstanceTraffic, ServiceTraffic, Traffic};
use landfast_routing::snapshot::ProxyStats;

pub(crate) fn traffic(stats: &ProxyStats) -> Traffic {
    let instances = stats.backends.iter().filter_map(|(id, counters)| {
        let mut parts = id.splitn(3, '/');
        Some(InstanceTraffic {
            app: parts.next()?.to_owned(),
            environment: parts.next()?.to_owned(),
            instance: parts.next()?.to_owned(),
            statuses: counters.statuses.to_vec(),
            failures: counters.failures,
            broken_off: counters.broken_off,
            in_flight: counters.in_flight,
            latency_counts: counters.latency.counts().to_vec(),
            streams_opened: counters.streams_opened,
            bytes_in: counters.bytes_in,
            bytes_out: counters.bytes_out,
        })
    });
    let services = stats.services.iter().map(|(key, counters)| ServiceTraffic {
        app: key.scope.app.to_string(),
        environment: key.scope.environment.to_string(),
        service: key.service.to_string(),
        requests: counters.requests,
        failed: counters.unavailable + counters.gateway_errors + counters.pause_rejected,
        refused: counters.refused,
    });
    Traffic {
        boot: stats.boot.clone(),
        at: At(stats.at),
        instances: instances.collect(),
        services: services.collect(),
    }
}
