//! HTTP/1.1 through a real proxy: routing, shares, headers, limits, what survives.

#![expect(
    clippy::disallowed_methods,
    reason = "tests drive real processes, clocks and tasks"
)]

mod support;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use landfast_proxy::control::ControlError;
use landfast_routing::snapshot::{Backend, Mode, ProxyStatus};
use support::*;

#[tokio::test]
async fn routes_by_host_and_path_and_sets_the_forwarding_headers() {
    let proxy = Proxy::start().await;
    let (one, two) = (Upstream::start("one").await, Upstream::start("two").await);
    let other: landfast_types::ServiceKey = "shop/production/web".parse().expect("a key");
    let mut wanted = snapshot(1, service(vec![group(1, 100, vec![one.backend()])]));
    wanted.services.insert(
        other.clone(),
        service(vec![group(1, 100, vec![two.backend()])]),
    );
    wanted.routes = vec![route("shop.example", "/"), route("shop.example", "/web")];
    wanted.routes[1].service = other;
    let status = proxy.put(&wanted).await;
    assert_eq!(status.fence, fence(1));
    assert!(status.problems.is_empty(), "{:?}", status.problems);
    let address = proxy.http().await;

    assert_eq!(get(address, "/x").await.expect("an answer").text(), "one");
    assert_eq!(
        get(address, "/web/y?q=1").await.expect("an answer").text(),
        "two"
    );
    assert_eq!(
        get(address, "/website").await.expect("an answer").text(),
        "one"
    );
    assert_eq!(two.last().target, "/web/y?q=1");

    let mut wire = Wire::connect(address).await.expect("connected");
    wire.send(
        "GET /web HTTP/1.1\r\nhost: SHOP.example:80\r\nx-forwarded-for: 6.6.6.6\r\nforwarded: for=6.6.6.6\r\n\
         connection: x-hop\r\nx-hop: 1\r\nx-request-id: mine-1\r\nx-keep: yes\r\n\r\n",
    )
    .await
    .expect("sent");
    let got = wire.answer().await.expect("an answer");
    assert_eq!(got.header("x-request-id").as_deref(), Some("mine-1"));
    let seen = two.last().headers;
    let value = |name: &str| seen.get(name).map(|v| v.to_str().expect("text").to_owned());
    assert_eq!(value("x-forwarded-for").as_deref(), Some("127.0.0.1"));
    assert_eq!(value("x-forwarded-proto").as_deref(), Some("http"));
    assert_eq!(
        value("x-forwarded-host").as_deref(),
        Some("SHOP.example:80")
    );
    assert_eq!(value("host").as_deref(), Some("SHOP.example:80"));
    assert_eq!(value("x-request-id").as_deref(), Some("mine-1"));
    assert_eq!(value("x-keep").as_deref(), Some("yes"));
    assert_eq!(value("x-hop"), None);
    assert_eq!(value("connection"), None);

    wire.send("GET / HTTP/1.1\r\nhost: nobody.example\r\n\r\n")
        .await
        .expect("sent");
    assert_eq!(wire.answer().await.expect("an answer").status, 404);
    wire.send("GET / HTTP/1.1\r\nhost: shop.example\r\n\r\n")
        .await
        .expect("still open");
    let got = wire.answer().await.expect("an answer");
    assert_eq!(got.status, 200);
    assert_eq!(got.header("x-request-id").expect("one of ours").len(), 32);
}

#[tokio::test]
async fn weights_are_exact_over_short_windows_and_an_empty_group_gives_way() {
    let proxy = Proxy::start().await;
    let (old, new) = (Upstream::start("old").await, Upstream::start("new").await);
    let groups = |new_backends| vec![group(1, 95, vec![old.backend()]), group(2, 5, new_backends)];
    proxy
        .put(&snapshot(1, service(groups(vec![new.backend()]))))
        .await;
    let address = proxy.http().await;
    for window in 1..=5 {
        for _ in 0..20 {
            assert_eq!(get(address, "/").await.expect("an answer").status, 200);
        }
        assert_eq!((old.count(), new.count()), (19 * window, window));
    }
    proxy.put(&snapshot(2, service(groups(vec![])))).await;
    for _ in 0..20 {
        assert_eq!(get(address, "/").await.expect("an answer").text(), "old");
    }
}

