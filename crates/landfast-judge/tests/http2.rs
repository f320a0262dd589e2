//! The judge over HTTP/2, with prior knowledge and over TLS, against a real HTTP/2 server.

#![expect(
    clippy::unwrap_used,
    reason = "in a test a failed unwrap is the failure"
)]

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use landfast_judge::{Judge, Reason, Settings, Tls, Verdict};
use rustls_pki_types::PrivateKeyDer;
use tokio::net::TcpListener;

/// Answers everything; without `x-release` when it is not sound.
async fn answer(
    request: Request<Incoming>,
    sound: bool,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let id = request
        .headers()
        .get("x-receipt-id")
        .map(|id| id.to_str().unwrap().to_owned());
    let version = format!("{:?}", request.version());
    let body = request
        .into_body()
        .collect()
        .await
        .map(|body| body.to_bytes())
        .unwrap_or_default();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &body);
    let hex: String = digest
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let text = format!(r#"{{"id":"{}","sha256":"{hex}"}}"#, id.unwrap_or_default());
    let mut response = Response::builder();
    if sound {
        response = response.header("x-release", version);
    }
    Ok(response.body(Full::new(Bytes::from(text))).unwrap())
}

struct Server {
    address: SocketAddr,
    ca_pem: Option<Vec<u8>>,
    // Dropping it ends the server.
    _runtime: tokio::runtime::Runtime,
}

fn serve(tls: bool, sound: bool) -> Server {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let certified = rcgen::generate_simple_self_signed(vec!["api.example".to_owned()]).unwrap();
    let ca_pem = tls.then(|| certified.cert.pem().into_bytes());
    let acceptor = tls.then(|| {
        let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
        let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(
            rustls::crypto::aws_lc_rs::default_provider(),
        ))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        tokio_rustls::TlsAcceptor::from(Arc::new(config))
    });
    runtime.spawn(async move {
        let mut tasks = tokio::task::JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tasks.spawn(async move {
                let service = service_fn(move |request| answer(request, sound));
                let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                match acceptor {
                    None => drop(
                        builder
                            .serve_connection(TokioIo::new(stream), service)
                            .await,
                    ),
                    Some(acceptor) => {
                        if let Ok(stream) = acceptor.accept(stream).await {
                            drop(
                                builder
                                    .serve_connection(TokioIo::new(stream), service)
                                    .await,
                            );
                        }
                    }
                }
            });
        }
    });
    Server {
        address,
        ca_pem,
        _runtime: runtime,
    }
}

fn judged(server: &Server) -> Verdict {
    let mut settings = Settings::new(server.address, "api.example");
    (settings.rate, settings.websockets, settings.event_streams) = (200, 0, 0);
    (settings.http2_percent, settings.wait_percent) = (50, 0);
    settings.judge_late_after = Duration::from_secs(5);
    settings.late_after = Duration::from_secs(5);
    settings.tls = server.ca_pem.clone().map(|ca_pem| Tls { ca_pem });
    let judge = Judge::start(settings).unwrap();
    std::thread::sleep(Duration::from_millis(1_500));
    judge.finish()
}

#[test]
fn both_protocols_carry_the_load_plain_and_over_tls() {
    for tls in [false, true] {
        let verdict = judged(&serve(tls, true));
        assert!(verdict.is_clean(), "{verdict}");
        for version in ["HTTP/1.1", "HTTP/2.0"] {
            assert!(verdict.releases[version].answers > 80, "{verdict}");
        }
        assert!(verdict.connections.reused > 80, "{verdict}");
    }
}

#[test]
fn a_foreign_status_is_lost_over_both() {
    let verdict = judged(&serve(false, false));
    assert_eq!(
        verdict.lost_by_reason.keys().copied().collect::<Vec<_>>(),
        [Reason::NotFromApp],
        "{verdict}"
    );
    assert!(
        verdict.lost.iter().any(|sample| sample.http == "2")
            && verdict.lost.iter().any(|sample| sample.http == "1.1")
    );
}

#[test]
fn a_certificate_nobody_vouched_for_is_a_loss() {
    let server = serve(true, true);
    let other = Server {
        address: server.address,
        ca_pem: serve(true, true).ca_pem,
        _runtime: runtime(),
    };
    let verdict = judged(&other);
    assert_eq!(
        (verdict.answered, verdict.lost_total),
        (0, verdict.requests),
        "{verdict}"
    );
    assert!(
        verdict.lost[0].detail.contains("TLS handshake"),
        "{verdict}"
    );
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
}
