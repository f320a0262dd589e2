//! TLS by name, HTTP/2 with and without TLS, and certificates that cannot be read.

#![expect(
    clippy::disallowed_methods,
    reason = "tests drive real processes, clocks and tasks"
)]

mod support;

use std::{net::SocketAddr, path::Path, sync::Arc};

use bytes::Bytes;
use http::{Request, Version};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use landfast_routing::{
    admission::{Admission, BasicAuth, CountBy, Quota, Rate, Security},
    snapshot::{Certificate, Snapshot},
};
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use support::*;
use tokio::{net::TcpStream, task::JoinSet};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Writes a self-signed certificate for a host and trusts it.
fn issue(folder: &Path, name: &str, host: &str, roots: &mut RootCertStore) -> Certificate {
    let issued = rcgen::generate_simple_self_signed([host.to_owned()]).expect("a certificate");
    let chain_path = folder.join(format!("{name}.crt"));
    let key_path = folder.join(format!("{name}.key"));
    std::fs::write(&chain_path, issued.cert.pem()).expect("written");
    std::fs::write(&key_path, issued.signing_key.serialize_pem()).expect("written");
    roots.add(issued.cert.der().clone()).expect("a root");
    Certificate {
        hosts: vec![host.into()],
        chain_path: chain_path.to_string_lossy().into_owned(),
        key_path: key_path.to_string_lossy().into_owned(),
    }
}

async fn connect(
    address: SocketAddr,
    host: &str,
    roots: &RootCertStore,
    alpn: &str,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> std::io::Result<TlsStream<TcpStream>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .expect("known versions")
        .with_root_certificates(roots.clone())
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    let name = ServerName::try_from(host.to_owned()).expect("a name");
    let stream = TcpStream::connect(address).await?;
    TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
}

async fn get_http1(stream: TlsStream<TcpStream>, host: &str) -> (u16, String) {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.expect("http");
    let driver = tokio::spawn(connection);
    let request = Request::get("/")
        .header("host", host)
        .body(Full::<Bytes>::default());
    let answer = sender
        .send_request(request.expect("a request"))
        .await
        .expect("an answer");
    let status = answer.status().as_u16();
    let body = answer
        .into_body()
        .collect()
        .await
        .expect("a body")
        .to_bytes();
    driver.abort();
    (status, String::from_utf8_lossy(&body).into_owned())
}

const BOTH: &[&rustls::SupportedProtocolVersion] =
    &[&rustls::version::TLS12, &rustls::version::TLS13];

#[tokio::test]
async fn certificates_are_chosen_by_name_and_a_bad_one_harms_no_other() {
    let proxy = Proxy::start().await;
    let upstream = Upstream::start("one").await;
    let folder = proxy.folder.path();
    let mut roots = RootCertStore::empty();
    let exact = issue(folder, "exact", "shop.example", &mut roots);
    let wild = issue(folder, "wild", "*.wild.example", &mut roots);
    let wanted = |revision, certificates| Snapshot {
        certificates,
        ..snapshot(
            revision,
            service(vec![group(1, 1, vec![upstream.backend()])]),
        )
    };
    let status = proxy
        .put(&wanted(1, vec![exact.clone(), wild.clone()]))
        .await;
    assert!(status.problems.is_empty(), "{:?}", status.problems);
    let address = status.https[0];
    for (host, versions) in [
        ("shop.example", BOTH),
        ("SHOP.example", &[&rustls::version::TLS12]),
        ("a.wild.example", &[&rustls::version::TLS13]),
    ] {
        let stream = connect(address, host, &roots, "http/1.1", versions)
            .await
            .expect("trusted");
        assert_eq!(get_http1(stream, host).await, (200, "one".into()), "{host}");
    }
    let seen = upstream.last().headers;
    assert_eq!(seen["x-forwarded-proto"], "https");
    assert!(
        connect(address, "other.example", &roots, "http/1.1", BOTH)
            .await
            .is_err()
    );
    assert!(
        connect(address, "a.b.wild.example", &roots, "http/1.1", BOTH)
            .await
            .is_err()
    );

    // The file breaks: its host keeps the last good certificate, the other does not notice.
    std::fs::write(&exact.chain_path, "nonsense").expect("written");
    let missing = Certificate {
        hosts: vec!["missing.example".into()],
        chain_path: "/nonexistent.crt".into(),
        key_path: "/nonexistent.key".into(),
    };
    let all = vec![exact.clone(), wild, missing];
    let status = proxy.put(&wanted(2, all)).await;
    assert_eq!(status.fence, fence(2));
    assert_eq!(status.problems.len(), 2, "{:?}", status.problems);
    assert!(
        status.problems[0].contains("shop.example"),
        "{:?}",
        status.problems
    );
    assert!(
        status.problems[0].contains("last good"),
        "{:?}",
        status.problems
    );
    for host in ["shop.example", "a.wild.example"] {
        let stream = connect(address, host, &roots, "http/1.1", BOTH)
            .await
            .expect("trusted");
        assert_eq!(get_http1(stream, host).await.0, 200);
    }

    // A renewed one is used from the next snapshot on.
    let mut renewed = RootCertStore::empty();
    let exact = issue(folder, "exact", "shop.example", &mut renewed);
    let status = proxy.put(&wanted(3, vec![exact])).await;
    assert!(status.problems.is_empty(), "{:?}", status.problems);
    connect(address, "shop.example", &renewed, "http/1.1", BOTH)
        .await
        .expect("the new one");
    assert!(
        connect(address, "shop.example", &roots, "http/1.1", BOTH)
            .await
            .is_err()
    );
}

