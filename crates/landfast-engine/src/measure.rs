//! Reads the proxy's counters while a rollout is under way: totals for its ledger, and each second what the old
//! and the new release did, for the canary's analysis. Goes on after its end: a reading at once, which closes the
//! ledger, then some for the latency it left behind.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use landfast_rollout::{
    Counts, Environment, Input, Instance, Phase, Reading,
    analysis::{InstanceObservation, Observation, Sample},
};
use landfast_routing::snapshot::{BackendStats, ProxyStats};
use landfast_types::{Histogram, InstanceId, Scope, ServiceName, Timestamp};
use tokio::{
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval},
};

use crate::{
    driver::{Message, View},
    part::{instance_of, release_of},
    shared::Shared,
    synthetic::Synthetic,
};

const EVERY: Duration = Duration::from_secs(1);
/// The ledger is written so often; more often it would only fill the journal.
const LEDGER_EVERY: Duration = Duration::from_secs(5);

/// Measures until nobody wants to know any more.
pub(crate) async fn run(
    shared: Arc<Shared>,
    mut views: watch::Receiver<Arc<View>>,
    inbox: mpsc::Sender<Message>,
) {
    let mut meter = Meter::default();
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut written: Option<(Timestamp, Option<Phase>)> = None;
    let mut synthetic = Synthetic::default();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            changed = views.changed() => if changed.is_err() { return },
        }
        let view = views.borrow_and_update().clone();
        let now = shared.clock.now();
        if !view.state.wants_readings(now) {
            return;
        }
        let rollout = view.state.rollout.as_ref();
        let phase = rollout.map(|rollout| rollout.phase.clone());
        let due = written
            .as_ref()
            .is_none_or(|(at, written)| now.since(*at) >= LEDGER_EVERY || *written != phase);
        let watched = rollout.filter(|rollout| rollout.wants_observations());
        let watching = watched.filter(|_| now.since(meter.observed_at) >= EVERY);
        if !due && watching.is_none() {
            continue;
        }
        let Ok(stats) = shared.hub.stats().await else {
            continue;
        };
        if let Some(rollout) = watching {
            let id = rollout.id;
            synthetic.follow(&view, now);
            let observations = meter.observe(&view.state, &stats, now, &mut synthetic);
            if let Some(observations) = observations {
                send(
                    &inbox,
                    Input::Observed {
                        rollout: id,
                        observations,
                    },
                )
                .await;
            }
        }
        if due {
            written = Some((now, phase));
            let reading = meter.read(&view.state.scope, &stats);
            send(&inbox, Input::Measured { reading }).await;
        }
    }
}

/// One reading for the ledger, now.
pub(crate) async fn reading(shared: &Shared, scope: &Scope) -> Option<Reading> {
    let stats = shared.hub.stats().await.ok()?;
    let earlier = shared.hub.a_minute_ago();
    let recent = earlier
        .filter(|earlier| earlier.boot == stats.boot)
        .map(|earlier| latency_since(scope, &earlier, &stats));
    Some(Reading {
        recent,
        ..Meter::default().read(scope, &stats)
    })
}

/// The latencies of all instances of an environment between two looks at the same worker.
fn latency_since(scope: &Scope, earlier: &ProxyStats, now: &ProxyStats) -> Histogram {
    let mut latency = Histogram::default();
    let own = |(id, _): &(&String, &BackendStats)| instance_of(scope, id).is_some();
    for (id, counters) in now.backends.iter().filter(own) {
        match earlier.backends.get(id) {
            Some(before) => latency.merge(&counters.latency.since(&before.latency)),
            None => latency.merge(&counters.latency),
        }
    }
    latency
}

async fn send(inbox: &mpsc::Sender<Message>, input: Input) {
    if inbox.send(Message::Input(input)).await.is_err() {
        tracing::debug!("the driver has stopped");
    }
}

#[derive(Default)]
struct Meter {
    boot: String,
    /// The last counters of every backend ever seen in this boot: totals never shrink when one leaves.
    seen: BTreeMap<InstanceId, BackendStats>,
    /// The counters at the last observation.
    observed: BTreeMap<InstanceId, BackendStats>,
    observed_at: Timestamp,
}

impl Meter {
    fn take(&mut self, scope: &Scope, stats: &ProxyStats) {
        if self.boot != stats.boot {
            self.boot.clone_from(&stats.boot);
            self.seen.clear();
            self.observed.clear();
        }
        for (backend, counters) in &stats.backends {
            if let Some(instance) = instance_of(scope, backend) {
                self.seen.insert(instance, counters.clone());
            }
        }
    }

    fn read(&mut self, scope: &Scope, stats: &ProxyStats) -> Reading {
        self.take(scope, stats);
        let mut reading = Reading {
            boot: stats.boot.clone(),
            took_over: stats.took_over,
            in_flight: in_flight(scope, stats),
            ..Reading::default()
        };
        for (instance, counters) in &self.seen {
            let Some(release) = release_of(instance) else {
                continue;
            };
            add(reading.releases.entry(release).or_default(), counters);
        }
        for (_, service) in stats.services.iter().filter(|(key, _)| key.scope == *scope) {
            reading.ours += service.unavailable + service.gateway_errors + service.pause_rejected;
            reading.rate_limited += service.rate_limited;
            reading.paused += service.paused;
            reading.pause_longest_ms = reading.pause_longest_ms.max(service.pause_longest_ms);
        }
        reading
    }