#[tokio::test]
async fn refuses_what_has_two_readings_or_breaks_a_limit() {
    let proxy = Proxy::start().await;
    let upstream = Upstream::start("one").await;
    let mut wanted = snapshot(1, service(vec![group(1, 1, vec![upstream.backend()])]));
    wanted.routes[0].limits.body_bytes_max = 1_000;
    proxy.put(&wanted).await;
    let address = proxy.http().await;
    let many: String = (0..120).map(|n| format!("x-{n}: 1\r\n")).collect();
    let long = format!("x-long: {}\r\n", "a".repeat(70 << 10));
    let chunks = format!("3e9\r\n{}\r\n0\r\n\r\n", "a".repeat(1_001));
    for (request, status) in [
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), 400),
        (
            "GET / HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n".to_owned(),
            400,
        ),
        ("GET http://a/ HTTP/1.1\r\nhost: b\r\n\r\n".to_owned(), 400),
        (
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n"
                .to_owned(),
            501,
        ),
        (
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd"
                .to_owned(),
            400,
        ),
        (
            "CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\n\r\n".to_owned(),
            405,
        ),
        (format!("GET / HTTP/1.1\r\nhost: a\r\n{many}\r\n"), 431),
        (format!("GET / HTTP/1.1\r\nhost: a\r\n{long}\r\n"), 431),
        (
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1001\r\n\r\n".to_owned(),
            413,
        ),
        (
            format!("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{chunks}"),
            413,
        ),
    ] {
        let mut wire = Wire::connect(address).await.expect("connected");
        wire.send(&request).await.expect("sent");
        let got = wire.answer().await.expect("an answer");
        assert_eq!(got.status, status, "{}", &request[..request.len().min(80)]);
    }
    let chunk_was_cut = upstream
        .seen
        .lock()
        .expect("no panic")
        .iter()
        .all(|seen| seen.body.len() <= 1_000);
    assert!(chunk_was_cut);
}

