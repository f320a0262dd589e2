//! The control client: how the engine talks to the proxy over `proxy.sock`. One connection per call, driven by
//! the caller's own task, so that nothing runs in the background and a restarted worker is simply met anew.

use std::{
    io,
    path::{Path, PathBuf},
    pin::pin,
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, StatusCode, header::HOST};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use landfast_routing::snapshot::{ProxyStats, ProxyStatus, Snapshot};
use landfast_types::Fence;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

/// The longest a call may take.
const CALL_MAX: Duration = Duration::from_secs(10);

/// Why the proxy did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// A newer snapshot was taken before. Do not retry: another server is in charge.
    #[error("snapshot {refused} is older than {seen}, which the proxy already has")]
    Stale { refused: Fence, seen: Fence },
    /// Nobody answers at the socket. Retry: a killed worker is back within a second.
    #[error("failed to reach the proxy at `{path}`")]
    Unreachable { path: PathBuf, source: io::Error },
    /// The exchange broke off. Whether the snapshot was taken is unknown; sending it again is safe.
    #[error("the exchange with the proxy broke off")]
    Broken {
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The proxy could not do it, such as for a full disk; it says why.
    #[error("the proxy refused with {status}: {detail}")]
    Refused { status: u16, detail: String },
}

/// The body of a refusal (RFC 9457).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Problem {
    pub(crate) title: String,
    pub(crate) status: u16,
    pub(crate) detail: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) refused: Option<Fence>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) seen: Option<Fence>,
}

/// Talks to a proxy.
#[derive(Debug, Clone)]
pub struct ControlClient {
    path: PathBuf,
}

impl ControlClient {
    /// A client of the proxy that listens at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Hands a snapshot over. When this returns, every new request uses it and it is on disk.
    ///
    /// # Errors
    /// [`ControlError::Stale`] when the proxy has a newer one.
    pub async fn put_snapshot(&self, snapshot: &Snapshot) -> Result<ProxyStatus, ControlError> {
        let body = serde_json::to_vec(snapshot).map_err(broken)?;
        self.json(Method::PUT, "/snapshot", body).await
    }

    /// What the proxy serves now, and where each drain stands.
    ///
    /// # Errors
    /// When the proxy cannot be reached.
    pub async fn status(&self) -> Result<ProxyStatus, ControlError> {
        self.json(Method::GET, "/status", Vec::new()).await
    }

    /// What the proxy measured since its worker started.
    ///
    /// # Errors
    /// When the proxy cannot be reached.
    pub async fn stats(&self) -> Result<ProxyStats, ControlError> {
        self.json(Method::GET, "/stats", Vec::new()).await
    }

    /// The snapshot in use.
    ///
    /// # Errors
    /// When the proxy cannot be reached.
    pub async fn snapshot(&self) -> Result<Snapshot, ControlError> {
        self.json(Method::GET, "/snapshot", Vec::new()).await
    }

    /// The counters in the Prometheus text format.
    ///
    /// # Errors
    /// When the proxy cannot be reached.
    pub async fn metrics(&self) -> Result<String, ControlError> {
        let (status, body) = self.call(Method::GET, "/metrics", Vec::new()).await?;
        let body = String::from_utf8_lossy(&body).into_owned();
        if status.is_success() {
            Ok(body)
        } else {
            Err(refused(status, body.as_bytes()))
        }
    }

    /// Tells a worker, at its own socket, to end as by SIGTERM.
    pub(crate) async fn end(&self) -> Result<(), ControlError> {
        let (status, body) = self.call(Method::POST, "/end", Vec::new()).await?;
        if status.is_success() {
            Ok(())
        } else {
            Err(refused(status, &body))
        }
    }

    async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<T, ControlError> {
        let (status, body) = self.call(method, path, body).await?;
        if !status.is_success() {
            return Err(refused(status, &body));
        }
        serde_json::from_slice(&body).map_err(broken)
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<(StatusCode, Bytes), ControlError> {
        let call = tokio::time::timeout(CALL_MAX, Box::pin(self.try_call(method, path, body)));
        let late = |_| broken(io::Error::from(io::ErrorKind::TimedOut));
        call.await.map_err(late)?
    }

    async fn try_call(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<(StatusCode, Bytes), ControlError> {
        let unreachable = |source| ControlError::Unreachable {
            path: self.path.clone(),
            source,
        };
        let stream = UnixStream::connect(&self.path).await.map_err(unreachable)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "proxy")
            .body(Full::new(Bytes::from(body)))
            .map_err(broken)?;
        let mut exchange = pin!(async {
            let answer = sender.send_request(request).await.map_err(broken)?;
            let status = answer.status();
            let body = answer.into_body().collect().await.map_err(broken)?;
            Ok((status, body.to_bytes()))
        });
        let connection = pin!(connection);
        tokio::select! {
            biased;
            result = &mut exchange => return result,
            ended = connection => if let Err(error) = ended {
                return Err(broken(error));
            },
        }
        exchange.await
    }
}

fn broken(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ControlError {
    ControlError::Broken {
        source: source.into(),
    }
}

fn refused(status: StatusCode, body: &[u8]) -> ControlError {
    let problem: Option<Problem> = serde_json::from_slice(body).ok();
    let fences = problem
        .as_ref()
        .and_then(|problem| problem.refused.zip(problem.seen));
    if let (StatusCode::CONFLICT, Some((refused, seen))) = (status, fences) {
        return ControlError::Stale { refused, seen };
    }
    let detail = problem.map(|problem| problem.detail);
    let detail = detail.unwrap_or_else(|| String::from_utf8_lossy(body).into_owned());
    ControlError::Refused {
        status: status.as_u16(),
        detail,
    }
}