    /// What happened since the last observation; `None` the first time.
    fn observe(
        &mut self,
        state: &Environment,
        stats: &ProxyStats,
        now: Timestamp,
        synthetic: &mut Synthetic,
    ) -> Option<BTreeMap<ServiceName, Observation>> {
        self.take(&state.scope, stats);
        let millis = now.since(self.observed_at).as_millis().min(60_000) as u32;
        let first = self.observed_at == Timestamp::EPOCH;
        self.observed_at = now;
        let before = std::mem::replace(&mut self.observed, self.seen.clone());
        if first {
            return None;
        }
        let zero = BackendStats::default();
        let mut observations: BTreeMap<ServiceName, Observation> = BTreeMap::new();
        let mut probes = synthetic.take();
        for service in watched_services(state) {
            observations.insert(
                service,
                Observation {
                    millis,
                    ..Observation::default()
                },
            );
        }
        for (id, counters) in &self.seen {
            let Some(instance) = state.instances.get(id) else {
                continue;
            };
            let Some(observation) = observations.get_mut(&instance.service) else {
                continue;
            };
            let live = sample(counters, before.get(id).unwrap_or(&zero));
            let probes = probes.remove(id).unwrap_or_default();
            if live.is_empty() && probes.is_empty() {
                continue;
            }
            let side = if is_new(state, instance) {
                &mut observation.new
            } else {
                &mut observation.old
            };
            side.push(InstanceObservation {
                instance: id.clone(),
                live,
                probes,
            });
        }
        Some(observations)
    }
}

/// The routed services both releases of the rollout have.
pub(crate) fn watched_services(state: &Environment) -> BTreeSet<ServiceName> {
    let Some(rollout) = &state.rollout else {
        return BTreeSet::new();
    };
    let routed = |release| {
        let record = state.releases.get(&release);
        let shapes = record
            .into_iter()
            .flat_map(|record| &record.topology.services);
        shapes
            .filter(|(_, shape)| shape.routed)
            .map(|(name, _)| name.clone())
    };
    let old: BTreeSet<_> = rollout.from.into_iter().flat_map(routed).collect();
    routed(rollout.to)
        .filter(|name| old.contains(name))
        .collect()
}

/// Whether an instance is of the release that is being judged.
pub(crate) fn is_new(state: &Environment, instance: &Instance) -> bool {
    state.rollout.as_ref().is_some_and(|rollout| {
        instance.release == rollout.to && instance.number >= rollout.first_instance
    })
}

fn in_flight(scope: &Scope, stats: &ProxyStats) -> u64 {
    let own = stats.backends.iter();
    own.filter(|(id, _)| instance_of(scope, id).is_some())
        .map(|(_, counters)| counters.in_flight)
        .sum()
}

fn sample(now: &BackendStats, before: &BackendStats) -> Sample {
    // An answer that broke off has a status and is a failure: one request all the same.
    let asked = |stats: &BackendStats| {
        let answered: u64 = stats.statuses[1..].iter().sum();
        (answered + stats.failures).saturating_sub(stats.broken_off)
    };
    let failed = |stats: &BackendStats| stats.statuses[4] + stats.failures;
    let requests = asked(now).saturating_sub(asked(before));
    // A 5xx that broke off is one error, too.
    let errors = failed(now).saturating_sub(failed(before)).min(requests);
    let latency: Histogram = now.latency.since(&before.latency);
    Sample {
        requests,
        errors,
        latency,
    }
}

fn add(counts: &mut Counts, stats: &BackendStats) {
    counts.requests += stats.statuses.iter().sum::<u64>();
    counts.server_errors += stats.statuses[4];
    counts.failures += stats.failures;
    counts.broken_off += stats.broken_off;
    counts.retried += stats.retried;
    counts.streams_opened += stats.streams_opened;
    counts.streams_ended += stats.streams_ended;
    counts.streams_drained += stats.streams_drained;
    counts.streams_cut += stats.streams_cut;
    counts.latency.merge(&stats.latency);
}

/// Where an instance can be asked directly.
pub(crate) fn address_of(instance: &Instance) -> Option<SocketAddr> {
    instance.address.filter(|_| instance.is_serving())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(boot: &str, answered: u64) -> ProxyStats {
        let mut counters = BackendStats {
            statuses: [0, answered, 0, 0, 0],
            in_flight: 2,
            ..BackendStats::default()
        };
        let bucket = Histogram::bucket(Duration::from_millis(5));
        counters.latency.add(bucket, answered);
        let other = counters.clone();
        ProxyStats {
            boot: boot.into(),
            took_over: false,
            at: Timestamp::EPOCH,
            backends: [
                ("shop/production/api.r1.1".to_owned(), counters),
                ("shop/staging/api.r1.1".to_owned(), other),
            ]
            .into(),
            services: BTreeMap::new(),
        }
    }

    fn scope() -> Scope {
        Scope {
            app: "shop".parse().unwrap(),
            environment: "production".parse().unwrap(),
        }
    }

    #[test]
    fn an_answer_that_broke_off_is_one_request_and_one_error() {
        let before = BackendStats::default();
        let broken = BackendStats {
            statuses: [0, 9, 0, 0, 1],
            failures: 3,
            broken_off: 2,
            ..BackendStats::default()
        };
        let got = sample(&broken, &before);
        assert_eq!((got.requests, got.errors), (11, 4));
        let only_broken = BackendStats {
            statuses: [0, 0, 0, 0, 1],
            failures: 1,
            broken_off: 1,
            ..BackendStats::default()
        };
        let got = sample(&only_broken, &before);
        assert_eq!((got.requests, got.errors), (1, 1));
    }

    #[test]
    fn a_reading_says_what_is_in_flight_in_its_own_environment() {
        let reading = Meter::default().read(&scope(), &stats("a", 10));
        assert_eq!((reading.in_flight, reading.recent), (2, None));
    }

    #[test]
    fn the_last_minute_is_what_came_since_the_counters_were_kept() {
        let latency = latency_since(&scope(), &stats("a", 70), &stats("a", 100));
        assert_eq!(latency.count(), 30);
    }
}
