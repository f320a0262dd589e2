//! Connections: opened when needed, kept while idle, driven by tasks that end with the client.

use std::{io, sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    body::Incoming,
    client::conn::http1::{SendRequest, handshake},
};
use hyper_util::rt::TokioIo;
use landfast_api::{ACTOR, IDEMPOTENCY_KEY, PROBLEM_TYPE_PREFIX, Problem};
use parking_lot::Mutex;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{Client, Error, PATIENCE, Place};

/// How long opening a connection may take.
const CONNECT_WAIT: Duration = Duration::from_secs(5);
/// How long the head of an answer may take.
const ANSWER_WAIT: Duration = Duration::from_secs(120);
/// Idle connections kept.
const IDLE_MAX: usize = 4;
/// The first pause before a request is sent again; doubled up to [`RETRY_PAUSE_MAX`].
const RETRY_PAUSE: Duration = Duration::from_millis(100);
pub(crate) const RETRY_PAUSE_MAX: Duration = Duration::from_secs(2);

/// Open connections.
#[derive(Default)]
pub(crate) struct Pool {
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
    tasks: Mutex<JoinSet<()>>,
}

/// One request, kept so that it can be sent again.
#[derive(Clone)]
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) target: String,
    /// In words, for errors.
    pub(crate) doing: String,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Bytes,
}

impl Call {
    pub(crate) fn new(method: Method, target: impl Into<String>, doing: &str) -> Self {
        let (target, doing) = (target.into(), doing.to_owned());
        Self {
            method,
            target,
            doing,
            headers: Vec::new(),
            body: Bytes::new(),
        }
    }

    pub(crate) fn json<T: Serialize>(mut self, value: &T) -> Self {
        let bytes = serde_json::to_vec(value).expect("wire types are plain data");
        self.body = Bytes::from(bytes);
        self.headers
            .push(("content-type", "application/json".to_owned()));
        self
    }

    pub(crate) fn bytes(mut self, bytes: Bytes) -> Self {
        self.body = bytes;
        self.headers
            .push(("content-type", "application/octet-stream".to_owned()));
        self
    }

    pub(crate) fn key(mut self, key: &str) -> Self {
        self.headers.push((IDEMPOTENCY_KEY, key.to_owned()));
        self
    }

    pub(crate) fn header(mut self, name: &'static str, value: String) -> Self {
        self.headers.push((name, value));
        self
    }

    /// Whether sending it twice is the same as sending it once.
    fn is_repeatable(&self) -> bool {
        self.method == Method::GET
            || self
                .headers
                .iter()
                .any(|(name, _)| *name == IDEMPOTENCY_KEY)
    }
}

/// An answer whose head has come, and the connection its body comes over.
pub(crate) struct Answer {
    pub(crate) response: Response<Incoming>,
    sender: SendRequest<Full<Bytes>>,
}

impl Client {
    /// Sends a request and reads the whole answer as JSON.
    pub(crate) async fn ask<T: DeserializeOwned>(&self, call: Call) -> Result<T, Error> {
        let bytes = self.ask_bytes(&call).await?;
        serde_json::from_slice(&bytes).map_err(|source| Error::Foreign {
            doing: call.doing,
            source,
        })
    }