#[tokio::test]
async fn http2_carries_many_requests_on_one_connection_with_tls_and_without() {
    let proxy = Proxy::start().await;
    let upstream = Upstream::start("one").await;
    let mut roots = RootCertStore::empty();
    let certificate = issue(proxy.folder.path(), "exact", "shop.example", &mut roots);
    let mut wanted = snapshot(1, service(vec![group(1, 1, vec![upstream.backend()])]));
    wanted.certificates = vec![certificate];
    wanted.routes[0].limits.body_bytes_max = 300_000;
    let status = proxy.put(&wanted).await;
    let secure = connect(status.https[0], "shop.example", &roots, "h2", BOTH)
        .await
        .expect("trusted");
    assert_eq!(secure.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let plain = TcpStream::connect(status.http[0]).await.expect("connected");
    talk_http2(TokioIo::new(secure), "https", &upstream).await;
    talk_http2(TokioIo::new(plain), "http", &upstream).await;
}

/// GETs one after the other on one HTTP/2 connection, each with an `authorization` field or none.
async fn ask_http2<I>(io: I, target: &str, credentials: &[&str]) -> Vec<http::Response<Bytes>>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io)
        .await
        .expect("http2");
    let driver = tokio::spawn(connection);
    let mut answers = Vec::new();
    for credentials in credentials {
        let mut request = Request::get(target).version(Version::HTTP_2);
        if !credentials.is_empty() {
            request = request.header("authorization", *credentials);
        }
        let request = request.body(Full::<Bytes>::default()).expect("a request");
        let (head, body) = sender
            .send_request(request)
            .await
            .expect("an answer")
            .into_parts();
        let body = body.collect().await.expect("a body").to_bytes();
        answers.push(http::Response::from_parts(head, body));
    }
    driver.abort();
    answers
}

fn statuses(answers: &[http::Response<Bytes>]) -> Vec<u16> {
    answers
        .iter()
        .map(|answer| answer.status().as_u16())
        .collect()
}