#[tokio::test]
async fn a_slow_head_ends_and_a_connection_serves_many_requests() {
    let proxy = Proxy::start_with(|settings| settings.worker.header_read_ms = 300).await;
    let upstream = Upstream::start("one").await;
    proxy
        .put(&snapshot(
            1,
            service(vec![group(1, 1, vec![upstream.backend()])]),
        ))
        .await;
    let address = proxy.http().await;
    let mut slow = Wire::connect(address).await.expect("connected");
    slow.send("GET / HTTP/1.1\r\nhost: a\r\n")
        .await
        .expect("sent");
    assert!(
        slow.rest().await.is_empty(),
        "the connection ends without an answer"
    );
    let mut wire = Wire::connect(address).await.expect("connected");
    for _ in 0..3 {
        wire.send("GET /big/100000 HTTP/1.1\r\nhost: a\r\n\r\n")
            .await
            .expect("sent");
        let got = wire.answer().await.expect("an answer");
        assert!(got.is_whole && got.body.len() == 100_000);
        // Longer than a head may take: an idle connection is another matter.
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
    let body = "b".repeat(200_000);
    let request = format!(
        "POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    wire.send(&request).await.expect("sent");
    assert_eq!(wire.answer().await.expect("an answer").status, 200);
    assert_eq!(upstream.last().body.len(), 200_000);
}

#[tokio::test]
async fn no_backend_is_503_and_a_dead_one_502_and_a_slow_one_504() {
    let proxy = Proxy::start().await;
    proxy
        .put(&snapshot(1, service(vec![group(1, 1, vec![])])))
        .await;
    let address = proxy.http().await;
    let got = get(address, "/").await.expect("an answer");
    assert_eq!(
        (got.status, got.header("retry-after").as_deref()),
        (503, Some("1"))
    );

    let gone = Upstream::start("gone").await;
    let dead = gone.backend();
    gone.kill().await;
    proxy
        .put(&snapshot(2, service(vec![group(1, 1, vec![dead])])))
        .await;
    assert_eq!(get(address, "/").await.expect("an answer").status, 502);

    let slow = Upstream::start("slow").await;
    let mut wanted = snapshot(3, service(vec![group(1, 1, vec![slow.backend()])]));
    wanted.routes[0].timeouts.first_byte_ms = 100;
    proxy.put(&wanted).await;
    assert_eq!(
        get(address, "/slow/5000").await.expect("an answer").status,
        504
    );

    let stats = proxy.control.stats().await.expect("the proxy answers");
    let counted = &stats.services[&key()];
    assert_eq!(
        (
            counted.unavailable,
            counted.gateway_errors,
            counted.requests
        ),
        (1, 2, 3)
    );
    let metrics = proxy.control.metrics().await.expect("the proxy answers");
    assert!(
        metrics.contains(
            "landfast_proxy_service_gateway_errors_total{service=\"shop/production/api\"} 2"
        ),
        "{metrics}"
    );
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_not_passed_on_as_whole() {
    let proxy = Proxy::start().await;
    let upstream = Upstream::start("one").await;
    proxy
        .put(&snapshot(
            1,
            service(vec![group(1, 1, vec![upstream.backend()])]),
        ))
        .await;
    let got = get(proxy.http().await, "/cut").await.expect("a head");
    assert_eq!(got.text(), "half");
    assert!(!got.is_whole);
}

#[tokio::test]
async fn an_idempotent_request_is_sent_again_when_its_backend_dies_and_a_post_never() {
    let proxy = Proxy::start().await;
    let (one, two) = (Upstream::start("one").await, Upstream::start("two").await);
    let wanted = service(vec![group(1, 1, vec![one.backend(), two.backend()])]);
    proxy.put(&snapshot(1, wanted)).await;
    let address = proxy.http().await;
    let mut requests = tokio::task::JoinSet::new();
    for n in 0..40 {
        requests.spawn(async move {
            let mut wire = Wire::connect(address).await.expect("connected");
            let method = if n % 2 == 0 { "GET" } else { "POST" };
            let length = if n % 2 == 0 {
                ""
            } else {
                "content-length: 5\r\n"
            };
            let body = if n % 2 == 0 {
                String::new()
            } else {
                format!("{n:05}")
            };
            let text = format!("{method} /slow/1000 HTTP/1.1\r\nhost: a\r\n{length}\r\n{body}");
            wire.send(&text).await.expect("sent");
            (method, wire.answer().await.expect("an answer").status)
        });
    }
    eventually("all arrived", || async { one.count() + two.count() == 40 }).await;
    let held = one.count();
    assert!(held > 0);
    let seen = Arc::clone(&one.seen);
    one.kill().await;
    let mut failed_posts = 0;
    while let Some(result) = requests.join_next().await {
        match result.expect("no panic") {
            ("GET", status) => {
                assert_eq!(status, 200, "an idempotent request is answered elsewhere")
            }
            (_, 200) => {}
            (_, status) => {
                assert_eq!(status, 502);
                failed_posts += 1;
            }
        }
    }
    let mut posts: BTreeMap<Vec<u8>, u32> = BTreeMap::new();
    let both = [
        seen.lock().expect("no panic").clone(),
        two.seen.lock().expect("no panic").clone(),
    ];
    for seen in both.concat() {
        if seen.method == "POST" {
            *posts.entry(seen.body.to_vec()).or_default() += 1;
        }
    }
    assert_eq!(posts.len(), 20);
    assert!(
        posts.values().all(|count| *count == 1),
        "a POST reached two backends: {posts:?}"
    );
    assert!(failed_posts <= held);
    // New requests, POSTs included, find the other backend: nothing was sent to the dead one.
    for _ in 0..10 {
        let mut wire = Wire::connect(address).await.expect("connected");
        wire.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi")
            .await
            .expect("sent");
        assert_eq!(wire.answer().await.expect("an answer").text(), "two");
    }
}

/// A backend that answers one request of each connection; the second it takes in, and dies of it later.
async fn rude(later: Duration) -> (Backend, tokio::task::JoinHandle<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let backend = serving("rude", listener.local_addr().expect("an address"));
    let task = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("accepted");
            tokio::spawn(async move {
                use tokio::io::{AsyncReadExt, AsyncWriteExt};
                let mut buffer = [0; 4096];
                let count = stream.read(&mut buffer).await.unwrap_or(0);
                if count > 0 {
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                    stream.write_all(answer).await.expect("sent");
                    let _second = stream.read(&mut buffer).await;
                    tokio::time::sleep(later).await;
                }
            });
        }
    });
    (backend, task)
}

