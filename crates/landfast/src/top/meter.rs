//! From counters to rates. Pure: two readings in, what happened between them out.

use std::collections::{BTreeMap, VecDeque};

use landfast_api::{EnvironmentStatus, InstanceTraffic, Traffic};
use landfast_types::Histogram;
use serde::Serialize;

/// How many readings of the past are drawn.
const PAST: usize = 120;

/// What an environment does, by release and by instance.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Reading {
    pub(crate) app: String,
    pub(crate) environment: String,
    /// The time between the two readings; zero for the first, which has no rates.
    pub(crate) interval_ms: u64,
    pub(crate) groups: Vec<GroupRates>,
    pub(crate) instances: BTreeMap<String, Rates>,
    /// Requests per second of the whole environment, the oldest first.
    pub(crate) past: Vec<u64>,
}

/// The instances of one release of a service together.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct GroupRates {
    pub(crate) service: String,
    pub(crate) release: u64,
    pub(crate) role: String,
    pub(crate) weight_percent: f64,
    pub(crate) ready: u32,
    pub(crate) wanted: u32,
    pub(crate) rates: Rates,
}

/// What happened between two readings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Rates {
    pub(crate) requests_per_second: f64,
    /// 5xx and requests without a whole answer, of the requests.
    pub(crate) errors_percent: f64,
    pub(crate) p50_ms: Option<f64>,
    pub(crate) p95_ms: Option<f64>,
    pub(crate) p99_ms: Option<f64>,
    /// Requests and streams at this moment.
    pub(crate) in_flight: u64,
}

/// Remembers the last reading.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    before: Option<Traffic>,
    past: VecDeque<u64>,
}

#[derive(Debug, Clone, Default)]
struct Sum {
    requests: u64,
    errors: u64,
    latency: Histogram,
    in_flight: u64,
}

impl Meter {
    /// What happened since the last call. The first one, and one after the counters began again, has no rates.
    pub(crate) fn take(&mut self, status: &EnvironmentStatus, traffic: &Traffic) -> Reading {
        let before = self
            .before
            .take()
            .filter(|before| before.boot == traffic.boot);
        let micros = before.as_ref().map_or(0, |before| {
            traffic.at.0.as_micros() - before.at.0.as_micros()
        });
        let interval_ms = u64::try_from(micros / 1_000).unwrap_or(0);
        let sums = sums(status, traffic, before.as_ref());
        self.before = Some(traffic.clone());
        let mut whole = Sum::default();
        let mut groups = Vec::new();
        for service in &status.services {
            for group in &service.groups {
                let mut sum = Sum::default();
                for instance in &group.instances {
                    if let Some(one) = sums.get(instance.id.as_str()) {
                        sum.add(one);
                    }
                }
                whole.add(&sum);
                groups.push(GroupRates {
                    service: service.service.clone(),
                    release: group.release,
                    role: group.role.as_str().to_owned(),
                    weight_percent: group.weight_percent,
                    ready: group.ready,
                    wanted: group.wanted,
                    rates: sum.rates(interval_ms),
                });
            }
        }
        if interval_ms > 0 {
            self.past
                .push_back(whole.rates(interval_ms).requests_per_second.round() as u64);
            if self.past.len() > PAST {
                self.past.pop_front();
            }
        }
        Reading {
            app: status.app.clone(),
            environment: status.environment.clone(),
            interval_ms,
            groups,
            instances: sums
                .iter()
                .map(|(id, sum)| ((*id).to_owned(), sum.rates(interval_ms)))
                .collect(),
            past: self.past.iter().copied().collect(),
        }
    }
}

/// What each instance of the environment was asked between the two readings. One that is in the first only is gone,
/// one that is in the second only began between them.
fn sums<'a>(
    status: &EnvironmentStatus,
    traffic: &'a Traffic,
    before: Option<&Traffic>,
) -> BTreeMap<&'a str, Sum> {
    let own =
        |one: &&InstanceTraffic| one.app == status.app && one.environment == status.environment;
    let mut sums = BTreeMap::new();
    for one in traffic.instances.iter().filter(own) {
        let earlier = before.and_then(|before| {
            let same = |earlier: &&InstanceTraffic| earlier.instance == one.instance;
            before.instances.iter().filter(own).find(same)
        });
        let mut sum = Sum::of(one);
        if let Some(earlier) = earlier.map(Sum::of) {
            sum.requests = sum.requests.saturating_sub(earlier.requests);
            sum.errors = sum.errors.saturating_sub(earlier.errors);
            sum.latency = sum.latency.since(&earlier.latency);
        }
        if before.is_none() {
            sum = Sum {
                in_flight: sum.in_flight,
                ..Sum::default()
            };
        }
        sums.insert(one.instance.as_str(), sum);
    }
    sums
}

