//! The smoke test a deployment runs against the new release before it gets traffic.
//!
//! `LANDFAST_PREVIEW_URL` (plain HTTP) says where, `LANDFAST_PREVIEW_HOST` which host to ask for. It checks that
//! the service is ready, says who it is, and creates, evaluates and deletes a constraint; it leaves nothing behind.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;

const REQUEST_TIME_MAX: Duration = Duration::from_secs(10);

/// Runs all checks and says how many passed.
pub(crate) fn run(get: impl Fn(&str) -> Option<String>) -> anyhow::Result<usize> {
    let url = get("LANDFAST_PREVIEW_URL").context("LANDFAST_PREVIEW_URL is not set")?;
    let uri: Uri = url
        .parse()
        .with_context(|| format!("LANDFAST_PREVIEW_URL is `{url}`, which is no URL"))?;
    ensure!(
        uri.scheme_str() == Some("http"),
        "LANDFAST_PREVIEW_URL is `{url}`, but must begin with http://"
    );
    let authority = uri
        .authority()
        .context("LANDFAST_PREVIEW_URL names no host")?;
    let client = Client {
        address: format!(
            "{}:{}",
            authority.host(),
            authority.port_u16().unwrap_or(80)
        ),
        host: get("LANDFAST_PREVIEW_HOST").unwrap_or_else(|| authority.to_string()),
        bearer: get("API_KEY").filter(|key| !key.is_empty()),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("failed to start the runtime")?;
    runtime.block_on(checks(&client))
}

async fn checks(client: &Client) -> anyhow::Result<usize> {
    client
        .expect(Method::GET, "/ready", None, StatusCode::OK)
        .await?;
    let version = client
        .expect(Method::GET, "/version", None, StatusCode::OK)
        .await?;
    for field in ["version", "digest"] {
        ensure!(
            version[field].is_string(),
            "GET /version answers without `{field}`: {version}"
        );
    }
    let id = format!("smoke-{:016x}", rand::random::<u64>());
    let constraint = json!({
        "id": id, "type": "rest-days", "sport": "smoke-test", "name": "smoke test", "active": false,
        "configuration": {"min_days": 1},
    });
    client
        .expect(
            Method::POST,
            "/v2/constraints",
            Some(&constraint),
            StatusCode::CREATED,
        )
        .await?;
    let evaluated = evaluate(client, &id).await;
    // Deleted whatever the evaluation said: a failed test must not leave its constraint behind.
    client
        .expect(
            Method::DELETE,
            &format!("/v2/constraints/{id}"),
            None,
            StatusCode::NO_CONTENT,
        )
        .await?;
    evaluated?;
    client
        .expect(
            Method::GET,
            &format!("/v2/constraints/{id}"),
            None,
            StatusCode::NOT_FOUND,
        )
        .await?;
    Ok(6)
}

async fn evaluate(client: &Client, id: &str) -> anyhow::Result<()> {
    let game = |number: u32, start: &str| {
        json!({"id": format!("game-{number}"), "home": "north", "away": "south", "start": start,
               "venue": {"id": "hall", "latitude": 52.5, "longitude": 13.4}})
    };
    let schedule = json!({
        "id": id, "sport": "smoke-test",
        "games": [game(1, "2026-01-01T18:00:00Z"), game(2, "2026-01-02T18:00:00Z"), game(3, "2026-01-05T18:00:00Z")],
    });
    let body = json!({"schedule": schedule, "constraints": [id]});
    let answer = client
        .expect(Method::POST, "/v2/evaluate", Some(&body), StatusCode::OK)
        .await?;
    let found = &answer["results"][0]["finding"]["violation_count"];
    // Both teams rest no day between the first two games.
    ensure!(
        *found == 2,
        "the evaluation found {found} violations where there are 2"
    );
    Ok(())
}

struct Client {
    address: String,
    host: String,
    bearer: Option<String>,
}

impl Client {
    async fn expect(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        wanted: StatusCode,
    ) -> anyhow::Result<Value> {
        let what = format!("{method} {path}");
        let exchange = self.exchange(method, path, body);
        let Ok(answer) = tokio::time::timeout(REQUEST_TIME_MAX, exchange).await else {
            bail!(
                "{what} was not answered within {} s",
                REQUEST_TIME_MAX.as_secs()
            );
        };
        let (status, body) = answer.with_context(|| format!("{what} failed"))?;
        ensure!(
            status == wanted,
            "{what} answered {status} instead of {wanted}: {}",
            String::from_utf8_lossy(&body)
        );
        if body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&body)
            .with_context(|| format!("{what} answered something that is no JSON"))
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<(StatusCode, Bytes)> {
        let stream = TcpStream::connect(&self.address)
            .await
            .with_context(|| format!("failed to connect to {}", self.address))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, &self.host)
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(bearer) = &self.bearer {
            request = request.header(header::AUTHORIZATION, format!("Bearer {bearer}"));
        }
        let body = body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string()));
        let request = request
            .body(Full::new(body))
            .context("the host is not fit for a header")?;
        let exchange = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            anyhow::Ok((status, response.into_body().collect().await?.to_bytes()))
        };
        tokio::pin!(connection);
        tokio::pin!(exchange);
        tokio::select! {
            biased;
            answer = &mut exchange => answer,
            // The connection may end first; what it carried still reaches the exchange.
            _ = &mut connection => exchange.await,
        }
    }
}
