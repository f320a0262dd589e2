//! What several workers of one proxy have in flight together. After a hand-over the old worker keeps its streams for as
//! long as an hour; drains must count them, and must not wait for those of other backends.

use crate::snapshot::{BackendStatus, ElderStatus, ProxyStatus};

/// Adds to the status of the worker that serves what an older one says of itself.
///
/// A worker sends nothing new to a backend once its own table drains it, so its count can be believed from then on,
/// and not before: while the older worker goes by an older table, nothing counts as drained.
pub fn add(status: &mut ProxyStatus, elder: &ProxyStatus) {
    status.finishing |= elder.fence < status.fence;
    let (mut requests_in_flight, mut streams_open) = (0, 0);
    for (id, theirs) in &elder.backends {
        requests_in_flight += theirs.requests_in_flight;
        streams_open += theirs.streams_open;
        if let Some(ours) = status.backends.get_mut(id) {
            ours.requests_in_flight += theirs.requests_in_flight;
            ours.streams_open += theirs.streams_open;
        } else if !theirs.is_drained() {
            // Gone from the table that every new request uses.
            let gone = BackendStatus {
                draining: true,
                ..theirs.clone()
            };
            status.backends.insert(id.clone(), gone);
        }
    }
    status.elders.push(ElderStatus {
        pid: elder.pid,
        version: elder.version.clone(),
        requests_in_flight,
        streams_open,
    });
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use landfast_types::{Fence, Generation};

    use super::*;

    fn backend(draining: bool, requests_in_flight: u64, streams_open: u64) -> BackendStatus {
        BackendStatus {
            draining,
            requests_in_flight,
            streams_open,
            healthy: true,
            ejected: false,
        }
    }

    fn status(pid: u32, revision: u64, backends: &[(&str, BackendStatus)]) -> ProxyStatus {
        let backends = backends
            .iter()
            .map(|(id, backend)| ((*id).into(), backend.clone()));
        ProxyStatus {
            version: "1".into(),
            pid,
            holder_pid: None,
            boot: pid.to_string(),
            fence: Fence {
                generation: Generation(1),
                revision,
            },
            http: Vec::new(),
            https: Vec::new(),
            preview: None,
            backends: backends.collect::<BTreeMap<_, _>>(),
            finishing: false,
            elders: Vec::new(),
            problems: Vec::new(),
        }
    }

    #[test]
    fn a_backend_is_drained_when_no_worker_has_anything_in_flight_to_it() {
        let leaving = backend(true, 0, 0);
        let mut sum = status(3, 5, &[("a", leaving.clone()), ("b", backend(false, 1, 0))]);
        add(
            &mut sum,
            &status(
                2,
                5,
                &[("a", backend(true, 0, 4)), ("c", backend(true, 1, 0))],
            ),
        );
        add(
            &mut sum,
            &status(
                1,
                5,
                &[("a", backend(true, 2, 0)), ("b", backend(false, 0, 7))],
            ),
        );
        assert!(!sum.finishing);
        assert_eq!(sum.backends["a"], backend(true, 2, 4));
        assert_eq!(sum.backends["b"], backend(false, 1, 7));
        assert_eq!(
            sum.backends["c"],
            backend(true, 1, 0),
            "in no table any more"
        );
        let streams: Vec<_> = sum
            .elders
            .iter()
            .map(|it| (it.pid, it.streams_open))
            .collect();
        assert_eq!(streams, [(2, 4), (1, 7)]);

        let mut drained = status(3, 5, &[("a", leaving.clone())]);
        add(&mut drained, &status(2, 5, &[("a", leaving.clone())]));
        assert!(!drained.finishing && drained.backends["a"].is_drained());
        // Its table may still send requests there.
        add(&mut drained, &status(1, 4, &[("a", leaving)]));
        assert!(drained.finishing);
    }
}