impl Sum {
    fn of(one: &InstanceTraffic) -> Self {
        // 1xx are no answers of their own; an answer that broke off is counted once.
        let answered: u64 = one.statuses.iter().skip(1).sum();
        let mut latency = Histogram::default();
        for (bucket, count) in one.latency_counts.iter().enumerate() {
            latency.add(bucket, *count);
        }
        let requests = (answered + one.failures).saturating_sub(one.broken_off);
        let errors = one.statuses.get(4).copied().unwrap_or(0) + one.failures;
        Self {
            requests,
            errors: errors.min(requests),
            latency,
            in_flight: one.in_flight,
        }
    }

    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.errors += other.errors;
        self.latency.merge(&other.latency);
        self.in_flight += other.in_flight;
    }

    fn rates(&self, interval_ms: u64) -> Rates {
        if interval_ms == 0 {
            return Rates {
                in_flight: self.in_flight,
                ..Rates::default()
            };
        }
        let quantile = |share| {
            let time = self.latency.quantile(share)?;
            Some((time.as_secs_f64() * 1e6).round() / 1e3)
        };
        let tenth = |value: f64| (value * 10.0).round() / 10.0;
        Rates {
            requests_per_second: tenth(self.requests as f64 * 1_000.0 / interval_ms as f64),
            errors_percent: tenth(self.errors as f64 * 100.0 / self.requests.max(1) as f64),
            p50_ms: quantile(0.5),
            p95_ms: quantile(0.95),
            p99_ms: quantile(0.99),
            in_flight: self.in_flight,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use landfast_api::{At, EnvironmentState, GroupRole, GroupStatus, ServiceStatus};
    use landfast_types::Timestamp;

    use super::*;

    pub(in crate::top) fn status() -> EnvironmentStatus {
        let instance = |id: &str| {
            serde_json::from_value(serde_json::json!({
                "id": id, "service": "api", "release": 3, "state": "ready",
                "since": "2026-11-20T12:00:00Z", "restarts": 0,
            }))
            .expect("an instance")
        };
        EnvironmentStatus {
            app: "shop".into(),
            environment: "production".into(),
            state: EnvironmentState::Serving,
            release: Some(3),
            releases: Vec::new(),
            stores: Vec::new(),
            backups: Vec::new(),
            services: vec![ServiceStatus {
                protections: Vec::new(),
                service: "api".into(),
                replicas_wanted: 2,
                replicas_manifest: 2,
                groups: vec![GroupStatus {
                    release: 3,
                    role: GroupRole::Serving,
                    weight_percent: 100.0,
                    wanted: 2,
                    ready: 2,
                    instances: vec![instance("api.r3.1"), instance("api.r3.2")],
                }],
            }],
            routes: Vec::new(),
            rollout: None,
            scale_overrides: BTreeMap::new(),
            schemas: Vec::new(),
            problems: Vec::new(),
            at: At(Timestamp::from_micros(0)),
            sequence: 0,
        }
    }

    pub(in crate::top) fn traffic(boot: &str, seconds: i64, answered: u64, failed: u64) -> Traffic {
        let one = |instance: &str, environment: &str| InstanceTraffic {
            app: "shop".into(),
            environment: environment.into(),
            instance: instance.into(),
            statuses: vec![0, answered, 0, 0, failed],
            failures: 0,
            broken_off: 0,
            in_flight: 1,
            latency_counts: vec![0, answered + failed],
            streams_opened: 0,
            bytes_in: 0,
            bytes_out: 0,
        };
        Traffic {
            boot: boot.into(),
            at: At(Timestamp::from_micros(seconds * 1_000_000)),
            instances: vec![
                one("api.r3.1", "production"),
                one("api.r3.2", "production"),
                one("api.r3.1", "staging"),
            ],
            services: Vec::new(),
        }
    }

    #[test]
    fn rates_are_what_happened_between_two_readings_of_this_environment() {
        let mut meter = Meter::default();
        let first = meter.take(&status(), &traffic("a", 10, 1_000, 0));
        assert_eq!(first.groups[0].rates.requests_per_second, 0.0);
        let second = meter.take(&status(), &traffic("a", 12, 1_090, 10));
        let rates = second.groups[0].rates;
        assert_eq!(rates.requests_per_second, 100.0);
        assert_eq!(rates.errors_percent, 10.0);
        assert_eq!(rates.in_flight, 2);
        assert!(rates.p99_ms.is_some_and(|ms| ms < 0.2), "{rates:?}");
        assert_eq!(second.instances["api.r3.1"].requests_per_second, 50.0);
        assert_eq!(second.past, [100]);
    }

    #[test]
    fn counters_that_began_again_are_no_rates() {
        let mut meter = Meter::default();
        meter.take(&status(), &traffic("a", 10, 1_000, 0));
        let after = meter.take(&status(), &traffic("b", 12, 5, 0));
        assert_eq!(after.interval_ms, 0);
        assert_eq!(after.groups[0].rates.requests_per_second, 0.0);
    }
}
