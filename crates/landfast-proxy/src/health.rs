//! Active checks: one task per backend in the table, for as long as it is there. Runs on the control thread
//! only, so that a host with many cores does not check many times.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{
    Request,
    header::{CONNECTION, HOST},
};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use landfast_routing::snapshot::HealthCheck;
use tokio::{net::TcpStream, task::JoinSet};

use crate::{backend::Backend, pool, shared::Shared};

/// What is read of the answer to a check.
const BODY_BYTES_MAX: usize = 64 << 10;

struct Watched {
    backend: Arc<Backend>,
    address: SocketAddr,
    check: HealthCheck,
    task: tokio::task::AbortHandle,
}

/// Keeps the checks in step with the table until the worker ends.
pub(crate) async fn supervise(shared: Arc<Shared>) {
    let mut changes = shared.changes();
    let mut tasks = JoinSet::new();
    let mut watched: BTreeMap<String, Watched> = BTreeMap::new();
    loop {
        follow(&shared, &mut watched, &mut tasks);
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            Some(ended) = tasks.join_next(), if !tasks.is_empty() => note(ended),
            () = last_requests(&shared) => return,
        }
    }
}

/// A worker that leaves is still sent requests for as long as an idle connection may last; later ones go by what the
/// checks showed last, and by passive ejection.
async fn last_requests(shared: &Shared) {
    shared.life.leaving.cancelled().await;
    tokio::select! {
        () = tokio::time::sleep(shared.settings.keep_alive()) => {}
        () = shared.life.ended.cancelled() => {}
    }
}

fn note(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a health check panicked");
    }
}

fn follow(shared: &Arc<Shared>, watched: &mut BTreeMap<String, Watched>, tasks: &mut JoinSet<()>) {
    let live = shared.live();
    let mut wanted = BTreeMap::new();
    for (entry, backend) in live.table.backends.iter().zip(&live.backends) {
        if let Some(check) = &live.table.services[entry.service].health {
            wanted.insert(
                entry.id.clone(),
                (Arc::clone(backend), entry.address, check.clone()),
            );
        }
    }
    watched.retain(|id, running| {
        let same = wanted.get(id).is_some_and(|(backend, address, check)| {
            Arc::ptr_eq(backend, &running.backend)
                && *address == running.address
                && *check == running.check
        });
        if !same {
            running.task.abort();
            if !wanted.contains_key(id) {
                running.backend.unchecked();
            }
        }
        same && !running.task.is_finished()
    });
    for (id, (backend, address, check)) in wanted {
        if watched.contains_key(&id) {
            continue;
        }
        let checking = run(
            Arc::clone(shared),
            Arc::clone(&backend),
            address,
            check.clone(),
        );
        let task = tasks.spawn(checking);
        watched.insert(
            id,
            Watched {
                backend,
                address,
                check,
                task,
            },
        );
    }
}

async fn run(shared: Arc<Shared>, backend: Arc<Backend>, address: SocketAddr, check: HealthCheck) {
    let interval = Duration::from_millis(check.interval_ms.max(50));
    // The first check comes at a random place in the interval, so that checks spread out.
    tokio::time::sleep(interval.mul_f64(rand::random())).await;
    loop {
        let timeout = Duration::from_millis(check.timeout_ms.max(1));
        let passed =
            tokio::time::timeout(timeout, passes(&shared, address, check.path.as_deref())).await;
        if let Some(passed) = passed.unwrap_or(Some(false)) {
            backend.checked(passed, &check);
        }
        tokio::time::sleep(interval.mul_f64(0.9 + 0.2 * rand::random::<f64>())).await;
    }
}

/// Whether a backend passes. Nothing, when we could not even ask: that must not take backends out.
async fn passes(shared: &Shared, address: SocketAddr, path: Option<&str>) -> Option<bool> {
    let _place = shared.descriptors.take_for_check()?;
    match (TcpStream::connect(address).await, path) {
        (Ok(stream), Some(path)) => Some(answers(stream, address, path).await),
        (Ok(_), None) => Some(true),
        (Err(error), _) if pool::is_exhaustion(&error) => None,
        (Err(_), _) => Some(false),
    }
}

async fn answers(stream: TcpStream, address: SocketAddr, path: &str) -> bool {
    let request = Request::get(path)
        .header(HOST, address.to_string())
        .header("user-agent", "landfast-health")
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new());
    let Ok(request) = request else {
        return false;
    };
    let Ok((mut sender, connection)) = http1::handshake(TokioIo::new(stream)).await else {
        return false;
    };
    let asking = async {
        let answer = sender.send_request(request).await.ok()?;
        let passes = answer.status().is_success() || answer.status().is_redirection();
        // Read to its end: closing over unread bytes would reset the connection, which applications log as an error.
        let mut body = Limited::new(answer.into_body(), BODY_BYTES_MAX);
        while let Some(Ok(_)) = body.frame().await {}
        Some(passes)
    };
    let (asking, connection) = (std::pin::pin!(asking), std::pin::pin!(connection));
    // The connection is driven here: nothing outlives the check.
    let passes = match futures_util::future::select(asking, connection).await {
        futures_util::future::Either::Left((passes, _)) => passes,
        futures_util::future::Either::Right((_, asking)) => asking.await,
    };
    passes.unwrap_or(false)
}