#[tokio::test]
async fn a_kept_connection_that_breaks_under_work_is_a_failure_of_its_backend() {
    let proxy = Proxy::start().await;
    let (backend, rude) = rude(Duration::from_millis(300)).await;
    let fine = Upstream::start("fine").await;
    proxy
        .put(&snapshot(
            1,
            service(vec![group(1, 1, vec![backend, fine.backend()])]),
        ))
        .await;
    let mut wire = Wire::connect(proxy.http().await).await.expect("connected");
    for _ in 0..4 {
        wire.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            .await
            .expect("sent");
        assert_eq!(wire.answer().await.expect("an answer").status, 200);
    }
    let stats = proxy.control.stats().await.expect("the proxy answers");
    let counted = &stats.backends["rude"];
    assert_eq!(
        (counted.statuses[1], counted.failures, counted.retried),
        (1, 1, 1)
    );
    assert_eq!(fine.count(), 3, "what broke was answered elsewhere");
    rude.abort();
}

#[tokio::test]
async fn stale_connections_lose_nothing() {
    let proxy = Proxy::start().await;
    let (backend, rude) = rude(Duration::ZERO).await;
    proxy
        .put(&snapshot(1, service(vec![group(1, 1, vec![backend])])))
        .await;
    let address = proxy.http().await;
    let mut wire = Wire::connect(address).await.expect("connected");
    for n in 0..40 {
        let request = if n % 3 == 0 {
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi"
        } else {
            "GET / HTTP/1.1\r\nhost: a\r\n\r\n"
        };
        wire.send(request).await.expect("sent");
        assert_eq!(
            wire.answer().await.expect("an answer").status,
            200,
            "request {n}"
        );
    }
    rude.abort();
}

#[tokio::test]
async fn a_pause_holds_within_its_bounds_and_lets_go_when_the_mode_changes() {
    let proxy = Proxy::start().await;
    let upstream = Upstream::start("one").await;
    let with = |revision, mode| {
        let mut wanted = service(vec![group(1, 1, vec![upstream.backend()])]);
        wanted.mode = mode;
        snapshot(revision, wanted)
    };
    let pause = |wait_max_ms| Mode::Pause {
        requests_max: 5,
        bytes_max: 1_000,
        wait_max_ms,
    };
    proxy.put(&with(1, pause(60_000))).await;
    let address = proxy.http().await;
    let mut held = tokio::task::JoinSet::new();
    for _ in 0..5 {
        held.spawn(async move { get(address, "/").await.expect("an answer").status });
    }
    eventually("five are held", || async {
        proxy.control.stats().await.expect("answers").services[&key()].paused == 5
    })
    .await;
    let got = get(address, "/").await.expect("an answer");
    assert_eq!(
        (got.status, got.header("retry-after").as_deref()),
        (503, Some("1"))
    );
    assert_eq!(upstream.count(), 0);
    // A snapshot that still pauses keeps them, one that serves lets them go.
    proxy.put(&with(2, pause(50_000))).await;
    assert_eq!(upstream.count(), 0);
    proxy.put(&with(3, Mode::Serve)).await;
    while let Some(status) = held.join_next().await {
        assert_eq!(status.expect("no panic"), 200);
    }
    // Bytes and time are bounds as well.
    proxy.put(&with(4, pause(100))).await;
    assert_eq!(get(address, "/").await.expect("an answer").status, 503);
    let mut wire = Wire::connect(address).await.expect("connected");
    wire.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1001\r\n\r\n")
        .await
        .expect("sent");
    assert_eq!(wire.answer().await.expect("an answer").status, 503);
    let stats = proxy.control.stats().await.expect("answers").services[&key()].clone();
    assert_eq!((stats.paused, stats.pause_rejected), (6, 3));

    let page = Some("<h1>back soon</h1>".to_owned());
    proxy
        .put(&with(
            5,
            Mode::Maintenance {
                retry_after_s: 120,
                page,
            },
        ))
        .await;
    let got = get(address, "/").await.expect("an answer");
    assert_eq!(
        (got.status, got.header("retry-after").as_deref()),
        (503, Some("120"))
    );
    assert_eq!(got.text(), "<h1>back soon</h1>");
    assert_eq!(upstream.count(), 5);
}