    /// Sends a request and reads the whole answer. A repeatable one is sent again while a server that was reached
    /// before is away.
    pub(crate) async fn ask_bytes(&self, call: &Call) -> Result<Bytes, Error> {
        let mut waited = Duration::ZERO;
        let mut pause = RETRY_PAUSE;
        loop {
            let error = match self.ask_once(call).await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => error,
            };
            let may_repeat = call.is_repeatable() || matches!(error, Error::NotRunning { .. });
            let reached = self.inner.reached.load(Ordering::Relaxed);
            if !(error.is_away() && may_repeat && reached && waited < PATIENCE) {
                return Err(error);
            }
            sleep(pause).await;
            waited += pause;
            pause = (pause * 2).min(RETRY_PAUSE_MAX);
        }
    }

    async fn ask_once(&self, call: &Call) -> Result<Bytes, Error> {
        let answer = self.send(call).await?;
        let body = timeout(ANSWER_WAIT, answer.response.into_body().collect()).await;
        let body = body.map_err(|_elapsed| self.silent(call))?;
        let bytes = body.map_err(|source| self.cut(call, source))?.to_bytes();
        let mut idle = self.inner.pool.idle.lock();
        if idle.len() < IDLE_MAX {
            idle.push(answer.sender);
        }
        Ok(bytes)
    }

    /// Sends a request and waits for the head of the answer. A problem is an error.
    pub(crate) async fn send(&self, call: &Call) -> Result<Answer, Error> {
        let answer = self.exchange(call).await?;
        let status = answer.response.status();
        if status.is_success() {
            return Ok(answer);
        }
        let body = timeout(ANSWER_WAIT, answer.response.into_body().collect()).await;
        let body = body.map_err(|_elapsed| self.silent(call))?;
        let bytes = body.map_err(|source| self.cut(call, source))?.to_bytes();
        Err(Error::Problem(Box::new(problem(status, &bytes, call))))
    }

    async fn exchange(&self, call: &Call) -> Result<Answer, Error> {
        let mut request = self.request(call);
        // A connection that was idle may have been closed meanwhile: then the request comes back unsent.
        while let Some(mut sender) = self.take_idle() {
            match timeout(ANSWER_WAIT, sender.try_send_request(request)).await {
                Err(_elapsed) => return Err(self.silent(call)),
                Ok(Ok(response)) => return Ok(Answer { response, sender }),
                Ok(Err(mut error)) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(self.cut(call, error.into_error())),
                },
            }
        }
        let mut sender = self.connect(call).await?;
        let response = timeout(ANSWER_WAIT, sender.send_request(request)).await;
        let response = response.map_err(|_elapsed| self.silent(call))?;
        let response = response.map_err(|source| self.cut(call, source))?;
        Ok(Answer { response, sender })
    }

    fn take_idle(&self) -> Option<SendRequest<Full<Bytes>>> {
        let mut idle = self.inner.pool.idle.lock();
        idle.retain(|sender| !sender.is_closed());
        let ready = idle.iter().position(SendRequest::is_ready)?;
        Some(idle.swap_remove(ready))
    }

    fn request(&self, call: &Call) -> Request<Full<Bytes>> {
        let mut request = Request::builder()
            .method(call.method.clone())
            .uri(&call.target)
            .header(header::HOST, "landfast")
            .header(
                header::USER_AGENT,
                concat!("landfast/", env!("CARGO_PKG_VERSION")),
            );
        if let Some(actor) = &self.inner.actor {
            // A name that is no header value is left out: it is for people only.
            if let Ok(value) = HeaderValue::from_str(actor) {
                request = request.header(ACTOR, value);
            }
        }
        for (name, value) in &call.headers {
            request = request.header(*name, value);
        }
        request
            .body(Full::new(call.body.clone()))
            .expect("paths are percent-encoded")
    }

    async fn connect(&self, call: &Call) -> Result<SendRequest<Full<Bytes>>, Error> {
        match &self.inner.place {
            Place::Unix(path) => {
                let stream = self.opened(timeout(CONNECT_WAIT, UnixStream::connect(path)).await)?;
                self.drive(stream, call).await
            }
            Place::Tcp(address) => {
                let stream =
                    self.opened(timeout(CONNECT_WAIT, TcpStream::connect(address)).await)?;
                self.drive(stream, call).await
            }
        }
    }

    fn opened<T>(
        &self,
        result: Result<io::Result<T>, tokio::time::error::Elapsed>,
    ) -> Result<T, Error> {
        let result = result.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into()));
        result.map_err(|source| {
            let place = self.title();
            if source.kind() == io::ErrorKind::PermissionDenied {
                Error::Denied { place, source }
            } else {
                Error::NotRunning { place, source }
            }
        })
    }

    async fn drive<S>(&self, stream: S, call: &Call) -> Result<SendRequest<Full<Bytes>>, Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let handshake = handshake(TokioIo::new(stream)).await;
        let (sender, connection) = handshake.map_err(|source| self.cut(call, source))?;
        let mut tasks = self.inner.pool.tasks.lock();
        while tasks.try_join_next().is_some() {}
        // How a connection ended is told to whoever waits for an answer over it.
        tasks.spawn(async move { connection.await.unwrap_or_default() });
        self.inner.reached.store(true, Ordering::Relaxed);
        Ok(sender)
    }

    pub(crate) fn cut(&self, call: &Call, source: hyper::Error) -> Error {
        Error::Cut {
            place: self.title(),
            doing: call.doing.clone(),
            source,
        }
    }

    fn silent(&self, call: &Call) -> Error {
        Error::Silent {
            place: self.title(),
            doing: call.doing.clone(),
            wait: ANSWER_WAIT,
        }
    }
}

/// The problem an answer carries, or one that says what came instead.
fn problem(status: StatusCode, bytes: &[u8], call: &Call) -> Problem {
    serde_json::from_slice(bytes).unwrap_or_else(|_not_a_problem| Problem {
        type_uri: format!("{PROBLEM_TYPE_PREFIX}unknown"),
        title: "unknown problem".to_owned(),
        status: status.as_u16(),
        detail: format!("the server answered {} to {}", status.as_u16(), call.doing),
        hint: None,
        diagnostics: Vec::new(),
        moving: None,
        offset: None,
        missing: Vec::new(),
    })
}