#[tokio::test]
async fn who_is_let_in_and_what_browsers_are_told_is_the_same_over_http2() {
    let proxy = Proxy::start().await;
    let upstream = Upstream::start("one").await;
    let mut roots = RootCertStore::empty();
    let certificate = issue(proxy.folder.path(), "exact", "shop.example", &mut roots);
    // ann, by the password of `tests/admission.rs`.
    let users = vec!["ann:$2y$04$abcdefghijklmnopqrstuujydOTSfIH/d5oUHpsygqV5X9xJLQc6e".into()];
    let security = Some(Security {
        hsts_s: 60,
        ..Security::default()
    });
    let quota = Quota {
        requests: 1,
        per_ms: 3_600_000,
        burst: 3,
    };
    let guards = [
        (
            "/rated",
            Admission {
                rate: Some(Rate {
                    by: CountBy::Client,
                    quota,
                }),
                security: security.clone(),
                ..Admission::default()
            },
        ),
        (
            "/office",
            Admission {
                allow: vec!["10.0.0.0/8".into()],
                security: security.clone(),
                ..Admission::default()
            },
        ),
        (
            "/staging",
            Admission {
                auth: Some(BasicAuth {
                    realm: "staging".into(),
                    users,
                }),
                security,
                ..Admission::default()
            },
        ),
    ];
    let mut wanted = snapshot(1, service(vec![group(1, 1, vec![upstream.backend()])]));
    wanted.certificates = vec![certificate];
    wanted.routes = guards
        .into_iter()
        .map(|(path, admission)| {
            let mut guarded = route("*", path);
            guarded.admission = admission;
            guarded
        })
        .collect();
    let status = proxy.put(&wanted).await;
    assert!(status.problems.is_empty(), "{:?}", status.problems);
    let secure = async |path: &str, credentials: &[&str]| {
        let stream = connect(status.https[0], "shop.example", &roots, "h2", BOTH)
            .await
            .expect("trusted");
        let target = format!("https://shop.example{path}");
        ask_http2(TokioIo::new(stream), &target, credentials).await
    };

    let rated = secure("/rated", &[""; 5]).await;
    assert_eq!(statuses(&rated), [200, 200, 200, 429, 429]);
    assert!(rated[3].headers().contains_key("retry-after"));
    let office = secure("/office", &[""]).await;
    assert_eq!(statuses(&office), [403]);
    let right = "Basic YW5uOmNvcnJlY3QgaG9yc2U=";
    let staging = secure("/staging", &["", "Basic YW5uOndyb25n", right]).await;
    assert_eq!(statuses(&staging), [401, 401, 200]);
    assert!(staging[0].headers().contains_key("www-authenticate"));
    assert!(!upstream.last().headers.contains_key("authorization"));
    assert_eq!(upstream.count(), 4, "what was refused never got there");
    for answer in rated.iter().chain(&office).chain(&staging) {
        let said = answer.headers().get("strict-transport-security");
        assert_eq!(said.expect("over TLS"), "max-age=60", "{}", answer.status());
    }

    // The quota is the client's, whatever it speaks; and nothing is promised where there is no TLS.
    let plain = TcpStream::connect(status.http[0]).await.expect("connected");
    let plain = ask_http2(TokioIo::new(plain), "http://shop.example/rated", &[""]).await;
    assert_eq!(statuses(&plain), [429]);
    assert!(!plain[0].headers().contains_key("strict-transport-security"));
}

async fn talk_http2<I>(io: I, scheme: &str, upstream: &Upstream)
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let before = upstream.count();
    let (sender, connection) = http2::handshake(TokioExecutor::new(), io)
        .await
        .expect("http2");
    let driver = tokio::spawn(connection);
    let mut requests = JoinSet::new();
    for number in 0..50_usize {
        let mut sender = sender.clone();
        let body = if number % 3 == 0 {
            vec![b'b'; 4_000 * number]
        } else {
            vec![]
        };
        let method = if number % 3 == 0 { "POST" } else { "GET" };
        let request = Request::builder()
            .method(method)
            .uri(format!("{scheme}://shop.example/slow/20?n={number}"))
            .version(Version::HTTP_2)
            .header("cookie", "a=1")
            .header("cookie", "b=2")
            .body(Full::<Bytes>::from(body))
            .expect("a request");
        requests.spawn(async move {
            let answer = sender.send_request(request).await.expect("an answer");
            assert_eq!(answer.status(), 200);
            assert!(answer.headers().contains_key("x-request-id"));
            assert!(!answer.headers().contains_key("connection"));
            answer
                .into_body()
                .collect()
                .await
                .expect("a body")
                .to_bytes()
        });
    }
    while let Some(body) = requests.join_next().await {
        assert_eq!(body.expect("no panic"), "one");
    }
    assert_eq!(upstream.count() - before, 50);
    let seen = upstream.last().headers;
    assert_eq!(seen["host"], "shop.example");
    assert_eq!(seen["cookie"], "a=1; b=2");
    assert_eq!(seen["x-forwarded-proto"], scheme);
    let sizes: usize = upstream.seen.lock().expect("no panic")[before..]
        .iter()
        .map(|s| s.body.len())
        .sum();
    assert_eq!(
        sizes,
        (0..50)
            .filter(|n| n % 3 == 0)
            .map(|n| 4_000 * n)
            .sum::<usize>()
    );

    // Too large is refused on its stream alone.
    let mut one = sender.clone();
    let large = Request::post(format!("{scheme}://shop.example/"))
        .body(Full::<Bytes>::from(vec![0; 300_001]))
        .expect("a request");
    assert_eq!(
        one.send_request(large).await.expect("an answer").status(),
        413
    );
    let after = Request::get(format!("{scheme}://shop.example/"))
        .body(Full::default())
        .expect("one");
    assert_eq!(
        one.send_request(after).await.expect("an answer").status(),
        200
    );
    driver.abort();
}