#[tokio::test]
async fn a_stale_snapshot_is_refused_and_the_routes_outlive_the_proxy() {
    let mut proxy = Proxy::start().await;
    let upstream = Upstream::start("one").await;
    let wanted = service(vec![group(1, 1, vec![upstream.backend()])]);
    proxy.put(&snapshot(5, wanted.clone())).await;
    let stale = proxy
        .control
        .put_snapshot(&snapshot(4, service(vec![])))
        .await;
    match stale {
        Err(ControlError::Stale { refused, seen }) => {
            assert_eq!((refused, seen), (fence(4), fence(5)));
        }
        other => panic!("a stale snapshot was not refused: {other:?}"),
    }
    proxy.put(&snapshot(5, wanted)).await;
    assert_eq!(
        get(proxy.http().await, "/")
            .await
            .expect("an answer")
            .status,
        200
    );
    let settings = proxy.settings.clone();
    assert!(proxy.stop(), "the holder ends well");

    let again =
        Proxy::start_with(|fresh| fresh.worker.routes.clone_from(&settings.worker.routes)).await;
    assert_eq!(again.status().await.fence, fence(5));
    assert_eq!(
        get(again.http().await, "/")
            .await
            .expect("an answer")
            .text(),
        "one"
    );
    drop(again);

    std::fs::write(&settings.worker.routes, "{").expect("written");
    let empty =
        Proxy::start_with(|fresh| fresh.worker.routes.clone_from(&settings.worker.routes)).await;
    assert_eq!(
        get(empty.http().await, "/")
            .await
            .expect("an answer")
            .status,
        404
    );
    assert!(
        settings
            .worker
            .routes
            .with_extension("json.corrupt")
            .exists()
    );
}

#[tokio::test]
async fn the_preview_listener_reaches_the_preview_group_and_https_is_asked_for() {
    let proxy = Proxy::start().await;
    let (old, new) = (Upstream::start("old").await, Upstream::start("new").await);
    let mut wanted = service(vec![
        group(1, 1, vec![old.backend()]),
        group(2, 0, vec![new.backend()]),
    ]);
    wanted.preview = Some(landfast_types::ReleaseId(2));
    let mut wanted = snapshot(1, wanted);
    wanted.routes[0].https_only = true;
    let status = proxy.put(&wanted).await;
    let got = get(status.preview.expect("bound"), "/")
        .await
        .expect("an answer");
    assert_eq!(got.text(), "new");
    let got = get(status.http[0], "/a?b=c").await.expect("an answer");
    let location = format!("https://shop.example:{}/a?b=c", status.https[0].port());
    assert_eq!((got.status, got.header("location")), (308, Some(location)));
    assert_eq!(old.count(), 0);
}

#[tokio::test]
async fn the_preview_listener_answers_from_the_preview_group_or_not_at_all() {
    let proxy = Proxy::start().await;
    let (old, new) = (Upstream::start("old").await, Upstream::start("new").await);
    let mut wanted = service(vec![
        group(1, 1, vec![old.backend()]),
        group(2, 0, vec![new.backend()]),
    ]);
    let status = proxy.put(&snapshot(1, wanted.clone())).await;
    let preview = status.preview.expect("bound");
    let got = get(preview, "/").await.expect("an answer");
    assert_eq!((got.status, old.count(), new.count()), (503, 0, 0));
    // A test that runs while requests are held is what they wait for.
    wanted.preview = Some(landfast_types::ReleaseId(2));
    wanted.mode = Mode::Pause {
        requests_max: 10,
        bytes_max: 1 << 20,
        wait_max_ms: 30_000,
    };
    proxy.put(&snapshot(2, wanted)).await;
    let got = get(preview, "/").await.expect("an answer");
    assert_eq!(got.text(), "new");
}

