//! Requests of our own where traffic is thin: sent equally to both releases while a canary is watched, and
//! counted apart from what clients send.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use landfast_rollout::analysis::Sample;
use landfast_spec::Probe;
use landfast_types::{InstanceId, ServiceName, Timestamp};
use tokio::task::JoinSet;

use crate::{
    client::{Answer, get},
    driver::View,
    measure::{address_of, is_new, watched_services},
};

/// A release that hangs must be seen within seconds.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Sends probes and keeps what came of them until it is taken.
#[derive(Default)]
pub(crate) struct Synthetic {
    counts: Arc<Mutex<BTreeMap<InstanceId, Sample>>>,
    tasks: JoinSet<()>,
    turn: usize,
}

impl Synthetic {
    /// Sends this second's probes of every service whose analysis wants some.
    pub(crate) fn follow(&mut self, view: &View, _now: Timestamp) {
        while self.tasks.try_join_next().is_some() {}
        let Some(rollout) = &view.state.rollout else {
            return;
        };
        for service in watched_services(&view.state) {
            let Some(analysis) = rollout.analyses.get(&service) else {
                continue;
            };
            let body = view.bodies.get(&rollout.to);
            let Some(body) = body else {
                continue;
            };
            let configured = body.spec.deploy.probe.as_ref();
            let wanted = match configured {
                Some(probe) if analysis.probes_wanted() > 0 => probe.requests_per_second,
                Some(_) | None => analysis.probes_wanted(),
            };
            let ready = body
                .spec
                .services
                .get(&service)
                .map(|spec| &spec.health.ready);
            let path = match (configured, ready) {
                (Some(probe), _) => probe.path.clone(),
                (None, Some(Probe::Http { path })) => path.clone(),
                (None, _) => continue,
            };
            let host = body
                .spec
                .routes_of(&service)
                .next()
                .map(|(_, route)| route.host.clone());
            for new in [false, true] {
                self.send(view, &service, new, wanted, &path, host.as_deref());
            }
        }
    }

    fn send(
        &mut self,
        view: &View,
        service: &ServiceName,
        new: bool,
        wanted: u32,
        path: &str,
        host: Option<&str>,
    ) {
        let instances = view.state.instances.values();
        let side: Vec<(InstanceId, SocketAddr)> = instances
            .filter(|i| i.service == *service && is_new(&view.state, i) == new)
            .filter_map(|i| Some((i.id.clone(), address_of(i)?)))
            .collect();
        for _ in 0..wanted {
            if side.is_empty() {
                return;
            }
            self.turn = self.turn.wrapping_add(1);
            let (id, address) = side[self.turn % side.len()].clone();
            let (path, host) = (path.to_owned(), host.unwrap_or("landfast.probe").to_owned());
            let counts = Arc::clone(&self.counts);
            self.tasks.spawn(async move {
                let answer = get(address, &host, &path, TIMEOUT).await;
                count(&counts, id, &answer);
            });
        }
    }

    /// What was counted since it was last taken.
    pub(crate) fn take(&mut self) -> BTreeMap<InstanceId, Sample> {
        std::mem::take(&mut *self.counts.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn count(
    counts: &Mutex<BTreeMap<InstanceId, Sample>>,
    id: InstanceId,
    answer: &Result<Answer, String>,
) {
    let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
    let sample = counts.entry(id).or_default();
    sample.requests += 1;
    match answer {
        Ok(answer) => {
            sample.errors += u64::from(answer.status.is_server_error());
            sample.latency.record(answer.took);
        }
        Err(_) => sample.errors += 1,
    }
}