#[tokio::test]
async fn a_renewed_certificate_is_used_without_a_new_snapshot() {
    let proxy = Proxy::start_with(|settings| settings.worker.certificates_ms = 50).await;
    let upstream = Upstream::start("one").await;
    let folder = proxy.folder.path();
    let mut old = RootCertStore::empty();
    let certificate = issue(folder, "it", "shop.example", &mut old);
    let table = service(vec![group(1, 1, vec![upstream.backend()])]);
    let status = proxy
        .put(&Snapshot {
            certificates: vec![certificate.clone()],
            ..snapshot(1, table)
        })
        .await;
    let address = status.https[0];
    let trusted = |roots: RootCertStore| async move {
        connect(address, "shop.example", &roots, "http/1.1", BOTH)
            .await
            .is_ok()
    };
    assert!(trusted(old.clone()).await);

    let mut renewed = RootCertStore::empty();
    issue(folder, "it", "shop.example", &mut renewed);
    eventually("the new one is served", || trusted(renewed.clone())).await;
    assert!(!trusted(old).await);

    // One that cannot be read leaves the last good one in use, and is told.
    std::fs::write(&certificate.chain_path, "nothing").expect("written");
    eventually("it is a problem", || async {
        !proxy.status().await.problems.is_empty()
    })
    .await;
    assert!(trusted(renewed).await);
    let mut again = RootCertStore::empty();
    issue(folder, "it", "shop.example", &mut again);
    eventually("it is none any more", || async {
        proxy.status().await.problems.is_empty()
    })
    .await;
    assert!(trusted(again).await);
}

#[tokio::test]
async fn a_stream_its_client_does_not_take_is_reset_and_the_others_go_on() {
    let proxy = Proxy::start_with(|settings| settings.worker.keep_alive_ms = 500).await;
    let upstream = Upstream::start("one").await;
    let wanted = snapshot(1, service(vec![group(1, 1, vec![upstream.backend()])]));
    let status = proxy.put(&wanted).await;
    let plain = TcpStream::connect(status.http[0]).await.expect("connected");
    let (mut sender, connection) = http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(1_024)
        .handshake(TokioIo::new(plain))
        .await
        .expect("http2");
    let driver = tokio::spawn(connection);
    let request = |path: &str| {
        Request::get(format!("http://shop.example{path}"))
            .body(Full::<Bytes>::default())
            .expect("a request")
    };
    let stalled = sender.send_request(request("/big/1000000")).await;
    let stalled = stalled.expect("an answer").into_body();
    let moving = sender.send_request(request("/drip/40/50")).await;
    let moving = moving.expect("an answer").into_body();
    let in_flight = || async { proxy.status().await.backends["one"].requests_in_flight };
    assert_eq!(in_flight().await, 2);
    let moving = tokio::spawn(moving.collect());
    eventually("only the moving one is left", || async {
        in_flight().await == 1
    })
    .await;
    assert!(!moving.is_finished());
    let pieces = moving.await.expect("no panic").expect("whole").to_bytes();
    assert!(pieces.ends_with(b"piece 39\n"));
    assert!(stalled.collect().await.is_err());
    driver.abort();
}