#[tokio::test]
async fn the_access_log_has_a_line_per_request_without_its_query() {
    let mut proxy = Proxy::start().await;
    let upstream = Upstream::start("one").await;
    proxy
        .put(&snapshot(
            1,
            service(vec![group(7, 1, vec![upstream.backend()])]),
        ))
        .await;
    let address = proxy.http().await;
    get(address, "/some?password=hunter2")
        .await
        .expect("an answer");
    get(address, "/status/500").await.expect("an answer");
    assert!(proxy.stop());
    let log = std::fs::read_to_string(proxy.access_log()).expect("a log");
    assert!(!log.contains("hunter2"));
    let lines: Vec<serde_json::Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(lines.len(), 2, "{log}");
    assert_eq!(lines[0]["path"], "/some");
    assert_eq!(lines[0]["backend"], "one");
    assert_eq!(lines[0]["release"], 7);
    assert_eq!(
        (&lines[0]["status"], &lines[1]["status"]),
        (&200.into(), &500.into())
    );
}

#[tokio::test]
async fn whole_answers_are_written_down_as_such_and_connections_to_the_backend_are_used_again() {
    let mut proxy = Proxy::start().await;
    let upstream = Upstream::start("one").await;
    proxy
        .put(&snapshot(
            1,
            service(vec![group(1, 1, vec![upstream.backend()])]),
        ))
        .await;
    let mut wire = Wire::connect(proxy.http().await).await.expect("connected");
    let upload = "b".repeat(100_000);
    let post = format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\n{upload}");
    wire.send(&post).await.expect("sent");
    assert_eq!(wire.answer().await.expect("an answer").status, 200);
    for path in ["/", "/big/200000", "/drip/3/1", "/status/204"].repeat(5) {
        wire.send(&format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n"))
            .await
            .expect("sent");
        assert!(wire.answer().await.expect("an answer").is_whole);
    }
    // One of each serving thread at most, and the upload's own.
    let connections = upstream.connections.load(Ordering::SeqCst);
    assert!(
        connections <= 3,
        "{connections} connections for 21 requests"
    );
    let stats = proxy.control.stats().await.expect("the proxy answers");
    assert_eq!(stats.services[&key()].client_gone, 0);
    assert_eq!(stats.backends["one"].bytes_in, 100_000);
    drop(wire);
    assert!(proxy.stop());
    let log = std::fs::read_to_string(proxy.access_log()).expect("a log");
    let lines: Vec<serde_json::Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(lines.len(), 21, "{log}");
    assert!(lines.iter().all(|line| line["cause"].is_null()), "{log}");
    assert_eq!(lines[0]["bytes_in"], 100_000);
}

#[tokio::test]
async fn an_upgrade_smuggles_nothing_and_its_connection_is_never_used_again() {
    let proxy = Proxy::start().await;
    let upstream = Upstream::start("one").await;
    proxy
        .put(&snapshot(
            1,
            service(vec![group(1, 1, vec![upstream.backend()])]),
        ))
        .await;
    let address = proxy.http().await;
    let upgrade = "host: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n";
    let hidden = "GET /hidden HTTP/1.1\r\nhost: a\r\n\r\n";
    let length = hidden.len();
    for request in [
        format!("GET / HTTP/1.1\r\n{upgrade}content-length: {length}\r\n\r\n{hidden}"),
        format!(
            "GET / HTTP/1.1\r\n{upgrade}transfer-encoding: chunked\r\n\r\n{length:x}\r\n{hidden}\r\n0\r\n\r\n"
        ),
        format!("POST / HTTP/1.1\r\n{upgrade}\r\n"),
    ] {
        let mut wire = Wire::connect(address).await.expect("connected");
        wire.send(&request).await.expect("sent");
        assert_eq!(
            wire.answer().await.expect("an answer").status,
            400,
            "{request}"
        );
        assert!(
            wire.rest().await.is_empty(),
            "the connection ends: {request}"
        );
    }
    assert_eq!(upstream.count(), 0);
    // A backend that declines the upgrade: the next request gets a connection of its own.
    for (method_and_fields, connections) in [
        (format!("GET / HTTP/1.1\r\n{upgrade}content-length: 0"), 1),
        (format!("GET / HTTP/1.1\r\n{upgrade}x: y"), 2),
        ("GET / HTTP/1.1\r\nhost: a".to_owned(), 3),
    ] {
        let mut wire = Wire::connect(address).await.expect("connected");
        wire.send(&format!("{method_and_fields}\r\n\r\n"))
            .await
            .expect("sent");
        assert_eq!(wire.answer().await.expect("an answer").status, 200);
        assert_eq!(upstream.connections.load(Ordering::SeqCst), connections);
    }
}

#[tokio::test]
async fn an_ejected_backend_answers_while_there_is_no_other() {
    let proxy = Proxy::start().await;
    let (one, two) = (Upstream::start("one").await, Upstream::start("two").await);
    let with = |revision, backends| {
        let mut wanted = service(vec![group(1, 1, backends)]);
        wanted.ejection.failures = 1;
        let mut wanted = snapshot(revision, wanted);
        wanted.routes[0].timeouts.first_byte_ms = 100;
        wanted
    };
    let both = vec![one.backend(), two.backend()];
    let ejected = |status: &ProxyStatus| -> Vec<String> {
        let found = status.backends.iter().filter(|(_, found)| found.ejected);
        found.map(|(id, _)| id.clone()).collect()
    };
    proxy.put(&with(1, both.clone())).await;
    let address = proxy.http().await;
    assert_eq!(
        get(address, "/slow/300").await.expect("an answer").status,
        504
    );
    let out = ejected(&proxy.status().await);
    assert_eq!(out.len(), 1, "the last one stays");
    let got = get(address, "/").await.expect("an answer");
    assert_ne!(got.text(), out[0], "left alone while there is another");
    let alone = both.into_iter().filter(|backend| backend.id == out[0]);
    let status = proxy.put(&with(2, alone.collect())).await;
    assert_eq!(ejected(&status), out);
    assert_eq!(get(address, "/").await.expect("an answer").text(), out[0]);
}

#[tokio::test]
async fn connections_over_the_bound_are_refused_until_one_ends() {
    let proxy = Proxy::start_with(|settings| settings.worker.connections_max = 2).await;
    let upstream = Upstream::start("one").await;
    proxy
        .put(&snapshot(
            1,
            service(vec![group(1, 1, vec![upstream.backend()])]),
        ))
        .await;
    let address = proxy.http().await;
    let request = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    let mut open = Vec::new();
    for _ in 0..2 {
        let mut wire = Wire::connect(address).await.expect("connected");
        wire.send(request).await.expect("sent");
        assert_eq!(wire.answer().await.expect("an answer").status, 200);
        open.push(wire);
    }
    let mut late = Wire::connect(address).await.expect("accepted");
    late.send(request).await.expect("sent");
    let refused = late.answer().await.expect("an answer");
    assert_eq!((refused.status, refused.is_whole), (503, true));
    assert_eq!(refused.header("connection").as_deref(), Some("close"));
    assert!(late.rest().await.is_empty());
    open.pop();
    eventually("there is room", || async {
        get(address, "/").await.is_ok_and(|got| got.status == 200)
    })
    .await;
}

#[tokio::test]
async fn an_answer_before_the_end_of_the_body_is_not_lost_to_a_reset() {
    let proxy = Proxy::start().await;
    let upstream = Upstream::start("one").await;
    let mut wanted = snapshot(1, service(vec![group(1, 1, vec![upstream.backend()])]));
    wanted.routes[0].limits.body_bytes_max = 1_000;
    wanted.routes[0].host = "a".into();
    proxy.put(&wanted).await;
    let address = proxy.http().await;
    for (host, status) in [("a", 413), ("nobody", 404)] {
        let mut wire = Wire::connect(address).await.expect("connected");
        let head = format!("POST / HTTP/1.1\r\nhost: {host}\r\ncontent-length: 400000\r\n\r\n");
        wire.send(&head).await.expect("sent");
        for _ in 0..4 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let sent = wire.send(&"b".repeat(100_000)).await;
            sent.expect("the proxy still listens");
        }
        let got = wire.answer().await.expect("an answer");
        assert_eq!(got.status, status);
        assert_eq!(got.header("connection").as_deref(), Some("close"));
        assert!(wire.rest().await.is_empty());
    }
}

