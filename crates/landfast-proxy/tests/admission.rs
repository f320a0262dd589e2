//! Who is let in, and how often, through a real proxy.

#![expect(
    clippy::disallowed_methods,
    reason = "tests drive real processes, clocks and tasks"
)]

mod support;

use std::net::SocketAddr;

use landfast_routing::{
    admission::{Admission, CountBy, Quota, Rate, Trust, TrustedField},
    snapshot::{ServiceStats, Snapshot},
};
use support::*;

/// So few a minute that none comes back while a test runs.
fn quota(burst: u32) -> Quota {
    Quota {
        requests: 1,
        per_ms: 3_600_000,
        burst,
    }
}

fn rate(by: CountBy, burst: u32) -> Admission {
    Admission {
        rate: Some(Rate {
            by,
            quota: quota(burst),
        }),
        ..Admission::default()
    }
}

fn guarded(revision: u64, upstream: &Upstream, admission: Admission) -> Snapshot {
    let groups = vec![group(1, 100, vec![upstream.backend()])];
    let mut wanted = snapshot(revision, service(groups));
    wanted.routes[0].admission = admission;
    wanted
}

async fn counted(proxy: &Proxy) -> ServiceStats {
    let stats = proxy.control.stats().await.expect("the proxy answers");
    stats.services[&key()].clone()
}

/// One GET with further lines of its head.
async fn ask(address: SocketAddr, path: &str, lines: &str) -> Got {
    let mut wire = Wire::connect(address).await.expect("connected");
    let head = format!("GET {path} HTTP/1.1\r\nhost: shop.example\r\n{lines}\r\n");
    wire.send(&head).await.expect("sent");
    wire.answer().await.expect("an answer")
}

fn trusting(field: TrustedField) -> Trust {
    Trust {
        proxies: vec!["127.0.0.0/8".parse().expect("a network")],
        field,
    }
}

#[tokio::test]
async fn a_client_over_its_rate_is_told_when_to_come_back_whatever_thread_serves_it() {
    let proxy = Proxy::start_with(|settings| settings.worker.threads = 4).await;
    let upstream = Upstream::start("one").await;
    proxy
        .put(&guarded(1, &upstream, rate(CountBy::Client, 40)))
        .await;
    let address = proxy.http().await;
    let asking = (0..100).map(|_| tokio::spawn(async move { ask(address, "/", "").await }));
    let mut answers = Vec::new();
    for asked in asking.collect::<Vec<_>>() {
        answers.push(asked.await.expect("no panic"));
    }
    let of = |status: u16| answers.iter().filter(move |got| got.status == status);
    // Two that meet at the last place may both be refused; none too many is let in.
    let (served, refused) = (of(200).count(), of(429).count());
    assert!((37..=40).contains(&served), "{served} of 40");
    assert_eq!(served + refused, 100);
    assert_eq!(upstream.count(), served);
    for got in of(429) {
        let wait = got.header("retry-after").expect("a time to wait");
        let wait: u64 = wait.parse().expect("seconds");
        assert!((3_000..=3_600).contains(&wait), "{wait}");
        let policy = got.header("ratelimit-policy");
        assert_eq!(policy.as_deref(), Some("\"client\";q=40;w=144000"));
        let state = got.header("ratelimit").expect("a state");
        assert!(state.starts_with("\"client\";r=0;t="), "{state}");
    }
    assert!(of(200).all(|got| got.header("ratelimit").is_some()));

    // Nobody's error and nobody's loss: they never reached a backend.
    let stats = counted(&proxy).await;
    let refused = u64::try_from(refused).expect("few");
    assert_eq!(stats.rate_limited, refused);
    assert_eq!(stats.refused, refused);
    assert_eq!((stats.unavailable, stats.gateway_errors), (0, 0));
    let stats = proxy.control.stats().await.expect("the proxy answers");
    let backend = &stats.backends["one"];
    assert_eq!(backend.statuses, [0, served as u64, 0, 0, 0]);
    assert_eq!(backend.failures, 0);
    let page = proxy.control.metrics().await.expect("a page");
    let line = format!(
        "landfast_proxy_service_rate_limited_total{{service=\"{}\"}} {refused}",
        key()
    );
    assert!(page.contains(&line), "{page}");

    // A new table, as each step of a rollout brings one, gives nothing back.
    while ask(address, "/", "").await.status == 200 {}
    proxy
        .put(&guarded(2, &upstream, rate(CountBy::Client, 40)))
        .await;
    assert_eq!(ask(address, "/", "").await.status, 429);
}

