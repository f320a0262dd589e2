//! What the counters say of a request that went wrong or had to wait, and whose doing that was.

#![expect(
    clippy::disallowed_methods,
    reason = "tests drive real processes, clocks and tasks"
)]

mod support;

use std::time::Duration;

use landfast_routing::snapshot::{BackendStats, Mode, ServiceStats};
use support::*;

async fn backend(proxy: &Proxy, id: &str) -> BackendStats {
    let stats = proxy.control.stats().await.expect("the proxy answers");
    stats.backends.get(id).cloned().unwrap_or_default()
}

async fn counted(proxy: &Proxy) -> ServiceStats {
    let stats = proxy.control.stats().await.expect("the proxy answers");
    stats.services[&key()].clone()
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_counted_as_such_and_what_is_in_flight_is_shown() {
    let proxy = Proxy::start().await;
    let upstream = Upstream::start("one").await;
    let wanted = service(vec![group(1, 1, vec![upstream.backend()])]);
    proxy.put(&snapshot(1, wanted)).await;
    let address = proxy.http().await;
    assert!(!get(address, "/cut").await.expect("a head").is_whole);
    eventually("it is counted", || async {
        let counted = backend(&proxy, "one").await;
        (counted.failures, counted.broken_off, counted.statuses[1]) == (1, 1, 1)
    })
    .await;
    let slow = tokio::spawn(async move { get(address, "/slow/500").await });
    eventually("it is in flight", || async {
        backend(&proxy, "one").await.in_flight == 1
    })
    .await;
    assert_eq!(slow.await.expect("no panic").expect("whole").status, 200);
    eventually("it is over", || async {
        backend(&proxy, "one").await.in_flight == 0
    })
    .await;
}

#[tokio::test]
async fn a_failure_that_no_other_backend_could_take_is_no_retry() {
    let proxy = Proxy::start().await;
    let upstream = Upstream::start("one").await;
    let with = |revision, backends| snapshot(revision, service(vec![group(1, 1, backends)]));
    proxy.put(&with(1, vec![upstream.backend()])).await;
    let address = proxy.http().await;
    let lost = tokio::spawn(async move { get(address, "/slow/5000").await });
    eventually("it arrived", || async { upstream.count() == 1 }).await;
    proxy.put(&with(2, vec![])).await;
    upstream.kill().await;
    assert_eq!(lost.await.expect("no panic").expect("answered").status, 502);
    let counted = backend(&proxy, "one").await;
    assert_eq!((counted.failures, counted.retried), (1, 0));
}

#[tokio::test]
async fn a_pause_is_neither_the_backends_latency_nor_part_of_the_next_pause() {
    let proxy = Proxy::start().await;
    let upstream = Upstream::start("one").await;
    let with = |revision, mode| {
        let mut wanted = service(vec![group(1, 1, vec![upstream.backend()])]);
        wanted.mode = mode;
        snapshot(revision, wanted)
    };
    let pause = Mode::Pause {
        requests_max: 5,
        bytes_max: 1_000,
        wait_max_ms: 60_000,
    };
    proxy.put(&with(1, pause.clone())).await;
    let address = proxy.http().await;
    let held = tokio::spawn(async move { get(address, "/").await });
    eventually("it is held", || async { counted(&proxy).await.paused == 1 }).await;
    let pause_time = Duration::from_secs(3);
    tokio::time::sleep(pause_time).await;
    proxy.put(&with(2, Mode::Serve)).await;
    assert_eq!(held.await.expect("no panic").expect("answered").status, 200);
    let latency = backend(&proxy, "one").await.latency;
    let slowest = latency.quantile(1.0).expect("one answer");
    assert!(slowest < pause_time, "{slowest:?}");
    assert!(counted(&proxy).await.pause_longest_ms >= 3_000);

    proxy.put(&with(3, pause.clone())).await;
    assert_eq!(counted(&proxy).await.pause_longest_ms, 0);
    let held = tokio::spawn(async move { get(address, "/").await });
    eventually("it is held", || async { counted(&proxy).await.paused == 2 }).await;
    // A table of the same pause does not begin it anew.
    proxy.put(&with(4, pause)).await;
    proxy.put(&with(5, Mode::Serve)).await;
    assert_eq!(held.await.expect("no panic").expect("answered").status, 200);
    let longest = counted(&proxy).await.pause_longest_ms;
    assert!(longest < 1_000, "{longest}");
}