#[tokio::test]
async fn a_body_of_unknown_length_arrives_whatever_the_method() {
    let proxy = Proxy::start().await;
    let upstream = Upstream::start("one").await;
    proxy
        .put(&snapshot(
            1,
            service(vec![group(1, 1, vec![upstream.backend()])]),
        ))
        .await;
    let mut wire = Wire::connect(proxy.http().await).await.expect("connected");
    for method in ["GET", "DELETE", "POST"] {
        let head = format!("{method} / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n");
        wire.send(&head).await.expect("sent");
        wire.send("5\r\nfirst\r\n4\r\nlast\r\n0\r\n\r\n")
            .await
            .expect("sent");
        assert_eq!(wire.answer().await.expect("an answer").status, 200);
        let seen = upstream.last();
        assert_eq!(
            (seen.method.as_str(), &seen.body[..]),
            (method, &b"firstlast"[..])
        );
    }
}

/// A backend that soon closes idle connections, and the bodies it got.
async fn impatient() -> (
    Backend,
    Arc<Mutex<Vec<String>>>,
    Arc<AtomicU64>,
    tokio::task::JoinHandle<()>,
) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let backend = serving("impatient", listener.local_addr().expect("an address"));
    let bodies: Arc<Mutex<Vec<String>>> = Arc::default();
    let connections = Arc::new(AtomicU64::new(0));
    let (log, count) = (Arc::clone(&bodies), Arc::clone(&connections));
    let task = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("accepted");
            let log = Arc::clone(&log);
            let number = count.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                let mut idle = Duration::from_secs(5);
                loop {
                    let mut request = [0; 4096];
                    let read = tokio::time::timeout(idle, stream.read(&mut request)).await;
                    let Ok(Ok(length @ 1..)) = read else { return };
                    // Head and body of so small a request come in one piece.
                    let text = String::from_utf8_lossy(&request[..length]).into_owned();
                    if text.starts_with("POST") {
                        let (_, body) = text.split_once("\r\n\r\n").expect("a head");
                        log.lock().expect("no panic").push(body.to_owned());
                    }
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                    if stream.write_all(answer).await.is_err() {
                        return;
                    }
                    idle = Duration::from_micros(500 + number % 7 * 500);
                }
            });
        }
    });
    (backend, bodies, connections, task)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_close_while_idle_lose_no_request_and_double_no_post() {
    let proxy = Proxy::start().await;
    let (backend, bodies, connections, task) = impatient().await;
    proxy
        .put(&snapshot(1, service(vec![group(1, 1, vec![backend])])))
        .await;
    let address = proxy.http().await;
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..8_u64 {
        clients.spawn(async move {
            let mut wire = Wire::connect(address).await.expect("connected");
            for n in 0..150_u64 {
                let request = if n % 3 == 0 {
                    format!(
                        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 6\r\n\r\n{client}-{n:04}"
                    )
                } else {
                    "GET / HTTP/1.1\r\nhost: a\r\n\r\n".to_owned()
                };
                wire.send(&request).await.expect("sent");
                let got = wire.answer().await.expect("an answer");
                assert_eq!(got.status, 200, "{}", got.text());
                tokio::time::sleep(Duration::from_micros(n * 331 % 4_000)).await;
            }
        });
    }
    while let Some(client) = clients.join_next().await {
        client.expect("no request is lost");
    }
    let mut bodies = bodies.lock().expect("no panic").clone();
    assert_eq!(bodies.len(), 8 * 50);
    bodies.sort();
    bodies.dedup();
    assert_eq!(bodies.len(), 8 * 50, "a POST came twice");
    let connections = connections.load(Ordering::SeqCst);
    assert!(
        (400..1_200).contains(&connections),
        "some were used again and some had gone stale: {connections}"
    );
    task.abort();
}