#[tokio::test]
async fn keys_have_quotas_of_their_own_and_the_route_one_for_all() {
    let proxy = Proxy::start().await;
    let upstream = Upstream::start("one").await;
    let name = "X-Api-Key".to_owned();
    let admission = Admission {
        total: Some(quota(5)),
        ..rate(CountBy::Header { name }, 2)
    };
    proxy.put(&guarded(1, &upstream, admission)).await;
    let address = proxy.http().await;
    let mut statuses = Vec::new();
    for key in ["a", "a", "a", "b", "b", "b", "c", "d"] {
        let got = ask(address, "/", &format!("x-api-key: {key}\r\n")).await;
        statuses.push(got.status);
    }
    assert_eq!(statuses, [200, 200, 429, 200, 200, 429, 200, 429]);
    assert_eq!(upstream.count(), 5);
}

#[tokio::test]
async fn a_path_of_its_own_is_for_the_networks_that_are_named_however_it_is_written() {
    let proxy = Proxy::start_with(|settings| {
        settings.worker.trust = trusting(TrustedField::XForwardedFor);
    })
    .await;
    let upstream = Upstream::start("one").await;
    let mut wanted = guarded(1, &upstream, Admission::default());
    let mut admin = route("*", "/admin");
    admin.admission.allow = vec!["10.0.0.0/8".into(), "2001:db8::/32".into()];
    wanted.routes.push(admin);
    let status = proxy.put(&wanted).await;
    assert!(status.problems.is_empty(), "{:?}", status.problems);
    let address = proxy.http().await;
    for (client, path, expected) in [
        ("192.0.2.1", "/", 200),
        ("192.0.2.1", "/admin", 403),
        ("192.0.2.1", "/admin/x?y=1", 403),
        ("10.1.2.3", "/admin", 200),
        ("2001:db8::7", "/admin/x", 200),
        ("10.1.2.3, 192.0.2.1", "/admin", 403),
        ("192.0.2.1", "//admin", 400),
        ("192.0.2.1", "/x/../admin", 400),
        ("192.0.2.1", "/%61dmin", 400),
        ("192.0.2.1", "/ADMIN", 200),
    ] {
        let got = ask(address, path, &format!("x-forwarded-for: {client}\r\n")).await;
        assert_eq!(got.status, expected, "{client} {path}");
    }
    assert_eq!(counted(&proxy).await.denied, 3);
}

#[tokio::test]
async fn a_client_is_believed_through_a_proxy_that_is_trusted_and_through_no_other() {
    let upstream = Upstream::start("one").await;
    let lines = "x-forwarded-for: 6.6.6.6, 203.0.113.7\r\nx-forwarded-proto: https\r\nforwarded: for=\"[2001:db8::9]\";proto=http\r\n";
    for (trust, expected) in [
        (Trust::default(), ("127.0.0.1", "http")),
        (
            trusting(TrustedField::XForwardedFor),
            ("203.0.113.7", "https"),
        ),
        (trusting(TrustedField::Forwarded), ("2001:db8::9", "http")),
    ] {
        let proxy = Proxy::start_with(|settings| settings.worker.trust = trust).await;
        let mut wanted = guarded(1, &upstream, Admission::default());
        let mut secure = route("*", "/secure");
        secure.https_only = true;
        wanted.routes.push(secure);
        proxy.put(&wanted).await;
        let address = proxy.http().await;
        assert_eq!(ask(address, "/", lines).await.status, 200);
        let seen = upstream.last().headers;
        let value = |name: &str| seen[name].to_str().expect("text").to_owned();
        assert_eq!(value("x-forwarded-for"), expected.0);
        assert_eq!(value("x-forwarded-proto"), expected.1);
        // Whoever came to the balancer by HTTPS is not sent there again.
        let redirected = ask(address, "/secure", lines).await.status == 308;
        assert_eq!(redirected, expected.1 == "http");
        eventually("the log has it", || async {
            let log = std::fs::read_to_string(proxy.access_log()).unwrap_or_default();
            log.contains(&format!("\"client\":\"{}\"", expected.0))
        })
        .await;
    }
}

#[tokio::test]
async fn a_release_is_tested_from_this_host_whoever_may_come() {
    let proxy = Proxy::start().await;
    let upstream = Upstream::start("one").await;
    let admission = Admission {
        allow: vec!["10.0.0.0/8".into()],
        ..rate(CountBy::Client, 1)
    };
    let mut wanted = guarded(1, &upstream, admission);
    let service = wanted.services.get_mut(&key()).expect("there");
    service.preview = Some(landfast_types::ReleaseId(1));
    proxy.put(&wanted).await;
    let preview = proxy.status().await.preview.expect("it listens");
    for _ in 0..3 {
        assert_eq!(ask(preview, "/", "").await.status, 200);
    }
    assert_eq!(ask(proxy.http().await, "/", "").await.status, 403);
}
