//! One POST for each rollout that ended, with its outcome and its ledger, and for each alert. It is tried a few times; a
//! receiver that stays away does not hold anything up.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Uri, header};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use landfast_rollout::{Outcome, RolloutRecord};
use landfast_types::RolloutId;
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use serde_json::json;
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_rustls::TlsConnector;

use crate::actions::{Context, chain};

const TRIES: u32 = 4;
const TIMEOUT: Duration = Duration::from_secs(10);
const WAIT_FIRST: Duration = Duration::from_secs(2);

/// Tells the webhook of the rollout's release, where it names one.
pub(crate) async fn notify(context: &Context, rollout: RolloutId) {
    let state = &context.view.state;
    let Some(record) = state
        .history
        .iter()
        .rev()
        .find(|record| record.id == rollout)
    else {
        return;
    };
    let body = context.view.bodies.get(&record.to);
    let Some(url) = body.and_then(|body| body.spec.deploy.webhook.clone()) else {
        return;
    };
    let message = message(&state.scope.to_string(), record);
    deliver(&url, &message, &format!("the end of rollout {rollout}")).await;
}

/// Posts a message, a few times where it must be.
pub(crate) async fn deliver(url: &str, message: &str, what: &str) {
    let mut wait = WAIT_FIRST;
    for attempt in 1..=TRIES {
        match timeout(TIMEOUT, post(url, message)).await {
            Ok(Ok(())) => return,
            Ok(Err(reason)) => {
                tracing::warn!(what, attempt, reason, "the webhook did not take it")
            }
            Err(_) => tracing::warn!(what, attempt, "the webhook did not answer in time"),
        }
        if attempt < TRIES {
            sleep(wait).await;
            wait *= 2;
        }
    }
    tracing::error!(what, "the webhook was given up on");
}

fn message(scope: &str, record: &RolloutRecord) -> String {
    let (outcome, reason) = match &record.outcome {
        Outcome::Sealed => ("sealed", None),
        Outcome::RolledBack { reason } => ("rolled-back", Some(reason)),
    };
    let body = json!({
        "environment": scope,
        "rollout": record.id,
        "from": record.from,
        "to": record.to,
        "strategy": record.strategy,
        "outcome": outcome,
        "reason": reason,
        "by": record.by,
        "started_at": record.started_at.to_string(),
        "ended_at": record.ended_at.to_string(),
        "requests": record.ledger.requests(),
        "lost": record.ledger.lost(),
    });
    body.to_string()
}

async fn post(url: &str, message: &str) -> Result<(), String> {
    let uri: Uri = url
        .parse()
        .map_err(|error| format!("`{url}` is not a URL: {error}"))?;
    let host = uri
        .host()
        .ok_or_else(|| format!("`{url}` names no host"))?
        .to_owned();
    let tls = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
    let authority = uri
        .authority()
        .map_or(host.as_str(), |authority| authority.as_str());
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::post(path)
        .header(header::HOST, authority)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::USER_AGENT, "landfast-webhook")
        .header(header::CONNECTION, "close")
        .body(Full::new(Bytes::copy_from_slice(message.as_bytes())))
        .map_err(|error| error.to_string())?;
    let plain_host = host.trim_matches(['[', ']']).to_owned();
    let stream = TcpStream::connect((plain_host.as_str(), port)).await;
    let stream = stream.map_err(|error| format!("connect to {host}:{port}: {error}"))?;
    if !tls {
        return send(stream, request).await;
    }
    let name = ServerName::try_from(plain_host).map_err(|error| error.to_string())?;
    let connector = TlsConnector::from(Arc::new(tls_config()));
    let stream = connector
        .connect(name, stream)
        .await
        .map_err(|error| chain(&error))?;
    send(stream, request).await
}

async fn send<S>(stream: S, request: Request<Full<Bytes>>) -> Result<(), String>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| chain(&error))?;
    let (answer, _) = tokio::join!(sender.send_request(request), connection);
    let status = answer.map_err(|error| chain(&error))?.status();
    if status.is_success() {
        Ok(())
    } else {
        Err(format!("it answered {status}"))
    }
}

/// The system's certificates, or Mozilla's where the machine has none.
fn tls_config() -> ClientConfig {
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(native.certs);
    if roots.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth()
}
