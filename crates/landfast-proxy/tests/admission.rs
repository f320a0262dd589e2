//! Who is let in, and how often, through a real proxy.

#![expect(
    clippy::disallowed_methods,
    reason = "tests drive real processes, clocks and tasks"
)]

mod support;

use std::net::SocketAddr;

use landfast_routing::{
    admission::{
        Admission, BasicAuth, Cors, CountBy, FieldRules, Quota, Rate, Security, Trust, TrustedField,
    },
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

/// `ann:correct horse`.
const RIGHT: &str = "authorization: Basic YW5uOmNvcnJlY3QgaG9yc2U=\r\n";
/// `ann:wrong`.
const WRONG: &str = "authorization: Basic YW5uOndyb25n\r\n";

fn staging() -> BasicAuth {
    BasicAuth {
        realm: "staging".into(),
        users: vec!["ann:$2y$04$abcdefghijklmnopqrstuujydOTSfIH/d5oUHpsygqV5X9xJLQc6e".into()],
    }
}

#[tokio::test]
async fn a_password_is_asked_for_checked_and_kept_from_the_application() {
    let proxy = Proxy::start().await;
    let upstream = Upstream::start("one").await;
    let admission = Admission {
        auth: Some(staging()),
        ..Admission::default()
    };
    proxy.put(&guarded(1, &upstream, admission)).await;
    let address = proxy.http().await;
    for lines in ["", WRONG, "authorization: Bearer x\r\n"] {
        let got = ask(address, "/", lines).await;
        assert_eq!(got.status, 401, "{lines}");
        let challenge = got.header("www-authenticate");
        assert_eq!(
            challenge.as_deref(),
            Some("Basic realm=\"staging\", charset=\"UTF-8\"")
        );
    }
    assert_eq!(upstream.count(), 0);
    assert_eq!(counted(&proxy).await.denied, 3);
    let asking = (0..20).map(|_| tokio::spawn(async move { ask(address, "/", RIGHT).await }));
    for asked in asking.collect::<Vec<_>>() {
        assert_eq!(asked.await.expect("no panic").status, 200);
    }
    assert!(!upstream.last().headers.contains_key("authorization"));
    // The authority's question is answered whoever asks.
    let challenge = "/.well-known/acme-challenge/token";
    assert_eq!(ask(address, challenge, "").await.status, 200);
    // Whoever keeps guessing is not even checked; others are, and who was right goes on.
    let mut statuses = Vec::new();
    for _ in 0..80 {
        statuses.push(ask(address, "/", WRONG).await.status);
    }
    assert!(statuses.ends_with(&[429; 10]), "{statuses:?}");
    assert_eq!(ask(address, "/", RIGHT).await.status, 200);
    let kept = std::fs::metadata(&proxy.settings.worker.routes).expect("it is on disk");
    let mode = std::os::unix::fs::PermissionsExt::mode(&kept.permissions());
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn a_browser_is_told_what_other_origins_may_do_also_when_it_is_refused() {
    let proxy = Proxy::start().await;
    let upstream = Upstream::start("one").await;
    let admission = Admission {
        auth: Some(staging()),
        cors: Some(Cors {
            origins: vec!["https://app.example".into()],
            methods: vec!["GET".into(), "PUT".into()],
            headers: vec!["content-type".into()],
            credentials: true,
            max_age_s: 60,
            ..Cors::default()
        }),
        ..Admission::default()
    };
    proxy.put(&guarded(1, &upstream, admission)).await;
    let address = proxy.http().await;
    let preflight = |origin: &'static str| async move {
        let mut wire = Wire::connect(address).await.expect("connected");
        let head = format!(
            "OPTIONS /x HTTP/1.1\r\nhost: shop.example\r\norigin: {origin}\r\naccess-control-request-method: PUT\r\n\r\n"
        );
        wire.send(&head).await.expect("sent");
        wire.answer().await.expect("an answer")
    };
    let got = preflight("https://app.example").await;
    assert_eq!(got.status, 204);
    let said = |name: &str| got.header(name).unwrap_or_default();
    assert_eq!(said("access-control-allow-origin"), "https://app.example");
    assert_eq!(said("access-control-allow-methods"), "GET, PUT");
    assert_eq!(said("access-control-allow-credentials"), "true");
    assert_eq!(said("access-control-max-age"), "60");
    assert!(
        got.headers.to_lowercase().contains("vary: origin"),
        "{}",
        got.headers
    );
    let refused = preflight("https://evil.example").await;
    assert_eq!(refused.status, 403);
    assert_eq!(refused.header("access-control-allow-origin"), None);
    assert_eq!(upstream.count(), 0, "both were answered here");
    for (lines, status) in [("", 401), (RIGHT, 200)] {
        let lines = format!("origin: https://app.example\r\n{lines}");
        let got = ask(address, "/", &lines).await;
        let shared = got.header("access-control-allow-origin");
        assert_eq!(got.status, status);
        assert_eq!(shared.as_deref(), Some("https://app.example"));
    }
}

#[tokio::test]
async fn headers_are_set_added_and_taken_away_in_both_directions() {
    let proxy = Proxy::start().await;
    let upstream = Upstream::start("one").await;
    let pairs = |name: &str, value: &str| [(name.to_owned(), value.to_owned())].into();
    let admission = Admission {
        security: Some(Security {
            hsts_s: 60,
            referrer: "no-referrer".into(),
            ..Security::default()
        }),
        request_fields: FieldRules {
            remove: vec!["x-debug".into()],
            set: pairs("x-env", "staging"),
            append: pairs("x-via", "edge"),
        },
        response_fields: FieldRules {
            remove: vec!["x-upstream".into()],
            set: pairs("x-frame-options", "DENY"),
            append: pairs("x-added", "1"),
        },
        ..Admission::default()
    };
    proxy.put(&guarded(1, &upstream, admission)).await;
    let lines = "connection: x-env\r\nx-env: mine\r\nx-debug: 1\r\nx-via: client\r\n";
    let got = ask(proxy.http().await, "/", lines).await;
    let seen = upstream.last().headers;
    assert_eq!(seen["x-env"], "staging");
    assert!(!seen.contains_key("x-debug"));
    assert_eq!(seen.get_all("x-via").iter().count(), 2);
    let said = |name: &str| got.header(name);
    assert_eq!(said("x-upstream"), None);
    assert_eq!(said("x-added").as_deref(), Some("1"));
    assert_eq!(said("x-frame-options").as_deref(), Some("DENY"));
    assert_eq!(said("x-content-type-options").as_deref(), Some("nosniff"));
    assert_eq!(said("referrer-policy").as_deref(), Some("no-referrer"));
    assert_eq!(said("strict-transport-security"), None, "not over HTTP");
}

#[tokio::test]
async fn a_client_holds_so_many_connections_and_gets_another_when_one_ends() {
    let proxy = Proxy::start_with(|settings| {
        settings.worker.connections_per_client_max = 3;
        settings.worker.counts_loopback = true;
    })
    .await;
    let upstream = Upstream::start("one").await;
    proxy
        .put(&guarded(1, &upstream, Admission::default()))
        .await;
    let address = proxy.http().await;
    let ask = "GET / HTTP/1.1\r\nhost: shop.example\r\n\r\n";
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut wire = Wire::connect(address).await.expect("connected");
        wire.send(ask).await.expect("sent");
        assert_eq!(wire.answer().await.expect("an answer").status, 200);
        held.push(wire);
    }
    assert!(get(address, "/").await.is_err(), "one too many");
    let page = proxy.control.metrics().await.expect("a page");
    assert!(
        page.contains("landfast_proxy_connections_refused_total 1"),
        "{page}"
    );
    for wire in &mut held {
        wire.send(ask).await.expect("sent");
        assert_eq!(wire.answer().await.expect("an answer").status, 200);
    }
    held.pop();
    eventually("its place is free", || async {
        get(address, "/").await.is_ok()
    })
    .await;
}
