//! A small HTTP/1.1 client for probes: one request, one connection, one time limit.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::StatusCode;
use http_body_util::{BodyExt, Empty};
use hyper::{Request, header::HOST};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

/// A probe's body is read up to here, so that the instance does not see a reset.
const BODY_BYTES_MAX: usize = 1 << 20;

/// What came back.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    /// From the connection to the answer's head.
    pub(crate) took: Duration,
}

/// Connects, asks for `path` and reads the answer.
pub(crate) async fn get(
    address: SocketAddr,
    host: &str,
    path: &str,
    limit: Duration,
) -> Result<Answer, String> {
    let asked = timeout(limit, exchange(address, host, path)).await;
    asked.unwrap_or_else(|_| {
        Err(format!(
            "GET {path}: no answer within {} ms",
            limit.as_millis()
        ))
    })
}

/// Connects, and nothing else.
pub(crate) async fn connect(address: SocketAddr) -> Result<TcpStream, String> {
    TcpStream::connect(address)
        .await
        .map_err(|error| format!("connect to {address}: {error}"))
}

async fn exchange(address: SocketAddr, host: &str, path: &str) -> Result<Answer, String> {
    let words = |error: hyper::Error| format!("GET {path}: {error}");
    let begun = now();
    let stream = connect(address).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(words)?;
    let request = Request::get(path)
        .header(HOST, host)
        .header("user-agent", "landfast-probe")
        .header("connection", "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| format!("GET {path}: {error}"))?;
    let asking = async {
        let answer = sender.send_request(request).await?;
        let (status, took) = (answer.status(), now().duration_since(begun));
        let mut body = answer.into_body();
        let mut read = 0;
        while let Some(frame) = body.frame().await {
            read += frame?.data_ref().map_or(0, Bytes::len);
            if read > BODY_BYTES_MAX {
                break;
            }
        }
        Ok(Answer { status, took })
    };
    let connection = std::pin::pin!(connection);
    tokio::select! {
        answer = asking => answer.map_err(words),
        // The connection ends by itself only after the answer, or in an error that the answer shows better.
        () = async { if connection.await.is_err() { tracing::trace!("probe connection failed") }; std::future::pending().await } => {
            Err(format!("GET {path}: the connection ended"))
        }
    }
}

pub(crate) fn now() -> tokio::time::Instant {
    tokio::time::Instant::now()
}
